"""Tiled matrix products and exponentials of the projection.

A kernel holds the weights of all voxels, divided by the temperature, and the rows of one chunk; states ask it for the
largest logits of a tile, for the entries near them, and for exponentials and sums. numpy and torch give the same
numbers to the rounding of the products; whatever decides between rows is computed by the caller in float64.

Products of fewer digits are not offered. Measured at 512 features, temperature 1/150: bf16 products (AMX) take 0.3 of
the time of float32 and are off by 0.09 in a logit, 9 % of a softmax weight; three bf16 products of split numbers
are off by 1.5e-4 and take as long as float32, which is off by 2e-5.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from neuroenc._core.errors import ConfigError
from neuroenc._core.optional import require
from neuroenc._core.topk import row_norms
from neuroenc.retrieval import Chunk

# exp(-64) of the largest weight is lost in float64 even over 1e9 images, and smaller values would
# become denormal numbers, which slow the matrix product down.
LOWEST = -64.0


class NumpyKernel:
    """numpy's matrix products; one copy of a tile's logits and exponentials.

    Arrays that are given and returned are numpy, but for the sums (v, d), which stay where the backend wants them.
    """

    norms: np.ndarray
    directions: np.ndarray

    def __init__(self, scaled: np.ndarray, dtype: np.dtype) -> None:
        self.dtype = dtype
        self._scaled = scaled.astype(dtype)
        self._work = np.empty((2, 0, 0), dtype)

    def zeros(self) -> Any:
        """Sums (v, d) in float64."""
        return np.zeros(self._scaled.shape)

    def put(self, sums: np.ndarray) -> Any:
        """Sums of another state."""
        return sums.copy()

    def to_numpy(self, sums: Any) -> np.ndarray:
        """Sums as a numpy array (without a copy where they are one)."""
        return np.asarray(sums)

    def exact(self) -> AbstractContextManager[Any]:
        """Context in which the products have all digits of their type."""
        return nullcontext()

    def load(self, chunk: Chunk, decouple: bool, block: int) -> None:
        """Take a chunk; sets ``norms`` (m,) and ``directions`` (d,), the sum of its unit rows, in float64."""
        self.norms = row_norms(chunk, need_positive=True)
        raw = np.asarray(chunk.rows)
        m, d = raw.shape
        values = np.empty((m, d + 2), self.dtype)
        np.divide(raw, self.norms[:, None], out=values[:, :d], casting="unsafe")
        values[:, d], values[:, d + 1] = self.norms, 1
        unit = values[:, :d]
        self.directions = unit.sum(axis=0, dtype=np.float64)
        if not decouple:
            unit = unit.copy()
            values[:, :d] = raw
        self._unit, self._values = unit, values
        if self._work.shape[1] < block or self._work.shape[2] != m:
            self._work = np.empty((2, block, m), self.dtype)

    def logits(self, part: slice) -> np.ndarray:
        """Compute the logits of a tile and return the largest of each voxel (b,)."""
        self._tile = self._work[0, : part.stop - part.start]
        np.matmul(self._scaled[part], self._unit.T, out=self._tile)
        return self._tile.max(axis=1)

    def near(
        self, rows: np.ndarray, floor: np.ndarray, most: int | None = None, slack: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Entries (i, j) of the tile's ``rows`` that are at least ``floor``.

        With ``most``, where there are many: those only that are within ``slack`` of the ``most`` largest.
        """
        found = self._tile[rows]
        m = found.shape[1]
        hits = found >= floor[:, None]
        if most is not None and m > most and np.count_nonzero(hits) > 4 * most * len(rows):
            own = np.partition(found, m - most, axis=1)[:, m - most]
            hits = found >= np.maximum(floor, own - self.dtype.type(slack))[:, None]
        i, j = np.divmod(np.flatnonzero(hits), m)
        return rows[i], j

    def _exp(self, reference: np.ndarray) -> np.ndarray:
        tile = self._tile
        tile -= reference[:, None].astype(self.dtype)
        np.maximum(tile, LOWEST, out=tile)
        return np.exp(tile, out=self._work[1, : len(tile)])

    def add(self, part: slice, reference: np.ndarray, keep: np.ndarray, sums: Any) -> tuple[np.ndarray, ...]:
        """``sums[part] = keep sums[part] + exp(logits - reference) values``; the same sums of 1, norms, -logits."""
        weight = self._exp(reference)
        found = weight @ self._values
        mine, d = sums[part], sums.shape[1]
        if (keep != 1).any():
            mine *= keep[:, None]
        mine += found[:, :d]
        return found[:, d + 1], found[:, d], -np.einsum("vk,vk->v", weight, self._tile)

    def mass(self, reference: np.ndarray) -> np.ndarray:
        """Sums of ``exp(logits - reference)`` of the tile, float64 (b,)."""
        return self._exp(reference).sum(axis=1).astype(np.float64)


class TorchKernel:
    """torch's, on the CPU's threads or a GPU; sums stay on the device."""

    def __init__(self, scaled: np.ndarray, dtype: np.dtype, device: str) -> None:
        torch = require("torch", "clip")
        self._torch, self.device, self.dtype = torch, torch.device(device), dtype
        self._type = torch.float64 if dtype == np.float64 else torch.float32
        self._scaled = torch.from_numpy(scaled).to(self.device, self._type)
        self._work = torch.empty((2, 0, 0), dtype=self._type, device=self.device)

    def exact(self) -> AbstractContextManager[Any]:
        from neuroenc._core.device import exact_arithmetic

        return exact_arithmetic()

    def zeros(self) -> Any:
        return self._torch.zeros(self._scaled.shape, dtype=self._torch.float64, device=self.device)

    def to_numpy(self, sums: Any) -> np.ndarray:
        return np.asarray(sums.cpu().numpy())

    def load(self, chunk: Chunk, decouple: bool, block: int) -> None:
        torch = self._torch
        rows = np.asarray(chunk.rows)
        if rows.dtype not in (np.float16, np.float32, np.float64):
            rows = rows.astype(np.float64)
        # Memory-mapped rows are read only, and torch warns of what it could write to.
        raw = torch.from_numpy(np.array(rows)).to(self.device)
        wide = raw.to(torch.float64)
        norms = torch.linalg.vector_norm(wide, dim=1)
        self.norms = norms.cpu().numpy()
        if not (np.isfinite(self.norms).all() and (self.norms > 0).all()):
            row_norms(chunk, need_positive=True)
        m, d = raw.shape
        values = torch.empty((m, d + 2), dtype=self._type, device=self.device)
        values[:, :d] = wide / norms[:, None]
        values[:, d], values[:, d + 1] = norms, 1
        unit = values[:, :d]
        self.directions = unit.sum(dim=0, dtype=torch.float64).cpu().numpy()
        if not decouple:
            unit = unit.clone()
            values[:, :d] = raw
        self._unit, self._values = unit, values
        if self._work.shape[1] < block or self._work.shape[2] != m:
            self._work = torch.empty((2, block, m), dtype=self._type, device=self.device)

    def put(self, sums: np.ndarray) -> Any:
        return self._torch.from_numpy(np.array(sums)).to(self.device)

    def logits(self, part: slice) -> np.ndarray:
        self._tile = self._work[0, : part.stop - part.start]
        self._torch.mm(self._scaled[part], self._unit.T, out=self._tile)
        return np.asarray(self._tile.amax(dim=1).cpu().numpy())

    def near(
        self, rows: np.ndarray, floor: np.ndarray, most: int | None = None, slack: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        found = self._tile[self.put(rows)]
        m = found.shape[1]
        limit = self.put(floor)
        hits = found >= limit[:, None]
        if most is not None and m > most and int(hits.sum()) > 4 * most * len(rows):
            own = found.topk(most, dim=1).values[:, -1] - slack
            hits = found >= self._torch.maximum(limit, own)[:, None]
        i, j = hits.nonzero(as_tuple=True)
        return rows[i.cpu().numpy()], j.cpu().numpy()

    def _exp(self, reference: np.ndarray) -> Any:
        tile = self._tile
        tile -= self.put(reference.astype(self.dtype))[:, None]
        tile.clamp_(min=LOWEST)
        return self._torch.exp(tile, out=self._work[1, : len(tile)])

    def add(self, part: slice, reference: np.ndarray, keep: np.ndarray, sums: Any) -> tuple[np.ndarray, ...]:
        weight = self._exp(reference)
        found = weight @ self._values
        mine, d = sums[part], sums.shape[1]
        if (keep != 1).any():
            mine *= self.put(keep)[:, None]
        mine += found[:, :d]
        if self.device.type == "cpu":  # torch's row-wise products are slow there
            spread = np.einsum("vk,vk->v", weight.numpy(), self._tile.numpy())
        else:
            spread = (weight * self._tile).sum(dim=1).cpu().numpy()
        tail = found[:, d:].cpu().numpy()
        return tail[:, 1], tail[:, 0], -spread

    def mass(self, reference: np.ndarray) -> np.ndarray:
        return np.asarray(self._exp(reference).sum(dim=1, dtype=self._torch.float64).cpu().numpy())


#: What computes tiles; both have the same methods.
Kernel = NumpyKernel | TorchKernel


def make_kernel(scaled: np.ndarray, dtype: np.dtype, device: str | None) -> Kernel:
    """numpy without a device, else torch there; "auto" is a CUDA GPU, or torch on the CPU.

    Raises
    ------
    ConfigError
        The device does not exist, or has no float64, in which the sums are kept.
    """
    if device is None:
        return NumpyKernel(scaled, dtype)
    require("torch", "clip")
    from neuroenc._core.device import resolve_device

    place = resolve_device(device)
    if place.startswith("mps"):
        if device != "auto":
            raise ConfigError("device='mps' has no float64, which sums need. Next step: device='cpu' or None (numpy).")
        place = "cpu"
    return TorchKernel(scaled, dtype, place)
