"""Keyword decoder: phrases that are informative for a voxel, put into a sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import sparse, special

from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import at_least, check_fraction, check_whole
from neuroenc._core.errors import DataError
from neuroenc._core.memory import parse_memory
from neuroenc.captions.decoding._retrieval import _frame, _predicted, caption_vectors, weights_of
from neuroenc.captions.text._phrases import Phrase, PhraseFinder, phrases_of
from neuroenc.captions.text._vectors import directions_of, embed, prompt
from neuroenc.retrieval import DenseIndex

#: Candidates of a voxel among which keywords are chosen: those nearest to its direction.
_CANDIDATES = 64


class KeywordDecoder:
    r"""Keyword decoder: phrases that are informative for a voxel, put into a sentence (LaVCa without language models).

    Candidates are the noun phrases in captions of the N images nearest to the voxel's projected direction. An image is
    known by the mean vector of its captions. A phrase is informative where more of these images hold it, or any phrase
    of its main noun, than random images would,

    .. math:: P(\mathrm{Binomial}(N, p_0) \ge k) \le \alpha,

    with its share :math:`p_0` of all images, of which one more is taken to hold it and one not. Keywords are then
    chosen by matching pursuit: each is the phrase whose centred text vector is nearest to what the ones before it leave
    of the direction, until the cosine of the direction and the keywords' span grows by less than ``novelty`` or there
    are ``keywords`` of them. A second phrase of a concept adds little, and one with the same main noun is left out, so
    that a concept is not said twice. Where no phrase is informative the nearest is taken, for the checks to judge.

    Parameters
    ----------
    captions : sequence of str, length n
    embeddings : array or DataArray (n, d)
        Text embeddings of the captions in the space of the image bank; any norm.
    ids : sequence of str, length n, optional
        Image of each caption; default: each caption is of an image of its own.
    embed_text : callable
        ``embed_text(list of str) -> (m, d)``, for phrases and for predicted responses.
    keywords : int
        Phrases of a caption, at most.
    n_images : int
        Nearest images N of a voxel.
    alpha : float
        Level of the binomial test.
    novelty : float
        Least gain of the cosine that another keyword must bring.
    centre : bool
        As in :class:`RetrievalDecoder`; phrases are centred on their mean in the captions.
    engine : str or callable
        As in :func:`find_phrases`.
    least : int
        Images that hold a phrase, at least.
    max_memory : str, int or None

    Raises
    ------
    DataError
        Numbers do not agree, or no phrase is held by ``least`` images.

    References
    ----------
    Matsuyama, Nishimoto & Takagi. LaVCa: LLM-assisted visual cortex captioning. ICLR 2026.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.captions import project
    >>> names = ["dog", "house", "sign", "pizza", "hand", "bus", "kite", "cup", "tree", "bed"]
    >>> texts = [f"a {a} by a {b}" for a in names for b in names if a != b]
    >>> def embed_text(texts):
    ...     return np.array([[float(n in t) for n in names] for t in texts])
    >>> decoder = KeywordDecoder(texts, embed_text(texts), embed_text=embed_text, engine="rules", n_images=2)
    >>> likes = np.eye(10)[:, :1] + np.eye(10)[:, 1:2]
    >>> frame = decoder.decode(project(likes, embed_text(texts), progress=False), top=1)
    >>> frame[["voxel", "rank", "caption"]].values.tolist()
    [[0, 1, 'a dog and a house']]
    """

    def __init__(
        self,
        captions: Sequence[str],
        embeddings: Any,
        ids: Sequence[str] | None = None,
        *,
        embed_text: Callable[[list[str]], Any],
        keywords: int = 5,
        n_images: int = 64,
        alpha: float = 0.05,
        novelty: float = 0.02,
        centre: bool = True,
        engine: str | PhraseFinder = "auto",
        least: int = 2,
        max_memory: str | int | None = None,
    ) -> None:
        texts, unit, names = caption_vectors(captions, embeddings, ids)
        self.keywords, self.n_images = check_whole("keywords", keywords), check_whole("n_images", n_images)
        self.alpha, self.novelty = check_fraction("alpha", alpha), at_least("novelty", novelty)
        self.centre = bool(centre)
        self._max_memory = max_memory
        owner, self.ids = pd.factorize(np.array(names, dtype=object))
        self.embed_text, self.text_direction = embed_text, unit.mean(axis=0) if self.centre else None
        rows = np.zeros((len(self.ids), unit.shape[1]))
        np.add.at(rows, owner, unit)
        self._index = DenseIndex(self._around(unit_rows(rows)).astype(np.float32))
        self._phrases(phrases_of(texts, engine), owner, check_whole("least", least), unit.shape[1])

    def _around(self, unit: np.ndarray) -> np.ndarray:
        """Unit vectors around their mean, where they are centred."""
        return unit_rows(unit - unit.mean(axis=0)) if self.centre else unit

    def _phrases(self, told: list[list[Phrase]], owner: np.ndarray, least: int, width: int) -> None:
        number: dict[str, int] = {}
        heads: list[str] = []
        rows, columns = [], []
        for k, several in enumerate(told):
            for key, head in {p.key: p.head for p in several}.items():
                rows.append(k)
                columns.append(number.setdefault(key, len(number)))
                heads += [head] * (len(number) - len(heads))
        #: Which images hold which phrases.
        held = sparse.csr_matrix((np.ones(len(rows)), (owner[rows], columns)), shape=(len(self.ids), len(number)))
        held.data[:] = 1.0
        n_held = np.asarray(held.sum(axis=0)).ravel()
        kept = np.flatnonzero(n_held >= least)
        if not len(kept):
            raise DataError(
                f"no phrase stands in captions of {least} images: {len(number)} phrases were found in captions of "
                f"{len(self.ids)} images. Next step: a larger caption bank, or least=1."
            )
        keys = list(number)
        self.phrases = [prompt("{}", keys[k]) for k in kept]
        self._heads = pd.factorize(np.array(heads, dtype=object)[kept])[0]
        self._held = held[:, kept].tocsr()
        # "a red letter" and "a blue letter" are both evidence of letters.
        of_heads = sparse.csr_matrix((np.ones(len(kept)), (np.arange(len(kept)), self._heads)))
        self._nouns = (self._held @ of_heads).tocsr()
        self._nouns.data[:] = 1.0
        self._base, self._noun_base = (
            (np.asarray(m.sum(axis=0)).ravel() + 1) / (len(self.ids) + 2) for m in (self._held, self._nouns)
        )
        text = embed(self.embed_text, self.phrases, width)
        # Phrases count as often as images hold them, as images and captions do.
        self._directions = unit_rows(text - n_held[kept] @ text / n_held[kept].sum()) if self.centre else text

    def __repr__(self) -> str:
        return f"KeywordDecoder({len(self.phrases)} phrases of {len(self.ids)} images, keywords={self.keywords})"

    def decode(self, projection: xr.Dataset, top: int = 5, *, coef: Any = None, intercept: Any = None) -> pd.DataFrame:
        """Captions of each voxel, of its most informative phrases.

        Captions of further ranks hold the keywords that the ones before them left. Voxels without a projection (NaN)
        get no row.

        Parameters
        ----------
        projection : Dataset
        top : int
            At most so many captions a voxel: fewer where the informative phrases are used up.
        coef, intercept : optional
            As in :class:`Decoder`.

        Returns
        -------
        DataFrame
            See :class:`Decoder`; ``score`` is the cosine of the direction and the keywords' span;
            ``caption_id`` names up to eight of the nearest images that hold a keyword.

        Raises
        ------
        DataError
            Widths differ, or ``coef`` has other voxels than the projection.
        """
        check_whole("top", top)
        target, live, _ = directions_of(projection, centre=self.centre)
        width = self._directions.shape[1]
        if target.shape[1] != width:
            raise DataError(
                f"projected embeddings have width {target.shape[1]}, captions {width}; they must share one space. "
                "Next step: embed the captions with the text side of the encoder's backbone."
            )
        weights_of(projection, coef, intercept)
        rows = np.flatnonzero(live)
        step = int(parse_memory(self._max_memory) // (32 * (width * _CANDIDATES + len(self.phrases))))
        step = min(max(1, step), 256)
        told: list[tuple[int, int, str, float, str]] = []
        for a in range(0, len(rows), step):
            told += self._block(rows[a : a + step], target[rows[a : a + step]], int(top))
        at = np.array([t[0] for t in told], dtype=np.int64)
        texts = [t[2] for t in told]
        predicted = _predicted(self, projection, at, texts, coef, intercept)
        return _frame(
            projection, at, [t[1] for t in told], texts, [t[3] for t in told], [t[4] for t in told], predicted
        )

    def _block(self, rows: np.ndarray, target: np.ndarray, top: int) -> list[Any]:
        """Row, rank, caption, score and ids of each caption of some voxels."""
        n = min(self.n_images, len(self.ids))
        nearest = self._index.search(target, n, max_memory=self._max_memory)[1]
        candidate, there = self._candidates(target, nearest, n)
        vectors, used = self._directions[candidate], ~there
        ranked = [self._greedy(target, vectors, self._heads[candidate], used) for _ in range(top)]
        found: list[Any] = []
        for v, row in enumerate(rows):
            held = self._held[nearest[v]]
            for rank, (chosen, score) in enumerate(ranked, 1):
                picked = candidate[v][chosen[v]]
                if len(picked):
                    holding = self.ids[nearest[v][np.unique(held[:, picked].nonzero()[0])][:8]]
                    text = _sentence([self.phrases[p] for p in picked])
                    found.append((row, rank, text, float(score[v]), ";".join(holding)))
        return found

    def _candidates(self, target: np.ndarray, nearest: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Informative phrases (voxel, candidate), nearest first, and which places are taken."""
        of = np.repeat(np.arange(len(target)), n)
        picks = sparse.csr_matrix((np.ones(of.size), (of, nearest.ravel())), shape=(len(target), len(self.ids)))
        counts = (picks @ self._held).tocoo()
        voxel, phrase = counts.row, counts.col
        # Rounded: what is equal but for the order of sums stays in the order of the phrases.
        likeness = np.round(target @ self._directions.T, 9)[voxel, phrase]
        noun = self._heads[phrase]
        with_noun = np.asarray((picks @ self._nouns).tocsr()[voxel, noun]).ravel()
        passed = special.bdtrc(counts.data - 1, n, self._base[phrase]) <= self.alpha
        passed |= special.bdtrc(with_noun - 1, n, self._noun_base[noun]) <= self.alpha
        order = np.lexsort((phrase, -likeness, ~passed, voxel))
        place = np.arange(len(order)) - np.searchsorted(voxel[order], voxel[order])
        # One phrase for a voxel of which nothing is known.
        kept = order[(passed[order] & (place < _CANDIDATES)) | (place == 0)]
        place = np.arange(len(kept)) - np.searchsorted(voxel[kept], voxel[kept])
        found, there = np.zeros((len(target), _CANDIDATES), np.int64), np.zeros((len(target), _CANDIDATES), bool)
        found[voxel[kept], place], there[voxel[kept], place] = phrase[kept], True
        return found, there

    def _greedy(
        self, target: np.ndarray, vectors: np.ndarray, heads: np.ndarray, used: np.ndarray
    ) -> tuple[list[list[int]], np.ndarray]:
        """Places of each voxel's keywords among its candidates, and the cosine of its direction and their span.

        Marks them in ``used``.
        """
        every = np.arange(len(target))
        said, left = used.copy(), target.copy()
        # Of each candidate: its product with what is left of the direction, and how much of it no keyword has said.
        along, fresh = _products(vectors, left), (vectors**2).sum(axis=2)
        chosen: list[list[int]] = [[] for _ in target]
        basis: list[np.ndarray] = []
        cosine, going = np.zeros(len(target)), np.ones(len(target), dtype=bool)
        for number in range(self.keywords):
            gain = np.where(said | (fresh < 1e-6), -np.inf, along / np.sqrt(np.maximum(fresh, 1e-6)))
            best = np.round(gain, 9).argmax(axis=1)
            step = gain[every, best]
            reached = np.sqrt(cosine**2 + np.maximum(step, 0) ** 2)
            going &= (step > 0) & (reached >= cosine + self.novelty) if number else step > -np.inf
            if not going.any():
                break
            for v in np.flatnonzero(going):
                chosen[v].append(int(best[v]))
            used[every[going], best[going]] = True
            said |= going[:, None] & (heads == heads[every, best][:, None])
            cosine = np.where(going, reached, cosine)
            new = vectors[every, best]
            for one in basis:
                new = new - (new * one).sum(axis=1)[:, None] * one
            new = np.where(going[:, None], unit_rows(new), 0)
            basis.append(new)
            part, shared = (left * new).sum(axis=1)[:, None], _products(vectors, new)
            along, fresh, left = along - part * shared, fresh - shared**2, left - part * new
        return chosen, cosine


def _products(vectors: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Inner products (voxel, candidate) of candidates' vectors with one vector a voxel, voxel by voxel."""
    return np.matmul(vectors, one[:, :, None])[:, :, 0]


def _sentence(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
