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
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import atomic_path, hash_json, output_folder, read_json, sha256_file, write_json
from neuroenc._version import __version__
from neuroenc.encoders._labels import check_space, feature_space
from neuroenc.encoders.incontext import (
    InContextEncoder,
    InContextModel,
    MixedEpisodes,
    ResponseEpisodes,
    SyntheticEpisodes,
    load_model,
    make_model,
    save_model,
    train_stage,
    validation_episodes,
)
from neuroenc.encoders.incontext._episodes import Episode, EpisodeSource
from neuroenc.workflows._icl_config import IclConfig, StageConfig
from neuroenc.workflows._icl_inputs import Part, load_parts, make_mixture, part_folders, prepared, read_matrix

__all__ = ["BEFORE", "icl_extend", "icl_finetune", "icl_predict", "icl_pretrain"]

#: A stage, and the stages that it may start from, nearest first.
BEFORE: dict[str, tuple[str, ...]] = {"pretrain": (), "extend": ("pretrain",), "finetune": ("extend", "pretrain")}


def icl_pretrain(
    config: IclConfig,
    out: str | os.PathLike[str],
    *,
    mirror: str | os.PathLike[str] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """First stage: a new model on synthetic voxels, drawn from a mixture of priors of the training subjects.

    Parameters
    ----------
    config : IclConfig
        From `read_icl_config` or `example_icl_config`.
    out : path
        The study's folder. A stage writes ``STAGE/FORM/`` (in ``held-out-ANIMAL/`` for V4): the model
        (``model.safetensors``, ``model.json``), ``curves.csv``, ``curves.svg`` and ``summary.json``. A stage that was
        killed goes on when it is given again, and ends with the same files; one that is done is not repeated.
    mirror : path, optional
        Folder with data sets, tried before any download.
    progress : bool
    say : callable
        Gets the lines that the command prints.

    Returns
    -------
    dict
        What ``summary.json`` of the (last) model holds: ``best_step``, ``validation_loss``, ``validation_ev``,
        ``n_parameters``, ``n_train_subjects``, ``n_train_voxels``, ``seconds``.
    """
    return _run("pretrain", config, output_folder(out), mirror, progress, say)


def icl_extend(
    config: IclConfig,
    out: str | os.PathLike[str],
    *,
    mirror: str | os.PathLike[str] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Second stage: the pretrained model learns to read supports of any size.

    Parameters
    ----------
    config, out, mirror, progress, say
        As in `icl_pretrain`, whose model stands in ``out``.

    Returns
    -------
    dict
        As `icl_pretrain`.

    Raises
    ------
    ConfigError
        There is no pretrained model of this form in ``out``.
    """
    return _run("extend", config, output_folder(out), mirror, progress, say)


def icl_finetune(
    config: IclConfig,
    out: str | os.PathLike[str],
    *,
    mirror: str | os.PathLike[str] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Third stage: episodes of real responses among the synthetic ones; see `icl_pretrain`.

    The last training subject is not trained on: its episodes say which weights are kept. (It does count for the
    mixture of priors, as it does for empirical-Bayes ridge.) With one training subject, a fifth of its voxels do.

    Parameters
    ----------
    config, out, mirror, progress, say
        As in `icl_pretrain`; the model of the second stage, or of the first, stands in ``out``.

    Returns
    -------
    dict
        As `icl_pretrain`.

    Raises
    ------
    ConfigError
        There is no earlier model of this form in ``out``.
    """
    return _run("finetune", config, output_folder(out), mirror, progress, say)


def _run(
    name: str, config: IclConfig, out: Path, mirror: Any, progress: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    say(f"{name}: {config.title}")
    summary: dict[str, Any] = {}
    # What can be known before any subject is made or read.
    resolve_device(getattr(config, name).device)
    for folder in part_folders(config, out):
        _before(name, config, folder)
    for part in load_parts(config, out, mirror, progress, say, test=False):
        summary = _train(name, config, part, progress, say)
    return summary


def _train(name: str, config: IclConfig, part: Part, progress: bool, say: Callable[[str], None]) -> dict[str, Any]:
    from neuroenc.report import figure_svg, plot_training_curves

    begin = time.perf_counter()
    stage: StageConfig = getattr(config, name)
    folder = part.folder / name / config.model.form
    start = _before(name, config, part.folder)
    # The path of a folder is no setting: a study may be moved.
    key = hash_json(
        {
            "stage": dataclasses.asdict(stage),
            "model": dataclasses.asdict(config.model),
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
            say(f"  {where}{name}/{config.model.form}: done before")
            return done
    _check_sizes(name, stage, part)
    mixture = make_mixture(config, part, say)
    source, held = _sources(stage, part, mixture)
    space = feature_space(part.tasks.train[0].X)
    if start is None:
        model = make_model(config.model.preset, prior=mixture, seed=config.model.seed, **config.model.changes())
        model.features = space
    else:
        model = load_model(start)
        check_space(model.features, part.tasks.train[0].X, f"the model of {start.parent.name}")
        model.features = model.features or space
    say(f"  {where}{name}: {model!r}, {len(part.tasks.train)} training subjects")
    found = train_stage(
        model,
        source,
        stage.stage(),
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
        "form": config.model.form,
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
        f"  {where}{name}/{config.model.form}: validation explained variance {summary['validation_ev']:.4f} at step "
        f"{summary['best_step']} of {summary['steps']} ({summary['seconds']:.0f} s)"
    )
    return summary


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


def _check_sizes(name: str, stage: StageConfig, part: Part) -> None:
    """Episodes that the training subjects have enough stimuli for."""
    n = sum(len(s.X) for s in part.tasks.train)
    largest = max(stage.support[1], *stage.validation_sizes)
    if largest + stage.query > n:
        raise ConfigError(
            f"[{name}] wants episodes of {largest} support and {stage.query} query stimuli; the training subjects have "
            f"{n}. Next step: a smaller {name}.support, validation_sizes or query."
        )


def _before(name: str, config: IclConfig, folder: Path) -> Path | None:
    if not BEFORE[name]:
        return None
    for stage in BEFORE[name]:
        found = folder / stage / config.model.form
        if (found / "summary.json").is_file():
            return found
    raise ConfigError(
        f"{name} starts from a model of the form {config.model.form!r} that {' or '.join(BEFORE[name])} made; there is "
        f"none in {folder}. Next step: neuroenc icl {BEFORE[name][-1]} with the same config and --out."
    )


def _settings(config: IclConfig, name: str) -> dict[str, Any]:
    """Settings of a model, without the folders of this machine."""
    task = config.task
    whom: dict[str, Any] = {"kind": task.kind, "options": task.options}
    if task.kind == "world":
        whom["seeds"] = task.seeds
    return {
        "task": whom,
        "model": dataclasses.asdict(config.model),
        name: dataclasses.asdict(getattr(config, name)),
        "seed": config.seed,
    }


def _sources(stage: StageConfig, part: Part, mixture: Any) -> tuple[EpisodeSource, list[Episode] | None]:
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


def _held(source: EpisodeSource, stage: StageConfig) -> list[Episode]:
    return validation_episodes(
        source,
        stage.validation_sizes,
        n_voxels=stage.voxels,
        repeats=stage.validation_repeats,
        query=stage.query,
        seed=stage.seed + 1,
    )


def icl_predict(
    config: IclConfig,
    out: str | os.PathLike[str],
    *,
    mirror: str | os.PathLike[str] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Predict a new subject's responses from a few of its trials.

    Parameters
    ----------
    config : IclConfig
        Its ``predict`` table: ``model``, and files of support ``features``, support ``responses`` and ``query``
        features; without files the task's first new subject, whose queries have responses to compare with.
    out : path
        Folder for predictions.nc (``predicted`` and, from anchored models, ``std``, the predictive standard deviation
        of a response), ``encoder/`` and summary.json.
    mirror, progress, say
        See `icl_pretrain`.

    Returns
    -------
    dict
        What summary.json holds: ``n_support``, ``n_query``, ``n_voxels``; ``median_std``; where the queries' responses
        are known ``mean_explained_variance``.
    """
    begin = time.perf_counter()
    out, settings = output_folder(out), config.predict
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
    config: IclConfig, out: Path, mirror: Any, progress: bool, say: Callable[[str], None]
) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray, xr.DataArray | None]:
    """Support features and responses, query features, and the queries' responses where they are known."""
    settings = config.predict
    given = {k: getattr(settings, k) for k in ("features", "responses", "query")}
    if any(given.values()):
        missing = [k for k, v in given.items() if not v]
        if missing:
            raise ConfigError(f"predict needs features, responses and query together; {', '.join(missing)} missing.")
        Y = prepared(read_matrix(settings.responses, "responses"), config.task.zscore)
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
