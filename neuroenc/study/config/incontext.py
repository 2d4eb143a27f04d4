"""Settings of in-context encoders, ``[incontext.*]``: who is learned from, the model, its training and evaluation."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.study.config.evaluate import EvaluateConfig
from neuroenc.study.config.table import Count, CountOrZero, Device, File, FolderOrName, Seed, Table, twice

#: Options of ``[incontext.task]`` by kind, and the least of each number.
TASK_OPTIONS: dict[str, dict[str, int | None]] = {
    "world": {
        "n_train_subjects": 1,
        "n_train": 1,
        "n_pool": 1,
        "n_query": 1,
        "n_voxels": 1,
        "novel_prior": None,
        "own": None,
    },
    "v4": {"sessions": None, "n_features": 1, "n_query": 1, "seed": 0},
    "arrays": {},
}


class FilesConfig(Table):
    """One subject of ``kind = "arrays"``, in ``[[incontext.task.train]]`` or ``[[incontext.task.test]]``.

    Features and responses are matched by stimulus id; both are files that `neuroenc.data.save` wrote (.nc or .zarr).

    Attributes
    ----------
    features
        Features (stimulus, feature).
    responses
        Responses (presentation or stimulus, voxel).
    name
        What tables and figures call the subject; "train-1", "test-1", ... where left out.
    query_features
        Of a new subject: features of its queries; those of ``features`` where left out.
    query_responses
        Of a new subject: responses to its queries; where left out, ``n_query`` stimuli are drawn from its own.
    """

    features: File
    responses: File
    name: str = ""
    query_features: File = ""
    query_responses: File = ""

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if not self.features or not self.responses or (self.query_features and not self.query_responses):
            raise ConfigError("needs features and responses, and query_features only with query_responses.")
        return self


class TaskConfig(Table):
    """Which subjects are trained on, and which are new.

    Attributes
    ----------
    kind
        "world": simulated subjects. "v4": macaque V4, each animal of ``held_out`` left out in turn. "arrays": your
        files, ``train`` and ``test``.
    seeds
        Of "world": worlds of the training subjects.
    test_seeds
        Of "world": worlds of the new subjects.
    held_out
        Of "v4": animals left out.
    options
        Of "world": ``n_train_subjects``, ``n_train``, ``n_pool``, ``n_query``, ``n_voxels``, ``novel_prior``, ``own``.
        Of "v4": ``sessions``, ``n_features``, ``n_query``, ``seed``.
    train
        Of "arrays": training subjects.
    test
        Of "arrays": new subjects.
    zscore
        Of "arrays": standardise each voxel within session; "auto" where that was not done before.
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
            if not self.seeds or twice(self.seeds) or twice(self.test_seeds):
                raise ConfigError(f"seeds = {self.seeds}, test_seeds = {self.test_seeds}: none, or one twice.")
        if self.kind == "v4" and (not self.held_out or twice(self.held_out)):
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
        elif name == "own" and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1):
            raise ConfigError(f"options.own = {value!r}; expected a share, from 0 to below 1.")
        elif name == "sessions" and not (
            isinstance(value, list) and value and all(isinstance(s, (str, int)) for s in value) and not twice(value)
        ):
            raise ConfigError(f"options.sessions = {value!r}; expected a list of sessions, none twice.")
        if name == "n_features" and value > 256:
            raise ConfigError(f"options.n_features = {value} must be from 1 to 256.")


class AttentionConfig(Table):
    """Attention in every block of the in-context model.

    Attributes
    ----------
    normaliser
        From scores to weights. "sigmoid": each trial independent of the others, its bias -ln n.
    length_scale
        What queries are multiplied by: the logarithm of the number of tokens, a learned function of it, or nothing. By
        default "log_n" for softmax and "none" for sigmoid, whose bias knows the number already.
    position
        Positions of trials. With any but "none" the order of trials matters.
    length
        Trials that "learned" positions reach to, registers not counted.
    context
        Which trials a token sees: all; chunks of them whose summaries match; or blocks of like stimuli behind
        landmarks that the model learns to look for.
    chunk_size
        Trials of a chunk, or of a landmark's block.
    max_tokens
        Tokens that a token sees at most.
    """

    normaliser: Literal["softmax", "sigmoid"] = "softmax"
    length_scale: Literal["log_n", "learned", "none"] | None = None
    position: Literal["none", "sinusoidal", "learned", "rotary", "t5", "alibi"] = "none"
    length: Count = 1000
    context: Literal["full", "chunks", "landmarks"] = "full"
    chunk_size: Count = 50
    max_tokens: Count = 500

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.context != "full" and self.max_tokens < 2 * self.chunk_size:
            raise ConfigError(f"max_tokens = {self.max_tokens} must hold two chunks of {self.chunk_size}.")
        if self.context == "landmarks" and self.normaliser != "softmax":
            raise ConfigError(
                f"context = 'landmarks' beside normaliser = {self.normaliser!r}: a landmark opens its block by a share "
                "of a softmax. Next step: normaliser = 'softmax', or context = 'chunks'."
            )
        return self

    def changes(self, dim: int, heads: int, registers: int) -> dict[str, Any]:
        """Fields of `InContextConfig`."""
        sigmoid = self.normaliser == "sigmoid"
        found: dict[str, Any] = {"length_scale": self.length_scale or ("none" if sigmoid else "log_n")}
        if sigmoid:
            found["normaliser"] = {"class": "Sigmoid"}
        if self.context == "chunks":
            limits = {"chunk_size": self.chunk_size, "max_tokens": self.max_tokens}
            found["context"] = {"class": "ChunkSelectPolicy", **limits}
        if self.context == "landmarks":
            layout = {"block_size": self.chunk_size, "lead": registers}
            found["normaliser"] = {"class": "GroupedSoftmax", **layout}
            found["context"] = {"class": "LandmarkPolicy", **layout, "top_k": self.max_tokens // self.chunk_size}
        absolute = {"class": "AbsolutePosition", "dim": dim, "kind": self.position}
        places = {
            "sinusoidal": absolute,
            "learned": absolute | {"length": self.length},
            "rotary": {"class": "Rotary"},
            "t5": {"class": "T5Bias", "heads": heads},
            "alibi": {"class": "ALiBi", "heads": heads},
        }
        return found | ({} if self.position == "none" else {"position": places[self.position]})


class ModelConfig(Table):
    """The in-context model: a preset, and what differs from it.

    Attributes
    ----------
    preset
        "small" trains on a laptop; "clip", "dino" and "siglip" have the published sizes, "clip-3" three layers.
    form
        "anchored": attention corrects the posterior mean under a prior fitted to the training voxels. "published": as
        BraInCoRL was released. "query": as "anchored", and queries attend to the support for what is not linear.
    memory
        In the place of the layers, a memory that reads trials one after the other, for sessions that go on: registers
        that ask all trials, a linear map that learns as it reads ("titans", published form only), a recurrent cell.
    hint
        What training also asks for: ridge weights, the response to the nearest stimulus of the support, or mean and
        variance of its responses.
    dim
        Width of a token.
    depth
        Layers.
    heads
        Attention heads of a layer.
    hidden
        Width of the feed-forward layers.
    registers
        Register tokens.
    dropout
        Dropout rate.
    experts
        Voxel coordinate of the responses, such as "roi" or one that names data sets: finetune then begins with a
        feed-forward network for each of its values, copies of the dense one of the stages before, and trains each on
        its group's episodes, all real ones: synthetic voxels have no group. The last training subject, which
        validates, and new subjects are routed by it, too: their values must be among those of the other training
        subjects. "" is one network for all.
    clusters
        Clusters of training voxels in the mixture prior of "anchored".
    seed
        Of the initial weights.
    attention
        Normaliser, positions and context of attention.
    """

    preset: Literal["small", "clip", "dino", "siglip", "clip-3"] = "small"
    form: Literal["anchored", "published", "query", "refined"] = "anchored"
    memory: Literal["none", "attention", "titans", "gru", "lstm"] = "none"
    hint: Literal["none", "weights", "nearest", "statistics"] = "none"
    dim: Count | None = None
    depth: Count | None = None
    heads: Count | None = None
    hidden: Count | None = None
    registers: Count | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    experts: str = ""
    clusters: Count = 8
    seed: Seed = 0
    attention: AttentionConfig = AttentionConfig()

    def changes(self) -> dict[str, Any]:
        """Fields of `InContextConfig` that are set."""
        names = ("form", "dim", "depth", "heads", "hidden", "registers", "dropout")
        found = {k: getattr(self, k) for k in names if getattr(self, k) is not None}
        from neuroenc.encoders.incontext import PRESETS

        preset, scale = PRESETS[self.preset], self.attention.length_scale
        sizes = (found.get(k, getattr(preset, k)) for k in ("dim", "heads", "registers"))
        found |= self.attention.changes(*sizes)
        if self.hint != "none":
            found["hint"] = self.hint
        if self.memory != "none":
            found |= {"memory": self.memory, "length_scale": "none" if scale is None else scale}
        return found

    @model_validator(mode="after")
    def _possible(self) -> Self:
        # What the model refuses is refused before subjects are read; torch is loaded for unusual ones only.
        if self.memory != "none" or self.attention != AttentionConfig() or self.experts:
            from neuroenc.encoders.incontext import PRESETS

            groups = ("group",) if self.experts else ()
            dataclasses.replace(PRESETS[self.preset], **self.changes(), experts=groups)
        return self


class StageConfig(Table):
    """One stage of training. What is left out is as published for that stage.

    Attributes
    ----------
    support
        Smallest and largest support; each step draws one.
    sizes
        How support sizes are drawn.
    query
        Query stimuli of an episode.
    voxels
        Voxels of an episode, which share its stimuli.
    episodes
        Episodes of a step.
    loss
        "response": squared error of query responses. "weights": 1 - cosine of the weights, plus ``response_weight``
        times the squared error. "likelihood": negative log predictive density (anchored models only).
    response_weight
        Weight of the squared error in "weights".
    hint_weight
        Weight of the error of a hint, of a model that has one.
    lr
        Learning rate of AdamW.
    min_lr
        Lowest learning rate of the plateau schedule.
    weight_decay
        Weight decay of AdamW.
    max_steps
        Steps at most.
    evaluate_every
        Steps between evaluations.
    factor
        Factor of the learning rate at a plateau.
    patience
        Evaluations without improvement before the learning rate falls.
    threshold
        Relative improvement that counts.
    cooldown
        Evaluations after a fall before the next is counted.
    stop_patience
        Evaluations without improvement after which training stops.
    warmup
        Steps over which the learning rate rises.
    clip
        Largest norm of the gradient.
    deployed
        Train anchored models as they are used: trials by the precision that all voxels of an episode give them, levels
        pooled over its voxels. A step takes two to three times as long.
    real
        Share of episodes that are training subjects' responses (0; 0.5 in finetune, 1 with experts); the others are
        synthetic voxels. Above 0 the last training subject only validates.
    ceiling
        Range of noise ceilings (explained variance) of synthetic voxels.
    isotropic_share
        Share of synthetic voxels whose weights do not follow the prior.
    nuisances
        What spoils the supports of some of the synthetic voxels: settings of `neuroenc.data.simulate.Nuisances`, such
        as ``{ outlying_trials = 0.1, gain_drift = 0.3 }``.
    nuisance_share
        Share of synthetic episodes that are spoilt.
    validation_sizes
        Support sizes of the validation.
    validation_repeats
        Draws of each support size.
    seed
        Of the episodes.
    precision
        "auto", 32-bit, or bfloat16.
    device
        "auto", "cpu", "cuda", "mps" or another torch device.
    minutes
        Time after which training stops; 0: no limit.
    """

    support: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    sizes: Literal["uniform", "log"] | None = None
    query: Count | None = None
    voxels: Count | None = None
    episodes: Count | None = None
    loss: Literal["response", "weights", "likelihood", "share"] | None = None
    response_weight: Annotated[float, Field(ge=0)] | None = None
    hint_weight: Annotated[float, Field(ge=0)] | None = None
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
    deployed: bool | None = None
    real: Annotated[float, Field(ge=0, le=1)] | None = None
    ceiling: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)] = [0.05, 0.9]
    isotropic_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    nuisances: dict[str, float] = {}
    nuisance_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    validation_sizes: Annotated[list[Count], Field(min_length=1)] = [20, 50, 100, 200]
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

    @field_validator("nuisances")
    @classmethod
    def _known(cls, given: dict[str, float]) -> dict[str, float]:
        from neuroenc.data.simulate import Nuisances

        for name in given:
            one_of("nuisance", name, Nuisances.__dataclass_fields__)
        Nuisances(**given)
        return given


class MergeConfig(Table):
    """Merged start of ``neuroenc icl finetune``: models that were fine-tuned on other subjects, added up by block.

    Attributes
    ----------
    models
        Folders of in-context models by name, all fine-tuned from ``base``.
    base
        Folder or name of their common start; the model of the stage before where left out.
    way
        "blocks": a coefficient for each model and block; "model": for each model; "position": positive ones that sum to
        one, times one scale; "soup": the mean.
    labels
        Learn from responses to query trials of the stage's episodes; false: from how well two halves of a support
        agree.
    steps
        Of learning the coefficients.
    lr
        Learning rate of the coefficients.
    """

    models: Annotated[dict[str, FolderOrName], Field(min_length=1)]
    base: FolderOrName = ""
    way: Literal["blocks", "model", "position", "soup"] = "blocks"
    labels: bool = True
    steps: Count = 200
    lr: Annotated[float, Field(gt=0)] = 0.03


class PredictConfig(Table):
    """Prediction of a new subject from a few of its trials.

    Attributes
    ----------
    model
        A folder of an in-context model, or "world", the shipped one.
    features
        Features of the support, .nc or .zarr; without files, the first new subject of the task is taken.
    responses
        Responses of the support.
    query
        Features of the stimuli to predict.
    n_support
        Trials drawn of the task's new subject.
    response_scale
        "check" warns where the support does not look z-scored, "support" standardises it, "as-is" takes it as it is.
    device
        "auto", "cpu", "cuda", "mps" or another torch device.
    """

    model: FolderOrName = "world"
    features: File = ""
    responses: File = ""
    query: File = ""
    n_support: Count = 50
    response_scale: Literal["check", "support", "as-is"] = "check"
    device: Device = "auto"


class IncontextConfig(Table):
    """In-context encoders: subjects, model, three stages of training, evaluation, prediction.

    Attributes
    ----------
    task
        Training subjects and new ones.
    model
        The model.
    pretrain
        First stage: synthetic voxels, supports of one size.
    extend
        Second stage: supports of every size.
    finetune
        Third stage: responses of training subjects among the synthetic voxels.
    merge
        Merged start of the third stage; left out without the table.
    evaluate
        Support curves.
    predict
        Prediction of a new subject.
    """

    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()
    pretrain: StageConfig = StageConfig()
    extend: StageConfig = StageConfig()
    finetune: StageConfig = StageConfig()
    merge: MergeConfig | None = None
    evaluate: EvaluateConfig = EvaluateConfig()
    predict: PredictConfig = PredictConfig()

    @model_validator(mode="after")
    def _tables_agree(self) -> Self:
        if self.model.experts and self.finetune.real not in (None, 1.0):
            raise ConfigError(
                f"finetune.real = {self.finetune.real} beside model.experts = {self.model.experts!r}: synthetic voxels "
                "have no group, so no expert is trained on them. Next step: leave real out, or set it to 1."
            )
        if self.evaluate.order == "time" and self.task.kind == "world":
            raise ConfigError(
                "evaluate.order = 'time' beside task.kind = 'world', whose queries are shown throughout the sessions "
                "and not after them. Next step: order = 'shuffled', or kind = 'v4' or 'arrays'."
            )
        return self
