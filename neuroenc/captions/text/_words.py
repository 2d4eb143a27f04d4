"""English words: plurals, stop words and stop phrases."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: Word lists of English; see the file for what each is.
LISTS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
#: Plural -> singular.
IRREGULAR: dict[str, str] = LISTS["irregular"]
#: One thing, though it is written as several.
_PAIRS = frozenset({"glasses", "scissors", "pants"})


def word_set(name: str) -> frozenset[str]:
    """The words of a list."""
    return frozenset(LISTS[name].split())


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


STOP_WORDS = word_set("stop_words")
#: Removed as phrases, before anything is counted, with an article before and "of" after them.
STOP_PHRASES: tuple[str, ...] = tuple(LISTS["stop_phrases"])
#: Lemmas that are no word of a region by themselves (they may still stand in a relation).
STOP_LEMMAS = word_set("stop_lemmas")
#: Words that no phrase begins or ends with.
FUNCTION_WORDS = word_set("function_words")
_WORD = re.compile(r"[^\W\d_]+(?:'[a-z]+)?")


def strip_phrases(texts: Iterable[str], phrases: Iterable[str] = STOP_PHRASES) -> list[str]:
    """Texts in lower case without "a close up of" and the like; what such a phrase introduces stays.

    Examples
    --------
    >>> strip_phrases(["A close up of a dog.", "a close-up picture of a cat by the photo"])
    ['a dog.', 'a cat by the photo']
    """
    lowered = [" ".join(str(t).lower().split()) for t in texts]
    found = sorted({" ".join(p.lower().split()) for p in phrases} - {""}, key=lambda p: (-len(p), p))
    if not found:
        return lowered
    each = "|".join(r"[\s-]+".join(map(re.escape, re.split(r"[\s-]+", p))) for p in found)
    # Only as "a close up of": "the view" at the end of a caption is what is shown.
    pattern = re.compile(rf"\b(?:(?:an?|the|this|some|two)\s+)?(?:{each})\s+of\s+", re.IGNORECASE)
    return [pattern.sub("", t) for t in lowered]


def tokens(text: str) -> list[str]:
    """Words of a text in lower case, without digits and punctuation.

    >>> tokens("A man's dog, 2 cats")
    ['a', "man's", 'dog', 'cats']
    """
    return _WORD.findall(text.lower())
