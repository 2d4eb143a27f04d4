"""Weight vectors like those of fitted encoders, made from images alone: what a denoiser learns to be asked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["WeightPrior", "draw_images", "synthetic_weights"]

_POOL = 1024  # images among which the neighbours of a concept are found


class WeightPrior:
    r"""Ridge solutions of voxels that like up to three concepts of a bank.

    .. math:: w \propto (C + \alpha I)^{-1} \Bigl( \sum_{j \le J} a_j (c_j - u \bar m) + \epsilon \Bigr),
        \qquad \epsilon \sim N(0, s^2 C)

    C is the covariance of the unit-norm images, c_j the average of the neighbourhood of a random image at a random
    temperature, J is 1 to 3, the last of three is disliked half of the time, alpha runs over four decades around the
    mean eigenvalue of C: a ridge fit of noisy responses to those concepts.

    Parameters
    ----------
    directions : Tensor (n, d)
        Unit-norm images.
    weights : Tensor (m, d), optional
        Weights of real voxels, without labels; half of what is drawn are these, slightly changed.
    """

    def __init__(self, directions: Tensor, weights: Tensor | None = None) -> None:
        self.directions = directions
        self.weights = weights
        self.mean = directions.mean(dim=0)
        centred = (directions - self.mean).double()
        values, vectors = torch.linalg.eigh((centred.T @ centred / len(directions)).cpu())
        self.values = values.clamp(min=0).float().to(directions.device)
        self.vectors = vectors.float().to(directions.device)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Unit-norm weights (n, d)."""
        device, total = self.directions.device, len(self.directions)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator).to(device)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        pool = self.directions[torch.randperm(total, generator=generator)[:_POOL].to(device)]
        at = torch.randint(total, (n * 3,), generator=generator).to(device)
        spread = (math.log(0.02) + uniform(n * 3, 1) * math.log(15)).exp()
        concepts = (torch.softmax(self.directions[at] @ pool.T / spread, dim=1) @ pool).view(n, 3, -1)
        amount = 0.3 + 0.7 * uniform(n, 3)
        number = torch.randint(1, 4, (n, 1), generator=generator).to(device)
        amount = amount * (torch.arange(3, device=device) < number)
        amount[:, 2] *= torch.where(uniform(n) < 0.5, -1.0, 1.0)
        centre = (0.5 + 0.5 * uniform(n, 1, 1)) * self.mean
        target = ((concepts - centre) * amount[:, :, None]).sum(dim=1) @ self.vectors
        noise = normal(*target.shape) * self.values.sqrt()
        noise = noise * (uniform(n, 1) * target.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True))
        alpha = self.values.mean() * (10 ** (4 * uniform(n, 1) - 2))
        w = ((target + noise) / (self.values + alpha)) @ self.vectors.T
        w = w / w.norm(dim=1, keepdim=True)
        if self.weights is not None:
            own = self.weights[torch.randint(len(self.weights), (n,), generator=generator).to(device)]
            own = own + 0.1 * normal(*own.shape) / math.sqrt(own.shape[1])
            own = own / own.norm(dim=1, keepdim=True)
            w = torch.where(uniform(n, 1) < 0.5, own, w)
        return w


def draw_images(weights: Tensor, images: Tensor, temperature: Tensor, generator: torch.Generator) -> Tensor:
    """One image (its row, int64 (n,)) for each of the unit-norm weights, from ``softmax(w . m / temperature)``."""
    # Gumbel's maximum: one pass, and no sums of exponentials that underflow at low temperatures.
    noise = torch.rand(len(weights), len(images), generator=generator).to(images.device)
    logits = weights @ images.T / temperature[:, None]
    return (logits - torch.log(-torch.log(noise.clamp(1e-12, 1 - 1e-7)))).argmax(dim=1)


def synthetic_weights(bank: Any, n: int, seed: int = 0) -> np.ndarray:
    """Unit-norm weights (n, d) of :class:`WeightPrior` for the images of a bank in memory.

    Examples
    --------
    >>> found = synthetic_weights(np.eye(4), 3)
    >>> found.shape, np.linalg.norm(found, axis=1).round(3).tolist()
    ((3, 4), [1.0, 1.0, 1.0])
    """
    rows = torch.from_numpy(np.array(bank, dtype=np.float32))
    prior = WeightPrior(rows / rows.norm(dim=1, keepdim=True))
    return prior.draw(n, torch.Generator().manual_seed(seed)).numpy()
