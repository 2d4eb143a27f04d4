"""A simulated world of rendered scenes and a simulated visual cortex that sees it, with the planted truth."""

from __future__ import annotations

from neuroenc.data.simulate._captions import vocabulary
from neuroenc.data.simulate._lexicon import FAMILIES, MEMBERS, NEUTRAL, families_in_caption, family_of_word
from neuroenc.data.simulate._world import simulate_world

__all__ = [
    "FAMILIES",
    "MEMBERS",
    "NEUTRAL",
    "families_in_caption",
    "family_of_word",
    "simulate_world",
    "vocabulary",
]
