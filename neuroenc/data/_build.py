"""Builders of the two arrays that cross every door: responses and features."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc._core.files import hash_array
from neuroenc._core.provenance import provenance as _provenance
from neuroenc.data._labels import (
    along,
    as_float32,
    check_hemi,
    place,
    repeat_numbers,
    require_unique,
    roi_strings,
    string_ids,
)

FEATURE_DIMS = {2: ("stimulus", "feature"), 3: ("stimulus", "token", "feature"), 4: ("stimulus", "channel", "y", "x")}
ZSCORED = ("none", "session", "run")
_SAMPLE_DIMS = ("presentation", "stimulus")


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
        raise DataError(f"dim={dim!r} is not legal; use 'presentation' (one row a trial) or 'stimulus' (averaged).")
    if zscored not in ZSCORED:
        raise DataError(f"zscored={zscored!r} is not legal; use one of {', '.join(ZSCORED)}.")
    data = as_float32(values)
    if data.ndim != 2:
        raise DataError(f"values have shape {data.shape} (expected two dimensions: ({dim}, voxel)).")
    n, n_voxels = (int(x) for x in data.shape)
    ids = string_ids(stimulus)
    if len(ids) != n:
        hint = " The array seems to be (voxel, sample): pass values.T." if len(ids) == n_voxels else ""
        raise DataError(f"values have {n} rows but {len(ids)} stimulus ids were given.{hint}")

    coords: dict[str, Any] = {}
    if dim == "stimulus":
        require_unique(
            ids, "stimulus ids", "average the repeats (neuroenc.data.average_repeats) or use dim='presentation'"
        )
        coords["stimulus"] = ids
        if subject is not None and np.ndim(subject) == 0:
            coords["subject"] = str(subject)
            subject = None
        if n_repeats is not None:
            coords["n_repeats"] = ("stimulus", along("n_repeats", n_repeats, n, np.int64, dim))
    else:
        coords["presentation"] = np.arange(n, dtype=np.int64)
        coords["stimulus"] = ("presentation", ids)
        if n_repeats is not None:
            raise DataError("n_repeats belongs to averaged responses; pass dim='stimulus' or leave it out.")
    if subject is not None:
        coords["subject"] = (dim, along("subject", subject, n, str, dim))
    for name, value in (("session", session), ("run", run)):
        if value is not None:
            coords[name] = (dim, along(name, value, n, np.int64, dim))
    if repeat is not None:
        coords["repeat"] = (dim, along("repeat", repeat, n, np.int64, dim))
    elif dim == "presentation":
        coords["repeat"] = (dim, repeat_numbers(ids, coords["subject"][1] if "subject" in coords else None))

    numbers = np.arange(n_voxels) if voxel is None else voxel
    coords["voxel"] = along("voxel", numbers, n_voxels, np.int64, "voxel")
    require_unique(coords["voxel"], "voxel ids", "give each voxel its own number (voxel=None counts from 0)")
    where, attrs = place(ijk, affine, volume_shape, n_voxels)
    coords.update(where)
    if (vertex is None) != (hemi is None):
        raise DataError("vertex and hemi belong together: a vertex number names a place only within a hemisphere.")
    if vertex is not None:
        coords["vertex"] = ("voxel", along("vertex", vertex, n_voxels, np.int64, "voxel"))
        coords["hemi"] = ("voxel", along("hemi", hemi, n_voxels, str, "voxel"))
        check_hemi(coords["hemi"][1])
    if roi is not None:
        coords["roi"] = ("voxel", roi_strings(roi, n_voxels))
    if ncsnr is not None:
        coords["ncsnr"] = ("voxel", along("ncsnr", ncsnr, n_voxels, np.float32, "voxel"))

    if provenance is None or isinstance(provenance, Mapping):
        provenance = _provenance(step="make_responses", **(provenance or {}))
    attrs = {
        "space": str(space),
        **attrs,
        "units": str(units),
        "zscored": zscored,
        "source": str(source),
        "licence": str(licence),
        "provenance": provenance,
    }
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
    data = as_float32(values)
    if dims is None:
        if data.ndim not in FEATURE_DIMS:
            raise DataError(
                f"features have shape {data.shape}; legal are (stimulus, feature), (stimulus, token, feature), "
                "(stimulus, channel, y, x), or dims=(...)."
            )
        dims = FEATURE_DIMS[data.ndim]
    dims = tuple(dims)
    if len(dims) != data.ndim or dims[0] != "stimulus":
        raise DataError(f"dims {dims} do not name an array of shape {data.shape} whose first dimension is stimulus.")
    ids = string_ids(stimulus)
    if len(ids) != data.shape[0]:
        raise DataError(f"features have {data.shape[0]} rows but {len(ids)} stimulus ids were given.")
    labels: dict[str, Any] = {"stimulus": ids}
    for name, value in coords.items():
        if name not in dims and not (isinstance(value, tuple) and len(value) == 2 and value[0] in dims):
            raise DataError(f"coordinate {name!r} needs its dimension: {name}=(dim, values) with dim in {dims}.")
        axis, label = (name, value) if name in dims else value
        if np.shape(label) != (data.shape[dims.index(axis)],):
            raise DataError(f"coordinate {name!r} has shape {np.shape(label)} (expected one value along {axis!r}).")
        labels[name] = (axis, np.asarray(label))
    if provenance is None or isinstance(provenance, Mapping):
        provenance = _provenance(step="make_features", **(provenance or {}))
    attrs = {
        "backbone": str(backbone),
        "weights": str(weights),
        "layer": str(layer),
        "pooling": str(pooling),
        "normalised": int(bool(normalised)),
        "content_hash": _hash_rows(data, ids),
        "provenance": provenance,
    }
    return xr.DataArray(data, dims=dims, coords=labels, attrs=attrs, name="features")


def _hash_rows(data: Any, ids: np.ndarray, block_bytes: int = 2**26) -> str:
    """SHA-256 of values and ids, read in blocks of rows so that lazy arrays never come whole."""
    digest = hashlib.sha256(f"{data.dtype.str}{tuple(data.shape)}{hash_array(ids)}".encode())
    step = max(1, block_bytes // max(1, 4 * int(np.prod(data.shape[1:]))))
    for start in range(0, data.shape[0], step):
        block = np.ascontiguousarray(data[start : start + step])
        digest.update(block.tobytes())
    return digest.hexdigest()
