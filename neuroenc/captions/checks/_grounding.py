"""Grounding: test each caption phrase against the voxel's top images and its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd

from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.schema import VERDICTS
from neuroenc._core.tables import check_columns
from neuroenc.captions._linear import VOXEL_LABELS, as_weights, voxel_labels
from neuroenc.captions.checks._grounding_bank import (
    BankImages,
    PhraseBank,
    TextVectors,
    as_captions,
    read_images,
)
from neuroenc.captions.checks._verifiers import (
    EFFECT,
    LEAST_IMAGES,
    ImageVerifier,
    PlaceVerifier,
    ResponseVerifier,
    WeightVerifier,
    nearer,
)
from neuroenc.captions.text._phrases import Phrase, PhraseFinder, phrase_engine, phrases_of

_NUMBERS = ("in_images", "predicted", "percentile")


def _different(phrases: Sequence[Phrase]) -> tuple[list[Phrase], np.ndarray]:
    """Phrases that differ, and the place of each among them."""
    different: dict[tuple[str, str], Phrase] = {}
    for p in phrases:
        different.setdefault((p.key, p.head), p)
    number = {key: k for k, key in enumerate(different)}
    return list(different.values()), np.array([number[p.key, p.head] for p in phrases], dtype=np.int64)


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

    With ``judge="responses"`` the verdict is that of :class:`ResponseVerifier` alone, and the others stand beside it:
    "supported" where images of the bank that show the phrase drive the voxel by ``effect`` standard deviations more
    than the others do, "unsupported" where they do not, "uncertain" where fewer than five images show it. In simulated
    cortex it tells true phrases from false ones better than both together.

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
    judge : {"crossed", "responses"}
        What verdicts rest on. "responses" needs ``bank``.
    effect : float
        Least standardised difference of predicted responses.
    apart : bool
        Keep the images by which :meth:`effects` chooses phrases (half of the random ones) from those by which
        "responses" judges them. False: all images for both.
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
        judge: str = "crossed",
        effect: float = EFFECT,
        apart: bool = False,
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
        self.judge = one_of("judge", judge, ("crossed", "responses"))
        if judge == "responses" and bank is None:
            raise ConfigError('judge="responses" predicts responses to images of a bank. Next step: give bank.')
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
        seen = BankImages(None, 1.0, {}, [])
        if bank is not None:
            seen = bank if isinstance(bank, BankImages) else read_images(bank, best, int(n_images), seed, max_memory)
        asked = [n for n in seen.random if n in seen.vectors] if judge == "responses" else []
        # Images with captions where there are some; all are looked at by their embeddings where there are none.
        asked = [n for n in asked if told.get(n)] or asked
        others = [b for b in dict.fromkeys([*best, *asked]) if told.get(b)]
        vectors = TextVectors(embed_text)
        drawing: dict[str, Any] = {"n_random": n_random, "similar": similar, "text_direction": text_direction}
        self.bank = PhraseBank(told, vectors, random_ids, others, self.engine, **drawing, seed=seed)
        if centre and seen.mean is None:
            raise ConfigError(
                "texts are moved to where images are, and the mean of images is not known. Next step: give bank, "
                "or centre=False."
            )
        shared: dict[str, Any] = {"threshold": threshold, "max_memory": max_memory}
        scale, moved = 1.0 if features_normalised else seen.norm, seen.mean if centre else None
        self.verifiers: dict[str, ImageVerifier | WeightVerifier | PlaceVerifier | ResponseVerifier] = {
            "images": ImageVerifier(evidence, self.voxels.tolist(), self.bank, images=seen, alpha=alpha, **shared),
            "weights": WeightVerifier(weights, self.bank, image_direction=moved, scale=scale, **shared),
        }
        if tokens is not None:
            names, placed = self.voxels.tolist(), {"tokens": tokens, "threshold": threshold}
            self.verifiers["places"] = PlaceVerifier(weights, evidence, names, self.bank, **placed)
        self.chooser: ResponseVerifier | None = None
        if judge == "responses":

            def shown(raw: np.ndarray, table: Sequence[Phrase]) -> np.ndarray:
                if seen.mean is None:
                    return np.zeros((len(raw), len(table)), dtype=bool)
                return nearer(unit_rows(unit_rows(raw) - seen.mean), table, self.bank, threshold, max_memory)

            options: dict[str, Any] = {"effect": effect, "nearer": shown, "max_memory": max_memory}
            options["normalised"] = features_normalised
            first, rest = (asked[::2], asked[1::2]) if apart else (asked, asked)
            if min(len(first), len(rest)) < 2 * LEAST_IMAGES:
                least = (2 if apart else 1) * 2 * LEAST_IMAGES
                raise DataError(
                    f"{len(asked)} images of the bank are at hand to predict responses to; at least {least} are "
                    'needed. Next step: a larger bank, or judge="crossed".'
                )
            self.chooser = ResponseVerifier(weights, self.bank, seen, first, **options)
            self.verifiers["responses"] = (
                ResponseVerifier(weights, self.bank, seen, rest, **options) if apart else self.chooser
            )
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
        table, which = _different(phrases)
        # Columns that there are also where no phrase was found.
        names = [name for verifier in self.verifiers.values() for name in getattr(verifier, "numbers", ())]
        numbers: dict[str, np.ndarray] = {name: np.zeros(0) for name in names} if not table else {}
        votes, votes_of = np.zeros(len(phrases), dtype=np.int64), dict[str, np.ndarray]()
        if table:
            # Claims that are made several times are looked at once.
            pairs, inverse = np.unique(self._answers[rows] * len(table) + which, return_inverse=True)
            at, of = np.divmod(pairs, len(table))
            for name, verifier in self.verifiers.items():
                found = verifier.verify(at, of, table)
                votes_of[name] = found.yes[inverse]
                votes += votes_of[name]
                numbers.update({name: values[inverse] for name, values in found.numbers.items()})
        if self.judge == "responses":
            own = numbers["effect"]
            verdict = np.where(np.isnan(own), 1, np.where(votes_of["responses"], 0, 2)) if table else votes
        else:
            verdict = np.where(votes == len(self.verifiers), 0, np.where(votes == 0, 2, 1))
        return verdict, numbers

    def crossed(self) -> GroundingChecker:
        """A checker of the same phrases whose verdicts are those of best images and weights together."""
        out = copy.copy(self)
        out.judge, out._known = "crossed", {}
        out.verifiers = {name: v for name, v in self.verifiers.items() if name != "responses"}
        return out

    def effects(self, rows: np.ndarray, phrases: Sequence[Phrase]) -> np.ndarray:
        """Standardised difference (k,) that phrase k makes to the predicted response of voxel ``rows[k]``.

        By the images that phrases are chosen by; NaN where too few of them show the phrase.

        Raises
        ------
        ConfigError
            The checker was made without ``judge="responses"``.
        """
        if self.chooser is None:
            raise ConfigError('effects are of predicted responses. Next step: GroundingChecker(judge="responses").')
        table, which = _different(phrases)
        found: np.ndarray = self.chooser.effects(self._answers[rows], which, table)[0] if table else np.zeros(0)
        return found

    def predicted(self, voxels: Iterable[Any], texts: Sequence[str]) -> np.ndarray:
        """Predicted response (k,) of voxel ``voxels[k]`` to ``texts[k]``, moved among the images."""
        verifier = self.verifiers["weights"]
        assert isinstance(verifier, WeightVerifier)
        rows, listed = self.rows(voxels), list(dict.fromkeys(texts))
        at = {text: k for k, text in enumerate(listed)}
        vectors = verifier.vectors(listed)[[at[t] for t in texts]]
        own: np.ndarray = np.einsum("vd,vd->v", verifier.weights[rows], vectors)
        return verifier.scale * own + verifier.intercept[rows]

    def reweighted(self, coef: Any) -> GroundingChecker:
        """A checker whose :meth:`effects` are those of other weights of the same voxels, such as shuffled ones."""
        if self.chooser is None:
            raise ConfigError('effects are of predicted responses. Next step: GroundingChecker(judge="responses").')
        out, weights = copy.copy(self), as_weights(coef)
        if not np.array_equal(weights.coef["voxel"].values, self.voxels):
            raise DataError("the other weights are of other voxels. Next step: the same voxels, in the same order.")
        out.chooser = copy.copy(self.chooser)
        out.chooser.weights = weights.matrix()
        return out

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
