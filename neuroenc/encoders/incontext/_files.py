"""In-context models on disk: safetensors and JSON, no pickle."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import paired_file, read_json, read_sealed_json, write_pair
from neuroenc._core.provenance import provenance
from neuroenc.encoders.incontext._model import InContextConfig, InContextModel

__all__ = ["SHIPPED", "load_model", "save_model"]

# 2: with a seal over the record, and the plug points of the attention in the config. 1, without, is still read.
_FORMAT = 2
_WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = ("world",)


def save_model(model: InContextModel, path: str | os.PathLike[str], **record: Any) -> Path:
    """Write a model to the folder ``path``: ``model.safetensors`` and ``model.json``.

    A kill leaves the model that stood there, or the new one.

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
    config = model.describe()
    kinds = sorted({str(v.dtype) for v in model.state_dict().values() if v.dtype != torch.float32})
    if kinds:
        raise ConfigError(f"weights are {', '.join(kinds)}; files hold single precision. Next step: model.float().")
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    bad = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if bad:
        raise DataError(f"weights hold NaN or infinity (first: {bad[0]}): such a model predicts nothing. Not saved.")
    described = {
        "format": _FORMAT,
        "config": config,
        "features": dict(model.features),
        "record": record,
        "provenance": provenance(model="InContextModel"),
    }
    return write_pair(path, "model.safetensors", lambda file: save_file(tensors, file), "model.json", described)


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
    folder = Path(path)
    if str(path) in SHIPPED and not (folder / "model.json").is_file():
        folder = _WEIGHTS / str(path)
    if not (folder / "model.json").is_file():
        raise DataError(
            unknown_name("in-context model", path, SHIPPED, "Next step: a name, or a folder that save_model wrote.")
        )
    where = folder / "model.json"
    raw = read_json(where)
    written = raw.get("format") if isinstance(raw, dict) else None
    if written not in (1, _FORMAT, None):
        raise DataError(f"{where} has format {written!r}; this version reads 1 and {_FORMAT}.")
    record = read_sealed_json(where, needed=("format", "config", "sha256"), unsealed=written == 1)
    if not isinstance(record["config"], dict):
        raise DataError(f"{where}: config is {record['config']!r}; expected settings. Next step: copy it again.")
    legal = {f.name for f in fields(InContextConfig)}
    strange = set(record["config"]) - legal
    if strange:
        raise DataError(f"{where} has settings that this version does not know: {sorted(strange)}.")
    try:
        config = InContextConfig(**record["config"])
    except (ConfigError, TypeError) as error:
        raise DataError(f"{where}: {error} Next step: copy it again.") from error
    tensors = _tensors(paired_file(folder, "model.safetensors", str(record["sha256"])))
    # Its random weights are overwritten: the caller's random numbers stay what they are.
    with torch.random.fork_rng(devices=[]):
        model = InContextModel(config)
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in tensors.items()}
    odd = sorted(k for k in {*wanted, *found} if wanted.get(k) != found.get(k))
    if odd:
        raise DataError(
            f"{folder / 'model.safetensors'} does not hold the model of {where.name}: {odd[0]} has shape "
            f"{found.get(odd[0])}, expected {wanted.get(odd[0])} ({len(odd)} differ). Next step: copy both files again."
        )
    model.load_state_dict({k: v.float() for k, v in tensors.items()})
    model.features = {str(k): v for k, v in dict(record.get("features") or {}).items()}
    return model.eval()


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is no safetensors file ({error}). Next step: copy it again.") from error
