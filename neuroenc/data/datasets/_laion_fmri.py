"""LAION-fMRI: single-trial betas of five subjects who saw 25,052 natural pictures, in the layout of its bucket."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import DataError
from neuroenc._core.files import atomic_path, open_hdf5, output_folder
from neuroenc._core.tables import read_table, whole_numbers
from neuroenc.data._images import check_affine, image_values, mask_on, open_image
from neuroenc.data._pictures import all_pictures
from neuroenc.data._stimuli import Stimuli
from neuroenc.data._volumes import placed
from neuroenc.data.datasets._recording import Recording, select_voxels, sessions_of, unpacked
from neuroenc.data.datasets._registry import SESSIONS, Dataset, Source

_BETAS = "{}_{}_task-images_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"
_TRIALS = "{}_{}_task-images_desc-SingletrialBetas_trials.tsv"
_MASK = "{}_task-images_space-T1w_desc-meanR2gt15mask_mask.nii.gz"
_CEILING = "{}_task-images_space-T1w_desc-Noiseceiling{}rep_statmap.nii.gz"


class LAIONfMRI(Dataset):
    r"""Single-trial betas (GLMsingle) of one subject of LAION-fMRI.

    The published ceiling of pictures seen n times, :math:`NC = 100\, s^2 / (s^2 + 1/n)` percent of variance, gives the
    coordinate ``ncsnr`` :math:`s`. Values are z-scored within sessions, as the data set's page recommends.

    Parameters
    ----------
    source
        ``root`` holds ``derivatives/glmsingle-tedana/sub-01/ses-01/func``, ... and, if you have them,
        ``derivatives/atlases/sub-01/rois`` and ``stimuli``.
    subject : number or "sub-01"
        One of those that are there.
    voxels : "brain", names of regions, bool array (x, y, z), or NIfTI mask
        "brain" is the subject's mask (mean R2 above 15 %). Voxels that are NaN in a session are left out.
    sessions : int or sequence of int, optional
    pictures : path, optional
        Folder to which the subject's pictures are unpacked, once, from ``stimuli/task-images_stimuli.h5``.
    repeats : {"keep", "average"}
    zscore : bool
    cache, max_memory
        As for `neuroenc.data.nsd`.

    Returns
    -------
    EncodingData
        ``responses`` with session, run, repeat, roi, ncsnr and i, j, k. ``stimuli``: ids are file names without ending;
        table with ``file`` and, from the table of pictures, ``dataset, unique_or_shared, n_reps``. ``extra["splits"]``:
        ``shared`` and ``unique``.

    References
    ----------
    ViCCo Group, LAION-fMRI, https://laion-fmri.hebartlab.com. Names of files and columns were compared with the
    documentation and the code of the package ``laion_fmri``, not with the data themselves.
    """

    name, title = "laion-fmri", "LAION-fMRI"
    common = SESSIONS
    expected = f"derivatives/glmsingle-tedana/sub-01/ses-01/func/{_BETAS.format('sub-01', 'ses-01')} and its trials.tsv"

    def subjects(self, folder: Path) -> list[str]:
        place = folder / "derivatives" / "glmsingle-tedana"
        return sorted({p.parents[2].name for p in place.glob("sub-*/ses-*/func/*desc-SingletrialBetas_statmap.nii.gz")})

    def missing(self, folder: Path) -> list[str]:
        lost = [] if (folder / "stimuli" / "task-images_metadata.csv").is_file() else ["stimuli (table and pictures)"]
        return lost + [f"regions of {s}" for s in self.subjects(folder) if not _regions(folder, s)]

    def read(
        self,
        source: Source,
        *,
        subject: int | str = 1,
        voxels: Any = "brain",
        sessions: Any = None,
        pictures: str | os.PathLike[str] | None = None,
    ) -> Recording:
        name = f"sub-{self.number(subject, 99, 'sub-?'):02d}"
        root = self.root(source)
        folder = root / "derivatives" / "glmsingle-tedana" / name
        files = {
            int(p.name[4:]): p / "func" / _BETAS.format(name, p.name)
            for p in sorted(folder.glob("ses-*"))
            if re.fullmatch(r"ses-\d+", p.name) and (p / "func" / _BETAS.format(name, p.name)).is_file()
        }
        if not files:
            raise self.lacks(root, f"betas of {name}")
        numbers = sessions_of(files, sessions, name)
        images = {n: open_image(files[n], f"betas of session {n}") for n in numbers}
        reference = images[numbers[0]]
        shape = tuple(int(x) for x in reference.shape[:3])
        for n, image in images.items():
            check_affine(reference, image, names=(f"session {numbers[0]}", f"session {n}"))
        regions = {r: mask_on(reference, p, f"mask {r}", "betas").reshape(-1) for r, p in _regions(root, name).items()}
        masks = dict(regions)
        if (folder / _MASK.format(name)).is_file():
            masks["brain"] = mask_on(reference, folder / _MASK.format(name), "brain mask", "betas").reshape(-1)
        keep = select_voxels(voxels, masks, self.title, everything="brain", shape=shape, reference=reference)
        finite = np.all([np.isfinite(np.asarray(i.dataobj[..., 0])).reshape(-1) for i in images.values()], axis=0)
        if (keep & ~finite).any():
            told = f"{int((keep & ~finite).sum())} of {int(keep.sum())} voxels of {name} have no betas in some session"
            warnings.warn(f"{told}; they are left out.", stacklevel=3)
        voxel = np.flatnonzero(keep & finite)
        trials = pd.concat([_trials(files[n], name, n, int(images[n].shape[3])) for n in numbers], ignore_index=True)
        held: dict[int, np.ndarray] = {}

        def read(rows: slice, block: slice, budget: int) -> np.ndarray:
            session = int(trials["session"].iloc[rows.start])
            if session not in held:
                held.clear()
                held[session] = unpacked(files[session], voxel, budget)
            return np.asarray(held[session][trials["beta_index"].to_numpy()[rows], block])

        labels: dict[str, Any] = {k: trials[k].to_numpy(np.int64) for k in ("session", "run")}
        labels |= {"stimulus": trials["stimulus"].to_numpy(dtype=str), "subject": name, "space": "T1w"}
        labels |= {"roi": {n: m[voxel] for n, m in regions.items()} or None, "units": "% signal change"}
        labels |= {"ncsnr": _ncsnr(folder, name, reference, voxel), **placed(voxel, shape, reference.affine)}
        stimuli = self._stimuli(source, root, trials, pictures)
        splits = ("shared", "unique") if "split" in stimuli.table else ()
        used = [files[n] for n in numbers]
        return Recording(labels, read, stimuli, used, {"sessions": numbers}, splits=splits, keep=True)

    def _stimuli(self, source: Source, root: Path, trials: pd.DataFrame, pictures: Any) -> Stimuli:
        first = trials.drop_duplicates("stimulus")
        ids, names = first["stimulus"].to_numpy(dtype=str), first["label"].to_numpy(dtype=str)
        table = pd.DataFrame({"file": names}, index=ids)
        path = root / "stimuli" / "task-images_metadata.csv"
        if path.is_file():
            known = read_table(path, ["image_name", "unique_or_shared"], what="table of pictures")
            rows = pd.Index(known["image_name"]).get_indexer(pd.Index(names))
            if (rows < 0).any():
                raise DataError(f"{path} lacks {names[rows < 0][0]!r}, which trials name. Is it of another release?")
            table = table.join(known.drop(columns="image_name").iloc[rows].set_axis(ids, axis=0))
            table["split"] = table["unique_or_shared"]
            if pictures is not None:
                _unpack(root / "stimuli" / "task-images_stimuli.h5", rows, names, Path(pictures))
        folder = root / "stimuli" / "images" if pictures is None else Path(pictures)
        images = all_pictures(folder if folder.is_dir() else None, ids)
        return Stimuli(ids, images, None, table, self.name, source.manifest.licence)


def _regions(root: Path, name: str) -> dict[str, Path]:
    folder = root / "derivatives" / "atlases" / name / "rois"
    return {p.name.removesuffix(".nii.gz"): p for p in sorted(folder.glob("*.nii.gz"))}


def _trials(betas: Path, name: str, session: int, n: int) -> pd.DataFrame:
    path = betas.with_name(_TRIALS.format(name, betas.parents[1].name))
    table = read_table(path, ["run", "beta_index", "label"], what="table of trials")
    table["run"] = table["run"].str.removeprefix("run-")
    for column in ("run", "beta_index"):
        table[column] = whole_numbers(table, column, path)
    if not np.array_equal(np.sort(table["beta_index"]), np.arange(n)):
        raise DataError(f"{path} names {len(table)} trials, the betas beside it are of {n}. Next step: download both.")
    table["stimulus"] = table["label"].str.rsplit(".", n=1).str[0]
    return table.assign(session=session).sort_values(["run", "beta_index"], kind="stable")


def _ncsnr(folder: Path, name: str, reference: Any, voxel: np.ndarray) -> np.ndarray | None:
    for n in (12, 4):
        path = folder / _CEILING.format(name, n)
        if path.is_file():
            image = open_image(path, "noise ceiling")
            check_affine(reference, image, names=("betas", "noise ceiling"))
            nc = np.nan_to_num(np.asarray(image_values(image, "noise ceiling"), dtype=float).reshape(-1)[voxel])
            if not ((nc >= 0) & (nc < 100)).all():
                raise DataError(f"{path} spans {nc.min():.3g} to {nc.max():.3g}; legal is 0 to below 100 percent.")
            return np.asarray(np.sqrt(nc / (100 - nc) / n))
    return None


def _unpack(archive: Path, rows: np.ndarray, names: np.ndarray, folder: Path) -> None:
    """Pictures of the archive that are not in the folder yet; their bytes are those of JPEG and PNG files."""
    output_folder(folder)
    with open_hdf5(archive, "archive of pictures") as handle:
        for row, name in zip(rows.tolist(), names.tolist(), strict=True):
            if not (folder / name).is_file():
                with atomic_path(folder / name, sync=False) as temporary:
                    temporary.write_bytes(np.asarray(handle["images"][row]).tobytes())
