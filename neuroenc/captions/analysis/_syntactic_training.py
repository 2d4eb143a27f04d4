"""Training a masked language model of captions, and its perplexity."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from neuroenc._core.progress import progress as bar_of
from neuroenc.captions.analysis._syntactic_model import StructuredLM
from neuroenc.captions.analysis._syntactic_texts import MASK, PADDING

__all__ = ["hide", "masked_perplexity", "padded", "train_masked"]

_WARMUP = 100


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of token numbers as one (row, longest) tensor.

    >>> padded([[3, 4], [5]])
    tensor([[3, 4],
            [5, 0]])
    """
    out = torch.full((len(rows), max(map(len, rows), default=0)), PADDING)
    for k, row in enumerate(rows):
        out[k, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return out


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


def train_masked(
    net: StructuredLM,
    rows: Sequence[Sequence[int]],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    mask_share: float,
    minutes: float | None,
    seed: int,
    show: bool,
    desc: str = "masked words",
) -> dict[str, Any]:
    """Train ``net`` in place with AdamW, a short warm-up and a linear decay.

    Parameters
    ----------
    net : StructuredLM
    rows : sequence of token numbers
    steps, batch_size, lr, mask_share, minutes, seed, show
        As in :meth:`SyntacticDistanceParser.fit`.
    desc : str
        Of the progress bar.

    Returns
    -------
    dict
        ``losses`` (nats a hidden word, of each step), ``steps``, ``ended_by``, ``seconds``.
    """
    generator = torch.Generator().manual_seed(seed)
    device = net.bias.device
    tokens = padded(rows)
    lengths = (tokens != PADDING).sum(dim=1)
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    losses: list[float] = []
    began, ended_by = time.monotonic(), "steps"
    net.train()
    # Dropout draws from torch's own generator: the caller's state is left as it was.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for step in bar_of(range(steps), desc=desc, show=show):
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                ended_by = "minutes"
                break
            rate = lr * min(1.0, (step + 1) / _WARMUP) * max(0.02, 1 - step / steps)
            for group in optimiser.param_groups:
                group["lr"] = rate
            drawn = torch.randint(0, len(tokens), (batch_size,), generator=generator)
            batch = tokens[drawn, : int(lengths[drawn].max())]
            shown, hidden = hide(batch, mask_share, generator)
            at = hidden.to(device)
            loss = F.cross_entropy(net(shown.to(device), at), batch.to(device)[at])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            losses.append(float(loss.detach()))
    net.eval()
    return {"losses": losses, "steps": len(losses), "ended_by": ended_by, "seconds": time.monotonic() - began}
