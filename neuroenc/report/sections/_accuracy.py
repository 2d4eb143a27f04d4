"""Accuracy of one encoder: figure, tiles and table, maps on the brain, controls, and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.checks import one_of
from neuroenc._core.schema import check_scores
from neuroenc.report._page import Block, Section, make_sections
from neuroenc.report._regions import NO_ROI, ceiling_r, median, memberships, normalised_r, roi_summary
from neuroenc.report._style import BLUE, FAINT, INK, MUTED, ORANGE, SCORES, WIDTH, drawing, number, short, write
from neuroenc.report.brain._canvas import Canvas
from neuroenc.report.export._files import map_files, numeric_scores, write_maps, write_scores
from neuroenc.report.sections._decoding import decoding_section
from neuroenc.report.sections._lags import response_section
from neuroenc.report.sections._leakage import leakage_section
from neuroenc.report.sections._learning import learning_section

MAX_ROIS, MAX_DOTS = 24, 300


def accuracy_sections(
    scores: xr.Dataset,
    *,
    roi_table: pd.DataFrame | None = None,
    decoding: pd.DataFrame | None = None,
    controls: pd.DataFrame | None = None,
    sections: Sequence[Section] = (),
    maps: Sequence[str] | None = None,
    rates: dict[str, float] | None = None,
    leakage: Mapping[str, Any] | None = None,
    learning: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[Section]:
    """Sections on one encoder: accuracy against the noise ceiling, brain maps, controls.

    Parameters
    ----------
    scores : xarray.Dataset over ``voxel``
        ``r`` (Pearson correlation) and optionally ``noise_ceiling_r`` (correlation), ``noise_ceiling_r2`` (share of
        variance), ``r_normalised``, ``p_value``, ``q_value`` and others; coordinates ``roi`` (names joined by ";"),
        ``vertex`` and ``hemi``, ``i, j, k`` (with attributes ``affine`` and ``volume_shape``). Those of a time series
        may have response functions, `neuroenc.encoders.lag_profile`, which get a section and a map of their peaks.
    roi_table : pandas.DataFrame, optional
        Shown instead of `roi_summary`, with whatever columns it has.
    decoding : pandas.DataFrame, optional
        Accuracy of identification, from `neuroenc.encoders.identification_table`.
    controls : pandas.DataFrame, optional
        Negative controls, such as scores with shuffled weights; shown as it is.
    sections : sequence of Section
        More sections, before the controls.
    maps : sequence of str, optional
        Scores to draw on the brain, or "roi"; by default r, r_normalised, peak_latency and, up to 14, the ROIs.
    rates : mapping of str to float, optional
        Shares of the run that belong to the first numbers, such as "caption_family_accuracy".
    leakage : mapping, optional
        How far test stimuli are from training stimuli; see `leakage_section`.
    learning : mapping, optional
        ``table`` and ``laws`` of accuracy over training stimuli; see `learning_section`.
    progress : bool

    Returns
    -------
    list of Section
        Their files: ``scores.nc``, and under ``maps/`` for every numeric score ``NAME.nii.gz`` and
        ``NAME_hemi-L.func.gii``, ``NAME_hemi-R.func.gii``, NaN outside.

    Raises
    ------
    ConfigError
        If ``maps`` names a score that is not there.

    Examples
    --------
    >>> found = accuracy_sections(xr.Dataset({"r": ("voxel", [0.2, 0.4])}))
    >>> [section.id for section in found], found[0].tiles[1]
    (['accuracy'], ('0.30', 'median r'))
    """
    scores = check_scores(scores)
    names = _map_names(scores, maps)
    makers = [lambda: _accuracy(scores, roi_table, rates or {}), *([lambda: _maps(scores, names)] if names else [])]
    makers.append(lambda: response_section(scores))
    if decoding is not None:
        makers.append(lambda: decoding_section(decoding))
    made = [*make_sections(makers, progress)]
    made += [leakage_section(leakage)] if leakage else []
    made += [learning_section(**learning)] if learning else []
    made += sections
    if controls is not None and len(controls):
        lead = (
            "The same analysis where it should find nothing or less. A method that still succeeds here is not "
            "measuring the voxel."
        )
        terms = ["family accuracy"] if "family_accuracy" in controls else []
        made.append(Section("controls", "Controls", lead, [Block(table=controls)], terms=terms))
    return made


def _accuracy(scores: xr.Dataset, roi_table: pd.DataFrame | None, rates: dict[str, float]) -> Section:
    regions, bounded = roi_summary(scores), ceiling_r(scores) is not None
    n, missing = scores.sizes["voxel"], int((~np.isfinite(np.asarray(scores["r"].values, float))).sum())
    several = ", by region, with its number of voxels in brackets" if len(regions) > 1 else ""
    drawn = [f"Left: one dot per voxel{several}."]
    if len(regions) > MAX_ROIS:
        drawn.append(f"The {MAX_ROIS} largest of {len(regions)} regions are drawn.")
    if (regions["n_voxels"] > MAX_DOTS).any():
        drawn.append(
            f"Of a region of more than {MAX_DOTS} voxels, {MAX_DOTS} are drawn, evenly spaced; medians use all."
        )
    drawn.append(
        "The diamond is the median noise ceiling: the correlation that a perfect model would reach on responses this "
        "noisy. Right: each voxel against its own ceiling."
        if bounded
        else "No noise ceiling was given, so accuracy cannot be told from data quality. Right: the distribution over "
        "all voxels."
    )
    if missing:
        drawn.append(f"{missing} of {n} voxels have no score and are left out.")
    alt = "; ".join(f"{row.roi}: median r {number(row.median_r)}" for row in regions.itertuples())

    def export(folder: Path) -> None:
        write_scores(folder, scores)
        write_maps(folder, scores, numeric_scores(scores))

    alt = f"Accuracy against noise ceiling. {alt}"
    blocks = [Block(plot_accuracy(scores), alt, " ".join(drawn), facts=_measure(scores))]
    blocks.append(Block(table=roi_table if roi_table is not None else regions.dropna(axis="columns", how="all")))
    title = "Accuracy against the noise ceiling" if bounded else "Accuracy"
    terms = ["r", *(["noise ceiling"] if bounded else []), *(["q"] if "q_value" in scores else [])]
    more: dict[str, Any] = {"tiles": _tiles(scores, rates), "terms": terms, "files": ["scores.nc", *map_files(scores)]}
    return Section("accuracy", title, "", blocks, nav="Accuracy", export=export, **more)


def _tiles(scores: xr.Dataset, rates: dict[str, float]) -> list[tuple[str, str]]:
    r = np.asarray(scores["r"].values, float)
    tiles = [(f"{len(r):,}", "voxels"), (number(median(r), digits=2), "median r")]
    ceiling, ratio = ceiling_r(scores), normalised_r(scores)
    if ceiling is not None:
        tiles.append((number(median(ceiling), digits=2), "median noise ceiling"))
    if ratio is not None:
        tiles.append((number(median(ratio), digits=2), "median r / ceiling"))
    for name, label in (("q_value", "voxels with q < 0.05"), ("p_value", "voxels with p < 0.05")):
        if name in scores:
            tiles.append((f"{100 * float(np.mean(np.asarray(scores[name].values, float) < 0.05)):.0f} %", label))
            break
    for key, value in rates.items():
        if str(key).endswith("accuracy") and isinstance(value, (float, np.floating)) and len(tiles) < 8:
            tiles.append((number(value, str(key)), str(key).replace("_", " ")))
    return tiles


def _measure(scores: xr.Dataset) -> list[tuple[str, str]]:
    """What each score is, in the words of its own attributes."""
    lines = []
    for name in ("r", "noise_ceiling_r", "noise_ceiling_r2"):
        attrs = scores[name].attrs if name in scores else {}
        keys = [key for key in ("metric", "ceiling", "split", "n_stimuli") if key in attrs]
        if keys:
            said = "; ".join(f"{key.replace('_', ' ')}: {number(attrs[key])}" for key in keys)
            lines.append((name.replace("_", " "), said))
    return lines


def _spread(values: np.ndarray, low: float, high: float, reach: float = 0.34) -> np.ndarray:
    """Vertical offsets that keep dots of similar value apart: each bin is filled from the middle outwards."""
    bins = np.clip(((values - low) / max(high - low, 1e-9) * 60).astype(int), 0, 59)
    offsets = np.zeros(len(values))
    rng = np.random.default_rng(0)
    largest = max(np.bincount(bins).max(), 1)
    step = min(0.1, reach / max(largest / 2, 1))
    for b in np.unique(bins):
        members = np.flatnonzero(bins == b)
        # In random order: sorted by value, the bins of a dense strip would line up as arrows.
        order = rng.permutation(members)
        place = np.arange(len(order))
        offsets[order] = step * np.where(place % 2, (place + 1) // 2, -(place // 2))
    return offsets


def _thin(values: np.ndarray, limit: int) -> np.ndarray:
    """At most ``limit`` order statistics, evenly spaced, extremes kept."""
    values = np.sort(values)
    return values if len(values) <= limit else values[np.linspace(0, len(values) - 1, limit).round().astype(int)]


def _strips(axes: Any, scores: xr.Dataset) -> None:
    r, ceiling = np.asarray(scores["r"].values, float), ceiling_r(scores)
    groups = memberships(scores)
    if len(groups) > MAX_ROIS:
        kept = set(sorted(groups, key=lambda name: -int(groups[name].sum()))[:MAX_ROIS])
        groups = {name: mask for name, mask in groups.items() if name in kept}
    finite = r[np.isfinite(r)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    for row, mask in enumerate(groups.values()):
        values = r[mask & np.isfinite(r)]
        # The legend explains the marks of the first row.
        labels = ("one voxel", "median r", "median noise ceiling") if row == 0 else (None,) * 3
        axes.axhline(row, color=FAINT, lw=0.6, zorder=0)
        if values.size:
            dots, middle = _thin(values, MAX_DOTS), [np.median(values)] * 2
            places = row + _spread(dots, low, high)
            axes.plot(dots, places, "o", ms=3.2, mew=0, color=BLUE, alpha=0.55, label=labels[0])
            line = {"lw": 2, "solid_capstyle": "butt", "zorder": 4, "label": labels[1]}
            axes.plot(middle, [row - 0.36, row + 0.36], color=INK, **line)
        top = median(ceiling, mask)
        if np.isfinite(top):
            axes.plot(top, row, "D", ms=6, mfc="white", mec=ORANGE, mew=1.6, zorder=5, label=labels[2])
    axes.set_yticks(range(len(groups)), [f"{short(name, 28)}  ({int(mask.sum())})" for name, mask in groups.items()])
    axes.set_ylim(len(groups) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color="#9aa4ad", lw=0.8, zorder=0)
    axes.set_xlabel("prediction accuracy, Pearson r")
    look = {"frameon": False, "fontsize": 8.5, "handletextpad": 0.4, "columnspacing": 1.4, "borderaxespad": 0.2}
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, **look)


def _against_ceiling(axes: Any, r: np.ndarray, ceiling: np.ndarray) -> None:
    both = np.isfinite(r) & np.isfinite(ceiling)
    x, y = ceiling[both], r[both]
    low = min(0.0, float(y.min()) - 0.03) if y.size else 0.0
    high = max(1.0, float(x.max()) + 0.03 if x.size else 1.0)
    axes.plot([0, high], [0, high], color=ORANGE, lw=1.2, dashes=(4, 2.5), zorder=3)
    along = {"rotation": 45, "rotation_mode": "anchor", "transform_rotates_text": True, "color": ORANGE}
    write(axes, high * 0.04, high * 0.06, "r = ceiling", "left bottom", 8.5, **along)
    if x.size > 2500:
        axes.hexbin(x, y, gridsize=45, extent=(0, high, low, high), mincnt=1, cmap="Blues", bins="log", linewidths=0.1)
    else:
        axes.plot(x, y, "o", ms=3.2, mew=0, color=BLUE, alpha=0.5)
    axes.axhline(0, color="#9aa4ad", lw=0.8, zorder=0)
    axes.set(xlim=(0, high), ylim=(low, high), aspect="equal", anchor="NW")
    axes.set_xlabel("noise ceiling, correlation")
    axes.set_ylabel("prediction accuracy, Pearson r")
    axes.tick_params(axis="y", labelcolor=MUTED)


def _histogram(axes: Any, r: np.ndarray) -> None:
    values = r[np.isfinite(r)]
    axes.hist(values, bins=min(40, max(8, int(np.sqrt(max(values.size, 1)) * 2))), color=BLUE, alpha=0.8, lw=0)
    if values.size:
        middle = np.median(values)
        axes.axvline(middle, color=INK, lw=2)
        above = axes.get_xaxis_transform()
        write(axes, middle, 1.01, f"median {middle:z.2f}", "center bottom", 8.5, transform=above)
    axes.set_xlabel("prediction accuracy, Pearson r")
    axes.set_ylabel("voxels")
    axes.tick_params(axis="y", labelcolor=MUTED)


def plot_accuracy(scores: xr.Dataset) -> Any:
    """Accuracy per ROI beside its noise ceiling, and voxel by voxel against the ceiling.

    Left, a strip per ROI: voxels (dots), their median, and the ROI's median ceiling. Right, each voxel's
    ``r`` over its ceiling with the line where both are equal; a histogram of ``r`` if there is no ceiling.

    Parameters
    ----------
    scores : xarray.Dataset over ``voxel``
        ``r``; optionally ``noise_ceiling_r`` or ``noise_ceiling_r2``; coordinate ``roi``. The 24 ROIs with most voxels
        are drawn, and of an ROI 300 evenly spaced order statistics; medians use all.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> import xarray as xr
    >>> figure = plot_accuracy(xr.Dataset({"r": ("voxel", [0.2, 0.4])}, coords={"roi": ("voxel", ["V1", "V2"])}))
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['V1  (1)', 'V2  (1)']
    """
    scores = check_scores(scores)
    r, ceiling = np.asarray(scores["r"].values, float), ceiling_r(scores)
    rows = min(len(memberships(scores)), MAX_ROIS)
    height = max(3.9, 0.36 * rows + 1.1)
    with drawing(WIDTH, height) as figure:
        square = min(height, 4.4) - 0.95
        left, bottom, top = 1.25, 0.55, 0.4
        gap = 0.95
        strip = WIDTH - left - gap - square - 0.15
        axes = figure.add_axes((left / WIDTH, bottom / height, strip / WIDTH, (height - bottom - top) / height))
        _strips(axes, scores)
        # Level with the strips' top: in a tall figure the reader meets both panels at once.
        low = (height - top - square) / height
        place = ((left + strip + gap) / WIDTH, low, square / WIDTH, square / height)
        other = figure.add_axes(place)
        if ceiling is not None and np.isfinite(ceiling).any():
            _against_ceiling(other, r, ceiling)
        else:
            _histogram(other, r)
    return figure


def _map_names(scores: xr.Dataset, maps: Sequence[str] | None) -> list[str]:
    """Scores to draw, as asked for; by default r, r_normalised and, up to 14, the ROIs."""
    legal = numeric_scores(scores) + (["roi"] if "roi" in scores.coords else [])
    if maps is not None:
        return [one_of("map", name, legal) for name in maps]
    chosen: list[str] = [name for name in ("r", "r_normalised", "peak_latency") if name in legal]
    if "roi" in legal and 1 < len([g for g in memberships(scores) if g != NO_ROI]) <= 14:
        chosen.append("roi")
    return chosen


def _values(scores: xr.Dataset, name: str) -> np.ndarray:
    if name == "roi":
        return np.array([str(x).split(";")[0] for x in scores["roi"].values])
    values = np.asarray(scores[name].values, float)
    if name in ("p_value", "q_value"):
        return -np.log10(np.clip(values, 1e-6, 1))
    return np.log10(np.where(values > 0, values, np.nan)) if name == "alpha" else values


def _maps(scores: xr.Dataset, names: Sequence[str]) -> Section | None:
    """A map of each score; None where voxels have no place and nothing is to be said of it."""
    canvas = Canvas(scores)
    blocks: list[Block] = []
    for name in names if canvas.kind != "strip" else ():
        known: dict[str, Any] = SCORES.get(name, {})
        heading = known.get("map", known.get("heading", name.replace("_", " ")))
        low, high = known.get("low"), known.get("high")
        values = _values(scores, name)
        finite = values[np.isfinite(values)] if name != "roi" else values
        if name != "roi" and (not finite.size or (low is not None and finite.max() <= low)):
            low = high = None
        figures = canvas.draw(values, label=heading, cmap=known.get("cmap"), limits=(low, high), both=not blocks)
        said = "" if name == "roi" else f"{finite.size} voxels, median {median(values):z.2f}."
        nothing = Block(heading=heading, caption="No voxel has a value.")
        blocks.append(Block(figures, f"{heading}. {said}", heading=heading) if figures else nothing)
    if not blocks and not canvas.remarks:
        return None
    return Section("maps", "Brain maps", canvas.how if blocks else "", blocks, remarks=canvas.remarks, style="maps")
