"""The former name of `neuroenc.study`: imports of it work, with a warning that tells the new spelling."""

from __future__ import annotations

import warnings
from typing import Any

from neuroenc import study

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    found = getattr(study, name)
    warnings.warn(f"neuroenc.workflows.{name} is now neuroenc.study.{name}.", DeprecationWarning, stacklevel=2)
    return found
