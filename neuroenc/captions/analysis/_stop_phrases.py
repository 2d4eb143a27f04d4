"""What is said of a picture and not of what it shows: phrases and words that analyses leave out."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["FUNCTION_WORDS", "STOP_LEMMAS", "STOP_PHRASES", "strip_phrases", "tokens"]

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
