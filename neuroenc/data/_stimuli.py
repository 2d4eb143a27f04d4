"""Stimuli: ids, images, captions and a table of their properties, kept together."""

from __future__ import annotations

import hashlib
import os
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from PIL import Image

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import DataError, unknown_name
from neuroenc._core.files import hash_array, open_hdf5
from neuroenc.data._build import require_unique, string_ids
from neuroenc.data._pictures import read_picture


@dataclass(frozen=True, eq=False, repr=False)
class Stimuli:
    """What was shown: ``ids[n]`` names ``images[n]``, ``captions[n]`` and row ``n`` of ``table``.

    Parameters
    ----------
    ids : sequence of str (n,)
        Unique stimulus ids.
    images : uint8 array (n, y, x, 3), or PixelBank of that shape, or sequence of paths (n,), or None
        Paths and banks (of an HDF5 file) are opened when an image is asked for.
    captions : sequence (n,) of sequences of str, or None
    table : pandas.DataFrame, optional
        One row per stimulus, index equal to ``ids``.
    source, licence : str

    Raises
    ------
    DataError
        Ids are not unique text, or lengths differ.

    Examples
    --------
    >>> import numpy as np
    >>> s = Stimuli(["a", "b"], np.zeros((2, 4, 4, 3), "uint8"), captions=[["a cat"], ["a dog", "a pet"]])
    >>> len(s), s.sel(["b"]).captions, s.image("a").size
    (2, (('a dog', 'a pet'),), (4, 4))
    """

    ids: np.ndarray
    images: np.ndarray | list[Path] | PixelBank | None = None
    captions: tuple[tuple[str, ...], ...] | None = None
    table: pd.DataFrame = field(default=None)  # type: ignore[assignment]
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        ids = string_ids(self.ids)
        require_unique(ids, "stimulus ids", "name each stimulus once; repeats belong to the responses")
        images, captions, table = self.images, self.captions, self.table
        if images is not None:
            images = _check_images(images)
            if len(images) != len(ids):
                raise DataError(f"{len(images)} images for {len(ids)} stimuli (expected one each).")
        if captions is not None:
            if not hasattr(captions, "__len__"):
                raise DataError(f"captions is a {type(captions).__name__}; expected one list of texts a stimulus.")
            if isinstance(captions, str) or len(captions) != len(ids):
                raise DataError(f"{len(captions)} caption entries for {len(ids)} stimuli (expected one entry each).")
            for name, texts in zip(ids.tolist(), captions):
                listed = isinstance(texts, Iterable) and not isinstance(texts, str)
                if not listed or not all(isinstance(x, str) for x in texts):
                    raise DataError(
                        f"captions of stimulus {name!r} are not a list of texts: {texts!r}. "
                        "Next step: give each stimulus a list, [caption] if there is one."
                    )
            captions = tuple(tuple(c) for c in captions)
        index = pd.Index(ids, name="stimulus")
        if table is None:
            table = pd.DataFrame(index=index)
        elif len(table) != len(ids) or not np.array_equal(table.index.astype(str), ids):
            raise DataError(
                f"table has {len(table)} rows with index {[str(x) for x in table.index[:3]]}..., the {len(ids)} "
                f"stimuli have ids {ids[:3].tolist()}.... Next step: table.set_index(id_column).loc[ids]."
            )
        else:
            table = table.set_axis(index, axis=0)
        for name, value in (("ids", ids), ("images", images), ("captions", captions), ("table", table)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        images = "none"
        if self.images is not None:
            images = f"{len(self)} files"
            if not isinstance(self.images, list):
                images = "x".join(str(x) for x in self.images.shape[1:])
        captions = sum(len(c) for c in self.captions or ())
        first = ", ".join(self.ids[:3].tolist()) + (", ..." if len(self) > 3 else "")
        columns = list(map(str, self.table.columns))
        return f"Stimuli({len(self)}: {first}; images {images}; captions {captions}; columns {columns})"

    def index_of(self, ids: Any) -> np.ndarray:
        """Positions (int64) of ``ids`` in this set; an unknown id is an error that names the nearest."""
        wanted = string_ids([ids] if isinstance(ids, str) else ids)
        found = pd.Index(self.ids).get_indexer(pd.Index(wanted))
        if (found < 0).any():
            missing = wanted[found < 0]
            twins = {unicodedata.normalize("NFC", str(i)): str(i) for i in self.ids}
            twin = twins.get(unicodedata.normalize("NFC", str(missing[0])))
            if twin is not None:
                raise DataError(
                    f"stimulus {str(missing[0])!r} is known as {twin!r}: the accents are composed in one and not in "
                    "the other. Next step: unicodedata.normalize('NFC', id) for all ids."
                )
            more = f" {missing.size} of {wanted.size} ids are unknown." if missing.size > 1 else ""
            raise DataError(unknown_name("stimulus", missing[0], self.ids.tolist()) + more)
        return np.asarray(found, dtype=np.int64)

    def sel(self, ids: Any) -> Stimuli:
        """The stimuli ``ids``, in that order."""
        at = self.index_of(ids)
        images = self.images
        if isinstance(images, list):
            images = [images[n] for n in at]
        elif images is not None:
            images = images[at]
        captions = None if self.captions is None else tuple(self.captions[n] for n in at)
        return Stimuli(self.ids[at], images, captions, self.table.iloc[at], self.source, self.licence)

    def image(self, i: int | str) -> Image.Image:
        """Image number ``i``, or of id ``i``, as RGB."""
        if self.images is None:
            raise DataError(f"these {len(self)} stimuli have no images (source {self.source!r}).")
        if isinstance(i, str):
            n = int(self.index_of(i)[0])
        elif isinstance(i, (int, np.integer)) and 0 <= i < len(self):
            n = int(i)
        else:
            raise DataError(f"image({i!r}): legal are an id, and numbers from 0 to {len(self) - 1}.")
        image, changes = self._read(n)
        self._tell({change: [str(self.ids[n])] for change in changes})
        return image

    def _read(self, n: int) -> tuple[Image.Image, tuple[str, ...]]:
        assert self.images is not None
        item = self.images[n]
        if isinstance(item, np.ndarray):
            return Image.fromarray(item), ()
        return read_picture(item, f"image of stimulus {str(self.ids[n])!r}")

    def _tell(self, changes: dict[str, list[str]]) -> None:
        """Warn of each kind of change once in the life of this set."""
        known: set[str] = self.__dict__.setdefault("_told", set())
        for change, names in changes.items():
            if change not in known:
                known.add(change)
                many = "" if len(names) == 1 else f" and {len(names) - 1} more"
                warnings.warn(f"picture of stimulus {str(names[0])!r}{many}: {change}.", UserWarning, stacklevel=3)

    def iter_images(self, batch_size: int = 64) -> Iterator[list[Image.Image]]:
        """Lists of up to ``batch_size`` RGB images, in order; files are opened as they are needed."""
        check_whole("batch_size", batch_size)
        for start in range(0, len(self), batch_size):
            yield [self.image(n) for n in range(start, min(start + batch_size, len(self)))]

    def content_hash(self) -> str:
        """SHA-256 over ids and decoded RGB pixels (over captions where there are no images).

        The same pictures give the same hash whether they are an array or files. It is that of what features are
        computed from: pixels as `neuroenc.data.read_picture` gives them. Computed once for files that stay as they are.
        """
        # Arrays may have been written to since; of files and banks, size and time tell.
        stamp = self._stamp()
        known: tuple[Any, str] | None = self.__dict__.get("_content_hash")
        if known is None or stamp is None or known[0] != stamp:
            digest = hashlib.sha256(hash_array(self.ids).encode())
            if self.images is None:
                for texts in self.captions or ():
                    digest.update(hash_array(np.array(texts, dtype=str)).encode())
            else:
                changed: dict[str, list[str]] = {}
                for n in range(len(self)):
                    image, changes = self._read(n)
                    for change in changes:
                        changed.setdefault(change, []).append(str(self.ids[n]))
                    pixels = np.asarray(image)
                    digest.update(str(pixels.shape).encode())
                    digest.update(np.ascontiguousarray(pixels).tobytes())
                self._tell(changed)
            known = (stamp, digest.hexdigest())
            object.__setattr__(self, "_content_hash", known)
        return known[1]

    def _stamp(self) -> Any:
        """What changes when a file of pictures is written; None for arrays, which tell nothing."""
        if isinstance(self.images, np.ndarray):
            return None
        paths = [self.images.path] if isinstance(self.images, PixelBank) else self.images or []
        stamp = []
        for path in paths:
            try:
                now = path.stat()
            except OSError:
                return None
            stamp.append((now.st_mtime_ns, now.st_size, now.st_ino))
        return tuple(stamp)


def _check_images(images: Any) -> np.ndarray | list[Path] | PixelBank:
    if isinstance(images, PixelBank):
        return images
    if isinstance(images, (str, os.PathLike)):
        raise DataError(f"images is one path ({os.fspath(images)!r}). Next step: data.find_pictures(folder, ids).")
    if isinstance(images, np.ndarray) and images.dtype.kind in "UO" and images.ndim == 1:
        images = images.tolist()
    if isinstance(images, Sequence) and all(isinstance(x, (str, os.PathLike)) for x in images):
        return [Path(x) for x in images]
    try:
        array = np.asarray(images)
    except ValueError as error:
        raise DataError(
            "images are of several sizes or kinds. Next step: give one path for each stimulus, or bring them to "
            "one size."
        ) from error
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape[1:]:
        raise DataError(
            f"images have shape {array.shape} and dtype {array.dtype} (expected uint8 of shape (n, y, x, 3), or "
            f"one path per stimulus). Next step: {_way_out(array)}."
        )
    return array


def _way_out(array: np.ndarray) -> str:
    """What makes pictures of an array that is none, as far as its shape and range tell."""
    if array.dtype.kind not in "uif" or 0 in array.shape or array.ndim not in (3, 4):
        return "one picture for each stimulus, all of one size, channels last"
    axes = {3: "greys: np.repeat(images[..., None], 3, axis=-1)", 4: ""}[array.ndim]
    if array.ndim == 4 and array.shape[1] == 3 != array.shape[-1]:
        axes = "channels last: images.transpose(0, 2, 3, 1)"
    elif array.shape[-1] == 4:
        axes = "transparency: lay them on the background that was shown, then images[..., :3]"
    high = array.max()
    scale = "255 * images" if high <= 1 else "images / 257" if high > 255 else "scale to 0..255, then images"
    whole = f"values from {array.min():g} to {high:g}: ({scale}).round().astype('uint8')"
    return "; ".join(x for x in (axes, whole * (array.dtype != np.uint8)) if x) or "three channels, last"


@dataclass(frozen=True, eq=False)
class EncodingData:
    """What a loader or the simulation returns: responses with their stimuli.

    Parameters
    ----------
    responses : xarray.DataArray or None
        As built by :func:`neuroenc.data.make_responses`.
    stimuli : Stimuli or None
    truth : xarray.Dataset, optional
        Planted truth of a simulation, over ``voxel``.
    extra : dict
        Further parts, e.g. ``{"mask": Nifti1Image}``.

    Examples
    --------
    >>> EncodingData(responses=None, stimuli=Stimuli(["a"])).stimuli.ids.tolist()
    ['a']
    """

    responses: xr.DataArray | None
    stimuli: Stimuli | None
    truth: xr.Dataset | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class PixelBank:
    """Rows of an HDF5 data set of pictures, in the place of an array (n, y, x, 3) of uint8.

    Tens of thousands of pictures do not fit into memory; a number gives one picture, a list or an array of
    positions another bank. The file is opened for each read, so that a bank can be sent to another process.

    Parameters
    ----------
    path : path
    name : str
        Data set (n, y, x, 3), uint8.
    rows : int array, optional
        Its rows in this order; default all.

    Raises
    ------
    DataError
        The file is absent, or the data set is none of pictures.

    Examples
    --------
    >>> import h5py, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with h5py.File(folder + "/a.hdf5", "w") as handle:
    ...         handle["imgBrick"] = np.arange(24, dtype="uint8").reshape(2, 2, 2, 3)
    ...     bank = PixelBank(folder + "/a.hdf5", "imgBrick", [1, 0])
    ...     bank.shape, int(bank[0][0, 0, 0])
    ((2, 2, 2, 3), 12)
    """

    def __init__(self, path: str | os.PathLike[str], name: str, rows: Any = None) -> None:
        self.path, self.name = Path(path), name
        with open_hdf5(self.path, "bank of pictures") as handle:
            shape, dtype = handle[name].shape, handle[name].dtype
        if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or 0 in shape[1:]:
            raise DataError(f"{self.path}: {name} is {dtype} of shape {shape} (expected uint8 of shape (n, y, x, 3)).")
        given = np.arange(shape[0]) if rows is None else np.asarray(rows)
        if given.ndim != 1 or (given.dtype.kind not in "iu" and given.size):
            raise DataError(f"rows have shape {given.shape} and dtype {given.dtype} (expected a list of integers).")
        self.rows = given.astype(np.int64)
        if self.rows.size and not 0 <= self.rows.min() <= self.rows.max() < shape[0]:
            raise DataError(f"{self.path}: rows {self.rows.min()} to {self.rows.max()} of {shape[0]} pictures.")
        self.shape: tuple[int, ...] = (len(self.rows), *shape[1:])
        self.dtype = np.dtype(np.uint8)
        self.ndim = 4

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, (int, np.integer)):
            row = int(self.rows[item])
            with open_hdf5(self.path, f"picture {row} of the bank") as handle:
                return np.asarray(handle[self.name][row])
        part = object.__new__(PixelBank)
        part.__dict__.update(self.__dict__)
        part.rows = self.rows[item]
        part.shape = (len(part.rows), *self.shape[1:])
        return part
