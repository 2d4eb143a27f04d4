"""Learning curves: a power law of accuracy over the number of training stimuli, and when it may be believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from neuroenc._core.errors import DataError

_EXPONENTS = (0.05, 3.0)
_LEAST = 4  # sizes: three parameters, and one size that they have to foretell
#: So many times the largest size, a curve is not followed further.
_REACH = 4.0


@dataclass(frozen=True)
class PowerLaw:
    r"""A power law of accuracy over training stimuli, :math:`s(n) = a - b\,n^{-c}`.

    Attributes
    ----------
    asymptote, gain, exponent : float
        a, b and c.
    largest : int
        Largest size that it was fitted to.
    miss : float
        Accuracy at the largest size, less what a fit to the smaller sizes foretells.
    believable : bool
        Whether it may be followed beyond the largest size.
    reason : str
        Why not.
    """

    asymptote: float
    gain: float
    exponent: float
    largest: int
    miss: float
    believable: bool
    reason: str = ""

    def __call__(self, n: Any) -> Any:
        """Accuracy at so many training stimuli."""
        return self.asymptote - self.gain * np.asarray(n, dtype=float) ** -self.exponent

    def expected(self, n: float) -> float | None:
        """Accuracy that is expected at ``n``; None where the law may not be followed so far."""
        inside = n <= self.largest or (self.believable and n <= _REACH * self.largest)
        return float(self(n)) if inside else None


def fit_power_law(sizes: Any, scores: Any, tolerance: float = 0.01) -> PowerLaw:
    r"""Fit a power law to a learning curve, and ask whether it foretells its own last point.

    Least squares of :math:`s(n) = a - b\,n^{-c}`, linear in a and b for each c. The law is believable where a fit to
    all but the largest size foretells the score there to within ``tolerance``, accuracy grows (b > 0), and the exponent
    is not at a bound (.05 to 3).

    Parameters
    ----------
    sizes : array (k,)
        Numbers of training stimuli, rising, four or more.
    scores : array (k,)
        Accuracy, such as mean explained variance over voxels.
    tolerance : float
        In units of the scores.

    Raises
    ------
    DataError
        Fewer than four sizes, sizes that do not rise, or scores that are not finite.

    References
    ----------
    Antonello, Vaidya & Huth (2023), Scaling laws for language encoding models in fMRI, NeurIPS.

    Examples
    --------
    >>> n = np.array([50, 100, 200, 400, 800])
    >>> law = fit_power_law(n, 0.5 - 2 * n**-0.6)
    >>> round(law.asymptote, 3), law.believable, round(law.expected(1600), 3), law.expected(10_000)
    (0.5, True, 0.476, None)
    """
    n, s = np.asarray(sizes, dtype=float), np.asarray(scores, dtype=float)
    if n.ndim != 1 or n.shape != s.shape or len(n) < _LEAST or (np.diff(n) <= 0).any() or n[0] <= 0:
        raise DataError(
            f"sizes {n.tolist()} and {len(s)} scores; expected {_LEAST} sizes or more that rise from above 0."
        )
    if not np.isfinite(s).all():
        raise DataError(f"{int((~np.isfinite(s)).sum())} of {len(s)} scores are not finite.")
    a, b, c = _fit(n, s)
    before = _fit(n[:-1], s[:-1])
    miss = float(s[-1] - (before[0] - before[1] * n[-1] ** -before[2]))
    bound = min(abs(np.log(c / edge)) for edge in _EXPONENTS) < 1e-2
    reason = (
        "accuracy does not grow"
        if b <= 0
        else "its exponent is at a bound"
        if bound
        else f"a fit to the smaller sizes misses the largest by {miss:+.3f}"
        if abs(miss) > tolerance
        else ""
    )
    return PowerLaw(float(a), float(b), float(c), int(n[-1]), miss, not reason, reason)


def _fit(n: np.ndarray, s: np.ndarray) -> tuple[float, float, float]:
    def solve(c: float) -> tuple[np.ndarray, float]:
        design = np.column_stack([np.ones_like(n), -(n**-c)])
        found, *_ = np.linalg.lstsq(design, s, rcond=None)
        return found, float(np.square(s - design @ found).sum())

    low, high = np.log(_EXPONENTS)
    # A coarse grid first: the error may have several valleys.
    grid = np.linspace(low, high, 60)
    at = int(np.argmin([solve(float(np.exp(x)))[1] for x in grid]))
    span = (float(grid[max(at - 1, 0)]), float(grid[min(at + 1, len(grid) - 1)]))
    best = minimize_scalar(lambda x: solve(float(np.exp(x)))[1], bounds=span, method="bounded", options={"xatol": 1e-8})
    c = float(np.exp(best.x))
    (a, b), _ = solve(c)
    return float(a), float(b), c
