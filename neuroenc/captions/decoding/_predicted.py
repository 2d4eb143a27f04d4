"""The table of written captions, and the responses that an encoder of images predicts for texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc.captions._linear import as_weights, voxel_labels

__all__ = ["as_embeddings", "caption_frame", "predicted_of_texts", "unit"]


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows at length 1; rows without a direction stay 0."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 1e-9)


def as_embeddings(embeddings: Any, dim: int) -> np.ndarray:
    """Finite embeddings, float64 (n, dim)."""
    x = np.asarray(embeddings, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != dim:
        raise DataError(f"embeddings have shape {x.shape}; legal is (n, {dim}).")
    # Here, because the unit vector of NaN is 0.
    bad = int((~np.isfinite(x).all(axis=1)).sum())
    if bad:
        raise DataError(f"{bad} of {len(x)} embeddings are not finite. Next step: leave those out.")
    return x


def predicted_of_texts(
    projection: xr.Dataset,
    at: np.ndarray,
    texts: list[str],
    coef: Any,
    intercept: Any,
    embed_text: Callable[[list[str]], Any] | None,
    text_direction: np.ndarray | None = None,
) -> np.ndarray:
    """Response of voxel ``at[k]`` to ``texts[k]``, float64 (k,); NaN without ``coef`` or ``embed_text``.

    Texts count at unit norm, or at the voxel's projected norm for an encoder of raw features. With
    ``text_direction`` they are first moved across the modality gap: the mean of texts is replaced by that of images.
    """
    if coef is None or embed_text is None or not texts:
        return np.full(len(at), np.nan)
    weights = as_weights(coef, intercept)
    if not np.array_equal(weights.coef["voxel"], projection["voxel"]):
        raise DataError("coef and projection name different voxels. Next step: project these same weights.")
    different = list(dict.fromkeys(texts))
    vectors = unit(np.asarray(embed_text(different), dtype=np.float64))
    if text_direction is not None:
        vectors = unit(vectors - text_direction + projection["bank_direction"].values)
    number = {t: k for k, t in enumerate(different)}
    chosen = vectors[[number[t] for t in texts]]
    if not projection.attrs.get("features_normalised", 1):
        chosen = chosen * np.linalg.norm(projection["embedding"].values[at], axis=1, keepdims=True)
    return np.einsum("vd,vd->v", weights.matrix()[at], chosen) + weights.intercept[at]


def caption_frame(
    projection: xr.Dataset,
    rows: np.ndarray,
    found: Sequence[Sequence[Any]],
    origin: Callable[[list[int]], str],
    coef: Any,
    intercept: Any,
    embed_text: Callable[[list[str]], Any] | None,
    text_direction: np.ndarray | None,
) -> pd.DataFrame:
    """The table of a :class:`Decoder`: ``found[k]`` are the captions (`Generated`) of voxel ``rows[k]``."""
    flat = [(row, rank, c) for row, several in zip(rows, found) for rank, c in enumerate(several, 1)]
    at = np.array([row for row, _, _ in flat], dtype=np.int64)
    texts = [c.text for _, _, c in flat]
    frame = pd.DataFrame(
        {
            "voxel": projection["voxel"].values[at],
            "rank": np.array([rank for _, rank, _ in flat], dtype=np.int64),
            "caption": np.array(texts, dtype=object),
            "score": np.array([c.score for _, _, c in flat], dtype=np.float64),
            "caption_id": np.array([origin(c.tokens) for _, _, c in flat], dtype=object),
            "predicted": predicted_of_texts(projection, at, texts, coef, intercept, embed_text, text_direction),
        }
    )
    return pd.concat([frame, voxel_labels(projection, at)], axis=1)
