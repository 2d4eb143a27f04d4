"""Zero-shot categories of voxels and images by prompt ensembles."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.arrays import unit_rows
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.provenance import provenance
from neuroenc.captions.analysis._lexicon import check_word_lists, read_word_lists
from neuroenc.captions.analysis._words import region_masks
from neuroenc.captions.text._vectors import TEMPLATES, directions_of, embed, prompt


@cache
def _shipped() -> dict[str, tuple[str, ...]]:
    return read_word_lists(Path(__file__).with_name("categories.toml"), "nouns")


def load_categories(
    categories: str | os.PathLike[str] | Mapping[str, Iterable[str]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Load the nouns of each category: the shipped five (face, place, body, word, food), a file or a mapping.

    Parameters
    ----------
    categories : path or mapping of category to nouns, optional
        A TOML file has a table for each category with the key ``nouns``; default the shipped ones.

    Returns
    -------
    dict of category to tuple of nouns

    Raises
    ------
    ConfigError
        A file that is absent or not such a table, a category without nouns.

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (table 1).

    Examples
    --------
    >>> list(load_categories())
    ['face', 'place', 'body', 'word', 'food']
    """
    if categories is None:
        return dict(_shipped())
    if isinstance(categories, Mapping):
        return check_word_lists(categories, "categories")
    return read_word_lists(categories, "nouns")


def categorise(
    source: Any,
    embed_text: Any,
    categories: str | os.PathLike[str] | Mapping[str, Iterable[str]] | None = None,
    *,
    templates: Sequence[str] = TEMPLATES,
    centre: bool = True,
    image_direction: Any = None,
    text_direction: Any = None,
) -> xr.Dataset:
    r"""Categorise voxels (or images) by cosine to text prompts of category nouns.

    .. math:: s_{kv} = \frac{1}{|N_k|} \sum_{n \in N_k} \cos\bigl(d_v - \bar m,\; t_n - \bar t\bigr), \qquad
              \hat k_v = \arg\max_k s_{kv}

    with :math:`t_n` the mean unit vector of noun n over the templates, :math:`\bar t` the mean of the categories'
    means (every category counts once, however many nouns it has) and :math:`\bar m` the mean image direction;
    subtracting them removes the modality gap (see :class:`neuroenc.captions.RetrievalDecoder`). Weights are
    directions of difference already and keep their origin.

    Parameters
    ----------
    source : Dataset of :func:`neuroenc.captions.project`, weights (feature, voxel), or images (stimulus, feature)
    embed_text : callable or TextEmbedder
        Texts to vectors in the same space.
    categories : path or mapping of category to nouns, optional
        See :func:`load_categories`.
    templates : sequence of str
        "{}" stands for the noun with its article.
    centre : bool
        False compares plain directions, as the paper does.
    image_direction : array (feature,), optional
        Mean unit-norm image; a projection has its own, images need it.
    text_direction : array (feature,), optional
        Instead of the mean over categories, for example the mean of a caption corpus.

    Returns
    -------
    Dataset over voxel (or stimulus)
        ``score`` (category, voxel), ``category`` ("" without a direction), ``margin`` (best score less the second).

    Raises
    ------
    ConfigError
        Fewer than two categories, a template without "{}", or no image direction.
    DataError
        Widths differ.

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (table 1). Radford et al. (2021), ICML (prompt ensembles).

    Examples
    --------
    >>> import numpy as np
    >>> def embed_text(texts):
    ...     return np.array([[1.0, 0.2] if "dog" in t else [0.2, 1.0] for t in texts])
    >>> found = categorise(np.array([[2.0, -1.0], [0.0, 1.0]]), embed_text, {"animal": ["dog"], "place": ["house"]})
    >>> found["category"].values.tolist()
    ['animal', 'place']
    """
    lists = load_categories(categories)
    if len(lists) < 2:
        raise ConfigError(f"{len(lists)} category; at least two are needed to choose among.")
    if not templates or isinstance(templates, str):
        raise ConfigError('templates must be a list of texts, such as ["a photo of {}."].')
    target, live, dim, coords = directions_of(source, image_direction=image_direction, centre=centre)
    nouns = [(name, noun) for name, entries in lists.items() for noun in entries]
    prompts = [prompt(t, noun) for _, noun in nouns for t in templates]
    vectors = embed(embed_text, prompts, target.shape[1])
    vectors = unit_rows(vectors.reshape(len(nouns), len(templates), -1).mean(axis=1))
    of = np.array([list(lists).index(name) for name, _ in nouns])
    if centre:
        means = np.stack([vectors[of == k].mean(axis=0) for k in range(len(lists))])
        origin = means.mean(axis=0) if text_direction is None else np.asarray(text_direction, dtype=np.float64)
        vectors = unit_rows(vectors - origin)
    cosine = target @ vectors.T
    score = np.stack([cosine[:, of == k].mean(axis=1) for k in range(len(lists))])
    score[:, ~live] = np.nan
    ordered = np.sort(score, axis=0)
    names = np.array(list(lists))
    best = np.where(live, names[np.where(live, score, 0.0).argmax(axis=0)], "")
    out = xr.Dataset(
        {
            "score": (("category_name", dim), score),
            "category": (dim, best),
            "margin": (dim, ordered[-1] - ordered[-2]),
        },
        coords={**coords, "category_name": names},
    )
    out.attrs = {"n_templates": len(templates), "centred": int(centre)}
    out.attrs["provenance"] = provenance(
        step="categorise", categories={k: list(v) for k, v in lists.items()}, templates=list(templates), centre=centre
    )
    return out


def _shares(found: np.ndarray, names: Sequence[str], rois: Iterable[Any], unit_name: str) -> pd.DataFrame:
    rows = []
    for roi, mask in region_masks(rois).items():
        inside = found[mask & (found != "")]
        for name in names:
            share = float((inside == name).mean()) if len(inside) else np.nan
            rows.append((roi, str(name), int((inside == name).sum()), share, len(inside)))
    return pd.DataFrame(rows, columns=["roi", "category", "count", "share", unit_name])


def category_shares(found: xr.Dataset) -> pd.DataFrame:
    """Share of the voxels of each region in each category.

    Parameters
    ----------
    found : Dataset
        From :func:`categorise`, over voxel.

    Returns
    -------
    DataFrame
        ``roi, category, count, share, n_voxels``.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> found = xr.Dataset({"category": ("voxel", ["face", "face", "food"])},
    ...                    coords={"roi": ("voxel", ["FFA", "FFA", "FFA"]), "category_name": ["face", "food"]})
    >>> category_shares(found)[["category", "count"]].values.tolist()
    [['face', 2], ['food', 1]]
    """
    if "voxel" not in found["category"].dims:
        raise DataError("these categories are of images. Next step: categorise_evidence(evidence, images, ...).")
    rois = found["roi"].values if "roi" in found.coords else ["all"] * found.sizes["voxel"]
    return _shares(found["category"].values.astype(str), found["category_name"].values.tolist(), rois, "n_voxels")


def categorise_evidence(
    evidence: pd.DataFrame,
    images: xr.DataArray,
    embed_text: Any,
    categories: str | os.PathLike[str] | Mapping[str, Iterable[str]] | None = None,
    *,
    max_rank: int | None = None,
    image_direction: Any = None,
    **options: Any,
) -> pd.DataFrame:
    """Categories of the most activating images of each region (BrainSCUBA's table 1).

    Parameters
    ----------
    evidence : DataFrame
        ``voxel, rank, stimulus`` (and ``roi``), from :func:`neuroenc.captions.evidence`.
    images : DataArray (stimulus, feature)
        Embeddings of at least these images. All of them give the mean image direction.
    embed_text, categories
        As in :func:`categorise`.
    max_rank : int, optional
        Only images up to this rank.
    image_direction : array (feature,), optional
    **options
        ``templates, centre, text_direction`` of :func:`categorise`.

    Returns
    -------
    DataFrame
        ``roi, category, count, share, n_images``. An image counts once for every voxel that it stands behind.

    Raises
    ------
    DataError
        An image of the evidence is not among ``images``.

    Examples
    --------
    >>> import numpy as np, pandas as pd, xarray as xr
    >>> images = xr.DataArray(np.array([[2.0, 0.1], [0.1, 1.0]]), dims=("stimulus", "feature"),
    ...                       coords={"stimulus": ["a", "b"]})
    >>> shown = pd.DataFrame({"voxel": [0, 1], "rank": 1, "stimulus": ["a", "a"], "roi": "FFA"})
    >>> def embed_text(texts):
    ...     return np.array([[1.0, 0.2] if "dog" in t else [0.2, 1.0] for t in texts])
    >>> categorise_evidence(shown, images, embed_text, {"animal": ["dog"], "place": ["house"]})["share"].tolist()
    [1.0, 0.0]
    """
    if max_rank is not None:
        evidence = evidence[evidence["rank"] <= max_rank]
    if len(evidence) == 0:
        raise DataError("the evidence has 0 rows; there are no images to categorise.")
    wanted = evidence["stimulus"].astype(str)
    absent = sorted(set(wanted) - set(images["stimulus"].values.astype(str).tolist()))
    if absent:
        raise DataError(f"{len(absent)} images of the evidence are not among images, the first is {absent[0]!r}.")
    if image_direction is None:
        image_direction = unit_rows(np.asarray(images.transpose("stimulus", ...).values, dtype=np.float64)).mean(axis=0)
    shown = images.sel(stimulus=sorted(set(wanted)))
    found = categorise(shown, embed_text, categories, image_direction=image_direction, **options)
    of = dict(zip(found["stimulus"].values.astype(str), found["category"].values.astype(str)))
    rois = evidence["roi"] if "roi" in evidence else ["all"] * len(evidence)
    labels = np.array([of[s] for s in wanted])
    return _shares(labels, found["category_name"].values.tolist(), rois, "n_images")
