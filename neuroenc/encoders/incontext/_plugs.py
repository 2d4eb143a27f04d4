"""Plug points of an attention as settings that JSON holds, and back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.attention import (
    AbsolutePosition,
    ALiBi,
    ChunkSelectPolicy,
    FullContext,
    GroupedSoftmax,
    LandmarkPolicy,
    NoPosition,
    Normaliser,
    Rotary,
    Sigmoid,
    SinkCalibration,
    Softmax,
    T5Bias,
)

__all__ = ["PARTS", "part_from_settings", "part_settings"]

#: What may stand at each plug point, by the name of its class.
PARTS: dict[str, dict[str, type[nn.Module]]] = {
    "normaliser": {c.__name__: c for c in (Softmax, Sigmoid, GroupedSoftmax, SinkCalibration)},
    "position": {c.__name__: c for c in (NoPosition, AbsolutePosition, Rotary, T5Bias, ALiBi)},
    "context": {c.__name__: c for c in (FullContext, LandmarkPolicy, ChunkSelectPolicy)},
}


def part_settings(what: str, part: nn.Module) -> dict[str, Any]:
    """``{"class": name, ...}`` with the arguments that make the part again.

    Raises
    ------
    ConfigError
        A class of the user's own, which no settings can bring back.

    Examples
    --------
    >>> part_settings("normaliser", Sigmoid(bias=-2.0))
    {'class': 'Sigmoid', 'bias': -2.0}
    """
    kind = PARTS[what].get(type(part).__name__)
    if kind is not type(part):
        raise ConfigError(
            f"{what}={type(part).__name__} is no class of neuroenc.attention, so settings cannot bring it back. "
            f"Legal: {', '.join(PARTS[what])}."
        )
    found: dict[str, Any] = {"class": type(part).__name__}
    for name in _arguments(kind):
        value = getattr(part, name)
        found[name] = part_settings(what, value) if isinstance(value, Normaliser) else value
    return found


def part_from_settings(what: str, settings: Mapping[str, Any]) -> nn.Module:
    """The part that `part_settings` described.

    Raises
    ------
    ConfigError
        No such kind, an argument that it does not take, or one that is not legal.

    Examples
    --------
    >>> part_from_settings("position", {"class": "Rotary", "base": 500.0}).base
    500.0
    """
    if not isinstance(settings, Mapping) or not isinstance(settings.get("class"), str):
        raise ConfigError(f"{what}={settings!r} is no table of settings with a class of {', '.join(PARTS[what])}.")
    kind, given = settings["class"], {k: v for k, v in settings.items() if k != "class"}
    if kind not in PARTS[what]:
        raise ConfigError(unknown_name(f"class of {what}", kind, PARTS[what]))
    legal = _arguments(PARTS[what][kind])
    for name, value in given.items():
        if name not in legal:
            raise ConfigError(unknown_name(f"setting of {what} {kind}", name, legal))
        if isinstance(value, Mapping):
            given[name] = part_from_settings(what, value)
    try:
        return PARTS[what][kind](**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what} {kind}: {error}") from error


def _arguments(kind: type[nn.Module]) -> list[str]:
    return [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "args", "kwargs")]
