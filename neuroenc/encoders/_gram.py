"""Decompositions behind ridge regression: one per fold, shared by every voxel and every penalty.

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
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "Basis",
    "FoldBasis",
    "dual_basis",
    "dual_fold",
    "gram",
    "primal_basis",
    "primal_fold",
    "row_gram",
    "shrinkage",
]

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
