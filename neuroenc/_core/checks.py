"""Checks of single values that many functions share."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from neuroenc._core.errors import ConfigError, DataError, unknown_name


def check_whole(name: str, value: Any, least: int = 1, also: str = "") -> int:
    """``value`` as an int of at least ``least``; ``also`` ends the error with what else is legal.

    >>> check_whole("k", 3.0)
    3
    >>> check_whole("k", "three")
    Traceback (most recent call last):
        ...
    neuroenc._core.errors.ConfigError: k='three' is not legal; it must be an integer of at least 1.
    """
    try:
        whole = None if isinstance(value, (bool, str)) else int(value)
    except (TypeError, ValueError, OverflowError):
        whole = None
    if whole is None or whole != value or whole < least:
        raise ConfigError(f"{name}={value!r} is not legal; it must be an integer of at least {least}{also}.")
    return whole


def check_fraction(name: str, value: Any, also: str = "") -> float:
    """``value`` as a float above 0 and below 1: a level, a confidence; ``also`` ends the error.

    >>> check_fraction("confidence", 0.95)
    0.95
    >>> check_fraction("q", 2)
    Traceback (most recent call last):
        ...
    neuroenc._core.errors.ConfigError: q=2 is not legal; it must be a fraction between 0 and 1, such as 0.05.
    """
    number = _number(value)
    if not 0 < number < 1:
        like = "0.95" if name == "confidence" else "0.05"
        raise ConfigError(
            f"{name}={value!r} is not legal; it must be a fraction between 0 and 1, such as {like}{also}."
        )
    return number


def _number(value: Any) -> float:
    """``value`` as a float; NaN for what is no number."""
    try:
        return float("nan") if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def at_least(name: str, value: Any, least: float = 0, *, above: bool = False, also: str = "") -> float:
    """``value`` as a finite float of at least ``least``, or above it; ``also`` ends the error.

    >>> at_least("penalty", 0)
    0.0
    >>> at_least("lr", 0, above=True)
    Traceback (most recent call last):
        ...
    neuroenc._core.errors.ConfigError: lr=0 is not legal; it must be a number above 0.
    """
    number = _number(value)
    if not np.isfinite(number) or number < least or (above and number == least):
        kind = "above" if above else "of at least"
        raise ConfigError(f"{name}={value!r} is not legal; it must be a number {kind} {least:g}{also}.")
    return number


def share(name: str, value: Any) -> float:
    """``value`` as a float from 0 to 1.

    >>> share("beta", 1.5)
    Traceback (most recent call last):
        ...
    neuroenc._core.errors.ConfigError: beta=1.5 is not legal; it must be a number from 0 to 1.
    """
    number = _number(value)
    if not 0 <= number <= 1:
        raise ConfigError(f"{name}={value!r} is not legal; it must be a number from 0 to 1.")
    return number


def make_rng(seed: Any) -> np.random.Generator:
    """The random generator of a seed, which is a whole number of at least 0.

    >>> int(make_rng(0).integers(100)) == int(np.random.default_rng(0).integers(100))
    True
    >>> make_rng(-1)
    Traceback (most recent call last):
        ...
    neuroenc._core.errors.ConfigError: seed=-1 is not legal; it must be an integer of at least 0.
    """
    return np.random.default_rng(check_whole("seed", seed, least=0))


def keywords(function: Any) -> dict[str, Any]:
    """Keyword-only parameters of a function or class, and their defaults.

    >>> keywords(share), keywords(at_least)
    ({}, {'above': False, 'also': ''})
    """
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def check_texts(texts: Any, what: str) -> list[str]:
    """``texts`` as a list of str: one string, missing values and numbers are refused.

    >>> check_texts(["a dog", float("nan")], "captions")
    Traceback (most recent call last):
        ...
    neuroenc._core.errors.DataError: 1 of 2 captions are not text; the first is number 1: nan.
    """
    if isinstance(texts, str):
        raise DataError(f"{what} is one string ({texts[:40]!r}); give a list: [{texts[:40]!r}].")
    if isinstance(texts, Mapping) or not isinstance(texts, Iterable):
        raise DataError(f"{what} is a {type(texts).__name__}; legal is a list of texts.")
    listed = list(texts)
    wrong = [n for n, t in enumerate(listed) if not isinstance(t, str)]
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(listed)} {what} are not text; the first is number {wrong[0]}: {listed[wrong[0]]!r}."
        )
    return listed


def check_ids(ids: Any, n: int, what: str) -> list[str]:
    """One id for each of ``n`` things, as text; "0", "1", ... for None.

    >>> check_ids(None, 2, "captions")
    ['0', '1']
    """
    names = [str(i) for i in range(n)] if ids is None else [str(x) for x in ids]
    if len(names) != n:
        raise DataError(f"{len(names)} ids for {n} {what}; legal is one id each (equal ones may occur).")
    return names


def flat_captions(captions: Any, ids: Any) -> tuple[list[str], list[str]]:
    """Every caption and its id."""
    if isinstance(captions, str):
        raise DataError(f"captions is one string ({captions[:40]!r}); give a list: [{captions[:40]!r}].")
    listed = list(captions)
    if not listed:
        raise DataError("there are 0 captions; at least one is needed.")
    names = check_ids(ids, len(listed), "captions")
    groups = [[c] if isinstance(c, str) or not isinstance(c, Iterable) else list(c) for c in listed]
    texts = check_texts([c for group in groups for c in group], "captions")
    empty = [name for name, group in zip(names, groups) if not group]
    if empty:
        raise DataError(f"{len(empty)} of {len(names)} ids have no caption, the first is {empty[0]!r}.")
    return texts, [name for name, group in zip(names, groups) for _ in group]


def one_of(
    name: str, value: Any, legal: Iterable[str], step: str = "", aliases: Mapping[str, str] | None = None
) -> str:
    """``value``, if it is one of the legal names; else an error with the nearest, and ``step`` as what to do next.

    ``aliases`` tell which legal name is meant by another: the error names it.

    >>> one_of("kind", "ridge", ["ridge", "banded"])
    'ridge'
    >>> one_of("kind", "rigde", ["ridge", "banded"])
    Traceback (most recent call last):
        ...
    neuroenc._core.errors.ConfigError: unknown kind 'rigde'; did you mean 'ridge'? Legal: ridge, banded.
    """
    legal = tuple(legal)
    if not isinstance(value, str) or value not in legal:
        raise ConfigError(unknown_name(name, value, legal, step, aliases))
    return value
