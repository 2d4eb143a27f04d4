"""Which head hands what to which: patched along paths, compared between tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import xarray as xr
from torch import nn

from neuroenc.attention._analysis import Metric, head_table, number
from neuroenc.attention._tap import Head, HeadTap, Recording

__all__ = ["circuit_overlap", "path_patch"]


def path_patch(
    model: nn.Module,
    run_clean: Metric,
    run_corrupt: Metric,
    heads: Iterable[Head] | None = None,
    receivers: Sequence[Head] | None = None,
    freeze: bool = True,
) -> xr.DataArray:
    r"""Share of the way from a clean to a corrupted result that one head's corruption goes.

    .. math:: \frac{m(\text{clean, head } h \text{ corrupted}) - m(\text{clean})}{m(\text{corrupted}) - m(\text{clean})}

    Parameters
    ----------
    model : torch.nn.Module
    run_clean, run_corrupt : callable
        ``run(model)`` -> number, on inputs of the same shape.
    heads : list of (layer, head), optional
        Senders; default all, others are NaN.
    receivers : list of (layer, head), optional
        Count only what reaches the result through these heads: they answer to a run in which the sender is corrupted
        and every other head is as in the clean run, and their answers go into a run that is free otherwise. Default:
        the direct path to the result.
    freeze : bool
        Without ``receivers``: False lets later heads answer to the corruption (the total effect).

    Returns
    -------
    xarray.DataArray (layer, head)
        ``attrs`` have the clean and the corrupted result.

    References
    ----------
    Merullo, Eickhoff and Pavlick (2024), Circuit component reuse across tasks, arXiv:2310.08744.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.attention import Attention
    >>> model, (a, b) = Attention(8, 4).eval(), torch.randn(2, 1, 5, 8)
    >>> effect = path_patch(model, lambda m: m(a)[0].sum(), lambda m: m(b)[0].sum())
    >>> bool(abs(effect.sum() - 1) < 1e-3)
    True
    """
    found = head_table(model, "effect")
    with HeadTap(model) as tap:
        clean, before = _recorded(tap, model, run_clean)
        corrupt, after = _recorded(tap, model, run_corrupt)
        if clean == corrupt:
            raise ValueError(
                f"clean and corrupted runs both give {clean}; legal: two results that differ. Corrupt what matters."
            )
        for sender in tap.heads if heads is None else heads:
            open_heads = {sender, *(receivers or ())}
            if freeze or receivers is not None:
                tap.patch(before, [h for h in tap.heads if h not in open_heads])
            tap.patch(after, [sender])
            if receivers is None:
                result = number(run_clean, model)
            else:
                answers = _recorded(tap, model, run_clean, clear=False)[1]
                tap.clear()
                tap.patch(answers, receivers)
                result = number(run_clean, model)
            tap.clear()
            found[sender] = (result - clean) / (corrupt - clean)
    return found.assign_attrs(clean=clean, corrupt=corrupt)


def _recorded(tap: HeadTap, model: nn.Module, run: Metric, clear: bool = True) -> tuple[float, Recording]:
    if clear:
        tap.clear()
    tap.record()
    result = number(run, model)
    return result, tap.recorded()


def circuit_overlap(
    imp_a: xr.DataArray, imp_b: xr.DataArray, threshold: float | None = None, top: int | None = None
) -> xr.Dataset:
    """How much of two circuits, the heads that matter to two tasks, is shared.

    Parameters
    ----------
    imp_a, imp_b : xarray.DataArray (layer, head)
        From `head_importance`, or absolute values of `path_patch`.
    threshold : float, optional
        A circuit is the heads over it.
    top : int, optional
        A circuit is so many of the largest heads. Give this or ``threshold``.

    Returns
    -------
    xarray.Dataset
        ``a``, ``b`` (layer, head): in the circuit; ``overlap``: shared / union; ``of_smaller``: shared / size of the
        smaller circuit; ``correlation`` of importances. NaN where a circuit is empty.

    Examples
    --------
    >>> a = xr.DataArray([[1.0, 0.9, 0.0], [0.0, 0.8, 0.0]], dims=("layer", "head"))
    >>> circuit_overlap(a, a[::-1], top=2)["overlap"].item()
    0.0
    """
    if imp_a.shape != imp_b.shape:
        raise ValueError(f"importances {imp_a.shape} and {imp_b.shape}; legal: heads of one model. Give both of it.")
    if (threshold is None) == (top is None):
        raise ValueError(f"threshold={threshold}, top={top}; legal: one of the two. Give top=4, say.")
    a, b = (np.nan_to_num(np.asarray(x, dtype=float), nan=-np.inf) for x in (imp_a, imp_b))
    if threshold is not None:
        in_a, in_b = a > threshold, b > threshold
    else:
        assert top is not None
        in_a, in_b = (_largest(x, top) for x in (a, b))
    shared, union, smaller = (in_a & in_b).sum(), (in_a | in_b).sum(), min(in_a.sum(), in_b.sum())
    known = np.isfinite(a) & np.isfinite(b)
    varied = known.sum() > 1 and np.ptp(a[known]) > 0 and np.ptp(b[known]) > 0
    return xr.Dataset(
        {
            "a": (("layer", "head"), in_a),
            "b": (("layer", "head"), in_b),
            "overlap": shared / union if union else np.nan,
            "of_smaller": shared / smaller if smaller else np.nan,
            "correlation": np.corrcoef(a[known], b[known])[0, 1] if varied else np.nan,
        }
    )


def _largest(x: np.ndarray, top: int) -> np.ndarray:
    chosen = np.zeros(x.size, dtype=bool)
    order = np.argsort(-x.ravel(), kind="stable")[:top]
    chosen[order] = np.isfinite(x.ravel()[order])
    return chosen.reshape(x.shape)
