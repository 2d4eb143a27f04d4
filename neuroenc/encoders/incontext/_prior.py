"""Gaussian priors over voxel weights, estimated from other subjects."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr

from neuroenc._core.checks import make_rng
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import hash_array
from neuroenc._core.provenance import provenance
from neuroenc._core.weights import Kind, read_folder, reading, write_folder
from neuroenc.encoders._labels import check_responses, features_matrix
from neuroenc.encoders.incontext._evidence import (
    Floats,
    Hierarchy,
    SubjectGram,
    covariance_root,
    fit_hierarchy,
    held_out_evidence,
    posterior_means,
    subject_gram,
)

_KIND = Kind("prior", "prior.json", "prior.safetensors", ("intercept_mean", "intercept_var", "n_voxels", "provenance"))

_SHRINKAGES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
# Choices take few folds and iterations: they compare settings, and nothing of theirs is kept.
_FOLDS, _ITERATIONS = 4, 10


def fraction(shrinkage: str | float) -> float:
    """A share of the isotropic covariance, checked."""
    if isinstance(shrinkage, str) or not 0 <= shrinkage <= 1:
        raise ConfigError(f"shrinkage={shrinkage!r} is not legal here; give a share from 0 to 1, or see the docstring.")
    return float(shrinkage)


def ledoit_wolf(centred: Floats) -> float:
    """Ledoit and Wolf's share for rows (voxel, feature) of mean zero."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    return float(ledoit_wolf_shrinkage(centred, assume_centered=True))


def pairs_of(X: Any, Y: Any) -> list[tuple[Floats, Floats]]:
    """Features and responses of every subject as float64, checked."""
    many = isinstance(X, Sequence) and len(X) > 0 and np.ndim(X[0]) >= 2
    pairs = []
    for x, y in zip(X, Y, strict=True) if many else [(X, Y)]:
        values = np.asarray(features_matrix(x), dtype=np.float64)
        checked = check_responses(x, y, values)[0]
        responses = np.asarray(features_matrix(checked), dtype=np.float64)
        if not (np.isfinite(values).all() and np.isfinite(responses).all()):
            bad = int((~np.isfinite(responses).all(axis=0)).sum())
            raise DataError(f"features or {bad} voxels hold NaN. Next step: leave those voxels out.")
        if len(values) < 3:
            raise DataError(f"{len(values)} stimuli say nothing about weights; at least 3 a subject.")
        still = np.flatnonzero(np.ptp(responses, axis=0) == 0)
        if still.size:
            raise DataError(
                f"{still.size} of {responses.shape[1]} voxels do not vary (first: column {still[0]}), so they have no "
                "weights to learn from. Next step: leave those voxels out."
            )
        pairs.append((values, responses))
    if len({x.shape[1] for x, _ in pairs}) > 1:
        raise DataError(f"subjects have {[x.shape[1] for x, _ in pairs]} features; they must be the same features.")
    if sum(y.shape[1] for _, y in pairs) < 2:
        raise DataError("a prior needs at least two voxels.")
    return pairs


def fit_em(
    pairs: list[tuple[Floats, Floats]],
    *,
    shrinkage: str | float,
    use_mean: str | bool,
    n_iterations: int,
    max_voxels: int | None,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of the prior, and what was chosen."""
    rng = make_rng(seed)
    subjects = [_some(subject_gram(x, y), max_voxels, rng) for x, y in pairs]
    few = [_some(s, None if max_voxels is None else max(2, max_voxels // 4), rng) for s in subjects]
    shares = _SHRINKAGES if shrinkage == "auto" else (fraction(shrinkage),)
    if use_mean not in ("auto", True, False):
        raise ConfigError(f"use_mean={use_mean!r} is not legal; 'auto', True or False.")
    means = (False, True) if use_mean == "auto" else (bool(use_mean),)
    share, mean = _choose(few, n_iterations, shares, means)
    found = fit_hierarchy(subjects, n_iterations=n_iterations, shrinkage=share, use_mean=mean)
    offsets = np.concatenate([s.mean_y - s.mean_x @ posterior_means(s, found) for s in subjects])
    fields = prior_fields(found) | {
        "intercept_mean": float(offsets.mean()),
        "intercept_var": float(offsets.var()),
        "n_voxels": len(offsets),
    }
    chosen = {"shrinkage": share, "use_mean": mean, "log_evidence": found.evidence[-1]}
    return fields, chosen


def prior_fields(found: Hierarchy) -> dict[str, Any]:
    """What a fitted hierarchy says of a `WeightPrior`."""
    centre, spread = found.hyper
    noise = np.exp(centre[1] + np.sqrt(spread[1, 1]) * np.array([-1.645, 0.0, 1.645]))
    levels = {"noise_variance": noise, "hyper_mean": centre, "hyper_cov": spread}
    return {"mean": found.mean, "cov": found.cov, **levels}


def _some(subject: SubjectGram, most: int | None, rng: np.random.Generator) -> SubjectGram:
    n = subject.cross.shape[1]
    return subject if most is None or n <= most else subject.take(np.sort(rng.choice(n, most, replace=False)))


def _choose(
    subjects: list[SubjectGram], n_iterations: int, shares: Sequence[float], means: Sequence[bool]
) -> tuple[float, bool]:
    """Share of the isotropic covariance, and whether there is a mean, that make left-out voxels likeliest."""
    if len(shares) == len(means) == 1:
        return shares[0], means[0]
    folds: list[tuple[list[SubjectGram], list[SubjectGram]]]
    if len(subjects) > 1:
        folds = [([s for s in subjects if s is not left], [left]) for left in subjects[:_FOLDS]]
    else:
        voxels = np.random.default_rng(0).permutation(subjects[0].cross.shape[1])
        parts = [np.sort(p) for p in np.array_split(voxels, min(_FOLDS, len(voxels)))]
        folds = [([subjects[0].take(np.setdiff1d(voxels, p))], [subjects[0].take(p)]) for p in parts]

    def likelihood(share: float, mean: bool) -> float:
        few = min(n_iterations, _ITERATIONS)
        found = [held_out_evidence(a, b, n_iterations=few, shrinkage=share, use_mean=mean) for a, b in folds]
        return float(np.mean(found))

    scores = {share: likelihood(share, means[-1]) for share in shares}
    best = max(scores, key=lambda k: scores[k])
    if len(means) == 1 or scores[best] >= likelihood(best, means[0]):
        return best, means[-1]
    return best, means[0]


@dataclass(frozen=True, eq=False)
class WeightPrior:
    r"""Gaussian prior over voxel weights, :math:`w \sim N(\mu, \tau_v C)`, :math:`b \sim N(\mu_b, \sigma_b^2)`.

    Parameters
    ----------
    mean : array (feature,)
        In response units per feature unit.
    cov : array (feature, feature)
        Symmetric, no negative eigenvalues.
    intercept_mean, intercept_var : float
    noise_variance : array (3,)
        5, 50 and 95 % quantiles over voxels of the noise variance of one response; NaN if unknown.
    hyper_mean, hyper_cov : arrays (2,) and (2, 2), optional
        Of (log scale :math:`\tau_v`, log noise variance) over voxels; None if unknown.
    n_voxels : int
        That the prior was made from; 0 for none.
    provenance : str
        JSON.

    Examples
    --------
    >>> import numpy as np
    >>> prior = WeightPrior.from_weights(np.random.default_rng(0).standard_normal((4, 5000)), shrinkage=0.0)
    >>> prior.n_features, bool(np.abs(prior.cov - np.eye(4)).max() < 0.1)
    (4, True)
    """

    mean: Floats
    cov: Floats
    intercept_mean: float = 0.0
    intercept_var: float = 1.0
    noise_variance: Floats = field(default_factory=lambda: np.full(3, np.nan))
    n_voxels: int = 0
    hyper_mean: Floats | None = None
    hyper_cov: Floats | None = None
    provenance: str = "{}"

    def __post_init__(self) -> None:
        for name in ("mean", "cov", "noise_variance", "hyper_mean", "hyper_cov"):
            value = getattr(self, name)
            if value is not None:
                array = np.array(value, dtype=np.float64)
                array.setflags(write=False)
                object.__setattr__(self, name, array)
        p = self.mean.size
        if self.mean.ndim != 1 or self.cov.shape != (p, p):
            raise DataError(f"mean has shape {self.mean.shape} and cov {self.cov.shape}; expected (p,) and (p, p).")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.cov).all() and np.allclose(self.cov, self.cov.T)):
            raise DataError("mean and cov must be finite, and cov symmetric.")
        least, most = np.linalg.eigvalsh(self.cov)[[0, -1]]
        if most <= 0 or least < -1e-8 * most:
            raise DataError(f"cov has eigenvalues from {least:.3g} to {most:.3g}; a covariance has none below 0.")
        if (self.hyper_mean is None) != (self.hyper_cov is None):
            raise DataError("hyper_mean and hyper_cov are given together or not at all.")

    def __repr__(self) -> str:
        known = "" if self.hyper_mean is None else ", scales and noise variances known"
        return f"WeightPrior({self.n_features} features, from {self.n_voxels} voxels{known})"

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.mean)

    @property
    def hyper(self) -> tuple[Floats, Floats] | None:
        """Mean and covariance of (log scale, log noise variance), or None."""
        if self.hyper_mean is None or self.hyper_cov is None:
            return None
        return self.hyper_mean, self.hyper_cov

    @classmethod
    def isotropic(cls, n_features: int, scale: float = 1.0) -> Self:
        """Independent weights of variance ``scale``: what ridge assumes.

        Examples
        --------
        >>> WeightPrior.isotropic(2, 0.5).cov
        array([[0.5, 0. ],
               [0. , 0.5]])
        """
        if n_features < 1 or not scale > 0:
            raise ConfigError(f"n_features={n_features} and scale={scale} must be positive.")
        return cls(np.zeros(n_features), np.eye(n_features) * scale, provenance=provenance(prior="isotropic"))

    @classmethod
    def from_weights(
        cls, coef: Any, intercept: Any = None, *, shrinkage: str | float = "ledoit-wolf", use_mean: bool = True
    ) -> Self:
        """Mean and covariance over voxels of weights that were fitted elsewhere.

        Parameters
        ----------
        coef : array (feature, voxel)
            Voxels that hold NaN are left out.
        intercept : array (voxel,), optional
        shrinkage : "ledoit-wolf" or float in [0, 1]
            Share of an isotropic covariance of equal trace.
        use_mean : bool
            False takes the mean weight as zero, and second moments about it.

        Notes
        -----
        Ridge weights are shrunk and noisy: their covariance is not that of the true weights, see `from_responses`.
        """
        weights = np.asarray(coef.values if isinstance(coef, xr.DataArray) else coef, dtype=np.float64)
        if weights.ndim != 2:
            raise DataError(f"coef has shape {weights.shape}; expected (feature, voxel).")
        finite = np.asarray(np.isfinite(weights).all(axis=0))
        kept = weights[:, finite]
        if kept.shape[1] < 2:
            raise DataError(f"{kept.shape[1]} of {len(finite)} voxels have finite weights; a covariance needs two.")
        mean = kept.mean(axis=1) if use_mean else np.zeros(len(kept))
        centred = (kept - mean[:, None]).T
        p = len(mean)
        share = ledoit_wolf(centred) if shrinkage == "ledoit-wolf" else fraction(shrinkage)
        cov = centred.T @ centred / len(centred)
        cov = (1 - share) * cov + share * np.trace(cov) / p * np.eye(p)
        offsets: Floats = np.zeros(1) if intercept is None else np.asarray(intercept, dtype=np.float64)[finite]
        return cls(
            mean,
            cov,
            float(offsets.mean()),
            float(offsets.var()) if len(offsets) > 1 else 1.0,
            n_voxels=len(centred),
            provenance=provenance(prior="from_weights", shrinkage=share, use_mean=use_mean, coef=hash_array(weights)),
        )

    @classmethod
    def from_responses(
        cls,
        X: Any,
        Y: Any,
        *,
        shrinkage: str | float = "auto",
        use_mean: str | bool = "auto",
        n_iterations: int = 30,
        max_voxels: int | None = 2000,
        seed: int = 0,
    ) -> Self:
        r"""Prior from the responses of other subjects' voxels.

        Parameters
        ----------
        X : array (n, feature), or a list of one per subject
            Features of the same space as the new subject's.
        Y : array (n, voxel), or a list of one per subject
            Responses without NaN, in the units of the new subject's (z-scored).
        shrinkage : "auto" or float in [0, 1]
            Share of an isotropic covariance of equal trace. ``"auto"``: the share under which held-out subjects (with
            one subject, quarters of its voxels) are most likely.
        use_mean : "auto" or bool
            Whether the mean weight is free, or zero. ``"auto"`` decides as shrinkage does. The
            scale of a voxel multiplies the covariance only, so that with a mean even a silent voxel is expected to
            answer a little.
        n_iterations : int
            Of EM, at most.
        max_voxels : int, optional
            Voxels a subject, drawn at random; the choices of ``"auto"`` take a quarter of them.
        seed : int
            Of that draw.

        Notes
        -----
        :math:`y_v \sim N(X \mu + b_v, \tau_v X C X^T + \sigma_v^2 I)` with free :math:`b_v`, and Gaussian
        :math:`(\log \tau_v, \log \sigma_v^2)`, integrated on a grid. The E-step is closed form; an iteration costs one
        eigendecomposition (feature, feature) a subject. ``intercept_mean`` and ``intercept_var`` are those of
        :math:`\bar y_v - \bar x \cdot \hat w_v`.

        Raises
        ------
        DataError
            NaN responses, subjects with different features, fewer than two voxels.

        Lindley & Smith (1972), J. R. Stat. Soc. B 34(1); Dempster, Laird & Rubin (1977), J. R. Stat. Soc. B 39(1).

        Examples
        --------
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((200, 3))
        >>> W = rng.standard_normal((3, 300)) * [[2.0], [1.0], [0.1]]
        >>> prior = WeightPrior.from_responses(X, X @ W + rng.standard_normal((200, 300)), shrinkage=0.0)
        >>> sd = np.sqrt(np.diag(prior.cov))
        >>> bool(15 < sd[0] / sd[2] < 25)
        True
        """
        pairs = pairs_of(X, Y)
        settings: dict[str, Any] = {"n_iterations": n_iterations, "max_voxels": max_voxels, "seed": seed}
        parts, chosen = fit_em(pairs, shrinkage=shrinkage, use_mean=use_mean, **settings)
        digest = hash_array(*[a for pair in pairs for a in pair])
        record = provenance(prior="from_responses", data=digest, **chosen, **settings)
        return cls(**parts, provenance=record)

    def toward_isotropic(self, share: float) -> Self:
        """The prior with ``share`` of an isotropic covariance of equal trace, and as much less of its mean.

        >>> WeightPrior([1.0, 0.0], [[2.0, 0.0], [0.0, 0.0]]).toward_isotropic(0.5).cov.tolist()
        [[1.5, 0.0], [0.0, 0.5]]
        """
        share = fraction(share)
        flat = np.trace(self.cov) / self.n_features * np.eye(self.n_features)
        return replace(self, mean=(1 - share) * self.mean, cov=(1 - share) * self.cov + share * flat)

    def sample(self, n: int, seed: int = 0) -> tuple[Floats, Floats]:
        """Weights (feature, n) and intercepts (n,) of simulated voxels.

        Where the distribution of scales is known, each voxel draws its scale from it.

        Examples
        --------
        >>> coef, intercept = WeightPrior.isotropic(3).sample(5, seed=1)
        >>> coef.shape, intercept.shape
        ((3, 5), (5,))
        """
        rng = make_rng(seed)
        white = rng.standard_normal((self.n_features, n))
        offsets = self.intercept_mean + np.sqrt(self.intercept_var) * rng.standard_normal(n)
        scale = np.ones(n)
        if self.hyper is not None:
            scale = np.exp(rng.multivariate_normal(*self.hyper, size=n)[:, 0])
        return self.mean[:, None] + covariance_root(self.cov) @ white * np.sqrt(scale), offsets

    def to_parts(self) -> tuple[dict[str, Floats], dict[str, Any]]:
        """Arrays, and the rest as JSON holds it."""
        arrays = {"mean": self.mean, "cov": self.cov, "noise_variance": self.noise_variance}
        if self.hyper_mean is not None and self.hyper_cov is not None:
            arrays |= {"hyper_mean": self.hyper_mean, "hyper_cov": self.hyper_cov}
        rest = ("intercept_mean", "intercept_var", "n_voxels", "provenance")
        return arrays, {name: getattr(self, name) for name in rest}

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
            The folder holds no prior, or a file of it is damaged or was changed.
        """
        record, arrays = read_folder(path, _KIND, "numpy")
        with reading(path, "prior"):
            return cls(**dict[str, Any](arrays), **{k: record[k] for k in _KIND.needed})
