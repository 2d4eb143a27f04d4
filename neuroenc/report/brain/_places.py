"""What a map shows and where: values, second values, opacities and regions of labelled voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError, unknown_name

# Headings of scores, shared by figures, the report and the interactive view.
HEADINGS = {
    "r": "Prediction accuracy, Pearson r",
    "r2": "Coefficient of determination, R²",
    "ev": "Explained variance",
    "noise_ceiling_r": "Noise ceiling, correlation",
    "noise_ceiling_r2": "Noise ceiling, share of variance",
    "r_normalised": "Accuracy over noise ceiling",
    "ncsnr": "Noise ceiling signal-to-noise ratio",
}


def label_for(values: Any, given: str = "") -> str:
    """Text of a colour bar: as given, or name and unit of a DataArray.

    >>> label_for(xr.DataArray([1.0], dims="voxel", name="beta", attrs={"units": "% signal change"}))
    'beta (% signal change)'
    """
    if given or not isinstance(values, xr.DataArray) or values.name is None:
        return given
    unit = str(values.attrs.get("units", "") or "")
    heading = str(values.attrs.get("long_name", "") or HEADINGS.get(str(values.name), str(values.name)))
    return f"{heading.replace('_', ' ')} ({unit})" if unit and unit not in ("1", heading) else heading.replace("_", " ")


def channel(other: Any, values: Any, n: int, what: str) -> np.ndarray | None:
    """A second number for each voxel, in the order of ``values``."""
    if other is None:
        return None
    if all(isinstance(x, xr.DataArray) and "voxel" in x.coords for x in (other, values)):
        here, there = values["voxel"].values, other["voxel"].values
        if not np.array_equal(here, there):
            raise DataError(
                f"{what} has {there.size} voxels, values {here.size}, with other ids or in another order. "
                f"Next step: {what}.sel(voxel=values.voxel)."
            )
    data = np.asarray(other)
    if data.shape != (n,) or data.dtype.kind not in "fiub":
        raise DataError(f"{what} has shape {data.shape} ({data.dtype}); legal: one number for each of {n} values.")
    return data.astype(float)


def _coordinate(values: Any, name: str, given: Any, where: str) -> Any:
    if given is not None:
        return np.asarray(given)
    if isinstance(values, (xr.DataArray, xr.Dataset)) and name in values.coords:
        return values[name].values
    raise DataError(f"values carry no coordinate {name!r}, so they have no place {where}. Next step: pass {name}=.")


def surface_places(values: Any, vertex: Any, hemi: Any) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and hemispheres, as given or as ``values`` carry them."""
    return _coordinate(values, "vertex", vertex, "on a surface"), _coordinate(values, "hemi", hemi, "on a surface")


def volume_places(
    values: Any, ijk: Any, affine: Any, volume_shape: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Indices (voxel, 3), affine (4, 4) and shape, as given or as ``values`` carry them."""
    attrs: Mapping[Any, Any] = getattr(values, "attrs", {}) if isinstance(values, xr.DataArray) else {}
    if ijk is None:
        ijk = np.stack([_coordinate(values, axis, None, "in a volume") for axis in "ijk"], axis=1)
    affine = attrs.get("affine") if affine is None else affine
    volume_shape = attrs.get("volume_shape") if volume_shape is None else volume_shape
    if affine is None or volume_shape is None:
        raise DataError(
            "the affine or the shape of the volume is not known. Next step: pass affine= and volume_shape=, or "
            "values.assign_attrs(scores.attrs): a variable of a Dataset does not carry the attributes of the Dataset."
        )
    return np.asarray(ijk, int).reshape(-1, 3), np.asarray(affine, float).reshape(4, 4), tuple(map(int, volume_shape))


def region_masks(rois: Any, values: Any, n: int) -> dict[str, np.ndarray]:
    """Voxels of each region, bool (voxel,): all of the coordinate ``roi``, some of it, or masks as given."""
    if rois is None or rois is False:
        return {}
    if isinstance(rois, Mapping):
        masks = {str(name): np.asarray(mask) for name, mask in rois.items()}
        for name, mask in masks.items():
            if mask.shape != (n,) or mask.dtype != bool:
                raise DataError(f"region {name!r} has shape {mask.shape} ({mask.dtype}); legal: bool ({n},).")
        return masks
    if not isinstance(values, (xr.DataArray, xr.Dataset)) or "roi" not in values.coords:
        raise DataError(
            "values carry no coordinate 'roi' to outline. Next step: rois={'FFA': mask}, a mask over the voxels."
        )
    members = [set(str(x).split(";")) - {""} for x in values["roi"].values]
    legal = sorted(set().union(*members)) if members else []
    wanted = legal if rois is True else [rois] if isinstance(rois, str) else list(rois)
    for name in wanted:
        if name not in legal:
            raise ConfigError(unknown_name("roi", name, legal))
    return {name: np.array([name in m for m in members], bool) for name in wanted}
