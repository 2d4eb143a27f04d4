"""A session that goes on: every new trial updates every voxel's weights, in constant memory and time."""

from __future__ import annotations

from typing import Any, Self, cast

import numpy as np
import xarray as xr

from neuroenc._core.arrays import as_numpy
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.provenance import provenance
from neuroenc.data import align
from neuroenc.encoders._base import check_choice
from neuroenc.encoders._devices import pick_torch_device
from neuroenc.encoders._labels import features_matrix, match_voxels, space_of, voxel_coords
from neuroenc.encoders.incontext._encoder import InContextEncoder
from neuroenc.encoders.incontext._model import InContextModel
from neuroenc.encoders.incontext._session_states import AnchoredState, ChunkState
from neuroenc.encoders.incontext._space import check_space

__all__ = ["StreamingSession"]


class StreamingSession:
    """Weights of all voxels after every trial, in memory and time that do not grow with the session.

    Parameters
    ----------
    model : InContextModel
    keep : int
        Trials held: the sample that an anchored model's transformer reads, or the chunk of a model of the published
        form. Within what the model was trained on.
    forget : float
        Weight of a trial relative to the next one; 1 forgets nothing, 0.99 looks back about 100 trials.
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
        check_choice("pool", pool, ("voxels", "none"))
        self.model, self.keep, self.forget, self.pool = model, int(keep), float(forget), pool
        self.seed, self.device = seed, device
        self.n_trials, self.n_voxels = 0, 0
        self._voxels: dict[str, Any] | None = None
        self._space: dict[str, Any] = {}
        self._state: AnchoredState | ChunkState | None = None

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

        Returns
        -------
        self
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
            encoder="StreamingSession", n_trials=self.n_trials, keep=self.keep, forget=self.forget, seed=self.seed
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

    def _begun(self, n_voxels: int, voxels: dict[str, Any] | None, space: dict[str, Any]) -> AnchoredState | ChunkState:
        """The state, made at the first trial."""
        if self._state is None:
            self.n_voxels, self._voxels, self._space = n_voxels, voxels, space
            device = pick_torch_device(self.device)
            if self.model.anchor is None:
                self._state = ChunkState(self.model, n_voxels, self.keep, self.forget, device)
            else:
                pool = self.pool == "voxels"
                self._state = AnchoredState(self.model, n_voxels, self.keep, self.forget, self.seed, pool, device)
        return self._state
