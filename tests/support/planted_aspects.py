"""Captions of a small grammar with what each word speaks of: what the assignment of aspects is measured on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["AspectCaption", "aspect_captions"]


def _list(words: str) -> list[str]:
    return [word.strip() for word in words.split(",")]


# Things are classes of COCO, places common names of Places365, both with names of two words.
_WHO = _list("man, woman, boy, girl, child, dog, cat, horse, cow, sheep, bear, elephant, zebra, giraffe, bird")
_THINGS = _list(
    "bicycle, car, motorcycle, bus, truck, boat, bench, umbrella, kite, chair, couch, bed, laptop, clock, vase, "
    "toilet, fire hydrant, stop sign, traffic light, parking meter, dining table, potted plant, teddy bear"
)
_PLACES = _list(
    "kitchen, bedroom, bathroom, office, classroom, restaurant, supermarket, street, bridge, airport, harbor, beach, "
    "park, playground, forest, field, garden, desert, living room, parking lot, train station, ski slope, "
    "swimming pool, conference room"
)
_ACTS = {
    "ride": ("riding", _list("bicycle, motorcycle, skateboard, horse, elephant")),
    "hold": ("holding", _list("umbrella, frisbee, book, bottle, baseball bat, tennis racket, cell phone")),
    "eat": ("eating", _list("banana, apple, sandwich, pizza, donut, cake, carrot, hot dog")),
    "carry": ("carrying", _list("backpack, suitcase, handbag, surfboard, snowboard")),
    "watch": ("watching", _list("kite, train, bird, boat, airplane")),
    "wash": ("washing", _list("car, dog, cup, truck, bowl")),
    "run": ("running", []),
    "sit": ("sitting", []),
    "stand": ("standing", []),
    "sleep": ("sleeping", []),
    "walk": ("walking", []),
    "jump": ("jumping", []),
    "wait": ("waiting", []),
    "play": ("playing", []),
}
_LOOKS = _list(
    "red, blue, green, black, white, brown, yellow, large, small, tall, old, young, wooden, wet, dirty, happy, "
    "striped, fluffy, shiny, broken"
)
_AT = ("in", "at", "near", "by")


class AspectCaption(NamedTuple):
    """A caption and the words of each aspect (verbs and nouns in their base form), in the order of the sentence."""

    text: str
    aspects: dict[str, list[str]]


def aspect_captions(n: int, seed: int = 0) -> list[AspectCaption]:
    """Captions from a probabilistic context-free grammar that knows the aspect of its words.

    S is NP, NP VP, NP "and" NP, or NP "with" NP, each with or without a place behind it; NP is a determiner, up to two
    adjectives and a noun (of one or two words); VP is a participle, with "is" or without, with or without an object
    NP; a place is a preposition, a determiner, an adjective or none and a noun.

    Parameters
    ----------
    n : int
        Captions, independent draws.
    seed : int

    Returns
    -------
    list of AspectCaption

    Examples
    --------
    >>> caption = aspect_captions(1, seed=5)[0]
    >>> sorted(caption.aspects)
    ['actions', 'attributes', 'objects', 'scene']
    >>> all(word.split()[-1] in caption.text for word in caption.aspects["objects"])
    True
    """
    rng = np.random.default_rng(seed)
    return [_sentence(rng) for _ in range(n)]


def _sentence(rng: np.random.Generator) -> AspectCaption:
    found: dict[str, list[str]] = {"scene": [], "objects": [], "actions": [], "attributes": []}

    def noun_phrase(noun: str, aspect: str, adjectives: tuple[float, ...] = (0.4, 0.4, 0.2)) -> str:
        looks = rng.choice(_LOOKS, rng.choice(len(adjectives), p=adjectives), replace=False).tolist()
        found[aspect].append(noun)
        found["attributes"] += looks
        words = " ".join([*looks, noun])
        determiner = rng.choice(["a", "the"], p=[0.8, 0.2]).item()
        return ("an " if determiner == "a" and words[0] in "aeiou" else f"{determiner} ") + words

    kind = rng.choice(4, p=[0.15, 0.6, 0.15, 0.1])
    if kind == 1:
        text = noun_phrase(_pick(_WHO, rng), "objects")
        verb = _pick(list(_ACTS), rng)
        participle, things = _ACTS[verb]
        found["actions"].append(verb)
        text += (" is " if rng.random() < 0.4 else " ") + participle
        if things:
            text += " " + noun_phrase(_pick(things, rng), "objects")
    else:
        text = noun_phrase(_pick(_THINGS, rng), "objects")
        if kind > 1:
            text += (" and " if kind == 2 else " with ") + noun_phrase(_pick(_WHO + _THINGS, rng), "objects")
    if rng.random() < 0.75:
        text += f" {_pick(_AT, rng)} " + noun_phrase(_pick(_PLACES, rng), "scene", (0.75, 0.25))
    return AspectCaption(text[0].upper() + text[1:] + ".", found)


def _pick(words: list[str] | tuple[str, ...], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]
