"""Posterior of many voxels' weights, given the same support rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc.encoders.incontext._evidence import (
    Floats,
    GridPosterior,
    Spectrum,
    covariance_root,
    grid_posterior,
    spectrum,
)
from neuroenc.encoders.incontext._prior import WeightPrior

__all__ = ["SupportPosterior"]


class SupportPosterior:
    """Some rows of a support under one prior; ``hyper`` is that of (log scale, log noise variance), or None."""

    def __init__(
        self,
        support: Floats,
        rows: np.ndarray,
        prior: WeightPrior,
        hyper: tuple[Floats, Floats] | None,
        *,
        intercept: str,
        maximise: bool,
    ) -> None:
        self.rows, self.hyper, self.maximise = rows, hyper, maximise
        X, self.mean, cov = support[rows], prior.mean, prior.cov
        self.flat, self.augmented = intercept == "flat", intercept == "prior"
        if self.augmented:
            X, self.mean = np.column_stack([X, np.ones(len(X))]), np.append(prior.mean, prior.intercept_mean)
            cov = np.pad(cov, (0, 1))
            cov[-1, -1] = prior.intercept_var
        self.dof = len(rows) - self.flat
        self.centre = X.mean(axis=0) if self.flat else np.zeros(X.shape[1])
        self.root = covariance_root(cov)
        self.X = X - self.centre
        self.shared: Spectrum = spectrum(self.X, self.root)
        self.unit = max(float(self.shared.values.sum()) / self.dof, np.finfo(float).tiny)

    def posterior(self, Y: Floats) -> tuple[GridPosterior, Floats]:
        """Over the grid, and ``t`` (r, voxel), of responses Y (row, voxel)."""
        self.mean_y = Y.mean(axis=0) if self.flat else np.zeros(Y.shape[1])
        rest = Y - self.mean_y - (self.X @ self.mean)[:, None]
        t = self.shared.projector.T @ rest
        total = (rest**2).sum(axis=0)
        settings: dict[str, Any] = {"hyper": self.hyper, "maximise": self.maximise}
        return grid_posterior(self.shared.values, t, total, self.dof, unit=self.unit, **settings), t

    def _factors(self, post: GridPosterior) -> Floats:
        """rho / (1 + rho d), (R, r)."""
        ratios = post.ratios[:, None]
        return np.asarray(ratios / (1.0 + ratios * self.shared.values))

    def weights(self, post: GridPosterior, t: Floats) -> tuple[Floats, Floats]:
        """Posterior mean weights (feature, voxel) and intercepts (voxel,) of the responses last given."""
        shrunk = (self._factors(post).T @ post.ratio_weights()) * t
        full = self.mean[:, None] + self.shared.basis @ shrunk
        if self.augmented:
            return full[:-1], full[-1]
        return full, self.mean_y - self.centre @ full

    def variance(self, query: Floats, post: GridPosterior, t: Floats) -> Floats:
        """Of a new response: noise, weights, intercept, and the uncertainty of scale and noise variance."""
        if self.augmented:
            query = np.column_stack([query, np.ones(len(query))])
        query = query - self.centre
        projected = query @ self.shared.basis
        factors, moment, weights = self._factors(post), post.scale_moment(1), post.ratio_weights()
        noise = post.mean_noise()
        total = noise * (1.0 + (1.0 / len(self.rows) if self.flat else 0.0))
        prior = ((query @ self.root) ** 2).sum(axis=1)
        known = projected**2 @ (self.shared.values[:, None] * (factors.T @ moment))
        variance = total + np.maximum(prior[:, None] * moment.sum(axis=0) - known, 0.0)
        middle = projected @ ((factors.T @ weights) * t)
        for factor, weight in zip(factors, weights):
            if weight.max() > 1e-14:
                variance += weight * (projected @ (factor[:, None] * t) - middle) ** 2
        return np.asarray(variance)
