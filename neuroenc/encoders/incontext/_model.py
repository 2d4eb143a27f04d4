"""The transformer that reads a voxel's support set and gives the weights of its encoder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from neuroenc._util.errors import ConfigError, DataError, unknown_name
from neuroenc.attention import Attention, Block, LengthScale, ResidualMLP, Stack
from neuroenc.encoders.incontext._anchor import ClosedFormAnchor
from neuroenc.encoders.incontext._mixture import PriorMixture

__all__ = ["PRESETS", "InContextConfig", "InContextModel", "VoxelWeights", "make_model"]


class VoxelWeights(NamedTuple):
    """What a model gives for each voxel: ``coef`` (voxel, feature), ``intercept`` (voxel,).

    In response units per feature unit, and in response units. An anchored model also gives ``noise`` (voxel,), the
    variance of a response around its prediction, and, if asked, ``covariance`` (voxel, feature + 1, feature + 1), the
    posterior's of (weights, intercept).

    Examples
    --------
    >>> import torch
    >>> VoxelWeights(torch.eye(2), torch.tensor([0.0, 1.0])).predict(torch.tensor([[3.0, 4.0]])).tolist()
    [[3.0], [5.0]]
    """

    coef: Tensor
    intercept: Tensor
    noise: Tensor | None = None
    covariance: Tensor | None = None

    def predict(self, x: Tensor) -> Tensor:
        """Responses (voxel, query) to features (query, feature) or (voxel, query, feature)."""
        return torch.einsum("qe,ve->vq" if x.ndim == 2 else "vqe,ve->vq", x, self.coef) + self.intercept[:, None]

    def variance(self, x: Tensor) -> Tensor:
        """Variance (voxel, query) of a new response, noise included."""
        if self.noise is None or self.covariance is None:
            raise ConfigError("this model has no posterior variance. Next step: a model with form='anchored'.")
        wide = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
        spread = torch.einsum("qe,vef->vqf" if x.ndim == 2 else "vqe,vef->vqf", wide, self.covariance)
        return self.noise[:, None] + (spread * wide).sum(-1).clamp_min(0)


@dataclass(frozen=True)
class InContextConfig:
    """Shape of an `InContextModel`.

    Parameters
    ----------
    n_features : int
        Width of the embedding.
    dim, depth, heads, hidden, registers : int
        Width, blocks, heads, width inside the gated feed-forward layers, learned tokens.
    components : int
        Of the anchor's mixture of priors.
    length_scale : {"log_n", "none", "learned"}
    form : {"anchored", "published"}
        ``"published"`` spells weights out from the first register; ``"anchored"`` solves for them in closed form, with
        a prior and a noise level that the first register sets for each voxel. It was the better one wherever it was
        measured here, and is the default; presets of released models are published.
    dropout : float
        In training.
    """

    n_features: int
    dim: int
    depth: int
    heads: int = 10
    hidden: int = 2048
    registers: int = 4
    components: int = 1
    length_scale: str = "log_n"
    form: str = "anchored"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.form not in ("anchored", "published"):
            raise ConfigError(unknown_name("form", self.form, ("anchored", "published")))
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ConfigError(f"{field.name}={value} must be at least 1.")


# The published form, as released: 97.1, 156.0 and 277.0 million parameters.
PRESETS = {
    "clip": InContextConfig(512, 560, 20, form="published"),
    "dino": InContextConfig(768, 800, 20, form="published"),
    "siglip": InContextConfig(1152, 1200, 20, form="published"),
    "clip-3": InContextConfig(512, 560, 3, form="published"),
    # What trains on a laptop.
    "small": InContextConfig(128, 128, 4, heads=4, hidden=256),
}


def make_model(
    preset: str | InContextConfig, *, prior: PriorMixture | None = None, seed: int = 0, **changes: Any
) -> InContextModel:
    """A model with random weights.

    Parameters
    ----------
    preset : str or InContextConfig
        "clip" (512 features), "dino" (768), "siglip" (1152), "clip-3" (3 blocks), "small"; or a config.
    prior : PriorMixture, optional
        Where an anchored model starts: ridge with this prior. It sets ``n_features`` and ``components``.
    seed : int
    **changes
        Fields of `InContextConfig` that differ from the preset, such as ``n_features``.

    Examples
    --------
    >>> make_model("small", n_features=64, depth=2).config.depth
    2
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ConfigError(unknown_name("preset", preset, PRESETS))
        preset = PRESETS[preset]
    legal = [f.name for f in fields(InContextConfig)]
    for name in changes:
        if name not in legal:
            raise ConfigError(unknown_name("setting of an in-context model", name, legal))
    if prior is not None:
        if changes.setdefault("n_features", prior.n_features) != prior.n_features:
            raise ConfigError(f"n_features={changes['n_features']}, but the prior has {prior.n_features}.")
        changes["components"] = prior.n_components
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InContextModel(replace(preset, **changes))
    if prior is not None and model.anchor is not None:
        means, covs, share, center = (
            torch.as_tensor(p) for p in (prior.means, prior.covs, np.log(prior.share), prior.center)
        )
        level = None
        if prior.level_mean is not None and prior.level_cov is not None:
            level = (torch.as_tensor(prior.level_mean), torch.as_tensor(prior.level_cov))
        model.anchor.set_prior(means, covs, share, center, level)
    return model


class InContextModel(nn.Module):
    r"""Support set of a voxel in, weights of its encoder out (BraInCoRL).

    .. math:: c_t = [x_t; y_t], \quad z = \mathrm{blocks}([r_1 \dots r_4; \mathrm{early}(c_1) \dots]), \quad
              (w, b) = \mathrm{head}(z_1), \quad \hat y_q = w \cdot x_q + b

    There are no positions: the output is a function of the set. Queries are scaled by the logarithm of the number of
    tokens, registers counted, before their projection, as released.

    Parameters
    ----------
    config : InContextConfig

    References
    ----------
    Yu et al. (2025), NeurIPS, arXiv:2505.15813.

    Examples
    --------
    >>> import torch
    >>> model = make_model("small", n_features=8, dim=16, depth=2, hidden=32).eval()
    >>> x, y = torch.randn(20, 8), torch.randn(5, 20)
    >>> found = model(x, y)
    >>> found.coef.shape, found.predict(torch.randn(3, 8)).shape
    (torch.Size([5, 8]), torch.Size([5, 3]))
    """

    def __init__(self, config: InContextConfig) -> None:
        super().__init__()
        self.config = config
        e, d = config.n_features, config.dim
        self.early = ResidualMLP(e + 1, d, 2 * d, config.dropout)
        self.stack = Stack(
            [
                Block(
                    Attention(d, config.heads, scale=LengthScale(config.length_scale, config.heads),
                              dropout=config.dropout),
                    hidden=config.hidden, dropout=config.dropout,
                )
                for _ in range(config.depth)
            ],
            config.registers,
        )  # fmt: skip
        self.dropout = nn.Dropout(config.dropout)
        self.head: ResidualMLP | None = None
        self.anchor: ClosedFormAnchor | None = None
        if config.form == "published":
            self.head = ResidualMLP(d, e + 1, 2 * d, config.dropout)
        else:
            self.anchor = ClosedFormAnchor(e, d, config.components)

    def forward(
        self, x: Tensor, y: Tensor, log_weight: Tensor | None = None, *, covariance: bool = False
    ) -> VoxelWeights:
        """Weights of each voxel's encoder.

        Parameters
        ----------
        x : Tensor (support, feature) or (voxel, support, feature)
            Support images, shared by all voxels or each voxel's own.
        y : Tensor (voxel, support)
            Responses, z-scored; NaN where one is missing.
        log_weight : Tensor (support,) or (voxel, support), optional
            Logarithm of how often a support image counts.
        covariance : bool
            Give the posterior covariance, too (anchored models).

        Returns
        -------
        VoxelWeights
        """
        y, log_weight = complete(x, y, log_weight)
        z, _ = self.read(x, y, log_weight)
        return self.write(z[:, 0], x, y, log_weight, covariance=covariance)

    def read(
        self, x: Tensor, y: Tensor, log_weight: Tensor | None, weights_of: slice | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """First register (voxel, 1, dim) after the last block, and attention weights if asked for."""
        tokens = self.embed(x, y)
        if log_weight is not None:
            log_weight = log_weight.expand(len(y), -1)
        return self.stack(tokens, log_weight=log_weight, keep=slice(0, 1), weights_of=weights_of)

    def embed(self, x: Tensor, y: Tensor) -> Tensor:
        """Tokens (voxel, support, dim) of images and responses without NaN."""
        if x.shape[-1] != self.config.n_features:
            raise DataError(f"features have {x.shape[-1]} dimensions; this model takes {self.config.n_features}.")
        # A view: the images are not copied for each voxel.
        wide = x.expand(len(y), *x.shape[-2:])
        return self.dropout(self.early(torch.cat([wide, y[..., None]], dim=-1)))

    def write(
        self, z: Tensor, x: Tensor, y: Tensor, log_weight: Tensor | None = None, *, pooled: Tensor | None = None,
        covariance: bool = False,
    ) -> VoxelWeights:  # fmt: skip
        """Weights from the first register (voxel, dim); ``pooled`` as in `ClosedFormAnchor.solve`."""
        if self.anchor is not None:
            return VoxelWeights(*self.anchor(z, x, y, log_weight, pooled=pooled, covariance=covariance))
        assert self.head is not None
        omega = self.head(z).float()
        return VoxelWeights(omega[:, :-1], omega[:, -1])

    def __repr__(self) -> str:
        c = self.config
        count = sum(p.numel() for p in self.parameters()) / 1e6
        return f"InContextModel({c.form}, {c.n_features} features, {c.depth} x {c.dim}, {count:.1f} M parameters)"

    def describe(self) -> dict[str, Any]:
        """Settings as JSON holds them."""
        return asdict(self.config)


def complete(x: Tensor, y: Tensor, log_weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Missing responses as zeros that nobody looks at, and checked shapes."""
    support = x.shape[-2]
    if y.ndim != 2 or y.shape[1] != support or x.ndim not in (2, 3) or (x.ndim == 3 and len(x) != len(y)):
        raise DataError(f"support images have shape {tuple(x.shape)}, responses {tuple(y.shape)} (voxel, support).")
    missing = y.isnan()
    if not missing.any():
        return y, log_weight
    if missing.all(dim=1).any():
        count = int(missing.all(dim=1).sum())
        raise DataError(f"{count} of {len(y)} voxels have no response at all. Next step: leave them out.")
    base = torch.zeros_like(y) if log_weight is None else log_weight.expand_as(y)
    return y.nan_to_num(0.0), base.masked_fill(missing, -torch.inf)
