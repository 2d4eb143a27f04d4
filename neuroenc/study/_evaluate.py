"""Scores of a fitted encoder on responses that it did not see, in one labelled table."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import DataError
from neuroenc.study.config import EvaluationConfig
from neuroenc.study.stages.score import noise_ceilings, score_table


def evaluate(
    encoder: Any,
    X: Any,
    Y: Any,
    *,
    repeats: xr.DataArray | None = None,
    permutations: int = 1000,
    permutation_mode: Literal["auto", "samples", "within", "whole", "shift"] = "auto",
    seed: int = 0,
) -> xr.Dataset:
    r"""Accuracy of a fitted encoder on held-out responses, against their noise ceiling and against chance.

    Parameters
    ----------
    encoder : fitted encoder
        With ``predict``.
    X : DataArray (stimulus, feature), or array (row, feature)
        Features of the held-out stimuli, in any order; rows of plain arrays go by position.
    Y : DataArray (presentation, voxel) or (stimulus, voxel), or array (row, voxel)
        Held-out responses. Single presentations are averaged over repeats, which also give the noise ceiling.
    repeats : DataArray (presentation, voxel), optional
        Single presentations for the ceiling, where ``Y`` is averaged already.
    permutations : int
        Of rows against predictions; 0 leaves p and q out.
    permutation_mode : {"auto", "samples", "within", "whole", "shift"}
        "within" shuffles rows of a run (or session) among themselves, "whole" and "shift" exchange or rotate runs.
    seed : int

    Returns
    -------
    Dataset over ``voxel``
        ``r`` (Pearson correlation), ``r2`` and ``ev`` (shares of variance), where stimuli were repeated ``ncsnr``,
        ``noise_ceiling_r`` (correlation), ``noise_ceiling_r2`` (share of variance) and ``r_normalised``; ``p_value``
        and ``q_value`` (Benjamini-Hochberg); coordinates of the voxels, and affine and space for maps.

    Raises
    ------
    DataError
        Stimuli without features or that the feature space was trained on, other voxels than the encoder's, or lengths
        that differ.

    Examples
    --------
    >>> from neuroenc.encoders import RidgeEncoder
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((80, 5))
    >>> Y = X @ rng.standard_normal((5, 3)) + rng.standard_normal((80, 3))
    >>> scores = evaluate(RidgeEncoder().fit(X[:60], Y[:60]), X[60:], Y[60:], permutations=100)
    >>> sorted(scores)
    ['ev', 'p_value', 'q_value', 'r', 'r2']
    >>> bool((scores["r"] > 0.5).all())
    True
    """
    if not isinstance(Y, xr.DataArray):
        Y = data.make_responses(np.asarray(Y), stimulus=[str(n) for n in range(len(Y))], dim="stimulus")
        if isinstance(X, xr.DataArray):
            raise DataError("X is labelled and Y is not: they cannot be matched. Next step: label both, or neither.")
    averaged = data.average_repeats(Y) if Y.dims[0] == "presentation" else Y
    if isinstance(X, xr.DataArray):
        matched = data.match(X, averaged)
        data.check_unseen(matched, "X")
        found = encoder.predict(matched)
    else:
        if len(X) != len(averaged):
            raise DataError(f"X has {len(X)} rows and Y {len(averaged)}; they must agree.")
        found = encoder.predict(np.asarray(X))
    if isinstance(found, xr.DataArray) and "voxel" in found.coords and "voxel" in averaged.coords:
        mine, theirs = averaged["voxel"].values, found["voxel"].values
        if not np.isin(mine, theirs).all():
            odd = mine[~np.isin(mine, theirs)]
            raise DataError(
                f"{len(odd)} of {len(mine)} voxels are none of the encoder's (first: {odd[0]}). Next step: the "
                "responses of the subject that the encoder was fitted to."
            )
        found = found.sel(voxel=mine)
    predicted = averaged.copy(data=np.asarray(found, dtype=np.float32))
    config = EvaluationConfig(
        scheme="test", test_ids=["held out"], permutations=permutations, permutation_mode=permutation_mode
    )
    return score_table(averaged, predicted, config, ceilings=noise_ceilings(repeats, Y, averaged), seed=seed)
