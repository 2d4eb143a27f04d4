"""Comparison of constituency trees: distances of gold trees, unlabelled F1, and trees of chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from neuroenc._core.errors import DataError
from neuroenc.captions.text._trees import Tree, tree_from_distances, tree_spans


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
