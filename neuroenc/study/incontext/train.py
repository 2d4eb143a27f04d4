"""``neuroenc icl pretrain | extend | finetune | predict``: a model from training subjects, and what it predicts."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neuroenc import data, stats
from neuroenc._core.device import resolve_device
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import atomic_path, hash_json, output_folder, read_json, sha256_file, write_json
from neuroenc._core.store import Store
from neuroenc._version import __version__
from neuroenc.encoders import check_space, feature_space
from neuroenc.encoders.incontext import (
    STAGES,
    Episode,
    EpisodeSource,
    InContextEncoder,
    InContextModel,
    MixedEpisodes,
    ResponseEpisodes,
    Stage,
    SyntheticEpisodes,
    load_model,
    make_model,
    save_model,
    train_stage,
    validation_episodes,
)
from neuroenc.study.config import StudyConfig
from neuroenc.study.incontext.subjects import (
    Part,
    incontext_of,
    load_parts,
    make_mixture,
    part_folders,
    prepared,
    read_matrix,
)
from neuroenc.study.preflight import preflight

#: A stage, and the stages that it may start from, nearest first.
BEFORE: dict[str, tuple[str, ...]] = {"pretrain": (), "extend": ("pretrain",), "finetune": ("extend", "pretrain")}


def incontext_train(
    config: StudyConfig,
    out: str | os.PathLike[str],
    stage: str,
    *,
    mirror: str | os.PathLike[str] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train an in-context encoder: one of the three stages of BraInCoRL.

    "pretrain": a new model on synthetic voxels, drawn from a mixture of priors of the training subjects. "extend": the
    pretrained model learns to read supports of any size. "finetune": episodes of real responses among the synthetic
    ones; the last training subject is not trained on, its episodes say which weights are kept. (It does count for the
    mixture of priors, as it does for empirical-Bayes ridge.) With one training subject, a fifth of its voxels do.

    Parameters
    ----------
    config : StudyConfig
        With ``[incontext]``, from `read_config` or `example_config`.
    out : path
        The study's folder. A stage writes ``STAGE/FORM/`` (in ``held-out-ANIMAL/`` for V4): the model
        (``model.safetensors``, ``model.json``), ``curves.csv``, ``curves.svg`` and ``summary.json``. A stage that was
        killed goes on when it is given again, and ends with the same files; one that is done is not repeated.
    stage : {"pretrain", "extend", "finetune"}
        The latter two start from the model that an earlier stage left in ``out``.
    mirror : path, optional
        Folder with data sets, tried before any download.
    progress : bool
    say : callable
        Callback for progress messages.

    Returns
    -------
    dict
        What ``summary.json`` of the (last) model holds: ``best_step``, ``validation_loss``, ``validation_ev``,
        ``n_parameters``, ``n_train_subjects``, ``n_train_voxels``, ``seconds``.

    Raises
    ------
    ConfigError
        Unknown stage, or there is no earlier model of this form in ``out``.

    References
    ----------
    Yu et al. Meta-learning an in-context transformer model of human higher visual cortex. NeurIPS 2025.
    """
    if stage not in BEFORE:
        raise ConfigError(unknown_name("stage", stage, BEFORE))
    preflight(config, f"icl {stage}", mirror)
    return _run(stage, config, output_folder(out), mirror, progress, say)


def stage_of(config: StudyConfig, name: str) -> Any:
    """Settings of a stage, what the config leaves out as published."""
    given = getattr(incontext_of(config), name)
    published = {**dataclasses.asdict(STAGES[name]), "real": 0.5 if name == "finetune" else 0.0}
    return given.model_copy(update={k: v for k, v in published.items() if getattr(given, k) is None})


def _run(
    name: str, config: StudyConfig, out: Path, mirror: Any, progress: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    say(f"{name}: {config.title}")
    summary: dict[str, Any] = {}
    # What can be known before any subject is made or read.
    resolve_device(stage_of(config, name).device)
    for folder in part_folders(config, out):
        _before(name, config, folder)
    for part in load_parts(config, out, mirror, progress, say, test=False):
        summary = _train(name, config, part, progress, say)
    return summary


def _train(name: str, config: StudyConfig, part: Part, progress: bool, say: Callable[[str], None]) -> dict[str, Any]:
    from neuroenc.report import figure_svg, plot_training_curves

    begin, wanted = time.perf_counter(), incontext_of(config).model
    stage = stage_of(config, name)
    folder = part.folder / name / wanted.form
    start = _before(name, config, part.folder)
    # The path of a folder is no setting: a study may be moved.
    key = hash_json(
        {
            "stage": stage.model_dump(),
            "model": wanted.model_dump(),
            "seed": config.seed,
            "data": part.digest,
            "start": None if start is None else sha256_file(start / "model.json"),
            "version": __version__,
        }
    )
    where = f"{part.name}/" if part.name else ""
    if (folder / "summary.json").is_file():
        done = _finished(folder, key)
        if done is not None:
            say(f"  {where}{name}/{wanted.form}: done before")
            return done
    _check_sizes(name, stage, part)
    mixture = make_mixture(config, part, Store(part.folder / ".steps"), say)
    source, held = _sources(stage, part, mixture)
    space = feature_space(part.tasks.train[0].X)
    if start is None:
        model = make_model(
            wanted.preset,
            prior=mixture,
            seed=wanted.seed,
            **wanted.changes(),
        )
        model.features = space
    else:
        model = load_model(start)
        check_space(model.features, part.tasks.train[0].X, f"the model of {start.parent.name}")
        model.features = model.features or space
    say(f"  {where}{name}: {model!r}, {len(part.tasks.train)} training subjects")
    found = train_stage(
        model,
        source,
        Stage(**{f.name: _pair(getattr(stage, f.name)) for f in dataclasses.fields(Stage)}),
        validation=held,
        seed=stage.seed,
        device=stage.device,
        precision=stage.precision,
        checkpoint=folder / ".training" / key[:16],
        progress=progress,
        max_seconds=60 * stage.minutes if stage.minutes else None,
    )
    save_model(model, folder, stage=name, settings=_settings(config, name), training_data=part.digest)
    with atomic_path(folder / "curves.csv") as path:
        found.curves.to_csv(path, index=False)
    with atomic_path(folder / "curves.svg") as path:
        path.write_bytes(figure_svg(plot_training_curves({name: found.curves})))
    best = found.curves.loc[found.curves["step"] == found.best_step, "validation_ev"]
    summary = {
        "stage": name,
        "form": wanted.form,
        "best_step": found.best_step,
        "steps": int(found.curves["step"].max()),
        "validation_loss": found.best_loss,
        "validation_ev": float(best.iloc[0]),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "n_train_subjects": len(part.tasks.train),
        "n_train_voxels": sum(int(s.Y.shape[1]) for s in part.tasks.train),
        "key": key,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    # Last: where it stands, the stage is done.
    write_json(folder / "summary.json", summary)
    say(
        f"  {where}{name}/{wanted.form}: validation explained variance {summary['validation_ev']:.4f} at step "
        f"{summary['best_step']} of {summary['steps']} ({summary['seconds']:.0f} s)"
    )
    return summary


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _finished(folder: Path, key: str) -> dict[str, Any] | None:
    """The summary of a stage of these inputs, if what it left is whole."""
    try:
        done: dict[str, Any] = read_json(folder / "summary.json")
        if done.get("key") != key:
            return None
        load_model(folder)
    except (DataError, AttributeError):
        return None
    return done if (folder / "curves.csv").is_file() else None


def _check_sizes(name: str, stage: Any, part: Part) -> None:
    """Episodes that the training subjects have enough stimuli for."""
    n = sum(len(s.X) for s in part.tasks.train)
    largest = max(stage.support[1], *stage.validation_sizes)
    if largest + stage.query > n:
        raise ConfigError(
            f"[{name}] wants episodes of {largest} support and {stage.query} query stimuli; the training subjects have "
            f"{n}. Next step: a smaller {name}.support, validation_sizes or query."
        )


def _before(name: str, config: StudyConfig, folder: Path) -> Path | None:
    form = incontext_of(config).model.form
    if not BEFORE[name]:
        return None
    for stage in BEFORE[name]:
        found = folder / stage / form
        if (found / "summary.json").is_file():
            return found
    raise ConfigError(
        f"{name} starts from a model of the form {form!r} that {' or '.join(BEFORE[name])} made; there is "
        f"none in {folder}. Next step: neuroenc icl {BEFORE[name][-1]} with the same config and --out."
    )


def _settings(config: StudyConfig, name: str) -> dict[str, Any]:
    """Settings of a model, without the folders of this machine."""
    task = incontext_of(config).task
    whom: dict[str, Any] = {"kind": task.kind, "options": task.options}
    if task.kind == "world":
        whom["seeds"] = task.seeds
    return {
        "task": whom,
        "model": incontext_of(config).model.model_dump(),
        name: stage_of(config, name).model_dump(),
        "seed": config.seed,
    }


def _sources(stage: Any, part: Part, mixture: Any) -> tuple[EpisodeSource, list[Episode] | None]:
    """Episodes to train on, and episodes of voxels that are kept apart."""
    subjects = [(s.X.values.astype(np.float32), s.Y.values.astype(np.float32)) for s in part.tasks.train]
    images = np.concatenate([x for x, _ in subjects])
    synthetic = SyntheticEpisodes(
        images, mixture, isotropic_share=stage.isotropic_share, ceiling=(stage.ceiling[0], stage.ceiling[1])
    )
    if not stage.real:
        return synthetic, _held(synthetic, stage)
    if len(subjects) > 1:
        learned, apart = subjects[:-1], subjects[-1:]
    else:
        ((x, y),) = subjects
        fifth = np.arange(y.shape[1]) % 5 == 4
        learned, apart = [(x, y[:, ~fifth])], [(x, y[:, fifth])]
    real = ResponseEpisodes(learned)
    both = MixedEpisodes([synthetic, real], [1 - stage.real, stage.real])
    return both, _held(ResponseEpisodes(apart), stage)


def _held(source: EpisodeSource, stage: Any) -> list[Episode]:
    return validation_episodes(
        source,
        stage.validation_sizes,
        n_voxels=stage.voxels,
        repeats=stage.validation_repeats,
        query=stage.query,
        seed=stage.seed + 1,
    )


def incontext_predict(
    config: StudyConfig,
    out: str | os.PathLike[str],
    *,
    mirror: str | os.PathLike[str] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Predict a new subject's responses from a few of its trials.

    Parameters
    ----------
    config : StudyConfig
        Its ``predict`` table: ``model``, and files of support ``features``, support ``responses`` and ``query``
        features; without files the task's first new subject, whose queries have responses to compare with.
    out : path
        Folder for predictions.nc (``predicted`` and, from anchored models, ``std``, the predictive standard deviation
        of a response), ``encoder/`` and summary.json.
    mirror, progress, say
        See `incontext_train`.

    Returns
    -------
    dict
        What summary.json holds: ``n_support``, ``n_query``, ``n_voxels``; ``median_std``; where the queries' responses
        are known ``mean_explained_variance``.
    """
    begin = time.perf_counter()
    preflight(config, "icl predict", mirror)
    out, settings = output_folder(out), incontext_of(config).predict
    resolve_device(settings.device)
    load_model(settings.model)
    X, Y, query, truth = _support(config, out, mirror, progress, say)
    encoder = InContextEncoder(
        settings.model, response_scale=settings.response_scale, device=settings.device, progress=progress
    ).fit(X, Y)
    model: InContextModel = encoder._conditioned()
    say(f"  {model!r}: {len(X)} support trials, {Y.shape[1]} voxels, {len(query)} queries")
    found: dict[str, Any] = {}
    if model.anchor is not None:
        found["predicted"], found["std"] = encoder.predict(query, return_std=True)
    else:
        found["predicted"] = encoder.predict(query)
    encoder.save(out / "encoder")
    data.save(xr.Dataset({k: v.rename(k) for k, v in found.items()}), out / "predictions.nc")
    summary: dict[str, Any] = {
        "model": Path(settings.model).name,
        "n_support": len(X),
        "n_query": len(query),
        "n_voxels": int(Y.shape[1]),
    }
    if "std" in found:
        summary["median_std"] = float(np.median(found["std"].values))
    if truth is not None:
        ev = stats.explained_variance(truth.values.astype(np.float64), found["predicted"].values)
        summary["mean_explained_variance"] = float(np.nanmean(ev))
        say(f"  mean explained variance of the queries: {summary['mean_explained_variance']:.4f}")
    summary["seconds"] = round(time.perf_counter() - begin, 1)
    write_json(out / "summary.json", summary)
    say(f"predictions: {out / 'predictions.nc'}   ({summary['seconds']:.0f} s)")
    return summary


def _support(
    config: StudyConfig, out: Path, mirror: Any, progress: bool, say: Callable[[str], None]
) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray, xr.DataArray | None]:
    """Support features and responses, query features, and the queries' responses where they are known."""
    settings = incontext_of(config).predict
    given = {k: getattr(settings, k) for k in ("features", "responses", "query")}
    if any(given.values()):
        missing = [k for k, v in given.items() if not v]
        if missing:
            raise ConfigError(f"predict needs features, responses and query together; {', '.join(missing)} missing.")
        Y = prepared(read_matrix(settings.responses, "responses"), incontext_of(config).task.zscore)
        X = data.match(read_matrix(settings.features, "features"), Y)
        query = read_matrix(settings.query, "query")
        check_space(feature_space(X), query, "those of the support")
        if query.shape[1] != X.shape[1]:
            raise DataError(f"query features have {query.shape[1]} dimensions, those of the support {X.shape[1]}.")
        both = np.intersect1d(X["stimulus"].values.astype(str), query["stimulus"].values.astype(str))
        if len(both):
            say(f"  {len(both)} of {len(query)} queries are stimuli of the support: their predictions are no test")
        return X, Y, query, None
    tasks = load_parts(config, out, mirror, progress, say)[0].tasks
    if not tasks.test:
        raise ConfigError("predict needs files (features, responses, query), or a task with a new subject.")
    subject = tasks.test[0]
    assert subject.X_query is not None
    n = settings.n_support
    if n > len(subject.X):
        raise ConfigError(f"predict.n_support = {n}; {subject.name} has {len(subject.X)} trials to draw from.")
    rows = np.sort(np.random.default_rng([config.seed, 5]).permutation(len(subject.X))[:n])
    say(f"  {subject.name}: {n} of its {len(subject.X)} trials")
    return subject.X[rows], subject.Y[rows], subject.X_query, subject.Y_query
