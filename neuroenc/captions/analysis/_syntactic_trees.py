"""Syntactic distances and trees: one from the other, spans, their agreement, and trees that know nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from neuroenc._core.errors import DataError

__all__ = [
    "Tree",
    "bracket_f1",
    "distances_from_tree",
    "left_branching",
    "random_tree",
    "right_branching",
    "tree_from_distances",
    "tree_spans",
]

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

    Raises
    ------
    DataError
        A distance is not a number.

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


def distances_from_tree(tree: Tree) -> list[int]:
    """Distances of a tree: between two neighbours, the height of the smallest part that holds both.

    A word has height 0, a part one more than the highest of its parts, so that :func:`tree_from_distances` gives the
    tree back.

    Parameters
    ----------
    tree : Tree
        Nested tuples or lists of two parts or more; leaves are anything else.

    Returns
    -------
    list of int (n - 1,)

    Raises
    ------
    DataError
        A part has fewer than two parts.

    Examples
    --------
    >>> distances_from_tree((("a", "dog"), ("on", ("a", "mat"))))
    [1, 3, 2, 1]
    """

    def walk(node: Tree) -> tuple[int, list[int]]:
        if not isinstance(node, (tuple, list)):
            return 0, []
        if len(node) < 2:
            raise DataError(f"part {node!r} of the tree has {len(node)} parts; legal: two or more.")
        found = [walk(part) for part in node]
        height = 1 + max(h for h, _ in found)
        joined = list(found[0][1])
        for _, inner in found[1:]:
            joined += [height, *inner]
        return height, joined

    return walk(tree)[1]


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


def bracket_f1(found: Sequence[Tree], gold: Sequence[Tree]) -> float:
    r"""Unlabelled F1 of spans, averaged over texts: :math:`2 |F \cap G| / (|F| + |G|)`.

    Single words and the whole text are in every tree and do not count; texts whose trees both have nothing else are
    left out.

    Parameters
    ----------
    found, gold : sequences of Tree (n,)

    Returns
    -------
    float
        NaN where no text has an inner span.

    References
    ----------
    Shen et al. Ordered neurons: integrating tree structures into recurrent neural networks. ICLR 2019 (conventions).

    Examples
    --------
    >>> bracket_f1([((0, 1), (2, 3))], [(0, (1, (2, 3)))])
    0.5
    """
    if len(found) != len(gold):
        raise DataError(f"{len(found)} trees are compared with {len(gold)}; there must be as many.")
    values = []
    for one, other in zip(found, gold, strict=True):
        a, b = tree_spans(one), tree_spans(other)
        if (a[0] if a else None) != (b[0] if b else None):
            raise DataError(f"trees of different texts are compared: {one!r} and {other!r}.")
        if len(a) + len(b) > 2:
            values.append(2 * len(set(a[1:]) & set(b[1:])) / (len(a) + len(b) - 2))
    return float(np.mean(values)) if values else math.nan


def right_branching(n: int) -> Tree:
    """Every word beside all that follow: ``right_branching(3)`` is ``(0, (1, 2))``.

    >>> right_branching(3)
    (0, (1, 2))
    """
    return tree_from_distances(range(n - 1, 0, -1))


def left_branching(n: int) -> Tree:
    """All words that came before beside every word.

    >>> left_branching(3)
    ((0, 1), 2)
    """
    return tree_from_distances(range(1, n))


def random_tree(n: int, rng: np.random.Generator) -> Tree:
    """A tree from distances in random order.

    >>> tree_spans(random_tree(6, np.random.default_rng(0)))[0]
    (0, 6)
    """
    return tree_from_distances(rng.permutation(n - 1).tolist())
