"""Streaming sessions: update every voxel's weights trial by trial, in constant memory."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Self, cast

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import one_of
from neuroenc._core.device import resolve_device
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.provenance import provenance
from neuroenc.data import align
from neuroenc.encoders._labels import check_space, features_matrix, match_voxels, space_of, voxel_coords
from neuroenc.encoders.incontext._anchor import ClosedFormAnchor, Moments
from neuroenc.encoders.incontext._chunks import WeightSums
from neuroenc.encoders.incontext._condition import FEWEST_VOXELS, condition, pooled_prior, voxels_at_once
from neuroenc.encoders.incontext._config import MEMORIES
from neuroenc.encoders.incontext._encoder import _MOST, InContextEncoder
from neuroenc.encoders.incontext._model import InContextModel, VoxelWeights


class Coreset:
    r"""A sample of fixed size of all trials so far, that does not depend on their order.

    A trial's place is settled by a number :math:`u` that is a hash of the trial: the ``size`` trials of smallest
    :math:`-\ln(u) / w` are kept, a sample without replacement with chances that grow with :math:`w`, and that of two
    sets of trials is found in the two samples (bottom-k sketch). With forgetting, :math:`w` falls by ``forget`` a
    trial.

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


_BYTES = 2**28


def _ages(forget: float, n: int) -> np.ndarray:
    """Weights of n trials in the order of time, relative to the last."""
    return np.asarray(forget ** np.arange(n - 1, -1, -1, dtype=np.float64))


class MemoryState:
    """What a model's memory holds of all trials; weights by the head, of the published form."""

    def __init__(self, model: InContextModel, n_voxels: int, device: torch.device) -> None:
        self.model, self.device = model.to(device).eval(), device
        assert model.memory is not None
        self.memory = model.memory
        with torch.no_grad():
            self.state = self.memory.init(n_voxels)

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in _tensors(self.state))

    @torch.no_grad()
    def add(self, x: np.ndarray, y: np.ndarray) -> bool:
        """Take in trials (n, feature), (n, voxel); always something new."""
        step = max(1, _BYTES // (16 * self.model.config.dim * y.shape[1]))
        for start in range(0, len(x), step):
            images, responses = (torch.as_tensor(a[start : start + step], device=self.device) for a in (x, y))
            self.state = self.memory.update(self.state, self.model.embed(images, responses.T))
        return True

    def merge(self, other: MemoryState) -> None:
        self.state = self.memory.merge(self.state, other.state)

    @torch.no_grad()
    def answer(self) -> Tensor:
        """(voxel, width)."""
        return self.memory.read(self.state).flatten(1)

    @torch.no_grad()
    def weights(self) -> dict[str, np.ndarray]:
        nothing = torch.empty(0, device=self.device)
        found = self.model.write(self.answer(), nothing, nothing)
        coef, intercept = found.coef.T.contiguous().cpu().numpy(), found.intercept.cpu().numpy()
        return {"coef": coef, "intercept": intercept, "noise": np.full(len(intercept), np.nan, dtype=np.float32)}


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    return [t for part in state for t in _tensors(part)] if isinstance(state, tuple) else []


class AnchoredState:
    """Moments of all trials for the closed form, and for the network a sample of them or what its memory holds.

    Arrays (n, feature), (n, voxel).
    """

    def __init__(
        self,
        model: InContextModel,
        n_voxels: int,
        keep: int,
        forget: float,
        seed: int,
        pool: bool,
        device: torch.device,
    ) -> None:
        self.model, self.forget, self.pool, self.device = model, forget, pool, device
        self.coreset: Coreset | MemoryState = (
            Coreset(keep, model.config.n_features, n_voxels, forget, seed)
            if model.memory is None
            else MemoryState(model, n_voxels, device)
        )
        self.moments: Moments | None = None
        self._register: Tensor | None = None

    @property
    def nbytes(self) -> int:
        tensors = [*(self.moments or ()), *(() if self._register is None else (self._register,))]
        return self.coreset.nbytes + sum(t.numel() * t.element_size() for t in tensors)

    @torch.no_grad()
    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        anchor = self._anchor()
        images, responses, weight = (
            torch.as_tensor(a, device=self.device) for a in (x, y.T.copy(), np.log(_ages(self.forget, len(x))))
        )
        if self.moments is not None and self.forget < 1:
            self.moments = Moments(*(t * self.forget ** len(x) for t in self.moments))
        self.moments = _plus(self.moments, anchor.moments(images, responses, weight))
        if self.coreset.add(x, y) or self.forget < 1:
            self._register = None

    def merge(self, other: AnchoredState) -> None:
        self.coreset.merge(cast(Any, other.coreset))
        self.moments, self._register = _plus(self.moments, other.moments), None

    @torch.no_grad()
    def weights(self) -> dict[str, np.ndarray]:
        """``coef`` (feature, voxel), ``intercept`` and ``noise`` (voxel,)."""
        anchor = self._anchor()
        held = len(self.coreset.key) if isinstance(self.coreset, Coreset) else 1
        step = voxels_at_once(self.model, held, _BYTES)
        if self._register is None:
            self._register = self._read(self.coreset, step)
        register, n = self._register, len(self._register)
        parts: list[VoxelWeights] = []
        assert self.moments is not None
        pooled = self._pooled(anchor, register, step)
        for block in torch.arange(n, device=self.device).split(step):
            parts.append(VoxelWeights(*anchor.solve(register[block], self.moments.of(block), pooled=pooled)))
        coef = torch.cat([p.coef for p in parts]).T.contiguous().cpu().numpy()
        intercept = torch.cat([p.intercept for p in parts]).cpu().numpy()
        noise = torch.cat([p.noise for p in parts if p.noise is not None]).cpu().numpy()
        return {"coef": coef, "intercept": intercept, "noise": noise}

    def _pooled(self, anchor: ClosedFormAnchor, register: Tensor, step: int) -> Tensor | None:
        """Prior of these voxels, as `InContextEncoder` takes it from their posteriors."""
        n = len(register)
        if not self.pool or n < FEWEST_VOXELS:
            return None
        columns = torch.as_tensor(np.unique(np.linspace(0, n - 1, min(n, _MOST)).astype(int)), device=self.device)
        assert self.moments is not None
        found = [anchor.log_posterior(register[some], self.moments.of(some)) for some in columns.split(step)]
        return pooled_prior(torch.cat(found), anchor.prior())

    def _anchor(self) -> ClosedFormAnchor:
        anchor = self.model.to(self.device).eval().anchor
        assert anchor is not None
        return anchor

    def _read(self, sample: Coreset | MemoryState, step: int) -> Tensor:
        """First register (voxel, dim) after the sample, or the memory's answer."""
        if isinstance(sample, MemoryState):
            return sample.answer()
        x, y, weight = (torch.as_tensor(a, dtype=torch.float32, device=self.device) for a in sample.trials())
        plain = bool((weight == 0).all())
        columns = y.T.contiguous()
        found = [
            self.model.read(x, columns[k : k + step], None if plain else weight)[0][:, 0]
            for k in range(0, len(columns), step)
        ]
        return torch.cat(found)


class ChunkState:
    """Sums over complete chunks, and the trials of the open one."""

    def __init__(self, model: InContextModel, n_voxels: int, keep: int, forget: float, device: torch.device) -> None:
        self.model, self.forget, self.device = model, forget, device
        self.sums = WeightSums(model.config.n_features, n_voxels)
        self.x = np.zeros((keep, model.config.n_features), dtype=np.float32)
        self.y = np.zeros((keep, n_voxels), dtype=np.float32)
        self.filled = 0

    @property
    def nbytes(self) -> int:
        return self.x.nbytes + self.y.nbytes + sum(v.nbytes for v in vars(self.sums).values())

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        while len(x):
            count = min(len(x), len(self.x) - self.filled)
            place = slice(self.filled, self.filled + count)
            self.x[place], self.y[place] = x[:count], y[:count]
            self.filled, x, y = self.filled + count, x[count:], y[count:]
            if self.filled == len(self.x):
                self.sums, self.filled = self._with_open(), 0

    def merge(self, other: ChunkState) -> None:
        self.sums.merge(other.sums)
        self.add(other.x[: other.filled], other.y[: other.filled])

    def weights(self) -> dict[str, np.ndarray]:
        return self._with_open().means()

    def _with_open(self) -> WeightSums:
        n = self.filled
        if not n:
            return self.sums
        weight = _ages(self.forget, n)
        found = condition(
            self.model,
            self.x[:n],
            self.y[:n],
            device=self.device,
            log_weight=None if self.forget == 1 else np.log(weight),
        )
        sums = self.sums.scaled(self.forget**n)
        sums.add(found, np.full(self.y.shape[1], weight.sum()))
        return sums


def _plus(a: Moments | None, b: Moments | None) -> Moments | None:
    if a is None or b is None:
        return a if b is None else Moments(*(t.clone() for t in b))
    return Moments(*(s + t for s, t in zip(a, b)))


class StreamingSession:
    """Streaming session: update the weights of all voxels after every trial, in constant memory and time.

    Noise is Gaussian, as with ``InContextEncoder(robust="none", clip=None)``: how noisy a trial is, and what is an
    outlier, shows only beside later ones.

    Parameters
    ----------
    model : InContextModel
    memory : {"moments", "chunks", "attention", "titans", "gru", "lstm"}, optional
        What is held of past trials; default what the model has. ``"moments"``: sums for the closed form of an anchored
        model; ``"chunks"``: weights of a published one; the others: the learned memory of a model made with
        ``memory=`` (see `InContextConfig`). Another than the model's is refused.
    keep : int
        Trials held: the sample that an anchored model's transformer reads, or the chunk of a model of the published
        form. Within what the model was trained on.
    forget : float
        Weight of a trial relative to the next one in moments and chunks; 1 forgets nothing, 0.99 looks back about 100
        trials.
    pool : {"voxels", "none"}
        As in `InContextEncoder` (anchored models).
    seed : int
        Of the sample.
    device : str

    Notes
    -----
    Anchored: the moments that the closed form needs (Gram matrix of images, their products with responses, power,
    count) are sums over trials, so the solve is exact for all of them. The transformer, whose trials attend to each
    other, cannot be streamed; it reads a sample of ``keep`` trials (`Coreset`), which only moves the prior. So

    - up to ``keep`` trials the result is that of `InContextEncoder` on all of them, with forgetting on all of them
      weighted by their age;
    - after that it is the closed form of all trials with the prior that the sample asks for;
    - without forgetting, the order of trials does not matter, nor how they are split into updates and merged sessions.

    Published form: the result is that of ``ChunkAveraged(model, chunk=keep, shuffle=None)``, exactly, for which order
    matters. Merging adds the sums of complete chunks and then the other session's open trials. With forgetting, trials
    are weighted by their age at the end of their chunk, and chunks by their own.

    Learned memories: the result is the model's on all trials at once (`InContextEncoder`), exactly. Measured with small
    models, R2 of noiseless responses after 128 trials: weights that turn by 2 radians, `EmpiricalBayesRidge` .17, with
    ``forget="auto"`` .71, Titans .70, others .44; outlying trials beside that, ridge that forgets and is robust .64,
    Titans .57, others .36 and less; no drift, ridge .94, Titans .74.

    All of it is up to rounding. A trial that was missed altogether (NaN in every voxel) is skipped; one that is missing
    in some voxels is refused, because each voxel would need a Gram matrix of its own.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders.incontext import StreamingSession, make_model
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((200, 8)), rng.standard_normal((8, 3)) / 3
    >>> session = StreamingSession(make_model("small", n_features=8, dim=16, depth=1), keep=50)
    >>> for x in X:
    ...     session = session.update(x, x @ W + 0.3 * rng.standard_normal(3))
    >>> session.n_trials, bool(np.abs(session.encoder().coef_ - W).max() < 0.1)
    (200, True)
    """

    def __init__(
        self,
        model: InContextModel,
        *,
        memory: str | None = None,
        keep: int = 256,
        forget: float = 1.0,
        pool: str = "voxels",
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        if not isinstance(model, InContextModel):
            raise ConfigError(f"{type(model).__name__} is not an InContextModel. Next step: load_model(name).")
        if keep < 1 or not 0 < forget <= 1:
            raise ConfigError(f"keep={keep} must be at least 1, forget={forget} above 0 and at most 1.")
        one_of("pool", pool, ("voxels", "none"))
        if model.config.form == "query":
            raise ConfigError(
                "queries of this model attend to all trials, which a session does not keep. Next step: a model of the "
                "anchored form, or one with memory='attention'."
            )
        found = model.config.memory or ("chunks" if model.anchor is None else "moments")
        if memory is not None:
            one_of("memory", memory, ("moments", "chunks", *MEMORIES))
            if memory != found:
                raise ConfigError(
                    f"memory={memory!r}, and this model ({model!r}) has {found!r}. Next step: memory={found!r}, or a "
                    "model trained with the other one: make_model(..., memory=...), [incontext.model] memory."
                )
        if forget != 1 and model.config.memory is not None and model.anchor is None:
            raise ConfigError(f"forget={forget}: a learned memory forgets as it was trained to. Next step: forget=1.")
        self.memory = found
        self.model, self.keep, self.forget, self.pool = model, int(keep), float(forget), pool
        self.seed, self.device = seed, device
        self.n_trials, self.n_voxels = 0, 0
        self._voxels: dict[str, Any] | None = None
        self._space: dict[str, Any] = {}
        self._state: AnchoredState | ChunkState | MemoryState | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the state, without the model."""
        return 0 if self._state is None else self._state.nbytes

    def update(self, x: Any, y: Any) -> Self:
        """Take in a trial, or several in the order of time.

        Parameters
        ----------
        x : array (feature,) or (n, feature)
        y : array (voxel,) or (n, voxel)
            Responses, z-scored as in training; labelled voxels are remembered.
        """
        if isinstance(x, xr.DataArray) and isinstance(y, xr.DataArray) and x.ndim == y.ndim == 2:
            align(x, y)
        check_space(self.model.features, x, "the model")
        y = match_voxels(self._voxels, self._space, y)
        values, responses = self._checked(x, y)
        responses, values = (a[~np.isnan(responses).all(axis=1)] for a in (responses, values))
        if np.isnan(responses).any() or np.isinf(responses).any() or not np.isfinite(values).all():
            raise DataError(
                "features or responses of a trial are not finite, or missing in some voxels only. Next step: leave out "
                "the trial, or these voxels."
            )
        state = self._begun(responses.shape[1], voxel_coords(y), space_of(y))
        if len(values):
            state.add(values, responses)
            self.n_trials += len(values)
        return self

    def merge(self, other: StreamingSession) -> Self:
        """Take in another session of the same model and voxels; see the notes for what that is equal to."""
        if self.forget != 1 or other.forget != 1:
            raise ConfigError("sessions that forget have a time of their own and are not merged. Next step: forget=1.")
        if self.model is not other.model or self.keep != other.keep or self.seed != other.seed:
            raise ConfigError("sessions of other models, keep or seed are not merged. Next step: give both the same.")
        if other._state is None:
            return self
        mine, theirs = self._voxels, other._voxels
        if mine is not None and theirs is not None:
            for name in set(mine) & set(theirs) & {"voxel", "hemi", "subject", "vertex", "i", "j", "k"}:
                if mine[name][1].astype(str).tolist() != theirs[name][1].astype(str).tolist():
                    raise DataError(f"the sessions have voxels of another {name}, or in another order: not merged.")
        state = self._begun(other.n_voxels, other._voxels, other._space)
        if self.n_voxels != other.n_voxels:
            raise DataError(f"{self.n_voxels} voxels here, {other.n_voxels} there. Next step: the same voxels.")
        state.merge(cast(Any, other._state))  # of one model, so of one kind
        self.n_trials += other.n_trials
        return self

    def encoder(self) -> InContextEncoder:
        """Fitted encoder of all trials so far; it does not follow later ones."""
        if self._state is None or not self.n_trials:
            raise ConfigError("no trial has come yet. Next step: update(x, y).")
        found = self._state.weights()
        encoder = InContextEncoder(self.model, pool=self.pool, device=self.device)
        encoder.coef_, encoder.intercept_ = found["coef"], found["intercept"]
        encoder.noise_variance_ = found["noise"]
        encoder.n_features_in_ = self.model.config.n_features
        encoder.n_samples_fit_, encoder.n_seen_ = self.n_trials, np.full(self.n_voxels, self.n_trials)
        encoder.silent_voxels_ = np.zeros(0, dtype=int)
        encoder._single_voxel_, encoder._voxels_, encoder._space_ = False, self._voxels, self._space
        encoder._units_, encoder._features_hash_ = "", ""
        encoder.provenance_ = provenance(
            encoder="StreamingSession",
            n_trials=self.n_trials,
            memory=self.memory,
            keep=self.keep,
            forget=self.forget,
            seed=self.seed,
        )
        return encoder

    def predict(self, X: Any) -> Any:
        """Responses (n, voxel) that the trials so far predict for features (n, feature)."""
        return self.encoder().predict(X)

    def _checked(self, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        values = np.asarray(features_matrix(x), dtype=np.float32)
        responses = as_numpy(y, "responses").astype(np.float32)
        if values.ndim == 1:
            values, responses = values[None], responses[None] if responses.ndim == 1 else responses
        width, n = self.model.config.n_features, self.n_voxels or responses.shape[-1]
        if values.shape[1:] != (width,) or responses.shape != (len(values), n):
            raise DataError(
                f"features have shape {values.shape}, responses {responses.shape}; expected (n, {width}) and (n, {n})."
            )
        return values, responses

    def _begun(
        self, n_voxels: int, voxels: dict[str, Any] | None, space: dict[str, Any]
    ) -> AnchoredState | ChunkState | MemoryState:
        """The state, made at the first trial."""
        if self._state is None:
            self.n_voxels, self._voxels, self._space = n_voxels, voxels, space
            device = torch.device(resolve_device(self.device, needs_float64=True))
            if self.model.anchor is None and self.model.memory is not None:
                self._state = MemoryState(self.model, n_voxels, device)
            elif self.model.anchor is None:
                self._state = ChunkState(self.model, n_voxels, self.keep, self.forget, device)
            else:
                pool = self.pool == "voxels"
                self._state = AnchoredState(self.model, n_voxels, self.keep, self.forget, self.seed, pool, device)
        return self._state
