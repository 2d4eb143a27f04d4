"""One attention for everything: what turns scores into weights, their scale, positions and reach are plugged in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroenc.attention._normalise import Normaliser, Softmax
from neuroenc.attention._scale import LengthScale

__all__ = ["Attention"]


class Attention(nn.Module):
    r"""Multi-head attention with four plug points.

    .. math:: o_i = \sum_j \mathrm{norm}_j\!\left(
              \frac{s(n)\, q_i \cdot k_j}{\sqrt{d}} + \beta_{ij} + \ln w_j\right) v_j

    Parameters
    ----------
    dim : int
        Width; divisible by ``heads``.
    heads : int
    normaliser : Normaliser, optional
        From scores to weights; default softmax, which runs in a fused kernel wherever nothing needs the weights.
    scale : LengthScale, optional
        :math:`s(n)`; default 1.
    position : optional
        Positions of tokens; default none, so that the output is a function of a set.
    context : optional
        Which keys a query sees; default all.
    bias : bool
        Of the projections.
    dropout : float
        Of weights, in training.

    Notes
    -----
    Parameters are packed as in `torch.nn.MultiheadAttention`: ``in_proj.weight`` (3 dim, dim) and ``out_proj``.

    Examples
    --------
    >>> import torch
    >>> attention = Attention(16, heads=4).eval()
    >>> x = torch.randn(2, 7, 16)
    >>> out, weights = attention(x, rows=slice(0, 1), need_weights=True)
    >>> out.shape, weights.shape
    (torch.Size([2, 1, 16]), torch.Size([2, 4, 1, 7]))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        normaliser: Normaliser | None = None,
        scale: LengthScale | None = None,
        position: Any = None,
        context: Any = None,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim < 1 or heads < 1 or dim % heads:
            raise ValueError(f"dim={dim} must be a multiple of heads={heads}.")
        self.dim, self.heads, self.dropout = dim, heads, dropout
        self.in_proj = nn.Linear(dim, 3 * dim, bias=bias)
        self.out_proj = nn.Linear(dim, dim, bias=bias)
        self.normaliser = normaliser or Softmax()
        self.scale = scale or LengthScale()
        self.position = position
        self.context = context
        # Called with head outputs (batch, heads, query, dim / heads) and the weights or None; see HeadTap.
        self.tap: Callable[[Tensor, Tensor | None], Tensor] | None = None
        self.tap_weights = False

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        log_weight: Tensor | None = None,
        n: Tensor | None = None,
        rows: slice | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Parameters
        ----------
        x : Tensor (batch, query, dim)
        memory : Tensor (batch, key, dim), optional
            What keys and values come from; default ``x``.
        log_weight : Tensor (batch, key), optional
            Added to every score of a key: 0 as it is, ln 3 as if it stood there three times, -inf as if it did not.
        n : Tensor (batch,), optional
            Number of keys for the length scale; default the sum of the keys' weights.
        rows : slice, optional
            The queries whose output is wanted; default all.
        need_weights : bool
            Return weights, too (of ``rows`` only). They are the only reason to leave the fused kernel.

        Returns
        -------
        out : Tensor (batch, rows, dim)
        weights : Tensor (batch, heads, rows, key) or None
        """
        source = x if memory is None else memory
        asked = x if rows is None else x[:, rows]
        q, k, v = self._project(asked, source)
        batch, keys = source.shape[:2]
        if n is None:
            n = x.new_full((batch,), keys) if log_weight is None else log_weight.exp().sum(-1)
        q = self._scaled(q, n)
        need = need_weights or self.tap_weights
        heads, weights = self._attend(q, k, v, log_weight, n, need)
        if self.tap is not None:
            heads = self.tap(heads, weights)
        out = self.out_proj(heads.transpose(1, 2).reshape(batch, -1, self.dim))
        return out, weights if need_weights else None

    def _project(self, asked: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries without their bias, keys and values: (batch, heads, token, dim / heads)."""
        weight, bias, dim = self.in_proj.weight, self.in_proj.bias, self.dim
        if asked is source:
            full = None if bias is None else torch.cat([torch.zeros_like(bias[:dim]), bias[dim:]])
            q, k, v = F.linear(source, weight, full).chunk(3, dim=-1)
        else:
            q = F.linear(asked, weight[:dim])
            k, v = F.linear(source, weight[dim:], None if bias is None else bias[dim:]).chunk(2, dim=-1)
        return self._split(q), self._split(k), self._split(v)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _scaled(self, q: Tensor, n: Tensor) -> Tensor:
        bias = None if self.in_proj.bias is None else self.in_proj.bias[: self.dim].view(1, self.heads, 1, -1)
        if self.scale.kind == "none":
            return q if bias is None else q + bias.to(q.dtype)
        factor = self.scale(n).to(q.dtype)
        if bias is None:
            return q * factor
        bias = bias.to(q.dtype)
        # Scaling what goes into a linear map is scaling what comes out of it, but for the bias.
        return q * factor + bias if self.scale.before_projection else (q + bias) * factor

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, log_weight: Tensor | None, n: Tensor, need: bool
    ) -> tuple[Tensor, Tensor | None]:
        bias = None if log_weight is None else log_weight[:, None, None, :].to(q.dtype)
        drop = self.dropout if self.training else 0.0
        if self.normaliser.fused and not need:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop), None
        scores = (q @ k.transpose(-1, -2)).float() / (q.shape[-1] ** 0.5)
        if bias is not None:
            scores = scores + bias
        weights = self.normaliser(scores, n)
        return F.dropout(weights, drop, self.training).to(v.dtype) @ v, weights
