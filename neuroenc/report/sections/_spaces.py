"""Feature spaces and receptive fields: three kinds of voxels, layers, what content does to fields."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc.report._charts import draw_shares
from neuroenc.report._page import Block, Section
from neuroenc.report._regions import by_kind, group_medians, mean, shares_of
from neuroenc.report._style import BLUE, ORANGE, TIE, legend
from neuroenc.report._text import number
from neuroenc.report.sections._cells import MAX_GROUPS, Cells, best_of, draw_groups, group_table, percent, rings_of

CLASSES = {"vision": BLUE, "dense": "#3b8f5a", "single": ORANGE, "not separable": TIE}
_CLASS_WORDS = {"vision": "vision", "dense": "dense captions", "single": "single captions"}


def regions_section(cells: Cells, regions: xr.Dataset) -> Section:
    """Vision, dense captions or single captions, through one readout at a time."""
    ways = [str(x) for x in regions["readout"].values] if "readout" in regions.dims else [""]
    groups, said = by_kind(cells.groups, MAX_GROUPS)
    classes, blocks, rows = list(CLASSES), [], []
    for k, way in enumerate(ways):
        own = regions.isel(readout=k) if "readout" in regions.dims else regions
        labels = own["region"].values.astype(str)
        shares = shares_of(labels, classes, groups)
        held = [int((labels[g.voxels] != "").sum()) for g in groups]
        key = legend(CLASSES, {c: percent(shares[j, 0]) for j, c in enumerate(classes)})
        for item in key:
            item["name"] = _CLASS_WORDS.get(item["name"], item["name"])
        words = ", ".join(f"{item['name']} {item['said']}" for item in key)
        through = f"Through {way}" if way else "Regions"
        r = np.asarray(own["r"].values, float) if "r" in own else cells.r
        heights = best_of(r)
        figures = cells.canvas.draw(labels, label="", heights=heights, colours=CLASSES)
        blocks.append(Block(figures, f"{through}: {words}.", cells.canvas.how, heading=through, legend=key))
        bars = draw_shares(shares, classes, groups, held, CLASSES)
        alt = f"{through}, share of voxels in each group: {words}."
        blocks.append(Block(bars, alt, "Percent of the voxels of each group. " + said))
        columns = {_CLASS_WORDS.get(c, c): list(map(percent, row)) for c, row in zip(classes, shares)}
        rows.append(group_table(groups, n_voxels=held, **columns))
        rows[-1].insert(0, "readout", way)
    table = pd.concat(rows, ignore_index=True)
    blocks.append(Block(table=table, about="share of voxels, every readout and group"))
    names = "; ".join(
        f"{_CLASS_WORDS[s]}: {regions.attrs[s]}" for s in ("vision", "dense", "single") if s in regions.attrs
    )
    remarks = []
    if len(ways) > 1 and "agreement" in regions:
        share = float(np.mean(regions["agreement"].values.astype(bool)))
        remarks.append(
            f"The {len(ways)} readouts put {100 * share:.0f} % of voxels in the same class. Where they do "
            "not, the class says as much about the readout as about the voxel."
        )
    lead = (
        "The space that predicts a voxel better than both others through one and the same readout (paired bootstrap "
        f"over stimuli, corrected over voxels).{f' {names}.' if names else ''}"
    )
    title = "Vision, dense captions or single captions"
    return Section("regions", title, lead, blocks, nav="Three regions", remarks=remarks)


def layers_section(cells: Cells, layers: Mapping[str, tuple[xr.Dataset, pd.DataFrame | None]]) -> Section:
    """Best layer of every group and voxel."""
    groups, said = by_kind(cells.groups, MAX_GROUPS)
    blocks = []
    for way, (found, given) in layers.items():
        names = [str(x) for x in found["layers"].values]
        values = group_medians(np.asarray(found["r"].transpose("layers", "voxel").values, float), groups)
        position = np.asarray(found["position"].values, float)
        means = [mean(position[g.voxels]) for g in groups]
        if given is None:
            given = group_table(
                groups,
                n_voxels=[int(np.isfinite(position[g.voxels]).sum()) for g in groups],
                best_layer=[names[int(np.nanargmax(v))] if np.isfinite(v).any() else "–" for v in values.T],
                mean_position=means,
            )
        words = "; ".join(f"{g.name} {number(m, digits=2)}" for g, m in zip(groups[:10], means))
        best = best_of(np.asarray(found["r"].values, float))
        figure = draw_groups(values, names, groups, rings=rings_of(values))
        alt = f"Median r of {len(names)} layers in {len(groups)} groups."
        drawn = f"Layers from early (top) to late; a frame marks the best of each group. {said}"
        heading = f"Through {way}" if way else ""
        blocks.append(Block(figure, alt, drawn, given, heading=heading, about="best layer of every group"))
        figures = cells.canvas.draw(position, label="position of the best layer", heights=best, limits=(0.0, 1.0))
        if figures:
            strip = " Dark is early, yellow is late." if cells.canvas.kind == "strip" else ""
            drawn = f"Position of the best layer of each voxel: 0 = {names[0]}, 1 = {names[-1]}.{strip} "
            alt = f"Position of the best layer; means: {words}."
            blocks.append(Block(figures, alt, drawn + cells.canvas.how))
    lead = "Position is that of the best layer in the order given, from 0 (first) to 1 (last)."
    return Section("layers", "Which layer", lead, blocks, nav="Layers")


def warp_section(cells: Cells, warp: xr.Dataset) -> Section | None:
    """How far content moves, turns and scales receptive fields."""
    groups, said = by_kind(cells.groups, MAX_GROUPS)
    blocks, rows = [], []
    for key, values in warp.data_vars.items():
        numbers = np.asarray(values.transpose("cell", "voxel").values, float)
        names = [str(c) for c in warp["cell"].values]
        kept = [k for k, row in enumerate(numbers) if np.isfinite(row).any()]
        if not kept:
            continue
        medians = group_medians(numbers[kept], groups)
        title = str(values.attrs.get("long_name", str(key).removeprefix("warp_").replace("_", " ")))
        unit = str(values.attrs.get("units", ""))
        kept_names = [names[k] for k in kept]
        figure = draw_groups(medians, kept_names, groups, label=unit or "median", cmap="cividis")
        words = "; ".join(f"{name} {number(float(m[0]), digits=2)}" for name, m in zip(kept_names, medians))
        drawn = f"Median over voxels{f', {unit}' if unit else ''}. {said}"
        alt = f"{title}, median over all voxels: {words}."
        blocks.append(Block(figure, alt, drawn, heading=title[:1].upper() + title[1:]))
        for name, line in zip(kept_names, medians):
            rows.append(group_table(groups, median=line))
            rows[-1].insert(0, "measure", title)
            rows[-1].insert(1, "cell", name)
    if not blocks:
        return None
    blocks.append(Block(table=pd.concat(rows, ignore_index=True), about="every measure, cell and group"))
    lead = (
        "Spread over stimuli of the transform that the readout applies to each voxel's field. Half the field of view "
        "is 1. Zero is a field that stays where it is; a readout that is free to move fields can also move them for "
        "nothing, so read this beside its gain."
    )
    return Section("warp", "What content does to receptive fields", lead, blocks, nav="Receptive fields")
