"""Predictions of responses that the encoder has not seen, and their scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from neuroenc import data, stats
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import hash_array, hash_json
from neuroenc.data import EncodingData, group_ids
from neuroenc.encoders import RidgeEncoder
from neuroenc.workflows._config import EncoderConfig, EvaluationConfig
from neuroenc.workflows._steps import Steps, content_key

__all__ = ["held_out_predictions", "make_ridge", "outer_folds", "score_table"]


def make_ridge(config: EncoderConfig, checkpoint: Any = None, *, standardise: bool = False) -> RidgeEncoder:
    """The encoder that ``[encoder]`` describes; ``standardise`` is of ``[features]``."""
    return RidgeEncoder(
        config.alphas or None,
        cv=config.cv,
        scoring=config.scoring,
        standardise=standardise,
        max_memory=config.max_memory or None,
        device=config.device,
        checkpoint=checkpoint,
        nan_voxels="raise",
    )


def outer_folds(
    responses: xr.DataArray, config: EvaluationConfig, seed: int, stimuli: data.Stimuli | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and test rows; every row is tested once (only the test rows with ``scheme="test"``)."""
    if config.scheme == "test":
        train, test = data.split_by_stimulus(responses, test=_test_ids(config, stimuli), seed=seed)
        data.check_disjoint(train, test)
        is_test = np.isin(responses.coords["stimulus"].values, np.unique(test.coords["stimulus"].values))
        if min(is_test.sum(), (~is_test).sum()) < 2:
            raise DataError(
                f"[evaluation] test_ids leave {int((~is_test).sum())} rows to fit on and {int(is_test.sum())} to test "
                "on; both need at least 2."
            )
        return [(np.flatnonzero(~is_test), np.flatnonzero(is_test))]
    if config.scheme == "stimulus":
        return data.folds(responses, "stimulus", n_splits=config.n_splits, seed=seed)
    # Designs with few categories show them in every run; leaving runs out is then about noise, not stimuli.
    return data.folds(responses, config.scheme, seed=seed, shared="keep")


def _test_ids(config: EvaluationConfig, stimuli: data.Stimuli | None) -> list[str]:
    """The ids asked for, or those of a test set that the data name: a column of flags in the table of stimuli."""
    if len(config.test_ids) == 1 and stimuli is not None and config.test_ids[0] not in stimuli.ids:
        name = config.test_ids[0]
        flags = [str(c) for c in stimuli.table.columns if stimuli.table[c].dtype == bool]
        if name in flags:
            return [str(x) for x in stimuli.ids[stimuli.table[name].to_numpy()]]
        if flags:
            raise ConfigError(unknown_name("stimulus or test set in [evaluation] test_ids:", name, flags))
    return config.test_ids


def held_out_predictions(
    features: xr.DataArray,
    responses: xr.DataArray,
    folds: list[tuple[np.ndarray, np.ndarray]],
    config: EncoderConfig,
    *,
    scale: bool,
    steps: Steps,
    name: str,
    say: Callable[[str], None],
) -> tuple[xr.DataArray, np.ndarray]:
    """Predictions of each fold's test rows by an encoder that was fitted and tuned on its training rows.

    Parameters
    ----------
    features : DataArray (row, feature)
        Matched to the responses' rows.
    responses : DataArray (row, voxel)

    Returns
    -------
    predicted : DataArray (row, voxel)
        NaN in rows that no fold tests.
    alpha : array (fold, voxel)
        Penalties that were chosen.
    """
    content = content_key(features, responses, vars(config), scale)
    total = np.full(responses.shape, np.nan, dtype=np.float32)
    alphas = []
    for number, (train, test) in enumerate(folds):
        inputs = {"content": content, "rows": hash_array(train, test)}
        key = hash_json(inputs)

        def fit(train: np.ndarray = train, test: np.ndarray = test, key: str = key) -> xr.Dataset:
            part = responses[train]
            encoder = make_ridge(config, steps.folder / f"{name}-ridge-{key[:16]}", standardise=scale)
            encoder.fit(row_features(features.values[train], part), part)
            predicted = ("row", "voxel"), encoder.predict(features.values[test])
            return xr.Dataset({"predicted": predicted, "alpha": ("voxel", encoder.alpha_)})

        result = steps.arrays(f"{name}-fold{number + 1}of{len(folds)}", inputs, fit)
        total[test] = result["predicted"].values
        alphas.append(result["alpha"].values)
    return responses.copy(data=total).rename("predicted"), np.array(alphas)


def row_features(values: np.ndarray, responses: xr.DataArray) -> xr.DataArray:
    """Features (row, feature) under the labels of the responses' rows, one row each."""
    dim = responses.dims[0]
    return xr.DataArray(
        values, dims=(dim, "feature"), coords={str(k): c for k, c in responses.coords.items() if c.dims == (dim,)}
    )


def noise_ceilings(found: EncodingData, prepared: xr.DataArray, scored: xr.DataArray) -> dict[str, np.ndarray]:
    """ncsnr and ceilings of the scored rows, where stimuli were repeated; else nothing.

    ``prepared`` are z-scored single presentations, or raw repeats come as ``found.extra["repeats"]``.
    """
    repeats = found.extra.get("repeats")
    if repeats is None and prepared.dims[0] == "presentation":
        repeats = prepared
    if repeats is None or len(np.unique(repeats.coords["stimulus"].values)) == repeats.shape[0]:
        return {}
    total = "unit" if repeats.attrs.get("zscored", "none") != "none" else "empirical"
    weighting = "max_repeats" if total == "unit" else "df"
    ncsnr = stats.ncsnr(repeats.values, repeats.coords["stimulus"].values, total=total, weighting=weighting)
    if scored.dims[0] == "presentation":
        counts: Any = 1
    else:
        ids, number = np.unique(repeats.coords["stimulus"].values, return_counts=True)
        lookup = dict(zip(ids.tolist(), number.tolist()))
        counts = np.array([lookup.get(s, 1) for s in scored.coords["stimulus"].values.tolist()])
    return {
        "ncsnr": ncsnr,
        "noise_ceiling_r": stats.noise_ceiling(ncsnr, counts, unit="r"),
        "noise_ceiling_r2": stats.noise_ceiling(ncsnr, counts, unit="r2"),
    }


def score_table(
    measured: xr.DataArray,
    predicted: xr.DataArray,
    config: EvaluationConfig,
    *,
    ceilings: dict[str, np.ndarray],
    seed: int,
    p_values: Callable[[np.ndarray | None], tuple[np.ndarray, dict[str, Any]]] | None = None,
) -> xr.Dataset:
    """Scores of every voxel with ceilings, permutation p-values and FDR q-values, labels kept.

    Parameters
    ----------
    measured, predicted : DataArray (row, voxel)
        Rows with NaN predictions are left out.
    p_values : callable, optional
        Gives p-values and their facts from the groups to shuffle within (or None), for cross-validated predictions;
        without it,
        responses are shuffled against the predictions, which is right for a test set apart.
    """
    tested = np.isfinite(predicted.values).any(axis=1)
    y, p = measured.values[tested], predicted.values[tested]
    voxels = {str(k): c for k, c in measured.coords.items() if c.dims == ("voxel",)}
    out = xr.Dataset(coords=voxels)
    note = {"n_stimuli": int(tested.sum()), "split": config.scheme}
    for metric in ("r", "r2", "ev"):
        out[metric] = ("voxel", stats.score(y, p, metric=metric), {"metric": metric, **note})
    for name, values in ceilings.items():
        unit = {"noise_ceiling_r": "correlation", "noise_ceiling_r2": "share of variance"}.get(name, "")
        out[name] = ("voxel", values, {"ceiling": "ncsnr", "unit": unit})
    if "noise_ceiling_r" in ceilings:
        values = stats.normalise(out["r"].values, ceilings["noise_ceiling_r"], score_unit="r", ceiling_unit="r")
        out["r_normalised"] = ("voxel", values, {"metric": "r / noise_ceiling_r", "ceiling": "correlation", **note})
    if config.permutations:
        blocks = None
        if config.permutation_mode != "samples":
            kind = next((k for k in ("run", "session") if k in measured.coords), None)
            # Runs are counted anew in every session (and subject).
            blocks = None if kind is None else group_ids(measured, kind)[0][tested]
        facts: dict[str, Any] = {"mode": config.permutation_mode}
        if p_values is not None:
            chance, found = p_values(blocks)
            facts.update(found)
        else:
            test = stats.permutation_test(
                y, p, mode=config.permutation_mode, blocks=blocks, n_permutations=config.permutations, seed=seed
            )
            chance = test.p
            facts.update(n_permutations=int(test.n_permutations), null="fixed predictions")
        out["p_value"] = ("voxel", chance, facts)
        out["q_value"] = ("voxel", stats.fdr(chance), {"method": "Benjamini-Hochberg", **facts})
    out.attrs.update({k: v for k, v in measured.attrs.items() if k in ("affine", "volume_shape", "space")})
    return out
