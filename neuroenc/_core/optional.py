"""Optional packages, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require(module: str, extra: str) -> Any:
    """Import ``module``, or say which extra brings it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise ModuleNotFoundError(
            f"{module!r} is needed here and is not installed. Next step: pip install 'neuroenc[{extra}]' "
            "(with -c constraints.txt on a machine without a GPU).",
            name=module,
        ) from None
