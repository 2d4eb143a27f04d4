"""Projection methods under one contract: softmax, nearest image, denoiser, none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError
from neuroenc._core.provenance import provenance
from neuroenc.captions._linear import Weights, as_weights, check_space
from neuroenc.captions.projection._manifold import gather_rows, on_manifold
from neuroenc.captions.projection._project import project
from neuroenc.retrieval import EmbeddingBank, as_bank, top_k

if TYPE_CHECKING:
    from neuroenc.captions.projection._denoiser import ConceptDenoiser

METHODS = ("softmax", "nearest", "denoiser", "none")
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
    denoiser: ConceptDenoiser | None = None,
    n_samples: int = 8,
    guidance: float = 1.0,
    n_steps: int = 50,
    n_natural: int = 1000,
    seed: int = 0,
    max_memory: str | int | None = None,
    progress: bool = True,
    **options: Any,
) -> xr.Dataset:
    r"""Project voxel weights to image embeddings by one of four methods, with distance to natural images.

    With ``w_i`` the direction of the weights, ``m_k = M_k / ||M_k||`` images and
    ``s_ik = softmax_k(w_i . m_k / temperature)``:

    =========== ===================================================== ====================================
    method      direction of the embedding                            norm
    =========== ===================================================== ====================================
    "softmax"   ``sum_k s_ik m_k``, see :func:`project`               ``sum_k s_ik ||M_k||``
    "nearest"   the image with the largest ``w_i . m_k``              of that image
    "denoiser"  of ``n_samples`` draws from a smoothed ``s_i``, the   ``sum_k s_ik ||M_k||``
                one with the highest predicted response
    "none"      ``w_i``: the control without projection               mean of the bank
    =========== ===================================================== ====================================

    A predicted response above that of every natural image is no success: the encoder was never fitted there. What
    counts is a response near ``natural_max_predicted`` at a ``distance`` near ``natural_distance``.

    Parameters
    ----------
    coef : DataArray or array (feature, voxel), or encoder with ``to_linear()``
    bank : see :func:`neuroenc.retrieval.as_bank`
        Raw image embeddings; read several times, so not a one-time stream.
    method : {"softmax", "nearest", "denoiser", "none"}
    intercept : array (voxel,), optional
    temperature : float
        Of "softmax" and "denoiser".
    renormalise, decouple : bool
        Of "softmax".
    features_normalised : bool
        As in :func:`project`.
    denoiser : ConceptDenoiser, optional
        Of "denoiser". Default the exact one of the bank, whose draws are images of the bank.
    n_samples, guidance, n_steps : int, float, int
        As in :meth:`ConceptDenoiser.sample`.
    n_natural : int
        Images that the natural distance is taken from; 0 for none.
    seed : int
        Of draws, and of that sample.
    max_memory : str, int or None
    progress : bool
    **options
        Further ones of :func:`project`, with "softmax".

    Returns
    -------
    Dataset over voxel
        All of :func:`project`; ``effective_images`` is 1 for "nearest" and NaN for "denoiser" and "none", which
        average nothing. And ``distance`` (of the embedding's direction to the nearest image, see
        :func:`on_manifold`), ``natural_distance`` (scalar), ``natural_max_predicted`` (highest predicted response of
        any image of the bank). With "denoiser" also ``samples (voxel, sample, feature)`` of unit norm,
        ``sample_predicted`` and ``sample_distance (voxel, sample)``; ``embedding`` is the sample with the highest
        ``sample_predicted``. attrs: those of :func:`project`, ``method``, and the settings of the method.

    Raises
    ------
    ConfigError
        A method that does not exist, or a denoiser for another method.
    DataError
        A one-time stream, and what :func:`project` refuses.

    References
    ----------
    Luo, Henderson, Tarr, Wehbe. BrainSCUBA. ICLR 2024. LCM team et al. Large Concept Models. 2024.

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
    if denoiser is not None and method != "denoiser":
        raise ConfigError(f"a denoiser was given for method={method!r}. Next step: method='denoiser'.")
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
        _set(out, weights, _directions(weights), out["norm"].values)
    elif method == "denoiser":
        drawn: dict[str, Any] = {"n_samples": int(n_samples), "guidance": float(guidance), "n_steps": int(n_steps)}
        if denoiser is None:
            from neuroenc.captions.projection._denoiser import ConceptDenoiser

            denoiser = ConceptDenoiser("empirical", scaling="unit").fit(images, max_memory=max_memory)
        samples = denoiser.sample(
            weights.coef, temperature=temperature, seed=seed, max_memory=max_memory, progress=progress, **drawn
        )
        _pick(out, weights, samples, images, max_memory)
        settings |= {**drawn, "denoiser": denoiser.kind}
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


def _directions(weights: Weights) -> np.ndarray:
    """Unit-norm weights (voxel, feature), NaN where there are none."""
    matrix, valid = weights.matrix(), weights.valid()
    out = np.full(matrix.shape, np.nan)
    out[valid] = unit_rows(matrix[valid])
    return out


def _set(out: xr.Dataset, weights: Weights, direction: np.ndarray, norm: np.ndarray, images: float = np.nan) -> None:
    """Put other embeddings in the place of the softmax average, with all that follows from them."""
    embedding = direction * np.asarray(norm, dtype=np.float64)[:, None]
    values = {
        "norm": norm,
        "cosine_before_after": np.einsum("vd,vd->v", _directions(weights), direction),
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
    unit = _directions(weights)
    rows = np.flatnonzero(weights.valid())
    direction, norm = np.full(unit.shape, np.nan), np.full(len(unit), np.nan)
    if len(rows):
        _, at = top_k(unit[rows], images, 1, max_memory=max_memory)
        found = gather_rows(images, at[:, 0], max_memory)
        norm[rows] = np.linalg.norm(found, axis=1)
        direction[rows] = found / norm[rows, None]
    _set(out, weights, direction, norm, images=1.0)


def _pick(
    out: xr.Dataset, weights: Weights, samples: xr.DataArray, images: EmbeddingBank, max_memory: str | int | None
) -> None:
    """Samples with their predicted response and distance, and of each voxel the one that it likes best."""
    values, norm, real = samples.values, out["norm"].values, out["embedding"].dtype
    each = [values[:, s].astype(np.float64) for s in range(values.shape[1])]
    predicted = np.stack([_predicted(out, weights, x, norm) for x in each], axis=1)
    distance = np.stack(
        [on_manifold(x, images, n_natural=0, max_memory=max_memory)["distance"].values for x in each], axis=1
    )
    best = np.where(np.isfinite(predicted), predicted, -np.inf).argmax(axis=1)
    _set(out, weights, values[np.arange(len(values)), best].astype(np.float64), norm)
    out["samples"] = (("voxel", "sample", "feature"), values.astype(real))
    out["sample_predicted"] = (("voxel", "sample"), predicted.astype(real))
    out["sample_distance"] = (("voxel", "sample"), distance.astype(real))


def _natural_max(out: xr.Dataset, weights: Weights, images: EmbeddingBank, max_memory: str | int | None) -> np.ndarray:
    """Highest predicted response of any image, (voxel,)."""
    if out.attrs["features_normalised"]:
        return np.asarray(out["nearest_predicted"].values, dtype=np.float64)
    rows = np.flatnonzero(weights.valid())
    found = np.full(len(weights.intercept), np.nan)
    if len(rows):
        score, _ = top_k(weights.matrix()[rows], images, 1, normalise=False, max_memory=max_memory)
        found[rows] = score[:, 0] + weights.intercept[rows]
    return found
