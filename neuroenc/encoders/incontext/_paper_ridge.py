"""The ridge baseline as the authors of BraInCoRL released it."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.utils.validation import validate_data

from neuroenc import stats
from neuroenc._core.errors import DataError
from neuroenc.encoders._base import LinearEncoder, check_alphas
from neuroenc.encoders._inputs import check_responses, raise_nan
from neuroenc.encoders._labels import column_block, features_matrix

__all__ = ["PaperRidge"]

_BLOCK = 2048


class PaperRidge(LinearEncoder):
    r"""Ridge as in the released evaluation of BraInCoRL, step by step.

    Rows are cut into ``cv`` consecutive folds of ``n // cv``; rows left over stand in every training set and in no
    test set. The intercept is a column of ones and is penalised like every weight:
    :math:`\omega = (A^T A + \lambda I)^{-1} A^T y`, ``A = [X, 1]``. Each voxel takes the penalty of the best mean
    explained variance, and its weights are the **mean over folds** at that penalty: there is no fit to all rows.

    `RidgeEncoder` is the better baseline; this one is for comparison with published figures.

    Parameters
    ----------
    alphas : array-like (a,), optional
        By default 1e-3 to 1e5 in decades.
    cv : int
        Folds.

    Attributes
    ----------
    coef_ : ndarray (feature, voxel)
    intercept_ : ndarray (voxel,)
    alpha_ : ndarray (voxel,)
    cv_scores_ : ndarray (a, voxel)
        Mean explained variance over folds.

    References
    ----------
    Yu et al. (2025), Meta-learning an in-context transformer model of human higher visual cortex, NeurIPS.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((100, 5)), rng.standard_normal((5, 2))
    >>> bool(np.abs(PaperRidge().fit(X, X @ W).coef_ - W).max() < 0.01)
    True
    """

    def __init__(self, alphas: Any = None, *, cv: int = 5) -> None:
        self.alphas = alphas
        self.cv = cv

    def fit(self, X: Any, y: Any) -> Self:
        """Fit every fold and average.

        Parameters
        ----------
        X : array (n, feature)
        y : array (n, voxel) or (n,)

        Returns
        -------
        self

        Raises
        ------
        DataError
            Fewer than two rows a fold (explained variance needs two), or NaN responses.
        """
        values = validate_data(self, features_matrix(X), dtype=[np.float32, np.float64], ensure_min_samples=2)
        Y, dtype = check_responses(X, y, values)
        self._remember(X, y)
        n, p = values.shape
        size = n // self.cv
        if self.cv < 2 or size < 2:
            raise DataError(
                f"n_samples={n} make {self.cv} folds of {size}; each needs 2 rows or more. "
                "Next step: fewer folds, or more stimuli."
            )
        self.alphas_ = check_alphas(np.logspace(-3, 5, 9) if self.alphas is None else self.alphas)
        A = np.column_stack([values.astype(np.float64), np.ones(n)])
        folds = [np.arange(f * size, (f + 1) * size) for f in range(self.cv)]
        bases = [_basis(np.delete(A, test, axis=0)) for test in folds]
        v = Y.shape[1]
        weights, self.alpha_, self.cv_scores_ = np.empty((p + 1, v)), np.empty(v), np.empty((len(self.alphas_), v))
        for start in range(0, v, _BLOCK):
            block = slice(start, min(start + _BLOCK, v))
            responses = np.asarray(column_block(Y, block), dtype=np.float64)
            if not np.isfinite(responses).all():
                raise_nan(Y, self._voxels_)
            weights[:, block], self.alpha_[block], self.cv_scores_[:, block] = self._fit_block(
                A, responses, folds, bases
            )
        self.coef_, self.intercept_ = weights[:-1].astype(dtype), weights[-1].astype(dtype)
        return self

    def _fit_block(self, A: Any, Y: Any, folds: Any, bases: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        projected = [
            (vectors, values, vectors.T @ (np.delete(A, test, axis=0).T @ np.delete(Y, test, axis=0)))
            for test, (values, vectors) in zip(folds, bases)
        ]
        scores = np.zeros((len(self.alphas_), Y.shape[1]))
        for test, (vectors, values, z) in zip(folds, projected):
            rotated = A[test] @ vectors
            for a, alpha in enumerate(self.alphas_):
                predicted = rotated @ (z / (values + alpha)[:, None])
                scores[a] += stats.explained_variance(Y[test], predicted)
        scores /= len(folds)
        # A voxel constant within a fold has no score there: all penalties are as good, and the strongest is taken.
        usable = np.where(np.isnan(scores), -np.inf, scores)
        usable[-1, np.isinf(usable).all(axis=0)] = 0.0
        alpha = self.alphas_[np.argmax(usable, axis=0)]
        total = sum(vectors @ (z / (values[:, None] + alpha)) for vectors, values, z in projected)
        return np.asarray(total) / len(folds), alpha, scores


def _basis(A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (r,) and vectors (p + 1, r) of ``A'A``, without its null space."""
    _, singular, vectors = np.linalg.svd(A, full_matrices=False)
    return singular**2, vectors.T
