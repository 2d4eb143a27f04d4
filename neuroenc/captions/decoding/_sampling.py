"""Step-wise language models, hypotheses, and sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from neuroenc._core.checks import at_least, check_whole, share
from neuroenc._core.errors import DataError

#: ``constraint(tokens (rows, t), items (rows,)) -> bool (rows, V)``: tokens that may come next.
Constraint = Callable[[Tensor, Tensor], Tensor]


class StepModel(Protocol):
    """Protocol of a step-wise language model, batched over hypotheses."""

    def start(self) -> tuple[Tensor, Any]:
        """Logits (n, V) of the first token of each of n items, and a state with n rows."""

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (rows, V) after ``tokens`` (rows,) have been written, and the state with them."""

    def select(self, state: Any, rows: Tensor) -> Any:
        """State whose row r is row ``rows[r]`` of the given one, which is not used again."""


class CausalStep:
    """Step-wise model of a transformers causal language model, conditioned on a prefix of embeddings.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Any causal language model that takes ``inputs_embeds``; in evaluation mode.
    prefix : Tensor (n, length, width)
        What is in front of the first token, of equal length for all items: no padding, no mask.
    cache : bool
        Keep keys and values of what has been read. False reads everything again at each step, as the released
        code of ClipCap does: for tests and comparisons.
    """

    def __init__(self, model: Any, prefix: Tensor, cache: bool = True) -> None:
        self.model, self.prefix, self.cache = model, prefix, bool(cache)
        self._embed = model.get_input_embeddings()
        # Newer transformers call it "cache".
        self._past = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"

    def start(self) -> tuple[Tensor, Any]:
        """See `StepModel`."""
        return self._read(self.prefix, None)

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """See `StepModel`."""
        new = self._embed(tokens[:, None])
        if self.cache:
            return self._read(new, state)
        return self._read(torch.cat([state, new], dim=1), None)

    def select(self, state: Any, rows: Tensor) -> Any:
        """See `StepModel`."""
        if isinstance(state, Tensor):
            return state[rows]
        if hasattr(state, "reorder_cache"):
            state.reorder_cache(rows)
            return state
        return tuple(tuple(part[rows] for part in layer) for layer in state)

    def _read(self, embedded: Tensor, past: Any) -> tuple[Tensor, Any]:
        # Inference mode, so that no graph is kept behind the cache.
        with torch.inference_mode():
            found = self.model(inputs_embeds=embedded, use_cache=self.cache, **{self._past: past})
        return found.logits[:, -1], getattr(found, self._past) if self.cache else embedded


def token_logits(model: Any, prefix: Tensor, tokens: Tensor) -> Tensor:
    """Logits (n, t, V) of tokens (n, t), each after the prefix (n, length, width) and the tokens before it."""
    embedded = model.get_input_embeddings()(tokens[:, :-1].clamp(min=0))
    logits: Tensor = model(inputs_embeds=torch.cat([prefix, embedded], dim=1), use_cache=False).logits
    return logits[:, prefix.shape[1] - 1 :]


#: Stands behind the end of a hypothesis.
PAD = -1
_REST = ("lengths", "logp", "scores", "finished", "group")


@dataclass(frozen=True)
class Hypotheses:
    """Finished hypotheses of n items, k each, best first.

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


def equal_length(parts: list[Any]) -> list[Tensor]:
    """Tokens (n, k, t) of each part, all of the largest t."""
    longest = max(p.tokens.shape[2] for p in parts)
    return [torch.nn.functional.pad(p.tokens, (0, longest - p.tokens.shape[2]), value=PAD) for p in parts]


def join(parts: list[Hypotheses]) -> Hypotheses:
    """The hypotheses of several searches of the same items as one."""
    rest = (torch.cat([getattr(p, x) for p in parts], 1) for x in _REST)
    return sort(Hypotheses(torch.cat(equal_length(parts), 1), *rest))


def nucleus(logits: Tensor, temperature: float, top_p: float, top_k: int | None) -> Tensor:
    """Probabilities (rows, V) of the fewest tokens that together reach ``top_p``, each row summing to 1.

    >>> import torch
    >>> nucleus(torch.tensor([[0.5, 0.3, 0.2]]).log(), 1.0, 0.6, None).round(decimals=3).tolist()
    [[0.625, 0.375, 0.0]]
    """
    p = torch.softmax(logits.double() / temperature, dim=-1)
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    # A token stays where those before it have not reached top_p: the most probable one always does.
    keep = ordered.cumsum(-1) - ordered < top_p
    if top_k is not None:
        keep[:, top_k:] = False
    p = torch.zeros_like(p).scatter_(-1, order, torch.where(keep, ordered, 0.0))
    return p / p.sum(-1, keepdim=True)


def sample(
    step: StepModel,
    *,
    stop: int,
    n_samples: int = 5,
    max_length: int = 67,
    temperature: float = 1.0,
    top_p: float = 0.8,
    top_k: int | None = None,
    length_penalty: float = 1.0,
    seed: int = 0,
    items: Sequence[int] | None = None,
    constraint: Constraint | None = None,
) -> Hypotheses:
    """Nucleus sampling: draw ``n_samples`` continuations of each item.

    Each token is drawn from ``softmax(z / temperature)`` cut to the fewest tokens whose probabilities reach
    ``top_p`` (and to the ``top_k`` most probable). Random numbers belong to (seed, item, sample): an item's captions
    do not depend on what else is in the batch, and the first of five are those of a run of one.

    Parameters
    ----------
    stop, max_length, length_penalty, constraint
        As in :func:`beam_search`; a constraint acts before the cut.
    n_samples : int
        An item; equal ones are kept.
    temperature, top_p : float
        ``top_p=1`` draws from the whole distribution.
    items : sequence of int (n,), optional
        Number of each item for its random numbers, where the batch is part of something larger.

    Returns
    -------
    Hypotheses
        ``logp`` is the model's own, at temperature 1 and uncut: comparable between settings.

    References
    ----------
    Holtzman et al. The curious case of neural text degeneration. ICLR 2020.
    """
    k, longest = check_whole("n_samples", n_samples), check_whole("max_length", max_length)
    if top_k is not None:
        check_whole("top_k", top_k)
    at_least("temperature", temperature, above=True)
    at_least("top_p", share("top_p", top_p), above=True)
    logits, state = step.start()
    n, device = len(logits), logits.device
    numbers = list(range(n)) if items is None else [int(x) for x in items]
    if len(numbers) != n:
        raise DataError(f"{len(numbers)} item numbers for {n} items; legal is one an item.")
    streams = [np.random.default_rng([int(seed), number, j]).random(longest) for number in numbers for j in range(k)]
    draws = torch.from_numpy(np.stack(streams)).to(device) if streams else torch.zeros((0, longest), device=device)

    item = torch.arange(n, device=device).repeat_interleave(k)
    logits = logits[item]
    tokens = torch.full((n * k, longest), PAD, dtype=torch.int64, device=device)
    logp = torch.zeros(n * k, dtype=torch.float32, device=device)
    live, select = torch.arange(n * k, device=device), item
    for t in range(longest):
        if not len(live):
            break
        own = torch.log_softmax(logits.float(), dim=-1)
        if torch.isnan(own).any():
            raise DataError("the language model gave logits that are NaN. Next step: look at the embeddings.")
        mask = torch.ones_like(own, dtype=torch.bool)
        if constraint is not None:
            mask = constraint(tokens[live, :t], item[live]).to(device)
        stuck = ~mask.any(dim=-1)
        logp[live[stuck]] = -torch.inf
        logits = logits.masked_fill(~(mask | stuck[:, None]), -torch.inf)
        cumulative = nucleus(logits, temperature, top_p, top_k).cumsum(-1)
        # Scaled, so that rounding of the sum cannot carry a draw past the last possible token.
        aim = draws[live, t, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, aim, right=True)[:, 0]
        tokens[live[~stuck], t] = token[~stuck]
        logp[live] += own.gather(1, token[:, None])[:, 0]
        on = (token != stop) & ~stuck
        if t + 1 < longest and on.any():
            rows = select[on] if t == 0 else torch.nonzero(on)[:, 0]
            state = step.select(state, rows)
            logits, state = step.step(token[on], state)
        live = live[on]
    tokens = tokens[:, : max(1, int((tokens >= 0).sum(1).max()) if len(tokens) else 1)]
    lengths = (tokens >= 0).sum(1)
    scores = logp / lengths.clamp(min=1).float() ** length_penalty
    finished = (tokens == stop).any(dim=1)
    flat = (lengths, logp, scores, finished, torch.zeros_like(lengths))
    found = Hypotheses(tokens.reshape(n, k, -1), *(x.reshape(n, k) for x in flat))
    return sort(found)
