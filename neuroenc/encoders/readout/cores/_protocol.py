"""What every core is: a torch module from images or grids (B, C, H, W) to a feature map of known shape."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from neuroenc._core.errors import ConfigError, DataError, unknown_name

__all__ = ["CORES", "Core", "check_shape", "make_core", "register_core"]

#: Cores by name; see `register_core`.
CORES: dict[str, type[Core]] = {}


def check_shape(in_shape: Sequence[int]) -> tuple[int, int, int]:
    """``in_shape`` as three positive integers."""
    shape = tuple(int(n) for n in in_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ConfigError(f"in_shape {tuple(in_shape)} must be (channels, height, width), all positive.")
    return shape  # type: ignore[return-value]


class Core(nn.Module, ABC):
    """Feature map ``z = core(x)`` with ``x`` (B, C, H, W) and ``z`` (B, C', H', W').

    Attributes
    ----------
    in_shape, out_shape : (int, int, int)
        Channels, height and width of one input and of its map.
    extent : (float, float)
        Height and width of the map in units of the input's: 1 where the map spans the whole input, 0.5 where
        convolutions without full padding left only its central half. The map's centre is the input's; a
        receptive field at (x, y) of the map lies at (extent[1] * x, extent[0] * y) of the input.
    frozen : bool
        Whether training leaves it as it is.
    options : dict
        JSON-able options; ``make_core(core.name, core.in_shape, seed, **core.options)`` builds its like.
    """

    name: ClassVar[str] = ""
    frozen: bool = False

    def __init__(self, in_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shape = check_shape(in_shape)
        self.out_shape: tuple[int, int, int] = self.in_shape
        self.extent: tuple[float, float] = (1.0, 1.0)
        self.options: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps of ``x``.

        Parameters
        ----------
        x : Tensor (B, C, H, W)
            Floating point, of the shape that the core was built for.

        Returns
        -------
        Tensor (B, C', H', W')

        Raises
        ------
        DataError
            Another shape, or integers.
        """
        if x.ndim != 4 or tuple(x.shape[1:]) != self.in_shape:
            raise DataError(
                f"inputs have shape {tuple(x.shape)}; this core was built for (batch, {self.in_shape[0]}, "
                f"{self.in_shape[1]}, {self.in_shape[2]}). Next step: resize them, or build it for their shape."
            )
        if not x.is_floating_point():
            raise DataError(f"inputs are {x.dtype}, expected floating point. Next step: x.float(), standardised.")
        return self.run(x)

    @abstractmethod
    def run(self, x: Tensor) -> Tensor:
        """Maps of checked inputs."""

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def register_core(cls: type[Core]) -> type[Core]:
    """Make a core known by its ``name``.

    Examples
    --------
    >>> from neuroenc.encoders.readout.cores import CORES
    >>> sorted(CORES)
    ['equivariant', 'grid', 'plain']
    """
    if not cls.name or cls.name in CORES:
        raise ConfigError(f"core name {cls.name!r} is empty or taken.")
    CORES[cls.name] = cls
    return cls


def make_core(name: str, in_shape: Sequence[int], seed: int = 0, *, frozen: bool = False, **options: Any) -> Core:
    """A core by name, with weights drawn from ``seed`` (the global random state is left alone).

    Parameters
    ----------
    name : str
        One of `CORES`: "equivariant", "plain", "grid".
    in_shape : (int, int, int)
        Channels, height and width of the inputs.
    seed : int
        Of the initial weights.
    frozen : bool
        Never train it: random features, the control for what training the core is worth.
    **options
        The core's own.

    Returns
    -------
    Core

    Raises
    ------
    ConfigError
        An unknown name or option (the message has the nearest), or a shape too small for the layers.

    Examples
    --------
    >>> make_core("grid", (512, 8, 8), seed=1).out_shape
    (64, 4, 4)
    """
    if name not in CORES:
        raise ConfigError(unknown_name("core", name, CORES))
    build: Any = CORES[name]
    parameters = inspect.signature(build.__init__).parameters.values()
    legal = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for option in options:
        if option not in legal:
            raise ConfigError(unknown_name(f"option of core {name!r}", option, [*legal, "frozen"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        core: Core = build(in_shape, **options)
    if frozen:
        from neuroenc.encoders.readout.cores._frozen import FrozenCore

        return FrozenCore(core, in_shape)
    return core
