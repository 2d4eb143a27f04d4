"""Single-trial betas of one session: only the voxels asked for, in blocks that fit a memory budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from neuroenc._core.errors import DataError
from neuroenc._core.files import open_hdf5
from neuroenc.data._images import forward
from neuroenc.data.datasets._nsd._layout import Layout
from neuroenc.data.datasets._recording import frames, unpacked

#: Integer files hold percent signal change times this.
SCALE = 300.0


def n_trials(files: tuple[Path, ...]) -> int:
    """Trials that a session's first file holds."""
    with _opened(files[0], 2**20) as values:
        return int(values.shape[0] if files[0].suffix == ".hdf5" else values.shape[-1])


def read_session(layout: Layout, files: tuple[Path, ...], places: np.ndarray, budget: int) -> np.ndarray:
    """Betas of the flat numbers ``places`` (ascending), float32 (trial, place), in percent signal change.

    Besides the result at most about ``budget`` bytes are held; zeros and NaN of the files are kept.
    """
    if layout.kind == "volume":
        with _opened(files[0], budget) as values:
            _check_shape(values, files[0], layout.shape)
            if files[0].suffix == ".hdf5":
                return _from_hdf5_volume(values, np.stack(np.unravel_index(places, layout.shape), 1), budget)
            return _from_frames(values, places, budget)
    parts, start = [], 0
    for path, n in zip(files, layout.shape, strict=True):
        own = places[(places >= start) & (places < start + n)] - start
        start += n
        with _opened(path, budget) as values:
            _check_shape(values, path, (n,))
            parts.append(
                _from_hdf5_table(values, own, budget) if path.suffix == ".hdf5" else _from_frames(values, own, budget)
            )
    return np.concatenate(parts, axis=1)


def unpacked_session(layout: Layout, path: Path, places: np.ndarray, budget: int) -> np.ndarray:
    """Betas (trial, place) of one packed volume, for when blocks of its voxels are taken one by one."""
    with _opened(path, budget) as values:
        _check_shape(values, path, layout.shape)
    return unpacked(path, places, budget, _percent)


@contextmanager
def _opened(path: Path, budget: int) -> Iterator[Any]:
    """An HDF5 data set (trial, z, y, x) or (trial, vertex), or nibabel's lazy array (x, y, z, trial)."""
    if path.suffix == ".hdf5":
        with open_hdf5(path, "betas") as handle:
            _limit_index(handle, budget)
            found = handle.get("betas")
            if not hasattr(found, "dtype") or found.dtype.kind not in "iuf":
                raise DataError(f"{path} has no data set 'betas' of numbers; it holds {sorted(handle)[:5]}.")
            yield found
    else:
        with forward(path, "betas") as image:
            yield image.dataobj


def _limit_index(handle: Any, budget: int) -> None:
    """The index of half a million chunks would else be kept in memory, up to 32 MB of it."""
    config = handle.id.get_mdc_config()
    size = int(np.clip(budget // 4, 2**20, config.max_size))
    config.set_initial_size, config.initial_size = True, size
    config.min_size, config.max_size = min(config.min_size, size), size
    handle.id.set_mdc_config(config)


def _check_shape(values: Any, path: Path, shape: tuple[int, ...]) -> None:
    hdf5 = path.suffix == ".hdf5"
    found = tuple(values.shape[1:])[::-1] if hdf5 else tuple(x for x in values.shape[:-1])
    found = found[:1] if len(shape) == 1 and set(found[1:]) <= {1} else found
    if found != tuple(shape):
        raise DataError(
            f"{path} holds places of shape {found}, the space {tuple(shape)}: another subject or space, or turned axes."
        )


def _percent(block: np.ndarray) -> np.ndarray:
    """Integers are scaled; decimal files are in percent already."""
    if block.dtype.kind in "iu":
        return block.astype(np.float32) / np.float32(SCALE)
    return block.astype(np.float32)


def _from_frames(values: Any, index: np.ndarray, budget: int) -> np.ndarray:
    """Frames (place..., trial) stored trial after trial, as in NIfTI and MGH files."""
    out = np.empty((int(values.shape[-1]), len(index)), dtype=np.float32)
    start = 0
    for rows in frames(values, index, budget, _percent):
        out[start : start + len(rows)] = rows
        start += len(rows)
    return out


def _from_hdf5_table(values: Any, index: np.ndarray, budget: int) -> np.ndarray:
    """(trial, vertex): the span of the wanted vertices, column block by column block."""
    n = int(values.shape[0])
    out = np.empty((n, len(index)), dtype=np.float32)
    if not len(index):
        return out
    chunk = int(values.chunks[1]) if values.chunks else 1
    width = max(chunk, budget // max(1, n * 8) // chunk * chunk)
    first = int(index[0]) // chunk * chunk
    for start in range(first, int(index[-1]) + 1, width):
        low, high = np.searchsorted(index, [start, start + width])
        if low == high:
            continue
        left, right = int(index[low]), int(index[high - 1]) + 1
        out[:, low:high] = _percent(values[:, left:right][:, index[low:high] - left])
    return out


def _from_hdf5_volume(values: Any, ijk: np.ndarray, budget: int) -> np.ndarray:
    """(trial, z, y, x): boxes of one z (or chunk of z), as many rows of y as the budget allows."""
    n = int(values.shape[0])
    out = np.empty((n, len(ijk)), dtype=np.float32)
    dz, dy, dx = (int(c) for c in values.chunks[1:]) if values.chunks else (1, 1, 1)
    # Where each voxel has a chunk of its own, rows of a box that nobody asked for cost as much as wanted ones.
    per_row = n * 8 * dz * dy * max(dx, int(values.shape[3]))
    rows = dy if values.chunks and dx == 1 else max(1, budget // max(1, per_row)) * dy
    k, j = ijk[:, 2] // dz, ijk[:, 1] // rows
    order = np.lexsort((j, k))
    edges = np.flatnonzero(np.diff(k[order]) | np.diff(j[order])) + 1
    for group in np.split(order, edges) if len(order) else ():
        x, y, z = ijk[group].T
        for part in _spans(x, max(dx, budget // max(1, n * 8 * dz * rows))):
            x0, y0, z0 = x[part].min(), y[part].min(), z[part].min()
            box = values[:, z0 : z[part].max() + 1, y0 : y[part].max() + 1, x0 : x[part].max() + 1]
            out[:, group[part]] = _percent(box[:, z[part] - z0, y[part] - y0, x[part] - x0])
    return out


def _spans(x: np.ndarray, width: int) -> list[np.ndarray]:
    """Positions grouped so that no group spans more than ``width`` values."""
    if not x.size or x.max() - x.min() < width:
        return [np.arange(len(x))]
    number = (x - x.min()) // width
    return [np.flatnonzero(number == g) for g in np.unique(number)]
