"""A step-wise language model of a function, for searches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class FunctionStep:
    """``function(items (rows,), tokens (rows, t)) -> logits (rows, V)`` of the whole history, without state."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], n: int) -> None:
        self.function, self.n = function, int(n)

    def start(self) -> tuple[Tensor, Any]:
        items = torch.arange(self.n)
        tokens = torch.zeros((self.n, 0), dtype=torch.int64)
        return self.function(items, tokens), (items, tokens)

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        items, before = state
        history = torch.cat([before, tokens[:, None]], dim=1)
        return self.function(items, history), (items, history)

    def select(self, state: Any, rows: Tensor) -> Any:
        return tuple(part[rows] for part in state)
