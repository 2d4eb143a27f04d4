"""BOLD5000 (Chang et al. 2019): release 2 (GLMsingle betas, whole brain or regions) and release 1 (regions)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.memory import parse_memory
from neuroenc.data._images import binary_mask, check_affine, open_image, open_mask
from neuroenc.data._pictures import find_pictures
from neuroenc.data._schema import EncodingData, Stimuli, make_responses
from neuroenc.data.loaders._bold5000_files import Rows, regions, unpacked
from neuroenc.data.loaders._bold5000_trials import presentation_lists, read_trials
from neuroenc.data.loaders._found import Found
from neuroenc.data.loaders._sessions import (
    bounds_of,
    collect,
    dataset_root,
    natural,
    one_of,
    subject_number,
    within,
)
from neuroenc.data.loaders._source import Source

__all__ = ["BETAS", "ROIS", "load", "recognise"]

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
_FORMS = ("volumes", "regions", "release1")
_EXPECTED = (
    "CSI1_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_ses-01.nii.gz and CSI1_imgnames.txt (release 2), or"
    " ROIs/CSI1/h5/CSI1_ROIs_TR34.h5 and ROIs/stim_lists/CSI01_stim_lists.txt (release 1)"
)


def load(
    source: Source,
    *,
    subject: int | str = 1,
    form: str = "auto",
    betas: str = "d",
    voxels: Any = "brain",
    sessions: Any = None,
    repeats: str = "keep",
    zscore: bool = True,
    tr: str = "34",
    cache: bool | str = True,
    max_memory: str | int | None = None,
) -> EncodingData:
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

    Raises
    ------
    ConfigError, DataError
        An option is unknown; files are absent, do not belong together, or trials do not match their names.

    References
    ----------
    Chang et al. (2019), BOLD5000, a public fMRI dataset while viewing 5000 visual images, Scientific Data 6:49.
    """
    number = subject_number(subject, 4, "sub-)?(?:CSI", "BOLD5000")
    name = f"CSI{number}"
    one_of("form of BOLD5000", form, ("auto", *_FORMS))
    one_of("version of BOLD5000's betas", betas, tuple(BETAS))
    root = dataset_root(source, lambda f: recognise(f) is not None, _EXPECTED)
    files = {f: found for f in _FORMS if (found := _files(root, name, f, betas, tr))}
    if not files or (form != "auto" and form not in files):
        there = sorted({x for f in _FORMS for x in _subjects(root, f)})
        raise DataError(
            f"{root} has no {'data' if form == 'auto' else form} of {name} (betas={betas!r}); it has {list(files)} of"
            f" {name}, and subjects {there}. Expected: {_EXPECTED}."
        )
    form = next(iter(files)) if form == "auto" else form
    reader: _Volumes | _Regions = (
        _Regions(name, files[form], voxels)
        if form != "volumes"
        else _Volumes(root, name, files[form], voxels, parse_memory(max_memory))
    )
    trials = read_trials(root, name, reader.counts, reader.total)
    trials = trials.choose(sessions)
    table, rows = trials.table, trials.rows
    if zscore and trials.table["session"].isna().any():
        raise DataError(
            f"the sessions of these {len(rows)} trials are unknown, so they cannot be z-scored within them. Next step:"
            " put the folder Stimuli_Presentation_Lists into the root, or zscore=False."
        )
    known = not table["session"].isna().any()
    ids = table["stimulus"].to_numpy(dtype=str)
    empty = np.broadcast_to(np.zeros((), dtype=np.float32), (len(table), len(reader.voxel)))
    options = {"data": "bold5000", "subject": name, "form": form, "betas": betas if form != "release1" else f"TR{tr}"}
    template = make_responses(
        empty,
        stimulus=ids,
        subject=name,
        session=table["session"].to_numpy(np.int64) if known else None,
        run=None if table["run"].isna().any() else table["run"].to_numpy(np.int64),
        repeat=table["repeat"].to_numpy(),
        units="a.u." if form == "release1" else "% signal change",
        source="bold5000",
        licence=source.manifest.licence,
        provenance=options,
        **reader.labels(),
    )
    bounds = bounds_of(table["session"].to_numpy(float)) if known else [(0, len(rows))]
    responses = collect(
        template,
        bounds,
        lambda n, block: reader.read(rows[slice(*bounds[n])], block),
        zscore=zscore,
        repeats=repeats,
        cache=cache,
        files=reader.paths,
        settings=options,
        max_memory=max_memory,
        progress=source.progress,
    )
    stimuli = _stimuli(source, root, table)
    repeated = stimuli.table.index[stimuli.table["n_shown"] > 1].to_numpy(dtype=str)
    extra = {"form": form, "splits": {"repeated": repeated}, "missing_sessions": trials.missing}
    return EncodingData(responses, stimuli, extra=extra)


def recognise(folder: Path) -> Found | None:
    """BOLD5000 in this folder, or None."""
    forms = {f: _subjects(folder, f) for f in _FORMS}
    forms = {f: s for f, s in forms.items() if s}
    if not forms:
        return None
    n = len(within(folder, "*_GLMbetas-*_ses-*.nii.gz"))
    has = {f: ", ".join(s) + (f" ({n} sessions)" if f == "volumes" else "") for f, s in forms.items()}
    missing = [] if within(folder, "Presented_Stimuli") else ["pictures (Scene_Stimuli/Presented_Stimuli)"]
    if not presentation_lists(folder, next(iter(forms.values()))[0]):
        missing.append("Stimuli_Presentation_Lists (runs; sessions of the region forms)")
    first = next(iter(forms.values()))[0]
    return Found(
        "bold5000",
        "BOLD5000",
        folder,
        has,
        tuple(missing),
        f'load_dataset("bold5000", root="{folder}", subject="{first}")',
    )


_MARKS = {
    "volumes": r"(CSI\d)_GLMbetas-.*_ses-\d+\.nii\.gz",
    "regions": r"(CSI\d)_GLMbetas-.*_allses_\w+\.npy",
    "release1": r"(CSI\d)_ROIs_TR\d+\.(?:h5|mat)",
}
_GLOBS = {"volumes": "CSI*_ses-*.nii.gz", "regions": "CSI*_allses_*.npy", "release1": "CSI*_ROIs_TR*.*"}


def _paths(folder: Path, form: str) -> list[tuple[Path, str]]:
    found = [(p, re.fullmatch(_MARKS[form], p.name)) for p in sorted(within(folder, f"{_GLOBS[form]}"), key=natural)]
    return [(p, m[1]) for p, m in found if m]


def _subjects(folder: Path, form: str) -> list[str]:
    return sorted({s for _, s in _paths(folder, form)})


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

    def __init__(self, root: Path, name: str, files: dict[int, Path], voxels: Any, budget: int) -> None:
        self.budget = budget
        self.files = files
        self.paths = list(files.values())
        images = {n: open_image(p, f"betas of session {n}") for n, p in files.items()}
        self.reference = images[min(images)]
        for n, image in images.items():
            check_affine(self.reference, image, names=(f"session {min(images)}", f"session {n}"))
        self.counts: dict[int, int] | None = {n: int(image.shape[3]) for n, image in images.items()}
        self.total: int | None = None
        self.shape = tuple(int(x) for x in self.reference.shape[:3])
        self.masks = self._masks(root, name)
        self.voxel = np.flatnonzero(self._chosen(root, name, voxels))
        if not len(self.voxel):
            raise DataError(f"voxels={voxels!r} selects none of {int(np.prod(self.shape))} voxels of {name}.")
        self._held: tuple[int, Rows] | None = None

    def _mask(self, path: Any, what: str) -> np.ndarray:
        image = open_mask(path, what)
        check_affine(image, self.reference, names=(what, "betas"))
        return binary_mask(image, what)

    def _masks(self, root: Path, name: str) -> dict[str, np.ndarray]:
        found = {}
        for path in within(root, f"sub-{name}_mask-*.nii.gz"):
            roi = path.name.removesuffix(".nii.gz").split("mask-")[1]
            found[_ALIAS.get(roi, roi)] = self._mask(path, f"mask {roi}").reshape(-1)
        return found

    def _chosen(self, root: Path, name: str, voxels: Any) -> np.ndarray:
        if isinstance(voxels, str) and voxels == "brain":
            path = next(iter(within(root, f"{name}_brainmask.nii.gz")), None)
            if path is None:
                raise DataError(f"{root} has no {name}_brainmask.nii.gz. Next step: download it, or voxels=MASK.")
            return self._mask(path, "brain mask").reshape(-1)
        if hasattr(voxels, "dataobj") or (isinstance(voxels, (str, Path)) and ".nii" in str(voxels)):
            return self._mask(voxels, "voxels").reshape(-1)
        if isinstance(voxels, np.ndarray):
            if voxels.dtype != bool or voxels.shape != self.shape:
                raise DataError(f"voxels is {voxels.dtype} of shape {voxels.shape} (expected bool of {self.shape}).")
            return voxels.reshape(-1)
        names = _region_names(voxels, self.masks, "a mask sub-CSI*_mask-NAME.nii.gz in the root")
        return np.any([self.masks[n] for n in names], axis=0)

    def labels(self) -> dict[str, Any]:
        roi = [";".join(n for n, m in self.masks.items() if m[v]) for v in self.voxel] if self.masks else None
        return {
            "voxel": self.voxel,
            "ijk": np.stack(np.unravel_index(self.voxel, self.shape), 1),
            "roi": roi,
            "affine": self.reference.affine,
            "volume_shape": self.shape,
            "space": "BOLD5000 native",
        }

    def read(self, rows: np.ndarray, block: slice) -> np.ndarray:
        """Rows (session, trial in it); a session's file is unpacked once and kept for its other blocks."""
        session = int(rows[0, 0])
        if self._held is None or self._held[0] != session:
            if self._held is not None:
                self._held[1].close()
            self._held = (session, unpacked(self.files[session], self.voxel, self.budget))
        return self._held[1].read(rows[:, 1], block.start, block.stop)


class _Regions:
    """Arrays (trial, voxel) of regions, of either release."""

    def __init__(self, name: str, files: dict[Any, Path], voxels: Any) -> None:
        self.paths = list(files.values())
        self.counts = None
        found = regions(files)
        arrays = {n: found[n] for n in (*ROIS, *sorted(set(found) - set(ROIS))) if n in found}
        wanted = list(arrays) if isinstance(voxels, str) and voxels == "brain" else None
        names = wanted or _region_names(voxels, arrays, f"a region of {self.paths[0].name}")
        lengths = {n: a.shape[0] for n, a in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"regions of {name} have different numbers of trials: {lengths}. Next step: download them.")
        self.arrays = {n: arrays[n] for n in names}
        self.total = next(iter(lengths.values()))
        self.roi = np.concatenate([[n] * a.shape[1] for n, a in self.arrays.items()])
        # Numbers count over all regions in their order, so that a choice of regions keeps them.
        first = dict(zip(arrays, np.cumsum([0, *[a.shape[1] for a in arrays.values()]]), strict=False))
        self.voxel = np.concatenate([first[n] + np.arange(a.shape[1]) for n, a in self.arrays.items()])

    def labels(self) -> dict[str, Any]:
        return {"voxel": self.voxel, "roi": self.roi.tolist(), "space": "BOLD5000 regions"}

    def read(self, rows: np.ndarray, block: slice) -> np.ndarray:
        parts, start = [], 0
        for array in self.arrays.values():
            low, high = max(block.start - start, 0), min(block.stop - start, array.shape[1])
            start += array.shape[1]
            if low < high:
                parts.append(array.read(rows[:, 1], low, high))
        return np.concatenate(parts, axis=1)


def _region_names(voxels: Any, legal: Any, what: str) -> list[str]:
    """Names as asked; one without a side stands for both."""
    names: list[str] = []
    for name in [voxels] if isinstance(voxels, str) else list(voxels):
        own = [x for x in (name, f"LH{name}", f"RH{name}") if x in legal]
        if not own:
            raise ConfigError(unknown_name("region of BOLD5000", name, list(legal), f"Each needs {what}."))
        names += [x for x in own if x not in names]
    return names


def _stimuli(source: Source, root: Path, table: pd.DataFrame) -> Stimuli:
    first = table.drop_duplicates("stimulus").set_index("stimulus")
    ids = first.index.to_numpy(dtype=str)
    folders = within(root, "Presented_Stimuli")
    found = find_pictures(folders[0], ids, partial=True) if folders else [None]
    images = [p for p in found if p is not None] if None not in found else None
    coco = [re.fullmatch(r"COCO_(?:train|val)2014_0*(\d+)", s) for s in ids]
    wnid = [re.fullmatch(r"(n\d{8})_\d+", s) for s in ids]
    kinds = ["coco" if c else "imagenet" if w else "scene" for c, w in zip(coco, wnid, strict=True)]
    info = pd.DataFrame(
        {
            "file": first["file"].to_numpy(),
            "collection": kinds,
            "coco_id": [int(c[1]) if c else -1 for c in coco],
            "wnid": [w[1] if w else "" for w in wnid],
            "n_shown": table["stimulus"].value_counts().loc[ids].to_numpy(),
        },
        index=ids,
    )
    return Stimuli(ids, images, None, info, "bold5000", source.manifest.licence)
