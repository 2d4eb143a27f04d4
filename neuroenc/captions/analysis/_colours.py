"""Colour maps of embeddings: three dimensions of projected weights as RGB, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from sklearn.decomposition import PCA

from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.optional import require
from neuroenc.captions.text._vectors import directions_of


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
