"""fMRIPrep's output with BIDS events: single-trial or block responses by nilearn's GLM."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.optional import require
from neuroenc._core.tables import numbers, read_table
from neuroenc.data._images import check_affine, mask_on, open_image
from neuroenc.data._preprocess import column_moments
from neuroenc.data._series import cosines, make_timeseries, without
from neuroenc.data._stimuli import EncodingData
from neuroenc.data._volumes import placed, roi_flags
from neuroenc.data.datasets._bids_layout import Run, describe_bids, find_runs
from neuroenc.data.datasets._glmsingle import stimuli_of
from neuroenc.data.datasets._recording import Recording, collect, unpacked
from neuroenc.data.datasets._registry import Dataset, Found


def read_bids(
    root: str | os.PathLike[str],
    subject: str | int,
    *,
    task: str | None = None,
    space: str | None = None,
    sessions: Any = None,
    select: Mapping[str, Any] | None = None,
    derivatives: str | os.PathLike[str] | None = None,
    stimulus: str | None = None,
    model: str = "trial",
    method: str = "lsa",
    hrf: str = "spm",
    high_pass: float = 0.01,
    confounds: str | Sequence[str] | None = "motion",
    noise: str = "ols",
    mask: Any = None,
    rois: Any = None,
    zscore: str | bool = "session",
    repeats: str = "keep",
    images: str | os.PathLike[str] | bool = True,
    cache: bool | str = True,
    max_memory: str | int | None = None,
    licence: str = "",
    progress: bool = True,
) -> EncodingData:
    r"""Responses of one subject from preprocessed BOLD and events.

    In each run :math:`Y = X B + C G + E`, with Y in percent of the voxel's mean, X one convolved regressor for each
    trial (or stimulus), C drifts and confounds; the rows of B are the responses. With ``method="lss"`` each trial has a
    fit of its own, in which the other trials are one regressor.

    Parameters
    ----------
    root : path
        BIDS data set with the events; ``derivatives`` (default ``root/derivatives/fmriprep``) has the BOLD.
    subject : str or int
        Label, with or without "sub-".
    task, space : str, optional
        Needed where there are several.
    sessions : labels, optional
    select : mapping entity -> label, optional
        Which recordings where several differ: acq, ce, rec, dir, echo, part, chunk, mod, res, den, or desc (default
        "preproc"), such as ``{"acq": "hi"}``.
    stimulus : str, optional
        Column of the events that names what was shown; default the first there of stim_file, stimulus, trial_type. Rows
        that are "n/a" in it (fixation, button presses) are modelled but are no responses. Files are named by their path
        below ``stimuli`` without ending, "faces/01".
    model : {"trial", "condition", "timeseries"}
        One response a trial, or a stimulus and run (blocks), or a volume: the series itself (movies, speech), in
        percent of the voxel's mean without drifts and confounds, see `make_timeseries`. A series needs no events, has
        no pictures, and is z-scored within runs.
    method : {"lsa", "lss"}
    hrf : str
        nilearn's ``hrf_model`` with one basis function: "spm" or "glover".
    high_pass : float, Hz
        Of the cosine drifts.
    confounds : "motion", "motion24", "acompcor", "none", or column names
        Of fMRIPrep's table; six or 24 motion parameters, or motion and five aCompCor components.
    noise : {"ols", "ar1"}
    mask : NIfTI, optional
        Default: voxels in fMRIPrep's brain mask of every run.
    rois : mapping name -> NIfTI mask, optional
    zscore : {"session", "run", False}
    repeats : {"keep", "average"}
    images : path or bool
        True looks for pictures in ``root/stimuli``, and says so where it goes without because some are absent.
    cache, max_memory, licence, progress
        As for `read_glmsingle`.

    Returns
    -------
    EncodingData
        ``responses`` with session, run, repeat, roi, i, j, k. ``extra``: ``events`` (all rows, with their run),
        ``runs`` (files), ``glm`` (settings).

    Raises
    ------
    ConfigError, DataError
        An option is unknown; or files are absent, ambiguous or do not belong together; or a trial has no volumes.

    References
    ----------
    Mumford et al. (2012), Deconvolving BOLD activation in event-related designs for multivoxel pattern classification
    analyses, NeuroImage 59:2636 (lsa and lss). Esteban et al. (2019), fMRIPrep, Nature Methods 16:111.
    """
    if not isinstance(zscore, bool):
        one_of("value of zscore:", zscore, ("session", "run"))
    glm = Glm(model, method, hrf, float(high_pass), confounds, noise)
    runs = find_runs(Path(root), subject, task, space, sessions, derivatives, select, glm.model != "timeseries")
    reference = open_image(runs[0].bold, "BOLD")
    for run in runs[1:]:
        check_affine(reference, open_image(run.bold, run.bold.name), names=(runs[0].bold.name, run.bold.name))
    shape = tuple(int(x) for x in reference.shape[:3])
    inside = _mask(runs, mask, reference)
    voxel = np.flatnonzero(inside)
    if glm.model == "timeseries":
        keep = {"cache": cache, "max_memory": max_memory, "progress": progress}
        return _read_series(runs, glm, voxel, placed(voxel, shape, reference.affine), rois, licence, bool(zscore), keep)
    events = [run.read_events(stimulus) for run in runs]
    shown = [glm.rows(e) for e in events]
    for run, own in zip(runs, shown, strict=True):
        if not own:
            raise DataError(f"{run.events} shows no stimulus: every row is n/a. Next step: stimulus=COLUMN.")
    _check_files(runs, events)
    ids = np.array([s for own in shown for s in own])
    counts = [len(own) for own in shown]
    session = np.repeat([r.session for r in runs], counts)
    number = np.repeat([r.number for r in runs], counts)
    roi = {n: roi_flags(n, item, reference, "BOLD").reshape(-1)[voxel] for n, item in (rois or {}).items()} or None
    options = {"data": "bids", "subject": runs[0].subject, "task": runs[0].task, **glm.settings()}
    options |= {"files": [r.bold.name for r in runs], "tr": [r.tr for r in runs], "start": [r.start for r in runs]}
    labels = {"stimulus": ids, "subject": runs[0].subject, "session": session, "run": number}
    labels |= {**placed(voxel, shape, reference.affine), "roi": roi, "space": runs[0].space or "native"}
    labels |= {"units": "% signal change", "source": "bids", "licence": licence}
    read = _by_run(runs, counts, voxel, lambda k, values: fit_run(runs[k], events[k], values, glm))
    table = pd.concat([e.assign(session=r.session, run=r.number) for r, e in zip(runs, events, strict=True)])
    files = [p for r in runs for p in (r.bold, r.events, *([r.confounds] if r.confounds else []))]
    extra = {"events": table.reset_index(drop=True), "runs": [str(r.bold) for r in runs], "glm": glm.settings()}
    stimuli, by = _stimuli(Path(root), ids, images, licence), "run" if zscore == "run" else "session"
    recording = Recording(labels, read, stimuli, files, options, extra=extra, by=by)
    return collect(
        recording, zscore=bool(zscore), repeats=repeats, cache=cache, max_memory=max_memory, progress=progress
    )


def _by_run(
    runs: list[Run], counts: list[int], voxel: np.ndarray, work: Callable[[int, np.ndarray], np.ndarray]
) -> Callable[[slice, slice, int], np.ndarray]:
    """Reader of rows and voxels, which holds one run's volumes at a time and hands them to ``work``."""
    edges = np.concatenate([[0], np.cumsum(counts)])
    held: dict[int, np.ndarray] = {}

    def read(rows: slice, block: slice, budget: int) -> np.ndarray:
        parts = []
        for k in range(*np.searchsorted(edges, [rows.start, rows.stop])):
            if k not in held:
                held.clear()
                held[k] = unpacked(runs[k].bold, voxel, budget)
                check_baseline(runs[k], held[k], max(1, budget // 2 // (8 * len(held[k]))))
            parts.append(work(k, held[k][:, block]))
        return np.concatenate(parts)

    return read


def _read_series(
    runs: list[Run], glm: Glm, voxel: np.ndarray, place: dict[str, Any], rois: Any, licence: str, scale: bool, keep: Any
) -> EncodingData:
    """Every volume of every run as a row, without drifts and confounds."""
    images = [open_image(run.bold, run.bold.name) for run in runs]
    tr = runs[0].tr
    other = next((run for run in runs if abs(run.tr - tr) > 1e-6), None)
    if other is not None:
        raise DataError(
            f"{runs[0].bold.name} has a volume every {tr:g} s, {other.bold.name} every {other.tr:g} s: one series has "
            "one repetition time. Next step: sessions=, or select=."
        )
    counts = [int(image.shape[3]) for image in images]
    session, number, start = (np.repeat([getattr(r, k) for r in runs], counts) for k in ("session", "number", "start"))
    named = make_timeseries(np.zeros((sum(counts), 1)), tr=tr, run=number, session=session)
    roi = {n: roi_flags(n, item, images[0], "BOLD").reshape(-1)[voxel] for n, item in (rois or {}).items()} or None
    labels = {"stimulus": named["stimulus"].values, "subject": runs[0].subject, "session": session, "run": number}
    labels |= {**place, "roi": roi, "space": runs[0].space or "native"}
    labels |= {"units": "% signal change", "source": "bids", "licence": licence}
    options = {"data": "bids", "subject": runs[0].subject, "task": runs[0].task, **glm.settings()}
    options |= {"files": [r.bold.name for r in runs], "tr": tr, "start": [r.start for r in runs]}

    def cleaned(k: int, values: np.ndarray) -> np.ndarray:
        mean, alive = baseline(values)
        n, out = len(values), np.zeros(values.shape, dtype=np.float32)
        nuisance, _ = _confounds(runs[k], glm, n)
        design = [cosines(n, tr, glm.high_pass), np.zeros((n, 0)) if nuisance is None else nuisance]
        signal = 100 * (values[:, alive].astype(np.float64) / mean[alive] - 1)
        out[:, alive] = without(signal, np.column_stack(design), runs[k].bold.name)
        return out

    files = [p for r in runs for p in (r.bold, *([r.confounds] if r.confounds else []))]
    extra = {"runs": [str(r.bold) for r in runs], "glm": glm.settings()}
    stimuli = stimuli_of(named["stimulus"].values, None, "bids", licence)
    read = _by_run(runs, counts, voxel, cleaned)
    found = collect(Recording(labels, read, stimuli, files, options, extra=extra, by="run"), zscore=scale, **keep)
    assert found.responses is not None
    time = ("presentation", named["time"].values + start)
    return replace(found, responses=found.responses.assign_coords(time=time).assign_attrs(tr=tr))


class Bids(Dataset):
    """BIDS data sets with fMRIPrep's output, which `read_bids` reads."""

    name, title = "bids", "BIDS with fMRIPrep's output"

    def recognise(self, folder: Path) -> Found | None:
        found = describe_bids(folder)
        return found and Found(self.name, self.title, folder, *found)


def _check_files(runs: list[Run], events: list[pd.DataFrame]) -> None:
    """One id stands for one picture: 01.jpg and 01.png of one folder have one name without ending."""
    known: dict[str, str] = {}
    for run, own in zip(runs, events, strict=True):
        for name, path in zip(own["stimulus"], own["file"], strict=True):
            # As the file is called, however its folder is written.
            file = PurePosixPath(path.replace("\\", "/")).name
            if name and known.setdefault(name, file) != file:
                raise DataError(
                    f"{run.events}: {path!r} and {known[name]!r} are both the stimulus {name!r}. "
                    "Next step: name the files so that they differ in more than their ending, or stimulus=COLUMN."
                )


def _stimuli(root: Path, ids: np.ndarray, images: Any, licence: str) -> Any:
    if images is True:
        images = root / "stimuli" if (root / "stimuli").is_dir() else None
        try:
            return stimuli_of(ids, images, "bids", licence)
        except DataError as error:
            warnings.warn(f"stimuli have no pictures: {error}", stacklevel=3)
            images = None
    return stimuli_of(ids, images or None, "bids", licence)


def _mask(runs: list[Run], mask: Any, reference: Any) -> np.ndarray:
    if mask is not None:
        inside = mask_on(reference, mask, "mask", "BOLD")
    else:
        without = [r.bold.name for r in runs if r.mask is None]
        if without:
            raise ConfigError(f"{without[0]} has no desc-brain_mask beside it. Next step: mask=MASK.nii.gz.")
        inside = np.ones(reference.shape[:3], dtype=bool)
        for run in runs:
            inside &= mask_on(reference, run.mask, "brain mask", "BOLD")
    if not inside.any():
        raise DataError(f"the mask is empty: 0 of {inside.size} voxels.")
    return inside


_MOTION = [f"{k}_{a}" for k in ("trans", "rot") for a in "xyz"]
_CONFOUNDS = {
    "none": [],
    "motion": _MOTION,
    "motion24": [m + x for m in _MOTION for x in ("", "_derivative1", "_power2", "_derivative1_power2")],
    "acompcor": [*_MOTION, *(f"a_comp_cor_{n:02d}" for n in range(5))],
}
_LEGAL = {
    "model": ("trial", "condition", "timeseries"),
    "method": ("lsa", "lss"),
    "hrf": ("spm", "glover"),
    "noise": ("ols", "ar1"),
}


@dataclass(frozen=True)
class Glm:
    """Settings of the model."""

    model: str
    method: str
    hrf: str
    high_pass: float
    confounds: str | Sequence[str] | None
    noise: str

    def __post_init__(self) -> None:
        for name, legal in _LEGAL.items():
            one_of(name, getattr(self, name), legal)
        if isinstance(self.confounds, str):
            one_of("set of confounds", self.confounds, _CONFOUNDS)
        if not 0 <= self.high_pass < 0.5:
            raise ConfigError(f"high_pass={self.high_pass} Hz is not legal; 0 to 0.5, usually 0.01.")

    def settings(self) -> dict[str, Any]:
        return {k: v if isinstance(v, (str, float)) or v is None else list(v) for k, v in vars(self).items()}

    def rows(self, events: pd.DataFrame) -> list[str]:
        """Stimulus of each response of a run."""
        shown = [s for s in events["stimulus"] if s]
        return shown if self.model == "trial" else list(dict.fromkeys(shown))

    def columns(self) -> list[str]:
        return _CONFOUNDS[self.confounds] if isinstance(self.confounds, str) else list(self.confounds or ())


def fit_run(run: Run, events: pd.DataFrame, values: np.ndarray, glm: Glm) -> np.ndarray:
    """Responses (row, voxel) of one run, float32, percent signal change; voxels without signal or baseline give 0.

    Parameters
    ----------
    run
        Timing and confounds.
    events
        As `Run.read_events` gives them.
    values : array (time, voxel)
    glm
    """
    glm_module = require("nilearn.glm.first_level", "brain")
    n = len(values)
    times = run.start + run.tr * np.arange(n)
    named = events.copy()
    shown = named["stimulus"] != ""
    rows = glm.rows(events)
    names = [f"trial_{k:05d}" for k in range(len(rows))]
    if glm.model == "trial":
        named.loc[shown, "trial_type"] = names
    else:
        named.loc[shown, "trial_type"] = named.loc[shown, "stimulus"].map(dict(zip(rows, names, strict=True)))
    named["trial_type"] = named["trial_type"].where(shown, named["other"])
    nuisance, labels = _confounds(run, glm, n)
    drift = {"drift_model": "cosine" if glm.high_pass else None, "high_pass": glm.high_pass or 0.01}
    more = {"add_regs": nuisance, "add_reg_names": labels} if labels else {}
    table = named[["onset", "duration", "trial_type"]]
    design = glm_module.make_first_level_design_matrix(times, table, hrf_model=glm.hrf, **drift, **more)
    peak = np.array([np.abs(design[name]).max() for name in names])
    empty = np.flatnonzero(peak < 1e-6)
    if len(empty):
        onset = named["onset"][named["trial_type"] == names[empty[0]]].iloc[0]
        raise DataError(
            f"{run.events.name}: {rows[empty[0]]!r} at {onset:g} s has no volume in {run.bold.name}, which ends at "
            f"{times[-1]:g} s ({len(empty)} such rows). Next step: check that both are of one run, and in seconds."
        )
    # A fit for each trial has two regressors for all of them.
    width = design.shape[1] if glm.method == "lsa" else design.shape[1] - len(names) + 2
    if width >= n:
        raise DataError(
            f"{run.bold.name} has {n} volumes for {width} regressors. "
            "Next step: model='condition', method='lss', or fewer confounds."
        )
    late = peak < 0.1 * np.median(peak)
    if late.any():
        first = rows[int(np.argmax(late))]
        warnings.warn(
            f"{run.events.name}: {int(late.sum())} responses, first that to {first!r}, have less than a tenth of their"
            f" course inside {run.bold.name}: their values are noise. Next step: leave these events out.",
            stacklevel=2,
        )
    _check_apart(run, design[names].to_numpy(dtype=np.float64), rows)
    mean, alive = baseline(values)
    signal = 100 * (values[:, alive].astype(np.float64) / mean[alive] - 1)
    out = np.zeros((len(rows), values.shape[1]), dtype=np.float32)
    if not alive.any():
        return out
    matrix = design.to_numpy(dtype=np.float64)
    at = [design.columns.get_loc(name) for name in names]
    if glm.method == "lsa":
        out[:, alive] = _effects(glm_module, signal, matrix, glm.noise)[at]
        return out
    rest = np.delete(matrix, at, axis=1)
    # Convolution is linear: the regressor of all other trials is the sum of theirs.
    total = matrix[:, at].sum(axis=1)
    for k, column in enumerate(at):
        own = matrix[:, column]
        parts = [own, total - own] if len(at) > 1 else [own]
        single = np.column_stack([*parts, rest])
        out[k, alive] = _effects(glm_module, signal, single, glm.noise)[0]
    return out


def baseline(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each voxel over time (float64), and whether it is a baseline: above the voxel's standard deviation."""
    mean, sd = column_moments(values)
    with np.errstate(invalid="ignore"):
        return mean, np.isfinite(values).all(axis=0) & (mean > sd) & (sd > 1e-6 * np.abs(mean))


def check_baseline(run: Run, values: np.ndarray, width: int) -> None:
    """Refuse BOLD without its mean (demeaned, z-scored, negative), of which no percentage can be taken.

    Raises
    ------
    DataError
        More than half of the voxels that change have no mean above their standard deviation.

    Warns
    -----
    UserWarning
        Some have none, or hold NaN: their responses are 0.
    """
    n, lost, missing, examples = 0, 0, 0, ""
    for start in range(0, values.shape[1], width):
        block = np.asarray(values[:, start : start + width])
        nan = ~np.isfinite(block).all(axis=0)
        mean, sd = column_moments(block)
        moving = ~nan & (sd > 1e-6 * np.abs(mean))
        bad = moving & (mean <= sd)
        if bad.any() and not lost:
            examples = f"{mean[bad][0]:.3g}, {sd[bad][0]:.3g}"
        n, lost, missing = n + int(moving.sum()), lost + int(bad.sum()), missing + int(nan.sum())
    if lost > n / 2:
        raise DataError(
            f"{run.bold.name} has no baseline: {lost} of {n} voxels have a mean that is not above their standard "
            f"deviation (first: {examples}), so percent signal change has no scale. "
            "Next step: BOLD with its mean (fMRIPrep's desc-preproc)."
        )
    if lost or missing:
        warnings.warn(
            f"{run.bold.name}: {lost} voxels have no baseline (a mean that is not above their standard deviation) and"
            f" {missing} hold values that are not finite; their responses are 0.",
            stacklevel=2,
        )


def _check_apart(run: Run, trials: np.ndarray, rows: list[str]) -> None:
    """Two responses of one regressor cannot be told apart."""
    size = np.linalg.norm(trials, axis=0)
    alike = np.triu((trials / size).T @ (trials / size) > 1 - 1e-9, 1)
    if alike.any():
        a, b = np.argwhere(alike)[0].tolist()
        raise DataError(
            f"{run.events.name}: {rows[a]!r} and {rows[b]!r} ({int(alike.sum())} such pairs) have the same onset and "
            "duration. Next step: mend the onsets, or keep one event."
        )


def _effects(glm_module: Any, signal: np.ndarray, matrix: np.ndarray, noise: str) -> np.ndarray:
    """Estimates (column, voxel); voxels of one autocorrelation are fitted together."""
    labels, results = glm_module.run_glm(signal, matrix, noise_model=noise)
    theta = np.empty((matrix.shape[1], signal.shape[1]))
    for label, result in results.items():
        theta[:, labels == label] = result.theta
    return theta


def _confounds(run: Run, glm: Glm, n: int) -> tuple[np.ndarray | None, list[str]]:
    wanted = glm.columns()
    if not wanted:
        return None, []
    if run.confounds is None:
        raise DataError(f"{run.bold.name} has no desc-confounds_timeseries.tsv beside it. Next step: confounds='none'.")
    table = read_table(run.confounds, sep="\t", what="confounds")
    lost = [c for c in wanted if c not in table]
    if lost:
        raise DataError(unknown_name(f"confound in {run.confounds.name}", lost[0], list(map(str, table.columns))))
    steady = [c for c in map(str, table) if c.startswith("non_steady_state")]
    if steady and not set(steady) & set(wanted):
        warnings.warn(
            f"{run.confounds.name} marks {len(steady)} volumes before the steady state, which stay in the model. Next"
            f" step: add {steady[0]!r} and its like to confounds.",
            stacklevel=2,
        )
    if len(table) != n:
        raise DataError(f"{run.confounds.name} has {len(table)} rows, {run.bold.name} {n} volumes.")
    values = np.stack([numbers(table, c, run.confounds, missing=("n/a",)) for c in wanted], axis=1)
    # Derivatives have no first value; a hole anywhere else has no value that could stand there.
    holes = np.argwhere(np.isnan(values[1:]))
    if len(holes):
        row, column = holes[0]
        raise DataError(
            f"{run.confounds}, row {row + 2}: {wanted[column]} is n/a ({len(holes)} such cells); only the first "
            "row may lack a value. Next step: other confounds, or confounds='none'."
        )
    values = np.where(np.isfinite(values), values, 0.0)
    values = values - values.mean(axis=0)
    scale = values.std(axis=0)
    keep = scale > 0
    return values[:, keep] / scale[keep], [c for c, k in zip(wanted, keep, strict=True) if k]
