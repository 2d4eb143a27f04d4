"""The one way into a running model: heads recorded, masked, patched and mixed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neuroenc.attention._attention import Attention

__all__ = ["HeadTap", "Recording", "attentions"]

Head = tuple[int, int]


class Recording(NamedTuple):
    """What heads gave: a list over layers of a list over calls of the layer."""

    outputs: list[list[Tensor]]  # (batch, heads, query, dim / heads)
    weights: list[list[Tensor]]  # (batch, heads, rows, key); empty where not asked for


def attentions(model: nn.Module) -> list[Attention]:
    """Every `Attention` in a module, in order; its layers.

    Examples
    --------
    >>> len(attentions(nn.Sequential(Attention(8, 2), nn.Linear(8, 8), Attention(8, 2))))
    2
    """
    layers = [m for m in model.modules() if isinstance(m, Attention)]
    if not layers:
        raise ValueError(
            f"no Attention in {type(model).__name__}; legal: a module with at least one. Give the network."
        )
    return layers


class HeadTap:
    r"""Context manager over all heads of a model, by (layer, head).

    Inside, ``record``, ``mask``, ``patch`` and ``mix`` say what happens to head outputs from now on, in the order in
    which they were asked for; what is recorded is what comes out after all of them. On exit, also on an error, the
    model is as it was. A model has one tap at a time.

    Parameters
    ----------
    model : torch.nn.Module
        With `Attention` somewhere inside.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.attention import Block, Stack
    >>> stack = Stack([Block(Attention(8, 2), hidden=8) for _ in range(2)]).eval()
    >>> a, b = torch.randn(2, 1, 5, 8)
    >>> with HeadTap(stack) as tap:
    ...     tap.record()
    ...     other = stack(b)[0]
    ...     recording = tap.recorded()
    ...     tap.patch(recording, heads=[(0, 1)])
    ...     patched = stack(a)[0]
    >>> recording.outputs[0][0].shape, bool((patched == stack(a)[0]).all())
    (torch.Size([1, 2, 5, 4]), False)
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = attentions(model)
        self._effects: list[Callable[[int, Tensor], Tensor]] = []
        self._recording: Recording | None = None
        self._rows: slice | None = None
        self._open = False

    @property
    def heads(self) -> list[Head]:
        """All (layer, head)."""
        return [(layer, head) for layer, attention in enumerate(self.layers) for head in range(attention.heads)]

    def __enter__(self) -> HeadTap:
        taken = [number for number, layer in enumerate(self.layers) if layer.tap is not None]
        if taken:
            raise ValueError(f"layers {taken} are tapped already; legal: one tap at a time. Leave the other one first.")
        self._before = [layer.tap_weights for layer in self.layers]
        for number, layer in enumerate(self.layers):
            layer.tap = partial(self._pass, number)
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for layer, before in zip(self.layers, self._before):
            layer.tap, layer.tap_weights = None, before
        self._open = False
        self.clear()

    def record(self, weights: slice | None = None) -> None:
        """Start a recording; with ``weights``, also of the weights of these rows (slower: nothing is fused then)."""
        self._check_open()
        self._rows = weights
        self._recording = Recording([[] for _ in self.layers], [[] for _ in self.layers])
        for layer in self.layers:
            layer.tap_weights = weights is not None

    def recorded(self) -> Recording:
        """Stop the recording and return it."""
        found = self._recording
        if found is None:
            raise ValueError("nothing is being recorded; legal: record(), then runs of the model, then recorded().")
        self._recording = None
        for layer, before in zip(self.layers, self._before):
            layer.tap_weights = before
        return found

    def clear(self) -> None:
        """Forget all masks, patches, mixes and recordings."""
        self._effects, self._recording = [], None
        if self._open:
            for layer, before in zip(self.layers, self._before):
                layer.tap_weights = before

    def mask(self, heads: Iterable[Head], value: str = "zero") -> None:
        """Replace heads by zero, or by their mean over cases and queries of the same call."""
        self._check_open()
        if value not in ("zero", "mean"):
            raise ValueError(f"unknown value {value!r}; legal: zero, mean. Give one of them.")
        chosen = self._chosen(heads)

        def effect(layer: int, z: Tensor) -> Tensor:
            if not chosen[layer].any():
                return z
            new = torch.zeros_like(z[:1, :, :1]) if value == "zero" else z.mean((0, 2), keepdim=True)
            return torch.where(_column(chosen[layer], z), new, z)

        self._effects.append(effect)

    def patch(self, recording: Recording, heads: Iterable[Head] | None = None) -> None:
        """Replace heads (default all) by what they gave in another run, call by call from now on."""
        self._check_open()
        chosen = self._chosen(self.heads if heads is None else heads)
        calls = [0] * len(self.layers)

        def effect(layer: int, z: Tensor) -> Tensor:
            call = calls[layer]
            calls[layer] += 1
            if not chosen[layer].any():
                return z
            there = recording.outputs[layer]
            found = tuple(there[call].shape) if call < len(there) else None
            if found != tuple(z.shape):
                raise ValueError(
                    f"call {call} of layer {layer} gives {tuple(z.shape)}, the recording has {found or 'no such call'}"
                    "; legal: runs with the same calls and shapes. Record a run of the same size."
                )
            return torch.where(_column(chosen[layer], z), there[call].to(z), z)

        self._effects.append(effect)

    def mix(self, alpha: Tensor, target: Sequence[Tensor], rows: slice | None = None) -> None:
        r"""Move heads towards targets: :math:`z \leftarrow (1 - \alpha) z + \alpha t`.

        Parameters
        ----------
        alpha : Tensor (layer, head)
            Gradients reach it.
        target : list over layers of Tensor (head, dim / heads)
        rows : slice, optional
            Queries to mix; default all.
        """
        self._check_open()
        most = max(layer.heads for layer in self.layers)
        if tuple(alpha.shape) != (len(self.layers), most) or len(target) != len(self.layers):
            raise ValueError(
                f"alpha {tuple(alpha.shape)} and {len(target)} targets; legal: ({len(self.layers)}, {most}) and "
                f"{len(self.layers)}. Give one number a head, one target a layer."
            )

        def effect(layer: int, z: Tensor) -> Tensor:
            share = alpha[layer, : z.shape[1]].to(z).view(1, -1, 1, 1)
            if rows is not None:
                where = torch.zeros(z.shape[2], dtype=z.dtype, device=z.device)
                where[rows] = 1
                share = share * where.view(1, 1, -1, 1)
            return (1 - share) * z + share * target[layer].to(z)[None, :, None]

        self._effects.append(effect)

    def _pass(self, layer: int, z: Tensor, weights: Tensor | None) -> Tensor:
        for effect in self._effects:
            z = effect(layer, z)
        if self._recording is not None:
            self._recording.outputs[layer].append(z.detach())
            if self._rows is not None and weights is not None:
                self._recording.weights[layer].append(weights[:, :, self._rows].detach())
        return z

    def _chosen(self, heads: Iterable[Head]) -> list[Tensor]:
        chosen = [torch.zeros(layer.heads, dtype=torch.bool) for layer in self.layers]
        legal = set(self.heads)
        for layer, head in heads:
            if (layer, head) not in legal:
                raise ValueError(
                    f"no head {(layer, head)}; legal: {len(self.layers)} layers of "
                    f"{[a.heads for a in self.layers]} heads. Count both from 0."
                )
            chosen[layer][head] = True
        return chosen

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError("the tap is closed; legal: inside 'with HeadTap(model) as tap'. Open one.")


def _column(chosen: Tensor, z: Tensor) -> Tensor:
    return chosen.to(z.device).view(1, -1, 1, 1)
