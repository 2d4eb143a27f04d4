"""Old spellings of settings: those of the four configs before there was one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, MutableMapping
from typing import Any

from neuroenc._core.errors import ConfigError

_CAPTIONS = ("space", "gate", "bank", "projection", "decoder", "grounding", "stability", "analysis")
_COMPARE = ("readouts", "cores", "training", "regions", "layers")
_INCONTEXT = ("task", "model", "pretrain", "extend", "finetune", "evaluate", "predict")
# What reports were called where nothing was said, by the tables of the config.
_TITLES = {"Voxel captions": ("space",), "Readouts compared": ("readouts", "grid"), "In-context encoders": _INCONTEXT}
# Keys of a flat [captions], and where they stand now.
_FLAT = {
    "model": ("space", "model"),
    "bank": ("bank", "source"),
    "caption_bank": ("decoder", "caption_bank"),
    "captions_per_stimulus": ("decoder", "captions_per_stimulus"),
    "top": ("decoder", "top"),
    "centre": ("decoder", "centre"),
    "gate": ("gate", "kind"),
    "rois": ("gate", "rois"),
    "temperature": ("projection", "temperature"),
    "evidence": ("grounding", "images"),
}
# What a flat [captions] meant where it said nothing, and what was not made then.
_FLAT_DEFAULTS = {"caption_bank": "coco-captions-val2017", "captions_per_stimulus": 1, "top": 5, "evidence": 6}
_UNCHECKED = {"stability": {"folds": 0, "bootstraps": 0, "halves": 0}}

Mapping_ = MutableMapping[str, Any]


def convert(table: Mapping_, new: Callable[[], Mapping_] = dict) -> list[str]:
    """Rewrite a config's table in place from an old spelling to the new one.

    Parameters
    ----------
    table : mapping
        As TOML was read.
    new : callable
        Makes the tables that are missing.

    Returns
    -------
    list of str
        What was moved, in the words of the file; empty where nothing was old.

    Examples
    --------
    >>> table = {"space": {"model": "world"}, "held_out": {"share": 0.25}}
    >>> convert(table)
    ['[held_out] is now [evaluation] with n_splits = 1', '[space] is now [captions.space]']
    >>> table
    {'evaluation': {'share': 0.25, 'n_splits': 1}, 'captions': {'space': {'model': 'world'}}, 'title': 'Voxel captions'}
    """
    title = next((text for text, keys in _TITLES.items() if any(key in table for key in keys)), None)
    moves: list[str] = []
    if isinstance(table.get("captions"), MutableMapping):
        moves += _flat_captions(table["captions"], table, new)
    if "held_out" in table:
        moves += _held_out(table, new)
    if "grid" in table:
        moves += _grid(table, new)
    for parent, names in (("captions", _CAPTIONS), ("compare", _COMPARE), ("incontext", _INCONTEXT)):
        for name in names:
            if name in table:
                _move(table, name, _inner(table, parent, new), name)
                moves.append(f"[{name}] is now [{parent}.{name}]")
    if isinstance(table.get("data"), MutableMapping):
        moves += _data(table["data"])
    if title and moves and "title" not in table:
        table["title"] = title
    return moves


def _inner(table: Mapping_, name: str, new: Callable[[], Mapping_]) -> Mapping_:
    if name not in table:
        table[name] = new()
    if not isinstance(table[name], MutableMapping):
        raise ConfigError(f"{name} = {table[name]!r} is a {type(table[name]).__name__}; expected a table.")
    return table[name]


def _move(table: Mapping_, name: str, to: Mapping_, as_name: str) -> None:
    """A value or a table to its new place; a table that is there already takes what was given beside it."""
    value = table.pop(name)
    there = to.get(as_name)
    if isinstance(there, MutableMapping) and isinstance(value, MutableMapping):
        for key in list(value):
            there[key] = value[key]
    else:
        to[as_name] = value


def _held_out(table: Mapping_, new: Callable[[], Mapping_]) -> list[str]:
    _inner(table, "held_out", new)
    _move(table, "held_out", table, "evaluation")
    evaluation = table["evaluation"]
    # What another scheme would have read was passed over without a word.
    scheme = evaluation.get("scheme", "stimulus")
    for name, schemes in (("share", ("stimulus",)), ("n_last", ("run", "session"))):
        if scheme not in schemes:
            evaluation.pop(name, None)
    if scheme == "test":
        return ["[held_out] is now [evaluation]"]
    evaluation["n_splits"] = 1
    if scheme in ("run", "session"):
        # Captions had shuffled rows within runs without being asked.
        evaluation.setdefault("permutation_mode", "within")
    return ["[held_out] is now [evaluation] with n_splits = 1"]


def _grid(table: Mapping_, new: Callable[[], Mapping_]) -> list[str]:
    grid = _inner(table, "grid", new)
    moves = ["[grid] is now [compare]"]
    if "threads" in grid:
        _move(grid, "threads", _inner(table, "compute", new), "threads")
        moves.append("grid.threads is now compute.threads")
    _move(table, "grid", table, "compare")
    return moves


def _data(data: Mapping_) -> list[str]:
    moves = []
    if "world" in data and data.get("name", "") == "":
        if "options" in data:
            raise ConfigError("[data] options are not read: the simulated world of data.world has its own.")
        world = data.pop("world")
        given = {"n_stimuli": 700, "n_repeats": 2, "n_voxels": 300, "seed": 0}
        if not isinstance(world, MutableMapping):
            raise ConfigError(f'data.world = {world!r}: expected a table; it is now name = "world" with options.')
        given |= dict(world)
        numbers = {"n_train": given.pop("n_stimuli"), "n_test": 0}
        seed = given.pop("seed")
        numbers |= given | {"world_seed": 80_000 + seed if isinstance(seed, int) and seed >= 0 else seed}
        data["name"] = "world"
        data["options"] = numbers
        shown = ", ".join(f"{k} = {v}" for k, v in numbers.items())
        moves.append(f'data.world is now data.name = "world" with data.options = {{ {shown} }}')
    join = data.get("join")
    if isinstance(join, MutableMapping):
        for key in list(join):
            if isinstance(join[key], (str, int)) and not isinstance(join[key], bool):
                join[key] = [join[key]]
                moves.append(f"data.join.{key} is now a list")
    return moves


def _flat_captions(captions: Mapping_, table: Mapping_, new: Callable[[], Mapping_]) -> list[str]:
    flat = [key for key in _FLAT if key in captions and not isinstance(captions[key], MutableMapping)]
    if not flat:
        return []
    moves = []
    whole = "model" in flat and "space" not in captions
    given = {key: captions.pop(key) for key in flat}
    for key, value in ({**given, **_FLAT_DEFAULTS, **given} if whole else given).items():
        inner, name = _FLAT[key]
        if key == "evidence" and value == 0:
            name, value = "enabled", False
        _inner(captions, inner, new)[name] = value
        if key in given:
            moves.append(f"captions.{key} is now captions.{inner}.{name}")
    if whole:
        if given.get("bank") == "captions":
            captions["space"]["stimuli"] = "captions"
        captions["decoder"]["kind"] = "retrieval"
        captions["grounding"]["enabled"] = False
        for name, settings in _UNCHECKED.items():
            _inner(captions, name, new).update(settings)
        if "evaluation" in table and "q" in _inner(table, "evaluation", new):
            _inner(captions, "gate", new)["q"] = table["evaluation"]["q"]
        moves.append(
            'these captions were retrieved and not checked: captions.decoder.kind = "retrieval", '
            "captions.grounding.enabled = false, captions.stability = { folds = 0, bootstraps = 0, halves = 0 }"
        )
    return moves


def convert_text(text: str) -> str:
    """A config in the new spelling, with the comments of the old.

    Examples
    --------
    >>> print(convert_text('[grid]\\ncv = 4 # as always\\n[readouts.linear]\\n'), end="")
    title = "Readouts compared"
    <BLANKLINE>
    [compare]
    cv = 4 # as always
    <BLANKLINE>
    [compare.readouts.linear]
    """
    import tomlkit

    try:
        plain = tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"this is not TOML: {error}.") from None
    if not convert(plain):
        return text
    commented = tomlkit.parse(text)
    convert(commented, lambda: tomlkit.table(is_super_table=True))
    # One empty line before each table, as people write it, and no heading of a table that only holds tables.
    out = re.sub(r"(?m)^((?!#)[^\n]+)\n(?=\[)", r"\1\n\n", tomlkit.dumps(commented))
    out = re.sub(r"\n{3,}", "\n\n", out).lstrip("\n")
    out = re.sub(r"(?m)^\[(\w+)\]\n\n(?=\[\1\.)", "", out)
    try:
        if tomllib.loads(out) == plain:
            return out
    except ValueError:
        pass
    # Settings come before comments: where a comment cannot keep its place, none is kept.
    return tomlkit.dumps(plain)
