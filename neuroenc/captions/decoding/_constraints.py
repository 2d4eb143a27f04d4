"""Decoding constraints: corpus n-grams, tries of identifiers, banned words."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence, Set
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions.decoding._sampling import Constraint
from neuroenc.captions.text._words import plurals, word_pattern
from neuroenc.retrieval import NGramIndex


def token_number(token: str | int, tokenizer: Any, size: int) -> int:
    """Number of one token, given as its text or its number."""
    if isinstance(token, str):
        known = tokenizer.get_vocab()
        found = [known[token]] if token in known else tokenizer.encode(token, add_special_tokens=False)
        if len(found) != 1:
            raise ConfigError(f"stop={token!r} is {len(found)} tokens; legal is the text or number of one token.")
        token = found[0]
    if isinstance(token, bool) or not 0 <= int(token) < size:
        raise ConfigError(f"stop={token!r} is not legal; tokens are numbers under {size}.")
    return int(token)


def until(tokens: Iterable[int], stop: int) -> list[int]:
    """Tokens in front of the first ``stop``; what stands behind an end (-1) is left out."""
    y = [int(t) for t in tokens if t >= 0]
    return y[: y.index(stop)] if stop in y else y


def content_weights(tokenizer: Any, size: int, free: Set[str]) -> Tensor:
    """1 for tokens of words that another caption should not say again, 0 for others (size,)."""
    texts = (tokenizer.decode([k]).strip().lower() for k in range(min(size, len(tokenizer))))
    said = [float(any(c.isalnum() for c in t) and t not in free) for t in texts]
    return torch.tensor(said + [0.0] * (size - len(said)))


def caption_pairs(
    captions: Any, n: int, encode: Callable[[str], list[int]], room: int, stop: int | None, longest: int | None
) -> tuple[np.ndarray, list[list[int]]]:
    """Row of the embeddings and tokens of each pair; ``stop`` is put behind captions that do not end with it."""
    several = [[c] if isinstance(c, str) else list(c) for c in captions]
    if len(several) != n:
        raise DataError(f"{n} embeddings and captions for {len(several)}; legal is one entry an embedding.")
    known: dict[str, list[int]] = {}
    rows, tokens = [], []
    for row, texts in enumerate(several):
        for text in texts:
            if text not in known:
                found = encode(text)
                if not found:
                    raise DataError(f"caption {text!r} of embedding {row} has no tokens.")
                if stop is not None and found[-1] != stop:
                    found = [*found, stop]
                known[text] = found[:longest]
                if len(known[text]) > room:
                    raise DataError(
                        f"caption {text[:60]!r} of embedding {row} has {len(known[text])} tokens; the language model "
                        f"has room for {room}. Next step: max_tokens={room}."
                    )
            rows.append(row)
            tokens.append(known[text])
    if not rows:
        raise DataError("there are 0 captions; at least one is needed.")
    return np.array(rows), tokens


class CorpusConstraint:
    """Decoding constraint: only next tokens that continue an n-gram of the corpus.

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
        self.n, self.anchored = None if n is None else check_whole("n", n, 2, also=", or None"), bool(anchored)
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
        rows = [until(tokenise(text), stop) for text in captions]
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

    def provenance(self, tokens: Sequence[int], limit: int = 5) -> pd.DataFrame:
        """Where a caption's phrases come from: see :meth:`NGramIndex.phrases`.

        For whole captions of the corpus the ids are those of equal captions, not of longer ones that hold them.
        """
        y = until(tokens, self.stop)
        if self.n is None and self.anchored and self.index.count(y, start=True, end=True):
            ids, _ = self.index.locate(y, start=True, end=True)
            named = ";".join(list(dict.fromkeys(ids.tolist()))[:limit])
            return pd.DataFrame({"start": [0], "end": [len(y)], "count": [len(ids)], "ids": [named]})
        return self.index.phrases(y, limit)


class TrieConstraint(CorpusConstraint):
    """Decoding constraint: exactly one of a closed set of names (trie).

    A :class:`CorpusConstraint` of whole texts (``n=None``, anchored): a search under it walks down the trie of the
    names.

    Parameters
    ----------
    names : sequence of str
        Different texts; what the model's stop token stands in is cut there.
    tokenise : callable
        The language model's, without special tokens: ``PrefixDecoder.encode``.
    stop, vocabulary : int
        See :class:`CorpusConstraint`.
    ids : sequence of str, optional
        Id of each name; default the name.

    References
    ----------
    De Cao, Izacard, Riedel, Petroni. Autoregressive entity retrieval. ICLR 2021.
    Chen et al. CorpusBrain: Pre-train a generative retrieval model for knowledge-intensive language tasks. CIKM 2022.

    Examples
    --------
    >>> from neuroenc.captions.decoding._constraints import TrieConstraint
    >>> trie = TrieConstraint(["ab", "abc", "b"], lambda t: [ord(c) - 96 for c in t], stop=0, vocabulary=4)
    >>> trie.allowed([]), trie.allowed([1, 2]), trie.allowed([1, 2, 3]), trie.name([1, 2, 3, 0])
    ([1, 2], [0, 3], [0], 'abc')
    """

    def __init__(
        self,
        names: Sequence[str],
        tokenise: Callable[[str], Sequence[int]],
        *,
        stop: int,
        vocabulary: int,
        ids: Sequence[str] | None = None,
    ) -> None:
        labels, rows = [str(n) for n in (names if ids is None else ids)], [until(tokenise(n), stop) for n in names]
        super().__init__(NGramIndex(rows, labels), stop=stop, vocabulary=vocabulary)
        self._of: dict[tuple[int, ...], str] = {}
        for row, label, text in zip(rows, labels, names):
            if not row or tuple(row) in self._of:
                raise DataError(f"name {text!r} has no tokens, or the same as another. Next step: leave it out.")
            self._of[tuple(row)] = label

    def __repr__(self) -> str:
        return f"TrieConstraint({len(self._of)} names)"

    def __len__(self) -> int:
        return len(self._of)

    def name(self, tokens: Sequence[int]) -> str | None:
        """Id of the name that tokens write, with or without the stop token; None if they write none."""
        return self._of.get(tuple(until(tokens, self.stop)))


class WordBan:
    """Decoding constraint: no tokens that spell banned words.

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

    Examples
    --------
    >>> from neuroenc.captions import load_captioner
    >>> from neuroenc.captions.decoding._constraints import WordBan
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
