"""What the steps of a captioning read, by content: a step is done again when any of it has changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import xarray as xr

from neuroenc._core.files import hash_json, hash_path
from neuroenc.captions import load_categories, load_lexicon
from neuroenc.captions.text._phrases import spacy_version
from neuroenc.workflows._caption_config import CaptionConfig
from neuroenc.workflows._caption_fit import Fitted
from neuroenc.workflows._caption_inputs import Subject, Texts
from neuroenc.workflows._captioner import Captioner
from neuroenc.workflows._steps import content_key

__all__ = ["Contents", "captioner_content", "contents_of"]


@dataclasses.dataclass(frozen=True)
class Contents:
    """Hashes of what several steps read.

    Attributes
    ----------
    weights : str
        Weights, intercepts and penalties.
    rows : str
        Features and responses of every subject, fitted on and held out.
    scores : str
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
    """Hash of a captioner's files: of a folder, or of one that comes with the package; "" for none."""
    if not name:
        return ""
    if Path(name).is_dir():
        return hash_path(name)
    with as_file(files("neuroenc.captions.decoding") / "weights" / name) as folder:
        return hash_path(folder) if folder.is_dir() else ""


@lru_cache(maxsize=1)
def _words() -> str:
    lists: list[Mapping[str, Any]] = [load_lexicon(), load_categories()]
    return hash_json([*({k: list(v) for k, v in found.items()} for found in lists), spacy_version()])


def contents_of(
    config: CaptionConfig,
    captioner: Captioner,
    fitted: Fitted,
    subjects: list[Subject],
    texts: Texts | None,
    embed_text: Callable[[list[str]], Any],
) -> Contents:
    """Contents of a captioning's inputs."""

    d, shown = config.decoder, captioner.stimuli
    told = None if texts is None else [texts.captions, texts.vectors, texts.ids]
    rows: list[xr.DataArray] = [a for s in subjects for a in (s.X, s.Y, s.X_test, s.Y_test)]
    return Contents(
        weights=content_key(fitted.coef, fitted.intercept, fitted.alphas, fitted.truth),
        rows=content_key(rows, [s.name for s in subjects], fitted.voxels),
        scores=content_key(fitted.scores),
        # Pictures are what the embeddings were made of, and are shown by the report alone.
        bank=content_key(captioner.bank, None if shown is None else [shown.ids, shown.captions]),
        writing=content_key(
            # Not where the captioner lies, but what it is.
            dataclasses.replace(d, captioner=""),
            captioner_content("" if d.kind == "retrieval" else d.captioner),
            told,
            config.space,
            getattr(embed_text, "weights_hash", ""),
            _words() if d.without else "",
            config.seed,
        ),
        words=_words(),
    )
