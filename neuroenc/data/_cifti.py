"""CIFTI-2: dense scalars, series and labels of cortex or of volumes, read and written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import xarray as xr
from nibabel.cifti2.cifti2 import Cifti2Header, Cifti2Image
from nibabel.cifti2.cifti2_axes import BrainModelAxis, LabelAxis, ScalarAxis, SeriesAxis

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc.data._surfaces import FSAVERAGE, FSLR, mesh_size, space_of, vertices_of

_CORTEX = {"L": "CIFTI_STRUCTURE_CORTEX_LEFT", "R": "CIFTI_STRUCTURE_CORTEX_RIGHT"}


def read_cifti(path: str | os.PathLike[str], part: str = "cortex") -> xr.DataArray:
    """Values of a CIFTI-2 file, with vertex and hemisphere, or with place in the volume.

    Parameters
    ----------
    path : path
        ``.dscalar.nii``, ``.dtseries.nii`` or ``.dlabel.nii``.
    part : {"cortex", "volume"}
        Vertices of both hemispheres, or voxels of the structures below the cortex.

    Returns
    -------
    DataArray (voxel,), (map, voxel) or (time, voxel)
        One map has no dimension of its own. Coordinates ``vertex, hemi``, or ``i, j, k`` and ``structure``; ``map``
        holds the maps' names, ``time`` seconds; of labels ``roi`` holds their names ("" is 0). Attributes ``space``
        ("fsLR-32k" where hemispheres have 32,492 vertices), or ``affine`` and ``volume_shape``.

    Raises
    ------
    DataError
        The file is absent, damaged, of another kind (``.pscalar.nii``, ``.dconn.nii``), or has no such part.

    Examples
    --------
    >>> import tempfile
    >>> image = to_cifti([0.5, 0.7], vertex=[3, 0], hemi=["L", "R"], n_vertices=32492, name="r")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     image.to_filename(folder + "/r.dscalar.nii")
    ...     read = read_cifti(folder + "/r.dscalar.nii")
    >>> read.values.tolist(), read.vertex.values.tolist(), read.attrs["space"]
    ([0.5, 0.699...], [3, 0], 'fsLR-32k')
    """
    path = Path(path)
    one_of("part", part, ("cortex", "volume"))
    if not path.is_file():
        raise DataError(f"{path} does not exist.")
    try:
        image: Any = nib.load(path)
        axes = [image.header.get_axis(n) for n in range(2)] if isinstance(image, Cifti2Image) else []
        values = np.asanyarray(image.dataobj) if axes else np.zeros(0)
    except Exception as error:  # nibabel raises of many kinds on damaged files
        raise DataError(f"{path} ({path.stat().st_size:,} bytes) cannot be read: {error}.") from error
    if (
        not axes
        or not isinstance(axes[1], BrainModelAxis)
        or not isinstance(axes[0], (ScalarAxis, SeriesAxis, LabelAxis))
    ):
        found = " x ".join(type(a).__name__ for a in axes) or type(image).__name__
        raise DataError(f"{path} is {found}; legal are dense scalars, series and labels (.dscalar.nii, .dtseries.nii).")
    rows, places = axes
    surface = np.asarray(places.surface_mask)
    at = np.flatnonzero(np.isin(places.name, list(_CORTEX.values())) if part == "cortex" else ~surface)
    if not len(at):
        held = sorted({str(name).removeprefix("CIFTI_STRUCTURE_").lower() for name in places.name})
        raise DataError(f"{path} holds nothing of part={part!r}; it holds {', '.join(held[:6])}.")
    attrs: dict[str, Any]
    if part == "cortex":
        side = np.where(places.name[at] == _CORTEX["L"], "L", "R")
        coords: dict[str, Any] = {"vertex": ("voxel", places.vertex[at].astype(np.int64)), "hemi": ("voxel", side)}
        counts = {int(n) for name, n in places.nvertices.items() if name in _CORTEX.values()}
        attrs = {"space": space_of(counts, FSLR | FSAVERAGE)}
    else:
        ijk = places.voxel[at].astype(np.int64)
        coords = {axis: ("voxel", ijk[:, n]) for n, axis in enumerate("ijk")}
        names = [str(name).removeprefix("CIFTI_STRUCTURE_").lower() for name in places.name[at]]
        coords["structure"] = ("voxel", np.array(names))
        attrs = {"affine": np.asarray(places.affine), "volume_shape": tuple(int(n) for n in places.volume_shape)}
    values, dim = values[:, at], "map"
    if isinstance(rows, SeriesAxis):
        dim, coords["time"] = "time", rows.time
        if rows.unit != "SECOND":
            raise DataError(f"{path} is a series over {rows.unit.lower()}; legal is time in seconds.")
    elif len(set(rows.name.tolist())) == len(rows) > 1:
        coords["map"] = [str(name) for name in rows.name]
    if isinstance(rows, LabelAxis) and len(rows) == 1:
        table = {key: name if key else "" for key, (name, _) in rows.label[0].items()}
        coords["roi"] = ("voxel", np.array([table.get(int(key), "") for key in values[0]]))
    single = dim == "map" and len(rows) == 1
    array = xr.DataArray(values[0] if single else values, dims=("voxel",) if single else (dim, "voxel"), attrs=attrs)
    return (
        array.assign_coords(coords)
        .assign_coords(voxel=np.arange(len(at)))
        .rename(str(rows.name[0]) if single else "cifti")
    )


def to_cifti(
    values: Any, vertex: Any = None, hemi: Any = None, n_vertices: int | None = None, *, name: str = ""
) -> Cifti2Image:
    """Dense scalars of cortex (CIFTI-2) from values of vertices, one map or several.

    Parameters
    ----------
    values : DataArray (voxel,) or (map, voxel) with coordinates vertex and hemi, or array
    vertex, hemi : array (voxel,), optional
        By default the coordinates.
    n_vertices : int, optional
        Vertices of a hemisphere; by default those of the values' attribute ``space``, or 32492 (fsLR-32k).
    name : str
        Of a single map; by default the DataArray's.

    Returns
    -------
    nibabel.Cifti2Image
        float32, the given vertices only; save as ``.dscalar.nii``.

    Raises
    ------
    DataError
        No vertex or hemi, a vertex beyond the surface, or two values on one vertex.

    Examples
    --------
    >>> to_cifti([[0.5, 0.7], [1.0, 2.0]], vertex=[3, 0], hemi=["L", "R"]).shape
    (2, 2)
    """
    vertices, sides = vertices_of(values, vertex, hemi, "to_cifti")
    data = np.asarray(values, dtype=np.float32)
    if data.ndim not in (1, 2) or data.shape[-1] != len(vertices):
        raise DataError(f"values have shape {data.shape}; legal is (voxel,) or (map, voxel) of {len(vertices)} voxels.")
    n_vertices = mesh_size(values, n_vertices, 32492)
    if len(vertices) and not 0 <= vertices.min() <= vertices.max() < n_vertices:
        raise DataError(f"vertices range {vertices.min()}..{vertices.max()}, a hemisphere has n_vertices={n_vertices}.")
    order = np.lexsort((vertices, sides))
    models = None
    for side, structure in _CORTEX.items():
        own = np.sort(vertices[sides == side])
        if not len(own):
            continue
        if (np.diff(own) == 0).any():
            raise DataError(f"{int((np.diff(own) == 0).sum())} values share a vertex of hemisphere {side}.")
        part = BrainModelAxis.from_surface(own, n_vertices, structure)
        models = part if models is None else models + part
    if models is None:
        raise DataError("there are no values to write.")
    if data.ndim == 1:
        names = [name or str(getattr(values, "name", None) or "values")]
    else:
        labelled = isinstance(values, xr.DataArray) and "map" in values.coords
        names = [str(x) for x in values["map"].values] if labelled else [str(n) for n in range(len(data))]
    header = Cifti2Header.from_axes((ScalarAxis(names), models))
    image = Cifti2Image(np.atleast_2d(data)[:, order], header)
    image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_SCALARS")
    return image
