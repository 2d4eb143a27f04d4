"""Gaussian evidence of many voxels with one design, and hierarchical Bayes over their weights.

With a prior ``w ~ N(m, tau C)``, ``C = L L'``, noise ``sigma2 I``, and ``rho = tau / sigma2``, let ``A = X L`` have the
Gram matrix ``A'A = V diag(d) V'``, let ``r = y - X m`` and ``t = V'A'r``. Then

* posterior mean of ``w - m`` is ``L V a``, ``a = rho t / (1 + rho d)``, whatever ``sigma2`` is;
* its posterior covariance is ``L V diag(tau / (1 + rho d)) V'L'`` (within the span of ``L V``; prior outside);
* ``log p(y) = -(dof log(2 pi sigma2) + sum log(1 + rho d) + q / sigma2) / 2`` with
  ``q = r'r - sum rho t^2 / (1 + rho d)``.

An intercept without penalty is projected out: X and y centred, ``dof = n - 1`` (restricted likelihood).

Voxel v of subject s: ``y = X w + b + e``, ``e ~ N(0, sigma2_v)``, ``w ~ N(m, tau_v C)``, ``b`` free, and
``(log tau_v, log sigma2_v)`` Gaussian over voxels. EM over voxels: weights are integrated in closed form, (tau, sigma2)
on a grid, so that an iteration costs one decomposition a subject whatever the number of stimuli.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

    def log_moments(self, counted: NDArray[np.bool_] | None = None) -> tuple[Floats, Floats]:
        """Sums over voxels, or over those ``counted``, of E[u] (2,) and E[u u'] (2, 2).

        u is (log scale, log noise variance).
        """
        log_noise = np.broadcast_to(np.log(self.noise), self.weights.shape)
        log_scale = np.log(self.ratios)[:, None, None] + log_noise
        w = self.weights if counted is None else self.weights * counted
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
    extra: Floats | None = None,
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
    extra : array (R, voxel), optional
        What the uncertainty of expected responses adds to the quadratic form ``q``.
    """
    ratios = RATIOS / unit
    shrink = 1.0 + ratios[:, None] * values  # (R, r)
    log_det = np.log(shrink).sum(axis=1)
    floor = np.finfo(float).tiny
    q = np.maximum(total - (ratios[:, None] / shrink) @ t**2, 1e-12 * total + floor)  # (R, V)
    if extra is not None:
        q = q + extra
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
        if hyper is not None:
            marginal -= _log_lattice_mass(hyper, np.log(ratios), log_noise[0])
    chosen_noise = np.broadcast_to(noise, log_post.shape).reshape(r * s, v)[best, columns]
    scale = ratios[best // s] * chosen_noise
    evidence = like.reshape(r * s, v)[best, columns]
    return GridPosterior(ratios, noise, weights.reshape(r, s, v), evidence, scale, chosen_noise, marginal)


_WAVES = np.array([(i, j) for i in range(-6, 7) for j in range(7) if j > 0 or i > 0])


def _log_lattice_mass(hyper: tuple[Floats, Floats], log_ratios: Floats, log_noise: Floats) -> Floats:
    """Logarithm (voxel,) of what the density of ``hyper`` sums to over the grid's points, continued without end.

    0 where the density is wider than a cell; one that is narrower would count once for every point that it happens to
    meet. By Poisson's summation formula.
    """
    steps = np.array([log_ratios[1] - log_ratios[0], np.log(_NOISE_SHARES[1] / _NOISE_SHARES[0])])
    # (log scale, log noise) to (log ratio, log noise), in units of cells.
    turn = np.array([[1.0, -1.0], [0.0, 1.0]]) / steps[:, None]
    centre, spread = turn @ hyper[0], turn @ hyper[1] @ turn.T
    first = np.stack([np.full(log_noise.shape[-1], log_ratios[0]), log_noise[0]]) / steps[:, None]
    heights = np.exp(-2 * np.pi**2 * np.einsum("mi,ij,mj->m", _WAVES, spread, _WAVES))
    mass = 1.0 + 2.0 * heights @ np.cos(2 * np.pi * _WAVES @ (first - centre[:, None]))
    return np.asarray(np.log(np.maximum(mass, np.finfo(float).tiny)))


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
    subjects: Sequence[SubjectGram], *, n_iterations: int, shrinkage: float, use_mean: bool, tolerance: float = 1e-4
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
