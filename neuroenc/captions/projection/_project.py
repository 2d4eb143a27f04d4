"""Projection of encoder weights onto the manifold of natural-image embeddings."""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._util.errors import DataError
from neuroenc._util.memory import parse_memory
from neuroenc._util.progress import progress as progress_bar
from neuroenc._util.provenance import provenance
from neuroenc.captions._linear import Weights, as_weights
from neuroenc.captions.projection._state import ProjectionState
from neuroenc.retrieval import Chunk, EmbeddingBank, as_bank
from neuroenc.retrieval._topk import plan_blocks

__all__ = ["IdCollector", "project"]


class IdCollector:
    """Ids of the rows that were best at some time, so that a stream's ids need not be kept."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def __call__(self, chunk: Chunk, positions: np.ndarray) -> None:
        if chunk.ids is None:
            return
        new = np.unique(positions[positions >= chunk.start])
        self._names.update(zip(new.tolist(), chunk.names(new).tolist()))

    def names(self, positions: np.ndarray) -> np.ndarray:
        flat = [self._names.get(x, str(x)) for x in np.asarray(positions).ravel().tolist()]
        return np.array(flat, dtype=str).reshape(np.shape(positions))


class _BankHash:
    """Content hash of a bank (values, width, ids) that does not depend on the chunks."""

    def __init__(self) -> None:
        self._rows, self._ids, self._started = hashlib.sha256(), hashlib.sha256(), False

    def update(self, chunk: Chunk) -> None:
        rows = np.ascontiguousarray(chunk.rows)
        if not self._started:
            self._rows.update(f"{rows.dtype.str}:{rows.shape[1]}:".encode())
            self._started = True
        self._rows.update(rows.view(np.ndarray).data.cast("B"))
        if chunk.ids is not None:
            self._ids.update("".join(f"{x}\0" for x in chunk.ids.tolist()).encode())

    def hexdigest(self) -> str:
        return hashlib.sha256(self._rows.digest() + self._ids.digest()).hexdigest()


def _passes(n_voxels: int, width: int, budget: int, reusable: bool) -> int:
    """How many times the bank is read: the sums of all voxels of one pass must fit half the budget."""
    per_voxel = 8 * (3 * width + 16)  # weights in two precisions, sums, scalars
    fit = max(1, budget // 2 // per_voxel)
    passes = max(1, -(-n_voxels // fit))
    if passes > 1 and not reusable:
        need = 2 * n_voxels * per_voxel
        raise DataError(
            f"{n_voxels} voxels x {width} features need max_memory of {need:,} bytes to read a stream once; "
            f"it is {budget:,}. Next step: raise max_memory, or pass a bank that can be read again "
            "(memmap, list)."
        )
    return passes


def _run(
    unit: np.ndarray,
    bank: EmbeddingBank,
    temperature: float,
    decouple: bool,
    budget: int,
    dtype: str | None,
    show: bool,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    n, width = unit.shape
    passes = _passes(n, width, budget, bank.reusable)
    ids, digest = IdCollector(), _BankHash()
    parts: list[dict[str, np.ndarray]] = []
    info: dict[str, Any] = {}
    total = None if bank.n is None else bank.n * passes
    with progress_bar(desc="project", total=total, show=show, unit="image") as bar:
        for group in np.array_split(np.arange(n), passes):
            state = ProjectionState(unit[group], temperature, decouple, dtype)
            rows, block = plan_blocks(budget // 2, width, len(group), state.dtype.itemsize)
            for chunk in bank.chunks(rows, width):
                state.update(chunk, block)
                ids(chunk, state.nearest)
                if not parts:
                    digest.update(chunk)
                bar.update(len(chunk.rows))
            part = state.finish()
            for name in ("nearest", "nearest_cosine", "nearest_norm"):
                part[name] = getattr(state, name)
            parts.append(part)
            info = {"n_images": state.count, "bank_direction": state.directions / state.count}
    merged = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    merged["nearest_image"] = ids.names(merged["nearest"])
    return merged, {**info, "bank_hash": digest.hexdigest(), "dtype": state.dtype.name}


def _warn_invalid(weights: Weights, valid: np.ndarray) -> None:
    if not valid.all():
        names = weights.coef["voxel"].values[~valid]
        shown = ", ".join(str(x) for x in names[:10]) + (", ..." if len(names) > 10 else "")
        warnings.warn(
            f"{len(names)} of {len(valid)} voxels have zero or NaN weights and are not projected: {shown}",
            stacklevel=3,
        )


def project(
    coef: Any,
    bank: Any,
    *,
    intercept: Any = None,
    temperature: float = 1 / 150,
    renormalise: bool = True,
    decouple: bool = True,
    features_normalised: bool = True,
    max_memory: str | int | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> xr.Dataset:
    r"""Project weights onto natural-image embeddings: ``n_i d_i`` with a softmax over the bank.

    For weights ``W_i``, ``w_i = W_i / ||W_i||``, images ``M_k``, ``m_k = M_k / ||M_k||``::

        s_ik = softmax_k(w_i . m_k / temperature)
        n_i  = sum_k s_ik ||M_k||
        d_i  = sum_k s_ik m_k / ||sum_k s_ik m_k||
        embedding_i = n_i d_i

    The bank is streamed once through an online softmax: memory does not grow with it, and the result
    does not depend on the chunks (to a relative 1e-5 at worst in float32, 1e-11 in float64; the nearest
    image exactly). Only where the running sums of all voxels do not fit
    ``max_memory`` is a bank that can be read again read several times, a block of voxels each.

    Parameters
    ----------
    coef : DataArray or array (feature, voxel), or encoder with ``to_linear()``
        Weights as fitted; their length does not matter for the projection.
    bank : array (n, d), memmap, DataArray (stimulus, feature), path, list or iterator of shards
        Raw (not unit-norm) image embeddings of the encoder's backbone; see
        :func:`neuroenc.retrieval.as_bank`.
    intercept : array (voxel,), optional
        Added to predicted responses; 0 where not given.
    temperature : float
        1/150 as released by the authors; to 0 the result is the nearest image, large it is the mean.
    renormalise : bool
        False: ``d_i`` keeps the length of the average (at most 1), as the paper's equation reads.
    decouple : bool
        False (ablation): average raw vectors, ``sum_k s_ik M_k``; ``renormalise`` is then without effect.
    features_normalised : bool
        Whether the encoder was fitted on unit-norm features. Predicted responses are then of unit-norm
        embeddings, else of raw ones.
    max_memory : str, int or None
        Bytes ("2GB") for running sums and temporaries, beside a few arrays of the size of the weights;
        None is a quarter of the machine's memory.
    dtype : "float32", "float64" or None
        Precision of the matrix products (sums are float64). None: float32, float64 for temperatures
        under 1/1000.
    progress : bool

    Returns
    -------
    Dataset over voxel (with the voxel coordinates of ``coef``)
        ``embedding (voxel, feature)``, ``norm`` (its length before ``renormalise=False`` shrinks it),
        ``cosine_before_after`` (of ``w_i`` and the embedding), ``effective_images`` (exp of the entropy
        of ``s_i``), ``nearest_image`` (id; the lowest of equal ones), ``nearest_cosine``,
        ``nearest_predicted`` and ``projected_predicted`` (predicted responses, in units of the
        responses), ``bank_direction (feature)`` (mean unit-norm embedding of the bank). attrs:
        temperature, n_images, bank_hash, renormalise, decouple, features_normalised, provenance.
        Voxels with zero or NaN weights: NaN and "" and a warning with their number.

    Raises
    ------
    DataError
        Width mismatch; NaN, infinite or zero-norm embeddings; an empty bank.

    References
    ----------
    Luo, Henderson, Tarr, Wehbe. BrainSCUBA: Fine-grained natural language captions of visual cortex
    selectivity. ICLR 2024.

    Examples
    --------
    >>> import numpy as np
    >>> bank = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    >>> out = project(np.array([[5.0, 0.0], [0.0, 5.0]]), bank, progress=False)
    >>> out["nearest_image"].values.tolist(), out["norm"].values.round(3).tolist()
    (['0', '1'], [2.0, 3.0])
    """
    weights = as_weights(coef, intercept)
    images = as_bank(bank)
    matrix, valid = weights.matrix(), weights.valid()
    _warn_invalid(weights, valid)
    length = np.linalg.norm(np.where(valid[:, None], matrix, 0.0), axis=1)
    unit = matrix[valid] / length[valid, None]
    found, info = _run(unit, images, temperature, decouple, parse_memory(max_memory), dtype, progress)

    mean = found["mean"]
    size = np.linalg.norm(mean, axis=1)
    # Opposite directions can average to nothing; there is then no direction to speak of.
    direction = np.divide(mean, size[:, None], out=np.full_like(mean, np.nan), where=size[:, None] > 0)
    if decouple:
        norm = found["norm"]
        embedding = norm[:, None] * (direction if renormalise else mean)
    else:
        norm, embedding = size, mean
    cosine = np.einsum("vd,vd->v", unit, direction)
    scale, bias = length[valid], weights.intercept[valid]
    reach = 1.0 if features_normalised else np.linalg.norm(embedding, axis=1)
    far = 1.0 if features_normalised else found["nearest_norm"]
    columns = {
        "norm": norm,
        "cosine_before_after": cosine,
        "effective_images": found["effective_images"],
        "nearest_cosine": found["nearest_cosine"],
        "nearest_predicted": scale * found["nearest_cosine"] * far + bias,
        "projected_predicted": scale * cosine * reach + bias,
    }
    real = np.float64 if dtype == "float64" else np.float32
    n = len(valid)
    full = np.full((n, matrix.shape[1]), np.nan, real)
    full[valid] = embedding
    out = xr.Dataset(coords=weights.coef.coords)
    out["embedding"] = (("voxel", "feature"), full)
    for name, value in columns.items():
        whole = np.full(n, np.nan, real)
        whole[valid] = value
        out[name] = ("voxel", whole)
    nearest = np.full(n, "", dtype=object)
    nearest[valid] = found["nearest_image"]
    out["nearest_image"] = ("voxel", nearest.astype(str))
    out["bank_direction"] = ("feature", info["bank_direction"].astype(real))
    settings = {
        "temperature": float(temperature),
        "n_images": int(info["n_images"]),
        "bank_hash": info["bank_hash"],
        "renormalise": int(renormalise),
        "decouple": int(decouple),
        "features_normalised": int(features_normalised),
        "intercept": int(weights.has_intercept),
        "dtype": info["dtype"],
    }
    out.attrs.update(settings)
    out.attrs["provenance"] = provenance(method="softmax projection", **settings)
    return out
