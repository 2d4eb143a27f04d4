"""open_clip models as backbones; the world's own CLIP is one of them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from neuroenc._core.checkpoints import why_unreadable
from neuroenc._core.errors import DataError, unknown_name
from neuroenc._core.files import hash_json, sha256_file
from neuroenc.embedding._download import from_hub
from neuroenc.embedding._openclip_names import LOCAL_DIR, Source, check_preprocessing, resolve
from neuroenc.embedding._pooling import Output
from neuroenc.embedding._torchvision import prepare

__all__ = ["WORLD_CLIP", "OpenClipImage", "OpenClipText", "image_transform", "world_image", "world_text"]

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


@contextmanager
def _without_alarm() -> Iterator[None]:
    """Mute open_clip's "initialized randomly" line: the weights are read in the next step."""

    def keep(record: logging.LogRecord) -> bool:
        return "No pretrained weights loaded" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)


class _OpenClip:
    """What image and text towers share: the source, the weights' hash, the loaded model."""

    unit_norm = False

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

    @cached_property
    def _hash(self) -> str:
        record: dict[str, Any] = {
            "config": self.source.config,
            "open_clip": metadata.version("open-clip-torch"),
            "create": None if self.source.create.startswith(LOCAL_DIR) else self.source.create,
        }
        if self._checkpoint is None:
            record.update(seed=self.seed, torch=metadata.version("torch"))
        else:
            record["file"] = sha256_file(self._checkpoint)
        return hash_json(record)

    def weights_hash(self) -> str:
        """SHA-256 over the checkpoint and the architecture."""
        return self._hash

    def _image_size(self) -> int | list[int] | None:
        return None

    def _model(self, device: str) -> Any:
        size = self._image_size()
        key = (f"{self._hash}-{size}", device)
        model = _loaded.get(key)
        if model is None:
            model = _loaded[key] = self._build(device, size)
        return model

    def _build(self, device: str, size: int | list[int] | None) -> Any:
        prepare()
        import open_clip
        import torch

        if self.source.is_random:
            warnings.warn(
                f"{self.name!r} has RANDOM weights (pretrained=None, seed {self.seed}): its features are a "
                "control, not a trained model's. Name weights with pretrained=.",
                UserWarning,
                stacklevel=6,
            )
        with _without_alarm(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            try:
                model = open_clip.create_model(
                    self.source.create,
                    load_weights=False,
                    pretrained_image=False,
                    pretrained_text=False,
                    force_image_size=tuple(size) if isinstance(size, list) else size,
                    device="cpu",
                )
            except Exception as error:
                raise DataError(
                    f"the network {self.source.name!r} cannot be built: {' '.join(str(error).split())[:300]}. Next "
                    "step: look at its open_clip_config.json, and at preprocessing size=."
                ) from error
        if self._checkpoint is not None:
            try:
                open_clip.load_checkpoint(model, str(self._checkpoint), strict=True, weights_only=True)
            except Exception as error:
                raise DataError(
                    f"checkpoint {self._checkpoint} does not load into {self.source.create!r}: "
                    f"{why_unreadable(error)}. Only tensors are read (weights_only), and all "
                    "names and shapes must fit. Next step: check the architecture, or save the state_dict as "
                    "safetensors."
                ) from None
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

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Resize, crop and normalisation, as open_clip names them."""
        return dict(self._preprocessing)

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


class OpenClipImageModel:
    """A loaded image tower."""

    def __init__(self, model: Any, transform: Any, layers: tuple[str, ...]) -> None:
        self._model, self.preprocess, self._layers = model, transform, layers

    def encode(self, batch: Any, layer: str | None) -> Output:
        """Final vector (layer None) or a layer's tokens or channel map."""
        if layer is None:
            return Output(self._model.encode_image(batch))
        if layer not in self._layers:
            raise DataError(unknown_name("layer", layer, self._layers))
        visual = self._model.visual
        index = self._layers.index(layer)
        options: dict[str, Any] = {"indices": [index], "stop_early": True, "intermediates_only": True}
        transformer = hasattr(visual, "transformer") or hasattr(getattr(visual, "trunk", None), "pos_embed")
        if not transformer:
            return Output(visual.forward_intermediates(batch, **options)["image_intermediates"][0])
        options.update(output_fmt="NCHW", output_extra_tokens=True)
        found = visual.forward_intermediates(batch, **options)
        plane = found["image_intermediates"][0]
        tokens, prefix = plane.flatten(2).transpose(1, 2), 0
        if found.get("image_intermediates_prefix"):
            import torch

            extra = found["image_intermediates_prefix"][0]
            prefix = extra.shape[1]
            tokens = torch.cat([extra, tokens], dim=1)
        return Output(tokens, prefix=prefix, grid=(plane.shape[2], plane.shape[3]))


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
        """No intermediate layers of text."""
        return ()

    def load(self, device: str) -> OpenClipTextModel:
        """The tower on ``device``."""
        prepare()
        import open_clip

        hub = self.source.name if self.source.name.startswith("hf-hub:") else self.source.create
        if hub.startswith(LOCAL_DIR):
            try:
                tokenizer = open_clip.get_tokenizer(hub)
            except Exception as error:
                said = " ".join(str(error).split())[:200]
                raise DataError(
                    f"the tokenizer in {hub.removeprefix(LOCAL_DIR)} cannot be read ({said}). "
                    "Next step: copy tokenizer.json and tokenizer_config.json again."
                ) from error
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

    def encode(self, texts: list[str]) -> Any:
        """Raw text vectors (b, feature)."""
        return self._model.encode_text(self._tokenizer(texts).to(self._device))


def world_image(preprocessing: Mapping[str, Any] | None = None) -> OpenClipImage:
    """Image tower of the simulated world's CLIP."""
    return OpenClipImage(f"{LOCAL_DIR}{WORLD_CLIP}", preprocessing=preprocessing, name="world")


def world_text() -> OpenClipText:
    """Text tower of the simulated world's CLIP."""
    return OpenClipText(f"{LOCAL_DIR}{WORLD_CLIP}", name="world")
