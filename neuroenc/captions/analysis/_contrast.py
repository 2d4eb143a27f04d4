"""Contrast captions of two groups of voxels: separating phrases by log-odds with an informative Dirichlet prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from neuroenc import stats
from neuroenc._core.checks import make_rng
from neuroenc._core.errors import DataError
from neuroenc.captions.analysis._words import check_captions, frequent_terms, indicator, unique_texts, voxel_keys
from neuroenc.captions.text._words import FUNCTION_WORDS, strip_phrases, tokens

Floats = np.ndarray
# Pseudo-counts of the prior in all, as a share of the counts of all groups.
_PRIOR = 0.1


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
