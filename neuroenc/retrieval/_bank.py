"""Embedding banks: rows from memory, disk or a stream, read in chunks of bounded size."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import xarray as xr

from neuroenc._core.arrays import as_numpy
from neuroenc._core.errors import DataError
from neuroenc._core.files import read_npy
from neuroenc._core.optional import require


class Chunk(NamedTuple):
    """Chunk of consecutive bank rows with their ids.

    Attributes
    ----------
    start : int
        Position of the first row in the whole bank.
    rows : ndarray (m, d)
        Embeddings in their stored dtype.
    ids : ndarray (m,) of str or None
        Ids of the rows; None where the bank has none (the id is then the position).
    positions : ndarray (m,) int64 or None
        Ascending positions of rows that are not consecutive (see :meth:`take`); None where they are.
    """

    start: int
    rows: np.ndarray
    ids: np.ndarray | None
    positions: np.ndarray | None = None

    def at(self, rows: np.ndarray) -> np.ndarray:
        """Positions in the whole bank of rows of this chunk."""
        return np.asarray(rows) + self.start if self.positions is None else self.positions[rows]

    def names(self, positions: np.ndarray) -> np.ndarray:
        """Ids of rows by their positions in the whole bank."""
        positions = np.asarray(positions)
        if self.ids is None:
            return positions.astype(str)
        if self.positions is None:
            return self.ids[positions - self.start]
        return self.ids[np.searchsorted(self.positions, positions)]

    def take(self, mask: np.ndarray) -> Chunk:
        """The rows where ``mask`` (m,) is True; they keep their positions."""
        rows = np.flatnonzero(mask)
        if len(rows) == len(self.rows):
            return self
        ids = None if self.ids is None else self.ids[rows]
        return Chunk(self.start, np.asarray(self.rows)[rows], ids, self.at(rows))


class MappedRows:
    """Rows of a file of numbers, read through windows of their own.

    A window is unmapped when it is done with, so resident memory stays constant, where slices of one big map
    keep every page they touched. Only the place is held, so that it travels to other processes.
    """

    def __init__(self, file: str, dtype: np.dtype, offset: int, shape: tuple[int, int]) -> None:
        self.file, self.dtype, self.offset, self.shape = file, np.dtype(dtype), int(offset), shape

    @classmethod
    def of(cls, array: np.memmap) -> MappedRows | None:
        """The rows of a map; None where they are not simply the bytes of a file."""
        if (
            array.ndim == 2
            and isinstance(array.base, mmap.mmap)
            and array.mode != "c"
            and array.filename is not None
            and array.flags.c_contiguous
        ):
            shape = (int(array.shape[0]), int(array.shape[1]))
            return cls(os.fspath(array.filename), array.dtype, array.offset, shape)
        return None

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        offset = self.offset + start * self.shape[1] * self.dtype.itemsize
        if stop <= start:
            return np.empty((0, self.shape[1]), self.dtype)
        return np.memmap(self.file, self.dtype, "r", offset, (stop - start, self.shape[1]))


class _Shard(NamedTuple):
    array: Any
    ids: Any  # None, array of str, or what gives one when sliced (ids that stay on disk)
    n: int
    width: int


def _open(path: Path) -> Any:
    if not path.exists() and path.suffix in ("", ".npy", ".zarr"):
        raise DataError(f"embedding bank {str(path)!r} does not exist. Next step: check the path.")
    if path.suffix == ".npy":
        return read_npy(path, "embedding bank")
    if (path / "zarr.json").is_file() or (path / ".zarray").is_file():
        zarr = require("zarr", "big")
        found = zarr.open(store=str(path), mode="r")
        if hasattr(found, "shape"):
            return found
        names = ", ".join(sorted(found.array_keys())) or "none"
        raise DataError(f"{path.name} is a zarr group of arrays {names}. Next step: give the path of one, GROUP/NAME.")
    raise DataError(
        f"embedding bank {path.name!r} is not a .npy file, a zarr array or a folder of `neuroenc bank build`. "
        "Legal: such a path, an array or memmap (n, d), a DataArray (stimulus, feature), or a list of these. "
        "Next step: np.save them."
    )


def _shard(source: Any, ids: Any = None) -> _Shard:
    if isinstance(source, _Shard):
        return source
    if isinstance(source, tuple) and len(source) == 2 and ids is None:
        source, ids = source
    if isinstance(source, (str, os.PathLike)):
        source = _open(Path(source))
    if isinstance(source, np.ma.MaskedArray):
        source = as_numpy(source, "embeddings")  # masked numbers become NaN, and such rows are refused by name
    if isinstance(source, np.memmap):
        source = MappedRows.of(source) or source
    if isinstance(source, xr.DataArray):
        if source.ndim == 2:
            first = "stimulus" if "stimulus" in source.dims else source.dims[0]
            source = source.transpose(first, ...)
            if ids is None and first in source.coords:
                ids = source[first].values
    elif not hasattr(source, "shape") or not hasattr(source, "dtype"):
        source = as_numpy(source, "embeddings")
    shape = tuple(source.shape)
    if len(shape) != 2 or shape[1] == 0:
        raise DataError(f"embeddings have shape {shape}; legal is (n, d) with d > 0: one row an item.")
    if shape[0] != shape[0]:
        raise DataError("this dask array has chunks of unknown length. Next step: bank.compute_chunk_sizes().")
    if np.dtype(source.dtype).kind not in "fiu":
        raise DataError(f"embeddings have dtype {source.dtype}; legal are float16, float32, float64, integers.")
    if ids is not None:
        if not isinstance(ids, LazyIds):
            ids = np.asarray(ids).astype(str)
        if ids.shape != (shape[0],):
            raise DataError(f"{ids.shape[0]} ids for {shape[0]} embeddings; legal is one id a row.")
    return _Shard(source, ids, int(shape[0]), int(shape[1]))


class LazyIds:
    """Ids of a shard that are read when they are asked for.

    Parameters
    ----------
    read : callable
        Gives all ids of the shard, an array (n,) of str; the last shard that was read is kept.
    """

    def __init__(self, n: int, read: Callable[[], np.ndarray]) -> None:
        self.shape, self._read = (n,), read

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.asarray(self._read())[rows]


class EmbeddingBank:
    """Bank of embeddings (n, d) that is read in chunks; see :func:`as_bank` for what is accepted.

    Attributes
    ----------
    n : int or None
        Number of rows; None for a stream whose length is not known.
    reusable : bool
        Whether the rows can be read more than once.
    """

    def __init__(self, source: Any, ids: Sequence[str] | np.ndarray | None = None) -> None:
        self._shards: list[_Shard] | None = None
        self._stream: Iterator[Any] | None = None
        if isinstance(source, list) and source and _is_shard(source[0]):
            if ids is not None:
                raise DataError("ids of a list of shards belong to the shards: pass (array, ids) tuples.")
            self._shards = [_shard(x) for x in source]
        elif isinstance(source, Iterable) and not (
            hasattr(source, "shape") or isinstance(source, (str, os.PathLike, list, tuple))
        ):
            if ids is not None:
                raise DataError("ids of a stream of shards belong to the shards: yield (array, ids) tuples.")
            self._stream = iter(source)
        else:
            self._shards = [_shard(source, ids)]
        self.reusable = self._shards is not None
        self.n = sum(x.n for x in self._shards) if self._shards is not None else None
        if self._shards is not None:
            for i, shard in enumerate(self._shards):
                self._check_width(shard, self._shards[0].width, i)
            if self.n == 0:
                raise DataError("the embedding bank has 0 rows; at least one is needed.")

    def again(self, why: str) -> Self:
        """This bank, if it can be read more than once; else an error with the reason ``why`` it must be."""
        if not self.reusable:
            raise DataError(f"{why}, and a stream is read once. Next step: pass a list, a memmap or a path.")
        return self

    @staticmethod
    def _check_width(shard: _Shard, width: int, i: int) -> None:
        if shard.width != width:
            raise DataError(f"shard {i} has width {shard.width}, shards before it {width}; all must be equal.")

    def _each(self) -> Iterator[_Shard]:
        if self._shards is not None:
            yield from self._shards
            return
        if self._stream is None:
            raise DataError("this stream of embeddings was read already. Next step: pass a list or a memmap.")
        stream, self._stream = self._stream, None
        width = 0
        for i, item in enumerate(stream):
            shard = _shard(item)
            width = width or shard.width
            self._check_width(shard, width, i)
            yield shard

    def chunks(self, rows: int, width: int | None = None) -> Iterator[Chunk]:
        """Rows in order, at most ``rows`` at a time; ``width`` is the embedding width that is expected."""
        position = 0
        for shard in self._each():
            if width is not None and shard.width != width:
                raise DataError(
                    f"bank embeddings have width {shard.width}, the weights or queries {width}; they must come from "
                    "one embedding space. Next step: embed the bank with the encoder's backbone."
                )
            for start in range(0, shard.n, rows):
                stop = min(start + rows, shard.n)
                ids = None if shard.ids is None else shard.ids[start:stop]
                yield Chunk(position + start, np.asarray(shard.array[start:stop]), ids)
            position += shard.n
        if position == 0:
            raise DataError("the embedding bank has 0 rows; at least one is needed.")

    @property
    def width(self) -> int | None:
        """Features of an embedding; None for a stream."""
        return None if self._shards is None else self._shards[0].width

    def part(self, start: int, stop: int) -> EmbeddingBank:
        """Rows ``start:stop`` as a bank of their own (nothing is read); its positions count from 0."""
        found: list[Any] = []
        for first, shard in self._placed("parts"):
            a, b = max(start - first, 0), min(stop - first, shard.n)
            if a < b:
                found.append(shard if (a, b) == (0, shard.n) else _cut(shard, a, b))
        return EmbeddingBank(found)

    def shards(self) -> list[_Shard]:
        """Arrays with their ids, in order."""
        return list(self.again("shards of embeddings are asked for")._shards or [])

    def edges(self) -> list[int]:
        """Positions where shards begin, and the end."""
        return np.cumsum([0, *(x.n for x in self.shards())]).tolist()

    def take(self, positions: np.ndarray, rows: int = 16384) -> Iterator[Chunk]:
        """The rows at ``positions`` (ascending, different), some at a time.

        At most ``rows`` consecutive rows of the bank are looked at at once, and those without a wanted one not
        at all.
        """
        positions = np.asarray(positions, dtype=np.int64)
        for first, shard in self._placed("single rows"):
            low, high = np.searchsorted(positions, [first, first + shard.n])
            mine = positions[low:high] - first
            while len(mine):
                a = int(mine[0])
                here = mine[: int(np.searchsorted(mine, a + rows))]
                b = int(here[-1]) + 1
                ids = None if shard.ids is None else shard.ids[here]
                yield Chunk(first + a, np.array(np.asarray(shard.array[a:b])[here - a]), ids, here + first)
                mine = mine[len(here) :]

    def _placed(self, what: str) -> list[tuple[int, _Shard]]:
        """Shards and where they begin."""
        bank = self.again(f"{what} of embeddings are asked for")
        return list(zip(bank.edges(), bank.shards()))

    def names(self, positions: np.ndarray) -> np.ndarray:
        """Ids of rows by position; the position itself, as text, where a shard has no ids."""
        positions = np.asarray(positions, dtype=np.int64)
        names = positions.astype(str).astype(object)
        for first, shard in self._placed("ids"):
            here = (positions >= first) & (positions < first + shard.n)
            if shard.ids is not None and here.any():
                names[here] = shard.ids[positions[here] - first]
        return names.astype(str)


class _Span:
    """Rows a:b of an array whose slices would be read at once (a file's, zarr, HDF5)."""

    def __init__(self, array: Any, a: int, b: int) -> None:
        self._array, self._a, self.dtype, self.shape = array, a, array.dtype, (b - a, array.shape[1])

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        return np.asarray(self._array[self._a + start : self._a + stop])


def _cut(shard: _Shard, a: int, b: int) -> _Shard:
    array, ids = shard.array, None if shard.ids is None else shard.ids[a:b]
    cut = array[a:b] if isinstance(array, (np.ndarray, xr.DataArray)) else _Span(array, a, b)
    return _Shard(cut, ids, b - a, shard.width)


def _is_shard(item: Any) -> bool:
    if isinstance(item, tuple):
        return isinstance(item, _Shard) or (len(item) == 2 and _is_shard(item[0]))
    return isinstance(item, (str, os.PathLike)) or getattr(item, "ndim", 0) == 2
