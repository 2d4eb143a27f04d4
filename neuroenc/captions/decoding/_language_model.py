"""Captioners that ship, and small language models trained without a download."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.captions.decoding._prefix import PrefixDecoder
from neuroenc.embedding import TextEmbedder, prepare

_PAD, _END = "<pad>", "<end>"


def make_tokenizer(texts: Sequence[str], size: int = 800) -> Any:
    """Train a lossless byte-level BPE on ``texts``, as a transformers tokenizer.

    Parameters
    ----------
    texts : sequence of str
    size : int
        Most tokens: 256 bytes, two special ones, and what is learned.

    Examples
    --------
    >>> tokenizer = make_tokenizer(["A red cat.", "A red dog."])
    >>> tokenizer.decode(tokenizer.encode("A red dög."))
    'A red dög.'
    """
    prepare()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[_PAD, _END],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    # One after another and sorted: merges of equal counts then do not depend on the order of scenes.
    tokenizer.train_from_iterator(sorted(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_PAD, eos_token=_END, clean_up_tokenization_spaces=False
    )


def make_language_model(
    texts: Sequence[str],
    *,
    width: int = 192,
    layers: int = 4,
    heads: int | None = None,
    positions: int = 64,
    vocabulary: int = 800,
    dropout: float = 0.0,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Make an untrained GPT-2 and a byte-level BPE tokenizer learned from ``texts``, for `train_prefix`.

    Parameters
    ----------
    texts : sequence of str
    width, layers, positions : int
    heads : int, optional
        Default one for each 32 of the width.
    vocabulary : int
        Most tokens.
    dropout : float
    seed : int
        Of the first weights.

    Returns
    -------
    tuple
        Model and tokenizer.

    Examples
    --------
    >>> model, tokenizer = make_language_model(["a dog near a house."], width=16, layers=1)
    >>> model.config.n_embd, tokenizer.decode(tokenizer.encode("a dog"))
    (16, 'a dog')
    """
    tokenizer = make_tokenizer(texts, vocabulary)
    from transformers import GPT2Config, GPT2LMHeadModel

    pad, end = tokenizer.convert_tokens_to_ids([_PAD, _END])
    settings: dict[str, Any] = {"n_positions": positions, "n_embd": width, "n_layer": layers}
    settings |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    settings |= {"bos_token_id": end, "eos_token_id": end, "pad_token_id": pad, "n_head": heads or max(1, width // 32)}
    # The same function as GPT-2's own "gelu_new", in one kernel.
    config = GPT2Config(vocab_size=len(tokenizer), activation_function="gelu_pytorch_tanh", **settings)
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config), tokenizer


#: Name, and the model of :class:`neuroenc.embedding.TextEmbedder` whose space its captioner reads; how it decodes.
#: The weight of "photo" was chosen on the 250 photographs of its validation (CIDEr-D .83 -> .90).
_SHIPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "photo": ("conse", {"beams": 10, "rerank": 4.0}),
    "world": ("world", {}),
}


def load_captioner(
    name: str | os.PathLike[str] = "photo", *, tokenizer: Any = None, device: str = "auto", **options: Any
) -> PrefixDecoder:
    """Load a captioner: one that ships with the package, a saved one, or a checkpoint in ClipCap's layout.

    ``"photo"``
        Embeddings of ``ImageEmbedder("conse")``, captions as people wrote them of COCO photographs. **It inherits
        ConSE's blindness**: that space has hardly any class for people, so captions may name a man or a woman because
        people often stand beside a bat or a surfboard, never because one was seen. A person in a caption is no
        evidence of a person, nor a caption without one evidence against: of 62 held-out photographs whose first
        annotator names nobody, 28 got a caption with people; ``without=load_lexicon()["person"]`` leaves them out.
        Actions, counts and positions are likewise those that usually go with the objects. Trained on captions of COCO
        2017 (CC BY 4.0).
    ``"world"``
        Embeddings of ``ImageEmbedder("world")``, scenes of :func:`neuroenc.data.simulate.simulate_world`.

    Parameters
    ----------
    name : {"photo", "world"} or path
        A folder is read by :meth:`PrefixDecoder.load`, a file by :meth:`PrefixDecoder.load_clipcap`; their
        ``embed_text`` is yours to give, of the space that they were trained for.
    tokenizer : tokenizer, path or name, optional
        Of a file; default GPT-2's.
    device : str
    **options
        As in :meth:`PrefixDecoder.with_options`. ``"photo"`` puts ten beams in order by what they say of the embedding
        (``rerank=4``; 0 leaves it to the language model alone).

    Returns
    -------
    PrefixDecoder
        One that ships comes with ``embed_text`` (its model is loaded when first used) and ``text_direction``, so that
        its captions have a ``predicted`` response. ``generate`` needs ``mean``, the mean direction of your images,
        where they are not alike those of training; ``decode`` takes it from the projection.

    Raises
    ------
    ConfigError
        Unknown name, or a tokenizer for what has its own.
    DataError
        A folder or file that cannot be read.

    References
    ----------
    Chen et al. Microsoft COCO Captions: Data collection and evaluation server. 2015.

    Examples
    --------
    >>> load_captioner("world", device="cpu").embedding_dim
    128
    """
    path = Path(name)
    if path.is_file():
        return PrefixDecoder.load_clipcap(path, tokenizer, device=device, **options)
    if tokenizer is not None:
        raise ConfigError(f"captioner {str(name)!r} has its tokenizer. Next step: leave tokenizer out.")
    if path.is_dir():
        return PrefixDecoder.load(path, device=device, **options)
    if name not in _SHIPPED:
        raise ConfigError(unknown_name("captioner", name, _SHIPPED, "A folder or a file is legal too."))
    name = str(name)
    with as_file(files("neuroenc.captions.decoding") / "weights" / name) as folder:
        decoder = PrefixDecoder.load(folder, device=device)
    model, own = _SHIPPED[name]
    # Its model is loaded when the first text comes.
    decoder.embed_text = TextEmbedder(model, device=device, cache=False, progress=False).embed
    return decoder.with_options(**{**own, **options})
