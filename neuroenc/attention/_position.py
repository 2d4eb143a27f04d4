"""Position encodings: absolute, rotary, T5 relative bias and ALiBi.

A position is an integer; a negative one says that the token has none (a register), and then nothing is added or turned.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from neuroenc.attention._weights import legal


class Position(nn.Module):
    """Base class of position encodings; the default does nothing.

    `Attention` calls ``add`` on what it projects from, ``rotate`` on queries and keys, and adds ``bias`` to scores.
    """

    def add(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """Tokens (..., token, dim) at positions (token,), default 0, 1, ..."""
        return x

    def rotate(
        self, q: Tensor, k: Tensor, query_at: Tensor | None = None, key_at: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys (..., token, d) at positions that broadcast against (..., token)."""
        return q, k

    def bias(self, query: int | Tensor, key: int | Tensor) -> Tensor | None:
        """Added to scores, (heads, query, key), for numbers of tokens or their positions; None for nothing."""
        query, key = _places(query), _places(key)
        distance = key[None, :] - query[:, None]
        known = (key[None, :] >= 0) & (query[:, None] >= 0)
        return self.bias_of(distance[None], known[None])

    def bias_of(self, distance: Tensor, known: Tensor) -> Tensor | None:
        """As ``bias``, for distances key - query (..., heads or 1, query, key); 0 where not ``known``."""
        return None


def _places(tokens: int | Tensor) -> Tensor:
    return tokens if isinstance(tokens, Tensor) else torch.arange(tokens)


def _angles(at: Tensor, width: int, base: float, dtype: torch.dtype) -> Tensor:
    """Positions times the rates of ``width // 2`` waves, in at least single precision."""
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    rate = torch.exp(torch.arange(width // 2, device=at.device, dtype=kind) * (-2 * math.log(base) / width))
    return at[..., None].to(kind) * rate


class NoPosition(Position):
    """No position encoding: tokens are a set.

    Examples
    --------
    >>> NoPosition().bias(3, 3) is None
    True
    """


class AbsolutePosition(Position):
    r"""Learned absolute position embeddings, added to tokens.

    .. math:: p_{t,2i} = \sin(t / 10000^{2i/d}), \quad p_{t,2i+1} = \cos(t / 10000^{2i/d})
              \quad\text{or learned}

    Parameters
    ----------
    dim : int
    kind : {"sinusoidal", "learned"}
    length : int
        Number of learned positions, N(0, 0.02) at first; sinusoidal ones go on for ever.

    Notes
    -----
    Given to an `Attention` it is added to what that layer's queries, keys and values are projected from. A usual
    transformer has it in its first layer, or calls ``add`` on its tokens. Learned positions that training never
    reached are what they were at first: beside large tokens, hardly any.

    References
    ----------
    Vaswani et al. (2017), Attention is all you need, arXiv:1706.03762.

    Examples
    --------
    >>> import torch
    >>> AbsolutePosition(4).add(torch.zeros(1, 2, 4))[0, 0]
    tensor([0., 1., 0., 1.])
    """

    def __init__(self, dim: int, kind: str = "sinusoidal", length: int = 512) -> None:
        super().__init__()
        legal("kind", kind, ("sinusoidal", "learned"))
        if kind == "sinusoidal" and dim % 2:
            raise ValueError(f"dim={dim} is odd; sines and cosines come in pairs. Take an even dim, or kind='learned'.")
        self.dim, self.kind, self.length = dim, kind, length
        if kind == "learned":
            self.table = nn.Parameter(0.02 * torch.randn(length, dim))

    def add(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        at = torch.arange(x.shape[-2], device=x.device) if at is None else at.to(x.device)
        if self.kind == "learned":
            if at.numel() and int(at.max()) >= self.length:
                raise ValueError(
                    f"position {int(at.max())} of a table of length {self.length}; legal: 0 to {self.length - 1}. "
                    "Next step: a longer table, or a position without one (sinusoidal, T5Bias, ALiBi, Rotary)."
                )
            vectors = self.table[at.clamp_min(0)]
        else:
            angle = _angles(at, self.dim, 1e4, x.dtype)
            vectors = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)
        return x + vectors.masked_fill((at < 0)[..., None], 0.0).to(x.dtype)


class Rotary(Position):
    r"""Rotary position embeddings (RoPE): scores depend on relative distance.

    Coordinate i and its partner i + d/2 are a plane, turned by :math:`t\,\text{base}^{-2i/d}`.

    Parameters
    ----------
    base : float

    References
    ----------
    Su et al. (2021), RoFormer, arXiv:2104.09864; coordinates are paired as in GPT-NeoX and transformers.

    Examples
    --------
    >>> import torch
    >>> q, k = torch.randn(2, 5, 8)
    >>> later = torch.arange(5) + 90
    >>> (a, b), (c, d) = Rotary().rotate(q, k), Rotary().rotate(q, k, later, later)
    >>> torch.allclose(a @ b.T, c @ d.T, atol=1e-4)
    True
    """

    def __init__(self, base: float = 10000.0) -> None:
        super().__init__()
        if base <= 1:
            raise ValueError(f"base={base}; legal: a number over 1. The usual one is 10000.")
        self.base = base

    def rotate(
        self, q: Tensor, k: Tensor, query_at: Tensor | None = None, key_at: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._turn(q, query_at), self._turn(k, key_at)

    def _turn(self, x: Tensor, at: Tensor | None) -> Tensor:
        width = x.shape[-1]
        if width % 2:
            raise ValueError(f"heads are {width} wide; turning needs an even width. Change dim or heads.")
        at = torch.arange(x.shape[-2], device=x.device) if at is None else at.to(x.device).clamp_min(0)
        angle = _angles(at, width, self.base, x.dtype)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def t5_buckets(distance: Tensor, buckets: int = 32, max_distance: int = 128, bidirectional: bool = True) -> Tensor:
    """Relative-position buckets of T5: exact for short distances, logarithmic for long ones.

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
    """T5 relative position bias: one learned bias per head and bucket (`t5_buckets`), zero at first.

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
    r"""ALiBi: linear distance penalties on scores, steeper in the first heads.

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
