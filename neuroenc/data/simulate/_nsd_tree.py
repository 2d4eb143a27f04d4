"""A miniature of the Natural Scenes Dataset on disk, in its official folders and file formats, with planted truth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr
from nibabel.freesurfer.mghformat import MGHImage

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError
from neuroenc._core.files import write_json, write_text
from neuroenc.data._build import make_responses
from neuroenc.data._stimuli import EncodingData
from neuroenc.data._volumes import placed
from neuroenc.data.datasets._nsd._design import Design, runs_of, stimulus_name
from neuroenc.data.datasets._nsd._layout import BETAS, SCALE, SPACES, Layout
from neuroenc.data.datasets._nsd._rois import FILES, TVALUES, UNIONS
from neuroenc.data.simulate._cortex import Design as Shown, _respond, simulate_cortex
from neuroenc.data.simulate._nuisances import Nuisances
from neuroenc.data.simulate._world import simulate_world

#: Sessions that the eight subjects of a miniature complete, as far as the design has them.
_COMPLETED = (4, 4, 3, 3, 4, 3, 4, 3)
#: Noise of the older versions of the betas relative to the last.
_NOISE = {"b1": 1.6, "b2": 1.25, "b3": 1.0}
_FSAVERAGE_VERTICES, _REPEATS = 162, 3
_ENDINGS = ("nii.gz", "hdf5")
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
class Experiment(Design):
    """Ids from 0, with the ``pattern`` (session, run, slot) of 0/1 that ``run`` follows from, and COCO's ids."""

    pattern: np.ndarray
    coco_id: np.ndarray


def make_experiment(n_shared: int, n_unique: int, n_sessions: int, rng: np.random.Generator) -> Experiment:
    """The same order for all eight subjects; the first pictures of everyone's list are the shared ones."""
    n_bank, n_own = n_shared + 8 * n_unique, n_shared + n_unique
    bank = rng.permutation(n_bank)
    shared = np.sort(bank[:n_shared])
    own = bank[n_shared:].reshape(8, n_unique)
    pictures = np.concatenate([np.tile(shared, (8, 1)), own], axis=1)
    per_session = n_own * _REPEATS // n_sessions
    order = rng.permutation(np.repeat(np.arange(n_own), _REPEATS))
    n_runs = 3
    sizes = [len(x) for x in np.array_split(np.arange(per_session), n_runs)]
    pattern = np.zeros((n_sessions, n_runs, max(sizes) + 2), dtype=np.uint8)
    for s in range(n_sessions):
        for r, size in enumerate(sizes):
            # Blank trials lie between the others.
            pattern[s, r, rng.permutation(pattern.shape[2])[:size]] = 1
    coco = rng.choice(np.arange(1, 581_929), n_bank, replace=False)
    return Experiment(order, pictures, shared, runs_of(pattern), n_sessions, pattern, coco)


def nsd_tree(
    path: str | os.PathLike[str],
    *,
    n_subjects: int = 3,
    n_sessions: Sequence[int] = _COMPLETED,
    n_shared: int = 20,
    n_unique: int = 40,
    n_voxels: int = 200,
    spaces: Sequence[str] = ("func1pt8mm",),
    betas: Sequence[str] = ("b3",),
    formats: Sequence[str] = _ENDINGS,
    ncsnr: tuple[float, float] = (0.2, 1.5),
    n_invalid: int = 2,
    seed: int = 0,
) -> list[EncodingData]:
    r"""Write a small copy of the Natural Scenes Dataset's layout, filled by the simulated cortex.

    The tree has what the loader (and other people's code) expects: ``nsddata`` (design, table of stimuli, behaviour,
    regions with their names, localiser maps, masks, transforms), ``nsddata_betas`` (int16 NIfTI and HDF5, MGH on
    fsaverage, with ncsnr) and ``nsddata_stimuli`` (picture bank, COCO captions). All eight subjects have a design and
    behaviour; the first ``n_subjects`` have brains. Every picture is planned three times; sessions that a subject did
    not complete are absent. Betas follow :func:`simulate_cortex`, with each session's own gain and offset, so that
    noise ceilings are wrong without z-scoring by session.

    Parameters
    ----------
    path : path
        Folder to write to.
    n_subjects : int
        1 to 8.
    n_sessions : sequence of 8 int
        Sessions that each subject completed; the largest is the design's number.
    n_shared, n_unique : int
        Pictures that all see, and those of each subject; three times their sum must divide by the sessions.
    n_voxels : int
        Simulated voxels of each subject, about; as many again are other cortex and brain (noise).
    spaces : sequence of {"func1pt8mm", "func1mm", "fsaverage", "nativesurface"}
        ``func1pt8mm`` is always written.
    betas : sequence of {"b1", "b2", "b3"}
        Older versions are noisier.
    formats : sequence of {"nii.gz", "hdf5"}
        Of the volumes.
    ncsnr : (float, float)
        Range of the planted ncsnr.
    n_invalid : int
        Voxels that are 0 throughout the last session, as at the edge of the image.
    seed : int

    Returns
    -------
    list of EncodingData
        One per written subject. ``responses``: percent signal change of the last version before it was rounded,
        (presentation, voxel) over the brain voxels of func1pt8mm. ``truth``: per voxel ``ncsnr`` and ``roi``.
        ``extra``: ``labels`` (file -> (x, y, z)), ``tables`` (file -> number -> name), ``tvalues``, ``nsd_id`` (trial,)
        from 0, ``coco_id``, ``n_sessions``, ``invalid`` (flat numbers), ``vertices`` (hemi -> flat number of the
        voxel that each native vertex shows, -1 for none) and ``to_fsaverage`` (hemi -> native vertex).

    Raises
    ------
    ConfigError
        An option is unknown, or numbers do not divide.

    References
    ----------
    Allen et al. (2022), Nature Neuroscience 25:116.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = nsd_tree(folder, n_subjects=1, formats=("nii.gz",))
    ...     sorted(p.name for p in Path(folder).iterdir())
    ['nsddata', 'nsddata_betas', 'nsddata_stimuli']
    """
    asked = ("space", spaces, SPACES), ("version of betas", betas, BETAS), ("format", formats, _ENDINGS)
    for kind, values, legal in asked:
        for value in values:
            one_of(kind, value, legal)
    planned = max(n_sessions)
    if not 1 <= n_subjects <= 8 or len(n_sessions) != 8 or 3 * (n_shared + n_unique) % planned:
        raise ConfigError(
            f"n_subjects={n_subjects} (1 to 8), {len(n_sessions)} numbers of sessions (8), and "
            f"{3 * (n_shared + n_unique)} trials in {planned} sessions (must divide)."
        )
    root = Path(path)
    experiment = make_experiment(n_shared, n_unique, planned, np.random.default_rng([seed, 7]))
    world = simulate_world(len(experiment.coco_id), seed=seed)
    completed = {s + 1: int(n) for s, n in enumerate(n_sessions)}
    _write_experiment(root, experiment, completed)
    _write_pictures(Layout(root, 1).stimuli, np.asarray(world.images), list(world.captions or ()), experiment)
    cortices = simulate_cortex(
        world, n_subjects=n_subjects, n_voxels=n_voxels, n_sessions=1, ncsnr=ncsnr, own=0.0, seed=seed
    )
    found = []
    for number, cortex in enumerate(cortices, start=1):
        assert cortex.truth is not None
        rng = np.random.default_rng([seed, 11, number])
        writer = _Writer(Layout(root, number), cortex.truth, experiment, completed[number], rng)
        written = writer.write(tuple(dict.fromkeys(("func1pt8mm", *spaces))), tuple(betas), tuple(formats), n_invalid)
        written.extra["n_sessions"] = completed
        found.append(written)
    return found


class _Writer:
    """One subject's volume, and its files. Flat numbers are in C order.

    ``brain``, ``cortex`` flat numbers; ``visual`` flat numbers of the simulated voxels, in their order; ``labels``
    file -> whole numbers (x, y, z), -1 outside cortex; ``tvalues`` category -> t (x, y, z).
    """

    def __init__(
        self, layout: Layout, truth: xr.Dataset, experiment: Experiment, n_sessions: int, rng: np.random.Generator
    ) -> None:
        self.layout, self.experiment, self.rng, self.n_sessions = layout, experiment, rng, n_sessions
        self.trials = experiment.trials(layout.subject).head(n_sessions * experiment.per_session)
        self.labels: dict[str, np.ndarray] = {}
        self.tables: dict[str, dict[int, str]] = {}
        self.tvalues: dict[str, np.ndarray] = {}
        self._place(truth)
        self._add_labels(truth)
        self.affine = np.diag([1.8, 1.8, 1.8, 1.0])
        self.affine[:3, 3] = [-1.8 * (s - 1) / 2 for s in self.shape]
        # Signal over this subject's own pictures has unit variance; other brain voxels have none.
        signal = truth["signal"].values[experiment.pictures[layout.subject - 1]]
        signal = (signal - signal.mean(axis=0)) / signal.std(axis=0)
        brain = self.brain
        at = np.searchsorted(brain, self.visual)
        self.signal = np.zeros((len(signal), len(brain)), dtype=np.float32)
        self.signal[:, at] = signal
        self.ncsnr = np.zeros(len(brain), dtype=np.float32)
        self.ncsnr[at] = truth["ncsnr"].values
        self.roi = np.full(len(brain), "", dtype="<U8")
        self.roi[at] = truth["roi"].values
        self.vertices = self._vertices()

    def _place(self, truth: xr.Dataset) -> None:
        """Put the simulated voxels into a small volume of an own shape, with cortex and brain around them."""
        n, number = truth.sizes["voxel"], self.layout.subject
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
            inner = inner[np.lexsort((self.rng.random(len(inner)), j[inner]))]
            count = int(here.sum())
            visual[here] = inner[:count]
            cortex.append(inner[: count + count // 2])
            brain.append(inner[: 2 * count + 10])
        self.shape, self.visual = shape, visual
        self.brain, self.cortex = (np.sort(np.concatenate(x)) for x in (brain, cortex))

    def _add_labels(self, truth: xr.Dataset) -> None:
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
            labels = np.full(self.shape, -1, dtype=np.int16)
            flat = labels.reshape(-1)
            flat[self.cortex] = 0
            if file == "HCP_MMP1":
                flat[self.cortex] = 1 + np.sort(self.rng.permutation(len(self.cortex)) % _N_PARCELS)
            else:
                numbers = {v: k for k, v in table.items()}
                flat[self.visual] = [numbers.get(str(w), 0) for w in wanted]
            self.labels[file] = labels
            self.tables[file] = table
        family = truth["family"].values
        for name, category in _CATEGORY.items():
            t = np.full(self.shape, np.nan, dtype=np.float32)
            everywhere = t.reshape(-1)
            everywhere[self.brain] = self.rng.uniform(-4, 3, len(self.brain))
            own = self.visual[family == name]
            # Manual regions were drawn liberally, at t > 0: a part of each does not reach 2.
            everywhere[own] = self.rng.uniform(0.1, 8, len(own))
            self.tvalues[category] = t

    def write(
        self, spaces: tuple[str, ...], betas: tuple[str, ...], formats: tuple[str, ...], n_invalid: int
    ) -> EncodingData:
        invalid = self.rng.choice(self.visual, n_invalid, replace=False)
        state = self.rng.bit_generator.state
        values = np.empty(0)
        for file, table in self.tables.items():
            _write_labels(self.layout.label_folder(), file, table)
        self._surface_maps(group="fsaverage" in spaces and self.layout.subject == 1)
        self._transforms()
        for version in sorted(betas):
            # The same session effects and trial noise in every version, only more of it.
            self.rng.bit_generator.state = state
            values = self._betas(_NOISE[version])
            values[-self.experiment.per_session :, np.isin(self.brain, invalid)] = 0
            for space in spaces:
                self._write_betas(space, version, values, formats)
        for space in ("func1pt8mm", "func1mm"):
            if space in spaces:
                self._volume_maps(space)
        return self._result(values, betas, invalid)

    def _betas(self, noise: float) -> np.ndarray:
        time = np.zeros(len(self.trials))
        for rows in self.trials.groupby(["session", "run"]).indices.values():
            time[rows] = np.linspace(-1, 1, len(rows))
        shown, session, run = (self.trials[k].to_numpy() for k in ("id_10k", "session", "run"))
        design = Shown(shown, session, run, np.zeros(len(shown), dtype=np.int64), time)
        ratio = np.where(self.ncsnr > 0, self.ncsnr, 1.0) / noise
        return _respond(self.signal, ratio, design, 0.05, self.rng, Nuisances())[0]

    def _grid(self, space: str) -> tuple[np.ndarray, np.ndarray]:
        """Affine and, for each place of the space, the place of func1pt8mm that it shows (flat numbers)."""
        shape = self.shape
        if space == "func1pt8mm":
            return self.affine, np.arange(np.prod(shape)).reshape(shape)
        fine = tuple(int(s * 1.4) for s in shape)
        index = [np.minimum(np.arange(f) * s // f, s - 1) for f, s in zip(fine, shape)]
        affine = self.affine.copy()
        affine[:3, :3] = np.diag([1.8 * s / f for s, f in zip(shape, fine)])
        return affine, np.ravel_multi_index(np.ix_(*index), shape)

    def _volume(self, values: np.ndarray) -> np.ndarray:
        """Values of the brain voxels, (..., brain), as flat volume (..., place)."""
        flat = np.zeros((*values.shape[:-1], int(np.prod(self.shape))), dtype=np.float32)
        flat[..., self.brain] = values
        return flat

    def _write_betas(self, space: str, version: str, values: np.ndarray, formats: tuple[str, ...]) -> None:
        folder = Layout(self.layout.root, self.layout.subject, space, BETAS[version]).betas_folder
        ncsnr = self._volume(self.ncsnr / np.float32(_NOISE[version]))
        per_session = self.experiment.per_session
        for n in range(self.n_sessions):
            flat = self._volume(values[n * per_session : (n + 1) * per_session])
            stem = f"betas_session{n + 1:02d}"
            if space.startswith("func"):
                affine, index = self._grid(space)
                _write_frames(folder, stem, np.moveaxis(flat[:, index], 0, -1), formats, affine)
                continue
            for hemi in self.vertices:
                ending = "mgh" if space == "fsaverage" else "hdf5"
                _write_frames(folder, f"{hemi}.{stem}", self._on_surface(flat, hemi, space).T, (ending,), self.affine)
        if space.startswith("func"):
            affine, index = self._grid(space)
            _write_volume(folder / "ncsnr.nii.gz", ncsnr[index], affine)
            return
        for hemi in self.vertices:
            _write_overlay(folder / f"{hemi}.ncsnr.mgh", self._on_surface(ncsnr, hemi, space))

    def _vertices(self) -> dict[str, np.ndarray]:
        """Each hemisphere's vertices: every cortical voxel at least once, and two without data."""
        left = np.unravel_index(self.cortex, self.shape)[0] < self.shape[0] / 2
        found = {}
        for hemi, here in (("lh", left), ("rh", ~left)):
            own = self.cortex[here]
            more = self.rng.choice(own, len(own) // 4)
            found[hemi] = self.rng.permutation(np.concatenate([own, more, [-1, -1]]))
        return found

    def _on_surface(self, flat: np.ndarray, hemi: str, space: str) -> np.ndarray:
        native = np.where(self.vertices[hemi] < 0, 0, flat[..., np.maximum(self.vertices[hemi], 0)])
        return native[..., self._to_fsaverage(hemi)] if space == "fsaverage" else native

    def _to_fsaverage(self, hemi: str) -> np.ndarray:
        rng = np.random.default_rng([self.layout.subject, hemi == "rh"])
        return rng.integers(0, len(self.vertices[hemi]), _FSAVERAGE_VERTICES)

    def _volume_maps(self, space: str) -> None:
        affine, index = self._grid(space)
        folder = self.layout.ppdata / space
        brain = self._volume(np.ones(len(self.brain)))
        _write_volume(folder / "brainmask.nii.gz", brain[index].astype(np.uint8), affine)
        _write_volume(folder / "mean.nii.gz", 1000 * brain[index], affine)
        for file, labels in self.labels.items():
            _write_volume(folder / "roi" / f"{file}.nii.gz", labels.reshape(-1)[index], affine)
        for category, t in self.tvalues.items():
            _write_volume(folder / f"floc_{TVALUES[category]}.nii.gz", t.reshape(-1)[index], affine)

    def _surface_maps(self, group: bool) -> None:
        own, shared = self.layout.label_folder(), self.layout.label_folder("fsaverage")
        for hemi in self.vertices:
            for file, labels in self.labels.items():
                _write_overlay(own / f"{hemi}.{file}.mgz", self._on_surface(labels.reshape(-1), hemi, "white"))
                if group and file in ("nsdgeneral", "streams", "HCP_MMP1", "Kastner2015"):
                    # Atlases stand on the group's surface once; regions of one person stand on that person's.
                    values = self._on_surface(labels.reshape(-1), hemi, "fsaverage")
                    _write_overlay(shared / f"{hemi}.{file}.mgz", values)
                    _write_labels(shared, file, self.tables[file])
            for category, t in self.tvalues.items():
                values = self._on_surface(t.reshape(-1), hemi, "white")
                _write_overlay(own / f"{hemi}.floc{TVALUES[category]}.mgz", values)

    def _transforms(self) -> None:
        """Voxel coordinates of each vertex, counted from 1 (9999: no data), and nearest vertices."""
        folder = self.layout.ppdata / "transforms"
        for hemi, flat in self.vertices.items():
            coords = np.stack(np.unravel_index(np.maximum(flat, 0), self.shape), axis=1) + 1.0
            coords[flat < 0] = 9999
            for layer in ("white", "layerB1", "layerB2", "layerB3"):
                _write_overlay(folder / f"{hemi}.func1pt8-to-{layer}.mgz", coords)
            _write_overlay(folder / f"{hemi}.white-to-fsaverage.mgz", self._to_fsaverage(hemi) + 1.0)

    def _result(self, values: np.ndarray, betas: Sequence[str], invalid: np.ndarray) -> EncodingData:
        rows, session, run = (self.trials[k].to_numpy() for k in ("nsd_id", "session", "run"))
        brain, last = self.brain, _NOISE[sorted(betas)[-1]]
        labels: dict[str, Any] = placed(brain, self.shape, self.affine) | {"roi": self.roi.tolist()}
        labels |= {"stimulus": stimulus_name(rows), "subject": self.layout.name, "session": session, "run": run}
        labels |= {"space": "func1pt8mm", "units": "% signal change", "source": "miniature NSD tree"}
        responses = make_responses(values, **labels, licence="BSD-3-Clause")
        known = {"ncsnr": self.ncsnr / np.float32(last), "region": self.roi}
        truth = xr.Dataset({k: ("voxel", v) for k, v in known.items()}, {"voxel": brain})
        extra: dict[str, Any] = {k: getattr(self, k) for k in ("labels", "tables", "tvalues")}
        extra |= {"nsd_id": rows, "coco_id": self.experiment.coco_id, "invalid": np.sort(invalid)}
        extra |= {"vertices": self.vertices, "to_fsaverage": {h: self._to_fsaverage(h) for h in self.vertices}}
        return EncodingData(responses, None, truth, extra)


def _ready(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_volume(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(values, affine), _ready(path))


def _write_overlay(path: Path, values: np.ndarray) -> None:
    """(vertex,), or (vertex, n) along the last axis, as FreeSurfer stores overlays."""
    array = np.asarray(values, dtype=np.float32)
    shaped = array[:, None, None] if array.ndim == 1 else array[:, None, None, :]
    nib.save(MGHImage(shaped, np.eye(4)), _ready(path))


def _as_int16(percent: np.ndarray) -> np.ndarray:
    """Percent signal change times 300 in whole numbers."""
    return np.clip(np.round(percent * SCALE), -32768, 32767).astype(np.int16)


def _write_frames(folder: Path, stem: str, values: np.ndarray, formats: tuple[str, ...], affine: np.ndarray) -> None:
    """Betas (place..., trial) of one session; HDF5 has the axes turned, as MATLAB writes them."""
    for ending in formats:
        path = _ready(folder / f"{stem}.{ending}")
        if ending == "nii.gz":
            _write_volume(path, _as_int16(values), affine)
        elif ending == "hdf5":
            stored = _as_int16(values).T
            chunks = (len(stored), *(1,) * (stored.ndim - 1)) if stored.ndim == 4 else None
            with h5py.File(path, "w") as handle:
                handle.create_dataset("betas", data=stored, chunks=chunks)
        else:
            _write_overlay(path, values)


def _write_labels(folder: Path, name: str, table: dict[int, str]) -> None:
    lines = ["0 Unknown", *(f"{n} {text}" for n, text in table.items())]
    write_text(_ready(folder / f"{name}.mgz.ctab"), "\n".join(lines) + "\n")


def _write_experiment(root: Path, experiment: Experiment, n_completed: dict[int, int]) -> None:
    """Design, table of stimuli, and every subject's behaviour; ids count from 1 but for ``nsdId``."""
    from scipy.io import savemat

    folder = Layout(root, 1).experiment
    content = {"masterordering": experiment.order[None] + 1, "basiccnt": np.zeros((1, len(experiment.pattern)))}
    content |= {"sharedix": experiment.shared[None] + 1, "subjectim": experiment.pictures + 1}
    content["stimpattern"] = experiment.pattern
    savemat(_ready(folder / "nsd_expdesign.mat"), content)
    n = len(experiment.coco_id)
    split = np.where(np.arange(n) % 5 == 0, "val2017", "train2017")
    table = pd.DataFrame({"cocoId": experiment.coco_id, "cocoSplit": split, "cropBox": "(0.0, 0.0, 0.1, 0.1)"})
    table = table.assign(loss=0.0, nsdId=np.arange(n), flagged=False, BOLD5000=False)
    table["shared1000"] = np.isin(np.arange(n), experiment.shared)
    trials = [np.flatnonzero(experiment.order == x) + 1 for x in range(experiment.pictures.shape[1])]
    for s in range(8):
        table[f"subject{s + 1}"] = np.isin(np.arange(n), experiment.pictures[s]).astype(int)
        for r in range(3):
            column = np.zeros(n, dtype=np.int64)
            column[experiment.pictures[s]] = [t[r] if len(t) > r else 0 for t in trials]
            table[f"subject{s + 1}_rep{r}"] = column
    table.to_csv(_ready(folder / "nsd_stim_info_merged.csv"))
    for s, sessions in n_completed.items():
        shown = experiment.trials(s).head(sessions * experiment.per_session)
        table = pd.DataFrame({"SUBJECT": s, "SESSION": shown["session"], "RUN": shown["run"]})
        table["TRIAL"] = shown.groupby(["session", "run"]).cumcount() + 1
        table["73KID"], table["10KID"] = shown["nsd_id"] + 1, shown["id_10k"] + 1
        table.to_csv(_ready(Layout(root, s).ppdata / "behav" / "responses.tsv"), sep="\t", index=False)


def _write_pictures(folder: Path, images: np.ndarray, captions: list[tuple[str, ...]], experiment: Experiment) -> None:
    """The bank of pictures, and COCO's captions of them in COCO's two files."""
    with h5py.File(_ready(folder / "nsd_stimuli.hdf5"), "w") as handle:
        handle.create_dataset("imgBrick", data=images, chunks=(1, *images.shape[1:]))
    for number, split in enumerate(("train2017", "val2017")):
        own = [
            (n, c, text) for n, texts in enumerate(captions) if (n % 5 == 0) == number for c, text in enumerate(texts)
        ]
        rows = [{"image_id": int(experiment.coco_id[n]), "id": 10 * n + c, "caption": text} for n, c, text in own]
        write_json(_ready(folder / "annotations" / f"captions_{split}.json"), {"annotations": rows})
