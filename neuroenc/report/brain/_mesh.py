"""fsaverage5 as nilearn ships it, inflated and flat, and one painted view of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from neuroenc._core.optional import require

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
def inflated_mesh(hemi: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inflated fsaverage5 of one hemisphere, from nilearn's own files: coordinates (mm), faces, sulcal depth."""
    require("nilearn", "brain")
    from nilearn.datasets import fetch_surf_fsaverage
    from nilearn.surface import load_surf_data, load_surf_mesh

    side = {"L": "left", "R": "right"}[hemi]
    files = fetch_surf_fsaverage("fsaverage5")
    mesh = load_surf_mesh(files[f"infl_{side}"])
    coordinates = np.asarray(mesh.coordinates, float)
    return coordinates - coordinates.mean(axis=0), np.asarray(mesh.faces), load_surf_data(files[f"sulc_{side}"])


def face_values(values: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Mean over the measured corners of each triangle: a lone vertex still shows, as its own small patch."""
    corners = values[faces]
    measured = np.isfinite(corners)
    total = np.where(measured, corners, 0).sum(axis=1)
    count = measured.sum(axis=1)
    return np.divide(total, count, out=np.full(len(faces), np.nan), where=count > 0)


def over(colours: np.ndarray, bare: np.ndarray) -> np.ndarray:
    """Colours (face, 4) laid over the bare cortex by their opacity."""
    opacity = colours[:, 3:]
    return np.concatenate([colours[:, :3] * opacity + bare[:, :3] * (1 - opacity), bare[:, 3:]], axis=1)


def draw_hemisphere(axes: Any, hemi: str, view: str, colours: np.ndarray) -> None:
    """Paint one view: triangles that face the camera, far ones first; ``colours`` (face, 4), alpha 0 = bare.

    nilearn's own matplotlib drawing drops every triangle with an unmeasured corner, which hides sparse
    voxels, and its 3-D axes leave most of a small panel empty; hence only the meshes are taken from it.
    """
    from matplotlib.collections import PolyCollection

    coordinates, faces, sulc = inflated_mesh(hemi)
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
    rgba = over(colours, bare)

    plane: Any = np.stack([corners[shown] @ right, corners[shown] @ up], axis=2)
    axes.add_collection(
        PolyCollection(plane, facecolors=rgba[shown], edgecolors=rgba[shown], linewidths=0.25, rasterized=True)
    )
    centre = (plane.reshape(-1, 2).max(axis=0) + plane.reshape(-1, 2).min(axis=0)) / 2
    axes.set_xlim(centre[0] - PANEL[0], centre[0] + PANEL[0])
    axes.set_ylim(centre[1] - PANEL[1] + 6, centre[1] + PANEL[1] + 6)
    axes.set_aspect("equal")
    axes.axis("off")


@lru_cache(maxsize=2)
def flat_mesh(hemi: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flattened fsaverage5: coordinates (vertex, 2) in mm, faces, and whether a vertex is on the patch."""
    from nilearn.datasets import fetch_surf_fsaverage
    from nilearn.surface import load_surf_mesh

    mesh = load_surf_mesh(fetch_surf_fsaverage("fsaverage5")[f"flat_{ {'L': 'left', 'R': 'right'}[hemi] }"])
    faces = np.asarray(mesh.faces)
    on = np.zeros(len(mesh.coordinates), bool)
    on[faces.ravel()] = True
    return np.asarray(mesh.coordinates, float)[:, :2], faces, on


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
