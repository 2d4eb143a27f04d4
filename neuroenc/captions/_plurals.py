"""Singular and plural of English nouns, as far as rules and a short list go."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["IRREGULAR", "plurals", "singular", "singulars", "word_pattern"]

#: Plural -> singular.
IRREGULAR = {
    "men": "man",
    "women": "woman",
    "people": "person",
    "children": "child",
    "feet": "foot",
    "teeth": "tooth",
    "geese": "goose",
    "mice": "mouse",
    "knives": "knife",
    "wolves": "wolf",
    "calves": "calf",
    "halves": "half",
    "leaves": "leaf",
    "loaves": "loaf",
    "shelves": "shelf",
    "wives": "wife",
    "buses": "bus",
    "lenses": "lens",
    "cookies": "cookie",
    "movies": "movie",
}
#: One thing, though it is written as several.
_PAIRS = frozenset({"glasses", "scissors", "pants"})


def singular(word: str) -> str:
    """The likeliest singular.

    Examples
    --------
    >>> [singular(w) for w in ("dogs", "churches", "cherries", "bus", "grass", "women", "pants")]
    ['dog', 'church', 'cherry', 'bus', 'grass', 'woman', 'pants']
    """
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) < 4 or word in _PAIRS or word.endswith(("ss", "us", "is")) or not word.endswith("s"):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    return word[:-1]


def singulars(word: str) -> frozenset[str]:
    """A word and all that it may be the plural of."""
    forms = {word, IRREGULAR.get(word, word)}
    if word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        forms.add(word[:-1])
        if word.endswith("ies"):
            forms.add(word[:-3] + "y")
        elif word.endswith(("ches", "shes", "xes", "ses", "oes")):
            forms.add(word[:-2])
    return frozenset(forms)


def plurals(word: str) -> frozenset[str]:
    """A word and what may be its plural; of several words the last is inflected.

    Examples
    --------
    >>> sorted(plurals("police woman")), sorted(plurals("baby"))
    (['police woman', 'police womans', 'police women'], ['babies', 'baby', 'babys'])
    """
    head, _, last = word.rpartition(" ")
    forms = {last, last + "s"} | {many for many, one in IRREGULAR.items() if one == last}
    if last.endswith("y"):
        forms.add(last[:-1] + "ies")
    if last.endswith(("ch", "sh", "x", "s", "o")):
        forms.add(last + "es")
    return frozenset(f"{head} {form}".strip() for form in forms)


def word_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """What finds any of the words or their plurals in a text, as whole words, whatever the capitals.

    Examples
    --------
    >>> found = word_pattern(["woman", "hot dog"])
    >>> [bool(found.search(t)) for t in ("Two Women wait", "a womanly dress", "hot dogs", "hot, dog")]
    [True, False, True, False]
    """
    forms = sorted({form for w in words for form in plurals(w)}, key=len, reverse=True)
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, forms))})(?![^\W_])", re.IGNORECASE)
