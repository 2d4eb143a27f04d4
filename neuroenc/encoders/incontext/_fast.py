"""The model without gradients: the same numbers in fewer passes over memory."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from neuroenc.attention import Attention, Block, Softmax, SwiGLU
from neuroenc.encoders.incontext._model import InContextModel, VoxelWeights, complete

__all__ = ["FastReader"]

# Tokens in one pass through a feed-forward layer: what it makes stays in cache, in memory that is used again.
_ROWS = 512


class _Weights(NamedTuple):
    """Of one block, in the type that matrices are multiplied in; norms and last biases in float32."""

    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    linear1: Tensor
    bias1: Tensor
    linear2: Tensor


class FastReader:
    """`InContextModel` for inference: in place, feed-forward layers a few rows at a time, weights cast only once.

    Masks, weights of trials, taps of heads and unusual attention go through the model itself.

    Parameters
    ----------
    model : InContextModel
        In evaluation mode. Its weights are read once; make another reader after they change.
    half : bool
        Multiply matrices in bfloat16; norms and the sums over blocks stay in float32.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.encoders.incontext import make_model
    >>> model = make_model("small", n_features=8, dim=16, depth=2, hidden=32).eval()
    >>> x, y = torch.randn(20, 8), torch.randn(5, 20)
    >>> with torch.inference_mode():
    ...     torch.allclose(FastReader(model)(x, y).coef, model(x, y).coef, atol=1e-5)
    True
    """

    def __init__(self, model: InContextModel, half: bool = False) -> None:
        self.model, self.half = model, half
        self.dtype = torch.bfloat16 if half else torch.float32
        self.blocks = [cast(Block, block) for block in model.stack.blocks]
        self._able = all(_is_plain(block) for block in self.blocks)
        self._weights: list[_Weights] = []
        self._tokens = -1  # That the queries of _weights are scaled for.

    def __call__(
        self, x: Tensor, y: Tensor, log_weight: Tensor | None = None, *, covariance: bool = False
    ) -> VoxelWeights:
        """As the model's own ``forward``."""
        return self.write(self.read(x, y, log_weight), x, y, log_weight, covariance=covariance)

    def read(self, x: Tensor, y: Tensor, log_weight: Tensor | None = None) -> Tensor:
        """First register (voxel, dim)."""
        tapped = any(block.attention.tap is not None for block in self.blocks)
        slow = not self._able or tapped or self.model.training or torch.is_grad_enabled()
        y, log_weight = complete(x, y, log_weight)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.half):
            if slow or log_weight is not None:
                return self.model.read(x, y, log_weight)[0][:, 0]
            tokens = self.model.embed(x, y)
            with torch.autocast(x.device.type, enabled=False):
                return self._first_register(tokens)

    def write(
        self,
        z: Tensor,
        x: Tensor,
        y: Tensor,
        log_weight: Tensor | None = None,
        *,
        pooled: Tensor | None = None,
        covariance: bool = False,
    ) -> VoxelWeights:
        """Weights from registers that were read before."""
        y, log_weight = complete(x, y, log_weight)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.half):
            return self.model.write(z, x, y, log_weight, pooled=pooled, covariance=covariance)

    def _first_register(self, tokens: Tensor) -> Tensor:
        """(voxel, dim) after the last block."""
        registers = self.model.stack.registers
        z = torch.cat([registers.expand(len(tokens), -1, -1), tokens.to(registers.dtype)], dim=1)
        self._prepare(z.shape[1])
        for number, (block, weights) in enumerate(zip(self.blocks, self._weights)):
            h = _norm(block.norm1, z, self.dtype)
            first = number == len(self.blocks) - 1
            z = z[:, :1].contiguous() if first else z
            heads = self._attend(h, weights, block.attention.heads, first)
            flat = z.view(-1, z.shape[-1])
            step = _ROWS if flat.device.type == "cpu" else len(flat)
            for start in range(0, len(flat), step):
                self._into(flat[start : start + step], heads[start : start + step], block, weights)
        return z[:, 0]

    def _attend(self, h: Tensor, w: _Weights, heads: int, first: bool) -> Tensor:
        """Head outputs (voxel x row, dim): of all rows, or of the first of each voxel."""
        dim = h.shape[-1]
        if first:
            q = F.linear(h[:, :1], w.qkv[:dim], w.qkv_bias[:dim])
            k, v = F.linear(h, w.qkv[dim:], w.qkv_bias[dim:]).chunk(2, dim=-1)
        else:
            q, k, v = F.linear(h, w.qkv, w.qkv_bias).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, dim)

    def _into(self, z: Tensor, heads: Tensor, block: Block, w: _Weights) -> None:
        """Add to rows of z what attention and the feed-forward layer give."""
        feed = cast(SwiGLU, block.feed_forward)
        _add(z, heads, w.out, block.attention.out_proj.bias)
        both = F.linear(_norm(block.norm2, z, self.dtype), w.linear1, w.bias1)
        gate, value = both.chunk(2, dim=-1)
        _add(z, F.silu(gate, inplace=True).mul_(value), w.linear2, feed.linear2.bias)

    def _prepare(self, tokens: int) -> None:
        """Weights in the type wanted, queries scaled for so many tokens."""
        if self._tokens == tokens:
            return
        known: list[_Weights | None] = [*self._weights] or [None] * len(self.blocks)
        self._weights = [_cut(block, self.dtype, tokens, old) for block, old in zip(self.blocks, known)]
        self._tokens = tokens


def _cut(block: Block, dtype: torch.dtype, tokens: int, old: _Weights | None) -> _Weights:
    a, feed = block.attention, cast(SwiGLU, block.feed_forward)
    factor = a.scale(torch.tensor([float(tokens)], device=a.in_proj.weight.device)).view(-1, 1)
    factor = factor.expand(a.heads, a.dim // a.heads).reshape(-1, 1)
    # Scaling a query is scaling the matrix that makes it.
    weight, bias = a.in_proj.weight.clone(), a.in_proj.bias.clone()
    weight[: a.dim] *= factor
    if not a.scale.before_projection:
        bias[: a.dim] *= factor[:, 0]
    if old is not None:
        return old._replace(qkv=weight.to(dtype), qkv_bias=bias.to(dtype))
    rest = (a.out_proj.weight, feed.linear1.weight, feed.linear1.bias, feed.linear2.weight)
    return _Weights(weight.to(dtype), bias.to(dtype), *(t.to(dtype) for t in rest))


def _norm(norm: torch.nn.LayerNorm, z: Tensor, dtype: torch.dtype) -> Tensor:
    return F.layer_norm(z, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(dtype)


def _add(z: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> None:
    if h.dtype == z.dtype:
        z.addmm_(h, weight.T).add_(bias)
    else:
        z.add_(F.linear(h, weight)).add_(bias)


def _is_plain(block: Block) -> bool:
    a = block.attention
    usual = type(a) is Attention and type(a.normaliser) is Softmax and a.in_proj.bias is not None
    return usual and a.position is None and a.context is None and not a.causal and type(block.feed_forward) is SwiGLU
