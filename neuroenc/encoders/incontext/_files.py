"""In-context models on disk: safetensors and JSON, no pickle."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from neuroenc._util.errors import DataError, unknown_name
from neuroenc._util.files import atomic_path, read_json, sha256_file, write_json
from neuroenc._util.provenance import provenance
from neuroenc.encoders.incontext._model import InContextConfig, InContextModel

__all__ = ["SHIPPED", "load_model", "save_model"]

_FORMAT = 1
_WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = ("world",)


def save_model(model: InContextModel, path: str | os.PathLike[str], **record: Any) -> Path:
    """Write a model to the folder ``path``: ``model.safetensors`` and ``model.json``, the latter last.

    Parameters
    ----------
    model : InContextModel
    path : path
    **record
        What to remember with it: training data, settings.

    Returns
    -------
    Path
    """
    from safetensors.torch import save_file

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    with atomic_path(path / "model.safetensors") as temporary:
        save_file(tensors, temporary)
    write_json(
        path / "model.json",
        {
            "format": _FORMAT,
            "config": model.describe(),
            "record": record,
            "provenance": provenance(model="InContextModel"),
            "sha256": sha256_file(path / "model.safetensors"),
        },
    )
    return path


def load_model(path: str | os.PathLike[str]) -> InContextModel:
    """Read a model.

    Parameters
    ----------
    path : path or str
        A folder that `save_model` wrote, or the name of a shipped model ("world").

    Returns
    -------
    InContextModel
        On the CPU, in evaluation mode.

    Raises
    ------
    DataError
        There is no such model, a newer format wrote it, or its file was changed.

    Examples
    --------
    >>> import tempfile
    >>> from neuroenc.encoders.incontext import load_model, make_model, save_model
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = load_model(save_model(make_model("small", n_features=8, depth=1), folder))
    >>> model.config.n_features
    8
    """
    from safetensors.torch import load_file

    folder = Path(path)
    if not folder.exists() and str(path) in SHIPPED:
        folder = _WEIGHTS / str(path)
    if not (folder / "model.json").is_file():
        raise DataError(
            unknown_name("in-context model", path, SHIPPED, "Next step: a name, or a folder that save_model wrote.")
        )
    record = read_json(folder / "model.json")
    if record.get("format") != _FORMAT:
        raise DataError(f"{folder} has format {record.get('format')!r}; this version reads {_FORMAT}.")
    if sha256_file(folder / "model.safetensors") != record["sha256"]:
        raise DataError(f"{folder / 'model.safetensors'} is not the file that was saved. Next step: copy it again.")
    legal = {f.name for f in fields(InContextConfig)}
    strange = set(record["config"]) - legal
    if strange:
        raise DataError(f"{folder} has settings that this version does not know: {sorted(strange)}.")
    model = InContextModel(InContextConfig(**record["config"]))
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    return model.eval()
