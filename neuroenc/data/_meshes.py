"""Surface meshes of both hemispheres, and the maps of several subjects on one of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError, unknown_name
from neuroenc._core.optional import require
from neuroenc.data._build import check_hemi

# Vertices of a hemisphere. The vertices of each are the first ones of every denser mesh.
_DENSITIES = {"fsaverage3": 642, "fsaverage4": 2562, "fsaverage5": 10242, "fsaverage6": 40962}
_DENSITIES |= {"fsaverage": 163842, "fsaverage7": 163842}
_SURFACES = {"sphere": "sphere", "inflated": "infl", "white": "white", "pial": "pial", "flat": "flat"}
#: Maps of fsaverage5 itself that are at hand, by name.
_SHIPPED = {"thickness": "thick", "curvature": "curv", "sulcal depth": "sulc", "area": "area"}
_WALL = 1.0  # mm of thickness, below which there is no cortex
_SIDES = {"L": "left", "R": "right"}


def _fsaverage5(part: str) -> dict[str, str]:
    """Files of fsaverage5 as nilearn ships them."""
    require("nilearn", "brain")
    from nilearn.datasets import fetch_surf_fsaverage

    files = fetch_surf_fsaverage("fsaverage5")
    return {hemi: files[f"{part}_{side}"] for hemi, side in _SIDES.items()}


def load_mesh(
    mesh: str | Mapping[str, str | os.PathLike[str]] = "fsaverage5", surface: str = "sphere"
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Vertices and triangles of a surface, by hemisphere.

    Parameters
    ----------
    mesh : {"fsaverage5"}, or mapping {"L": path, "R": path}
        fsaverage5 comes with nilearn. Files are GIFTI or FreeSurfer surfaces of any mesh.
    surface : {"sphere", "inflated", "white", "pial", "flat"}
        Of fsaverage5. "sphere" is the registered sphere, whose centre is 0.

    Returns
    -------
    dict "L", "R" -> (coordinates (vertex, 3) float64 in mm, faces (face, 3) int)

    Raises
    ------
    DataError
        A file is absent or is no mesh.
    ModuleNotFoundError
        If nilearn is not installed.

    Examples
    --------
    >>> coordinates, faces = load_mesh()["L"]
    >>> coordinates.shape, faces.shape
    ((10242, 3), (20480, 3))
    """
    require("nilearn", "brain")
    from nilearn.surface import load_surf_mesh

    if isinstance(mesh, str):
        one_of("mesh", mesh, ["fsaverage5"], "Or files of another: {'L': path, 'R': path}.")
        files: Mapping[str, Any] = _fsaverage5(_SURFACES[one_of("surface", surface, _SURFACES)])
    else:
        files = mesh
    found = {}
    for hemi, path in files.items():
        one_of("hemisphere", hemi, _SIDES)
        try:
            loaded = load_surf_mesh(os.fspath(path))
        except (OSError, ValueError, TypeError, IndexError) as error:
            raise DataError(f"{path} is no surface mesh that can be read: {error}.") from error
        found[hemi] = np.asarray(loaded.coordinates, np.float64), np.asarray(loaded.faces, np.intp)
    return found


def load_anatomy(name: str) -> xr.DataArray:
    """An anatomical map of fsaverage5, as nilearn ships it.

    Parameters
    ----------
    name : {"thickness", "curvature", "sulcal depth", "area"}
        Mean over the people of fsaverage; mm, 1 / mm, mm and mm2.

    Returns
    -------
    DataArray (voxel,)
        Coordinates ``vertex`` and ``hemi``, left before right. NaN on the medial wall (thickness below 1 mm).

    Raises
    ------
    ConfigError
        Another name.

    Examples
    --------
    >>> load_anatomy("thickness").sizes["voxel"]
    20484
    """
    part = _SHIPPED[one_of("anatomical map", name, _SHIPPED)]
    require("nilearn", "brain")
    from nilearn.surface import load_surf_data

    def read(what: str) -> list[np.ndarray]:
        files = _fsaverage5(what)
        return [np.asarray(load_surf_data(files[hemi]), np.float64) for hemi in _SIDES]

    maps = [np.where(thick < _WALL, np.nan, own) for own, thick in zip(read(part), read("thick"))]
    coords: dict[str, Any] = {"vertex": ("voxel", np.concatenate([np.arange(len(m)) for m in maps]))}
    coords["hemi"] = ("voxel", np.repeat(list(_SIDES), [len(m) for m in maps]))
    return xr.DataArray(np.concatenate(maps), dims="voxel", coords=coords, name=name, attrs={"space": "fsaverage5"})


def stack_subjects(maps: Mapping[str, xr.Dataset | xr.DataArray], *, space: str = "fsaverage5") -> xr.Dataset:
    """Maps of several subjects on the vertices of one mesh, matched by hemisphere and vertex number.

    Parameters
    ----------
    maps : mapping of subject to Dataset or DataArray over ``voxel``
        Coordinates ``vertex`` and ``hemi``; subjects may have measured different vertices. Of Datasets, the numeric
        variables that all have.
    space : str
        fsaverage mesh that finer ones are brought to, by their first vertices; subjects that are all in the same other
        space stay there.

    Returns
    -------
    Dataset (subject, voxel)
        Vertices that any subject has, left before right; NaN where a subject has none. Coordinates ``vertex, hemi,
        own_roi`` (subject, voxel; regions as each subject names them) and ``roi`` (those that at least half of the
        subjects name). ``attrs``: ``space``, and of an fsaverage mesh ``n_vertices`` (of a hemisphere).

    Raises
    ------
    DataError
        A subject has no vertices, one vertex twice, or another space.

    Examples
    --------
    >>> def one(vertex, r):
    ...     coords = {"vertex": ("voxel", vertex), "hemi": ("voxel", ["L"] * len(vertex))}
    ...     return xr.DataArray(r, dims="voxel", coords=coords, name="r", attrs={"space": "fsaverage5"})
    >>> stack_subjects({"a": one([7, 3], [0.7, 0.3]), "b": one([3], [0.5])})["r"].values.tolist()
    [[0.3, 0.7], [0.5, nan]]
    """
    parts = {k: v.to_dataset(name=str(v.name or "map")) if isinstance(v, xr.DataArray) else v for k, v in maps.items()}
    if not parts:
        raise DataError("there are 0 maps; at least one subject is needed.")
    for name, part in parts.items():
        if not {"vertex", "hemi"} <= set(part.coords):
            has = "i, j, k alone" if {"i", "j", "k"} <= set(part.coords) else f"{sorted(map(str, part.coords))}"
            raise DataError(
                f"subject {name} has {has} and no vertex and hemi: its voxels cannot be matched with those of others. "
                "Next step: bring its responses to fsaverage before the run (neuroenc.data.nsd_to_surface, or "
                "the surface outputs of fMRIPrep)."
            )
        check_hemi(part["hemi"].values.astype(str))
    spaces = {name: str(part.attrs.get("space", "unknown")) for name, part in parts.items()}
    limit, named = _common_space(spaces, space)
    codes, kept = {}, {}
    for name, part in parts.items():
        vertex = part["vertex"].values.astype(np.int64)
        at = np.flatnonzero(vertex < limit)
        code = vertex[at] + np.where(part["hemi"].values[at].astype(str) == "R", 2**40, 0)
        if twice := int(at.size - np.unique(code).size):
            raise DataError(f"{twice} vertices of subject {name} stand twice. Next step: one subject and score each.")
        codes[name], kept[name] = code, part.isel(voxel=at)
    every = np.unique(np.concatenate(list(codes.values())))
    numeric = [{str(k) for k, v in p.items() if v.dims == ("voxel",) and v.dtype.kind in "fiub"} for p in kept.values()]
    common = [name for name in next(iter(parts.values())) if name in set.intersection(*numeric)]
    if not common:
        raise DataError(f"{len(parts)} subjects share no numeric map; the first has {sorted(numeric[0])}.")
    values = {str(name): np.full((len(parts), every.size), np.nan) for name in common}
    regions = np.full((len(parts), every.size), "", dtype=object)
    for row, (name, part) in enumerate(kept.items()):
        where = np.searchsorted(every, codes[name])
        for variable, out in values.items():
            out[row, where] = part[variable].values
        if "roi" in part.coords:
            regions[row, where] = part["roi"].values.astype(str)
    coords: dict[str, Any] = {
        "subject": list(parts),
        "voxel": np.arange(every.size),
        "vertex": ("voxel", every % 2**40),
    }
    coords["hemi"] = ("voxel", np.where(every >= 2**40, "R", "L"))
    if (regions != "").any():
        coords["own_roi"] = (("subject", "voxel"), regions.astype(str))
        coords["roi"] = ("voxel", np.array([_most_named(column, len(parts)) for column in regions.T.tolist()]))
    about = {"space": named} | ({"n_vertices": limit} if named in _DENSITIES else {})
    return xr.Dataset({k: (("subject", "voxel"), v) for k, v in values.items()}, coords=coords, attrs=about)


def _common_space(spaces: Mapping[str, str], wanted: str) -> tuple[int, str]:
    """Vertices of a hemisphere that are kept, and the space's name."""
    if len(set(spaces.values())) == 1 and not set(spaces.values()) <= set(_DENSITIES):
        return 2**40, next(iter(spaces.values()))
    for name, space in spaces.items():
        if space not in _DENSITIES:
            others = sorted(set(spaces.values()) - {space})
            raise DataError(
                f"subject {name} is in the space {space!r}, others in {', '.join(others)}: vertices of different "
                "meshes are different places. Next step: bring all to one of them."
            )
    coarsest = min(spaces.values(), key=lambda s: _DENSITIES[s])
    legal = [s for s, n in _DENSITIES.items() if n <= _DENSITIES[coarsest]]
    if wanted not in _DENSITIES:
        raise DataError(unknown_name("space", wanted, legal))
    chosen = wanted if wanted in legal else coarsest
    return _DENSITIES[chosen], chosen


def _most_named(entries: list[str], n_subjects: int) -> str:
    """Regions of a vertex that at least half of the subjects name."""
    counts = Counter(name for entry in entries for name in entry.split(";") if name)
    return ";".join(sorted(name for name, count in counts.items() if 2 * count >= n_subjects))
