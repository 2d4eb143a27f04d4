"""Blocks of voxels: threads, dask, and results kept on disk for resumption."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from neuroenc._core.arrays import as_numpy, is_dask
from neuroenc._core.errors import DataError
from neuroenc._core.files import hash_array, hash_json, read_json, write_json
from neuroenc._core.progress import progress
from neuroenc._core.weights import read_tensors, write_tensors
from neuroenc.encoders._labels import column_block

Result = dict[str, np.ndarray]
Work = Callable[[np.ndarray, slice], Result]


class BlockStore:
    """Finished blocks in a folder, one file each, found by the content of all that they were computed from.

    Parameters
    ----------
    path : path
        Folder; created when missing.
    key : str
        Hash of everything but the responses that the results depend on. A folder that holds results for
        another key is an error, not a silent mixture.
    """

    def __init__(self, path: str | os.PathLike[str], key: str) -> None:
        self.path, self.key = Path(path), key
        marker = self.path / "fit.json"
        if marker.exists() and _key_of(marker) not in (None, key):
            raise DataError(
                f"checkpoint {self.path} belongs to a fit with other settings or other features. "
                "Next step: give this fit its own checkpoint folder, or delete that one."
            )
        write_json(marker, {"key": key})

    def run(self, work: Work, values: np.ndarray, block: slice, phase: str, also: Any) -> Result:
        """Result of a block, from its file or computed and kept.

        ``phase`` and ``also`` are what the result depends on besides the fit's key and the responses ``values``.
        """
        content = hash_json([self.key, phase, hash_array(values), None if also is None else hash_array(also)])
        file = self.path / f"{phase}-{block.start:08d}-{block.stop:08d}.safetensors"
        if file.exists():
            # A file that was damaged, or computed from something else, is computed anew.
            with suppress(DataError):
                found, record = read_tensors(file)
                if record.get("content") == content:
                    return found
        result = work(values, block)
        write_tensors(file, {k: np.asarray(v) for k, v in result.items()}, {"content": content})
        return result


def _key_of(marker: Path) -> str | None:
    """Key of a checkpoint folder; None where the marker is damaged (each block says itself where it belongs)."""
    with suppress(DataError):
        record = read_json(marker)
        return record.get("key") if isinstance(record, dict) else None
    return None


def run_blocks(
    work: Work,
    Y: Any,
    blocks: list[slice],
    *,
    workers: int,
    phase: str = "fit",
    also: Callable[[slice], Any] | None = None,
    store: BlockStore | None = None,
    show: bool = False,
    desc: str = "voxels",
) -> Iterator[tuple[slice, Result]]:
    """Apply ``work(responses of the block, block)`` to every block of voxels, in order.

    What is kept in ``store`` is keyed by ``phase``, the block's responses, and the array ``also(block)``.
    Blocks of dask responses are loaded and computed where dask computes (on the workers of an active client);
    decompositions have been made before, in the calling process, and are sent there. Anything else goes through
    threads, each with one BLAS thread, because many small products side by side beat threaded small products.
    """

    def run(values: np.ndarray, block: slice) -> Result:
        if store is None:
            return work(values, block)
        return store.run(work, values, block, phase, None if also is None else also(block))

    if is_dask(Y):
        yield from _run_dask(run, Y, blocks)
        return

    def one(block: slice) -> Result:
        return run(column_block(Y, block), block)

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


def _run_dask(run: Work, Y: Any, blocks: list[slice]) -> Iterator[tuple[slice, Result]]:
    from dask.base import compute
    from dask.delayed import delayed

    array = Y.data if hasattr(Y, "dims") else Y

    @delayed(pure=False)
    def one(held: tuple[Work], values: np.ndarray, block: slice) -> Result:
        return held[0](as_numpy(values, "responses"), block)

    # A task of its own: features and decompositions go to each worker once, not with every block.
    held = delayed((run,), traverse=False, pure=False)
    with threadpool_limits(1, user_api="blas"):
        results = compute(*[one(held, array[:, block], block) for block in blocks])
    yield from zip(blocks, results)
