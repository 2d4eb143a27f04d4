"""Online-softmax state of a projection, whole or truncated to the k nearest images; parts merge exactly."""

from __future__ import annotations

from copy import copy
from typing import Any, ClassVar, Self

import numpy as np
from scipy.sparse import csr_array

from neuroenc._core.checks import at_least, check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.topk import exact_scores, merge_best
from neuroenc.captions.projection._kernels import NumpyKernel, make_kernel
from neuroenc.retrieval import Chunk, EmbeddingBank


class _State:
    """Weights, settings and kernel of both states, which take rows in tile by tile."""

    #: What states that merge must have in common, and the attributes that hold it.
    _settings: ClassVar = {"temperature": "temperature", "decouple": "decouple"}

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

    def __getstate__(self) -> dict[str, Any]:
        # Between processes only sums travel; a state that arrives is merged or finished.
        return {**self.__dict__, "_kernel": None}

    def kernel(self) -> NumpyKernel:
        """What computes; made anew where the state came from a merge or another process."""
        if self._kernel is None:
            self._kernel = make_kernel(self.weights / self.temperature, self.dtype, self.device)
        return self._kernel

    def update(self, chunk: Chunk, block: int = 512) -> None:
        """Take rows in; ``block`` voxels are worked on at a time."""
        v, d = self.weights.shape
        if chunk.rows.shape[1] != d:
            raise DataError(f"embeddings have width {chunk.rows.shape[1]}, the weights {d}; they must be equal.")
        kernel, block = self.kernel(), max(1, min(block, v))
        with kernel.exact():
            self._load(chunk, kernel, block)
            self.directions += kernel.directions
            self.count += len(kernel.norms)
            for a in range(0, v, block):
                self._update_block(slice(a, min(a + block, v)), chunk, kernel)

    def _joined(self, other: Self) -> Self:
        """A state without sums that counts both parts' rows, if the two differ in nothing but these."""
        same = all(getattr(self, name) == getattr(other, name) for name in self._settings.values())
        if not same or not np.array_equal(self.weights, other.weights):
            named = ", ".join(self._settings)
            raise DataError(f"{type(self).__name__}s merge only with equal weights, {named}.")
        out = self.fresh()
        out.count, out.directions = self.count + other.count, self.directions + other.directions
        return out

    def info(self) -> dict[str, Any]:
        """What the rows say of the bank."""
        direction = self.directions / max(self.count, 1)
        return {"n_images": self.count, "bank_direction": direction, "dtype": self.dtype.name}

    def _load(self, chunk: Chunk, kernel: NumpyKernel, block: int) -> None:
        raise NotImplementedError

    def _update_block(self, part: slice, chunk: Chunk, kernel: NumpyKernel) -> None:
        raise NotImplementedError


class ProjectionState(_State):
    """Online-softmax state: weighted sums of bank embeddings per voxel, updated row by row.

    With cosines ``c_k = w . m_k``, ``m_k = M_k / ||M_k||`` and a reference ``c*`` (the largest cosine
    so far), the state holds ``Z = sum_k exp((c_k - c*) / temperature)``, the sums of ``m_k`` (or ``M_k``
    with ``decouple=False``), of ``||M_k||`` and of ``(c* - c_k) / temperature`` under the same weights,
    and the nearest row. Rows may come in any pieces; states of different pieces merge.

    Parameters
    ----------
    weights : array (v, d)
        Unit-norm weights, one row a voxel.
    temperature : float
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

    def _clear(self) -> None:
        super()._clear()
        v = len(self.weights)
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
        return {**super().__getstate__(), "_sums": self.vectors}

    def kernel(self) -> NumpyKernel:
        """What computes; sums that came from elsewhere are put where it wants them."""
        anew, kernel = self._kernel is None, super().kernel()
        if anew and self._sums is not None:
            self._sums = kernel.put(self._sums)
        return kernel

    def _load(self, chunk: Chunk, kernel: NumpyKernel, block: int) -> None:
        self._sums = kernel.zeros() if self._sums is None else self._sums
        kernel.load(chunk, self.decouple, block)

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
        """State of both parts' rows together; neither is changed. Associative up to rounding.

        Raises
        ------
        DataError
            The states belong to other weights, temperature, or kind of average.
        """
        out = self._joined(other)
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

    def finish(self, bank: EmbeddingBank | None = None) -> dict[str, np.ndarray]:
        """Averages over the rows seen.

        Returns
        -------
        dict
            ``mean`` (v, d) softmax average of the unit directions (raw vectors with ``decouple=False``);
            ``norm`` (v,) average of the norms; ``effective_images`` (v,) exp of the entropy of the weights.

        Raises
        ------
        DataError
            No rows were seen.
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


class TruncatedState(_State):
    r"""Online-softmax state truncated to the ``k`` nearest images of each voxel.

    With the weights ``s`` of the full softmax, ``T`` the k nearest rows and ``lambda = 1 - sum_T s_k``, the full
    average is ``(1 - lambda) a + lambda b``: ``a`` the softmax average over T, ``b`` that of the rest, ``|b| <= r``
    (1 for unit directions, the largest norm for raw vectors). Hence, for the directions d of the full and d_T of the
    truncated average, and with norms of the bank between lowest and highest::

        sin angle(d, d_T) <= x = lambda r / ((1 - lambda) |a|)      where x < 1
        |d - d_T| <= 2 sin(asin(x) / 2), else 2
        |n - n_T| <= lambda max(highest - n_T, n_T - lowest)      (raw vectors: lambda (highest + n_T))

    ``lambda`` is summed over every row with the rest, and has two roundings of a logit added.

    Parameters
    ----------
    weights, temperature, decouple, dtype, device
        As of :class:`ProjectionState`.
    k : int
    weighting : "softmax" or "uniform"
        "uniform": the plain average of the k nearest (the bounds are then of no use, and NaN).

    Examples
    --------
    >>> state = TruncatedState(np.array([[1.0, 0.0]]), k=1, temperature=0.1)
    >>> state.update(Chunk(0, np.array([[2.0, 0.0], [0.0, 1.0]]), None))
    >>> from neuroenc.retrieval import as_bank
    >>> found = state.finish(as_bank(np.array([[2.0, 0.0], [0.0, 1.0]])))
    >>> found["mean"].tolist(), bool(4e-5 < found["lost_mass"][0] < 5e-5)
    ([[1.0, 0.0]], True)
    """

    _settings: ClassVar = {**_State._settings, "top_k": "k", "weighting": "weighting"}

    def __init__(
        self,
        weights: Any,
        k: int,
        temperature: float = 1 / 150,
        decouple: bool = True,
        dtype: str | None = None,
        device: str | None = None,
        weighting: str = "softmax",
    ) -> None:
        k = check_whole("top_k", k, also=", or None for all images")
        one_of("weighting", weighting, ("softmax", "uniform"))
        self.k, self.weighting = k, weighting
        super().__init__(weights, temperature, decouple, dtype, device)

    def _clear(self) -> None:
        super()._clear()
        shape = len(self.weights), self.k
        self.scores, self.rows = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)
        self.lowest, self.highest = np.inf, 0.0

    @property
    def nearest(self) -> np.ndarray:
        """Nearest row of each voxel (v,)."""
        return self.rows[:, 0]

    def _load(self, chunk: Chunk, kernel: NumpyKernel, block: int) -> None:
        kernel.load(chunk, True, block)
        self.lowest = min(self.lowest, float(kernel.norms.min()))
        self.highest = max(self.highest, float(kernel.norms.max()))

    def _update_block(self, part: slice, chunk: Chunk, kernel: NumpyKernel) -> None:
        largest = kernel.logits(part)
        slack = self.weights.shape[1] * float(np.finfo(self.dtype).eps) / self.temperature
        old = self.scores[part, 0].astype(np.float64)
        floor = (self.scores[part, -1] / self.temperature - slack).astype(self.dtype)
        voxels = np.flatnonzero(largest >= floor)
        if len(voxels):
            i, j = kernel.near(voxels, floor[voxels], self.k, slack)
            cosine = exact_scores(self.weights[part], chunk.rows, i, j) / kernel.norms[j]
            merge_best(self.scores[part], self.rows[part], i, cosine.astype(np.float32), chunk.at(j))
        new = self.scores[part, 0].astype(np.float64)
        keep = np.exp((old - new) / self.temperature)
        self.z[part] = keep * self.z[part] + kernel.mass(new / self.temperature)

    def merge(self, other: TruncatedState) -> TruncatedState:
        """State of both parts' rows together; neither is changed.

        Raises
        ------
        DataError
            The states belong to other weights or settings.
        """
        out = self._joined(other)
        out.lowest, out.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)
        score = np.concatenate([self.scores, other.scores], axis=1)
        row = np.concatenate([self.rows, other.rows], axis=1)
        # Places that are still empty hold row -1 and come last by their score.
        order = np.lexsort((row, -score), axis=1)[:, : self.k]
        out.scores, out.rows = np.take_along_axis(score, order, 1), np.take_along_axis(row, order, 1)
        best = out.scores[:, 0].astype(np.float64)
        for state in (self, other):
            if state.count:
                out.z += state.z * np.exp((state.scores[:, 0] - best) / self.temperature)
        return out

    def finish(self, bank: EmbeddingBank) -> dict[str, np.ndarray]:
        """Averages over the k nearest rows, which are read once more.

        Parameters
        ----------
        bank : EmbeddingBank
            The one that was seen; not a stream.

        Returns
        -------
        dict
            As of :meth:`ProjectionState.finish` (of the truncated weights), ``nearest_cosine, nearest_norm``, and
            the bounds ``lost_mass, direction_error, norm_error`` (v,).

        Raises
        ------
        DataError
            No rows were seen, or fewer than k.
        """
        if self.count < self.k:
            raise DataError(f"top_k={self.k} of a bank (or fold) of {self.count} images; legal is up to {self.count}.")
        v, d = self.weights.shape
        flat = self.rows.ravel()
        cosine, size = np.zeros(v * self.k), np.zeros(v * self.k)
        best = self.scores[:, 0].astype(np.float64)
        mean = np.zeros((v, d))
        for chunk in bank.take(np.unique(flat)):
            at = chunk.at(np.arange(len(chunk.rows)))
            entry = np.flatnonzero((flat >= at[0]) & (flat <= at[-1]))
            i, j = entry // self.k, np.searchsorted(at, flat[entry])
            rows = np.asarray(chunk.rows, dtype=np.float64)
            norm = np.linalg.norm(rows, axis=1)
            size[entry] = norm[j]
            cosine[entry] = exact_scores(self.weights, rows, i, j) / norm[j]
            weight = self._weight(cosine[entry], best[i])
            touched, local = np.unique(i, return_inverse=True)
            pick = csr_array((weight, (local, j)), shape=(len(touched), len(rows)))
            mean[touched] += pick @ (rows / norm[:, None] if self.decouple else rows)
        cosine, size = cosine.reshape(v, self.k), size.reshape(v, self.k)
        weight = self._weight(cosine, best[:, None])
        total = weight.sum(axis=1)
        mean /= total[:, None]
        share = weight / total[:, None]
        logs = np.log(share, out=np.zeros_like(share), where=share > 0)
        found = {
            "mean": mean,
            "norm": (share * size).sum(axis=1),
            "effective_images": np.exp(-(share * logs).sum(axis=1)),
            "nearest_cosine": best,
            "nearest_norm": size[:, 0],
        }
        return {**found, **self._bounds(found, total)}

    def _weight(self, cosine: np.ndarray, best: np.ndarray) -> np.ndarray:
        if self.weighting == "uniform":
            return np.ones_like(cosine)
        return np.exp((cosine - best) / self.temperature)

    def _bounds(self, found: dict[str, np.ndarray], total: np.ndarray) -> dict[str, np.ndarray]:
        if self.weighting == "uniform":
            unknown = np.full(len(total), np.nan)
            return {"lost_mass": unknown, "direction_error": unknown, "norm_error": unknown}
        rounding = 2 * float(np.finfo(self.dtype).eps) / self.temperature
        # The bound that the k-th score sets holds too: no row left out weighs more than the k-th.
        most = np.exp((self.scores[:, -1].astype(np.float64) - self.scores[:, 0]) / self.temperature)
        rest = np.minimum(np.maximum(self.z - total, 0.0), (self.count - self.k) * most)
        lost = np.minimum(rest / (total + rest) + (rounding if self.count > self.k else 0.0), 1.0)
        norm, length = found["norm"], np.linalg.norm(found["mean"], axis=1)
        gap = np.maximum(self.highest - norm, norm - self.lowest) if self.decouple else self.highest + length
        reach = 1.0 if self.decouple else self.highest
        with np.errstate(divide="ignore", invalid="ignore"):
            sine = lost * reach / ((1 - lost) * length)
            chord = np.where(sine < 1, 2 * np.sin(np.arcsin(np.minimum(sine, 1.0)) / 2), 2.0)
        return {"lost_mass": lost, "direction_error": np.where(np.isfinite(sine), chord, 2.0), "norm_error": lost * gap}
