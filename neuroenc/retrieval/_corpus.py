"""Caption corpora at four granularities, and pseudo-queries to train a retriever on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from neuroenc._core.checks import check_texts, check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError

#: What may be retrieved, from the smallest to the largest number of captions in a document.
LEVELS = ("phrase", "caption", "image", "category")


def plain_text(text: str) -> str:
    """Normalise a caption for exact matching: lower case, one line, no final full stop.

    >>> plain_text("A  dog on a Bed .")
    'a dog on a bed'
    """
    return " ".join(str(text).split()).rstrip(" .").lower()


class CaptionCorpus:
    """Corpus of captions with the image and the categories of each.

    Parameters
    ----------
    captions : sequence of str (n,)
    images : sequence of str (n,)
        Id of the image that each caption describes.
    categories : mapping from image id to names, optional
        For the level "category".
    phrases : callable, optional
        ``phrases(text) -> list of str``, for the level "phrase"; ``neuroenc.captions.find_phrases`` finds noun phrases.

    Raises
    ------
    DataError
        No captions, images of another number, empty captions, or categories of images that are not there.

    Examples
    --------
    >>> corpus = CaptionCorpus(["A red cat.", "A cat.", "A dog."], ["x", "x", "y"], {"x": ["cat"], "y": ["dog"]})
    >>> corpus.caption_ids.tolist(), corpus.documents("category")
    (['x:0', 'x:1', 'y:0'], (['a red cat', 'a cat', 'a dog'], ['cat', 'cat', 'dog']))
    """

    def __init__(
        self,
        captions: Sequence[str],
        images: Sequence[str],
        categories: Mapping[str, Sequence[str]] | None = None,
        phrases: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        if len(captions) == 0 or len(captions) != len(images):
            raise DataError(
                f"{len(captions)} captions and {len(images)} images; legal: one image id a caption, at least one."
            )
        self.captions = [plain_text(c) for c in check_texts(captions, "captions")]
        empty = [i for i, c in enumerate(self.captions) if not c]
        if empty:
            raise DataError(f"{len(empty)} captions are empty, the first at {empty[0]}. Next step: leave those out.")
        self.images = np.array([str(i) for i in images])
        self._rows: dict[str, list[int]] = {}
        for row, image in enumerate(self.images.tolist()):
            self._rows.setdefault(image, []).append(row)
        place = {row: k for rows in self._rows.values() for k, row in enumerate(rows)}
        #: Id of each caption: its image and its number there, ``"<image>:<k>"``.
        self.caption_ids = np.array([f"{i}:{place[row]}" for row, i in enumerate(self.images.tolist())])
        self.categories = {str(k): _names(k, v) for k, v in (categories or {}).items()}
        unknown = [k for k in self.categories if k not in self._rows]
        if unknown:
            raise DataError(f"{len(unknown)} images with categories have no caption: {', '.join(unknown[:3])}.")
        self._phrases = phrases
        self._found: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self.captions)

    def __repr__(self) -> str:
        categories = len(self.names_of_categories)
        return f"CaptionCorpus({len(self)} captions of {len(self._rows)} images, {categories} categories)"

    @property
    def names_of_categories(self) -> list[str]:
        """Different categories, in the order of the corpus."""
        return list(dict.fromkeys(c for i in self._rows for c in self.categories.get(i, ())))

    def rows_of(self, image: str) -> list[int]:
        """Captions of an image, as positions."""
        return self._rows[image]

    def images_by_category(self) -> dict[str, list[str]]:
        """Images of each category."""
        found: dict[str, list[str]] = {}
        for image in self._rows:
            for name in self.categories.get(image, ()):
                found.setdefault(name, []).append(image)
        return found

    def phrases_of(self, row: int) -> list[str]:
        """Phrases of one caption, plain."""
        if self._phrases is None:
            raise ConfigError(
                "the corpus cannot tell phrases. Next step: CaptionCorpus(..., phrases=...), a function that gives a "
                "text's phrases."
            )
        text = self.captions[row]
        if text not in self._found:
            self._found[text] = list(dict.fromkeys(p for p in map(plain_text, self._phrases(text)) if p))
        return self._found[text]

    def documents(self, level: str) -> tuple[list[str], list[str]]:
        """Texts and the id of the document that each belongs to.

        Parameters
        ----------
        level : {"phrase", "caption", "image", "category"}
            A document is a phrase (its id the phrase itself), a caption (``caption_ids``), all captions of an image, or
            all captions of the images of a category.

        Returns
        -------
        tuple of list of str
            Texts in lower case without their full stop; ids.
        """
        one_of("level", level, LEVELS)
        if level == "phrase":
            phrases = list(dict.fromkeys(p for row in range(len(self)) for p in self.phrases_of(row)))
            return phrases, phrases
        if level == "category":
            self._need_categories()
            pairs = [(c, n) for c, i in zip(self.captions, self.images.tolist()) for n in self.categories.get(i, ())]
            return [c for c, _ in pairs], [n for _, n in pairs]
        return list(self.captions), (self.images if level == "image" else self.caption_ids).tolist()

    def _need_categories(self) -> None:
        if not self.categories:
            raise ConfigError("the corpus has no categories. Next step: CaptionCorpus(..., categories={image: names}).")


def _names(image: str, names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise DataError(f"categories of image {image!r} are the text {names!r}; legal is a list of names.")
    return tuple(dict.fromkeys(plain_text(n) for n in names))


_KINDS = ("inner", "lead", "link")
_PAIRS = ["kind", "level", "image", "query", "target", "id"]


def pseudo_queries(
    corpus: CaptionCorpus,
    kinds: Sequence[str] = _KINDS,
    *,
    levels: Sequence[str] = ("image", "category"),
    per_image: int | None = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Make (query, target) training pairs for a retriever from captions of the same image.

    Three kinds: "inner" asks with a caption drawn from those of an image, "lead" with the image's longest caption,
    and both answer with the image; "link" asks with a drawn caption and answers with another image that shares a
    category. What the answer is depends on the level: another caption of the image ("image", and "caption", which
    names that caption), a phrase of those captions ("phrase"), a name ("category"). A query never answers itself,
    unless its image has no other caption.

    Parameters
    ----------
    corpus : CaptionCorpus
    kinds : sequence of {"inner", "lead", "link"}
    levels : sequence of {"phrase", "caption", "image", "category"}
    per_image : int, optional
        Captions drawn of each image for "inner", and for "link"; None takes all.
    seed : int
        An image's draws depend on nothing but its place in the corpus.

    Returns
    -------
    DataFrame
        One row a pair: ``kind, level, image`` (of the query)``, query, target, id`` (of the document that answers).

    Raises
    ------
    ConfigError
        Unknown kinds or levels; "link" or "category" in a corpus without categories.

    References
    ----------
    Chen et al. CorpusBrain: Pre-train a generative retrieval model for knowledge-intensive language tasks. CIKM 2022.

    Examples
    --------
    >>> corpus = CaptionCorpus(["A red cat.", "A small cat.", "A dog."], ["x", "x", "y"], {"x": ["cat"], "y": ["dog"]})
    >>> pseudo_queries(corpus, ["lead"])[["level", "query", "target", "id"]].values.tolist()
    [['image', 'a small cat', 'a red cat', 'x'], ['category', 'a small cat', 'cat', 'cat'],
     ['image', 'a dog', 'a dog', 'y'], ['category', 'a dog', 'dog', 'dog']]
    """
    kinds, levels = [str(k) for k in kinds], [one_of("level", str(x), LEVELS) for x in levels]
    for kind in kinds:
        one_of("kind of pseudo query", kind, _KINDS)
    check_whole("per_image", 1 if per_image is None else per_image, also=", or None for all")
    if "link" in kinds or "category" in levels:
        corpus._need_categories()
    found = [
        (kind, level, image, corpus.captions[row], target, name)
        for kind in kinds
        for image, row, rng, other in _asked(corpus, kind, per_image, seed)
        for level in levels
        for target, name in _answers(corpus, level, image, row, other, rng)
    ]
    return pd.DataFrame(found, columns=_PAIRS)


def labelled_queries(
    corpus: CaptionCorpus,
    queries: Sequence[str],
    images: Sequence[str],
    *,
    levels: Sequence[str] = ("image", "category"),
) -> pd.DataFrame:
    """Make (query, target) training pairs of queries whose image is known, to fine-tune a pretrained retriever.

    Parameters
    ----------
    corpus : CaptionCorpus
    queries : sequence of str (n,)
        Such as captions of voxels whose best image was shown.
    images : sequence of str (n,)
        Id of the image that answers each, in the corpus.
    levels : sequence of {"phrase", "caption", "image", "category"}
        What answers: every caption of the image ("image" and "caption"), its phrases, the names of its categories.

    Returns
    -------
    DataFrame
        As of :func:`pseudo_queries`; ``kind`` is "label".

    Raises
    ------
    DataError
        Other numbers, or images that the corpus does not have.
    ConfigError
        Unknown levels, or "category" in a corpus without categories.

    References
    ----------
    Chen et al. CorpusBrain: Pre-train a generative retrieval model for knowledge-intensive language tasks. CIKM 2022.

    Examples
    --------
    >>> corpus = CaptionCorpus(["A red cat.", "A cat.", "A dog."], ["x", "x", "y"])
    >>> labelled_queries(corpus, ["something furry"], ["x"], levels=["image"])[["query", "target"]].values.tolist()
    [['something furry', 'a red cat'], ['something furry', 'a cat']]
    """
    texts, names = [plain_text(q) for q in check_texts(queries, "queries")], [str(i) for i in images]
    levels = [one_of("level", str(x), LEVELS) for x in levels]
    if len(texts) != len(names):
        raise DataError(f"{len(texts)} queries and {len(names)} images; legal: one image id a query.")
    lost = [i for i in dict.fromkeys(names) if i not in corpus._rows]
    if lost:
        raise DataError(
            f"{len(lost)} images of labelled queries have no caption in the corpus (first: {lost[0]}). Next step: "
            "leave those queries out, or add the images' captions to the corpus."
        )
    if "category" in levels:
        corpus._need_categories()
    # Without a linked image nothing is drawn.
    rng = np.random.default_rng(0)
    found = [
        ("label", level, image, text, target, name)
        for text, image in zip(texts, names)
        for level in levels
        for target, name in _answers(corpus, level, image, -1, None, rng)
    ]
    return pd.DataFrame(found, columns=_PAIRS)


def _asked(
    corpus: CaptionCorpus, kind: str, per_image: int | None, seed: int
) -> Iterator[tuple[str, int, np.random.Generator, str | None]]:
    """Image, row of the caption that asks, random numbers, and the linked image."""
    linked = corpus.images_by_category() if kind == "link" else {}
    for place, image in enumerate(dict.fromkeys(corpus.images.tolist())):
        rng = np.random.default_rng([seed, _KINDS.index(kind), place])
        rows = corpus.rows_of(image)
        if kind == "lead":
            # The first of the longest.
            yield image, max(rows, key=lambda r: len(corpus.captions[r])), rng, None
            continue
        chosen = rng.permutation(rows).tolist() if per_image is None else rng.permutation(rows)[:per_image].tolist()
        others = sorted({i for c in corpus.categories.get(image, ()) for i in linked.get(c, ())} - {image})
        for row in chosen:
            if kind == "inner":
                yield image, row, rng, None
            elif others:
                yield image, row, rng, others[int(rng.integers(len(others)))]


def _answers(
    corpus: CaptionCorpus, level: str, image: str, row: int, other: str | None, rng: np.random.Generator
) -> Iterator[tuple[str, str]]:
    """Text and id of each answer."""
    if level == "category":
        mine = corpus.categories.get(image, ())
        for name in mine if other is None else [c for c in mine if c in corpus.categories.get(other, ())]:
            yield name, name
        return
    if other is None:
        rows = [r for r in corpus.rows_of(image) if r != row] or [row]
    else:
        rows = corpus.rows_of(other)
    if level == "phrase":
        said = dict.fromkeys(p for r in rows for p in corpus.phrases_of(r))
        if other is not None:
            # Of two images that share a category, what both show.
            own = {p for r in corpus.rows_of(image) for p in corpus.phrases_of(r)}
            said = dict.fromkeys(p for p in said if p in own)
        yield from ((p, p) for p in said)
        return
    chosen = rows if other is None else [rows[int(rng.integers(len(rows)))]]
    for r in chosen:
        yield corpus.captions[r], corpus.images[r].item() if level == "image" else corpus.caption_ids[r].item()
