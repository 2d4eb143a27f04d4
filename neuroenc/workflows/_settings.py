"""Settings from TOML: read, replaced by ``--set``, and checked by type and range before anything is computed."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import read_text

__all__ = ["SEED", "Legal", "absolute", "build", "check_device", "check_world", "read_table"]

# Counts above this are typing errors; numpy's counters end there too.
_MOST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Legal:
    """Which values a setting may have, in ``Annotated[float, Legal(above=0)]``; of a list, each of its elements.

    ``choices`` are for text; ``least`` and ``most`` belong to the range, ``above`` and ``below`` do not; ``check`` is
    called with text that is not empty, and raises.
    """

    choices: tuple[str, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    check: Callable[[str], Any] | None = None

    def range(self) -> str:
        """In words.

        >>> Legal(above=0, most=1).range()
        'above 0 and at most 1'
        """
        bounds = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        return " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)

    def accept(self, where: str, value: Any) -> None:
        """Raise where ``value`` is not legal."""
        if isinstance(value, str):
            if self.choices and value not in self.choices:
                raise ConfigError(unknown_name(f"value of {where}:", value, self.choices))
            if self.check is not None and value:
                try:
                    self.check(value)
                except ConfigError as error:
                    raise ConfigError(f"{where}: {error}") from error
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            outside = (
                (self.least is not None and value < self.least)
                or (self.above is not None and value <= self.above)
                or (self.most is not None and value > self.most)
                or (self.below is not None and value >= self.below)
            )
            if outside:
                raise ConfigError(f"{where} = {value!r} is not legal; it must be {self.range()}.")
            if isinstance(value, int) and self.most is None and abs(value) > _MOST:
                raise ConfigError(f"{where} = {value!r} is not legal; it must be at most {_MOST}.")


SEED = Legal(least=0, most=2**32 - 1)


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have."""
    if name not in ("cpu", "auto", "torch"):
        from neuroenc._core.device import resolve_device

        resolve_device(name)


def check_world(where: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Numbers of a simulated world: whole ones, of at least 1; seeds of at least 0."""
    for name, value in given.items():
        if name not in known:
            raise ConfigError(unknown_name(f"setting in {where}:", name, known))
        check_whole(f"{where}.{name}", value if isinstance(value, int) else str(value), 0 if "seed" in name else 1)
        if value > _MOST:
            raise ConfigError(f"{where}.{name}={value!r} is not legal; it must be at most {_MOST}.")


def build(cls: type, table: Mapping[str, Any], where: str = "") -> Any:
    """A dataclass of settings from a table of a TOML file.

    Raises
    ------
    ConfigError
        An unknown key (the nearest is named), a value of another type, or one that is not legal.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    values: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{where}.{key}" if where else key
        if key not in hints:
            raise ConfigError(unknown_name(f"setting {('in [' + where + ']') if where else 'at the top'}:", key, hints))
        values[key] = _convert(value, hints[key], path, Legal())
    missing = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in missing if name not in values]
    if missing:
        raise ConfigError(f"[{where}] lacks {', '.join(missing)}.")
    return cls(**values)


def _convert(value: Any, hint: Any, where: str, legal: Legal) -> Any:
    if typing.get_origin(hint) is typing.Annotated:
        hint, *more = typing.get_args(hint)
        legal = next((x for x in more if isinstance(x, Legal)), legal)
    if hint is Any:
        return value
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    parts = [p for p in (typing.get_args(hint) if union else (hint,)) if p is not types.NoneType]
    kinds = [typing.get_origin(p) or p for p in parts]
    for part, kind in zip(parts, kinds):
        if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            return build(typing.cast(type, kind), value, where)
        if kind is float and int not in kinds and isinstance(value, int) and not isinstance(value, bool):
            if abs(value) > 2**1000:
                raise ConfigError(f"{where} = {str(value)[:20]}... is too large for a number.")
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            continue
        inner = typing.get_args(part)
        if kind is list and inner:
            return [_convert(x, inner[0], f"{where}[{n}]", legal) for n, x in enumerate(value)]
        if kind is dict and len(inner) == 2:
            return {str(k): _convert(x, inner[1], f"{where}.{k}", legal) for k, x in value.items()}
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where} = {value!r} is not legal; it must be a finite number.")
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"{where} = {value!r} holds a null character.")
        legal.accept(where, value)
        return value
    expected = " or ".join("a table" if dataclasses.is_dataclass(k) else k.__name__ for k in kinds)
    raise ConfigError(f"{where} = {_short(value)} is a {type(value).__name__}; expected {expected}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _override(table: dict[str, Any], settings: list[str]) -> None:
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not equals or not all(keys):
            raise ConfigError(f"--set {setting!r} must be written as table.key=value.")
        try:
            parsed = tomllib.loads(f"x = {text}")
        except (ValueError, RecursionError):  # a number of thousands of digits is no TOMLDecodeError
            parsed = {}
        # More than one key is text with line breaks, not a value.
        value = parsed["x"] if set(parsed) == {"x"} else text
        inner = table
        for parent in keys[:-1]:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {setting!r}: {parent} is not a table.")
        # A bare number stays text where the file has text there: session=190923.
        inner[keys[-1]] = text if isinstance(inner.get(keys[-1]), str) and not isinstance(value, str) else value


def read_table(path: Path, overrides: list[str] | None, example: str) -> dict[str, Any]:
    """A TOML file with ``overrides`` put in; ``example`` is what the error for a missing file offers instead.

    Raises
    ------
    ConfigError
        No such file, not UTF-8, not TOML (the line is named), or nothing in it.
    """
    if not os.path.lexists(path):
        beside = [x.name for x in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ConfigError(f"no file {path}{hint} Next step: {example}, or write a config.")
    try:
        text = read_text(path, "config")
        table = tomllib.loads(text)
    except DataError as error:
        raise ConfigError(str(error)) from None
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from None
    except RecursionError:
        raise ConfigError(f"{path} is not TOML that can be read: it is nested too deeply.") from None
    if not text.strip():
        raise ConfigError(f"{path} is empty. Next step: {example} shows a config at work.")
    _override(table, overrides or [])
    return table


def absolute(folder: Path, name: str) -> str:
    """A file's name in a config: relative to the config's folder, with ``~`` and ``$VARIABLES`` put in; "" stays.

    >>> absolute(Path("/study"), "betas.nc"), absolute(Path("/study"), "")
    ('/study/betas.nc', '')
    """
    if not name:
        return ""
    full = os.path.expandvars(name)
    unknown = re.search(r"\$(\w+|\{\w+\})", full)
    if unknown and not (folder / full).exists():
        raise ConfigError(f"{name!r}: the environment variable {unknown[0]} is not set. Next step: export it.")
    try:
        return str(folder / Path(full).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"{name!r}: {error}. Next step: write the whole path.") from error
