"""Memories of constant size: streaming attention, Aaren, gated recurrence and neural long-term memory (Titans)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from neuroenc.attention._attention import Attention, attend
from neuroenc.attention._blocks import SwiGLU
from neuroenc.attention._weights import Softmax, legal


class StreamState(NamedTuple):
    """Partial sums of a streaming attention; states of two sites merge without exchanging trials."""

    query: Tensor  # (..., query, d)
    m: Tensor  # (..., query) largest score so far, -inf without a trial; 0 for sigmoid
    u: Tensor  # (..., query, e) sum of weighted values, relative to exp(m)
    w: Tensor  # (..., query) sum of weights, relative to exp(m)


class StreamingAttention:
    r"""Streaming softmax attention of fixed queries, exact after every update.

    .. math:: m = \max_j s_j, \quad u = \sum_j e^{s_j - m} v_j, \quad w = \sum_j e^{s_j - m}, \quad o = u / w

    and two states merge to :math:`(\max, \text{rescaled } u_a + u_b, \text{rescaled } w_a + w_b)`, in any order and
    any tree. The sigmoid form has no maximum and just adds: :math:`u = \sum_j \sigma(s_j + b) v_j`.

    Parameters
    ----------
    kind : {"softmax", "sigmoid"}
    bias : float
        :math:`b` of the sigmoid. A fixed number: :math:`-\ln n` would change with every trial.
    scale : float, optional
        Of query . key; default :math:`1 / \sqrt d`.

    Notes
    -----
    Exact because queries do not depend on the stream: a model whose registers only ask can be streamed, one whose
    trials attend to each other cannot.

    References
    ----------
    Feng et al. (2024), Attention as an RNN, arXiv:2405.13956.

    Examples
    --------
    >>> import torch
    >>> stream = StreamingAttention()
    >>> q, k, v = torch.randn(2, 1, 4), torch.randn(2, 9, 4), torch.randn(2, 9, 3)
    >>> first = stream.update(stream.init(q), k[:, :5], v[:, :5])
    >>> both = stream.merge(first, stream.update(stream.init(q), k[:, 5:], v[:, 5:]))
    >>> torch.allclose(stream.read(both), torch.softmax(q @ k.mT / 2, -1) @ v, atol=1e-6)
    True
    """

    def __init__(self, kind: str = "softmax", bias: float = 0.0, scale: float | None = None) -> None:
        legal("kind", kind, ("softmax", "sigmoid"))
        self.kind, self.bias, self.scale = kind, bias, scale

    def init(self, query: Tensor) -> StreamState:
        """State without a trial; its sum is 1 wide until values come."""
        start = 0.0 if self.kind == "sigmoid" else -torch.inf
        nothing = query.new_zeros(query.shape[:-1])
        return StreamState(query, nothing + start, nothing[..., None], nothing)

    def update(self, state: StreamState, key: Tensor, value: Tensor, log_weight: Tensor | None = None) -> StreamState:
        """Trials of any number at once; log weights as in `Attention`, -inf for a trial that is none."""
        query = state.query
        if key.shape[-1] != query.shape[-1] or key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"queries {tuple(query.shape)}, keys {tuple(key.shape)}, values {tuple(value.shape)}; legal: keys as "
                "wide as queries, one value a key. Bring keys to (..., token, d) and values to (..., token, e)."
            )
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        scores = query @ key.transpose(-1, -2) * scale
        extra = None if log_weight is None else log_weight[..., None, :]
        if self.kind == "sigmoid":
            weights = torch.sigmoid(scores + self.bias)
            weights = weights if extra is None else weights * extra.exp()
            m = torch.zeros_like(state.m)
        else:
            scores = scores if extra is None else scores + extra
            m = scores.amax(-1) if scores.shape[-1] else scores.new_full(scores.shape[:-1], -torch.inf)
            weights = (scores - _finite(m)[..., None]).exp()
        return self.merge(state, StreamState(query, m, weights @ value, weights.sum(-1)))

    def merge(self, a: StreamState, b: StreamState) -> StreamState:
        if a.query is not b.query and not torch.equal(a.query, b.query):
            raise ValueError(
                f"states of other queries, {tuple(a.query.shape)} and {tuple(b.query.shape)}. "
                "Next step: start both from the same init(query)."
            )
        m = torch.maximum(a.m, b.m)
        top = _finite(m)
        left, right = (a.m - top).exp(), (b.m - top).exp()
        u = left[..., None] * a.u + right[..., None] * b.u
        return StreamState(a.query, m, u, left * a.w + right * b.w)

    def read(self, state: StreamState, query: Tensor | None = None) -> Tensor:
        """Head outputs (..., query, e); zeros without a trial."""
        if query is not None and query is not state.query and not torch.equal(query, state.query):
            raise ValueError("these queries were not there when trials came; legal: those of init. Leave query out.")
        if self.kind == "sigmoid":
            return state.u
        # A sum is at least 1 (the largest trial's weight), or 0 without a trial.
        return state.u / torch.where(state.w > 0, state.w, torch.ones_like(state.w))[..., None]


def _finite(m: Tensor) -> Tensor:
    return m.masked_fill(m == -torch.inf, 0.0)


def kept_trials(key: Tensor, value: Tensor, log_weight: Tensor | None) -> Tensor | None:
    """Which trials (batch, token) a memory that learns in order takes; None for all."""
    if key.ndim != 3 or key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            f"keys {tuple(key.shape)}, values {tuple(value.shape)}; legal: (batch, token, d) and "
            "(batch, token, e). Next step: fold heads into the batch."
        )
    if log_weight is None:
        return None
    kept = log_weight == 0
    if not bool((kept | (log_weight == -torch.inf)).all()):
        raise ValueError("log weights other than 0 and -inf; legal: these. Repeat the trials that weigh more.")
    return kept


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
    """Aaren layers: attention as an RNN, with learned queries that do not depend on the trials.

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


class RecurrentState(NamedTuple):
    """Hidden state of a recurrent memory."""

    query: Tensor  # (batch, query, d)
    h: Tensor  # (batch, hidden)
    c: Tensor  # (batch, hidden) of LSTM; empty of GRU


class RecurrentMemory(nn.Module):
    r"""Gated recurrent memory; a linear map of its state and the query gives the output.

    LSTM: :math:`c \leftarrow f c + i g`, :math:`h = o \tanh c`. GRU: :math:`h \leftarrow (1 - z) n + z h`,
    :math:`n = \tanh(W_n x + r (U_n h))`. Gates are sigmoids of linear maps of the trial ``[key; value]`` and h.

    Parameters
    ----------
    key_dim, value_dim, hidden : int
    kind : {"gru", "lstm"}

    Notes
    -----
    Parameters of the cell are named and ordered as in `torch.nn.GRU` and `torch.nn.LSTM`. The order of trials
    matters, so states of two streams cannot be merged.

    References
    ----------
    Lipton, Berkowitz and Elkan (2015), A critical review of recurrent neural networks, arXiv:1506.00019.

    Examples
    --------
    >>> import torch
    >>> memory = RecurrentMemory(4, 1, hidden=8, kind="lstm")
    >>> state = memory.update(memory.init(torch.randn(2, 3, 4)), torch.randn(2, 50, 4), torch.randn(2, 50, 1))
    >>> memory.read(state).shape
    torch.Size([2, 3, 1])
    """

    def __init__(self, key_dim: int, value_dim: int, hidden: int = 64, kind: str = "gru") -> None:
        super().__init__()
        legal("kind", kind, ("gru", "lstm"))
        self.kind, self.hidden = kind, hidden
        rows = hidden * (3 if kind == "gru" else 4)
        bound = hidden**-0.5
        self.weight_ih_l0 = nn.Parameter(torch.empty(rows, key_dim + value_dim).uniform_(-bound, bound))
        self.weight_hh_l0 = nn.Parameter(torch.empty(rows, hidden).uniform_(-bound, bound))
        self.bias_ih_l0 = nn.Parameter(torch.empty(rows).uniform_(-bound, bound))
        self.bias_hh_l0 = nn.Parameter(torch.empty(rows).uniform_(-bound, bound))
        self.readout = nn.Linear(hidden + key_dim, value_dim)

    def init(self, query: Tensor) -> RecurrentState:
        h = query.new_zeros(len(query), self.hidden)
        return RecurrentState(query, h, torch.zeros_like(h) if self.kind == "lstm" else h[:, :0])

    def update(
        self, state: RecurrentState, key: Tensor, value: Tensor, log_weight: Tensor | None = None
    ) -> RecurrentState:
        """Trials (batch, token, d), in this order; a log weight of -inf leaves its trial out, others must be 0."""
        kept = kept_trials(key, value, log_weight)
        inputs, h, c = torch.cat([key, value], dim=-1), state.h, state.c
        weights = self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0
        for t in range(key.shape[1]):
            if self.kind == "lstm":
                new = torch.lstm_cell(inputs[:, t], (h, c), *weights)
            else:
                new = torch.gru_cell(inputs[:, t], h, *weights), c
            if kept is not None:
                new = (torch.where(kept[:, t, None], new[0], h), torch.where(kept[:, t, None], new[1], c))
            h, c = new
        return RecurrentState(state.query, h, c)

    def merge(self, a: RecurrentState, b: RecurrentState) -> RecurrentState:
        """Refused: what a recurrent network becomes depends on the order of its trials."""
        raise ValueError("memories that read in order cannot be merged; legal: update(a, trials of b). Do that.")

    def read(self, state: RecurrentState, query: Tensor | None = None) -> Tensor:
        """Answers (batch, query, e), to the queries of ``init`` or any others."""
        query = state.query if query is None else query
        return self.readout(torch.cat([state.h[:, None].expand(-1, query.shape[1], -1), query], dim=-1))


class NeuralState(NamedTuple):
    """Weights and momentum of each case's neural memory."""

    query: Tensor  # (batch, query, d)
    weights: tuple[Tensor, ...]  # (batch, out, in) a layer
    momentum: tuple[Tensor, ...]


class NeuralMemory(nn.Module):
    r"""Neural long-term memory: a small network per case, updated at test time by each trial (Titans).

    .. math:: S_t = \eta_t S_{t-1} - \theta_t \nabla \lVert M_{t-1}(k_t) - v_t \rVert^2, \qquad
              M_t = (1 - \alpha_t) M_{t-1} + S_t

    With one linear layer and :math:`\alpha = \eta = 0` this is least mean squares,
    :math:`M \leftarrow M + 2 \theta (v - M k) k^\top`; :math:`\alpha > 0` forgets, which follows drift.

    Parameters
    ----------
    key_dim, value_dim : int
    depth : int
        Layers, with SiLU between them.
    hidden : int, optional
        Width between layers; default ``key_dim``.
    gates : {"fixed", "data"}
        ``"data"``: :math:`\theta, \eta, \alpha` are sigmoids of a learned linear map of the key, which starts at the
        given numbers.
    theta, eta, alpha : float
        Step, momentum and forgetting; in [0, 1).

    Notes
    -----
    Trials are taken one after the other, so their order matters and states of two streams cannot be merged. The first
    weights are parameters (0 for one layer) and, like the gates, can be trained through ``update``. Under a stationary
    world a ridge regression of all trials is better; with fixed gates, momentum is no better than none.

    References
    ----------
    Behrouz, Zhong and Mirrokni (2025), Titans, arXiv:2501.00663.

    Examples
    --------
    >>> import torch
    >>> memory = NeuralMemory(4, 1, theta=0.05)
    >>> k = torch.randn(1, 300, 4)
    >>> state = memory.update(memory.init(k[:, :5]), k, k @ torch.ones(4, 1))
    >>> torch.allclose(state.weights[0], torch.ones(1, 1, 4), atol=0.02)
    True
    """

    def __init__(
        self,
        key_dim: int,
        value_dim: int,
        depth: int = 1,
        hidden: int | None = None,
        gates: str = "fixed",
        theta: float = 0.01,
        eta: float = 0.0,
        alpha: float = 0.0,
    ) -> None:
        super().__init__()
        legal("gates", gates, ("fixed", "data"))
        start = (theta, eta, alpha)
        if depth < 1 or not all(0 <= g < 1 for g in start):
            raise ValueError(
                f"depth={depth}, theta={theta}, eta={eta}, alpha={alpha}; legal: depth of at least 1, all others in "
                "[0, 1). Scale keys and values where a larger step is wanted."
            )
        sizes = [key_dim, *[hidden or key_dim] * (depth - 1), value_dim]
        self.gates, self.start = gates, start
        first = [torch.empty(b, a) for a, b in pairwise(sizes)]
        for w in first:
            nn.init.zeros_(w) if depth == 1 else nn.init.kaiming_uniform_(w, a=math.sqrt(5))
        self.first = nn.ParameterList(nn.Parameter(w) for w in first)
        if gates == "data":
            self.gate = nn.Linear(key_dim, 3)
            nn.init.zeros_(self.gate.weight)
            with torch.no_grad():
                self.gate.bias.copy_(torch.tensor(start).clamp(1e-4, 1 - 1e-4).logit())

    def init(self, query: Tensor) -> NeuralState:
        weights = tuple(w.expand(len(query), -1, -1) for w in self.first)
        return NeuralState(query, weights, tuple(torch.zeros_like(w) for w in weights))

    def update(self, state: NeuralState, key: Tensor, value: Tensor, log_weight: Tensor | None = None) -> NeuralState:
        """Trials (batch, token, d), in this order; a log weight of -inf leaves its trial out, others must be 0."""
        kept = kept_trials(key, value, log_weight)
        weights, momentum = state.weights, state.momentum
        gates = (
            torch.sigmoid(self.gate(key))
            if self.gates == "data"
            else key.new_tensor(self.start).expand(*key.shape[:2], 3)
        )
        for t in range(key.shape[1]):
            slope = self._gradient(weights, key[:, t], value[:, t])
            theta, eta, alpha = gates[:, t, :, None, None].unbind(1)
            moved = tuple(eta * s - theta * g for s, g in zip(momentum, slope))
            new = tuple((1 - alpha) * w + s for w, s in zip(weights, moved))
            if kept is not None:
                take = kept[:, t, None, None]
                moved = tuple(torch.where(take, a, b) for a, b in zip(moved, momentum))
                new = tuple(torch.where(take, a, b) for a, b in zip(new, weights))
            weights, momentum = new, moved
        return NeuralState(state.query, weights, momentum)

    def _gradient(self, weights: tuple[Tensor, ...], key: Tensor, value: Tensor) -> Sequence[Tensor]:
        if len(weights) == 1:
            miss = torch.einsum("boi,bi->bo", weights[0], key) - value
            return (2 * miss[:, :, None] * key[:, None, :],)
        found = vmap(grad(_surprise))(weights, key, value)
        return tuple(found)

    def merge(self, a: NeuralState, b: NeuralState) -> NeuralState:
        """Refused: what a memory becomes depends on the order of its trials."""
        raise ValueError("memories that learn in order cannot be merged; legal: update(a, trials of b). Do that.")

    def read(self, state: NeuralState, query: Tensor | None = None) -> Tensor:
        """M(query) (batch, query, e), for the queries of ``init`` or any others."""
        return _apply(state.weights, state.query if query is None else query)


def _apply(weights: tuple[Tensor, ...], x: Tensor) -> Tensor:
    for number, w in enumerate(weights):
        x = (F.silu(x) if number else x) @ w.transpose(-1, -2)
    return x


def _surprise(weights: tuple[Tensor, ...], key: Tensor, value: Tensor) -> Tensor:
    return (_apply(weights, key[None])[0] - value).square().sum()
