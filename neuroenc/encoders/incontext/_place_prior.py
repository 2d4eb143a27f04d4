"""Priors over voxel weights whose mean depends on cortical place."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from scipy.spatial import cKDTree

from neuroenc._core.checks import make_rng
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.provenance import provenance
from neuroenc._core.weights import Kind, read_folder, reading, write_folder
from neuroenc.encoders.incontext._evidence import (
    Floats,
    Hierarchy,
    SubjectGram,
    fit_hierarchy,
    posterior_means,
    subject_gram,
)
from neuroenc.encoders.incontext._prior import WeightPrior, pairs_of, prior_fields

_KIND = Kind(
    "prior by place", "prior.json", "prior.safetensors", ("priors", "sides", "gain", "k", "bandwidth", "provenance")
)

#: Shares of the other subjects' weights at a voxel's place that its prior mean is made of.
GAINS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)


@dataclass(frozen=True)
class PlacedWeights:
    """Weights (feature, voxel) of several subjects' voxels, and where the voxels lie, one entry a subject.

    ``places`` (voxel, 3) in millimetres of one space; ``sides`` (voxel,) hemispheres, or any labels across which voxels
    are not averaged.
    """

    weights: Sequence[Floats]
    places: Sequence[Floats]
    sides: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        if not len(self.weights) == len(self.places) == len(self.sides):
            raise DataError(
                f"{len(self.weights)} subjects' weights, {len(self.places)} sets of positions and {len(self.sides)} of "
                "hemispheres; one a subject."
            )
        for weights, place, side in zip(self.weights, self.places, self.sides):
            n = weights.shape[1]
            if np.shape(place) != (n, 3) or len(side) != n:
                raise DataError(f"a subject has {n} voxels, positions of shape {np.shape(place)}; expected ({n}, 3).")
            if not np.isfinite(place).all():
                raise DataError("positions must be finite.")

    def without(self, number: int) -> PlacedWeights:
        """All subjects but one."""
        kept = [n for n in range(len(self.weights)) if n != number]
        return PlacedWeights(*([part[n] for n in kept] for part in (self.weights, self.places, self.sides)))

    def at(
        self, target: Floats, side: np.ndarray, *, k: int, bandwidth: float, max_distance: float = np.inf
    ) -> tuple[Floats, np.ndarray]:
        """Gaussian average of the ``k`` nearest voxels of each subject, and how many voxels went in, (voxel,).

        The mean over the subjects that have a voxel within ``max_distance``; 0 where none has.

        >>> other = PlacedWeights([np.array([[1.0, 3.0]])], [np.eye(3)[:2]], [np.array(["L", "L"])])
        >>> other.at(np.zeros((1, 3)), np.array(["L"]), k=2, bandwidth=5.0)[0]
        array([[2.]])
        """
        mean, n_subjects = np.zeros((len(self.weights[0]), len(target))), np.zeros(len(target))
        n_neighbours = np.zeros(len(target), dtype=int)
        for weights, place, own in zip(self.weights, self.places, self.sides):
            for name in np.unique(side):
                members, voxels = np.flatnonzero(own == name), np.flatnonzero(side == name)
                if not len(members):
                    continue
                few = min(int(k), len(members))
                distance, nearest = cKDTree(place[members]).query(
                    target[voxels], few, distance_upper_bound=max_distance
                )
                distance, nearest = distance.reshape(len(voxels), few), nearest.reshape(len(voxels), few)
                near = np.isfinite(distance)
                some = near.any(axis=1)
                # Relative to the nearest, so that far neighbours do not underflow to no neighbour at all.
                least = np.where(some, distance.min(axis=1), 0.0)[:, None]
                kernel = np.exp((least**2 - np.where(near, distance, 0.0) ** 2) / (2 * bandwidth**2)) * near
                kernel /= np.maximum(kernel.sum(axis=1, keepdims=True), np.finfo(float).tiny)
                for rank in range(few):
                    column = members[np.where(near[:, rank], nearest[:, rank], 0)]
                    mean[:, voxels] += weights[:, column] * kernel[:, rank]
                n_subjects[voxels] += some
                n_neighbours[voxels] += near.sum(axis=1)
        return mean / np.maximum(n_subjects, 1), n_neighbours


@dataclass(frozen=True, eq=False)
class PlacePrior:
    r"""Gaussian prior over voxel weights whose mean depends on cortical place.

    .. math:: w_v \sim N(g\, \bar w(p_v) + \mu_g,\; \tau_v C_g)

    where :math:`\bar w(p)` averages other subjects' weights around p, and the gain g is one for all voxels. With g = 0
    it is the `WeightPrior` of the whole cortex. `EmpiricalBayesRidge` chooses the gain by the evidence of the new
    subject's support, and takes ``gain`` where there is none.

    Parameters
    ----------
    priors : mapping of gain to WeightPrior
        What is left of the weights once ``gain`` times the mean at their place is taken off; 0 among the gains.
    others : PlacedWeights
        The other subjects' weights and places.
    gain : float
        The one nearest to the least-squares slope of responses on what places predict, each other subject by the rest:
        what is expected of a new subject before its first trial.
    k, bandwidth
        Nearest voxels a subject, and the standard deviation of the Gaussian in millimetres.

    References
    ----------
    Lindley & Smith (1972), J. R. Stat. Soc. B 34(1).

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders.incontext import EmpiricalBayesRidge
    >>> rng = np.random.default_rng(0)
    >>> places = [10 * rng.standard_normal((80, 3)) for _ in range(3)]
    >>> maps, X = rng.standard_normal((3, 6)) / 10, rng.standard_normal((60, 6))
    >>> Y = [X @ (p @ maps).T + rng.standard_normal((60, 80)) for p in places]
    >>> prior = PlacePrior.from_responses([X] * 2, Y[:2], places[:2])
    >>> encoder = EmpiricalBayesRidge(prior, positions=places[2]).fit(X[:0], Y[2][:0])
    >>> bool(np.corrcoef(encoder.coef_.ravel(), (places[2] @ maps).T.ravel())[0, 1] > 0.8)
    True
    """

    priors: dict[float, WeightPrior]
    others: PlacedWeights
    gain: float
    k: int = 10
    bandwidth: float = 5.0
    provenance: str = "{}"

    def __repr__(self) -> str:
        return f"PlacePrior({self.n_features} features, {len(self.others.weights)} subjects, gain {self.gain:g})"

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.priors[0.0].n_features

    def at(self, positions: Any, hemispheres: Any = None) -> Floats:
        """Mean weights (feature, voxel) of the other subjects at ``positions`` (voxel, 3)."""
        places = np.asarray(positions, dtype=np.float64)
        if places.ndim != 2 or places.shape[1] != 3 or not np.isfinite(places).all():
            raise DataError(f"positions have shape {places.shape}; expected (voxel, 3) finite millimetres.")
        known = np.unique(np.concatenate(self.others.sides))
        if hemispheres is None:
            if len(known) > 1:
                raise ConfigError(f"this prior keeps {known.tolist()} apart. Next step: hemispheres= of the voxels.")
            sides = np.full(len(places), known[0])
        else:
            sides = np.asarray(hemispheres)
        return self.others.at(places, sides, k=self.k, bandwidth=self.bandwidth)[0]

    def to_parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays, and the rest as JSON holds it."""
        arrays: dict[str, np.ndarray] = {}
        rest: dict[str, Any] = {"gain": self.gain, "k": self.k, "bandwidth": self.bandwidth}
        rest |= {"provenance": self.provenance, "priors": {}, "sides": [side.tolist() for side in self.others.sides]}
        for gain, prior in self.priors.items():
            parts, rest["priors"][str(gain)] = prior.to_parts()
            arrays |= {f"{gain}:{name}": value for name, value in parts.items()}
        for number, (weights, places) in enumerate(zip(self.others.weights, self.others.places)):
            arrays |= {f"weights:{number}": weights, f"places:{number}": places}
        return arrays, rest

    @classmethod
    def from_parts(cls, arrays: Mapping[str, np.ndarray], rest: Mapping[str, Any]) -> Self:
        """What `to_parts` gave."""
        priors = {}
        for gain, plain in rest["priors"].items():
            parts: dict[str, Any] = {
                name.removeprefix(f"{gain}:"): value for name, value in arrays.items() if name.startswith(f"{gain}:")
            }
            priors[float(gain)] = WeightPrior(**parts, **plain)
        numbers = range(len(rest["sides"]))
        others = PlacedWeights(
            [arrays[f"weights:{n}"] for n in numbers],
            [arrays[f"places:{n}"] for n in numbers],
            [np.array(side) for side in rest["sides"]],
        )
        return cls(priors, others, rest["gain"], rest["k"], rest["bandwidth"], rest["provenance"])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write ``prior.safetensors`` and ``prior.json`` into the folder ``path``."""
        arrays, rest = self.to_parts()
        return write_folder(path, _KIND, rest, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            The folder holds no prior by place, or a file of it is damaged or was changed.
        """
        record, arrays = read_folder(path, _KIND, "numpy")
        with reading(path, "prior"):
            return cls.from_parts(arrays, record)

    @classmethod
    def from_responses(
        cls,
        X: Any,
        Y: Any,
        positions: Sequence[Any],
        hemispheres: Sequence[Any] | None = None,
        *,
        k: int = 10,
        bandwidth: float = 5.0,
        gains: Sequence[float] = GAINS,
        shrinkage: str | float = "auto",
        n_iterations: int = 30,
        max_voxels: int | None = 2000,
        seed: int = 0,
    ) -> Self:
        """Prior from at least two subjects' responses and places.

        Parameters
        ----------
        X, Y : lists of arrays (n, feature) and (n, voxel), one per subject
            As `WeightPrior.from_responses` takes them.
        positions : sequence of arrays (voxel, 3)
            Millimetres in one space: MNI, or `surface_positions`.
        hemispheres : sequence of arrays (voxel,), optional
            Voxels of different labels are not averaged.
        k, bandwidth
            See the class.
        gains : sequence of float
            That are tried; 0 is added.
        shrinkage, n_iterations, max_voxels, seed
            As in `WeightPrior.from_responses`.

        Raises
        ------
        DataError
            Fewer than two subjects, or positions that do not fit their voxels.
        """
        pairs = pairs_of(X, Y)
        if len(pairs) < 2:
            raise DataError("places need at least two subjects: one is predicted by the other. Next step: WeightPrior.")
        base = WeightPrior.from_responses(
            X, Y, shrinkage=shrinkage, n_iterations=n_iterations, max_voxels=max_voxels, seed=seed
        )
        grams = [subject_gram(x, y) for x, y in pairs]
        assert base.hyper is not None
        found = Hierarchy(base.mean, base.cov, base.hyper, [])
        places = [np.asarray(p, dtype=np.float64) for p in positions]
        sides = [np.zeros(len(p)) for p in places] if hemispheres is None else [np.asarray(h) for h in hemispheres]
        others = PlacedWeights([posterior_means(g, found) for g in grams], places, sides)
        rng = make_rng(seed)
        share = float(json.loads(base.provenance)["shrinkage"])
        kept = []
        for number, gram in enumerate(grams):
            n = gram.cross.shape[1]
            some = np.arange(n) if max_voxels is None or n <= max_voxels else np.sort(rng.choice(n, max_voxels, False))
            mean = others.without(number).at(places[number][some], sides[number][some], k=k, bandwidth=bandwidth)[0]
            kept.append((gram.take(some), mean))
        priors = {}
        for gain in sorted({0.0, *map(float, gains)}):
            shifted = [_shifted(gram, gain * mean) for gram, mean in kept]
            fitted = fit_hierarchy(shifted, n_iterations=n_iterations, shrinkage=share, use_mean=True)
            priors[gain] = base if gain == 0 else replace(base, **prior_fields(fitted))
        # Least squares of all responses on what the places predict.
        ours = sum(float((mean * gram.cross).sum()) for gram, mean in kept)
        theirs = sum(float((mean * (gram.gram @ mean)).sum()) for gram, mean in kept)
        gain = min(priors, key=lambda g: abs(g - ours / max(theirs, np.finfo(float).tiny)))
        record = provenance(prior="place", k=k, bandwidth=bandwidth, gain=gain, base=base.provenance)
        return cls(priors, others, gain, k, bandwidth, record)


def _shifted(gram: SubjectGram, mean: Floats) -> SubjectGram:
    """The same subject once ``X mean`` (feature, voxel) is taken off its responses."""
    moved = gram.gram @ mean
    total = gram.total - (mean * (2 * gram.cross - moved)).sum(axis=0)
    return replace(gram, cross=gram.cross - moved, total=np.maximum(total, 1e-12 * gram.total))
