"""The one loop from inputs to features, with and without the cache."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np

from neuroenc._core.device import resolve_device
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.progress import progress
from neuroenc._core.provenance import provenance
from neuroenc._version import __version__
from neuroenc.data import make_features
from neuroenc.embedding._cache import FeatureCache, block_rows


def _checked(block: np.ndarray, ids: np.ndarray, start: int) -> np.ndarray:
    finite = np.isfinite(block.reshape(len(block), -1)).all(1)
    if not finite.all():
        bad = ids[start : start + len(block)][~finite]
        raise DataError(
            f"{bad.size} of {len(block)} features from {str(bad[0])!r} on are not finite. Next step: look at that "
            "stimulus, and at the weights (a float16 checkpoint may have overflowed)."
        )
    return block


def features_of(
    embedder: Any,
    kind: str,
    content: str,
    ids: np.ndarray,
    encode: Callable[[str, int, int], np.ndarray],
    look: Callable[[str], dict[str, Any]] | None = None,
) -> Any:
    """Features DataArray of ``len(ids)`` inputs whose content has hash ``content``, by the settings of an embedder.

    ``encode(device, start, stop)`` gives the values of one batch. Nothing of torch is touched unless something has to
    be computed; ``look(device)`` then says what shall be told of the inputs and kept in the provenance.
    """
    backbone, layer, pooling = embedder.backbone, embedder.layer, embedder.pooling
    normalise, cache, batch_size = embedder.normalise, embedder.cache, embedder.batch_size
    if len(ids) == 0:
        raise DataError("there is nothing to embed (0 inputs).")
    if not isinstance(cache, (bool, str, PathLike)):
        raise ConfigError(f"cache={cache!r} is not legal; use True, False or the path of a folder.")
    if not isinstance(normalise, bool):
        raise ConfigError(f"normalise={normalise!r} is not legal; use True or False.")
    settings = {
        "kind": kind,
        "content": content,
        "backbone": backbone.name,
        "weights": backbone.weights,
        "weights_hash": backbone.weights_hash(),
        "layer": layer or "",
        "pooling": "" if pooling is None else str(pooling),
        "normalised": int(normalise or backbone.unit_norm),
        "preprocessing": backbone.preprocessing,
        "neuroenc": __version__,
    }
    store = None if cache is False else FeatureCache(None if cache is True else cache)
    found = None if store is None else store.load(settings)
    if found is not None:
        values, record = found
    else:
        place = resolve_device(embedder.device)
        record = provenance(step="embed", device=place, **settings, **({} if look is None else look(place)))
        n = len(ids)
        bar = progress(desc=f"{backbone.name} {layer or ''}".strip(), total=n, show=embedder.progress, unit=kind)

        def extract(start: int, stop: int) -> np.ndarray:
            parts = []
            bar.update(start - bar.n)
            for first in range(start, stop, batch_size):
                last = min(first + batch_size, stop)
                parts.append(_checked(encode(place, first, last), ids, first))
                bar.update(last - first)
            return np.concatenate(parts)

        rows = block_rows(batch_size)
        with bar:
            if store is not None:
                values = store.compute(settings, n, rows, extract, record)
            else:
                values = np.concatenate([extract(start, min(start + rows, n)) for start in range(0, n, rows)])
            bar.update(n - bar.n)
    cut = json.loads(record).get("cut")
    if cut:
        warnings.warn(
            f"{cut['texts']} of {len(ids)} texts are longer than the {cut['limit']} tokens that {backbone.name!r} "
            f"reads, and are cut there; the first is {cut['first']!r} ({cut['tokens']} tokens). What stands behind the "
            "cut does not enter the features. Next step: shorten or split them.",
            UserWarning,
            stacklevel=3,
        )
    return make_features(
        values,
        stimulus=ids,
        backbone=backbone.name,
        weights=backbone.weights,
        layer=layer or "",
        pooling="" if pooling is None else str(pooling),
        normalised=normalise or backbone.unit_norm,
        provenance=record,
    )
