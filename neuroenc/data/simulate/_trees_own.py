"""Miniatures of a user's own data on disk: fMRIPrep's output with BIDS events, and GLMsingle's output."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc.data.simulate._trees import AFFINE, _picture, _volume

__all__ = ["bids_tree", "glmsingle_tree"]

_STEP = 0.05


def _haemodynamic(seconds: np.ndarray) -> np.ndarray:
    """Difference of two gamma densities with peaks near 5 and 15 s."""
    from scipy.stats import gamma

    return np.asarray(gamma.pdf(seconds, 6) - gamma.pdf(seconds, 16) / 6)


def bids_tree(
    path: str | os.PathLike[str],
    *,
    n_sessions: int = 2,
    n_runs: int = 2,
    n_trials: int = 10,
    noise: float = 0.1,
    tr: float = 1.5,
    seed: int = 0,
) -> dict[str, Any]:
    """One subject's BIDS events and preprocessed BOLD: responses planted in percent, drifts, head motion, noise.

    Runs show pictures of ten in any order, some twice, with a button press that is no stimulus.

    Parameters
    ----------
    path : path
        Root of the tree.
    n_sessions, n_runs, n_trials : int
        Sessions, runs of each, trials of each run.
    noise : float
        Standard deviation of the noise, in percent of the mean signal.
    tr : float
        Seconds.
    seed : int

    Returns
    -------
    dict
        ``values`` (trial, voxel) planted responses, ``table`` of trials, ``inside`` and ``brain`` (masks), ``shape``.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = bids_tree(folder, n_sessions=1, n_runs=1)
    >>> tree["values"].shape
    (10, 20)
    """
    root, rng = Path(path), np.random.default_rng(seed)
    shape, n_voxels, soa = (4, 4, 3), 20, 9.0
    inside = np.sort(rng.permutation(int(np.prod(shape)))[:n_voxels])
    brain = np.zeros(shape, dtype=np.uint8)
    brain.reshape(-1)[inside] = 1
    tuning = rng.standard_normal((10, n_voxels))
    n_times = int((n_trials * soa + 20) / tr)
    fine = np.arange(0, n_times * tr, _STEP)
    kernel = _haemodynamic(np.arange(0, 30, _STEP)) * _STEP
    prepared = root / "derivatives" / "fmriprep" / "sub-01"
    rows, values = [], []
    for s in range(1, n_sessions + 1):
        for r in range(1, n_runs + 1):
            shown = rng.integers(0, 10, n_trials)
            onset = 4 + soa * np.arange(n_trials) + rng.uniform(0, 1, n_trials)
            neural = np.zeros((len(fine), n_voxels))
            for k, t in zip(shown, onset, strict=True):
                neural[(fine >= t) & (fine < t + 2)] += tuning[k]
            signal = np.stack([np.convolve(x, kernel)[: len(fine)] for x in neural.T], axis=1)
            times = np.arange(n_times) * tr
            bold = signal[np.searchsorted(fine, times - 1e-9)]
            motion = np.cumsum(rng.standard_normal((n_times, 6)) * 0.02, axis=0)
            bold = bold + motion @ rng.standard_normal((6, n_voxels)) + np.cos(np.pi * times / times[-1])[:, None]
            bold += noise * rng.standard_normal(bold.shape)
            whole = np.zeros((*shape, n_times), dtype=np.float32)
            # Different means and sizes of signal in a session: percent of the mean takes them out.
            whole.reshape(-1, n_times)[inside] = ((1 + bold / 100) * rng.uniform(500, 900, n_voxels)).T
            stem = f"sub-01_ses-{s:02d}_task-pictures_run-{r:02d}"
            func = prepared / f"ses-{s:02d}" / "func"
            _volume(func / f"{stem}_space-T1w_desc-preproc_bold.nii.gz", whole)
            _volume(func / f"{stem}_space-T1w_desc-brain_mask.nii.gz", brain)
            sidecar = func / f"{stem}_space-T1w_desc-preproc_bold.json"
            sidecar.write_text(json.dumps({"RepetitionTime": tr, "StartTime": 0.0}))
            names = [f"{k}_{a}" for k in ("trans", "rot") for a in "xyz"]
            confounds = pd.DataFrame(motion, columns=names)
            confounds["trans_x_derivative1"] = confounds["trans_x"].diff()
            confounds.to_csv(func / f"{stem}_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a")
            events = pd.DataFrame(
                {
                    "onset": onset,
                    "duration": 2.0,
                    "trial_type": "picture",
                    "stim_file": [f"pictures/image{k}.png" for k in shown],
                }
            )
            press = pd.DataFrame({"onset": [onset[2] + 1], "duration": [0.5], "trial_type": ["button"]})
            events = pd.concat([events, press]).sort_values("onset")
            raw = root / "sub-01" / f"ses-{s:02d}" / "func"
            raw.mkdir(parents=True, exist_ok=True)
            events.to_csv(raw / f"{stem}_events.tsv", sep="\t", index=False, na_rep="n/a")
            rows += [(s, r, f"pictures/image{k}") for k in shown]
            values.append(tuning[shown])
    (root / "dataset_description.json").write_text(json.dumps({"Name": "miniature", "BIDSVersion": "1.8.0"}))
    for k in range(10):
        _picture(root / "stimuli" / "pictures" / f"image{k}.png", 20 * k)
    table = pd.DataFrame(rows, columns=["session", "run", "stimulus"])
    return {"values": np.concatenate(values), "table": table, "inside": inside, "brain": brain, "shape": shape}


def glmsingle_tree(
    path: str | os.PathLike[str], *, matlab: bool = False, flat: bool = False, n_trials: int = 12, seed: int = 0
) -> dict[str, Any]:
    """GLMsingle's output of two sessions, in Python's or MATLAB's HDF5, of a volume or of a table of voxels.

    Parameters
    ----------
    path : path
        Folder to write to.
    matlab : bool
        MATLAB's HDF5 (axes reversed) instead of Python's.
    flat : bool
        A table of voxels instead of a volume.
    n_trials : int
    seed : int

    Returns
    -------
    dict
        ``betas`` (x, y, z, trial), ``mask``, ``table`` of trials, ``affine``.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = glmsingle_tree(folder)
    >>> tree["betas"].shape
    (4, 3, 2, 12)
    """
    import h5py

    root, rng = Path(path), np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    shape = (4, 3, 2)
    betas = rng.standard_normal((*shape, n_trials)).astype(np.float32)
    mask = rng.random(shape) < 0.7
    betas[~mask] = np.nan
    first = n_trials // 3
    session = np.repeat([1, 2], [first, n_trials - first])
    table = pd.DataFrame({"stimulus": [f"s{n % 5}" for n in range(n_trials)], "session": session, "run": 1})
    written = betas[mask][:, None, None] if flat else betas
    name = "TYPED_FITHRF_GLMDENOISE_RR"
    if matlab:
        with h5py.File(root / f"{name}.mat", "w", userblock_size=512) as handle:
            handle["modelmd"] = written.T
    else:
        with h5py.File(root / f"{name}.hdf5", "w") as handle:
            handle["betasmd"] = written
    _volume(root / "mask.nii.gz", mask.astype(np.uint8))
    table.to_csv(root / "trials.csv", index=False)
    return {"betas": betas, "mask": mask, "table": table, "affine": AFFINE}
