"""Settings of a comparison: one frozen dataclass a table of the TOML file, every key checked."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuroenc._util.errors import ConfigError, unknown_name
from neuroenc.workflows._config import DataConfig, FeaturesConfig, _build, absolute_data, read_table
from neuroenc.workflows._examples import example_names, read_example

__all__ = [
    "CompareConfig",
    "CompareDataConfig",
    "GridConfig",
    "LayersConfig",
    "RegionsConfig",
    "SpaceConfig",
    "example_compare_config",
    "list_compare_examples",
    "read_compare_config",
]

SPACE_KINDS = ("image", "pixels", "captions", "dense", "file")


@dataclass(frozen=True)
class CompareDataConfig(DataConfig):
    """As ``[data]`` of a run, with several subjects side by side or a simulated world.

    ``join`` has one option of the data set and its values, ``{ session = ["190923", ...] }``: each is loaded as a
    subject with voxels of its own, NaN where it did not see a stimulus; equal pictures are one stimulus. ``world``
    are numbers for the simulated world instead of a data set: ``n_stimuli``, ``n_repeats``, ``n_voxels``, ``seed``.
    """

    join: dict[str, Any] = field(default_factory=dict)
    world: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SpaceConfig(FeaturesConfig):
    """One feature space, ``[features.NAME]``.

    ``kind``: image (a layer of ``model``), pixels (the pictures themselves, ``size`` pixels a side, for cores),
    captions (mean over a stimulus' captions), dense (captions of ``grid`` x ``grid`` cells, a map; from ``table``, a
    CSV with stimulus, row, column, caption, or the simulated world's own) or file.
    """

    size: int = 64
    grid: int = 8
    table: str = ""


@dataclass(frozen=True)
class GridConfig:
    """What every cell gets: outer folds, validation split, settings tried, resamples; ``cells`` keeps only some."""

    cv: int | str = 5
    validation: float = 0.2
    n_candidates: int = 3
    n_bootstraps: int = 1000
    q: float = 0.05
    cells: list[str] = field(default_factory=list)
    threads: int = 1


@dataclass(frozen=True)
class RegionsConfig:
    """Three feature spaces for the three-region analysis; ``readouts`` empty means all that read the three."""

    vision: str
    dense: str
    single: str
    readouts: list[str] = field(default_factory=list)
    enabled: bool = True


@dataclass(frozen=True)
class LayersConfig:
    """Feature spaces from early to late, and the readout that compares them."""

    order: list[str]
    readout: str = "linear"
    enabled: bool = True


@dataclass(frozen=True)
class CompareConfig:
    """A whole comparison.

    ``features``, ``readouts`` and ``cores`` are tables of tables; the latter two as in
    `neuroenc.encoders.comparison.compare`. ``training`` are arguments of `ReadoutEncoder` for all cells that are
    trained by gradients.
    """

    title: str = "Readouts compared"
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    data: CompareDataConfig = field(default_factory=CompareDataConfig)
    features: dict[str, Any] = field(default_factory=dict)
    readouts: dict[str, Any] = field(default_factory=dict)
    cores: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    grid: GridConfig = field(default_factory=GridConfig)
    regions: RegionsConfig | None = None
    layers: LayersConfig | None = None


def read_compare_config(path: str | os.PathLike[str], overrides: list[str] | None = None) -> CompareConfig:
    """Read the settings of a comparison from TOML.

    Parameters
    ----------
    path : path
        Relative file names inside it are relative to its folder.
    overrides : list of str, optional
        ``"table.key=value"`` settings that replace the file's.

    Raises
    ------
    ConfigError
        Not TOML, an unknown key (the nearest is named), a value of another type or not legal.

    Examples
    --------
    >>> from neuroenc.workflows import example_compare_config
    >>> example_compare_config("v4", ["grid.n_candidates=1"]).grid.n_candidates
    1
    """
    path = Path(path)
    table = read_table(path, overrides, "neuroenc compare --example world")
    config: CompareConfig = _build(CompareConfig, table, "")
    spaces = {name: _space(name, given, path.resolve().parent) for name, given in config.features.items()}
    config = dataclasses.replace(config, features=spaces)
    if config.regions and not config.regions.enabled:
        config = dataclasses.replace(config, regions=None)
    if config.layers and not config.layers.enabled:
        config = dataclasses.replace(config, layers=None)
    _check(config)
    return dataclasses.replace(config, data=absolute_data(config.data, path.resolve().parent))


def _space(name: str, given: Any, folder: Path) -> SpaceConfig:
    where = f"features.{name}"
    if not isinstance(given, dict):
        raise ConfigError(f"[{where}] is {given!r}; expected a table with kind, model and layer.")
    space: SpaceConfig = _build(SpaceConfig, given, where)
    if space.kind not in SPACE_KINDS:
        raise ConfigError(unknown_name(f"value of {where}.kind:", space.kind, SPACE_KINDS))
    if space.kind == "file" and not space.file:
        raise ConfigError(f'[{where}] kind = "file" needs file = "features.nc".')
    full: dict[str, Any] = {k: str(folder / getattr(space, k)) if getattr(space, k) else "" for k in ("file", "table")}
    return dataclasses.replace(space, **full)


def _check(config: CompareConfig) -> None:
    data = config.data
    found = [k for k, v in (("name", data.name), ("responses", data.responses), ("world", data.world)) if v]
    if len(found) != 1:
        raise ConfigError(
            f"[data] needs one of name (a data set), responses (your file) or world; found {found or 'none'}."
        )
    if data.join and (not data.name or len(data.join) != 1):
        raise ConfigError(f"[data] join = {data.join!r} needs name, and one option of that data set with its values.")
    if not config.features or not config.readouts:
        raise ConfigError("a comparison needs tables [features.NAME] and [readouts.NAME].")
    named: list[tuple[str, str]] = []
    if config.regions:
        named += [(f"regions.{k}", getattr(config.regions, k)) for k in ("vision", "dense", "single")]
    if config.layers:
        named += [("layers.order", name) for name in config.layers.order]
        if config.layers.readout not in config.readouts:
            raise ConfigError(unknown_name("layers.readout:", config.layers.readout, config.readouts))
    for where, name in named:
        if name.split("/")[0] not in config.features:
            raise ConfigError(unknown_name(f"{where}:", name, config.features))
    for name in config.regions.readouts if config.regions else ():
        if name not in config.readouts:
            raise ConfigError(unknown_name("regions.readouts:", name, config.readouts))


def list_compare_examples() -> list[str]:
    """Names of the shipped comparisons.

    >>> list_compare_examples()
    ['v4', 'world']
    """
    return example_names("examples_compare")


def example_compare_config(name: str, overrides: list[str] | None = None) -> CompareConfig:
    """Settings of a shipped comparison."""
    return read_example("examples_compare", name, read_compare_config, overrides)
