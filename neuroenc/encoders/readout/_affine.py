"""Affine warps of maps, from a few parameters that are zero at the identity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.encoders.readout._geometry import pixel_centres

__all__ = ["MODES", "identity_grid", "n_warp_parameters", "sample_stack", "warp_matrices", "warp_parts"]

_PARTS = {"rotation": 1, "translation": 2, "scale": 2, "shear": 2}
#: What a warp may do; "affine" is all six entries of the matrix at once.
MODES = (
    "affine",
    "translation",
    "rotation",
    "scale",
    "shear",
    "rotation_scale",
    "translation_scale",
    "rotation_translation",
    "rotation_translation_scale",
)


def n_warp_parameters(mode: str) -> int:
    """Parameters of a warp.

    >>> n_warp_parameters("rotation_translation_scale")
    5
    """
    if mode not in MODES:
        raise ConfigError(unknown_name("warp mode", mode, MODES))
    return 6 if mode == "affine" else sum(_PARTS[part] for part in mode.split("_"))


def warp_matrices(parameters: Tensor, mode: str) -> Tensor:
    r"""Matrices (..., 2, 3) that take a place of the output to the place that it is read from.

    "affine" adds its parameters to the identity. Otherwise the matrix is :math:`[R(\phi)\,D\,H \mid t]` with the
    rotation by :math:`\phi` radians, the scale :math:`D = \mathrm{diag}(e^{s_x}, e^{s_y})` (positive s reads from
    further out, which makes a mask smaller), the shear H (ones on the diagonal) and the translation t; parts that the
    mode does not name are the identity.
    """
    eye = torch.eye(2, 3, dtype=parameters.dtype, device=parameters.device)
    if mode == "affine":
        return eye + parameters.unflatten(-1, (2, 3))
    lead = parameters.shape[:-1]
    square = eye[:, :2].expand(*lead, 2, 2)
    shift = torch.zeros(*lead, 2, dtype=parameters.dtype, device=parameters.device)
    parts = dict(zip(mode.split("_"), parameters.split([_PARTS[p] for p in mode.split("_")], dim=-1)))
    if "shear" in parts:
        one = torch.ones_like(parts["shear"][..., 0])
        sx, sy = parts["shear"].unbind(-1)
        square = torch.stack([torch.stack([one, sx], -1), torch.stack([sy, one], -1)], -2)
    if "scale" in parts:
        square = parts["scale"].exp()[..., :, None] * square
    if "rotation" in parts:
        cos, sin = parts["rotation"][..., 0].cos(), parts["rotation"][..., 0].sin()
        square = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2) @ square
    if "translation" in parts:
        shift = parts["translation"]
    return torch.cat([square, shift[..., None]], -1)


def identity_grid(height: int, width: int, like: Tensor) -> Tensor:
    """Centres of all pixels as rows (x, y, 1), (height * width, 3)."""
    y, x = torch.meshgrid(pixel_centres(height, like), pixel_centres(width, like), indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], -1).flatten(0, 1)


def sample_stack(maps: Tensor, matrices: Tensor, base: Tensor) -> Tensor:
    """Each of n maps warped by m matrices of its own.

    ``maps`` (n, h, w), ``matrices`` (n, m, 2, 3), ``base`` from `identity_grid`; returns (n, m, h * w). Bilinear, zeros
    outside. The m copies of a map lie along the height of the output, so that the map itself is never copied.
    """
    n, m = matrices.shape[:2]
    height, width = maps.shape[1:]
    # (n, 2m, 3) @ (3, p) is one product for all warps of a map.
    grid = (matrices.reshape(n, 2 * m, 3) @ base.T).view(n, m, 2, height * width).transpose(2, 3)
    grid = grid.reshape(n, m * height, width, 2)
    out = functional.grid_sample(maps[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return out.view(n, m, height * width)


def warp_parts(matrices: Tensor, centre: Tensor | None = None) -> dict[str, Tensor]:
    """Rotation (radians), scale (log of the size of what is seen) and translation of warps (..., 2, 3).

    Rotation is that of the polar decomposition. ``translation`` (..., 2) is how far the point ``centre`` (..., 2;
    default the middle) moves in the output: the inverse warp of it, less itself.
    """
    square, shift = matrices[..., :2], matrices[..., 2]
    rotation = torch.atan2(square[..., 1, 0] - square[..., 0, 1], square[..., 0, 0] + square[..., 1, 1])
    det = square[..., 0, 0] * square[..., 1, 1] - square[..., 0, 1] * square[..., 1, 0]
    scale = -0.5 * det.abs().clamp(min=1e-12).log()
    if centre is None:
        centre = torch.zeros_like(shift)
    gap = centre - shift
    safe = torch.where(det.abs() < 1e-6, torch.full_like(det, torch.nan), det)
    moved = torch.stack(
        [
            (square[..., 1, 1] * gap[..., 0] - square[..., 0, 1] * gap[..., 1]) / safe,
            (square[..., 0, 0] * gap[..., 1] - square[..., 1, 0] * gap[..., 0]) / safe,
        ],
        -1,
    )
    return {"rotation": rotation, "scale": scale, "translation": moved - centre}
