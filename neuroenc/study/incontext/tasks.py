"""A new subject and the subjects before it: macaque V4 with an animal left out, and the simulated world."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data
from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.data import EncodingData, load_dataset, load_manifest, make_features, v4_sessions
from neuroenc.data.simulate import FAMILIES, simulate_cortex, simulate_world
from neuroenc.embedding import ImageEmbedder
from neuroenc.study.stages.compare import _pictures, scale_voxels
from neuroenc.study.stages.score import noise_ceilings

V4_FEATURES: dict[str, Any] = {"layer": "block8", "pooling": 4, "preprocessing": {"size": 112}}


@dataclass(frozen=True)
class TaskSubject:
    """One subject: a pool of stimuli to learn from and, for test subjects, queries that are never in the pool.

    ``X`` (stimulus, feature) and ``Y`` (stimulus, voxel), the same for ``X_query, Y_query``; ``noise_ceiling`` (voxel,)
    is the share of the queries' variance that is signal, where repeats tell it.
    """

    name: str
    X: xr.DataArray
    Y: xr.DataArray
    X_query: xr.DataArray | None = None
    Y_query: xr.DataArray | None = None
    noise_ceiling: np.ndarray | None = None


@dataclass(frozen=True)
class TransferTasks:
    """Subjects to learn a prior from, new subjects to test on, and what a reader must know (``info``).

    Where features come from maps, ``projection`` (channel * y * x, feature) leads from standardised maps to features,
    and ``map_shape`` is (channel, y, x): a prior can then speak of places.
    """

    train: list[TaskSubject]
    test: list[TaskSubject]
    info: dict[str, Any] = field(default_factory=dict)
    projection: np.ndarray | None = None
    map_shape: tuple[int, int, int] | None = None


def v4_tasks(
    mirror: str | os.PathLike[str] | None = None,
    held_out_animal: str = "PE",
    *,
    sessions: Sequence[str] | None = None,
    n_features: int = 128,
    n_query: int = 300,
    order: str = "shuffled",
    seed: int = 0,
    progress: bool = False,
) -> TransferTasks:
    """Macaque V4 sessions with one animal left out.

    Features are EfficientNet-Lite0's block8 maps at the images' own 112 pixels, averaged to 4 x 4 places, standardised
    and reduced by principal components that know the training animal's images only, then divided by one number so that
    the mean squared norm of its rows is 1. Responses are z-scored per neuron over its session. Equal pictures of a
    session are one stimulus, their responses averaged; training pictures that the held-out animal saw are left out.

    Parameters
    ----------
    mirror : path, optional
        Folder of the data set's mirror.
    held_out_animal : str
        "PE" or "WE"; "RA" or another where ``sessions`` has one of its.
    sessions : sequence of str, optional
        Only these, of at least two animals; by default the eight that the manifest lists. Others are found where the
        mirror or the data folder holds them.
    n_features : int
        1 to 256. Sessions of the training animal predicted from its others: 128 do better than 64 at every size.
    n_query : int
        Pictures of each test session that are queries.
    order : {"shuffled", "time"}
        Queries are drawn at random, or the last pictures of the session.
    seed : int
        Of the queries.

    Returns
    -------
    TransferTasks
        Training: one subject a session of the other animal; test: one a session of the animal. ``info``:
        ``n_removed`` (training pictures that the animal saw too), ``variance_kept``, ``n_features``, ``seed``.

    Notes
    -----
    z-scoring takes mean and standard deviation over all pictures of the session, queries included, as it is usual for
    responses of single sessions; explained variance does not depend on either.
    """
    n_features, n_query = check_whole("n_features", n_features), check_whole("n_query", n_query, 2)
    if n_features > 256:
        raise ConfigError(f"n_features={n_features} must be from 1 to 256.")
    chosen = check_v4_sessions(held_out_animal, sessions)
    embedder = ImageEmbedder("efficientnet-lite0", **V4_FEATURES, progress=progress)
    found = [_v4_session(session, mirror, embedder, progress) for session in chosen]
    _check_animals(held_out_animal, chosen, {part.animal for part in found})
    own = [part for part in found if part.animal == held_out_animal]
    others = [part for part in found if part.animal != held_out_animal]
    seen = {key for part in own for key in part.keys}
    kept = [part.without(seen) for part in others]
    n_removed = sum(len(a.keys) - len(b.keys) for a, b in zip(others, kept))
    pooling = f"4x4, {n_features} principal components without {held_out_animal}"
    reduce = _Reduction(np.concatenate([part.maps for part in kept]), n_features, pooling)
    train = [TaskSubject(p.name, reduce(p), scale_voxels(p.responses)) for p in kept]
    new = [TaskSubject(p.name, reduce(p), scale_voxels(p.responses), noise_ceiling=p.noise_ceiling) for p in own]
    info = {
        "held_out_animal": held_out_animal,
        "n_removed": n_removed,
        "n_features": n_features,
        "seed": seed,
        "variance_kept": reduce.share,
        "n_query": n_query,
    }
    test = [with_queries(subject, n_query, seed, order) for subject in new]
    return TransferTasks(train, test, info, reduce.projection, kept[0].map_shape)


def check_v4_sessions(held_out_animal: str, sessions: Sequence[Any] | None) -> list[str]:
    """Sessions by name, refused before anything is read where the day of each tells its animal."""
    chosen = v4_sessions().index.tolist() if sessions is None else [str(s) for s in sessions]
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"sessions={chosen} name a session twice.")
    animals = set(v4_sessions(chosen)["animal"])
    if all(animals):
        _check_animals(held_out_animal, chosen, animals)
    return chosen


def v4_content(sessions: Sequence[str], mirror: str | os.PathLike[str] | None) -> dict[str, str]:
    """Hashes of the sessions' files: the manifest's, or of what lies in the mirror or the data folder."""
    manifest = load_manifest("v4-cowley2023")
    listed = {f.path: f.sha256 for f in manifest.files}
    found: dict[str, str] = {}
    for session in sessions:
        if session in v4_sessions().index:
            found |= {p: h for p, h in listed.items() if f"_{session}." in p}
        else:
            own = load_dataset("v4-cowley2023", mirror=mirror, progress=False, session=session).responses
            assert own is not None
            found |= json.loads(own.attrs["provenance"])["sha256"]
    return found


def _check_animals(held_out: str, sessions: Sequence[str], animals: set[str]) -> None:
    if held_out not in animals:
        raise ConfigError(unknown_name("animal", held_out, sorted(animals)))
    if len(animals) < 2:
        raise ConfigError(f"sessions={list(sessions)} are all of {held_out}: none is left to train on.")


@dataclass(frozen=True)
class _V4Session:
    """One row a picture: ``keys`` tell equal pictures, ``maps`` (n, channel * y * x)."""

    name: str
    animal: str
    keys: list[str]
    maps: np.ndarray
    map_shape: tuple[int, int, int]
    responses: xr.DataArray
    noise_ceiling: np.ndarray | None

    def without(self, keys: set[str]) -> _V4Session:
        rows = np.array([n for n, key in enumerate(self.keys) if key not in keys], dtype=int)
        names = [self.keys[n] for n in rows]
        return replace(self, keys=names, maps=self.maps[rows], responses=self.responses[rows])


def _v4_session(session: str, mirror: Any, embedder: ImageEmbedder, progress: bool) -> _V4Session:
    found = data.load_dataset("v4-cowley2023", mirror=mirror, progress=progress, session=session)
    assert found.responses is not None
    assert found.stimuli is not None
    keys = np.array(_pictures(found.stimuli))
    blocks = data.match(embedder.embed(found.stimuli), found.responses).values
    channels, height, width = blocks.shape[1:]
    maps = blocks.reshape(len(keys), -1)
    names, first, which = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    values = pd.DataFrame(found.responses.values.astype(np.float64)).groupby(which).mean().to_numpy()[order]
    rows = first[order]
    responses = found.responses[rows].copy(data=values.astype(np.float32))
    ceiling = noise_ceilings(found.extra.get("repeats"), found.responses, responses).get("noise_ceiling_r2")
    animal = str(found.extra["animal"])
    shape = (channels, height, width)
    return _V4Session(f"{animal}-{session}", animal, names[order].tolist(), maps[rows], shape, responses, ceiling)


class _Reduction:
    """Standardisation, principal components and one scale, all from training maps."""

    def __init__(self, maps: np.ndarray, n_features: int, pooling: str) -> None:
        self.pooling = pooling
        values = maps.astype(np.float64)
        self.mean, self.sd = values.mean(axis=0), values.std(axis=0)
        self.sd[self.sd == 0] = np.inf
        standard = (values - self.mean) / self.sd
        spectrum, vectors = np.linalg.eigh(standard.T @ standard)
        if n_features > min(standard.shape):
            raise DataError(f"{len(standard)} training pictures have no {n_features} principal components.")
        self.vectors = vectors[:, ::-1][:, :n_features]
        self.share = float(spectrum[::-1][:n_features].sum() / spectrum.sum())
        self.scale = float(np.sqrt(((standard @ self.vectors) ** 2).sum(axis=1).mean()))
        self.projection = self.vectors / self.scale

    def __call__(self, part: _V4Session) -> xr.DataArray:
        values = ((part.maps - self.mean) / self.sd) @ self.projection
        return make_features(
            values.astype(np.float32),
            stimulus=part.responses["stimulus"].values,
            backbone="efficientnet-lite0",
            layer="block8",
            pooling=self.pooling,
        )


def with_queries(subject: TaskSubject, n_query: int, seed: int, order: str = "shuffled") -> TaskSubject:
    """The subject with some of its stimuli, drawn at random or the last ones, as queries."""
    n = len(subject.Y)
    if not 2 <= n_query <= n - 20:
        raise ConfigError(
            f"evaluate.n_query = {n_query} of {n} stimuli of {subject.name} leaves fewer than 20 to learn from. Next "
            "step: a smaller n_query (or query_features and query_responses of files of your own)."
        )
    drawn = np.random.default_rng([seed, n]).permutation(n) if order == "shuffled" else np.arange(n)[::-1]
    query, pool = np.sort(drawn[:n_query]), np.sort(drawn[n_query:])
    X, Y = subject.X, subject.Y
    return replace(subject, X=X[pool], Y=Y[pool], X_query=X[query], Y_query=Y[query])


def world_tasks(
    seed: int = 0,
    *,
    n_train_subjects: int = 3,
    n_train: int = 1000,
    n_pool: int = 1000,
    n_query: int = 300,
    n_voxels: int | None = 400,
    novel_prior: bool = False,
    own: float = 0.6,
    progress: bool = False,
) -> TransferTasks:
    """Simulated subjects over scenes of the simulated world, seen by the world's CLIP.

    Everyone sees scenes of their own once; the queries are shown to the new subject three times, and no training
    subject saw them. Responses are z-scored within session and averaged over repeats; features have unit norm.

    Parameters
    ----------
    seed : int
        Of scenes and cortex.
    n_train_subjects, n_train, n_pool, n_query : int
        Training subjects, their scenes each, the new subject's pool, and queries.
    n_voxels : int, optional
        Of a subject, about; None is the simulation's default of about 800.
    novel_prior : bool
        A null condition: the new subject's voxels answer along random directions of the feature space that have nothing
        to do with the training subjects' voxels, at the same ncsnr.
    own : float
        Share of a voxel's signal along a direction of its own; see `simulate_cortex`.

    Returns
    -------
    TransferTasks
        One test subject, with noise ceilings.
    """
    subjects = n_train_subjects + 1
    each = max(n_train, n_pool)
    # Seeds of the scenes are far from those that the world's CLIP was trained on, and from the other simulations'.
    scenes = simulate_world(subjects * each + n_query, seed=90_000 + seed)
    query_ids = scenes.ids[-n_query:]
    people = simulate_cortex(
        scenes, n_subjects=subjects, n_voxels=n_voxels, test_ids=query_ids, own=own, unique=True, seed=seed
    )
    features = ImageEmbedder("world", normalise=True, progress=progress).embed(scenes)
    shown = scenes.table[list(FAMILIES)].to_numpy(dtype=float)
    category = np.where(shown.any(axis=1), np.array(FAMILIES)[shown.argmax(axis=1)], "neutral")
    features = features.assign_coords(category=("stimulus", category))
    train = [_world_subject(p, features, query_ids, n_train, False) for p in people[:-1]]
    new = people[-1]
    if novel_prior:
        new = _random_directions(new, features, seed)
    test = _world_subject(new, features, query_ids, n_pool, True)
    info = {"seed": seed, "novel_prior": novel_prior, "own": own, "n_train_subjects": n_train_subjects}
    return TransferTasks(train, [test], info)


def _world_subject(
    person: EncodingData, features: xr.DataArray, query_ids: np.ndarray, n_kept: int, tested: bool
) -> TaskSubject:
    assert person.responses is not None
    scaled = data.validate_responses(data.zscore(person.responses, by="session"), zscored="session")
    own, single = data.shared_test(scaled, query_ids)
    Y = data.average_repeats(own)[:n_kept]
    name = str(np.asarray(person.responses["subject"].values).flat[0])
    if not tested:
        return TaskSubject(name, data.match(features, Y), Y)
    data.check_disjoint(own, single)
    Y_query = data.average_repeats(single)
    ceiling = noise_ceilings(None, single, Y_query)["noise_ceiling_r2"]
    return TaskSubject(name, data.match(features, Y), Y, data.match(features, Y_query), Y_query, ceiling)


def _random_directions(person: EncodingData, features: xr.DataArray, seed: int) -> EncodingData:
    """The same presentations and noise levels, and signals along isotropic random directions."""
    assert person.responses is not None
    assert person.truth is not None
    rng = np.random.default_rng([seed, 7])
    X = data.match(features, person.responses).values.astype(np.float64)
    ncsnr = person.truth["ncsnr"].values
    signal = X @ rng.standard_normal((X.shape[1], len(ncsnr)))
    signal = (signal - signal.mean(axis=0)) / signal.std(axis=0)
    values = signal + rng.standard_normal(signal.shape) / ncsnr
    return EncodingData(person.responses.copy(data=values.astype(np.float32)), person.stimuli, extra=person.extra)
