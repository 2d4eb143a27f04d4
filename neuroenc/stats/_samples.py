"""Bootstrap scores themselves, for statistics that compare many predictions of the same responses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroenc.stats._blocks import MAX_MEMORY, Floats, as_pair, check_count, check_metric
from neuroenc.stats._resampling import Sampler, draw_resamples, weight_chunks

__all__ = ["bootstrap_samples", "difference_p"]


def _patterns(y: Any, width: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(Columns, rows seen by any of them): columns that miss the same rows stand together."""
    n_voxels = y.shape[1]
    packed = np.concatenate(
        [np.packbits(np.isnan(np.asarray(y[:, s : s + 1024], dtype=np.float64)), axis=0)
         for s in range(0, n_voxels, 1024)], axis=1,
    )  # fmt: skip
    keys: dict[bytes, list[int]] = {}
    for v in range(n_voxels):
        keys.setdefault(packed[:, v].tobytes(), []).append(v)
    # Where nearly every voxel misses rows of its own, a block a pattern would be a loop over voxels.
    if len(keys) > 64:
        keys = {b"": list(range(n_voxels))}
    blocks = []
    for members in keys.values():
        for start in range(0, len(members), width):
            columns = np.array(members[start : start + width], dtype=np.intp)
            seen = ~np.isnan(np.asarray(y[:, columns], dtype=np.float64)).all(axis=1)
            blocks.append((columns, np.flatnonzero(seen)))
    return blocks


def bootstrap_samples(
    y: Any,
    yhat: Any,
    *,
    metric: str = "r",
    n_bootstraps: int = 1000,
    groups: Any = None,
    seed: int = 0,
    max_memory: int = MAX_MEMORY,
    dtype: Any = np.float64,
) -> tuple[Floats, Any]:
    """Score of every voxel in every resample of the stimuli.

    The resamples depend on ``seed`` and the number of stimuli alone and are those of `bootstrap`: samples of
    two predictions of the same responses are paired, so that every comparison of K predictions costs K
    bootstraps and not K (K - 1).

    Parameters
    ----------
    y, yhat : array (n_samples, n_voxels)
        Measured and predicted responses; a NaN in either drops that sample for that voxel. Rows that none of
        some voxels saw cost nothing for these.
    metric : {"r", "r2", "ev"}
    n_bootstraps : int
    groups : array (n_samples,), optional
        Resample whole groups, as in `bootstrap`.
    seed : int
    max_memory : int
        Bytes that the working copies may take, beside the result.
    dtype : dtype
        Of the samples.

    Returns
    -------
    estimate : array (n_voxels,), float64
    samples : array (n_bootstraps, n_voxels)
        NaN where the score is undefined.

    Raises
    ------
    ValueError
        As `bootstrap`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = rng.standard_normal((200, 2))
    >>> a, b = (y + k * rng.standard_normal((200, 2)) for k in (1, 3))
    >>> difference = bootstrap_samples(y, a, seed=1)[1] - bootstrap_samples(y, b, seed=1)[1]
    >>> from neuroenc.stats import bootstrap_difference
    >>> np.allclose(difference.std(axis=0, ddof=1), bootstrap_difference(y, a, b, seed=1).standard_error)
    True
    """
    metric = check_metric(metric)
    n_bootstraps = check_count("n_bootstraps", n_bootstraps, 2)
    max_memory = check_count("max_memory", max_memory)
    y2, p2, _ = as_pair(y, yhat)
    n, n_voxels = y2.shape
    counts, unit, _ = draw_resamples(n, groups, n_bootstraps, seed)
    step = int(max(1, min(n_bootstraps, max_memory // 4 // (8 * n))))
    width = int(max(1, (max_memory // 2) // (8 * (9 * n + 8 * step))))
    estimate = np.full(n_voxels, np.nan)
    samples = np.full((n_bootstraps, n_voxels), np.nan, dtype=dtype)
    for columns, rows in _patterns(y2, width):
        if len(rows) < 2:
            continue
        part = np.asarray(y2[:, columns])[rows], np.asarray(p2[:, columns])[rows]
        sampler = Sampler(*part, slice(None), metric)
        estimate[columns] = sampler.estimate
        for drawn, weights in weight_chunks(counts, unit[rows], step):
            samples[drawn, columns] = sampler.scores(weights)
    return estimate, samples


def difference_p(samples: Floats) -> Floats:
    """Two-sided bootstrap p-value that a difference is 0, over axis 0 of its resamples.

    ``min(1, 2 (1 + min(#<=0, #>=0)) / (1 + n))`` over the resamples that are defined; NaN without any. It
    inverts the percentile interval, as in `bootstrap_difference`.

    Examples
    --------
    >>> import numpy as np
    >>> difference_p(np.linspace(-0.1, 1.9, 199)[:, None] * [1.0, 0.0]).round(3).tolist()
    [0.11, 1.0]
    """
    values = np.asarray(samples)
    known = (~np.isnan(values)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        tail = np.minimum((values <= 0).sum(axis=0), (values >= 0).sum(axis=0))
    return np.where(known > 0, np.minimum(1.0, 2.0 * (1.0 + tail) / (1.0 + known)), np.nan)
