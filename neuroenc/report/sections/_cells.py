"""Cells of a comparison: what its sections share, and the sections on spaces, layers, fields and training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc.encoders.comparison import Group
from neuroenc.report._charts import draw_costs, draw_curves, draw_matrix, draw_shares
from neuroenc.report._page import Block, Section
from neuroenc.report._regions import by_kind, group_medians, mean, shares_of
from neuroenc.report._style import BLUE, ORANGE, TIE, colours_of, legend, number
from neuroenc.report.brain._canvas import Canvas
from neuroenc.report.sections._depth import plot_depth_curves

MAX_GROUPS = 22
_CURVES = 8


@dataclass(frozen=True, eq=False)
class Cells:
    """What all sections of one comparison share."""

    scores: xr.Dataset
    names: list[str]
    parts: pd.DataFrame
    groups: list[Group]
    canvas: Canvas

    @property
    def r(self) -> np.ndarray:
        """Scores (cell, voxel)."""
        return np.asarray(self.scores["r"].values, float)

    @property
    def drawn(self) -> tuple[list[Group], str]:
        """Groups that figures show, and what was left out."""
        return by_kind(self.groups, MAX_GROUPS)

    def shares(self, labels: np.ndarray, colours: Mapping[str, Any], names: Mapping[str, str]) -> tuple[Any, ...]:
        """Shares (class, group) among the labelled voxels, their stacked bars, and their table under ``names``."""
        groups = self.drawn[0]
        values = shares_of(labels, list(colours), groups)
        held = [int((labels[g.voxels] != "").sum()) for g in groups]
        columns = {names.get(c, c): list(map(percent, row)) for c, row in zip(colours, values)}
        return values, draw_shares(values, groups, held, colours), group_table(groups, n_voxels=held, **columns)

    @property
    def readout_colours(self) -> dict[str, Any]:
        """One colour a readout, the same in every figure."""
        return colours_of(self.parts["readout"])

    def colours(self) -> dict[str, Any]:
        """Colour of every cell: its readout's, so that panels of one readout look alike."""
        return {str(c): self.readout_colours[r] for c, r in self.parts["readout"].items()}


def best_of(r: np.ndarray) -> np.ndarray:
    """Highest value (row, voxel) of every voxel; NaN where no row has one."""
    known = np.isfinite(r)
    return np.where(known.any(axis=0), np.where(known, r, -np.inf).max(axis=0), np.nan)


def rings_of(values: np.ndarray) -> np.ndarray:
    """The highest of each column, bool (row, column)."""
    rings = np.zeros(values.shape, bool)
    for column in np.flatnonzero(np.isfinite(values).any(axis=0)):
        rings[np.nanargmax(values[:, column]), column] = True
    return rings


def draw_groups(values: np.ndarray, rows: Sequence[str], groups: Sequence[Group], **options: Any) -> Any:
    """Matrix of numbers (row, group)."""
    options = {"label": "median r", "kinds": [g.kind for g in groups], **options}
    return draw_matrix(values, rows, [g.name for g in groups], **options)


def group_table(groups: Sequence[Group], **columns: Any) -> pd.DataFrame:
    """A row for each group, by kind and name."""
    return pd.DataFrame({"kind": [g.kind for g in groups], "group": [g.name for g in groups], **columns})


def present(frame: pd.DataFrame, names: str) -> list[str]:
    """Those of the columns that a table has."""
    return [name for name in names.split() if name in frame]


def percent(share: float) -> str:
    """A share in percent, a dash where it is not known."""
    return "–" if np.isnan(share) else f"{100 * share:.0f} %"


CLASSES = {"vision": BLUE, "dense": "#3b8f5a", "single": ORANGE, "not separable": TIE}
_CLASS_WORDS = {"vision": "vision", "dense": "dense captions", "single": "single captions"}


def regions_section(cells: Cells, regions: xr.Dataset) -> Section:
    """Vision, dense captions or single captions, through one readout at a time."""
    ways = [str(x) for x in regions["readout"].values]
    said, blocks, rows = cells.drawn[1], [], []
    for k, way in enumerate(ways):
        own = regions.isel(readout=k)
        labels = own["region"].values.astype(str)
        shares, bars, table = cells.shares(labels, CLASSES, _CLASS_WORDS)
        key = legend(CLASSES, dict(zip(CLASSES, map(percent, shares[:, 0]))))
        for item in key:
            item["name"] = _CLASS_WORDS.get(item["name"], item["name"])
        words = ", ".join(f"{item['name']} {item['said']}" for item in key)
        through, heights = f"Through {way}", best_of(np.asarray(own["r"].values, float))
        figures = cells.canvas.draw(labels, label="", heights=heights, colours=CLASSES)
        blocks.append(Block(figures, f"{through}: {words}.", cells.canvas.how, heading=through, legend=key))
        alt = f"{through}, share of voxels in each group: {words}."
        blocks.append(Block(bars, alt, "Percent of the voxels of each group. " + said))
        table.insert(0, "readout", way)
        rows.append(table)
    every = pd.concat(rows, ignore_index=True)
    blocks.append(Block(table=every, about="share of voxels, every readout and group"))
    names = "; ".join(f"{words}: {regions.attrs[s]}" for s, words in _CLASS_WORDS.items())
    remarks = []
    if len(ways) > 1:
        share = float(np.mean(regions["agreement"].values.astype(bool)))
        remarks.append(
            f"The {len(ways)} readouts put {100 * share:.0f} % of voxels in the same class. Where they do "
            "not, the class says as much about the readout as about the voxel."
        )
    lead = (
        "The space that predicts a voxel better than both others through one and the same readout (paired bootstrap "
        f"over stimuli, corrected over voxels). {names}."
    )
    title = "Vision, dense captions or single captions"
    return Section("regions", title, lead, blocks, nav="Three regions", remarks=remarks)


def layers_section(cells: Cells, found: xr.Dataset, table: pd.DataFrame | None) -> Section:
    """Best layer of every group and voxel."""
    groups, said = cells.drawn
    names = [str(x) for x in found["layers"].values]
    values = group_medians(np.asarray(found["r"].transpose("layers", "voxel").values, float), groups)
    position = np.asarray(found["position"].values, float)
    means = [mean(position[g.voxels]) for g in groups]
    words = "; ".join(f"{g.name} {number(m, digits=2)}" for g, m in zip(groups[:10], means))
    best = best_of(np.asarray(found["r"].values, float))
    figure = draw_groups(values, names, groups, rings=rings_of(values))
    alt = f"Median r of {len(names)} layers in {len(groups)} groups."
    drawn = f"Layers from early (top) to late; a frame marks the best of each group. {said}"
    heading = f"Through {found.attrs['readout']}" if "readout" in found.attrs else ""
    depth = "jump_point" in found
    shown = table if table is None or not depth else table[[c for c in table if not str(c).endswith("_share")]]
    blocks = [Block(figure, alt, drawn, shown, heading=heading, about="best layer of every group")]
    if depth:
        blocks.append(_depth_block(found, groups))
    figures = cells.canvas.draw(position, label="position of the best layer", heights=best, limits=(0.0, 1.0))
    if figures:
        strip = " Dark is early, yellow is late." if cells.canvas.kind == "strip" else ""
        drawn = f"Position of the best layer of each voxel: 0 = {names[0]}, 1 = {names[-1]}.{strip} "
        blocks.append(Block(figures, f"Position of the best layer; means: {words}.", drawn + cells.canvas.how))
    lead = "Position is that of the best layer in the order given, from 0 (first) to 1 (last)."
    return Section("layers", "Which layer", lead, blocks, nav="Layers")


def _depth_block(found: xr.Dataset, groups: Sequence[Group]) -> Block:
    """Curves of the median score over layers, with jump and convergence points."""
    keys = list(zip(found["kind"].values.astype(str).tolist(), found["group"].values.astype(str).tolist()))
    at = [keys.index((g.kind, g.name)) for g in groups if (g.kind, g.name) in keys][:_CURVES]
    own = found[["score", "score_low", "score_high", *(v for v in found if found[v].dims == ("group",))]].isel(group=at)
    said = "; ".join(f"{name}: {text}" for name, text in zip(own["group"].values, own["statement"].values.astype(str)))
    drawn = (
        "Median score of each layer with its 95 % interval over resampled stimuli. A triangle marks the jump point "
        "(the first layer of 1.1 times the score of the one before), a square the convergence point (the first behind "
        "which scores change by less than 3 %), each with the interval of its depth. A grey curve is nearly flat: the "
        "range of its scores is none that equal layers would not give."
    )
    if len(keys) > len(at):
        drawn += f" {len(at)} of {len(keys)} groups are drawn; the table has all."
    return Block(plot_depth_curves(own), f"Score by layer. {said}.", drawn, heading="Score by depth")


def unique_section(cells: Cells, found: xr.Dataset, table: pd.DataFrame | None) -> Section:
    """What each feature space predicts that the others do not, in every group and voxel."""
    groups, said = cells.drawn
    names = [str(x) for x in found["part"].values]
    share = np.asarray(found["share"].transpose("part", "voxel").values, float)
    values = group_medians(share, groups)
    top = max(float(np.nanmax(np.abs(values), initial=0.0)), 1e-6)
    figure = draw_groups(values, names, groups, label="R²", cmap="RdBu_r", limits=(-top, top))
    words = "; ".join(f"{name} {number(float(row[0]), digits=3)}" for name, row in zip(names, values))
    drawn = f"Median over voxels of the share of variance. {said}"
    if table is not None:
        numbers = {k: table[k].astype(float).round(4) for k in ("median_share", "low", "high")}
        above = [percent(x) for x in table["share_voxels"].astype(float)]
        table = table.assign(**numbers, share_voxels=above)
        table = table.rename(columns={"median_share": "median part of R2", "share_voxels": "voxels above zero"})
    blocks = [Block(figure, f"Unique shares over all voxels: {words}.", drawn, table, about="every group and part")]
    single = [k for k, name in enumerate(names) if " & " not in name]
    known = np.isfinite(share[single]).all(axis=0)
    first = np.array([names[single[k]] for k in np.where(known, share[single], -np.inf).argmax(axis=0)])
    sure = np.asarray(found["q"].transpose("part", "voxel").values, float)[single] < found.attrs.get("q_level", 0.05)
    any_sure = (sure & (share[single] > 0)).any(axis=0)
    labels = np.where(~known, "", np.where(any_sure, first, "none"))
    colours = {**colours_of([n for n in names if " & " not in n]), "none": TIE}
    figures = cells.canvas.draw(labels, label="", heights=best_of(share[single]), colours=colours)
    if figures:
        counts = {c: percent(float(np.mean(labels[labels != ""] == c))) for c in colours if (labels == c).any()}
        key = legend({c: colours[c] for c in counts}, counts)
        drawn = "The space of largest unique share, where one is above zero after correction over voxels. "
        said_of = "; ".join(f"{c} {n}" for c, n in counts.items())
        blocks.append(
            Block(figures, f"Space of largest unique share: {said_of}.", drawn + cells.canvas.how, legend=key)
        )
    lead = (
        "R2 of a joint model of all spaces less R2 without one of them: what that space alone predicts. Joint models "
        "are banded ridge on the first principal components of each space. "
    )
    if len(single) < len(names):
        lead += "A row of several names is what exactly these spaces share. "
    lead += "Nothing is clipped: below zero, the space costs more than it brings."
    return Section("unique", "What only one space predicts", lead, blocks, nav="Unique variance")


def joint_section(cells: Cells, weights: xr.DataArray, found: xr.Dataset | None, table: pd.DataFrame | None) -> Section:
    """Weights of feature spaces in joint models, and between which layers of an ordered stack voxels lie."""
    groups, said = cells.drawn
    names = [str(x) for x in weights["space"].values]
    blocks = []
    for cell in weights["cell"].values.astype(str):
        own = np.asarray(weights.sel(cell=cell).transpose("space", "voxel").values, float)
        read = np.isfinite(own).any(axis=1)
        means = np.array([[mean(row[g.voxels]) for g in groups] for row in own[read]])
        shown = [name for name, r in zip(names, read) if r]
        figure = draw_groups(means, shown, groups, label="weight", limits=(0.0, 1.0))
        words = "; ".join(f"{name} {number(float(row[0]), digits=2)}" for name, row in zip(shown, means))
        columns: dict[str, Any] = {name: row.round(3).tolist() for name, row in zip(shown, means)}
        held = group_table(groups, n_voxels=[len(g.voxels) for g in groups], **columns)
        alt = f"Mean weights in {cell} over all voxels: {words}."
        blocks.append(Block(figure, alt, f"Mean over voxels. {said}", held, heading=cell, about=f"weights in {cell}"))
    if found is not None:
        order = [str(x) for x in found["layers"].values]
        at = {name: k / max(len(order) - 1, 1) for k, name in enumerate(order)} | {"": np.nan}
        ends = {end: np.array([at[str(x)] for x in found[end].values]) for end in ("first", "last")}
        share = percent(float(found.attrs.get("share", 0.95)))
        best = best_of(cells.r)
        for end, values in ends.items():
            label = f"{end} layer needed"
            figures = cells.canvas.draw(values, label=label, heights=best, limits=(0.0, 1.0))
            told = (
                f"The last layers can be left out down to this one: the stack up to it keeps {share} of R². "
                if end == "last"
                else f"The first layers can be left out up to this one: the stack from it on keeps {share} of R². "
            )
            told += f"0 = {order[0]}, 1 = {order[-1]}; voxels that are not predicted are left out. "
            alt = f"{end.capitalize()} layer needed, mean position {number(mean(values), digits=2)}."
            shown_table = table if end == "last" else None
            about = "first and last layer needed in every group"
            blocks.append(Block(figures, alt, told + cells.canvas.how, shown_table, about=about))
    lead = (
        "The stack mixes ridge predictions of single spaces, for every voxel, by weights that are not negative and sum "
        "to one. Banded ridge fits all spaces at once; its weight is the share of a space in the prior. A weight says "
        "what a model leans on, not what only this space predicts."
    )
    return Section("joint", "Several spaces at once", lead, blocks, nav="Joint models")


def transfer_section(found: xr.Dataset) -> Section:
    """Scores of encoders fitted on each data set and tested on each."""
    names = [str(x) for x in found["fit"].values]
    every = found.isel(group=0)
    values = np.asarray(every["median"].transpose("fit", "test").values, float)
    loss = np.asarray(every["loss_low"].transpose("fit", "test").values, float) > 0
    metric = str(found.attrs.get("metric", "r"))
    figure = draw_matrix(values, names, names, label=f"median {metric}", rings=loss)
    words = "; ".join(
        f"{a} to {b} {number(values[i, j], digits=2)}" for i, a in enumerate(names) for j, b in enumerate(names)
    )
    columns = [
        "fit",
        "test",
        "kind",
        "group",
        "median",
        "low",
        "high",
        "loss_median",
        "loss_low",
        "loss_high",
        "loss_p",
    ]
    table = found.drop_dims("voxel").to_dataframe().reset_index()[columns]
    numbers = {k: table[k].astype(float).round(4) for k in columns[4:]}
    across = {"voxel": "the same voxels", "vertex": "shared vertices", "roi": "means of shared regions"}
    unit = across.get(str(found.attrs.get("across", "")), "what corresponds")
    lead = (
        f"Encoders fitted on one data set (rows) and tested on another (columns), over {unit}; no encoder has met a "
        "stimulus that it is tested on, so the diagonal is cross-validation. A frame marks a loss against the diagonal "
        "of its column whose 95 % interval over stimuli lies above zero."
    )
    drawn = f"Median {metric} over {unit}."
    block = Block(figure, f"Transfer: {words}.", drawn, table.assign(**numbers), about="every group")
    return Section("transfer", "Transfer between data sets", lead, [block], nav="Transfer")


def similarity_section(cells: Cells, table: pd.DataFrame) -> Section | None:
    """Representational similarity of predictions and of features as they are, in every group."""
    known = set(zip(table["kind"], table["group"]))
    groups, said = by_kind([g for g in cells.groups if (g.kind, g.name) in known], MAX_GROUPS)
    if not groups:
        return None
    models = list(dict.fromkeys(zip(table["of"], table["model"])))
    values = np.full((len(models), len(groups)), np.nan)
    for row in table.to_dict("records"):
        for column, group in enumerate(groups):
            if (row["kind"], row["group"]) == (group.kind, group.name):
                values[models.index((row["of"], row["model"])), column] = row["similarity"]
    names = [f"{name} (features)" if of == "features" else str(name) for of, name in models]
    figure = draw_groups(values, names, groups, label="RDM r", rings=rings_of(values))
    words = "; ".join(f"{name} {number(float(row[0]), digits=2)}" for name, row in zip(names, values))
    alt = f"Similarity of RDMs in the first group ({groups[0].name}): {words}."
    drawn = f"Spearman correlation of RDMs. A frame marks the highest of each column, without a test. {said}"
    lead = (
        "Dissimilarities (1 - correlation) of all pairs of test stimuli, in the responses of a group and in what "
        "predicts them: held-out predictions, whose features are weighted by the fit, and features as they are."
    )
    block = Block(figure, alt, drawn, table, about="every group and model, with intervals over stimuli")
    return Section("similarity", "Representational similarity", lead, [block], nav="RSA")


def _panels(
    cells: Cells, panels: Iterable[tuple[str, str, str, Sequence[str], np.ndarray]], columns: tuple[str, str]
) -> list[Block]:
    """For each (title, what it is, unit, rows, numbers (row, voxel)) the medians of groups, and a table of all."""
    groups, said = cells.drawn
    blocks, tables = [], []
    for title, what, unit, rows, numbers in panels:
        kept = [k for k, row in enumerate(numbers) if np.isfinite(row).any()]
        if not kept:
            continue
        medians, names = group_medians(numbers[kept], groups), [rows[k] for k in kept]
        figure = draw_groups(medians, names, groups, label=unit or "median", cmap="cividis")
        words = "; ".join(f"{name} {number(float(m[0]), digits=2)}" for name, m in zip(names, medians))
        drawn = f"Median over voxels{f', {unit}' if unit else ''}. {said}"
        alt = f"{what}, median over all voxels: {words}."
        blocks.append(Block(figure, alt, drawn, heading=title))
        for name, line in zip(names, medians):
            tables.append(group_table(groups, median=line))
            tables[-1].insert(0, columns[0], title)
            tables[-1].insert(1, columns[1], name)
    if blocks:
        about = f"every {columns[0]}, {columns[1]} and group"
        blocks.append(Block(table=pd.concat(tables, ignore_index=True), about=about))
    return blocks


def warp_section(cells: Cells, warp: xr.Dataset) -> Section | None:
    """How far content moves, turns and scales receptive fields."""
    names = [str(c) for c in warp["cell"].values]
    panels = []
    for key, values in warp.data_vars.items():
        title = str(values.attrs.get("long_name", str(key).removeprefix("warp_").replace("_", " ")))
        title = title[:1].upper() + title[1:]
        numbers = np.asarray(values.transpose("cell", "voxel").values, float)
        panels.append((title, title, str(values.attrs.get("units", "")), names, numbers))
    blocks = _panels(cells, panels, ("measure", "cell"))
    lead = (
        "Spread over stimuli of the transform that the readout applies to each voxel's field. Half the field of view "
        "is 1. Zero is a field that stays where it is; a readout that is free to move fields can also move them for "
        "nothing, so read this beside its gain."
    )
    title = "What content does to receptive fields"
    return Section("warp", title, lead, blocks, nav="Receptive fields") if blocks else None


def gates_section(cells: Cells, gates: xr.DataArray) -> Section | None:
    """What a trunk that is conditioned on subject and region gives every feature space."""
    spaces = [str(name) for name in gates["space"].values]
    numbers = np.asarray(gates.transpose("cell", "space", "voxel").values, float)
    names = [str(c) for c in gates["cell"].values]
    panels = [(name, f"Gates of {name}", "gate", spaces, own) for name, own in zip(names, numbers)]
    blocks = _panels(cells, panels, ("cell", "space"))
    lead = (
        "Weight from 0 to 1 that each subject's region gives a feature space before the trunk that all share. Only "
        "differences between groups in one row can be read: weights behind a gate scale with it."
    )
    title = "What each region takes from each feature space"
    return Section("gates", title, lead, blocks, nav="Gates") if blocks else None


def conflict_section(conflict: xr.DataArray) -> Section:
    """Whether subjects and regions pull the core that they share the same way."""
    blocks, rows = [], []
    for cell in conflict["cell"].values.tolist():
        one = conflict.sel(cell=cell).dropna("task", how="all").dropna("other", how="all")
        names = [str(name) for name in one["task"].values]
        values = np.asarray(one.transpose("task", "other").values, float)
        figure = draw_matrix(values, names, names, label="cosine", cmap="RdBu_r", limits=(-1.0, 1.0))
        at = np.tril_indices(len(names), -1)
        low = int((values[at] < 0).sum())
        alt = f"Cosines of gradients, {cell}: {low} of {len(at[0])} pairs of tasks below 0."
        blocks.append(Block(figure, alt, f"{low} of {len(at[0])} pairs are below 0.", heading=str(cell)))
        rows += [(cell, names[i], names[j], values[i, j]) for i, j in zip(*at)]
    table = pd.DataFrame(rows, columns=["cell", "task", "other", "cosine"])
    blocks.append(Block(table=table, about="every pair of tasks", opened=False))
    lead = (
        "Cosine between the gradients of the shared core that two tasks (subjects, or regions of them) ask for, over "
        "training stimuli at the final weights. Below 0, what helps one hurts the other."
    )
    return Section("conflict", "Do tasks agree on the core they share?", lead, blocks, nav="Conflict")


def curves_section(cells: Cells, curves: pd.DataFrame) -> Section | None:
    """Validation r by epoch."""
    fits: dict[str, list[pd.DataFrame]] = {}
    rows = []
    for cell in cells.names:
        own = curves[curves["cell"].astype(str) == cell]
        own = own[np.isfinite(own["validation_r"].to_numpy(float))]
        if not len(own):
            continue
        chosen = []
        for _, part in own.groupby(["fold", "group"], sort=True):
            # The settings that were chosen: those with the highest validation r at their best epoch.
            peak = part.groupby("candidate", sort=True)["validation_r"].max()
            chosen.append(part[part["candidate"] == peak.idxmax()].sort_values("epoch", kind="stable"))
        fits[cell] = chosen
        at = [part.loc[part["validation_r"].idxmax()] for part in chosen]
        row = {
            "cell": cell,
            "fits": len(chosen),
            "median epochs": round(float(np.median([p["epoch"].max() for p in chosen]))),
            "best epoch": round(float(np.median([x["epoch"] for x in at]))),
            "best validation r": float(np.median([x["validation_r"] for x in at])),
            "loss at best": float(np.median([x["loss"] for x in at])),
        }
        rows.append(row)
    if not fits:
        return None
    words = "; ".join(f"{x['cell']}: {number(x['best validation r'])}" for x in rows[:8])
    drawn = (
        "One line for each fold, with the settings that were chosen; the dot is the epoch that was kept. "
        "Colours are the readouts. Ridge has no curve."
    )
    readouts = set(cells.parts.loc[list(fits), "readout"]) - {"tie"}
    key = legend({k: v for k, v in cells.readout_colours.items() if k in readouts})
    figure, alt = draw_curves(fits, cells.colours()), f"Validation r by epoch. Best of each cell: {words}"
    block = Block(figure, alt, drawn, pd.DataFrame(rows), about="medians over fits", legend=key)
    return Section("curves", "Learning curves", "", [block])


def costs_section(cells: Cells, medians: pd.DataFrame) -> Section:
    """Accuracy beside the number of parameters."""
    known = present(medians, "n_parameters n_candidates best_epoch")
    overall = medians[medians["kind"] == "all"].set_index("cell").reindex(cells.names).reset_index()
    colours = cells.colours()
    figure = draw_costs(overall, [colours[c] for c in cells.names])
    key = legend({k: v for k, v in cells.readout_colours.items() if k != "tie"})
    words = "; ".join(
        f"{x['cell']}: " + ", ".join(f"{number(x[c], c)} {c.removeprefix('n_').replace('_', ' ')}" for c in known[:2])
        for x in overall.to_dict("records")[:6]
    )
    lead = "A gain may be capacity: read it beside the number of trained parameters."
    said, alt = "Parameters are on a logarithmic axis.", f"Accuracy and parameters. {words}"
    block = Block(figure, alt, said, overall[["cell", "median_r", *known]], legend=key, about="cost of every cell")
    return Section("costs", "What each cell costs", lead, [block], nav="Costs")
