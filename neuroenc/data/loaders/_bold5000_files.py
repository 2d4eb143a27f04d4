"""Responses of BOLD5000 read row by row: mapped pages of files would count as memory, what is read does not stay."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any

import numpy as np

from neuroenc._core.errors import DataError
from neuroenc._core.files import check_readable_file, storage_errors
from neuroenc.data._images import forward
from neuroenc.data._mat import read_mat

__all__ = ["Rows", "regions", "unpacked"]


class Rows:
    """An array (row, column) in a file from ``offset``: row after row, or (``by_columns``) column after column."""

    def __init__(
        self, handle: IO[bytes], shape: tuple[int, int], dtype: Any, offset: int = 0, by_columns: bool = False
    ) -> None:
        self.handle, self.shape, self.dtype = handle, shape, np.dtype(dtype)
        self.offset, self.by_columns = offset, by_columns

    def read(self, rows: np.ndarray, low: int, high: int) -> np.ndarray:
        """Some rows of columns ``low`` to ``high``, float32."""
        out = np.empty((len(rows), high - low), dtype=np.float32)
        if self.by_columns:
            first, last = int(rows.min()), int(rows.max()) + 1
            for column in range(low, high):
                out[:, column - low] = self._run(column * self.shape[0] + first, last - first)[rows - first]
        else:
            for own, row in zip(out, rows.tolist(), strict=True):
                own[:] = self._run(row * self.shape[1] + low, high - low)
        return out

    def _run(self, start: int, n: int) -> np.ndarray:
        size = self.dtype.itemsize
        data = os.pread(self.handle.fileno(), size * n, self.offset + size * start)
        if len(data) < size * n:
            raise DataError(f"{self.handle.name} is cut short. Next step: download it again.")
        return np.frombuffer(data, dtype=self.dtype)

    def close(self) -> None:
        self.handle.close()


class _Table:
    """A data set (row, column) of an HDF5 file, which is opened anew for every block."""

    def __init__(self, path: Path, name: str, shape: tuple[int, int]) -> None:
        self.path, self.name, self.shape = path, name, shape

    def read(self, rows: np.ndarray, low: int, high: int) -> np.ndarray:
        first, last = int(rows.min()), int(rows.max()) + 1
        import h5py

        with _reading(self.path), h5py.File(self.path, "r") as handle:
            return np.asarray(handle[self.name][first:last, low:high][rows - first], dtype=np.float32)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Next step: download it again.") from error


def _npy(path: Path) -> Any:
    with _reading(path):
        handle = check_readable_file(path, "region").open("rb")
        version = np.lib.format.read_magic(handle)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = header(handle)
        if len(shape) != 2 or dtype.kind not in "fiu":
            handle.close()
            return None
        return Rows(handle, shape, dtype, handle.tell(), by_columns)


def _spooled(path: Path, name: str) -> Any:
    """A variable of a MATLAB file, which can only be read whole, moved to the disk."""
    values = read_mat(path, (name,), only=True)[name]
    handle = TemporaryFile()  # noqa: SIM115 (lives as long as the rows)
    # MATLAB stores columns.
    by_columns = not values.flags.c_contiguous
    with storage_errors(gettempdir()):
        for line in values.T if by_columns else values:
            handle.write(np.ascontiguousarray(line).tobytes())
        handle.flush()
    return Rows(handle, values.shape, values.dtype, 0, by_columns)


def regions(files: dict[Any, Path]) -> dict[str, Any]:
    """Arrays (trial, voxel) by name of region: one file each (.npy), or one for all (.h5, .mat)."""
    path = next(iter(files.values()))
    if path.suffix == ".npy":
        found = {str(n): _npy(p) for n, p in files.items()}
        return {n: rows for n, rows in found.items() if rows is not None}
    if path.suffix == ".h5":
        import h5py

        with _reading(path), h5py.File(path, "r") as handle:
            kept = {n: d.shape for n, d in handle.items() if d.ndim == 2 and d.dtype.kind in "fiu"}
        return {n: _Table(path, n, shape) for n, shape in kept.items()}
    from scipy.io import whosmat
    from scipy.io.matlab import MatReadError

    numeric = ("double", "single", "int", "uint")
    with _reading(path):
        try:
            names = [n for n, shape, kind in whosmat(path) if len(shape) == 2 and kind.startswith(numeric)]
        except MatReadError as error:
            raise ValueError(str(error)) from error
    return {n: _spooled(path, n) for n in names}


def unpacked(path: Path, voxel: np.ndarray, budget: int) -> Rows:
    """Values (time, voxel) of a 4-D NIfTI, moved to the disk; ``voxel`` are flat numbers, C order."""
    handle = TemporaryFile()  # noqa: SIM115 (lives as long as the rows)
    with forward(path, "data") as image:
        if len(image.shape) != 4:
            raise DataError(f"{path} has shape {tuple(image.shape)} (expected (x, y, z, time)).")
        n = int(image.shape[3])
        # A frame is held as it is stored, scaled in float64, and as float32.
        step = max(1, budget // 8 // (16 * int(np.prod(image.shape[:3]))))
        for start in range(0, n, step):
            frames = np.asarray(image.dataobj[..., start : start + step], dtype=np.float32)
            rows: Any = np.ascontiguousarray(frames.reshape(-1, frames.shape[3])[voxel].T)
            with storage_errors(gettempdir()):
                handle.write(memoryview(rows).cast("B"))
    with storage_errors(gettempdir()):
        handle.flush()
    return Rows(handle, (n, len(voxel)), np.float32)
