"""Protocol and registry of cores, and frozen backbones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from neuroenc._core.checks import keywords, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders.readout._geometry import check_shape

#: Cores by name; see `register_core`.
CORES: dict[str, type[Core]] = {}


class Core(nn.Module, ABC):
    """Base class of cores: feature map ``z = core(x)`` with ``x`` (B, C, H, W) and ``z`` (B, C', H', W').

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
    """

    name: ClassVar[str] = ""
    frozen: bool = False

    def __init__(self, in_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shape = check_shape(in_shape)
        self.out_shape: tuple[int, int, int] = self.in_shape
        self.extent: tuple[float, float] = (1.0, 1.0)

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
        self.check(x)
        return self.run(x)

    def check(self, x: Tensor) -> None:
        """Raise DataError for inputs of another shape, or integers."""
        if x.ndim != 4 or tuple(x.shape[1:]) != self.in_shape:
            raise DataError(
                f"inputs have shape {tuple(x.shape)}; this core was built for (batch, {self.in_shape[0]}, "
                f"{self.in_shape[1]}, {self.in_shape[2]}). Next step: resize them, or build it for their shape."
            )
        if not x.is_floating_point():
            raise DataError(f"inputs are {x.dtype}, expected floating point. Next step: x.float(), standardised.")

    @abstractmethod
    def run(self, x: Tensor) -> Tensor:
        """Maps of checked inputs."""

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def register_core(cls: type[Core]) -> type[Core]:
    """Register a core class by its ``name``.

    Examples
    --------
    >>> from neuroenc.encoders.readout.cores import CORES
    >>> sorted(CORES)
    ['equivariant', 'grid', 'plain', 'trunk']
    """
    if not cls.name or cls.name in CORES:
        raise ConfigError(f"core name {cls.name!r} is empty or taken.")
    CORES[cls.name] = cls
    return cls


def make_core(name: str, in_shape: Sequence[int], seed: int = 0, *, frozen: bool = False, **options: Any) -> Core:
    """Make a core by name, with weights drawn from ``seed`` (the global random state is left alone).

    Parameters
    ----------
    name : str
        One of `CORES`: "equivariant", "plain", "grid", "trunk".
    in_shape : (int, int, int)
        Channels, height and width of the inputs.
    seed : int
        Of the initial weights.
    frozen : bool
        Never train it: random features, the control for what training the core is worth.
    **options
        The core's own.

    Raises
    ------
    ConfigError
        An unknown name or option (the message has the nearest), or a shape too small for the layers.

    Examples
    --------
    >>> make_core("grid", (512, 8, 8), seed=1).out_shape
    (64, 4, 4)
    """
    one_of("core", name, CORES)
    build: Any = CORES[name]
    for option in options:
        one_of(f"option of core {name!r}", option, [*keywords(build), "frozen"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        core: Core = build(in_shape, **options)
    if frozen and getattr(core, "conditioned", False):
        raise ConfigError(
            f"core {name!r} is conditioned on tasks, which frozen random features cannot be. Next step: "
            "conditioning='none', or frozen=False."
        )
    if frozen:
        return FrozenCore(core, in_shape)
    return core


class FrozenCore(Core):
    """Frozen core: ``z = module(x)`` in evaluation mode, without gradients.

    Batch normalisation keeps the statistics it came with and dropout stays off. Leaving a frozen network in
    training mode lets its running statistics drift towards the new images, so that it is not the network whose
    name it bears.

    Parameters
    ----------
    module : torch.nn.Module
        From (B, C, H, W) to maps (B, C', H', W'). Its parameters are made to need no gradient.
    in_shape : (int, int, int)
        Channels, height and width of the inputs.

    Raises
    ------
    DataError
        The module does not give maps for such inputs.

    Examples
    --------
    >>> core = FrozenCore(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (3, 8, 8))
    >>> core.out_shape, core.train().module.training, core.n_parameters
    ((4, 6, 6), False, 0)
    """

    name: ClassVar[str] = "frozen"
    frozen = True

    def __init__(self, module: nn.Module, in_shape: Sequence[int]) -> None:
        super().__init__(in_shape)
        self.module = module.requires_grad_(False)
        self.train(False)
        if isinstance(module, Core):
            self.out_shape, self.extent = module.out_shape, module.extent
            return
        tensor = next(iter([*module.parameters(), *module.buffers()]), torch.zeros(()))
        with torch.no_grad():
            out = module(torch.zeros(1, *self.in_shape, device=tensor.device))
        if not isinstance(out, Tensor) or out.ndim != 4:
            found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise DataError(
                f"{type(module).__name__} gives {found} for one input of shape {self.in_shape}; a core gives a map "
                "(1, channels, y, x). Next step: take the network up to a layer that still has places."
            )
        self.out_shape = tuple(out.shape[1:])  # type: ignore[assignment]

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def run(self, x: Tensor) -> Tensor:
        """Maps, without gradients."""
        # A parent's train() ends in the one above; a direct call of module.train() does not.
        if any(part.training for part in self.module.modules()):
            self.module.eval()
        with torch.no_grad():
            return self.module(x)
