"""Positions as a bias of scores: T5's buckets and ALiBi's slopes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from neuroenc.attention._position import Position

__all__ = ["ALiBi", "T5Bias", "t5_buckets"]


def t5_buckets(distance: Tensor, buckets: int = 32, max_distance: int = 128, bidirectional: bool = True) -> Tensor:
    """Bucket of each distance key - query: exact ones up to half of the buckets, then ever wider ones.

    Parameters
    ----------
    distance : Tensor of int
    buckets : int
        In all; with ``bidirectional``, half of them for keys behind the query.
    max_distance : int
        From here on, all distances share the last bucket.
    bidirectional : bool
        False: keys behind the query (which a causal mask hides) share bucket 0.

    Examples
    --------
    >>> import torch
    >>> t5_buckets(torch.tensor([-200, -3, 0, 3, 200])).tolist()
    [15, 3, 0, 19, 31]
    """
    shift = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        shift = (distance > 0) * buckets
        far = distance.abs()
    else:
        far = (-distance).clamp_min(0)
    exact = buckets // 2
    ratio = torch.log(far.clamp_min(1).float() / exact) / math.log(max_distance / exact)
    wide = (exact + (ratio * (buckets - exact)).long()).clamp_max(buckets - 1)
    return shift + torch.where(far < exact, far, wide)


class T5Bias(Position):
    """A learned number per head and bucket of distances (`t5_buckets`), added to scores; 0 at first.

    Parameters
    ----------
    heads : int
    buckets, max_distance, bidirectional
        See `t5_buckets`.

    References
    ----------
    Raffel et al. (2020), Exploring the limits of transfer learning, arXiv:1910.10683.

    Examples
    --------
    >>> T5Bias(heads=2).bias(3, 5).shape
    torch.Size([2, 3, 5])
    """

    def __init__(self, heads: int, buckets: int = 32, max_distance: int = 128, bidirectional: bool = True) -> None:
        super().__init__()
        least = 4 if bidirectional else 2
        if buckets < least or buckets % 2 or max_distance <= buckets // least:
            raise ValueError(
                f"buckets={buckets}, max_distance={max_distance}; legal: an even number of at least {least} buckets, "
                f"and a max_distance over a {'quarter' if bidirectional else 'half'} of it. T5 has 32 and 128."
            )
        self.heads, self.buckets = heads, buckets
        self.max_distance, self.bidirectional = max_distance, bidirectional
        self.table = nn.Parameter(torch.zeros(heads, buckets))

    def bias_of(self, distance: Tensor, known: Tensor) -> Tensor | None:
        bucket = t5_buckets(distance.to(self.table.device), self.buckets, self.max_distance, self.bidirectional)
        head = torch.arange(self.heads, device=self.table.device).view(-1, 1, 1)
        return self.table[head, bucket].masked_fill(~known.to(self.table.device), 0.0)


class ALiBi(Position):
    r"""Scores that fade with distance, faster in the first heads.

    .. math:: \beta_{hij} = -m_h |i - j|, \qquad m_h = 2^{-8h/H},\; h = 1, \dots, H

    Parameters
    ----------
    heads : int
    symmetric : bool
        True: keys before and behind the query fade alike. False: as published, a query sees no key behind it.

    Notes
    -----
    The formula holds for any number of heads; the released code interleaves two series where it is no power of 2.

    References
    ----------
    Press, Smith and Lewis (2022), Train short, test long, arXiv:2108.12409.

    Examples
    --------
    >>> ALiBi(heads=8).bias(1, 3)[0]
    tensor([[-0.0000, -0.5000, -1.0000]])
    """

    slopes: Tensor

    def __init__(self, heads: int, symmetric: bool = True) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"heads={heads}; legal: 1 or more. Give the number of the attention's heads.")
        self.heads, self.symmetric = heads, symmetric
        slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)
        self.register_buffer("slopes", slopes.to(torch.get_default_dtype()), persistent=False)

    def bias_of(self, distance: Tensor, known: Tensor) -> Tensor | None:
        distance, known = distance.to(self.slopes.device), known.to(self.slopes.device)
        bias = -self.slopes.view(-1, 1, 1) * distance.abs()
        if not self.symmetric:
            bias = bias.masked_fill(distance > 0, -torch.inf)
        return bias.masked_fill(~known, 0.0)
