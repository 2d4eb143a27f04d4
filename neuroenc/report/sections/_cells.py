"""What all sections of a comparison share: scores of its cells, their parts, groups of voxels, and colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc.encoders.comparison import Group
from neuroenc.report._charts import draw_matrix
from neuroenc.report._regions import group_medians
from neuroenc.report._style import colours_of
from neuroenc.report.brain._canvas import Canvas

MAX_GROUPS = 22


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
    def readout_colours(self) -> dict[str, Any]:
        """One colour a readout, the same in every figure."""
        return colours_of(self.parts["readout"])

    def colours(self) -> dict[str, Any]:
        """Colour of every cell: its readout's, so that panels of one readout look alike."""
        colours = self.readout_colours
        plain = colours_of(["cell"])["cell"]
        return {str(c): colours[r] if r else plain for c, r in self.parts["readout"].items()}


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


def parts_of(names: Sequence[str], table: pd.DataFrame | None) -> pd.DataFrame:
    """``features``, ``core`` and ``readout`` of every cell: from the table's columns, else from its name."""
    parts = {}
    known = table is not None and {"features", "readout"} <= set(table.columns)
    for name in names:
        row = table[table["cell"].astype(str) == name] if table is not None and known else None
        if row is not None and len(row):
            first = row.iloc[0]
            core = first.get("core", "")
            parts[name] = (str(first["features"]), "" if pd.isna(core) else str(core), str(first["readout"]))
        else:
            pieces = name.split("/")
            parts[name] = (pieces[0], "/".join(pieces[1:-1]), pieces[-1] if len(pieces) > 1 else "")
    return pd.DataFrame.from_dict(parts, orient="index", columns=["features", "core", "readout"])


def medians_of(cells: Cells, frame: pd.DataFrame | None) -> pd.DataFrame:
    """The given table, or the medians alone where there is none."""
    if frame is not None:
        return frame.assign(cell=frame["cell"].astype(str))
    values = group_medians(cells.r, cells.groups)
    held = [[int(np.isfinite(r[g.voxels]).sum()) for g in cells.groups] for r in cells.r]
    tables = [group_table(cells.groups, n_voxels=n, median_r=row) for n, row in zip(held, values)]
    return pd.concat([table.assign(cell=cell) for cell, table in zip(cells.names, tables)], ignore_index=True)
