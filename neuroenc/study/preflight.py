"""What can be known to be wrong before the first computation: files, data sets, models and packages of a config."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError, NeuroencError, unknown_name
from neuroenc._core.files import check_readable_file, read_npy
from neuroenc._core.optional import require
from neuroenc._core.tables import read_table
from neuroenc.embedding import ImageEmbedder, TextEmbedder
from neuroenc.retrieval import as_bank
from neuroenc.study.config import (
    COMPARED,
    CaptionsConfig,
    CompareConfig,
    DataConfig,
    FeaturesConfig,
    IncontextConfig,
    PlanConfig,
    StudyConfig,
)
from neuroenc.study.stages.load import check_array, feature_rows, image_embedder, sample_labels, text_embedder

#: Schemes of ``[evaluation]`` that make ``n_splits`` folds of stimuli.
_FOLDED = ("stimulus", "near-duplicates", "cluster")


def preflight(config: StudyConfig, command: str = "run", mirror: str | os.PathLike[str] | None = None) -> None:
    """Refuse what a command could not use, before anything is computed.

    Files are looked at (tables, shapes, pictures of every stimulus), not read; models are described, not loaded, but
    for a captioner that another project wrote.

    Parameters
    ----------
    command : {"run", "caption", "compare", "icl", "icl evaluate", "icl inspect", "icl predict", "plan"}
        Only what it reads is looked at.
    mirror : path, optional
        Folder with data sets, tried before any download.

    Examples
    --------
    >>> from neuroenc.study import example_config
    >>> preflight(example_config("v4", ["data.options.sesion=190923", "captions.enabled=false"]))
    Traceback (most recent call last):
        ...
    neuroenc._core.errors.ConfigError: unknown option of v4-cowley2023: 'sesion'; did you mean 'session'?...
    """
    if command.startswith("icl"):
        if config.incontext:
            _check_incontext(config.incontext, command)
        return
    if command == "plan":
        if config.plan:
            _check_plan(config.plan)
        return
    _check_data(config.data, mirror)
    _check_distance(config)
    labels = _check_responses(config)
    if command != "caption":
        for name, space in config.features.items():
            _check_space("features" if name == "features" else f"features.{name}", space, config.data, labels)
    kinds = {space.kind for space in config.features.values()}
    if command == "run" and kinds and kinds <= set(COMPARED):
        raise ConfigError(
            f"neuroenc run reads vectors of stimuli; [features] has only kind {', '.join(sorted(kinds))}, which "
            "comparisons read. Next step: neuroenc compare, or another kind (a space of your own captions: neuroenc "
            "space train ... --held-out FILE, and its folder as model)."
        )
    if command == "compare" and config.compare:
        _check_compare(config.compare, config.features)
    if command == "caption" and config.captions:
        _check_captions(config.captions, config)


def _check_data(config: DataConfig, mirror: str | os.PathLike[str] | None) -> None:
    if config.name in ("world", "movie"):
        return
    if config.name:
        manifest = data.load_manifest(config.name)
        legal = data.loader_options(manifest)
        for option in (*config.options, *config.join):
            if option not in legal and option != "root":
                raise ConfigError(unknown_name(f"option of {config.name}:", option, [*legal, "root"]))
        root = config.options.get("root")
        if root and not Path(str(root)).expanduser().is_dir():
            raise DataError(f"[data.options] root: no folder {root}. Next step: check the path.")
        if not root and not manifest.files and data.presence(manifest, mirror) == "no":
            raise DataError(
                f"{manifest.name} cannot be fetched: {manifest.access} Next step: tell where it is, "
                "--set data.options.root=FOLDER."
            )
        return
    check_array(config.responses, "[data] responses")
    # A region may be one label of an image: "areas.nii.gz:3".
    for key, name in (("mask", config.mask), *((f"rois.{k}", str(v)) for k, v in config.rois.items())):
        if name:
            check_readable_file(re.sub(r":[^/:]*$", "", name) if not Path(name).exists() else name, f"[data] {key}")
    if config.images and not os.path.isdir(config.images):
        raise DataError(f"[data] images: {config.images} is no folder. Next step: check the path.")


def _check_distance(config: StudyConfig) -> None:
    """Split files, and the pictures that a scheme compares."""
    evaluation = config.evaluation
    for file in evaluation.files:
        data.read_split(file, evaluation.sets)
    if evaluation.space == "pixels" or (evaluation.scheme == "near-duplicates" and not evaluation.space):
        _needs("evaluation", f'scheme = "{evaluation.scheme}" by pixels', config.data, True, False)


def _check_responses(config: StudyConfig) -> np.ndarray | None:
    """Stimulus of every row of the user's own responses, where a table has them."""
    source, evaluation = config.data, config.evaluation
    if source.captions:
        read_table(source.captions, ["stimulus", "caption"], what="[data] captions")
    columns = _columns(source)
    if columns is None:
        return None
    needed: dict[str, str] = {"[evaluation] scheme": evaluation.scheme, "[data] zscore": source.zscore}
    needed |= {"[encoder] cv": config.encoder.cv} if isinstance(config.encoder.cv, str) else {}
    for where, name in needed.items():
        if name in ("run", "session", "subject", "repeat") and name not in columns:
            table = f"a column {name} in {source.samples}" if source.samples else f"{name} numbers of the responses"
            raise ConfigError(f'{where} = "{name}" needs {table}; found {", ".join(columns)}.')
    labels = columns["stimulus"]
    if source.images:
        data.find_pictures(source.images, np.unique(labels))
    if evaluation.scheme == "test":
        missing = sorted(set(evaluation.test_ids) - set(labels))
        if missing:
            raise ConfigError(unknown_name("stimulus in [evaluation] test_ids:", missing[0], np.unique(labels)))
    elif evaluation.scheme in _FOLDED and len(np.unique(labels)) < max(2, evaluation.n_splits):
        raise DataError(
            f"[evaluation] n_splits = {evaluation.n_splits} needs as many stimuli; the samples have "
            f"{len(np.unique(labels))}."
        )
    return labels


def _columns(source: DataConfig) -> dict[str, np.ndarray] | None:
    """Labels of the samples by name, as text: of the table, or the coordinates of a .nc."""
    if not source.samples:
        return _coordinates(source.responses)
    labels = {name: values.astype(str) for name, values in sample_labels(source).items()}
    n, rows = _n_rows(source), len(labels["stimulus"])
    if n is not None and n != rows:
        raise DataError(f"{source.responses} has {n} samples, the table {source.samples} {rows} rows; they must agree.")
    return labels


def _coordinates(name: str) -> dict[str, np.ndarray] | None:
    """Coordinates of the rows of a .nc, whose values are not read; None where the loader has to say what it is."""
    if not name.endswith(".nc"):
        return None
    try:
        with xr.open_dataset(name, engine="h5netcdf") as found:
            if "stimulus" not in found.coords:
                return None
            rows = found["stimulus"].dims
            return {str(k): v.values.astype(str) for k, v in found.coords.items() if v.dims == rows}
    except Exception:
        return None


def _n_rows(source: DataConfig) -> int | None:
    """Samples of a .npy or a 4-D NIfTI, by their headers; None for what the loader tells better."""
    if source.responses.endswith(".npy"):
        shape = read_npy(source.responses, "[data] responses").shape
        return shape[0] if len(shape) == 2 else None
    if source.responses.endswith((".nii", ".nii.gz")):
        import nibabel

        try:
            shape = nibabel.load(source.responses).shape  # type: ignore[attr-defined]
        except Exception as error:
            raise DataError(f"[data] responses {source.responses} is no NIfTI that can be read: {error}") from error
        if len(shape) != 4:
            raise DataError(f"[data] responses {source.responses} has shape {shape}; expected 4 dimensions.")
        return int(shape[3])
    return None


def _check_space(where: str, config: FeaturesConfig, source: DataConfig, labels: np.ndarray | None) -> None:
    if config.kind == "join":
        return  # each of its spaces is looked at by itself
    if config.kind == "file":
        check_array(config.file, f"[{where}] file")
        columns = _coordinates(config.file)
        ids = columns["stimulus"] if columns else None
        if config.samples:
            ids = feature_rows(config, f"[{where}]")[1]
        missing = sorted(set(labels.tolist()) - set(ids)) if labels is not None and ids is not None else []
        if missing:
            raise DataError(
                f"[{where}] {config.samples or config.file} lacks {len(missing)} stimuli, first {missing[0]!r}."
            )
        return
    if config.kind == "series":
        read_table(config.file, ["time"], what=f"[{where}] file")
    images, captions = config.kind in ("image", "pixels"), config.kind in ("captions", "aspects", "trained")
    _needs(where, f'kind = "{config.kind}"', source, images, captions)
    with _named(f"{where}.model"):
        if config.kind == "image":
            image_embedder(config)
        elif config.kind in ("captions", "aspects", "dense"):
            text_embedder(config)
    if config.kind == "aspects":
        require("spacy", "language")
    if config.kind == "dense" and config.table:
        read_table(config.table, ("stimulus", "row", "column", "caption"), what=f"[{where}] table")


def _needs(where: str, what: str, source: DataConfig, images: bool, captions: bool) -> None:
    """Pictures and captions of the user's own stimuli, where a setting asks for them."""
    for name, wanted in (("images", images), ("captions", captions)):
        if wanted and source.responses and not getattr(source, name):
            raise ConfigError(f"[{where}] {what} needs [data] {name}.")


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Errors say which setting asked for what failed."""
    try:
        yield
    except NeuroencError as error:
        raise type(error)(f"{where}: {error}") from error


def _check_set(where: str, name: str, own: tuple[str, ...], also: str = "") -> None:
    if name in own:
        return
    if also and "/" in name:
        raise ConfigError(f"{where}: no folder {name}. Next step: {also}, or one of {', '.join(own)}.")
    known = [m.name for m in data.list_manifests()]
    if name not in known:
        raise ConfigError(unknown_name(f"value of {where}:", name, [*own, *known]))


def _check_captions(captions: CaptionsConfig, config: StudyConfig) -> None:
    space, decoder, bank = captions.space, captions.decoder, captions.bank.source
    if captions.analysis.words == "spacy":
        require("spacy", "language")
    _needs(
        "captions.space",
        f'stimuli = "{space.stimuli}"',
        config.data,
        space.stimuli == "image",
        space.stimuli == "captions",
    )
    if captions.retrieval.enabled:
        # BM25 stands beside every answer.
        require("bm25s", "language")
        if captions.retrieval.retriever:
            _check_captioner("captions.retrieval.retriever", captions.retrieval.retriever)
    texts = bank if decoder.caption_bank == "bank" else decoder.caption_bank
    if decoder.kind != "prefix" and texts == "stimuli":
        _needs("captions.decoder", f'kind = "{decoder.kind}"', config.data, False, True)
    if not os.path.isdir(bank):
        _check_set("captions.bank.source", bank, ("stimuli", "unseen", "captions"), "the folder of a bank")
    elif (decoder.kind != "prefix" or captions.retrieval.enabled) and decoder.caption_bank == "bank":
        what = f'kind = "{decoder.kind}"' if decoder.kind != "prefix" else "[captions.retrieval] enabled = true"
        raise ConfigError(
            f"[captions.decoder] {what} needs captions, and the folder {bank} has none. Next step: "
            'caption_bank = "coco-captions-val2017", or kind = "prefix" without retrieval.'
        )
    else:
        with _named("captions.bank.source"):
            as_bank(bank)
    _check_set("captions.decoder.caption_bank", decoder.caption_bank, ("bank", "stimuli", "unseen"))
    if decoder.writes:
        _check_captioner("captions.decoder.captioner", decoder.captioner, decoder.tokenizer)
    _check_regions(captions, config.data)
    with _named("captions.space.model"):
        if space.stimuli == "image":
            ImageEmbedder(space.model, space.pretrained or None)
        TextEmbedder(space.model, space.pretrained or None)


def _check_captioner(where: str, name: str, tokenizer: str = "") -> None:
    shipped = ("world", "photo")
    if os.path.isfile(name):
        from neuroenc.captions import load_captioner

        # What a foreign file holds, and whether its tokenizer is on this machine, is known once it is read.
        with _named(where):
            load_captioner(name, tokenizer=tokenizer or None, device="cpu")
        return
    if not (name in shipped or os.path.isdir(name)):
        legal = (*shipped, "a folder of PrefixDecoder.save", "a file in ClipCap's layout")
        raise ConfigError(unknown_name(f"value of {where}:", name, legal))
    if tokenizer:
        raise ConfigError(f"captions.decoder.tokenizer belongs to a file in ClipCap's layout, and {where} is {name!r}.")
    if name not in shipped:
        check_readable_file(Path(name) / "decoder.json", "captioner")


def _check_regions(captions: CaptionsConfig, source: DataConfig) -> None:
    """Regions by name, where the config itself says which there are."""
    if not source.rois:
        return
    regions = captions.gate.rois if captions.gate.kind == "roi" else []
    for where, names in (("captions.gate.rois", regions), ("captions.analysis.clusters", captions.analysis.clusters)):
        for name in names:
            if name not in source.rois:
                raise ConfigError(unknown_name(f"region in {where}:", name, source.rois))


def _check_compare(compare: CompareConfig, features: Mapping[str, FeaturesConfig]) -> None:
    from neuroenc.study.stages.compare import cells_of

    cells = {cell.name for cell in cells_of(compare, features)}
    step = "Next step: more compare.cells, or leave the table out."
    for name in compare.layers.order if compare.layers else ():
        cell = f"{name}/{compare.layers.readout}" if compare.layers else ""
        if cell not in cells:
            raise ConfigError(f"[compare.layers] needs the cell {cell}, not in the grid. {step}")
    if compare.regions:
        spaces = (compare.regions.vision, compare.regions.dense, compare.regions.single)
        ways = compare.regions.readouts or list(compare.readouts)
        whole = [way for way in ways if all(f"{space}/{way}" in cells for space in spaces)]
        if not whole or (compare.regions.readouts and len(whole) < len(ways)):
            raise ConfigError(
                f"[compare.regions] needs {', '.join(spaces)} through one readout; found {whole or 0}. {step}"
            )


def _check_incontext(config: IncontextConfig, command: str) -> None:
    from neuroenc.encoders.incontext import PRESETS
    from neuroenc.study.incontext.tasks import check_v4_sessions
    from neuroenc.study.incontext.train import BEFORE, check_episodes, training_stage

    task = config.task
    with _named("incontext.model"):
        dataclasses.replace(PRESETS[config.model.preset], **config.model.changes())
    for name in BEFORE:
        training_stage(config, name)
    for part in ("train", "test"):
        for n, files in enumerate(getattr(task, part)):
            for key in ("features", "responses", "query_features", "query_responses"):
                if getattr(files, key):
                    check_array(getattr(files, key), f"[[incontext.task.{part}]] {n + 1} {key}")
    for animal in task.held_out if task.kind == "v4" else ():
        with _named("incontext.task.held_out"):
            check_v4_sessions(animal, task.options.get("sessions"))
    new = {"world": task.test_seeds, "v4": task.held_out, "arrays": task.test}[task.kind]
    if command in ("icl evaluate", "icl inspect") and not new:
        raise ConfigError(
            f"{command.split()[-1]} needs new subjects: [[incontext.task.test]] tables, test_seeds or held_out."
        )
    if command == "icl predict":
        _check_predict(config, bool(new))
    elif task.kind == "world":
        options = {"n_train_subjects": 3, "n_train": 1000} | task.options
        n = options["n_train_subjects"] * options["n_train"] * len(task.seeds)
        # Without a command, the stages that the config speaks of.
        spoken = config.model_fields_set if command == "icl" else {command.removeprefix("icl ")}
        for name in (name for name in BEFORE if name in spoken):
            check_episodes(config, name, n)


def _check_predict(config: IncontextConfig, new: bool) -> None:
    given = {k: getattr(config.predict, k) for k in ("features", "responses", "query")}
    missing = [k for k, v in given.items() if not v]
    if 0 < len(missing) < 3:
        raise ConfigError(
            f"[incontext.predict] needs features, responses and query together; {', '.join(missing)} missing."
        )
    if len(missing) == 3 and not new:
        raise ConfigError("predict needs files (features, responses, query), or a task with a new subject.")
    for key, name in given.items():
        if name:
            check_array(name, f"[incontext.predict] {key}")


def _check_plan(config: PlanConfig) -> None:
    from neuroenc.study.stages.plan import read_prior

    with _named("plan.prior"):
        read_prior(config.prior)
    if config.pool != "world" and not (Path(config.pool).is_dir() and Path(config.pool).suffix != ".zarr"):
        check_array(config.pool, "[plan] pool")
    for key in ("target", "seen"):
        if getattr(config, key):
            check_array(getattr(config, key), f"[plan] {key}")
    if config.exclude_file:
        check_readable_file(config.exclude_file, "[plan] exclude_file")
    if config.pictures and not Path(config.pictures).is_dir():
        raise DataError(f"[plan] pictures: no folder {config.pictures}. Next step: check the path.")
