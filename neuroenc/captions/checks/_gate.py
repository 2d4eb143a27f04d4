"""Who is captioned: a voxel that is not predicted above chance has no preference to put into words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data
from neuroenc._core.checks import check_fraction
from neuroenc._core.errors import ConfigError, DataError, unknown_name

__all__ = ["gate_voxels"]


def gate_voxels(
    scores: xr.Dataset,
    kind: str = "q",
    *,
    q: float = 0.05,
    rois: Sequence[str] = (),
    min_ceiling_r: float = 0.0,
) -> pd.DataFrame:
    """Which voxels are captioned, and why the others are not.

    Parameters
    ----------
    scores : Dataset over ``voxel``
        ``r``, for ``kind="q"`` also ``q_value``, for ``min_ceiling_r`` also ``noise_ceiling_r``.
    kind : {"q", "roi", "none"}
        "q": ``q_value`` below ``q`` and r above 0; "roi": voxels of ``rois``; "none": all whose r is a number.
    q : float
        False discovery rate.
    rois : sequence of str
        With "q" or "none": only voxels of these regions, where any are named.
    min_ceiling_r : float
        Voxels whose noise ceiling is lower, or unknown, are held back.

    Returns
    -------
    DataFrame
        ``voxel, captioned`` (bool)``, reason`` ("" where captioned).

    Raises
    ------
    ConfigError, DataError
        An unknown kind or region; scores without what the gate needs.

    Examples
    --------
    >>> scores = xr.Dataset({"r": ("voxel", [0.5, 0.02]), "q_value": ("voxel", [0.001, 0.4])},
    ...                     coords={"voxel": [7, 9]})
    >>> gate_voxels(scores)["reason"].tolist()
    ['', 'not predicted above chance (q = 0.40)']
    """
    if kind not in ("q", "roi", "none"):
        raise ConfigError(unknown_name("gate", kind, ("q", "roi", "none")))
    check_fraction("q", q)
    if not 0 <= min_ceiling_r <= 1:
        raise ConfigError(f"min_ceiling_r={min_ceiling_r!r} is not legal; it must be a correlation from 0 to 1.")
    if kind == "roi" and not rois:
        raise ConfigError('gate "roi" needs the names of regions.')
    needed = ["r", *(["q_value"] if kind == "q" else []), *(["noise_ceiling_r"] if min_ceiling_r > 0 else [])]
    missing = [name for name in needed if name not in scores]
    if missing:
        raise DataError(
            f"scores hold {sorted(map(str, scores.data_vars))}; the gate needs {', '.join(missing)}. Next step: a "
            "permutation test for q_value, repeats for noise_ceiling_r, or another gate."
        )
    n = scores.sizes["voxel"]
    reason = np.full(n, "", dtype=object)
    r = np.asarray(scores["r"].values, dtype=np.float64)

    def hold(where: np.ndarray, text: object) -> None:
        fresh = where & (reason == "")
        reason[fresh] = text if isinstance(text, str) else np.asarray(text, dtype=object)[fresh]

    hold(~np.isfinite(r), "no score (r is not a number)")
    if rois:
        inside = np.any([data.in_roi(scores, name) for name in rois], axis=0)
        hold(~inside, f"outside {', '.join(rois)}")
    if kind == "q":
        value = np.asarray(scores["q_value"].values, dtype=np.float64)
        hold(~(value < q), [f"not predicted above chance (q = {x:#.2g})" for x in value])
        hold(~(r > 0), "predicted below zero")
    if min_ceiling_r > 0:
        ceiling = np.asarray(scores["noise_ceiling_r"].values, dtype=np.float64)
        hold(~np.isfinite(ceiling), "noise ceiling unknown")
        hold(~(ceiling >= min_ceiling_r), [f"noise ceiling too low ({x:.2f})" for x in ceiling])
    voxels = scores["voxel"].values if "voxel" in scores.coords else np.arange(n)
    return pd.DataFrame({"voxel": voxels, "captioned": reason == "", "reason": reason.astype(str)})
