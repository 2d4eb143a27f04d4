"""The in-context estimator: condition a meta-trained model on each voxel's support set."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
import xarray as xr
from sklearn.utils.validation import check_is_fitted, validate_data

from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import one_of
from neuroenc._core.device import resolve_device
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import sha256_file
from neuroenc._core.memory import parse_memory
from neuroenc.attention import Block, Context, SinkCalibration, TaskEmbedding
from neuroenc.encoders._base import LinearEncoder
from neuroenc.encoders._labels import check_responses, check_space, column_block, features_matrix, wrap
from neuroenc.encoders.incontext._condition import (
    FEWEST_TRIALS,
    FEWEST_VOXELS,
    VoxelPart,
    asked_blocks,
    condition,
    conditioned_blocks,
    pooled_prior,
    routes_of,
    voxel_posteriors,
    voxel_share,
    voxels_at_once,
)
from neuroenc.encoders.incontext._config import part_from_settings
from neuroenc.encoders.incontext._empirical_bayes import EmpiricalBayesRidge
from neuroenc.encoders.incontext._gain import FitTokens, read_fit
from neuroenc.encoders.incontext._model import InContextModel, VoxelWeights
from neuroenc.encoders.incontext._stored import load_model
from neuroenc.encoders.incontext._task import check_heads
from neuroenc.encoders.incontext._trial_noise import CLIP, outlier_bounds

_NARROW, _WIDE, _OFF = 0.35, 2.5, 1.0
# Voxels at most that levels, and precisions of trials, are found from.
_MOST, _ENOUGH = 1000, 256


class InContextEncoder(LinearEncoder):
    r"""Voxelwise encoder from a few (stimulus, response) pairs, with no gradient step.

    .. math:: (w_v, b_v) = T_\theta\big(\{(x_t, y_{vt})\}_t\big), \qquad \hat y_v(x) = w_v \cdot x + b_v

    ``fit`` conditions the meta-trained transformer :math:`T_\theta` on the support set; what comes out is a linear
    encoder like the others. Support images are shared by all voxels and encoded block by block.

    Parameters
    ----------
    model : str, path or InContextModel
        "world" (shipped, for the simulated world's CLIP), a folder that `save_model` wrote, or a model.
    pool : {"voxels", "none"}
        Anchored models: ``"voxels"`` estimates how often kinds of voxels, signal and noise levels occur from all voxels
        of the fit together (at most 1000 of them), so that a voxel's weights depend a little on the others;
        ``"none"`` takes what was learned in training. Without at least 20 voxels it is always ``"none"``.
    robust : {"shared", "none"}
        Anchored models: ``"shared"`` finds how noisy each trial is from at most 256 voxels of the fit, as when the head
        moves, and trusts trials accordingly; see `EmpiricalBayesRidge`. Without at least 20 voxels and 10 trials,
        for ``pool="none"`` and for models of the published form, it is ``"none"``.
    clip : float, optional
        Responses farther from their voxel's median than this many robust standard deviations are brought in to there;
        see `EmpiricalBayesRidge`.
    queries : {"among", "after"}
        Anchored models: when the stimuli that are to be predicted are shown. ``"after"`` the support, whose trials are
        given in the order in which they were shown: each voxel's gain is followed to the last of them, in closed form
        and by the network of a refined model.
    response_scale : {"check", "support", "as-is"}
        Models expect responses that are z-scored within session. ``"check"`` warns where the support looks otherwise;
        ``"support"`` takes off mean and standard deviation of the support, and puts them back into the weights.
    context : mapping, optional
        Which trials a token sees, in the place of the model's own: settings of a context of `InContextConfig`, such as
        ``{"class": "ChunkSelectPolicy", "chunk_size": 50, "max_tokens": 500}`` for supports much longer than those
        trained on.
    calibrate : sequence of (layer, head), optional
        Heads whose attention sinks are down-weighted (`neuroenc.attention.SinkCalibration`), such as those to which
        ``neuroenc icl inspect`` gives a positive ``calibration_gain``.
    task : TaskEmbedding, optional
        Of the region that the voxels are in, from `region_embedding`; with one, the support may be empty.
    expert : str, optional
        For a model with experts (`InContextConfig`): the name of one, for all voxels; or the coordinate of labelled
        responses that names each voxel's, such as ``"roi"``. Levels (``pool``) are then those of a group's voxels.
    device : str
    precision : {"auto", "32", "bf16"}
        Of the transformer; ``"auto"`` is bf16 on a GPU.
    max_memory : str or int, optional
        Working memory of one block of voxels; default 256 MB.
    progress : bool

    Attributes
    ----------
    coef_ : ndarray (feature, voxel)
        Of a model of the query form, its linear part: `predict` adds what queries find in the support.
    intercept_ : ndarray (voxel,)
    noise_variance_ : ndarray (voxel,)
        Of a response around its prediction (anchored models, else NaN).
    trial_precision_ : ndarray (support,)
        Relative precisions of the trials, 1 for the median trial; ones unless ``robust`` finds them.
    gain_ : ndarray (voxel,)
        Gain after the last trial over that of the whole support; 1 for queries among the trials.
    n_seen_ : ndarray (voxel,)
        Support responses that are not NaN.
    n_clipped_ : ndarray (voxel,)
        Responses that ``clip`` brought in.
    silent_voxels_ : ndarray of int
        Voxels whose responses do not vary; they get zero weights and a warning.

    Raises
    ------
    ConfigError
        A model with experts and no ``expert``, or the other way round.
    DataError
        Features of another width than the model's, infinite responses, voxels without any response, or of a group that
        the model has no expert for.

    References
    ----------
    Yu et al. (2025), In-context learning of brain encoders (BraInCoRL), NeurIPS, arXiv:2505.15813.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders import InContextEncoder
    >>> from neuroenc.encoders.incontext import make_model
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((150, 8)), rng.standard_normal((8, 3)) / 3
    >>> Y = X @ W + 0.3 * rng.standard_normal((150, 3))
    >>> encoder = InContextEncoder(make_model("small", n_features=8, depth=1)).fit(X[:100], Y[:100])
    >>> bool(encoder.score(X[100:], Y[100:]) > 0.7)
    True
    """

    # Whether predictions ask the support anew; see the query form of `InContextConfig`.
    _asks_ = False

    def __init__(
        self,
        model: Any = "world",
        *,
        pool: str = "voxels",
        robust: str = "shared",
        clip: float | None = CLIP,
        queries: str = "among",
        response_scale: str = "check",
        context: Any = None,
        calibrate: Any = None,
        task: TaskEmbedding | None = None,
        expert: str | None = None,
        device: str = "auto",
        precision: str = "auto",
        max_memory: str | int | None = None,
        progress: bool = False,
    ) -> None:
        self.model = model
        self.pool = pool
        self.robust = robust
        self.clip = clip
        self.queries = queries
        self.response_scale = response_scale
        self.context = context
        self.calibrate = calibrate
        self.task = task
        self.expert = expert
        self.device = device
        self.precision = precision
        self.max_memory = max_memory
        self.progress = progress

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Condition on a support set.

        Parameters
        ----------
        X : array (support, feature)
            Features of the support images, as the model was trained on (unit norm for CLIP).
        y : array (support, voxel) or (support,)
            Responses, z-scored within session; NaN where one is missing.
        sample_weight : array (support,), optional
            How often each image counts: 2 is the same as giving it twice, 0 as leaving it out. How noisy a trial is
            (``robust``), and which response is an outlier (``clip``), is found from every image once.
        """
        one_of("pool", self.pool, ("voxels", "none"))
        one_of("robust", self.robust, ("shared", "none"))
        one_of("queries", self.queries, ("among", "after"))
        one_of("response_scale", self.response_scale, ("check", "support", "as-is"))
        least = 1 if self.task is None else 0
        values = validate_data(self, features_matrix(X), dtype=[np.float32, np.float64], ensure_min_samples=least)
        model = self._model()
        if values.shape[1] != model.config.n_features:
            raise DataError(
                f"features have {values.shape[1]} dimensions; this model takes {model.config.n_features}. "
                "Next step: the embedding that the model was trained on, or another model."
            )
        check_space(model.features, X, "the model")
        Y, _ = check_responses(X, y, values)
        self._remember(X, y)
        self._used_ = model
        routes = routes_of(model, self.expert, y, Y.shape[1])
        self.n_samples_fit_ = len(values)
        log_weight = _log_weights(sample_weight, len(values))
        mean, sd, bounds = self._examine(Y, None if log_weight is None else np.exp(log_weight))
        if self.n_clipped_.any():
            Y = _Within(Y, *bounds)
        scale = (mean, np.where(sd > 0, sd, 1.0)) if self.response_scale == "support" else None
        log_weight = self._weigh_trials(model, values, Y, log_weight, scale)
        found = self._weigh_all(routes, values.astype(np.float32), Y, log_weight, scale)
        if scale is not None:
            found["coef"] *= scale[1]
            found["intercept"] = found["intercept"] * scale[1] + scale[0]
            found["noise"] *= scale[1] ** 2
        self.coef_, self.intercept_ = found["coef"], found["intercept"].astype(np.float32)
        if self.queries == "after" and len(values):
            gain, centre = self.gain_.astype(np.float32), values.mean(axis=0) @ self.coef_ + self.intercept_
            self.coef_ = self.coef_ * gain
            self.intercept_ = (centre + (self.intercept_ - centre) * gain).astype(np.float32)
        # Of a typical trial, precise ones and others.
        self.noise_variance_ = found["noise"] * self._typical()
        silent = self.silent_voxels_
        self.coef_[:, silent], self.intercept_[silent] = 0.0, mean[silent]
        self._support_ = (values, Y, log_weight, scale)
        self._asks_ = model.query is not None and not model.config.silent
        return self

    def _weigh_trials(
        self, model: InContextModel, x: np.ndarray, Y: Any, log_weight: np.ndarray | None, scale: Any
    ) -> np.ndarray | None:
        """Logarithm of what each trial counts, as far as all voxels say how noisy it is; and the drift of gains."""
        n, v = Y.shape
        self.trial_precision_, self.gain_ = np.ones(n), np.ones(v)
        shared = self.robust == "shared" and self.pool == "voxels"
        if model.anchor is None or not (shared or self.queries == "after"):
            return log_weight
        columns = np.setdiff1d(np.arange(v), self.silent_voxels_)
        if self.queries == "among" and columns.size:
            columns = columns[np.unique(np.linspace(0, len(columns) - 1, min(len(columns), _ENOUGH)).astype(int))]
        rows = np.arange(n) if log_weight is None else np.flatnonzero(np.isfinite(log_weight))
        some = self._columns(Y, columns, scale)[rows]
        # What is left of a voxel or a trial may be too little to say anything; the others go on without it.
        enough = np.flatnonzero((~np.isnan(some)).sum(axis=0) >= 3)
        columns, some = columns[enough], some[:, enough]
        shared = shared and len(columns) >= FEWEST_VOXELS and len(rows) >= FEWEST_TRIALS
        if not columns.size or not (shared or self.queries == "after"):
            return log_weight
        robust = "shared" if shared else "none"
        drift = "gain" if self.queries == "after" else "none"
        # Trials are told apart as well with the model's levels as with those learned from these voxels, in a seventh of
        # the time; a network was trained to read fits that learned them.
        adapt = "population" if self.queries == "after" else "none"
        prior = model.anchor.single_prior(levels=adapt == "none")
        closed = EmpiricalBayesRidge(prior, robust=robust, drift=drift, adapt=adapt, clip=None)
        closed.fit(x[rows], some)
        self.trial_precision_[rows] = closed.trial_precision_
        self.gain_[columns] = np.exp(closed.gain_drift_ / 2)
        if drift == "gain" and model.gain is not None and not model.config.silent:
            self.gain_[columns] *= self._refine(model, closed)
        if robust == "none":
            return log_weight
        found = np.log(self.trial_precision_).astype(np.float32)
        return found if log_weight is None else log_weight + found

    def _typical(self) -> np.float32:
        """Noise variance of a trial as they come over that of a trial of precision 1."""
        return np.float32((1 / self.trial_precision_).mean() if len(self.trial_precision_) else 1.0)

    def _refine(self, model: InContextModel, closed: EmpiricalBayesRidge) -> np.ndarray:
        """Gain (voxel,) by which the network changes the closed form's."""
        device = self._place()["device"]
        tokens, network = read_fit(closed), model.to(device).eval()
        step = max(1, 200_000 // max(1, tokens.trials.shape[1]))
        with torch.inference_mode():
            found = [
                network.log_gain(FitTokens(*(t[start : start + step].to(device) for t in tokens))).exp().cpu().numpy()
                for start in range(0, len(tokens.voxels), step)
            ]
        return np.concatenate(found)

    def _columns(self, Y: Any, columns: np.ndarray, scale: Any) -> np.ndarray:
        """Scaled responses (support, voxel) of some voxels.

        Stores are read in blocks: a column of a chunked array costs as much as its chunk.
        """
        some = VoxelPart(Y, columns)[:, :]
        return some if scale is None else (some - scale[0][columns]) / scale[1][columns]

    def _weigh_all(self, routes: Any, x: np.ndarray, Y: Any, log_weight: Any, scale: Any) -> dict[str, np.ndarray]:
        """`_weigh` of all voxels, each by the model of its route."""
        found: dict[str, np.ndarray] = {}
        self._routes_: list[tuple[InContextModel, np.ndarray, torch.Tensor | None]] = []
        for model, columns in routes:
            some, less = voxel_share(Y, columns, scale)
            self._pooled_: torch.Tensor | None = None
            with self._changed(model):
                part = self._weigh(model, x, some, log_weight, less)
            self._routes_.append((model, columns, self._pooled_))
            if len(columns) == Y.shape[1]:
                return part
            for name, values in part.items():
                whole = found.setdefault(name, np.empty((*values.shape[:-1], Y.shape[1]), dtype=values.dtype))
                whole[..., columns] = values
        return found

    def _weigh(
        self, model: InContextModel, x: np.ndarray, Y: Any, log_weight: np.ndarray | None, scale: Any
    ) -> dict[str, np.ndarray]:
        """``coef``, ``intercept`` and ``noise`` of scaled responses."""
        place = self._place()
        self._pooled_, registers = self._pool(model, x, Y, log_weight, scale, place)
        settings: dict[str, Any] = {"pooled": self._pooled_, "show": self.progress, **place}
        return condition(model, x, Y, log_weight=log_weight, scale=scale, registers=registers, **settings)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predicted responses, and their standard deviations.

        Parameters
        ----------
        X : array (n, feature)
        return_std : bool
            Also give the standard deviation (n, voxel) of a new response, noise included: anchored models, in the
            process that fitted.

        Returns
        -------
        array (n, voxel), or two of them
        """
        if not self._asks_ and not return_std:
            return super().predict(X)
        values = self._check_predict(X).astype(np.float32)
        if getattr(self, "_support_", None) is None:
            what = "return_std=True" if return_std else "predict: queries of this model attend to the support"
            raise ConfigError(f"the support set is not kept in files. Next step: fit again, then {what}.")
        support, Y, log_weight, scale = self._support_
        model = self._conditioned()
        if self._asks_:
            if return_std:
                raise ConfigError(
                    "what queries find in the support has no variance. Next step: a model with form='anchored'."
                )
            answered = self._predict_block(values).reshape(len(values), -1)
            place = self._place()
            for expert, own, _ in self._routes_:
                some, less = voxel_share(Y, own, scale)
                with self._changed(expert):
                    for columns, answer in asked_blocks(
                        expert, support.astype(np.float32), some, values, log_weight=log_weight, scale=less, **place
                    ):
                        answered[:, own[columns]] += answer
            answered[:, self.silent_voxels_] = self.intercept_[self.silent_voxels_]
            return wrap(answered[:, 0] if self._single_voxel_ else answered, X, self._voxels_, name="predicted")
        predicted = super().predict(X)
        if model.anchor is None:
            raise ConfigError(
                "a model of the published form has no posterior variance. Next step: a model with form='anchored', or "
                "neuroenc.encoders.incontext.support_ensemble."
            )
        place = self._place()
        queries = torch.as_tensor(values, device=place["device"])
        std = np.empty((len(values), Y.shape[1]), dtype=np.float32)
        for columns, found in self._posteriors():
            assert found.noise is not None
            spread = found.variance(queries) + found.noise[:, None] * float(self._typical() - 1)
            std[:, columns] = spread.sqrt().T.cpu().numpy()
        if scale is not None:
            std *= scale[1]
        return predicted, wrap(std[:, 0] if self._single_voxel_ else std, X, self._voxels_, name="std")

    def _pool(
        self, model: InContextModel, x: np.ndarray, Y: Any, log_weight: np.ndarray | None, scale: Any, place: Any
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Prior over components, signal and noise of these voxels, and all voxels' registers; None where not wanted."""
        n = Y.shape[1]
        if self.pool == "none" or model.anchor is None or n < FEWEST_VOXELS or not len(x):
            return None, None
        columns = np.unique(np.linspace(0, n - 1, min(n, _MOST)).astype(int))
        some = self._columns(Y, columns, scale)
        model = model.to(place["device"]).eval()
        images = torch.as_tensor(x, device=place["device"])
        weight = None if log_weight is None else torch.as_tensor(log_weight, device=place["device"])
        size = max(1, voxels_at_once(model, len(x), place["max_bytes"], half=place["half"]) // 2)
        scores, registers = voxel_posteriors(model, images, some, weight, size=size, half=place["half"])
        assert model.anchor is not None
        # Where all voxels were read, they need not be read again.
        return pooled_prior(scores, model.anchor.prior().detach()), registers if len(columns) == n else None

    def to_linear(self) -> tuple[xr.DataArray, xr.DataArray]:
        """Weights (feature, voxel) and intercepts (voxel,); refused for a model whose queries ask the support."""
        if self._asks_:
            raise ConfigError(
                "this model's queries attend to the support, so its predictions are not linear in the features; coef_ "
                "is their linear part. Next step: a model with form='anchored', or model.silence()."
            )
        return super().to_linear()

    def _posteriors(self) -> Iterator[tuple[np.ndarray, VoxelWeights]]:
        """Weights with their covariance, block by block of voxels."""
        support, Y, log_weight, scale = self._support_
        settings: dict[str, Any] = {"log_weight": log_weight, "covariance": True, **self._place()}
        x = support.astype(np.float32)
        centre = torch.as_tensor(x, device=settings["device"]).mean(dim=0) if len(x) else None
        for model, own, pooled in self._routes_:
            some, less = voxel_share(Y, own, scale)
            with self._changed(model):
                for place, found in conditioned_blocks(model, x, some, scale=less, pooled=pooled, **settings):
                    columns = own[place]
                    if self.queries == "after" and centre is not None:
                        gain = torch.as_tensor(self.gain_[columns], device=centre.device, dtype=centre.dtype)
                        found = found.at_gain(gain, centre)
                    yield columns, found

    @property
    def fits_without_trials(self) -> bool:
        """Whether an empty support is fitted: with a region's task embedding."""
        return self.task is not None

    @contextmanager
    def _changed(self, model: InContextModel) -> Iterator[None]:
        """Inside, the model's heads are as ``context``, ``calibrate`` and ``task`` say."""
        if self.context is None and self.calibrate is None and self.task is None:
            yield
            return
        for name in ("context", "calibrate", "task"):
            if getattr(self, name) is not None:
                check_heads(model, f"{name}=", queries=name == "context")
        assert model.stack is not None
        layers = [cast(Block, block).attention for block in model.stack.blocks]
        before = [(a.context, a.normaliser) for a in layers]
        try:
            for number, attention in enumerate(layers):
                heads = [int(head) for layer, head in self.calibrate or () if int(layer) == number]
                if heads:
                    sinks = SinkCalibration(attention.normaliser, heads=heads, keep_first=model.config.registers)
                    attention.normaliser = sinks
                if self.context is not None:
                    attention.context = cast(Context, part_from_settings("context", self.context))
                if attention.context is not None:
                    attention.context.check(attention.normaliser)
            known = {(layer, head) for layer, a in enumerate(layers) for head in range(a.heads)}
            lost = [tuple(pair) for pair in self.calibrate or () if tuple(pair) not in known]
            if lost:
                raise ConfigError(f"calibrate names {lost}; the model has {len(layers)} x {layers[0].heads} heads.")
            with nullcontext() if self.task is None else self.task.inject(model):
                yield
        finally:
            for attention, (context, normaliser) in zip(layers, before):
                attention.context, attention.normaliser = context, normaliser

    def _model(self) -> InContextModel:
        if isinstance(self.model, InContextModel):
            return self.model
        if isinstance(self.model, (str, os.PathLike)):
            # By content: a model that was trained again in the same folder is another one.
            path, record = os.fspath(self.model), Path(os.fspath(self.model)) / "model.json"
            key = (path, sha256_file(record) if record.is_file() else "")
            if getattr(self, "_loaded_", (None,))[0] != key:
                self._loaded_ = (key, load_model(path))
            return self._loaded_[1]
        raise ConfigError(f"model={self.model!r}: expected a name, a folder or an InContextModel.")

    def _conditioned(self) -> InContextModel:
        """The model that the weights came from, whatever lies in its folder by now."""
        used: InContextModel | None = getattr(self, "_used_", None)
        return self._model() if used is None else used

    def __sklearn_clone__(self) -> InContextEncoder:
        # A model is not a setting to be copied: clones share it.
        return type(self)(**self.get_params(deep=False))

    def _place(self) -> dict[str, Any]:
        device = torch.device(resolve_device(self.device, needs_float64=True))
        one_of("precision", self.precision, ("auto", "32", "bf16"))
        half = self.precision == "bf16" or (self.precision == "auto" and device.type == "cuda")
        budget = 2**28 if self.max_memory is None else parse_memory(self.max_memory)
        return {"device": device, "half": half, "max_bytes": budget}

    def _examine(
        self, Y: Any, weights: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """Mean, standard deviation and bounds of each voxel's responses; warnings about scale and silence."""
        n = Y.shape[1]
        weights = np.ones(Y.shape[0]) if weights is None else weights
        rows, counts = weights > 0, weights[weights > 0, None]
        low, high, self.n_clipped_ = np.full(n, -np.inf), np.full(n, np.inf), np.zeros(n, dtype=int)
        mean, sd, seen = np.zeros(n), np.zeros(n), np.zeros(n, dtype=int)
        for start in range(0, n, 4096):
            block = np.asarray(column_block(Y, slice(start, start + 4096)), dtype=np.float64)[rows]
            if np.isinf(block).any():
                raise DataError("responses hold infinity (inf). Next step: NaN where a response is missing.")
            part = slice(start, start + block.shape[1])
            seen[part] = (~np.isnan(block)).sum(axis=0)
            low[part], high[part] = outlier_bounds(block, self.clip)
            self.n_clipped_[part] = ((block < low[part]) | (block > high[part])).sum(axis=0)
            block = np.clip(block, low[part], high[part])
            known = np.where(np.isnan(block), 0.0, counts).sum(axis=0)
            known[seen[part] == 0] = 1.0
            mean[part] = np.nansum(counts * block, axis=0) / known
            sd[part] = np.sqrt(np.nansum(counts * (block - mean[part]) ** 2, axis=0) / known)
        if Y.shape[0] and (seen == 0).any():
            first = np.flatnonzero(seen == 0)[:5].tolist()
            raise DataError(
                f"{int((seen == 0).sum())} of {n} voxels have no response in the support (first: {first}). "
                "Next step: leave them out."
            )
        self.n_seen_ = seen
        self.silent_voxels_ = np.flatnonzero((sd <= 1e-6 * np.maximum(1.0, np.abs(mean))) & (seen > 1))
        if len(self.silent_voxels_):
            warnings.warn(
                f"{len(self.silent_voxels_)} of {n} voxels have no signal: their responses do not vary over the "
                "support. Their weights are 0.",
                stacklevel=3,
            )
        judged = (seen >= 10) & (sd > 0)
        if self.response_scale == "check" and judged.any():
            typical, off = float(np.median(sd[judged])), float(np.median(np.abs(mean[judged])))
            if not _NARROW <= typical <= _WIDE or off > _OFF:
                warnings.warn(
                    f"responses do not look z-scored: over the support the median voxel has mean {off:.3g} (absolute) "
                    f"and standard deviation {typical:.3g}; this model was trained on about 0 and 1. Next step: "
                    "neuroenc.data.zscore(responses, by='session'), or response_scale='support'.",
                    stacklevel=3,
                )
        return mean, sd, (low, high)

    def _pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        # Neither the support nor the model belongs into the file of a fitted encoder.
        own = self.__dict__
        left = ("_support_", "_loaded_", "_routes_", "_pooled_", "_used_")
        kept: dict[str, Any] = {name: own.pop(name) for name in left if name in own}
        try:
            return super()._pack()
        finally:
            own.update(kept)

    def support(self) -> tuple[np.ndarray, xr.DataArray | np.ndarray]:
        """Features (support, feature) and responses (support, voxel) that the encoder was conditioned on."""
        check_is_fitted(self, "coef_")
        if getattr(self, "_support_", None) is None:
            raise ConfigError("the support set is not kept in files. Next step: fit again.")
        Y = self._support_[1]
        return self._support_[0], Y.whole if isinstance(Y, _Within) else Y


class _Within:
    """Responses (support, voxel) of which outliers are brought in as blocks are read."""

    def __init__(self, whole: Any, low: np.ndarray, high: np.ndarray) -> None:
        self.whole, self.shape, self.ndim = whole, whole.shape, 2
        self._low, self._high = low.astype(np.float32), high.astype(np.float32)

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, tuple):
            return np.clip(column_block(self.whole, key[1]), self._low[key[1]], self._high[key[1]])
        return np.clip(as_numpy(self.whole[key], "responses"), self._low, self._high)


def _log_weights(sample_weight: Any, n: int) -> np.ndarray | None:
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        raise DataError(
            f"sample_weight has shape {weights.shape}; expected {n} finite numbers, none negative, not all zero."
        )
    with np.errstate(divide="ignore"):
        return np.log(weights).astype(np.float32)


def clean_variance(encoder: Any, query: np.ndarray | None) -> np.ndarray | None:
    """Variance of noiseless responses (n, voxel), or of weights (feature, voxel); None where there is none."""
    if not isinstance(encoder, InContextEncoder) or encoder._asks_ or encoder._conditioned().anchor is None:
        return None
    support, Y, _, scale = encoder._support_
    out = np.empty((support.shape[1] if query is None else len(query), Y.shape[1]))
    images = None if query is None else torch.as_tensor(query, device=encoder._place()["device"])
    for columns, found in encoder._posteriors():
        assert found.covariance is not None
        assert found.noise is not None
        if images is None:
            part = found.covariance.diagonal(dim1=1, dim2=2)[:, :-1]
        else:
            part = found.variance(images) - found.noise[:, None]
        out[:, columns] = part.clamp_min(0).T.cpu().numpy()
    return out if scale is None else out * scale[1] ** 2
