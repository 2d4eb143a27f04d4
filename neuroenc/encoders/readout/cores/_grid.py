"""Core on grids of vectors, such as caption embeddings per image cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError
from neuroenc.encoders.readout.cores._core import Core, register_core
from neuroenc.encoders.readout.cores._equivariant import (
    ORIENTATIONS,
    Plan,
    equivariant_layers,
    plain_layers,
    planned_shape,
)

#: Channels, equivariance and blocks by name.
GRID_PRESETS: dict[str, tuple[int, bool, Plan]] = {
    "small": (64, False, ((3, None, 0), (3, None, 2))),
    "published": (384, True, ((5, 1, 0), (5, 1, 1))),
}


@register_core
class GridCore(Core):
    """Core on feature grids (B, d, 8, 8): two blocks of convolution, normalisation, ReLU and pooling.

    Parameters
    ----------
    in_shape : (int, int, int)
        Length of the vectors, rows and columns of the grid.
    preset : {"small", "published"}
        "small": kernels 3, sizes kept, then pooling by two: 64 x 4 x 4 over the whole image. "published": C8
        convolutions with kernels 5 and padding 1, 8 to 6 to 4 cells, pooling of stride 1: 384 x 4 x 4, whose cells
        lie over the central half of the image (`extent` is 0.5).
    channels : int, optional
        In place of the preset's; a multiple of 8 where it is equivariant.
    equivariant : bool, optional
        In place of the preset's. A grid of captions has an upright top and bottom, which turning would deny, so
        that the default does not.

    Raises
    ------
    ConfigError
        Unknown preset, channels that do not make whole fields, or a grid too small.

    References
    ----------
    .. [1] Saha, Chadha & Khosla (2024), arXiv:2410.14031.

    Examples
    --------
    >>> core = GridCore((512, 8, 8), preset="published")
    >>> core.out_shape, core.extent
    ((384, 4, 4), (0.5, 0.5))
    """

    name: ClassVar[str] = "grid"

    def __init__(
        self,
        in_shape: Sequence[int],
        *,
        preset: str = "small",
        channels: int | None = None,
        equivariant: bool | None = None,
    ) -> None:
        super().__init__(in_shape)
        one_of("preset", preset, GRID_PRESETS)
        own_channels, own_equivariant, plan = GRID_PRESETS[preset]
        width = own_channels if channels is None else int(channels)
        turning = own_equivariant if equivariant is None else bool(equivariant)
        if width < 1 or (turning and width % ORIENTATIONS):
            raise ConfigError(
                f"channels={width} must be positive" + (", and a multiple of 8 (equivariant)." if turning else ".")
            )
        size, self.extent = planned_shape(self.in_shape, plan)
        self.out_shape = (width, *size)
        if turning:
            self.layers = equivariant_layers(self.in_shape[0], width // ORIENTATIONS, plan)
        else:
            self.layers = plain_layers(self.in_shape[0], [width] * len(plan), plan)

    def run(self, x: Tensor) -> Tensor:
        """Maps (B, channels, y, x)."""
        return self.layers(x)
