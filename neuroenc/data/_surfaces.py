"""Surface maps in and out: GIFTI, and FreeSurfer's .mgz, .mgh, .annot and .label."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import xarray as xr
from nibabel.freesurfer.io import read_annot, read_label, write_annot
from nibabel.freesurfer.mghformat import MGHImage
from nibabel.gifti.gifti import GiftiDataArray, GiftiImage, GiftiMetaData

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc._core.files import atomic_path
from neuroenc.data._build import check_hemi
from neuroenc.data._images import image_values, open_image

_STRUCTURE = {"L": "CortexLeft", "R": "CortexRight"}
_FSAVERAGE = {642: "fsaverage3", 2562: "fsaverage4", 10242: "fsaverage5", 40962: "fsaverage6", 163842: "fsaverage"}
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
    >>> from neuroenc.data import make_responses
    >>> r = make_responses([[1.0, 2.0]], stimulus=["a"], vertex=[3, 0], hemi=["L", "R"])[0]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = write_surface(r, folder + "/beta.mgz", n_vertices=4, fill=0)
    ...     read_surface(files).values.tolist()
    [0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0]
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
    frames = data.reshape(len(data), -1).T
    return (frames[0] if len(frames) == 1 else frames), np.arange(len(data)), [], None


def _told(path: Path, read: Any) -> Any:
    try:
        return read()
    except (OSError, ValueError, IndexError, EOFError) as error:
        raise DataError(f"{path} ({path.stat().st_size:,} bytes) cannot be read: {error}.") from error


def write_surface(
    values: xr.DataArray,
    path: str | os.PathLike[str],
    *,
    n_vertices: int | Sequence[int] = 163842,
    fill: float = np.nan,
) -> dict[str, Path]:
    """Write vertices' values, one file per hemisphere: ``folder/name.mgz`` gives ``lh.name.mgz`` and ``rh.name.mgz``.

    Parameters
    ----------
    values : DataArray (voxel,) or (map, voxel)
        With coordinates ``vertex`` and ``hemi``. For ``.annot`` the coordinate ``roi`` is written (one name per
        vertex); for ``.label`` the vertices whose value is not 0.
    path : path
        Its ending chooses the format: ``.func.gii`` or ``.gii`` (named ``name_hemi-L.func.gii``), ``.mgz``, ``.mgh``,
        ``.annot``, ``.label``.
    n_vertices : int or (left, right)
        Vertices of a hemisphere; 163842 is fsaverage.
    fill : float
        Value of vertices that are not given.

    Returns
    -------
    dict "L", "R" -> Path
        Of the hemispheres that occur.

    Raises
    ------
    DataError
        Coordinates are absent, a vertex lies beyond the surface, or two values share one.

    Examples
    --------
    >>> import tempfile
    >>> from neuroenc.data import make_responses
    >>> r = make_responses([[1.0, 1.0]], stimulus=["a"], vertex=[3, 0], hemi="L", roi=["V1", "FFA"])[0]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = write_surface(r, folder + "/areas.annot", n_vertices=4)
    ...     files["L"].name, read_surface(files).roi.values.tolist()
    ('lh.areas.annot', ['FFA', '', '', 'V1'])
    """
    path = Path(path)
    kind = one_of("ending of a surface file:", path.suffix, _ENDINGS)
    lost = [c for c in ("vertex", "hemi") if c not in values.coords]
    if lost or values.dims[-1] != "voxel" or values.ndim > 2:
        raise DataError(f"values have dims {values.dims} and lack {lost} (expected (voxel,) with vertex and hemi).")
    sizes = dict(zip("LR", [n_vertices] * 2 if isinstance(n_vertices, int) else n_vertices, strict=True))
    written: dict[str, Path] = {}
    for hemi in (h for h in _STRUCTURE if (values["hemi"].values == h).any()):
        own = values.isel(voxel=np.flatnonzero(values["hemi"].values == hemi))
        vertex = own["vertex"].values
        if vertex.min() < 0 or vertex.max() >= sizes[hemi] or np.unique(vertex).size < vertex.size:
            raise DataError(
                f"vertices of {hemi} range {vertex.min()}..{vertex.max()} ({np.unique(vertex).size} different of"
                f" {vertex.size}) on a surface of {sizes[hemi]}. Next step: n_vertices as the surface has them."
            )
        if kind == ".gii":
            stem, _, rest = path.name.partition(".")
            target = path.with_name(f"{stem}_hemi-{hemi}.{rest}")
        else:
            target = path.with_name(f"{'lh' if hemi == 'L' else 'rh'}.{path.name}")
        with atomic_path(target) as temporary:
            _write(own, vertex, sizes[hemi], fill, kind, hemi, temporary)
        written[hemi] = target
    return written


def _write(own: xr.DataArray, vertex: np.ndarray, n: int, fill: float, kind: str, hemi: str, target: Path) -> None:
    data = np.asarray(own.values)
    if kind == ".gii":
        maps: Any = own if own.ndim == 1 else {str(k): own[i] for i, k in enumerate(own[own.dims[0]].values.tolist())}
        nib.save(to_gifti(maps, vertex, own["hemi"].values, n, fill=fill)[hemi], target)
    elif kind in (".mgz", ".mgh"):
        frames = np.full((n, 1, 1, *data.shape[:-1]), fill, dtype=np.float32)
        frames[vertex] = np.moveaxis(data, -1, 0)[:, None, None]
        nib.save(MGHImage(frames, np.eye(4)), target)
    elif kind == ".annot":
        if "roi" not in own.coords:
            raise DataError("an .annot file holds region names; values have no coordinate roi.")
        names = own["roi"].values
        several = [x for x in names.tolist() if ";" in x]
        if several:
            raise DataError(
                f"{len(several)} vertices lie in several regions, first {several[0]!r}; .annot holds one. "
                "Next step: keep one name each with assign_coords(roi=...)."
            )
        unique = ["unknown", *sorted(set(names.tolist()) - {""})]
        labels = np.zeros(n, dtype=np.int64)
        labels[vertex] = [unique.index(x) if x else 0 for x in names.tolist()]
        # Colours must differ, because the file names regions by them.
        colours = [[(37 * k) % 256, (101 * k) % 256, k % 256, 0] for k in range(1, len(unique))]
        table = np.array([[25, 5, 25, 0], *colours], dtype=np.int64)
        write_annot(target, labels, table, unique, fill_ctab=True)
    else:
        if data.ndim != 1:
            raise DataError(f"a .label file holds one map; values have shape {data.shape}.")
        keep = data != 0
        rows = [f"{v} 0.000 0.000 0.000 {float(x):.9g}" for v, x in zip(vertex[keep].tolist(), data[keep].tolist())]
        target.write_text("\n".join(["#!ascii label", str(len(rows)), *rows]) + "\n", encoding="utf-8")


def to_gifti(
    values: Any, vertex: Any = None, hemi: Any = None, n_vertices: int = 10242, *, fill: float = np.nan, name: str = ""
) -> dict[str, GiftiImage]:
    """Put values back onto their surface: ``map_h[vertex_v] = values[v]`` for each hemisphere ``h``.

    Parameters
    ----------
    values : DataArray (voxel,) with coordinates vertex and hemi, array (voxel,), or mapping name -> either
        Several named maps become several data arrays of one file.
    vertex : int array (voxel,), optional
        Vertex within the hemisphere; by default the coordinate.
    hemi : sequence of {"L", "R"} (voxel,), optional
    n_vertices : int
        Vertices of one hemisphere; 10242 is fsaverage5.
    fill : float
        Value of the other vertices.
    name : str
        Name of a single map; by default the DataArray's.

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
    if isinstance(values, Mapping):
        maps = {str(k): v for k, v in (values.data_vars if isinstance(values, xr.Dataset) else values).items()}
    else:
        maps = {name or str(getattr(values, "name", None) or "values"): values}
    for title, array in maps.items():
        if isinstance(array, xr.DataArray):
            for label, given in (("vertex", vertex), ("hemi", hemi)):
                own = array[label].values if label in array.coords else None
                if own is not None and given is not None and not np.array_equal(own, np.asarray(given)):
                    raise DataError(
                        f"map {title!r} has another {label} than the maps before it. "
                        "Next step: maps of the same vertices, in one order."
                    )
            vertex = array["vertex"].values if vertex is None and "vertex" in array.coords else vertex
            hemi = array["hemi"].values if hemi is None and "hemi" in array.coords else hemi
    if vertex is None or hemi is None:
        raise DataError(
            "values carry no vertex and hemi. Next step: to_gifti(values, vertex, hemi), or unmask for voxels of "
            "a volume."
        )
    vertices, hemis = np.asarray(vertex), np.asarray(hemi).astype(str)
    if vertices.dtype.kind not in "iu" or vertices.shape != hemis.shape or vertices.ndim != 1:
        raise DataError(f"vertex {vertices.shape} ({vertices.dtype}) and hemi {hemis.shape} must be integers and text.")
    check_hemi(hemis)
    if vertices.size and (vertices.min() < 0 or vertices.max() >= n_vertices):
        fits = [f"{n} ({s})" for n, s in _FSAVERAGE.items() if vertices.max() < n]
        raise DataError(
            f"vertices range {vertices.min()}..{vertices.max()}, but a hemisphere has n_vertices={n_vertices}. "
            f"Next step: n_vertices={' or '.join(fits[:2]) or 'that of the surface'}; vertices count from 0 in "
            "each hemisphere."
        )
    images: dict[str, GiftiImage] = {}
    for side in (x for x in _STRUCTURE if (hemis == x).any()):
        here = hemis == side
        if shared := int(here.sum() - np.unique(vertices[here]).size):
            raise DataError(f"{shared} values share a vertex of hemisphere {side}.")
        image = GiftiImage(meta=GiftiMetaData({"AnatomicalStructurePrimary": _STRUCTURE[side]}))
        for title, array in maps.items():
            data = np.asarray(array)
            if data.shape != vertices.shape:
                raise DataError(f"map {title!r} has shape {data.shape} (expected {vertices.shape}, one a vertex).")
            surface = np.full(n_vertices, fill, dtype=np.float32)
            surface[vertices[here]] = data[here]
            kind: Any = {"intent": "NIFTI_INTENT_NONE", "datatype": "NIFTI_TYPE_FLOAT32"}
            image.add_gifti_data_array(GiftiDataArray(surface, meta=GiftiMetaData({"Name": title}), **kind))
        images[side] = image
    return images
