"""Fitted encoders on disk: safetensors for arrays, JSON for settings and labels; no pickle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from neuroenc._util.errors import ConfigError, DataError, unknown_name
from neuroenc._util.files import read_json, sha256_file, write_json
from neuroenc.encoders._base import LinearEncoder, _plain_params, save_arrays

__all__ = ["load_encoder", "save_encoder"]

_FORMAT = 1


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
    checksum of the arrays go to ``encoder.json``, written last, so that a half-written folder does not load.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    arrays, plain = encoder._pack()
    labels: dict[str, list[str]] = {}
    for name, (_, values) in (encoder._voxels_ or {}).items():
        if values.dtype.kind in "fiub":
            arrays[f"voxel:{name}"] = values
        else:
            labels[name] = values.astype(str).tolist()
    save_arrays(path / "arrays.safetensors", arrays)
    write_json(
        path / "encoder.json",
        {
            "format": _FORMAT,
            "class": type(encoder).__name__,
            "params": _plain_params(encoder),
            "fitted": plain,
            "voxel_labels": labels,
            "labelled": encoder._voxels_ is not None,
            "sha256": sha256_file(path / "arrays.safetensors"),
        },
    )
    return path


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
    from safetensors.numpy import load_file

    path = Path(path)
    if not (path / "encoder.json").is_file():
        raise DataError(f"{path} holds no encoder.json. Next step: pass the folder that encoder.save wrote.")
    record = read_json(path / "encoder.json")
    if record.get("format") != _FORMAT:
        raise DataError(f"{path} has format {record.get('format')!r}; this version reads {_FORMAT}.")
    classes = _classes(record["class"])
    if record["class"] not in classes:
        raise DataError(unknown_name("encoder", record["class"], classes))
    if sha256_file(path / "arrays.safetensors") != record["sha256"]:
        raise DataError(
            f"{path / 'arrays.safetensors'} is not the file that was saved. Next step: save or copy it again."
        )
    encoder = classes[record["class"]]()
    legal = encoder.get_params()
    # Settings that JSON cannot hold (a splitter object) come back as their text, for the record.
    encoder.set_params(**{k: v for k, v in record["params"].items() if k in legal})
    for name in settings:
        if name not in legal:
            raise ConfigError(unknown_name(f"setting of {record['class']}", name, legal))
    encoder.set_params(**settings)
    arrays = load_file(path / "arrays.safetensors")
    voxels = {k.removeprefix("voxel:"): ("voxel", v) for k, v in arrays.items() if k.startswith("voxel:")}
    voxels.update({k: ("voxel", np.array(v, dtype=str)) for k, v in record["voxel_labels"].items()})
    encoder._voxels_ = voxels if record["labelled"] else None
    encoder._unpack({k: v for k, v in arrays.items() if not k.startswith("voxel:")}, record["fitted"])
    return encoder
