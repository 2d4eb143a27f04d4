"""Training of a generative retriever: a prefix decoder learns to write the n-grams by which documents are found."""

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
from neuroenc.captions.decoding._level_prompts import LEVEL_PROMPTS, LevelPrompts
from neuroenc.captions.decoding._prefix import PrefixDecoder
from neuroenc.captions.decoding._prefix_training import PrefixTraining, train_prefix
from neuroenc.captions.text._words import STOP_WORDS
from neuroenc.retrieval import LEVELS, plain_text


def train_retriever(
    decoder: PrefixDecoder,
    pairs: pd.DataFrame,
    embeddings: Callable[[list[str]], Any] | Any,
    *,
    prompt: str | None = None,
    words: Mapping[str, str] = LEVEL_PROMPTS,
    prompt_length: int = 4,
    tune: str = "all",
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

    The prompt tells the model which level is asked for (UGR): words, vectors that are learned with it, or both. A
    decoder that is a retriever already goes on: with its own prompts, and the mean direction of its first training, so
    that one pretrained on :func:`neuroenc.retrieval.pseudo_queries` is fine-tuned on few labelled pairs (CorpusBrain).

    Parameters
    ----------
    decoder : PrefixDecoder
    pairs : DataFrame
        Columns ``level, query, target``, as of :func:`neuroenc.retrieval.pseudo_queries`; own pairs are as good.
    embeddings : callable or array (pair, embedding_dim)
        ``embeddings(list of str)`` of the queries, or one for each pair. For a centred decoder their mean is
        subtracted, and kept as ``text_direction`` (``source="text"``) or ``mean``.
    prompt : {"none", "discrete", "continuous", "hybrid"}, optional
        What stands in front of an n-gram: nothing, ``words``, ``prompt_length`` learned vectors, or the vectors and the
        words. Default: that of the decoder's earlier training, else "discrete". It is saved with the decoder.
    words : mapping from level to str
        Of discrete and hybrid prompts.
    prompt_length : int
        Learned vectors of a level.
    tune : {"all", "prompts"}
        "prompts": the learned vectors alone (prefix tuning at the input); everything else is frozen.
    ngrams : int
    longest : int
    importance : float
        0: n-grams are equally probable.
    source : {"text", "image"}
        What the embeddings are.
    seed : int
    **training
        Further arguments of :func:`train_prefix`.

    Raises
    ------
    DataError
        Columns that are missing, no pairs, or embeddings of another number.
    ConfigError
        Illegal settings, another prompt than that of an earlier training, or nothing to tune.

    References
    ----------
    Bevilacqua et al. Autoregressive search engines: generating substrings as document identifiers. NeurIPS 2022.
    Chen et al. CorpusBrain: Pre-train a generative retrieval model for knowledge-intensive language tasks. CIKM 2022.
    Lester et al. The power of scale for parameter-efficient prompt tuning. EMNLP 2021.
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
    if not len(check_columns(pairs, ("level", "query", "target"), "pairs", "Next step: pseudo_queries(corpus).")):
        raise DataError("there are 0 pairs. Next step: pseudo_queries(corpus).")
    check_whole("ngrams", ngrams)
    check_whole("longest", longest)
    one_of("source", source, ("image", "text"))
    at_least("importance", importance)
    one_of("tune", tune, ("all", "prompts"))
    prompts = _prompts_of(decoder, prompt, words, prompt_length, seed)
    if tune == "prompts":
        if not prompts.length:
            raise ConfigError(
                f'tune="prompts" with the prompt {prompts.kind!r} leaves nothing to learn. Next step: '
                'prompt="continuous" or "hybrid".'
            )
        training |= {"train_lm": False, "train_mapping": False}
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
    mean = None
    if decoder.centre:
        name = "text_direction" if source == "text" else "mean"
        mean = getattr(decoder, name) if decoder.prompts is not None and decoder.source == source else None
        mean = unit_rows(vectors).mean(axis=0) if mean is None else mean
        setattr(decoder, name, mean)
    inputs = decoder.inputs(vectors, mean)
    decoder.prompts = prompts
    targets = _Targets(decoder, longest)
    texts: list[list[str]] = [[] for _ in inputs]
    levels: list[list[int]] = [[] for _ in inputs]
    rows = zip(at.tolist(), pairs["level"].astype(str), queries, pairs["target"].astype(str))
    for k, (row, level, query, target) in enumerate(rows):
        said = prompts.word(one_of("level", level, LEVELS))
        drawn = targets.draw(level, query, target, ngrams, importance, np.random.default_rng([seed, k]))
        texts[row].extend(said + text for text in drawn)
        levels[row].extend([prompts.number(level)] * len(drawn))
    training |= {"source": source, "seed": seed, "prompted": levels if prompts.length else None}
    return train_prefix(decoder, inputs, texts, prepared=True, append_stop=False, **training)


def _prompts_of(
    decoder: PrefixDecoder, kind: str | None, words: Mapping[str, str], length: int, seed: int
) -> LevelPrompts:
    """The decoder's own prompts, or new ones."""
    known = decoder.prompts
    if known is None:
        embeddings = decoder.lm.get_input_embeddings().weight
        return LevelPrompts("discrete" if kind is None else kind, embeddings, words, length, seed)
    if kind not in (None, known.kind):
        raise ConfigError(
            f"the decoder was trained with the prompt {known.kind!r}, not {kind!r}. Next step: leave prompt out to go "
            "on, or train another decoder."
        )
    return known


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
