"""Episodes: support and query trials of voxels, simulated from a prior over weights or drawn from real responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import hash_array, hash_json
from neuroenc.data import align
from neuroenc.data.simulate import Nuisances
from neuroenc.encoders._labels import check_space, feature_space, voxel_groups
from neuroenc.encoders.incontext._evidence import Floats


class Episode(NamedTuple):
    """Training episode: support and query trials of voxels that share their images.

    ``x`` (support, feature), ``y`` (voxel, support), ``xq`` (query, feature), ``yq`` (voxel, query), and where they are
    known the true ``weights`` (voxel, feature + 1), intercept last. NaN where a response is missing. ``group`` is the
    name that all of its voxels go by, for models with experts.
    """

    x: Tensor
    y: Tensor
    xq: Tensor
    yq: Tensor
    weights: Tensor | None = None
    group: str = ""

    def to(self, device: torch.device) -> Episode:
        """The episode on another device."""
        moved: Any = {k: v.to(device) for k, v in self._asdict().items() if isinstance(v, Tensor)}
        return self._replace(**moved)

    def digest(self) -> str:
        """Hash of its trials, and of its group's name where it has one."""
        parts = [np.asarray(t) for t in self if isinstance(t, Tensor)]
        return hash_array(*parts, *([self.group] if self.group else []))


class EpisodeSource(Protocol):
    """Base class of episode sources; draws depend on the random generator alone."""

    n_features: int

    def draw(self, rng: np.random.Generator, n_voxels: int, support: int, query: int) -> Episode:
        """An episode of ``n_voxels`` voxels."""
        ...


def source_digest(source: EpisodeSource) -> str:
    """Hash of all that a source draws from; of some of its episodes where it does not say (a source of one's own)."""
    if hasattr(source, "digest"):
        return str(source.digest())
    rngs = [np.random.default_rng([11, k]) for k in range(3)]
    episodes = [source.draw(rng, 4, 8, 8) for rng in rngs]
    return hash_json([episode.digest() for episode in episodes])


def _content(array: Any) -> str:
    """Hash of a matrix that may be a store on disk, a block of rows at a time."""
    array = array.values if hasattr(array, "values") else array
    parts = [hash_array(np.asarray(array[k : k + 4096])) for k in range(0, int(array.shape[0]), 4096)]
    return hash_json([list(map(int, array.shape)), parts])


def _rows(array: Any, rows: np.ndarray) -> np.ndarray:
    """Rows of numpy, memmap, zarr, h5py or labelled arrays, as float32; stores are read in ascending order."""
    if hasattr(array, "values"):
        array = array.values
    if isinstance(array, np.ndarray):
        return np.asarray(array[rows], dtype=np.float32)
    order = np.argsort(rows, kind="stable")
    found = array.oindex[rows[order]] if hasattr(array, "oindex") else array[rows[order]]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return np.asarray(found, dtype=np.float32)[back]


class SyntheticEpisodes:
    r"""Synthetic episodes: voxel weights drawn from a prior, on embeddings of real images.

    .. math:: y_t = \sqrt{\rho}\,\frac{w \cdot (x_t - \bar x)}{s_w} + \sqrt{1 - \rho}\,\epsilon_t, \qquad
              \rho \sim U(\rho_{\min}, \rho_{\max})

    with :math:`s_w` the standard deviation of :math:`w \cdot x` over the images: responses have unit variance, as
    z-scored ones do, and :math:`\rho` is the voxel's noise ceiling.

    Parameters
    ----------
    images : array (n, feature)
        Embeddings: numpy, memmap, or zarr.
    prior : WeightPrior, optional
        Or any object with ``sample(n, seed) -> (weights (feature, n), intercepts (n,))``, of which the directions are
        used; default isotropic.
    isotropic_share : float
        Share of voxels whose weights are isotropic all the same, so that unusual voxels are not unheard of.
    ceiling : (float, float)
        Range of :math:`\rho`.
    offset : float
        Standard deviation of an offset added to all responses of a voxel: a support set is not z-scored itself.
    nuisances : Nuisances, optional
        What spoils the support, whose trials are then in the order of time. Queries come after it, at the gain and the
        tuning of its last trial, with ordinary noise.
    vary : bool
        Each episode has an amount of each nuisance of its own, between none and ``nuisances``; see `Nuisances.draw`.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).standard_normal((100, 6), dtype=np.float32)
    >>> episode = SyntheticEpisodes(images).draw(np.random.default_rng(1), 4, support=20, query=10)
    >>> episode.y.shape, episode.weights.shape
    (torch.Size([4, 20]), torch.Size([4, 7]))
    """

    def __init__(
        self,
        images: Any,
        prior: Any = None,
        *,
        isotropic_share: float = 0.1,
        ceiling: tuple[float, float] = (0.05, 0.9),
        offset: float = 0.05,
        nuisances: Nuisances | None = None,
        vary: bool = False,
    ) -> None:
        if len(images.shape) != 2:
            raise DataError(f"images have shape {tuple(images.shape)}; expected embeddings (n, feature).")
        if not (0 <= ceiling[0] <= ceiling[1] <= 1) or not 0 <= isotropic_share <= 1:
            raise ConfigError(f"ceiling={ceiling} and isotropic_share={isotropic_share} must lie in [0, 1].")
        self.images, self.prior = images, prior
        self.isotropic_share, self.ceiling, self.offset = isotropic_share, ceiling, offset
        self.nuisances, self.vary = nuisances or Nuisances(), vary
        self.n_features, self.features = int(images.shape[1]), feature_space(images)
        width = getattr(prior, "n_features", self.n_features)
        if width != self.n_features:
            raise DataError(f"images have {self.n_features} features, and the prior was made for {width}.")
        # Moments of at most 20,000 images: enough for a scale.
        n = int(images.shape[0])
        some = _rows(images, np.linspace(0, n - 1, min(n, 20_000)).astype(int)).astype(np.float64)
        self._mean = some.mean(axis=0)
        self._cov = np.cov(some.T)

    def digest(self) -> str:
        """Hash of images, prior and settings."""
        held = {} if self.prior is None else {k: v for k, v in vars(self.prior).items() if isinstance(v, np.ndarray)}
        if self.prior is not None and not held:
            held = {"drawn": np.asarray(self.prior.sample(64, seed=7)[0])}
        prior = {k: hash_array(v) for k, v in held.items()}
        settings: list[Any] = [self.isotropic_share, list(self.ceiling), self.offset]
        settings += [self.nuisances.record] if self.nuisances.record else []
        settings += ["vary"] if self.vary else []
        return hash_json(["synthetic", _content(self.images), prior, settings])

    def draw(self, rng: np.random.Generator, n_voxels: int, support: int, query: int) -> Episode:
        """An episode; see `EpisodeSource`."""
        rows = _distinct(rng, self.images.shape[0], support + query, "images")
        x = _rows(self.images, rows)
        w = rng.standard_normal((n_voxels, self.n_features))
        if self.prior is not None:
            known = rng.random(n_voxels) >= self.isotropic_share
            if known.any():
                w[known] = self.prior.sample(int(known.sum()), seed=int(rng.integers(2**31)))[0].T
        rho = rng.uniform(*self.ceiling, n_voxels)
        scale = np.sqrt(np.einsum("ve,ef,vf->v", w, self._cov, w))
        w *= (np.sqrt(rho) / np.maximum(scale, 1e-12))[:, None]
        b = -w @ self._mean + self.offset * rng.standard_normal(n_voxels)
        noise = np.sqrt(1 - rho)[:, None] * rng.standard_normal((n_voxels, len(rows)))
        y = torch.as_tensor(w @ x.T + b[:, None] + noise, dtype=torch.float32)
        if self.nuisances.record:
            nuisances = self.nuisances.draw(rng) if self.vary else self.nuisances
            y, w, b = self._spoil(nuisances, rng, x.astype(np.float64), w, b, rho, noise, support)
        images = torch.as_tensor(x)
        weights = torch.as_tensor(np.concatenate([w, b[:, None]], axis=1), dtype=torch.float32)
        return Episode(images[:support], y[:, :support], images[support:], y[:, support:], weights)

    def _spoil(
        self,
        nuisances: Nuisances,
        rng: np.random.Generator,
        x: Floats,
        w: Floats,
        b: Floats,
        rho: Floats,
        noise: Floats,
        support: int,
    ) -> tuple[Tensor, Floats, Floats]:
        """Responses (voxel, trial) under the nuisances; weights and intercepts of a voxel as it answers at the end."""
        centred = x - self._mean
        # Tuning turns to that of another voxel, at the voxel's own amount of signal.
        other = np.roll(w / np.maximum(np.sqrt(rho), 1e-6)[:, None], 1, axis=0) * np.sqrt(rho)[:, None]
        unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
        alike = np.append(0.0, (unit[1:] * unit[:-1]).sum(axis=1))
        alike[support:] = 0.0
        time = np.append(np.linspace(0, 1, support), np.ones(len(x) - support))
        signal, truth = nuisances.signal(centred @ w.T, centred @ other.T, alike, time, rng)
        spoilt = nuisances.noise(np.sqrt(1 - rho), support, rng)[0]
        offset = b + w @ self._mean
        y = signal + offset + np.concatenate([spoilt, noise.T[support:]])
        # A voxel without a single response says nothing.
        silent = np.isnan(y[:support]).all(axis=0)
        y[:support, silent] = (signal + offset)[:support, silent]
        turned = np.cos(nuisances.turning) * w + np.sin(nuisances.turning) * other
        w = turned * truth["gain"][-1][:, None]
        return torch.as_tensor(y.T.copy(), dtype=torch.float32), w, offset - w @ self._mean


class ResponseEpisodes:
    """Episodes of measured voxels of real subjects.

    Parameters
    ----------
    subjects : sequence of (features (n, feature), responses (n, voxel))
        One pair a subject, or session: rows that belong together. numpy, memmap, zarr or labelled; responses
        z-scored, NaN where missing.
    groups : str or sequence, optional
        Groups of voxels, for models with experts; an episode then holds voxels of one of them, each as often. A
        coordinate of labelled responses, such as "roi"; or for every subject one name, or one a voxel.

    Raises
    ------
    ConfigError, DataError
        Shapes that do not fit together; no such coordinate.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> source = ResponseEpisodes([(rng.standard_normal((50, 6)), rng.standard_normal((50, 3)))])
    >>> source.draw(rng, 2, support=20, query=10).yq.shape
    torch.Size([2, 10])
    """

    def __init__(self, subjects: Sequence[tuple[Any, Any]], *, groups: Any = None) -> None:
        if not subjects:
            raise DataError("no subjects were given.")
        self.subjects = list(subjects)
        widths = {int(x.shape[1]) for x, _ in self.subjects}
        if len(widths) != 1:
            raise DataError(f"subjects' features have different widths: {sorted(widths)}.")
        self.n_features = widths.pop()
        self.features = next((space for x, _ in self.subjects if (space := feature_space(x))), {})
        for number, (x, y) in enumerate(self.subjects):
            if isinstance(x, xr.DataArray) and isinstance(y, xr.DataArray):
                align(x, y)
            check_space(self.features, x, "those of another subject")
            if x.shape[0] != y.shape[0] or len(y.shape) != 2:
                raise DataError(f"subject {number}: features {tuple(x.shape)}, responses {tuple(y.shape)}.")
        if isinstance(groups, str):
            groups = [voxel_groups(y, groups) for _, y in self.subjects]
        named = [np.asarray(g, dtype=str) for g in ([""] * len(self.subjects) if groups is None else groups)]
        shapes, wanted = [g.shape for g in named], [(int(y.shape[1]),) for _, y in self.subjects]
        if len(named) != len(wanted) or any(s not in ((), w) for s, w in zip(shapes, wanted)):
            raise DataError(f"groups have shapes {shapes}; expected one name, or one a voxel, of each of {wanted}.")
        self._named = [np.broadcast_to(g, n) for g, n in zip(named, wanted)]
        self.groups = tuple(dict.fromkeys(name for g in self._named for name in g.tolist()))

    def digest(self) -> str:
        """Hash of all features and responses, and of their groups."""
        held = [[_content(x), _content(y)] for x, y in self.subjects]
        groups = [] if self.groups == ("",) else [hash_array(*self._named)]
        return hash_json(["responses, balanced", held, *groups])

    @property
    def n_voxels(self) -> int:
        """Of all subjects together."""
        return sum(int(y.shape[1]) for _, y in self.subjects)

    def draw(self, rng: np.random.Generator, n_voxels: int, support: int, query: int) -> Episode:
        """An episode of one subject, each as often; smaller where the subject has fewer trials or voxels."""
        number = int(rng.integers(len(self.subjects)))
        x, y = self.subjects[number]
        wanted = min(support + query, x.shape[0])
        support = min(support, max(1, wanted - query))
        rows = _distinct(rng, x.shape[0], wanted, "trials")
        names = list(dict.fromkeys(self._named[number].tolist()))
        group = names[int(rng.integers(len(names))) if len(names) > 1 else 0]
        inside = np.flatnonzero(self._named[number] == group)
        columns = inside[np.sort(rng.choice(len(inside), size=min(n_voxels, len(inside)), replace=False))]
        block = torch.as_tensor(_rows(y, rows)[:, columns].T.copy())
        # A voxel without a single response in the support says nothing.
        seen = ~block[:, :support].isnan().all(1) & ~block[:, support:].isnan().all(1)
        if not seen.any():
            return self.draw(rng, n_voxels, support, query)
        block, images = block[seen], torch.as_tensor(_rows(x, rows))
        return Episode(images[:support], block[:, :support], images[support:], block[:, support:], None, group)


class MixedEpisodes:
    """Mixture of episode sources, each with its share.

    Parameters
    ----------
    sources : sequence of EpisodeSource
        Of the same width.
    shares : sequence of float
        Not negative; scaled to sum to 1.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).standard_normal((100, 6), dtype=np.float32)
    >>> both = MixedEpisodes([SyntheticEpisodes(images), SyntheticEpisodes(images, ceiling=(0.5, 0.9))], [0.3, 0.7])
    >>> both.n_features
    6
    """

    def __init__(self, sources: Sequence[EpisodeSource], shares: Sequence[float]) -> None:
        if len(sources) != len(shares) or not sources or min(shares) < 0 or sum(shares) <= 0:
            raise ConfigError(f"{len(sources)} sources need as many shares, not negative; found {list(shares)}.")
        if len({s.n_features for s in sources}) != 1:
            raise DataError(f"sources have different widths: {[s.n_features for s in sources]}.")
        self.sources, self.shares = list(sources), np.asarray(shares, dtype=float) / sum(shares)
        self.n_features = sources[0].n_features
        self.features = next((f for s in sources if (f := getattr(s, "features", {}))), {})

    def digest(self) -> str:
        """Hash of the sources' and their shares."""
        return hash_json(["mixed", [source_digest(s) for s in self.sources], self.shares.tolist()])

    def draw(self, rng: np.random.Generator, n_voxels: int, support: int, query: int) -> Episode:
        """An episode of one source."""
        source = self.sources[int(rng.choice(len(self.sources), p=self.shares))]
        return source.draw(rng, n_voxels, support, query)


@dataclass(frozen=True)
class SupportSizes:
    """Distribution of the support's size: ``uniform`` over whole numbers, or ``log`` of them."""

    low: int
    high: int
    kind: str = "uniform"

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high or self.kind not in ("uniform", "log"):
            raise ConfigError(
                f"support sizes {self.low}-{self.high} ({self.kind!r}); expected 1 <= low <= high and "
                "'uniform' or 'log'."
            )

    def draw(self, rng: np.random.Generator) -> int:
        """A size."""
        if self.kind == "uniform":
            return int(rng.integers(self.low, self.high + 1))
        return int(np.clip(np.exp(rng.uniform(np.log(self.low), np.log(self.high + 1))), self.low, self.high))


def _distinct(rng: np.random.Generator, n: int, wanted: int, what: str) -> np.ndarray:
    if wanted > n:
        raise DataError(f"an episode wants {wanted} {what}; there are {n}. Next step: a smaller support or query set.")
    # Without permuting millions of rows for a few hundred.
    if n > 20 * wanted:
        found = np.unique(rng.integers(0, n, size=2 * wanted))
        return rng.permutation(found)[:wanted] if len(found) >= wanted else rng.choice(n, wanted, replace=False)
    return rng.permutation(n)[:wanted]
