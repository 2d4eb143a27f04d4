"""Ridge on the flattened map, or on the map averaged over a grid of cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.encoders.readout._geometry import mask_moments
from neuroenc.encoders.readout._protocol import Readout, register_readout

__all__ = ["LinearReadout", "PooledReadout", "pool_map"]

_PENALTIES = ("squared", "norm")


def pool_map(x: Any, cells: int | None) -> Any:
    """Maps (B, C, H, W) averaged over ``cells`` x ``cells`` cells; None leaves them."""
    return x if cells is None else functional.adaptive_avg_pool2d(x, cells)


@register_readout
class LinearReadout(Readout):
    r"""Every place of every channel has its own weight.

    .. math:: y_v = b_v + \sum_{c,h,w} W_{v,chw}\, x_{chw}

    `ReadoutEncoder` solves it in closed form, a penalty per voxel chosen by cross-validation. Trained by
    gradients, the penalty is :math:`\alpha \sum_v \lVert W_v \rVert^2` ("squared"; with the mean squared error of n
    stimuli the minimum is ridge regression with penalty :math:`n\alpha`) or the published
    :math:`\alpha (\lVert W \rVert_F + \lVert b \rVert_2)` ("norm": not squared, and one norm over all voxels).

    Parameters
    ----------
    in_shape : (int, int, int)
        Channels, height, width.
    n_voxels : int
    pool : int, optional
        Average the map over pool x pool cells first.
    alpha : float
        Strength of the penalty.
    penalty : {"squared", "norm"}
    max_memory : int
        Bytes for one chunk of voxels.

    References
    ----------
    Saha, Chadha & Khosla (2024), arXiv:2410.14031.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.encoders.readout import LinearReadout
    >>> LinearReadout((8, 7, 7), 3)(torch.zeros(2, 8, 7, 7)).shape
    torch.Size([2, 3])
    """

    name: ClassVar[str] = "linear"
    closed_form: ClassVar[bool] = True

    def __init__(
        self,
        in_shape: Sequence[int],
        n_voxels: int,
        *,
        pool: int | None = None,
        alpha: float = 0.0,
        penalty: str = "squared",
        max_memory: int = 2**28,
    ) -> None:
        super().__init__(in_shape, n_voxels, max_memory=max_memory)
        channels, height, width = self.in_shape
        if pool is not None and not 1 <= pool <= min(height, width):
            raise ConfigError(
                f"pool={pool} cells a side on maps of {height} x {width}: choose 1 to {min(height, width)}."
            )
        if penalty not in _PENALTIES:
            raise ConfigError(unknown_name("penalty", penalty, _PENALTIES))
        self.pool, self.alpha, self.penalty = pool, float(alpha), penalty
        self.map_shape = self.in_shape if pool is None else (channels, pool, pool)
        n_features = self.map_shape[0] * self.map_shape[1] * self.map_shape[2]
        self.weight = self._initial(n_voxels, n_features)
        self.bias = nn.Parameter(torch.zeros(n_voxels))

    def chunk_bytes(self, batch: int) -> float:
        """One row of output: the product needs nothing else."""
        return 4.0 * batch

    def prepare(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Pooled and flattened maps."""
        return pool_map(x, self.pool).flatten(1)

    def read(self, x: Tensor, voxels: slice, shared: Any) -> Tensor:
        """``W vec(x) + b``."""
        return functional.linear(shared, self.weight[voxels], self.bias[voxels])

    def regulariser(self) -> Tensor:
        """Ridge penalty, or the published norms."""
        if self.penalty == "norm":
            return self.alpha * (self.weight.norm() + self.bias.norm())
        return self.alpha * self.weight.square().sum()

    def receptive_field(self) -> dict[str, Tensor] | None:
        """Moments of the weights' energy summed over channels; none on a single cell."""
        _, height, width = self.map_shape
        if height * width == 1:
            return None
        energy = self.weight.detach().view(self.n_voxels, *self.map_shape).square().sum(1)
        return mask_moments(energy)

    def weights(self) -> xr.Dataset:
        """``weight`` (voxel, channel, y, x) and ``intercept`` (voxel)."""
        weight = self.weight.detach().cpu().view(self.n_voxels, *self.map_shape).numpy()
        return xr.Dataset(
            {
                "weight": (("voxel", "channel", "y", "x"), weight),
                "intercept": ("voxel", self.bias.detach().cpu().numpy()),
            }
        )

    @classmethod
    def search_space(cls) -> dict[str, list[Any]]:
        """Strengths of the ridge penalty, for training by gradients."""
        return {"alpha": [1e-4, 1e-3, 1e-2, 1e-1]}


@register_readout
class PooledReadout(LinearReadout):
    r"""No position at all: weights on the channels' averages over the map.

    .. math:: y_v = b_v + \sum_c f_{vc} \frac{1}{HW}\sum_{h,w} x_{chw}

    Parameters
    ----------
    in_shape, n_voxels, alpha, penalty, max_memory
        As in `LinearReadout`.
    pool : int
        Cells a side; 1 is the global average.

    Examples
    --------
    >>> from neuroenc.encoders.readout import PooledReadout
    >>> PooledReadout((8, 7, 7), 3).weights().weight.shape
    (3, 8, 1, 1)
    """

    name: ClassVar[str] = "pooled"

    def __init__(
        self,
        in_shape: Sequence[int],
        n_voxels: int,
        *,
        pool: int = 1,
        alpha: float = 0.0,
        penalty: str = "squared",
        max_memory: int = 2**28,
    ) -> None:
        super().__init__(in_shape, n_voxels, pool=pool, alpha=alpha, penalty=penalty, max_memory=max_memory)
