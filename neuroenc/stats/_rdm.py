"""Representational dissimilarity matrices of responses, predictions and features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc.stats._blocks import Floats, as_floats, as_real
from neuroenc.stats._labels import labels_of, positions_of

DISTANCES = ("correlation", "cosine", "euclidean", "mahalanobis", "crossnobis")
_CHANNELS = 2**16  # read at once from lazy arrays


def n_conditions(n_pairs: int) -> int:
    """How many conditions an RDM of ``n_pairs`` pairs has: the n of n (n - 1) / 2.

    >>> n_conditions(4186)
    92
    """
    n = round((1 + (1 + 8 * n_pairs) ** 0.5) / 2)
    if n_pairs < 1 or n * (n - 1) // 2 != n_pairs:
        raise DataError(
            f"{n_pairs} pairs are no upper triangle of a square matrix; legal are n (n - 1) / 2: 1, 3, 6, ..."
        )
    return n


def square_rdm(rdm: Any) -> Floats:
    """Convert an RDM from its pairs to the square matrix, or back.

    Pairs are in row order of the upper triangle, (0, 1), (0, 2), ..., (1, 2), ..., as in scipy and rsatoolbox.

    Parameters
    ----------
    rdm : array (..., n_pairs) or (..., n, n)
        The last two axes are read as a square where they are equal and the diagonal is 0 or NaN.

    Returns
    -------
    array (..., n, n) or (..., n_pairs), float64

    Raises
    ------
    ValueError
        Neither pairs nor a square; a square that is not symmetric.

    Examples
    --------
    >>> square_rdm([1.0, 2.0, 3.0])
    array([[0., 1., 2.],
           [1., 0., 3.],
           [2., 3., 0.]])
    >>> square_rdm(square_rdm([1.0, 2.0, 3.0]))
    array([1., 2., 3.])
    """
    values = as_floats(rdm, "rdm")
    if _is_square(values):
        if not np.allclose(values, np.swapaxes(values, -1, -2), equal_nan=True):
            raise DataError("the RDM is a square that is not symmetric; give (m + m.T) / 2 if that is what is meant.")
        rows, columns = np.triu_indices(values.shape[-1], 1)
        return values[..., rows, columns]
    if values.ndim < 1:
        raise DataError("an RDM is an array of pairs or a square; found a number.")
    n = n_conditions(values.shape[-1])
    rows, columns = np.triu_indices(n, 1)
    out = np.zeros((*values.shape[:-1], n, n))
    out[..., rows, columns] = out[..., columns, rows] = values
    return out


def _is_square(values: Floats) -> bool:
    if values.ndim < 2 or values.shape[-1] != values.shape[-2] or values.shape[-1] < 2:
        return False
    diagonal = np.diagonal(values, axis1=-2, axis2=-1)
    return bool(((diagonal == 0) | np.isnan(diagonal)).all())


def as_pairs(rdms: Any, name: str, like: NDArray[Any] | None = None) -> tuple[Floats, NDArray[Any] | None]:
    """RDMs as (n_rdms, n_pairs) float64, from one or several, as pairs or squares, and the labels of their conditions.

    Labelled squares are brought into the order of the labels ``like``, or of the first of them.
    """
    if isinstance(rdms, (list, tuple)) and any(_conditions(x, -1) is not None for x in rdms):
        parts = []
        for k, x in enumerate(rdms):
            part, own = as_pairs(x, f"{name}[{k}]", like)
            like = own if like is None else like
            parts.append(part)
        sizes = sorted({part.shape[1] for part in parts})
        if len(sizes) > 1:
            raise DataError(f"{name} hold RDMs of {n_conditions(sizes[0])} to {n_conditions(sizes[-1])} conditions.")
        return np.concatenate(parts), like
    values = as_floats(rdms, name)
    rows, columns = (_conditions(rdms, axis) for axis in (-2, -1)) if values.ndim > 1 else (None, None)
    labels = rows if columns is None else columns
    if values.ndim > 1 and values.shape[-1] == values.shape[-2] and labels is not None:
        order = np.arange(values.shape[-1])
        if rows is not None:
            order = positions_of(labels, rows, "condition", (f"columns of {name}", "its rows"))
        # Squares are told from pairs by their diagonal, which stands where rows and columns are in one order.
        turned = values[..., order, :]
        if _is_square(turned):
            if like is not None:
                order = positions_of(like, labels, "condition", ("the other RDMs", name))
                turned, labels = turned[..., order, :][..., order], like
            values = square_rdm(turned)
        else:
            labels = None
    else:
        labels = None
        if _is_square(values):
            values = square_rdm(values)
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2:
        raise DataError(f"{name} has shape {values.shape}; legal is (n_pairs,), (n_rdms, n_pairs) or squares of them.")
    n_conditions(values.shape[1])
    return values, labels


def _conditions(rdm: Any, axis: int) -> NDArray[Any] | None:
    """Labels of rows (-2) or columns (-1) of a square, where it has them."""
    if np.ndim(rdm) < 2 or not (hasattr(rdm, "dims") or hasattr(rdm, "iloc")):
        return None
    found = labels_of(rdm, np.ndim(rdm) + axis, ("condition", "stimulus"))
    dim = str(rdm.dims[axis]) if hasattr(rdm, "dims") else ""
    return found.get(dim, next(iter(found.values()), None))


def _gram(patterns: Any, centre: str = "") -> Floats:
    """Inner products of the rows; float64 sums over blocks of channels.

    ``centre`` takes away the mean of every row ("rows") or channel ("channels", which leaves distances as they are and
    keeps their digits where patterns stand far from 0).
    """
    n, p = patterns.shape
    total, sums = np.zeros((n, n)), np.zeros(n)
    for start in range(0, p, _CHANNELS) if centre == "rows" else ():
        sums += np.asarray(patterns[:, start : start + _CHANNELS], dtype=np.float64).sum(axis=1)
    for start in range(0, p, _CHANNELS):
        part = np.asarray(patterns[:, start : start + _CHANNELS], dtype=np.float64)
        if centre == "rows":
            part = part - sums[:, None] / p
        elif centre == "channels":
            part = part - part.mean(axis=0)
        total += part @ part.T
    return total


def _whiten(patterns: Any, precision: Any) -> Floats:
    values = np.asarray(patterns, dtype=np.float64)
    matrix = as_floats(precision, "precision")
    if matrix.shape == (values.shape[1],):
        if (matrix < 0).any():
            raise DataError("precision has negative values; give 1 / noise variance of every channel.")
        return values * np.sqrt(matrix)
    if matrix.shape != (values.shape[1],) * 2 or not np.allclose(matrix, matrix.T):
        raise DataError(
            f"precision has shape {matrix.shape}; legal is ({values.shape[1]},) or a symmetric "
            f"({values.shape[1]}, {values.shape[1]}): the inverse of the noise covariance of the channels."
        )
    s, u = np.linalg.eigh(matrix)
    if s[0] < -1e-8 * max(s[-1], 1.0):
        raise DataError(f"precision has a negative eigenvalue ({s[0]:g}); it must be an inverse covariance.")
    return values @ (u * np.sqrt(np.maximum(s, 0.0)))


def rdm(patterns: Any, metric: str = "correlation", *, precision: Any = None, folds: Any = None) -> Floats:
    r"""Representational dissimilarity matrix (RDM): the dissimilarity of every pair of conditions.

    ===============  =========================================================================
    metric           dissimilarity of rows x, y with p channels
    ===============  =========================================================================
    ``correlation``  1 - Pearson correlation over channels
    ``cosine``       1 - cosine of the angle
    ``euclidean``    :math:`\lVert x - y \rVert^2 / p` (squared, a channel; rsatoolbox's)
    ``mahalanobis``  :math:`(x - y)^T \Sigma^{-1} (x - y) / p`
    ``crossnobis``   the same between independent folds, :math:`(x_a - y_a)^T \Sigma^{-1} (x_b - y_b) / p`
                     over all pairs of folds a, b: unbiased, and so below 0 half of the time for equal patterns
    ===============  =========================================================================

    Noise in the patterns makes every distance but the last one larger than it is.

    Parameters
    ----------
    patterns : array (n_conditions, n_channels)
        Responses, predicted responses or features: one row for each condition (stimulus). For ``"crossnobis"``
        (n_measurements, n_channels), the measurements of a condition and fold side by side with their labels.
    metric : {"correlation", "cosine", "euclidean", "mahalanobis", "crossnobis"}
    precision : array (n_channels,) or (n_channels, n_channels), optional
        Inverse noise covariance for ``"mahalanobis"`` and ``"crossnobis"``; identity where not given (crossnobis).
    folds : pair of arrays (n_measurements,), optional
        For ``"crossnobis"``: the condition and the fold (run, session) of every row. Every condition needs a row in
        every fold.

    Returns
    -------
    array (n_pairs,), float64
        Upper triangle in row order; conditions of ``"crossnobis"`` are sorted. NaN where a row is constant
        (correlation) or zero (cosine).

    Raises
    ------
    ValueError
        Fewer than two conditions, NaN in patterns, an unknown metric, folds that do not hold every condition.

    References
    ----------
    Kriegeskorte, Mur & Bandettini (2008), Front. Syst. Neurosci. 2:4. Walther et al. (2016), NeuroImage 137:188.

    Examples
    --------
    >>> import numpy as np
    >>> rdm(np.array([[0.0, 1, 2], [0, 2, 4], [2, 1, 0]])).round(6)
    array([0., 2., 2.])
    """
    metric = one_of("metric", metric, DISTANCES, aliases={"pearson": "correlation", "sqeuclidean": "euclidean"})
    values = as_real(patterns, "patterns")
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 1:
        raise DataError(f"patterns have shape {tuple(values.shape)}; legal is (n_conditions of 2 or more, n_channels).")
    if metric == "crossnobis":
        if folds is None:
            raise DataError("metric='crossnobis' needs folds=(condition of every row, fold of every row).")
        whitened = _centred(values) if precision is None else _whiten(_centred(values), precision)
        return _finite(_crossnobis(whitened, *folds), "patterns")
    if metric == "mahalanobis":
        if precision is None:
            raise DataError("metric='mahalanobis' needs precision: the inverse noise covariance of the channels.")
        values = _whiten(_centred(values), precision)
    products = _gram(values, {"correlation": "rows", "cosine": ""}.get(metric, "channels"))
    _finite(products, "patterns")
    rows, columns = np.triu_indices(len(products), 1)
    square = np.diag(products)
    if metric in ("correlation", "cosine"):
        # A spread below the rounding of the sums is a constant row.
        raw = np.einsum("ij,ij->i", *(np.asarray(values, dtype=np.float64),) * 2) if metric == "correlation" else square
        square = np.where(square > 1e-24 * raw, square, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            norm = np.sqrt(square)
            return np.clip(1.0 - products[rows, columns] / (norm[rows] * norm[columns]), 0.0, 2.0)
    out: Floats = np.maximum(square[rows] + square[columns] - 2.0 * products[rows, columns], 0.0) / values.shape[1]
    return out


def _centred(values: Any) -> Floats:
    """Without the mean of every channel, on which distances between rows do not depend."""
    dense = np.asarray(values, dtype=np.float64)
    return np.asarray(dense - dense.mean(axis=0))


def _finite(values: Floats, name: str) -> Floats:
    if not np.isfinite(values).all():
        raise DataError(f"{name} hold NaN or infinity; drop those channels (voxels) or conditions first.")
    return values


def _crossnobis(values: Floats, condition: Any, fold: Any) -> Floats:
    if np.ndim(condition) != 1 or np.ndim(fold) != 1:
        raise DataError("crossnobis needs folds=(condition, fold): two sequences of a label for each row of patterns.")
    names, c = np.unique(np.asarray(condition), return_inverse=True)
    runs, f = np.unique(np.asarray(fold), return_inverse=True)
    if len(c) != len(values) or len(f) != len(values):
        raise DataError(f"folds have {len(c)} and {len(f)} labels for {len(values)} rows of patterns.")
    if len(runs) < 2:
        raise DataError("crossnobis needs at least two folds.")
    count: NDArray[np.intp] = np.zeros((len(runs), len(names)), dtype=np.intp)
    np.add.at(count, (f, c), 1)
    if (count == 0).any():
        run, name = np.argwhere(count == 0)[0]
        raise DataError(
            f"condition {names[name]!r} has no row in fold {runs[run]!r} (and {int((count == 0).sum()) - 1} more such "
            "gaps); crossnobis needs every condition in every fold."
        )
    means = np.zeros((len(runs), len(names), values.shape[1]))
    np.add.at(means, (f, c), values)
    means /= count[:, :, None]
    # Sum over ordered pairs of different folds = products of the sums less the products within folds.
    total = means.sum(axis=0)
    products = total @ total.T - np.einsum("fip,fjp->ij", means, means, optimize=True)
    products /= len(runs) * (len(runs) - 1)
    rows, columns = np.triu_indices(len(names), 1)
    square = np.diag(products)
    out: Floats = (square[rows] + square[columns] - 2.0 * products[rows, columns]) / values.shape[1]
    return out
