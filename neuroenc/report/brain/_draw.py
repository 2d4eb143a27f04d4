"""Flat and inflated views of one hemisphere, with outlines and names of regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from neuroenc.report.brain._mesh import (
    VIEWS,
    draw_hemisphere,
    flat_mesh,
    flat_shade,
    inflated_mesh,
    over,
    vertex_normals,
)
from neuroenc.report.brain._outlines import draw_lines, loops, place_labels, smooth

__all__ = ["draw_flat", "draw_inflated", "flat_windows"]


def flat_windows(vertex: np.ndarray, hemi: np.ndarray, crop: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Lower left and upper right corner (mm) of each hemisphere's panel; both panels have one size."""
    boxes = {}
    for h in [h for h in "LR" if (hemi == h).any()] or ["L", "R"]:
        xy, _, on = flat_mesh(h)
        here = vertex[hemi == h]
        here = here[on[here]]
        box = xy[here] if crop and len(here) else xy[on]
        margin = 12.0 if crop and len(here) else 4.0
        boxes[h] = (box.min(axis=0) - margin, box.max(axis=0) + margin)
    size = np.max([high - low for low, high in boxes.values()], axis=0)
    return {h: ((low + high - size) / 2, (low + high + size) / 2) for h, (low, high) in boxes.items()}


def _runs(seen: np.ndarray) -> list[slice]:
    """Stretches of True that have at least two points."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], seen.astype(int), [0]])))
    return [slice(a, b) for a, b in zip(edges[::2], edges[1::2]) if b - a > 1]


def draw_flat(
    axes: Any,
    hemi: str,
    colours: np.ndarray,
    window: tuple[np.ndarray, np.ndarray],
    inches: float,
    regions: Mapping[str, np.ndarray],
) -> None:
    """Paint the flat patch; ``colours`` (face, 4); ``regions`` are bool (vertex,)."""
    from matplotlib.collections import PolyCollection

    xy, faces, on = flat_mesh(hemi)
    rgba = over(colours, flat_shade(inflated_mesh(hemi)[2], faces))
    axes.add_collection(
        PolyCollection(list(xy[faces]), facecolors=rgba, edgecolors=rgba, linewidths=0.3, rasterized=True)
    )
    (x0, y0), (x1, y1) = window
    axes.set(xlim=(x0, x1), ylim=(y0, y1), aspect="equal")
    axes.axis("off")
    anchors = []
    for name, inside in regions.items():
        draw_lines(axes, [smooth(xy[chain].mean(axis=1)) for chain in loops(inside & on, faces)])
        anchors += [(name, _middle(xy[part])) for part in _parts(inside & on, faces)]
    place_labels(axes, anchors, inches)


def _parts(inside: np.ndarray, faces: np.ndarray) -> list[np.ndarray]:
    """Vertices of each part of a region: the largest, and others of at least a quarter of it."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = edges[inside[edges].all(axis=1)]
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(len(inside), len(inside)))
    own = np.flatnonzero(inside)
    _, number = connected_components(graph, directed=False)
    _, compact, sizes = np.unique(number[own], return_inverse=True, return_counts=True)
    return [own[compact == k] for k in np.flatnonzero(4 * sizes >= sizes.max())] if len(own) else []


def _middle(points: np.ndarray) -> np.ndarray:
    """The point closest to the median, so that a label stands on its region even where it is bent or in parts."""
    return points[np.argmin(np.linalg.norm(points - np.median(points, axis=0), axis=1))]


def draw_inflated(
    axes: Any,
    hemi: str,
    view: str,
    colours: np.ndarray,
    inches: float,
    regions: Mapping[str, np.ndarray],
    views: Sequence[str] = (),
) -> None:
    """Paint one view of the inflated mesh with the outlines that face the camera.

    A part of a region is named in that one of ``views`` (this one by default) where most of it is seen.
    """
    draw_hemisphere(axes, hemi, view, colours)
    if not regions:
        return
    faces = inflated_mesh(hemi)[1]
    plane, facing, seen = _seen(hemi, view)
    anchors = []
    for name, inside in regions.items():
        lines = []
        for chain in loops(inside, faces):
            points = smooth(plane[chain].mean(axis=1))
            lines += [points[run] for run in _runs(seen[chain].all(axis=1) & (facing[chain].mean(axis=1) > 0.08))]
        draw_lines(axes, lines)
        for part in _parts(inside, faces):
            shares = {v: float((_seen(hemi, v)[1][part] * _seen(hemi, v)[2][part]).sum()) for v in (*views, view)}
            if max(shares, key=lambda v: shares[v]) == view and shares[view] > 0.1 * len(part):
                anchors.append((name, _middle(plane[part[seen[part]]])))
    place_labels(axes, anchors, inches, fontsize=6.5)


@lru_cache(maxsize=12)
def _seen(hemi: str, view: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices on the page (vertex, 2), cosine of the angle to the camera, and whether the camera sees them."""
    xyz, faces, _ = inflated_mesh(hemi)
    forward, up = (np.array(a, float) for a in VIEWS[view][hemi])
    plane = np.stack([xyz @ np.cross(forward, up), xyz @ up], axis=1)
    facing = -vertex_normals(xyz, faces) @ forward
    return plane, facing, (facing > 0) & ~_hidden(plane, xyz @ forward, faces, facing)


def _hidden(plane: np.ndarray, depth: np.ndarray, faces: np.ndarray, facing: np.ndarray) -> np.ndarray:
    """Vertices behind another part of the cortex, by a coarse depth buffer (4 mm cells)."""
    shown = faces[(facing[faces] > 0).all(axis=1)]
    cell = np.floor((plane - plane.min(axis=0)) / 4).astype(int)
    nearest = np.full(cell.max(axis=0) + 1, np.inf)
    used = np.unique(shown)
    np.minimum.at(nearest, tuple(cell[used].T), depth[used])
    return depth > nearest[tuple(cell.T)] + 18
