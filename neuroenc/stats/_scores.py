"""Scores of measured against predicted responses, and their share of the noise ceiling."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc._core.memory import voxel_blocks
from neuroenc.stats._blocks import MAX_MEMORY, Floats, as_floats, as_pair, cached, check_metric, load_pair
from neuroenc.stats._labels import match_voxels


def score(y: Any, yhat: Any, metric: str = "r", *, max_memory: int | str = MAX_MEMORY) -> Floats:
    r"""Score of predictions per voxel: correlation ``"r"``, determination ``"r2"`` or explained variance ``"ev"``.

    ========  ==========================================  ================  =========================
    metric    formula                                     range             blind to
    ========  ==========================================  ================  =========================
    ``r``     :math:`cov(y,\hat y)/(s_y s_{\hat y})`      [-1, 1]           offset and gain of yhat
    ``ev``    :math:`1 - Var(y-\hat y)/Var(y)`            (-inf, 1]         offset of yhat
    ``r2``    :math:`1 - SSE/SST`                         (-inf, 1]         nothing
    ========  ==========================================  ================  =========================

    ``r2 <= ev <= r**2`` holds for every prediction; all three agree (r squared) for an ordinary least-squares
    fit scored on its own training samples. ``r`` is a correlation, ``r2`` and ``ev`` are shares of variance:
    compare each with a ceiling of its own unit (`noise_ceiling`).

    Parameters
    ----------
    y, yhat : array (n_samples, n_voxels) or (n_samples,)
        Measured and predicted responses in the same unit. DataArrays are matched by their labels, or refused; plain
        arrays must be in one order. Sums run in float64 whatever the dtype.
        A NaN in either array drops that sample for that voxel only. Lazy arrays (memmap, dask, HDF5) are
        read one block of voxels at a time.
    metric : {"r", "r2", "ev"}
        Which score.
    max_memory : int or str
        Bytes ("1GB") that the working copies may take.

    Returns
    -------
    array (n_voxels,), float64, no unit
        NaN where undefined: fewer than two samples left, an infinite value, constant ``y``, and for ``r``
        also constant ``yhat``. Constant means a spread below the rounding of the stored values.

    Raises
    ------
    ValueError
        Unknown metric, shapes that differ, fewer than two samples, values that are not real numbers.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.array([[1.0, 0.0], [2.0, 1.0], [3.0, 0.0]])
    >>> score(y, 2 * y + 1, "r")
    array([1., 1.])
    >>> score(y, y + 1, "r2"), score(y, y + 1, "ev")
    (array([-0.5, -3.5]), array([1., 1.]))
    """
    metric = check_metric(metric)
    y2, p2, shape = as_pair(y, yhat)
    n_samples, n_voxels = y2.shape
    out = np.empty(n_voxels)
    for columns in voxel_blocks(n_voxels, 40 * n_samples, max_memory, most=cached(n_samples, 4)):
        out[columns] = load_pair(y2, p2, columns, metric).score(metric)
    return out.reshape(shape)


def pearson_r(y: Any, yhat: Any, *, max_memory: int | str = MAX_MEMORY) -> Floats:
    r"""Pearson correlation per voxel, blind to offset and gain of the prediction.

    .. math:: r = \frac{\sum_i (y_i - \bar y)(\hat y_i - \bar{\hat y})}
                       {\sqrt{\sum_i (y_i - \bar y)^2 \sum_i (\hat y_i - \bar{\hat y})^2}}

    Parameters, missing values and errors as in `score`.

    Returns
    -------
    array (n_voxels,), float64
        In [-1, 1]; NaN where ``y`` or ``yhat`` is constant.

    Examples
    --------
    >>> import numpy as np
    >>> pearson_r(np.array([[1.0], [2.0], [np.nan], [4.0]]), np.array([[3.0], [5.0], [0.0], [9.0]]))
    array([1.])
    """
    return score(y, yhat, "r", max_memory=max_memory)


def r2_score(y: Any, yhat: Any, *, max_memory: int | str = MAX_MEMORY) -> Floats:
    r"""Coefficient of determination per voxel; a wrong mean or gain costs.

    .. math:: R^2 = 1 - \frac{\sum_i (y_i - \hat y_i)^2}{\sum_i (y_i - \bar y)^2}

    The mean in the denominator is that of the scored samples, as in scikit-learn. It can be negative without
    bound, and is not the square of `pearson_r`. Where scikit-learn gives 0 or 1 for constant ``y``, this
    is NaN.

    Parameters, missing values and errors as in `score`.

    Returns
    -------
    array (n_voxels,), float64
        At most 1; NaN where ``y`` is constant.

    Examples
    --------
    >>> import numpy as np
    >>> float(r2_score(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])))
    0.0
    """
    return score(y, yhat, "r2", max_memory=max_memory)


def explained_variance(y: Any, yhat: Any, *, max_memory: int | str = MAX_MEMORY) -> Floats:
    r"""Share of variance explained per voxel; like `r2_score` but a wrong mean costs nothing.

    .. math:: EV = 1 - \frac{Var(y - \hat y)}{Var(y)}

    The ratio does not depend on whether both variances are divided by n or n - 1.
    ``EV - R2 = (mean(yhat) - mean(y))**2 / Var(y)`` with the biased variance.

    Parameters, missing values and errors as in `score`.

    Returns
    -------
    array (n_voxels,), float64
        At most 1; NaN where ``y`` is constant.

    Examples
    --------
    >>> import numpy as np
    >>> float(explained_variance(np.array([1.0, 2.0, 3.0]), np.array([11.0, 12.0, 13.0])))
    1.0
    """
    return score(y, yhat, "ev", max_memory=max_memory)


UNITS = ("r2", "r")
_UNIT_ALIASES = {"correlation": "r", "pearson": "r", "variance": "r2", "percent": "r2", "explained_variance": "r2"}


def check_unit(name: str, unit: object, legal: tuple[str, ...] = UNITS) -> str:
    return one_of(name, unit, legal, aliases=_UNIT_ALIASES)


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
    """Convert a noise ceiling between correlation and share of variance: ``r = sqrt(r2)``.

    Parameters
    ----------
    ceiling : array (n_voxels,)
        Fractions in [0, 1].
    from_unit, to_unit : {"r2", "r"}
        What it is, and what is wanted.

    Returns
    -------
    array (n_voxels,), float64

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
    score: Any, ceiling: Any, *, score_unit: str, ceiling_unit: str, floor: float | None = None, clip: bool = False
) -> Floats:
    """Normalise scores by the noise ceiling: ``score / ceiling``, both in the same unit.

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
