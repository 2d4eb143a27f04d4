"""Contrast captions of two groups of voxels: separating phrases by log-odds with an informative Dirichlet prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import norm as normal, t as student

from neuroenc import stats
from neuroenc._core.checks import make_rng, one_of, share as share_of
from neuroenc._core.errors import DataError
from neuroenc.captions.analysis._lexicon import concept_maps
from neuroenc.captions.analysis._words import check_captions, frequent_terms, indicator, unique_texts, voxel_keys
from neuroenc.captions.text._words import FUNCTION_WORDS, strip_phrases, tokens

Floats = np.ndarray
# Pseudo-counts of the prior in all, as a share of the counts of all groups.
_PRIOR = 0.1
# Subjects on a side from which on they, not voxels, are the units of intervals.
_LEAST_SUBJECTS = 3


def phrases_of(text: str, longest: int = 3) -> set[str]:
    """Runs of at most ``longest`` words that neither begin nor end with a function word.

    >>> sorted(phrases_of("a dog on a board"))
    ['board', 'dog']
    >>> sorted(phrases_of("a brown dog", 1))
    ['brown', 'dog']
    """
    words = tokens(text)
    found = set()
    for start, first in enumerate(words):
        if first in FUNCTION_WORDS:
            continue
        for size in range(1, longest + 1):
            run = words[start : start + size]
            if len(run) == size and run[-1] not in FUNCTION_WORDS:
                found.add(" ".join(run))
    return found


def log_odds(counts: Floats, prior: Floats) -> tuple[Floats, Floats]:
    r"""Log-odds of each term in each group against all other groups, and its z score.

    .. math:: \delta_{gw} = \log\frac{y_{gw} + \alpha_w}{n_g + \alpha_0 - y_{gw} - \alpha_w}
              - \log\frac{y_{\bar gw} + \alpha_w}{n_{\bar g} + \alpha_0 - y_{\bar gw} - \alpha_w}, \qquad
              z_{gw} = \delta_{gw} \Big/ \sqrt{\tfrac{1}{y_{gw} + \alpha_w} + \tfrac{1}{y_{\bar gw} + \alpha_w}}

    Parameters
    ----------
    counts : array (..., group, term)
    prior : array (term,)
        Pseudo-counts :math:`\alpha_w`, positive.

    Returns
    -------
    delta, z : arrays (..., group, term)
    """
    own = counts + prior
    other = counts.sum(axis=-2, keepdims=True) - counts + prior
    total_own, total_other = own.sum(axis=-1, keepdims=True), other.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        delta = np.log(own) - np.log(total_own - own) - np.log(other) + np.log(total_other - other)
    return delta, delta / np.sqrt(1 / own + 1 / other)


def _permuted(
    per_voxel: sparse.csr_matrix, group: Floats, n_groups: int, prior: Floats, z: Floats, n: int, seed: int
) -> tuple[Floats, Floats]:
    """Share of permutations of voxels with at least this |z|, for the term alone and for the best of all terms."""
    rng = make_rng(seed)
    alone, family = np.zeros(z.shape), np.zeros(z.shape)
    for _ in range(n):
        counts = np.asarray((indicator(rng.permutation(group), n_groups) @ per_voxel).todense())
        drawn = np.abs(log_odds(counts, prior)[1])
        alone += drawn >= np.abs(z) - 1e-9
        family += drawn.max(axis=1, keepdims=True) >= np.abs(z) - 1e-9
    return (1 + alone) / (1 + n), (1 + family) / (1 + n)


def separating_phrases(
    captions: pd.DataFrame,
    groups: str | Mapping[Any, Any] | pd.Series,
    *,
    min_voxels: int = 2,
    n_permutations: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Separating phrases of groups: log-odds with an informative Dirichlet prior.

    The log-odds of a phrase in a group against the other groups, shrunk to what all captions have
    (:func:`log_odds`), over its standard error; a phrase counts once a caption. Phrases that are common everywhere
    and phrases that are merely rare both get small z, unlike with plain ratios or differences of counts. The z score
    takes captions for independent; ``p`` permutes whole voxels among the groups instead.

    Parameters
    ----------
    captions : DataFrame
        ``voxel, caption``.
    groups : str, mapping or Series
        A column of the captions, or the group of each voxel; voxels without one are left out.
    min_voxels : int
        Phrases of fewer voxels are left out.
    n_permutations, seed : int
        0 leaves p out (NaN).

    Returns
    -------
    DataFrame
        ``group, phrase, count, share`` (of the group's captions)``, share_others, log_odds, z, p, q`` (over all
        rows; Benjamini-Hochberg)`` and p_max`` (against the best phrase of each permutation: any false phrase at
        all). Sorted by group, then z from high to low; only phrases that speak for the group (z > 0).

    Raises
    ------
    DataError
        Fewer than two groups, or no phrase is left.

    References
    ----------
    Monroe, Colaresi & Quinn (2008), Fightin' words, Political Analysis 16(4), section 3.5.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"voxel": range(8), "caption": ["a dog", "a brown dog"] * 2 + ["a man", "a tall man"] * 2})
    >>> out = separating_phrases(frame, {v: "left" if v < 4 else "right" for v in range(8)}, n_permutations=99)
    >>> out.groupby("group").first()["phrase"].to_dict()
    {'left': 'dog', 'right': 'man'}
    """
    captions = check_captions(captions, columns=[groups] if isinstance(groups, str) else [])
    labels = captions[groups] if isinstance(groups, str) else captions["voxel"].map(dict(groups))
    captions = captions.assign(_label=labels)[labels.notna().to_numpy()].reset_index(drop=True)
    names = sorted(set(labels.dropna()), key=str)
    if len(names) < 2:
        raise DataError(f"{len(names)} group has captions ({names}); at least two are needed.")
    voxel, first = voxel_keys(captions)
    group = np.array([names.index(x) for x in first["_label"]])
    texts, codes = unique_texts(captions["caption"])
    found = [phrases_of(text) for text in strip_phrases(texts)]
    terms, per_voxel = frequent_terms(found, codes, voxel, len(first), min_voxels)
    if not terms.names:
        raise DataError(f"no phrase occurs in {min_voxels} voxels. Next step: min_voxels=1, or more captions.")
    counts = np.asarray((indicator(group, len(names)) @ per_voxel).todense())
    # A phrase of one caption needs a little more mass.
    corpus = counts.sum(axis=0) + 0.5
    prior = _PRIOR * counts.sum() * corpus / corpus.sum()
    delta, z = log_odds(counts, prior)
    p = p_max = np.full(z.shape, np.nan)
    if n_permutations:
        p, p_max = _permuted(per_voxel, group, len(names), prior, z, n_permutations, seed)
    sizes = np.bincount(group[voxel], minlength=len(names)).astype(np.float64)
    rest = counts.sum(axis=0) - counts
    out = pd.DataFrame(
        {
            "group": [name for name in names for _ in terms.names],
            "phrase": terms.names * len(names),
            "count": counts.ravel().astype(int),
            "share": (counts / sizes[:, None]).ravel(),
            "share_others": (rest / (sizes.sum() - sizes)[:, None]).ravel(),
            "log_odds": delta.ravel(),
            "z": z.ravel(),
            "p": p.ravel(),
            "q": stats.fdr(p.ravel()),
            "p_max": p_max.ravel(),
        }
    )
    out = out[out["z"] > 0]
    at = {name: i for i, name in enumerate(names)}
    order = np.lexsort((out["phrase"], -out["z"].to_numpy(), out["group"].map(at)))
    return out.iloc[order].reset_index(drop=True)


def contrast(
    captions_a: pd.DataFrame, captions_b: pd.DataFrame, *, names: tuple[str, str] = ("a", "b"), **options: Any
) -> pd.DataFrame:
    """Contrast the captions of two sets of voxels by separating words and phrases.

    Parameters
    ----------
    captions_a, captions_b : DataFrame
        ``voxel, caption``: of two regions or subjects. The same voxel number in both is taken for two voxels, unless
        both tables are of one subject (equal ``subject``, or none) and the very same caption rows stand in both.
    names : (str, str)
    **options
        Of :func:`separating_phrases`: ``min_voxels, n_permutations, seed``.

    Returns
    -------
    DataFrame
        As :func:`separating_phrases`, ``group`` being one of the names: z scores with a prior, and permutation p over
        voxels.

    Raises
    ------
    DataError
        A table is empty, or voxels stand in both.

    References
    ----------
    Monroe, Colaresi & Quinn (2008), Fightin' words, Political Analysis 16(4).

    Examples
    --------
    >>> import pandas as pd
    >>> a = pd.DataFrame({"voxel": range(5), "caption": "a dog on the grass"})
    >>> b = pd.DataFrame({"voxel": range(5, 10), "caption": "a house on the grass"})
    >>> contrast(a, b, names=("FFA", "PPA"), n_permutations=99)[["group", "phrase"]].values.tolist()
    [['FFA', 'dog'], ['PPA', 'house']]
    """
    if names[0] == names[1]:
        raise DataError(f"both sides are named {names[0]!r}; they need different names.")
    sides = [check_captions(side) for side in (captions_a, captions_b)]
    keys = [c for c in ("subject", "voxel", "rank", "caption") if all(c in s for s in sides)]
    labels = [c for c in ("i", "j", "k", "vertex", "hemi", "roi") if all(c in s for s in sides)]
    shared = sides[0][keys + labels].merge(sides[1][keys + labels]).drop_duplicates()
    if len(shared):
        raise DataError(
            f"{shared['voxel'].nunique()} voxels stand on both sides with the same caption, the first is "
            f"{shared['voxel'].iloc[0]!r} (a voxel of two regions?). Next step: leave them out of one side."
        )
    both = pd.concat([side.assign(_side=name) for side, name in zip(sides, names)], ignore_index=True)
    both["voxel"] = both.groupby(["_side", *(["subject"] if "subject" in both else []), "voxel"], sort=False).ngroup()
    # "a" stands before "b" whatever the names are.
    out = separating_phrases(both.drop(columns=["subject"], errors="ignore"), "_side", **options)
    at = {name: i for i, name in enumerate(names)}
    return out.sort_values("group", key=lambda g: g.map(at), kind="stable").reset_index(drop=True)


def contrast_shares(
    captions_a: pd.DataFrame,
    captions_b: pd.DataFrame,
    *,
    names: tuple[str, str] = ("a", "b"),
    terms: str = "phrase",
    paired: bool = False,
    at_least: float = 0.5,
    min_voxels: int = 5,
    confidence: float = 0.95,
) -> pd.DataFrame:
    r"""Contrast what share of voxels names each phrase or concept, with subjects as the units where they are enough.

    Voxels of one subject are alike: that subjects differ makes nearly every phrase differ between two groups of
    subjects if voxels are compared (:func:`contrast`). With at least 3 subjects on each side the interval is Student's
    over the subjects' shares (Welch's; with ``paired``, over differences within subjects); its standard error is at
    least that of the voxels, so that a few subjects who agree by chance do not count for more. With fewer it is
    Newcombe's over voxels, and ``unit`` says so: it tells nothing of other subjects, and is too narrow even for these.

    .. math:: \bar d_w \pm t \, \max\bigl(se_w^{subjects},\, se_w^{voxels}\bigr), \qquad
              \bar d_w = \tfrac{1}{n_a} \sum_{s \in a} p_{sw} - \tfrac{1}{n_b} \sum_{s \in b} p_{sw}

    Parameters
    ----------
    captions_a, captions_b : DataFrame
        ``voxel, caption``, and ``subject`` where there are several: two regions, groups of subjects, or data sets.
    names : tuple of str
        Of the two sides.
    terms : {"phrase", "concept"}
        Runs of words, or concepts of the lexicon.
    paired : bool
        Subjects of the same name are the same person on both sides; those on one side only are left out.
    at_least : float
        Share of a voxel's captions that must have the term, see :func:`concept_maps`.
    min_voxels : int
        Terms of fewer voxels on both sides together are left out.
    confidence : float

    Returns
    -------
    DataFrame
        ``term, share_NAME`` of each side``, difference, low, high, p, q`` (Benjamini-Hochberg)``, unit`` ("subject" or
        "voxel")``, n_NAME`` (units of each side), by p. Intervals hold for one term each; of many, look at q.

    Raises
    ------
    DataError
        A table is empty, both sides have one name, no subject stands on both sides of a paired contrast, or no term is
        left.

    References
    ----------
    Welch (1947), Biometrika 34. Newcombe (1998), Statistics in Medicine 17 (method 10). Holmes & Friston (1998),
    NeuroImage 7 (subjects as a random effect).

    Examples
    --------
    >>> import pandas as pd
    >>> def side(noun, names):
    ...     return pd.DataFrame([(s, v, f"a {noun if v else 'tree'}") for s in names for v in range(8)],
    ...                         columns=["subject", "voxel", "caption"])
    >>> out = contrast_shares(side("dog", "ABC"), side("car", "DEF"), names=("FFA", "PPA"))
    >>> out[["term", "share_FFA", "share_PPA", "unit", "n_FFA"]].values.tolist()[0]
    ['car', 0.0, 0.875, 'subject', 3]
    """
    if names[0] == names[1]:
        raise DataError(f"both sides are named {names[0]!r}; they need different names.")
    one_of("terms", terms, ("phrase", "concept"))
    share_of("at_least", at_least)
    sides = [check_captions(side) for side in (captions_a, captions_b)]
    both = pd.concat([side.assign(_side=k) for k, side in enumerate(sides)], ignore_index=True)
    both["subject"] = both["subject"].astype(str) if "subject" in both else ""
    if paired:
        common = set.intersection(*(set(part["subject"]) for _, part in both.groupby("_side")))
        both = both[both["subject"].isin(common)].reset_index(drop=True)
        if both.empty:
            raise DataError("no subject stands on both sides. Next step: paired=False, or check the column subject.")
    both["voxel"] = both.groupby(["_side", "subject", "voxel"], sort=False).ngroup()
    first = both.drop_duplicates("voxel")
    has, found = _having(both, terms, at_least, min_voxels)
    side = first["_side"].to_numpy()
    shares, sizes = [], []
    for k in (0, 1):
        unit, owners = pd.factorize(first.loc[side == k, "subject"], sort=True)
        n = np.bincount(unit, minlength=len(owners)).astype(np.float64)
        shares.append(np.asarray(indicator(unit, len(owners)) @ has[side == k]) / n[:, None])
        sizes.append(n)
    by_subject = min(map(len, sizes)) >= _LEAST_SUBJECTS
    if by_subject:
        mean, low, high, p = _over_subjects(shares, sizes, paired, confidence)
    else:
        mean, low, high, p = _over_voxels([has[side == k] for k in (0, 1)], confidence)
    out = {"term": found, **{f"share_{name}": m for name, m in zip(names, mean)}}
    out |= {"difference": mean[0] - mean[1], "low": low, "high": high, "p": p, "q": stats.fdr(p)}
    out["unit"] = "subject" if by_subject else "voxel"
    for k, name in enumerate(names):
        out[f"n_{name}"] = len(sizes[k]) if by_subject else int((side == k).sum())
    return pd.DataFrame(out).sort_values(["p", "term"], kind="stable", ignore_index=True)


def _having(captions: pd.DataFrame, terms: str, at_least: float, min_voxels: int) -> tuple[Floats, list[str]]:
    """Which voxel has which term, (voxel, term) of 0 and 1, and the terms' names."""
    if terms == "concept":
        maps = concept_maps(captions[["voxel", "caption"]], at_least=at_least)
        has, found = maps["named"].values.T.astype(np.float64), [str(x) for x in maps["concept"].values]
    else:
        texts, codes = unique_texts(captions["caption"])
        voxel = captions["voxel"].to_numpy()
        named, counts = frequent_terms(
            [phrases_of(text) for text in strip_phrases(texts)], codes, voxel, voxel.max() + 1, min_voxels
        )
        share = counts.toarray() / np.bincount(voxel)[:, None]
        has, found = ((share >= at_least) & (share > 0)).astype(np.float64), [str(x) for x in named.names]
    kept = has.sum(axis=0) >= min_voxels
    if not kept.any():
        raise DataError(f"no {terms} is named by {min_voxels} voxels. Next step: min_voxels=1, or more captions.")
    return has[:, kept], [name for name, keep in zip(found, kept) if keep]


def _over_subjects(
    shares: list[Floats], sizes: list[Floats], paired: bool, confidence: float
) -> tuple[list[Floats], Floats, Floats, Floats]:
    mean, n = [s.mean(axis=0) for s in shares], [len(s) for s in shares]
    d = mean[0] - mean[1]
    parts, voxels = [s.var(axis=0, ddof=1) / k for s, k in zip(shares, n)], np.zeros(len(d))
    for s, size in zip(shares, sizes):
        # Half a voxel with the term and half a one without: no share is known to be 0.
        pooled = (size @ s + 0.5) / (size.sum() + 1)
        voxels += pooled * (1 - pooled) * (1 / size).sum() / len(size) ** 2
    if paired:
        variance, df = (shares[0] - shares[1]).var(axis=0, ddof=1) / n[0], np.full(len(d), n[0] - 1.0)
    else:
        variance = parts[0] + parts[1]
        below = parts[0] ** 2 / (n[0] - 1) + parts[1] ** 2 / (n[1] - 1)
        df = np.where(below > 0, variance**2 / np.where(below > 0, below, 1.0), sum(n) - 2.0)
    error = np.sqrt(np.maximum(variance, voxels))
    reach = student.ppf(0.5 + confidence / 2, df) * error
    return mean, np.maximum(d - reach, -1), np.minimum(d + reach, 1), 2 * student.sf(np.abs(d) / error, df)


def _over_voxels(has: list[Floats], confidence: float) -> tuple[list[Floats], Floats, Floats, Floats]:
    """Newcombe's interval of a difference of two shares, and the p of the score test."""
    count, n = [h.sum(axis=0) for h in has], [len(h) for h in has]
    mean = [c / k for c, k in zip(count, n)]
    limits = [stats.share_interval(c, k, confidence=confidence) for c, k in zip(count, n)]
    (low_a, high_a), (low_b, high_b) = limits
    d, pooled = mean[0] - mean[1], sum(count) / sum(n)
    low = d - np.hypot(mean[0] - low_a, high_b - mean[1])
    high = d + np.hypot(high_a - mean[0], mean[1] - low_b)
    error = np.sqrt(pooled * (1 - pooled) * (1 / n[0] + 1 / n[1]))
    z = np.where(error > 0, np.abs(d) / np.where(error > 0, error, 1), 0.0)
    return mean, low, high, 2 * normal.sf(z)
