"""The page of a comparison of encoders, which stands alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.files import write_text
from neuroenc._core.optional import require
from neuroenc._core.progress import progress as progress_bar
from neuroenc._version import __version__
from neuroenc.encoders.comparison._statistics import closest_rival
from neuroenc.report import _comparison_sections as sections
from neuroenc.report._comparison_inputs import cell_parts, check_cells, check_columns, check_voxels, find_groups
from neuroenc.report._comparison_maps import Canvas
from neuroenc.report._comparison_sections import Page, medians_of
from neuroenc.report._comparison_spaces import layers_section, regions_section, warp_section
from neuroenc.report._comparison_training import costs_section, curves_section
from neuroenc.report._html import flatten, number, render
from neuroenc.report._report import _origin

__all__ = ["write_comparison_report"]

Layers = xr.Dataset | tuple[xr.Dataset, pd.DataFrame]


def write_comparison_report(
    folder: str | os.PathLike[str],
    *,
    title: str,
    scores: xr.Dataset,
    table: pd.DataFrame | None = None,
    pairs: pd.DataFrame | None = None,
    winner: xr.Dataset | None = None,
    regions: xr.Dataset | None = None,
    layers: Layers | Mapping[str, Layers] | None = None,
    warp: xr.Dataset | None = None,
    curves: pd.DataFrame | None = None,
    summary: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    provenance: str | None = None,
    baseline: str = "linear",
    files: Sequence[str] = (),
    progress: bool = True,
) -> Path:
    """Write ``index.html``, which compares encoders (cells) over groups of voxels, into ``folder``.

    The page needs no network and no other file, and every figure stands beside its numbers. What is not given is
    left out. All text that comes from data is escaped; equal inputs give equal bytes.

    Parameters
    ----------
    folder : path
        Made if it is absent.
    title : str
    scores : xarray.Dataset (cell, voxel)
        ``r``; coordinates ``cell`` (names, ``features/readout`` or ``features/core/readout``) and, on voxel, any
        of ``roi`` (names joined by ";"), ``subject`` or other names of groups, ``vertex`` and ``hemi``, ``i, j, k``
        (with attributes ``affine`` and ``volume_shape``). Maps are drawn on fsaverage5 or slices where voxels have
        their own place there, else as one bar for each unit.
    table : pandas.DataFrame, optional
        One row for each cell and group: ``cell, kind, group, median_r``, and any of ``low, high``,
        ``median_r_normalised, n_voxels, features, core, readout, n_parameters, seconds, seconds_per_fit,
        n_candidates, best_epoch, n_train, n_validation, n_test``. By default medians of ``scores``.
    pairs : pandas.DataFrame, optional
        ``a, b, kind, group, median_difference, low, high, q``: any two cells in each group.
    winner : xarray.Dataset (voxel), optional
        ``winner``: name of a cell, "tie", or "" where nothing is known.
    regions : xarray.Dataset (readout, space, voxel), optional
        ``region``: "vision", "dense", "single", "not separable" or ""; ``r`` and ``agreement`` where known.
    layers : Dataset, (Dataset, DataFrame), or mapping of readout to either, optional
        ``r`` (layers, voxel) and ``position`` (voxel) from 0 to 1, and the table of groups.
    warp : xarray.Dataset (cell, voxel), optional
        Spread over stimuli of what moves receptive fields; each variable is shown.
    curves : pandas.DataFrame, optional
        ``cell, epoch, validation_r`` and any of ``fold, group, candidate, loss``.
    summary, settings : mapping, optional
        Numbers of the run, and what it was run with (may be nested).
    notes : sequence of str
        Caveats.
    provenance : str, optional
        JSON string; by default the versions in use.
    baseline : str
        Readout against which gains are shown.
    files : sequence of str
        Names of files that lie beside the page, for its last line.
    progress : bool

    Returns
    -------
    pathlib.Path
        The page.

    Raises
    ------
    DataError
        If a part lacks what is needed, or speaks of other cells or voxels than ``scores``.

    Examples
    --------
    >>> import tempfile
    >>> scores = xr.Dataset(
    ...     {"r": (("cell", "voxel"), [[0.2, 0.4], [0.3, 0.3]])}, coords={"cell": ["conv/linear", "conv/semantic"]}
    ... )
    >>> page = write_comparison_report(tempfile.mkdtemp(), title="Two readouts", scores=scores, progress=False)
    >>> page.name, "<h1>Two readouts</h1>" in page.read_text(encoding="utf-8")
    ('index.html', True)
    """
    require("matplotlib", "brain")
    scores = check_cells(scores)
    cells = [str(c) for c in scores["cell"].values]
    if table is not None:
        table = check_columns(table, ("cell", "kind", "group", "median_r"), "table", cells, ["cell"])
    # Tables without rows may lack columns too: one cell has no pairs, ridge has no curves.
    pairs = pairs if pairs is None or len(pairs) else None
    curves = curves if curves is None or len(curves) else None
    if pairs is not None:
        needed = ("a", "b", "kind", "group", "median_difference", "low", "high", "q")
        pairs = check_columns(pairs, needed, "pairs", cells, ["a", "b"])
    if curves is not None:
        curves = check_columns(curves, ("cell", "epoch", "validation_r"), "curves", cells, ["cell"])
    if winner is not None:
        check_voxels(winner, scores, ["winner"], "winner")
    if regions is not None:
        check_voxels(regions, scores, ["region"], "regions")
    if warp is not None:
        check_voxels(warp, scores, [], "warp")
    ways = _layers(layers, scores)

    groups = find_groups(scores)
    page = Page(scores, cells, cell_parts(cells, table), groups, Canvas(scores, groups))
    medians = medians_of(page, table)
    summary = dict(summary or {})
    # In the order of a reader's questions: how good, is it the readout, where, is it sure, what else, at what price.
    makers = [
        lambda: sections.accuracy(page, medians),
        lambda: sections.gains(page, pairs, baseline) if pairs is not None else None,
        lambda: sections.winners(page, winner) if winner is not None else None,
        lambda: sections.pairs_section(page, pairs) if pairs is not None else None,
        lambda: regions_section(page, regions) if regions is not None else None,
        lambda: layers_section(page, ways) if ways else None,
        lambda: warp_section(page, warp) if warp is not None else None,
        lambda: curves_section(page, curves) if curves is not None else None,
        lambda: costs_section(page, medians),
    ]
    made = []
    with progress_bar(desc="report", total=len(makers) + 1, show=progress) as bar:
        for make in makers:
            made.append(make())
            bar.update(1)
        context = {
            "title": title,
            "version": __version__,
            "tiles": _tiles(page, medians, pairs, summary, winner),
            "sections": [section for section in made if section],
            "notes": [str(note) for note in notes],
            "summary": [(str(k), number(v, str(k))) for k, v in summary.items()],
            "settings": flatten(dict(settings or {})),
            "origin": _origin(provenance),
            "files": [str(name) for name in files],
        }
        text = render(context, "comparison.html.j2", ("report.css", "comparison.css"))
        written = write_text(Path(folder) / "index.html", text)
        bar.update(1)
    return written


def _layers(layers: Any, scores: xr.Dataset) -> dict[str, tuple[xr.Dataset, pd.DataFrame | None]]:
    if layers is None:
        return {}
    given = layers if isinstance(layers, Mapping) and not isinstance(layers, xr.Dataset) else {"": layers}
    found = {}
    for way, item in given.items():
        data, frame = item if isinstance(item, tuple) else (item, None)
        found[str(way)] = (check_voxels(data, scores, ["r", "position"], "layers"), frame)
    return found


def _tiles(
    page: Page, medians: pd.DataFrame, pairs: pd.DataFrame | None, summary: Mapping[str, Any], winner: xr.Dataset | None
) -> list[dict[str, Any]]:
    """The numbers that a reader wants first, taken from the tables below them."""
    tiles: list[dict[str, Any]] = [
        {"value": f"{len(page.cells):,}", "label": "cells compared"},
        {"value": f"{page.scores.sizes['voxel']:,}", "label": "voxels"},
    ]
    if "n_stimuli" in summary:
        tiles.append({"value": number(summary["n_stimuli"], "n_stimuli"), "label": "stimuli"})
    best = str(summary.get("best_cell", ""))
    if best:
        tiles.append({"value": best, "label": "best on validation rows", "words": True})
    if best in page.cells:
        row = medians[(medians["kind"] == "all") & (medians["cell"] == best)].iloc[0]
        tiles.append({"value": number(row["median_r"], digits=2), "label": "its median test r"})
        if np.isfinite(row.get("median_r_normalised", np.nan)):
            tiles.append({"value": number(row["median_r_normalised"], digits=2), "label": "its share of the ceiling"})
        if pairs is not None and (pairs["kind"] == "all").any():
            found = closest_rival(best, pairs, float(summary.get("q_level", 0.05)))
            way, sign = ("behind", -1.0) if found["difference"] < 0 else ("ahead of", 1.0)
            bounds = sorted(sign * found[k] for k in ("low", "high"))
            said = " to ".join(number(x, digits=3) for x in bounds)
            label = f"it is {way} {found['rival']} by ({said}); {found['verdict']}"
            tiles.append({"value": number(sign * found["difference"], digits=3), "label": label})
    if winner is not None:
        labels = winner["winner"].values.astype(str)
        known = labels != ""
        if known.any():
            share = float(np.mean(labels[known] == "tie"))
            tiles.append({"value": f"{100 * share:.0f} %", "label": "voxels without a separable winner"})
    return [{"words": False, **tile} for tile in tiles]
