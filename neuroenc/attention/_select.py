"""Attention of each query to keys of its own, in pieces of queries so that memory stays bounded."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from neuroenc.attention._context import Context
from neuroenc.attention._dense import Request, hidden_keys
from neuroenc.attention._normalise import Layout, Normaliser
from neuroenc.attention._position import Position

__all__ = ["attend_selected"]

BUDGET = 2**23  # numbers in the gathered keys of one piece of queries


def attend_selected(
    context: Context,
    normaliser: Normaliser,
    position: Position | None,
    qkv: tuple[Tensor, Tensor, Tensor],
    how: Request,
    source_q: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Head outputs (batch, heads, query, d), and weights over all keys if needed.

    Queries and keys are rotated already unless the context reassigns positions.
    """
    q, k, v = qkv
    log_weight, _, places, need, _ = how
    summary = context.prepare(source_q, k, v, log_weight)
    batch, heads, total, width = k.shape
    outputs: list[Tensor] = []
    weights: list[Tensor] = []
    start, size = 0, 1
    while start < q.shape[2]:
        piece = slice(start, start + size)
        asked = q[:, :, piece]
        here = places._replace(
            query=None if places.query is None else places.query[piece], query_at=places.query_at[piece]
        )
        hidden = None if log_weight is None else (log_weight == -torch.inf)[:, None, None, :]
        if here.causal:
            later = hidden_keys(here.query_at, here.key_at)
            hidden = later[None, None] if hidden is None else hidden | later
        place = context.select(asked, k, summary, here.query, hidden)
        place = place.expand(batch, heads, *place.shape[2:])
        found, w = _attend(context, normaliser, position, (asked, k, v), place, how._replace(places=here))
        outputs.append(found)
        if need:
            full = w.new_zeros(*w.shape[:3], total)
            weights.append(full.scatter_add(-1, place.clamp_min(0), w))
        start += size
        size = max(1, BUDGET // max(batch * heads * place.shape[-1] * width, 1))
    return torch.cat(outputs, dim=2), torch.cat(weights, dim=2) if need else None


def _attend(
    context: Context,
    normaliser: Normaliser,
    position: Position | None,
    qkv: tuple[Tensor, Tensor, Tensor],
    place: Tensor,
    how: Request,
) -> tuple[Tensor, Tensor]:
    q, k, v = qkv
    log_weight, n, places, _, dropout = how
    there = place >= 0
    safe = place.clamp_min(0)
    gone = ~there
    key_at = places.key_at[safe]
    query_at = places.query_at.view(1, 1, -1).expand(place.shape[:3])
    if places.causal:
        gone = gone | hidden_keys(query_at, key_at)
    keys, values = _gather(k, safe), _gather(v, safe)
    if position is not None and context.reassigns:
        query_at, key_at = _renumber(query_at, key_at, there)
        turned, keys = position.rotate(q[..., None, :], keys, query_at[..., None], key_at)
        q = turned.squeeze(-2)
    scores = torch.einsum("bhqd,bhqmd->bhqm", q, keys)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / (q.shape[-1] ** 0.5)
    if position is not None:
        known = (key_at >= 0) & (query_at >= 0)[..., None]
        bias = position.bias_of(key_at - query_at[..., None], known)
        scores = scores if bias is None else scores + bias
    weight = None
    if log_weight is not None:
        mine = log_weight[:, None, None, :].expand(*place.shape[:3], -1).gather(-1, safe)
        gone = gone | (mine == -torch.inf)
        if normaliser.additive:
            scores = scores + mine
        else:
            weight = mine.exp()
    scores = scores.masked_fill(gone, -torch.inf)
    if normaliser.needs_layout:
        w = normaliser(scores, n, Layout(places.query, place, k.shape[2]))
    else:
        w = normaliser(scores, n)
    w = w if weight is None else w * weight
    dropped = F.dropout(w, dropout, dropout > 0).to(v.dtype)
    return torch.einsum("bhqm,bhqmd->bhqd", dropped, values), w


def _gather(x: Tensor, place: Tensor) -> Tensor:
    flat = place.flatten(2)[..., None].expand(-1, -1, -1, x.shape[-1])
    return x.gather(2, flat).unflatten(2, place.shape[2:])


def _renumber(query_at: Tensor, key_at: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Positions counted among the selected keys, which stand in order; none stays none."""
    counted = there & (key_at >= 0)
    rank = counted.cumsum(-1) - 1
    before = (counted & (key_at < query_at[..., None])).sum(-1)
    return before.masked_fill(query_at < 0, -1), rank.masked_fill(~counted, -1)
