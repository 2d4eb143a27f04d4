"""The constraint for a closed set of identifiers, such as names of categories."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from neuroenc._core.errors import DataError
from neuroenc.captions.decoding._ngram import CorpusConstraint

__all__ = ["TrieConstraint"]


class TrieConstraint(CorpusConstraint):
    """A constraint for :func:`beam_search` and :func:`sample`: one of these names is written, whole, and nothing else.

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

    Raises
    ------
    DataError
        Names that are the same tokens, or none.

    References
    ----------
    De Cao, Izacard, Riedel, Petroni. Autoregressive entity retrieval. ICLR 2021.
    Chen et al. CorpusBrain: Pre-train a generative retrieval model for knowledge-intensive language tasks. CIKM 2022.

    Examples
    --------
    >>> from neuroenc.captions import TrieConstraint
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
        labels = [str(n) for n in (names if ids is None else ids)]
        made = CorpusConstraint.from_captions(names, tokenise, stop=stop, vocabulary=vocabulary, ids=labels)
        super().__init__(made.index, stop=stop, vocabulary=vocabulary)
        rows = [self._without_stop(tokenise(n)) for n in names]
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
        return self._of.get(tuple(self._without_stop(tokens)))
