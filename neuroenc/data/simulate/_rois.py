"""Where the simulated regions lie on fsaverage5 and in a 2 mm volume."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from neuroenc._core.errors import DataError
from neuroenc._core.optional import require

#: Voxel indices to millimetres: 2 mm isotropic, wide enough for the whole surface.
AFFINE = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
VOLUME_SHAPE = (91, 109, 91)

Centre = tuple[float, float, float]


@dataclass(frozen=True)
class Roi:
    """One region: approximate centres (mm; x is the distance from the midline), size, and what drives it.

    ``count`` is the number of voxels of both hemispheres together. ``parts`` gives the visual quarter of
    each centre: "upper", "lower" or "" for the whole hemifield. ``rf`` are the intercept and slope of
    receptive-field size over eccentricity, and the exponent of the compressive nonlinearity.
    """

    name: str
    count: int
    centres: tuple[Centre, ...]
    hemispheres: str = "LR"
    parts: tuple[str, ...] = ("",)
    rf: tuple[float, float, float] | None = None
    family: str = ""
    second: str = ""
    clusters: tuple[tuple[str, ...], ...] = ()


def _selective(
    name: str, count: int, centre: Centre, family: str, second: str, *clusters: str, hemispheres: str = "LR"
) -> Roi:
    """A region of one family, in clusters of voxels that prefer some of its members."""
    liked = tuple(tuple(members.split()) for members in clusters)
    return Roi(name, count, (centre,), hemispheres, family=family, second=second, clusters=liked)


_SELECTIVE = (
    _selective("OFA", 40, (42, -79, -10), "face", "body", "man woman", "child cat dog"),
    _selective("FFA", 60, (40, -54, -19), "face", "body", "man woman child", "cat dog"),
    _selective("EBA", 80, (47, -70, 4), "body", "face", "person runner dancer surfer", "hand"),
    _selective("FBA", 40, (43, -42, -21), "body", "face", "person dancer", "runner surfer hand"),
    _selective("PPA", 70, (26, -44, -10), "place", "food", "house church", "mountain beach", "corridor"),
    _selective("OPA", 50, (33, -82, 20), "place", "body", "house corridor", "church mountain beach"),
    _selective("RSC", 40, (16, -54, 10), "place", "word", "mountain beach", "house church corridor"),
    _selective("VWFA", 40, (46, -58, -13), "word", "face", "sign poster", "letter book newspaper", hemispheres="L"),
    _selective("food", 50, (32, -60, -12), "food", "place", "pizza cake burger", "apple banana"),
)
_QUARTERS = ("lower", "upper")

#: The simulated regions: four retinotopic areas, then nine regions selective for a family of objects.
ROIS: dict[str, Roi] = {
    r.name: r
    for r in (
        Roi("V1", 100, ((10, -86, 3),), rf=(0.03, 0.08, 0.8)),
        Roi("V2", 90, ((13, -94, 17), (13, -76, -7)), parts=_QUARTERS, rf=(0.04, 0.12, 0.7)),
        Roi("V3", 80, ((22, -93, 19), (21, -74, -10)), parts=_QUARTERS, rf=(0.05, 0.17, 0.6)),
        Roi("hV4", 60, ((29, -77, -13),), rf=(0.07, 0.25, 0.5)),
        *_SELECTIVE,
    )
}


@lru_cache(maxsize=1)
def fsaverage5() -> dict[str, tuple[np.ndarray, tuple[np.ndarray, ...]]]:
    """Per hemisphere, vertex coordinates (10242, 3) in mm midway between white and pial, and neighbours."""
    require("nilearn", "brain")
    from nilearn.datasets import fetch_surf_fsaverage
    from nilearn.surface import load_surf_mesh

    files = fetch_surf_fsaverage("fsaverage5")
    found = {}
    for hemi, side in (("L", "left"), ("R", "right")):
        white, pial = (load_surf_mesh(files[f"{kind}_{side}"]) for kind in ("white", "pial"))
        faces = np.asarray(white.faces)
        pairs = np.unique(np.concatenate([faces[:, [a, b]] for a in range(3) for b in range(3) if a != b]), axis=0)
        starts = np.searchsorted(pairs[:, 0], np.arange(1, len(white.coordinates)))
        middle = (np.asarray(white.coordinates) + np.asarray(pial.coordinates)) / 2
        found[hemi] = (middle.astype(np.float64), tuple(np.split(pairs[:, 1], starts)))
    return found


def grow(hemi: str, centres: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Disjoint patches of vertices around centres, grown together along the surface.

    Patches are contiguous while there is room between them.

    Parameters
    ----------
    hemi : {"L", "R"}
    centres : array (patch, 3), mm
    counts : int array (patch,)
        Vertices wanted in each.

    Returns
    -------
    list of int arrays
        Vertices of each patch, nearest to its centre first.

    Raises
    ------
    DataError
        More vertices are wanted than the hemisphere has.
    """
    xyz, neighbours = fsaverage5()[hemi]
    if counts.sum() > len(xyz):
        raise DataError(
            f"{int(counts.sum())} vertices asked for in hemisphere {hemi} of {len(xyz)}: ask for fewer voxels "
            "(n_voxels)."
        )
    free = np.ones(len(xyz), dtype=bool)
    patches: list[list[int]] = [[] for _ in counts]
    # Distances are divided by each patch's radius, so that small and large patches meet fairly.
    radius = np.sqrt(np.maximum(counts, 1))
    heap: list[tuple[float, int, int]] = []

    def push(k: int, vertex: int, distance: float) -> None:
        steps = np.linalg.norm(xyz[neighbours[vertex]] - xyz[vertex], axis=1) / radius[k]
        for other, step in zip(neighbours[vertex], steps):
            heapq.heappush(heap, (distance + float(step), k, int(other)))

    short = list(range(len(counts)))
    while short:
        for k in short:
            seed = int(np.argmin(np.where(free, ((xyz - centres[k]) ** 2).sum(axis=1), np.inf)))
            free[seed] = False
            patches[k].append(seed)
            push(k, seed, 0.0)
        while heap:
            distance, k, vertex = heapq.heappop(heap)
            if free[vertex] and len(patches[k]) < counts[k]:
                free[vertex] = False
                patches[k].append(vertex)
                push(k, vertex, distance)
        # A patch that others have walled in goes on at the nearest free place.
        short = [k for k in short if len(patches[k]) < counts[k]]
    return [np.array(p, dtype=np.int64) for p in patches]


def volume_indices(xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A volume element of its own for each point, at most 2 mm from it.

    Parameters
    ----------
    xyz : array (point, 3), mm

    Returns
    -------
    ijk : int64 array (point, 3)
    kept : bool array (point,)
        False for a point whose neighbourhood was already taken (its ``ijk`` means nothing).
    """
    exact = (xyz - AFFINE[:3, 3]) / 2.0
    offsets = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    nearest = np.rint(exact).astype(np.int64)
    ijk, kept = nearest.copy(), np.ones(len(xyz), dtype=bool)
    taken: set[tuple[int, int, int]] = set()
    for n in range(len(xyz)):
        candidates = nearest[n] + offsets
        distance = 2.0 * np.linalg.norm(candidates - exact[n], axis=1)
        for c in np.argsort(distance, kind="stable"):
            i, j, k = (int(v) for v in candidates[c])
            if distance[c] > 2.0:
                kept[n] = False
                break
            if (i, j, k) not in taken:
                taken.add((i, j, k))
                ijk[n] = candidates[c]
                break
    return ijk, kept
