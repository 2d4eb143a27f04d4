"""Task vectors of torch modules, and the coefficients under which they are added to their common start."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name

#: Ways to find coefficients.
MERGES = ("blocks", "model", "position", "soup")


def block_of(name: str) -> str:
    """Block of a parameter: its path up to and with the first number, else the module that holds it.

    >>> block_of("stack.blocks.3.attention.query.weight"), block_of("head.weight"), block_of("registers")
    ('stack.blocks.3', 'head', 'registers')
    """
    parts = name.split(".")
    for k, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: k + 1])
    return ".".join(parts[:-1]) or name


def task_vectors(base: nn.Module, models: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """What fine-tuning changed, by model and tensor: parameters and floating buffers of ``base`` taken from theirs."""
    if not models:
        raise ConfigError("there is no model to merge. Next step: give one or more that were fine-tuned from the base.")
    start, found = base.state_dict(), {}
    for name, model in models.items():
        state = model.state_dict()
        odd = sorted(k for k in {*start, *state} if start.get(k, Tensor()).shape != state.get(k, Tensor()).shape)
        if odd or set(start) != set(state):
            raise DataError(
                f"model {name!r} is not a fine-tuned copy of the base: {len(odd)} of its tensors have another shape or "
                f"are missing (first {odd[0] if odd else sorted(set(start) ^ set(state))[0]!r}). Next step: models of "
                "one architecture that started from the same weights."
            )
        found[str(name)] = {k: (state[k] - v).detach() for k, v in start.items() if v.is_floating_point()}
    return found


def merge_models(base: nn.Module, models: Mapping[str, nn.Module], coefficients: Any) -> nn.Module:
    r"""Add task vectors to a base, \theta = \theta_0 + \sum_j \lambda_{jb} (\theta_j - \theta_0) in every block b.

    Parameters
    ----------
    base : torch.nn.Module
    models : mapping of name to torch.nn.Module
        Fine-tuned from ``base``.
    coefficients : mapping of name to float, or DataArray (model, block)
        A negative one takes away what a fine-tuning added (of a scanner or a data set). Models that are not named count
        nothing.

    Returns
    -------
    torch.nn.Module
        A copy; ``base`` stays as it was.

    Raises
    ------
    ConfigError
        A coefficient of a model that is not given; the nearest is named.

    References
    ----------
    Ilharco et al. (2023), Editing models with task arithmetic. Zhang et al. (2024), Knowledge composition using task
    vectors with learned anisotropic scaling (aTLAS), NeurIPS.
    """
    vectors = task_vectors(base, models)
    labelled = isinstance(coefficients, xr.DataArray)
    names = coefficients["model"].values.tolist() if labelled else list(coefficients)
    for name in names:
        if name not in vectors:
            raise ConfigError(unknown_name("model in coefficients:", name, vectors))
    merged = copy.deepcopy(base)
    state = merged.state_dict()
    with torch.no_grad():
        for name in names:
            row = coefficients.sel(model=name) if labelled else None
            known = dict(zip(row["block"].values.tolist(), row.values.tolist())) if row is not None else {}
            for key, change in vectors[name].items():
                # Buffers have no block of their own and follow the mean of the model's coefficients.
                scale = known.get(block_of(key), float(np.mean(list(known.values())))) if labelled else None
                state[key].add_(change.to(state[key]), alpha=float(coefficients[name]) if scale is None else scale)
    return merged


def soup(models: Sequence[nn.Module]) -> nn.Module:
    """Average the weights of models that share an architecture and a start ("model soup").

    Parameters
    ----------
    models : sequence of torch.nn.Module

    References
    ----------
    Wortsman et al. (2022), Model soups, ICML.

    Examples
    --------
    >>> a, b = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> bool(torch.isclose(soup([a, b]).weight, (a.weight + b.weight) / 2))
    True
    """
    if not models:
        raise ConfigError("a soup needs one model at least.")
    named = {str(k): model for k, model in enumerate(models)}
    return merge_models(models[0], named, dict.fromkeys(named, 1.0 / len(models)))


@dataclass(frozen=True, eq=False)
class Merged:
    """Outcome of `learn_merge`.

    Attributes
    ----------
    model : torch.nn.Module
        A merged copy of the base.
    coefficients : DataArray (model, block)
    losses : list of float
        By step.
    """

    model: nn.Module
    coefficients: xr.DataArray
    losses: list[float]


class _Call(nn.Module):
    """Calls a function of a module whose tensors `functional_call` replaces."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, int], Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, step: int) -> Tensor:
        return self.call(self.model, step)


def learn_merge(
    base: nn.Module,
    models: Mapping[str, nn.Module],
    loss: Callable[[nn.Module, int], Tensor],
    *,
    way: str = "blocks",
    free: Sequence[str] = (),
    n_steps: int = 200,
    lr: float = 0.03,
    penalty: float = 1e-3,
    seed: int = 0,
) -> Merged:
    r"""Learn the coefficients under which task vectors are added to their base; the vectors stay as they are.

    .. math:: \min_\lambda \; L\Big(\theta_0 + \sum_j \lambda_{jb}\, \tau_j\Big)
              + \rho \sum_{jb} (\lambda_{jb} - \tfrac1J)^2

    Few numbers are learned, so few trials suffice. They start at the soup, and are drawn towards it.

    Parameters
    ----------
    base : torch.nn.Module
    models : mapping of name to torch.nn.Module
        Fine-tuned from ``base``, such as on one subject each.
    loss : callable
        ``loss(model, step)``: a scalar of the merged model (in evaluation mode), on the trials of a new subject or on a
        probe set.
    way : {"blocks", "model", "position", "soup"}
        A coefficient for each model and block (aTLAS), or for each model; "position": coefficients of models that are
        positive and sum to one, times one scale (self-positioning); "soup" learns nothing.
    free : sequence of str
        First part of the names of parameters that are not merged but trained beside the coefficients, such as the
        readout of a new subject.
    n_steps : int
    lr : float
        Of Adam, for the coefficients; free parameters have a tenth of it.
    penalty : float
        Weight rho.
    seed : int
        Of whatever is random in ``loss`` through torch.

    Raises
    ------
    DataError
        Models of another anatomy, or a loss that is not finite.

    References
    ----------
    Zhang et al. (2024), aTLAS, NeurIPS. Li et al. (2024), Improving general text embedding model: tackling task
    conflict and data imbalance through model merging (self-positioning).

    Examples
    --------
    >>> import copy
    >>> torch.manual_seed(0) and None
    >>> base, target = nn.Linear(4, 1), nn.Linear(4, 1)
    >>> tuned = {k: copy.deepcopy(base) for k in "ab"}
    >>> for k, model in tuned.items():
    ...     _ = model.weight.data.add_(torch.randn(1, 4)), model.bias.data.add_(1.0)
    >>> truth = merge_models(base, tuned, {"a": 0.8, "b": 0.1})
    >>> x = torch.randn(20, 4)
    >>> found = learn_merge(base, tuned, lambda m, step: (m(x) - truth(x).detach()).square().mean(), way="model")
    >>> {name: round(float(found.coefficients.sel(model=name).mean()), 1) for name in "ab"}
    {'a': 0.8, 'b': 0.1}
    """
    one_of("way", way, MERGES)
    check_whole("n_steps", n_steps)
    named = {str(k): model for k, model in models.items()}
    vectors = task_vectors(base, named)
    first = tuple(free)
    own = [name for name, _ in base.named_parameters() if not (first and name.startswith(first))]
    blocks = list(dict.fromkeys(map(block_of, own)))
    if way == "soup":
        n_steps = 0
    work = copy.deepcopy(base).eval()
    for parameter in work.parameters():
        parameter.requires_grad_(False)
    extra = {n: p.requires_grad_(True) for n, p in work.named_parameters() if n not in set(own)}
    start = {name: p.detach().clone() for name, p in work.named_parameters() if name in set(own)}
    changes = {name: torch.stack([v[name] for v in vectors.values()]).to(start[name]) for name in own}
    place = {name: blocks.index(block_of(name)) for name in own}
    raw = _Coefficients(way, len(named), len(blocks))
    groups: list[dict[str, Any]] = [{"params": list(raw.parameters()), "lr": lr}]
    groups += [{"params": list(extra.values()), "lr": lr / 10}] if extra else []
    optimiser, losses, call = torch.optim.Adam(groups), [], _Call(work, loss)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(check_whole("seed", seed, least=0))
        for step in range(n_steps):
            share = raw()
            tensors = {
                f"model.{name}": start[name] + torch.tensordot(share[:, place[name]], changes[name], dims=1)
                for name in own
            }
            value = torch.func.functional_call(call, tensors, (step,))
            total = value + penalty * (share - 1 / len(named)).square().sum()
            if not bool(torch.isfinite(total)):
                raise DataError(
                    f"the loss of step {step} is {float(value.detach())}. Next step: a smaller lr, or other trials."
                )
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
            losses.append(float(value.detach()))
    with torch.no_grad():
        share = raw()
        state = work.state_dict()
        for name in own:
            state[name].copy_(start[name] + torch.tensordot(share[:, place[name]], changes[name], dims=1))
    work.requires_grad_(True)
    coords = {"model": list(named), "block": blocks}
    return Merged(
        work.eval(), xr.DataArray(share.detach().numpy().copy(), dims=("model", "block"), coords=coords), losses
    )


class _Coefficients(nn.Module):
    """Coefficients (model, block) under a way of merging."""

    def __init__(self, way: str, n_models: int, n_blocks: int) -> None:
        super().__init__()
        self.way, self.n_blocks = way, n_blocks
        if way == "position":
            self.logits, self.scale = nn.Parameter(torch.zeros(n_models, 1)), nn.Parameter(torch.ones(()))
        else:
            columns = n_blocks if way == "blocks" else 1
            self.values = nn.Parameter(torch.full((n_models, columns), 1.0 / n_models))

    def forward(self) -> Tensor:
        found = self.scale * self.logits.softmax(0) if self.way == "position" else self.values
        return found.expand(-1, self.n_blocks)
