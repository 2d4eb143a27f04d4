"""Queries made of a corpus itself, to train a retriever on where nobody has said what belongs to what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.retrieval._caption_corpus import CaptionCorpus, check_level

__all__ = ["pseudo_queries"]

_KINDS = ("inner", "lead", "link")


def pseudo_queries(
    corpus: CaptionCorpus,
    kinds: Sequence[str] = _KINDS,
    *,
    levels: Sequence[str] = ("image", "category"),
    per_image: int | None = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Pairs of a query and the text by which a document should be found, from captions that belong together.

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
    kinds, levels = [str(k) for k in kinds], [check_level(str(x)) for x in levels]
    for kind in kinds:
        if kind not in _KINDS:
            raise ConfigError(unknown_name("kind of pseudo query", kind, _KINDS))
    if per_image is not None and per_image < 1:
        raise ConfigError(f"per_image={per_image!r} is not legal; it must be at least 1, or None for all.")
    if "link" in kinds or "category" in levels:
        corpus._need_categories()
    found = [
        (kind, level, image, corpus.captions[row], target, name)
        for kind in kinds
        for image, row, rng, other in _asked(corpus, kind, per_image, seed)
        for level in levels
        for target, name in _answers(corpus, level, image, row, other, rng)
    ]
    return pd.DataFrame(found, columns=["kind", "level", "image", "query", "target", "id"])


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
