"""Session-wise z-scoring and averaging of repeats, without needless copies of large arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import DataError
from neuroenc.data._build import check_labelled, provenance_step

# Values that differ by less than float32 can tell apart carry no signal.
_CONSTANT = 1e-7
_BLOCK = 2**23
_KEYS = {"session": ("subject", "session"), "run": ("subject", "session", "run")}
Rows = slice | np.ndarray


def zscore(responses: xr.DataArray, by: str = "session", ddof: int = 0) -> xr.DataArray:
    """``z = (y - m) / s``, with the voxel's mean ``m`` and standard deviation ``s`` in its session or run.

    Removes the gain and offset that differ between sessions, which otherwise pass for signal. Groups are
    sessions of a subject, or runs of a session of a subject. Moments are float64; NaN values are left out
    of them and stay NaN. The only large array that is made is the result.

    Parameters
    ----------
    responses : DataArray (presentation, voxel), float32
        With a coordinate ``session`` (or ``run``). Dask arrays give a lazy result.
    by : {"session", "run"}
    ddof : int
        Divisor of the variance is ``n - ddof``.

    Returns
    -------
    DataArray (presentation, voxel), float32, unit: standard deviations
        ``attrs["zscored"] = by``. Voxels that are constant within a group become 0 there, with a warning.

    Raises
    ------
    DataError
        The coordinate is missing, or a group has fewer than two presentations.

    Examples
    --------
    >>> from neuroenc.data import make_responses
    >>> r = make_responses([[1.0], [3.0], [10.0], [30.0]], stimulus=list("abcd"), session=[1, 1, 2, 2])
    >>> zscore(r).values.ravel().tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """
    check_whole("ddof", ddof, least=0)
    groups = group_rows(responses, by)
    small = [name for name, rows in groups if n_rows(responses, rows) < 2 + ddof]
    if small:
        raise DataError(
            f"{len(small)} of {len(groups)} {by} groups have fewer than {2 + ddof} presentations, first "
            f"{small[:3]}. Next step: z-score before taking subsets, or drop these rows."
        )
    data = _columnwise(responses.data, partial(_zscored, groups=groups, by=by, ddof=ddof), responses.shape[0])
    scaled = responses.copy(deep=False, data=data)
    done = provenance_step(responses.attrs, "zscore", by=by, ddof=ddof)
    return scaled.assign_attrs(units="z", zscored=by, zscored_n=int(responses.shape[0]), provenance=done)


def _columnwise(data: Any, function: Callable[[Any], np.ndarray], n_rows: int) -> Any:
    """A function of whole columns that gives ``n_rows`` rows; of dask arrays, block of columns by block."""
    if not hasattr(data, "dask"):
        return function(np.asarray(data))
    width = columns(*data.shape)[0].stop if data.shape[1] else 1
    data = data.rechunk({0: -1, 1: width})
    return data.map_blocks(function, dtype=np.float32, chunks=((n_rows,), data.chunks[1]))


def _zscored(values: np.ndarray, groups: list[tuple[str, Rows]], by: str, ddof: int) -> np.ndarray:
    result = np.empty(values.shape, dtype=np.float32)
    constant = np.zeros(values.shape[1], dtype=np.int64)
    for _, rows in groups:
        for block in columns(n_rows(values, rows), values.shape[1]):
            part = values[rows, block]
            mean, sd = column_moments(part, ddof)
            if (np.isinf(sd) | np.isinf(mean)).any():
                raise DataError(
                    f"responses hold infinity, or values too large to square (largest {np.nanmax(np.abs(part)):.3g}). "
                    "Next step: NaN where a response is missing."
                )
            flat = sd <= _CONSTANT * np.abs(mean)
            constant[block] += flat
            scaled = (part - mean) / np.where(flat, np.inf, sd)
            result[rows, block] = scaled
    if constant.any():
        warnings.warn(
            f"{int((constant > 0).sum())} of {len(constant)} voxels are constant within at least one {by} "
            f"({int((constant == len(groups)).sum())} in all of them); they are 0 there.",
            stacklevel=3,
        )
    return result


def zscore_in_place(values: np.ndarray, budget: int) -> np.ndarray:
    """``(y - m) / s`` of every column of one session; which columns were constant (they become 0).

    Population standard deviation; sums in float64, column block by column block.
    """
    constant = np.zeros(values.shape[1], dtype=bool)
    step = max(1, budget // max(1, len(values) * 24))
    for start in range(0, values.shape[1], step):
        part = values[:, start : start + step]
        mean, sd = column_moments(part)
        flat = sd <= _CONSTANT * np.abs(mean)
        part -= mean.astype(np.float32)
        part /= np.where(flat, np.inf, sd).astype(np.float32)
        constant[start : start + step] = flat
    return constant


def average_repeats(responses: xr.DataArray) -> xr.DataArray:
    """``y[s] = mean over the presentations of stimulus s``, stimuli in order of first appearance.

    Sums are float64. A NaN in any repeat gives NaN, because ``n_repeats`` holds for all voxels of a row.

    Parameters
    ----------
    responses : DataArray (presentation, voxel), float32
        Of one subject. The stimulus form is returned as it is.

    Returns
    -------
    DataArray (stimulus, voxel), float32
        With coordinate ``n_repeats`` (int64). Other coordinates of the presentations stay where they are
        the same in all repeats of each stimulus.

    Raises
    ------
    DataError
        There are several subjects.

    Warns
    -----
    UserWarning
        Raw responses of several sessions are averaged.

    Examples
    --------
    >>> from neuroenc.data import make_responses
    >>> y = average_repeats(make_responses([[1.0], [5.0], [3.0]], stimulus=["b", "a", "b"], subject="s1"))
    >>> y.stimulus.values.tolist(), y.values.ravel().tolist(), y.n_repeats.values.tolist()
    (['b', 'a'], [2.0, 5.0], [2, 1])
    """
    check_labelled(responses, "responses")
    if "stimulus" in responses.dims:
        return responses
    coords: dict[str, Any] = {}
    if "subject" in responses.coords:
        subjects = np.unique(responses["subject"].values)
        if subjects.size > 1:
            raise DataError(
                f"responses hold {subjects.size} subjects ({', '.join(map(str, subjects[:4]))}); repeats are averaged "
                "within one. Next step: responses[responses.subject == name]."
            )
        if subjects.size:
            coords["subject"] = str(subjects[0])
    several = "session" in responses.coords and len(np.unique(responses["session"].values)) > 1
    if several and responses.attrs.get("zscored", "none") == "none":
        warnings.warn(
            "averaging raw responses over sessions mixes their gains and offsets; z-score first: "
            "neuroenc.data.zscore(responses, by='session').",
            stacklevel=2,
        )
    numbers, ids = pd.factorize(responses["stimulus"].values)
    counts = np.bincount(numbers, minlength=len(ids)).astype(np.int64)
    coords["stimulus"] = np.asarray(ids).astype(str)
    coords["n_repeats"] = ("stimulus", counts)
    first = np.unique(numbers, return_index=True)[1]
    for name, coord in responses.coords.items():
        if name in ("presentation", "stimulus", "repeat", "subject"):
            continue
        if coord.dims != ("presentation",):
            coords[str(name)] = coord
        elif bool((coord.values == coord.values[first][numbers]).all()):
            coords[str(name)] = ("stimulus", coord.values[first])
    data = _columnwise(responses.data, partial(averaged, numbers=numbers, counts=counts), len(ids))
    attrs = {**responses.attrs, "provenance": provenance_step(responses.attrs, "average_repeats")}
    attrs.pop("zscored_n", None)
    return xr.DataArray(data, dims=("stimulus", "voxel"), coords=coords, attrs=attrs, name=responses.name)


def averaged(values: np.ndarray, numbers: np.ndarray, counts: np.ndarray) -> np.ndarray:
    result = np.empty((len(counts), values.shape[1]), dtype=np.float32)
    if not len(counts):
        return result
    order = np.argsort(numbers, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    for block in columns(len(values), values.shape[1]):
        sums = np.add.reduceat(values[order, block], starts, axis=0, dtype=np.float64)
        result[:, block] = sums / counts[:, None]
    return result


def group_ids(responses: xr.DataArray, by: str) -> tuple[np.ndarray, list[str]]:
    """Group number of each row, in order of first appearance, and the groups' names.

    Runs that count from 1 again in each session, and sessions of different subjects, stay apart.
    """
    check_labelled(responses, "responses")
    one_of("grouping", by, _KEYS)
    sample = responses.dims[0]
    if by not in responses.coords:
        averaged = " (they are averaged over repeats, so do this before averaging)" if sample == "stimulus" else ""
        raise DataError(
            f"responses have no {by!r} coordinate{averaged}; found {sorted(map(str, responses.coords))}. "
            f"Next step: responses.assign_coords({by}=({sample!r}, numbers)); one number for all rows if there is "
            f"one {by}."
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
