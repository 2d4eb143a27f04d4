"""Best-k inner products, updated chunk by chunk, exactly and independent of chunks and BLAS."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import check_whole
from neuroenc._core.errors import DataError

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


def row_norms(chunk: Any, need_positive: bool) -> np.ndarray:
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
    n : int or None
        Rows of the bank, where that is known.
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

    def update(self, chunk: Any, block: int = 512) -> None:
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
