"""timm's image networks as backbones: ``timm:resnet50.a1_in1k``, ``timm:vit_small_patch14_reg4_dinov2``.

Layers bear timm's own names (the modules of its ``feature_info``): "act1", "layer1" .. "layer4" of a ResNet,
"blocks.0" .. of a transformer, "stages.0" .. of a ConvNeXt.

References
----------
Wightman (2019), PyTorch Image Models, https://github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.hub import from_hub
from neuroenc._core.optional import require
from neuroenc.embedding._openclip import check_preprocessing
from neuroenc.embedding._packages import prepare
from neuroenc.embedding._registry import Described, LayeredModel, Output, fitting

#: What a model's name begins with.
TIMM = "timm:"
_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".npz", ".tar")
# Interpolations besides open_clip's.
_MORE = ("nearest", "lanczos", "box", "hamming")
# timm's way to crop, and open_clip's name for the same.
_CROPS = {"center": "shortest", "squash": "squash", "border": "longest"}


def _timm() -> Any:
    prepare()
    return require("timm", "offline")


class TimmImage(Described):
    """An image network of timm by name.

    Parameters
    ----------
    model : str
        "timm:ARCHITECTURE" or "timm:ARCHITECTURE.TAG".
    pretrained : str, optional
        Tag of weights, where the name has none, or a checkpoint file for the architecture (safetensors, or .pt and
        .pth read with ``weights_only=True``). Without either the weights are random, with a warning.
    seed : int
        Of random weights.
    preprocessing : mapping, optional
        Overrides of the weights' own; besides those of `ImageEmbedder`, ``crop_pct``: the share of the resized
        picture's shorter side that the network sees. Most classifiers were tested at 0.875 or 0.95, and 1 shows them
        the whole picture.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        *,
        seed: int = 0,
        preprocessing: Mapping[str, Any] | None = None,
    ) -> None:
        timm = _timm()
        self.name, self.seed = model, seed
        self._arch, _, tag = model.removeprefix(TIMM).partition(".")
        if not timm.is_model(self._arch):
            raise ConfigError(unknown_name("timm model", self._arch, timm.list_models()))
        if tag and pretrained is not None and pretrained != tag:
            raise ConfigError(
                f"model {model!r} names weights, and pretrained={pretrained!r} was given too. Next step: leave one out."
            )
        self._file, self._tag = self._sort_out(timm, tag or None if pretrained is None else pretrained)
        #: timm's own name of the architecture with its weights.
        self._full = f"{self._arch}.{self._tag}" if self._tag else self._arch
        cfg = timm.get_pretrained_cfg(self._full)
        self._cfg: dict[str, Any] = asdict(cfg) if cfg is not None else {}
        self.weights = self._tag or (self._file.name if self._file else f"random(seed={seed})")
        override = dict(preprocessing or {})
        crop = override.pop("crop_pct", self._cfg.get("crop_pct"))
        own = {
            "size": list((self._cfg.get("input_size") or (3, 224, 224))[1:]),
            **{name: self._cfg.get(name) for name in ("mean", "std", "interpolation")},
            "resize_mode": _CROPS.get(str(self._cfg.get("crop_mode") or "center"), "shortest"),
        }
        self._resized = "size" in override
        checked = check_preprocessing(own, override, _MORE)
        self._preprocessing = {**checked, "crop_pct": 1.0 if crop is None else float(crop)}
        if not 0 < self._preprocessing["crop_pct"] <= 1:
            raise ConfigError(f"crop_pct={crop} must lie in (0, 1].")

    def _sort_out(self, timm: Any, weights: str | None) -> tuple[Path | None, str | None]:
        """Checkpoint file or tag that ``weights`` stands for."""
        if weights is None:
            return None, None
        tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{self._arch}.*")]
        if weights in tags:
            return None, weights
        path = Path(weights).expanduser()
        if path.is_file() and path.suffix in _ENDINGS:
            return path, None
        if os.sep in weights or path.suffix in _ENDINGS or path.is_file():
            problem = f"is no file with weights ({', '.join(_ENDINGS)})" if path.exists() else "does not exist"
            raise DataError(f"checkpoint {path} {problem}. Next step: check the path, or name a tag of {self._arch!r}.")
        step = "A path to a checkpoint is legal too; None is random."
        raise ConfigError(unknown_name(f"weights of timm's {self._arch!r}", weights, tags, step))

    @cached_property
    def _checkpoint(self) -> Path | None:
        if self._tag is None:
            return self._file
        return from_hub(
            self._download,
            f"the checkpoint {self._tag!r} of timm's {self._arch!r}",
            "connect this machine, or copy the checkpoint here and give its path as pretrained=",
        )

    def _download(self) -> Path:
        if self._cfg.get("hf_hub_id"):
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import EntryNotFoundError

            repository, _, revision = str(self._cfg["hf_hub_id"]).partition("@")
            named = self._cfg.get("hf_hub_filename")
            try:
                found = hf_hub_download(repository, named or "model.safetensors", revision=revision or None)
            except EntryNotFoundError:
                if named:
                    raise
                found = hf_hub_download(repository, "pytorch_model.bin", revision=revision or None)
            return Path(found)
        from timm.models._hub import download_cached_file

        return Path(download_cached_file(self._cfg["url"], check_hash=False))

    def _content(self) -> dict[str, Any]:
        known = {"timm": metadata.version("timm"), "arch": self._arch}
        return {**known, **self._values(self._checkpoint, self.seed)}

    def layers(self) -> tuple[str, ...]:
        """Modules of timm's ``feature_info``."""
        return tuple(str(part["module"]) for part in self._skeleton.feature_info)

    @cached_property
    def _skeleton(self) -> Any:
        """The network without memory for its weights."""
        import torch

        with torch.device("meta"):
            return self._create(self._size_option())

    def _size_option(self) -> dict[str, Any]:
        """``img_size`` for networks that are built for one size, where another is asked for."""
        if not self._resized:
            return {}
        import torch

        size = self._preprocessing["size"]
        option = {"img_size": tuple(size) if isinstance(size, list) else size}
        try:
            with torch.device("meta"):
                self._create(option)
        except TypeError:
            return {}
        return option

    def _create(self, options: Mapping[str, Any]) -> Any:
        return _timm().create_model(self._full, pretrained=False, **options)

    def load(self, device: str) -> TimmModel:
        """The network on ``device``, in evaluation mode."""
        import torch

        options = self._size_option()
        if self._checkpoint is None:
            self._warn_random(self.seed, stacklevel=5)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                model = self._create(options)
        else:
            model = self._trained(self._checkpoint, options)
        from timm.data.transforms_factory import create_transform

        settings = self._preprocessing
        size = settings["size"] if isinstance(settings["size"], list) else [settings["size"]] * 2
        transform = create_transform(
            input_size=(3, *size),
            crop_mode=next(k for k, v in _CROPS.items() if v == settings["resize_mode"]),
            **{name: settings[name] for name in ("interpolation", "mean", "std", "crop_pct")},
        )
        return TimmModel(model.eval().requires_grad_(False).to(device), transform, self.layers())

    def _trained(self, checkpoint: Path, options: Mapping[str, Any]) -> Any:
        """Weights by timm's own route, which knows the original files of many networks; all must fit."""
        from timm.models import load_state_dict

        overlay: dict[str, Any] = {"file": str(checkpoint), "hf_hub_id": None, "url": "", "source": None}
        overlay["custom_load"] = checkpoint.suffix == ".npz" or self._cfg.get("custom_load") == "hf"
        options, head = dict(options), self._cfg.get("classifier")
        with fitting(checkpoint, f"timm's {self._arch!r}"):
            if self._file is not None and not overlay["custom_load"] and isinstance(head, str):
                # timm would load a file with another number of classes loosely: fit the network to the file.
                weight = load_state_dict(str(checkpoint)).get(f"{head}.weight")
                overlay["num_classes"] = options["num_classes"] = 0 if weight is None else len(weight)
            return _timm().create_model(self._full, pretrained=True, pretrained_cfg_overlay=overlay, **options)


class TimmModel(LayeredModel):
    """A loaded network."""

    def __init__(self, model: Any, transform: Any, layers: tuple[str, ...]) -> None:
        super().__init__(model, transform, layers)
        legal = inspect.signature(model.forward_intermediates).parameters
        #: Only transformers with tokens of their own hand them out.
        self._has_tokens = "return_prefix_tokens" in legal
        self._options = {"norm": False, "stop_early": True, "output_fmt": "NCHW", "intermediates_only": True}
        self._options = {k: v for k, v in self._options.items() if k in legal}

    def encode(self, batch: Any, layer: str | None) -> Output:
        """Pooled vector before the classifier (layer None), or a layer's tokens or channel map.

        A layer of a vision transformer gives its tokens with the class token first. Registers of one that has no
        class token are left out, since "cls" would take the first of them for one.
        """
        model = self._model
        if layer is None:
            return Output(model.forward_head(model.forward_features(batch), pre_logits=True).flatten(1))
        return self.encode_layers(batch, [layer])[layer]

    def encode_layers(self, batch: Any, layers: Sequence[str]) -> dict[str, Output]:
        """Several layers in one forward pass, which ends behind the last of them."""
        model, order = self._model, sorted(layers, key=self._number)
        options = {**self._options, "indices": [self._number(layer) for layer in order]}
        if not self._has_tokens:
            return {k: Output(v) for k, v in zip(order, model.forward_intermediates(batch, **options), strict=True)}
        found = model.forward_intermediates(batch, **options, return_prefix_tokens=True)
        parts = [x if isinstance(x, tuple) else (x, None) for x in found]
        bare = getattr(model, "has_class_token", True) is False
        return {k: self._tokens(plane, None if bare else extra) for k, (plane, extra) in zip(order, parts, strict=True)}
