"""Generative retrieval: a language model writes n-grams that rank captions, images or categories."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.memory import parse_memory
from neuroenc.captions._linear import voxel_labels
from neuroenc.captions.decoding._constraints import CorpusConstraint, TrieConstraint, until
from neuroenc.captions.decoding._sampling import CausalStep, Constraint, Hypotheses, token_logits
from neuroenc.captions.decoding._search import beam_search
from neuroenc.retrieval import LEVELS, CaptionCorpus, NGramIndex, NGramScorer, ScoredDocument, plain_text

Ngram = tuple[int, ...]
#: N-grams of one query and their log-probabilities.
Written = tuple[list[Ngram], np.ndarray]


def prompted(decoder: Any, prefix: Tensor, prompt: str, vectors: Tensor | None = None) -> Tensor:
    """Prefixes (n, length, width) with learned vectors (m, width) and the tokens of a prompt behind them."""
    if vectors is not None:
        prefix = torch.cat([prefix, vectors.to(prefix).expand(len(prefix), -1, -1)], dim=1)
    if not prompt:
        return prefix
    tokens = torch.tensor(decoder.encode(prompt), device=prefix.device)
    with torch.inference_mode():
        embedded = decoder.lm.get_input_embeddings()(tokens)
    return torch.cat([prefix, embedded.expand(len(prefix), -1, -1)], dim=1)


class _Collected:
    """Phrases of the corpus, each written on until it is ``longest`` or its caption ends; all on the way are kept."""

    def __init__(self, constraint: CorpusConstraint, n: int) -> None:
        self.constraint = constraint
        self.found: list[set[Ngram]] = [set() for _ in range(n)]

    def keep(self, tokens: Tensor, items: Tensor) -> None:
        stop = self.constraint.stop
        for item, row in zip(items.tolist(), tokens.tolist()):
            y = tuple(t for t in row if t >= 0 and t != stop)
            if y:
                self.found[item].add(y)

    def __call__(self, tokens: Tensor, items: Tensor) -> Tensor:
        self.keep(tokens, items)
        mask = self.constraint(tokens, items)
        # A phrase may stop anywhere: only one that cannot go on does.
        mask[:, self.constraint.stop] &= mask.sum(dim=1) == 1
        return mask


def _written(decoder: Any, prefix: Tensor, constraint: Constraint, beams: int, longest: int) -> Hypotheses:
    """Beams of plain log-probability."""
    options: dict[str, Any] = {"beams": beams, "max_length": longest, "length_penalty": 0.0}
    return beam_search(CausalStep(decoder.lm, prefix), stop=decoder.stop, constraint=constraint, **options)


def write_ngrams(
    decoder: Any, prefix: Tensor, constraint: CorpusConstraint, *, beams: int, longest: int
) -> list[list[Ngram]]:
    """N-grams of the corpus among the beams of each item, at any step; sorted."""
    collected = _Collected(constraint, len(prefix))
    found = _written(decoder, prefix, collected, beams, longest)
    for k in range(found.tokens.shape[1]):
        alive = torch.isfinite(found.logp[:, k])
        collected.keep(found.tokens[alive, k], torch.nonzero(alive)[:, 0])
    return [sorted(x) for x in collected.found]


def write_names(
    decoder: Any, prefix: Tensor, trie: TrieConstraint, *, beams: int, longest: int
) -> list[list[tuple[str, float]]]:
    r"""Ids of names and :math:`\log P(\mathrm{name} \mid q)`, the end of the name included, best first."""
    found = _written(decoder, prefix, trie, beams, longest)
    out: list[list[tuple[str, float]]] = []
    for item in range(len(prefix)):
        done = [k for k in range(found.tokens.shape[1]) if found.finished[item, k]]
        named = [(trie.name(found.tokens[item, k].tolist()), float(found.logp[item, k])) for k in done]
        out.append([(n, p) for n, p in named if n is not None])
    return out


def ngram_log_probabilities(
    decoder: Any, prefix: Tensor, ngrams: Sequence[Sequence[Ngram]], max_memory: str | int | None = None
) -> list[np.ndarray]:
    r""":math:`\log P(n \mid q)` of the n-grams of each item, float64.

    An n-gram and its own beginnings share a row of one pass of the model, so that about a tenth of them is read.
    """
    rows: list[tuple[int, Ngram]] = []
    for item, several in enumerate(ngrams):
        begun = {y[:k] for y in several for k in range(1, len(y))}
        rows.extend((item, y) for y in several if y not in begun)
    known: list[dict[Ngram, float]] = [{} for _ in ngrams]
    longest = max((len(y) for _, y in rows), default=1)
    # Logits in float32, their log-softmax, and what the layers hold.
    each = 4 * (prefix.shape[1] + longest) * (3 * decoder.vocabulary + 16 * prefix.shape[2])
    step = int(max(1, min(1024, parse_memory(max_memory) // each)))
    for a in range(0, len(rows), step):
        part = rows[a : a + step]
        tokens = pad_sequence([torch.tensor(y) for _, y in part], batch_first=True).to(prefix.device)
        with torch.inference_mode():
            front = prefix[torch.tensor([item for item, _ in part], device=prefix.device)]
            # What is read behind a shorter n-gram cannot be seen by what stands in front of it.
            logp = torch.log_softmax(token_logits(decoder.lm, front, tokens).float(), dim=-1)
            sums = logp.gather(2, tokens[:, :, None])[:, :, 0].double().cumsum(dim=1).cpu().numpy()
        for (item, y), total in zip(part, sums):
            for k in range(len(y)):
                known[item].setdefault(y[: k + 1], float(total[k]))
    return [np.array([known[item][y] for y in several]) for item, several in enumerate(ngrams)]


#: What a decoder of captions begins with, which writes n-grams as the rest of a sentence.
_OPENING = "a photo of"
# N-grams named in a row of the result.
_NAMED = 5
_COLUMNS = ["query", "rank", "id", "score", "ngrams"]


class NGramRetriever:
    r"""Generative retrieval (SEAL): rank documents by n-grams that a language model generates.

    For an embedding q (SEAL): beams write n-grams that the corpus holds; all that are met on the way, not the last
    ones only, are given :math:`P(n \mid q)` by the model and weighed against the corpus, and documents are scored by
    :class:`~neuroenc.retrieval.NGramScorer`. For a text: its own n-grams, with P(n | q) their share of the text.
    The level says what a document is (UGR): the same captions answer as captions, as images or as categories, and
    a prompt tells the model which.

    Phrases and categories are closed sets with a name each: for an embedding their names are written whole, under a
    :class:`TrieConstraint`, and ``score`` is :math:`\log P(\mathrm{name} \mid q)`. For a text, categories are scored by
    the n-grams of all their captions, by relative frequency.

    Parameters
    ----------
    corpus : CaptionCorpus
    decoder : PrefixDecoder, optional
        From :func:`train_retriever`; None: texts only, in words.
    level : {"image", "caption", "phrase", "category"}
    prompt : str, optional
        Text in front of every n-gram, "" for none. None: what the decoder learned for this level (words, vectors or
        both), or, for a decoder of captions, "a photo of".
    beams : int
    longest : int
        Most tokens of an n-gram.
    closed : bool, optional
        Whether names of phrases and categories are written whole (default). False: their captions are scored by
        n-grams as those of images are, which a decoder of captions, that never learned names, needs.
    max_memory : str or int, optional
    **scoring
        ``alpha, beta, smoothing, open_count, candidates, relative, frequency`` of
        :class:`~neuroenc.retrieval.NGramScorer`.

    Raises
    ------
    ConfigError
        Illegal settings, or a level that the corpus does not have.

    References
    ----------
    Bevilacqua et al. Autoregressive search engines: generating substrings as document identifiers. NeurIPS 2022.
    Chen et al. A unified generative retriever for knowledge-intensive language tasks via prompt learning. SIGIR 2023.

    Examples
    --------
    >>> from neuroenc.captions import NGramRetriever
    >>> from neuroenc.retrieval import CaptionCorpus
    >>> corpus = CaptionCorpus(["A red cat by a wall.", "A cat.", "A dog by a tree.", "A red dog."], list("xxyz"))
    >>> retriever = NGramRetriever(corpus, alpha=1.0, smoothing=0.0)
    >>> found = retriever.search_texts(["a photo of a red cat"], top=2)
    >>> found[["query", "rank", "id"]].values.tolist(), found["ngrams"][0].split("; ")[:2]
    ([[0, 1, 'x'], [0, 2, 'z']], ['a red cat (1.10)', 'red cat (0.22)'])
    """

    def __init__(
        self,
        corpus: CaptionCorpus,
        decoder: Any = None,
        *,
        level: str = "image",
        prompt: str | None = None,
        beams: int = 15,
        longest: int = 10,
        closed: bool | None = None,
        max_memory: str | int | None = None,
        **scoring: Any,
    ) -> None:
        if not isinstance(corpus, CaptionCorpus):
            raise DataError(f"corpus is a {type(corpus).__name__}; legal is a neuroenc.retrieval.CaptionCorpus.")
        self.corpus, self.decoder, self.level = corpus, decoder, one_of("level", level, LEVELS)
        learned = None if prompt is not None else getattr(decoder, "prompts", None)
        self.prompt = _OPENING if prompt is None else prompt
        self._vectors: Tensor | None = None
        if learned is not None:
            self.prompt = learned.word(level)
            self._vectors = learned.vectors[learned.number(level)].detach()
        self.beams, self.longest = check_whole("beams", beams), check_whole("longest", longest)
        self.max_memory = max_memory
        texts, ids = corpus.documents(level)
        if not texts:
            raise ConfigError(f"the corpus has no {level}. Next step: captions that name some.")
        if level == "category":
            # Few and long: every n-gram is frequent, and in all of them.
            scoring = {"open_count": None, "relative": True, **scoring}
        self._tokenise: Callable[[str], list[int]] = _Words(texts) if decoder is None else self._encode
        rows = [self._tokenise(t) for t in texts]
        self.scorer = NGramScorer(NGramIndex(rows, ids), **scoring)
        self._closed = level in ("phrase", "category") and closed in (None, True)
        self.constraint: CorpusConstraint | None = None
        if decoder is not None:
            shape: dict[str, Any] = {"stop": decoder.stop, "vocabulary": decoder.vocabulary}
            if self._closed:
                names = list(dict.fromkeys(ids))
                self.constraint = TrieConstraint(names, lambda t: decoder.encode(" " + t), **shape)
            else:
                self.constraint = CorpusConstraint(self.scorer.index, anchored=False, **shape)

    def __repr__(self) -> str:
        return f"NGramRetriever({self.level}, {len(self.scorer.documents)} documents, prompt={self.prompt!r})"

    def _encode(self, text: str) -> list[int]:
        # A space in front, so that a word has the same tokens wherever it stands.
        return until(self.decoder.encode(" " + text), self.decoder.stop)

    def _text(self, tokens: Sequence[int]) -> str:
        if isinstance(self._tokenise, _Words):
            return self._tokenise.text(tokens)
        return str(self.decoder.text(list(tokens)))

    def search_texts(self, texts: Sequence[str], top: int = 10) -> pd.DataFrame:
        """Documents that hold what texts say, by the texts' own n-grams.

        To ask the language model instead: ``search(decoder.embed_text(texts), mean=decoder.text_direction)``.

        Parameters
        ----------
        texts : sequence of str
            Such as decoded captions.
        top : int

        Returns
        -------
        DataFrame
            ``query`` (position)``, rank`` (from 1)``, id, score, ngrams``: the n-grams in that document and what each
            adds to the score, the best first. A text of which no n-gram occurs gets no row.
        """
        found = []
        for text in [texts] if isinstance(texts, str) else texts:
            ngrams, logp = self.scorer.own_ngrams(self._tokenise(plain_text(text)), self.longest)
            found.append(self.scorer.score(ngrams, logp, top))
        return self._frame(found)

    def search(self, embeddings: Any, top: int = 10, *, mean: Any = None) -> pd.DataFrame:
        """Documents for embeddings, by what the decoder writes.

        Parameters
        ----------
        embeddings : array (n, embedding_dim)
        top : int
        mean : array (embedding_dim,), optional
            Direction to subtract for a centred decoder; default that of its training embeddings.

        Returns
        -------
        DataFrame
            As of :meth:`search_texts`; for phrases and categories ``score`` is a log-probability and ``ngrams`` the
            name.
        """
        check_whole("top", top)
        if not self._closed:
            return self.rank(self.write(embeddings, mean=mean), top)
        return self._frame([f for prefix in self._prefixes(embeddings, mean) for f in self._names(prefix, top)])

    def write(self, embeddings: Any, *, mean: Any = None) -> list[Written]:
        """N-grams that the decoder writes for embeddings, and their log-probabilities.

        Levels of one corpus that are asked for with the same prompt share what is written: the language model is the
        slow part, and :meth:`rank` of each level's retriever does the rest.

        Parameters
        ----------
        embeddings : array (n, embedding_dim)
        mean : array (embedding_dim,), optional
            As in :meth:`search`.

        Returns
        -------
        list of (list of tuple of int, ndarray)
            Of each embedding: n-grams in tokens, and :math:`\\log P(n \\mid q)` of each.

        Raises
        ------
        ConfigError
            No decoder, or a level whose names are written whole.
        """
        self._need_decoder()
        if self.constraint is None or self._closed:
            raise ConfigError(f"{self!r} writes names whole. Next step: search(embeddings), or closed=False.")
        out: list[Written] = []
        for prefix in self._prefixes(embeddings, mean):
            several = write_ngrams(self.decoder, prefix, self.constraint, beams=self.beams, longest=self.longest)
            out.extend(zip(several, ngram_log_probabilities(self.decoder, prefix, several, self.max_memory)))
        return out

    def rank(self, written: Sequence[Written], top: int = 10) -> pd.DataFrame:
        """Documents that hold n-grams, such as those of :meth:`write`.

        Parameters
        ----------
        written : sequence of (list of tuple of int, array)
            Of each query: n-grams in the decoder's tokens, and their log-probabilities.
        top : int

        Returns
        -------
        DataFrame
            As of :meth:`search_texts`.
        """
        return self._frame([self.scorer.score(ngrams, logp, top) for ngrams, logp in written])

    def search_voxels(self, projection: xr.Dataset, top: int = 10) -> pd.DataFrame:
        """Documents for projected voxels: ``voxel`` in place of ``query``, and the voxel coordinates.

        Parameters
        ----------
        projection : Dataset
            From :func:`neuroenc.captions.project`. Voxels without an embedding (NaN) get no row.
        top : int

        Returns
        -------
        DataFrame
            ``voxel, rank, id, score, ngrams`` and the coordinates ``roi, i, j, k, vertex, hemi`` that the projection
            has.
        """
        embedding = np.asarray(projection["embedding"].values, dtype=np.float64)
        rows = np.flatnonzero(np.isfinite(embedding).all(axis=1))
        frame = self.search(embedding[rows], top, mean=self._need_decoder().mean_of(projection))
        at = rows[frame["query"].to_numpy()]
        frame.insert(0, "voxel", projection["voxel"].values[at])
        return pd.concat([frame.drop(columns="query"), voxel_labels(projection, at)], axis=1)

    def _need_decoder(self) -> Any:
        if self.decoder is None:
            raise ConfigError("embeddings need a decoder. Next step: NGramRetriever(corpus, decoder, ...).")
        return self.decoder

    def _prefixes(self, embeddings: Any, mean: Any) -> Iterator[Tensor]:
        """Prompted prefixes of each batch."""
        decoder = self._need_decoder()
        x = decoder.inputs(embeddings, mean)
        for a in range(0, len(x), decoder.batch_size):
            yield prompted(decoder, decoder.prefixes(x[a : a + decoder.batch_size]), self.prompt, self._vectors)

    def _names(self, prefix: Any, top: int) -> list[list[ScoredDocument]]:
        assert isinstance(self.constraint, TrieConstraint)
        longest = self.constraint.index.longest + 1
        written = write_names(self.decoder, prefix, self.constraint, beams=max(self.beams, top), longest=longest)
        return [
            [ScoredDocument(name, p, [(tuple(self.decoder.encode(" " + name)), p)]) for name, p in several[:top]]
            for several in written
        ]

    def _frame(self, found: Sequence[Sequence[ScoredDocument]]) -> pd.DataFrame:
        rows = [
            (query, rank, d.id, d.score, "; ".join(f"{self._text(y)} ({g:.2f})" for y, g in d.ngrams[:_NAMED]))
            for query, several in enumerate(found)
            for rank, d in enumerate(several, 1)
        ]
        frame = pd.DataFrame(rows, columns=_COLUMNS)
        return frame.astype({"query": np.int64, "rank": np.int64, "score": np.float64})


class _Words:
    """Words as numbers, for retrieval without a language model; unknown words are one that never occurs."""

    _word = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]")

    def __init__(self, texts: Sequence[str]) -> None:
        self.words = list(dict.fromkeys(w for t in texts for w in self._word.findall(t)))
        self._number = {w: k for k, w in enumerate(self.words)}

    def __call__(self, text: str) -> list[int]:
        return [self._number.get(w, len(self.words)) for w in self._word.findall(text)]

    def text(self, tokens: Sequence[int]) -> str:
        return " ".join(self.words[t] for t in tokens)
