"""Arrays and a record in one safetensors file that vouches for its own content."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neuroenc._core.arrays import as_numpy
from neuroenc._core.errors import DataError
from neuroenc._core.files import _finite, _plain, atomic_path, check_readable_file, hash_array, hash_json

__all__ = ["read_tensors", "write_tensors"]


def _seal(tensors: Mapping[str, Any], text: str) -> str:
    return hash_json([text, *([name, hash_array(as_numpy(tensors[name]))] for name in sorted(tensors))])


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Any], record: dict[str, Any]) -> Path:
    """Write arrays (numpy, or all of torch) and a JSON record atomically, with the hash of both."""
    text = json.dumps(_finite(record), default=_plain, allow_nan=False)
    if all(isinstance(value, np.ndarray) for value in tensors.values()):
        from safetensors.numpy import save_file

        found: Any = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    else:
        from safetensors.torch import save_file  # type: ignore[assignment]

        # Copies: parameters that share memory are legal in a model and not in a file.
        found = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(found, temporary, metadata={"record": text, "seal": _seal(found, text)})
        _order_metadata(temporary)
    return Path(path)


def _order_metadata(path: Path) -> None:
    """Names of the metadata in order: safetensors writes them in any, and one content shall be one file."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def read_tensors(path: str | os.PathLike[str], framework: str = "numpy") -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays (numpy, or torch on the CPU with ``framework="pt"``) and record of `write_tensors`.

    Raises
    ------
    DataError
        The file is missing, cut short, damaged, changed, or was not written by `write_tensors`.
    """
    from safetensors import SafetensorError, safe_open

    path = check_readable_file(path)
    try:
        with safe_open(path, framework=framework) as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"{path} is cut short or damaged ({error}). Next step: delete it and run the same again."
        ) from error
    text = metadata.get("record", "")
    if not text or metadata.get("seal") != _seal(tensors, text):
        raise DataError(
            f"{path} was written by another version or changed since. Next step: delete it and run the same again."
        )
    return tensors, json.loads(text)
