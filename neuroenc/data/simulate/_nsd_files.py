"""Writers of the Natural Scenes Dataset's files: NIfTI, HDF5, MGH, MATLAB and text, as the official tree has them."""

from __future__ import annotations

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.freesurfer.mghformat import MGHImage

from neuroenc._core.files import write_json, write_text
from neuroenc.data.datasets._nsd._betas import SCALE
from neuroenc.data.simulate._nsd_plan import Experiment


def _ready(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_volume(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(values, affine), _ready(path))


def write_overlay(path: Path, values: np.ndarray) -> None:
    """(vertex,), or (vertex, n) along the last axis, as FreeSurfer stores overlays."""
    array = np.asarray(values, dtype=np.float32)
    shaped = array[:, None, None] if array.ndim == 1 else array[:, None, None, :]
    nib.save(MGHImage(shaped, np.eye(4)), _ready(path))


def as_int16(percent: np.ndarray) -> np.ndarray:
    """Percent signal change times 300 in whole numbers."""
    return np.clip(np.round(percent * SCALE), -32768, 32767).astype(np.int16)


def write_frames(folder: Path, stem: str, values: np.ndarray, formats: tuple[str, ...], affine: np.ndarray) -> None:
    """Betas (place..., trial) of one session; HDF5 has the axes turned, as MATLAB writes them."""
    for ending in formats:
        path = _ready(folder / f"{stem}.{ending}")
        if ending == "nii.gz":
            write_volume(path, as_int16(values), affine)
        elif ending == "hdf5":
            stored = as_int16(values).T
            chunks = (len(stored), *(1,) * (stored.ndim - 1)) if stored.ndim == 4 else None
            with h5py.File(path, "w") as handle:
                handle.create_dataset("betas", data=stored, chunks=chunks)
        else:
            write_overlay(path, values)


def write_labels(folder: Path, name: str, table: dict[int, str]) -> None:
    lines = ["0 Unknown", *(f"{n} {text}" for n, text in table.items())]
    write_text(_ready(folder / f"{name}.mgz.ctab"), "\n".join(lines) + "\n")


def write_experiment(root: Path, experiment: Experiment, n_completed: dict[int, int]) -> None:
    """Design, table of stimuli, and every subject's behaviour; ids count from 1 but for ``nsdId``."""
    from scipy.io import savemat

    folder = root / "nsddata" / "experiments" / "nsd"
    content = {
        "masterordering": experiment.order[None] + 1,
        "basiccnt": np.zeros((1, len(experiment.pattern))),
        "sharedix": experiment.shared[None] + 1,
        "subjectim": experiment.pictures + 1,
        "stimpattern": experiment.pattern,
    }
    savemat(_ready(folder / "nsd_expdesign.mat"), content)
    n = len(experiment.coco_id)
    table = pd.DataFrame(
        {
            "cocoId": experiment.coco_id,
            "cocoSplit": np.where(np.arange(n) % 5 == 0, "val2017", "train2017"),
            "cropBox": "(0.0, 0.0, 0.1, 0.1)",
            "loss": 0.0,
            "nsdId": np.arange(n),
            "flagged": False,
            "BOLD5000": False,
            "shared1000": np.isin(np.arange(n), experiment.shared),
        }
    )
    trials = [np.flatnonzero(experiment.order == x) + 1 for x in range(experiment.pictures.shape[1])]
    for s in range(8):
        table[f"subject{s + 1}"] = np.isin(np.arange(n), experiment.pictures[s]).astype(int)
        for r in range(3):
            column = np.zeros(n, dtype=np.int64)
            column[experiment.pictures[s]] = [t[r] if len(t) > r else 0 for t in trials]
            table[f"subject{s + 1}_rep{r}"] = column
    table.to_csv(_ready(folder / "nsd_stim_info_merged.csv"))
    for s, sessions in n_completed.items():
        write_table_of_responses(root, s, experiment, sessions)


def write_table_of_responses(root: Path, subject: int, experiment: Experiment, n_sessions: int) -> None:
    rows = np.arange(n_sessions * experiment.per_session)
    table = pd.DataFrame(
        {
            "SUBJECT": subject,
            "SESSION": rows // experiment.per_session + 1,
            "RUN": experiment.run[rows],
            "TRIAL": pd.Series(rows).groupby([rows // experiment.per_session, experiment.run[rows]]).cumcount() + 1,
            "73KID": experiment.pictures[subject - 1][experiment.order[rows]] + 1,
            "10KID": experiment.order[rows] + 1,
        }
    )
    path = root / "nsddata" / "ppdata" / f"subj{subject:02d}" / "behav" / "responses.tsv"
    table.to_csv(_ready(path), sep="\t", index=False)


def write_pictures(root: Path, images: np.ndarray, captions: list[tuple[str, ...]], experiment: Experiment) -> None:
    """The bank of pictures, and COCO's captions of them in COCO's two files."""
    folder = root / "nsddata_stimuli" / "stimuli" / "nsd"
    with h5py.File(_ready(folder / "nsd_stimuli.hdf5"), "w") as handle:
        handle.create_dataset("imgBrick", data=images, chunks=(1, *images.shape[1:]))
    for number, split in enumerate(("train2017", "val2017")):
        rows = [
            {"image_id": int(experiment.coco_id[n]), "id": 10 * n + c, "caption": text}
            for n, texts in enumerate(captions)
            if (n % 5 == 0) == bool(number)
            for c, text in enumerate(texts)
        ]
        write_json(_ready(folder / "annotations" / f"captions_{split}.json"), {"annotations": rows})
