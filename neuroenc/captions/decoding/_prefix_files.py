"""Prefix decoders as files: safetensors, JSON, tokenizer files; and the checkpoints that ClipCap published."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from neuroenc._core.checkpoints import read_checkpoint
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.provenance import provenance
from neuroenc.captions._model_folder import read_record, reading, whole_folder, write_record
from neuroenc.captions.decoding._search_settings import SearchSettings
from neuroenc.embedding import prepare

if TYPE_CHECKING:
    from neuroenc.captions.decoding._prefix import PrefixDecoder

__all__ = ["load", "load_clipcap", "save"]

_VERSION = 1
# A decoder's files, those of any tokenizer, and what training puts beside them.
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md")
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Written by old versions of transformers into GPT-2 checkpoints: the causal mask, which holds nothing learned.
_MASKS = re.compile(r"\.attn\.(bias|masked_bias)$")


def _own(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Parameters and buffers, those that share memory (tied embeddings) once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in module.state_dict().items():
        if value.data_ptr() in seen and value.numel():
            continue
        seen.add(value.data_ptr())
        found[f"{prefix}.{name}"] = value
    return found


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


def save(decoder: PrefixDecoder, folder: str | os.PathLike[str], *, lm: bool = True, dtype: str = "float32") -> Path:
    """Write a decoder as a folder.

    Parameters
    ----------
    decoder : PrefixDecoder
    folder : path
        ``decoder.json, prefix.safetensors``, the tokenizer's files and, with ``lm``, its weights and settings. A
        decoder that stood there is replaced whole.
    lm : bool
        False for a language model that was not trained: it is then given to :func:`load`.
    dtype : {"float32", "float16", "bfloat16"}
        Of the weights in the file.

    Returns
    -------
    Path

    Raises
    ------
    ConfigError
        A constraint, rescoring or mapping of your own, which no file can hold.
    DataError
        The folder holds other things.
    """
    from safetensors.torch import save_file

    if decoder.constraint is not None or decoder.rescore is not None:
        named = "constraint" if decoder.constraint is not None else "rescore"
        raise ConfigError(
            f"this decoder has a {named}, which is not saved with it. Next step: decoder.with_options({named}=None)"
            f".save(folder), and give it again to PrefixDecoder.load(folder, {named}=...)."
        )
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype={dtype!r} is not legal; legal: {', '.join(_DTYPES)}.")
    if not hasattr(decoder.mapping, "kind"):
        raise ConfigError("a mapping network of your own cannot be written. Next step: save its state_dict.")
    state = _own(decoder.mapping, "mapping") | (_own(decoder.lm, "lm") if lm else {})
    tensors = {
        name: (t.to(_DTYPES[dtype]) if t.is_floating_point() else t).detach().cpu().contiguous().clone()
        for name, t in state.items()
    }
    for name, mean in (("mean", decoder.mean), ("text_direction", decoder.text_direction)):
        if mean is not None:
            tensors[name] = torch.from_numpy(np.asarray(mean, dtype=np.float32))
    record = {
        "kind": "prefix decoder",
        "version": _VERSION,
        "mapping": {"kind": decoder.mapping.kind, **decoder.mapping.settings},
        "normalise": decoder.normalise,
        "centre": decoder.centre,
        "source": decoder.source,
        "stop": decoder.stop,
        "search": decoder.search.as_dict(),
        "rerank": decoder.rerank,
        "batch_size": decoder.batch_size,
        "free_words": sorted(decoder.free_words),
        "lm": {k: v for k, v in decoder.lm.config.to_dict().items() if not k.startswith("_")} if lm else None,
        "provenance": provenance(step="prefix decoder"),
    }
    with whole_folder(folder, _FILES) as temporary:
        decoder.tokenizer.save_pretrained(temporary)
        save_file(tensors, str(temporary / "prefix.safetensors"), metadata={"format": "pt"})
        (temporary / "prefix.safetensors").chmod((temporary / "tokenizer_config.json").stat().st_mode)
        write_record(temporary, "decoder.json", record)
    return Path(folder)


def load(
    folder: str | os.PathLike[str], *, lm: Any = None, tokenizer: Any = None, device: str = "auto", **options: Any
) -> PrefixDecoder:
    """Read a decoder that :func:`save` wrote.

    Parameters
    ----------
    folder : path
    lm, tokenizer : optional
        Needed, the language model, where it was not written.
    device : str
    **options
        As in :meth:`PrefixDecoder.with_options`.

    Raises
    ------
    DataError
        Not such a folder, or tensors that do not fit.
    """
    prepare()
    path = Path(folder)
    needed = ("version", "mapping", "normalise", "centre", "source", "stop", "search", "lm")
    record = read_record(path, "decoder.json", "prefix decoder", needed)
    if record["version"] != _VERSION:
        raise DataError(f"{path} was written in version {record['version']}; legal is {_VERSION}.")
    if record["lm"] is None and lm is None:
        raise DataError(f"{path} was written without its language model. Next step: load(folder, lm=...).")
    with reading(path, "prefix decoder"):
        decoder = _build(path, record, lm, tokenizer, device)
    return decoder.with_options(**options)


def _build(path: Path, record: dict[str, Any], lm: Any, tokenizer: Any, device: str) -> PrefixDecoder:
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from neuroenc.captions.decoding._prefix import PrefixDecoder

    state = load_file(str(path / "prefix.safetensors"))
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    if tokenizer is None:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    if record["lm"] is not None:
        settings = dict(record["lm"])
        # Only architectures that transformers itself knows; no code is read from the folder.
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
        _fill(model, {k[3:]: v for k, v in state.items() if k.startswith("lm.")}, f"language model of {path}")
    else:
        model = lm
    mapping = dict(record["mapping"])
    decoder = PrefixDecoder(
        model,
        tokenizer,
        mapping.pop("embedding_dim"),
        mapping=mapping.pop("kind"),
        prefix_length=mapping.pop("prefix_length"),
        mapping_settings={k: v for k, v in mapping.items() if k != "width"},
        normalise=record["normalise"],
        centre=record["centre"],
        source=record["source"],
        stop=record["stop"],
        search=SearchSettings(**record["search"]),
        device=device,
    )
    _fill(decoder.mapping, {k[8:]: v for k, v in state.items() if k.startswith("mapping.")}, f"mapping of {path}")
    decoder.mean = state["mean"].numpy().astype(np.float64) if "mean" in state else None
    decoder.text_direction = state["text_direction"].numpy().astype(np.float64) if "text_direction" in state else None
    decoder.rerank = float(record.get("rerank", 0.0))
    decoder.batch_size = int(record.get("batch_size", decoder.batch_size))
    decoder.free_words = frozenset(record.get("free_words", decoder.free_words))
    return decoder


def load_clipcap(
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
    ``prefix_const`` and ``transformer.layers`` (transformer), beside ``gpt.*`` (GPT-2). Where the language model was
    frozen, and so not written, the file holds no ``gpt.*`` and cannot be read here.

    Parameters
    ----------
    path : path
        Read with ``weights_only=True``: a state dict, nothing that runs.
    tokenizer : tokenizer, path or name, optional
        Default ``"gpt2"``, from the local cache or the hub.
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
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from neuroenc.captions.decoding._prefix import PrefixDecoder

    state = read_checkpoint(path, "ClipCap checkpoint")
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(f"{path} holds {type(state).__name__}, no tensors by name. Next step: save the state_dict.")
    state = {k.removeprefix("module."): v.float() for k, v in state.items() if not _MASKS.search(k)}
    gpt = {k[4:]: v for k, v in state.items() if k.startswith("gpt.")}
    project = {k[13:]: v for k, v in state.items() if k.startswith("clip_project.")}
    if "transformer.wte.weight" not in gpt or not project:
        raise DataError(
            f"{path} has {len(gpt)} tensors under gpt. and {len(project)} under clip_project.; both are needed, as in "
            "the published coco_weights.pt."
        )
    vocabulary, width = gpt["transformer.wte.weight"].shape
    blocks = 1 + max(int(k.split(".")[2]) for k in gpt if k.startswith("transformer.h."))
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=blocks,
        n_head=heads or max(1, width // 64),
        n_positions=len(gpt["transformer.wpe.weight"]),
        # The same function as GPT-2's own "gelu_new", in one kernel.
        activation_function="gelu_pytorch_tanh",
    )
    settings: dict[str, Any] = {}
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
        raise DataError(f"{path}: clip_project.* is neither ClipCap's MLP nor its transformer: {sorted(project)[:4]}.")
    if prefix_length is not None and prefix_length != length:
        raise DataError(f"{path} holds a prefix of {length} tokens, not {prefix_length}.")
    lm = GPT2LMHeadModel(config)
    _fill(lm, gpt, f"gpt.* of {path}")
    if tokenizer is None or isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = AutoTokenizer.from_pretrained("gpt2" if tokenizer is None else os.fspath(tokenizer))
    decoder = PrefixDecoder(
        lm,
        tokenizer,
        dim,
        mapping=kind,
        prefix_length=length,
        mapping_settings=settings,
        device=device,
        stop=".",
    )
    _fill(decoder.mapping, project, f"clip_project.* of {path}")
    return decoder.with_options(**options)
