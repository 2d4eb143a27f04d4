"""Outlines of regions: on meshes as smooth loops, on slices along the edges of voxels."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc.report._style import INK, write

MOST_NAMES = 30  # in one panel: more would cover the map


def loops(inside: np.ndarray, faces: np.ndarray) -> list[np.ndarray]:
    """The border between vertices inside and outside, as chains of the mesh's edges that it crosses.

    Parameters
    ----------
    inside : bool array (vertex,)
    faces : int array (face, 3)

    Returns
    -------
    list of int array (point, 2)
        The two vertices of each crossed edge, in order; a closed loop repeats its first point at the end.

    Examples
    --------
    >>> loops(np.array([True, False, False]), np.array([[0, 1, 2]]))[0].tolist()
    [[0, 1], [0, 2]]
    """
    state = inside[faces]
    mixed = faces[(state.any(axis=1)) & ~state.all(axis=1)]
    links: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for face in mixed.tolist():
        # A triangle with both kinds of corners is crossed at exactly two of its edges.
        ends = [(min(a, b), max(a, b)) for a, b in zip(face, face[1:] + face[:1]) if inside[a] != inside[b]]
        for here, there in (ends, ends[::-1]):
            links.setdefault(here, []).append(there)
    chains = []
    left = dict.fromkeys(sorted(links, key=lambda edge: (len(links[edge]), edge)))  # ends of open chains first
    while left:
        start = next(iter(left))
        chain, previous, here = [start], None, start
        del left[start]
        while True:
            onward = [edge for edge in links[here] if edge != previous and edge in left]
            if not onward:
                break
            previous, here = here, onward[0]
            chain.append(here)
            del left[here]
        if len(chain) > 2 and start in links[here]:
            chain.append(start)
        chains.append(np.array(chain))
    return chains


def smooth(points: np.ndarray, passes: int = 2) -> np.ndarray:
    """Points (point, dimension) averaged with their neighbours; ends of an open chain stay."""
    closed = len(points) > 3 and np.array_equal(points[0], points[-1])
    for _ in range(passes):
        if closed:
            ring = points[:-1]
            ring = (np.roll(ring, 1, axis=0) + 2 * ring + np.roll(ring, -1, axis=0)) / 4
            points = np.concatenate([ring, ring[:1]])
        elif len(points) > 2:
            points = np.concatenate([points[:1], (points[:-2] + 2 * points[1:-1] + points[2:]) / 4, points[-1:]])
    return points


def slice_edges(mask: np.ndarray) -> np.ndarray:
    """Edges between pixels inside and outside: (edge, 2, 2) as x, y of both ends; pixel centres are whole numbers.

    >>> len(slice_edges(np.array([[True]])))
    4
    """
    padded = np.pad(mask, 1)
    x, y = np.nonzero(padded[1:] != padded[:-1])
    upright = np.stack([np.stack([x - 0.5, y - 1.5], 1), np.stack([x - 0.5, y - 0.5], 1)], 1)
    x, y = np.nonzero(padded[:, 1:] != padded[:, :-1])
    level = np.stack([np.stack([x - 1.5, y - 0.5], 1), np.stack([x - 0.5, y - 0.5], 1)], 1)
    return np.concatenate([upright, level]).astype(float)


def draw_lines(axes: Any, lines: list[np.ndarray], width: float = 1.1) -> None:
    """Lines in ink with a light rim, readable on every colour."""
    from matplotlib.collections import LineCollection

    for colour, thick in (((1, 1, 1, 0.85), width + 1.5), (INK, width)):
        axes.add_collection(
            LineCollection(lines, colors=[colour], linewidths=thick, capstyle="round", joinstyle="round", zorder=3)
        )


def place_labels(axes: Any, anchors: list[tuple[str, np.ndarray]], inches: float, fontsize: float = 7.5) -> None:
    """Names near their anchors (x, y), moved up or down until none covers another.

    ``inches`` is the width of the axes on paper; sizes of texts follow from it.
    """
    from matplotlib.patheffects import withStroke

    if len(anchors) > MOST_NAMES:
        return

    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    unit = abs(x1 - x0) / inches / 72  # data units of one point
    high = 1.12 * fontsize * unit
    taken: list[tuple[float, float, float]] = []
    for name, (x, y) in sorted(anchors, key=lambda item: (-item[1][1], item[0])):
        half = 0.32 * fontsize * len(name) * unit
        x = float(np.clip(x, min(x0, x1) + half, max(x0, x1) - half))
        spots = (y + step * high * 0.5 for k in range(24) for step in ((0,) if k == 0 else (-k, k)))
        free = (spot for spot in spots if all(abs(x - a) >= half + b or abs(spot - c) >= high for a, b, c in taken))
        y = float(np.clip(next(free, y), min(y0, y1) + high / 2, max(y0, y1) - high / 2))
        taken.append((x, half, y))
        rim = [withStroke(linewidth=2.2, foreground="white")]
        write(axes, x, y, name, size=fontsize, color=INK, fontweight="bold", zorder=4, path_effects=rim)
