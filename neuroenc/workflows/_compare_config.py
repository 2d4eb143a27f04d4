"""Settings of a comparison: one frozen dataclass a table of the TOML file, every key checked."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.workflows._config import DataConfig, FeaturesConfig, absolute_data, check_data
from neuroenc.workflows._examples import example_names, read_example
from neuroenc.workflows._settings import SEED, Legal, absolute, build, check_world, read_table

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

# Numbers of the simulated world, and what they are where nothing is said.
WORLD: dict[str, int | None] = {"n_stimuli": 700, "n_repeats": 2, "n_voxels": 300, "seed": 0}
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

    kind: Annotated[str, Legal(choices=SPACE_KINDS)] = ""
    size: Annotated[int, Legal(least=1, most=4096)] = 64
    grid: Annotated[int, Legal(least=1, most=256)] = 8
    table: str = ""


@dataclass(frozen=True)
class GridConfig:
    """What every cell gets: outer folds, validation split, settings tried, resamples; ``cells`` keeps only some."""

    cv: Annotated[int | str, Legal(least=2)] = 5
    validation: Annotated[float, Legal(above=0, below=1)] = 0.2
    n_candidates: Annotated[int, Legal(least=1)] = 3
    n_bootstraps: Annotated[int, Legal(least=1)] = 1000
    q: Annotated[float, Legal(above=0, below=1)] = 0.05
    cells: list[str] = field(default_factory=list)
    threads: Annotated[int, Legal(least=1)] = 1


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
    seed: Annotated[int, SEED] = 0
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
    config: CompareConfig = build(CompareConfig, table)
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
    space: SpaceConfig = build(SpaceConfig, given, where)
    if not space.standardise:
        raise ConfigError(f"[{where}] standardise = false is not read: a comparison standardises every feature space.")
    if space.kind == "file" and not space.file:
        raise ConfigError(f'[{where}] kind = "file" needs file = "features.nc".')
    if space.kind in ("image", "captions", "dense") and not space.model:
        raise ConfigError(f'[{where}] model = "" names no model. Next step: model = "efficientnet-lite0".')
    full: dict[str, Any] = {k: absolute(folder, getattr(space, k)) for k in ("file", "samples", "table")}
    return dataclasses.replace(space, **full)


def _check(config: CompareConfig) -> None:
    data = config.data
    found = [k for k, v in (("name", data.name), ("responses", data.responses), ("world", data.world)) if v]
    if len(found) != 1:
        raise ConfigError(
            f"[data] needs one of name (a data set), responses (your file) or world; found {found or 'none'}."
        )
    if data.world:
        given = [k for k in ("options", "samples", "mask", "rois", "images", "captions") if getattr(data, k)]
        if given:
            raise ConfigError(f"[data] {', '.join(given)} are not read: the simulated world has its own.")
        check_world("data.world", data.world, WORLD)
    else:
        check_data(data)
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
