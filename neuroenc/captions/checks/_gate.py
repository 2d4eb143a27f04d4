"""Select the voxels to caption: held-out accuracy above chance (FDR), and samples of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data
from neuroenc._core.checks import check_fraction, one_of, share
from neuroenc._core.errors import ConfigError, DataError


def gate_voxels(
    scores: xr.Dataset, kind: str = "q", *, q: float = 0.05, rois: Sequence[str] = (), min_ceiling_r: float = 0.0
) -> pd.DataFrame:
    """Select the voxels to caption: held-out accuracy above chance (FDR) or in a region.

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
    one_of("gate", kind, ("q", "roi", "none"))
    check_fraction("q", q)
    share("min_ceiling_r", min_ceiling_r)
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


def sample_voxels(strata: Sequence[str], n: int | None, seed: int = 0) -> np.ndarray:
    r"""A random sample of voxels, stratified: region h of :math:`N_h` voxels gives about :math:`n N_h / N`.

    Every region gives at least one voxel where n allows it. Inside a region voxels are drawn without replacement.

    Parameters
    ----------
    strata : sequence of str (voxel,)
        Region of each voxel.
    n : int or None
        Voxels of the sample; None, or more than there are: all of them.
    seed : int

    Returns
    -------
    ndarray (voxel,) of bool

    Raises
    ------
    DataError
        Fewer than two voxels are asked for.

    Examples
    --------
    >>> chosen = sample_voxels(["FFA"] * 30 + ["PPA"] * 60 + ["RSC"], 10)
    >>> int(chosen[:30].sum()), int(chosen[30:90].sum()), int(chosen[90:].sum())
    (3, 6, 1)
    """
    labels = np.asarray(strata, dtype=str)
    if n is not None and n < 2:
        raise DataError(f"a sample of {n} voxels is not legal; it must be None (all), or at least 2.")
    if n is None or n >= len(labels):
        return np.ones(len(labels), dtype=bool)
    names, of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    even = n * sizes / len(labels)
    least = int(n >= len(names))
    take = np.maximum(np.floor(even).astype(np.int64), least)
    # Largest remainders are rounded up; what small regions were given too much, large ones give back.
    while take.sum() < n:
        take[np.argmax(np.where(take < sizes, even - take, -np.inf))] += 1
    while take.sum() > n:
        take[np.argmax(np.where(take > least, take - even, -np.inf))] -= 1
    chosen = np.zeros(len(labels), dtype=bool)
    for k in range(len(names)):
        inside = np.flatnonzero(of == k)
        # Of the region alone: its voxels stay the same when another region changes.
        rng = np.random.default_rng([seed, *names[k].encode()])
        chosen[inside[rng.permutation(len(inside))[: take[k]]]] = True
    return chosen
