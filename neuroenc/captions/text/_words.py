"""English words: plurals, stop words and stop phrases."""

from __future__ import annotations

import re
from collections.abc import Iterable

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


_STOP = """
a about above across after all along also among an and another any are around as at background be been
behind being below beside between big both bottom but by can close closeup colored coloured corner couple
different down each edge few focus for foreground from front full group has have having he her his
holding image in inside into is it its large left little looking lot lots lower lying made many middle
more most near next no not number of off on one onto or other others out over pair part photo photograph
picture piece pieces scene set several shot shown showing shows side sides sitting small some standing
taken that the their them there these they this three through to together top towards two under up upper
very view visible was well were what when where which while who with without wide you your"""
STOP_WORDS = frozenset(_STOP.split())
#: Removed as phrases, before anything is counted, with an article before and "of" after them.
STOP_PHRASES: tuple[str, ...] = (
    "close up",
    "closeup",
    "close up view",
    "close up shot",
    "close up photo",
    "close up picture",
    "close up image",
    "black and white photo",
    "black and white photograph",
    "black and white picture",
    "photo",
    "photograph",
    "picture",
    "image",
    "view",
    "shot",
    "snapshot",
    "couple",
    "lot",
    "lots",
    "bunch",
    "number",
    "variety",
    "pair",
)
_LEMMAS = """
photo photograph picture image view shot scene background foreground side top bottom front back middle left right
close up part end thing kind type other one be have do see show look there and"""
#: Lemmas that are no word of a region by themselves (they may still stand in a relation).
STOP_LEMMAS = frozenset(_LEMMAS.split())
_FUNCTION = """
a an the this that these those there here it its he his her she they them their we you your i my our is are was
were be been being has have had do does did and or but nor of on in at to by with from for into onto over under
near behind beside below above next as up down off out while who which what where when not no very some each
other one two against along between through across"""
#: Words that no phrase begins or ends with.
FUNCTION_WORDS = frozenset(_FUNCTION.split())
_WORD = re.compile(r"[^\W\d_]+(?:'[a-z]+)?")


def _pattern(phrases: Iterable[str]) -> re.Pattern[str] | None:
    found = sorted({" ".join(p.lower().split()) for p in phrases} - {""}, key=lambda p: (-len(p), p))
    if not found:
        return None
    each = "|".join(r"[\s-]+".join(map(re.escape, re.split(r"[\s-]+", p))) for p in found)
    # Only as "a close up of": "the view" at the end of a caption is what is shown.
    return re.compile(rf"\b(?:(?:an?|the|this|some|two)\s+)?(?:{each})\s+of\s+", re.IGNORECASE)


def strip_phrases(texts: Iterable[str], phrases: Iterable[str] = STOP_PHRASES) -> list[str]:
    """Texts in lower case without "a close up of" and the like; what such a phrase introduces stays.

    Examples
    --------
    >>> strip_phrases(["A close up of a dog.", "a close-up picture of a cat by the photo"])
    ['a dog.', 'a cat by the photo']
    """
    pattern = _pattern(phrases)
    lowered = [" ".join(str(t).lower().split()) for t in texts]
    return lowered if pattern is None else [pattern.sub("", t) for t in lowered]


def tokens(text: str) -> list[str]:
    """Words of a text in lower case, without digits and punctuation.

    >>> tokens("A man's dog, 2 cats")
    ['a', "man's", 'dog', 'cats']
    """
    return _WORD.findall(text.lower())
