"""Zero-shot classification of the images that stand for a region: how many show its preferred category."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.tables import check_columns
from neuroenc.captions.analysis._lexicon import categorise, category_regions, load_categories
from neuroenc.captions.analysis._words import indicator, region_masks, roi_strings, voxel_keys

COLUMNS = ("roi", "category", "n_voxels", "n_images", "accuracy", "low", "high", "chance", "other_voxels", "p")


def category_accuracy(
    images: pd.DataFrame,
    vectors: xr.DataArray,
    embed_text: Any,
    *,
    preferred: Mapping[str, str] | None = None,
    categories: str | os.PathLike[str] | Mapping[str, Iterable[str]] | None = None,
    templates: Sequence[str] = ("A photo of {}.",),
    n_permutations: int = 1000,
    n_bootstraps: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Zero-shot accuracy: share of a region's images that a vision-language model assigns to its preferred category.

    .. math:: \hat k_i = \arg\max_k \frac{1}{|N_k|} \sum_{n \in N_k} \cos(m_i, t_n), \qquad
              a_r = \frac{1}{|r|} \sum_{v \in r} \frac{1}{|I_v|} \sum_{i \in I_v} [\hat k_i = k_r]

    with images :math:`I_v` that stand for voxel v (its best ones, or those made or found for its caption), their
    vectors m and those of prompts of the categories' nouns t. With five categories chance is .2 where a model takes
    each equally often; images of other voxels (``other_voxels``) say what it is here.

    Parameters
    ----------
    images : DataFrame
        ``voxel, stimulus``, one row for each image of a voxel, and ``roi`` (names joined by ";" count in each).
    vectors : DataArray (stimulus, feature)
        Embeddings of these images, in the space of the texts.
    embed_text : callable or TextEmbedder
    preferred : mapping of region to category, optional
        Beside those of the shipped list (FFA: face, PPA: place, ...), or instead of them. Regions without a category
        have no row.
    categories : path or mapping of category to nouns, optional
        See :func:`neuroenc.captions.load_categories`; the shipped five.
    templates : sequence of str
        "{}" stands for a noun with its article; default the published one. Cosines are plain, as published.
    n_permutations : int
        Of the voxels over regions, for ``other_voxels`` and p.
    n_bootstraps : int
        Of the voxels of a region, for the interval. Neighbouring voxels are alike: it is too narrow for them.
    seed : int

    Returns
    -------
    DataFrame
        ``roi, category, n_voxels, n_images`` (different ones)``, accuracy, low, high`` (95 %)``, chance`` (one over the
        number of categories)``, other_voxels`` (mean over permutations) and ``p`` (one-sided; NaN where all voxels are
        of the region). The row "all" is the mean over regions. No rows where no region has a category.

    Raises
    ------
    DataError
        An image without a vector, or vectors that are zero.
    ConfigError
        A preferred category that is none.

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (table 1).

    Examples
    --------
    >>> images = pd.DataFrame({"voxel": [0, 1, 2, 3], "stimulus": list("abcd"), "roi": ["FFA"] * 2 + ["PPA"] * 2})
    >>> vectors = xr.DataArray([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0], [0.9, 1.0]], dims=("stimulus", "feature"),
    ...     coords={"stimulus": list("abcd")})
    >>> names = {"face": ["face"], "place": ["house"]}
    >>> texts = lambda several: [[1.0, 0.0] if "face" in t else [0.0, 1.0] for t in several]
    >>> category_accuracy(images, vectors, texts, categories=names)[["roi", "accuracy"]].values.tolist()
    [['FFA', 1.0], ['PPA', 1.0], ['all', 1.0]]
    """
    check_whole("n_permutations", n_permutations)
    check_whole("n_bootstraps", n_bootstraps, 2)
    check_columns(images, ("voxel", "stimulus"), "images")
    names = list(load_categories(categories))
    wanted = {k: v for k, v in category_regions().items() if v in names} | dict(preferred or {})
    for category in wanted.values():
        if category not in names:
            raise ConfigError(unknown_name("category", category, names))
    shown, which = np.unique(images["stimulus"].astype(str), return_inverse=True)
    told = _classify(_rows(vectors, shown), embed_text, categories, templates)
    voxel, first = voxel_keys(images)
    counts = np.bincount(voxel)
    hits = np.stack([(indicator(voxel, len(first)) @ (told[which] == name)) / counts for name in names], axis=1)
    masks = {k: v for k, v in region_masks(roi_strings(first)).items() if k in wanted}
    if not masks:
        return pd.DataFrame(columns=list(COLUMNS))
    rng = np.random.default_rng(seed)
    inside = np.stack([mask / mask.sum() for mask in masks.values()])
    at = np.array([names.index(wanted[roi]) for roi in masks])
    own = np.arange(len(at)), at
    real = (inside @ hits)[own]
    null = np.stack([(inside @ hits[rng.permutation(len(hits))])[own] for _ in range(n_permutations)])
    drawn = []
    for mask, column in zip(masks.values(), at):
        values = hits[mask, column]
        drawn.append(values[rng.integers(0, len(values), (n_bootstraps, len(values)))].mean(axis=1))
    rows = []
    sizes = [int(mask.sum()) for mask in masks.values()]
    parts = [(roi, wanted[roi], mask, real[k], drawn[k], null[:, k]) for k, (roi, mask) in enumerate(masks.items())]
    every = np.any(list(masks.values()), axis=0)
    parts.append(("all", "", every, real.mean(), np.mean(drawn, axis=0), null.mean(axis=1)))
    for roi, category, mask, accuracy, samples, others in parts:
        n = int(mask.sum())
        low, high, _ = stats.sample_interval(samples, accuracy, n_units=n, bounds=(0.0, 1.0))
        p = (1 + (others >= accuracy - 1e-12).sum()) / (1 + n_permutations)
        alone = mask.all() and (roi != "all" or len(sizes) == 1)
        row = [roi, category, n, len(np.unique(which[mask[voxel]])), float(accuracy), float(low), float(high)]
        rows.append([*row, 1 / len(names), np.nan if alone else others.mean(), np.nan if alone else p])
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(vectors: xr.DataArray, shown: np.ndarray) -> np.ndarray:
    """Vectors of the images, by id."""
    if not isinstance(vectors, xr.DataArray) or "stimulus" not in vectors.coords or vectors.ndim != 2:
        raise DataError(
            f"vectors are a {type(vectors).__name__}; legal: a DataArray (stimulus, feature) with ids. Next "
            "step: ImageEmbedder(model).embed(images)."
        )
    place = pd.Index(vectors["stimulus"].values.astype(str)).get_indexer(shown)
    if (place < 0).any():
        lost = shown[place < 0]
        raise DataError(f"{len(lost)} of {len(shown)} images have no vector (first: {lost[0]!r}).")
    return np.asarray(vectors.transpose("stimulus", ...).values[place], dtype=np.float64)


def _classify(rows: np.ndarray, embed_text: Any, categories: Any, templates: Sequence[str]) -> np.ndarray:
    """Category of each image (image, feature)."""
    source = xr.Dataset({"embedding": (("voxel", "feature"), rows)})
    told: np.ndarray = categorise(source, embed_text, categories, templates=templates, centre=False)["category"].values
    if (told == "").any():
        raise DataError(f"{int((told == '').sum())} of {len(told)} images have vectors that are zero or not finite.")
    return told
