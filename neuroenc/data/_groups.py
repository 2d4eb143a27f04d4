"""Rows that belong together (session, run) and their moments, without copies of the whole array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError, unknown_name
from neuroenc.data._labels import check_labelled

__all__ = ["Rows", "column_moments", "columns", "group_ids", "group_rows", "moments", "n_rows"]

Rows = slice | np.ndarray
_KEYS = {"session": ("subject", "session"), "run": ("subject", "session", "run")}
_BLOCK = 2**23


def group_ids(responses: xr.DataArray, by: str) -> tuple[np.ndarray, list[str]]:
    """Group number of each row, in order of first appearance, and the groups' names.

    Runs that count from 1 again in each session, and sessions of different subjects, stay apart.
    """
    check_labelled(responses, "responses")
    if by not in _KEYS:
        raise DataError(unknown_name("grouping", by, _KEYS))
    sample = responses.dims[0]
    if by not in responses.coords:
        averaged = " (they are averaged over repeats, so do this before averaging)" if sample == "stimulus" else ""
        raise DataError(
            f"responses have no {by!r} coordinate{averaged}; found {sorted(map(str, responses.coords))}. Next"
            f" step: responses.assign_coords({by}=({sample!r}, numbers)); one number for all rows if there is"
            f" one {by}."
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


def columns(n: int, n_voxels: int) -> list[slice]:
    """Voxel blocks small enough that float64 temporaries stay near 64 MB."""
    step = max(1, _BLOCK // max(1, n))
    return [slice(start, min(start + step, n_voxels)) for start in range(0, n_voxels, step)]


def moments(data: Any, rows: Rows, ddof: int = 0) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of rows, and each voxel's mean and standard deviation over them, float64.

    Two passes, voxel block by voxel block; NaN values are left out (NaN where nothing else is there).
    """
    n_voxels = int(data.shape[1])
    mean = np.empty(n_voxels)
    sd = np.empty(n_voxels)
    n = n_rows(data, rows)
    for block in columns(n, n_voxels):
        mean[block], sd[block] = column_moments(np.asarray(data[rows, block]), ddof)
    return n, mean, sd


def n_rows(data: Any, rows: Rows) -> int:
    """How many rows a slice or an index array selects."""
    return len(range(*rows.indices(data.shape[0]))) if isinstance(rows, slice) else len(rows)


def column_moments(values: np.ndarray, ddof: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (float64) of each column without its NaN values."""
    exact = values.astype(np.float64)
    total = exact.sum(0)
    if np.isnan(total).any():
        count = np.maximum((~np.isnan(exact)).sum(0), 0)
        mean = np.divide(np.nansum(exact, axis=0), count, out=np.full(total.shape, np.nan), where=count > 0)
        exact -= mean
        np.nan_to_num(exact, copy=False, nan=0.0)
    else:
        count = np.full(total.shape, len(exact))
        mean = total / max(1, len(exact))
        exact -= mean
    square = np.einsum("nv,nv->v", exact, exact)
    sd = np.sqrt(np.divide(square, count - ddof, out=np.full(total.shape, np.nan), where=count > ddof))
    return mean, sd
