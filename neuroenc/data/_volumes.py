"""Volumes in and out: the voxels of a mask with their indices and ROI names, and values back in their volume."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from nibabel.nifti1 import Nifti1Image

from neuroenc._core.errors import DataError
from neuroenc._core.files import check_readable_file
from neuroenc._core.tables import decode_text, raw_cells, read_table
from neuroenc.data._build import check_place, inside_volume, make_responses, roi_strings
from neuroenc.data._images import binary_mask, check_affine, image_values, label_values, mask_on, open_image, open_mask


def label_rois(image: Any, table: Mapping[Any, Any] | str | os.PathLike[str]) -> dict[str, Nifti1Image]:
    """One mask image per name of a label image; labels of 0 and below are background.

    Parameters
    ----------
    image : nibabel image or path
        Whole numbers, shape (x, y, z).
    table : mapping label -> name (or name -> label), or path of a text table
        Lines ``label name ...`` (FreeSurfer ``.ctab``), or a table with columns ``index`` (or ``label``) and ``name``
        (BIDS ``_dseg.tsv``, CSV). Labels with the same name become one ROI; one label with two names is an error.

    Returns
    -------
    dict name -> Nifti1Image (uint8, 0 and 1)

    Raises
    ------
    DataError
        The image holds other than whole numbers, or a label that the table does not name.

    Examples
    --------
    >>> import nibabel, numpy as np
    >>> image = nibabel.Nifti1Image(np.array([[[0, 1, 2, 3]]], "int16"), np.eye(4))
    >>> rois = label_rois(image, {1: "V1", 2: "V1", 3: "FFA"})
    >>> {name: int(np.asarray(mask.dataobj).sum()) for name, mask in rois.items()}
    {'V1': 2, 'FFA': 1}
    """
    image = open_image(image, "label image")
    names = _label_names(table.items(), "the table") if isinstance(table, Mapping) else read_labels(Path(table))
    values = label_values(image, "label image")
    found = np.unique(values)
    unknown = sorted({int(x) for x in found if x > 0} - set(names))
    if unknown:
        raise DataError(
            f"{len(unknown)} labels have no name, first {unknown[:5]}; the table names {sorted(names)[:20]}. "
            "Next step: add them to the table."
        )
    rois: dict[str, Nifti1Image] = {}
    for name in dict.fromkeys(v for k, v in names.items() if k > 0):
        labels = [k for k, v in names.items() if v == name and k > 0]
        rois[name] = Nifti1Image(np.isin(values, labels).astype(np.uint8), image.affine)
    return rois


def _whole(value: Any) -> int | None:
    """A label as a whole number: 3, "3", "3.0"; None for anything else."""
    if isinstance(value, str) and (not value.isascii() or "_" in value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if not isinstance(value, bool) and np.isfinite(number) and number == int(number) else None


def _label_names(pairs: Iterable[tuple[Any, Any]], where: str) -> dict[int, str]:
    """Label -> name; pairs that are all (name, label) are turned."""
    rows = list(pairs)
    if rows and all(_whole(a) is None and _whole(b) is not None for a, b in rows):
        rows = [(b, a) for a, b in rows]
    names: dict[int, str] = {}
    for n, (label, name) in enumerate(rows):
        number = _whole(label)
        if number is None or not isinstance(name, str) or not name.strip():
            raise DataError(
                f"{where}, row {n + 1}: {label!r} -> {name!r} is no label and its name; expected a whole number and a "
                "text, as in 1 -> 'V1'."
            )
        name = name.strip()
        if names.setdefault(number, name) != name:
            raise DataError(f"{where}, row {n + 1}: label {number} is {name!r} here and {names[number]!r} before.")
    return names


def read_labels(path: Path) -> dict[int, str]:
    """Labels and names of a FreeSurfer colour table or a BIDS segmentation table."""
    path = check_readable_file(path.expanduser(), "table of labels")
    lines = [x for x in decode_text(path.read_bytes(), path).splitlines() if x.strip()]
    lines = [x for x in lines if not x.lstrip().startswith("#")]
    sep = "," if path.suffix.lower() == ".csv" else "\t"
    header = [x.strip().strip('"').casefold() for x in lines[0].split(sep)] if lines else []
    if "name" in header and ("index" in header or "label" in header):
        label = "index" if "index" in header else "label"
        table = raw_cells(read_table(path, (label, "name"), sep=sep, what="table of labels"))
        rows = list(zip(table[label], table["name"], strict=True))
    else:
        # Free columns, as in FreeSurfer's colour tables: names hold no spaces there.
        split = [line.split(None if sep == "\t" else sep) for line in lines]
        short = next((n for n, row in enumerate(split) if len(row) < 2 or _whole(row[0]) is None), None)
        if short is not None:
            raise DataError(
                f"{path} is not a table of labels: its line {lines[short]!r} has no whole number and name. "
                "Next step: lines 'label name ...', or columns index and name."
            )
        rows = [(row[0], row[1]) for row in split]
    if not rows:
        raise DataError(f"{path} is not a table of labels: it is empty.")
    return _label_names(rows, str(path))


@dataclass(frozen=True, eq=False)
class Masked:
    """Voxels of a mask, with what is needed to put them back.

    ``values`` float32 (time, voxel); ``ijk`` int64 (voxel, 3), in C order of the mask; ``roi`` (voxel,) ROI
    names joined by ";"; ``affine`` (4, 4) mm; ``volume_shape``.
    """

    values: np.ndarray
    ijk: np.ndarray
    roi: np.ndarray
    affine: np.ndarray
    volume_shape: tuple[int, int, int]

    def responses(self, values: Any = None, **labels: Any) -> xr.DataArray:
        """:func:`make_responses` of this mask's voxels; ``values`` (n, voxel) default to the masked."""
        place = {"ijk": self.ijk, "roi": self.roi, "affine": self.affine, "volume_shape": self.volume_shape}
        return make_responses(self.values if values is None else values, **{**place, **labels})


def load_masked(images: Any, mask: Any, rois: Mapping[str, Any] | None = None) -> Masked:
    """Values of the mask's voxels over time, with indices and ROI names.

    Parameters
    ----------
    images : nibabel image or path, or sequence of them
        BOLD (x, y, z, time) or single maps (x, y, z); several are joined along time.
    mask : nibabel image or path
        Its voxels above 0 are taken in C order; values below 0 are told, several above 0 are an error.
        ``"FILE.nii.gz:1"`` takes the voxels of one label.
    rois : mapping name -> nibabel image or path, optional
        A mask per ROI, or ``"FILE.nii.gz:1"`` for one label of an image (:func:`region_mask`; :func:`label_rois` for
        all labels). Voxels outside ``mask`` are left out.

    Returns
    -------
    Masked
        ``values`` float32 (time, voxel).

    Raises
    ------
    DataError
        Shapes or affines of mask, ROIs and data differ, the mask is empty or ambiguous, an ROI has no
        voxel in the mask, or a file is damaged.

    Examples
    --------
    >>> import nibabel, numpy as np
    >>> bold = nibabel.Nifti1Image(np.arange(8, dtype="float32").reshape(2, 2, 1, 2), np.eye(4))
    >>> mask = nibabel.Nifti1Image(np.array([[[1], [0]], [[1], [1]]], "uint8"), np.eye(4))
    >>> part = load_masked(bold, mask)
    >>> part.values.tolist(), part.ijk.tolist()
    ([[0.0, 4.0, 6.0], [1.0, 5.0, 7.0]], [[0, 0, 0], [1, 0, 0], [1, 1, 0]])
    """
    items = list(images) if isinstance(images, (list, tuple)) else [images]
    if not items:
        raise DataError("no images were given.")
    mask = open_mask(mask, "mask")
    inside = binary_mask(mask, "mask")
    if not inside.any():
        raise DataError(f"the mask is empty: 0 of {inside.size} voxels.")
    ijk = np.argwhere(inside).astype(np.int64)
    flags = {name: roi_flags(name, item, mask, "mask") for name, item in (rois or {}).items()}
    for name, here in flags.items():
        if not here[inside].any():
            raise DataError(f"roi {name!r} has {int(here.sum())} voxels, none of them in the mask of {len(ijk)}.")
    roi = roi_strings({name: here[inside] for name, here in flags.items()}, len(ijk))
    parts = []
    for n, item in enumerate(items):
        what = "data" if len(items) == 1 else f"image {n}"
        image = open_image(item, what)
        if len(image.shape) not in (3, 4):
            raise DataError(f"{what} has shape {tuple(image.shape)} (expected (x, y, z) or (x, y, z, time)).")
        check_affine(mask, image, names=("mask", what))
        values = image_values(image, what, np.float32)
        parts.append(np.atleast_2d(values[inside].T))
    values = np.ascontiguousarray(parts[0]) if len(parts) == 1 else np.concatenate(parts)
    a, b, c = inside.shape
    affine = np.asarray(mask.affine, dtype=np.float64)
    return Masked(values, ijk, roi, affine, (a, b, c))


def placed(voxel: np.ndarray, shape: Sequence[int], affine: Any) -> dict[str, Any]:
    """Arguments of `make_responses` that place the flat numbers ``voxel`` (C order) in a volume."""
    ijk = np.stack(np.unravel_index(voxel, tuple(shape)), axis=1)
    return {"voxel": voxel, "ijk": ijk, "affine": affine, "volume_shape": tuple(shape)}


def roi_flags(name: str, item: Any, like: Any, like_name: str) -> np.ndarray:
    """Voxels of one named region, bool (x, y, z), checked to lie where ``like`` lies."""
    if not name or not isinstance(name, str) or ";" in name:
        raise DataError(f"roi name {name!r} is not legal: a name is text without ';'.")
    return mask_on(like, item, f"roi {name!r}", like_name)


#: Seconds between volumes that a recording can have.
SHORTEST, LONGEST = 0.05, 30.0


def seconds(image: Any) -> float | None:
    """Repetition time of the header, in seconds; None where the header does not say, or says what cannot be.

    Without a unit the number says nothing: libraries write 1.0 where nobody told them.
    """
    zooms = image.header.get_zooms()
    unit = image.header.get_xyzt_units()[1] if hasattr(image.header, "get_xyzt_units") else "msec"
    scale = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}.get(unit)
    if scale is None or len(zooms) < 4:
        return None
    found = float(np.round(float(zooms[3]) * scale, 6))
    return found if SHORTEST <= found <= LONGEST else None


def _where(values: Any, like: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Indices (voxel, 3), affine and volume shape as the values carry them, and where they do not, ``like``."""
    both = [x for x in (values, like) if isinstance(x, (xr.DataArray, xr.Dataset))]
    if len(both) == 2 and all("voxel" in x.coords for x in both):
        here, there = (x["voxel"].values for x in both)
        if not np.array_equal(here, there):
            raise DataError(
                f"values have {here.size} voxels and 'like' has {there.size}, with other ids. "
                "Next step: like.sel(voxel=values.voxel)."
            )
    known: dict[str, list[Any]] = {"i, j, k": [], "affine": [], "volume_shape": []}
    for source in both:
        if all(x in source.coords for x in "ijk"):
            known["i, j, k"].append(np.stack([source[x].values for x in "ijk"], axis=1))
        for name in ("affine", "volume_shape"):
            known[name] += [np.asarray(source.attrs[name])] if source.attrs.get(name) is not None else []
    for name, found in known.items():
        if not found:
            raise DataError(
                f"cannot place the voxels: no {name}. Next step: unmask(values, like=responses), where responses carry "
                "i, j, k, attrs['affine'] and attrs['volume_shape']."
            )
        if name == "affine":
            check_affine(found[0], found[-1], names=("the values", "'like'"))
        elif not np.array_equal(found[0], found[-1]):
            raise DataError(f"values and 'like' have other {name}. Next step: leave like out, or drop the values' own.")
    return known["i, j, k"][0], *check_place(known["affine"][0], known["volume_shape"][0])


def unmask(values: Any, like: Any = None, *, dtype: Any = np.float32) -> Nifti1Image:
    """Put values back into their volume: ``image[i_v, j_v, k_v] = values[v]``.

    Parameters
    ----------
    values : DataArray with dimension voxel, or array (voxel,) or (n, voxel)
        A second dimension becomes the image's fourth.
    like : DataArray or Dataset, optional
        Where i, j, k, affine and shape come from when ``values`` do not carry them (scores, after
        arithmetic); voxel ids must agree.
    dtype : numpy dtype
        float32, NaN outside; or an integer type for label maps, 0 outside.

    Returns
    -------
    nibabel.Nifti1Image

    Raises
    ------
    DataError
        The voxels cannot be placed, two share one place, or values do not fit the integer type.

    Examples
    --------
    >>> from neuroenc.data import make_responses
    >>> import numpy as np
    >>> r = make_responses([[7.0]], stimulus=["a"], ijk=[[0, 1, 0]], affine=np.eye(4), volume_shape=(1, 2, 1))
    >>> unmask(r[0], dtype="int16").get_fdata().ravel().tolist()
    [0.0, 7.0]
    """
    if isinstance(values, xr.DataArray):
        if "voxel" not in values.dims or values.ndim > 2:
            raise DataError(f"values have dims {values.dims} (expected ('voxel',) or one more dimension).")
        data = np.asarray(values.transpose(..., "voxel").values)
    else:
        data = np.asarray(values)
    if data.dtype.kind not in "fiub":
        raise DataError(f"values have dtype {data.dtype}; legal are real numbers.")
    index, matrix, shape = _where(values, like)
    if data.ndim not in (1, 2) or data.shape[-1:] != (len(index),):
        raise DataError(f"values have shape {data.shape} but there are {len(index)} voxel places.")
    if index.dtype.kind not in "iu":
        if index.dtype.kind != "f" or not np.array_equal(index, np.round(index)):
            raise DataError(f"i, j, k have dtype {index.dtype}, first {index[:1].tolist()}; expected whole numbers.")
        index = index.astype(np.int64)
    inside_volume(index, shape)
    flat = np.ravel_multi_index(tuple(index.T), shape)
    if np.unique(flat).size < flat.size:
        raise DataError(
            f"{flat.size - np.unique(flat).size} voxels share a place with another (several subjects in one "
            "array?). Next step: unmask one subject at a time."
        )
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        if not np.isfinite(data).all() or (data != np.round(data)).any():
            raise DataError(f"values are not whole numbers, so {kind} cannot hold them. Next step: dtype='float32'.")
        # As Python integers: a float32 limit would round up and let 2**31 into int32.
        if data.size and (int(data.min()) < limits.min or int(data.max()) > limits.max):
            raise DataError(f"values {data.min()}..{data.max()} do not fit {kind} ({limits.min}..{limits.max}).")
    volume = np.full((*shape, *data.shape[:-1]), 0 if kind.kind in "iu" else np.nan, dtype=kind)
    volume[tuple(index.T)] = data.T
    image = Nifti1Image(volume, matrix, dtype=kind)
    image.header.set_xyzt_units("mm")
    return image
