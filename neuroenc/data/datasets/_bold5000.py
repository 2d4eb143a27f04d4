"""BOLD5000 (Chang et al. 2019): release 2 (GLMsingle betas, whole brain or regions) and release 1 (regions)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc._core.files import open_hdf5, read_npy, read_text
from neuroenc.data._build import repeat_numbers
from neuroenc.data._images import check_affine, mask_on, open_image
from neuroenc.data._io import read_mat
from neuroenc.data._pictures import all_pictures
from neuroenc.data._stimuli import Stimuli
from neuroenc.data._volumes import placed
from neuroenc.data.datasets._recording import Recording, natural, select_voxels, sessions_of, unpacked, within
from neuroenc.data.datasets._registry import SESSIONS, Dataset, Found, Source

#: Short names of the versions of release 2. The second is misspelt in the authors' own table, hence the pattern.
BETAS = {
    "a": r"TYPEA-ASSUMEHRF",
    "b": r"TY[PB]E[BP]-FITHRF",
    "c": r"TYPEC-FITHRF-GLMDENOISE",
    "d": r"TYPED-FITHRF-GLMDENOISE-RR",
}
ROIS = tuple(h + x for x in ("EarlyVis", "LOC", "OPA", "PPA", "RSC") for h in ("LH", "RH"))
#: Names under which some masks were published.
_ALIAS = {"LHLO": "LHLOC", "RHLO": "RHLOC", "RHRRSC": "RHRSC"}
#: Forms in which responses come: their files, and how these tell the subject.
_FORMS = {
    "volumes": ("CSI*_ses-*.nii.gz", r"(CSI\d)_GLMbetas-.*_ses-\d+\.nii\.gz"),
    "regions": ("CSI*_allses_*.npy", r"(CSI\d)_GLMbetas-.*_allses_\w+\.npy"),
    "release1": ("CSI*_ROIs_TR*.*", r"(CSI\d)_ROIs_TR\d+\.(?:h5|mat)"),
}
_SIDES = ("{}", "LH{}", "RH{}")
#: Sessions that each subject completed.
_N_SESSIONS = {"CSI1": 15, "CSI2": 15, "CSI3": 15, "CSI4": 9}


class Bold5000(Dataset):
    r"""Single-trial responses of one subject of BOLD5000.

    :math:`y_{tv} = (b_{tv} - m_{sv}) / d_{sv}` with mean and standard deviation (divisor n) of voxel v in session s, as
    the authors recommend. A repeated picture is named ``rep_NAME`` where it comes again; it is one stimulus here.

    Parameters
    ----------
    source
        ``root`` holds the files of one or both releases, in the folders in which they come.
    subject : 1 to 4, or "CSI1" to "CSI4"
    form : {"auto", "volumes", "regions", "release1"}
        Release 2's volumes (one NIfTI a session), release 2's regions (``.npy``, all sessions), or release 1's regions
        (mean of volumes 3 and 4 after onset, or ``tr``); "auto" takes the first that is there.
    betas : {"a", "b", "c", "d"}
        Version of release 2.
    voxels : "brain", names of regions, bool array (x, y, z), or NIfTI mask
        "brain" is the subject's brain mask (volumes) or all regions. Names are LHPPA, RHPPA, ...; PPA is both.
    sessions : int or sequence of int, optional
        Default all that are there; one that is absent does not shift the others.
    repeats : {"keep", "average"}
    zscore : bool
        Needs sessions: volumes have them, regions need ``Stimuli_Presentation_Lists`` in the root.
    tr : {"1", "2", "3", "4", "5", "34"}
        Volume after onset, release 1 only.
    cache, max_memory
        As for `neuroenc.data.nsd`.

    Returns
    -------
    EncodingData
        ``responses`` (presentation, voxel) with session, run (where the lists are there), repeat, roi. ``stimuli``:
        ids are file names without ending, table with ``file, collection`` (coco, imagenet, scene), ``coco_id, wnid,
        n_shown``. ``extra["splits"]["repeated"]``: the pictures shown more than once (113 when complete), the usual
        test set.

    References
    ----------
    Chang et al. (2019), BOLD5000, a public fMRI dataset while viewing 5000 visual images, Scientific Data 6:49.
    """

    name, title = "bold5000", "BOLD5000"
    common = SESSIONS
    expected = (
        "CSI1_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_ses-01.nii.gz and CSI1_imgnames.txt (release 2), or"
        " ROIs/CSI1/h5/CSI1_ROIs_TR34.h5 and ROIs/stim_lists/CSI01_stim_lists.txt (release 1)"
    )

    def subjects(self, folder: Path) -> list[str]:
        return sorted({s for form in _FORMS for _, s in _paths(folder, form)})

    def recognise(self, folder: Path) -> Found | None:
        found = super().recognise(folder)
        if found is not None:
            del found.has["subjects"]
            for form in _FORMS:
                own = sorted({s for _, s in _paths(folder, form)})
                n = f" ({len(_paths(folder, form))} sessions)" if form == "volumes" else ""
                found.has.update({form: ", ".join(own) + n} if own else {})
        return found

    def missing(self, folder: Path) -> list[str]:
        lost = [] if within(folder, "Presented_Stimuli") else ["pictures (Scene_Stimuli/Presented_Stimuli)"]
        if not _presentation_lists(folder, self.subjects(folder)[0]):
            lost.append("Stimuli_Presentation_Lists (runs; sessions of the region forms)")
        return lost

    def read(
        self,
        source: Source,
        *,
        subject: int | str = 1,
        form: str = "auto",
        betas: str = "d",
        voxels: Any = "brain",
        sessions: Any = None,
        tr: str = "34",
    ) -> Recording:
        name = f"CSI{self.number(subject, 4, 'sub-)?(?:CSI')}"
        one_of("form of BOLD5000", form, ("auto", *_FORMS))
        one_of("version of BOLD5000's betas", betas, tuple(BETAS))
        root = self.root(source)
        files = {f: found for f in _FORMS if (found := _files(root, name, f, betas, tr))}
        if not files or (form != "auto" and form not in files):
            what = f"{'data' if form == 'auto' else form} of {name} (betas={betas!r}; there are {list(files)})"
            raise self.lacks(root, what)
        form = next(iter(files)) if form == "auto" else form
        kind: type[_Volumes | _Regions] = _Volumes if form == "volumes" else _Regions
        reader = kind(root, name, files[form], voxels)
        table, missing = _trials(root, name, reader.counts, reader.total)
        known = not table["session"].isna().any()
        if sessions is not None:
            table = table[table["session"].isin(sessions_of(table["session"].dropna(), sessions, name))]
        at = table["at"].to_numpy()
        labels = {"stimulus": table["stimulus"].to_numpy(dtype=str), "subject": name}
        labels["repeat"] = table["repeat"].to_numpy()
        labels |= {k: None if table[k].isna().any() else table[k].to_numpy(np.int64) for k in ("session", "run")}
        labels |= {"units": "a.u." if form == "release1" else "% signal change", **reader.labels()}

        def read(rows: slice, block: slice, budget: int) -> np.ndarray:
            session = int(table["session"].iloc[rows.start]) if known else 0
            return reader.read(session, at[rows], block, budget)

        stimuli = _stimuli(source, root, table)
        repeated = stimuli.table.index[stimuli.table["n_shown"] > 1].to_numpy(dtype=str)
        settings = {"form": form, "betas": f"TR{tr}" if form == "release1" else betas}
        extra = {"form": form, "splits": {"repeated": repeated}, "missing_sessions": missing}
        telling, used = "put the folder Stimuli_Presentation_Lists into the root", list(files[form].values())
        return Recording(labels, read, stimuli, used, settings, extra=extra, telling=telling)


def _paths(folder: Path, form: str) -> list[tuple[Path, str]]:
    pattern, mark = _FORMS[form]
    found = [(p, re.fullmatch(mark, p.name)) for p in sorted(within(folder, pattern), key=natural)]
    return [(p, m[1]) for p, m in found if m]


def _files(root: Path, name: str, form: str, betas: str, tr: str) -> dict[Any, Path]:
    """Session number, or region, and file; of release 1 the one file that holds all regions."""
    paths = [p for p, s in _paths(root, form) if s == name]
    if form == "release1":
        own = {p.suffix: p for p in paths if p.stem.endswith(f"_TR{tr}")}
        return {"all": own.get(".h5") or own[".mat"]} if own else {}
    pattern = r"_ses-(\d+)\.nii\.gz" if form == "volumes" else r"_allses_(\w+)\.npy"
    found: dict[Any, Path] = {}
    for path in paths:
        match = re.fullmatch(rf"{name}_GLMbetas-{BETAS[betas]}{pattern}", path.name)
        if match:
            found[int(match[1]) if form == "volumes" else _ALIAS.get(match[1], match[1])] = path
    return found


class _Volumes:
    """Betas of release 2, one volume a trial, one file a session."""

    total: int | None = None

    def __init__(self, root: Path, name: str, files: dict[int, Path], voxels: Any) -> None:
        self.files = files
        images = {n: open_image(p, f"betas of session {n}") for n, p in files.items()}
        self.reference = images[min(images)]
        for n, image in images.items():
            check_affine(self.reference, image, names=(f"session {min(images)}", f"session {n}"))
        self.counts: dict[int, int] | None = {n: int(image.shape[3]) for n, image in images.items()}
        self.shape = tuple(int(x) for x in self.reference.shape[:3])
        self.masks = {}
        for path in within(root, f"sub-{name}_mask-*.nii.gz"):
            roi = path.name.removesuffix(".nii.gz").split("mask-")[1]
            self.masks[_ALIAS.get(roi, roi)] = self._mask(path, f"mask {roi}")
        regions = dict(self.masks)
        if isinstance(voxels, str) and voxels == "brain":
            brain = next(iter(within(root, f"{name}_brainmask.nii.gz")), None)
            if brain is None:
                raise DataError(f"{root} has no {name}_brainmask.nii.gz. Next step: download it, or voxels=MASK.")
            regions["brain"] = self._mask(brain, "brain mask")
        keep = select_voxels(voxels, regions, "BOLD5000", spelling=_SIDES, shape=self.shape, reference=self.reference)
        self.voxel = np.flatnonzero(keep)
        self._held: tuple[int, np.ndarray] | None = None

    def _mask(self, path: Any, what: str) -> np.ndarray:
        return mask_on(self.reference, path, what, "betas").reshape(-1)

    def labels(self) -> dict[str, Any]:
        roi = {n: m[self.voxel] for n, m in self.masks.items()} or None
        return placed(self.voxel, self.shape, self.reference.affine) | {"roi": roi, "space": "BOLD5000 native"}

    def read(self, session: int, rows: np.ndarray, block: slice, budget: int) -> np.ndarray:
        """Rows of one session; its file is unpacked once and kept for its other blocks."""
        if self._held is None or self._held[0] != session:
            self._held = None
            self._held = (session, unpacked(self.files[session], self.voxel, budget))
        return self._held[1][rows, block]


class _Regions:
    """Arrays (trial, voxel) of regions, of either release: one file each (.npy), or one for all (.h5, .mat)."""

    counts = None

    def __init__(self, root: Path, name: str, files: dict[Any, Path], voxels: Any) -> None:
        self.files = files
        with self._open() as arrays:
            known = {str(n): a for n, a in arrays.items() if getattr(a, "ndim", 0) == 2 and a.dtype.kind in "fiu"}
            found = {n: a.shape for n, a in known.items()}
        shapes = {n: found[n] for n in (*ROIS, *sorted(set(found) - set(ROIS))) if n in found}
        lengths = {n: s[0] for n, s in shapes.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"regions of {name} have different numbers of trials: {lengths}. Next step: download them.")
        self.total = next(iter(lengths.values()))
        # Numbers count over all regions in their order, so that a choice of regions keeps them.
        roi = np.repeat(list(shapes), [s[1] for s in shapes.values()])
        self.first = dict(zip(shapes, np.cumsum([0, *[s[1] for s in shapes.values()]]).tolist(), strict=False))
        regions = {"brain": np.ones(len(roi), dtype=bool)} | {n: roi == n for n in shapes}
        self.voxel = np.flatnonzero(select_voxels(voxels, regions, "BOLD5000", everything="brain", spelling=_SIDES))
        self.roi = roi[self.voxel]
        self._held: tuple[str, np.ndarray] | None = None

    @contextmanager
    def _open(self, *needed: str) -> Iterator[Mapping[Any, Any]]:
        """Arrays by the name of their region, mapped where their file allows it; of MATLAB's files only the needed."""
        path = next(iter(self.files.values()))
        if path.suffix == ".h5":
            with open_hdf5(path, "regions") as handle:
                yield handle
        elif path.suffix == ".mat":
            yield read_mat(path, needed, only=bool(needed))
        else:
            yield {n: read_npy(self.files[n], "region") for n in needed or self.files}

    def _array(self, region: str) -> np.ndarray:
        """A region's array; the last one is kept."""
        if self._held is None or self._held[0] != region:
            self._held = None
            with self._open(region) as arrays:
                self._held = (region, arrays[region][:])
        return self._held[1]

    def labels(self) -> dict[str, Any]:
        return {"voxel": self.voxel, "roi": self.roi.tolist(), "space": "BOLD5000 regions"}

    def read(self, session: int, rows: np.ndarray, block: slice, budget: int) -> np.ndarray:
        own, roi = self.voxel[block], self.roi[block]
        parts = [self._array(n)[:, own[roi == n] - self.first[n]][rows] for n in dict.fromkeys(roi.tolist())]
        return np.concatenate(parts, axis=1).astype(np.float32)


def _stimuli(source: Source, root: Path, table: pd.DataFrame) -> Stimuli:
    first = table.drop_duplicates("stimulus").set_index("stimulus")
    ids = first.index.to_numpy(dtype=str)
    images = all_pictures(next(iter(within(root, "Presented_Stimuli")), None), ids)
    coco = [re.fullmatch(r"COCO_(?:train|val)2014_0*(\d+)", s) for s in ids]
    wnid = [re.fullmatch(r"(n\d{8})_\d+", s) for s in ids]
    kinds = ["coco" if c else "imagenet" if w else "scene" for c, w in zip(coco, wnid, strict=True)]
    info = pd.DataFrame({"file": first["file"].to_numpy(), "collection": kinds}, index=ids)
    info["coco_id"], info["wnid"] = [int(c[1]) if c else -1 for c in coco], [w[1] if w else "" for w in wnid]
    info["n_shown"] = table["stimulus"].value_counts().loc[ids].to_numpy()
    return Stimuli(ids, images, None, info, "bold5000", source.manifest.licence)


def _presentation_lists(root: Path, name: str) -> list[tuple[int, int, list[str]]]:
    """(session, run, file names) from ``Stimuli_Presentation_Lists/CSI1/CSI1_sess01/CSI_sess01_run01.txt``."""
    found = []
    for folder in sorted(within(root, f"Stimuli_Presentation_Lists/{name}/{name}_sess*"), key=natural):
        session = int(folder.name.split("sess")[1])
        runs = sorted(folder.glob("*_run*.txt"), key=natural)
        found += [(session, n, _lines(path)) for n, path in enumerate(runs, start=1)]
    return found


def _trials(root: Path, name: str, counts: dict[int, int] | None, total: int | None) -> tuple[pd.DataFrame, list[int]]:
    """Every trial of the sessions in ``counts`` (session -> trials), or of all ``total`` trials in their order.

    Columns stimulus, file, session, run, repeat (0-based, over all trials), at (row in the session's file, or in the
    region's array); and the sessions that are missing.
    """
    lists = _presentation_lists(root, name)
    names = _names(root, name)
    listed = [x for _, _, files in lists for x in files]
    if names is None:
        if not lists:
            raise DataError(
                f"{root} does not tell which pictures {name} saw. "
                f"Next step: download {name}_imgnames.txt (release 2) or "
                f"stim_lists/{name[:-1]}0{name[-1]}_stim_lists.txt (release 1)."
            )
        names = listed
    ids = np.array([_id(x) for x in names])
    if lists and len(listed) == len(names):
        wrong = np.flatnonzero(ids != [_id(x) for x in listed])
        if wrong.size:
            raise DataError(
                f"trial {wrong[0] + 1} of {name} is {names[wrong[0]]!r} in the list of names and {listed[wrong[0]]!r} "
                "in Stimuli_Presentation_Lists. Next step: check that both are this subject's."
            )
    else:
        lists = []
    n = len(names)
    lengths = [len(files) for _, _, files in lists]
    table = pd.DataFrame({"stimulus": ids, "file": [x.removeprefix("rep_") for x in names]})
    table["session"] = np.repeat([float(s) for s, _, _ in lists], lengths) if lists else np.nan
    table["run"] = np.repeat([float(r) for _, r, _ in lists], lengths) if lists else np.nan
    table["repeat"], table["at"] = repeat_numbers(ids, None), np.arange(n)
    if counts is None:
        if total != n:
            raise DataError(f"{name} has {total} trials of responses but {n} names of pictures.")
        return table, []
    if not lists:
        for s, first in _starts(name, counts, n).items():
            table.loc[first : first + counts[s] - 1, "session"] = s
    parts = []
    for s, count in sorted(counts.items()):
        own = table[table["session"] == s]
        if len(own) != count:
            raise DataError(
                f"session {s} of {name} holds {count} trials, its lists {len(own)}. Next step: download again."
            )
        parts.append(own.assign(at=np.arange(count)))
    return pd.concat(parts, ignore_index=True), [s for s in range(1, max(counts) + 1) if s not in counts]


def _starts(name: str, counts: dict[int, int], total: int) -> dict[int, int]:
    """First trial of each session that is there, where no lists of runs tell; sessions differ in length."""
    order = sorted(counts)
    absent = [s for s in range(1, order[-1] + 1) if s not in counts]
    lost = total - sum(counts.values())
    whole = order[-1] == _N_SESSIONS[name]
    # With the last session there, one gap is as long as what is left over; two gaps could share it in any way.
    one_gap = whole and absent == list(range(absent[0], absent[0] + len(absent))) if absent else True
    if lost < 0 or not one_gap or (whole and not absent and lost):
        raise DataError(
            f"the sessions {order} of {name} hold {sum(counts.values())} trials, its list {total} names; which "
            f"belong to the absent sessions {absent} is not sure. Next step: put Stimuli_Presentation_Lists into the "
            "root."
        )
    starts, first = {}, 0
    for s in range(1, order[-1] + 1):
        if s in counts:
            starts[s] = first
        first += counts[s] if s in counts else lost if s == absent[0] else 0
    return starts


def _names(root: Path, name: str) -> list[str] | None:
    patterns = (f"{name}_imgnames.txt", f"{name}_stim_lists.txt", f"{name[:-1]}0{name[-1]}_stim_lists.txt")
    path = next((p for x in patterns for p in within(root, x)), None)
    return None if path is None else _lines(path)


def _lines(path: Path) -> list[str]:
    return [x.strip() for x in read_text(path, "list of pictures").splitlines() if x.strip()]


def _id(file: str) -> str:
    """Name without ending; ``rep_`` marks a picture that comes again and is no part of its name."""
    name = file.removeprefix("rep_")
    return name.rsplit(".", 1)[0] if "." in name else name
