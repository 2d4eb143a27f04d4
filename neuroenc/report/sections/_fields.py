"""Receptive fields of a comparison's readouts on the cortex, beside planted or mapped ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc.report._page import Block, Section
from neuroenc.report._regions import median
from neuroenc.report._style import number
from neuroenc.report.sections import _cells as shared

SHOWN = {"polar_angle": "twilight", "eccentricity": "viridis", "size": "viridis"}


def fields_section(cells: shared.Cells, fields: xr.Dataset, planted: xr.Dataset | None = None) -> Section | None:
    """Maps of polar angle, eccentricity and size, and a table of groups.

    Parameters
    ----------
    fields : Dataset (voxel)
        ``polar_angle, eccentricity, size`` (`neuroenc.encoders.readout.retinotopy`); the attribute ``cell``.
    planted : Dataset (voxel), optional
        The same, as it was planted, mapped apart or told by a template, which its attribute ``kind`` names.
    """
    from neuroenc.encoders.readout import compare_retinotopy  # It loads torch.

    other = "planted" if planted is None else str(planted.attrs.get("kind", "planted"))
    best = shared.best_of(cells.r)
    blocks: list[Block] = []
    for name, cmap in SHOWN.items():
        unit = str(fields[name].attrs.get("units", ""))
        title = name.replace("_", " ")
        pair = [("", fields), *([(f"{other} ", planted)] if planted is not None else [])]
        numbers = [np.asarray(part[name].values, float) for _, part in pair]
        known = np.concatenate([x[np.isfinite(x)] for x in numbers])
        if not known.size:
            continue
        limits = (-180.0, 180.0) if name == "polar_angle" else (0.0, float(np.quantile(known, 0.98)))
        for (kind, _), values in zip(pair, numbers):
            label = f"{kind}{title}, {unit}"
            figures = cells.canvas.draw(values, label=label, heights=best, limits=limits, cmap=cmap)
            if figures:
                alt = f"{label}: median {number(median(values), digits=2)}."
                drawn = f"{label[:1].upper() + label[1:]}. {cells.canvas.how}"
                blocks.append(Block(figures, alt, drawn, heading=label[:1].upper() + label[1:]))
    rows = []
    for group in cells.groups:
        own = fields.isel(voxel=group.voxels)
        row: dict[Any, Any] = {"kind": group.kind, "group": group.name}
        row |= {f"median {k.replace('_', ' ')}": median(own[k].values) for k in ("eccentricity", "size")}
        if planted is not None:
            row |= compare_retinotopy(own, planted.isel(voxel=group.voxels)).to_dict()
        rows.append(row)
    blocks.append(Block(table=pd.DataFrame(rows), about="every group"))
    lead = (
        f"Centre and size of each voxel's receptive field, of the cell {fields.attrs.get('cell', '')}. Angles are 0 to "
        "the right and 90 up. A voxel that is not predicted has a field all the same: read maps beside accuracy."
    )
    if planted is not None:
        named = "Planted fields" if other == "planted" else f"Fields of the template {other}, from anatomy alone,"
        lead += f" {named} stand beside them; angle error is a median in degrees, r a Spearman correlation."
    return Section("fields", "Receptive fields on the cortex", lead, blocks, nav="Retinotopy")
