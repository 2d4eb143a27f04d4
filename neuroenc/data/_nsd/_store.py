"""Responses of many sessions written to disk block by block, and read again; what was written is not written twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._util.files import read_json, write_json
from neuroenc._util.optional import require
from neuroenc.data import _io
from neuroenc.data._preprocess import _averaged

__all__ = ["averaged_store", "load_store", "session_store", "voxels_per_chunk"]

_CHUNK_BYTES = 2**21


def voxels_per_chunk(n_rows: int, n_voxels: int, budget: int) -> int:
    """Width of the stored blocks: about 2 MB each, less where memory is short."""
    return int(np.clip(min(_CHUNK_BYTES, budget // 32) // max(1, 4 * n_rows), 1, max(1, n_voxels)))


@contextmanager
def _sparing() -> Iterator[None]:
    """One chunk at a time (zarr would hold ten), and chunks of zeros are written, so that a lost one is noticed."""
    import zarr

    with zarr.config.set({"array.write_empty_chunks": True, "async.concurrency": 1, "threading.max_workers": 1}):
        yield


def _create(template: xr.DataArray, path: Path, chunks: tuple[int, int]) -> None:
    """An empty store with all labels; ``template`` has the coordinates, its values are not looked at."""
    import dask.array

    empty = template.copy(deep=False, data=dask.array.zeros(template.shape, chunks=chunks, dtype=np.float32))
    dataset = _io._encode(empty)
    with _sparing():
        dataset.to_zarr(path, mode="w", zarr_format=2, consolidated=True, write_empty_chunks=True, compute=False)


def _open(path: Path, template: xr.DataArray, mode: Any = "r+") -> Any:
    import zarr

    return zarr.open_group(str(path), mode=mode)[str(template.name)]


def session_store(
    path: Path,
    template: xr.DataArray,
    bounds: list[tuple[int, int]],
    blocks: list[slice],
    width: int,
    write: Callable[[int, slice], np.ndarray],
    advance: Callable[[int], None],
) -> Path:
    """Fill a store session by session; one that was begun goes on where it stopped.

    ``write(n, block)`` gives session ``n``'s rows for a block of voxels; ``bounds`` are its rows, ``width`` the
    voxels of a stored chunk, of which blocks are multiples.
    """
    require("zarr", "big")
    require("dask", "big")
    part, journal = path.with_suffix(".part"), path.with_suffix(".json")
    done: list[int] = []
    if part.is_dir() and journal.is_file():
        done = list(read_json(journal)["done"])
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        rows = bounds[0][1] - bounds[0][0]
        _create(template, part, (rows, width))
        write_json(journal, {"done": done})
    with _sparing():
        array = _open(part, template)
        for n, (first, last) in enumerate(bounds):
            if n in done:
                advance(len(blocks))
                continue
            for block in blocks:
                array[first:last, block] = write(n, block)
                advance(1)
            done.append(n)
            write_json(journal, {"done": done})
    os.replace(part, path)
    journal.unlink()
    return path


def averaged_store(
    path: Path, source: Path, template: xr.DataArray, numbers: np.ndarray, counts: np.ndarray, budget: int
) -> Path:
    """Means over repeats of a stored set of presentations, block of voxels by block."""
    part = path.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    values = _open(source, template, "r")
    width = int(values.chunks[1])
    # All rows of a block, sorted and summed in float64.
    width = max(1, min(width, budget // max(1, 96 * len(numbers))))
    _create(template, part, (len(counts), width))
    with _sparing():
        array = _open(part, template)
        for start in range(0, template.shape[1], width):
            block = slice(start, min(start + width, template.shape[1]))
            array[:, block] = _averaged(np.asarray(values[:, block]), numbers, counts)
    os.replace(part, path)
    return path


def load_store(path: Path, template: xr.DataArray, budget: int) -> xr.DataArray:
    """Values of a store under the template's labels: in memory if half the budget holds them, else read as needed."""
    small = template.size * 4 <= budget // 2
    if small:
        _io._check_chunks(path)
        with _sparing():
            data: Any = np.asarray(_open(path, template, "r")[:])
    else:
        import dask.array

        _io._check_chunks(path)
        data = dask.array.from_zarr(str(path), component=str(template.name))
    return template.copy(deep=False, data=data)
