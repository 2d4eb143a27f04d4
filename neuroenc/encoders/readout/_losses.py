"""Losses of readouts: sums over voxels of means over the images that each voxel's subject saw."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError

#: Below this, log(softplus(x)) is x to float64 precision, while softplus itself would underflow in float32.
_LINEAR_BELOW = -40.0


class Loss:
    r"""Loss of predictions ``p`` (B, V) against targets ``t`` (B, V) in which NaN means "not seen".

    .. math:: L = \sum_v \frac{1}{n_v} \sum_{b\,seen} \ell(p_{bv}, t_{bv})

    with ``n_v`` the number of images that voxel v saw in the whole step of the optimiser. Summing over voxels
    leaves every voxel's gradient what it would be alone, so that one learning rate fits any number of voxels.

    Built by `make_loss`, which lists the names.
    """

    def __init__(self, name: str, terms: tuple[Callable[..., Tensor], ...]) -> None:
        self.name = name
        self._terms = terms

    @property
    def counts(self) -> bool:
        """Whether predictions are rates, kept positive by softplus."""
        return self.name == "poisson"

    def __call__(self, pred: Tensor, target: Tensor, count: Tensor | None = None) -> Tensor:
        """Loss of a batch, or of its share of a step.

        Parameters
        ----------
        pred : Tensor (B, V)
            What the readout gives (before softplus for ``"poisson"``).
        target : Tensor (B, V)
            NaN where the image was not seen.
        count : Tensor (V,), optional
            Images seen by each voxel in the whole step, where this batch is one of several that are
            accumulated. The losses of the parts then add up to the loss of the step: exactly for ``"mse"`` and
            ``"poisson"``; for concordance they add up to its average over the parts.

        Returns
        -------
        Tensor ()
        """
        if pred.shape != target.shape:
            raise DataError(f"predictions have shape {tuple(pred.shape)}, targets {tuple(target.shape)}.")
        if pred.dtype in (torch.float16, torch.bfloat16):
            pred = pred.float()
        seen = ~torch.isnan(target)
        here = seen.sum(dim=0).to(pred.dtype)
        total = here if count is None else count.to(pred.dtype)
        value = self._terms[0](pred, target, seen, here, total)
        for term in self._terms[1:]:
            value = value + term(pred, target, seen, here, total)
        return value

    def response(self, output: Tensor) -> Tensor:
        """Predicted responses of what the readout gives: softplus for rates, else the same."""
        return softplus(output) if self.counts else output

    def start(self, mean: Tensor) -> Tensor:
        """Output whose response is ``mean`` (V,)."""
        if not self.counts:
            return mean
        mean = mean.clamp(min=1e-4)
        return mean + torch.log(-torch.expm1(-mean))  # inverse of softplus, safe for large means

    def check(self, targets: np.ndarray) -> None:
        """Raise DataError where this loss has no meaning for the targets (NaN is legal)."""
        if not self.counts:
            return
        negative = np.asarray(targets) < 0
        if negative.any():
            voxels = np.flatnonzero(negative.any(axis=0))
            raise DataError(
                f"loss 'poisson' needs responses of 0 or more (spike counts, rates); {int(negative.sum())} entries in "
                f"{len(voxels)} voxels are negative (first voxel: {int(voxels[0])}). "
                "Next step: pass counts that are not z-scored, or loss='mse'."
            )

    def __repr__(self) -> str:
        return f"Loss({self.name!r})"


def _mse(pred: Tensor, target: Tensor, seen: Tensor, here: Tensor, total: Tensor) -> Tensor:
    error = torch.where(seen, pred - target, 0.0)
    return (error.square().sum(dim=0) / total.clamp(min=1)).sum()


def _poisson(pred: Tensor, target: Tensor, seen: Tensor, here: Tensor, total: Tensor) -> Tensor:
    floor = pred.clamp(min=_LINEAR_BELOW)
    log_rate = torch.where(pred > _LINEAR_BELOW, torch.log(softplus(floor)), pred)
    each = torch.where(seen, softplus(pred) - torch.where(seen, target, 0.0) * log_rate, 0.0)
    return (each.sum(dim=0) / total.clamp(min=1)).sum()


def _concordance(pred: Tensor, target: Tensor, seen: Tensor, n: Tensor, correction: int = 0) -> Tensor:
    """CCC of each column over its seen rows; 0 where fewer than two were seen or nothing varies.

    Variances are divided by n less ``correction``, the covariance by n.
    """
    n = n.clamp(min=1)
    mean_p = torch.where(seen, pred, 0.0).sum(dim=0) / n
    mean_t = torch.where(seen, target, 0.0).sum(dim=0) / n
    p = torch.where(seen, pred - mean_p, 0.0)
    t = torch.where(seen, target - mean_t, 0.0)
    squares = p.square().sum(dim=0) + t.square().sum(dim=0)
    spread = squares / (n - correction).clamp(min=1) + (mean_p - mean_t).square()
    defined = spread > 0
    return torch.where(defined, 2 * (p * t).sum(dim=0) / n / torch.where(defined, spread, 1.0), 0.0)


def _ccc(pred: Tensor, target: Tensor, seen: Tensor, here: Tensor, total: Tensor) -> Tensor:
    # A part of a step counts by its share of the images that the voxel saw in the step.
    return ((1 - _concordance(pred, target, seen, here)) * here / total.clamp(min=1)).sum()


def _ccc_batch(pred: Tensor, target: Tensor, seen: Tensor, here: Tensor, total: Tensor) -> Tensor:
    n = here.sum()
    # The released code divides the covariance by n and the variances by n - 1.
    flat = _concordance(pred.reshape(-1, 1), target.reshape(-1, 1), seen.reshape(-1, 1), n[None], correction=1)[0]
    # Times the voxels seen, to stand beside a sum over voxels as it does beside a mean in the paper.
    return (1 - flat) * n / total.sum().clamp(min=1) * (total > 0).sum()


_TERMS: dict[str, tuple[Callable[..., Tensor], ...]] = {
    "mse": (_mse,),
    "ccc": (_ccc,),
    "ccc-batch": (_ccc_batch,),
    "mse+ccc": (_mse, _ccc),
    "mse+ccc-batch": (_mse, _ccc_batch),
    "poisson": (_poisson,),
}

#: Names of losses.
LOSSES: tuple[str, ...] = tuple(_TERMS)


def make_loss(name: str | Loss) -> Loss:
    r"""Make a loss by name.

    ``"mse"`` is :math:`(p - t)^2`; ``"poisson"`` is :math:`r - t \log r` with :math:`r = \log(1 + e^p)`;
    ``"ccc"`` is, per voxel, 1 minus the concordance correlation

    .. math:: CCC = \frac{2\,cov(p, t)}{var_p + var_t + (\mu_p - \mu_t)^2}

    with population moments over the images seen; ``"ccc-batch"`` takes the moments over all seen entries of the
    batch flattened together, with variances divided by n - 1 and the covariance by n as in the released code, times
    the number of voxels; ``"mse+ccc"`` and ``"mse+ccc-batch"`` are sums.

    Parameters
    ----------
    name : str

    Returns
    -------
    Loss
        Called as ``loss(pred, target, count=None)``.

    Raises
    ------
    ConfigError
        An unknown name; the message has the nearest.

    References
    ----------
    Lin (1989), Biometrics 45(1). Saha, Chadha & Khosla (2024), arXiv:2410.14031.

    Examples
    --------
    >>> import torch
    >>> loss = make_loss("mse")
    >>> float(loss(torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [3.0, float("nan")]])))
    9.0
    """
    if isinstance(name, Loss):
        return name
    return Loss(name, _TERMS[one_of("loss", name, LOSSES)])
