"""From scores to attention weights: length scaling, softmax, sigmoid and grouped softmax."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn


def legal(name: str, value: str, names: Iterable[str]) -> None:
    """Refuse a value that is none of the names."""
    if value not in names:
        raise ValueError(f"unknown {name} {value!r}; legal: {', '.join(names)}. Give one of them.")


class LengthScale(nn.Module):
    r"""Scale queries by a function of the number of keys, so that attention stays sharp in long contexts.

    .. math:: s(n) = 1, \quad \ln n, \quad\text{or}\quad a_h + b_h \ln n

    Parameters
    ----------
    kind : {"none", "log_n", "learned"}
        ``"learned"`` has an :math:`a_h` and a :math:`b_h` per head, at first 1 and 0.
    heads : int
        For ``"learned"``.
    before_projection : bool
        True scales what goes into the query projection, as the released BraInCoRL does: its bias stays unscaled.
        False scales the projected query. Registers count as keys in both.

    References
    ----------
    Yu et al. (2025), BraInCoRL, arXiv:2505.15813 (the released code has natural logarithms).

    Examples
    --------
    >>> import torch
    >>> LengthScale("log_n")(torch.tensor([1.0, 100.0])).flatten()
    tensor([0.0000, 4.6052])
    """

    def __init__(self, kind: str = "none", heads: int = 1, before_projection: bool = True) -> None:
        super().__init__()
        legal("length scale", kind, ("none", "log_n", "learned"))
        self.kind, self.before_projection = kind, before_projection
        if kind == "learned":
            self.level = nn.Parameter(torch.ones(heads))
            self.slope = nn.Parameter(torch.zeros(heads))

    def forward(self, n: Tensor) -> Tensor:
        """Factors (batch, heads or 1, 1, 1) for n (batch,) keys."""
        n = (n if n.dtype == torch.float64 else n.to(torch.float32)).view(-1, 1, 1, 1)
        if self.kind == "log_n":
            return n.log()
        if self.kind == "learned":
            return self.level.view(1, -1, 1, 1) + self.slope.view(1, -1, 1, 1) * n.log()
        return torch.ones_like(n)


def count_keys(source: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """Number of keys (batch,) of tokens (batch, key, dim): the sum of their weights.

    Examples
    --------
    >>> import torch
    >>> count_keys(torch.zeros(2, 501, 8, dtype=torch.bfloat16))
    tensor([501., 501.])
    """
    if log_weight is not None:
        return log_weight.to(torch.promote_types(log_weight.dtype, torch.float32)).exp().sum(-1)
    # Half precision holds no 501.
    kind = torch.promote_types(source.dtype, torch.float32)
    return torch.full(source.shape[:1], source.shape[1], dtype=kind, device=source.device)


class Layout(NamedTuple):
    """Query and key indices of a score matrix, for normalisers with ``needs_layout``."""

    query: Tensor | None  # (query,) place of each query among the keys; None where queries are no keys
    key: Tensor | None  # (batch, heads, query, key) places of selected keys, -1 for none; None where all are there
    total: int  # number of keys before selection


class Normaliser(nn.Module):
    """Base class: attention scores (batch, heads, query, key) to weights of the same shape.

    Weights are finite, and zero where the score is -inf. ``fused`` says that
    `torch.nn.functional.scaled_dot_product_attention` gives the same numbers without the weights. ``additive`` says
    that a key with ln 3 added to its scores counts as three keys; where it does not, weights are multiplied instead.
    ``all_rows`` says that a row's weights depend on the other rows, so that none can be left out.
    """

    fused = False
    additive = True
    all_rows = False
    needs_layout = False

    def forward(self, scores: Tensor, n: Tensor, layout: Layout | None = None) -> Tensor:
        """Weights; ``n`` (batch,) is the number of keys that each case looks at."""
        raise NotImplementedError


class Softmax(Normaliser):
    """Softmax weights; a row without any key gets zeros.

    Examples
    --------
    >>> import torch
    >>> Softmax()(torch.zeros(1, 1, 1, 4), torch.tensor([4])).sum().item()
    1.0
    """

    fused = True

    def forward(self, scores: Tensor, n: Tensor, layout: Layout | None = None) -> Tensor:
        top = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
        weights = (scores - top).exp()
        return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)


class Sigmoid(Normaliser):
    r"""Sigmoid weights, each key independent of the others: :math:`a_{ij} = \sigma(s_{ij} + b)`.

    A key's weight does not depend on what else is there, so maps of sets of different sizes can be compared, and sums
    over keys can be streamed (`StreamingAttention`). Rows do not sum to 1.

    Parameters
    ----------
    bias : "neg_log_n" or float
        :math:`b`; ``"neg_log_n"`` is :math:`-\ln n`, with which a row of scores near 0 sums to about 1 at any n. A
        number stays as it is at every n; 0 lets the row sum grow as n / 2.

    Notes
    -----
    No fused kernel: all weights are held in memory, as many as there are scores.

    References
    ----------
    Ramapuram et al. (2024), Theory, analysis, and best practices for sigmoid self-attention, arXiv:2409.04431.

    Examples
    --------
    >>> import torch
    >>> Sigmoid()(torch.zeros(1, 1, 1, 99), torch.tensor([99])).sum().item() < 1
    True
    """

    additive = False

    def __init__(self, bias: str | float = "neg_log_n") -> None:
        super().__init__()
        if isinstance(bias, str) and bias != "neg_log_n":
            raise ValueError(f"unknown bias {bias!r}; legal: 'neg_log_n' or a number. Give one of them.")
        self.bias = bias

    def forward(self, scores: Tensor, n: Tensor, layout: Layout | None = None) -> Tensor:
        if isinstance(self.bias, str):
            return torch.sigmoid(scores - n.to(scores.dtype).log().view(-1, 1, 1, 1))
        return torch.sigmoid(scores + self.bias)


def landmark_layout(place: Tensor, total: int, block_size: int, lead: int = 0) -> tuple[Tensor, Tensor]:
    """Block of each token (-1 for none), and whether it is a landmark token.

    Tokens stand as ``lead`` tokens that belong to no block (registers), then ``block_size`` tokens and their landmark,
    again and again. What is left over at the end has no landmark and belongs to no block.

    Parameters
    ----------
    place : Tensor of int
        Indices of tokens, any shape; negative for padding.
    total : int
        Number of tokens in all.

    Examples
    --------
    >>> import torch
    >>> block, landmark = landmark_layout(torch.arange(8), 8, block_size=2, lead=1)
    >>> block.tolist(), landmark.nonzero().flatten().tolist()
    ([-1, 0, 0, 0, 1, 1, 1, -1], [3, 6])
    """
    step = block_size + 1
    whole = max(total - lead, 0) // step
    inner = place - lead
    block = torch.div(inner, step, rounding_mode="floor")
    outside = (inner < 0) | (block >= whole)
    return block.masked_fill(outside, -1), ~outside & (inner % step == block_size)


def insert_landmarks(tokens: Tensor, landmark: Tensor, block_size: int, lead: int = 0) -> Tensor:
    """Insert a landmark token behind each whole block, as `landmark_layout` reads them.

    Parameters
    ----------
    tokens : Tensor (batch, token, dim)
        Those of one block (a cluster of stimuli, say) beside each other.
    landmark : Tensor (dim,) or (batch, block, dim)
        The same for all blocks, or one each.
    block_size, lead : int
        See `landmark_layout`.

    Examples
    --------
    >>> import torch
    >>> insert_landmarks(torch.arange(5.0).view(1, 5, 1), torch.tensor([-1.0]), block_size=2).flatten().tolist()
    [0.0, 1.0, -1.0, 2.0, 3.0, -1.0, 4.0]
    """
    batch, count, dim = tokens.shape
    blocks = max(count - lead, 0) // block_size
    if landmark.ndim == 3 and landmark.shape[1] != blocks:
        raise ValueError(f"{landmark.shape[1]} landmarks for {blocks} blocks; legal: one each. Give one a block.")
    end = lead + blocks * block_size
    inside = tokens[:, lead:end].reshape(batch, blocks, block_size, dim)
    marks = landmark.to(tokens).expand(batch, blocks, dim)[:, :, None]
    inside = torch.cat([inside, marks], dim=2).reshape(batch, blocks * (block_size + 1), dim)
    return torch.cat([tokens[:, :lead], inside, tokens[:, end:]], dim=1)


def grouped_softmax(scores: Tensor, block: Tensor, landmark: Tensor, own: Tensor | None = None) -> Tensor:
    r"""Grouped softmax: softmax within each block times the softmax of its landmark.

    .. math:: a_{ij} = \frac{e^{s_{ij}}}{\sum_{k \in b(j)} e^{s_{ik}}}\, g_{i b(j)}, \qquad
              g_{ib} = \frac{e^{s_{i \ell(b)}}}{\sum_{j \in B_i} e^{s_{ij}}}

    The base group :math:`B_i` holds the landmarks, the tokens of no block and those of the query's own block, which
    are weighed by this softmax directly. Landmarks themselves, and the own block's landmark altogether, weigh nothing.

    Parameters
    ----------
    scores : Tensor (..., query, key)
        -inf where a key is not visible; a block none of whose tokens is visible has no landmark.
    block, landmark : Tensor
        As from `landmark_layout`; broadcast against ``scores``.
    own : Tensor (query,), optional
        Block of each query, -1 for none.

    Examples
    --------
    >>> import torch
    >>> block, landmark = landmark_layout(torch.arange(6), 6, block_size=2)
    >>> grouped_softmax(torch.zeros(1, 6), block, landmark)
    tensor([[0.2500, 0.2500, 0.0000, 0.2500, 0.2500, 0.0000]])
    """
    low, tiny = torch.finfo(scores.dtype).min, torch.finfo(scores.dtype).tiny
    block, landmark = block.expand(scores.shape), landmark.expand(scores.shape)
    at_home = torch.zeros_like(landmark) if own is None else (block == own[:, None]) & (block >= 0)
    base = (block < 0) | (at_home & ~landmark)
    member = ~base & ~landmark
    gate = landmark & ~at_home
    slot = block.clamp_min(0)
    count = int(slot.max()) + 1 if slot.numel() else 1
    shape = (*scores.shape[:-1], count)

    inside = scores.masked_fill(~member, -torch.inf)
    top = scores.new_full(shape, low).scatter_reduce(-1, slot, inside.detach().clamp_min(low), "amax")
    inside = (inside - top.gather(-1, slot)).exp()
    mass = scores.new_zeros(shape).scatter_add(-1, slot, inside).gather(-1, slot)
    outside = scores.masked_fill(~(base | (gate & (mass > 0))), -torch.inf)
    outside = Softmax()(outside, scores.new_empty(0))
    opened = scores.new_zeros(shape).scatter_add(-1, slot, outside.masked_fill(~gate, 0.0)).gather(-1, slot)
    return torch.where(base, outside, inside / mass.clamp_min(tiny) * opened)


class GroupedSoftmax(Normaliser):
    """Grouped softmax of landmark attention: over landmarks and the own block, and within each landmark's block.

    Landmark tokens stand behind the block that they speak for (`landmark_layout`); how wide each opens its block is a
    readable score of the block. In self-attention a token's own block needs no landmark; queries that are no keys
    (cross-attention) and tokens before or behind all blocks have no own block.

    Parameters
    ----------
    block_size : int
        Tokens in a block, without its landmark.
    lead : int
        Tokens in front that belong to no block (registers).

    References
    ----------
    Mohtashami and Jaggi (2023), Landmark attention, arXiv:2305.16300.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.attention import Attention
    >>> attention = Attention(16, 4, normaliser=GroupedSoftmax(block_size=3))
    >>> weights = attention(torch.randn(1, 8, 16), need_weights=True)[1]
    >>> weights[..., [3, 7]].abs().max().item(), weights.shape
    (0.0, torch.Size([1, 4, 8, 8]))
    """

    needs_layout = True

    def __init__(self, block_size: int, lead: int = 0) -> None:
        super().__init__()
        if block_size < 1 or lead < 0:
            raise ValueError(f"block_size={block_size}, lead={lead}: blocks hold at least 1 token, lead is 0 or more.")
        self.block_size, self.lead = block_size, lead

    def forward(self, scores: Tensor, n: Tensor, layout: Layout | None = None) -> Tensor:
        layout = layout or Layout(None, None, scores.shape[-1])
        total = layout.total
        place = torch.arange(total, device=scores.device) if layout.key is None else layout.key
        block, landmark = landmark_layout(place, total, self.block_size, self.lead)
        own = None
        if layout.query is not None:
            own = landmark_layout(layout.query, total, self.block_size, self.lead)[0]
        return grouped_softmax(scores, block, landmark, own)
