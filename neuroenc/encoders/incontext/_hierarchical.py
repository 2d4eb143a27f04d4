"""Hierarchical Bayes over voxels: the mean and covariance of weights that make other subjects' responses most likely.

Voxel v of subject s: ``y = X w + b + e``, ``e ~ N(0, sigma2_v)``, ``w ~ N(m, tau_v C)``, ``b`` free, and
``(log tau_v, log sigma2_v)`` Gaussian over voxels. EM over voxels: weights are integrated in closed form, (tau, sigma2)
on a grid, so that an iteration costs one decomposition a subject whatever the number of stimuli.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from neuroenc.encoders.incontext._evidence import Floats, GridPosterior, covariance_root, grid_posterior

__all__ = ["Hierarchy", "SubjectGram", "fit_hierarchy", "held_out_evidence", "posterior_means", "subject_gram"]

_BLOCK = 512


@dataclass(frozen=True)
class SubjectGram:
    """What EM needs of a subject, centred: ``gram`` X'X (p, p), ``cross`` X'Y (p, voxel), ``total`` y'y (voxel,)."""

    gram: Floats
    cross: Floats
    total: Floats
    dof: int
    mean_x: Floats
    mean_y: Floats

    def take(self, voxels: np.ndarray) -> SubjectGram:
        """The same subject with fewer voxels."""
        return SubjectGram(
            self.gram, self.cross[:, voxels], self.total[voxels], self.dof, self.mean_x, self.mean_y[voxels]
        )


@dataclass(frozen=True)
class Hierarchy:
    """Fitted mean (p,), cov (p, p), hyper = (mean (2,), cov (2, 2)), and the log evidence after every iteration."""

    mean: Floats
    cov: Floats
    hyper: tuple[Floats, Floats]
    evidence: list[float]


def subject_gram(X: Floats, Y: Floats) -> SubjectGram:
    """Centred Gram matrices of one subject."""
    mean_x, mean_y = X.mean(axis=0), Y.mean(axis=0)
    Xc, Yc = X - mean_x, Y - mean_y
    return SubjectGram(Xc.T @ Xc, Xc.T @ Yc, (Yc**2).sum(axis=0), len(X) - 1, mean_x, mean_y)


@dataclass
class _Sums:
    """Expected sufficient statistics of one pass over all voxels."""

    second: Floats
    first: Floats
    precision: float
    logs: Floats
    log_products: Floats
    voxels: int
    evidence: float


def _posteriors(
    subject: SubjectGram, mean: Floats, root: Floats, hyper: tuple[Floats, Floats] | None
) -> Iterator[tuple[Floats, Floats, Floats, GridPosterior]]:
    """Per block of voxels: basis, values, t, and the posterior over the grid."""
    values, vectors = np.linalg.eigh(root.T @ subject.gram @ root)
    values = np.maximum(values, 0.0)
    basis = root @ vectors
    unit = max(float(values.sum()) / subject.dof, np.finfo(float).tiny)
    shifted = subject.gram @ mean
    for start in range(0, subject.cross.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        cross = subject.cross[:, block]
        t = basis.T @ (cross - shifted[:, None])
        total = subject.total[block] - 2 * mean @ cross + mean @ shifted
        total = np.maximum(total, 1e-12 * subject.total[block])
        yield basis, values, t, grid_posterior(values, t, total, subject.dof, unit=unit, hyper=hyper)


def _expect(subjects: Sequence[SubjectGram], mean: Floats, cov: Floats, hyper: tuple[Floats, Floats] | None) -> _Sums:
    root = covariance_root(cov)
    p = len(mean)
    sums = _Sums(np.zeros((p, p)), np.zeros(p), 0.0, np.zeros(2), np.zeros((2, 2)), 0, 0.0)
    for subject in subjects:
        inner = np.zeros((p, p))
        line = np.zeros(p)
        frame = root
        for basis, values, t, post in _posteriors(subject, mean, root, hyper):
            frame, weights = basis, post.ratio_weights()
            inverse = post.scale_moment(-1)  # (R, V): E[1 / tau; ratio]
            factors = post.ratios[:, None] / (1.0 + post.ratios[:, None] * values)  # (R, p)
            inner[np.diag_indices(p)] += (weights.sum(axis=1)[:, None] / (1.0 + post.ratios[:, None] * values)).sum(0)
            for factor, weight in zip(factors, inverse):
                if weight.max() > 1e-9 * inverse.max():
                    scaled = factor[:, None] * t
                    inner += (scaled * weight) @ scaled.T
                    line += scaled @ weight
            sums.precision += float(inverse.sum())
            first, second = post.log_moments()
            sums.logs += first
            sums.log_products += second
            sums.voxels += t.shape[1]
            sums.evidence += float(post.log_marginal.sum())
        sums.second += frame @ inner @ frame.T
        sums.first += frame @ line
    return sums


def _initial(subjects: Sequence[SubjectGram], p: int) -> tuple[Floats, Floats]:
    """No mean, and weights of equal variance that give a tenth of the responses' variance."""
    signal = np.mean([s.total.mean() / s.dof for s in subjects])
    spread = np.mean([np.trace(s.gram) / s.dof for s in subjects])
    return np.zeros(p), np.eye(p) * (0.1 * signal / spread)


def fit_hierarchy(
    subjects: Sequence[SubjectGram],
    *,
    n_iterations: int,
    shrinkage: float,
    use_mean: bool,
    tolerance: float = 1e-4,
) -> Hierarchy:
    """EM from isotropic weights; ``shrinkage`` mixes the covariance with an isotropic one of equal trace.

    Stops when the log evidence per voxel rises by less than ``tolerance``.
    """
    p = subjects[0].gram.shape[0]
    mean, cov = _initial(subjects, p)
    # Wide at first: scales and noise variances of voxels within a factor of ten of the start.
    noise = float(np.mean([s.total.mean() / s.dof for s in subjects]))
    hyper = (np.array([0.0, np.log(noise)]), np.diag([4.0, 1.0]))
    evidence: list[float] = []
    for _ in range(n_iterations):
        sums = _expect(subjects, mean, cov, hyper)
        evidence.append(sums.evidence / sums.voxels)
        step = sums.first / sums.precision if use_mean else np.zeros(p)
        second = sums.second - np.outer(step, sums.first) - np.outer(sums.first, step)
        second += sums.precision * np.outer(step, step)
        mean = mean + step
        cov = second / sums.voxels
        cov = (1 - shrinkage) * (cov + cov.T) / 2 + shrinkage * np.trace(cov) / p * np.eye(p)
        centre = sums.logs / sums.voxels
        spread = sums.log_products / sums.voxels - np.outer(centre, centre)
        # The product tau C is what matters: the mean log scale is 0 by convention.
        cov = cov * np.exp(centre[0])
        hyper = (np.array([0.0, centre[1]]), spread + 1e-3 * np.eye(2))
        if len(evidence) > 2 and evidence[-1] - evidence[-2] < tolerance:
            break
    return Hierarchy(mean, cov, hyper, evidence)


def posterior_means(subject: SubjectGram, found: Hierarchy) -> Floats:
    """Posterior mean weights (p, voxel) of the voxels of one subject."""
    parts = []
    for basis, values, t, post in _posteriors(subject, found.mean, covariance_root(found.cov), found.hyper):
        factors = post.ratios[:, None] / (1.0 + post.ratios[:, None] * values)
        parts.append(found.mean[:, None] + basis @ ((factors.T @ post.ratio_weights()) * t))
    return np.concatenate(parts, axis=1)


def held_out_evidence(train: Sequence[SubjectGram], test: Sequence[SubjectGram], **settings: float | bool) -> float:
    """Log evidence per voxel of voxels that the hierarchy did not see, in nats."""
    fitted = fit_hierarchy(train, **settings)  # type: ignore[arg-type]
    sums = _expect(test, fitted.mean, fitted.cov, fitted.hyper)
    return sums.evidence / sums.voxels
