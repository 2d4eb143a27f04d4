"""A memory that learns while it is read: weights moved by the gradient of what surprised them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from neuroenc.attention._memory import kept_trials

__all__ = ["NeuralMemory", "NeuralState"]


class NeuralState(NamedTuple):
    """Weights of each case's own memory, and their momentum."""

    query: Tensor  # (batch, query, d)
    weights: tuple[Tensor, ...]  # (batch, out, in) a layer
    momentum: tuple[Tensor, ...]


class NeuralMemory(nn.Module):
    r"""A small network per case that is trained by each trial, once, as it comes.

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
        if gates not in ("fixed", "data"):
            raise ValueError(f"unknown gates {gates!r}; legal: fixed, data. Give one of them.")
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
