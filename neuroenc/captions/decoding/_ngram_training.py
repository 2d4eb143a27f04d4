"""Training of a decoder to generate the n-grams by which documents are retrieved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import at_least, check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.tables import check_columns
from neuroenc.captions.decoding._ngram_retriever import LEVEL_PROMPTS
from neuroenc.captions.decoding._prefix import PrefixDecoder
from neuroenc.captions.decoding._prefix_training import PrefixTraining, train_prefix
from neuroenc.captions.text._words import STOP_WORDS
from neuroenc.retrieval import LEVELS, plain_text


def train_retriever(
    decoder: PrefixDecoder,
    pairs: pd.DataFrame,
    embeddings: Callable[[list[str]], Any] | Any,
    *,
    prompts: Mapping[str, str] | None = LEVEL_PROMPTS,
    ngrams: int = 4,
    longest: int = 10,
    importance: float = 2.0,
    source: str = "text",
    seed: int = 0,
    **training: Any,
) -> PrefixTraining:
    r"""Train a prefix decoder to generate the n-grams by which documents are retrieved, in place.

    Of each pair's target ``ngrams`` n-grams are drawn; they begin at a word and go on for ``longest`` tokens or to the
    target's end. An n-gram is drawn in proportion to :math:`\exp(\gamma\, o)`, with o the share of its words (function
    words left out) that the query says as well, and :math:`\gamma` the ``importance``. Names of phrases and categories
    are whole and followed by the stop token.

    Parameters
    ----------
    decoder : PrefixDecoder
    pairs : DataFrame
        Columns ``level, query, target``, as of :func:`neuroenc.retrieval.pseudo_queries`; own pairs are as good.
    embeddings : callable or array (pair, embedding_dim)
        ``embeddings(list of str)`` of the queries, or one for each pair. For a centred decoder their mean is
        subtracted, and kept as ``text_direction`` (``source="text"``) or ``mean``.
    prompts : mapping from level to str, optional
        None: no prompts.
    ngrams : int
    longest : int
    importance : float
        0: n-grams are equally probable.
    source : {"text", "image"}
        What the embeddings are.
    seed : int
    **training
        Further arguments of :func:`train_prefix`.

    Returns
    -------
    PrefixTraining

    Raises
    ------
    DataError
        Columns that are missing, no pairs, or embeddings of another number.
    ConfigError
        Illegal settings.

    References
    ----------
    Bevilacqua et al. Autoregressive search engines: generating substrings as document identifiers. NeurIPS 2022.
    Chen et al. A unified generative retriever for knowledge-intensive language tasks via prompt learning. SIGIR 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.captions import NGramRetriever, PrefixDecoder, make_language_model, train_retriever
    >>> from neuroenc.retrieval import CaptionCorpus, pseudo_queries
    >>> texts, names = ["A red cat.", "A cat.", "A dog.", "A big dog."], {"x": ["cat"], "y": ["dog"]}
    >>> corpus = CaptionCorpus(texts, list("xxyy"), names)
    >>> pairs = pseudo_queries(corpus, ["inner", "lead"])
    >>> def embed(texts):
    ...     return np.array([[1.0, 0.0] if "cat" in t else [0.0, 1.0] for t in texts])
    >>> lm, tokenizer = make_language_model(corpus.captions, width=16, layers=1)
    >>> decoder = PrefixDecoder(lm, tokenizer, 2, prefix_length=2, stop="<end>", device="cpu")
    >>> _ = train_retriever(decoder, pairs, embed, epochs=100, lr=0.02, warmup=0, progress=False)
    >>> NGramRetriever(corpus, decoder, level="category").search(np.eye(2), top=1)["id"].tolist()
    ['cat', 'dog']
    """
    if not len(check_columns(pairs, ("level", "query", "target"), "pairs")):
        raise DataError("there are 0 pairs. Next step: pseudo_queries(corpus).")
    check_whole("ngrams", ngrams)
    check_whole("longest", longest)
    one_of("source", source, ("image", "text"))
    at_least("importance", importance)
    queries = pairs["query"].astype(str).tolist()
    if callable(embeddings):
        different = list(dict.fromkeys(queries))
        place = {q: k for k, q in enumerate(different)}
        vectors = np.asarray(embeddings(different), dtype=np.float64)
        at = np.array([place[q] for q in queries])
    else:
        vectors, at = np.asarray(embeddings, dtype=np.float64), np.arange(len(pairs))
    if vectors.ndim != 2 or len(vectors) != at.max() + 1:
        raise DataError(f"embeddings of shape {vectors.shape} for {at.max() + 1} queries; legal is one row a query.")
    if decoder.centre:
        mean = unit_rows(vectors).mean(axis=0)
        if source == "text":
            decoder.text_direction = mean
        else:
            decoder.mean = mean
        inputs = decoder.inputs(vectors, mean)
    else:
        inputs = decoder.inputs(vectors)
    targets = _Targets(decoder, longest)
    texts: list[list[str]] = [[] for _ in inputs]
    rows = zip(at.tolist(), pairs["level"].astype(str), queries, pairs["target"].astype(str))
    for k, (row, level, query, target) in enumerate(rows):
        prompt = (prompts or {}).get(one_of("level", level, LEVELS), "")
        drawn = targets.draw(level, query, target, ngrams, importance, np.random.default_rng([seed, k]))
        texts[row].extend(prompt + text for text in drawn)
    return train_prefix(decoder, inputs, texts, source=source, prepared=True, append_stop=False, seed=seed, **training)


class _Targets:
    """N-grams of texts as a decoder would write them: a space in front of each word."""

    def __init__(self, decoder: PrefixDecoder, longest: int) -> None:
        self.longest = longest
        self._length = lru_cache(65_536)(lambda word: len(decoder.encode(" " + word)))
        self._of = lru_cache(65_536)(self._ngrams)
        self.stop = str(decoder.tokenizer.decode([decoder.stop]))
        if decoder.encode(f" a{self.stop}")[-1] != decoder.stop:
            raise ConfigError(f"the tokenizer does not write its stop token {decoder.stop} as {self.stop!r}.")

    def draw(
        self, level: str, query: str, target: str, n: int, importance: float, rng: np.random.Generator
    ) -> list[str]:
        text = plain_text(target)
        if level in ("phrase", "category"):
            return [f" {text}{self.stop}"]
        several = self._of(text)
        said = set(plain_text(query).split())
        share = np.array([len(words & said) / max(1, len(words)) for _, words in several])
        p = np.exp(importance * (share - share.max()))
        return [several[k][0] for k in rng.choice(len(several), size=n, p=p / p.sum()).tolist()]

    def _ngrams(self, text: str) -> list[tuple[str, frozenset[str]]]:
        words = text.replace(self.stop, " ").split()
        lengths = [self._length(w) for w in words]
        out = []
        for a in range(len(words)):
            b, total = a + 1, lengths[a]
            while b < len(words) and total + lengths[b] <= self.longest:
                b, total = b + 1, total + lengths[b]
            end = self.stop if b == len(words) else ""
            out.append((f" {' '.join(words[a:b])}{end}", frozenset(w.strip(",;:") for w in words[a:b]) - STOP_WORDS))
        if not out:
            raise DataError(f"target {text!r} has no words. Next step: leave it out.")
        return out
