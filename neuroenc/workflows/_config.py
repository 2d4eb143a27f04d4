"""Settings of a run: one frozen dataclass a table of the TOML file, every key checked."""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from neuroenc._util.errors import ConfigError, unknown_name
from neuroenc.workflows._examples import example_names, read_example

__all__ = [
    "CaptionsConfig",
    "DataConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FeaturesConfig",
    "RunConfig",
    "example_config",
    "list_examples",
    "read_config",
]


@dataclass(frozen=True)
class DataConfig:
    """Where responses and stimuli come from: a named data set, or files of your own.

    ``name`` with ``options`` (see `neuroenc.data.load_dataset`), or ``responses``: a .nc or .zarr written by
    `neuroenc.data.save`, a .npy (sample, voxel), or a 4-D NIfTI with ``mask`` (and ``rois``, name to image;
    ``"labels.nii.gz:1"`` is the region of one label).
    The last two need ``samples``, a CSV with a column stimulus and optionally subject, session, run, repeat.
    ``images`` is a folder whose file names without ending are stimulus ids, ``captions`` a CSV with the
    columns stimulus and caption.
    """

    name: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    responses: str = ""
    samples: str = ""
    mask: str = ""
    rois: dict[str, str] = field(default_factory=dict)
    images: str = ""
    captions: str = ""
    zscore: str = "auto"
    average: bool = True


@dataclass(frozen=True)
class FeaturesConfig:
    """Feature space: ``kind`` image, captions or file; ``model``, ``layer``, ``pooling`` and ``preprocessing`` as in
    `neuroenc.embedding.ImageEmbedder`."""

    kind: str = "image"
    model: str = "efficientnet-lite0"
    pretrained: str = ""
    layer: str = ""
    pooling: str | int = ""
    normalise: bool = False
    standardise: bool = True
    preprocessing: dict[str, Any] = field(default_factory=dict)
    file: str = ""


@dataclass(frozen=True)
class EncoderConfig:
    """Ridge regression; ``alphas`` empty means a grid that follows the features' scale."""

    kind: str = "ridge"
    alphas: list[float] = field(default_factory=list)
    cv: int | str = 5
    scoring: str = "r2"
    max_memory: str = ""
    device: str = "cpu"


@dataclass(frozen=True)
class EvaluationConfig:
    """Outer folds: ``scheme`` stimulus, run, session or test (the ids in ``test_ids``); permutation test.

    ``test_ids`` may hold one name instead: a test set of the data, such as "shared1000" of NSD.

    ``permutation_mode`` "samples" shuffles all rows, "within" those of a run (or session); "whole" and "shift" exchange
    or rotate blocks and need ``scheme = "test"``. ``permutation_null`` of the other schemes: "refit" predicts every
    voxel's permuted responses anew, "shared" one set of normal scores for all voxels, at a cost that does not grow with
    them; "auto" shares from 1000 rows on, except for voxels with heavy tails.
    """

    scheme: str = "stimulus"
    n_splits: int = 5
    test_ids: list[str] = field(default_factory=list)
    permutations: int = 1000
    permutation_mode: str = "samples"
    permutation_null: str = "auto"
    q: float = 0.05


@dataclass(frozen=True)
class CaptionsConfig:
    """Captions by retrieval; ``model`` is a joint image-text space, or a text space with ``bank = "captions"``.

    ``enabled = false`` leaves captions out. ``bank``: "stimuli" (the run's own), "captions" (the caption bank
    itself), or a data set with images. ``caption_bank``: "stimuli" (their own captions) or a data set with
    captions. ``gate``: "q" captions voxels predicted above chance, "roi" all voxels of ``rois``, "none" all voxels.
    """

    model: str
    enabled: bool = True
    bank: str = "stimuli"
    caption_bank: str = "coco-captions-val2017"
    captions_per_stimulus: int = 1
    gate: str = "q"
    rois: list[str] = field(default_factory=list)
    top: int = 5
    evidence: int = 6
    temperature: float = 1 / 150
    centre: bool = True


@dataclass(frozen=True)
class RunConfig:
    """A whole run."""

    title: str = "Voxelwise encoding"
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    captions: CaptionsConfig | None = None


_CHOICES = {
    "data.zscore": ("auto", "none", "session", "run"),
    "features.kind": ("image", "captions", "file"),
    "encoder.kind": ("ridge",),
    "encoder.scoring": ("r2", "neg_mse", "r"),
    "evaluation.scheme": ("stimulus", "run", "session", "test"),
    "evaluation.permutation_mode": ("samples", "within", "whole", "shift"),
    "evaluation.permutation_null": ("auto", "refit", "shared"),
    "captions.gate": ("q", "roi", "none"),
}


def _kinds(hint: Any) -> tuple[type, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(k for part in typing.get_args(hint) for k in _kinds(part))
    return (typing.get_origin(hint) or hint,)


def _build(cls: type, table: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{where}.{key}" if where else key
        if key not in hints:
            raise ConfigError(unknown_name(f"setting {('in [' + where + ']') if where else 'at the top'}:", key, hints))
        kinds = _kinds(hints[key])
        inner = next((k for k in kinds if dataclasses.is_dataclass(k)), None)
        if inner is not None and isinstance(value, Mapping):
            values[key] = _build(inner, value, path)
            continue
        if float in kinds and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        wrong_bool = isinstance(value, bool) and bool not in kinds
        if not isinstance(value, kinds) or wrong_bool:
            expected = " or ".join(k.__name__ for k in kinds if k is not types.NoneType)
            raise ConfigError(f"{path} = {value!r} is a {type(value).__name__}; expected {expected}.")
        legal = _CHOICES.get(path)
        if legal and value not in legal:
            raise ConfigError(unknown_name(f"value of {path}:", value, legal))
        values[key] = value
    missing = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in missing if name not in values]
    if missing:
        raise ConfigError(f"[{where}] lacks {', '.join(missing)}.")
    return cls(**values)


def _override(table: dict[str, Any], settings: list[str]) -> None:
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting!r} must be written as table.key=value.")
        try:
            value = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            value = text
        *parents, last = path.strip().split(".")
        inner = table
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {setting!r}: {parent} is not a table.")
        # A bare number stays text where the file has text there: session=190923.
        inner[last] = text if isinstance(inner.get(last), str) and not isinstance(value, str) else value


def read_table(path: Path, overrides: list[str] | None, example: str) -> dict[str, Any]:
    """A TOML file with ``overrides`` put in; ``example`` is what the error for a missing file offers instead."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no file {path}. Next step: {example}, or write a config.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from None
    _override(table, overrides or [])
    return table


def read_config(path: str | os.PathLike[str], overrides: list[str] | None = None) -> RunConfig:
    """Read a run's settings from TOML.

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
    >>> from neuroenc.workflows import example_config
    >>> example_config("v4", ["data.options.session=190923"]).data.options
    {'session': '190923'}
    """
    path = Path(path)
    table = read_table(path, overrides, "neuroenc run --example v4")
    config: RunConfig = _build(RunConfig, table, "")
    _check(config)
    if config.captions and not config.captions.enabled:
        config = dataclasses.replace(config, captions=None)
    return _absolute(config, path.resolve().parent)


def _check(config: RunConfig) -> None:
    data, features = config.data, config.features
    if bool(data.name) == bool(data.responses):
        found = "both" if data.name else "neither"
        raise ConfigError(f"[data] needs either name (a data set) or responses (your file); found {found}.")
    if features.kind == "file" and not features.file:
        raise ConfigError('[features] kind = "file" needs file = "features.nc".')
    if config.evaluation.scheme == "test" and not config.evaluation.test_ids:
        raise ConfigError('[evaluation] scheme = "test" needs test_ids.')
    if config.evaluation.scheme != "test" and config.evaluation.permutation_mode in ("whole", "shift"):
        raise ConfigError(
            f'[evaluation] permutation_mode = "{config.evaluation.permutation_mode}" needs scheme = "test"; with '
            'cross-validation use "samples" or "within".'
        )
    if config.captions and config.captions.gate == "roi" and not config.captions.rois:
        raise ConfigError('[captions] gate = "roi" needs rois = ["..."].')


D = TypeVar("D", bound=DataConfig)


def absolute_data(data: D, folder: Path) -> D:
    """``[data]`` whose file names are relative to ``folder`` no more."""

    def full(name: str) -> str:
        return str(folder / name) if name else ""

    paths: dict[str, Any] = {k: full(getattr(data, k)) for k in ("responses", "samples", "mask", "images", "captions")}
    return dataclasses.replace(data, **paths, rois={k: full(_region(k, v)) for k, v in data.rois.items()})


def _region(name: str, value: Any) -> str:
    """``{ file = "floc.nii.gz", label = 1 }`` as ``"floc.nii.gz:1"``."""
    if isinstance(value, Mapping) and set(value) == {"file", "label"}:
        labels = value["label"] if isinstance(value["label"], list) else [value["label"]]
        value = f"{value['file']}:{','.join(map(str, labels))}"
    if not isinstance(value, str):
        raise ConfigError(
            f"data.rois.{name} = {value!r} is not legal; write 'mask.nii.gz', 'labels.nii.gz:1' (the voxels of label 1)"
            " or { file = 'labels.nii.gz', label = 1 }."
        )
    return value


def _absolute(config: RunConfig, folder: Path) -> RunConfig:
    features = config.features
    if features.file:
        features = dataclasses.replace(features, file=str(folder / features.file))
    return dataclasses.replace(config, data=absolute_data(config.data, folder), features=features)


def list_examples() -> list[str]:
    """Names of the shipped configs.

    >>> list_examples()
    ['haxby', 'haxby-slice', 'nsd', 'v4']
    """
    return example_names("examples")


def example_config(name: str, overrides: list[str] | None = None) -> RunConfig:
    """Settings of a shipped example."""
    return read_example("examples", name, read_config, overrides)
