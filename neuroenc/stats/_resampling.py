"""Resamples of stimuli as weights, and scores of all resamples by matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroenc.stats._blocks import Floats, Pair, load, load_pair, score_from_sums

Metric = str | Callable[[Floats, Floats], Any]
Counts = NDArray[np.int32]


@dataclass(frozen=True)
class BootstrapResult:
    """Estimate with its bootstrap uncertainty; arrays are per voxel (or scalars for one ROI).

    Attributes
    ----------
    estimate : array, float64
        Value on the samples as they are.
    standard_error : array, float64
        Standard deviation (n - 1) over resamples.
    low, high : array, float64
        Percentile interval.
    p : array, float64, or None
        For differences: two-sided p-value that inverts the percentile interval,
        min(1, 2 (1 + min(#<=0, #>=0)) / (1 + n)).
    confidence : float
        Coverage of the interval.
    n_bootstraps : int
        Resamples.
    n_units : int
        Stimuli (or groups) that were resampled.
    metric : str
        Name of the score.
    """

    estimate: Floats
    standard_error: Floats
    low: Floats
    high: Floats
    p: Floats | None
    confidence: float
    n_bootstraps: int
    n_units: int
    metric: str


def draw_resamples(n: int, groups: Any, n_bootstraps: int, seed: int) -> tuple[Counts, NDArray[np.intp], int]:
    """How often every unit is drawn (n_bootstraps, n_units), and the unit of every sample."""
    if groups is None:
        unit, n_units = np.arange(n), n
    else:
        labels = np.asarray(groups)
        if labels.shape != (n,):
            raise ValueError(f"groups has shape {labels.shape}; give one label for each of the {n} samples.")
        if labels.dtype.kind == "f" and np.isnan(labels).any():
            raise ValueError(
                f"groups has {int(np.isnan(labels).sum())} NaN labels; every sample needs a group."
            )
        distinct, unit = np.unique(labels, return_inverse=True)
        n_units = len(distinct)
    if n_units < 2:
        raise ValueError(f"got {n_units} group to resample; a bootstrap needs at least 2.")
    rng = np.random.default_rng(seed)
    counts = np.empty((n_bootstraps, n_units), dtype=np.int32)
    for k in range(n_bootstraps):
        counts[k] = np.bincount(rng.integers(0, n_units, n_units), minlength=n_units)
    return counts, unit, n_units


def quantiles(samples: Floats, probabilities: list[float]) -> Floats:
    """Quantiles (linear) over axis 0 of the values that are not NaN; (n_probabilities, n_columns)."""
    ordered = np.sort(samples, axis=0)
    n = (~np.isnan(ordered)).sum(axis=0)
    out = np.full((len(probabilities), samples.shape[1]), np.nan)
    some = np.flatnonzero(n)
    for k, q in enumerate(probabilities):
        at = q * (n[some] - 1)
        low = np.floor(at).astype(np.intp)
        high = np.minimum(low + 1, n[some] - 1)
        a, b = ordered[low, some], ordered[high, some]
        out[k, some] = a + (at - low) * (b - a)
    return out


def standard_deviation(samples: Floats) -> Floats:
    known = ~np.isnan(samples)
    n = known.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(known, samples, 0.0).sum(axis=0) / n
        ss = np.where(known, (samples - mean) ** 2, 0.0).sum(axis=0)
        return np.sqrt(np.where(n > 1, ss / (n - 1), np.nan))


class Sampler:
    """Bootstrap scores of one block of voxels through weighted sums, or one by one for a callable."""

    def __init__(self, y: Any, yhat: Any, columns: slice | NDArray[np.intp], metric: Metric) -> None:
        self.metric = metric
        self.raw: tuple[Floats, Floats] | None = None
        if callable(metric):
            self.raw = load(y, columns, "y")[0], load(yhat, columns, "yhat")[0]
            self.estimate = self._call(*self.raw)
            return
        self.pair: Pair = load_pair(y, yhat, columns)
        self.estimate = self.pair.score(metric)
        valid = self.pair.valid
        self.mask = None if valid is None else valid.astype(np.float64)
        self.squares = self.pair.y**2, self.pair.p**2, self.pair.y * self.pair.p

    def _call(self, y: Floats, yhat: Floats) -> Floats:
        assert callable(self.metric)
        out = np.asarray(self.metric(y, yhat), dtype=np.float64)
        if out.shape != (y.shape[1],):
            raise ValueError(
                f"metric returned shape {out.shape} for {y.shape[1]} voxels; it must be one per voxel."
            )
        return out

    def scores(self, weights: Floats) -> Floats:
        """Scores (n_resamples, n_voxels) for sample weights (n_resamples, n_samples)."""
        if self.raw is not None:
            y, yhat = self.raw
            rows = np.arange(len(y))
            return np.stack(
                [self._call(y[i], yhat[i]) for i in (np.repeat(rows, w.astype(int)) for w in weights)]
            )
        n = weights.sum(axis=1)[:, None] if self.mask is None else weights @ self.mask
        yy, pp, yp = self.squares
        with np.errstate(invalid="ignore"):
            out = score_from_sums(
                str(self.metric), n, weights @ self.pair.y, weights @ self.pair.p,
                weights @ yy, weights @ pp, weights @ yp, self.pair.offset,
            )  # fmt: skip
        out[:, np.isnan(self.estimate)] = np.nan
        return out


def weight_chunks(counts: Counts, unit: NDArray[np.intp], step: int) -> Iterator[tuple[slice, Floats]]:
    """Sample weights (at most ``step`` resamples at a time) from the counts of units."""
    for start in range(0, len(counts), step):
        rows = slice(start, min(start + step, len(counts)))
        yield rows, counts[rows][:, unit].astype(np.float64)
