"""Prompts that tell a decoder which level of document is asked for: words, learned vectors, or both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError
from neuroenc.retrieval import LEVELS

#: Words in front of an n-gram, in training and in retrieval, so that one model knows what is asked for.
LEVEL_PROMPTS = {"phrase": "phrase:", "caption": "caption:", "image": "image:", "category": "category:"}
#: Kinds of prompts.
PROMPT_KINDS = ("none", "discrete", "continuous", "hybrid")


class LevelPrompts(nn.Module):
    """Prompts of levels: "none", "discrete" (words), "continuous" (learned vectors), "hybrid" (vectors, then words).

    Parameters
    ----------
    kind : {"none", "discrete", "continuous", "hybrid"}
    embeddings : Tensor (V, width)
        Token embeddings of the language model: vectors begin as some of them, drawn with ``seed``.
    words : mapping from level to str
    length : int
        Vectors of a level.
    """

    def __init__(
        self,
        kind: str,
        embeddings: Tensor,
        words: Mapping[str, str] = LEVEL_PROMPTS,
        length: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.kind = one_of("prompt", kind, PROMPT_KINDS)
        unknown = sorted(set(words) - set(LEVELS))
        if unknown:
            raise ConfigError(f"words of {unknown[0]!r}, which is no level; legal: {', '.join(LEVELS)}.")
        self.words = {k: str(v) for k, v in words.items()} if kind in ("discrete", "hybrid") else {}
        self.length = check_whole("prompt_length", length) if kind in ("continuous", "hybrid") else 0
        drawn = np.random.default_rng(seed).integers(0, len(embeddings), (len(LEVELS), self.length))
        at = torch.from_numpy(drawn).to(embeddings.device)
        #: (level, length, width), in the order of `neuroenc.retrieval.LEVELS`.
        self.vectors = nn.Parameter(embeddings.detach()[at].clone())

    def number(self, level: str) -> int:
        """Place of a level's vectors."""
        return LEVELS.index(one_of("level", level, LEVELS))

    def word(self, level: str) -> str:
        """Words of a level, "" where it has none."""
        return self.words.get(level, "")

    def record(self) -> dict[str, Any]:
        """What a file keeps beside the vectors."""
        return {"kind": self.kind, "words": self.words, "length": self.length}
