"""Output folders of GLMsingle (Prince et al. 2022), Python or MATLAB, of a user's own data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._util.errors import DataError
from neuroenc._util.memory import parse_memory
from neuroenc.data._images import binary_mask, image_values, open_image
from neuroenc.data._pictures import find_pictures
from neuroenc.data._schema import EncodingData, Stimuli, make_responses
from neuroenc.data.loaders._found import Found
from neuroenc.data.loaders._sessions import bounds_of, collect, like, one_of

__all__ = ["MODELS", "read_glmsingle", "recognise"]

MODELS = {"b": "TYPEB_FITHRF", "c": "TYPEC_FITHRF_GLMDENOISE", "d": "TYPED_FITHRF_GLMDENOISE_RR"}
#: Data set of the betas by file ending: Python writes (x, y, z, trial), MATLAB's axes come turned out of HDF5.
_NAMES = {".hdf5": "betasmd", ".mat": "modelmd"}


def read_glmsingle(
    folder: str | os.PathLike[str],
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
    folder : path
        With ``TYPED_FITHRF_GLMDENOISE_RR.hdf5`` (Python, ``wanthdf5=1``) or ``.mat`` (MATLAB, v7.3).
    trials : DataFrame, or path of a CSV or TSV
        One row a trial in the order of acquisition, which is GLMsingle's: columns ``stimulus``, and ``session``,
        ``run`` if there are several. Session numbers do not go back.
    model : {"d", "c", "b"}
        With ridge regression and denoising, with denoising, or with fitted HRFs only.
    mask : NIfTI image, path or bool array, optional
        Voxels to take. GLMsingle run on a table (voxel, time) needs the mask that made it: its voxels in C order.
        Default: voxels whose betas are finite in all trials.
    rois : mapping name -> NIfTI mask, optional
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
    root = Path(folder).expanduser()
    one_of("model of GLMsingle", model, tuple(MODELS))
    one_of("value of repeats:", repeats, ("keep", "average"))
    table = read_trials(trials)
    betas = _Betas(root, MODELS[model], parse_memory(max_memory))
    if betas.n_trials != len(table):
        raise DataError(
            f"{betas.path} holds {betas.n_trials} trials, the table {len(table)} rows. GLMsingle leaves no trial out."
            " Next step: write one row for every trial, in the order of acquisition."
        )
    place, labels = _place(betas, mask, rois, reference)
    known = "session" in table
    session = table["session"].to_numpy() if known else np.ones(len(table), dtype=np.int64)
    ids = table["stimulus"].to_numpy(dtype=str)
    options = {"data": "glmsingle", "model": MODELS[model], "file": betas.path.name}
    template = make_responses(
        np.broadcast_to(np.zeros((), dtype=np.float32), (len(table), len(place))), stimulus=ids,
        subject=subject or None, session=session, run=table["run"].to_numpy() if "run" in table else None,
        units="% signal change", source="glmsingle", licence=licence, provenance=options, **labels,
    )  # fmt: skip
    bounds = bounds_of(session)
    responses = collect(
        template, bounds, lambda n, block: betas.read(slice(*bounds[n]), place[block]), zscore=zscore, repeats=repeats,
        cache=cache, files=[betas.path], settings={**options, "folder": str(root.resolve())}, max_memory=max_memory,
        progress=progress,
    )  # fmt: skip
    return EncodingData(responses, stimuli_of(ids, images, "glmsingle", licence))


def recognise(folder: Path) -> Found | None:
    """GLMsingle's output files in this folder, or None."""
    files = [p for name in MODELS.values() for p in sorted(folder.glob(f"{name}.*"))]
    if not files:
        return None
    readable = [p for p in files if p.suffix in _NAMES]
    missing = () if readable else ("a readable file: .npy is pickled; write again with wanthdf5=1",)
    has = {"files": ", ".join(p.name for p in files)}
    call = f'read_glmsingle("{folder}", "trials.csv")' if readable else ""
    return Found("glmsingle", "GLMsingle output", folder, has, missing, call)


def read_trials(trials: Any) -> pd.DataFrame:
    """The table of trials, checked: text in ``stimulus``, whole numbers in ``session`` and ``run``."""
    if isinstance(trials, (str, os.PathLike)):
        path = Path(trials).expanduser()
        if not path.is_file():
            raise DataError(f"{path} does not exist; it should name the stimulus of every trial.")
        trials = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype={"stimulus": str})
    table = pd.DataFrame(trials).reset_index(drop=True)
    if "stimulus" not in table:
        raise DataError(f"the table of trials has columns {list(map(str, table.columns))} (expected stimulus, and"
                        " session and run if there are several).")  # fmt: skip
    if table["stimulus"].isna().any():
        raise DataError(f"trial {int(np.argmax(table['stimulus'].isna())) + 1} has no stimulus.")
    table["stimulus"] = table["stimulus"].astype(str)
    for name in ("session", "run"):
        if name in table:
            table[name] = table[name].astype(np.int64)
    if "session" in table and (np.diff(table["session"]) < 0).any():
        at = int(np.argmax(np.diff(table["session"]) < 0)) + 2
        raise DataError(f"sessions go back at trial {at}; rows are to stand in the order of acquisition.")
    return table


def stimuli_of(ids: np.ndarray, images: Any, source: str, licence: str) -> Stimuli:
    """Stimuli in order of first appearance, with pictures of a folder found by their name."""
    own = pd.unique(pd.Series(ids)).astype(str)
    paths = None
    if images is not None:
        paths = find_pictures(Path(images).expanduser(), own)
    return Stimuli(own, paths, None, None, source, licence)  # type: ignore[arg-type]


class _Betas:
    """Trials of one file, read in slabs."""

    def __init__(self, root: Path, name: str, budget: int) -> None:
        import h5py

        self.budget = budget
        path = next((p for e in _NAMES if (p := root / f"{name}{e}").is_file()), None)
        if path is None:
            pickled = (root / f"{name}.npy").is_file()
            why = f"{name}.npy is pickled and is not opened; run GLMsingle with opt['wanthdf5'] = 1." if pickled else (
                f"Expected {name}.hdf5 or {name}.mat.")  # fmt: skip
            raise DataError(f"{root} has no readable betas: {like(root)} {why}")
        self.path, self.name = path, _NAMES[path.suffix]
        try:
            with h5py.File(path, "r") as handle:
                if self.name not in handle:
                    raise DataError(f"{path} has no data set {self.name!r}; it holds {sorted(handle)[:8]}.")
                shape = tuple(int(x) for x in handle[self.name].shape)
        except OSError as error:
            step = "save with -v7.3" if path.suffix == ".mat" else "copy it again"
            raise DataError(f"{path} is not readable as HDF5: {error}. Next step: {step}.") from error
        self.turned = path.suffix == ".mat"
        shape = shape[::-1] if self.turned else shape
        if len(shape) not in (2, 4):
            raise DataError(f"{path}: betas have shape {shape} (expected (x, y, z, trial) or (voxel, trial)).")
        self.space, self.n_trials = shape[:-1], shape[-1]
        self.n_places = int(np.prod(self.space))
        #: From a table (voxel, time): there is no volume.
        self.flat = len(self.space) == 1 or self.space[1:] == (1, 1)

    def read(self, rows: slice, places: np.ndarray) -> np.ndarray:
        """Betas (trial, place) of flat numbers (C order, ascending), float32."""
        import h5py

        per = self.n_places // self.space[0]
        step = max(1, self.budget // 8 // max(1, 16 * per * (rows.stop - rows.start)))
        out = np.empty((rows.stop - rows.start, len(places)), dtype=np.float32)
        with h5py.File(self.path, "r") as handle:
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


def _place(betas: _Betas, mask: Any, rois: Any, reference: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Flat numbers in the betas, and labels of the voxels."""
    image = None
    inside: np.ndarray | None = None
    if isinstance(mask, np.ndarray):
        if mask.dtype != bool:
            raise DataError(f"mask is {mask.dtype} (expected bool).")
        inside = mask
    elif mask is not None:
        image = open_image(mask, "mask")
        inside = binary_mask(image, "mask")
    if reference is not None:
        image = open_image(reference, "reference")
    if betas.flat:
        if inside is not None and int(inside.sum()) != betas.n_places:
            raise DataError(f"{betas.path} holds {betas.n_places} voxels of a table, the mask {int(inside.sum())}."
                            " Next step: give the mask whose voxels GLMsingle was given.")  # fmt: skip
        place = np.arange(betas.n_places)
        if inside is None:
            place = place[betas.finite()]
        voxel = place if inside is None else np.flatnonzero(inside)
        shape = None if inside is None or inside.ndim != 3 else inside.shape
    else:
        shape = betas.space
        if inside is not None and inside.shape != shape:
            raise DataError(f"mask has shape {inside.shape}, the betas {shape}: they are of different spaces.")
        place = np.flatnonzero(betas.finite() if inside is None else inside)
        voxel = place
    if not len(place):
        raise DataError(f"no voxel of {betas.path} is taken: the mask is empty, or betas are nowhere finite.")
    labels: dict[str, Any] = {"voxel": voxel, "space": "own"}
    if image is not None and shape is not None:
        if tuple(image.shape[:3]) != tuple(shape):
            raise DataError(f"reference has shape {tuple(image.shape[:3])}, the betas {tuple(shape)}.")
        ijk = np.stack(np.unravel_index(voxel, shape), 1)
        labels |= {"ijk": ijk, "affine": image.affine, "volume_shape": shape}
    if rois:
        if shape is None:
            raise DataError("rois need a volume: give mask or reference.")
        names = {}
        for name, item in rois.items():
            roi = open_image(item, f"roi {name!r}")
            values = np.asarray(image_values(roi, name)).reshape(-1)
            if values.size != int(np.prod(shape)):
                raise DataError(f"roi {name!r} has shape {tuple(roi.shape)}, the betas {tuple(shape)}.")
            names[name] = values[voxel] > 0
        labels["roi"] = names
    return place, labels
