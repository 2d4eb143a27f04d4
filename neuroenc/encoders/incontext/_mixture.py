"""Mixtures of Gaussian priors over a voxel's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroenc._core.checks import make_rng
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders.incontext._evidence import Floats

if TYPE_CHECKING:
    from neuroenc.encoders.incontext._prior import WeightPrior

# Shares of the isotropic part.
_BLENDS = (0.0, 0.1, 0.3, 0.6, 1.0)


@dataclass(frozen=True, eq=False)
class PriorMixture:
    r"""Gaussian mixture prior over voxel weights.

    .. math:: w \sim \sum_k \pi_k\, N(\sqrt{s}\,\mu_k, s\,C_k), \qquad
              \overline{(w \cdot (x - \bar x))^2} = 1 \text{ at } s = 1 \text{ for every component}

    Parameters
    ----------
    means : array (component, feature)
    covs : array (component, feature, feature)
    share : array (component,)
        Sums to 1.
    center : array (feature,)
        Mean of the images that it was scaled for.
    level_mean, level_cov : arrays (2,) and (2, 2), optional
        Of (log s, log noise variance) over voxels; None if unknown.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).standard_normal((500, 4))
    >>> mixture = PriorMixture.build(images, [np.eye(4), np.diag([1.0, 0, 0, 0])])
    >>> mixture.n_components, mixture.sample(3, seed=0)[0].shape
    (2, (4, 3))
    """

    means: Floats
    covs: Floats
    share: Floats
    center: Floats
    level_mean: Floats | None = None
    level_cov: Floats | None = None

    @property
    def n_components(self) -> int:
        """Number of components."""
        return len(self.covs)

    @property
    def n_features(self) -> int:
        """Width of the features."""
        return int(self.covs.shape[1])

    @classmethod
    def build(
        cls, images: Any, covs: Sequence[Any], means: Sequence[Any] | None = None, share: Any = None
    ) -> PriorMixture:
        """Components scaled to unit signal variance over ``images`` (n, feature); equal shares by default."""
        values = np.asarray(images, dtype=np.float64)
        center, around = values.mean(axis=0), np.cov(values.T)
        mu = np.zeros((len(covs), values.shape[1])) if means is None else np.asarray(means, dtype=np.float64)
        scaled_means, scaled = [], []
        for mean, cov in zip(mu, covs):
            cov = np.asarray(cov, dtype=np.float64)
            if cov.shape != around.shape:
                raise DataError(f"a component has shape {cov.shape}, the images {around.shape[0]} features.")
            power = float(np.sum(cov * around) + mean @ around @ mean)
            if not power > 0:
                raise DataError("a component has no signal over these images.")
            scaled.append(cov / power)
            scaled_means.append(mean / power**0.5)
        weights = np.ones(len(covs)) if share is None else np.asarray(share, dtype=np.float64)
        if len(weights) != len(covs) or weights.min() < 0 or not weights.sum() > 0:
            raise ConfigError(f"{len(covs)} components need as many shares, not negative.")
        return cls(np.array(scaled_means), np.array(scaled), weights / weights.sum(), center)

    @classmethod
    def from_responses(
        cls,
        subjects: Sequence[tuple[Any, Any]],
        *,
        n_clusters: int = 8,
        projection: Any = None,
        shape: tuple[int, int, int] | None = None,
        seed: int = 0,
    ) -> PriorMixture:
        """Mixture from the responses of training subjects.

        A single Gaussian prior is fitted by expectation maximisation. It stands in the mixture blended with an
        isotropic one in several shares, for subjects who are less and less like those known. It also gives every voxel
        its weights, and these are clustered; where features come from maps, components are places in the map instead
        (`spatial`).

        Parameters
        ----------
        subjects : sequence of (features (n, feature), responses (n, voxel))
            Responses z-scored, without NaN.
        n_clusters : int
        projection, shape
            See `spatial`.
        seed : int
            Of the clusters.
        """
        from neuroenc.encoders.incontext._empirical_bayes import EmpiricalBayesRidge
        from neuroenc.encoders.incontext._prior import WeightPrior

        pairs = [(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)) for x, y in subjects]
        prior = WeightPrior.from_responses([x for x, _ in pairs], [y for _, y in pairs])
        coef = np.concatenate([EmpiricalBayesRidge(prior).fit(x, y).coef_ for x, y in pairs], axis=1)
        images = np.concatenate([x for x, _ in pairs])
        if projection is None:
            known = cls.clusters(images, coef, n_clusters=n_clusters, seed=seed)
        elif shape is None:
            raise ConfigError("a projection needs the shape (channel, y, x) of the maps that it came from.")
        else:
            known = cls.spatial(images, projection, shape, coef)
        return known.blended(images, prior)

    def blended(self, images: Any, prior: WeightPrior) -> PriorMixture:
        """The mixture, with a Gaussian prior and its blends with an isotropic one added as half of it.

        The prior's distribution of scales and noise variances becomes that of the mixture.
        """
        values = np.asarray(images, dtype=np.float64)
        around = np.cov(values.T)
        power = float(np.sum(prior.cov * around))
        isotropic = np.eye(len(around)) / np.trace(around)
        blends = [(1 - b) * prior.cov / power + b * isotropic for b in _BLENDS]
        means = np.concatenate([self.means, np.zeros((len(blends), self.n_features))])
        share = np.concatenate([self.share / 2, np.full(len(blends), 0.5 / len(blends))])
        built = PriorMixture.build(values, [*self.covs, *blends], list(means), share)
        if prior.hyper is None:
            return built
        mean, cov = prior.hyper
        shifted = np.array([mean[0] + np.log(power), mean[1]])
        return replace(built, level_mean=shifted, level_cov=np.array(cov))

    @classmethod
    def clusters(
        cls, images: Any, coef: Any, *, n_clusters: int = 8, shrinkage: float = 0.3, seed: int = 0
    ) -> PriorMixture:
        """Clusters of fitted voxels' weights ``coef`` (feature, voxel), and the whole of them.

        Voxels are scaled to unit signal variance and clustered by direction (k-means); a cluster's covariance is
        shrunk towards that of all voxels.
        """
        from sklearn.cluster import KMeans

        values = np.asarray(images, dtype=np.float64)
        around = np.cov(values.T)
        w = np.asarray(coef, dtype=np.float64).T
        w = w / np.sqrt(np.maximum(np.einsum("ve,ef,vf->v", w, around, w), 1e-12))[:, None]
        root = np.linalg.cholesky(around + 1e-9 * np.trace(around) / len(around) * np.eye(len(around)))
        n_clusters = max(1, min(n_clusters, len(w) // 10))
        label = KMeans(n_clusters, n_init=4, random_state=seed).fit_predict(w @ root)
        whole = w.T @ w / len(w)
        whole = 0.9 * whole + 0.1 * np.trace(whole) / len(whole) * np.eye(len(whole))
        covs: list[Floats] = []
        means: list[Floats] = []
        share: list[float] = []
        for k in range(n_clusters):
            part = w[label == k]
            mean = part.mean(axis=0)
            within = np.cov(part.T) if len(part) > 1 else np.zeros_like(whole)
            covs.append((1 - shrinkage) * within + shrinkage * whole)
            means.append(mean)
            share.append(float(len(part)))
        covs, means, share = [*covs, whole], [*means, 0 * means[0]], [*share, len(w) / 4]
        return cls.build(values, covs, means, share)

    @classmethod
    def spatial(
        cls,
        images: Any,
        projection: Any,
        shape: tuple[int, int, int],
        coef: Any,
        *,
        sizes: Sequence[float] = (0.7, 1.3),
        shrinkage: float = 0.2,
    ) -> PriorMixture:
        r"""Receptive fields anywhere in a map, with the channel preferences of known voxels.

        .. math:: C_k = P^\top (C_{chan} \otimes g_k g_k^\top) P

        Where voxels look differs between subjects by the placement of electrodes and slices; what they look for
        differs less. So each component is a Gaussian field :math:`g_k` at a place of the map, with the channel
        covariance of the known voxels' best rank-one (channel x place) weights.

        Parameters
        ----------
        images : array (n, feature)
            Reduced features.
        projection : array (channel * y * x, feature)
            From (standardised) maps to features.
        shape : (channel, y, x)
        coef : array (feature, voxel)
            Weights of known voxels.
        sizes : sequence of float
            Standard deviations of the fields, in cells of the map.
        shrinkage : float
            Share of an isotropic channel covariance, and of the mean over places in each component.
        """
        channels, height, width = shape
        project = np.asarray(projection, dtype=np.float64)
        if project.shape[0] != channels * height * width:
            raise DataError(f"projection has {project.shape[0]} rows; maps have {channels * height * width} values.")
        maps = (project @ np.asarray(coef, dtype=np.float64)).T.reshape(-1, channels, height * width)
        u, s, _ = np.linalg.svd(maps, full_matrices=False)
        first = u[:, :, 0] * np.sign(s[:, :1])
        channel = first.T @ first / len(first)
        channel = (1 - shrinkage) * channel + shrinkage * np.trace(channel) / channels * np.eye(channels)
        rows, columns = np.mgrid[:height, :width]
        split = project.reshape(channels, height * width, -1)
        covs = []
        for size in sizes:
            for y in range(height):
                for x in range(width):
                    field = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * size**2)).ravel()
                    narrow = np.einsum("cpe,p->ce", split, field / np.linalg.norm(field))
                    cov = narrow.T @ channel @ narrow
                    covs.append(cov / np.trace(cov))
        mean = np.mean(covs, axis=0)
        covs = [(1 - shrinkage / 2) * c + shrinkage / 2 * mean for c in covs]
        return cls.build(images, [*covs, mean])

    def _root(self, k: int) -> Floats:
        """Root of a component's covariance; decomposed once, for training draws from it at every step."""
        known: dict[int, Floats] = self.__dict__.setdefault("_roots", {})
        if k not in known:
            values, vectors = np.linalg.eigh(self.covs[k])
            known[k] = vectors * np.sqrt(np.maximum(values, 0))
        return known[k]

    def sample(self, n: int, seed: int = 0) -> tuple[Floats, Floats]:
        """Weights (feature, n) of unit signal variance on average, and intercepts (n,) that centre them."""
        rng = make_rng(seed)
        which = rng.choice(self.n_components, size=n, p=self.share)
        w = np.empty((n, self.n_features))
        for k in np.unique(which):
            rows = which == k
            w[rows] = self.means[k] + rng.standard_normal((int(rows.sum()), self.n_features)) @ self._root(int(k)).T
        return w.T, -w @ self.center
