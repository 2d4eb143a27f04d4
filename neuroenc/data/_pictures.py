"""The one reader of pictures, and which file of a folder is the picture of a stimulus."""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from neuroenc._core.errors import DataError, nearest_names
from neuroenc._core.files import check_readable_file, everything_below

#: Number of what `read_picture` makes of files; it goes up when that changes.
READER = 2
#: Grey level (of 255) that lies under transparent pixels: nearest to the mean that networks subtract.
BACKGROUND = 128
# Those that a program reads by itself. Pillow hands others (EPS, WMF) to other programs, and some (PDF) it only writes.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "SGI", "QOI")
_LARGEST_FILE = 2**30
# What Pillow and its decoders raise for files that are cut short, damaged or of another kind.
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, TypeError, IndexError, KeyError, OverflowError, MemoryError)
_DAMAGE = (*_BROKEN, NotImplementedError, Image.DecompressionBombError)
_ORIENTATION = 0x0112


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of the formats that this build of Pillow reads."""
    Image.init()
    return tuple(x for x in _FORMATS if x in Image.OPEN)


@lru_cache(maxsize=1)
def picture_endings() -> frozenset[str]:
    """Endings of file names, in lower case, that are taken for pictures.

    >>> {".png", ".jpg", ".gif", ".tif"} <= picture_endings(), ".eps" in picture_endings()
    (True, False)
    """
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in _formats())


def read_picture(
    source: Any, name: str = "picture", *, most_pixels: int | None = None
) -> tuple[Image.Image, tuple[str, ...]]:
    """A picture as RGB as people see it, and what had to be changed for that.

    It is turned as its EXIF tag says; 16-bit greys are divided by 257, floating-point greys that lie in 0..1 are
    multiplied by 255 and those in 0..255 stay; transparent pixels show an even grey of 128; of several frames the
    first is taken. Colour profiles are not applied.

    Parameters
    ----------
    source : path, bytes, PIL image, or array (y, x), (y, x, 3) or (y, x, 4)
        Arrays of uint8, uint16 or floats, with the scales above.
    name : str
        What it is, for errors.
    most_pixels : int, optional
        Files and bytes of more pixels are refused by their header, before any pixel is decoded.

    Returns
    -------
    image : PIL.Image.Image
        Mode RGB, 8 bits.
    changes : tuple of str
        Empty for ordinary pictures.

    Raises
    ------
    DataError
        The file cannot be read (absent, no ordinary file, truncated, no picture, too large), or its greys have no scale
        that is known.

    Examples
    --------
    >>> import numpy as np
    >>> image, changes = read_picture(np.array([[0, 257, 65535]], dtype="uint16"))
    >>> np.asarray(image)[0, :, 0].tolist(), changes
    ([0, 1, 255], ('16-bit greys divided by 257',))
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    if isinstance(source, Image.Image):
        return _as_rgb(source, name)
    if isinstance(source, (bytes, bytearray)):
        content: Any = io.BytesIO(source)
        size, place = len(source), ""
    elif not isinstance(source, (str, os.PathLike)):
        raise DataError(f"{name} is a {type(source).__name__}; legal are a path, bytes, a PIL image, or an array.")
    else:
        content = check_readable_file(source, name)
        size, place = content.stat().st_size, f": {content}"
    if size > _LARGEST_FILE:
        raise DataError(f"{name} cannot be read{place} ({size} bytes): more than a picture has ({_LARGEST_FILE}).")
    try:
        with Image.open(content, formats=_formats()) as handle:
            if most_pixels is not None and handle.width * handle.height > most_pixels:
                raise DataError(
                    f"{name} has {handle.width} x {handle.height} pixels{place}; at most {most_pixels:,} are read. "
                    "Next step: make it smaller."
                )
            return _as_rgb(handle, name)
    except DataError:
        raise
    except _DAMAGE as error:
        # Pillow's own text names the object in memory, another one in each run.
        why = "no picture of a kind that is read" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(
            f"{name} cannot be read{place} ({size} bytes): {why or type(error).__name__}. "
            "Next step: fetch or copy the file again."
        ) from error


def _as_rgb(image: Image.Image, name: str) -> tuple[Image.Image, tuple[str, ...]]:
    changes: list[str] = []
    if 0 in image.size:
        raise DataError(f"{name} has {image.size[0]} x {image.size[1]} pixels; expected at least one.")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        image.seek(0)
        changes.append("the first of several frames taken")
    turn = image.getexif().get(_ORIENTATION, 1)
    if turn in range(2, 9):
        image = ImageOps.exif_transpose(image)
        changes.append("turned upright as their EXIF tag says")
    mode, clear = image.mode, image.info.get("transparency")
    if mode[:1] in ("I", "F"):
        values = np.asarray(image)
        rgb, more = _from_array(values, name)
        changes += more
        if clear is not None and mode.startswith("I") and isinstance(clear, int) and (values == clear).any():
            pixels = np.array(rgb)
            pixels[values == clear] = BACKGROUND
            rgb = Image.fromarray(pixels)
            changes.append(f"transparent pixels laid on grey {BACKGROUND}")
        return rgb, tuple(changes)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or clear is not None:
        layer = (image.convert("LA") if mode == "La" else image).convert("RGBA")
        if (np.asarray(layer.getchannel("A")) < 255).any():
            ground = Image.new("RGBA", layer.size, (BACKGROUND, BACKGROUND, BACKGROUND, 255))
            layer = Image.alpha_composite(ground, layer)
            changes.append(f"transparent pixels laid on grey {BACKGROUND}")
        return layer.convert("RGB"), tuple(changes)
    if mode in ("CMYK", "LAB", "HSV"):
        changes.append(f"{mode} made RGB without a colour profile")
    return image.convert("RGB"), tuple(changes)


def _from_array(values: np.ndarray, name: str) -> tuple[Image.Image, tuple[str, ...]]:
    """Greys or colours of any number format; the format decides the scale, of floats their range."""
    shape = values.shape
    if values.ndim not in (2, 3) or 0 in shape or (values.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise DataError(f"{name} has shape {shape}; expected (y, x), (y, x, 3) or (y, x, 4), and at least one pixel.")
    changes: tuple[str, ...] = ()
    if values.dtype == bool:
        scaled = values * np.uint8(255)
    elif values.dtype == np.uint8:
        scaled = values
    elif values.dtype.kind not in "iuf":
        raise DataError(f"{name} holds {values.dtype}; expected numbers.")
    else:
        low, high = values.min(), values.max()
        found = f"{name} holds {values.dtype} from {low:g} to {high:g}"
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError(f"{name} holds values that are not finite. Next step: save it as 8 bits.")
        if values.dtype.kind == "f":
            if low < 0 or high > 255:
                raise DataError(f"{found}; legal for floating point are 0..1 and 0..255. Next step: save it as 8 bits.")
            unit = high <= 1
            scaled = np.rint(values.astype(np.float64) * (255 if unit else 1)).astype(np.uint8)
            changes = (f"floating-point values {'0..1 multiplied by 255' if unit else '0..255 rounded'}",)
        else:
            wide = values.dtype.itemsize > 2
            if low < 0 or high > 65535 or (wide and 0 < high <= 255):
                raise DataError(f"{found}; legal are 8 bits, and 16 bits from 0 to 65535. Next step: save as 8 bits.")
            scaled = np.rint(values.astype(np.float64) / 257).astype(np.uint8)
            changes = ("16-bit greys divided by 257",)
    if scaled.ndim == 3 and scaled.shape[2] == 1:
        scaled = scaled[:, :, 0]
    image, more = _as_rgb(Image.fromarray(np.ascontiguousarray(scaled)), name)
    return image, (*changes, *more)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def list_pictures(folder: str | os.PathLike[str]) -> list[str]:
    """Paths, relative to ``folder`` and sorted, of everything below it that is named like a picture.

    Hidden files and folders do not count. What is named like a picture and is no ordinary file is listed too: whoever
    reads it says what it is.

    Raises
    ------
    DataError
        There is no such folder, or it may not be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root} is no folder of pictures. Next step: check the path.")

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed ({error.strerror}). Next step: change its permissions.")

    found = []
    for place, inner, names in os.walk(root, onerror=refuse):
        inner[:] = [n for n in inner if not n.startswith(".")]
        below = Path(place).relative_to(root)
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in picture_endings():
                found.append((below / name).as_posix())
    return sorted(found)


def find_pictures(folder: str | os.PathLike[str], ids: Iterable[str], *, partial: bool = False) -> list[Any]:
    """Path of the picture of each stimulus.

    An id is the file's path below ``folder`` or its name, with the ending or without. Only files with an ending of a
    picture count (`picture_endings`). Names are compared in composed form (NFC), since file systems store accents in
    either.

    Parameters
    ----------
    folder : path
    ids : iterable of str
    partial : bool
        None in the place of a picture that is missing, instead of an error.

    Returns
    -------
    list of Path

    Raises
    ------
    DataError
        Several files answer to one id (in two folders, or with two endings), or none does.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("faces", "houses"):
    ...         (Path(folder) / name).mkdir()
    ...         Image.new("RGB", (4, 4)).save(f"{folder}/{name}/01.png")
    ...     found = find_pictures(folder, ["faces/01", "houses/01.png"])
    >>> [f"{p.parent.name}/{p.name}" for p in found]
    ['faces/01.png', 'houses/01.png']
    """
    if not isinstance(folder, (str, os.PathLike)) or isinstance(ids, str):
        raise DataError(
            f"folder is a {type(folder).__name__}, ids a {type(ids).__name__}; legal: a path and a list of ids."
        )
    root, wanted = Path(folder), [str(i) for i in ids]
    files = list_pictures(root)
    # From the whole path to the bare name: the first that answers counts, and it must be one file.
    answers: tuple[dict[str, list[str]], ...] = ({}, {}, {}, {})
    for file in files:
        path = Path(_composed(file))
        for table, key in zip(
            answers, (path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem), strict=True
        ):
            table.setdefault(key, []).append(file)
    found: list[Any] = []
    lost: list[str] = []
    for name in wanted:
        key = _composed(name)
        candidates = next((table[key] for table in answers if key in table), [])
        if len(candidates) > 1:
            raise DataError(
                f"stimulus {name!r} has {len(candidates)} pictures in {root}: {', '.join(candidates[:4])}. "
                "Next step: keep one, or name stimuli by their path below the folder, with its ending."
            )
        if not candidates:
            lost.append(name)
        found.append(root / candidates[0] if candidates else None)
    if lost and not partial:
        raise DataError(_missing(root, lost, wanted, files))
    return found


def all_pictures(folder: Path | None, ids: Iterable[str]) -> list[Any] | None:
    """The picture of each stimulus, or None where there is no folder or one of them is not in it."""
    found = find_pictures(folder, ids, partial=True) if folder is not None else [None]
    return None if None in found else found


def _missing(root: Path, lost: Sequence[str], wanted: Sequence[str], files: Sequence[str]) -> str:
    text = f"{root} has no picture of {len(lost)} of {len(wanted)} stimuli (first: {lost[0]!r})."
    key = _composed(lost[0])
    other = [p.name for p in sorted(everything_below(root)) if key in (_composed(p.name), _composed(p.stem))]
    if other:
        return f"{text} {other[0]} is none that is read. Legal endings: {', '.join(sorted(picture_endings()))}."
    near = nearest_names(key, [Path(f).stem for f in files])
    hint = f" Nearest: {', '.join(near)}." if near else f" It holds {len(files)} pictures."
    return f"{text}{hint} Next step: name each picture by its stimulus, with or without the ending."
