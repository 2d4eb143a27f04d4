"""The decoder that ``[decoder]`` describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from neuroenc._core.errors import ConfigError
from neuroenc.captions import Decoder, RetrievalDecoder, load_lexicon
from neuroenc.captions.text._words import word_pattern
from neuroenc.embedding import TextEmbedder
from neuroenc.retrieval._corpus import plain_text
from neuroenc.workflows._caption_config import CaptionConfig
from neuroenc.workflows._caption_inputs import Texts

__all__ = ["make_decoder", "make_text_embedder", "text_direction"]


class _Vectors:
    """Vectors of texts. Variants of captions repeat each other: each text is embedded once."""

    def __init__(self, embedder: TextEmbedder) -> None:
        self._embedder, self._known = embedder, dict[str, np.ndarray]()

    @property
    def weights_hash(self) -> str:
        """Of the model that the vectors come from."""
        return self._embedder.backbone.weights_hash()

    def __call__(self, texts: list[str]) -> np.ndarray:
        new = [t for t in dict.fromkeys(texts) if t not in self._known]
        if new:
            self._known.update(zip(new, np.asarray(self._embedder.embed(new).values), strict=True))
        return np.stack([self._known[t] for t in texts])


def make_text_embedder(config: CaptionConfig) -> Callable[[list[str]], np.ndarray]:
    """``embed_text(texts) -> (n, feature)`` in the space of the weights."""
    return _Vectors(TextEmbedder(config.space.model, config.space.pretrained or None, cache=False, progress=False))


def text_direction(texts: Texts | None, decoder: Any = None) -> np.ndarray | None:
    """Mean direction of texts: of the caption bank, or what the captioner knows from its training."""
    if texts is not None:
        unit = texts.vectors / np.linalg.norm(texts.vectors, axis=1, keepdims=True)
        return np.asarray(unit.mean(axis=0, dtype=np.float64))
    return getattr(decoder, "text_direction", None)


def _only_lower(tokenizer: Any) -> bool:
    """Whether no token of several letters holds a capital."""
    special = set(tokenizer.all_special_tokens)
    tokens = (t.lstrip("Ġ▁") for t in tokenizer.get_vocab() if t not in special)
    return not any(len(t) > 1 and t.isascii() and t != t.lower() for t in tokens)


def make_decoder(config: CaptionConfig, texts: Texts | None, embed_text: Callable[[list[str]], np.ndarray]) -> Decoder:
    """Retrieval, a prefix language model, or one that keeps to the phrases of a corpus.

    Raises
    ------
    ConfigError
        A caption bank is needed and the bank's images have no captions, or the captioner is of another space.
    """
    d = config.decoder
    lexicon = load_lexicon()
    without = [word for concept in d.without for word in lexicon[concept]]
    if d.kind in ("retrieval", "corpus") and texts is None:
        raise ConfigError(
            f'[decoder] kind = "{d.kind}" needs captions, and caption_bank = "{d.caption_bank}" has none. Next step: '
            'caption_bank = "coco-captions-val2017", or kind = "prefix".'
        )
    direction = text_direction(texts)
    if texts is not None and without and d.kind != "prefix":
        named = word_pattern(without)
        kept = [k for k, text in enumerate(texts.captions) if not named.search(text)]
        if not kept:
            raise ConfigError(f"every caption of the bank names {' or '.join(d.without)} (decoder.without).")
        texts = Texts([texts.captions[k] for k in kept], texts.vectors[kept], [texts.ids[k] for k in kept], texts.name)
    if d.kind == "retrieval":
        assert texts is not None
        return RetrievalDecoder(texts.captions, texts.vectors, texts.ids, centre=d.centre)
    from neuroenc.captions import CorpusConstraint, PrefixDecoder, load_captioner

    found = PrefixDecoder.load(d.captioner) if Path(d.captioner).is_dir() else load_captioner(d.captioner)
    width = texts.vectors.shape[1] if texts is not None else embed_text(["a"]).shape[1]
    if found.embedding_dim != width:
        raise ConfigError(
            f'captioner "{d.captioner}" reads embeddings of {found.embedding_dim}; space "{config.space.model}" has '
            f'{width}. Next step: captioner = "world" with model = "world", "photo" with "conse".'
        )
    search = dataclasses.replace(
        found.search,
        method=d.method,
        beams=d.beams,
        groups=d.groups,
        diversity=d.diversity,
        diversity_penalty=d.diversity_penalty,
        temperature=d.temperature,
        top_p=d.top_p,
        max_length=d.max_length,
        seed=config.seed,
    )
    options: dict[str, Any] = {"search": search, "embed_text": embed_text}
    if direction is not None:
        options["text_direction"] = direction
    if d.kind == "corpus":
        assert texts is not None
        # A captioner that never saw a capital would have to spell the corpus's letter by letter.
        corpus = [plain_text(c) for c in texts.captions] if _only_lower(found.tokenizer) else texts.captions
        options["constraint"] = CorpusConstraint.from_captions(
            corpus, found.encode, stop=found.stop, vocabulary=found.vocabulary, ids=texts.ids, n=d.n or None
        )
    if d.rerank is not None:
        options["rerank"] = d.rerank
    return found.with_options(**options, **({"without": without} if without else {}))
