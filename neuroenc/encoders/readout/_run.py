"""Epochs of a training run: early stopping, cuts of the learning rate, and where the run stands."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuroenc import stats
from neuroenc._core.errors import DataError
from neuroenc._core.progress import progress as bar
from neuroenc.encoders._checkpoint import Checkpoint, moving_state, optimiser_tensors, restore_optimiser
from neuroenc.encoders.readout._engine import Engine

__all__ = ["Run", "TrainResult"]

_CUT = 0.3


@dataclass(frozen=True)
class TrainResult:
    """What `train` found, besides the weights that it left in the model.

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
    scaler: dict[str, Any] | None = None
    done: bool = False


class Run:
    """Epochs until nothing is gained any more, or a fixed number of them."""

    def __init__(
        self,
        engine: Engine,
        store: Checkpoint | None,
        seen: np.ndarray | None,
        held: Tensor,
        taught: np.ndarray,
        seed: int,
    ) -> None:
        self.engine, self.store, self.seen, self.held, self.taught, self.seed = engine, store, seen, held, taught, seed
        self.state = _State()
        self.best: dict[str, Tensor] = {}

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
            self._restore(self.best)
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
        steps = torch.as_tensor(order).split(engine.batch_size * engine.accumulate)
        device = engine.device
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        noise = np.random.SeedSequence([self.seed, state.epoch, engine.rank]).generate_state(1)[0]
        # The caller's random numbers are not ours to move.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(noise))
            for rows in steps:
                sums += torch.stack(engine.step(rows)).double()
        value, penalty = engine.totals(*sums)
        if not np.isfinite(value + penalty):
            raise DataError(
                f"the loss is not finite in epoch {state.epoch + 1} (loss {value}, penalty {penalty}; lr {rate}). "
                "Next step: a lower lr, or standardised inputs and responses."
            )
        count = len(steps) * engine.targets.shape[1]
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
        self._restore(self.best)

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        self.engine.bare.load_state_dict(tensors, strict=False)

    def _resume(self) -> _State:
        found = None if self.store is None else self.store.load(self.engine.device)
        if found is None:
            return self.state
        groups, record = found
        self.state = _State(**record)
        self.best = groups["best"]
        self._restore(groups["model"])
        restore_optimiser(self.engine.optimiser, groups["optimiser"], 0.0)
        if self.engine.scaler is not None and self.state.scaler:
            self.engine.scaler.load_state_dict(self.state.scaler)
        return self.state

    def _save(self) -> None:
        engine = self.engine
        if engine.rank == 0 and self.store is not None:
            self.state.scaler = None if engine.scaler is None else engine.scaler.state_dict()
            groups = {
                "model": moving_state(engine.bare),
                "best": self.best,
                "optimiser": optimiser_tensors(engine.optimiser),
            }
            self.store.save(groups, asdict(self.state))
        if engine.accelerator is not None:
            engine.accelerator.wait_for_everyone()
