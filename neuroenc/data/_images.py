"""Images of nibabel: opened, read and compared, with errors that name the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from neuroenc._util.errors import DataError

__all__ = ["binary_mask", "check_affine", "image_values", "open_image"]


def open_image(image: Any, what: str) -> Any:
    """A nibabel image from an image or a path."""
    if not isinstance(image, (str, os.PathLike)):
        if hasattr(image, "affine") and hasattr(image, "dataobj"):
            return image
        raise DataError(f"{what} is {type(image).__name__}; expected a path or a nibabel image.")
    path = Path(image)
    if not path.is_file():
        raise DataError(f"{what}: {path} does not exist.")
    try:
        return nib.load(path)
    except (ImageFileError, OSError, EOFError) as error:
        raise DataError(
            f"{what}: {path} ({path.stat().st_size:,} bytes) is not a readable image: {error}. Next step:"
            " copy it again."
        ) from error


def image_values(image: Any, what: str, dtype: Any = None) -> np.ndarray:
    """Voxel values; a file that is cut short is named."""
    try:
        return image.get_fdata(dtype=dtype, caching="unchanged") if dtype else np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError) as error:
        name = image.get_filename() or what
        raise DataError(
            f"{what}: voxel values of {name} cannot be read ({error}): the file is cut short or damaged."
        ) from error


def check_affine(a: Any, b: Any, *, names: tuple[str, str] = ("first", "second"), atol: float = 1e-3) -> None:
    """Raise unless two images lie in the same place: equal volume shape, and ``|A - B| <= atol`` everywhere.

    Parameters
    ----------
    a, b : nibabel image, path, or affine array (4, 4), mm
    names : two str
        What to call them in the message.
    atol : float
        Largest legal difference of an entry, mm.

    Raises
    ------
    DataError
        Shows both shapes, or both affines and their largest difference.

    Examples
    --------
    >>> import numpy as np
    >>> check_affine(np.eye(4), np.eye(4))
    >>> check_affine(np.eye(4), np.diag([2.0, 1, 1, 1]), names=("mask", "BOLD"))
    Traceback (most recent call last):
    neuroenc._util.errors.DataError: affines of mask and BOLD differ by up to 1 ...
    """
    matrices, shapes = [], []
    for item, name in zip((a, b), names, strict=True):
        if isinstance(item, (np.ndarray, list, tuple)):
            matrices.append(np.asarray(item, dtype=float).reshape(4, 4))
        else:
            image = open_image(item, name)
            matrices.append(np.asarray(image.affine, dtype=float))
            shapes.append(tuple(image.shape[:3]))
    step = (
        f"Next step: resample {names[0]} to {names[1]}, e.g. nilearn.image.resample_to_img(...,"
        " interpolation='nearest')."
    )
    if len(set(shapes)) > 1:
        raise DataError(f"volume shapes differ: {names[0]} {shapes[0]}, {names[1]} {shapes[1]}. {step}")
    difference = np.abs(matrices[0] - matrices[1])
    if not difference.max() <= atol:
        shown = [np.array2string(m.round(4), separator=", ").replace("\n", "") for m in matrices]
        raise DataError(
            f"affines of {names[0]} and {names[1]} differ by up to {difference.max():.4g} (legal {atol:g}): "
            f"{names[0]} {shown[0]}, {names[1]} {shown[1]}. {step}"
        )


def binary_mask(image: Any, what: str) -> np.ndarray:
    """A mask image as bool (x, y, z); anything but one value beside 0 is ambiguous, hence an error."""
    values = image_values(image, what)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise DataError(f"{what} has shape {values.shape} (expected three dimensions).")
    if values.dtype == bool:
        return values
    found = np.unique(values)
    if not np.isfinite(found).all() or (found < 0).any() or (found > 0).sum() > 1:
        raise DataError(
            f"{what} is not a mask: {found.size} distinct values {found[:6].tolist()} (expected 0 and one"
            " more). Next step: state which values belong, e.g. nibabel.Nifti1Image((values =="
            " 1).astype('uint8'), affine), or neuroenc.data.label_rois for a label image."
        )
    return values > 0
