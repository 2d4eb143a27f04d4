"""How a prior is made from other subjects' responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuroenc._core.checks import make_rng
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders._inputs import check_responses
from neuroenc.encoders._labels import features_matrix
from neuroenc.encoders._ridge import RidgeEncoder
from neuroenc.encoders.incontext._evidence import Floats
from neuroenc.encoders.incontext._hierarchical import (
    SubjectGram,
    fit_hierarchy,
    held_out_evidence,
    posterior_means,
    subject_gram,
)

__all__ = ["QUANTILES", "fit_em", "fraction", "ledoit_wolf", "pairs_of", "ridge_weights"]

QUANTILES = (0.05, 0.5, 0.95)
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
        pairs.append((values, responses))
    if len({x.shape[1] for x, _ in pairs}) > 1:
        raise DataError(f"subjects have {[x.shape[1] for x, _ in pairs]} features; they must be the same features.")
    if sum(y.shape[1] for _, y in pairs) < 2:
        raise DataError("a prior needs at least two voxels.")
    return pairs


def ridge_weights(pairs: list[tuple[Floats, Floats]]) -> dict[str, Floats]:
    """Weights, intercepts and residual variances of cross-validated ridge, all subjects' voxels side by side."""
    fits = [RidgeEncoder(n_jobs=1).fit(x, y) for x, y in pairs]
    return {
        "coef": np.concatenate([f.coef_ for f in fits], axis=1),
        "intercept": np.concatenate([f.intercept_ for f in fits]),
        "noise_variance": np.concatenate([(y - f.predict(x)).var(axis=0) for f, (x, y) in zip(fits, pairs)]),
    }


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
    centre, spread = found.hyper
    offsets = np.concatenate([s.mean_y - s.mean_x @ posterior_means(s, found) for s in subjects])
    fields = {
        "mean": found.mean,
        "cov": found.cov,
        "intercept_mean": float(offsets.mean()),
        "intercept_var": float(offsets.var()),
        "noise_variance": np.exp(centre[1] + np.sqrt(spread[1, 1]) * np.array([-1.645, 0.0, 1.645])),
        "n_voxels": len(offsets),
        "hyper_mean": centre,
        "hyper_cov": spread,
    }
    chosen = {"shrinkage": share, "use_mean": mean, "log_evidence": found.evidence[-1]}
    return fields, chosen


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
