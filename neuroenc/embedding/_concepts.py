"""ConSE with CLIP's text vectors of concept names: "conse-concepts". It is not CLIP's image space.

With v_c the unit text vectors of CLIP ViT-B/32 for the 2,068 names of the data set clip-text-concepts, and m their
mean,

    image:  z = sum_{k<=10} p_k (v_{c_k} - m) / sum_{k<=10} p_k,  over ImageNet classes that are named so
    text:   t = mean of v_c - m over the concepts that the text names, the longest names first; 0 where it names none

p are the chances of EfficientNet-Lite0. Half of the 1,000 classes have a concept of their name, or of its last words,
so images are told by those alone; CLIP's text tower is not here, so a text is a bag of concepts. Of 111 photographs of
COCO their captions find .77 among the first ten, .80 with "conse", whose text side reads the whole sentence: prefer
that one unless the geometry of CLIP's names is the question.

References
----------
Norouzi et al. (2014), Zero-shot learning by convex combination of semantic embeddings. Zhou et al. (2022), ECCV.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from neuroenc._core.files import hash_array
from neuroenc.data import load_dataset
from neuroenc.embedding._offline import TOP, ConseImageModel, EfficientNetLite0, class_names
from neuroenc.embedding._registry import Described, Output


@lru_cache(maxsize=1)
def _concepts() -> dict[str, np.ndarray]:
    """Centred vector (512) of each name, in lower case; names of several sources have the mean of theirs."""
    found = load_dataset("clip-text-concepts", progress=False)
    assert found.stimuli is not None
    vectors = np.asarray(found.extra["vectors"].values, dtype=np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    centred = vectors - vectors.mean(0)
    rows: dict[str, list[int]] = {}
    for n, name in enumerate(found.stimuli.table["name"].astype(str)):
        rows.setdefault(name.lower(), []).append(n)
    return {name: centred[at].mean(0).astype(np.float32) for name, at in rows.items()}


def _named(words: Sequence[str], known: Mapping[str, Any]) -> Iterator[str]:
    """Concepts that words name, from left to right, the longest first; plurals in -s and -es count."""
    longest, n = max(len(name.split()) for name in known), 0
    while n < len(words):
        for size in range(min(longest, len(words) - n), 0, -1):
            text = " ".join(words[n : n + size])
            one = next((t for t in (text, text.removesuffix("s"), text.removesuffix("es")) if t in known), None)
            if one is not None:
                yield one
                n += size - 1
                break
        n += 1


class _Concepts(Described):
    """What both sides share."""

    name = "conse-concepts"
    weights = "efficientnet-lite0 + CLIP ViT-B/32 text vectors"

    def _content(self) -> dict[str, Any]:
        known = _concepts()
        vectors = hash_array(list(known), np.stack(list(known.values())))
        return {"image": EfficientNetLite0().weights_hash(), "concepts": vectors, "top": TOP}


class ConceptsImage(_Concepts):
    """Image side (vectors of 512); see the module's description."""

    def __init__(self, preprocessing: Mapping[str, Any] | None = None) -> None:
        self._network = EfficientNetLite0(preprocessing)
        self._preprocessing = self._network.preprocessing

    def load(self, device: str) -> ConceptsImageModel:
        """The network and the classes' vectors on ``device``."""
        import torch

        known, vectors = _concepts(), np.zeros((len(class_names()), 512), np.float32)
        for n, words in enumerate(name.lower().split() for name in class_names()):
            ends = (" ".join(words[k:]) for k in range(len(words)))
            vectors[n] = next((known[end] for end in ends if end in known), vectors[n])
        return ConceptsImageModel(self._network.load(device), torch.from_numpy(vectors).to(device))


class ConceptsImageModel(ConseImageModel):
    """The loaded image side."""

    def encode(self, batch: Any, layer: str | None) -> Output:
        """Mean of the vectors of the ten likeliest classes that have one, weighted by their chances."""
        chance = self._network.encode(batch, "logits").values.softmax(-1)
        top, classes = (chance * self._centred.any(1)).topk(TOP, dim=-1)
        weight = top / top.sum(-1, keepdim=True).clamp(min=1e-12)
        return Output((weight[:, :, None] * self._centred[classes]).sum(1))


class ConceptsText(_Concepts):
    """Text side: a bag of concepts."""

    _preprocessing: dict[str, Any] = {"text": "concepts that it names"}  # noqa: RUF012

    def load(self, device: str) -> ConceptsText:
        """Vectors are looked up."""
        _concepts()
        return self

    def encode(self, texts: list[str]) -> Any:
        """Mean vectors (b, 512)."""
        import torch

        known = _concepts()
        found = [[known[c] for c in _named(re.findall(r"[\w'-]+", text.lower()), known)] for text in texts]
        none = [text for text, own in zip(texts, found) if not own]
        if none:
            warnings.warn(
                f"{len(none)} of {len(texts)} texts name none of {len(known)} concepts, the first is {none[0][:60]!r}: "
                "their vectors are 0. Next step: model='conse', which reads any text.",
                UserWarning,
                stacklevel=2,
            )
        return torch.from_numpy(np.stack([np.mean(own, 0) if own else np.zeros(512, np.float32) for own in found]))
