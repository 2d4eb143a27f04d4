"""Settings of a run: one frozen dataclass a table of the TOML file, every key checked."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc._core.memory import parse_memory
from neuroenc.workflows._examples import example_names, read_example
from neuroenc.workflows._settings import SEED, Legal, absolute, build as _build, check_device, read_table

__all__ = [
    "CaptionsConfig",
    "DataConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FeaturesConfig",
    "RunConfig",
    "absolute_data",
    "check_data",
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
    rois: dict[str, Any] = field(default_factory=dict)
    images: str = ""
    captions: str = ""
    zscore: Annotated[str, Legal(choices=("auto", "none", "session", "run"))] = "auto"
    average: bool = True


@dataclass(frozen=True)
class FeaturesConfig:
    """Feature space: ``kind`` image, captions or file; ``model``, ``layer``, ``pooling`` and ``preprocessing`` as in
    `neuroenc.embedding.ImageEmbedder`.

    ``kind`` may be left out: it is file where there is a ``file``, else image. ``file`` is a .nc or .zarr written by
    `neuroenc.data.save`, or a .npy (row, feature) with ``samples``, a CSV whose column stimulus names its rows; where
    a stimulus has several rows (one a trial), they must be equal.
    """

    kind: Annotated[str, Legal(choices=("image", "captions", "file"))] = ""
    model: str = "efficientnet-lite0"
    pretrained: str = ""
    layer: str = ""
    pooling: Annotated[str | int, Legal(least=1)] = ""
    normalise: bool = False
    standardise: bool = True
    preprocessing: dict[str, Any] = field(default_factory=dict)
    file: str = ""
    samples: str = ""

    def __post_init__(self) -> None:
        kind = self.kind or ("file" if self.file else "image")
        object.__setattr__(self, "kind", kind)
        for setting in dataclasses.fields(self):
            plain = setting.default if setting.default_factory is dataclasses.MISSING else setting.default_factory()
            unread = setting.name not in ("kind", "standardise", *_READ.get(kind, ()))
            if unread and getattr(self, setting.name) != plain:
                raise ConfigError(
                    f'[features] {setting.name} = {getattr(self, setting.name)!r} is not read with kind = "{kind}", '
                    f"which reads {', '.join(_READ[kind])}. Next step: leave it out, or set another kind."
                )
        if Path(self.file).suffix == ".npy" and not self.samples:
            raise ConfigError(
                f"[features] file = {Path(self.file).name!r} has no labels and needs samples, a CSV whose column "
                "stimulus names its rows (for one row a trial, the table of the responses)."
            )


# What each kind of feature space reads; `neuroenc compare` knows all of them.
_READ = {
    "image": ("model", "pretrained", "layer", "pooling", "normalise", "preprocessing"),
    "captions": ("model", "pretrained", "normalise"),
    "dense": ("model", "pretrained", "normalise", "grid", "table"),
    "pixels": ("size",),
    "file": ("file", "samples"),
}


@dataclass(frozen=True)
class EncoderConfig:
    """Ridge regression; ``alphas`` empty means a grid that follows the features' scale."""

    kind: Annotated[str, Legal(choices=("ridge",))] = "ridge"
    alphas: Annotated[list[float], Legal(above=0)] = field(default_factory=list)
    cv: Annotated[int | str, Legal(least=2)] = 5
    scoring: Annotated[str, Legal(choices=("r2", "neg_mse", "r"))] = "r2"
    max_memory: Annotated[str, Legal(check=parse_memory)] = ""
    device: Annotated[str, Legal(check=check_device)] = "cpu"


@dataclass(frozen=True)
class EvaluationConfig:
    """Outer folds: ``scheme`` stimulus, run, session or test (the ids in ``test_ids``); permutation test.

    ``test_ids`` may hold one name instead: a test set of the data, such as "shared1000" of NSD.

    ``permutation_mode`` "samples" shuffles all rows, "within" those of a run (or session); "whole" and "shift" exchange
    or rotate blocks and need ``scheme = "test"``. ``permutation_null`` of the other schemes: "refit" predicts every
    voxel's permuted responses anew, "shared" one set of normal scores for all voxels, at a cost that does not grow with
    them; "auto" shares from 1000 rows on, except for voxels with heavy tails.
    """

    scheme: Annotated[str, Legal(choices=("stimulus", "run", "session", "test"))] = "stimulus"
    n_splits: Annotated[int, Legal(least=2)] = 5
    test_ids: list[str] = field(default_factory=list)
    permutations: Annotated[int, Legal(least=0)] = 1000
    permutation_mode: Annotated[str, Legal(choices=("samples", "within", "whole", "shift"))] = "samples"
    permutation_null: Annotated[str, Legal(choices=("auto", "refit", "shared"))] = "auto"
    q: Annotated[float, Legal(above=0, below=1)] = 0.05


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
    captions_per_stimulus: Annotated[int, Legal(least=1)] = 1
    gate: Annotated[str, Legal(choices=("q", "roi", "none"))] = "q"
    rois: list[str] = field(default_factory=list)
    top: Annotated[int, Legal(least=1)] = 5
    evidence: Annotated[int, Legal(least=0)] = 6
    temperature: Annotated[float, Legal(above=0)] = 1 / 150
    centre: bool = True


@dataclass(frozen=True)
class RunConfig:
    """A whole run."""

    title: str = "Voxelwise encoding"
    seed: Annotated[int, SEED] = 0
    notes: list[str] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    captions: CaptionsConfig | None = None


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
    check_data(data)
    if features.kind != "file" and not features.model:
        raise ConfigError('[features] model = "" names no model. Next step: model = "efficientnet-lite0".')
    if features.kind == "file" and not features.file:
        raise ConfigError('[features] kind = "file" needs file = "features.nc".')
    if config.evaluation.scheme == "test" and not config.evaluation.test_ids:
        raise ConfigError('[evaluation] scheme = "test" needs test_ids.')
    if config.evaluation.scheme != "test" and config.evaluation.permutation_mode in ("whole", "shift"):
        raise ConfigError(
            f'[evaluation] permutation_mode = "{config.evaluation.permutation_mode}" needs scheme = "test"; with '
            'cross-validation use "samples" or "within".'
        )
    if config.evaluation.test_ids and config.evaluation.scheme != "test":
        raise ConfigError(
            f'[evaluation] test_ids are of scheme = "test", and scheme is "{config.evaluation.scheme}". '
            "Next step: leave one of them out."
        )
    if config.captions and config.captions.gate == "q" and not config.evaluation.permutations:
        raise ConfigError('[captions] gate = "q" needs [evaluation] permutations above 0.')
    if config.captions and config.captions.gate == "roi" and not config.captions.rois:
        raise ConfigError('[captions] gate = "roi" needs rois = ["..."].')


def check_data(data: DataConfig, also: str = "") -> None:
    """``[data]`` names one source, and nothing that this source does not read.

    ``also`` says which further source there is.
    """
    if bool(data.name) == bool(data.responses):
        found = "both" if data.name else "neither"
        raise ConfigError(f"[data] needs either name (a data set{also}) or responses (your file); found {found}.")
    given = [k for k in ("samples", "mask", "rois", "images", "captions") if getattr(data, k)]
    if data.name:
        if given:
            raise ConfigError(f"[data] {', '.join(given)} belong to responses of your own; {data.name!r} has its own.")
        return
    if data.options:
        raise ConfigError(f"[data] options {sorted(data.options)} belong to a data set (name = ...), not to a file.")
    name = Path(data.responses).name.lower()
    kind = next((x for x in (".nc", ".zarr", ".npy", ".nii", ".nii.gz") if name.endswith(x)), None)
    if kind is None:
        ending = Path(name).suffix
        raise ConfigError(unknown_name("ending of [data] responses:", ending, (".nc", ".zarr", ".npy", ".nii.gz")))
    volume = kind.startswith(".nii")
    if volume and not data.mask:
        raise ConfigError(f"[data] responses = {name!r} is a volume and needs mask.")
    if kind in (".nc", ".zarr") and data.samples:
        raise ConfigError(f"[data] samples is not read: {name} has labels of its own. Next step: leave samples out.")
    if kind not in (".nc", ".zarr") and not data.samples:
        raise ConfigError(f"[data] responses = {name!r} needs samples, a CSV with a column stimulus.")
    if not volume and (data.mask or data.rois):
        raise ConfigError(
            f"[data] mask and rois are of volumes (.nii.gz); responses is {name}. Next step: leave them out."
        )


D = TypeVar("D", bound=DataConfig)


def absolute_data(data: D, folder: Path) -> D:
    """``[data]`` whose file names are relative to ``folder`` no more."""

    def full(name: str) -> str:
        return absolute(folder, name)

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
        file, samples = absolute(folder, features.file), absolute(folder, features.samples)
        features = dataclasses.replace(features, file=file, samples=samples)
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
