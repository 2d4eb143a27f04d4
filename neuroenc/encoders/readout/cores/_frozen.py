"""A network held still: no gradient reaches it, and nothing of it drifts while a readout trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from neuroenc._core.errors import DataError
from neuroenc.encoders.readout.cores._protocol import Core

__all__ = ["FrozenCore"]


class FrozenCore(Core):
    """``z = module(x)`` in evaluation mode, without gradients, whatever ``train()`` is told.

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
            self.options: dict[str, Any] = {"core": module.name, **module.options}
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
