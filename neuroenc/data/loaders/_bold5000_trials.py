"""Which picture each trial of BOLD5000 showed, and in which session and run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import DataError
from neuroenc._core.files import read_text
from neuroenc.data._labels import repeat_numbers
from neuroenc.data.loaders._sessions import natural, within

__all__ = ["Trials", "presentation_lists", "read_trials"]


@dataclass(frozen=True)
class Trials:
    """``table``: stimulus, file, session, run, repeat (0-based, over all trials); ``rows``: (session, row in it)."""

    table: pd.DataFrame
    rows: np.ndarray
    missing: list[int]

    def choose(self, sessions: Any) -> Trials:
        """The trials of some sessions."""
        if sessions is None:
            return self
        wanted = sorted({int(n) for n in np.atleast_1d(np.asarray(sessions)).tolist()})
        there = sorted(self.table["session"].dropna().astype(int).unique().tolist())
        lost = [n for n in wanted if n not in there]
        if lost or not wanted:
            raise DataError(f"there are no sessions {lost}; there are {there}.")
        keep = self.table["session"].isin(wanted).to_numpy()
        return Trials(self.table[keep].reset_index(drop=True), self.rows[keep], self.missing)


def presentation_lists(root: Path, name: str) -> list[tuple[int, int, list[str]]]:
    """(session, run, file names) from ``Stimuli_Presentation_Lists/CSI1/CSI1_sess01/CSI_sess01_run01.txt``."""
    found = []
    for folder in sorted(within(root, f"Stimuli_Presentation_Lists/{name}/{name}_sess*"), key=natural):
        session = int(folder.name.split("sess")[1])
        runs = sorted(folder.glob("*_run*.txt"), key=natural)
        found += [(session, n, _lines(path)) for n, path in enumerate(runs, start=1)]
    return found


def read_trials(root: Path, name: str, counts: dict[int, int] | None, total: int | None) -> Trials:
    """Every trial of the sessions in ``counts`` (session -> trials), or of all ``total`` trials in their order."""
    lists = presentation_lists(root, name)
    names = _names(root, name)
    listed = [x for _, _, files in lists for x in files]
    if names is None:
        if not lists:
            raise DataError(
                f"{root} does not tell which pictures {name} saw. Expected {name}_imgnames.txt (release 2) or"
                f" stim_lists/{name[:-1]}0{name[-1]}_stim_lists.txt (release 1). Next step: download it."
            )
        names = listed
    if lists and len(listed) == len(names):
        wrong = next((n for n, (a, b) in enumerate(zip(names, listed, strict=True)) if _id(a) != _id(b)), None)
        if wrong is not None:
            raise DataError(
                f"trial {wrong + 1} of {name} is {names[wrong]!r} in the list of names and {listed[wrong]!r} in"
                " Stimuli_Presentation_Lists. Next step: check that both belong to this subject."
            )
    elif lists:
        lists = []
    session = np.full(len(names), np.nan)
    run = np.full(len(names), np.nan)
    start = 0
    for s, r, files in lists:
        session[start : start + len(files)], run[start : start + len(files)] = s, r
        start += len(files)
    if counts is None:
        if total != len(names):
            raise DataError(f"{name} has {total} trials of responses but {len(names)} names of pictures.")
        at = np.arange(len(names))
        return _table(names, at, session, run, np.stack([np.zeros(len(at), np.int64), at], 1), [])
    if not lists:
        for s, first in _starts(name, counts, len(names)).items():
            session[first : first + counts[s]] = s
    parts, missing = [], [s for s in range(1, max(counts) + 1) if s not in counts]
    for s, n in sorted(counts.items()):
        own = np.flatnonzero(session == s)
        if len(own) != n:
            raise DataError(f"session {s} of {name} holds {n} trials, its lists {len(own)}. Next step: download again.")
        parts.append(np.stack([np.full(n, s), np.arange(n), own], 1))
    rows = np.concatenate(parts)
    return _table(names, rows[:, 2], session, run, rows[:, :2], missing)


def _table(
    names: list[str], at: np.ndarray, session: np.ndarray, run: np.ndarray, rows: np.ndarray, missing: list[int]
) -> Trials:
    ids = np.array([_id(x) for x in names])
    files = [x.removeprefix("rep_") for x in names]
    frame = pd.DataFrame(
        {"stimulus": ids, "file": files, "session": session, "run": run, "repeat": repeat_numbers(ids, None)}
    )
    return Trials(frame.iloc[at].reset_index(drop=True), rows, missing)


#: Sessions that each subject completed.
_N_SESSIONS = {"CSI1": 15, "CSI2": 15, "CSI3": 15, "CSI4": 9}


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
            f"the sessions {order} of {name} hold {sum(counts.values())} trials, its list {total} names; which names"
            f" belong to the absent sessions {absent} is not sure. Next step: put Stimuli_Presentation_Lists into the"
            " root, or download the absent sessions."
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
