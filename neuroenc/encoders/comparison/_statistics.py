"""Statistics of a comparison: one set of resamples of the stimuli for all cells, voxels and groups."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc._core.checks import check_fraction
from neuroenc.data import in_roi, roi_names

_MAX_MEMORY = 2**30


@dataclass(frozen=True, eq=False)
class Group:
    """Voxels of one region, subject or animal."""

    kind: str
    name: str
    voxels: np.ndarray


def find_groups(responses: xr.DataArray | xr.Dataset) -> list[Group]:
    """All voxels, then every region, and every value of a text coordinate on voxel (subject, animal, ...)."""
    groups = [Group("all", "all", np.arange(responses.sizes["voxel"]))]
    if "roi" in responses.coords:
        for name in roi_names(responses):
            groups.append(Group("roi", name, np.flatnonzero(np.asarray(in_roi(responses, name)))))
    for key, coord in responses.coords.items():
        if key in ("roi", "voxel") or coord.dims != ("voxel",) or coord.dtype.kind not in "OUT":
            continue
        values = coord.values.astype(str)
        for value in dict.fromkeys(values.tolist()):
            if value:
                groups.append(Group(str(key), value, np.flatnonzero(values == value)))
    return [g for g in groups if len(g.voxels)]


@dataclass(frozen=True, eq=False)
class Samples:
    """Scores ``estimate`` (cell, voxel), of every resample ``samples`` (cell, resample, voxel; float32), how many
    stimuli a voxel has seen, ``n_units`` (voxel,), and how many there are, ``n_stimuli``."""

    estimate: np.ndarray
    samples: np.ndarray
    n_units: np.ndarray
    n_stimuli: int

    def of(self, cells: Sequence[int]) -> Samples:
        """Some cells."""
        return Samples(self.estimate[cells], self.samples[cells], self.n_units, self.n_stimuli)


def draw_samples(
    measured: np.ndarray, predictions: Sequence[np.ndarray], *, n_bootstraps: int, groups: Any, seed: int
) -> Samples:
    """Bootstrap correlations of every cell over the same resamples of the stimuli.

    Parameters
    ----------
    measured : array (row, voxel)
        NaN where a voxel did not see a stimulus.
    predictions : sequence of array (row, voxel)
    groups : array (row,)
        Stimulus of every row.
    """
    n_voxels = measured.shape[1]
    samples = _room((len(predictions), n_bootstraps, n_voxels))
    estimate, n_units = np.empty((len(predictions), n_voxels)), np.zeros(n_voxels)
    resampler = stats.Resampler(n_bootstraps, groups=groups, seed=seed)
    for k, predicted in enumerate(predictions):
        estimate[k], samples[k] = resampler.samples(measured, predicted, dtype=np.float32)
        n_units = np.maximum(n_units, resampler.units(measured, predicted))
    return Samples(estimate, samples, n_units, len(np.unique(groups)))


def _room(shape: tuple[int, ...]) -> np.ndarray:
    if 4 * np.prod(shape, dtype=float) > _MAX_MEMORY:
        return np.memmap(tempfile.TemporaryFile(), dtype=np.float32, shape=shape)
    return np.empty(shape, dtype=np.float32)


def _median(values: np.ndarray) -> Any:
    """Median over voxels (last axis) of what is defined; NaN without any."""
    if not np.isnan(values).any():
        return np.median(values, axis=-1) if values.shape[-1] else np.full(values.shape[:-1], np.nan)
    none = np.isnan(values).all(axis=-1)
    filled = np.where(none[..., None], 0.0, values)
    return np.where(none, np.nan, np.nanmedian(filled, axis=-1))


def median_or_low(values: np.ndarray) -> float:
    """Median of what is defined; without any, lower than every other."""
    return float(np.nanmedian(values)) if np.isfinite(values).any() else -np.inf


def limits(samples: np.ndarray, estimate: Any, n_stimuli: int) -> tuple[float, float, float]:
    """Ends of the 95 % interval and p of one statistic with its resamples."""
    low, high, p = stats.sample_interval(samples, estimate, n_units=n_stimuli)
    return float(low), float(high), float(p)


def group_medians(
    names: Sequence[str], drawn: Samples, groups: Sequence[Group], ceiling: np.ndarray | None
) -> pd.DataFrame:
    """Median correlation over the voxels of each group, with the interval over resampled stimuli."""
    rows: list[dict[str, Any]] = []
    share = None if ceiling is None else np.asarray(ceiling, dtype=np.float64)
    for k, name in enumerate(names):
        for group in groups:
            r = drawn.estimate[k, group.voxels]
            middle, medians = float(_median(r)), stats.median_samples(drawn.samples[k][:, group.voxels], r)
            low, high, _ = limits(medians, middle, drawn.n_stimuli)
            row: dict[str, Any] = {"cell": name, "kind": group.kind, "group": group.name}
            row |= {"n_voxels": int(np.isfinite(r).sum()), "median_r": middle, "low": low, "high": high}
            if share is not None:
                part = share[group.voxels]
                row["median_r_normalised"] = float(_median(stats.normalise(r, part, score_unit="r", ceiling_unit="r")))
            rows.append(row)
    return pd.DataFrame(rows)


def pair_table(names: Sequence[str], drawn: Samples, groups: Sequence[Group], q: float = 0.05) -> pd.DataFrame:
    """Any two cells, voxel by voxel and for the median of each group.

    ``median_difference`` is the median over voxels of ``r_a - r_b`` with interval and two-sided p-value over the
    resamples, and ``q`` its FDR over all pairs and groups (one family a kind of group). ``share_a`` and
    ``share_b`` are the shares of voxels where a or b is better after FDR over the voxels of the pair.
    """
    q = check_fraction("q", q)
    rows = []
    for a, b in itertools.combinations(range(len(names)), 2):
        difference = drawn.estimate[a] - drawn.estimate[b]
        samples = np.subtract(drawn.samples[a], drawn.samples[b])
        passed = stats.fdr(stats.sample_interval(samples, difference, n_units=drawn.n_units)[2]) < q
        for group in groups:
            inside = difference[group.voxels]
            n = int(np.isfinite(inside).sum())
            medians = [float(_median(x[group.voxels])) for x in (drawn.estimate[a], drawn.estimate[b], difference)]
            middle = stats.median_samples(samples[:, group.voxels], inside)
            interval = limits(middle, medians[-1], drawn.n_stimuli)
            sides = (passed[group.voxels] & side for side in (inside > 0, inside < 0))
            shares = (float(side.sum() / n) if n else np.nan for side in sides)
            rows.append((names[a], names[b], group.kind, group.name, n, *medians, *interval, *shares))
    who = ["a", "b", "kind", "group", "n_voxels"]
    found = ["median_r_a", "median_r_b", "median_difference", "low", "high", "p", "share_a", "share_b"]
    table = pd.DataFrame(rows, columns=[*who, *found])
    table["q"] = np.nan
    for kind in table["kind"].unique():
        members = (table["kind"] == kind).to_numpy()
        table.loc[members, "q"] = stats.fdr(table.loc[members, "p"].to_numpy(dtype=np.float64))
    return table


def closest_rival(cell: str, pairs: pd.DataFrame, level: float = 0.05) -> dict[str, Any]:
    """Compare ``cell`` with its closest rival in `pair_table`, over all voxels.

    The rival is the cell that is ahead of it by most, else the one that it leads by least. ``difference`` (of medians
    of paired differences, ``cell`` minus rival) comes with its interval, p and q; ``verdict`` is "ahead of every
    other cell" where all differences pass ``level`` after FDR, "behind RIVAL" where one passes against it, else "not
    separable from RIVAL".
    """
    shown = pairs[(pairs["kind"] == "all") & ((pairs["a"] == cell) | (pairs["b"] == cell))]
    sign = np.where(shown["a"] == cell, 1.0, -1.0)
    difference = sign * shown["median_difference"].to_numpy(dtype=np.float64)
    sure = shown["q"].to_numpy(dtype=np.float64) < level
    at = int(np.argmin(np.where(np.isnan(difference), np.inf, difference)))
    row = shown.iloc[at]
    low, high = sorted([float(sign[at] * row["low"]), float(sign[at] * row["high"])])
    rival = str(row["b"] if row["a"] == cell else row["a"])
    behind = sure & (difference < 0)
    if behind.any():
        verdict = f"behind {rival}"
    elif (sure & (difference > 0)).all():
        verdict = "ahead of every other cell"
    else:
        verdict = f"not separable from {rival}"
    found = {"difference": float(difference[at]), "low": low, "high": high, "p": float(row["p"]), "q": float(row["q"])}
    return {"rival": rival, **found, "verdict": verdict}


def best_against_others(drawn: Samples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best cell of every voxel (-1: none is defined), p against each cell (cell, voxel), and lead over the second."""
    estimate = np.where(np.isnan(drawn.estimate), -np.inf, drawn.estimate)
    best = estimate.argmax(axis=0)
    voxels = np.arange(estimate.shape[1])
    p = np.full(estimate.shape, np.nan)
    for b in range(len(estimate)):
        mine = np.flatnonzero(best == b)
        if not len(mine):
            continue
        for k in range(len(estimate)):
            if k != b:
                samples, difference = (x[b][..., mine] - x[k][..., mine] for x in (drawn.samples, drawn.estimate))
                p[k, mine] = stats.sample_interval(samples, difference, n_units=drawn.n_units[mine])[2]
    ordered = np.sort(estimate, axis=0)
    with np.errstate(invalid="ignore"):
        lead = ordered[-1] - ordered[-2] if len(ordered) > 1 else np.full(len(voxels), np.nan)
    none = ~np.isfinite(estimate.max(axis=0))
    return np.where(none, -1, best), p, np.where(np.isfinite(lead), lead, np.nan)


def voxel_winner(names: Sequence[str], drawn: Samples, level: float) -> xr.Dataset:
    """Best cell of every voxel, or "tie" where it is not separable from every other.

    The p-value is the largest over the other cells (an intersection-union test: the best must beat each of them),
    and q its FDR over voxels.
    """
    level = check_fraction("q", level)
    best, p, lead = best_against_others(drawn)
    labels = np.array([*names, ""], dtype=object)
    known = ~np.isnan(p)
    worst = np.where(known.any(axis=0), np.where(known, p, 0.0).max(axis=0), np.nan)
    q = stats.fdr(worst)
    separable = q < level
    winner = np.where(best < 0, "", np.where(separable, labels[best], "tie"))
    return xr.Dataset(
        {
            "best": ("voxel", labels[best].astype(str)),
            "winner": ("voxel", winner.astype(str)),
            "lead": ("voxel", lead),
            "p": ("voxel", worst),
            "q": ("voxel", q),
        }
    )


#: Stimuli and resamples of representational similarity at most: its cost grows with the square of the stimuli.
_RSA_STIMULI, _RSA_BOOTSTRAPS = 120, 100
_RSA_VOXELS = 5


def similarity_table(
    measured: np.ndarray,
    models: Sequence[tuple[str, str, Any]],
    groups: Sequence[Group],
    *,
    stimuli: np.ndarray,
    n_bootstraps: int,
    seed: int,
) -> pd.DataFrame:
    """Representational similarity of models with each group of voxels: Spearman correlation of their RDMs.

    Dissimilarities are 1 - correlation, over voxels or features. Of each group the stimuli count that all of its voxels
    saw, at most 120 of them drawn by ``seed``; intervals (95 %) are over stimuli.

    Parameters
    ----------
    measured : array (row, voxel)
    models : sequence of (kind, name, values)
        Of kind "prediction" an array (row, voxel), read at the voxels of the group; of kind "features" what gives the
        features of some rows.
    groups : sequence of Group
    stimuli : array (row,)
    """
    names, number = np.unique(stimuli, return_inverse=True)
    count = np.bincount(number)[:, None]

    def averaged(values: np.ndarray) -> np.ndarray:
        flat = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
        total = np.zeros((len(names), flat.shape[1]))
        np.add.at(total, number, flat)
        return total / count

    y = averaged(measured)
    rng = np.random.default_rng([seed, 5])
    resampler = stats.Resampler(min(n_bootstraps, _RSA_BOOTSTRAPS), seed=seed)
    rows: list[dict[str, Any]] = []
    for group in groups:
        known = np.flatnonzero(np.isfinite(y[:, group.voxels]).all(axis=1))
        if len(known) > _RSA_STIMULI:
            known = np.sort(rng.choice(known, _RSA_STIMULI, replace=False))
        if len(group.voxels) < _RSA_VOXELS or len(known) < 10:
            continue
        at = np.flatnonzero(np.isin(number, known))
        place = np.searchsorted(known, number[at])
        first = at[np.unique(place, return_index=True)[1]]  # features of a stimulus are equal in all its rows
        mine = stats.rdm(y[known][:, group.voxels])
        each = []
        for kind, _, values in models:
            own = averaged(values[:, group.voxels])[known] if kind == "prediction" else values(first)
            each.append(stats.rdm(np.asarray(own, dtype=np.float64).reshape(len(known), -1)))
        defined = [k for k, part in enumerate(each) if np.isfinite(part).all()]
        if not defined or not np.isfinite(mine).all():
            continue
        found = resampler.rdms(np.stack([each[k] for k in defined]), mine[None], over="stimuli")
        for n, k in enumerate(defined):
            row: dict[str, Any] = {"kind": group.kind, "group": group.name, "model": models[k][1], "of": models[k][0]}
            row |= {"n_voxels": len(group.voxels), "n_stimuli": len(known), "similarity": float(found.estimate[n])}
            rows.append(row | {"low": float(found.low[n]), "high": float(found.high[n])})
    columns = ["kind", "group", "model", "of", "n_voxels", "n_stimuli", "similarity", "low", "high"]
    return pd.DataFrame(rows, columns=columns)
