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
from neuroenc._core.errors import ConfigError, DataError, NeuroencError
from neuroenc._core.files import check_readable_file, read_json, write_json
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
    world_tasks,
)
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
    task, n_query, folders = settings.task, settings.evaluate.n_query, part_folders(study)
    if task.kind == "arrays":
        train = [read_subject(files, task.zscore) for files in task.train]
        new = [read_subject(f, task.zscore, n_query, seed, tested=True) for f in task.test] if test else []
        return [_checked(study, Part("", folders[0], TransferTasks(train, new)))]
    if task.kind == "v4":
        parts = []
        for animal, folder in zip(task.held_out, folders):
            options = {**task.options, "held_out_animal": animal, "n_query": n_query}
            sessions = check_v4_sessions(animal, task.options.get("sessions"))
            content = {"files": v4_content(sessions, study.mirror), "features": V4_FEATURES}
            make = partial(v4_tasks, study.mirror, progress=study.progress, **options)
            study.say(f"  {folder.name}: subjects")
            parts.append(Part(folder.name, folder, _kept(study, "v4", [options, content], make)))
        return parts
    learned = [_world(study, seed, False) for seed in task.seeds]
    train = [_named(s, seed) for seed, found in zip(task.seeds, learned) for s in (*found.train, *found.test)]
    strangers = [_world(study, seed, True) for seed in task.test_seeds] if test else []
    new = [_named(s, seed) for seed, found in zip(task.test_seeds, strangers) for s in found.test]
    return [_checked(study, Part("", folders[0], TransferTasks(train, new)))]


def _world(study: Study, seed: int, new: bool) -> TransferTasks:
    settings = study.table("incontext")
    options = {"n_query": settings.evaluate.n_query, **settings.task.options, "seed": seed}
    if not new:
        # The null condition is one of new subjects.
        options["novel_prior"] = False

    def make() -> TransferTasks:
        found = world_tasks(progress=study.progress, **options)
        return dataclasses.replace(found, train=[]) if new else found

    return _kept(study, "world-new" if new else "world", [options, None], make)


def _named(subject: TaskSubject, seed: int) -> TaskSubject:
    """Subjects of different worlds have the same names."""
    return dataclasses.replace(subject, name=f"world-{seed}-{subject.name}")


def _checked(study: Study, part: Part) -> Part:
    """Subjects that may stand in one study: one embedding, no responses missing to learn from, nobody twice."""
    tasks = part.tasks
    widths = {s.X.shape[1] for s in (*tasks.train, *tasks.test)}
    if len(widths) != 1:
        shown = {s.name: int(s.X.shape[1]) for s in (*tasks.train, *tasks.test)}
        raise DataError(f"subjects have features of different widths: {shown}. Next step: one embedding for all.")
    first = tasks.train[0]
    for subject in (*tasks.train, *tasks.test):
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
    for subject in tasks.train:
        rows = _row_hashes(subject.Y)
        for name, others in known.items():
            if 2 * len(rows & others) > len(rows):
                raise DataError(f"training subjects {name} and {subject.name} have the same responses.")
        known[subject.name] = rows
    learned = {i for s in tasks.train for i in s.Y["stimulus"].values.astype(str).tolist()}
    for subject in tasks.test:
        whole = [subject.Y] if subject.Y_query is None else [subject.Y, subject.Y_query]
        rows = set().union(*map(_row_hashes, whole))
        for name, others in known.items():
            if 2 * len(rows & others) > len(rows):
                raise DataError(f"{subject.name} has the responses of {name}: not new.")
        if subject.Y_query is None:
            continue
        pool, query = (set(a["stimulus"].values.astype(str).tolist()) for a in whole)
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
    return study.store.keep(f"subjects-{kind}", inputs, lambda: {"tasks": make()})["tasks"]


_FIELDS = ("X", "Y", "X_query", "Y_query")


def _write(folder: Path, tasks: TransferTasks) -> None:
    folder.mkdir()
    record: dict[str, Any] = {"train": [], "test": [], "info": tasks.info, "map_shape": tasks.map_shape}
    for side in ("train", "test"):
        for n, subject in enumerate(getattr(tasks, side)):
            held = [name for name in _FIELDS if getattr(subject, name) is not None]
            for name in held:
                data.save(getattr(subject, name), folder / f"{side}-{n}-{name}.nc")
            ceiling = None if subject.noise_ceiling is None else np.asarray(subject.noise_ceiling).tolist()
            record[side].append({"name": subject.name, "held": held, "noise_ceiling": ceiling})
    if tasks.projection is not None:
        data.save(xr.DataArray(tasks.projection, dims=("value", "feature"), name="projection"), folder / "maps.nc")
    write_json(folder / "subjects.json", record)


def _read(folder: Path) -> TransferTasks:
    record = read_json(folder / "subjects.json")
    sides: dict[str, list[TaskSubject]] = {"train": [], "test": []}
    for side, found in sides.items():
        for n, entry in enumerate(record[side]):
            arrays: dict[str, Any] = {name: data.load(folder / f"{side}-{n}-{name}.nc") for name in entry["held"]}
            limit = entry["noise_ceiling"]
            ceiling = None if limit is None else np.array([np.nan if v is None else v for v in limit], dtype=float)
            found.append(TaskSubject(entry["name"], **arrays, noise_ceiling=ceiling))
    maps: Any = data.load(folder / "maps.nc").values if (folder / "maps.nc").is_file() else None
    shape: Any = None if record["map_shape"] is None else tuple(record["map_shape"])
    return TransferTasks(sides["train"], sides["test"], record["info"], maps, shape)


register(Codec("subjects", TransferTasks, "", _write, _read))
register(Codec("place-prior", PlacePrior, "", lambda p, x: x.save(p), PlacePrior.load))
register(Codec("prior", WeightPrior, "", lambda p, x: x.save(p), WeightPrior.load))


def read_matrix(path: str | os.PathLike[str], what: str) -> xr.DataArray:
    """One labelled array from a file; features become (stimulus, feature).

    Raises
    ------
    DataError
        There is no such file, or it holds something else.
    """
    from neuroenc.study.stages.load import flatten

    if not Path(path).exists():
        raise DataError(f"{what}: no file {path}.")
    if Path(path).suffix != ".zarr":
        check_readable_file(path, what)
    found = data.load(path)
    if not isinstance(found, xr.DataArray):
        raise DataError(f"{what}: {path} holds a {type(found).__name__}; expected one DataArray, as data.save writes.")
    try:
        if what.endswith("responses"):
            return data.validate_responses(found, allow_nan=True)
        return flatten(data.validate_features(found))
    except NeuroencError as error:
        raise DataError(f"{what}: {path}: {error}") from error


def read_subject(
    files: FilesConfig, zscore: str = "auto", n_query: int = 0, seed: int = 0, *, tested: bool = False
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
    n = len(Y)
    if not 2 <= n_query <= n - 20:
        raise ConfigError(
            f"evaluate.n_query = {n_query} of {n} stimuli of {files.name} leaves fewer than 20 to learn from. "
            "Next step: a smaller n_query, or query_features and query_responses."
        )
    order = np.random.default_rng([seed, n]).permutation(n)
    query, pool = np.sort(order[:n_query]), np.sort(order[n_query:])
    return TaskSubject(files.name, X[pool], Y[pool], X[query], Y[query])


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
