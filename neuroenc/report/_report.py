"""The report: one page that stands alone, and the files beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.files import write_text
from neuroenc._core.progress import progress as progress_bar
from neuroenc._core.provenance import provenance as make_provenance
from neuroenc._version import __version__
from neuroenc.report._cards import caption_rows, failed_control, roi_cards
from neuroenc.report._exports import numeric_scores, places, write_captions, write_maps, write_scores
from neuroenc.report._figures import MAX_DOTS, MAX_ROIS, plot_accuracy
from neuroenc.report._html import Thumbnails, data_uri, flatten, joined, number, render, table
from neuroenc.report._maps import draw_maps, map_names
from neuroenc.report._style import figure_svg
from neuroenc.report._tables import (
    ceiling_r,
    check_captions,
    check_scores,
    has_caption,
    median,
    normalised_r,
    roi_summary,
)

if TYPE_CHECKING:
    from neuroenc.data import Stimuli

__all__ = ["write_report"]


def _tiles(scores: xr.Dataset, captions: pd.DataFrame | None, summary: Mapping[str, Any]) -> list[dict[str, str]]:
    r = np.asarray(scores["r"].values, float)
    n = len(r)
    tiles = [{"value": f"{n:,}", "label": "voxels"}, {"value": number(median(r), digits=2), "label": "median r"}]
    ceiling, ratio = ceiling_r(scores), normalised_r(scores)
    if ceiling is not None:
        tiles.append({"value": number(median(ceiling), digits=2), "label": "median noise ceiling"})
    if ratio is not None:
        tiles.append({"value": number(median(ratio), digits=2), "label": "median r / ceiling"})
    for name, label in (("q_value", "voxels with q < 0.05"), ("p_value", "voxels with p < 0.05")):
        if name in scores:
            share = float(np.mean(np.asarray(scores[name].values, float) < 0.05))
            tiles.append({"value": f"{100 * share:.0f} %", "label": label})
            break
    if captions is not None:
        n_captioned = captions.loc[has_caption(captions), "voxel"].nunique()
        failed = ", which fails its control" if failed_control(captions) else ""
        tiles.append({"value": f"{n_captioned:,}", "label": f"voxels with a caption{failed}"})
    for key, value in summary.items():
        if str(key).endswith("accuracy") and isinstance(value, (float, np.floating)) and len(tiles) < 8:
            tiles.append({"value": number(value, str(key)), "label": str(key).replace("_", " ")})
    return tiles


def _measure(scores: xr.Dataset) -> list[dict[str, str]]:
    """What each score is, in the words of its own attributes."""
    lines = []
    for name in ("r", "noise_ceiling_r", "noise_ceiling_r2"):
        attrs = scores[name].attrs if name in scores else {}
        keys = [key for key in ("metric", "ceiling", "split", "n_stimuli") if key in attrs]
        if keys:
            said = "; ".join(f"{key.replace('_', ' ')}: {number(attrs[key])}" for key in keys)
            lines.append({"name": name.replace("_", " "), "said": said})
    return lines


def _drawn(regions: pd.DataFrame) -> str:
    """What the accuracy figure leaves out, for its caption."""
    said = []
    if len(regions) > MAX_ROIS:
        said.append(f"The {MAX_ROIS} largest of {len(regions)} regions are drawn.")
    if (regions["n_voxels"] > MAX_DOTS).any():
        said.append(
            f"Where a region has more than {MAX_DOTS} voxels, {MAX_DOTS} evenly spaced ones are drawn; medians use all."
        )
    return " ".join(said)


def _origin(provenance: str | None) -> dict[str, Any]:
    """Versions apart from the rest of the provenance."""
    text = provenance or make_provenance()
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        return {"versions": [("neuroenc", __version__)], "rest": text}
    versions = record.pop("versions", {"neuroenc": __version__})
    shown = flatten(versions) if isinstance(versions, dict) else [("versions", str(versions))]
    rest = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) if record and provenance else ""
    return {"versions": shown, "rest": rest}


def write_report(
    out: str | os.PathLike[str],
    *,
    title: str,
    scores: xr.Dataset,
    captions: pd.DataFrame | None = None,
    evidence: pd.DataFrame | None = None,
    stimuli: Stimuli | None = None,
    roi_table: pd.DataFrame | None = None,
    controls: pd.DataFrame | None = None,
    sections: Sequence[Mapping[str, Any]] = (),
    summary: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    provenance: str | None = None,
    subject: str = "",
    maps: Sequence[str] | None = None,
    progress: bool = True,
) -> Path:
    """Write ``index.html`` and the files beside it into the folder ``out``.

    The page needs no network and no other file. All text that comes from data is escaped, and the page's
    own policy forbids any script but its own. Equal inputs give equal bytes; every file is written
    atomically.

    Parameters
    ----------
    out : path
        Folder; made if it is absent. It receives ``index.html``, ``scores.nc``, ``captions.csv`` and
        ``captions.json`` (with captions), and under ``maps/`` for every numeric score ``NAME.nii.gz``
        (voxels with ``i, j, k``; attributes ``affine`` and ``volume_shape``) and
        ``NAME_hemi-L.func.gii``, ``NAME_hemi-R.func.gii`` (voxels with ``vertex, hemi``), NaN outside.
    title : str
    scores : xarray.Dataset over ``voxel``
        ``r`` (Pearson correlation) and optionally ``noise_ceiling_r`` (correlation), ``noise_ceiling_r2``
        (share of variance), ``r_normalised``, ``p_value``, ``q_value`` and others; coordinates ``roi``
        (names joined by ";"), ``vertex`` and ``hemi``, ``i, j, k``.
    captions : pandas.DataFrame, optional
        One row per voxel and rank: ``voxel, rank, caption, score``; ``control`` may say which control a caption did
        not pass (it is marked wherever it is shown), ``evidence`` may hold stimulus ids joined by ";". A voxel of
        ``scores`` without a row, or with an empty caption, is counted as gated.
    evidence : pandas.DataFrame, optional
        ``voxel, rank, stimulus, predicted``: the images that a voxel's encoder prefers.
    stimuli : neuroenc.data.Stimuli, optional
        Images of the evidence, shown as thumbnails of at most 96 pixels.
    roi_table : pandas.DataFrame, optional
        Shown instead of `roi_summary`, with whatever columns it has.
    controls : pandas.DataFrame, optional
        Negative controls, such as scores with shuffled weights; shown as it is.
    sections : sequence of mapping
        More figures with their tables, as the pages of comparisons have them.
    summary, settings : mapping, optional
        Numbers of the run, and what it was run with (may be nested).
    notes : sequence of str
        Caveats, shown in the page.
    provenance : str, optional
        JSON string; by default the versions in use.
    subject : str
    maps : sequence of str, optional
        Scores to draw on the brain, or "roi"; by default r, r_normalised and, up to 14, the ROIs.
    progress : bool

    Returns
    -------
    pathlib.Path
        The page.

    Raises
    ------
    DataError
        If scores, captions or evidence lack what is needed or speak of different voxels.
    ConfigError
        If ``maps`` names a score that is not there.

    Examples
    --------
    >>> import tempfile
    >>> import xarray as xr
    >>> scores = xr.Dataset({"r": ("voxel", [0.2, 0.4, 0.5])}, coords={"voxel": [0, 1, 2]})
    >>> page = write_report(tempfile.mkdtemp(), title="Three voxels", scores=scores, progress=False)
    >>> page.name, "<h1>Three voxels</h1>" in page.read_text()
    ('index.html', True)
    """
    folder = Path(out)
    scores = check_scores(scores)
    names = map_names(scores, maps)
    if captions is not None:
        captions = check_captions(captions, scores, ("voxel", "caption"), "captions")
    if evidence is not None:
        evidence = check_captions(evidence, scores, ("voxel", "stimulus"), "evidence")
    summary, settings = dict(summary or {}), dict(settings or {})

    with progress_bar(desc="report", total=len(names) + 4, show=progress) as bar:
        figure = plot_accuracy(scores)
        accuracy = data_uri(figure_svg(figure), "image/svg+xml")
        bar.update(1)
        brain, remarks = draw_maps(scores, names, bar)

        regions, counts = roi_summary(scores), roi_summary(scores, captions)
        thumbnails = Thumbnails(stimuli)
        cards = roi_cards(scores, captions, evidence, thumbnails) if captions is not None else []
        rows = caption_rows(scores, captions) if captions is not None else []
        if thumbnails.unreadable:
            count = len(thumbnails.unreadable)
            remarks_images = f"{count} evidence images could not be read: {joined(thumbnails.unreadable)}."
        else:
            remarks_images = ""
        bar.update(1)

        volume, surface, _ = places(scores)
        n_missing = int((~np.isfinite(np.asarray(scores["r"].values, float))).sum())
        gated = None
        if captions is not None:
            gated = counts[["roi", "n_voxels", "median_r", "n_captioned", "n_without_caption"]]
        context = {
            "title": title,
            "subject": subject,
            "version": __version__,
            "tiles": _tiles(scores, captions, summary),
            "accuracy": accuracy,
            "accuracy_alt": "Accuracy against noise ceiling. "
            + "; ".join(f"{row.roi}: median r {number(row.median_r)}" for row in regions.itertuples()),
            "has_ceiling": ceiling_r(scores) is not None,
            "n_rois": len(regions),
            "drawn": _drawn(regions),
            "measure": _measure(scores),
            "n_missing": n_missing,
            "n_voxels": scores.sizes["voxel"],
            "roi_table": table(roi_table if roi_table is not None else regions.dropna(axis="columns", how="all")),
            "maps": brain,
            "map_remarks": remarks,
            "cards": cards,
            "image_remarks": remarks_images,
            "rows": rows,
            "row_rois": sorted({name for row in rows for name in row["roi"].split(", ") if name}),
            "n_captioned": int(captions.loc[has_caption(captions), "voxel"].nunique()) if captions is not None else 0,
            "has_captions": captions is not None,
            "gated": table(gated) if gated is not None else None,
            "controls": table(controls) if controls is not None and len(controls) else None,
            "sections": [dict(more) for more in sections],
            "notes": [str(note) for note in notes],
            "summary": [(str(k), number(v, str(k))) for k, v in summary.items()],
            "settings": flatten(settings),
            "origin": _origin(provenance),
            "files": (["captions.csv", "captions.json"] if captions is not None else [])
            + ["scores.nc"]
            + (["maps/*.nii.gz"] if volume else [])
            + (["maps/*.func.gii"] if surface else []),
        }
        if captions is not None:
            write_captions(folder, captions)
        write_scores(folder, scores)
        write_maps(folder, scores, numeric_scores(scores))
        bar.update(1)
        # The page comes last: where it stands, everything it names is there.
        page = write_text(folder / "index.html", render(context))
        bar.update(1)
    return page
