"""Ridge for one block of voxels: choose penalties by cross-validation, then solve on all rows."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from neuroenc.encoders._gram import (
    Basis,
    FoldBasis,
    dual_basis,
    dual_fold,
    gram,
    is_partition,
    primal_basis,
    primal_fold,
    row_gram,
    shrinkage,
)
from neuroenc.encoders._search import block_products, search_block

__all__ = ["Design", "best_alpha", "make_design", "solve_block"]

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
