"""Caption voxels: from encoder weights to a table of captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.checks import check_whole, make_rng
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions._bank_pass import BankPass
from neuroenc.captions._linear import Weights, as_weights, select_voxels
from neuroenc.captions.decoding._retrieval import Decoder
from neuroenc.captions.projection._project import project
from neuroenc.retrieval import as_bank


@dataclass(frozen=True)
class CaptionResult:
    """Result of `caption_voxels`: captions, projections, evidence and gated voxels.

    Attributes
    ----------
    captions : DataFrame
        One row per voxel and rank: ``voxel, rank, caption, score, caption_id, predicted``, voxel
        coordinates, ``evidence`` (ids of the voxel's best images, joined by ";").
    evidence : DataFrame
        ``voxel, rank, stimulus, predicted`` and voxel coordinates.
    projection : Dataset
        Of the captioned voxels; see :func:`neuroenc.captions.project`.
    n_gated : int
        Voxels that got no caption because of the mask.
    gated : tuple
        Their names.
    """

    captions: pd.DataFrame
    evidence: pd.DataFrame
    projection: xr.Dataset
    n_gated: int
    gated: tuple[Any, ...] = ()


def _gate(mask: Any, voxels: xr.DataArray) -> np.ndarray:
    if mask is None:
        return np.ones(voxels.size, dtype=bool)
    values = np.asarray(mask)
    if values.dtype != bool or values.shape != voxels.shape:
        raise DataError(
            f"mask has dtype {values.dtype} and shape {values.shape}; legal is bool of shape {voxels.shape}: "
            "True where a voxel is predicted well enough to be captioned."
        )
    if isinstance(mask, xr.DataArray) and "voxel" in mask.coords and not np.array_equal(mask["voxel"], voxels):
        raise DataError("mask and weights name different voxels or another order. Next step: align them by voxel.")
    return values


def caption_voxels(
    encoder_or_coef: Any,
    bank: Any,
    decoder: Decoder,
    *,
    intercept: Any = None,
    top: int = 5,
    n_evidence: int = 8,
    mask: Any = None,
    temperature: float = 1 / 150,
    renormalise: bool = True,
    decouple: bool = True,
    features_normalised: bool = True,
    projector: Callable[..., xr.Dataset] = project,
    max_memory: str | int | None = None,
    progress: bool = True,
) -> CaptionResult:
    """Caption voxels: project encoder weights onto natural images, decode, and list evidence images.

    Parameters
    ----------
    encoder_or_coef : encoder with ``to_linear()``, pair (coef, intercept), or array (feature, voxel)
    bank : see :func:`neuroenc.retrieval.as_bank`
        Raw image embeddings (n, feature); read once for projection and evidence together. A one-time stream has no
        length to be known in advance, and is refused.
    decoder : Decoder
    intercept : array (voxel,), optional
        Only with a coef array.
    top : int
        Captions a voxel.
    n_evidence : int
        Images a voxel, at most as many as the bank has; 0 for none.
    mask : bool array or DataArray (voxel,), optional
        True where a voxel is captioned; the others (for example not predicted above chance) are gated:
        they get no caption and are named in the result.
    temperature, renormalise, decouple, features_normalised, max_memory, progress
        As in :func:`neuroenc.captions.project`.
    projector : callable
        What is called with the weights, the bank and these settings; :func:`project` is the softmax. Another one
        reads the bank for itself.

    Returns
    -------
    CaptionResult

    Raises
    ------
    DataError
        A bank that can be read only once, a mask of another shape, or what ``project`` refuses.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.captions import RetrievalDecoder
    >>> bank = np.array([[1.0, 0.1], [0.1, 1.0]])
    >>> decoder = RetrievalDecoder(["a face", "a house"], np.eye(2))
    >>> out = caption_voxels(np.eye(2), bank, decoder, top=1, mask=np.array([True, False]), progress=False)
    >>> out.captions[["voxel", "caption", "evidence"]].values.tolist(), out.n_gated
    ([[0, 'a face', '0;1']], 1)
    """
    if not callable(getattr(decoder, "decode", None)):
        raise ConfigError(
            f"decoder is a {type(decoder).__name__}, which has no decode(). Next step: RetrievalDecoder(captions, "
            'vectors), or load_captioner("photo").'
        )
    weights = as_weights(encoder_or_coef, intercept)
    images = as_bank(bank).again("images are looked up in the bank")
    n_evidence = check_whole("n_evidence", n_evidence, 0)
    passed = _gate(mask, weights.coef["voxel"])
    gated = tuple(weights.coef["voxel"].values[~passed].tolist())
    kept = select_voxels(weights, passed)
    bias = kept.intercept if kept.has_intercept else None
    softmax: dict[str, Any] = {"temperature": temperature, "renormalise": renormalise, "decouple": decouple}
    k = max(1, min(n_evidence, int(images.n or 0)))
    reading = BankPass(images, max_memory=max_memory, progress=progress)
    best = reading.evidence(kept.coef, intercept=bias, k=k, features_normalised=features_normalised)
    if projector is project:
        projected = reading.project(kept.coef, intercept=bias, features_normalised=features_normalised, **softmax)
        reading.read()
        projection = projected()
    else:
        reading.read()
        projection = projector(
            kept.coef,
            images,
            intercept=bias,
            features_normalised=features_normalised,
            max_memory=max_memory,
            progress=progress,
            **softmax,
        )
    found = best().table
    return decoded(kept, decoder, projection, found if n_evidence else found.iloc[:0], top, gated)


def decoded(
    weights: Weights,
    decoder: Decoder,
    projection: xr.Dataset,
    evidence: pd.DataFrame,
    top: int,
    gated: tuple[Any, ...] = (),
) -> CaptionResult:
    """Captions of voxels whose projection and best images are known."""
    bias = weights.intercept if weights.has_intercept else None
    captions = decoder.decode(projection, top, coef=weights.coef, intercept=bias)
    joined: Any = evidence.groupby("voxel", sort=False)["stimulus"].agg(";".join) if len(evidence) else {}
    captions = captions.assign(evidence=[joined.get(v, "") for v in captions["voxel"]])
    return CaptionResult(captions, evidence, projection, len(gated), gated)


def shuffled_control(coef: Any, seed: int = 0) -> xr.DataArray:
    """Control: weights with features permuted within each voxel, whose captions should be at chance.

    Length, values and voxel labels of the weights stay; only which feature each value belongs to is lost.

    Parameters
    ----------
    coef : DataArray or array (feature, voxel), or encoder with ``to_linear()``
    seed : int

    Returns
    -------
    DataArray (feature, voxel)

    Examples
    --------
    >>> import numpy as np
    >>> mixed = shuffled_control(np.arange(8.0).reshape(4, 2), seed=1)
    >>> sorted(mixed.values[:, 0].tolist())
    [0.0, 2.0, 4.0, 6.0]
    """
    weights = as_weights(coef).coef
    values = make_rng(seed).permuted(weights.values, axis=0)
    return weights.copy(data=values)
