"""Labelled arrays in, labelled arrays out: numpy, torch, xarray and dask are accepted everywhere.

Where two labelled things meet they are matched by their labels here, or refused; never by position.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.arrays import as_numbers, as_numpy, is_dask, is_torch, refuse_sparse
from neuroenc._core.errors import DataError
from neuroenc.data import align

__all__ = [
    "column_block",
    "describe_features",
    "features_matrix",
    "is_dask",
    "is_torch",
    "match_features",
    "match_voxels",
    "measured_responses",
    "release_mapped",
    "sample_coords",
    "space_of",
    "voxel_coords",
    "wrap",
]

# Coordinates that say which voxel a column is. Others (roi, ncsnr) describe it, and may differ between runs.
_KEYS = ("subject", "hemi", "voxel")
_PLACES = ("vertex", "i", "j", "k")
# Attributes of responses without which scores and weights cannot be put back into the brain.
_SPACE = ("affine", "volume_shape", "space", "volume_space")
# Attributes of features that say where they come from.
_ORIGIN = ("backbone", "weights", "layer", "pooling", "normalised")


def features_matrix(X: Any) -> Any:
    """Features as a two-dimensional array-like (n, p).

    Labelled maps (stimulus, channel, y, x) and tokens (stimulus, token, feature) are flattened in C order;
    unlabelled arrays must be two-dimensional already.
    """
    if isinstance(X, xr.DataArray):
        for name in ("stimulus", "presentation"):
            if name in X.dims[1:]:
                raise DataError(
                    f"features have dims {tuple(map(str, X.dims))}; rows must come first. "
                    f"Next step: features.transpose({name!r}, ...)."
                )
        values = X.values
        return values.reshape(len(values), -1) if values.ndim > 2 else values
    # Tables keep their names of columns, mapped files stay mapped; scikit-learn checks what is an array already.
    array = isinstance(X, np.ndarray) and X.ndim > 0 and X.dtype.kind in "fiubcO"
    if hasattr(X, "columns") or (array and not isinstance(X, np.ma.MaskedArray)):
        return X
    return as_numbers(X, "features")


def sample_coords(*arrays: Any) -> dict[str, np.ndarray]:
    """Coordinates along the first dimension (stimulus, run, session, ...) of the first labelled array that has each."""
    found: dict[str, np.ndarray] = {}
    for array in arrays:
        if isinstance(array, xr.DataArray):
            for name, coord in array.coords.items():
                if coord.dims == (array.dims[0],):
                    found.setdefault(str(name), coord.values)
    return found


def voxel_coords(Y: Any) -> dict[str, Any] | None:
    """Coordinates of the voxels of labelled responses, or None.

    One voxel without its dimension (``responses.isel(voxel=0)``) keeps its coordinates.
    """
    if not isinstance(Y, xr.DataArray) or Y.ndim not in (1, 2):
        return None
    if Y.ndim == 1:
        if "voxel" not in Y.coords or Y.coords["voxel"].ndim:
            return None
        return {str(k): ("voxel", np.atleast_1d(c.values)) for k, c in Y.coords.items() if not c.ndim}
    dim = Y.dims[1]
    if dim != "voxel":
        raise DataError(
            f"responses have dims {tuple(map(str, Y.dims))}; the second must be 'voxel'. "
            "Next step: responses.transpose(..., 'voxel') or neuroenc.data.make_responses."
        )
    return {str(k): ("voxel", c.values) for k, c in Y.coords.items() if c.dims == ("voxel",)}


def space_of(Y: Any) -> dict[str, Any]:
    """What places the voxels of labelled responses in the brain, as JSON can hold it: affine, shape, space, subject."""
    if not isinstance(Y, xr.DataArray):
        return {}
    found = {name: np.asarray(Y.attrs[name]).tolist() for name in _SPACE if Y.attrs.get(name) is not None}
    if "subject" in Y.coords and Y.coords["subject"].dims != ("voxel",):
        subjects = np.unique(Y.coords["subject"].values.astype(str))
        if len(subjects) == 1:
            found["subject"] = str(subjects[0])
    return found


def _first(values: Any) -> str:
    return ", ".join(map(str, np.asarray(values).ravel()[:3].tolist()))


def match_voxels(voxels: dict[str, Any] | None, space: dict[str, Any], Y: Any, what: str = "responses") -> Any:
    """Labelled ``Y`` (n, voxel) with its voxels in the order of ``voxels``; what has no labels as it is.

    Raises
    ------
    DataError
        Other voxels, or the same ids with other places, another affine, volume, space or subject.
    """
    if not isinstance(Y, xr.DataArray):
        return Y
    there = voxel_coords(Y)
    other = space_of(Y)
    for name in ("subject", "space", "volume_space", "volume_shape"):
        if name in space and name in other and space[name] != other[name]:
            step = "drop_vars('subject')" if name == "subject" else f"attrs.pop({name!r})"
            raise DataError(
                f"the {what} are of {name} {other[name]!r}; expected {name} {space[name]!r}, as in the fit. "
                f"Next step: the {what} that belong to it, or {what}.{step} if their voxels do correspond."
            )
    if "affine" in space and "affine" in other:
        from neuroenc.data import check_affine  # here, because nibabel comes with it

        check_affine(space["affine"], other["affine"], names=("the expected voxels", f"the {what}"))
    if voxels is None or there is None:
        return Y
    names = [name for name in _KEYS if name in voxels and name in there]
    if names:
        have, want = (pd.MultiIndex.from_arrays([_text(c[k][1]) for k in names]) for c in (there, voxels))
        if not have.equals(want):
            unknown = want.difference(have), have.difference(want)
            if len(have) != len(want) or len(unknown[0]) or len(unknown[1]) or not have.is_unique:
                raise DataError(
                    f"the {what} have {len(have)} voxels; of {len(want)} expected {len(unknown[0])} are missing"
                    + (f" (first {names[-1]}: {_first(unknown[0].get_level_values(-1))})" if len(unknown[0]) else "")
                    + f", {len(unknown[1])} are others"
                    + (f" (first {names[-1]}: {_first(unknown[1].get_level_values(-1))})" if len(unknown[1]) else "")
                    + f". Next step: the {what} of the same voxels, for example {what}.sel(voxel=predicted.voxel)."
                )
            order = have.get_indexer(want)
            Y = Y[:, order] if Y.ndim == 2 else Y
            there = {k: ("voxel", c[1][order]) for k, c in there.items()}
    for name in (*_KEYS, *_PLACES):
        if name in voxels and name in there:
            mine, theirs = voxels[name][1], there[name][1]
            if len(mine) != len(theirs):
                raise DataError(f"the {what} have {len(theirs)} voxels; expected are {len(mine)}.")
            wrong = np.flatnonzero(_text(mine) != _text(theirs))
            if len(wrong):
                raise DataError(
                    f"{len(wrong)} of {len(mine)} voxels have another {name} in the {what} than expected (first: "
                    f"{theirs[wrong[0]]}, expected {mine[wrong[0]]}). "
                    f"Next step: the {what} of the same voxels."
                )
    return Y


def _text(values: np.ndarray) -> np.ndarray:
    """Labels that compare equal whatever type a file gave them: 3, 3.0 and "3"."""
    values = np.asarray(values)
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == values.round()).all():
        values = values.astype(np.int64)
    return values.astype(str)


def measured_responses(X: Any, Y: Any, shape: tuple[int, ...], voxels: dict[str, Any] | None, space: Any) -> np.ndarray:
    """Responses (n, v) in the order of the predictions, whose shape is given.

    Raises
    ------
    DataError
        Stimuli in another order, other voxels, or another shape.
    """
    refuse_sparse(Y, "responses")
    if isinstance(X, xr.DataArray) and isinstance(Y, xr.DataArray):
        align(X, Y)
    measured = as_numpy(match_voxels(voxels, space, Y), "responses")
    columns = measured[:, None] if measured.ndim == 1 else measured
    if columns.shape != (shape[0], int(np.prod(shape[1:]))):
        raise DataError(f"responses have shape {measured.shape}, predictions {shape}.")
    return columns


def describe_features(X: Any) -> dict[str, Any]:
    """What a feature is called and where it comes from, as JSON can hold it; empty for unlabelled features."""
    if not isinstance(X, xr.DataArray):
        return {}
    origin = {k: X.attrs[k] for k in _ORIGIN if isinstance(X.attrs.get(k), (str, int, float, np.number))}
    labels = {str(d): X.coords[d].values.tolist() for d in X.dims[1:] if d in X.coords}
    return {
        "dims": [str(d) for d in X.dims[1:]],
        "labels": labels,
        "origin": {k: v.item() if isinstance(v, np.generic) else v for k, v in origin.items()},
    }


def match_features(fitted: dict[str, Any], X: Any, what: str = "features") -> Any:
    """Labelled features with dimensions and labels in the order of those that were fitted.

    Raises
    ------
    DataError
        Features of another backbone, layer, pooling or normalisation, or with other labels.
    """
    if "dims" not in fitted or not isinstance(X, xr.DataArray):
        return X
    found = describe_features(X)
    mine, theirs = fitted["origin"], found["origin"]
    known = [k for k in _ORIGIN if all(str(o.get(k, "")) not in ("", "unknown") for o in (mine, theirs))]
    # "Not normalised" is also what features of unknown origin say.
    known = [k for k in known if k != "normalised" or "backbone" in known]
    for name in known:
        if str(mine[name]) != str(theirs[name]):
            raise DataError(
                f"the encoder was fitted on {what} of {name} {mine[name]!r}; found {name} {theirs[name]!r}. "
                "Next step: embed the stimuli as for the fit."
            )
    if sorted(fitted["dims"]) == sorted(found["dims"]) and fitted["dims"] != found["dims"]:
        X = X.transpose(X.dims[0], *fitted["dims"])
    for name, labels in fitted["labels"].items():
        if name not in found["labels"]:
            continue
        have, want = pd.Index(_text(X.coords[name].values)), pd.Index(_text(np.array(labels)))
        if have.equals(want):
            continue
        missing, unknown = want.difference(have), have.difference(want)
        if len(missing) or len(unknown) or not have.is_unique:
            raise DataError(
                f"{what} have other {name} labels than in the fit: {len(missing)} of {len(want)} are missing"
                + (f" (first {_first(missing)})" if len(missing) else "")
                + f", {len(unknown)} are unknown"
                + (f" (first {_first(unknown)})" if len(unknown) else "")
                + ". Next step: embed the stimuli as for the fit."
            )
        X = X.isel({name: have.get_indexer(want)})
    return X


def column_block(Y: Any, columns: slice) -> np.ndarray:
    """Voxels ``columns`` of responses that may be numpy, memmap, h5py, zarr, torch or dask."""
    array = Y.variable._data if isinstance(Y, xr.DataArray) else Y
    if not isinstance(array, np.ndarray) or _mapping(array) is None:
        return as_numpy(Y[:, columns], "responses")
    # Rows of all voxels pass through memory to get at some; what was read is given back before more is.
    found = np.empty((len(array), len(range(*columns.indices(array.shape[1])))), dtype=array.dtype)
    step = max(1, _MAPPED // max(1, abs(array.strides[0])))
    for start in range(0, len(array), step):
        found[start : start + step] = array[start : start + step, columns]
        release_mapped(array)
    return found


_MAPPED = 2**24


def _mapping(array: Any) -> Any:
    """The memory map of a file that an array looks into; None where there is none, or its changes are private."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            shared = array.mode in ("r", "r+", "w+") and hasattr(array._mmap, "madvise")  # type: ignore[attr-defined]
            return array._mmap if shared else None  # type: ignore[attr-defined]
        array = array.base
    return None


def release_mapped(array: Any) -> None:
    """Give back the memory of pages of a file that were read through a memory map; they can be read again."""
    found = _mapping(array.variable._data if isinstance(array, xr.DataArray) else array)
    if found is not None and hasattr(mmap, "MADV_DONTNEED"):
        found.madvise(mmap.MADV_DONTNEED)


def wrap(values: Any, like: Any, voxels: dict[str, Any] | None, name: str = "responses") -> Any:
    """Predictions in the form of the features they came from."""
    if isinstance(like, xr.DataArray):
        dim = str(like.dims[0])
        coords: dict[str, Any] = {str(k): c for k, c in like.coords.items() if c.dims == (dim,)}
        if values.ndim == 1:
            return xr.DataArray(values, dims=(dim,), coords=coords, name=name)
        coords.update(voxels or {"voxel": np.arange(values.shape[1])})
        return xr.DataArray(values, dims=(dim, "voxel"), coords=coords, name=name)
    if is_torch(like):
        import torch

        return torch.as_tensor(values, device=like.device)
    return values
