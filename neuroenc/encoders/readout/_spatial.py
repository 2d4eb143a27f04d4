"""Spatial readouts: factorised masks, Gaussian receptive fields and attention pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError
from neuroenc.encoders.readout._geometry import gaussian_masks, mask_moments
from neuroenc.encoders.readout._protocol import Readout, register_readout

_COVARIANCES = ("isotropic", "axis", "full")
_READS = ("sample", "integrate")


@register_readout
class GaussianReadout(Readout):
    r"""Gaussian readout: a receptive-field centre and width per voxel, and channel weights.

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
    in_shape, n_voxels, max_memory
        As of `LinearReadout`.
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
        one_of("covariance", covariance, _COVARIANCES)
        one_of("read", read, _READS)
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
        root = self.factor()
        covariance = (("axis", "axis_2"), root @ root.transpose(1, 2))
        feature, centre = (("channel",), self.feature), (("axis",), self.centre)
        found = self._labelled(feature=feature, centre=centre, covariance=covariance)
        return found.assign_coords(axis=["x", "y"], axis_2=["x", "y"])

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


def group_index(groups: Sequence[int] | None, n_voxels: int) -> Tensor:
    """Group of each voxel (n_voxels,), 0 to n - 1; one group where none are given."""
    if groups is None:
        return torch.zeros(n_voxels, dtype=torch.long)
    if isinstance(groups, str):
        raise ConfigError(f"groups={groups!r} is the name of a coordinate, which ReadoutEncoder looks up when it fits.")
    index = torch.as_tensor(groups, dtype=torch.long)
    if index.shape != (n_voxels,) or sorted(set(index.tolist())) != list(range(int(index.max()) + 1)):
        raise ConfigError(
            f"groups must give one number for each of {n_voxels} voxels, 0 to n - 1 with none left out; found "
            f"{len(index)} numbers. Next step: numpy.unique(rois, return_inverse=True)[1]."
        )
    return index


def feature_penalty(feature: Tensor, l1: float, l2: float) -> Tensor:
    """``l1 |f|_1 + l2 |f|^2``, summed over voxels."""
    penalty = feature.new_zeros(())
    if l1:
        penalty = penalty + l1 * feature.abs().sum()
    if l2:
        penalty = penalty + l2 * feature.square().sum()
    return penalty


_INITS = ("flat", "normal")


@register_readout
class FactorizedReadout(Readout):
    r"""Factorised readout: one spatial mask and one channel vector per voxel (rank one).

    .. math:: y_v = b_v + \sum_c f_{vc} \sum_{h,w} m_v[h,w]\, x_c[h,w], \qquad
              m_v = S_v / (\lVert S_v \rVert_F + 10^{-6})

    Parameters
    ----------
    in_shape, n_voxels, max_memory
        As of `LinearReadout`.
    nonnegative : bool
        Masks of no negative weight (projected after every step).
    mask_l1, smoothness : float
        Penalties per voxel on the unit-norm mask: its sum of absolute weights, and its squared differences between
        neighbours.
    feature_l1, feature_l2 : float
        Penalties per voxel on the feature weights.
    init : {"flat", "normal"}
        Masks begin the same everywhere, or normal with s.d. 1e-3 as published.

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
        one_of("init", init, _INITS)
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
        return self._labelled(mask=(("y", "x"), self.masks()), feature=(("channel",), self.feature))

    @classmethod
    def search_space(cls) -> dict[str, list[Any]]:
        """Strengths of the penalties on features and masks."""
        return {"feature_l2": [1e-3, 1e-2, 1e-1], "smoothness": [0.0, 1e-2, 1e-1]}


@register_readout
class AttentionReadout(Readout):
    r"""Attention readout: learned queries pool the feature map where keys match.

    .. math:: a_{q}[p] = \mathrm{softmax}_p\big(q^\top K (x[p] + e[p]) / \sqrt{d}\big), \qquad
              y_v = b_v + \sum_h \sum_c f_{vhc} \sum_p a_{q(v)h}[p]\, x_c[p]

    with p the places (tokens) of the map and e learned position embeddings. Queries belong to voxels, or to groups of
    voxels such as regions, whose voxels then differ in their features alone.

    Parameters
    ----------
    in_shape : (int, int, int)
        Channels, height, width; tokens (T, D) are maps (D, 1, T) or (D, sqrt T, sqrt T).
    n_voxels : int
    groups : sequence of int (n_voxels,) or str, optional
        Query of each voxel, 0 to n - 1; in `ReadoutEncoder` and comparisons also a coordinate of voxels, such as "roi".
        Default: a query a voxel.
    heads : int
        Queries per voxel or group, each with features of its own.
    key_size : int
        Width d of queries and keys.
    feature_l1, feature_l2 : float
        Penalties per voxel on the feature weights.
    max_memory : int
        Bytes for one chunk of voxels.

    References
    ----------
    Adeli, Sun & Zelinsky (2025), Transformer brain encoders explain human high-level visual responses,
    arXiv:2505.17329.

    Examples
    --------
    >>> from neuroenc.encoders.readout import AttentionReadout
    >>> AttentionReadout((8, 7, 7), 4, groups=[0, 0, 1, 1]).n_queries
    2
    """

    name: ClassVar[str] = "attention"

    def __init__(
        self,
        in_shape: Sequence[int],
        n_voxels: int,
        *,
        groups: Sequence[int] | None = None,
        heads: int = 1,
        key_size: int = 32,
        feature_l1: float = 0.0,
        feature_l2: float = 0.0,
        max_memory: int = 2**28,
    ) -> None:
        super().__init__(in_shape, n_voxels, max_memory=max_memory)
        channels, height, width = self.in_shape
        if heads < 1 or key_size < 1:
            raise ConfigError(f"heads={heads} and key_size={key_size} must be at least 1.")
        index = torch.arange(n_voxels) if groups is None else group_index(groups, n_voxels)
        self.register_buffer("group", index, persistent=True)
        self.group: Tensor
        self.grouped = groups is not None
        self.n_queries, self.heads, self.key_size = int(index.max()) + 1, int(heads), int(key_size)
        self.feature_l1, self.feature_l2 = float(feature_l1), float(feature_l2)
        self.query = self._initial(self.n_queries, heads, key_size, scale=1.0)
        # Keys begin small: attention begins flat, where every place has a gradient.
        self.key = self._initial(key_size, channels, scale=0.1 / channels**0.5)
        self.position = self._initial(height * width, key_size, scale=0.1)
        self.feature = self._initial(n_voxels, heads, channels)
        self.bias = nn.Parameter(torch.zeros(n_voxels))

    def chunk_bytes(self, batch: int) -> float:
        """Attention, its gradient, and the features it finds."""
        channels, height, width = self.in_shape
        return 4.0 * batch * self.heads * (3 * height * width + 3 * channels)

    def prepare(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Keys (B, P, d), with positions."""
        # K e is one learned vector a place: the same functions, without the second factor of a product.
        return x.flatten(2).transpose(1, 2) @ self.key.T + self.position

    def attend(self, keys: Tensor, queries: Tensor) -> Tensor:
        """Attention (B, q, heads, P)."""
        flat = queries.flatten(0, 1) @ keys.transpose(1, 2) / self.key_size**0.5
        return flat.softmax(-1).view(len(keys), *queries.shape[:2], -1)

    def read(self, x: Tensor, voxels: slice, shared: Any) -> Tensor:
        """Features where the queries look."""
        used, place = torch.unique(self.group[voxels], return_inverse=True)
        attention = self.attend(shared, self.query[used])
        seen = (attention.flatten(1, 2) @ x.flatten(2).transpose(1, 2)).view(len(x), len(used), self.heads, -1)
        feature = self.feature[voxels]
        if self.grouped:
            # A product per group; index by group would copy what is seen for every voxel.
            y = x.new_empty(len(x), len(feature))
            order = torch.argsort(place, stable=True)
            parts = []
            for number, rows in enumerate(order.split(torch.bincount(place).tolist())):
                parts.append(seen[:, number].flatten(1) @ feature[rows].flatten(1).T)
            y = torch.cat(parts, 1)[:, torch.argsort(order)]
        else:
            y = torch.einsum("bvhc,vhc->bv", seen, feature)
        return y + self.bias[voxels]

    def regulariser(self) -> Tensor:
        """Penalties on the features' weights."""
        return feature_penalty(self.feature, self.feature_l1, self.feature_l2)

    def receptive_field(self) -> dict[str, Tensor] | None:
        """Moments of the attention to places alone, averaged over heads: where a voxel looks in an empty stimulus.

        Attention is a density, not its square; the size is that of the density.
        """
        _, height, width = self.in_shape
        if height * width == 1:
            return None
        with torch.no_grad():
            attention = self.attend(self.position[None], self.query)[0].mean(1).view(self.n_queries, height, width)
            field = mask_moments(attention)
            field["size"] = field["size"] / 2**0.5
        return {name: value[self.group] for name, value in field.items()}

    def weights(self) -> xr.Dataset:
        """``feature`` (voxel, head, channel), ``attention`` to places (voxel, head, y, x) and ``intercept``."""
        flat = self.attend(self.position[None], self.query)[0]
        attention = flat.view(self.n_queries, self.heads, *self.in_shape[1:])[self.group]
        return self._labelled(feature=(("head", "channel"), self.feature), attention=(("head", "y", "x"), attention))

    @classmethod
    def search_space(cls) -> dict[str, list[Any]]:
        """Strengths of the penalty on features."""
        return {"feature_l2": [1e-3, 1e-2, 1e-1]}
