"""Training a denoiser from images alone."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from neuroenc._core.progress import progress as bar_of
from neuroenc.captions.projection._denoiser_conditions import WeightPrior, draw_images
from neuroenc.captions.projection._denoiser_model import DenoiserNet, alpha_sigma

__all__ = ["train_denoiser"]

_WARMUP = 100


def train_denoiser(
    net: DenoiserNet,
    directions: Tensor,
    scaled: Tensor,
    *,
    weights: Tensor | None,
    temperatures: tuple[float, float],
    regression: bool,
    steps: int,
    batch_size: int,
    lr: float,
    drop: float,
    ema: float,
    pool: int,
    minutes: float | None,
    seed: int,
    show: bool,
) -> dict[str, Any]:
    """Train ``net`` in place; its final parameters are an exponential average over steps.

    Parameters
    ----------
    net : DenoiserNet
    directions, scaled : Tensor (n, d)
    weights : Tensor (m, d), optional
    temperatures : (float, float)
        Range, log-uniform.
    regression : bool
        Predict the image from the condition alone.
    steps, batch_size, lr, drop, ema, pool, minutes, seed, show
        As in :meth:`ConceptDenoiser.fit`.

    Returns
    -------
    dict
        ``losses`` (of each step), ``steps``, ``ended_by``, ``seconds``.
    """
    generator = torch.Generator().manual_seed(seed)
    device = directions.device
    prior = WeightPrior(directions, weights)
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.99))
    average = {k: v.detach().clone() for k, v in net.state_dict().items()}
    low, high = (math.log(x) for x in temperatures)
    losses: list[float] = []
    began, ended_by = time.monotonic(), "steps"
    net.train()
    for step in bar_of(range(steps), desc="denoiser", show=show):
        done = step / steps
        if minutes is not None:
            spent = (time.monotonic() - began) / (60 * minutes)
            if spent >= 1:
                ended_by = "minutes"
                break
            done = max(done, spent)
        rate = min(1.0, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimiser.param_groups:
            group["lr"] = lr * rate
        with torch.no_grad():
            w = prior.draw(batch_size, generator)
            tau = torch.exp(low + (high - low) * torch.rand(batch_size, generator=generator)).to(device)
            some = torch.arange(len(directions), device=device)
            if len(some) > pool:
                some = torch.randperm(len(some), generator=generator)[:pool].to(device)
            target = scaled[some[draw_images(w, directions[some], tau, generator)]]
            noise = torch.randn(target.shape, generator=generator).to(device)
            t = torch.rand(batch_size, generator=generator).to(device)
            dropped = (torch.rand(batch_size, 1, generator=generator) < drop).to(device)
        context = net.read(w, tau)
        if regression:
            clean = -net(torch.zeros_like(target), torch.ones_like(t), context)
            loss = (clean - target).square().mean()
        else:
            context = torch.where(dropped, net.nothing, context)
            alpha, sigma = (a[:, None] for a in alpha_sigma(t))
            v = net(alpha * target + sigma * noise, t, context)
            loss = (v - (alpha * noise - sigma * target)).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        # The average begins short, so that the first weights are soon forgotten.
        keep = min(ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in net.state_dict().items():
                average[name].lerp_(value, 1 - keep)
        losses.append(float(loss.detach()))
    net.load_state_dict(average)
    net.eval()
    return {"losses": losses, "steps": len(losses), "ended_by": ended_by, "seconds": time.monotonic() - began}
