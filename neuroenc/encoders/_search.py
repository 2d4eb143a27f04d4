"""Cross-validated scores of every penalty, for a block of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuroenc.encoders._gram import FoldBasis, shrinkage

__all__ = ["SCORINGS", "block_products", "search_block", "warn_at_edges"]

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
