"""Resamples of stimuli as weights, and scores of all resamples by matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroenc._core.checks import make_rng
from neuroenc._core.errors import DataError
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
        Interval of the kind that was asked for, see `sample_interval`.
    p : array, float64, or None
        For differences: two-sided p-value that inverts the interval.
    confidence : float
        Coverage of the interval.
    n_bootstraps : int
        Resamples.
    n_units : int
        Stimuli (or groups) that were resampled.
    metric : str
        Name of the score.
    interval : {"expanded", "percentile"}
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
    interval: str = "expanded"


def unit_of(n: int, groups: Any) -> tuple[NDArray[np.intp], int]:
    """The unit (stimulus or group) of every sample, and how many there are."""
    if groups is None:
        unit, n_units = np.arange(n), n
    else:
        labels = np.asarray(groups)
        if labels.shape != (n,):
            raise DataError(f"groups has shape {labels.shape}; give one label for each of the {n} samples.")
        if labels.dtype.kind == "f" and np.isnan(labels).any():
            raise DataError(f"groups has {int(np.isnan(labels).sum())} NaN labels; every sample needs a group.")
        distinct, unit = np.unique(labels, return_inverse=True)
        n_units = len(distinct)
    if n_units < 2:
        raise DataError(f"got {n_units} group to resample; a bootstrap needs at least 2.")
    return unit, n_units


def draw_resamples(n: int, groups: Any, n_bootstraps: int, seed: int) -> tuple[Counts, NDArray[np.intp], int]:
    """How often every unit is drawn (n_bootstraps, n_units), and the unit of every sample."""
    unit, n_units = unit_of(n, groups)
    rng = make_rng(seed)
    counts = np.empty((n_bootstraps, n_units), dtype=np.int32)
    for k in range(n_bootstraps):
        counts[k] = np.bincount(rng.integers(0, n_units, n_units), minlength=n_units)
    return counts, unit, n_units


def count_units(mask: Any, unit: NDArray[np.intp], n_units: int, n_voxels: int) -> Floats:
    """How many units every voxel has seen; ``mask`` (n_samples, n_voxels) is None where none is missing."""
    if mask is None or mask.all():
        return np.full(n_voxels, float(n_units))
    order = np.argsort(unit, kind="stable")
    starts = np.searchsorted(unit[order], np.arange(n_units))
    return np.asarray(np.logical_or.reduceat(mask[order], starts, axis=0).sum(axis=0), dtype=np.float64)


class Sampler:
    """Bootstrap scores of one block of voxels through weighted sums, or one by one for a callable."""

    def __init__(self, y: Any, yhat: Any, columns: slice | NDArray[np.intp], metric: Metric) -> None:
        self.metric = metric
        self.raw: tuple[Floats, Floats] | None = None
        if callable(metric):
            self.raw = load(y, columns, "y")[0], load(yhat, columns, "yhat")[0]
            self.estimate = self._call(*self.raw)
            return
        self.pair: Pair = load_pair(y, yhat, columns, str(metric))
        self.estimate = self.pair.score(metric)
        valid = self.pair.valid
        self.mask = None if valid is None else valid.astype(np.float64)
        self.squares = self.pair.y**2, self.pair.p**2, self.pair.y * self.pair.p

    def _call(self, y: Floats, yhat: Floats) -> Floats:
        assert callable(self.metric)
        out = np.asarray(self.metric(y, yhat), dtype=np.float64)
        if out.shape != (y.shape[1],):
            raise DataError(f"metric returned shape {out.shape} for {y.shape[1]} voxels; it must be one per voxel.")
        return out

    def scores(self, weights: Floats) -> Floats:
        """Scores (n_resamples, n_voxels) for sample weights (n_resamples, n_samples)."""
        if self.raw is not None:
            y, yhat = self.raw
            rows = np.arange(len(y))
            return np.stack([self._call(y[i], yhat[i]) for i in (np.repeat(rows, w.astype(int)) for w in weights)])
        n = weights.sum(axis=1)[:, None] if self.mask is None else weights @ self.mask
        yy, pp, yp = self.squares
        with np.errstate(invalid="ignore"):
            out = score_from_sums(
                str(self.metric),
                n,
                weights @ self.pair.y,
                weights @ self.pair.p,
                weights @ yy,
                weights @ pp,
                weights @ yp,
                self.pair.offset,
            )
        out[:, np.isnan(self.estimate)] = np.nan
        return out

    @property
    def seen(self) -> NDArray[np.bool_] | None:
        """Samples that neither array misses, or None for all."""
        if self.raw is not None:
            return ~(np.isnan(self.raw[0]) | np.isnan(self.raw[1]))
        return self.pair.valid


def weight_chunks(counts: Counts, unit: NDArray[np.intp], step: int) -> Iterator[tuple[slice, Floats]]:
    """Sample weights (at most ``step`` resamples at a time) from the counts of units."""
    for start in range(0, len(counts), step):
        rows = slice(start, min(start + step, len(counts)))
        yield rows, counts[rows][:, unit].astype(np.float64)
