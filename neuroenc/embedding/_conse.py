"""ConSE: a joint space of images and texts by convex combination of semantic embeddings. It is not CLIP.

With p_1 >= p_2 >= ... the softmax of EfficientNet-Lite0 over the 1000 ImageNet classes, e_c the MiniLM vector of
class name c and m the mean of all e_c,

    image:  z = sum_{k<=10} p_k (e_{c_k} - m) / sum_{k<=10} p_k
    text:   t = MiniLM(text) - m

**It is blind to people.** ImageNet-1k has hardly any class of persons (groom, scuba diver, ballplayer), so a
photograph of a face or of a crowd lands on what the people wear, hold or stand in ("jersey", "suit", "wig",
"stage"). Preferences for faces and bodies can neither be found nor excluded in this space. It also knows nothing
of actions, counts and positions. The norm of z tells how much the classes agree, not how typical the image is.

References
----------
Norouzi et al. (2014), Zero-shot learning by convex combination of semantic embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

from neuroenc._core.files import hash_array, hash_json
from neuroenc.embedding._efficientnet import EfficientNetLite0
from neuroenc.embedding._minilm import MiniLM
from neuroenc.embedding._pooling import Output
from neuroenc.embedding._torchvision import prepare

__all__ = ["TOP", "ConseImage", "ConseText", "class_names"]

#: Number of classes that an image's vector is made of.
TOP = 10


def class_names() -> tuple[str, ...]:
    """Names of the 1000 ImageNet classes in the order of the logits (open_clip's wording)."""
    prepare()
    from open_clip import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)


@lru_cache(maxsize=1)
def _class_vectors(device: str) -> Any:
    """MiniLM vectors (1000, 384) of the class names, not centred; both sides need them."""
    import torch

    model, names = MiniLM().load(device), list(class_names())
    return torch.cat([model.encode(names[n : n + 100]) for n in range(0, len(names), 100)])


class _Conse:
    """What both sides share."""

    name = "conse"
    weights = "efficientnet-lite0 + all-MiniLM-L6-v2"
    unit_norm = False

    @cached_property
    def _hash(self) -> str:
        parts = {"image": EfficientNetLite0().weights_hash(), "text": MiniLM().weights_hash(), "top": TOP}
        return hash_json({**parts, "names": hash_array(list(class_names()))})

    def weights_hash(self) -> str:
        """SHA-256 over both models and the class names."""
        return self._hash

    def layers(self) -> tuple[str, ...]:
        """No intermediate layers."""
        return ()


class ConseImage(_Conse):
    """Image side of ConSE (vectors of 384); blind to people, see the module's description."""

    def __init__(self, preprocessing: Mapping[str, Any] | None = None) -> None:
        self._network = EfficientNetLite0(preprocessing)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """That of EfficientNet-Lite0."""
        return self._network.preprocessing

    def load(self, device: str) -> ConseImageModel:
        """Both models on ``device``."""
        from neuroenc.embedding._device import exact_arithmetic

        with exact_arithmetic():
            vectors = _class_vectors(device)
        return ConseImageModel(self._network.load(device), vectors - vectors.mean(0))


class ConseImageModel:
    """The loaded image side."""

    def __init__(self, network: Any, centred: Any) -> None:
        self._network, self._centred, self.preprocess = network, centred, network.preprocess

    def encode(self, batch: Any, layer: str | None) -> Output:
        """Probability-weighted mean of the centred class vectors of the ten likeliest classes."""
        chance = self._network.encode(batch, "logits").values.softmax(-1)
        top, classes = chance.topk(TOP, dim=-1)
        weight = top / top.sum(-1, keepdim=True)
        return Output((weight[:, :, None] * self._centred[classes]).sum(1))


class ConseText(_Conse):
    """Text side of ConSE: MiniLM vectors with the class names' mean taken away."""

    @property
    def preprocessing(self) -> dict[str, Any]:
        """That of MiniLM, and the centring."""
        return {**MiniLM().preprocessing, "centre": "mean of the ImageNet class names"}

    def load(self, device: str) -> ConseTextModel:
        """The model on ``device``."""
        from neuroenc.embedding._device import exact_arithmetic

        with exact_arithmetic():
            centre = _class_vectors(device).mean(0)
        return ConseTextModel(MiniLM().load(device), centre)


class ConseTextModel:
    """The loaded text side."""

    def __init__(self, model: Any, centre: Any) -> None:
        self._model, self._centre = model, centre
        self.max_tokens, self.count_tokens = model.max_tokens, model.count_tokens

    def encode(self, texts: list[str]) -> Any:
        """Centred sentence vectors (b, 384)."""
        return self._model.encode(texts) - self._centre
