"""Values of vertices on the inflated fsaverage5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from neuroenc._util.errors import ConfigError, DataError, unknown_name
from neuroenc._util.optional import require
from neuroenc.report._paint import Painter
from neuroenc.report._style import MUTED, STYLE

__all__ = ["N_VERTICES", "VIEWS", "plot_surface"]

N_VERTICES = 10242  # of fsaverage5, per hemisphere

PANEL = (114.0, 84.0)  # half width and height of a panel in mm: the inflated mesh with its label above

# Direction in which the camera looks, and what is up on the page (x right, y anterior, z superior).
# Ventral views keep the lateral edge up, as if the lateral view were rolled towards the reader.
VIEWS: Mapping[str, Mapping[str, tuple[tuple[int, int, int], tuple[int, int, int]]]] = {
    "lateral": {"L": ((1, 0, 0), (0, 0, 1)), "R": ((-1, 0, 0), (0, 0, 1))},
    "medial": {"L": ((-1, 0, 0), (0, 0, 1)), "R": ((1, 0, 0), (0, 0, 1))},
    "ventral": {"L": ((0, 0, 1), (-1, 0, 0)), "R": ((0, 0, 1), (1, 0, 0))},
    "dorsal": {"L": ((0, 0, -1), (-1, 0, 0)), "R": ((0, 0, -1), (1, 0, 0))},
    "posterior": {"L": ((0, 1, 0), (0, 0, 1)), "R": ((0, 1, 0), (0, 0, 1))},
    "anterior": {"L": ((0, -1, 0), (0, 0, 1)), "R": ((0, -1, 0), (0, 0, 1))},
}


@lru_cache(maxsize=2)
def _mesh(hemi: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inflated fsaverage5 of one hemisphere, from nilearn's own files: coordinates (mm), faces, sulcal depth."""
    require("nilearn", "brain")
    from nilearn.datasets import fetch_surf_fsaverage
    from nilearn.surface import load_surf_data, load_surf_mesh

    side = {"L": "left", "R": "right"}[hemi]
    files = fetch_surf_fsaverage("fsaverage5")
    mesh = load_surf_mesh(files[f"infl_{side}"])
    coordinates = np.asarray(mesh.coordinates, float)
    return (
        coordinates - coordinates.mean(axis=0),
        np.asarray(mesh.faces),
        load_surf_data(files[f"sulc_{side}"]),
    )


def _face_values(values: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Mean over the measured corners of each triangle: a lone vertex still shows, as its own small patch."""
    corners = values[faces]
    measured = np.isfinite(corners)
    total = np.where(measured, corners, 0).sum(axis=1)
    count = measured.sum(axis=1)
    return np.divide(total, count, out=np.full(len(faces), np.nan), where=count > 0)


def _draw_hemisphere(axes: Any, hemi: str, view: str, colours: np.ndarray) -> None:
    """Paint one view: triangles that face the camera, far ones first; ``colours`` (face, 4), alpha 0 = bare.

    nilearn's own matplotlib drawing drops every triangle with an unmeasured corner, which hides sparse
    voxels, and its 3-D axes leave most of a small panel empty; hence only the meshes are taken from it.
    """
    from matplotlib.collections import PolyCollection

    coordinates, faces, sulc = _mesh(hemi)
    forward, up = (np.array(a, float) for a in VIEWS[view][hemi])
    right = np.cross(forward, up)
    corners = coordinates[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    facing = -normals @ forward
    shown = np.flatnonzero(facing > 0)
    shown = shown[np.argsort(-(corners[shown].mean(axis=1) @ forward), kind="stable")]

    # Only the bare cortex is shaded: a colour that stands for a number keeps its exact tone.
    depth = np.clip(sulc[faces].mean(axis=1) / 0.8, -1, 1)
    grey = (0.86 - 0.09 * depth) * (0.80 + 0.20 * np.clip(facing, 0, 1))
    bare = np.stack([grey, grey, grey, np.ones_like(grey)], axis=1)
    rgba = np.where(colours[:, 3:] > 0, colours, bare)

    plane = np.stack([corners[shown] @ right, corners[shown] @ up], axis=2)
    axes.add_collection(
        PolyCollection(list(plane), facecolors=rgba[shown], edgecolors=rgba[shown], linewidths=0.25, closed=True)
    )
    centre = (plane.reshape(-1, 2).max(axis=0) + plane.reshape(-1, 2).min(axis=0)) / 2
    axes.set_xlim(centre[0] - PANEL[0], centre[0] + PANEL[0])
    axes.set_ylim(centre[1] - PANEL[1] + 6, centre[1] + PANEL[1] + 6)
    axes.set_aspect("equal")
    axes.axis("off")


def _vertex_table(vertex: Any, hemi: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    index = np.asarray(vertex)
    side = np.array([str(h)[:1].upper() for h in np.asarray(hemi).ravel()])
    if len(index) != n or len(side) != n:
        raise DataError(f"{n} values but {len(index)} vertices and {len(side)} hemispheres; legal: one of each.")
    strange = sorted({str(h) for h in side} - {"L", "R"})
    if strange:
        raise DataError(f"hemi holds {strange}; legal: 'L', 'R'.")
    if n and (index.min() < 0 or index.max() >= N_VERTICES):
        raise DataError(
            f"vertices {index.min()}..{index.max()} do not fit fsaverage5 (0..{N_VERTICES - 1}). "
            "Next step: resample to fsaverage5, or keep the vertices below 10242 if the space is fsaverage."
        )
    return index.astype(int), side


def plot_surface(
    values: Any,
    vertex: Any,
    hemi: Any,
    *,
    label: str = "",
    cmap: str = "viridis",
    vmin: float | None = None,
    vmax: float | None = None,
    colours: Mapping[str, Any] | None = None,
    views: Sequence[str] = ("lateral", "medial", "ventral", "posterior"),
) -> Any:
    """Values of vertices on the inflated fsaverage5, both hemispheres, with a colour bar or a legend.

    Every triangle that touches a measured vertex takes the mean of its measured corners; the rest shows
    the grey cortex, sulci darker. Panels share one scale in millimetres.

    Parameters
    ----------
    values : array (voxel,), float or str
        Numbers are drawn with a colour bar; NaN is not drawn. Strings are drawn as categories with a
        legend; "" is not drawn.
    vertex : array (voxel,), int
        Vertex numbers on fsaverage5, 0..10241.
    hemi : array (voxel,), str
        "L" or "R".
    label : str
        Text at the colour bar.
    cmap, vmin, vmax
        Colour map and its range; by default from 0 (or the minimum, if all are negative) to the maximum.
    colours : mapping of str to colour, optional
        Colour of each category; the legend is then left to the caller.
    views : sequence of str
        Any of ``lateral, medial, ventral, dorsal, posterior, anterior``.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    DataError
        If vertices do not fit fsaverage5 or lengths differ.
    ModuleNotFoundError
        If nilearn or matplotlib is not installed.

    Examples
    --------
    >>> figure = plot_surface([0.1, 0.5], vertex=[12, 4000], hemi=["L", "R"], label="r", views=["lateral"])
    >>> len(figure.axes)  # one panel per hemisphere and the colour bar
    3
    """
    require("matplotlib", "brain")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    for view in views:
        if view not in VIEWS:
            raise ConfigError(unknown_name("view", view, VIEWS))
    data = np.asarray(values)
    index, side = _vertex_table(vertex, hemi, len(data))
    painter = Painter(data, cmap, vmin, vmax, colours)
    pairs = [views[k : k + 2] for k in range(0, len(views), 2)]
    with rc_context(STYLE):
        height = len(pairs) * 10.6 / 4 * PANEL[1] / PANEL[0] + painter.room
        figure = Figure(figsize=(10.6, height))
        grid = figure.add_gridspec(
            len(pairs),
            4,
            left=0,
            right=1,
            top=1,
            bottom=painter.room / height,
            wspace=0,
            hspace=0,
        )
        for row, pair in enumerate(pairs):
            # Mirror-symmetric rows: L first, L second | R second, R first.
            order = [("L", v) for v in pair] + [("R", v) for v in reversed(pair)]
            for column, (h, view) in enumerate(order):
                place = column if len(pair) == 2 else column + 1
                axes = figure.add_subplot(grid[row, place])
                on_mesh = np.full(N_VERTICES, np.nan)
                on_mesh[index[side == h]] = painter.numbers[side == h]
                faces = _mesh(h)[1]
                numbers = painter.corner(on_mesh, faces) if painter.categories else _face_values(on_mesh, faces)
                _draw_hemisphere(axes, h, view, painter.colours(numbers))
                axes.text(
                    0.5,
                    0.99,
                    f"{h} {view}",
                    transform=axes.transAxes,
                    ha="center",
                    va="top",
                    color=MUTED,
                    fontsize=8,
                )
        painter.key(figure, label, height=0.11 / height, bottom=0.34 / height)
    return figure
