"""Nouns, verbs, attributes and relations of captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from neuroenc.captions.analysis._spacy import load_spacy
from neuroenc.captions.analysis._stop_phrases import STOP_LEMMAS

__all__ = ["PARTS", "parse", "parts_of"]

PARTS: tuple[str, ...] = ("noun", "verb", "attribute", "relation")

_NOUN = ("NOUN", "PROPN", "PRON")
# "in front of", "on top of", "to the left of": the noun in the middle belongs to the preposition.
_MIDDLES = frozenset(("front", "top", "left", "right", "side", "bottom", "middle", "back", "edge"))


def parse(
    texts: Sequence[str],
    reduce: Callable[[Any], Any],
    *,
    model: str | None = None,
    batch_size: int = 256,
    disable: Sequence[str] = (),
) -> list[Any]:
    """``reduce`` of every parsed text, in order; texts go through the parser in batches."""
    nlp = load_spacy(model)
    # Parsed documents are large: only what is kept of each stays in memory.
    return [reduce(doc) for doc in nlp.pipe(texts, batch_size=batch_size, disable=list(disable))]


def _together(token: Any) -> Iterator[Any]:
    """A noun and what is joined to it by "and"."""
    yield token
    yield from token.conjuncts if token.dep_ != "conj" else ()


def _subjects(token: Any) -> list[Any]:
    """Who does what the verb ``token`` says: its subject, or the noun that it describes."""
    own = [c for c in token.children if c.dep_ in ("nsubj", "nsubjpass") and c.pos_ in _NOUN]
    if own:
        return [x for c in own for x in _together(c)]
    if token.dep_ in ("acl", "relcl", "amod") and token.head.pos_ in _NOUN:
        return [token.head]
    if token.dep_ in ("conj", "advcl", "xcomp") and token.head != token and token.head.pos_ in ("VERB", "AUX"):
        return _subjects(token.head)
    return []


def _holders(head: Any) -> list[Any]:
    """Nouns that a preposition under ``head`` speaks of."""
    if head.pos_ in _NOUN:
        return [head]
    if head.pos_ in ("VERB", "AUX"):
        return _subjects(head)
    if head.pos_ in ("ADV", "ADJ", "ADP") and head.head != head:
        return _holders(head.head)
    return []


def _preposition(token: Any) -> Iterator[tuple[list[Any], str, Any]]:
    """Who, which preposition, and what, for a preposition ``token``."""
    words, head = token.lower_, token.head
    if head.lower_ in ("next", "close", "atop") and head.pos_ in ("ADV", "ADJ", "ADP", "SCONJ"):
        words = f"{head.lower_} {words}"
    for thing in (c for c in token.children if c.dep_ == "pobj"):
        if thing.lower_ in _MIDDLES:
            inner = [c for c in thing.children if c.dep_ == "prep" and c.lower_ == "of"]
            for of in inner:
                for real in (c for c in of.children if c.dep_ == "pobj"):
                    for each in _together(real):
                        yield _holders(head), f"{words} {thing.lower_} of", each
            continue
        if head.lower_ in _MIDDLES and words == "of":
            continue
        for each in _together(thing):
            yield _holders(head), words, each


def parts_of(doc: Any, stop: Iterable[str] = STOP_LEMMAS) -> dict[str, set[str]]:
    """Lemmas of one parsed caption by part, each once.

    ``noun`` and ``verb`` are lemmas; ``attribute`` is an adjective or participle with its noun ("brown dog");
    ``relation`` is subject, verb and object ("person ride wave") or noun, preposition and noun ("person on
    surfboard"; what "sits on" is also "on").
    """
    stopped = stop if isinstance(stop, frozenset) else frozenset(stop)
    found: dict[str, set[str]] = {part: set() for part in PARTS}

    def named(token: Any) -> bool:
        return token.pos_ in ("NOUN", "PROPN") and token.lemma_ not in stopped and len(token.lemma_) > 1

    for token in doc:
        lemma = token.lemma_.lower()
        if named(token):
            found["noun"].add(lemma)
            continue
        if token.dep_ == "amod" and named(token.head) and token.pos_ in ("ADJ", "VERB") and lemma not in stopped:
            found["attribute"].add(f"{token.lower_} {token.head.lemma_.lower()}")
        elif token.dep_ == "acomp" and token.pos_ == "ADJ" and lemma not in ("next", "close"):
            for who in (s for s in _subjects(token.head) if named(s)):
                found["attribute"].add(f"{token.lower_} {who.lemma_.lower()}")
        if token.pos_ == "VERB" and lemma not in stopped:
            if token.dep_ != "amod" or token.tag_ != "VBN":
                found["verb"].add(lemma)
            things = [x for c in token.children if c.dep_ == "dobj" for x in _together(c)]
            for who in (s for s in _subjects(token) if named(s)):
                found["relation"].update(f"{who.lemma_.lower()} {lemma} {x.lemma_.lower()}" for x in things if named(x))
        elif token.dep_ == "prep":
            for holders, words, thing in _preposition(token):
                if named(thing):
                    found["relation"].update(
                        f"{h.lemma_.lower()} {words} {thing.lemma_.lower()}" for h in holders if named(h) and h != thing
                    )
    return found
