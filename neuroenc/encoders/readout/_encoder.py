"""The readout estimator: a readout on frozen features or behind a trained core, for one or more subjects."""

from __future__ import annotations

import os
import time
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
import xarray as xr
from sklearn.utils.validation import check_is_fitted

from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.device import resolve_device
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.memory import parse_memory
from neuroenc.data import align
from neuroenc.encoders._base import LinearEncoder
from neuroenc.encoders._labels import (
    channel_labels,
    describe_features,
    match_features,
    measured_responses,
    sample_coords,
    wrap,
)
from neuroenc.encoders.readout._balance import gradient_cosines
from neuroenc.encoders.readout._linear import LinearReadout, raw_weights, solve_ridge
from neuroenc.encoders.readout._losses import make_loss
from neuroenc.encoders.readout._maps import MapArray, Maps, as_maps, map_moments
from neuroenc.encoders.readout._protocol import READOUTS, EncoderModule, build_module
from neuroenc.encoders.readout._slim import task_widths, time_widths
from neuroenc.encoders.readout._subjects import fit_addition
from neuroenc.encoders.readout._targets import (
    label_tasks,
    masked_responses,
    task_columns,
    task_groups,
    validation_rows,
)
from neuroenc.encoders.readout._train import TrainResult, predict_maps, train


class FittedReadout(LinearEncoder):
    """The half of `ReadoutEncoder` that comes after ``fit``."""

    readout: str
    core: Any
    loss: str
    device: str
    accelerator: Any
    batch_size: int
    standardise: bool
    max_memory: str | int | None
    readout_options: dict[str, Any] | None
    core_options: dict[str, Any] | None
    seed: int
    model_: EncoderModule
    curves_: pd.DataFrame
    sizes_: list[int]
    columns_: np.ndarray
    # Encoders of earlier versions have none of these two.
    tasks_: list[dict[str, str]] = []  # noqa: RUF012  (replaced, never changed)
    spaces_: list[str] = []  # noqa: RUF012
    in_shape_: tuple[int, int, int]
    context_shape_: tuple[int, int, int] | None
    layout_: str
    dropped_: int
    images_: bool
    map_mean_: np.ndarray | None
    _context_features_: dict[str, Any] = {}  # noqa: RUF012  (replaced, never changed)
    map_scale_: np.ndarray | None

    def _build(self, core: Any) -> EncoderModule:
        memory = 2**28 if self.max_memory is None else parse_memory(self.max_memory)
        how: dict[str, Any] = {"context_shape": self.context_shape_, "seed": self.seed, "max_memory": memory}
        how |= {"tasks": self.tasks_, "spaces": self.spaces_}
        options = dict(self.readout_options or {})
        if isinstance(options.get("groups"), str):
            options["groups"] = task_groups(self._voxels_, options["groups"], self.columns_, self.sizes_)
        return build_module(self.readout, options, core, self.core_options, self.in_shape_, self.sizes_, **how)

    def _maps(self, array: MapArray, which: str = "map") -> Maps:
        given = getattr(self.accelerator, "device", None)
        device = torch.device(resolve_device(self.device, needs_float64=True)) if given is None else given
        mean, scale = getattr(self, f"{which}_mean_"), getattr(self, f"{which}_scale_")
        return Maps(array, device, mean=mean, scale=scale, max_memory=self.max_memory)

    @property
    def _evaluation_batch(self) -> int:
        # Readouts bound their own memory; the inside of a core does not.
        return self.batch_size if self.core is not None else max(self.batch_size, 512)

    def _check_context(self, X: Any, context: Any, maps: MapArray, second: MapArray) -> None:
        if len(second) != len(maps):
            raise DataError(f"features have {len(maps)} stimuli, context {len(second)}.")
        if isinstance(X, xr.DataArray) and isinstance(context, xr.DataArray):
            align(context, X)

    def _new(self, X: Any, context: Any) -> tuple[Maps, Maps | None]:
        """Features like those of `fit`, standardised."""
        check_is_fitted(self, "model_")
        X = match_features(self._features_, X)
        if context is not None:
            context = match_features(self._context_features_, context, "context")
        maps, second = as_maps(X), None if context is None else as_maps(context)
        if maps.shape[1:] != tuple(self.in_shape_) or (maps.dtype == np.uint8) != self.images_:
            raise DataError(
                f"features have shape {maps.shape[1:]} a stimulus and dtype {maps.dtype}; this encoder was fitted on "
                f"{tuple(self.in_shape_)}, {'uint8' if self.images_ else 'not uint8'}."
            )
        expected = None if self.context_shape_ is None else tuple(self.context_shape_)
        found = None if second is None else second.shape[1:]
        if found != expected:
            raise DataError(
                f"context has shape {found} a stimulus; this encoder was fitted with {expected}. "
                "Next step: pass the same context= to fit and predict."
            )
        if second is not None:
            self._check_context(X, context, maps, second)
        return self._maps(maps), None if second is None else self._maps(second, "context")

    def predict(self, X: Any, context: Any = None, *, widths: Any = None) -> Any:
        """Predicted responses (n, voxel), in the form of ``X``; rates for ``"poisson"``.

        ``widths`` are those of a slimmable trunk: one for all, or a mapping of subject, region or "subject/region" to
        width; what it does not name runs at the full width.
        """
        maps, second = self._new(X, context)
        self.model_.to(maps.device)
        how = {} if widths is None else {"widths": task_widths(widths, self.tasks_, self.model_.core)}
        out = predict_maps(self.model_, maps, second, torch.arange(len(maps)), self._evaluation_batch, **how)
        values = make_loss(self.loss).response(out).cpu().numpy()
        predicted = np.empty_like(values)
        predicted[:, self.columns_] = values
        if self._single_voxel_:
            predicted = predicted[:, 0]
        return wrap(predicted, X, self._voxels_, name="predicted")

    def score_voxels(self, X: Any, Y: Any, metric: str = "r", context: Any = None) -> Any:
        """Score (voxel,) on new stimuli, of those that each voxel saw; see `LinearEncoder.score_voxels`."""
        return self._scores(X, Y, self.predict(X, context), metric)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Mean R2 over voxels, of the stimuli that each saw."""
        if sample_weight is not None:
            raise ConfigError("sample_weight is not supported: every stimulus that a voxel saw counts the same.")
        return float(np.nanmean(np.asarray(self.score_voxels(X, y, "r2"))))

    def _labelled(self, found: xr.Dataset) -> xr.Dataset:
        back = np.argsort(self.columns_)
        return self._placed(found.isel(voxel=back).assign_coords(self._voxels_ or {"voxel": np.arange(len(back))}))

    def receptive_field(self) -> xr.Dataset | None:
        """Centre ``x``, ``y`` and ``size`` of each voxel, or None where the readout has no places.

        Positions are in [-1, 1], x to the right and y down, -1 and 1 the outer edges of the features' field of view.
        """
        check_is_fitted(self, "model_")
        found = self.model_.receptive_field()
        if found is None:
            return None
        data = xr.Dataset({k: ("voxel", v) for k, v in found.items()})
        data.attrs = {"units": "field of view is 2 wide; y down", "readout": self.readout}
        return self._labelled(data)

    def weights(self) -> xr.Dataset:
        """Weights over voxel and channel, y, x; of standardised maps where ``standardise`` is true."""
        check_is_fitted(self, "model_")
        found = self._labelled(self.model_.weights())
        attrs = {"standardised": int(self.standardise), "readout": self.readout, "units": self._units_}
        return found.assign_attrs(attrs)

    @property
    def gates(self) -> xr.DataArray:
        """Gates (subject, roi, space) of a trunk with ``conditioning="affine+gate"``: the weight of a space in a task.

        In (0, 1); NaN where a subject lacks a region.
        """
        check_is_fitted(self, "model_")
        core: Any = self.model_.core
        if not hasattr(core, "gates"):
            raise ConfigError(f"core {self.core!r} has no gates. Next step: core='trunk', conditioning='affine+gate'.")
        values = core.gates().cpu().numpy()
        return label_tasks(values, self.tasks_, ("space", core.spaces)).rename("gates")

    def width_table(self, X: Any, Y: Any, context: Any = None, *, by: str | None = None) -> pd.DataFrame:
        """Accuracy and time of every width of a slimmable trunk: ``group, width, r2, seconds`` an image.

        ``by`` is "roi", "subject" or another name of tasks; default the regions if there are any. Seconds are those of
        the group's own pass over ``X`` in batches, the least of three; see `search_widths`.
        """
        maps, second = self._new(X, context)
        measured = measured_responses(X, Y, (len(maps), len(self.columns_)), self._voxels_, self._space_)
        self.model_.to(maps.device)
        name = by or self.regions or self.subjects or ""
        values = np.asarray(measured, np.float64)[:, self.columns_]
        return time_widths(self.model_, self.tasks_, name, maps, second, values, make_loss(self.loss), self.batch_size)

    def add_subject(self, X: Any, Y: Any, start: Any = None, *, context: Any = None) -> Self:
        """Fit readouts of a new subject behind the core as it is; others' predictions stay equal to the bit.

        Readouts with a closed form are ridge regressions on the core's maps, also from few stimuli; others are trained
        with early stopping, together with the new tasks' own embeddings or experts.

        Parameters
        ----------
        X, Y : arrays
            As in `fit`; ``Y`` labelled, its ``subject`` one that the encoder does not know. Its voxels come after the
            others in predictions.
        start : str or mapping of subject to weight, optional
            Subjects whose conditioning (affine maps and gates, or experts) the new one begins with, region by region,
            as a weighted mean; default all alike.
        context : array, optional
            As in `fit`.

        Raises
        ------
        ConfigError
            A subject that is known already, or an unknown one in ``start``.
        DataError
            Responses without labels, or another context.
        """
        maps, second = self._new(X, context)
        module, tasks, order, voxels = fit_addition(self, X, Y, start, maps, second, self._settings(*_OF_RIDGE))
        begin, known = len(self.columns_), self._voxels_ or {}
        self.model_.core = module.core
        self.model_.readouts.extend(module.readouts)
        self.model_.subjects += module.subjects
        self.tasks_, self.sizes_ = [*self.tasks_, *tasks], [*self.sizes_, *module.sizes]
        self.columns_ = np.concatenate([self.columns_, begin + order])
        both = {k: np.concatenate([v, voxels[k][1]]) for k, (_, v) in known.items() if k in voxels}
        self._voxels_ = {k: ("voxel", v) for k, v in both.items()}
        self._space_ = {k: v for k, v in self._space_.items() if k != "subject"}
        self._single_voxel_, self.n_parameters_ = False, self.model_.n_parameters
        return self

    def gradient_conflict(self, X: Any, Y: Any, context: Any = None, *, max_rows: int = 512) -> xr.DataArray:
        """Cosines (task, other) between the gradients of the shared core that tasks ask for.

        Below 0, what helps one task hurts the other. At the optimum of all the gradients of two tasks cancel whatever
        they share: look early, after a fit of a few ``fixed_epochs``.

        Parameters
        ----------
        X, Y, context : arrays
            As in `fit`, and the same voxels.
        max_rows : int
            Rows of each task that its gradient is taken over.

        Raises
        ------
        ConfigError
            No core, or one without parameters to train.
        """
        maps, second = self._new(X, context)
        core = self.model_.core
        if core is None or not any(p.requires_grad for p in core.parameters()):
            raise ConfigError(f"core {self.core!r} has no shared parameters. Next step: core='trunk'.")
        expected = (len(maps), len(self.columns_))
        measured = measured_responses(X, Y, expected, self._voxels_, self._space_)
        loss = make_loss(self.loss)
        self.model_.to(maps.device)
        values = np.asarray(measured, dtype=np.float32)[:, self.columns_]
        found = gradient_cosines(self.model_, maps, values, second, loss, self.batch_size, max_rows)
        names = ["/".join(task.values()) or "all" for task in self.tasks_]
        return xr.DataArray(found, dims=("task", "other"), coords={"task": names, "other": names}, name="cosine")

    def warp_spread(self, X: Any, context: Any = None) -> xr.Dataset | None:
        """How much each voxel's mask moves with content (s.d. over ``X``), or None where nothing moves."""
        maps, second = self._new(X, context)
        rows = torch.arange(len(maps))
        self.model_.to(maps.device).eval()
        cases = None if second is None else second.rows(rows)
        found = self.model_.warp_spread(maps.rows(rows), cases, self.batch_size)
        return None if found is None else self._labelled(xr.Dataset({k: ("voxel", v) for k, v in found.items()}))

    def to_linear(self) -> tuple[xr.DataArray, xr.DataArray]:
        """Weights (feature, voxel) and intercepts (voxel,) of linear readouts.

        They are on the features as `fit` took them, flattened in C order and not standardised.

        Raises
        ------
        ConfigError
            The readout is not linear, or reads a core.
        """
        check_is_fitted(self, "model_")
        if self.core is not None or not all(isinstance(r, LinearReadout) for r in self.model_.each):
            raise ConfigError(
                f"readout {self.readout!r} with core {self.core!r} has no weights on the features themselves. "
                "Next step: readout='linear' or 'pooled' without a core, or encoder.weights()."
            )
        parts = [raw_weights(r, self.map_mean_, self.map_scale_, self.layout_, self.dropped_) for r in self.model_.each]
        back = np.argsort(self.columns_)
        coef = np.concatenate([c for c, _ in parts], axis=1)[:, back]
        return self._label_linear(coef, np.concatenate([b for _, b in parts])[back])

    def _pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, plain = super()._pack()
        state = plain.pop("model_").state_dict()
        arrays.update({f"model:{name}": value.detach().cpu().numpy() for name, value in state.items()})
        plain["curves_"] = plain["curves_"].to_dict("list")
        plain["core_is_module_"] = isinstance(self.core, torch.nn.Module)
        plain["core_text_"] = repr(self.core) if plain["core_is_module_"] else ""
        return arrays, plain

    def _unpack(self, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
        super()._unpack({k: v for k, v in arrays.items() if not k.startswith("model:")}, plain)
        self.curves_ = pd.DataFrame(plain["curves_"]).astype({"validation_r": np.float64})
        self.in_shape_ = tuple(self.in_shape_)  # type: ignore[assignment]
        if self.context_shape_ is not None:
            self.context_shape_ = tuple(self.context_shape_)  # type: ignore[assignment]
        if self.accelerator != "auto":
            self.accelerator = None  # an object of the process in which the encoder was fitted
        if plain["core_is_module_"] and not isinstance(self.core, torch.nn.Module):
            raise DataError(
                "this encoder was fitted with a module of your own as its core, of which only the weights were saved. "
                "Next step: ReadoutEncoder.load(path, core=module)."
            )
        text = plain.get("core_text_", "")
        if text and repr(self.core) != text:
            raise DataError(f"this encoder was fitted with another core: {text}; found {self.core!r}.")
        self.model_ = self._build(self.core)
        state = {k.removeprefix("model:"): torch.as_tensor(v) for k, v in arrays.items() if k.startswith("model:")}
        self.model_.load_state_dict(state)
        self.model_.eval()


_CURVES = ("epoch", "loss", "penalty", "validation_r", "lr", "seconds")
# Settings that are handed on as they are: to `RidgeEncoder`, and to `train`.
_OF_RIDGE = ("alphas", "max_memory", "device", "checkpoint", "progress")
_OF_DESCENT = ("optimiser", "lr", "weight_decay", "batch_size", "accumulate", "precision", "balanced", "sampling")
_OF_STOPPING = ("max_epochs", "patience", "lr_cuts")
_OF_RUN = ("seed", "device", "checkpoint", "accelerator", "progress")


@dataclass(eq=False, repr=False)
class ReadoutEncoder(FittedReadout):
    r"""Voxelwise encoder on feature maps: a readout on frozen features or behind a trained core.

    .. math:: \hat y_v = \mathrm{readout}_v\big(\mathrm{core}(x)\big), \qquad
              x \leftarrow (x - \mu_c) / \sigma_c

    Readouts with a closed form on frozen features ("linear", "pooled") are ridge regressions with a penalty per voxel
    chosen by cross-validation. All others are trained by gradients with early stopping on stimuli kept apart.

    Parameters
    ----------
    readout : str
        One of `neuroenc.encoders.readout.READOUTS`: "linear", "pooled", "gaussian", "factorized", "semantic",
        "attention", "compression", "lowrank", "codebook", "patch_summary", "sentence_gate".
    readout_options : dict, optional
        The readout's own.
    core : str or torch.nn.Module, optional
        None reads the features as they are. "equivariant", "plain", "grid", "trunk" or a module (a copy of it) is
        trained together with the readouts; a module without parameters that need a gradient stays frozen.
    core_options : dict, optional
        For a core given by name.
    subjects, regions : str, optional
        Voxel coordinates; every subject, or every region of one, is a task with a readout of its own behind the shared
        core, which may be conditioned on it: see `neuroenc.encoders.readout.cores.TrunkCore`.
    loss : str
        See `neuroenc.encoders.readout.make_loss`. ``"poisson"`` predicts rates.
    solver : {"auto", "closed", "gradient"}
        ``"auto"`` is the closed form where there is one: readouts "linear" and "pooled" on frozen features with loss
        "mse", a squared penalty, and no ``alpha`` among the readout's options (which trains by gradients with it).
    optimiser, lr, weight_decay, batch_size, accumulate, max_epochs, patience, lr_cuts, precision, balanced, sampling,
    accelerator
        See `neuroenc.encoders.readout.train`.
    validation : float or array of rows
        Fraction of the stimuli that early stopping looks at, or rows. The closed form does not need it.
    standardise : bool
        Mean 0 and s.d. 1 of every channel over the stimuli and places that `fit` is given.
    alphas, cv
        Penalties and folds of the closed form; see `neuroenc.encoders.RidgeEncoder`.
    device : str
    seed : int
        Of first weights, validation stimuli, order of stimuli, and noise.
    max_memory : str or int, optional
        Bytes up to which features are held in memory, and of one chunk of voxels in a readout.
    checkpoint : path, optional
        Folder from which a fit that was killed goes on.
    progress : bool

    Attributes
    ----------
    model_ : torch.nn.Module
        Core and readouts.
    curves_ : DataFrame
        epoch, loss, penalty, validation_r, lr, seconds; empty for the closed form.
    best_epoch_ : int
        Epoch whose weights were kept; 0 for the closed form.
    schedule_ : ndarray of float
        Learning rates of the epochs that led there; ``fit(..., fixed_epochs=schedule_)`` repeats them on other data.
    validation_rows_ : ndarray of int
    alpha_ : ndarray (voxel,)
        Penalties of the closed form.
    tasks_ : list of dict
        Labels of every task: subject, or subject and region.
    n_parameters_ : int
    seconds_ : float
    notes_ : list of str
        What was left out of the features.

    Raises
    ------
    ConfigError
        Unknown names or options; the message has the nearest.
    DataError
        Shapes or stimulus orders that differ, features that are not finite, voxels without responses, negative
        responses with ``"poisson"``.

    References
    ----------
    Saha, Chadha & Khosla (2024), arXiv:2410.14031. Klindt, Ecker, Euler & Bethge (2017), NeurIPS.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders import ReadoutEncoder
    >>> rng = np.random.default_rng(0)
    >>> maps = rng.standard_normal((300, 4, 5, 5), dtype=np.float32)
    >>> responses = maps[:, :2, 1, 3] + 0.1 * rng.standard_normal((300, 2))
    >>> encoder = ReadoutEncoder("factorized", lr=0.03).fit(maps[:250], responses[:250])
    >>> bool((encoder.score_voxels(maps[250:], responses[250:]) > 0.8).all())
    True
    """

    readout: str = "factorized"
    _: KW_ONLY
    readout_options: dict[str, Any] | None = None
    core: Any = None
    core_options: dict[str, Any] | None = None
    subjects: str | None = "subject"
    regions: str | None = None
    loss: str = "mse"
    solver: str = "auto"
    optimiser: str = "adam"
    lr: float = 3e-3
    weight_decay: float = 0.0
    batch_size: int = 64
    accumulate: int = 1
    max_epochs: int = 100
    patience: int = 5
    lr_cuts: int = 1
    validation: Any = 0.1
    standardise: bool = True
    alphas: Any = None
    cv: Any = 5
    device: str = "auto"
    precision: str = "32"
    balanced: bool = False
    sampling: Any = "rows"
    accelerator: Any = None
    seed: int = 0
    max_memory: str | int | None = None
    checkpoint: str | os.PathLike[str] | None = None
    progress: bool = False

    def fit(self, X: Any, y: Any, context: Any = None, *, fixed_epochs: Any = None) -> Self:
        """Fit all voxels.

        Parameters
        ----------
        X : array (n, C, H, W), (n, token, feature) or (n, feature)
            Features, labelled or not, or images (n, 3, H, W) for a core (uint8 is divided by 255). Tokens become a
            square of places (a class token in front is dropped), vectors maps of one place.
        y : array (n, voxel) or (n,)
            Responses; NaN where the voxel's subject did not see the stimulus.
        context : array (n, Cc, Hc, Wc), optional
            What content-dependent readouts look at; default the maps themselves.
        fixed_epochs : int or sequence of float, optional
            Train on all rows for that many epochs, without validation. The closed form does not need it.
        """
        begin = time.perf_counter()
        one_of("solver", self.solver, ("auto", "closed", "gradient"))
        one_of("readout", self.readout, READOUTS)
        check_whole("seed", self.seed, least=0)
        loss = make_loss(self.loss)
        maps = as_maps(X)
        second = None if context is None else as_maps(context)
        self._remember(X, y)
        self._context_features_ = describe_features(context)
        Y = masked_responses(X, y, maps, self._voxels_)
        loss.check(Y)
        if second is not None:
            self._check_context(X, context, maps, second)
        self.n_samples_fit_, self.n_features_in_ = len(maps), int(np.prod(np.shape(X)[1:]))
        self.in_shape_, self.layout_, self.dropped_ = maps.shape[1:], maps.layout, maps.dropped
        self.context_shape_ = None if second is None else second.shape[1:]
        self.images_ = maps.dtype == np.uint8
        self.notes_ = [note for note in (maps.note, "" if second is None else second.note) if note]
        self.map_mean_, self.map_scale_ = self._moments(maps)
        self.context_mean_, self.context_scale_ = (None, None) if second is None else self._moments(second)
        closed = self._closed()
        names = (None, None) if closed else (self.subjects, self.regions)
        options = self.core_options or {}
        also = str(options.get("experts", "")) if options.get("conditioning") == "experts" else ""
        self.tasks_, groups = task_columns(self._voxels_, *names, Y.shape[1], also=also)
        self.spaces_ = channel_labels(X)
        self.columns_ = np.concatenate(groups)
        self.sizes_ = [len(c) for c in groups]
        self.model_ = self._build(self.core)
        coords = sample_coords(y, X)
        if closed:
            self._solve(maps, Y, coords)
        else:
            self._train(maps, second, Y[:, self.columns_], coords, loss, fixed_epochs)
        self.n_parameters_ = self.model_.n_parameters
        self.seconds_ = time.perf_counter() - begin
        return self

    def _able(self) -> bool:
        """Whether the readout has a closed form with these options, on maps that stay as they are."""
        options = self.readout_options or {}
        ridge = options.get("penalty", "squared") == "squared" and "alpha" not in options
        return READOUTS[self.readout].closed_form and self.loss == "mse" and ridge

    def _closed(self) -> bool:
        options, able = self.readout_options or {}, self.core is None and self._able()
        if self.solver == "closed" and not able:
            raise ConfigError(
                "solver='closed' needs readout 'linear' or 'pooled' on frozen features with loss 'mse', a squared "
                f"penalty and no alpha of the readout's own (alphas= are chosen from); found readout {self.readout!r}, "
                f"core {self.core!r}, loss {self.loss!r}, options {options}. Next step: solver='auto'."
            )
        return able and self.solver != "gradient"

    def _settings(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}

    def _moments(self, maps: MapArray) -> tuple[np.ndarray | None, np.ndarray | None]:
        mean, scale = map_moments(maps)  # checks that all are finite, too
        return (mean, scale) if self.standardise else (None, None)

    def _solve(self, maps: MapArray, Y: np.ndarray, coords: dict[str, np.ndarray]) -> None:
        found = solve_ridge(self.model_.each[0], self._maps(maps), Y, coords, self.cv, **self._settings(*_OF_RIDGE))
        self.alpha_, self.best_score_ = found["alpha"], found["best_score"]
        self.curves_ = pd.DataFrame(columns=list(_CURVES), dtype=np.float64)
        self.best_epoch_, self.schedule_, self.validation_rows_ = 0, np.zeros(0), np.zeros(0, dtype=np.int64)

    def _train(
        self,
        maps: MapArray,
        second: MapArray | None,
        Y: np.ndarray,
        coords: dict[str, np.ndarray],
        loss: Any,
        fixed: Any,
    ) -> None:
        held = None if fixed is not None else self._held(self.validation, self.sizes_, Y, coords)
        context = None if second is None else self._maps(second, "context")
        result = self._descend(self.model_, self._maps(maps), context, Y, held, loss, fixed, self.columns_)
        self.curves_, self.best_epoch_, self.schedule_ = result.curves, result.best_epoch, result.schedule
        self.validation_rows_ = np.zeros(0, dtype=np.int64) if held is None else held

    def _held(self, validation: Any, sizes: list[int], Y: np.ndarray, coords: dict[str, np.ndarray]) -> np.ndarray:
        places = np.split(np.arange(Y.shape[1]), np.cumsum(sizes)[:-1])
        return validation_rows(validation, Y, places, coords.get("stimulus"), self.seed)

    def _descend(
        self,
        model: EncoderModule,
        maps: Maps,
        context: Maps | None,
        Y: np.ndarray,
        held: np.ndarray | None,
        loss: Any,
        fixed: Any,
        columns: np.ndarray,
    ) -> TrainResult:
        taught = Y if held is None else np.delete(Y, held, axis=0)
        blank = np.isnan(taught).all(axis=0)
        if blank.any():
            raise DataError(
                f"{int(blank.sum())} of {len(blank)} voxels have no responses outside the validation rows "
                f"(first: column {int(columns[np.flatnonzero(blank)[0]])}). Next step: other validation rows."
            )
        mean = torch.as_tensor(np.nanmean(taught, axis=0, dtype=np.float64), dtype=torch.float32)
        model.start(loss.start(mean))
        how = self._settings(*_OF_DESCENT, *_OF_STOPPING, *_OF_RUN)
        how |= {"loss": loss, "fixed_epochs": fixed, "evaluation_batch": self._evaluation_batch, "context": context}
        return train(model, maps, Y, held, **how)
