"""The transformer that maps a voxel's support set to the weights of its encoder."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import hash_array, hash_json
from neuroenc.attention import (
    AarenStack,
    Attention,
    Block,
    FullContext,
    LengthScale,
    Memory,
    NeuralMemory,
    NoPosition,
    Past,
    RecurrentMemory,
    ResidualMLP,
    Softmax,
    Stack,
)
from neuroenc.encoders.incontext._anchor import ClosedFormAnchor
from neuroenc.encoders.incontext._config import PLUGS, PRESETS, InContextConfig, part_settings
from neuroenc.encoders.incontext._empirical_bayes import EmpiricalBayesRidge
from neuroenc.encoders.incontext._gain import LARGEST, TRIAL, VOXEL, FitTokens, read_fit
from neuroenc.encoders.incontext._mixture import PriorMixture
from neuroenc.encoders.incontext._prior import WeightPrior


class VoxelWeights(NamedTuple):
    """Predicted weights of each voxel: ``coef`` (voxel, feature), ``intercept`` (voxel,).

    In response units per feature unit, and in response units. An anchored model also gives ``noise`` (voxel,), the
    variance of a response around its prediction, and, if asked, ``covariance`` (voxel, feature + 1, feature + 1), the
    posterior's of (weights, intercept). ``ask`` answers (voxel, query) what is not linear, in the query form.

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
    ask: Callable[[Tensor], Tensor] | None = None
    hint: Tensor | None = None  # (voxel, size), in training

    def predict(self, x: Tensor) -> Tensor:
        """Responses (voxel, query) to features (query, feature) or (voxel, query, feature)."""
        linear = torch.einsum("qe,ve->vq" if x.ndim == 2 else "vqe,ve->vq", x, self.coef) + self.intercept[:, None]
        return linear if self.ask is None else linear + self.ask(x)

    def at_gain(self, gain: Tensor, centre: Tensor) -> VoxelWeights:
        """Weights whose responses go ``gain`` (voxel,) times as far from those at ``centre`` (feature,)."""
        spread = gain[:, None] * self.coef
        away = (self.coef - spread) @ centre
        cov = self.covariance
        if cov is not None:
            turn = torch.diag_embed(gain[:, None].expand(-1, cov.shape[-1])).to(cov.dtype)
            turn[:, -1, :-1] = (1 - gain)[:, None] * centre
            turn[:, -1, -1] = 1.0
            cov = turn @ cov @ turn.mT
        return self._replace(coef=spread, intercept=self.intercept + away, covariance=cov)

    def variance(self, x: Tensor) -> Tensor:
        """Variance (voxel, query) of a new response, noise included."""
        if self.noise is None or self.covariance is None:
            raise ConfigError("this model has no posterior variance. Next step: a model with form='anchored'.")
        wide = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
        spread = torch.einsum("qe,vef->vqf" if x.ndim == 2 else "vqe,vef->vqf", wide, self.covariance)
        return self.noise[:, None] + (spread * wide).sum(-1).clamp_min(0)


def make_model(
    preset: str | InContextConfig, *, prior: PriorMixture | None = None, seed: int = 0, **changes: Any
) -> InContextModel:
    """Make an in-context model with random weights.

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
        one_of("preset", preset, PRESETS)
        preset = PRESETS[preset]
    legal = [f.name for f in fields(InContextConfig)]
    for name in changes:
        one_of("setting of an in-context model", name, legal)
    if prior is not None:
        if changes.setdefault("n_features", prior.n_features) != prior.n_features:
            raise ConfigError(f"n_features={changes['n_features']}, but the prior has {prior.n_features}.")
        changes["components"] = prior.n_components
    if changes.get("memory") is not None:
        changes.setdefault("length_scale", "none")
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
    elif prior is not None and isinstance(model.memory, NeuralMemory):
        # Weights of unit variance in each direction: one step is as good for all of them.
        whole = ClosedFormAnchor(prior.n_features, 1, prior.n_components)
        means, covs, center = (torch.as_tensor(p) for p in (prior.means, prior.covs, prior.center))
        whole.set_prior(means, covs, torch.as_tensor(np.log(prior.share)), center)
        with torch.no_grad():
            key = whole.root.T.clone()
            key[:, -1] -= key[:, :-1] @ whole.center
            model.memory.key.weight.copy_(key)
    return model


class InContextModel(nn.Module):
    r"""In-context model (BraInCoRL): maps a voxel's support set to the weights of its encoder.

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
        # What its features were made by, as far as it is known; see `feature_space`.
        self.features: dict[str, Any] = {}
        e, d = config.n_features, config.dim
        titans = config.memory == "titans"
        refined = config.form == "refined"
        self.early = None if titans else ResidualMLP(TRIAL if refined else e + 1, d, 2 * d, config.dropout)
        self.memory: Memory | None = None if config.memory is None else _make_memory(config)
        self.stack: Stack | None = _make_stack(config) if config.memory is None else None
        self.dropout = nn.Dropout(config.dropout)
        self.head: ResidualMLP | None = None
        self.anchor: ClosedFormAnchor | None = None
        self.query: nn.ModuleDict | None = None
        width = d * config.registers if config.memory == "attention" else d
        if config.form != "published":
            self.anchor = ClosedFormAnchor(e, width, config.components)
            self.anchor.silent = config.silent or refined
        elif not titans:
            self.head = ResidualMLP(width, e + 1, 2 * d, config.dropout)
        self.gain: nn.ModuleDict | None = None
        if refined:
            self.gain = nn.ModuleDict({"voxel": nn.Linear(VOXEL, d), "norm": nn.LayerNorm(d), "out": _unmoved(d)})
        self.hint: nn.Linear | None = None
        if config.hint is not None:
            self.hint = nn.Linear(e + 1 if titans else width, 2 if config.hint == "statistics" else e + 1)
        if config.form == "query":
            early = ResidualMLP(e, d, 2 * d, config.dropout)
            self.query = nn.ModuleDict({"early": early, "norm": nn.LayerNorm(d), "out": _unmoved(d)})

    def silence(self, silent: bool = True) -> InContextModel:
        """Leave the network out, or let it speak again; an anchored model is then its closed form. In place.

        >>> make_model("small", n_features=8, dim=16, depth=1, hidden=32).silence().config.silent
        True
        """
        self.config = replace(self.config, silent=silent)
        if self.anchor is not None:
            self.anchor.silent = silent or self.gain is not None
        return self

    def weight_prior(self) -> WeightPrior:
        """Prior over voxel weights that an anchored model has learned: one Gaussian, and its levels over voxels.

        Its mean has the scale of a typical voxel. The published form has none, which is an error.

        >>> make_model("small", n_features=8, dim=16, depth=1, hidden=32).weight_prior().n_features
        8
        """
        if self.anchor is None:
            raise ConfigError(f"{self!r} has no prior. Next step: an anchored model, or WeightPrior.from_responses.")
        prior = self.anchor.single_prior(levels=True)
        assert prior.hyper is not None
        return replace(prior, mean=prior.mean * np.exp(prior.hyper[0][0] / 2))

    def upcycle(self, names: Sequence[str]) -> InContextModel:
        """A model with one expert a name, all of them copies of this dense model's feed-forward networks.

        Parameters
        ----------
        names : sequence of str
            Groups of voxels; see `InContextConfig` (``experts``).

        References
        ----------
        Komatsuzaki et al. (2023), Sparse upcycling, ICLR, arXiv:2212.05055; Hallee et al. (2024), arXiv:2401.15713.

        Examples
        --------
        >>> model = make_model("small", n_features=8, dim=16, depth=1, hidden=32).upcycle(["V1", "FFA"])
        >>> model.config.experts, model.expert("FFA").config.experts
        (('V1', 'FFA'), ())
        """
        if self.config.experts:
            raise ConfigError(f"this model has experts already: {', '.join(self.config.experts)}.")
        found = copy.deepcopy(self)
        found.config = replace(self.config, experts=cast(Any, names))
        for block in () if found.stack is None else found.stack.blocks:
            block.feed_forward = nn.ModuleList(copy.deepcopy(cast(Block, block).feed_forward) for _ in names)
        return found

    def expert(self, name: str) -> InContextModel:
        """The dense model that one expert is. Its parameters are this model's own: training it trains them.

        Raises
        ------
        ConfigError
            No expert of this name.
        """
        if name not in self.config.experts:
            raise ConfigError(unknown_name("expert", name, self.config.experts))
        place = self.config.experts.index(name)
        assert self.stack is not None
        blocks = [_with(b, feed_forward=cast(Any, b.feed_forward)[place]) for b in self.stack.blocks]
        found = _with(self, stack=_with(self.stack, blocks=nn.ModuleList(blocks)))
        found.config = replace(self.config, experts=())
        return cast(InContextModel, found)

    @property
    def has_heads(self) -> bool:
        """Whether there are heads that attend to trials: not in memories, nor where a network reads a fit of them."""
        return self.stack is not None and self.gain is None

    @property
    def solves_alone(self) -> bool:
        """Whether weights come from the closed form alone; the network of the refined form scales them afterwards."""
        return self.config.silent or self.gain is not None

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        log_weight: Tensor | None = None,
        *,
        pooled: Tensor | None = None,
        covariance: bool = False,
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
        pooled : Tensor, optional
            Levels of all voxels of a subject, from `pooled_prior` (anchored models).
        covariance : bool
            Give the posterior covariance, too (anchored models).
        """
        if self.gain is not None and not self.config.silent:
            return self._refined(x, y, log_weight, covariance)
        y, log_weight = complete(x, y, log_weight)
        past: list[Past] | None = None if self.query is None or self.config.silent else []
        z, _ = self.read(x, y, log_weight, past=past)
        found = self.write(z[:, 0], x, y, log_weight, pooled=pooled, covariance=covariance)
        if self.hint is not None and self.training:
            found = found._replace(hint=self.hint(z[:, 0]).float())
        return found if past is None else found._replace(ask=partial(self.ask, past=past))

    def read(
        self,
        x: Tensor,
        y: Tensor,
        log_weight: Tensor | None,
        weights_of: slice | None = None,
        past: list[Past] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """First register (voxel, 1, dim) after the last block, and attention weights if asked for.

        A memory's answer where the model has one. ``past`` gets what `ask` needs.
        """
        if self.solves_alone and weights_of is None:
            return torch.zeros(len(y), 1, self.config.dim, device=y.device), []
        if self.config.experts:
            raise ConfigError(
                f"this model has an expert for each of {', '.join(self.config.experts)}. Next step: "
                "model.expert(name), or InContextEncoder(expert=...)."
            )
        if log_weight is not None:
            log_weight = log_weight.expand(len(y), -1)
        if self.stack is None:
            assert self.memory is not None
            return self.memory(self.embed(x, y), log_weight).flatten(1)[:, None], []
        _check_landmarks(self.stack)
        order = None
        if self.stack.block_size:
            order = block_order(x if x.ndim == 2 else x[0], self.stack.block_size)
            x, y = x[..., order, :], y[:, order]
            log_weight = None if log_weight is None else log_weight[:, order]
        tokens = self.embed(x, y)
        z, weights = self.stack(tokens, log_weight=log_weight, keep=slice(0, 1), weights_of=weights_of, past=past)
        if order is not None and weights:
            count = self.stack.registers.shape[1]
            back = torch.cat([torch.arange(count, device=order.device), order.argsort() + count])
            weights = [w[..., back] for w in weights]
        return z, weights

    def log_gain(self, tokens: FitTokens) -> Tensor:
        """Logarithm (voxel,) of each voxel's gain after the last trial over that which the closed form found."""
        assert self.gain is not None
        assert self.stack is not None
        assert self.early is not None
        known = torch.cat([self.gain["voxel"](tokens.voxels)[:, None], self.early(tokens.trials)], dim=1)
        z, _ = self.stack(self.dropout(known), keep=slice(0, 1))
        return LARGEST * torch.tanh(self.gain["out"](self.gain["norm"](z[:, 0]))[:, 0].float())

    def _refined(self, x: Tensor, y: Tensor, log_weight: Tensor | None, covariance: bool) -> VoxelWeights:
        """Weights of the closed form under robust noise, at the gain after the last trial."""
        assert self.anchor is not None
        if x.ndim != 2 or log_weight is not None:
            raise ConfigError("form='refined' reads trials that all voxels share, each once.")
        # Voxels with fewer responses than a fit takes stay as the closed form's prior has them.
        known = (~y.isnan()).sum(1) >= 3
        heard, images = y[known].T.double().cpu().numpy(), x.double().cpu().numpy()
        robust = "shared" if len(x) >= 10 else "none"
        closed = EmpiricalBayesRidge(self.anchor.single_prior(), robust=robust, drift="gain", clip=None)
        closed.fit(images, heard)
        tokens = FitTokens(*(t.to(x.device) for t in read_fit(closed)))
        precision = torch.as_tensor(closed.trial_precision_, device=x.device)
        filled, weight = complete(x, y, precision.log().float())
        with torch.no_grad():
            z = torch.zeros(len(y), self.config.dim, device=x.device)
            found = self.write(z, x, filled, weight, covariance=covariance)
        drift = torch.as_tensor(closed.gain_drift_ / 2, device=x.device, dtype=found.coef.dtype)
        gain = torch.ones_like(found.intercept)
        gain[known] = (self.log_gain(tokens) + drift).exp()
        assert found.noise is not None
        typical = float((1 / precision).mean())
        return found._replace(noise=found.noise * typical).at_gain(gain, x.mean(dim=0))

    def ask(self, x: Tensor, past: list[Past]) -> Tensor:
        """What queries (query, feature) or (voxel, query, feature) find in a support that was read: (voxel, query)."""
        assert self.query is not None
        assert self.stack is not None
        asked = self.dropout(self.query["early"](x)).expand(len(past[0].keys), -1, -1)
        return self.query["out"](self.query["norm"](self.stack.ask(asked, past))).squeeze(-1).float()

    def embed(self, x: Tensor, y: Tensor) -> Tensor:
        """Tokens (voxel, support, dim) of images and responses without NaN."""
        if x.shape[-1] != self.config.n_features:
            raise DataError(f"features have {x.shape[-1]} dimensions; this model takes {self.config.n_features}.")
        # A view: the images are not copied for each voxel.
        wide = x.expand(len(y), *x.shape[-2:])
        if self.early is None:
            return torch.cat([wide, torch.ones_like(y)[..., None], y[..., None]], dim=-1)
        return self.dropout(self.early(torch.cat([wide, y[..., None]], dim=-1)))

    def write(
        self,
        z: Tensor,
        x: Tensor,
        y: Tensor,
        log_weight: Tensor | None = None,
        *,
        pooled: Tensor | None = None,
        covariance: bool = False,
    ) -> VoxelWeights:
        """Weights from the first register (voxel, dim); ``pooled`` as in `ClosedFormAnchor.solve`."""
        if self.anchor is not None:
            return VoxelWeights(*self.anchor(z, x, y, log_weight, pooled=pooled, covariance=covariance))
        omega = (z if self.head is None else self.head(z)).float()
        return VoxelWeights(omega[:, :-1], omega[:, -1])

    def __repr__(self) -> str:
        c = self.config
        count = sum(p.numel() for p in self.parameters()) / 1e6
        kind = c.form if c.memory is None else f"{c.form}, memory {c.memory}"
        kind += f", experts {'/'.join(c.experts)}" if c.experts else ""
        return f"InContextModel({kind}, {c.n_features} features, {c.depth} x {c.dim}, {count:.1f} M parameters)"

    def content_hash(self) -> str:
        """Hash of settings and weights."""
        return hash_json([self.describe(), {k: hash_array(v.numpy()) for k, v in sorted(self.state_dict().items())}])

    def describe(self) -> dict[str, Any]:
        """Settings as JSON holds them: of the model as it is, parts that were exchanged after it was made included.

        Raises
        ------
        ConfigError
            Something that no `InContextConfig` says; it is named.
        """
        return asdict(described(self))

    @property
    def is_set(self) -> bool:
        """Whether the order of trials cannot matter, nor those that are masked: no positions, all trials looked at."""
        if self.stack is None:
            return isinstance(self.memory, AarenStack) and self.memory.is_set
        usual = (type(None), NoPosition, FullContext)
        attentions = [cast(Block, block).attention for block in self.stack.blocks]
        whole = all(type(a.position) in usual and type(a.context) in usual for a in attentions)
        return whole and not self.stack.block_size


def _with(module: nn.Module, **parts: nn.Module) -> Any:
    """The module with other parts in the place of its own; all else is shared with it."""
    found = copy.copy(module)
    found._modules = {**module._modules, **parts}
    return found


def _unmoved(dim: int) -> nn.Linear:
    """An output that is 0 before training."""
    out = nn.Linear(dim, 1)
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)
    return out


def _make_stack(config: InContextConfig) -> Stack:
    blocks = [
        Block(
            Attention(
                config.dim,
                config.heads,
                dropout=config.dropout,
                **config.parts(),
                scale=LengthScale(config.length_scale, config.heads, config.scale_before_projection),
            ),
            hidden=config.hidden,
            dropout=config.dropout,
            feed_forward=config.feed_forward,
        )
        for _ in range(config.depth)
    ]
    for block in blocks if config.experts else ():
        kind = type(block.feed_forward)
        block.feed_forward = nn.ModuleList(kind(config.dim, config.hidden) for _ in config.experts)  # type: ignore
    return Stack(blocks, config.registers, config.block_size)


def _make_memory(config: InContextConfig) -> Memory:
    c = config
    if c.memory == "titans":
        return NeuralMemory(c.n_features + 1, hidden=c.dim, persistent=c.registers)
    if c.memory == "attention":
        position = cast(Any, c.parts()["position"])
        return AarenStack(c.dim, c.heads, c.depth, c.registers, c.hidden, position)
    return RecurrentMemory(c.dim, c.dim, str(c.memory))


def _check_landmarks(stack: Stack) -> None:
    """An error for a normaliser, exchanged by hand, that takes trials for landmarks."""
    for number, block in enumerate(stack.blocks):
        normaliser = cast(Block, block).attention.normaliser
        if normaliser.needs_layout and not stack.block_size:
            raise ConfigError(
                f"{type(normaliser).__name__} of block {number} takes every so-manieth token for a landmark, "
                "and this model inserts none: it would drop the trials that stand there. Next step: "
                "make_model(..., normaliser={'class': 'GroupedSoftmax', 'block_size': ..., 'lead': registers})."
            )


def block_order(x: Tensor, size: int) -> Tensor:
    """An order of stimuli (n, feature) in which blocks of ``size`` hold like ones, the same whatever order they had.

    Halves along the leading principal axis, and each half again.

    >>> x = torch.tensor([[0.0, 5.0], [1.0, 0.0], [0.1, 5.0], [1.0, 0.1]])
    >>> sorted(sorted(pair) for pair in block_order(x, 2).view(2, 2).tolist())
    [[0, 2], [1, 3]]
    """

    def halved(rows: Tensor) -> list[Tensor]:
        if len(rows) <= size:
            return [rows]
        part = x[rows].double()
        part = part - part.mean(0)
        axis = torch.linalg.eigh(part.T @ part)[1][:, -1]
        axis = axis * axis[axis.abs().argmax()].sign()
        rows = rows[(part @ axis).argsort(stable=True)]
        left = (-(-len(rows) // size) // 2) * size
        return halved(rows[:left]) + halved(rows[left:])

    with torch.no_grad():
        return torch.cat(halved(torch.arange(len(x), device=x.device)))


def described(model: InContextModel) -> InContextConfig:
    """The config that makes a model of the same parts; see `InContextModel.describe`."""
    changes: dict[str, Any] = {}
    attention = None if model.stack is None else cast(Block, model.stack.blocks[0]).attention
    if type(attention) is Attention:
        for name in PLUGS:
            part = getattr(attention, name)
            changes[name] = None if part is None or type(part) is Softmax else part_settings(name, part)
    config = replace(model.config, **changes)
    # What the config makes, without memory for its weights.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = InContextModel(config)
    ours, theirs = dict(model.named_modules()), dict(twin.named_modules())
    for name in dict.fromkeys([*ours, *theirs]):
        found, wanted = (_anatomy(parts.get(name)) for parts in (ours, theirs))
        odd = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        if not odd:
            continue
        what = f"{name}.{odd[0]}" if name else odd[0]
        raise ConfigError(
            f"{what} is {found.get(odd[0])!r} where the settings of an in-context model give {wanted.get(odd[0])!r}: "
            "saved, it would come back as another one. Next step: make_model with that option, the same in all blocks."
        )
    return config


def _anatomy(module: nn.Module | None) -> dict[str, Any]:
    """Class, plain attributes and shapes of one module, without what is inside it."""
    found: dict[str, Any] = {"class": type(module).__name__}
    if module is None:
        return found
    for name, value in vars(module).items():
        if name.startswith("_") or name in ("training", "config", "features"):
            continue
        plain = value is None or isinstance(value, (bool, int, float, str, tuple, list))
        found[name] = value if plain else type(value).__name__
    tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    found |= {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found["parts"] = sorted(name for name, part in module.named_children())
    return found


def complete(x: Tensor, y: Tensor, log_weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Check shapes; replace missing responses by zeros of weight -inf."""
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
