"""Exact top-k inner products in one pass over a bank, and the dense index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from neuroenc._core.memory import parse_memory
from neuroenc._core.topk import BestRows, plan_blocks
from neuroenc.retrieval._bank import Chunk, EmbeddingBank
from neuroenc.retrieval._shards import as_bank


def top_k(
    queries: Any,
    bank: EmbeddingBank,
    k: int,
    *,
    normalise: bool = True,
    max_memory: str | int | None = None,
    seen: Callable[[Chunk, np.ndarray], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Exact top-k rows m of a bank by ``q . m`` for each query, in one pass.

    A float32 matrix product finds every row that may be among the best given its error bound; these
    are scored again in float64, rounded to float32, and ordered by score and then row number. The
    result therefore depends neither on the chunks nor on the BLAS.

    Parameters
    ----------
    queries : array (q, d)
    bank : EmbeddingBank
    k : int
    normalise : bool
        Cosine instead of inner product.
    max_memory : str, int or None
        Bytes for temporaries ("500MB"); None is a quarter of the machine's memory.
    seen : callable, optional
        Called after each chunk with the chunk and the rows (q, k) that are best so far.

    Returns
    -------
    scores : ndarray (q, k) float32
        Descending.
    indices : ndarray (q, k) int64

    Raises
    ------
    DataError
        NaN, zero norm (with ``normalise``), width mismatch, or k larger than the bank.
    """
    best = BestRows(queries, k, bank.n, normalise=normalise)
    rows, block = plan_blocks(parse_memory(max_memory), best.exact.shape[1], len(best.exact))
    for chunk in bank.chunks(rows, best.exact.shape[1]):
        best.update(chunk, block)
        if seen is not None:
            seen(chunk, best.index)
    return best.finish()


class DenseIndex:
    """Exact nearest neighbours by cosine or inner product, over embeddings that may exceed memory.

    Parameters
    ----------
    embeddings : array (n, d), np.memmap, DataArray (stimulus, feature), path of a .npy, or list of shards
        float16, float32, float64 or integers; read in chunks at each search.
    ids : sequence of str, length n, optional
        Default: the stimulus coordinate of a DataArray, else the row number as text.
    normalise : bool
        True: cosine; False: inner product.

    Raises
    ------
    DataError
        Wrong shape or dtype, wrong number of ids, or a stream that can be read only once.

    Examples
    --------
    >>> import numpy as np
    >>> index = DenseIndex(np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), ids=["a", "b", "c"])
    >>> scores, rows = index.search(np.array([[0.0, 3.0]]), k=2)
    >>> index.names(rows).tolist(), scores.round(3).tolist()
    ([['b', 'c']], [[1.0, 0.707...]])
    """

    def __init__(self, embeddings: Any, ids: Sequence[str] | np.ndarray | None = None, normalise: bool = True) -> None:
        self._bank = as_bank(embeddings, ids).again("an index reads its embeddings at each search")
        self.normalise = bool(normalise)

    def __len__(self) -> int:
        return int(self._bank.n or 0)

    def __repr__(self) -> str:
        return f"DenseIndex(n={len(self)}, normalise={self.normalise})"

    def search(self, queries: Any, k: int, max_memory: str | int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows for each query.

        Parameters
        ----------
        queries : array (q, d)
        k : int
        max_memory : str, int or None
            Bytes for temporaries; the result does not depend on it.

        Returns
        -------
        scores : ndarray (q, k) float32
            Cosine (or inner product), descending; among equal scores the lower row comes first.
        indices : ndarray (q, k) int64

        Raises
        ------
        DataError
            Width mismatch, k > n, NaN or zero-norm queries or embeddings.
        """
        return top_k(queries, self._bank, k, normalise=self.normalise, max_memory=max_memory)

    def names(self, indices: Any) -> np.ndarray:
        """Ids (same shape, str) of row numbers."""
        return self._bank.names(indices)
