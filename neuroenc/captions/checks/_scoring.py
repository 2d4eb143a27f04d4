"""Caption scores against chance: sentence-level score, round trip, agreement, diversity, stability."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata

from neuroenc import stats
from neuroenc._core.checks import check_texts, check_whole, make_rng
from neuroenc._core.errors import DataError
from neuroenc.captions._caption import shuffled_control
from neuroenc.captions._linear import Weights, as_weights, select_voxels
from neuroenc.captions.text._vectors import embed

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
        Sentence vectors of the voxels' captions, such as `neuroenc.embedding.TextEmbedder` gives; for the image-level
        score mean vectors of images made of them, or found for them.
    stimuli : array (stimulus, feature)
        Sentence vectors of the stimuli's captions (mean over the captions of one), or vectors of the stimuli.
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
            f"captions {c.shape}, stimuli {s.shape} and responses {y.shape} do not fit: expected (voxel, feature), "
            "(stimulus, feature) and (stimulus, voxel)."
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
        p = (1 + (means >= attrs["mean"]).sum()) / (1 + n_shuffles)
        attrs["p" if name == "shuffled" else f"p_{name}"] = float(p)
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
    return real, _against(real, [float(percentile(c[_derange(groups, rng)]).mean()) for _ in range(n_shuffles)])


def caption_agreement(vectors: Any, *, n_shuffles: int = 100, seed: int = 0) -> tuple[Floats, dict[str, float]]:
    """Agreement of captions of a voxel between folds, bootstraps or halves of the data.

    Parameters
    ----------
    vectors : array (fold, voxel, feature)
        Sentence vectors of each fold's captions.

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
    return real, _against(real, shuffled)


def _against(real: Floats, shuffled: list[float]) -> dict[str, float]:
    """Mean of voxels, that of shuffled ones, and its one-sided p."""
    p = (1 + sum(v >= real.mean() for v in shuffled)) / (1 + len(shuffled))
    return {"mean": float(real.mean()), "mean_shuffled": float(np.mean(shuffled)), "p": float(p)}


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


#: (weights of one variant, bank to project them on)
Variant = tuple[Any, Any]


class StabilityJob(NamedTuple):
    """Weights to be captioned on a bank: one variant of a kind, or its null of shuffled weights."""

    kind: str
    null: bool
    weights: xr.DataArray
    bank: Any


def stability_jobs(
    variants: Mapping[str, Sequence[Variant]], *, null_voxels: int = 100, seed: int = 0
) -> list[StabilityJob]:
    """All captionings that stability rests on: each variant, and shuffled weights of some voxels beside it.

    Whoever makes the captions (of one reading of the bank for all of them, say) hands them to `score_stability`.

    Parameters
    ----------
    variants : mapping of str to sequence of (weights, bank)
        For each kind ("folds", "bootstrap", "halves", ...) at least two variants of the same voxels.
    null_voxels : int
        Voxels, drawn at random, for the null of shuffled weights.
    seed : int

    Returns
    -------
    list of (kind, null, weights, bank)
        ``null`` marks shuffled weights.

    Raises
    ------
    DataError
        Fewer than two variants of a kind, or variants of different voxels.

    Examples
    --------
    >>> coef = np.array([[1.0, 0.1, 0.9], [0.2, 1.0, 0.3]])
    >>> jobs = stability_jobs({"halves": [(coef, None)] * 2}, null_voxels=2)
    >>> [(j.kind, j.null, j.weights.sizes["voxel"]) for j in jobs]
    [('halves', False, 3), ('halves', False, 3), ('halves', True, 2), ('halves', True, 2)]
    """
    jobs: list[StabilityJob] = []
    rng = make_rng(seed)
    known = None
    for kind, several in variants.items():
        weights = [as_weights(w) for w, _ in several]
        known = _same_voxels(kind, weights, known)
        chosen = np.zeros(len(known), dtype=bool)
        chosen[rng.permutation(len(known))[:null_voxels]] = True
        jobs += [StabilityJob(kind, False, w.coef, bank) for w, (_, bank) in zip(weights, several)]
        for number, (w, (_, bank)) in enumerate(zip(weights, several)):
            mixed = shuffled_control(select_voxels(w, chosen).coef, seed + 1 + number)
            jobs.append(StabilityJob(kind, True, mixed, bank))
    return jobs


def score_stability(
    voxels: Any,
    told: Sequence[tuple[str, bool, Sequence[str]]],
    embed_text: Callable[[list[str]], Any],
    *,
    text_direction: Any = None,
    n_shuffles: int = 100,
    seed: int = 0,
    of_voxels: int | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    r"""Stability: agreement of captions over resampled weights or banks.

    .. math:: a_v = \frac{2}{n (n - 1)} \sum_{f < g} \cos(t_{vf} - m,\; t_{vg} - m)

    with :math:`t_{vf}` the text vector of the caption of voxel v in variant f and m the mean direction of texts. Two
    nulls stand beside it: captions of other voxels (``shuffled voxels``), which agree as far as all captions are
    alike, and captions of weights whose features are shuffled anew in each variant (``shuffled weights``), which agree
    as far as the decoder says the same whatever it is given.

    Parameters
    ----------
    voxels : sequence (voxel,)
        Names of the voxels that were captioned again, such as a sample (`sample_voxels`) that stands for all.
    told : sequence of (kind, null, captions)
        Best caption of each voxel, for one of the `stability_jobs` after the other.
    embed_text : callable
        ``embed_text(list of str)`` gives text vectors (n, feature).
    text_direction : array (feature,), optional
        m; without it texts of a contrastive space agree highly whatever they say.
    n_shuffles : int
        Of the null of other voxels.
    seed : int
    of_voxels : int, optional
        Voxels that the sample stands for.

    Returns
    -------
    voxels : DataFrame
        One row a voxel: ``voxel``, and for each kind its agreement, its ``<kind>_null`` (mean of the shuffled-weights
        null), and ``<kind>_same`` (share of pairs of variants with literally the same caption).
    summary : DataFrame
        ``kind, n_variants, n_voxels`` (captioned again) ``of_voxels, mean, low, high`` (95 % interval of the mean,
        bootstrap over the voxels of the sample)``, shuffled_voxels, shuffled_weights, same, p`` (of other voxels'
        captions).

    Examples
    --------
    >>> words = {"face": [1.0, 0.0], "house": [0.0, 1.0]}
    >>> told = [("halves", null, ["face", "house", "house"]) for null in (False, False, True, True)]
    >>> score_stability([4, 5, 6], told, lambda texts: [words[t] for t in texts])[1]["same"].tolist()
    [1.0]
    """
    table: dict[str, Any] = {"voxel": np.asarray(voxels)}
    rows = []
    for kind in dict.fromkeys(kind for kind, _, _ in told):
        texts, null = ([t for k, is_null, t in told if k == kind and is_null == wanted] for wanted in (False, True))
        told_by = _vectors(texts, embed_text, text_direction)
        agreement, info = caption_agreement(told_by, n_shuffles=n_shuffles, seed=seed)
        chance, _ = caption_agreement(_vectors(null, embed_text, text_direction), n_shuffles=1, seed=seed)
        same = _same(texts)
        n = len(agreement)
        table |= {kind: agreement, f"{kind}_null": np.full(n, chance.mean()), f"{kind}_same": same}
        draws = agreement[np.random.default_rng([seed, 1]).integers(0, n, (1000, n))].mean(axis=1)
        low, high, _ = stats.sample_interval(draws, agreement.mean(), n_units=n)
        row: dict[str, Any] = {"kind": kind, "n_variants": len(texts), "n_voxels": n, "of_voxels": of_voxels or n}
        row |= {"mean": info["mean"], "low": float(low), "high": float(high)}
        row |= {"shuffled_voxels": info["mean_shuffled"], "shuffled_weights": float(chance.mean())}
        rows.append({**row, "same": float(same.mean()), "p": info["p"]})
    return pd.DataFrame(table), pd.DataFrame(rows)


def _same_voxels(kind: str, several: Sequence[Weights], known: Any) -> np.ndarray:
    if len(several) < 2:
        raise DataError(f"{kind}: {len(several)} variant; agreement needs at least two.")
    names: np.ndarray = several[0].coef["voxel"].values if known is None else known
    for weights in several:
        if not np.array_equal(weights.coef["voxel"].values, names):
            raise DataError(f"variants of {kind!r} name different voxels or another order. Next step: align them.")
    return names


def _vectors(texts: Sequence[Sequence[str]], embed_text: Callable[[list[str]], Any], text_direction: Any) -> np.ndarray:
    vectors = embed(embed_text, [t for several in texts for t in several])
    vectors -= 0.0 if text_direction is None else np.asarray(text_direction)
    return vectors.reshape(len(texts), -1, vectors.shape[1])


def _same(texts: Sequence[Sequence[str]]) -> np.ndarray:
    return np.mean([a == b for a, b in combinations(np.array(texts, dtype=object), 2)], axis=0, dtype=float)
