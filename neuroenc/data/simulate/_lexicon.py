"""What exists in the simulated world, and the words that name it."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The five object families that the simulated cortex is selective for.
FAMILIES: tuple[str, ...] = ("face", "body", "place", "word", "food")


def _frozen(value: Any) -> Any:
    """Lists as tuples, throughout."""
    if isinstance(value, dict):
        return {k: _frozen(v) for k, v in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


#: All that is written in world.toml.
WORLD: dict[str, Any] = _frozen(tomllib.loads(Path(__file__).with_name("world.toml").read_text(encoding="utf-8")))
#: Named colours, sRGB 0-255.
COLOURS: dict[str, tuple[int, int, int]] = WORLD["colours"]


@dataclass(frozen=True)
class Member:
    """One kind of object.

    ``phrases`` are noun phrases without their article; ``{c}`` stands for the colour. ``where`` are the
    prepositions by which other objects stand at this one (places only).
    """

    name: str
    family: str
    phrases: tuple[str, ...]
    colours: tuple[str, ...]
    words: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    sized: bool = False


_ALL = tuple(Member(name, **kind) for name, kind in WORLD["kinds"].items())
_BY_NAME = {m.name: m for m in _ALL}

#: Members of each family, in a fixed order.
MEMBERS: dict[str, tuple[str, ...]] = {f: tuple(m.name for m in _ALL if m.family == f) for f in FAMILIES}

#: Objects that belong to no family.
NEUTRAL: tuple[str, ...] = tuple(m.name for m in _ALL if m.family == "neutral")

_FAMILY_OF = {w: f for f, words in WORLD["family_words"].items() for w in words}
_FAMILY_OF.update({w: m.family for m in _ALL if m.family != "neutral" for w in (m.name, *m.words)})


def member(name: str) -> Member:
    """The description of one kind of object."""
    return _BY_NAME[name]


def all_members() -> tuple[Member, ...]:
    """Every kind of object, neutral ones included, in a fixed order."""
    return _ALL


def family_of_word(word: str) -> str | None:
    """Family that a word names, or None.

    The lexicon holds the family names, the members, and words that occur only with one family
    ("portrait", "headline", "runner"). Case and plural do not matter. Colours, sizes, backgrounds and
    neutral objects name no family.

    Parameters
    ----------
    word : str
        One word, with or without punctuation around it.

    Returns
    -------
    str or None
        One of :data:`FAMILIES`, or None.

    Examples
    --------
    >>> family_of_word("Pizzas"), family_of_word("church"), family_of_word("red")
    ('food', 'place', None)
    """
    w = word.strip(".,;:!?\"'()").lower()
    w = WORLD["singulars"].get(w, w)
    for candidate in (w, w.removesuffix("s"), w.removesuffix("es")):
        if candidate in _FAMILY_OF:
            return _FAMILY_OF[candidate]
    return None


def families_in_caption(caption: str) -> set[str]:
    """Families that a caption names.

    Parameters
    ----------
    caption : str
        Free text.

    Returns
    -------
    set of str
        Subset of :data:`FAMILIES`.

    Examples
    --------
    >>> sorted(families_in_caption("A man eats pizza in front of a house."))
    ['face', 'food', 'place']
    >>> families_in_caption("A red ball on the grass.")
    set()
    """
    return {f for f in map(family_of_word, re.findall(r"[A-Za-z]+", caption)) if f is not None}


def names_member(caption: str, name: str) -> bool:
    """Whether a caption holds one of the phrases by which the world names a kind of object, in any colour.

    >>> names_member("A man and a person running on the road.", "runner"), names_member("a woman", "man")
    (True, False)
    """
    # "an" before a colour such as orange.
    free = {"{c}": r"\w+", "a": "an?"}
    forms = (" ".join(free.get(w, re.escape(w)) for w in p.split()) for p in member(name).phrases)
    return any(re.search(rf"\b{form}\b", caption.lower()) for form in forms)
