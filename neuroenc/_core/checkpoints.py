"""Checkpoints: the state of a training run that goes on after a kill, and weights of other projects."""

from __future__ import annotations

import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from neuroenc._core.arrays import is_torch
from neuroenc._core.errors import DataError
from neuroenc._core.files import check_readable_file
from neuroenc._core.store import Store, Tensors, content_key


def why_unreadable(error: BaseException) -> str:
    """What is wrong with a checkpoint, in at most 300 characters, without torch's advice to load it unchecked.

    >>> why_unreadable(RuntimeError("Re-running with weights_only=False will ... GLOBAL os.x"))
    'it holds objects that only running code could restore (os.x), and is refused'
    """
    text = str(error).strip()
    named = re.search(r"GLOBAL ([\w.]+)", text)
    if "Unsupported operand" in text:
        return "it is not a file that torch wrote"
    if named or "Unsupported class" in text:
        which = f" ({named.group(1)})" if named else ""
        return f"it holds objects that only running code could restore{which}, and is refused"
    lines = [x.strip() for x in text.splitlines() if "weights_only" not in x and "pytorch.org" not in x]
    return " ".join(x[:160] for x in lines[:3] if x)[:300].rstrip(" .") or f"it cannot be read ({type(error).__name__})"


def read_checkpoint(path: str | os.PathLike[str], what: str = "checkpoint", allowed: Any = None) -> Any:
    """Content of a .safetensors file or of one that torch wrote; what would have to be run is refused.

    Parameters
    ----------
    what : str
        What the file is, for errors.
    allowed : context manager, optional
        Such as ``torch.serialization.safe_globals([...])``: harmless kinds of objects that it may hold.
    """
    path = check_readable_file(Path(path), what)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        import torch

        with allowed or nullcontext():
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = why_unreadable(error)
        step = (
            "in the environment that wrote it, torch.save(model.state_dict(), ...), which holds tensors only"
            if "running code" in why
            else "download it again; a page of a web site saved under this name looks the same"
        )
        raise DataError(f"{what} {path} cannot be read: {why}. Next step: {step}.") from None


def moving_state(model: Any) -> dict[str, Any]:
    """Parameters and buffers that training may change: all but those of modules marked ``frozen``.

    They are copies, so that they stay what they are while training goes on.
    """
    frozen = tuple(f"{name}." for name, part in model.named_modules() if name and getattr(part, "frozen", False))
    return {k: v.detach().clone() for k, v in model.state_dict().items() if not k.startswith(frozen)}


class Checkpoint:
    """State of a training run in a `Store`, which may hold those of other runs too.

    Parameters
    ----------
    key : anything that `content_key` takes
        Data, settings and first weights.
    """

    def __init__(self, folder: str | os.PathLike[str], key: Any) -> None:
        self.store, self.key = Store(folder), content_key(key)

    def resume(self, model: Any, optimiser: Any, device: Any) -> tuple[Any, dict[str, Any]] | None:
        """Put model and optimiser back; the other state (as JSON gives it) and the best model, None at the start."""
        found = self.store.read("training", self.key)
        if found is None:
            return None
        groups: dict[str, dict[str, Any]] = {"model": {}, "best": {}, "optimiser": {}}
        for name, value in found["tensors"].items():
            group, rest = name.split("/", 1)
            groups[group][rest] = value.to(device)
        model.load_state_dict(groups["model"], strict=False)
        whole = optimiser.state_dict()
        whole["state"] = {}
        for name, value in groups["optimiser"].items():
            number, entry = name.split("/", 1)
            whole["state"].setdefault(int(number), {})[entry] = value
        optimiser.load_state_dict(whole)
        return found["state"], groups["best"]

    def save(self, model: Any, optimiser: Any, state: Any, best: dict[str, Any] | None = None) -> None:
        """Put this state in the place of the last one."""
        held = {
            f"optimiser/{number}/{name}": value
            for number, entries in optimiser.state_dict()["state"].items()
            for name, value in entries.items()
            if is_torch(value)
        }
        held |= {f"model/{name}": value for name, value in moving_state(model).items()}
        held |= {f"best/{name}": value for name, value in (best or {}).items()}
        self.store.write("training", self.key, {"tensors": Tensors(held), "state": state})
