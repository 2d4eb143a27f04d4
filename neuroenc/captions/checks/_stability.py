"""Stability of captions under other banks, trials or halves of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc._core.checks import make_rng
from neuroenc._core.errors import DataError
from neuroenc._core.progress import progress as progress_bar
from neuroenc.captions._caption import shuffled_control
from neuroenc.captions._linear import Weights, as_weights, select_voxels
from neuroenc.captions.checks._gate import sample_voxels
from neuroenc.captions.checks._scoring import caption_agreement

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

    For callers that make the captions themselves, as those who read a bank once for everything; see
    `caption_stability`, which does both, for the parameters.

    Returns
    -------
    list of (kind, null, weights, bank)
        ``null`` marks shuffled weights.

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
    """Agreement of captions, from those of each of `stability_jobs`.

    Parameters
    ----------
    voxels : sequence (voxel,)
        Names of the voxels that were captioned again.
    told : sequence of (kind, null, captions)
        Best caption of each voxel, job by job.
    embed_text, text_direction, n_shuffles, seed
        As in `caption_stability`.
    of_voxels : int, optional
        Voxels that the sample stands for.

    Returns
    -------
    voxels, summary : DataFrame
        As `caption_stability`.

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
        agreement, info = caption_agreement(
            _vectors(texts, embed_text, text_direction), n_shuffles=n_shuffles, seed=seed
        )
        chance, _ = caption_agreement(_vectors(null, embed_text, text_direction), n_shuffles=1, seed=seed)
        same = _same(texts)
        n = len(agreement)
        table |= {kind: agreement, f"{kind}_null": np.full(n, chance.mean()), f"{kind}_same": same}
        draws = agreement[np.random.default_rng([seed, 1]).integers(0, n, (1000, n))].mean(axis=1)
        low, high, _ = stats.sample_interval(draws, agreement.mean(), n_units=n)
        rows.append(
            {
                "kind": kind,
                "n_variants": len(texts),
                "n_voxels": n,
                "of_voxels": of_voxels or n,
                "mean": info["mean"],
                "low": float(low),
                "high": float(high),
                "shuffled_voxels": info["mean_shuffled"],
                "shuffled_weights": float(chance.mean()),
                "same": float(same.mean()),
                "p": info["p"],
            }
        )
    return pd.DataFrame(table), pd.DataFrame(rows)


def caption_stability(
    variants: Mapping[str, Sequence[Variant]],
    decode: Callable[[xr.DataArray, Any], Sequence[str]],
    embed_text: Callable[[list[str]], Any],
    *,
    max_voxels: int | None = None,
    strata: Sequence[str] | None = None,
    text_direction: Any = None,
    null_voxels: int = 100,
    n_shuffles: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    r"""Stability: agreement of captions over resampled weights or banks.

    .. math:: a_v = \frac{2}{n (n - 1)} \sum_{f < g} \cos(t_{vf} - m,\; t_{vg} - m)

    with :math:`t_{vf}` the text vector of the caption of voxel v in variant f and m the mean direction of texts. Two
    nulls stand beside it: captions of other voxels (``shuffled voxels``), which agree as far as all captions are
    alike, and captions of weights whose features are shuffled anew in each variant (``shuffled weights``), which agree
    as far as the decoder says the same whatever it is given.

    Parameters
    ----------
    variants : mapping of str to sequence of (weights, bank)
        For each kind ("folds", "bootstrap", "halves", ...) at least two variants of the same voxels.
    decode : callable
        ``decode(weights, bank)`` gives the best caption of each voxel of a DataArray (feature, voxel).
    embed_text : callable
        ``embed_text(list of str)`` gives text vectors (n, feature).
    max_voxels : int, optional
        Voxels that are captioned again: a random sample of that size, stratified by region, stands for all. Captions
        of every voxel in every variant take ``n_variants`` times as long as the captions themselves.
    strata : sequence of str (voxel,), optional
        Region of each voxel for that sample; by default the first name of the weights' coordinate ``roi``.
    text_direction : array (feature,), optional
        m; without it texts of a contrastive space agree highly whatever they say.
    null_voxels : int
        Voxels, drawn at random, for the null of shuffled weights.
    n_shuffles : int
        Of the null of other voxels.
    seed : int
    progress : bool

    Returns
    -------
    voxels : DataFrame
        One row a voxel (of the sample): ``voxel``, and for each kind its agreement, its ``<kind>_null`` (mean of the
        shuffled-weights null), and ``<kind>_same`` (share of pairs of variants with literally the same caption).
    summary : DataFrame
        ``kind, n_variants, n_voxels`` (captioned again) ``of_voxels, mean, low, high`` (95 % interval of the mean,
        bootstrap over the voxels of the sample)``, shuffled_voxels, shuffled_weights, same, p`` (of other voxels'
        captions).

    Raises
    ------
    DataError
        Fewer than two variants, variants of different voxels, a sample of fewer than two, or strata of another number
        of voxels.

    Examples
    --------
    >>> import numpy as np
    >>> words = {"face": [1.0, 0.0], "house": [0.0, 1.0]}
    >>> name = lambda weights, bank: [["face", "house"][int(np.argmax(w))] for w in weights.values.T]
    >>> coef = np.array([[1.0, 0.1, 0.9], [0.2, 1.0, 0.3]])
    >>> voxels, summary = caption_stability(
    ...     {"halves": [(coef, None), (coef + 0.01, None)]}, name, lambda t: [words[x] for x in t], progress=False)
    >>> voxels["halves"].tolist(), summary["same"].tolist()
    ([1.0, 1.0, 1.0], [1.0])
    """
    kinds = {k: [(as_weights(w), bank) for w, bank in v] for k, v in variants.items()}
    known = None
    for kind, several in kinds.items():
        known = _same_voxels(kind, [w for w, _ in several], known)
    if known is None:
        raise DataError("there are no variants; agreement needs at least two of a kind.")
    labels = _strata(next(iter(kinds.values()))[0][0].coef) if strata is None else [str(s) for s in strata]
    if len(labels) != len(known):
        raise DataError(f"strata name the region of {len(labels)} voxels, the weights are of {len(known)}.")
    chosen = sample_voxels(labels, max_voxels, seed)
    sampled = {k: [(select_voxels(w, chosen).coef, bank) for w, bank in v] for k, v in kinds.items()}
    jobs = stability_jobs(sampled, null_voxels=null_voxels, seed=seed)
    told = []
    with progress_bar(desc="stability", total=len(jobs), show=progress) as bar:
        for job in jobs:
            told.append((job.kind, job.null, _captions(decode, job.weights, job.bank)))
            bar.update(1)
    return score_stability(
        known[chosen],
        told,
        embed_text,
        text_direction=text_direction,
        n_shuffles=n_shuffles,
        seed=seed,
        of_voxels=len(known),
    )


def _strata(coef: xr.DataArray) -> list[str]:
    if "roi" not in coef.coords:
        return [""] * coef.sizes["voxel"]
    return [str(names).split(";")[0] for names in coef["roi"].values]


def _same_voxels(kind: str, several: Sequence[Weights], known: Any) -> np.ndarray:
    if len(several) < 2:
        raise DataError(f"{kind}: {len(several)} variant; agreement needs at least two.")
    names: np.ndarray = several[0].coef["voxel"].values if known is None else known
    for weights in several:
        if not np.array_equal(weights.coef["voxel"].values, names):
            raise DataError(f"variants of {kind!r} name different voxels or another order. Next step: align them.")
    return names


def _captions(decode: Callable[[Any, Any], Sequence[str]], coef: Any, bank: Any) -> list[str]:
    found = [str(t) for t in decode(coef, bank)]
    n = coef.sizes["voxel"]
    if len(found) != n:
        raise DataError(f"decode gave {len(found)} captions for {n} voxels; legal is one a voxel.")
    return found


def _vectors(texts: Sequence[Sequence[str]], embed_text: Callable[[list[str]], Any], text_direction: Any) -> np.ndarray:
    different = list(dict.fromkeys(t for several in texts for t in several))
    vectors = np.asarray(embed_text(different), dtype=np.float64)
    if text_direction is not None:
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) - np.asarray(text_direction)
    number = {t: k for k, t in enumerate(different)}
    return vectors[np.array([[number[t] for t in several] for several in texts])]


def _same(texts: Sequence[Sequence[str]]) -> np.ndarray:
    values = np.array(texts, dtype=object)
    n = len(values)
    pairs = [values[a] == values[b] for a in range(n) for b in range(a + 1, n)]
    return np.mean(np.array(pairs, dtype=float), axis=0)
