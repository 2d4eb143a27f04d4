"""Parts of a bank on Dask's workers: a state each, merged exactly in a tree."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.optional import require
from neuroenc.captions.projection._stream import Plan, Scan, scan
from neuroenc.retrieval import EmbeddingBank, as_bank

__all__ = ["is_lazy", "scan_dask"]


def is_lazy(bank: EmbeddingBank) -> bool:
    """Whether a bank has dask arrays, which are computed where dask sees fit."""
    return bank.reusable and any(_blocks(x.array) is not None for x in bank.shards())


def _blocks(array: Any) -> Any:
    data = array.data if isinstance(array, xr.DataArray) else array
    return data if hasattr(data, "dask") else None


def _scan_part(unit: np.ndarray, plan: Plan, source: Any, ids: Any, folds: Any, budget: int, **kwargs: Any) -> Scan:
    # Tasks run side by side, each with its own products.
    with threadpool_limits(1, user_api="blas"):
        bank = source if isinstance(source, EmbeddingBank) else as_bank(source, ids)
        return scan(unit, plan, bank, folds, budget, **kwargs)


def _pieces(bank: EmbeddingBank, rows: int) -> list[tuple[int, int, Any, Any]]:
    """(start, stop, rows, ids): dask's own chunks of dask arrays, else parts of at most ``rows``."""
    found: list[tuple[int, int, Any, Any]] = []
    for first, shard in zip(bank.edges(), bank.shards()):
        lazy = _blocks(shard.array)
        if lazy is None:
            for a in range(0, shard.n, rows):
                b = min(a + rows, shard.n)
                found.append((first + a, first + b, bank.part(first + a, first + b), None))
            continue
        whole = lazy.rechunk({1: -1})
        a = 0
        for length, block in zip(whole.chunks[0], whole.to_delayed()[:, 0]):
            ids = None if shard.ids is None else shard.ids[a : a + length]
            if length:
                found.append((first + a, first + a + length, block, ids))
            a += length
    return found


def scan_dask(
    unit: np.ndarray,
    plan: Plan,
    bank: EmbeddingBank,
    folds: np.ndarray | None,
    budget: int,
    *,
    client: Any = None,
    hashed: bool = True,
) -> Scan:
    """As :func:`scan`, a task for each part of the bank; with ``client`` on its workers, which see the bank's files.

    Nothing is approximate: merged states are those of one pass, up to the order of float64 additions.
    """
    require("dask", "big")
    from dask.base import compute
    from dask.delayed import delayed

    if not bank.reusable:
        raise DataError("a stream of embeddings has no parts for workers. Next step: pass a list, a memmap or a path.")
    if client is not None and not hasattr(client, "nthreads"):
        raise ConfigError(f"client is {type(client).__name__}; legal is a dask.distributed.Client.")
    n = int(bank.n or 0)
    threads = 1 if client is None else max(1, sum(client.nthreads().values()))
    # About four tasks a thread: enough to share out, and few states to merge.
    rows = max(1024, -(-n // (4 * threads)))
    weights = client.scatter(unit, broadcast=True) if client is not None else delayed(unit, traverse=False)
    work, join = delayed(_scan_part, pure=False), delayed(Scan.merge, pure=False)
    tasks = [
        work(weights, plan, source, ids, None if folds is None else folds[:, a:b], budget, first=a, hashed=hashed)
        for a, b, source, ids in _pieces(bank, rows)
    ]
    while len(tasks) > 1:
        pairs = [join(*tasks[n : n + 2]) for n in range(0, len(tasks) - 1, 2)]
        tasks = pairs + tasks[len(tasks) - len(tasks) % 2 :]
    found: Scan = client.compute(tasks[0]).result() if client is not None else compute(tasks[0])[0]
    return found
