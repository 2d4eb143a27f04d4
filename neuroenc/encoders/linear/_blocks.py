"""Blocks of voxels: scores on a device, threads, dask, and results kept on disk for resumption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from neuroenc._core.arrays import as_numpy, is_dask
from neuroenc._core.device import array_module
from neuroenc._core.errors import DataError
from neuroenc._core.memory import parse_memory, voxel_blocks
from neuroenc._core.progress import progress
from neuroenc._core.store import Store, Tensors
from neuroenc.encoders._labels import column_block, count_workers, raise_nan, to_device
from neuroenc.encoders.linear import _solvers

Result = dict[str, np.ndarray]
Work = Callable[[np.ndarray, slice], Result]
Held = tuple[Any, np.ndarray, np.ndarray, np.ndarray]


class Search:
    """Blocks of responses for an encoder's search of penalties: centred, scored and solved on its device."""

    def __init__(self, encoder: Any, design: _solvers.Design, Y: Any) -> None:
        self.encoder, self.design, self.Y = encoder, design, Y
        self.xp, self.device = array_module(encoder.device)
        self.budget = parse_memory(encoder.max_memory) // 2
        workers, most = (count_workers(encoder.n_jobs), 1024) if self.device is None else (1, 8192)
        self.blocks = voxel_blocks(Y.shape[1], design.block_bytes(), self.budget, workers, most=most)
        self.workers = min(workers, len(self.blocks))
        self.X = self._there(design.X)

    def _there(self, array: np.ndarray) -> Any:
        return to_device(array, self.device, self.xp)

    def bases(self, folds: range, **prior: Any) -> list[_solvers.FoldBasis]:
        """Decompositions of some folds."""
        found = self.design.fold_bases(folds, self.workers, **prior)
        return found if self.device is None else [basis.to(self._there) for basis in found]

    def centred(self, values: np.ndarray) -> Held:
        """Centred block, means, exponents, and positions of voxels that are not finite (set to zero)."""
        if values.dtype.kind not in "fiub":
            raise DataError(
                f"responses have dtype {values.dtype}; expected numbers. Next step: convert them to float32."
            )
        # A sum is finite unless a member is not (or the voxel overflows, which is no better).
        broken = np.flatnonzero(~np.isfinite(values.sum(axis=0, dtype=np.float64)))
        if len(broken):
            if self.encoder.nan_voxels == "raise":
                raise_nan(self.Y, self.encoder._voxels_)
            values = values.copy()
            values[:, broken] = 0
        block, mean, exponent = _solvers.center_block(values, self.design.center, self.design.dtype)
        return self._there(block), mean, exponent, broken

    def scores(self, held: Held, bases: list[_solvers.FoldBasis]) -> tuple[np.ndarray, Any]:
        """As `_solvers.score_block`, in units of the responses."""
        block, _, exponent, _ = held
        told = self.encoder.alphas_, self.encoder.scoring
        found, total = _solvers.score_block(self.design, block, bases, *told, X=self.X, xp=self.xp)
        return (np.ldexp(found, 2 * exponent) if self.encoder.scoring == "neg_mse" else found), total

    def run(
        self,
        work: Work,
        *,
        phase: str = "",
        also: Callable[[slice], Any] | None = None,
        store: tuple[Store, str] | None = None,
        show: bool = False,
        desc: str = "",
    ) -> Iterator[tuple[slice, Result]]:
        """Apply ``work(responses of the block, block)`` to every block of voxels, in order.

        ``store`` keeps results under its hash of the fit, ``phase``, the block's responses, and the array
        ``also(block)``. Blocks of dask responses are loaded and computed where dask computes (on the workers of an
        active client); decompositions have been made before, in the calling process, and are sent there. Anything else
        goes through threads, each with one BLAS thread, because many small products side by side beat threaded small
        products.
        """
        Y, blocks = self.Y, self.blocks

        def kept(values: np.ndarray, block: slice) -> Result:
            if store is None:
                return work(values, block)
            place, fit = store
            inputs = [fit, values, None if also is None else also(block)]
            return place.keep(phase, inputs, lambda: {"block": Tensors(work(values, block))})["block"]

        if is_dask(Y):
            yield from _run_dask(kept, Y, blocks)
            return

        def one(block: slice) -> Result:
            return kept(column_block(Y, block), block)

        with progress(total=Y.shape[1], desc=desc, show=show, unit="voxel") as bar:
            if self.workers == 1:
                for block in blocks:
                    yield block, one(block)
                    bar.update(block.stop - block.start)
                return
            with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(self.workers) as pool:
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
