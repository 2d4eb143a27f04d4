"""Blocks of a transformer over sets: pre-norm, registers, gated feed-forward layers."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroenc.attention._attention import Attention
from neuroenc.attention._weights import GroupedSoftmax, count_keys, insert_landmarks, landmark_layout, legal


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


class Past(NamedTuple):
    """What a block attended to: normed tokens (batch, key, dim), their log weights, and how many count."""

    keys: Tensor
    log_weight: Tensor | None
    n: Tensor | None


class Stack(nn.Module):
    """Transformer blocks over a set of tokens, with register tokens in front.

    Parameters
    ----------
    blocks : list of Block
    registers : int
        Learned tokens, N(0, 1) / sqrt(dim + 1) at first; they stand before the tokens and have no position.
    block_size : int
        Tokens behind which a learned landmark token is inserted, for `GroupedSoftmax` of this size and of as many
        tokens in front as there are registers; 0 inserts none.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.attention import Attention
    >>> stack = Stack([Block(Attention(16, 4), hidden=32) for _ in range(2)], registers=4)
    >>> stack(torch.randn(3, 9, 16), keep=slice(0, 1))[0].shape
    torch.Size([3, 1, 16])
    """

    def __init__(self, blocks: list[Block], registers: int = 0, block_size: int = 0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        dim = blocks[0].attention.dim
        self.registers = nn.Parameter(torch.randn(1, registers, dim) / (dim + 1) ** 0.5)
        self.block_size = block_size
        self.landmark = nn.Parameter(torch.randn(dim) / (dim + 1) ** 0.5) if block_size else None
        for number, block in enumerate(blocks):
            normaliser = block.attention.normaliser
            asked = getattr(normaliser, "inner", normaliser)
            found = (asked.block_size, asked.lead) if isinstance(asked, GroupedSoftmax) else (0, registers)
            if found != (block_size, registers):
                raise ValueError(
                    f"block {number} reads landmarks of (block_size, lead)={found}, the stack has {registers} "
                    f"registers and inserts a landmark every {block_size} tokens (0: none). Make both the same."
                )

    def forward(
        self,
        tokens: Tensor,
        *,
        log_weight: Tensor | None = None,
        keep: slice | None = None,
        weights_of: slice | None = None,
        past: list[Past] | None = None,
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
        past : list, optional
            Gets what every block attends to, for `ask`.

        Returns
        -------
        z : Tensor (batch, keep, dim)
        weights : list of Tensor (batch, heads, rows, registers + token)
            One a block, without landmarks; empty unless ``weights_of`` is given.
        """
        count = self.registers.shape[1]
        n = None
        if log_weight is not None:
            n = count + log_weight.exp().sum(-1)
        shown: slice | Tensor = slice(None)
        if self.landmark is not None:
            # Landmarks are no trials: what queries are scaled by does not count them.
            n = count_keys(tokens) + count if n is None else n
            tokens = insert_landmarks(tokens, self.landmark, self.block_size)
            if log_weight is not None:
                log_weight = insert_landmarks(log_weight[..., None], log_weight.new_zeros(1), self.block_size)[..., 0]
            total = count + tokens.shape[1]
            place = torch.arange(total, device=tokens.device)
            shown = torch.where(~landmark_layout(place, total, self.block_size, count)[1])[0]
        z = torch.cat([self.registers.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        log_weight = None if log_weight is None else F.pad(log_weight, (count, 0))
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
                kept.append(found[..., shown])
            if past is not None:
                past.append(Past(block.norm1(z), log_weight, n))
            z = block(z, log_weight=log_weight, n=n, rows=rows, offset=count)[0]
        return z, kept

    def ask(self, queries: Tensor, past: list[Past]) -> Tensor:
        """Queries (batch, query, dim) that attend to the tokens of a run, and to which nothing attends.

        They have no position, so that one's answer does not depend on which others are asked beside it.

        Parameters
        ----------
        queries : Tensor (batch, query, dim)
        past : list of Past
            Of `forward`.
        """
        count, lead = queries.shape[1], self.registers.shape[1]
        for layer, seen in zip(self.blocks, past):
            block = cast(Block, layer)
            added = block.attention(
                block.norm1(queries), seen.keys, log_weight=seen.log_weight, n=seen.n, offset=count, memory_offset=lead
            )[0]
            queries = queries + block.dropout(added)
            queries = queries + block.feed_forward(block.norm2(queries))
        return queries
