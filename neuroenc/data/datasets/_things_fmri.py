"""THINGS-fMRI (Hebart et al. 2023) in table format: responses, voxels and trials of each subject."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import DataError
from neuroenc._core.files import open_hdf5
from neuroenc._core.tables import numbers, read_table, whole_numbers
from neuroenc.data._images import binary_mask, open_image
from neuroenc.data._pictures import all_pictures
from neuroenc.data._stimuli import Stimuli
from neuroenc.data.datasets._recording import Recording, select_voxels, sessions_of, within
from neuroenc.data.datasets._registry import SESSIONS, Dataset, Source

_TRIALS = ("trial_type", "session", "run", "stimulus")
_VOXELS = ("voxel_id", "voxel_x", "voxel_y", "voxel_z", "nc_singletrial")


class ThingsFMRI(Dataset):
    r"""Single-trial responses of one subject of THINGS-fMRI.

    The published ceiling of one trial, :math:`NC = 100\, n^2 / (n^2 + 1)` percent of variance, gives the coordinate
    ``ncsnr`` :math:`n = \sqrt{NC / (100 - NC)}`. Values are z-scored within sessions.

    Parameters
    ----------
    source
        ``root`` holds ``betas_csv`` (or is it), and if you have them ``brainmasks`` and ``images``.
    subject : 1 to 3, or "sub-01" to "sub-03"
    voxels : "all", names of regions, or bool array (voxel,)
        Names are columns of the voxel table: V1, ..., "LO1 (prf)", lFFA, or FFA for both sides.
    sessions : int or sequence of int, optional
    repeats : {"keep", "average"}
    zscore : bool
    cache, max_memory
        As for `neuroenc.data.nsd`.

    Returns
    -------
    EncodingData
        ``responses`` with session, run, repeat, roi, ncsnr, and i, j, k where a brain mask tells the volume's place.
        ``stimuli``: ids are file names without ending, table with ``file, concept, split``.
        ``extra["splits"]``: ``train`` and ``test`` as published; ``extra["voxels"]``: the voxel table (receptive
        fields, reliabilities); catch trials are not part of the table format.

    References
    ----------
    Hebart et al. (2023), THINGS-data, a multimodal collection of large-scale datasets for investigating object
    representations in human brain and behavior, eLife 12:e82580.
    """

    name, title = "things-fmri", "THINGS-fMRI"
    common = SESSIONS
    expected = "betas_csv with sub-01_ResponseData.h5, sub-01_StimulusMetadata.csv and sub-01_VoxelMetadata.csv"

    def subjects(self, folder: Path) -> list[str]:
        return sorted(p.name.split("_")[0] for p in _tables(folder).glob("sub-*_ResponseData.h5"))

    def missing(self, folder: Path) -> list[str]:
        kinds = ("Stimulus", "Voxel")
        lost = [
            f"tables of {n}"
            for n in self.subjects(folder)
            if not all((_tables(folder) / f"{n}_{k}Metadata.csv").is_file() for k in kinds)
        ]
        if not within(folder, "sub-*brainmask.nii.gz") and not list(folder.parent.glob("brainmasks")):
            lost.append("brainmasks (voxels then have no place in a volume)")
        return lost

    def read(self, source: Source, *, subject: int | str = 1, voxels: Any = "all", sessions: Any = None) -> Recording:
        name = f"sub-{self.number(subject, 3, 'sub-?'):02d}"
        root = self.root(source)
        folder = _tables(root)
        files = ("ResponseData.h5", "StimulusMetadata.csv", "VoxelMetadata.csv")
        responses, shown, places = (folder / f"{name}_{file}" for file in files)
        lost = [p.name for p in (responses, shown, places) if not p.is_file()]
        if lost:
            raise self.lacks(folder, ", ".join(lost))
        trials = read_table(shown, _TRIALS, what="table of trials")
        for key in ("session", "run"):
            trials[key] = whole_numbers(trials, key, shown)
        empty = np.flatnonzero((trials["stimulus"] == "") | ~trials["trial_type"].isin(["train", "test"]))
        if len(empty):
            row = trials.iloc[empty[0]]
            raise DataError(
                f"{shown}, row {empty[0] + 1}: stimulus {row['stimulus']!r} of trial_type {row['trial_type']!r} "
                "(expected a name, and train or test)."
            )
        info = _voxel_table(places)
        values = _Block(responses, len(info), len(trials))
        # Regions stand in columns of 0 and 1 that are no measure.
        regions = {c: info[c].to_numpy() > 0 for c in _roi_columns(info)}
        everything = {"all": np.ones(len(info), dtype=bool)}
        spelling = ("{}", "l{}", "r{}", "{} (prf)")
        chosen = np.flatnonzero(select_voxels(voxels, everything | regions, "THINGS-fMRI", spelling=spelling))
        order = np.lexsort((np.arange(len(trials)), trials["run"], trials["session"]))
        trials = trials.iloc[order].assign(column=order)
        # Repeats count over all sessions, so a choice of them keeps its numbers.
        trials["repeat"] = trials.groupby("stimulus", sort=False).cumcount()
        trials = trials[trials["session"].isin(sessions_of(trials["session"], sessions, name))]
        own = info.iloc[chosen]
        nc = own["nc_singletrial"].to_numpy(float)
        if not ((nc >= 0) & (nc < 100)).all():
            raise DataError(f"nc_singletrial of {name} spans {nc.min():.3g} to {nc.max():.3g} (legal: 0 to below 100).")
        columns = trials["column"].to_numpy()
        labels = {k: trials[k].to_numpy() for k in ("session", "run", "repeat")} | _places(root, folder, name, own)
        labels |= {"stimulus": trials["stimulus"].map(_id).to_numpy(dtype=str), "subject": name}
        labels |= {"voxel": own["voxel_id"].to_numpy(), "ncsnr": np.sqrt(nc / (100 - nc))}
        labels |= {"roi": {n: m[chosen] for n, m in regions.items()}, "units": "a.u. (beta)", "space": "T1w"}

        def read(rows: slice, block: slice, budget: int) -> np.ndarray:
            return values.read(chosen[block], columns[rows])

        stimuli, extra = _stimuli(source, root, trials), {"voxels": own.set_index("voxel_id")}
        return Recording(labels, read, stimuli, [responses], splits=("train", "test"), extra=extra)


def _tables(folder: Path) -> Path:
    places = (folder, folder / "betas_csv", folder / "derivatives" / "betas_csv")
    return next((f for f in places if any(f.glob("sub-*_ResponseData.h5"))), folder)


def _voxel_table(path: Path) -> pd.DataFrame:
    """The voxels' table with numbers as numbers; an empty cell of a measure is missing, of what is needed an error."""
    table = read_table(path, _VOXELS, what="table of voxels")
    made: dict[str, Any] = {}
    for column in map(str, table):
        if column in _VOXELS:
            made[column] = (numbers if column == "nc_singletrial" else whole_numbers)(table, column, path)
        else:
            # Measures that were not made are NaN in the published tables.
            values = pd.to_numeric(table[column].replace({"": "nan", "True": "1", "False": "0"}), errors="coerce")
            text = values.isna() & ~table[column].str.lower().isin(["", "nan", "n/a", "na"])
            made[column] = table[column] if text.any() else values
    return pd.DataFrame(made)


class _Block:
    """The float block (voxel, trial) of a pandas frame, without its column names, which are pickled."""

    def __init__(self, path: Path, n_voxels: int, n_trials: int) -> None:
        self.path = path
        found: dict[str, tuple[int, ...]] = {}
        with open_hdf5(path, "responses") as handle:
            for group in handle.values():
                for key in group if hasattr(group, "keys") else ():
                    if key.endswith("_values") and group[key].dtype.kind == "f":
                        found[group[key].name] = tuple(group[key].shape)
        wide = {k: v for k, v in found.items() if v == (n_voxels, n_trials)}
        if len(wide) != 1:
            raise DataError(
                f"{path} holds {found or 'no block of decimal numbers'}; the tables name {n_voxels} voxels and "
                f"{n_trials} trials (expected one block of that shape). Next step: use the three files of one subject."
            )
        self.name = next(iter(wide))

    def read(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Values (trial, voxel): the span of both is read, then the wanted ones are taken."""
        if not len(rows):
            return np.empty((len(columns), 0), dtype=np.float32)
        left, right = int(columns.min()), int(columns.max()) + 1
        parts = []
        with open_hdf5(self.path, "responses") as handle:
            data = handle[self.name]
            # Voxels in stretches: the span of a region may be most of the brain.
            for part in np.split(rows, np.flatnonzero(np.diff(rows) > 64) + 1):
                box = data[int(part[0]) : int(part[-1]) + 1, left:right]
                parts.append(box[part - part[0]][:, columns - left].astype(np.float32).T)
        return np.concatenate(parts, axis=1)


def _roi_columns(info: pd.DataFrame) -> list[str]:
    skip = {*_VOXELS, "subject_id", "nc_testset", "splithalf_uncorrected", "splithalf_corrected"}
    names = [c for c in map(str, info.columns) if c not in skip and not c.startswith("prf-")]
    return [c for c in names if info[c].isin([0, 1]).all()]


def _places(root: Path, folder: Path, name: str, info: pd.DataFrame) -> dict[str, Any]:
    ijk = info[["voxel_x", "voxel_y", "voxel_z"]].to_numpy(np.int64)
    for place in (root, folder.parent):
        for path in within(place, f"{name}*brainmask.nii.gz"):
            if (ijk < 0).any():
                raise DataError(f"the table of voxels of {name} holds negative places, first {ijk.min(0).tolist()}.")
            image = open_image(path, "brain mask")
            inside = binary_mask(image, "brain mask")
            if (ijk >= inside.shape).any() or not inside[tuple(ijk.T)].all():
                raise DataError(f"{path} does not hold the voxels of {name}'s table: another space or subject?")
            return {"ijk": ijk, "affine": image.affine, "volume_shape": inside.shape}
    warnings.warn(f"{root} has no brain mask of {name}: voxels have no place in a volume.", stacklevel=3)
    return {}


def _id(file: str) -> str:
    return file.rsplit(".", 1)[0]


def _stimuli(source: Source, root: Path, trials: pd.DataFrame) -> Stimuli:
    first = trials.drop_duplicates("stimulus")
    kinds = trials.groupby("stimulus")["trial_type"].nunique()
    if (kinds > 1).any():
        raise DataError(f"{kinds.index[kinds > 1][0]} is both a training and a test picture of this subject.")
    ids = first["stimulus"].map(_id).to_numpy(dtype=str)
    # "ice_cream_12s" shows an ice cream: the last part numbers the picture.
    shown, concepts = first["stimulus"].to_numpy(), [s.rsplit("_", 1)[0] for s in ids]
    table = pd.DataFrame({"file": shown, "concept": concepts, "split": first["trial_type"].to_numpy()}, index=ids)
    places = (root / "images", root / "_image_database_things" / "images", root.parent / "images")
    folder = next((f for f in places if f.is_dir()), None)
    return Stimuli(ids, all_pictures(folder, ids), None, table, "things-fmri", source.manifest.licence)
