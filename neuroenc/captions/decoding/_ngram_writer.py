"""N-grams of a corpus that a language model writes for an embedding, and how probable they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuroenc._core.memory import parse_memory
from neuroenc.captions.decoding._ngram import CorpusConstraint
from neuroenc.captions.decoding._search import beam_search
from neuroenc.captions.decoding._steps import CausalStep
from neuroenc.captions.decoding._trie import TrieConstraint

__all__ = ["first_tokens", "ngram_log_probabilities", "prompted", "write_names", "write_ngrams"]

Ngram = tuple[int, ...]


def prompted(decoder: Any, prefix: Tensor, prompt: str | None) -> Tensor:
    """Prefixes (n, length, width) with the tokens of a prompt behind them."""
    if not prompt:
        return prefix
    tokens = torch.tensor(decoder.encode(prompt), device=prefix.device)
    with torch.inference_mode():
        embedded = decoder.lm.get_input_embeddings()(tokens)
    return torch.cat([prefix, embedded.expand(len(prefix), -1, -1)], dim=1)


class _Collected:
    """Phrases of the corpus, each written on until it is ``longest`` or its caption ends; all on the way are kept."""

    def __init__(self, constraint: CorpusConstraint, n: int) -> None:
        self.constraint = constraint
        self.found: list[set[Ngram]] = [set() for _ in range(n)]

    def keep(self, tokens: Tensor, items: Tensor) -> None:
        stop = self.constraint.stop
        for item, row in zip(items.tolist(), tokens.tolist()):
            y = tuple(t for t in row if t >= 0 and t != stop)
            if y:
                self.found[item].add(y)

    def __call__(self, tokens: Tensor, items: Tensor) -> Tensor:
        self.keep(tokens, items)
        mask = self.constraint(tokens, items)
        # A phrase may stop anywhere: only one that cannot go on does.
        mask[:, self.constraint.stop] &= mask.sum(dim=1) == 1
        return mask


def write_ngrams(
    decoder: Any,
    prefix: Tensor,
    constraint: CorpusConstraint,
    *,
    beams: int,
    longest: int,
    groups: int = 1,
    diversity_penalty: float = 0.5,
) -> list[list[Ngram]]:
    """N-grams of the corpus among the beams of each item, at any step; sorted."""
    collected = _Collected(constraint, len(prefix))
    found = beam_search(
        CausalStep(decoder.lm, prefix),
        stop=decoder.stop,
        beams=beams,
        max_length=longest,
        length_penalty=0.0,
        groups=groups,
        diversity_penalty=diversity_penalty,
        constraint=collected,
    )
    for k in range(found.tokens.shape[1]):
        alive = torch.isfinite(found.logp[:, k])
        collected.keep(found.tokens[alive, k], torch.nonzero(alive)[:, 0])
    return [sorted(x) for x in collected.found]


def write_names(
    decoder: Any, prefix: Tensor, trie: TrieConstraint, *, beams: int, longest: int
) -> list[list[tuple[str, float]]]:
    r"""Ids of names and :math:`\log P(\mathrm{name} \mid q)`, the end of the name included, best first."""
    found = beam_search(
        CausalStep(decoder.lm, prefix),
        stop=decoder.stop,
        beams=beams,
        max_length=longest,
        length_penalty=0.0,
        constraint=trie,
    )
    out: list[list[tuple[str, float]]] = []
    for item in range(len(prefix)):
        done = [k for k in range(found.tokens.shape[1]) if found.finished[item, k]]
        named = [(trie.name(found.tokens[item, k].tolist()), float(found.logp[item, k])) for k in done]
        out.append([(n, p) for n, p in named if n is not None])
    return out


def ngram_log_probabilities(
    decoder: Any, prefix: Tensor, ngrams: Sequence[Sequence[Ngram]], max_memory: str | int | None = None
) -> list[np.ndarray]:
    r""":math:`\log P(n \mid q)` of the n-grams of each item, float64.

    An n-gram and its own beginnings share a row of one pass of the model, so that about a tenth of them is read.
    """
    rows: list[tuple[int, Ngram]] = []
    for item, several in enumerate(ngrams):
        begun = {y[:k] for y in several for k in range(1, len(y))}
        rows.extend((item, y) for y in several if y not in begun)
    known: list[dict[Ngram, float]] = [{} for _ in ngrams]
    longest = max((len(y) for _, y in rows), default=1)
    # Logits in float32, their log-softmax, and what the layers hold.
    each = 4 * (prefix.shape[1] + longest) * (3 * decoder.vocabulary + 16 * prefix.shape[2])
    step = int(max(1, min(1024, parse_memory(max_memory) // each)))
    embed = decoder.lm.get_input_embeddings()
    for a in range(0, len(rows), step):
        part = rows[a : a + step]
        tokens = torch.zeros((len(part), max(len(y) for _, y in part)), dtype=torch.int64)
        for k, (_, y) in enumerate(part):
            tokens[k, : len(y)] = torch.tensor(y)
        tokens = tokens.to(prefix.device)
        with torch.inference_mode():
            front = prefix[torch.tensor([item for item, _ in part], device=prefix.device)]
            # What is read behind a shorter n-gram cannot be seen by what stands in front of it.
            logits = decoder.lm(inputs_embeds=torch.cat([front, embed(tokens[:, :-1])], dim=1), use_cache=False).logits
            logp = torch.log_softmax(logits[:, prefix.shape[1] - 1 :].float(), dim=-1)
            sums = logp.gather(2, tokens[:, :, None])[:, :, 0].double().cumsum(dim=1).cpu().numpy()
        for (item, y), total in zip(part, sums):
            for k in range(len(y)):
                known[item].setdefault(y[: k + 1], float(total[k]))
    return [np.array([known[item][y] for y in several]) for item, several in enumerate(ngrams)]


def first_tokens(decoder: Any, prefix: Tensor) -> np.ndarray:
    r""":math:`\log P(t \mid q)` of every token as the first one, float64 (n, V)."""
    with torch.inference_mode():
        logits = decoder.lm(inputs_embeds=prefix, use_cache=False).logits[:, -1]
        return torch.log_softmax(logits.double(), dim=-1).cpu().numpy()
