"""Grounding: test each caption phrase against the voxel's top images and its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import check_fraction
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.memory import parse_memory
from neuroenc._core.schema import VERDICTS
from neuroenc._core.tables import check_columns
from neuroenc.captions._linear import VOXEL_LABELS, Weights, as_weights, voxel_labels
from neuroenc.captions.checks._grounding_bank import BankImages, PhraseBank, TextVectors, as_captions, read_images
from neuroenc.captions.text._phrases import Phrase, PhraseFinder, phrase_engine, phrases_of


class Verification(NamedTuple):
    """What a verifier says of k claims: ``yes`` (k,) bool, and the numbers behind it (k,) by name.

    Claim k is the phrase ``table[phrases[k]]`` of the voxel ``voxels[k]`` (position among the checker's voxels).
    """

    yes: np.ndarray
    numbers: dict[str, np.ndarray]


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
            seen, at = self._nearer(table), np.array([self._place[x] for x in self._seen])
            random = np.array([x in self._random for x in self._seen])
            fresh = at >= n
            shown[at[fresh]] = seen[fresh]
            chance[at[fresh]] = rate(seen, random)
        return shown, chance

    def _nearer(self, table: Sequence[Phrase]) -> np.ndarray:
        """Whether embeddings of images (image, phrase) are nearer to a phrase than to most matched ones."""
        x = self._centred
        keys, matched = self.bank.comparison(table)
        pool, own = self.bank.centred(keys), self.bank.centred([p.key for p in table])
        at, phrases = np.divmod(np.arange(len(x) * len(table)), len(table))
        _, share = percentiles(x, at, phrases, own, pool, matched, self.max_memory)
        return (share >= self.threshold).reshape(len(x), len(table))


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


_NUMBERS = ("in_images", "predicted", "percentile")


class Grounding(NamedTuple):
    """Result of grounding: captions with counts of supported phrases, and one row per phrase."""

    captions: pd.DataFrame
    phrases: pd.DataFrame


class GroundingChecker:
    r"""Grounding: test each caption phrase against the voxel's top images and its weights.

    Two verifiers that err for different reasons are crossed, as the detectors of SENTINEL are:

    - images: k of the voxel's K best images show the phrase, more than random images would,
      :math:`P(\mathrm{Binomial}(K, p_0) \ge k) \le \alpha`;
    - weights: the predicted response :math:`w_v \cdot t_p` of the phrase's text embedding, moved across the modality
      gap, is at or over the percentile :math:`\theta` among random phrases of the same number of words.

    With ``tokens`` a third asks whether the phrase is where in the voxel's best images the voxel is driven
    (:class:`PlaceVerifier`).

    All yes is "supported", all no "unsupported", else "uncertain". For a phrase that has nothing to do with a voxel
    the first says yes with probability of at most alpha, the second with :math:`1 - \theta`.

    Parameters
    ----------
    coef : DataArray or array (feature, voxel), or encoder with ``to_linear()``
        Weights in the joint space of images and texts.
    evidence : DataFrame
        From :func:`neuroenc.captions.evidence`: ``voxel, rank, stimulus``.
    captions : mapping of stimulus id to captions, or Stimuli
        Human captions of images. Those of images in ``evidence`` are read; those of ``n_images`` random ones say what
        is common, and their phrases are what phrases are compared with.
    embed_text : callable
        ``embed_text(list of str) -> (n, feature)``, the text side of the encoder's backbone.
    bank : see :func:`neuroenc.retrieval.as_bank`, or BankImages, optional
        Image embeddings with ids. Needed for the mean of images, and for best images without captions, which are seen
        by the cosine of their embedding with the phrase.
    intercept : array (voxel,), optional
    text_direction : array (feature,), optional
        Mean of unit-norm texts; default of the random images' phrases.
    centre : bool
        Move texts across the modality gap. False where texts and images share one cloud.
    alpha, threshold : float
        False positives of the two verifiers: alpha and 1 - threshold.
    similar : float or None
        A phrase with another main noun counts as the same where the two are nearer than all but this share of random
        pairs are ("kid", "child"). None: only equal main nouns do.
    n_random, n_images : int
        Random phrases of each length, and random images.
    engine : str or callable
        As in :func:`find_phrases`: also a callable that finds phrases, such as ``phrases`` of a
        :class:`SyntacticDistanceParser`.
    tokens : DataArray (stimulus, channel, y, x) or (stimulus, token, feature), optional
        Embeddings of the places of best images, in the space of the weights, such as
        :func:`neuroenc.embedding.embed_windows` gives.
    features_normalised : bool
        Whether the encoder was fitted on unit-norm features; otherwise ``predicted`` counts texts at the mean norm of
        the bank.
    max_memory : str, int or None
    seed : int
        Of the random images and phrases.

    Raises
    ------
    DataError
        Best images without captions and embeddings, widths that differ, no phrases in the captions.
    ConfigError
        Illegal settings, or no mean of images.

    References
    ----------
    Peng et al. Mitigating object hallucinations via sentence-level early intervention (SENTINEL). ICCV 2025.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from neuroenc.captions import GroundingChecker
    >>> names = ["dog", "house", "pizza", "sign", "hand"]
    >>> told = {f"{n}{k}": [f"a {n}"] for n in names for k in range(20)}
    >>> best = pd.DataFrame({"voxel": 0, "rank": range(1, 6), "stimulus": [f"dog{k}" for k in range(5)]})
    >>> def embed_text(texts):
    ...     return np.array([[float(n in t) for n in names] for t in texts]) + 0.01
    >>> checker = GroundingChecker(np.eye(5)[:, :1], best, told, embed_text, centre=False, engine="rules")
    >>> found = checker.check(pd.DataFrame({"voxel": [0], "rank": [1], "caption": ["a dog in a house"]}))
    >>> found.phrases[["phrase", "in_images", "percentile", "verdict"]].values.tolist()
    [['dog', 1.0, 1.0, 'supported'], ['house', 0.0, 0.375, 'unsupported']]
    """

    def __init__(
        self,
        coef: Any,
        evidence: pd.DataFrame,
        captions: Any,
        embed_text: Callable[[list[str]], Any],
        *,
        bank: Any = None,
        intercept: Any = None,
        text_direction: Any = None,
        centre: bool = True,
        alpha: float = 0.05,
        threshold: float = 0.9,
        similar: float | None = 0.002,
        n_random: int = 500,
        n_images: int = 1000,
        engine: str | PhraseFinder = "auto",
        tokens: Any = None,
        features_normalised: bool = True,
        max_memory: str | int | None = None,
        seed: int = 0,
    ) -> None:
        check_columns(evidence, ("voxel", "stimulus"), "evidence")
        weights = as_weights(coef, intercept)
        self._weights = weights
        #: Names of the voxels.
        self.voxels = weights.coef["voxel"].values
        self._row = {v: k for k, v in enumerate(self.voxels.tolist())}
        self.seed = seed
        told = as_captions(captions)
        # A parser learns from the captions of all images, once; any other engine is handed on as it is.
        trained = engine == "syntactic"
        self.engine = cast(
            Any, phrase_engine(engine, [c for s in told.values() for c in s], seed) if trained else engine
        )
        best = [str(s) for s in dict.fromkeys(evidence["stimulus"])]
        usable = sorted(k for k, c in told.items() if c)
        rng = np.random.default_rng([seed, 0])
        random_ids = [usable[k] for k in np.sort(rng.permutation(len(usable))[: int(n_images)])]
        others = [b for b in best if told.get(b)]
        vectors = TextVectors(embed_text)
        drawing: dict[str, Any] = {"n_random": n_random, "similar": similar, "text_direction": text_direction}
        self.bank = PhraseBank(told, vectors, random_ids, others, self.engine, **drawing, seed=seed)
        seen = BankImages(None, 1.0, {}, [])
        if bank is not None:
            seen = bank if isinstance(bank, BankImages) else read_images(bank, best, int(n_images), seed, max_memory)
        if centre and seen.mean is None:
            raise ConfigError(
                "texts are moved to where images are, and the mean of images is not known. Next step: give bank, "
                "or centre=False."
            )
        shared: dict[str, Any] = {"threshold": threshold, "max_memory": max_memory}
        scale, moved = 1.0 if features_normalised else seen.norm, seen.mean if centre else None
        self.verifiers: dict[str, ImageVerifier | WeightVerifier | PlaceVerifier] = {
            "images": ImageVerifier(evidence, self.voxels.tolist(), self.bank, images=seen, alpha=alpha, **shared),
            "weights": WeightVerifier(weights, self.bank, image_direction=moved, scale=scale, **shared),
        }
        if tokens is not None:
            names, placed = self.voxels.tolist(), {"tokens": tokens, "threshold": threshold}
            self.verifiers["places"] = PlaceVerifier(weights, evidence, names, self.bank, **placed)
        #: Row of the voxel that answers for each voxel: itself, but in :meth:`shuffled`.
        self._answers = np.arange(len(self.voxels))
        self._known: dict[tuple[int, str, str], int] = {}
        # What chance supports is checked on the same captions, and parsing them takes as long as checking them.
        self._last: tuple[tuple[list[str], Any], list[list[Phrase]]] | None = None

    def __repr__(self) -> str:
        return f"GroundingChecker({len(self.voxels)} voxels, {', '.join(self.verifiers)}, {self.bank!r})"

    def shuffled(self, seed: int = 0) -> GroundingChecker:
        """A checker in which another voxel's images and weights answer for each voxel: what chance supports."""
        out = copy.copy(self)
        order = np.random.default_rng([self.seed, seed, 2]).permutation(len(self.voxels))
        out._answers = np.empty_like(order)
        out._answers[order] = self._answers[np.roll(order, 1)]
        out._known = {}
        return out

    def rows(self, voxels: Iterable[Any]) -> np.ndarray:
        """Positions of voxels among those of the weights."""
        listed = list(voxels)
        lost = [v for v in dict.fromkeys(listed) if v not in self._row]
        if lost:
            raise DataError(
                f"{len(lost)} voxels of the captions are not among the {len(self._row)} of the weights; the first is "
                f"{lost[0]!r}. Next step: give the weights from which the captions were made."
            )
        return np.array([self._row[v] for v in listed], dtype=np.int64)

    def verify(self, rows: np.ndarray, phrases: Sequence[Phrase]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Verdicts (k,) as positions in ``VERDICTS``, and the verifiers' numbers, of phrase k for voxel ``rows[k]``."""
        different: dict[tuple[str, str], Phrase] = {}
        for p in phrases:
            different.setdefault((p.key, p.head), p)
        table, number = list(different.values()), {key: k for k, key in enumerate(different)}
        which = np.array([number[p.key, p.head] for p in phrases], dtype=np.int64)
        # Columns that there are also where no phrase was found.
        names = [name for verifier in self.verifiers.values() for name in getattr(verifier, "numbers", ())]
        numbers: dict[str, np.ndarray] = {name: np.zeros(0) for name in names} if not table else {}
        votes = np.zeros(len(phrases), dtype=np.int64)
        if table:
            # Claims that are made several times are looked at once.
            pairs, inverse = np.unique(self._answers[rows] * len(table) + which, return_inverse=True)
            at, of = np.divmod(pairs, len(table))
            for verifier in self.verifiers.values():
                found = verifier.verify(at, of, table)
                votes += found.yes[inverse]
                numbers.update({name: values[inverse] for name, values in found.numbers.items()})
        verdict = np.where(votes == len(self.verifiers), 0, np.where(votes == 0, 2, 1))
        return verdict, numbers

    def verdicts(self, rows: Sequence[int], phrases: Sequence[Phrase]) -> list[int]:
        """As :meth:`verify`, remembered: what a decoder asks at every step."""
        keys = [(int(r), p.key, p.head) for r, p in zip(rows, phrases, strict=True)]
        new = [k for k, key in enumerate(keys) if key not in self._known]
        if new:
            found, _ = self.verify(np.array([rows[k] for k in new], dtype=np.int64), [phrases[k] for k in new])
            self._known.update({keys[k]: int(v) for k, v in zip(new, found, strict=True)})
        return [self._known[key] for key in keys]

    def find(self, texts: Sequence[str], engine: Any = None) -> list[list[Phrase]]:
        """Phrases of each text, as this checker finds them; those of the last texts are remembered."""
        asked = (list(texts), self.engine if engine is None else engine)
        if self._last is None or self._last[0] != asked:
            self._last = (asked, phrases_of(*asked))
        return self._last[1]

    def check(self, captions: pd.DataFrame) -> Grounding:
        """Verdicts on all phrases of a table of captions.

        Parameters
        ----------
        captions : DataFrame
            From a decoder: ``voxel, rank, caption`` and voxel coordinates.

        Returns
        -------
        Grounding
            ``captions``: the table with ``n_phrases, n_supported, n_unsupported`` (the rest are uncertain).
            ``phrases``: ``voxel, rank, phrase, start, end, in_images`` (share of the best images that show it),
            ``predicted, percentile, verdict, in_random_images`` (chance of ``in_images``)``,
            place_r, place_percentile`` (with ``tokens``) and voxel coordinates.
        """
        check_columns(captions, ("voxel", "rank", "caption"), "captions")
        several = self.find(captions["caption"].tolist())
        at = np.repeat(np.arange(len(captions)), [len(s) for s in several])
        phrases = [p for s in several for p in s]
        rows = self.rows(captions["voxel"].tolist())
        verdict, numbers = self.verify(rows[at], phrases)
        frame = pd.DataFrame(
            {
                "voxel": captions["voxel"].to_numpy()[at],
                "rank": captions["rank"].to_numpy()[at],
                "phrase": np.array([p.text for p in phrases], dtype=object),
                "start": np.array([p.start for p in phrases], dtype=np.int64),
                "end": np.array([p.end for p in phrases], dtype=np.int64),
                **{name: numbers.get(name, np.full(len(at), np.nan)) for name in _NUMBERS},
                "verdict": np.array(VERDICTS, dtype=object)[verdict],
                **{name: v for name, v in numbers.items() if name not in _NUMBERS},
            }
        )
        labels = {c: captions[c].to_numpy()[at] for c in VOXEL_LABELS if c in captions}
        if not labels:
            labels = {str(c): v.to_numpy() for c, v in voxel_labels(self._weights.coef, rows[at]).items()}
        counted = [np.bincount(at[verdict == v], minlength=len(captions)) for v in range(3)]
        told = captions.assign(n_phrases=sum(counted), n_supported=counted[0], n_unsupported=counted[2])
        return Grounding(told, frame.assign(**labels))
