"""Weights of other projects: tensors are read, nothing runs."""

from __future__ import annotations

import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from neuroenc._core.errors import DataError
from neuroenc._core.files import check_readable_file

__all__ = ["read_checkpoint", "why_unreadable"]


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
    path : path
    what : str
        What the file is, for errors.
    allowed : context manager, optional
        Such as ``torch.serialization.safe_globals([...])``: harmless kinds of objects that it may hold.

    Raises
    ------
    DataError
        No such file, none that can be read, or one that holds more than tensors and plain values.
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
