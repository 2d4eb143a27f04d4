"""Two witnesses of a phrase: the images that drive a voxel, and the voxel's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from scipy import stats

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.memory import parse_memory
from neuroenc.captions._linear import Weights
from neuroenc.captions.checks._grounding_bank import PhraseBank
from neuroenc.captions.checks._phrases import Phrase
from neuroenc.captions.decoding._predicted import unit

__all__ = ["ImageVerifier", "Verification", "Verifier", "WeightVerifier", "percentiles"]


class Verification(NamedTuple):
    """What a verifier says of k claims: ``yes`` (k,) bool, and the numbers behind it (k,) by name."""

    yes: np.ndarray
    numbers: dict[str, np.ndarray]


class Verifier(Protocol):
    """Says whether phrases fit voxels."""

    def verify(self, voxels: np.ndarray, phrases: np.ndarray, table: Sequence[Phrase]) -> Verification:
        """Of claims k: phrase ``table[phrases[k]]`` of voxel ``voxels[k]`` (position among the checker's voxels)."""
        ...


def percentiles(
    rows: np.ndarray,
    at: np.ndarray,
    phrases: np.ndarray,
    vectors: np.ndarray,
    pool: np.ndarray,
    matched: Sequence[np.ndarray],
    max_memory: str | int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Inner product of row ``at[k]`` with vector ``phrases[k]``, and its percentile among those with matched vectors.

    ``matched[p]`` are rows of ``pool`` with which phrase p is compared; ties count half.
    """
    own, share = np.zeros(len(at)), np.zeros(len(at))
    step = max(1, int(parse_memory(max_memory) // (32 * max(1, len(pool)))))
    for p in np.unique(phrases):
        claims = np.flatnonzero(phrases == p)
        others = pool[matched[p]]
        for a in range(0, len(claims), step):
            part = claims[a : a + step]
            x = rows[at[part]]
            own[part] = x @ vectors[p]
            rest = x @ others.T
            less = (rest < own[part, None]).mean(axis=1)
            share[part] = less + 0.5 * (rest == own[part, None]).mean(axis=1)
    return own, share


class WeightVerifier:
    r"""Yes where the encoder predicts a larger response to a phrase than to most matched random phrases.

    .. math:: r_{vp} = w_v \cdot \frac{t_p - \bar t + \bar x}{\|t_p - \bar t + \bar x\|} + b_v, \qquad
        q_{vp} = \mathrm{share}_{p' \in M_p}(r_{vp'} < r_{vp}) \ge \theta

    A phrase that has nothing to do with the voxel is as likely at one percentile as at another: it passes with
    probability :math:`1 - \theta`.
    """

    #: What its verifications hold.
    numbers = ("predicted", "percentile")

    def __init__(
        self,
        weights: Weights,
        bank: PhraseBank,
        *,
        image_direction: np.ndarray | None,
        threshold: float = 0.9,
        scale: float = 1.0,
        max_memory: str | int | None = None,
    ) -> None:
        if not 0 < threshold < 1:
            raise ConfigError(f"threshold={threshold!r} is not legal; it is a percentile between 0 and 1.")
        self.weights, self.bank, self.threshold = weights.matrix(), bank, float(threshold)
        self.intercept, self.scale, self.max_memory = weights.intercept, float(scale), max_memory
        self._image = image_direction

    def vectors(self, keys: Sequence[str]) -> np.ndarray:
        """Texts among the images: moved across the modality gap."""
        found = self.bank.vectors(keys)
        if self._image is not None:
            found = unit(found - self.bank.text_direction + self._image)
        if found.shape[1] != self.weights.shape[1]:
            raise DataError(
                f"phrases are embedded in {found.shape[1]} dimensions, weights have {self.weights.shape[1]}. "
                "Next step: embed_text with the text side of the encoder's backbone."
            )
        return found

    def verify(self, voxels: np.ndarray, phrases: np.ndarray, table: Sequence[Phrase]) -> Verification:
        """See `Verifier`."""
        matched = [self.bank.matched(p) for p in table]
        used = np.unique(np.concatenate(matched)) if matched else np.zeros(0, np.int64)
        pool = self.vectors([self.bank.keys[k] for k in used])
        matched = [np.searchsorted(used, m) for m in matched]
        own, share = percentiles(
            self.weights, voxels, phrases, self.vectors([p.key for p in table]), pool, matched, self.max_memory
        )
        predicted = self.scale * own + self.intercept[voxels]
        return Verification(share >= self.threshold, {"predicted": predicted, "percentile": share})


class ImageVerifier:
    r"""Yes where more of a voxel's best images show a phrase than random images would.

    .. math:: P(\mathrm{Binomial}(K, p_0) \ge k) \le \alpha

    with k of K images showing the phrase, and :math:`p_0` the share among random images, of which one more is taken
    to show it and one not. A phrase that fits every image cannot pass.

    An image shows a phrase by its captions (``mode="captions"``), or where its centred embedding is nearer to the
    phrase's centred text embedding than to ``threshold`` of matched random phrases ("embeddings"), or by either
    ("both"). "auto" is captions for images that have them and embeddings for others.
    """

    numbers = ("in_images", "in_random_images")

    def __init__(
        self,
        evidence: pd.DataFrame,
        voxels: Sequence[Any],
        bank: PhraseBank,
        *,
        images: Mapping[str, np.ndarray] | None = None,
        random_images: Sequence[str] = (),
        image_direction: np.ndarray | None = None,
        mode: str = "auto",
        alpha: float = 0.05,
        threshold: float = 0.9,
        max_memory: str | int | None = None,
    ) -> None:
        if not 0 < alpha < 1:
            raise ConfigError(f"alpha={alpha!r} is not legal; it is a rate of false positives between 0 and 1.")
        self.bank, self.alpha, self.threshold, self.max_memory = bank, float(alpha), float(threshold), max_memory
        self._vectors, self.mode = images or {}, mode
        rows = {v: k for k, v in enumerate(voxels)}
        top: list[list[str]] = [[] for _ in voxels]
        for voxel, name in zip(evidence["voxel"], evidence["stimulus"].astype(str)):
            if voxel in rows:
                top[rows[voxel]].append(name)
        best = dict.fromkeys(n for several in top for n in several)
        told = set() if mode == "embeddings" else set(bank.ids)
        self._told = [n for n in dict.fromkeys([*bank.ids[: bank.n_images], *best]) if n in told]
        by_vector = [n for n in best if n in self._vectors and (mode != "auto" or n not in told)]
        if by_vector and mode != "captions":
            # They need random images that are known in the same way.
            by_vector = list(dict.fromkeys([*(n for n in random_images if n in self._vectors), *by_vector]))
            if image_direction is None:
                raise ConfigError("images are compared by embeddings, centred on their mean. Next step: give bank.")
        else:
            by_vector = []
        self._seen, self._random = by_vector, set(random_images)
        self._names = list(dict.fromkeys([*self._told, *self._seen]))
        self._place = place = {name: k for k, name in enumerate(self._names)}
        lost = [n for n in best if n not in place]
        if lost:
            what = {"captions": "captions", "embeddings": "embeddings in bank"}.get(mode, "captions nor embeddings")
            raise DataError(
                f"{len(lost)} of the {len(best)} best images of voxels have no {what}; the first is {lost[0]!r}. Next "
                "step: give them, or take evidence from images that have them."
            )
        self._centred = np.zeros((0, 0))
        if by_vector:
            raw = np.stack([np.asarray(self._vectors[n], np.float64) for n in by_vector])
            self._centred = unit(unit(raw) - image_direction)
        #: Rows of ``_names`` of each voxel's best images; -1 where a voxel has fewer.
        self._top = np.full((len(top), max((len(t) for t in top), default=0)), -1)
        for k, several in enumerate(top):
            self._top[k, : len(several)] = [place[n] for n in several]

    def verify(self, voxels: np.ndarray, phrases: np.ndarray, table: Sequence[Phrase]) -> Verification:
        """See `Verifier`."""
        share, base, hits = (np.zeros(len(voxels)) for _ in range(3))
        images = (self._top[voxels] >= 0).sum(axis=1)
        step = max(1, int(parse_memory(self.max_memory) // (64 * max(1, len(self._names)))))
        for a in range(0, len(table), step):
            claims = np.flatnonzero((phrases >= a) & (phrases < a + step) & (images > 0))
            if not len(claims):
                continue
            shown, chance = self._shown(table[a : a + step])
            top, column = self._top[voxels[claims]], (phrases[claims] - a)[:, None]
            there = top >= 0
            hits[claims] = (shown[top, column] & there).sum(axis=1)
            # Images known by captions and by embeddings have different chances: their mean, as all are counted.
            base[claims] = (chance[top, column] * there).sum(axis=1) / images[claims]
        share = np.divide(hits, images, out=share, where=images > 0)
        p = np.where(images > 0, stats.binom.sf(hits - 1, images, base), 1.0)
        return Verification(p <= self.alpha, {"in_images": share, "in_random_images": base})

    def _shown(self, table: Sequence[Phrase]) -> tuple[np.ndarray, np.ndarray]:
        """Which images show which phrases (image, phrase), and the share of random images that do."""
        shape = (len(self._names), len(table))
        shown, chance = np.zeros(shape, dtype=bool), np.ones(shape)

        def rate(found: np.ndarray, random: np.ndarray) -> np.ndarray:
            return (found[random].sum(axis=0) + 1) / (random.sum() + 2)

        n = len(self._told)
        if n:
            rows = [self.bank.place[x] for x in self._told]
            shown[:n] = self.bank.shown(table, self.max_memory)[rows]
            chance[:n] = rate(shown[:n], np.array(rows) < self.bank.n_images)
        if self._seen:
            seen, at = self._nearer(table), np.array([self._place[x] for x in self._seen])
            random = np.array([x in self._random for x in self._seen])
            if self.mode == "both":
                shown[at] |= seen
                chance[:] = rate(shown[at], random)
            else:
                fresh = at >= n
                shown[at[fresh]] = seen[fresh]
                chance[at[fresh]] = rate(seen, random)
        return shown, chance

    def _nearer(self, table: Sequence[Phrase]) -> np.ndarray:
        """Whether embeddings of images (image, phrase) are nearer to a phrase than to most matched ones."""
        x = self._centred
        matched = [self.bank.matched(p) for p in table]
        used = np.unique(np.concatenate(matched))
        pool, own = self.bank.centred([self.bank.keys[k] for k in used]), self.bank.centred([p.key for p in table])
        matched = [np.searchsorted(used, m) for m in matched]
        at, phrases = np.divmod(np.arange(len(x) * len(table)), len(table))
        _, share = percentiles(x, at, phrases, own, pool, matched, self.max_memory)
        return (share >= self.threshold).reshape(len(x), len(table))
