r"""Intervals and p-values from bootstrap samples: percentile, and expanded to the width that few units need.

The percentile interval of a mean of n units has the spread of a plug-in estimate, :math:`\sqrt{(n - 1) / n}` of the
right one, and the tails of a normal where Student's are needed. A correlation adds what fitting means and slopes takes
away (pairs with leverage), about four times as much. The expanded interval asks for rarer tails instead:

.. math:: a' = \Phi(c\, t_{n - 1}^{-1}(a)), \qquad c = \max(se_{jackknife} / se_{bootstrap}, \sqrt{n / (n - 1)})

For a mean the jackknife's standard error is :math:`s / \sqrt n`, and this is Hesterberg's expanded interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from neuroenc.stats._blocks import Floats, check_choice

__all__ = [
    "INTERVALS",
    "Expansion",
    "check_confidence",
    "check_interval",
    "expansion",
    "interval_and_p",
    "jackknife_error",
    "p_value",
    "pooled_expansion",
    "quantiles",
    "sample_interval",
    "standard_deviation",
]

INTERVALS = ("expanded", "percentile")
# The mean of fewer units than this takes so few values (n = 5: 126) that no quantile of them is a 2.5 % tail.
_FEW = 10


def check_interval(interval: object) -> str:
    return check_choice("interval", interval, INTERVALS, {"hesterberg": "expanded", "efron": "percentile"})


def check_confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} is not legal; give a fraction such as 0.95.")
    return confidence


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


@dataclass(frozen=True)
class Expansion:
    """Degrees of freedom d and factor c of every column, (n_columns,)."""

    degrees: Floats
    factor: Floats

    def tail(self, a: float) -> Floats:
        """The normal deviate of the tail to ask for."""
        return np.asarray(self.factor * stdtrit(self.degrees, a))


def expansion(n_units: Any, error: Floats, jackknife: Floats | None = None) -> Expansion:
    """For one kind of unit; ``error`` is the bootstrap's standard error and ``jackknife`` the jackknife's."""
    return pooled_expansion([(np.ones_like(error) if jackknife is None else jackknife**2, n_units)],
                            None if jackknife is None else error**2)  # fmt: skip


def pooled_expansion(parts: Sequence[tuple[Floats, Any]], bootstrap: Floats | None = None) -> Expansion:
    r"""For several kinds of units (stimuli and subjects) whose variances add, after Satterthwaite (1946).

    .. math:: d = \frac{(\sum_k V_k)^2}{\sum_k V_k^2 / (n_k - 1)}, \qquad
              c^2 = \max\Big(\frac{\sum_k V_k}{v}, \frac{\sum_k V_k}{\sum_k V_k (n_k - 1) / n_k}\Big)

    with the jackknife variance :math:`V_k` of ``parts`` and the sum v of the variances of their bootstraps.
    """
    total = sum(np.where(np.isfinite(v), v, 0.0) for v, _ in parts)
    total, plug, spread = np.asarray(total, dtype=np.float64), np.zeros_like(total), np.zeros_like(total)
    least = np.full(total.shape, np.inf)
    for variance, n in parts:
        units = np.maximum(np.asarray(n, dtype=np.float64), 2.0)
        known = np.where(np.isfinite(variance), variance, 0.0)
        plug += known * (units - 1.0) / units
        spread += known**2 / (units - 1.0)
        least = np.minimum(least, units)
    with np.errstate(divide="ignore", invalid="ignore"):
        degrees = np.where(total > 0, total**2 / spread, least - 1.0)
        factor = np.where(total > 0, total / plug, least / (least - 1.0))
        if bootstrap is not None:
            measured = total / bootstrap
            factor = np.where(np.isfinite(measured), np.maximum(factor, measured), factor)
    return Expansion(degrees, np.sqrt(factor))


def _sides(samples: Floats) -> tuple[Any, Any]:
    """Resamples at or below 0, and at or above."""
    with np.errstate(invalid="ignore"):
        return (samples <= 0).sum(axis=0), (samples >= 0).sum(axis=0)


def interval_and_p(
    samples: Floats, estimate: Floats, error: Floats, confidence: float, scale: Expansion | None
) -> tuple[Floats, Floats, Floats]:
    r"""Low, high and the two-sided p of every column of ``samples`` (n_resamples, n_columns).

    Without a scale, linear quantiles and p = 2 (1 + m) / (1 + B), m of the B resamples on the rarer side of 0. With
    one, the (B + 1) a'-th ordered resample, counted outwards, and :math:`p = 2 T_d(\Phi^{-1}((1 + m) / (1 + B)) / c)`:
    p <= 1 - confidence exactly where the interval leaves out 0. Where resamples cannot show so rare a tail (B too
    small, or fewer than 10 units), the limit is also at least Student's, :math:`\hat\theta \pm c\, t_d\, se`, and so
    is p.
    """
    a = (1.0 - confidence) / 2.0
    known = (~np.isnan(samples)).sum(axis=0)
    if scale is None:
        low, high = quantiles(samples, [a, 1.0 - a])
        return low, high, p_value(samples, estimate, error, None)
    z = scale.tail(a)
    rank = np.floor((known + 1.0) * ndtr(z) + 1e-9).astype(np.intp)
    few = scale.degrees < _FEW - 1
    ordered = np.sort(samples, axis=0)
    columns = np.arange(samples.shape[1])
    at = np.clip(rank - 1, 0, np.maximum(known - 1, 0))
    low, high = ordered[at, columns], ordered[np.maximum(known - 1 - at, 0), columns]
    student = few | (rank < 1)
    low = np.where(student, np.fmin(low, estimate + z * error), low)
    high = np.where(student, np.fmax(high, estimate - z * error), high)
    return low, high, p_value(samples, estimate, error, scale, rank < 1)


def p_value(
    samples: Floats, estimate: Floats, error: Floats, scale: Expansion | None, coarse: Any = False
) -> Floats:
    """The p of `interval_and_p`; ``coarse`` columns have too few resamples for the tail of their interval."""
    known = (~np.isnan(samples)).sum(axis=0)
    sides = _sides(samples)
    if scale is None:
        p = np.minimum(1.0, 2.0 * (1.0 + np.minimum(*sides)) / (1.0 + known))
        return np.where(known > 0, p, np.nan)
    few = scale.degrees < _FEW - 1
    z = np.full(samples.shape[1], np.inf)
    for m, sign in zip(sides, (1.0, -1.0), strict=True):
        shown = ndtri(np.minimum((1.0 + m) / (1.0 + known), 1.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            normal = np.where(error > 0, -sign * estimate / error, shown)
        # With no resample beyond 0, Student's limit tells how far it is, where that counts.
        own = np.where(few, np.where(m == 0, normal, np.maximum(shown, normal)), shown)
        own = np.where(~few & coarse & (m == 0), np.minimum(shown, normal), own)
        z = np.fmin(z, own)
    with np.errstate(invalid="ignore"):
        p = np.minimum(1.0, 2.0 * stdtr(scale.degrees, z / scale.factor))
    return np.where(known > 0, p, np.nan)


def sample_interval(
    samples: Any,
    estimate: Any,
    *,
    n_units: Any,
    left_out: Any = None,
    confidence: float = 0.95,
    interval: str = "expanded",
) -> tuple[Floats, Floats, Floats]:
    r"""Interval and p-value that 0 is the truth, from bootstrap samples of any statistic.

    ``"percentile"``: quantiles :math:`(1 \mp confidence) / 2`, and p = min(1, 2 (1 + m) / (1 + B)) with m of the B
    resamples on the rarer side of 0. ``"expanded"``: the quantiles :math:`\Phi(\pm c\, t_{n-1}^{-1})` with

    .. math:: c = \max\Big(\frac{1}{se_{boot}} \sqrt{\tfrac{n - 1}{n} \sum_i (\hat\theta_{(i)} - \hat\theta)^2},
              \sqrt{\tfrac{n}{n - 1}}\Big)

    and the p-value that inverts it. Where resamples cannot show such tails (fewer than 10 units, or too few resamples)
    limits are at least as wide as Student's with the same standard error.

    Parameters
    ----------
    samples : array (n_resamples, n_columns) or (n_resamples,)
        NaN where undefined.
    estimate : array (n_columns,) or scalar
        The statistic on the data.
    n_units : int or array (n_columns,)
        What was resampled: stimuli, groups, subjects.
    left_out : array (n_units, n_columns) or (n_units,), optional
        The statistic without each unit (`leave_one_out`). Without it, the second term of c alone: right for means,
        a little narrow for correlations.
    confidence : float
    interval : {"expanded", "percentile"}

    Returns
    -------
    low, high, p : array (n_columns,), or scalars

    Raises
    ------
    ValueError
        An unknown interval, a confidence outside (0, 1), numbers of columns that differ.

    References
    ----------
    Hesterberg (2015), Am. Stat. 69:371. MacKinnon & White (1985), J. Econom. 29:305 (the jackknife's variance).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal(12) + 1
    >>> drawn = np.random.default_rng(1).choice(x, (1999, 12)).mean(axis=1)
    >>> [round(float(v), 2) for v in sample_interval(drawn, x.mean(), n_units=12, interval="percentile")]
    [0.63, 1.42, 0.0]
    >>> [round(float(v), 2) for v in sample_interval(drawn, x.mean(), n_units=12)]
    [0.54, 1.49, 0.01]
    """
    confidence, interval = check_confidence(confidence), check_interval(interval)
    values = np.asarray(samples, dtype=np.float64)
    shape = values.shape[1:]
    values = values.reshape(len(values), -1)
    centre = np.asarray(estimate, dtype=np.float64).reshape(-1)
    if centre.size != values.shape[1]:
        raise ValueError(f"samples have {values.shape[1]} columns and estimate {centre.size}; both must agree.")
    error, scale = standard_deviation(values), None
    if interval == "expanded":
        jackknife = None
        if left_out is not None:
            left = np.asarray(left_out, dtype=np.float64)
            jackknife = jackknife_error(left.reshape(len(left), -1), centre, n_units)
        scale = expansion(n_units, error, jackknife)
    low, high, p = interval_and_p(values, centre, error, confidence, scale)
    return low.reshape(shape), high.reshape(shape), p.reshape(shape)


def jackknife_error(left_out: Floats, estimate: Floats, n_units: Any) -> Floats:
    """Jackknife standard error around the estimate; units that a column has not seen leave it as it is."""
    n = np.maximum(np.asarray(n_units, dtype=np.float64), 2.0)
    with np.errstate(invalid="ignore"):
        return np.sqrt((n - 1.0) / n * np.nansum((left_out - estimate) ** 2, axis=0))
