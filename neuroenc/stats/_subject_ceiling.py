"""How well any model that is the same for all subjects can predict one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from neuroenc._core.errors import DataError
from neuroenc.stats._blocks import MAX_MEMORY, Floats, as_real, load_pair, voxel_blocks
from neuroenc.stats._normalise import check_unit

__all__ = ["SubjectCeiling", "subject_ceiling"]


@dataclass(frozen=True)
class SubjectCeiling:
    """Outcome of `subject_ceiling`; arrays are (n_voxels,).

    Attributes
    ----------
    lower, upper : array
        Means over subjects of one subject against the mean of the others, and of all.
    lower_subject, upper_subject : array (n_subjects, n_voxels)
    unit : str
    """

    lower: Floats
    upper: Floats
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

    Returns
    -------
    SubjectCeiling

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
    for at in voxel_blocks(n * (2 * s + 8), v, 1, max_memory, cache=64 * 2**20):
        block = np.array(values[:, :, at], dtype=np.float64)
        block[:, np.isnan(block).any(axis=0)] = np.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            z = block - _nanmean(block)
            z /= np.sqrt(_nanmean(z**2))
        total = z.sum(axis=0)
        for k in range(s):
            low[k, at] = load_pair(block[k], (total - z[k]) / (s - 1), slice(None)).score("r")
            high[k, at] = load_pair(block[k], total / s, slice(None)).score("r")
    if unit == "r2":
        low, high = np.maximum(low, 0.0) ** 2, np.maximum(high, 0.0) ** 2
    return SubjectCeiling(low.mean(axis=0), high.mean(axis=0), low, high, unit)


def _nanmean(block: Floats) -> Floats:
    known = ~np.isnan(block)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(known, block, 0.0).sum(axis=1, keepdims=True) / known.sum(axis=1, keepdims=True))
