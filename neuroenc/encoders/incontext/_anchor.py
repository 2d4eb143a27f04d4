"""Closed-form anchor of the in-context encoder: a posterior mean under priors weighted by the network."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroenc.encoders.incontext._prior import WeightPrior

# Variances of signal and noise at which the evidence of a voxel is looked at; responses have about unit variance.
_SIGNAL = torch.logspace(math.log10(0.02), math.log10(2.0), 9, dtype=torch.float64)
_NOISE = torch.logspace(math.log10(0.02), math.log10(1.5), 12, dtype=torch.float64)
_TOTAL_SPREAD = 0.35  # of the logarithm of signal plus noise, before training
_INTERCEPT_VARIANCE = 0.1


class Moments(NamedTuple):
    """All that the closed form needs of supports: sums over trials, so that those of two supports add up.

    Features are centred and have a constant one behind them. The Gram matrix is one for all voxels or one each.
    """

    gram: Tensor  # (1 or voxel, e, e)
    cross: Tensor  # (voxel, e)
    power: Tensor  # (voxel,)
    n: Tensor  # (voxel,)

    def of(self, columns: Tensor) -> Moments:
        """Of some voxels."""
        gram = self.gram if len(self.gram) == 1 else self.gram[columns]
        return Moments(gram, self.cross[columns], self.power[columns], self.n[columns])


class _Spectrum(NamedTuple):
    """A component's root times eigenvectors (1 or voxel, e, e), and shrinkage (1 or voxel, signal, noise, e)."""

    root: Tensor
    shrink: Tensor
    log_det: Tensor  # (voxel, signal, noise)


class ClosedFormAnchor(nn.Module):
    r"""Posterior mean under a mixture of Gaussian priors that the network weighs anew for each voxel.

    .. math::
        w_v \mid k, s \sim N\!\big(m_v + \sqrt{s}\,\mu_k,\; s\, C_k\big), \qquad
        y_{vt} = w_v \cdot x_t + b_v + \epsilon, \quad \epsilon \sim N(0, \sigma^2)

    .. math::
        p_v(k, s, \sigma^2) \propto p(y_v \mid k, s, \sigma^2)\, e^{\lambda_k + \lambda_{s\sigma} + \ell_{vk}
        + \ell_{v s\sigma}}, \qquad \hat w_v = \sum p_v\, E[w_v \mid y_v, k, s, \sigma^2]

    The sum goes over components and a grid of signal and noise variances; :math:`\lambda` are learned for all voxels,
    and the first register together with the evidence itself gives :math:`\ell_v` and the correction :math:`m_v`. Before
    training both are 0: an empirical-Bayes ridge with a mixture prior. However many trials there are, the weights go to
    those of ridge, because what the network sets is only a prior.

    A support set that voxels share needs one eigendecomposition a component for all of them together.

    Parameters
    ----------
    dim : int
        Width of the register.
    components : int
        Of the mixture. The first set of means and covariances is 0 and the identity; see `set_prior`.

    Examples
    --------
    >>> import torch
    >>> anchor = ClosedFormAnchor(8, 16)
    >>> x, w = torch.randn(400, 8), torch.randn(3, 8) / 3
    >>> coef, intercept, noise, _ = anchor(torch.zeros(3, 16), x, w @ x.T + 0.3 * torch.randn(3, 400))
    >>> bool((coef - w).abs().max() < 0.1)
    True
    """

    center: Tensor
    means: Tensor
    roots: Tensor
    root: Tensor

    def __init__(self, n_features: int, dim: int, components: int = 1) -> None:
        super().__init__()
        # Whether registers are ignored: the closed form alone.
        self.silent = False
        e, grid = n_features + 1, (len(_SIGNAL), len(_NOISE))
        self.register_buffer("center", torch.zeros(n_features))
        self.register_buffer("means", torch.zeros(components, e))
        roots = torch.eye(e).repeat(components, 1, 1) / max(1, n_features) ** 0.5
        roots[:, -1, -1] = _INTERCEPT_VARIANCE**0.5
        self.register_buffer("roots", roots)
        self.register_buffer("root", roots[0].clone())
        self.component = nn.Parameter(torch.zeros(components))
        total = (_SIGNAL[:, None] + _NOISE).log()
        self.level = nn.Parameter((-0.5 * (total / _TOTAL_SPREAD).square()).float())
        size = components + grid[0] + grid[1] + 1
        self.evidence = nn.Sequential(nn.Linear(size, dim), nn.SiLU())
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Linear(2 * dim, dim)
        self.out = nn.Linear(dim, components + grid[0] + grid[1] + e)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def set_prior(
        self,
        means: Tensor,
        covs: Tensor,
        log_share: Tensor | None = None,
        center: Tensor | None = None,
        level: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Components: means (component, feature), covariances (component, feature, feature), of unit signal variance.

        ``center`` (feature,) is subtracted from features, so that the intercept of a z-scored voxel is about 0;
        ``level`` holds mean (2,) and covariance (2, 2) of the logarithms of signal and noise variance over voxels.
        """
        with torch.no_grad():
            if center is not None:
                self.center.copy_(center)
            self.means[:, :-1] = means
            for k, cov in enumerate(covs.double()):
                self.roots[k, :-1, :-1] = _root(cov)
            if level is not None:
                # Twice as wide: the training subjects are a sample of subjects.
                self.level.copy_(gaussian_grid(level[0].double(), 4 * level[1].double()))
            share = torch.zeros(len(covs)) if log_share is None else log_share
            self.component.copy_(share)
            whole = (share.double().softmax(0)[:, None, None] * covs.double()).sum(0)
            self.root[:-1, :-1] = _root(whole)

    def forward(
        self,
        z: Tensor,
        x: Tensor,
        y: Tensor,
        log_weight: Tensor | None = None,
        *,
        pooled: Tensor | None = None,
        covariance: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """`solve` for a support: arguments as in `moments`."""
        return self.solve(z, self.moments(x, y, log_weight), pooled=pooled, covariance=covariance)

    def solve(
        self, z: Tensor, support: Moments, *, pooled: Tensor | None = None, covariance: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Weights (voxel, feature), intercepts and noise variances (voxel,), posterior covariance or None.

        Takes the register (voxel, dim), and optionally the logarithm of a prior (component, signal, noise) that stands
        in for the learned one.
        """
        with torch.autocast(z.device.type, enabled=False):
            spectra, score, cross, moved = self._score(z, support)
            if pooled is not None:
                score = score + (pooled - self.prior())
            p = score.flatten(1).softmax(1).view_as(score)
            return self._solve(spectra, p, cross, moved, support, covariance)

    def single_prior(self, levels: bool = False) -> WeightPrior:
        """The Gaussian of the mixture's mean and covariance, for weights of uncentred features.

        With ``levels``, the logarithms of signal and noise variance have the mean and covariance of the learned prior.
        """
        known: dict[str, Any] = {}
        with torch.no_grad():
            if levels:
                p, points = self.level.double().flatten().softmax(0), grid_points().flatten(0, 1).to(self.level.device)
                around = points - p @ points
                spread = (around * p[:, None]).mT @ around
                known = {"hyper_mean": (p @ points).cpu().numpy(), "hyper_cov": spread.cpu().numpy()}
            share = self.component.double().softmax(0)
            means, roots = self.means[:, :-1].double(), self.roots[:, :-1, :-1].double()
            mean = share @ means
            apart = means - mean
            cov = (share[:, None, None] * (roots @ roots.mT + apart[:, :, None] * apart[:, None, :])).sum(0)
        return WeightPrior(mean.cpu().numpy(), cov.cpu().numpy(), **known)

    def log_posterior(self, z: Tensor, support: Moments) -> Tensor:
        """Logarithm (voxel, component, signal, noise) of what `solve` weighs by, under the learned prior."""
        with torch.autocast(z.device.type, enabled=False):
            return self._score(z, support)[1]

    def prior(self) -> Tensor:
        """Logarithm of the learned prior (component, signal, noise), not normalised."""
        return self.component.double()[:, None, None] + self.level.double()

    def _score(self, z: Tensor, support: Moments) -> tuple[list[_Spectrum], Tensor, Tensor, Tensor]:
        spectra = [self._spectrum(root.double(), support) for root in self.roots]
        with torch.no_grad():
            score = self._scores(spectra, support, support.cross, support.power)
            if self.silent:
                return spectra, score, support.cross, torch.zeros_like(support.cross)
            stats = self._describe(score, support.n)
        h = F.silu(self.mix(torch.cat([self.norm(z.float()), self.evidence(stats)], dim=1)))
        sizes = [len(self.component), len(_SIGNAL), len(_NOISE), self.root.shape[-1]]
        pick, signal, noise, shift = self.out(h).split(sizes, dim=1)
        # The register speaks in units of the prior's own spread; a bounded share of it.
        moved = (torch.tanh(shift) @ self.root.T).double()
        gm = (support.gram @ moved[..., None])[..., 0]
        cross = support.cross - gm
        power = support.power - ((support.cross + cross) * moved).sum(1)
        score = self._scores(spectra, support, cross, power)
        score = score + (pick[:, :, None, None] + signal[:, None, :, None] + noise[:, None, None, :]).double()
        return spectra, score, cross, moved

    def moments(self, x: Tensor, y: Tensor, log_weight: Tensor | None = None) -> Moments:
        """Of support images (support, feature) or (voxel, support, feature) and responses (voxel, support).

        Responses have no NaN; ``log_weight`` (support,) or (voxel, support) are logarithms of the trials' weights.
        """
        weight = torch.ones_like(y[:1]) if log_weight is None else log_weight.exp().view(-1, y.shape[1])
        x, y, weight = (x.float() - self.center).double(), y.double(), weight.double()
        x = F.pad(x if x.ndim == 3 else x[None], (0, 1), value=1.0)
        gram = (x * weight[..., None]).transpose(1, 2) @ x
        weighted = y * weight
        cross = weighted @ x[0] if len(x) == 1 else torch.einsum("vs,vse->ve", weighted, x)
        return Moments(gram, cross, (weighted * y).sum(1), weight.sum(1).expand(len(y)))

    def _spectrum(self, root: Tensor, support: Moments) -> _Spectrum:
        signal, noise = _SIGNAL.to(root.device), _NOISE.to(root.device)
        values, vectors = torch.linalg.eigh(root.T @ support.gram @ root)
        ratio = signal[:, None] / noise
        shrink = 1 / (1 + values.clamp_min(0)[:, None, None, :] * ratio[..., None])
        log_det = support.n[:, None, None] * noise.log() - shrink.log().sum(-1)
        return _Spectrum(root @ vectors, shrink, log_det)

    def _scores(self, spectra: list[_Spectrum], support: Moments, cross: Tensor, power: Tensor) -> Tensor:
        """Logarithm of likelihood and learned prior (voxel, component, signal, noise), up to a constant."""
        signal, noise = _SIGNAL.to(cross.device), _NOISE.to(cross.device)
        found = []
        for k, (root, shrink, log_det) in enumerate(spectra):
            mean = self.means[k].double()
            gm = support.gram @ mean  # (1 or voxel, e)
            here, there = _turn(cross, root), _turn(gm, root)
            s = signal.sqrt()[:, None]
            # (cross - sqrt(s) G mu)' ... expanded, so that no array has voxels, grid and features at once.
            gain = _over(shrink, here.square()) - 2 * s * _over(shrink, here * there)
            gain = gain + s.square() * _over(shrink, there.square())
            inside = power[:, None] - 2 * signal.sqrt() * (cross @ mean)[:, None] + signal * (gm @ mean)[:, None]
            fit = inside[..., None] - gain * (signal[:, None] / noise)
            found.append(-0.5 * (log_det + fit / noise))
        return torch.stack(found, dim=1) + self.prior()

    def _describe(self, score: Tensor, n: Tensor) -> Tensor:
        """What the network is told of the evidence: its posterior over components, signal and noise, and ln n."""
        p = score.flatten(1).softmax(1).view_as(score)
        parts = [p.sum((2, 3)), p.sum((1, 3)), p.sum((1, 2)), n.clamp_min(1).log()[:, None] / 5]
        return torch.cat(parts, dim=1).float()

    def _solve(
        self, spectra: list[_Spectrum], p: Tensor, cross: Tensor, moved: Tensor, support: Moments, covariance: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        signal, noise = _SIGNAL.to(p.device), _NOISE.to(p.device)
        ratio, s = signal[:, None] / noise, signal.sqrt()[:, None]
        omega, second = moved, None
        for k, (root, shrink, _) in enumerate(spectra):
            mean = self.means[k].double()
            here, there = _turn(cross, root), _turn(support.gram @ mean, root)
            q = p[:, k] * ratio
            part = _average(q, shrink) * here - _average(q * s, shrink) * there
            found = _back(part, root) + (p[:, k] * s).sum((1, 2))[:, None] * mean
            omega = omega + found
            if covariance:
                part = _second(root, shrink, p[:, k], here, there, mean)
                second = part if second is None else second + part
        level = (p.sum((1, 2)) * noise).sum(1)
        if second is not None:
            inside = omega - moved
            second = self._uncentred(second - inside[:, :, None] * inside[:, None, :])
        coef, intercept = omega[:, :-1].float(), omega[:, -1].float()
        return coef, intercept - coef @ self.center, level.float(), second

    def _uncentred(self, cov: Tensor) -> Tensor:
        """Covariance of weights and intercept for features that are not centred."""
        turn = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
        turn[-1, :-1] = -self.center.double()
        return (turn @ cov @ turn.T).float()


def _second(root: Tensor, shrink: Tensor, p: Tensor, here: Tensor, there: Tensor, mean: Tensor) -> Tensor:
    """Second moment (voxel, e, e) of a component's weights over its grid, before the correction."""
    signal, noise = _SIGNAL.to(p.device), _NOISE.to(p.device)
    s = signal.sqrt()[:, None]
    # Means at the points of the grid (voxel, signal x noise, e), in the component's own axes.
    at = shrink * (signal[:, None] / noise)[..., None]
    at = (at * (here[:, None, None, :] - s[..., None] * there[:, None, None, :])).flatten(1, 2)
    inner = (at * p.flatten(1)[..., None]).mT @ at
    inner.diagonal(dim1=1, dim2=2).add_(_average(p * signal[:, None], shrink))
    side = _back(((p * s).flatten(1)[:, None, :] @ at)[:, 0], root)[:, :, None] * mean
    power = (p * signal[:, None]).sum((1, 2))[:, None, None]
    return root @ inner @ root.mT + side + side.mT + power * mean[:, None] * mean


def grid_points() -> Tensor:
    """Logarithms of signal and noise variance at the grid's points (signal, noise, 2)."""
    return torch.stack(torch.meshgrid(_SIGNAL.log(), _NOISE.log(), indexing="ij"), dim=-1)


def gaussian_grid(mean: Tensor, cov: Tensor) -> Tensor:
    """Logarithm (signal, noise), normalised, of a Gaussian over the logarithms of both variances."""
    around = grid_points().to(mean.device) - mean
    cov = cov + 1e-3 * torch.eye(2, dtype=cov.dtype, device=cov.device)
    score = -0.5 * ((around @ torch.linalg.inv(cov)) * around).sum(-1)
    return score.flatten().log_softmax(0).view_as(score)


def _root(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp_min(0).sqrt()).float()


def _turn(vectors: Tensor, root: Tensor) -> Tensor:
    """R' v for (voxel or 1, e) and roots (1 or voxel, e, e)."""
    return vectors @ root[0] if len(root) == 1 else torch.einsum("ve,vef->vf", vectors, root)


def _back(vectors: Tensor, root: Tensor) -> Tensor:
    """R v."""
    return vectors @ root[0].T if len(root) == 1 else torch.einsum("vf,vef->ve", vectors, root)


def _over(shrink: Tensor, values: Tensor) -> Tensor:
    """Sums over features (voxel, signal, noise) of shrinkage times values (voxel, e)."""
    if len(shrink) == 1:
        return (values @ shrink[0].flatten(0, 1).T).unflatten(1, shrink.shape[1:3])
    return torch.einsum("ve,vsne->vsn", values, shrink)


def _average(p: Tensor, shrink: Tensor) -> Tensor:
    """Means over the grid (voxel, e) of the shrinkage."""
    if len(shrink) == 1:
        return p.flatten(1) @ shrink[0].flatten(0, 1)
    return torch.einsum("vsn,vsne->ve", p, shrink)
