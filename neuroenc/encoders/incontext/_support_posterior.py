"""Posterior of voxel weights given one support, under one prior."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc.encoders.incontext._evidence import (
    RATIOS,
    Floats,
    GridPosterior,
    Spectrum,
    covariance_root,
    grid_posterior,
    spectrum,
)
from neuroenc.encoders.incontext._prior import WeightPrior


class SupportPosterior:
    """Some rows of a support under one prior; ``hyper`` is that of (log scale, log noise variance), or None.

    ``mean`` (feature, voxel) or (feature, 1) is the prior's; ``precision`` (row,) are the trials' relative precisions.
    """

    def __init__(
        self,
        support: Floats,
        rows: np.ndarray,
        prior: WeightPrior,
        mean: Floats,
        hyper: tuple[Floats, Floats] | None,
        *,
        intercept: str,
        maximise: bool,
        precision: Floats,
    ) -> None:
        self.rows, self.mean, self.hyper, self.maximise = rows, mean, hyper, maximise
        X, cov = support[rows], prior.cov
        self.flat, self.augmented = intercept == "flat", intercept == "prior"
        if self.augmented:
            X = np.column_stack([X, np.ones(len(X))])
            self.mean = np.vstack([self.mean, np.full(self.mean.shape[1], prior.intercept_mean)])
            cov = np.pad(cov, (0, 1))
            cov[-1, -1] = prior.intercept_var
        self.share = precision / precision.sum()
        self.weight = precision[:, None]
        self.dof = len(rows) - self.flat
        self.centre = self.share @ X if self.flat else np.zeros(X.shape[1])
        self.root = covariance_root(cov)
        # Weighted least squares: rows times the root of their precision.
        self.X = np.sqrt(self.weight) * (X - self.centre)
        self.shared: Spectrum = spectrum(self.X, self.root)
        self.unit = max(float(self.shared.values.sum()) / self.dof, np.finfo(float).tiny)

    def posterior(
        self, Y: Floats, spread: Floats | None = None, voxels: Any = slice(None)
    ) -> tuple[GridPosterior, Floats]:
        """Over the grid, and ``t`` (r, voxel), of responses Y (row, voxel) with variances ``spread``."""
        self.voxels = voxels if self.mean.shape[1] > 1 else slice(None)
        self.mean_y = self.share @ Y if self.flat else np.zeros(Y.shape[1])
        rest = np.sqrt(self.weight) * (Y - self.mean_y) - self.X @ self.mean[:, self.voxels]
        t = self.shared.projector.T @ rest
        total = (rest**2).sum(axis=0)
        extra = None
        if spread is not None:
            ratios = (RATIOS / self.unit)[:, None]
            hat = (ratios / (1.0 + ratios * self.shared.values)) @ (self.shared.projector**2).T
            extra = (1.0 - hat) @ (self.weight * spread)
        settings: dict[str, Any] = {"hyper": self.hyper, "maximise": self.maximise, "extra": extra}
        return grid_posterior(self.shared.values, t, total, self.dof, unit=self.unit, **settings), t

    def _factors(self, post: GridPosterior) -> Floats:
        """rho / (1 + rho d), (R, r)."""
        ratios = post.ratios[:, None]
        return np.asarray(ratios / (1.0 + ratios * self.shared.values))

    def weights(self, post: GridPosterior, t: Floats) -> tuple[Floats, Floats]:
        """Posterior mean weights (feature, voxel) and intercepts (voxel,) of the responses last given."""
        shrunk = (self._factors(post).T @ post.ratio_weights()) * t
        full = self.mean[:, self.voxels] + self.shared.basis @ shrunk
        if self.augmented:
            return full[:-1], full[-1]
        return full, self.mean_y - self.centre @ full

    def signal_variance(self, query: Floats, post: GridPosterior) -> Floats:
        """Posterior variance (query, voxel) of the noiseless response, its intercept known."""
        query = self._centred(query)
        moment = post.scale_moment(1)
        prior = ((query @ self.root) ** 2).sum(axis=1)
        known = (query @ self.shared.basis) ** 2 @ (self.shared.values[:, None] * (self._factors(post).T @ moment))
        return np.asarray(np.maximum(prior[:, None] * moment.sum(axis=0) - known, 0.0))

    def _centred(self, query: Floats) -> Floats:
        return (np.column_stack([query, np.ones(len(query))]) if self.augmented else query) - self.centre

    def variance(self, query: Floats, post: GridPosterior, t: Floats, inflation: float = 1.0) -> Floats:
        """Of a new response: noise, weights, intercept, and the uncertainty of scale and noise variance.

        ``inflation`` is the mean noise variance of a trial over that of the trials that count fully.
        """
        noise = post.mean_noise()
        variance = noise * (inflation + self.flat / float(self.weight.sum()))
        variance = variance + self.signal_variance(query, post)
        projected = self._centred(query) @ self.shared.basis
        factors, weights = self._factors(post), post.ratio_weights()
        middle = projected @ ((factors.T @ weights) * t)
        for factor, weight in zip(factors, weights):
            if weight.max() > 1e-14:
                variance += weight * (projected @ (factor[:, None] * t) - middle) ** 2
        return np.asarray(variance)
