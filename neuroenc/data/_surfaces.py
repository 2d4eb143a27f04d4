"""Surface maps: read from GIFTI and FreeSurfer's .mgz, .mgh, .annot and .label, written as GIFTI."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from nibabel.freesurfer.io import read_annot, read_label
from nibabel.gifti.gifti import GiftiDataArray, GiftiImage, GiftiMetaData

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc.data._build import check_hemi
from neuroenc.data._images import image_values, open_image

_STRUCTURE = {"L": "CortexLeft", "R": "CortexRight"}
#: Vertices of a hemisphere of fsaverage, whose vertices are the first ones of every denser mesh, and of fsLR.
FSAVERAGE = {"fsaverage3": 642, "fsaverage4": 2562, "fsaverage5": 10242, "fsaverage6": 40962, "fsaverage": 163842}
FSLR = {"fsLR-32k": 32492, "fsLR-59k": 59292, "fsLR-164k": 163842}
_ENDINGS = (".gii", ".mgz", ".mgh", ".annot", ".label")
_HEMI = {"lh": "L", "rh": "R", "l": "L", "r": "R", "left": "L", "right": "R"}


def read_surface(files: Any) -> xr.DataArray:
    """Values of surface vertices, with hemisphere and vertex number.

    Parameters
    ----------
    files : path, or sequence of one path per hemisphere, or mapping {"L": path, "R": path}
        ``.gii`` (several data arrays become maps), ``.mgz`` or ``.mgh`` (frames become maps), ``.annot`` (numbers of
        the table, names in the coordinate ``roi``), ``.label`` (listed vertices only, with their values). Without a
        mapping the hemisphere is read from the name (``lh.``, ``hemi-L``, ``.L.``) or from the GIFTI itself.

    Returns
    -------
    DataArray (voxel,) or (map, voxel)
        Coordinates ``vertex``, ``hemi`` (and ``roi``; ``map`` names where the file has them); left before right.

    Raises
    ------
    DataError
        A file is absent or damaged, its hemisphere unknown, or hemispheres differ in their maps.

    Examples
    --------
    >>> import tempfile
    >>> left = to_gifti([1.0, 2.0], [3, 0], ["L", "L"], n_vertices=4, fill=0)["L"]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     left.to_filename(folder + "/r.func.gii")
    ...     read_surface(folder + "/r.func.gii").values.tolist()
    [2.0, 0.0, 0.0, 1.0]
    """
    if isinstance(files, (str, os.PathLike)):
        files = [files]
    items = files if isinstance(files, Mapping) else {_hemisphere(Path(f)): f for f in files}
    if not items or (not isinstance(files, Mapping) and len(items) != len(files)):
        raise DataError(f"{len(files)} files of hemispheres {sorted(items)}: give one file for each hemisphere.")
    parts = []
    for hemi in sorted(items):
        one_of("hemisphere", hemi, _STRUCTURE)
        values, vertex, names, roi = _read(Path(items[hemi]))
        coords: dict[str, Any] = {"vertex": ("voxel", vertex), "hemi": ("voxel", np.full(len(vertex), hemi))}
        if roi is not None:
            coords["roi"] = ("voxel", roi)
        if values.ndim == 2 and names:
            coords["map"] = names
        parts.append(xr.DataArray(values, dims=("voxel",) if values.ndim == 1 else ("map", "voxel"), coords=coords))
    if len({p.shape[:-1] for p in parts}) > 1:
        raise DataError(f"hemispheres hold {[p.shape[:-1] for p in parts]} maps; both need the same.")
    joined = xr.concat(parts, dim="voxel") if len(parts) > 1 else parts[0]
    # Numbers as in the flat order of both hemispheres, where the left one is whole.
    return joined.assign_coords(voxel=np.arange(joined.sizes["voxel"])).rename("surface")


def _hemisphere(path: Path) -> str:
    match = re.match(r"(lh|rh)\.", path.name)
    match = match or re.search(r"hemi-(L|R)(?=[_.])|[._](L|R|left|right|lh|rh)[._]", path.name)
    if match:
        return _HEMI[next(g for g in match.groups() if g).lower()]
    if path.suffix == ".gii" and path.is_file():
        meta = open_image(path, "surface", surface=True).meta.get("AnatomicalStructurePrimary", "")
        for hemi, name in _STRUCTURE.items():
            if meta == name:
                return hemi
    raise DataError(f"{path.name} does not tell its hemisphere. Next step: read_surface({{'L': path}}).")


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray | None]:
    """Values, vertices, names of maps, region names."""
    if path.suffix in (".annot", ".label") and not path.is_file():
        raise DataError(f"{path} does not exist.")
    if path.suffix == ".annot":
        labels, _, names = _told(path, lambda: read_annot(path))
        text = [n.decode() for n in names]
        roi = np.array([text[k] if k >= 0 and text[k].lower() != "unknown" else "" for k in labels.tolist()])
        return labels.astype(np.int64), np.arange(len(labels)), [], roi
    if path.suffix == ".label":
        vertex, values = _told(path, lambda: read_label(path, read_scalars=True))
        return values.astype(np.float64), vertex.astype(np.int64), [], None
    one_of("ending of a surface file:", path.suffix, _ENDINGS)
    image = open_image(path, "surface", surface=True)
    if path.suffix == ".gii":
        arrays = [d for d in image.darrays if d.data.ndim == 1]
        if not arrays:
            raise DataError(f"{path} holds a mesh and no values.")
        names = [d.meta.get("Name", "") for d in arrays]
        stacked = np.stack([np.asarray(d.data) for d in arrays])
        regions: np.ndarray | None = None
        table = {x.key: x.label for x in image.labeltable.labels}
        if table and len(arrays) == 1:
            regions = np.array([table.get(int(k), "") if k > 0 else "" for k in stacked[0]])
        values = stacked[0] if len(arrays) == 1 else stacked
        return values, np.arange(stacked.shape[1]), names if len(set(names)) == len(names) else [], regions
    data = np.asarray(image_values(image, "surface"))
    # Vertices lie along any one of the three axes of the volume that the format is made for.
    along = int(np.prod(data.shape[:3])) if sum(n > 1 for n in data.shape[:3]) <= 1 else len(data)
    frames = data.reshape(along, -1).T
    return (frames[0] if len(frames) == 1 else frames), np.arange(along), [], None


def _told(path: Path, read: Any) -> Any:
    try:
        return read()
    except (OSError, ValueError, IndexError, EOFError) as error:
        raise DataError(f"{path} ({path.stat().st_size:,} bytes) cannot be read: {error}.") from error


def mesh_size(values: Any, given: int | None, default: int) -> int:
    """Vertices of a hemisphere: those given, those of the mesh that values say they lie on, or a default.

    >>> mesh_size(xr.DataArray([0.0], dims="voxel", attrs={"space": "fsaverage6"}), None, 10242)
    40962
    """
    space = str(values.attrs.get("space", "")) if isinstance(values, xr.DataArray) else ""
    return given if given is not None else (FSAVERAGE | FSLR).get(space, default)


def space_of(counts: Iterable[int], meshes: Mapping[str, int]) -> str:
    """Name of the mesh whose hemispheres have so many vertices, the first of several; else "unknown".

    >>> space_of([32492, 32492], FSAVERAGE | FSLR), space_of([32492, 642], FSLR)
    ('fsLR-32k', 'unknown')
    """
    found = set(counts)
    return next((name for name, n in meshes.items() if {n} == found), "unknown")


def vertices_of(values: Any, vertex: Any, hemi: Any, call: str) -> tuple[np.ndarray, np.ndarray]:
    """Vertex number and hemisphere of each value: those given, or its coordinates."""
    if isinstance(values, xr.DataArray):
        vertex = values["vertex"].values if vertex is None and "vertex" in values.coords else vertex
        hemi = values["hemi"].values if hemi is None and "hemi" in values.coords else hemi
    if vertex is None or hemi is None:
        raise DataError(
            f"values carry no vertex and hemi. Next step: {call}(values, vertex, hemi), or unmask for voxels of "
            "a volume."
        )
    vertices, sides = np.asarray(vertex), np.asarray(hemi).astype(str)
    if vertices.dtype.kind not in "iu" or vertices.shape != sides.shape or vertices.ndim != 1:
        raise DataError(f"vertex {vertices.shape} ({vertices.dtype}) and hemi {sides.shape} must be integers and text.")
    check_hemi(sides)
    return vertices, sides


def to_gifti(
    values: Any,
    vertex: Any = None,
    hemi: Any = None,
    n_vertices: int | None = None,
    *,
    fill: float = np.nan,
    name: str = "",
) -> dict[str, GiftiImage]:
    """Put values back onto their surface: ``map_h[vertex_v] = values[v]`` for each hemisphere ``h``.

    Parameters
    ----------
    values : DataArray (voxel,) with coordinates vertex and hemi, or array (voxel,)
    vertex : int array (voxel,), optional
        Vertex within the hemisphere; by default the coordinate.
    hemi : sequence of {"L", "R"} (voxel,), optional
    n_vertices : int, optional
        Vertices of one hemisphere; by default those of the values' attribute ``space``, or 10242 (fsaverage5).
    fill : float
        Value of the other vertices.
    name : str
        By default the DataArray's.

    Returns
    -------
    dict "L", "R" -> GiftiImage
        The hemispheres that occur; float32, with ``AnatomicalStructurePrimary`` set. Save as ``.func.gii``.

    Raises
    ------
    DataError
        No vertex or hemi, a vertex beyond the surface, or two values on one vertex.

    Examples
    --------
    >>> maps = to_gifti([0.5, 0.7], vertex=[3, 0], hemi=["L", "R"], n_vertices=4, name="r", fill=0)
    >>> maps["L"].darrays[0].data.tolist(), maps["R"].meta["AnatomicalStructurePrimary"]
    ([0.0, 0.0, 0.0, 0.5], 'CortexRight')
    """
    vertices, hemis = vertices_of(values, vertex, hemi, "to_gifti")
    data = np.asarray(values)
    if data.shape != vertices.shape:
        raise DataError(f"values have shape {data.shape} (expected {vertices.shape}, one a vertex).")
    n_vertices = mesh_size(values, n_vertices, 10242)
    if vertices.size and (vertices.min() < 0 or vertices.max() >= n_vertices):
        fits = [f"{n} ({s})" for s, n in FSAVERAGE.items() if vertices.max() < n]
        raise DataError(
            f"vertices range {vertices.min()}..{vertices.max()}, but a hemisphere has n_vertices={n_vertices}. "
            f"Next step: n_vertices={' or '.join(fits[:2]) or 'that of the surface'}; vertices count from 0 in "
            "each hemisphere."
        )
    about = GiftiMetaData({"Name": name or str(getattr(values, "name", None) or "values")})
    kind: Any = {"intent": "NIFTI_INTENT_NONE", "datatype": "NIFTI_TYPE_FLOAT32"}
    images: dict[str, GiftiImage] = {}
    for side in (x for x in _STRUCTURE if (hemis == x).any()):
        here = hemis == side
        if shared := int(here.sum() - np.unique(vertices[here]).size):
            raise DataError(f"{shared} values share a vertex of hemisphere {side}.")
        surface = np.full(n_vertices, fill, dtype=np.float32)
        surface[vertices[here]] = data[here]
        meta = GiftiMetaData({"AnatomicalStructurePrimary": _STRUCTURE[side]})
        images[side] = GiftiImage(meta=meta, darrays=[GiftiDataArray(surface, meta=about, **kind)])
    return images
