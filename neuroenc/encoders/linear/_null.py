r"""Permutation p-values of cross-validated accuracy: every permutation predicts as the encoder would, fitted anew.

A cross-validated ridge prediction of fold k is ``B diag(1 / (s + alpha)) z + mean``, see `neuroenc.encoders.linear`,
and the correlation needs three sums over each fold only: of ``y * yhat``, of ``yhat`` and of ``yhat ** 2``. All three
follow from ``z`` and ``c = B'y``, so that no permutation forms a prediction, and, with more training rows than
features, nothing is larger than (feature, feature).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError
from neuroenc._core.progress import progress
from neuroenc.encoders._labels import feature_scaling
from neuroenc.encoders.linear._solvers import dual_fold, gram, is_partition, primal_fold, row_gram

_NULLS = ("auto", "refit", "shared")
_SHARED_ROWS = 1000
# Errors of a shared null are shared too: at p = 0.01 this many permutations leave one of a tenth.
_SHARED_PERMUTATIONS = 10_000
_BLOCK_BYTES = 2**26
Rows = np.ndarray


class _Part(NamedTuple):
    """What the responses (row, voxel) of one fold come down to."""

    z: np.ndarray  # (r, v), training rows in the eigenbasis
    c: np.ndarray  # (r, v), test rows
    mean: np.ndarray  # (v,), of the training rows
    total: np.ndarray  # (v,), sum over the test rows


class _Folds:
    """Bases of all folds of one design, and the correlations that follow from them."""

    def __init__(self, X: Any, folds: Sequence[tuple[Rows, Rows]], scale: bool) -> None:
        own = [np.asarray(part, dtype=np.float64) for part in X] if isinstance(X, (list, tuple)) else []
        self.shared = not own
        if own and len(own) != len(folds):
            raise ConfigError(f"{len(own)} feature matrices for {len(folds)} folds; expected one, or one a fold.")
        self.n, p = (own[0] if own else X).shape
        tested = np.concatenate([test for _, test in folds])
        if len(tested) != self.n or len(np.unique(tested)) != self.n:
            raise ConfigError(
                f"folds test {len(np.unique(tested))} of {self.n} rows, {len(tested)} in all; expected every row once."
            )
        self.folds = folds
        # Features of a fold's own (components of its training rows) have no sums over all folds.
        self.complete = is_partition(folds, self.n) and self.shared
        self.primal = [len(train) >= p for train, _ in folds]
        if self.shared:
            own = [np.asarray(X, dtype=np.float64) - X.mean(axis=0, dtype=np.float64)] * len(folds)
        self.X = own if any(self.primal) else None
        total = gram(own[0]) if any(self.primal) and self.complete else None
        self.bases = []
        for X, (train, test), primal in zip(own, folds, self.primal):
            weight = 1.0 / feature_scaling(X[train])[1] if scale else None
            if primal:
                basis = primal_fold(X, train, test, total, weight, True)
            else:
                centred = X - X[train].mean(axis=0)
                scaled = centred if weight is None else centred * weight
                basis = dual_fold(row_gram(scaled), train, test, True, np.float64)
            self.bases.append(basis)

    def parts(self, y: np.ndarray) -> list[_Part]:
        """Of responses (n, v) whose columns have mean 0."""
        moments = {
            k: self.X[k][test].T @ y[test]
            for k, (_, test) in enumerate(self.folds)
            if self.X is not None and (self.primal[k] or self.complete)
        }
        everything = sum(moments.values()) if self.complete and moments else None
        found = []
        for k, ((train, test), basis) in enumerate(zip(self.folds, self.bases)):
            inner = y[train]
            mean, total = inner.mean(axis=0), y[test].sum(axis=0)
            if not self.primal[k]:
                found.append(_Part(basis.vectors.T @ (inner - mean), basis.test.T @ y[test], mean, total))
                continue
            assert self.X is not None
            own = self.X[k][train].T @ inner if everything is None else everything - moments[k]
            own = own - np.outer(basis.train_mean, len(train) * mean)
            held = moments[k] - np.outer(basis.train_mean, total)
            found.append(_Part(basis.vectors.T @ own, basis.vectors.T @ held, mean, total))
        return found

    def sums(self, k: int, part: _Part, alpha: np.ndarray) -> np.ndarray:
        """Sums (3, v) over the test rows of fold k: of y * yhat, yhat and yhat ** 2, with a penalty (v,) or (1,)."""
        basis, rows = self.bases[k], len(self.folds[k][1])
        weighted = part.z / (basis.values[:, None] + alpha)
        shift = basis.test_mean @ weighted
        predicted = basis.test @ weighted
        squares = np.einsum("rv,rv->v", predicted, predicted)
        return np.stack(
            [
                np.einsum("rv,rv->v", part.c, weighted) + part.mean * part.total,
                rows * (shift + part.mean),
                squares + rows * part.mean * (2 * shift + part.mean),
            ]
        )

    def accuracy(self, y: np.ndarray, alphas: np.ndarray) -> np.ndarray:
        """Correlations (v,) of responses (n, v), mean 0, with predictions by ``alphas`` (fold, v)."""
        sums = np.sum([self.sums(k, part, alphas[k]) for k, part in enumerate(self.parts(y))], axis=0)
        return _correlation(sums, np.einsum("nv,nv->v", y, y), self.n)


def _one_over(scale: np.ndarray) -> np.ndarray:
    return np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)


def _correlation(sums: np.ndarray, square: np.ndarray | float, n: int) -> np.ndarray:
    """From sums (3, ...) over all rows; -1 where it is not defined. Responses have mean 0."""
    cross, total, squares = sums
    spread = squares - total**2 / n
    known = (spread > 1e-13 * squares) & (np.asarray(square) > 0)
    scale = np.sqrt(np.where(known, spread * square, 1.0))
    return np.where(known, np.clip(cross / scale, -1.0, 1.0), -1.0)


def _orders(groups: np.ndarray, n_permutations: int, seed: int, shift: bool = False) -> Iterator[np.ndarray]:
    """Orders of the rows in which every group keeps its own, shuffled or rotated."""
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    for _ in range(n_permutations):
        order = np.empty(len(groups), dtype=np.intp)
        for inside in rows:
            order[inside] = np.roll(inside, rng.integers(len(inside))) if shift else rng.permutation(inside)
        yield order


def _standardised(y: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1 inside every group; constant ones become 0."""
    y = y.copy()
    for group in np.unique(groups):
        inside = groups == group
        part = y[inside] - y[inside].mean(axis=0)
        y[inside] = part * _one_over(part.std(axis=0))
    return y


def _normal_scores(groups: np.ndarray) -> np.ndarray:
    """(n,): quantiles of the normal distribution, those of its size in every group."""
    scores = np.empty(len(groups))
    for group in np.unique(groups):
        inside = np.flatnonzero(groups == group)
        scores[inside] = ndtri((np.arange(len(inside)) + 0.5) / len(inside))
    return _standardised(scores[:, None], groups)[:, 0]


def _heavy(y: np.ndarray) -> np.ndarray:
    """Voxels whose own tails change the null: the kurtosis enters its variance divided by the number of rows."""
    square = y * y
    return np.einsum("nv,nv->v", square, square) > len(y) * (3 + len(y) / 50)


def cross_validated_p(
    features: Any,
    responses: np.ndarray,
    folds: Sequence[tuple[Rows, Rows]],
    alphas: np.ndarray,
    *,
    scale: bool = False,
    groups: np.ndarray | None = None,
    shift: bool = False,
    n_permutations: int = 1000,
    null: str = "auto",
    seed: int = 0,
    show: bool = False,
) -> tuple[np.ndarray, dict[str, Any]]:
    r"""Chance of a correlation this high when responses do not depend on features.

    Predictions of one fold are fitted to the responses of the others. Shuffling the responses against fixed
    predictions ignores that, and its null is too narrow: for ridge with hat matrix H the true variance of
    :math:`y'Hy` is up to twice :math:`\lVert Hy \rVert^2`. Here every permutation is predicted as if the encoder had
    been fitted to it, with the penalties that the data chose. Penalties chosen by fold and voxel make the test a little
    strict (2 to 4 % of silent voxels pass p < .05): they are small where the training rows agree by chance, and the
    fold that was left out does not. One penalty for all folds has seen each of them, and lets 8 % pass.

    Parameters
    ----------
    features : array (n, p), or a list of one a fold
        Of all rows; features of a fold's own are such as components of its training rows.
    responses : array (n, v)
    folds : list of (train, test)
        Together they test every row once.
    alphas : array (fold, v)
        Penalty of each fold and voxel.
    scale : bool
        Features are scaled to unit variance over each fold's training rows.
    groups : array (n,), optional
        Shuffle within these (runs) only.
    shift : bool
        Rotate the responses of each group in time by a random number of rows instead of shuffling them, so that each
        voxel keeps its autocorrelation; rows of a group stand in order of time. For time series, whose volumes are not
        exchangeable. Responses are refitted, voxel by voxel.
    n_permutations : int
    null : {"auto", "refit", "shared"}
        ``"refit"`` permutes the responses of every voxel. ``"shared"`` permutes one set of normal scores, the same
        for all voxels with the same penalties: the test rows of a fold never predict themselves, so that the
        distribution of responses enters the variance of the null by its excess kurtosis over n only, and the cost
        of a permutation does not grow with the number of voxels; there are at least 10,000. With ``groups`` it tests
        the correlation of responses standardised within each group. ``"auto"`` shares from 1000 rows on, except for
        voxels with a kurtosis above 3 + n / 50.
    seed : int
    show : bool

    Returns
    -------
    p : array (v,)
        ``(1 + number of permutations with r at least as high) / (1 + number of permutations)``.
    facts : dict
        ``null``, ``n_permutations`` and ``n_refitted``, the number of voxels whose own responses were permuted.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X, noise = rng.standard_normal((40, 3)), rng.standard_normal((40, 1))
    >>> folds = [(np.arange(20), np.arange(20, 40)), (np.arange(20, 40), np.arange(20))]
    >>> y = np.concatenate([X[:, :1] + noise, noise], axis=1)
    >>> p, _ = cross_validated_p(X, y, folds, np.ones((2, 2)), n_permutations=99)
    >>> bool(p[0] < 0.05 < p[1])
    True
    """
    one_of("null", null, _NULLS)
    if shift and null == "shared":
        raise ConfigError("null='shared' shuffles normal scores, without autocorrelation. Next step: null='refit'.")
    n, v = responses.shape
    groups = np.zeros(n) if groups is None else groups
    design = _Folds(features, folds, scale)
    alphas = np.asarray(alphas, dtype=np.float64)
    width = max(1, _BLOCK_BYTES // (8 * n))
    blocks = [slice(a, min(a + width, v)) for a in range(0, v, width)]
    share = null == "shared" or (null == "auto" and n >= _SHARED_ROWS and not shift)
    refit, out, used = np.full(v, not share), np.empty(v), n_permutations
    if share:
        measured = np.empty(v)
        for block in blocks:
            y = _standardised(np.asarray(responses[:, block], dtype=np.float64), groups)
            measured[block] = design.accuracy(y, alphas[:, block])
            if null == "auto":
                refit[block] = _heavy(y)
        used = max(n_permutations, _SHARED_PERMUTATIONS)
        out = _shared_p(design, measured, alphas, groups, used, seed, width, show)
    left = np.flatnonzero(refit)
    with progress(total=len(left) * n_permutations, desc="permutations", show=show) as bar:
        for start in range(0, len(left), width):
            some = left[start : start + width]
            y = np.asarray(responses[:, some], dtype=np.float64)
            y -= y.mean(axis=0)
            seen = design.accuracy(y, alphas[:, some])
            at_least = np.zeros(len(some))
            for order in _orders(groups, n_permutations, seed, shift):
                at_least += design.accuracy(y[order], alphas[:, some]) >= seen - 1e-12
                bar.update(len(some))
            out[some] = (1 + at_least) / (1 + n_permutations)
    return out, {"null": "shared" if share else "refit", "n_permutations": used, "n_refitted": len(left)}


def _shared_p(
    design: _Folds,
    measured: np.ndarray,
    alphas: np.ndarray,
    groups: np.ndarray,
    n_permutations: int,
    seed: int,
    width: int,
    show: bool,
) -> np.ndarray:
    """P-values (v,) from permutations of normal scores: sums of every fold and penalty, put together by voxel."""
    grids = [np.unique(row, return_inverse=True) for row in alphas]
    tables = [np.empty((len(grid), 3, n_permutations)) for grid, _ in grids]
    scores, orders = _normal_scores(groups), _orders(groups, n_permutations, seed)
    with progress(total=n_permutations, desc="permutations", show=show) as bar:
        for start in range(0, n_permutations, width):
            stop = min(start + width, n_permutations)
            drawn = np.stack([scores[next(orders)] for _ in range(start, stop)], axis=1)
            for k, part in enumerate(design.parts(drawn)):
                for a, alpha in enumerate(grids[k][0]):
                    tables[k][a, :, start:stop] = design.sums(k, part, alpha[None])
            bar.update(stop - start)
    square = float(scores @ scores)
    chosen, voxels = np.unique(np.stack([which for _, which in grids]), axis=1, return_inverse=True)
    voxels = voxels.reshape(-1)
    members = np.split(np.argsort(voxels, kind="stable"), np.cumsum(np.bincount(voxels))[:-1])
    p = np.empty(len(measured))
    for pattern, some in zip(chosen.T, members):
        found = np.sort(_correlation(sum(t[a] for t, a in zip(tables, pattern)), square, design.n))
        below = np.searchsorted(found, measured[some] - 1e-12, side="left")
        p[some] = (1 + n_permutations - below) / (1 + n_permutations)
    return p
