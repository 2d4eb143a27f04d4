"""nilearn's surface images and maskers, in and out."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc._core.optional import require
from neuroenc.data._build import make_responses
from neuroenc.data._surfaces import FSAVERAGE, FSLR, space_of, to_gifti

_PARTS = {"L": "left", "R": "right"}


def from_surface_image(image: Any) -> xr.DataArray:
    """Values of a nilearn ``SurfaceImage``, with vertex and hemisphere.

    Parameters
    ----------
    image : nilearn.surface.SurfaceImage

    Returns
    -------
    DataArray (voxel,) or (map, voxel)
        Coordinates ``vertex, hemi``; attribute ``space`` by the number of vertices, "unknown" where none is known.

    Examples
    --------
    >>> import xarray as xr
    >>> r = xr.DataArray([0.5, 0.7], dims="voxel", coords={"vertex": ("voxel", [3, 0]), "hemi": ("voxel", ["L", "R"])})
    >>> back = from_surface_image(to_surface_image(r))
    >>> back.attrs["space"], back.sizes["voxel"], float(back[3])
    ('fsaverage5', 20484, 0.5)
    """
    parts = getattr(getattr(image, "data", None), "parts", None)
    if not parts:
        raise DataError(f"found a {type(image).__name__}; expected a nilearn.surface.SurfaceImage.")
    held = {h: np.asarray(parts[part]) for h, part in _PARTS.items() if part in parts}
    values = np.concatenate(list(held.values()), axis=0)
    space = space_of(map(len, held.values()), FSAVERAGE | FSLR)
    coords = {
        "voxel": np.arange(len(values)),
        "vertex": ("voxel", np.concatenate([np.arange(len(x)) for x in held.values()])),
        "hemi": ("voxel", np.concatenate([np.full(len(x), h) for h, x in held.items()])),
    }
    dims = ("voxel",) if values.ndim == 1 or values.shape[1] == 1 else ("map", "voxel")
    return xr.DataArray(values.reshape(len(values), -1).T.squeeze() if len(dims) == 1 else values.T, dims=dims,
                        coords=coords, attrs={"space": space}, name="surface")  # fmt: skip


def to_surface_image(values: xr.DataArray, mesh: Any = "fsaverage5", *, fill: float = np.nan) -> Any:
    """Values of vertices as a nilearn ``SurfaceImage``, for its plots and statistics.

    Parameters
    ----------
    values : DataArray (voxel,) with coordinates vertex and hemi
    mesh : str or nilearn.surface.PolyMesh
        A mesh of nilearn ("fsaverage5" needs no download), or one of your own with parts "left" and "right".
    fill : float
        Value of the other vertices.

    Returns
    -------
    nilearn.surface.SurfaceImage

    Raises
    ------
    DataError
        Values have no vertices, or vertices that the mesh does not have.

    Examples
    --------
    >>> import xarray as xr
    >>> r = xr.DataArray([0.5], dims="voxel", coords={"vertex": ("voxel", [3]), "hemi": ("voxel", ["L"])}, name="r")
    >>> to_surface_image(r).data.parts["left"].shape
    (10242,)
    """
    require("nilearn", "brain")
    from nilearn.datasets import load_fsaverage
    from nilearn.surface import SurfaceImage

    if isinstance(mesh, str):
        mesh = load_fsaverage(mesh)["inflated"]
    counts = {h: int(mesh.parts[part].n_vertices) for h, part in _PARTS.items()}
    parts = {part: np.full(counts[h], fill, dtype=np.float32) for h, part in _PARTS.items()}
    for h, one in to_gifti(values, n_vertices=max(counts.values()), fill=fill).items():
        parts[_PARTS[h]] = one.darrays[0].data[: counts[h]]
    return SurfaceImage(mesh, parts)


def from_masker(masker: Any, signals: Any, **labels: Any) -> xr.DataArray:
    """Responses from what a fitted nilearn masker extracted, with the place of every column.

    Parameters
    ----------
    masker : nilearn.maskers.NiftiMasker or SurfaceMasker
        Fitted.
    signals : array (sample, voxel)
        What ``masker.transform`` gave.
    **labels
        Of `neuroenc.data.make_responses`: ``stimulus``, and ``session, run, subject, roi, ...``.

    Returns
    -------
    DataArray (presentation, voxel)
        With ``i, j, k`` and the affine, or ``vertex, hemi``.

    Raises
    ------
    DataError
        The masker is not fitted, or has other columns than ``signals``.

    Examples
    --------
    >>> import nibabel, numpy as np
    >>> from nilearn.maskers import NiftiMasker
    >>> mask = nibabel.Nifti1Image(np.eye(3, dtype=np.int8)[:, :, None], np.eye(4))
    >>> masker = NiftiMasker(mask, reports=False).fit()
    >>> found = from_masker(masker, np.zeros((2, 3), np.float32), stimulus=["a", "b"])
    >>> found.i.values.tolist(), found.attrs["volume_shape"]
    ([0, 1, 2], [3, 3, 1])
    """
    mask = getattr(masker, "mask_img_", None)
    if mask is None:
        raise DataError(f"{type(masker).__name__} is not fitted. Next step: masker.fit(...).")
    if hasattr(mask, "mesh"):
        inside = from_surface_image(mask)
        at: Any = np.flatnonzero(np.asarray(inside.values).astype(bool))
        place: dict[str, Any] = {"vertex": inside["vertex"].values[at], "hemi": inside["hemi"].values[at]}
        if inside.attrs["space"] != "unknown":
            place["space"] = inside.attrs["space"]
    else:
        held = np.asarray(mask.dataobj).astype(bool)
        at = np.argwhere(held)
        place = {"ijk": at, "affine": mask.affine, "volume_shape": held.shape}
    columns = np.shape(signals)[-1] if np.ndim(signals) else 0
    if np.ndim(signals) != 2 or columns != len(at):
        raise DataError(
            f"signals have shape {np.shape(signals)}; the masker has {len(at)} voxels: (sample, {len(at)})."
        )
    return make_responses(signals, **{**place, **labels})
