"""Read a config: TOML, ``--set``, paths, and what must agree between its tables."""

from __future__ import annotations

import copy
import difflib
import os
import re
import tomllib
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import read_text
from neuroenc.study.config import (
    ALWAYS,
    COMPARED,
    FEATURES,
    OPTIONAL,
    CaptionsConfig,
    CompareConfig,
    DataConfig,
    FeaturesConfig,
    StudyConfig,
)
from neuroenc.study.config.table import PathMark, Table, parts

#: The table of its own that a command needs.
TABLES = {"run": "data", "caption": "captions", "compare": "compare", "icl": "incontext", "plan": "plan"}


def read_config(path: str | os.PathLike[str], overrides: list[str] | None = None, command: str = "run") -> StudyConfig:
    """Read the settings of a study from TOML.

    Parameters
    ----------
    path : path
        Relative file names inside it are relative to its folder; ``~`` and ``$VARIABLES`` are put in.
    overrides : list of str, optional
        ``"table.key=value"`` settings that replace the file's. ``enabled=false`` leaves out ``[captions]``,
        ``[compare]``, ``[compare.regions]``, ``[compare.layers]``, ``[incontext]`` or ``[plan]``.
    command : {"run", "caption", "compare", "icl", "plan", ""}
        What the config is for: it must have the tables that this command reads; "" asks for none of them.

    Returns
    -------
    StudyConfig
        Frozen; every path absolute, every feature space with its ``kind``.

    Raises
    ------
    ConfigError
        No such file, not TOML, an unknown key (the nearest is named), a value of another type or not legal, or tables
        that do not fit together.

    Examples
    --------
    >>> example_config("v4", ["data.options.session=190923"]).data.options
    {'session': '190923'}
    """
    path = Path(path)
    table = _read_table(path, f"neuroenc {command or 'run'} --example {list_examples(command or 'run')[-1]}")
    return parse_config(table, overrides, command, path.resolve().parent)


def parse_config(
    table: Mapping[str, Any],
    overrides: list[str] | None = None,
    command: str = "run",
    folder: str | os.PathLike[str] | None = None,
) -> StudyConfig:
    """Settings from a table that is read already; relative paths are relative to ``folder``, else to where you are.

    Examples
    --------
    >>> config = parse_config({"data": {"name": "nsd"}, "features": {"model": "dinov2-base"}})
    >>> config.features["features"].kind
    'image'
    """
    plain: dict[str, Any] = copy.deepcopy(dict(table))
    _override(plain, overrides or [])
    plain = _plain(plain)
    for keys in OPTIONAL:
        _leave_out(plain, keys)
    if "features" in plain:
        plain["features"] = _spaces(plain["features"])
    elif command == "run":
        plain["features"] = {"features": {}}
    base = Path(folder) if folder is not None else Path.cwd()
    config = _root(_resolved(StudyConfig(**plain), StudyConfig, base), base)
    check_config(config, command)
    return config


def _plain(value: Any, where: str = "") -> Any:
    """Tables and lists as dicts and lists with text for keys; a text that holds a null character is refused."""
    if isinstance(value, Mapping):
        return {
            _plain(str(k), where or "a key"): _plain(v, f"{where}.{k}" if where else str(k)) for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(inner, f"{where}[{n}]") for n, inner in enumerate(value)]
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{where} = {value!r} holds a null character.")
    return value


def _leave_out(table: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys[:-1]:
        table = table.get(key, {})
        if not isinstance(table, dict):
            return
    last = keys[-1]
    inner = table.get(last)
    if isinstance(inner, dict) and isinstance(inner.get("enabled"), bool) and not inner.pop("enabled"):
        del table[last]


def _spaces(given: Any) -> Any:
    """Tables ``[features.NAME]``; a single ``[features]`` table is the space "features"."""
    if not isinstance(given, dict):
        return given
    tables = [k for k, v in given.items() if isinstance(v, dict) and k != "preprocessing"]
    settings = [k for k in given if k not in tables]
    if tables and settings:
        step = f"Next step: features.{tables[0]}.{settings[0]}."
        raise ConfigError(
            f"[features] holds a setting of a single space ({settings[0]}) beside tables of spaces "
            f"({', '.join(tables[:5])}). {step}"
        )
    return given if tables else {"features": given}


def _read_table(path: Path, example: str) -> dict[str, Any]:
    if not os.path.lexists(path):
        beside = [x.name for x in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ConfigError(f"no file {path}{hint} Next step: {example}, or neuroenc init FOLDER, which writes a config.")
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
    return table


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


def _resolved(value: Any, annotation: Any, folder: Path) -> Any:
    """A value of a config with its paths absolute: those that their type marks."""
    if isinstance(value, Table):
        fields = type(value).model_fields.items()
        changes = {k: _resolved(getattr(value, k), f.rebuild_annotation(), folder) for k, f in fields}
        return value.model_copy(update=changes)
    inner = (typing.get_args(annotation) or (Any,))[-1]
    if isinstance(value, dict):
        return {k: _resolved(v, inner, folder) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolved(v, inner, folder) for v in value]
    marks = [m for kind in parts(annotation) for m in getattr(kind, "__metadata__", ()) if isinstance(m, PathMark)]
    if not value or not isinstance(value, str) or not marks or value in marks[0].names:
        return value
    # "hf-dir:PATH" and "ViT-B/32" are names of models, whose folders are known by what they hold.
    looks = re.search(r"^(/|\.|~|\$)" if marks[0].holds else r"[/~$]", value)
    if marks[0].named and not (looks or os.path.exists(folder / value / marks[0].holds)):
        return value
    return absolute(folder, value)


def _root(config: StudyConfig, folder: Path) -> StudyConfig:
    """``[data.options] root`` absolute; --set data.options.root=FOLDER is written where the command runs."""
    root = config.data.options.get("root")
    if not isinstance(root, str):
        return config
    there, here = absolute(folder, root), absolute(Path.cwd(), root)
    found = here if not os.path.isdir(there) and os.path.isdir(here) else there
    data = config.data.model_copy(update={"options": config.data.options | {"root": found}})
    return config.model_copy(update={"data": data})


def check_config(config: StudyConfig, command: str = "run") -> None:
    """Refuse tables that do not fit together, or lack what a command reads.

    Examples
    --------
    >>> check_config(StudyConfig(data=DataConfig(name="nsd")), "compare")
    Traceback (most recent call last):
        ...
    neuroenc._core.errors.ConfigError: neuroenc compare needs a table [compare]...
    """
    if command in TABLES and getattr(config, TABLES[command]) is None:
        table, example = TABLES[command], list_examples(command)[-1]
        raise ConfigError(
            f"neuroenc {command} needs a table [{table}]. Next step: neuroenc config show --example {example} "
            f"--for {command}."
        )
    alone = config.incontext or config.plan
    needs_data = command not in ("icl", "plan") and (command or not alone or config.captions or config.compare)
    if needs_data and not (config.data.name or config.data.responses):
        raise ConfigError('[data] needs either name (a data set, or "world") or responses (your file); found neither.')
    _check_world(config)
    compared = config.evaluation.space
    legal = [name for name, one in config.features.items() if one.kind not in COMPARED]
    if compared not in ("", "pixels", *legal):
        raise ConfigError(unknown_name("value of evaluation.space:", compared, ["pixels", *legal]))
    for name, space in config.features.items():
        _check_space(name, space, config)
    if config.compare:
        _check_compare(config.compare, config.features)
    if config.captions:
        _check_captions(config.captions, config)


def _check_world(config: StudyConfig) -> None:
    world, scheme, test_ids = config.data.name == "world", config.evaluation.scheme, config.evaluation.test_ids
    if scheme == "test" and not test_ids and not world and config.data != DataConfig():
        raise ConfigError('[evaluation] scheme = "test" needs test_ids.')
    if world and scheme == "test" and config.data.options.get("n_test") == 0:
        raise ConfigError('[evaluation] scheme = "test" needs data.options.n_test of at least 2; found 0.')


def _check_space(name: str, space: FeaturesConfig, config: StudyConfig) -> None:
    where = "features" if list(config.features) == ["features"] == [name] else f"features.{name}"
    if "/" in name or not name:
        raise ConfigError(f"[features.{name}]: a name must not be empty nor hold '/'.")
    for other in space.spaces:
        alone = ("join", "pixels", "trained")
        if other not in config.features or config.features[other].kind in alone:
            legal = [k for k, v in config.features.items() if v.kind not in alone]
            raise ConfigError(unknown_name(f"space in {where}.spaces:", other, legal))
    if space.kind == "dense" and not space.table and config.data.name != "world":
        raise ConfigError(f'[{where}] kind = "dense" needs table, a CSV of captions of grid cells.')


def _check_compare(compare: CompareConfig, features: Mapping[str, FeaturesConfig]) -> None:
    if not features:
        raise ConfigError("a comparison needs tables [features.NAME].")
    named: list[tuple[str, str]] = []
    if compare.regions:
        named += [(f"compare.regions.{k}", getattr(compare.regions, k)) for k in ("vision", "dense", "single")]
    if compare.layers:
        named += [("compare.layers.order", name) for name in compare.layers.order]
    if not isinstance(compare.unique, bool):
        named += [("compare.unique", name) for name in compare.unique]
    for where, name in named:
        if name.split("/")[0] not in features:
            raise ConfigError(unknown_name(f"value of {where}:", name, features))


def _check_captions(captions: CaptionsConfig, config: StudyConfig) -> None:
    if captions.gate.kind == "q" and not config.evaluation.permutations:
        raise ConfigError('[captions.gate] kind = "q" needs [evaluation] permutations above 0.')
    if captions.bank.source == "unseen" and config.data.name != "world":
        raise ConfigError(
            '[captions.bank] source = "unseen" is for the simulated world. Next step: "stimuli" or a data set.'
        )
    if captions.bank.source == "unseen" and config.data.options.get("n_bank") == 0:
        raise ConfigError('[captions.bank] source = "unseen" needs data.options.n_bank above 0.')


def dump_config(config: StudyConfig) -> str:
    """Effective settings as TOML, defaults too; reading it gives the same settings.

    Examples
    --------
    >>> print(dump_config(StudyConfig(data=DataConfig(name="nsd"))).split("[data]")[1].split("responses")[0], end="")
    <BLANKLINE>
    name = "nsd"
    """
    import tomlkit

    table = config.model_dump(exclude_none=True)
    for space in table["features"].values():
        for key in set(space) - {*ALWAYS, *FEATURES[space["kind"]]}:
            del space[key]
    return tomlkit.dumps(_without_empty(table))


def _without_empty(table: dict[str, Any], keep: bool = False) -> dict[str, Any]:
    # A readout or core without settings of its own is an empty table that means something.
    kept = {k: _without_empty(v, k in ("readouts", "cores")) if isinstance(v, dict) else v for k, v in table.items()}
    return kept if keep else {k: v for k, v in kept.items() if v != {}}


def _of_command(command: str) -> dict[str, Any]:
    """Shipped configs of a command by name: ``COMMAND-NAME.toml``, else ``NAME.toml`` where it has what is read."""
    folder = resources.files("neuroenc.study") / "examples"
    files: dict[str, Any] = {f.name.removesuffix(".toml"): f for f in folder.iterdir() if f.name.endswith(".toml")}
    special = {stem.removeprefix(f"{command}-"): f for stem, f in files.items() if stem.startswith(f"{command}-")}
    general = {stem: f for stem, f in files.items() if stem.partition("-")[0] not in TABLES}
    if command in ("compare", "icl", "plan"):
        general = {s: f for s, f in general.items() if TABLES[command] in tomllib.loads(f.read_text(encoding="utf-8"))}
    return dict(sorted((general | special).items()))


def list_examples(command: str = "run") -> list[str]:
    """Names of the shipped configs that a command can read.

    >>> list_examples()
    ['haxby', 'haxby-slice', 'movie', 'nsd', 'v4']
    >>> list_examples("compare")
    ['v4', 'world']
    """
    return list(_of_command(command))


def example_config(name: str, overrides: list[str] | None = None, command: str = "run") -> StudyConfig:
    """Settings of a shipped example; relative paths in ``overrides`` are relative to where you are.

    Raises
    ------
    ConfigError
        An unknown example; the nearest is named.
    """
    files = _of_command(command)
    if name not in files:
        raise ConfigError(unknown_name("example", name, files))
    return parse_config(tomllib.loads(files[name].read_text(encoding="utf-8")), overrides, command)


def examples_help(command: str = "run") -> str:
    """What ``--help`` says of the shipped configs.

    >>> examples_help("compare")
    'A shipped config: v4, world.'
    """
    return f"A shipped config: {', '.join(list_examples(command))}."


def example_or_file(
    config: Path | None, example: str | None, overrides: list[str] | None, command: str = "run"
) -> tuple[StudyConfig, str]:
    """Settings that a command was given, and what to call them: a file's stem, or the name of the shipped example."""
    if config is not None and example is None:
        return read_config(config, overrides, command), config.stem
    if example is not None and config is None:
        return example_config(example, overrides, command), example
    found = "both" if config is not None else "neither"
    legal = ", ".join(list_examples(command))
    raise ConfigError(f"give a CONFIG.toml or --example NAME (one of {legal}); found {found}.")
