"""Configs that come with the package, by folder and name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TypeVar

from neuroenc._core.errors import ConfigError, unknown_name

__all__ = ["example_names", "example_or_file", "examples_help", "read_example"]

T = TypeVar("T")


def example_names(folder: str) -> list[str]:
    """Names of the TOML files in a folder of this room.

    >>> example_names("examples_compare")
    ['v4', 'world']
    """
    found = resources.files("neuroenc.workflows") / folder
    return sorted(f.name.removesuffix(".toml") for f in found.iterdir() if f.name.endswith(".toml"))


def read_example(folder: str, name: str, read: Callable[[Path, list[str] | None], T], overrides: list[str] | None) -> T:
    """``read(path, overrides)`` of a shipped file; an unknown name is told the nearest."""
    if name not in example_names(folder):
        raise ConfigError(unknown_name("example", name, example_names(folder)))
    with resources.as_file(resources.files("neuroenc.workflows") / folder / f"{name}.toml") as path:
        return read(path, overrides)


def examples_help(folder: str) -> str:
    """What ``--help`` says of the shipped configs.

    >>> examples_help("examples_compare")
    'A shipped config: v4, world.'
    """
    return f"A shipped config: {', '.join(example_names(folder))}."


def example_or_file(
    config: Path | None,
    example: str | None,
    folder: str,
    read: Callable[[Path, list[str] | None], T],
    overrides: list[str] | None,
) -> tuple[T, str]:
    """Settings that a command was given, and what to call them: a file's stem, or the name of the shipped example.

    Raises
    ------
    ConfigError
        Both were given, or neither.
    """
    if config is not None and example is None:
        return read(config, overrides), config.stem
    if example is not None and config is None:
        return read_example(folder, example, read, overrides), example
    found = "both" if config is not None else "neither"
    raise ConfigError(
        f"give a CONFIG.toml or --example NAME (one of {', '.join(example_names(folder))}); found {found}."
    )
