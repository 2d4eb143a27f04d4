"""Readouts through a bottleneck that all voxels share: convolution to few channels, low rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional

from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError
from neuroenc.encoders.readout._geometry import mask_moments
from neuroenc.encoders.readout._protocol import Readout, register_readout

_ACTIVATIONS = ("relu", "none")


@register_readout
class CompressionReadout(Readout):
    r"""Compression readout: a convolution to few channels that all voxels share, then a weight per place.

    .. math:: y_v = b_v + \sum_{k,h,w} W_{vkhw}\, \phi(K * x)_{khw}

    A voxel has ``channels`` weights a place where ridge on the flattened map has one for every channel of the network,
    and the layout of the map is kept, which pooling gives up. The published layer normalises groups of channels, too;
    maps are standardised here, and the strength of a response is what an encoder predicts.

    Parameters
    ----------
    in_shape, n_voxels, max_memory
        As of `LinearReadout`.
    channels : int
        Of the compressed map.
    kernel : int
        Side of the convolution, odd.
    activation : {"relu", "none"}
        "none" is a linear readout whose weights over channels are shared in part.
    alpha : float
        Penalty :math:`\alpha (\lVert W \rVert^2 + \lVert K \rVert^2)`.

    References
    ----------
    Yadav et al. (2023), OVRL-V2: A simple state-of-art baseline for ImageNav and ObjectNav, arXiv:2303.07798.

    Examples
    --------
    >>> from neuroenc.encoders.readout import make_readout
    >>> make_readout("compression", (80, 7, 7), 10, channels=4).weights().weight.shape
    (10, 4, 7, 7)
    """

    name: ClassVar[str] = "compression"

    def __init__(
        self,
        in_shape: Sequence[int],
        n_voxels: int,
        *,
        channels: int = 8,
        kernel: int = 3,
        activation: str = "relu",
        alpha: float = 0.0,
        max_memory: int = 2**28,
    ) -> None:
        super().__init__(in_shape, n_voxels, max_memory=max_memory)
        check_whole("channels", channels)
        if check_whole("kernel", kernel) % 2 == 0:
            raise ConfigError(f"kernel={kernel} must be odd, so that the map keeps its size.")
        self.activation, self.alpha = one_of("activation", activation, _ACTIVATIONS), float(alpha)
        self.reduce = nn.Conv2d(self.in_shape[0], channels, kernel, padding=kernel // 2)
        self.map_shape = (channels, *self.in_shape[1:])
        self.weight = self._initial(n_voxels, channels * self.in_shape[1] * self.in_shape[2])
        self.bias = nn.Parameter(torch.zeros(n_voxels))

    def chunk_bytes(self, batch: int) -> float:
        """One row of output: the product needs nothing else."""
        return 4.0 * batch

    def prepare(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Compressed maps, flattened (B, channels * H * W)."""
        maps = self.reduce(x)
        return (functional.relu(maps) if self.activation == "relu" else maps).flatten(1)

    def read(self, x: Tensor, voxels: slice, shared: Any) -> Tensor:
        """``W vec(maps) + b``."""
        return functional.linear(shared, self.weight[voxels], self.bias[voxels])

    def regulariser(self) -> Tensor:
        """Squared weights of both layers."""
        return self.alpha * (self.weight.square().sum() + self.reduce.weight.square().sum())

    def receptive_field(self) -> dict[str, Tensor] | None:
        """Moments of the weights' energy summed over the compressed channels."""
        if self.in_shape[1] * self.in_shape[2] == 1:
            return None
        return mask_moments(self.weight.detach().view(self.n_voxels, *self.map_shape).square().sum(1))

    def weights(self) -> xr.Dataset:
        """``weight`` (voxel, component, y, x) on the compressed map, ``kernel`` and ``intercept`` (voxel)."""
        found = self._labelled(weight=(("component", "y", "x"), self.weight.view(self.n_voxels, *self.map_shape)))
        found["kernel"] = (("component", "channel", "ky", "kx"), self.reduce.weight.detach().cpu().numpy())
        return found

    @classmethod
    def search_space(cls) -> dict[str, list[Any]]:
        """Strengths of the penalty."""
        return {"alpha": [0.03, 0.1, 0.3]}


@register_readout
class LowRankReadout(Readout):
    r"""Low-rank readout: a linear map of few dimensions that all voxels share, and a voxel's weights on them.

    .. math:: y_v = b_v + \sum_{k=1}^{r} V_{vk} \sum_{c,h,w} U_{k,chw}\, x_{chw}

    with the penalty :math:`\alpha (\lVert U \rVert^2 + \lVert V \rVert^2)`, which is twice :math:`\alpha` times the
    nuclear norm of :math:`V U`: reduced-rank regression. Where voxels answer to few dimensions of the features it needs
    fewer stimuli than ridge, which fits each voxel on its own.

    Parameters
    ----------
    in_shape, n_voxels, max_memory
        As of `LinearReadout`.
    rank : int
        Shared dimensions, at most.
    alpha : float
        Strength of the penalty.

    References
    ----------
    Izenman (1975), Reduced-rank regression for the multivariate linear model, J Multivariate Analysis 5.

    Examples
    --------
    >>> from neuroenc.encoders.readout import make_readout
    >>> make_readout("lowrank", (80, 7, 7), 100, rank=5).n_parameters == 5 * (80 * 49 + 100) + 100
    True
    """

    name: ClassVar[str] = "lowrank"

    def __init__(
        self,
        in_shape: Sequence[int],
        n_voxels: int,
        *,
        rank: int = 10,
        alpha: float = 0.0,
        max_memory: int = 2**28,
    ) -> None:
        super().__init__(in_shape, n_voxels, max_memory=max_memory)
        self.rank, self.alpha = check_whole("rank", rank), float(alpha)
        n_features = self.in_shape[0] * self.in_shape[1] * self.in_shape[2]
        # Dimensions of about unit variance to begin with, which the voxels do not read yet.
        self.component = self._initial(rank, n_features, scale=n_features**-0.5)
        self.loading = self._initial(n_voxels, rank)
        self.bias = nn.Parameter(torch.zeros(n_voxels))

    def chunk_bytes(self, batch: int) -> float:
        """One row of output: the product needs nothing else."""
        return 4.0 * batch

    def prepare(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The shared dimensions (B, rank)."""
        return functional.linear(x.flatten(1), self.component)

    def read(self, x: Tensor, voxels: slice, shared: Any) -> Tensor:
        """``V z + b``."""
        return functional.linear(shared, self.loading[voxels], self.bias[voxels])

    def regulariser(self) -> Tensor:
        """Squared weights of both factors."""
        return self.alpha * (self.component.square().sum() + self.loading.square().sum())

    def receptive_field(self) -> dict[str, Tensor] | None:
        """Moments of the energy of ``V U``, summed over channels."""
        channels, height, width = self.in_shape
        if height * width == 1:
            return None
        parts = self.component.detach().view(self.rank, channels, height * width).permute(2, 0, 1)
        # Of the weights at a place only their products are needed: no weight of a voxel and channel is written out.
        energy = torch.einsum("vk,pkl,vl->vp", self.loading.detach(), parts @ parts.transpose(1, 2), self.loading)
        return mask_moments(energy.detach().view(self.n_voxels, height, width))

    def weights(self) -> xr.Dataset:
        """``loading`` (voxel, component), ``component_weight`` (component, channel, y, x) and ``intercept`` (voxel)."""
        found = self._labelled(loading=(("component",), self.loading))
        whole = self.component.detach().cpu().numpy().reshape(self.rank, *self.in_shape)
        found["component_weight"] = (("component", "channel", "y", "x"), whole)
        return found

    @classmethod
    def search_space(cls) -> dict[str, list[Any]]:
        """Ranks and strengths of the penalty."""
        return {"rank": [5, 10, 20], "alpha": [0.03, 0.1, 0.3]}
