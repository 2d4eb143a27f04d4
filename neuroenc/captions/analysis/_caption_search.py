"""Search of captioned voxels by the words of their captions, by vectors of words, or by both."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import check_texts, check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions._linear import voxel_labels
from neuroenc.captions._study import CaptionStudy
from neuroenc.captions.analysis._lexicon import load_lexicon
from neuroenc.captions.text._vectors import directions_of, embed, prompt
from neuroenc.captions.text._words import STOP_WORDS
from neuroenc.retrieval import hybrid_search

#: Constant of the reciprocal ranks, as in :func:`neuroenc.retrieval.hybrid_search`.
RRF_K = 60.0
_PROMPT = "a photo of {}"
_ADD_VECTORS = (
    "dataclasses.replace(study, vectors=search_vectors(projection, embed_text, "
    "search_vocabulary(study.captions['caption'])))."
)
_TOKEN = re.compile(r"[^\W_]+")
_QUOTED = re.compile('["“”]([^"“”]+)["“”]')


def stem(word: str) -> str:
    """The word without the ending of a plural, as the page has it.

    >>> [stem(w) for w in ("dogs", "churches", "cherries", "grass")]
    ['dog', 'church', 'cherry', 'grass']
    """
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and re.search(r"(?:s|x|z|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def stems(text: str) -> list[str]:
    """Stems of a text's words, in their order."""
    return [stem(word) for word in _TOKEN.findall(text.lower())]


def search_vocabulary(captions: Iterable[str], more: Iterable[str] = (), n: int = 2500) -> list[str]:
    """Vocabulary of a search: words, and pairs of neighbouring words, that a reader may ask for.

    First the words of the captions and of the shipped lexicon (`load_lexicon`), then pairs that stand in several
    captions, then words of ``more``, each the most frequent first. Words without meaning of their own are left out, and
    of a word and its plural one is kept.

    Parameters
    ----------
    captions : iterable of str
        Of voxels.
    more : iterable of str
        Such as the captions of a bank.
    n : int
        At most so many.

    Examples
    --------
    >>> search_vocabulary(["a brown dog", "the brown dogs run"], n=4)
    ['brown', 'dog', 'run', 'person']
    """
    check_whole("n", n)
    words, pairs, others = Counter[str](), Counter[tuple[str, str]](), Counter[str]()
    for text in captions:
        found = _TOKEN.findall(text.lower())
        words.update(w for w in found if _content(w))
        pairs.update((a, b) for a, b in pairwise(found) if _content(a) and _content(b))
    for text in more:
        others.update(w for w in _TOKEN.findall(text.lower()) if _content(w))
    listed = [w for w, _ in words.most_common()]
    listed += [w for about in load_lexicon().values() for w in about]
    listed += [" ".join(pair) for pair, count in pairs.most_common() if count > 1]
    listed += [w for w, count in others.most_common() if count > 1]
    kept: dict[str, str] = {}
    for text in listed:
        kept.setdefault(" ".join(stems(text)), text)
    kept.pop("", None)
    return list(kept.values())[:n]


def _content(word: str) -> bool:
    return len(word) > 2 and not word.isdecimal() and word not in STOP_WORDS


def search_vectors(
    source: Any, embed_text: Any, texts: Sequence[str], *, components: int = 64, least: float = 1.645
) -> xr.Dataset:
    r"""Embed voxels and a vocabulary for search, in few dimensions of 8 bits.

    .. math:: z_{tv} = \frac{w_v \cdot t'}{\mathrm{sd}_u\, w_v \cdot u'} \approx s_v\, a_t \cdot b_v

    with w the unit direction of a voxel, t' and u' the texts' centred vectors ("a photo of a ..."; centred again at
    unit norm, so that the mean over texts is 0), and integers a and b of -127 to 127: principal components of the
    vocabulary. z is that of `search_voxels` with the vocabulary as reference; the vector of several words is their
    mean.

    Texts that get the vector of a word that does not exist are left out: the embedder does not know them.

    Parameters
    ----------
    source : Dataset of `project`, weights (feature, voxel), or an encoder with ``to_linear()``
    embed_text : callable or TextEmbedder
        Of the same space.
    texts : sequence of str
        Vocabulary, such as that of `search_vocabulary`.
    components : int
        At most so many dimensions. 64 of 5,000 voxels and 2,500 texts are 0.7 MB of a page.
    least : float
        z that a voxel found by vectors exceeds; by default that of one text in twenty, were they normal.

    Returns
    -------
    Dataset
        ``a`` (text, component) and ``b`` (voxel, component), int8; ``s`` (voxel), float64; coordinates ``text``
        (stems of the words) and ``voxel``; attributes ``least``, and ``explained``, the share of the vocabulary's
        variance in the components. For ``CaptionStudy.vectors``; voxels without a direction are left out.

    Raises
    ------
    DataError
        The embedder tells fewer than three texts apart, or widths differ.

    Examples
    --------
    >>> table = {"dog": [1, 0, 0], "cat": [0.9, 0.3, 0], "house": [0, 0, 1], "street": [0, 0.2, 1]}
    >>> def embed_text(texts):
    ...     return np.array([table.get(t.split()[-1], [0.5, 0.5, 0.5]) for t in texts])
    >>> weights = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    >>> found = search_vectors(weights, embed_text, ["dog", "cat", "house", "street", "qwrtz"])
    >>> found["text"].values.tolist(), found["b"].dtype.name
    (['dog', 'cat', 'house', 'street'], 'int8')
    """
    check_whole("components", components)
    named: dict[str, str] = {}
    for text in check_texts(texts, "texts"):
        named.setdefault(" ".join(stems(text)), text)
    named.pop("", None)
    target, live, _ = directions_of(source)
    labelled = source["voxel"].values if isinstance(source, (xr.Dataset, xr.DataArray)) else np.arange(len(target))
    asked = [prompt(_PROMPT, text) for text in named.values()]
    # What a space makes of a word that does not exist; of a vector of no length too.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of texts without a known word: they are left out
        vectors = embed(embed_text, [*asked, prompt(_PROMPT, "qwxzvk")], target.shape[1])
    nothing = vectors[-1]
    known = np.linalg.norm(vectors[:-1] - nothing, axis=1) > 1e-5
    if known.sum() < 3:
        raise DataError(
            f"the embedder knows {int(known.sum())} of {len(asked)} texts (the others have the vector of no word); at "
            "least 3 are needed. Next step: the text side of the weights' own space, or a larger vocabulary."
        )
    rows = vectors[:-1][known]
    rows = unit_rows(rows - rows.mean(axis=0))
    rows = rows - rows.mean(axis=0)
    level = (rows @ target[live].T).std(axis=0)
    at = np.flatnonzero(live)[level > 1e-12]
    voxels = target[at] / level[level > 1e-12][:, None]
    basis, share = _components(rows, min(components, *rows.shape))
    a, b = rows @ basis, voxels @ basis
    one, each = np.abs(a).max() / 127, np.abs(b).max(axis=1).clip(1e-30) / 127
    return xr.Dataset(
        {
            "a": (("text", "component"), np.rint(a / one).astype(np.int8)),
            "b": (("voxel", "component"), np.rint(b / each[:, None]).astype(np.int8)),
            # Few digits, so that the page's text has the same number.
            "s": ("voxel", np.array([float(f"{x:.6g}") for x in one * each])),
        },
        coords={"text": np.array(list(named))[known], "voxel": labelled[at]},
        attrs={"explained": float(share), "least": float(least)},
    )


def _components(rows: np.ndarray, n: int) -> tuple[np.ndarray, float]:
    """Principal components (feature, n) of centred rows, each with its largest entry positive; their share."""
    _, values, basis = np.linalg.svd(rows, full_matrices=False)
    basis = basis[:n].T
    turned = basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(n)])
    return turned, (values[:n] ** 2).sum() / (values**2).sum()


def _rounded(score: float) -> float:
    """To 9 digits: what is equal but for the last bits is equal here and in the page."""
    return float(np.floor(score * 1e9 + 0.5) / 1e9)


class _Index(ABC):
    """A ranking of voxels as `hybrid_search` takes it; ids are row numbers, of equal lengths."""

    def __init__(self, accuracy: Sequence[float], no_match: float) -> None:
        self.accuracy, self.no_match = accuracy, no_match

    def __len__(self) -> int:
        return len(self.accuracy)

    @abstractmethod
    def scores(self, query: str) -> Mapping[int, float]:
        """Score of each voxel that is found."""

    def search(self, queries: Sequence[str], k: int, max_memory: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """By score, then accuracy, then place."""
        values = np.full((len(queries), len(self)), -np.inf)
        rows = np.empty((len(queries), len(self)), np.int64)
        for n, query in enumerate(queries):
            for row, score in self.scores(query).items():
                values[n, row] = _rounded(score)
            rows[n] = np.lexsort((np.arange(len(self)), -np.asarray(self.accuracy), -values[n]))
            values[n] = values[n, rows[n]]
        return values[:, :k], rows[:, :k]

    def names(self, indices: Any) -> np.ndarray:
        """Row numbers as text that sorts as numbers do."""
        return np.char.zfill(np.asarray(indices).astype(str), 9)


class WordIndex(_Index):
    """Voxels by the words of their captions; see the page's script of the same name."""

    def __init__(self, captions: Sequence[Sequence[str]], accuracy: Sequence[float]) -> None:
        super().__init__(accuracy, 0.0)
        self.captions = captions
        self.words: dict[str, dict[int, float]] = {}
        for n, texts in enumerate(captions):
            for place, text in enumerate(texts):
                for word in dict.fromkeys(stems(text)):
                    found = self.words.setdefault(word, {})
                    found[n] = found.get(n, 0.0) + 1 / (place + 1)

    def parse(self, query: str) -> tuple[list[list[str]], list[str]]:
        """Words, each with the words that it may be the beginning of, and phrases in quotation marks."""
        phrases = [" ".join(stems(x)) for x in _QUOTED.findall(query)]
        words = stems(_QUOTED.sub(" ", query))
        terms = [[word] for word in words]
        if words and words[-1] not in self.words and len(words[-1]) > 1:
            terms[-1] = sorted(w for w in self.words if w.startswith(words[-1]))[:50] or [words[-1]]
        terms += [[word] for phrase in phrases for word in phrase.split()]
        return terms, [x for x in phrases if x]

    def scores(self, query: str) -> dict[int, float]:
        """Rare words and early captions count more, voxels that have all words most."""
        terms, phrases = self.parse(query)
        total: dict[int, float] = {}
        count = Counter[int]()
        for options in terms:
            here: dict[int, float] = {}
            for found in (self.words[w] for w in options if w in self.words):
                rare = float(np.log(1 + len(self) / len(found)))
                for n, weight in found.items():
                    here[n] = max(here.get(n, 0.0), rare * weight / (weight + 0.5))
            for n, score in here.items():
                total[n] = total.get(n, 0.0) + score
                count[n] += 1
        out = {n: score * (count[n] / len(terms)) ** 2 for n, score in total.items()}
        if phrases:
            for n in list(out):
                texts = [f" {' '.join(stems(text))} " for text in self.captions[n]]
                if not all(any(f" {phrase} " in text for text in texts) for phrase in phrases):
                    del out[n]
        return out


class VectorIndex(_Index):
    """Voxels by the mean vector of the query's words; those whose z exceeds a level are found."""

    def __init__(self, vectors: xr.Dataset, rows: np.ndarray, accuracy: Sequence[float]) -> None:
        super().__init__(accuracy, float(vectors.attrs["least"]))
        self.rows = rows
        self.a, self.b = (vectors[name].values.astype(np.int64) for name in ("a", "b"))
        self.s = vectors["s"].values
        self.at = {text: n for n, text in enumerate(vectors["text"].values.tolist())}
        self.stop = {stem(word) for word in STOP_WORDS}
        self.longest = max(text.count(" ") + 1 for text in self.at)

    def known(self, query: str) -> tuple[list[int], list[str]]:
        """Texts of the vocabulary that a query names, from left to right, the longest first, and stems of no text."""
        words, found, lost, n = stems(query), list[int](), list[str](), 0
        while n < len(words):
            spans = range(min(self.longest, len(words) - n), 0, -1)
            size = next((k for k in spans if " ".join(words[n : n + k]) in self.at), 0)
            if size:
                found.append(self.at[" ".join(words[n : n + size])])
            elif words[n] not in self.stop:
                lost.append(words[n])
            n += size or 1
        return found, list(dict.fromkeys(lost))

    def z(self, query: str) -> np.ndarray:
        """z of every voxel that has a vector; NaN where the vocabulary knows no word of the query."""
        found, _ = self.known(query)
        if not found:
            return np.full(len(self.s), np.nan)
        # Whole numbers until here, so that the page finds the same ones.
        exact: np.ndarray = (self.b @ self.a[found].sum(axis=0)) * self.s / len(found)
        return exact

    def scores(self, query: str) -> dict[int, float]:
        """Nothing where quotation marks ask for the words themselves."""
        if _QUOTED.search(query):
            return {}
        z = self.z(query)
        at = np.flatnonzero(z > self.no_match)
        return dict(zip(self.rows[at].tolist(), z[at].tolist()))


def score_words(query: str, study: CaptionStudy) -> pd.DataFrame:
    r"""Score words of one's own against every voxel's weights, as the box on a voxel's card does.

    The query's vector m is the mean of its words' vectors a (:func:`search_vectors`). Its cosine with the voxel's
    vector b is put among those of all texts of the vocabulary, its z, :math:`s_v\, m \cdot b_v`, among those of all
    voxels:

    .. math::
        p^{words}_v = \frac{1}{T} \sum_t [\cos(a_t, b_v) < \cos(m, b_v)], \qquad
        p^{voxels}_v = \frac{1}{V - 1} \sum_u [z_u < z_v]

    A voxel that is high among voxels and low among words prefers something else, but less so than the others.

    Parameters
    ----------
    query : str
    study : CaptionStudy
        With ``vectors``.

    Returns
    -------
    DataFrame
        Voxels that have a vector: ``voxel, z, cosine, among_words, among_voxels`` (shares; all NaN where no word is
        known) and the voxel coordinates. ``attrs["unknown"]``: words that the vocabulary lacks.

    Raises
    ------
    ConfigError
        A study without vectors.

    Examples
    --------
    >>> scores = xr.Dataset({"r": ("voxel", [0.5, 0.4])}, coords={"voxel": [0, 1]})
    >>> table = {"dog": [1, 0, 0], "cat": [0.9, 0.3, 0], "house": [0, 0, 1], "street": [0, 0.2, 1]}
    >>> vectors = search_vectors(
    ...     np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]),
    ...     lambda texts: np.array([table.get(t.split()[-1], [0.5, 0.5, 0.5]) for t in texts]), list(table))
    >>> study = CaptionStudy(
    ...     "two voxels", scores,
    ...     captions=pd.DataFrame({"voxel": [0, 1], "rank": 1, "caption": ["a dog", "a house"], "score": 0.3}),
    ...     evidence=pd.DataFrame(columns=["voxel", "rank", "stimulus", "predicted"]),
    ...     gate=pd.DataFrame({"voxel": [0, 1], "captioned": True, "reason": ""}), vectors=vectors)
    >>> found = score_words("a cat and a unicorn", study)
    >>> found[["among_words", "among_voxels"]].values.tolist(), found.attrs["unknown"]
    ([[0.5, 1.0], [0.0, 0.0]], ['unicorn'])
    """
    check_texts([query], "query")
    if study.vectors is None:
        raise ConfigError(f"words are scored by vectors, which this study lacks. Next step: {_ADD_VECTORS}")
    place = {voxel: n for n, voxel in enumerate(study.scores["voxel"].values.tolist())}
    rows = np.array([place[v] for v in study.vectors["voxel"].values.tolist()], dtype=np.int64)
    index = VectorIndex(study.vectors, rows, [])
    found, unknown = index.known(query)
    z, n = index.z(query), len(rows)
    cosine, among_words, among_voxels = (np.full(n, np.nan) for _ in range(3))
    if found:
        mean = index.a[found].sum(axis=0)
        # Dot products of whole numbers over one root: the page compares the very same numbers.
        length, lengths = np.sqrt((mean**2).sum()), np.sqrt((index.a**2).sum(axis=1))
        own = (index.b @ mean) / (length or 1.0)
        cosine = own / np.sqrt((index.b**2).sum(axis=1)).clip(1)
        for start in range(0, n, 512):
            at = slice(start, start + 512)
            among_words[at] = ((index.b[at] @ index.a.T) / lengths.clip(1) < own[at, None]).mean(axis=1)
        if n > 1:
            among_voxels = np.searchsorted(np.sort(z), z) / (n - 1)
    columns = {"z": z, "cosine": cosine, "among_words": among_words, "among_voxels": among_voxels}
    frame = pd.DataFrame({"voxel": study.scores["voxel"].values[rows], **columns})
    frame = pd.concat([frame, voxel_labels(study.scores, rows)], axis=1)
    frame.attrs["unknown"] = unknown
    return frame


_METHODS = ("hybrid", "words", "vectors")


def search_captions(
    queries: str | Sequence[str], study: CaptionStudy, *, method: str = "hybrid", top: int | None = None
) -> pd.DataFrame:
    r"""Search a study's voxels as the box of its page does: by words of captions, by vectors, or both.

    Words find voxels whose captions hold them (or their plurals); vectors find voxels whose weights point to what the
    words mean, whether or not a caption says it: "animal" finds voxels whose captions say "dog". Both are joined by
    their reciprocal ranks (:func:`neuroenc.retrieval.hybrid_search`). Words in quotation marks must stand side by side
    in a caption, and are not looked for by vectors.

    Parameters
    ----------
    queries : str or sequence of str
    study : CaptionStudy
        With ``vectors``, but for ``method="words"``.
    method : {"hybrid", "words", "vectors"}
    top : int, optional
        Voxels of a query; default all that are found.

    Returns
    -------
    DataFrame
        ``query, rank, voxel, score`` (sum of reciprocal ranks)``, words, vectors`` (place in either ranking, 0 where it
        did not find the voxel) and the voxel coordinates; no row of a query that finds nothing.

    Raises
    ------
    ConfigError
        An unknown method, or a study without vectors.

    References
    ----------
    Cormack, Clarke & Büttcher (2009), Reciprocal rank fusion, SIGIR.

    Examples
    --------
    >>> study = CaptionStudy(
    ...     "two voxels", xr.Dataset({"r": ("voxel", [0.5, 0.4])}, coords={"voxel": [7, 9]}),
    ...     captions=pd.DataFrame({"voxel": [7, 9], "rank": 1, "caption": ["a dog", "a house"], "score": 0.3}),
    ...     evidence=pd.DataFrame(columns=["voxel", "rank", "stimulus", "predicted"]),
    ...     gate=pd.DataFrame({"voxel": [7, 9], "captioned": True, "reason": ""}))
    >>> search_captions("houses", study, method="words")["voxel"].tolist()
    [9]
    """
    one_of("method", method, _METHODS)
    check_whole("top", 1 if top is None else top)
    asked = check_texts([queries] if isinstance(queries, str) else queries, "queries")
    if method != "words" and study.vectors is None:
        raise ConfigError(f'method="{method}" needs a study with vectors. Next step: method="words", or {_ADD_VECTORS}')
    voxels = study.scores["voxel"].values
    # As the page has it: four digits, and those without a number last.
    accuracy = [float(f"{r:.4g}") if np.isfinite(r) else -9.0 for r in study.scores["r"].values]
    place = {voxel: n for n, voxel in enumerate(voxels.tolist())}
    texts: list[list[str]] = [[] for _ in voxels]
    for voxel, text in zip(study.captions["voxel"], study.captions["caption"]):
        texts[place[voxel]].append(text)
    indexes: dict[str, _Index] = {}
    if method != "vectors":
        indexes["words"] = WordIndex(texts, accuracy)
    if method != "words":
        assert study.vectors is not None
        at = np.array([place[v] for v in study.vectors["voxel"].values.tolist()], dtype=np.int64)
        indexes["vectors"] = VectorIndex(study.vectors, at, accuracy)
    n = len(voxels)
    found = hybrid_search(list(indexes.values()), [asked] * len(indexes), n, rrf_k=RRF_K, depth=n)
    frames = []
    for i, query in enumerate(asked):
        kept = np.flatnonzero(found.ids[i] != "")[:top]
        rows = found.ids[i, kept].astype(np.int64)
        named = {"query": query, "rank": np.arange(1, len(rows) + 1), "voxel": voxels[rows]}
        places = {k: found.ranks[i, kept, list(indexes).index(k)] if k in indexes else 0 for k in ("words", "vectors")}
        frame = pd.DataFrame({**named, "score": found.scores[i, kept], **places})
        frames.append(pd.concat([frame, voxel_labels(study.scores, rows)], axis=1))
    return pd.concat(frames, ignore_index=True)
