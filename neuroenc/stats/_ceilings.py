"""Noise ceilings: what a perfect model could score, from repeats of the same stimulus or from other subjects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import DataError
from neuroenc._core.memory import voxel_blocks
from neuroenc.stats._blocks import MAX_MEMORY, Floats, as_floats, as_real, cached, known_mean, load, load_pair
from neuroenc.stats._repeats import RepeatSums, check_repeats, split_half_noise_ratio, variance_components
from neuroenc.stats._scores import check_unit, convert_ceiling


def ncsnr(
    responses: Any,
    stimulus: Any,
    *,
    total: str = "unit",
    weighting: str = "max_repeats",
    max_memory: int | str = MAX_MEMORY,
) -> Floats:
    r"""Noise ceiling signal-to-noise ratio per voxel, as the Natural Scenes Dataset defines it.

    .. math:: ncsnr = \hat\sigma_{signal} / \hat\sigma_{noise}, \quad
              \hat\sigma^2_{noise} = mean_s\, Var_{k}(y_{sk}), \quad
              \hat\sigma^2_{signal} = \max(0, \sigma^2_{total} - \hat\sigma^2_{noise})

    with :math:`Var_k` the unbiased variance over the repeats k of stimulus s. NSD z-scores every voxel within
    each session first, so that :math:`\sigma^2_{total} = 1`. It is a ratio of standard deviations, of single
    presentations; turn it into a ceiling with `noise_ceiling`. The truncation at 0 biases weak voxels: with
    few repeated stimuli many of them get exactly 0.

    Parameters
    ----------
    responses : array (n_presentations, n_voxels)
        Single-presentation responses, not averaged; for ``total="unit"`` z-scored within session. A NaN drops
        that presentation for that voxel.
    stimulus : array (n_presentations,)
        Stimulus id of every presentation (str or int).
    total : {"unit", "empirical"}
        ``"unit"`` takes 1 and refuses data whose median voxel variance is outside [0.75, 1.33].
        ``"empirical"`` takes the variance of the given presentations about their mean, and removes the bias
        that repeats put into it: with M presentations of which :math:`n_s` show stimulus s, signal
        variance is (total - noise) (M - 1) / (M - sum n_s^2 / M).
    weighting : {"max_repeats", "df"}
        ``"max_repeats"`` (NSD) is the plain mean over the stimuli shown the largest number of times (where
        that voxel has all of them). ``"df"`` pools all stimuli with at least two repeats, weighted by their
        degrees of freedom: use it when repeat counts vary. The first is refused when it would use less than a
        tenth of the degrees of freedom that the second has.
    max_memory : int or str
        Bytes ("1GB") that the working copies may take.

    Returns
    -------
    array (n_voxels,), float64, no unit
        NaN for constant voxels and voxels without repeats; inf where repeats are identical.

    Raises
    ------
    ValueError
        No stimulus repeated, lengths that differ, data not z-scored with ``total="unit"``, too few stimuli
        with the largest number of repeats.

    References
    ----------
    Allen et al. (2022), A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial
    intelligence, Nature Neuroscience 25:116.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> stimulus = np.repeat(np.arange(20000), 3)
    >>> signal, noise = rng.standard_normal((20000, 1)), rng.standard_normal((60000, 1))
    >>> print(ncsnr(0.5 * signal[stimulus] + noise, stimulus, total="empirical").round(1))
    [0.5]
    """
    signal, noise = variance_components(responses, stimulus, total=total, weighting=weighting, max_memory=max_memory)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(signal / noise)


def _mean_inverse(n_repeats: Any) -> float:
    """Noise variance left after averaging, as a share: (A/3 + B/2 + C/1) / (A + B + C) for any counts."""
    if isinstance(n_repeats, Mapping):
        counts, stimuli = np.array(list(n_repeats)), np.array(list(n_repeats.values()), dtype=np.float64)
    else:
        counts = np.atleast_1d(np.asarray(n_repeats))
        stimuli = np.ones(counts.shape)
    if counts.ndim != 1 or counts.size == 0 or counts.dtype.kind not in "iuf":
        raise DataError(
            f"n_repeats={n_repeats!r} is not legal; give one integer, one integer per stimulus, "
            "or a mapping {repeats: number of stimuli}."
        )
    if not (np.all(counts >= 1) and np.all(counts == np.floor(counts))):
        raise DataError(f"n_repeats has values from {counts.min()} to {counts.max()}; legal: integers of at least 1.")
    if not (np.all(stimuli >= 0) and stimuli.sum() > 0):
        raise DataError("n_repeats as a mapping needs numbers of stimuli that are not negative, at least one.")
    return float((stimuli / counts).sum() / stimuli.sum())


def noise_ceiling(ncsnr: Any, n_repeats: Any, *, unit: str) -> Floats:
    r"""Noise ceiling of responses averaged over repeats, from the ncsnr.

    .. math:: NC_{r2} = \frac{ncsnr^2}{ncsnr^2 + mean_s(1/n_s)}, \qquad NC_r = \sqrt{NC_{r2}}

    :math:`n_s` is how many repeats of stimulus s were averaged. With A, B, C stimuli shown 3, 2 and 1
    times the mean is (A/3 + B/2 + C/1)/(A + B + C), as in the NSD manual.

    Parameters
    ----------
    ncsnr : array (n_voxels,) or float
        Signal-to-noise ratio (standard deviations, single presentations).
    n_repeats : int, array (n_stimuli,) of int, or mapping {repeats: number of stimuli}
        How many presentations were averaged; ``noise_ceiling(x, {3: A, 2: B, 1: C}, unit="r2")``.
    unit : {"r2", "r"}
        ``"r2"``: largest expected share of variance (`r2_score`, `explained_variance`); NSD publishes it in
        percent. ``"r"``: largest expected correlation (`pearson_r`), the square root of the first.

    Returns
    -------
    array (n_voxels,), float64
        A fraction in [0, 1], never percent.

    Raises
    ------
    ValueError
        Unit not legal, ncsnr negative, repeats not positive integers.

    Examples
    --------
    >>> import numpy as np
    >>> noise_ceiling(np.array([0.0, 1.0]), 3, unit="r2")
    array([0.  , 0.75])
    >>> print(noise_ceiling(1.0, {3: 515, 2: 251, 1: 141}, unit="r2").round(3))
    0.674
    """
    unit = check_unit("unit", unit)
    ratio = as_floats(ncsnr, "ncsnr")
    if np.any(ratio < 0):
        raise DataError(f"ncsnr has {int((ratio < 0).sum())} negative values (least {np.nanmin(ratio):g}).")
    with np.errstate(divide="ignore"):
        out = np.asarray(1.0 / (1.0 + _mean_inverse(n_repeats) / ratio**2))
    return np.sqrt(out) if unit == "r" else out


def ceiling_error(ceiling: Any, n_stimuli: int, n_repeats: int) -> Floats:
    r"""Standard error of a voxel's noise ceiling that is estimated from repeats.

    .. math:: SE(NC) = (1 - NC)\,(1 + (r - 1) NC) \sqrt{\frac{2}{r (r - 1)(m - 1)}}

    for m stimuli shown r times each and NC the share of a single response's variance that is signal (`noise_ceiling`
    of one repeat, unit "r2"), an intraclass correlation: the large-sample form, Gaussian signal and noise.

    Parameters
    ----------
    ceiling : array (n_voxels,) or float
        Of single presentations, a fraction in [0, 1].
    n_stimuli, n_repeats : int

    Returns
    -------
    array (n_voxels,), float64
        NaN with one repeat, which tells no ceiling.

    Raises
    ------
    DataError
        Ceilings outside [0, 1], fewer than two stimuli.

    References
    ----------
    Donner (1986), A review of inference procedures for the intraclass correlation coefficient in the one-way random
    effects model, Int. Stat. Rev. 54(1).

    Examples
    --------
    >>> ceiling_error(0.2, 100, 2).round(3), ceiling_error(0.2, 50, 4).round(3)
    (np.float64(0.096), np.float64(0.075))
    """
    values = convert_ceiling(ceiling, from_unit="r2", to_unit="r2")
    m, r = check_whole("n_stimuli", n_stimuli, 2), check_whole("n_repeats", n_repeats)
    if r == 1:
        return np.full_like(values, np.nan)
    return np.asarray((1 - values) * (1 + (r - 1) * values) * np.sqrt(2 / (r * (r - 1) * (m - 1))))


def split_half_reliability(
    responses: Any,
    stimulus: Any,
    *,
    unit: str,
    n_repeats: Any = None,
    n_splits: int = 20,
    seed: int = 0,
    max_memory: int | str = MAX_MEMORY,
) -> Floats:
    r"""Noise ceiling from split halves with the Spearman-Brown correction.

    The stimuli shown most often are split at random into two halves of h repeats, averaged and correlated
    over stimuli; :math:`\rho_h` is the mean correlation over splits, and for means of n repeats

    .. math:: \rho_n = \frac{m \rho_h}{1 + (m - 1)\rho_h}, \quad m = n / h

    which is the share of variance of the mean that is signal (unit "r2"); its root is the correlation
    ceiling. It makes no assumption about z-scoring, and drift between repeats lowers it.

    Parameters
    ----------
    responses : array (n_presentations, n_voxels)
        Single-presentation responses; a NaN presentation drops that stimulus for that voxel and split.
    stimulus : array (n_presentations,)
        Stimulus id of every presentation.
    unit : {"r2", "r"}
        As in `noise_ceiling`.
    n_repeats : int, array or mapping, optional
        Repeats that were averaged in the data to be scored, as in `noise_ceiling`; default the largest number
        of repeats.
    n_splits : int
        Random splits.
    seed : int
        Seed of the splits.
    max_memory : int or str
        Bytes ("1GB") that the working copies may take.

    Returns
    -------
    array (n_voxels,), float64
        In [0, 1]; negative reliabilities are 0, constant voxels NaN.

    Raises
    ------
    ValueError
        Fewer than 3 stimuli with the largest number of repeats, or that number is 1.

    References
    ----------
    Spearman (1910); Brown (1910), British Journal of Psychology 3.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> stimulus = np.repeat(np.arange(20000), 2)
    >>> y = rng.standard_normal((20000, 1))[stimulus] + rng.standard_normal((40000, 1))
    >>> print(split_half_reliability(y, stimulus, unit="r2").round(1))    # planted: 1 / (1 + 1/2)
    [0.7]
    """
    unit = check_unit("unit", unit)
    ratio, most = split_half_noise_ratio(responses, stimulus, n_splits=n_splits, seed=seed, max_memory=max_memory)
    return noise_ceiling(ratio, most if n_repeats is None else n_repeats, unit=unit)


class CeilingSampler:
    """Noise ceiling of every voxel from its ncsnr, and in resamples of the stimuli; arguments as of `ncsnr`."""

    def __init__(
        self,
        responses: Any,
        stimulus: Any,
        *,
        unit: str,
        n_repeats: Any = None,
        total: str = "unit",
        weighting: str = "max_repeats",
        max_memory: int | str = MAX_MEMORY,
    ) -> None:
        self.unit, self.total, self.weighting = check_unit("unit", unit), total, weighting
        self.values, self.order, self.counts = check_repeats(responses, stimulus)
        self.n_repeats = self.counts if n_repeats is None else n_repeats
        ratio = ncsnr(responses, stimulus, total=total, weighting=weighting, max_memory=max_memory)
        self.estimate = noise_ceiling(ratio, self.n_repeats, unit=unit)

    @property
    def rows_held(self) -> int:
        """Numbers of a voxel that `ceilings` holds at once."""
        return 14 * len(self.values)

    def ceilings(self, columns: slice, weights: Floats) -> Floats:
        """Of some voxels (n_resamples, n_voxels), for weights of the stimuli (n_resamples, n_stimuli)."""
        if len(self.counts) < 2:
            raise DataError(f"got {len(self.counts)} stimulus to resample; a bootstrap needs at least 2.")
        block = load(self.values, columns, "responses")[0]
        sums = RepeatSums(block, self.order, self.counts, self.total, self.weighting)
        return noise_ceiling(sums.ratios(weights), self.n_repeats, unit=self.unit)


@dataclass(frozen=True)
class SubjectCeiling:
    """What the true model could reach given that subjects differ: `subject_ceiling`, `rdm_ceiling`.

    Attributes
    ----------
    lower, upper : array (n_voxels,), or float
        Means over subjects of one subject against the others together, and against all.
    lower_subject, upper_subject : array (n_subjects, ...)
    unit : str
        That of the ceiling; of RDMs, the method of comparison.
    """

    lower: Any
    upper: Any
    lower_subject: Floats
    upper_subject: Floats
    unit: str


def subject_ceiling(responses: Any, *, unit: str, max_memory: int | str = MAX_MEMORY) -> SubjectCeiling:
    r"""Leave-one-subject-out noise ceiling of a model that is the same for all subjects.

    .. math:: lower_v = mean_s\; corr(y_{sv}, mean_{t \ne s} z_{tv}), \qquad
              upper_v = mean_s\; corr(y_{sv}, mean_t z_{tv})

    with z the responses z-scored over stimuli within subject and voxel (parcel, vertex). The mean of the others is an
    estimate of what subjects share, so that the first is too low; the second has seen the subject it is compared
    with, and no common prediction exceeds it. Unit ``"r2"``: the squares (negative correlations count 0), the
    variance of one subject that a common prediction with a gain of its own explains; its upper bound is close, not
    strict.

    This is a ceiling for what subjects share; a subject's own encoder may exceed it up to `noise_ceiling`.

    Parameters
    ----------
    responses : array (n_subjects, n_stimuli, n_voxels) or (n_subjects, n_stimuli)
        Same stimuli and corresponding voxels in all subjects. A stimulus that is NaN in one subject is left out of
        that voxel for all.
    unit : {"r", "r2"}
    max_memory : int or str
        Bytes ("1GB") that the working copies may take.

    Raises
    ------
    ValueError
        Fewer than two subjects, other than 3 dimensions, an unknown unit.

    References
    ----------
    Nili et al. (2014), PLoS Comput. Biol. 10:e1003553. Hasson et al. (2004), Science 303:1634.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = rng.standard_normal((1, 2000, 1)) + rng.standard_normal((5, 2000, 1))
    >>> found = subject_ceiling(y, unit="r")
    >>> bool(found.lower[0] < 0.5**0.5 < found.upper[0])                  # planted
    True
    """
    unit = check_unit("unit", unit)
    values = as_real(responses, "responses")
    if values.ndim == 2:
        values = np.asarray(values)[:, :, None]
    if values.ndim != 3 or values.shape[0] < 2 or values.shape[1] < 3:
        raise DataError(
            f"responses have shape {tuple(values.shape)}; legal is (n_subjects, n_stimuli, n_voxels) with at least 2 "
            "subjects and 3 stimuli."
        )
    s, n, v = values.shape
    low, high = np.full((s, v), np.nan), np.full((s, v), np.nan)
    for at in voxel_blocks(v, 8 * n * (2 * s + 8), max_memory, most=cached(n * (2 * s + 8), 64)):
        block = np.array(values[:, :, at], dtype=np.float64)
        block[:, np.isnan(block).any(axis=0)] = np.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            z = block - known_mean(block, 1, keepdims=True)
            z /= np.sqrt(known_mean(z**2, 1, keepdims=True))
        total = z.sum(axis=0)
        for k in range(s):
            low[k, at] = load_pair(block[k], (total - z[k]) / (s - 1), slice(None)).score("r")
            high[k, at] = load_pair(block[k], total / s, slice(None)).score("r")
    if unit == "r2":
        low, high = np.maximum(low, 0.0) ** 2, np.maximum(high, 0.0) ** 2
    return SubjectCeiling(low.mean(axis=0), high.mean(axis=0), low, high, unit)
