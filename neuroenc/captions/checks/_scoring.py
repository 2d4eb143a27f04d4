"""Caption scores against chance: sentence-level score, round trip, agreement, diversity."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

from neuroenc import stats
from neuroenc._core.checks import check_texts, check_whole, make_rng
from neuroenc._core.errors import DataError

Floats = np.ndarray


def _unit(vectors: Any, what: str) -> Floats:
    values = np.asarray(vectors, dtype=np.float64)
    if values.ndim != 2:
        raise DataError(f"{what} have shape {values.shape}; expected one vector a row.")
    norm = np.linalg.norm(values, axis=1, keepdims=True)
    if not np.isfinite(values).all() or (norm == 0).any():
        raise DataError(f"{what} hold vectors that are zero or not finite.")
    return values / norm


def _ranks(values: Floats) -> Floats:
    """Standardised ranks of each column; a constant column gets NaN."""
    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ranks / np.sqrt((ranks**2).sum(axis=0))


def _derange(groups: Floats, rng: np.random.Generator) -> Floats:
    """Another voxel of the same group for each voxel; those alone in their group keep themselves."""
    found = np.arange(len(groups))
    for name in np.unique(groups):
        inside = np.flatnonzero(groups == name)
        order = rng.permutation(inside)
        found[order] = np.roll(order, 1)
    return found


def sentence_scores(
    captions: Any,
    stimuli: Any,
    responses: Any,
    *,
    roi: Any = None,
    n_shuffles: int = 100,
    n_bootstraps: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    r"""Sentence-level score: correlation of a caption's similarity to stimuli with the voxel's responses.

    .. math:: \rho_v = \mathrm{Spearman}_i\big(\cos(c_v, s_i),\; y_{iv}\big)

    with :math:`c_v` the sentence vector of the voxel's caption and :math:`s_i` that of the stimulus' captions, on
    stimuli that the encoder was not fitted on.

    Parameters
    ----------
    captions : array (voxel, feature)
        Sentence vectors of the voxels' captions, such as `neuroenc.embedding.TextEmbedder` gives.
    stimuli : array (stimulus, feature)
        Sentence vectors of the stimuli's captions (mean over the captions of one).
    responses : array (stimulus, voxel)
        Measured, on held-out stimuli.
    roi : sequence (voxel,), optional
        Regions, for a null in which voxels get the caption of another voxel of their region. Taken from labelled
        responses where they have it.
    n_shuffles, n_bootstraps : int
        Draws of the nulls, and of the interval of the mean (stimuli resampled).
    seed : int

    Returns
    -------
    Dataset
        Over ``voxel``: ``rho``, ``shuffled`` (mean with another voxel's caption), ``shuffled_within_roi`` if there are
        regions. Attributes: ``mean``, ``low``, ``high`` (95 %), ``mean_shuffled``, ``mean_shuffled_within_roi``,
        ``p`` (share of shuffles whose mean is at least the real one), ``n_stimuli``.

    Raises
    ------
    DataError
        Shapes that do not fit, or vectors that are zero.

    References
    ----------
    Matsuyama, Nishimoto & Takagi (2026), LaVCa, ICLR (the sentence-level score).

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> stimuli, captions = rng.standard_normal((80, 6)), rng.standard_normal((10, 6))
    >>> unit = stimuli / np.linalg.norm(stimuli, axis=1, keepdims=True)
    >>> found = sentence_scores(captions, stimuli, unit @ captions.T, n_shuffles=20)
    >>> bool((found.rho > 0.99).all()), found.attrs["p"] < 0.05
    (True, True)
    """
    check_whole("n_shuffles", n_shuffles)
    check_whole("n_bootstraps", n_bootstraps)
    c, s = _unit(captions, "captions"), _unit(stimuli, "stimulus captions")
    y = np.asarray(responses, dtype=np.float64)
    if y.shape != (len(s), len(c)) or c.shape[1] != s.shape[1]:
        raise DataError(
            f"captions {c.shape}, stimuli {s.shape} and responses {y.shape} do not fit (stimulus, voxel), or one width."
        )
    if np.isnan(y).any():
        raise DataError("responses hold NaN. Next step: leave those stimuli or voxels out.")
    if roi is None and isinstance(responses, xr.DataArray) and "roi" in responses.coords:
        roi = responses["roi"].values
    if roi is not None and np.shape(roi) != (len(c),):
        raise DataError(f"roi has shape {np.shape(roi)}; legal is one name for each of the {len(c)} voxels.")
    rng = make_rng(seed)
    likeness = s @ c.T
    measured, told = _ranks(y), _ranks(likeness)
    rho = (measured * told).sum(axis=0)
    nulls = {"shuffled": np.zeros(len(c))}
    if roi is not None:
        nulls["shuffled_within_roi"] = np.asarray(roi)
    found: dict[str, Any] = {"rho": ("voxel", rho)}
    attrs: dict[str, Any] = {"mean": float(np.nanmean(rho)), "n_stimuli": len(s)}
    for name, groups in nulls.items():
        draws = np.stack([(measured * told[:, _derange(groups, rng)]).sum(axis=0) for _ in range(n_shuffles)])
        found[name] = ("voxel", draws.mean(axis=0))
        means = np.nanmean(draws, axis=1)
        attrs[f"mean_{name}"] = float(means.mean())
        attrs["p" if name == "shuffled" else f"p_{name}"] = float(
            (1 + (means >= attrs["mean"]).sum()) / (1 + n_shuffles)
        )
    # Ranks are not taken anew: among resampled stimuli they hardly move, and 1000 rankings would.
    resampled = []
    for _ in range(n_bootstraps):
        rows = rng.integers(0, len(s), len(s))
        a, b = measured[rows], told[rows]
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            resampled.append(np.nanmean((a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))))
    low, high, _ = stats.sample_interval(np.array(resampled), attrs["mean"], n_units=len(s))
    attrs["low"], attrs["high"] = float(low), float(high)
    coords = {}
    if isinstance(responses, xr.DataArray):
        coords = {k: v for k, v in responses.coords.items() if v.dims == ("voxel",)}
    return xr.Dataset(found, coords=coords, attrs=attrs)


def round_trip(
    coef: Any, captions: Any, corpus: Any, *, n_shuffles: int = 100, seed: int = 0
) -> tuple[Floats, dict[str, float]]:
    """Round trip: percentile of a caption's predicted response among the sentences of a corpus.

    Parameters
    ----------
    coef : array (feature, voxel)
        Weights in the joint space of images and texts.
    captions : array (voxel, feature)
        Text vectors of the voxels' captions, in that space.
    corpus : array (sentence, feature)
        Text vectors of other sentences.
    n_shuffles : int
    seed : int

    Returns
    -------
    percentile : ndarray (voxel,)
        Share of the corpus that is predicted to drive the voxel less than its caption; .5 is chance.
    summary : dict
        ``mean``, ``mean_shuffled`` (other voxels' captions) and ``p``.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> coef, corpus = rng.standard_normal((6, 8)), rng.standard_normal((200, 6))
    >>> percentile, summary = round_trip(coef, coef.T, corpus)
    >>> bool((percentile > 0.95).all()), 0.3 < summary["mean_shuffled"] < 0.7
    (True, True)
    """
    check_whole("n_shuffles", n_shuffles)
    w = np.asarray(coef, dtype=np.float64)
    c, bank = _unit(captions, "captions"), _unit(corpus, "the corpus")
    if w.ndim != 2 or w.shape != (c.shape[1], len(c)) or bank.shape[1] != c.shape[1]:
        raise DataError(f"weights {w.shape}, captions {c.shape} and corpus {bank.shape} do not fit.")
    level = np.sort(bank @ w, axis=0)

    def percentile(vectors: Floats) -> Floats:
        own = np.einsum("ve,ev->v", vectors, w)
        return np.array([np.searchsorted(level[:, v], own[v]) for v in range(len(own))]) / len(bank)

    rng = make_rng(seed)
    real = percentile(c)
    groups = np.zeros(len(c))
    shuffled = [float(percentile(c[_derange(groups, rng)]).mean()) for _ in range(n_shuffles)]
    p = (1 + sum(v >= real.mean() for v in shuffled)) / (1 + n_shuffles)
    return real, {"mean": float(real.mean()), "mean_shuffled": float(np.mean(shuffled)), "p": float(p)}


def caption_agreement(vectors: Any, *, n_shuffles: int = 100, seed: int = 0) -> tuple[Floats, dict[str, float]]:
    """Agreement of captions of a voxel between folds, bootstraps or halves of the data.

    Parameters
    ----------
    vectors : array (fold, voxel, feature)
        Sentence vectors of each fold's captions.
    n_shuffles : int
    seed : int

    Returns
    -------
    agreement : ndarray (voxel,)
        Mean cosine over pairs of folds.
    summary : dict
        ``mean``, ``mean_shuffled`` (voxels shuffled in every fold but the first) and ``p``.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> one = rng.standard_normal((30, 8))
    >>> agreement, summary = caption_agreement(np.stack([one, one + 0.1 * rng.standard_normal((30, 8))]))
    >>> bool((agreement > 0.9).all()), summary["p"] < 0.05
    (True, True)
    """
    check_whole("n_shuffles", n_shuffles)
    values = np.asarray(vectors, dtype=np.float64)
    if values.ndim != 3 or len(values) < 2:
        raise DataError(f"vectors have shape {values.shape}; expected (fold, voxel, feature) with at least two folds.")
    folds = np.stack([_unit(part, "captions") for part in values])
    n = len(folds)

    def agreement(parts: Floats) -> Floats:
        # The squared norm of a sum of unit vectors is n plus twice the cosines of all pairs.
        return ((parts.sum(axis=0) ** 2).sum(axis=1) - n) / (n * (n - 1))

    rng = make_rng(seed)
    real = agreement(folds)
    groups = np.zeros(folds.shape[1])
    shuffled = []
    for _ in range(n_shuffles):
        mixed = [folds[0], *[part[_derange(groups, rng)] for part in folds[1:]]]
        shuffled.append(float(agreement(np.stack(mixed)).mean()))
    p = (1 + sum(v >= real.mean() for v in shuffled)) / (1 + n_shuffles)
    return real, {"mean": float(real.mean()), "mean_shuffled": float(np.mean(shuffled)), "p": float(p)}


@lru_cache(maxsize=1 << 16)
def _words_of(caption: str) -> frozenset[str]:
    """Different words of a caption, remembered: intervals ask for the same captions a hundred times."""
    return frozenset(w.strip(".,;:!?\"'()").lower() for w in caption.split()) - {""}


def caption_diversity(captions: Sequence[str], vectors: Any) -> pd.Series:
    """Diversity of captions across voxels.

    Parameters
    ----------
    captions : sequence of str (voxel,)
    vectors : array (voxel, feature)
        Their sentence vectors.

    Returns
    -------
    Series
        ``n_captions``, ``n_distinct``, ``vocabulary`` (different words), ``semantic_variance`` (mean squared distance
        of unit vectors from their mean), ``dimensions_90`` (principal components for 90 % of it).

    Examples
    --------
    >>> caption_diversity(["a dog", "a dog", "a cat"], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).round(3).to_dict()
    {'n_captions': 3.0, 'n_distinct': 2.0, 'vocabulary': 3.0, 'semantic_variance': 0.444, 'dimensions_90': 1.0}
    """
    unit = _unit(vectors, "captions")
    texts = check_texts(captions, "captions")
    if not texts or len(unit) != len(texts):
        raise DataError(f"{len(texts)} captions, {len(unit)} vectors; legal is one vector each, at least one.")
    around = unit - unit.mean(axis=0)
    spectrum = np.linalg.svd(around, compute_uv=False) ** 2
    total = float(spectrum.sum())
    share = np.cumsum(spectrum) / total if total > 0 else np.ones(1)
    words = frozenset[str]().union(*(_words_of(c) for c in set(texts)))
    return pd.Series(
        {
            "n_captions": float(len(texts)),
            "n_distinct": float(len(set(texts))),
            "vocabulary": float(len(words)),
            "semantic_variance": total / len(unit),
            "dimensions_90": float(np.searchsorted(share, 0.9 - 1e-12) + 1) if total > 0 else 0.0,
        }
    )
