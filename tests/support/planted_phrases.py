"""Captions of a small grammar with the phrases they were made of: what an unsupervised parser is measured on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.captions.text._trees import Tree

__all__ = ["GRAMMARS", "PlantedCaption", "planted_captions"]

_WORDS = {
    "animal": {
        "N": "dog cat horse sheep cow bird bear elephant zebra giraffe",
        "A": "furry brown spotted hungry wild tame playful sleepy",
        "V": "chases watches smells licks bites follows",
        "L": "meadow barn zoo farm forest pond",
        "P": "in across",
        "B": "wildly lazily",
    },
    "vehicle": {
        "N": "bus train truck car boat plane bicycle motorcycle van tram",
        "A": "rusty fast parked electric loaded diesel double-decker armoured",
        "V": "overtakes tows passes carries hits blocks",
        "L": "street station harbour airport bridge motorway",
        "P": "at through",
        "B": "quickly noisily",
    },
    "food": {
        "N": "pizza cake sandwich apple banana salad soup doughnut pancake omelette",
        "A": "tasty sliced fresh baked sweet salted burnt vegetarian",
        "V": "covers tops fills garnishes sweetens accompanies",
        "L": "plate bowl kitchen tray oven restaurant",
        "P": "on inside",
        "B": "deliciously thickly",
    },
    "person": {
        "N": "man woman boy girl child player surfer skier chef tourist",
        "A": "young smiling tall old bearded tired elderly cheerful",
        "V": "greets photographs teaches hugs pushes calls",
        "L": "beach park court classroom stadium office",
        "P": "by around",
        "B": "kindly often",
    },
}
_DETERMINERS = ["the", "one", "some", "this", "that"]

#: How each grammar orders a phrase's parts. "prepositions": noun phrases are followed by what describes them and verbs
#: by their objects, as in English; "postpositions": objects stand before verbs, and "in" behind its noun phrase.
GRAMMARS = ("prepositions", "postpositions")


class PlantedCaption(NamedTuple):
    """A caption and the binary tree over its words' numbers."""

    text: str
    tree: Tree


def planted_captions(
    n: int, grammar: str = "prepositions", *, max_words: int = 14, seed: int = 0
) -> list[PlantedCaption]:
    """Captions from a probabilistic context-free grammar whose symbols know what a phrase speaks of.

    S is NP VP; NP is a determiner and a noun, an adjective and a noun inside it, or an NP that a PP describes; VP is
    a verb and its object, or a VP with a PP or an adverb. Words of a phrase go with its topic (animals, vehicles,
    food, people): adjectives with their noun, verbs with their object, a place and its preposition with their verb.
    Topics of different phrases are independent: what ties words together are the planted phrases. Neither grammar
    branches to one side only.

    Parameters
    ----------
    n : int
    grammar : {"prepositions", "postpositions"}
    max_words : int
        Longer captions are drawn again.
    seed : int

    Returns
    -------
    list of PlantedCaption

    Raises
    ------
    ConfigError
        Unknown grammar, or fewer than 4 words.

    Examples
    --------
    >>> planted_captions(2, seed=100)[0]
    PlantedCaption(text='the old chef accompanies that omelette', tree=((0, (1, 2)), (3, (4, 5))))
    """
    if grammar not in GRAMMARS:
        raise ConfigError(unknown_name("grammar", grammar, GRAMMARS))
    if max_words < 4:
        raise ConfigError(f"max_words={max_words}; the shortest captions have 4 words.")
    rng = np.random.default_rng([seed, GRAMMARS.index(grammar)])
    maker = _Maker(rng, grammar == "prepositions")
    out: list[PlantedCaption] = []
    while len(out) < n:
        words: list[str] = []
        tree = _numbered(maker.sentence(), words)
        if len(words) <= max_words:
            out.append(PlantedCaption(" ".join(words), tree))
    return out


def _numbered(node: Tree, words: list[str]) -> Tree:
    if isinstance(node, str):
        words.append(node)
        return len(words) - 1
    return tuple(_numbered(part, words) for part in node)


class _Maker:
    """Draws phrases as nested pairs of words."""

    def __init__(self, rng: np.random.Generator, head_first: bool) -> None:
        self.rng, self.head_first = rng, head_first
        self.topics = list(_WORDS)

    def _of(self, words: list[str]) -> str:
        return words[int(self.rng.integers(len(words)))]

    def _topical(self, topic: str, kind: str) -> str:
        return self._of(_WORDS[topic][kind].split())

    def _topic(self) -> str:
        return self._of(self.topics)

    def _order(self, head: Tree, other: Tree) -> Tree:
        return (head, other) if self.head_first else (other, head)

    def sentence(self) -> Tree:
        return (self.noun_phrase(self._topic()), self.verb_phrase(self._topic()))

    def noun_phrase(self, topic: str, depth: int = 0) -> Tree:
        if depth < 1 and self.rng.random() < 0.25:
            # "a dog with a fresh cake": what describes it has a topic of its own.
            described = self.noun_phrase(topic, depth + 1)
            other = self._topic()
            by = self._order(self._topical(other, "P"), self.noun_phrase(other, depth + 1))
            return self._order(described, by)
        noun: Tree = self._topical(topic, "N")
        if self.rng.random() < 0.5:
            noun = (self._topical(topic, "A"), noun)
        return (self._of(_DETERMINERS), noun)

    def verb_phrase(self, topic: str) -> Tree:
        drawn = self.rng.random()
        verb: Tree = self._topical(topic, "V")
        phrase = self._order(verb, self.noun_phrase(topic))
        if drawn < 0.3:
            place = (self._of(_DETERMINERS), self._topical(topic, "L"))
            return self._order(phrase, self._order(self._topical(topic, "P"), place))
        if drawn < 0.5:
            return self._order(phrase, self._topical(topic, "B"))
        return phrase
