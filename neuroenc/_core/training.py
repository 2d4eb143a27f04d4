"""The training loop of small torch models: Adam with a cosine to zero, resumed after a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from neuroenc._core.checkpoints import Checkpoint
from neuroenc._core.progress import progress

#: Seconds between two states that a killed run can go on from.
EVERY = 20.0


def train(
    model: nn.Module,
    loss: Callable[[np.ndarray], torch.Tensor],
    n: int,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    soup: int = 1,
    checkpoint: Checkpoint | None = None,
    before: Callable[[int], np.ndarray | None] = lambda epoch: None,
    show: bool = True,
    desc: str = "training",
) -> None:
    """Adam with a cosine to zero over ``epochs`` passes of ``n`` rows; a run that was killed goes on.

    Parameters
    ----------
    loss : callable
        Of the rows of one batch.
    soup : int
        The model ends as the mean of its weights after the last so many epochs.
    before : callable
        Called with its number before each epoch; it may give the order of the rows.
    """
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    batches = math.ceil(n / batch_size)
    begin, mean = 0, {}
    found = None if checkpoint is None else checkpoint.resume(model, optimiser, "cpu")
    if found is not None:
        begin, mean = int(found[0]["epoch"]), dict(found[1])
    saved = time.monotonic()
    model.train()
    with progress(desc=desc, total=epochs * batches, show=show, unit="batch") as bar, torch.random.fork_rng(devices=[]):
        bar.update(begin * batches)
        for epoch in range(begin, epochs):
            # Of seed and epoch alone, so that a run that goes on draws what it would have drawn.
            torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
            asked = before(epoch)
            order = np.random.default_rng([seed, epoch]).permutation(n) if asked is None else asked
            for number, first in enumerate(range(0, n, batch_size)):
                done = (epoch * batches + number) / (epochs * batches)
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * done))
                optimiser.zero_grad(set_to_none=True)
                loss(order[first : first + batch_size]).backward()
                optimiser.step()
                bar.update(1)
            if epoch >= epochs - soup:
                state = {k: v.detach() / soup for k, v in model.state_dict().items()}
                mean = {k: mean[k] + v if k in mean else v.clone() for k, v in state.items()}
            if checkpoint is not None and time.monotonic() - saved >= EVERY and epoch + 1 < epochs:
                saved = time.monotonic()
                checkpoint.save(model, optimiser, {"epoch": epoch + 1}, mean)
    if soup > 1:
        model.load_state_dict(mean)
    model.eval()
