"""A comparison of encoders (cells): accuracy, gains of readouts, winners, and any two cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.schema import check_names, check_same_voxels, check_scores
from neuroenc.encoders.comparison import closest_rival
from neuroenc.report._charts import draw_gains, draw_matrix
from neuroenc.report._page import Block, Section, make_sections
from neuroenc.report._regions import by_kind, group_medians, groups_of
from neuroenc.report._style import colours_of, legend, number
from neuroenc.report.brain._canvas import Canvas
from neuroenc.report.sections import _cells as shared
from neuroenc.report.sections._decoding import decoding_section
from neuroenc.report.sections._depth import widths_section
from neuroenc.report.sections._fields import SHOWN, fields_section
from neuroenc.report.sections._leakage import leakage_section
from neuroenc.report.sections._learning import learning_section

MAX_PANELS = 6
#: The readout against which gains are shown.
_BASELINE = "linear"
_TABLE = ("cell", "kind", "group", "features", "core", "readout", "n_voxels", "median_r", "low", "high", "n_parameters")
_CURVES = ("cell", "fold", "group", "candidate", "epoch", "loss", "validation_r")


def comparison_sections(
    scores: xr.Dataset,
    *,
    table: pd.DataFrame,
    pairs: pd.DataFrame | None = None,
    winner: xr.Dataset | None = None,
    regions: xr.Dataset | None = None,
    layers: xr.Dataset | None = None,
    layer_table: pd.DataFrame | None = None,
    layer_dims: xr.Dataset | None = None,
    cheapest: xr.Dataset | None = None,
    unique: xr.Dataset | None = None,
    unique_table: pd.DataFrame | None = None,
    joint_weights: xr.DataArray | None = None,
    stacked: xr.Dataset | None = None,
    stacked_table: pd.DataFrame | None = None,
    transfer: xr.Dataset | None = None,
    identification: pd.DataFrame | None = None,
    similarity: pd.DataFrame | None = None,
    fields: xr.Dataset | None = None,
    planted_fields: xr.Dataset | None = None,
    warp: xr.Dataset | None = None,
    gates: xr.DataArray | None = None,
    conflict: xr.DataArray | None = None,
    curves: pd.DataFrame | None = None,
    learning: pd.DataFrame | None = None,
    leakage: Mapping[str, Any] | None = None,
    numbers: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[Section]:
    """Sections that compare encoders (cells) over groups of voxels; what is not given is left out.

    Parameters
    ----------
    scores : xarray.Dataset (cell, voxel)
        ``r``; coordinates ``cell`` (names, ``features/readout`` or ``features/core/readout``) and, on voxel, any
        of ``roi`` (names joined by ";"), ``subject`` or other names of groups, ``vertex`` and ``hemi``, ``i, j, k``
        (with attributes ``affine`` and ``volume_shape``). Maps are drawn on fsaverage5 or slices where voxels have
        their own place there, else as one bar for each unit.
    table : pandas.DataFrame
        As `neuroenc.encoders.comparison.Comparison.table` gives it, a row for each cell and group: ``cell, kind, group,
        features, core, readout, n_voxels, median_r, low, high, n_parameters``, and any of ``median_r_normalised,
        n_candidates, best_epoch, n_train, n_validation, n_test``.
    pairs : pandas.DataFrame, optional
        ``a, b, kind, group, median_difference, low, high, q``: any two cells in each group.
    winner : xarray.Dataset (voxel), optional
        ``winner``: name of a cell, "tie", or "" where nothing is known.
    regions : xarray.Dataset (readout, space, voxel), optional
        ``region``: "vision", "dense", "single", "not separable" or ""; ``r`` and ``agreement`` where known.
    layers : xarray.Dataset (layers, voxel), optional
        ``r`` (layers, voxel) and ``position`` (voxel) from 0 to 1; the attribute ``readout`` names their readout.
    layer_table : pandas.DataFrame, optional
        Best layer of every group, shown with ``layers``.
    layer_dims, cheapest : xarray.Dataset, optional
        Score by layer and number of dimensions, and what is chosen of it (`neuroenc.encoders.cheapest`).
    unique : xarray.Dataset (part, voxel), optional
        ``share`` of variance that each feature space alone predicts, and ``total`` (voxel); with ``unique_table``, the
        medians of every group (`neuroenc.encoders.comparison.Comparison.unique_variance`).
    unique_table : pandas.DataFrame, optional
        ``kind, group, part, median_share, low, high, share_voxels``.
    joint_weights : xarray.DataArray (cell, space, voxel), optional
        Weights of feature spaces in joint models.
    stacked : xarray.Dataset (layers, voxel), optional
        ``first`` and ``last`` (voxel), layers between which a voxel lies, and ``alone`` (layers, voxel); with
        ``stacked_table``, of every group (`neuroenc.encoders.comparison.Comparison.structured_partition`).
    stacked_table : pandas.DataFrame, optional
    transfer : xarray.Dataset (fit, test, group), optional
        As `neuroenc.encoders.transfer_matrix` gives it.
    identification : pandas.DataFrame, optional
        Accuracies of `neuroenc.encoders.comparison.identify_cells`.
    similarity : pandas.DataFrame, optional
        ``kind, group, model, of, similarity, low, high``: RDMs of predictions and features beside those of responses.
    fields : xarray.Dataset (voxel), optional
        ``polar_angle, eccentricity, size`` (`neuroenc.encoders.comparison.Comparison.retinotopy`).
    planted_fields : xarray.Dataset (voxel), optional
        The same, as it was planted.
    warp : xarray.Dataset (cell, voxel), optional
        Spread over stimuli of what moves receptive fields; each variable is shown.
    gates : xarray.DataArray (cell, space, voxel), optional
        Weights that a trunk conditioned on subject and region gives the feature spaces.
    conflict : xarray.DataArray (cell, task, other), optional
        Cosines between the gradients that subjects (or their regions) ask of the core they share.
    learning : pandas.DataFrame, optional
        ``method, size, median_r, low, high``; see `learning_section`.
    leakage : mapping, optional
        How far test stimuli are from training stimuli, with accuracy of one cell; see `leakage_section`.
    curves : pandas.DataFrame, optional
        ``cell, fold, group, candidate, epoch, loss, validation_r``.
    numbers : mapping, optional
        Of the run, for the first line: ``n_stimuli``, ``best_cell`` (on validation rows), ``q_level``.
    progress : bool

    Raises
    ------
    DataError
        If a part lacks what is needed, or speaks of other cells or voxels than ``scores``.

    Examples
    --------
    >>> cells = {"cell": ["conv/linear", "conv/semantic"]}
    >>> scores = xr.Dataset({"r": (("cell", "voxel"), [[0.2, 0.4], [0.3, 0.3]])}, coords=cells)
    >>> row = {"kind": "all", "group": "all", "n_voxels": 2, "median_r": 0.3, "low": 0.2, "high": 0.4}
    >>> table = pd.DataFrame({**cells, **row, "features": "conv", "core": "", "n_parameters": [8, 30]})
    >>> made = comparison_sections(scores, table=table.assign(readout=["linear", "semantic"]))
    >>> [section.id for section in made]
    ['accuracy', 'costs']
    """
    scores = check_scores(scores, ("cell", "voxel"))
    names = [str(c) for c in scores["cell"].values]
    scores = scores.assign_coords(cell=names)
    table = check_names(table, _TABLE, "table", names, ["cell"]).astype({"cell": str})
    # Tables without rows may lack columns too: one cell has no pairs, ridge has no curves.
    pairs = pairs if pairs is None or len(pairs) else None
    curves = curves if curves is None or len(curves) else None
    if pairs is not None:
        needed = ("a", "b", "kind", "group", "median_difference", "low", "high", "q")
        pairs = check_names(pairs, needed, "pairs", names, ["a", "b"])
    if curves is not None:
        curves = check_names(curves, _CURVES, "curves", names, ["cell"])
    maps = {"winner": (winner, ["winner"]), "regions": (regions, ["region"]), "warp": (warp, [])}
    maps["gates"] = None if gates is None else gates.to_dataset(name="gate"), ["gate"]
    maps["joint_weights"] = None if joint_weights is None else joint_weights.to_dataset(name="weight"), ["weight"]
    maps["stacked"] = stacked, ["first", "last", "alone"]
    maps |= {"unique": (unique, ["share"]), "fields": (fields, list(SHOWN))}
    for what, (found, wanted) in (maps | {"layers": (layers, ["r", "position"])}).items():
        if found is not None:
            check_same_voxels(found, scores, wanted, what)
    groups = groups_of(scores)
    parts = table.drop_duplicates("cell").set_index("cell")[["features", "core", "readout"]].reindex(names).fillna("")
    cells = shared.Cells(scores, names, parts, groups, Canvas(scores, groups))
    # In the order of a reader's questions: how good, is it the readout, where, is it sure, what else, at what price.
    makers: list[Callable[[], Section | None]] = [
        lambda: _accuracy(cells, table, _tiles(cells, table, pairs, numbers or {}, winner)),
        lambda: _gains(cells, pairs) if pairs is not None else None,
        lambda: _winners(cells, winner) if winner is not None else None,
        lambda: _pairs(cells, pairs) if pairs is not None else None,
        lambda: shared.regions_section(cells, regions) if regions is not None else None,
        lambda: shared.layers_section(cells, layers, layer_table) if layers is not None else None,
        lambda: widths_section(layer_dims, cheapest) if layer_dims is not None and cheapest is not None else None,
        lambda: shared.unique_section(cells, unique, unique_table) if unique is not None else None,
        lambda: (
            shared.joint_section(cells, joint_weights, stacked, stacked_table) if joint_weights is not None else None
        ),
        lambda: shared.transfer_section(transfer) if transfer is not None else None,
        lambda: decoding_section(identification) if identification is not None and len(identification) else None,
        lambda: shared.similarity_section(cells, similarity) if similarity is not None else None,
        lambda: fields_section(cells, fields, planted_fields) if fields is not None else None,
        lambda: shared.warp_section(cells, warp) if warp is not None else None,
        lambda: shared.gates_section(cells, gates) if gates is not None else None,
        lambda: shared.conflict_section(conflict) if conflict is not None else None,
        lambda: leakage_section(leakage) if leakage else None,
        lambda: learning_section(learning) if learning is not None else None,
        lambda: shared.curves_section(cells, curves) if curves is not None else None,
        lambda: shared.costs_section(cells, table),
    ]
    return make_sections(makers, progress)


def _tiles(
    cells: shared.Cells, medians: pd.DataFrame, pairs: Any, numbers: Mapping[str, Any], winner: xr.Dataset | None
) -> list[tuple[str, str]]:
    """The numbers that a reader wants first, taken from the tables below them."""
    tiles = [(f"{len(cells.names):,}", "cells (encoders) compared"), (f"{cells.r.shape[1]:,}", "voxels")]
    if "n_stimuli" in numbers:
        tiles.append((number(numbers["n_stimuli"], "n_stimuli"), "stimuli"))
    best = str(numbers.get("best_cell", ""))
    if best:
        tiles.append((best, "best cell on validation stimuli"))
    if best in cells.names:
        row = medians[(medians["kind"] == "all") & (medians["cell"] == best)].iloc[0]
        tiles.append((number(row["median_r"], digits=2), "its median test r"))
        if np.isfinite(row.get("median_r_normalised", np.nan)):
            tiles.append((number(row["median_r_normalised"], digits=2), "its share of the ceiling"))
        if pairs is not None:
            found = closest_rival(best, pairs, float(numbers.get("q_level", 0.05)))
            way, sign = ("behind", -1.0) if found["difference"] < 0 else ("ahead of", 1.0)
            bounds = sorted(sign * found[k] for k in ("low", "high"))
            said = " to ".join(number(x, digits=3) for x in bounds)
            label = f"it is {way} {found['rival']} by ({said}); {found['verdict']}"
            tiles.append((number(sign * found["difference"], digits=3), label))
    if winner is not None:
        labels = winner["winner"].values.astype(str)
        known = labels[labels != ""]
        if known.size:
            label = "voxels without a separable winner: the data cannot tell their best cells apart"
            tiles.append((shared.percent(float(np.mean(known == "tie"))), label))
    return tiles


def _accuracy(cells: shared.Cells, medians: pd.DataFrame, tiles: Sequence[tuple[str, str]]) -> Section:
    """Cells by groups."""
    groups, said = cells.drawn
    values = group_medians(cells.r, groups)
    rings = shared.rings_of(values) if len(cells.names) > 1 else None
    figure = shared.draw_groups(values, cells.names, groups, rings=rings)
    numbers = shared.present(medians, "n_voxels median_r low high median_r_normalised n_train n_validation n_test")
    best = sorted(zip(cells.names, values[:, 0].tolist()), key=lambda x: -np.nan_to_num(x[1], nan=-9))
    alt = f"Median r of {len(cells.names)} cells in {len(groups)} groups. Over all voxels, best first: "
    alt += "; ".join(f"{name}: {number(value, digits=2)}" for name, value in best[:6])
    drawn = "Median over voxels of the correlation between predicted and measured responses to test stimuli. "
    if len(cells.names) > 1:
        drawn += "A frame marks the highest of each column. It need not be separable from the next; see below. "
    drawn += said
    if missing := int((~np.isfinite(cells.r).any(axis=0)).sum()):
        drawn += f" {missing} of {cells.scores.sizes['voxel']} voxels have no score and are left out."
    overall, inside = medians[medians["kind"] == "all"], medians[medians["kind"] != "all"]
    blocks = [Block(figure, alt, drawn, overall[["cell", *numbers]], about="all voxels")]
    if len(inside):
        every = inside[["cell", "kind", "group", *numbers]]
        blocks.append(Block(table=every, about="every group", opened=False))
    lead = "A cell is one encoder: a feature space read by one readout. "
    if len(cells.names) > 1:
        lead += "Every cell was fitted and tested on the same stimuli."
    lead += " Low and high bound the 95 % interval over resampled stimuli."
    terms = ["cell", "readout", "r", *(["noise ceiling"] if "median_r_normalised" in medians else [])]
    return Section("accuracy", "Accuracy", lead.strip(), blocks, tiles=tiles, terms=terms)


def _gains(cells: shared.Cells, pairs: pd.DataFrame) -> Section | None:
    """Every readout against the baseline readout on the same features, in each region."""
    parts, rows = cells.parts, []
    for row in pairs.to_dict("records"):
        a, b = parts.loc[str(row["a"])], parts.loc[str(row["b"])]
        if (a["features"], a["core"]) != (b["features"], b["core"]) or a["readout"] == b["readout"]:
            continue
        if _BASELINE not in (a["readout"], b["readout"]):
            continue
        sign = 1.0 if b["readout"] == _BASELINE else -1.0
        space = "/".join(x for x in (a["features"], a["core"]) if x)
        readout = a["readout"] if sign > 0 else b["readout"]
        low, high = sorted((sign * row["low"], sign * row["high"]))
        difference = sign * row["median_difference"]
        rows.append((space, readout, row["kind"], str(row["group"]), difference, low, high, row["q"]))
    if not rows:
        return None
    columns = ["features", "readout", "kind", "group", "median_difference", "low", "high", "q"]
    found = pd.DataFrame(rows, columns=columns)
    kinds = [k for k in dict.fromkeys(g.kind for g in cells.groups) if k != "all"]
    kept, said = by_kind([g for g in cells.groups if g.kind in ("all", *kinds[:1])], shared.MAX_GROUPS)
    drawn = found[[key in {(g.kind, g.name) for g in kept} for key in zip(found["kind"], found["group"])]]
    spaces = list(dict.fromkeys(found["features"]))
    if len(spaces) > MAX_PANELS:
        medians = dict(zip(cells.names, group_medians(cells.r, cells.groups[:1])[:, 0]))
        top = {
            s: max(v for c, v in medians.items() if c.startswith(f"{s}/") or parts.loc[c, "features"] == s)
            for s in spaces
        }
        spaces = sorted(sorted(spaces, key=lambda s: -top[s])[:MAX_PANELS], key=spaces.index)
        said += f" The {MAX_PANELS} best of {found['features'].nunique()} feature spaces are drawn."
    readouts = list(dict.fromkeys(found["readout"]))
    colours = {k: v for k, v in cells.readout_colours.items() if k in readouts}
    panels = {s: drawn[drawn["features"] == s] for s in spaces}
    overall = found[found["kind"] == "all"]
    words = "; ".join(
        f"{x['readout']} on {x['features']}: {number(x['median_difference'], digits=3)} "
        f"({number(x['low'])} to {number(x['high'])})"
        for x in overall.to_dict("records")[:8]
    )
    figure = draw_gains(panels, [g.name for g in kept], colours)
    lead = (
        f"The same features, read in another way: difference of r to the readout {_BASELINE} (ridge on the flattened "
        "map, unless the settings say otherwise), as median over voxels."
    )
    alt = f"Difference of r to {_BASELINE} over all voxels. {words}"
    lines = "Lines are 95 % intervals over resampled stimuli, paired. A filled dot differs from zero at q < 0.05. "
    shown: dict[str, Any] = {"legend": legend(colours), "about": "gain in every group", "opened": False}
    block = Block(figure, alt, lines + said, found, **shown)
    title = f"Gain of each readout over {_BASELINE}"
    return Section("gains", title, lead, [block], nav="Gains", terms=["readout", "q"])


def _winners(cells: shared.Cells, winner: xr.Dataset) -> Section:
    """The best cell of every voxel."""
    labels = winner["winner"].values.astype(str)
    n = int((labels != "").sum())
    counts = {c: int((labels == c).sum()) for c in (*cells.names, "tie")}
    won = sorted((c for c in cells.names if counts[c]), key=lambda c: -counts[c])
    colours = colours_of(won)
    shown = dict(list(colours.items())[:12]) if len(won) > 12 else {k: v for k, v in colours.items() if k != "tie"}
    key = legend(shown, {c: shared.percent(counts[c] / max(n, 1)) for c in shown})
    if len(won) > 12:
        rest = shared.percent(sum(counts[c] for c in won[12:]) / n)
        key += legend({"other cells": colours[won[12]]}, {"other cells": rest})
    if counts["tie"]:
        name = "no separable winner"
        key += legend({name: colours["tie"]}, {name: shared.percent(counts["tie"] / n)})
    words = "; ".join(f"{k['name']} {k['said']}" for k in key)
    columns = {**{c: f"{c} share" for c in won}, "tie": "no separable winner share"}
    _, bars, table = cells.shares(labels, {c: colours[c] for c in columns}, columns)
    lead = (
        "A voxel has a winner where one cell beats each of the others over resampled stimuli, after correction for the "
        "number of voxels. Elsewhere the data cannot tell, and the map says so."
    )
    best, remarks = shared.best_of(cells.r), list(cells.canvas.remarks)
    if len(key) < 2:
        # A map of one colour and bars of one length say nothing: how far apart the best two are says more.
        only = f"{key[0]['name']} {key[0]['said']}" if key else "no voxel has a score"
        remarks.append(f"One class only ({only}): instead of a map of winners, the lead of the best cell is drawn.")
        ranked = np.sort(np.where(np.isfinite(cells.r), cells.r, np.nan), axis=0)[::-1]
        lead_of = ranked[0] - ranked[1] if len(cells.names) > 1 else best * np.nan
        name = "lead of the best cell over the next, r"
        figures = cells.canvas.draw(lead_of, label=name, heights=lead_of, height_label=name, both=True)
        known = lead_of[np.isfinite(lead_of)]
        alt = f"Lead of the best cell over the next; median {number(float(np.median(known)))}." if known.size else ""
        drawn = f"What the cell of highest r is ahead of the next, without a test. {cells.canvas.how}"
        blocks = [Block(figures, alt, drawn), Block(table=table, about="share of voxels")]
    else:
        figures = cells.canvas.draw(labels, label="", heights=best, colours=colours, both=True)
        alt = f"Share of voxels won in each group. Overall: {words}"
        drawn = "Percent of the voxels of each group, their number in brackets. " + cells.drawn[1]
        blocks = [
            Block(figures, f"Best cell of every voxel. {words}", cells.canvas.how, legend=key),
            Block(bars, alt, drawn, table, about="share of voxels"),
        ]
    title = "Which cell predicts which voxel best"
    return Section("winner", title, lead, blocks, nav="Winners", remarks=remarks, terms=["separable winner"])


def _pairs(cells: shared.Cells, pairs: pd.DataFrame) -> Section:
    """Any two cells."""
    overall = pairs[pairs["kind"] == "all"]
    place = {c: k for k, c in enumerate(cells.names)}
    values, unsure = np.full((len(place),) * 2, np.nan), np.zeros((len(place),) * 2, bool)
    for row in overall.to_dict("records"):
        i, j = place[str(row["a"])], place[str(row["b"])]
        values[i, j], values[j, i] = row["median_difference"], -row["median_difference"]
        unsure[i, j] = unsure[j, i] = not row["q"] < 0.05
    known = np.abs(values[np.isfinite(values)])
    top = float(known.max()) if known.size and known.max() > 0 else 1.0
    figure = draw_matrix(values, cells.names, cells.names, label="Δ r", cmap="RdBu_r", limits=(-top, top), dots=unsure)
    n_sure = int((overall["q"] < 0.05).sum())
    frame = overall[shared.present(overall, "a b n_voxels median_difference low high p q share_a share_b")]
    frame = frame.rename(columns={"share_a": "a better share", "share_b": "b better share"})
    for column in ("a better share", "b better share"):
        if column in frame:
            frame[column] = list(map(shared.percent, frame[column].to_numpy(float)))
    told = f"{n_sure} of {len(overall)} pairs differ"
    alt = f"Differences between {len(cells.names)} cells; {told} at q < 0.05."
    drawn = "Row less column, median over voxels. A dot stands where the difference is not told from zero (q ≥ 0.05)."
    lead = (
        f"{told} over all voxels at q < 0.05 (paired bootstrap over stimuli, false discovery rate over pairs). A "
        "better share and b better share: voxels where one of the two is better after correction over the voxels of "
        "the pair."
    )
    blocks = [Block(figure, alt, drawn, frame, about="every pair, all voxels")]
    return Section("pairs", "Any two cells", lead, blocks, nav="Pairs", terms=["q"])
