"""Captioners whose weights come with the package, by name."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Any

import numpy as np

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.captions.decoding._prefix import PrefixDecoder

__all__ = ["load_captioner"]

#: Name, and the model of :class:`neuroenc.embedding.TextEmbedder` whose space its captioner reads; how it decodes.
#: The weight of "photo" was chosen on the 250 photographs of its validation (CIDEr-D .83 -> .90).
_SHIPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "photo": ("conse", {"beams": 10, "rerank": 4.0}),
    "world": ("world", {}),
}


class _Texts:
    """Vectors of texts; the model is loaded when the first text comes."""

    def __init__(self, model: str, device: str) -> None:
        self.model, self.device = model, device
        self._embedder: Any = None

    def __call__(self, texts: list[str]) -> np.ndarray:
        if self._embedder is None:
            from neuroenc.embedding import TextEmbedder

            self._embedder = TextEmbedder(self.model, device=self.device, cache=False, progress=False)
        return np.asarray(self._embedder.embed(list(texts)).values)


def load_captioner(name: str = "photo", *, device: str = "auto", **options: Any) -> PrefixDecoder:
    """A captioner that comes with the package.

    ``"photo"``
        Embeddings of ``ImageEmbedder("conse")``, captions as people wrote them of COCO photographs. **It inherits
        ConSE's blindness**: that space has hardly any class for people, so captions may name a man or a woman because
        people often stand beside a bat or a surfboard, never because one was seen. A person in a caption is no
        evidence of a person, nor a caption without one evidence against: of 62 held-out photographs whose first
        annotator names nobody, 28 got a caption with people; ``without=load_lexicon()["person"]`` leaves them out.
        Actions, counts and positions are likewise those that usually go with the objects. Trained on captions of COCO
        2017 (CC BY 4.0).
    ``"world"``
        Embeddings of ``ImageEmbedder("world")``, scenes of :func:`neuroenc.data.simulate.simulate_world`.

    Parameters
    ----------
    name : {"photo", "world"}
    device : str
    **options
        As in :meth:`PrefixDecoder.with_options`. ``"photo"`` puts ten beams in order by what they say of the embedding
        (``rerank=4``; 0 leaves it to the language model alone).

    Returns
    -------
    PrefixDecoder
        With ``embed_text`` (its model is loaded when first used) and ``text_direction``, so that its captions have
        a ``predicted`` response. ``generate`` needs ``mean``, the mean direction of your images, where they are not
        alike those of training; ``decode`` takes it from the projection.

    Raises
    ------
    ConfigError
        Unknown name.

    References
    ----------
    Chen et al. Microsoft COCO Captions: Data collection and evaluation server. 2015.

    Examples
    --------
    >>> load_captioner("world", device="cpu").embedding_dim
    128
    """
    if name not in _SHIPPED:
        raise ConfigError(unknown_name("captioner", name, _SHIPPED))
    with as_file(files("neuroenc.captions.decoding") / "weights" / name) as folder:
        decoder = PrefixDecoder.load(folder, device=device)
    model, own = _SHIPPED[name]
    decoder.embed_text = _Texts(model, device)
    return decoder.with_options(**{**own, **options})
