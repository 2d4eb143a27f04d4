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
    #: The module whose functions compute.
    xp: Any = np

    def __init__(self, scaled: np.ndarray, dtype: np.dtype) -> None:
        self.dtype = dtype
        self._scaled = self.put(scaled.astype(dtype))
        self._work = self._empty(2, 0, 0)

    def _empty(self, *shape: int) -> Any:
        return np.empty(shape, self.dtype)

    def put(self, array: np.ndarray) -> Any:
        """A copy of an array where the backend computes, such as the sums of another state."""
        return array.copy()

    def to_numpy(self, array: Any) -> np.ndarray:
        """An array of the backend as a numpy array (without a copy where it is one)."""
        return np.asarray(array)

    def zeros(self) -> Any:
        """Sums (v, d) in float64."""
        return self.put(np.zeros(tuple(self._scaled.shape)))

    def exact(self) -> AbstractContextManager[Any]:
        """Context in which the products have all digits of their type."""
        return nullcontext()

    def _read(self, chunk: Chunk) -> tuple[Any, Any]:
        """Rows (m, d) and their norms (m,) in float64; what has no direction is refused."""
        return np.asarray(chunk.rows), row_norms(chunk, need_positive=True)

    def load(self, chunk: Chunk, decouple: bool, block: int) -> None:
        """Take a chunk; sets ``norms`` (m,) and ``directions`` (d,), the sum of its unit rows, in float64."""
        raw, norms = self._read(chunk)
        m, d = raw.shape
        self._values = values = self._empty(m, d + 2)
        self._unit = unit = values[:, :d] if decouple else self._empty(m, d)
        self.xp.divide(raw, norms[:, None], out=unit)
        if not decouple:
            values[:, :d] = raw
        values[:, d], values[:, d + 1] = norms, 1
        self.norms, self.directions = map(self.to_numpy, (norms, unit.sum(axis=0, dtype=self.xp.float64)))
        if self._work.shape[1] < block or self._work.shape[2] != m:
            self._work = self._empty(2, block, m)

    def logits(self, part: slice) -> np.ndarray:
        """Compute the logits of a tile and return the largest of each voxel (b,)."""
        self._tile = self._work[0, : part.stop - part.start]
        self.xp.matmul(self._scaled[part], self._unit.T, out=self._tile)
        return self.to_numpy(self.xp.amax(self._tile, 1))

    def near(self, rows: np.ndarray, floor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Entries (i, j) of the tile's ``rows`` that are at least ``floor``."""
        hits = self._tile[self.put(rows)] >= self.put(floor)[:, None]
        i, j = np.divmod(self.to_numpy(self.xp.argwhere(hits.reshape(-1))).ravel(), hits.shape[1])
        return rows[i], j

    def _exp(self, reference: np.ndarray) -> Any:
        tile = self._tile
        tile -= self.put(reference.astype(self.dtype))[:, None]
        self.xp.clip(tile, LOWEST, None, out=tile)
        return self.xp.exp(tile, out=self._work[1, : len(tile)])

    def add(self, part: slice, reference: np.ndarray, keep: np.ndarray, sums: Any) -> tuple[np.ndarray, ...]:
        """``sums[part] = keep sums[part] + exp(logits - reference) values``; the same sums of 1, norms, -logits."""
        weight = self._exp(reference)
        found = weight @ self._values
        mine, d = sums[part], sums.shape[1]
        if (keep != 1).any():
            mine *= self.put(keep)[:, None]
        mine += found[:, :d]
        norms, ones = self.to_numpy(found[:, d:]).T
        return ones, norms, -self._spread(weight)

    def _spread(self, weight: Any) -> np.ndarray:
        return np.einsum("vk,vk->v", self.to_numpy(weight), self.to_numpy(self._tile))


class TorchKernel(NumpyKernel):
    """torch's, on the CPU's threads or a GPU; sums stay on the device."""

    def __init__(self, scaled: np.ndarray, dtype: np.dtype, device: str) -> None:
        self.xp = torch = require("torch", "clip")
        self.device, self._type = torch.device(device), torch.float64 if dtype == np.float64 else torch.float32
        super().__init__(scaled, dtype)

    def _empty(self, *shape: int) -> Any:
        return self.xp.empty(shape, dtype=self._type, device=self.device)

    def put(self, array: np.ndarray) -> Any:
        # Memory-mapped rows are read only, and torch warns of what it could write to.
        return self.xp.from_numpy(np.array(array)).to(self.device)

    def to_numpy(self, array: Any) -> np.ndarray:
        return np.asarray(array.cpu().numpy())

    def exact(self) -> AbstractContextManager[Any]:
        from neuroenc._core.device import exact_arithmetic

        return exact_arithmetic()

    def _read(self, chunk: Chunk) -> tuple[Any, Any]:
        rows = np.asarray(chunk.rows)
        raw = self.put(rows if rows.dtype in (np.float16, np.float32, np.float64) else rows.astype(np.float64))
        norms = self.xp.linalg.vector_norm(raw, dim=1, dtype=self.xp.float64)
        if not bool((self.xp.isfinite(norms) & (norms > 0)).all()):
            row_norms(chunk, need_positive=True)
        return raw, norms

    def _spread(self, weight: Any) -> np.ndarray:
        if self.device.type == "cpu":  # torch's row-wise products are slow there
            return super()._spread(weight)
        return self.to_numpy((weight * self._tile).sum(dim=1))


def make_kernel(scaled: np.ndarray, dtype: np.dtype, device: str | None) -> NumpyKernel:
    """numpy without a device, else torch there; "auto" is a CUDA GPU, or torch on the CPU."""
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
