"""Comparison of RDMs, its noise ceiling, and tests over conditions and subjects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import kendalltau, rankdata

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc.stats._blocks import Floats
from neuroenc.stats._ceilings import SubjectCeiling
from neuroenc.stats._intervals import corrected_variance, expansion, pooled_expansion, standard_deviation
from neuroenc.stats._parallel import run
from neuroenc.stats._rdm import as_pairs, n_conditions, square_rdm
from neuroenc.stats._resampling import Summary, check_over

COMPARISONS = ("spearman", "pearson", "cosine", "kendall_tau_a", "kendall_tau_b", "rho_a")
_ALIASES = {"corr": "pearson", "spearmanr": "spearman", "rho-a": "rho_a", "kendall": "kendall_tau_b"}
_ALIASES |= {f"tau{dash}{kind}": f"kendall_tau_{kind}" for dash in "-_" for kind in "ab"}


def _method(method: str) -> str:
    return one_of("method", method, COMPARISONS, aliases=_ALIASES)


def _ready(values: Floats, method: str) -> Floats:
    """RDMs (n_rdms, n_pairs) turned so that the comparison is their inner product; 0 / 0 is NaN."""
    if method in ("spearman", "rho_a"):
        values = rankdata(values, axis=1)
    if method != "cosine":
        values = values - values.mean(axis=1, keepdims=True)
    if method == "rho_a":
        n = values.shape[1]
        # What the sum of squares would be without ties: rho_a is not raised by a model that ties many pairs.
        return values / np.sqrt((n**3 - n) / 12.0)
    norm = np.sqrt(np.einsum("ij,ij->i", values, values))
    norm[norm <= 1e-12 * np.sqrt(values.shape[1]) * np.abs(values).max(axis=1, initial=0.0)] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(values / norm[:, None])


def _tau(a: Floats, b: Floats, method: str) -> Floats:
    out = np.empty((len(a), len(b)))
    n = a.shape[1]
    pairs = n * (n - 1) / 2.0

    def tied(x: Floats) -> float:
        counts = np.unique(x, return_counts=True)[1].astype(np.float64)
        return float((counts * (counts - 1) / 2.0).sum())

    ties_a, ties_b = [tied(x) for x in a], [tied(x) for x in b]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            tau = float(kendalltau(x, y, method="asymptotic").statistic)
            if method == "kendall_tau_a":
                # (concordant - discordant) over all pairs, where tau-b leaves the tied ones out.
                scale = (pairs - ties_a[i]) * (pairs - ties_b[j])
                tau = 0.0 if scale == 0 else tau * np.sqrt(scale) / pairs
            out[i, j] = tau
    return out


def _compare(a: Floats, b: Floats, method: str) -> Floats:
    if method.startswith("kendall"):
        return _tau(a, b, method)
    return np.clip(_ready(a, method) @ _ready(b, method).T, -1.0, 1.0)


def _both(a: Any, b: Any, names: tuple[str, str] = ("a", "b")) -> tuple[Floats, Floats]:
    x, labels = as_pairs(a, names[0])
    y, _ = as_pairs(b, names[1], labels)
    if x.shape[1] != y.shape[1]:
        raise DataError(
            f"the RDMs have {n_conditions(x.shape[1])} and {n_conditions(y.shape[1])} conditions; "
            "both must hold the same ones in the same order."
        )
    return x, y


def _known(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    known = ~(np.isnan(x).any(axis=0) | np.isnan(y).any(axis=0))
    if known.sum() < 2:
        raise DataError(f"{int(known.sum())} pairs of conditions are known in all RDMs; a comparison needs two.")
    return x[:, known], y[:, known]


def compare_rdms(a: Any, b: Any, method: str = "spearman") -> Floats:
    r"""Similarity of every RDM in ``a`` with every RDM in ``b``.

    ``"spearman"``: rank correlation with mean ranks for ties. ``"kendall_tau_a"``: (concordant - discordant) / all
    pairs of pairs; with ``"rho_a"`` (its Spearman relative, much faster) the choice for models that predict ties,
    which the other rank correlations favour. ``"kendall_tau_b"`` leaves ties out. ``"pearson"`` for distances that
    are linear, ``"cosine"`` for those with a meaningful zero (crossnobis).

    Parameters
    ----------
    a, b : array (n_pairs,), (n_rdms, n_pairs), (n, n) or (n_rdms, n, n)
        RDMs of the same conditions in the same order; labelled squares (tables, or arrays with coordinates) are
        matched by their labels. A pair that is NaN in any of them is left out of all.
    method : {"spearman", "pearson", "cosine", "kendall_tau_a", "kendall_tau_b", "rho_a"}

    Returns
    -------
    array (n_a, n_b), float64
        NaN for an RDM without variance (tau-a and rho-a: 0).

    Raises
    ------
    ValueError
        Numbers of conditions that differ, an unknown method, fewer than two pairs.

    References
    ----------
    Nili et al. (2014), PLoS Comput. Biol. 10:e1003553 (tau-a). Schütt et al. (2023), eLife 12:e82566 (rho-a).

    Examples
    --------
    >>> compare_rdms([1.0, 2, 3, 4, 5, 6], [1.0, 3, 2, 4, 6, 5]).round(4)
    array([[0.8857]])
    """
    return _compare(*_known(*_both(a, b)), _method(method))


def _pool(rdms: Floats, method: str) -> Floats:
    """The RDM that fits the given ones best on average, under the comparison that is used."""
    if method == "cosine":
        rdms = rdms / np.sqrt((rdms**2).mean(axis=1, keepdims=True))
    elif method == "pearson":
        rdms = rdms - rdms.mean(axis=1, keepdims=True)
        rdms = rdms / rdms.std(axis=1, keepdims=True)
    else:
        rdms = rankdata(rdms, axis=1)
    return np.asarray(rdms.mean(axis=0))


def rdm_ceiling(rdms: Any, method: str = "spearman") -> SubjectCeiling:
    """Noise ceiling of model comparisons from the RDMs of several subjects.

    Lower bound: every subject against the pooled RDM of the others, which is a model that is estimated and so
    falls short of the truth. Upper bound: against the pooled RDM of all, which has seen that subject.

    RDMs are standardised, normalised or ranked before they are averaged, as the comparison needs, which makes the upper
    bound the largest value that any model reaches (rsatoolbox's rule). For the Kendall correlations averaged ranks are
    not exactly optimal: the bound is close, not strict.

    Parameters
    ----------
    rdms : array (n_subjects, n_pairs) or (n_subjects, n, n)
        Two subjects at least; with two sessions, average a subject's RDMs first.
    method : str
        As in `compare_rdms`.

    Returns
    -------
    SubjectCeiling
        In the unit of the comparison (a rank correlation is not a share of variance).

    Raises
    ------
    ValueError
        Fewer than two subjects, or what `compare_rdms` refuses.

    References
    ----------
    Nili et al. (2014), PLoS Comput. Biol. 10:e1003553.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> truth = rng.random(190)
    >>> ceiling = rdm_ceiling(truth + 0.3 * rng.standard_normal((5, 190)))
    >>> bool(0.5 < ceiling.lower < ceiling.upper < 1)
    True
    """
    method = _method(method)
    values, _ = as_pairs(rdms, "rdms")
    if len(values) < 2:
        raise DataError(f"got the RDM of {len(values)} subject; a ceiling over subjects needs at least 2.")
    values, _ = _known(values, values)
    every = _pool(values, method)[None]
    upper = _compare(values, every, method)[:, 0]
    rest = [_pool(np.delete(values, k, axis=0), method)[None] for k in range(len(values))]
    lower = np.array([_compare(values[k : k + 1], r, method)[0, 0] for k, r in enumerate(rest)])
    return SubjectCeiling(float(lower.mean()), float(upper.mean()), lower, upper, method)


def resample_rdms(
    models: Any, data: Any, over: str, method: str, n_bootstraps: int, seed: int, *, n_jobs: int, progress: bool
) -> Summary:
    """Mean comparison of every model over subjects, see `Resampler.rdms`."""
    method = _method(method)
    x, y = _both(models, data, ("models", "data"))
    over = check_over(over, len(y))
    n, m = n_conditions(x.shape[1]), len(y)
    rows, columns = np.triu_indices(n, 1)
    squares = square_rdm(np.concatenate([x, y]))
    whole = _compare(*_known(x, y), method)
    rng = np.random.default_rng(seed)

    def draws() -> Iterator[tuple[Any, Any]]:
        for _ in range(n_bootstraps):
            conditions = rng.integers(0, n, n) if over != "subjects" else np.arange(n)
            yield conditions, rng.integers(0, m, m) if over != "stimuli" else np.arange(m)

    def one(draw: tuple[Any, Any]) -> tuple[Floats, Floats]:
        """With the subjects that were drawn, and with all of them."""
        conditions, subjects = draw
        if over == "subjects":
            found = whole
        else:
            i, j = conditions[rows], conditions[columns]
            pairs = squares[:, i, j][:, i != j]
            found = _compare(*_known(pairs[: len(x)], pairs[len(x) :]), method)
        return found[:, subjects].mean(axis=1), found.mean(axis=1)

    drawn = list(run(one, draws(), n_jobs=n_jobs, progress=progress, total=n_bootstraps, desc="bootstrap"))
    samples = np.stack([d[0] for d in drawn])
    variance = standard_deviation(samples) ** 2
    n_units = m if over == "subjects" else n
    # Pairs of a stimulus with itself are left out, which makes resamples of n stimuli vary by (n / (n - 1))^2 more than
    # a plug-in estimate does, where n / (n - 1) more is right.
    own, scale, wanted = ((n - 1) / n) ** 2, expansion(n_units), variance
    if over == "both":
        people = whole.var(axis=1) / m
        conditions = own * standard_deviation(np.stack([d[1] for d in drawn])) ** 2
        wanted = corrected_variance(conditions, people, people + own * np.maximum(variance - people, 0.0))
        scale = pooled_expansion([(conditions, n), (people, m)], variance, wanted)
    elif over == "stimuli":
        scale = replace(scale, factor=np.sqrt(own) * scale.factor)
    return Summary(whole.mean(axis=1), samples, scale, n_units, method, np.sqrt(wanted), (-1.0, 1.0))
