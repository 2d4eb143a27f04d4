"""Bootstrap scores themselves, for statistics that compare many predictions of the same responses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroenc._core.errors import ConfigError
from neuroenc._core.memory import parse_memory
from neuroenc.stats._blocks import (
    MAX_MEMORY,
    Floats,
    as_floats,
    as_pair,
    as_real,
    check_count,
    check_metric,
    load,
    voxel_blocks,
)
from neuroenc.stats._intervals import expansion, p_value, standard_deviation
from neuroenc.stats._labels import match_rows
from neuroenc.stats._resampling import Sampler, count_units, draw_resamples, unit_of, weight_chunks

__all__ = ["bootstrap_samples", "difference_p", "units_seen"]


def _patterns(y: Any, width: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(Columns, rows seen by any of them): columns that miss the same rows stand together."""
    n_voxels = y.shape[1]
    packed = np.concatenate(
        [
            np.packbits(np.isnan(np.asarray(y[:, s : s + 1024], dtype=np.float64)), axis=0)
            for s in range(0, n_voxels, 1024)
        ],
        axis=1,
    )
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
    max_memory: int | str = MAX_MEMORY,
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
    max_memory : int or str
        Bytes ("1GB") that the working copies may take, beside the result.
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
    max_memory = parse_memory(max_memory)
    y2, p2, _ = as_pair(y, yhat)
    n, n_voxels = y2.shape
    counts, unit, _ = draw_resamples(n, match_rows(y, groups, ("y", "groups")), n_bootstraps, seed)
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


def units_seen(y: Any, yhat: Any, *, groups: Any = None, max_memory: int | str = MAX_MEMORY) -> Floats:
    """How many stimuli (groups) every voxel has seen: the ``n_units`` of `sample_interval`.

    Parameters
    ----------
    y, yhat, groups
        As in `bootstrap_samples`.
    max_memory : int or str
        Bytes ("1GB") that the working copies may take.

    Returns
    -------
    array (n_voxels,), float64

    Raises
    ------
    ValueError
        As `bootstrap`.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.array([[1.0, np.nan], [2.0, 5.0], [3.0, 6.0], [4.0, np.nan]])
    >>> units_seen(y, y), units_seen(y, y, groups=["a", "a", "b", "b"])
    (array([4., 2.]), array([2., 2.]))
    """
    y2, p2, _ = as_pair(y, yhat)
    n, n_voxels = y2.shape
    unit, n_units = unit_of(n, match_rows(y, groups, ("y", "groups")))
    seen = np.empty(n_voxels)
    for columns in voxel_blocks(n, n_voxels, 3, max_memory):
        known = ~(np.isnan(load(y2, columns, "y")[0]) | np.isnan(load(p2, columns, "yhat")[0]))
        seen[columns] = count_units(known, unit, n_units, known.shape[1])
    return seen


def difference_p(samples: Any, estimate: Any = None, *, n_units: Any = None) -> Floats:
    """Two-sided bootstrap p-value that a difference is 0, over axis 0 of its resamples; NaN without any.

    The p-value of `sample_interval`: with ``n_units`` that of the expanded interval, which for few stimuli holds its
    level; without, ``min(1, 2 (1 + m) / (1 + B))``, m of the B resamples on the rarer side of 0.

    Parameters
    ----------
    samples : array (n_resamples, n_columns) or (n_resamples,)
    estimate, n_units
        As in `sample_interval`; both or none.

    Returns
    -------
    array (n_columns,), or a scalar

    Raises
    ------
    ValueError
        ``n_units`` without ``estimate``.

    Examples
    --------
    >>> import numpy as np
    >>> drawn = np.linspace(-0.1, 1.9, 199)[:, None] * [1.0, 0.0]
    >>> difference_p(drawn).round(3).tolist(), difference_p(drawn, [0.9, 0.0], n_units=30).round(3).tolist()
    ([0.11, 1.0], [0.127, 1.0])
    """
    values = as_real(samples, "samples")
    shape = values.shape[1:]
    values = values.reshape(len(values), -1)
    if (estimate is None) != (n_units is None):
        raise ConfigError("difference_p needs both estimate and n_units for the expanded interval's p, or neither.")
    out = np.full(values.shape[1], np.nan)
    centre = np.zeros(len(out)) if estimate is None else as_floats(estimate, "estimate").reshape(-1)
    units = np.broadcast_to(np.nan if n_units is None else np.asarray(n_units, dtype=np.float64), out.shape)
    for start in range(0, len(out), 1024):
        at = slice(start, start + 1024)
        drawn = np.asarray(values[:, at], dtype=np.float64)
        scale = None if n_units is None else expansion(units[at])
        out[at] = p_value(drawn, centre[at], standard_deviation(drawn), scale)
    return out.reshape(shape)
