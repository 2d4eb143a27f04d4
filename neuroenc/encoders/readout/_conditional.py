"""Readouts conditioned on the caption or on the region: sentence gate, patch summary, codebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional

from neuroenc._core.checks import check_whole, one_of, share
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders.readout._protocol import Readout, make_readout, register_readout
from neuroenc.encoders.readout._spatial import feature_penalty, group_index


def _context_width(context_shape: Sequence[int] | None) -> int:
    return 0 if context_shape is None else int(context_shape[0])


def _context_vectors(context: Tensor | None, width: int) -> Tensor:
    """Vectors (B, width) of a context; maps are averaged over places."""
    if context is None or context.shape[1] != width:
        found = "no context" if context is None else f"a context of {context.shape[1]} channels"
        raise DataError(f"{found}; this readout reads {width}. Next step: pass context= when fitting and predicting.")
    return context.flatten(2).mean(-1)


@register_readout
class SentenceGateReadout(Readout):
    r"""Sentence gate: channels of the map are scaled by the caption, before any other readout.

    .. math:: g = 2\,\sigma\big(W_2\, \mathrm{relu}(W_1 [\mathrm{mean}_{hw} x ;\, t] + b_1) + b_2\big), \qquad
              y = \mathrm{inner}(g_c\, x_c)

    with t the vector of ``context``, such as the stimulus' caption. The gate begins at 1, where this is the inner
    readout, and is shared by all voxels. Without a context it sees the map alone (squeeze and excitation).

    Parameters
    ----------
    in_shape, n_voxels, max_memory
        As of `LinearReadout`.
    inner : str
        The readout behind the gate, any but this one.
    inner_options : dict, optional
        The inner readout's own.
    context_shape : (int, int, int), optional
        Of the context; maps are averaged over places.
    squeeze : bool
        Whether the gate sees the mean of each channel beside the context.
    hidden : int
        Units of the gate.
    gate_l2 : float
        Penalty on :math:`W_2` and :math:`b_2`, which pulls gates to 1.

    References
    ----------
    Hu, Shen & Sun (2018), Squeeze-and-excitation networks, CVPR. Khoshsirat & Kambhamettu (2023), Sentence attention
    blocks for answer grounding, ICCV.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.encoders.readout import make_readout
    >>> gated = make_readout("sentence_gate", (8, 7, 7), 3, inner="gaussian", context_shape=(384, 1, 1))
    >>> gated(torch.zeros(2, 8, 7, 7), torch.zeros(2, 384, 1, 1)).shape
    torch.Size([2, 3])
    """

    name: ClassVar[str] = "sentence_gate"

    def __init__(
        self,
        in_shape: Sequence[int],
        n_voxels: int,
        *,
        inner: str = "factorized",
        inner_options: dict[str, Any] | None = None,
        context_shape: Sequence[int] | None = None,
        squeeze: bool = True,
        hidden: int = 16,
        gate_l2: float = 0.0,
        max_memory: int = 2**28,
    ) -> None:
        super().__init__(in_shape, n_voxels, max_memory=max_memory)
        if inner == self.name:
            raise ConfigError(f"inner={inner!r} is the gate itself. Next step: inner='factorized'.")
        self.width, self.squeeze, self.gate_l2 = _context_width(context_shape), bool(squeeze), float(gate_l2)
        n_in = self.width + self.squeeze * self.in_shape[0]
        if not n_in:
            raise ConfigError("squeeze=False without a context leaves the gate nothing to see. Next step: context=.")
        self.inner = make_readout(inner, in_shape, n_voxels, **{"max_memory": max_memory, **(inner_options or {})})
        self.first = nn.Linear(n_in, check_whole("hidden", hidden))
        self.last = nn.Linear(hidden, self.in_shape[0])
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def gate(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Gains (B, C) of the channels, in (0, 2)."""
        seen = [x.mean((2, 3))] if self.squeeze else []
        seen += [_context_vectors(context, self.width)] if self.width else []
        return 2 * torch.sigmoid(self.last(functional.relu(self.first(torch.cat(seen, 1)))))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Responses (B, V) of the inner readout to the gated maps."""
        if tuple(x.shape[1:]) != self.in_shape:
            raise DataError(f"maps have shape {tuple(x.shape[1:])} a stimulus; this readout reads {self.in_shape}.")
        return self.inner(x * self.gate(x, context)[:, :, None, None])

    def read(self, x: Tensor, voxels: slice, shared: Any) -> Tensor:
        """The inner readout's, of gated maps."""
        return self.inner.read(x, voxels, shared)

    def start(self, mean: Tensor) -> None:
        """Begin where the inner readout begins."""
        self.inner.start(mean)

    def constrain(self) -> None:
        """The inner readout's constraints."""
        self.inner.constrain()

    def regulariser(self) -> Tensor:
        """The inner readout's penalty, and that on the gate for each voxel."""
        gate = self.last.weight.square().sum() + self.last.bias.square().sum()
        return self.inner.regulariser() + self.gate_l2 * self.n_voxels * gate

    def receptive_field(self) -> dict[str, Tensor] | None:
        """The inner readout's."""
        return self.inner.receptive_field()

    def weights(self) -> xr.Dataset:
        """The inner readout's, at a gate of 1."""
        return self.inner.weights()

    @classmethod
    def search_space(cls) -> dict[str, list[Any]]:
        """Pull of the gate to 1."""
        return {"gate_l2": [1e-3, 1e-2, 1e-1]}


@register_readout
class PatchSummaryReadout(Readout):
    r"""Patch summary: the patches that matter are kept, the rest fused, all of it read through a few summary tokens.

    .. math:: a_p = q^\top k_p / \sqrt d, \qquad z_s = \sum_{p \in \mathrm{kept} + \mathrm{fused}}
              \mathrm{softmax}_p\big(u_s^\top h_p / \sqrt d + \log \sigma(a_p)\big)\, x_p, \qquad
              y_v = b_v + \sum_s f_{vs}^\top z_s

    with q the caption's vector, projected, where there is a ``context``, and else one that is learned for the voxels
    of the readout; the fused token is the mean of the other patches by softmax of their scores. The published selector
    is trained on boxes of objects. Here the patch-text matching loss needs captions alone: in a batch, a caption's best
    patches shall be in its own picture (cross entropy of :math:`\log \sum_p e^{a_p}` over pictures and over captions;
    pictures with equal captions count as one).

    Parameters
    ----------
    in_shape : (int, int, int)
        Channels, height, width; tokens (T, D) are maps (D, sqrt T, sqrt T).
    n_voxels : int
    keep : float
        Share of the patches that are kept.
    summaries : int
        Summary tokens.
    context_shape : (int, int, int), optional
        Of the caption's vector (D, 1, 1); maps are averaged over places.
    matching : float
        Weight of the matching loss, beside a loss of 1 a voxel for predicting the mean; needs a context.
    key_size : int
        Width d of queries and keys.
    feature_l2 : float
        Penalty per voxel on the feature weights.
    max_memory : int
        Bytes for one chunk of voxels.

    References
    ----------
    Jiang et al. (2023), BUS: Efficient and effective vision-language pre-training with bottom-up patch summarization,
    ICCV.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.encoders.readout import make_readout
    >>> readout = make_readout("patch_summary", (8, 7, 7), 3, context_shape=(16, 1, 1))
    >>> kept = readout.select(torch.randn(2, 8, 7, 7), torch.randn(2, 16, 1, 1))[1]
    >>> kept.shape, int(kept[0].sum())
    (torch.Size([2, 7, 7]), 24)
    """

    name: ClassVar[str] = "patch_summary"

    def __init__(
        self,
        in_shape: Sequence[int],
        n_voxels: int,
        *,
        keep: float = 0.5,
        summaries: int = 4,
        context_shape: Sequence[int] | None = None,
        matching: float = 0.1,
        key_size: int = 32,
        feature_l2: float = 0.0,
        max_memory: int = 2**28,
    ) -> None:
        super().__init__(in_shape, n_voxels, max_memory=max_memory)
        if not 0 < keep <= 1:
            raise ConfigError(f"keep={keep} must be a share of the patches, above 0 and at most 1.")
        channels, height, width = self.in_shape
        self.n_kept = max(1, int(keep * height * width))
        self.width, self.matching, self.feature_l2 = _context_width(context_shape), float(matching), float(feature_l2)
        self.key_size = check_whole("key_size", key_size)
        # Scores begin near 0, where every patch is as likely to be kept.
        self.patch = nn.Linear(channels, key_size)
        self.text = nn.Linear(self.width, key_size) if self.width else None
        self.voxel = None if self.width else self._initial(key_size, scale=0.1)
        self.query = self._initial(check_whole("summaries", summaries), key_size, scale=1.0)
        self.key = self._initial(key_size, channels, scale=0.1 / channels**0.5)
        self.position = self._initial(height * width, key_size, scale=0.1)
        self.feature = self._initial(n_voxels, summaries, channels)
        self.bias = nn.Parameter(torch.zeros(n_voxels))
        self._matched: Tensor | None = None

    def chunk_bytes(self, batch: int) -> float:
        """One row of output: the products need nothing else."""
        return 4.0 * batch

    def _queries(self, context: Tensor | None) -> Tensor:
        if self.text is None:
            assert self.voxel is not None
            return self.voxel[None]
        return self.text(_context_vectors(context, self.width))

    def select(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores (B, H, W) of the patches, and which are kept (B, H, W) bool."""
        keys = self.patch(x.flatten(2).transpose(1, 2))
        scores = (keys * self._queries(context)[:, None]).sum(-1) / self.key_size**0.5
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(self.n_kept).indices, True)
        return scores.unflatten(1, self.in_shape[1:]), kept.unflatten(1, self.in_shape[1:])

    def prepare(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Summary tokens (B, s, C)."""
        scores, kept = (part.flatten(1) for part in self.select(x, context))
        tokens = x.flatten(2).transpose(1, 2)
        keys = tokens @ self.key.T + self.position
        # Kept patches enter the attention as they are; the others as one, and with the weight of one.
        logits = torch.einsum("sd,bpd->bsp", self.query, keys) / self.key_size**0.5
        logits = (logits + functional.logsigmoid(scores)[:, None]).masked_fill(~kept[:, None], -torch.inf)
        values = tokens
        if self.n_kept < tokens.shape[1]:
            rest = scores.masked_fill(kept, -torch.inf).softmax(1)[:, None]
            fused, key = rest @ tokens, rest @ keys
            own = torch.einsum("sd,bpd->bsp", self.query, key) / self.key_size**0.5
            weak = (rest * scores[:, None]).sum(-1, keepdim=True)
            logits = torch.cat([logits, own + functional.logsigmoid(weak)], -1)
            values = torch.cat([tokens, fused], 1)
        if self.training and torch.is_grad_enabled() and self.text is not None and self.matching:
            self._matched = self._match(x, context)
        return logits.softmax(-1) @ values

    def _match(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Cross entropy of captions and pictures that belong together, over the batch."""
        vectors = _context_vectors(context, self.width)
        keys = self.patch(x.flatten(2).transpose(1, 2))
        scores = torch.einsum("id,jpd->ijp", self._queries(context), keys) / self.key_size**0.5
        best = scores.logsumexp(-1)
        # Not by way of a matrix product, whose rounding is larger than what tells captions apart.
        apart = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
        same = (apart <= 1e-4 * vectors.norm(dim=1).mean()).to(best.dtype)
        target = same / same.sum(1, keepdim=True)
        return (functional.cross_entropy(best, target) + functional.cross_entropy(best.T, target)) / 2

    def read(self, x: Tensor, voxels: slice, shared: Any) -> Tensor:
        """Weighted channels of the summary tokens."""
        return functional.linear(shared.flatten(1), self.feature[voxels].flatten(1), self.bias[voxels])

    def regulariser(self) -> Tensor:
        """Penalty on the features' weights, and the matching loss of the last batch for each voxel."""
        penalty = feature_penalty(self.feature, 0.0, self.feature_l2)
        if self._matched is not None:
            penalty = penalty + self.matching * self.n_voxels * self._matched
            self._matched = None
        return penalty

    def weights(self) -> xr.Dataset:
        """``feature`` (voxel, summary, channel) and ``intercept`` (voxel)."""
        return self._labelled(feature=(("summary", "channel"), self.feature))

    @classmethod
    def search_space(cls) -> dict[str, list[Any]]:
        """Strengths of the penalty on features."""
        return {"feature_l2": [1e-3, 1e-2, 1e-1]}


_CODES = ("softmax", "relu")


@register_readout
class CodebookReadout(Readout):
    r"""Codebook readout: features pass through a mixture of a few learned codes, which the region may tilt.

    .. math:: p = \mathrm{softmax}\big(A\,\mathrm{relu}(B x + r_{g})\big), \qquad z = \sum_k p_k c_k, \qquad
              y_v = b_v + f_v^\top z

    with :math:`r_g` a vector of the voxel's group, such as its region. `usage` says which codes a stimulus uses.
    ``code="relu"`` is the control: a plain network of the same size. Expect neither to beat a low-rank linear readout.

    Parameters
    ----------
    in_shape, n_voxels, max_memory
        As of `LinearReadout`.
    codes, code_size : int
        Number and width of the codes.
    hidden : int
        Hidden units.
    code : {"softmax", "relu"}
    groups : sequence of int (n_voxels,) or str, optional
        Group of each voxel, 0 to n - 1; in `ReadoutEncoder` and comparisons also a coordinate of voxels, such as "roi".
    dropout : float
        Share of the codes that are left out in a training step, so that the use of codes does not collapse.
    feature_l2 : float
        Penalty per voxel on the feature weights.

    References
    ----------
    Eftekhar et al. (2024), Selective visual representations improve convergence and generalization for embodied AI,
    ICLR.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.encoders.readout import make_readout
    >>> readout = make_readout("codebook", (8, 1, 1), 4, codes=16, groups=[0, 0, 1, 1])
    >>> readout.usage(torch.zeros(2, 8, 1, 1)).shape
    torch.Size([2, 2, 16])
    """

    name: ClassVar[str] = "codebook"

    def __init__(
        self,
        in_shape: Sequence[int],
        n_voxels: int,
        *,
        codes: int = 64,
        code_size: int = 10,
        hidden: int = 64,
        code: str = "softmax",
        groups: Sequence[int] | None = None,
        dropout: float = 0.1,
        feature_l2: float = 0.0,
        max_memory: int = 2**28,
    ) -> None:
        super().__init__(in_shape, n_voxels, max_memory=max_memory)
        for name, value in (("codes", codes), ("code_size", code_size), ("hidden", hidden)):
            check_whole(name, value)
        self.code, self.feature_l2 = one_of("code", code, _CODES), float(feature_l2)
        self.dropout = share("dropout", dropout)
        index = group_index(groups, n_voxels)
        self.register_buffer("group", index, persistent=True)
        self.group: Tensor
        n_features = self.in_shape[0] * self.in_shape[1] * self.in_shape[2]
        self.first = nn.Linear(n_features, hidden)
        self.region = None if groups is None else self._initial(int(index.max()) + 1, hidden, scale=0.1)
        self.last = nn.Linear(hidden, codes)
        self.codebook = self._initial(codes, code_size, scale=1.0)
        self.feature = self._initial(n_voxels, code_size)
        self.bias = nn.Parameter(torch.zeros(n_voxels))

    def chunk_bytes(self, batch: int) -> float:
        """The mixture of a voxel's group, and its gradient."""
        return 12.0 * batch * self.codebook.shape[1]

    def usage(self, x: Tensor) -> Tensor:
        """Use (B, group, code) of each code."""
        hidden = self.first(x.flatten(1))[:, None]
        logits = self.last(functional.relu(hidden if self.region is None else hidden + self.region))
        return logits.softmax(-1) if self.code == "softmax" else functional.relu(logits)

    def encode(self, x: Tensor) -> Tensor:
        """Mixtures of codes (B, group, code_size)."""
        return self.usage(x) @ self.codebook

    def prepare(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Mixtures of codes, with dropout in training."""
        return functional.dropout(self.usage(x), self.dropout, self.training) @ self.codebook

    def read(self, x: Tensor, voxels: slice, shared: Any) -> Tensor:
        """Weights on the mixture of the voxel's group."""
        if self.region is None:
            return functional.linear(shared[:, 0], self.feature[voxels], self.bias[voxels])
        return torch.einsum("bvd,vd->bv", shared[:, self.group[voxels]], self.feature[voxels]) + self.bias[voxels]

    def regulariser(self) -> Tensor:
        """Penalty on the features' weights."""
        return feature_penalty(self.feature, 0.0, self.feature_l2)

    def weights(self) -> xr.Dataset:
        """``feature`` (voxel, code_dimension), ``codebook`` (code, code_dimension) and ``intercept`` (voxel)."""
        found = self._labelled(feature=(("code_dimension",), self.feature))
        found["codebook"] = (("code", "code_dimension"), self.codebook.detach().cpu().numpy())
        return found

    @classmethod
    def search_space(cls) -> dict[str, list[Any]]:
        """Strengths of the penalty on features."""
        return {"feature_l2": [1e-3, 1e-2, 1e-1]}
