"""Receptive fields of readouts as retinotopy: polar angle, eccentricity and size."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import DataError


def retinotopy(fields: xr.Dataset, width: float = 1.0) -> xr.Dataset:
    """Express receptive fields as polar angle, eccentricity and size.

    Parameters
    ----------
    fields : Dataset
        ``x, y, size`` as `ReadoutEncoder.receptive_field` gives them: the field of view is 2 wide, y down.
    width : float
        Width of the field of view, such as that of the pictures in degrees of visual angle. 1 gives shares of it.

    Returns
    -------
    Dataset
        ``polar_angle`` in degrees (0 to the right, 90 up, from -180 to 180), ``eccentricity`` and ``size`` (s.d.) in
        units of ``width``.

    Raises
    ------
    DataError
        Fields without a centre and size.

    Examples
    --------
    >>> found = retinotopy(xr.Dataset({"x": ("voxel", [0.5]), "y": ("voxel", [-0.5]), "size": ("voxel", [0.2])}), 8.0)
    >>> {name: round(float(values[0]), 2) for name, values in found.items()}
    {'polar_angle': 45.0, 'eccentricity': 2.83, 'size': 0.8}
    """
    missing = [name for name in ("x", "y", "size") if name not in fields]
    if missing:
        raise DataError(
            f"receptive fields need x, y and size; missing are {missing}, found {sorted(map(str, fields))}."
        )
    if not width > 0:
        raise DataError(f"width={width!r} must be above 0.")
    x, y, half = fields["x"], -fields["y"], width / 2
    unit = "share of the picture's width" if width == 1 else "degrees"
    parts = {
        "polar_angle": (np.degrees(np.arctan2(y.values, x.values)), "degrees"),
        "eccentricity": (np.hypot(x.values, y.values) * half, unit),
        "size": (fields["size"].values * half, unit),
    }
    return xr.Dataset({k: x.copy(data=v).assign_attrs(units=u) for k, (v, u) in parts.items()})


def template_retinotopy(
    voxels: xr.DataArray | xr.Dataset, atlas: str | xr.DataArray = "benson14", width: float | None = None
) -> xr.Dataset:
    """Polar angle, eccentricity and size that a template of retinotopy predicts from anatomy, at each voxel's vertex.

    The template's angle is 0 on the upper vertical meridian and 180 on the lower one, of the half of the visual field
    opposite to the hemisphere: ``90 - angle`` in the convention of `retinotopy` on the left hemisphere, which sees the
    right half, and ``90 + angle`` on the right one.

    Parameters
    ----------
    voxels : DataArray or Dataset over voxel
        With coordinates ``vertex`` and ``hemi``.
    atlas : str or DataArray
        With the coordinates ``polar_angle, eccentricity, size`` (degrees), as `neuroenc.data.load_atlas` gives those of
        "benson14".
    width : float, optional
        Width of the pictures in degrees of visual angle: a template cannot be met by encoders where its centre lies
        outside of them, and is NaN there.

    Returns
    -------
    Dataset (voxel,)
        ``polar_angle`` (0 to the right, 90 up, from -180 to 180), ``eccentricity`` and ``size``, degrees; NaN outside
        the template. Coordinate ``region`` names its area; other coordinates are those of the voxels.

    Raises
    ------
    DataError
        As `neuroenc.data.atlas_regions`; or the atlas has no angles.

    References
    ----------
    Benson et al. 2014, PLoS Computational Biology 10:e1003538; Benson and Winawer 2018, eLife 7:e40224.

    Examples
    --------
    >>> places = {"vertex": ("voxel", [4, 4]), "hemi": ("voxel", ["L", "R"])}
    >>> angles = {"polar_angle": ("voxel", [60.0, 60.0]), "eccentricity": ("voxel", [2.0, 2.0])}
    >>> atlas = xr.DataArray(["V1", "V1"], dims="voxel", coords=places | angles | {"size": ("voxel", [0.5, 0.5])})
    >>> found = template_retinotopy(xr.DataArray([0.3, 0.1], dims="voxel", coords=places), atlas)
    >>> found["polar_angle"].values.tolist()  # up and to the right; up and to the left
    [30.0, 150.0]
    """
    atlas = data.load_atlas(atlas) if isinstance(atlas, str) else atlas
    names = ("polar_angle", "eccentricity", "size")
    if missing := [name for name in names if name not in atlas.coords]:
        raise DataError(f"atlas {atlas.attrs.get('atlas', atlas.name)} has no {', '.join(missing)}. Legal: 'benson14'.")
    if width is not None and not width > 0:
        raise DataError(f"width={width!r} must be above 0.")
    # Vertices are matched as those of regions are, with the atlas' rows in place of names.
    at = data.atlas_regions(voxels, atlas.copy(data=np.arange(atlas.size).astype(str))).astype(int)
    angle, eccentricity, size = (np.asarray(atlas[name].values, float)[at] for name in names)
    side = np.array([str(h)[:1].upper() for h in voxels["hemi"].values])
    angle = (np.where(side == "L", 90 - angle, 90 + angle) + 180) % 360 - 180
    if width is not None:
        place = eccentricity * np.stack([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
        outside = ~(np.abs(place) <= width / 2).all(axis=0)
        angle, eccentricity, size = (np.where(outside, np.nan, part) for part in (angle, eccentricity, size))
    # Voxels of an atlas carry its own angles, which must not take the place of those told here.
    own = {k: v.values for k, v in voxels.coords.items() if v.dims == ("voxel",) and k not in names}
    coords = {k: ("voxel", v) for k, v in (own | {"region": atlas.values.astype(str)[at]}).items()}
    parts = {k: ("voxel", v, {"units": "degrees"}) for k, v in zip(names, (angle, eccentricity, size))}
    return xr.Dataset(parts, coords, {"kind": str(atlas.attrs.get("atlas", atlas.name or "template"))})


def compare_retinotopy(found: xr.Dataset, planted: xr.Dataset) -> pd.Series:
    """How far fields agree with planted, mapped or a template's ones, over voxels where both are known.

    Both hold the same voxels: where both name vertices, a difference is refused.

    ``angle_error`` is the median absolute difference of polar angles in degrees, ``eccentricity_r`` and ``size_r`` are
    Spearman correlations over voxels.

    Examples
    --------
    >>> fields = {"x": ("voxel", [0.5, 0.1, -0.4]), "y": ("voxel", [0.0, 0.3, 0.2]), "size": ("voxel", [0.1, 0.2, 0.3])}
    >>> same = retinotopy(xr.Dataset(fields))
    >>> compare_retinotopy(same, same).round(3).to_dict()
    {'n_voxels': 3.0, 'angle_error': 0.0, 'eccentricity_r': 1.0, 'size_r': 1.0}
    """
    for name in ("vertex", "hemi"):
        if name in found.coords and name in planted.coords and not np.array_equal(found[name], planted[name]):
            raise DataError(f"the two have different voxels ({name} differs). Next step: select the same of both.")
    names = ("polar_angle", "eccentricity", "size")
    a, b = (np.stack([np.asarray(part[name], float) for name in names]) for part in (found, planted))
    known = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
    out = {"n_voxels": float(known.sum()), "angle_error": np.nan, "eccentricity_r": np.nan, "size_r": np.nan}
    if known.sum() >= 3:
        turn = np.abs((a[0, known] - b[0, known] + 180) % 360 - 180)
        ranks = [float(pd.Series(a[k, known]).corr(pd.Series(b[k, known]), method="spearman")) for k in (1, 2)]
        out |= {"angle_error": float(np.median(turn)), "eccentricity_r": ranks[0], "size_r": ranks[1]}
    return pd.Series(out)
