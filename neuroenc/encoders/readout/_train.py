"""One loop for everything that is trained by gradients: early stopping, refits, exact resumption."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import hash_array, hash_json
from neuroenc.encoders._checkpoint import Checkpoint
from neuroenc.encoders._devices import make_accelerator, pick_torch_device
from neuroenc.encoders.readout._engine import Engine
from neuroenc.encoders.readout._losses import Loss, make_loss
from neuroenc.encoders.readout._maps import Maps, positions
from neuroenc.encoders.readout._run import Run, TrainResult

__all__ = ["TrainResult", "train"]


def train(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    validation: Any = None,
    *,
    context: Any = None,
    rows: Any = None,
    loss: str | Loss = "mse",
    optimiser: str = "adam",
    lr: float = 3e-3,
    weight_decay: float = 0.0,
    batch_size: int = 64,
    accumulate: int = 1,
    max_epochs: int = 100,
    patience: int = 5,
    lr_cuts: int = 1,
    fixed_epochs: Any = None,
    precision: str = "32",
    seed: int = 0,
    device: Any = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    accelerator: Any = None,
    max_memory: Any = None,
    evaluation_batch: int | None = None,
    progress: bool = False,
) -> TrainResult:
    r"""Minimise loss plus penalty over the parameters of a model, in place.

    .. math:: \min_\theta \sum_v \frac{1}{n_v} \sum_{b\,seen} \ell(f_\theta(x_b)_v, y_{bv}) + R(\theta)

    After every epoch the mean over voxels of the Pearson correlation on the validation rows is taken. When it has
    not grown for ``patience`` epochs, the best weights are put back and the learning rate is cut to 0.3 of it; after
    ``lr_cuts`` cuts, or ``max_epochs``, training ends with the best weights. The order of the rows and all noise of
    an epoch follow from ``seed`` and the epoch alone, so that a run that was killed ends with the bytes of one that
    was not (on the CPU).

    Parameters
    ----------
    model : torch.nn.Module
        Called with maps (B, C, H, W), and with context maps if there are any; gives (B, V). Its methods
        ``regulariser() -> Tensor ()`` and ``constrain()`` (after every step) are used if it has them; parts with a
        true attribute ``frozen`` stay in evaluation mode.
    inputs : array (n, C, H, W)
        numpy, memmap, torch or labelled; vectors and tokens as in `ReadoutEncoder`; images of uint8 are divided by
        255. Or `Maps`.
    targets : array (n, V)
        Responses; NaN where the voxel's subject did not see the image.
    validation : array of int or of bool (n,), optional
        Rows kept apart for early stopping.
    context : array (n, Cc, Hc, Wc), optional
        Second input.
    rows : array of int or of bool (n,), optional
        Training rows; default all but ``validation``. Rows that nobody saw are left out.
    loss : str
        See `make_loss`.
    optimiser : {"adam", "adamw"}
    lr, weight_decay : float
    batch_size : int
        Rows of one pass, over all processes together.
    accumulate : int
        Passes of one step of the optimiser: 4 of 8 rows are one of 32.
    max_epochs, patience, lr_cuts : int
    fixed_epochs : int or sequence of float, optional
        Train that many epochs and keep the last weights, without validation; a sequence holds the learning rate of
        each (``TrainResult.schedule``).
    precision : {"32", "bf16", "16"}
        Of the forward pass; weights and loss stay in single precision.
    seed : int
    device : str or torch.device
        ``"auto"`` is a GPU if torch sees one. The accelerator's, if there is one.
    checkpoint : path, optional
        Folder for the state after each epoch; the same call goes on from there.
    accelerator : accelerate.Accelerator or "auto", optional
        Train on several devices. The result is that of one device up to rounding.
    max_memory : str or int, optional
        Bytes up to which inputs are held in memory (each of inputs and context).
    evaluation_batch : int, optional
        Rows of one pass in validation; default ``batch_size``.
    progress : bool

    Returns
    -------
    TrainResult

    Raises
    ------
    ConfigError
        Illegal settings, or neither ``validation`` nor ``fixed_epochs``.
    DataError
        Row counts that differ, rows on both sides, negative counts with ``"poisson"``, a validation set on which no
        voxel has a correlation, a loss that is no longer finite, or a checkpoint of another run.

    Examples
    --------
    >>> import torch
    >>> from neuroenc.encoders.readout import make_readout, train
    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(200, 4, 3, 3)
    >>> readout = make_readout("pooled", (4, 3, 3), 2)
    >>> result = train(readout, x, x.mean((2, 3))[:, :2], validation=range(40), max_epochs=40, lr=0.03)
    >>> result.best_r > 0.99, len(result.schedule) <= result.best_epoch
    (True, True)
    """
    loss = make_loss(loss)
    schedule = _check(lr, batch_size, accumulate, max_epochs, patience, lr_cuts, fixed_epochs, validation)
    accelerator = make_accelerator(accelerator, precision)
    place = pick_torch_device(device) if accelerator is None else accelerator.device
    model.to(place)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def hold(array: Any) -> Maps:
        return array if isinstance(array, Maps) else Maps(array, place, dtype=dtype, max_memory=max_memory)

    x, second = hold(inputs), None if context is None else hold(context)
    y = np.asarray(targets.detach().cpu() if isinstance(targets, Tensor) else targets)
    for what, found in (("targets", len(y)), ("context", None if second is None else len(second))):
        if found is not None and found != len(x):
            raise DataError(f"inputs have {len(x)} rows, {what} {found}.")
    loss.check(y)
    held, taught = _split(y, validation, rows)
    settings: dict[str, Any] = {
        "loss": loss.name,
        "optimiser": optimiser,
        "lr": lr,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "precision": precision,
    }
    stop = {"max_epochs": max_epochs, "patience": patience, "lr_cuts": lr_cuts, "schedule": schedule, "seed": seed}
    store = None
    if checkpoint is not None:
        key = {
            **settings,
            **stop,
            "inputs": x.hash(),
            "context": second.hash() if second else "",
            "data": hash_array(y, held, taught),
            "start": _hash_state(model),
        }
        store = Checkpoint(checkpoint, hash_json(key))
    engine = Engine(
        model,
        x,
        y,
        second,
        **{**settings, "loss": loss},
        device=place,
        accelerator=accelerator,
        evaluation_batch=evaluation_batch or batch_size,
    )
    run = Run(engine, store, y[held] if len(held) else None, torch.as_tensor(held), taught, seed)
    return run.run(lr, max_epochs, patience, lr_cuts, schedule, progress)


def _hash_state(model: nn.Module) -> str:
    state = model.state_dict()  # all of it: what is frozen decides the result too
    # Through float: numpy has no bfloat16.
    return hash_array(sorted(state), *[state[k].cpu().float().numpy() for k in sorted(state)])


def _split(y: np.ndarray, validation: Any, rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """Validation rows and training rows that anybody saw."""
    if y.ndim != 2 or y.dtype.kind not in "fiu":
        raise DataError(f"targets have shape {y.shape} and dtype {y.dtype}; expected numbers (n, voxel).")
    n = len(y)
    held = positions([] if validation is None else validation, n, "validation")
    taught = np.setdiff1d(np.arange(n), held) if rows is None else positions(rows, n, "rows")
    both = np.intersect1d(held, taught)
    if len(both):
        raise DataError(f"{len(both)} rows are in training and in validation (first: {int(both[0])}).")
    blank = np.isnan(y).all(axis=1)
    held, taught = held[~blank[held]], taught[~blank[taught]]
    if not len(taught):
        raise DataError(
            f"no training rows are left of {n} ({len(held)} validate, {int(blank.sum())} were seen by nobody)."
        )
    return held, taught


def _check(
    lr: float, batch_size: int, accumulate: int, max_epochs: int, patience: int, lr_cuts: int, fixed: Any, held: Any
) -> list[float] | None:
    """Legal settings; the learning rates of a fixed number of epochs, or None."""
    whole = {"batch_size": batch_size, "accumulate": accumulate, "max_epochs": max_epochs, "patience": patience}
    for name, value in whole.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ConfigError(f"{name}={value!r} must be a whole number, at least 1.")
    if isinstance(lr_cuts, bool) or not isinstance(lr_cuts, (int, np.integer)) or lr_cuts < 0:
        raise ConfigError(f"lr_cuts={lr_cuts!r} must be a whole number, 0 or more.")
    if isinstance(lr, (bool, str)) or not (np.isfinite(lr) and lr > 0):
        raise ConfigError(f"lr={lr!r} must be a number, finite and positive.")
    if fixed is None:
        if held is None:
            raise ConfigError("early stopping needs validation rows. Next step: validation=rows, or fixed_epochs=n.")
        return None
    if held is not None:
        raise ConfigError("fixed_epochs trains without validation. Next step: pass one of the two.")
    if isinstance(fixed, (int, np.integer)) and not isinstance(fixed, bool):
        if fixed < 1:
            raise ConfigError(f"fixed_epochs={fixed} must be at least 1.")
        return [float(lr)] * int(fixed)
    rates = [float(v) for v in fixed]
    if not rates or not all(np.isfinite(v) and v > 0 for v in rates):
        raise ConfigError(f"fixed_epochs={rates} as learning rates must be finite and positive, one an epoch.")
    return rates
