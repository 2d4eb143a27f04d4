"""Exact dense index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuroenc._core.errors import DataError
from neuroenc.retrieval._bank import as_bank
from neuroenc.retrieval._topk import top_k

__all__ = ["DenseIndex"]


class DenseIndex:
    """Exact nearest neighbours by cosine or inner product, over embeddings that may exceed memory.

    Parameters
    ----------
    embeddings : array (n, d), np.memmap, DataArray (stimulus, feature), path of a .npy, or list of shards
        float16, float32, float64 or integers; read in chunks at each search.
    ids : sequence of str, length n, optional
        Default: the stimulus coordinate of a DataArray, else the row number as text.
    normalise : bool
        True: cosine; False: inner product.

    Raises
    ------
    DataError
        Wrong shape or dtype, wrong number of ids, or a stream that can be read only once.

    Examples
    --------
    >>> import numpy as np
    >>> index = DenseIndex(np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), ids=["a", "b", "c"])
    >>> scores, rows = index.search(np.array([[0.0, 3.0]]), k=2)
    >>> index.names(rows).tolist(), scores.round(3).tolist()
    ([['b', 'c']], [[1.0, 0.707...]])
    """

    def __init__(self, embeddings: Any, ids: Sequence[str] | np.ndarray | None = None, normalise: bool = True) -> None:
        self._bank = as_bank(embeddings, ids)
        if not self._bank.reusable:
            raise DataError("an index reads its embeddings at each search: pass a list, an array or a path.")
        self.normalise = bool(normalise)

    def __len__(self) -> int:
        return int(self._bank.n or 0)

    def __repr__(self) -> str:
        return f"DenseIndex(n={len(self)}, normalise={self.normalise})"

    def search(self, queries: Any, k: int, max_memory: str | int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows for each query.

        Parameters
        ----------
        queries : array (q, d)
        k : int
        max_memory : str, int or None
            Bytes for temporaries; the result does not depend on it.

        Returns
        -------
        scores : ndarray (q, k) float32
            Cosine (or inner product), descending; among equal scores the lower row comes first.
        indices : ndarray (q, k) int64

        Raises
        ------
        DataError
            Width mismatch, k > n, NaN or zero-norm queries or embeddings.
        """
        return top_k(queries, self._bank, k, normalise=self.normalise, max_memory=max_memory)

    def names(self, indices: Any) -> np.ndarray:
        """Ids (same shape, str) of row numbers."""
        return self._bank.names(indices)
