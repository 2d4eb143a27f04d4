"""What stands behind captions: the best images of a voxel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from neuroenc.captions._linear import as_weights, voxel_labels
from neuroenc.captions.projection._project import IdCollector
from neuroenc.retrieval import as_bank, top_k

__all__ = ["Best", "evidence"]


def evidence(
    coef: Any,
    bank: Any,
    *,
    intercept: Any = None,
    k: int = 8,
    features_normalised: bool = True,
    max_memory: str | int | None = None,
) -> pd.DataFrame:
    """The k images of a bank with the highest predicted response ``W . x + b`` of each voxel.

    Parameters
    ----------
    coef : DataArray or array (feature, voxel), or encoder with ``to_linear()``
    bank : see :func:`neuroenc.retrieval.as_bank`
        Image embeddings (n, feature), any norm.
    intercept : array (voxel,), optional
    k : int
        At most the number of images.
    features_normalised : bool
        Whether the encoder was fitted on unit-norm features; x is then the unit-norm embedding.
    max_memory : str, int or None

    Returns
    -------
    DataFrame, one row per voxel and rank
        ``voxel, rank`` (from 1)``, stimulus`` (id)``, predicted`` (units of the responses) and the voxel
        coordinates present. Voxels with zero or NaN weights have no row.

    Raises
    ------
    DataError
        k larger than the bank, width mismatch, NaN embeddings.

    Examples
    --------
    >>> import numpy as np
    >>> bank = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    >>> evidence(np.array([[0.0], [3.0]]), bank, k=2)[["stimulus", "predicted"]].round(2).values.tolist()
    [['1', 3.0], ['2', 2.12]]
    """
    images, ids = as_bank(bank), IdCollector()
    best = Best(coef, intercept, k, features_normalised)
    if not len(best.matrix):
        return best.table(np.zeros((0, k)), np.zeros((0, k), str))
    score, at = top_k(best.matrix, images, k, normalise=features_normalised, max_memory=max_memory, seen=ids)
    return best.table(score, ids.names(at))


class Best:
    """What the best images of voxels are looked for with, and the table of what was found."""

    def __init__(self, coef: Any, intercept: Any, k: int, features_normalised: bool) -> None:
        self._weights = as_weights(coef, intercept)
        self._rows = np.flatnonzero(self._weights.valid())
        #: Weights (voxel, feature) of voxels that have some.
        self.matrix = self._weights.matrix()[self._rows]
        self.k, self.features_normalised = k, features_normalised

    def table(self, score: np.ndarray, names: np.ndarray) -> pd.DataFrame:
        """Evidence from the scores (voxel, k) and ids (voxel, k) of images."""
        rows = self._rows
        columns = ["voxel", "rank", "stimulus", "predicted"]
        if not len(rows):
            frame = pd.DataFrame({c: [] for c in columns})
            return pd.concat([frame, voxel_labels(self._weights.coef, rows)], axis=1)
        k = score.shape[1]
        predicted = score.astype(np.float64)
        if self.features_normalised:
            predicted *= np.linalg.norm(self.matrix, axis=1)[:, None]
        predicted += self._weights.intercept[rows][:, None]
        voxel = np.repeat(rows, k)
        frame = pd.DataFrame(
            {
                "voxel": self._weights.coef["voxel"].values[voxel],
                "rank": np.tile(np.arange(1, k + 1), len(rows)),
                "stimulus": names.ravel().astype(object),
                "predicted": predicted.ravel(),
            }
        )
        return pd.concat([frame, voxel_labels(self._weights.coef, voxel)], axis=1)
