"""ClipCap's mapping networks (MLP and transformer) from an embedding to a prefix."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError


class MLPMapping(nn.Module):
    r"""Prefix :math:`P = W_2 \tanh(W_1 x + b_1) + b_2`, cut into ``prefix_length`` vectors.

    Parameters
    ----------
    embedding_dim, prefix_length, width : int
        Of the embedding, of the prefix, and of the language model's token embeddings.
    hidden : int, optional
        Default half of ``prefix_length * width``, as released (512 -> 3840 -> 7680 for 10 vectors of 768).

    Examples
    --------
    >>> import torch
    >>> MLPMapping(8, 3, 4)(torch.zeros(2, 8)).shape
    torch.Size([2, 3, 4])
    """

    kind = "mlp"

    def __init__(self, embedding_dim: int, prefix_length: int, width: int, hidden: int | None = None) -> None:
        super().__init__()
        out = prefix_length * width
        hidden = out // 2 if hidden is None else hidden
        shape = {"embedding_dim": embedding_dim, "prefix_length": prefix_length, "width": width}
        self.settings = {**shape, "hidden": hidden}
        self.prefix_length = prefix_length
        self.model = nn.Sequential(nn.Linear(embedding_dim, hidden), nn.Tanh(), nn.Linear(hidden, out))

    def forward(self, x: Tensor) -> Tensor:
        """Prefixes (n, prefix_length, width) of embeddings (n, embedding_dim)."""
        return self.model(x).reshape(len(x), self.prefix_length, -1)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        queries = self.to_queries(x).reshape(n, length, self.heads, -1).transpose(1, 2)
        both = self.to_keys_values(x).reshape(n, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(queries, both[0], both[1])
        return self.project(out.transpose(1, 2).reshape(n, length, width))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), _Attention(width, heads), nn.LayerNorm(width)
        # Under the names of the released checkpoints.
        parts = {"fc1": nn.Linear(width, hidden), "relu": nn.ReLU(), "fc2": nn.Linear(hidden, width)}
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TransformerMapping(nn.Module):
    """The embedding as ``clip_length`` tokens beside ``prefix_length`` learned ones, which come out as the prefix.

    Parameters
    ----------
    embedding_dim, prefix_length, width : int
        As in :class:`MLPMapping`.
    clip_length : int, optional
        Default ``prefix_length``.
    layers, heads : int
        8 and 8 as released; layers are pre-norm, with ReLU and a hidden width of ``ratio`` times the width.

    Examples
    --------
    >>> import torch
    >>> TransformerMapping(8, 3, 16, layers=1, heads=2)(torch.zeros(2, 8)).shape
    torch.Size([2, 3, 16])
    """

    kind = "transformer"

    def __init__(
        self,
        embedding_dim: int,
        prefix_length: int,
        width: int,
        clip_length: int | None = None,
        layers: int = 8,
        heads: int = 8,
        ratio: float = 2.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"heads={heads} does not divide the width {width} of the language model.")
        self.clip_length = prefix_length if clip_length is None else clip_length
        shape = {"embedding_dim": embedding_dim, "prefix_length": prefix_length, "width": width}
        own = {"clip_length": self.clip_length, "layers": layers, "heads": heads, "ratio": ratio}
        self.settings = {**shape, **own}
        self.prefix_length = prefix_length
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(_Layer(width, heads, ratio) for _ in range(layers))})
        self.linear = nn.Linear(embedding_dim, self.clip_length * width)
        self.prefix_const = nn.Parameter(torch.randn(prefix_length, width))

    def forward(self, x: Tensor) -> Tensor:
        """Prefixes (n, prefix_length, width) of embeddings (n, embedding_dim)."""
        tokens = self.linear(x).reshape(len(x), self.clip_length, -1)
        both = torch.cat([tokens, self.prefix_const.expand(len(x), -1, -1)], dim=1)
        for layer in self.transformer["layers"].children():
            both = layer(both)
        return both[:, self.clip_length :]


MAPPINGS: dict[str, Any] = {kind.kind: kind for kind in (MLPMapping, TransformerMapping)}


def make_mapping(kind: str, **settings: Any) -> MLPMapping | TransformerMapping:
    """The mapping network of that name."""
    one_of("mapping", kind, MAPPINGS)
    return MAPPINGS[kind](**settings)
