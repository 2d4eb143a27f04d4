"""The estimator: a readout, on frozen features or behind a core, fitted to the voxels of one or more subjects."""

from __future__ import annotations

import os
import time
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders._base import check_choice
from neuroenc.encoders._labels import describe_features, sample_coords
from neuroenc.encoders.readout._closed import solve_ridge
from neuroenc.encoders.readout._fitted import FittedReadout
from neuroenc.encoders.readout._losses import make_loss
from neuroenc.encoders.readout._maps import MapArray, as_maps, map_moments
from neuroenc.encoders.readout._protocol import READOUTS
from neuroenc.encoders.readout._targets import masked_responses, subject_columns, validation_rows
from neuroenc.encoders.readout._train import train

__all__ = ["ReadoutEncoder"]

_CURVES = ("epoch", "loss", "penalty", "validation_r", "lr", "seconds")


class ReadoutEncoder(FittedReadout):
    r"""Voxelwise encoder that reads feature maps through a readout.

    .. math:: \hat y_v = \mathrm{readout}_v\big(\mathrm{core}(x)\big), \qquad
              x \leftarrow (x - \mu_c) / \sigma_c

    Readouts with a closed form on frozen features ("linear", "pooled") are ridge regressions with a penalty per voxel
    chosen by cross-validation. All others are trained by gradients with early stopping on stimuli kept apart.

    Parameters
    ----------
    readout : str
        One of `neuroenc.encoders.readout.READOUTS`: "linear", "pooled", "gaussian", "factorized", "semantic",
        "attention".
    readout_options : dict, optional
        The readout's own.
    core : str or torch.nn.Module, optional
        None reads the features as they are. "equivariant", "plain", "grid" or a module (a copy of it) is trained
        together with the readouts; a module without parameters that need a gradient stays frozen.
    core_options : dict, optional
        For a core given by name.
    subjects : str, optional
        Voxel coordinate; each of its values gets a readout of its own behind the shared core.
    loss : str
        See `neuroenc.encoders.readout.make_loss`. ``"poisson"`` predicts rates.
    solver : {"auto", "closed", "gradient"}
        ``"auto"`` is the closed form where there is one: readouts "linear" and "pooled" on frozen features with loss
        "mse", a squared penalty, and no ``alpha`` among the readout's options (which trains by gradients with it).
    optimiser, lr, weight_decay, batch_size, accumulate, max_epochs, patience, lr_cuts, precision, accelerator
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

    def __init__(
        self,
        readout: str = "factorized",
        *,
        readout_options: dict[str, Any] | None = None,
        core: Any = None,
        core_options: dict[str, Any] | None = None,
        subjects: str | None = "subject",
        loss: str = "mse",
        solver: str = "auto",
        optimiser: str = "adam",
        lr: float = 3e-3,
        weight_decay: float = 0.0,
        batch_size: int = 64,
        accumulate: int = 1,
        max_epochs: int = 100,
        patience: int = 5,
        lr_cuts: int = 1,
        validation: Any = 0.1,
        standardise: bool = True,
        alphas: Any = None,
        cv: Any = 5,
        device: str = "auto",
        precision: str = "32",
        accelerator: Any = None,
        seed: int = 0,
        max_memory: str | int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> None:
        self.readout = readout
        self.readout_options = readout_options
        self.core = core
        self.core_options = core_options
        self.subjects = subjects
        self.loss = loss
        self.solver = solver
        self.optimiser = optimiser
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.max_epochs = max_epochs
        self.patience = patience
        self.lr_cuts = lr_cuts
        self.validation = validation
        self.standardise = standardise
        self.alphas = alphas
        self.cv = cv
        self.device = device
        self.precision = precision
        self.accelerator = accelerator
        self.seed = seed
        self.max_memory = max_memory
        self.checkpoint = checkpoint
        self.progress = progress

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

        Returns
        -------
        self
        """
        begin = time.perf_counter()
        check_choice("solver", self.solver, ("auto", "closed", "gradient"))
        check_choice("readout", self.readout, tuple(READOUTS))
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
        groups = subject_columns(self._voxels_, None if closed else self.subjects, Y.shape[1])
        self.columns_ = np.concatenate(list(groups.values()))
        self.sizes_ = [len(c) for c in groups.values()]
        self.model_ = self._build(self.core)
        coords = sample_coords(y, X)
        if closed:
            self._solve(maps, Y, coords)
        else:
            self._train(maps, second, Y[:, self.columns_], groups, coords, loss, fixed_epochs)
        self.n_parameters_ = self.model_.n_parameters
        self.seconds_ = time.perf_counter() - begin
        return self

    def _closed(self) -> bool:
        options = self.readout_options or {}
        ridge = options.get("penalty", "squared") == "squared" and "alpha" not in options
        able = READOUTS[self.readout].closed_form and self.core is None and self.loss == "mse" and ridge
        if self.solver == "closed" and not able:
            raise ConfigError(
                "solver='closed' needs readout 'linear' or 'pooled' on frozen features with loss 'mse', a squared "
                f"penalty and no alpha of the readout's own (alphas= are chosen from); found readout {self.readout!r}, "
                f"core {self.core!r}, loss {self.loss!r}, options {options}. Next step: solver='auto'."
            )
        return able and self.solver != "gradient"

    def _moments(self, maps: MapArray) -> tuple[np.ndarray | None, np.ndarray | None]:
        mean, scale = map_moments(maps)  # checks that all are finite, too
        return (mean, scale) if self.standardise else (None, None)

    def _solve(self, maps: MapArray, Y: np.ndarray, coords: dict[str, np.ndarray]) -> None:
        found = solve_ridge(
            self.model_.each[0],
            self._maps(maps),
            Y,
            coords,
            self.cv,
            alphas=self.alphas,
            max_memory=self.max_memory,
            device=self.device,
            checkpoint=self.checkpoint,
            progress=self.progress,
        )
        self.alpha_, self.best_score_ = found["alpha"], found["best_score"]
        self.curves_ = pd.DataFrame(columns=list(_CURVES), dtype=np.float64)
        self.best_epoch_, self.schedule_, self.validation_rows_ = 0, np.zeros(0), np.zeros(0, dtype=np.int64)

    def _train(
        self,
        maps: MapArray,
        second: MapArray | None,
        Y: np.ndarray,
        groups: dict[str, np.ndarray],
        coords: dict[str, np.ndarray],
        loss: Any,
        fixed: Any,
    ) -> None:
        held = None
        if fixed is None:
            edges = np.cumsum([0, *self.sizes_])
            places = {k: np.arange(a, b) for k, a, b in zip(groups, edges, edges[1:])}
            held = validation_rows(self.validation, Y, places, coords.get("stimulus"), self.seed)
        taught = Y if held is None else np.delete(Y, held, axis=0)
        blank = np.isnan(taught).all(axis=0)
        if blank.any():
            raise DataError(
                f"{int(blank.sum())} of {len(blank)} voxels have no responses outside the validation rows "
                f"(first: column {int(self.columns_[np.flatnonzero(blank)[0]])}). Next step: other validation rows."
            )
        mean = torch.as_tensor(np.nanmean(taught, axis=0, dtype=np.float64), dtype=torch.float32)
        self.model_.start(loss.start(mean))
        result = train(
            self.model_,
            self._maps(maps),
            Y,
            held,
            loss=loss,
            context=None if second is None else self._maps(second, "context"),
            optimiser=self.optimiser,
            lr=self.lr,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            max_epochs=self.max_epochs,
            patience=self.patience,
            lr_cuts=self.lr_cuts,
            fixed_epochs=fixed,
            precision=self.precision,
            seed=self.seed,
            device=self.device,
            checkpoint=self.checkpoint,
            accelerator=self.accelerator,
            evaluation_batch=self._evaluation_batch,
            progress=self.progress,
        )
        self.curves_, self.best_epoch_, self.schedule_ = result.curves, result.best_epoch, result.schedule
        self.validation_rows_ = np.zeros(0, dtype=np.int64) if held is None else held
