"""Prompt templates and unit text embeddings, centred across the modality gap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.arrays import unit_rows
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions._linear import as_weights
from neuroenc.captions.text._words import LISTS, word_set

EmbedText = Callable[[list[str]], Any] | Any
#: Prompts around a noun with its article; the mean over them says less of the words around it.
TEMPLATES: tuple[str, ...] = tuple(LISTS["templates"])
_BARE = word_set("mass_nouns")
_DETERMINED = ("a ", "an ", "the ", "some ", "two ", "many ")


def prompt(template: str, noun: str) -> str:
    """The noun, with "a" or "an" where it takes one, in a template.

    >>> prompt("a photo of {}.", "bus"), prompt("a photo of {}.", "red text")
    ('a photo of a bus.', 'a photo of red text.')
    """
    if "{}" not in template:
        raise ConfigError(f'template {template!r} has no place for the noun. Legal: "a photo of {{}}.".')
    several = noun.endswith("s") and not noun.endswith(("ss", "us"))
    bare = several or noun.split(" ")[-1] in _BARE or noun.startswith(_DETERMINED)
    article = "" if bare else "an " if noun[:1] in "aeiou" else "a "
    return template.format(article + noun)


def embed(embed_text: EmbedText, texts: Sequence[str], width: int | None = None) -> np.ndarray:
    """Unit vectors (text, feature) in float64; each different text is embedded once.

    ``embed_text`` is a function of a list of texts, or has ``embed`` as :class:`neuroenc.embedding.TextEmbedder`.
    """
    place = {t: i for i, t in enumerate(dict.fromkeys(texts))}
    call = getattr(embed_text, "embed", embed_text)
    if not callable(call):
        raise ConfigError(
            f"embed_text is {type(embed_text).__name__}; legal: a function of a list of texts, or what has "
            "embed(). Next step: TextEmbedder(model) of the encoder's backbone."
        )
    values = np.asarray(call(list(place)), dtype=np.float64)
    if values.ndim != 2 or len(values) != len(place):
        raise DataError(f"embed_text gave shape {values.shape} for {len(place)} texts; legal is (text, feature).")
    if not np.isfinite(values).all():
        raise DataError("embed_text gave NaN or infinite values.")
    if width is not None and values.shape[1] != width:
        raise DataError(
            f"texts have width {values.shape[1]}, voxels or images {width}; they must share one space. "
            "Next step: embed texts with the text side of the encoder's backbone."
        )
    return unit_rows(values)[[place[t] for t in texts]]


def directions_of(source: Any, *, centre: bool = True) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Unit directions (voxel, feature), which voxels have one, and the voxels' coordinates.

    A projection is centred on its bank's mean direction. Weights are differences of responses already and are not
    moved.
    """
    coords: Any
    origin = None
    if isinstance(source, xr.Dataset):
        if "embedding" not in source:
            raise DataError(f"the data set has {list(source.data_vars)}; 'embedding' of project() is needed.")
        values, coords = source["embedding"].transpose("voxel", "feature").values, source.coords
        if centre:
            if "bank_direction" not in source:
                raise ConfigError("projection without bank_direction. Next step: project(coef, bank), or centre=False.")
            origin = np.asarray(source["bank_direction"].values, dtype=np.float64)
    else:
        weights = as_weights(source)
        values, coords = weights.matrix(), weights.coef.coords
    target = unit_rows(np.asarray(values, dtype=np.float64))
    if origin is not None:
        target = unit_rows(target - origin)
    live = np.isfinite(values).all(axis=1) & (np.linalg.norm(target, axis=1) > 0)
    kept = {str(c): v for c, v in coords.items() if v.dims == ("voxel",)}
    return np.where(live[:, None], target, 0.0), live, kept
