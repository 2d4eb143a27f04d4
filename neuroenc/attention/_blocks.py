"""Blocks of a transformer over sets: pre-norm, registers, gated feed-forward layers."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroenc.attention._attention import Attention
from neuroenc.attention._weights import legal


class SwiGLU(nn.Module):
    r"""Gated feed-forward layer :math:`W_2(\mathrm{silu}(a) \odot b)`, :math:`(a, b) = W_1 x`.

    References
    ----------
    Shazeer (2020), arXiv:2002.05202.

    Examples
    --------
    >>> import torch
    >>> SwiGLU(8, 16)(torch.zeros(2, 3, 8)).shape
    torch.Size([2, 3, 8])
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, 2 * hidden)
        self.linear2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.linear1(x).chunk(2, dim=-1)
        return self.linear2(F.silu(a) * b)


class GELUFeedForward(nn.Module):
    r"""Feed-forward layer :math:`W_2\,\mathrm{gelu}(W_1 x)`.

    Examples
    --------
    >>> import torch
    >>> GELUFeedForward(8, 16)(torch.zeros(2, 3, 8)).shape
    torch.Size([2, 3, 8])
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(x)))


FEED_FORWARDS = {"swiglu": SwiGLU, "gelu": GELUFeedForward}


class ResidualMLP(nn.Module):
    r"""Two-layer MLP with pre-normalisation, leaky ReLU and a linear skip connection.

    .. math:: y = W_2\,\sigma(\mathrm{LN}(W_1\,\sigma(\mathrm{LN}(x)))) + W_b x, \qquad
              \sigma = \mathrm{LeakyReLU}_{0.1}

    The norm comes first and the rectifier second; dropout stands before each linear layer of the main path.

    Examples
    --------
    >>> import torch
    >>> ResidualMLP(5, 8, hidden=16)(torch.randn(2, 5)).shape
    torch.Size([2, 8])
    """

    def __init__(self, n_in: int, n_out: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(n_in)
        self.linear1 = nn.Linear(n_in, hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.linear2 = nn.Linear(hidden, n_out)
        self.bypass = nn.Linear(n_in, n_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear1(self.dropout(F.leaky_relu(self.norm1(x), 0.1)))
        h = self.linear2(self.dropout(F.leaky_relu(self.norm2(h), 0.1)))
        return h + self.bypass(x)


class Block(nn.Module):
    r"""Pre-norm block: :math:`z \leftarrow z + A(\mathrm{LN}_1 z)`, :math:`z \leftarrow z + F(\mathrm{LN}_2 z)`.

    Parameters
    ----------
    attention : Attention
    feed_forward : {"swiglu", "gelu"}
    hidden : int
        Width inside the feed-forward layer.
    dropout : float
        Of what attention adds, in training.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.attention import Attention
    >>> block = Block(Attention(16, 4), hidden=32)
    >>> block(torch.randn(2, 7, 16), rows=slice(0, 1))[0].shape
    torch.Size([2, 1, 16])
    """

    def __init__(
        self, attention: Attention, *, feed_forward: str = "swiglu", hidden: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        legal("feed-forward layer", feed_forward, FEED_FORWARDS)
        dim = attention.dim
        self.norm1 = nn.LayerNorm(dim)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim)
        self.feed_forward = FEED_FORWARDS[feed_forward](dim, hidden or 4 * dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        z: Tensor,
        *,
        log_weight: Tensor | None = None,
        n: Tensor | None = None,
        rows: slice | None = None,
        need_weights: bool = False,
        offset: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens (batch, token, dim) -> (batch, rows, dim), and the weights of ``rows`` if asked for."""
        h = self.norm1(z)
        added, weights = self.attention(
            h, log_weight=log_weight, n=n, rows=rows, need_weights=need_weights, offset=offset
        )
        kept = z if rows is None else z[:, rows]
        z = kept + self.dropout(added)
        return z + self.feed_forward(self.norm2(z)), weights


class Stack(nn.Module):
    """Transformer blocks over a set of tokens, with register tokens in front.

    Parameters
    ----------
    blocks : list of Block
    registers : int
        Learned tokens, N(0, 1) / sqrt(dim + 1) at first; they stand before the tokens and have no position.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.attention import Attention
    >>> stack = Stack([Block(Attention(16, 4), hidden=32) for _ in range(2)], registers=4)
    >>> stack(torch.randn(3, 9, 16), keep=slice(0, 1))[0].shape
    torch.Size([3, 1, 16])
    """

    def __init__(self, blocks: list[Block], registers: int = 0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        dim = blocks[0].attention.dim
        self.registers = nn.Parameter(torch.randn(1, registers, dim) / (dim + 1) ** 0.5)

    def forward(
        self,
        tokens: Tensor,
        *,
        log_weight: Tensor | None = None,
        keep: slice | None = None,
        weights_of: slice | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run all blocks.

        Parameters
        ----------
        tokens : Tensor (batch, token, dim)
        log_weight : Tensor (batch, token), optional
            See `Attention`; registers have weight 1.
        keep : slice, optional
            Tokens (registers first) whose output is wanted: the last block computes no others.
        weights_of : slice, optional
            Rows whose weights are wanted from every block.

        Returns
        -------
        z : Tensor (batch, keep, dim)
        weights : list of Tensor (batch, heads, rows, registers + token)
            One a block; empty unless ``weights_of`` is given.
        """
        count = self.registers.shape[1]
        z = torch.cat([self.registers.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        n = None
        if log_weight is not None:
            log_weight = F.pad(log_weight, (count, 0))
            n = log_weight.exp().sum(-1)
        kept: list[Tensor] = []
        last = len(self.blocks) - 1
        for number, layer in enumerate(self.blocks):
            block = cast(Block, layer)
            rows = keep if number == last else None
            if weights_of is not None:
                h = block.norm1(z)
                # Not through forward: a tap sees each layer once.
                found = block.attention.head_outputs(
                    h, log_weight=log_weight, n=n, rows=weights_of, need_weights=True, offset=count
                )[1]
                assert found is not None
                kept.append(found)
            z = block(z, log_weight=log_weight, n=n, rows=rows, offset=count)[0]
        return z, kept
