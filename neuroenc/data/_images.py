"""Images of nibabel: opened, read and compared, with errors that name the file."""

from __future__ import annotations

import gzip
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError, SerializableImage
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import HeaderDataError

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import check_readable_file

#: What nibabel and the packages below it raise for files that are cut short, damaged or of another kind.
DAMAGE = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error)
_PACKED = (".gz", ".mgz")
_ENDINGS = r"(?:nii|nii\.gz|hdr|img|mgz|mgh)"
_LABELLED = re.compile(rf"(?P<file>.+\.{_ENDINGS}):(?P<labels>-?\d+(?:,-?\d+)*)", flags=re.IGNORECASE)


def open_image(image: Any, what: str, *, surface: bool = False) -> Any:
    """A nibabel image from an image or a path; unless ``surface``, a volume of real numbers that has a place.

    Raises
    ------
    DataError
        No such file, a damaged one, one of another kind (CIFTI, GIFTI, streamlines), or no usable affine.
    """
    if not isinstance(image, (str, os.PathLike)):
        if not hasattr(image, "dataobj"):
            raise DataError(f"{what} is {type(image).__name__}; expected a path or a nibabel image.")
        if not surface:
            _check_volume(image, what)
        return image
    path = check_readable_file(Path(image).expanduser(), f"{what}:")
    try:
        found = nib.load(path)
    except DAMAGE as error:
        raise DataError(
            f"{what}: {path} ({path.stat().st_size:,} bytes) is not a readable image: {error}. "
            "Next step: copy it again."
        ) from error
    if not surface:
        _check_volume(found, f"{what}: {path}")
        _check_header(found, path)
    return found


def _check_volume(image: Any, what: str) -> None:
    if not hasattr(image, "affine"):
        raise DataError(
            f"{what} holds {type(image).__name__} (grayordinates or a surface); expected a volume (NIfTI, MGH). "
            "Next step: give the volume, or neuroenc.data.read_surface for surface files."
        )
    if image.affine is None:
        raise DataError(f"{what} has no affine, hence no place in space. Next step: nibabel.Nifti1Image(data, affine).")
    matrix = np.asarray(image.affine, dtype=float)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise DataError(
            f"{what} has an affine that is no place in space: {matrix.round(4).tolist()}. "
            "Next step: write its header again (sform, or qform and voxel sizes)."
        )
    kind = np.dtype(image.get_data_dtype()) if hasattr(image, "get_data_dtype") else np.dtype(float)
    if kind.kind not in "fiub":
        raise DataError(f"{what} holds {kind} values (complex numbers or colours); expected real numbers.")


def _check_header(image: Any, path: Path) -> None:
    """Tell a place that is made up, and two places that contradict each other."""
    header = image.header
    if not hasattr(header, "get_sform") or len(image.shape) < 3:
        return
    sform, qform = (int(header[f"{x}_code"]) for x in ("sform", "qform"))
    if not sform and not qform:
        warnings.warn(
            f"{path} has neither sform nor qform: its affine is made up from its voxel sizes, and says nothing about"
            " where the head lies.",
            stacklevel=4,
        )
    elif sform and qform:
        try:
            first, second = image.get_sform(), image.get_qform()
        except DAMAGE:
            return
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape[:3]])).reshape(3, -1)
        apart = np.abs((first - second)[:3] @ np.vstack([corners, np.ones(corners.shape[1])])).max()
        if apart > 1.0:
            warnings.warn(
                f"{path}: sform and qform place its corners up to {apart:.3g} mm apart; the sform is taken, and other"
                " software may take the qform.",
                stacklevel=4,
            )


def image_values(image: Any, what: str, dtype: Any = None) -> np.ndarray:
    """Voxel values; a file that is cut short or damaged is named."""
    name = image.get_filename() if nib.is_proxy(image.dataobj) else None
    if name and Path(name).suffix.lower() in _PACKED and isinstance(image, SerializableImage):
        with forward(Path(name), what) as again:
            return np.asarray(again.dataobj) if dtype is None else again.get_fdata(dtype=dtype, caching="unchanged")
    with _told(name or image.get_filename() or "", what):
        return image.get_fdata(dtype=dtype, caching="unchanged") if dtype else np.asanyarray(image.dataobj)


@contextmanager
def _told(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(
            f"{what}: voxel values of {name or what} cannot be read ({error}): the file is cut short or damaged. "
            "Next step: copy it again."
        ) from error


@contextmanager
def forward(path: Path, what: str) -> Iterator[Any]:
    """An image whose values are read from its start to its end, so that a compressed file is unpacked once.

    nibabel alone stops at the last voxel and never sees the checksum behind it: where the values came to their end, it
    is checked when the block is left.
    """
    kind = type(open_image(path, what, surface=True))
    packed = path.suffix.lower() in _PACKED
    if not packed or not issubclass(kind, SerializableImage):
        with _told(str(path), what):
            yield nib.load(path, keep_file_open=True)
        return
    with _told(str(path), what), gzip.open(path, "rb") as handle:
        image: Any = kind.from_stream(handle)
        yield image
        offset, size = image.dataobj.offset, int(np.prod(image.shape)) * image.get_data_dtype().itemsize
        if handle.tell() >= offset + size:
            while handle.read(2**20):
                pass


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
    neuroenc._core.errors.DataError: affines of mask and BOLD differ by up to 1 ...
    """
    matrices, shapes = [], []
    for item, name in zip((a, b), names, strict=True):
        if isinstance(item, (np.ndarray, list, tuple)):
            matrix = np.asarray(item, dtype=float)
            if matrix.size != 16:
                raise DataError(f"the affine of {name} has shape {matrix.shape} (expected (4, 4)).")
            matrices.append(matrix.reshape(4, 4))
        else:
            image = open_image(item, name)
            matrices.append(np.asarray(image.affine, dtype=float))
            shapes.append(tuple(image.shape[:3]))
    for matrix, name in zip(matrices, names, strict=True):
        if not np.isfinite(matrix).all():
            raise DataError(f"the affine of {name} holds values that are not finite: it has no place in space.")
    step = (
        f"Next step: resample {names[0]} to {names[1]}, e.g. nilearn.image.resample_to_img(..., "
        "interpolation='nearest')."
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
    """A mask image as bool (x, y, z): the voxels above 0.

    Values below 0 and NaN, which data sets write outside of cortex or brain, are told and left out; more than one value
    above 0 is ambiguous, hence an error.
    """
    values = _three(image_values(image, what), what)
    if values.dtype == bool:
        return values
    found = np.unique(values)
    above = found[found > 0]
    if above.size != 1 and (above.size or not np.isfinite(found).all() or (found < 0).any()):
        raise DataError(
            f"{what} is not a mask: {found.size} distinct values {found[:6].tolist()} (expected 0 and one"
            f" more). Next step: say which value belongs, e.g. neuroenc.data.region_mask(image, label="
            f"{above[0] if above.size else 1:g}) or 'FILE.nii.gz:{above[0] if above.size else 1:g}' in a config, or"
            " neuroenc.data.label_rois for all labels of an image."
        )
    if (found < 0).any() or np.isnan(found).any():
        others = [x for x in found.tolist() if not x >= 0]
        warnings.warn(
            f"{what} holds {found[:4].tolist()}: the {int((values > 0).sum())} voxels above 0 are taken, those of"
            f" {', '.join(f'{x:g}' for x in others[:3])} are outside.",
            stacklevel=3,
        )
    return np.asarray(values > 0)


def _three(values: np.ndarray, what: str) -> np.ndarray:
    values = values[..., 0] if values.ndim == 4 and values.shape[3] == 1 else values
    if values.ndim != 3:
        raise DataError(f"{what} has shape {values.shape} (expected three dimensions).")
    return values


def open_mask(item: Any, what: str) -> Any:
    """The image of a mask or region; ``"FILE.nii.gz:1"`` takes one label of it, ``":1,2"`` several."""
    if isinstance(item, str) and not Path(item).expanduser().is_file():
        match = _LABELLED.fullmatch(item)
        if match:
            return region_mask(match["file"], [int(x) for x in match["labels"].split(",")], what=what)
    return open_image(item, what)


def mask_on(reference: Any, item: Any, what: str, name: str) -> np.ndarray:
    """A mask as `binary_mask`, from what `open_mask` takes, checked to lie where ``reference`` (``name``) lies."""
    image = open_mask(item, what)
    check_affine(image, reference, names=(what, name))
    return binary_mask(image, what)


def label_values(image: Any, what: str) -> np.ndarray:
    """Labels (x, y, z) of an opened label image, int64; 0 where it is not finite."""
    values = _three(image_values(image, what), what)
    finite = np.where(np.isfinite(values), values, 0)
    # A scaled image (scl_slope) gives whole numbers with the rounding of its scale.
    whole = np.round(finite)
    if np.abs(finite - whole).max(initial=0) > 1e-4:
        raise DataError(
            f"{what} holds values between whole numbers, first {finite[finite != whole][0]:g}: it is no label "
            "image, or was resampled with interpolation. "
            "Next step: resample labels with nearest-neighbour interpolation."
        )
    return whole.astype(np.int64)


def region_mask(image: Any, label: int | Sequence[int], *, what: str = "label image") -> Nifti1Image:
    """Mask of one label (or several) of a label image: 1 where the image holds it, 0 elsewhere.

    Parameters
    ----------
    image : nibabel image or path
        Whole numbers, shape (x, y, z).
    label : int or sequence of int
    what : str
        What to call it in errors.

    Returns
    -------
    Nifti1Image, uint8

    Raises
    ------
    DataError
        The image holds other than whole numbers, or no voxel has the label; those that occur are named.

    Examples
    --------
    >>> import nibabel, numpy as np
    >>> image = nibabel.Nifti1Image(np.array([[[-1, 0, 1, 2, 2]]], "int16"), np.eye(4))
    >>> np.asarray(region_mask(image, 2).dataobj).ravel().tolist()
    [0, 0, 0, 1, 1]
    """
    image = open_image(image, what)
    whole = label_values(image, what)
    wanted = [label] if isinstance(label, (int, np.integer, str)) else list(label)
    if not wanted or not all(isinstance(x, (int, np.integer)) and not isinstance(x, bool) for x in wanted):
        raise ConfigError(f"label={label!r} of {what} is not legal; expected a whole number, or several.")
    there = np.unique(whole).tolist()
    for number in wanted:
        if number not in there:
            raise DataError(unknown_name(f"label of {what}", number, there))
    return Nifti1Image(np.isin(whole, wanted).astype(np.uint8), image.affine)
