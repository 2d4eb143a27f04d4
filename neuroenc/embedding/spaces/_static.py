"""Static spaces: a caption is a weighted sum of vectors of its words or n-grams, whatever their order.

All kinds are one linear map of counts, ``x = (c * w) V``, less a common direction: what differs is how the table V
was found.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from neuroenc._core.errors import ConfigError, DataError

#: Runs of letters and digits, single ones too.
_WORD = r"(?u)\b\w+\b"
_HASHED, _LENGTHS = 2**14, (3, 5)
#: Arora, Liang & Ma (2017): a word of this share of all words counts half.
_SIF = 1e-3


def word_counter(words: Sequence[str]) -> Any:
    """Counts of these words (n, word) of texts."""
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(token_pattern=_WORD, vocabulary={word: n for n, word in enumerate(words)})


def find_words(texts: Sequence[str], min_count: int) -> list[str]:
    """Words that stand in at least ``min_count`` texts, the most frequent first."""
    from sklearn.feature_extraction.text import CountVectorizer

    try:
        counter = CountVectorizer(token_pattern=_WORD, min_df=min(min_count, len(texts))).fit(texts)
    except ValueError as error:
        raise DataError(
            f"none of {len(texts)} captions has a word that occurs {min_count} times ({error}). Next step: "
            "min_count=1, or more captions."
        ) from None
    names = counter.get_feature_names_out()
    often = np.asarray(counter.transform(texts).sum(0)).ravel()
    return [str(names[n]) for n in np.lexsort((names, -often))]


class StaticSpace:
    """A fitted static space.

    Parameters
    ----------
    words : list of str
        Empty: hashed n-grams of letters.
    arrays : mapping
        ``weight`` (word,), and where there are: ``table`` (word, feature) and ``common`` (feature,).
    averaged : bool
        Whether counts are divided by the number of known words.
    """

    def __init__(self, words: list[str], arrays: Mapping[str, np.ndarray], averaged: bool) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        self.words, self.arrays, self.averaged = words, dict(arrays), averaged
        self._counter = word_counter(words)
        if not words:
            self._counter = HashingVectorizer(
                analyzer="char_wb", ngram_range=_LENGTHS, n_features=_HASHED, alternate_sign=False, norm=None
            )

    def weighted(self, texts: Sequence[str]) -> sp.csr_matrix:
        """Weighted counts (n, word): means over known words, or rows of unit norm."""
        counts = self._counter.transform(texts).astype(np.float32)
        if self.averaged:
            length = np.asarray(counts.sum(1)).ravel()
            counts = counts.multiply(self.arrays["weight"][None]).tocsr()
        else:
            counts = counts.multiply(self.arrays["weight"][None]).tocsr()
            length = np.sqrt(np.asarray(counts.multiply(counts).sum(1)).ravel())
        return sp.diags(1 / np.maximum(length, 1e-12)).dot(counts).tocsr()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (n, feature) float32; a text without any known word is zero, which is said."""
        rows = self.weighted(texts)
        empty = np.flatnonzero(np.diff(rows.indptr) == 0)
        if len(empty):
            warnings.warn(
                f"{len(empty)} of {len(texts)} texts have no word that the space was trained on, and get the vector of "
                f"no words; the first is {texts[empty[0]][:60]!r}. Next step: a space of captions that are like them.",
                UserWarning,
                stacklevel=2,
            )
        found = rows @ self.arrays["table"] if "table" in self.arrays else rows.toarray()
        if "common" in self.arrays:
            common = self.arrays["common"]
            found = found - np.outer(found @ common, common)
        return np.asarray(found, dtype=np.float32)


def fit_static(kind: str, texts: Sequence[str], settings: Mapping[str, Any], train: Any, seed: int) -> StaticSpace:
    """Fit a static space.

    Parameters
    ----------
    kind : {"bow", "ngrams", "ppmi", "sgns"}
    texts : sequence of str
    settings : mapping
    train : callable
        ``train(model, loss_of_rows, n)``, for "sgns".
    """
    if kind in ("bow", "ngrams"):
        words = find_words(texts, settings["min_count"]) if kind == "bow" else []
        space = StaticSpace(words, {"weight": np.ones(len(words) or _HASHED, np.float32)}, averaged=False)
        seen = np.asarray((space.weighted(texts) > 0).sum(0)).ravel()
        space.arrays["weight"] = (1 + np.log((1 + len(texts)) / (1 + seen))).astype(np.float32)
        if settings["dims"]:
            space.arrays["table"] = _svd(space.weighted(texts), settings["dims"], seed, "texts")[1]
        return space
    words = find_words(texts, settings["min_count"])
    lines = token_rows(texts, words)
    often = np.bincount(np.concatenate(lines), minlength=len(words)).astype(np.float64)
    if kind == "ppmi":
        left, values = _svd(ppmi(lines, len(words), settings["window"]), settings["dims"], seed, "words")[::2]
        table = left * np.sqrt(values)
    else:
        table = _skip_grams(lines, often, settings, train)
    # Vectors of words that never stand beside another are zero.
    table = (table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    weight = _SIF / (_SIF + often / often.sum()) if settings["pooling"] == "sif" else np.ones(len(words))
    space = StaticSpace(words, {"weight": weight.astype(np.float32), "table": table}, averaged=True)
    if settings["pooling"] == "sif":
        # Of uncentred vectors, as published.
        space.arrays["common"] = np.linalg.svd(_some(space, texts, seed), full_matrices=False)[2][0]
    return space


def _some(space: StaticSpace, texts: Sequence[str], seed: int) -> np.ndarray:
    """Vectors of at most 20,000 texts."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(texts))[:20_000])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return space.encode([texts[n] for n in rows])


def _svd(matrix: Any, dims: int, seed: int, of: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left vectors (n, dims), right vectors (m, dims) and values of a truncated singular value decomposition."""
    from sklearn.utils.extmath import randomized_svd

    if dims >= min(matrix.shape):
        raise ConfigError(
            f"dims={dims} of {matrix.shape[0]} {of} and {matrix.shape[1]} words or n-grams; it must be below both. "
            "Next step: fewer dims, or more captions."
        )
    left, values, right = randomized_svd(matrix, dims, random_state=seed)
    return left, np.ascontiguousarray(right.T, np.float32), values


def token_rows(texts: Sequence[str], words: Sequence[str]) -> list[np.ndarray]:
    """Numbers of the known words of each text, in order."""
    split, place = word_counter(words).build_analyzer(), {word: n for n, word in enumerate(words)}
    return [np.array([place[w] for w in split(text) if w in place], np.int64) for text in texts]


def _neighbours(lines: Sequence[np.ndarray], window: int) -> tuple[np.ndarray, np.ndarray]:
    """Words and those at most ``window`` words behind them."""
    line = np.repeat(np.arange(len(lines)), [len(x) for x in lines])
    flat = np.concatenate(lines) if len(lines) else np.zeros(0, np.int64)
    first, second = [], []
    for distance in range(1, window + 1):
        same = line[:-distance] == line[distance:]
        first.append(flat[:-distance][same])
        second.append(flat[distance:][same])
    return np.concatenate(first), np.concatenate(second)


def ppmi(lines: Sequence[np.ndarray], n_words: int, window: int) -> sp.csr_matrix:
    r"""Positive pointwise mutual information of words and their neighbours, contexts smoothed by a power of .75.

    .. math:: M_{wc} = \max\Bigl(0, \log \frac{P(w, c)}{P(w)\, P_{.75}(c)}\Bigr)

    Levy, Goldberg & Dagan (2015), TACL 3.
    """
    a, b = _neighbours(lines, window)
    pairs = sp.coo_matrix((np.ones(2 * len(a)), (np.r_[a, b], np.r_[b, a])), (n_words, n_words)).tocsr().tocoo()
    whole = np.asarray(pairs.tocsr().sum(1)).ravel()
    smooth = whole**0.75
    expected = whole[pairs.row] / whole.sum() * smooth[pairs.col] / smooth.sum()
    found = np.maximum(np.log(pairs.data / pairs.data.sum() / expected), 0)
    return sp.csr_matrix((found, (pairs.row, pairs.col)), (n_words, n_words))


def _skip_grams(lines: Sequence[np.ndarray], often: np.ndarray, settings: Mapping[str, Any], train: Any) -> np.ndarray:
    """Vectors by skip-gram with negative sampling (Mikolov et al., 2013), frequent words thinned out."""
    import torch
    from torch import nn

    share = often / often.sum()
    # Words more frequent than this are thinned out; of a small vocabulary, those above its average.
    often_is = max(1e-3, 1 / len(often))
    keep = np.minimum(1, np.sqrt(often_is / np.maximum(share, 1e-12)))
    left, right = _neighbours(lines, settings["window"])
    a, b = torch.from_numpy(np.r_[left, right]), torch.from_numpy(np.r_[right, left])
    kept = torch.from_numpy(keep).float()
    noise = torch.from_numpy(share**0.75).float().cumsum(0)
    vectors, contexts = (nn.Embedding(len(often), settings["dims"]) for _ in range(2))
    for part in (vectors, contexts):
        nn.init.uniform_(part.weight, -0.5 / settings["dims"], 0.5 / settings["dims"])
    model = nn.ModuleDict({"words": vectors, "contexts": contexts})

    def loss(rows: np.ndarray) -> Any:
        chosen = torch.from_numpy(rows)
        one, other = a[chosen], b[chosen]
        here = torch.rand(len(chosen)) < kept[one] * kept[other]
        one, other = one[here], other[here]
        false = torch.searchsorted(noise, torch.rand(len(one), 5) * noise[-1]).clamp(max=len(often) - 1)
        x = vectors(one)
        true = (x * contexts(other)).sum(-1)
        wrong = torch.einsum("nd,nkd->nk", x, contexts(false))
        logsigmoid = nn.functional.logsigmoid
        return -(logsigmoid(true) + logsigmoid(-wrong).sum(1)).mean()

    if not len(a):
        raise DataError("no caption has two known words beside each other, which skip-grams are made of.")
    train(model, loss, len(a))
    return vectors.weight.detach().numpy()
