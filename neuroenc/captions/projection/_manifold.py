"""Distance of embeddings to the manifold of natural images, relative to distances among natural images."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.checks import check_whole, make_rng
from neuroenc._core.errors import DataError
from neuroenc._core.memory import parse_memory
from neuroenc._core.topk import plan_blocks
from neuroenc.captions.projection._stream import IdCollector
from neuroenc.retrieval import EmbeddingBank, as_bank, top_k


def chord(cosine: np.ndarray) -> np.ndarray:
    """Distance of two unit vectors from their cosine: ``sqrt(2 - 2 c)``."""
    return np.sqrt(np.clip(2.0 - 2.0 * np.asarray(cosine, dtype=np.float64), 0.0, None))


def gather_rows(bank: EmbeddingBank, positions: np.ndarray, max_memory: str | int | None) -> np.ndarray:
    """Rows of a bank at ``positions`` (in any order, repeated or not), float64 (n, width), in one pass."""
    different, inverse = np.unique(positions, return_inverse=True)
    rows, _ = plan_blocks(parse_memory(max_memory), int(bank.width or 512), 1)
    return np.concatenate([np.asarray(c.rows, np.float64) for c in bank.take(different, rows)])[inverse]


def natural_neighbours(bank: Any, *, n: int = 1000, seed: int = 0, max_memory: str | int | None = None) -> np.ndarray:
    """Cosine of ``n`` images of a bank, drawn without replacement, and the nearest other image, float64 (n,).

    Parameters
    ----------
    bank : see :func:`neuroenc.retrieval.as_bank`
        At least two images; read twice, so not a one-time stream.
    n : int
        At most the number of images.
    seed : int
    max_memory : str, int or None

    Examples
    --------
    >>> natural_neighbours(np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])).round(3).tolist()
    [0.6, 0.8, 0.8]
    """
    images = as_bank(bank).again("for natural distances (n_natural above 0) the bank must be read again")
    total = int(images.n or 0)
    if total < 2:
        raise DataError("the bank holds 1 image, which has no neighbour; at least 2 are needed, or n_natural=0.")
    at = make_rng(seed).choice(total, min(int(n), total), replace=False)
    at.sort()
    score, index = top_k(gather_rows(images, at, max_memory), images, 2, max_memory=max_memory)
    # An image is its own best match, but images that occur twice stand in any order.
    return np.where(index[:, 0] == at, score[:, 1], score[:, 0]).astype(np.float64)


def on_manifold(
    embeddings: Any, bank: Any, *, n_natural: int = 1000, seed: int = 0, max_memory: str | int | None = None
) -> xr.Dataset:
    r"""Distance of directions to the nearest natural image, relative to distances among natural images.

    .. math:: \delta_i = \min_k \| e_i / \|e_i\| - m_k \|, \qquad
        \delta^{nat} = \mathrm{median}_{k} \min_{l \ne k} \| m_k - m_l \|

    with unit-norm images m. A ratio near or below 1 says that an embedding is as near to photographs as photographs
    are to each other; 0 is a copy of one. The natural distance shrinks as banks grow: compare within one bank.

    Parameters
    ----------
    embeddings : Dataset of :func:`project`, DataArray or array (n, feature)
        Any norm. Rows of zeros or NaN get NaN and "".
    bank : see :func:`neuroenc.retrieval.as_bank`
        Image embeddings (n, feature), any norm; read three times, once with ``n_natural=0``.
    n_natural : int
        Images that the natural distance is taken from, drawn without replacement; 0 for none (NaN).
    seed : int
        Of that draw.
    max_memory : str, int or None
        For temporaries.

    Returns
    -------
    Dataset over the rows of ``embeddings`` (``voxel`` for an array) with their coordinates
        ``distance`` (from 0 to 2; 3e-4 and less are one image), ``cosine``, ``nearest_image`` (id), ``ratio`` (of
        ``distance`` to ``natural_distance``); scalars ``natural_distance`` and ``natural_cosine`` (of the median
        image), and ``natural_distance_95`` (the 95th percentile).

    Raises
    ------
    DataError
        Width mismatch; NaN, infinite or zero-norm images; with ``n_natural``, a stream or a single image.

    Examples
    --------
    >>> bank = np.array([[1.0, 0.0], [0.0, 2.0]])
    >>> found = on_manifold(np.array([[3.0, 0.0], [1.0, 1.0]]), bank)
    >>> found["distance"].round(3).values.tolist(), found["ratio"].round(3).values.tolist()
    ([0.0, 0.765], [0.0, 0.541])
    """
    check_whole("n_natural", n_natural, 0)
    labelled = embeddings["embedding"] if isinstance(embeddings, xr.Dataset) else embeddings
    if not isinstance(labelled, xr.DataArray):
        labelled = xr.DataArray(np.asarray(labelled), dims=("voxel", "feature") if np.ndim(labelled) == 2 else None)
    if labelled.ndim != 2:
        raise DataError(f"embeddings have shape {labelled.shape}; legal is (n, feature): one row an item.")
    if "feature" in labelled.dims:
        labelled = labelled.transpose(..., "feature")
    dim = str(labelled.dims[0])
    values = np.asarray(labelled.values, dtype=np.float64)
    length = np.linalg.norm(values, axis=1)
    rows = np.flatnonzero(np.isfinite(length) & (length > 0))
    images = as_bank(bank)
    natural = np.array([np.nan])
    if n_natural:
        natural = natural_neighbours(images, n=n_natural, seed=seed, max_memory=max_memory)
    cosine = np.full(len(values), np.nan)
    nearest = np.full(len(values), "", dtype=object)
    if len(rows):
        ids = IdCollector()
        score, index = top_k(values[rows], images, 1, max_memory=max_memory, seen=ids)
        cosine[rows], nearest[rows] = score[:, 0], ids.names(index)[:, 0]
    distance, between = chord(cosine), chord(natural)
    out = xr.Dataset(coords={k: v for k, v in labelled.coords.items() if v.dims in ((dim,), ())})
    out["distance"] = (dim, distance)
    out["cosine"] = (dim, cosine)
    out["nearest_image"] = (dim, nearest.astype(str))
    typical = float(np.median(between))
    with np.errstate(divide="ignore", invalid="ignore"):
        out["ratio"] = (dim, distance / typical)
    out["natural_distance"] = typical
    out["natural_cosine"] = float(np.median(natural))
    out["natural_distance_95"] = float(np.quantile(between, 0.95))
    out.attrs.update(n_natural=len(natural) if n_natural else 0, seed=int(seed))
    return out
