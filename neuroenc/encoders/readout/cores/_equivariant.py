"""The response-optimised core: convolutions equivariant to turns by 45 degrees, trained on responses alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.encoders.readout.cores._c8 import ORIENTATIONS, FieldNorm, GaussianPool, GroupConv, LiftConv
from neuroenc.encoders.readout.cores._protocol import Core, register_core

__all__ = ["PRESETS", "EquivariantCore", "Plan", "check_plan", "planned_shape"]

#: A block: kernel, padding (None keeps the size), stride of the pooling after it (0: no pooling).
Block = tuple[int, int | None, int]
Plan = tuple[Block, ...]

#: Fields and blocks by name.
PRESETS: dict[str, tuple[int, Plan]] = {
    "small": (8, ((5, None, 2), (3, None, 2), (3, None, 0), (3, None, 1))),
    "published": (
        48,
        ((5, 1, 0), (5, 1, 2), (3, 1, 0), (3, 1, 2), (3, 1, 0), (3, 1, 2), (3, 1, 0), (3, 1, 1)),
    ),
}


def check_plan(preset: str, fields: int | None, blocks: Sequence[Sequence[int | None]] | None) -> tuple[int, Plan]:
    """Fields and blocks of a preset, with those given in place of its own."""
    if preset not in PRESETS:
        raise ConfigError(unknown_name("preset", preset, PRESETS))
    own_fields, own_blocks = PRESETS[preset]
    fields = own_fields if fields is None else int(fields)
    if fields < 1:
        raise ConfigError(f"fields={fields} must be at least 1.")
    if blocks is None:
        return fields, own_blocks
    plan: list[Block] = []
    for n, block in enumerate(blocks):
        if len(block) != 3 or block[0] is None or block[2] not in (0, 1, 2):
            raise ConfigError(
                f"block {n} is {tuple(block)}; legal is (odd kernel, padding or None, stride of the pooling 0, 1 or 2)."
            )
        if block[0] < 1 or block[0] % 2 == 0:
            raise ConfigError(f"block {n} has kernel {block[0]}; it must be odd: a filter turns about its centre.")
        plan.append((int(block[0]), None if block[1] is None else int(block[1]), int(block[2])))
    if not plan:
        raise ConfigError("blocks is empty; a core needs at least one block.")
    return fields, tuple(plan)


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


@register_core
class EquivariantCore(Core):
    """Blocks of C8 convolution, normalisation a field, ReLU and Gaussian pooling.

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
    blocks : sequence of (kernel, padding, pooling), optional
        In place of the preset's: odd kernel, zeros on every side (None keeps the size), and the stride of the
        pooling after the block, 1 or 2 (0: none).

    Raises
    ------
    ConfigError
        Unknown preset, illegal block, or inputs too small.

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

    def __init__(
        self,
        in_shape: Sequence[int],
        *,
        preset: str = "small",
        fields: int | None = None,
        blocks: Sequence[Sequence[int | None]] | None = None,
    ) -> None:
        super().__init__(in_shape)
        self.fields, plan = check_plan(preset, fields, blocks)
        size, self.extent = planned_shape(self.in_shape, plan)
        self.out_shape = (ORIENTATIONS * self.fields, *size)
        self.options: dict[str, Any] = {"preset": preset, "fields": self.fields, "blocks": [list(b) for b in plan]}
        layers: list[nn.Module] = []
        for number, (kernel, padding, stride) in enumerate(plan):
            if number == 0:
                layers.append(LiftConv(self.in_shape[0], self.fields, kernel, padding))
            else:
                layers.append(GroupConv(self.fields, self.fields, kernel, padding))
            layers.extend((FieldNorm(self.fields), nn.ReLU(inplace=True)))
            if stride:
                layers.append(GaussianPool(stride))
        self.layers = nn.Sequential(*layers)

    def run(self, x: Tensor) -> Tensor:
        """Maps (B, 8 * fields, y, x)."""
        return self.layers(x)
