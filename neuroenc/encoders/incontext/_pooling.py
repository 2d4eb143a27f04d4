"""A prior over components, signal and noise for the voxels at hand, from all of them together."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from neuroenc.encoders.incontext._anchor import gaussian_grid, grid_points
from neuroenc.encoders.incontext._fast import FastReader
from neuroenc.encoders.incontext._model import InContextModel, complete

__all__ = ["pooled_prior", "voxel_posteriors"]

# Few: stopped early, the prior stays smooth. Chosen on subjects of the shipped model's training worlds.
_ITERATIONS = 3
# The learned prior counts as much as this many voxels.
_STRENGTH = 5.0
_NARROWEST = 0.05  # standard deviation of a logarithm


def pooled_prior(log_posterior: Tensor, log_prior: Tensor, *, n_iterations: int = _ITERATIONS) -> Tensor:
    r"""Logarithm of a prior over components, signal and noise, by expectation maximisation over voxels.

    .. math:: \pi_{k s \sigma} = \pi_k\, N(\ln s, \ln \sigma^2; m, S), \qquad
              \pi_k \leftarrow \frac{c\,\pi^0_k + \sum_v p_{vk}}{c + V}

    and :math:`m, S` likewise from :math:`p_v`, the learned prior counting as :math:`c` voxels. Few trials of one voxel
    say little about its noise level or its kind; those of all voxels of a subject together say a lot. Iterations stop
    early, which keeps the prior smooth.

    Parameters
    ----------
    log_posterior : Tensor (voxel, component, signal, noise)
        Under the learned prior; see `ClosedFormAnchor.log_posterior`.
    log_prior : Tensor (component, signal, noise)
        The learned prior, not normalised.

    Returns
    -------
    Tensor (component, signal, noise)
        Normalised.

    Examples
    --------
    >>> import torch
    >>> evidence = torch.zeros(500, 2, 9, 12)
    >>> evidence[:, 1] = 3.0
    >>> found = pooled_prior(evidence, torch.zeros(2, 9, 12)).exp()
    >>> bool(found[1].sum() > 0.95), round(float(found.sum()), 6)
    (True, 1.0)
    """
    points = grid_points().to(log_prior.device).flatten(0, 1)
    prior = log_prior.double().flatten(1)
    likelihood = log_posterior.double().flatten(2) - prior
    start = prior.flatten().softmax(0).view_as(prior)
    share0, level0 = start.sum(1), start.sum(0)
    mean0 = level0 @ points
    around0 = points - mean0
    cov0 = (around0 * level0[:, None]).T @ around0
    share, mean, cov = share0, mean0, cov0
    floor = _NARROWEST**2 * torch.eye(2, dtype=cov.dtype, device=cov.device)
    for _ in range(n_iterations):
        current = share.log()[:, None] + gaussian_grid(mean, cov).flatten()
        p = (likelihood + current).flatten(1).softmax(1).view_as(likelihood)
        total = len(p) + _STRENGTH
        share = (_STRENGTH * share0 + p.sum((0, 2))) / total
        level = p.sum((0, 1))
        mean = (level @ points + _STRENGTH * mean0) / total
        around = points - mean
        drift = torch.outer(mean0 - mean, mean0 - mean)
        cov = ((around * level[:, None]).T @ around + _STRENGTH * (cov0 + drift)) / total + floor
    return (share.log()[:, None] + gaussian_grid(mean, cov).flatten()).view_as(log_prior)


def voxel_posteriors(
    model: InContextModel, x: Tensor, Y: np.ndarray, log_weight: Tensor | None, *, size: int, half: bool
) -> tuple[Tensor, Tensor]:
    """``ClosedFormAnchor.log_posterior`` and first registers of the voxels of ``Y`` (support, voxel).

    ``size`` voxels are read at a time.
    """
    assert model.anchor is not None
    scores, registers = [], []
    read = FastReader(model, half)
    with torch.inference_mode():
        for part in torch.as_tensor(Y.T.copy(), dtype=torch.float32, device=x.device).split(size):
            z = read.read(x, part, log_weight)
            y, weight = complete(x, part, log_weight)
            scores.append(model.anchor.log_posterior(z, model.anchor.moments(x, y, weight)))
            registers.append(z.float())
    return torch.cat(scores), torch.cat(registers)
