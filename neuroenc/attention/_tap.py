"""Hooks on attention heads: recording, masking, task embeddings; detect attention sinks and down-weight them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from neuroenc.attention._attention import Attention
from neuroenc.attention._weights import Layout, Normaliser, Softmax, legal

Head = tuple[int, int]


#: Head outputs (batch, heads, query, dim / heads): a list over layers of a list over calls.
Recording = list[list[Tensor]]


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
            f"no Attention in {type(model).__name__}; legal: a module with at least one. Next step: give the network."
        )
    return layers


class HeadTap:
    r"""Context manager that records, masks, patches or mixes the heads of a model, by (layer, head).

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
    >>> recording[0][0].shape, bool((patched == stack(a)[0]).all())
    (torch.Size([1, 2, 5, 4]), False)
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = attentions(model)
        self._effects: list[Callable[[int, Tensor], Tensor]] = []
        self._recording: Recording | None = None
        self._open = False

    @property
    def heads(self) -> list[Head]:
        """All (layer, head)."""
        return [(layer, head) for layer, attention in enumerate(self.layers) for head in range(attention.heads)]

    def __enter__(self) -> HeadTap:
        taken = [n for n, layer in enumerate(self.layers) if layer.tap is not None]
        if taken:
            raise ValueError(f"layers {taken} are tapped already; legal: one tap at a time. Leave the other one first.")
        for n, layer in enumerate(self.layers):
            layer.tap = partial(self._pass, n)
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for layer in self.layers:
            layer.tap = None
        self._open = False
        self.clear()

    def record(self) -> None:
        """Start a recording."""
        self._check_open()
        self._recording = [[] for _ in self.layers]

    def recorded(self) -> Recording:
        """Stop the recording and return it."""
        found = self._recording
        if found is None:
            raise ValueError("nothing is being recorded; legal: record(), then runs of the model, then recorded().")
        self._recording = None
        return found

    def clear(self) -> None:
        """Forget all masks, patches, mixes and recordings."""
        self._effects, self._recording = [], None

    def mask(self, heads: Iterable[Head], value: str = "zero") -> None:
        """Replace heads by zero, or by their mean over cases and queries of the same call."""
        self._check_open()
        legal("value", value, ("zero", "mean"))
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
            there = recording[layer]
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

    def _pass(self, layer: int, z: Tensor) -> Tensor:
        for effect in self._effects:
            z = effect(layer, z)
        if self._recording is not None:
            self._recording[layer].append(z.detach())
        return z

    def _chosen(self, heads: Iterable[Head]) -> list[Tensor]:
        chosen = [torch.zeros(layer.heads, dtype=torch.bool) for layer in self.layers]
        known = set(self.heads)
        for layer, head in heads:
            if (layer, head) not in known:
                raise ValueError(
                    f"no head {(layer, head)}; legal: {len(self.layers)} layers of {[a.heads for a in self.layers]} "
                    "heads, counted from 0."
                )
            chosen[layer][head] = True
        return chosen

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError("the tap is closed; legal: inside 'with HeadTap(model) as tap'. Open one.")


def _column(chosen: Tensor, z: Tensor) -> Tensor:
    return chosen.to(z.device).view(1, -1, 1, 1)


class TaskEmbedding:
    r"""Task embedding: mean head outputs of a task, injected into new runs by interpolation.

    .. math:: z_{lh} \leftarrow (1 - \alpha_{lh})\, z_{lh} + \alpha_{lh}\, t_{lh}, \qquad
              \alpha_{lh} = \sigma(a_{lh})

    Parameters
    ----------
    vectors : list over layers of Tensor (head, dim / heads)
        :math:`t`, from `collect`.
    rows : slice
        Queries that were averaged, and into which it is laid.

    Attributes
    ----------
    logit : Tensor (layer, head)
        :math:`a`; 0 until `fit_alpha`.

    References
    ----------
    Park et al. (2025), Soft injection of task embeddings outperforms prompt-based in-context learning,
    arXiv:2507.20906.

    Examples
    --------
    >>> from neuroenc.attention import Attention
    >>> model, x, y = Attention(8, 2).eval(), torch.randn(4, 6, 8), torch.randn(4, 1, 8)
    >>> task = TaskEmbedding.collect(model, [lambda m: m(x)], rows=slice(0, 1))
    >>> losses = task.fit_alpha(model, lambda m: (m(x[:, :2])[0][:, :1] - y).square().mean(), steps=20)
    >>> bool(losses[-1] < losses[0]), task.alpha.shape
    (True, (1, 2))
    """

    def __init__(self, vectors: list[Tensor], rows: slice = slice(0, 1)) -> None:
        self.vectors, self.rows = vectors, rows
        most = max(len(v) for v in vectors)
        self.logit = torch.zeros(len(vectors), most)

    @classmethod
    def collect(
        cls, model: nn.Module, runs: Iterable[Callable[[Any], Any]], rows: slice = slice(0, 1)
    ) -> TaskEmbedding:
        """Mean over runs (``run(model)`` each), their calls, cases and ``rows``; every case counts the same."""
        count = len(attentions(model))
        sums: list[Tensor | None] = [None] * count
        seen = [0] * count
        with HeadTap(model) as tap, torch.no_grad():
            for run in runs:
                tap.record()
                run(model)
                for layer, calls in enumerate(tap.recorded()):
                    for z in calls:
                        part = z[:, :, rows]
                        total = part.double().sum((0, 2))
                        before = sums[layer]
                        sums[layer] = total if before is None else before + total
                        seen[layer] += part.shape[0] * part.shape[2]
        if not all(seen):
            raise ValueError(f"layers ran over {seen} queries; legal: at least one each. Give runs that reach them.")
        return cls([(s / n).float() for s, n in zip(sums, seen) if s is not None], rows)

    @property
    def alpha(self) -> xr.DataArray:
        """Shares (layer, head)."""
        share = self.logit.sigmoid().numpy()
        coords = {"layer": np.arange(share.shape[0]), "head": np.arange(share.shape[1])}
        return xr.DataArray(share, coords, ("layer", "head"), "alpha")

    def fit_alpha(
        self, model: nn.Module, loss_fn: Callable[[Any], Tensor], steps: int = 400, lr: float = 0.2
    ) -> np.ndarray:
        """Fit shares with Adam, the model frozen; ``loss_fn(model)`` -> Tensor. Returns the losses (step,)."""
        logit = self.logit.clone().requires_grad_()
        optimiser = torch.optim.Adam([logit], lr=lr)
        losses = np.zeros(steps)
        for step in range(steps):
            with HeadTap(model) as tap:
                tap.mix(logit.sigmoid(), self.vectors, self.rows)
                loss = loss_fn(model)
            (logit.grad,) = torch.autograd.grad(loss, [logit])
            optimiser.step()
            losses[step] = float(loss.detach())
        self.logit = logit.detach()
        return losses

    @contextmanager
    def inject(self, model: nn.Module) -> Iterator[HeadTap]:
        """Inside, every run of the model has the task laid in."""
        with HeadTap(model) as tap:
            tap.mix(self.logit.sigmoid(), self.vectors, self.rows)
            yield tap


def find_sinks(weights: Tensor, threshold: float = 0.1, keep_first: int = 1, visible: Tensor | None = None) -> Tensor:
    r"""Detect attention sinks: keys whose mean attention weight exceeds a threshold.

    .. math:: a_j = \frac{\sum_i A_{ij}}{\#\{i : i \text{ sees } j\}} > \text{threshold}, \qquad j \ge
              \text{keep\_first}

    Parameters
    ----------
    weights : Tensor (..., query, key)
    keep_first : int
        Keys in front that are sinks by design (registers, a first token) and are never named.
    visible : Tensor of bool (..., query, key), optional
        Default: every query sees every key.

    Returns
    -------
    Tensor of bool (..., key)

    Examples
    --------
    >>> import torch
    >>> find_sinks(torch.tensor([[0.2, 0.7, 0.1], [0.3, 0.6, 0.1]]), threshold=0.5)
    tensor([False,  True, False])
    """
    if weights.ndim < 2:
        raise ValueError(f"weights have shape {tuple(weights.shape)}; legal: (..., query, key). Keep the query axis.")
    seen = weights.shape[-2] if visible is None else visible.sum(-2).clamp_min(1)
    sinks = weights.sum(-2) / seen > threshold
    sinks[..., :keep_first] = False
    return sinks


class SinkCalibration(Normaliser):
    r"""Down-weight attention sinks of another normaliser and redistribute their weight.

    In chosen heads, the weights of sinks (`find_sinks`) are multiplied by :math:`\beta`; what is freed goes to the
    other keys of the same row in proportion to their weights, so a row's sum stays. A row with weight on sinks only is
    left as it is.

    Parameters
    ----------
    inner : Normaliser, optional
        Default softmax.
    threshold, keep_first
        See `find_sinks`.
    beta : float
        In [0, 1].
    heads : list of int, optional
        Default all.

    Notes
    -----
    Sinks are a property of all queries, so all are computed even where only some ``rows`` are wanted. Each case of
    the batch has its own sinks.

    References
    ----------
    Yu et al. (2024), Unveiling and harnessing hidden attention sinks, arXiv:2406.15765.

    Examples
    --------
    >>> import torch
    >>> scores = torch.tensor([1.0, 1.0, 3.0, 1.0]).expand(1, 1, 5, 4)
    >>> SinkCalibration(threshold=0.5, beta=0.4)(scores, torch.tensor([4]))[0, 0, 0].numpy().round(3)
    array([0.239, 0.239, 0.284, 0.239], dtype=float32)
    """

    all_rows = True

    def __init__(
        self,
        inner: Normaliser | None = None,
        threshold: float = 0.1,
        beta: float = 0.4,
        heads: Sequence[int] | None = None,
        keep_first: int = 1,
    ) -> None:
        super().__init__()
        if not 0 <= beta <= 1:
            raise ValueError(f"beta={beta}; legal: 0 (sinks vanish) to 1 (nothing changes). The paper has 0.4.")
        self.inner = inner or Softmax()
        self.threshold, self.beta, self.keep_first = threshold, beta, keep_first
        self.heads = None if heads is None else list(heads)
        self.additive = self.inner.additive
        self.needs_layout = self.inner.needs_layout

    def forward(self, scores: Tensor, n: Tensor, layout: Layout | None = None) -> Tensor:
        weights = self.inner(scores, n, layout)
        visible = scores > -torch.inf
        sink = find_sinks(weights.detach(), self.threshold, self.keep_first, visible)[..., None, :]
        if self.heads is not None:
            off = [h for h in self.heads if not 0 <= h < scores.shape[1]]
            if off:
                raise ValueError(f"heads {off} of {scores.shape[1]}; legal: 0 to {scores.shape[1] - 1}. Drop them.")
            chosen = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
            chosen[self.heads] = True
            sink = sink & chosen.view(1, -1, 1, 1)
        rest = weights.masked_fill(sink, 0.0).sum(-1, keepdim=True)
        freed = (1 - self.beta) * (weights.sum(-1, keepdim=True) - rest)
        grown = 1 + freed / torch.where(rest > 0, rest, 1.0)
        calmed = weights * torch.where(sink, self.beta, grown)
        return torch.where(rest > 0, calmed, weights)
