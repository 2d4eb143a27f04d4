"""Lexical search of captions: BM25, on bm25s."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from neuroenc._core.checks import at_least, check_texts, check_whole, flat_captions, one_of, share
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.optional import require

_STOP_WORDS = ("en", "english", "en_plus", "english_plus")


class LexicalIndex:
    r"""BM25 index of captions, and of the stimuli that they describe.

    .. math:: s(q, D) = \sum_{t \in q} \mathrm{idf}_t\, \mathrm{tfc}(t, D),
              \qquad \mathrm{idf}_t = \log\Bigl(1 + \frac{N - n_t + 1/2}{n_t + 1/2}\Bigr), \qquad
              \mathrm{tfc} = \frac{f_{tD}}{f_{tD} + k_1 (1 - b + b\, |D| / \overline{|D|})}

    with :math:`f_{tD}` the times word t (two letters or digits and more) stands in caption D and :math:`n_t` of N
    captions that have it, as Lucene has it; a word that a query has twice counts twice. 0 means that no word is shared.

    Parameters
    ----------
    captions : sequence of str, or of sequences of str
        One caption an id, or several (``stimuli.captions``).
    ids : sequence of str, optional
        Equal ones are legal: several captions of one stimulus. Default: the position as text.
    k1 : float
        How soon a repeated word stops adding, above 0.
    b : float
        From 0 (length plays no part) to 1.
    aggregate : {"best", "sum"}
        The score of an id with several captions is that of its best one, or their sum.
    stop_words : "en", "en_plus", None or iterable of str
        Words that do not count; "en" and "en_plus" are lists of bm25s.

    Raises
    ------
    DataError
        No captions, something else than text, no word at all, or ids of another number.
    ConfigError
        An unknown aggregate or list of stop words, or k1 or b outside their range.

    References
    ----------
    Robertson & Zaragoza (2009), The probabilistic relevance framework. Kamphuis, de Vries, Boytsov & Lin (2020), Which
    BM25 do you mean?, ECIR. Lù (2024), BM25S, arXiv:2407.03618.

    Examples
    --------
    >>> index = LexicalIndex(["a brown dog", "a dog on a beach", "a house"], ids=["s1", "s2", "s1"])
    >>> scores, rows = index.search(["dog near the beach"], k=2)
    >>> index.names(rows).tolist(), bool(scores[0, 0] > scores[0, 1] > 0)
    ([['s2', 's1']], True)
    """

    #: Score of an id that shares no word with the query.
    no_match: ClassVar[float] = 0.0

    def __init__(
        self,
        captions: Sequence[str] | Sequence[Sequence[str]],
        ids: Sequence[str] | np.ndarray | None = None,
        *,
        k1: float = 1.5,
        b: float = 0.75,
        aggregate: str = "best",
        stop_words: str | Iterable[str] | None = "en",
    ) -> None:
        one_of("aggregate", aggregate, ("best", "sum"))
        if isinstance(stop_words, str) and stop_words not in _STOP_WORDS:
            raise ConfigError(unknown_name("list of stop words", stop_words, _STOP_WORDS, "Or give a list of words."))
        texts, names = flat_captions(captions, ids)
        self.aggregate, self.k1, self.b = aggregate, at_least("k1", k1, above=True), share("b", b)
        self.stop_words = stop_words if stop_words is None or isinstance(stop_words, str) else sorted(set(stop_words))
        found = self._tokens(texts)
        if not any(found):
            raise DataError(f"none of {len(texts)} captions has a word that counts; the first is {texts[0]!r}.")
        # In order of appearance: bm25s would number words in the order of a set, which differs between runs.
        vocabulary = {word: i for i, word in enumerate(dict.fromkeys(w for words in found for w in words))}
        bm25s = require("bm25s", "language")
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for DEBUG, and tells every index
        engine = bm25s.BM25(method="lucene", k1=self.k1, b=self.b)
        numbered = [[vocabulary[w] for w in words] for words in found]
        engine.index((numbered, vocabulary), create_empty_token=False, show_progress=False)
        owner, different = pd.factorize(np.array(names, dtype=object))
        self._engine, self.ids, self.n_captions = engine, np.asarray(different, dtype=str), len(owner)
        # Captions of one id side by side, so that they are added up without a loop.
        self._order = np.argsort(owner, kind="stable")
        self._first = np.searchsorted(owner[self._order], np.arange(len(self.ids)))

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"LexicalIndex(n={len(self)}, captions={self.n_captions})"

    def names(self, indices: Any) -> np.ndarray:
        """Ids (same shape, str) of row numbers."""
        return self.ids[np.asarray(indices, dtype=np.int64)]

    def search(
        self, queries: Sequence[str], k: int, max_memory: str | int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best ids for each query.

        Parameters
        ----------
        queries : sequence of str (q,)
        k : int
        max_memory : str, int or None
            As in :meth:`DenseIndex.search`; one query's scores of all captions are all that is held here.

        Returns
        -------
        scores : ndarray (q, k) float32
            Descending, at least 0; among equal scores the lower row comes first. 0: no word is shared, so that a
            query of unknown words has the first k rows.
        indices : ndarray (q, k) int64
            Rows of :attr:`ids`, in the order in which ids first appeared.

        Raises
        ------
        ConfigError
            k is no integer of at least 1.
        DataError
            k is above the number of ids, or queries are not a sequence of text.
        """
        k = check_whole("k", k)
        if k > len(self):
            raise DataError(f"k={k} of an index of {len(self)} ids; k must be at most {len(self)}.")
        texts = check_texts(queries, "queries")
        scores = np.empty((len(texts), k), np.float32)
        index = np.empty((len(texts), k), np.int64)
        for row, words in enumerate(self._tokens(texts)):
            value = self._scores(words)
            # Everything as good as the k-th: ties are then in order of rows, whatever the partition did.
            least = value[np.argpartition(-value, k - 1)[k - 1]]
            at = np.flatnonzero(value >= least)
            at = at[np.argsort(-value[at], kind="stable")[:k]]
            scores[row], index[row] = value[at], at
        return scores, index

    def _scores(self, words: list[str]) -> np.ndarray:
        """Score of every id (n,) for the words of one query."""
        known = self._engine.get_tokens_ids(words)
        if not known:
            return np.zeros(len(self), np.float32)
        each = self._engine.get_scores_from_ids(known)
        if len(self) == self.n_captions:
            return each
        reduce = np.maximum if self.aggregate == "best" else np.add
        return reduce.reduceat(each[self._order], self._first)

    def _tokens(self, texts: list[str]) -> list[list[str]]:
        found: list[list[str]] = require("bm25s", "language").tokenize(
            texts, stopwords=[] if self.stop_words is None else self.stop_words, return_ids=False, show_progress=False
        )
        return found
