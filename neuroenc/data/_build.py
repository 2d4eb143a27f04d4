"""Builders of the two arrays that cross every door, responses and features, and checks of their labels."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc._core.files import hash_array
from neuroenc._core.provenance import provenance as _provenance

FEATURE_DIMS = {2: ("stimulus", "feature"), 3: ("stimulus", "token", "feature"), 4: ("stimulus", "channel", "y", "x")}
ZSCORED = ("none", "session", "run")
_SAMPLE_DIMS = ("presentation", "stimulus")
# What cannot be less: counts, places and ratios.
_LEAST = {"repeat": 0, "n_repeats": 1, "vertex": 0, "ncsnr": 0}


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
    one_of("dim", dim, _SAMPLE_DIMS)
    one_of("zscored", zscored, ZSCORED)
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
            ids, "stimulus ids", "average the repeats (neuroenc.data.average_repeats), or dim='presentation'"
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
    for name, value in (("session", session), ("run", run), ("repeat", repeat)):
        if value is not None:
            coords[name] = (dim, along(name, value, n, np.int64, dim))
    if repeat is None and dim == "presentation":
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
    attrs = {"space": str(space), **attrs, "units": str(units), "zscored": zscored, "source": str(source)}
    attrs |= {"licence": str(licence), "provenance": provenance}
    return xr.DataArray(data, dims=(dim, "voxel"), coords=coords, attrs=attrs, name="responses")


def make_features(
    values: Any,
    *,
    stimulus: Any,
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
    if data.ndim not in FEATURE_DIMS:
        raise DataError(
            f"features have shape {data.shape}; legal are (stimulus, feature), (stimulus, token, feature) and "
            "(stimulus, channel, y, x)."
        )
    dims = FEATURE_DIMS[data.ndim]
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
    names = {"backbone": backbone, "weights": weights, "layer": layer, "pooling": pooling}
    attrs: dict[str, Any] = {name: str(value) for name, value in names.items()}
    attrs |= {"normalised": int(bool(normalised)), "content_hash": _hash_rows(data, ids), "provenance": provenance}
    return xr.DataArray(data, dims=dims, coords=labels, attrs=attrs, name="features")


def _hash_rows(data: Any, ids: np.ndarray, block_bytes: int = 2**26) -> str:
    """SHA-256 of values and ids, read in blocks of rows so that lazy arrays never come whole."""
    digest = hashlib.sha256(f"{data.dtype.str}{tuple(data.shape)}{hash_array(ids)}".encode())
    step = max(1, block_bytes // max(1, 4 * int(np.prod(data.shape[1:]))))
    for start in range(0, data.shape[0], step):
        block = np.ascontiguousarray(data[start : start + step])
        digest.update(block.tobytes())
    return digest.hexdigest()


def check_labelled(array: Any, what: str) -> None:
    """Refuse what is no labelled array (numpy, None) where labels are needed."""
    if not isinstance(array, (xr.DataArray, xr.Dataset)):
        raise DataError(
            f"{what} is a {type(array).__name__}, and labels are needed (an xarray.DataArray). "
            "Next step: neuroenc.data.make_responses(values, stimulus=ids) or make_features."
        )


def refuse_multiindex(obj: xr.DataArray | xr.Dataset) -> None:
    """Refuse an index of several levels, which neither netCDF nor zarr keeps."""
    for name, index in obj.indexes.items():
        if index.nlevels > 1:
            raise DataError(
                f"{name!r} is a MultiIndex of {list(index.names)}, which no file format keeps. "
                f"Next step: .reset_index({str(name)!r})."
            )


def string_ids(values: Any, what: str = "stimulus") -> np.ndarray:
    """Ids as a '<U' array; anything that is not text, or is empty text, is an error.

    >>> string_ids(["a", "bc"]).dtype.kind
    'U'
    """
    array = np.asarray(values)
    if array.dtype.kind in "US" and isinstance(values, (list, tuple)):
        # numpy writes NaN and None of a list of texts as the words "nan" and "None".
        array = np.array([*values, None], dtype=object)[:-1]
    if array.ndim != 1:
        raise DataError(f"{what} ids have shape {array.shape} (expected one dimension). Next step: ids.ravel().")
    bad = [] if array.dtype.kind == "U" else [x for x in array.tolist() if not isinstance(x, str)]
    if bad:
        raise DataError(
            f"{what} ids must be text, found {bad[0]!r} ({type(bad[0]).__name__}); numbers lose leading zeros in "
            f"files. Next step: {what}=[str(x) for x in ids]."
        )
    array = array.astype(str)
    broken = [x for x in array.tolist() if not x.isprintable()]
    if broken:
        raise DataError(f"{what} id {broken[0]!r} has characters that cannot be printed. Next step: rename it.")
    if array.size and (array == "").any():
        raise DataError(f"{int((array == '').sum())} {what} ids are empty, first at {int(np.argmax(array == ''))}.")
    _check_composition(array, what)
    return array


def _check_composition(ids: np.ndarray, what: str) -> None:
    """Two ids that look alike and differ in how their accents are composed would be two stimuli, or none."""
    if not ids.size or np.ascontiguousarray(ids).view(np.uint32).max(initial=0) < 128:
        return
    seen: dict[str, str] = {}
    for text in dict.fromkeys(ids.tolist()):
        other = seen.setdefault(unicodedata.normalize("NFC", text), text)
        if other != text:
            raise DataError(
                f"{what} ids {other!a} and {text!a} look the same and differ in how accents are composed. "
                "Next step: unicodedata.normalize('NFC', id) for all of them."
            )


def stimulus_names(values: Any, where: str) -> np.ndarray:
    """Ids of a table's column: text without blanks at its ends, or whole numbers as they are written.

    Numbers between whole ones, and those of float32 beyond 2**24, where neighbours are one number, are refused.

    >>> stimulus_names(np.array([12.0, 7.0]), "trials").tolist()
    ['12', '7']
    """
    array = np.asarray(values)
    found: list[str] = []
    cells: list[Any] = array.tolist()
    for n, cell in enumerate(cells):
        at = f"{where}, row {n + 1}: stimulus"
        if cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()):
            raise DataError(f"{at} is empty. Next step: name it, or leave the trial out of table and responses.")
        if isinstance(cell, (float, np.floating)):
            if not float(cell).is_integer():
                raise DataError(f"{at} is {cell!r}; picture numbers must be whole. Next step: name stimuli by text.")
            if abs(float(cell)) >= (2**24 if array.dtype.itemsize < 8 and array.dtype.kind == "f" else 2**53):
                raise DataError(
                    f"{at} is {cell!r} in {array.dtype}, which cannot tell it from its neighbours. "
                    "Next step: read the column as text or integers."
                )
            cell = int(cell)
        if isinstance(cell, bool) or not isinstance(cell, (str, int, np.integer)):
            raise DataError(f"{at} is {cell!r} ({type(cell).__name__}); expected text or a whole number.")
        found.append(str(cell).strip())
    return string_ids(np.array(found, dtype=str))


def as_float32(values: Any) -> Any:
    """Values as float32 without a copy where they are float32 already; dask arrays stay lazy."""
    if isinstance(values, (xr.DataArray, xr.Variable)):
        values = values.data
    if hasattr(values, "dask"):
        return values if values.dtype == np.float32 else values.astype(np.float32)
    array = as_numpy(values)
    if array.dtype.kind not in "fiub":
        raise DataError(f"values have dtype {array.dtype} (expected real numbers).")
    with np.errstate(over="ignore"):
        found = array.astype(np.float32, copy=False)
    if found is not array and array.dtype.itemsize > 4 and np.isinf(found).sum() > np.isinf(array).sum():
        largest = np.abs(array[np.isinf(found) & np.isfinite(array)].astype(np.float64)).max()
        raise DataError(f"values up to {largest:.3g} do not fit into float32. Next step: change their unit.")
    return found


def along(name: str, values: Any, n: int, dtype: Any, per: str) -> np.ndarray:
    """One value per item, or one for all; length and integer values are checked."""
    array = np.asarray(values) if np.ndim(values) else np.full(n, values)
    if array.shape != (n,):
        raise DataError(f"{name} has shape {array.shape} (expected ({n},): one value per {per}).")
    if dtype is str:
        if array.dtype.kind not in "UOT" or not all(isinstance(x, str) for x in array.tolist()):
            raise DataError(f"{name} must be text, found {array[:1].tolist()} of dtype {array.dtype}.")
        return array.astype(str)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} must be numbers, found dtype {array.dtype}, first value {array[:1].tolist()}.")
    if dtype is np.int64 and array.dtype.kind == "f" and not (np.isfinite(array) & (array == np.round(array))).all():
        raise DataError(f"{name} must be whole numbers, found {array[array != np.round(array)][:3].tolist()}.")
    found = array.astype(dtype)
    if name in _LEAST and (found < _LEAST[name]).any():
        raise DataError(f"{name} holds {found[found < _LEAST[name]][0]}; legal are numbers from {_LEAST[name]} on.")
    return found


def roi_strings(roi: Any, n_voxels: int) -> np.ndarray:
    """ROI names of each voxel joined by ';'."""
    if isinstance(roi, Mapping):
        for name, m in roi.items():
            if np.shape(m) != (n_voxels,) or np.asarray(m).dtype != bool:
                raise DataError(
                    f"roi[{name!r}] has shape {np.shape(m)} and dtype {np.asarray(m).dtype} (expected ({n_voxels},) "
                    "and bool: one flag per voxel)."
                )
        if not roi:
            return np.full(n_voxels, "", dtype="<U1")
        # Every combination is written once, however many voxels share it.
        flags = np.stack([np.asarray(mask) for mask in roi.values()], axis=1)
        unique, inverse = np.unique(np.packbits(flags, axis=1), axis=0, return_inverse=True)
        rows = np.unpackbits(unique, axis=1, count=len(roi)).astype(bool)
        sets = [[str(name) for name, flag in zip(roi, row) if flag] for row in rows.tolist()]
        return roi_strings(sets, len(sets))[inverse.reshape(-1)]
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


def repeat_numbers(stimulus: np.ndarray, subject: np.ndarray | None) -> np.ndarray:
    """0-based count of earlier presentations of the same stimulus to the same subject."""
    keys = {"stimulus": stimulus} if subject is None else {"stimulus": stimulus, "subject": subject}
    return pd.DataFrame(keys).groupby(list(keys), sort=False).cumcount().to_numpy(np.int64)


def place(ijk: Any, affine: Any, volume_shape: Any, n_voxels: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Coordinates i, j, k and the attributes that give them a place in space."""
    coords: dict[str, Any] = {}
    attrs: dict[str, Any] = {}
    if affine is not None:
        attrs["affine"] = [float(x) for x in check_place(affine, (1, 1, 1))[0].ravel()]
    if volume_shape is not None:
        attrs["volume_shape"] = list(check_place(np.eye(4), volume_shape)[1])
    if ijk is not None:
        index = np.asarray(ijk)
        if index.shape != (n_voxels, 3) or index.dtype.kind not in "iu":
            raise DataError(
                f"ijk has shape {index.shape} and dtype {index.dtype} (expected ({n_voxels}, 3) integers: the voxel's "
                "indices into the volume)."
            )
        if len(attrs) < 2:
            missing = " and ".join(x for x in ("affine", "volume_shape") if x not in attrs)
            raise DataError(f"ijk given without {missing}: voxel indices have no place in space without them.")
        inside_volume(index, attrs["volume_shape"])
        coords = {name: ("voxel", index[:, n].astype(np.int64)) for n, name in enumerate("ijk")}
    return coords, attrs


def check_place(affine: Any, shape: Any) -> tuple[np.ndarray, tuple[int, ...]]:
    """Affine (4, 4) and shape of a volume, from attributes that may come from any file.

    Raises
    ------
    DataError
        The affine has no 16 finite numbers, a last row other than 0, 0, 0, 1 or no extent; or the shape is not three
        positive whole numbers.
    """
    try:
        matrix = np.asarray(affine, dtype=float).reshape(4, 4)
    except (TypeError, ValueError) as error:
        raise DataError(f"affine is {str(affine)[:60]!r}; expected 16 numbers, the rows of a 4 x 4 matrix.") from error
    flat = not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12
    if flat or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise DataError(
            f"affine {matrix.round(3).tolist()} places no volume: it needs finite numbers, axes that span a "
            "volume, and the last row 0, 0, 0, 1."
        )
    sizes = np.asarray(shape)
    if sizes.shape != (3,) or sizes.dtype.kind not in "iuf" or (sizes != np.round(sizes)).any() or (sizes < 1).any():
        raise DataError(f"volume_shape is {str(shape)[:60]!r}; expected three whole numbers of at least 1.")
    return matrix, (int(sizes[0]), int(sizes[1]), int(sizes[2]))


def inside_volume(ijk: np.ndarray, shape: Any) -> None:
    """Refuse voxel indices outside of the volume."""
    if ijk.size and ((ijk < 0) | (ijk >= np.asarray(shape))).any():
        low, high = ijk.min(0).tolist(), ijk.max(0).tolist()
        raise DataError(f"i, j, k range over {low}..{high}, outside a volume of {tuple(shape)}.")


def check_hemi(hemi: np.ndarray) -> None:
    """Refuse names of hemispheres other than L and R."""
    wrong = sorted(set(np.asarray(hemi).tolist()) - {"L", "R"})
    if wrong:
        raise DataError(f"hemi holds {wrong[:3]} (legal: 'L', 'R').")


def require_unique(values: np.ndarray, what: str, step: str) -> None:
    labels, counts = np.unique(values, return_counts=True)
    twice = labels[counts > 1]
    if twice.size:
        raise DataError(f"{twice.size} {what} occur more than once, first {twice[:3].tolist()}. Next step: {step}.")


def provenance_step(attrs: Mapping[Any, Any], name: str, **settings: Any) -> str:
    """The provenance string with one more entry in its list of ``steps``.

    >>> provenance_step({"provenance": "{}"}, "zscore", by="run")
    '{"steps": [{"step": "zscore", "by": "run"}]}'
    """
    text = str(attrs.get("provenance", "") or "{}")
    try:
        record = json.loads(text)
    except json.JSONDecodeError:
        record = {"before": text}
    if not isinstance(record, dict):
        record = {"before": record}
    record["steps"] = [*record.get("steps", []), {"step": name, **settings}]
    return json.dumps(record)
