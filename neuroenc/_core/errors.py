"""Errors that say what was found, what is legal, the nearest names, and one next step."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

# How numpy writes a scalar: np.str_('v7'), np.int64(3).
_SCALAR = re.compile(r"\bnp\.(?:str_|u?int\d+|float\d+|bool_?)\(('[^']*'|[^()]*)\)")


class NeuroencError(ValueError):
    """Base of every error that neuroenc raises about its input.

    Names and numbers that were found in arrays read as they would in a list.

    >>> import numpy as np
    >>> print(DataError(f"voxel {np.str_('v7')!r} has {np.float64(0.5)!r}"))
    voxel 'v7' has 0.5
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(_SCALAR.sub(r"\1", a) if isinstance(a, str) else a for a in args))


class DataError(NeuroencError):
    """Responses, stimuli, features or files are not what the method expects."""


class StorageError(DataError):
    """A file or folder cannot be written: the disk is full, or it is not permitted."""


class ConfigError(NeuroencError):
    """A setting is unknown or has an illegal value."""


class ChecksumError(DataError):
    """A file's content is not the one that its manifest promises."""


def nearest_names(name: str, legal: Iterable[str], n: int = 3) -> list[str]:
    """Up to ``n`` legal names that look like ``name``, best first.

    >>> nearest_names("FAF", ["FFA", "PPA"])
    ['FFA']
    """
    by_lower = {str(x).lower(): str(x) for x in legal}
    close = difflib.get_close_matches(str(name).lower(), list(by_lower), n=n, cutoff=0.5)
    return [by_lower[x] for x in close]


def unknown_name(
    kind: str, name: object, legal: Iterable[str], step: str = "", aliases: Mapping[str, str] | None = None
) -> str:
    """Message for a name that does not exist: what was found, nearest (by ``aliases`` too), legal, next step.

    >>> unknown_name("roi", "FAF", ["FFA", "PPA"])
    "unknown roi 'FAF'; did you mean 'FFA'? Legal: FFA, PPA."
    """
    legal = [str(x) for x in legal]
    also = dict(aliases or {})
    close = list(dict.fromkeys(also.get(x, x) for x in nearest_names(str(name), [*also, *legal])))
    hint = f"; did you mean {' or '.join(repr(x) for x in close)}?" if close else "."
    shown = ", ".join(legal[:20]) + (f", ... ({len(legal)} in all)" if len(legal) > 20 else "")
    return f"unknown {kind} {str(name)!r}{hint} Legal: {shown or '(none)'}." + (f" {step}" if step else "")
