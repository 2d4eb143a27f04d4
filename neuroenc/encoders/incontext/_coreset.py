"""A sample of a session's trials that does not depend on their order."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

__all__ = ["Coreset"]


class Coreset:
    r"""A sample of fixed size of all trials so far, that does not depend on their order.

    A trial's place is settled by a number :math:`u` that is a hash of the trial: the ``size`` trials of smallest
    :math:`-\ln(u) / w` are kept, a sample without replacement with chances that grow with :math:`w`, and that of two
    sets of trials is found in the two samples (bottom-k sketch). With forgetting, :math:`w` falls by ``forget`` a
    trial.

    Parameters
    ----------
    size, n_features, n_voxels : int
    forget : float
    seed : int

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.random.default_rng(0).standard_normal((2, 100, 3))
    >>> a, b = Coreset(10, 3, 3), Coreset(10, 3, 3)
    >>> a.add(x, y), b.add(x[::-1], y[::-1])
    (True, True)
    >>> bool((a.trials()[0] == b.trials()[0]).all())
    True
    """

    def __init__(self, size: int, n_features: int, n_voxels: int, forget: float = 1.0, seed: int = 0) -> None:
        self.x = np.zeros((size, n_features), dtype=np.float32)
        self.y = np.zeros((size, n_voxels), dtype=np.float32)
        self.key, self.time = np.full(size, np.inf), np.zeros(size)
        self.rate, self.seed = -float(np.log(forget)), int(seed)
        self.n, self.threshold = 0, np.inf

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.x.nbytes + self.y.nbytes + self.key.nbytes + self.time.nbytes

    def add(self, x: np.ndarray, y: np.ndarray) -> bool:
        """Offer trials (n, feature), (n, voxel), in time; whether the sample changed."""
        x, y = np.ascontiguousarray(x, dtype=np.float32), np.ascontiguousarray(y, dtype=np.float32)
        salt = self.seed.to_bytes(8, "little", signed=True)
        numbers = [
            int.from_bytes(blake2b(a.tobytes() + b.tobytes(), key=salt, digest_size=8).digest(), "little")
            for a, b in zip(x, y)
        ]
        u = (np.array(numbers, dtype=np.float64) + 0.5) / 2.0**64
        time = self.n + np.arange(len(x), dtype=np.float64)
        self.n += len(x)
        return self._offer(x, y, np.log(-np.log(u)) - self.rate * time, time)

    def merge(self, other: Coreset) -> None:
        """Take in another sample (without forgetting)."""
        held = np.isfinite(other.key)
        self.threshold = min(self.threshold, other.threshold)
        self._offer(other.x[held], other.y[held], other.key[held], self.n + other.time[held])
        self.n += other.n

    def _offer(self, x: np.ndarray, y: np.ndarray, key: np.ndarray, time: np.ndarray) -> bool:
        size = len(self.key)
        every = np.concatenate([self.key, key])
        order = np.argsort(every, kind="stable")
        self.threshold = min(self.threshold, float(every[order[size]])) if len(every) > size else self.threshold
        new = order[:size][order[:size] >= size] - size
        free = np.setdiff1d(np.arange(size), order[:size])
        self.x[free], self.y[free], self.key[free], self.time[free] = x[new], y[new], key[new], time[new]
        return bool(len(new))

    def trials(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features, responses and log weights of the trials kept.

        Weights stand for the trials left out (Horvitz-Thompson), but their sum is the sample's size at most: a reader
        sees no longer support than that.
        """
        order = np.argsort(self.key, kind="stable")[: int(np.isfinite(self.key).sum())]
        time = self.time[order]
        weight = -self.rate * (self.n - 1 - time)
        if np.isfinite(self.threshold):
            weight = weight - np.log(-np.expm1(-np.exp(np.minimum(self.threshold + self.rate * time, 50.0))))
        excess = np.logaddexp.reduce(weight) - np.log(len(self.key)) if len(order) else 0.0
        return self.x[order], self.y[order], weight - max(0.0, float(excess))
