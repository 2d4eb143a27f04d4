"""The simulated world's own CLIP as an open_clip folder: configuration, tokenizer, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuroenc._core.files import atomic_path, write_json

__all__ = [
    "CONTEXT_LENGTH",
    "model_config",
    "world_words",
    "write_config",
    "write_tokenizer",
    "write_weights",
]

CONTEXT_LENGTH = 32
_PAD, _UNKNOWN, _START, _END = "<pad>", "<unknown>", "<start>", "<end>"
# Words that people use in prompts and that the world's captions need not hold.
_PROMPT_WORDS = ("a", "an", "the", "of", "photo", "picture", "image", "scene", "some")
_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def world_words() -> tuple[str, ...]:
    """Vocabulary of the world's captions, its family names, and a few words of prompts; sorted.

    >>> {"face", "banana", "photo"} <= set(world_words())
    True
    """
    from neuroenc.data.simulate import FAMILIES, vocabulary

    return tuple(sorted({*vocabulary(), *FAMILIES, *_PROMPT_WORDS}))


def model_config(vocab_size: int, vision: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """open_clip configuration of the world's CLIP for a vocabulary of ``vocab_size`` tokens."""
    return {
        "embed_dim": 128,
        "vision_cfg": dict(vision or {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}),
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocab_size,
            # open_clip reads the tokenizer from the folder itself whenever this name is not empty.
            "hf_tokenizer_name": "world-clip",
            "width": 128,
            "heads": 4,
            "layers": 3,
        },
    }


def write_tokenizer(folder: Path, words: Sequence[str]) -> int:
    """Write a word-level tokenizer into ``folder``; the number of its tokens.

    The end token has the highest number: open_clip's text tower reads its output there.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    tokens = [_PAD, _UNKNOWN, _START, *words, _END]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\w]+"), behavior="removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}",
        special_tokens=[(_START, vocabulary[_START]), (_END, vocabulary[_END])],
    )
    tokenizer.add_special_tokens([_PAD, _UNKNOWN, _START, _END])
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "tokenizer.json") as temporary:
        tokenizer.save(str(temporary))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT_LENGTH,
            "padding_side": "right",
            "pad_token": _PAD,
            "unk_token": _UNKNOWN,
            "bos_token": _START,
            "eos_token": _END,
        },
    )
    return len(tokens)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write ``open_clip_config.json``: the architecture and the preprocessing."""
    size = config["vision_cfg"]["image_size"]
    preprocessing = {
        "size": size,
        "mean": _MEAN,
        "std": _STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    write_json(folder / "open_clip_config.json", {"model_cfg": dict(config), "preprocess_cfg": preprocessing})


def write_weights(folder: Path, model: Any) -> Path:
    """Write the weights as float16 safetensors (they are read back into a float32 model)."""
    import torch
    from safetensors.torch import save_file

    state = {
        name: (value.half() if value.dtype == torch.float32 else value).contiguous().cpu().clone()
        for name, value in model.state_dict().items()
    }
    path = folder / "open_clip_model.safetensors"
    with atomic_path(path) as temporary:
        save_file(state, str(temporary), metadata={"format": "pt", "made_by": "neuroenc world-clip"})
        # safetensors writes for the owner alone; the rest of the folder is as readable as any file.
        temporary.chmod((folder / "tokenizer.json").stat().st_mode)
    return path
