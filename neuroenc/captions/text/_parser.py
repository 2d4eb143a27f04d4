"""Unsupervised constituency parser by syntactic distances (StructFormer)."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from neuroenc._core.checks import at_least, check_fraction, check_texts, check_whole, one_of
from neuroenc._core.device import resolve_device
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.provenance import provenance
from neuroenc._core.weights import Kind, read_folder, reading, write_folder
from neuroenc.captions._descent import descend
from neuroenc.captions.text._parser_model import StructuredLM, masked_loss, masked_perplexity, padded
from neuroenc.captions.text._trees import (
    Phrase,
    Tree,
    Vocabulary,
    Word,
    chunks,
    default_pattern,
    frequent,
    tree_from_distances,
    tree_spans,
    words_of,
)

_KIND = Kind(
    "parser",
    "parser.json",
    "parser.safetensors",
    ("settings", "structured", "vocabulary", "function_words", "training"),
)


class Bracketing(NamedTuple):
    """Constituency tree of a text.

    Attributes
    ----------
    text : str
    words : tuple of Word
        ``text`` in folded case, ``start, end`` (characters).
    distances : array (word - 1,)
        Syntactic distance of each word and the next.
    heights : array (word,)
    tree : Tree
        Nested tuples of the words' numbers; ``()`` without words.
    """

    text: str
    words: tuple[Word, ...]
    distances: np.ndarray
    heights: np.ndarray
    tree: Tree

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Characters (start, end) of every part with two words or more, the whole first."""
        if len(self.words) < 2:
            return []
        return [(self.words[a].start, self.words[b - 1].end) for a, b in tree_spans(self.tree)]

    def __str__(self) -> str:
        def written(node: Tree) -> str:
            if isinstance(node, tuple):
                return f"({' '.join(written(part) for part in node)})"
            return self.text[self.words[node].start : self.words[node].end]

        return written(self.tree)


class SyntacticDistanceParser:
    r"""Unsupervised constituency parser by syntactic distances (StructFormer).

    Convolutions over word embeddings give each pair of neighbours a distance :math:`\tau_i` and each word a height
    :math:`\delta_i`. They say how likely word j is the parent of word i,

    .. math:: p_D(j \mid i) = \sum_{l \le i \le r} p(l \mid i)\, p(r \mid i)\,
              \mathrm{softmax}_{k \in [l, r]}(\delta_k / \mu_2)_j, \qquad
              p(x_l \in C(x_i)) = \sigma\Big(\frac{\delta_i - \max_{k \in [l, i)} \tau_k}{\mu_1}\Big),

    and the attention of a small transformer is multiplied with it: a head sees parents and dependents, in parts that it
    learns. All is trained by guessing hidden words, nothing else. A caption is then split where :math:`\tau` is
    largest, and its parts likewise.

    For English captions spaCy's noun chunks are better phrases and remain the default of :func:`find_phrases` and
    :class:`GroundingChecker`. This one is for languages and domains without a parser, given some thousand captions.
    For purely visual voxels its role is thin: it says how words hang together, and names no new thing.

    Parameters
    ----------
    dim, layers, heads : int
        Of the transformer.
    parser_layers, parser_width : int
        Convolutions, and the words that each sees.
    dropout : float
        None by default: captions are seen a few times only.
    pattern : str, optional
        Regular expression of a word; default letters and digits with their marks, joined by hyphens and apostrophes.
        ``r"\S"`` takes single characters, for scripts that do not part words.
    min_count, max_vocabulary : int
        Rarer words are all one, and so are those beyond the most frequent.
    max_length : int
        Longer captions are trained on up to this word. They are parsed as a whole.
    function_words : float or iterable of str
        Words that no phrase holds: a list, or those that stand in at least this share of the captions. A list of the
        language's determiners, prepositions and auxiliaries is worth its trouble: on COCO captions agreement with
        spaCy's phrases (F1) rises from .59 to .75.
    max_words : int
        Words of the longest phrase.
    head : {"last", "first", "height"}
        Main word of a phrase: that at its end or beginning, as the language has it, or the one with the greatest
        height. Guessing words does not settle which of two is higher: in English noun phrases it was the modifier.
    seed : int
        Of first weights and training.
    device : str

    Attributes
    ----------
    function_words_ : list of str
    training_ : dict
        ``losses`` (nats a hidden word), ``steps, ended_by, seconds, n_captions, n_words`` (of the vocabulary).

    Notes
    -----
    Attention is that of `neuroenc.attention` with sigmoids as weights; its own doors are for masks of keys or of
    positions, and this mask differs between texts, heads and pairs of words.

    What the paper calls a constituent's boundary is the same here; its calibration of distances is done for each text
    by itself instead of for a batch, so that trees do not depend on what else is parsed.

    References
    ----------
    Shen, Tay, Zheng, Bahri, Metzler, Courville. StructFormer: joint unsupervised induction of dependency and
    constituency structure from masked language modeling. ACL 2021.

    Examples
    --------
    >>> captions = ["a red cat on the mat", "the dog in a house", "a cat in the red house", "the dog on a mat"]
    >>> parser = SyntacticDistanceParser(dim=8, heads=2, min_count=1, function_words=["a", "the", "on", "in"])
    >>> found = parser.fit(captions, steps=3, progress=False).parse(["a red dog"])[0]
    >>> len(found.distances), found.spans[0]
    (2, (0, 9))
    >>> [sorted(p.text for p in several) for several in parser.phrases(["the cat in a house"])]
    [['cat', 'house']]
    """

    def __init__(
        self,
        *,
        dim: int = 64,
        layers: int = 2,
        heads: int = 4,
        parser_layers: int = 3,
        parser_width: int = 5,
        dropout: float = 0.0,
        pattern: str | None = None,
        min_count: int = 2,
        max_vocabulary: int = 10_000,
        max_length: int = 40,
        function_words: float | Iterable[str] = 0.15,
        max_words: int = 4,
        head: str = "last",
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        if dim < 2 or heads < 1 or dim % heads:
            raise ConfigError(f"dim={dim} must be a multiple of heads={heads}, and 2 or more.")
        if parser_width < 1 or parser_width % 2 == 0:
            raise ConfigError(f"parser_width={parser_width}; legal: an odd number, so that a word is in the middle.")
        self.dim, self.heads = int(dim), int(heads)
        self.layers, self.parser_layers = check_whole("layers", layers), check_whole("parser_layers", parser_layers)
        self.min_count, self.max_words = check_whole("min_count", min_count), check_whole("max_words", max_words)
        self.max_vocabulary = check_whole("max_vocabulary", max_vocabulary)
        self.max_length = check_whole("max_length", max_length, 2)
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout={dropout} is not legal; legal: from 0, under 1.")
        one_of("head", head, ("last", "first", "height"))
        if isinstance(function_words, str):
            raise ConfigError(f"function_words={function_words!r} is one string. Next step: a list, or a share.")
        if isinstance(function_words, (int, float)) and not 0 < function_words <= 1:
            raise ConfigError(f"function_words={function_words} is a share of captions; legal: over 0, to 1.")
        try:
            self._pattern = re.compile(pattern or default_pattern())
        except re.error as error:
            raise ConfigError(f"pattern={pattern!r} is not a regular expression: {error}.") from error
        self.parser_width, self.dropout, self.pattern = int(parser_width), float(dropout), pattern
        self.head, self.seed = head, int(seed)
        self.function_words: float | list[str] = (
            float(function_words)
            if isinstance(function_words, (int, float))
            else sorted({w.casefold() for w in function_words})
        )
        self.device = resolve_device(device)
        self.function_words_: list[str] = []
        self.training_: dict[str, Any] = {}
        self._vocabulary = Vocabulary([])
        self._net: StructuredLM | None = None

    def __repr__(self) -> str:
        state = f"{len(self._vocabulary.words)} words" if self._net is not None else "not fitted"
        return f"SyntacticDistanceParser({state})"

    def _start(self, structured: bool = True) -> StructuredLM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            names = ("max_length", "dim", "layers", "heads", "parser_layers", "parser_width", "dropout")
            shape: dict[str, Any] = {name: getattr(self, name) for name in names}
            return StructuredLM(len(self._vocabulary), **shape, structured=structured).to(self.device)

    def fit(
        self,
        captions: Sequence[str],
        *,
        steps: int = 2000,
        batch_size: int = 32,
        lr: float = 3e-3,
        mask_share: float = 0.3,
        structured: bool = True,
        minutes: float | None = None,
        progress: bool = True,
    ) -> SyntacticDistanceParser:
        """Learn from captions; what was learned before is forgotten.

        Parameters
        ----------
        captions : sequence of str
            Equal captions count as often as they are given.
        steps, batch_size : int
            Trees change until the words that go together are known, which comes late: on planted captions after 1000
            steps.
        lr : float
            Highest learning rate of AdamW.
        mask_share : float
            Of the words that are hidden.
        structured : bool
            False trains the plain language model that the perplexity of this one is compared with; it cannot parse.
        minutes : float, optional
            Stop after this time. Runs that end by it are not repeatable.
        progress : bool

        Returns
        -------
        SyntacticDistanceParser
            Itself.

        Raises
        ------
        DataError
            One string, or no caption with two words.
        """
        check_whole("steps", steps)
        check_whole("batch_size", batch_size)
        at_least("lr", lr, above=True)
        check_fraction("mask_share", mask_share)
        texts = [[w.text for w in words_of(t, self._pattern)] for t in check_texts(captions, "captions")]
        if not any(len(t) > 1 for t in texts):
            raise DataError(f"none of {len(texts)} captions has two words; there is nothing to learn an order from.")
        self._vocabulary = Vocabulary.of(texts, self.min_count, self.max_vocabulary)
        if not self._vocabulary.words:
            raise DataError(f"no word occurs {self.min_count} times. Next step: more captions, or min_count=1.")
        known = self.function_words
        self.function_words_ = frequent(texts, known) if isinstance(known, float) else list(known)
        cut = sum(len(t) > self.max_length for t in texts)
        if cut:
            warnings.warn(
                f"{cut} of {len(texts)} captions have more than max_length={self.max_length} words (up to "
                f"{max(map(len, texts))}); what stands behind is not learned from. Next step: a larger max_length.",
                stacklevel=2,
            )
        tokens = padded([self._vocabulary.encode(t[: self.max_length]) for t in texts if len(t) > 1])
        net, generator = self._start(structured), torch.Generator().manual_seed(self.seed)
        # Dropout draws from torch's own generator: the caller's state is left as it was.
        with torch.random.fork_rng(devices=[self.device] if self.device.startswith("cuda") else []):
            torch.manual_seed(self.seed)
            told = descend(
                net,
                torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
                partial(masked_loss, net, tokens, batch_size, mask_share, generator),
                lambda done: max(0.02, 1 - done),
                steps=steps,
                minutes=minutes,
                desc="masked words",
                show=progress,
            )
        self._net = net
        counts = {"n_captions": len(texts), "n_words": len(self._vocabulary.words)}
        self.training_ = {**told, **counts, "mask_share": mask_share}
        return self

    def _fitted(self, parses: bool = True) -> StructuredLM:
        if self._net is None:
            raise ConfigError("this parser has learned nothing yet. Next step: fit(captions), or load(folder).")
        if parses and self._net.parser is None:
            raise ConfigError("a plain language model has no trees. Next step: fit(captions, structured=True).")
        return self._net

    def parse(self, captions: Sequence[str]) -> list[Bracketing]:
        """Trees of captions; a caption's tree does not depend on the others.

        Parameters
        ----------
        captions : sequence of str (n,)

        Returns
        -------
        list of Bracketing (n,)

        Raises
        ------
        DataError
            One string instead of a list.
        ConfigError
            Nothing was learned yet.
        """
        net = self._fitted()
        texts = check_texts(captions, "captions")
        words = [tuple(words_of(t, self._pattern)) for t in texts]
        out: list[Bracketing] = [Bracketing(t, w, np.zeros(0), np.zeros(0), ()) for t, w in zip(texts, words)]
        # Alike lengths together: little padding, and memory in proportion to the words of a batch.
        order = sorted((k for k, w in enumerate(words) if w), key=lambda k: len(words[k]))
        with torch.inference_mode():
            for at in range(0, len(order), 256):
                part = order[at : at + 256]
                tokens = padded([self._vocabulary.encode(w.text for w in words[k]) for k in part])
                syntax = net.syntax(tokens.to(self.device))
                distances, heights = (x.double().cpu().numpy() for x in syntax)
                for k, tau, delta in zip(part, distances, heights, strict=True):
                    n = len(words[k])
                    tree = tree_from_distances(tau[: n - 1].tolist())
                    out[k] = Bracketing(texts[k], words[k], tau[: n - 1].copy(), delta[:n].copy(), tree)
        return out

    def phrases(self, captions: Sequence[str]) -> list[list[Phrase]]:
        """Phrases of captions, as :func:`find_phrases` and :class:`GroundingChecker` take them by ``engine``.

        The largest parts of a caption's tree that hold no function word, punctuation or more than ``max_words``
        words; function words at their ends are left out. Parts have no names: a verb by itself is a phrase, too.

        Parameters
        ----------
        captions : sequence of str (n,)

        Returns
        -------
        list of list of Phrase (n,)
            ``text, start, end`` (characters: ``caption[start:end]`` is the phrase) and ``head``, the main word in
            folded case.
        """
        return [self._phrases_of(b) if b.words else [] for b in self.parse(captions)]

    def _phrases_of(self, found: Bracketing) -> list[Phrase]:
        words, out = found.words, []
        for a, b in chunks(found.tree, words, found.text, set(self.function_words_), self.max_words):
            at = {"first": a, "last": b - 1}.get(self.head, a + int(np.argmax(found.heights[a:b])))
            start, end = words[a].start, words[b - 1].end
            out.append(Phrase(found.text[start:end], start, end, words[at].text))
        return out

    def perplexity(self, captions: Sequence[str], *, mask_share: float | None = None, seed: int = 0) -> float:
        """Perplexity of hidden words of captions, best on captions that were not learned from.

        Parameters
        ----------
        captions : sequence of str
        mask_share : float, optional
            Default that of the training.
        seed : int
            Of which words are hidden: the same for every model.
        """
        net = self._fitted(parses=False)
        words = [words_of(t, self._pattern)[: self.max_length] for t in check_texts(captions, "captions")]
        rows = [self._vocabulary.encode(w.text for w in several) for several in words if several]
        if not rows:
            raise DataError("no caption holds a word.")
        share = self.training_.get("mask_share", 0.3) if mask_share is None else mask_share
        return masked_perplexity(net, rows, share=share, seed=seed)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``parser.safetensors`` and ``parser.json``."""
        net = self._fitted(parses=False)
        record = {
            "settings": {n: getattr(self, n) for n in signature(type(self)).parameters if n != "device"},
            "structured": net.parser is not None,
            "vocabulary": self._vocabulary.words,
            "function_words": self.function_words_,
            "training": {k: v for k, v in self.training_.items() if k != "losses"},
            "provenance": provenance(model="SyntacticDistanceParser"),
        }
        return write_folder(folder, _KIND, record, net.state_dict())

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "auto") -> SyntacticDistanceParser:
        """Read what :meth:`save` wrote.

        Raises
        ------
        DataError
            There is none, a newer format wrote it, or its file was changed.
        """
        record, tensors = read_folder(folder, _KIND)
        with reading(folder, "parser"):
            out = cls(device=device, **record["settings"])
            out._vocabulary = Vocabulary(record["vocabulary"])
            out.function_words_ = list(record["function_words"])
            out.training_ = {"losses": [], **record["training"]}
            net = out._start(record["structured"])
            net.load_state_dict(tensors)
            out._net = net.eval()
        return out
