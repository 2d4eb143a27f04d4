"""Which images go into a bank: a folder, or a manifest that says whose they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd

from neuroenc._core.errors import DataError, nearest_names
from neuroenc._core.files import read_json
from neuroenc._core.tables import read_table
from neuroenc.data import list_pictures, picture_endings

__all__ = ["COLUMNS", "UNKNOWN", "read_images"]

COLUMNS = ("id", "file", "licence", "licence_url", "source")
UNKNOWN = "unknown"

# Names that columns have elsewhere (COCO, Flickr, Open Images); the first that is filled counts.
_NAMES = {
    "id": ("id", "image_id", "ImageID", "stimulus"),
    "file": ("file", "path", "file_name", "filename", "image"),
    "licence": ("licence", "license", "License"),
    "licence_url": ("licence_url", "license_url"),
    "source": ("source", "flickr_url", "OriginalLandingURL", "coco_url", "url", "OriginalURL"),
}


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return str(value).strip()


def _entry(row: dict[str, Any], number: int, manifest: Path) -> dict[str, str]:
    out = {}
    for name, others in _NAMES.items():
        value = next((row[x] for x in others if x in row and row[x] not in (None, "", [])), "")
        if name == "licence" and isinstance(value, (list, tuple)):
            # As in COCO's own annotations and in data sets made of them: a name and its address.
            parts = [_text(x) for x in value]
            value, row = parts[0], {**row, "licence_url": parts[1] if len(parts) > 1 else ""}
        out[name] = _text(value)
    if not out["file"]:
        close = nearest_names("file", row)
        hint = f"; did you mean {close[0]!r} to be 'file'?" if close else "."
        raise DataError(
            f"entry {number} of {manifest.name} names no file (it has {', '.join(map(str, row)) or 'nothing'}){hint} "
            f"Legal names: {', '.join(_NAMES['file'])}."
        )
    out["id"] = out["id"] or out["file"]
    return out


def _from_manifest(path: Path) -> tuple[pd.DataFrame, Path]:
    if path.suffix.lower() == ".json":
        found = read_json(path)
        if isinstance(found, dict):
            lists = [v for v in found.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
            found = found["images"] if "images" in found else (lists[0] if len(lists) == 1 else found)
        if not isinstance(found, list) or not all(isinstance(x, dict) for x in found):
            raise DataError(f"{path.name} is not a list of images. Legal: [{{'id': ..., 'file': ..., ...}}, ...].")
        rows = found
    else:
        rows = read_table(path, what="manifest").to_dict("records")
    entries = [_entry(row, n, path) for n, row in enumerate(rows)]
    _check_text([cell for entry in entries for cell in entry.values()], path)
    return pd.DataFrame(entries, columns=list(COLUMNS)), path.parent


def _check_text(cells: list[str], path: Path) -> None:
    """Names that a table can hold: Linux has file names that are no text."""
    for cell in cells:
        if "\0" in cell or cell != cell.encode("utf-8", "replace").decode():
            raise DataError(f"{path}: {cell!r} is not UTF-8 text, which tables of a bank are. Next step: rename it.")


def _from_folder(path: Path) -> tuple[pd.DataFrame, Path]:
    files = list_pictures(path)
    _check_text(files, path)
    table = pd.DataFrame({"id": files, "file": files})
    return table.reindex(columns=list(COLUMNS), fill_value=""), path


def read_images(source: str | os.PathLike[str]) -> tuple[pd.DataFrame, Path]:
    """Images of a folder or a manifest, in order, and the folder that their paths start from.

    Parameters
    ----------
    source : path
        A folder (all images below it, in the order of their names; ids are relative paths), or a manifest: JSON (a
        list of objects) or CSV with ``file`` and, where known, ``id, licence, licence_url, source``, paths being
        relative to the manifest. A licence may be a pair (name, url); ``license``, ``flickr_url``, ``coco_url`` and
        the like are understood.

    Returns
    -------
    DataFrame
        Columns ``id, file, licence, licence_url, source``; licence "unknown" where none is given.
    Path

    Raises
    ------
    DataError
        No images, an entry without a file, or ids that are not unique.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"{path} does not exist. Next step: give a folder of images, or a manifest (.json, .csv).")
    if not path.is_dir() and path.suffix.lower() not in (".json", ".csv"):
        raise DataError(f"{path.name} is neither a folder nor a manifest. Legal endings: .json, .csv.")
    table, root = _from_folder(path) if path.is_dir() else _from_manifest(path)
    if len(table) == 0:
        legal = ", ".join(sorted(picture_endings()))
        raise DataError(f"{path} holds no images. Next step: check the path; these endings count: {legal}.")
    twice = table["id"][table["id"].duplicated()]
    if len(twice):
        raise DataError(f"{len(twice)} ids of {path.name} are not unique; the first is {twice.iloc[0]!r}.")
    table["licence"] = table["licence"].replace("", UNKNOWN)
    return table, root.resolve()
