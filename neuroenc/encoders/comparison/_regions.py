"""Modality profiles: vision, dense captions or single captions as the best predictor of each voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc._core.checks import check_fraction
from neuroenc.encoders.comparison._statistics import Group, Samples, best_against_others

REGIONS = ("vision", "dense", "single")
NOT_SEPARABLE = "not separable"


def classify(drawn: Samples, level: float) -> xr.Dataset:
    """Class of every voxel from its three scores, in the order of `REGIONS`.

    The best space is compared with both others (paired bootstrap over stimuli, FDR over voxels and both tests).
    ``region`` is the best space if it beats both, else "not separable". ``candidates`` keeps what is known in
    between: the spaces that the best does not beat, such as "vision or dense", or "not separable". ``support`` is
    the share of resamples in which each space is the best.
    """
    level = check_fraction("q", level)
    best, p, _ = best_against_others(drawn)
    n_spaces, n_voxels = p.shape
    q = stats.fdr(p)
    still = ~(q < level)
    still[np.where(best < 0, 0, best), np.arange(n_voxels)] = True
    candidates = np.full(n_voxels, NOT_SEPARABLE, dtype=object)
    region = candidates.copy()
    for v in np.unique(still, axis=1).T:
        names = [name for name, kept in zip(REGIONS, v) if kept]
        same = (still == v[:, None]).all(axis=0) & (best >= 0)
        if len(names) < n_spaces:
            candidates[same] = " or ".join(names)
        if len(names) == 1:
            region[same] = names[0]
    filled = np.where(np.isnan(drawn.samples), -np.inf, drawn.samples)
    first = filled.argmax(axis=0)
    support = np.stack([(first == k).mean(axis=0) for k in range(n_spaces)])
    region[best < 0] = candidates[best < 0] = ""
    return xr.Dataset(
        {
            "r": (("space", "voxel"), drawn.estimate),
            "region": ("voxel", region.astype(str)),
            "candidates": ("voxel", candidates.astype(str)),
            "support": (("space", "voxel"), support),
            "q": (("space", "voxel"), q),
        },
        coords={"space": list(REGIONS)},
    )


def region_shares(regions: xr.Dataset, groups: Sequence[Group]) -> pd.DataFrame:
    """Share of each class in each group and readout, and the groups' median scores."""
    rows = []
    classes = [*REGIONS, NOT_SEPARABLE]
    for readout in regions["readout"].values:
        own = regions.sel(readout=readout)
        labels = own["region"].values
        for group in groups:
            inside = labels[group.voxels]
            known = inside != ""
            n = int(known.sum())
            row = {"readout": str(readout), "kind": group.kind, "group": group.name, "n_voxels": n}
            row.update({c: float((inside == c).sum() / n) if n else np.nan for c in classes})
            row.update(
                {
                    f"median_r_{s}": float(np.nanmedian(own["r"].sel(space=s).values[group.voxels])) if n else np.nan
                    for s in REGIONS
                }
            )
            rows.append(row)
    return pd.DataFrame(rows)
