"""A network over trials that can be told one more at any time, at constant memory."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from neuroenc.attention._attention import Attention
from neuroenc.attention._blocks import SwiGLU
from neuroenc.attention._dense import attend
from neuroenc.attention._memory import StreamingAttention, StreamState
from neuroenc.attention._normalise import Softmax

__all__ = ["AarenStack"]


class _Layer(nn.Module):
    """One attention of learned queries, and a feed-forward layer behind it."""

    def __init__(self, dim: int, heads: int, queries: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, queries, dim) / (dim + 1) ** 0.5)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.feed_forward = SwiGLU(dim, hidden)

    def queries(self, batch: int) -> Tensor:
        """Projected queries (batch, heads, query, d)."""
        q = self.attention._project(self.query, self.query[:, :0])[0]
        return self.attention._scaled(q, q.new_ones(1)).expand(batch, -1, -1, -1)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention._project(tokens[:, :0], self.norm1(tokens))[1:]

    def finish(self, start: Tensor, heads: Tensor) -> Tensor:
        """From head outputs (batch, heads, query, d) to (batch, query, dim), beside what stood there."""
        z = start + self.attention.out_proj(heads.transpose(1, 2).flatten(-2))
        return z + self.feed_forward(self.norm2(z))


class AarenStack(nn.Module):
    """Layers whose queries are learned and do not depend on trials: all of it can be streamed.

    Inner layers have one query; trial t gets what this query finds in trials 1 to t, beside itself. The last layer's
    queries ask all trials, and their answers are read out.

    Parameters
    ----------
    dim, heads : int
    depth : int
        Layers, the reading one included. With 1, trials are a set: their order does not matter and the states of
        two sessions merge exactly. With more, order matters.
    queries : int
        Answers to read out.
    hidden : int, optional
        Width inside the feed-forward layers; default 2 dim.

    Notes
    -----
    A stack whose trials attend to each other (`Stack`) cannot be streamed: each new trial changes all earlier ones.

    References
    ----------
    Feng et al. (2024), Attention as an RNN, arXiv:2405.13956.

    Examples
    --------
    >>> model = AarenStack(16, 4, depth=2).eval()
    >>> trials = torch.randn(3, 20, 16)
    >>> state = model.update(model.update(model.init(3), trials[:, :12]), trials[:, 12:])
    >>> torch.allclose(model.read(state), model(trials), atol=1e-5)
    True
    """

    def __init__(self, dim: int, heads: int, depth: int = 1, queries: int = 1, hidden: int | None = None) -> None:
        super().__init__()
        if depth < 1 or queries < 1:
            raise ValueError(f"depth={depth}, queries={queries}; legal: at least 1. Raise what is lower.")
        asked = [1] * (depth - 1) + [queries]
        self.layers = nn.ModuleList(_Layer(dim, heads, q, hidden or 2 * dim) for q in asked)
        self._stream = StreamingAttention()

    def forward(self, tokens: Tensor, log_weight: Tensor | None = None) -> Tensor:
        """Trials (batch, token, dim) at once -> answers (batch, queries, dim); log weights as in `Attention`."""
        last = len(self.layers) - 1
        if log_weight is not None:
            log_weight = log_weight[:, None, None, :].to(tokens.dtype)
        for number in range(last):
            layer = self._layer(number)
            count = tokens.shape[1]
            mask = tokens.new_full((count, count), -torch.inf).triu(1)
            mask = mask if log_weight is None else mask + log_weight
            q = layer.queries(len(tokens)).expand(-1, -1, count, -1)
            tokens = layer.finish(tokens, _attend(q, *layer.keys_values(tokens), mask))
        layer = self._layer(last)
        q = layer.queries(len(tokens))
        return layer.finish(layer.query, _attend(q, *layer.keys_values(tokens), log_weight))

    def init(self, batch: int) -> list[StreamState]:
        """State before any trial, one a layer."""
        return [self._stream.init(self._layer(i).queries(batch)) for i in range(len(self.layers))]

    def update(self, state: list[StreamState], tokens: Tensor, log_weight: Tensor | None = None) -> list[StreamState]:
        """State after trials (batch, token, dim), in this order."""
        if len(state) == 1:
            return self._told(state, tokens, log_weight)
        for t in range(tokens.shape[1]):
            now = slice(t, t + 1)
            state = self._told(state, tokens[:, now], None if log_weight is None else log_weight[:, now])
        return state

    def _told(self, state: list[StreamState], tokens: Tensor, log_weight: Tensor | None) -> list[StreamState]:
        told = []
        weight = None if log_weight is None else log_weight[:, None].to(tokens.dtype)
        for number, before in enumerate(state):
            layer = self._layer(number)
            after = self._stream.update(before, *layer.keys_values(tokens), weight)
            told.append(after)
            if number < len(state) - 1:
                tokens = layer.finish(tokens, self._stream.read(after))
        return told

    def merge(self, a: list[StreamState], b: list[StreamState]) -> list[StreamState]:
        """State of both sessions; with one layer only."""
        if len(self.layers) > 1:
            raise ValueError(f"depth={len(self.layers)}: order matters; legal: depth=1. Update one with b's trials.")
        return [self._stream.merge(a[0], b[0])]

    def read(self, state: list[StreamState]) -> Tensor:
        """Answers (batch, queries, dim)."""
        layer = self._layer(len(self.layers) - 1)
        heads = self._stream.read(state[-1])
        if heads.shape[-1] != state[-1].query.shape[-1]:  # No trial yet.
            heads = heads.expand(*heads.shape[:-1], state[-1].query.shape[-1])
        return layer.finish(layer.query, heads)

    def _layer(self, number: int) -> _Layer:
        return cast(_Layer, self.layers[number])


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return attend(q, k, v, Softmax(), mask, q.new_ones(len(q)), need=False)[0]
