"""Devices: what ``device="auto"`` means, exact arithmetic, and accelerators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc._core.optional import require

_PRECISIONS = {"32": "no", "bf16": "bf16"}


def resolve_device(device: Any, needs_float64: bool = False) -> str:
    """Name of the torch device of a setting: "auto" takes CUDA, then Apple's MPS, then the CPU.

    With ``needs_float64`` (closed forms) "auto" leaves MPS out, which has no double precision.

    Examples
    --------
    >>> resolve_device("cpu")
    'cpu'
    """
    import torch

    mps = getattr(torch.backends, "mps", None)
    has_mps = mps is not None and mps.is_available()
    if isinstance(device, str) and device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if has_mps and not needs_float64 else "cpu"
    there = [f"cuda:{n}" for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    legal = ", ".join(["auto", "cpu", *there, *(["mps"] if has_mps else [])])
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device={device!r} is not a torch device; legal here: {legal}.") from error
    if place.type == "cpu" or (place.type == "mps" and has_mps):
        return str(place)
    if place.type == "cuda" and there and (place.index is None or place.index < len(there)):
        return str(place)
    if place.type == "cuda" and not there:
        why = f"this torch ({torch.__version__}) sees no CUDA device"
    elif place.type in ("cuda", "mps"):
        why = "this machine does not have it"
    else:
        try:  # kinds that other builds of torch bring
            if place.type != "meta":
                torch.empty(1, device=place)
                return str(place)
            why = "it computes nothing"
        except Exception as error:
            why = str(error).splitlines()[0][:120]
    raise ConfigError(f"device={str(device)!r} was asked for, but {why}. Legal here: {legal}.")


def array_module(device: Any) -> tuple[Any, Any]:
    """Array module and torch device; (numpy, None) on the CPU, where numpy is as fast as torch or faster.

    >>> array_module("cpu")[1] is None
    True
    """
    if device == "auto":
        try:
            device = resolve_device(device, needs_float64=True)
        except ModuleNotFoundError:
            device = "cpu"
    if device == "cpu":
        return np, None
    torch = require("torch", "clip")
    # "torch" is the same torch code on the CPU: to check the GPU's path where there is no GPU.
    return torch, torch.device("cpu" if device == "torch" else resolve_device(device))


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Inference in full float32: TF32 convolutions would make features depend on the device and the batch."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


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
