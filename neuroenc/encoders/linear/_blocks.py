"""Blocks of voxels: threads, dask, and results kept on disk for resumption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from neuroenc._core.arrays import as_numpy, is_dask
from neuroenc._core.progress import progress
from neuroenc._core.store import Store, Tensors
from neuroenc.encoders._labels import column_block

Result = dict[str, np.ndarray]
Work = Callable[[np.ndarray, slice], Result]


def run_blocks(
    work: Work,
    Y: Any,
    blocks: list[slice],
    *,
    workers: int,
    phase: str = "fit",
    also: Callable[[slice], Any] | None = None,
    store: tuple[Store, str] | None = None,
    show: bool = False,
    desc: str = "voxels",
) -> Iterator[tuple[slice, Result]]:
    """Apply ``work(responses of the block, block)`` to every block of voxels, in order.

    ``store`` keeps results under its hash of the fit, ``phase``, the block's responses, and the array ``also(block)``.
    Blocks of dask responses are loaded and computed where dask computes (on the workers of an active client);
    decompositions have been made before, in the calling process, and are sent there. Anything else goes through
    threads, each with one BLAS thread, because many small products side by side beat threaded small products.
    """

    def run(values: np.ndarray, block: slice) -> Result:
        if store is None:
            return work(values, block)
        kept, fit = store
        inputs = [fit, values, None if also is None else also(block)]
        return kept.keep(phase, inputs, lambda: {"block": Tensors(work(values, block))})["block"]

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
