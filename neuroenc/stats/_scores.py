"""Scores of measured against predicted responses, one number per voxel."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc.stats._blocks import MAX_MEMORY, Floats, as_pair, check_metric, load_pair, voxel_blocks

__all__ = ["explained_variance", "pearson_r", "r2_score", "score"]


def score(y: Any, yhat: Any, metric: str = "r", *, max_memory: int | str = MAX_MEMORY) -> Floats:
    r"""One of three scores, per voxel: ``"r"``, ``"r2"`` or ``"ev"``.

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
    for columns in voxel_blocks(n_samples, n_voxels, 5, max_memory, cache=4 * 2**20):
        out[columns] = load_pair(y2, p2, columns, metric).score(metric)
    return out.reshape(shape)


def pearson_r(y: Any, yhat: Any, *, max_memory: int | str = MAX_MEMORY) -> Floats:
    r"""Pearson correlation per voxel, blind to offset and gain of the prediction.

    .. math:: r = \frac{\sum_i (y_i - \bar y)(\hat y_i - \bar{\hat y})}
                       {\sqrt{\sum_i (y_i - \bar y)^2 \sum_i (\hat y_i - \bar{\hat y})^2}}

    Parameters, missing values and errors as in `score`.

    Parameters
    ----------
    y, yhat : array (n_samples, n_voxels) or (n_samples,)
        Measured and predicted responses.
    max_memory : int or str
        Bytes ("1GB") that the working copies may take.

    Returns
    -------
    array (n_voxels,), float64
        In [-1, 1]; NaN where ``y`` or ``yhat`` is constant.

    Raises
    ------
    ValueError
        As `score`.

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

    Parameters
    ----------
    y, yhat : array (n_samples, n_voxels) or (n_samples,)
        Measured and predicted responses, same unit.
    max_memory : int or str
        Bytes ("1GB") that the working copies may take.

    Returns
    -------
    array (n_voxels,), float64
        At most 1; NaN where ``y`` is constant.

    Raises
    ------
    ValueError
        As `score`.

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

    Parameters
    ----------
    y, yhat : array (n_samples, n_voxels) or (n_samples,)
        Measured and predicted responses, same unit.
    max_memory : int or str
        Bytes ("1GB") that the working copies may take.

    Returns
    -------
    array (n_voxels,), float64
        At most 1; NaN where ``y`` is constant.

    Raises
    ------
    ValueError
        As `score`.

    Examples
    --------
    >>> import numpy as np
    >>> float(explained_variance(np.array([1.0, 2.0, 3.0]), np.array([11.0, 12.0, 13.0])))
    1.0
    """
    return score(y, yhat, "ev", max_memory=max_memory)
