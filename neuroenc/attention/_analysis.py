"""What heads are for: masked one by one, by score and at random, or calmed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from neuroenc.attention._sinks import SinkCalibration
from neuroenc.attention._tap import Head, HeadTap, attentions

__all__ = ["head_importance", "head_table", "mask_curve", "number", "select_calibration_heads"]

Metric = Callable[[Any], Any]


def number(fn: Metric, model: nn.Module) -> float:
    """``fn(model)`` without gradients."""
    with torch.no_grad():
        return float(fn(model))


def head_table(model: nn.Module, name: str) -> xr.DataArray:
    """NaN for every (layer, head)."""
    layers = attentions(model)
    shape = len(layers), max(layer.heads for layer in layers)
    coords = {"layer": np.arange(shape[0]), "head": np.arange(shape[1])}
    return xr.DataArray(np.full(shape, np.nan), coords, ("layer", "head"), name)


def head_importance(
    model: nn.Module, loss_fn: Metric, heads: Iterable[Head] | None = None, value: str = "zero"
) -> xr.DataArray:
    """Rise of a loss when a head is masked.

    Parameters
    ----------
    model : torch.nn.Module
    loss_fn : callable
        ``loss_fn(model)`` -> number; the same at every call (no dropout, fixed cases).
    heads : list of (layer, head), optional
        Default all; others are NaN.
    value : {"zero", "mean"}
        What a head is replaced by.

    Returns
    -------
    xarray.DataArray (layer, head)
        ``attrs["clean"]`` is the loss of the whole model.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.attention import Attention
    >>> model, x = Attention(8, 4).eval(), torch.randn(2, 5, 8)
    >>> head_importance(model, lambda m: m(x)[0].square().mean()).shape
    (1, 4)
    """
    found = head_table(model, "importance")
    with HeadTap(model) as tap:
        clean = number(loss_fn, model)
        for layer, head in tap.heads if heads is None else heads:
            tap.mask([(layer, head)], value)
            found[layer, head] = number(loss_fn, model) - clean
            tap.clear()
    return found.assign_attrs(clean=clean, value=value)


def mask_curve(
    model: nn.Module,
    loss_fn: Metric,
    scores: xr.DataArray,
    counts: Sequence[int],
    draws: int = 20,
    seed: int = 0,
    value: str = "zero",
) -> xr.Dataset:
    """Loss when the heads of highest score are masked, beside as many at random.

    Parameters
    ----------
    model, loss_fn, value
        See `head_importance`.
    scores : xarray.DataArray (layer, head)
        NaN for heads that are never masked.
    counts : list of int
        How many heads.
    draws, seed : int
        Random choices of each count.

    Returns
    -------
    xarray.Dataset
        ``top`` (count), ``random`` (count, draw); ``attrs["clean"]``.

    References
    ----------
    Wu et al. (2024), Retrieval head mechanistically explains long-context factuality, arXiv:2404.15574.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.attention import Attention
    >>> model, x = Attention(8, 4).eval(), torch.randn(2, 5, 8)
    >>> scores = xr.DataArray([[0.1, 0.9, 0.2, 0.3]], dims=("layer", "head"))
    >>> dict(mask_curve(model, lambda m: m(x)[0].square().mean(), scores, counts=[1, 2], draws=3).sizes)
    {'count': 2, 'draw': 3}
    """
    flat = np.asarray(scores, dtype=float)
    heads = [(int(i), int(j)) for i, j in np.argwhere(np.isfinite(flat))]
    heads.sort(key=lambda h: -flat[h])
    if max(counts) > len(heads):
        raise ValueError(f"{max(counts)} heads to mask of {len(heads)} with a score; legal: up to that. Mask fewer.")
    rng = np.random.default_rng(seed)
    top, random = np.zeros(len(counts)), np.zeros((len(counts), draws))
    with HeadTap(model) as tap:

        def loss(chosen: list[Head]) -> float:
            tap.clear()
            tap.mask(chosen, value)
            return number(loss_fn, model)

        clean = loss([])
        for i, count in enumerate(counts):
            top[i] = loss(heads[:count])
            for j in range(draws):
                random[i, j] = loss([heads[k] for k in rng.choice(len(heads), count, replace=False)])
    data = {"top": ("count", top), "random": (("count", "draw"), random)}
    return xr.Dataset(data, {"count": list(counts)}, {"clean": clean, "seed": seed, "value": value})


def select_calibration_heads(
    model: nn.Module, loss_fn: Metric, threshold: float = 0.1, beta: float = 0.4, keep_first: int = 1
) -> xr.DataArray:
    """Fall of a held-out loss when the sinks of one head are calmed; heads over 0 are worth a `SinkCalibration`.

    Parameters
    ----------
    model, loss_fn
        See `head_importance`.
    threshold, beta, keep_first
        See `SinkCalibration`.

    Returns
    -------
    xarray.DataArray (layer, head)

    Examples
    --------
    >>> import torch
    >>> from neuroenc.attention import Attention
    >>> model, x = Attention(8, 4).eval(), torch.randn(2, 5, 8)
    >>> select_calibration_heads(model, lambda m: m(x)[0].square().mean()).shape
    (1, 4)
    """
    found = head_table(model, "gain")
    clean = number(loss_fn, model)
    for index, layer in enumerate(attentions(model)):
        inner = layer.normaliser
        try:
            for head in range(layer.heads):
                layer.normaliser = SinkCalibration(inner, threshold, beta, [head], keep_first)
                found[index, head] = clean - number(loss_fn, model)
        finally:
            layer.normaliser = inner
    return found.assign_attrs(clean=clean)
