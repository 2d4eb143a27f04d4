"""Aspects of captions (scene, objects, actions, attributes) as separate feature bands."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import flat_captions, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.provenance import provenance
from neuroenc.captions.analysis._lexicon import load_lexicon
from neuroenc.captions.analysis._words import indicator, unique_texts
from neuroenc.captions.text._phrases import parse, parts_of
from neuroenc.captions.text._vectors import embed
from neuroenc.captions.text._words import LISTS, STOP_LEMMAS, STOP_PHRASES, strip_phrases
from neuroenc.data import Stimuli, make_features

ASPECTS: tuple[str, ...] = ("scene", "objects", "actions", "attributes")

Word = tuple[str, str]


@cache
def _default_scene() -> frozenset[str]:
    return frozenset([*load_lexicon()["place"], *LISTS["surroundings"]])


@cache
def _compounds() -> frozenset[tuple[str, ...]]:
    """Names of several words that the parser would take apart ("hot dog")."""
    names = [word for words in load_lexicon().values() for word in words] + LISTS["compounds"]
    entries = (tuple(name.split()) for name in names)
    return frozenset(entry for entry in entries if len(entry) > 1)


def _start(token: Any, compounds: frozenset[tuple[str, ...]], longest: int) -> int:
    """Where the name that ends with ``token`` begins: the longest one that is known, or nouns joined to it."""
    doc, lemma = token.doc, token.lemma_.lower()
    for n in range(min(longest, token.i + 1), 1, -1):
        head = tuple(t.lower_ for t in doc[token.i - n + 1 : token.i])
        if (*head, lemma) in compounds or (*head, token.lower_) in compounds:
            return int(token.i - n + 1)
    start = token.i
    if token.pos_ not in ("NOUN", "PROPN"):
        return int(start)
    while start > 0 and doc[start - 1].dep_ == "compound" and doc[start - 1].pos_ in ("NOUN", "PROPN"):
        start -= 1
    return int(start)


def _words_of(doc: Any, scene: frozenset[str], stop: frozenset[str]) -> list[Word]:
    """(aspect, word) of one parsed caption, each once, in order.

    Which words are verbs and attributes is decided by :func:`parts_of`; nouns are joined to names and sorted here.
    """
    parts = parts_of(doc, stop)
    compounds = _compounds() | frozenset(entry for s in scene if len(entry := tuple(s.split())) > 1)
    longest = max(map(len, compounds))
    taken: set[int] = set()
    named: list[Word] = []
    # From the right, because a name ends with its noun and takes the words before it.
    for token in reversed(list(doc)):
        lemma = token.lemma_.lower()
        if token.i in taken:
            continue
        # What the parser calls "hydrant" or "sign" does not matter where the name is known.
        start = _start(token, compounds, longest)
        if start == token.i and (token.pos_ not in ("NOUN", "PROPN") or lemma in stop or len(lemma) < 2):
            continue
        taken.update(range(start, token.i + 1))
        name = " ".join([*(t.lower_ for t in doc[start : token.i]), lemma])
        # A name that the lexicon knows as something else is that: a "street sign" is no street, nor a place its head.
        known = tuple(name.split()) in compounds
        named.append(("scene" if name in scene or (not known and lemma in scene) else "objects", name))
    found = named[::-1]
    free = [token for token in doc if token.i not in taken]
    acts = [t for t in free if t.pos_ == "VERB" and t.lemma_.lower() in parts["verb"]]
    found += [("actions", t.lemma_.lower()) for t in acts]
    looks = {attribute.rsplit(" ", 1)[0] for attribute in parts["attribute"]}
    # What "a running dog" does is said once.
    for token in (t for t in free if t not in acts):
        # "brown and white": the second adjective hangs on the first.
        first = token.head if token.dep_ == "conj" and token.pos_ == "ADJ" else token
        if token.lower_ in looks or (first is not token and first.lower_ in looks):
            found.append(("attributes", token.lower_))
    return list(dict.fromkeys(found))


def caption_aspects(
    captions: Stimuli | Sequence[str] | Sequence[Sequence[str]],
    ids: Sequence[str] | np.ndarray | None = None,
    *,
    scene: Iterable[str] | None = None,
    stop: Iterable[str] = STOP_LEMMAS,
    stop_phrases: Iterable[str] = STOP_PHRASES,
    model: str | None = None,
) -> pd.DataFrame:
    """Label the words of captions as scene, object, action or attribute.

    Nouns are joined to names ("fire hydrant", "train station"); a name is of the scene where it, or its last word,
    stands in ``scene``, and an object otherwise. Verbs are actions, adjectives attributes (of whatever they describe),
    both as :func:`words` finds them. No model is asked what a caption is about: a table that a room is named after is
    an object, and what no list of places knows is one, too.

    Parameters
    ----------
    captions : Stimuli, or sequence of str or of sequences of str
        One or more captions a stimulus.
    ids : sequence of str, optional
        Of the stimuli, where captions are not Stimuli; equal ones are legal. Default: positions.
    scene : iterable of str, optional
        Words for places and surroundings, singular; by default "place" of :func:`load_lexicon` and some others.
    stop : iterable of str
        Lemmas that do not count.
    stop_phrases : iterable of str
        "A PHRASE of" is removed before parsing.
    model : str, optional
        spaCy pipeline, the small English one by default.

    Returns
    -------
    DataFrame
        ``stimulus, caption`` (number of the caption in its stimulus)``, aspect, word``; a word once a caption.

    Raises
    ------
    DataError
        No captions, something else than text, or ids of another number.
    ModuleNotFoundError
        spaCy is not installed.

    References
    ----------
    Liu et al. (2024), Structurization (StruXGPT): scope, aspects, descriptions. Honnibal et al., spaCy.

    Examples
    --------
    >>> found = caption_aspects(["A man is riding a brown horse at the train station."])
    >>> found[["aspect", "word"]].values.tolist()
    [['objects', 'man'], ['objects', 'horse'], ['scene', 'train station'], ['actions', 'ride'], ['attributes', 'brown']]
    """
    texts, names = _captions(captions, ids)
    places = _default_scene() if scene is None else frozenset(" ".join(str(w).lower().split()) for w in scene)
    stopped = frozenset(stop)
    distinct, codes = unique_texts(strip_phrases(texts, stop_phrases))
    found = parse(distinct, lambda doc: _words_of(doc, places, stopped), model=model)
    number = pd.Series(names).groupby(names).cumcount()
    rows = [(name, i, *word) for name, i, code in zip(names, number, codes) for word in found[code]]
    return pd.DataFrame(rows, columns=["stimulus", "caption", "aspect", "word"])


def aspect_bands(
    captions: Stimuli | Sequence[str] | Sequence[Sequence[str]],
    embed_text: str | Callable[[list[str]], Any] | Any = "minilm",
    ids: Sequence[str] | np.ndarray | None = None,
    *,
    aspects: Iterable[str] = ASPECTS,
    normalise: bool = False,
    **options: Any,
) -> xr.DataArray:
    r"""Feature bands of captions for banded ridge: one band of text vectors per aspect.

    .. math:: X_{na} = \frac{1}{|W_{na}|} \sum_{(c, w) \in W_{na}} \frac{t(w)}{\lVert t(w) \rVert}

    with :math:`W_{na}` the words w of aspect a in the captions c of stimulus n (see :func:`caption_aspects`); zero
    where there is none. A band's penalty then says how much a voxel follows that aspect, and a voxel that follows one
    does not pay for the others.

    Parameters
    ----------
    captions : Stimuli, or sequence of str or of sequences of str
    embed_text : str, callable or TextEmbedder
        A text model of :class:`neuroenc.embedding.TextEmbedder` ("minilm", "world", ...), or a function of a list of
        texts. Words are given bare ("ride", "fire hydrant").
    ids : sequence of str, optional
        As in :func:`caption_aspects`.
    aspects : iterable of {"scene", "objects", "actions", "attributes"}
        Bands, in this order.
    normalise : bool
        Unit norm of every band that is not empty, so that many words weigh as much as one.
    **options
        ``scene, stop, stop_phrases, model`` of :func:`caption_aspects`.

    Returns
    -------
    DataArray (stimulus, feature)
        float32; coordinate ``band`` over feature, which is what ``BandedRidgeEncoder(bands=X["band"].values)`` takes.
        ``attrs["empty"]``: share of stimuli without a word, by aspect, in JSON.

    Raises
    ------
    ConfigError
        An unknown aspect or text model.
    DataError
        As :func:`caption_aspects`; or no word of any aspect was found.

    Warns
    -----
    UserWarning
        An aspect has no word in any caption: its band is all zero.

    References
    ----------
    Liu et al. (2024), Structurization (StruXGPT). Nunez-Elizalde, Huth & Gallant (2019), NeuroImage 197.

    Examples
    --------
    >>> texts = ["a brown dog running on the beach", "a red bus", "an old man reading in the kitchen"]
    >>> X = aspect_bands(texts, "world")
    >>> X.shape, list(dict.fromkeys(X["band"].values.tolist()))
    ((3, 512), ['scene', 'objects', 'actions', 'attributes'])
    >>> X.attrs["empty"]
    '{"scene": 0.333, "objects": 0.0, "actions": 0.333, "attributes": 0.0}'
    >>> bool((X[1, X["band"] == "scene"] == 0).all())
    True
    """
    wanted = [str(a) for a in aspects]
    for aspect in wanted:
        one_of("aspect", aspect, ASPECTS)
    if not wanted or len(set(wanted)) < len(wanted):
        raise ConfigError(f"aspects {wanted} are empty or name one twice. Legal: some of {', '.join(ASPECTS)}.")
    if isinstance(embed_text, str):
        from neuroenc.embedding import TextEmbedder

        embed_text = TextEmbedder(embed_text, progress=False)
    stimuli = list(dict.fromkeys(_captions(captions, ids)[1]))
    table = caption_aspects(captions, ids, **options)
    table = table[table["aspect"].isin(wanted)]
    if not len(table):
        raise DataError(f"{len(stimuli)} stimuli have no word of {', '.join(wanted)} in their captions.")
    words, codes = unique_texts(table["word"])
    vectors = embed(embed_text, words)
    row = table["stimulus"].map({name: n for n, name in enumerate(stimuli)}).to_numpy()
    values = np.zeros((len(stimuli), len(wanted), vectors.shape[1]), np.float32)
    empty = {}
    for a, aspect in enumerate(wanted):
        here = (table["aspect"] == aspect).to_numpy()
        count = np.bincount(row[here], minlength=len(stimuli))
        uses = indicator(row[here], len(stimuli)) @ indicator(codes[here], len(words)).T
        mean = (uses @ vectors) / np.maximum(count, 1)[:, None]
        if normalise:
            mean = unit_rows(mean)
        values[:, a] = mean
        empty[aspect] = round(float((count == 0).mean()), 3)
    absent = [aspect for aspect, share in empty.items() if not (table["aspect"] == aspect).any()]
    if absent:
        warnings.warn(
            f"no caption of {len(stimuli)} stimuli has a word of {', '.join(absent)}: the band is all zero. Next step: "
            f"aspects={tuple(a for a in wanted if a not in absent)}.",
            stacklevel=2,
        )
    backbone = getattr(embed_text, "backbone", None)
    features = make_features(
        values.reshape(len(stimuli), -1),
        stimulus=stimuli,
        backbone=str(getattr(backbone, "name", getattr(embed_text, "__name__", type(embed_text).__name__))),
        weights=str(getattr(backbone, "weights", "")),
        layer="caption aspects",
        pooling="mean over the words of an aspect" + (", unit norm" if normalise else ""),
        provenance=provenance(step="aspect_bands", aspects=wanted, empty=empty),
        band=("feature", np.repeat(wanted, vectors.shape[1])),
    )
    features.attrs["empty"] = json.dumps(empty)
    return features


def _captions(captions: Any, ids: Any) -> tuple[list[str], list[str]]:
    """Every caption and its stimulus."""
    if isinstance(captions, Stimuli):
        if ids is not None:
            raise ConfigError("stimuli have ids of their own. Next step: leave ids out.")
        if captions.captions is None:
            raise DataError(f"these {len(captions)} stimuli have no captions (source {captions.source!r}).")
        captions, ids = captions.captions, captions.ids
    return flat_captions(captions, ids)
