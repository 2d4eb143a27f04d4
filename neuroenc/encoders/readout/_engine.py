"""Steps of the optimiser and predictions, on one device or on several through Accelerate."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.encoders.readout._losses import Loss
from neuroenc.encoders.readout._maps import Maps

__all__ = ["Engine", "predict_maps"]

_OPTIMISERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def predict_maps(model: nn.Module, inputs: Maps, context: Maps | None, rows: Tensor, batch_size: int) -> Tensor:
    """Outputs (n, V) of the model in evaluation mode, on its device, in at least single precision."""
    was_training = model.training
    model.eval()
    parts = []
    with torch.no_grad():
        for part in rows.split(batch_size):
            x = inputs.rows(part)
            out = model(x) if context is None else model(x, context.rows(part))
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
    ) -> None:
        if optimiser not in _OPTIMISERS:
            raise ConfigError(unknown_name("optimiser", optimiser, _OPTIMISERS))
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
        self.scaler: Any = None
        self._half = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision)
        if accelerator is not None:
            self.model, self.optimiser = accelerator.prepare(model, self.optimiser)
            self.scaler = accelerator.scaler
        elif precision == "16":
            self.scaler = torch.amp.GradScaler(device.type)
        self.world = 1 if accelerator is None else int(accelerator.num_processes)
        self.rank = 0 if accelerator is None else int(accelerator.process_index)
        # With several subjects most stimuli were seen by one of them: the others' readouts need not be computed.
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

    def step(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """One step on ``rows``; returns this process' loss and the penalty, both summed over voxels."""
        y = self._target(rows)
        parts = list(zip(rows.split(self.batch_size), y.split(self.batch_size)))
        count = (~torch.isnan(y)).sum(dim=0) if len(parts) * self.world > 1 else None
        self.optimiser.zero_grad(set_to_none=True)
        total = y.new_zeros(())
        penalty = y.new_zeros(())
        for number, (index, target) in enumerate(parts):
            last = number == len(parts) - 1
            wait = self.accelerator is not None and self.world > 1 and not last
            with self.accelerator.no_sync(self.model) if wait else nullcontext():
                value = self._part(index, target, count)
                total += value.detach()
                # Gradients are averaged over processes, and the loss is a sum over all of them.
                value = value * self.world
                if last and hasattr(self.bare, "regulariser"):
                    extra = self.bare.regulariser()
                    penalty = extra.detach()
                    value = value + extra
                self._backward(value)
        self._update()
        return total, penalty

    def _part(self, index: Tensor, target: Tensor, count: Tensor | None) -> Tensor:
        if self.world > 1:
            index, target = index[self.rank :: self.world], target[self.rank :: self.world]
            if not len(index):
                # A process without rows takes part with one that counts for nothing: the others wait for it.
                index, target = torch.zeros(1, dtype=torch.long), target.new_full((1, self.targets.shape[1]), torch.nan)
        x = self.inputs.rows(index)
        more: list[Any] = [] if self.context is None else [self.context.rows(index)]
        extra = {} if self._subjects is None else {"seen": self._seen(target)}
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

    def _target(self, rows: Tensor) -> Tensor:
        return self.targets[rows.to(self.targets.device)].to(self.device, non_blocking=True)

    def _backward(self, value: Tensor) -> None:
        if self.accelerator is not None:
            self.accelerator.backward(value)
        elif self.scaler is not None:
            self.scaler.scale(value).backward()
        else:
            value.backward()

    def _update(self) -> None:
        if self.scaler is not None and self.accelerator is None:
            self.scaler.step(self.optimiser)
            self.scaler.update()
        else:
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
