"""Hints: simpler answers that a register is also trained to give, by a head that is left out in use."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from neuroenc.encoders.incontext._episodes import Episode


def hint_error(kind: str, given: Tensor, episode: Episode) -> Tensor:
    r"""Mean squared error of a hint (voxel, size), in units of the responses' variance.

    ``"weights"``: ridge regression of the support, :math:`(X^\top X + I)^{-1} X^\top y` with a constant feature.
    ``"nearest"``: weights that predict the response to the support stimulus nearest to each query. ``"statistics"``:
    mean and logarithm of the variance of the support's responses.

    References
    ----------
    Awasthi and Gupta (2023), Improving length-generalization in transformers via task hinting, arXiv:2310.00726.

    Examples
    --------
    >>> x, y = torch.randn(40, 3), torch.zeros(5, 40)
    >>> hint_error("weights", torch.zeros(5, 4), Episode(x, y, x, y)).item()
    0.0
    """
    y, seen = episode.y.nan_to_num(0.0), ~episode.y.isnan()
    if kind == "statistics":
        n = seen.sum(1).clamp_min(1)
        mean = y.sum(1) / n
        variance = ((y - mean[:, None]).square() * seen).sum(1) / n
        return (given - torch.stack([mean, variance.clamp_min(1e-3).log()], dim=1)).square().mean()
    wide, asked = (F.pad(x, (0, 1), value=1.0) for x in (episode.x, episode.xq))
    if kind == "weights":
        right = torch.linalg.solve(wide.T @ wide + torch.eye(wide.shape[1], device=wide.device), (y @ wide).T).T
        return ((given - right) @ asked.T).square().mean()
    nearest = torch.cdist(episode.xq, episode.x).argmin(1)
    miss = (given @ asked.T - y[:, nearest]) * seen[:, nearest]
    return miss.square().mean()
