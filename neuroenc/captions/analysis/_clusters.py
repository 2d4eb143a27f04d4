"""Clusters of voxels by their projected embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, pairwise_distances_argmin, silhouette_score

from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import make_rng
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.provenance import provenance
from neuroenc.captions.analysis._contrast import separating_phrases
from neuroenc.captions.text._vectors import directions_of

Floats = np.ndarray
# Principal components, at most.
_COMPONENTS = 20


@dataclass(frozen=True)
class VoxelClusters:
    """Result of `cluster_voxels`: labels, typicality, choice of the number of clusters.

    Attributes
    ----------
    labels : DataArray (voxel,) of int
        1 is the largest cluster; 0 is a voxel without a projection.
    typicality : DataArray (voxel,)
        Cosine of the voxel's centred direction and its cluster's mean direction.
    choices : DataFrame
        Per number of clusters ``k, silhouette, stability`` (mean adjusted Rand index of bootstraps)``,
        stability_sd, silhouette_null, p`` (share of Gaussian clouds of equal covariance that are split as well).
    """

    labels: xr.DataArray
    typicality: xr.DataArray
    choices: pd.DataFrame

    @property
    def k(self) -> int:
        """Number of clusters."""
        return int(self.labels.max())

    def mapping(self) -> dict[Any, int]:
        """Cluster of each voxel that has one."""
        values = zip(self.labels["voxel"].values.tolist(), self.labels.values.tolist())
        return {voxel: label for voxel, label in values if label > 0}

    def phrases(self, captions: pd.DataFrame, **options: Any) -> pd.DataFrame:
        """What separates the clusters; see :func:`neuroenc.captions.separating_phrases`."""
        return separating_phrases(captions, self.mapping(), **options)


def _centres(x: Floats, labels: Floats, k: int) -> Floats:
    return np.stack([x[labels == c].mean(axis=0) for c in range(k)])


def _split(x: Floats, k: int, seed: int) -> Floats:
    return np.asarray(KMeans(k, n_init=10, random_state=seed).fit_predict(x))


def _stability(x: Floats, labels: Floats, k: int, n: int, rng: np.random.Generator) -> tuple[float, float]:
    """Mean and spread of the adjusted Rand index between these clusters and those of resampled voxels."""
    found = []
    for _ in range(n):
        rows = np.unique(rng.integers(0, len(x), len(x)))
        if len(rows) <= k:
            continue
        part = _split(x[rows], k, int(rng.integers(2**31)))
        found.append(adjusted_rand_score(labels, pairwise_distances_argmin(x, _centres(x[rows], part, k))))
    return (float(np.mean(found)), float(np.std(found))) if found else (np.nan, np.nan)


def cluster_voxels(
    projection: xr.Dataset,
    k: int | Sequence[int] = (2, 3, 4, 5, 6),
    *,
    n_bootstraps: int = 50,
    n_null: int = 50,
    seed: int = 0,
) -> VoxelClusters:
    """Cluster the projected weight directions of voxels; the number of clusters by silhouette.

    Directions are centred on the bank's mean, given unit norm and reduced by principal components. K-means
    splits any cloud, also one without clusters: ``stability`` says whether resampled voxels give the same
    clusters, and ``p`` whether a Gaussian cloud of the same covariance splits as well; look at both before
    calling clusters sub-populations.

    Parameters
    ----------
    projection : Dataset
        From :func:`neuroenc.captions.project` (or weights (feature, voxel), labelled).
    k : int or sequence of int
        Number of clusters, or the numbers to choose from.
    n_bootstraps, n_null : int
        Resamples of voxels for the stability, and Gaussian clouds for p; 0 leaves them NaN.
    seed : int

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (figure 8: two clusters in EBA). Hennig (2007), Computational Statistics
    & Data Analysis 52 (stability). Liu et al. (2008), JASA 103 (clusters against one Gaussian).

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> ends = np.repeat([[1.0, 0, 0], [0, 1.0, 0]], [12, 8], axis=0) + 0.1 * rng.standard_normal((20, 3))
    >>> found = cluster_voxels(ends.T, n_bootstraps=10, n_null=10)
    >>> found.k, found.labels.values.tolist() == [1] * 12 + [2] * 8
    (2, True)
    """
    options = [k] if isinstance(k, (int, np.integer)) else list(k)
    if not options or any(int(o) != o or o < 2 for o in options):
        raise ConfigError(f"k={k!r} is not legal; it is an integer of at least 2, or several.")
    target, live, coords = directions_of(projection)
    rows = np.flatnonzero(live)
    if len(rows) <= max(options):
        raise DataError(f"{len(rows)} voxels for {max(options)} clusters: too few.")
    x = target[rows]
    x = PCA(min(_COMPONENTS, len(x) - 1, x.shape[1]), svd_solver="full").fit_transform(x)
    rng = make_rng(seed)
    clouds = _null(x, n_null, rng)
    table, splits = [], []
    for number in options:
        labels = _split(x, number, seed)
        real = float(silhouette_score(x, labels))
        null = [float(silhouette_score(c, _split(c, number, seed))) for c in clouds]
        p = (1 + sum(v >= real for v in null)) / (1 + len(null)) if null else np.nan
        stability = _stability(x, labels, number, n_bootstraps, rng)
        table.append((number, real, *stability, float(np.mean(null)) if null else np.nan, p))
        splits.append(labels)
    choices = pd.DataFrame(table, columns=["k", "silhouette", "stability", "stability_sd", "silhouette_null", "p"])
    best = int(choices["silhouette"].argmax())
    labels, number = splits[best], int(options[best])
    order = np.argsort(-np.bincount(labels, minlength=number), kind="stable")
    ranked = np.argsort(order)[labels]
    means = unit_rows(_centres(target[rows], ranked, number))
    full, typical = np.zeros(len(target), dtype=np.int64), np.full(len(target), np.nan)
    full[rows] = ranked + 1
    typical[rows] = np.einsum("vd,vd->v", target[rows], means[ranked])
    whole = xr.DataArray(full, dims="voxel", coords=coords, name="cluster")
    made = provenance(step="cluster_voxels", k=number, options=[int(o) for o in options], seed=seed)
    whole.attrs = {"k": number, "provenance": made}
    return VoxelClusters(whole, xr.DataArray(typical, dims="voxel", coords=coords, name="typicality"), choices)


def _null(x: Floats, n: int, rng: np.random.Generator) -> list[Floats]:
    """Gaussian clouds with the covariance of the voxels."""
    if not n:
        return []
    _, scale, axes = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    spread = (scale / np.sqrt(len(x) - 1))[:, None] * axes
    return [rng.standard_normal((len(x), len(scale))) @ spread for _ in range(n)]
