"""What weights and errors say: retrieval, sinks, verbatim memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from neuroenc.attention._sinks import find_sinks

__all__ = ["repeat_probe", "retrieval_score", "sink_report"]


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
    """Share of queries whose most attended key is one that matches.

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
                f"match {tuple(match.shape)} for weights {tuple(w.shape)} less {offset} keys; legal: "
                f"({len(inner)}, {inner.shape[-1]}). Set offset to the number of registers."
            )
        top = inner.argmax(-1, keepdim=True)
        hit = wanted.to(w.device).expand(inner.shape).gather(-1, top) & (inner.gather(-1, top) > 0)
        scores.append(hit.double().mean((0, 2, 3)))
    return _over_layers(scores, "retrieval").assign_attrs(chance=float(match.double().mean()))


def sink_report(weights: Sequence[Tensor], threshold: float = 0.1, keep_first: int = 1) -> xr.Dataset:
    """Sinks of every head: how many a case has, and how much of the weight they draw.

    Parameters
    ----------
    weights : list over layers of Tensor (batch, heads, rows, key)
        Of all rows: sinks are means over queries.
    threshold, keep_first
        See `find_sinks`.

    Returns
    -------
    xarray.Dataset
        ``sinks`` per case, ``share`` of weight on sinks, ``share_first`` on the first keys; all (layer, head).

    Examples
    --------
    >>> w = torch.tensor([0.1, 0.6, 0.3]).expand(1, 1, 4, 3)
    >>> report = sink_report([w], threshold=0.4)
    >>> report["sinks"].item(), round(report["share"].item(), 3)
    (1.0, 0.6)
    """
    _check(weights)
    counts, shares, first = [], [], []
    for w in weights:
        sinks = find_sinks(w, threshold, keep_first)
        total = w.sum((0, 2, 3)).clamp_min(torch.finfo(w.dtype).tiny)
        counts.append(sinks.double().sum(-1).mean(0))
        shares.append((w * sinks[:, :, None]).sum((0, 2, 3)) / total)
        first.append(w[..., :keep_first].sum((0, 2, 3)) / total)
    named = {"sinks": counts, "share": shares, "share_first": first}
    report = xr.Dataset({name: _over_layers(values, name) for name, values in named.items()})
    return report.assign_attrs(threshold=threshold, keep_first=keep_first)


def repeat_probe(
    run: Callable[[str, int], Any],
    lags: Sequence[int],
    conditions: Sequence[str] = ("repeat", "permuted", "novel"),
) -> xr.Dataset:
    """Is what was seen before answered from the stored trial itself, or only from its gist?

    Parameters
    ----------
    run : callable
        ``run(condition, lag)`` -> errors (case,) for queries that stood ``lag`` trials back (``"repeat"``), that stood
        there with the trials in another order (``"permuted"``), or that never stood there (``"novel"``).
    lags : list of int
    conditions : list of str
        With ``"novel"``, the reference.

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
    if "novel" not in conditions:
        raise ValueError(f"conditions {list(conditions)} have no 'novel'; legal: any with it. Add the reference.")
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
        ratio = error / error[list(conditions).index("novel")]
    dims = ("condition", "lag")
    return xr.Dataset(
        {"error": (dims, error), "ratio": (dims, ratio)}, {"condition": list(conditions), "lag": list(lags)}
    )
