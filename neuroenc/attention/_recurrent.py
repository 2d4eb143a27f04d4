"""Gated recurrent networks as a memory: the baseline of constant size."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from neuroenc.attention._memory import kept_trials

__all__ = ["RecurrentMemory", "RecurrentState"]


class RecurrentState(NamedTuple):
    """What a recurrent memory holds."""

    query: Tensor  # (batch, query, d)
    h: Tensor  # (batch, hidden)
    c: Tensor  # (batch, hidden) of LSTM; empty of GRU


class RecurrentMemory(nn.Module):
    r"""Trials pass through a gated cell; a linear map of its state and the query answers.

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
        if kind not in ("gru", "lstm"):
            raise ValueError(f"unknown kind {kind!r}; legal: gru, lstm. Give one of them.")
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
        inputs = torch.cat([key, value], dim=-1) @ self.weight_ih_l0.T + self.bias_ih_l0
        h, c = state.h, state.c
        for t in range(key.shape[1]):
            new = self._step(inputs[:, t], h, c)
            if kept is not None:
                new = (torch.where(kept[:, t, None], new[0], h), torch.where(kept[:, t, None], new[1], c))
            h, c = new
        return RecurrentState(state.query, h, c)

    def _step(self, given: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        own = h @ self.weight_hh_l0.T + self.bias_hh_l0
        if self.kind == "lstm":
            i, f, g, o = (given + own).chunk(4, dim=-1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            return o.sigmoid() * c.tanh(), c
        reset, keep = (given + own)[:, : 2 * self.hidden].sigmoid().chunk(2, dim=-1)
        new = (given[:, 2 * self.hidden :] + reset * own[:, 2 * self.hidden :]).tanh()
        return (1 - keep) * new + keep * h, c

    def merge(self, a: RecurrentState, b: RecurrentState) -> RecurrentState:
        """Refused: what a recurrent network becomes depends on the order of its trials."""
        raise ValueError("memories that read in order cannot be merged; legal: update(a, trials of b). Do that.")

    def read(self, state: RecurrentState, query: Tensor | None = None) -> Tensor:
        """Answers (batch, query, e), to the queries of ``init`` or any others."""
        query = state.query if query is None else query
        return self.readout(torch.cat([state.h[:, None].expand(-1, query.shape[1], -1), query], dim=-1))
