"""Positions on a map: -1 and 1 are its outer edges, x to the right, y down."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gaussian_masks", "mask_moments", "pixel_centres"]


def pixel_centres(n: int, like: Tensor) -> Tensor:
    """Positions (n,) of the centres of ``n`` pixels."""
    return (2 * torch.arange(n, dtype=like.dtype, device=like.device) + 1) / n - 1


def gaussian_masks(centre: Tensor, factor: Tensor, height: int, width: int) -> Tensor:
    """Gaussian masks that sum to 1 over the map.

    ``centre`` (v, 2) as x, y; ``factor`` (v, 2, 2), the lower triangular root of the covariance.
    """
    dx = pixel_centres(width, centre)[None, None, :] - centre[:, 0, None, None]
    dy = pixel_centres(height, centre)[None, :, None] - centre[:, 1, None, None]
    # Whitened distance, by forward substitution.
    u = dx / factor[:, 0, 0, None, None]
    w = (dy - factor[:, 1, 0, None, None] * u) / factor[:, 1, 1, None, None]
    return torch.softmax((-0.5 * (u.square() + w.square())).flatten(1), dim=1).view(len(centre), height, width)


def mask_moments(energy: Tensor) -> dict[str, Tensor]:
    """Centre and size of masks from their squares, ``energy`` (v, h, w).

    Squares keep a floor of small weights from pulling the centre inwards and the size up. The square of a Gaussian
    is narrower by the root of two; the size is multiplied by it, so that a Gaussian mask reports its own s.d.
    A mask of zeros has no receptive field: NaN.
    """
    _, height, width = energy.shape
    total = energy.sum((1, 2))
    density = energy / total[:, None, None]
    px, py = pixel_centres(width, energy), pixel_centres(height, energy)
    along_x, along_y = density.sum(1), density.sum(2)
    x, y = along_x @ px, along_y @ py
    variance = (along_x @ px.square() - x.square() + along_y @ py.square() - y.square()) / 2
    return {"x": x, "y": y, "size": (2 * variance.clamp(min=0)).sqrt()}
