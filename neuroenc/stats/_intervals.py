r"""Intervals and p-values from bootstrap samples: percentile, and expanded to the width that few units need.

The percentile interval of a mean of n units has the spread of a plug-in estimate, :math:`\sqrt{(n - 1) / n}` of the
right one, and the tails of a normal where Student's are needed; a statistic with a bias (a share of variance, a median
of noisy scores) has it twice in its resamples. The expanded interval moves the resamples until their median is the
estimate and asks for rarer tails,

.. math:: a' = \Phi\big(\sqrt{n / (n - 1)}\; t_{n - 1}^{-1}(a)\big)

which for a mean is Hesterberg's expanded interval. It needs no jackknife, which for a median is inconsistent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from neuroenc._core.checks import check_fraction, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.stats._blocks import Floats, as_floats, as_real, known_mean

INTERVALS = ("expanded", "percentile")
# The mean of fewer units than this takes so few values (n = 5: 126) that no quantile of them is a 2.5 % tail.
_FEW = 6


def check_interval(interval: object) -> str:
    return one_of("interval", interval, INTERVALS, aliases={"hesterberg": "expanded", "efron": "percentile"})


def quantiles(samples: Floats, probabilities: list[float]) -> Floats:
    """Quantiles (linear) over axis 0 of the values that are not NaN; (n_probabilities, n_columns)."""
    return _of_ordered(np.sort(samples, axis=0), probabilities)


def _of_ordered(ordered: Floats, probabilities: list[float]) -> Floats:
    n = (~np.isnan(ordered)).sum(axis=0)
    out = np.full((len(probabilities), ordered.shape[1]), np.nan)
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
    n, ss = known.sum(axis=0), np.where(known, (samples - known_mean(samples, 0)) ** 2, 0.0).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(np.where(n > 1, ss / (n - 1), np.nan))


@dataclass(frozen=True)
class Expansion:
    """Degrees of freedom d and factor c of every column, (n_columns,)."""

    degrees: Floats
    factor: Floats

    def tail(self, a: float) -> Floats:
        """The normal deviate of the tail to ask for."""
        return np.asarray(self.factor * stdtrit(self.degrees, a))

    @property
    def few(self) -> NDArray[np.bool_]:
        """Where the resamples take too few values to have a tail."""
        return np.asarray(self.degrees < _FEW - 1)


def expansion(n_units: Any) -> Expansion:
    """For one kind of unit."""
    n = np.maximum(np.asarray(n_units, dtype=np.float64), 2.0)
    return Expansion(n - 1.0, np.sqrt(n / (n - 1.0)))


def corrected_variance(stimuli: Floats, subjects: Floats, both: Floats) -> Floats:
    """Variance over stimuli and subjects without what crossed resamples count more than once (Schütt et al. 2023)."""
    single = np.maximum(stimuli, subjects)
    return np.minimum(np.maximum(2.0 * (stimuli + subjects) - both, single), np.maximum(both, single))


def pooled_expansion(parts: Sequence[tuple[Floats, Any]], drawn: Floats, wanted: Floats) -> Expansion:
    r"""For several kinds of units (stimuli and subjects), after Satterthwaite (1946).

    .. math:: d = \max\Big(\frac{W^2}{\sum_k V_k^2 / (n_k - 1)}, \min_k n_k - 1\Big), \qquad
              c^2 = \frac{W}{v}, \qquad W = w \frac{\sum_k V_k}{\sum_k v_k}, \qquad V_k = \tfrac{n_k}{n_k - 1} v_k

    with the bootstrap variance :math:`v_k` over each kind (``parts``), v of the resamples that are used (``drawn``)
    and w of what they should have (``wanted``): crossed resamples count the noise of single entries several times.
    """
    plug, total, spread = (np.zeros(np.shape(drawn)) for _ in range(3))
    for variance, n in parts:
        units = np.maximum(np.asarray(n, dtype=np.float64), 2.0)
        known = np.where(np.isfinite(variance), variance, 0.0)
        own = known * units / (units - 1.0)
        plug, total, spread = plug + known, total + own, spread + own**2 / (units - 1.0)
    sizes = [float(np.max(np.asarray(n))) for _, n in parts]
    least, most = min(sizes), max(sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = wanted * total / plug
        degrees = np.where(spread > 0, np.maximum(whole**2 / spread, least - 1.0), most - 1.0)
        square = np.where((plug > 0) & (drawn > 0), whole / drawn, most / (most - 1.0))
    return Expansion(degrees, np.sqrt(square))


def _sides(samples: Floats) -> tuple[Any, Any]:
    """Resamples at or below 0, and at or above."""
    with np.errstate(invalid="ignore"):
        return (samples <= 0).sum(axis=0), (samples >= 0).sum(axis=0)


def _centred(samples: Floats, estimate: Floats) -> Floats:
    """Ordered resamples, moved until their median is the estimate: an unknown bias is then counted once."""
    ordered = np.sort(samples, axis=0)
    return ordered - (_of_ordered(ordered, [0.5])[0] - estimate)


def interval_and_p(
    samples: Floats, estimate: Floats, error: Floats, confidence: float, scale: Expansion | None
) -> tuple[Floats, Floats, Floats]:
    r"""Low, high and the two-sided p of every column of ``samples`` (n_resamples, n_columns).

    Without a scale, linear quantiles and p = 2 (1 + m) / (1 + B), m of the B resamples on the rarer side of 0. With
    one, the (B + 1) a'-th ordered centred resample, counted outwards, and
    :math:`p = 2 T_d(\Phi^{-1}((1 + m) / (1 + B)) / c)`: p <= 1 - confidence exactly where the interval leaves out 0.
    For fewer than 6 units, whose resamples have no such tail, the limits are Student's,
    :math:`\hat\theta \pm c\, t_d\, se`; where B is too small for it, they are at least that wide.
    """
    a = (1.0 - confidence) / 2.0
    known = (~np.isnan(samples)).sum(axis=0)
    if scale is None:
        if 0 < known.max(initial=0) < 1.0 / a - 1.0 - 1e-9:
            raise ConfigError(
                f"{int(known.max())} resamples cannot show tails of {a:g}, which a percentile interval with "
                f"confidence={confidence:g} needs; draw at least {int(np.ceil(1.0 / a - 1.0 - 1e-9))}."
            )
        p = np.minimum(1.0, 2.0 * (1.0 + np.minimum(*_sides(samples))) / (1.0 + known))
        return *quantiles(samples, [a, 1.0 - a]), np.where(known > 0, p, np.nan)
    z = scale.tail(a)
    rank = np.floor((known + 1.0) * ndtr(z) + 1e-9).astype(np.intp)
    ordered = _centred(samples, estimate)
    columns = np.arange(samples.shape[1])
    at = np.clip(rank - 1, 0, np.maximum(known - 1, 0))
    low, high = ordered[at, columns], ordered[np.maximum(known - 1 - at, 0), columns]
    below, above = estimate + z * error, estimate - z * error
    low = np.where(scale.few, below, np.where(rank < 1, np.fmin(low, below), low))
    high = np.where(scale.few, above, np.where(rank < 1, np.fmax(high, above), high))
    return low, high, _expanded_p(ordered, estimate, error, scale)


def _expanded_p(centred: Floats, estimate: Floats, error: Floats, scale: Expansion) -> Floats:
    known = (~np.isnan(centred)).sum(axis=0)
    rarer = np.minimum(*_sides(centred))
    with np.errstate(divide="ignore", invalid="ignore"):
        shown = ndtri(np.minimum((1.0 + rarer) / (1.0 + known), 1.0))
        normal = np.where(error > 0, -np.abs(estimate) / error, shown)
        # With no resample beyond 0, Student's limit tells how far it is.
        shown = np.where(rarer == 0, np.fmin(shown, normal), shown)
        p = np.minimum(1.0, 2.0 * stdtr(scale.degrees, np.where(scale.few, normal, shown) / scale.factor))
    return np.where((known > 0) & ~np.isnan(estimate), p, np.nan)


def _check_bounds(estimate: Floats, bounds: tuple[float, float]) -> None:
    least, most = bounds
    reach = 1e-9 * (most - least)
    if (estimate < least - reach).any() or (estimate > most + reach).any():
        raise DataError(f"estimate is {estimate.min():g} to {estimate.max():g}; bounds are {least:g} and {most:g}.")


def _share_interval(
    estimate: Floats, error: Floats, n: Floats, confidence: float, bounds: tuple[float, float]
) -> tuple[Floats, Floats]:
    """Wilson's limits with Student's t, and the number of independent units that ``error`` tells."""
    least, width = bounds[0], bounds[1] - bounds[0]
    share = np.clip((estimate - least) / width, 0.0, 1.0)
    scale = expansion(n)
    t2 = stdtrit(scale.degrees, (1.0 - confidence) / 2.0) ** 2
    spread, variance = share * (1.0 - share), (scale.factor * error / width) ** 2
    # Units that are all alike show no error; as many as there are is the least that they can be worth.
    told = (variance > 0) & (spread > 0)
    size = np.where(told, spread / np.where(told, variance, 1.0), n)
    middle, reach = share + t2 / (2.0 * size), np.sqrt(t2 * (spread / size + t2 / (4.0 * size**2)))
    low, high = (middle - reach) / (1.0 + t2 / size), (middle + reach) / (1.0 + t2 / size)
    # The ends are exact; rounding would leave 1e-17.
    low, high = np.where(share <= 0, 0.0, low), np.where(share >= 1, 1.0, high)
    return least + width * low, least + width * high


def sample_interval(
    samples: Any,
    estimate: Any,
    *,
    n_units: Any,
    confidence: float = 0.95,
    interval: str = "expanded",
    bounds: tuple[float, float] | None = None,
) -> tuple[Floats, Floats, Floats]:
    r"""Confidence interval and p-value (of 0) from bootstrap samples of any statistic.

    ``"percentile"``: quantiles :math:`(1 \mp confidence) / 2`, and p = min(1, 2 (1 + m) / (1 + B)) with m of the B
    resamples on the rarer side of 0. ``"expanded"``: the resamples are moved until their median is the estimate, and
    the quantiles are :math:`\Phi(\pm \sqrt{n / (n - 1)}\, t_{n-1}^{-1})`, with the p-value that inverts the interval;
    Student's limits with the same standard error for fewer than 6 units, and at least these where resamples are too
    few to show such tails.

    In simulations 95 % intervals of means, correlations and their differences held the truth in 93 to 97 % of cases
    from 10 units on, ceilings and R2 in 92 to 97 %. A median over voxels needs resamples of `median_samples`.

    Parameters
    ----------
    samples : array (n_resamples, n_columns) or (n_resamples,)
        NaN where undefined.
    estimate : array (n_columns,) or scalar
        The statistic on the data.
    n_units : int or array (n_columns,)
        What was resampled: stimuli, groups, subjects.
    confidence : float
    interval : {"expanded", "percentile"}
    bounds : (float, float), optional
        Of a share of units, or a mean of values that cannot leave these bounds, (0, 1): resamples of a share of 0 are
        all 0, which would be an interval without width. The limits are then Wilson's,

        .. math:: \frac{\hat p + t^2 / 2m \pm t \sqrt{\hat p (1 - \hat p) / m + t^2 / 4m^2}}{1 + t^2 / m}, \qquad
                  m = \hat p (1 - \hat p) / se^2

        with the number m of independent units that the standard error tells (n where it is 0), and no p.

    Returns
    -------
    low, high, p : array (n_columns,), or scalars
        p is NaN with ``bounds``.

    Raises
    ------
    ValueError
        An unknown interval, a confidence outside (0, 1), numbers of columns that differ, too few resamples for a
        percentile interval, an estimate outside ``bounds``.

    References
    ----------
    Hesterberg (2015), Am. Stat. 69:371. Wilson (1927), J. Am. Stat. Assoc. 22:209. Franco et al. (2019), J. Surv. Stat.
    Methodol. 7:334 (with the effective number of units).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal(12) + 1
    >>> drawn = np.random.default_rng(1).choice(x, (1999, 12)).mean(axis=1)
    >>> [round(float(v), 2) for v in sample_interval(drawn, x.mean(), n_units=12, interval="percentile")]
    [0.63, 1.42, 0.0]
    >>> [round(float(v), 2) for v in sample_interval(drawn, x.mean(), n_units=12)]
    [0.54, 1.5, 0.0]
    >>> [round(float(v), 3) for v in sample_interval(np.zeros(1999), 0.0, n_units=40, bounds=(0, 1))[:2]]   # 0 of 40
    [0.0, 0.093]
    """
    confidence, interval = check_fraction("confidence", confidence), check_interval(interval)
    values = as_real(samples, "samples")
    shape = values.shape[1:]
    values = values.reshape(len(values), -1)
    centre = as_floats(estimate, "estimate").reshape(-1)
    if centre.size != values.shape[1]:
        raise DataError(f"samples have {values.shape[1]} columns and estimate {centre.size}; both must agree.")
    if np.ndim(n_units) == 0 and not n_units >= 1:
        raise ConfigError(f"n_units={n_units!r} is not legal; at least one unit was resampled.")
    if bounds is not None:
        _check_bounds(centre, bounds)
    units = np.broadcast_to(np.asarray(n_units, dtype=np.float64), centre.shape)
    out = np.full((3, centre.size), np.nan)
    for start in range(0, centre.size, 1024):
        at = slice(start, start + 1024)
        drawn, own = np.asarray(values[:, at], dtype=np.float64), centre[at]
        error, scale = standard_deviation(drawn), expansion(units[at]) if interval == "expanded" else None
        if bounds is not None and scale is not None:
            out[:2, at] = _share_interval(own, error, units[at], confidence, bounds)
        else:
            out[:, at] = interval_and_p(drawn, own, error, confidence, scale)
    low, high, p = (x.reshape(shape) for x in out)
    return low, high, p


def share_interval(count: Any, n: Any, *, confidence: float = 0.95) -> tuple[Floats, Floats]:
    r"""Confidence interval of a share of independent units (Wilson's score interval with Student's t).

    Neighbouring voxels are not independent: of a share of voxels the interval tells what the choice of voxels alone
    leaves open, and is too narrow.

    Parameters
    ----------
    count : array or scalar
        Units that have the property.
    n : array or scalar
        Units in all.
    confidence : float

    Returns
    -------
    low, high : ndarray or scalar, float64
        NaN where there is no unit.

    Raises
    ------
    DataError
        A count below 0 or above ``n``.

    References
    ----------
    Wilson (1927), J. Am. Stat. Assoc. 22:209.

    Examples
    --------
    >>> low, high = share_interval([0, 8], [10, 10])
    >>> low.round(1).tolist(), high.round(1).tolist()
    ([0.0, 0.4], [0.3, 1.0])
    """
    confidence = check_fraction("confidence", confidence)
    units, held = np.broadcast_arrays(as_floats(n, "n"), as_floats(count, "count"))
    if (held < 0).any() or (held > units).any():
        raise DataError(f"count is {held.min():g} to {held.max():g} of n = {units.min():g} to {units.max():g} units.")
    some = np.maximum(units, 1.0)
    low, high = _share_interval(held / some, np.zeros(held.shape), some, confidence, (0.0, 1.0))
    return np.where(units > 0, low, np.nan)[()], np.where(units > 0, high, np.nan)[()]


def crossed_interval(
    samples: Any, estimate: Any, kinds: Sequence[tuple[Any, int]], *, confidence: float = 0.95
) -> tuple[Floats, Floats, Floats]:
    """Confidence interval and p-value for two crossed kinds of resampled units, such as voxels and draws.

    Crossed resamples count the noise of single entries three times; the interval has the variance
    min(max(2 (a + b) - ab, a, b), ab) of those of each kind alone, a and b, and of both, ab, and the degrees of freedom
    of their sum (Satterthwaite). In simulations 95 % intervals held the truth in 95 to 96 % of cases where units of a
    kind differ, and in 98 to 99 % where single entries alone scatter and one kind has few units (5 of 60, 8 of 30).

    Parameters
    ----------
    samples : array (n_resamples, n_columns) or (n_resamples,)
        Both kinds resampled.
    estimate : array (n_columns,) or scalar
    kinds : two of (array like ``samples``, int)
        Each kind resampled alone, and how many of it there are.
    confidence : float

    Returns
    -------
    low, high, p : array (n_columns,), or scalars

    References
    ----------
    Owen (2007), Ann. Appl. Stat. 1:386. Schütt et al. (2023), eLife 12:e82566.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x = 1 + 0.1 * rng.standard_normal((20, 50))                     # entries alone scatter: sd 0.1 / sqrt(1000)
    >>> a, b = (rng.multinomial(n, np.full(n, 1 / n), 999) / n for n in x.shape)
    >>> kinds = [(a @ x.mean(axis=1), 20), (b @ x.mean(axis=0), 50)]
    >>> low, high, _ = crossed_interval(((a @ x) * b).sum(axis=1), x.mean(), kinds)
    >>> bool(0.8 < (high - low) / (3.92 * 0.1 / 1000**0.5) < 1.4)
    True
    """
    confidence = check_fraction("confidence", confidence)
    if len(kinds) != 2:
        raise ConfigError(f"kinds has {len(kinds)} entries; legal are two: (resamples, number of units) of each kind.")
    values, centre = as_floats(samples, "samples"), as_floats(estimate, "estimate").reshape(-1)
    shape = values.shape[1:]
    values = values.reshape(len(values), -1)
    error = standard_deviation(values)
    alone = [standard_deviation(as_floats(s, "samples").reshape(len(s), -1)) ** 2 for s, _ in kinds]
    parts = [(v, n) for v, (_, n) in zip(alone, kinds, strict=True)]
    scale = pooled_expansion(parts, error**2, corrected_variance(alone[0], alone[1], error**2))
    low, high, p = interval_and_p(values, centre, error, confidence, scale)
    return low.reshape(shape), high.reshape(shape), p.reshape(shape)


@dataclass(frozen=True)
class BootstrapResult:
    """Estimate with its bootstrap uncertainty; arrays are per voxel, per model, or scalars for one region.

    Attributes
    ----------
    estimate : array, float64
        Value on the samples as they are; over subjects, their mean.
    standard_error : array, float64
        Standard deviation (n - 1) over resamples; of stimuli and subjects crossed, the root of
        ``variance["corrected"]``.
    low, high : array, float64
        Interval of the kind that was asked for, see `sample_interval`.
    p : array, float64
        Two-sided p-value that 0 is the truth, which inverts the interval.
    n_units : int
        Stimuli (or groups, or subjects) that were resampled.
    metric : str
        Name of the score.
    confidence : float
        Coverage of the interval.
    n_bootstraps : int
        Resamples.
    interval : {"expanded", "percentile"}
    samples : array (n_bootstraps, ...), float64, or None
        Resamples of summaries over voxels and subjects, and of comparisons of RDMs. Those with the same seed and
        stimuli are paired, so that their differences are resamples of a difference.
    variance : dict {"stimuli", "subjects", "both", "corrected": array}, or None
        Of `Resampler.subjects`.
    subjects : array (n_subjects, ...), or None
        Each subject's own value, of `Resampler.subjects`.
    """

    estimate: Floats
    standard_error: Floats
    low: Floats
    high: Floats
    p: Floats
    n_units: int
    metric: str
    confidence: float
    n_bootstraps: int
    interval: str
    samples: Floats | None = None
    variance: dict[str, Floats] | None = None
    subjects: Floats | None = None


# Resamples from which the scatter of single voxels is measured: a fixed number, so that it does not depend on memory.
PILOT = 100


def voxel_scatter(samples: Floats, estimate: Floats) -> Floats:
    """Variance over voxels (last axis) of what each resample adds to the estimates; (n_resamples,)."""
    around = samples - estimate
    seen = ~np.isnan(around)
    spread = np.where(seen, (around - known_mean(around, 1, keepdims=True)) ** 2, 0.0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(spread / (seen.sum(axis=1) - 1))


def median_shift(estimate: Floats, scatter: Floats) -> Floats:
    """What to take from the resamples of every voxel before their median, see `median_samples`.

    ``scatter`` is `voxel_scatter` of the first `PILOT` resamples.
    """
    known = ~np.isnan(estimate)
    scatter = scatter[np.isfinite(scatter)]
    own = estimate[known]
    spread = own.var(ddof=1) if len(own) > 1 else 0.0
    if not spread > 0 or not len(scatter):
        return np.zeros_like(estimate)
    kept = np.sqrt(max(0.0, 1.0 - float(scatter.mean()) / spread))
    return np.where(known, (1.0 - kept) * (estimate - np.median(own)), 0.0)


def median_samples(samples: Any, estimate: Any) -> Floats:
    r"""Bootstrap samples of the median over voxels, from bootstrap samples of every voxel.

    A resample adds noise to estimates that hold noise already, so that voxels are spread wider in it than in the data,
    and the plain median of a resample varies too much (by up to 15 % where voxels differ by noise alone). Voxels are
    therefore drawn towards their median m first, by as much as the resamples spread them apart,

    .. math:: \hat\theta^*_b = \mathrm{median}_v\Big(m + \sqrt{1 - s^2 / S^2}\,(\hat r_v - m)
              + (r^*_{bv} - \hat r_v)\Big)

    with the variance :math:`S^2` of the estimates over voxels and :math:`s^2` of :math:`r^*_{bv} - \hat r_v` over
    voxels (mean over resamples), which noise that all voxels share does not raise.

    Parameters
    ----------
    samples : array (n_resamples, n_voxels)
        From `Resampler.samples`, or differences of two of them.
    estimate : array (n_voxels,)

    Returns
    -------
    array (n_resamples,), float64
        For `sample_interval` with the plain median of ``estimate``.

    Raises
    ------
    ValueError
        Numbers of voxels that differ.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> seen = 0.1 * rng.standard_normal(301)                           # 301 voxels that differ by noise alone
    >>> drawn = seen + 0.1 * rng.standard_normal((2000, 301))
    >>> round(float(np.median(drawn, axis=1).std()), 4), round(float(median_samples(drawn, seen).std()), 4)
    (0.0083, 0.0073)
    """
    values, own = as_real(samples, "samples"), as_floats(estimate, "estimate")
    if values.ndim != 2 or own.shape != values.shape[1:]:
        raise DataError(
            f"samples have shape {tuple(values.shape)} and estimate {own.shape}; legal are (n_resamples, n_voxels) "
            "and (n_voxels,)."
        )
    shift = median_shift(own, voxel_scatter(np.asarray(values[:PILOT], dtype=np.float64), own))
    out = np.empty(len(values))
    step = max(1, 2**22 // max(1, values.shape[1]))
    for start in range(0, len(out), step):
        rows = slice(start, start + step)
        out[rows] = medians(np.asarray(values[rows], dtype=np.float64) - shift)
    return out


def medians(values: Floats) -> Floats:
    """Median over the last axis of what is not NaN."""
    if np.isnan(values).any() or not values.shape[-1]:
        return quantiles(values.T, [0.5])[0]
    return np.asarray(np.median(values, axis=-1))
