r"""How deep a network must be read: layers at which a concept, or what a voxel responds to, becomes readable.

With the score :math:`s_i` of layer i of d, the variation rate is :math:`\beta_i = s_i / s_{i-1}`. A curve jumps at the
first layer with :math:`\beta_i \ge 1.1`, and has converged at the first from which :math:`|\beta_j - 1| < 0.03` for
all later ones. Points are told as depths from 0 (first layer) to 1 (last).

References
----------
Jin, Yu, Huang, Zeng, Wang, Hua, Zhao, Mei, Meng, Ding, Yang, Du & Zhang (2024), Exploring Concept Depth,
arXiv:2404.07066.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from neuroenc import stats
from neuroenc._core.checks import at_least, check_whole, one_of
from neuroenc.encoders._probes import FLOOR, Responses, disturbed, read_layers, read_targets, scaled, shuffled_folds
from neuroenc.encoders.comparison._statistics import Group, _median, find_groups

JUMP, SETTLE = 1.1, 0.03
#: Variables of `depth_statistics` that a table of regions shows.
SHOWN = (
    *("jump_point", "jump_low", "jump_high", "jump_share"),
    *("convergence_point", "convergence_low", "convergence_high", "convergence_share"),
    *("range", "range_low", "range_high", "flat", "statement"),
)


def variation_rate(scores: np.ndarray, floor: Any = FLOOR) -> np.ndarray:
    """Score of each layer over that of the one before (layer, ...); scores below ``floor`` count as ``floor``.

    A ratio to next to nothing is a number without a meaning: chance, or r = .05, is the least that is divided by.

    >>> variation_rate(np.array([0.5, 0.5, 0.75]))[1:].tolist()
    [1.0, 1.5]
    """
    raised = np.where(np.isnan(scores), np.nan, np.maximum(scores, floor))
    rate = np.full(scores.shape, np.nan)
    rate[1:] = raised[1:] / raised[:-1]
    return rate


def _first(where: np.ndarray) -> np.ndarray:
    """Depth of the first layer (axis 0) that holds; NaN where none does."""
    return np.where(where.any(axis=0), where.argmax(axis=0) / max(1, len(where) - 1), np.nan)


def jump_point(rate: np.ndarray, jump: float = JUMP) -> np.ndarray:
    """Depth of the first layer whose score is ``jump`` times the one before; NaN where none is."""
    with np.errstate(invalid="ignore"):
        return _first(rate >= jump)


def convergence_point(rate: np.ndarray, settle: float = SETTLE) -> np.ndarray:
    """Depth of the first layer behind which no score differs by ``settle`` of the one before; NaN where the last does.

    >>> convergence_point(np.array([np.nan, 1.5, 1.01, 0.99])).item()
    0.3333333333333333
    """
    with np.errstate(invalid="ignore"):
        still = np.abs(rate - 1.0) < settle
    # Behind layer i stand i + 1 and later; behind the last stands nothing, which shows no plateau.
    behind = np.logical_and.accumulate(still[:0:-1], axis=0)[::-1]
    return np.asarray(_first(np.concatenate([behind, np.zeros_like(still[:1])])))


def depth_statistics(
    layers: Sequence[str],
    estimate: np.ndarray,
    samples: np.ndarray,
    n_units: Any,
    *,
    chance: Any = 0.0,
    floor: Any = FLOOR,
    jump: float = JUMP,
    settle: float = SETTLE,
    dims: tuple[str, str] = ("layer", "target"),
    coords: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Depth statistics of curves of scores with paired resamples; variables of `concept_depth`.

    A curve is flat where the range of its scores is none that equal layers would not give: ``range_low`` is the range
    less the 95 % quantile of the range of the resamples about their means, which bounds all differences of two layers
    at once (Tukey), so that the best and the worst layer may be chosen by looking.

    Parameters
    ----------
    layers : sequence of str (layer,)
    estimate : array (layer, target)
    samples : array (layer, resample, target)
    n_units : int or array (target,)
    chance, floor : float or array (target,)
    dims : (str, str)
        What layers and targets are called.
    coords : mapping, optional
        Of the targets.
    """
    jump, settle = at_least("jump", jump, 1, above=True), at_least("settle", settle, above=True)
    n_layers, _, n_targets = samples.shape
    last = max(1, n_layers - 1)
    score = np.asarray(estimate, dtype=np.float64)
    points = "jump", "convergence"
    names = "score_low", "score_high", "jump_low", "jump_high", "convergence_low", "convergence_high"
    out: dict[str, np.ndarray] = {
        k: np.full((n_layers, n_targets) if "score" in k else n_targets, np.nan) for k in names
    }
    shares, width = {k: np.full(n_targets, np.nan) for k in points}, np.full(n_targets, np.nan)
    rate = variation_rate(score, floor)
    own = {"jump": jump_point(rate, jump), "convergence": convergence_point(rate, settle)}
    units = np.broadcast_to(np.asarray(n_units, dtype=np.float64), (n_targets,))
    floors = np.broadcast_to(np.asarray(floor, dtype=np.float64), (n_targets,))
    for start in range(0, n_targets, 256):  # resamples of many voxels at once would take much memory in float64
        at = slice(start, start + 256)
        drawn = np.asarray(samples[:, :, at], dtype=np.float64)
        for k in range(n_layers):
            found = stats.sample_interval(drawn[k], score[k, at], n_units=units[at])
            out["score_low"][k, at], out["score_high"][k, at] = found[:2]
        rates = variation_rate(drawn, floors[at])
        for name, values in (("jump", jump_point(rates, jump)), ("convergence", convergence_point(rates, settle))):
            shares[name][at] = np.isfinite(values).mean(axis=0)
            low, high, _ = stats.sample_interval(values, own[name][at], n_units=units[at])
            out[f"{name}_low"][at], out[f"{name}_high"][at] = np.clip(low, 0, 1), np.clip(high, 0, 1)
        about = drawn - drawn.mean(axis=1, keepdims=True)
        factor = np.sqrt(units[at] / np.maximum(units[at] - 1, 1))
        width[at] = factor * np.quantile(about.max(axis=0) - about.min(axis=0), 0.95, axis=0)
    span = score.max(axis=0) - score.min(axis=0)
    said = [
        _statement(layers, *row)
        for row in zip(
            own["jump"] * last,
            own["convergence"] * last,
            span,
            span - width,
            out["score_low"].max(axis=0) > chance,
            score.T,
            width,
            strict=True,
        )
    ]
    by_target: dict[str, Any] = {}
    for name in points:
        by_target[f"{name}_point"] = own[name]
        by_target |= {f"{name}_low": out[f"{name}_low"], f"{name}_high": out[f"{name}_high"]}
        by_target[f"{name}_share"] = shares[name]
    by_target |= {"range": span, "range_low": np.maximum(span - width, 0.0), "range_high": span + width}
    by_target |= {"flat": ~(span > width), "statement": np.array(said, dtype=str)}
    by_layer = {"score": score, "score_low": out["score_low"], "score_high": out["score_high"], "variation": rate}
    layer, target = dims
    return xr.Dataset(
        {k: (dims, v) for k, v in by_layer.items()} | {k: (target, v) for k, v in by_target.items()},
        coords={layer: list(layers), "depth": (layer, np.linspace(0, 1, n_layers)), **(coords or {})},
    )


def _statement(
    layers: Sequence[str],
    jump: float,
    convergence: float,
    span: float,
    low: float,
    above: bool,
    score: Any,
    width: float,
) -> str:
    """A curve in words."""
    if np.isnan(span):
        return "not defined"
    if not above:
        return "no layer is above chance"
    if low <= 0:
        return f"nearly flat: no layer beats the others (range {span:.3f}, not told from 0)"
    first = f"jumps at {layers[round(jump)]}" if np.isfinite(jump) else "no jump"
    then = f"converges at {layers[round(convergence)]}" if np.isfinite(convergence) else "still changing at the end"
    best = int(score.argmax())
    others = [name for name, s in zip(layers, score) if s >= score[best] - width and name != layers[best]]
    beside = f", not told from {', '.join(others)}" if others else ""
    return f"{first}, {then}; best {layers[best]}{beside}"


def group_curves(estimate: np.ndarray, samples: np.ndarray, groups: Sequence[Group]) -> tuple[np.ndarray, np.ndarray]:
    """Median scores over the voxels of groups (cell, group), and of every resample (cell, resample, group)."""
    own = np.stack([_median(estimate[:, g.voxels]) for g in groups], axis=1)
    drawn = np.empty((*samples.shape[:2], len(groups)))
    for k in range(len(estimate)):
        for n, g in enumerate(groups):
            drawn[k, :, n] = stats.median_samples(samples[k][:, g.voxels], estimate[k, g.voxels])
    return own, drawn


def concept_depth(
    features_by_layer: Mapping[str, Any],
    targets: Any,
    *,
    by: str = "",
    probe: str = "ridge",
    cv: Any = 5,
    noise: float = 0.0,
    n_bits: int | None = None,
    jump: float = JUMP,
    settle: float = SETTLE,
    n_bootstraps: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    r"""Depth at which labels or responses of voxels become linearly readable, layer by layer.

    Every layer predicts rows that were left out, by a classifier (labels) or ridge (responses), with penalties chosen
    on training rows. With scores :math:`s_i`, the variation rate is :math:`\beta_i = s_i / s_{i-1}` (a score below
    chance, or r = .05, counts as that), the jump point the first depth with :math:`\beta_i \ge` ``jump``, the
    convergence point the first behind which :math:`|\beta_j - 1| <` ``settle`` for all layers. Depth goes from 0, the
    first layer, to 1, the last. All layers see the same resamples of the stimuli, so that intervals (95 %) of points
    and differences are paired.

    Parameters
    ----------
    features_by_layer : mapping of str to array (stimulus, ...)
        Layers from early to late, as `neuroenc.embedding.ImageEmbedder.embed_layers` gives them.
    targets : labels or responses
        Labels: a table (a column for each concept, stimulus ids as index), a mapping of columns, or one column of
        text, whole numbers or bool. Responses: fractions (stimulus, voxel), labelled or not.
    by : {"", "region"}
        "region": of responses, median scores over all voxels and over each region and subject, as targets.
    probe : {"ridge", "logistic"}
        Of labels. "ridge" chooses its penalty on training rows, so that wide layers are not at a disadvantage;
        "logistic" is regression with C = 1, as published.
    cv : int or splits
        Folds; a number is shuffled by ``seed``, whole stimuli each.
    noise : float
        Arm: Gaussian noise on every feature, in its standard deviations.
    n_bits : int, optional
        Arm: features rounded to :math:`2^b` steps between the extremes of the layer.
    jump, settle : float
    n_bootstraps, seed : int

    Returns
    -------
    Dataset (layer, target) or (layer, voxel)
        By layer ``score, score_low, score_high, variation``. By target ``jump_point`` and ``convergence_point`` (NaN:
        none) with ``_low``, ``_high`` and ``_share`` (of resamples that have one), ``range`` (best less worst layer)
        with interval, ``flat`` (range not told from 0) and ``statement`` in words. Coordinates ``depth`` (layer) and
        those of the voxels.

    Raises
    ------
    DataError
        Fewer than two layers, rows that do not fit, one label only, a label too rare for the folds, NaN.

    References
    ----------
    Jin et al. (2024), Exploring Concept Depth, arXiv:2404.07066. Tukey (1953), for the range of several means.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.standard_normal((2, 300))
    >>> layers = {"pixels": np.c_[a, b], "middle": np.c_[a, b, a * b], "late": np.c_[a * b, b, a]}
    >>> found = concept_depth(layers, {"A": a > 0, "A xor B": a * b > 0})
    >>> found["jump_point"].values.tolist(), found["flat"].values.tolist()
    ([nan, 0.5], [True, False])
    >>> found["statement"].values[1].item()
    'jumps at middle, converges at middle; best middle, not told from late'
    """
    read = read_targets(targets, probe)
    by = one_of("by", by, ("", "region")) if by else ""
    n = len(read.values) if isinstance(read, Responses) else len(read.codes)
    layers = read_layers(features_by_layer, read, n)
    folds = shuffled_folds(cv, n, read.stimuli, seed)
    check_whole("n_bootstraps", n_bootstraps, 2)
    predicted = []
    for k, X in enumerate(layers.values()):
        X, total = disturbed(X, noise, n_bits, (seed, 7, k)), np.full((n, len(read.chance)), np.nan, np.float32)
        for train, test in folds:
            order = np.random.default_rng([seed, 13]).permutation(train)
            A, T = scaled(X, order, test)
            total[test] = read.fit(A, order, T, False)[0]
        predicted.append(total)
    estimate, samples = read.draw(predicted, n_bootstraps, seed)
    dim, coords, chance, floor = read.dim, read.coords, read.chance, read.floor
    if by:
        if not isinstance(read, Responses):
            one_of("by", by, ("",), step="labels have no regions.")
        groups = find_groups(xr.DataArray(np.zeros((1, len(chance))), dims=("row", "voxel"), coords=coords))
        estimate, samples = group_curves(estimate, samples, groups)
        dim, chance, floor = "target", np.zeros(len(groups)), np.full(len(groups), FLOOR)
        coords = {"target": [g.name for g in groups], "kind": ("target", [g.kind for g in groups])}
    how: dict[str, Any] = {"chance": chance, "floor": floor, "jump": jump, "settle": settle, "coords": coords}
    made = depth_statistics(list(layers), estimate, samples, read.n_units, dims=("layer", dim), **how)
    if dim == "target" and not by:
        made["chance"] = dim, chance
    known = {"metric": read.metric, "probe": "ridge" if isinstance(read, Responses) else probe, "n_folds": len(folds)}
    arms = {"noise": float(noise), "n_bits": 0 if n_bits is None else n_bits, "jump": jump, "settle": settle}
    return made.assign_attrs(**known, **arms, n_stimuli=read.n_units, n_bootstraps=n_bootstraps, seed=seed)
