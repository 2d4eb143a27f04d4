"""Projection of encoder weights onto the manifold of natural-image embeddings."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.files import hash_array
from neuroenc._core.memory import parse_memory
from neuroenc._core.provenance import provenance
from neuroenc.captions._linear import Weights, as_weights, check_space
from neuroenc.captions.projection._stream import Plan, as_folds, stream
from neuroenc.retrieval import as_bank


def _warn_invalid(weights: Weights, valid: np.ndarray) -> None:
    if not valid.all():
        names = weights.coef["voxel"].values[~valid]
        shown = ", ".join(str(x) for x in names[:10]) + (", ..." if len(names) > 10 else "")
        warnings.warn(
            f"{len(names)} of {len(valid)} voxels have zero or NaN weights and are not projected: {shown}", stacklevel=3
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
    top_k: int | None = None,
    weighting: str = "softmax",
    max_memory: str | int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    client: Any = None,
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
    top_k : int, optional
        Only the k nearest images of each voxel have a weight. What that leaves out is bounded in the same pass
        (see Returns), and their embeddings are read once more at the end; not for streams.
    weighting : "softmax" or "uniform"
        "uniform" (ablation): the plain average of the ``top_k`` nearest images.
    max_memory : str, int or None
        Bytes ("2GB") for running sums and temporaries, beside a few arrays of the size of the weights;
        None is a quarter of the machine's memory.
    dtype : "float32", "float64" or None
        Precision of the matrix products (sums are float64). None: float32, float64 for temperatures
        under 1/1000.
    device : str or None
        None: numpy. "cpu", "cuda", "auto": torch there, the same to a relative 1e-5 (float32), 1e-11 (float64).
    client : dask.distributed.Client, optional
        Parts of the bank are projected by its workers and merged exactly; they must see the bank's files. Banks that
        are dask arrays go through dask without it too.
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
        With ``top_k`` also ``lost_mass`` (at most that share of the full softmax was left out), ``direction_error``
        (``|d_i - d_i'|`` to the full projection is at most that; 2: nothing is promised) and ``norm_error``.
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
    job = _Job(coef, intercept, renormalise, features_normalised, dtype)
    plan = Plan(temperature, decouple, dtype, device, top_k, weighting)
    images = as_bank(bank)
    check_space(job.weights.coef, images)
    found = stream(job.unit, images, plan, parse_memory(max_memory), client=client, show=progress)
    return job.dataset(*found[0], plan)


def project_folds(
    coef: Any,
    bank: Any,
    folds: Any = 5,
    *,
    seed: int = 0,
    intercept: Any = None,
    temperature: float = 1 / 150,
    renormalise: bool = True,
    decouple: bool = True,
    features_normalised: bool = True,
    top_k: int | None = None,
    weighting: str = "softmax",
    max_memory: str | int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    client: Any = None,
    progress: bool = True,
) -> xr.Dataset:
    """Project weights onto each of several folds of a bank, in one pass.

    Each fold's projection is that of :func:`project` on its images alone. What agrees between folds does not hang
    on single images of the bank.

    Parameters
    ----------
    coef, bank, intercept, temperature, renormalise, decouple, features_normalised
        As in :func:`project`. The bank's length must be known.
    folds : int or bool array (fold, n)
        A number of disjoint parts, or which images are in each fold; see :func:`bank_folds`.
    seed : int
        Of the disjoint parts.
    top_k, weighting, max_memory, dtype, device, client, progress
        As in :func:`project`; sums of all folds count towards ``max_memory``.

    Returns
    -------
    Dataset
        As of :func:`project`, every variable with a first dimension ``fold``, and ``n_images (fold)``.

    Raises
    ------
    ConfigError, DataError
        As :func:`project`; a fold without images, or a mask of another length than the bank.

    References
    ----------
    Luo, Henderson, Tarr, Wehbe. BrainSCUBA: Fine-grained natural language captions of visual cortex
    selectivity. ICLR 2024.

    Examples
    --------
    >>> import numpy as np
    >>> bank = np.random.default_rng(0).standard_normal((60, 4))
    >>> out = project_folds(np.eye(4), bank, 3, progress=False)
    >>> out["embedding"].dims, out["n_images"].values.tolist()
    (('fold', 'voxel', 'feature'), [20, 20, 20])
    """
    images = as_bank(bank)
    masks = as_folds(folds, images.n, seed)
    job = _Job(coef, intercept, renormalise, features_normalised, dtype)
    check_space(job.weights.coef, images)
    plan = Plan(temperature, decouple, dtype, device, top_k, weighting)
    budget = parse_memory(max_memory)
    found = stream(job.unit, images, plan, budget, folds=masks, client=client, show=progress)
    parts = [job.dataset(*part, plan) for part in found]
    names = xr.DataArray(np.arange(len(parts)), dims="fold", name="fold")
    out = xr.concat(parts, names, data_vars="all", coords="minimal", combine_attrs="override")
    out["n_images"] = ("fold", np.array([p.attrs["n_images"] for p in parts], dtype=np.int64))
    settings = {k: v for k, v in parts[0].attrs.items() if k not in ("n_images", "provenance")}
    settings |= {"n_bank": int(images.n or 0), "folds": len(parts), "folds_hash": hash_array(masks)}
    if isinstance(folds, int):
        settings["seed"] = int(seed)
    out.attrs = {**settings, "provenance": provenance(method="softmax projection of folds", **settings)}
    return out


class _Job:
    """What weights go in and what comes out of averages; the same for one projection and for folds."""

    def __init__(
        self, coef: Any, intercept: Any, renormalise: bool, features_normalised: bool, dtype: str | None
    ) -> None:
        self.weights = as_weights(coef, intercept)
        matrix, self.valid = self.weights.matrix(), self.weights.valid()
        _warn_invalid(self.weights, self.valid)
        self.length = np.linalg.norm(np.where(self.valid[:, None], matrix, 0.0), axis=1)
        self.unit = matrix[self.valid] / self.length[self.valid, None]
        self.renormalise, self.features_normalised = renormalise, features_normalised
        self.real = np.float64 if dtype == "float64" else np.float32

    def dataset(self, found: dict[str, np.ndarray], info: dict[str, Any], plan: Plan) -> xr.Dataset:
        """Labelled projection of the averages of one pass."""
        mean, valid = found["mean"], self.valid
        size = np.linalg.norm(mean, axis=1)
        # Opposite directions can average to nothing; there is then no direction to speak of.
        direction = np.divide(mean, size[:, None], out=np.full_like(mean, np.nan), where=size[:, None] > 0)
        if plan.decouple:
            norm = found["norm"]
            embedding = norm[:, None] * (direction if self.renormalise else mean)
        else:
            norm, embedding = size, mean
        cosine = np.einsum("vd,vd->v", self.unit, direction)
        scale, bias = self.length[valid], self.weights.intercept[valid]
        reach = 1.0 if self.features_normalised else np.linalg.norm(embedding, axis=1)
        far = 1.0 if self.features_normalised else found["nearest_norm"]
        columns = {
            "norm": norm,
            "cosine_before_after": cosine,
            "effective_images": found["effective_images"],
            "nearest_cosine": found["nearest_cosine"],
            "nearest_predicted": scale * found["nearest_cosine"] * far + bias,
            "projected_predicted": scale * cosine * reach + bias,
        }
        if plan.top_k is not None:
            columns |= {name: found[name] for name in ("lost_mass", "direction_error", "norm_error")}
        full = np.full((len(valid), mean.shape[1]), np.nan, self.real)
        full[valid] = embedding
        out = xr.Dataset(coords=self.weights.coef.coords)
        out["embedding"] = (("voxel", "feature"), full)
        for name, value in columns.items():
            whole = np.full(len(valid), np.nan, self.real)
            whole[valid] = value
            out[name] = ("voxel", whole)
        nearest = np.full(len(valid), "", dtype=object)
        nearest[valid] = found["nearest_image"]
        out["nearest_image"] = ("voxel", nearest.astype(str))
        out["bank_direction"] = ("feature", info["bank_direction"].astype(self.real))
        settings = {
            "temperature": float(plan.temperature),
            "n_images": int(info["n_images"]),
            "bank_hash": info["bank_hash"],
            "renormalise": int(self.renormalise),
            "decouple": int(plan.decouple),
            "features_normalised": int(self.features_normalised),
            "intercept": int(self.weights.has_intercept),
            "dtype": info["dtype"],
            "device": plan.device or "numpy",
        }
        if plan.top_k is not None:
            settings |= {"top_k": int(plan.top_k), "weighting": plan.weighting}
        out.attrs.update(settings)
        out.attrs["provenance"] = provenance(method="softmax projection", **settings)
        return out
