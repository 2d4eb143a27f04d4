"""N-gram index of a caption corpus: occurrences and next tokens of phrases.

A suffix array of token numbers, in numpy. Looked at first: ``fm-index`` (compressed, fast, but over characters, and
without a way to list what follows a pattern: one count for each of the vocabulary's tokens at each step of a search);
``pydivsufsort`` (suffix arrays only; it sorts tokens as strings of bytes across the borders of captions, where sorting
eight tokens at a time and never past a caption's end takes a few rounds of numpy); ``marisa-trie`` (whole keys and
their prefixes, so that every n-gram would have to be a key). What follows a phrase is one piece of a suffix array, in
order; an FM-index gives it symbol by symbol, and costs a wavelet tree's worth of Python for it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from neuroenc._core.checks import check_ids
from neuroenc._core.errors import ConfigError, DataError

# Numbers inside the index: borders of captions, then the caller's tokens.
_END, _START, _SHIFT = 0, 1, 2


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
