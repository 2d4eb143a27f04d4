"""Builders of the two arrays that cross every door: responses and features."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._util.errors import DataError
from neuroenc._util.files import hash_array
from neuroenc._util.provenance import provenance as _provenance

__all__ = ["FEATURE_DIMS", "ZSCORED", "make_features", "make_responses", "string_ids"]

FEATURE_DIMS = {
    2: ("stimulus", "feature"),
    3: ("stimulus", "token", "feature"),
    4: ("stimulus", "channel", "y", "x"),
}
ZSCORED = ("none", "session", "run")
_SAMPLE_DIMS = ("presentation", "stimulus")


def string_ids(values: Any, what: str = "stimulus") -> np.ndarray:
    """Ids as a '<U' array; anything that is not text, or is empty text, is an error.

    >>> string_ids(["a", "bc"]).dtype.kind
    'U'
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(
            f"{what} ids have shape {array.shape} (expected one dimension). Next step: ids.ravel()."
        )
    if array.dtype.kind == "O" or array.dtype.kind == "T":
        bad = [x for x in array if not isinstance(x, str)]
        if not bad:
            array = array.astype(str)
    else:
        bad = [] if array.dtype.kind == "U" or not array.size else list(array[:1])
    if bad:
        raise DataError(
            f"{what} ids must be text, found {bad[0]!r} ({type(bad[0]).__name__}). Names survive every file "
            f"format, numbers do not (leading zeros). Next step: {what}=[str(x) for x in ids]."
        )
    array = array.astype(str)
    if array.size and (array == "").any():
        raise DataError(
            f"{int((array == '').sum())} {what} ids are empty, first at {int(np.argmax(array == ''))}."
        )
    return array


def _float32(values: Any) -> Any:
    """Values as float32 without a copy where they are float32 already; dask arrays stay lazy."""
    if isinstance(values, (xr.DataArray, xr.Variable)):
        values = values.data
    if hasattr(values, "dask"):
        return values if values.dtype == np.float32 else values.astype(np.float32)
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise DataError(f"values have dtype {array.dtype} (expected real numbers).")
    return array.astype(np.float32, copy=False)


def _along(name: str, values: Any, n: int, dtype: Any, per: str) -> np.ndarray:
    """One value per item, or one for all; length and integer values are checked."""
    array = np.asarray(values)
    if array.ndim == 0:
        array = np.full(n, array)
    if array.shape != (n,):
        raise DataError(f"{name} has shape {array.shape} (expected ({n},): one value per {per}).")
    if dtype is str:
        if array.dtype.kind not in "UOT" or not all(isinstance(x, str) for x in array.tolist()):
            raise DataError(f"{name} must be text, found {array[:1].tolist()} of dtype {array.dtype}.")
        return array.astype(str)
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{name} must be numbers, found dtype {array.dtype}, first value {array[:1].tolist()}."
        )
    if (
        dtype is np.int64
        and array.dtype.kind == "f"
        and not (np.isfinite(array) & (array == np.round(array))).all()
    ):
        raise DataError(
            f"{name} must be whole numbers, found {array[array != np.round(array)][:3].tolist()}."
        )
    return array.astype(dtype)


def _roi_strings(roi: Any, n_voxels: int) -> np.ndarray:
    """ROI names of each voxel joined by ';'."""
    if isinstance(roi, Mapping):
        masks = {}
        for name, mask in roi.items():
            masks[str(name)] = np.asarray(mask)
            if masks[str(name)].shape != (n_voxels,) or masks[str(name)].dtype != bool:
                raise DataError(
                    f"roi[{name!r}] has shape {masks[str(name)].shape} and dtype {masks[str(name)].dtype} "
                    f"(expected ({n_voxels},) and bool: one flag per voxel)."
                )
        roi = [[name for name, mask in masks.items() if mask[v]] for v in range(n_voxels)]
    if isinstance(roi, str):
        roi = [roi] * n_voxels
    if len(roi) != n_voxels:
        raise DataError(f"roi has {len(roi)} entries (expected {n_voxels}: one per voxel).")
    joined: list[str] = []
    for entry in roi:
        if isinstance(entry, str):
            names: Iterable[str] = entry.split(";")
        else:
            names = sorted(entry) if isinstance(entry, (set, frozenset)) else list(entry)
            bad = [x for x in names if not isinstance(x, str) or ";" in x]
            if bad:
                raise DataError(f"roi name {bad[0]!r} is not legal: a name is text without ';'.")
        joined.append(";".join(dict.fromkeys(x.strip() for x in names if x.strip())))
    return np.array(joined, dtype=str) if joined else np.empty(0, dtype="<U1")


def _repeat_numbers(stimulus: np.ndarray, subject: np.ndarray | None) -> np.ndarray:
    """0-based count of earlier presentations of the same stimulus to the same subject."""
    keys = {"stimulus": stimulus} if subject is None else {"stimulus": stimulus, "subject": subject}
    return pd.DataFrame(keys).groupby(list(keys), sort=False).cumcount().to_numpy(np.int64)


def _place(ijk: Any, affine: Any, volume_shape: Any, n_voxels: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Coordinates i, j, k and the attributes that give them a place in space."""
    coords: dict[str, Any] = {}
    attrs: dict[str, Any] = {}
    if affine is not None:
        matrix = np.asarray(affine, dtype=np.float64)
        if matrix.shape != (4, 4) and matrix.shape != (16,):
            raise DataError(f"affine has shape {matrix.shape} (expected (4, 4), as in nibabel's img.affine).")
        attrs["affine"] = [float(x) for x in matrix.ravel()]
    if volume_shape is not None:
        if len(volume_shape) != 3:
            raise DataError(
                f"volume_shape {tuple(volume_shape)} has {len(volume_shape)} numbers (expected 3)."
            )
        attrs["volume_shape"] = [int(x) for x in volume_shape]
    if ijk is not None:
        index = np.asarray(ijk)
        if index.shape != (n_voxels, 3) or index.dtype.kind not in "iu":
            raise DataError(
                f"ijk has shape {index.shape} and dtype {index.dtype} (expected ({n_voxels}, 3) integers: "
                "the voxel's indices into the volume)."
            )
        if len(attrs) < 2:
            missing = " and ".join(x for x in ("affine", "volume_shape") if x not in attrs)
            raise DataError(
                f"ijk given without {missing}: voxel indices have no place in space without them."
            )
        if n_voxels and ((index < 0) | (index >= np.array(attrs["volume_shape"]))).any():
            raise DataError(
                f"ijk ranges over {index.min(0).tolist()}..{index.max(0).tolist()}, outside a volume of shape "
                f"{attrs['volume_shape']}."
            )
        coords = {name: ("voxel", index[:, n].astype(np.int64)) for n, name in enumerate("ijk")}
    return coords, attrs


def make_responses(
    values: Any,
    *,
    stimulus: Any,
    dim: str = "presentation",
    subject: Any = None,
    session: Any = None,
    run: Any = None,
    repeat: Any = None,
    n_repeats: Any = None,
    voxel: Any = None,
    ijk: Any = None,
    vertex: Any = None,
    hemi: Any = None,
    roi: Any = None,
    ncsnr: Any = None,
    space: str = "unknown",
    affine: Any = None,
    volume_shape: Sequence[int] | None = None,
    units: str = "a.u.",
    zscored: str = "none",
    source: str = "",
    licence: str = "",
    provenance: str | Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Responses ``Y[n, v]`` of voxel ``v`` to presentation (or stimulus) ``n``, with every label attached.

    Parameters
    ----------
    values : array (n, voxel)
        Responses; stored as float32, without a copy if they are float32. Dask arrays stay lazy.
    stimulus : sequence of str (n,)
        Stimulus id of each row.
    dim : {"presentation", "stimulus"}
        "presentation": one row per trial; "stimulus": one row per stimulus (ids must be unique).
    subject : str or sequence of str (n,), optional
    session, run : int or sequence of int (n,), optional
        Left out when not given: a session that is not known is not invented.
    repeat : sequence of int (n,), optional
        0-based repeat of the stimulus for the subject; counted in row order when not given.
    n_repeats : int or sequence of int (n,), optional
        Presentations averaged into each row (stimulus form).
    voxel : sequence of int (voxel,), optional
        Unique voxel ids, 0..V-1 by default.
    ijk : int array (voxel, 3), optional
        Indices into the volume; needs ``affine`` and ``volume_shape``.
    vertex : int array (voxel,), optional
        Surface vertex numbers; needs ``hemi``.
    hemi : {"L", "R"} or sequence of them (voxel,), optional
    roi : sequence (voxel,) of str or of collections of str, or mapping name -> bool array (voxel,), optional
        ROI names of each voxel; several names are joined by ";", "" means none.
    ncsnr : float array (voxel,), optional
        Noise-ceiling signal-to-noise ratio (signal sd / noise sd of a single presentation, no unit).
    space : str
        Name of the space, e.g. "func1pt8mm", "fsaverage5".
    affine : array (4, 4), optional
        Voxel indices to millimetres.
    volume_shape : three ints, optional
    units : str
    zscored : {"none", "session", "run"}
        What has been done to the values already.
    source, licence : str
    provenance : str or mapping, optional
        One JSON string, or settings to write as one.

    Returns
    -------
    xarray.DataArray
        float32, name "responses", dims ``(dim, "voxel")``.

    Raises
    ------
    DataError
        A label has the wrong length or type, ids are duplicated, or a voxel lies outside the volume.

    Examples
    --------
    >>> import numpy as np
    >>> r = make_responses(np.zeros((3, 2)), stimulus=["a", "b", "a"], session=1, roi=["V1", ["FFA", "OFA"]])
    >>> r.dims, r.repeat.values.tolist(), r.roi.values.tolist()
    (('presentation', 'voxel'), [0, 0, 1], ['V1', 'FFA;OFA'])
    """
    if dim not in _SAMPLE_DIMS:
        raise DataError(
            f"dim={dim!r} is not legal; use 'presentation' (one row a trial) or 'stimulus' (averaged)."
        )
    if zscored not in ZSCORED:
        raise DataError(f"zscored={zscored!r} is not legal; use one of {', '.join(ZSCORED)}.")
    data = _float32(values)
    if data.ndim != 2:
        raise DataError(f"values have shape {data.shape} (expected two dimensions: ({dim}, voxel)).")
    n, n_voxels = (int(x) for x in data.shape)
    ids = string_ids(stimulus)
    if len(ids) != n:
        hint = " The array seems to be (voxel, sample): pass values.T." if len(ids) == n_voxels else ""
        raise DataError(f"values have {n} rows but {len(ids)} stimulus ids were given.{hint}")

    coords: dict[str, Any] = {}
    if dim == "stimulus":
        _unique(
            ids,
            "stimulus ids",
            "average the repeats (neuroenc.data.average_repeats) or use dim='presentation'",
        )
        coords["stimulus"] = ids
        if subject is not None and np.ndim(subject) == 0:
            coords["subject"] = str(subject)
            subject = None
        if n_repeats is not None:
            coords["n_repeats"] = ("stimulus", _along("n_repeats", n_repeats, n, np.int64, dim))
    else:
        coords["presentation"] = np.arange(n, dtype=np.int64)
        coords["stimulus"] = ("presentation", ids)
        if n_repeats is not None:
            raise DataError("n_repeats belongs to averaged responses; pass dim='stimulus' or leave it out.")
    if subject is not None:
        coords["subject"] = (dim, _along("subject", subject, n, str, dim))
    for name, value in (("session", session), ("run", run)):
        if value is not None:
            coords[name] = (dim, _along(name, value, n, np.int64, dim))
    if repeat is not None:
        coords["repeat"] = (dim, _along("repeat", repeat, n, np.int64, dim))
    elif dim == "presentation":
        coords["repeat"] = (dim, _repeat_numbers(ids, coords["subject"][1] if "subject" in coords else None))

    numbers = np.arange(n_voxels) if voxel is None else voxel
    coords["voxel"] = _along("voxel", numbers, n_voxels, np.int64, "voxel")
    _unique(coords["voxel"], "voxel ids", "give each voxel its own number (voxel=None counts from 0)")
    place, attrs = _place(ijk, affine, volume_shape, n_voxels)
    coords.update(place)
    if (vertex is None) != (hemi is None):
        raise DataError(
            "vertex and hemi belong together: a vertex number names a place only within a hemisphere."
        )
    if vertex is not None:
        coords["vertex"] = ("voxel", _along("vertex", vertex, n_voxels, np.int64, "voxel"))
        coords["hemi"] = ("voxel", _along("hemi", hemi, n_voxels, str, "voxel"))
        wrong = sorted(set(coords["hemi"][1].tolist()) - {"L", "R"})
        if wrong:
            raise DataError(f"hemi holds {wrong[:3]} (legal: 'L', 'R').")
    if roi is not None:
        coords["roi"] = ("voxel", _roi_strings(roi, n_voxels))
    if ncsnr is not None:
        coords["ncsnr"] = ("voxel", _along("ncsnr", ncsnr, n_voxels, np.float32, "voxel"))

    if provenance is None or isinstance(provenance, Mapping):
        provenance = _provenance(step="make_responses", **(provenance or {}))
    attrs = {"space": str(space), **attrs, "units": str(units), "zscored": zscored, "source": str(source),
             "licence": str(licence), "provenance": provenance}  # fmt: skip
    return xr.DataArray(data, dims=(dim, "voxel"), coords=coords, attrs=attrs, name="responses")


def make_features(
    values: Any,
    *,
    stimulus: Any,
    dims: Sequence[str] | None = None,
    backbone: str = "unknown",
    weights: str = "",
    layer: str = "",
    pooling: str = "",
    normalised: bool = False,
    provenance: str | Mapping[str, Any] | None = None,
    **coords: Any,
) -> xr.DataArray:
    """Features ``X[n, ...]`` of stimulus ``n``, with ids and the way they were computed.

    Parameters
    ----------
    values : array (stimulus, feature) or (stimulus, token, feature) or (stimulus, channel, y, x)
        Stored as float32, without a copy if they are float32.
    stimulus : sequence of str (stimulus,)
    dims : sequence of str, optional
        Names of the dimensions; by default those above, chosen by the number of dimensions.
    backbone, weights, layer, pooling : str
    normalised : bool
        Whether each feature vector has unit Euclidean norm.
    provenance : str or mapping, optional
    **coords
        Further coordinates: ``feature=names`` for a dimension, ``name=(dim, values)`` otherwise.

    Returns
    -------
    xarray.DataArray
        float32, name "features"; ``attrs["content_hash"]`` is a SHA-256 over values and ids.

    Raises
    ------
    DataError
        Number of dimensions, ids or coordinates do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> x = make_features(np.eye(2), stimulus=["a", "b"], backbone="identity", normalised=True)
    >>> x.dims, x.attrs["normalised"]
    (('stimulus', 'feature'), 1)
    """
    data = _float32(values)
    if dims is None:
        if data.ndim not in FEATURE_DIMS:
            raise DataError(
                f"features have shape {data.shape}; legal are (stimulus, feature), (stimulus, token, feature) "
                "and (stimulus, channel, y, x). Next step: reshape, or name the dimensions with dims=(...)."
            )
        dims = FEATURE_DIMS[data.ndim]
    dims = tuple(dims)
    if len(dims) != data.ndim or dims[0] != "stimulus":
        raise DataError(
            f"dims {dims} do not name an array of shape {data.shape} whose first dimension is stimulus."
        )
    ids = string_ids(stimulus)
    if len(ids) != data.shape[0]:
        raise DataError(f"features have {data.shape[0]} rows but {len(ids)} stimulus ids were given.")
    labels: dict[str, Any] = {"stimulus": ids}
    for name, value in coords.items():
        if name not in dims and not (isinstance(value, tuple) and len(value) == 2 and value[0] in dims):
            raise DataError(
                f"coordinate {name!r} needs its dimension: {name}=(dim, values) with dim in {dims}."
            )
        along, label = (name, value) if name in dims else value
        if np.shape(label) != (data.shape[dims.index(along)],):
            raise DataError(
                f"coordinate {name!r} has shape {np.shape(label)} (expected ({data.shape[dims.index(along)]},), "
                f"the length of {along!r})."
            )
        labels[name] = (along, np.asarray(label))
    if provenance is None or isinstance(provenance, Mapping):
        provenance = _provenance(step="make_features", **(provenance or {}))
    attrs = {"backbone": str(backbone), "weights": str(weights), "layer": str(layer), "pooling": str(pooling),
             "normalised": int(bool(normalised)), "content_hash": _hash_rows(data, ids),
             "provenance": provenance}  # fmt: skip
    return xr.DataArray(data, dims=dims, coords=labels, attrs=attrs, name="features")


def _hash_rows(data: Any, ids: np.ndarray, block_bytes: int = 2**26) -> str:
    """SHA-256 of values and ids, read in blocks of rows so that lazy arrays never come whole."""
    digest = hashlib.sha256(f"{data.dtype.str}{tuple(data.shape)}{hash_array(ids)}".encode())
    step = max(1, block_bytes // max(1, 4 * int(np.prod(data.shape[1:]))))
    for start in range(0, data.shape[0], step):
        block = np.ascontiguousarray(data[start : start + step])
        digest.update(memoryview(block).cast("B") if block.size else b"")
    return digest.hexdigest()


def _unique(values: np.ndarray, what: str, step: str) -> None:
    labels, counts = np.unique(values, return_counts=True)
    twice = labels[counts > 1]
    if twice.size:
        raise DataError(
            f"{twice.size} {what} occur more than once, first {twice[:3].tolist()}. Next step: {step}."
        )
