"""The former name of `neuroenc.study`: imports of it work, with a warning that tells the new spelling."""

from __future__ import annotations

import warnings
from typing import Any

from neuroenc import retrieval, study

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    home = retrieval if name == "build_bank" else study
    found = getattr(home, name)
    warnings.warn(f"neuroenc.workflows.{name} is now {home.__name__}.{name}.", DeprecationWarning, stacklevel=2)
    return found
