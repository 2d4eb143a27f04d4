"""A prior over components, signal and noise for the voxels at hand, from all of them together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from neuroenc.encoders.incontext._model import InContextModel, complete

__all__ = ["pooled_prior", "pooling", "voxel_posteriors"]

_ITERATIONS = 15
# The learned prior counts as much as this many voxels.
_STRENGTH = 5.0


def pooled_prior(log_posterior: Tensor, log_prior: Tensor, *, n_iterations: int = _ITERATIONS) -> Tensor:
    r"""Logarithm of a prior over the grid, by expectation maximisation over voxels.

    .. math:: \pi_j \leftarrow \frac{c\,\pi^0_j + \sum_v p_{vj}}{c + V}, \qquad
              p_{vj} \propto \pi_j\, e^{a_{vj}} / \pi^0_j

    Few trials of one voxel say little about its noise level or its kind; those of all voxels of a subject together say
    a lot. Iterations are few: they are what keeps the prior smooth.

    Parameters
    ----------
    log_posterior : Tensor (voxel, ...)
        :math:`a_v`, under the learned prior; see `ClosedFormAnchor.log_posterior`.
    log_prior : Tensor (...)
        The learned prior, not normalised.

    Returns
    -------
    Tensor (...)
        Normalised.

    Examples
    --------
    >>> import torch
    >>> found = pooled_prior(torch.tensor([[0.0, 3.0]]).repeat(500, 1), torch.zeros(2))
    >>> bool(found.exp()[1] > 0.95), round(float(found.exp().sum()), 6)
    (True, 1.0)
    """
    start = log_prior.flatten().double().log_softmax(0)
    likelihood = log_posterior.flatten(1).double() - log_prior.flatten().double()
    current = start
    for _ in range(n_iterations):
        mean = (likelihood + current).softmax(1).sum(0)
        current = ((_STRENGTH * start.exp() + mean) / (_STRENGTH + len(likelihood))).log()
    return current.view_as(log_prior)


def voxel_posteriors(
    model: InContextModel, x: Tensor, Y: np.ndarray, log_weight: Tensor | None, *, size: int, half: bool
) -> Tensor:
    """``ClosedFormAnchor.log_posterior`` of the voxels of ``Y`` (support, voxel), ``size`` at a time."""
    assert model.anchor is not None
    found = []
    cast = torch.autocast(x.device.type, dtype=torch.bfloat16) if half else nullcontext()
    with torch.inference_mode(), cast:
        for part in torch.as_tensor(Y.T.copy(), dtype=torch.float32, device=x.device).split(size):
            y, weight = complete(x, part, log_weight)
            z, _ = model.read(x, y, weight)
            found.append(model.anchor.log_posterior(z[:, 0], x, y, weight))
    return torch.cat(found)


@contextmanager
def pooling(model: InContextModel, log_prior: Tensor | None) -> Iterator[None]:
    """The model uses ``log_prior`` instead of its learned prior inside the block."""
    assert model.anchor is not None or log_prior is None
    if model.anchor is not None:
        model.anchor.pooled = log_prior
    try:
        yield
    finally:
        if model.anchor is not None:
            model.anchor.pooled = None
