"""Output folders of GLMsingle (Prince et al. 2022), Python or MATLAB, of a user's own data."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc._core.files import open_hdf5
from neuroenc._core.memory import parse_memory
from neuroenc._core.tables import read_table
from neuroenc.data._build import stimulus_names
from neuroenc.data._images import binary_mask, check_affine, open_image, open_mask
from neuroenc.data._pictures import find_pictures
from neuroenc.data._stimuli import EncodingData, Stimuli
from neuroenc.data._volumes import placed, roi_flags
from neuroenc.data.datasets._recording import Recording, collect
from neuroenc.data.datasets._registry import Dataset, Found, like

MODELS = {"b": "TYPEB_FITHRF", "c": "TYPEC_FITHRF_GLMDENOISE", "d": "TYPED_FITHRF_GLMDENOISE_RR"}
#: Data set of the betas by file ending: Python writes (x, y, z, trial), MATLAB's axes come turned out of HDF5.
_NAMES = {".hdf5": "betasmd", ".mat": "modelmd"}


def read_glmsingle(
    folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    trials: Any,
    *,
    model: str = "d",
    mask: Any = None,
    rois: Any = None,
    reference: Any = None,
    subject: str = "",
    zscore: bool = True,
    repeats: str = "keep",
    images: str | os.PathLike[str] | None = None,
    cache: bool | str = True,
    max_memory: str | int | None = None,
    licence: str = "",
    progress: bool = True,
) -> EncodingData:
    r"""Single-trial betas that GLMsingle wrote, with the names of what was shown.

    :math:`y_{tv} = (b_{tv} - m_{sv}) / d_{sv}` within sessions s, if ``trials`` has them (else the whole is one).

    Parameters
    ----------
    folder : path, or sequence of paths
        With ``TYPED_FITHRF_GLMDENOISE_RR.hdf5`` (Python, ``wanthdf5=1``) or ``.mat`` (MATLAB, v7.3). Several
        folders are one session each: matched by the number in their names ("ses-02") if all have one, else in order.
    trials : DataFrame, or path of a CSV or TSV
        One row a trial in the order of acquisition, which is GLMsingle's: columns ``stimulus``, and ``session``,
        ``run`` if there are several. Sessions do not go back; labels such as "ses-02" are numbered 2, others in their
        order (``extra["sessions"]`` has them). Stimuli that are numbers must be whole.
    model : {"d", "c", "b"}
        With ridge regression and denoising, with denoising, or with fitted HRFs only.
    mask : NIfTI image, path or bool array, optional
        Voxels to take. GLMsingle run on a table (voxel, time) needs the mask that made it: its voxels in C order.
        Default: voxels whose betas are finite in all trials.
    rois : mapping name -> NIfTI mask, or ``"labels.nii.gz:1"``, optional
    reference : NIfTI image or path, optional
        Tells where the volume lies, if ``mask`` is not an image.
    subject : str
    zscore : bool
    repeats : {"keep", "average"}
    images : path, optional
        Folder of pictures named by stimulus.
    cache, max_memory, progress
        As for `neuroenc.data.nsd`.
    licence : str

    Returns
    -------
    EncodingData
        ``responses``, percent signal change (z where z-scored); ``stimuli`` in order of first appearance.

    Raises
    ------
    ConfigError, DataError
        The folder is none of GLMsingle's, its arrays are pickled (``.npy``), or trials and betas do not match.

    References
    ----------
    Prince et al. (2022), Improving the accuracy of single-trial fMRI response estimates using GLMsingle, eLife
    11:e77599.

    Examples
    --------
    >>> import h5py, numpy as np, pandas as pd, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with h5py.File(folder + "/TYPED_FITHRF_GLMDENOISE_RR.hdf5", "w") as handle:
    ...         handle["betasmd"] = np.arange(8.0).reshape(2, 1, 1, 4)
    ...     found = read_glmsingle(folder, pd.DataFrame({"stimulus": list("abab")}), zscore=False, progress=False)
    >>> found.responses.values.tolist()
    [[0.0, 4.0], [1.0, 5.0], [2.0, 6.0], [3.0, 7.0]]
    """
    roots = [Path(f).expanduser() for f in ([folder] if isinstance(folder, (str, os.PathLike)) else folder)]
    if not roots:
        raise DataError("no folder of GLMsingle's output was given.")
    one_of("model of GLMsingle", model, tuple(MODELS))
    table = read_trials(trials)
    if len(roots) > 1:
        roots = _by_session(roots, table)
    budget = parse_memory(max_memory)
    betas = [_Betas(root, MODELS[model], budget) for root in roots]
    _check(betas, table)
    place, places = _place(betas, mask, rois, reference)
    known = "session" in table
    ids = table["stimulus"].to_numpy(dtype=str)
    labels = {"stimulus": ids, "subject": subject or None, **places}
    labels["session"] = table["session"].to_numpy() if known else np.ones(len(table), dtype=np.int64)
    labels["run"] = table["run"].to_numpy() if "run" in table else None
    labels |= {"units": "% signal change", "source": "glmsingle", "licence": licence}
    edges = np.cumsum([0, *(b.n_trials for b in betas)])

    def read(rows: slice, block: slice, budget: int) -> np.ndarray:
        n = int(np.searchsorted(edges, rows.start, side="right")) - 1
        return betas[n].read(slice(rows.start - int(edges[n]), rows.stop - int(edges[n])), place[block])

    stimuli, extra = stimuli_of(ids, images, "glmsingle", licence), {}
    if known:
        extra["sessions"] = table.attrs["sessions"]
    settings = {"data": "glmsingle", "model": MODELS[model], "file": betas[0].path.name, "sessions": len(roots)}
    recording = Recording(labels, read, stimuli, [b.path for b in betas], settings, extra=extra)
    return collect(recording, zscore=zscore, repeats=repeats, cache=cache, max_memory=max_memory, progress=progress)


class GLMsingle(Dataset):
    """Output folders of GLMsingle, which `read_glmsingle` reads."""

    name, title = "glmsingle", "GLMsingle output"

    def recognise(self, folder: Path) -> Found | None:
        files = [p for name in MODELS.values() for p in sorted(folder.glob(f"{name}.*"))]
        if not files:
            return None
        readable = [p for p in files if p.suffix in _NAMES]
        missing = () if readable else (f"a readable file. {_conversion(files[0])}",)
        call = f'read_glmsingle("{folder}", "trials.csv")' if readable else ""
        return Found(self.name, self.title, folder, {"files": ", ".join(p.name for p in files)}, missing, call)


def _conversion(path: Path) -> str:
    """How a pickled file becomes one that is read."""
    code = (
        f"import h5py, numpy; betas = numpy.load('{path.name}', allow_pickle=1).item()['betasmd'];"
        f" h5py.File('{path.stem}.hdf5', 'w')['betasmd'] = betas"
    )
    return (
        f"{path.name} is a pickle, which can run any program and is not opened here. Next step, if you trust where it"
        f" comes from: convert it in its folder with python -c \"{code}\" (or run GLMsingle with opt['wanthdf5'] = 1)."
    )


def read_trials(trials: Any) -> pd.DataFrame:
    """The table of trials, checked: text in ``stimulus``, whole numbers in ``session`` and ``run``.

    ``attrs["sessions"]``: number -> label as it was written.
    """
    where = "the table of trials"
    if isinstance(trials, (str, os.PathLike)):
        where = os.fspath(trials)
        trials = read_table(Path(trials).expanduser(), optional=("stimulus", "session", "run"), what="table of trials")
    table = pd.DataFrame(trials).reset_index(drop=True)
    if "stimulus" not in table:
        raise DataError(
            f"{where} has columns {list(table.columns)} (expected stimulus, and session and run if there are several)."
        )
    if not len(table):
        raise DataError(f"{where} has no rows; expected one for every trial.")
    table["stimulus"] = stimulus_names(table["stimulus"].to_numpy(), where)
    table.attrs["sessions"] = {}
    for name in ("session", "run"):
        if name in table:
            numbers, labels = _numbered(table[name], name, where)
            table[name] = numbers
            if name == "session":
                table.attrs["sessions"] = labels
    if "session" in table and (np.diff(table["session"]) < 0).any():
        at = int(np.argmax(np.diff(table["session"]) < 0)) + 2
        raise DataError(f"{where}: sessions go back at trial {at}; rows are to stand in the order of acquisition.")
    return table


def _numbered(column: pd.Series, name: str, where: str) -> tuple[np.ndarray, dict[int, str]]:
    """Whole numbers of sessions or runs, and the label of each: the labels' own numbers, or their order."""
    labels: list[str] = []
    for n, cell in enumerate(column.tolist()):
        text = "" if cell is None or cell != cell else str(cell).strip()
        if not text:
            raise DataError(f"{where}, row {n + 1}: {name} is empty. Next step: write the {name} of every trial.")
        # Numbers that went through a decimal column.
        labels.append(text[:-2] if re.fullmatch(r"\d+\.0", text) else text)
        if re.fullmatch(r"[-+]?\d*[.,]\d+", labels[-1]) or labels[-1].startswith("-"):
            raise DataError(f"{where}, row {n + 1}: {name} = {text!r} is no {name}; expected a whole number or label.")
    matches = [re.fullmatch(rf"(?:{name[:3]}(?:{name[3:]})?[-_ ]?)?0*(\d+)", x, re.IGNORECASE) for x in labels]
    if all(matches):
        found = {x: int(m[1]) for x, m in zip(labels, matches, strict=True) if m}
    else:
        found = {x: k for k, x in enumerate(dict.fromkeys(labels), start=1)}
    named: dict[int, str] = {}
    for label, number in found.items():
        if named.setdefault(number, label) != label:
            raise DataError(f"{where}: {name} {label!r} and {named[number]!r} are the same number.")
    return np.array([found[x] for x in labels], dtype=np.int64), named


def _by_session(roots: list[Path], table: pd.DataFrame) -> list[Path]:
    """Folders in the order of the table's sessions."""
    there = list(dict.fromkeys(table["session"].tolist())) if "session" in table else []
    if len(there) != len(roots):
        raise DataError(f"{len(roots)} folders for {len(there)} sessions of the table ({there}); expected one each.")
    told = [re.findall(r"ses(?:sion)?[-_]?0*(\d+)", root.as_posix(), re.IGNORECASE) for root in roots]
    numbers = [int(t[-1]) for t in told if t]
    if len(set(numbers)) == len(roots):
        if set(numbers) != set(there):
            raise DataError(f"the folders are of sessions {sorted(numbers)}, the table of {there}.")
        return [roots[numbers.index(n)] for n in there]
    if len({r.resolve() for r in roots}) < len(roots):
        raise DataError("a folder is given twice; expected one for each session.")
    return roots


def stimuli_of(ids: np.ndarray, images: Any, source: str, licence: str) -> Stimuli:
    """Stimuli in order of first appearance, with pictures of a folder found by their name."""
    own = pd.unique(pd.Series(ids)).astype(str)
    paths = None if images is None else find_pictures(Path(images).expanduser(), own)
    return Stimuli(own, paths, None, None, source, licence)  # type: ignore[arg-type]


def _check(betas: list[_Betas], table: pd.DataFrame) -> None:
    """Files of one space, each of as many trials as the table says."""
    wanted = [len(table)] if len(betas) == 1 else table.groupby("session", sort=False).size().tolist()
    for part, n in zip(betas, wanted, strict=True):
        if part.space != betas[0].space:
            raise DataError(
                f"{part.path} holds voxels of shape {part.space}, {betas[0].path} of {betas[0].space}: they are of "
                "different spaces."
            )
        if part.n_trials != n:
            raise DataError(
                f"{part.path} holds {part.n_trials} trials, the table {n} rows{' of it' * (len(wanted) > 1)}. "
                "Next step: one row for every trial, in the order of acquisition."
            )


class _Betas:
    """Trials of one file, read in slabs."""

    def __init__(self, root: Path, name: str, budget: int) -> None:
        self.budget = budget
        paths = [p for e in _NAMES if (p := root / f"{name}{e}").exists()]
        if not paths:
            pickled = root / f"{name}.npy"
            why = _conversion(pickled) if pickled.is_file() else f"Expected {name}.hdf5 or {name}.mat."
            raise DataError(f"{root} has no readable betas: {like(root)} {why}")
        if len(paths) > 1:
            raise DataError(f"{root} has {paths[0].name} and {paths[1].name}. Next step: move one of them away.")
        path = self.path = paths[0]
        self.name = _NAMES[path.suffix]
        with open_hdf5(path, "betas") as handle:
            found = handle.get(self.name)
            if not hasattr(found, "dtype") or found.dtype.kind not in "fiu":
                held = {k: str(getattr(v, "dtype", "group")) for k, v in list(handle.items())[:8]}
                raise DataError(f"{path} has no data set {self.name!r} of real numbers; it holds {held}.")
            shape = tuple(int(x) for x in found.shape)
        self.turned = path.suffix == ".mat"
        shape = shape[::-1] if self.turned else shape
        if len(shape) not in (2, 4) or 0 in shape:
            raise DataError(f"{path}: betas have shape {shape} (expected (x, y, z, trial) or (voxel, trial)).")
        self.space, self.n_trials = shape[:-1], shape[-1]
        self.n_places = int(np.prod(self.space))
        #: From a table (voxel, time): there is no volume.
        self.flat = len(self.space) == 1 or self.space[1:] == (1, 1)

    def read(self, rows: slice, places: np.ndarray) -> np.ndarray:
        """Betas (trial, place) of flat numbers (C order, ascending), float32."""
        per = self.n_places // self.space[0]
        step = max(1, self.budget // 8 // max(1, 16 * per * (rows.stop - rows.start)))
        out = np.empty((rows.stop - rows.start, len(places)), dtype=np.float32)
        with open_hdf5(self.path, "betas") as handle:
            data = handle[self.name]
            for start in range(0, self.space[0], step):
                low, high = np.searchsorted(places, [start * per, (start + step) * per])
                if low == high:
                    continue
                box = data[rows, ..., start : start + step].T if self.turned else data[start : start + step, ..., rows]
                out[:, low:high] = box.reshape(-1, box.shape[-1])[places[low:high] - start * per].T
        return out

    def finite(self) -> np.ndarray:
        """Places whose betas are finite in all trials."""
        keep = np.ones(self.n_places, dtype=bool)
        width = max(1, self.budget // 8 // (4 * self.n_places))
        everywhere = np.arange(self.n_places)
        for first in range(0, self.n_trials, width):
            part = self.read(slice(first, min(first + width, self.n_trials)), everywhere)
            keep &= np.isfinite(part).all(axis=0)
        return keep


def _place(parts: list[_Betas], mask: Any, rois: Any, reference: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Flat numbers in the betas, and labels of the voxels."""
    betas = parts[0]
    image = None if mask is None or isinstance(mask, np.ndarray) else open_mask(mask, "mask")
    inside = mask if image is None else binary_mask(image, "mask")
    if reference is not None:
        other = open_image(reference, "reference")
        if image is not None:
            check_affine(image, other, names=("mask", "reference"))
        image = other
    if inside is not None:
        n, held = int(np.sum(inside)), f"a table of {betas.n_places} voxels" if betas.flat else f"shape {betas.space}"
        if inside.dtype != bool or (n != betas.n_places if betas.flat else inside.shape != betas.space):
            raise DataError(
                f"mask is {inside.dtype} of shape {inside.shape} with {n} voxels (expected bool), {betas.path} holds "
                f"{held}. Next step: give the mask whose voxels GLMsingle was given."
            )
    voxel = np.flatnonzero(np.all([p.finite() for p in parts], axis=0) if inside is None else inside)
    place = np.arange(betas.n_places) if betas.flat and inside is not None else voxel
    shape: tuple[int, ...] | None = betas.space
    if betas.flat:
        shape = None if inside is None or inside.ndim != 3 else inside.shape
    if not len(place):
        raise DataError(f"no voxel of {betas.path} is taken: the mask is empty, or betas are nowhere finite.")
    labels: dict[str, Any] = {"voxel": voxel, "space": "own"}
    if image is not None and shape is not None:
        if tuple(image.shape[:3]) != tuple(shape):
            raise DataError(f"reference has shape {tuple(image.shape[:3])}, the betas {tuple(shape)}.")
        labels |= placed(voxel, shape, image.affine)
    if rois:
        if shape is None:
            raise DataError("rois need a volume: give mask or reference.")
        names = {}
        for name, item in rois.items():
            # Without an image of the betas, the first region says where all of them lie.
            image = open_mask(item, f"roi {name!r}") if image is None else image
            if tuple(image.shape[:3]) != tuple(shape):
                raise DataError(f"roi {name!r} has shape {tuple(image.shape)}, the betas {tuple(shape)}.")
            names[name] = roi_flags(name, item, image, "the mask, reference or first roi").reshape(-1)[voxel]
        labels["roi"] = names
    return place, labels
