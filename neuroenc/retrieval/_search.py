"""Exact search: top-k inner products in one pass over a bank, the dense index, and hybrid search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from neuroenc._core.checks import at_least, check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.memory import parse_memory
from neuroenc._core.topk import BestRows, exact_scores, plan_blocks, row_norms
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


def _prefix_top_k(
    queries: Any, bank: EmbeddingBank, k: int, normalise: bool, max_memory: Any, prefix: int, rescore: int
) -> tuple[np.ndarray, np.ndarray]:
    """Best k of the ``rescore * k`` rows that are best in the first dimensions, scored in all of them."""
    best = BestRows(queries, k, bank.n, normalise=normalise)
    asked, width = best.exact, best.exact.shape[1]
    first = BestRows(asked[:, :prefix], min(rescore * k, int(bank.n or 0)), bank.n, normalise=normalise)
    # Rows of few dimensions are worth larger chunks, as fewer are merged; a third is for rows as they are stored.
    rows, block = plan_blocks(parse_memory(max_memory), prefix + width // 3, len(asked), rows=16_384)
    for chunk in bank.chunks(rows, width):
        first.update(chunk._replace(rows=chunk.rows[:, :prefix]), block)
    found = first.finish()[1]
    # Pairs of a query and a row, in the order of rows, which a bank reads once.
    flat, scores = found.ravel(), np.empty(found.size, np.float32)
    order = np.argsort(flat, kind="stable")
    begin = 0
    for chunk in bank.take(np.unique(flat), rows):
        at = chunk.at(np.arange(len(chunk.rows)))
        end = begin + int(np.searchsorted(flat[order[begin:]], at[-1], side="right"))
        pairs = order[begin:end]
        row = np.searchsorted(at, flat[pairs])
        value = exact_scores(asked, chunk.rows, pairs // found.shape[1], row)
        scores[pairs] = value / row_norms(chunk, True)[row] if normalise else value
        begin = end
    each = scores.reshape(found.shape)
    chosen = np.lexsort((found, -each), axis=1)[:, :k]
    return np.take_along_axis(each, chosen, 1), np.take_along_axis(found, chosen, 1)


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
    prefix : int, optional
        Search in two steps: the ``rescore * k`` rows that are best in so many first dimensions are found exactly, and
        scored again in all dimensions. What is found is what the full search finds, except for rows that were not among
        them; with ``prefix`` of all dimensions it is the same. An eighth of the dimensions is an eighth of the
        arithmetic, and took a third of the seconds on 500,000 rows. They must be worth it: those of a space of kind
        "nested" (:func:`neuroenc.embedding.train_space`), principal components, or a
        :class:`~neuroenc.embedding.BasisTransform` are, those of most networks are not.
    rescore : int
        Candidates for each row that is asked for.

    Raises
    ------
    DataError
        Wrong shape or dtype, wrong number of ids, or a stream that can be read only once.
    ConfigError
        A prefix that is longer than the embeddings.

    References
    ----------
    Kusupati et al. (2022), Matryoshka representation learning, NeurIPS (adaptive retrieval).

    Examples
    --------
    >>> import numpy as np
    >>> index = DenseIndex(np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), ids=["a", "b", "c"])
    >>> scores, rows = index.search(np.array([[0.0, 3.0]]), k=2)
    >>> index.names(rows).tolist(), scores.round(3).tolist()
    ([['b', 'c']], [[1.0, 0.707...]])
    >>> rows = np.random.default_rng(0).standard_normal((1000, 16)) * 0.5 ** np.arange(16)
    >>> nested = DenseIndex(rows, prefix=4)
    >>> bool((nested.search(rows[:5], k=3)[1] == DenseIndex(rows).search(rows[:5], k=3)[1]).all())
    True
    """

    def __init__(
        self,
        embeddings: Any,
        ids: Sequence[str] | np.ndarray | None = None,
        normalise: bool = True,
        *,
        prefix: int | None = None,
        rescore: int = 4,
    ) -> None:
        self._bank = as_bank(embeddings, ids).again("an index reads its embeddings at each search")
        self.normalise = bool(normalise)
        width = int(self._bank.width or 0)
        self.prefix = None if prefix is None else check_whole("prefix", prefix)
        self.rescore = check_whole("rescore", rescore)
        if self.prefix is not None and self.prefix > width:
            raise ConfigError(f"prefix={prefix} of embeddings of {width} dimensions; legal are 1 to {width}.")

    def __len__(self) -> int:
        return int(self._bank.n or 0)

    def __repr__(self) -> str:
        first = "" if self.prefix is None else f", prefix={self.prefix}, rescore={self.rescore}"
        return f"DenseIndex(n={len(self)}, normalise={self.normalise}{first})"

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
            Width mismatch, k > n, NaN or zero-norm queries or embeddings (with ``prefix``: in their first dimensions).
        """
        if self.prefix not in (None, self._bank.width):
            how: dict[str, Any] = {"prefix": self.prefix, "rescore": self.rescore, "max_memory": max_memory}
            return _prefix_top_k(queries, self._bank, k, self.normalise, **how)
        return top_k(queries, self._bank, k, normalise=self.normalise, max_memory=max_memory)

    def names(self, indices: Any) -> np.ndarray:
        """Ids (same shape, str) of row numbers."""
        return self._bank.names(indices)


_QUERIES = 256  # fused at a time: bounds the table of candidates


class SearchIndex(Protocol):
    """Protocol of a search index: :class:`DenseIndex`, :class:`LexicalIndex`, or your own.

    An index whose ``search`` also returns what does not match at all says by an attribute ``no_match`` which score
    (and any below) that is.
    """

    def __len__(self) -> int: ...

    def search(self, queries: Any, k: int, max_memory: str | int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Scores (q, k), descending, and row numbers (q, k)."""

    def names(self, indices: Any) -> np.ndarray:
        """Ids of row numbers."""


class HybridResult(NamedTuple):
    """Ranked ids of a hybrid search for each query.

    Attributes
    ----------
    scores : ndarray (q, k) float64
        Descending; -inf where fewer than k ids were found.
    ids : ndarray (q, k) str
        "" where fewer than k ids were found.
    ranks : ndarray (q, k, index) int64
        Place of the id in the ranking of each index, from 1; 0 where it was not among them.
    before : ndarray (q, k) int64
        Place in the fused ranking, from 1: its own place, but for what a second stage has moved; 0 for no id.
    """

    scores: np.ndarray
    ids: np.ndarray
    ranks: np.ndarray
    before: np.ndarray


class Reranked(NamedTuple):
    """Ids of a first stage in the order of a second one.

    Attributes
    ----------
    scores : ndarray (q, k) float64
        Of the second stage, descending; -inf where there is no id.
    ids : ndarray (q, k)
        As given; "" where there is none.
    before : ndarray (q, k) int64
        Place in the first stage, from 1; 0 where there is no id.
    """

    scores: np.ndarray
    ids: np.ndarray
    before: np.ndarray


def second_stage(ids: Any, score: Callable[[int, Any], Any], k: int | None = None) -> Reranked:
    """Reorder the ids that a first stage found by the scores of a second one.

    Parameters
    ----------
    ids : array (q, depth)
        Of each query, the best first; "" for none.
    score : callable
        Called once a query with its number and its ids (those that are none left out); gives one number each, the
        higher the better: :meth:`CrossRanker.scorer`, or your own.
    k : int, optional
        Ids that are kept; default all.

    Returns
    -------
    Reranked
        Among equal scores the better place in the first stage comes first.

    Raises
    ------
    DataError
        Scores of another number, or NaN.

    Examples
    --------
    >>> length = lambda query, ids: [len(name) for name in ids]
    >>> found = second_stage([["dog", "horse", "cat"]], length, k=2)
    >>> found.ids.tolist(), found.before.tolist()
    ([['horse', 'dog']], [[2, 1]])
    """
    names = np.asarray(ids)
    if names.ndim != 2:
        raise DataError(f"ids have shape {names.shape}; expected (query, depth).")
    depth = names.shape[1]
    k = depth if k is None else check_whole("k", k)
    if k > depth:
        raise DataError(f"k={k} of {depth} ids a query; k must be at most {depth}.")
    there = names != "" if names.dtype.kind in "UO" else np.ones(names.shape, bool)
    scores = np.full(names.shape, -np.inf)
    for query, (row, real) in enumerate(zip(names, there)):
        if not real.any():
            continue
        given = np.asarray(score(query, row[real]), dtype=np.float64)
        if given.shape != (int(real.sum()),) or np.isnan(given).any():
            found = f"{int(np.isnan(given).sum())} NaN" if given.shape == (int(real.sum()),) else f"shape {given.shape}"
            raise DataError(
                f"the second stage gave {found} for {int(real.sum())} ids of query {query}; legal is one number each."
            )
        scores[query, real] = given
    # No id comes last even among scores of minus infinity.
    order = np.lexsort((-scores, ~there), axis=1)[:, :k]
    place = np.where(there, np.arange(1, depth + 1), 0)
    return Reranked(*(np.take_along_axis(x, order, 1) for x in (scores, names, place)))


def hybrid_search(
    indexes: Sequence[SearchIndex],
    queries: Sequence[Any],
    k: int,
    *,
    method: str = "rrf",
    rrf_k: float = 60.0,
    weights: Sequence[float] | None = None,
    depth: int | None = None,
    rerank: Callable[[int, Any], Any] | None = None,
    rerank_depth: int = 100,
    max_memory: str | int | None = None,
) -> HybridResult:
    r"""Hybrid search: fuse the rankings of several indexes, such as dense and lexical.

    .. math:: \mathrm{rrf}(d) = \sum_r \frac{w_r}{k_{rrf} + \mathrm{rank}_r(d)}, \qquad
              \mathrm{convex}(d) = \sum_r \frac{w_r}{\sum_{r'} w_{r'}}\,
              \frac{s_r(d) - \min s_r}{\max s_r - \min s_r}

    over the indexes r that found d among their ``depth`` best; minimum and maximum are over those, and all are 1 where
    they have one score. Reciprocal ranks need no common scale; a convex combination keeps how much better the best
    are, and its weights are worth tuning. Rankings are joined by id: an id with several rows in an index has the rank
    and score of its best one.

    Parameters
    ----------
    indexes : sequence of DenseIndex, LexicalIndex, ...
        At least one. The same ids mean the same stimuli in all; an id may be absent from some.
    queries : sequence, one entry an index
        The same q queries in the form of each: vectors (q, d), texts, ...
    k : int
    method : {"rrf", "convex"}
    rrf_k : float
        Above 0; the larger, the less first places stand out.
    weights : sequence of float, one an index, optional
        Not negative, not all zero; equal by default.
    depth : int, optional
        Rows asked of each index; by default the larger of 1000 and 10 k, at most its length.
    rerank : callable, optional
        A second stage, which orders the best of the fusion anew: gives scores for the number of a query and ids, such
        as :meth:`CrossRanker.scorer`.
    rerank_depth : int
        How many of the best it scores for each query; k, if that is more.
    max_memory : str, int or None
        For the indexes' searches.

    Returns
    -------
    HybridResult
        ``scores, ids, ranks, before``; with ``rerank`` the scores are those of the second stage.
        Among equal scores (to 12 digits) the better place in the first index (then the second, ...) comes first, then
        the id in alphabetical order. It does not depend on which queries are asked together.

    Raises
    ------
    ConfigError
        An unknown method, or k, rrf_k, weights, depth or rerank_depth that are not legal.
    DataError
        No index, or queries of different numbers.

    References
    ----------
    Cormack, Clarke & Büttcher (2009), Reciprocal rank fusion, SIGIR. Bruch, Gai & Ingber (2023), An analysis of fusion
    functions for hybrid retrieval, ACM TOIS 42(1).

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.retrieval import DenseIndex, LexicalIndex
    >>> dense = DenseIndex(np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), ids=["a", "b", "c"])
    >>> words = LexicalIndex(["a cat", "a red bus", "a red car"], ids=["a", "b", "c"])
    >>> found = hybrid_search([dense, words], [np.array([[1.0, 0.1]]), ["red bus"]], k=2, depth=2)
    >>> found.ids.tolist(), found.ranks.tolist()
    ([['b', 'a']], [[[2, 1], [1, 0]]])
    >>> longest = lambda query, ids: [{"a": 5, "b": 9, "c": 9}[name] for name in ids]
    >>> found = hybrid_search([dense], [np.array([[1.0, 0.1]])], k=2, rerank=longest)
    >>> found.ids.tolist(), found.before.tolist()
    ([['b', 'c']], [[2, 3]])
    """
    one_of("method", method, ("rrf", "convex"))
    k = check_whole("k", k)
    depth = max(1000, 10 * k) if depth is None else check_whole("depth", depth)
    at_least("rrf_k", rrf_k, above=True)
    counts = [len(q) for q in queries]
    if not len(indexes) or len(counts) != len(indexes) or len(set(counts)) > 1:
        raise DataError(
            f"{len(indexes)} indexes and queries of lengths {counts}; each index needs the same queries in its own "
            "form. Next step: hybrid_search([dense, lexical], [vectors, texts], k)."
        )
    weight = np.ones(len(indexes)) if weights is None else np.asarray(weights, dtype=np.float64)
    if weight.shape != (len(indexes),) or not np.isfinite(weight).all() or (weight < 0).any() or not weight.any():
        raise ConfigError(f"weights={weights!r} for {len(indexes)} indexes; legal is one each, at least 0, one above.")
    # Each index is asked once, because it may have to read a bank from disk for it.
    found = [index.search(asked, min(depth, len(index)), max_memory) for index, asked in zip(indexes, queries)]
    parts = []
    width = k if rerank is None else max(k, check_whole("rerank_depth", rerank_depth))
    for a in range(0, max(counts[0], 1), _QUERIES):
        block = [(s[a : a + _QUERIES], rows[a : a + _QUERIES]) for s, rows in found]
        parts.append(_fused(indexes, block, width, method, float(rrf_k), weight))
    scores, ids, ranks = (np.concatenate([p[i] for p in parts]) for i in range(3))
    if rerank is None:
        return HybridResult(scores, ids, ranks, np.where(ids != "", np.arange(1, k + 1), 0))
    again = second_stage(ids, rerank, k)
    at = np.where(again.before > 0, again.before - 1, width - 1)[..., None]
    ranks = np.where(again.before[..., None] > 0, np.take_along_axis(ranks, at, 1), 0)
    return HybridResult(again.scores, again.ids, ranks, again.before)


def _fused(
    indexes: Sequence[SearchIndex],
    rankings: list[tuple[np.ndarray, np.ndarray]],
    k: int,
    method: str,
    rrf_k: float,
    weight: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, ids and ranks of a block of queries."""
    n, share, found = len(rankings[0][0]), weight if method == "rrf" else weight / weight.sum(), []
    for r, (index, (scores, rows)) in enumerate(zip(indexes, rankings)):
        # A ranking of no weight finds nothing either, so that what only it knows is left out.
        match = (scores > getattr(index, "no_match", -np.inf)) & (share[r] > 0)
        distinct, inverse = np.unique(rows, return_inverse=True)
        names = index.names(distinct)[inverse.reshape(rows.shape)]
        table = pd.DataFrame({"query": np.nonzero(match)[0], "id": names[match].astype(object)})
        # An id counts where it first stands, and its rank is that among ids.
        table = table.assign(score=np.asarray(scores, np.float64)[match]).drop_duplicates(["query", "id"])
        each = table.groupby("query")["score"]
        rank = each.cumcount() + 1
        points = 1 / (rrf_k + rank)
        if method == "convex":
            low, high = each.transform("min"), each.transform("max")
            points = ((table["score"] - low) / (high - low)).where(high > low, 1.0)
        found.append(table.assign(index=r, rank=rank, points=share[r] * points))
    table = pd.concat(found)
    total = table.groupby(["query", "id"])["points"].sum()
    ranks = table.pivot(index=["query", "id"], columns="index", values="rank").reindex(columns=range(len(indexes)))
    # Equal scores by the places in the first index, the second, ..., where absent ids come last; then by id.
    best = ranks.assign(total=total, place=-total.round(12)).reset_index()
    best = best.sort_values(["query", "place", *range(len(indexes)), "id"], na_position="last", kind="stable")
    column = best.groupby("query").cumcount().to_numpy()
    best, at = best[column < k], column[column < k]
    query = best["query"].to_numpy(np.int64)
    out = np.full((n, k), -np.inf), np.full((n, k), "", object), np.zeros((n, k, len(indexes)), np.int64)
    out[0][query, at], out[1][query, at] = best["total"], best["id"]
    out[2][query, at] = best[list(range(len(indexes)))].fillna(0)
    return out[0], out[1].astype(str), out[2]
