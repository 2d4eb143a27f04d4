"""Exact top-k inner products in one pass over a bank, and the dense index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import check_whole
from neuroenc._core.errors import DataError
from neuroenc._core.memory import parse_memory
from neuroenc.retrieval._bank import Chunk, EmbeddingBank
from neuroenc.retrieval._shards import as_bank

__all__ = ["BestRows", "DenseIndex", "exact_scores", "merge_best", "plan_blocks", "row_norms", "top_k"]

_EPS = float(np.finfo(np.float32).eps)
_PAIRS = 1 << 18  # elements of gathered rows held in float64 at a time


def plan_blocks(
    budget: int, width: int, n_queries: int, itemsize: int = 4, rows: int = 4096, block: int = 512
) -> tuple[int, int]:
    """Rows a chunk and queries a block so that all temporaries stay within ``budget`` bytes."""
    block = max(1, min(block, n_queries))
    while True:
        # stored, float64 for the norms and working rows; scores, exponentials, mask; gathered pairs
        need = rows * width * (16 + 2 * itemsize) + rows * block * (3 * itemsize + 1) + _PAIRS * 16
        if need <= budget or (rows <= 32 and block <= 16):
            return rows, block
        if rows > 32 and (rows * width * 24 > budget // 2 or block <= 16 or rows >= 2 * block):
            rows //= 2
        else:
            block = max(1, block // 2)


def row_norms(chunk: Chunk, need_positive: bool) -> np.ndarray:
    """Euclidean norm of each row in float64 (m,); refuses NaN, infinite and (on demand) zero rows."""
    rows = np.asarray(chunk.rows, dtype=np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    bad = ~np.isfinite(norms)
    if need_positive and not bad.any():
        bad = norms == 0
        kind = "zero norm"
    else:
        kind = "NaN or infinite values"
    if bad.any():
        first = int(chunk.at(np.flatnonzero(bad)[:1])[0])
        name = str(chunk.names(np.array([first]))[0])
        raise DataError(
            f"{int(bad.sum())} of {len(norms)} embeddings from row {chunk.start} on have {kind}; the first "
            f"is row {first} (id {name!r}). Next step: drop these rows from the bank."
        )
    return norms


def exact_scores(left: np.ndarray, rows: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Inner products of ``left[i]`` (float64) and ``rows[j]`` in float64, pair by pair.

    A product of two given rows has one value wherever the rows stand; a matrix product does not promise it.
    """
    out = np.empty(len(i))
    step = max(1, _PAIRS // left.shape[1])
    for a in range(0, len(i), step):
        part = slice(a, a + step)
        out[part] = np.einsum("ij,ij->i", left[i[part]], np.asarray(rows[j[part]], dtype=np.float64))
    return out


def _queries(queries: Any, normalise: bool) -> np.ndarray:
    given = as_numpy(queries, "queries")
    if given.dtype.kind not in "fiub":
        raise DataError(
            f"queries have dtype {given.dtype}; legal are numbers. Next step: embed texts first, or LexicalIndex."
        )
    q = given.astype(np.float64)
    if q.ndim != 2:
        raise DataError(f"queries have shape {q.shape}; legal is (q, d). Next step: queries[None] for one query.")
    if not np.isfinite(q).all():
        bad = np.flatnonzero(~np.isfinite(q).all(axis=1))
        raise DataError(f"{len(bad)} of {len(q)} queries hold NaN or infinite values; the first is query {bad[0]}.")
    if normalise:
        norms = np.linalg.norm(q, axis=1)
        if (norms == 0).any():
            bad = np.flatnonzero(norms == 0)
            raise DataError(f"{len(bad)} of {len(q)} queries have zero norm; the first is query {bad[0]}.")
        q = q / norms[:, None]
    return q


def merge_best(scores: np.ndarray, index: np.ndarray, i: np.ndarray, new: np.ndarray, at: np.ndarray) -> None:
    """Put candidates (query i, score new, row at) into the sorted lists, in place."""
    k = scores.shape[1]
    touched, local = np.unique(i, return_inverse=True)
    who = np.concatenate([np.repeat(np.arange(len(touched)), k), local])
    value = np.concatenate([scores[touched].ravel(), new])
    where = np.concatenate([index[touched].ravel(), at])
    order = np.lexsort((where, -value, who))
    first = np.searchsorted(who[order], np.arange(len(touched)))
    best = order[first[:, None] + np.arange(k)]
    scores[touched], index[touched] = value[best], where[best]


class BestRows:
    """The k best rows of a bank for each query so far, from chunks that are handed in; see :func:`top_k`.

    Parameters
    ----------
    queries : array (q, d)
    k : int
    n : int or None
        Rows of the bank, where that is known.
    normalise : bool
    """

    def __init__(self, queries: Any, k: int, n: int | None, *, normalise: bool = True) -> None:
        k = check_whole("k", k)
        if n is not None and k > n:
            raise DataError(f"k={k} of a bank of {n} embeddings; k must be at most {n}.")
        self.k, self.normalise = k, normalise
        self.exact = _queries(queries, normalise)
        self._fast = self.exact.astype(np.float32)
        self._size = np.linalg.norm(self.exact, axis=1)
        #: Scores (q, k) float32, descending, and rows (q, k) int64; -1 where fewer than k rows were seen.
        self.scores = np.full((len(self.exact), k), -np.inf, np.float32)
        self.index = np.full((len(self.exact), k), -1, np.int64)
        self.total = 0

    def update(self, chunk: Chunk, block: int = 512) -> None:
        """Take rows in; ``block`` queries are compared at a time."""
        norms = row_norms(chunk, self.normalise)
        work = np.asarray(chunk.rows, dtype=np.float32)
        if self.normalise:
            work = (work / norms[:, None]).astype(np.float32)
        n, width, m = *self.exact.shape, len(work)
        self.total += m
        slack = width * _EPS * self._size * (1.0 if self.normalise else float(norms.max()))
        for a in range(0, n, block):
            part = slice(a, min(a + block, n))
            product = self._fast[part] @ work.T
            floor = self.scores[part, -1] - slack[part]
            hits = product >= floor[:, None].astype(np.float32)
            if m > self.k and hits.sum() > 4 * self.k * len(product):
                own = np.partition(product, m - self.k, axis=1)[:, m - self.k] - slack[part]
                hits = product >= np.maximum(floor, own)[:, None].astype(np.float32)
            i, j = np.nonzero(hits)
            if len(i) == 0:
                continue
            value = exact_scores(self.exact[part], chunk.rows, i, j)
            if self.normalise:
                value /= norms[j]
            merge_best(self.scores[part], self.index[part], i, value.astype(np.float32), chunk.at(j))

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores (q, k) float32 and rows (q, k) int64."""
        if self.total < self.k:
            raise DataError(f"k={self.k} of a bank of {self.total} embeddings; k must be at most {self.total}.")
        return self.scores, self.index


def top_k(
    queries: Any,
    bank: EmbeddingBank,
    k: int,
    *,
    normalise: bool = True,
    max_memory: str | int | None = None,
    seen: Callable[[Chunk, np.ndarray], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows m of a bank with the largest ``q . m`` for each query, exactly, in one pass.

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
        self._bank = as_bank(embeddings, ids)
        if not self._bank.reusable:
            raise DataError("an index reads its embeddings at each search: pass a list, an array or a path.")
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
