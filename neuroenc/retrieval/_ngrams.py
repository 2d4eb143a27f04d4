"""N-grams of a caption corpus: their occurrences and next tokens, and scores of documents that hold them (SEAL).

The index is a suffix array of token numbers, in numpy. Looked at first: ``fm-index`` (compressed, fast, but over
characters, and without a way to list what follows a pattern: one count for each of the vocabulary's tokens at each
step of a search); ``pydivsufsort`` (suffix arrays only; it sorts tokens as strings of bytes across the borders of
captions, where sorting eight tokens at a time and never past a caption's end takes a few rounds of numpy);
``marisa-trie`` (whole keys and their prefixes, so that every n-gram would have to be a key). What follows a phrase is
one piece of a suffix array, in order; an FM-index gives it symbol by symbol, and costs a wavelet tree's worth of
Python for it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neuroenc._core.checks import at_least, check_ids, check_whole, share
from neuroenc._core.errors import ConfigError, DataError

# Numbers inside the index: borders of captions, then the caller's tokens.
_END, _START, _SHIFT = 0, 1, 2
# Log-probabilities stay below 0 by this much, so that odds are finite.
_BELOW = 1e-10


class Successors(NamedTuple):
    """Next tokens of a phrase in the corpus, with counts.

    Attributes
    ----------
    tokens : ndarray (m,) int64
        Different tokens, ascending.
    counts : ndarray (m,) int64
        How often each follows.
    ends : int
        How often the phrase is the end of its caption.
    """

    tokens: np.ndarray
    counts: np.ndarray
    ends: int


class NGramIndex:
    """N-gram index of a caption corpus (suffix array): counts, occurrences, successors.

    Parameters
    ----------
    captions : sequence of sequence of int
        Tokens (at least 0) of each caption: of words or of a language model's tokenizer.
    ids : sequence of str, optional
        Id of each caption or of its image; equal ones are legal. Default: positions.

    Raises
    ------
    DataError
        No captions, negative tokens, or ids of another number.

    Examples
    --------
    >>> index = NGramIndex([[5, 3, 7], [3, 7, 7], [5, 3]], ids=["a", "b", "c"])
    >>> index.count([3, 7]), index.successors([3]).tokens.tolist(), index.successors([3]).ends
    (2, [7], 1)
    >>> [x.tolist() for x in index.locate([3])]
    [['a', 'b', 'c'], [1, 0, 1]]
    """

    def __init__(self, captions: Iterable[Sequence[int]], ids: Sequence[str] | None = None) -> None:
        given = [np.asarray(c).reshape(-1) for c in captions]
        wrong = [(n, row) for n, row in enumerate(given) if row.size and row.dtype.kind not in "iu"]
        if wrong:
            raise DataError(
                f"{len(wrong)} of {len(given)} captions are not whole-number tokens; the first is number "
                f"{wrong[0][0]}, of {wrong[0][1].dtype}. Next step: the numbers that a tokenizer gives."
            )
        rows = [row.astype(np.int64) for row in given]
        if not rows:
            raise DataError("the corpus holds 0 captions; at least one is needed.")
        lengths = np.array([len(r) for r in rows])
        starts = np.concatenate([[0], np.cumsum(lengths + 2)])
        flat = np.concatenate(rows)
        if len(flat) and flat.min() < 0:
            raise DataError(f"token {int(flat.min())} is not legal; tokens are numbers of at least 0.")
        text = np.full(starts[-1], _END, dtype=np.int64)
        text[starts[:-1]] = _START
        inside = np.ones(len(text), dtype=bool)
        inside[starts[:-1]] = inside[starts[1:] - 1] = False
        text[inside] = flat + _SHIFT
        #: Id of each caption.
        self.ids = np.array(check_ids(ids, len(rows), "captions"))
        self._text = text.astype(np.uint16 if text.max() < 2**16 else np.uint32)
        self._suffixes, self._starts = _suffix_array(text, starts), starts
        self._first = np.concatenate([[0], np.cumsum(np.bincount(text))])
        self._lookup: Callable[[tuple[int, ...]], tuple[int, int]] = lru_cache(65_536)(self._range)
        self._following: Callable[[tuple[int, ...]], Successors] = lru_cache(65_536)(self._successors)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __repr__(self) -> str:
        return f"NGramIndex({len(self)} captions, {self.n_tokens} tokens)"

    @property
    def n_tokens(self) -> int:
        """Tokens of all captions."""
        return len(self._text) - 2 * len(self)

    @property
    def vocabulary(self) -> int:
        """Highest token of the corpus, plus 1."""
        return max(0, len(self._first) - 1 - _SHIFT)

    @property
    def longest(self) -> int:
        """Tokens of the longest caption."""
        return int(np.diff(self._starts).max()) - 2

    def count(self, ngram: Sequence[int], *, start: bool = False, end: bool = False) -> int:
        """Occurrences of a phrase; with ``start`` or ``end``, those that begin or end their caption.

        The empty phrase occurs once at every token.
        """
        key = self._key(ngram, start, end)
        lo, hi = self._lookup(key) if key else (0, self.n_tokens)
        return hi - lo

    def locate(
        self, ngram: Sequence[int], limit: int | None = None, *, start: bool = False, end: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the captions in which a phrase occurs and its place in them, in the order of the corpus.

        Parameters
        ----------
        ngram : sequence of int
            Not empty, unless ``start`` or ``end`` is given.
        limit : int, optional
            Most occurrences (any of them, where there are more).
        start, end : bool
            As in :meth:`count`.

        Returns
        -------
        tuple of ndarray (m,)
            Ids (str) and positions (int64, from 0).
        """
        document, position = self._places(ngram, limit, start, end)
        return self.ids[document], position

    def _places(self, ngram: Sequence[int], limit: int | None, start: bool, end: bool) -> tuple[np.ndarray, np.ndarray]:
        key = self._key(ngram, start, end)
        if not key:
            raise ConfigError("an empty phrase is everywhere. Next step: give at least one token.")
        lo, hi = self._lookup(key)
        at = np.sort(self._suffixes[lo : hi if limit is None else min(hi, lo + limit)].astype(np.int64))
        document = np.searchsorted(self._starts, at, side="right") - 1
        return document, at - self._starts[document] - (0 if start else 1)

    def successors(self, prefix: Sequence[int], *, start: bool = False) -> Successors:
        """Tokens that follow a phrase (the first tokens of captions for the empty one with ``start``)."""
        return self._following(self._key(prefix, start, False))

    def phrases(self, tokens: Sequence[int], limit: int = 5) -> pd.DataFrame:
        """The longest pieces of a token sequence that occur in the corpus, none inside another.

        Parameters
        ----------
        tokens : sequence of int
        limit : int
            Most ids named for a piece.

        Returns
        -------
        DataFrame
            ``start, end`` (the piece is ``tokens[start:end]``), ``count`` and ``ids`` (different, joined by ";").
        """
        tokens = [int(t) for t in tokens]
        rows, covered = [], 0
        for a in range(len(tokens)):
            lo, hi, b = 0, len(self._text), a
            while b < len(tokens):
                inner = self._narrow(lo, hi, b - a, tokens[b] + _SHIFT)
                if inner[0] == inner[1]:
                    break
                (lo, hi), b = inner, b + 1
            if b > max(a, covered):
                ids, _ = self.locate(tokens[a:b], limit=50 * limit)
                rows.append((a, b, hi - lo, ";".join(list(dict.fromkeys(ids.tolist()))[:limit])))
            covered = max(covered, b)
        return pd.DataFrame(rows, columns=["start", "end", "count", "ids"])

    @staticmethod
    def _key(ngram: Sequence[int], start: bool, end: bool) -> tuple[int, ...]:
        inner = tuple(int(t) + _SHIFT for t in ngram)
        if inner and min(inner) < _SHIFT:
            raise DataError(f"token {min(inner) - _SHIFT} is not legal; tokens are numbers of at least 0.")
        return (*((_START,) if start else ()), *inner, *((_END,) if end else ()))

    def _range(self, key: tuple[int, ...]) -> tuple[int, int]:
        lo, hi = 0, len(self._text)
        for depth, token in enumerate(key):
            lo, hi = self._narrow(lo, hi, depth, token)
            if lo == hi:
                break
        return lo, hi

    def _narrow(self, lo: int, hi: int, depth: int, token: int) -> tuple[int, int]:
        """The part of a range of suffixes, equal up to ``depth``, whose next token is ``token``."""
        if lo == hi:
            return lo, lo
        if depth == 0:
            if token + 1 >= len(self._first):
                return 0, 0
            return int(self._first[token]), int(self._first[token + 1])
        if hi - lo <= 4096:
            column = self._text[self._suffixes[lo:hi] + depth]
            return lo + int(column.searchsorted(token, "left")), lo + int(column.searchsorted(token, "right"))

        def key(suffix: Any) -> int:
            return int(self._text[int(suffix) + depth])

        a = bisect_left(self._suffixes, token, lo, hi, key=key)
        return a, bisect_right(self._suffixes, token, a, hi, key=key)

    def _successors(self, key: tuple[int, ...]) -> Successors:
        if not key:
            counts = np.diff(self._first)
            counts[:_SHIFT] = 0
            tokens = np.flatnonzero(counts)
            return Successors(tokens - _SHIFT, counts[tokens], 0)
        lo, hi = self._lookup(key)
        column = self._text[self._suffixes[lo:hi] + len(key)]
        edges = np.flatnonzero(np.diff(column.astype(np.int64), prepend=-1))
        tokens, counts = column[edges].astype(np.int64), np.diff(edges, append=len(column))
        over = tokens == _END
        return Successors(tokens[~over] - _SHIFT, counts[~over], int(counts[over].sum()))


def _suffix_array(text: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Starts of the suffixes of all captions, sorted; each ends with its caption, equal ones are in corpus order."""
    n = len(text)
    bits = max(1, int(text.max() + 1).bit_length())
    rest = np.repeat(starts[1:], np.diff(starts)) - np.arange(n)  # tokens from here to the caption's end
    # As many tokens as fit into 63 bits are sorted at once; behind a caption's end there is 0.
    step = max(1, 63 // bits)
    rank = np.zeros(n, dtype=np.int64)
    for k in range(min(step, n)):
        rank <<= bits
        rank[: n - k] += np.where(rest[: n - k] > k, text[k:] + 1, 0)
    longest = int(rest.max())
    while True:
        order = np.argsort(rank, kind="stable")
        ordered = rank[order]
        new = np.concatenate([[0], np.cumsum(ordered[1:] != ordered[:-1])]) + 1
        if step >= longest or new[-1] == n:
            return order.astype(np.int32 if n < 2**31 else np.int64)
        rank[order] = new
        following = np.zeros(n, dtype=np.int64)
        following[: n - step] = np.where(rest[: n - step] > step, rank[step:], 0)
        rank = rank * (new[-1] + 1) + following
        step *= 2


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
    smoothing : float
        s.

    Returns
    -------
    ndarray (n,) float64

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
