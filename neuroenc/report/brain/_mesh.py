"""Meshes of the cortex, inflated and flat, one painted view of them, and outlines on meshes and slices."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuroenc import data
from neuroenc._core.errors import DataError
from neuroenc._core.optional import require
from neuroenc.report._style import INK, write

N_VERTICES = 10242  # of fsaverage5, per hemisphere

SIDES = {"L": "left", "R": "right"}
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


class Surface(NamedTuple):
    """A mesh of both hemispheres: of a name, or files (hemisphere, part, path, time of its last change)."""

    name: str
    files: tuple[tuple[str, str, str, int], ...] = ()

    def parts(self, hemi: str) -> dict[str, str]:
        """Files of a hemisphere: inflated, flat, sulc."""
        if not self.files:
            return data.mesh_files(self.name)[hemi]
        return {part: path for h, part, path, _ in self.files if h == hemi}

    def load(self, hemi: str, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates and faces."""
        mesh: Any = {hemi: self.parts(hemi)} if self.files else self.name
        return data.load_mesh(mesh, part)[hemi]


FSAVERAGE5 = Surface("fsaverage5")
_PARTS = ("inflated", "flat", "sulc")


def surface_of(given: str | Mapping[str, Any] | None, space: str) -> Surface:
    """The mesh asked for, or that of the space of values; ``space`` is "unknown" where they do not say.

    Where fsaverage6 or fsaverage are not found and were not asked for, fsaverage5.
    """
    require("nilearn", "brain")
    if isinstance(given, Mapping):
        files = []
        for hemi in "LR":
            own = given.get(hemi)
            if not isinstance(own, Mapping) or "inflated" not in own or not set(own) <= set(_PARTS):
                raise DataError(
                    f"surface has {own!r} for hemisphere {hemi!r}; legal: {{'L': {{'inflated': file, 'flat': file, "
                    "'sulc': file}, 'R': {...}}, of which 'inflated' is needed."
                )
            for part, path in own.items():
                if not Path(os.fspath(path)).is_file():
                    raise DataError(f"surface {hemi}, {part}: there is no file {os.fspath(path)}.")
                files.append((hemi, part, os.fspath(path), os.stat(path).st_mtime_ns))
        return Surface("own" if space == "unknown" else space, tuple(files))
    name = given or {"unknown": "fsaverage5", "fsaverage7": "fsaverage", "fsLR": "fsLR-32k"}.get(space, space)
    try:
        data.mesh_files(name)
    except DataError:
        if given is not None or name not in ("fsaverage6", "fsaverage"):
            raise
        return FSAVERAGE5  # its vertices are the first ones of theirs
    return Surface(name)


@lru_cache(maxsize=8)
def inflated_mesh(hemi: str, surface: Surface = FSAVERAGE5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inflated surface of one hemisphere: coordinates (mm, centre 0), faces, sulcal depth (0 where there is none).

    All but fsaverage5 are scaled to its length, so that every mesh fills its panel.
    """
    coordinates, faces = surface.load(hemi, "inflated")
    coordinates = coordinates - coordinates.mean(axis=0)
    if surface != FSAVERAGE5:
        coordinates *= np.ptp(inflated_mesh(hemi)[0][:, 1]) / np.ptp(coordinates[:, 1])
    return coordinates, faces, _sulc(surface, hemi, len(coordinates))


def _sulc(surface: Surface, hemi: str, n: int) -> np.ndarray:
    """Depth of sulci at each vertex, sulci positive as FreeSurfer has them."""
    path = surface.parts(hemi).get("sulc")
    if path is None:
        return np.zeros(n)
    if path.endswith(".dscalar.nii"):
        from nibabel import imageglobals

        level = imageglobals.logger.level
        imageglobals.logger.setLevel("ERROR")  # no word on a field of the header that CIFTI does not use
        try:
            read = data.read_cifti(path)
        finally:
            imageglobals.logger.setLevel(level)
        own = read.isel(voxel=read["hemi"].values == hemi)
        depth = np.zeros(max(n, int(own["vertex"].max()) + 1))
        depth[own["vertex"].values] = -np.asarray(own.values, float).reshape(-1)  # of HCP: sulci negative
    else:
        from nilearn.surface import load_surf_data

        depth = np.asarray(load_surf_data(path), float).reshape(-1)
    if len(depth) < n or (surface.files and len(depth) != n):
        raise DataError(f"{path} holds {len(depth)} values for the {n} vertices of hemisphere {hemi}.")
    return depth[:n]


def camera(hemi: str, view: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions forward, right and up of a view."""
    forward, up = (np.array(a, float) for a in VIEWS[view][hemi])
    return forward, np.cross(forward, up), up


def face_values(values: np.ndarray, faces: np.ndarray, cycle: tuple[float, float] | None = None) -> np.ndarray:
    """Mean over the measured corners of each triangle: a lone vertex still shows, as its own small patch.

    With a ``cycle`` (low, high) it is the mean on the circle: of -170 and 170 degrees that is 180, not 0.
    """
    if cycle is not None:
        period = (cycle[1] - cycle[0]) / (2 * np.pi)
        turn = (values - cycle[0]) / period
        mean = np.arctan2(face_values(np.sin(turn), faces), face_values(np.cos(turn), faces))
        return cycle[0] + mean % (2 * np.pi) * period
    corners = values[faces]
    measured = np.isfinite(corners)
    total = np.where(measured, corners, 0).sum(axis=1)
    count = measured.sum(axis=1)
    return np.divide(total, count, out=np.full(len(faces), np.nan), where=count > 0)


def over(colours: np.ndarray, bare: np.ndarray) -> np.ndarray:
    """Colours (face, 4) laid over the bare cortex by their opacity."""
    opacity = colours[:, 3:]
    return np.concatenate([colours[:, :3] * opacity + bare[:, :3] * (1 - opacity), bare[:, 3:]], axis=1)


def draw_hemisphere(axes: Any, hemi: str, view: str, colours: np.ndarray, surface: Surface = FSAVERAGE5) -> None:
    """Paint one view: triangles that face the camera, far ones first; ``colours`` (face, 4), alpha 0 = bare.

    nilearn's own matplotlib drawing drops every triangle with an unmeasured corner, which hides sparse
    voxels, and its 3-D axes leave most of a small panel empty; hence only the meshes are taken from it.
    """
    from matplotlib.collections import PolyCollection

    coordinates, faces, sulc = inflated_mesh(hemi, surface)
    forward, right, up = camera(hemi, view)
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
    rgba = over(colours, bare)

    plane: Any = np.stack([corners[shown] @ right, corners[shown] @ up], axis=2)
    look: dict[str, Any] = {"facecolors": rgba[shown], "edgecolors": rgba[shown], "linewidths": 0.25}
    axes.add_collection(PolyCollection(plane, **look, rasterized=True))
    centre = (plane.reshape(-1, 2).max(axis=0) + plane.reshape(-1, 2).min(axis=0)) / 2
    axes.set_xlim(centre[0] - PANEL[0], centre[0] + PANEL[0])
    axes.set_ylim(centre[1] - PANEL[1] + 6, centre[1] + PANEL[1] + 6)
    axes.set_aspect("equal")
    axes.axis("off")


@lru_cache(maxsize=8)
def flat_mesh(hemi: str, surface: Surface = FSAVERAGE5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flattened surface: coordinates (vertex, 2) in mm, faces, and whether a vertex is on the patch."""
    coordinates, faces = surface.load(hemi, "flat")
    if len(coordinates) != (n := len(inflated_mesh(hemi, surface)[0])):
        raise DataError(f"the flat surface of hemisphere {hemi} has {len(coordinates)} vertices, the inflated {n}.")
    on = np.zeros(len(coordinates), bool)
    on[faces.ravel()] = True
    return coordinates[:, :2], faces, on


def has_flat(surface: Surface) -> bool:
    """Whether both hemispheres have a flat surface."""
    return all("flat" in surface.parts(hemi) for hemi in "LR")


def flat_shade(sulc: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Grey of bare cortex (face, 4), sulci darker."""
    grey = 0.895 - 0.055 * np.clip(sulc[faces].mean(axis=1) / 0.8, -1, 1)
    return np.stack([grey, grey, grey, np.ones_like(grey)], axis=1)


def vertex_normals(xyz: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Outward unit normal of each vertex (vertex, 3)."""
    corners = xyz[faces]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    out = np.zeros_like(xyz)
    for corner in range(3):
        np.add.at(out, faces[:, corner], flat)
    return out / (np.linalg.norm(out, axis=1, keepdims=True) + 1e-12)


MOST_NAMES = 30  # in one panel: more would cover the map


def borders(axes: Any, xy: np.ndarray, faces: np.ndarray, inside: np.ndarray) -> list[np.ndarray]:
    """Lines (point, 2) around the vertices inside, half way along the edges that leave them, smoothed.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Of the panel; nothing is drawn on it.
    xy : array (vertex, 2)
    faces : int array (face, 3)
        Of one orientation on the page.
    inside : bool array (vertex,)
    """
    contour = axes.tricontour(*xy.T, faces, inside.astype(float), levels=[0.5])
    contour.remove()
    return [_smooth(line) for line in contour.allsegs[0]]


def _smooth(points: np.ndarray) -> np.ndarray:
    """Points (point, 2) averaged twice with their neighbours; ends of an open line stay."""
    closed = len(points) > 3 and np.array_equal(points[0], points[-1])
    for _ in range(2):
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
        ends = {"capstyle": "round", "joinstyle": "round"}
        axes.add_collection(LineCollection(lines, colors=[colour], linewidths=thick, zorder=3, **ends))


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
