"""Passes over an image bank: projections and most-activating images of several jobs at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError
from neuroenc._core.files import hash_array
from neuroenc._core.topk import BestRows, plan_blocks
from neuroenc.captions._linear import Weights, as_weights, voxel_labels
from neuroenc.captions.checks._grounding_bank import BankImages, ImageSums
from neuroenc.captions.projection._project import Job
from neuroenc.captions.projection._stream import IdCollector, Plan, Projections, Reader, as_folds, read_bank
from neuroenc.retrieval import Chunk, as_bank


def evidence(
    coef: Any,
    bank: Any,
    *,
    intercept: Any = None,
    k: int = 8,
    features_normalised: bool = True,
    max_memory: str | int | None = None,
) -> pd.DataFrame:
    """Most activating images: the top k of a bank by predicted response ``W . x + b``, per voxel.

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
    reading = BankPass(bank, max_memory=max_memory)
    found = reading.evidence(coef, intercept=intercept, k=k, features_normalised=features_normalised)
    reading.read()
    return found().table


class Found(NamedTuple):
    """Best images of voxels: the table of :func:`neuroenc.captions.evidence`, and embeddings by id where kept."""

    table: pd.DataFrame
    rows: dict[str, np.ndarray]


class _Best:
    """Best images of one job's voxels; embeddings of those that are best so far are kept where asked."""

    def __init__(
        self, weights: Weights, k: int, features_normalised: bool, keep_rows: bool, n_images: int | None
    ) -> None:
        self._weights, self._at = weights, np.flatnonzero(weights.valid())
        #: Weights (voxel, feature) of voxels that have some.
        self.matrix = weights.matrix()[self._at]
        self.k, self.features_normalised, self.keep, self._n_images = k, features_normalised, keep_rows, n_images
        self.n, self.width = self.matrix.shape
        self.cost = 12 * (self.width + k) + (2 * 8 * self.width * k if keep_rows else 0)
        self._ids = IdCollector()
        self._kept: dict[int, np.ndarray] = {}
        self._found: list[tuple[np.ndarray, np.ndarray]] = []
        self._rows: dict[int, np.ndarray] = {}

    def open(self, a: int, b: int, budget: int, width: int) -> int:
        rows, self._block = plan_blocks(budget, width, b - a)
        self._list = BestRows(self.matrix[a:b], self.k, self._n_images, normalise=self.features_normalised)
        return rows

    def update(self, chunk: Chunk) -> None:
        self._list.update(chunk, self._block)
        self._ids(chunk, self._list.index)
        if self.keep:
            new = np.unique(self._list.index[self._list.index >= chunk.start])
            rows = np.asarray(chunk.rows)
            self._kept.update((int(k), np.array(rows[k - chunk.start])) for k in new)
            if len(self._kept) > max(4096, 2 * self._list.index.size):
                self._prune()

    def _prune(self) -> None:
        live = set(np.unique(self._list.index).tolist())
        self._kept = {k: row for k, row in self._kept.items() if k in live}

    def close(self) -> None:
        self._found.append(self._list.finish())
        self._prune()
        self._rows.update(self._kept)
        self._kept = {}
        del self._list

    def result(self) -> Found:
        score, image = np.zeros((0, self.k)), np.zeros((0, self.k), np.int64)
        if self._found:
            score, image = (np.concatenate(parts) for parts in zip(*self._found))
        predicted = score.astype(np.float64)
        if self.features_normalised:
            predicted *= np.linalg.norm(self.matrix, axis=1)[:, None]
        predicted += self._weights.intercept[self._at][:, None]
        voxel = np.repeat(self._at, self.k)
        frame = pd.DataFrame(
            {
                "voxel": self._weights.coef["voxel"].values[voxel],
                "rank": np.tile(np.arange(1, self.k + 1), self.n),
                "stimulus": self._ids.names(image).ravel().astype(object),
                "predicted": predicted.ravel(),
            }
        )
        order = sorted(self._rows)
        names = self._ids.names(np.array(order, dtype=np.int64))
        rows = {str(n): self._rows[k] for n, k in zip(names, order, strict=True)}
        return Found(pd.concat([frame, voxel_labels(self._weights.coef, voxel)], axis=1), rows)


class BankPass:
    """What several stages need of a bank, found while it is read once.

    Ask with :meth:`project`, :meth:`evidence` and :meth:`images`; each gives a function that has the result after
    :meth:`read`. Results are those of :func:`neuroenc.captions.project`, :func:`neuroenc.captions.evidence` and
    a reading of their own. The bank is read once more only for as many voxels as do not fit ``max_memory``.

    Parameters
    ----------
    bank : see :func:`neuroenc.retrieval.as_bank`
    max_memory : str, int or None
        Bytes for the running sums of all that was asked, and for temporaries.
    progress : bool

    Attributes
    ----------
    n_passes : int
        How often the bank was read.

    Examples
    --------
    >>> reading = BankPass(np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]))
    >>> weights = np.array([[5.0, 0.0], [0.0, 5.0]])
    >>> projection, best = reading.project(weights), reading.evidence(weights, k=1)
    >>> reading.read()
    >>> projection()["norm"].values.round(3).tolist(), best().table["stimulus"].tolist(), reading.n_passes
    ([2.0, 3.0], ['0', '1'], 1)
    """

    def __init__(self, bank: Any, *, max_memory: str | int | None = None, progress: bool = False) -> None:
        self.bank, self.max_memory, self.progress = as_bank(bank), max_memory, progress
        self.n_passes, self._done = 0, False
        self._groups: dict[Any, Projections] = {}
        self._others: list[Reader] = []
        self._digest = ""

    def project(
        self,
        coef: Any,
        part: np.ndarray | None = None,
        *,
        intercept: Any = None,
        temperature: float = 1 / 150,
        renormalise: bool = True,
        decouple: bool = True,
        features_normalised: bool = True,
    ) -> Callable[[], xr.Dataset]:
        """Ask for the projection of weights, as of :func:`neuroenc.captions.project`.

        Parameters
        ----------
        coef : DataArray or array (feature, voxel), or encoder with ``to_linear()``
        part : bool array (n,), optional
            Images that count.
        intercept, temperature, renormalise, decouple, features_normalised
            As in :func:`neuroenc.captions.project`.
        """
        self._still_open()
        mask = None if part is None else as_folds(np.asarray(part)[None], self.bank.n, 0)
        plan = Plan(temperature, decouple, None, None)
        key = (plan, None if mask is None else hash_array(mask))
        group = self._groups.setdefault(key, Projections(plan, mask, self.bank))
        number = group.add(Job(coef, intercept, renormalise, features_normalised, None))
        return lambda: group.dataset(number, self._read())

    def evidence(
        self, coef: Any, *, intercept: Any = None, k: int = 8, features_normalised: bool = True, keep_rows: bool = False
    ) -> Callable[[], Found]:
        """Ask for the best images of voxels, as of :func:`neuroenc.captions.evidence`.

        Parameters
        ----------
        coef, intercept, k, features_normalised
            As in :func:`neuroenc.captions.evidence`.
        keep_rows : bool
            Whether the embeddings of these images are kept.
        """
        self._still_open()
        reader = _Best(as_weights(coef, intercept), check_whole("k", k), features_normalised, keep_rows, self.bank.n)
        return self._ask(reader if reader.n else None, reader.result)

    def images(self, n_random: int, seed: int = 0, wanted: Iterable[str] = ()) -> Callable[[], BankImages]:
        """Ask for the mean of the images, for ``n_random`` of them drawn at random, and for those ``wanted`` by id."""
        self._still_open()
        sums = ImageSums(self.bank.n, n_random, seed, wanted)
        return self._ask(sums, sums.result)

    def _ask(self, reader: Reader | None, result: Callable[[], Any]) -> Callable[[], Any]:
        """``result``, once the bank was read by ``reader``."""
        self._others += [] if reader is None else [reader]

        def found() -> Any:
            self._read()
            return result()

        return found

    def _still_open(self) -> None:
        if self._done:
            raise ConfigError("this bank was read already. Next step: a new BankPass for what else is asked.")

    def _read(self) -> str:
        if not self._done:
            raise ConfigError("the bank was not read yet. Next step: read(), then ask for results.")
        return self._digest

    def read(self) -> None:
        """Read the bank.

        Raises
        ------
        DataError
            Width mismatch; NaN, infinite or zero-norm embeddings; an empty bank; a stream that would have to be read
            more than once.
        """
        self._still_open()
        self._done = True
        readers: list[Reader] = [*self._groups.values(), *self._others]
        if readers:
            self._digest, self.n_passes = read_bank(self.bank, readers, self.max_memory, show=self.progress)
