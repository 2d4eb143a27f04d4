"""The state of a training run on disk, so that a run that was killed goes on as if it had not been."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuroenc._core.errors import DataError
from neuroenc.encoders._tensors import read_tensors, write_tensors

__all__ = ["Checkpoint", "moving_state"]

_FILE = "training.safetensors"


def moving_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that training may change: all but those of modules marked ``frozen``.

    They are copies, so that they stay what they are while training goes on.
    """
    frozen = tuple(f"{name}." for name, part in model.named_modules() if name and getattr(part, "frozen", False))
    return {k: v.detach().clone() for k, v in model.state_dict().items() if not k.startswith(frozen)}


class Checkpoint:
    """One file in a folder: tensors of model, best model and optimiser, and everything else as JSON in its header.

    A single file that is replaced atomically cannot hold the model of one epoch and the counters of another.

    Parameters
    ----------
    folder : path
    key : str
        Hash of data, settings and first weights. A folder of another run is an error, not a silent mixture.
    """

    def __init__(self, folder: str | os.PathLike[str], key: str) -> None:
        self.path = Path(folder) / _FILE
        self.key = key

    def load(self, device: Any) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """Tensors by group and the JSON record, or None where there is nothing yet."""
        if not self.path.exists():
            return None
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimiser": {}}
        tensors, record = read_tensors(self.path, framework="pt")
        if record.get("key") != self.key:
            raise DataError(
                f"checkpoint {self.path.parent} belongs to a fit with other settings or other data. "
                "Next step: give this fit its own checkpoint folder, or delete that one."
            )
        for name, tensor in tensors.items():
            group, rest = name.split("/", 1)
            groups[group][rest] = tensor.to(device)
        return groups, record["state"]

    def save(self, groups: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Replace the file."""
        tensors = {f"{group}/{name}": tensor for group, part in groups.items() for name, tensor in part.items()}
        write_tensors(self.path, tensors, {"key": self.key, "state": state})


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Tensors of an optimiser's state, named by parameter number and entry."""
    found = {}
    for number, entries in optimiser.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                found[f"{number}/{name}"] = value
    return found


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], lr: float) -> None:
    """Put back what `optimiser_tensors` gave, and the learning rate."""
    state = optimiser.state_dict()
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, entry = name.split("/", 1)
        entries.setdefault(int(number), {})[entry] = value
    state["state"] = entries
    for group in state["param_groups"]:
        group["lr"] = lr
    optimiser.load_state_dict(state)
