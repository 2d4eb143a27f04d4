"""Names of backbones that are not open_clip architectures, and what makes each of them.

A backbone is described before it is loaded: its name, its weights and their hash, its layers and its
preprocessing are known without building the model, so that cached features need no model at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.embedding._pooling import Output

__all__ = [
    "Backbone",
    "ImageModel",
    "TextModel",
    "check_model",
    "image_backbone",
    "list_backbones",
    "register_backbone",
    "text_backbone",
]


class ImageModel(Protocol):
    """A loaded image tower."""

    def preprocess(self, image: Any) -> Any:
        """Tensor (3, y, x) of one RGB PIL image."""
        ...

    def encode(self, batch: Any, layer: str | None) -> Output:
        """Output of ``layer`` (None: the final vector) for a tensor (b, 3, y, x)."""
        ...


class TextModel(Protocol):
    """A loaded text tower.

    One that cuts long texts has ``max_tokens`` and ``count_tokens(texts)`` besides, so that the cut is told.
    """

    def encode(self, texts: list[str]) -> Any:
        """Tensor (b, feature) of texts."""
        ...


class Backbone(Protocol):
    """A described, not yet loaded model."""

    name: str
    weights: str
    unit_norm: bool

    @property
    def preprocessing(self) -> dict[str, Any]:
        """JSON-able description of everything that happens before the network."""
        ...

    def weights_hash(self) -> str:
        """SHA-256 that changes when the model's values change."""
        ...

    def layers(self) -> tuple[str, ...]:
        """Names of the intermediate layers."""
        ...

    def load(self, device: str) -> Any:
        """An :class:`ImageModel` or :class:`TextModel` on ``device``."""
        ...


Factory = Callable[..., Backbone]
# module:attribute, so that a name costs nothing until it is used.
_IMAGE: dict[str, str | Factory] = {
    "world": "neuroenc.embedding._openclip:world_image",
    "efficientnet-lite0": "neuroenc.embedding._efficientnet:EfficientNetLite0",
    "conse": "neuroenc.embedding._conse:ConseImage",
}
_TEXT: dict[str, str | Factory] = {
    "world": "neuroenc.embedding._openclip:world_text",
    "minilm": "neuroenc.embedding._minilm:MiniLM",
    "conse": "neuroenc.embedding._conse:ConseText",
}


def register_backbone(name: str, *, image: str | Factory | None = None, text: str | Factory | None = None) -> None:
    """Add a backbone under ``name`` for :class:`ImageEmbedder`, :class:`TextEmbedder`, or both.

    Parameters
    ----------
    name : str
        New name; an existing one is an error.
    image, text : callable or "module:attribute"
        Called with ``preprocessing=`` (image) or nothing (text); returns a described backbone with
        ``name, weights, unit_norm, preprocessing, weights_hash(), layers(), load(device)``.

    Raises
    ------
    ConfigError
        The name exists, or neither part is given.

    Examples
    --------
    >>> register_backbone("world", text="somewhere:else")
    Traceback (most recent call last):
    ...
    neuroenc._core.errors.ConfigError: backbone 'world' exists already; choose another name.
    """
    if name in _IMAGE or name in _TEXT:
        raise ConfigError(f"backbone {name!r} exists already; choose another name.")
    if image is None and text is None:
        raise ConfigError(f"backbone {name!r} needs image=, text=, or both.")
    if image is not None:
        _IMAGE[name] = image
    if text is not None:
        _TEXT[name] = text


def list_backbones() -> dict[str, str]:
    """Registered names and what each embeds; open_clip architectures come on top of these.

    Examples
    --------
    >>> list_backbones()["minilm"]
    'text'
    """
    names = sorted(set(_IMAGE) | set(_TEXT))
    return {n: " + ".join(k for k, table in (("image", _IMAGE), ("text", _TEXT)) if n in table) for n in names}


def check_model(model: Any, pretrained: Any, seed: Any = 0) -> tuple[str, str | None]:
    """Both as text, if they are names or paths."""
    check_whole("seed", seed, least=0)
    if not isinstance(model, str):
        raise ConfigError(
            f"model is a {type(model).__name__}; legal is a name ({', '.join(list_backbones())}, an open_clip "
            "architecture, 'timm:NAME', 'local-dir:PATH'). Next step: register_backbone('mine', image=...) with a "
            "function that describes your network (its name, weights_hash(), layers() and load(device)), then "
            "model='mine'."
        )
    if pretrained is not None and not isinstance(pretrained, (str, os.PathLike)):
        raise ConfigError(f"pretrained is a {type(pretrained).__name__}; legal are a tag, the path of a file, or None.")
    return model, None if pretrained is None else os.fspath(pretrained)


def _factory(entry: str | Factory) -> Factory:
    if not isinstance(entry, str):
        return entry
    module, _, attribute = entry.partition(":")
    try:
        made: Factory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{entry!r} gives no backbone: {error}. Legal is 'module:function' of something that can be imported. Next "
            f"step: python -c 'import {module}'."
        ) from error
    return made


def _registered(kind: str, table: Mapping[str, str | Factory], model: str, pretrained: str | None) -> Factory | None:
    other = _TEXT if kind == "image" else _IMAGE
    if model not in table:
        if model in other:
            raise ConfigError(unknown_name(f"{kind} model", model, table, f"{model!r} embeds no {kind}s."))
        return None
    if pretrained is not None:
        raise ConfigError(
            f"model {model!r} brings its own weights, and pretrained={pretrained!r} was given. "
            "Next step: leave pretrained out, or name an open_clip architecture."
        )
    return _factory(table[model])


def image_backbone(model: str, pretrained: str | None, seed: int, preprocessing: Mapping[str, Any] | None) -> Backbone:
    """Description of an image model by name."""
    if preprocessing is not None and not isinstance(preprocessing, Mapping):
        raise ConfigError(f"preprocessing is a {type(preprocessing).__name__}; legal is a mapping, {{'size': 224}}.")
    factory = _registered("image", _IMAGE, model, pretrained)
    if factory is not None:
        return factory(preprocessing=preprocessing)
    if model.startswith("timm:"):
        from neuroenc.embedding._timm import TimmImage

        return TimmImage(model, pretrained, seed=seed, preprocessing=preprocessing)
    from neuroenc.embedding._openclip import OpenClipImage

    return OpenClipImage(model, pretrained, seed=seed, preprocessing=preprocessing)


def text_backbone(model: str, pretrained: str | None, seed: int) -> Backbone:
    """Description of a text model by name."""
    factory = _registered("text", _TEXT, model, pretrained)
    if factory is not None:
        return factory()
    if model.startswith("timm:"):
        raise ConfigError(unknown_name("text model", model, _TEXT, f"{model!r} embeds no texts."))
    from neuroenc.embedding._openclip import OpenClipText

    return OpenClipText(model, pretrained, seed=seed)
