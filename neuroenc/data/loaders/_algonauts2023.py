"""The Algonauts Project 2023 challenge (Gifford et al. 2023): averaged responses on fsaverage's visual cortex."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import read_npy
from neuroenc._core.memory import parse_memory
from neuroenc._core.optional import require
from neuroenc.data._nsd._design import stimulus_name
from neuroenc.data._schema import EncodingData, Stimuli, make_responses
from neuroenc.data.loaders._found import Found
from neuroenc.data.loaders._sessions import dataset_root, subject_number
from neuroenc.data.loaders._source import Source

__all__ = ["LABELS", "load", "recognise"]

_EXPECTED = "subj01/training_split/training_fmri/lh_training_fmri.npy, training_images and subj01/roi_masks"
_SIDES = {"lh": "L", "rh": "R"}
#: The published tables of names are pickled dictionaries, so they stand here: number n is the n-th name.
LABELS = {
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
    "streams": ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"),
}
_PICTURE = re.compile(r"(train|test)-(\d+)_nsd-(\d{5})\.(?:png|jpg)")


def load(
    source: Source, *, subject: int | str = 1, voxels: Any = "all", max_memory: str | int | None = None
) -> EncodingData:
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

    Raises
    ------
    ConfigError, DataError
        An option is unknown; or files are absent or do not belong together.

    References
    ----------
    Gifford et al. (2023), The Algonauts Project 2023 Challenge, arXiv:2301.03198.
    """
    name = f"subj{subject_number(subject, 8, 'subj?', 'the challenge'):02d}"
    root = dataset_root(source, lambda f: recognise(f) is not None, _EXPECTED)
    root = root.parent if re.fullmatch(r"subj\d\d", root.name) else root
    folder = root / name
    fmri = folder / "training_split" / "training_fmri"
    lost = [p for p in (fmri / f"{s}_training_fmri.npy" for s in _SIDES) if not p.is_file()]
    if lost:
        raise DataError(
            f"{folder} lacks {lost[0].relative_to(folder)}; {root} has {_subjects(root)}. Expected: {_EXPECTED}."
        )
    arrays = {s: read_npy(fmri / f"{s}_training_fmri.npy", "responses") for s in _SIDES}
    pictures = _pictures(folder)
    train = pictures[pictures["split"] == "train"]
    for side, array in arrays.items():
        if array.ndim != 2 or len(array) != len(train) or array.dtype.kind not in "fiu":
            raise DataError(
                f"{side}_training_fmri.npy of {name} has shape {array.shape} ({array.dtype}), there are {len(train)}"
                " training pictures (expected one row each). Next step: unpack training_images again."
            )
    masks = {s: _Masks(folder / "roi_masks", s, array.shape[1]) for s, array in arrays.items()}
    keep = {s: m.chosen(voxels) for s, m in masks.items()}
    n = sum(len(k) for k in keep.values())
    if not n:
        total = sum(a.shape[1] for a in arrays.values())
        raise DataError(f"voxels={voxels!r} selects none of {total} vertices of {name}.")
    values: Any
    if len(train) * n * 4 <= parse_memory(max_memory) // 2:
        values = np.concatenate([np.asarray(a[:, keep[s]], dtype=np.float32) for s, a in arrays.items()], axis=1)
    else:
        dask = require("dask.array", "big")
        lazy = [dask.from_array(a, chunks=(len(a), 1024))[:, keep[s]].astype(np.float32) for s, a in arrays.items()]
        values = dask.concatenate(lazy, axis=1)
    first = {"lh": 0, "rh": arrays["lh"].shape[1]}
    responses = make_responses(
        values,
        stimulus=train.index.to_numpy(dtype=str),
        dim="stimulus",
        subject=name,
        voxel=np.concatenate([first[s] + keep[s] for s in _SIDES]),
        vertex=np.concatenate([masks[s].vertices[keep[s]] for s in _SIDES]),
        hemi=np.concatenate([np.full(len(keep[s]), h) for s, h in _SIDES.items()]),
        roi=[x for s in _SIDES for x in masks[s].names(keep[s])],
        space="fsaverage",
        units="z",
        zscored="session",
        source="algonauts2023",
        licence=source.manifest.licence,
        provenance={"data": "algonauts2023", "subject": name, "voxels": str(voxels)},
    )
    stimuli = Stimuli(
        pictures.index.to_numpy(dtype=str),
        pictures["path"].tolist(),
        None,
        pictures.drop(columns="path"),
        "algonauts2023",
        source.manifest.licence,
    )
    splits = {s: pictures.index[pictures["split"] == s].to_numpy(dtype=str) for s in ("train", "test")}
    return EncodingData(responses, stimuli, extra={"splits": splits})


def recognise(folder: Path) -> Found | None:
    """The challenge's folders here, or None."""
    root = folder.parent if re.fullmatch(r"subj\d\d", folder.name) else folder
    names = _subjects(root)
    if not names:
        return None
    missing = [
        f"{n}/{x}"
        for n in names
        for x in ("roi_masks", "test_split", "training_split/training_images")
        if not (root / n / x).is_dir()
    ]
    return Found(
        "algonauts2023",
        "Algonauts 2023",
        root,
        {"subjects": ", ".join(names)},
        tuple(missing),
        f'load_dataset("algonauts2023", root="{root}", subject="{names[0]}")',
    )


def _subjects(root: Path) -> list[str]:
    return sorted(p.parents[2].name for p in root.glob("subj*/training_split/training_fmri/lh_training_fmri.npy"))


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
            raise DataError(
                f"{folder} lacks training pictures number {lost[:5]}; rows of the responses would shift."
                if split == "train"
                else f"{folder} lacks test pictures number {lost[:5]}."
            )
    if table["nsd_id"].duplicated().any():
        raise DataError(f"{folder} shows NSD picture {table['nsd_id'][table['nsd_id'].duplicated()].iloc[0]} twice.")
    table.index = pd.Index(stimulus_name(table["nsd_id"].to_numpy()), name="stimulus")
    return table


def _labels(path: Path) -> np.ndarray:
    values = read_npy(path, "labels", memory_map=False)
    if values.dtype.kind not in "fiub" or not np.isfinite(values).all() or (values != np.round(values)).any():
        raise DataError(f"{path} holds {values.dtype} values that are not whole numbers; labels are.")
    return values.astype(np.int64)


class _Masks:
    """Vertices and regions of one hemisphere, in the order of the responses."""

    def __init__(self, folder: Path, side: str, n: int) -> None:
        path = folder / f"{side}.all-vertices_fsaverage_space.npy"
        if not path.is_file():
            raise DataError(f"{path} does not exist; it tells where the {n} vertices lie. Next step: unpack roi_masks.")
        self.vertices = np.flatnonzero(_labels(path))
        if len(self.vertices) != n:
            raise DataError(f"{path} marks {len(self.vertices)} vertices, the responses have {n}.")
        self.labels = {}
        for name, table in LABELS.items():
            own = folder / f"{side}.{name}_challenge_space.npy"
            if own.is_file():
                labels = _labels(own)
                if labels.shape != (n,) or labels.max(initial=0) > len(table) or labels.min(initial=0) < 0:
                    raise DataError(
                        f"{own} has shape {labels.shape} and labels to {labels.max(initial=0)} (expected"
                        f" ({n},), 0 to {len(table)})."
                    )
                self.labels[name] = labels

    def chosen(self, voxels: Any) -> np.ndarray:
        if isinstance(voxels, str) and voxels == "all":
            return np.arange(len(self.vertices))
        keep = np.zeros(len(self.vertices), dtype=bool)
        for name in [voxels] if isinstance(voxels, str) else list(voxels):
            own = [(g, t.index(name) + 1) for g, t in LABELS.items() if name in t]
            legal = [*LABELS, *(x for t in LABELS.values() for x in t)]
            if name not in legal:
                raise ConfigError(unknown_name("region of Algonauts 2023", name, legal))
            for group, number in own:
                if group in self.labels:
                    keep |= self.labels[group] == number
            keep |= self.labels.get(name, np.zeros(1)) > 0
        return np.flatnonzero(keep)

    def names(self, keep: np.ndarray) -> list[str]:
        rows = [[LABELS[g][v - 1] for g, labels in self.labels.items() if (v := int(labels[n])) > 0] for n in keep]
        return [";".join(r) for r in rows]
