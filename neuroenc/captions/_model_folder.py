"""Folders that are written whole and read with every file checked: trained models, studies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from neuroenc._core.errors import DataError, NeuroencError
from neuroenc._core.files import atomic_path, read_sealed_json, sha256_file, write_sealed_json

__all__ = ["read_record", "reading", "whole_folder", "write_record"]


@contextmanager
def whole_folder(folder: str | os.PathLike[str], ours: tuple[str, ...]) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``folder`` when the block has succeeded.

    Raises
    ------
    DataError
        Something else than files that match ``ours`` stands there: it would be lost.
    """
    folder = Path(folder)
    if folder.is_dir():
        others = sorted(p.name for p in folder.iterdir() if p.is_dir() or not any(fnmatch(p.name, x) for x in ours))
        others = [name for name in others if not name.startswith(".")]
        if others:
            shown = ", ".join(others[:4]) + (", ..." if len(others) > 4 else "")
            raise DataError(
                f"{folder} holds other things ({shown}), which would be replaced. Next step: a folder of its own."
            )
    with atomic_path(folder, directory=True) as temporary:
        yield temporary


def write_record(folder: Path, name: str, record: dict[str, Any]) -> None:
    """Write ``name`` over all other files of the folder: ``record``, their hashes, and its own."""
    files = {p.name: sha256_file(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != name}
    write_sealed_json(folder / name, {**record, "files": files})


def read_record(folder: Path, name: str, what: str, needed: tuple[str, ...]) -> dict[str, Any]:
    """Read what `write_record` wrote, and check the files.

    Records from before there were seals are taken as they are.

    Raises
    ------
    DataError
        No such folder, or a file is missing, cut short or was changed.
    """
    if not (folder / name).is_file():
        raise DataError(f"{folder} holds no {what} (no {name}). Next step: the folder that save() wrote.")
    record: dict[str, Any] = read_sealed_json(folder / name, needed=needed, unsealed=True)
    for file, seal in record.get("files", {}).items():
        path = folder / Path(file).name
        if not path.is_file():
            raise DataError(f"{path} is missing. Next step: copy the whole folder again, or save it again.")
        if sha256_file(path) != seal:
            raise DataError(f"{path} is not the file written with {name}. Next step: copy the folder or save again.")
    return record


@contextmanager
def reading(folder: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turn whatever goes wrong while a folder is read into one DataError."""
    try:
        yield
    except (NeuroencError, ModuleNotFoundError):
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{os.fspath(folder)} is no whole {what}: {type(error).__name__}: {why}. Next step: save or copy it again."
        ) from error
