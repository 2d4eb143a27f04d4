"""What a miniature of the Natural Scenes Dataset holds: design, pictures, one subject's voxels and their labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from neuroenc.data.datasets._nsd._rois import FILES, UNIONS

_STREAMS = {
    "early": ("V1", "V2", "V3"),
    "midventral": ("hV4",),
    "lateral": ("OFA", "EBA"),
    "ventral": ("FFA", "FBA", "PPA", "VWFA", "food"),
    "parietal": ("OPA", "RSC"),
}
_STREAM_OF = {region: stream for stream, regions in _STREAMS.items() for region in regions}
_CATEGORY = {"face": "faces", "body": "bodies", "place": "places", "word": "words"}
_N_PARCELS = 180


@dataclass(frozen=True, eq=False)
class Experiment:
    """Ids from 0. ``order`` (trial,), ``pictures`` (8, n) rows of the bank, ``pattern`` (session, run, slot) of 0/1."""

    order: np.ndarray
    pictures: np.ndarray
    shared: np.ndarray
    pattern: np.ndarray
    coco_id: np.ndarray

    @property
    def per_session(self) -> int:
        return len(self.order) // len(self.pattern)

    @property
    def run(self) -> np.ndarray:
        counts = self.pattern.sum(axis=2, dtype=np.int64)
        return np.concatenate([np.repeat(np.arange(1, counts.shape[1] + 1), row) for row in counts])


def make_experiment(
    n_shared: int, n_unique: int, n_sessions: int, n_repeats: int, rng: np.random.Generator
) -> Experiment:
    """The same order for all eight subjects; the first pictures of everyone's list are the shared ones."""
    n_bank, n_own = n_shared + 8 * n_unique, n_shared + n_unique
    bank = rng.permutation(n_bank)
    shared = np.sort(bank[:n_shared])
    own = bank[n_shared:].reshape(8, n_unique)
    pictures = np.concatenate([np.tile(shared, (8, 1)), own], axis=1)
    per_session = n_own * n_repeats // n_sessions
    order = rng.permutation(np.repeat(np.arange(n_own), n_repeats))
    n_runs = 3
    sizes = [len(x) for x in np.array_split(np.arange(per_session), n_runs)]
    pattern = np.zeros((n_sessions, n_runs, max(sizes) + 2), dtype=np.uint8)
    for s in range(n_sessions):
        for r, size in enumerate(sizes):
            # Blank trials lie between the others.
            pattern[s, r, rng.permutation(pattern.shape[2])[:size]] = 1
    coco = rng.choice(np.arange(1, 581_929), n_bank, replace=False)
    return Experiment(order, pictures, shared, pattern, coco)


@dataclass(frozen=True, eq=False)
class Subject:
    """One subject's volume. Flat numbers are in C order.

    ``brain``, ``cortex`` flat numbers; ``visual`` flat numbers of the simulated voxels, in their order; ``labels``
    file -> whole numbers (x, y, z), -1 outside cortex; ``tvalues`` category -> t (x, y, z).
    """

    shape: tuple[int, int, int]
    brain: np.ndarray
    cortex: np.ndarray
    visual: np.ndarray
    labels: dict[str, np.ndarray]
    tables: dict[str, dict[int, str]]
    tvalues: dict[str, np.ndarray]


def make_subject(number: int, truth: xr.Dataset, rng: np.random.Generator) -> Subject:
    """Place the simulated voxels in a small volume of this subject's own shape, with cortex and brain around them."""
    n = truth.sizes["voxel"]
    left = truth["hemi"].values == "L"
    side = int(np.ceil((2.6 * n) ** (1 / 3)))
    shape = (2 * ((side + 1) // 2) + 2 * (number % 2), side + 3 + number % 3, side + 1)
    flat = np.arange(np.prod(shape))
    i, j, k = np.unravel_index(flat, shape)
    centre = [(s - 1) / 2 for s in shape]
    distance = np.sum([((x - c) / s) ** 2 for x, c, s in zip((i, j, k), centre, shape)], axis=0)
    visual = np.empty(n, dtype=np.int64)
    cortex, brain = [], []
    for hemi, here in (("L", left), ("R", ~left)):
        half = flat[(i < shape[0] / 2) == (hemi == "L")]
        inner = half[np.argsort(distance[half], kind="stable")][: int(len(half) * 0.85)]
        # From the back of the head forwards: visual voxels, other cortex, other brain.
        inner = inner[np.lexsort((rng.random(len(inner)), j[inner]))]
        count = int(here.sum())
        visual[here] = inner[:count]
        cortex.append(inner[: count + count // 2])
        brain.append(inner[: 2 * count + 10])
    subject = Subject(shape, np.sort(np.concatenate(brain)), np.sort(np.concatenate(cortex)), visual, {}, {}, {})
    _add_labels(subject, truth, rng)
    return subject


def _add_labels(subject: Subject, truth: xr.Dataset, rng: np.random.Generator) -> None:
    roi, rf_y = truth["roi"].values, truth["rf_y"].values
    # Upper field lies in the ventral part; regions without receptive fields are halved by position.
    second = np.where(np.isfinite(rf_y), rf_y < 0, np.arange(len(roi)) % 2 == 1)
    fine = np.array([UNIONS.get(r, (r, r))[int(h)] for r, h in zip(roi.tolist(), second.tolist())])
    for file, names in FILES.items():
        table = dict(enumerate(names, start=1))
        wanted = fine
        if file == "streams":
            wanted = np.array([_STREAM_OF[r] for r in roi.tolist()])
        elif file == "nsdgeneral":
            wanted = np.full(len(roi), "nsdgeneral")
        elif file == "Kastner2015":
            table = dict(enumerate(FILES["prf-visualrois"], start=1))
        elif file == "HCP_MMP1":
            table = {n: f"parcel{n}" for n in range(1, _N_PARCELS + 1)}
        labels = np.full(subject.shape, -1, dtype=np.int16)
        flat = labels.reshape(-1)
        flat[subject.cortex] = 0
        if file == "HCP_MMP1":
            flat[subject.cortex] = 1 + np.sort(rng.permutation(len(subject.cortex)) % _N_PARCELS)
        else:
            numbers = {v: k for k, v in table.items()}
            flat[subject.visual] = [numbers.get(str(w), 0) for w in wanted]
        subject.labels[file] = labels
        subject.tables[file] = table
    family = truth["family"].values
    for name, category in _CATEGORY.items():
        t = np.full(subject.shape, np.nan, dtype=np.float32)
        everywhere = t.reshape(-1)
        everywhere[subject.brain] = rng.uniform(-4, 3, len(subject.brain))
        own = subject.visual[family == name]
        # Manual regions were drawn liberally, at t > 0: a part of each does not reach 2.
        everywhere[own] = rng.uniform(0.1, 8, len(own))
        subject.tvalues[category] = t
