"""Protocol and registry of readouts: torch modules from feature maps to voxels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neuroenc._core.checks import keywords, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders.readout._geometry import check_shape

#: Readouts by name; see `register_readout`.
READOUTS: dict[str, type[Readout]] = {}


class Readout(nn.Module, ABC):
    """Base class of readouts: responses ``y[b, v]`` of voxels from feature maps ``x[b, c, h, w]``.

    Positions are in [-1, 1], x to the right and y down, with -1 and 1 the outer edges of the map, so that the
    field of view is 2 wide.

    Parameters
    ----------
    in_shape : (int, int, int)
        Channels, height and width of the maps.
    n_voxels : int
    max_memory : int
        Bytes that intermediate arrays of one chunk of voxels may take. Results do not depend on it.
    """

    name: ClassVar[str] = ""
    #: Whether least squares with a squared penalty has a closed form (`ReadoutEncoder` then uses it).
    closed_form: ClassVar[bool] = False

    def __init__(self, in_shape: Sequence[int], n_voxels: int, *, max_memory: int = 2**28) -> None:
        super().__init__()
        self.in_shape = check_shape(in_shape)
        if n_voxels < 1:
            raise ConfigError(f"n_voxels={n_voxels} must be at least 1.")
        self.n_voxels = int(n_voxels)
        self.max_memory = int(max_memory)

    @abstractmethod
    def read(self, x: Tensor, voxels: slice, shared: Any) -> Tensor:
        """Responses (B, chunk) of ``voxels``; ``shared`` is what `prepare` made."""

    @abstractmethod
    def weights(self) -> xr.Dataset:
        """Weights as labelled arrays over voxel, channel, y and x."""

    def prepare(self, x: Tensor, context: Tensor | None) -> Any:
        """What all chunks of a batch share (None for most readouts)."""
        return None

    def chunk_bytes(self, batch: int) -> float:
        """Bytes of intermediate arrays that one voxel of a batch needs."""
        return 4.0 * batch * self.in_shape[0]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Responses of all voxels.

        Parameters
        ----------
        x : Tensor (B, C, H, W)
        context : Tensor (B, Cc, Hc, Wc), optional
            Map that content-dependent readouts look at; ``x`` itself where it is left out.

        Returns
        -------
        Tensor (B, V)
        """
        if tuple(x.shape[1:]) != self.in_shape:
            raise DataError(f"maps have shape {tuple(x.shape[1:])} a stimulus; this readout reads {self.in_shape}.")
        shared = self.prepare(x, context)
        size = max(1, min(self.n_voxels, int(self.max_memory // max(1.0, self.chunk_bytes(len(x))))))
        if size >= self.n_voxels:
            return self.read(x, slice(0, self.n_voxels), shared)
        parts = []
        for start in range(0, self.n_voxels, size):
            voxels = slice(start, min(start + size, self.n_voxels))
            if torch.is_grad_enabled():
                # A chunk's arrays are made again in the backward pass instead of being kept for all chunks.
                # Nothing random happens inside read, so no random state has to be kept either.
                parts.append(checkpoint(self.read, x, voxels, shared, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(self.read(x, voxels, shared))
        return torch.cat(parts, dim=1)

    def regulariser(self) -> Tensor:
        """Weighted penalty, summed over voxels."""
        return next(self.parameters()).new_zeros(())

    def constrain(self) -> None:
        """Put parameters back where they are legal, after a step of the optimiser."""
        return

    def start(self, mean: Tensor) -> None:
        """Begin at the voxels' mean responses (V,), so that no step is spent on them."""
        with torch.no_grad():
            self.bias.copy_(mean.to(self.bias))

    def receptive_field(self) -> dict[str, Tensor] | None:
        """Centre ``x``, ``y`` and ``size`` (s.d.), each (V,), or None where the readout has none."""
        return None

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @classmethod
    def search_space(cls) -> dict[str, list[Any]]:
        """Options that a comparison may tune, and their values."""
        return {}

    bias: nn.Parameter

    def _initial(self, *shape: int, scale: float = 1e-3) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape) * scale)

    def _labelled(self, **parts: tuple[tuple[str, ...], Tensor]) -> xr.Dataset:
        """Tensors over voxel and the dimensions that are named with them, and the intercept."""
        arrays = {k: (("voxel", *dims), v.detach().cpu().numpy()) for k, (dims, v) in parts.items()}
        return xr.Dataset({**arrays, "intercept": ("voxel", self.bias.detach().cpu().numpy())})


def register_readout(cls: type[Readout]) -> type[Readout]:
    """Register a readout class by its ``name``.

    Examples
    --------
    >>> from neuroenc.encoders.readout import READOUTS
    >>> sorted(READOUTS)
    ['attention', 'factorized', 'gaussian', 'linear', 'pooled', 'semantic']
    """
    if not cls.name or cls.name in READOUTS:
        raise ConfigError(f"readout name {cls.name!r} is empty or taken.")
    READOUTS[cls.name] = cls
    return cls


def make_readout(name: str, in_shape: Sequence[int], n_voxels: int, **options: Any) -> Readout:
    """Make a readout by name.

    Parameters
    ----------
    name : str
        One of `READOUTS`.
    in_shape : (int, int, int)
        Channels, height and width of the maps.
    n_voxels : int
    **options
        The readout's own.

    Raises
    ------
    ConfigError
        An unknown name or option; the message has the nearest.

    Examples
    --------
    >>> make_readout("pooled", (8, 7, 7), 3).n_parameters
    27
    """
    one_of("readout", name, READOUTS)
    build: Callable[..., Readout] = READOUTS[name]
    for option in options:
        one_of(f"option of readout {name!r}", option, keywords(build))
    return build(in_shape, n_voxels, **options)
