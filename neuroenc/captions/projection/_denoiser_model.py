"""Networks, priors and checks of the diffusion prior."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neuroenc._core.checks import make_rng
from neuroenc._core.errors import DataError
from neuroenc.captions.projection._manifold import chord, gather_rows
from neuroenc.retrieval import as_bank, top_k

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


def ddim(
    denoise: Denoise, noise: Tensor, n_steps: int, eta: float = 0.0, more: Callable[[], Tensor] | None = None
) -> Tensor:
    """Clean rows from noise by DDIM (Song et al., 2021), at equal steps of time from 1 to 0.

    Parameters
    ----------
    denoise : callable
    noise : Tensor (n, d)
    n_steps : int
    eta : float
        0 is deterministic; 1 adds as much noise in each step as ancestral sampling does, from ``more``.
    more : callable, optional
        Gives noise like ``noise``; needed with eta.

    Returns
    -------
    Tensor (n, d)
    """
    x = noise
    # Settings of a step are numbers of double precision, whatever the device knows.
    times = torch.linspace(1.0, 0.0, n_steps + 1, dtype=torch.float64)
    for now, then in itertools.pairwise(times):
        clean = denoise(x, torch.full((len(x),), float(now), device=x.device))
        (alpha, sigma), (alpha_then, sigma_then) = alpha_sigma(now), alpha_sigma(then)
        eps = (x - float(alpha) * clean) / float(sigma)
        extra = 0.0
        if eta and more is not None and then > 0:
            extra = float(eta * sigma_then / sigma * (1 - (alpha / alpha_then) ** 2).clamp(min=0).sqrt())
        x = float(alpha_then) * clean + math.sqrt(max(float(sigma_then) ** 2 - extra**2, 0.0)) * eps
        if extra and more is not None:
            x = x + extra * more()
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


def copying(
    samples: Any, train: Any, held_out: Any, *, seed: int = 0, max_memory: str | int | None = None
) -> dict[str, float]:
    r"""Memorisation check: are samples nearer to the denoiser's training images than to others?

    Distances are :math:`\min_k \|x - m_k\|` of unit vectors, to sets of equal size: as many training images, drawn at
    random, as there are held-out ones. A denoiser that learned the distribution is as near to both; one that keeps its
    images is at distance 0 of one of them.

    Parameters
    ----------
    samples : array (n, d)
    train, held_out : see :func:`neuroenc.retrieval.as_bank`
        Images that were fitted, and images that were not.
    seed : int
        Of the sample of training images.
    max_memory : str, int or None

    Returns
    -------
    dict
        ``to_train, to_held_out``: median distance of a draw to the sets of equal size; ``nearer_to_train``: share of
        draws that are nearer to the training set's (0.5: no copying); ``to_all_train``: median distance to all training
        images, beside ``held_out_to_all_train``, that of held-out images; ``copies``: share of draws within a tenth of
        the latter.

    Raises
    ------
    DataError
        Fewer training images than held-out ones, streams, or what the search refuses.

    References
    ----------
    Meehan, Chaudhuri, Dasgupta. A non-parametric test to detect data-copying in generative models. AISTATS 2020.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> images = rng.standard_normal((600, 8))
    >>> copying(images[:200], images[:400], images[400:])["copies"]
    1.0
    """
    x = np.asarray(samples, dtype=np.float64)
    fitted, others = (as_bank(bank).again("each bank is read several times") for bank in (train, held_out))
    n_fitted, n_others = int(fitted.n or 0), int(others.n or 0)
    if n_fitted < n_others:
        raise DataError(f"{n_fitted} training and {n_others} held-out images; legal: at least as many training ones.")
    at = np.sort(make_rng(seed).choice(n_fitted, n_others, replace=False))
    equal = as_bank(gather_rows(fitted, at, max_memory))

    def distance(rows: np.ndarray, bank: Any) -> np.ndarray:
        return chord(top_k(rows, bank, 1, max_memory=max_memory)[0][:, 0])

    to_train, to_held_out, to_all = distance(x, equal), distance(x, others), distance(x, fitted)
    unseen = gather_rows(others, np.arange(n_others), max_memory)
    natural = float(np.median(distance(unseen, fitted)))
    nearer = np.mean(np.where(to_train == to_held_out, 0.5, to_train < to_held_out))
    return {
        "to_train": float(np.median(to_train)),
        "to_held_out": float(np.median(to_held_out)),
        "nearer_to_train": float(nearer),
        "to_all_train": float(np.median(to_all)),
        "held_out_to_all_train": natural,
        "copies": float(np.mean(to_all < 0.1 * natural)),
    }


def contrastive_accuracy(predicted: Any, truth: Any) -> float:
    r"""Contrastive accuracy: share of other targets that are farther from a prediction than its own.

    .. math:: \frac{1}{n (n - 1)} \sum_i \sum_{j \ne i} [\|p_i - x_j\| > \|p_i - x_i\|]

    Parameters
    ----------
    predicted, truth : array (n, d)

    Returns
    -------
    float
        Chance is 0.5; equal distances count half.

    References
    ----------
    LCM team et al. Large Concept Models: language modeling in a sentence representation space. 2024.

    Examples
    --------
    >>> contrastive_accuracy(np.eye(3), np.eye(3)), contrastive_accuracy(np.eye(3)[[1, 2, 0]], np.eye(3))
    (1.0, 0.25)
    """
    p, x = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if p.ndim != 2 or p.shape != x.shape or len(p) < 2:
        raise DataError(f"predictions of shape {p.shape} and truths of {x.shape}; legal are two of one (n, d), n > 1.")
    squared = (x**2).sum(axis=1) - 2 * p @ x.T
    own = np.diag(squared)[:, None]
    wins = np.where(np.isclose(squared, own, rtol=0, atol=1e-12), 0.5, squared > own)
    np.fill_diagonal(wins, 0.0)
    return float(wins.sum() / (len(p) * (len(p) - 1)))
