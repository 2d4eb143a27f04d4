"""Gradient descent of the networks that are trained on captions and images."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from neuroenc._core.errors import DataError
from neuroenc._core.progress import progress as bar_of

_WARMUP = 100


def take_step(loss: Tensor, optimiser: torch.optim.Optimizer, number: int, clip: float | None = 1.0) -> float:
    """One step of the optimiser down ``loss``, with the gradient's norm at most ``clip``; the loss as a number."""
    if not torch.isfinite(loss):
        raise DataError(f"the loss is {float(loss)} at step {number}. Next step: a lower lr, or clip=1.")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], clip)
    optimiser.step()
    return float(loss.detach())


def descend(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
    decay: Callable[[float], float],
    *,
    steps: int,
    minutes: float | None,
    desc: str,
    show: bool,
) -> dict[str, Any]:
    """Train ``net`` in place, with a short warm-up.

    Parameters
    ----------
    optimiser : Optimizer
        Its learning rate is the highest one.
    loss : callable
        Of a batch that it draws.
    decay : callable
        Share of the learning rate by the share of the steps (or of the time) that is over.
    minutes : float, optional
        Time limit.
    desc, show
        Of the progress bar.

    Returns
    -------
    dict
        ``losses`` (of each step), ``steps``, ``ended_by`` ("steps" or "minutes"), ``seconds``.
    """
    losses: list[float] = []
    began, ended_by, lr = time.monotonic(), "steps", optimiser.defaults["lr"]
    net.train()
    for step in bar_of(range(steps), desc=desc, show=show):
        spent = 0.0 if minutes is None else (time.monotonic() - began) / (60 * minutes)
        if spent >= 1:
            ended_by = "minutes"
            break
        for group in optimiser.param_groups:
            group["lr"] = lr * (min(1.0, (step + 1) / _WARMUP) * decay(max(step / steps, spent)))
        losses.append(take_step(loss(), optimiser, step))
    net.eval()
    return {"losses": losses, "steps": len(losses), "ended_by": ended_by, "seconds": time.monotonic() - began}
