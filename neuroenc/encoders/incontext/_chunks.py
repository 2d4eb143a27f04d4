"""Long supports in chunks, whose weights are averaged."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc._core.arrays import as_numpy
from neuroenc._core.errors import ConfigError
from neuroenc.encoders.incontext._condition import condition
from neuroenc.encoders.incontext._encoder import InContextEncoder
from neuroenc.encoders.incontext._model import InContextModel


class WeightSums:
    """Running sums of chunks' weights, each as heavy as its trials; a chunk's voxels without a response add nothing."""

    def __init__(self, n_features: int, n_voxels: int) -> None:
        self.coef = np.zeros((n_features, n_voxels))
        self.intercept, self.noise, self.total = np.zeros(n_voxels), np.zeros(n_voxels), np.zeros(n_voxels)

    def add(self, found: dict[str, np.ndarray], heavy: np.ndarray, columns: np.ndarray | slice = slice(None)) -> None:
        """A chunk's ``coef, intercept, noise`` of ``columns``, with weights (voxel,)."""
        self.coef[:, columns] += found["coef"] * heavy
        self.intercept[columns] += found["intercept"] * heavy
        self.noise[columns] += found["noise"] * heavy
        self.total[columns] += heavy

    def scaled(self, factor: float) -> WeightSums:
        """A copy in which everything counts ``factor`` times."""
        new = WeightSums(*self.coef.shape)
        for name, value in vars(self).items():
            setattr(new, name, value * factor)
        return new

    def merge(self, other: WeightSums) -> None:
        """Both chunks' sums."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def means(self) -> dict[str, np.ndarray]:
        """``coef``, ``intercept`` and ``noise`` as float32."""
        total = np.maximum(self.total, np.finfo(float).tiny)
        parts = {"coef": self.coef, "intercept": self.intercept, "noise": self.noise}
        return {name: (value / total).astype(np.float32) for name, value in parts.items()}


class ChunkAveraged(InContextEncoder):
    r"""In-context encoder for long supports: weights averaged over chunks.

    .. math:: (w_v, b_v) = \sum_c \frac{n_{vc}}{n_v}\, T_\theta\big(\{(x_t, y_{vt})\}_{t \in c}\big)

    over disjoint chunks c of at most ``chunk`` trials. Attention costs as much as for one chunk, so time grows with the
    number of trials and not with its square.

    Parameters
    ----------
    model, response_scale, device, precision, max_memory, progress
        As in `InContextEncoder`.
    chunk : int
        Trials of a chunk, within what the model was trained on; the last one has the rest.
    shuffle : int, optional
        Seed of the order in which trials go into chunks; None keeps theirs, and with it drift within a session.

    Attributes
    ----------
    n_chunks_ : int
    coef_, intercept_, noise_variance_, n_seen_, silent_voxels_
        As in `InContextEncoder`.

    Notes
    -----
    An average of shrunken weights stays shrunken: it has the bias of one chunk and the scatter of all. That is what a
    model of the published form needs, whose output degrades beyond its training; an anchored model's closed form takes
    any number of trials, so give it all of them, or a `StreamingSession`. Voxels are not pooled (``pool="none"``).

    Measured with small models trained on 16 to 32 trials, R2 of noiseless responses with 2000 trials: published form
    0.82 in one piece, 0.84 in chunks of 32, 0.87 of 64; anchored 0.995 in one piece, 0.90 in chunks of 32. Chunks of
    twice the trained length were best, so try some.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders.incontext import ChunkAveraged, InContextEncoder, make_model
    >>> rng = np.random.default_rng(0)
    >>> X, Y = rng.standard_normal((90, 8)), rng.standard_normal((90, 3))
    >>> model = make_model("small", n_features=8, dim=16, depth=1, form="published")
    >>> averaged = ChunkAveraged(model, chunk=45, shuffle=None).fit(X, Y)
    >>> halves = [InContextEncoder(model).fit(X[rows], Y[rows]).coef_ for rows in (slice(0, 45), slice(45, 90))]
    >>> averaged.n_chunks_, bool(np.allclose(averaged.coef_, np.mean(halves, axis=0), atol=1e-5))
    (2, True)
    """

    def __init__(
        self,
        model: Any = "world",
        *,
        chunk: int = 500,
        shuffle: int | None = 0,
        response_scale: str = "check",
        device: str = "auto",
        precision: str = "auto",
        max_memory: str | int | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__(
            model,
            pool="none",
            robust="none",
            response_scale=response_scale,
            device=device,
            precision=precision,
            max_memory=max_memory,
            progress=progress,
        )
        self.chunk = chunk
        self.shuffle = shuffle

    def _weigh(
        self, model: InContextModel, x: np.ndarray, Y: Any, log_weight: np.ndarray | None, scale: Any
    ) -> dict[str, np.ndarray]:
        if int(self.chunk) < 1:
            raise ConfigError(f"chunk={self.chunk} must be at least 1.")
        if model.query is not None and not model.config.silent:
            raise ConfigError("queries of this model ask one support, not its chunks. Next step: InContextEncoder.")
        n, size = len(x), int(self.chunk)
        order = np.arange(n) if self.shuffle is None else np.random.default_rng(self.shuffle).permutation(n)
        chunks = [np.sort(order[start : start + size]) for start in range(0, n, size)]
        sums, place = WeightSums(x.shape[1], Y.shape[1]), self._place()
        for rows in chunks:
            block = as_numpy(Y[rows], "responses").astype(np.float32)
            trial = np.ones(len(rows)) if log_weight is None else np.exp(log_weight[rows].astype(np.float64))
            heavy = trial @ ~np.isnan(block)
            columns = np.flatnonzero(heavy > 0)
            if not len(columns):
                continue
            found = condition(
                model,
                x[rows],
                block[:, columns],
                log_weight=None if log_weight is None else log_weight[rows],
                scale=None if scale is None else (scale[0][columns], scale[1][columns]),
                show=self.progress,
                **place,
            )
            sums.add(found, heavy[columns], columns)
        self.n_chunks_ = len(chunks)
        return sums.means()

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predicted responses (n, voxel)."""
        if return_std:
            raise ConfigError(
                "chunk averages have no posterior variance. Next step: neuroenc.encoders.incontext.support_ensemble."
            )
        return super().predict(X)
