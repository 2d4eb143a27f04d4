"""Where a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from neuroenc._core.device import resolve_device

__all__ = ["exact_arithmetic", "resolve_device"]


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
