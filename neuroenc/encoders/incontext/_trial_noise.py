"""Heavy-tailed noise: Student-t precisions of trials, contaminated normals of single responses."""

from __future__ import annotations

import numpy as np
from scipy.special import digamma, gammaln

from neuroenc._core.errors import ConfigError
from neuroenc.encoders.incontext._evidence import Floats

__all__ = ["CLIP", "Contamination", "effective_voxels", "gain_drift", "outlier_bounds", "trial_precision"]

_DEGREES = np.array([1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0, 80.0, 160.0, 1e6])
# Rare at first, and with ten times the noise's variance; what the prior of both counts as, in trials.
_SHARE, _INFLATION, _PSEUDO = 0.05, 10.0, 20.0


#: Robust standard deviations beyond which a response is an outlier, by default.
CLIP = 5.0
# Of fewer responses the spread is not known well enough to call one an outlier.
_FEWEST = 10


def outlier_bounds(responses: Floats, clip: float | None) -> tuple[Floats, Floats]:
    r"""Lowest and highest response (voxel,) that is no outlier.

    .. math:: \mathrm{median} \pm c \cdot 1.4826\, \mathrm{MAD}

    of responses (trial, voxel), which may hold NaN. Infinite for voxels of fewer than 10 responses, or half of whose
    responses are equal, and for ``clip=None``.

    >>> low, high = outlier_bounds(np.array([[0.0, 1, 2, 3, 4, 5, 6, 7, 8, 60]]).T, 5.0)
    >>> [round(float(bound[0]), 1) for bound in (low, high)]
    [-14.0, 23.0]
    """
    if clip is not None and not (isinstance(clip, (int, float)) and clip > 0):
        raise ConfigError(f"clip={clip!r}: a number above 0, or None.")
    n, v = responses.shape
    low, high = np.full(v, -np.inf), np.full(v, np.inf)
    if clip is None or n < _FEWEST:
        return low, high
    missing = np.isnan(responses)
    middle = np.nanmedian if missing.any() else np.median
    known = (~missing).sum(axis=0) >= _FEWEST
    centre = middle(responses[:, known], axis=0)
    spread = 1.4826 * middle(np.abs(responses[:, known] - centre), axis=0)
    reach = np.where(spread > 0, clip * spread, np.inf)
    low[known], high[known] = centre - reach, centre + reach
    return low, high


def effective_voxels(residuals: Floats) -> float:
    r"""How many independent voxels say as much about a trial's noise, :math:`V / (1 + (V - 1)\,\overline{\rho^2})`.

    Parameters
    ----------
    residuals : array (trial, voxel)
        NaN where missing. Rows are scaled alike first, so that a noisy trial does not look like a correlation.

    Notes
    -----
    The mean squared correlation :math:`\overline{\rho^2}` is less what chance gives, one over the number of trials.

    >>> white = np.random.default_rng(0).standard_normal((60, 200))
    >>> bool(effective_voxels(white) > 100), effective_voxels(np.repeat(white[:, :1], 200, axis=1)) < 1.05
    (True, True)
    """
    filled = np.nan_to_num(residuals)
    rows = np.sqrt((filled**2).mean(axis=1, keepdims=True))
    scaled = filled / np.maximum(rows, np.finfo(float).tiny)
    scaled = scaled - scaled.mean(axis=0)
    norms = np.sqrt((scaled**2).sum(axis=0))
    unit = scaled[:, norms > 0] / norms[norms > 0]
    n, v = unit.shape
    if v < 2 or n < 3:
        return float(max(v, 1))
    smaller = unit @ unit.T if n <= v else unit.T @ unit
    mean_square = (float((smaller**2).sum()) - v) / (v * (v - 1))
    return float(v / (1.0 + (v - 1) * min(max(mean_square - 1.0 / (n - 1), 0.0), 1.0)))


def trial_precision(squares: Floats, n_voxels: float, n_iterations: int = 20) -> Floats:
    r"""Relative precision (trial,) of trials under noise of a Student-t distribution that their voxels share.

    .. math:: \lambda_t \sim \Gamma(\nu / 2, \nu / 2), \qquad
              E[\lambda_t] = \frac{\nu + V}{\nu + V \overline{r_t^2}}

    Parameters
    ----------
    squares : array (trial,)
        Mean over voxels of the squared residual over the voxel's noise variance.
    n_voxels : float
        Independent voxels that the mean is over; see `effective_voxels`.
    n_iterations : int
        Of expectation maximisation for :math:`\nu`.

    Returns
    -------
    array (trial,)
        Scaled so that the median trial has 1: noise variances are those of a typical trial, not of outliers, and what
        a prior says of noise holds for them.

    >>> trial_precision(np.array([1.0, 1.0, 1.0, 1.0, 16.0]), 50.0).round(2)
    array([1.  , 1.  , 1.  , 1.  , 0.07])
    """
    squares = squares / np.median(squares)
    degrees = 8.0
    for _ in range(n_iterations):
        shape, rate = (degrees + n_voxels) / 2, (degrees + n_voxels * squares) / 2
        mean, log_mean = shape / rate, digamma(shape) - np.log(rate)
        half = _DEGREES / 2
        expected = half * np.log(half) - gammaln(half) + half * float((log_mean - mean).mean())
        best = float(_DEGREES[int(np.argmax(expected))])
        if best == degrees:
            break
        degrees = best
    precision = (degrees + n_voxels) / (degrees + n_voxels * squares)
    return np.asarray(precision / np.median(precision))


def gain_drift(responses: Floats, middle: Floats, variance: Floats, precision: Floats) -> tuple[Floats, Floats, float]:
    r"""Drift of each voxel's gain over the trials, how uncertain it is, and how much voxels drift.

    .. math:: y_{tv} - b_v = e^{d_v (u_t - 1/2)} f_v(x_t) + \epsilon, \qquad d_v \sim N(0, \tau^2)

    to first order in :math:`d_v`, with :math:`\tau` by expectation maximisation over all voxels: where no gain drifts
    it tends to 0, and every :math:`d_v` with it.

    Parameters
    ----------
    responses : array (trial, voxel)
        Without the intercept, in the order in which they were measured; :math:`u` goes from 0 to 1. NaN where missing.
    middle, variance : array (trial, voxel)
        Posterior mean and variance of :math:`f_v(x_t)`.
    precision : array (trial, voxel)
        One over the noise variance of each response.

    Returns
    -------
    d, variance of d : array (voxel,)
    tau : float

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> f, d = rng.standard_normal((200, 300)), 0.8 * rng.standard_normal(300)
    >>> y = np.exp(d * np.linspace(-0.5, 0.5, 200)[:, None]) * f + 0.5 * rng.standard_normal((200, 300))
    >>> found, _, tau = gain_drift(y, f, np.zeros_like(f), np.full_like(f, 4.0))
    >>> bool(np.corrcoef(found, d)[0, 1] > 0.95), round(tau, 1)
    (True, 0.8)
    """
    when = np.linspace(-0.5, 0.5, len(responses))[:, None]
    square = middle**2 + variance
    seen = np.where(np.isnan(responses), 0.0, precision)
    information = np.nansum(seen * when**2 * square, axis=0)
    slope = np.nansum(seen * when * (np.nan_to_num(responses) * middle - square), axis=0)
    tau = 0.25
    for _ in range(50):
        spread = 1.0 / (information + 1.0 / tau)
        tau = max(float(((slope * spread) ** 2 + spread).mean()), 1e-6)
    return slope * spread, spread, float(np.sqrt(tau))


class Contamination:
    r"""Contaminated normal noise: with probability :math:`\pi`, :math:`\kappa` times the variance.

    >>> noise = Contamination()
    >>> noise.weights(np.array([[0.5, 100.0]])).round(2)
    array([[0.98, 0.1 ]])
    """

    def __init__(self, share: float = _SHARE, inflation: float = _INFLATION) -> None:
        self.share, self.inflation = share, inflation

    def _probability(self, squares: Floats) -> Floats:
        odds = np.log(self.share / (1 - self.share)) - 0.5 * np.log(self.inflation)
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(-(odds + 0.5 * squares * (1 - 1 / self.inflation)))))

    def weights(self, squares: Floats) -> Floats:
        """Expected relative precision of responses with these squared residuals over the noise variance."""
        return np.asarray(1.0 - self._probability(squares) * (1.0 - 1.0 / self.inflation))

    def updated(self, squares: Floats) -> Contamination:
        """Share and inflation by one step of expectation maximisation over all responses (NaN: missing)."""
        known = squares[np.isfinite(squares)]
        p = self._probability(known)
        total = float(p.sum())
        share = (_PSEUDO * _SHARE + total) / (_PSEUDO + known.size)
        inflation = (_PSEUDO * _INFLATION + float((p * known).sum())) / (_PSEUDO + total)
        return Contamination(float(np.clip(share, 1e-4, 0.5)), float(np.clip(inflation, 4.0, 400.0)))
