"""From a backbone's output to the features asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neuroenc._core.errors import ConfigError

__all__ = ["Output", "check_pooling", "pool", "unit_norm"]

_NAMED = ("tokens", "map", "mean", "cls")


@dataclass(frozen=True)
class Output:
    """What a layer gives: a vector (b, f), a channel map (b, c, y, x), or tokens (b, t, f).

    The first ``prefix`` tokens are not places (class token, registers); the others lie row by row on ``grid``.
    """

    values: Any
    prefix: int = 0
    grid: tuple[int, int] | None = None


def check_pooling(pooling: str | int | None) -> str | int | None:
    """``pooling`` if it is legal.

    >>> check_pooling(4)
    4
    """
    is_grid = isinstance(pooling, int) and not isinstance(pooling, bool) and pooling >= 1
    if pooling is None or pooling in _NAMED or is_grid:
        return pooling
    raise ConfigError(
        f"pooling={pooling!r} is not legal; use None (as the layer gives it), 'tokens', 'map', 'mean', 'cls', "
        "or an int g (adaptive average pooling of the map to g x g)."
    )


def _as_map(output: Output) -> Any:
    values = output.values
    if values.ndim == 4:
        return values
    if output.grid is None:
        raise ConfigError("this layer's tokens do not lie on a grid; use pooling=None, 'tokens', 'mean' or 'cls'.")
    y, x = output.grid
    return values[:, output.prefix :].transpose(1, 2).reshape(values.shape[0], values.shape[2], y, x)


def pool(output: Output, pooling: str | int | None) -> Any:
    """Tensor (b, f), (b, t, f) or (b, c, y, x) of ``output`` under ``pooling``."""
    import torch

    values = output.values
    if values.ndim == 2:
        if pooling is not None:
            raise ConfigError(
                f"pooling={pooling!r} needs a layer with places; this output is one vector a stimulus. "
                "Next step: name a layer (see .layers()) or leave pooling=None."
            )
        return values
    if pooling is None:
        return values
    if pooling == "tokens":
        return values if values.ndim == 3 else values.flatten(2).transpose(1, 2)
    if pooling == "cls":
        if values.ndim != 3 or output.prefix < 1:
            raise ConfigError("pooling='cls' needs a class token, and this layer has none; use 'mean' or a grid.")
        return values[:, 0]
    if pooling == "mean":
        return values[:, output.prefix :].mean(1) if values.ndim == 3 else values.mean((2, 3))
    planes = _as_map(output)
    if pooling != "map" and int(pooling) > max(planes.shape[2:]):
        y, x = planes.shape[2:]
        raise ConfigError(f"pooling={pooling} is finer than this layer's map of {y} x {x}; legal are 1 to {max(y, x)}.")
    return planes if pooling == "map" else torch.nn.functional.adaptive_avg_pool2d(planes, int(pooling))


def unit_norm(values: Any) -> Any:
    """Rows of ``values`` (b, f) divided by their Euclidean norm (a zero row stays zero)."""
    import torch

    if values.ndim != 2:
        raise ConfigError(
            f"normalise=True is for vectors (stimulus, feature), and this layer gives shape (stimulus, "
            f"{', '.join(str(n) for n in values.shape[1:])}). Next step: pooling='mean' or 'cls', or normalise=False."
        )
    return torch.nn.functional.normalize(values, dim=-1)
