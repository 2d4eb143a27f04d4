"""Labels of rows and voxels: checked, typed, and joined to the arrays that they name."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.arrays import as_numpy
from neuroenc._core.errors import DataError

# What cannot be less: counts, places and ratios.
_LEAST = {"repeat": 0, "n_repeats": 1, "vertex": 0, "ncsnr": 0}


def check_labelled(array: Any, what: str) -> None:
    """Refuse what is no labelled array (numpy, None) where labels are needed."""
    if not isinstance(array, (xr.DataArray, xr.Dataset)):
        raise DataError(
            f"{what} is a {type(array).__name__}, not an xarray.DataArray. Next step: make_responses or make_features."
        )


def refuse_multiindex(obj: xr.DataArray | xr.Dataset) -> None:
    """Refuse an index of several levels, which neither netCDF nor zarr keeps."""
    for name, index in obj.indexes.items():
        if index.nlevels > 1:
            raise DataError(f"{name!r} is a MultiIndex of {list(index.names)}. Next step: .reset_index({str(name)!r}).")


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
    if array.dtype.kind == "O" or array.dtype.kind == "T":
        bad = [x for x in array if not isinstance(x, str)]
        if not bad:
            array = array.astype(str)
    else:
        bad = [] if array.dtype.kind == "U" or not array.size else list(array[:1])
    if bad:
        raise DataError(f"{what} ids must be text, found {bad[0]!r}. Next step: {what}=[str(x) for x in ids].")
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
                f"{what} ids {other!a} and {text!a} differ in how accents are composed: normalise them to NFC."
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
                    f"{at} is {cell!r} in {array.dtype}, which rounds it. Next step: read the column as text."
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
        for name, mask in roi.items():
            if np.shape(mask) != (n_voxels,) or np.asarray(mask).dtype != bool:
                raise DataError(
                    f"roi[{name!r}] is {np.asarray(mask).dtype} {np.shape(mask)} (expected bool ({n_voxels},))."
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
            raise DataError(f"ijk is {index.dtype} of shape {index.shape} (expected integer indices ({n_voxels}, 3)).")
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
            f"affine {matrix.round(3).tolist()} places no volume: finite, spanning, and 0, 0, 0, 1 as its last row."
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
