"""Structured summaries of the captions of a region: scope, aspects, descriptions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import silhouette_score

from neuroenc._core.arrays import unit_rows
from neuroenc._core.errors import DataError
from neuroenc._core.tables import check_columns
from neuroenc.captions.analysis._contrast import phrases_of, separating_phrases
from neuroenc.captions.analysis._words import check_captions, count_terms, unique_texts
from neuroenc.captions.text._words import strip_phrases
from neuroenc.stats import share_interval

# Phrases in a title.
_PHRASES = 3


@dataclass(frozen=True)
class Description:
    """One caption, verbatim, with all voxels that have it.

    ``n_supported`` of its ``n_phrases`` phrases are supported (each counted for each voxel); 0 of 0 where nothing was
    checked.
    """

    caption: str
    voxels: tuple[Any, ...]
    n_phrases: int = 0
    n_supported: int = 0


@dataclass(frozen=True)
class Aspect:
    """A group of alike captions.

    Attributes
    ----------
    title : str
        The phrases that separate it from the other aspects.
    phrases : tuple of str
        Those phrases.
    share : float
        Of the captions.
    low, high : float
        95 % interval of the share of voxels (`neuroenc.stats.share_interval`).
    n_phrases, n_supported : int
        Phrases of its captions that were checked, and those that are supported.
    voxels : tuple
        All voxels with a caption in it.
    descriptions : tuple of Description
        Different captions, most typical first.
    """

    title: str
    phrases: tuple[str, ...]
    share: float
    voxels: tuple[Any, ...]
    descriptions: tuple[Description, ...]
    low: float = float("nan")
    high: float = float("nan")
    n_phrases: int = 0
    n_supported: int = 0


@dataclass(frozen=True)
class StructuredCaptions:
    """Structured summary of the captions of a region: scope, aspects, descriptions.

    Attributes
    ----------
    scope : str
        One sentence.
    aspects : tuple of Aspect
        Largest first.
    n_captions, n_voxels : int
    """

    scope: str
    aspects: tuple[Aspect, ...]
    n_captions: int
    n_voxels: int


def _vectors(texts: list[str]) -> np.ndarray:
    """Which words and pairs of words captions hold, centred, at unit norm."""
    try:
        # No weights for rare words: an aspect is what many captions share.
        found = TfidfVectorizer(analyzer=sorted, use_idf=False)
        values = found.fit_transform([phrases_of(text, 2) for text in strip_phrases(texts)]).toarray()
    except ValueError:
        raise DataError("the captions hold no words to tell them apart by.") from None
    return unit_rows(values - values.mean(axis=0))


def _group(x: np.ndarray, most: int, seed: int) -> np.ndarray:
    distinct = len(np.unique(x.round(9), axis=0))
    if distinct < 2:
        return np.zeros(len(x), dtype=int)
    options = list(range(2, min(most, distinct - 1) + 1)) or [2]
    # Different captions count once: one that many voxels share is no aspect by itself.
    found = [KMeans(k, n_init=10, random_state=seed).fit_predict(x) for k in options]
    scores = [silhouette_score(x, part) if 1 < len(np.unique(part)) < len(x) else -1.0 for part in found]
    return np.asarray(found[int(np.argmax(scores))])


def _titles(captions: pd.DataFrame, group: np.ndarray) -> list[tuple[str, ...]]:
    """The phrases of each group with the highest z, none inside another."""
    count = int(group.max()) + 1
    # A voxel's captions may be in several groups: each caption stands for itself here.
    table = captions.assign(_group=group, voxel=np.arange(len(captions)))
    if count > 1:
        try:
            found = separating_phrases(table, "_group", min_voxels=1, n_permutations=0)
        except DataError:
            return [() for _ in range(count)]
        # Of phrases that separate equally well, the longer one says more.
        found = found.assign(_z=-found["z"].round(2), _length=-found["phrase"].str.len())
        found = found.sort_values(["_z", "_length"], kind="stable")
        ranked = {g: part["phrase"].tolist() for g, part in found.groupby("group")}
    else:
        ranked = {0: _commonest(captions["caption"].tolist())}
    return [tuple(_distinct(ranked.get(g, []))) for g in range(count)]


def _distinct(phrases: list[str]) -> list[str]:
    """The first phrases that share no word with one before."""
    kept: list[str] = []
    for phrase in phrases:
        if len(kept) < _PHRASES and not any(set(phrase.split()) & set(other.split()) for other in kept):
            kept.append(phrase)
    return kept


def _commonest(texts: list[str]) -> list[str]:
    distinct, codes = unique_texts(texts)
    terms = count_terms([phrases_of(text) for text in strip_phrases(distinct)], codes)
    count = np.asarray(terms.rows.sum(axis=0)).ravel()
    # Of phrases that are as common, the longer one says more.
    order = sorted(range(len(count)), key=lambda i: (-count[i], -len(terms.names[i]), terms.names[i]))
    return [terms.names[i] for i in order]


def _checked(captions: pd.DataFrame, phrases: pd.DataFrame | None) -> tuple[np.ndarray, np.ndarray]:
    """Phrases of each row's caption, and how many of them are supported."""
    if phrases is None:
        return np.zeros(len(captions), int), np.zeros(len(captions), int)
    check_columns(captions, ["rank"], "captions", "Next step: keep the rank, by which phrases belong to a caption.")
    check_columns(phrases, ["voxel", "rank", "verdict"], "phrases", "Next step: the phrases of GroundingChecker.")
    of = (phrases["verdict"] == "supported").groupby([phrases["voxel"], phrases["rank"]]).agg(["size", "sum"])
    found = of.reindex(pd.MultiIndex.from_frame(captions[["voxel", "rank"]])).fillna(0).astype(int)
    return found["size"].to_numpy(), found["sum"].to_numpy()


def structurize(
    captions: pd.DataFrame,
    *,
    phrases: pd.DataFrame | None = None,
    max_aspects: int = 6,
    n_descriptions: int = 5,
    seed: int = 0,
) -> StructuredCaptions:
    """Summarise captions, such as those of a region: scope, aspects, and verbatim captions with their voxels.

    The method it follows lets a language model rewrite a passage as scope, aspects and descriptions. There is no
    such model here: aspects are clusters of captions (k-means on which words and pairs of words they hold, their
    number by the silhouette), named by the phrases that separate them, and the scope is a template. Descriptions are
    the captions themselves, with their voxels, so that every line can be traced.

    Parameters
    ----------
    captions : DataFrame
        ``voxel, caption``, and ``rank`` with ``phrases``.
    phrases : DataFrame, optional
        ``voxel, rank, verdict`` of `GroundingChecker`: aspects and descriptions then say how many are supported.
    max_aspects, n_descriptions : int
        Most aspects, and captions shown of each.
    seed : int

    Raises
    ------
    DataError
        No captions, or none with a word; phrases without a verdict.

    References
    ----------
    Liu et al. (2024), Structurization: Enhance LLMs' cognition with information structurization (StruXGPT).

    Examples
    --------
    >>> import pandas as pd
    >>> texts = ["a man smiling", "a man with a hat", "a red bus", "a red bus on a road"]
    >>> found = structurize(pd.DataFrame({"voxel": range(4), "caption": texts}), max_aspects=2)
    >>> sorted(aspect.phrases[0] for aspect in found.aspects), found.n_voxels
    (['man', 'red bus'], 4)
    """
    captions = check_captions(captions)
    texts, codes = unique_texts(captions["caption"])
    count = np.bincount(codes, minlength=len(texts)).astype(np.float64)
    x = _vectors(texts)
    labels = _group(x, max_aspects, seed)
    sizes = np.bincount(labels, weights=count)
    # The largest is number 0.
    labels = np.argsort(np.argsort(-sizes, kind="stable"))[labels]
    group = labels[codes]
    n_phrases, n_supported = _checked(captions, phrases)
    n_voxels = int(captions["voxel"].nunique())
    aspects = []
    for g, named in enumerate(_titles(captions, group)):
        rows = np.flatnonzero(group == g)
        members = np.flatnonzero(labels == g)
        centre = (x[members] * count[members, None]).sum(axis=0)
        typical = members[np.argsort(-(x[members] @ centre), kind="stable")]
        shown = tuple(
            _description(texts[i], captions["voxel"][at], n_phrases[at], n_supported[at])
            for i in typical[:n_descriptions]
            for at in [codes == i]
        )
        voxels = tuple(dict.fromkeys(captions["voxel"].to_numpy()[rows].tolist()))
        title = ", ".join(named) or texts[typical[0]]
        share, checked = len(rows) / len(captions), (int(n_phrases[rows].sum()), int(n_supported[rows].sum()))
        low, high = map(float, share_interval(len(voxels), n_voxels))
        aspects.append(Aspect(title, named, share, voxels, shown, low, high, *checked))
    return StructuredCaptions(_scope(captions, aspects), tuple(aspects), len(captions), n_voxels)


def _description(caption: str, voxels: pd.Series, n_phrases: np.ndarray, n_supported: np.ndarray) -> Description:
    return Description(caption, tuple(dict.fromkeys(voxels.tolist())), int(n_phrases.sum()), int(n_supported.sum()))


def _scope(captions: pd.DataFrame, aspects: list[Aspect]) -> str:
    """What most voxels' captions name, each with its share of voxels and the interval."""
    texts, n = captions["caption"].tolist(), captions["voxel"].nunique()
    words = [phrases_of(text) for text in strip_phrases(texts)]
    said = []
    for phrase in _distinct(_commonest(texts)):
        count = captions["voxel"][[phrase in found for found in words]].nunique()
        low, high = share_interval(count, n)
        said.append(f"{phrase} ({count / n:.0%} of voxels, {low:.0%} to {high:.0%})")
    aspect = "1 aspect" if len(aspects) == 1 else f"{len(aspects)} aspects"
    about = ", ".join(said) or "(no words)"
    return f"These voxels: most often {about}; {len(texts)} captions of {n} voxels in {aspect}, 95 % intervals."
