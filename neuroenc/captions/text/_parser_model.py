"""Network and masked-language-model training of the unsupervised parser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from neuroenc.attention import AbsolutePosition, Attention, GELUFeedForward, Sigmoid, attend
from neuroenc.captions.text._trees import MASK, PADDING

# Instead of infinity: differences of it stay numbers.
_FAR = 1e9


class Syntax(NamedTuple):
    """What a parser says of texts."""

    distances: Tensor  # (text, word), of each word and the next; the last one is far
    heights: Tensor  # (text, word)


def calibrated(distances: Tensor, heights: Tensor, known: Tensor) -> Tensor:
    r"""Distances lowered until every part but the whole text holds a word that reaches beyond it.

    .. math:: \tau \leftarrow \tau - \max_{[l, r]} \big(\min(\tau_{l-1}, \tau_r) - \max_{l \le k \le r} \delta_k\big)_+

    Without it, parts without any such word would hang from nothing. The maximum is over the parts of one text, so that
    texts do not depend on what else is in their batch.

    Parameters
    ----------
    distances, heights : Tensor (text, word)
        Far and lowest where ``known`` ends.
    known : Tensor (text, word) of bool
        Words, then padding.

    Returns
    -------
    Tensor (text, word)
    """
    length = heights.shape[1]
    whole = torch.ones(length, length, dtype=torch.bool, device=heights.device)
    inside = heights[:, None, :].expand(-1, length, -1).masked_fill(~whole.triu(), -_FAR)
    highest = inside.cummax(dim=2).values
    before = F.pad(distances[:, :-1], (1, 0), value=_FAR)
    needed = torch.minimum(before[:, :, None], distances[:, None, :]) - highest
    last = known & ~F.pad(known[:, 1:], (0, 1), value=False)
    start = torch.arange(length, device=heights.device) == 0
    legal = whole.triu() & known[:, None, :] & ~(start[None, :, None] & last[:, None, :])
    margin = needed.masked_fill(~legal, 0.0).flatten(1).amax(dim=1).relu()
    return torch.where(distances >= _FAR, distances, distances - margin[:, None])


def span_distribution(distances: Tensor, heights: Tensor, temperature: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    r"""Where the part that a word heads begins and ends.

    .. math:: p(x_j \in C(x_i)) = \sigma\Big(\frac{\delta_i - \max_{k \in [i, j)} \tau_k}{\mu_1}\Big), \qquad
              p(l \mid i) = p(x_l \in C(x_i)) - p(x_{l-1} \in C(x_i))

    and likewise to the right. A word belongs to its own part.

    Parameters
    ----------
    distances, heights : Tensor (text, word)
        The last distance is that to nothing.
    temperature : float or Tensor
        :math:`\mu_1`.

    Returns
    -------
    left, right : Tensor (text, word, word)
        ``left[:, i, l]`` of the first word l, zero right of i; ``right[:, i, r]`` of the last word r, zero left of i.
        Rows sum to 1.
    """
    length = heights.shape[1]
    within = torch.sigmoid((heights[:, :, None] - distances[:, None, :]) / temperature)
    ones = torch.ones(length, length, dtype=torch.bool, device=heights.device)
    # The smallest sigmoid is that of the largest distance between i and j.
    left = within.masked_fill(ones.triu(), 1.0).flip(2).cummin(dim=2).values.flip(2)
    right = F.pad(within.masked_fill(ones.tril(-1), 1.0)[:, :, :-1], (1, 0), value=1.0).cummin(dim=2).values
    left = left - F.pad(left[:, :, :-1], (1, 0))
    right = right - F.pad(right[:, :, 1:], (0, 1))
    return left.tril(), right.triu()


def dependency_distribution(
    distances: Tensor, heights: Tensor, temperatures: tuple[float | Tensor, float | Tensor] = (1.0, 1.0)
) -> Tensor:
    r"""How likely each word is the parent of each other.

    .. math:: p_D(j \mid i) = \sum_{l \le i \le r} p(l \mid i)\, p(r \mid i)\,
              \frac{[l \le j \le r]\, e^{\delta_j / \mu_2}}{\sum_{k=l}^{r} e^{\delta_k / \mu_2}} \quad (j \ne i),
              \qquad p_D(i \mid i) = 0

    C(x_i) is the smallest part that x_i does not head, and the head of a part is its highest word. The root heads the
    whole text: nothing is left for others.

    Parameters
    ----------
    distances, heights : Tensor (text, word)
        The last distance is that to nothing; heights of padding are so low that no word depends on it.
    temperatures : (float or Tensor, float or Tensor)
        :math:`\mu_1` of the ends of parts, :math:`\mu_2` of their heads.

    Returns
    -------
    Tensor (text, word, word)
        ``[:, i, j]`` is :math:`p_D(j \mid i)`; rows sum to at most 1. Held in memory: text x word^3 numbers.
    """
    length = heights.shape[1]
    left, right = span_distribution(distances, heights, temperatures[0])
    at = torch.arange(length, device=heights.device)
    inside = (at[:, None, None] <= at) & (at <= at[None, :, None])
    logits = (heights / temperatures[1])[:, None, None, :].expand(-1, length, length, -1)
    heads = logits.masked_fill(~inside, -_FAR).softmax(dim=3)
    parts = left[:, :, :, None] * right[:, :, None, :]
    parents = parts.flatten(2) @ heads.flatten(1, 2)
    return parents.masked_fill(torch.eye(length, dtype=torch.bool, device=heights.device), 0.0)


class _Convolution(nn.Module):
    """Convolution over words, then norm and tanh; width odd is centred, 2 is a word and the next."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Conv1d(dim, dim, width)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x.transpose(1, 2), ((self.width - 1) // 2, self.width // 2))
        return torch.tanh(self.norm(self.linear(padded).transpose(1, 2)))


class SyntacticParser(nn.Module):
    """Embeddings -> distances and heights, by convolutions: what is near decides."""

    def __init__(self, dim: int, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Convolution(dim, width) for _ in range(layers))
        self.distance = nn.Sequential(_Convolution(dim, 2), nn.Linear(dim, 1))
        self.height = nn.Sequential(_Convolution(dim, 1), nn.Linear(dim, 1))

    def forward(self, x: Tensor, known: Tensor) -> Syntax:
        for layer in self.layers:
            x = layer(x.masked_fill(~known[:, :, None], 0.0))
        x = x.masked_fill(~known[:, :, None], 0.0)
        followed = F.pad(known[:, 1:], (0, 1), value=False)
        distances = self.distance(x).squeeze(2).masked_fill(~followed, _FAR)
        heights = self.height(x).squeeze(2).masked_fill(~known, -_FAR)
        return Syntax(calibrated(distances, heights, known), heights)


class StructuralAttention(Attention):
    r"""Attention whose weights are sigmoids times how much a head cares for each pair.

    .. math:: o_i = \sum_j m_{ij}\, \sigma(q_i \cdot k_j / \sqrt{d})\, v_j

    `Attention` has no door for m, which differs between texts, heads and pairs: a log weight stands for a key, a
    position's bias for all texts. Projections, the kernel and its place for factors are its own.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__(dim, heads, normaliser=Sigmoid(0.0), dropout=dropout)

    def related(self, x: Tensor, mask: Tensor) -> Tensor:
        """Tokens (text, word, dim) and factors (text, heads, word, word) -> (text, word, dim)."""
        q, k, v = self._project(x, x)
        n = torch.full((len(x),), x.shape[1], device=x.device)
        drop = self.dropout if self.training else 0.0
        heads, _ = attend(self._scaled(q, n), k, v, self.normaliser, None, n, need=True, dropout=drop, multiply=mask)
        return self.out_proj(heads.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """Pre-norm block, as `neuroenc.attention.Block`, that hands a mask of pairs on."""

    def __init__(self, attention: Attention, dropout: float) -> None:
        super().__init__()
        dim = attention.dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = attention
        self.feed_forward = GELUFeedForward(dim, 4 * dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor, mask: Tensor | None, hidden: Tensor) -> Tensor:
        h = self.norm1(z)
        if mask is None:
            added = self.attention(h, log_weight=hidden)[0]
        else:
            assert isinstance(self.attention, StructuralAttention)
            added = self.attention.related(h, mask)
        z = z + self.dropout(added)
        return z + self.dropout(self.feed_forward(self.norm2(z)))


class StructuredLM(nn.Module):
    r"""A masked language model whose attention follows a syntax that it guesses itself.

    Head h of layer n weighs pairs by :math:`m_{ij} = a_{nh}\, p_D(j \mid i) + b_{nh}\, p_D(i \mid j)`: to how much
    word j is the parent of word i, and its dependent, with (a, b) a softmax over learned numbers.

    Parameters
    ----------
    vocabulary : int
        Token 0 is padding.
    max_length : int
        Words of the longest text that can be read; the parser alone reads any length.
    parser_layers, parser_width : int
        Convolutions, and words that each sees.
    structured : bool
        False: plain softmax attention over all words, without a parser; everything else is equal.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        max_length: int,
        dim: int,
        layers: int,
        heads: int,
        parser_layers: int,
        parser_width: int,
        dropout: float,
        structured: bool = True,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.position = AbsolutePosition(dim, "learned", max_length)
        self.parser = SyntacticParser(dim, parser_layers, parser_width) if structured else None
        self.blocks = nn.ModuleList(
            _Block(
                StructuralAttention(dim, heads, dropout) if structured else Attention(dim, heads, dropout=dropout),
                dropout,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        if structured:
            self.relations = nn.Parameter(0.1 * torch.randn(layers, heads, 2))
            self.log_sharpness = nn.Parameter(torch.zeros(2))

    def syntax(self, tokens: Tensor) -> Syntax:
        """Distances and heights of texts (text, word), padded with 0."""
        assert self.parser is not None
        return self.parser(self.embedding(tokens), tokens != 0)

    def masks(self, syntax: Syntax) -> Tensor:
        """Factors of pairs, (layer, text, head, word, word)."""
        scale = torch.exp(-self.log_sharpness)
        parents = dependency_distribution(syntax.distances, syntax.heights, (scale[0], scale[1]))
        both = torch.stack([parents, parents.transpose(1, 2)])
        return torch.einsum("nhr,rbij->nbhij", self.relations.softmax(dim=2), both)

    def forward(self, tokens: Tensor, at: Tensor | None = None) -> Tensor:
        """Scores of the vocabulary for each word, (text, word, vocabulary), or for the words (text, word) ``at``."""
        known = tokens != 0
        hidden = torch.zeros(tokens.shape, device=tokens.device).masked_fill(~known, -torch.inf)
        masks = None if self.parser is None else self.masks(self.syntax(tokens)) * known[None, :, None, None, :]
        z = self.dropout(self.position.add(self.embedding(tokens)))
        for k, block in enumerate(self.blocks):
            z = block(z, None if masks is None else masks[k], hidden)
        z = z if at is None else z[at]
        return F.linear(self.dropout(self.norm(z)), self.embedding.weight, self.bias)


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of token numbers as one (row, longest) tensor.

    >>> padded([[3, 4], [5]])
    tensor([[3, 4],
            [5, 0]])
    """
    several = [torch.as_tensor(row, dtype=torch.long) for row in rows] or [torch.zeros(0, dtype=torch.long)]
    return pad_sequence(several, batch_first=True, padding_value=PADDING)[: len(rows)]


def hide(tokens: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens with a share of the words hidden, and which ones; at least one in each row."""
    drawn = torch.rand(tokens.shape, generator=generator).masked_fill(tokens == PADDING, 2.0)
    hidden = (drawn < share) | (drawn == drawn.amin(dim=1, keepdim=True))
    hidden &= tokens != PADDING
    return tokens.masked_fill(hidden, MASK), hidden


def masked_perplexity(net: StructuredLM, rows: Sequence[Sequence[int]], *, share: float, seed: int = 0) -> float:
    r""":math:`\exp` of the mean cross-entropy (nats) of hidden words; which are hidden depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    device = net.bias.device
    total, count = 0.0, 0
    net.eval()
    with torch.inference_mode():
        for k in range(0, len(rows), 256):
            tokens = padded(rows[k : k + 256])
            shown, hidden = hide(tokens, share, generator)
            at = hidden.to(device)
            scores = net(shown.to(device), at)
            total += float(F.cross_entropy(scores, tokens.to(device)[at], reduction="sum"))
            count += int(hidden.sum())
    return math.exp(total / count)


def masked_loss(net: StructuredLM, tokens: Tensor, batch_size: int, share: float, generator: torch.Generator) -> Tensor:
    """Cross-entropy (nats a hidden word) of a batch that is drawn from texts (text, word), padded with 0."""
    device = net.bias.device
    batch = tokens[torch.randint(0, len(tokens), (batch_size,), generator=generator)]
    batch = batch[:, : int((batch != PADDING).sum(dim=1).max())]
    shown, hidden = hide(batch, share, generator)
    at = hidden.to(device)
    return F.cross_entropy(net(shown.to(device), at), batch.to(device)[at])
