"""Responses of many sessions written to disk block by block, and read again; what was written is not written twice."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc._core.files import read_json, storage_errors, write_json
from neuroenc._core.optional import require
from neuroenc.data import _io
from neuroenc.data._preprocess import averaged

_CHUNK_BYTES = 2**21
_SAMPLE = 2**16


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time makes what stands at ``path`` (advisory; released when a process dies)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    lock = path.parent / f".{path.name}.lock"
    while True:
        handle = open(lock, "w")  # noqa: SIM115 (closed below)
        # Some network file systems know no locks; then renames are the only guard.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.stat(lock).st_ino == os.fstat(handle.fileno()).st_ino:
                break
        # The process that held it took the file away: the lock is on nothing.
        handle.close()
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        handle.close()


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
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with storage_errors(path, below=path.parent), locked(path):
        if path.is_dir():
            # Another process made it while this one waited, or one was killed before it took its notes away.
            journal.unlink(missing_ok=True)
            return path
        done: list[int] = _begun(part, journal)
        if not done:
            # Notes go first: without them what was begun counts for nothing.
            journal.unlink(missing_ok=True)
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
        journal.unlink(missing_ok=True)
    return path


def _begun(part: Path, journal: Path) -> list[int]:
    """Sessions that a killed run wrote; none where its notes or its store cannot be read."""
    if not part.is_dir() or not journal.is_file():
        return []
    try:
        return [int(n) for n in read_json(journal)["done"]]
    except (DataError, KeyError, TypeError, ValueError):
        return []


def stamp(path: Path) -> list[Any]:
    """Name, size, time and a sample of a file's content: a file that was replaced by another of its size is noticed."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for start in np.linspace(0, max(0, size - _SAMPLE), 16 if size > _SAMPLE else 1).astype(np.int64).tolist():
            handle.seek(start)
            digest.update(handle.read(_SAMPLE))
    return [path.name, size, path.stat().st_mtime_ns, digest.hexdigest()]


def averaged_store(
    path: Path, source: Path, template: xr.DataArray, numbers: np.ndarray, counts: np.ndarray, budget: int
) -> Path:
    """Means over repeats of a stored set of presentations, block of voxels by block."""
    part = path.with_suffix(".part")
    with storage_errors(path, below=path.parent), locked(path):
        if path.is_dir():
            return path
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
                array[:, block] = averaged(np.asarray(values[:, block]), numbers, counts)
        os.replace(part, path)
    return path


def load_store(path: Path, template: xr.DataArray, budget: int) -> xr.DataArray:
    """Values of a store under the template's labels: in memory if half the budget holds them, else read as needed."""
    small = template.size * 4 <= budget // 2
    # What a kill behind the last rename left.
    for name in (f"{path.stem}.json", f".{path.name}.lock"):
        with suppress(OSError):
            path.with_name(name).unlink(missing_ok=True)
    try:
        _io._check_chunks(path)
        if small:
            with _sparing():
                data: Any = np.asarray(_open(path, template, "r")[:])
        else:
            import dask.array

            data = dask.array.from_zarr(str(path), component=str(template.name))
        if data.shape != template.shape:
            raise DataError(f"it holds an array of shape {data.shape}, expected {template.shape}")
    except MemoryError:
        raise
    except Exception as error:
        # Whatever zarr and its codecs say of a store whose files were damaged.
        raise DataError(
            f"the stored responses {path} cannot be read: {error}. Next step: remove that folder, and run the same"
            " again."
        ) from error
    return template.copy(deep=False, data=data)
