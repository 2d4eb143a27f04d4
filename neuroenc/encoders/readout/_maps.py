"""Batches of feature maps as tensors: held in memory where they fit, else read batch by batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from neuroenc._core.arrays import as_numbers, refuse_sparse
from neuroenc._core.errors import DataError
from neuroenc._core.files import hash_array
from neuroenc._core.memory import parse_memory


class MapArray:
    """Features of any form seen as maps (n, C, H, W), read row by row.

    Labelled or not: maps (n, channel, y, x); tokens (n, token, feature), which become a square of places, a class
    token in front dropped; vectors (n, feature), which become maps of one place.

    Parameters
    ----------
    array : DataArray, ndarray, memmap or Tensor, 2 to 4 dimensions

    Attributes
    ----------
    shape : (n, C, H, W)
    layout : {"maps", "tokens", "vectors"}
    dropped : int
        Tokens in front that were left out.
    note : str
        What was left out, in words, or empty.
    """

    def __init__(self, array: Any) -> None:
        refuse_sparse(array, "features")
        # What can be cut row by row stays where it lies.
        if not hasattr(array, "shape") or not hasattr(array, "dtype") or isinstance(array, np.ma.MaskedArray):
            array = as_numbers(array, "features")
        if isinstance(array, xr.DataArray):
            array = _ordered(array)
        self.array, self.note, self.dropped = array, "", 0
        # numpy has no bfloat16; such maps are read as float32.
        self.dtype = np.dtype(str(array.dtype).removeprefix("torch.").replace("bfloat16", "float32"))
        if not array.shape:
            raise DataError("features are one number; expected maps, tokens or vectors, a row for each stimulus.")
        if self.dtype.kind not in "fiub":
            raise DataError(f"features have dtype {self.dtype}; expected numbers. Next step: convert them to float32.")
        n, *rest = (int(k) for k in array.shape)
        self.layout = {3: "maps", 2: "tokens"}.get(len(rest), "vectors")
        if self.layout == "tokens":
            tokens, channels = rest
            self.dropped = int(math.isqrt(tokens) ** 2 != tokens)
            side = math.isqrt(tokens - self.dropped)
            if side**2 != tokens - self.dropped or side < self.dropped:
                raise DataError(
                    f"features have {tokens} tokens, which is no square of places, with or without a class token. "
                    "Next step: pass maps (stimulus, channel, y, x)."
                )
            if self.dropped:
                self.note = f"the first of {tokens} tokens (class token) was dropped; {side} x {side} places remain"
            rest = [channels, side, side]
        elif len(rest) == 1:
            rest = [*rest, 1, 1]
        if len(rest) != 3:
            raise DataError(
                f"features have {1 + len(rest)} dimensions, shape {tuple(array.shape)}. Expected maps "
                "(stimulus, channel, y, x), tokens (stimulus, token, feature) or vectors (stimulus, feature)."
            )
        self.shape = (n, rest[0], rest[1], rest[2])
        if min(self.shape) < 1:
            raise DataError(f"features are empty: shape {tuple(array.shape)}.")

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all maps."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self, rows: Any) -> np.ndarray:
        """Maps (k, C, H, W) of a slice or of ascending positions."""
        part = self.array[rows]
        part = as_numbers(part, "features")
        if part.ndim == 3:
            part = part[:, self.dropped :].transpose(0, 2, 1)
        return part.reshape(len(part), *self.shape[1:])

    def blocks(self, budget: int = 2**26) -> Any:
        """All maps in blocks of about ``budget`` bytes."""
        size = max(1, budget * len(self) // max(1, self.nbytes))
        for start in range(0, len(self), size):
            yield self.read(slice(start, start + size))


def _ordered(array: xr.DataArray) -> xr.DataArray:
    """Rows first, then channel, y, x or token, feature."""
    rest = {d for d in map(str, array.dims[1:]) if array.ndim > 1}
    for legal in (("channel", "y", "x"), ("token", "feature"), ("feature",)):
        if rest == set(legal):
            return array.transpose(array.dims[0], *legal)
    raise DataError(
        f"features have dims {tuple(map(str, array.dims))}. Expected (stimulus, channel, y, x), (stimulus, token, "
        "feature) or (stimulus, feature). Next step: rename or transpose them, rows first."
    )


def as_maps(X: Any) -> MapArray:
    """``X`` as maps; see `MapArray`."""
    return X if isinstance(X, MapArray) else MapArray(X)


class Maps:
    """Maps as tensors on a device, ``(x - mean[c]) / scale[c]``; images of uint8 are first divided by 255.

    Parameters
    ----------
    array : MapArray or array
    device : torch device
    dtype : torch dtype
        Of what `rows` returns.
    mean, scale : ndarray (C,), optional
    max_memory : int or str, optional
        Maps that need more bytes than this are read batch by batch instead of being held; default a quarter of the
        memory (of the GPU's free memory on a GPU). Results do not depend on it.
    """

    def __init__(
        self,
        array: Any,
        device: Any = "cpu",
        *,
        dtype: torch.dtype = torch.float32,
        mean: np.ndarray | None = None,
        scale: np.ndarray | None = None,
        max_memory: Any = None,
    ) -> None:
        self.source = as_maps(array)
        self.shape = self.source.shape
        self.device = torch.device(device)
        self.dtype = dtype
        self._mean = None if mean is None else torch.as_tensor(mean, dtype=dtype).to(self.device)[:, None, None]
        self._scale = None if scale is None else torch.as_tensor(scale, dtype=dtype).to(self.device)[:, None, None]
        self._held: Tensor | None = None
        # Images stay bytes: as floats they would take four times the memory.
        self._late = self.source.dtype == np.uint8
        size = self.source.nbytes if self._late else int(np.prod(self.shape)) * torch.finfo(dtype).bits // 8
        if size <= _budget(self.device, max_memory):
            self._hold()

    def _hold(self) -> None:
        if self._late:
            self._held = torch.as_tensor(np.ascontiguousarray(self.source.read(slice(None)))).to(self.device)
            return
        held = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        start = 0
        for block in self.source.blocks():
            held[start : start + len(block)] = self._convert(block)
            start += len(block)
        self._held = held

    def _convert(self, block: Any) -> Tensor:
        if isinstance(block, np.ndarray):
            # A copy: the rows may be a read-only view of a file, which torch does not take.
            block = torch.as_tensor(np.array(block))
        x = block.to(self.device, self.dtype, non_blocking=True)
        if self._late:
            x = x / 255
        if self._mean is not None:
            x = x - self._mean
        return x if self._scale is None else x / self._scale

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, index: Tensor) -> Tensor:
        """Maps (k, C, H, W) at positions ``index`` (k,), in that order."""
        if self._held is not None:
            found = self._held[index.to(self.device)]
            return self._convert(found) if self._late else found
        # Files are read in ascending order, each row once.
        unique, inverse = np.unique(index.cpu().numpy(), return_inverse=True)
        return self._convert(self.source.read(unique))[torch.as_tensor(inverse, device=self.device)]

    def hash(self) -> str:
        """SHA-256 of all maps as they are read, and of the standardisation."""
        parts = [hash_array(block) for block in self.source.blocks()]
        ends = [hash_array(t.cpu().numpy()) for t in (self._mean, self._scale) if t is not None]
        return hash_array(parts + ends)


def _budget(device: torch.device, max_memory: Any) -> int:
    if max_memory is None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 4)
    return parse_memory(max_memory)


def map_moments(array: MapArray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and s.d. (C,) of each channel over stimuli and places, float64; s.d. 1 where nothing varies."""
    channels = array.shape[1]
    n, mean, m2, bad = 0, np.zeros(channels), np.zeros(channels), 0
    for block in array.blocks():
        values = block.astype(np.float64) / (255 if array.dtype == np.uint8 else 1)
        bad += int((~np.isfinite(values).all(axis=(1, 2, 3))).sum())
        # Merging moments block by block does not lose digits as a sum of squares does (Chan et al., 1979).
        size, here = len(values) * values.shape[2] * values.shape[3], values.mean(axis=(0, 2, 3))
        delta, total = here - mean, n + size
        m2 += ((values - here[:, None, None]) ** 2).sum(axis=(0, 2, 3)) + delta**2 * n * size / total
        mean, n = mean + delta * size / total, total
    if bad:
        raise DataError(
            f"features of {bad} of {len(array)} stimuli hold NaN or infinity (inf). "
            "Next step: leave those stimuli out, or fill empty cells with 0."
        )
    scale = np.sqrt(m2 / n)
    # What is constant stays so up to rounding; dividing by that rounding would make noise of it.
    constant = scale <= 1e-10 * np.maximum(np.abs(mean), 1e-300)
    return mean, np.where(constant, 1.0, scale)
