"""Which keys a query sees: all, or the blocks that landmarks open."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuroenc.attention._grouped import GroupedSoftmax, landmark_layout
from neuroenc.attention._normalise import Normaliser

__all__ = ["Context", "FullContext", "LandmarkPolicy"]


class Context(nn.Module):
    """Base of context policies; equal to `FullContext`, to the bit, wherever ``fits`` says so.

    ``reassigns`` says that positions are counted anew among the selected keys. ``needs_queries`` says that `prepare`
    wants the queries of the tokens that keys come from.
    """

    reassigns = False
    needs_queries = False

    def check(self, normaliser: Normaliser) -> None:
        """Refuse a normaliser that weights of a selection mean nothing to."""
        if normaliser.all_rows:
            raise ValueError(
                f"{type(normaliser).__name__} looks at all weights, {type(self).__name__} computes only some; legal: "
                "one of the two. Drop the normaliser, or take context=None."
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
    """Every query sees every key.

    Examples
    --------
    >>> FullContext().fits(10**6)
    True
    """

    def check(self, normaliser: Normaliser) -> None:
        return None


class LandmarkPolicy(Context):
    """Only the blocks whose landmarks score highest are looked into, per head and query.

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
            raise ValueError(
                f"block_size={block_size}, top_k={top_k}, lead={lead}; legal: at least 1, 1 and 0. Raise what is lower."
            )
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
