"""Principal components and sparse random projections of features, fitted on training rows, as linear maps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError

#: Ways to reduce features, besides none.
REDUCTIONS = ("pca", "projection")


class Reduction(NamedTuple):
    """Reduced features ``(X - mean) @ weights``; ``weights`` (feature, component) may be sparse."""

    mean: np.ndarray
    weights: Any

    def apply(self, X: np.ndarray) -> np.ndarray:
        """Components (n, component) of features (n, feature)."""
        return np.asarray((X - self.mean) @ self.weights).astype(X.dtype, copy=False)


def check_reduction(reduce: str, n_components: int) -> None:
    """Refuse an unknown way or number of components."""
    if reduce:
        one_of("reduce", reduce, REDUCTIONS)
    check_whole("n_components", n_components)


def fit_reduction(
    X: np.ndarray, reduce: str, n_components: int, scaling: tuple[np.ndarray, np.ndarray] | None = None, seed: int = 0
) -> Reduction:
    """Linear map from features to fewer, fitted on these rows.

    Parameters
    ----------
    X : array (n, feature)
    reduce : {"pca", "projection"}
        First principal components (by scikit-learn's randomised solver where they are few), or a sparse random
        projection, which keeps distances and looks at no row.
    n_components : int
        At most the number of features, and of rows less one for components.
    scaling : (mean, s.d.), optional
        Features are standardised by these first.
    seed : int

    References: Halko, Martinsson & Tropp (2011), SIAM Review 53:217; Li, Hastie & Church (2006), KDD.
    """
    check_reduction(reduce, n_components)
    n, p = X.shape
    mean, scale = (X.mean(axis=0, dtype=np.float64), np.ones(p)) if scaling is None else scaling
    scale = np.where(np.isfinite(scale) & (scale > 0), scale, np.inf)
    k = min(n_components, p, n - 1) if reduce == "pca" else min(n_components, p)
    if k < 1:
        raise ConfigError(f"{n} rows of {p} features have no components; at least 2 rows are needed.")
    if reduce == "projection":
        from sklearn.random_projection import SparseRandomProjection

        made = SparseRandomProjection(k, random_state=seed).fit(np.zeros((1, p), np.float32))
        return Reduction(mean, made.components_.multiply(1.0 / scale).T.tocsr())
    from sklearn.decomposition import PCA

    scaled = ((X - mean) / scale).astype(X.dtype, copy=False)
    solver = "randomized" if min(n, p) > 2 * k and min(n, p) > 100 else "full"
    found = PCA(k, svd_solver=solver, random_state=seed).fit(scaled)
    return Reduction(mean + found.mean_ * np.where(np.isinf(scale), 0.0, scale), found.components_.T / scale[:, None])
