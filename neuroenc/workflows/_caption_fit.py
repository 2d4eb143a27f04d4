"""Ridge of every subject on its training rows, scored on its held-out rows; voxels of all in one row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.files import hash_json
from neuroenc.workflows._caption_config import CaptionConfig
from neuroenc.workflows._caption_inputs import Subject
from neuroenc.workflows._config import EvaluationConfig
from neuroenc.workflows._evaluate import make_ridge, score_table
from neuroenc.workflows._steps import Steps, content_key

__all__ = ["Fitted", "fit_subjects"]


@dataclass(frozen=True)
class Fitted:
    """Voxels of all subjects in one row, numbered anew."""

    coef: xr.DataArray
    intercept: xr.DataArray
    scores: xr.Dataset
    alphas: list[np.ndarray]
    voxels: list[np.ndarray]
    truth: xr.Dataset | None


def fit_subjects(config: CaptionConfig, subjects: list[Subject], steps: Steps) -> Fitted:
    """Encoders of all subjects; voxels are numbered anew, with the coordinates ``subject`` and ``voxel_of_subject``."""
    coefs, intercepts, scores, alphas, voxels, truths = [], [], [], [], [], []
    offset = 0
    for one in subjects:
        content = content_key(one.X, one.Y, one.X_test, one.Y_test)
        inputs = [content, config.encoder, config.held_out, config.seed]

        def fit(one: Subject = one, key: str = hash_json([content, vars(config.encoder)])[:16]) -> xr.Dataset:
            encoder = make_ridge(config.encoder, steps.folder / f"ridge-{key}")
            encoder.fit(one.X, one.Y)
            coef, intercept = encoder.to_linear()
            return xr.Dataset(
                {
                    "coef": coef,
                    "intercept": intercept,
                    "alpha": ("voxel", np.asarray(encoder.alpha_)),
                    "predicted": (("row", "voxel"), encoder.predict(one.X_test.values)),
                }
            )

        found = steps.arrays(f"encoder-{one.name}", inputs, fit)
        by_run = config.held_out.scheme in ("run", "session")
        how = EvaluationConfig(
            scheme="test",
            test_ids=["held out"],
            permutations=config.held_out.permutations,
            q=config.gate.q,
            permutation_mode="within" if by_run else "samples",
        )
        predicted = one.Y_test.copy(data=found["predicted"].values)

        def table(one: Subject = one, how: EvaluationConfig = how, predicted: xr.DataArray = predicted) -> xr.Dataset:
            return score_table(one.Y_test, predicted, how, ceilings=one.ceilings, seed=config.seed)

        score = steps.arrays(f"scores-{one.name}", [*inputs, how, found, one.ceilings], table)
        n = score.sizes["voxel"]
        numbers = {"voxel": np.arange(offset, offset + n)}
        labels = {"subject": ("voxel", np.full(n, one.name))}
        scores.append(score.assign_coords({**labels, "voxel_of_subject": ("voxel", score["voxel"].values), **numbers}))
        coefs.append(found["coef"].assign_coords(numbers))
        intercepts.append(found["intercept"].assign_coords(numbers))
        alphas.append(found["alpha"].values)
        voxels.append(numbers["voxel"])
        if one.truth is not None:
            names = ("family", "second_family", "members", "mixed", "ncsnr")
            planted = {name: ("voxel", one.truth[name].values) for name in names}
            truths.append(xr.Dataset(planted, coords=numbers))
        offset += n
    options: dict[str, Any] = {"dim": "voxel", "combine_attrs": "override", "coords": "different", "compat": "equals"}
    merged = xr.concat(scores, **options)
    return Fitted(
        xr.concat(coefs, **options),
        xr.concat(intercepts, **options),
        merged,
        alphas,
        voxels,
        xr.concat(truths, **options) if truths else None,
    )
