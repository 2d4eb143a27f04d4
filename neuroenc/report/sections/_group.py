"""Groups of subjects: maps of the mean, its tests, prevalence and overlap; regions; another map beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc._core.tables import check_columns
from neuroenc.report._charts import GREY
from neuroenc.report._page import Block, Section
from neuroenc.report._regions import _reading
from neuroenc.report._style import BLUE, WIDTH, drawing, number, short
from neuroenc.report.brain._canvas import Canvas
from neuroenc.report.export._files import map_files, numeric_scores, write_maps, write_scores

_MOST_REGIONS = 40  # in one figure


def group_sections(
    maps: xr.Dataset,
    regions: pd.DataFrame | None = None,
    comparison: pd.DataFrame | None = None,
    *,
    score: str = "r",
    level: float = 0.05,
) -> list[Section]:
    """Sections of a group: maps of mean, t, prevalence and overlap, regions over subjects, and a compared map.

    Parameters
    ----------
    maps : Dataset over ``voxel``
        From `neuroenc.stats.group_map`, with coordinates ``vertex`` and ``hemi``.
    regions : DataFrame, optional
        ``roi, mean, low, high, t, p, q, n_subjects`` and a column for each subject.
    comparison : DataFrame, optional
        ``map, null, r, p, n_places``.
    score : str
        What the mean is of, for headings.
    level : float
        Of the family-wise error and the false discovery rate.

    Examples
    --------
    >>> coords = {"vertex": ("voxel", [3, 9]), "hemi": ("voxel", ["L", "R"])}
    >>> names = ["mean", "t", "n_subjects", "p_value", "p_fwe", "q_value"]
    >>> maps = xr.Dataset({name: ("voxel", [1.0, 2.0]) for name in names}, coords=coords, attrs={"n_subjects": 8})
    >>> [section.id for section in group_sections(maps)]
    ['group']
    """
    absent = sorted({"mean", "t", "p_fwe", "q_value"} - set(maps))
    if absent:
        raise DataError(f"maps lack {', '.join(absent)}. Next step: neuroenc.stats.group_map.")
    made = [_maps(maps, score, level)]
    if regions is not None and len(regions):
        made.append(_regions(check_columns(regions, ["roi", "mean", "low", "high"], "regions"), score))
    if comparison is not None and len(comparison):
        shown = check_columns(comparison, ["map", "null", "r", "p", "n_places"], "comparison")
        lead = (
            "Correlation over vertices of the group's mean with another map. Neighbouring vertices are alike, so that "
            "p comes from null maps that are as smooth: spins of the sphere, or Moran randomisation. Shuffled vertices "
            "(permutation) stand beside them to show what smoothness alone would feign."
        )
        made.append(Section("comparison", "Beside another map", lead, [Block(table=shown)], nav="Another map"))
    return made


def _maps(maps: xr.Dataset, score: str, level: float) -> Section:
    family = "p_tfce" if "p_tfce" in maps else "p_fwe"
    n, known = int(maps.attrs.get("n_subjects", 0)), np.isfinite(maps["t"].values)
    passed, found = ((maps[name].values <= level) & known for name in (family, "q_value"))
    how = "threshold-free cluster enhancement" if family == "p_tfce" else "the largest t"
    mean, t = maps["mean"].values, maps["t"].values
    # Heading, what is shown, values, and their limits or colours.
    shown: list[tuple[str, str, np.ndarray, dict[str, Any]]] = [
        (f"Mean {score} over subjects", "", mean, {}),
        ("t over subjects", "", np.where(np.isfinite(t), t, np.nan), {"cmap": "plasma"}),
        (
            f"Mean {score} where it exceeds chance",
            f"Family-wise p <= {level:g}, by {how}.",
            np.where(passed, mean, np.nan),
            {},
        ),
    ]
    if "prevalence" in maps:
        share: dict[str, Any] = {"limits": (0.0, 1.0)}
        overlap = np.where(known, maps["overlap"].values, np.nan)
        at = f"q <= {maps.attrs.get('alpha', level):g} within the subject."
        shown += [
            ("Prevalence", "Most likely share of the population with an effect.", maps["prevalence"].values, share),
            ("Prevalence, lower limit", "", maps["prevalence_low"].values, share),
            ("Subjects with an effect", at, overlap, {"limits": (0.0, float(max(n, 1)))}),
        ]
    canvas = Canvas(maps)
    blocks = []
    for heading, said, values, options in shown if canvas.kind == "surface" else ():
        finite = values[np.isfinite(values)]
        told = f"{finite.size} vertices, median {np.median(finite):.2f}." if finite.size else "No vertex."
        about = f"{said} {told}".strip()
        figures = canvas.draw(values, label=heading, **options)
        blocks.append(Block(figures, f"{heading}. {about}", about, heading=heading))
    tiles = [(str(n), "subjects"), (number(int(known.sum()), "n_"), "vertices tested")]
    tiles += [(number(int(passed.sum()), "n_"), f"above chance, family-wise p <= {level:g}")]
    tiles += [(number(int(found.sum()), "n_"), f"above chance, q <= {level:g}")]
    lead = (
        "The mean and its tests say whether the mean of the population exceeds chance, which a few strong subjects can "
        "bring about. Prevalence and overlap say in how many subjects an effect is seen.\n\nTests flip the signs of "
        f"subjects, in {maps.attrs.get('n_permutations', 0)} arrangements."
    )

    def export(folder: Path) -> None:
        write_scores(folder, maps)
        write_maps(folder, maps, numeric_scores(maps))

    files = ["scores.nc", *map_files(maps)]
    shape: dict[str, Any] = {"style": "maps", "export": export, "files": files}
    return Section("group", "Group maps", lead, blocks, remarks=canvas.remarks, tiles=tiles, **shape)


def _regions(regions: pd.DataFrame, score: str) -> Section:
    rows = regions.iloc[sorted(range(len(regions)), key=lambda k: _reading(str(regions["roi"].iloc[k])))]
    drawn = rows.head(_MOST_REGIONS)
    plain = {"roi", "n_subjects", "mean", "low", "high", "t", "p", "p_fwe", "q", "prevalence"}
    subjects = [c for c in rows.columns if c not in plain]
    names, y = [short(m, 30) for m in drawn["roi"]], np.arange(len(drawn))
    left, height = max(0.9, 0.2 + 0.078 * max(map(len, names))), 0.27 * len(names) + 0.6
    with drawing(WIDTH, height) as figure:
        axes = figure.add_axes((left / WIDTH, 0.45 / height, min(6.0, WIDTH - left - 0.3) / WIDTH, 1 - 0.53 / height))
        for subject in subjects:
            axes.plot(drawn[subject], y, "o", ms=4, mew=0, color=GREY)
        axes.hlines(y, drawn["low"], drawn["high"], color=BLUE, lw=2)
        axes.plot(drawn["mean"], y, "o", ms=6, mew=0, color=BLUE)
        axes.axvline(0, color=GREY, lw=0.8)
        axes.set(ylim=(len(names) - 0.5, -0.5), xlabel=f"mean {score} of the region")
        axes.set_yticks(y, names, fontsize=8.5)
        axes.tick_params(axis="y", length=0)
    told = drawn.head(8).to_dict("records")
    said = "; ".join(f"{r['roi']}: {r['mean']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in told)
    lead = (
        "Mean score over each subject's own vertices of a region; then mean, interval (Student's) and sign-flip test "
        "over subjects. Grey points are subjects."
    )
    block = Block(figure, f"Means of {len(names)} regions. {said}", "", rows, about="regions over subjects")
    return Section("regions", "Regions over subjects", lead, [block], nav="Regions", files=["regions.csv"])
