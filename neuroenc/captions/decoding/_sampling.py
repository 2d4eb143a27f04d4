"""Captions drawn from a step-wise model, each with its own stream of random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions.decoding._hypotheses import PAD, Hypotheses, sort
from neuroenc.captions.decoding._search import Constraint, Rescore
from neuroenc.captions.decoding._steps import StepModel

__all__ = ["sample"]


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
    rescore: Rescore | None = None,
) -> Hypotheses:
    """Draw ``n_samples`` continuations of each item by nucleus sampling.

    Each token is drawn from ``softmax(z / temperature)`` cut to the fewest tokens whose probabilities reach
    ``top_p`` (and to the ``top_k`` most probable). Random numbers belong to (seed, item, sample): an item's captions
    do not depend on what else is in the batch, and the first of five are those of a run of one.

    Parameters
    ----------
    step : StepModel
    stop, max_length, length_penalty, constraint, rescore
        As in :func:`beam_search`; a constraint acts before the cut.
    n_samples : int
        An item; equal ones are kept.
    temperature, top_p : float
        ``top_p=1`` draws from the whole distribution.
    top_k : int, optional
    seed : int
    items : sequence of int (n,), optional
        Number of each item for its random numbers, where the batch is part of something larger.

    Returns
    -------
    Hypotheses
        ``logp`` is the model's own, at temperature 1 and uncut: comparable between settings.

    Raises
    ------
    ConfigError
        Illegal settings.
    DataError
        Logits that are NaN.

    References
    ----------
    Holtzman et al. The curious case of neural text degeneration. ICLR 2020.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.captions import FunctionStep, sample
    >>> step = FunctionStep(lambda items, tokens: torch.tensor([0.0, 5.0, 1.0]).expand(len(items), 3), n=2)
    >>> sample(step, stop=1, n_samples=2, max_length=4, top_p=0.5).tokens[:, :, 0].tolist()
    [[1, 1], [1, 1]]
    """
    k, longest = check_whole("n_samples", n_samples), check_whole("max_length", max_length)
    if top_k is not None:
        check_whole("top_k", top_k)
    if not temperature > 0 or not 0 < top_p <= 1:
        raise ConfigError(f"temperature={temperature!r} must be positive and top_p={top_p!r} in (0, 1].")
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
        if constraint is not None:
            mask = constraint(tokens[live, :t], item[live]).to(device)
            stuck = ~mask.any(dim=-1)
            logp[live[stuck]] = -torch.inf
            logits = logits.masked_fill(~(mask | stuck[:, None]), -torch.inf)
        else:
            stuck = torch.zeros(len(live), dtype=torch.bool, device=device)
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
    if rescore is not None:
        scores = scores + torch.as_tensor(rescore(tokens, item), dtype=scores.dtype, device=device)
    finished = (tokens == stop).any(dim=1)
    flat = (lengths, logp, scores, finished, torch.zeros_like(lengths))
    found = Hypotheses(tokens.reshape(n, k, -1), *(x.reshape(n, k) for x in flat))
    return sort(found)
