"""Heads: where their attention piles up, which matter for which voxels, and whether groups of voxels share them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from neuroenc._core.arrays import as_numpy
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.progress import progress as bar
from neuroenc.attention import HeadTap, circuit_overlap as _overlap
from neuroenc.data import align
from neuroenc.encoders._labels import features_matrix, match_voxels
from neuroenc.encoders.incontext._attention_maps import MAX_BYTES, GivenSupport, given_support, row_weights
from neuroenc.encoders.incontext._condition import conditioned_blocks
from neuroenc.encoders.incontext._space import check_space

__all__ = ["circuit_overlap", "head_importance", "sink_report"]


def head_importance(
    model: Any,
    X: Any,
    Y: Any,
    X_query: Any,
    Y_query: Any,
    *,
    value: str = "zero",
    heads: Sequence[tuple[int, int]] | None = None,
    max_bytes: int = MAX_BYTES,
    progress: bool = False,
) -> xr.DataArray:
    """Rise of each voxel's squared error on queries when a head is masked.

    Parameters
    ----------
    model : InContextModel or InContextEncoder
    X, Y : arrays (support, feature), (support, voxel)
    X_query, Y_query : arrays (q, feature), (q, voxel)
        NaN responses do not count.
    value : {"zero", "mean"}
        What stands in for a head's output; the mean is that of a block of voxels.
    heads : list of (layer, head), optional
        Default all; others are NaN.
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
        for layer, head in bar(tap.heads if heads is None else list(heads), desc="heads", show=progress):
            tap.mask([(layer, head)], value)
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
    """How many of the heads that matter most are the same in two groups of voxels.

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
    """Where the attention of the register that is read out piles up, by layer and head.

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

    Notes
    -----
    For columns of all rows, not only the one that is read out, see `neuroenc.attention.sink_report`.

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
