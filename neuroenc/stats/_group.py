"""Maps of a group of subjects: mean, t with corrected p, prevalence, overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import beta, binom

from neuroenc._core.checks import at_least, check_fraction, check_whole, one_of
from neuroenc._core.errors import DataError
from neuroenc.stats._blocks import Floats, as_floats, known_mean
from neuroenc.stats._labels import match_labels
from neuroenc.stats._permutation import fdr, sign_flip_test

if TYPE_CHECKING:
    import xarray as xr

#: What the maps are, for files and pages.
_MEANING = {
    "mean": "mean over subjects",
    "t": "mean over subjects, less chance, over its standard error",
    "n_subjects": "subjects that have the voxel",
    "p_value": "p of the mean, by sign flips, of one test",
    "p_fwe": "family-wise p of the mean, by the largest t",
    "q_value": "false discovery rate of the mean (Benjamini-Hochberg)",
    "tfce": "threshold-free cluster enhancement of t",
    "p_tfce": "family-wise p of the mean, by the largest enhanced t",
    "overlap": "subjects whose own q is at most alpha",
    "prevalence": "most likely share of the population with an effect",
    "prevalence_low": "lower limit of the prevalence",
    "prevalence_high": "upper limit of the prevalence",
    "p_prevalence": "p of the global null that no subject has an effect",
    "q_prevalence": "false discovery rate of the global null",
}


def prevalence(
    count: Any, n: Any, *, alpha: float = 0.05, power: float = 1.0, confidence: float = 0.95
) -> tuple[Floats, Floats, Floats, Floats]:
    r"""Posterior of the share of the population that has an effect, from the number of significant subjects.

    Every subject is tested at ``alpha``; one without the effect passes with that probability, one with it with
    probability ``power``, so that of n subjects

    .. math:: k \sim \mathrm{Binomial}(n, \theta), \qquad \theta = \alpha + (\beta - \alpha)\,\gamma

    pass. Under a uniform prior of the prevalence :math:`\gamma`, the posterior of :math:`\theta` is
    Beta(k + 1, n - k + 1) between :math:`\alpha` and :math:`\beta`. With ``power=1`` it is the prevalence of effects
    that a subject's data show, a lower bound of the prevalence of effects.

    Parameters
    ----------
    count : int or array
        Subjects that pass.
    n : int or array
        Subjects tested.
    alpha : float
        Level of the test in a single subject, not corrected over voxels.
    power : float
        Sensitivity :math:`\beta` of it, above ``alpha``.
    confidence : float
        Of the interval of highest posterior density.

    Returns
    -------
    estimate : array
        Posterior mode, :math:`(k / n - \alpha) / (\beta - \alpha)` within 0 and 1. NaN where n is 0, as the others.
    low, high : array
        Interval of highest posterior density.
    p : array
        Global null of no subject with an effect, :math:`P(K \ge k)` for :math:`K \sim \mathrm{Binomial}(n, \alpha)`.

    Raises
    ------
    DataError
        Counts outside 0 and n.
    ConfigError
        A level outside (0, 1), or power that is no more than it.

    References
    ----------
    Ince et al. (2021), eLife 10:e62461. Donhauser, Florin & Baillet (2018), PLoS Comput. Biol. 14:e1005990.

    Examples
    --------
    >>> estimate, low, high, p = prevalence([0, 6, 8], 8)
    >>> estimate.round(2).tolist(), low.round(2).tolist(), high.round(2).tolist()
    ([0.0, 0.74, 1.0], [0.0, 0.4, 0.7], [0.28, 0.94, 1.0])
    """
    alpha, confidence = check_fraction("alpha", alpha), check_fraction("confidence", confidence)
    power = at_least("power", power, alpha, above=True)
    if power > 1:
        raise DataError(f"power={power:g}; a sensitivity is at most 1.")
    k, units = np.broadcast_arrays(as_floats(count, "count"), as_floats(n, "n"))
    if not ((k >= 0) & (k <= units) & (k % 1 == 0) & (units % 1 == 0)).all():
        raise DataError(
            f"count is {k.min():g} to {k.max():g} of n = {units.min():g} to {units.max():g}; legal are whole numbers "
            "of subjects, count from 0 to n."
        )
    out = np.full((4, k.size), np.nan)
    # Few pairs of numbers occur, however many voxels there are.
    pairs, which = np.unique(np.stack([k.ravel(), units.ravel()], axis=1), axis=0, return_inverse=True)
    for row, (passed, of) in enumerate(pairs):
        if of > 0:
            out[:, which.ravel() == row] = _posterior(passed, of, alpha, power, confidence)[:, None]
    estimate, low, high, p = out.reshape(4, *k.shape)
    return estimate, low, high, p


def _posterior(k: float, n: float, alpha: float, power: float, confidence: float) -> Floats:
    """Mode, interval of highest density, and p of the global null."""
    theta = beta(k + 1, n - k + 1)
    below, within = theta.cdf(alpha), theta.cdf(power) - theta.cdf(alpha)
    mode = float(np.clip(k / n, alpha, power))

    def at(share: float) -> float:
        return float(np.clip(theta.ppf(below + within * share), alpha, power))

    def excess(share: float) -> float:
        return float(theta.logpdf(at(share + confidence)) - theta.logpdf(at(share)))

    spare = 1.0 - confidence
    # The density has one mode: either both ends are equally dense, or the interval starts at a bound.
    with np.errstate(divide="ignore"):
        ends = excess(1e-9), excess(spare - 1e-9)
    low = 0.0 if ends[0] <= 0 else spare if ends[1] >= 0 else float(brentq(excess, 1e-9, spare - 1e-9))
    limits = (np.array([mode, at(low), at(low + confidence)]) - alpha) / (power - alpha)
    return np.append(limits, binom.sf(k - 1, n, alpha))


def group_map(
    values: Any,
    *,
    p: Any = None,
    edges: Any = None,
    chance: float = 0.0,
    alternative: str = "greater",
    alpha: float = 0.05,
    confidence: float = 0.95,
    min_subjects: int | None = None,
    n_permutations: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> xr.Dataset:
    r"""Map of a group: mean and t over subjects with corrected p, prevalence, and overlap of significant subjects.

    The mean and its tests say whether the **mean of the population** exceeds chance, which a few strong subjects can
    bring about; prevalence and overlap say **in how many** an effect is seen. Tests flip subjects' signs
    (`sign_flip_test`) and are corrected over voxels by the largest t, by the largest enhanced t (`tfce`) where
    ``edges`` tell which voxels are neighbours, and by the false discovery rate.

    Parameters
    ----------
    values : DataArray (subject, voxel) or array
        A score of each subject on the same vertices, such as r; NaN where a subject has none.
    p : DataArray or array like ``values``, optional
        p of each subject and voxel, not corrected, for prevalence and overlap.
    edges : int array (edge, 2), optional
        Neighbours among the voxels, from `mesh_edges`.
    chance : float
        Score without an effect.
    alternative : {"greater", "two-sided"}
    alpha : float
        Level of single subjects: of p for the prevalence, of q (`fdr` over the subject's voxels) for the overlap.
    confidence : float
        Of the interval of the prevalence.
    min_subjects : int, optional
        Voxels that fewer subjects have are NaN; by default all are needed.
    n_permutations, seed
        Of the sign flips; all patterns where they are no more.
    progress : bool

    Returns
    -------
    Dataset over ``voxel``
        ``mean, t, n_subjects``; ``p_value`` (one test), ``p_fwe`` (largest t), ``q_value`` (FDR); with ``edges``
        ``tfce, p_tfce`` (family-wise); with ``p`` ``overlap`` (subjects with q <= alpha), ``prevalence,
        prevalence_low, prevalence_high, p_prevalence, q_prevalence`` (global null, one test and FDR). Coordinates of
        voxels are those of ``values``.

    Raises
    ------
    DataError
        Fewer than two subjects, or labels that differ.

    References
    ----------
    Nichols & Holmes (2002), Human Brain Mapping 15:1. Smith & Nichols (2009), NeuroImage 44:83. Ince et al. (2021),
    eLife 10:e62461.

    Examples
    --------
    >>> import numpy as np
    >>> r = 0.1 * np.random.default_rng(0).standard_normal((8, 40))
    >>> r[:, :10] += 0.3                                     # the first ten of a row of voxels are predicted
    >>> row = np.stack([np.arange(39), np.arange(1, 40)], axis=1)
    >>> found = group_map(r, p=np.where(r > 0.16, 0.01, 0.5), edges=row)
    >>> (found.p_tfce.values <= 0.05).sum(), found.overlap.values[:3], found.prevalence.values[:3].round(2)
    (np.int64(10), array([8, 8, 7]), array([1.  , 1.  , 0.87]))
    """
    import xarray as xr

    one_of("alternative", alternative, ("greater", "two-sided"))
    alpha, confidence = check_fraction("alpha", alpha), check_fraction("confidence", confidence)
    x = as_floats(values, "values")
    if x.ndim != 2 or len(x) < 2:
        raise DataError(f"values have shape {x.shape}; legal is (subject, voxel) with at least 2 subjects.")
    known = np.isfinite(x)
    least = len(x) if min_subjects is None else check_whole("min_subjects", min_subjects, least=2)
    if not (known.sum(axis=0) >= least).any():
        raise DataError(
            f"none of {x.shape[1]} voxels is known in {least} subjects (at most in {known.sum(axis=0).max(initial=0)})."
            " Next step: a lower min_subjects, or maps on the same vertices."
        )
    enough = known.sum(axis=0) >= least
    how: dict[str, Any] = {"alternative": alternative, "min_subjects": least, "n_permutations": n_permutations}
    how |= {"seed": seed, "progress": progress}
    test = sign_flip_test(x - chance, **how)
    with np.errstate(invalid="ignore"):
        mean = np.where(enough, known_mean(np.where(known, x, np.nan), 0), np.nan)
    maps: dict[str, NDArray[Any]] = {"mean": mean, "t": test.statistic, "n_subjects": known.sum(axis=0)}
    maps |= {"p_value": test.p, "p_fwe": test.p_fwe, "q_value": fdr(test.p)}
    if edges is not None:
        enhanced = sign_flip_test(x - chance, statistic="tfce", edges=edges, **how)
        maps |= {"tfce": enhanced.statistic, "p_tfce": enhanced.p_fwe}
    if p is not None:
        single = as_floats(match_labels(values, p, ("values", "p")), "p")
        if single.shape != x.shape:
            raise DataError(f"p has shape {single.shape} and values {x.shape}; both are (subject, voxel).")
        maps |= _single_subjects(np.where(known, single, np.nan), enough, alpha, confidence)
    coords = {k: v for k, v in values.coords.items() if v.dims == ("voxel",)} if hasattr(values, "coords") else {}
    settings: dict[str, Any] = {
        "n_subjects": len(x),
        "n_permutations": test.n_permutations,
        "exhaustive": int(test.exhaustive),
    }
    settings |= {"alpha": alpha, "confidence": confidence, "chance": chance, "alternative": alternative, "seed": seed}
    labelled = {name: ("voxel", v, {"description": _MEANING[name]}) for name, v in maps.items()}
    return xr.Dataset(labelled, coords=coords, attrs=settings)


def _single_subjects(p: Floats, enough: NDArray[Any], alpha: float, confidence: float) -> dict[str, NDArray[Any]]:
    """Overlap and prevalence from every subject's p (subject, voxel)."""
    tested = np.isfinite(p).sum(axis=0)
    with np.errstate(invalid="ignore"):
        passed = (p <= alpha).sum(axis=0)
        overlap = (np.stack([fdr(own) for own in p]) <= alpha).sum(axis=0)
    shares = [np.where(enough, v, np.nan) for v in prevalence(passed, tested, alpha=alpha, confidence=confidence)]
    names = ("prevalence", "prevalence_low", "prevalence_high", "p_prevalence")
    return {"overlap": overlap, **dict(zip(names, shares, strict=True)), "q_prevalence": fdr(shares[-1])}
