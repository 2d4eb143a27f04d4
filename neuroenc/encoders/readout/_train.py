"""Training loop of readouts, on one device or on several through Accelerate."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from neuroenc import stats
from neuroenc._core.checkpoints import Checkpoint, moving_state
from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.device import make_accelerator, resolve_device
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import hash_array
from neuroenc._core.progress import progress as bar
from neuroenc._core.store import content_key
from neuroenc.encoders._folds import positions
from neuroenc.encoders.readout._balance import Balance, balance_of
from neuroenc.encoders.readout._losses import Loss, make_loss
from neuroenc.encoders.readout._maps import Maps

_OPTIMISERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def predict_maps(
    model: nn.Module, inputs: Maps, context: Maps | None, rows: Tensor, batch_size: int, **how: Any
) -> Tensor:
    """Outputs (n, V) of the model in evaluation mode, on its device, in at least single precision."""
    was_training = model.training
    model.eval()
    parts = []
    with torch.no_grad():
        for part in rows.split(batch_size):
            x = inputs.rows(part)
            out = model(x, **how) if context is None else model(x, context.rows(part), **how)
            parts.append(out.float() if out.dtype in (torch.float16, torch.bfloat16) else out)
    model.train(was_training)
    return torch.cat(parts)


class Engine:
    """A model, its data and its optimiser; see `neuroenc.encoders.readout.train` for the arguments."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Maps,
        targets: np.ndarray,
        context: Maps | None,
        *,
        loss: Loss,
        optimiser: str,
        lr: float,
        weight_decay: float,
        batch_size: int,
        accumulate: int,
        precision: str,
        device: torch.device,
        accelerator: Any,
        evaluation_batch: int,
        balance: Balance | None,
    ) -> None:
        one_of("optimiser", optimiser, _OPTIMISERS)
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            raise ConfigError("the model has no parameter that needs a gradient: there is nothing to train.")
        self.bare: Any = model
        self.model: Any = model
        self.inputs, self.context, self.loss = inputs, context, loss
        self.batch_size, self.accumulate, self.evaluation_batch = batch_size, accumulate, evaluation_batch
        self.device, self.accelerator = device, accelerator
        self.targets = torch.as_tensor(targets, dtype=inputs.dtype)
        if device.type == "cuda" and self.targets.nbytes < torch.cuda.mem_get_info(device)[0] // 4:
            self.targets = self.targets.to(device)
        # One kernel for all parameters: with small readouts the optimiser would otherwise be half of a step.
        fused = device.type in ("cpu", "cuda")
        build: Any = _OPTIMISERS[optimiser]
        self.optimiser = build(trained, lr=lr, weight_decay=weight_decay, fused=fused)
        self._half = torch.bfloat16 if precision == "bf16" else None
        if accelerator is not None:
            self.model, self.optimiser = accelerator.prepare(model, self.optimiser)
        self.world = 1 if accelerator is None else int(accelerator.num_processes)
        self.rank = 0 if accelerator is None else int(accelerator.process_index)
        # With several subjects most stimuli were seen by one of them: the others' readouts need not be computed.
        self.balance = balance
        if balance is not None and self.world > 1:
            raise ConfigError(f"balanced=True trains on one process; found {self.world}. Next step: balanced=False.")
        sizes = getattr(model, "sizes", None)
        self._subjects: Any = sizes if sizes is not None and len(sizes) > 1 else None
        self._frozen = [part for part in model.modules() if getattr(part, "frozen", False)]

    def autocast(self) -> Any:
        """Half precision where it was asked for."""
        if self.accelerator is not None:
            return self.accelerator.autocast()
        return nullcontext() if self._half is None else torch.autocast(self.device.type, dtype=self._half)

    def training(self) -> None:
        """Training mode, for all but what is frozen: its running statistics would drift."""
        self.model.train()
        for part in self._frozen:
            part.eval()

    def set_lr(self, lr: float) -> None:
        """Learning rate of all parameters."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr

    def step(self, rows: Tensor, group: int | None = None) -> tuple[Tensor, Tensor]:
        """One step on ``rows``; returns this process' loss and the penalty, both summed over voxels.

        With a ``group`` the others' readouts take no part, and the core's gradient has one length for all groups.
        """
        y = self.targets[rows.to(self.targets.device)].to(self.device, non_blocking=True)
        only = None
        if group is not None and self.balance is not None:
            only = self.balance.tasks[group]
            y[:, torch.as_tensor(self.balance.others[group], device=y.device)] = torch.nan
        parts = list(zip(rows.split(self.batch_size), y.split(self.batch_size)))
        count = (~torch.isnan(y)).sum(dim=0) if len(parts) * self.world > 1 else None
        self.optimiser.zero_grad(set_to_none=True)
        total = y.new_zeros(())
        penalty = y.new_zeros(())
        for number, (index, target) in enumerate(parts):
            last = number == len(parts) - 1
            wait = self.accelerator is not None and self.world > 1 and not last
            with self.accelerator.no_sync(self.model) if wait else nullcontext():
                value = self._part(index, target, count, only)
                total += value.detach()
                # Gradients are averaged over processes, and the loss is a sum over all of them.
                value = value * self.world
                if last and hasattr(self.bare, "regulariser"):
                    extra = self.bare.regulariser() if only is None else self.bare.regulariser(only)
                    penalty = extra.detach()
                    value = value + extra
                self._backward(value)
        if group is not None and self.balance is not None:
            gradients = [p.grad for p in self.bare.core.parameters() if p.grad is not None] if self.bare.core else []
            if gradients:
                length = torch.stack(torch._foreach_norm(gradients)).norm().clamp(min=1e-20)
                torch._foreach_mul_(gradients, self.balance.weights[group] / length)
        self._update()
        return total, penalty

    def _part(self, index: Tensor, target: Tensor, count: Tensor | None, only: Any = None) -> Tensor:
        if self.world > 1:
            index, target = index[self.rank :: self.world], target[self.rank :: self.world]
            if not len(index):
                # A process without rows takes part with one that counts for nothing: the others wait for it.
                index, target = torch.zeros(1, dtype=torch.long), target.new_full((1, self.targets.shape[1]), torch.nan)
        x = self.inputs.rows(index)
        more: list[Any] = [] if self.context is None else [self.context.rows(index)]
        extra: dict[str, Any] = {} if self._subjects is None else {"seen": self._seen(target)}
        if only is not None:
            extra["only"] = only
        with self.autocast():
            pred = self.model(x, *more, **extra)
        if pred.shape != target.shape:
            raise DataError(
                f"the model gives {tuple(pred.shape)} for {tuple(x.shape)} of inputs; targets have {target.shape[1]} "
                "voxels."
            )
        return self.loss(pred, target, count)

    def _seen(self, target: Tensor) -> Tensor:
        """Which subjects saw which rows (B, subject)."""
        mask = ~torch.isnan(target)
        return torch.stack([part.any(dim=1) for part in mask.split(self._subjects, dim=1)], dim=1)

    def _backward(self, value: Tensor) -> None:
        if self.accelerator is not None:
            self.accelerator.backward(value)
        else:
            value.backward()

    def _update(self) -> None:
        self.optimiser.step()
        if hasattr(self.bare, "constrain"):
            self.bare.constrain()

    def totals(self, *values: Tensor) -> list[float]:
        """Sums over processes."""
        if self.world == 1:
            return [float(v) for v in values]
        return [float(v) for v in self.accelerator.reduce(torch.stack(values), reduction="sum")]

    def responses(self, rows: Tensor) -> np.ndarray:
        """Predicted responses (n, V) of rows, the same on every process."""
        n, mine = len(rows), rows
        if self.world > 1:
            size = -(-n // self.world)
            mine = torch.cat([rows, rows[-1:].expand(size * self.world - n)])[self.rank * size :][:size]
        with self.autocast():
            out = predict_maps(self.bare, self.inputs, self.context, mine, self.evaluation_batch)
        if self.world > 1:
            out = self.accelerator.gather(out)[:n]
        return self.loss.response(out).cpu().numpy()


_CUT = 0.3


@dataclass(frozen=True)
class TrainResult:
    """Result of `train`: learning curves, best epoch, learning-rate schedule.

    Attributes
    ----------
    curves : DataFrame
        One row an epoch: epoch (from 1), loss and penalty (means over steps and voxels), validation_r (mean over
        voxels), lr, seconds.
    best_epoch : int
        Epoch whose weights were kept.
    best_r : float
        Its validation_r; NaN for a fixed number of epochs.
    n_steps : int
        Steps of the optimiser, those after the best epoch included.
    schedule : ndarray of float
        Learning rates of the epochs that led to the weights that were kept. A refit on more data takes it as
        ``fixed_epochs``.
    """

    curves: pd.DataFrame
    best_epoch: int
    best_r: float
    n_steps: int
    schedule: np.ndarray


@dataclass
class _State:
    """Where a run stands after an epoch; all of it is JSON."""

    epoch: int = 0
    n_steps: int = 0
    best_epoch: int = 0
    best_r: float | None = None
    wait: int = 0
    cuts: int = 0
    path: list[float] = field(default_factory=list)
    best_path: list[float] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False


@dataclass
class Run:
    """Epochs until nothing is gained any more, or a fixed number of them."""

    engine: Engine
    store: Checkpoint | None
    seen: np.ndarray | None
    held: Tensor
    taught: np.ndarray
    seed: int
    state: _State = field(default_factory=_State)
    best: dict[str, Tensor] = field(default_factory=dict)

    def run(
        self, lr: float, max_epochs: int, patience: int, lr_cuts: int, schedule: list[float] | None, show: bool
    ) -> TrainResult:
        state = self._resume()
        last = max_epochs if schedule is None else len(schedule)
        main = self.engine.rank == 0
        with bar(total=last, initial=state.epoch, desc="training", show=show and main) as line:
            while not state.done:
                rate = schedule[state.epoch] if schedule is not None else lr * _CUT**state.cuts
                self._epoch(rate)
                if schedule is None:
                    self._judge(patience, lr_cuts)
                state.done = state.done or state.epoch >= last
                if self.store is not None:
                    self._save()
                line.update()
                line.set_postfix(r=state.best_r, refresh=False)
        if schedule is None:
            self.engine.bare.load_state_dict(self.best, strict=False)
        self.engine.bare.eval()
        r = float("nan") if state.best_r is None else state.best_r
        epoch, path = (state.best_epoch, state.best_path) if schedule is None else (state.epoch, state.path)
        curves = pd.DataFrame(state.records).astype({"validation_r": np.float64})
        return TrainResult(curves, epoch, r, state.n_steps, np.array(path))

    def _epoch(self, rate: float) -> None:
        engine, state = self.engine, self.state
        begin = time.perf_counter()
        engine.set_lr(rate)
        engine.training()
        order = np.random.default_rng([self.seed, state.epoch]).permutation(self.taught)
        size = engine.batch_size * engine.accumulate
        steps: list[tuple[Any, ...]] = [(rows,) for rows in torch.as_tensor(order).split(size)]
        if engine.balance is not None:
            steps = engine.balance.steps(size, np.random.default_rng([self.seed, state.epoch]))
        device = engine.device
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        noise = np.random.SeedSequence([self.seed, state.epoch, engine.rank]).generate_state(1)[0]
        # The caller's random numbers are not ours to move.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(noise))
            for rows in steps:
                sums += torch.stack(engine.step(*rows)).double()
        value, penalty = engine.totals(*sums)
        if not np.isfinite(value + penalty):
            raise DataError(
                f"the loss is not finite in epoch {state.epoch + 1} (loss {value}, penalty {penalty}; lr {rate}). "
                "Next step: a lower lr, or standardised inputs and responses."
            )
        n_voxels = engine.targets.shape[1]
        count = sum(n_voxels if engine.balance is None else engine.balance.n_voxels(step[1]) for step in steps)
        state.epoch += 1
        state.n_steps += len(steps)
        state.path.append(rate)
        r = None if self.seen is None else self._validate(self.seen)
        state.records.append(
            {
                "epoch": state.epoch,
                "loss": value / count,
                "penalty": penalty / count / engine.world,
                "validation_r": r,
                "lr": rate,
                "seconds": time.perf_counter() - begin,
            }
        )

    def _validate(self, seen: np.ndarray) -> float:
        r = stats.pearson_r(seen, self.engine.responses(self.held))
        # A voxel that is predicted to be constant is not predicted; one that did not vary cannot be judged.
        judged = np.nanmax(seen, axis=0, initial=-np.inf) > np.nanmin(seen, axis=0, initial=np.inf)
        if not judged.any():
            raise DataError(
                f"no voxel varies over the {len(self.held)} validation rows, so that training cannot be judged. "
                "Next step: more validation rows, or fixed_epochs."
            )
        return float(np.nan_to_num(r[judged]).mean())

    def _judge(self, patience: int, lr_cuts: int) -> None:
        state = self.state
        r = state.records[-1]["validation_r"]
        if state.best_r is None or r > state.best_r:
            state.best_r, state.best_epoch, state.wait = r, state.epoch, 0
            state.best_path = list(state.path)
            self.best = moving_state(self.engine.bare)
            return
        state.wait += 1
        if state.wait < patience:
            return
        if state.cuts >= lr_cuts:
            state.done = True
            return
        state.cuts, state.wait, state.path = state.cuts + 1, 0, list(state.best_path)
        self.engine.bare.load_state_dict(self.best, strict=False)

    def _resume(self) -> _State:
        engine = self.engine
        found = None if self.store is None else self.store.resume(engine.bare, engine.optimiser, engine.device)
        if found is not None:
            self.state, self.best = _State(**found[0]), found[1]
        return self.state

    def _save(self) -> None:
        engine = self.engine
        if engine.rank == 0 and self.store is not None:
            self.store.save(engine.bare, engine.optimiser, asdict(self.state), self.best)
        if engine.accelerator is not None:
            engine.accelerator.wait_for_everyone()


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
    balanced: bool = False,
    sampling: Any = "rows",
    seed: int = 0,
    device: Any = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    accelerator: Any = None,
    max_memory: Any = None,
    evaluation_batch: int | None = None,
    progress: bool = False,
) -> TrainResult:
    r"""Train a readout: minimise loss plus penalty, in place.

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
    precision : {"32", "bf16"}
        Of the forward pass; weights and loss stay in single precision.
    balanced : bool
        One subject a step, and its gradient of the shared core scaled to one length over its sampling probability
        before it enters the optimiser's moments: subjects of louder responses or more voxels then weigh no more than
        others. Without several subjects behind a core there is nothing to balance.
    sampling : "rows", "equal" or mapping
        How often a balanced step is a subject's: by its rows, alike, or probabilities by subject.
    seed : int
    device : str or torch.device
        ``"auto"`` is a GPU if torch sees one. The accelerator's, if there is one.
    checkpoint : path, optional
        Folder for the state after each epoch; the same call goes on from there. Several runs may share it.
    accelerator : accelerate.Accelerator or "auto", optional
        Train on several devices. The result is that of one device up to rounding.
    max_memory : str or int, optional
        Bytes up to which inputs are held in memory (each of inputs and context).
    evaluation_batch : int, optional
        Rows of one pass in validation; default ``batch_size``.
    progress : bool

    Raises
    ------
    ConfigError
        Illegal settings, or neither ``validation`` nor ``fixed_epochs``.
    DataError
        Row counts that differ, rows on both sides, negative counts with ``"poisson"``, a validation set on which no
        voxel has a correlation, or a loss that is no longer finite.

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
    place = torch.device(resolve_device(device, needs_float64=True)) if accelerator is None else accelerator.device
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
    descent: dict[str, Any] = {"optimiser": optimiser, "lr": lr, "weight_decay": weight_decay, "precision": precision}
    descent |= {"batch_size": batch_size, "accumulate": accumulate}
    stop = {"max_epochs": max_epochs, "patience": patience, "lr_cuts": lr_cuts, "schedule": schedule, "seed": seed}
    store = None
    if checkpoint is not None:
        mixed = {"balanced": True, "sampling": sampling} if balanced else {}
        key = {
            "loss": loss.name,
            **descent,
            **stop,
            **mixed,
            "inputs": x.hash(),
            "context": second.hash() if second else "",
        }
        store = Checkpoint(checkpoint, {**key, "data": hash_array(y, held, taught), "start": _hash_model(model)})
    balance = balance_of(model, y, taught, sampling) if balanced else None
    where = {
        "balance": balance,
        "device": place,
        "accelerator": accelerator,
        "evaluation_batch": evaluation_batch or batch_size,
    }
    engine = Engine(model, x, y, second, loss=loss, **descent, **where)
    run = Run(engine, store, y[held] if len(held) else None, torch.as_tensor(held), taught, seed)
    return run.run(lr, max_epochs, patience, lr_cuts, schedule, progress)


def _hash_model(model: nn.Module) -> str:
    """Hash of weights and of what modules were made with: penalties and constraints decide the result too."""
    state = model.state_dict()  # all of it: what is frozen decides the result too
    # Through float: numpy has no bfloat16.
    weights = hash_array(sorted(state), *[state[k].cpu().float().numpy() for k in sorted(state)])
    made = []
    for name, part in model.named_modules():
        plain = {k: v for k, v in vars(part).items() if isinstance(v, (bool, int, float, str, tuple)) and k[0] != "_"}
        made.append(
            [name, type(part).__name__, {k: plain[k] for k in sorted(plain.keys() - {"training", "max_memory"})}]
        )
    return content_key(weights, made)


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
        check_whole(name, value)
    check_whole("lr_cuts", lr_cuts, least=0)
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
