"""Convolutional cores: plain and rotation-equivariant (C8).

A map holds ``fields``; each is a regular field of eight channels, one an orientation, so that channel
``8 f + o`` is field f at orientation o. Turning the input by 45 r degrees counter-clockwise turns every map
likewise and shifts orientations by r: ``out'[f, o](p) = out[f, o - r](R^-1 p)``.

Filters are combinations of rings times angular harmonics, ``exp(-(rho - rho_j)^2 / 2 s^2) cos(k theta)`` (and
sin), which turn analytically. Turns by 90 degrees only permute the pixels and are exact; those by 45 are exact
but for the sampling of filter and image.

Notes
-----
escnn [2]_, the maintained successor of the e2cnn that the published core used, has the same layers. It is not a
dependency: its own dependencies compile Fortran at installation (no wheels), where C8 alone takes the few
functions below.

References
----------
.. [1] Weiler & Cesa (2019), General E(2)-equivariant steerable CNNs, NeurIPS.
.. [2] Cesa, Lang & Weiler (2022), A program to build E(N)-equivariant steerable CNNs, ICLR.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations_with_replacement
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError
from neuroenc.encoders.readout.cores._core import Core, register_core

#: Order of the group.
ORIENTATIONS = 8
_RING_WIDTH = 0.6


def _sampled(kernel: int, angle: float) -> Tensor:
    """Basis functions turned by ``angle`` (radians, counter-clockwise as seen), float64 (b, kernel, kernel)."""
    axis = torch.arange(kernel, dtype=torch.float64) - (kernel - 1) / 2
    # Seen with y up, so that a positive angle is what torch.rot90 does.
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    radius, theta = torch.hypot(x, y), torch.atan2(y, x) - angle
    found = []
    half = (kernel - 1) // 2
    for ring in range(half + 1):
        profile = torch.exp(-((radius - ring) ** 2) / (2 * _RING_WIDTH**2))
        # Harmonics that a ring of this radius can carry without aliasing on the pixel grid.
        top = 0 if ring == 0 else min(ring + 1, 4)
        found.append(profile)
        for k in range(1, top + 1):
            # The angle is undefined in the centre, and a harmonic has no value there.
            away = profile * (radius > 0)
            found.extend((away * torch.cos(k * theta), away * torch.sin(k * theta)))
    return torch.stack(found)


@lru_cache(maxsize=16)
def ring_basis(kernel: int) -> Tensor:
    """Steerable basis filters at eight orientations (C8).

    Parameters
    ----------
    kernel : int
        Odd width of the filters, in pixels.

    Returns
    -------
    Tensor (8, b, kernel, kernel)
        float32; function b at orientation o is itself turned by 45 o degrees counter-clockwise, and orientation
        o + 2 is ``rot90`` of orientation o to the bit. Mean Euclidean norm over orientations is 1.

    Examples
    --------
    >>> basis = ring_basis(5)
    >>> basis.shape, bool((basis[2] == basis[0].rot90(1, (1, 2))).all())
    (torch.Size([8, 13, 5, 5]), True)
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ConfigError(f"kernel={kernel} must be odd and positive: a filter turns about its central pixel.")
    pair = torch.stack([_sampled(kernel, 0.0), _sampled(kernel, math.pi / 4)])
    pair = pair / pair.flatten(2).norm(dim=2).mean(0)[None, :, None, None]
    pair = pair.float()
    return torch.cat([pair.rot90(turns, (2, 3)) for turns in range(ORIENTATIONS // 2)])


class _RotatedConv(nn.Module):
    """A convolution whose filters are turned copies of trained ones."""

    basis: Tensor

    def __init__(self, fan_in: int, shape: tuple[int, ...], kernel: int, padding: int | None) -> None:
        super().__init__()
        basis = ring_basis(kernel)
        self.register_buffer("basis", basis.clone(), persistent=False)
        self.kernel, self.padding = kernel, kernel // 2 if padding is None else padding
        # He: the squared norm of what meets one output is 2 on average, for basis functions of unit norm.
        scale = math.sqrt(2.0 / (fan_in * basis.shape[1]))
        self.weight = nn.Parameter(torch.randn(*shape, basis.shape[1]) * scale)

    def _rotate(self) -> Tensor:
        raise NotImplementedError

    def filters(self) -> Tensor:
        """Filters (8 * out_fields, channels, kernel, kernel)."""
        # Half precision is for the convolution; turned filters stay exact.
        with torch.autocast(self.weight.device.type, enabled=False):
            return self._rotate()

    def forward(self, x: Tensor) -> Tensor:
        """Convolution of ``x`` (B, channels, H, W)."""
        return functional.conv2d(x, self.filters(), padding=self.padding)


class LiftConv(_RotatedConv):
    """C8 lifting convolution: ``out[f, o] = sum_c psi_fc(R_o^-1 .) * x_c``.

    Parameters
    ----------
    channels, fields : int
        ``8 * fields`` channels come out.
    kernel : int
        Odd.
    padding : int, optional
        Zeros on every side; ``kernel // 2``, which keeps the size, by default.

    Examples
    --------
    >>> LiftConv(3, 4, 5)(torch.zeros(1, 3, 16, 16)).shape
    torch.Size([1, 32, 16, 16])
    """

    def __init__(self, channels: int, fields: int, kernel: int, padding: int | None = None) -> None:
        super().__init__(channels, (fields, channels), kernel, padding)

    def _rotate(self) -> Tensor:
        turned = torch.einsum("fcb,obyx->focyx", self.weight, self.basis)
        return turned.flatten(0, 1)


class GroupConv(_RotatedConv):
    """C8 group convolution: ``out[g, o] = sum_fi psi_{g, f, i - o}(R_o^-1 .) * x[f, i]``.

    Parameters
    ----------
    kernel, padding : int
        As in `LiftConv`.

    Examples
    --------
    >>> GroupConv(4, 6, 3)(torch.zeros(1, 32, 16, 16)).shape
    torch.Size([1, 48, 16, 16])
    """

    def __init__(self, in_fields: int, fields: int, kernel: int, padding: int | None = None) -> None:
        super().__init__(in_fields * ORIENTATIONS, (fields, in_fields, ORIENTATIONS), kernel, padding)

    def _rotate(self) -> Tensor:
        turned = [
            torch.einsum("gfib,byx->gfiyx", self.weight.roll(o, dims=2), self.basis[o]) for o in range(ORIENTATIONS)
        ]
        return torch.stack(turned, dim=1).flatten(2, 3).flatten(0, 1)


class FieldNorm(nn.Module):
    """Batch normalisation per field, shared by its eight orientations.

    Examples
    --------
    >>> FieldNorm(4)(torch.zeros(2, 32, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(fields)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised maps, of the shape of ``x``."""
        b, _, h, w = x.shape
        return self.norm(x.reshape(b, -1, ORIENTATIONS * h, w)).reshape(x.shape)


class GaussianPool(nn.Module):
    """Anti-aliased pooling: Gaussian low-pass and subsampling by ``stride``.

    Samples lie symmetrically about the centre: for stride 2, between two pixels of an even size, and on every
    second pixel from the first to the last of an odd one. Only so does pooling commute with turns by 90 degrees.
    Borders are continued by their own values, so that they are not darkened.

    Parameters
    ----------
    stride : int
        1 or 2.
    sigma : float
        S.d. of the Gaussian in pixels.

    Examples
    --------
    >>> pool = GaussianPool(2)
    >>> pool(torch.zeros(1, 8, 16, 16)).shape, pool(torch.zeros(1, 8, 15, 15)).shape
    (torch.Size([1, 8, 8, 8]), torch.Size([1, 8, 8, 8]))
    """

    def __init__(self, stride: int = 2, sigma: float = 0.66) -> None:
        super().__init__()
        if stride not in (1, 2) or not sigma > 0:
            raise ConfigError(f"stride={stride} must be 1 or 2, and sigma={sigma} positive.")
        self.stride, self.sigma = stride, float(sigma)

    def size(self, n: int) -> int:
        """Pixels that ``n`` pixels become."""
        return n if self.stride == 1 else (n + 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Pooled maps (B, C, size(H), size(W))."""
        rows, columns = (_pool_matrix(n, self.size(n), self.stride, self.sigma).to(x) for n in x.shape[2:])
        # Two small matrix products: several times faster on a CPU than a convolution of every channel alone.
        return rows @ x @ columns.T


@lru_cache(maxsize=64)
def _pool_matrix(n: int, out: int, stride: int, sigma: float) -> Tensor:
    first = 0.5 if stride == 2 and n % 2 == 0 else 0.0
    reach = math.ceil(3 * sigma)
    matrix = torch.zeros(out, n, dtype=torch.float64)
    for row in range(out):
        centre = first + stride * row
        for pixel in range(math.ceil(centre - reach), math.floor(centre + reach) + 1):
            weight = math.exp(-((pixel - centre) ** 2) / (2 * sigma**2))
            matrix[row, min(max(pixel, 0), n - 1)] += weight
    return (matrix / matrix.sum(1, keepdim=True)).float()


#: A block: kernel, padding (None keeps the size), stride of the pooling after it (0: no pooling).
Block = tuple[int, int | None, int]
Plan = tuple[Block, ...]
#: Fields and blocks by name.
PRESETS: dict[str, tuple[int, Plan]] = {
    "small": (8, ((5, None, 2), (3, None, 2), (3, None, 0), (3, None, 1))),
    "published": (48, ((5, 1, 0), (5, 1, 2), (3, 1, 0), (3, 1, 2), (3, 1, 0), (3, 1, 2), (3, 1, 0), (3, 1, 1))),
}


def check_plan(preset: str, fields: int | None) -> tuple[int, Plan]:
    """Fields and blocks of a preset, with the number of fields given in place of its own."""
    one_of("preset", preset, PRESETS)
    own_fields, plan = PRESETS[preset]
    return check_whole("fields", own_fields if fields is None else fields), plan


def planned_shape(in_shape: tuple[int, int, int], plan: Plan) -> tuple[tuple[int, int], tuple[float, float]]:
    """Height and width of the map, and its extent in units of the input's (see `Core`).

    >>> planned_shape((3, 224, 224), PRESETS["published"][1])
    ((28, 28), (1.0, 1.0))
    """
    sizes, extents = [], []
    for n in in_shape[1:]:
        size, pitch = n, 1
        for number, (kernel, padding, stride) in enumerate(plan):
            size += 2 * (kernel // 2 if padding is None else padding) - kernel + 1
            if size < 1:
                raise ConfigError(
                    f"inputs of {in_shape[1]} x {in_shape[2]} are too small: nothing is left after block {number} "
                    f"(kernel {kernel}, padding {padding}). Next step: larger inputs, or fewer blocks."
                )
            if stride == 2:
                size, pitch = GaussianPool(2).size(size), 2 * pitch
        sizes.append(size)
        extents.append(size * pitch / n)
    return (sizes[0], sizes[1]), (extents[0], extents[1])


def equivariant_layers(channels: int, fields: int, plan: Plan) -> nn.Sequential:
    """Blocks of a lifting or group convolution, field normalisation, ReLU and pooling."""
    layers: list[nn.Module] = []
    for number, (kernel, padding, stride) in enumerate(plan):
        turned = (fields, kernel, padding)
        layers.append(GroupConv(fields, *turned) if number else LiftConv(channels, *turned))
        layers += [FieldNorm(fields), nn.ReLU(inplace=True), *([GaussianPool(stride)] if stride else [])]
    return nn.Sequential(*layers)


def plain_layers(channels: int, widths: Sequence[int], plan: Plan) -> nn.Sequential:
    """Blocks of a convolution, batch normalisation, ReLU and pooling, as the equivariant ones."""
    layers: list[nn.Module] = []
    for width, (kernel, padding, stride) in zip(widths, plan, strict=True):
        around = kernel // 2 if padding is None else padding
        convolution = nn.Conv2d(channels, width, kernel, padding=around, bias=False)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        layers += [GaussianPool(stride)] if stride else []
        channels = width
    return nn.Sequential(*layers)


@register_core
class EquivariantCore(Core):
    """Rotation-equivariant core: C8 convolutions, field normalisation, ReLU and Gaussian pooling.

    Turning the input by 90 degrees turns every map by 90 degrees and shifts orientations by two, exactly (square
    inputs); turns by 45 degrees do so but for sampling. Channel ``8 f + o`` is field f at orientation o.

    Parameters
    ----------
    in_shape : (int, int, int)
    preset : {"small", "published"}
        "small": 8 fields, four blocks (kernels 5, 3, 3, 3, sizes kept), maps a quarter of the input, for images of
        64 to 112 pixels on a CPU. "published": 48 fields, eight blocks (5, 5, then 3, padding 1), pooling after
        blocks 2, 4, 6 and 8, 384 x 28 x 28 for 224 pixels.
    fields : int, optional
        In place of the preset's.

    Raises
    ------
    ConfigError
        Unknown preset, or inputs too small.

    References
    ----------
    .. [1] Saha, Chadha & Khosla (2024), Modeling the human visual system: comparative insights from
       response-optimized and task-optimized vision models, language models, and different readout mechanisms,
       arXiv:2410.14031.
    .. [2] Khosla & Wehbe (2022), High-level visual areas act like domain-general filters with strong selectivity
       and functional specialization, bioRxiv.

    Examples
    --------
    >>> import torch
    >>> core = EquivariantCore((3, 32, 32), fields=2).eval()
    >>> x = torch.randn(1, 3, 32, 32)
    >>> turned = core(x.rot90(1, (2, 3))).reshape(1, 2, 8, 8, 8)
    >>> expected = core(x).rot90(1, (2, 3)).reshape(1, 2, 8, 8, 8).roll(2, dims=2)
    >>> torch.allclose(turned, expected, atol=1e-5)
    True
    """

    name: ClassVar[str] = "equivariant"

    def __init__(self, in_shape: Sequence[int], *, preset: str = "small", fields: int | None = None) -> None:
        super().__init__(in_shape)
        self.fields, plan = check_plan(preset, fields)
        size, self.extent = planned_shape(self.in_shape, plan)
        self.out_shape = (ORIENTATIONS * self.fields, *size)
        self.layers = equivariant_layers(self.in_shape[0], self.fields, plan)

    def run(self, x: Tensor) -> Tensor:
        """Maps (B, 8 * fields, y, x)."""
        return self.layers(x)


_TOLERANCE = 0.02


def _equivariant_parameters(channels: int, fields: int, plan: Plan) -> int:
    total = 0
    for number, (kernel, _, _) in enumerate(plan):
        fan_in = channels if number == 0 else ORIENTATIONS * fields
        total += fields * fan_in * ring_basis(kernel).shape[1] + 2 * fields
    return total


def _plain_parameters(channels: int, widths: Sequence[int], plan: Plan) -> int:
    sources = (channels, *widths[:-1])
    return sum(a * b * k * k + 2 * b for a, b, (k, _, _) in zip(sources, widths, plan, strict=True))


def matched_widths(channels: int, fields: int, plan: Plan) -> tuple[int, ...]:
    """Channels of each block: the equivariant core's in the last, and in the others what its parameters allow."""
    target = _equivariant_parameters(channels, fields, plan)
    last, hidden = ORIENTATIONS * fields, len(plan) - 1
    width = 1
    while hidden and _plain_parameters(channels, [*[width + 1] * hidden, last], plan) <= target:
        width += 1
    near = [w for w in range(width - 2, width + 4) if w >= 1]

    def cost(hidden_widths: tuple[int, ...]) -> tuple[float, int, float]:
        miss = abs(_plain_parameters(channels, [*hidden_widths, last], plan) - target) / target
        # Among those well within the tolerance the most even one, else the nearest.
        return max(miss, _TOLERANCE / 2), max(hidden_widths, default=0) - min(hidden_widths, default=0), miss

    best = min(combinations_with_replacement(near, hidden), key=cost)
    widths = (*best, last)
    found = _plain_parameters(channels, widths, plan)
    if abs(found - target) > _TOLERANCE * target:
        raise ConfigError(
            f"no plain core of {len(plan)} blocks with {last} channels has the {target} parameters of the equivariant "
            f"one within 2 % (nearest {found}). Next step: more fields."
        )
    return widths


@register_core
class PlainCore(Core):
    """Convolutional core: convolutions, batch normalisation, ReLU and Gaussian pooling.

    The control for `EquivariantCore` of the same options: as deep, with the same kernels, pooling and
    map (so that a readout has as many parameters on either), and as many trained parameters within 2 percent,
    which narrows the blocks before the last.

    Parameters
    ----------
    in_shape : (int, int, int)
    preset, fields
        As in `EquivariantCore`. The published twin had 384 channels in each block, and about ten times the parameters.

    Raises
    ------
    ConfigError
        Illegal options, inputs too small, or no number of channels that matches.

    Examples
    --------
    >>> from neuroenc.encoders.readout.cores import EquivariantCore
    >>> twins = EquivariantCore((3, 64, 64)), PlainCore((3, 64, 64))
    >>> twins[0].out_shape == twins[1].out_shape, [t.n_parameters for t in twins]
    (True, [9592, 9533])
    """

    name: ClassVar[str] = "plain"

    def __init__(self, in_shape: Sequence[int], *, preset: str = "small", fields: int | None = None) -> None:
        super().__init__(in_shape)
        n_fields, plan = check_plan(preset, fields)
        size, self.extent = planned_shape(self.in_shape, plan)
        self.widths = matched_widths(self.in_shape[0], n_fields, plan)
        self.out_shape = (self.widths[-1], *size)
        self.layers = plain_layers(self.in_shape[0], self.widths, plan)

    def run(self, x: Tensor) -> Tensor:
        """Maps (B, channels, y, x)."""
        return self.layers(x)
