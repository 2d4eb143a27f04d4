"""Gaussian evidence of many voxels that share one design, from one decomposition.

With a prior ``w ~ N(m, tau C)``, ``C = L L'``, noise ``sigma2 I``, and ``rho = tau / sigma2``, let ``A = X L`` have the
Gram matrix ``A'A = V diag(d) V'``, let ``r = y - X m`` and ``t = V'A'r``. Then

* posterior mean of ``w - m`` is ``L V a``, ``a = rho t / (1 + rho d)``, whatever ``sigma2`` is;
* its posterior covariance is ``L V diag(tau / (1 + rho d)) V'L'`` (within the span of ``L V``; prior outside);
* ``log p(y) = -(dof log(2 pi sigma2) + sum log(1 + rho d) + q / sigma2) / 2`` with
  ``q = r'r - sum rho t^2 / (1 + rho d)``.

An intercept without penalty is projected out: X and y centred, ``dof = n - 1`` (restricted likelihood).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["RATIOS", "GridPosterior", "Spectrum", "covariance_root", "grid_posterior", "spectrum"]

Floats = NDArray[np.float64]

# Signal-to-noise variance ratios (of one response, at the mean squared row of the support) that are tried, and noise
# variances as shares of the voxel's own variance: a fifth and an eighth of a decade apart, about.
RATIOS = np.logspace(-3.5, 2.5, 31)
_NOISE_SHARES = np.logspace(np.log10(0.02), np.log10(4.0), 18)


def covariance_root(cov: Floats) -> Floats:
    """``L`` (feature, feature) with ``L L' = cov``; tiny negative eigenvalues are rounding and become 0.

    >>> covariance_root(np.diag([4.0, 1.0])) @ covariance_root(np.diag([4.0, 1.0])).T
    array([[4., 0.],
           [0., 1.]])
    """
    values, vectors = np.linalg.eigh(cov)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


@dataclass(frozen=True)
class Spectrum:
    """``basis`` = L V (feature, r), ``values`` = d (r,), ``projector`` (n, r) with ``t = projector' r``."""

    basis: Floats
    values: Floats
    projector: Floats


def spectrum(X: Floats, root: Floats) -> Spectrum:
    """Shared decomposition of ``A = X root``, in the smaller of its two forms.

    Primal (n >= feature) decomposes ``A'A``, dual ``AA'``; both give the same posterior.
    """
    A = X @ root
    n, p = A.shape
    if n >= p:
        values, vectors = np.linalg.eigh(A.T @ A)
        return Spectrum(root @ vectors, np.maximum(values, 0.0), A @ vectors)
    values, vectors = np.linalg.eigh(A @ A.T)
    values = np.maximum(values, 0.0)
    kept = values > values[-1] * np.finfo(float).eps * max(n, p) if n else values > 0
    values, vectors = values[kept], vectors[:, kept]
    scale = np.sqrt(values)
    return Spectrum(root @ (A.T @ vectors) / scale, values, vectors * scale)


@dataclass(frozen=True)
class GridPosterior:
    """Posterior over (ratio, noise variance) of a block of voxels.

    ``ratios`` (R,), ``noise`` (1 or R, S, voxel), ``weights`` (R, S, voxel) that sum to 1 over the first two;
    ``log_evidence`` (voxel,) at the most probable point, ``scale`` and ``noise_variance`` (voxel,) there.
    """

    ratios: Floats
    noise: Floats
    weights: Floats
    log_evidence: Floats
    scale: Floats
    noise_variance: Floats
    log_marginal: Floats

    def ratio_weights(self) -> Floats:
        """Marginal weights (R, voxel) of the ratios."""
        return np.asarray(self.weights.sum(axis=1))

    def mean_noise(self) -> Floats:
        """Posterior mean (voxel,) of the noise variance."""
        return np.asarray((self.weights * self.noise).sum(axis=(0, 1)))

    def scale_moment(self, power: int) -> Floats:
        """``E[scale ** power; ratio]`` (R, voxel): sums over the ratios to the posterior moment."""
        scale = self.ratios[:, None, None] * self.noise
        return np.asarray((self.weights * scale**power).sum(axis=1))

    def log_moments(self) -> tuple[Floats, Floats]:
        """Sums over voxels of E[u] (2,) and E[u u'] (2, 2), u = (log scale, log noise variance)."""
        log_noise = np.broadcast_to(np.log(self.noise), self.weights.shape)
        log_scale = np.log(self.ratios)[:, None, None] + log_noise
        w = self.weights
        mixed = (w * log_scale * log_noise).sum()
        first = np.array([(w * log_scale).sum(), (w * log_noise).sum()])
        return first, np.array([[(w * log_scale**2).sum(), mixed], [mixed, (w * log_noise**2).sum()]])


def grid_posterior(
    values: Floats,
    t: Floats,
    total: Floats,
    dof: int,
    *,
    unit: float,
    hyper: tuple[Floats, Floats] | None = None,
    maximise: bool = False,
) -> GridPosterior:
    """Evidence on the grid of ratios and noise variances, for a block of voxels.

    Parameters
    ----------
    values, t : arrays (r,), (r, voxel)
        As in the module's formulas.
    total : array (voxel,)
        ``r'r``.
    dof : int
        Samples less those that the intercept takes.
    unit : float
        Mean prior variance of the signal at scale 1; places the grid.
    hyper : (mean (2,), cov (2, 2)), optional
        Of (log scale, log noise variance) over voxels: multiplies the evidence.
    maximise : bool
        All weight on the best point; without ``hyper`` the noise variance is then the exact maximiser given the ratio,
        not a grid point.
    """
    ratios = RATIOS / unit
    shrink = 1.0 + ratios[:, None] * values  # (R, r)
    log_det = np.log(shrink).sum(axis=1)
    floor = np.finfo(float).tiny
    q = np.maximum(total - (ratios[:, None] / shrink) @ t**2, 1e-12 * total + floor)  # (R, V)
    if maximise and hyper is None:
        noise = (q / dof)[:, None]
    else:
        noise = (_NOISE_SHARES[:, None] * np.maximum(total / dof, floor))[None]
    log_noise = np.log(noise)
    like = -0.5 * (dof * (np.log(2 * np.pi) + log_noise) + log_det[:, None, None] + q[:, None] / noise)
    log_post = like
    if hyper is not None:
        mean, cov = hyper
        inverse = np.linalg.inv(cov)
        a = np.log(ratios)[:, None, None] + log_noise - mean[0]
        b = log_noise - mean[1]
        norm = np.log(2 * np.pi) + 0.5 * np.linalg.slogdet(cov)[1]
        log_post = like - norm - 0.5 * (inverse[0, 0] * a**2 + 2 * inverse[0, 1] * a * b + inverse[1, 1] * b**2)
    r, s, v = log_post.shape
    flat = log_post.reshape(r * s, v)
    best = np.argmax(flat, axis=0)
    columns = np.arange(v)
    top = flat[best, columns]
    weights = np.zeros_like(flat)
    if maximise:
        weights[best, columns] = 1.0
        marginal = top
    else:
        weights = np.exp(flat - top)
        sums = weights.sum(axis=0)
        weights /= sums
        # The volume of a grid cell, so that marginals of different data compare.
        cell = np.log(ratios[1] / ratios[0]) * np.log(_NOISE_SHARES[1] / _NOISE_SHARES[0])
        marginal = top + np.log(sums * cell)
    chosen_noise = np.broadcast_to(noise, log_post.shape).reshape(r * s, v)[best, columns]
    scale = ratios[best // s] * chosen_noise
    evidence = like.reshape(r * s, v)[best, columns]
    return GridPosterior(ratios, noise, weights.reshape(r, s, v), evidence, scale, chosen_noise, marginal)
