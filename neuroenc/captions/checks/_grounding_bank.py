"""Phrases of a bank's captions as the reference of grounding, and hallucination rates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from neuroenc import stats
from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import check_fraction, check_whole
from neuroenc._core.errors import DataError
from neuroenc._core.memory import parse_memory
from neuroenc._core.tables import check_columns
from neuroenc.captions.projection._stream import read_bank
from neuroenc.captions.text._phrases import Phrase, phrases_of
from neuroenc.captions.text._vectors import embed
from neuroenc.retrieval import Chunk, as_bank


class Verification(NamedTuple):
    """What a verifier says of k claims: ``yes`` (k,) bool, and the numbers behind it (k,) by name.

    Claim k is the phrase ``table[phrases[k]]`` of the voxel ``voxels[k]`` (position among the checker's voxels).
    """

    yes: np.ndarray
    numbers: dict[str, np.ndarray]


def as_captions(captions: Any) -> dict[str, list[str]]:
    """Captions by stimulus id, from a mapping, Stimuli, or a sequence of captions (ids "0", "1", ...)."""
    if hasattr(captions, "ids") and hasattr(captions, "captions"):
        if captions.captions is None:
            raise DataError("these stimuli have no captions. Next step: give a mapping of ids to captions.")
        captions = dict(zip([str(i) for i in captions.ids], captions.captions, strict=True))
    if not isinstance(captions, Mapping):
        captions = {str(k): c for k, c in enumerate(captions)}
    found = {str(k): [c] if isinstance(c, str) else [str(x) for x in c] for k, c in captions.items()}
    if not any(found.values()):
        raise DataError("there are 0 captions of images; phrases are compared with those that captions hold.")
    return found


class TextVectors:
    """Unit-norm embeddings of texts, each embedded once."""

    def __init__(self, embed_text: Callable[[list[str]], Any]) -> None:
        self.embed_text = embed_text
        self._place: dict[str, int] = {}
        self._rows: list[np.ndarray] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (n, feature) in float64."""
        new = [t for t in dict.fromkeys(texts) if t not in self._place]
        if new:
            self._place |= {text: len(self._rows) + k for k, text in enumerate(new)}
            self._rows += list(embed(self.embed_text, new))
        return np.stack([self._rows[self._place[t]] for t in texts])


class PhraseBank:
    """Phrases of the captions of images, and for each phrase others to compare it with.

    Parameters
    ----------
    captions : mapping of id to captions
    random_ids, other_ids : sequence of str
        Images drawn at random, from whose captions comparison phrases come, and others.
    engine
        As in :func:`find_phrases`.
    n_random : int
        Comparison phrases of each length, at most.
    """

    def __init__(
        self,
        captions: Mapping[str, Sequence[str]],
        vectors: TextVectors,
        random_ids: Sequence[str],
        other_ids: Sequence[str],
        engine: Any,
        *,
        n_random: int,
        similar: float | None,
        text_direction: Any,
        seed: int,
    ) -> None:
        self.engine, self.seed, self.vectors = engine, seed, vectors
        self.ids = list(dict.fromkeys([*random_ids, *other_ids]))
        self.place = {name: k for k, name in enumerate(self.ids)}
        self.n_images = len(random_ids)
        texts = [(k, c) for k, name in enumerate(self.ids) for c in captions[name]]
        number: dict[tuple[str, str], int] = {}
        rows, columns = [], []
        for (image, _), several in zip(texts, phrases_of([c for _, c in texts], engine), strict=True):
            for phrase in several:
                rows.append(image)
                columns.append(number.setdefault((phrase.key, phrase.head), len(number)))
        if not number:
            raise DataError(f"no phrase was found in {len(texts)} captions of images (engine {engine!r}).")
        self.keys = [key for key, _ in number]
        self.heads = np.array([head for _, head in number], dtype=object)
        shape = (len(self.ids), len(number))
        #: Which phrases the captions of an image hold.
        self.held = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
        self.held.data[:] = 1.0
        common = np.asarray((self.held[: self.n_images] > 0).sum(axis=0)).ravel() > 0
        self._draw(np.flatnonzero(common), int(n_random))
        everywhere = self.vectors([self.keys[k] for k in np.flatnonzero(common)])
        direction = everywhere.mean(axis=0) if text_direction is None else text_direction
        self.text_direction = np.asarray(direction, dtype=np.float64)
        self.cut = np.inf if similar is None else self._similar(np.flatnonzero(common), similar)

    def __repr__(self) -> str:
        return f"PhraseBank({len(self.keys)} phrases of {len(self.ids)} images, engine={self.engine!r})"

    def _draw(self, usable: np.ndarray, n: int) -> None:
        """Comparison phrases of each number of words."""
        words = np.array([len(self.keys[k].split()) for k in usable])
        self.drawn: dict[int, np.ndarray] = {}
        for length in np.unique(words):
            inside = usable[words == length]
            # Of the length alone: the draw does not depend on what is asked, nor on the order of questions.
            inside = inside[np.argsort([self.keys[k] for k in inside], kind="stable")]
            order = np.random.default_rng([self.seed, int(length)]).permutation(len(inside))[:n]
            self.drawn[int(length)] = np.sort(inside[order])

    def matched(self, phrase: Phrase, least: int = 20) -> np.ndarray:
        """Comparison phrases of the same number of words and another main noun.

        Where there are fewer than ``least`` of that length, those of the nearest lengths join them.
        """
        n = phrase.n_words
        found = np.zeros(0, dtype=np.int64)
        for length in sorted(self.drawn, key=lambda k: (abs(k - n), k)):
            inside = self.drawn[length]
            found = np.concatenate([found, inside[self.heads[inside] != phrase.head]])
            if len(found) >= least:
                break
        if not len(found):
            raise DataError(
                f"no phrase with another main noun than {phrase.text!r} was found in the captions of images. "
                "Next step: give captions of more images."
            )
        return found

    def comparison(self, table: Sequence[Phrase]) -> tuple[list[str], list[np.ndarray]]:
        """Keys of all phrases that the phrases of ``table`` are compared with, and the places among them of each."""
        matched = [self.matched(p) for p in table]
        used = np.unique(np.concatenate(matched)) if matched else np.zeros(0, np.int64)
        return [self.keys[k] for k in used], [np.searchsorted(used, m) for m in matched]

    def centred(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of texts without what all texts share."""
        return unit_rows(self.vectors(texts) - self.text_direction)

    @cached_property
    def _own(self) -> np.ndarray:
        """Centred vectors of all phrases of the images' captions, made when they are first asked for."""
        return self.centred(self.keys)

    def _similar(self, usable: np.ndarray, similar: float) -> float:
        """Cosine over which a share of the pairs of phrases with different main nouns lie."""
        share = check_fraction("similar", similar, also=", or None")
        rng = np.random.default_rng([self.seed, 0, 1])
        some = np.sort(rng.permutation(usable)[:800])
        vectors = self.centred([self.keys[k] for k in some])
        different = self.heads[some][:, None] != self.heads[some][None]
        cosines = (vectors @ vectors.T)[different]
        return float(np.quantile(cosines, 1 - share)) if cosines.size else np.inf

    def shown(self, phrases: Sequence[Phrase], max_memory: str | int | None = None) -> np.ndarray:
        """Whether the captions of each image name what each phrase names, bool (image, phrase).

        They do where they hold its main noun, or a phrase whose text embedding is as near as ``similar`` says.
        """
        out = np.zeros((len(self.ids), len(phrases)), dtype=bool)
        own = self._own if np.isfinite(self.cut) else None
        step = max(1, int(parse_memory(max_memory) // (16 * (len(self.keys) + len(self.ids)))))
        for a in range(0, len(phrases), step):
            part = phrases[a : a + step]
            same = self.heads[:, None] == np.array([p.head for p in part], dtype=object)[None]
            if own is not None:
                same |= own @ self.centred([p.key for p in part]).T > self.cut
            out[:, a : a + step] = (self.held @ sparse.csr_matrix(same.astype(np.float32))).toarray() > 0
        return out

    def named(self, phrases: Sequence[Phrase]) -> sparse.csr_matrix:
        """How many phrases of each image's captions hold all words of each phrase, (image, phrase)."""
        words = {w: k for k, w in enumerate(dict.fromkeys(w for key in self.keys for w in key.split()))}

        def incidence(keys: Sequence[str]) -> tuple[sparse.csr_matrix, np.ndarray]:
            sets = [set(key.split()) for key in keys]
            at = [(k, words[w]) for k, several in enumerate(sets) for w in several if w in words]
            rows, columns = (np.array([x[j] for x in at], dtype=np.int64) for j in range(2))
            shape = (len(keys), len(words))
            found = sparse.csr_matrix((np.ones(len(at), np.float32), (rows, columns)), shape=shape)
            return found, np.array([len(several) for several in sets])

        (ours, _), (theirs, n_words) = incidence(self.keys), incidence([p.key for p in phrases])
        shared = (ours @ theirs.T).tocoo()
        whole = shared.data == n_words[shared.col]
        shape = (len(self.keys), len(phrases))
        holds = sparse.csr_matrix((shared.data[whole] * 0 + 1, (shared.row[whole], shared.col[whole])), shape=shape)
        return (self.held @ holds).tocsr()


class BankImages(NamedTuple):
    """What phrases are compared with in a bank of images.

    Attributes
    ----------
    mean : ndarray (feature,) or None
        Mean unit-norm embedding, where it is known.
    norm : float
        Mean norm.
    vectors : dict of id to ndarray (feature,)
        Embeddings of random images, and of others that were asked for.
    random : list of str
        Ids of the random images.
    """

    mean: Any
    norm: float
    vectors: dict[str, np.ndarray]
    random: list[str]


class ImageSums:
    """`BankImages` of a bank of ``n`` images that is handed in chunk by chunk."""

    # As a part of a pass over a bank it counts for one, and needs no memory but its chunks'.
    n, cost = 1, 0
    width: int | None = None

    def __init__(self, n: int | None, n_images: int, seed: int, wanted: Iterable[str] = ()) -> None:
        if n is None:
            raise DataError(
                "random images are drawn from the bank, and a stream has no length. Next step: pass a list."
            )
        self._n, self._wanted = n, set(wanted)
        self._drawn = np.sort(np.random.default_rng([seed, 1]).permutation(n)[:n_images])
        self._total: Any = 0.0
        self._norms = 0.0
        self._found: dict[str, np.ndarray] = {}
        self._random: list[str] = []

    def open(self, a: int, b: int, budget: int, width: int) -> int:
        """Largest chunk (rows) that is welcome."""
        return max(1, min(budget // (64 * width), 65536))

    def close(self) -> None:
        """Nothing is to be put away."""

    def update(self, chunk: Chunk) -> None:
        """Take rows in."""
        x = np.asarray(chunk.rows, dtype=np.float64)
        self._total = self._total + unit_rows(x).sum(axis=0)
        self._norms += float(np.linalg.norm(x, axis=1).sum())
        low, high = np.searchsorted(self._drawn, [chunk.start, chunk.start + len(x)])
        drawn = self._drawn[low:high]
        names = [str(name) for name in chunk.names(drawn)]
        self._random += names
        self._found.update(zip(names, x[drawn - chunk.start].copy(), strict=True))
        if self._wanted:
            for k, name in enumerate(chunk.names(np.arange(chunk.start, chunk.start + len(x)))):
                if str(name) in self._wanted:
                    self._found[str(name)] = x[k].copy()

    def result(self) -> BankImages:
        """Means over the rows seen."""
        return BankImages(self._total / self._n, self._norms / self._n, self._found, self._random)


def read_images(bank: Any, wanted: Iterable[str], n_images: int, seed: int, max_memory: str | int | None) -> BankImages:
    """Mean direction and mean norm of a bank, embeddings of wanted and of random images, in one pass."""
    images = as_bank(bank)
    found = ImageSums(images.n, n_images, seed, wanted)
    read_bank(images, [found], max_memory)
    return found.result()


def _ratios(found: np.ndarray, n: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """``sum(found) / sum(n)`` over voxels drawn with replacement, once a draw."""
    out = np.empty(draws)
    each = max(1, 4_000_000 // max(1, len(n)))
    for a in range(0, draws, each):
        counts = rng.multinomial(len(n), np.full(len(n), 1 / len(n)), size=min(each, draws - a))
        out[a : a + each] = (counts @ found) / (counts @ n)
    return out


def hallucination_rate(
    phrases: pd.DataFrame,
    by: str | None = "roi",
    *,
    chance: pd.DataFrame | None = None,
    max_rank: int | None = None,
    n_bootstraps: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Hallucination rate: share of ungrounded phrases per region, with intervals over voxels.

    .. math:: \mathrm{rate} = \frac{\sum_v u_v}{\sum_v n_v}

    with :math:`u_v` of the :math:`n_v` phrases of voxel v unsupported. Voxels are resampled, not phrases: those of a
    voxel stand and fall together. The intervals are Wilson's with the number of independent units that the resamples
    tell (`neuroenc.stats.sample_interval`), so that a rate of 0 of few phrases is not a certain one. In simulations of
    80 voxels they held a rate of 40 % in 95 % of cases, and one of 4 %, which stands on 4 voxels, in 93 %.

    Parameters
    ----------
    phrases : DataFrame
        From :meth:`GroundingChecker.check`: ``voxel, rank, verdict`` and the column ``by``.
    by : str or None
        Column of the groups (names joined by ";": such a voxel counts in each; "" counts as "none"). None, or a
        column that is not there: all voxels as one, "all".
    chance : DataFrame, optional
        The same captions checked by :meth:`GroundingChecker.shuffled`: with other voxels' images and weights.
    max_rank : int, optional
        Only captions up to this rank.
    n_bootstraps : int
    seed : int

    Returns
    -------
    DataFrame
        ``roi`` (or ``by``)``, n_voxels, n_phrases, rate, low, high`` (95 %)``, supported`` (share of supported
        phrases), and with ``chance`` also ``chance, chance_low, chance_high``. The first row is of all voxels.

    Raises
    ------
    DataError
        Columns are missing, or there are no phrases.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"voxel": [0, 0, 1], "rank": 1, "roi": ["FFA", "FFA", "PPA"],
    ...                       "verdict": ["supported", "unsupported", "supported"]})
    >>> hallucination_rate(table)[["roi", "n_voxels", "n_phrases", "rate"]].round(2).values.tolist()
    [['all', 2, 3, 0.33], ['FFA', 1, 2, 0.5], ['PPA', 1, 1, 0.0]]
    """
    check_whole("n_bootstraps", n_bootstraps)
    parts = {"": _by_voxel(phrases, by, max_rank)}
    if chance is not None:
        parts["chance"] = _by_voxel(chance, by, max_rank)
    rows: list[dict[str, object]] = []
    for name in parts[""]:
        n, _, supported = parts[""][name]
        row: dict[str, object] = {by or "group": name, "n_voxels": len(n), "n_phrases": int(n.sum())}
        for kind, groups in parts.items():
            n, found, _ = groups.get(name, np.zeros((3, 0)))
            rate = low = high = np.nan
            if len(n):
                rate = float(found.sum() / n.sum())
                drawn = _ratios(found, n, n_bootstraps, np.random.default_rng([seed, len(rows), len(kind)]))
                low, high, _ = map(float, stats.sample_interval(drawn, rate, n_units=len(n), bounds=(0.0, 1.0)))
            row |= {kind or "rate": rate, f"{kind}_low".strip("_"): low, f"{kind}_high".strip("_"): high}
            row |= {} if kind else {"supported": float(supported.sum() / n.sum())}
        rows.append(row)
    return pd.DataFrame(rows)


def _by_voxel(phrases: pd.DataFrame, by: str | None, max_rank: int | None) -> dict[str, np.ndarray]:
    """Numbers of phrases, of unsupported and of supported ones (3, voxel), of each group; "all" first."""
    step = "Next step: take the table that GroundingChecker.check gives."
    check_columns(phrases, ("voxel", "rank", "verdict"), "phrases", step)
    if max_rank is not None:
        phrases = phrases[phrases["rank"] <= max_rank]
    if not len(phrases):
        raise DataError("there are 0 phrases: captions that name nothing have no rate.")
    said = phrases["verdict"]
    counted = pd.DataFrame({"n": 1, "found": said == "unsupported", "supported": said == "supported"})
    grouped = counted.groupby(phrases["voxel"], sort=True).sum()
    counts = grouped.to_numpy(np.float64).T
    groups = {"all": counts}
    if by is not None and by in phrases:
        label = phrases.drop_duplicates("voxel").set_index("voxel")[by].reindex(grouped.index).astype(str)
        split = [{x for x in v.split(";") if x} or {"none"} for v in label]
        for name in sorted(set().union(*split)):
            groups[name] = counts[:, [name in s for s in split]]
    return groups
