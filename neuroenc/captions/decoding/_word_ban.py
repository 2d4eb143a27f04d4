"""Captions without certain words: those of things that a space of embeddings cannot show."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from neuroenc._core.errors import ConfigError
from neuroenc.captions._plurals import plurals, word_pattern
from neuroenc.captions.decoding._search import Constraint

__all__ = ["WordBan"]


class WordBan:
    """A constraint for :func:`beam_search` and :func:`sample`: tokens that do not write certain words.

    A word is found however tokens spell it. With it goes every longer word that begins with one of its tokens' ends
    ("manhole" after a token "man"): what a token will become is not known yet.

    Probabilities are not normalised again, and a model that has set out to say a forbidden word may spell one that does
    not exist ("a young teenaging"). With ``within`` a :class:`CorpusConstraint` of ``n=2`` over captions without these
    words, what it says instead consists of their words.

    Parameters
    ----------
    words : iterable of str
        Words, or several of them in a row ("hot dog"), whatever their capitals; plurals go with their singular.
    tokenizer : transformers.PreTrainedTokenizerBase
        The language model's.
    vocabulary : int
        V, the number of the model's tokens.
    within : callable, optional
        Another constraint that holds as well, such as a :class:`CorpusConstraint`.

    Raises
    ------
    ConfigError
        No words, or one without a letter or digit.

    Examples
    --------
    >>> from neuroenc.captions import WordBan, load_captioner
    >>> captioner = load_captioner("world", device="cpu")
    >>> quiet = captioner.with_options(without=["face", "grass"])
    >>> ban = WordBan(["face"], captioner.tokenizer, captioner.vocabulary)
    >>> ban.says("two Faces on the grass"), ban.says("a surface")
    (True, False)
    """

    def __init__(self, words: Iterable[str], tokenizer: Any, vocabulary: int, within: Constraint | None = None) -> None:
        given = [" ".join(str(w).lower().split()) for w in ([words] if isinstance(words, str) else words)]
        wrong = [w for w in given if not any(c.isalnum() for c in w)]
        if wrong or not given:
            raise ConfigError(f"words {wrong or given} cannot be left out; give words with letters, at least one.")
        self.words = frozenset(form for w in given for form in plurals(w))
        self._pattern = word_pattern(given)
        self.vocabulary, self.within = int(vocabulary), within
        names = tokenizer.convert_ids_to_tokens(list(range(min(self.vocabulary, len(tokenizer)))))
        special = set(tokenizer.all_special_tokens)
        # Byte-level and SentencePiece vocabularies write a space as one of these letters.
        self._pieces = [
            "" if n is None or n in special else n.replace("Ġ", " ").replace("▁", " ").lower() for n in names
        ]
        self._sorted = sorted((p, k) for k, p in enumerate(self._pieces) if p)
        #: Tokens that begin a new word and say all of it.
        self._new = [k for k, p in enumerate(self._pieces) if p and not p[0].isalnum() and self.says(p)]
        self._mask = lru_cache(4096)(self._mask_after)

    def __repr__(self) -> str:
        return f"WordBan({len(self.words)} words, within={self.within!r})"

    def __call__(self, tokens: Tensor, items: Tensor) -> Tensor:
        """Which tokens may come next, bool (rows, V)."""
        mask = torch.ones((len(tokens), self.vocabulary), dtype=torch.bool)
        for k, row in enumerate(tokens.tolist()):
            mask[k] = self._mask(self._tails(row))
        if self.within is not None:
            mask &= self.within(tokens, items).to(mask.device)
        return mask

    def says(self, text: str) -> bool:
        """Whether a text holds one of the words."""
        return bool(self._pattern.search(text))

    def provenance(self, tokens: list[int], limit: int = 5) -> pd.DataFrame:
        """That of the other constraint: where a caption's phrases come from."""
        inner = getattr(self.within, "provenance", None)
        return pd.DataFrame(columns=["start", "end", "count", "ids"]) if inner is None else inner(tokens, limit)

    def _tails(self, tokens: list[int]) -> tuple[str, ...]:
        """Ends of the text that may become one of the words; "" where a new word may begin right away."""
        text = "".join(self._pieces[t] if 0 <= t < len(self._pieces) else "" for t in tokens)
        starts = [k for k in range(len(text)) if text[k].isalnum() and (k == 0 or not text[k - 1].isalnum())]
        tails = [text[k:] for k in starts if any(w.startswith(text[k:]) for w in self.words)]
        return (*tails, *([""] if not text or not text[-1].isalnum() else []))

    def _mask_after(self, tails: tuple[str, ...]) -> Tensor:
        mask = torch.ones(self.vocabulary, dtype=torch.bool)
        mask[self._new] = False
        for tail in tails:
            for rest in (w[len(tail) :] for w in self.words if w.startswith(tail) and w != tail):
                first = bisect_left(self._sorted, (rest, -1))
                for piece, k in islice(self._sorted, first, None):
                    if not piece.startswith(rest):
                        break
                    if not piece[len(rest) : len(rest) + 1].isalnum():
                        mask[k] = False
        return mask
