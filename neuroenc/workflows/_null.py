"""Permutation p-values of cross-validated accuracy, with the encoder fitted anew to every permutation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from neuroenc import stats
from neuroenc._util.progress import progress
from neuroenc.encoders._gram import dual_fold, row_gram

__all__ = ["cross_validated_p"]


def _orders(groups: np.ndarray | None, n: int, n_permutations: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for _ in range(n_permutations):
        if groups is None:
            yield rng.permutation(n)
            continue
        order = np.arange(n)
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            order[rows] = rng.permutation(rows)
        yield order


def cross_validated_p(
    designs: list[np.ndarray],
    responses: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
    alphas: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    n_permutations: int = 1000,
    seed: int = 0,
    show: bool = False,
) -> np.ndarray:
    r"""Chance of a correlation this high when responses do not depend on features.

    Predictions of one fold are fitted to the responses of the others. Shuffling the responses against fixed
    predictions ignores that, and its null is too narrow: for ridge with hat matrix H the true variance of
    :math:`y'Hy` is up to twice :math:`\lVert Hy \rVert^2`. Here every permutation is fitted and predicted anew,
    with the penalties that the data chose.

    Parameters
    ----------
    designs : list of array (n, p)
        Features of all rows as each fold sees them (scaled by its training rows).
    responses : array (n, v)
    folds : list of (train, test)
        Together they test every row once.
    alphas : array (fold, v)
        Penalty of each fold and voxel.
    groups : array (n,), optional
        Shuffle within these (runs) only.
    n_permutations, seed : int
    show : bool

    Returns
    -------
    array (v,)
        ``(1 + number of permutations with r at least as high) / (1 + n_permutations)``.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X, noise = rng.standard_normal((40, 3)), rng.standard_normal((40, 1))
    >>> folds = [(np.arange(20), np.arange(20, 40)), (np.arange(20, 40), np.arange(20))]
    >>> y = np.concatenate([X[:, :1] + noise, noise], axis=1)
    >>> p = cross_validated_p([X, X], y, folds, np.ones((2, 2)), n_permutations=99)
    >>> bool(p[0] < 0.05 < p[1])
    True
    """
    n = len(responses)
    y = np.asarray(responses, dtype=np.float64)
    bases = []
    for X, (train, test) in zip(designs, folds):
        X = np.asarray(X, dtype=np.float64)
        bases.append(dual_fold(row_gram(X - X[train].mean(axis=0)), train, test, True, np.float64))
    # (r, v): one penalty for each voxel.
    shrink = [1.0 / (basis.values[:, None] + alpha) for basis, alpha in zip(bases, alphas)]

    def accuracy(values: np.ndarray) -> np.ndarray:
        predicted = np.empty_like(values)
        for basis, weight in zip(bases, shrink):
            inner = values[basis.train]
            mean = inner.mean(axis=0)
            predicted[basis.held_out] = basis.test @ (weight * (basis.vectors.T @ (inner - mean))) + mean
        return np.nan_to_num(stats.pearson_r(values, predicted), nan=-1.0)

    measured = accuracy(y)
    at_least = np.zeros(y.shape[1])
    orders = _orders(groups, n, n_permutations, seed)
    for order in progress(orders, desc="permutations", total=n_permutations, show=show):
        at_least += accuracy(y[order]) >= measured - 1e-12
    return (1 + at_least) / (1 + n_permutations)
