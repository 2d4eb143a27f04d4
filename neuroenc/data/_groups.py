"""Rows that belong together (session, run) and their moments, without copies of the whole array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._util.errors import DataError, unknown_name

__all__ = ["Rows", "columns", "group_ids", "group_rows", "moments"]

Rows = slice | np.ndarray
_KEYS = {"session": ("subject", "session"), "run": ("subject", "session", "run")}
_BLOCK = 2**23


def group_ids(responses: xr.DataArray, by: str) -> tuple[np.ndarray, list[str]]:
    """Group number of each row, in order of first appearance, and the groups' names.

    Runs that count from 1 again in each session, and sessions of different subjects, stay apart.
    """
    if by not in _KEYS:
        raise DataError(unknown_name("grouping", by, _KEYS))
    sample = responses.dims[0]
    if by not in responses.coords:
        averaged = (
            " (they are averaged over repeats, so do this before averaging)" if sample == "stimulus" else ""
        )
        raise DataError(
            f"responses have no {by!r} coordinate{averaged}; found {sorted(map(str, responses.coords))}. Next step: "
            f"responses.assign_coords({by}=({sample!r}, numbers)); one number for all rows if there is one {by}."
        )
    keys = [x for x in _KEYS[by] if x in responses.coords and responses[x].dims == (sample,)]
    frame = pd.DataFrame({x: responses[x].values for x in keys})
    grouped = frame.groupby(keys, sort=False, dropna=False)
    numbers = grouped.ngroup().to_numpy(np.int64)
    first = frame.iloc[np.unique(numbers, return_index=True)[1]] if len(frame) else frame
    names = [" ".join(f"{x} {value}" for x, value in zip(keys, row, strict=True)) for row in first.to_numpy()]
    return numbers, names


def group_rows(responses: xr.DataArray, by: str) -> list[tuple[str, Rows]]:
    """(name, rows) of each session or run; rows are a slice, hence a view, where they are contiguous."""
    numbers, names = group_ids(responses, by)
    order = np.argsort(numbers, kind="stable")
    bounds = np.searchsorted(numbers[order], np.arange(len(names) + 1))
    groups: list[tuple[str, Rows]] = []
    for n, name in enumerate(names):
        rows = order[bounds[n] : bounds[n + 1]]
        contiguous = rows.size and rows[-1] - rows[0] + 1 == rows.size
        groups.append((name, slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows))
    return groups


def columns(n_rows: int, n_voxels: int) -> list[slice]:
    """Voxel blocks small enough that float64 temporaries stay near 64 MB."""
    step = max(1, _BLOCK // max(1, n_rows))
    return [slice(start, min(start + step, n_voxels)) for start in range(0, n_voxels, step)]


def moments(data: Any, rows: Rows, ddof: int = 0) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of rows, and each voxel's mean and standard deviation over them, float64 (two passes)."""
    n_voxels = int(data.shape[1])
    mean = np.empty(n_voxels)
    sd = np.empty(n_voxels)
    n = len(range(*rows.indices(data.shape[0]))) if isinstance(rows, slice) else len(rows)
    for block in columns(n, n_voxels):
        values = np.asarray(data[rows, block]).astype(np.float64)
        mean[block] = values.mean(0)
        values -= mean[block]
        sd[block] = np.sqrt(np.einsum("nv,nv->v", values, values) / max(1, n - ddof))
    return n, mean, sd
