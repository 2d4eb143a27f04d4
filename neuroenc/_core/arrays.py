"""Arrays of other packages as numpy arrays, without losing what they say."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc._core.errors import DataError


def is_torch(x: Any) -> bool:
    """Whether x is a torch tensor, without importing torch."""
    return type(x).__module__.split(".")[0] == "torch" and hasattr(x, "detach")


def is_dask(x: Any) -> bool:
    """Whether x is, or labels, a dask array, without importing dask."""
    data = x.variable._data if hasattr(x, "variable") and hasattr(x, "dims") else x
    return type(data).__module__.split(".")[0] == "dask" and hasattr(data, "dask")


def refuse_sparse(x: Any, what: str) -> None:
    """Raise for a scipy.sparse matrix: responses and their scores are dense."""
    if type(x).__module__.startswith("scipy.sparse"):
        raise DataError(
            f"{what} are a sparse matrix of shape {x.shape}; expected a dense array. Next step: {what}.toarray()."
        )


def as_numpy(x: Any, what: str = "values") -> np.ndarray:
    """A numpy array of any array: numpy, labelled, torch of every dtype and device, dask, table, h5py.

    Masked numbers become NaN, as in xarray: numpy would drop the mask and keep what lies under it.

    >>> as_numpy(np.ma.masked_equal([1, 9], 9)).tolist()
    [1.0, nan]
    """
    refuse_sparse(x, what)
    if hasattr(x, "dims") and hasattr(x, "values"):
        return np.asarray(x.values)
    if is_torch(x):
        x = x.detach().cpu()
        # numpy has no bfloat16; float32 holds each of its values.
        x = x.float() if str(x.dtype) == "torch.bfloat16" else x
        return np.asarray(x.numpy())
    if isinstance(x, np.ma.MaskedArray):
        if not np.ma.getmaskarray(x).any():
            return np.asarray(x.data)
        if x.dtype.kind not in "fiub":
            raise DataError(f"{int(np.ma.count_masked(x))} of {x.size} {what} are masked, and {x.dtype} has no NaN.")
        numbers: Any = x if x.dtype.kind == "f" else x.astype(np.float64)
        return np.asarray(numbers.filled(np.nan))
    try:
        found = np.asarray(x)
    except ValueError as error:
        raise DataError(f"{what} have rows of different lengths; expected one array.") from error
    if found.dtype.kind == "c":
        raise DataError(f"{what} are complex numbers; expected real ones. Next step: their real part, or magnitude.")
    return found


def as_numbers(x: Any, what: str = "values") -> np.ndarray:
    """As `as_numpy`, of at least one dimension and of real numbers in the machine's byte order.

    >>> as_numbers([[1, 2]]).dtype.kind
    'i'
    >>> as_numbers(iter([1]), "features")
    Traceback (most recent call last):
        ...
    neuroenc._core.errors.DataError: features are a list_iterator; expected an array of numbers. ...
    """
    found = as_numpy(x, what)
    if found.ndim == 0:
        raise DataError(f"{what} are a {type(x).__name__}; expected an array of numbers. Next step: numpy.asarray.")
    if found.dtype.kind == "O":
        try:
            found = found.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"{what} hold values that are no numbers: {error}.") from error
    if found.dtype.kind not in "fiub":
        raise DataError(f"{what} have dtype {found.dtype}; expected numbers. Next step: convert them to float32.")
    return found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("="))


def unit_rows(rows: Any) -> np.ndarray:
    """Rows divided by their Euclidean norm; rows without a direction (norm up to 1e-9) are 0.

    >>> unit_rows([[3, 4], [0, 0]]).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    values = np.asarray(rows)
    values = values if values.dtype.kind == "f" else values.astype(np.float64)
    norms = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.divide(values, norms, out=np.zeros_like(values), where=norms > 1e-9)


def row_patterns(flags: np.ndarray) -> np.ndarray:
    """Number of each row's pattern of flags: rows that are equal have the same, in order of their flags.

    >>> row_patterns(np.array([[True, False], [False, True], [True, False]])).tolist()
    [1, 0, 1]
    """
    return np.unique(np.packbits(flags, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
