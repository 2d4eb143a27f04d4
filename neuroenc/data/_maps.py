"""Maps out: volumes with the right affine, and surfaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from nibabel.gifti.gifti import GiftiDataArray, GiftiImage, GiftiMetaData
from nibabel.nifti1 import Nifti1Image

from neuroenc._core.errors import DataError
from neuroenc.data._images import check_affine, open_image
from neuroenc.data._masked import Masked

__all__ = ["to_gifti", "unmask"]

_STRUCTURE = {"L": "CortexLeft", "R": "CortexRight"}
_FSAVERAGE = {
    642: "fsaverage3",
    2562: "fsaverage4",
    10242: "fsaverage5",
    40962: "fsaverage6",
    163842: "fsaverage",
}


def _where(values: Any, like: Any, ijk: Any, affine: Any, shape: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Indices, affine and volume shape, from the values themselves, then ``like``, then the arguments."""
    given = affine
    for source in (values, like):
        if isinstance(source, Masked):
            source = source.responses(np.zeros((1, len(source.ijk))), stimulus=["-"])
        if isinstance(source, (xr.DataArray, xr.Dataset)):
            if source is like and isinstance(values, xr.DataArray) and {"voxel"} <= {*values.coords} & {*source.coords}:
                here, there = values["voxel"].values, source["voxel"].values
                if not np.array_equal(here, there):
                    raise DataError(
                        f"values have {here.size} voxels and 'like' has {there.size}, with other ids."
                        " Next step: like.sel(voxel=values.voxel)."
                    )
            own_affine, own_shape = source.attrs.get("affine"), source.attrs.get("volume_shape")
            if all(x in source.coords for x in "ijk"):
                own = np.stack([source[x].values for x in "ijk"], axis=1)
                if ijk is not None and not np.array_equal(own, np.asarray(ijk)):
                    raise DataError(
                        "values and 'like' have other i, j, k. Next step: leave like out, or drop i, j, k of the"
                        " values."
                    )
                ijk = own
        elif source is like and source is not None:
            image = open_image(source, "like")
            own_affine, own_shape = image.affine, image.shape[:3]
        else:
            continue
        if own_affine is not None and affine is not None:
            names = ("affine=" if given is not None else "the values", "'like'" if source is like else "the values")
            check_affine(affine, np.asarray(own_affine, dtype=float), names=names)
        if own_shape is not None and shape is not None and tuple(shape) != tuple(own_shape):
            raise DataError(f"values lie in a volume of {tuple(shape)}, 'like' in one of {tuple(own_shape)}.")
        affine = own_affine if affine is None else affine
        shape = own_shape if shape is None else shape
    missing = [n for n, x in (("i, j, k", ijk), ("affine", affine), ("volume_shape", shape)) if x is None]
    if missing:
        raise DataError(
            f"cannot place the voxels: no {' and no '.join(missing)}. Next step: unmask(values,"
            " like=responses), where responses carry i, j, k, attrs['affine'] and attrs['volume_shape']."
        )
    return np.asarray(ijk), *check_place(affine, shape)


def check_place(affine: Any, shape: Any) -> tuple[np.ndarray, tuple[int, ...]]:
    """Affine (4, 4) and shape of a volume, from attributes that may come from any file.

    Raises
    ------
    DataError
        The affine has no 16 finite numbers, a last row other than 0, 0, 0, 1 or no extent; or the shape is not three
        positive whole numbers.
    """
    try:
        matrix = np.asarray(affine, dtype=float).reshape(4, 4)
    except (TypeError, ValueError) as error:
        raise DataError(f"affine is {str(affine)[:60]!r}; expected 16 numbers, the rows of a 4 x 4 matrix.") from error
    flat = not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12
    if flat or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise DataError(
            f"affine {matrix.round(3).tolist()} places no volume: it needs finite numbers, axes that span a volume, "
            "and the last row 0, 0, 0, 1."
        )
    sizes = np.asarray(shape)
    if sizes.shape != (3,) or sizes.dtype.kind not in "iuf" or (sizes != np.round(sizes)).any() or (sizes < 1).any():
        raise DataError(f"volume_shape is {str(shape)[:60]!r}; expected three whole numbers of at least 1.")
    return matrix, (int(sizes[0]), int(sizes[1]), int(sizes[2]))


def unmask(
    values: Any,
    like: Any = None,
    *,
    ijk: Any = None,
    affine: Any = None,
    volume_shape: Sequence[int] | None = None,
    fill: float = np.nan,
    dtype: Any = np.float32,
) -> Nifti1Image:
    """Put values back into their volume: ``image[i_v, j_v, k_v] = values[v]``.

    Parameters
    ----------
    values : DataArray with dimension voxel, or array (voxel,) or (n, voxel)
        A second dimension becomes the image's fourth.
    like : DataArray, Dataset, Masked, or nibabel image or path, optional
        Where i, j, k, affine and shape come from when ``values`` do not carry them (scores, after
        arithmetic); voxel ids must agree.
    ijk : int array (voxel, 3), optional
    affine : array (4, 4), optional
    volume_shape : three ints, optional
    fill : float
        Value outside (0 where ``dtype`` is an integer type and ``fill`` is NaN).
    dtype : numpy dtype
        float32, or an integer type for label maps.

    Returns
    -------
    nibabel.Nifti1Image

    Raises
    ------
    DataError
        The voxels cannot be placed, two share one place, or values do not fit the integer type.

    Examples
    --------
    >>> from neuroenc.data import make_responses
    >>> import numpy as np
    >>> r = make_responses([[7.0]], stimulus=["a"], ijk=[[0, 1, 0]], affine=np.eye(4), volume_shape=(1, 2, 1))
    >>> unmask(r[0], fill=0).get_fdata().ravel().tolist()
    [0.0, 7.0]
    """
    if isinstance(values, xr.DataArray):
        if "voxel" not in values.dims or values.ndim > 2:
            raise DataError(f"values have dims {values.dims} (expected ('voxel',) or one more dimension).")
        data = np.asarray(values.transpose(..., "voxel").values)
    else:
        data = np.asarray(values)
    if data.dtype.kind not in "fiub":
        raise DataError(f"values have dtype {data.dtype}; legal are real numbers.")
    index, matrix, shape = _where(values, like, ijk, affine, volume_shape)
    if data.ndim not in (1, 2) or data.shape[-1:] != (len(index),) or index.shape != (len(index), 3):
        raise DataError(f"values have shape {data.shape} but there are {len(index)} voxel places.")
    if index.dtype.kind not in "iu":
        if index.dtype.kind != "f" or not np.array_equal(index, np.round(index)):
            raise DataError(f"i, j, k have dtype {index.dtype}, first {index[:1].tolist()}; expected whole numbers.")
        index = index.astype(np.int64)
    if len(index) and ((index < 0) | (index >= np.array(shape))).any():
        raise DataError(f"i, j, k reach {index.max(0).tolist()}, outside a volume of {shape}.")
    flat = np.ravel_multi_index(tuple(index.T), shape)
    if np.unique(flat).size < flat.size:
        raise DataError(
            f"{flat.size - np.unique(flat).size} voxels share a place with another (several subjects in one"
            " array?). Next step: unmask one subject at a time."
        )
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        fill = 0 if np.isnan(fill) else fill
        limits = np.iinfo(kind)
        if not np.isfinite(data).all() or (data != np.round(data)).any():
            raise DataError(f"values are not whole numbers, so {kind} cannot hold them. Next step: dtype='float32'.")
        # As Python integers: a float32 limit would round up and let 2**31 into int32.
        if data.size and (int(data.min()) < limits.min or int(data.max()) > limits.max):
            raise DataError(f"values {data.min()}..{data.max()} do not fit {kind} ({limits.min}..{limits.max}).")
    volume = np.full((*shape, *data.shape[:-1]), fill, dtype=kind)
    volume[tuple(index.T)] = data.T
    image = Nifti1Image(volume, matrix, dtype=kind)
    image.header.set_xyzt_units("mm")
    return image


def to_gifti(
    values: Any,
    vertex: Any = None,
    hemi: Any = None,
    n_vertices: int = 10242,
    *,
    fill: float = np.nan,
    name: str = "",
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
    maps = dict(values) if isinstance(values, Mapping) and not isinstance(values, xr.Dataset) else None
    if maps is None and isinstance(values, xr.Dataset):
        maps = {str(k): v for k, v in values.data_vars.items()}
    if maps is None:
        maps = {name or str(getattr(values, "name", None) or "values"): values}
    for title, array in maps.items():
        if isinstance(array, xr.DataArray):
            for label, given in (("vertex", vertex), ("hemi", hemi)):
                own = array[label].values if label in array.coords else None
                if own is not None and given is not None and not np.array_equal(own, np.asarray(given)):
                    raise DataError(
                        f"map {title!r} has another {label} than the maps before it: vertices are told by their number"
                        " and hemisphere, not by their order. Next step: maps of the same vertices, in one order."
                    )
            vertex = array["vertex"].values if vertex is None and "vertex" in array.coords else vertex
            hemi = array["hemi"].values if hemi is None and "hemi" in array.coords else hemi
    if vertex is None or hemi is None:
        raise DataError(
            "values carry no vertex and hemi. Next step: to_gifti(values, vertex, hemi), or unmask for voxels"
            " of a volume."
        )
    vertices, hemis = np.asarray(vertex), np.asarray(hemi).astype(str)
    if vertices.dtype.kind not in "iu" or vertices.shape != hemis.shape or vertices.ndim != 1:
        raise DataError(
            f"vertex {vertices.shape} ({vertices.dtype}) and hemi {hemis.shape} must be integers and text alike."
        )
    if not np.isin(hemis, list(_STRUCTURE)).all():
        raise DataError(f"hemi holds {np.unique(hemis)[:4].tolist()} (legal: 'L', 'R').")
    if vertices.size and (vertices.min() < 0 or vertices.max() >= n_vertices):
        fits = [f"{n} ({s})" for n, s in _FSAVERAGE.items() if vertices.max() < n]
        raise DataError(
            f"vertices range {vertices.min()}..{vertices.max()}, but a hemisphere has"
            f" n_vertices={n_vertices}. Next step:"
            f" n_vertices={' or '.join(fits[:2]) or 'that of the surface'}; vertices count from 0 in each"
            " hemisphere."
        )
    images: dict[str, GiftiImage] = {}
    for side in (x for x in _STRUCTURE if (hemis == x).any()):
        here = hemis == side
        if np.unique(vertices[here]).size < here.sum():
            raise DataError(
                f"{int(here.sum() - np.unique(vertices[here]).size)} values share a vertex of hemisphere {side}."
            )
        image = GiftiImage(meta=GiftiMetaData({"AnatomicalStructurePrimary": _STRUCTURE[side]}))
        for title, array in maps.items():
            data = np.asarray(array)
            if data.shape != vertices.shape:
                raise DataError(
                    f"map {title!r} has shape {data.shape} (expected {vertices.shape}: one value per vertex)."
                )
            surface = np.full(n_vertices, fill, dtype=np.float32)
            surface[vertices[here]] = data[here]
            image.add_gifti_data_array(
                GiftiDataArray(
                    surface,
                    intent="NIFTI_INTENT_NONE",
                    datatype="NIFTI_TYPE_FLOAT32",
                    meta=GiftiMetaData({"Name": title}),
                )
            )
        images[side] = image
    return images
