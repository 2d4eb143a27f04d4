"""Work on blocks of voxels: threads, dask, and results kept on disk so that a killed fit goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from neuroenc._util.errors import DataError
from neuroenc._util.files import atomic_path, hash_array, read_json, write_json
from neuroenc._util.progress import progress
from neuroenc.encoders._labels import column_block, is_dask

__all__ = ["BlockStore", "run_blocks", "voxel_blocks"]

Result = dict[str, np.ndarray]


def voxel_blocks(n_voxels: int, bytes_per_voxel: int, budget: int, workers: int, most: int = 1024) -> list[slice]:
    """Slices of voxels whose working memory, over all workers, stays within ``budget`` bytes."""
    size = int(min(most, max(1, budget // max(1, workers * bytes_per_voxel))))
    # Equal blocks keep the workers busy to the end.
    count = -(-n_voxels // size)
    if workers > 1 and n_voxels > 256:
        count = -(-count // workers) * workers
    edges = np.linspace(0, n_voxels, min(count, n_voxels) + 1).round().astype(int)
    return [slice(int(a), int(b)) for a, b in pairwise(edges) if b > a]


class BlockStore:
    """Finished blocks in a folder, one safetensors file each, valid for one key of settings and data.

    Parameters
    ----------
    path : path
        Folder; created when missing.
    key : str
        Hash of everything but the responses that the results depend on. A folder that holds results for
        another key is an error, not a silent mixture.
    """

    def __init__(self, path: str | os.PathLike[str], key: str) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        marker = self.path / "fit.json"
        if marker.exists() and read_json(marker).get("key") != key:
            raise DataError(
                f"checkpoint {self.path} belongs to a fit with other settings or other features. "
                "Next step: give this fit its own checkpoint folder, or delete that one."
            )
        write_json(marker, {"key": key})

    def _file(self, phase: str, block: slice) -> Path:
        return self.path / f"{phase}-{block.start:08d}-{block.stop:08d}.safetensors"

    def load(self, phase: str, block: slice, content: str) -> Result | None:
        """Stored result of a block, if it was computed from the same responses."""
        from safetensors import safe_open

        file = self._file(phase, block)
        if not file.exists():
            return None
        with safe_open(file, framework="numpy") as handle:
            if (handle.metadata() or {}).get("content") != content:
                return None
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118

    def save(self, phase: str, block: slice, content: str, result: Result) -> None:
        """Store the result of a block atomically."""
        from safetensors.numpy import save_file

        with atomic_path(self._file(phase, block)) as temporary:
            arrays = {k: np.ascontiguousarray(v) for k, v in result.items()}
            save_file(arrays, temporary, metadata={"content": content})


def run_blocks(
    work: Callable[[np.ndarray, slice], Result],
    Y: Any,
    blocks: list[slice],
    *,
    workers: int,
    phase: str = "fit",
    store: BlockStore | None = None,
    show: bool = False,
    desc: str = "voxels",
) -> Iterator[tuple[slice, Result]]:
    """Apply ``work(responses of the block, block)`` to every block of voxels, in order.

    Dask responses go through dask (and so to its cluster, when a client is active); anything else through
    threads, each with one BLAS thread, because many small products side by side beat threaded small products.
    """
    if is_dask(Y):
        yield from _run_dask(work, Y, blocks, phase, store)
        return

    def one(block: slice) -> Result:
        values = column_block(Y, block)
        content = hash_array(values) if store else ""
        found = store.load(phase, block, content) if store else None
        if found is None:
            found = work(values, block)
            if store:
                store.save(phase, block, content, found)
        return found

    with progress(total=sum(b.stop - b.start for b in blocks), desc=desc, show=show, unit="voxel") as bar:
        if workers == 1:
            for block in blocks:
                yield block, one(block)
                bar.update(block.stop - block.start)
            return
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
            try:
                for block, result in zip(blocks, pool.map(one, blocks)):
                    yield block, result
                    bar.update(block.stop - block.start)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _run_dask(
    work: Callable[[np.ndarray, slice], Result], Y: Any, blocks: list[slice], phase: str, store: BlockStore | None
) -> Iterator[tuple[slice, Result]]:
    from dask.base import compute
    from dask.delayed import delayed

    array = Y.data if hasattr(Y, "dims") else Y

    @delayed(pure=False)
    def one(values: np.ndarray, block: slice) -> Result:
        values = np.asarray(values)
        content = hash_array(values) if store else ""
        found = store.load(phase, block, content) if store else None
        if found is None:
            found = work(values, block)
            if store:
                store.save(phase, block, content, found)
        return found

    with threadpool_limits(1, user_api="blas"):
        results = compute(*[one(array[:, block], block) for block in blocks])
    yield from zip(blocks, results)
