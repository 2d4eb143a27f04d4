"""Checks of single values that many functions share."""

from __future__ import annotations

from typing import Any

from neuroenc._util.errors import ConfigError

__all__ = ["check_fraction", "check_whole"]


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


def check_fraction(name: str, value: Any) -> float:
    """``value`` as a float above 0 and below 1: a level, a confidence.

    >>> check_fraction("confidence", 0.95)
    0.95
    >>> check_fraction("q", 2)
    Traceback (most recent call last):
        ...
    neuroenc._util.errors.ConfigError: q=2 is not legal; it must be a fraction between 0 and 1, such as 0.05.
    """
    try:
        number = None if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or not 0 < number < 1:
        like = "0.95" if name == "confidence" else "0.05"
        raise ConfigError(f"{name}={value!r} is not legal; it must be a fraction between 0 and 1, such as {like}.")
    return number
