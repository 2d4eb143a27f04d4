"""Pictures and captions of the Natural Scenes Dataset, read when they are looked at."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import DataError
from neuroenc._core.files import read_json
from neuroenc.data._nsd._design import stimulus_name
from neuroenc.data._nsd._layout import Layout
from neuroenc.data._pixels import PixelBank
from neuroenc.data._schema import Stimuli

__all__ = ["read_captions", "read_stimuli"]

_CAPTION_FILES = ("captions_train2017.json", "captions_val2017.json")
_COLUMNS = {"cocoId": "coco_id", "cocoSplit": "coco_split", "cropBox": "crop_box"}


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
    layout: Layout,
    trials: pd.DataFrame,
    info: pd.DataFrame | None,
    splits: dict[str, np.ndarray],
    captions: Any,
    licence: str,
) -> Stimuli:
    """The pictures of the given trials in the order of their ids, with every id that the data set gives them."""
    rows = np.unique(trials["nsd_id"].to_numpy())
    positions = trials.drop_duplicates("nsd_id").set_index("nsd_id")["id_10k"]
    table = pd.DataFrame(
        {"nsd_id": rows, "id_73k": rows + 1, "id_10k": positions.loc[rows].to_numpy() + 1},
        index=stimulus_name(rows),
    )
    if info is not None:
        unknown = np.setdiff1d(rows, info.index.to_numpy())
        if unknown.size:
            raise DataError(
                f"nsd_stim_info_merged.csv has no row for {unknown.size} pictures, first nsdId {unknown[0]}."
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
    return Stimuli(table.index.to_numpy(dtype=str), images, texts, table, "nsd", licence)
