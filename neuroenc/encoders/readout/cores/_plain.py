"""The plain twin: ordinary convolutions with the equivariant core's depth, map and number of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any, ClassVar

from torch import Tensor, nn

from neuroenc._core.errors import ConfigError
from neuroenc.encoders.readout.cores._c8 import ORIENTATIONS, GaussianPool, ring_basis
from neuroenc.encoders.readout.cores._equivariant import Plan, check_plan, planned_shape
from neuroenc.encoders.readout.cores._protocol import Core, register_core

__all__ = ["PlainCore", "conv_block"]

_TOLERANCE = 0.02


def conv_block(channels: int, width: int, kernel: int, padding: int | None, stride: int) -> list[nn.Module]:
    """Convolution, batch normalisation, ReLU and pooling, as in a block of the equivariant core."""
    convolution = nn.Conv2d(channels, width, kernel, padding=kernel // 2 if padding is None else padding, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    pool = [GaussianPool(stride)] if stride else []
    return [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True), *pool]


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
            f"one within 2 % (nearest {found}). Next step: other fields or blocks, or give widths=."
        )
    return widths


@register_core
class PlainCore(Core):
    """Blocks of ordinary convolution, batch normalisation, ReLU and Gaussian pooling.

    By default the control for `EquivariantCore` of the same options: as deep, with the same kernels, pooling and
    map (so that a readout has as many parameters on either), and as many trained parameters within 2 percent,
    which narrows the blocks before the last.

    Parameters
    ----------
    in_shape : (int, int, int)
    preset, fields, blocks
        As in `EquivariantCore`.
    widths : sequence of int, optional
        Channels of every block, in place of the matched ones (the published twin had 384 in each, and with them
        about ten times the parameters).

    Raises
    ------
    ConfigError
        Illegal options, inputs too small, or no widths that match.

    Examples
    --------
    >>> from neuroenc.encoders.readout.cores import EquivariantCore
    >>> twins = EquivariantCore((3, 64, 64)), PlainCore((3, 64, 64))
    >>> twins[0].out_shape == twins[1].out_shape, [t.n_parameters for t in twins]
    (True, [9592, 9533])
    """

    name: ClassVar[str] = "plain"

    def __init__(
        self,
        in_shape: Sequence[int],
        *,
        preset: str = "small",
        fields: int | None = None,
        blocks: Sequence[Sequence[int | None]] | None = None,
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__(in_shape)
        n_fields, plan = check_plan(preset, fields, blocks)
        size, self.extent = planned_shape(self.in_shape, plan)
        self.widths = matched_widths(self.in_shape[0], n_fields, plan) if widths is None else tuple(map(int, widths))
        if len(self.widths) != len(plan) or min(self.widths) < 1:
            raise ConfigError(f"widths {self.widths} must be {len(plan)} positive numbers, one a block.")
        self.out_shape = (self.widths[-1], *size)
        self.options: dict[str, Any] = {
            "preset": preset,
            "fields": n_fields,
            "blocks": [list(b) for b in plan],
            "widths": list(self.widths),
        }
        layers: list[nn.Module] = []
        for channels, width, block in zip((self.in_shape[0], *self.widths[:-1]), self.widths, plan, strict=True):
            layers.extend(conv_block(channels, width, *block))
        self.layers = nn.Sequential(*layers)

    def run(self, x: Tensor) -> Tensor:
        """Maps (B, channels, y, x)."""
        return self.layers(x)
