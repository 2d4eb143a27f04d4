"""Macaque V4 spike counts to natural images (Cowley et al. 2023)."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from PIL import Image

from neuroenc._util.errors import ConfigError, DataError, unknown_name
from neuroenc.data._schema import EncodingData, Stimuli, make_responses
from neuroenc.data.loaders._source import Source

__all__ = ["SESSIONS", "load"]

_SIDE = 112
_MAX_MEMBER = 10_000_000


class Session(NamedTuple):
    """As published in the data's readme; ``n_repeats`` is nominal, images differ a little."""

    animal: str
    n_neurons: int
    n_images: int
    n_repeats: int


SESSIONS = {
    "190923": Session("WE", 33, 1200, 14),
    "190925": Session("WE", 36, 1200, 14),
    "190927": Session("WE", 31, 1200, 11),
    "190928": Session("WE", 24, 1200, 13),
    "201025": Session("PE", 89, 1200, 12),
    "210224": Session("PE", 67, 800, 9),
    "210322": Session("PE", 59, 1200, 4),
    "210325": Session("PE", 50, 640, 8),
}
_WITH_REPEATS = ("210325",)


def load(source: Source, *, session: str | int = "201025") -> EncodingData:
    """One recording session as one subject, each neuron as one voxel.

    ``responses[n, v]`` = mean over repeats of the spike count of neuron ``v`` in 100 ms while image ``n`` was shown.

    Parameters
    ----------
    source
        Files of ``v4-cowley2023``.
    session
        One of 190923, 190925, 190927, 190928 (animal WE), 201025, 210224, 210322, 210325 (animal PE). Neurons may
        recur across days of one animal: a held-out test leaves out the animal.

    Returns
    -------
    EncodingData
        ``responses`` float32 (stimulus, voxel), units "spike count", not z-scored; subject ``"PE-201025"``;
        ``n_repeats`` counted where raw repeats exist (210325), else nominal. ``stimuli`` images uint8
        (n, 112, 112, 3), ids ``"201025-image0001"``. ``extra``: ``animal``, ``session``, and for 210325 ``repeats``,
        the single presentations (presentation, voxel) with ``repeat`` 0-based.

    Raises
    ------
    ConfigError
        Unknown session; the message names the nearest.
    DataError
        Numbers of images, neurons and responses disagree.

    References
    ----------
    Cowley, Stan, Pillow & Smith (2023). Compact deep neural network models of visual cortex. bioRxiv.
    """
    session = str(session)
    if session not in SESSIONS:
        raise ConfigError(unknown_name("session of v4-cowley2023", session, SESSIONS))
    info = SESSIONS[session]
    archive, average = f"images/images_{session}.zip", f"responses/responses_{session}.npy"
    raw = [f"responses_raw/responses_{session}.npy"] if session in _WITH_REPEATS else []
    root = source.folder([archive, average, *raw])
    names, images = _read_images(root / archive)
    ids = [f"{session}-{name}" for name in names]
    values = np.load(root / average, allow_pickle=False)
    if values.shape != (info.n_neurons, len(ids)):
        raise DataError(
            f"{average} has shape {values.shape}, expected {info.n_neurons} neurons x {len(ids)} images "
            f"of {archive}. Next step: `neuroenc data verify v4-cowley2023`."
        )
    subject = f"{info.animal}-{session}"
    common: dict[str, Any] = {
        "subject": subject,
        "space": "electrode array",
        "units": "spike count",
        "roi": ["V4"] * info.n_neurons,
        "source": source.manifest.name,
        "licence": source.manifest.licence,
        "provenance": {
            "data": source.manifest.name,
            "options": {"session": session},
            "sha256": source.checksums([archive, average, *raw]),
        },
    }
    extra: dict[str, Any] = {"animal": info.animal, "session": session}
    n_repeats: int | np.ndarray = info.n_repeats
    if raw:
        extra["repeats"], n_repeats = _read_repeats(root / raw[0], ids, int(session), common)
    responses = make_responses(values.T, stimulus=ids, dim="stimulus", n_repeats=n_repeats, **common)
    table = pd.DataFrame({"file": [f"{name}.jpg" for name in names], "session": session}, index=ids)
    stimuli = Stimuli(np.array(ids), images, None, table, source.manifest.name, source.manifest.licence)
    return EncodingData(responses, stimuli, extra=extra)


def _read_images(path: Path) -> tuple[list[str], np.ndarray]:
    """File stems and images (n, 112, 112, 3) uint8, in the documented order: sorted file names of the .jpg members.

    Members may be stored in any order and below a folder, so the name alone decides.
    """
    with zipfile.ZipFile(path) as archive:
        members = {PurePosixPath(m.filename).name: m for m in archive.infolist()
                   if m.filename.lower().endswith(".jpg") and not m.is_dir()}  # fmt: skip
        names = sorted(members)
        images = np.empty((len(names), _SIDE, _SIDE, 3), dtype=np.uint8)
        for n, name in enumerate(names):
            if members[name].file_size > _MAX_MEMBER:
                raise DataError(f"{path.name}: {name} has {members[name].file_size} bytes (at most {_MAX_MEMBER}).")
            with Image.open(io.BytesIO(archive.read(members[name]))) as image:
                if image.size != (_SIDE, _SIDE):
                    raise DataError(f"{path.name}: {name} is {image.size} pixels, expected {(_SIDE, _SIDE)}.")
                images[n] = np.asarray(image.convert("RGB"))
    return [PurePosixPath(name).stem for name in names], images


def _read_repeats(path: Path, ids: list[str], session: int, common: dict[str, Any]) -> tuple[xr.DataArray, np.ndarray]:
    """Single presentations without the NaN fillers, image by image, and the number of repeats of each image."""
    values = np.load(path, allow_pickle=False)  # (neuron, image, repeat)
    given = ~np.isnan(values)
    present = given.all(axis=0)
    if values.shape[1] != len(ids) or not np.array_equal(present, given.any(axis=0)):
        raise DataError(f"{path.name}: shape {values.shape} for {len(ids)} images, or repeats missing in some neurons.")
    image, repeat = np.nonzero(present)
    counts = present.sum(axis=1)
    # Fillers stand last; numbering by column and by count then agree.
    rows = values[:, image, repeat].T
    responses = make_responses(
        rows, stimulus=np.array(ids)[image], session=np.full(len(rows), session), repeat=repeat, **common
    )
    return responses, counts
