"""Registry of backbones, and pooling of their outputs.

A backbone is described before it is loaded: its name, its weights and their hash, its layers and its
preprocessing are known without building the model, so that cached features need no model at all.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Protocol

from neuroenc._core.checkpoints import why_unreadable
from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import hash_json, sha256_file

_NAMED = ("tokens", "map", "mean", "cls")


@dataclass(frozen=True)
class Output:
    """What a layer gives: a vector (b, f), a channel map (b, c, y, x), or tokens (b, t, f).

    The first ``prefix`` tokens are not places (class token, registers); the others lie row by row on ``grid``.
    """

    values: Any
    prefix: int = 0
    grid: tuple[int, int] | None = None


class LayeredModel:
    """A loaded image network: its preprocessing, and layers by name."""

    def __init__(self, model: Any, transform: Any, layers: tuple[str, ...]) -> None:
        self._model, self.preprocess, self._layers = model, transform, layers

    def _number(self, layer: str) -> int:
        if layer not in self._layers:
            raise DataError(unknown_name("layer", layer, self._layers))
        return self._layers.index(layer)

    @staticmethod
    def _tokens(plane: Any, extra: Any) -> Output:
        """Tokens of a transformer: ``extra`` ones (class token, registers; or None), then the places of its map."""
        import torch

        tokens, grid = plane.flatten(2).transpose(1, 2), (plane.shape[2], plane.shape[3])
        if extra is None or not extra.shape[1]:
            return Output(tokens, grid=grid)
        return Output(torch.cat([extra, tokens], dim=1), prefix=extra.shape[1], grid=grid)


def check_layer(name: str, layer: str, legal: tuple[str, ...], kind: str = "layer") -> None:
    """Refuse a layer that a model does not have.

    >>> check_layer("minilm", "block9", ("block0", "block1"))
    Traceback (most recent call last):
        ...
    neuroenc._core.errors.ConfigError: unknown layer of 'minilm' 'block9'; did you mean ...
    """
    if layer not in legal:
        nested = any("first" in known for known in legal) or "first" not in layer
        step = "" if nested else 'First dimensions are of spaces of kind "nested".'
        raise ConfigError(unknown_name(f"{kind} of {name!r}", layer, legal, step))


def check_pooling(pooling: str | int | None) -> str | int | None:
    """``pooling`` if it is legal.

    >>> check_pooling(4)
    4
    """
    is_grid = isinstance(pooling, int) and not isinstance(pooling, bool) and pooling >= 1
    if pooling is None or pooling in _NAMED or is_grid:
        return pooling
    raise ConfigError(
        f"pooling={pooling!r} is not legal; use None (as the layer gives it), 'tokens', 'map', 'mean', 'cls', "
        "or an int g (adaptive average pooling of the map to g x g)."
    )


def _as_map(output: Output) -> Any:
    values = output.values
    if values.ndim == 4:
        return values
    if output.grid is None:
        raise ConfigError("this layer's tokens do not lie on a grid; use pooling=None, 'tokens', 'mean' or 'cls'.")
    y, x = output.grid
    return values[:, output.prefix :].transpose(1, 2).reshape(values.shape[0], values.shape[2], y, x)


def pool(output: Output, pooling: str | int | None) -> Any:
    """Tensor (b, f), (b, t, f) or (b, c, y, x) of ``output`` under ``pooling``."""
    import torch

    values = output.values
    if values.ndim == 2:
        if pooling is not None:
            raise ConfigError(
                f"pooling={pooling!r} needs a layer with places; this output is one vector a stimulus. "
                "Next step: name a layer (see .layers()) or leave pooling=None."
            )
        return values
    if pooling is None:
        return values
    if pooling == "tokens":
        return values if values.ndim == 3 else values.flatten(2).transpose(1, 2)
    if pooling == "cls":
        if values.ndim != 3 or output.prefix < 1:
            raise ConfigError("pooling='cls' needs a class token, and this layer has none; use 'mean' or a grid.")
        return values[:, 0]
    if pooling == "mean":
        return values[:, output.prefix :].mean(1) if values.ndim == 3 else values.mean((2, 3))
    planes = _as_map(output)
    if pooling != "map" and int(pooling) > max(planes.shape[2:]):
        y, x = planes.shape[2:]
        raise ConfigError(f"pooling={pooling} is finer than this layer's map of {y} x {x}; legal are 1 to {max(y, x)}.")
    return planes if pooling == "map" else torch.nn.functional.adaptive_avg_pool2d(planes, int(pooling))


def unit_norm(values: Any) -> Any:
    """Rows of ``values`` (b, f) divided by their Euclidean norm (a zero row stays zero)."""
    import torch

    if values.ndim != 2:
        raise ConfigError(
            f"normalise=True is for vectors (stimulus, feature), and this layer gives shape (stimulus, "
            f"{', '.join(str(n) for n in values.shape[1:])}). Next step: pooling='mean' or 'cls', or normalise=False."
        )
    return torch.nn.functional.normalize(values, dim=-1)


class Backbone(Protocol):
    """A described, not yet loaded model."""

    name: str
    weights: str
    unit_norm: bool

    @property
    def preprocessing(self) -> dict[str, Any]:
        """JSON-able description of everything that happens before the network."""

    def weights_hash(self) -> str:
        """SHA-256 that changes when the model's values change."""

    def layers(self) -> tuple[str, ...]:
        """Names of the intermediate layers."""

    def load(self, device: str) -> Any:
        """The model on ``device``.

        Of images: ``preprocess(image)``, a tensor (3, y, x) of one RGB PIL image, and ``encode(batch, layer)``, the
        `Output` of a layer (None: the final vector) for a tensor (b, 3, y, x); one that gives several layers in one
        forward pass has ``encode_layers(batch, layers)`` besides, a dict of `Output`. Of texts: ``encode(texts)``, a
        tensor (b, feature), and where it has layers ``encode(texts, layer)``; one that cuts long texts has
        ``max_tokens`` and ``count_tokens(texts)`` besides, so that the cut is told.
        """


class Described:
    """What the package's own backbones share."""

    name: str
    unit_norm = False
    _preprocessing: dict[str, Any]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What happens before the network: resize, crop and normalisation, or tokenizer and length."""
        return dict(self._preprocessing)

    def _content(self) -> dict[str, Any]:
        """All that the model's values depend on."""
        raise NotImplementedError

    @staticmethod
    def _values(checkpoint: Path | None, seed: int) -> dict[str, Any]:
        """What decides the numbers of a network: its checkpoint, or how random ones are drawn."""
        if checkpoint is None:
            return {"seed": seed, "torch": metadata.version("torch")}
        return {"file": sha256_file(checkpoint)}

    @cached_property
    def _hash(self) -> str:
        return hash_json(self._content())

    def weights_hash(self) -> str:
        """SHA-256 over weights (or seed), architecture and the version that computes."""
        return self._hash

    def layers(self) -> tuple[str, ...]:
        """No intermediate layers, unless a backbone says otherwise."""
        return ()

    def _warn_random(self, seed: int, stacklevel: int) -> None:
        warnings.warn(
            f"{self.name!r} has RANDOM weights (pretrained=None, seed {seed}): its features are a "
            "control, not a trained model's. Name weights with pretrained=.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )


@contextmanager
def fitting(checkpoint: Path, network: str) -> Iterator[None]:
    """Turn whatever goes wrong while a checkpoint is loaded into a network into one DataError."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"checkpoint {checkpoint} does not load into {network}: {why_unreadable(error)}. Only tensors are read "
            "(weights_only), and all names and shapes must fit. Next step: check the architecture, or save the "
            "state_dict as safetensors."
        ) from None


@contextmanager
def making(problem: str, step: str) -> Iterator[None]:
    """Turn whatever goes wrong while a part of a model is made into one DataError: the ``problem``, why, what next."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{problem}: {' '.join(str(error).split())[:300]}. Next step: {step}.") from error


Factory = Callable[..., Backbone]
# module:attribute, so that a name costs nothing until it is used.
_KNOWN: dict[str, dict[str, str | Factory]] = {
    "image": {
        "world": "neuroenc.embedding._openclip:world_image",
        "efficientnet-lite0": "neuroenc.embedding._offline:EfficientNetLite0",
        "conse": "neuroenc.embedding._offline:ConseImage",
        "conse-concepts": "neuroenc.embedding._concepts:ConceptsImage",
        "gabor": "neuroenc.embedding._lowlevel:GaborEnergy",
        "contrast": "neuroenc.embedding._lowlevel:LocalContrast",
        "colour": "neuroenc.embedding._lowlevel:Colour",
    },
    "text": {
        "world": "neuroenc.embedding._openclip:world_text",
        "minilm": "neuroenc.embedding._offline:MiniLM",
        "smollm2": "neuroenc.embedding._offline:SmolLM2",
        "conse": "neuroenc.embedding._offline:ConseText",
        "conse-concepts": "neuroenc.embedding._concepts:ConceptsText",
    },
}


def register_backbone(name: str, *, image: str | Factory | None = None, text: str | Factory | None = None) -> None:
    """Register a backbone by ``name`` for :class:`ImageEmbedder`, :class:`TextEmbedder`, or both.

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
    if name in list_backbones():
        raise ConfigError(f"backbone {name!r} exists already; choose another name.")
    if image is None and text is None:
        raise ConfigError(f"backbone {name!r} needs image=, text=, or both.")
    for kind, factory in (("image", image), ("text", text)):
        if factory is not None:
            _KNOWN[kind][name] = factory


def list_backbones() -> dict[str, str]:
    """List registered backbones and their modalities; open_clip architectures come on top of these.

    Examples
    --------
    >>> list_backbones()["minilm"]
    'text'
    """
    names = sorted({name for table in _KNOWN.values() for name in table})
    return {name: " + ".join(kind for kind, table in _KNOWN.items() if name in table) for name in names}


def is_module(model: Any) -> bool:
    """Whether ``model`` is a torch module; torch is not imported for that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def check_model(model: Any, pretrained: Any, seed: Any = 0) -> tuple[Any, str | None]:
    """Both as text, if they are names or paths; a torch module as it is."""
    check_whole("seed", seed, least=0)
    if is_module(model):
        if pretrained is not None:
            raise ConfigError(
                f"a torch module has its weights. Next step: leave pretrained={pretrained!r} out, or load them into it."
            )
        return model, None
    if not isinstance(model, str):
        raise ConfigError(
            f"model is a {type(model).__name__}; legal is a name ({', '.join(list_backbones())}, an open_clip "
            "architecture, 'timm:NAME', 'torchvision:NAME', 'local-dir:PATH') or, of images, a torch module. Next "
            "step: register_backbone('mine', image=...) with a function that describes your network (its name, "
            "weights_hash(), layers() and load(device)), then model='mine'."
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
            f"{entry!r} gives no backbone: {error}. Legal is 'module:function' of something that can be imported. "
            f"Next step: python -c 'import {module}'."
        ) from error
    return made


def _registered(kind: str, model: str, pretrained: str | None) -> Factory | None:
    table = _KNOWN[kind]
    if model not in table:
        if model in list_backbones():
            raise ConfigError(unknown_name(f"{kind} model", model, table, f"{model!r} embeds no {kind}s."))
        return None
    if pretrained is not None:
        raise ConfigError(
            f"model {model!r} brings its own weights. "
            f"Next step: leave pretrained={pretrained!r} out, or name an open_clip architecture."
        )
    return _factory(table[model])


def _is_folder(model: str, pretrained: str | None) -> bool:
    """Whether a model is the folder of a trained space; a path that is none is refused."""
    folder = Path(model).expanduser()
    # "ViT-B/32" is a name.
    found = (folder / "space.json").is_file() or model.startswith(("/", "./", "../", "~"))
    if found and not (folder / "space.json").is_file():
        there = sorted(p.name for p in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
        raise DataError(
            f"{model!r} is no trained space: no space.json (found: {there}). Next step: neuroenc space train KIND "
            "--captions FILE --out FOLDER; a folder of open_clip is 'local-dir:PATH', of transformers 'hf-dir:PATH'."
        )
    if found and pretrained is not None:
        raise ConfigError(f"model {model!r} has weights. Next step: leave pretrained={pretrained!r} out.")
    return found


def image_backbone(model: Any, pretrained: str | None, seed: int, preprocessing: Mapping[str, Any] | None) -> Backbone:
    """An image model by name, described and not loaded yet.

    Parameters
    ----------
    model, pretrained, seed, preprocessing
        As of `neuroenc.embedding.ImageEmbedder`.

    Examples
    --------
    >>> image_backbone("world", None, 0, None).layers()[0]
    'stem'
    """
    if preprocessing is not None and not isinstance(preprocessing, Mapping):
        raise ConfigError(f"preprocessing is a {type(preprocessing).__name__}; legal is a mapping, {{'size': 224}}.")
    factory = None if is_module(model) else _registered("image", model, pretrained)
    if factory is not None:
        return factory(preprocessing=preprocessing)
    if not is_module(model) and _is_folder(model, pretrained):
        return _factory("neuroenc.embedding.spaces._folder:SpaceImage")(model, preprocessing=preprocessing)
    if is_module(model) or model.startswith("torchvision:"):
        entry = "neuroenc.embedding._torch:TorchImage"
    elif model.startswith("timm:"):
        entry = "neuroenc.embedding._timm:TimmImage"
    else:
        entry = "neuroenc.embedding._openclip:OpenClipImage"
    return _factory(entry)(model, pretrained, seed=seed, preprocessing=preprocessing)


def text_backbone(model: str, pretrained: str | None, seed: int) -> Backbone:
    """Description of a text model by name."""
    if is_module(model):
        raise ConfigError(
            "a torch module embeds images, not texts. Next step: name a text model, or register_backbone."
        )
    factory = _registered("text", model, pretrained)
    if factory is not None:
        return factory()
    if model.startswith(("hf-dir:", "hf-dir-bidirectional:")):
        if pretrained is not None:
            raise ConfigError(f"model {model!r} has weights. Next step: leave pretrained={pretrained!r} out.")
        return _factory("neuroenc.embedding._offline:TextFolder")(model)
    if _is_folder(model, pretrained):
        return _factory("neuroenc.embedding.spaces._folder:SpaceText")(model)
    if model.startswith(("timm:", "torchvision:")):
        raise ConfigError(unknown_name("text model", model, _KNOWN["text"], f"{model!r} embeds no texts."))
    return _factory("neuroenc.embedding._openclip:OpenClipText")(model, pretrained, seed=seed)
