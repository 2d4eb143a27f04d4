"""Files of a BIDS data set that belong together: preprocessed BOLD, events, confounds and masks of every run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import read_json
from neuroenc._core.tables import numbers, read_table
from neuroenc.data._images import open_image
from neuroenc.data._pictures import picture_endings
from neuroenc.data._volumes import LONGEST, SHORTEST, seconds
from neuroenc.data.datasets._recording import natural
from neuroenc.data.datasets._registry import like

_PREPROC = "preproc"
_BOLD = "*_bold.nii*"
#: Entities that tell versions of one recording apart, not recordings.
_VERSION = ("space", "res", "den", "desc")
#: Entities of which one label must be chosen, by their long names in BIDS too.
_CHOSEN = {"acq": "acquisition", "ce": "ceagent", "rec": "reconstruction", "echo": "echo", "part": "part"}
_CHOSEN |= {"chunk": "chunk", "mod": "modality", "res": "resolution", "den": "density"}
_STIMULUS = ("stim_file", "stimulus", "trial_type")
_MISSING = ("n/a", "N/A")


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
        optional = (*_STIMULUS, *([column] if column else []))
        table = read_table(self.events, ("onset", "duration"), optional=optional, sep="\t", what="events")
        chosen = column or next((c for c in _STIMULUS if c in table), None)
        if chosen is None or chosen not in table:
            want = chosen or f"one of {', '.join(_STIMULUS)}"
            raise DataError(
                f"{self.events} has columns {list(table.columns)} (expected onset, duration and {want}). "
                "Next step: stimulus=COLUMN."
            )
        if not len(table):
            raise DataError(f"{self.events} has column names and no events.")
        cells = table[chosen].to_numpy(dtype=str)
        empty = np.flatnonzero(cells == "")
        if len(empty):
            raise DataError(
                f"{self.events}, row {empty[0] + 1}: {chosen} is empty ({len(empty)} rows). "
                "Next step: write its name, or n/a where nothing was shown."
            )
        shown = ~np.isin(cells, _MISSING)
        onset = numbers(table, "onset", self.events)
        # What a button press lasts is often not told, and is no matter.
        texts = table.assign(duration=np.where(~shown & np.isin(table["duration"], _MISSING), "0", table["duration"]))
        duration = numbers(texts, "duration", self.events, least=0)
        names = [_id(x) if s else "" for x, s in zip(cells, shown, strict=True)]
        kind = table["trial_type"] if "trial_type" in table else pd.Series(["event"] * len(table))
        other = [f"other_{'event' if x in (*_MISSING, '') else x}" for x in kind]
        frame = pd.DataFrame({"onset": onset, "duration": duration, "stimulus": names, "other": other, "file": cells})
        twice = frame[shown].duplicated(["onset", "stimulus"])
        if twice.any():
            row = int(twice.index[twice.to_numpy()][0])
            raise DataError(f"{self.events}, row {row + 1}: {cells[row]!r} at {onset[row]:g} s stands there twice.")
        return frame.sort_values("onset", kind="stable").reset_index(drop=True)


def entities(path: Path) -> dict[str, str]:
    """Keys and labels of a BIDS file name.

    >>> entities(Path("sub-01_ses-a_task-cats_run-02_bold.nii.gz"))
    {'sub': '01', 'ses': 'a', 'task': 'cats', 'run': '02'}
    """
    return dict(x.split("-", 1) for x in path.name.split(".")[0].split("_") if "-" in x)


def _labels_alike(key: str, a: str | None, b: str | None) -> bool:
    """Equal labels; numbers of runs and echoes may be padded in one file and not in the other."""
    if a == b:
        return True
    return key in ("run", "echo") and bool(a and b and a.isdigit() and b.isdigit() and int(a) == int(b))


def _applies(path: Path, own: Mapping[str, str], but: tuple[str, ...] = ()) -> bool:
    """Whether all that a file's name says, ``but`` of some entities, is said of a recording too."""
    return all(_labels_alike(k, own.get(k), v) for k, v in entities(path).items() if k not in but)


def _bold(folder: Path, desc: str = _PREPROC) -> list[Path]:
    found = (p for p in folder.glob(f"sub-*/**/func/{_BOLD}") if re.search(r"_bold\.nii(\.gz)?$", p.name))
    return sorted((p for p in found if entities(p).get("desc") == desc), key=natural)


def find_runs(
    root: Path,
    subject: str | int,
    task: str | None,
    space: str | None,
    sessions: Any,
    derivatives: Any,
    select: Any,
    events: bool = True,
) -> list[Run]:
    """All runs of a subject and task in one space, by session and run; without ``events`` those may be absent."""
    folder = root.expanduser()
    prepared = Path(derivatives).expanduser() if derivatives else _derivatives(folder)
    label = str(subject).removeprefix("sub-")
    wanted_labels = _selection(select)
    desc = wanted_labels.pop("desc", _PREPROC)
    there = _bold(prepared, desc)
    subjects = sorted({entities(p)["sub"] for p in there if "sub" in entities(p)})
    if not subjects:
        kinds = ("dtseries.nii", "func.gii")
        surface = next((p.name for x in kinds for p in prepared.glob(f"sub-*/**/*_bold.{x}")), "")
        found = f"only grayordinates or surfaces such as {surface}, which have no voxels. " if surface else ""
        raise DataError(
            f"{prepared} has no preprocessed BOLD (sub-*/[ses-*/]func/*_desc-{desc}_bold.nii.gz): "
            f"{found}{like(prepared)} Next step: derivatives=FOLDER of fMRIPrep's output, or `neuroenc data "
            "describe`."
        )
    label = _label("subject", label, subjects)
    files = [p for p in there if entities(p).get("sub") == label]
    if sessions is not None:
        have = sorted({entities(p).get("ses", "") for p in files})
        asked = [str(s).removeprefix("ses-") for s in np.atleast_1d(np.asarray(sessions))]
        chosen = {_label(f"session of sub-{label}", s, have) for s in asked}
        files = [p for p in files if entities(p).get("ses", "") in chosen]
    files = _choose(files, "task", task, "task={!r}")
    files = _choose(files, "space", space, "space={!r}")
    for key, value in wanted_labels.items():
        files = _choose(files, key, value, "")
    for key in _CHOSEN:
        files = _choose(files, key, None, f"select={{{{{key!r}: {{!r}}}}}}")
    # Directions may take turns from run to run; two of one run are two recordings.
    recordings = {(entities(p).get("ses", ""), entities(p).get("run", "")) for p in files}
    if len(recordings) < len(files):
        files = _choose(files, "dir", None, "select={{'dir': {!r}}}")
    sessions_there = list(dict.fromkeys(entities(p).get("ses", "") for p in files))
    numbered = all(n.isdigit() for n in sessions_there)
    if numbered and len({int(n) for n in sessions_there}) < len(sessions_there):
        raise DataError(f"{prepared}: sessions {sessions_there} are the same number. Next step: sessions=LABEL.")
    count: dict[str, int] = {}
    runs = []
    for path in files:
        own = entities(path)
        ses = own.get("ses", "")
        count[ses] = count.get(ses, 0) + 1
        number = int(own["run"]) if own.get("run", "").isdigit() else count[ses]
        session = int(ses) if numbered else sessions_there.index(ses) + 1
        names = (f"sub-{label}", own.get("task", ""), own.get("space", ""))
        timed = _events(folder, prepared, own) if events else path
        beside = (timed, _confounds(path), _mask(path))
        runs.append(Run(*names, session, number, path, *beside, *_timing(folder, path)))
    if len({(r.session, r.number) for r in runs}) < len(runs):
        raise DataError(f"two files are the same session and run: {[r.bold.name for r in runs][:4]}.")
    return sorted(runs, key=lambda r: (r.session, r.number))


def _label(kind: str, wanted: str, there: list[str]) -> str:
    """A label that is there; numbers match labels with leading zeros."""
    same = [x for x in there if x == wanted] or [x for x in there if x.lstrip("0") == wanted.lstrip("0")]
    if len(same) != 1:
        raise ConfigError(unknown_name(kind, wanted, there))
    return same[0]


def _selection(select: Mapping[str, Any] | None) -> dict[str, str]:
    """Labels by the short names of entities."""
    short = {long: key for key, long in _CHOSEN.items()} | {"direction": "dir", "description": "desc"}
    legal = (*_CHOSEN, "dir", "desc")
    found = {}
    for name, value in (select or {}).items():
        key = short.get(name, name)
        one_of("entity of select:", name, legal)
        found[key] = str(value).removeprefix(f"{key}-")
    return found


def describe_bids(folder: Path) -> tuple[dict[str, str], tuple[str, ...], str] | None:
    """What a BIDS data set with fMRIPrep's output, or one of both, has and lacks, and the call that reads it."""
    prepared = _derivatives(folder)
    bold = _bold(prepared)
    events = list(folder.glob("sub-*/**/*_events.tsv")) + list(folder.glob("*_events.tsv"))
    raw = [] if bold else list(folder.glob("sub-*/**/*_bold.nii*"))
    if not bold and not (events and raw):
        return None
    have = [entities(p) for p in (bold or raw)]
    has = {
        k: ", ".join(sorted({e[x] for e in have if x in e}))
        for k, x in (("subjects", "sub"), ("sessions", "ses"), ("tasks", "task"), ("spaces", "space"))
    }
    has = {k: v for k, v in has.items() if v} | {"runs": str(len(have)), "events": str(len(events))}
    missing = [x for x, there in (("preprocessed BOLD (derivatives/fmriprep)", bold), ("events", events)) if not there]
    several = [f', {k[:-1]}="{has[k].split(", ")[0]}"' for k in ("tasks", "spaces") if ", " in has.get(k, "")]
    call = f'read_bids("{folder}", "{have[0]["sub"]}"{"".join(several)})' if bold else ""
    return has, tuple(missing), call


def _derivatives(folder: Path) -> Path:
    """fMRIPrep's own folder, its usual place, or the folder itself."""
    for place in (folder / "derivatives" / "fmriprep", *sorted(folder.glob("derivatives/fmriprep*"))):
        if place.is_dir():
            return place
    return folder


def _choose(files: list[Path], key: str, wanted: str | None, spelling: str) -> list[Path]:
    there = sorted({entities(p).get(key, "") for p in files})
    if wanted is None:
        if len(there) > 1:
            raise ConfigError(f"there are several labels of {key}: {there}. Next step: {spelling.format(there[-1])}.")
        return files
    found = [p for p in files if _labels_alike(key, entities(p).get(key, ""), wanted)]
    if not found:
        raise ConfigError(unknown_name(key, wanted, there))
    return found


def _inherited(base: Path, own: Mapping[str, str], ending: str) -> list[Path]:
    """Files that apply to a recording (BIDS' inheritance principle), those of the whole data set first."""
    keep = {k: v for k, v in own.items() if k not in _VERSION}
    parts = [f"sub-{own['sub']}"] + ([f"ses-{own['ses']}"] if "ses" in own else [])
    found: list[Path] = []
    for place in dict.fromkeys((Path(), Path(parts[0]), Path(*parts), Path(*parts, "func"))):
        there = sorted((base / place).glob(f"*_{ending}")) + sorted((base / place).glob(ending))
        found += sorted((p for p in there if _applies(p, keep)), key=lambda p: len(entities(p)))
    return found


def _timing(root: Path, path: Path) -> tuple[float, float]:
    """Seconds between volumes, and of the time within a volume to which its slices were shifted."""
    sidecar = path.with_name(re.sub(r"\.nii(\.gz)?$", ".json", path.name))
    own = _record(sidecar) if sidecar.is_file() else {}
    told: dict[str, tuple[float, Path]] = {}
    for file in [*_inherited(root, entities(path), "bold.json"), *([sidecar] if sidecar.is_file() else [])]:
        value = (own if file == sidecar else _record(file)).get("RepetitionTime")
        if value is not None:
            level = "derivative" if file == sidecar else "raw"
            told[level] = (_repetition(value, file), file)
    image = open_image(path, "BOLD")
    header = seconds(image)
    if not told and "VolumeTiming" in own:
        raise DataError(f"{sidecar} has VolumeTiming: volumes at uneven times are not modelled.")
    if not told and header is None:
        raise DataError(
            f"{path.name}: neither a sidecar nor its header tells the repetition time. "
            f"Next step: write RepetitionTime in seconds into {sidecar.name}."
        )
    tr, source = told.get("derivative") or told.get("raw") or (float(header or 0), path)
    for other, where in [*told.values(), *([(header, path)] if header is not None else [])]:
        if abs(other - tr) > 1e-3 * tr:
            warnings.warn(
                f"RepetitionTime is {tr:g} s in {source} and {other:g} s in {where}; the first is taken.", stacklevel=4
            )
    start = own.get("StartTime")
    if start is None and own.get("SliceTimingCorrected"):
        warnings.warn(
            f"{sidecar} says that slices were shifted in time and not to where (StartTime): volumes are taken at their"
            " beginning; fMRIPrep's default is the middle.",
            stacklevel=4,
        )
    if start is not None and not (isinstance(start, (int, float)) and 0 <= start <= tr):
        raise DataError(f"{sidecar}: StartTime is {start!r}; expected seconds within a volume of {tr:g} s.")
    return tr, float(start or 0.0)


def _record(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path} holds {type(found).__name__}; expected a record such as {{'RepetitionTime': 2.0}}.")
    return found


def _repetition(value: Any, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not SHORTEST <= value <= LONGEST:
        raise DataError(f"{path}: RepetitionTime is {value!r}; expected seconds, {SHORTEST} to {LONGEST}.")
    return float(value)


def _events(root: Path, prepared: Path, own: dict[str, str]) -> Path:
    """Events of the recording, or of all recordings of a task (BIDS' inheritance), nearest first."""
    found = [
        ((len(p.relative_to(base).parts), b, len(entities(p))), p)
        for b, base in enumerate((prepared, root))
        for p in _inherited(base, own, "events.tsv")
    ]
    if not found:
        name = "_".join(f"{k}-{v}" for k, v in own.items() if k not in _VERSION)
        place = root / f"sub-{own['sub']}" / (f"ses-{own['ses']}" if "ses" in own else "") / "func"
        raise DataError(f"{place} has no {name}_events.tsv, nor a task's events above it: {like(root)}")
    nearest = max(key for key, _ in found)
    best = [p for key, p in found if key == nearest]
    if len(best) > 1:
        raise DataError(f"{best[0]} and {best[1].name} are both events of one recording. Next step: keep one.")
    return best[0]


def _confounds(path: Path) -> Path | None:
    for kind in ("timeseries", "regressors"):
        there = path.parent.glob(f"*_desc-confounds_{kind}.tsv")
        found = [p for p in there if _applies(p, entities(path), but=_VERSION)]
        if found:
            return max(found, key=lambda p: len(entities(p)))
    return None


def _mask(path: Path) -> Path | None:
    stem = re.sub(r"_desc-[^_]+_bold\.nii(\.gz)?$", "_desc-brain_mask", path.name)
    # One without its echo is that of all echoes.
    stems = dict.fromkeys((stem, re.sub(r"_echo-\d+", "", stem)))
    endings = (".nii.gz", ".nii") if path.name.endswith(".gz") else (".nii", ".nii.gz")
    return next((f for s in stems for e in endings if (f := path.with_name(s + e)).is_file()), None)


def _id(name: str) -> str:
    """A picture's file is named by its path below ``stimuli`` without ending; two folders may have one name.

    >>> _id("faces/01.jpg"), _id("bids::stimuli/faces/01.jpg"), _id("cat")
    ('faces/01', 'faces/01', 'cat')
    """
    if Path(name).suffix.lower() not in picture_endings():
        return name
    path = re.sub(r"^bids:[^:]*:", "", name).replace("\\", "/")
    parts = [x for x in path.split("/") if x not in ("", ".")]
    parts = parts[1:] if len(parts) > 1 and parts[0] == "stimuli" else parts
    return "/".join(parts)[: -len(Path(name).suffix)]
