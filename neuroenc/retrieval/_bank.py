"""Rows of embeddings from memory, disk or a stream, read in chunks of bounded size."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from neuroenc._util.errors import DataError

__all__ = ["Chunk", "EmbeddingBank", "as_bank"]


class Chunk(NamedTuple):
    """Consecutive rows of a bank.

    Attributes
    ----------
    start : int
        Position of the first row in the whole bank.
    rows : ndarray (m, d)
        Embeddings in their stored dtype.
    ids : ndarray (m,) of str or None
        Ids of the rows; None where the bank has none (the id is then the position).
    """

    start: int
    rows: np.ndarray
    ids: np.ndarray | None

    def names(self, positions: np.ndarray) -> np.ndarray:
        """Ids of rows by their positions in the whole bank."""
        if self.ids is None:
            return np.asarray(positions).astype(str)
        return self.ids[np.asarray(positions) - self.start]


class _Shard(NamedTuple):
    array: Any
    ids: np.ndarray | None
    n: int
    width: int


def _shard(source: Any, ids: Any = None) -> _Shard:
    if isinstance(source, tuple) and len(source) == 2 and ids is None:
        source, ids = source
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.suffix != ".npy":
            raise DataError(
                f"embedding bank {path.name!r} is not a .npy file. Legal: a .npy path, an array or memmap "
                "(n, d), a DataArray (stimulus, feature), or a list of these. Next step: np.save them."
            )
        if not path.exists():
            raise DataError(f"embedding bank {str(path)!r} does not exist. Next step: check the path.")
        source = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(source, xr.DataArray):
        if source.ndim == 2:
            first = "stimulus" if "stimulus" in source.dims else source.dims[0]
            source = source.transpose(first, ...)
            if ids is None and first in source.coords:
                ids = source[first].values
    elif not hasattr(source, "shape") or not hasattr(source, "dtype"):
        source = np.asarray(source)
    shape = tuple(source.shape)
    if len(shape) != 2 or shape[1] == 0:
        raise DataError(f"embeddings have shape {shape}; legal is (n, d) with d > 0: one row an item.")
    if np.dtype(source.dtype).kind not in "fiu":
        raise DataError(
            f"embeddings have dtype {source.dtype}; legal are float16, float32, float64, integers."
        )
    if ids is not None:
        ids = np.asarray(ids).astype(str)
        if ids.shape != (shape[0],):
            raise DataError(f"{ids.size} ids for {shape[0]} embeddings; legal is one id a row.")
    return _Shard(source, ids, int(shape[0]), int(shape[1]))


def _read(array: Any, start: int, stop: int) -> np.ndarray:
    if isinstance(array, xr.DataArray):
        return np.asarray(array[start:stop].values)
    if (
        isinstance(array, np.memmap)
        and isinstance(array.base, mmap.mmap)
        and array.mode != "c"
        and array.filename is not None
        and array.flags.c_contiguous
    ):
        # A window of its own is unmapped when the chunk is done, so resident memory stays constant;
        # slices of one big map keep every page they touched.
        offset = array.offset + start * array.shape[1] * array.itemsize
        return np.memmap(array.filename, array.dtype, "r", offset, (stop - start, array.shape[1]))
    return np.asarray(array[start:stop])


class EmbeddingBank:
    """Embeddings (n, d) that are read in chunks; see :func:`as_bank` for what is accepted.

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

    @staticmethod
    def _check_width(shard: _Shard, width: int, i: int) -> None:
        if shard.width != width:
            raise DataError(
                f"shard {i} has width {shard.width}, shards before it {width}; all must be equal."
            )

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
                    f"bank embeddings have width {shard.width}, the weights or queries {width}; they must "
                    "come from one embedding space. Next step: embed the bank with the encoder's backbone."
                )
            for start in range(0, shard.n, rows):
                stop = min(start + rows, shard.n)
                ids = None if shard.ids is None else shard.ids[start:stop]
                yield Chunk(position + start, _read(shard.array, start, stop), ids)
            position += shard.n
        if position == 0:
            raise DataError("the embedding bank has 0 rows; at least one is needed.")

    def names(self, positions: np.ndarray) -> np.ndarray:
        """Ids of rows by position; the position itself, as text, where a shard has no ids."""
        if self._shards is None:
            raise DataError("ids of a stream cannot be looked up after it was read.")
        positions = np.asarray(positions, dtype=np.int64)
        names = positions.astype(str).astype(object)
        start = 0
        for shard in self._shards:
            here = (positions >= start) & (positions < start + shard.n)
            if shard.ids is not None and here.any():
                names[here] = shard.ids[positions[here] - start]
            start += shard.n
        return names.astype(str)


def _is_shard(item: Any) -> bool:
    if isinstance(item, tuple):
        return len(item) == 2 and _is_shard(item[0])
    return isinstance(item, (str, os.PathLike)) or getattr(item, "ndim", 0) == 2


def as_bank(source: Any, ids: Sequence[str] | np.ndarray | None = None) -> EmbeddingBank:
    """Bank of embeddings from whatever holds them; nothing is read yet.

    Parameters
    ----------
    source : array (n, d), DataArray (stimulus, feature), path, list or iterator
        numpy array, ``np.memmap``, dask, zarr or h5py array of float16/32/64 or integers; a DataArray
        (its stimulus coordinate gives the ids; lazy ones stay lazy); path of a ``.npy`` file (memory
        mapped); a list or an iterator of shards, each one of these or a tuple ``(array, ids)``. An
        iterator is read once.
    ids : sequence of str, length n, optional
        Ids of the rows; default is the stimulus coordinate, else the row number as text.

    Raises
    ------
    DataError
        Wrong shape, dtype, number of ids, unequal widths of shards, or no rows.

    Examples
    --------
    >>> import numpy as np
    >>> bank = as_bank([np.ones((3, 2)), (np.zeros((2, 2), np.float16), ["a", "b"])])
    >>> bank.n, [(c.start, len(c.rows)) for c in bank.chunks(2)]
    (5, [(0, 2), (2, 1), (3, 2)])
    >>> bank.names(np.array([1, 4])).tolist()
    ['1', 'b']
    """
    if isinstance(source, EmbeddingBank):
        return source
    return EmbeddingBank(source, ids)
