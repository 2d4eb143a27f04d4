"""From scores to weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Normaliser", "Softmax"]


class Normaliser(nn.Module):
    """Scores (batch, heads, query, key), already biased and masked with -inf, to weights of the same shape.

    Weights are finite, and zero where the score is -inf. ``fused`` says that
    `torch.nn.functional.scaled_dot_product_attention` gives the same numbers without the weights.
    """

    fused = False

    def forward(self, scores: Tensor, n: Tensor) -> Tensor:
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

    def forward(self, scores: Tensor, n: Tensor) -> Tensor:
        top = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
        weights = (scores - top).exp()
        return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
