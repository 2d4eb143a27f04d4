"""Semantic spatial transformer readout: stimulus-dependent warps of masks and feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError
from neuroenc.encoders.readout import _geometry as geometry
from neuroenc.encoders.readout._protocol import register_readout
from neuroenc.encoders.readout._spatial import FactorizedReadout


@register_readout
class SemanticSpatialReadout(FactorizedReadout):
    r"""Semantic spatial transformer: factorised readout whose mask and maps are warped per stimulus.

    .. math:: y_v(I) = b_v + \sum_c f_{vc} \sum_{h,w} \tilde x_c[h,w]\, \tilde m_v[h,w]

    with :math:`\tilde m_v` the unit-norm, non-negative mask sampled at :math:`\theta^{\mathrm{mask}}_v(I)` and
    :math:`\tilde x_c` the channel sampled at :math:`\theta^{\mathrm{feat}}_c(I)` (bilinear, zeros outside). Both
    matrices come from a localisation network that looks at ``context``: a 1 x 1 convolution to 4 channels, flattened,
    and one network of 32 hidden units each. They begin at the identity, where this is the factorised readout.

    Parameters
    ----------
    in_shape, n_voxels
        As of `LinearReadout`.
    mode : str
        What the masks' warps may do: "affine", "translation", "rotation", "scale", "shear", "rotation_scale",
        "translation_scale", "rotation_translation" or "rotation_translation_scale".
    feature_mode : str
        The same for the channels' warps; "same" takes ``mode``, "none" leaves the maps as they are.
    context_shape : (int, int, int), optional
        Of the map that the localisation network looks at; default ``in_shape``, the map itself.
    warp_l2 : float
        Penalty on the last layers of the localisation network, which pulls warps towards the identity.
    warp_hidden, warp_channels, warp_cells : int
        Hidden units, outputs of the 1 x 1 convolution, and the side to which larger contexts are averaged.
    nonnegative, mask_l1, smoothness, feature_l1, feature_l2, init, max_memory
        As in `FactorizedReadout`.

    References
    ----------
    Saha, Chadha & Khosla (2024), arXiv:2410.14031. Jaderberg et al. (2015), Spatial transformer networks, NeurIPS.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.encoders.readout import SemanticSpatialReadout
    >>> readout = SemanticSpatialReadout((8, 7, 7), 3, mode="translation")
    >>> readout(torch.zeros(2, 8, 7, 7)).shape, readout.warps(torch.zeros(2, 8, 7, 7)).shape
    (torch.Size([2, 3]), torch.Size([2, 3, 2, 3]))
    """

    name: ClassVar[str] = "semantic"

    def __init__(
        self,
        in_shape: Sequence[int],
        n_voxels: int,
        *,
        mode: str = "affine",
        feature_mode: str = "same",
        context_shape: Sequence[int] | None = None,
        warp_l2: float = 0.0,
        warp_hidden: int = 32,
        warp_channels: int = 4,
        warp_cells: int = 7,
        nonnegative: bool = True,
        mask_l1: float = 0.0,
        smoothness: float = 0.0,
        feature_l1: float = 0.0,
        feature_l2: float = 0.0,
        init: str = "flat",
        max_memory: int = 2**28,
    ) -> None:
        masks: dict[str, Any] = {"nonnegative": nonnegative, "mask_l1": mask_l1, "smoothness": smoothness, "init": init}
        masks |= {"feature_l1": feature_l1, "feature_l2": feature_l2, "max_memory": max_memory}
        super().__init__(in_shape, n_voxels, **masks)
        one_of("feature_mode", feature_mode, ("same", "none", *geometry.MODES))
        self.mode = mode
        self.feature_mode = mode if feature_mode == "same" else feature_mode
        self.warp_l2 = float(warp_l2)
        k_map = 0 if self.feature_mode == "none" else geometry.n_warp_parameters(self.feature_mode)
        seen = self.in_shape if context_shape is None else context_shape
        warped = (n_voxels, geometry.n_warp_parameters(mode), self.in_shape[0], k_map)
        sizes = {"channels": warp_channels, "hidden": warp_hidden, "cells": warp_cells}
        self.localization = geometry.Localization(seen, *warped, **sizes)

    def chunk_bytes(self, batch: int) -> float:
        """Grid, warped masks, what lies under them, and their gradients."""
        channels, height, width = self.in_shape
        return 4.0 * batch * (7 * height * width + 2 * min(channels, height * width))

    def prepare(self, x: Tensor, context: Tensor | None) -> Any:
        """Warped maps (B, C, HW), the hidden code that the masks' warps come from, and the grid."""
        net = self.localization
        u = net(x if context is None else context)
        _, height, width = self.in_shape
        base = geometry.identity_grid(height, width, x)
        maps = x.flatten(2)
        if net.maps is not None:
            matrices = geometry.warp_matrices(net.maps.last(net.maps.hidden(u)), self.feature_mode)
            maps = geometry.sample_stack(x.flatten(0, 1), matrices.flatten(0, 1)[:, None], base).view_as(maps)
        return maps, net.masks.hidden(u), base

    def read(self, x: Tensor, voxels: slice, shared: Any) -> Tensor:
        """Features of the warped maps under the warped masks."""
        maps, hidden, base = shared
        matrices = geometry.warp_matrices(self.localization.masks.last(hidden, voxels), self.mode)
        masks = geometry.sample_stack(self.masks(voxels), matrices.transpose(0, 1), base)
        feature = self.feature[voxels]
        if maps.shape[1] <= maps.shape[2]:
            under = torch.bmm(maps, masks.permute(1, 2, 0))
            return torch.einsum("bcv,vc->bv", under, feature) + self.bias[voxels]
        return torch.einsum("bvp,vbp->bv", feature @ maps, masks) + self.bias[voxels]

    def regulariser(self) -> Tensor:
        """Penalties of the factorised readout, and on departures from the identity."""
        penalty = super().regulariser()
        if self.warp_l2:
            net = self.localization
            total = net.masks.penalty()
            if net.maps is not None:
                total = total + net.maps.penalty()
            penalty = penalty + self.warp_l2 * total
        return penalty

    @torch.no_grad()
    def warps(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Matrices (B, V, 2, 3) by which the masks are sampled for each stimulus."""
        net = self.localization
        hidden = net.masks.hidden(net(x if context is None else context))
        return geometry.warp_matrices(net.masks.last(hidden), self.mode)

    @torch.no_grad()
    def warp_spread(self, x: Tensor, context: Tensor | None = None, batch_size: int = 64) -> dict[str, Tensor]:
        """How much each voxel's warp depends on content: s.d. over stimuli.

        Returns
        -------
        dict of Tensor (V,)
            ``scale`` (log units), ``translation`` (of the mask's centre, in units where the field of view is 2 wide)
            and ``rotation`` (radians).
        """
        field = super().receptive_field()
        if field is None:
            raise ConfigError("maps of one place cannot be warped.")
        centre = torch.stack([field["x"], field["y"]], -1).nan_to_num()
        found: dict[str, list[Tensor]] = {}
        for start in range(0, len(x), batch_size):
            rows = slice(start, start + batch_size)
            matrices = self.warps(x[rows], None if context is None else context[rows])
            for name, value in geometry.warp_parts(matrices, centre.expand(len(matrices), -1, -1)).items():
                found.setdefault(name, []).append(value)
        parts = {name: torch.cat(values) for name, values in found.items()}
        spread = {name: parts[name].std(0, correction=0) for name in ("scale", "rotation")}
        spread["translation"] = parts["translation"].var(0, correction=0).sum(-1).sqrt()
        return spread

    def weights(self) -> xr.Dataset:
        """As the factorised readout's, with the last layer of the masks' warps."""
        found = super().weights()
        head = self.localization.masks
        found["warp_weight"] = (("voxel", "warp", "hidden"), head.weight.detach().cpu().numpy())
        found["warp_bias"] = (("voxel", "warp"), head.bias.detach().cpu().numpy())
        return found

    @classmethod
    def search_space(cls) -> dict[str, list[Any]]:
        """As the factorised readout's, with the pull towards the identity."""
        return {**super().search_space(), "warp_l2": [1e-3, 1e-2, 1e-1]}
