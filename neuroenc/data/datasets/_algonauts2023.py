"""The Algonauts Project 2023 challenge (Gifford et al. 2023): averaged responses on fsaverage's visual cortex."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import DataError
from neuroenc._core.files import read_npy
from neuroenc._core.memory import parse_memory
from neuroenc._core.optional import require
from neuroenc.data._build import make_responses
from neuroenc.data._stimuli import EncodingData, Stimuli
from neuroenc.data.datasets._nsd._design import stimulus_name
from neuroenc.data.datasets._nsd._rois import FILES
from neuroenc.data.datasets._recording import select_voxels
from neuroenc.data.datasets._registry import Dataset, Found, Source

_SIDES = {"lh": "L", "rh": "R"}
#: The published tables of names are pickled dictionaries; number n is the n-th name, as in NSD's own label images.
_GROUPS = ("prf-visualrois", "floc-bodies", "floc-faces", "floc-places", "floc-words", "streams")
LABELS = {group: FILES[group] for group in _GROUPS}
_PICTURE = re.compile(r"(train|test)-(\d+)_nsd-(\d{5})\.(?:png|jpg)")


class Algonauts2023(Dataset):
    """Responses of one subject to the training pictures; the test pictures come without responses, as published.

    Values are as published: z-scored within NSD's sessions, then averaged over each picture's repeats, of which the
    number is not told. Pictures carry NSD's 0-based number in their file names; ids here are those of
    `neuroenc.data.nsd` (1-based), so both data sets join by id: ``train-0001_nsd-00013.png`` is ``nsd00014``.

    Parameters
    ----------
    source
        ``root`` holds ``subj01``, ...
    subject : 1 to 8, or "subj01" to "subj08"
    voxels : "all", or names of regions
        V1v, ..., FFA-1, ..., or a group (``floc-faces``) or stream.
    max_memory : int or str, optional
        Responses of more than half of it stay in their files (dask).

    Returns
    -------
    EncodingData
        ``responses`` (stimulus, voxel), ``vertex, hemi`` on fsaverage, ``roi``. ``stimuli``: training pictures, then
        test pictures, table with ``file, split, position, nsd_id`` (0-based). ``extra["splits"]``: train, test.

    References
    ----------
    Gifford et al. (2023), The Algonauts Project 2023 Challenge, arXiv:2301.03198.
    """

    name, title = "algonauts2023", "Algonauts 2023"
    expected = "subj01/training_split/training_fmri/lh_training_fmri.npy, training_images and subj01/roi_masks"

    def subjects(self, folder: Path) -> list[str]:
        return sorted(p.parents[2].name for p in folder.glob("subj*/training_split/training_fmri/lh_training_fmri.npy"))

    def missing(self, folder: Path) -> list[str]:
        parts = ("roi_masks", "test_split", "training_split/training_images")
        return [f"{n}/{x}" for n in self.subjects(folder) for x in parts if not (folder / n / x).is_dir()]

    def recognise(self, folder: Path) -> Found | None:
        return super().recognise(folder.parent if re.fullmatch(r"subj\d\d", folder.name) else folder)

    def read(
        self, source: Source, *, subject: int | str = 1, voxels: Any = "all", max_memory: str | int | None = None
    ) -> EncodingData:
        name = f"subj{self.number(subject, 8, 'subj?'):02d}"
        root = self.root(source)
        folder = root / name
        fmri = folder / "training_split" / "training_fmri"
        lost = [p for p in (fmri / f"{s}_training_fmri.npy" for s in _SIDES) if not p.is_file()]
        if lost:
            raise self.lacks(root, str(lost[0].relative_to(root)))
        arrays = {s: read_npy(fmri / f"{s}_training_fmri.npy", "responses") for s in _SIDES}
        pictures = _pictures(folder)
        train = pictures[pictures["split"] == "train"]
        for side, array in arrays.items():
            if array.ndim != 2 or len(array) != len(train) or array.dtype.kind not in "fiu":
                raise DataError(
                    f"{side}_training_fmri.npy of {name} has shape {array.shape}, there are {len(train)} training "
                    "pictures (expected one row each). Next step: unpack training_images again."
                )
        sizes = {s: a.shape[1] for s, a in arrays.items()}
        vertices = {s: _vertices(folder / "roi_masks", s, n) for s, n in sizes.items()}
        regions = _regions(folder / "roi_masks", sizes)
        keep = select_voxels(voxels, regions, f"{name} of Algonauts 2023")
        of = np.repeat(list(_SIDES), list(sizes.values()))
        parts: list[Any] = [(a, keep[of == s]) for s, a in arrays.items()]
        if len(train) * int(keep.sum()) * 4 <= parse_memory(max_memory) // 2:
            values: Any = np.concatenate([np.asarray(a[:, k], dtype=np.float32) for a, k in parts], axis=1)
        else:
            dask = require("dask.array", "big")
            lazy = [dask.from_array(a, chunks=(len(a), 1024))[:, np.flatnonzero(k)] for a, k in parts]
            values = dask.concatenate([a.astype(np.float32) for a in lazy], axis=1)
        labels: dict[str, Any] = {"stimulus": train.index.to_numpy(dtype=str), "dim": "stimulus", "subject": name}
        labels |= {"voxel": np.flatnonzero(keep), "vertex": np.concatenate(list(vertices.values()))[keep]}
        labels["hemi"] = np.array([_SIDES[s] for s in of[keep].tolist()], dtype=str)
        labels["roi"] = {n: m[keep] for n, m in regions.items() if n != "all" and n not in LABELS}
        labels |= {"space": "fsaverage", "units": "z", "zscored": "session", "source": self.name}
        labels["provenance"] = {"data": self.name, "subject": name, "voxels": str(voxels)}
        responses = make_responses(values, **labels, licence=source.manifest.licence)
        ids, paths = pictures.index.to_numpy(dtype=str), pictures["path"].tolist()
        table = pictures.drop(columns="path")
        stimuli = Stimuli(ids, paths, None, table, self.name, source.manifest.licence)
        splits = {s: pictures.index[pictures["split"] == s].to_numpy(dtype=str) for s in ("train", "test")}
        return EncodingData(responses, stimuli, extra={"splits": splits})


def _pictures(folder: Path) -> pd.DataFrame:
    """Pictures in the order of the responses, test pictures after them."""
    rows = []
    for part, prefix in (("training", "train"), ("test", "test")):
        place = folder / f"{part}_split" / f"{part}_images"
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            match = _PICTURE.fullmatch(path.name)
            if match and match[1] == prefix:
                rows.append((prefix, int(match[2]), int(match[3]), path.name, path))
    table = pd.DataFrame(rows, columns=["split", "position", "nsd_id", "file", "path"])
    # By number and not by name: "train-10000" would stand before "train-9999".
    table = table.sort_values(["split", "position"], ascending=[False, True], kind="stable")
    for split, own in table.groupby("split"):
        if not np.array_equal(own["position"], np.arange(1, len(own) + 1)):
            lost = sorted(set(range(1, int(own["position"].max()) + 1)) - set(own["position"]))
            raise DataError(f"{folder} lacks {'training' if split == 'train' else 'test'} pictures number {lost[:5]}.")
    if table["nsd_id"].duplicated().any():
        raise DataError(f"{folder} shows NSD picture {table['nsd_id'][table['nsd_id'].duplicated()].iloc[0]} twice.")
    table.index = pd.Index(stimulus_name(table["nsd_id"].to_numpy()), name="stimulus")
    return table


def _labels(path: Path) -> np.ndarray:
    values = read_npy(path, "labels", memory_map=False)
    if values.dtype.kind not in "fiub" or not np.isfinite(values).all() or (values != np.round(values)).any():
        raise DataError(f"{path} holds {values.dtype} values that are not whole numbers; labels are.")
    return values.astype(np.int64)


def _vertices(folder: Path, side: str, n: int) -> np.ndarray:
    """Vertices of one hemisphere, in the order of the responses."""
    path = folder / f"{side}.all-vertices_fsaverage_space.npy"
    if not path.is_file():
        raise DataError(f"{path} does not exist; it tells where the {n} vertices lie. Next step: unpack roi_masks.")
    vertices = np.flatnonzero(_labels(path))
    if len(vertices) != n:
        raise DataError(f"{path} marks {len(vertices)} vertices, the responses have {n}.")
    return vertices


def _regions(folder: Path, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Every region, and the groups of regions, over the vertices of both hemispheres."""
    found = {"all": np.ones(sum(sizes.values()), dtype=bool)}
    for group, names in LABELS.items():
        parts = []
        for side, n in sizes.items():
            path = folder / f"{side}.{group}_challenge_space.npy"
            parts.append(_labels(path) if path.is_file() else np.zeros(n, dtype=np.int64))
            top, low = parts[-1].max(initial=0), parts[-1].min(initial=0)
            if parts[-1].shape != (n,) or top > len(names) or low < 0:
                raise DataError(
                    f"{path} has shape {parts[-1].shape} and labels to {top} (expected ({n},), 0 to {len(names)})."
                )
        labels = np.concatenate(parts)
        found |= {group: labels > 0, **{name: labels == k for k, name in enumerate(names, start=1)}}
    return found
