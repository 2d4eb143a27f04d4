"""False discovery rate over voxels."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import false_discovery_control

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc.stats._blocks import Floats, as_floats


def fdr(p: Any, *, method: str = "bh") -> Floats:
    r"""Benjamini-Hochberg or Benjamini-Yekutieli q-values (adjusted p-values).

    .. math:: q_{(i)} = \min_{j \ge i} \min\left(1, \frac{m\,c}{j} p_{(j)}\right)

    with c = 1 for Benjamini-Hochberg and :math:`c = \sum_{k=1}^m 1/k` for Benjamini-Yekutieli. Voxels with
    ``q <= alpha`` have an expected share of false discoveries of at most alpha.

    Parameters
    ----------
    p : array of any shape
        p-values in [0, 1]; all of them are one family. NaN stays NaN and is not counted in m.
    method : {"bh", "by"}
        ``"bh"`` is valid for independent or positively dependent tests, ``"by"`` under any dependence.

    Returns
    -------
    array of the same shape, float64
        q-values in [0, 1].

    Raises
    ------
    ValueError
        p-values outside [0, 1] or an unknown method.

    References
    ----------
    Benjamini & Hochberg (1995), J. R. Stat. Soc. B 57:289. Benjamini & Yekutieli (2001), Ann. Stat. 29:1165.

    Examples
    --------
    >>> import numpy as np
    >>> fdr(np.array([0.01, np.nan, 0.04, 0.03, 0.5]))
    array([0.04      ,        nan, 0.05333333, 0.05333333, 0.5       ])
    """
    method = one_of("method", method, ("bh", "by"), aliases={"benjamini-hochberg": "bh", "benjamini-yekutieli": "by"})
    values = as_floats(p, "p")
    keep = ~np.isnan(values)
    family = values[keep]
    outside = (family < 0) | (family > 1)
    if outside.any():
        raise DataError(
            f"{int(outside.sum())} of {family.size} p-values lie outside [0, 1] "
            f"(from {family.min():g} to {family.max():g}); give p-values, not statistics."
        )
    q = np.full(values.shape, np.nan)
    if family.size:
        q[keep] = false_discovery_control(family, method=method)
    return q
