"""Singular and plural of English nouns, as far as rules and a short list go."""

from __future__ import annotations

__all__ = ["IRREGULAR", "plurals", "singulars"]

#: Plural -> singular.
IRREGULAR = {"men": "man", "women": "woman", "people": "person", "children": "child", "feet": "foot", "teeth": "tooth",
             "geese": "goose", "mice": "mouse", "knives": "knife", "wolves": "wolf", "calves": "calf",
             "leaves": "leaf", "shelves": "shelf", "wives": "wife"}  # fmt: skip


def singulars(word: str) -> frozenset[str]:
    """A word and what it may be the plural of."""
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
