"""Syntactic distances, binary trees, spans and phrases."""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from neuroenc._core.errors import DataError


class Phrase(NamedTuple):
    """One noun phrase of a text: its characters ``text[start:end]``, and the lemma of its main noun."""

    text: str
    start: int
    end: int
    head: str

    @property
    def key(self) -> str:
        """The phrase in lower case with single spaces: equal claims have equal keys."""
        return " ".join(self.text.lower().split())

    @property
    def n_words(self) -> int:
        """Number of words."""
        return len(self.text.split())


#: A word's number, or a tuple of the trees below.
Tree = Any


def tree_from_distances(distances: Sequence[float]) -> Tree:
    """The tree that splits a text top-down where its distances are largest.

    Parameters
    ----------
    distances : sequence of float (n - 1,)
        Between neighbouring words. Equal largest distances split at once, into three parts or more.

    Returns
    -------
    Tree
        Nested tuples of the words' numbers 0 to n - 1; the number 0 for one word.

    Examples
    --------
    >>> tree_from_distances([1.0, 3.0, 2.0, 1.0])
    ((0, 1), (2, (3, 4)))
    """
    current: Tree = 0
    # Groups that are still open at their right end, the largest distances lowest.
    waiting: list[tuple[float, list[Tree]]] = []
    for k, distance in enumerate(distances):
        if math.isnan(distance):
            raise DataError(f"the distance behind word {k} is NaN; a tree needs numbers.")
        while waiting and waiting[-1][0] < distance:
            current = (*waiting.pop()[1], current)
        if waiting and waiting[-1][0] == distance:
            waiting[-1][1].append(current)
        else:
            waiting.append((distance, [current]))
        current = k + 1
    while waiting:
        current = (*waiting.pop()[1], current)
    return current


def tree_spans(tree: Tree) -> list[tuple[int, int]]:
    """Words (first, last + 1) of every part of a tree with two words or more, the whole first.

    >>> tree_spans(((0, 1), (2, (3, 4))))
    [(0, 5), (0, 2), (2, 5), (3, 5)]
    """
    spans: list[tuple[int, int]] = []

    def walk(node: Tree, start: int) -> int:
        if not isinstance(node, (tuple, list)):
            return start + 1
        place = len(spans)
        spans.append((start, start))
        end = start
        for part in node:
            end = walk(part, end)
        spans[place] = (start, end)
        return end

    walk(tree, 0)
    return spans


PADDING, UNKNOWN, MASK = 0, 1, 2


class Word(NamedTuple):
    """A word in folded case with its characters ``text[start:end]``."""

    text: str
    start: int
    end: int


@lru_cache(maxsize=1)
def default_pattern() -> str:
    """Letters and digits with their combining marks, joined by hyphens and apostrophes.

    Python's word characters leave out the vowel signs of Indic scripts, which would cut words apart.

    >>> re.findall(default_pattern(), "A T-shirt, 2 हिन्दी!")
    ['A', 'T-shirt', '2', 'हिन्दी']
    """
    marks = np.array([k for k in range(sys.maxunicode + 1) if unicodedata.category(chr(k)) in ("Mn", "Mc")])
    runs = np.split(marks, np.flatnonzero(np.diff(marks) > 1) + 1)
    classes = "".join(f"\\U{run[0]:08x}-\\U{run[-1]:08x}" for run in runs)
    letter = rf"[^\W_][{classes}]*"
    return rf"(?:{letter})+(?:['’\-](?:{letter})+)*"


def words_of(text: str, pattern: re.Pattern[str]) -> list[Word]:
    """Words of a text.

    >>> words_of("A dog.", re.compile(default_pattern()))
    [Word(text='a', start=0, end=1), Word(text='dog', start=2, end=5)]
    """
    return [Word(m.group().casefold(), m.start(), m.end()) for m in pattern.finditer(text) if m.group()]


class Vocabulary:
    """Numbers of words; 0 is padding, 1 any other word, 2 a hidden word.

    Examples
    --------
    >>> Vocabulary(["dog", "cat"]).encode(["a", "cat"])
    [1, 4]
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = list(words)
        self._number = {w: k for k, w in enumerate(self.words, MASK + 1)}

    def __len__(self) -> int:
        return len(self.words) + MASK + 1

    def encode(self, words: Iterable[str]) -> list[int]:
        """Numbers of words."""
        return [self._number.get(w, UNKNOWN) for w in words]

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]], min_count: int, most: int) -> Vocabulary:
        """The words that occur ``min_count`` times or more, the most frequent first, ``most`` of them."""
        count = Counter(w for t in texts for w in t)
        kept = sorted((w for w, c in count.items() if c >= min_count), key=lambda w: (-count[w], w))
        return cls(kept[:most])


def frequent(texts: Sequence[Sequence[str]], share: float) -> list[str]:
    """Words that stand in at least this share of the texts, most frequent first.

    >>> frequent([["a", "dog"], ["a", "cat"]], 0.6)
    ['a']
    """
    count = Counter(w for t in texts for w in set(t))
    return sorted((w for w, c in count.items() if c >= share * len(texts)), key=lambda w: (-count[w], w))


def chunks(
    tree: Tree, words: Sequence[Word], text: str, function_words: Collection[str], max_words: int
) -> list[tuple[int, int]]:
    """Phrases of a tree: its largest parts that say one thing.

    A part counts without the function words at its ends. It is a phrase where what is left has at most ``max_words``
    words, no function word among them and nothing but space between them; otherwise its own parts are looked at.

    Parameters
    ----------
    tree : Tree
        Over the numbers of ``words``.
    words : sequence of Word
    function_words : collection of str

    Returns
    -------
    list of (int, int)
        First word and the one behind the last, from left to right.

    Examples
    --------
    >>> words = words_of("a red cat on the mat", re.compile(default_pattern()))
    >>> chunks(((0, (1, 2)), (3, (4, 5))), words, "a red cat on the mat", {"a", "the", "on"}, 4)
    [(1, 3), (5, 6)]
    """
    # Spans of a tree come in order, the larger first; single words are parts, too.
    spans = [*tree_spans(tree), *((k, k + 1) for k in range(len(words)))]
    spans.sort(key=lambda s: (s[0], -s[1]))
    found: list[tuple[int, int]] = []
    done = 0
    for start, end in spans:
        if start < done:
            continue
        said = [k for k in range(start, end) if words[k].text not in function_words]
        if not said:
            done = end
            continue
        a, b = said[0], said[-1] + 1
        joined = all(not text[words[k].end : words[k + 1].start].strip() for k in range(a, b - 1))
        if b - a == len(said) <= max_words and joined:
            found.append((a, b))
            done = end
    return found
