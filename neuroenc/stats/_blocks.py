"""Voxel blocks in float64: the sums that every score, test and bootstrap is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroenc._core.arrays import as_numpy, is_torch, refuse_sparse
from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc.stats._labels import match_labels

Floats = NDArray[np.float64]
METRICS = ("r", "r2", "ev")
MAX_MEMORY = 256 * 2**20

_SPELLINGS = {
    "r": "correlation pearson pearsonr pearson_r pcc",
    "r2": "r^2 r2_score rsquared determination",
    "ev": "explained_variance variance evs",
}
_ALIASES = {alias: metric for metric, names in _SPELLINGS.items() for alias in names.split()}


def check_metric(metric: object) -> str:
    return one_of("metric", metric, METRICS, aliases=_ALIASES)


def as_real(a: Any, name: str) -> Any:
    """Something that can be cut like an array and holds real numbers; lazy arrays stay lazy.

    Tensors lose their gradient, bfloat16 becomes float32, masked values NaN. Sparse matrices and values that are not
    real numbers are refused.
    """
    lazy = hasattr(a, "dtype") and hasattr(a, "ndim") and hasattr(a, "shape") and not is_torch(a)
    if not lazy or isinstance(a, np.ma.MaskedArray) or "bfloat16" in str(a.dtype):
        a = as_numpy(a, name)
    refuse_sparse(a, name)
    dtype = np.dtype(a.dtype) if isinstance(a.dtype, (np.dtype, str, type)) else a.dtype
    if getattr(dtype, "kind", "O") not in "fiub":
        raise DataError(f"{name} has dtype {dtype}; legal are real numbers (float, int or bool).")
    return a


def as_floats(a: Any, name: str) -> Floats:
    """A float64 array of real numbers, with NaN where values are masked."""
    return np.asarray(as_real(a, name), dtype=np.float64)


def as_samples(a: Any, name: str) -> Any:
    """An array (n_samples, n_voxels) that can be cut by columns; lazy arrays stay lazy."""
    a = as_real(a, name)
    if a.ndim == 1:
        return np.asarray(a).reshape(-1, 1)
    if a.ndim != 2:
        raise DataError(f"{name} has shape {tuple(a.shape)}; legal is (n_samples, n_voxels) or (n_samples,).")
    return a


def as_pair(y: Any, yhat: Any, names: tuple[str, str] = ("y", "yhat")) -> tuple[Any, Any, tuple[int, ...]]:
    """Both arrays as (n_samples, n_voxels), in the order of ``y`` by label, and the shape of a per-voxel result."""
    yhat = match_labels(y, yhat, names)
    y2, p2 = as_samples(y, names[0]), as_samples(yhat, names[1])
    shapes = tuple(np.shape(y)), tuple(np.shape(yhat))
    if shapes[0] != shapes[1]:
        turned = " They fit when one is transposed: check the axes." if shapes[0] == shapes[1][::-1] else ""
        raise DataError(
            f"measured responses have shape {shapes[0]} but predictions have shape {shapes[1]}; "
            f"both must be (n_samples, n_voxels).{turned}"
        )
    if y2.shape[0] < 2:
        raise DataError(f"got {y2.shape[0]} sample(s); a score needs at least 2.")
    return y2, p2, shapes[0][1:]


def load(a: Any, columns: slice | NDArray[np.intp], name: str = "array") -> tuple[Floats, float]:
    """A fresh C-ordered float64 copy of some columns, and the relative resolution of what was stored."""
    block = np.asarray(a[:, columns])
    if block.dtype.kind not in "fiub":
        raise DataError(f"{name} has dtype {block.dtype}; legal are real numbers (float, int or bool).")
    eps = float(np.finfo(block.dtype).eps) if block.dtype.kind == "f" else float(np.finfo(np.float64).eps)
    return np.array(block, dtype=np.float64, order="C"), eps


def known_mean(values: Floats, axis: int = -1, keepdims: bool = False) -> Floats:
    """Mean over an axis of what is not NaN; NaN where there is none."""
    known = ~np.isnan(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis=axis, keepdims=keepdims) / known.sum(axis=axis, keepdims=keepdims)


def scale_of(a: Floats) -> Floats:
    """For every column the power of two that brings its largest value near 1, so that squares keep all digits."""
    largest = np.fmax.reduce(np.abs(a), axis=0, initial=0.0)
    exponent = np.frexp(np.where(np.isfinite(largest), largest, 0.0))[1]
    return np.asarray(np.ldexp(1.0, -np.clip(exponent, -1000, 1000)))


def cached(n_samples: int, megabytes: int) -> int:
    """Columns of ``n_samples`` that fit in a cache, for loops that visit a block many times."""
    return max(32, megabytes * 2**20 // (8 * n_samples))


def centre(a: Floats) -> tuple[Floats, NDArray[np.bool_] | None, Floats, Floats]:
    """Centre columns in place over their valid samples; missing ones become 0.

    Twice, because the rounding of the first mean would leave a constant column with a spread.
    Returns the array, the mask of valid samples (None where nothing is missing), counts and means.
    """
    missing = np.isnan(a)
    if missing.any():
        valid = ~missing
        a[missing] = 0.0
        n = valid.sum(axis=0).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = a.sum(axis=0) / n
            a -= mean
            a[missing] = 0.0
            a -= a.sum(axis=0) / n
        a[missing] = 0.0
        return a, valid, n, mean
    n = np.full(a.shape[1], float(a.shape[0]))
    with np.errstate(invalid="ignore"):
        mean = a.mean(axis=0)
        a -= mean
        a -= a.mean(axis=0)
    return a, None, n, mean


@dataclass
class Pair:
    """One block of measured and predicted responses, centred over the samples valid in both."""

    y: Floats
    p: Floats
    valid: NDArray[np.bool_] | None
    n: Floats
    offset: Floats  # mean prediction - mean response
    usable_y: NDArray[np.bool_]
    usable_p: NDArray[np.bool_]

    def score(self, metric: str) -> Floats:
        """Score of every voxel in the block, NaN where it is undefined."""
        syy = np.einsum("nv,nv->v", self.y, self.y)
        if metric == "r":
            spp = np.einsum("nv,nv->v", self.p, self.p)
            syp = np.einsum("nv,nv->v", self.y, self.p)
            with np.errstate(divide="ignore", invalid="ignore"):
                out = np.clip(syp / (np.sqrt(syy) * np.sqrt(spp)), -1.0, 1.0)
            out[~(self.usable_y & self.usable_p)] = np.nan
            return out
        residual = self.y - self.p
        error = np.einsum("nv,nv->v", residual, residual)
        if metric == "r2":
            error = error + self.n * self.offset**2
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            out = 1.0 - error / syy
        out[~(self.usable_y & np.isfinite(out))] = np.nan
        return out


def _varies(a: Floats, n: Floats, mean: Floats, eps: float) -> NDArray[np.bool_]:
    # A spread below the resolution at which the mean is stored is rounding, not signal.
    with np.errstate(invalid="ignore", over="ignore"):
        ss = np.einsum("nv,nv->v", a, a)
        ok: NDArray[np.bool_] = (n >= 2) & np.isfinite(ss) & (ss > n * (eps * np.abs(mean)) ** 2)
    return ok


def load_pair(y: Any, yhat: Any, columns: slice | NDArray[np.intp], metric: str = "r") -> Pair:
    """Read a block of both arrays; a NaN in either drops that sample for that voxel in both.

    Both are scaled by powers of two, alike where ``metric`` compares their sizes.
    """
    a, eps_a = load(y, columns, "y")
    b, eps_b = load(yhat, columns, "yhat")
    scale = scale_of(a)
    with np.errstate(invalid="ignore", over="ignore"):
        a *= scale
        b *= scale_of(b) if metric == "r" else scale
    missing = np.isnan(a) | np.isnan(b)
    if missing.any():
        a[missing] = np.nan
        b[missing] = np.nan
    a, valid, n, mean_a = centre(a)
    b, _, _, mean_b = centre(b)
    with np.errstate(invalid="ignore"):
        offset = mean_b - mean_a
    return Pair(a, b, valid, n, offset, _varies(a, n, mean_a, eps_a), _varies(b, n, mean_b, eps_b))


def score_from_sums(
    metric: str, n: Any, sa: Floats, sb: Any, saa: Floats, sbb: Any, sab: Any, offset: Floats
) -> Floats:
    """Score from the sums of nearly centred responses ``a`` and predictions ``b``.

    ``sa`` ... ``sab`` are sums of a, b, a*a, b*b, a*b over ``n`` samples; ``offset`` is what centring took
    from b minus what it took from a. NaN where the samples left are constant.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        syy = saa - sa * sa / n
        spp = sbb - sb * sb / n
        syp = sab - sa * sb / n
        constant = ~(syy > 1e-13 * saa)
        if metric == "r":
            out = np.clip(syp / (np.sqrt(syy) * np.sqrt(spp)), -1.0, 1.0)
            constant |= ~(spp > 1e-13 * sbb)
        else:
            error = np.maximum(syy - 2.0 * syp + spp, 0.0)
            if metric == "r2":
                error = error + n * ((sb - sa) / n + offset) ** 2
            out = 1.0 - error / syy
    out[constant | ~np.isfinite(out)] = np.nan
    return out
