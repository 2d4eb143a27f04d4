"""fMRIPrep's output with BIDS events: single-trial or block responses by nilearn's GLM."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data._images import binary_mask, check_affine, open_image, open_mask
from neuroenc.data._masked import roi_flags
from neuroenc.data._stimuli import EncodingData
from neuroenc.data.datasets._bids_glm import Glm, check_baseline, fit_run
from neuroenc.data.datasets._bids_layout import Run, describe_bids, find_runs
from neuroenc.data.datasets._glmsingle import stimuli_of
from neuroenc.data.datasets._recording import Recording, collect, one_of, unpacked
from neuroenc.data.datasets._registry import Dataset, Found

__all__ = ["Bids", "read_bids"]


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
    model : {"trial", "condition"}
        One response a trial, or a stimulus and run (blocks).
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
    one_of("model", model, ("trial", "condition"))
    one_of("value of zscore:", zscore, ("session", "run", False, True))
    glm = Glm(model, method, hrf, float(high_pass), confounds, noise)
    runs = find_runs(root, subject, task=task, space=space, sessions=sessions, derivatives=derivatives, select=select)
    reference = open_image(runs[0].bold, "BOLD")
    for run in runs[1:]:
        check_affine(reference, open_image(run.bold, run.bold.name), names=(runs[0].bold.name, run.bold.name))
    shape = tuple(int(x) for x in reference.shape[:3])
    inside = _mask(runs, mask, reference)
    voxel = np.flatnonzero(inside)
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
    options = {
        "data": "bids",
        "subject": runs[0].subject,
        "task": runs[0].task,
        **glm.settings(),
        "files": [r.bold.name for r in runs],
        "tr": [r.tr for r in runs],
        "start": [r.start for r in runs],
    }
    labels = {
        "stimulus": ids,
        "subject": runs[0].subject,
        "session": session,
        "run": number,
        "voxel": voxel,
        "ijk": np.stack(np.unravel_index(voxel, shape), 1),
        "affine": reference.affine,
        "volume_shape": shape,
        "roi": roi,
        "space": runs[0].space or "native",
        "units": "% signal change",
        "source": "bids",
        "licence": licence,
    }
    edges = np.concatenate([[0], np.cumsum(counts)])
    held: dict[int, np.ndarray] = {}

    def read(rows: slice, block: slice, budget: int) -> np.ndarray:
        parts = []
        for k in range(*np.searchsorted(edges, [rows.start, rows.stop])):
            if k not in held:
                held.clear()
                held[k] = unpacked(runs[k].bold, voxel, budget)
                check_baseline(runs[k], held[k], max(1, budget // 2 // (8 * len(held[k]))))
            parts.append(fit_run(runs[k], events[k], held[k][:, block], glm))
        return np.concatenate(parts)

    table = pd.concat([e.assign(session=r.session, run=r.number) for r, e in zip(runs, events, strict=True)])
    recording = Recording(
        labels,
        read,
        _stimuli(Path(root), ids, images, licence),
        [p for r in runs for p in (r.bold, r.events, *([r.confounds] if r.confounds else []))],
        options,
        extra={"events": table.reset_index(drop=True), "runs": [str(r.bold) for r in runs], "glm": glm.settings()},
        by="run" if zscore == "run" else "session",
    )
    return collect(
        recording, zscore=bool(zscore), repeats=repeats, cache=cache, max_memory=max_memory, progress=progress
    )


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
        for name, file in zip(own["stimulus"], own["file"], strict=True):
            if name and known.setdefault(name, _plain(file)) != _plain(file):
                raise DataError(
                    f"{run.events}: {file!r} and {known[name]!r} are both the stimulus {name!r}. Next step: name the"
                    " files so that they differ in more than their ending, or stimulus=COLUMN."
                )


def _plain(file: str) -> str:
    """A picture as its file is called, however its folder is written."""
    return PurePosixPath(file.replace("\\", "/")).name


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
        image = open_mask(mask, "mask")
        check_affine(image, reference, names=("mask", "BOLD"))
        inside = binary_mask(image, "mask")
    else:
        without = [r.bold.name for r in runs if r.mask is None]
        if without:
            raise ConfigError(f"{without[0]} has no desc-brain_mask beside it. Next step: mask=MASK.nii.gz.")
        inside = np.ones(reference.shape[:3], dtype=bool)
        for run in runs:
            image = open_image(run.mask, "brain mask")
            check_affine(image, reference, names=("brain mask", "BOLD"))
            inside &= binary_mask(image, f"brain mask {run.mask.name if run.mask else ''}")
    if not inside.any():
        raise DataError(f"the mask is empty: 0 of {inside.size} voxels.")
    return inside
