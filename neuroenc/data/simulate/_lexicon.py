"""What exists in the simulated world, and the words that name it."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: The five object families that the simulated cortex is selective for.
FAMILIES: tuple[str, ...] = ("face", "body", "place", "word", "food")

#: Named colours, sRGB 0-255.
COLOURS: dict[str, tuple[int, int, int]] = {"red": (208, 42, 40), "orange": (240, 140, 40), "yellow": (245, 212, 60)}
COLOURS |= {"green": (64, 156, 70), "blue": (52, 98, 200), "purple": (128, 66, 166), "pink": (244, 150, 180)}
COLOURS |= {"brown": (122, 78, 44), "black": (34, 32, 36), "white": (244, 243, 238), "grey": (140, 142, 146)}

_PAINT = "red yellow green blue purple orange white"
_POSTER, _BOOK = "yellow blue green purple orange", "red blue green purple brown"
_BOARD, _ROCK = "red yellow green blue white orange", "grey brown purple green"
_OUTSIDE = "in front of, near, outside"
_SHIRT = "red yellow green blue purple white black"


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


def _kind(
    name: str, family: str, phrases: str, colours: str, words: str = "", where: str = "", sized: bool = False
) -> Member:
    """A member from texts: phrases and places with commas between them, colours and words with blanks."""
    listed = phrases.split(", "), colours.split(), words.split(), where.split(", ") if where else ()
    a, b, c, d = map(tuple, listed)
    return Member(name, family, a, b, c, d, sized)


_ALL = (
    _kind("man", "face", "man, man with {c} hair, man with a beard", "black brown grey"),
    _kind("woman", "face", "woman, woman with {c} hair, woman with long {c} hair", "black brown red yellow"),
    _kind("child", "face", "child, child with {c} hair, young child", "black brown red yellow"),
    _kind("cat", "face", "{c} cat, cat", "grey orange black white"),
    _kind("dog", "face", "{c} dog, dog", "brown white black orange"),
    _kind("person", "body", "standing person, person standing, person in a {c} shirt", _SHIRT, "people"),
    _kind("runner", "body", "runner, person running, runner in a {c} shirt", _SHIRT),
    _kind("dancer", "body", "dancer, person dancing, dancer in a {c} dress", "red yellow green blue purple pink white"),
    _kind("surfer", "body", "surfer, surfer on a {c} board, person on a {c} board", _BOARD),
    _kind("hand", "body", "hand, open hand, raised hand", "orange"),
    _kind("house", "place", "{c} house, house, house with a door", "red yellow white blue pink", "building", _OUTSIDE),
    _kind("church", "place", "church, {c} church, church with a tower", "white grey brown yellow", "", _OUTSIDE),
    _kind("mountain", "place", "mountain, {c} mountain, snowy mountain", _ROCK, "", "in front of, near"),
    _kind("beach", "place", "beach, sandy beach, beach with blue water", "yellow", "water", "on, at"),
    _kind("corridor", "place", "corridor, long corridor, {c} corridor", "white green yellow blue grey", "", "in"),
    _kind("sign", "word", "stop sign, red stop sign", "red", "stop", sized=True),
    _kind("letter", "word", "{c} letter, card with a {c} letter, letter", "black red blue green purple", sized=True),
    _kind("poster", "word", "{c} poster, poster with a word, {c} poster with a word", _POSTER, "word text", sized=True),
    _kind("book", "word", "{c} book, book with a title, {c} book with a title", _BOOK, "title", sized=True),
    _kind("newspaper", "word", "newspaper, newspaper with a headline", "white", "headline", sized=True),
    _kind("pizza", "food", "pizza, round pizza, pizza with cheese", "yellow", "cheese", sized=True),
    _kind("apple", "food", "{c} apple, apple", "red green yellow", "fruit", sized=True),
    _kind("banana", "food", "banana, ripe banana, yellow banana", "yellow", sized=True),
    _kind("cake", "food", "cake, {c} cake, cake with a cherry", "pink brown white", "cherry", sized=True),
    _kind("burger", "food", "burger, burger with cheese, brown burger", "brown", sized=True),
    _kind("ball", "neutral", "{c} ball, ball, round {c} ball", _PAINT, sized=True),
    _kind("cup", "neutral", "{c} cup, cup", _PAINT, sized=True),
    _kind("tree", "neutral", "green tree, tree", "green", sized=True),
    _kind("umbrella", "neutral", "{c} umbrella, umbrella, open umbrella", _PAINT, sized=True),
    _kind("box", "neutral", "{c} box, box", _PAINT, sized=True),
)
_BY_NAME = {m.name: m for m in _ALL}

#: Members of each family, in a fixed order.
MEMBERS: dict[str, tuple[str, ...]] = {f: tuple(m.name for m in _ALL if m.family == f) for f in FAMILIES}

#: Objects that belong to no family.
NEUTRAL: tuple[str, ...] = tuple(m.name for m in _ALL if m.family == "neutral")

# Words for a whole family, and words a person would use though no template does.
_FAMILY_WORDS = {
    "face": ("face", "portrait", "smile", "smiling", "beard", "hair", "girl", "boy", "lady"),
    "body": ("body", "people", "running", "dancing", "standing", "arm", "leg", "shirt", "dress"),
    "place": ("place", "building", "room", "street", "hallway", "landscape", "tower", "hill"),
    "word": ("word", "text", "writing", "page", "paper"),
    "food": ("food", "fruit", "meal", "dessert", "hamburger"),
}
_FAMILY_OF = {w: f for f, words in _FAMILY_WORDS.items() for w in words}
_FAMILY_OF.update({w: m.family for m in _ALL if m.family != "neutral" for w in (m.name, *m.words)})
_PLURALS = "men=man women=woman children=child ladies=lady churches=church beaches=beach bodies=body cherries=cherry"
_IRREGULAR = dict(pair.split("=") for pair in f"{_PLURALS} dresses=dress".split())


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
    w = _IRREGULAR.get(w, w)
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
