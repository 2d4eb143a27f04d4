"""A selection without training: chunks whose summaries match the query."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from neuroenc.attention._context import Context
from neuroenc.attention._normalise import Normaliser

__all__ = ["ChunkSelectPolicy"]


class ChunkSelectPolicy(Context):
    r"""Only the chunks whose summaries match the query, and the first and last ones, within a budget of tokens.

    A chunk's summary is what the mean of its own attention asks of its keys:

    .. math:: \bar q_c = \mathrm{mean}\,\mathrm{softmax}(Q_c K_c^\top / \sqrt d) V_c, \qquad
              r_c = \mathrm{softmax}(\bar q_c K_c^\top / \sqrt d) K_c

    and a query takes the chunks of highest :math:`q \cdot r_c`. Needs no training. Positions are counted anew among
    what was selected, so none is longer than in a set of ``max_tokens``.

    Parameters
    ----------
    chunk_size : int
    max_tokens : int
        Seen by a query; sets up to this size are seen whole. The length scale, too, counts no more than these.
    keep_first, keep_last : int
        Chunks that are always seen. In causal attention the last chunk is the query's own. Registers stand in the
        first.

    References
    ----------
    Lu et al. (2024), LongHeads, arXiv:2402.10685.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.attention import Attention
    >>> attention = Attention(16, 4, context=ChunkSelectPolicy(chunk_size=8, max_tokens=32))
    >>> attention(torch.randn(1, 100, 16), rows=slice(0, 1))[0].shape
    torch.Size([1, 1, 16])
    """

    reassigns = True
    needs_queries = True

    def __init__(self, chunk_size: int, max_tokens: int, keep_first: int = 1, keep_last: int = 1) -> None:
        super().__init__()
        least = max(keep_first + keep_last, 1)
        if chunk_size < 1 or min(keep_first, keep_last) < 0 or max_tokens // chunk_size < least:
            raise ValueError(
                f"{keep_first} first and {keep_last} last chunks of {chunk_size} tokens do not fit into "
                f"max_tokens={max_tokens}; legal: max_tokens of at least {least * max(chunk_size, 1)}. "
                "Raise it, or make chunks smaller."
            )
        self.chunk_size, self.max_tokens = chunk_size, max_tokens
        self.keep_first, self.keep_last = keep_first, keep_last

    def check(self, normaliser: Normaliser) -> None:
        super().check(normaliser)
        if normaliser.needs_layout:
            raise ValueError("ChunkSelectPolicy knows no landmarks; legal with them: LandmarkPolicy. Take that.")

    def fits(self, total: int) -> bool:
        return total <= self.max_tokens

    def looks_at(self, n: Tensor) -> Tensor:
        return n.clamp_max(self.max_tokens)

    def prepare(self, source_q: Tensor | None, k: Tensor, v: Tensor, log_weight: Tensor | None) -> Tensor | None:
        assert source_q is not None
        total, size = k.shape[2], self.chunk_size
        spare = -total % size
        q, k, v = (F.pad(x, (0, 0, 0, spare)).unflatten(2, (-1, size)) for x in (source_q, k, v))
        mask = k.new_zeros(1, total) if log_weight is None else log_weight.to(k.dtype)
        mask = F.pad(mask, (0, spare), value=-torch.inf).view(-1, 1, (total + spare) // size, 1, size)
        empty = (mask == -torch.inf).all(-1, keepdim=True)
        mask = mask.masked_fill(empty, 0.0)
        inside = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        # Padded rows are no queries; a key of no weight asks nothing, one of weight 3 asks three times.
        share = mask.softmax(-1).transpose(-1, -2)
        asks = (inside * share).sum(-2, keepdim=True)
        return F.scaled_dot_product_attention(asks, k, k, attn_mask=mask).masked_fill(empty, 0.0).squeeze(-2)

    def select(
        self, q: Tensor, k: Tensor, summary: Tensor | None, query: Tensor | None, hidden: Tensor | None
    ) -> Tensor:
        assert summary is not None
        total, size = k.shape[2], self.chunk_size
        scores = q @ summary.transpose(-1, -2)
        chunk = torch.arange(scores.shape[-1], device=k.device)
        end = torch.full_like(chunk[:1], len(chunk))
        if hidden is not None:
            spare = -total % size
            gone = F.pad(hidden, (0, spare), value=True).unflatten(-1, (-1, size)).all(-1)
            scores = scores.masked_fill(gone, -torch.inf)
            end = ((~gone) * (chunk + 1)).amax(-1, keepdim=True)
        kept = (chunk < self.keep_first) | ((chunk >= end - self.keep_last) & (chunk < end))
        scores = torch.where(kept & (scores > -torch.inf), torch.inf, scores)
        top = scores.topk(min(self.max_tokens // size, len(chunk)), dim=-1)
        chosen = top.indices.masked_fill(top.values == -torch.inf, len(chunk)).sort(-1).values
        place = (chosen[..., None] * size + torch.arange(size, device=k.device)).flatten(-2)
        return place.masked_fill(place >= total, -1)
