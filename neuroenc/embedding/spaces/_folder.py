"""Folders of trained spaces, and the backbones that read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import hash_array
from neuroenc._core.weights import Kind, read_folder, reading
from neuroenc.data import Stimuli
from neuroenc.embedding._registry import Described, Output, image_backbone
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


class _Space(Described):
    """What both sides of a trained space share."""

    unit_norm = False

    def __init__(self, model: str) -> None:
        self.name, self._folder = model, Path(model).expanduser()
        self._record, self._tensors = read_folder(self._folder, SPACE, framework="numpy")
        self.weights = str(self._record["space"])
        self.unit_norm = self.weights in ("ranked", "grounded")

    @property
    def record(self) -> dict[str, Any]:
        """Kind, settings, vocabulary, and provenance."""
        return dict(self._record)

    def _content(self) -> dict[str, Any]:
        return {"seal": self._record["sha256"], "settings": self._record["settings"], "space": self.weights}

    def _state(self, part: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(f"{part}."): v for k, v in self._tensors.items() if k.startswith(f"{part}.")}

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

    @cached_property
    def _preprocessing(self) -> dict[str, Any]:  # type: ignore[override]
        return {"words": len(self._record["words"]), **self._record["settings"]}

    def load(self, device: str) -> StaticText | TowerText:
        """The space on ``device``."""
        with reading(self._folder, "feature space"):
            if self.weights not in ("ranked", "grounded"):
                averaged = self.weights in ("ppmi", "sgns")
                return StaticText(StaticSpace(self._record["words"], self._state("static"), averaged))
            import torch

            from neuroenc.embedding.spaces._towers import TextTower

            settings = self._record["settings"]
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


class SpaceImage(_Space):
    """Image side of a trained space: a frozen backbone and the linear map that was trained."""

    def __init__(self, model: str, preprocessing: Mapping[str, Any] | None = None) -> None:
        super().__init__(model)
        if "image_model" not in self._record:
            raise ConfigError(
                f"the space {model} was trained without pictures and embeds texts only. Next step: TextEmbedder, or "
                "neuroenc space train with --images."
            )
        self._base = image_backbone(self._record["image_model"], None, 0, preprocessing)
        if self._base.weights_hash() != self._record["image_hash"] and not preprocessing:
            raise DataError(
                f"the space {model} was trained on another {self._record['image_model']!r} than the one that is "
                "installed. Next step: train it again, or install the versions of its provenance."
            )
        self._preprocessing = self._base.preprocessing

    def _content(self) -> dict[str, Any]:
        return {**super()._content(), "image": self._base.weights_hash()}

    def load(self, device: str) -> Any:
        """Backbone and map on ``device``."""
        import torch

        from neuroenc.embedding.spaces._towers import ImageTower

        with reading(self._folder, "feature space"):
            state = {k: torch.from_numpy(v.copy()) for k, v in self._state("image").items()}
            tower = ImageTower(len(state["mean"]), self._record["settings"]["dims"])
            tower.load_state_dict(state)
        return ImageModel(self._base.load(device), tower.eval().requires_grad_(False).to(device))


class ImageModel:
    """A loaded image tower."""

    def __init__(self, base: Any, tower: Any) -> None:
        self._base, self._tower, self.preprocess = base, tower, base.preprocess

    def encode(self, batch: Any, layer: str | None) -> Output:
        """Unit vectors (b, feature)."""
        return Output(self._tower(self._base.encode(batch, None).values.float()))
