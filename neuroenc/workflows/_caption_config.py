"""Settings of voxel captions: one frozen dataclass a table of the TOML file, every key checked."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.workflows._config import DataConfig, EncoderConfig, absolute_data, check_data
from neuroenc.workflows._examples import example_names, read_example
from neuroenc.workflows._settings import SEED, Legal, absolute, build, check_world, read_table

__all__ = [
    "AnalysisConfig",
    "BankConfig",
    "CaptionConfig",
    "DecoderConfig",
    "GateConfig",
    "GroundingConfig",
    "HeldOutConfig",
    "ProjectionConfig",
    "SpaceConfig",
    "StabilityConfig",
    "example_caption_config",
    "list_caption_examples",
    "read_caption_config",
]


@dataclass(frozen=True)
class SpaceConfig:
    """The space that weights live in: ``model``, a joint image-text space ("world", "conse", or a CLIP of open_clip
    with ``pretrained``), or a text space ("minilm") with ``stimuli = "captions"``.

    ``stimuli``: what of a stimulus is embedded, its "image" or its "captions".
    """

    model: str
    pretrained: str = ""
    stimuli: Annotated[str, Legal(choices=("image", "captions"))] = "image"


@dataclass(frozen=True)
class HeldOutConfig:
    """Rows that the encoder does not see, on which it is scored and captions are judged.

    ``scheme``: "stimulus" (a ``share`` of the stimuli), "test" (the ids in ``test_ids``; of the simulated world those
    shown three times) or "run" and "session" (the last ``n_last`` of them).
    """

    scheme: Annotated[str, Legal(choices=("stimulus", "test", "run", "session"))] = "stimulus"
    share: Annotated[float, Legal(above=0, below=1)] = 0.2
    n_last: Annotated[int, Legal(least=1)] = 3
    test_ids: list[str] = field(default_factory=list)
    permutations: Annotated[int, Legal(least=0)] = 1000


@dataclass(frozen=True)
class GateConfig:
    """Who is captioned: ``kind`` "q" (predicted above chance at false discovery rate ``q``), "roi" (also: in one of
    ``rois``, above chance or not) or "none"; and never below ``min_ceiling_r`` where the ceiling is known."""

    kind: Annotated[str, Legal(choices=("q", "roi", "none"))] = "q"
    q: Annotated[float, Legal(above=0, below=1)] = 0.05
    rois: list[str] = field(default_factory=list)
    min_ceiling_r: Annotated[float, Legal(least=0, below=1)] = 0.0


@dataclass(frozen=True)
class BankConfig:
    """Natural images that weights are projected onto: ``source`` "stimuli" (those of the training rows), "unseen"
    (scenes of the simulated world that nobody saw), "captions" (texts, for a text space), a data set with images, or
    the folder that ``neuroenc bank build`` wrote."""

    source: str = "stimuli"


@dataclass(frozen=True)
class ProjectionConfig:
    """``method`` "softmax", "nearest", "denoiser" or "none" (a control), and the options of the softmax."""

    method: Annotated[str, Legal(choices=("softmax", "nearest", "denoiser", "none"))] = "softmax"
    temperature: Annotated[float, Legal(above=0)] = 1 / 150
    renormalise: bool = True
    decouple: bool = True


@dataclass(frozen=True)
class DecoderConfig:
    """``kind`` "prefix" (a language model), "corpus" (a language model whose every ``n`` words in a row, whole captions
    with 0, occur in the caption bank) or "retrieval".

    ``captioner``: "world", "photo", or a folder of `PrefixDecoder.save`. ``caption_bank``: "bank" (captions of the
    bank's images), "stimuli" (those of training rows), or a data set with captions. ``rerank``: weight of a caption's
    likeness to its embedding among the beams (default: the captioner's own). ``without``: concepts of the lexicon that
    no caption may name, such as "person" where the embeddings cannot show people.
    """

    kind: Annotated[str, Legal(choices=("prefix", "corpus", "retrieval"))] = "prefix"
    captioner: str = ""
    caption_bank: str = "bank"
    captions_per_stimulus: Annotated[int, Legal(least=1)] = 2
    top: Annotated[int, Legal(least=1)] = 3
    beams: Annotated[int, Legal(least=1)] = 6
    groups: Annotated[int, Legal(least=1)] = 3
    diversity: Annotated[str, Legal(choices=("hamming", "words"))] = "words"
    diversity_penalty: Annotated[float, Legal(least=0)] = 1.0
    method: Annotated[str, Legal(choices=("beam", "sample"))] = "beam"
    temperature: Annotated[float, Legal(above=0)] = 1.0
    top_p: Annotated[float, Legal(above=0, most=1)] = 0.8
    max_length: Annotated[int, Legal(least=2)] = 40
    n: Annotated[int, Legal(least=0)] = 0
    centre: bool = True
    rerank: Annotated[float | None, Legal(least=0)] = None
    without: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class GroundingConfig:
    """Phrases against the voxel's top images and against its weights; ``intervene`` also while they are written.

    ``phrases``: engine of :func:`neuroenc.captions.find_phrases`.
    """

    enabled: bool = True
    images: Annotated[int, Legal(least=1)] = 16
    intervene: bool = False
    phrases: Annotated[str, Legal(choices=("auto", "spacy", "rules", "syntactic"))] = "auto"


@dataclass(frozen=True)
class StabilityConfig:
    """Captions again: on ``folds`` disjoint parts of the bank, on ``bootstraps`` of the training stimuli, and on
    ``halves`` pairs of halves of them; 0 leaves a kind out.

    ``max_voxels``: captions are made again for so many of the captioned voxels, a random sample stratified by subject
    and region (0: for all of them). Every variant takes as long as the captions of these voxels did. ``null_voxels``:
    voxels whose weights are shuffled for the null.
    """

    folds: Annotated[int, Legal(least=0)] = 5
    bootstraps: Annotated[int, Legal(least=0)] = 5
    halves: Annotated[int, Legal(least=0)] = 1
    null_voxels: Annotated[int, Legal(least=2)] = 100
    max_voxels: int = 200


@dataclass(frozen=True)
class AnalysisConfig:
    """``words``: "auto" (spaCy where it is installed), "spacy" or "none". ``clusters``: regions to be split (all with
    at least ``min_voxels`` where empty and ``max_rois`` allows)."""

    words: Annotated[str, Legal(choices=("auto", "spacy", "none"))] = "auto"
    clusters: list[str] = field(default_factory=list)
    min_voxels: Annotated[int, Legal(least=2)] = 30
    max_rois: Annotated[int, Legal(least=0)] = 6
    contrast: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CaptionConfig:
    """A whole captioning of voxels."""

    space: SpaceConfig
    title: str = "Voxel captions"
    seed: Annotated[int, SEED] = 0
    notes: list[str] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    bank: BankConfig = field(default_factory=BankConfig)
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    grounding: GroundingConfig = field(default_factory=GroundingConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)


# Numbers of the simulated world, and what they are where nothing is said.
WORLD = {"n_subjects": 1, "n_train": 1400, "n_test": 200, "n_bank": 2000, "n_voxels": None, "world_seed": None}
_BANKS = ("stimuli", "unseen", "captions")


def read_caption_config(path: str | os.PathLike[str], overrides: list[str] | None = None) -> CaptionConfig:
    """Read the settings of ``neuroenc caption`` from TOML.

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
    >>> from neuroenc.workflows import example_caption_config
    >>> example_caption_config("world", ["decoder.top=1"]).decoder.top
    1
    """
    path = Path(path)
    config: CaptionConfig = build(CaptionConfig, read_table(path, overrides, "neuroenc caption --example world"))
    _check(config)
    return _absolute(config, path.resolve().parent)


def _check(config: CaptionConfig) -> None:
    check_data(config.data, ', or "world"')
    if config.data.name == "world":
        check_world("data.options", config.data.options, WORLD)
    if config.held_out.scheme == "test" and not config.held_out.test_ids and config.data.name != "world":
        raise ConfigError('[held_out] scheme = "test" needs test_ids.')
    if config.held_out.test_ids and config.held_out.scheme != "test":
        raise ConfigError(
            f'[held_out] test_ids are of scheme = "test", and scheme is "{config.held_out.scheme}". '
            "Next step: leave one of them out."
        )
    if config.gate.kind == "roi" and not config.gate.rois:
        raise ConfigError('[gate] kind = "roi" needs rois = ["..."].')
    if config.gate.kind == "q" and not config.held_out.permutations:
        raise ConfigError('[gate] kind = "q" needs [held_out] permutations above 0.')
    if config.decoder.kind != "retrieval" and not config.decoder.captioner:
        raise ConfigError(
            f'[decoder] kind = "{config.decoder.kind}" needs captioner = "world", "photo" or a folder that '
            "PrefixDecoder.save wrote."
        )
    if config.decoder.kind != "retrieval" and config.decoder.beams % config.decoder.groups:
        raise ConfigError(
            f"decoder.groups = {config.decoder.groups} does not divide decoder.beams = {config.decoder.beams}; "
            "legal is a divisor."
        )
    if config.analysis.contrast and len(config.analysis.contrast) != 2:
        raise ConfigError(
            f"analysis.contrast = {config.analysis.contrast} is not legal; it names two regions, or two subjects."
        )
    if config.decoder.without:
        from neuroenc.captions import load_lexicon

        concepts = [name for name in load_lexicon() if name != "ignore"]
        for concept in config.decoder.without:
            if concept not in concepts:
                raise ConfigError(unknown_name("concept in decoder.without:", concept, concepts))
    if config.bank.source == "unseen" and config.data.name != "world":
        raise ConfigError('[bank] source = "unseen" is for the simulated world. Next step: "stimuli" or a data set.')
    if config.space.stimuli == "captions" and config.bank.source == "stimuli":
        raise ConfigError('[space] stimuli = "captions" needs [bank] source = "captions" or a data set.')
    for name in ("folds", "bootstraps"):
        if getattr(config.stability, name) == 1:
            raise ConfigError(f"stability.{name} = 1 has nothing to agree with; legal is 0, or at least 2.")
    if config.stability.max_voxels < 0 or config.stability.max_voxels == 1:
        raise ConfigError(
            f"stability.max_voxels = {config.stability.max_voxels} is not legal: stability is measured on a sample of "
            "at least 2 voxels, or on all that are captioned (0). Next step: the default, 200."
        )


def _absolute(config: CaptionConfig, folder: Path) -> CaptionConfig:
    decoder, bank = config.decoder, config.bank
    captioner = Path(absolute(folder, decoder.captioner))
    if decoder.captioner and ((captioner / "decoder.json").is_file() or "/" in decoder.captioner):
        decoder = dataclasses.replace(decoder, captioner=str(captioner))
    # A folder that happens to be called "stimuli" is not meant.
    source = Path(absolute(folder, bank.source))
    if bank.source not in _BANKS and ("/" in bank.source or source.is_dir()):
        bank = dataclasses.replace(bank, source=str(source))
    return dataclasses.replace(config, data=absolute_data(config.data, folder), decoder=decoder, bank=bank)


def list_caption_examples() -> list[str]:
    """Names of the shipped configs of ``neuroenc caption``.

    >>> list_caption_examples()
    ['haxby', 'v4', 'world']
    """
    return example_names("examples_caption")


def example_caption_config(name: str, overrides: list[str] | None = None) -> CaptionConfig:
    """Settings of a shipped example."""
    return read_example("examples_caption", name, read_caption_config, overrides)
