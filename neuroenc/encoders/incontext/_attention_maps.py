"""Attention of in-context models: support attention, head importance, sinks and circuits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from neuroenc._core.arrays import as_numpy
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.progress import progress as bar
from neuroenc.attention import HeadTap, circuit_overlap as _overlap
from neuroenc.data import align
from neuroenc.encoders._labels import check_space, features_matrix, match_voxels, sample_coords, voxel_coords
from neuroenc.encoders.incontext._condition import conditioned_blocks, voxels_at_once
from neuroenc.encoders.incontext._encoder import InContextEncoder
from neuroenc.encoders.incontext._model import InContextModel, complete

MAX_BYTES = 2**28


class GivenSupport(NamedTuple):
    """A model and a support as the model sees it: x (support, feature), y (support, voxel), labels, device."""

    model: InContextModel
    x: np.ndarray
    y: np.ndarray
    voxels: dict[str, Any]
    stimuli: dict[str, Any]
    device: torch.device


def given_support(model: Any, X: Any, Y: Any) -> GivenSupport:
    """From a model and its support, or a fitted encoder with its own."""
    device, voxels, scale = torch.device("cpu"), None, None
    if isinstance(model, InContextEncoder):
        device = model._place()["device"]
        if X is None and Y is None:
            X, Y = model.support()
            voxels, scale = model._voxels_, model._support_[3]
        model = model._conditioned()
    elif isinstance(model, InContextModel):
        device = next(model.parameters()).device
    else:
        raise ConfigError(f"{type(model).__name__} is neither an InContextModel nor an InContextEncoder.")
    if model.config.silent:
        raise ConfigError(
            "the network of this model is silent: its predictions are the closed form's, and no head takes part. "
            "Next step: load_model(...).silence(False), to look at a network that did not help."
        )
    if not model.has_heads:
        raise ConfigError(
            f"{model!r} has no heads whose attention to trials could be looked at. Next step: a model without "
            "memory, and not of the refined form."
        )
    if X is None or Y is None:
        raise ConfigError("X and Y are needed. Next step: the support set, or an encoder in the process that fitted.")
    if isinstance(X, xr.DataArray) and isinstance(Y, xr.DataArray):
        align(X, Y)
    check_space(model.features, X, "the model")
    voxels = voxels or voxel_coords(Y) or {"voxel": ("voxel", np.arange(Y.shape[1]))}
    stimuli = {k: ("support", v) for k, v in sample_coords(*(a for a in (X, Y) if isinstance(a, xr.DataArray))).items()}
    x, y = np.asarray(features_matrix(X), dtype=np.float32), as_numpy(Y, "responses").astype(np.float32)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or x.shape[1] != model.config.n_features:
        raise DataError(
            f"support images have shape {x.shape}, responses {y.shape}; expected (support, {model.config.n_features}) "
            "and (support, voxel)."
        )
    if scale is not None:
        y = ((y - scale[0]) / scale[1]).astype(np.float32)
    return GivenSupport(model.to(device).eval(), x, y, voxels, stimuli, device)


def row_weights(given: GivenSupport, rows: slice, max_bytes: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Voxels and each layer's weights (voxel, heads, rows, registers + support) of ``rows``, block by block."""
    n, config = given.y.shape[1], given.model.config
    step = voxels_at_once(given.model, len(given.x), max_bytes)
    asked = len(range(*rows.indices(len(given.x) + config.registers)))
    each = 4 * config.depth * config.heads * asked * (len(given.x) + config.registers)
    step = max(1, min(step, max_bytes // each))
    images = torch.as_tensor(given.x, device=given.device)
    for start in range(0, n, step):
        block = slice(start, min(n, start + step))
        with torch.inference_mode():
            y, log_weight = complete(images, torch.as_tensor(given.y[:, block].T.copy(), device=given.device), None)
            yield block, given.model.read(images, y, log_weight, weights_of=rows)[1]


def support_attention(
    model: Any, X: Any = None, Y: Any = None, *, per_head: bool = False, max_bytes: int = MAX_BYTES
) -> xr.DataArray:
    """Attention of the output register to the support images.

    Only that row of each layer is computed, block by block of voxels; all else stays fused.

    Parameters
    ----------
    model : InContextModel or InContextEncoder
        A fitted encoder knows its support.
    X : array (support, feature), optional
    Y : array (support, voxel), optional
        As the model was trained on; NaN where a response is missing, which nobody attends to.
    per_head : bool
        Else the mean over heads.
    max_bytes : int
        Working memory of a block.

    Returns
    -------
    DataArray (layer, voxel, support) or (layer, head, voxel, support)
        Rows sum to what is left by registers, which the coordinate ``registers`` (layer, [head,] voxel) has.

    Notes
    -----
    In the last layer this row is what the weights are made of; in the first ones the register is still the same for all
    voxels. Weights say what is looked at, not what matters: see `head_importance`.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders.incontext import make_model, support_attention
    >>> x, y = np.random.default_rng(0).standard_normal((2, 20, 8))
    >>> found = support_attention(make_model("small", n_features=8, dim=16, depth=3), x, y)
    >>> found.dims, found.shape, bool(np.allclose(found.sum("support") + found["registers"], 1, atol=1e-5))
    (('layer', 'voxel', 'support'), (3, 8, 20), True)
    """
    given = given_support(model, X, Y)
    config = given.model.config
    lead = (config.depth, config.heads) if per_head else (config.depth,)
    out = np.empty((*lead, given.y.shape[1], len(given.x)), dtype=np.float32)
    rest = np.empty(out.shape[:-1], dtype=np.float32)
    for block, layers in row_weights(given, slice(0, 1), max_bytes):
        for number, w in enumerate(layers):
            row = w[:, :, 0].transpose(0, 1).float()  # (heads, voxel, key)
            found = (row if per_head else row.mean(dim=0)).cpu().numpy()
            out[number, ..., block, :] = found[..., config.registers :]
            rest[number, ..., block] = found[..., : config.registers].sum(axis=-1)
    dims = ("layer", "head", "voxel", "support") if per_head else ("layer", "voxel", "support")
    coords: dict[str, Any] = {"layer": np.arange(config.depth), **given.voxels, "support": np.arange(len(given.x))}
    if per_head:
        coords["head"] = np.arange(config.heads)
    coords |= {**given.stimuli, "registers": (dims[:-1], rest)}
    return xr.DataArray(out, dims=dims, coords=coords, name="attention")


def _as_attended(responses: Any, attention: xr.DataArray) -> Any:
    """Labelled responses with the voxels and the stimuli of the attention, by their labels."""
    if not isinstance(responses, xr.DataArray):
        return responses
    voxels = {str(k): ("voxel", c.values) for k, c in attention.coords.items() if c.dims == ("voxel",)}
    responses = match_voxels(voxels, {}, responses)
    if "stimulus" in attention.coords and "stimulus" in responses.coords:
        wanted, found = (a["stimulus"].values.astype(str).tolist() for a in (attention, responses))
        if wanted != found:
            raise DataError(
                "the responses are of other stimuli than the support that was attended to, or in another order. "
                "Next step: the responses of the support."
            )
    return responses


def top_support(
    attention: xr.DataArray, responses: Any = None, *, by: str | None = "roi", k: int = 8, layer: int = -1
) -> pd.DataFrame:
    """Most and least attended support images of the voxels of each region.

    Parameters
    ----------
    attention : DataArray
        From `support_attention`.
    responses : array (support, voxel), optional
        Gives the column ``response``: the mean of the region's voxels.
    by : str, optional
        Voxel coordinate; None takes all voxels together.
    k : int
    layer : int
        The default is the last one.

    Returns
    -------
    DataFrame
        Columns ``group, side ("top" or "bottom"), rank, support, stimulus, attention, response, n_voxels``. Stimuli
        are those of the attention's coordinate, else numbers.
        ``attention`` is relative to an equal share for every image: 2 is twice as much.

    Examples
    --------
    >>> import xarray as xr
    >>> attention = xr.DataArray([[[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]], dims=("layer", "voxel", "support"),
    ...                          coords={"roi": ("voxel", ["FFA", "PPA"])})
    >>> table = top_support(attention, k=1)
    >>> table[table["side"] == "top"][["group", "support"]].values.tolist()
    [['FFA', 0], ['PPA', 2]]
    """
    if by is not None and by not in attention.coords:
        raise ConfigError(unknown_name("voxel coordinate by =", by, map(str, attention.coords)))
    n = attention.sizes["support"]
    if not 1 <= k <= n:
        raise ConfigError(f"k={k} of {n} support images; legal: 1 to {n}.")
    ids = attention["stimulus"].values if "stimulus" in attention.coords else np.arange(n)
    responses = _as_attended(responses, attention)
    measured = None if responses is None else as_numpy(responses, "responses").astype(np.float64)
    if measured is not None and measured.shape != (n, attention.sizes["voxel"]):
        raise DataError(f"responses have shape {measured.shape}; expected ({n}, {attention.sizes['voxel']}).")
    values = attention if "head" not in attention.dims else attention.mean("head")
    # Relative to an equal share of what images get at all.
    share = values.isel(layer=layer).transpose("voxel", "support").values.astype(np.float64)
    share = share / np.maximum(share.mean(axis=1, keepdims=True), np.finfo(float).tiny)
    labels = np.full(len(share), "all") if by is None else attention[by].values.astype(str)
    rows = []
    for group in dict.fromkeys(labels.tolist()):
        mask = labels == group
        mean = share[mask].mean(axis=0)
        order = np.argsort(-mean, kind="stable")
        seen = None if measured is None else measured[:, mask]
        for side, chosen in (("top", order[:k]), ("bottom", order[::-1][:k])):
            for rank, at in enumerate(chosen):
                response = np.nan if seen is None or np.isnan(seen[at]).all() else float(np.nanmean(seen[at]))
                rows.append((group, side, rank, int(at), ids[at], float(mean[at]), response, int(mask.sum())))
    columns = ["group", "side", "rank", "support", "stimulus", "attention", "response", "n_voxels"]
    return pd.DataFrame(rows, columns=columns)


def head_importance(
    model: Any, X: Any, Y: Any, X_query: Any, Y_query: Any, *, max_bytes: int = MAX_BYTES, progress: bool = False
) -> xr.DataArray:
    """Importance of each head: increase of each voxel's squared query error when it is masked.

    Parameters
    ----------
    model : InContextModel or InContextEncoder
    X, Y : arrays (support, feature), (support, voxel)
    X_query, Y_query : arrays (q, feature), (q, voxel)
        NaN responses do not count.
    max_bytes : int
        Working memory of a block.
    progress : bool

    Returns
    -------
    DataArray (layer, head, voxel)
        Coordinate ``clean`` (voxel,) is the error with all heads. Means over voxels of a region are its heads'
        importances.

    Notes
    -----
    An anchored model's heads only move a prior: the more trials, the less any of them matters.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders.incontext import head_importance, make_model
    >>> x, y, xq, yq = np.random.default_rng(0).standard_normal((4, 20, 8))
    >>> model = make_model("small", n_features=8, dim=16, depth=2, form="published")
    >>> head_importance(model, x, y, xq, yq).shape
    (2, 4, 8)
    """
    given = given_support(model, X, Y)
    if isinstance(X_query, xr.DataArray) and isinstance(Y_query, xr.DataArray):
        align(X_query, Y_query)
    check_space(given.model.features, X_query, "the model")
    Y_query = match_voxels(given.voxels, {}, Y_query, "query responses")
    query = np.asarray(features_matrix(X_query), dtype=np.float32)
    measured = as_numpy(Y_query, "query responses").astype(np.float32)
    if query.ndim != 2 or query.shape[1] != given.x.shape[1] or measured.shape != (len(query), given.y.shape[1]):
        raise DataError(
            f"queries have shape {query.shape}, responses {measured.shape}; expected (q, {given.x.shape[1]}) and "
            f"(q, {given.y.shape[1]})."
        )
    config = given.model.config
    found = np.full((config.depth, config.heads, given.y.shape[1]), np.nan)
    with HeadTap(given.model) as tap:
        clean = _errors(given, query, measured, max_bytes)
        for layer, head in bar(tap.heads, desc="heads", show=progress):
            tap.mask([(layer, head)], "zero")
            found[layer, head] = _errors(given, query, measured, max_bytes) - clean
            tap.clear()
    coords: dict[str, Any] = {
        "layer": np.arange(config.depth),
        "head": np.arange(config.heads),
        **given.voxels,
        "clean": ("voxel", clean),
    }
    return xr.DataArray(found, coords=coords, dims=("layer", "head", "voxel"), name="importance")


def _errors(given: GivenSupport, query: np.ndarray, measured: np.ndarray, max_bytes: int) -> np.ndarray:
    """Mean squared error of each voxel on the queries that were seen."""
    out = np.empty(measured.shape[1])
    images = torch.as_tensor(query, device=given.device)
    for columns, found in conditioned_blocks(given.model, given.x, given.y, device=given.device, max_bytes=max_bytes):
        error = found.predict(images).double().cpu().numpy().T - measured[:, columns]
        with np.errstate(invalid="ignore"):
            out[columns] = np.nansum(error**2, axis=0) / (~np.isnan(error)).sum(axis=0)
    return out


def circuit_overlap(importance: xr.DataArray, by: str = "roi", *, top: int = 4) -> xr.Dataset:
    """Overlap of the most important heads of two groups of voxels.

    Parameters
    ----------
    importance : DataArray (layer, head, voxel)
        From `head_importance`.
    by : str
        Voxel coordinate.
    top : int
        Heads of a circuit.

    Returns
    -------
    Dataset
        ``overlap`` (a, b): shared heads over all heads of both circuits; ``correlation`` (a, b) of importances;
        ``importance`` (a, layer, head): means over voxels; ``chance``: overlap of two random choices, in the mean.

    References
    ----------
    Merullo, Eickhoff and Pavlick (2024), Circuit component reuse across tasks, arXiv:2310.08744.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> values = np.random.default_rng(0).random((2, 4, 6))
    >>> table = xr.DataArray(values, dims=("layer", "head", "voxel"), coords={"roi": ("voxel", list("aaabbb"))})
    >>> circuit_overlap(table, top=2)["overlap"].sel(a="a", b="a").item()
    1.0
    """
    if by not in importance.coords:
        raise ConfigError(unknown_name("voxel coordinate by =", by, map(str, importance.coords)))
    n_heads = importance.sizes["layer"] * importance.sizes["head"]
    if not 1 <= top <= n_heads:
        raise ConfigError(f"top={top} of {n_heads} heads; legal: 1 to {n_heads}.")
    labels = importance[by].values.astype(str)
    groups = list(dict.fromkeys(labels.tolist()))
    means = np.stack([importance.values[..., labels == g].mean(axis=-1) for g in groups])
    tables = [xr.DataArray(m, dims=("layer", "head")) for m in means]
    shared = np.array([[_overlap(a, b, top=top)["overlap"].item() for b in tables] for a in tables])
    correlation = np.array([[_overlap(a, b, top=top)["correlation"].item() for b in tables] for a in tables])
    common = top * top / n_heads
    return xr.Dataset(
        {
            "overlap": (("a", "b"), shared),
            "correlation": (("a", "b"), correlation),
            "importance": (("a", "layer", "head"), means),
            "chance": common / (2 * top - common),
        },
        coords={"a": groups, "b": groups, "layer": importance["layer"].values, "head": importance["head"].values},
        attrs={"top": top},
    )


def sink_report(
    model: Any, X: Any = None, Y: Any = None, *, threshold: float = 0.1, max_bytes: int = MAX_BYTES
) -> xr.Dataset:
    """Attention sinks of the output register, by layer and head.

    Parameters
    ----------
    model, X, Y, max_bytes
        As in `support_attention`.
    threshold : float
        Share from which an image is a sink.

    Returns
    -------
    Dataset (layer, head)
        Means over voxels: ``registers``, share of the weight on registers; ``largest``, on the one image that a voxel
        attends to most; ``sinks``, number of images over the threshold; ``effective``, exp of the entropy over images.
        ``common``: share on the image that all voxels together attend to most, with its number ``common_image``; a sink
        that has nothing to do with the voxel, if it is close to ``largest``.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders.incontext import make_model, sink_report
    >>> x, y = np.random.default_rng(0).standard_normal((2, 20, 8))
    >>> report = sink_report(make_model("small", n_features=8, dim=16, depth=3), x, y)
    >>> report["registers"].shape, bool((report["common"] <= report["largest"] + 1e-6).all())
    ((3, 4), True)
    """
    given = given_support(model, X, Y)
    config, n = given.model.config, given.y.shape[1]
    shape = (config.depth, config.heads)
    sums = {name: np.zeros(shape) for name in ("registers", "largest", "sinks", "effective")}
    total = np.zeros((*shape, len(given.x)))
    for _, layers in row_weights(given, slice(0, 1), max_bytes):
        for number, w in enumerate(layers):
            row = w[:, :, 0].double()
            images = row[..., config.registers :]
            inner = images / images.sum(-1, keepdim=True).clamp_min(1e-300)
            parts = {
                "registers": row[..., : config.registers].sum(-1),
                "largest": images.amax(-1),
                "sinks": (images > threshold).double().sum(-1),
                "effective": torch.special.entr(inner).sum(-1).exp(),
            }
            for name, value in parts.items():
                sums[name][number] += value.sum(0).cpu().numpy()
            total[number] += images.sum(0).cpu().numpy()
    data = {name: (("layer", "head"), value / n) for name, value in sums.items()}
    data["common"] = (("layer", "head"), total.max(axis=-1) / n)
    data["common_image"] = (("layer", "head"), total.argmax(axis=-1))
    coords = {"layer": np.arange(shape[0]), "head": np.arange(shape[1])}
    attrs = {"threshold": threshold, "n_support": len(given.x), "n_voxels": n}
    return xr.Dataset(data, coords=coords, attrs=attrs)
