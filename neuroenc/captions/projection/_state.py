"""Online-softmax state of a projection; parts merge exactly."""

from __future__ import annotations

from copy import copy
from typing import Any, Self

import numpy as np

from neuroenc._core.checks import at_least
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.topk import exact_scores
from neuroenc.captions.projection._kernels import NumpyKernel, make_kernel
from neuroenc.retrieval import Chunk


class ProjectionState:
    """Online-softmax state: weighted sums of bank embeddings per voxel, updated row by row.

    With cosines ``c_k = w . m_k``, ``m_k = M_k / ||M_k||`` and a reference ``c*`` (the largest cosine
    so far), the state holds ``Z = sum_k exp((c_k - c*) / temperature)``, the sums of ``m_k`` (or ``M_k``
    with ``decouple=False``), of ``||M_k||`` and of ``(c* - c_k) / temperature`` under the same weights,
    and the nearest row. Rows may come in any pieces; states of different pieces merge.

    Parameters
    ----------
    weights : array (v, d)
        Unit-norm weights, one row a voxel.
    decouple : bool
        Sum unit directions (True) or raw vectors (False).
    dtype : "float32", "float64" or None
        Precision of the matrix products; sums are float64. None: float32, but float64 for
        temperatures under 1/1000, where an error of 1e-7 in a cosine would show.
    device : str or None
        None: numpy. "cpu", "cuda", "auto": torch there. They agree to the rounding of the products.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.retrieval import Chunk
    >>> bank = np.eye(3)
    >>> a, b = (ProjectionState(np.array([[1.0, 0.0, 0.0]]), 0.1) for _ in range(2))
    >>> a.update(Chunk(0, bank[:2], None)); b.update(Chunk(2, bank[2:], None))
    >>> whole = a.merge(b)
    >>> whole.count, whole.nearest.tolist(), whole.finish()["mean"].round(3).tolist()
    (3, [0], [[1.0, 0.0, 0.0]])
    """

    def __init__(
        self,
        weights: Any,
        temperature: float = 1 / 150,
        decouple: bool = True,
        dtype: str | None = None,
        device: str | None = None,
    ) -> None:
        if dtype not in (None, "float32", "float64"):
            raise ConfigError(f"dtype={dtype!r} is not legal; legal: 'float32', 'float64', None.")
        w = np.ascontiguousarray(weights, dtype=np.float64)
        if w.ndim != 2 or (len(w) and np.abs(np.linalg.norm(w, axis=1) - 1).max() > 1e-5):
            raise DataError(f"weights of shape {w.shape} must be (v, d) with unit-norm rows.")
        self.temperature = at_least("temperature", temperature, above=True, also=" (1/150 is usual)")
        self.weights, self.decouple, self.device = w, bool(decouple), device
        self.dtype = np.dtype(dtype or ("float64" if temperature < 1e-3 else "float32"))
        self._kernel: NumpyKernel | None = make_kernel(w / self.temperature, self.dtype, device)
        self._clear()

    def fresh(self) -> Self:
        """A state without rows that shares this one's weights and working memory (one thread at a time)."""
        other = copy(self)
        other._clear()
        return other

    def _clear(self) -> None:
        v, d = self.weights.shape
        self.count = 0
        self.z, self.directions = np.zeros(v), np.zeros(d)
        self.norms, self.spread, self.nearest_norm = np.zeros(v), np.zeros(v), np.zeros(v)
        self.nearest, self.nearest_cosine = np.full(v, -1, np.int64), np.full(v, -np.inf)
        self._sums: Any = None

    @property
    def vectors(self) -> np.ndarray:
        """Sums (v, d) of unit directions (raw vectors), float64."""
        if self._sums is None:
            return np.zeros(self.weights.shape)
        return self._sums if self._kernel is None else self._kernel.to_numpy(self._sums)

    def __getstate__(self) -> dict[str, Any]:
        # Between processes only sums travel; a state that arrives is merged or finished.
        return {**self.__dict__, "_kernel": None, "_sums": self.vectors}

    def kernel(self) -> NumpyKernel:
        """What computes; made anew where the state came from a merge or another process, its sums put there."""
        if self._kernel is None:
            self._kernel = make_kernel(self.weights / self.temperature, self.dtype, self.device)
            self._sums = None if self._sums is None else self._kernel.put(self._sums)
        return self._kernel

    def update(self, chunk: Chunk, block: int = 512) -> None:
        """Take rows in; ``block`` voxels are worked on at a time."""
        v, d = self.weights.shape
        if chunk.rows.shape[1] != d:
            raise DataError(f"embeddings have width {chunk.rows.shape[1]}, the weights {d}; they must be equal.")
        kernel, block = self.kernel(), max(1, min(block, v))
        with kernel.exact():
            self._sums = kernel.zeros() if self._sums is None else self._sums
            kernel.load(chunk, self.decouple, block)
            self.directions += kernel.directions
            self.count += len(kernel.norms)
            for a in range(0, v, block):
                self._update_block(slice(a, min(a + block, v)), chunk, kernel)

    def _update_block(self, part: slice, chunk: Chunk, kernel: NumpyKernel) -> None:
        largest = kernel.logits(part)
        old = self.nearest_cosine[part].copy()
        self._update_nearest(part, chunk, kernel, largest)
        new = self.nearest_cosine[part]
        keep = np.exp((old - new) / self.temperature)
        shift = np.where(keep > 0, (new - np.where(keep > 0, old, new)) / self.temperature, 0.0)
        z, norms, spread = kernel.add(part, new / self.temperature, keep, self._sums)
        self.spread[part] = keep * (self.spread[part] + self.z[part] * shift) + spread
        self.z[part] = keep * self.z[part] + z
        self.norms[part] = keep * self.norms[part] + norms

    def _update_nearest(self, part: slice, chunk: Chunk, kernel: NumpyKernel, largest: np.ndarray) -> None:
        # Rows within the rounding error of the best are compared again in float64, so that the nearest
        # row (the lowest of equal ones) does not depend on how the bank was cut.
        slack = self.weights.shape[1] * np.finfo(self.dtype).eps / self.temperature
        best, row = self.nearest_cosine[part], self.nearest[part]
        floor = (np.maximum(largest, best / self.temperature) - slack).astype(self.dtype)
        voxels = np.flatnonzero(largest >= floor)
        if len(voxels) == 0:
            return
        i, j = kernel.near(voxels, floor[voxels])
        cosine = exact_scores(self.weights[part], chunk.rows, i, j) / kernel.norms[j]
        cosine = cosine.astype(np.float32).astype(np.float64)
        order = np.lexsort((j, -cosine, i))
        voxel, first = np.unique(i[order], return_index=True)
        pick = order[first]
        value, at = cosine[pick], chunk.at(j[pick])
        better = (value > best[voxel]) | ((value == best[voxel]) & (at < row[voxel]))
        voxel, pick = voxel[better], pick[better]
        best[voxel], row[voxel] = value[better], at[better]
        self.nearest_norm[part][voxel] = kernel.norms[j[pick]]

    def merge(self, other: ProjectionState) -> ProjectionState:
        """State of both parts' rows together; neither is changed. Associative up to rounding."""
        same = (self.temperature, self.decouple) == (other.temperature, other.decouple)
        if not same or not np.array_equal(self.weights, other.weights):
            raise DataError("ProjectionStates merge only with equal weights, temperature, decouple.")
        out = self.fresh()
        out.count, out.directions = self.count + other.count, self.directions + other.directions
        out._kernel, sums = None, np.zeros(self.weights.shape)
        theirs = (other.nearest_cosine > self.nearest_cosine) | (
            (other.nearest_cosine == self.nearest_cosine)
            & (other.nearest >= 0)
            & ((other.nearest < self.nearest) | (self.nearest < 0))
        )
        for name in ("nearest", "nearest_cosine", "nearest_norm"):
            setattr(out, name, np.where(theirs, getattr(other, name), getattr(self, name)))
        for state in (self, other):
            if state.count == 0:
                continue
            gap = (out.nearest_cosine - state.nearest_cosine) / self.temperature
            keep = np.exp(-gap)
            out.z += keep * state.z
            out.norms += keep * state.norms
            sums += keep[:, None] * state.vectors
            out.spread += keep * (state.spread + gap * state.z)
        out._sums = sums
        return out

    def info(self) -> dict[str, Any]:
        """What the rows say of the bank."""
        direction = self.directions / max(self.count, 1)
        return {"n_images": self.count, "bank_direction": direction, "dtype": self.dtype.name}

    def finish(self) -> dict[str, np.ndarray]:
        """Averages over the rows seen.

        Returns
        -------
        dict
            ``mean`` (v, d) softmax average of the unit directions (raw vectors with ``decouple=False``);
            ``norm`` (v,) average of the norms; ``effective_images`` (v,) exp of the entropy of the weights.
        """
        if self.count == 0:
            raise DataError("the embedding bank has 0 rows; at least one is needed.")
        entropy = np.log(self.z) + self.spread / self.z
        return {
            "mean": self.vectors / self.z[:, None],
            "norm": self.norms / self.z,
            "effective_images": np.exp(np.clip(entropy, 0.0, np.log(self.count))),
            "nearest_cosine": self.nearest_cosine,
            "nearest_norm": self.nearest_norm,
        }
