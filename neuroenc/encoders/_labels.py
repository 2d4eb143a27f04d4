"""Check and label the inputs and outputs of encoders: numpy, torch, xarray and dask.

Where two labelled things meet they are matched by their labels here, or refused; never by position.
"""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.arrays import as_numbers, as_numpy, is_dask, is_torch, refuse_sparse, row_patterns
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.data import align

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


def seen_patterns(seen: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(Rows, columns) of voxels that saw the same stimuli; ``seen`` is boolean (stimulus, voxel)."""
    if seen.all():
        return [(np.arange(len(seen)), np.arange(seen.shape[1]))]
    which = row_patterns(seen.T)
    columns = [np.flatnonzero(which == k) for k in range(which.max() + 1)]
    return [(np.flatnonzero(seen[:, c[0]]), c) for c in columns]


def sample_coords(*arrays: Any) -> dict[str, np.ndarray]:
    """Coordinates along the first dimension (stimulus, run, session, ...) of the first labelled array that has each."""
    found: dict[str, np.ndarray] = {}
    for array in arrays:
        if isinstance(array, xr.DataArray):
            for name, coord in array.coords.items():
                if coord.dims == (array.dims[0],):
                    found.setdefault(str(name), coord.values)
    return found


def channel_labels(X: Any) -> list[str]:
    """Feature space of every channel, where labelled features have the coordinate ``space`` along it."""
    if (
        not isinstance(X, xr.DataArray)
        or "space" not in X.coords
        or X["space"].dims not in (("channel",), ("feature",))
    ):
        return []
    return [str(name) for name in X["space"].values]


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


def voxel_groups(Y: Any, name: str) -> np.ndarray:
    """Group (voxel,) of every voxel of labelled responses by a coordinate, along the voxels or of all of them."""
    labelled = isinstance(Y, xr.DataArray)
    found = {str(k): c for k, c in Y.coords.items() if c.dims in ((), ("voxel",))} if labelled else {}
    if name not in found:
        raise ConfigError(unknown_name("voxel coordinate", name, found, "Next step: labelled responses that have it."))
    return np.broadcast_to(_text(found[name].values), (1 if Y.ndim == 1 else int(Y.shape[1]),))


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
    """Labelled ``Y`` (n, voxel) with its voxels in the order of ``voxels``; what has no labels as it is."""
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


def align_voxels(Y: Any, like: Any, what: str = "responses") -> Any:
    """Labelled ``Y`` (n, voxel) with its voxels in the order of other labelled responses; unlabelled ones as they are.

    Raises
    ------
    DataError
        Other voxels, or the same ids with other places, another affine, volume, space or subject.

    Examples
    --------
    >>> Y = xr.DataArray([[1, 2]], dims=("stimulus", "voxel"), coords={"voxel": [7, 9]})
    >>> align_voxels(Y, Y[:, ::-1])["voxel"].values.tolist()
    [9, 7]
    """
    return match_voxels(voxel_coords(like), space_of(like), Y, what)


def _text(values: np.ndarray) -> np.ndarray:
    """Labels that compare equal whatever type a file gave them: 3, 3.0 and "3"."""
    values = np.asarray(values)
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == values.round()).all():
        values = values.astype(np.int64)
    return values.astype(str)


def measured_responses(X: Any, Y: Any, shape: tuple[int, ...], voxels: dict[str, Any] | None, space: Any) -> np.ndarray:
    """Responses (n, v) in the order of the predictions, whose shape is given."""
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
    """Labelled features with dimensions and labels in the order of those that were fitted."""
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


def check_responses(X: Any, y: Any, values: np.ndarray) -> tuple[Any, np.dtype]:
    """Responses as a two-dimensional array-like, and the precision of the fit.

    float64 if either side is float64, else float32.
    """
    if y is None:
        raise ValueError(
            "This encoder requires y to be passed, but the target y is None. "
            "Next step: encoder.fit(features, responses)."
        )
    if isinstance(X, xr.DataArray) and isinstance(y, xr.DataArray):
        align(X, y)
    refuse_sparse(y, "responses")
    # Data frames have a shape but other indexing rules.
    if not hasattr(y, "shape") or not hasattr(y, "ndim") or type(y).__module__.startswith("pandas"):
        y = as_numpy(y, "responses")
    if isinstance(y, np.ndarray) and y.dtype.kind in "OUS":
        try:
            y = np.asarray(y, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"responses have dtype {y.dtype}, and not all of them are numbers: {error}.") from error
    if y.ndim == 1:
        y = y[:, None] if is_dask(y) and not isinstance(y, xr.DataArray) else as_numpy(y, "responses")[:, None]
    if y.ndim != 2:
        raise DataError(f"responses have {y.ndim} dimensions, shape {tuple(y.shape)}; expected (n_samples, n_voxels).")
    if y.shape[0] != len(values):
        raise DataError(
            f"features have {len(values)} samples and responses {y.shape[0]}: inconsistent numbers of samples. "
            "Next step: neuroenc.data.match(features, responses) repeats feature rows for presentations."
        )
    if y.shape[1] == 0:
        raise DataError("responses hold 0 voxels.")
    kind = str(y.dtype).removeprefix("torch.")
    if not any(kind.startswith(known) for known in ("float", "bfloat16", "int", "uint", "bool")):
        raise DataError(f"responses have dtype {kind}; expected numbers. Next step: convert them to float32.")
    single = values.dtype == np.float32 and (kind in ("float32", "float16", "bfloat16") or "int" in kind)
    return y, np.dtype(np.float32 if single else np.float64)


def raise_nan(Y: Any, voxels: dict[str, Any] | None) -> NoReturn:
    """Count the voxels that are not finite, name the first, and stop."""
    bad: list[int] = []
    for start in range(0, Y.shape[1], 1024):
        block = column_block(Y, slice(start, start + 1024))
        bad.extend(start + np.flatnonzero(~np.isfinite(block).all(axis=0)))
    names = voxels["voxel"][1][bad[:5]].tolist() if voxels and "voxel" in voxels else [int(b) for b in bad[:5]]
    raise DataError(
        f"{len(bad)} of {Y.shape[1]} voxels hold NaN or infinity (inf) in their responses (first: {names}). "
        "Next step: drop them, or RidgeEncoder(nan_voxels='skip') to leave their weights NaN."
    )


def count_workers(n_jobs: Any) -> int:
    """Threads of ``n_jobs``: all cores for None, all but ``k - 1`` for ``-k``, as in joblib.

    >>> count_workers(2)
    2
    """
    cores = os.cpu_count() or 1
    if n_jobs is None:
        return cores
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, (int, np.integer)) or n_jobs == 0:
        raise ConfigError(f"n_jobs={n_jobs!r} is not legal; it is a number of threads, -1 or None for all cores.")
    return int(n_jobs) if n_jobs > 0 else max(1, cores + 1 + int(n_jobs))


def to_device(array: np.ndarray, device: Any, xp: Any) -> Any:
    """The array itself on the CPU, else a tensor."""
    if device is None:
        return array
    return xp.as_tensor(array, device=device)


_ROWS = 1024


def feature_scaling(values: np.ndarray, like: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (p,) of the columns of ``values`` (n, p), float64.

    ``like`` are the features as they came: a channel of labelled maps shares one mean and one s.d. over its places,
    and so keeps their ratio; a feature of tokens shares them over the tokens. What never varies has an infinite
    s.d., so that it becomes zero.

    >>> mean, scale = feature_scaling(np.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> mean.tolist(), scale.tolist()
    ([2.0, 5.0], [1.0, inf])
    """
    labelled = isinstance(like, xr.DataArray) and like.ndim > 2
    shape = like.shape[1:] if labelled else values.shape[1:]
    channel = like.dims.index("channel") if labelled and "channel" in like.dims else len(shape)
    cube = values.reshape(len(values), *shape)
    axes = tuple(a for a in range(cube.ndim) if a != channel)
    mean = cube.mean(axis=axes, dtype=np.float64, keepdims=True)
    square = np.zeros_like(mean)
    for start in range(0, len(cube), _ROWS):  # not numpy.std, which makes a float64 copy of everything
        square += ((cube[start : start + _ROWS] - mean) ** 2).sum(axis=axes, keepdims=True)
    scale = np.sqrt(square * (mean.size / cube.size))
    # Compared exactly: the mean of equal numbers is not always that number.
    scale[cube.max(axis=axes, keepdims=True) == cube.min(axis=axes, keepdims=True)] = np.inf
    return tuple(np.broadcast_to(x, (1, *shape)).ravel() for x in (mean, scale))  # type: ignore[return-value]


def feature_space(X: Any) -> dict[str, Any]:
    """What labelled features say about their making; empty where they say nothing.

    >>> from neuroenc.data import make_features
    >>> feature_space(make_features([[1.0]], stimulus=["a"], backbone="clip"))["backbone"]
    'clip'
    """
    found: dict[str, Any] = {k: v for k, v in describe_features(X).get("origin", {}).items() if v != ""}
    return found if found.get("backbone", "unknown") != "unknown" else {}


def check_space(known: Mapping[str, Any], X: Any, what: str) -> None:
    """Refuse features that were made in another way than ``known``, as far as both say how.

    Features that say nothing are taken, with a warning where their rows are far from the unit norm of ``known``.

    Raises
    ------
    DataError
        Backbone, weights, layer, pooling or normalisation differ; both are named.

    Examples
    --------
    >>> from neuroenc.data import make_features
    >>> check_space({"backbone": "dino"}, make_features([[1.0]], stimulus=["a"], backbone="clip"), "the model")
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: features have backbone='clip', the model 'dino'...
    """
    found = feature_space(X)
    for name in _ORIGIN:
        if name in known and name in found and known[name] != found[name]:
            raise DataError(
                f"features have {name}={found[name]!r}, {what} {known[name]!r}: numbers of one width, of another "
                "meaning. Next step: embed the stimuli in the same way."
            )
    if known.get("normalised") and not found and getattr(X, "ndim", 0) == 2:
        norms = np.linalg.norm(np.asarray(as_numpy(X[:1000]), dtype=np.float64), axis=1)
        typical = float(np.median(norms)) if len(norms) else 1.0
        if np.isfinite(typical) and not 1 / 3 <= typical <= 3:
            warnings.warn(
                f"rows of the features have a median norm of {typical:.3g}; {what} was made for rows of norm 1. "
                "Next step: divide each row by its norm, or embed with normalise=True.",
                stacklevel=3,
            )
