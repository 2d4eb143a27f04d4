"""Memories of constant size: streaming attention, Aaren, gated recurrence and neural long-term memory (Titans)."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroenc.attention._attention import Attention, attend
from neuroenc.attention._blocks import SwiGLU
from neuroenc.attention._position import ALiBi
from neuroenc.attention._weights import Softmax, legal


class Memory(nn.Module):
    """Base class of memories: trials go in, answers come out, and the state keeps its size.

    ``forward(tokens)`` is ``read(update(init(batch), tokens))``: all trials at once are the trials in parts.
    """

    def init(self, batch: int) -> Any:
        """State of ``batch`` cases before any trial."""
        raise NotImplementedError

    def update(self, state: Any, tokens: Tensor, log_weight: Tensor | None = None) -> Any:
        """State after trials (batch, token, dim), in this order; a log weight of -inf leaves its trial out."""
        raise NotImplementedError

    def merge(self, a: Any, b: Any) -> Any:
        """State of the trials of both, where their order does not matter.

        Raises
        ------
        ValueError
            It matters.
        """
        raise ValueError(
            f"a {type(self).__name__} of these settings reads trials in their order, so its states cannot be merged; "
            "legal: update(a, trials of b). Do that."
        )

    def read(self, state: Any) -> Tensor:
        """Answers (batch, row, width)."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, log_weight: Tensor | None = None) -> Tensor:
        return self.read(self.update(self.init(len(tokens)), tokens, log_weight))


class StreamState(NamedTuple):
    """Partial sums of a streaming attention; states of two sites merge without exchanging trials."""

    query: Tensor  # (..., query, d)
    m: Tensor  # (..., query) largest score so far, -inf without a trial
    u: Tensor  # (..., query, e) sum of weighted values, relative to exp(m)
    w: Tensor  # (..., query) sum of weights, relative to exp(m)


class StreamingAttention:
    r"""Streaming softmax attention of fixed queries, exact after every update.

    .. math:: m = \max_j s_j, \quad u = \sum_j e^{s_j - m} v_j, \quad w = \sum_j e^{s_j - m}, \quad o = u / w

    and two states merge to :math:`(\max, \text{rescaled } u_a + u_b, \text{rescaled } w_a + w_b)`, in any order and
    any tree.

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

    def init(self, query: Tensor) -> StreamState:
        """State without a trial; its sum is 1 wide until values come."""
        nothing = query.new_zeros(query.shape[:-1])
        return StreamState(query, nothing - torch.inf, nothing[..., None], nothing)

    def update(self, state: StreamState, key: Tensor, value: Tensor, log_weight: Tensor | None = None) -> StreamState:
        """Trials of any number at once; log weights as in `Attention`, -inf for a trial that is none."""
        query = state.query
        if key.shape[-1] != query.shape[-1] or key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"queries {tuple(query.shape)}, keys {tuple(key.shape)}, values {tuple(value.shape)}; legal: keys as "
                "wide as queries, one value a key. Bring keys to (..., token, d) and values to (..., token, e)."
            )
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        scores = scores if log_weight is None else scores + log_weight[..., None, :]
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

    def read(self, state: StreamState) -> Tensor:
        """Head outputs (..., query, e); zeros without a trial."""
        # A sum is at least 1 (the largest trial's weight), or 0 without a trial.
        return state.u / torch.where(state.w > 0, state.w, torch.ones_like(state.w))[..., None]


def _finite(m: Tensor) -> Tensor:
    return m.masked_fill(m == -torch.inf, 0.0)


def kept_trials(log_weight: Tensor | None) -> Tensor | None:
    """Which trials (batch, token) a memory that learns in order takes; None for all."""
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


class AarenState(NamedTuple):
    """Partial sums of every layer, and how many trials came."""

    layers: tuple[StreamState, ...]
    seen: int


class AarenStack(Memory):
    """Aaren layers: attention as an RNN, with learned queries that do not depend on the trials.

    Inner layers have one query; trial t gets what this query finds in trials 1 to t, beside itself. The last layer's
    queries ask all trials, and their answers are read out.

    Parameters
    ----------
    dim, heads : int
    depth : int
        Layers, the reading one included. With 1 and no position, trials are a set: their order does not matter and
        the states of two sessions merge exactly. Otherwise order matters.
    queries : int
        Answers to read out.
    hidden : int, optional
        Width inside the feed-forward layers; default 2 dim.
    position : ALiBi, optional
        Trials fade with their age, by each head's slope. Of a query that does not move, that is exponential
        forgetting; other positions turn keys anew with every trial and cannot be streamed.

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

    def __init__(
        self,
        dim: int,
        heads: int,
        depth: int = 1,
        queries: int = 1,
        hidden: int | None = None,
        position: ALiBi | None = None,
    ) -> None:
        super().__init__()
        if depth < 1 or queries < 1:
            raise ValueError(f"depth={depth}, queries={queries}; legal: at least 1. Raise what is lower.")
        if position is not None and (not isinstance(position, ALiBi) or position.heads != heads):
            raise ValueError(f"{type(position).__name__} of a memory of {heads} heads; legal: None, ALiBi({heads}).")
        asked = [1] * (depth - 1) + [queries]
        self.layers = nn.ModuleList(_Layer(dim, heads, q, hidden or 2 * dim) for q in asked)
        self.position = position
        self._stream = StreamingAttention()

    @property
    def is_set(self) -> bool:
        """Whether the order of trials cannot matter."""
        return len(self.layers) == 1 and self.position is None

    def forward(self, tokens: Tensor, log_weight: Tensor | None = None) -> Tensor:
        """Trials (batch, token, dim) at once -> answers (batch, queries, dim); log weights as in `Attention`."""
        last, count = len(self.layers) - 1, tokens.shape[1]
        weight = self._weights(tokens, log_weight, 0)
        weight = None if weight is None else weight[:, :, None, :]
        for number in range(last):
            layer = self._layer(number)
            mask = tokens.new_full((count, count), -torch.inf).triu(1)
            mask = mask if weight is None else mask + weight
            q = layer.queries(len(tokens)).expand(-1, -1, count, -1)
            tokens = layer.finish(tokens, _attend(q, *layer.keys_values(tokens), mask))
        layer = self._layer(last)
        q = layer.queries(len(tokens))
        return layer.finish(layer.query, _attend(q, *layer.keys_values(tokens), weight))

    def init(self, batch: int) -> AarenState:
        layers = (self._layer(i) for i in range(len(self.layers)))
        return AarenState(tuple(self._stream.init(layer.queries(batch)) for layer in layers), 0)

    def update(self, state: AarenState, tokens: Tensor, log_weight: Tensor | None = None) -> AarenState:
        step = tokens.shape[1] if len(self.layers) == 1 else 1
        for t in range(0, tokens.shape[1], max(1, step)):
            now = slice(t, t + step)
            state = self._told(state, tokens[:, now], None if log_weight is None else log_weight[:, now])
        return state

    def _told(self, state: AarenState, tokens: Tensor, log_weight: Tensor | None) -> AarenState:
        told = []
        weight, count = self._weights(tokens, log_weight, state.seen), tokens.shape[1]
        for number, before in enumerate(state.layers):
            layer = self._layer(number)
            after = self._stream.update(before, *layer.keys_values(tokens), weight)
            told.append(after)
            if number < len(self.layers) - 1:
                tokens = layer.finish(tokens, self._stream.read(after))
        return AarenState(tuple(told), state.seen + count)

    def _weights(self, tokens: Tensor, log_weight: Tensor | None, start: int) -> Tensor | None:
        """Log weights (batch or 1, heads or 1, token): those given, and by slope and place those of age.

        A query's softmax is the same whether old trials weigh less or new ones more.
        """
        found = None if log_weight is None else log_weight[:, None].to(tokens.dtype)
        if self.position is None:
            return found
        at = torch.arange(start, start + tokens.shape[1], device=tokens.device, dtype=tokens.dtype)
        fresh = self.position.slopes.to(tokens)[None, :, None] * at
        return fresh if found is None else found + fresh

    def merge(self, a: AarenState, b: AarenState) -> AarenState:
        if not self.is_set:
            return super().merge(a, b)
        return AarenState((self._stream.merge(a.layers[0], b.layers[0]),), a.seen + b.seen)

    def read(self, state: AarenState) -> Tensor:
        """Answers (batch, queries, dim)."""
        layer, last = self._layer(len(self.layers) - 1), state.layers[-1]
        heads = self._stream.read(last)
        if heads.shape[-1] != last.query.shape[-1]:  # No trial yet.
            heads = heads.expand(*heads.shape[:-1], last.query.shape[-1])
        return layer.finish(layer.query, heads)

    def _layer(self, number: int) -> _Layer:
        return cast(_Layer, self.layers[number])


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return attend(q, k, v, Softmax(), mask, q.new_ones(len(q)), need=False)[0]


class RecurrentState(NamedTuple):
    """Hidden state of a recurrent memory."""

    h: Tensor  # (batch, hidden)
    c: Tensor  # (batch, hidden) of LSTM; empty of GRU


class RecurrentMemory(Memory):
    r"""Gated recurrent memory, whose hidden state is its answer.

    LSTM: :math:`c \leftarrow f c + i g`, :math:`h = o \tanh c`. GRU: :math:`h \leftarrow (1 - z) n + z h`,
    :math:`n = \tanh(W_n x + r (U_n h))`. Gates are sigmoids of linear maps of the trial and h.

    Parameters
    ----------
    dim, hidden : int
        Widths of trials and of the state.
    kind : {"gru", "lstm"}

    Notes
    -----
    Parameters of the cell are named and ordered as in `torch.nn.GRU` and `torch.nn.LSTM`.

    References
    ----------
    Lipton, Berkowitz and Elkan (2015), A critical review of recurrent neural networks, arXiv:1506.00019.

    Examples
    --------
    >>> import torch
    >>> memory = RecurrentMemory(4, hidden=8, kind="lstm")
    >>> memory(torch.randn(2, 50, 4)).shape
    torch.Size([2, 1, 8])
    """

    def __init__(self, dim: int, hidden: int = 64, kind: str = "gru") -> None:
        super().__init__()
        legal("kind", kind, ("gru", "lstm"))
        self.kind, self.hidden = kind, hidden
        rows = hidden * (3 if kind == "gru" else 4)
        bound = hidden**-0.5
        self.weight_ih_l0 = nn.Parameter(torch.empty(rows, dim).uniform_(-bound, bound))
        self.weight_hh_l0 = nn.Parameter(torch.empty(rows, hidden).uniform_(-bound, bound))
        self.bias_ih_l0 = nn.Parameter(torch.empty(rows).uniform_(-bound, bound))
        self.bias_hh_l0 = nn.Parameter(torch.empty(rows).uniform_(-bound, bound))

    def init(self, batch: int) -> RecurrentState:
        h = self.bias_ih_l0.new_zeros(batch, self.hidden)
        return RecurrentState(h, torch.zeros_like(h) if self.kind == "lstm" else h[:, :0])

    def update(self, state: RecurrentState, tokens: Tensor, log_weight: Tensor | None = None) -> RecurrentState:
        """Trials (batch, token, dim), in this order; a log weight of -inf leaves its trial out, others must be 0."""
        kept, (h, c) = kept_trials(log_weight), state
        weights = self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0
        for t in range(tokens.shape[1]):
            if self.kind == "lstm":
                new = torch.lstm_cell(tokens[:, t], (h, c), *weights)
            else:
                new = torch.gru_cell(tokens[:, t], h, *weights), c
            if kept is not None:
                new = (torch.where(kept[:, t, None], new[0], h), torch.where(kept[:, t, None], new[1], c))
            h, c = new
        return RecurrentState(h, c)

    def read(self, state: RecurrentState) -> Tensor:
        """Hidden states (batch, 1, hidden)."""
        return state.h[:, None]


class NeuralState(NamedTuple):
    """Weights and momentum (batch, value, key) of each case's neural memory, and how many trials came."""

    weights: Tensor
    momentum: Tensor
    seen: int


class NeuralMemory(Memory):
    r"""Neural long-term memory: a linear map per case, learned at test time trial by trial (Titans).

    A trial is a key k and a value v side by side. With :math:`\kappa = W k`,

    .. math:: S_t = \eta_t S_{t-1} + \theta_t \frac{(v_t - M_{t-1} \kappa_t) \kappa_t^\top}{1 + |\kappa_t|^2}, \qquad
              M_t = (1 - \alpha_t) M_{t-1} + S_t

    and :math:`M W` is read. Momentum :math:`\eta`, step :math:`\theta` and forgetting :math:`\alpha` are gates: a
    network of the trial, of its surprise :math:`|v - M \kappa|^2` and of how many trials came before. With
    :math:`\alpha = \eta = 0` this is normalised least mean squares.

    Parameters
    ----------
    n_key, n_value : int
        Widths of keys and values.
    hidden : int
        Width of the network that sets the gates.
    persistent : int
        Learned trials that stand before all others.
    theta, eta, alpha : float
        Of the gates before training; in (0, 1).

    Notes
    -----
    Only a linear memory: what is read is then the weights of a linear encoder. Steps are normalised, so that no gate
    makes it diverge.

    References
    ----------
    Behrouz, Zhong and Mirrokni (2025), Titans, arXiv:2501.00663.

    Examples
    --------
    >>> import torch
    >>> memory, k = NeuralMemory(4, theta=0.3), torch.randn(1, 300, 4)
    >>> weights = memory(torch.cat([k, k @ torch.ones(4, 1)], dim=-1))
    >>> torch.allclose(weights, torch.ones(1, 1, 4), atol=0.02)
    True
    """

    def __init__(
        self,
        n_key: int,
        n_value: int = 1,
        hidden: int = 32,
        persistent: int = 0,
        theta: float = 0.1,
        eta: float = 1e-4,
        alpha: float = 1e-4,
    ) -> None:
        super().__init__()
        if not all(0 < g < 1 for g in (theta, eta, alpha)):
            raise ValueError(f"theta={theta}, eta={eta}, alpha={alpha}; legal: in (0, 1). 1e-4 is nearly none.")
        self.n_key, self.n_value = n_key, n_value
        self.key = nn.Linear(n_key, n_key, bias=False)
        nn.init.eye_(self.key.weight)
        self.persistent = nn.Parameter(0.1 * torch.randn(persistent, n_key + n_value))
        self.gate_in = nn.Linear(n_key + n_value, hidden)
        self.gate_state = nn.Linear(2, hidden, bias=False)
        self.gate_out = nn.Linear(hidden, 3)
        nn.init.zeros_(self.gate_out.weight)
        with torch.no_grad():
            self.gate_out.bias.copy_(torch.tensor((theta, eta, alpha)).logit())

    def init(self, batch: int) -> NeuralState:
        nothing = self.key.weight.new_zeros(batch, self.n_value, self.n_key)
        state = NeuralState(nothing, nothing, 0)
        return self.update(state, self.persistent.expand(batch, -1, -1)) if len(self.persistent) else state

    def update(self, state: NeuralState, tokens: Tensor, log_weight: Tensor | None = None) -> NeuralState:
        """Trials (batch, token, key + value), in order; a log weight of -inf leaves its trial out, others must be 0."""
        kept, (weights, momentum, seen) = kept_trials(log_weight), state
        key, value = self.key(tokens[..., : self.n_key]), tokens[..., self.n_key :]
        unit = key / (1 + key.square().sum(-1, keepdim=True))
        told = self.gate_in(tokens)
        for t in range(tokens.shape[1]):
            miss = value[:, t] - (weights @ key[:, t, :, None])[..., 0]
            known = torch.stack(
                [miss.square().sum(-1).log1p(), miss[:, 0].new_full((len(miss),), seen + t).log1p() / 5], 1
            )
            gates = torch.sigmoid(self.gate_out(F.silu(told[:, t] + self.gate_state(known))))
            theta, eta, alpha = gates[:, :, None, None].unbind(1)
            moved = eta * momentum + theta * miss[:, :, None] * unit[:, t, None, :]
            new = (1 - alpha) * weights + moved
            if kept is not None:
                take = kept[:, t, None, None]
                moved, new = torch.where(take, moved, momentum), torch.where(take, new, weights)
            weights, momentum = new, moved
        return NeuralState(weights, momentum, seen + tokens.shape[1])

    def read(self, state: NeuralState) -> Tensor:
        """Linear maps (batch, value, key) from keys to values."""
        return state.weights @ self.key.weight
