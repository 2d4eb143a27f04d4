"""BOLD Moments (Lahner et al. 2024): responses of ten subjects to 1,102 short videos, by region."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.data._build import make_responses
from neuroenc.data._preprocess import average_repeats
from neuroenc.data._stimuli import EncodingData, Stimuli
from neuroenc.data.datasets._registry import Dataset, Source

_N_TRAIN = 1000
_NAME = re.compile(r"(sub-\d\d)_roi-(\w+?)_betas_normalized\.(npz|pkl)")
_CONVERT = (
    "python -c \"import glob, numpy, pandas; [numpy.savez(f[:-3] + 'npz', **{k: v for k, v in"
    " pandas.read_pickle(f).items() if hasattr(v, 'dtype')}) for f in glob.glob('*.pkl')]\""
)


class BoldMoments(Dataset):
    """Responses of one subject of BOLD Moments to every video and repeat, in the regions of version B (MNI152).

    Values are as published: GLMsingle betas, z-scored within sessions by mean and standard deviation of the training
    trials. The published files are pickles, which can run any program and are not opened here: convert each subject's
    folder once, with the command that the error prints (if you trust where they come from).

    Parameters
    ----------
    source
        ``root`` holds ``derivatives/versionB/MNI152/prepared_allvoxel_pkl/sub-01``, ... (or is it).
    subject : 1 to 10, or "sub-01" to "sub-10"
    voxels : "all", or names of regions
        Names as in the files, such as lV1v; V1v is both sides. "all" leaves out unions (BMDgeneral), whose voxels the
        other regions hold too.
    repeats : {"keep", "average"}

    Returns
    -------
    EncodingData
        ``responses`` (presentation, voxel) with repeat and roi, or (stimulus, voxel). Ids are "vid0001" to "vid1102".
        Voxels have no places: the files do not tell them. ``extra["splits"]``: train (the first 1000), test.

    Raises
    ------
    ConfigError, DataError
        An option is unknown, files are pickles, absent or of different lengths.

    References
    ----------
    Lahner et al. (2024), Modeling short visual events through the BOLD Moments video fMRI dataset and metadata, Nature
    Communications 15:6241. Names of files and arrays were compared with the data set's README files, its preparation
    script and three readers by others, not with the data themselves.
    """

    name, title = "bold-moments", "BOLD Moments"
    expected = "derivatives/versionB/MNI152/prepared_allvoxel_pkl/sub-01/sub-01_roi-lV1v_betas_normalized.npz, ..."

    def subjects(self, folder: Path) -> list[str]:
        found = (_NAME.fullmatch(p.name) for p in _place(folder).glob("sub-*/sub-*_roi-*_betas_normalized.*"))
        return sorted({match[1] for match in found if match})

    def missing(self, folder: Path) -> list[str]:
        return [f"{s} as .npz ({_CONVERT})" for s in self.subjects(folder) if not _files(_place(folder) / s, "npz")]

    def read(
        self, source: Source, *, subject: int | str = 1, voxels: Any = "all", repeats: str = "keep"
    ) -> EncodingData:
        one_of("value of repeats:", repeats, ("keep", "average"))
        name = f"sub-{self.number(subject, 10, 'sub-?'):02d}"
        root = self.root(source)
        folder = _place(root) / name
        files = _files(folder, "npz")
        if not files:
            if _files(folder, "pkl"):
                raise DataError(
                    f"{folder} holds pickles, which can run any program and are not opened here. Next step, if you "
                    f"trust where they come from: convert them in that folder with {_CONVERT}"
                )
            raise self.lacks(root, f"regions of {name}")
        parts = {region: _region(files[region]) for region in _chosen(voxels, files)}
        shapes = {r: [a.shape[:2] for a in both] for r, both in parts.items()}
        first = next(iter(shapes))
        odd = next((r for r, s in shapes.items() if s != shapes[first]), None)
        if odd is not None:
            raise DataError(f"{odd} of {name} holds (video, repeat) {shapes[odd]}, {first} {shapes[first]}.")
        roi = np.repeat(list(parts), [both[0].shape[2] for both in parts.values()])
        values, ids = [], []
        for k, start in ((0, 0), (1, _N_TRAIN)):
            block = np.concatenate([both[k] for both in parts.values()], axis=2)
            values.append(block.reshape(-1, block.shape[2]))
            ids.append(np.repeat([f"vid{start + n + 1:04d}" for n in range(len(block))], block.shape[1]))
        Y, stimulus = np.concatenate(values).astype(np.float32), np.concatenate(ids)
        # A repeat that was not shown is NaN throughout.
        shown = np.isfinite(Y).any(axis=1)
        labels: dict[str, Any] = {"stimulus": stimulus[shown], "subject": name, "roi": roi.tolist(), "units": "z"}
        labels |= {"space": "MNI152", "source": self.name, "licence": source.manifest.licence}
        responses = make_responses(Y[shown], **labels, provenance={"data": self.name, "subject": name})
        if repeats == "average":
            responses = average_repeats(responses)
        own = np.asarray(pd.unique(pd.Series(stimulus[shown])), dtype=str)
        split = np.where(own <= f"vid{_N_TRAIN:04d}", "train", "test")
        table = pd.DataFrame({"split": split, "test": split == "test"}, index=own)
        stimuli = Stimuli(own, None, None, table, self.name, source.manifest.licence)
        return EncodingData(responses, stimuli, extra={"splits": {s: own[split == s] for s in ("train", "test")}})


def _place(folder: Path) -> Path:
    below = folder / "derivatives" / "versionB" / "MNI152" / "prepared_allvoxel_pkl"
    return below if below.is_dir() else folder


def _files(folder: Path, ending: str) -> dict[str, Path]:
    found = ((p, _NAME.fullmatch(p.name)) for p in sorted(folder.glob(f"*_betas_normalized.{ending}")))
    return {match[2]: p for p, match in found if match}


def _chosen(voxels: Any, files: dict[str, Path]) -> list[str]:
    if isinstance(voxels, str) and voxels == "all":
        return [r for r in files if "general" not in r] or list(files)
    chosen: list[str] = []
    for name in [voxels] if isinstance(voxels, str) else list(voxels):
        own = [r for r in (str(name), f"l{name}", f"r{name}") if r in files]
        if not own:
            raise ConfigError(unknown_name("region of BOLD Moments", str(name), list(files)))
        chosen += [r for r in own if r not in chosen]
    return chosen


def _region(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Training and test responses (video, repeat, voxel)."""
    try:
        with np.load(path, allow_pickle=False) as held:
            arrays = {k: held[k] for k in held.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}. Next step: convert it again.") from error
    parts = [arrays.get(f"{part}_data_allvoxel") for part in ("train", "test")]
    train, test = parts
    if train is None or test is None or train.ndim != 3 or test.ndim != 3 or train.shape[2] != test.shape[2]:
        shapes = {k: v.shape for k, v in arrays.items()}
        raise DataError(f"{path} holds {shapes}; expected train_ and test_data_allvoxel (video, repeat, voxel).")
    if len(train) != _N_TRAIN:
        raise DataError(f"{path} holds {len(train)} training videos; the data set has {_N_TRAIN}.")
    return train, test
