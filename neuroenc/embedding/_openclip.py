"""open_clip backbones: resolution of model names and pretrained tags, and their towers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import read_json, sha256_file
from neuroenc._core.hub import from_hub, quiet
from neuroenc.embedding._packages import prepare
from neuroenc.embedding._registry import Described, LayeredModel, Output, fitting, list_backbones, making

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
        one_of("preprocessing setting", key, PREPROCESSING)
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
        one_of(f"preprocessing {key}:", merged[key], legal)
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
    return dict(document)


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
    named = [n for n in _PREFERRED if n in found] or (list(found) if len(found) == 1 else [])
    if not named:
        raise DataError(
            f"{name!r}: {len(found)} checkpoints in {folder} ({', '.join(found) or 'none'}), expected one of "
            f"{', '.join(_PREFERRED[:2])}. Next step: name the file open_clip_model.safetensors."
        )
    return Source(name, create, config, document.get("preprocess_cfg", {}), found[named[0]], label=label)


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
    return replace(_from_folder(name, folder, f"{LOCAL_DIR}{folder}", checkpoint.parent.name), checkpoint=checkpoint)


def _twin(open_clip: Any, arch: str, quick: bool) -> str | None:
    """The architecture that differs from ``arch`` in its activation only, if open_clip has it."""
    other = f"{arch}-quickgelu" if quick else arch.removesuffix("-quickgelu")
    config = open_clip.get_model_config(other) if other != arch else None
    return other if config is not None and bool(config.get("quick_gelu", False)) == quick else None


def _check_activation(open_clip: Any, arch: str, weights: str, trained: Mapping[str, Any]) -> None:
    has, quick = (bool(cfg.get("quick_gelu", False)) for cfg in (open_clip.get_model_config(arch), trained))
    twin = _twin(open_clip, arch, quick)
    # Without a twin the pair is the only published one, and the architecture's own activation is the right one.
    if has != quick and twin is not None:
        names = ("GELU", "QuickGELU")
        raise ConfigError(
            f"weights {weights!r} were trained with {names[quick]}, and architecture {arch!r} computes "
            f"{names[has]}: the features would silently be others. Next step: use model={twin!r} with "
            f"pretrained={weights!r}."
        )


def _own_preprocessing(open_clip: Any, arch: str) -> dict[str, Any]:
    """Preprocessing for weights of unknown origin: that of the architecture's published tags, if they agree."""
    cfgs = [open_clip.get_pretrained_cfg(arch, t) for t in open_clip.list_pretrained_tags_by_model(arch)]
    kept = [{k: c[k] for k in PREPROCESSING if k in c} for c in cfgs]
    # Otherwise open_clip's default: no single one is published for this architecture.
    return kept[0] if kept and all(k == kept[0] for k in kept) else {}


def _local_file(open_clip: Any, arch: str, config: Mapping[str, Any], path: Path) -> Source:
    if path.suffix not in _ENDINGS:
        raise DataError(
            f"checkpoint {path} ends in {path.suffix!r} (legal: {', '.join(_ENDINGS)}). "
            "Next step: save the weights as safetensors."
        )
    preprocessing = _own_preprocessing(open_clip, arch)
    beside = path.parent / "open_clip_config.json"
    if beside.is_file():
        document = _read_config(beside, needed=())
        _check_activation(open_clip, arch, str(path), document.get("model_cfg", {}))
        preprocessing = document.get("preprocess_cfg", {})
    for other, tag in open_clip.list_pretrained():
        cfg = open_clip.get_pretrained_cfg(other, tag)
        if os.path.basename(cfg.get("url", "")) == path.name:
            _check_activation(open_clip, arch, str(path), cfg)
    return Source(arch, arch, config, preprocessing, path, label=path.name)


def resolve(model: str, pretrained: str | os.PathLike[str] | None, seed: int = 0) -> Source:
    """What ``model`` and ``pretrained`` stand for."""
    if model.startswith((LOCAL_DIR, HF_HUB)):
        if pretrained is not None:
            raise ConfigError(f"model {model!r} has weights. Next step: leave pretrained={str(pretrained)!r} out.")
        if model.startswith(HF_HUB):
            return _from_hub(model)
        folder = Path(model.removeprefix(LOCAL_DIR)).expanduser()
        return _from_folder(model, folder, f"{LOCAL_DIR}{folder}", folder.name)

    open_clip = _open_clip()
    arch = model.replace("/", "-")
    config = open_clip.get_model_config(arch)
    if config is None:
        legal = [*list_backbones(), *open_clip.list_models()]
        raise ConfigError(
            unknown_name("model", model, legal, f"Folders are named '{LOCAL_DIR}PATH', hub models '{HF_HUB}USER/NAME'.")
        )
    if pretrained is None:
        return Source(arch, arch, config, _own_preprocessing(open_clip, arch), label=f"random(seed={seed})")
    cfg = open_clip.get_pretrained_cfg(arch, str(pretrained))
    if cfg:
        _check_activation(open_clip, arch, str(pretrained), cfg)
        return Source(arch, arch, config, cfg, tag=str(pretrained), label=str(pretrained))
    path = Path(pretrained).expanduser()
    if path.is_file():
        return _local_file(open_clip, arch, config, path)
    other = not config.get("quick_gelu", False)
    twin = _twin(open_clip, arch, other)
    if twin is not None and open_clip.get_pretrained_cfg(twin, str(pretrained)):
        _check_activation(open_clip, arch, str(pretrained), {"quick_gelu": other})
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if os.sep in str(pretrained) or path.suffix in _ENDINGS:
        raise DataError(f"checkpoint {path} does not exist. Next step: check the path, or name a tag of {arch!r}.")
    raise ConfigError(
        unknown_name(f"weights of {arch!r}", pretrained, tags, "A path to a checkpoint is legal too; None is random.")
    )


#: Folder of the simulated world's CLIP, an ordinary open_clip folder.
WORLD_CLIP = Path(__file__).parent / "weights" / "world-clip"
# An image and a text embedder of the same model share one copy of the weights.
_loaded: WeakValueDictionary[tuple[str, str], Any] = WeakValueDictionary()


def image_transform(preprocessing: Mapping[str, Any]) -> Any:
    """open_clip's inference transform: resize, crop, to tensor, normalise."""
    prepare()
    from open_clip.transform import PreprocessCfg, image_transform_v2

    size = preprocessing["size"]
    cfg = PreprocessCfg(**{**preprocessing, "size": tuple(size) if isinstance(size, list) else size})
    return image_transform_v2(cfg, is_train=False)


class _OpenClip(Described):
    """What image and text towers share: the source, the weights' hash, the loaded model."""

    def __init__(self, model: str, pretrained: str | None = None, *, seed: int = 0, name: str | None = None) -> None:
        self.source: Source = resolve(model, pretrained, seed)
        self.seed = seed
        self.name = name or self.source.name
        self.weights = self.source.label

    @cached_property
    def _checkpoint(self) -> Path | None:
        if self.source.tag is None:
            return self.source.checkpoint
        import open_clip

        found: str = from_hub(
            lambda: open_clip.download_pretrained(open_clip.get_pretrained_cfg(self.source.create, self.source.tag)),
            f"the checkpoint {self.source.tag!r} of {self.source.create!r}",
            "connect this machine, or copy the checkpoint here and give its path as pretrained=",
        )
        return Path(found)

    def _content(self) -> dict[str, Any]:
        return {
            "config": self.source.config,
            "open_clip": metadata.version("open-clip-torch"),
            "create": None if self.source.create.startswith(LOCAL_DIR) else self.source.create,
            **self._values(self._checkpoint, self.seed),
        }

    def _image_size(self) -> int | list[int] | None:
        return None

    def _model(self, device: str) -> Any:
        size = self._image_size()
        key = (f"{self._hash}-{size}", device)
        if (model := _loaded.get(key)) is None:
            model = _loaded[key] = self._build(device, size)
        return model

    def _build(self, device: str, size: int | list[int] | None) -> Any:
        prepare()
        import open_clip
        import torch

        if self._checkpoint is None:
            self._warn_random(self.seed, stacklevel=6)
        # open_clip says that there are no weights, which are read in the next step.
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            step = "look at its open_clip_config.json, and at preprocessing size="
            with making(f"the network {self.source.name!r} cannot be built", step):
                bare = dict.fromkeys(("load_weights", "pretrained_image", "pretrained_text"), False)
                sized = {"force_image_size": tuple(size) if isinstance(size, list) else size}
                model = open_clip.create_model(self.source.create, device="cpu", **bare, **sized)
        if self._checkpoint is not None:
            with fitting(self._checkpoint, repr(self.source.create)):
                open_clip.load_checkpoint(model, str(self._checkpoint), strict=True, weights_only=True)
        return model.eval().requires_grad_(False).to(device)


class OpenClipImage(_OpenClip):
    """Image tower of an open_clip model."""

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        *,
        seed: int = 0,
        preprocessing: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(model, pretrained, seed=seed, name=name)
        self._override = dict(preprocessing or {})
        own = {**self.source.preprocessing, "size": self.source.config["vision_cfg"].get("image_size", 224)}
        self._preprocessing = check_preprocessing(own, self._override)

    def _image_size(self) -> int | list[int] | None:
        return self._preprocessing["size"] if "size" in self._override else None

    def layers(self) -> tuple[str, ...]:
        """block0.. of a transformer; stem, layer1.. of a ResNet; block0.. or stage0.. of a timm tower."""
        vision = self.source.config["vision_cfg"]
        if vision.get("timm_model_name"):
            trunk = self._model("cpu").visual.trunk
            kind = "block" if hasattr(trunk, "blocks") else "stage"
            return tuple(f"{kind}{n}" for n in range(len(trunk.feature_info)))
        depth = vision.get("layers", 12)
        if isinstance(depth, (list, tuple)):
            return ("stem", *(f"layer{n + 1}" for n in range(len(depth))))
        return tuple(f"block{n}" for n in range(depth))

    def load(self, device: str) -> OpenClipImageModel:
        """The tower on ``device``."""
        return OpenClipImageModel(self._model(device), image_transform(self._preprocessing), self.layers())


class OpenClipImageModel(LayeredModel):
    """A loaded image tower."""

    def encode(self, batch: Any, layer: str | None) -> Output:
        """Final vector (layer None) or a layer's tokens or channel map."""
        if layer is None:
            return Output(self._model.encode_image(batch))
        return self.encode_layers(batch, [layer])[layer]

    def encode_layers(self, batch: Any, layers: Sequence[str]) -> dict[str, Output]:
        """Several layers in one forward pass, which ends behind the last of them."""
        visual, order = self._model.visual, sorted(layers, key=self._number)
        numbers = [self._number(layer) for layer in order]
        options: dict[str, Any] = {"indices": numbers, "stop_early": True, "intermediates_only": True}
        transformer = hasattr(visual, "transformer") or hasattr(getattr(visual, "trunk", None), "pos_embed")
        if not transformer:
            found = visual.forward_intermediates(batch, **options)["image_intermediates"]
            return {k: Output(plane) for k, plane in zip(order, found, strict=True)}
        options.update(output_fmt="NCHW", output_extra_tokens=True)
        found = visual.forward_intermediates(batch, **options)
        planes, extra = found["image_intermediates"], found.get("image_intermediates_prefix") or [None] * len(order)
        return {k: self._tokens(plane, e) for k, plane, e in zip(order, planes, extra, strict=True)}


class OpenClipText(_OpenClip):
    """Text tower of an open_clip model."""

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The tokenizer by name and the length of the context."""
        text = self.source.config["text_cfg"]
        folder = self.source.create.removeprefix(LOCAL_DIR) if self.source.create.startswith(LOCAL_DIR) else ""
        tokenizer = Path(folder) / "tokenizer.json"
        return {
            "tokenizer": text.get("hf_tokenizer_name") or "open_clip",
            "tokenizer_file": sha256_file(tokenizer) if folder and tokenizer.is_file() else "",
            "context_length": text.get("context_length", 77),
        }

    def layers(self) -> tuple[str, ...]:
        """block0 .. of open_clip's own text transformers; none of a Hugging Face tower."""
        text = self.source.config["text_cfg"]
        return () if text.get("hf_model_name") else tuple(f"block{n}" for n in range(int(text.get("layers", 12))))

    def load(self, device: str) -> OpenClipTextModel:
        """The tower on ``device``."""
        prepare()
        import open_clip

        hub = self.source.name if self.source.name.startswith("hf-hub:") else self.source.create
        if hub.startswith(LOCAL_DIR):
            problem = f"the tokenizer in {hub.removeprefix(LOCAL_DIR)} cannot be read"
            with making(problem, "copy tokenizer.json and tokenizer_config.json again"):
                tokenizer = open_clip.get_tokenizer(hub)
        else:
            tokenizer = from_hub(
                lambda: open_clip.get_tokenizer(hub),
                f"the tokenizer of {hub!r}",
                "connect this machine once, or use a folder with model and tokenizer, 'local-dir:PATH'",
            )
        return OpenClipTextModel(self._model(device), tokenizer, device)


class OpenClipTextModel:
    """A loaded text tower with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, device: str) -> None:
        self._model, self._tokenizer, self._device = model, tokenizer, device
        self.max_tokens: int | None = getattr(tokenizer, "context_length", None)

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Tokens of each text before anything is cut, marks of start and end included."""
        inner = getattr(self._tokenizer, "tokenizer", None)
        if inner is None:  # open_clip's own
            return [len(self._tokenizer.encode(text)) + 2 for text in texts]
        clean = getattr(self._tokenizer, "clean_fn", None) or (lambda text: text)
        found = inner([clean(text) for text in texts], truncation=False, padding=False, verbose=False)
        return [len(ids) for ids in found.input_ids]

    def encode(self, texts: list[str], layer: str | None = None) -> Any:
        """Raw text vectors (b, feature); of a layer the mean over the tokens of each text."""
        tokens = self._tokenizer(texts).to(self._device)
        if layer is None:
            return self._model.encode_text(tokens)
        import torch

        seen: list[Any] = []
        blocks = getattr(self._model, "text", self._model).transformer.resblocks
        hook = blocks[int(layer.removeprefix("block"))].register_forward_hook(lambda m, i, o: seen.append(o))
        try:
            self._model.encode_text(tokens)
        finally:
            hook.remove()
        hidden = seen[0] if seen[0].shape[0] == len(tokens) else seen[0].transpose(0, 1)
        # The mark of a text's end has the highest number; what stands behind it is padding.
        last = tokens.argmax(dim=1, keepdim=True)
        mask = (torch.arange(tokens.shape[1], device=tokens.device) <= last)[:, : hidden.shape[1], None]
        return (hidden * mask).sum(1) / mask.sum(1)


def world_image(preprocessing: Mapping[str, Any] | None = None) -> OpenClipImage:
    """Image tower of the simulated world's CLIP."""
    return OpenClipImage(f"{LOCAL_DIR}{WORLD_CLIP}", preprocessing=preprocessing, name="world")


def world_text() -> OpenClipText:
    """Text tower of the simulated world's CLIP."""
    return OpenClipText(f"{LOCAL_DIR}{WORLD_CLIP}", name="world")
