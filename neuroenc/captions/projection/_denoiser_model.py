"""Networks and priors of the diffusion prior."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

#: ``denoise(x, t) -> x0``: the clean embedding that is expected behind noisy rows x at time t (n,).
Denoise = Callable[[Tensor, Tensor], Tensor]


def alpha_sigma(t: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise of the cosine schedule at times t in [0, 1]: ``x_t = alpha x_0 + sigma eps``."""
    return torch.cos(0.5 * math.pi * t), torch.sin(0.5 * math.pi * t)


def _angles(t: Tensor, width: int) -> Tensor:
    half = torch.exp(-math.log(1e4) * torch.arange(width // 2, device=t.device) / (width // 2))
    angle = 1e3 * t[:, None] * half
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class _Block(nn.Module):
    """Residual MLP whose normalised input is scaled and shifted, and whose output is gated, by the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        # Every block begins as the identity.
        nn.init.zeros_(self.condition.weight)
        nn.init.zeros_(self.condition.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift, gate = self.condition(c).chunk(3, dim=1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class DenoiserNet(nn.Module):
    """Two towers: one reads the weights and the temperature, the other takes noise out of an embedding.

    The output is v, with ``x_0 = alpha x - sigma v``: well scaled from pure noise to none.
    """

    def __init__(self, dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.width = width
        self.context = nn.Sequential(
            nn.Linear(dim + 1, 2 * width), nn.SiLU(), nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.nothing = nn.Parameter(torch.zeros(width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))

    def read(self, weights: Tensor, temperature: Tensor) -> Tensor:
        """What the first tower makes of unit-norm weights (n, d) and temperatures (n,)."""
        sharpness = torch.log(temperature * 150.0)[:, None]
        return self.context(torch.cat([weights * math.sqrt(weights.shape[1]), sharpness], dim=1))

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        c = nn.functional.silu(context + self.time(_angles(t, self.width)))
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, c)
        return self.leave(h)

    def clean(self, x: Tensor, t: Tensor, context: Tensor, guidance: float = 1.0) -> Tensor:
        """Expected x_0, with classifier-free guidance where ``guidance`` is not 1."""
        v = self(x, t, context)
        if guidance != 1.0:
            free = self(x, t, self.nothing.expand_as(context))
            v = free + guidance * (v - free)
        alpha, sigma = alpha_sigma(t)
        return alpha[:, None] * x - sigma[:, None] * v


class ExactDenoiser:
    r"""Posterior mean of the clean embedding over given images, for weights that tilt their probabilities.

    .. math:: E[x_0 \mid x_t, w] = \sum_k p_k z_k, \qquad
        p_k \propto \exp\Bigl(-\frac{\|x_t - \alpha z_k\|^2}{2 \sigma^2} + g \frac{w \cdot m_k}{\tau}\Bigr)

    with normalised images z_k. Without x_t (t = 1) and with g = 1 it is the softmax projection. It is the denoiser to
    which a network with enough capacity converges, and it gives back the images themselves.

    Parameters
    ----------
    directions, scaled : Tensor (n, d)
        Unit-norm images m, and what the normaliser makes of them, z.
    chunk : int
        Images that are compared at a time.
    """

    def __init__(self, directions: Tensor, scaled: Tensor, chunk: int = 8192) -> None:
        self.values = torch.cat([scaled, directions], dim=1)
        self.size = scaled.square().sum(dim=1)
        self.chunk = chunk

    def clean(self, x: Tensor, t: Tensor, weights: Tensor, temperature: Tensor, guidance: float = 1.0) -> Tensor:
        """Expected x_0 (n, d)."""
        alpha, sigma = alpha_sigma(t)
        near, width = alpha / sigma.square(), x.shape[1]
        query = torch.cat([x * near[:, None], weights * (guidance / temperature)[:, None]], dim=1)
        best = torch.full_like(t, -torch.inf)
        total, mean = torch.zeros_like(t), torch.zeros_like(x)
        for a in range(0, len(self.values), self.chunk):
            part = self.values[a : a + self.chunk]
            logits = query @ part.T - (0.5 * alpha * near)[:, None] * self.size[a : a + self.chunk]
            new = torch.maximum(best, logits.amax(dim=1))
            p, keep = torch.exp(logits - new[:, None]), torch.exp(best - new)
            total = keep * total + p.sum(dim=1)
            mean = keep[:, None] * mean + p @ part[:, :width]
            best = new
        return mean / total[:, None]


def ddim(denoise: Denoise, noise: Tensor, n_steps: int) -> Tensor:
    """Clean rows (n, d) from noise by deterministic DDIM (Song et al., 2021), at equal steps of time from 1 to 0."""
    x = noise
    # Settings of a step are numbers of double precision, whatever the device knows.
    times = torch.linspace(1.0, 0.0, n_steps + 1, dtype=torch.float64)
    for now, then in itertools.pairwise(times):
        clean = denoise(x, torch.full((len(x),), float(now), device=x.device))
        (alpha, sigma), (alpha_then, sigma_then) = alpha_sigma(now), alpha_sigma(then)
        eps = (x - float(alpha) * clean) / float(sigma)
        x = float(alpha_then) * clean + float(sigma_then) * eps
    return x


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
    """

    def __init__(self, directions: Tensor) -> None:
        self.directions = directions
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
        return w / w.norm(dim=1, keepdim=True)


def draw_images(weights: Tensor, images: Tensor, temperature: Tensor, generator: torch.Generator) -> Tensor:
    """One image (its row, int64 (n,)) for each of the unit-norm weights, from ``softmax(w . m / temperature)``."""
    # Gumbel's maximum: one pass, and no sums of exponentials that underflow at low temperatures.
    noise = torch.rand(len(weights), len(images), generator=generator).to(images.device)
    logits = weights @ images.T / temperature[:, None]
    return (logits - torch.log(-torch.log(noise.clamp(1e-12, 1 - 1e-7)))).argmax(dim=1)
