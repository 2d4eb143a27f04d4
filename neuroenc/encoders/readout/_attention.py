"""Learned queries that attend to places of the map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor, nn

from neuroenc._core.errors import ConfigError
from neuroenc.encoders.readout._gaussian import feature_penalty
from neuroenc.encoders.readout._geometry import mask_moments
from neuroenc.encoders.readout._protocol import Readout, register_readout

__all__ = ["AttentionReadout"]


@register_readout
class AttentionReadout(Readout):
    r"""Each query looks where its key matches, and reads the features that it finds there.

    .. math:: a_{q}[p] = \mathrm{softmax}_p\big(q^\top K (x[p] + e[p]) / \sqrt{d}\big), \qquad
              y_v = b_v + \sum_h \sum_c f_{vhc} \sum_p a_{q(v)h}[p]\, x_c[p]

    with p the places (tokens) of the map and e learned position embeddings. Queries belong to voxels, or to groups of
    voxels such as regions, whose voxels then differ in their features alone.

    Parameters
    ----------
    in_shape : (int, int, int)
        Channels, height, width; tokens (T, D) are maps (D, 1, T) or (D, sqrt T, sqrt T).
    n_voxels : int
    groups : sequence of int (n_voxels,), optional
        Query of each voxel, 0 to n - 1. Default: a query a voxel.
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
        index = torch.arange(n_voxels) if groups is None else torch.as_tensor(groups, dtype=torch.long)
        if index.shape != (n_voxels,) or sorted(set(index.tolist())) != list(range(int(index.max()) + 1)):
            raise ConfigError(
                f"groups must give one number for each of {n_voxels} voxels, 0 to n - 1 with none left out; found "
                f"{len(index)} numbers. Next step: numpy.unique(rois, return_inverse=True)[1]."
            )
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
        _, height, width = self.in_shape
        with torch.no_grad():
            attention = self.attend(self.position[None], self.query)[0].view(self.n_queries, self.heads, height, width)
        return xr.Dataset(
            {
                "feature": (("voxel", "head", "channel"), self.feature.detach().cpu().numpy()),
                "attention": (("voxel", "head", "y", "x"), attention[self.group].cpu().numpy()),
                "intercept": ("voxel", self.bias.detach().cpu().numpy()),
            }
        )

    @classmethod
    def search_space(cls) -> dict[str, list[Any]]:
        """Strengths of the penalty on features."""
        return {"feature_l2": [1e-3, 1e-2, 1e-1]}
