"""Which open_clip architecture, weights and preprocessing a name stands for; nothing is downloaded here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import read_json
from neuroenc.embedding._download import from_hub
from neuroenc.embedding._torchvision import prepare

__all__ = ["LOCAL_DIR", "PREPROCESSING", "Source", "check_preprocessing", "resolve"]

LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"
#: Settings of the preprocessing that may be overridden; open_clip's names and defaults.
PREPROCESSING: dict[str, Any] = {
    "size": 224,
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
_ENDINGS = (".safetensors", ".pt", ".pth", ".bin")
# The order in which open_clip itself chooses among several checkpoints of a folder.
_PREFERRED = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


_CHOICES = {"interpolation": ("bicubic", "bilinear", "random"), "resize_mode": ("shortest", "longest", "squash")}
_CONFIG: dict[str, type] = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}


@dataclass(frozen=True)
class Source:
    """An open_clip model by name: what to create and where its weights lie.

    ``create`` is the name for ``open_clip.create_model``; ``checkpoint`` the file of its weights, None while it
    is not on this machine (``tag``) or where the weights are random.
    """

    name: str
    create: str
    config: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    checkpoint: Path | None = None
    tag: str | None = None
    label: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def is_random(self) -> bool:
        """Whether there are no trained weights at all."""
        return self.checkpoint is None and self.tag is None


def check_preprocessing(
    own: Mapping[str, Any], override: Mapping[str, Any] | None, also: tuple[str, ...] = ()
) -> dict[str, Any]:
    """``own`` with ``override`` on top; an unknown setting is an error that names the nearest.

    ``also`` are interpolations that a network knows besides open_clip's.

    >>> check_preprocessing({"size": 224}, {"size": 112})["size"]
    112
    """
    merged = {**PREPROCESSING, **{k: v for k, v in own.items() if k in PREPROCESSING and v is not None}}
    for key, value in (override or {}).items():
        if key not in PREPROCESSING:
            raise ConfigError(unknown_name("preprocessing setting", key, PREPROCESSING))
        merged[key] = value
    try:
        for key in ("mean", "std"):
            merged[key] = [float(x) for x in merged[key]]
        size = merged["size"]
        merged["size"] = [int(x) for x in size] if isinstance(size, (list, tuple)) else int(size)
        sides = merged["size"] if isinstance(merged["size"], list) else [merged["size"]]
        if any(len(merged[k]) != 3 for k in ("mean", "std")) or min(merged["std"]) <= 0 or min(sides) < 1:
            raise ValueError("mean and std have three numbers, std above 0, and size is at least 1")
        if isinstance(merged["size"], list) and len(merged["size"]) != 2:
            raise ValueError("size is one number, or two (y, x)")
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"preprocessing mean={merged['mean']}, std={merged['std']}, size={merged['size']} is not legal: {error}."
        ) from error
    for key, names in _CHOICES.items():
        legal = (*names, *also) if key == "interpolation" else names
        if merged[key] not in legal:
            raise ConfigError(unknown_name(f"preprocessing {key}:", merged[key], legal))
    return merged


def _open_clip() -> Any:
    from neuroenc._core.optional import require

    prepare()
    return require("open_clip", "clip")


def _read_config(path: Path, needed: tuple[str, ...] = tuple(_CONFIG)) -> dict[str, Any]:
    """An open_clip_config.json, as far as it is used here."""
    try:
        document = read_json(path)
        config = document["model_cfg"] if needed else document.get("model_cfg", {})
        wrong = [k for k in needed if not isinstance(config[k], _CONFIG[k])]
        preprocessing = document.setdefault("preprocess_cfg", {})
        if wrong or not isinstance(preprocessing, dict):
            raise TypeError(f"{wrong[0] if wrong else 'preprocess_cfg'} is of the wrong kind")
        check_preprocessing(preprocessing, None)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not an open_clip configuration ({type(error).__name__}: {str(error)[:200]}). It needs "
            "'model_cfg' with embed_dim, vision_cfg and text_cfg. Next step: copy it again."
        ) from error
    found: dict[str, Any] = document
    return found


def _from_folder(name: str, folder: Path, create: str, label: str) -> Source:
    config_path = folder / "open_clip_config.json"
    if not config_path.is_file():
        there = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
        raise DataError(
            f"{name!r}: {config_path} is missing (found: {there}). An open_clip folder holds "
            "open_clip_config.json and open_clip_model.safetensors. Next step: check the path."
        )
    document = _read_config(config_path)
    config = document["model_cfg"]
    found = {p.name: p for p in sorted(folder.iterdir()) if p.suffix in _ENDINGS}
    chosen = next((found[n] for n in _PREFERRED if n in found), None)
    if chosen is None and len(found) == 1:
        chosen = next(iter(found.values()))
    if chosen is None:
        raise DataError(
            f"{name!r}: {len(found)} checkpoints in {folder} ({', '.join(found) or 'none'}), expected one of "
            f"{', '.join(_PREFERRED[:2])}. Next step: name the file open_clip_model.safetensors."
        )
    return Source(name, create, config, document.get("preprocess_cfg", {}), chosen, label=label)


def _from_hub(name: str) -> Source:
    _open_clip()
    from open_clip.pretrained import download_pretrained_from_hf

    repository = name.removeprefix(HF_HUB)
    config, checkpoint = from_hub(
        lambda: (
            Path(download_pretrained_from_hf(repository, filename="open_clip_config.json")),
            Path(download_pretrained_from_hf(repository)),
        ),
        f"the model {name!r}",
        f"check its name, connect this machine, or copy its files into a folder and use '{LOCAL_DIR}PATH'",
    )
    folder = config.parent
    source = _from_folder(name, folder, f"{LOCAL_DIR}{folder}", checkpoint.parent.name)
    return Source(name, source.create, source.config, source.preprocessing, checkpoint, label=source.label)


def _twin(open_clip: Any, arch: str, quick: bool) -> str | None:
    """The architecture that differs from ``arch`` in its activation only, if open_clip has it."""
    other = f"{arch}-quickgelu" if quick else arch.removesuffix("-quickgelu")
    config = open_clip.get_model_config(other) if other != arch else None
    return other if config is not None and bool(config.get("quick_gelu", False)) == quick else None


def _check_activation(open_clip: Any, arch: str, weights: str, quick: bool) -> None:
    has = bool(open_clip.get_model_config(arch).get("quick_gelu", False))
    twin = _twin(open_clip, arch, quick)
    # Without a twin the pair is the only published one, and the architecture's own activation is the right one.
    if has != quick and twin is not None:
        names = ("GELU", "QuickGELU")
        raise ConfigError(
            f"weights {weights!r} were trained with {names[quick]}, and architecture {arch!r} computes "
            f"{names[has]}: the features would silently be others. Next step: use model={twin!r} with "
            f"pretrained={weights!r}."
        )


def _own_preprocessing(open_clip: Any, arch: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Preprocessing for weights of unknown origin: that of the architecture's published tags, if they agree."""
    cfgs = [open_clip.get_pretrained_cfg(arch, t) for t in open_clip.list_pretrained_tags_by_model(arch)]
    kept = [{k: c[k] for k in PREPROCESSING if k in c} for c in cfgs]
    if kept and all(k == kept[0] for k in kept):
        return kept[0], ("preprocessing of the architecture's published weights",)
    return {}, ("open_clip's default preprocessing (no single one is published for this architecture)",)


def _local_file(open_clip: Any, arch: str, config: Mapping[str, Any], path: Path) -> Source:
    if path.suffix not in _ENDINGS:
        raise DataError(
            f"checkpoint {path} ends in {path.suffix!r} (legal: {', '.join(_ENDINGS)}). "
            "Next step: save the weights as safetensors."
        )
    preprocessing, notes = _own_preprocessing(open_clip, arch)
    beside = path.parent / "open_clip_config.json"
    if beside.is_file():
        document = _read_config(beside, needed=())
        quick = bool(document.get("model_cfg", {}).get("quick_gelu", False))
        _check_activation(open_clip, arch, str(path), quick)
        preprocessing, notes = document.get("preprocess_cfg", {}), (f"preprocessing of {beside.name}",)
    for other, tag in open_clip.list_pretrained():
        cfg = open_clip.get_pretrained_cfg(other, tag)
        if os.path.basename(cfg.get("url", "")) == path.name:
            _check_activation(open_clip, arch, str(path), bool(cfg.get("quick_gelu", False)))
    return Source(arch, arch, config, preprocessing, path, label=path.name, notes=notes)


def resolve(model: str, pretrained: str | os.PathLike[str] | None, seed: int = 0) -> Source:
    """What ``model`` and ``pretrained`` stand for.

    Raises
    ------
    ConfigError
        Unknown architecture or tag (with the nearest names), weights for a model that brings its own, or
        weights of another activation than the architecture's.
    DataError
        A folder or file is missing or is no open_clip checkpoint.
    """
    if model.startswith((LOCAL_DIR, HF_HUB)):
        if pretrained is not None:
            raise ConfigError(
                f"model {model!r} brings its own weights, and pretrained={str(pretrained)!r} was given. "
                "Next step: leave pretrained out."
            )
        if model.startswith(HF_HUB):
            return _from_hub(model)
        folder = Path(model.removeprefix(LOCAL_DIR)).expanduser()
        return _from_folder(model, folder, f"{LOCAL_DIR}{folder}", folder.name)

    open_clip = _open_clip()
    arch = model.replace("/", "-")
    config = open_clip.get_model_config(arch)
    if config is None:
        from neuroenc.embedding._registry import list_backbones

        legal = [*list_backbones(), *open_clip.list_models()]
        raise ConfigError(
            unknown_name("model", model, legal, f"Folders are named '{LOCAL_DIR}PATH', hub models '{HF_HUB}USER/NAME'.")
        )
    if pretrained is None:
        preprocessing, notes = _own_preprocessing(open_clip, arch)
        return Source(arch, arch, config, preprocessing, label=f"random(seed={seed})", notes=notes)
    cfg = open_clip.get_pretrained_cfg(arch, str(pretrained))
    if cfg:
        _check_activation(open_clip, arch, str(pretrained), bool(cfg.get("quick_gelu", False)))
        return Source(arch, arch, config, cfg, tag=str(pretrained), label=str(pretrained))
    path = Path(pretrained).expanduser()
    if path.is_file():
        return _local_file(open_clip, arch, config, path)
    twin = _twin(open_clip, arch, not bool(config.get("quick_gelu", False)))
    if twin is not None and open_clip.get_pretrained_cfg(twin, str(pretrained)):
        _check_activation(open_clip, arch, str(pretrained), not bool(config.get("quick_gelu", False)))
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if os.sep in str(pretrained) or path.suffix in _ENDINGS:
        raise DataError(f"checkpoint {path} does not exist. Next step: check the path, or name a tag of {arch!r}.")
    raise ConfigError(
        unknown_name(f"weights of {arch!r}", pretrained, tags, "A path to a checkpoint is legal too; None is random.")
    )
