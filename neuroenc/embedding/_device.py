"""Where a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from neuroenc._util.errors import ConfigError

__all__ = ["exact_arithmetic", "resolve_device"]


def resolve_device(device: str) -> str:
    """The torch device of a setting: "auto" takes CUDA, then Apple's MPS, then the CPU.

    >>> resolve_device("cpu")
    'cpu'
    """
    import torch

    mps = getattr(torch.backends, "mps", None)
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if mps is not None and mps.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device={device!r} is not a torch device; use 'auto', 'cpu', 'cuda' or 'cuda:1'.") from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.type == "cuda" and (found.index or 0) >= count:
        legal = ", ".join(["auto", "cpu", *(f"cuda:{k}" for k in range(count))])
        raise ConfigError(
            f"device={device!r} was asked for, but this torch ({torch.__version__}) sees {count or 'no'} CUDA device"
            f"{'s' if count > 1 else ''}. Legal here: {legal}. Next step: device='auto'."
        )
    return device


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Inference in full float32: TF32 convolutions would make features depend on the device and the batch."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False),
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
