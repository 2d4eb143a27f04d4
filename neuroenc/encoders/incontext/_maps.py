"""Maps of predicted weights: selectivity to text prompts and principal components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import make_rng, one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.encoders._labels import match_voxels


@dataclass(frozen=True, eq=False)
class WeightComponents:
    """Principal components of weight directions; result of `weight_components`.

    Attributes
    ----------
    components : ndarray (component, feature)
        Orthonormal; the sign is such that the largest entry is positive.
    mean : ndarray (feature,)
    explained : ndarray (component,)
        Share of the variance of directions.
    low, high : ndarray (component,)
        What becomes 0 and 1 in colours: the 2nd and 98th percentile of the voxels that were fitted.
    """

    components: np.ndarray
    mean: np.ndarray
    explained: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def scores(self, coef: Any) -> xr.DataArray:
        """Scores (component, voxel) of weights or an encoder, of any subject; NaN where weights are 0."""
        weights = weights_of(coef)
        if weights.shape[0] != len(self.mean):
            raise DataError(f"weights have {weights.shape[0]} features; components have {len(self.mean)}.")
        values = self.components @ (_directions(weights.values) - self.mean[:, None])
        coords = {"component": np.arange(len(values)), **voxels_of(weights)}
        return xr.DataArray(values, dims=("component", "voxel"), coords=coords, name="score")

    def rgb(self, coef: Any) -> xr.DataArray:
        """Colours (voxel, channel) in [0, 1] from the first three components; grey for voxels without weights."""
        if len(self.components) < 3:
            raise ConfigError(f"{len(self.components)} components are no colour. Next step: n=3.")
        scores = self.scores(coef)
        low, high = self.low[:3, None], self.high[:3, None]
        values = np.clip((scores.values[:3] - low) / np.maximum(high - low, 1e-12), 0, 1)
        values = np.where(np.isnan(values), 0.5, values).T
        coords = {"channel": ["red", "green", "blue"], **voxels_of(scores)}
        return xr.DataArray(values, dims=("voxel", "channel"), coords=coords, name="rgb")


def weight_components(coef: Any, n: int = 3, *, weight: Any = None) -> WeightComponents:
    """Principal component analysis of the directions of voxel weights.

    Weights are scaled to unit norm first: strength says how well a voxel is predicted, direction what it prefers.

    Parameters
    ----------
    coef : array (feature, voxel), or encoder with ``to_linear()``
        Of one subject, or several side by side; apply the result to others.
    n : int
    weight : array (voxel,), optional
        How much a voxel counts, such as its prediction accuracy (negative is 0).

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> first, second = rng.standard_normal((2, 8, 50))
    >>> found = weight_components(first)
    >>> found.rgb(second).shape, found.components.shape
    ((50, 3), (3, 8))
    """
    weights = weights_of(coef)
    values = _directions(weights.values)
    if isinstance(weight, xr.DataArray) and weight.dims == ("voxel",):
        weight = match_voxels(voxels_of(weights), {}, weight.expand_dims("stimulus"), "weight")[0]
    heavy = np.ones(values.shape[1]) if weight is None else np.maximum(np.asarray(weight, dtype=np.float64), 0.0)
    if heavy.shape != (values.shape[1],):
        raise DataError(f"weight has shape {heavy.shape}; expected one number for each of {values.shape[1]} voxels.")
    known = np.isfinite(values).all(axis=0) & (heavy > 0)
    if not 1 <= n <= min(values.shape[0], int(known.sum()) - 1):
        raise ConfigError(f"n={n} components of {int(known.sum())} voxels with weights and {values.shape[0]} features.")
    values, heavy = values[:, known], heavy[known] / heavy[known].sum()
    mean = values @ heavy
    around = values - mean[:, None]
    spectrum, vectors = np.linalg.eigh((around * heavy) @ around.T)
    components = vectors[:, ::-1][:, :n].T
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    components = components * np.sign(largest)
    low, high = np.quantile(components @ around, [0.02, 0.98], axis=1)
    return WeightComponents(components, mean, spectrum[::-1][:n] / spectrum.sum(), low, high)


def weights_of(source: Any) -> xr.DataArray:
    """Weights (feature, voxel) of an encoder, a labelled array or an array."""
    if hasattr(source, "to_linear"):
        source = source.to_linear()[0]
    if not isinstance(source, xr.DataArray):
        source = xr.DataArray(np.asarray(source), dims=("feature", "voxel")[: np.ndim(source)])
    if source.ndim != 2 or "voxel" not in source.dims:
        raise DataError(f"weights have dims {source.dims}; expected (feature, voxel).")
    return source.transpose(..., "voxel")


def voxels_of(weights: xr.DataArray) -> dict[str, Any]:
    """Coordinates of the voxels."""
    return {str(k): ("voxel", c.values) for k, c in weights.coords.items() if c.dims == ("voxel",)}


def _directions(weights: np.ndarray) -> np.ndarray:
    """Columns of unit norm; NaN where there is none."""
    values = np.asarray(weights, dtype=np.float64)
    length = np.linalg.norm(values, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(length > 0, values / length, np.nan)


TEMPLATES = ("a photo of a {}", "a picture of a {}", "a photo of the {}", "{}")


class _Embedder(Protocol):
    def embed(self, texts: Sequence[str]) -> xr.DataArray: ...


def text_selectivity(
    encoder: Any,
    prompts: Mapping[str, Sequence[str]],
    embedder: _Embedder,
    *,
    templates: Sequence[str] = TEMPLATES,
    centre: bool = True,
) -> xr.DataArray:
    r"""Predicted selectivity of voxels to categories given as text prompts.

    .. math:: t_c = \frac{\sum_k t_{ck}}{\|\sum_k t_{ck}\|}, \qquad r_{cv} = w_v \cdot t_c + b_v

    with :math:`t_{ck}` the unit-norm embeddings of every noun in every template.

    Parameters
    ----------
    encoder : encoder with ``to_linear()``, or weights (feature, voxel)
        Fitted to the images' side of the same embedding.
    prompts : mapping of category to nouns or whole prompts
    embedder : TextEmbedder
        Or anything with ``embed(texts)``.
    templates : sequence of str
        ``"{}"`` is where the noun goes; ``("{}",)`` for whole prompts.
    centre : bool
        Subtract each voxel's mean over categories. Texts and images lie apart in such embeddings, and what all texts
        have in common says nothing about categories. Which category a voxel prefers does not change. Without it, values
        are responses in the encoder's unit.

    Returns
    -------
    DataArray (category, voxel)

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.embedding import TextEmbedder
    >>> words = TextEmbedder("world", cache=False, progress=False)
    >>> coef = np.random.default_rng(0).standard_normal((128, 5))
    >>> found = text_selectivity(coef, {"face": ["man", "woman"], "place": ["house", "church"]}, words)
    >>> found.shape, bool(abs(found.mean("category")).max() < 1e-6)
    ((2, 5), True)
    """
    weights = weights_of(encoder)
    vectors = prompt_vectors(prompts, embedder, templates)
    if vectors.shape[1] != weights.shape[0]:
        raise DataError(
            f"texts have {vectors.shape[1]} dimensions, weights {weights.shape[0]}. Next step: the text side of the "
            "embedding that the encoder was fitted to."
        )
    intercept = encoder.to_linear()[1].values if hasattr(encoder, "to_linear") else 0.0
    values = vectors @ weights.values.astype(np.float64) + intercept
    if centre:
        values = values - values.mean(axis=0)
    coords = {"category": [str(c) for c in prompts], **voxels_of(weights)}
    attrs = {"centred": int(centre), "templates": list(templates)}
    return xr.DataArray(
        values.astype(np.float32), dims=("category", "voxel"), coords=coords, name="selectivity", attrs=attrs
    )


def prompt_vectors(
    prompts: Mapping[str, Sequence[str]], embedder: _Embedder, templates: Sequence[str] = TEMPLATES
) -> np.ndarray:
    """Unit-norm mean (category, feature) of the unit-norm embeddings of each category's texts."""
    if not prompts or any(isinstance(nouns, str) or not len(nouns) for nouns in prompts.values()):
        raise ConfigError("prompts must give each category a list of at least one noun or prompt.")
    if isinstance(templates, str) or not templates or any("{}" not in t for t in templates):
        raise ConfigError(f"templates={templates!r} must be a list of texts that hold '{{}}'.")
    texts = [t.format(noun) for nouns in prompts.values() for noun in nouns for t in templates]
    found = unit_rows(np.asarray(embedder.embed(texts).values, dtype=np.float64))
    ends = np.cumsum([len(nouns) * len(templates) for nouns in prompts.values()])
    return unit_rows(np.stack([part.mean(axis=0) for part in np.split(found, ends[:-1])]))


def confusion(
    selectivity: xr.DataArray,
    roi: Any = "roi",
    expected: Mapping[str, str | Sequence[str]] | None = None,
    *,
    n_permutations: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Confusion matrix of regions and predicted preferred categories.

    Parameters
    ----------
    selectivity : DataArray (category, voxel)
        From `text_selectivity`.
    roi : str or array (voxel,)
        Voxel coordinate, or labels; "" leaves a voxel out.
    expected : mapping of region to category, or to several of which any is right
        Only these regions are shown. Default: regions that are named like a category.
    n_permutations, seed : int
        Of the null.

    Returns
    -------
    DataFrame
        One row a region, and "all", the mean over regions. A column a category with the share of voxels that prefer
        it, then ``n_voxels, accuracy, null_accuracy, p``. The null shuffles labels over the voxels shown, which keeps
        how often each category is preferred.

    Notes
    -----
    Neighbouring voxels are not independent, as shuffling takes them to be: read ``p`` as a floor.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> values = xr.DataArray(np.repeat(np.eye(2), 20, axis=1), dims=("category", "voxel"),
    ...                       coords={"category": ["face", "place"], "roi": ("voxel", ["FFA"] * 20 + ["PPA"] * 20)})
    >>> confusion(values, expected={"FFA": "face", "PPA": "place"})[["face", "place", "accuracy"]].values.tolist()
    [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.5, 0.5, 1.0]]
    """
    categories = [str(c) for c in selectivity["category"].values]
    if isinstance(roi, str):
        if roi not in selectivity.coords:
            raise ConfigError(unknown_name("voxel coordinate roi =", roi, map(str, selectivity.coords)))
        roi = selectivity[roi].values
    if isinstance(roi, xr.DataArray) and roi.dims == ("voxel",):
        roi = match_voxels(voxels_of(selectivity), {}, roi.expand_dims("stimulus"), "labels")[0].values
    labels = np.asarray(roi).astype(str)
    if labels.shape != (selectivity.sizes["voxel"],):
        raise DataError(f"{labels.size} labels for {selectivity.sizes['voxel']} voxels.")
    if expected is None:
        expected = {c: c for c in categories if c in set(labels)}
    right = {name: [found] if isinstance(found, str) else list(found) for name, found in expected.items()}
    for found in right.values():
        for name in found:
            one_of("category", name, categories)
    values = selectivity.transpose("category", "voxel").values
    shown = np.isin(labels, list(right)) & np.isfinite(values).all(axis=0)
    groups = [name for name in right if (labels[shown] == name).any()]
    if not groups:
        raise DataError(f"no voxel has a label of {list(right)}; there are {sorted(set(labels.tolist()))[:12]}.")
    preferred, place = values[:, shown].argmax(axis=0), np.array([groups.index(g) for g in labels[shown]])
    good = np.array([[c in right[g] for c in categories] for g in groups])
    counts = np.bincount(place, minlength=len(groups))

    def accuracy(where: np.ndarray) -> np.ndarray:
        per = np.bincount(where, good[where, preferred], minlength=len(groups)) / counts
        return np.append(per, per.mean())

    rng = make_rng(seed)
    null = np.array([accuracy(rng.permutation(place)) for _ in range(n_permutations)]).reshape(-1, len(groups) + 1)
    share = np.zeros((len(groups), len(categories)))
    np.add.at(share, (place, preferred), 1)
    share /= counts[:, None]
    table = pd.DataFrame(np.vstack([share, share.mean(axis=0)]), index=pd.Index([*groups, "all"], name="roi"))
    table.columns = pd.Index(categories)
    table["n_voxels"] = np.append(counts, counts.sum())
    table["accuracy"] = accuracy(place)
    table["null_accuracy"] = null.mean(axis=0) if len(null) else np.nan
    table["p"] = (1 + (null >= table["accuracy"].to_numpy() - 1e-12).sum(axis=0)) / (1 + len(null))
    return table
