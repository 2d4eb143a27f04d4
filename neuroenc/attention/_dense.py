"""Attention of every query to every key, fused wherever no weights are wanted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from neuroenc.attention._normalise import Layout, Normaliser
from neuroenc.attention._position import Position

__all__ = ["Places", "Request", "attend", "attend_placed", "hidden_keys"]


class Places(NamedTuple):
    """Where queries and keys stand."""

    query: Tensor | None  # (query,) place among the keys; None in cross-attention
    query_at: Tensor  # (query,) positions, negative for none
    key_at: Tensor  # (key,)
    causal: bool


class Request(NamedTuple):
    """What else an attention is asked with."""

    log_weight: Tensor | None  # (batch, key)
    n: Tensor  # (batch,)
    places: Places
    need: bool
    dropout: float


def hidden_keys(query_at: Tensor, key_at: Tensor) -> Tensor:
    """Keys that a causal mask hides: later ones; those without a position are hidden from none.

    Examples
    --------
    >>> import torch
    >>> hidden_keys(torch.tensor([-1, 0]), torch.tensor([-1, 0, 1]))
    tensor([[False,  True,  True],
            [False, False,  True]])
    """
    return (key_at > query_at[..., None]) & (key_at >= 0)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    normaliser: Normaliser,
    mask: Tensor | None,
    n: Tensor,
    *,
    need: bool,
    dropout: float = 0.0,
    layout: Layout | None = None,
    multiply: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Head outputs (batch, heads, query, d), and weights if needed; ``mask`` is added, ``multiply`` multiplies weights.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.attention import Softmax
    >>> q, k, v = torch.randn(3, 1, 2, 5, 4)
    >>> fused = attend(q, k, v, Softmax(), None, torch.tensor([5]), need=False)[0]
    >>> torch.allclose(fused, attend(q, k, v, Softmax(), None, torch.tensor([5]), need=True)[0], atol=1e-6)
    True
    """
    mask = None if mask is None else mask.to(q.dtype)
    if normaliser.fused and not need:
        if mask is None:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout), None
        # Some kernels answer a row without keys with NaN.
        empty = (mask == -torch.inf).all(-1, keepdim=True)
        if empty.device.type == "cpu" and not empty.any():  # Elsewhere, to ask costs more than to fill.
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout), None
        mask = mask.masked_fill(empty, 0.0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return out.masked_fill(empty, 0.0), None
    scores = q @ k.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / (q.shape[-1] ** 0.5)
    if mask is not None:
        scores = scores + mask
    weights = normaliser(scores, n) if layout is None else normaliser(scores, n, layout)
    if multiply is not None:
        weights = weights * multiply.to(weights.dtype)
    return F.dropout(weights, dropout, dropout > 0).to(v.dtype) @ v, weights


def attend_placed(
    normaliser: Normaliser, position: Position | None, qkv: tuple[Tensor, Tensor, Tensor], how: Request
) -> tuple[Tensor, Tensor | None]:
    """`attend` with what positions, a causal mask and unusual normalisers want; q and k are rotated already."""
    q, k, v = qkv
    log_weight, n, places, need, dropout = how
    mask = None if position is None else position.bias(places.query_at, places.key_at)
    mask = None if mask is None else mask.to(q)[None]
    if places.causal:
        later = hidden_keys(places.query_at, places.key_at)
        mask = (q.new_zeros(1) if mask is None else mask).masked_fill(later, -torch.inf)
        mask = mask.view(1, -1, *later.shape)
    multiply = None
    if log_weight is not None:
        log_weight = log_weight[:, None, None, :]
        if not normaliser.additive:
            multiply = log_weight.exp()
            log_weight = torch.zeros_like(log_weight).masked_fill(log_weight == -torch.inf, -torch.inf)
        mask = log_weight if mask is None else mask + log_weight
    layout = Layout(places.query, None, k.shape[2]) if normaliser.needs_layout else None
    return attend(q, k, v, normaliser, mask, n, need=need, dropout=dropout, layout=layout, multiply=multiply)
