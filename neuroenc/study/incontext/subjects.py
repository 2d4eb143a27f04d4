"""Subjects of a study of in-context encoders: made or read once, and kept beside the outputs."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import DataError, NeuroencError
from neuroenc._core.store import Codec, content_key, register
from neuroenc.encoders import align_voxels, check_space, feature_space
from neuroenc.encoders.incontext import PlacePrior, PriorMixture, WeightPrior, surface_positions
from neuroenc.study.config import FilesConfig
from neuroenc.study.incontext.tasks import (
    V4_FEATURES,
    TaskSubject,
    TransferTasks,
    check_v4_sessions,
    v4_content,
    v4_tasks,
    with_queries,
    world_tasks,
)
from neuroenc.study.stages.load import check_array, flatten, load_labelled
from neuroenc.study.study import Study, stage


@dataclass(frozen=True)
class Part:
    """Subjects of one direction of a study, and the folder of its models.

    ``name`` is "" where there is one direction only.
    """

    name: str
    folder: Path
    tasks: TransferTasks

    @property
    def digest(self) -> str:
        """Hash of the training subjects: values, labels, and where their features come from."""
        subjects = [[s.X, s.Y] for s in self.tasks.train]
        return content_key(subjects, self.tasks.projection, self.tasks.map_shape)


def part_folders(study: Study) -> list[Path]:
    """Folders of the study's directions, known before its subjects are."""
    task = study.table("incontext").task
    out = study.out or Path()
    return [out / f"held-out-{animal}" for animal in task.held_out] if task.kind == "v4" else [out]


@stage("subjects", reads=("config.incontext", "config.seed"), writes=("parts",))
def subjects(study: Study) -> dict[str, Any]:
    """Training subjects and new ones, in every direction of the study."""
    return {"parts": _load(study)}


@stage("learners", reads=("config.incontext", "config.seed"), writes=("parts",))
def learners(study: Study) -> dict[str, Any]:
    """Training subjects; new ones only where they come with them."""
    return {"parts": _load(study, test=False)}


def _load(study: Study, test: bool = True) -> list[Part]:
    """Subjects of every direction; those that are simulated or embedded are kept in the store."""
    settings, seed = study.table("incontext"), study.config.seed
    task, folders = settings.task, part_folders(study)
    n_query, order = settings.evaluate.n_query, settings.evaluate.order
    if task.kind == "arrays":
        train = [read_subject(files, task.zscore) for files in task.train]
        made = (read_subject(f, task.zscore, n_query, seed, order, tested=True) for f in task.test)
        new = list(made) if test else []
        return [_checked(study, Part("", folders[0], TransferTasks(train, new)))]
    if task.kind == "v4":
        parts = []
        for animal, folder in zip(task.held_out, folders):
            options = {**task.options, "held_out_animal": animal, "n_query": n_query}
            options |= {} if order == "shuffled" else {"order": order}
            sessions = check_v4_sessions(animal, task.options.get("sessions"))
            content = {"files": v4_content(sessions, study.mirror), "features": V4_FEATURES}
            make = partial(v4_tasks, study.mirror, progress=study.progress, **options)
            study.say(f"  {folder.name}: subjects")
            parts.append(Part(folder.name, folder, _kept(study, "v4", [options, content], make)))
        return parts
    train = [subject for seed in task.seeds for subject in _world(study, seed, False)]
    new = [subject for seed in task.test_seeds for subject in _world(study, seed, True)] if test else []
    return [_checked(study, Part("", folders[0], TransferTasks(train, new)))]


def _world(study: Study, seed: int, new: bool) -> list[TaskSubject]:
    """Everyone of a simulated world, or its new subject alone; subjects of different worlds have the same names."""
    settings = study.table("incontext")
    options = {"n_query": settings.evaluate.n_query, **settings.task.options, "seed": seed}
    if not new:
        # The null condition is one of new subjects.
        options["novel_prior"] = False

    def make() -> TransferTasks:
        found = world_tasks(progress=study.progress, **options)
        return dataclasses.replace(found, train=[]) if new else found

    found = _kept(study, "world-new" if new else "world", [options, "category"], make)
    return [dataclasses.replace(s, name=f"world-{seed}-{s.name}") for s in (*found.train, *found.test)]


def _checked(study: Study, part: Part) -> Part:
    """Subjects that may stand in one study: one embedding, no responses missing to learn from, nobody twice."""
    tasks = part.tasks
    everyone, first = [*tasks.train, *tasks.test], tasks.train[0]
    widths = {s.name: int(s.X.shape[1]) for s in everyone}
    if len(set(widths.values())) != 1:
        raise DataError(f"subjects have features of different widths: {widths}. Next step: one embedding for all.")
    for subject in everyone:
        for X in (subject.X, subject.X_query):
            if X is None:
                continue
            check_space(feature_space(first.X), X, f"those of {first.name}")
            if not np.isfinite(X.values).all():
                raise DataError(f"{subject.name}: features hold NaN or infinity. Next step: embed those stimuli again.")
    for subject in tasks.train:
        missing = ~np.isfinite(subject.Y.values)
        if missing.any():
            odd = np.flatnonzero(missing.any(axis=0))
            names = subject.Y["voxel"].values[odd[:3]] if "voxel" in subject.Y.coords else odd[:3]
            raise DataError(
                f"{subject.name}: {int(missing.sum())} responses of {len(odd)} voxels are missing (NaN; first: "
                f"{[str(v) for v in names]}). Next step: leave those voxels out of training subjects."
            )
    # A subject is known by its responses: a copy of a training subject is not new.
    known: dict[str, set[bytes]] = {}
    for n, subject in enumerate(everyone):
        rows = _row_hashes(subject.Y) | (set() if subject.Y_query is None else _row_hashes(subject.Y_query))
        for name, others in known.items():
            if 2 * len(rows & others) > len(rows):
                of = "not new" if n >= len(tasks.train) else "each training subject may stand here once"
                raise DataError(f"{subject.name} has the responses of {name}: {of}.")
        if n < len(tasks.train):
            known[subject.name] = rows
    learned = {i for s in tasks.train for i in s.Y["stimulus"].values.astype(str).tolist()}
    for subject in tasks.test:
        if subject.Y_query is None:
            continue
        assert subject.X_query is not None
        data.check_unseen(subject.X_query, f"{subject.name}, queries")
        pool, query = (set(a["stimulus"].values.astype(str).tolist()) for a in (subject.Y, subject.Y_query))
        if pool & query:
            raise DataError(
                f"{subject.name}: {len(pool & query)} stimuli are in the pool and among the queries (first: "
                f"{sorted(pool & query)[0]!r}). Next step: queries of other stimuli."
            )
        if query & learned:
            study.say(
                f"  {subject.name}: training subjects saw {len(query & learned)} of its {len(query)} query stimuli"
            )
    return part


def _row_hashes(responses: xr.DataArray) -> set[bytes]:
    return {hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in np.ascontiguousarray(responses.values)}


def _kept(study: Study, kind: str, inputs: list[Any], make: Callable[[], TransferTasks]) -> TransferTasks:
    """Subjects by their settings and the content of what they are made from."""
    parts = study.store.keep(f"subjects-{kind}", inputs, lambda: _packed(make()))
    sides: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "test": {}}
    for name, value in parts.items():
        side, *field = name.split("-")
        if side in sides:
            sides[side].setdefault(int(field[0]), {})[field[1]] = value
    train, test = ([TaskSubject(**held) for _, held in sorted(side.items())] for side in sides.values())
    shape: Any = parts["map_shape"] and tuple(parts["map_shape"])
    return TransferTasks(train, test, parts["info"], parts.get("projection"), shape)


def _packed(tasks: TransferTasks) -> dict[str, Any]:
    """Subjects as values that the store keeps, ``SIDE-NUMBER-FIELD``; what is None is left out."""
    parts: dict[str, Any] = {"info": tasks.info, "map_shape": tasks.map_shape}
    if tasks.projection is not None:
        parts["projection"] = tasks.projection
    for side in ("train", "test"):
        for n, subject in enumerate(getattr(tasks, side)):
            parts |= {f"{side}-{n}-{name}": value for name, value in vars(subject).items() if value is not None}
    return parts


register(Codec("place-prior", PlacePrior, "", lambda p, x: x.save(p), PlacePrior.load))
register(Codec("prior", WeightPrior, "", lambda p, x: x.save(p), WeightPrior.load))


def read_matrix(path: str | os.PathLike[str], what: str) -> xr.DataArray:
    """One labelled array from a file; features become (stimulus, feature)."""
    check_array(path, what)
    found = load_labelled(path, what)
    try:
        if what.endswith("responses"):
            return data.validate_responses(found, allow_nan=True)
        return flatten(data.validate_features(found))
    except NeuroencError as error:
        raise DataError(f"{what}: {path}: {error}") from error


def read_subject(
    files: FilesConfig,
    zscore: str = "auto",
    n_query: int = 0,
    seed: int = 0,
    order: str = "shuffled",
    *,
    tested: bool = False,
) -> TaskSubject:
    """A subject from files: z-scored, repeats averaged, rows together by stimulus; queries apart if ``tested``."""
    features = read_matrix(files.features, "features")
    Y = prepared(read_matrix(files.responses, "responses"), zscore)
    X = data.match(features, Y)
    if not tested:
        return TaskSubject(files.name, X, Y)
    if files.query_responses:
        Y_query = prepared(read_matrix(files.query_responses, "query_responses"), zscore)
        # Voxels go together by their ids, whatever the order of a file.
        Y_query = align_voxels(Y_query, Y, f"query responses of {files.name}")
        source = read_matrix(files.query_features, "query_features") if files.query_features else features
        return TaskSubject(files.name, X, Y, data.match(source, Y_query), Y_query)
    return with_queries(TaskSubject(files.name, X, Y), n_query, seed, order)


def prepared(responses: xr.DataArray, zscore: str = "auto") -> xr.DataArray:
    """Responses as models expect them: z-scored within session, one row a stimulus."""
    plain = responses.attrs.get("zscored", "none") == "none" and "session" in responses.coords
    if zscore == "session" or (zscore == "auto" and plain and responses.dims[0] == "presentation"):
        responses = data.zscore(responses, by="session")
    return data.average_repeats(responses) if responses.dims[0] == "presentation" else responses


def make_mixture(study: Study, part: Part) -> PriorMixture:
    """Mixture of priors from the training subjects' responses; made once."""
    clusters, seed, tasks = study.table("incontext").model.clusters, study.config.seed, part.tasks

    def make() -> dict[str, Any]:
        study.say("  prior: mixture from training subjects' responses")
        found = PriorMixture.from_responses(
            [(s.X.values, s.Y.values) for s in tasks.train],
            n_clusters=clusters,
            projection=tasks.projection,
            shape=tasks.map_shape,
            seed=seed,
        )
        held = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
        return {name: np.asarray(value) for name, value in held.items() if value is not None}

    return PriorMixture(**study.store.keep("mixture", [clusters, seed, part.digest], make))


def make_prior(study: Study, part: Part) -> WeightPrior:
    """Gaussian prior of the training subjects' weights, by expectation maximisation; made once."""

    def make() -> dict[str, Any]:
        study.say("  prior: expectation maximisation over training subjects")
        subjects = [s.X.values for s in part.tasks.train], [s.Y.values for s in part.tasks.train]
        return {"prior": WeightPrior.from_responses(*subjects)}

    return study.store.keep("prior", [part.digest], make)["prior"]


def make_place_prior(study: Study, part: Part) -> PlacePrior | None:
    """The prior by place of the training subjects; None where there is one of them, or voxels have no places."""
    train = part.tasks.train
    if len(train) < 2 or not all(has_places(s) for s in train):
        return None

    def make() -> dict[str, Any]:
        study.say("  prior by place: expectation maximisation over training subjects")
        places = [surface_positions(s.Y) for s in train]
        subjects = [s.X.values for s in train], [s.Y.values for s in train]
        return {"prior": PlacePrior.from_responses(*subjects, *zip(*places))}

    return study.store.keep("place-prior", [part.digest], make)["prior"]


def has_places(subject: TaskSubject) -> bool:
    """Whether the voxels lie on a surface, with ``vertex`` and ``hemi``."""
    return {"vertex", "hemi"} <= set(map(str, subject.Y.coords))
