"""Macaque V4 spike counts to natural images (Cowley et al. 2023)."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import ChecksumError, ConfigError, DataError, unknown_name
from neuroenc._core.files import check_readable_file, read_npy, sha256_file
from neuroenc._core.tables import read_table
from neuroenc.data._build import make_responses
from neuroenc.data._pictures import read_picture
from neuroenc.data._stimuli import EncodingData, Stimuli
from neuroenc.data.datasets._registry import Dataset, Source

_MAX_MEMBER, _MAX_SIDE = 10_000_000, 2048
_DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError)

#: Sessions that the manifest lists, with the nominal number of repeats of the data's readme (images differ a little).
LISTED = {"190923": 14, "190925": 14, "190927": 11, "190928": 13, "201025": 12, "210224": 9, "210322": 4, "210325": 8}
# First and last day on which each animal of the published data was recorded; a session is named by its day, YYMMDD.
_DAYS = (("WE", 190923, 190929), ("PE", 201014, 210326), ("RA", 210620, 211103))
# Folder of the averages in the mirror, and in the authors' repository.
_AVERAGES = ("responses", "responses_repeat_averaged")


class V4(Dataset):
    """One recording session as one subject, each neuron as one voxel.

    ``responses[n, v]`` = mean over repeats of the spike count of neuron ``v`` in 100 ms while image ``n`` was shown.

    Parameters
    ----------
    source
        Files of ``v4-cowley2023``: the manifest's, or a folder laid out as the authors' ``data_V4_responses``
        (``images/``, ``responses_repeat_averaged/`` or ``responses/``, ``responses_raw/``), which may hold any session.
    session
        190923, 190925, 190927, 190928 (animal WE), 201025, 210224, 210322, 210325 (animal PE), or any other session in
        the folder. The animal follows from the day (WE, PE and RA of the published data), or from a ``sessions.csv``
        beside the data with columns ``session, animal``. Neurons may recur across days of one animal: a held-out test
        leaves out the animal.

    Returns
    -------
    EncodingData
        ``responses`` float32 (stimulus, voxel), units "spike count", not z-scored; subject ``"PE-201025"``;
        ``n_repeats`` counted where there are raw repeats, else nominal where it is known. ``stimuli`` images uint8
        (n, 112, 112, 3), ids ``"201025-image0001"``. ``extra``: ``animal``, ``session``, and where there are raw
        repeats ``repeats``, the single presentations (presentation, voxel) with ``repeat`` 0-based.

    Raises
    ------
    ConfigError
        A session whose files are nowhere; the message names the nearest that are there.
    DataError
        A file is damaged, or numbers of images, neurons and responses disagree.

    References
    ----------
    Cowley, Stan, Pillow & Smith (2023). Compact deep neural network models of visual cortex. bioRxiv.
    """

    name, title = "v4-cowley2023", "Macaque V4"

    def read(self, source: Source, *, session: str | int = "201025") -> EncodingData:
        session = str(session)
        root, files = _locate(source, session)
        animal, nominal = _told(session, root)
        names, images = _read_images(root / files["images"])
        ids = [f"{session}-{name}" for name in names]
        raw = _read_array(root / files["raw"], 3, len(ids), files["images"]) if "raw" in files else None
        if "average" in files:
            values = _read_array(root / files["average"], 2, len(ids), files["images"])
        else:
            assert raw is not None
            values = np.nanmean(raw, axis=2)
        if raw is not None and raw.shape[:2] != values.shape:
            raise DataError(
                f"{root / files['raw']} has shape {raw.shape} and {files['average']} {values.shape}: other neurons or "
                "images. Next step: take both files of one session from one release."
            )
        hashes = {name: sha256_file(root / name) for name in files.values()}
        common: dict[str, Any] = {"subject": f"{animal}-{session}", "space": "electrode array", "units": "spike count"}
        common |= {"roi": ["V4"] * len(values), "source": self.name, "licence": source.manifest.licence}
        common["provenance"] = {"data": self.name, "options": {"session": session}, "sha256": hashes}
        extra: dict[str, Any] = {"animal": animal, "session": session}
        n_repeats: int | np.ndarray | None = nominal
        if raw is not None:
            extra["repeats"], n_repeats = _repeats(raw, root / files["raw"], ids, session, common)
        responses = make_responses(values.T, stimulus=ids, dim="stimulus", n_repeats=n_repeats, **common)
        table = pd.DataFrame({"file": [f"{name}.jpg" for name in names], "session": session}, index=ids)
        stimuli = Stimuli(np.array(ids), images, None, table, source.manifest.name, source.manifest.licence)
        return EncodingData(responses, stimuli, extra=extra)


def v4_sessions(sessions: Iterable[str] | None = None) -> pd.DataFrame:
    """Recording sessions of ``v4-cowley2023``: index ``session``, columns ``animal`` and ``n_repeats``.

    Parameters
    ----------
    sessions : iterable of str, optional
        Default: the eight that can be fetched.

    Returns
    -------
    DataFrame
        ``animal`` by the day in the session's name ("" where none was recorded); ``n_repeats`` the nominal number of
        the data's readme (images differ a little; 0 where it is not told).

    Examples
    --------
    >>> int(v4_sessions()["n_repeats"].max()), v4_sessions(["211022"])["animal"].tolist()
    (14, ['RA'])
    """
    names = list(LISTED) if sessions is None else list(sessions)
    rows = [(_by_day(s), LISTED.get(s, 0)) for s in names]
    return pd.DataFrame(rows, pd.Index(names, name="session"), ["animal", "n_repeats"])


def _by_day(session: str) -> str:
    """The animal that was recorded on the day that a session is named by; "" where none was."""
    day = int(session) if session.isdecimal() else 0
    return next((animal for animal, first, last in _DAYS if first <= day <= last), "")


def _told(session: str, folder: Path) -> tuple[str, int | None]:
    """Animal and nominal number of repeats, by a ``sessions.csv`` in ``folder``, else by the day and the readme."""
    path, lines = folder / "sessions.csv", []
    if path.exists():
        table = read_table(path, needed=("session", "animal"), what="table of sessions")
        lines = table[table["session"] == session].to_dict("records")
        if len(lines) > 1:
            raise DataError(f"{path} has {len(lines)} lines of session {session}. Next step: keep one.")
    row = lines[0] if lines else {}
    animal, count = str(row.get("animal") or _by_day(session)), str(row.get("n_repeats", ""))
    if not animal:
        raise DataError(
            f"session {session!r} is no day on which WE, PE or RA of v4-cowley2023 was recorded, and no sessions.csv "
            f"names it. Next step: a line '{session},ANIMAL' in {path} (columns session, animal)."
        )
    return animal, int(count) if count.isdecimal() and int(count) else LISTED.get(session)


def _locate(source: Source, session: str) -> tuple[Path, dict[str, str]]:
    """Folder of a session's files, and their names below it: ``images``, ``average``, and ``raw`` where it is there.

    Files that the manifest lists are verified, and fetched where they are missing; others are taken as they are.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", session):
        raise ConfigError(f"session={session!r} is no session of v4-cowley2023; they are named by their day, 201025.")
    listed = {f.path: f for f in source.manifest.files}
    folders = source.places()
    known = {
        "images": f"images/images_{session}.zip",
        "average": f"responses/responses_{session}.npy",
        "raw": f"responses_raw/responses_{session}.npy",
    }
    if session in LISTED and (source.root is None or (folders[0] / known["average"]).is_file()):
        files = {k: v for k, v in known.items() if v in listed}
        return source.folder(list(files.values())), files
    if source.root is not None and not any(folders[0].glob("images/images_*.zip")):
        raise DataError(
            f"{folders[0]} holds no images/images_SESSION.zip. "
            f"Next step: the folder data_V4_responses of {source.manifest.homepage}, or leave root out."
        )
    there: dict[str, Path] = {}
    for folder in reversed(folders):
        names = [re.fullmatch(r"images_(.+)\.zip", p.name) for p in folder.glob("images/images_*.zip")]
        there |= {m[1]: folder for m in names if m}
    if session not in there:
        step = f"Next step: {source.manifest.homepage}, folder data_V4_responses, has all sessions; give it as root=."
        legal = sorted({*there, *(LISTED if source.root is None else ())})
        raise ConfigError(unknown_name("session of v4-cowley2023", session, legal, step))
    folder = there[session]
    averages = [f"{part}/responses_{session}.npy" for part in _AVERAGES]
    choices = {"images": [known["images"]], "average": averages, "raw": [known["raw"]]}
    files = {k: p for k, paths in choices.items() if (p := next((x for x in paths if (folder / x).is_file()), ""))}
    if len(files) == 1:
        raise DataError(
            f"{folder} has {files['images']} and no responses of session {session}: responses_{session}.npy in one of "
            f"{', '.join(_AVERAGES)}, responses_raw."
        )
    for name, path in files.items():
        entry = listed.get(known[name])
        if entry is not None and sha256_file(folder / path) != entry.sha256:
            raise ChecksumError(f"{folder / path} is not the published file of session {session}. Copy it again.")
    return folder, files


def _read_images(path: Path) -> tuple[list[str], np.ndarray]:
    """File stems and images (n, side, side, 3) uint8, in the documented order: sorted file names of the .jpg members.

    Members may be stored in any order and below a folder, so the name alone decides.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    try:
        with zipfile.ZipFile(check_readable_file(path, "images")) as archive:
            for member in archive.infolist():
                name = PurePosixPath(member.filename).name
                # Archives made on a Mac hold a second file beside each, "._image0001.jpg".
                if not name.lower().endswith(".jpg") or name.startswith(".") or member.is_dir():
                    continue
                if name in members:
                    raise DataError(f"{path} holds two images {name}, in different folders: ids would be the same.")
                members[name] = member
            if not members:
                raise DataError(f"{path} holds no .jpg image. Next step: copy it again.")
            # Numbers by their value: image2 before image10, as image0002 before image0010.
            names = sorted(members, key=lambda n: [int(x) if k % 2 else x for k, x in enumerate(re.split(r"(\d+)", n))])
            images: np.ndarray | None = None
            for n, name in enumerate(names):
                if members[name].file_size > _MAX_MEMBER:
                    raise DataError(f"{path}: {name} has {members[name].file_size} bytes (at most {_MAX_MEMBER}).")
                image, _ = read_picture(archive.read(members[name]), f"{name} of {path}")
                width, height = image.size
                if images is None and width == height <= _MAX_SIDE:
                    images = np.empty((len(names), height, width, 3), dtype=np.uint8)
                if images is None or images.shape[1:3] != (height, width):
                    side = "square" if images is None else f"{images.shape[1]} x {images.shape[1]}, as the first"
                    raise DataError(f"{path}: {name} has {width} x {height} pixels, expected {side}.")
                images[n] = np.asarray(image)
    except _DAMAGE as error:
        raise DataError(f"{path} is damaged ({error}). Next step: copy it again.") from error
    assert images is not None
    return [PurePosixPath(name).stem for name in names], images


def _read_array(path: Path, ndim: int, n_images: int, archive: str) -> np.ndarray:
    """Averages (neuron, image) or repeats (neuron, image, repeat) as float64."""
    values = read_npy(path, "responses", memory_map=False)
    if values.dtype.kind not in "fiu":
        raise DataError(f"{path} holds {values.dtype}; expected numbers.")
    if values.ndim != ndim or values.shape[1] != n_images or values.shape[0] == 0:
        what = "(neuron, image)" if ndim == 2 else "(neuron, image, repeat)"
        raise DataError(
            f"{path} has shape {values.shape}, expected {what} for the {n_images} images of {archive}. "
            "Next step: `neuroenc data verify v4-cowley2023`, or both files of one session."
        )
    values = values.astype(np.float64)
    bad = np.isinf(values) if ndim == 3 else ~np.isfinite(values)
    if bad.any():
        first = [int(k[0]) for k in np.nonzero(bad)]
        raise DataError(f"{path}: {int(bad.sum())} values are not finite, first neuron {first[0]}, image {first[1]}.")
    return values


def _repeats(
    values: np.ndarray, path: Path, ids: list[str], session: str, common: dict[str, Any]
) -> tuple[xr.DataArray, np.ndarray]:
    """Single presentations without the NaN fillers, image by image, and the number of repeats of each image."""
    given = ~np.isnan(values)
    present = given.all(axis=0)
    if not np.array_equal(present, given.any(axis=0)) or not present.any(axis=1).all():
        raise DataError(f"{path}: shape {values.shape}; repeats are missing in some neurons, or an image has none.")
    image, repeat = np.nonzero(present)
    counts = present.sum(axis=1)
    rows = values[:, image, repeat].T
    # Fillers stand last as published; where one does not, repeats are still numbered without a gap.
    repeat = (np.cumsum(present, axis=1) - 1)[image, repeat]
    number = int(session) if session.isdecimal() else 0
    return make_responses(rows, stimulus=np.array(ids)[image], session=number, repeat=repeat, **common), counts
