"""Receptive fields of readouts as retinotopy: polar angle, eccentricity and size."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

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


def compare_retinotopy(found: xr.Dataset, planted: xr.Dataset) -> pd.Series:
    """How far fields agree with planted or mapped ones, over voxels where both are known.

    ``angle_error`` is the median absolute difference of polar angles in degrees, ``eccentricity_r`` and ``size_r`` are
    Spearman correlations over voxels.

    Examples
    --------
    >>> fields = {"x": ("voxel", [0.5, 0.1, -0.4]), "y": ("voxel", [0.0, 0.3, 0.2]), "size": ("voxel", [0.1, 0.2, 0.3])}
    >>> same = retinotopy(xr.Dataset(fields))
    >>> compare_retinotopy(same, same).round(3).to_dict()
    {'n_voxels': 3.0, 'angle_error': 0.0, 'eccentricity_r': 1.0, 'size_r': 1.0}
    """
    names = ("polar_angle", "eccentricity", "size")
    a, b = (np.stack([np.asarray(part[name], float) for name in names]) for part in (found, planted))
    known = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
    out = {"n_voxels": float(known.sum()), "angle_error": np.nan, "eccentricity_r": np.nan, "size_r": np.nan}
    if known.sum() >= 3:
        turn = np.abs((a[0, known] - b[0, known] + 180) % 360 - 180)
        ranks = [float(pd.Series(a[k, known]).corr(pd.Series(b[k, known]), method="spearman")) for k in (1, 2)]
        out |= {"angle_error": float(np.median(turn)), "eccentricity_r": ranks[0], "size_r": ranks[1]}
    return pd.Series(out)
