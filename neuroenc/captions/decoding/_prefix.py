"""Prefix language models (ClipCap): captions generated from an embedding."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

from neuroenc._core.arrays import unit_rows
from neuroenc._core.checkpoints import read_checkpoint
from neuroenc._core.checks import at_least, check_whole, one_of
from neuroenc._core.device import resolve_device
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.hub import from_hub
from neuroenc._core.progress import progress
from neuroenc._core.provenance import provenance
from neuroenc._core.weights import Kind, read_folder, reading, write_folder
from neuroenc.captions.decoding._constraints import WordBan, content_weights, token_number
from neuroenc.captions.decoding._level_prompts import LevelPrompts
from neuroenc.captions.decoding._mapping import make_mapping
from neuroenc.captions.decoding._retrieval import caption_frame, rerank
from neuroenc.captions.decoding._sampling import CausalStep, Constraint
from neuroenc.captions.decoding._search import Generated, SearchSettings, generated, numbered, ranked
from neuroenc.captions.text._words import STOP_WORDS
from neuroenc.embedding import prepare

_DECODING = ("normalise", "centre", "rerank", "batch_size")
_SETTINGS = ("source", "stop", *_DECODING)
_OPTIONS = ("search", "constraint", "free_words", "embed_text", "text_direction", *_DECODING)
# A decoder's files, those of any tokenizer, and what training puts beside them.
_KIND = Kind(
    "prefix decoder",
    "decoder.json",
    "prefix.safetensors",
    ("mapping", "normalise", "centre", "source", "stop", "search", "lm"),
    ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md"),
)
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Written by old versions of transformers into GPT-2 checkpoints: the causal mask, which holds nothing learned.
_MASKS = re.compile(r"\.attn\.(bias|masked_bias)$")


def _own(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Parameters and buffers, those that share memory (tied embeddings) once."""
    found: dict[int | str, tuple[str, Tensor]] = {}
    for name, value in module.state_dict().items():
        found.setdefault(value.data_ptr() if value.numel() else name, (f"{prefix}.{name}", value))
    return dict(found.values())


def _fill(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load all of a module's own tensors; tied ones follow."""
    wanted = {name.split(".", 1)[1] for name in _own(module, "x")}
    missing, extra = sorted(wanted - set(state)), sorted(set(state) - set(module.state_dict()))
    if missing or extra:
        raise DataError(
            f"{what}: {len(missing)} tensors are missing ({', '.join(missing[:3])}) and {len(extra)} are not known "
            f"({', '.join(extra[:3])}). Next step: give the settings that the checkpoint was made with."
        )
    mine = module.state_dict()
    for name, value in state.items():
        if mine[name].shape != value.shape:
            raise DataError(f"{what}: {name} has shape {tuple(value.shape)}, expected {tuple(mine[name].shape)}.")
    module.load_state_dict(state, strict=False)


def read_tokenizer(name: str | os.PathLike[str]) -> Any:
    """A tokenizer of transformers by its folder, or by its name in the local cache or the hub."""
    prepare()
    from transformers import AutoTokenizer

    if Path(name).is_absolute() and not Path(name).is_dir():
        raise DataError(f"no folder {name} of a tokenizer. Next step: check the path.")
    if not Path(name).is_dir():
        step = "copy the folder of its tokenizer.json to this machine, and give that as the tokenizer"
        return from_hub(lambda: AutoTokenizer.from_pretrained(os.fspath(name)), f"the tokenizer {str(name)!r}", step)
    with reading(name, "tokenizer"):
        return AutoTokenizer.from_pretrained(os.fspath(name), local_files_only=True)


class PrefixDecoder:
    r"""ClipCap decoder: a mapping network turns an embedding into a prefix for a causal language model.

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
    constraint : callable, optional
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
        free_words: Iterable[str] = STOP_WORDS,
        embed_text: Callable[[list[str]], Any] | None = None,
        text_direction: Any = None,
        rerank: float = 0.0,
        batch_size: int = 64,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        one_of("source", source, ("image", "text"))
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
        self.constraint, self.free_words = constraint, frozenset(free_words)
        self.embed_text = embed_text
        self.text_direction = None if text_direction is None else np.asarray(text_direction, dtype=np.float64)
        self.rerank = float(rerank)
        self.batch_size = check_whole("batch_size", batch_size)
        #: Mean direction of the training embeddings (embedding_dim,), from training.
        self.mean: np.ndarray | None = None
        #: What a decoder that `train_retriever` trained begins with at each level; None for a decoder of captions.
        self.prompts: LevelPrompts | None = None

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
            ``search, constraint, free_words, embed_text, text_direction, rerank, batch_size, centre, normalise``, a
            field of :class:`SearchSettings`, or ``without``: words that no caption may say (:class:`WordBan`, beside
            the constraint).
        """
        fields = self.search.as_dict()
        out = copy.copy(self)
        without = options.pop("without", None)
        for name, value in options.items():
            if name in fields:
                fields[name] = value
            elif name in _OPTIONS:
                setattr(out, name, value)
            else:
                raise ConfigError(unknown_name("option", name, [*_OPTIONS, *fields, "without"]))
        if "search" not in options:
            out.search = SearchSettings(**fields)
        if without is not None:
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
        taken = int(self.mapping.prefix_length) + (self.prompts.length if self.prompts is not None else 0)
        return 10**6 if positions is None else int(positions) - taken

    def inputs(self, embeddings: Any, mean: Any = None) -> np.ndarray:
        """What the mapping network is given, float32 (n, embedding_dim).

        Parameters
        ----------
        embeddings : array (n, embedding_dim)
        mean : array (embedding_dim,), optional
            Direction to subtract with ``centre``; default that of the training embeddings.
        """
        x = np.asarray(embeddings, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.embedding_dim:
            raise DataError(f"embeddings have shape {x.shape}; legal is (n, {self.embedding_dim}).")
        # Here, because the unit vector of NaN is 0.
        bad = int((~np.isfinite(x).all(axis=1)).sum())
        if bad:
            raise DataError(f"{bad} of {len(x)} embeddings are not finite. Next step: leave those out.")
        if self.normalise:
            x = unit_rows(x)
        if self.centre:
            mean = self.mean if mean is None else mean
            if mean is None:
                raise ConfigError("centre=True needs a mean direction. Next step: train the decoder, or give one.")
            x = unit_rows(x - np.asarray(mean, dtype=np.float64))
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
            Captions an embedding, at most; equal texts count once, and empty ones not at all.
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
        at_least("rerank", self.rerank)
        x = self.inputs(embeddings, mean)
        numbers = torch.arange(len(x)) if items is None else torch.as_tensor(list(items))
        search = replace(self.search, max_length=min(self.search.max_length, self.room))
        weights = None
        if search.groups > 1 and search.diversity == "words":
            weights = content_weights(self.tokenizer, self.vocabulary, self.free_words).to(self.device)
        out: list[list[Generated]] = []
        for a in progress(range(0, len(x), self.batch_size), desc="captions", show=False):
            part = numbers[a : a + self.batch_size]
            step = CausalStep(self.lm, self.prefixes(x[a : a + self.batch_size]), cache=self.search.cache)
            only = numbered(self.constraint, part.to(self.device))
            found = search.run(step, top, self.stop, part.tolist(), only, weights)
            # What holds special tokens alone is no caption.
            written = [[c for c in generated(found, item, self.text) if c.text] for item in range(len(part))]
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
        found = self.generate(embedding[rows], top, mean=self.mean_of(projection), items=rows.tolist())
        return caption_frame(self, projection, rows, found, coef, intercept)

    def mean_of(self, projection: xr.Dataset) -> np.ndarray | None:
        """Mean direction of projected weights where this decoder read texts, whose own mean is another; else None."""
        if not (self.centre and self.source == "text"):
            return None
        if "bank_direction" not in projection:
            raise ConfigError("a centred decoder of texts needs the projection's bank_direction.")
        return np.asarray(projection["bank_direction"].values)

    def origin(self, tokens: list[int]) -> str:
        """Captions of the corpus that hold the longest piece of ``tokens``, if the constraint knows; else ""."""
        known = getattr(self.constraint, "provenance", None)
        found: Any = [] if known is None else known(tokens)
        if not len(found):
            return ""
        return str(found["ids"].iloc[int((found["end"] - found["start"]).to_numpy().argmax())])

    def save(self, folder: str | os.PathLike[str], *, lm: bool = True, dtype: str = "float32") -> Path:
        """Write the decoder to a folder.

        Parameters
        ----------
        folder : path
            ``decoder.json, prefix.safetensors``, the tokenizer's files and, with ``lm``, its weights and settings. A
            decoder that stood there is replaced whole.
        lm : bool
            False for a language model that was not trained: it is then given to :meth:`load`.
        dtype : {"float32", "float16", "bfloat16"}
            Of the weights in the file.

        Raises
        ------
        ConfigError
            A constraint or mapping of your own, which no file can hold.
        DataError
            The folder holds other things.
        """
        if self.constraint is not None:
            raise ConfigError(
                "this decoder has a constraint, which is not saved with it. Next step: "
                "decoder.with_options(constraint=None).save(folder), and give it again to "
                "PrefixDecoder.load(folder, constraint=...)."
            )
        one_of("dtype", dtype, _DTYPES)
        if not hasattr(self.mapping, "kind"):
            raise ConfigError("a mapping network of your own cannot be written. Next step: save its state_dict.")
        state = _own(self.mapping, "mapping") | (_own(self.lm, "lm") if lm else {})
        state |= _own(self.prompts, "prompts") if self.prompts is not None and self.prompts.length else {}
        tensors = {name: t.to(_DTYPES[dtype]) if t.is_floating_point() else t for name, t in state.items()}
        for name, mean in (("mean", self.mean), ("text_direction", self.text_direction)):
            if mean is not None:
                tensors[name] = torch.from_numpy(np.asarray(mean, dtype=np.float32))
        record = {
            "mapping": {"kind": self.mapping.kind, **self.mapping.settings},
            **{name: getattr(self, name) for name in _SETTINGS},
            "search": self.search.as_dict(),
            "free_words": sorted(self.free_words),
            "prompts": None if self.prompts is None else self.prompts.record(),
            "lm": {k: v for k, v in self.lm.config.to_dict().items() if not k.startswith("_")} if lm else None,
            "provenance": provenance(step="prefix decoder"),
        }
        return write_folder(folder, _KIND, record, tensors, self.tokenizer.save_pretrained)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        lm: Any = None,
        tokenizer: Any = None,
        device: str = "auto",
        **options: Any,
    ) -> PrefixDecoder:
        """Read a decoder that :meth:`save` wrote.

        Parameters
        ----------
        folder : path
        lm, tokenizer : optional
            Needed, the language model, where it was not written.
        device : str
        **options
            As in :meth:`with_options`.

        Raises
        ------
        DataError
            Not such a folder, or tensors that do not fit.
        """
        prepare()
        from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

        record, state = read_folder(folder, _KIND)
        if record["lm"] is None and lm is None:
            raise DataError(f"{folder} was written without its language model. Next step: load(folder, lm=...).")
        with reading(folder, "prefix decoder"):
            state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
            if tokenizer is None:
                tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
            if record["lm"] is not None:
                settings = dict(record["lm"])
                # Only architectures that transformers itself knows; no code is read from the folder.
                lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
                _fill(lm, {k[3:]: v for k, v in state.items() if k.startswith("lm.")}, f"language model of {folder}")
            mapping = dict(record["mapping"])
            decoder = cls(
                lm,
                tokenizer,
                mapping.pop("embedding_dim"),
                mapping=mapping.pop("kind"),
                prefix_length=mapping.pop("prefix_length"),
                mapping_settings={k: v for k, v in mapping.items() if k != "width"},
                search=SearchSettings(**record["search"]),
                free_words=record.get("free_words", STOP_WORDS),
                device=device,
                # Decoders of before have no rerank and no batch_size.
                **{k: record[k] for k in _SETTINGS if k in record},
            )
            mapped = {k[8:]: v for k, v in state.items() if k.startswith("mapping.")}
            _fill(decoder.mapping, mapped, f"mapping of {folder}")
            if record.get("prompts") is not None:
                decoder.prompts = LevelPrompts(embeddings=lm.get_input_embeddings().weight, **record["prompts"])
                learned = {k[8:]: v for k, v in state.items() if k.startswith("prompts.")}
                if decoder.prompts.length:
                    _fill(decoder.prompts, learned, f"prompts of {folder}")
            for name in ("mean", "text_direction"):
                setattr(decoder, name, state[name].numpy().astype(np.float64) if name in state else None)
        return decoder.with_options(**options)

    @classmethod
    def load_clipcap(
        cls,
        path: str | os.PathLike[str],
        tokenizer: Any = None,
        *,
        heads: int | None = None,
        mapping_heads: int = 8,
        prefix_length: int | None = None,
        device: str = "auto",
        **options: Any,
    ) -> PrefixDecoder:
        """Read a checkpoint in ClipCap's layout, such as the published COCO weights (``coco_weights.pt``).

        Sizes are read from the tensors: ``clip_project.model.{0,2}`` (MLP), or ``clip_project.linear``,
        ``prefix_const`` and ``transformer.layers`` (transformer), beside ``gpt.*`` (GPT-2). Where the language model
        was frozen, and so not written, the file holds no ``gpt.*`` and cannot be read here.

        Parameters
        ----------
        path : path
            Read with ``weights_only=True``: a state dict, nothing that runs.
        tokenizer : tokenizer, path or name, optional
            Default ``"gpt2"``, from the local cache or the hub; a folder is never looked for there.
        heads : int, optional
            Of GPT-2; default one for each 64 of its width.
        mapping_heads : int
            Of the transformer mapping.
        prefix_length : int, optional
            Checked against the file.
        device : str
        **options
            As in :meth:`PrefixDecoder.with_options`.

        Returns
        -------
        PrefixDecoder
            Un-normalised embeddings, beam search of 5 to ".", and captions in the order of their scores, as released.

        Raises
        ------
        DataError
            Tensors that are missing, not known, or of other shapes.
        """
        prepare()
        from transformers import GPT2Config, GPT2LMHeadModel

        state = read_checkpoint(path, "ClipCap checkpoint")
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise DataError(f"{path} holds {type(state).__name__}, no tensors by name. Next step: save the state_dict.")
        state = {k.removeprefix("module."): v.float() for k, v in state.items() if not _MASKS.search(k)}
        gpt = {k[4:]: v for k, v in state.items() if k.startswith("gpt.")}
        project = {k[13:]: v for k, v in state.items() if k.startswith("clip_project.")}
        if "transformer.wte.weight" not in gpt or not project:
            raise DataError(
                f"{path} has {len(gpt)} tensors under gpt. and {len(project)} under clip_project.; both are needed, as "
                "in the published coco_weights.pt."
            )
        vocabulary, width = gpt["transformer.wte.weight"].shape
        blocks = 1 + max(int(k.split(".")[2]) for k in gpt if k.startswith("transformer.h."))
        config = GPT2Config(
            vocab_size=vocabulary,
            n_embd=width,
            n_layer=blocks,
            n_head=heads or max(1, width // 64),
            n_positions=len(gpt["transformer.wpe.weight"]),
            # Those of the published tokenizer may lie outside of a smaller vocabulary.
            bos_token_id=None,
            eos_token_id=None,
            # The same function as GPT-2's own "gelu_new", in one kernel.
            activation_function="gelu_pytorch_tanh",
        )
        settings: dict[str, Any]
        if "prefix_const" in project:
            kind, length, dim = "transformer", len(project["prefix_const"]), project["linear.weight"].shape[1]
            settings = {
                "clip_length": len(project["linear.weight"]) // width,
                "layers": 1 + max(int(k.split(".")[2]) for k in project if k.startswith("transformer.layers.")),
                "heads": mapping_heads,
                "ratio": len(project["transformer.layers.0.mlp.fc1.weight"]) / width,
            }
        elif "model.2.weight" in project:
            out, hidden = project["model.2.weight"].shape
            kind, length, dim, settings = "mlp", out // width, project["model.0.weight"].shape[1], {"hidden": hidden}
        else:
            raise DataError(
                f"{path}: clip_project.* is neither ClipCap's MLP nor its transformer: {sorted(project)[:4]}."
            )
        if prefix_length is not None and prefix_length != length:
            raise DataError(f"{path} holds a prefix of {length} tokens, not {prefix_length}.")
        lm = GPT2LMHeadModel(config)
        _fill(lm, gpt, f"gpt.* of {path}")
        if tokenizer is None or isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = read_tokenizer(tokenizer or "gpt2")
        shape: dict[str, Any] = {"mapping": kind, "prefix_length": length, "mapping_settings": settings}
        decoder = cls(lm, tokenizer, dim, **shape, device=device)
        _fill(decoder.mapping, project, f"clip_project.* of {path}")
        return decoder.with_options(**options)
