"""Captions of COCO that may be learned from: those of photographs that nothing is measured on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import hash_array
from neuroenc.data import load_dataset
from neuroenc.embedding import TextEmbedder
from neuroenc.retrieval._corpus import plain_text

__all__ = ["PhotoTexts", "photo_texts"]

#: Captions to learn from, and the photographs that are held out of them.
CAPTIONS, PHOTOGRAPHS = "coco-captions-val2017", "coco-permissive"


@dataclass(frozen=True)
class PhotoTexts:
    """Captions with their vectors in the ConSE space, and which photograph each belongs to.

    Attributes
    ----------
    captions : list of str (n,)
        Plain, each one once a photograph.
    vectors : ndarray (n, 384) float32
        Text side of ConSE.
    ids : ndarray (n,) str
        COCO id of the photograph.
    held_out : tuple of str
        COCO ids that were left out.

    Examples
    --------
    >>> texts = PhotoTexts(["a dog", "a cat"], np.eye(2, dtype=np.float32), np.array(["7", "8"]), ("9",))
    >>> texts.of(["8"]).captions
    ['a cat']
    """

    captions: list[str]
    vectors: np.ndarray
    ids: np.ndarray
    held_out: tuple[str, ...]

    def _at(self, mask: np.ndarray) -> PhotoTexts:
        kept = [c for c, m in zip(self.captions, mask) if m]
        return PhotoTexts(kept, self.vectors[mask], self.ids[mask], self.held_out)

    def of(self, ids: Iterable[str]) -> PhotoTexts:
        """Those of some photographs."""
        return self._at(np.isin(self.ids, list(ids)))

    def without(self, ids: Iterable[str]) -> PhotoTexts:
        """Those of all other photographs."""
        return self._at(~np.isin(self.ids, list(ids)))

    def validation(self, photographs: int, seed: int = 0) -> tuple[str, ...]:
        """Ids of photographs drawn for validation, sorted."""
        known = np.unique(self.ids)
        if not 0 < photographs < len(known):
            raise ConfigError(f"validation={photographs} is not legal; it is 1 to {len(known) - 1} photographs.")
        return tuple(sorted(np.random.default_rng(seed).choice(known, photographs, replace=False).tolist()))

    def record(self) -> dict[str, Any]:
        """Counts and hashes for the record of a training: which photographs were learned from, which held out."""
        used = sorted(set(self.ids.tolist()))
        return {
            "photographs": len(used),
            "captions": len(self.captions),
            "photographs_sha256": hash_array(used),
            "held_out_photographs": len(self.held_out),
            "held_out_sha256": hash_array(sorted(self.held_out)),
        }


def photo_texts(
    *,
    photographs: int | None = None,
    mirror: Any = None,
    cache: bool = True,
    device: str = "cpu",
    show: bool = True,
) -> PhotoTexts:
    """Captions of ``coco-captions-val2017`` without the photographs of ``coco-permissive``.

    Parameters
    ----------
    photographs : int, optional
        Only the first so many, for trials.
    mirror
        As in :func:`neuroenc.data.load_dataset`.
    cache : bool
        Keep the vectors in the user's cache: the first time takes minutes.
    device : str
    show : bool
        Progress bars.

    Raises
    ------
    DataError
        A photograph that is held out is still there.
    """
    source = load_dataset(CAPTIONS, mirror=mirror, progress=show).stimuli
    held = load_dataset(PHOTOGRAPHS, mirror=mirror, progress=show).stimuli
    assert source is not None
    assert held is not None
    held_out = {str(i) for i in held.ids}
    kept = [k for k, i in enumerate(source.ids) if str(i) not in held_out][:photographs]
    pairs: list[tuple[str, str]] = []
    for k in kept:
        several = (plain_text(c) for c in (source.captions or ())[k])
        pairs.extend((str(source.ids[k]), c) for c in dict.fromkeys(several) if c)
    ids = np.array([i for i, _ in pairs])
    stray = sorted(held_out & set(ids.tolist()))
    if stray:
        raise DataError(f"{len(stray)} photographs that are held out are in the training texts: {stray[:3]}.")
    different = list(dict.fromkeys(c for _, c in pairs))
    found = TextEmbedder("conse", device=device, cache=cache, progress=show).embed(different).values
    place = {c: n for n, c in enumerate(different)}
    captions = [c for _, c in pairs]
    vectors = np.ascontiguousarray(found[[place[c] for c in captions]], dtype=np.float32)
    return PhotoTexts(captions, vectors, ids, tuple(sorted(held_out)))
