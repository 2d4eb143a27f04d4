"""From scores to weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Layout", "Normaliser", "Sigmoid", "Softmax"]


class Layout(NamedTuple):
    """Which queries and keys a matrix of scores stands for; only normalisers with ``needs_layout`` are told."""

    query: Tensor | None  # (query,) place of each query among the keys; None where queries are no keys
    key: Tensor | None  # (batch, heads, query, key) places of selected keys, -1 for none; None where all are there
    total: int  # number of keys before selection


class Normaliser(nn.Module):
    """Scores (batch, heads, query, key), already biased and masked with -inf, to weights of the same shape.

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
    """Weights that sum to 1; a row without any key gets zeros.

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
    r"""Every key is weighed on its own: :math:`a_{ij} = \sigma(s_{ij} + b)`.

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
