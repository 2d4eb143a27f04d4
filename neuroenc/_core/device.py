"""Where torch computes."""

from __future__ import annotations

from typing import Any

from neuroenc._core.errors import ConfigError

__all__ = ["resolve_device"]


def resolve_device(device: Any) -> str:
    """The torch device of a setting: "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises
    ------
    ConfigError
        It is no device, or one that this machine does not have; the legal ones are named.

    Examples
    --------
    >>> resolve_device("cpu")
    'cpu'
    """
    import torch

    mps = getattr(torch.backends, "mps", None)
    has_mps = mps is not None and mps.is_available()
    if isinstance(device, str) and device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
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
