"""Projection of encoder weights onto the manifold of natural-image embeddings: softmax, nearest, none."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.checks import check_whole, make_rng, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import hash_array
from neuroenc._core.memory import parse_memory
from neuroenc._core.provenance import provenance
from neuroenc._core.topk import plan_blocks
from neuroenc.captions._linear import Weights, as_weights, check_space, spread
from neuroenc.captions.projection._stream import IdCollector, Plan, Projections, as_folds, read_bank
from neuroenc.retrieval import EmbeddingBank, as_bank, top_k


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
    job = Job(coef, intercept, renormalise, features_normalised, dtype)
    group = Projections(Plan(temperature, decouple, dtype, device), None, as_bank(bank))
    group.add(job)
    digest, _ = read_bank(group.bank, [group], max_memory, client=client, desc="project", show=progress)
    return group.dataset(0, digest)


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
    max_memory, dtype, device, client, progress
        As in :func:`project`; sums of all folds count towards ``max_memory``.

    Returns
    -------
    Dataset
        As of :func:`project`, every variable with a first dimension ``fold``, and ``n_images (fold)``.

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
    job = Job(coef, intercept, renormalise, features_normalised, dtype)
    group = Projections(Plan(temperature, decouple, dtype, device), masks, images)
    group.add(job)
    digest, _ = read_bank(images, [group], max_memory, client=client, desc="project", show=progress)
    parts = [group.dataset(0, digest, fold) for fold in range(len(masks))]
    names = xr.DataArray(np.arange(len(parts)), dims="fold", name="fold")
    out = xr.concat(parts, names, data_vars="all", coords="minimal", combine_attrs="override")
    out["n_images"] = ("fold", np.array([p.attrs["n_images"] for p in parts], dtype=np.int64))
    settings = {k: v for k, v in parts[0].attrs.items() if k not in ("n_images", "provenance")}
    settings |= {"n_bank": int(images.n or 0), "folds": len(parts), "folds_hash": hash_array(masks)}
    if isinstance(folds, int):
        settings["seed"] = int(seed)
    out.attrs = {**settings, "provenance": provenance(method="softmax projection of folds", **settings)}
    return out


class Job:
    """What weights go in and what comes out of averages; the same for one projection and for folds."""

    def __init__(
        self, coef: Any, intercept: Any, renormalise: bool, features_normalised: bool, dtype: str | None
    ) -> None:
        self.weights = as_weights(coef, intercept)
        matrix, self.valid = self.weights.matrix(), self.weights.valid()
        if not self.valid.all():
            names = self.weights.coef["voxel"].values[~self.valid]
            shown = ", ".join(str(x) for x in names[:10]) + (", ..." if len(names) > 10 else "")
            told = f"{len(names)} of {len(self.valid)} voxels have zero or NaN weights and are not projected: {shown}"
            warnings.warn(told, stacklevel=3)
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
        out = xr.Dataset(coords=self.weights.coef.coords)
        out["embedding"] = (("voxel", "feature"), spread(embedding.astype(self.real), valid))
        for name, value in columns.items():
            out[name] = ("voxel", spread(value.astype(self.real), valid))
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
        out.attrs.update(settings)
        out.attrs["provenance"] = provenance(method="softmax projection", **settings)
        return out


def chord(cosine: np.ndarray) -> np.ndarray:
    """Distance of two unit vectors from their cosine: ``sqrt(2 - 2 c)``."""
    return np.sqrt(np.clip(2.0 - 2.0 * np.asarray(cosine, dtype=np.float64), 0.0, None))


def gather_rows(bank: EmbeddingBank, positions: np.ndarray, max_memory: str | int | None) -> np.ndarray:
    """Rows of a bank at ``positions`` (in any order, repeated or not), float64 (n, width), in one pass."""
    different, inverse = np.unique(positions, return_inverse=True)
    rows, _ = plan_blocks(parse_memory(max_memory), int(bank.width or 512), 1)
    return np.concatenate([np.asarray(c.rows, np.float64) for c in bank.take(different, rows)])[inverse]


def natural_neighbours(bank: Any, *, n: int = 1000, seed: int = 0, max_memory: str | int | None = None) -> np.ndarray:
    """Cosine of ``n`` images of a bank, drawn without replacement, and the nearest other image, float64 (n,).

    Parameters
    ----------
    bank : see :func:`neuroenc.retrieval.as_bank`
        At least two images; read twice, so not a one-time stream.
    n : int
        At most the number of images.
    max_memory : str, int or None

    Examples
    --------
    >>> natural_neighbours(np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])).round(3).tolist()
    [0.6, 0.8, 0.8]
    """
    images = as_bank(bank).again("for natural distances (n_natural above 0) the bank must be read again")
    total = int(images.n or 0)
    if total < 2:
        raise DataError("the bank holds 1 image, which has no neighbour; at least 2 are needed, or n_natural=0.")
    at = make_rng(seed).choice(total, min(int(n), total), replace=False)
    at.sort()
    score, index = top_k(gather_rows(images, at, max_memory), images, 2, max_memory=max_memory)
    # An image is its own best match, but images that occur twice stand in any order.
    return np.where(index[:, 0] == at, score[:, 1], score[:, 0]).astype(np.float64)


def on_manifold(
    embeddings: Any, bank: Any, *, n_natural: int = 1000, seed: int = 0, max_memory: str | int | None = None
) -> xr.Dataset:
    r"""Distance of directions to the nearest natural image, relative to distances among natural images.

    .. math:: \delta_i = \min_k \| e_i / \|e_i\| - m_k \|, \qquad
        \delta^{nat} = \mathrm{median}_{k} \min_{l \ne k} \| m_k - m_l \|

    with unit-norm images m. A ratio near or below 1 says that an embedding is as near to photographs as photographs
    are to each other; 0 is a copy of one. The natural distance shrinks as banks grow: compare within one bank.

    Parameters
    ----------
    embeddings : Dataset of :func:`project`, DataArray or array (n, feature)
        Any norm. Rows of zeros or NaN get NaN and "".
    bank : see :func:`neuroenc.retrieval.as_bank`
        Image embeddings (n, feature), any norm; read three times, once with ``n_natural=0``.
    n_natural : int
        Images that the natural distance is taken from, drawn without replacement; 0 for none (NaN).
    seed : int
        Of that draw.
    max_memory : str, int or None
        For temporaries.

    Returns
    -------
    Dataset over the rows of ``embeddings`` (``voxel`` for an array) with their coordinates
        ``distance`` (from 0 to 2; 3e-4 and less are one image), ``cosine``, ``nearest_image`` (id), ``ratio`` (of
        ``distance`` to ``natural_distance``); scalars ``natural_distance`` and ``natural_cosine`` (of the median
        image), and ``natural_distance_95`` (the 95th percentile).

    Examples
    --------
    >>> bank = np.array([[1.0, 0.0], [0.0, 2.0]])
    >>> found = on_manifold(np.array([[3.0, 0.0], [1.0, 1.0]]), bank)
    >>> found["distance"].round(3).values.tolist(), found["ratio"].round(3).values.tolist()
    ([0.0, 0.765], [0.0, 0.541])
    """
    check_whole("n_natural", n_natural, 0)
    labelled = embeddings["embedding"] if isinstance(embeddings, xr.Dataset) else embeddings
    if not isinstance(labelled, xr.DataArray):
        labelled = xr.DataArray(np.asarray(labelled), dims=("voxel", "feature") if np.ndim(labelled) == 2 else None)
    if labelled.ndim != 2:
        raise DataError(f"embeddings have shape {labelled.shape}; legal is (n, feature): one row an item.")
    if "feature" in labelled.dims:
        labelled = labelled.transpose(..., "feature")
    dim = str(labelled.dims[0])
    values = np.asarray(labelled.values, dtype=np.float64)
    length = np.linalg.norm(values, axis=1)
    rows = np.flatnonzero(np.isfinite(length) & (length > 0))
    images = as_bank(bank)
    natural = np.array([np.nan])
    if n_natural:
        natural = natural_neighbours(images, n=n_natural, seed=seed, max_memory=max_memory)
    cosine = np.full(len(values), np.nan)
    nearest = np.full(len(values), "", dtype=object)
    if len(rows):
        ids = IdCollector()
        score, index = top_k(values[rows], images, 1, max_memory=max_memory, seen=ids)
        cosine[rows], nearest[rows] = score[:, 0], ids.names(index)[:, 0]
    distance, between = chord(cosine), chord(natural)
    out = xr.Dataset(coords={k: v for k, v in labelled.coords.items() if v.dims in ((dim,), ())})
    out["distance"] = (dim, distance)
    out["cosine"] = (dim, cosine)
    out["nearest_image"] = (dim, nearest.astype(str))
    typical = float(np.median(between))
    with np.errstate(divide="ignore", invalid="ignore"):
        out["ratio"] = (dim, distance / typical)
    out["natural_distance"] = typical
    out["natural_cosine"] = float(np.median(natural))
    out["natural_distance_95"] = float(np.quantile(between, 0.95))
    out.attrs.update(n_natural=len(natural) if n_natural else 0, seed=int(seed))
    return out


METHODS = ("softmax", "nearest", "none")
# All images count alike: the norm of the projection is then the mean norm of the bank.
_FLAT = 1e9


def project_weights(
    coef: Any,
    bank: Any,
    method: str = "softmax",
    *,
    intercept: Any = None,
    temperature: float = 1 / 150,
    renormalise: bool = True,
    decouple: bool = True,
    features_normalised: bool = True,
    n_natural: int = 1000,
    seed: int = 0,
    max_memory: str | int | None = None,
    progress: bool = True,
    **options: Any,
) -> xr.Dataset:
    r"""Project voxel weights to image embeddings by one of three methods, with distance to natural images.

    With ``w_i`` the direction of the weights, ``m_k = M_k / ||M_k||`` images and
    ``s_ik = softmax_k(w_i . m_k / temperature)``:

    =========== ===================================================== ====================================
    method      direction of the embedding                            norm
    =========== ===================================================== ====================================
    "softmax"   ``sum_k s_ik m_k``, see :func:`project`               ``sum_k s_ik ||M_k||``
    "nearest"   the image with the largest ``w_i . m_k``              of that image
    "none"      ``w_i``: the control without projection               mean of the bank
    =========== ===================================================== ====================================

    A predicted response above that of every natural image is no success: the encoder was never fitted there. What
    counts is a response near ``natural_max_predicted`` at a ``distance`` near ``natural_distance``.

    Parameters
    ----------
    coef : DataArray or array (feature, voxel), or encoder with ``to_linear()``
    bank : see :func:`neuroenc.retrieval.as_bank`
        Raw image embeddings; read several times, so not a one-time stream.
    method : {"softmax", "nearest", "none"}
    intercept : array (voxel,), optional
    temperature : float
        Of "softmax".
    renormalise, decouple : bool
        Of "softmax".
    features_normalised : bool
        As in :func:`project`.
    n_natural : int
        Images that the natural distance is taken from; 0 for none.
    seed : int
        Of that sample.
    max_memory : str, int or None
    progress : bool
    **options
        Further ones of :func:`project`, with "softmax".

    Returns
    -------
    Dataset over voxel
        All of :func:`project`; ``effective_images`` is 1 for "nearest" and NaN for "none", which
        averages nothing. And ``distance`` (of the embedding's direction to the nearest image, see
        :func:`on_manifold`), ``natural_distance`` (scalar), ``natural_max_predicted`` (highest predicted response of
        any image of the bank). attrs: those of :func:`project`, ``method``, and the settings of the method.

    Raises
    ------
    ConfigError
        A method that does not exist, or settings of another method.
    DataError
        A one-time stream, and what :func:`project` refuses.

    References
    ----------
    Luo, Henderson, Tarr, Wehbe. BrainSCUBA: Fine-grained natural language captions of visual cortex
    selectivity. ICLR 2024.

    Examples
    --------
    >>> bank = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    >>> for method in ("softmax", "nearest", "none"):
    ...     out = project_weights(np.array([[2.0], [1.0]]), bank, method, temperature=0.1, progress=False)
    ...     print(f"{method:8} {float(out['norm'][0]):.2f} {float(out['distance'][0]):.2f}")
    softmax  1.64 0.28
    nearest  1.41 0.00
    none     2.14 0.32
    """
    one_of("method of projection", method, METHODS)
    if options and method != "softmax":
        raise ConfigError(f"{', '.join(options)}: settings of the softmax projection, not of method={method!r}.")
    weights, images = as_weights(coef, intercept), as_bank(bank).again("the bank is read several times")
    check_space(weights.coef, images)
    common: dict[str, Any] = {"max_memory": max_memory, "progress": progress}
    if method == "softmax":
        common |= {"renormalise": renormalise, "decouple": decouple, **options}
    flat = _FLAT if method == "none" else temperature
    out = project(weights, images, temperature=flat, features_normalised=features_normalised, **common)
    settings: dict[str, Any] = {"method": method, "seed": int(seed)}
    if method == "nearest":
        _nearest(out, weights, images, max_memory)
    elif method == "none":
        _set(out, weights, weights.directions(), out["norm"].values)
    found = on_manifold(out["embedding"], images, n_natural=n_natural, seed=seed, max_memory=max_memory)
    real = out["embedding"].dtype
    out["distance"] = found["distance"].astype(real)
    out["natural_distance"] = found["natural_distance"].astype(real)
    out["natural_max_predicted"] = ("voxel", _natural_max(out, weights, images, max_memory).astype(real))
    if method in ("nearest", "none"):
        del out.attrs["temperature"]
    out.attrs.update(settings)
    kept = {k: v for k, v in out.attrs.items() if k != "provenance"}
    out.attrs["provenance"] = provenance(**{**kept, "method": f"{method} projection"})
    return out


def _set(out: xr.Dataset, weights: Weights, direction: np.ndarray, norm: np.ndarray, images: float = np.nan) -> None:
    """Put other embeddings in the place of the softmax average, with all that follows from them."""
    embedding = direction * np.asarray(norm, dtype=np.float64)[:, None]
    values = {
        "norm": norm,
        "cosine_before_after": np.einsum("vd,vd->v", weights.directions(), direction),
        "effective_images": np.where(np.isfinite(norm), images, np.nan),
        "projected_predicted": _predicted(out, weights, direction, norm),
    }
    out["embedding"] = (("voxel", "feature"), embedding.astype(out["embedding"].dtype))
    for name, value in values.items():
        out[name] = ("voxel", np.asarray(value).astype(out["norm"].dtype))


def _predicted(out: xr.Dataset, weights: Weights, direction: np.ndarray, norm: np.ndarray) -> np.ndarray:
    matrix = np.where(weights.valid()[:, None], weights.matrix(), np.nan)
    size = 1.0 if out.attrs["features_normalised"] else np.asarray(norm, dtype=np.float64)
    return np.einsum("vd,vd->v", matrix, direction) * size + weights.intercept


def _nearest(out: xr.Dataset, weights: Weights, images: EmbeddingBank, max_memory: str | int | None) -> None:
    valid = weights.valid()
    found = weights.directions()[valid]
    if len(found):
        _, at = top_k(found, images, 1, max_memory=max_memory)
        found = gather_rows(images, at[:, 0], max_memory)
    norm = np.linalg.norm(found, axis=1)
    _set(out, weights, spread(found / norm[:, None], valid), spread(norm, valid), images=1.0)


def _natural_max(out: xr.Dataset, weights: Weights, images: EmbeddingBank, max_memory: str | int | None) -> np.ndarray:
    """Highest predicted response of any image, (voxel,)."""
    if out.attrs["features_normalised"]:
        return np.asarray(out["nearest_predicted"].values, dtype=np.float64)
    valid = weights.valid()
    score = np.zeros((0, 1))
    if valid.any():
        score, _ = top_k(weights.matrix()[valid], images, 1, normalise=False, max_memory=max_memory)
    return spread(score[:, 0] + weights.intercept[valid], valid)
