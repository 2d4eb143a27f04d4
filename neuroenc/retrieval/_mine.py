"""Hard negatives: candidates that rank high for a query and do not belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.arrays import as_numbers, unit_rows
from neuroenc._core.checks import at_least, check_whole, make_rng, one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.retrieval._search import SearchIndex

_QUERIES = 256


class Ranked(NamedTuple):
    """Candidates of some queries, the most similar first, without those that belong to them.

    Attributes
    ----------
    scores : array (q, depth)
        Cosine similarity of query and candidate.
    positive : array (q,)
        That of the query and its best positive.
    owners : array (q, depth)
        Of the query and the mean query of what the candidate belongs to; NaN where nothing asks for it.
    """

    scores: np.ndarray
    positive: np.ndarray
    owners: np.ndarray


class NegativeFilter(Protocol):
    """Says which candidates may be negatives."""

    def keep(self, ranked: Ranked) -> np.ndarray:
        """Bool (q, depth)."""


@dataclass(frozen=True)
class OwnerQuery:
    """Drop candidates whose own query is much like the query: they may be answers to it that nobody marked.

    Parameters
    ----------
    most : float
        Cosine similarity above which two queries ask for the same.

    References
    ----------
    Ju et al. (2025), From Generator to Embedder, arXiv:2508.00955.

    Examples
    --------
    >>> OwnerQuery(0.8).keep(Ranked(np.ones((1, 2)), np.ones(1), np.array([[0.9, 0.3]]))).tolist()
    [[False, True]]
    """

    most: float = 0.9

    def keep(self, ranked: Ranked) -> np.ndarray:
        """Bool (q, depth); candidates that nothing asks for are kept."""
        return ~(ranked.owners > self.most)


@dataclass(frozen=True)
class AdaptiveMargin:
    """Drop candidates that score nearly as high as the positive, or higher.

    Parameters
    ----------
    share : float
        Of the positive's score.

    References
    ----------
    Moreira et al. (2024), NV-Retriever, arXiv:2407.15831.

    Examples
    --------
    >>> AdaptiveMargin(0.9).keep(Ranked(np.array([[0.8, 0.5]]), np.array([0.8]), np.zeros((1, 2)))).tolist()
    [[False, True]]
    """

    share: float = 0.95

    def keep(self, ranked: Ranked) -> np.ndarray:
        """Bool (q, depth)."""
        if np.isnan(ranked.positive).any():
            raise DataError(
                f"{int(np.isnan(ranked.positive).sum())} of {len(ranked.positive)} queries have no positive among the "
                "candidates, which AdaptiveMargin compares with. Next step: their ids, or another filter."
            )
        limit = ranked.positive - (1 - self.share) * np.abs(ranked.positive)
        return ranked.scores < limit[:, None]


@dataclass(frozen=True)
class RankWindow:
    """Keep candidates of ranks ``first`` to ``last``: the very best are often answers that nobody marked.

    Parameters
    ----------
    first, last : int
        From 1.

    References
    ----------
    Hu et al. (2025), KaLM-Embedding-V2, arXiv:2506.20923, who draw from ranks 50 to 100.

    Examples
    --------
    >>> RankWindow(2, 3).keep(Ranked(np.ones((1, 4)), np.ones(1), np.zeros((1, 4)))).tolist()
    [[False, True, True, False]]
    """

    first: int = 50
    last: int = 100

    def keep(self, ranked: Ranked) -> np.ndarray:
        """Bool (q, depth)."""
        rank = np.arange(1, ranked.scores.shape[1] + 1)
        return np.broadcast_to((rank >= self.first) & (rank <= self.last), ranked.scores.shape)


@dataclass(frozen=True)
class HardNegatives:
    """What `mine_hard_negatives` found.

    Attributes
    ----------
    indices : int64 array (query, k)
        Rows of the candidates; -1 where fewer than k were left.
    scores : float32 array (query, k)
        Cosine similarity; NaN there.
    dropped : dict of str to float
        Share of the candidates looked at that each filter, by itself, drops.
    query_ids, candidate_ids : array
    """

    indices: np.ndarray
    scores: np.ndarray
    dropped: dict[str, float]
    query_ids: np.ndarray
    candidate_ids: np.ndarray

    def batches(self, size: int, seed: int = 0) -> list[np.ndarray]:
        """Ids dealt into batches whose members are hard negatives of each other, each id once.

        A batch is an id drawn at random, the owners of its hard negatives, theirs, and so on.

        Parameters
        ----------
        size : int
        seed : int

        Examples
        --------
        >>> found = mine_hard_negatives(np.eye(4)[[0, 0, 1, 1]], np.eye(4)[[0, 0, 1, 1]], k=1)
        >>> sorted(sorted(b.tolist()) for b in found.batches(2))
        [['0', '1'], ['2', '3']]
        """
        names, of = np.unique(self.query_ids, return_inverse=True)
        place = pd.Index(names)
        near: list[list[int]] = [[] for _ in names]
        for row, several in zip(of, self.indices):
            near[row] += place.get_indexer(self.candidate_ids[several[several >= 0]]).tolist()
        rng, size = make_rng(seed), check_whole("size", size)
        free, out = np.ones(len(names), bool), []
        batch: list[int] = []
        for start in rng.permutation(len(names)).tolist():
            waiting = [start]
            # Breadth first, so that the nearest come before their own neighbours.
            for one in waiting:
                if one < 0 or not free[one]:
                    continue
                free[one] = False
                batch.append(one)
                if len(batch) == size:
                    out.append(names[batch])
                    batch = []
                    break
                waiting += near[one]
        return [*out, names[batch]] if batch else out


def mine_hard_negatives(
    queries: Any,
    candidates: Any,
    *,
    query_ids: Any = None,
    candidate_ids: Any = None,
    k: int = 8,
    filters: Sequence[NegativeFilter] = (),
    depth: int = 200,
    draw: str = "best",
    seed: int = 0,
) -> HardNegatives:
    """Find hard negatives of each query: the most similar candidates that are not its own and that filters keep.

    Parameters
    ----------
    queries : array or DataArray (query, feature)
        Compared by cosine.
    candidates : array or DataArray (candidate, feature)
        The very same array as ``queries`` is legal; a row is then no positive of itself.
    query_ids, candidate_ids : sequence, optional
        A candidate belongs to the queries of its id, such as the captions and the picture of one stimulus. Default: the
        coordinate ``stimulus``, else row n to row n.
    k : int
    filters : sequence
        `OwnerQuery`, `AdaptiveMargin`, `RankWindow`, or anything with ``keep(ranked)``; all must agree.
    depth : int
        Candidates of each query that filters look at.
    draw : {"best", "random"}
        The hardest of those that are left, or a random choice of them.
    seed : int

    Raises
    ------
    DataError
        Vectors of different widths, or ids of another number.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> pictures = rng.standard_normal((40, 8))
    >>> texts = pictures + 0.1 * rng.standard_normal((40, 8))
    >>> found = mine_hard_negatives(texts, pictures, k=2, filters=[OwnerQuery(0.9)])
    >>> found.indices.shape, bool((found.indices == np.arange(40)[:, None]).any())
    ((40, 2), False)
    """
    same, k, depth = queries is candidates, check_whole("k", k), check_whole("depth", depth)
    one_of("draw", draw, ("best", "random"))
    for each in filters:
        if isinstance(each, RankWindow) and (each.first < 1 or each.last < each.first or each.last > depth):
            raise ConfigError(f"{each} with depth={depth}: legal is 1 <= first <= last <= depth.")
        for name in ("most", "share"):
            at_least(name, getattr(each, name, 0), -1)
    labels = [
        _ids(x, ids, what)
        for x, ids, what in ((queries, query_ids, "queries"), (candidates, candidate_ids, "candidates"))
    ]
    asked, given = unit_rows(as_numbers(queries, "queries")), unit_rows(as_numbers(candidates, "candidates"))
    if asked.ndim != 2 or given.ndim != 2 or asked.shape[1] != given.shape[1]:
        raise DataError(f"queries have shape {asked.shape}, candidates {given.shape}; expected (n, d) and (m, d).")
    owner_of, owners = _owners(asked, *labels)
    rows = pd.factorize(np.concatenate(labels))[0]
    mine, theirs = rows[: len(asked)], rows[len(asked) :]
    rng, depth = make_rng(seed), min(depth, len(given))
    indices = np.full((len(asked), k), -1)
    scores = np.full((len(asked), k), np.nan, np.float32)
    counts = dict.fromkeys((type(f).__name__ for f in filters), 0)
    looked = 0
    for first in range(0, len(asked), _QUERIES):
        block = slice(first, min(first + _QUERIES, len(asked)))
        every = asked[block] @ given.T
        own = mine[block, None] == theirs[None]
        right = own.copy()
        if same:
            right[np.arange(len(every)), np.arange(block.start, block.stop)] = False
        positive = np.where(right, every, -np.inf).max(1)
        every[own] = -np.inf
        top = np.argpartition(-every, depth - 1, axis=1)[:, :depth]
        top = np.take_along_axis(top, np.argsort(-np.take_along_axis(every, top, 1), axis=1, kind="stable"), 1)
        found = np.take_along_axis(every, top, 1)
        known = owner_of[top] >= 0
        likeness = np.einsum("qd,qcd->qc", asked[block], owners[owner_of[top]])
        ranked = Ranked(found, np.where(np.isfinite(positive), positive, np.nan), np.where(known, likeness, np.nan))
        kept = np.isfinite(found)
        looked += int(kept.sum())
        for each in filters:
            keeps = each.keep(ranked)
            counts[type(each).__name__] += int((np.isfinite(found) & ~keeps).sum())
            kept = kept & keeps
        order = np.where(kept, rng.random(kept.shape) if draw == "random" else np.arange(depth)[None], np.inf)
        chosen = np.argsort(order, axis=1, kind="stable")[:, :k]
        good = np.isfinite(np.take_along_axis(order, chosen, 1))
        width = chosen.shape[1]
        indices[block, :width] = np.where(good, np.take_along_axis(top, chosen, 1), -1)
        scores[block, :width] = np.where(good, np.take_along_axis(found, chosen, 1), np.nan)
    dropped = {name: n / max(looked, 1) for name, n in counts.items()}
    return HardNegatives(indices, scores, dropped, *labels)


@dataclass(frozen=True)
class Galleries:
    """A gallery of candidates for each query, as `hard_gallery` pools it.

    Attributes
    ----------
    ids : str array (query, size)
        Positives first, then the hardest negatives; "" where fewer were found.
    relevant : bool array (query, size)
        Positives.
    """

    ids: np.ndarray
    relevant: np.ndarray

    def recall(self, scores: Any, candidate_ids: Any, k: int = 1) -> np.ndarray:
        """Whether a positive is among the k best of its gallery; ties count by their chance.

        Parameters
        ----------
        scores : array (query, candidate)
            Of a model, higher is more similar; NaN ranks last.
        candidate_ids : sequence of str (candidate,)
            Names of the columns, each once.
        k : int

        Returns
        -------
        array (query,), float64
            From 0 to 1; with one positive its mean is recall at k.

        Raises
        ------
        DataError
            Candidates of a gallery without scores, or scores of another shape.

        Examples
        --------
        >>> galleries = Galleries(np.array([["a", "b"], ["b", "c"]]), np.array([[True, False]] * 2))
        >>> galleries.recall([[0.9, 0.1, 0.2], [0.0, 0.3, 0.3]], ["a", "b", "c"]).tolist()
        [1.0, 0.5]
        """
        values, k = np.asarray(scores, dtype=np.float64), check_whole("k", k)
        names = pd.Index(np.asarray(candidate_ids).astype(str))
        if names.has_duplicates:
            raise DataError(f"candidate {names[names.duplicated()][0]!r} stands more than once.")
        if values.shape != (len(self.ids), len(names)):
            raise DataError(f"scores have shape {values.shape}; expected {(len(self.ids), len(names))}.")
        at, held = names.get_indexer(self.ids.ravel()).reshape(self.ids.shape), self.ids != ""
        if (at[held] < 0).any():
            raise DataError(unknown_name("candidate", self.ids[held][at[held] < 0][0], names))
        own = np.where(held & (at >= 0), np.take_along_axis(values, np.maximum(at, 0), axis=1), -np.inf)
        own = np.where(np.isnan(own), -np.inf, own)
        best = np.where(self.relevant, own, -np.inf).max(axis=1, keepdims=True)
        others = held & ~self.relevant
        ahead = (others & (own > best)).sum(axis=1)
        level = (others & (own == best)).sum(axis=1)
        tied = (self.relevant & (own == best)).sum(axis=1)
        if not (tied > 1).any():
            return np.clip((k - ahead) / (level + 1.0), 0.0, 1.0)
        # Several positives level with each other: the chance that none of them is among the places left.
        left, lost = np.maximum(k - ahead, 0), np.ones(len(own))
        for step in range(int(left.max(initial=0))):
            here = step < left
            lost = np.where(here, lost * np.maximum(level - step, 0) / np.maximum(level + tied - step, 1), lost)
        return np.where(left > 0, 1.0 - lost, 0.0)


def hard_gallery(
    indexes: Sequence[SearchIndex],
    queries: Sequence[Any],
    positives: Sequence[Sequence[str]],
    *,
    size: int = 250,
) -> Galleries:
    """Reduce a retrieval task to galleries of hard negatives: each query's positives and what several retrievers find.

    A negative's place is its best rank in any retriever. Models that are compared must not be among the retrievers, or
    their own mistakes fill the galleries and no one else's.

    Parameters
    ----------
    indexes : sequence of DenseIndex, LexicalIndex, ...
        At least one; a list of several kinds finds what one of them alone would call easy.
    queries : sequence, one entry an index
        The same q queries in the form of each.
    positives : sequence of sequence of str
        Ids that belong to each query.
    size : int
        Candidates a gallery, positives included.

    Raises
    ------
    DataError
        Queries of different numbers, a query without positive, one whose positives do not fit.

    References
    ----------
    Enevoldsen et al. (2025), MMTEB, ICLR (hard negatives pooled from BM25 and dense retrievers).

    Examples
    --------
    >>> from neuroenc.retrieval import DenseIndex, LexicalIndex
    >>> dense = DenseIndex(np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), ids=["a", "b", "c"])
    >>> words = LexicalIndex(["a cat", "a red bus", "a red car"], ids=["a", "b", "c"])
    >>> hard_gallery([dense, words], [np.array([[0.0, 1.0]]), ["a red bus"]], [["b"]], size=2).ids.tolist()
    [['b', 'c']]
    """
    size = check_whole("size", size, 2)
    counts = [len(q) for q in queries]
    if not len(indexes) or len(counts) != len(indexes) or set(counts) != {len(positives)}:
        raise DataError(
            f"{len(indexes)} indexes, queries of lengths {counts} and positives of {len(positives)} queries; each "
            "index needs the same queries in its own form, and each query its positives."
        )
    own = [list(dict.fromkeys(map(str, several))) for several in positives]
    for n, several in enumerate(own):
        if not 0 < len(several) < size:
            raise DataError(
                f"query {n} has {len(several)} positives; legal are 1 to {size - 1} in galleries of {size}."
            )
    most = size + max(map(len, own), default=0)
    found = []
    for index, asked in zip(indexes, queries):
        scores, rows = index.search(asked, min(most, len(index)))
        found.append((scores > getattr(index, "no_match", -np.inf), index.names(rows)))
    ids = np.full((len(own), size), "", dtype=object)
    for n, several in enumerate(own):
        place: dict[str, tuple[int, int]] = {}
        for r, (match, names) in enumerate(found):
            for rank, name in enumerate(names[n][match[n]].tolist()):
                place[name] = min(place.get(name, (rank, r)), (rank, r))
        negatives = sorted((at, name) for name, at in place.items() if name not in several)
        chosen = [*several, *(name for _, name in negatives)][:size]
        ids[n, : len(chosen)] = chosen
    relevant = np.arange(size) < np.array([len(several) for several in own])[:, None]
    return Galleries(ids.astype(str), relevant)


def _ids(vectors: Any, ids: Any, what: str) -> np.ndarray:
    if ids is None and isinstance(vectors, xr.DataArray) and "stimulus" in vectors.coords:
        ids = vectors["stimulus"].values
    found = np.asarray([str(n) for n in range(len(vectors))] if ids is None else ids)
    if found.shape != (len(vectors),):
        raise DataError(f"ids of shape {found.shape} for {len(vectors)} {what}; legal is one each.")
    return found


def _owners(asked: np.ndarray, query_ids: np.ndarray, candidate_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the owner of each candidate, -1 for none, and the unit mean of the queries of each owner."""
    names, of = np.unique(query_ids, return_inverse=True)
    means = np.zeros((len(names), asked.shape[1]), asked.dtype)
    np.add.at(means, of, asked)
    return pd.Index(names).get_indexer(candidate_ids), unit_rows(means)
