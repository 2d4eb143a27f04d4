"""From a subject's voxels to surfaces, by the tables that the data set gives."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc.data._images import check_affine
from neuroenc.data._volumes import unmask
from neuroenc.data.datasets._nsd._layout import HEMIS, Layout, surface_values

_LAYERS = ("layerB1", "layerB2", "layerB3")
_METHODS = ("linear", "nearest")
_SPACES = {"func1pt8mm": "func1pt8", "func1mm": "func1pt0"}
#: Coordinate that marks vertices without data.
_NOWHERE = 9999


def nsd_to_surface(
    values: xr.DataArray,
    root: str | os.PathLike[str],
    subject: int | str,
    *,
    to: str = "fsaverage",
    interpolation: str = "linear",
    like: xr.DataArray | None = None,
) -> xr.DataArray:
    r"""Voxel values on the subject's own surface or on fsaverage, through the data set's coordinate tables.

    The volume is sampled at each vertex of three cortical depths and averaged over them,
    :math:`v_h = \frac13 \sum_b V(x_{hb})`; on fsaverage every vertex takes the value of the nearest vertex of the
    subject. Voxels that were not given take no part: weights of linear interpolation are renormalised over given
    voxels, and a vertex with less than half of its weight on them is NaN.

    Parameters
    ----------
    values : DataArray (voxel,) or (map, voxel)
        With ``i, j, k``, affine and volume_shape, in func1pt8mm or func1mm (attribute ``space``).
    root, subject
        As for `nsd`.
    to : {"fsaverage", "nativesurface"}
    interpolation : {"linear", "nearest"}
        "nearest" for labels; it takes the middle depth alone.
    like : DataArray, optional
        Where the places come from when ``values`` (scores) do not carry them.

    Returns
    -------
    DataArray (voxel,) or (map, voxel)
        One value per vertex, left hemisphere first, with ``vertex`` and ``hemi``.

    Raises
    ------
    DataError
        Tables are absent, or the values are those of another volume.

    References
    ----------
    Allen et al. (2022), Nature Neuroscience 25:116.

    Examples
    --------
    >>> import tempfile
    >>> from neuroenc.data import nsd
    >>> from neuroenc.data.simulate import nsd_tree
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = nsd_tree(folder, n_subjects=1)
    ...     r = nsd(folder, 1, cache=False, progress=False).responses
    ...     surface = nsd_to_surface(r.ncsnr.rename("ncsnr"), folder, 1, like=r)
    >>> surface.dims, sorted(set(surface.hemi.values.tolist()))
    (('voxel',), ['L', 'R'])
    """
    from scipy.ndimage import map_coordinates

    one_of("surface", to, ("fsaverage", "nativesurface"))
    one_of("interpolation", interpolation, _METHODS)
    space = str((values if "space" in values.attrs else values if like is None else like).attrs.get("space", ""))
    if space not in _SPACES:
        raise DataError(f"values are in space {space!r}; the tables start from {', '.join(_SPACES)}.")
    layout = Layout.open(root, subject, space)
    image = unmask(values, like=like, dtype=np.float64 if values.dtype == np.float64 else np.float32)
    if tuple(image.shape[:3]) != layout.shape:
        raise DataError(f"values lie in a volume of {image.shape[:3]}, {layout.name} has {layout.shape}.")
    check_affine(image, layout.affine, names=("the values", f"{layout.name} in {space}"))
    maps = np.asarray(image.dataobj).reshape((*layout.shape, -1))
    order = 0 if interpolation == "nearest" else 1
    parts: list[np.ndarray] = []
    for hemi in HEMIS:
        layers = ("layerB2",) if order == 0 else _LAYERS
        points = [_table(layout, f"{hemi}.{_SPACES[space]}-to-{layer}").reshape(-1, 3) for layer in layers]
        sampled = []
        for n in range(maps.shape[-1]):
            volume = maps[..., n]
            given = np.isfinite(volume).astype(np.float64)
            filled = np.where(given > 0, volume, 0.0)
            total, weight = np.zeros(len(points[0])), np.zeros(len(points[0]))
            for point in points:
                at = np.where(point >= _NOWHERE, -10.0, point - 1.0).T
                total += map_coordinates(filled, at, order=order, mode="constant", cval=0.0, output=np.float64)
                weight += map_coordinates(given, at, order=order, mode="constant", cval=0.0)
            with np.errstate(invalid="ignore", divide="ignore"):
                sampled.append(np.where(weight >= len(points) / 2, total / weight, np.nan))
        vertex_values = np.stack(sampled)
        if to == "fsaverage":
            nearest = _table(layout, f"{hemi}.white-to-fsaverage").reshape(-1).astype(np.int64) - 1
            vertex_values = vertex_values[:, nearest]
        parts.append(vertex_values)
    joined, sizes = np.concatenate(parts, axis=1), [part.shape[1] for part in parts]
    labels: dict[str, Any] = {"vertex": ("voxel", np.concatenate([np.arange(n) for n in sizes]))}
    labels |= {"hemi": ("voxel", np.repeat(list(HEMIS.values()), sizes)), "voxel": np.arange(joined.shape[1])}
    attrs = {"space": to, "from": space, "subject": layout.name, "interpolation": interpolation}
    if values.ndim == 1:
        return xr.DataArray(joined[0], dims="voxel", coords=labels, attrs=attrs, name=values.name)
    first = values.dims[0]
    if first in values.coords:
        labels[str(first)] = values[first].values
    return xr.DataArray(joined, dims=(first, "voxel"), coords=labels, attrs=attrs, name=values.name)


def _table(layout: Layout, stem: str) -> np.ndarray:
    path = layout.ppdata / "transforms" / f"{stem}.mgz"
    if not path.is_file():
        raise DataError(f"{path} does not exist. Next step: download nsddata/ppdata/{layout.name}/transforms.")
    return surface_values(path, stem)
