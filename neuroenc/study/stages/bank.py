"""What voxels are captioned with: the shared space, the bank of images, texts, and the decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc import data
from neuroenc._core.arrays import unit_rows
from neuroenc._core.errors import ConfigError
from neuroenc._core.files import hash_json, hash_path
from neuroenc._core.store import content_key
from neuroenc.captions import (
    Captioner,
    Decoder,
    KeywordDecoder,
    RetrievalDecoder,
    bank_hash,
    load_categories,
    load_lexicon,
    spacy_version,
    word_pattern,
)
from neuroenc.data import Stimuli
from neuroenc.embedding import ImageEmbedder, TextEmbedder
from neuroenc.retrieval import as_bank, plain_text
from neuroenc.study.config import CaptionsConfig, SpaceConfig
from neuroenc.study.study import Study, stage


@dataclass(frozen=True)
class Bank:
    """Raw embeddings that weights are projected onto, what they show, and what that is called."""

    embeddings: Any
    stimuli: Stimuli | None
    name: str


@dataclass(frozen=True)
class Texts:
    """A caption bank: texts, their vectors, and the id of each one's image."""

    captions: list[str]
    vectors: np.ndarray
    ids: list[str]
    name: str

    def content_hash(self) -> str:
        """Hash of texts, vectors and ids."""
        return content_key(self.captions, self.vectors, self.ids)


@stage("space", reads=("stimuli", "config.captions.space"), writes=("caption_space",))
def space(study: Study) -> dict[str, Any]:
    """Stimuli in the space that weights and texts share, one row a stimulus, at unit norm."""
    config, stimuli = study.table("captions").space, study.stimuli
    if stimuli is None:
        raise ConfigError("captions need stimuli. Next step: [data] images, or captions.")
    weights = config.pretrained or None
    if config.stimuli == "captions":
        raw = TextEmbedder(config.model, weights, progress=study.progress).embed_captions(stimuli)
    else:
        raw = ImageEmbedder(config.model, weights, progress=study.progress).embed(stimuli)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    unit.attrs.update(raw.attrs, normalised=1)
    return {"caption_space": unit}


def _stimuli(study: Study, name: str) -> Stimuli | None:
    """Stimuli by the name that a config gives them: those of the training rows, unseen ones, or a data set's."""
    if name == "unseen":
        found: Stimuli | None = study.unseen
        return found
    if name != "stimuli":
        return data.load_dataset(name, mirror=study.mirror).stimuli
    assert study.stimuli is not None
    taught = [s.Y.coords["stimulus"].values for s in study.fitted.rows]
    return study.stimuli.sel(pd.unique(np.concatenate(taught)))


def _bank(study: Study, texts: Texts | None) -> Bank:
    """The bank that ``[captions.bank]`` names."""
    config = study.table("captions")
    source, where = config.bank.source, config.space
    if source == "captions":
        assert texts is not None
        labelled = data.make_features(texts.vectors, stimulus=unique_ids(texts.ids))
        return Bank(labelled, None, texts.name)
    if Path(source).is_dir():
        return Bank(as_bank(source), None, Path(source).name)
    stimuli = _stimuli(study, source)
    if stimuli is None or stimuli.images is None:
        raise ConfigError(f'[captions.bank] source = "{source}" has no images.')
    raw = ImageEmbedder(where.model, where.pretrained or None, progress=study.progress).embed(stimuli)
    return Bank(raw, stimuli, stimuli.source or source)


def training_texts(study: Study) -> Texts | None:
    """The caption bank that ``[captions.decoder]`` names; None where the bank's images have no captions."""
    config = study.table("captions")
    name = config.bank.source if config.decoder.caption_bank == "bank" else config.decoder.caption_bank
    # A bank on disk has no captions.
    stimuli = None if Path(name).is_dir() else _stimuli(study, name)
    if stimuli is None or stimuli.captions is None:
        return None
    n = config.decoder.captions_per_stimulus
    pairs = [(text, str(s)) for s, texts in zip(stimuli.ids, stimuli.captions) for text in texts[:n]]
    captions, ids = [text for text, _ in pairs], [name for _, name in pairs]
    embedder = TextEmbedder(config.space.model, config.space.pretrained or None, progress=study.progress)
    return _told(study, Texts(captions, embedder.embed(captions).values, ids, stimuli.source or name))


def _told(study: Study, texts: Texts) -> Texts:
    """Texts without those that the space knows no word of, which have the vector 0 and no direction."""
    known = texts.vectors.any(axis=1)
    if known.all() or not known.any():
        return texts
    space = study.table("captions").space.model
    study.say(
        f"  {int((~known).sum()):,} of {len(texts.captions):,} captions are left out: {space} knows no word of them"
    )
    kept = np.flatnonzero(known)
    return Texts([texts.captions[k] for k in kept], texts.vectors[kept], [texts.ids[k] for k in kept], texts.name)


def unique_ids(ids: list[str]) -> list[str]:
    """Ids with a number where an image has several captions."""
    number = pd.Series(ids, dtype=object).groupby(ids).cumcount()
    return [f"{name}#{n}" for name, n in zip(ids, number)]


@stage(
    "bank",
    reads=("fitted", "stimuli", "unseen", "config.captions", "config.seed"),
    writes=("texts", "captioner", "bank_name", "contents"),
)
def bank(study: Study) -> dict[str, Any]:
    """Images that weights are projected onto, texts, and the decoder that writes or retrieves captions."""
    config = study.table("captions")
    texts = training_texts(study)
    chosen = _bank(study, texts)
    embed_text = _Vectors(config.space)
    decoder = make_decoder(config, texts, embed_text, study.config.seed)
    captioner = Captioner(
        chosen.embeddings,
        decoder,
        stimuli=chosen.stimuli,
        embed_text=embed_text,
        top=config.decoder.top,
        n_evidence=config.grounding.images,
        progress=study.progress,
        **vars(config.projection),
    )
    contents = contents_of(study, captioner, texts, embed_text.weights_hash)
    return {"texts": texts, "captioner": captioner, "bank_name": chosen.name, "contents": contents}


class _Vectors:
    """``embed_text(texts) -> (n, feature)`` in the space of the weights.

    Variants of captions repeat each other: each text is embedded once.
    """

    def __init__(self, config: SpaceConfig) -> None:
        self._embedder = TextEmbedder(config.model, config.pretrained or None, cache=False, progress=False)
        self._known = dict[str, np.ndarray]()

    @property
    def weights_hash(self) -> str:
        """Of the model that the vectors come from."""
        return self._embedder.backbone.weights_hash()

    def __call__(self, texts: list[str]) -> np.ndarray:
        new = [t for t in dict.fromkeys(texts) if t not in self._known]
        if new:
            self._known.update(zip(new, np.asarray(self._embedder.embed(new).values), strict=True))
        return np.stack([self._known[t] for t in texts])


def text_direction(texts: Texts | None, decoder: Any = None) -> np.ndarray | None:
    """Mean direction of texts: of the caption bank, or what the captioner knows from its training."""
    if texts is not None:
        return np.asarray(unit_rows(texts.vectors).mean(axis=0, dtype=np.float64))
    return getattr(decoder, "text_direction", None)


def _only_lower(tokenizer: Any) -> bool:
    """Whether no token of several letters holds a capital."""
    special = set(tokenizer.all_special_tokens)
    tokens = (t.lstrip("Ġ▁") for t in tokenizer.get_vocab() if t not in special)
    return not any(len(t) > 1 and t.isascii() and t != t.lower() for t in tokens)


def load_decoder(name: str, space: str, width: int, tokenizer: str = "") -> Any:
    """A captioner, as `load_captioner` takes it, that reads embeddings of a space."""
    from neuroenc.captions import load_captioner

    found = load_captioner(name, tokenizer=tokenizer or None)
    if found.embedding_dim != width:
        raise ConfigError(
            f'captioner "{name}" reads embeddings of {found.embedding_dim}; space "{space}" has {width}. Next step: '
            'captioner = "world" with model = "world", "photo" with "conse", ClipCap\'s with the CLIP of its training.'
        )
    return found


def make_decoder(
    config: CaptionsConfig, texts: Texts | None, embed_text: Callable[[list[str]], np.ndarray], seed: int
) -> Decoder:
    """Retrieval, keywords, a prefix language model, or one that keeps to the phrases of a corpus."""
    d = config.decoder
    lexicon = load_lexicon()
    without = [word for concept in d.without for word in lexicon[concept]]
    if d.kind != "prefix" and texts is None:
        raise ConfigError(
            f'[decoder] kind = "{d.kind}" needs captions, and caption_bank = "{d.caption_bank}" has none. Next step: '
            'caption_bank = "coco-captions-val2017", or kind = "prefix".'
        )
    direction, options = text_direction(texts), dict[str, Any]()
    if texts is not None and without and d.kind != "prefix":
        named = word_pattern(without)
        kept = [k for k, text in enumerate(texts.captions) if not named.search(text)]
        if not kept:
            raise ConfigError(f"every caption of the bank names {' or '.join(d.without)} (decoder.without).")
        texts = Texts([texts.captions[k] for k in kept], texts.vectors[kept], [texts.ids[k] for k in kept], texts.name)
    if d.kind == "retrieval":
        assert texts is not None
        return RetrievalDecoder(texts.captions, texts.vectors, texts.ids, centre=d.centre)
    if d.kind == "keywords":
        assert texts is not None
        options = {"embed_text": embed_text, "keywords": d.keywords, "centre": d.centre}
        return KeywordDecoder(texts.captions, texts.vectors, texts.ids, engine="rules", **options)
    from neuroenc.captions import CorpusConstraint

    width = texts.vectors.shape[1] if texts is not None else embed_text(["a"]).shape[1]
    found = load_decoder(d.captioner, config.space.model, width, d.tokenizer)
    # Settings of the search have the same names in the config.
    options = {k: getattr(d, k) for k in found.search.as_dict() if k in type(d).model_fields}
    options |= {"seed": seed, "embed_text": embed_text, "without": without or None}
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
    return found.with_options(**options)


@dataclass(frozen=True)
class Contents:
    """Hashes of what several steps read.

    Attributes
    ----------
    weights : str
        Weights, intercepts and penalties.
    rows : str
        Features and responses of every subject, fitted on and held out.
    bank : str
        Embeddings and ids of the bank, and the captions of its images.
    writing : str
        All that a caption is written with: decoder and its settings, captioner, caption bank, space, word lists.
    words : str
        All that captions are read with: lexicon, categories, parser.
    """

    weights: str
    rows: str
    scores: str
    bank: str
    writing: str
    words: str


def captioner_content(name: str) -> str:
    """Hash of a captioner's folder or file, or of one that comes with the package; "" for none."""
    if not name:
        return ""
    if Path(name).exists():
        return hash_path(name)
    with as_file(files("neuroenc.captions.decoding") / "weights" / name) as folder:
        return hash_path(folder) if folder.is_dir() else ""


@lru_cache(maxsize=1)
def _words() -> str:
    lists: list[Mapping[str, Any]] = [load_lexicon(), load_categories()]
    return hash_json([*({k: list(v) for k, v in found.items()} for found in lists), spacy_version()])


def contents_of(study: Study, captioner: Captioner, texts: Texts | None, embedder: str) -> Contents:
    """Contents of a captioning's inputs; ``embedder`` is the hash of the model that embeds captions."""
    config, fitted, shown = study.table("captions"), study.fitted, captioner.stimuli
    d = config.decoder
    return Contents(
        weights=content_key(fitted.coef, fitted.intercept, fitted.alphas, fitted.truth),
        rows=content_key(fitted.rows, fitted.voxels),
        scores=content_key(fitted.scores),
        # Pictures are what the embeddings were made of, and are shown by the report alone.
        bank=content_key(bank_hash(captioner.bank), None if shown is None else [shown.ids, shown.captions]),
        writing=content_key(
            # Not where the captioner lies, but what it is.
            d.model_copy(update={"captioner": "", "tokenizer": ""}),
            captioner_content(d.captioner if d.writes else ""),
            hash_path(d.tokenizer) if d.tokenizer else "",
            texts,
            config.space,
            embedder,
            _words() if d.without else "",
            study.config.seed,
        ),
        words=_words(),
    )
