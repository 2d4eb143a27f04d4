"""New subjects whose supports are spoilt in known ways, and episodes of such voxels for training.

Voxels are those of the simulated cortex, which are not linear in the features. Responses have unit variance, signal and
noise together, as z-scored ones have; the truth are noiseless responses to other scenes after the last trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from neuroenc.data.simulate import Nuisances, simulate_cortex, simulate_world
from neuroenc.embedding import ImageEmbedder
from neuroenc.encoders.incontext import Episode, surface_positions

WORLDS = {
    "clean": Nuisances(),
    "outlying trials": Nuisances(outlying_trials=0.15),
    "outlying responses": Nuisances(outlying_responses=0.15),
    "noise levels by trial": Nuisances(noise_spread=0.8),
    "heavy tails": Nuisances(tails=2.5),
    "drifting gain": Nuisances(gain_drift=1.0),
    "turning tuning": Nuisances(turning=0.5),
    "saturation": Nuisances(saturation=0.5),
    "suppression": Nuisances(suppression=0.6),
    "missing responses": Nuisances(missing=0.3),
    "several": Nuisances(outlying_trials=0.1, outlying_responses=0.05, gain_drift=0.7, saturation=0.6, suppression=0.4),
}
#: Each at most so strong, in training episodes.
STRONGEST = Nuisances(
    outlying_trials=0.2, outlying_responses=0.1, noise_spread=0.8, gain_drift=1.2, saturation=0.4, suppression=0.6
)


@dataclass(frozen=True)
class Person:
    """Noiseless responses (scene, voxel) of unit variance, ratios of signal to noise (voxel,), and places."""

    signal: np.ndarray
    ncsnr: np.ndarray
    places: tuple[np.ndarray, np.ndarray]


@cache
def people(seed, own=0.6, n_subjects=1, n_scenes=500, n_voxels=120, exemplars=False):
    """Features (scene, feature), and people whose voxels answer clearly enough to be judged."""
    scenes = simulate_world(n_scenes, seed=95_000 + seed)
    features = ImageEmbedder("world", normalise=True, progress=False).embed(scenes).values
    found = []
    for subject in simulate_cortex(scenes, n_subjects=n_subjects, n_voxels=n_voxels, own=own, seed=seed):
        ncsnr = subject.truth["ncsnr"].values
        clear = ncsnr > 0.3
        where, side = surface_positions(subject.responses)
        signal = subject.truth["signal"].values[:, clear].astype(float)
        if exemplars:
            signal = near_exemplars(features, signal.shape[1], np.random.default_rng([seed, len(found), 3]))
        found.append(Person(signal, ncsnr[clear].astype(float), (where[clear], side[clear])))
    return features, found


def near_exemplars(features, n_voxels, rng, n_preferred=3):
    """Responses (scene, voxel) to what is near one of a few preferred scenes."""
    squares = (features**2).sum(axis=1)
    out = np.empty((len(features), n_voxels))
    for v in range(n_voxels):
        preferred = features[rng.choice(len(features), n_preferred, replace=False)]
        far = squares[:, None] + (preferred**2).sum(axis=1) - 2 * features @ preferred.T
        out[:, v] = np.exp(-far / (0.25 * np.median(far))).max(axis=1)
    return (out - out.mean(axis=0)) / out.std(axis=0)


class Trials(NamedTuple):
    """A support (trial, ...) in the order of time, queries, and noiseless and measured responses to them."""

    X: np.ndarray
    Y: np.ndarray
    queries: np.ndarray
    truth: np.ndarray
    measured: np.ndarray


def spoilt(features, person, rows, queries, nuisances, rng):
    """The person's responses to ``rows`` of scenes, spoilt, and to ``queries`` after the last of them."""
    signal, ncsnr, n = person.signal, person.ncsnr, len(rows)
    alike = np.append(0.0, (features[rows[1:]] * features[rows[:-1]]).sum(axis=1))[:n]
    order = rng.permutation(len(ncsnr))
    # Queries are seen with the support, at its last moment, so that nonlinearities are those of all scenes.
    shown = np.concatenate([rows, queries])
    alike, time = np.append(alike, np.zeros(len(queries))), np.append(np.linspace(0, 1, n), np.ones(len(queries)))
    clean, _ = nuisances.signal(signal[shown], signal[shown][:, order], alike, time, rng)
    whole = np.sqrt(1 + 1 / ncsnr**2)
    # Outliers are part of what a session is z-scored by.
    session = np.sqrt(1 + nuisances.outlier_sd**2 * (nuisances.outlying_trials + nuisances.outlying_responses))
    noise = [nuisances.noise(1 / ncsnr / whole, m, rng)[0] for m in (n, len(queries))]
    truth = clean[n:] / whole
    Y, measured = clean[:n] / whole + noise[0], truth + noise[1]
    return Trials(features[rows], Y / session, features[queries], truth / session, measured / session)


class SpoiltVoxels:
    """Episodes of people's voxels: a third as they are, the others spoilt by nuisances of unknown amounts."""

    def __init__(self, features, persons, strongest=STRONGEST):
        self.features_, self.persons, self.strongest = features, persons, strongest
        self.n_features = features.shape[1]

    def draw(self, rng, n_voxels, support, query):
        person = self.persons[rng.integers(len(self.persons))]
        columns = rng.choice(person.signal.shape[1], min(n_voxels, person.signal.shape[1]), replace=False)
        part = Person(person.signal[:, columns], person.ncsnr[columns], person.places)
        shown = rng.choice(len(self.features_), support + query, replace=False)
        nuisances = self.strongest.draw(rng) if rng.random() < 2 / 3 else Nuisances()
        found = spoilt(self.features_, part, shown[:support], shown[support:], nuisances, rng)
        X, Y, Q, truth = (torch.as_tensor(np.asarray(a, dtype=np.float32)) for a in found[:4])
        return Episode(X, Y.T.contiguous(), Q, truth.T.contiguous())
