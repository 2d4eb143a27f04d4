"""Verifiers of phrases: best images, weights, places of images, predicted responses to images that show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import sparse, stats

from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import at_least, check_fraction
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.memory import parse_memory
from neuroenc.captions._linear import Weights
from neuroenc.captions.checks._grounding_bank import BankImages, PhraseBank, Verification
from neuroenc.captions.text._phrases import Phrase

#: A medium effect by Cohen's convention.
EFFECT = 0.5
#: Images that must show a phrase, and must not, before anything is said of it.
LEAST_IMAGES = 5


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
        threshold: float,
        scale: float,
        max_memory: str | int | None,
    ) -> None:
        self.weights, self.bank, self.threshold = weights.matrix(), bank, check_fraction("threshold", threshold)
        self.intercept, self.scale, self.max_memory = weights.intercept, float(scale), max_memory
        self._image = image_direction

    def vectors(self, keys: Sequence[str]) -> np.ndarray:
        """Texts among the images: moved across the modality gap."""
        found = self.bank.vectors(keys)
        if self._image is not None:
            found = unit_rows(found - self.bank.text_direction + self._image)
        if found.shape[1] != self.weights.shape[1]:
            raise DataError(
                f"phrases are embedded in {found.shape[1]} dimensions, weights have {self.weights.shape[1]}. "
                "Next step: embed_text with the text side of the encoder's backbone."
            )
        return found

    def verify(self, voxels: np.ndarray, phrases: np.ndarray, table: Sequence[Phrase]) -> Verification:
        """See `Verification`."""
        keys, matched = self.bank.comparison(table)
        pool = self.vectors(keys)
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

    An image shows a phrase by its captions, or where it has none, if its centred embedding is nearer to the phrase's
    centred text embedding than to ``threshold`` of matched random phrases.
    """

    numbers = ("in_images", "in_random_images")

    def __init__(
        self,
        evidence: pd.DataFrame,
        voxels: Sequence[Any],
        bank: PhraseBank,
        *,
        images: BankImages,
        alpha: float,
        threshold: float,
        max_memory: str | int | None,
    ) -> None:
        self.bank, self.threshold, self.max_memory = bank, float(threshold), max_memory
        self.alpha = check_fraction("alpha", alpha)
        evidence = evidence[evidence["voxel"].isin(voxels)]
        names = evidence["stimulus"].astype(str).tolist()
        best = dict.fromkeys(names)
        told, vectors = set(bank.ids), images.vectors
        self._told = [n for n in dict.fromkeys([*bank.ids[: bank.n_images], *best]) if n in told]
        by_vector = [n for n in best if n in vectors and n not in told]
        if by_vector:
            # They need random images that are known in the same way.
            by_vector = list(dict.fromkeys([*(n for n in images.random if n in vectors), *by_vector]))
            if images.mean is None:
                raise ConfigError("images are compared by embeddings, centred on their mean. Next step: give bank.")
        self._seen, self._random = by_vector, set(images.random)
        self._names = list(dict.fromkeys([*self._told, *self._seen]))
        self._place = place = {name: k for k, name in enumerate(self._names)}
        lost = [n for n in best if n not in place]
        if lost:
            raise DataError(
                f"{len(lost)} of the {len(best)} best images of voxels have no captions nor embeddings; the first is "
                f"{lost[0]!r}. Next step: give them, or take evidence from images that have them."
            )
        self._centred = np.zeros((0, 0))
        if by_vector:
            raw = np.stack([np.asarray(vectors[n], np.float64) for n in by_vector])
            self._centred = unit_rows(unit_rows(raw) - images.mean)
        rank = evidence.groupby("voxel").cumcount().to_numpy()
        #: Rows of ``_names`` of each voxel's best images; -1 where a voxel has fewer.
        self._top = np.full((len(voxels), max(rank, default=-1) + 1), -1)
        self._top[pd.Index(voxels).get_indexer(evidence["voxel"]), rank] = [place[n] for n in names]

    def verify(self, voxels: np.ndarray, phrases: np.ndarray, table: Sequence[Phrase]) -> Verification:
        """See `Verification`."""
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
            seen = nearer(self._centred, table, self.bank, self.threshold, self.max_memory)
            at = np.array([self._place[x] for x in self._seen])
            random = np.array([x in self._random for x in self._seen])
            fresh = at >= n
            shown[at[fresh]] = seen[fresh]
            chance[at[fresh]] = rate(seen, random)
        return shown, chance


def nearer(
    x: np.ndarray, table: Sequence[Phrase], bank: PhraseBank, threshold: float, max_memory: str | int | None
) -> np.ndarray:
    """Whether centred embeddings of images (image, phrase) are nearer to a phrase than to most matched ones."""
    keys, matched = bank.comparison(table)
    pool, own = bank.centred(keys), bank.centred([p.key for p in table])
    at, phrases = np.divmod(np.arange(len(x) * len(table)), len(table))
    _, share = percentiles(x, at, phrases, own, pool, matched, max_memory)
    return (share >= threshold).reshape(len(x), len(table))


class PlaceVerifier:
    r"""Yes where a phrase is found in the places of a voxel's best images that drive the voxel.

    .. math:: r_{vp} = \mathrm{corr}_{ik}\big(w_v \cdot \tilde x_{ik},\; t_p \cdot \tilde x_{ik}\big), \qquad
        \mathrm{share}_{p' \in M_p}(r_{vp'} < r_{vp}) \ge \theta

    over places k of best images i, with embeddings of places less their image's mean. The other witnesses ask whether
    an image shows a phrase; here it must be where in the image the voxel is driven.
    """

    numbers = ("place_r", "place_percentile")

    def __init__(
        self,
        weights: Weights,
        evidence: pd.DataFrame,
        voxels: Sequence[Any],
        bank: PhraseBank,
        *,
        tokens: xr.DataArray,
        threshold: float,
    ) -> None:
        self.weights, self.bank, self.threshold = weights.matrix(), bank, float(threshold)
        last = [d for d in map(str, tokens.dims[1:]) if d in ("channel", "feature")]
        if "stimulus" not in tokens.dims or not last or tokens.sizes[last[0]] != self.weights.shape[1]:
            raise DataError(
                f"tokens have dims {dict(tokens.sizes)}; expected (stimulus, channel, y, x) or (stimulus, token, "
                f"feature) of the {self.weights.shape[1]} dimensions of the weights."
            )
        values = tokens.transpose("stimulus", ..., last[0]).values
        values = values.reshape(len(values), -1, values.shape[-1]).astype(np.float64)
        self._tokens = values - values.mean(axis=1, keepdims=True)
        place = {str(s): k for k, s in enumerate(tokens["stimulus"].values)}
        shown = evidence.assign(at=evidence["stimulus"].astype(str).map(place)).dropna(subset=["at"])
        best = {v: part["at"].to_numpy(np.int64) for v, part in shown.groupby("voxel", sort=False)}
        self._best = [best.get(v, np.zeros(0, np.int64)) for v in voxels]

    def verify(self, voxels: np.ndarray, phrases: np.ndarray, table: Sequence[Phrase]) -> Verification:
        """See `Verification`."""
        keys, matched = self.bank.comparison(table)
        pool, own = self.bank.centred(keys), self.bank.centred([p.key for p in table])
        found, share = np.zeros(len(voxels)), np.zeros(len(voxels))
        for v in np.unique(voxels):
            claims = np.flatnonzero(voxels == v)
            places = self._tokens[self._best[v]].reshape(-1, self._tokens.shape[2])
            drive = places @ self.weights[v]
            rest, mine = (_cosines(drive, places @ vectors.T) for vectors in (pool, own[phrases[claims]]))
            found[claims] = mine
            for k, r in zip(claims, mine):
                others = rest[matched[phrases[k]]]
                share[k] = (others < r).mean() + 0.5 * (others == r).mean()
        return Verification(share >= self.threshold, {"place_r": found, "place_percentile": share})


def _cosines(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Cosine of a vector (n,) with each column (n, k); 0 where either is 0."""
    norms = np.linalg.norm(one) * np.linalg.norm(many, axis=0)
    return np.divide(one @ many, norms, out=np.zeros(many.shape[1]), where=norms > 0)


class ResponseVerifier:
    r"""Yes where images that show a phrase drive the voxel more than the others do.

    .. math:: d_{vp} = \frac{\bar r_v(\text{images that show } p) - \bar r_v(\text{images that do not})}
        {\mathrm{sd}_i \, r_{vi}} \ge \delta, \qquad r_{vi} = w_v \cdot x_i

    over images i of the bank at random, with predicted responses r. That is the contrast by which selectivity is
    measured in a scanner, asked of the encoder. An image shows a phrase where one of its captions holds a phrase with
    all its words ("long brown hair" shows "brown hair"). Images without captions show what ``nearer`` says.

    Parameters
    ----------
    images : BankImages
        Embeddings of images at random.
    names : sequence of str
        Those that are asked.
    effect : float
        :math:`\delta`, in standard deviations of the predicted response over images.
    nearer : callable
        From embeddings (n, feature) and phrases to bool (n, phrase), for images without captions.
    normalised : bool
        Whether the encoder reads embeddings of unit norm.
    max_memory : str, int or None
    """

    #: What its verifications hold.
    numbers = ("effect", "n_showing")

    def __init__(
        self,
        weights: Weights,
        bank: PhraseBank,
        images: BankImages,
        names: Sequence[str],
        *,
        effect: float = EFFECT,
        nearer: Callable[[np.ndarray, Sequence[Phrase]], np.ndarray],
        normalised: bool = True,
        max_memory: str | int | None = None,
    ) -> None:
        self.weights, self.bank, self.max_memory = weights.matrix(), bank, max_memory
        self.effect = at_least("effect", effect)
        self._nearer = nearer
        x = np.stack([np.asarray(images.vectors[n], np.float64) for n in names])
        self._raw = x
        # The mean response of a voxel, and its intercept, drop out.
        x = unit_rows(x) if normalised else x
        self._x = x - x.mean(axis=0)
        self._rows = np.array([bank.place.get(n, -1) for n in names])

    def __repr__(self) -> str:
        return f"ResponseVerifier({len(self._x)} images, effect={self.effect:g})"

    def shown(self, table: Sequence[Phrase]) -> sparse.csr_matrix:
        """Which images show which phrases, (phrase, image) of 0 and 1."""
        told = self._rows >= 0
        out = np.zeros((len(self._rows), len(table)), dtype=bool)
        if told.any():
            out[told] = self.bank.named(table)[self._rows[told]].toarray() > 0
        if not told.all():
            out[~told] = self._nearer(self._raw[~told], table)
        return sparse.csr_matrix(out.T.astype(np.float64))

    def effects(
        self, voxels: np.ndarray, phrases: np.ndarray, table: Sequence[Phrase]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Effect (k,) of phrase ``table[phrases[k]]`` on voxel ``voxels[k]``, and the number of images that show it.

        NaN where fewer than 5 images show it, or fewer than 5 do not.
        """
        shown, n = self.shown(table), len(self._x)
        count = np.asarray(shown.sum(axis=1)).ravel()
        found, different = np.full(len(voxels), np.nan), np.unique(voxels)
        step = max(1, int(parse_memory(self.max_memory) // (32 * (n + len(table)))))
        usable = (count >= LEAST_IMAGES) & (n - count >= LEAST_IMAGES)
        for a in range(0, len(different), step):
            part = different[a : a + step]
            r = self._x @ self.weights[part].T
            spread = r.std(axis=0)
            total = shown @ r
            claims = np.flatnonzero((voxels >= part[0]) & (voxels <= part[-1]) & usable[phrases])
            v, p = np.searchsorted(part, voxels[claims]), phrases[claims]
            # The responses have mean 0: the mean of the others follows from that of the images that show it.
            difference = total[p, v] / count[p] * n / (n - count[p])
            found[claims] = np.divide(difference, spread[v], out=np.zeros(len(claims)), where=spread[v] > 0)
        return found, count[phrases].astype(np.int64)

    def verify(self, voxels: np.ndarray, phrases: np.ndarray, table: Sequence[Phrase]) -> Verification:
        """See `Verification`."""
        effect, n = self.effects(voxels, phrases, table)
        return Verification(effect >= self.effect, {"effect": effect, "n_showing": n.astype(np.float64)})
