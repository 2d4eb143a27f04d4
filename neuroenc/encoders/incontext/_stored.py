"""In-context models in folders, and those that come with the package."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.provenance import provenance
from neuroenc._core.weights import Kind, read_folder, write_folder
from neuroenc.encoders.incontext._config import InContextConfig
from neuroenc.encoders.incontext._model import InContextModel

_KIND = Kind("in-context model", "model.json", "model.safetensors", ("config", "sha256"))
_WEIGHTS = Path(__file__).parent / "weights"
_SHIPPED = ("world",)


def list_models() -> tuple[str, ...]:
    """Names of the in-context models that come with the package, for `load_model`.

    >>> list_models()
    ('world',)
    """
    return _SHIPPED


def save_model(model: InContextModel, path: str | os.PathLike[str], **record: Any) -> Path:
    """Save an in-context model to a folder: ``model.safetensors`` and ``model.json``.

    A kill leaves the model that stood there, or the new one.

    Parameters
    ----------
    model : InContextModel
    path : path
    **record
        What to remember with it: training data, settings.
    """
    config = model.describe()
    kinds = sorted({str(v.dtype) for v in model.state_dict().values() if v.dtype != torch.float32})
    if kinds:
        raise ConfigError(f"weights are {', '.join(kinds)}; files hold single precision. Next step: model.float().")
    tensors = model.state_dict()
    bad = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if bad:
        raise DataError(f"weights hold NaN or infinity (first: {bad[0]}): such a model predicts nothing. Not saved.")
    described = {
        "config": config,
        "features": dict(model.features),
        "record": record,
        "provenance": provenance(model="InContextModel"),
    }
    return write_folder(path, _KIND, described, tensors)


def load_model(path: str | os.PathLike[str]) -> InContextModel:
    """Load an in-context model from a folder, or a shipped one by name.

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
    if str(path) in _SHIPPED and not (folder / "model.json").is_file():
        folder = _WEIGHTS / str(path)
    if not (folder / "model.json").is_file():
        raise DataError(
            unknown_name("in-context model", path, _SHIPPED, "Next step: a name, or a folder that save_model wrote.")
        )
    record, tensors = read_folder(folder, _KIND)
    where = folder / _KIND.record
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
