"""Settings of what is fitted and how it is scored: ``[data] [features] [encoder] [evaluation]``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc._core.memory import parse_memory
from neuroenc.study.config.table import MOST, Count, CountOrZero, Device, File, ModelName, Share, Table

#: Options of ``[data] name = "world"``, the simulated world: what each is where nothing is said, and its least value.
WORLD: dict[str, tuple[float | None, int]] = {
    "n_subjects": (1, 1),
    "n_train": (1400, 1),
    "n_test": (200, 0),
    "n_repeats": (1, 1),
    "n_bank": (2000, 0),
    "n_voxels": (None, 1),
    "world_seed": (None, 0),
    # Captions of studies are judged by what was planted: voxels are what their region makes them.
    "own": (0.0, 0),
}
#: Options of ``[data] name = "movie"``, a simulated BOLD series: as of `WORLD`.
MOVIE: dict[str, tuple[float | None, int]] = {
    "n_runs": (6, 2),
    "n_volumes": (150, 30),
    "n_features": (8, 1),
    "n_voxels": (400, 8),
}


def _check_memory(text: str) -> str:
    if text:
        parse_memory(text)
    return text


class RegionConfig(Table):
    """One or several labels of an image of regions: ``{ file = "floc.nii.gz", label = 1 }``.

    Attributes
    ----------
    file
        NIfTI image of labels, on the grid of the responses.
    label
        The region's label, or a list of labels that together are the region.
    """

    file: str
    label: int | list[int]

    def __str__(self) -> str:
        labels = self.label if isinstance(self.label, list) else [self.label]
        return f"{self.file}:{','.join(map(str, labels))}"


class DataConfig(Table):
    """Responses and stimuli: a named data set, the simulated world, or your own files.

    Attributes
    ----------
    name
        A data set of ``neuroenc data list``, "world": simulated subjects who see rendered scenes, or "movie": a
        simulated BOLD time series.
    options
        Arguments of the data set's loader (``neuroenc data show NAME`` lists them), such as ``root`` and ``subject``.
        Of the world: ``n_subjects``, ``n_train``, ``n_test`` (stimuli shown three times), ``n_repeats``, ``n_bank``
        (scenes that nobody sees), ``n_voxels``, ``world_seed``. Of the movie: ``n_runs``, ``n_volumes`` (of a run),
        ``n_features``, ``n_voxels``.
    join
        One option of the data set and its values, ``{ session = ["190923", "190925"] }``: each is loaded as a subject
        with voxels of its own, NaN where it did not see a stimulus. Equal pictures are one stimulus.
    responses
        Your responses: a .nc or .zarr that `neuroenc.data.save` wrote, a .nc of Brain-Score (an assembly), a .npy
        (sample, voxel), or a 4-D NIfTI of single-trial betas.
    samples
        For .npy and NIfTI: CSV with a column ``stimulus`` and optionally ``subject``, ``session``, ``run``, ``repeat``;
        one row a sample, in the order of the responses.
    mask
        For NIfTI: 3-D image whose nonzero voxels are analysed.
    rois
        For NIfTI: regions by name. A 3-D image, ``"labels.nii.gz:1"`` (the voxels of one label), or ``{ file =
        "labels.nii.gz", label = 1 }``. For voxels with vertices: the name of an atlas, ``rois = "wang15"``; the same as
        ``atlas``.
    atlas
        For voxels with vertices, of a data set too: an atlas of `neuroenc.data.list_atlases`, whose regions are added.
    images
        Folder of the pictures; a file's name without its ending is its stimulus' id.
    captions
        CSV with the columns ``stimulus`` and ``caption``; a stimulus may have several.
    zscore
        Standardise each voxel's responses within session or run. "auto": within session where single trials have
        sessions and were not standardised before, within run where rows are volumes of a time series.
    detrend
        Of a time series: take slow drifts out of each run, by "cosine" (a basis up to ``high_pass``), "linear" or
        "savgol" (a Savitzky-Golay filter).
    high_pass
        Hz.
    trim
        Of a time series: volumes that are dropped from the beginning and the end of each run, such as [5, 5].
    average
        Average the repeats of a stimulus before fitting, unless runs or sessions are left out.
    """

    name: str = ""
    options: dict[str, Any] = {}
    join: dict[str, list[str | int]] = {}
    responses: File = ""
    samples: File = ""
    mask: File = ""
    rois: dict[str, File | RegionConfig] = {}
    atlas: str = ""
    images: File = ""
    captions: File = ""
    zscore: Literal["auto", "none", "session", "run"] = "auto"
    detrend: Literal["none", "cosine", "linear", "savgol"] = "none"
    high_pass: Annotated[float, Field(gt=0, lt=1)] = 0.01
    trim: Annotated[list[CountOrZero], Field(min_length=2, max_length=2)] = [0, 0]
    average: bool = True

    @model_validator(mode="before")
    @classmethod
    def _atlas_by_name(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and isinstance(given.get("rois"), str):
            if given.get("atlas"):
                raise ConfigError(f"rois = {given['rois']!r} and atlas = {given['atlas']!r}; leave one of them out.")
            return {**{k: v for k, v in given.items() if k != "rois"}, "atlas": given["rois"]}
        return given

    @field_validator("atlas")
    @classmethod
    def _known_atlas(cls, name: str) -> str:
        if name:
            from neuroenc.data import list_atlases

            known = list_atlases().index
            if name not in known:
                raise ConfigError(unknown_name("atlas", name, known))
        return name

    @field_validator("rois")
    @classmethod
    def _spell_regions(cls, rois: dict[str, str | RegionConfig]) -> dict[str, str]:
        return {name: str(region) for name, region in rois.items()}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.name and self.responses:
            raise ConfigError('needs either name (a data set, or "world") or responses (your file); found both.')
        own = [k for k in ("samples", "mask", "rois", "images", "captions") if getattr(self, k)]
        if self.name and own:
            raise ConfigError(f"{', '.join(own)} belong to responses of your own; {self.name!r} has its own.")
        if self.join and (not self.name or len(self.join) != 1):
            raise ConfigError(f"join = {self.join!r} needs name, and one option of that data set with its values.")
        if self.name in ("world", "movie"):
            self._check_world(WORLD if self.name == "world" else MOVIE)
        if self.responses:
            self._check_files()
        return self

    def _check_world(self, legal: Mapping[str, tuple[float | None, int]]) -> None:
        if self.join:
            raise ConfigError(
                "join is of data sets; simulated ones are made by options (of the world: n_subjects = 2)."
            )
        for name, value in self.options.items():
            if name not in legal:
                raise ConfigError(unknown_name("setting in data.options:", name, legal))
            where = f"data.options.{name}"
            if name == "own":
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                    raise ConfigError(f"{where} = {value!r} is not legal; it must be a share, from 0 to below 1.")
                continue
            check_whole(where, value if isinstance(value, int) else str(value), legal[name][1])
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


#: Kinds of feature spaces that comparisons read, and runs do not.
COMPARED = ("pixels", "dense", "join", "trained")
#: Keys of a feature space that each kind reads, besides ``standardise``.
FEATURES = {
    "image": ("model", "pretrained", "layer", "layers", "pooling", "normalise", "preprocessing"),
    "captions": ("model", "pretrained", "layer", "normalise", "prompt", "system"),
    "aspects": ("model", "pretrained", "layer", "normalise", "prompt", "system", "aspects"),
    "dense": ("model", "pretrained", "layer", "normalise", "prompt", "system", "grid", "table"),
    "join": ("spaces", "grid"),
    "trained": ("train", "settings"),
    "pixels": ("size",),
    "file": ("file", "samples"),
    "series": ("file", "resample"),
    "columns": ("columns",),
}
#: Keys of a feature space that every kind reads.
ALWAYS = ("kind", "standardise", "delays")


class FeaturesConfig(Table):
    """One feature space. ``[features.NAME]``, one table a space; a single ``[features]`` table is the space "features".

    Attributes
    ----------
    kind
        "image": a layer of a vision model. "captions", or "text": text embeddings, averaged over the captions of a
        stimulus.
        "aspects": text embeddings of the words of captions that name scene, objects, actions or attributes, each a
        space of its own (`neuroenc.captions.aspect_bands`; needs spaCy).
        "dense": text embeddings of captions of ``grid`` x ``grid`` cells, a map. "join": other spaces side by side.
        "trained": a text space of the stimuli's own captions, trained anew in each outer fold of a comparison on its
        training stimuli. "pixels": the pictures themselves, for trained cores. "file": features of your own.
        "series": features of your own with times of their own (frames, words), brought to the volumes of a time series.
        "columns": numbers of the data set's table of stimuli. Left out: "file" where there is a ``file``, "join" where
        there are ``spaces``, "trained" where there is ``train``, else "image".
    model
        Name of a model: "world", "conse", "conse-concepts", "minilm", "efficientnet-lite0", "gabor", "contrast",
        "colour", "torchvision:alexnet", "timm:resnet50.a1_in1k", an open_clip architecture, or the folder of a space
        that ``neuroenc space train`` wrote.
    pretrained
        Weights of an open_clip model, such as "openai".
    layer
        Layer of the model; its last embedding where left out. Of a text model the mean over its tokens. Of a nested
        space also its first dimensions, "first64".
    layers
        Several layers of an image model, each a feature space ``NAME.LAYER`` of its own; one forward pass of each image
        serves all.
    pooling
        Of an intermediate layer: "mean" over places, "cls", "tokens", "map", or n for averages over n x n cells. Left
        out: as the layer gives it.
    normalise
        Scale each stimulus' features to unit length.
    prompt
        Of texts: a template, or several whose vectors are averaged, with {} where the text stands: "a photo of {}".
    system
        Of texts: instruction of a language model with a chat template (``model = "hf-dir:PATH"``), whose user says the
        prompt.
    standardise
        Scale each feature to mean 0 and variance 1 over the training rows.
    delays
        Of a time series: volumes by which responses follow, such as [2, 3, 4]; features of all of them stand side by
        side, so that weights are a finite impulse response.
    preprocessing
        Changes of the model's preprocessing, such as ``{ size = 112 }`` pixels.
    aspects
        Of "aspects": which ones, each a feature space ``NAME.ASPECT``.
    size
        Of "pixels": pixels a side.
    grid
        Of "dense": cells a side. Of "join": maps are brought to so many cells a side, and a vector, such as that of a
        whole caption, is the same in all of them; where only vectors are joined, they stay vectors.
    spaces
        Of "join": names of the spaces, such as dense captions and single ones for one readout of both.
    train
        Of "trained": kind of space, such as "ppmi"; see `neuroenc.embedding.train_space`.
    settings
        Of "trained": settings of that kind, such as ``{ dims = 100 }``.
    table
        Of "dense": CSV with the columns ``stimulus``, ``row``, ``column``, ``caption``; the simulated world has its
        own.
    file
        Of "file": a .nc or .zarr that `neuroenc.data.save` wrote, or a .npy (row, feature). Of "series": a CSV with the
        columns ``time`` (s), ``run`` and ``session`` where there are several, and one a feature.
    samples
        Of a .npy: CSV whose column ``stimulus`` names its rows; rows of one stimulus must be equal.
    resample
        Of "series": "lanczos" (low-pass), "mean" of the samples in a volume, or "nearest".
    columns
        Of "columns": names; all columns of numbers where left out.
    """

    kind: Literal[
        "", "image", "captions", "aspects", "dense", "join", "trained", "pixels", "file", "series", "columns"
    ] = ""
    model: ModelName = "efficientnet-lite0"
    pretrained: str = ""
    layer: str = ""
    layers: list[str] = []
    pooling: str | Count = ""
    normalise: bool = False
    prompt: str | list[str] = ""
    system: str = ""
    standardise: bool = True
    preprocessing: dict[str, Any] = {}
    aspects: list[Literal["scene", "objects", "actions", "attributes"]] = ["scene", "objects", "actions", "attributes"]
    size: Annotated[int, Field(ge=1, le=4096)] = 64
    grid: Annotated[int, Field(ge=1, le=256)] = 8
    spaces: list[str] = []
    train: str = ""
    settings: dict[str, Any] = {}
    table: File = ""
    file: File = ""
    samples: File = ""
    delays: list[int] = []
    resample: Literal["lanczos", "mean", "nearest"] = "lanczos"
    columns: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _resolve_kind(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("kind") == "text":
            return {**given, "kind": "captions"}
        if isinstance(given, Mapping) and given.get("kind", "") == "":
            says = {"file": "file", "spaces": "join", "train": "trained"}
            return {**given, "kind": next((kind for key, kind in says.items() if given.get(key)), "image")}
        return given

    @model_validator(mode="after")
    def _only_what_is_read(self) -> Self:
        read = FEATURES[self.kind]
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name not in (*ALWAYS, *read) and value != field.default:
                raise ConfigError(
                    f'{name} = {value!r} is not read with kind = "{self.kind}", which reads {", ".join(read)}. '
                    "Next step: leave it out, or set another kind."
                )
        if self.kind == "join" and len(set(self.spaces)) < 2:
            raise ConfigError(f'kind = "join" needs two spaces or more; found {self.spaces}.')
        if self.kind == "trained":
            if not self.train:
                raise ConfigError('kind = "trained" needs train, the kind of space. Next step: train = "ppmi".')
            from neuroenc.embedding import space_settings

            space_settings(self.train, self.settings)
        if self.kind in ("file", "series") and not self.file:
            example = "features.nc" if self.kind == "file" else "words.csv"
            raise ConfigError(f'kind = "{self.kind}" needs file = "{example}".')
        if len(set(self.delays)) < len(self.delays):
            raise ConfigError(f"delays = {self.delays} name one twice.")
        if "model" in read and not self.model:
            raise ConfigError('model = "" names no model. Next step: model = "efficientnet-lite0".')
        if Path(self.file).suffix == ".npy" and not self.samples:
            raise ConfigError(
                f"file = {Path(self.file).name!r} has no labels and needs samples, a CSV whose column stimulus names "
                "its rows (for one row a trial, the table of the responses)."
            )
        return self


class EncoderConfig(Table):
    """Ridge regression from features to voxels.

    Attributes
    ----------
    kind
        The estimator.
    alphas
        Penalties to choose from for each voxel; empty: a grid that follows the scale of the features.
    cv
        Folds that choose the penalty, or a column of the samples whose values are left out in turn, such as "run".
    reduce
        "pca": fit on the first principal components of the features; "projection": on a sparse random projection. Both
        are made of each outer fold's training rows; weights and captions are about the features as they come.
    n_components
        Of ``reduce``.
    scoring
        What chooses the penalty: explained variance, negative mean squared error, or Pearson correlation.
    max_memory
        Limit of intermediate arrays, such as "4GB"; results do not depend on it. Empty: a share of the free memory.
    device
        "cpu" (NumPy), "auto", "cuda", "mps" or another torch device.
    """

    kind: Literal["ridge"] = "ridge"
    alphas: list[Annotated[float, Field(gt=0)]] = []
    cv: Annotated[int, Field(ge=2, le=MOST)] | str = 5
    reduce: Literal["", "pca", "projection"] = ""
    n_components: Count = 100
    scoring: Literal["r2", "neg_mse", "r"] = "r2"
    max_memory: Annotated[str, AfterValidator(_check_memory)] = ""
    device: Device = "cpu"


#: Schemes that read a key of ``[evaluation]``.
_READ_BY = {
    "test_ids": ("test",),
    "space": ("near-duplicates", "cluster", "matched"),
    "files": ("file",),
    "column": ("column",),
    "sets": ("file", "column"),
    "gap": ("block",),
}


class EvaluationConfig(Table):
    """Held-out rows, accuracy and its permutation test.

    Attributes
    ----------
    scheme
        What is left out: stimuli, runs or sessions in folds, or the stimuli of ``test_ids``. "near-duplicates": stimuli
        in folds that keep near duplicates together; "cluster": one cluster of features (k-means) at a time; "matched":
        a test set whose features are distributed as those of the training stimuli; "file": test sets of ``files``;
        "column": stimuli by a column of their table, such as their category. "block": pieces of each run of a time
        series, ``n_splits`` of them.
    gap
        Of "block": volumes beside a test block that are not trained on.
    n_splits
        Folds; with 1 there is one held-out split. Captions come from an encoder that was fitted without the first fold.
        Of "cluster": the clusters. Not read by "matched", "file" and "column".
    share
        With ``n_splits = 1``, and of "matched": share of the stimuli that is held out.
    n_last
        With ``n_splits = 1``: how many of the last runs or sessions are held out.
    test_ids
        Of "test": ids of stimuli, or the name of a test set of the data, such as "shared1000" of NSD.
    space
        In which stimuli are compared by "near-duplicates", "cluster" and "matched": "pixels" (small grey pictures), or
        a feature space by its name. Left out: pixels for near duplicates, else the first feature space.
    threshold
        Similarity (cosine less the mean over stimuli) from which two pictures are near duplicates, for that scheme and
        for the report.
    files
        Of "file": JSON, TOML or CSV files of stimulus ids by test set, a fold each; split files of re:vision are read
        as they are (`neuroenc.data.read_split`).
    column
        Of "column": a column of the table of stimuli, or a coordinate of the responses.
    sets
        Of "file" and "column": test sets (values of the column) to take. "column" without them leaves out one value at
        a time; with them, all of these at once, scored each by itself.
    leakage
        Tell how far each test stimulus is from the nearest training stimulus, and list near duplicates.
    random_splits
        Random splits with folds and sets of the same sizes, whose accuracy stands beside that of each set.
    learning_curve
        Numbers of training stimuli at which the encoder is fitted besides; empty: not asked.
    permutations
        Permutations of the test of each voxel's correlation; 0 leaves the test out.
    permutation_mode
        "samples" shuffles all rows, "within" the rows of a run or session; "shift" rotates each run in time, which
        keeps the autocorrelation of a time series; "whole" exchanges runs and needs ``scheme = "test"``. "auto":
        "shift" for time series, else "samples".
    permutation_null
        Null of cross-validated predictions: "refit" predicts every voxel's permuted responses anew; "shared" uses one
        set of normal scores for all voxels, at a cost that does not grow with them; "auto" shares from 1000 rows on,
        except for voxels with heavy tails.
    q
        False discovery rate at which a voxel counts as predicted.
    """

    scheme: Literal[
        "stimulus", "run", "session", "test", "block", "near-duplicates", "cluster", "matched", "file", "column"
    ] = "stimulus"
    gap: CountOrZero = 10
    n_splits: Count = 5
    share: Share = 0.2
    n_last: Count = 3
    test_ids: list[str] = []
    space: str = ""
    threshold: Share = 0.95
    files: list[File] = []
    column: str = ""
    sets: list[str] = []
    leakage: bool = True
    random_splits: CountOrZero = 0
    learning_curve: list[Annotated[int, Field(ge=10, le=MOST)]] = []
    permutations: CountOrZero = 1000
    permutation_mode: Literal["auto", "samples", "within", "whole", "shift"] = "auto"
    permutation_null: Literal["auto", "refit", "shared"] = "auto"
    q: Share = 0.05

    @model_validator(mode="after")
    def _only_what_the_scheme_reads(self) -> Self:
        mode, legal = self.permutation_mode, {"whole": ("test",), "shift": ("test", "run", "session", "block")}
        if self.scheme not in legal.get(mode, (self.scheme,)):
            raise ConfigError(
                f'permutation_mode = "{mode}" needs scheme {" or ".join(legal[mode])}; found "{self.scheme}". '
                'Next step: "samples" or "within".'
            )
        for name, schemes in _READ_BY.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.scheme not in schemes:
                told = " or ".join(f'"{scheme}"' for scheme in schemes)
                raise ConfigError(
                    f"{name} {'are' if name.endswith('s') else 'is'} of scheme = {told}, and scheme is "
                    f'"{self.scheme}". Next step: leave one of them out.'
                )
        for name, scheme in (("files", "file"), ("column", "column")):
            if self.scheme == scheme and not getattr(self, name):
                raise ConfigError(f'scheme = "{scheme}" needs {name}.')
        if self.scheme == "cluster" and self.n_splits < 2:
            raise ConfigError('scheme = "cluster" leaves out one of n_splits clusters at a time; found n_splits = 1.')
        if self.scheme == "block" and self.n_splits < 2:
            raise ConfigError('scheme = "block" needs n_splits of at least 2.')
        if self.learning_curve != sorted(set(self.learning_curve)):
            raise ConfigError(f"learning_curve = {self.learning_curve} must rise.")
        for name, schemes in (("share", ("stimulus", "near-duplicates", "matched")), ("n_last", ("run", "session"))):
            read = (self.n_splits == 1 or self.scheme == "matched") and self.scheme in schemes
            if not read and getattr(self, name) != type(self).model_fields[name].default:
                raise ConfigError(
                    f"{name} = {getattr(self, name)} is read with n_splits = 1 and scheme {' or '.join(schemes)}; "
                    f'found n_splits = {self.n_splits} and "{self.scheme}". Next step: leave it out, or n_splits = 1.'
                )
        return self


class DecodeConfig(Table):
    """Identification of the held-out stimuli from measured responses, by the predictions of ``neuroenc run``.

    Attributes
    ----------
    metrics
        Likeness of predicted and measured responses: correlation or cosine over voxels, or the likelihood under the
        noise covariance of the training rows' leave-one-out residuals.
    shrinkage
        Of the noise covariance, from 0 (as measured) to 1 (independent voxels); by default after Ledoit and Wolf.
    regions
        Also decode from each region alone (with at least 5 voxels).
    voxels
        Also decode from so many voxels.
    choose
        Which: those that are predicted best within the training rows, or any, drawn at random.
    sizes
        Numbers of candidates to choose among; empty: 2, 5, 10, 20, 50, ... up to all held-out stimuli of a fold.
    top
        k of top-k accuracy among all candidates.
    blocks
        Labels are permuted within runs or sessions; empty: freely.
    permutations
        Of the test against chance; 0 leaves it out.
    """

    metrics: Annotated[list[Literal["correlation", "likelihood", "cosine"]], Field(min_length=1)] = [
        "correlation",
        "likelihood",
    ]
    shrinkage: Annotated[float, Field(ge=0, le=1)] | None = None
    regions: bool = True
    voxels: list[Count] = []
    choose: Literal["best", "random"] = "best"
    sizes: list[Annotated[int, Field(ge=2, le=MOST)]] = []
    top: list[Count] = [1, 5]
    blocks: Literal["", "run", "session"] = ""
    permutations: CountOrZero = 1000
