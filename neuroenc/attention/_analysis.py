"""Analyses of attention heads: importance, retrieval and copying scores, path patching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from neuroenc.attention._tap import Head, HeadTap, Recording, SinkCalibration, attentions

Metric = Callable[[Any], Any]


def number(fn: Metric, model: nn.Module) -> float:
    """``fn(model)`` without gradients."""
    with torch.no_grad():
        return float(fn(model))


def head_table(model: nn.Module, name: str) -> xr.DataArray:
    """NaN for every (layer, head)."""
    return _over_layers([torch.full((layer.heads,), torch.nan) for layer in attentions(model)], name)


def mask_curve(
    model: nn.Module, loss_fn: Metric, scores: xr.DataArray, counts: Sequence[int], draws: int = 20, seed: int = 0
) -> xr.Dataset:
    """Ablation curve: loss with the top-scoring heads masked, against as many random heads.

    Parameters
    ----------
    model : torch.nn.Module
    loss_fn : callable
        ``loss_fn(model)`` -> number; the same at every call (no dropout, fixed cases).
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
            tap.mask(chosen)
            return number(loss_fn, model)

        clean = loss([])
        for i, count in enumerate(counts):
            top[i] = loss(heads[:count])
            for j in range(draws):
                random[i, j] = loss([heads[k] for k in rng.choice(len(heads), count, replace=False)])
    data = {"top": ("count", top), "random": (("count", "draw"), random)}
    return xr.Dataset(data, {"count": list(counts)}, {"clean": clean, "seed": seed})


def select_calibration_heads(
    model: nn.Module, loss_fn: Metric, threshold: float = 0.1, beta: float = 0.4, keep_first: int = 1
) -> xr.DataArray:
    """Select heads for sink calibration: decrease of a held-out loss when one head is calibrated.

    Parameters
    ----------
    model, loss_fn
        See `mask_curve`.
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


def _over_layers(values: Sequence[Tensor], name: str) -> xr.DataArray:
    most = max(len(v) for v in values)
    table = np.full((len(values), most), np.nan)
    for row, v in zip(table, values):
        row[: len(v)] = v.double().cpu().numpy()
    return xr.DataArray(table, {"layer": np.arange(len(values)), "head": np.arange(most)}, ("layer", "head"), name)


def _check(weights: Sequence[Tensor]) -> None:
    if not len(weights) or any(w.ndim != 4 for w in weights):
        raise ValueError(
            f"weights of shapes {[tuple(w.shape) for w in weights]}; legal: a list over layers of (batch, heads, rows, "
            "key). Take them from Stack(..., weights_of=rows), or from a HeadTap recording."
        )


def retrieval_score(weights: Sequence[Tensor], match: Tensor, offset: int = 0) -> xr.DataArray:
    """Retrieval score of each head: share of queries whose most attended key is a match.

    Parameters
    ----------
    weights : list over layers of Tensor (batch, heads, rows, key)
    match : Tensor of bool (batch, key) or (batch, rows, key)
        Keys that a head should find, without the ``offset`` in front.
    offset : int
        Keys in front (registers) that do not compete.

    Returns
    -------
    xarray.DataArray (layer, head)
        ``attrs["chance"]`` is the share of keys that match. A row without any weight has found nothing.

    References
    ----------
    Wu et al. (2024), Retrieval head mechanistically explains long-context factuality, arXiv:2404.15574.

    Examples
    --------
    >>> w = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]).view(1, 2, 1, 3)
    >>> retrieval_score([w], torch.tensor([[False, True, False]])).values
    array([[1., 0.]])
    """
    _check(weights)
    match = match.bool()
    wanted = match[:, None, None] if match.ndim == 2 else match[:, None]
    scores = []
    for w in weights:
        inner = w[..., offset:]
        if match.shape[-1] != inner.shape[-1] or match.shape[0] != len(inner):
            raise ValueError(
                f"match {tuple(match.shape)} for weights {tuple(w.shape)} less {offset} keys; legal: ({len(inner)}, "
                f"{inner.shape[-1]}). Next step: set offset to the number of registers."
            )
        top = inner.argmax(-1, keepdim=True)
        hit = wanted.to(w.device).expand(inner.shape).gather(-1, top) & (inner.gather(-1, top) > 0)
        scores.append(hit.double().mean((0, 2, 3)))
    return _over_layers(scores, "retrieval").assign_attrs(chance=float(match.double().mean()))


def repeat_probe(run: Callable[[str, int], Any], lags: Sequence[int]) -> xr.Dataset:
    """Probe verbatim memory: errors on repeated, novel and permuted items by lag.

    Parameters
    ----------
    run : callable
        ``run(condition, lag)`` -> errors (case,) for queries that stood ``lag`` trials back (``"repeat"``), that stood
        there with the trials in another order (``"permuted"``), or that never stood there (``"novel"``).
    lags : list of int

    Returns
    -------
    xarray.Dataset
        ``error`` (condition, lag): medians; ``ratio`` (condition, lag): to those of ``"novel"``. A ratio far under 1
        is verbatim memory, or a test set that leaks into the support.

    References
    ----------
    Armeni, Honey and Linzen (2022), Characterizing verbatim short-term memory in neural language models,
    arXiv:2210.13569.

    Examples
    --------
    >>> probe = repeat_probe(lambda condition, lag: [0.1 * lag if condition == "repeat" else 1.0], lags=[1, 5])
    >>> probe["ratio"].sel(condition="repeat").values
    array([0.1, 0.5])
    """
    conditions = ["repeat", "permuted", "novel"]
    error = np.zeros((len(conditions), len(lags)))
    for i, condition in enumerate(conditions):
        for j, lag in enumerate(lags):
            found = torch.as_tensor(run(condition, lag), dtype=torch.float64).detach().cpu().numpy()
            if not found.size or not np.isfinite(found).all():
                raise ValueError(
                    f"errors of {condition!r} at lag {lag}: {found.size} values, {int((~np.isfinite(found)).sum())} "
                    "not finite; legal: at least one, all finite. Drop undefined cases."
                )
            error[i, j] = np.median(found)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = error / error[conditions.index("novel")]
    dims = ("condition", "lag")
    return xr.Dataset({"error": (dims, error), "ratio": (dims, ratio)}, {"condition": conditions, "lag": list(lags)})


def path_patch(
    model: nn.Module, run_clean: Metric, run_corrupt: Metric, receivers: Sequence[Head] = ()
) -> xr.DataArray:
    r"""Path patching: share of the corrupted result that one head's corrupted output explains.

    .. math:: \frac{m(\text{clean, head } h \text{ corrupted}) - m(\text{clean})}{m(\text{corrupted}) - m(\text{clean})}

    Parameters
    ----------
    model : torch.nn.Module
    run_clean, run_corrupt : callable
        ``run(model)`` -> number, on inputs of the same shape.
    receivers : list of (layer, head), optional
        Count only what reaches the result through these heads: they answer to a run in which the sender is corrupted
        and every other head is as in the clean run, and their answers go into a run that is free otherwise. Default:
        the direct path to the result.

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
            raise ValueError(f"clean and corrupted runs both give {clean}; they must differ. Corrupt what matters.")
        for sender in tap.heads:
            open_heads = {sender, *receivers}
            tap.patch(before, [h for h in tap.heads if h not in open_heads])
            tap.patch(after, [sender])
            if receivers:
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


def circuit_overlap(imp_a: xr.DataArray, imp_b: xr.DataArray, top: int) -> xr.Dataset:
    """Overlap of the circuits of two tasks: shared heads and correlation of importances.

    Parameters
    ----------
    imp_a, imp_b : xarray.DataArray (layer, head)
        How much each head matters, such as absolute values of `path_patch`.
    top : int
        A circuit is so many of the largest heads.

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
    a, b = (np.nan_to_num(np.asarray(x, dtype=float), nan=-np.inf) for x in (imp_a, imp_b))
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
