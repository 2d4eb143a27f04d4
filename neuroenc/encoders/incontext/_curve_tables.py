"""Tables of support curves: means, intervals, paired comparisons."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc._core.checks import check_fraction, check_whole
from neuroenc._core.errors import ConfigError, DataError, unknown_name

__all__ = ["compare_methods", "summarise_curve"]


def summarise_curve(
    curve: xr.Dataset,
    *,
    groups: str | None = None,
    normalise: bool = False,
    n_bootstraps: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean explained variance per method, group and size, with an interval (`neuroenc.stats.crossed_interval`).

    Parameters
    ----------
    curve : Dataset
        From `support_curve`.
    groups : str, optional
        Voxel coordinate; by default the curve's own, if it has one. All voxels are a group of their own, "all".
    normalise : bool
        Divide the mean over voxels by the mean noise ceiling of the same voxels (those with one above 0).
    n_bootstraps, confidence, seed
        Of the interval.

    Returns
    -------
    DataFrame
        Columns ``method, group, size, explained_variance, low, high, n_voxels, n_draws``.

    Notes
    -----
    A resample draws voxels with replacement, and draws of the support with replacement, independently of each other;
    queries and trial noise are fixed. The interval is therefore for other voxels like these and other supports, with
    these queries. Voxels that share noise or
    signal vary less among themselves than those of another subject would: for claims about subjects, use one mean a
    subject.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> scores = np.random.default_rng(0).normal(0.2, 0.01, (1, 1, 3, 50))
    >>> curve = xr.Dataset({"explained_variance": (("method", "size", "draw", "voxel"), scores)},
    ...                    coords={"method": ["ridge"], "size": [20]})
    >>> summarise_curve(curve)[["method", "size", "explained_variance"]].round(1).values.tolist()
    [['ridge', 20, 0.2]]
    """
    weights = _resamples(curve, n_bootstraps, confidence, seed)
    rows = []
    for group, mask in _groups(curve, groups):
        ceiling = _ceiling(curve, mask) if normalise else None
        for method in curve["method"].values.tolist():
            for size in curve["size"].values.tolist():
                scores = curve["explained_variance"].sel({"method": method, "size": size}).values[:, mask]
                known = np.isfinite(scores).any(axis=0)
                if ceiling is not None:
                    known &= ceiling > 0
                estimate, samples = _means(scores, known, weights, mask, ceiling)
                low, high, _ = _interval(samples, estimate, _sizes(curve, known), confidence)
                rows.append((method, group, size, estimate, low, high, int(known.sum()), scores.shape[0]))
    columns = ["method", "group", "size", "explained_variance", "low", "high", "n_voxels", "n_draws"]
    return pd.DataFrame(rows, columns=columns)


def compare_methods(
    curve: xr.Dataset,
    a: str,
    b: str,
    *,
    groups: str | None = None,
    n_bootstraps: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Difference of two methods' mean explained variance, ``a - b``, paired by voxel and draw.

    Parameters
    ----------
    curve : Dataset
        From `support_curve`.
    a, b : str
        Methods.
    groups, n_bootstraps, confidence, seed
        As in `summarise_curve`; voxels and draws are resampled, the same ones for both methods.

    Returns
    -------
    DataFrame
        Columns ``a, b, group, size, difference, low, high, p, relative, relative_low, relative_high, n_voxels``.
        ``relative`` is the difference as a share of b's mean (NaN unless that is positive, in the interval too where
        more than 2.5 % of resamples have none); ``p`` two-sided, and <= 1 - confidence where the interval leaves out 0.

    Raises
    ------
    ConfigError
        A method does not exist.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> scores = np.random.default_rng(0).normal(0.2, 0.01, (2, 1, 3, 50)) + np.reshape([0.1, 0.0], (2, 1, 1, 1))
    >>> curve = xr.Dataset({"explained_variance": (("method", "size", "draw", "voxel"), scores)},
    ...                    coords={"method": ["bayes", "ridge"], "size": [20]})
    >>> table = compare_methods(curve, "bayes", "ridge")
    >>> table[["difference", "relative"]].round(1).values.tolist(), bool(table["p"][0] < 0.01)
    ([[0.1, 0.5]], True)
    """
    names = curve["method"].values.tolist()
    for name in (a, b):
        if name not in names:
            raise ConfigError(unknown_name("method", name, names))
    weights = _resamples(curve, n_bootstraps, confidence, seed)
    rows = []
    for group, mask in _groups(curve, groups):
        for size in curve["size"].values.tolist():
            pair = [curve["explained_variance"].sel({"method": m, "size": size}).values[:, mask] for m in (a, b)]
            paired = np.isfinite(pair[0]) & np.isfinite(pair[1])
            known = paired.any(axis=0)
            first, second = (_means(np.where(paired, scores, np.nan), known, weights, mask) for scores in pair)
            difference, sizes = first[1] - second[1], _sizes(curve, known)
            with np.errstate(divide="ignore", invalid="ignore"):
                share = np.where(second[1] > 0, difference / second[1], np.nan)
            low, high, p = _interval(difference, first[0] - second[0], sizes, confidence)
            relative = (first[0] - second[0]) / second[0] if second[0] > 0 else np.nan
            bounds = np.nan, np.nan
            if np.isnan(share[0]).mean() <= 0.025 and not np.isnan(relative):
                bounds = _interval(share, relative, sizes, confidence)[:2]
            rows.append((a, b, group, size, first[0] - second[0], low, high, p, relative, *bounds, int(known.sum())))
    columns = [
        "a",
        "b",
        "group",
        "size",
        "difference",
        "low",
        "high",
        "p",
        "relative",
        "relative_low",
        "relative_high",
        "n_voxels",
    ]
    return pd.DataFrame(rows, columns=columns)


def _resamples(curve: xr.Dataset, n: int, confidence: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of draws (n, draw) and of voxels (n, voxel)."""
    if "explained_variance" not in curve:
        raise DataError(f"no explained_variance among {sorted(map(str, curve))}. Next step: support_curve.")
    check_whole("n_bootstraps", n, 2)
    check_fraction("confidence", confidence)
    rng = np.random.default_rng([seed, 11])
    draws, voxels = curve.sizes["draw"], curve.sizes["voxel"]
    even = np.full(draws, 1 / draws)
    return rng.multinomial(draws, even, n).astype(np.float64), rng.multinomial(
        voxels, np.full(voxels, 1 / voxels), n
    ).astype(np.float64)


def _groups(curve: xr.Dataset, name: str | None) -> Iterator[tuple[str, np.ndarray]]:
    """All voxels, and each value of the coordinate."""
    yield "all", np.ones(curve.sizes["voxel"], dtype=bool)
    name = name or str(curve.attrs.get("groups", ""))
    if name:
        if name not in curve.coords:
            raise ConfigError(unknown_name("voxel coordinate groups =", name, map(str, curve.coords)))
        labels = curve[name].values.astype(str)
        for value in dict.fromkeys(labels.tolist()):
            yield value, labels == value


def _ceiling(curve: xr.Dataset, mask: np.ndarray) -> np.ndarray:
    if "noise_ceiling" not in curve:
        raise ConfigError("normalise=True needs support_curve(..., noise_ceiling=...).")
    return np.nan_to_num(curve["noise_ceiling"].values[mask])


def _means(
    scores: np.ndarray,
    known: np.ndarray,
    weights: tuple[np.ndarray, np.ndarray],
    mask: np.ndarray,
    ceiling: np.ndarray | None = None,
) -> tuple[float, np.ndarray]:
    """Mean over draws and known voxels, whole and in every resample of both, of draws and of voxels alone (3, n)."""
    if not known.any():
        return np.nan, np.full((3, len(weights[0])), np.nan)
    part = scores[:, known]
    filled, seen = np.nan_to_num(part), np.isfinite(part).astype(np.float64)
    limit = np.ones(part.shape[1]) if ceiling is None else ceiling[known]
    draws, voxels = weights[0], weights[1][:, mask][:, known]
    samples = np.empty((3, len(draws)))
    with np.errstate(divide="ignore", invalid="ignore"):
        for k, (a, b) in enumerate(((draws, voxels), (draws, np.ones_like(voxels)), (np.ones_like(draws), voxels))):
            samples[k] = ((a @ filled) * b).sum(axis=1) / ((a @ (seen * limit)) * b).sum(axis=1)
    return float(filled.sum() / (seen * limit).sum()), samples


def _sizes(curve: xr.Dataset, known: np.ndarray) -> tuple[int, int]:
    """How many draws and voxels are resampled."""
    return curve.sizes["draw"], int(known.sum())


def _interval(
    samples: np.ndarray, estimate: float, sizes: tuple[int, int], confidence: float
) -> tuple[float, float, float]:
    """Low, high and p; ``samples`` of both kinds, of draws and of voxels (3, n)."""
    if not np.isfinite(samples[0]).any():
        return np.nan, np.nan, np.nan
    low, high, p = stats.crossed_interval(
        samples[0], estimate, [(samples[1], sizes[0]), (samples[2], sizes[1])], confidence=confidence
    )
    return float(low), float(high), float(p)
