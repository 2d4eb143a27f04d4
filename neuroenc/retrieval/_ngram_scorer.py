"""Score documents by the n-grams that a language model generated for a query (SEAL)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neuroenc._core.checks import at_least, check_whole, share
from neuroenc._core.errors import DataError
from neuroenc.retrieval._ngram_index import NGramIndex

# Log-probabilities stay below 0 by this much, so that odds are finite.
_BELOW = 1e-10


def ngram_weight(logp: Any, counts: Any, n_tokens: int, *, alpha: float = 2.0, smoothing: float = 5.0) -> np.ndarray:
    r"""Weight of n-grams: log-odds for a query against the corpus (SEAL).

    .. math:: w(n) = \max\!\left(0,\; \log \frac{P(n \mid q)\,(1 - P(n))}{P(n)\,(1 - P(n \mid q))}\right)^{\alpha},
        \qquad P(n) = \frac{\mathrm{count}(n) + s}{N + s}

    Parameters
    ----------
    logp : array (n,)
        :math:`\log P(n \mid q)`, at most 0.
    counts : array (n,)
        Occurrences in the corpus; an n-gram that does not occur weighs 0.
    n_tokens : int
        N, tokens of the corpus.
    alpha : float
    smoothing : float
        s.

    Returns
    -------
    ndarray (n,) float64

    Raises
    ------
    DataError
        Log-probabilities above 0, NaN, or another number of counts.

    References
    ----------
    Bevilacqua et al. Autoregressive search engines: generating substrings as document identifiers. NeurIPS 2022.

    Examples
    --------
    >>> ngram_weight(np.log([0.5, 0.5, 0.001]), [5, 95, 95], 1000, alpha=1.0).round(2).tolist()
    [4.6, 2.2, 0.0]
    """
    log_query, n = np.asarray(logp, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if log_query.shape != n.shape:
        raise DataError(f"{log_query.shape} log-probabilities for counts of shape {n.shape}; legal are equal shapes.")
    if np.isnan(log_query).any() or (log_query > 1e-6).any():
        raise DataError("log-probabilities of n-grams hold NaN or numbers above 0. Next step: give log P(n | q).")
    if not ((n >= 0) & (n <= n_tokens)).all():
        raise DataError(
            f"counts of n-grams run from {n.min():g} to {n.max():g}; legal: 0 to n_tokens={n_tokens}. "
            "Next step: count them in the corpus whose tokens were counted."
        )
    # n-grams of count 0 without smoothing have no odds, and weigh 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        log_corpus = np.log((n + smoothing) / (n_tokens + smoothing))
        above = np.maximum(0.0, _log_odds(log_query) - _log_odds(log_corpus))
    return np.where(n > 0, above, 0.0) ** alpha


def _log_odds(logp: np.ndarray) -> np.ndarray:
    below = np.minimum(logp, -_BELOW)
    return below - np.log(-np.expm1(below))


class ScoredDocument(NamedTuple):
    """Document id, score, and the n-grams that contribute to it, (tokens, contribution), best first."""

    id: str
    score: float
    ngrams: list[tuple[tuple[int, ...], float]]


class NGramScorer:
    r"""Score documents by the n-grams they hold (SEAL).

    .. math:: s(d) = \sum_{n \in K(d)} w(n) \left(1 - \beta + \beta\, \frac{|\mathrm{set}(n) \setminus C|}
        {|\mathrm{set}(n)|}\right)

    with weights of :func:`ngram_weight`. K(d) are the n-grams that the document holds, each counted once, taken in
    descending weight (the longer first where equal); C are the tokens of those taken before. Documents are found by
    n-grams that occur at most ``open_count`` times; the best ``candidates`` of them are then scored by all.

    A document is all captions of the index with one id: captions of an image, or of a category. Long documents hold
    more n-grams; with ``relative`` what an n-gram adds is multiplied by its frequency in the document over its
    highest frequency in any of them, which documents of very different length need (not in the paper).

    Parameters
    ----------
    index : NGramIndex
        Its ``ids`` name the documents.
    alpha, smoothing : float
        Of the weights.
    beta : float
        0 to 1: how much repeated tokens take off.
    open_count : int, optional
        None: every n-gram opens documents.
    candidates : int
    relative : bool
    frequency : bool
        False: weights are those of the language model alone, :math:`(\log P(n \mid q) - \min \log P + 0.1)^\alpha`.

    Raises
    ------
    ConfigError
        Illegal settings.

    References
    ----------
    Bevilacqua et al. Autoregressive search engines: generating substrings as document identifiers. NeurIPS 2022.

    Examples
    --------
    >>> index = NGramIndex([[1, 2, 3], [3, 4, 1], [4, 2]], ids=["x", "x", "y"])
    >>> found = NGramScorer(index, alpha=1.0, smoothing=0.0).score([[4, 1], [2]], np.log([0.5, 0.5]))
    >>> [(d.id, round(d.score, 2), [n for n, _ in d.ngrams]) for d in found]
    [('x', 3.04, [(4, 1), (2,)]), ('y', 1.1, [(2,)])]
    """

    def __init__(
        self,
        index: NGramIndex,
        *,
        alpha: float = 2.0,
        beta: float = 0.8,
        smoothing: float = 5.0,
        open_count: int | None = 1500,
        candidates: int = 500,
        relative: bool = False,
        frequency: bool = True,
    ) -> None:
        if not isinstance(index, NGramIndex):
            raise DataError(f"index is a {type(index).__name__}; legal is a neuroenc.retrieval.NGramIndex.")
        self.index, self.alpha, self.beta = index, at_least("alpha", alpha, above=True), share("beta", beta)
        self.smoothing = at_least("smoothing", smoothing)
        self.open_count = None if open_count is None else check_whole("open_count", open_count)
        self.candidates = check_whole("candidates", candidates)
        self.relative, self.frequency = bool(relative), bool(frequency)
        self._of, names = pd.factorize(np.asarray(index.ids, dtype=object))
        #: Ids of the documents, in the order of the corpus.
        self.documents: np.ndarray = np.asarray(names, dtype=str)
        lengths = np.diff(index._starts) - 2
        self._length = np.maximum(1, np.bincount(self._of, lengths, minlength=len(names)))
        # Frequent n-grams are the same for many queries.
        self._kept = lru_cache(256)(self._locate)

    def __repr__(self) -> str:
        return f"NGramScorer({len(self.documents)} documents, {self.index!r})"

    def own_ngrams(self, tokens: Sequence[int], longest: int = 10) -> tuple[list[tuple[int, ...]], np.ndarray]:
        r"""N-grams of a query of ``tokens`` that occur in the corpus, and :math:`\log P(n \mid q)`.

        P(n | q) is the n-gram's count in the query over the query's length, the estimate that P(n) is of the corpus.
        """
        y = tuple(int(t) for t in tokens)
        counts: dict[tuple[int, ...], int] = {}
        for a in range(len(y)):
            for b in range(a + 1, min(len(y), a + longest) + 1):
                if not self.index.count(y[a:b]):
                    break
                counts[y[a:b]] = counts.get(y[a:b], 0) + 1
        return list(counts), np.log(np.array(list(counts.values()), dtype=np.float64) / max(1, len(y)))

    def score(self, ngrams: Sequence[Sequence[int]], logp: Any, top: int = 10) -> list[ScoredDocument]:
        r"""The best documents of one query.

        Parameters
        ----------
        ngrams : sequence of sequence of int
            In the tokens of the index. Of equal ones the most probable counts.
        logp : array (n,)
            :math:`\log P(n \mid q)`.
        top : int
            Documents at most; those without an n-gram of positive weight are never among them.

        Returns
        -------
        list of ScoredDocument
            The best first; equal ones in the order of the corpus.

        Raises
        ------
        DataError
            Numbers that do not agree, or are no log-probabilities.
        """
        check_whole("top", top)
        keys, weights, counts = self._weighed(ngrams, np.asarray(logp, dtype=np.float64).reshape(-1))
        frequent = math.inf if self.open_count is None else self.open_count
        opens = counts <= frequent
        places = [self._kept(k) if n > frequent else self._locate(k) for k, n in zip(keys, counts.tolist())]
        rare = np.flatnonzero(opens).tolist()
        rows, total, why = self._pass([keys[k] for k in rare], weights[opens], [places[k] for k in rare], None)
        if not len(rows):
            return []
        if len(rows) > self.candidates or not opens.all():
            rows = np.sort(rows[np.argsort(-total, kind="stable")[: self.candidates]])
            rows, total, why = self._pass(keys, weights, places, rows)
        best = np.argsort(-total, kind="stable")[:top]
        best = best[total[best] > 0]
        named: dict[int, list[tuple[tuple[int, ...], float]]] = {int(row): [] for row in best}
        for key, at, gain in why:
            for row, g in zip(at.tolist(), gain.tolist()):
                if row in named and g > 0:
                    named[row].append((key, g))
        return [
            ScoredDocument(str(self.documents[rows[r]]), float(total[r]), sorted(named[r], key=lambda x: -x[1]))
            for r in best.tolist()
        ]

    def _weighed(
        self, ngrams: Sequence[Sequence[int]], logp: np.ndarray
    ) -> tuple[list[tuple[int, ...]], np.ndarray, np.ndarray]:
        """Different n-grams of positive weight in the order in which they are taken; weights; counts."""
        if len(ngrams) != len(logp):
            raise DataError(f"{len(logp)} log-probabilities for {len(ngrams)} n-grams; legal is one an n-gram.")
        best: dict[tuple[int, ...], float] = {}
        for ngram, value in zip(ngrams, logp.tolist()):
            key = tuple(int(t) for t in ngram)
            if key:
                best[key] = value if key not in best else max(value, best[key])
        counts = np.array([self.index.count(k) for k in best], dtype=np.int64)
        weights = ngram_weight(
            list(best.values()), counts, self.index.n_tokens, alpha=self.alpha, smoothing=self.smoothing
        )
        if not self.frequency and best:
            above = np.array(list(best.values()))
            weights = np.where(counts > 0, (above - above.min() + 0.1) ** self.alpha, 0.0)
        table = [(-w, -len(k), k, c) for k, w, c in zip(best, weights.tolist(), counts.tolist()) if w > 0]
        table.sort()
        return [x[2] for x in table], np.array([-x[0] for x in table]), np.array([x[3] for x in table], dtype=np.int64)

    def _locate(self, key: tuple[int, ...]) -> np.ndarray:
        """Document of each occurrence, in the order of the corpus."""
        return self._of[self.index._places(key, None, False, False)[0]]

    def _pass(self, keys: list[tuple[int, ...]], weights: np.ndarray, places: list, rows: np.ndarray | None) -> Any:
        """Documents (given, or those that hold an n-gram), their scores, and what each n-gram adds to which."""
        if rows is None:
            rows = np.unique(np.concatenate(places)) if places else np.zeros(0, dtype=np.int64)
        # Place of each document among the rows; -1 for others.
        local = np.full(len(self.documents), -1)
        local[rows] = np.arange(len(rows))
        number = {t: i for i, t in enumerate(sorted({t for k in keys for t in k}))}
        cover = np.zeros((len(rows), len(number)), dtype=bool)
        total = np.zeros(len(rows))
        why: list[tuple[tuple[int, ...], np.ndarray, np.ndarray]] = []
        for key, weight, document in zip(keys, weights.tolist(), places):
            row = local[document]
            held, times = np.unique(row[row >= 0], return_counts=True)
            cells = np.ix_(held, np.array([number[t] for t in sorted(set(key))]))
            gain = weight * (1.0 - self.beta * cover[cells].mean(axis=1))
            if self.relative and len(held):
                share = times / self._length[rows[held]]
                gain *= share / share.max()
            cover[cells] = True
            total[held] += gain
            why.append((key, held, gain))
        return rows, total, why
