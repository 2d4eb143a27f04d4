"""One format for models on disk: tensors as safetensors, everything else as sealed JSON; no pickle.

A folder of a model holds a JSON record (kind, format, settings, SHA-256 of every other file, written last) and one
safetensors file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuroenc._core.errors import DataError, NeuroencError
from neuroenc._core.files import (
    atomic_path,
    check_readable_file,
    paired_file,
    read_json,
    read_sealed_json,
    sha256_file,
    write_pair,
    write_sealed_json,
)

FORMAT = 3


class Kind(NamedTuple):
    """A kind of model folder: what it is called, its two files, and the fields that its record must have."""

    name: str
    record: str
    tensors: str
    needed: tuple[str, ...]
    others: tuple[str, ...] = ()
    """Patterns of further files of it, such as a tokenizer's."""


def write_folder(
    folder: str | os.PathLike[str],
    kind: Kind,
    record: Mapping[str, Any],
    tensors: Mapping[str, Any],
    extra: Callable[[Path], Any] | None = None,
) -> Path:
    """Write a model; a kill leaves the one that stood there, or the new one.

    Parameters
    ----------
    record : mapping
        Settings and whatever else JSON holds.
    tensors : mapping of str to array
        All numpy, or all torch.
    extra : callable, optional
        Gets a folder and writes further files there. The whole folder is then replaced, and must hold nothing else.
    """
    about = {"kind": kind.name, "format": FORMAT, **record}
    if extra is None:
        return write_pair(folder, kind.tensors, lambda file: _save(file, tensors), kind.record, about)
    with whole_folder(folder, (kind.record, kind.tensors, *kind.others)) as temporary:
        extra(temporary)
        _save(temporary / kind.tensors, tensors)
        files = {p.name: sha256_file(p) for p in sorted(temporary.iterdir()) if p.is_file()}
        write_sealed_json(temporary / kind.record, {**about, "sha256": files.pop(kind.tensors), "files": files})
    return Path(folder)


def read_folder(
    folder: str | os.PathLike[str], kind: Kind, framework: str = "pt"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Record and tensors (torch on the CPU, or ``framework="numpy"``) of a model, after every file was checked."""
    where = Path(folder) / kind.record
    if not where.is_file():
        raise DataError(f"{folder} holds no {kind.name} (no {kind.record}). Next step: the folder that save wrote.")
    raw = read_json(where)
    if not isinstance(raw, dict):
        raise DataError(f"{where} holds {type(raw).__name__}; expected a record. Next step: save or copy it again.")
    if (raw.get("format"), raw.get("kind")) != (FORMAT, kind.name):
        raise DataError(
            f"{where} has format {raw.get('format')!r} of a {raw.get('kind')}; legal is a {kind.name} of format "
            f"{FORMAT}. Next step: a newer neuroenc, or save it again."
        )
    record: dict[str, Any] = read_sealed_json(where, needed=(*kind.needed, "sha256"))
    for name, seal in (record.get("files") or {}).items():
        path = where.parent / Path(name).name
        if not path.is_file():
            raise DataError(f"{path} is missing. Next step: copy the whole folder again, or save it again.")
        if sha256_file(path) != seal:
            raise DataError(f"{path} is not the file that was saved. Next step: save or copy it again.")
    return record, _load(paired_file(where.parent, kind.tensors, record["sha256"]), framework)


def _save(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Safetensors file, readable by whoever may read the others."""
    path.touch()
    mode = path.stat().st_mode
    if all(isinstance(value, np.ndarray) for value in tensors.values()):
        from safetensors.numpy import save_file

        found: Any = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    else:
        from safetensors.torch import save_file  # type: ignore[assignment]

        # Copies: parameters that share memory are legal in a model and not in a file.
        found = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(found, path, metadata=metadata)
    path.chmod(mode)


def _load(path: Path, framework: str) -> dict[str, Any]:
    from safetensors import SafetensorError

    try:
        if framework == "numpy":
            from safetensors.numpy import load_file
        else:
            from safetensors.torch import load_file  # type: ignore[assignment]
        return dict(load_file(check_readable_file(path)))
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is no safetensors file ({error}). Next step: save or copy it again.") from error


@contextmanager
def whole_folder(folder: str | os.PathLike[str], ours: tuple[str, ...]) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``folder`` when the block has succeeded."""
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


@contextmanager
def reading(folder: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turn whatever goes wrong while a model is built from its folder into one DataError."""
    try:
        yield
    except (DataError, ModuleNotFoundError):
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        kind = "" if isinstance(error, NeuroencError) else f"{type(error).__name__}: "
        raise DataError(
            f"{os.fspath(folder)} is no whole {what}: {kind}{why}. Next step: save or copy it again."
        ) from error


def save_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write arrays (all numpy, or all torch) to a safetensors file that says which."""
    numpy = all(isinstance(value, np.ndarray) for value in tensors.values())
    _save(path, tensors, {"framework": "numpy" if numpy else "pt"})


def load_tensors(path: Path) -> dict[str, Any]:
    """What `save_tensors` wrote: numpy, or torch on the CPU."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(check_readable_file(path), framework="numpy") as handle:
            framework = (handle.metadata() or {}).get("framework", "numpy")
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is cut short or damaged ({error}). Next step: run the same again.") from error
    return _load(path, framework)
