"""What the search engine asks of a language model: next-token logits for many hypotheses, and their state."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["CausalStep", "FunctionStep", "StepModel"]


class StepModel(Protocol):
    """A model that writes one token after another, for many hypotheses at once."""

    def start(self) -> tuple[Tensor, Any]:
        """Logits (n, V) of the first token of each of n items, and a state with n rows."""
        ...

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (rows, V) after ``tokens`` (rows,) have been written, and the state with them."""
        ...

    def select(self, state: Any, rows: Tensor) -> Any:
        """State whose row r is row ``rows[r]`` of the given one, which is not used again."""
        ...


class FunctionStep:
    """A step model from a function of the whole history; nothing is remembered between steps.

    Parameters
    ----------
    function : callable
        ``function(items (rows,), tokens (rows, t)) -> logits (rows, V)``.
    n : int
        Items.

    Examples
    --------
    >>> import torch
    >>> table = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    >>> step = FunctionStep(lambda items, tokens: table[tokens[:, -1] if tokens.shape[1] else items], n=1)
    >>> step.start()[0].tolist()
    [[0.0, 1.0, 0.0]]
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], n: int) -> None:
        self.function, self.n = function, int(n)

    def start(self) -> tuple[Tensor, Any]:
        """See `StepModel`."""
        items = torch.arange(self.n)
        tokens = torch.zeros((self.n, 0), dtype=torch.int64)
        return self.function(items, tokens), (items, tokens)

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """See `StepModel`."""
        items, before = state
        history = torch.cat([before, tokens[:, None]], dim=1)
        return self.function(items, history), (items, history)

    def select(self, state: Any, rows: Tensor) -> Any:
        """See `StepModel`."""
        return tuple(part[rows] for part in state)


class CausalStep:
    """A causal language model of transformers that goes on from a prefix of embeddings.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Any causal language model that takes ``inputs_embeds``; in evaluation mode.
    prefix : Tensor (n, length, width)
        What is in front of the first token, of equal length for all items: no padding, no mask.
    cache : bool
        Keep keys and values of what has been read. False reads everything again at each step, as the released
        code of ClipCap does: for tests and comparisons.
    """

    def __init__(self, model: Any, prefix: Tensor, cache: bool = True) -> None:
        self.model, self.prefix, self.cache = model, prefix, bool(cache)
        self._embed = model.get_input_embeddings()
        # Newer transformers call it "cache".
        self._past = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"

    def start(self) -> tuple[Tensor, Any]:
        """See `StepModel`."""
        return self._read(self.prefix, None)

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """See `StepModel`."""
        new = self._embed(tokens[:, None])
        if self.cache:
            return self._read(new, state)
        return self._read(torch.cat([state, new], dim=1), None)

    def select(self, state: Any, rows: Tensor) -> Any:
        """See `StepModel`."""
        if isinstance(state, Tensor):
            return state[rows]
        if hasattr(state, "reorder_cache"):
            state.reorder_cache(rows)
            return state
        return tuple(tuple(part[rows] for part in layer) for layer in state)

    def _read(self, embedded: Tensor, past: Any) -> tuple[Tensor, Any]:
        # Inference mode, so that no graph is kept behind the cache.
        with torch.inference_mode():
            found = self.model(inputs_embeds=embedded, use_cache=self.cache, **{self._past: past})
        return found.logits[:, -1], getattr(found, self._past) if self.cache else embedded
