"""Balance between subjects (or their regions) that share a core: one a step, and how their gradients agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.encoders.readout._losses import Loss
from neuroenc.encoders.readout._maps import Maps


@dataclass(frozen=True, eq=False)
class Balance:
    """Which steps of an epoch are whose.

    Attributes
    ----------
    tasks : list of list of int
        Tasks (readouts) of every subject.
    others : list of ndarray of int
        Columns of the targets that are not the subject's.
    rows : list of ndarray of int
        Training rows that it saw.
    probability, weights : ndarray of float
        How often a step is the subject's, and what its gradient is scaled to: one over that, mean 1.
    """

    tasks: list[list[int]]
    others: list[np.ndarray]
    rows: list[np.ndarray]
    probability: np.ndarray
    weights: list[float]
    n_targets: int

    def n_voxels(self, group: int) -> int:
        """Voxels of a subject."""
        return self.n_targets - len(self.others[group])

    def steps(self, size: int, rng: np.random.Generator) -> list[tuple[Tensor, int]]:
        """Rows and subject of every step of an epoch; as many steps as it takes to see all rows of all subjects."""
        count = sum(-(-len(rows) // size) for rows in self.rows)
        left: list[np.ndarray] = [rows[:0] for rows in self.rows]
        found = []
        for group in rng.choice(len(self.rows), count, p=self.probability).tolist():
            if not len(left[group]):
                left[group] = rng.permutation(self.rows[group])
            found.append((torch.as_tensor(left[group][:size]), group))
            left[group] = left[group][size:]
        return found


def balance_of(model: Any, targets: np.ndarray, taught: np.ndarray, sampling: Any) -> Balance | None:
    """Balance between the subjects of a model; None where it has one.

    Parameters
    ----------
    targets : ndarray (n, V)
    taught : ndarray of int
        Training rows.
    sampling : "rows", "equal" or mapping of subject to probability
    """
    names = list(dict.fromkeys(getattr(model, "subjects", [])))
    if len(names) < 2:
        return None
    ends = np.cumsum(model.sizes)
    columns = np.split(np.arange(ends[-1]), ends[:-1])
    tasks = [[k for k, name in enumerate(model.subjects) if name == one] for one in names]
    own = [np.concatenate([columns[k] for k in group]) for group in tasks]
    rows = [taught[~np.isnan(targets[np.ix_(taught, c)]).all(axis=1)] for c in own]
    if isinstance(sampling, Mapping):
        for name in sampling:
            if name not in names:
                raise ConfigError(unknown_name("subject in sampling:", str(name), names))
        chance = np.array([float(sampling.get(name, 0)) for name in names])
    elif sampling in ("rows", "equal"):
        chance = np.array([len(r) if sampling == "rows" else 1.0 for r in rows])
    else:
        raise ConfigError(f"sampling={sampling!r} is not 'rows', 'equal' or probabilities by subject.")
    if not (np.isfinite(chance).all() and (chance > 0).all()):
        raise ConfigError(f"sampling={dict(zip(names, chance.tolist()))}: every subject with rows needs more than 0.")
    chance = chance / chance.sum()
    others = [np.setdiff1d(np.arange(ends[-1]), c) for c in own]
    return Balance(tasks, others, rows, chance, (1 / (len(names) * chance)).tolist(), int(ends[-1]))


def gradient_cosines(
    model: Any, inputs: Maps, targets: np.ndarray, context: Maps | None, loss: Loss, batch_size: int, most: int
) -> np.ndarray:
    """Cosines (task, task) between the tasks' gradients of the core; NaN where a task has none.

    Each is the gradient of the task's own loss over up to ``most`` of its rows, spread evenly over them.
    """
    shared = [p for p in model.core.parameters() if p.requires_grad]
    ends = np.cumsum(model.sizes)
    found = []
    model.eval()
    for task, columns in enumerate(np.split(np.arange(ends[-1]), ends[:-1])):
        own = torch.as_tensor(targets[:, columns], dtype=inputs.dtype)
        rows = torch.nonzero(~torch.isnan(own).all(1))[:, 0]
        if len(rows) > most:
            rows = rows[torch.linspace(0, len(rows) - 1, most).long()]
        count = (~torch.isnan(own[rows])).sum(0).to(inputs.device)
        total = [torch.zeros_like(p) for p in shared]
        for part in rows.split(batch_size):
            maps = model.maps(inputs.rows(part), task)
            pred = model.each[task](maps, None if context is None else context.rows(part))
            value = loss(pred, own[part].to(inputs.device), count)
            for sum_, g in zip(total, torch.autograd.grad(value, shared, allow_unused=True)):
                if g is not None:
                    sum_ += g
        found.append(torch.cat([g.flatten() for g in total]).double())
    stacked = torch.stack(found)
    unit = stacked / stacked.norm(dim=1, keepdim=True)
    return (unit @ unit.T).cpu().numpy()
