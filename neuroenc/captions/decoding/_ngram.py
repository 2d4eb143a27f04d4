"""Captions of which every phrase occurs in a corpus, and where it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import pandas as pd
import torch
from torch import Tensor

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.retrieval import NGramIndex

__all__ = ["CorpusConstraint"]


class CorpusConstraint:
    """A constraint for :func:`beam_search` and :func:`sample`: next tokens that the corpus has seen there.

    With ``n=None`` and ``anchored`` it is the trie of a closed set of texts, such as names of categories.

    Parameters
    ----------
    index : NGramIndex
        Over the tokens of the language model, without the stop token.
    stop : int
        The model's stop token: it stands for the end of a caption of the corpus.
    vocabulary : int
        V, the number of the model's tokens.
    n : int, optional
        Every n consecutive tokens occur in the corpus: the last ``n - 1`` and the next one. None: the whole caption
        does.
    anchored : bool
        Captions begin and end as captions of the corpus do: with ``n=None`` they are captions of the corpus, with n
        the borders count as a token. False: phrases may start anywhere, and stop anywhere after the first token.

    Raises
    ------
    ConfigError
        ``n`` under 2.

    References
    ----------
    Bevilacqua et al. Autoregressive search engines: generating substrings as document identifiers. NeurIPS 2022.

    Examples
    --------
    >>> from neuroenc.captions import CorpusConstraint
    >>> from neuroenc.retrieval import NGramIndex
    >>> constraint = CorpusConstraint(NGramIndex([[1, 2, 3], [2, 3, 1]], ids=["x", "y"]), stop=0, vocabulary=4, n=2)
    >>> constraint.allowed([1, 2]), constraint.allowed([2, 3])
    ([3], [0, 1])
    >>> constraint.provenance([1, 2, 3, 0])[["start", "end", "ids"]].values.tolist()
    [[0, 3, 'x']]
    """

    def __init__(
        self, index: NGramIndex, *, stop: int, vocabulary: int, n: int | None = None, anchored: bool = True
    ) -> None:
        if n is not None and (isinstance(n, bool) or int(n) != n or n < 2):
            raise ConfigError(f"n={n!r} is not legal; it must be an integer of at least 2, or None.")
        if index.count([stop]):
            raise DataError(
                f"the corpus holds the stop token {stop} inside {len(set(index.locate([stop])[0].tolist()))} captions. "
                "Next step: CorpusConstraint.from_captions, which cuts captions there."
            )
        if max(index.vocabulary, stop + 1) > vocabulary:
            raise DataError(
                f"the corpus holds token {index.vocabulary - 1} and the stop token is {stop}; the model has "
                f"{vocabulary} tokens. Next step: tokenise the corpus with the model's own tokenizer."
            )
        self.index, self.stop, self.vocabulary = index, int(stop), int(vocabulary)
        self.n, self.anchored = n, bool(anchored)
        self._cached: Callable[[tuple[int, ...], bool], Tensor] = lru_cache(65_536)(self._next)

    @classmethod
    def from_captions(
        cls,
        captions: Sequence[str],
        tokenise: Callable[[str], Sequence[int]],
        *,
        stop: int,
        vocabulary: int,
        ids: Sequence[str] | None = None,
        n: int | None = None,
        anchored: bool = True,
    ) -> CorpusConstraint:
        """Index captions as a language model would write them: up to their first stop token, which is left out.

        Parameters
        ----------
        captions : sequence of str
        tokenise : callable
            The language model's, without special tokens: ``PrefixDecoder.encode``.
        stop, vocabulary, n, anchored
            See the class.
        ids : sequence of str, optional
            Id of the image, or of the caption.
        """
        rows = []
        for text in captions:
            row = [int(t) for t in tokenise(text)]
            rows.append(row[: row.index(stop)] if stop in row else row)
        return cls(NGramIndex(rows, ids), stop=stop, vocabulary=vocabulary, n=n, anchored=anchored)

    def __repr__(self) -> str:
        return f"CorpusConstraint({self.index!r}, n={self.n}, anchored={self.anchored})"

    def __call__(self, tokens: Tensor, items: Tensor) -> Tensor:
        """Which tokens may come next, bool (rows, V)."""
        del items
        mask = torch.zeros((len(tokens), self.vocabulary), dtype=torch.bool)
        for row, y in enumerate(tokens.tolist()):
            mask[row, self._after(y)] = True
        return mask

    def allowed(self, tokens: Sequence[int]) -> list[int]:
        """Tokens that may follow, ascending."""
        return self._after(list(tokens)).tolist()

    def _after(self, tokens: list[int]) -> Tensor:
        start = self.anchored
        if self.n is not None and len(tokens) + start >= self.n:
            tokens, start = tokens[len(tokens) - self.n + 1 :], False
        return self._cached(tuple(tokens), start)

    def _next(self, context: tuple[int, ...], start: bool) -> Tensor:
        found = self.index.successors(context, start=start)
        ends = found.ends > 0 if self.anchored else len(context) > 0
        after = torch.from_numpy(found.tokens)
        return torch.cat([after, torch.tensor([self.stop])]).sort().values if ends else after

    def occurs(self, tokens: Sequence[int]) -> bool:
        """Whether a written caption keeps the rule; the stop token may be left out."""
        y = self._without_stop(tokens)
        legal = all(y[t] in self.allowed(y[:t]) for t in range(len(y)))
        return legal and self.stop in self.allowed(y)

    def provenance(self, tokens: Sequence[int], limit: int = 5) -> pd.DataFrame:
        """Where a caption's phrases come from: see :meth:`NGramIndex.phrases`.

        For whole captions of the corpus the ids are those of equal captions, not of longer ones that hold them.
        """
        y = self._without_stop(tokens)
        if self.n is None and self.anchored and self.index.count(y, start=True, end=True):
            ids, _ = self.index.locate(y, start=True, end=True)
            named = ";".join(list(dict.fromkeys(ids.tolist()))[:limit])
            return pd.DataFrame({"start": [0], "end": [len(y)], "count": [len(ids)], "ids": [named]})
        return self.index.phrases(y, limit)

    def trace(
        self,
        captions: pd.DataFrame,
        encode: Callable[[str], Sequence[int]],
        text: Callable[[list[int]], str],
        limit: int = 5,
    ) -> pd.DataFrame:
        """Where the phrases of a table of captions come from.

        Parameters
        ----------
        captions : DataFrame
            From a decoder: columns ``voxel, rank, caption``.
        encode, text : callable
            The language model's: ``PrefixDecoder.encode`` and ``PrefixDecoder.text``.
        limit : int
            Most ids named for a phrase.

        Returns
        -------
        DataFrame
            One row for each phrase: ``voxel, rank, phrase, count`` in the corpus, ``ids`` joined by ";".
        """
        rows = []
        for row in captions.itertuples():
            y = self._without_stop(encode(str(row.caption)))
            found = self.provenance(y, limit)
            for a, b, count, ids in found[["start", "end", "count", "ids"]].itertuples(index=False, name=None):
                rows.append((row.voxel, row.rank, text(y[a:b]), count, ids))
        return pd.DataFrame(rows, columns=["voxel", "rank", "phrase", "count", "ids"])

    def _without_stop(self, tokens: Sequence[int]) -> list[int]:
        y = [int(t) for t in tokens if t >= 0]
        return y[: y.index(self.stop)] if self.stop in y else y
