"""Volumes in: the voxels of a mask, with their indices and ROI names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from nibabel.nifti1 import Nifti1Image

from neuroenc._util.errors import DataError
from neuroenc.data._build import make_responses
from neuroenc.data._images import binary_mask, check_affine, image_values, open_image

__all__ = ["Masked", "label_rois", "load_masked"]


def label_rois(image: Any, table: Mapping[int, str] | str | os.PathLike[str]) -> dict[str, Nifti1Image]:
    """One mask image per name of a label image; labels of 0 and below are background.

    Parameters
    ----------
    image : nibabel image or path
        Whole numbers, shape (x, y, z).
    table : mapping label -> name, or path of a text table
        Lines ``label name ...`` (FreeSurfer ``.ctab``, or a BIDS ``_dseg.tsv`` with ``index`` and ``name``).
        Labels with the same name become one ROI.

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
    names = {
        int(k): str(v) for k, v in (table if isinstance(table, Mapping) else _read_table(Path(table))).items()
    }
    values = image_values(image, "label image")
    values = values[..., 0] if values.ndim == 4 and values.shape[3] == 1 else values
    found = np.unique(values)
    if values.ndim != 3 or not np.isfinite(found).all() or (found != np.round(found)).any():
        raise DataError(
            f"label image has shape {values.shape} and values {found[:5].tolist()} (expected three dimensions"
            " and whole numbers). Labels are resampled with nearest-neighbour interpolation only."
        )
    unknown = sorted({int(x) for x in found if x > 0} - set(names))
    if unknown:
        raise DataError(
            f"{len(unknown)} labels have no name, first {unknown[:5]}; the table names {sorted(names)[:20]}."
            " Next step: add them to the table."
        )
    rois: dict[str, Nifti1Image] = {}
    for name in dict.fromkeys(v for k, v in names.items() if k > 0):
        labels = [k for k, v in names.items() if v == name and k > 0]
        rois[name] = Nifti1Image(np.isin(values, labels).astype(np.uint8), image.affine)
    return rois


def _read_table(path: Path) -> dict[int, str]:
    """Labels and names of a FreeSurfer colour table or a BIDS segmentation table."""
    lines = [x for x in path.read_text(encoding="utf-8").splitlines() if x.strip()]
    lines = [x for x in lines if not x.lstrip().startswith("#")]
    # Between tabs, as in BIDS, a name may hold spaces.
    tab = "\t" if lines and "\t" in lines[0] else None
    rows, at = [[x.strip() for x in line.split(tab)] for line in lines], (0, 1)
    if rows and "index" in rows[0] and "name" in rows[0]:
        at = (rows[0].index("index"), rows[0].index("name"))
        rows = rows[1:]
    elif tab:
        rows = [line.split() for line in lines]
    try:
        return {int(row[at[0]]): row[at[1]] for row in rows}
    except (IndexError, ValueError) as error:
        raise DataError(
            f"{path} is not a table of labels: each line needs a whole number and a name ({error})."
        ) from None


@dataclass(frozen=True, eq=False)
class Masked:
    """Voxels of a mask, with what is needed to put them back.

    ``values`` float32 (time, voxel); ``ijk`` int64 (voxel, 3), in C order of the mask; ``roi`` (voxel,) ROI
    names joined by ";"; ``affine`` (4, 4) mm; ``volume_shape``; ``lengths`` number of volumes of each image;
    ``tr`` seconds between volumes, None where the header does not say.
    """

    values: np.ndarray
    ijk: np.ndarray
    roi: np.ndarray
    affine: np.ndarray
    volume_shape: tuple[int, int, int]
    lengths: tuple[int, ...]
    tr: float | None = None

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
        One value beside 0; its voxels are taken in C order.
    rois : mapping name -> nibabel image or path, optional
        A mask per ROI (see :func:`label_rois` for label images). Voxels outside ``mask`` are left out.

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
    mask = open_image(mask, "mask")
    inside = binary_mask(mask, "mask")
    if not inside.any():
        raise DataError(f"the mask is empty: 0 of {inside.size} voxels.")
    ijk = np.argwhere(inside).astype(np.int64)
    names = np.full(len(ijk), "", dtype=object)
    for name, item in (rois or {}).items():
        image = open_image(item, f"roi {name!r}")
        check_affine(image, mask, names=(f"roi {name!r}", "mask"))
        flags = binary_mask(image, f"roi {name!r}")
        if not flags[inside].any():
            raise DataError(
                f"roi {name!r} has {int(flags.sum())} voxels, none of them in the mask of {len(ijk)}."
            )
        if not name or ";" in name:
            raise DataError(f"roi name {name!r} is not legal: a name is text without ';'.")
        names[flags[inside]] += name + ";"
    parts, tr = [], None
    for n, item in enumerate(items):
        what = "data" if len(items) == 1 else f"image {n}"
        image = open_image(item, what)
        if len(image.shape) not in (3, 4):
            raise DataError(f"{what} has shape {tuple(image.shape)} (expected (x, y, z) or (x, y, z, time)).")
        check_affine(mask, image, names=("mask", what))
        values = image_values(image, what, np.float32)
        parts.append(np.atleast_2d(values[inside].T))
        if values.ndim == 4:
            tr = _seconds(image) or tr
    return Masked(
        values=np.ascontiguousarray(parts[0]) if len(parts) == 1 else np.concatenate(parts),
        ijk=ijk,
        roi=np.array([x[:-1] for x in names], dtype=str),
        affine=np.asarray(mask.affine, dtype=np.float64),
        volume_shape=(int(inside.shape[0]), int(inside.shape[1]), int(inside.shape[2])),
        lengths=tuple(len(x) for x in parts),
        tr=tr,
    )


def _seconds(image: Any) -> float | None:
    """Repetition time in the header, in seconds."""
    zooms = image.header.get_zooms()
    unit = image.header.get_xyzt_units()[1] if hasattr(image.header, "get_xyzt_units") else "sec"
    scale = {"msec": 1e-3, "usec": 1e-6}.get(unit, 1.0)
    return float(zooms[3]) * scale if len(zooms) > 3 and zooms[3] > 0 else None
