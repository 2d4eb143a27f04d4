"""Settings of in-context encoders: one frozen dataclass a table of the TOML file, every key checked."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.encoders.incontext import PRESETS
from neuroenc.encoders.incontext._training import STAGES, Stage
from neuroenc.workflows._examples import example_names, read_example
from neuroenc.workflows._settings import build as _build, read_table

__all__ = [
    "EvaluateConfig",
    "FilesConfig",
    "IclConfig",
    "ModelConfig",
    "PredictConfig",
    "StageConfig",
    "TaskConfig",
    "example_icl_config",
    "list_icl_examples",
    "read_icl_config",
]

TASKS = ("world", "v4", "arrays")
#: Name in [evaluate] methods, and what tables and figures call it.
METHODS = {
    "in-context": "in-context",
    "ridge": "ridge (cross-validated)",
    "ridge-shared": "ridge (one penalty for all voxels)",
    "paper-ridge": "ridge (released protocol)",
    "empirical-bayes": "ridge (empirical Bayes)",
    "nearest": "nearest stimuli",
    "mean": "mean response",
    "anatomical": "anatomical transfer",
    "full": "ridge, whole pool",
}
#: What in-context models are compared with at every size.
BASELINES = tuple(label for name, label in METHODS.items() if name not in ("in-context", "full"))


@dataclass(frozen=True)
class FilesConfig:
    """One subject of ``kind = "arrays"``, ``[[task.train]]`` or ``[[task.test]]``.

    ``features`` (stimulus, feature) and ``responses`` (presentation or stimulus, voxel) are files that
    `neuroenc.data.save` wrote (.nc or .zarr), put together by stimulus id. ``query_features`` and ``query_responses``
    are a test subject's queries; without them, ``n_query`` stimuli drawn from its own.
    """

    features: str
    responses: str
    name: str = ""
    query_features: str = ""
    query_responses: str = ""


@dataclass(frozen=True)
class TaskConfig:
    """Who is learned from and who is new.

    ``kind``: "world" (simulated subjects of the worlds ``seeds``; new ones of ``test_seeds``), "v4" (macaque V4, once
    for each animal of ``held_out``) or "arrays" (files, ``train`` and ``test``; ``zscore`` "auto" scales within session
    where nothing was scaled before). ``options`` are arguments of `_icl_tasks.world_tasks` or ``v4_tasks``.
    """

    kind: str = "world"
    seeds: list[int] = field(default_factory=lambda: [100])
    test_seeds: list[int] = field(default_factory=lambda: [0])
    held_out: list[str] = field(default_factory=lambda: ["PE", "WE"])
    options: dict[str, Any] = field(default_factory=dict)
    train: list[Any] = field(default_factory=list)
    test: list[Any] = field(default_factory=list)
    zscore: str = "auto"


@dataclass(frozen=True)
class ModelConfig:
    """The model: a preset and what differs from it; ``clusters`` of training voxels in the anchor's mixture."""

    preset: str = "small"
    form: str = "anchored"
    dim: int | None = None
    depth: int | None = None
    heads: int | None = None
    hidden: int | None = None
    registers: int | None = None
    dropout: float | None = None
    clusters: int = 8
    seed: int = 0

    def changes(self) -> dict[str, Any]:
        """Fields of `InContextConfig` that are set."""
        names = ("form", "dim", "depth", "heads", "hidden", "registers", "dropout")
        return {k: getattr(self, k) for k in names if getattr(self, k) is not None}


@dataclass(frozen=True)
class StageConfig(Stage):
    """One stage of training: all settings of `Stage`, and where its episodes come from.

    ``real`` is the share of episodes that are training subjects' responses; the others are synthetic voxels with
    noise ceilings in ``ceiling``, a share ``isotropic_share`` of them unlike any known voxel. Where ``real`` is above
    0 the last training subject only validates. ``validation_sizes`` are support sizes; ``minutes`` 0 is no limit.
    """

    real: float = 0.0
    ceiling: tuple[float, float] = (0.05, 0.9)
    isotropic_share: float = 0.1
    validation_sizes: list[int] = field(default_factory=lambda: [20, 50, 100, 200])
    validation_repeats: int = 2
    seed: int = 0
    precision: str = "auto"
    device: str = "auto"
    minutes: float = 0.0

    def stage(self) -> Stage:
        """The settings of training alone."""
        return Stage(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Stage)})


@dataclass(frozen=True)
class EvaluateConfig:
    """Support curves of ``methods`` on new subjects; ``models`` are folders or names beside those that OUT holds.

    ``groups``: voxel coordinate of further rows of the tables, such as "roi".
    """

    methods: list[str] = field(default_factory=lambda: list(METHODS))
    sizes: list[int] = field(default_factory=lambda: [20, 50, 100, 200, 500])
    n_draws: int = 5
    n_query: int = 300
    groups: str = ""
    n_bootstraps: int = 1000
    seed: int = 0
    device: str = "auto"
    models: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PredictConfig:
    """Support and queries as files; without them, the first new subject of the task and ``n_support`` of its trials."""

    model: str = "world"
    features: str = ""
    responses: str = ""
    query: str = ""
    n_support: int = 50
    response_scale: str = "check"
    device: str = "auto"


@dataclass(frozen=True)
class IclConfig:
    """A whole study: task, model, three stages, evaluation."""

    title: str = "In-context encoders"
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pretrain: StageConfig = field(default_factory=lambda: _stage("pretrain", {}))
    extend: StageConfig = field(default_factory=lambda: _stage("extend", {}))
    finetune: StageConfig = field(default_factory=lambda: _stage("finetune", {}))
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)


def _stage(name: str, given: Any) -> StageConfig:
    """The published stage with the file's changes."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"[{name}] is {given!r}; expected a table of settings.")
    table: dict[str, Any] = {**dataclasses.asdict(STAGES[name]), **({"real": 0.5} if name == "finetune" else {})}
    table |= given
    for key in ("support", "ceiling"):
        value = table.get(key, (0.0, 1.0))
        numbers = isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value)
        if not numbers or len(value) != 2:
            raise ConfigError(f"{name}.{key} = {value!r}: expected two numbers, [from, to].")
        if key in table:
            table[key] = tuple(value)
    found: StageConfig = _build(StageConfig, table, name)
    if not 0 <= found.real <= 1:
        raise ConfigError(f"{name}.real = {found.real} must lie in [0, 1]: the share of episodes of real responses.")
    if found.precision not in ("auto", "32", "bf16"):
        raise ConfigError(unknown_name(f"value of {name}.precision:", found.precision, ("auto", "32", "bf16")))
    return found


def read_icl_config(path: str | os.PathLike[str], overrides: list[str] | None = None) -> IclConfig:
    """Read the settings of in-context encoders from TOML.

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
    >>> from neuroenc.workflows import example_icl_config
    >>> example_icl_config("world", ["extend.max_steps=10"]).extend.max_steps
    10
    """
    path = Path(path)
    table = read_table(path, overrides, "--example world")
    stages = {name: _stage(name, table.pop(name)) for name in STAGES if name in table}
    config: IclConfig = dataclasses.replace(_build(IclConfig, table, ""), **stages)
    _check(config)
    return _absolute(config, path.resolve().parent)


def _check(config: IclConfig) -> None:
    from neuroenc.workflows import _icl_tasks

    task, evaluate = config.task, config.evaluate
    if task.kind not in TASKS:
        raise ConfigError(unknown_name("value of task.kind:", task.kind, TASKS))
    if task.zscore not in ("auto", "none", "session"):
        raise ConfigError(unknown_name("value of task.zscore:", task.zscore, ("auto", "none", "session")))
    if task.kind != "arrays":
        maker = _icl_tasks.world_tasks if task.kind == "world" else _icl_tasks.v4_tasks
        own = ("mirror", "progress", "held_out_animal", "n_query") + (("seed",) if task.kind == "world" else ())
        legal = [name for name in inspect.signature(maker).parameters if name not in own]
        for name in task.options:
            if name not in legal:
                raise ConfigError(unknown_name(f"option of the task {task.kind!r} in [task] options:", name, legal))
        _check_options(task.kind, task.options)
    for name in evaluate.methods:
        if name not in METHODS:
            raise ConfigError(unknown_name("method in evaluate.methods:", name, METHODS))
    if not evaluate.sizes or min(evaluate.sizes) < 2 or evaluate.n_draws < 1:
        raise ConfigError(f"evaluate.sizes = {evaluate.sizes} from 2, n_draws = {evaluate.n_draws} from 1 are legal.")
    if len(set(evaluate.sizes)) < len(evaluate.sizes) or len(set(evaluate.methods)) < len(evaluate.methods):
        raise ConfigError(f"evaluate.sizes = {evaluate.sizes} or methods = {evaluate.methods} name one twice.")
    if not evaluate.methods:
        raise ConfigError(f"evaluate.methods is empty; legal: {', '.join(METHODS)}.")
    for name in evaluate.models:
        if name in METHODS.values():
            raise ConfigError(f"[evaluate] models: {name!r} is the name of a baseline, or of OUT's own model.")
    check_whole("evaluate.n_query", evaluate.n_query, 2)
    check_whole("evaluate.n_bootstraps", evaluate.n_bootstraps, 2)
    check_whole("predict.n_support", config.predict.n_support)
    check_whole("model.clusters", config.model.clusters)
    scales = ("check", "support", "as-is")
    if config.predict.response_scale not in scales:
        raise ConfigError(unknown_name("value of predict.response_scale:", config.predict.response_scale, scales))
    _check_task(task)
    if config.model.form not in ("anchored", "published"):
        raise ConfigError(unknown_name("value of model.form:", config.model.form, ("anchored", "published")))
    if config.model.preset not in PRESETS:
        raise ConfigError(unknown_name("value of model.preset:", config.model.preset, PRESETS))
    # The model of these settings, as far as it can be told before the features are known.
    dataclasses.replace(PRESETS[config.model.preset], **config.model.changes())
    seeds = {"seed": config.seed, "model.seed": config.model.seed, "evaluate.seed": evaluate.seed}
    for name in STAGES:
        stage: StageConfig = getattr(config, name)
        seeds[f"{name}.seed"] = stage.seed
        low, high = stage.ceiling
        if not 0 <= low <= high <= 1 or not 0 <= stage.isotropic_share <= 1:
            raise ConfigError(
                f"{name}.ceiling = {list(stage.ceiling)} and isotropic_share = {stage.isotropic_share} lie in [0, 1]."
            )
        check_whole(f"{name}.validation_repeats", stage.validation_repeats)
        if not stage.validation_sizes or min(stage.validation_sizes) < 1 or not stage.minutes >= 0:
            raise ConfigError(
                f"{name}.validation_sizes = {stage.validation_sizes} are from 1, minutes = {stage.minutes} from 0."
            )
    for name, value in seeds.items():
        check_whole(name, value, 0)


def _check_task(task: TaskConfig) -> None:
    if task.kind == "arrays" and not task.train:
        raise ConfigError('[task] kind = "arrays" needs [[task.train]] tables with features and responses.')
    if task.kind == "world":
        for name in ("seeds", "test_seeds"):
            for seed in getattr(task, name):
                check_whole(f"task.{name}", seed, 0)
        both = sorted(set(task.seeds) & set(task.test_seeds))
        if both:
            raise ConfigError(f"[task] seeds and test_seeds share {both}: these subjects would not be new.")
        if not task.seeds or len(set(task.seeds)) + len(set(task.test_seeds)) < len(task.seeds) + len(task.test_seeds):
            raise ConfigError(f"[task] seeds = {task.seeds}, test_seeds = {task.test_seeds}: none, or one twice.")
    if task.kind == "v4":
        if not task.held_out or len(set(task.held_out)) < len(task.held_out):
            raise ConfigError(f"[task] held_out = {task.held_out} must name at least one animal, none twice.")
        from neuroenc.workflows._icl_tasks import check_v4_sessions

        for animal in task.held_out:
            check_v4_sessions(animal, task.options.get("sessions"))


def _check_options(kind: str, options: Mapping[str, Any]) -> None:
    """Types and ranges of a task's options, before anything is simulated or embedded with them."""
    for name, value in options.items():
        if name == "novel_prior":
            if not isinstance(value, bool):
                raise ConfigError(f"[task] options: novel_prior = {value!r}; expected true or false.")
        elif name == "sessions":
            if not isinstance(value, list) or not value or not all(isinstance(s, (str, int)) for s in value):
                raise ConfigError(f"[task] options: sessions = {value!r}; expected a list of sessions.")
        elif name == "n_voxels" and value is None:
            continue
        else:
            check_whole(f"[task] options: {name}", value, 0 if name == "seed" else 1)
    if kind == "v4" and options.get("n_features", 1) > 256:
        raise ConfigError(f"[task] options: n_features = {options['n_features']} must be from 1 to 256.")


def _absolute(config: IclConfig, folder: Path) -> IclConfig:
    def full(name: str) -> str:
        return str(folder / name) if name else ""

    def files(where: str, given: list[Any]) -> list[FilesConfig]:
        found = []
        for n, table in enumerate(given):
            if not isinstance(table, Mapping):
                raise ConfigError(f"[[{where}]] {n} is {table!r}; expected a table with features and responses.")
            one: FilesConfig = _build(FilesConfig, table, where)
            names = ("features", "responses", "query_features", "query_responses")
            if not one.features or not one.responses or (one.query_features and not one.query_responses):
                raise ConfigError(
                    f"[[{where}]] {n} needs features and responses, and query_features only with query_responses."
                )
            full_names: dict[str, Any] = {k: full(getattr(one, k)) for k in names}
            found.append(dataclasses.replace(one, name=one.name or f"{where[5:]}-{n + 1}", **full_names))
        return found

    task = dataclasses.replace(
        config.task, train=files("task.train", config.task.train), test=files("task.test", config.task.test)
    )
    predict, models = config.predict, config.evaluate.models
    paths: dict[str, Any] = {k: full(getattr(predict, k)) for k in ("features", "responses", "query")}
    # A model is a folder or the name of a shipped one.
    models = {k: full(v) if (folder / v).is_dir() else v for k, v in models.items()}
    if (folder / predict.model).is_dir():
        paths["model"] = full(predict.model)
    return dataclasses.replace(
        config,
        task=task,
        predict=dataclasses.replace(predict, **paths),
        evaluate=dataclasses.replace(config.evaluate, models=models),
    )


def list_icl_examples() -> list[str]:
    """Names of the shipped configs.

    >>> list_icl_examples()
    ['v4', 'world']
    """
    return example_names("examples_icl")


def example_icl_config(name: str, overrides: list[str] | None = None) -> IclConfig:
    """Settings of a shipped example."""
    return read_example("examples_icl", name, read_icl_config, overrides)
