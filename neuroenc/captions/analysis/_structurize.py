"""Structured summaries of the captions of a region: scope, aspects, descriptions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import silhouette_score

from neuroenc._core.arrays import unit_rows
from neuroenc._core.errors import DataError
from neuroenc.captions.analysis._contrast import phrases_in, separating_phrases
from neuroenc.captions.analysis._words import check_captions, count_terms, select_region, unique_texts
from neuroenc.captions.text._phrases import PhraseFinder
from neuroenc.captions.text._vectors import embed
from neuroenc.captions.text._words import FUNCTION_WORDS, strip_phrases


@dataclass(frozen=True)
class Description:
    """One caption, verbatim, with all voxels that have it."""

    caption: str
    voxels: tuple[Any, ...]


@dataclass(frozen=True)
class Aspect:
    """A group of alike captions.

    Attributes
    ----------
    title : str
        The phrases that separate it from the other aspects (or what ``llm`` wrote).
    phrases : tuple of str
        Those phrases, always.
    share : float
        Of the captions.
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


@dataclass(frozen=True)
class StructuredCaptions:
    """Structured summary of the captions of a region: scope, aspects, descriptions.

    Attributes
    ----------
    roi : str
    scope : str
        One sentence.
    aspects : tuple of Aspect
        Largest first.
    n_captions, n_voxels : int
    written_by : str
        "rules", or "llm" where scope and titles were written by one; descriptions never are.
    """

    roi: str
    scope: str
    aspects: tuple[Aspect, ...]
    n_captions: int
    n_voxels: int
    written_by: str

    def to_text(self) -> str:
        """The structure as numbered lines: scope, aspects 1, 2, ..., descriptions 1.1, 1.2, ..."""
        lines = [f"Scope: {self.scope}"]
        for i, aspect in enumerate(self.aspects, 1):
            lines.append(f"{i}. {aspect.title} ({aspect.share:.0%} of captions, {len(aspect.voxels)} voxels)")
            for j, d in enumerate(aspect.descriptions, 1):
                shown = ", ".join(map(str, d.voxels[:8])) + (", ..." if len(d.voxels) > 8 else "")
                lines.append(f"  {i}.{j} {d.caption} [{'voxel' if len(d.voxels) == 1 else 'voxels'} {shown}]")
        return "\n".join(lines)

    def to_frame(self) -> pd.DataFrame:
        """One row per description and voxel: ``roi, aspect, title, description, voxel, caption``."""
        rows = [
            (self.roi, i, aspect.title, j, voxel, d.caption)
            for i, aspect in enumerate(self.aspects, 1)
            for j, d in enumerate(aspect.descriptions, 1)
            for voxel in d.voxels
        ]
        return pd.DataFrame(rows, columns=["roi", "aspect", "title", "description", "voxel", "caption"])


def _vectors(texts: list[str], embed_text: Any, engine: str | PhraseFinder | None) -> np.ndarray:
    if embed_text is not None:
        values = embed(embed_text, texts)
    else:
        stripped = strip_phrases(texts)
        try:
            # No weights for rare words: an aspect is what many captions share.
            found = TfidfVectorizer(analyzer=sorted, use_idf=False)
            values = found.fit_transform(phrases_in(stripped, (1, 2), FUNCTION_WORDS, engine)).toarray()
        except ValueError:
            raise DataError("the captions hold no words to tell them apart by.") from None
    values = values - values.mean(axis=0)
    return unit_rows(values)


def _group(x: np.ndarray, n_aspects: int | None, most: int, seed: int) -> np.ndarray:
    distinct = len(np.unique(x.round(9), axis=0))
    if distinct < 2 or n_aspects == 1:
        return np.zeros(len(x), dtype=int)
    if n_aspects is not None:
        options = [min(n_aspects, distinct)]
    else:
        options = list(range(2, min(most, distinct - 1) + 1)) or [2]
    # Different captions count once: one that many voxels share is no aspect by itself.
    found = [KMeans(k, n_init=10, random_state=seed).fit_predict(x) for k in options]
    scores = [silhouette_score(x, part) if 1 < len(np.unique(part)) < len(x) else -1.0 for part in found]
    return np.asarray(found[int(np.argmax(scores))])


def _titles(
    captions: pd.DataFrame, group: np.ndarray, n: int, seed: int, engine: str | PhraseFinder | None
) -> list[tuple[str, ...]]:
    """The phrases of each group with the highest z, none inside another."""
    count = int(group.max()) + 1
    # A voxel's captions may be in several groups: each caption stands for itself here.
    table = captions.assign(_group=group, voxel=np.arange(len(captions)))
    if count > 1:
        try:
            found = separating_phrases(table, "_group", engine=engine, min_voxels=1, n_permutations=0, seed=seed)
        except DataError:
            return [() for _ in range(count)]
        # Of phrases that separate equally well, the longer one says more.
        found = found.assign(_z=-found["z"].round(2), _length=-found["phrase"].str.len())
        found = found.sort_values(["_z", "_length"], kind="stable")
        ranked = {g: part["phrase"].tolist() for g, part in found.groupby("group")}
    else:
        ranked = {0: _commonest(captions["caption"].tolist(), engine)}
    return [tuple(_distinct(ranked.get(g, []), n)) for g in range(count)]


def _distinct(phrases: list[str], n: int) -> list[str]:
    """The first ``n`` phrases that share no word with one before."""
    kept: list[str] = []
    for phrase in phrases:
        if len(kept) < n and not any(set(phrase.split()) & set(other.split()) for other in kept):
            kept.append(phrase)
    return kept


def _commonest(texts: list[str], engine: str | PhraseFinder | None) -> list[str]:
    distinct, codes = unique_texts(texts)
    terms = count_terms(phrases_in(strip_phrases(distinct), (1, 3), FUNCTION_WORDS, engine), codes)
    count = np.asarray(terms.rows.sum(axis=0)).ravel()
    # Of phrases that are as common, the longer one says more.
    order = sorted(range(len(count)), key=lambda i: (-count[i], -len(terms.names[i]), terms.names[i]))
    return [terms.names[i] for i in order]


def structurize(
    captions: pd.DataFrame,
    embed_text: Any = None,
    *,
    roi: str | None = None,
    n_aspects: int | None = None,
    max_aspects: int = 6,
    n_descriptions: int = 5,
    n_phrases: int = 3,
    max_rank: int | None = None,
    engine: str | PhraseFinder | None = None,
    llm: Callable[[str], str] | None = None,
    seed: int = 0,
) -> StructuredCaptions:
    """Summarise the captions of a region: scope, aspects, and verbatim captions with their voxels.

    The method it follows lets a language model rewrite a passage as scope, aspects and descriptions. There is no
    such model here: aspects are clusters of captions (k-means on text vectors, their number by the silhouette),
    named by the phrases that separate them, and the scope is a template. With ``llm`` the scope and the titles are
    rewritten by it from those parts. Descriptions are always the captions themselves, with their voxels, so that
    every line can be traced.

    Parameters
    ----------
    captions : DataFrame
        ``voxel, caption`` (and ``rank, roi``).
    embed_text : callable or TextEmbedder, optional
        Vectors of captions; by default which words and pairs of words they hold, at unit norm.
    roi : str, optional
        Only this region.
    n_aspects : int, optional
        Their number; default 2 to ``max_aspects`` by the silhouette.
    max_aspects, n_descriptions, n_phrases : int
        Most aspects, captions shown of each, phrases in a title.
    max_rank : int, optional
    engine : str or callable, optional
        Titles of whole phrases, found as :func:`find_phrases` does, instead of runs of one to three words without
        function words of English; in other languages ``phrases`` of a :class:`SyntacticDistanceParser`.
    llm : callable of a prompt to text, optional
        Any language model; what it returns is used as it is (first line, without quotes).
    seed : int

    Returns
    -------
    StructuredCaptions

    Raises
    ------
    DataError
        No captions, an unknown region, or an ``llm`` that returns no text.

    References
    ----------
    Liu et al. (2024), Structurization: Enhance LLMs' cognition with information structurization (StruXGPT).

    Examples
    --------
    >>> import pandas as pd
    >>> texts = ["a man smiling", "a man with a hat", "a red bus", "a red bus on a road"]
    >>> found = structurize(pd.DataFrame({"voxel": range(4), "caption": texts}), n_aspects=2, n_phrases=1)
    >>> sorted(aspect.title for aspect in found.aspects), found.n_voxels
    (['man', 'red bus'], 4)
    """
    captions = check_captions(select_region(check_captions(captions), roi), max_rank)
    texts, codes = unique_texts(captions["caption"])
    count = np.bincount(codes, minlength=len(texts)).astype(np.float64)
    x = _vectors(texts, embed_text, engine)
    labels = _group(x, n_aspects, max_aspects, seed)
    sizes = np.bincount(labels, weights=count)
    # The largest is number 0.
    labels = np.argsort(np.argsort(-sizes, kind="stable"))[labels]
    group = labels[codes]
    titles = _titles(captions, group, n_phrases, seed, engine)
    aspects = []
    for g, phrases in enumerate(titles):
        rows = np.flatnonzero(group == g)
        members = np.flatnonzero(labels == g)
        centre = (x[members] * count[members, None]).sum(axis=0)
        typical = members[np.argsort(-(x[members] @ centre), kind="stable")]
        shown = tuple(
            Description(texts[i], tuple(dict.fromkeys(captions["voxel"][codes == i].tolist())))
            for i in typical[:n_descriptions]
        )
        voxels = tuple(dict.fromkeys(captions["voxel"].to_numpy()[rows].tolist()))
        title = ", ".join(phrases) or texts[typical[0]]
        aspects.append(Aspect(title, phrases, len(rows) / len(captions), voxels, shown))
    name = roi or "These voxels"
    scope = _scope(name, captions, aspects, engine)
    if llm is not None:
        for n, aspect in enumerate(aspects):
            lines = "\n".join(f"- {d.caption}" for d in aspect.descriptions)
            title = _ask(llm, f"Name in at most five words what these captions have in common.\n{lines}")
            aspects[n] = replace(aspect, title=title)
        titles_now = "\n".join(f"- {a.title}" for a in aspects)
        request = f"Write one sentence that says what the captions of the brain region {name} are about."
        scope = _ask(llm, f"{request} Use only what stands here.\n{scope}\n{titles_now}")
    n_voxels = int(captions["voxel"].nunique())
    return StructuredCaptions(
        roi or "", scope, tuple(aspects), len(captions), n_voxels, "rules" if llm is None else "llm"
    )


def _scope(name: str, captions: pd.DataFrame, aspects: list[Aspect], engine: str | PhraseFinder | None) -> str:
    texts = captions["caption"].tolist()
    about = ", ".join(_distinct(_commonest(texts, engine), 3)) or "(no words)"
    parts = "; ".join(f"{a.title} ({a.share:.0%})" for a in aspects)
    aspect = "1 aspect" if len(aspects) == 1 else f"{len(aspects)} aspects"
    voxels = captions["voxel"].nunique()
    return f"{name}: most often {about} ({len(texts)} captions of {voxels} voxels; {aspect}: {parts})."


def _ask(llm: Callable[[str], str], prompt: str) -> str:
    answer = llm(prompt)
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(f"llm returned {answer!r}; it must return text.")
    return answer.strip().splitlines()[0].strip().strip('"')
