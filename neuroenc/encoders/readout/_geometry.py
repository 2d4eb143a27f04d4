"""Coordinates on feature maps, affine warps, and the network that predicts them from a stimulus."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError


def check_shape(in_shape: Sequence[int]) -> tuple[int, int, int]:
    """``in_shape`` as three positive integers."""
    shape = tuple(int(n) for n in in_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ConfigError(f"in_shape {tuple(in_shape)} must be (channels, height, width), all positive.")
    return shape  # type: ignore[return-value]


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


_PARTS = {"translation": 2, "rotation": 1, "scale": 2, "shear": 2}
#: What a warp may do; "affine" is all six entries of the matrix at once.
MODES = ("affine", *_PARTS, "rotation_scale", "translation_scale", "rotation_translation", "rotation_translation_scale")


def n_warp_parameters(mode: str) -> int:
    """Parameters of a warp.

    >>> n_warp_parameters("rotation_translation_scale")
    5
    """
    one_of("warp mode", mode, MODES)
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
