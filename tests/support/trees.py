"""Miniatures of data sets on disk, in their folders and file formats, with the values that were written."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc.data.simulate import algonauts2023_tree, god_tree, nsd_tree

__all__ = [
    "algonauts2023_tree",
    "bids_tree",
    "bold5000_tree",
    "glmsingle_tree",
    "god_tree",
    "nsd_tree",
    "things_fmri_tree",
]

AFFINE = np.array([[2.0, 0, 0, -70], [0, 2, 0, -90], [0, 0, 2, -50], [0, 0, 0, 1]])
_STEP = 0.05


def _picture(path: Path, n: int) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), n % 256, dtype=np.uint8)).save(path)


def _volume(path: Path, values: np.ndarray) -> None:
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(values, AFFINE).to_filename(path)


def _sessions(rng: np.random.Generator, lengths: Sequence[int], n_voxels: int) -> list[np.ndarray]:
    """Noise with a gain and an offset of each session."""
    return [
        (rng.standard_normal((n, n_voxels)) * rng.uniform(0.5, 3) + rng.uniform(-5, 5)).astype(np.float32)
        for n in lengths
    ]


def bold5000_tree(
    path: str | os.PathLike[str],
    *,
    subject: str = "CSI4",
    lengths: Sequence[int] = (8, 6, 8, 6, 8, 6, 8, 6, 8),
    release: int = 2,
    shape: tuple[int, int, int] = (4, 5, 3),
    lists: bool = True,
    pictures: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """BOLD5000 of one subject: release 2 (volumes and regions) or release 1 (regions, HDF5 and MATLAB).

    Parameters
    ----------
    path
        Root of the tree.
    subject
        "CSI1" to "CSI4".
    lengths
        Trials of each session; runs hold at most four.
    release : {1, 2}
    shape
        Of the volumes.
    lists, pictures
        Whether Stimuli_Presentation_Lists and the pictures are written.
    seed : int

    Returns
    -------
    dict
        ``sessions`` (arrays (trial, voxel in C order)), ``names`` (as listed, with ``rep_``), ``ids``, ``brain``,
        ``masks``.
    """
    root, rng = Path(path), np.random.default_rng(seed)
    total, n_voxels = sum(lengths), int(np.prod(shape))
    new = [
        [f"COCO_train2014_{n:012d}.jpg", f"n01440764_{n}.JPEG", f"kitchen{n}.jpg"][n % 3 - 1] for n in range(1, total)
    ]
    # The first pictures come again, once or more often, at the end of sessions.
    names, fresh, again = [], iter(new), 0
    for s, length in enumerate(lengths):
        for t in range(length):
            repeated = s > 0 and t == length - 1
            names.append(f"rep_{new[again % 3]}" if repeated else next(fresh))
            again += repeated
    sessions = _sessions(rng, lengths, n_voxels)
    brain = rng.random(shape) < 0.7
    masks = {n: brain & (rng.random(shape) < 0.3) for n in ("LHPPA", "RHPPA", "LHLO", "RHEarlyVis")}
    if release == 2:
        stem = f"{subject}_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR"
        for s, values in enumerate(sessions, start=1):
            _volume(root / f"{stem}_ses-{s:02d}.nii.gz", values.T.reshape(*shape, -1))
        _volume(root / f"{subject}_brainmask.nii.gz", brain.astype(np.uint8))
        for n, mask in masks.items():
            _volume(root / "spm" / f"sub-{subject}" / f"sub-{subject}_mask-{n}.nii.gz", mask.astype(np.uint8))
        folder = root / "BOLD5000_GLMsingle_ROI_betas" / "py"
        folder.mkdir(parents=True)
        for n, mask in masks.items():
            np.save(folder / f"{stem}_allses_{n}.npy", np.concatenate(sessions)[:, mask.reshape(-1)])
        (root / f"{subject}_imgnames.txt").write_text("\n".join(names) + "\n")
    else:
        import h5py
        from scipy.io import savemat

        regions = {n: np.concatenate(sessions)[:, m.reshape(-1)] for n, m in masks.items()}
        for kind in ("h5", "mat"):
            (root / "ROIs" / subject / kind).mkdir(parents=True)
        with h5py.File(root / "ROIs" / subject / "h5" / f"{subject}_ROIs_TR34.h5", "w") as handle:
            for n, values in regions.items():
                handle[n] = values
        savemat(root / "ROIs" / subject / "mat" / f"{subject}_ROIs_TR34.mat", regions)
        (root / "ROIs" / "stim_lists").mkdir()
        listed = root / "ROIs" / "stim_lists" / f"{subject[:-1]}0{subject[-1]}_stim_lists.txt"
        listed.write_text("\n".join(names) + "\n")
    stimuli = root / "BOLD5000_Stimuli"
    if lists:
        start = 0
        for s, length in enumerate(lengths, start=1):
            folder = stimuli / "Stimuli_Presentation_Lists" / subject / f"{subject}_sess{s:02d}"
            folder.mkdir(parents=True)
            own = names[start : start + length]
            start += length
            for r in range(0, length, 4):
                (folder / f"CSI_sess{s:02d}_run{r // 4 + 1:02d}.txt").write_text("\n".join(own[r : r + 4]) + "\n")
    ids = [n.removeprefix("rep_").rsplit(".", 1)[0] for n in names]
    if pictures:
        for i, name in enumerate(sorted({x.removeprefix("rep_") for x in names})):
            kind = "COCO" if name.startswith("COCO") else "ImageNet" if name.endswith("JPEG") else "Scene"
            _picture(stimuli / "Scene_Stimuli" / "Presented_Stimuli" / kind / name, i)
    return {"sessions": sessions, "names": names, "ids": ids, "brain": brain, "masks": masks}


def things_fmri_tree(
    path: str | os.PathLike[str], *, n_sessions: int = 3, n_train: int = 6, n_test: int = 2, seed: int = 0
) -> dict[str, Any]:
    """THINGS-fMRI of one subject in table format (``betas_csv``), with its brain mask and pictures.

    The responses lie in HDF5 as pandas writes a frame of mixed columns: floats in one block, ``voxel_id`` in another.

    Parameters
    ----------
    path : path
        Root of the tree.
    n_sessions : int
    n_train, n_test : int
        Trials of training and of test pictures in a session.
    seed : int

    Returns
    -------
    dict
        ``values`` (trial, voxel), ``table`` of trials, ``voxels`` (metadata), ``ncsnr`` (voxel,), ``brain`` mask, and
        the volume's ``shape``.
    """
    import h5py

    root, rng = Path(path), np.random.default_rng(seed)
    shape = (4, 4, 3)
    brain = np.sort(rng.permutation(int(np.prod(shape)))[:30])
    rows: list[tuple[Any, ...]] = []
    for s in range(1, n_sessions + 1):
        own = [("train", f"dog_{s:02d}{t:02d}s.jpg") for t in range(n_train)]
        own += [("test", f"mango_{t:02d}s.jpg") for t in range(n_test)]
        for t, (kind, name) in enumerate(own[i] for i in rng.permutation(len(own))):
            rows.append((kind, s, t // 4 + 1, 1, len(rows), name))
    table = pd.DataFrame(rows, columns=["trial_type", "session", "run", "subject_id", "trial_id", "stimulus"])
    values = np.concatenate(_sessions(rng, [n_train + n_test] * n_sessions, len(brain)))
    folder = root / "betas_csv"
    folder.mkdir(parents=True)
    table.to_csv(folder / "sub-01_StimulusMetadata.csv", index=False)
    ijk = np.stack(np.unravel_index(brain, shape), 1)
    ncsnr = rng.uniform(0, 1, len(brain))
    voxels = pd.DataFrame(
        {
            "voxel_id": np.arange(len(brain)),
            "subject_id": 1,
            "voxel_x": ijk[:, 0],
            "voxel_y": ijk[:, 1],
            "voxel_z": ijk[:, 2],
            "nc_singletrial": 100 * ncsnr**2 / (ncsnr**2 + 1),
            "nc_testset": 100 * ncsnr**2 / (ncsnr**2 + 1 / n_sessions),
            "splithalf_uncorrected": 0.1,
            "splithalf_corrected": 0.2,
            "prf-size": 1.5,
            "V1": np.arange(30) < 8,
            "LO1 (prf)": np.arange(30) % 5 == 0,
            "lFFA": np.arange(30) > 24,
            "rFFA": np.arange(30) == 20,
        }
    )
    voxels = voxels.astype(dict.fromkeys(("V1", "LO1 (prf)", "lFFA", "rFFA"), int))
    voxels.to_csv(folder / "sub-01_VoxelMetadata.csv", index=False)
    with h5py.File(folder / "sub-01_ResponseData.h5", "w") as handle:
        group = handle.create_group("ResponseData")
        group.attrs["pandas_type"] = np.bytes_("frame")
        group["axis1"] = np.arange(len(brain))
        group["block0_values"] = values.T.astype(np.float64)
        group["block1_items"] = np.array([b"voxel_id"])
        group["block1_values"] = np.arange(len(brain))[:, None]
    mask = np.zeros(shape, dtype=np.uint8)
    mask.reshape(-1)[brain] = 1
    _volume(root / "brainmasks" / "sub-01_space-T1w_brainmask.nii.gz", mask)
    for n, name in enumerate(sorted(set(table["stimulus"]))):
        _picture(root / "images" / name[: name.rindex("_")] / name, n)
    return {"values": values, "table": table, "voxels": voxels, "ncsnr": ncsnr, "brain": brain, "shape": shape}


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
