"""Multi-head attention with exchangeable normaliser, length scale, positions and context, and its two kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroenc.attention._context import Context, FullContext
from neuroenc.attention._position import NoPosition, Position
from neuroenc.attention._weights import Layout, LengthScale, Normaliser, Softmax, count_keys


class Places(NamedTuple):
    """Where queries and keys stand."""

    query: Tensor | None  # (query,) place among the keys; None in cross-attention
    query_at: Tensor  # (query,) positions, negative for none
    key_at: Tensor  # (key,)
    causal: bool


class Request(NamedTuple):
    """What else an attention is asked with."""

    normaliser: Normaliser
    position: Position
    context: Context
    log_weight: Tensor | None  # (batch, key)
    n: Tensor  # (batch,)
    places: Places
    need: bool
    dropout: float


def hidden_keys(query_at: Tensor, key_at: Tensor) -> Tensor:
    """Keys that a causal mask hides: later ones; those without a position are hidden from none.

    Examples
    --------
    >>> import torch
    >>> hidden_keys(torch.tensor([-1, 0]), torch.tensor([-1, 0, 1]))
    tensor([[False,  True,  True],
            [False, False,  True]])
    """
    return (key_at > query_at[..., None]) & (key_at >= 0)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    normaliser: Normaliser,
    mask: Tensor | None,
    n: Tensor,
    *,
    need: bool,
    dropout: float = 0.0,
    layout: Layout | None = None,
    multiply: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attend every query to every key, fused where no weights are wanted.

    Head outputs (batch, heads, query, d), and weights if needed; ``mask`` is added to scores, ``multiply`` multiplies
    weights.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.attention import Softmax
    >>> q, k, v = torch.randn(3, 1, 2, 5, 4)
    >>> fused = attend(q, k, v, Softmax(), None, torch.tensor([5]), need=False)[0]
    >>> torch.allclose(fused, attend(q, k, v, Softmax(), None, torch.tensor([5]), need=True)[0], atol=1e-6)
    True
    """
    mask = None if mask is None else mask.to(q.dtype)
    if normaliser.fused and not need:
        if mask is None:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout), None
        # Some kernels answer a row without keys with NaN.
        empty = (mask == -torch.inf).all(-1, keepdim=True)
        if empty.device.type == "cpu" and not empty.any():  # Elsewhere, to ask costs more than to fill.
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout), None
        mask = mask.masked_fill(empty, 0.0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return out.masked_fill(empty, 0.0), None
    scores = q @ k.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / (q.shape[-1] ** 0.5)
    if mask is not None:
        scores = scores + mask
    weights = normaliser(scores, n) if layout is None else normaliser(scores, n, layout)
    if multiply is not None:
        weights = weights * multiply.to(weights.dtype)
    return F.dropout(weights, dropout, dropout > 0).to(v.dtype) @ v, weights


def attend_placed(q: Tensor, k: Tensor, v: Tensor, how: Request) -> tuple[Tensor, Tensor | None]:
    """`attend` with what positions, a causal mask and unusual normalisers want; q and k are rotated already."""
    normaliser, position, _, log_weight, n, places, need, dropout = how
    mask = position.bias(places.query_at, places.key_at)
    mask = None if mask is None else mask.to(q)[None]
    if places.causal:
        later = hidden_keys(places.query_at, places.key_at)
        mask = (q.new_zeros(1) if mask is None else mask).masked_fill(later, -torch.inf)
        mask = mask.view(1, -1, *later.shape)
    multiply = None
    if log_weight is not None:
        log_weight = log_weight[:, None, None, :]
        if not normaliser.additive:
            multiply = log_weight.exp()
            log_weight = torch.zeros_like(log_weight).masked_fill(log_weight == -torch.inf, -torch.inf)
        mask = log_weight if mask is None else mask + log_weight
    layout = Layout(places.query, None, k.shape[2]) if normaliser.needs_layout else None
    return attend(q, k, v, normaliser, mask, n, need=need, dropout=dropout, layout=layout, multiply=multiply)


_NO_POSITION, _FULL = NoPosition(), FullContext()
BUDGET = 2**23  # numbers in the gathered keys of one piece of queries


def attend_selected(
    q: Tensor, k: Tensor, v: Tensor, how: Request, source_q: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Head outputs (batch, heads, query, d), and weights over all keys if needed.

    Queries and keys are rotated already unless the context reassigns positions.
    """
    _, _, context, log_weight, _, places, need, _ = how
    summary = context.prepare(source_q, k, v, log_weight)
    batch, heads, total, width = k.shape
    outputs: list[Tensor] = []
    weights: list[Tensor] = []
    start, size = 0, 1
    while start < q.shape[2]:
        piece = slice(start, start + size)
        asked = q[:, :, piece]
        here = places._replace(
            query=None if places.query is None else places.query[piece], query_at=places.query_at[piece]
        )
        hidden = None if log_weight is None else (log_weight == -torch.inf)[:, None, None, :]
        if here.causal:
            later = hidden_keys(here.query_at, here.key_at)
            hidden = later[None, None] if hidden is None else hidden | later
        place = context.select(asked, k, summary, here.query, hidden)
        place = place.expand(batch, heads, *place.shape[2:])
        found, w = _attend(asked, k, v, place, how._replace(places=here))
        outputs.append(found)
        if need:
            full = w.new_zeros(*w.shape[:3], total)
            weights.append(full.scatter_add(-1, place.clamp_min(0), w))
        start += size
        size = max(1, BUDGET // max(batch * heads * place.shape[-1] * width, 1))
    return torch.cat(outputs, dim=2), torch.cat(weights, dim=2) if need else None


def _attend(q: Tensor, k: Tensor, v: Tensor, place: Tensor, how: Request) -> tuple[Tensor, Tensor]:
    normaliser, position, context, log_weight, n, places, _, dropout = how
    there = place >= 0
    safe = place.clamp_min(0)
    gone = ~there
    key_at = places.key_at[safe]
    query_at = places.query_at.view(1, 1, -1).expand(place.shape[:3])
    if places.causal:
        gone = gone | hidden_keys(query_at, key_at)
    keys, values = _gather(k, safe), _gather(v, safe)
    if context.reassigns:
        query_at, key_at = _renumber(query_at, key_at, there)
        turned, keys = position.rotate(q[..., None, :], keys, query_at[..., None], key_at)
        q = turned.squeeze(-2)
    scores = torch.einsum("bhqd,bhqmd->bhqm", q, keys)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / (q.shape[-1] ** 0.5)
    known = (key_at >= 0) & (query_at >= 0)[..., None]
    bias = position.bias_of(key_at - query_at[..., None], known)
    scores = scores if bias is None else scores + bias
    weight = None
    if log_weight is not None:
        mine = log_weight[:, None, None, :].expand(*place.shape[:3], -1).gather(-1, safe)
        gone = gone | (mine == -torch.inf)
        if normaliser.additive:
            scores = scores + mine
        else:
            weight = mine.exp()
    scores = scores.masked_fill(gone, -torch.inf)
    layout = (Layout(places.query, place, k.shape[2]),) if normaliser.needs_layout else ()
    w = normaliser(scores, n, *layout)
    w = w if weight is None else w * weight
    dropped = F.dropout(w, dropout, dropout > 0).to(v.dtype)
    return torch.einsum("bhqm,bhqmd->bhqd", dropped, values), w


def _gather(x: Tensor, place: Tensor) -> Tensor:
    flat = place.flatten(2)[..., None].expand(-1, -1, -1, x.shape[-1])
    return x.gather(2, flat).unflatten(2, place.shape[2:])


def _renumber(query_at: Tensor, key_at: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Positions counted among the selected keys, which stand in order; none stays none."""
    counted = there & (key_at >= 0)
    rank = counted.cumsum(-1) - 1
    before = (counted & (key_at < query_at[..., None])).sum(-1)
    return before.masked_fill(query_at < 0, -1), rank.masked_fill(~counted, -1)


class Attention(nn.Module):
    r"""Multi-head attention with exchangeable normaliser, length scale, positions and context.

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
    position : Position, optional
        Positions of tokens; default none, so that the output is a function of a set.
    context : Context, optional
        Which keys a query sees; default all.
    bias : bool
        Of the projections.
    dropout : float
        Of weights, in training.
    causal : bool
        A query sees no key at a later position; tokens without one (registers) see each other only, and are seen.
        The length scale counts all keys.

    Notes
    -----
    Parameters are packed as in `torch.nn.MultiheadAttention`: ``in_proj.weight`` (3 dim, dim) and ``out_proj``.

    A query that sees no key gets zeros from every head, with every option. Biases of positions go through the fused
    kernel as a mask. Flex attention, which would spare that mask, is not used: on a CPU it took twice the time of the
    mask (ALiBi, 512 tokens), after compiling for 20 seconds.

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
        position: Position | None = None,
        context: Context | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        causal: bool = False,
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
        self.causal = causal
        if context is not None:
            context.check(self.normaliser)
        found = getattr(position, "heads", heads)
        if found != heads:
            raise ValueError(f"{type(position).__name__} has heads={found}; legal: {heads}. Give it heads={heads}.")
        # Called with head outputs (batch, heads, query, dim / heads); see HeadTap.
        self.tap: Callable[[Tensor], Tensor] | None = None

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        log_weight: Tensor | None = None,
        n: Tensor | None = None,
        rows: slice | None = None,
        need_weights: bool = False,
        offset: int = 0,
        memory_offset: int = 0,
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
            Return weights, too (of ``rows`` only). With softmax they are the only reason to leave the fused kernel.
        offset : int
            Token i of ``x`` stands at position i - offset: so many tokens in front (registers) have no position.
            Negative for queries that continue an earlier sequence.
        memory_offset : int
            The same for ``memory``.

        Returns
        -------
        out : Tensor (batch, rows, dim)
        weights : Tensor (batch, heads, rows, key) or None
        """
        asked: dict[str, Any] = {"log_weight": log_weight, "n": n, "rows": rows, "offset": offset}
        heads, weights = self.head_outputs(x, memory, need_weights=need_weights, memory_offset=memory_offset, **asked)
        if self.tap is not None:
            heads = self.tap(heads)
        out = self.out_proj(heads.transpose(1, 2).reshape(len(x), -1, self.dim))
        return out, weights if need_weights else None

    def head_outputs(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        log_weight: Tensor | None = None,
        n: Tensor | None = None,
        rows: slice | None = None,
        need_weights: bool = False,
        offset: int = 0,
        memory_offset: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """What the heads give, (batch, heads, rows, dim / heads), before taps and ``out_proj``; as `forward` else."""
        places = None if self._is_plain() else self._places(x, memory, offset, memory_offset)
        position, context = self.position or _NO_POSITION, self.context or _FULL
        if places is not None:
            x = position.add(x, places.query_at)
            memory = None if memory is None else position.add(memory, places.key_at)
        late = rows if self.normaliser.all_rows else None
        rows = None if self.normaliser.all_rows else rows
        source = x if memory is None else memory
        q, k, v = self._project(x if rows is None else x[:, rows], source)
        n = count_keys(source, log_weight) if n is None else n
        # Without any key there is no logarithm; the output is 0 at any n.
        n = torch.where(n > 0, n, torch.ones_like(n))
        selects = not context.fits(source.shape[1])
        n = context.looks_at(n) if selects else n
        q = self._scaled(q, n)
        drop = self.dropout if self.training else 0.0
        if places is None:
            mask = None if log_weight is None else log_weight[:, None, None, :]
            return attend(q, k, v, self.normaliser, mask, n, need=need_weights, dropout=drop)
        if rows is not None:
            query = None if places.query is None else places.query[rows]
            places = places._replace(query=query, query_at=places.query_at[rows])
        if not (selects and context.reassigns):
            q, k = position.rotate(q, k, places.query_at, places.key_at)
        how = Request(self.normaliser, position, context, log_weight, n, places, need_weights, drop)
        if selects:
            asks = self._source_queries(source) if context.needs_queries else None
            heads, weights = attend_selected(q, k, v, how, asks)
        else:
            heads, weights = attend_placed(q, k, v, how)
        if late is not None:
            heads, weights = heads[:, :, late], None if weights is None else weights[:, :, late]
        return heads, weights

    def _is_plain(self) -> bool:
        special = self.normaliser.needs_layout or self.normaliser.all_rows or not self.normaliser.additive
        a_set = self.position is None or type(self.position) is NoPosition
        whole = self.context is None or type(self.context) is FullContext
        return a_set and whole and not self.causal and not special

    def _places(self, x: Tensor, memory: Tensor | None, offset: int, memory_offset: int) -> Places:
        query = torch.arange(x.shape[1], device=x.device)
        if memory is None:
            return Places(query, query - offset, query - offset, self.causal)
        key = torch.arange(memory.shape[1], device=x.device)
        return Places(None, query - offset, key - memory_offset, self.causal)

    def _source_queries(self, source: Tensor) -> Tensor:
        bias = None if self.in_proj.bias is None else self.in_proj.bias[: self.dim]
        return self._split(F.linear(source, self.in_proj.weight[: self.dim], bias))

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
