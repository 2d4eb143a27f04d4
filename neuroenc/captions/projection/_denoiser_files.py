"""Denoisers as files: safetensors and JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import sha256_file
from neuroenc._core.provenance import provenance
from neuroenc.captions._model_folder import read_record, reading, whole_folder, write_record

if TYPE_CHECKING:
    from neuroenc.captions.projection._denoiser import ConceptDenoiser

__all__ = ["SHIPPED", "load", "save"]

_FORMAT = 1
_FILES = ("*.json", "*.safetensors", "README.md")
_WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = ("world",)
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def save(denoiser: ConceptDenoiser, folder: str | os.PathLike[str], *, dtype: str = "float32", **record: Any) -> Path:
    """Write ``denoiser.safetensors`` and, last, ``denoiser.json``.

    Parameters
    ----------
    denoiser : ConceptDenoiser
        Fitted. The empirical kind is its images, which are written.
    folder : path
    dtype : {"float32", "float16"}
        Of the file.
    **record
        What to remember with it, such as the images it was fitted to.

    Returns
    -------
    Path
    """
    from safetensors.torch import save_file

    if dtype not in _DTYPES:
        raise ConfigError(unknown_name("dtype", dtype, _DTYPES))
    if not denoiser.n_images_:
        raise ConfigError("this denoiser was not fitted; there is nothing to save. Next step: fit(bank).")
    folder = Path(folder)
    # The normaliser stays exact: it is small, and every sample passes through it.
    tensors: dict[str, Tensor] = {"centre": denoiser._centre, "scale": denoiser._scale}
    if denoiser._exact is not None:
        tensors["images"] = denoiser._exact.values[:, denoiser.n_features :].to(_DTYPES[dtype])
    if denoiser._net is not None:
        tensors |= {f"net.{k}": v.to(_DTYPES[dtype]) for k, v in denoiser._net.state_dict().items()}
    training = {k: v for k, v in denoiser.training_.items() if k != "losses"}
    settings = {k: getattr(denoiser, k) for k in ("kind", "scaling", "width", "depth", "temperatures", "seed")}
    with whole_folder(folder, _FILES) as temporary:
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, temporary / "denoiser.safetensors"
        )
        write_record(
            temporary,
            "denoiser.json",
            {
                "format": _FORMAT,
                "settings": settings,
                "n_features": denoiser.n_features,
                "n_images": denoiser.n_images_,
                "training": training,
                "record": record,
                "provenance": provenance(model="ConceptDenoiser"),
            },
        )
    return folder


def load(folder: str | os.PathLike[str], device: str = "auto") -> ConceptDenoiser:
    """Read a denoiser.

    Parameters
    ----------
    folder : path or str
        That :func:`save` wrote, or the name of a shipped one ("world").
    device : str

    Raises
    ------
    DataError
        There is none, a newer format wrote it, or its file was changed.
    """
    path = Path(folder)
    if not path.exists() and str(folder) in SHIPPED:
        path = _WEIGHTS / str(folder)
    if not (path / "denoiser.json").is_file():
        raise DataError(unknown_name("denoiser", folder, SHIPPED, "Next step: a name, or a folder that save() wrote."))
    needed = ("format", "settings", "n_features", "n_images", "training")
    record = read_record(path, "denoiser.json", "denoiser", needed)
    if record["format"] != _FORMAT:
        raise DataError(f"{path} has format {record['format']!r}; this version reads {_FORMAT}.")
    with reading(path, "denoiser"):
        return _build(path, record, device)


def _build(path: Path, record: dict[str, Any], device: str) -> ConceptDenoiser:
    from safetensors.torch import load_file

    from neuroenc.captions.projection._denoiser import ConceptDenoiser

    if "sha256" in record and sha256_file(path / "denoiser.safetensors") != record["sha256"]:
        raise DataError(f"{path / 'denoiser.safetensors'} is not the file that was saved. Next step: copy it again.")
    settings = {**record["settings"], "temperatures": tuple(record["settings"]["temperatures"])}
    out = ConceptDenoiser(device=device, **settings)
    tensors = load_file(path / "denoiser.safetensors")
    out._centre, out._scale = (tensors.pop(k).float().to(out.device) for k in ("centre", "scale"))
    out.n_images_, out.training_ = int(record["n_images"]), {"losses": [], **record["training"]}
    if out.kind == "empirical":
        out._set_images(tensors["images"].float().numpy())
        return out
    out._net = out._start(int(record["n_features"]))
    out._net.load_state_dict({k.removeprefix("net."): v.float() for k, v in tensors.items()})
    out._net.eval()
    return out
