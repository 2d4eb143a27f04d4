"""Scores as a share of the noise ceiling, with the units of both checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc._core.errors import DataError
from neuroenc.stats._blocks import Floats, as_floats, check_choice
from neuroenc.stats._labels import match_voxels

__all__ = ["convert_ceiling", "normalise"]

UNITS = ("r2", "r")
_UNIT_ALIASES = {
    "correlation": "r",
    "pearson": "r",
    "variance": "r2",
    "percent": "r2",
    "explained_variance": "r2",
}


def check_unit(name: str, unit: object, legal: tuple[str, ...] = UNITS) -> str:
    return check_choice(name, unit, legal, _UNIT_ALIASES)


def _check_ceiling(ceiling: Any) -> Floats:
    values = as_floats(ceiling, "ceiling")
    high = values > 1.0 + 1e-6
    if high.any():
        percent = " NSD publishes noise ceilings in percent: divide by 100." if np.nanmax(values) > 2 else ""
        raise DataError(
            f"ceiling has {int(high.sum())} of {values.size} values above 1 (largest {np.nanmax(values):g}); "
            f"legal is a fraction in [0, 1].{percent}"
        )
    return values


def convert_ceiling(ceiling: Any, *, from_unit: str, to_unit: str) -> Floats:
    """A ceiling in the other unit: ``r = sqrt(r2)``.

    Parameters
    ----------
    ceiling : array (n_voxels,)
        Fractions in [0, 1].
    from_unit, to_unit : {"r2", "r"}
        What it is, and what is wanted.

    Returns
    -------
    array (n_voxels,), float64

    Raises
    ------
    ValueError
        Unit not legal, or values outside [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> convert_ceiling(np.array([0.25, 0.81]), from_unit="r2", to_unit="r")
    array([0.5, 0.9])
    """
    source, target = check_unit("from_unit", from_unit), check_unit("to_unit", to_unit)
    values = _check_ceiling(ceiling)
    if np.any(values < 0):
        raise DataError(f"ceiling has {int((values < 0).sum())} negative values; clip reliabilities at 0 first.")
    if source == target:
        return values
    return np.sqrt(values) if target == "r" else values**2


def normalise(
    score: Any,
    ceiling: Any,
    *,
    score_unit: str,
    ceiling_unit: str,
    floor: float | None = None,
    clip: bool = False,
) -> Floats:
    """Score as a share of the noise ceiling, ``score / ceiling``, both in the same unit.

    Parameters
    ----------
    score : array (..., n_voxels)
        Scores; leading axes (models, bootstrap samples) share the ceiling.
    ceiling : array (n_voxels,) or float
        Noise ceiling as a fraction.
    score_unit : {"r", "r2", "ev"}
        Metric of the score; ``"r2"`` and ``"ev"`` are both shares of variance.
    ceiling_unit : {"r", "r2"}
        Unit of the ceiling.
    floor : float, optional
        Voxels whose ceiling is below it become NaN, since dividing by a ceiling near 0 blows noise up.
        Default 0.1 in unit "r" and 0.01 in unit "r2" (the same voxels).
    clip : bool
        Clip the result to at most 1. Off by default: values above 1 occur by chance, and clipping biases
        means.

    Returns
    -------
    array like ``score``, float64

    Raises
    ------
    ValueError
        A correlation against a variance ceiling or the reverse, a ceiling in percent, correlations outside
        [-1, 1], shapes that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> normalise(np.array([0.4, 0.1]), np.array([0.8, 0.05]), score_unit="r", ceiling_unit="r")
    array([0.5, nan])
    """
    metric = check_unit("score_unit", score_unit, ("r", "r2", "ev"))
    unit = check_unit("ceiling_unit", ceiling_unit)
    if (metric == "r") != (unit == "r"):
        other = "r" if unit == "r2" else "r2"
        raise DataError(
            f"a score in unit {metric!r} cannot be divided by a ceiling in unit {unit!r} "
            f"({'share of variance' if unit == 'r2' else 'correlation'}); convert the ceiling with "
            f"convert_ceiling(ceiling, from_unit={unit!r}, to_unit={other!r}) "
            f"or make it with noise_ceiling(..., unit={other!r})."
        )
    ceiling = match_voxels(score, ceiling, ("score", "ceiling"))
    values, limit = as_floats(score, "score"), _check_ceiling(ceiling)
    if limit.ndim > 1 or (limit.ndim == 1 and (values.ndim == 0 or values.shape[-1] != limit.shape[0])):
        raise DataError(
            f"score has shape {values.shape} and ceiling {limit.shape}; the last axis of the score must be "
            "the voxels of the ceiling."
        )
    if metric == "r" and np.any(np.abs(values) > 1.0 + 1e-6):
        raise DataError(f"a correlation of {values.flat[np.nanargmax(np.abs(values))]:g} is outside [-1, 1].")
    least = (0.1 if unit == "r" else 0.01) if floor is None else float(floor)
    if not 0 < least <= 1:
        raise DataError(f"floor={floor!r} is not legal; give a fraction in (0, 1].")
    out = np.asarray(values / np.where(limit >= least, limit, np.nan))
    return np.minimum(out, 1.0) if clip else out
