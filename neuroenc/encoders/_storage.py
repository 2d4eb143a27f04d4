"""Fitted encoders on disk: safetensors for arrays, JSON for settings and labels; no pickle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from neuroenc._core.errors import ConfigError, DataError, NeuroencError, unknown_name
from neuroenc._core.files import paired_file, read_sealed_json, write_pair
from neuroenc.encoders._base import LinearEncoder, _plain_params, from_plain, save_arrays

__all__ = ["load_encoder", "save_encoder"]

_FORMAT = 2
_FIELDS = ("class", "params", "fitted", "voxel_labels", "labelled", "sha256")


def _classes(name: str) -> dict[str, type[LinearEncoder]]:
    from neuroenc.encoders import BandedRidgeEncoder, RidgeEncoder

    found: dict[str, type[LinearEncoder]] = {c.__name__: c for c in (RidgeEncoder, BandedRidgeEncoder)}
    if name == "ReadoutEncoder":  # the only one that needs torch
        from neuroenc.encoders import ReadoutEncoder

        found[name] = ReadoutEncoder
    if name in ("ChunkAveraged", "InContextEncoder"):
        from neuroenc.encoders.incontext import ChunkAveraged, InContextEncoder

        found |= {"ChunkAveraged": ChunkAveraged, "InContextEncoder": InContextEncoder}
    if name in ("EmpiricalBayesRidge", "PaperRidge"):
        from neuroenc.encoders.incontext import EmpiricalBayesRidge, PaperRidge

        found |= {"EmpiricalBayesRidge": EmpiricalBayesRidge, "PaperRidge": PaperRidge}
    return found


def save_encoder(encoder: LinearEncoder, path: str | os.PathLike[str]) -> Path:
    """Write a fitted encoder to the folder ``path``.

    Every fitted array goes to ``arrays.safetensors``; settings, voxel labels that are text, versions and the
    checksum of the arrays go to ``encoder.json``, which holds its own checksum too. A kill leaves the encoder
    that stood there, or the new one.
    """
    path = Path(path)
    check_is_fitted(encoder)
    arrays, plain = encoder._pack()
    labels: dict[str, list[str]] = {}
    for name, (_, values) in (encoder._voxels_ or {}).items():
        if values.dtype.kind in "fiub":
            arrays[f"voxel:{name}"] = values
        else:
            labels[name] = values.astype(str).tolist()
    record = {
        "format": _FORMAT,
        "class": type(encoder).__name__,
        "params": _plain_params(encoder),
        "fitted": plain,
        "voxel_labels": labels,
        "labelled": encoder._voxels_ is not None,
    }
    return write_pair(path, "arrays.safetensors", lambda file: save_arrays(file, arrays), "encoder.json", record)


def load_encoder(path: str | os.PathLike[str], **settings: Any) -> LinearEncoder:
    """Read an encoder written by `save_encoder`.

    Parameters
    ----------
    path : path
        The folder.
    **settings
        Arguments of the encoder to use instead of those that were saved, such as ``device``.

    Raises
    ------
    DataError
        If the folder is not an encoder, was written by a newer format, or its arrays were changed.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(path)
    if not (path / "encoder.json").is_file():
        raise DataError(f"{path} holds no encoder.json. Next step: pass the folder that encoder.save wrote.")
    record = read_sealed_json(path / "encoder.json", needed=("format",), unsealed=True)
    if record["format"] not in (1, _FORMAT):
        raise DataError(f"{path} has format {record['format']!r}; this version reads {_FORMAT}.")
    # Encoders of format 1 have no seal.
    record = read_sealed_json(path / "encoder.json", needed=_FIELDS, unsealed=record["format"] == 1)
    classes = _classes(record["class"])
    if record["class"] not in classes:
        raise DataError(unknown_name("encoder", record["class"], classes))
    stored = paired_file(path, "arrays.safetensors", str(record["sha256"]))
    encoder = classes[record["class"]]()
    legal = encoder.get_params()
    for name in record["params"]:
        if name not in legal:
            raise DataError(
                f"{path} was saved with a setting that this version of {record['class']} does not have: "
                f"{unknown_name('setting', name, legal)}"
            )
    for name in settings:
        if name not in legal:
            raise ConfigError(unknown_name(f"setting of {record['class']}", name, legal))
    try:
        encoder.set_params(**{**{k: from_plain(v) for k, v in record["params"].items()}, **settings})
        arrays = load_file(stored)
        voxels = {k.removeprefix("voxel:"): ("voxel", v) for k, v in arrays.items() if k.startswith("voxel:")}
        voxels.update({k: ("voxel", np.array(v, dtype=str)) for k, v in record["voxel_labels"].items()})
        encoder._voxels_ = voxels if record["labelled"] else None
        encoder._unpack({k: v for k, v in arrays.items() if not k.startswith("voxel:")}, record["fitted"])
    except NeuroencError:
        raise
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read as a {record['class']}: {error}. Next step: save it again.") from error
    return encoder
