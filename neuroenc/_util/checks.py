"""Checks of single values that many functions share."""

from __future__ import annotations

from typing import Any

from neuroenc._util.errors import ConfigError

__all__ = ["check_whole"]


def check_whole(name: str, value: Any, least: int = 1, also: str = "") -> int:
    """``value`` as an int of at least ``least``; ``also`` ends the error with what else is legal.

    >>> check_whole("k", 3.0)
    3
    >>> check_whole("k", "three")
    Traceback (most recent call last):
        ...
    neuroenc._util.errors.ConfigError: k='three' is not legal; it must be an integer of at least 1.
    """
    try:
        whole = None if isinstance(value, (bool, str)) else int(value)
    except (TypeError, ValueError, OverflowError):
        whole = None
    if whole is None or whole != value or whole < least:
        raise ConfigError(f"{name}={value!r} is not legal; it must be an integer of at least {least}{also}.")
    return whole
