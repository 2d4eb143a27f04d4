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

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

_ROWS = 4096


def gram(X: np.ndarray, rows: np.ndarray | None = None, mean: np.ndarray | None = None) -> np.ndarray:
    """``(X - mean)'(X - mean)`` over chosen rows, accumulated in float64 without a float64 copy of X."""
    total = np.zeros((X.shape[1], X.shape[1]))
    rows = np.arange(len(X)) if rows is None else rows
    for start in range(0, len(rows), _ROWS):
        part = X[rows[start : start + _ROWS]].astype(np.float64)
        if mean is not None:
            part -= mean
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
    triangular: bool
    primal: bool
    train_mean: Any
    test_offset: Any

    def to(self, convert: Any) -> FoldBasis:
        """The same fold with its arrays on another device."""
        arrays = {k: convert(getattr(self, k)) for k in ("vectors", "test", "test_mean", "train_mean", "test_offset")}
        return FoldBasis(**{**self.__dict__, **arrays})


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


def primal_basis(covariance: np.ndarray) -> Basis:
    """Basis from a centred Gram matrix ``X'X`` (p, p)."""
    return Basis(*_eigh(covariance), primal=True)


def dual_basis(kernel: np.ndarray) -> Basis:
    """Basis from a centred kernel ``XX'`` (n, n)."""
    return Basis(*_eigh(kernel), primal=False)


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
    return FoldBasis(
        train,
        test,
        values,
        vectors.astype(dtype),
        projected.astype(dtype),
        mean_row.astype(dtype),
        triangular,
        True,
        mean.astype(dtype),
        offset.astype(dtype),
    )


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
    return FoldBasis(
        train,
        test,
        values,
        vectors.astype(dtype),
        projected.astype(dtype),
        projected.mean(axis=0).astype(dtype),
        False,
        False,
        None,
        None,
    )


def is_partition(folds: Sequence[tuple[np.ndarray, np.ndarray]], n: int) -> bool:
    """Whether every fold trains on exactly the rows that it does not test."""
    return all(len(a) + len(b) == n and len(np.union1d(a, b)) == n for a, b in folds)


SCORINGS = ("r2", "neg_mse", "r")
# Rows of a triangular factor handled together: skips the zero half and keeps the product in cache.
_STRIP = 64


def block_products(X: Any, Y: Any, folds: Sequence[FoldBasis]) -> list[Any]:
    """``Y_test' X_test`` (v, p) of every fold, so that Y is read once."""
    return [Y[f.held_out].T @ X[f.held_out] for f in folds]


def search_block(
    X: Any,
    Y: Any,
    folds: Sequence[FoldBasis],
    alphas: np.ndarray,
    *,
    scoring: str,
    center: bool,
    xp: Any = np,
    products: list[Any] | None = None,
    total: Any = None,
) -> np.ndarray:
    """Score of every penalty, summed over folds.

    Parameters
    ----------
    X : array (n, p)
        Globally centred features (used by primal folds only).
    Y : array (n, v)
        Globally centred responses of one block of voxels, same precision and device as X.
    folds : sequence of FoldBasis
        Decompositions, on the same device.
    alphas : ndarray (a,)
        Penalties.
    scoring : {"r2", "neg_mse", "r"}
        Score on the rows left out.
    center : bool
        Whether an intercept is fitted (training means are then removed from the test rows too).
    xp : module
        numpy or torch.
    products, total : list of arrays (v, p), array (v, p), optional
        ``Y_test'X_test`` per fold and ``Y'X`` over all rows, where folds partition the rows.

    Returns
    -------
    ndarray (a, v), float64
    """
    scores = np.zeros((len(alphas), Y.shape[1]))
    for number, fold in enumerate(folds):
        held = Y[fold.held_out]
        n_test, n_train = len(fold.held_out), len(fold.train)
        inner: Any = None if fold.primal and total is not None else Y[fold.train]
        sum_test = held.sum(0)
        mean_train = _mean_train(Y, inner, sum_test, n_train, center, xp)
        if fold.primal:
            outer = held.T @ X[fold.held_out] if products is None else products[number]
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
    return scores


def _mean_train(Y: Any, inner: Any, sum_test: Any, n_train: int, center: bool, xp: Any) -> Any:
    if not center:
        return 0 * sum_test
    return (Y.sum(0) - sum_test) / n_train if inner is None else inner.mean(0)


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
        import warnings

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
        return array.astype(other.dtype)
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
        if self.primal:
            basis = primal_basis(self.gram if scale is None else self.gram * (scale[:, None] * scale))
            return basis if scale is None else Basis(basis.values, basis.vectors * scale[:, None], True)
        return dual_basis(self.gram if kernel is None else kernel)

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
    primal: bool,
    dtype: Any,
    scaling: tuple[np.ndarray, np.ndarray] | None = None,
) -> Design:
    """Centre (and scale) the features once and form their Gram matrix in float64.

    ``scaling`` are mean and s.d. (p,) of `feature_scaling`; scaled features are centred with or without intercept.
    """
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
    products = total = None
    if design.primal and design.partition and len(bases) == len(design.folds) and _covers(design):
        products = block_products(X, Y, bases)
        total = sum(products[1:], start=products[0])
    elif design.primal and design.partition:
        total = Y.T @ X
    scores = search_block(
        X, Y, bases, alphas, scoring=scoring, center=design.center, xp=xp, products=products, total=total
    )
    return scores, total


def _covers(design: Design) -> bool:
    return sum(len(test) for _, test in design.folds) == len(design.X)


def best_alpha(scores: np.ndarray) -> np.ndarray:
    """Index of the best penalty per voxel; the smallest of equals."""
    return np.argmax(scores, axis=0)


def solve_block(
    design: Design, basis: Basis, Y: Any, alpha: np.ndarray, *, total: Any = None, X: Any = None, xp: Any = np
) -> np.ndarray:
    """Weights (p, v) for penalties ``alpha`` (v,), from centred responses Y (n, v)."""
    X = design.X if X is None else X
    if xp is np:
        vectors: Any = basis.vectors.astype(design.dtype, copy=False)
        shrink: Any = shrinkage(basis.values, alpha).astype(design.dtype)
    else:
        vectors = xp.as_tensor(basis.vectors, dtype=Y.dtype, device=Y.device)
        shrink = xp.as_tensor(shrinkage(basis.values, alpha), dtype=Y.dtype, device=Y.device)
    if basis.primal:
        total = Y.T @ X if total is None else total
        coef = vectors @ ((total @ vectors) * shrink).T
    else:
        coef = X.T @ (vectors @ ((Y.T @ vectors) * shrink).T)
    return coef if xp is np else coef.cpu().numpy()
