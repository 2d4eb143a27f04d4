"""Captions by a language model that goes on from a prefix made of an embedding."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.captions._stop_words import STOP_WORDS
from neuroenc.captions.decoding._mapping import make_mapping
from neuroenc.captions.decoding._predicted import as_embeddings, caption_frame, unit
from neuroenc.captions.decoding._rerank import rerank
from neuroenc.captions.decoding._search import Constraint, Rescore
from neuroenc.captions.decoding._search_settings import Generated, SearchSettings, generated, numbered, ranked
from neuroenc.captions.decoding._steps import CausalStep
from neuroenc.captions.decoding._tokens import content_weights, token_number
from neuroenc.embedding._device import resolve_device

__all__ = ["PrefixDecoder"]


class PrefixDecoder:
    r"""ClipCap: a mapping network turns an embedding into a prefix, a causal language model writes on from it.

    .. math:: p(y \mid e) = \prod_t p_{LM}(y_t \mid F(x), y_{<t}), \qquad x = e, \; \frac{e}{\|e\|}
        \;\text{or}\; \frac{e/\|e\| - m}{\|e/\|e\| - m\|}

    with a mean direction m that is, for a decoder trained from images, the mean of its training embeddings, and for
    one trained from texts that of the images that are decoded: texts and images of a contrastive space lie around
    two different means.

    Parameters
    ----------
    lm : transformers.PreTrainedModel
        Causal language model that takes ``inputs_embeds``.
    tokenizer : transformers.PreTrainedTokenizerBase
    embedding_dim : int
    mapping : {"mlp", "transformer"} or Module
    prefix_length : int
    mapping_settings : dict, optional
        Further settings of the mapping network.
    normalise : bool
        x of unit norm. False as released: the norm of a projected voxel says something.
    centre : bool
        Subtract the mean direction; needs ``normalise``.
    source : {"image", "text"}
        What the training embeddings are.
    stop : str or int
        Token that ends a caption.
    search : SearchSettings, optional
    constraint, rescore : callable, optional
        See :func:`beam_search`.
    free_words : iterable of str
        Words that captions of several groups may share without a penalty, with ``diversity="words"``.
    embed_text : callable, optional
        ``embed_text(list of str) -> (n, embedding_dim)`` in the space of the images, for ``predicted``.
    text_direction : array (embedding_dim,), optional
        Mean unit-norm text embedding: texts are moved across the modality gap before their response is predicted.
    rerank : float
        Weight of a caption's likeness to its embedding among all beams of the last step (:math:`\lambda` nats a
        token times their cosine, both around their means with ``centre``); needs ``embed_text``. 0 as released.
    batch_size : int
        Voxels of one search.
    seed : int
        Of the mapping network's first weights.
    device : str

    Raises
    ------
    ConfigError
        Illegal settings.

    References
    ----------
    Mokady, Hertz, Bermano. ClipCap: CLIP prefix for image captioning. 2021.
    Luo, Henderson, Tarr, Wehbe. BrainSCUBA: Fine-grained natural language captions of visual cortex selectivity.
    ICLR 2024.
    Nukrai, Mokady, Globerson. Text-only training for image captioning using noise-injected CLIP. Findings of EMNLP
    2022.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.captions import PrefixDecoder, make_language_model, train_prefix
    >>> lm, tokenizer = make_language_model(["a face", "a house"], width=16, layers=1)
    >>> decoder = PrefixDecoder(lm, tokenizer, 2, prefix_length=2, stop="<end>", device="cpu")
    >>> _ = train_prefix(decoder, np.eye(2), ["a face", "a house"], epochs=100, lr=0.02, warmup=0, progress=False)
    >>> [[c.text for c in found] for found in decoder.generate(np.eye(2), top=1)]
    [['a face'], ['a house']]
    """

    def __init__(
        self,
        lm: Any,
        tokenizer: Any,
        embedding_dim: int,
        *,
        mapping: str | nn.Module = "mlp",
        prefix_length: int = 10,
        mapping_settings: dict[str, Any] | None = None,
        normalise: bool = False,
        centre: bool = False,
        source: str = "image",
        stop: str | int = ".",
        search: SearchSettings | None = None,
        constraint: Constraint | None = None,
        rescore: Rescore | None = None,
        free_words: Iterable[str] = STOP_WORDS,
        embed_text: Callable[[list[str]], Any] | None = None,
        text_direction: Any = None,
        rerank: float = 0.0,
        batch_size: int = 64,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        if source not in ("image", "text"):
            raise ConfigError(f"source={source!r} is not legal; legal: image, text.")
        if centre and not normalise:
            raise ConfigError("centre=True subtracts a mean direction. Next step: normalise=True as well.")
        self.device = resolve_device(device)
        self.lm, self.tokenizer = lm.to(self.device).eval(), tokenizer
        self.embedding_dim = check_whole("embedding_dim", embedding_dim)
        width = int(lm.get_input_embeddings().weight.shape[1])
        if isinstance(mapping, str):
            shape = {"embedding_dim": embedding_dim, "prefix_length": prefix_length, "width": width}
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                mapping = make_mapping(mapping, **shape, **(mapping_settings or {}))
        self.mapping: Any = mapping.to(self.device).eval()
        self.normalise, self.centre, self.source = bool(normalise), bool(centre), source
        self.stop = token_number(stop, tokenizer, self.vocabulary)
        self.search = SearchSettings() if search is None else search
        self.constraint, self.rescore = constraint, rescore
        self.free_words = frozenset(free_words)
        self.embed_text = embed_text
        self.text_direction = None if text_direction is None else np.asarray(text_direction, dtype=np.float64)
        self.rerank = float(rerank)
        self.batch_size = check_whole("batch_size", batch_size)
        #: Mean direction of the training embeddings (embedding_dim,), from training.
        self.mean: np.ndarray | None = None

    def __repr__(self) -> str:
        size = sum(p.numel() for part in (self.mapping, self.lm) for p in part.parameters())
        return (
            f"PrefixDecoder({self.embedding_dim} -> {self.mapping.prefix_length} tokens, "
            f"{type(self.lm).__name__}, {size / 1e6:.1f} M parameters, {self.search.method})"
        )

    def with_options(self, **options: Any) -> PrefixDecoder:
        """A decoder with the same networks and other options of decoding.

        Parameters
        ----------
        **options
            ``search, constraint, rescore, free_words, embed_text, text_direction, rerank, batch_size, centre,
            normalise``, a field of :class:`SearchSettings`, or ``without``: words that no caption may say
            (:class:`WordBan`, beside the constraint).
        """
        own = (
            "search",
            "constraint",
            "rescore",
            "free_words",
            "embed_text",
            "text_direction",
            "rerank",
            "batch_size",
            "centre",
            "normalise",
        )
        fields = self.search.as_dict()
        out = copy.copy(self)
        without = options.pop("without", None)
        for name, value in options.items():
            if name in fields:
                fields[name] = value
            elif name in own:
                setattr(out, name, value)
            else:
                raise ConfigError(unknown_name("option", name, [*own, *fields, "without"]))
        if "search" not in options:
            out.search = SearchSettings(**fields)
        if without is not None:
            from neuroenc.captions.decoding._word_ban import WordBan

            out.constraint = WordBan(without, self.tokenizer, self.vocabulary, within=out.constraint)
        return out

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without special ones."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def text(self, tokens: Sequence[int]) -> str:
        """Text of tokens, without special ones."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    @property
    def vocabulary(self) -> int:
        """Number of the language model's tokens."""
        return int(self.lm.get_input_embeddings().weight.shape[0])

    @property
    def room(self) -> int:
        """Most tokens after a prefix: what the language model's positions leave."""
        positions = getattr(self.lm.config, "max_position_embeddings", None)
        return 10**6 if positions is None else int(positions) - int(self.mapping.prefix_length)

    def inputs(self, embeddings: Any, mean: Any = None) -> np.ndarray:
        """What the mapping network is given, float32 (n, embedding_dim).

        Parameters
        ----------
        embeddings : array (n, embedding_dim)
        mean : array (embedding_dim,), optional
            Direction to subtract with ``centre``; default that of the training embeddings.
        """
        x = as_embeddings(embeddings, self.embedding_dim)
        if self.normalise:
            x = unit(x)
        if self.centre:
            mean = self.mean if mean is None else mean
            if mean is None:
                raise ConfigError("centre=True needs a mean direction. Next step: train the decoder, or give one.")
            x = unit(x - np.asarray(mean, dtype=np.float64))
        return x.astype(np.float32)

    def prefixes(self, inputs: Any) -> Tensor:
        """Prefixes (n, prefix_length, width) of prepared ``inputs``."""
        with torch.inference_mode():
            return self.mapping(torch.from_numpy(np.asarray(inputs, dtype=np.float32)).to(self.device))

    def generate(
        self, embeddings: Any, top: int = 1, *, mean: Any = None, items: Sequence[int] | None = None
    ) -> list[list[Generated]]:
        """Captions of embeddings, the best first, of at most ``max_length`` tokens or what the model has room for.

        The order is the released one: by score, whether a caption has ended or was cut (``finished`` says which).

        Parameters
        ----------
        embeddings : array (n, embedding_dim)
        top : int
            Captions an embedding, at most; equal texts count once.
        mean : array (embedding_dim,), optional
            As in :meth:`inputs`.
        items : sequence of int (n,), optional
            Number of each embedding for constraints, rescoring and random numbers; default its position.

        Returns
        -------
        list of list of Generated
            Scores are averages of log-probabilities (with ``length_penalty=1``), and what ``rerank`` adds.

        Raises
        ------
        ConfigError
            ``rerank`` without ``embed_text``, or below 0.
        """
        check_whole("top", top)
        if self.rerank and self.embed_text is None:
            raise ConfigError(f"rerank={self.rerank:g} needs embed_text. Next step: a text embedder of this space.")
        if not self.rerank >= 0:
            raise ConfigError(f"rerank={self.rerank!r} is not legal; it must be at least 0.")
        x = self.inputs(embeddings, mean)
        numbers = torch.arange(len(x)) if items is None else torch.as_tensor(list(items))
        search = replace(self.search, max_length=min(self.search.max_length, self.room))
        weights = None
        if search.groups > 1 and search.diversity == "words":
            weights = content_weights(self.tokenizer, self.vocabulary, self.free_words).to(self.device)
        out: list[list[Generated]] = []
        for a in range(0, len(x), self.batch_size):
            part = numbers[a : a + self.batch_size]
            step = CausalStep(self.lm, self.prefixes(x[a : a + self.batch_size]), cache=self.search.cache)
            only, bonus = (numbered(f, part.to(self.device)) for f in (self.constraint, self.rescore))
            found = search.run(step, top, self.stop, part.tolist(), only, bonus, weights)
            written = [generated(found, item, self.text) for item in range(len(part))]
            if self.rerank and self.embed_text is not None:
                direction = self.text_direction if self.centre else None
                written = rerank(written, x[a : a + self.batch_size], self.rerank, self.embed_text, direction)
            out.extend(ranked(captions, top) for captions in written)
        return out

    def decode(self, projection: xr.Dataset, top: int = 5, *, coef: Any = None, intercept: Any = None) -> pd.DataFrame:
        """The ``top`` captions of each voxel; see :class:`Decoder`.

        Voxels without a projection (NaN) get no row. ``score`` is the average log-probability of a caption's
        tokens. ``caption_id`` is "" unless the constraint is a :class:`CorpusConstraint`: then the ids of the
        captions from which the longest phrase comes, joined by ";". ``predicted`` is NaN without ``coef`` and
        ``embed_text``.
        """
        embedding = np.asarray(projection["embedding"].values, dtype=np.float64)
        rows = np.flatnonzero(np.isfinite(embedding).all(axis=1))
        mean = None
        if self.centre and self.source == "text":
            if "bank_direction" not in projection:
                raise ConfigError("a centred decoder of texts needs the projection's bank_direction.")
            mean = projection["bank_direction"].values
        found = self.generate(embedding[rows], top, mean=mean, items=rows.tolist())
        return caption_frame(
            projection, rows, found, self._origin, coef, intercept, self.embed_text, self.text_direction
        )

    def _origin(self, tokens: list[int]) -> str:
        provenance = getattr(self.constraint, "provenance", None)
        if provenance is None:
            return ""
        found = provenance(tokens)
        if not len(found):
            return ""
        return str(found["ids"].iloc[int((found["end"] - found["start"]).to_numpy().argmax())])

    def save(self, folder: str | os.PathLike[str], *, lm: bool = True, dtype: str = "float32") -> Any:
        """Write the decoder; see :func:`neuroenc.captions.decoding._prefix_files.save`."""
        from neuroenc.captions.decoding._prefix_files import save

        return save(self, folder, lm=lm, dtype=dtype)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], **options: Any) -> PrefixDecoder:
        """Read a decoder; see :func:`neuroenc.captions.decoding._prefix_files.load`."""
        from neuroenc.captions.decoding._prefix_files import load

        return load(folder, **options)

    @classmethod
    def load_clipcap(cls, path: str | os.PathLike[str], tokenizer: Any = None, **options: Any) -> PrefixDecoder:
        """Read a checkpoint of ClipCap; see :func:`neuroenc.captions.decoding._prefix_files.load_clipcap`."""
        from neuroenc.captions.decoding._prefix_files import load_clipcap

        return load_clipcap(path, tokenizer, **options)
