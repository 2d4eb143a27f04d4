"""Hypotheses under way and at their end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PAD", "Beams", "Hypotheses", "fill", "join", "seen", "sort"]

#: Stands behind the end of a hypothesis.
PAD = -1
_REST = ("lengths", "logp", "scores", "finished", "group")


@dataclass(frozen=True)
class Hypotheses:
    """What a search has written for n items, k hypotheses each, the best first.

    Attributes
    ----------
    tokens : Tensor (n, k, t) int64
        -1 after the end.
    lengths : Tensor (n, k) int64
        Tokens, the stop token included.
    logp : Tensor (n, k)
        Sum of the log-probabilities of the tokens; -inf where an item has fewer than k hypotheses.
    scores : Tensor (n, k)
        ``logp / length ** length_penalty``, and what rescoring added.
    finished : Tensor (n, k) bool
        Whether the stop token was written, and not merely ``max_length`` reached.
    group : Tensor (n, k) int64
        Group of a diverse search; 0 elsewhere.
    """

    tokens: Tensor
    lengths: Tensor
    logp: Tensor
    scores: Tensor
    finished: Tensor
    group: Tensor

    def texts(self, item: int) -> list[tuple[list[int], float]]:
        """Tokens and score of an item's hypotheses, those that died left out."""
        return [
            (self.tokens[item, k, : int(self.lengths[item, k])].tolist(), float(self.scores[item, k]))
            for k in range(self.tokens.shape[1])
            if torch.isfinite(self.logp[item, k])
        ]


@dataclass
class Beams:
    """Hypotheses under way: items (m,), tokens (m, k, t), logp, lengths, done (m, k)."""

    items: Tensor
    tokens: Tensor
    logp: Tensor
    lengths: Tensor
    done: Tensor

    def take(self, kept: Tensor) -> Beams:
        return Beams(self.items[kept], self.tokens[kept], self.logp[kept], self.lengths[kept], self.done[kept])


def fill(beams: Beams, width: int) -> Beams:
    """``width`` beams an item: the missing ones are dead."""
    more = (0, width - beams.logp.shape[1])
    pad = torch.nn.functional.pad
    return Beams(
        beams.items,
        pad(beams.tokens, (0, 0, *more), value=PAD),
        pad(beams.logp, more, value=-torch.inf),
        pad(beams.lengths, more, value=1),
        pad(beams.done, more, value=True),
    )


def seen(tokens: Tensor, vocabulary: int) -> Tensor:
    """Which tokens (n, V) occur in each row; 1.0 or 0.0."""
    out = torch.zeros((len(tokens), vocabulary + 1), device=tokens.device)
    out.scatter_(1, torch.where(tokens >= 0, tokens, vocabulary), 1.0)
    return out[:, :vocabulary]


def sort(found: Hypotheses) -> Hypotheses:
    """Best first; equal ones stay in order."""
    order = found.scores.argsort(dim=1, descending=True, stable=True)
    tokens = found.tokens.gather(1, order[:, :, None].expand_as(found.tokens))
    rest = (getattr(found, x).gather(1, order) for x in _REST)
    return Hypotheses(tokens, *rest)


def join(parts: list[Hypotheses]) -> Hypotheses:
    """The hypotheses of several searches of the same items as one."""
    longest = max(p.tokens.shape[2] for p in parts)
    tokens = [torch.nn.functional.pad(p.tokens, (0, longest - p.tokens.shape[2]), value=PAD) for p in parts]
    rest = (torch.cat([getattr(p, x) for p in parts], 1) for x in _REST)
    return sort(Hypotheses(torch.cat(tokens, 1), *rest))
