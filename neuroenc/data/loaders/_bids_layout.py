"""Files of a BIDS data set that belong together: preprocessed BOLD, events, confounds and masks of every run."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._util.errors import ConfigError, DataError, unknown_name
from neuroenc._util.files import read_json
from neuroenc.data.loaders._found import Found
from neuroenc.data.loaders._sessions import like, natural

__all__ = ["Run", "entities", "find_runs", "recognise"]

_BOLD = "*_desc-preproc_bold.nii*"
#: Entities that tell versions of one recording apart, not recordings.
_VERSION = ("space", "res", "den", "desc")
_STIMULUS = ("stim_file", "stimulus", "trial_type")
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")


@dataclass(frozen=True)
class Run:
    """One recording; ``session`` and ``number`` are whole numbers, the labels' own where they are numbers."""

    subject: str
    task: str
    space: str
    session: int
    number: int
    bold: Path
    events: Path
    confounds: Path | None
    mask: Path | None
    tr: float
    start: float

    def read_events(self, column: str | None) -> pd.DataFrame:
        """Columns onset, duration (seconds), stimulus (text, "" where nothing was shown), other (a name for these)."""
        table = pd.read_csv(self.events, sep="\t", na_values=["n/a"], dtype={c: str for c in (*_STIMULUS, column) if c})
        lost = [c for c in ("onset", "duration") if c not in table]
        chosen = column or next((c for c in _STIMULUS if c in table), None)
        if lost or chosen is None or chosen not in table:
            want = chosen or f"one of {', '.join(_STIMULUS)}"
            raise DataError(f"{self.events} has columns {list(map(str, table.columns))} (expected onset, duration and"
                            f" {want}). Next step: stimulus=COLUMN.")  # fmt: skip
        if table[["onset", "duration"]].isna().any(axis=None):
            raise DataError(f"{self.events} has events without onset or duration.")
        names = [_id(x) if isinstance(x, str) else "" for x in table[chosen]]
        kind = table["trial_type"] if "trial_type" in table else pd.Series([None] * len(table))
        other = [f"other_{x if isinstance(x, str) else 'event'}" for x in kind]
        frame = table[["onset", "duration"]].assign(stimulus=names, other=other)
        return frame.sort_values("onset", kind="stable").reset_index(drop=True)


def entities(path: Path) -> dict[str, str]:
    """Keys and labels of a BIDS file name.

    >>> entities(Path("sub-01_ses-a_task-cats_run-02_bold.nii.gz"))
    {'sub': '01', 'ses': 'a', 'task': 'cats', 'run': '02'}
    """
    return dict(x.split("-", 1) for x in path.name.split(".")[0].split("_") if "-" in x)


def find_runs(
    root: str | os.PathLike[str], subject: str | int, *, task: str | None = None, space: str | None = None,
    sessions: Any = None, derivatives: str | os.PathLike[str] | None = None,
) -> list[Run]:  # fmt: skip
    """All runs of a subject and task in one space, by session and run."""
    folder = Path(root).expanduser()
    prepared = Path(derivatives).expanduser() if derivatives else _derivatives(folder)
    label = str(subject).removeprefix("sub-")
    subjects = sorted({entities(p)["sub"] for p in prepared.glob(f"sub-*/**/func/{_BOLD}")})
    if not subjects:
        raise DataError(
            f"{prepared} has no preprocessed BOLD (sub-*/[ses-*/]func/{_BOLD}): {like(prepared)} Next step:"
            " derivatives=FOLDER of fMRIPrep's output, or `neuroenc data describe`."
        )
    if label not in subjects:
        # Numbers match labels with leading zeros.
        same = [s for s in subjects if s.lstrip("0") == label.lstrip("0")]
        if not same:
            raise ConfigError(unknown_name("subject", label, subjects))
        label = same[0]
    files = sorted(prepared.glob(f"sub-{label}/**/func/{_BOLD}"), key=natural)
    wanted = None if sessions is None else [str(s).removeprefix("ses-") for s in np.atleast_1d(np.asarray(sessions))]
    if wanted is not None:
        there = sorted({entities(p).get("ses", "") for p in files})
        for s in wanted:
            if s not in there and not any(x.lstrip("0") == s.lstrip("0") for x in there):
                raise ConfigError(unknown_name(f"session of sub-{label}", s, there))
        files = [p for p in files if any(entities(p).get("ses", "").lstrip("0") == s.lstrip("0") for s in wanted)]
    files = _choose(files, "task", task)
    files = _choose(files, "space", space)
    for key in ("res", "den"):
        files = _choose(files, key, None)
    names = list(dict.fromkeys(entities(p).get("ses", "") for p in files))
    count: dict[str, int] = {}
    runs = []
    for path in files:
        own = entities(path)
        ses = own.get("ses", "")
        count[ses] = count.get(ses, 0) + 1
        number = int(own["run"]) if own.get("run", "").isdigit() else count[ses]
        session = int(ses) if all(n.isdigit() for n in names) else names.index(ses) + 1
        tr, start = _timing(path)
        runs.append(Run(f"sub-{label}", own.get("task", ""), own.get("space", ""), session, number, path,
                        _events(folder, prepared, own), _confounds(path), _mask(path), tr, start))  # fmt: skip
    if len({(r.session, r.number) for r in runs}) < len(runs):
        raise DataError(f"two files are the same session and run: {[r.bold.name for r in runs][:4]}.")
    return sorted(runs, key=lambda r: (r.session, r.number))


def recognise(folder: Path) -> Found | None:
    """A BIDS data set with fMRIPrep's output, or one of both, or None."""
    prepared = _derivatives(folder)
    bold = list(prepared.glob(f"sub-*/**/func/{_BOLD}"))
    events = list(folder.glob("sub-*/**/*_events.tsv")) + list(folder.glob("*_events.tsv"))
    raw = [] if bold else list(folder.glob("sub-*/**/*_bold.nii*"))
    if not bold and not (events and raw):
        return None
    have = [entities(p) for p in (bold or raw)]
    has = {k: ", ".join(sorted({e[x] for e in have if x in e})) for k, x in
           (("subjects", "sub"), ("sessions", "ses"), ("tasks", "task"), ("spaces", "space"))}  # fmt: skip
    has = {k: v for k, v in has.items() if v} | {"runs": str(len(have)), "events": str(len(events))}
    missing = [x for x, there in (("preprocessed BOLD (derivatives/fmriprep)", bold), ("events", events)) if not there]
    several = [f', {k[:-1]}="{has[k].split(", ")[0]}"' for k in ("tasks", "spaces") if ", " in has.get(k, "")]
    call = f'read_bids("{folder}", "{have[0]["sub"]}"{"".join(several)})' if bold else ""
    return Found("bids", "BIDS with fMRIPrep's output", folder, has, tuple(missing), call)


def _derivatives(folder: Path) -> Path:
    """fMRIPrep's own folder, its usual place, or the folder itself."""
    for place in (folder / "derivatives" / "fmriprep", *sorted(folder.glob("derivatives/fmriprep*"))):
        if place.is_dir():
            return place
    return folder


def _choose(files: list[Path], key: str, wanted: str | None) -> list[Path]:
    there = sorted({entities(p).get(key, "") for p in files})
    if wanted is None:
        if len(there) > 1:
            raise ConfigError(f"there are several labels of {key}: {there}. Next step: {key}={there[-1]!r}, or remove"
                              " the files that you do not mean.")  # fmt: skip
        return files
    if wanted not in there:
        raise ConfigError(unknown_name(key, wanted, there))
    return [p for p in files if entities(p).get(key, "") == wanted]


def _timing(path: Path) -> tuple[float, float]:
    """Seconds between volumes, and of the time within a volume to which its slices were shifted."""
    sidecar = path.with_name(re.sub(r"\.nii(\.gz)?$", ".json", path.name))
    info = read_json(sidecar) if sidecar.is_file() else {}
    tr = info.get("RepetitionTime")
    if tr is None:
        from neuroenc.data._images import open_image
        from neuroenc.data._masked import _seconds

        tr = _seconds(open_image(path, "BOLD"))
    if not tr or not 0.05 < float(tr) < 30:
        raise DataError(f"{path.name}: RepetitionTime is {tr!r} s. Next step: write it into {sidecar.name}.")
    return float(tr), float(info.get("StartTime", 0.0))


def _events(root: Path, prepared: Path, own: dict[str, str]) -> Path:
    """Events of the recording, or of all recordings of a task (BIDS' inheritance), nearest first."""
    keep = {k: v for k, v in own.items() if k not in _VERSION}
    parts = [f"sub-{own['sub']}"] + ([f"ses-{own['ses']}"] if "ses" in own else [])
    places = [Path(*parts, "func"), Path(*parts), Path(parts[0]), Path()]
    for place in places:
        for base in (root, prepared):
            found = [p for p in sorted((base / place).glob("*_events.tsv"))
                     if all(keep.get(k) == v for k, v in entities(p).items())]  # fmt: skip
            if found:
                return max(found, key=lambda p: len(entities(p)))
    name = "_".join(f"{k}-{v}" for k, v in keep.items())
    raise DataError(f"{root / places[0]} has no {name}_events.tsv, nor a task's events above it: {like(root)}")


def _confounds(path: Path) -> Path | None:
    stem = "_".join(f"{k}-{v}" for k, v in entities(path).items() if k not in _VERSION)
    files = [path.with_name(f"{stem}_desc-confounds_{x}.tsv") for x in ("timeseries", "regressors")]
    return next((f for f in files if f.is_file()), None)


def _mask(path: Path) -> Path | None:
    file = path.with_name(path.name.replace("_desc-preproc_bold", "_desc-brain_mask"))
    return file if file.is_file() else None


def _id(name: str) -> str:
    """A picture's file is named by its last part without ending."""
    return Path(name).stem if name.lower().endswith(_PICTURES) else name
