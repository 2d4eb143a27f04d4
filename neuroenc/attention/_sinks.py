"""Keys that draw weight whatever is asked: found, and calmed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neuroenc.attention._normalise import Layout, Normaliser, Softmax

__all__ = ["SinkCalibration", "find_sinks"]


def find_sinks(weights: Tensor, threshold: float = 0.1, keep_first: int = 1, visible: Tensor | None = None) -> Tensor:
    r"""Keys whose mean weight over the queries that see them exceeds a threshold.

    .. math:: a_j = \frac{\sum_i A_{ij}}{\#\{i : i \text{ sees } j\}} > \text{threshold}, \qquad j \ge
              \text{keep\_first}

    Parameters
    ----------
    weights : Tensor (..., query, key)
    threshold : float
    keep_first : int
        Keys in front that are sinks by design (registers, a first token) and are never named.
    visible : Tensor of bool (..., query, key), optional
        Default: every query sees every key.

    Returns
    -------
    Tensor of bool (..., key)

    Examples
    --------
    >>> import torch
    >>> find_sinks(torch.tensor([[0.2, 0.7, 0.1], [0.3, 0.6, 0.1]]), threshold=0.5)
    tensor([False,  True, False])
    """
    if weights.ndim < 2:
        raise ValueError(f"weights have shape {tuple(weights.shape)}; legal: (..., query, key). Keep the query axis.")
    seen = weights.shape[-2] if visible is None else visible.sum(-2).clamp_min(1)
    sinks = weights.sum(-2) / seen > threshold
    sinks[..., :keep_first] = False
    return sinks


class SinkCalibration(Normaliser):
    r"""Another normaliser, with the weight of sinks cut to a share and handed to all other keys.

    In chosen heads, the weights of sinks (`find_sinks`) are multiplied by :math:`\beta`; what is freed goes to the
    other keys of the same row in proportion to their weights, so a row's sum stays. A row with weight on sinks only is
    left as it is.

    Parameters
    ----------
    inner : Normaliser, optional
        Default softmax.
    threshold, keep_first
        See `find_sinks`.
    beta : float
        In [0, 1].
    heads : list of int, optional
        Default all.

    Notes
    -----
    Sinks are a property of all queries, so all are computed even where only some ``rows`` are wanted. Each case of
    the batch has its own sinks.

    References
    ----------
    Yu et al. (2024), Unveiling and harnessing hidden attention sinks, arXiv:2406.15765.

    Examples
    --------
    >>> import torch
    >>> scores = torch.tensor([1.0, 1.0, 3.0, 1.0]).expand(1, 1, 5, 4)
    >>> SinkCalibration(threshold=0.5, beta=0.4)(scores, torch.tensor([4]))[0, 0, 0].numpy().round(3)
    array([0.239, 0.239, 0.284, 0.239], dtype=float32)
    """

    all_rows = True

    def __init__(
        self,
        inner: Normaliser | None = None,
        threshold: float = 0.1,
        beta: float = 0.4,
        heads: Sequence[int] | None = None,
        keep_first: int = 1,
    ) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise ValueError(f"beta={beta}; legal: 0 (sinks vanish) to 1 (nothing changes). The paper has 0.4.")
        self.inner = inner or Softmax()
        self.threshold, self.beta, self.keep_first = threshold, beta, keep_first
        self.heads = None if heads is None else list(heads)
        self.additive = self.inner.additive
        self.needs_layout = self.inner.needs_layout

    def forward(self, scores: Tensor, n: Tensor, layout: Layout | None = None) -> Tensor:
        weights = self.inner(scores, n, layout)
        visible = scores > -torch.inf
        sink = find_sinks(weights.detach(), self.threshold, self.keep_first, visible)[..., None, :]
        if self.heads is not None:
            off = [h for h in self.heads if not 0 <= h < scores.shape[1]]
            if off:
                raise ValueError(f"heads {off} of {scores.shape[1]}; legal: 0 to {scores.shape[1] - 1}. Drop them.")
            chosen = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
            chosen[self.heads] = True
            sink = sink & chosen.view(1, -1, 1, 1)
        rest = weights.masked_fill(sink, 0.0).sum(-1, keepdim=True)
        freed = (1 - self.beta) * (weights.sum(-1, keepdim=True) - rest)
        grown = 1 + freed / torch.where(rest > 0, rest, 1.0)
        calmed = weights * torch.where(sink, self.beta, grown)
        return torch.where(rest > 0, calmed, weights)
