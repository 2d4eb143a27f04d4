"""Threshold-free cluster enhancement of statistics on a mesh or any other graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree

from neuroenc._core.checks import at_least
from neuroenc._core.errors import DataError
from neuroenc.stats._blocks import Floats, as_floats

_LARGEST = 1e3  # a t without spread is infinite; its cluster is not


def mesh_edges(faces: Any, keep: Any = None) -> NDArray[np.intp]:
    """Edges between neighbouring vertices of a surface mesh, each once.

    Parameters
    ----------
    faces : int array (face, 3)
        Vertices of every triangle.
    keep : int array (n,), optional
        Vertices that are measured: edges are then between positions in this list, and those to other vertices are
        left out.

    Returns
    -------
    int array (edge, 2)
        The lower number first, in ascending order.

    Raises
    ------
    DataError
        Faces are no triangles, or a kept vertex stands twice.

    Examples
    --------
    >>> mesh_edges([[0, 1, 2], [1, 3, 2]]).tolist()
    [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]
    >>> mesh_edges([[0, 1, 2], [1, 3, 2]], keep=[3, 1]).tolist()
    [[0, 1]]
    """
    triangles = np.asarray(faces)
    if triangles.ndim != 2 or triangles.shape[1] != 3 or triangles.dtype.kind not in "iu":
        raise DataError(f"faces have shape {triangles.shape} ({triangles.dtype}); legal is (face, 3) of whole numbers.")
    pairs = np.concatenate([triangles[:, [a, b]] for a, b in ((0, 1), (1, 2), (0, 2))]).astype(np.intp)
    if keep is not None:
        kept = np.asarray(keep, dtype=np.intp)
        if np.unique(kept).size < kept.size:
            raise DataError(f"{kept.size - np.unique(kept).size} of {kept.size} kept vertices stand twice.")
        where = np.full(max(int(pairs.max(initial=-1)), int(kept.max(initial=-1))) + 1, -1, dtype=np.intp)
        where[kept] = np.arange(kept.size)
        pairs = where[pairs]
        pairs = pairs[(pairs >= 0).all(axis=1)]
    return np.unique(np.sort(pairs, axis=1), axis=0)


def check_edges(edges: Any, n: int) -> NDArray[np.intp]:
    """Edges (edge, 2) between ``n`` places."""
    pairs = np.asarray(edges)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise DataError(f"edges have shape {pairs.shape} ({pairs.dtype}); legal is (edge, 2) of whole numbers.")
    if pairs.size and (pairs.min() < 0 or pairs.max() >= n):
        raise DataError(
            f"edges join {pairs.min()}..{pairs.max()}, and there are {n} values. Next step: mesh_edges(faces, keep) "
            "with the vertices of the map."
        )
    return pairs.astype(np.intp)


def tfce(values: Any, edges: Any, *, extent: float = 1.0, height: float = 2.0) -> Floats:
    r"""Threshold-free cluster enhancement (TFCE) of maps of a statistic on a graph.

    .. math:: \mathrm{TFCE}(v) = \int_0^{x_v} e_v(h)^E\, h^H\, dh

    with the number :math:`e_v(h)` of connected vertices around v whose value is at least h. The integral is exact:
    clusters change only at the values that occur, and the tree of their mergers is the minimum spanning tree of the
    graph. Negative values are enhanced likewise among themselves and keep their sign.

    Parameters
    ----------
    values : array (..., n)
        Statistics, such as t; not defined (NaN) means below every threshold, infinite is taken as 1000.
    edges : int array (edge, 2)
        Neighbours, from `mesh_edges`; clusters never cross what has no edge, such as hemispheres.
    extent, height : float
        Exponents E and H: 1 and 2 on surfaces (PALM), 0.5 and 2 in volumes (FSL).

    Returns
    -------
    array (..., n), float64
        0 where the value is 0 or not defined.

    Raises
    ------
    DataError
        Edges that do not fit the values.
    ConfigError
        An exponent below 0.

    References
    ----------
    Smith & Nichols (2009), NeuroImage 44:83. Winkler et al. (2014), NeuroImage 92:381 (PALM).

    Examples
    --------
    >>> line = [[0, 1], [1, 2]]
    >>> tfce([3.0, 3.0, 0.0], line).tolist()  # two vertices up to h = 3: 2 x 3**3 / 3
    [18.0, 18.0, 0.0]
    """
    maps = as_floats(values, "values")
    extent, height = at_least("extent", extent), at_least("height", height)
    pairs = check_edges(edges, maps.shape[-1])
    flat = np.clip(np.where(np.isnan(maps), 0.0, maps), -_LARGEST, _LARGEST).reshape(-1, maps.shape[-1])
    out = np.zeros_like(flat)
    for row, enhanced in zip(flat, out):
        for sign in (1.0, -1.0):
            at = np.flatnonzero(sign * row > 0)
            enhanced[at] = sign * _enhance(sign * row[at], _within(pairs, at, len(row)), extent, height)
    return np.asarray(out.reshape(maps.shape))


def _within(edges: NDArray[np.intp], at: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """Edges among the vertices ``at``, by their positions."""
    where = np.full(n, -1, dtype=np.intp)
    where[at] = np.arange(at.size)
    inside = where[edges]
    return inside[(inside >= 0).all(axis=1)]


def _enhance(x: Floats, edges: NDArray[np.intp], extent: float, height: float) -> Floats:
    n = x.size
    falling = np.argsort(-x, kind="stable")
    rank = np.empty(n, dtype=np.intp)
    rank[falling] = np.arange(n)
    # An edge joins two clusters once the threshold falls to the lower of its ends; a cost of 0 would be no edge.
    cost = rank[edges].max(axis=1) + 1
    graph = coo_array((cost.astype(np.float64), (edges[:, 0], edges[:, 1])), shape=(n, n))
    tree = minimum_spanning_tree(graph.tocsr()).tocoo()
    order = np.argsort(tree.data, kind="stable")
    heights = x[falling[tree.data[order].astype(np.intp) - 1]]
    total = n + order.size
    size, parent = [1] * n + [0] * order.size, [total] * total
    top = list(range(total))  # towards the largest cluster so far of every vertex
    new = n
    for u, v in zip(tree.row[order].tolist(), tree.col[order].tolist()):
        while top[u] != u:
            top[u] = u = top[top[u]]
        while top[v] != v:
            top[v] = v = top[top[v]]
        parent[u] = parent[v] = top[u] = top[v] = new
        size[new] = size[u] + size[v]
        new += 1
    # Every cluster lives from its birth down to its merger; a vertex sums over all that it is part of.
    birth = np.append(np.concatenate([x, heights]), 0.0) ** (height + 1.0) / (height + 1.0)
    up = np.append(np.array(parent, dtype=np.intp), total)
    sums = np.append(np.array(size, dtype=np.float64), 0.0) ** extent * (birth - birth[up])
    sums[total] = 0.0
    while (up[:n] != total).any():
        sums, up = sums + sums[up], up[up]
    return np.asarray(sums[:n])
