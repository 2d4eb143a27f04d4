"""The Natural Scenes Dataset by name, from the folder where the user keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neuroenc._core.errors import DataError
from neuroenc.data._fetch import data_dir, mirror_dir
from neuroenc.data._schema import EncodingData
from neuroenc.data.datasets._nsd._load import nsd
from neuroenc.data.datasets._source import Source

__all__ = ["load"]


def load(
    source: Source,
    *,
    subject: int | str = 1,
    space: str = "func1pt8mm",
    betas: str = "b3",
    voxels: Any = "nsdgeneral",
    rois: bool | str | list[str] = True,
    sessions: Any = None,
    repeats: str = "keep",
    zscore: bool = True,
    file_format: str = "auto",
    captions: Any = True,
    food: str | None = None,
    cache: bool | str = True,
    max_memory: str | int | None = None,
) -> EncodingData:
    """`neuroenc.data.nsd` of ``root``, else of the folder ``nsd`` in the data folder or the mirror.

    Parameters
    ----------
    source
        ``root`` is the folder that holds nsddata, nsddata_betas and nsddata_stimuli.
    subject, space, betas, voxels, rois, sessions, repeats, zscore, file_format, captions, food, cache, max_memory
        As for `neuroenc.data.nsd`.

    Returns
    -------
    EncodingData

    Raises
    ------
    DataError
        The folders are not on this machine; the message says how they are had.
    """
    mirror = mirror_dir(source.mirror)
    folders = [source.root] if source.root else [data_dir() / "nsd", *([mirror / "nsd"] if mirror else [])]
    root = next((Path(f).expanduser() for f in folders if (Path(f).expanduser() / "nsddata").is_dir()), None)
    if root is None:
        raise DataError(
            f"NSD is not in {' nor '.join(str(f) for f in folders)}. {source.manifest.access} Next step:"
            " root='FOLDER' that holds nsddata, nsddata_betas and nsddata_stimuli."
        )
    return nsd(
        root,
        subject,
        space=space,
        betas=betas,
        voxels=voxels,
        rois=rois,
        sessions=sessions,
        repeats=repeats,
        zscore=zscore,
        file_format=file_format,
        captions=captions,
        food=food,
        cache=cache,
        max_memory=max_memory,
        progress=source.progress,
    )
