"""Memories that take trials one after the other and stay as small as they are."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["MemoryState", "StreamState", "StreamingAttention", "kept_trials"]

State = TypeVar("State")


class MemoryState(Protocol[State]):
    """What every memory can do; a state's size does not depend on the number of trials.

    ``init`` gives the state before any trial, ``update`` the one after more trials, ``merge`` that of two sets of
    trials (where order does not matter), ``read`` what it answers.
    """

    def init(self, query: Tensor) -> State:
        """State without a trial, for queries (..., query, d)."""
        ...

    def update(self, state: State, key: Tensor, value: Tensor, log_weight: Tensor | None = None) -> State:
        """State after trials with keys (..., token, d), values (..., token, e) and log weights (..., token)."""
        ...

    def merge(self, a: State, b: State) -> State:
        """State of both sets of trials."""
        ...

    def read(self, state: State, query: Tensor | None = None) -> Tensor:
        """Answers (..., query, e) to the queries of ``init``, or to others where the memory can."""
        ...


class StreamState(NamedTuple):
    """Partial sums of an attention; two sites that swap these have swapped no trial."""

    query: Tensor  # (..., query, d)
    m: Tensor  # (..., query) largest score so far, -inf without a trial; 0 for sigmoid
    u: Tensor  # (..., query, e) sum of weighted values, relative to exp(m)
    w: Tensor  # (..., query) sum of weights, relative to exp(m)


class StreamingAttention:
    r"""Attention of fixed queries to a stream, exact at every moment.

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
        if kind not in ("softmax", "sigmoid"):
            raise ValueError(f"unknown kind {kind!r}; legal: softmax, sigmoid. Give one of them.")
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
                f"states of other queries, {tuple(a.query.shape)} and {tuple(b.query.shape)}; legal: states of the "
                "same ones. Start both from the same init(query)."
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
            f"keys {tuple(key.shape)}, values {tuple(value.shape)}; legal: (batch, token, d) and (batch, token, e). "
            "Fold heads into the batch."
        )
    if log_weight is None:
        return None
    kept = log_weight == 0
    if not bool((kept | (log_weight == -torch.inf)).all()):
        raise ValueError("log weights other than 0 and -inf; legal: these. Repeat the trials that weigh more.")
    return kept
