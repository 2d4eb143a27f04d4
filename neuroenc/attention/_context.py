"""Sparse contexts: which keys each query attends to, by landmarks or by chunk summaries."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroenc.attention._weights import GroupedSoftmax, Normaliser, landmark_layout


class Context(nn.Module):
    """Base class of sparse-attention contexts; bit-identical to `FullContext` wherever ``fits`` holds.

    ``reassigns`` says that positions are counted anew among the selected keys. ``needs_queries`` says that `prepare`
    wants the queries of the tokens that keys come from.
    """

    reassigns = False
    needs_queries = False

    def check(self, normaliser: Normaliser) -> None:
        """Refuse a normaliser that weights of a selection mean nothing to."""
        if normaliser.all_rows:
            raise ValueError(
                f"{type(normaliser).__name__} looks at all weights, {type(self).__name__} computes only some. "
                "Next step: drop the normaliser, or context=None."
            )

    def fits(self, total: int) -> bool:
        """Whether all keys are seen anyway."""
        return True

    def looks_at(self, n: Tensor) -> Tensor:
        """Number of keys that a query sees, of n (batch,)."""
        return n

    def prepare(self, source_q: Tensor | None, k: Tensor, v: Tensor, log_weight: Tensor | None) -> Tensor | None:
        """What is computed once for all queries."""
        return None

    def select(
        self, q: Tensor, k: Tensor, summary: Tensor | None, query: Tensor | None, hidden: Tensor | None
    ) -> Tensor:
        """Places of the keys that each query sees: (batch, heads, query, m), -1 for none.

        Parameters
        ----------
        q, k : Tensor (batch, heads, query or key, d)
        summary : Tensor, optional
            From `prepare`.
        query : Tensor (query,), optional
            Place of each query among the keys, in self-attention.
        hidden : Tensor of bool, optional
            Broadcasts against (batch, heads, query, key): keys with no weight and, in causal attention, later keys.
        """
        raise NotImplementedError


class FullContext(Context):
    """Full context: every query attends to every key.

    Examples
    --------
    >>> FullContext().fits(10**6)
    True
    """

    def check(self, normaliser: Normaliser) -> None:
        return None


class LandmarkPolicy(Context):
    """Landmark context: attend within the blocks whose landmarks score highest, per head and query.

    Works with `GroupedSoftmax` over the same layout: the landmarks of the fetched blocks, the query's own block and
    tokens of no block share one softmax, and each fetched block opens by its landmark's share.

    Parameters
    ----------
    block_size, lead : int
        As of the `GroupedSoftmax`.
    top_k : int
        Blocks to fetch.

    Notes
    -----
    A query costs (number of blocks + top_k * block_size) scores instead of one for each key. Where what is asked for is
    a sum over all keys, such as a linear voxel's weights, blocks that are not fetched are lost.

    References
    ----------
    Mohtashami and Jaggi (2023), Landmark attention, arXiv:2305.16300.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.attention import Attention
    >>> attention = Attention(16, 4, normaliser=GroupedSoftmax(3), context=LandmarkPolicy(3, top_k=2))
    >>> attention(torch.randn(1, 80, 16))[0].shape
    torch.Size([1, 80, 16])
    """

    def __init__(self, block_size: int, top_k: int, lead: int = 0) -> None:
        super().__init__()
        if block_size < 1 or top_k < 1 or lead < 0:
            raise ValueError(f"block_size={block_size}, top_k={top_k}, lead={lead}; legal: at least 1, 1 and 0.")
        self.block_size, self.top_k, self.lead = block_size, top_k, lead

    def check(self, normaliser: Normaliser) -> None:
        super().check(normaliser)
        found = (getattr(normaliser, "block_size", None), getattr(normaliser, "lead", None))
        if not isinstance(normaliser, GroupedSoftmax) or found != (self.block_size, self.lead):
            raise ValueError(
                f"LandmarkPolicy({self.block_size}, lead={self.lead}) beside {type(normaliser).__name__} of "
                f"(block_size, lead) = {found}; legal: GroupedSoftmax of the same layout. "
                f"Give normaliser=GroupedSoftmax({self.block_size}, lead={self.lead})."
            )

    def _blocks(self, total: int) -> int:
        return max(total - self.lead, 0) // (self.block_size + 1)

    def fits(self, total: int) -> bool:
        return self._blocks(total) <= self.top_k

    def looks_at(self, n: Tensor) -> Tensor:
        # The own block and an unfinished one come on top; both are counted whole.
        return n.clamp_max(self.lead + (self.top_k + 2) * (self.block_size + 1))

    def select(
        self, q: Tensor, k: Tensor, summary: Tensor | None, query: Tensor | None, hidden: Tensor | None
    ) -> Tensor:
        total, step = k.shape[2], self.block_size + 1
        blocks = self._blocks(total)
        every = torch.arange(total, device=k.device)
        landmarks = self.lead + step * torch.arange(blocks, device=k.device) + self.block_size
        scores = q @ k[:, :, landmarks].transpose(-1, -2)
        if hidden is not None:
            scores = scores.masked_fill(hidden[..., landmarks], -torch.inf)
        own = None if query is None else landmark_layout(query, total, self.block_size, self.lead)[0]
        if own is not None:
            scores = scores.masked_fill(own[:, None] == torch.arange(blocks, device=k.device), -torch.inf)
        top = scores.topk(min(self.top_k, blocks), dim=-1)
        chosen = top.indices.masked_fill(top.values == -torch.inf, -1)
        parts = [chosen]
        if own is not None:
            parts.append(own.view(1, 1, -1, 1).expand(*chosen.shape[:3], 1))
        block = torch.cat(parts, dim=-1)[..., None]
        inside = self.lead + step * block + torch.arange(step, device=k.device)
        inside = inside.masked_fill(block < 0, -1).flatten(-2)
        free = torch.cat([every[: self.lead], every[self.lead + step * blocks :]])
        return torch.cat([free.expand(*inside.shape[:3], -1), inside], dim=-1)


class ChunkSelectPolicy(Context):
    r"""Chunk context: attend within chunks whose summaries match the query, under a token budget.

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
