"""Names of files in a BIDS derivative: entities in their order, labels, statistics."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from neuroenc._core.errors import ConfigError, DataError

__all__ = ["ENTITIES", "check_label", "file_name", "label_of", "space_label", "stat_labels"]

# The order in which entities stand in a name. ``stat`` and the suffix ``statmap`` are those of BIDS Stats Models,
# FitLins and nilearn.
ENTITIES = ("sub", "ses", "task", "space", "hemi", "res", "den", "stat", "desc")
_LABEL = re.compile(r"[0-9A-Za-z+]+")
# Coordinate systems that BIDS describes itself: any other one is explained in the sidecar.
STANDARD_SPACES = re.compile(r"fsaverage[3456]?|fsaverageSym|fsLR|MNI[0-9A-Za-z]+|T1w|ICBM[0-9A-Za-z]+|Talairach")


def check_label(entity: str, value: object) -> str:
    """``value`` as the label of an entity that the user wrote; a leading ``sub-`` and the like is dropped.

    >>> check_label("sub", "sub-01")
    '01'
    """
    text = str(value).removeprefix(f"{entity}-")
    if not _LABEL.fullmatch(text):
        near = label_of(text)
        step = f"Next step: {entity}={near!r}." if near else ""
        raise ConfigError(f"{entity} is {str(value)!r}; BIDS labels hold letters, digits and '+' alone. {step}".strip())
    return text


def label_of(text: object) -> str:
    """The nearest legal label: words joined as in ``noiseCeilingR``.

    >>> label_of("noise_ceiling_r"), label_of("subject 01"), label_of("hV4")
    ('noiseCeilingR', 'subject01', 'hV4')
    """
    words = re.findall(r"[0-9A-Za-z+]+", str(text))
    return "".join([*words[:1], *(w[:1].upper() + w[1:] for w in words[1:])])


def stat_labels(names: Sequence[str]) -> dict[str, str]:
    """The label of each score; two scores never share one."""
    labels = {name: label_of(name) for name in names}
    taken: dict[str, str] = {}
    for name, text in labels.items():
        if not text:
            raise DataError(f"score {name!r} holds no letter or digit to name a file by. Next step: rename it.")
        # File systems of laptops ignore case.
        if text.lower() in taken:
            raise DataError(
                f"scores {taken[text.lower()]!r} and {name!r} would both be stat-{text}. Next step: rename one."
            )
        taken[text.lower()] = name
    return labels


def space_label(space: str) -> str:
    """Label of a space as responses name it: the scanner's own grid ("native ...") is ``orig`` in BIDS.

    >>> space_label("fsaverage5"), space_label("native bold"), space_label("func1pt8mm")
    ('fsaverage5', 'orig', 'func1pt8mm')
    """
    return "orig" if space.split() and space.split()[0] == "native" else label_of(space)


def file_name(entities: Mapping[str, str | None], suffix: str, ending: str) -> str:
    """``sub-01_space-fsaverage5_hemi-L_stat-r_statmap.func.gii`` from its entities.

    >>> file_name({"stat": "r", "sub": "01", "ses": None}, "statmap", ".json")
    'sub-01_stat-r_statmap.json'
    """
    unknown = set(entities) - set(ENTITIES)
    if unknown:
        raise ConfigError(f"unknown BIDS entities {sorted(unknown)}; legal: {', '.join(ENTITIES)}.")
    parts = [f"{name}-{entities[name]}" for name in ENTITIES if entities.get(name)]
    return "_".join([*parts, suffix]) + ending
