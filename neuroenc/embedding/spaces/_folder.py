"""Folders of trained spaces, and the backbones that read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import hash_array
from neuroenc._core.weights import Kind, read_folder, reading
from neuroenc.data import Stimuli
from neuroenc.embedding._registry import Described, Output, image_backbone, text_backbone, unit_norm
from neuroenc.embedding.spaces._rendered import FrozenText, RenderedText, picture_size, pooled
from neuroenc.embedding.spaces._static import StaticSpace

SPACE = Kind("feature space", "space.json", "space.safetensors", ("space", "settings", "words", "width"))
_SEEN = "trained_on."


def is_space(model: Any) -> bool:
    """Whether a model's name is the folder of a trained space."""
    return isinstance(model, str) and (Path(model).expanduser() / SPACE.record).is_file()


def plain(caption: str) -> str:
    """A caption as it is compared: lower case, one line, no full stop at its end.

    >>> plain("A dog  on a bed. ")
    'a dog on a bed'
    """
    return " ".join(caption.split()).rstrip(" .").lower()


def _marks(values: Iterable[str]) -> np.ndarray:
    """Eight bytes of SHA-256 of each text, sorted."""
    found = {hashlib.sha256(v.encode("utf-8", "replace")).digest()[:8] for v in values}
    return np.sort(np.frombuffer(b"".join(found), dtype="<i8")) if found else np.zeros(0, np.int64)


def _pictures(stimuli: Stimuli) -> list[str]:
    return [hash_array(np.asarray(stimuli.image(n))) for n in range(len(stimuli))]


def marks_of(stimuli: Stimuli, pictures: bool) -> dict[str, np.ndarray]:
    """What a space remembers of the stimuli that it was trained on: hashes, no captions."""
    captions = [(str(i), plain(c)) for i, texts in zip(stimuli.ids, stimuli.captions or ()) for c in texts]
    found = {
        "pairs": _marks(f"{i}\0{c}" for i, c in captions),
        "captions": _marks(c for _, c in captions),
        "pictures": _marks(_pictures(stimuli) if pictures else ()),
    }
    return {_SEEN + name: values for name, values in found.items()}


def places(settings: Mapping[str, Any], layers: Iterable[str] = ()) -> dict[str | None, tuple[int, int]]:
    """Number of the linear map and of dimensions of each layer's name of a nested space; None is the whole vector.

    >>> places({"dims": 8, "prefixes": [8, 4]}, ["block1"])
    {'block1': (0, 8), 'block1-first4': (0, 4), None: (1, 8), 'first4': (1, 4)}
    """
    found: dict[str | None, tuple[int, int]] = {}
    for number, layer in enumerate((*layers, "")):
        for dims in sorted({*settings["prefixes"], settings["dims"]}, reverse=True):
            parts = [part for part in (layer, f"first{dims}" if dims < settings["dims"] else "") if part]
            found["-".join(parts) or None] = number, dims
    return found


def mark_trained(features: xr.DataArray, backbone: Any, stimuli: Stimuli) -> xr.DataArray:
    """Features with the coordinate ``trained_on`` (bool), where a space was trained on some of these stimuli."""
    seen = backbone.seen(stimuli) if hasattr(backbone, "seen") else None
    if seen is None or not seen.any():
        return features
    return features.assign_coords(trained_on=("stimulus", seen))


class _Space(Described):
    """What both sides of a trained space share."""

    unit_norm = False
    unit_layers = True

    def __init__(self, model: str) -> None:
        self.name, self._folder = model, Path(model).expanduser()
        self._record, self._tensors = read_folder(self._folder, SPACE, framework="numpy")
        self.weights = str(self._record["space"])
        self.unit_norm = self.weights in ("ranked", "grounded", "nested", "rendered")

    @property
    def record(self) -> dict[str, Any]:
        """Kind, settings, vocabulary, and provenance."""
        return dict(self._record)

    def _content(self) -> dict[str, Any]:
        return {"seal": self._record["sha256"], "settings": self._record["settings"], "space": self.weights}

    def _state(self, part: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(f"{part}."): v for k, v in self._tensors.items() if k.startswith(f"{part}.")}

    def _frozen(self, what: str, base: Any) -> Any:
        """A model that the space maps, if it is the one that was trained on."""
        if base.weights_hash() != self._record[f"{what}_hash"]:
            raise DataError(
                f"the space {self.name} was trained on another {self._record[f'{what}_model']!r} than the one that is "
                "installed. Next step: train it again, or install the versions of its provenance."
            )
        return base

    def _image_tower(self, device: str) -> Any:
        """The trained map of an image network's vectors on ``device``."""
        import torch

        from neuroenc.embedding.spaces._towers import LinearTower

        with reading(self._folder, "feature space"):
            state = {k: torch.from_numpy(v.copy()) for k, v in self._state("image").items()}
            tower = LinearTower(len(state["mean"]), self._record["settings"]["dims"])
            tower.load_state_dict(state)
        return tower.eval().requires_grad_(False).to(device)

    @property
    def marks(self) -> dict[str, np.ndarray]:
        """Hashes of the stimuli that it was trained on."""
        return {name: values for name, values in self._tensors.items() if name.startswith(_SEEN)}

    def seen(self, stimuli: Stimuli) -> np.ndarray:
        """Which stimuli the space was trained on: bool (stimulus,).

        One that stands there by id with one of its captions, whose picture is there, or all of whose captions are.
        """
        marks = {name: self._tensors[_SEEN + name] for name in ("pairs", "captions", "pictures")}
        found = np.zeros(len(stimuli), bool)
        for n, texts in enumerate(stimuli.captions or ()):
            told = [plain(c) for c in texts]
            pairs = _marks(f"{stimuli.ids[n]}\0{c}" for c in told)
            every = bool(told) and np.isin(_marks(told), marks["captions"]).all()
            found[n] = every or np.isin(pairs, marks["pairs"]).any()
        if len(marks["pictures"]) and stimuli.images is not None:
            found |= [np.isin(_marks([p]), marks["pictures"]).all() for p in _pictures(stimuli)]
        return found


class SpaceText(_Space):
    """Text side of a trained space."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._base = None
        if "base_model" in self._record:
            drawn = self.weights == "rendered" and FrozenText(self._record["image_model"], self._record["settings"])
            self._base = self._frozen("base", drawn or text_backbone(self._record["base_model"], None, 0))

    @cached_property
    def _preprocessing(self) -> dict[str, Any]:  # type: ignore[override]
        return {"words": len(self._record["words"]), **self._record["settings"]}

    def layers(self) -> tuple[str, ...]:
        """Of a nested space: layers of its base, its first dimensions, and first dimensions of layers."""
        settings = self._record["settings"]
        return tuple(name for name in places(settings, settings["layers"]) if name) if "layers" in settings else ()

    def load(self, device: str) -> StaticText | TowerText | NestedText | RenderedText:
        """The space on ``device``."""
        settings = self._record["settings"]
        if self.weights == "rendered" and self._base is not None:
            return self._base.load(device).mapped(self._image_tower(device))
        with reading(self._folder, "feature space"):
            if self._base is not None:
                import torch

                from neuroenc.embedding.spaces._towers import LayersTower

                state = {k: torch.from_numpy(v.copy()) for k, v in self._state("text").items()}
                widths = [len(state[f"heads.{n}.mean"]) for n in range(len(settings["layers"]) + 1)]
                heads = LayersTower(widths, settings["dims"])
                heads.load_state_dict(state)
                return NestedText(self._base.load(device), heads.eval().requires_grad_(False).to(device), settings)
            if self.weights not in ("ranked", "grounded"):
                averaged = self.weights in ("ppmi", "sgns")
                return StaticText(StaticSpace(self._record["words"], self._state("static"), averaged))
            import torch

            from neuroenc.embedding.spaces._towers import TextTower

            reads = "characters" if self.weights == "grounded" else settings["tower"]
            tower = TextTower(reads, self._record["words"], settings["dims"])
            tower.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in self._state("text").items()})
            return TowerText(tower.eval().requires_grad_(False).to(device))


class StaticText:
    """A loaded static space."""

    def __init__(self, space: StaticSpace) -> None:
        self._space = space

    def encode(self, texts: list[str]) -> Any:
        """Vectors (b, feature)."""
        import torch

        return torch.from_numpy(self._space.encode(texts))


class TowerText:
    """A loaded text tower."""

    def __init__(self, tower: Any) -> None:
        from neuroenc.embedding.spaces._towers import MAX_CHARACTERS

        self._tower = tower
        self.max_tokens = MAX_CHARACTERS if tower.reads == "characters" else None

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Characters of each text."""
        return [len(" ".join(text.split())) for text in texts]

    def encode(self, texts: list[str]) -> Any:
        """Unit vectors (b, feature)."""
        return self._tower.encode(texts)


class NestedText:
    """A loaded nested head on a frozen text model."""

    def __init__(self, base: Any, tower: Any, settings: Mapping[str, Any]) -> None:
        self._base, self._tower = base, tower
        self._layers: tuple[str | None, ...] = (*settings["layers"], None)
        self._places = places(settings, settings["layers"])
        self.max_tokens, self.count_tokens = getattr(base, "max_tokens", None), getattr(base, "count_tokens", None)

    def encode(self, texts: list[str], layer: str | None = None) -> Any:
        """Unit vectors (b, feature), of the first dimensions or a layer where one is named."""
        number, dims = self._places[layer]
        head, name = self._tower.heads[number], self._layers[number]
        found = self._base.encode(texts) if name is None else self._base.encode(texts, name)
        return unit_norm(head(found.float().to(head.mean.device))[:, :dims])


class SpaceImage(_Space):
    """Image side of a trained space: a frozen backbone and the linear map that was trained."""

    def __init__(self, model: str, preprocessing: Mapping[str, Any] | None = None) -> None:
        super().__init__(model)
        if "image_model" not in self._record:
            raise ConfigError(
                f"the space {model} was trained without pictures and embeds texts only. Next step: TextEmbedder, or "
                "neuroenc space train with --images."
            )
        drawn = picture_size(self._record["settings"]) if self.weights == "rendered" else None
        self._base = image_backbone(self._record["image_model"], None, 0, preprocessing or drawn)
        if not preprocessing:
            self._frozen("image", self._base)
        # Other spaces are one with no first dimensions.
        self._places = places({"prefixes": (), **self._record["settings"]})
        self._preprocessing = self._base.preprocessing

    def _content(self) -> dict[str, Any]:
        return {**super()._content(), "image": self._base.weights_hash()}

    def layers(self) -> tuple[str, ...]:
        """Of a nested space: its first dimensions."""
        return tuple(name for name in self._places if name)

    def load(self, device: str) -> ImageModel:
        """Backbone and map on ``device``."""
        base = self._base.load(device)
        return ImageModel(base, self._image_tower(device), self._places, self._record["settings"])


class ImageModel:
    """A loaded image tower."""

    def __init__(
        self, base: Any, tower: Any, places: Mapping[str | None, tuple[int, int]], settings: Mapping[str, Any]
    ) -> None:
        self._base, self._tower, self._places, self.preprocess = base, tower, places, base.preprocess
        self._settings = settings

    def encode(self, batch: Any, layer: str | None) -> Output:
        """Unit vectors (b, feature), of the first dimensions where they are named."""
        return self.encode_layers(batch, [layer])[layer]

    def encode_layers(self, batch: Any, layers: Iterable[str | None]) -> dict[str | None, Output]:
        """Several numbers of first dimensions, in one forward pass."""
        whole = self._tower(pooled(self._base, batch, self._settings))
        return {layer: Output(unit_norm(whole[:, : self._places[layer][1]])) for layer in layers}
