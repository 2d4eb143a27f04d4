"""Bring features and responses together by stimulus id, and voxels by ROI name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError, unknown_name
from neuroenc.data._build import check_labelled


def stimulus_ids(array: xr.DataArray) -> np.ndarray:
    """Stimulus id of each row, whichever form the array has.

    Examples
    --------
    >>> from neuroenc.data import make_responses
    >>> stimulus_ids(make_responses([[0.0], [1.0]], stimulus=["b", "a"])).tolist()
    ['b', 'a']
    """
    check_labelled(array, "array")
    if "stimulus" not in array.coords:
        raise DataError(
            f"array with dims {array.dims} has no 'stimulus' coordinate. "
            "Next step: build it with neuroenc.data.make_responses or make_features."
        )
    return np.asarray(array["stimulus"].values).astype(str)


def align(features: xr.DataArray, responses: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Check that row ``n`` of features and of responses is the same stimulus, for every ``n``.

    Nothing is reordered: a mismatch is an error, because it is more often a mistake than a wish.

    Parameters
    ----------
    features : DataArray (stimulus, ...), float32
    responses : DataArray (presentation, voxel) or (stimulus, voxel), float32

    Returns
    -------
    (features, responses), unchanged

    Raises
    ------
    DataError
        Names how many positions differ and the first of them.

    Examples
    --------
    >>> from neuroenc.data import make_features, make_responses
    >>> x = make_features([[0.0], [1.0]], stimulus=["a", "b"])
    >>> _ = align(x, make_responses([[0.0], [1.0]], stimulus=["a", "b"]))
    >>> align(x, make_responses([[0.0], [1.0]], stimulus=["b", "a"]))
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: features and responses have different stimulus orders: 2 of 2 rows...
    """
    left, right = stimulus_ids(features), stimulus_ids(responses)
    if len(left) == len(right):
        wrong = np.flatnonzero(left != right)
        if not wrong.size:
            return features, responses
        n = wrong[0]
        found = (
            f"features and responses have different stimulus orders: {wrong.size} of {len(left)} rows differ,"
            f" first row {n}: features {str(left[n])!r}, responses {str(right[n])!r}."
        )
    else:
        found = f"features have {len(left)} rows, responses have {len(right)}."
    missing = np.setdiff1d(right, left)
    if missing.size:
        step = f"{missing.size} stimuli of the responses have no features, first {missing[:3].tolist()}: embed them"
    else:
        step = "neuroenc.data.match(features, responses) repeats and reorders the features' rows by id"
    raise DataError(f"{found} Next step: {step}.")


def match(features: xr.DataArray, responses: xr.DataArray) -> xr.DataArray:
    """Features' rows in the order of the responses' stimuli, repeated where a stimulus was repeated.

    Parameters
    ----------
    features : DataArray (stimulus, ...), float32, unique ids
    responses : DataArray (presentation, voxel) or (stimulus, voxel), float32

    Returns
    -------
    DataArray (stimulus, ...)
        Row ``n`` belongs to row ``n`` of the responses.

    Raises
    ------
    DataError
        A stimulus of the responses has no features (how many, and the first), or features have an id twice.

    Examples
    --------
    >>> from neuroenc.data import make_features, make_responses
    >>> x = make_features([[0.0], [1.0]], stimulus=["a", "b"])
    >>> match(x, make_responses([[0.0]] * 3, stimulus=["b", "a", "b"])).values.ravel().tolist()
    [1.0, 0.0, 1.0]
    """
    have, want = stimulus_ids(features), stimulus_ids(responses)
    index = pd.Index(have)
    if not index.is_unique:
        twice = index[index.duplicated()].unique()
        raise DataError(f"features hold {len(twice)} stimuli more than once, first {list(map(str, twice[:3]))}.")
    rows = index.get_indexer(pd.Index(want))
    if (rows < 0).any():
        missing = list(dict.fromkeys(want[rows < 0].tolist()))
        raise DataError(
            f"{len(missing)} of {len(set(want))} stimuli of the responses have no features, first {missing[:5]}. "
            "Next step: embed them, or keep only the responses whose stimuli have features."
        )
    return features.isel(stimulus=rows)


def _roi_strings_of(obj: Any) -> np.ndarray:
    if not isinstance(obj, (xr.DataArray, xr.Dataset)) or "roi" not in obj.coords:
        found = sorted(map(str, obj.coords)) if isinstance(obj, (xr.DataArray, xr.Dataset)) else type(obj).__name__
        raise DataError(f"no 'roi' coordinate on voxel; found {found}. Next step: make_responses(..., roi=...).")
    return np.asarray(obj["roi"].values).astype(str)


def roi_names(obj: xr.DataArray | xr.Dataset) -> list[str]:
    """Names of the ROIs that occur, sorted.

    Examples
    --------
    >>> from neuroenc.data import make_responses
    >>> roi_names(make_responses([[0.0] * 3], stimulus=["a"], roi=["V1", "", "FFA;OFA"]))
    ['FFA', 'OFA', 'V1']
    """
    return sorted({name for entry in np.unique(_roi_strings_of(obj)) for name in str(entry).split(";") if name})


def in_roi(obj: xr.DataArray | xr.Dataset, name: str) -> np.ndarray:
    """Which voxels belong to ROI ``name``: bool array (voxel,).

    Raises
    ------
    DataError
        No ROI has that name; the nearest names are given.

    Examples
    --------
    >>> from neuroenc.data import make_responses
    >>> in_roi(make_responses([[0.0] * 3], stimulus=["a"], roi=["V1", "", "FFA;V1"]), "V1").tolist()
    [True, False, True]
    """
    names, inverse = np.unique(_roi_strings_of(obj), return_inverse=True)
    flags = np.array([name in str(entry).split(";") for entry in names], dtype=bool)
    if not name or not flags.any():
        raise DataError(unknown_name("roi", name, roi_names(obj)))
    return flags[inverse.ravel()]
