"""Contrast captions of two groups of voxels: separating phrases by log-odds with an informative Dirichlet prior."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from neuroenc import stats
from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import at_least, make_rng
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions.analysis._words import check_captions, frequent_terms, indicator, unique_texts, voxel_keys
from neuroenc.captions.text._phrases import PhraseFinder, phrases_of as found_phrases
from neuroenc.captions.text._vectors import directions_of
from neuroenc.captions.text._words import FUNCTION_WORDS, STOP_PHRASES, strip_phrases, tokens

Floats = np.ndarray


def phrases_of(text: str, n: tuple[int, int] = (1, 3), stop: frozenset[str] = FUNCTION_WORDS) -> set[str]:
    """Runs of n[0] to n[1] words that neither begin nor end with a function word.

    >>> sorted(phrases_of("a dog on a board"))
    ['board', 'dog']
    >>> sorted(phrases_of("a brown dog", (2, 2)))
    ['brown dog']
    """
    words = tokens(text)
    found = set()
    for start, first in enumerate(words):
        if first in stop:
            continue
        for size in range(n[0], n[1] + 1):
            run = words[start : start + size]
            if len(run) == size and run[-1] not in stop:
                found.add(" ".join(run))
    return found


def phrases_in(
    texts: Sequence[str], n: tuple[int, int], stop: frozenset[str], engine: str | PhraseFinder | None
) -> list[set[str]]:
    """Phrases of each text: runs of words, or with an engine what :func:`neuroenc.captions.find_phrases` finds.

    >>> phrases_in(["a brown dog"], (1, 1), FUNCTION_WORDS, None) == [{"brown", "dog"}]
    True
    >>> phrases_in(["a brown dog"], (1, 1), FUNCTION_WORDS, "rules")
    [{'brown dog'}]
    """
    if engine is None:
        return [phrases_of(t, n, stop) for t in texts]
    return [{p.key for p in several if p.key not in stop} for several in found_phrases(texts, engine, ())]


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
    n: tuple[int, int] = (1, 3),
    prior_strength: float = 0.1,
    background: Iterable[str] | None = None,
    stop_phrases: Iterable[str] = STOP_PHRASES,
    stop: Iterable[str] = FUNCTION_WORDS,
    engine: str | PhraseFinder | None = None,
    min_voxels: int = 2,
    n_permutations: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Separating phrases of groups: log-odds with an informative Dirichlet prior.

    The log-odds of a phrase in a group against the other groups, shrunk to what the background corpus has
    (:func:`log_odds`), over its standard error; a phrase counts once a caption. Phrases that are common everywhere
    and phrases that are merely rare both get small z, unlike with plain ratios or differences of counts. The z score
    takes captions for independent; ``p`` permutes whole voxels among the groups instead.

    Parameters
    ----------
    captions : DataFrame
        ``voxel, caption``.
    groups : str, mapping or Series
        A column of the captions, or the group of each voxel; voxels without one are left out.
    n : (int, int)
        Shortest and longest phrase, in words.
    prior_strength : float
        Pseudo-counts in all, as a share of the counts of all groups; larger shrinks more.
    background : iterable of str, optional
        Texts whose frequencies are the prior, such as a caption corpus; default all captions here.
    stop_phrases, stop : iterables of str
        Removed phrases, and words that no phrase begins or ends with.
    engine : str or callable, optional
        Whole phrases instead of runs of ``n`` words, found as :func:`find_phrases` does; in languages other than
        English by ``phrases`` of a :class:`SyntacticDistanceParser`.
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
    ConfigError
        A setting is not legal.

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
    if not (len(n) == 2 and 1 <= n[0] <= n[1]):
        raise ConfigError(f"n={n!r} is not legal; it is the shortest and longest phrase in words, such as (1, 3).")
    at_least("prior_strength", prior_strength, above=True)
    captions = check_captions(captions, columns=[groups] if isinstance(groups, str) else [])
    labels = captions[groups] if isinstance(groups, str) else captions["voxel"].map(dict(groups))
    captions = captions.assign(_label=labels)[labels.notna().to_numpy()].reset_index(drop=True)
    names = sorted(set(labels.dropna()), key=str)
    if len(names) < 2:
        raise DataError(f"{len(names)} group has captions ({names}); at least two are needed.")
    voxel, first = voxel_keys(captions)
    group = np.array([names.index(x) for x in first["_label"]])
    texts, codes = unique_texts(captions["caption"])
    stopped = frozenset(stop)
    found = phrases_in(strip_phrases(texts, stop_phrases), n, stopped, engine)
    terms, per_voxel = frequent_terms(found, codes, voxel, len(first), min_voxels)
    if not terms.names:
        raise DataError(f"no phrase occurs in {min_voxels} voxels. Next step: min_voxels=1, or more captions.")
    counts = np.asarray((indicator(group, len(names)) @ per_voxel).todense())
    corpus = counts.sum(axis=0)
    if background is not None:
        others = phrases_in(strip_phrases(list(background), stop_phrases), n, stopped, engine)
        said = Counter(phrase for several in others for phrase in several)
        corpus = np.array([float(said[name]) for name in terms.names])
    # A phrase that the background lacks still needs a little mass.
    corpus = corpus + 0.5
    prior = prior_strength * counts.sum() * corpus / corpus.sum()
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
        Of :func:`separating_phrases`: ``n, prior_strength, background, min_voxels, n_permutations, seed``, ...

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
    >>> contrast(a, b, names=("FFA", "PPA"), n=(1, 1), n_permutations=99)[["group", "phrase"]].values.tolist()
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


def difference_captions(
    a: Any,
    b: Any,
    captions: list[str],
    embeddings: Any,
    *,
    names: tuple[str, str] = ("a", "b"),
    n: int = 10,
    centre: bool = True,
    n_permutations: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Captions of a corpus along the difference direction of two sets of voxels.

    .. math:: s_t = \cos\Bigl(\tfrac{1}{|A|}\sum_{v \in A} d_v - \tfrac{1}{|B|}\sum_{v \in B} d_v,\; t - \bar t\Bigr)

    This needs no captions of the voxels: a difference that no caption of a single voxel names can show here.

    Parameters
    ----------
    a, b : Dataset of :func:`neuroenc.captions.project` (or weights (feature, voxel))
    captions : list of str (m,)
    embeddings : array (m, feature)
        Their text vectors in the same space.
    names : (str, str)
    n : int
        Captions a side.
    centre : bool
    n_permutations, seed : int
        Voxels are permuted between a and b; p compares projections on :math:`t - \bar t`, not cosines, because a
        difference of nothing has a direction, too.

    Returns
    -------
    DataFrame
        ``group, rank, caption, score`` (cosine)``, z, p`` (one-sided)``, q`` (over all captions of the corpus).

    Raises
    ------
    DataError
        Widths or numbers do not fit, or a side has no voxel.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.tile([[1.0], [0.0]], 6), np.tile([[0.0], [1.0]], 6)
    >>> out = difference_captions(a, b, ["a dog", "a house"], np.eye(2), n=1)
    >>> out[["group", "caption"]].values.tolist()
    [['a', 'a dog'], ['b', 'a house']]
    """
    sides = []
    for side, name in ((a, names[0]), (b, names[1])):
        target, live, _, _ = directions_of(side, centre=centre)
        if not live.any():
            raise DataError(f"{name!r} has no voxel with a direction.")
        sides.append(target[live])
    vectors = unit_rows(np.asarray(embeddings, dtype=np.float64))
    width = sides[0].shape[1]
    if vectors.shape != (len(captions), width) or sides[1].shape[1] != width:
        raise DataError(f"widths do not fit: voxels {width} and {sides[1].shape[1]}, captions {vectors.shape}.")
    text = vectors - vectors.mean(axis=0) if centre else vectors
    text = unit_rows(text)
    along = np.concatenate(sides) @ text.T
    inside = np.arange(len(along)) < len(sides[0])
    difference = sides[0].mean(axis=0) - sides[1].mean(axis=0)
    score = text @ unit_rows(difference[None])[0]
    real = along[inside].mean(axis=0) - along[~inside].mean(axis=0)
    rng = make_rng(seed)
    weight = np.empty((n_permutations, len(along)))
    for row in weight:
        moved = rng.permutation(inside)
        row[:] = np.where(moved, 1 / inside.sum(), -1 / (~inside).sum())
    total, square, more, less = (np.zeros(len(captions)) for _ in range(4))
    for start in range(0, n_permutations, 64):
        drawn = weight[start : start + 64] @ along
        total, square = total + drawn.sum(axis=0), square + (drawn**2).sum(axis=0)
        more, less = more + (drawn >= real - 1e-12).sum(axis=0), less + (drawn <= real + 1e-12).sum(axis=0)
    spread = np.sqrt(np.maximum(square / n_permutations - (total / n_permutations) ** 2, 0))
    z = np.divide(real - total / n_permutations, spread, out=np.zeros_like(real), where=spread > 1e-12)
    frames = []
    for name, sign, count in ((names[0], 1, more), (names[1], -1, less)):
        p = (1 + count) / (1 + n_permutations)
        q = stats.fdr(p)
        at = np.argsort(-sign * score, kind="stable")[:n]
        found = {"group": name, "rank": np.arange(1, len(at) + 1), "caption": [captions[i] for i in at]}
        frames.append(pd.DataFrame({**found, "score": sign * score[at], "z": sign * z[at], "p": p[at], "q": q[at]}))
    return pd.concat(frames, ignore_index=True)
