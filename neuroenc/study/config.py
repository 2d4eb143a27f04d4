"""Settings of a study: one TOML file, one pydantic model for each of its tables.

Legal values are in the types, so that ``neuroenc config schema``, the reference page and the checks agree.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "AnalysisConfig",
    "BankConfig",
    "CaptionsConfig",
    "CompareConfig",
    "ComputeConfig",
    "DataConfig",
    "DecoderConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FeaturesConfig",
    "GateConfig",
    "GroundingConfig",
    "IncontextConfig",
    "ProjectionConfig",
    "ReportConfig",
    "SpaceConfig",
    "StabilityConfig",
    "StudyConfig",
]

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOrZero = Annotated[int, Field(ge=0, le=2**31 - 1)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Table(BaseModel):
    """A table of the file: frozen, without keys that nothing reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataConfig(Table):
    """Where responses and stimuli come from: a named data set, the simulated world, or files of your own.

    ``name`` with ``options`` (see `neuroenc.data.load_dataset`; of ``name = "world"``: ``n_subjects, n_train, n_test,
    n_repeats, n_bank, n_voxels, world_seed``), or ``responses``: a .nc or .zarr written by `neuroenc.data.save`, a .npy
    (sample, voxel), or a 4-D NIfTI with ``mask`` (and ``rois``, name to image; ``"labels.nii.gz:1"`` is the region of
    one label). The last two need ``samples``, a CSV with a column stimulus and optionally subject, session, run,
    repeat. ``images`` is a folder whose file names without ending are stimulus ids, ``captions`` a CSV with the columns
    stimulus and caption. ``join`` has one option of the data set and its values, ``{ session = ["190923", ...] }``:
    each is loaded as a subject with voxels of its own, NaN where it did not see a stimulus; equal pictures are one
    stimulus.
    """

    name: str = ""
    options: dict[str, Any] = {}
    join: dict[str, list[str | int]] = {}
    responses: str = ""
    samples: str = ""
    mask: str = ""
    rois: dict[str, Any] = {}
    images: str = ""
    captions: str = ""
    zscore: Literal["auto", "none", "session", "run"] = "auto"
    average: bool = True


class FeaturesConfig(Table):
    """One feature space, ``[features.NAME]``; a single ``[features]`` table is the space "features".

    ``kind`` "image" (``model``, ``layer``, ``pooling``, ``preprocessing`` as in `neuroenc.embedding.ImageEmbedder`),
    "captions" (mean over a stimulus' captions), "dense" (captions of ``grid`` x ``grid`` cells, a map; from ``table``,
    a CSV with stimulus, row, column, caption, or the simulated world's own), "pixels" (the pictures, ``size`` pixels a
    side, for cores) or "file": a .nc or .zarr written by `neuroenc.data.save`, or a .npy (row, feature) with
    ``samples``, a CSV whose column stimulus names its rows. Left out, it is "file" where there is a ``file``, else
    "image".
    """

    kind: Literal["", "image", "captions", "dense", "pixels", "file"] = ""
    model: str = "efficientnet-lite0"
    pretrained: str = ""
    layer: str = ""
    pooling: str | Count = ""
    normalise: bool = False
    standardise: bool = True
    preprocessing: dict[str, Any] = {}
    size: Annotated[int, Field(ge=1, le=4096)] = 64
    grid: Annotated[int, Field(ge=1, le=256)] = 8
    table: str = ""
    file: str = ""
    samples: str = ""


class EncoderConfig(Table):
    """Ridge regression; ``alphas`` empty means a grid that follows the features' scale."""

    kind: Literal["ridge"] = "ridge"
    alphas: list[Annotated[float, Field(gt=0)]] = []
    cv: Annotated[int, Field(ge=2)] | str = 5
    scoring: Literal["r2", "neg_mse", "r"] = "r2"
    max_memory: str = ""
    device: str = "cpu"


class EvaluationConfig(Table):
    """Outer folds: rows that an encoder is scored on, and that it did not see.

    ``scheme`` "stimulus", "run" or "session" leaves these out in ``n_splits`` folds; with ``n_splits = 1`` once: a
    ``share`` of the stimuli, or the last ``n_last`` runs or sessions. "test" leaves out the ids in ``test_ids``, which
    may also be the name of a test set of the data, such as "shared1000" of NSD. Captions come from an encoder that was
    fitted without the first fold.

    ``permutation_mode`` "samples" shuffles all rows, "within" those of a run (or session); "whole" and "shift" exchange
    or rotate blocks and need ``scheme = "test"``. ``permutation_null`` of the other schemes: "refit" predicts every
    voxel's permuted responses anew, "shared" one set of normal scores for all voxels, at a cost that does not grow with
    them; "auto" shares from 1000 rows on, except for voxels with heavy tails.
    """

    scheme: Literal["stimulus", "run", "session", "test"] = "stimulus"
    n_splits: Count = 5
    share: Share = 0.2
    n_last: Count = 3
    test_ids: list[str] = []
    permutations: CountOrZero = 1000
    permutation_mode: Literal["samples", "within", "whole", "shift"] = "samples"
    permutation_null: Literal["auto", "refit", "shared"] = "auto"
    q: Share = 0.05


class RegionsConfig(Table):
    """Three feature spaces for the three-region analysis; ``readouts`` empty means all that read the three."""

    vision: str
    dense: str
    single: str
    readouts: list[str] = []


class LayersConfig(Table):
    """Feature spaces from early to late, and the readout that compares them."""

    order: list[str]
    readout: str = "linear"


class CompareConfig(Table):
    """Every feature space through every readout, ``[compare]``.

    ``readouts`` and ``cores`` are tables of tables as in `neuroenc.encoders.comparison.compare`; ``cells`` keeps only
    some. Every cell gets ``cv`` outer folds, the same ``validation`` share and ``n_candidates`` settings.
    ``training`` are arguments of `ReadoutEncoder` for all cells that are trained by gradients.
    """

    readouts: dict[str, dict[str, Any]] = {"linear": {}}
    cores: dict[str, dict[str, Any]] = {}
    cells: list[str] = []
    cv: Annotated[int, Field(ge=2)] | str = 5
    validation: Share = 0.2
    n_candidates: Count = 3
    n_bootstraps: Count = 1000
    q: Share = 0.05
    training: dict[str, Any] = {}
    regions: RegionsConfig | None = None
    layers: LayersConfig | None = None


class SpaceConfig(Table):
    """The space that weights and texts live in, ``[captions.space]``: ``model``, a joint image-text space ("world",
    "conse", or a CLIP of open_clip with ``pretrained``), or a text space ("minilm") with ``stimuli = "captions"``."""

    model: str
    pretrained: str = ""
    stimuli: Literal["image", "captions"] = "image"


class GateConfig(Table):
    """Which voxels are captioned: ``kind`` "q" (predicted above chance at false discovery rate ``q``), "roi" (in one of
    ``rois``, above chance or not) or "none"; and never below ``min_ceiling_r`` where the ceiling is known."""

    kind: Literal["q", "roi", "none"] = "q"
    q: Share = 0.05
    rois: list[str] = []
    min_ceiling_r: Annotated[float, Field(ge=0, lt=1)] = 0.0


class BankConfig(Table):
    """Natural images that weights are projected onto: ``source`` "stimuli" (those of the training rows), "unseen"
    (scenes of the simulated world that nobody saw), "captions" (texts, for a text space), a data set with images, or
    the folder that ``neuroenc bank build`` wrote."""

    source: str = "stimuli"


class ProjectionConfig(Table):
    """``method`` "softmax", "nearest", "denoiser" or "none" (a control), and the options of the softmax."""

    method: Literal["softmax", "nearest", "denoiser", "none"] = "softmax"
    temperature: Annotated[float, Field(gt=0)] = 1 / 150
    renormalise: bool = True
    decouple: bool = True


class DecoderConfig(Table):
    """``kind`` "prefix" (a language model), "corpus" (a language model whose every ``n`` words in a row, whole captions
    with 0, occur in the caption bank) or "retrieval".

    ``captioner``: "world", "photo", or a folder of `PrefixDecoder.save`. ``caption_bank``: "bank" (captions of the
    bank's images), "stimuli" (those of training rows), or a data set with captions. ``rerank``: weight of a caption's
    likeness to its embedding among the beams (default: the captioner's own). ``without``: concepts of the lexicon that
    no caption may name, such as "person" where the embeddings cannot show people.
    """

    kind: Literal["prefix", "corpus", "retrieval"] = "prefix"
    captioner: str = ""
    caption_bank: str = "bank"
    captions_per_stimulus: Count = 2
    top: Count = 3
    beams: Count = 6
    groups: Count = 3
    diversity: Literal["hamming", "words"] = "words"
    diversity_penalty: Annotated[float, Field(ge=0)] = 1.0
    method: Literal["beam", "sample"] = "beam"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.8
    max_length: Annotated[int, Field(ge=2, le=2**31 - 1)] = 40
    n: CountOrZero = 0
    centre: bool = True
    rerank: Annotated[float, Field(ge=0)] | None = None
    without: list[str] = []


class GroundingConfig(Table):
    """Phrases against the voxel's top images and against its weights; ``intervene`` also while they are written."""

    enabled: bool = True
    images: Count = 16
    intervene: bool = False


class StabilityConfig(Table):
    """Captions again: on ``folds`` disjoint parts of the bank, on ``bootstraps`` of the training stimuli, and on
    ``halves`` pairs of halves of them; 0 leaves a kind out.

    ``max_voxels``: captions are made again for so many of the captioned voxels, a random sample stratified by subject
    and region (0: for all of them). Every variant takes as long as the captions of these voxels did. ``null_voxels``:
    voxels whose weights are shuffled for the null.
    """

    folds: CountOrZero = 5
    bootstraps: CountOrZero = 5
    halves: CountOrZero = 1
    null_voxels: Annotated[int, Field(ge=2, le=2**31 - 1)] = 100
    max_voxels: CountOrZero = 200


class AnalysisConfig(Table):
    """``words``: "auto" (spaCy where it is installed), "spacy" or "none". ``clusters``: regions to be split (all with
    at least ``min_voxels`` where empty and ``max_rois`` allows)."""

    words: Literal["auto", "spacy", "none"] = "auto"
    clusters: list[str] = []
    min_voxels: Annotated[int, Field(ge=2, le=2**31 - 1)] = 30
    max_rois: CountOrZero = 6
    contrast: list[str] = []


class CaptionsConfig(Table):
    """What voxels prefer, in words: ``[captions]`` and its tables."""

    space: SpaceConfig
    gate: GateConfig = GateConfig()
    bank: BankConfig = BankConfig()
    projection: ProjectionConfig = ProjectionConfig()
    decoder: DecoderConfig = DecoderConfig()
    grounding: GroundingConfig = GroundingConfig()
    stability: StabilityConfig = StabilityConfig()
    analysis: AnalysisConfig = AnalysisConfig()


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


class ModelConfig(Table):
    """The model: a preset and what differs from it; ``clusters`` of training voxels in the anchor's mixture."""

    preset: str = "small"
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
    response_weight: float | None = None
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
    device: str = "auto"
    minutes: Annotated[float, Field(ge=0)] = 0.0


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
    sizes: list[Annotated[int, Field(ge=2, le=2**31 - 1)]] = Field([20, 50, 100, 200, 500], min_length=1)
    n_draws: Count = 5
    n_query: Annotated[int, Field(ge=2, le=2**31 - 1)] = 300
    groups: str = ""
    n_bootstraps: Annotated[int, Field(ge=2, le=2**31 - 1)] = 1000
    seed: Seed = 0
    device: str = "auto"
    models: dict[str, str] = {}


class PredictConfig(Table):
    """Support and queries as files; without them, the first new subject of the task and ``n_support`` of its trials."""

    model: str = "world"
    features: str = ""
    responses: str = ""
    query: str = ""
    n_support: Count = 50
    response_scale: Literal["check", "support", "as-is"] = "check"
    device: str = "auto"


class IncontextConfig(Table):
    """In-context encoders: task, model, three stages of training, evaluation, ``[incontext.*]``."""

    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()
    pretrain: StageConfig = StageConfig()
    extend: StageConfig = StageConfig()
    finetune: StageConfig = StageConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    predict: PredictConfig = PredictConfig()


class ReportConfig(Table):
    """Sections to leave out of the report, and whether its maps are drawn."""

    without: list[Literal["maps", "captions", "comparison", "support"]] = []


class ComputeConfig(Table):
    """Where tasks run: ``workers`` processes of this machine, or the Dask ``client`` ("tcp://HOST:PORT", "local:4").

    ``threads`` of each. Numbers do not depend on any of them.
    """

    workers: Count = 1
    client: str = ""
    threads: Count = 1


class StudyConfig(Table):
    """A whole study; tables that are absent ask for nothing."""

    title: str = "Voxelwise encoding"
    seed: Seed = 0
    notes: list[str] = []
    data: DataConfig = DataConfig()
    features: dict[str, FeaturesConfig] = {}
    encoder: EncoderConfig = EncoderConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compare: CompareConfig | None = None
    incontext: IncontextConfig | None = None
    captions: CaptionsConfig | None = None
    report: ReportConfig = ReportConfig()
    compute: ComputeConfig = ComputeConfig()
