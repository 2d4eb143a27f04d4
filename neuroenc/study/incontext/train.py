"""Training of in-context encoders: three stages, each from the model of the one before."""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neuroenc import stats
from neuroenc._core.checks import one_of
from neuroenc._core.device import resolve_device
from neuroenc._core.errors import ConfigError, DataError, NeuroencError, unknown_name
from neuroenc._core.files import hash_json, read_json, sha256_file, write_json, write_text
from neuroenc._core.tables import write_table
from neuroenc._version import __version__
from neuroenc.data.simulate import Nuisances
from neuroenc.encoders import check_space, feature_space
from neuroenc.encoders.incontext import (
    STAGES,
    Episode,
    EpisodeSource,
    InContextEncoder,
    InContextModel,
    MixedEpisodes,
    ResponseEpisodes,
    Stage as TrainingStage,
    SyntheticEpisodes,
    load_model,
    make_model,
    make_stage,
    save_model,
    train_stage,
    validation_episodes,
)
from neuroenc.encoders.merge import merge_incontext
from neuroenc.study.config import IncontextConfig
from neuroenc.study.incontext.subjects import Part, make_mixture, part_folders
from neuroenc.study.study import Stage, Study

#: A stage of training, and those that it may start from, nearest first.
BEFORE: dict[str, tuple[str, ...]] = {"pretrain": (), "extend": ("pretrain",), "finetune": ("extend", "pretrain")}


def stage_of(config: IncontextConfig, name: str) -> Any:
    """Settings of a stage, what the config leaves out as published."""
    given = getattr(config, name)
    real = {"pretrain": 0.0, "extend": 0.0, "finetune": 1.0 if config.model.experts else 0.5}
    published = {**dataclasses.asdict(STAGES[name]), "real": real[name]}
    left = {k: list(v) if isinstance(v, tuple) else v for k, v in published.items() if getattr(given, k) is None}
    return given.model_copy(update=left)


def training_stage(config: IncontextConfig, name: str) -> TrainingStage:
    """A stage as training takes it."""
    known = {f.name for f in dataclasses.fields(TrainingStage)}
    try:
        return make_stage(name, **stage_of(config, name).model_dump(include=known))
    except NeuroencError as error:
        raise ConfigError(f"[incontext.{name}] {error}") from error


def check_episodes(config: IncontextConfig, name: str, n: int) -> None:
    """Refuse a stage whose episodes want more stimuli than the training subjects have, ``n`` in all."""
    stage = stage_of(config, name)
    largest = max(stage.support[1], *stage.validation_sizes)
    if largest + stage.query > n:
        raise ConfigError(
            f"[incontext.{name}] wants episodes of {largest} support and {stage.query} query stimuli; the training "
            f"subjects have {n}. Next step: a smaller support, validation_sizes or query."
        )


def check_start(study: Study, name: str) -> None:
    """Refuse a device that is not there, and a stage without the one before, before any subject is made or read."""
    config = study.table("incontext")
    resolve_device(stage_of(config, name).device)
    for folder in part_folders(study):
        _start(name, config, folder)


def _start(name: str, config: IncontextConfig, folder: Path) -> Path | None:
    """Folder of the model that a stage starts from (or a shipped one's name); None where it makes its own."""
    form = config.model.form
    if not BEFORE[name]:
        return None
    if name == "finetune" and config.merge and config.merge.base:
        return Path(config.merge.base)
    for earlier in BEFORE[name]:
        found = folder / earlier / form
        if (found / "summary.json").is_file():
            return found
    raise ConfigError(
        f"{name} starts from a model of the form {form!r} that {' or '.join(BEFORE[name])} made; there is "
        f"none in {folder}. Next step: neuroenc icl {BEFORE[name][-1]} with the same config and --out."
    )


def _train_all(study: Study, name: str) -> dict[str, Any]:
    return {"training": [_train(study, name, part) for part in study.parts]}


_READS = ("parts", "config.incontext", "config.seed")
#: Training stages by name, for ``neuroenc icl pretrain | extend | finetune``; their models lie in the study's folder.
TRAINING = {name: Stage(name, partial(_train_all, name=name), _READS, ("training",)) for name in BEFORE}


def _train(study: Study, name: str, part: Part) -> dict[str, Any]:
    from neuroenc.report import figure_svg, plot_training_curves

    begin, config, seed, train = time.perf_counter(), study.table("incontext"), study.config.seed, part.tasks.train
    wanted, stage, told = config.model, stage_of(config, name), "/".join(x for x in (part.name, name) if x)
    folder, start = part.folder / name / wanted.form, _start(name, config, part.folder)
    for subject in train if wanted.experts else ():
        legal = [str(k) for k, v in subject.Y.coords.items() if v.dims in ((), ("voxel",))]
        one_of(f"voxel coordinate of {subject.name}, model.experts =", wanted.experts, legal)
    experts = wanted.experts if name == "finetune" else ""
    described = wanted.model_dump(exclude=None if experts else {"experts"})
    merge = config.merge if name == "finetune" else None
    tuned = {k: load_model(v) for k, v in merge.models.items()} if merge else {}
    # The path of a folder is no setting: a study may be moved.
    key = hash_json(
        {
            "stage": stage.model_dump(),
            "model": described,
            "seed": seed,
            "data": part.digest,
            "start": _content(start),
            "version": __version__,
        }
        | (
            {"merge": [merge.model_dump(exclude={"base", "models"}), [m.content_hash() for m in tuned.values()]]}
            if merge
            else {}
        )
    )
    if (done := _finished(folder, key)) is not None:
        study.say(f"  {told}/{wanted.form}: done before")
        return done
    check_episodes(config, name, sum(len(s.X) for s in train))
    mixture = make_mixture(study, part)
    source, held, groups = _sources(stage, part, mixture, experts)
    space = feature_space(train[0].X)
    if start is None:
        model = make_model(wanted.preset, prior=mixture, seed=wanted.seed, **wanted.changes())
        model.features = space
    else:
        model = load_model(start)
        check_space(model.features, train[0].X, f"the model of {start.parent.name}")
        model.features = model.features or space
    if merge:
        for label, other in tuned.items():
            check_space(other.features, train[0].X, f"the model {label!r} of [incontext.merge]")
        made = merge_incontext(
            model,
            tuned,
            source,
            way=merge.way,
            labels=merge.labels,
            voxels=stage.voxels,
            support=(stage.support[0], stage.support[1]),
            query=stage.query,
            n_steps=merge.steps,
            lr=merge.lr,
            seed=stage.seed,
        )
        assert isinstance(made.model, InContextModel)
        model, coefficients = made.model, made.coefficients.to_series().rename("coefficient").reset_index()
        study.say(f"  {told}: {len(tuned)} models merged, mean coefficients {_means(made.coefficients)}")
    if groups and not model.config.experts:
        model = model.upcycle(groups)
    study.say(f"  {told}: {model!r}, {len(train)} training subjects")
    found = train_stage(
        model,
        source,
        training_stage(config, name),
        validation=held,
        **stage.model_dump(include={"seed", "device", "precision"}),
        checkpoint=folder / ".training",
        progress=study.progress,
        max_seconds=60 * stage.minutes if stage.minutes else None,
    )
    judged = _judge(model, held) if model.anchor is not None else {}
    task = config.task
    # Without the folders of this machine.
    settings = {
        "task": {"kind": task.kind, "options": task.options} | ({"seeds": task.seeds} if task.kind == "world" else {}),
        "model": described,
        name: stage.model_dump(),
        "seed": seed,
    }
    save_model(model, folder, stage=name, settings=settings, training_data=part.digest)
    write_table(found.curves, folder / "curves.csv")
    if merge:
        write_table(coefficients, folder / "merge.csv")
    write_text(folder / "curves.svg", figure_svg(plot_training_curves({name: found.curves})).decode())
    best = found.curves.loc[found.curves["step"] == found.best_step, "validation_ev"]
    summary = {
        "stage": name,
        "form": wanted.form,
        "best_step": found.best_step,
        "steps": int(found.curves["step"].max()),
        "validation_loss": found.best_loss,
        "validation_ev": float(best.iloc[0]),
        **judged,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "n_train_subjects": len(train),
        "n_train_voxels": sum(int(s.Y.shape[1]) for s in train),
        "key": key,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    # Last: where it stands, the stage is done.
    write_json(folder / "summary.json", summary)
    study.say(
        f"  {told}/{wanted.form}: validation explained variance {summary['validation_ev']:.4f} at step "
        f"{summary['best_step']} of {summary['steps']} ({summary['seconds']:.0f} s)"
    )
    if model.config.silent:
        study.say(
            f"    the network stays silent: held-out episodes {judged['validation_ev_network']:.4f} with it, "
            f"{judged['validation_ev_closed_form']:.4f} by its closed form alone"
        )
    return summary


def _content(start: Path | None) -> str | None:
    """What decides the model that a stage starts from."""
    if start is None:
        return None
    return sha256_file(start / "model.json") if (start / "model.json").is_file() else f"shipped {start}"


def _means(coefficients: Any) -> str:
    means = coefficients.mean("block")
    return ", ".join(f"{name} {float(value):.2f}" for name, value in zip(means["model"].values, means.values))


def _judge(model: InContextModel, held: list[Episode]) -> dict[str, Any]:
    """Silence a network that does not predict held-out episodes better than its closed form; both accuracies.

    As in use: voxels of an episode share what they say about levels.
    """
    found = {}
    for name, silent in (("closed_form", True), ("network", False)):
        # What a refined model reads is for stimuli that come after the support, as an episode's do.
        queries = "after" if model.gain is not None else "among"
        encoder, shares = InContextEncoder(model.silence(silent), queries=queries, response_scale="as-is"), []
        for e in held:
            encoder.set_params(expert=e.group if model.config.experts else None).fit(e.x.numpy(), e.y.T.numpy())
            predicted = encoder.predict(e.xq.numpy()).astype(float)
            shares.append(stats.explained_variance(e.yq.T.double().numpy(), predicted).mean())
        found[f"validation_ev_{name}"] = float(np.mean(shares))
    model.silence(found["validation_ev_network"] <= found["validation_ev_closed_form"])
    return found | {"network": "silent" if model.config.silent else "used"}


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


def _sources(
    stage: Any, part: Part, mixture: Any, experts: str
) -> tuple[EpisodeSource, list[Episode], tuple[str, ...]]:
    """Episodes to train on, episodes of voxels that are kept apart, and groups that get an expert."""
    subjects = [(s.X.astype(np.float32), s.Y.astype(np.float32)) for s in part.tasks.train]
    groups: tuple[str, ...] = ()
    images = np.concatenate([x for x, _ in subjects])
    options = {"isotropic_share": stage.isotropic_share, "ceiling": (stage.ceiling[0], stage.ceiling[1])}
    source: EpisodeSource = SyntheticEpisodes(images, mixture, **options)
    if stage.nuisances and stage.nuisance_share:
        spoilt = SyntheticEpisodes(images, mixture, **options, nuisances=Nuisances(**stage.nuisances), vary=True)
        source = MixedEpisodes([source, spoilt], [1 - stage.nuisance_share, stage.nuisance_share])
    held = source
    if stage.real:
        if len(subjects) > 1:
            learned, apart = subjects[:-1], subjects[-1:]
        else:
            ((x, y),) = subjects
            fifth = np.arange(y.shape[1]) % 5 == 4
            learned, apart = [(x, y[:, ~fifth])], [(x, y[:, fifth])]
        known, held = (ResponseEpisodes(some, groups=experts or None) for some in (learned, apart))
        groups = known.groups if experts else ()
        if experts and (lost := [name for name in held.groups if name not in groups]):
            step = "It validates: its voxels must be of groups that the other training subjects have, too."
            raise ConfigError(
                f"{part.tasks.train[-1].name}: " + unknown_name(f"{experts} of an expert", lost[0], groups, step)
            )
        source = MixedEpisodes([source, known], [1 - stage.real, stage.real])
    validation = validation_episodes(
        held,
        stage.validation_sizes,
        n_voxels=stage.voxels,
        repeats=stage.validation_repeats,
        query=stage.query,
        seed=stage.seed + 1,
    )
    return source, validation, groups
