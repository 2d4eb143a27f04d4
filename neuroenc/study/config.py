"""Settings of a study: one TOML file, one pydantic model for each of its tables.

Legal values are in the types, so that ``neuroenc config schema``, the reference page and the checks agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc._core.memory import parse_memory
from neuroenc.study.config_incontext import IncontextConfig
from neuroenc.study.table import MOST, Count, CountOrZero, Device, Seed, Share, Table

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

#: Options of ``[data] name = "world"``, the simulated world, and the least of each.
WORLD = {
    "n_subjects": 1,
    "n_train": 1,
    "n_test": 0,
    "n_repeats": 1,
    "n_bank": 0,
    "n_voxels": 1,
    "world_seed": 0,
}


def _check_memory(text: str) -> str:
    if text:
        parse_memory(text)
    return text


class RegionConfig(Table):
    """One label of an image of regions, or several of them: ``{ file = "floc.nii.gz", label = 1 }``."""

    file: str
    label: int | list[int]


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
    rois: dict[str, str | RegionConfig] = {}
    images: str = ""
    captions: str = ""
    zscore: Literal["auto", "none", "session", "run"] = "auto"
    average: bool = True

    @field_validator("rois")
    @classmethod
    def _spell_regions(cls, rois: dict[str, str | RegionConfig]) -> dict[str, str]:
        def spelled(region: str | RegionConfig) -> str:
            if isinstance(region, str):
                return region
            labels = region.label if isinstance(region.label, list) else [region.label]
            return f"{region.file}:{','.join(map(str, labels))}"

        return {name: spelled(region) for name, region in rois.items()}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.name and self.responses:
            raise ConfigError('needs either name (a data set, or "world") or responses (your file); found both.')
        own = [k for k in ("samples", "mask", "rois", "images", "captions") if getattr(self, k)]
        if self.name and own:
            raise ConfigError(f"{', '.join(own)} belong to responses of your own; {self.name!r} has its own.")
        if self.join and (not self.name or len(self.join) != 1):
            raise ConfigError(f"join = {self.join!r} needs name, and one option of that data set with its values.")
        if self.name == "world":
            self._check_world()
        if self.responses:
            self._check_files()
        return self

    def _check_world(self) -> None:
        if self.join:
            raise ConfigError(
                "join is of data sets; the world has n_subjects. Next step: options = { n_subjects = 2 }."
            )
        for name, value in self.options.items():
            if name not in WORLD:
                raise ConfigError(unknown_name("setting in data.options:", name, WORLD))
            where = f"data.options.{name}"
            check_whole(where, value if isinstance(value, int) else str(value), WORLD[name])
            if value > MOST:
                raise ConfigError(f"{where} = {value!r} is not legal; it must be at most {MOST}.")

    def _check_files(self) -> None:
        if self.options:
            raise ConfigError(f"options {sorted(self.options)} belong to a data set (name = ...), not to a file.")
        name = Path(self.responses).name.lower()
        endings = (".nc", ".zarr", ".npy", ".nii", ".nii.gz")
        ending = next((x for x in endings if name.endswith(x)), None)
        if ending is None:
            raise ConfigError(unknown_name("ending of responses:", Path(name).suffix, endings))
        labelled, volume = ending in (".nc", ".zarr"), ending.startswith(".nii")
        if volume and not self.mask:
            raise ConfigError(f"responses = {name!r} is a volume and needs mask.")
        if labelled and self.samples:
            raise ConfigError(f"samples is not read: {name} has labels of its own. Next step: leave samples out.")
        if not labelled and not self.samples:
            raise ConfigError(f"responses = {name!r} needs samples, a CSV with a column stimulus.")
        if not volume and (self.mask or self.rois):
            raise ConfigError(
                f"mask and rois are of volumes (.nii.gz); responses is {name}. Next step: leave them out."
            )


#: Keys of a feature space that each kind reads, besides ``standardise``.
FEATURES = {
    "image": ("model", "pretrained", "layer", "pooling", "normalise", "preprocessing"),
    "captions": ("model", "pretrained", "normalise"),
    "dense": ("model", "pretrained", "normalise", "grid", "table"),
    "pixels": ("size",),
    "file": ("file", "samples"),
}


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

    @model_validator(mode="before")
    @classmethod
    def _resolve_kind(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and not given.get("kind"):
            return {**given, "kind": "file" if given.get("file") else "image"}
        return given

    @model_validator(mode="after")
    def _only_what_is_read(self) -> Self:
        read = FEATURES[self.kind]
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name not in ("kind", "standardise", *read) and value != field.default:
                raise ConfigError(
                    f'{name} = {value!r} is not read with kind = "{self.kind}", which reads {", ".join(read)}. '
                    "Next step: leave it out, or set another kind."
                )
        if self.kind == "file" and not self.file:
            raise ConfigError('kind = "file" needs file = "features.nc".')
        if "model" in read and not self.model:
            raise ConfigError('model = "" names no model. Next step: model = "efficientnet-lite0".')
        if Path(self.file).suffix == ".npy" and not self.samples:
            raise ConfigError(
                f"file = {Path(self.file).name!r} has no labels and needs samples, a CSV whose column stimulus names "
                "its rows (for one row a trial, the table of the responses)."
            )
        return self


class EncoderConfig(Table):
    """Ridge regression; ``alphas`` empty means a grid that follows the features' scale."""

    kind: Literal["ridge"] = "ridge"
    alphas: list[Annotated[float, Field(gt=0)]] = []
    cv: Annotated[int, Field(ge=2)] | str = 5
    scoring: Literal["r2", "neg_mse", "r"] = "r2"
    max_memory: Annotated[str, AfterValidator(_check_memory)] = ""
    device: Device = "cpu"


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

    @model_validator(mode="after")
    def _only_what_the_scheme_reads(self) -> Self:
        if self.scheme != "test" and self.permutation_mode in ("whole", "shift"):
            raise ConfigError(
                f'permutation_mode = "{self.permutation_mode}" needs scheme = "test"; with cross-validation use '
                '"samples" or "within".'
            )
        if self.test_ids and self.scheme != "test":
            raise ConfigError(
                f'test_ids are of scheme = "test", and scheme is "{self.scheme}". Next step: leave one of them out.'
            )
        return self


class RegionsConfig(Table):
    """Three feature spaces for the three-region analysis; ``readouts`` empty means all that read the three."""

    vision: str
    dense: str
    single: str
    readouts: list[str] = []


class LayersConfig(Table):
    """Feature spaces from early to late, and the readout that compares them."""

    order: list[str] = Field(min_length=1)
    readout: str = "linear"


class CompareConfig(Table):
    """Every feature space through every readout, ``[compare]``.

    ``readouts`` and ``cores`` are tables of tables as in `neuroenc.encoders.comparison.compare`; ``cells`` keeps only
    some. Every cell gets ``cv`` outer folds, the same ``validation`` share and ``n_candidates`` settings.
    ``training`` are arguments of `ReadoutEncoder` for all cells that are trained by gradients.
    """

    readouts: dict[str, dict[str, Any]] = Field({"linear": {}}, min_length=1)
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

    @model_validator(mode="after")
    def _known_readouts(self) -> Self:
        named = [("layers.readout", self.layers.readout)] if self.layers else []
        named += [("regions.readouts", name) for name in self.regions.readouts] if self.regions else []
        for where, name in named:
            if name not in self.readouts:
                raise ConfigError(unknown_name(f"value of {where}:", name, self.readouts))
        return self


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

    @model_validator(mode="after")
    def _regions_of_roi(self) -> Self:
        if self.kind == "roi" and not self.rois:
            raise ConfigError('kind = "roi" needs rois = ["..."].')
        return self


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
    max_length: Annotated[int, Field(ge=2, le=MOST)] = 40
    n: CountOrZero = 0
    centre: bool = True
    rerank: Annotated[float, Field(ge=0)] | None = None
    without: list[str] = []

    @field_validator("without")
    @classmethod
    def _known_concepts(cls, without: list[str]) -> list[str]:
        if without:
            from neuroenc.captions import load_lexicon

            concepts = [name for name in load_lexicon() if name != "ignore"]
            for concept in without:
                if concept not in concepts:
                    raise ConfigError(unknown_name("concept", concept, concepts))
        return without

    @model_validator(mode="after")
    def _groups_of_beams(self) -> Self:
        if self.kind != "retrieval" and self.beams % self.groups:
            raise ConfigError(f"groups = {self.groups} does not divide beams = {self.beams}; legal is a divisor.")
        return self


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
    null_voxels: Annotated[int, Field(ge=2, le=MOST)] = 100
    max_voxels: CountOrZero = 200

    @field_validator("folds", "bootstraps", "max_voxels")
    @classmethod
    def _not_one(cls, value: int) -> int:
        if value == 1:
            raise ConfigError("1 has nothing to be compared with; it must be 0 or at least 2.")
        return value


class AnalysisConfig(Table):
    """``words``: "auto" (spaCy where it is installed), "spacy" or "none". ``clusters``: regions to be split (all with
    at least ``min_voxels`` where empty and ``max_rois`` allows)."""

    words: Literal["auto", "spacy", "none"] = "auto"
    clusters: list[str] = []
    min_voxels: Annotated[int, Field(ge=2, le=MOST)] = 30
    max_rois: CountOrZero = 6
    contrast: list[str] = []

    @field_validator("contrast")
    @classmethod
    def _two(cls, contrast: list[str]) -> list[str]:
        if contrast and len(contrast) != 2:
            raise ConfigError(f"{contrast} is not legal; it must name two regions, or two subjects.")
        return contrast


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

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.decoder.kind != "retrieval" and not self.decoder.captioner:
            raise ConfigError(
                f'decoder.kind = "{self.decoder.kind}" needs decoder.captioner = "world", "photo" or a folder that '
                "PrefixDecoder.save wrote."
            )
        if self.space.stimuli == "captions" and self.bank.source == "stimuli":
            raise ConfigError('space.stimuli = "captions" needs bank.source = "captions" or a data set.')
        if self.bank.source == "captions" and self.decoder.caption_bank == "bank":
            raise ConfigError('decoder.caption_bank = "bank" and bank.source = "captions" name each other.')
        return self


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
