"""Null scores of a block of voxels for given arrangements of the measured responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroenc.stats._blocks import Floats, centre, load, load_pair, scale_of, score_from_sums

__all__ = ["ROWS_HELD", "Null"]

Indices = NDArray[np.intp]
ROWS_HELD = 12  # float64 copies of a block of voxels that `Null` may hold at once


class Null:
    """Scores under permutation; what does not change between arrangements is computed once.

    Without missing values every score is a function of sum(y[order] * yhat) alone. Voxels with missing values
    take a slower way: missing responses move with the permutation, so the pairs that are left differ.
    """

    def __init__(self, y: Any, yhat: Any, columns: slice, metric: str, whole: Indices | None) -> None:
        self.metric, self.whole = metric, whole
        self.pair = pair = load_pair(y, yhat, columns, metric)
        self.observed = pair.score(metric)
        self.usable = pair.usable_y & pair.usable_p if metric == "r" else pair.usable_y
        self.syy = np.einsum("nv,nv->v", pair.y, pair.y)
        self.spp = np.einsum("nv,nv->v", pair.p, pair.p)
        self.products: Floats | None = None
        if whole is not None and len(whole) ** 2 <= 4 * whole.size:
            # Inner products of every pair of blocks: each permutation is then a sum of n_blocks of them.
            products = np.einsum("ikv,jkv->ijv", pair.y[whole], pair.p[whole], optimize=True)
            self.products = products.reshape(len(whole) ** 2, -1)
        self.holed = np.flatnonzero(self.usable & (pair.n < len(pair.y)))
        if self.holed.size:
            self._keep_holed(y, yhat, self.holed + columns.start)

    def _keep_holed(self, y: Any, yhat: Any, columns: Indices) -> None:
        a, b = load(y, columns, "y")[0], load(yhat, columns, "yhat")[0]
        scale = scale_of(a)
        a *= scale
        b *= scale_of(b) if self.metric == "r" else scale
        (a, valid_a, _, mean_a), (b, valid_b, _, mean_b) = centre(a), centre(b)
        self.a, self.b, self.b2, self.shift = a, b, b * b, mean_b - mean_a
        self.has_a = np.ones_like(a) if valid_a is None else valid_a.astype(np.float64)
        self.has_b = np.ones_like(b) if valid_b is None else valid_b.astype(np.float64)

    def scores(self, orders: Indices) -> Floats:
        """Null scores (n_orders, n_voxels); NaN where undefined."""
        cross = self._cross(orders)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.metric == "r":
                out = np.clip(cross / (np.sqrt(self.syy) * np.sqrt(self.spp)), -1.0, 1.0)
            else:
                error = np.maximum(self.syy - 2.0 * cross + self.spp, 0.0)
                if self.metric == "r2":
                    error += self.pair.n * self.pair.offset**2
                out = 1.0 - error / self.syy
        if self.holed.size:
            for k, index in enumerate(self._rows(orders)):
                out[k, self.holed] = self._holed_scores(index)
        out[:, ~self.usable] = np.nan
        return out

    def _cross(self, orders: Indices) -> Floats:
        if self.products is not None:
            n_blocks = orders.shape[1]
            pick = np.zeros((len(orders), n_blocks, n_blocks))
            np.put_along_axis(pick, orders[:, None, :], 1.0, axis=1)
            with np.errstate(invalid="ignore"):
                return np.asarray(pick.reshape(len(orders), -1) @ self.products)
        out = np.empty((len(orders), self.pair.y.shape[1]))
        moved = np.empty_like(self.pair.y)
        for k, index in enumerate(self._rows(orders)):
            np.take(self.pair.y, index, axis=0, out=moved, mode="clip")
            np.einsum("nv,nv->v", moved, self.pair.p, out=out[k])
        return out

    def _rows(self, orders: Indices) -> Iterator[Indices]:
        for order in orders:
            if self.whole is None:
                yield order
            else:
                index = np.empty(self.whole.size, dtype=np.intp)
                index[self.whole] = self.whole[order]
                yield index

    def _holed_scores(self, index: Indices) -> Floats:
        a, has_a = self.a[index], self.has_a[index]

        def total(x: Floats, w: Floats) -> Floats:
            return np.asarray(np.einsum("nv,nv->v", x, w))

        n, sa, sb = total(has_a, self.has_b), total(a, self.has_b), total(has_a, self.b)
        sab, sbb = total(a, self.b), total(has_a, self.b2)
        saa = total(np.square(a, out=a), self.has_b)
        return score_from_sums(self.metric, n, sa, sb, saa, sbb, sab, self.shift)
