"""The network that looks at a stimulus and says how masks and feature maps are to be warped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroenc._core.errors import DataError

__all__ = ["Localization"]


class _Head(nn.Module):
    """``Linear(32 -> n k)(ReLU(Linear(n_in -> 32)))`` that is zero to begin with."""

    def __init__(self, n_in: int, hidden: int, n: int, k: int) -> None:
        super().__init__()
        self.first = nn.Linear(n_in, hidden)
        self.weight = nn.Parameter(torch.zeros(n, k, hidden))
        self.bias = nn.Parameter(torch.zeros(n, k))

    def hidden(self, u: Tensor) -> Tensor:
        return functional.relu(self.first(u))

    def last(self, hidden: Tensor, rows: slice = slice(None)) -> Tensor:
        """Parameters (B, rows, k)."""
        weight = self.weight[rows]
        flat = functional.linear(hidden, weight.flatten(0, 1), self.bias[rows].flatten())
        return flat.view(len(hidden), *weight.shape[:2])

    def penalty(self) -> Tensor:
        return self.weight.square().sum() + self.bias.square().sum()


class Localization(nn.Module):
    """``u = flatten(Conv1x1(context))``, then one small network for masks and a separate one for feature maps.

    Their last layers begin at zero, which is the identity warp.

    Parameters
    ----------
    context_shape : (int, int, int)
        Channels, height, width of the map that is looked at.
    n_masks, k_mask : int
        Voxels, and parameters of the warp of a mask.
    n_maps, k_map : int
        Channels, and parameters of the warp of a channel; ``k_map=0`` leaves the second network out.
    channels : int
        Outputs of the 1 x 1 convolution.
    hidden : int
        Units of the hidden layers.
    cells : int
        Contexts larger than cells x cells are averaged down to it.
    """

    def __init__(
        self,
        context_shape: Sequence[int],
        n_masks: int,
        k_mask: int,
        n_maps: int,
        k_map: int,
        *,
        channels: int = 4,
        hidden: int = 32,
        cells: int = 7,
    ) -> None:
        super().__init__()
        self.context_shape = tuple(int(n) for n in context_shape)
        height, width = (min(n, cells) for n in self.context_shape[1:])
        self.out = (height, width)
        self.reduce = nn.Conv2d(self.context_shape[0], channels, 1)
        n_in = channels * height * width
        self.masks = _Head(n_in, hidden, n_masks, k_mask)
        self.maps = _Head(n_in, hidden, n_maps, k_map) if k_map else None

    def forward(self, context: Tensor) -> Tensor:
        """The code ``u`` (B, n) of a context."""
        if tuple(context.shape[1:]) != self.context_shape:
            raise DataError(
                f"context has shape {tuple(context.shape[1:])} a stimulus; the localisation network reads "
                f"{self.context_shape}. Next step: pass context= when fitting and when predicting."
            )
        if self.out != self.context_shape[1:]:
            context = functional.adaptive_avg_pool2d(context, self.out)
        return self.reduce(context).flatten(1)
