"""What exists in the simulated world, and the words that name it."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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


#: Words that change what a phrase names without naming it, and glue.
_QUALIFIERS = frozenset(
    {"a", "an", "the", "with", "in", "on", "of", "and", "to", "at", "small", "large", "round", "long", "open"}
    | {"young", "sandy", "snowy", "ripe", "raised", "smiling", "plain", "wooden", "standing"}
)
_GROUNDS = {"sky": "sky", "grass": "grass", "wall": "wall", "road": "road", "wood": "wood", "surface": "wood"}
_SIZES = {"small": (0.0, 0.4), "large": (0.66, 9.0)}


@lru_cache(maxsize=1)
def _kinds_of_word() -> dict[str, frozenset[str]]:
    """Kinds of objects that a noun may mean: of its phrases, its words, or its whole family."""
    found: dict[str, set[str]] = {}
    for kind in _ALL:
        texts = [*(p.replace("{c}", "") for p in kind.phrases), kind.name, *kind.words]
        for word in " ".join(texts).split():
            if word not in _QUALIFIERS and word not in COLOURS:
                found.setdefault(word, set()).add(kind.name)
    for family, words in WORLD["family_words"].items():
        for word in words:
            found.setdefault(word, set(MEMBERS[family]))
    return {word: frozenset(kinds) for word, kinds in found.items()}


def scenes_showing(phrase: str, table: pd.DataFrame) -> np.ndarray | None:
    """Scenes of the simulated world that show what a noun phrase names, by their latents.

    Colour, size and smile count where the phrase says them.

    Parameters
    ----------
    phrase : str
        Such as "small red book" or "grey road".
    table : DataFrame
        ``table`` of the stimuli of :func:`simulate_world`.

    Returns
    -------
    ndarray of bool (scene,), or None
        None for a phrase that names nothing in the world ("middle").

    Examples
    --------
    >>> from neuroenc.data.simulate import simulate_world
    >>> table = simulate_world(200, seed=0).table
    >>> shown = scenes_showing("green book", table)
    >>> bool((table["member_book"][shown] > 0).all()), 0 < int(shown.sum()) < int((table["member_book"] > 0).sum())
    (True, True)
    >>> scenes_showing("the middle", table) is None
    True
    """
    words = [WORLD["singulars"].get(w, w) for w in re.findall(r"[a-z]+", phrase.lower())]
    colours, sizes = [w for w in words if w in COLOURS], [_SIZES[w] for w in words if w in _SIZES]
    kinds = [_kinds_of_word()[w] for w in words if w in _kinds_of_word()]
    if kinds:
        # "man with black hair" is a man; of "red stop sign" each word says the same.
        named = frozenset.intersection(*kinds) or kinds[-1]
        smiles = "smiling" in words or "smile" in words

        def fits(thing: dict[str, Any]) -> bool:
            # Water is blue and the beach is not.
            right = not colours or thing["colour"] in colours or thing["member"] == "beach"
            inside = all(low <= thing["size"] < high for low, high in sizes)
            return thing["member"] in named and right and inside and (thing["smiling"] or not smiles)

        return np.array([any(map(fits, json.loads(several))) for several in table["objects"]], dtype=bool)
    ground = next((_GROUNDS[w] for w in words if w in _GROUNDS), "plain" if "background" in words and colours else "")
    if not ground:
        return None
    shown = (table["background"] == ground).to_numpy(dtype=bool)
    if colours and len(WORLD["backgrounds"][ground]) > 1:
        shown = shown & table["background_colour"].isin(colours).to_numpy(dtype=bool)
    return np.asarray(shown)
