"""Which picture was shown when, its ids, pixels and captions, which ones all subjects share, and test sets of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc._core.files import read_json
from neuroenc._core.tables import numbers, read_table, whole_numbers
from neuroenc.data._build import repeat_numbers
from neuroenc.data._io import read_mat
from neuroenc.data._splits import _take
from neuroenc.data._stimuli import EncodingData, PixelBank, Stimuli
from neuroenc.data.datasets._nsd._layout import Layout

LICENCE = "NSD Terms and Conditions (data access agreement); not redistributable"
_CAPTION_FILES = ("captions_train2017.json", "captions_val2017.json")
_COLUMNS = {"cocoId": "coco_id", "cocoSplit": "coco_split", "cropBox": "crop_box"}
#: Sessions that subjects 1 to 8 completed.
OFFICIAL_SESSIONS = {1: 40, 2: 40, 3: 32, 4: 30, 5: 40, 6: 32, 7: 40, 8: 30}
#: Test sets: what each takes of the shared pictures.
SPLITS = {
    "shared1000": "every shared picture that the subject saw at least once",
    "all8": "shared pictures that every subject saw at least once",
    "special515": "shared pictures that every subject saw three times",
}


def stimulus_name(nsd_id: np.ndarray) -> np.ndarray:
    """Ids as the data set's own file names write them: "nsd00001" is row 0 of the picture bank.

    >>> stimulus_name(np.array([0, 2950])).tolist()
    ['nsd00001', 'nsd02951']
    """
    return np.array([f"nsd{n + 1:05d}" for n in np.asarray(nsd_id).tolist()], dtype="<U8")


@dataclass(frozen=True, eq=False)
class Design:
    """The experiment's order, with all ids counted from 0 (the file counts from 1).

    ``order`` (trial,) position among a subject's 10,000 pictures; ``pictures`` (subject, 10,000) rows of the picture
    bank; ``shared`` rows of the picture bank that all subjects were to see; ``run`` (trial,) from 1.
    """

    order: np.ndarray
    pictures: np.ndarray
    shared: np.ndarray
    run: np.ndarray
    n_sessions: int

    @property
    def per_session(self) -> int:
        return len(self.order) // self.n_sessions

    def trials(self, subject: int) -> pd.DataFrame:
        """One row per planned trial: ``session`` and ``run`` from 1, ``repeat`` and ids from 0."""
        session = np.arange(len(self.order)) // self.per_session + 1
        shown = {"nsd_id": self.pictures[subject - 1][self.order], "id_10k": self.order}
        repeat = repeat_numbers(self.order, None)
        return pd.DataFrame({"session": session, "run": self.run, **shown, "repeat": repeat})

    def times_shown(self, subject: int, n_sessions: int) -> np.ndarray:
        """How often the first ``n_sessions`` showed each of the shared pictures."""
        seen = self.pictures[subject - 1][self.order[: n_sessions * self.per_session]]
        return np.array([np.count_nonzero(seen == s) for s in self.shared])


def runs_of(pattern: np.ndarray) -> np.ndarray:
    """Run of every trial, from 1; ``pattern`` (session, run, slot) is 1 where a slot shows a picture."""
    counts = pattern.sum(axis=2, dtype=np.int64)
    return np.repeat(np.tile(np.arange(1, counts.shape[1] + 1), len(counts)), counts.ravel())


def read_design(layout: Layout) -> Design:
    """``nsd_expdesign.mat``, checked."""
    path = layout.experiment / "nsd_expdesign.mat"
    if not path.is_file():
        raise DataError(f"{path} does not exist. Next step: download nsddata/experiments/nsd/nsd_expdesign.mat.")
    content = read_mat(path, ("masterordering", "subjectim", "sharedix", "stimpattern"), "design of NSD")
    order = content["masterordering"].ravel().astype(np.int64)
    pictures = np.atleast_2d(content["subjectim"]).astype(np.int64)
    shared = content["sharedix"].ravel().astype(np.int64)
    pattern = np.asarray(content["stimpattern"]).astype(np.int64)
    for name, values in (("masterordering", order), ("subjectim", pictures), ("sharedix", shared)):
        if not values.size:
            raise DataError(f"{path}: {name} is empty. Next step: download it again.")
        if values.min() != 1 and (name == "masterordering" or values.min() < 1):
            raise DataError(
                f"{path}: {name} begins at {values.min()}; the data set counts from 1, so this file was changed. "
                "Next step: download it again."
            )
    per_session = pattern.reshape(len(pattern), -1).sum(axis=1)
    if order.max() > pictures.shape[1] or pattern.ndim != 3 or (per_session * len(pattern) != len(order)).any():
        raise DataError(
            f"{path}: {len(order)} trials of {order.max()} pictures do not fit subjectim {pictures.shape} and "
            f"stimpattern {pattern.shape}."
        )
    return Design(order - 1, pictures - 1, np.sort(shared - 1), runs_of(pattern), len(pattern))


def read_stimulus_table(layout: Layout, design: Design) -> pd.DataFrame | None:
    """``nsd_stim_info_merged.csv`` with its ids checked against the design, or None where it is absent."""
    path = layout.experiment / "nsd_stim_info_merged.csv"
    if not path.is_file():
        return None
    table = _stimulus_table(path)
    first = f"subject{layout.subject}_rep0"
    if first in table:
        trial = table[first].to_numpy(np.int64)
        seen = (trial > 0) & (trial <= len(design.order))
        expected = design.pictures[layout.subject - 1][design.order[trial[seen] - 1]]
        wrong = expected != table["nsdId"].to_numpy()[seen]
        if wrong.any():
            row = int(np.flatnonzero(seen)[np.argmax(wrong)])
            raise DataError(
                f"{path} and nsd_expdesign.mat disagree about {int(wrong.sum())} pictures of {layout.name}: trial "
                f"{trial[row]} shows nsdId {int(table['nsdId'][row])} in one and {expected[np.argmax(wrong)]} in the "
                "other."
            )
    return table.set_index("nsdId", drop=False)


def _stimulus_table(path: Path) -> pd.DataFrame:
    """Columns that are used, with whole numbers as such; the published table begins with a column without a name."""
    texts = ("cocoSplit", "cropBox")
    table = read_table(path, ("cocoId", "cocoSplit", "nsdId"), what="table of pictures")
    for column in map(str, table):
        if column in ("cocoId", "nsdId") or column.startswith("subject"):
            always = column in ("cocoId", "nsdId")
            table[column] = whole_numbers(table, column, path, missing=() if always else ("",), default=0)
        elif column not in texts:
            table = table.drop(columns=column)
    twice = table["nsdId"].duplicated()
    if twice.any():
        raise DataError(f"{path}, row {np.argmax(twice) + 1}: nsdId {table.nsdId[twice].iloc[0]} stands there twice.")
    return table


def session_counts(layout: Layout, design: Design) -> dict[int, int]:
    """How many sessions every subject completed: from ``behav/responses.tsv`` if all are there, else as published."""
    n_subjects = len(design.pictures)
    counts: dict[int, int] = {}
    for subject in range(1, n_subjects + 1):
        path = layout.with_subject(subject).ppdata / "behav" / "responses.tsv"
        if path.is_file():
            table = read_table(path, ("SESSION",), sep="\t", what="responses")
            if len(table):
                counts[subject] = int(numbers(table, "SESSION", path, least=1).max())
    if len(counts) == n_subjects:
        return counts
    if design.n_sessions == 40 and n_subjects == 8:
        return dict(OFFICIAL_SESSIONS)
    raise DataError(
        f"{len(counts)} of {n_subjects} subjects have behav/responses.tsv: which pictures all subjects saw is not "
        "known. Next step: download the tables, or use split='shared1000'."
    )


def shared_ids(design: Design, split: str, counts: dict[int, int] | None) -> np.ndarray:
    """Rows of the picture bank that a split names (whether or not one subject saw them)."""
    one_of("split of NSD", split, SPLITS)
    if split == "shared1000":
        return design.shared
    assert counts is not None
    least = np.min([design.times_shown(s, n) for s, n in counts.items()], axis=0)
    return design.shared[least >= (1 if split == "all8" else 3)]


def read_captions(layout: Layout, files: Iterable[str | os.PathLike[str]] | None) -> dict[int, tuple[str, ...]] | None:
    """COCO's captions by COCO id, from the files given, or from ``annotations`` beside the pictures; None if absent."""
    if files is None:
        folders = (layout.stimuli / "annotations", layout.root / "nsddata_stimuli" / "annotations")
        paths = [f / n for f in folders for n in _CAPTION_FILES if (f / n).is_file()]
    else:
        paths = [Path(f) for f in ([files] if isinstance(files, (str, os.PathLike)) else files)]
        lost = [p for p in paths if not p.is_file()]
        if lost:
            raise DataError(f"captions: {lost[0]} does not exist. Expected COCO's {' and '.join(_CAPTION_FILES)}.")
    if not paths:
        return None
    texts: dict[int, list[str]] = {}
    for path in paths:
        try:
            for row in read_json(path)["annotations"]:
                texts.setdefault(int(row["image_id"]), []).append(" ".join(str(row["caption"]).split()))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is not a file of COCO captions ({error!r}).") from error
    return {k: tuple(v) for k, v in texts.items()}


def read_stimuli(
    layout: Layout, trials: pd.DataFrame, info: pd.DataFrame | None, splits: dict[str, np.ndarray], captions: Any
) -> Stimuli:
    """The pictures of the given trials in the order of their ids, with every id that the data set gives them."""
    rows = np.unique(trials["nsd_id"].to_numpy())
    positions = trials.drop_duplicates("nsd_id").set_index("nsd_id")["id_10k"]
    table = pd.DataFrame(
        {"nsd_id": rows, "id_73k": rows + 1, "id_10k": positions.loc[rows].to_numpy() + 1}, index=stimulus_name(rows)
    )
    if info is not None:
        unknown = np.setdiff1d(rows, info.index.to_numpy())
        if unknown.size:
            raise DataError(
                f"nsd_stim_info_merged.csv has no row for {unknown.size} pictures, first nsdId {unknown[0]}. "
                "Next step: download it again."
            )
        for old, new in _COLUMNS.items():
            if old in info:
                table[new] = info.loc[rows, old].to_numpy()
    for name, shared in splits.items():
        table[name] = np.isin(rows, shared)
    texts = None
    if captions is not False and "coco_id" in table:
        found = read_captions(layout, None if captions is True else captions)
        if found is not None:
            texts = tuple(found.get(int(c), ()) for c in table["coco_id"])
    bank = layout.stimuli / "nsd_stimuli.hdf5"
    images = PixelBank(bank, "imgBrick", rows) if bank.is_file() else None
    return Stimuli(table.index.to_numpy(dtype=str), images, texts, table, "nsd", LICENCE)


_REST = ("train", "drop")


@dataclass(frozen=True, eq=False)
class NSDSplit:
    """Training and test rows with the numbers that papers leave out.

    ``n_listed`` pictures belong to the split, ``n_test`` of them this subject saw (the rest fell into sessions that are
    absent), ``n_train`` pictures are trained on; ``definition`` says in words which.
    """

    name: str
    definition: str
    train: xr.DataArray
    test: xr.DataArray
    n_listed: int
    n_test: int
    n_train: int

    def __repr__(self) -> str:
        return (
            f"NSDSplit({self.name}: {self.definition}; {self.n_test} of {self.n_listed} pictures seen, "
            f"{self.n_train} trained on)"
        )


def nsd_split(found: EncodingData, split: str = "shared1000", *, rest: str = "train") -> NSDSplit:
    """Split one subject's rows by the pictures that subjects share.

    Published test sets of "about 1,000" pictures are three different ones, because four subjects did not complete
    all sessions: ``shared1000`` takes every shared picture that this subject saw (1,000 for subjects 1, 2, 5 and 7, 930
    for 3 and 6, 907 for 4 and 8); ``all8`` those that all eight saw at least once (907); ``special515`` those that all
    eight saw three times (515).

    Parameters
    ----------
    found : EncodingData
        From `nsd`.
    split : {"shared1000", "all8", "special515"}
    rest : {"train", "drop"}
        What becomes of shared pictures outside the split.

    Returns
    -------
    NSDSplit
        ``train, test`` (views where rows are contiguous) and the numbers of pictures.

    Raises
    ------
    ConfigError
        The split is unknown.
    DataError
        The tree does not tell which pictures other subjects saw, or one side is empty.

    References
    ----------
    Allen et al. (2022), Nature Neuroscience 25:116.

    Examples
    --------
    >>> import tempfile
    >>> from neuroenc.data import nsd
    >>> from neuroenc.data.simulate import nsd_tree
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = nsd_tree(folder, n_subjects=1)
    ...     found = nsd(folder, 1, voxels="V1", repeats="average", cache=False, progress=False)
    >>> nsd_split(found)
    NSDSplit(shared1000: every shared picture that the subject saw at least once; 20 of 20 pictures seen, 40 trained on)
    """
    one_of("value of rest:", rest, _REST)
    one_of("split of NSD", split, SPLITS)
    if not hasattr(found, "extra"):
        raise DataError(f"found is a {type(found).__name__}; legal is what neuroenc.data.nsd returns, with its splits.")
    splits = found.extra.get("splits", {})
    if split not in splits or found.responses is None:
        raise DataError(
            f"these data do not know the split {split!r}; they know {sorted(splits)}. "
            "Next step: download nsddata/ppdata/subj*/behav/responses.tsv (which pictures others saw), or "
            "split='shared1000'."
        )
    responses = found.responses
    ids = responses["stimulus"].values
    in_test = np.isin(ids, splits[split])
    in_train = ~np.isin(ids, splits["shared1000"]) if rest == "drop" else ~in_test
    if not in_test.any() or not in_train.any():
        raise DataError(f"{split} puts {int(in_test.sum())} of {ids.size} rows into test; both sides need some.")
    train, test = _take(responses, np.flatnonzero(in_train)), _take(responses, np.flatnonzero(in_test))
    n_test, n_train = (len(np.unique(x["stimulus"].values)) for x in (test, train))
    return NSDSplit(split, SPLITS[split], train, test, len(splits[split]), n_test, n_train)
