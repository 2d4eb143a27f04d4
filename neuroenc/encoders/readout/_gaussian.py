"""A Gaussian receptive field per voxel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.encoders.readout._geometry import gaussian_masks
from neuroenc.encoders.readout._protocol import Readout, register_readout

__all__ = ["GaussianReadout"]

_COVARIANCES = ("isotropic", "axis", "full")
_READS = ("sample", "integrate")


@register_readout
class GaussianReadout(Readout):
    r"""One position and one spread per voxel, and a weight per channel.

    ``read="sample"`` reads the map at one point, drawn anew for every stimulus and voxel while training and the mean
    when predicting (Lurz et al. 2021):

    .. math:: y_v = b_v + \sum_c f_{vc}\, x_c(g_v), \qquad
              g_v = \mathrm{clip}(\mu_v + L_v \varepsilon),\ \varepsilon \sim N(0, I)

    There :math:`L_v` is a tolerance for finding the position and shrinks as it is found: it is not the size of the
    receptive field. ``read="integrate"`` weighs the whole map by the Gaussian, in training and predicting alike:

    .. math:: y_v = b_v + \sum_c f_{vc} \sum_{h,w} m_v[h,w]\, x_c[h,w], \qquad
              m_v \propto N(\mu_v, L_v L_v^\top),\ \textstyle\sum m_v = 1

    and its size is the population receptive field's (St-Yves & Naselaris 2018).

    Parameters
    ----------
    in_shape : (int, int, int)
        Channels, height, width.
    n_voxels : int
    covariance : {"axis", "isotropic", "full"}
        A spread per axis (as published), one for both, or with correlation.
    read : {"sample", "integrate"}
    centre_range : float
        Positions begin uniform in [-centre_range, centre_range].
    size_range : float
        Spreads begin uniform in (0, size_range] ("sample") or at it ("integrate").
    align_corners : bool
        True puts -1 and 1 on the centres of the outer pixels, as released, instead of on the map's edges. Receptive
        fields are reported in edge units either way. Of "sample" only.
    feature_l2, feature_l1 : float
        Penalties on the weights, per voxel.
    max_memory : int
        Bytes for one chunk of voxels.

    References
    ----------
    Lurz et al. (2021), ICLR. St-Yves & Naselaris (2018), NeuroImage 180. Saha, Chadha & Khosla (2024),
    arXiv:2410.14031.

    Examples
    --------
    >>> from neuroenc.encoders.readout import GaussianReadout
    >>> sorted(GaussianReadout((8, 7, 7), 3, covariance="full").receptive_field())
    ['size', 'x', 'y']
    """

    name: ClassVar[str] = "gaussian"

    def __init__(
        self,
        in_shape: Sequence[int],
        n_voxels: int,
        *,
        covariance: str = "axis",
        read: str = "sample",
        centre_range: float = 0.5,
        size_range: float = 0.5,
        align_corners: bool = False,
        feature_l2: float = 0.0,
        feature_l1: float = 0.0,
        max_memory: int = 2**28,
    ) -> None:
        super().__init__(in_shape, n_voxels, max_memory=max_memory)
        if covariance not in _COVARIANCES:
            raise ConfigError(unknown_name("covariance", covariance, _COVARIANCES))
        if read not in _READS:
            raise ConfigError(unknown_name("read", read, _READS))
        if not 0 <= centre_range <= 1 or not size_range > 0:
            raise ConfigError(f"centre_range={centre_range} must be in [0, 1] and size_range={size_range} positive.")
        if align_corners and read == "integrate":
            raise ConfigError('align_corners is of read="sample"; masks have positions of their own.')
        self.covariance, self.reads, self.align_corners = covariance, read, align_corners
        self.feature_l2, self.feature_l1 = float(feature_l2), float(feature_l1)
        channels, height, width = self.in_shape
        #: Smallest spread: a third of a pixel, below which a mask is one pixel whatever the spread.
        self.min_size = 0.66 / max(height, width) if read == "integrate" else 1e-3
        self.centre = nn.Parameter((2 * torch.rand(n_voxels, 2) - 1) * centre_range)
        sizes = torch.rand(n_voxels, 1 if covariance == "isotropic" else 2) * size_range
        if read == "integrate":
            sizes = torch.full_like(sizes, size_range)
        self.size = nn.Parameter(sizes.clamp(min=self.min_size))
        self.tilt = nn.Parameter(torch.zeros(n_voxels)) if covariance == "full" else None
        self.feature = nn.Parameter(torch.full((n_voxels, channels), 1.0 / channels) * (read == "sample"))
        if read == "integrate":
            self.feature = self._initial(n_voxels, channels)
        self.bias = nn.Parameter(torch.zeros(n_voxels))

    def factor(self) -> Tensor:
        """Lower triangular roots (V, 2, 2) of the covariances."""
        sizes = self.size.expand(-1, 2)
        low = torch.zeros_like(sizes[:, 0]) if self.tilt is None else self.tilt
        zero = torch.zeros_like(low)
        return torch.stack([torch.stack([sizes[:, 0], zero], 1), torch.stack([low, sizes[:, 1]], 1)], 1)

    def chunk_bytes(self, batch: int) -> float:
        """Features read for a voxel, or the map weighed for it."""
        return 4.0 * batch * self.in_shape[0] * 3

    def prepare(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        """Points (B, V, 2) to read at, drawn for all voxels at once so that chunks do not change them."""
        if self.reads == "integrate":
            return None
        points = self.centre.expand(len(x), -1, -1)
        if self.training:
            noise = torch.randn(len(x), self.n_voxels, 2, dtype=x.dtype, device=x.device)
            points = points + torch.einsum("vij,bvj->bvi", self.factor(), noise)
        return points.clamp(-1, 1)

    def read(self, x: Tensor, voxels: slice, shared: Any) -> Tensor:
        """Weighted features at the points, or under the masks."""
        feature = self.feature[voxels]
        if self.reads == "sample":
            # Border padding: beyond the last centres the outer pixel goes on, instead of fading into zeros.
            found = functional.grid_sample(
                x,
                shared[:, voxels, None].to(x.dtype),
                mode="bilinear",
                padding_mode="border",
                align_corners=self.align_corners,
            )[..., 0]
            return torch.einsum("bcv,vc->bv", found, feature) + self.bias[voxels]
        _, height, width = self.in_shape
        masks = gaussian_masks(self.centre[voxels], self.factor()[voxels], height, width)
        return contract(x, masks, feature) + self.bias[voxels]

    def constrain(self) -> None:
        """Centres stay on the map, spreads positive."""
        with torch.no_grad():
            self.centre.clamp_(-1, 1)
            self.size.clamp_(min=self.min_size)

    def regulariser(self) -> Tensor:
        """Penalties on the features' weights."""
        return feature_penalty(self.feature, self.feature_l1, self.feature_l2)

    def receptive_field(self) -> dict[str, Tensor]:
        """Centre, and s.d. averaged over axes (root mean variance)."""
        _, height, width = self.in_shape
        scale = torch.ones(2)
        if self.align_corners:
            scale = torch.tensor([(width - 1) / width, (height - 1) / height])
        scale = scale.to(self.centre)
        centre = self.centre.detach() * scale
        spread = self.factor().detach() * scale[:, None]
        size = (spread.square().sum((1, 2)) / 2).sqrt()
        return {"x": centre[:, 0], "y": centre[:, 1], "size": size}

    def weights(self) -> xr.Dataset:
        """``feature`` (voxel, channel), ``centre`` (voxel, axis), ``covariance`` and ``intercept``."""
        root = self.factor().detach().cpu()
        return xr.Dataset(
            {
                "feature": (("voxel", "channel"), self.feature.detach().cpu().numpy()),
                "centre": (("voxel", "axis"), self.centre.detach().cpu().numpy()),
                "covariance": (("voxel", "axis", "axis_2"), (root @ root.transpose(1, 2)).numpy()),
                "intercept": ("voxel", self.bias.detach().cpu().numpy()),
            },
            coords={"axis": ["x", "y"], "axis_2": ["x", "y"]},
        )

    @classmethod
    def search_space(cls) -> dict[str, list[Any]]:
        """Strengths of the penalty on features."""
        return {"feature_l2": [1e-3, 1e-2, 1e-1]}


def contract(x: Tensor, masks: Tensor, feature: Tensor) -> Tensor:
    """``sum_c f[v, c] sum_hw m[v, h, w] x[b, c, h, w]`` for masks that do not depend on the stimulus."""
    channels, height, width = x.shape[1:]
    if channels <= height * width:
        under = x.flatten(2) @ masks.flatten(1).T
        return torch.einsum("bcv,vc->bv", under, feature)
    seen = feature @ x.flatten(2)
    return torch.einsum("bvp,vp->bv", seen, masks.flatten(1))


def feature_penalty(feature: Tensor, l1: float, l2: float) -> Tensor:
    """``l1 |f|_1 + l2 |f|^2``, summed over voxels."""
    penalty = feature.new_zeros(())
    if l1:
        penalty = penalty + l1 * feature.abs().sum()
    if l2:
        penalty = penalty + l2 * feature.square().sum()
    return penalty
