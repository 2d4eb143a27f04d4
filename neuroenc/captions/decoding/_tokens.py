"""What decoding must know of a tokenizer, and captions as tokens."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuroenc._core.errors import ConfigError, DataError

__all__ = ["caption_pairs", "content_weights", "token_number"]


def token_number(token: str | int, tokenizer: Any, size: int) -> int:
    """Number of one token, given as its text or its number."""
    if isinstance(token, str):
        known = tokenizer.get_vocab()
        found = [known[token]] if token in known else tokenizer.encode(token, add_special_tokens=False)
        if len(found) != 1:
            raise ConfigError(f"stop={token!r} is {len(found)} tokens; legal is the text or number of one token.")
        token = found[0]
    if isinstance(token, bool) or not 0 <= int(token) < size:
        raise ConfigError(f"stop={token!r} is not legal; tokens are numbers under {size}.")
    return int(token)


def content_weights(tokenizer: Any, size: int, free: Set[str]) -> Tensor:
    """1 for tokens of words that another caption should not say again, 0 for others (size,)."""
    texts = (tokenizer.decode([k]).strip().lower() for k in range(min(size, len(tokenizer))))
    said = [float(any(c.isalnum() for c in t) and t not in free) for t in texts]
    return torch.tensor(said + [0.0] * (size - len(said)))


def caption_pairs(
    captions: Any, n: int, encode: Callable[[str], list[int]], room: int, stop: int | None, longest: int | None
) -> tuple[np.ndarray, list[list[int]]]:
    """Row of the embeddings and tokens of each pair; ``stop`` is put behind captions that do not end with it."""
    several = [[c] if isinstance(c, str) else list(c) for c in captions]
    if len(several) != n:
        raise DataError(f"{n} embeddings and captions for {len(several)}; legal is one entry an embedding.")
    known: dict[str, list[int]] = {}
    rows, tokens = [], []
    for row, texts in enumerate(several):
        for text in texts:
            if text not in known:
                found = encode(text)
                if not found:
                    raise DataError(f"caption {text!r} of embedding {row} has no tokens.")
                if stop is not None and found[-1] != stop:
                    found = [*found, stop]
                known[text] = found[:longest]
                if len(known[text]) > room:
                    raise DataError(
                        f"caption {text[:60]!r} of embedding {row} has {len(known[text])} tokens; the language model "
                        f"has room for {room}. Next step: max_tokens={room}."
                    )
            rows.append(row)
            tokens.append(known[text])
    if not rows:
        raise DataError("there are 0 captions; at least one is needed.")
    return np.array(rows), tokens
