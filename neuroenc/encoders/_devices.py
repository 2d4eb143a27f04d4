"""Where training and inference of networks run."""

from __future__ import annotations

from typing import Any

import torch

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc._core.optional import require
from neuroenc.embedding._device import resolve_device

__all__ = ["make_accelerator", "pick_torch_device"]

_PRECISIONS = {"32": "no", "bf16": "bf16", "16": "fp16"}


def pick_torch_device(device: Any) -> torch.device:
    """The torch device of a setting; ``"auto"`` is a CUDA device or the CPU.

    Apple's MPS has no double precision, which closed forms need; it is taken only where it is named.
    """
    if isinstance(device, torch.device):
        return device
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(resolve_device(device))


def make_accelerator(accelerator: Any, precision: str) -> Any:
    """The accelerator that was given, or a new one for ``"auto"``."""
    if precision not in _PRECISIONS:
        raise ConfigError(unknown_name("precision", precision, _PRECISIONS))
    if accelerator is None or not isinstance(accelerator, str):
        if accelerator is not None and precision != "32" and accelerator.mixed_precision != _PRECISIONS[precision]:
            raise ConfigError(
                f"precision={precision!r} with an Accelerator of mixed_precision={accelerator.mixed_precision!r}. "
                f"Next step: Accelerator(mixed_precision={_PRECISIONS[precision]!r})."
            )
        return accelerator
    if accelerator != "auto":
        raise ConfigError(unknown_name("accelerator", accelerator, ["auto"]))
    return require("accelerate", "train").Accelerator(mixed_precision=_PRECISIONS[precision])
