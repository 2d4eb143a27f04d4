r"""Bayesian linear designs: what a candidate's response would tell, updated as stimuli are chosen.

A voxel of ratio :math:`\rho = \tau / \sigma^2` has weights :math:`w \sim N(0, \tau C)` and noise :math:`\sigma^2`. With
:math:`S` the covariance of the weights after the stimuli that were shown, in units of :math:`\tau`, a candidate x has
variance :math:`s = x^T S x`, and after its response
:math:`S' = S - S x x^T S / (\rho^{-1} + s)`. Nothing of this depends on responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from scipy.linalg import solve_triangular

# Directions of the target that are left out carry at most this share of its prior variance.
_LEFT_OUT = 1e-3


class Design:
    """Posterior variances of candidates for voxels of one prior covariance and several signal-to-noise ratios.

    Parameters
    ----------
    values : array (n, feature)
        Candidates.
    cov : array (feature, feature)
    ratios : array (j,)
        Above 0, tau / sigma2.
    weights : array (j,), optional
        Share of the voxels that have each; equal by default.
    offset : float
        Prior variance of the intercept in units of tau.
    target : array (m, feature), optional
        Stimuli that are to be predicted; needed for accuracies.
    accuracy : bool
        Whether :meth:`gains` of "accuracy" are asked for, which needs (n, directions) numbers.

    References
    ----------
    Chaloner & Verdinelli (1995), Bayesian experimental design: a review, Statistical Science 10(3).

    Examples
    --------
    >>> pool = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> design = Design(pool, np.eye(2), [1.0], target=pool)
    >>> design.accuracy().round(2).tolist(), design.ceiling().round(2).tolist()
    ([0.0], [0.5])
    >>> design.add(0)  # a response of as much noise as signal: half is known along one of two features
    >>> design.accuracy().round(3).tolist(), design.gains("information").round(2).tolist()
    ([0.125], [0.2, 0.2, 0.35, 0.35])
    """

    def __init__(
        self,
        values: np.ndarray,
        cov: np.ndarray,
        ratios: Any,
        weights: Any = None,
        *,
        offset: float = 0.0,
        target: np.ndarray | None = None,
        accuracy: bool = False,
    ) -> None:
        self.values = np.asarray(values)
        dtype = self.values.dtype
        self.cov = np.asarray(cov, dtype=dtype)
        self.ratios = np.asarray(ratios, dtype=np.float64)
        j = len(self.ratios)
        self.weights = np.full(j, 1 / j) if weights is None else np.asarray(weights, dtype=np.float64)
        self.offset = float(offset)
        carried = self.values @ self.cov
        first = np.einsum("np,np->n", carried, self.values, dtype=np.float64) + self.offset
        self._s = np.repeat(first[None], j, axis=0)
        # Of each ratio, (steps, n): X u of the vectors u, u u' of which was taken from the covariance.
        self._taken, self._steps = np.empty((j, 0, len(self.values))), 0
        self._root: np.ndarray | None = None
        self._aimed: np.ndarray | None = None
        self.signal = np.nan
        if target is not None:
            self._root = self._directions(np.asarray(target))
            self.signal = float((self._root.T @ self.cov @ self._root).trace())
            self._left = np.full(j, self.signal)
            if accuracy:
                self._aimed = carried @ self._root
                self._fall = np.repeat(np.einsum("nq,nq->n", self._aimed, self._aimed, dtype=np.float64)[None], j, 0)
            # u' R of each step (j, steps, q).
            self._turned = np.empty((j, 0, self._root.shape[1]))

    @classmethod
    def relative(cls, values: np.ndarray, cov: np.ndarray, snr: Sequence[float], **options: Any) -> Self:
        """With ratios that give ``snr`` at a candidate of the mean prior variance."""
        mean = float(np.einsum("np,pq,nq->n", values, cov, values, optimize=True).mean())
        return cls(values, cov, np.asarray(snr) / max(mean, np.finfo(float).tiny), **options)

    def _directions(self, target: np.ndarray) -> np.ndarray:
        """R (feature, q) with R R' the covariance of the target stimuli, without directions that hardly vary."""
        centred = target - target.mean(axis=0)
        within = centred.T @ centred / len(target)
        values, vectors = np.linalg.eigh(within.astype(np.float64))
        spread = np.maximum(values, 0) * np.einsum("pq,pq->q", vectors, self.cov @ vectors)
        order = np.argsort(-spread)
        kept = order[: 1 + int(np.searchsorted(np.cumsum(spread[order]), (1 - _LEFT_OUT) * spread.sum()))]
        return np.asarray(vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0)), dtype=self.values.dtype)

    def add(self, rows: int | np.ndarray) -> None:
        """Show a candidate, or several at once."""
        rows, steps = np.atleast_1d(rows), self._steps
        carried = self.values[rows] @ self.cov
        columns = (carried @ self.values.T).astype(np.float64) + self.offset
        whole = None if self._root is None else (carried @ self._root).astype(np.float64)
        if steps + len(rows) > self._taken.shape[1]:
            room = np.empty((len(self.ratios), max(16, steps, len(rows)), columns.shape[1]))
            self._taken = np.concatenate([self._taken, room], axis=1)
        if whole is not None:
            self._turned = np.concatenate(
                [self._turned, np.empty((len(self.ratios), len(rows), whole.shape[1]))], axis=1
            )
        new = slice(steps, steps + len(rows))
        for i, ratio in enumerate(self.ratios):
            before = self._taken[i, :steps]
            below = before[:, rows].T
            # Rows of L^-1, of the responses' covariance given what was shown before.
            u = columns - below @ before
            lower = np.linalg.cholesky(u[:, rows] + np.eye(len(rows)) / ratio)
            self._taken[i, new] = u = _solved(lower, u)
            self._s[i] = np.maximum(self._s[i] - (u**2).sum(axis=0), 0)
            if whole is None:
                continue
            turned = _solved(lower, whole - below @ self._turned[i, :steps])
            self._turned[i, new] = turned
            self._left[i] -= (turned**2).sum()
            if self._aimed is None:
                continue
            if len(rows) == 1:
                # |R'S x|^2 of S - u u', from what S was at first: R'S x = R'C x - sum of (u'x) R'u.
                along = (self._aimed @ turned[0].astype(self._aimed.dtype)).astype(np.float64)
                along -= (self._turned[i, :steps] @ turned[0]) @ before
                self._fall[i] += u[0] * (u[0] * (turned**2).sum() - 2 * along)
            else:
                taken, all_turned = self._taken[i, : new.stop], self._turned[i, : new.stop]
                aimed = self._aimed - (taken.T @ all_turned).astype(self._aimed.dtype)
                self._fall[i] = np.einsum("nq,nq->n", aimed, aimed, dtype=np.float64)
        self._steps = new.stop

    def gains(self, objective: str) -> np.ndarray:
        """What each candidate (n,) would add, over voxels: nats, or the share of variance explained."""
        if objective == "information":
            return np.asarray(self.weights @ (0.5 * np.log1p(self.ratios[:, None] * self._s)))
        assert self._aimed is not None
        fall = np.maximum(self._fall, 0) / (1 / self.ratios[:, None] + self._s)
        return np.asarray((self.weights / (self.signal + 1 / self.ratios)) @ fall)

    def accuracy(self) -> np.ndarray:
        """Expected share of the variance of target responses that is explained, noise included, per ratio (j,)."""
        return np.asarray((self.signal - self._left) / (self.signal + 1 / self.ratios))

    def ceiling(self) -> np.ndarray:
        """The same with all that there is to know: signal over signal and noise (j,)."""
        return np.asarray(self.signal / (self.signal + 1 / self.ratios))


def _solved(lower: np.ndarray, right: np.ndarray) -> np.ndarray:
    """L^-1 b; of one row without scipy, whose threads and numpy's wait for each other at every step of a choice."""
    return np.asarray(right / lower if len(lower) == 1 else solve_triangular(lower, right, lower=True))
