"""A task as the mean of what heads give, laid softly into other runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from neuroenc.attention._tap import HeadTap, attentions

__all__ = ["TaskEmbedding"]


class TaskEmbedding:
    r"""Mean head outputs of a task, and how far to move each head of a new run towards them.

    .. math:: z_{lh} \leftarrow (1 - \alpha_{lh})\, z_{lh} + \alpha_{lh}\, t_{lh}, \qquad
              \alpha_{lh} = \sigma(a_{lh})

    Parameters
    ----------
    vectors : list over layers of Tensor (head, dim / heads)
        :math:`t`, from `collect`.
    rows : slice
        Queries that were averaged, and into which it is laid.

    Attributes
    ----------
    logit : Tensor (layer, head)
        :math:`a`; 0 until `fit_alpha`.

    References
    ----------
    Park et al. (2025), Soft injection of task embeddings outperforms prompt-based in-context learning,
    arXiv:2507.20906.

    Examples
    --------
    >>> from neuroenc.attention import Attention
    >>> model, x, y = Attention(8, 2).eval(), torch.randn(4, 6, 8), torch.randn(4, 1, 8)
    >>> task = TaskEmbedding.collect(model, [lambda m: m(x)], rows=slice(0, 1))
    >>> losses = task.fit_alpha(model, lambda m: (m(x[:, :2])[0][:, :1] - y).square().mean(), steps=20)
    >>> bool(losses[-1] < losses[0]), task.alpha.shape
    (True, (1, 2))
    """

    def __init__(self, vectors: list[Tensor], rows: slice = slice(0, 1)) -> None:
        self.vectors, self.rows = vectors, rows
        most = max(len(v) for v in vectors)
        self.logit = torch.zeros(len(vectors), most)

    @classmethod
    def collect(
        cls, model: nn.Module, runs: Iterable[Callable[[Any], Any]], rows: slice = slice(0, 1)
    ) -> TaskEmbedding:
        """Mean over runs (``run(model)`` each), their calls, cases and ``rows``; every case counts the same."""
        count = len(attentions(model))
        sums: list[Tensor | None] = [None] * count
        seen = [0] * count
        with HeadTap(model) as tap, torch.no_grad():
            for run in runs:
                tap.record()
                run(model)
                for layer, calls in enumerate(tap.recorded().outputs):
                    for z in calls:
                        part = z[:, :, rows]
                        total = part.double().sum((0, 2))
                        before = sums[layer]
                        sums[layer] = total if before is None else before + total
                        seen[layer] += part.shape[0] * part.shape[2]
        if not all(seen):
            raise ValueError(f"layers ran over {seen} queries; legal: at least one each. Give runs that reach them.")
        return cls([(s / n).float() for s, n in zip(sums, seen) if s is not None], rows)

    @property
    def alpha(self) -> xr.DataArray:
        """Shares (layer, head)."""
        share = self.logit.sigmoid().numpy()
        coords = {"layer": np.arange(share.shape[0]), "head": np.arange(share.shape[1])}
        return xr.DataArray(share, coords, ("layer", "head"), "alpha")

    def fit_alpha(
        self, model: nn.Module, loss_fn: Callable[[Any], Tensor], steps: int = 400, lr: float = 0.2
    ) -> np.ndarray:
        """Fit shares with Adam, the model frozen; ``loss_fn(model)`` -> Tensor. Returns the losses (step,)."""
        logit = self.logit.clone().requires_grad_()
        optimiser = torch.optim.Adam([logit], lr=lr)
        losses = np.zeros(steps)
        for step in range(steps):
            with HeadTap(model) as tap:
                tap.mix(logit.sigmoid(), self.vectors, self.rows)
                loss = loss_fn(model)
            (logit.grad,) = torch.autograd.grad(loss, [logit])
            optimiser.step()
            losses[step] = float(loss.detach())
        self.logit = logit.detach()
        return losses

    @contextmanager
    def inject(self, model: nn.Module) -> Iterator[HeadTap]:
        """Inside, every run of the model has the task laid in."""
        with HeadTap(model) as tap:
            tap.mix(self.logit.sigmoid(), self.vectors, self.rows)
            yield tap
