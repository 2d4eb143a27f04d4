"""Clusters and colours of voxels by their projected embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, pairwise_distances_argmin, silhouette_score

from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import make_rng, one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.optional import require
from neuroenc._core.provenance import provenance
from neuroenc.captions.analysis._contrast import separating_phrases
from neuroenc.captions.analysis._words import region_masks
from neuroenc.captions.text._vectors import directions_of

Floats = np.ndarray


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

    def examples(
        self, captions: pd.DataFrame | None = None, evidence: pd.DataFrame | None = None, n: int = 5
    ) -> pd.DataFrame:
        """The ``n`` most typical voxels of each cluster, with their best caption and their best images.

        Returns
        -------
        DataFrame
            ``cluster, voxel, typicality`` and, where given, ``caption, images`` (ids joined by ";").
        """
        rows = []
        for c in range(1, self.k + 1):
            at = np.flatnonzero(self.labels.values == c)
            at = at[np.argsort(-self.typicality.values[at], kind="stable")][:n]
            rows += [(c, self.labels["voxel"].values[v], float(self.typicality.values[v])) for v in at]
        out = pd.DataFrame(rows, columns=["cluster", "voxel", "typicality"])
        if captions is not None:
            best = captions.sort_values("rank", kind="stable").drop_duplicates("voxel").set_index("voxel")["caption"]
            out["caption"] = [best.get(v, "") for v in out["voxel"]]
        if evidence is not None:
            shown = evidence.sort_values("rank", kind="stable").groupby("voxel")["stimulus"].agg(list)
            out["images"] = [";".join(shown.get(v, [])) for v in out["voxel"]]
        return out


def _centres(x: Floats, labels: Floats, k: int) -> Floats:
    return np.stack([x[labels == c].mean(axis=0) for c in range(k)])


def _split(x: Floats, k: int, method: str, seed: int) -> Floats:
    if method == "kmeans":
        return np.asarray(KMeans(k, n_init=10, random_state=seed).fit_predict(x))
    return np.asarray(AgglomerativeClustering(k, linkage="ward").fit_predict(x))


def _stability(x: Floats, labels: Floats, k: int, method: str, n: int, rng: np.random.Generator) -> tuple[float, float]:
    """Mean and spread of the adjusted Rand index between these clusters and those of resampled voxels."""
    found = []
    for _ in range(n):
        rows = np.unique(rng.integers(0, len(x), len(x)))
        if len(rows) <= k:
            continue
        part = _split(x[rows], k, method, int(rng.integers(2**31)))
        found.append(adjusted_rand_score(labels, pairwise_distances_argmin(x, _centres(x[rows], part, k))))
    return (float(np.mean(found)), float(np.std(found))) if found else (np.nan, np.nan)


def cluster_voxels(
    projection: xr.Dataset,
    k: int | Sequence[int] = (2, 3, 4, 5, 6),
    *,
    roi: str | None = None,
    method: str = "kmeans",
    n_components: int = 20,
    n_bootstraps: int = 50,
    n_null: int = 50,
    centre: bool = True,
    seed: int = 0,
) -> VoxelClusters:
    """Cluster the projected weight directions of voxels; the number of clusters by silhouette.

    Directions are centred on the bank's mean, given unit norm and reduced by principal components. Every method
    splits a cloud, also one without clusters: ``stability`` says whether resampled voxels give the same
    clusters, and ``p`` whether a Gaussian cloud of the same covariance splits as well; look at both before
    calling clusters sub-populations.

    Parameters
    ----------
    projection : Dataset
        From :func:`neuroenc.captions.project` (or weights (feature, voxel), labelled).
    k : int or sequence of int
        Number of clusters, or the numbers to choose from.
    roi : str, optional
        Only the voxels of this region.
    method : {"kmeans", "agglomerative"}
        Ward's method for the latter.
    n_components : int
        Principal components, at most; 0 keeps all features.
    n_bootstraps, n_null : int
        Resamples of voxels for the stability, and Gaussian clouds for p; 0 leaves them NaN.
    centre : bool
    seed : int

    Returns
    -------
    VoxelClusters

    Raises
    ------
    DataError
        Too few voxels, or an unknown region.
    ConfigError
        A setting is not legal.

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
    one_of("method", method, ("kmeans", "agglomerative"))
    options = [k] if isinstance(k, (int, np.integer)) else list(k)
    if not options or any(int(o) != o or o < 2 for o in options):
        raise ConfigError(f"k={k!r} is not legal; it is an integer of at least 2, or several.")
    target, live, dim, coords = directions_of(projection, centre=centre)
    if dim != "voxel":
        raise DataError("these are images; clusters are of voxels. Next step: project(coef, bank).")
    inside = live
    if roi is not None:
        regions = region_masks(coords["roi"].values) if "roi" in coords else {}
        if roi not in regions:
            raise DataError(unknown_name("roi", roi, regions))
        inside = live & regions[roi]
    rows = np.flatnonzero(inside)
    if len(rows) <= max(options):
        raise DataError(f"{len(rows)} voxels{f' in {roi}' if roi else ''} for {max(options)} clusters: too few.")
    x = target[rows]
    if n_components:
        x = PCA(min(n_components, len(x) - 1, x.shape[1]), svd_solver="full").fit_transform(x)
    rng = make_rng(seed)
    clouds = _null(x, n_null, rng)
    table, splits = [], []
    for number in options:
        labels = _split(x, number, method, seed)
        real = float(silhouette_score(x, labels))
        null = [float(silhouette_score(c, _split(c, number, method, seed))) for c in clouds]
        p = (1 + sum(v >= real for v in null)) / (1 + len(null)) if null else np.nan
        stability = _stability(x, labels, number, method, n_bootstraps, rng)
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
    keep = np.ones(len(target), dtype=bool) if roi is None else regions[roi]
    whole = xr.DataArray(full, dims="voxel", coords=coords, name="cluster")[keep]
    settings = {"k": number, "options": [int(o) for o in options], "method": method, "roi": roi}
    made = provenance(step="cluster_voxels", **settings, n_components=n_components, seed=seed)
    whole.attrs = {"k": number, "method": method, "roi": roi or "", "provenance": made}
    return VoxelClusters(whole, xr.DataArray(typical, dims="voxel", coords=coords, name="typicality")[keep], choices)


def _null(x: Floats, n: int, rng: np.random.Generator) -> list[Floats]:
    """Gaussian clouds with the covariance of the voxels."""
    if not n:
        return []
    _, scale, axes = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    spread = (scale / np.sqrt(len(x) - 1))[:, None] * axes
    return [rng.standard_normal((len(x), len(scale))) @ spread for _ in range(n)]


class EmbeddingColours:
    r"""Colour voxels by three dimensions (PCA or UMAP) of projected directions; fit once, apply to others.

    .. math:: \mathrm{rgb}_v = \mathrm{clip}\Bigl(\frac{f(d_v - \bar m) - q_{lo}}{q_{hi} - q_{lo}}, 0, 1\Bigr)

    with f three principal components, or UMAP (cosine) as in the paper; the quantiles q of each dimension are those
    of the voxels it was fitted on, so that one colour means one direction in every subject. Principal components are
    linear and their legend is exact; UMAP shows more and finer groups, but distances between them mean little.

    Parameters
    ----------
    method : {"pca", "umap"}
        "umap" needs the package umap-learn.
    clip : float
        Share of voxels beyond the darkest and the brightest value of each dimension.
    centre : bool
        Centre directions on the projection's bank.
    n_neighbors : int
        Of UMAP.
    seed : int

    Attributes
    ----------
    explained_ : ndarray (3,)
        Share of variance of the components (NaN for UMAP).

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (figure 3). McInnes, Healy & Melville (2018), UMAP.

    Examples
    --------
    >>> import numpy as np
    >>> weights = np.random.default_rng(0).standard_normal((6, 40))
    >>> rgb = EmbeddingColours().fit(weights).transform(weights)
    >>> rgb.dims, rgb.shape, bool(((rgb >= 0) & (rgb <= 1)).all())
    (('voxel', 'channel'), (40, 3), True)
    """

    def __init__(
        self, method: str = "pca", *, clip: float = 0.02, centre: bool = True, n_neighbors: int = 15, seed: int = 0
    ) -> None:
        one_of("method", method, ("pca", "umap"))
        if not 0 <= clip < 0.5:
            raise ConfigError(f"clip={clip} is not legal; it is a share of voxels, from 0 to below 0.5.")
        self.method, self.clip, self.centre, self.n_neighbors, self.seed = method, clip, centre, n_neighbors, seed

    def fit(self, projection: Any) -> EmbeddingColours:
        """Find the three dimensions in the voxels of one subject (or of several, concatenated).

        Parameters
        ----------
        projection : Dataset of :func:`neuroenc.captions.project`, or weights (feature, voxel)
        """
        target, live, _, _ = directions_of(projection, centre=self.centre)
        x = target[live]
        if len(x) < 4 or x.shape[1] < 3:
            raise DataError(f"{len(x)} voxels of width {x.shape[1]}; colours need at least 4 voxels and width 3.")
        if self.method == "pca":
            self.model_: Any = PCA(3, svd_solver="full").fit(x)
            self.explained_ = np.asarray(self.model_.explained_variance_ratio_)
        else:
            umap = require("umap", "language")
            neighbours = min(self.n_neighbors, len(x) - 1)
            # One thread: UMAP is reproducible only so.
            self.model_ = umap.UMAP(
                n_components=3, n_neighbors=neighbours, metric="cosine", random_state=self.seed, n_jobs=1
            ).fit(x)
            self.explained_ = np.full(3, np.nan)
        self.width_ = x.shape[1]
        # Components are unique up to sign: the longer tail is the brighter one.
        found = self._map(x, np.ones(3))
        skew = ((found - found.mean(axis=0)) ** 3).sum(axis=0)
        self.sign_ = np.where(skew < 0, -1.0, 1.0) if self.method == "pca" else np.ones(3)
        self.low_, self.high_ = np.quantile(found * self.sign_, [self.clip, 1 - self.clip], axis=0)
        return self

    def _map(self, x: np.ndarray, sign: np.ndarray) -> np.ndarray:
        return np.asarray(self.model_.transform(x), dtype=np.float64) * sign

    def _check(self) -> None:
        if not hasattr(self, "model_"):
            raise ConfigError("these colours are not fitted. Next step: EmbeddingColours().fit(projection).")

    def transform(self, projection: Any) -> xr.DataArray:
        """Colours of the voxels, NaN without a direction.

        Returns
        -------
        DataArray (voxel, channel)
            0 to 1, with the voxel coordinates.
        """
        self._check()
        target, live, dim, coords = directions_of(projection, centre=self.centre)
        if target.shape[1] != self.width_:
            raise DataError(f"embeddings have width {target.shape[1]}, the fitted ones {self.width_}.")
        rgb = np.full((len(target), 3), np.nan)
        if live.any():
            value = self._map(target[live], self.sign_)
            rgb[live] = np.clip((value - self.low_) / np.maximum(self.high_ - self.low_, 1e-12), 0, 1)
        channel = {"channel": ["red", "green", "blue"]}
        return xr.DataArray(rgb, dims=(dim, "channel"), coords={**coords, **channel}, name="colour")

    def legend(self, captions: Sequence[str], embeddings: Any, n: int = 5) -> pd.DataFrame:
        """What the two ends of each channel mean: the captions that lie farthest along it.

        Captions are centred on their own mean and mapped like voxels. For principal components the score is the
        caption's cosine with the axis; for UMAP it is the caption's place on the axis, relative to the voxels'.

        Parameters
        ----------
        captions : sequence of str (n,)
        embeddings : array (n, feature)
            Text vectors in the space of the projection; a few hundred captions or short phrases.
        n : int
            Captions an end.

        Returns
        -------
        DataFrame
            ``channel, end`` ("bright" or "dark")``, rank, caption, score, explained`` (share of variance).
        """
        self._check()
        vectors = unit_rows(np.asarray(embeddings, dtype=np.float64))
        if vectors.shape != (len(captions), self.width_):
            raise DataError(f"{len(captions)} captions and embeddings {vectors.shape}; width must be {self.width_}.")
        centred = unit_rows(vectors - vectors.mean(axis=0)) if self.centre else vectors
        if self.method == "pca":
            score = centred @ (self.model_.components_ * self.sign_[:, None]).T
        else:
            score = (self._map(centred, self.sign_) - self.low_) / np.maximum(self.high_ - self.low_, 1e-12)
        rows = []
        for c, channel in enumerate(("red", "green", "blue")):
            order = np.argsort(-score[:, c], kind="stable")
            for end, at in (("bright", order[:n]), ("dark", order[::-1][:n])):
                rows += [
                    (channel, end, rank, captions[i], float(score[i, c]), float(self.explained_[c]))
                    for rank, i in enumerate(at, 1)
                ]
        return pd.DataFrame(rows, columns=["channel", "end", "rank", "caption", "score", "explained"])
