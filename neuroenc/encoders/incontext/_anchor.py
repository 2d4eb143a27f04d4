"""Closed form inside the in-context encoder: the network sets a voxel's prior and noise, a solve gives its weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ClosedFormAnchor"]

# Noise variances, and factors of the prior's covariance, at which the evidence of a voxel is looked at; responses have
# about unit variance.
_NOISE = torch.logspace(math.log10(0.02), math.log10(2.0), 12, dtype=torch.float64)
_SCALE = torch.logspace(-1.2, 0.6, 5, dtype=torch.float64)
_INTERCEPT_VARIANCE = 0.3


class ClosedFormAnchor(nn.Module):
    r"""Posterior mean under a Gaussian prior that the network chooses for each voxel.

    .. math::
        w_v \sim N\!\big(\mu + U m_v,\; U \operatorname{diag}(e^{\lambda + \ell_v}) U^\top\big), \qquad
        y_{vt} = w_v \cdot x_t + b_v + \epsilon, \quad \epsilon \sim N(0, \sigma_v^2)

    :math:`U, \lambda, \mu` are shared; the first register and the evidence of the shared prior give :math:`m_v`,
    :math:`\ell_v` and :math:`\ln\sigma_v^2`. Before training :math:`m_v = 0`, and :math:`\ell_v` (one number) and
    :math:`\sigma_v^2` are means under the evidence on a grid: ridge with an empirical-Bayes prior. However many trials
    there are, the weights go to those of ridge, because what the network sets is only a prior.

    Parameters
    ----------
    n_features : int
    dim : int
        Width of the register.

    Examples
    --------
    >>> import torch
    >>> anchor = ClosedFormAnchor(8, 16)
    >>> x, w = torch.randn(200, 8), torch.randn(3, 8)
    >>> coef, intercept, noise, factor = anchor(torch.zeros(3, 16), x, w @ x.T)
    >>> bool((coef - w).abs().max() < 0.1)
    True
    """

    basis: Tensor

    def __init__(self, n_features: int, dim: int) -> None:
        super().__init__()
        e = n_features
        self.register_buffer("basis", torch.eye(e))
        self.mean = nn.Parameter(torch.zeros(e + 1))  # in the basis; the intercept's last
        self.log_variance = nn.Parameter(torch.zeros(e + 1))
        with torch.no_grad():
            self.log_variance[e] = math.log(_INTERCEPT_VARIANCE)
        self.evidence = nn.Sequential(nn.Linear(len(_NOISE) * len(_SCALE) + 3, dim), nn.SiLU())
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Linear(2 * dim, dim)
        self.out = nn.Linear(dim, 2 * (e + 1) + 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def set_prior(self, mean: Tensor, cov: Tensor, intercept: float = 0.0, intercept_variance: float = 0.3) -> None:
        """Start from a prior over weights: mean (feature,), covariance (feature, feature)."""
        values, vectors = torch.linalg.eigh(cov.double())
        floor = float(values[-1]) * 1e-6
        with torch.no_grad():
            self.basis.copy_(vectors)
            self.log_variance[:-1] = values.clamp_min(floor).log()
            self.log_variance[-1] = math.log(intercept_variance)
            self.mean[:-1] = vectors.T @ mean.double()
            self.mean[-1] = intercept

    def forward(
        self, z: Tensor, x: Tensor, y: Tensor, log_weight: Tensor | None = None, *, factor: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Weights (voxel, feature), intercepts and noise variances (voxel,), posterior factor or None.

        Takes the register (voxel, dim), support images (support, feature) or (voxel, support, feature), responses
        (voxel, support) without NaN, and logarithms of the images' weights.
        """
        with torch.autocast(z.device.type, enabled=False):
            return self._solve(z.float(), x.float(), y.float(), log_weight, factor)

    def _solve(
        self, z: Tensor, x: Tensor, y: Tensor, log_weight: Tensor | None, want_factor: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        weight = torch.ones_like(y[:1]) if log_weight is None else log_weight.exp().view(-1, y.shape[1])
        x = F.pad(x @ self.basis, (0, 1), value=1.0)
        x = x if x.ndim == 3 else x[None]
        gram = (x * weight[..., None]).transpose(1, 2) @ x  # (1 or voxel, e + 1, e + 1)
        weighted = y * weight
        cross = weighted @ x[0] if x.shape[0] == 1 else torch.einsum("vs,vse->ve", weighted, x)
        power, n = (weighted * y).sum(1), weight.sum(1).expand(len(y))
        with torch.no_grad():
            profile, noise0, scale0 = self._evidence(gram, cross, power, n)
        stats = torch.cat([profile, torch.stack([noise0, scale0, n.log() / 5], dim=1)], dim=1)
        h = F.silu(self.mix(torch.cat([self.norm(z), self.evidence(stats)], dim=1)))
        shift, spread, level = self.out(h).split([self.mean.numel(), self.mean.numel(), 1], dim=1)
        log_variance = self.log_variance + F.pad(scale0[:, None].expand(-1, spread.shape[1] - 1), (0, 1))
        log_variance = log_variance + 3 * torch.tanh(spread / 3)
        noise = (noise0 + 2 * torch.tanh(level[:, 0] / 2)).exp()
        # The register speaks in units of the prior's own spread.
        mean = self.mean + shift * (0.5 * self.log_variance).exp()
        root = (0.5 * log_variance).exp()
        inner = root[:, :, None] * gram * root[:, None, :] / noise[:, None, None]
        inner = inner + torch.eye(inner.shape[-1], device=x.device)
        lower = torch.linalg.cholesky(inner)
        residual = cross - (gram @ mean[..., None])[..., 0]
        update = torch.cholesky_solve((root * residual / noise[:, None])[..., None], lower)[..., 0]
        omega = mean + root * update
        factor = None
        if want_factor:
            # F F' = R (L L')^-1 R, with F = R L^-T.
            eye = torch.eye(inner.shape[-1], device=x.device).expand_as(lower)
            factor = root[:, :, None] * torch.linalg.solve_triangular(lower.mT, eye, upper=True)
            factor = torch.cat([self.basis @ factor[:, :-1], factor[:, -1:]], dim=1)
        return omega[:, :-1] @ self.basis.T, omega[:, -1], noise, factor

    def _evidence(self, gram: Tensor, cross: Tensor, power: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior (voxel, grid) over noise levels and scales of the shared prior; means of the logarithms of both.

        One eigendecomposition serves all voxels of a support set: with the prior's root R and R G R = Q s Q',
        the likelihood needs s, Q' R X'r and r'r only. The intercept's prior is scaled with the others here.
        """
        noise, scale = _NOISE.to(cross.device), _SCALE.to(cross.device)
        root = (0.5 * self.log_variance).exp().double()
        gram, cross, mean = gram.double(), cross.double(), self.mean.double()
        values, vectors = torch.linalg.eigh(root[:, None] * gram * root)
        gm = gram @ mean  # (1 or voxel, e + 1)
        inside = power.double() - 2 * cross @ mean + gm @ mean
        part = (((cross - gm) * root)[:, None, :] @ vectors)[:, 0].square()  # (voxel, e + 1)
        ratio = scale[:, None] / noise  # (scale, noise)
        # 1 / (1 + s scale / noise), over (1 or voxel, scale, noise, e + 1)
        shrink = 1 / (1 + values.clamp_min(0)[:, None, None, :] * ratio[..., None])
        log_det = n.double()[:, None, None] * noise.log() - shrink.log().sum(-1)
        gain = torch.einsum("ve,vsne->vsn", part, shrink.expand(len(part), -1, -1, -1)) * ratio
        score = -0.5 * (log_det + (inside[:, None, None] - gain) / noise)
        posterior = score.flatten(1).softmax(1)
        split = posterior.view_as(score)
        mean_noise = split.sum(1) @ noise.log()
        return posterior.float(), mean_noise.float(), (split.sum(2) @ scale.log()).float()
