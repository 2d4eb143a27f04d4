"""Settings of in-context encoders, ``[incontext.*]``: who is learned from, the model, its training and evaluation."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.study.table import MOST, Count, CountOrZero, Device, Seed, Table

__all__ = [
    "METHODS",
    "EvaluateConfig",
    "FilesConfig",
    "IncontextConfig",
    "ModelConfig",
    "PredictConfig",
    "StageConfig",
    "TaskConfig",
]

#: Options of ``[incontext.task]`` by kind, and the least of each number.
TASK_OPTIONS: dict[str, dict[str, int | None]] = {
    "world": {"n_train_subjects": 1, "n_train": 1, "n_pool": 1, "n_query": 1, "n_voxels": 1, "novel_prior": None},
    "v4": {"sessions": None, "n_features": 1, "n_query": 1, "seed": 0},
    "arrays": {},
}


class FilesConfig(Table):
    """One subject of ``kind = "arrays"``, ``[[incontext.task.train]]`` or ``[[incontext.task.test]]``.

    ``features`` (stimulus, feature) and ``responses`` (presentation or stimulus, voxel) are files that
    `neuroenc.data.save` wrote (.nc or .zarr), put together by stimulus id. ``query_features`` and ``query_responses``
    are a test subject's queries; without them, ``n_query`` stimuli drawn from its own.
    """

    features: str
    responses: str
    name: str = ""
    query_features: str = ""
    query_responses: str = ""

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if not self.features or not self.responses or (self.query_features and not self.query_responses):
            raise ConfigError("needs features and responses, and query_features only with query_responses.")
        return self


class TaskConfig(Table):
    """Who is learned from and who is new.

    ``kind``: "world" (simulated subjects of the worlds ``seeds``; new ones of ``test_seeds``), "v4" (macaque V4, once
    for each animal of ``held_out``) or "arrays" (files, ``train`` and ``test``; ``zscore`` "auto" scales within session
    where nothing was scaled before). ``options`` are numbers of the world or of V4.
    """

    kind: Literal["world", "v4", "arrays"] = "world"
    seeds: list[Seed] = [100]
    test_seeds: list[Seed] = [0]
    held_out: list[str] = ["PE", "WE"]
    options: dict[str, Any] = {}
    train: list[FilesConfig] = []
    test: list[FilesConfig] = []
    zscore: Literal["auto", "none", "session"] = "auto"

    @field_validator("train", "test")
    @classmethod
    def _names(cls, files: list[FilesConfig], info: ValidationInfo) -> list[FilesConfig]:
        name = f"{info.field_name}-{{}}"
        return [f if f.name else f.model_copy(update={"name": name.format(n + 1)}) for n, f in enumerate(files)]

    @model_validator(mode="after")
    def _known_and_new(self) -> Self:
        if self.kind == "arrays" and not self.train:
            raise ConfigError('kind = "arrays" needs [[incontext.task.train]] tables with features and responses.')
        if self.kind == "world":
            both = sorted(set(self.seeds) & set(self.test_seeds))
            if both:
                raise ConfigError(f"seeds and test_seeds share {both}: these subjects would not be new.")
            if not self.seeds or _twice(self.seeds) or _twice(self.test_seeds):
                raise ConfigError(f"seeds = {self.seeds}, test_seeds = {self.test_seeds}: none, or one twice.")
        if self.kind == "v4" and (not self.held_out or _twice(self.held_out)):
            raise ConfigError(f"held_out = {self.held_out} must name at least one animal, none twice.")
        for name, value in self.options.items():
            self._check_option(name, value)
        return self

    def _check_option(self, name: str, value: Any) -> None:
        legal = TASK_OPTIONS[self.kind]
        if name not in legal:
            raise ConfigError(unknown_name(f"option of the task {self.kind!r} in options:", name, legal))
        least = legal[name]
        if least is not None:
            check_whole(f"options.{name}", value, least)
        elif name == "novel_prior" and not isinstance(value, bool):
            raise ConfigError(f"options.novel_prior = {value!r}; expected true or false.")
        elif name == "sessions" and not (
            isinstance(value, list) and value and all(isinstance(s, (str, int)) for s in value)
        ):
            raise ConfigError(f"options.sessions = {value!r}; expected a list of sessions.")
        if name == "n_features" and value > 256:
            raise ConfigError(f"options.n_features = {value} must be from 1 to 256.")


def _twice(names: list[Any]) -> bool:
    return len(set(names)) < len(names)


class ModelConfig(Table):
    """The model: a preset and what differs from it; ``clusters`` of training voxels in the anchor's mixture."""

    preset: Literal["small", "clip", "dino", "siglip", "clip-3"] = "small"
    form: Literal["anchored", "published"] = "anchored"
    dim: Count | None = None
    depth: Count | None = None
    heads: Count | None = None
    hidden: Count | None = None
    registers: CountOrZero | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    clusters: Count = 8
    seed: Seed = 0

    def changes(self) -> dict[str, Any]:
        """Fields of `InContextConfig` that are set."""
        names = ("form", "dim", "depth", "heads", "hidden", "registers", "dropout")
        return {k: getattr(self, k) for k in names if getattr(self, k) is not None}


class StageConfig(Table):
    """One stage of training: settings of `neuroenc.encoders.incontext.Stage`, and where its episodes come from.

    What is left out is as published for that stage. ``real`` is the share of episodes that are training subjects'
    responses; the others are synthetic voxels with noise ceilings in ``ceiling``, a share ``isotropic_share`` of them
    unlike any known voxel. Where ``real`` is above 0 the last training subject only validates. ``validation_sizes`` are
    support sizes; ``minutes`` 0 is no limit.
    """

    support: list[Count] | None = Field(None, min_length=2, max_length=2)
    sizes: Literal["uniform", "log"] | None = None
    query: Count | None = None
    voxels: Count | None = None
    episodes: Count | None = None
    loss: Literal["response", "weights", "likelihood"] | None = None
    response_weight: Annotated[float, Field(ge=0)] | None = None
    lr: Annotated[float, Field(gt=0)] | None = None
    min_lr: Annotated[float, Field(ge=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    max_steps: Count | None = None
    evaluate_every: Count | None = None
    factor: Annotated[float, Field(gt=0, lt=1)] | None = None
    patience: CountOrZero | None = None
    threshold: Annotated[float, Field(ge=0)] | None = None
    cooldown: CountOrZero | None = None
    stop_patience: Count | None = None
    warmup: CountOrZero | None = None
    clip: Annotated[float, Field(gt=0)] | None = None
    real: Annotated[float, Field(ge=0, le=1)] | None = None
    ceiling: list[Annotated[float, Field(ge=0, le=1)]] = Field([0.05, 0.9], min_length=2, max_length=2)
    isotropic_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    validation_sizes: list[Count] = Field([20, 50, 100, 200], min_length=1)
    validation_repeats: Count = 2
    seed: Seed = 0
    precision: Literal["auto", "32", "bf16"] = "auto"
    device: Device = "auto"
    minutes: Annotated[float, Field(ge=0)] = 0.0

    @field_validator("support", "ceiling")
    @classmethod
    def _ascending(cls, bounds: list[Any] | None) -> list[Any] | None:
        if bounds and bounds[0] > bounds[1]:
            raise ConfigError(f"{bounds} is not legal; it must be [smallest, largest].")
        return bounds

    @model_validator(mode="after")
    def _learning_rates(self) -> Self:
        if self.lr is not None and self.min_lr is not None and self.min_lr > self.lr:
            raise ConfigError(f"min_lr = {self.min_lr} must be at most lr = {self.lr}.")
        return self


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
Method = Literal[
    "in-context", "ridge", "ridge-shared", "paper-ridge", "empirical-bayes", "nearest", "mean", "anatomical", "full"
]


class EvaluateConfig(Table):
    """Support curves of ``methods`` on new subjects; ``models`` are folders or names beside those that OUT holds.

    ``groups``: voxel coordinate of further rows of the tables, such as "roi".
    """

    methods: list[Method] = Field(list(METHODS), min_length=1)
    sizes: list[Annotated[int, Field(ge=2, le=MOST)]] = Field([20, 50, 100, 200, 500], min_length=1)
    n_draws: Count = 5
    n_query: Annotated[int, Field(ge=2, le=MOST)] = 300
    groups: str = ""
    n_bootstraps: Annotated[int, Field(ge=2, le=MOST)] = 1000
    seed: Seed = 0
    device: Device = "auto"
    models: dict[str, str] = {}

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if _twice(self.sizes) or _twice(self.methods):
            raise ConfigError(f"sizes = {self.sizes} or methods = {self.methods} name one twice.")
        for name in self.models:
            if name in METHODS.values():
                raise ConfigError(f"models: {name!r} is the name of a baseline, or of OUT's own model.")
        return self


class PredictConfig(Table):
    """Support and queries as files; without them, the first new subject of the task and ``n_support`` of its trials."""

    model: str = "world"
    features: str = ""
    responses: str = ""
    query: str = ""
    n_support: Count = 50
    response_scale: Literal["check", "support", "as-is"] = "check"
    device: Device = "auto"


class IncontextConfig(Table):
    """In-context encoders: task, model, three stages of training, evaluation, ``[incontext.*]``."""

    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()
    pretrain: StageConfig = StageConfig()
    extend: StageConfig = StageConfig()
    finetune: StageConfig = StageConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    predict: PredictConfig = PredictConfig()
