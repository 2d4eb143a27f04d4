"""A spatial mask times a vector of feature weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor, nn

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.encoders.readout._gaussian import contract, feature_penalty
from neuroenc.encoders.readout._geometry import mask_moments
from neuroenc.encoders.readout._protocol import Readout, register_readout

__all__ = ["FactorizedReadout"]

_INITS = ("flat", "normal")


@register_readout
class FactorizedReadout(Readout):
    r"""One mask and one feature vector per voxel: a weight matrix of rank one.

    .. math:: y_v = b_v + \sum_c f_{vc} \sum_{h,w} m_v[h,w]\, x_c[h,w], \qquad
              m_v = S_v / (\lVert S_v \rVert_F + 10^{-6})

    Parameters
    ----------
    in_shape : (int, int, int)
        Channels, height, width.
    n_voxels : int
    nonnegative : bool
        Masks of no negative weight (projected after every step).
    mask_l1, smoothness : float
        Penalties per voxel on the unit-norm mask: its sum of absolute weights, and its squared differences between
        neighbours.
    feature_l1, feature_l2 : float
        Penalties per voxel on the feature weights.
    init : {"flat", "normal"}
        Masks begin the same everywhere, or normal with s.d. 1e-3 as published.
    max_memory : int
        Bytes for one chunk of voxels.

    References
    ----------
    Klindt, Ecker, Euler & Bethge (2017), NeurIPS. Saha, Chadha & Khosla (2024), arXiv:2410.14031.

    Examples
    --------
    >>> from neuroenc.encoders.readout import FactorizedReadout
    >>> FactorizedReadout((8, 7, 7), 3, nonnegative=True).weights().mask.shape
    (3, 7, 7)
    """

    name: ClassVar[str] = "factorized"

    def __init__(
        self,
        in_shape: Sequence[int],
        n_voxels: int,
        *,
        nonnegative: bool = False,
        mask_l1: float = 0.0,
        smoothness: float = 0.0,
        feature_l1: float = 0.0,
        feature_l2: float = 0.0,
        init: str = "flat",
        max_memory: int = 2**28,
    ) -> None:
        super().__init__(in_shape, n_voxels, max_memory=max_memory)
        if init not in _INITS:
            raise ConfigError(unknown_name("init", init, _INITS))
        self.nonnegative = bool(nonnegative)
        self.mask_l1, self.smoothness = float(mask_l1), float(smoothness)
        self.feature_l1, self.feature_l2 = float(feature_l1), float(feature_l2)
        channels, height, width = self.in_shape
        self.mask = self._initial(n_voxels, height, width)
        if init == "flat":
            self.mask = nn.Parameter(torch.full((n_voxels, height, width), (height * width) ** -0.5))
        self.feature = self._initial(n_voxels, channels)
        self.bias = nn.Parameter(torch.zeros(n_voxels))
        self.constrain()

    def masks(self, voxels: slice = slice(None)) -> Tensor:
        """Masks of unit norm (v, H, W)."""
        raw = self.mask[voxels]
        return raw / (torch.linalg.vector_norm(raw, dim=(1, 2), keepdim=True) + 1e-6)

    def chunk_bytes(self, batch: int) -> float:
        """The map under each mask, or the place-wise features, and its gradient."""
        channels, height, width = self.in_shape
        return 8.0 * (batch * min(channels, height * width) + 3 * height * width)

    def read(self, x: Tensor, voxels: slice, shared: Any) -> Tensor:
        """Features under the masks."""
        return contract(x, self.masks(voxels), self.feature[voxels]) + self.bias[voxels]

    def constrain(self) -> None:
        """No negative weights, if so asked; a mask that lost all its weight begins again."""
        if not self.nonnegative:
            return
        with torch.no_grad():
            self.mask.clamp_(min=0)
            # A mask of zeros has no gradient and would never come back.
            gone = self.mask.flatten(1).amax(1) <= 0
            if bool(gone.any()):
                self.mask[gone] = (self.in_shape[1] * self.in_shape[2]) ** -0.5

    def regulariser(self) -> Tensor:
        """Penalties on masks and features."""
        penalty = feature_penalty(self.feature, self.feature_l1, self.feature_l2)
        if self.mask_l1 or self.smoothness:
            masks = self.masks()
            if self.mask_l1:
                penalty = penalty + self.mask_l1 * masks.abs().sum()
            if self.smoothness:
                rough = masks.diff(dim=1).square().sum() + masks.diff(dim=2).square().sum()
                penalty = penalty + self.smoothness * rough
        return penalty

    def receptive_field(self) -> dict[str, Tensor] | None:
        """Moments of the squared masks."""
        if self.in_shape[1] * self.in_shape[2] == 1:
            return None
        return mask_moments(self.masks().detach().square())

    def weights(self) -> xr.Dataset:
        """``mask`` (voxel, y, x), ``feature`` (voxel, channel) and ``intercept`` (voxel)."""
        return xr.Dataset(
            {
                "mask": (("voxel", "y", "x"), self.masks().detach().cpu().numpy()),
                "feature": (("voxel", "channel"), self.feature.detach().cpu().numpy()),
                "intercept": ("voxel", self.bias.detach().cpu().numpy()),
            }
        )

    @classmethod
    def search_space(cls) -> dict[str, list[Any]]:
        """Strengths of the penalties on features and masks."""
        return {"feature_l2": [1e-3, 1e-2, 1e-1], "smoothness": [0.0, 1e-2, 1e-1]}
