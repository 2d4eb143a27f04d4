"""NSD's two side experiments in the official folders: synthetic pictures, and mental imagery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc._core.tables import read_table, whole_numbers
from neuroenc.data._io import read_mat
from neuroenc.data._stimuli import PixelBank, Stimuli
from neuroenc.data.datasets._nsd._design import runs_of
from neuroenc.data.datasets._nsd._layout import BETAS, HEMIS, SPACES, Layout, n_trials, read_session
from neuroenc.data.datasets._nsd._load import mask_of, roi_of
from neuroenc.data.datasets._nsd._rois import Regions
from neuroenc.data.datasets._recording import Recording
from neuroenc.data.datasets._registry import SESSIONS, Dataset, Source

#: Pictures of NSD-synthetic that everyone saw; those behind them are in each subject's own colours.
_COMMON = 220
#: Blocks of NSD-imagery in the order of its betas; attention has two betas a trial, one each epoch.
_RUNS = tuple(f"{kind}{letter}{part}" for letter in "ABC" for kind, part in (("vis", ""), ("att", ""), ("img", "_1")))
_RUNS += ("imgA_2", "imgB_2", "imgC_2")
_TASKS = {"vis": "vision", "att": "attention", "img": "imagery"}
_TRIALS = 48

Trials = tuple[pd.DataFrame, Stimuli, int]


class _Side(Dataset):
    """One session of betas beside NSD's own, in the same volumes and regions."""

    stem: str
    by: str
    common = SESSIONS

    def subjects(self, folder: Path) -> list[str]:
        place = folder / "nsddata_betas" / "ppdata"
        return sorted({p.parents[2].name for p in place.glob(f"subj*/*/{self.stem}betas_*/*betas_{self.stem}.*")})

    def missing(self, folder: Path) -> list[str]:
        place = folder / "nsddata" / "experiments" / self.stem
        return [] if place.is_dir() else [f"nsddata/experiments/{self.stem}"]

    def _recording(
        self,
        source: Source,
        design: Callable[[Layout], Trials],
        *,
        subject: Any,
        space: str,
        betas: str,
        voxels: Any,
        rois: Any,
    ) -> Recording:
        one_of("space of NSD", space, SPACES)
        one_of("version of the betas", betas, ("b2", "b3"))
        root = self.root(source)
        layout = Layout(root, self.number(subject, 8, "subj?"), space, f"{self.stem}{BETAS[betas]}")
        sides = tuple(f"{h}." for h in HEMIS) if layout.kind == "surface" else ("",)
        endings = ("hdf5", "nii.gz", "mgh", "mgz")
        names = [[layout.betas_folder / f"{s}betas_{self.stem}.{e}" for s in sides] for e in endings]
        there = [tuple(files) for files in names if all(f.is_file() for f in files)]
        if not there:
            raise self.lacks(root, str(names[0][0].relative_to(root)))
        files = there[0]
        trials, stimuli, expected = design(layout)
        if n_trials(files) != expected:
            raise DataError(
                f"{files[0]} holds {n_trials(files)} betas, the design {expected}. Next step: get both again."
            )
        regions = Regions(layout)
        places = np.flatnonzero(mask_of(layout, regions, voxels))
        if not places.size:
            raise DataError(f"voxels={voxels!r} selects none of {layout.n_places} places of {layout.name}.")
        columns, held = trials["beta"].to_numpy(), dict[tuple[int, int], np.ndarray]()

        def read(rows: slice, block: slice, budget: int) -> np.ndarray:
            key = (block.start, block.stop)
            if key not in held:
                held.clear()
                held[key] = read_session(layout, files, places[block], budget)
            return np.asarray(held[key][columns[rows]])

        ncsnr = layout.read_map("ncsnr", where="betas")
        labels: dict[str, Any] = {"stimulus": trials["stimulus"].to_numpy(dtype=str), "subject": layout.name}
        labels |= {"session": np.ones(len(trials), dtype=np.int64), "run": trials["run"].to_numpy(np.int64)}
        labels |= {"voxel": places, "roi": roi_of(regions, rois, places), "space": space, "units": "% signal change"}
        labels |= {"ncsnr": None if ncsnr is None else ncsnr[places], **layout.coordinates(places)}
        extra = {"trials": trials.drop(columns="beta").reset_index(drop=True)}
        return Recording(labels, read, stimuli, files, {"space": space, "betas": betas}, extra=extra, by=self.by)


class NSDSynthetic(_Side):
    """Responses of one subject to the 284 synthetic pictures of NSD-synthetic, from NSD's official folders.

    Noise, gratings, spirals, words, line drawings, manipulated scenes: pictures far from those of NSD, for testing
    encoders out of their distribution. Odd runs have a fixation task, even runs a memory task on the same pictures.

    Parameters
    ----------
    source
        ``root`` holds ``nsddata``, ``nsddata_betas`` and, for pictures, ``nsddata_stimuli``.
    subject : 1 to 8, or "subj01" to "subj08"
    space, voxels, rois
        As `neuroenc.data.nsd`, whose regions are read.
    betas : {"b2", "b3"}
        ``nsdsyntheticbetas_fithrf`` or ``nsdsyntheticbetas_fithrf_GLMdenoise_RR``.
    images : bool
        Read the pictures, 220 of everyone and 64 of this subject, into memory (about 0.8 GB).

    Returns
    -------
    EncodingData
        ``responses``, ids "synthetic001" (1-based, as ``masterordering`` counts). ``stimuli.table``: ``number``, and
        ``own``, whether the picture is in this subject's own colours. ``extra["trials"]``: a row a presentation with
        ``run`` and ``task``.

    References
    ----------
    Gifford, Cichy, Naselaris & Kay (2025), A 7T fMRI dataset of synthetic images for out-of-distribution modeling of
    vision, arXiv:2503.06286. Names of files and variables were compared with the paper's code and with two readers
    by others, not with the data themselves.
    """

    name, title, stem, by = "nsd-synthetic", "NSD-synthetic", "nsdsynthetic", "session"
    expected = (
        "nsddata_betas/ppdata/subj01/func1pt8mm/nsdsyntheticbetas_fithrf_GLMdenoise_RR/betas_nsdsynthetic.hdf5 and "
        "nsddata/experiments/nsdsynthetic/nsdsynthetic_expdesign.mat"
    )

    def read(
        self,
        source: Source,
        *,
        subject: int | str = 1,
        space: str = "func1pt8mm",
        betas: str = "b3",
        voxels: Any = "nsdgeneral",
        rois: Any = True,
        images: bool = False,
    ) -> Recording:
        def design(layout: Layout) -> Trials:
            path = layout.root / "nsddata" / "experiments" / self.stem / f"{self.stem}_expdesign.mat"
            content = read_mat(path, ("masterordering", "stimpattern"), "design of NSD-synthetic")
            order = content["masterordering"].ravel().astype(np.int64)
            run = runs_of(np.atleast_3d(content["stimpattern"]).astype(np.int64))
            if len(run) != len(order) or order.min(initial=1) < 1:
                raise DataError(f"{path} orders {len(order)} pictures from {order.min()} and shows {len(run)} trials.")
            trials = pd.DataFrame({"stimulus": [f"synthetic{n:03d}" for n in order], "run": run})
            trials["task"] = np.where(run % 2 == 1, "fixation", "memory")
            number = np.unique(order)
            table = pd.DataFrame({"number": number, "own": number > _COMMON})
            table.index = pd.Index([f"synthetic{n:03d}" for n in number])
            pictures = self._pictures(layout, number) if images else None
            ids = table.index.to_numpy(dtype=str)
            stimuli = Stimuli(ids, pictures, None, table, self.name, source.manifest.licence)
            return trials.assign(beta=np.arange(len(order))), stimuli, len(order)

        how = {"subject": subject, "space": space, "betas": betas, "voxels": voxels, "rois": rois}
        return self._recording(source, design, **how)

    def _pictures(self, layout: Layout, number: np.ndarray) -> np.ndarray:
        folder = layout.root / "nsddata_stimuli" / "stimuli" / self.stem
        banks = [f"{self.stem}_stimuli.hdf5", f"{self.stem}_colorstimuli_{layout.name}.hdf5"]
        common, own = (PixelBank(folder / name, "imgBrick") for name in banks)
        first, second = number[number <= _COMMON] - 1, number[number > _COMMON] - 1 - _COMMON
        parts = [bank[int(n)] for bank, rows in ((common, first), (own, second)) for n in rows]
        return np.stack(parts)


class NSDImagery(_Side):
    """Responses of one subject in NSD-imagery: pictures seen, and the same pictures imagined, from NSD's folders.

    Three sets of six targets: A, simple shapes; B, natural scenes; C, concepts given by a word. A target has
    the same id whether it was seen or imagined, so that an encoder of perception is tested on imagery by label.
    Responses are z-scored within runs, each of which is one task and shows every target of a set equally often.

    Parameters
    ----------
    source
        ``root`` holds ``nsddata`` and ``nsddata_betas``.
    subject, space, voxels, rois
        As `NSDSynthetic`.
    betas : {"b2", "b3"}
        ``nsdimagerybetas_fithrf`` or ``nsdimagerybetas_fithrf_GLMdenoise_RR``.
    task : {"vision", "imagery", "both"}
        Trials of attention have two betas each and are not read.
    sets : str
        Letters of the sets.

    Returns
    -------
    EncodingData
        ``responses``, ids such as "A1" (set and number of the target). ``stimuli``: pictures of the targets of A and B
        where all that are asked for are there; table ``set, number, code, target``. ``extra["trials"]``: ``run, block,
        task``.

    References
    ----------
    Kneeland et al. (2025), NSD-Imagery: a benchmark dataset for extending fMRI vision decoding methods to mental
    imagery, CVPR, arXiv:2506.06898. Order of runs, betas of a trial, and names of files and columns were compared with
    NSD's published analysis script and two readers by others, not with the data themselves.
    """

    name, title, stem, by = "nsd-imagery", "NSD-imagery", "nsdimagery", "run"
    expected = (
        "nsddata_betas/ppdata/subj01/func1pt8mm/nsdimagerybetas_fithrf_GLMdenoise_RR/betas_nsdimagery.hdf5, "
        "nsddata/bdata/nsdimagery/nsdimagery_subj01_visA.tsv, ... and "
        "nsddata/experiments/nsdimagery/A_pair_list.mat, ..."
    )

    def read(
        self,
        source: Source,
        *,
        subject: int | str = 1,
        space: str = "func1pt8mm",
        betas: str = "b3",
        voxels: Any = "nsdgeneral",
        rois: Any = True,
        task: str = "both",
        sets: str = "ABC",
    ) -> Recording:
        one_of("task of NSD-imagery", task, ("vision", "imagery", "both"))
        for letter in sets:
            one_of("set of NSD-imagery", letter, tuple("ABC"))
        wanted = ("vision", "imagery") if task == "both" else (task,)

        def design(layout: Layout) -> Trials:
            experiment = layout.root / "nsddata" / "experiments" / self.stem
            targets = pd.concat([_targets(experiment, letter) for letter in sets])
            parts, first = [], 0
            for number, block in enumerate(_RUNS, start=1):
                kind, letter = _TASKS[block[:3]], block[3]
                if kind in wanted and letter in sets:
                    codes = _codes(layout, block, "CONDITION" if kind == "vision" else "CUE")
                    own = targets[targets["set"] == letter].reset_index().set_index("code")["stimulus"]
                    unknown = sorted(set(codes) - set(own.index))
                    if unknown:
                        raise DataError(f"{block} of {layout.name} names {unknown[0]!r}; legal are {list(own.index)}.")
                    rows = {"stimulus": own.loc[codes].to_numpy(), "run": number, "block": block, "task": kind}
                    parts.append(pd.DataFrame(rows).assign(beta=first + np.arange(_TRIALS)))
                first += _TRIALS * (2 if kind == "attention" else 1)
            trials = pd.concat(parts, ignore_index=True)
            table = targets[targets.index.isin(trials["stimulus"])]
            files = [experiment / "rawtargetimages" / f"set{s}" / t for s, t in zip(table["set"], table["target"])]
            pictures: Any = files if all(f.is_file() for f in files) else None
            ids = table.index.to_numpy(dtype=str)
            return trials, Stimuli(ids, pictures, None, table, self.name, source.manifest.licence), first

        how = {"subject": subject, "space": space, "betas": betas, "voxels": voxels, "rois": rois}
        return self._recording(source, design, **how)


def _targets(experiment: Path, letter: str) -> pd.DataFrame:
    """Number, name and code of the six targets of a set."""
    path = experiment / f"{letter}_pair_list.mat"
    pairs = read_mat(path, ("pair_list",), "list of targets")["pair_list"]
    cells = [[np.asarray(cell).squeeze() for cell in row] for row in np.atleast_2d(pairs)]
    if len(cells) != 6 or len(cells[0]) != 3:
        raise DataError(f"{path}: pair_list has shape {np.shape(pairs)}; expected (6, 3): number, name, code.")
    number = [int(float(str(row[0]))) for row in cells]
    found = pd.DataFrame({"set": letter, "number": number, "code": [str(row[2]) for row in cells]})
    found["target"] = [str(row[1]) for row in cells]
    return found.set_index(pd.Index([f"{letter}{n}" for n in number], name="stimulus"))


def _codes(layout: Layout, block: str, column: str) -> np.ndarray:
    """What each trial of a run showed or asked to imagine, in the order of the trials."""
    path = layout.root / "nsddata" / "bdata" / "nsdimagery" / f"nsdimagery_{layout.name}_{block}.tsv"
    table = read_table(path, ["TRIAL", column], what="table of trials")
    order = np.asarray(whole_numbers(table, "TRIAL", path))
    if not np.array_equal(np.sort(order), np.arange(1, _TRIALS + 1)):
        raise DataError(f"{path} has {len(order)} trials; expected {_TRIALS}, numbered from 1.")
    return table[column].to_numpy(dtype=str)[np.argsort(order)]
