"""Decompositions and cross-validated scores behind ridge regression, shared by voxels and penalties.

For centred training features ``X`` (n, p) and responses ``Y`` (n, v) every ridge prediction on the
left-out rows is ``B diag(1 / (s + alpha)) z``, where only ``z`` (r, v) depends on the responses:

* primal (n >= p): ``X'X = V diag(s) V'``, ``z = V'X'Y`` and ``B = X_test V``; where X_test has more rows
  than columns, B is replaced by the triangular R of its QR decomposition, which has the same norms;
* dual (n < p): ``XX' = U diag(s) U'``, ``z = U'Y`` and ``B = X_test X'U``.

The sum of squared errors then needs no predictions of single stimuli:
``|y - B D z|^2 = y'y - 2 (D z)'c + |B D z|^2`` with ``c = B'y``, and ``(D z)'c`` for all penalties is one
small product. Decompositions are float64; the large products use the precision of the data.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

_ROWS = 4096


def gram(X: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """``X'X`` over chosen rows, accumulated in float64 without a float64 copy of X."""
    total = np.zeros((X.shape[1], X.shape[1]))
    rows = np.arange(len(X)) if rows is None else rows
    for start in range(0, len(rows), _ROWS):
        part = X[rows[start : start + _ROWS]].astype(np.float64)
        total += part.T @ part
    return total


def row_gram(X: np.ndarray) -> np.ndarray:
    """``XX'`` (n, n) accumulated in float64 over blocks of columns."""
    total = np.zeros((len(X), len(X)))
    for start in range(0, X.shape[1], _ROWS):
        part = X[:, start : start + _ROWS].astype(np.float64)
        total += part @ part.T
    return total


@dataclass(frozen=True)
class Basis:
    """Eigenbasis of the training Gram matrix: ``vectors`` (m, r) and ``values`` (r,), both float64."""

    values: np.ndarray
    vectors: np.ndarray
    primal: bool


@dataclass(frozen=True)
class FoldBasis:
    """A training basis and what it predicts on the rows left out.

    ``values`` (r,) float64; ``vectors`` (m, r), ``test`` (q, r) in the precision of the data, m = p in the
    primal and n_train in the dual form; ``triangular`` says that ``test`` is upper triangular;
    ``test_mean`` (r,) is the mean row of B, needed for correlations.
    """

    train: np.ndarray
    held_out: np.ndarray
    values: np.ndarray
    vectors: Any
    test: Any
    test_mean: Any
    triangular: bool = False
    primal: bool = False
    train_mean: Any = None
    test_offset: Any = None

    def to(self, convert: Any) -> FoldBasis:
        """The same fold with its arrays on another device."""
        names = ("vectors", "test", "test_mean", "train_mean", "test_offset")
        return replace(self, **{k: convert(a) for k in names if (a := getattr(self, k)) is not None})


def _eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # numpy's LAPACK calls release the interpreter lock, so that folds can be decomposed side by side.
    values, vectors = np.linalg.eigh(matrix)
    # Of directions in which the features do not vary rounding leaves tiny values of either sign.
    floor = np.finfo(np.float64).eps * len(values) * values[-1]
    return np.where(values > floor, values, 0.0), vectors


def shrinkage(values: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """``1 / (s + alpha)`` (a, r), zero where s is: responses have no part there but rounding, which a small penalty
    would multiply."""
    with np.errstate(divide="ignore"):
        return np.where(values > 0, 1.0 / (values + np.asarray(alphas)[:, None]), 0.0)


def primal_fold(
    X: np.ndarray, train: np.ndarray, test: np.ndarray, total: np.ndarray | None, scale: np.ndarray | None, center: bool
) -> FoldBasis:
    """Primal fold of globally centred features X (n, p).

    ``total`` is ``X'X`` over all rows when the training rows are exactly the others (then the training Gram
    matrix comes by subtraction), else None. ``scale`` (p,) multiplies the features (banded ridge).
    """
    dtype, p = X.dtype, X.shape[1]
    held = X[test].astype(np.float64)
    raw = gram(X, train) if total is None else total - held.T @ held
    mean = X[train].mean(axis=0, dtype=np.float64) if center else np.zeros(p)
    raw -= len(train) * np.outer(mean, mean)
    held -= mean
    offset = held.sum(axis=0)
    if scale is not None:
        raw *= scale[:, None] * scale
        held *= scale
    values, vectors = _eigh(raw)
    projected = held @ vectors
    triangular = len(test) > p
    mean_row = projected.mean(axis=0)
    if triangular:
        projected = np.linalg.qr(projected, mode="r")
    if scale is not None:
        vectors = vectors * scale[:, None]
    parts = (vectors, projected, mean_row, mean, offset)
    vectors, projected, mean_row, mean, offset = (part.astype(dtype) for part in parts)
    return FoldBasis(train, test, values, vectors, projected, mean_row, triangular, True, mean, offset)


def dual_fold(kernel: np.ndarray, train: np.ndarray, test: np.ndarray, center: bool, dtype: Any) -> FoldBasis:
    """Dual fold from the kernel ``XX'`` (n, n) of all rows; centring is done on the kernel."""
    inner = kernel[np.ix_(train, train)]
    cross = kernel[np.ix_(test, train)]
    if center:
        row = inner.mean(axis=0)
        grand = row.mean()
        cross = cross - cross.mean(axis=1, keepdims=True) - row + grand
        inner = inner - row - row[:, None] + grand
    values, vectors = _eigh(inner)
    projected = cross @ vectors
    vectors, projected, mean_row = (part.astype(dtype) for part in (vectors, projected, projected.mean(axis=0)))
    return FoldBasis(train, test, values, vectors, projected, mean_row)


def is_partition(folds: Sequence[tuple[np.ndarray, np.ndarray]], n: int) -> bool:
    """Whether every fold trains on exactly the rows that it does not test."""
    return all(len(a) + len(b) == n and len(np.union1d(a, b)) == n for a, b in folds)


SCORINGS = ("r2", "neg_mse", "r")
# Rows of a triangular factor handled together: skips the zero half and keeps the product in cache.
_STRIP = 64


def _moments(z: Any, c: Any, fold: FoldBasis, alphas: np.ndarray, xp: Any) -> tuple[np.ndarray, ...]:
    """``y'P``, ``P'P`` and ``mean(P)`` of the predictions P of every penalty, each (a, v)."""
    shrink = _like(shrinkage(fold.values, alphas), z, xp)
    cross = _numpy((z * c) @ shrink.T).T
    mean = _numpy(z @ (shrink * fold.test_mean).T).T
    square = np.empty((len(alphas), z.shape[0]))
    scaled = xp.empty_like(z)
    q = fold.test.shape[0]
    strips = [(i, min(i + _STRIP, q), i) for i in range(0, q, _STRIP)] if fold.triangular else [(0, q, 0)]
    for a in range(len(alphas)):
        xp.multiply(z, shrink[a], out=scaled)
        total = 0.0
        for start, stop, first in strips:
            P = scaled[:, first:] @ fold.test[start:stop, first:].T
            total = total + xp.einsum("vq,vq->v", P, P)
        square[a] = _numpy(total)
    return cross, square, mean


def _score(
    scoring: str, held: np.ndarray, cross: np.ndarray, square: np.ndarray, mean: np.ndarray, n: int
) -> np.ndarray:
    yy = np.einsum("nv,nv->v", held, held, dtype=np.float64)
    if scoring == "neg_mse":
        return -(yy - 2 * cross + square) / n
    y_mean = held.mean(axis=0, dtype=np.float64)
    variance = yy - n * y_mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        if scoring == "r2":
            score = 1 - (yy - 2 * cross + square) / variance
        else:
            spread = np.maximum(square - n * mean**2, 0)
            score = (cross - n * mean * y_mean) / np.sqrt(variance * spread)
    # A voxel that never varies has no score; zero leaves its choice of penalty to the first of the grid.
    tiny = np.finfo(held.dtype).eps * yy
    return np.where((variance > tiny) & np.isfinite(score), score, 0.0)


def warn_at_edges(
    scores: np.ndarray, chosen: np.ndarray, alphas: np.ndarray, values: np.ndarray, scoring: str, given: bool
) -> None:
    """Tell that penalties were chosen at an end of the grid, where a wider grid would choose others.

    ``scores`` (a, v) of the penalties, ``chosen`` (v,) their positions, ``values`` (r,) the eigenvalues that they are
    added to. Ends do not count beyond which nothing changes: at the top where the weights are next to zero already
    (or the voxel is not predicted), at the bottom where the penalty is next to none.
    """
    values = values[values > 0]
    if len(alphas) < 2 or not len(values) or not scores.shape[1]:
        return
    best, second = scores[chosen, np.arange(len(chosen))], scores[min(1, len(alphas) - 1)]
    usable = np.isfinite(best)
    top = usable & (chosen == len(alphas) - 1) & (alphas[-1] < 10 * values.max())
    if scoring != "neg_mse":
        top &= best > 0
    bottom = usable & (chosen == 0) & (alphas[0] > 0.01 * values.min())
    if alphas[0] < values.mean():
        bottom &= best - second > 1e-3 * np.maximum(1e-12, np.abs(best))
    parts = [
        f"for {int(at.sum())} the {word} ({alphas[end]:.3g})"
        for at, word, end in ((bottom, "smallest", 0), (top, "largest", -1))
        if at.mean() > 0.05
    ]
    if parts:
        span = "alphas that reach further" if given else "alphas= that reach further than the default grid"
        warnings.warn(
            f"of {len(chosen)} voxels, {' and '.join(parts)} of {len(alphas)} penalties was the best: the optimum lies "
            f"at the edge of the grid or beyond. Next step: {span}, {alphas[0] / 1e3:.0e} to {alphas[-1] * 1e3:.0e}.",
            stacklevel=5,
        )


def _numpy(x: Any) -> np.ndarray:
    return np.asarray(x if isinstance(x, np.ndarray) else x.detach().cpu().numpy(), dtype=None)


def _like(array: np.ndarray, other: Any, xp: Any) -> Any:
    if xp is np:
        return array.astype(other.dtype, copy=False)
    return xp.as_tensor(array, dtype=other.dtype, device=other.device)


# Squares of what lies between, summed over trials, are far from the ends of float32.
_SMALL, _LARGE = 1e-9, 1e9
Fold = tuple[np.ndarray, np.ndarray]


@dataclass
class Design:
    """Everything about the features that every block of voxels shares."""

    X: np.ndarray  # (n, p), globally centred and scaled, in the precision of the fit
    mean: np.ndarray  # (p,) float64
    scale: np.ndarray | None  # (p,) float64; None where features are taken as they are
    gram: np.ndarray  # X'X (p, p) or XX' (n, n), float64
    folds: Sequence[Fold]
    primal: bool
    center: bool
    partition: bool

    @property
    def dtype(self) -> np.dtype:
        return self.X.dtype

    def fold_basis(self, index: int, scale: np.ndarray | None = None, kernel: np.ndarray | None = None) -> FoldBasis:
        """Decomposition of one fold; ``scale`` (p,) or ``kernel`` (n, n) put another prior on the features."""
        train, test = self.folds[index]
        if self.primal:
            return primal_fold(self.X, train, test, self.gram if self.partition else None, scale, self.center)
        return dual_fold(self.gram if kernel is None else kernel, train, test, self.center, self.dtype)

    def fold_bases(self, indices: Sequence[int], workers: int, **prior: Any) -> list[FoldBasis]:
        """Decompositions of several folds, side by side on one BLAS thread each."""
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(max(1, workers)) as pool:
            return list(pool.map(lambda k: self.fold_basis(k, **prior), indices))

    def full_basis(self, scale: np.ndarray | None = None, kernel: np.ndarray | None = None) -> Basis:
        """Decomposition over all rows."""
        if not self.primal:
            return Basis(*_eigh(self.gram if kernel is None else kernel), primal=False)
        if scale is None:
            return Basis(*_eigh(self.gram), primal=True)
        values, vectors = _eigh(self.gram * (scale[:, None] * scale))
        return Basis(values, vectors * scale[:, None], primal=True)

    def raw_weights(self, coef: np.ndarray, mean: np.ndarray, exponent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights (p, v) and intercepts (v,) in units of features and responses as they came.

        ``mean`` (v,) of the responses and ``exponent`` (v,) are those of `center_block`.
        """
        coef = np.ldexp(coef, exponent) if exponent.any() else coef
        if self.scale is not None:
            coef = coef / self.scale[:, None].astype(coef.dtype)
        return coef, mean - self.mean @ coef

    def basis_bytes(self) -> int:
        """Bytes of one fold's decomposition."""
        n, p = self.X.shape
        return self.X.itemsize * (2 * p * p if self.primal else (n + n // 4) * n)

    def block_bytes(self) -> int:
        """Working bytes per voxel of a block."""
        n, p = self.X.shape
        return self.X.itemsize * (2 * n + (len(self.folds) + 8) * (p if self.primal else n) + p)


def make_design(
    X: np.ndarray,
    folds: Sequence[Fold],
    *,
    center: bool,
    dtype: Any,
    solver: str = "auto",
    scaling: tuple[np.ndarray, np.ndarray] | None = None,
) -> Design:
    """Centre (and scale) the features once and form their Gram matrix in float64.

    ``solver`` "auto" is "primal" with at least as many samples as features, else "dual". ``scaling`` are mean and s.d.
    (p,) of `feature_scaling`; scaled features are centred with or without intercept.
    """
    primal = X.shape[0] >= X.shape[1] if solver == "auto" else solver == "primal"
    if scaling is None:
        mean, scale = X.mean(axis=0, dtype=np.float64) if center else np.zeros(X.shape[1]), None
    else:
        mean, scale = scaling
    centred = np.empty(X.shape, dtype=dtype)
    np.subtract(X, mean, out=centred, casting="same_kind")
    if scale is not None:
        np.divide(centred, scale, out=centred, casting="same_kind")
    matrix = gram(centred) if primal else row_gram(centred)
    return Design(centred, mean, scale, matrix, folds, primal, center, is_partition(folds, len(X)))


def center_block(values: np.ndarray, center: bool, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Responses of a block minus their means (float64), in the precision of the fit, and their exponents.

    Voxels whose products would leave the range of the precision (responses of 1e-21 in float32) are multiplied by a
    power of two, which changes no digit: ``ldexp(centred, exponent)`` has the units of the responses.
    """
    mean = values.mean(axis=0, dtype=np.float64) if center else np.zeros(values.shape[1])
    out = np.empty(values.shape, dtype=dtype)
    with np.errstate(invalid="ignore"):  # infinite responses are reported by the caller
        np.subtract(values, mean, out=out, casting="same_kind")
        peak = np.maximum(out.max(axis=0, initial=0.0), -out.min(axis=0, initial=0.0))
    extreme = np.isfinite(peak) & (peak > 0) & ((peak < _SMALL) | (peak > _LARGE))
    exponent = np.where(extreme, np.frexp(np.where(extreme, peak, 1.0))[1], 0)
    if extreme.any():
        out = np.ldexp(out, -exponent)
    return out, mean, exponent


def score_block(
    design: Design, Y: Any, bases: Sequence[FoldBasis], alphas: np.ndarray, scoring: str, *, X: Any = None, xp: Any = np
) -> tuple[np.ndarray, Any]:
    """Scores (a, v) summed over ``bases``, and ``Y'X`` (v, p) where it came on the way (else None).

    Y (n, v) is centred; X is the design's features, on Y's device.
    """
    X = design.X if X is None else X
    products: list[Any] = [None] * len(bases)
    total: Any = None
    if design.primal and design.partition:
        tested = sum(len(fold.held_out) for fold in bases)
        if len(bases) == len(design.folds) and tested == len(design.X):
            # Y is read once: the products of the rows left out add up to that of all rows.
            products = [Y[fold.held_out].T @ X[fold.held_out] for fold in bases]
            total = sum(products[1:], start=products[0])
        else:
            total = Y.T @ X
    scores = np.zeros((len(alphas), Y.shape[1]))
    for fold, outer in zip(bases, products):
        held = Y[fold.held_out]
        n_test, n_train = len(fold.held_out), len(fold.train)
        inner: Any = Y[fold.train] if total is None else None
        sum_test = held.sum(0)
        if not design.center:
            mean_train = 0 * sum_test
        else:
            mean_train = (Y.sum(0) - sum_test) / n_train if inner is None else inner.mean(0)
        if fold.primal:
            outer = held.T @ X[fold.held_out] if outer is None else outer
            trained = inner.T @ X[fold.train] if total is None else total - outer
            trained = trained - n_train * mean_train[:, None] * fold.train_mean
            # X_test is centred by the training mean, and so are the responses left out.
            outer = outer - sum_test[:, None] * fold.train_mean - mean_train[:, None] * fold.test_offset
            z, c = trained @ fold.vectors, outer @ fold.vectors
        else:
            z = (inner - mean_train).T @ fold.vectors
            c = (held - mean_train).T @ fold.test
        held = held - mean_train
        cross, square, mean = _moments(z, c, fold, alphas, xp)
        scores += _score(scoring, _numpy(held), cross, square, mean, n_test)
    return scores, total


def solve_block(
    design: Design, basis: Basis, Y: Any, alpha: np.ndarray, *, total: Any = None, X: Any = None, xp: Any = np
) -> np.ndarray:
    """Weights (p, v) for penalties ``alpha`` (v,), from centred responses Y (n, v)."""
    X = design.X if X is None else X
    vectors, shrink = (_like(a, Y, xp) for a in (basis.vectors, shrinkage(basis.values, alpha)))
    if basis.primal:
        total = Y.T @ X if total is None else total
        return _numpy(vectors @ ((total @ vectors) * shrink).T)
    return _numpy(X.T @ (vectors @ ((Y.T @ vectors) * shrink).T))
