"""What a session keeps of its trials: moments and a sample, or sums over chunks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from neuroenc.encoders.incontext._anchor import ClosedFormAnchor, Moments
from neuroenc.encoders.incontext._condition import condition, voxels_at_once
from neuroenc.encoders.incontext._coreset import Coreset
from neuroenc.encoders.incontext._encoder import _FEWEST, _MOST
from neuroenc.encoders.incontext._long import WeightSums
from neuroenc.encoders.incontext._model import InContextModel, VoxelWeights
from neuroenc.encoders.incontext._pooling import pooled_prior

__all__ = ["AnchoredState", "ChunkState"]

_BYTES = 2**28


def _ages(forget: float, n: int) -> np.ndarray:
    """Weights of n trials in the order of time, relative to the last."""
    return np.asarray(forget ** np.arange(n - 1, -1, -1, dtype=np.float64))


class AnchoredState:
    """Moments of all trials for the closed form, and a sample for the transformer; arrays (n, feature), (n, voxel)."""

    def __init__(
        self,
        model: InContextModel,
        n_voxels: int,
        keep: int,
        forget: float,
        seed: int,
        pool: bool,
        device: torch.device,
    ) -> None:
        self.model, self.forget, self.pool, self.device = model, forget, pool, device
        self.coreset = Coreset(keep, model.config.n_features, n_voxels, forget, seed)
        self.moments: Moments | None = None
        self._register: Tensor | None = None

    @property
    def nbytes(self) -> int:
        tensors = [*(self.moments or ()), *(() if self._register is None else (self._register,))]
        return self.coreset.nbytes + sum(t.numel() * t.element_size() for t in tensors)

    @torch.no_grad()
    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        anchor = self._anchor()
        images, responses, weight = (
            torch.as_tensor(a, device=self.device) for a in (x, y.T.copy(), np.log(_ages(self.forget, len(x))))
        )
        if self.moments is not None and self.forget < 1:
            self.moments = Moments(*(t * self.forget ** len(x) for t in self.moments))
        self.moments = _plus(self.moments, anchor.moments(images, responses, weight))
        if self.coreset.add(x, y) or self.forget < 1:
            self._register = None

    def merge(self, other: AnchoredState) -> None:
        self.coreset.merge(other.coreset)
        self.moments, self._register = _plus(self.moments, other.moments), None

    @torch.no_grad()
    def weights(self) -> dict[str, np.ndarray]:
        """``coef`` (feature, voxel), ``intercept`` and ``noise`` (voxel,)."""
        anchor = self._anchor()
        step = voxels_at_once(self.model, len(self.coreset.key), _BYTES)
        if self._register is None:
            self._register = self._read(step)
        register, n = self._register, len(self._register)
        parts: list[VoxelWeights] = []
        assert self.moments is not None
        pooled = self._pooled(anchor, register, step)
        for block in torch.arange(n, device=self.device).split(step):
            parts.append(VoxelWeights(*anchor.solve(register[block], self.moments.of(block), pooled=pooled)))
        coef = torch.cat([p.coef for p in parts]).T.contiguous().cpu().numpy()
        intercept = torch.cat([p.intercept for p in parts]).cpu().numpy()
        noise = torch.cat([p.noise for p in parts if p.noise is not None]).cpu().numpy()
        return {"coef": coef, "intercept": intercept, "noise": noise}

    def _pooled(self, anchor: ClosedFormAnchor, register: Tensor, step: int) -> Tensor | None:
        """Prior of these voxels, as `InContextEncoder` takes it from their posteriors."""
        n = len(register)
        if not self.pool or n < _FEWEST:
            return None
        columns = torch.as_tensor(np.unique(np.linspace(0, n - 1, min(n, _MOST)).astype(int)), device=self.device)
        assert self.moments is not None
        found = [anchor.log_posterior(register[some], self.moments.of(some)) for some in columns.split(step)]
        return pooled_prior(torch.cat(found), anchor.prior())

    def _anchor(self) -> ClosedFormAnchor:
        anchor = self.model.to(self.device).eval().anchor
        assert anchor is not None
        return anchor

    def _read(self, step: int) -> Tensor:
        """First register (voxel, dim) after the sample."""
        x, y, weight = (torch.as_tensor(a, dtype=torch.float32, device=self.device) for a in self.coreset.trials())
        plain = bool((weight == 0).all())
        columns = y.T.contiguous()
        found = [
            self.model.read(x, columns[k : k + step], None if plain else weight)[0][:, 0]
            for k in range(0, len(columns), step)
        ]
        return torch.cat(found)


class ChunkState:
    """Sums over complete chunks, and the trials of the open one."""

    def __init__(self, model: InContextModel, n_voxels: int, keep: int, forget: float, device: torch.device) -> None:
        self.model, self.forget, self.device = model, forget, device
        self.sums = WeightSums(model.config.n_features, n_voxels)
        self.x = np.zeros((keep, model.config.n_features), dtype=np.float32)
        self.y = np.zeros((keep, n_voxels), dtype=np.float32)
        self.filled = 0

    @property
    def nbytes(self) -> int:
        return self.x.nbytes + self.y.nbytes + sum(v.nbytes for v in vars(self.sums).values())

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        while len(x):
            count = min(len(x), len(self.x) - self.filled)
            place = slice(self.filled, self.filled + count)
            self.x[place], self.y[place] = x[:count], y[:count]
            self.filled, x, y = self.filled + count, x[count:], y[count:]
            if self.filled == len(self.x):
                self.sums, self.filled = self._with_open(), 0

    def merge(self, other: ChunkState) -> None:
        self.sums.merge(other.sums)
        self.add(other.x[: other.filled], other.y[: other.filled])

    def weights(self) -> dict[str, np.ndarray]:
        return self._with_open().means()

    def _with_open(self) -> WeightSums:
        n = self.filled
        if not n:
            return self.sums
        weight = _ages(self.forget, n)
        found = condition(
            self.model,
            self.x[:n],
            self.y[:n],
            device=self.device,
            log_weight=None if self.forget == 1 else np.log(weight),
        )
        sums = self.sums.scaled(self.forget**n)
        sums.add(found, np.full(self.y.shape[1], weight.sum()))
        return sums


def _plus(a: Moments | None, b: Moments | None) -> Moments | None:
    if a is None or b is None:
        return a if b is None else Moments(*(t.clone() for t in b))
    return Moments(*(s + t for s, t in zip(a, b)))
