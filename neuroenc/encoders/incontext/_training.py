"""Training of in-context models: stages, losses, learning-rate schedule, exact resumption."""

from __future__ import annotations

import math
import os
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from neuroenc._core.checkpoints import Checkpoint, moving_state
from neuroenc._core.checks import one_of
from neuroenc._core.device import make_accelerator, resolve_device
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import hash_array
from neuroenc._core.progress import progress as bar
from neuroenc.encoders.incontext._condition import FEWEST_TRIALS, FEWEST_VOXELS, pooled_prior, voxel_posteriors
from neuroenc.encoders.incontext._empirical_bayes import EmpiricalBayesRidge
from neuroenc.encoders.incontext._episodes import Episode, EpisodeSource, SupportSizes, source_digest
from neuroenc.encoders.incontext._hint import hint_error
from neuroenc.encoders.incontext._model import InContextModel, VoxelWeights
from neuroenc.encoders.incontext._trial_noise import CLIP, outlier_bounds

LOSSES = ("response", "weights", "likelihood", "share")


@dataclass(frozen=True)
class Stage:
    """Settings of one training stage.

    Parameters
    ----------
    support : (int, int)
        Smallest and largest support; each step draws one.
    sizes : {"uniform", "log"}
        How it is drawn.
    query : int
        Query images of an episode.
    voxels, episodes : int
        Voxels of an episode, which share their images, and episodes of a step.
    loss : {"response", "weights", "likelihood", "share"}
        ``"response"``: squared error of query responses, as released. ``"weights"``: 1 - cosine of the weights plus
        ``response_weight`` times the squared error. ``"likelihood"``: negative log predictive density of query
        responses (anchored models only); it also teaches the noise level. ``"share"``: squared error of noiseless query
        responses over their variance, voxel by voxel (at most 3), so that quiet voxels count as much as loud ones.
    response_weight : float
    hint_weight : float
        Of a hint's error beside the loss, in models that have one (`InContextConfig`).
    lr, min_lr, weight_decay : float
        Of AdamW.
    max_steps, evaluate_every : int
        Steps in all, and between evaluations.
    factor, patience, threshold, cooldown, stop_patience : float and int
        The plateau schedule in evaluations, and after how many without a gain training stops.
    warmup : int
        Steps over which the learning rate grows.
    clip : float
        Largest norm of the gradient.
    deployed : bool
        Train anchored models as `InContextEncoder` uses them: each trial by the precision that all voxels of the
        episode give it, and levels pooled over them (episodes of at least 20 voxels and 10 trials).
    """

    support: tuple[int, int] = (30, 500)
    sizes: str = "uniform"
    query: int = 100
    voxels: int = 64
    episodes: int = 1
    loss: str = "response"
    response_weight: float = 1.0
    hint_weight: float = 0.3
    lr: float = 1e-3
    min_lr: float = 1e-5
    weight_decay: float = 0.1
    max_steps: int = 20_000
    evaluate_every: int = 200
    factor: float = 0.1
    patience: int = 5
    threshold: float = 1e-4
    cooldown: int = 2
    stop_patience: int = 12
    warmup: int = 100
    clip: float = 1.0
    deployed: bool = False

    def __post_init__(self) -> None:
        one_of("loss", self.loss, LOSSES)
        SupportSizes(*self.support, self.sizes)
        for name in ("query", "voxels", "episodes", "max_steps", "evaluate_every", "stop_patience"):
            if int(getattr(self, name)) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")
        if not self.lr > 0 or not 0 <= self.min_lr <= self.lr:
            raise ConfigError(f"lr={self.lr} and min_lr={self.min_lr}: expected 0 <= min_lr <= lr.")
        for name in ("response_weight", "hint_weight", "weight_decay", "threshold", "patience", "cooldown", "warmup"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 or more.")
        if not 0 < self.factor < 1 or not self.clip > 0:
            raise ConfigError(f"factor={self.factor} must lie between 0 and 1, clip={self.clip} above 0.")


# The three stages as published: support of 500, then 30 to 500, then real responses at a lower rate.
STAGES = {
    "pretrain": Stage(support=(500, 500)),
    "extend": Stage(support=(30, 500), lr=3e-4),
    "finetune": Stage(support=(30, 500), lr=1e-4),
}


def make_stage(name: str | Stage, **changes: Any) -> Stage:
    """Make a training stage by name, with changes.

    Parameters
    ----------
    name : {"pretrain", "extend", "finetune"} or Stage
    **changes
        Settings of `Stage`.

    Raises
    ------
    ConfigError
        An unknown stage or setting (the nearest is named), or a value that is not legal.

    Examples
    --------
    >>> make_stage("extend", support=(10, 100)).support
    (10, 100)
    """
    if isinstance(name, str):
        one_of("stage", name, STAGES)
        name = STAGES[name]
    legal = [f.name for f in fields(Stage)]
    for key in changes:
        one_of("setting of a stage", key, legal)
    if "support" in changes:
        changes["support"] = tuple(changes["support"])
    return replace(name, **changes)


def episode_loss(model: InContextModel, episode: Episode, stage: Stage) -> Tensor:
    r"""Loss of an episode, averaged over voxels and query trials that were seen.

    .. math:: \overline{(\hat y_q - y_q)^2}, \quad\text{or}\quad
              1 - \cos(\hat w, w) + \lambda\,\overline{(\hat y_q - y_q)^2}, \quad\text{or}\quad
              \overline{\tfrac12 \ln 2\pi v_q + (\hat y_q - y_q)^2 / 2 v_q}, \quad\text{or}\quad
              \overline{(\hat y_q - w \cdot x_q)^2} / \mathrm{Var}(w \cdot x_q)
    """
    return _loss(_conditioned(model, episode, stage), model, episode, stage)


def _conditioned(model: InContextModel, episode: Episode, stage: Stage) -> VoxelWeights:
    bare: InContextModel = getattr(model, "module", model)  # Behind an accelerator's wrapper.
    if bare.config.experts:
        model = bare.expert(episode.group)
    if stage.deployed:
        Y = episode.y.T.double().cpu().numpy()
        within = np.clip(Y, *outlier_bounds(Y, CLIP))
        episode = episode._replace(y=torch.as_tensor(within.T.copy()).to(episode.y))
    return model(episode.x, episode.y, covariance=stage.loss == "likelihood", **_deployed(model, episode, stage))


def _deployed(model: InContextModel, episode: Episode, stage: Stage) -> dict[str, Tensor]:
    """What `InContextEncoder` finds from all voxels together: ``log_weight`` of trials and ``pooled`` levels."""
    bare: InContextModel = getattr(model, "module", model)  # Behind an accelerator's wrapper.
    if not stage.deployed or bare.anchor is None or bare.gain is not None:
        return {}
    if len(episode.y) < FEWEST_VOXELS or len(episode.x) < FEWEST_TRIALS:
        return {}
    X, Y = episode.x.double().cpu().numpy(), episode.y.T.double().cpu().numpy()
    heard = (~np.isnan(Y)).sum(axis=0) >= 3
    closed = EmpiricalBayesRidge(bare.anchor.single_prior(levels=True), robust="shared", adapt="none", clip=None)
    closed.fit(X, Y[:, heard])
    weight = torch.as_tensor(closed.trial_precision_).log().float().to(episode.x.device)
    scores, _ = voxel_posteriors(bare, episode.x, Y, weight, size=len(episode.y), half=False)
    # Tensors of inference are not for autograd.
    return {"log_weight": weight, "pooled": pooled_prior(scores.clone(), bare.anchor.prior().detach())}


def _loss(found: VoxelWeights, model: InContextModel, episode: Episode, stage: Stage) -> Tensor:
    if found.hint is None:
        return _error(found, episode, stage)
    kind = getattr(model, "module", model).config.hint  # Behind an accelerator's wrapper.
    return stage.hint_weight * hint_error(str(kind), found.hint, episode) + _error(found, episode, stage)


def _error(found: VoxelWeights, episode: Episode, stage: Stage) -> Tensor:
    likely = stage.loss == "likelihood"
    seen = ~episode.yq.isnan()
    target = episode.yq.nan_to_num(0.0)
    error = (found.predict(episode.xq) - target).square()[seen]
    if likely:
        variance = found.variance(episode.xq)[seen]
        return 0.5 * (math.log(2 * math.pi) + variance.log() + error / variance).mean()
    if stage.loss == "response":
        return error.mean()
    if episode.weights is None:
        raise ConfigError(
            f"loss={stage.loss!r} needs the true weights of every voxel, which simulated episodes have. Next step: "
            "loss='response'."
        )
    if stage.loss == "share":
        truth = VoxelWeights(episode.weights[:, :-1], episode.weights[:, -1]).predict(episode.xq)
        error = (found.predict(episode.xq) - truth).square().mean(1)
        return (error / truth.var(1, correction=0).clamp_min(1e-3)).clamp_max(3.0).mean()
    cosine = F.cosine_similarity(found.coef, episode.weights[:, :-1], dim=1)
    return (1 - cosine).mean() + stage.response_weight * error.mean()


def explained_variance(found: VoxelWeights, episode: Episode) -> Tensor:
    """1 - Var(error) / Var(response) of each voxel (voxel,), over query trials that were seen."""
    seen = ~episode.yq.isnan()
    error = torch.where(seen, found.predict(episode.xq) - episode.yq.nan_to_num(0.0), 0.0)
    target = episode.yq.nan_to_num(0.0)
    return 1 - _variance(error, seen) / _variance(target, seen).clamp_min(1e-12)


def _variance(values: Tensor, seen: Tensor) -> Tensor:
    n = seen.sum(1).clamp_min(1)
    mean = (values * seen).sum(1) / n
    return (((values - mean[:, None]) * seen).square()).sum(1) / n


_HALF = {"32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TrainedStage:
    """Result of `train_stage`: learning curves and the best step.

    Attributes
    ----------
    curves : DataFrame
        One row an evaluation: step, loss (training, mean since the last), validation_loss, validation_ev, lr, seconds.
    best_step : int
    best_loss : float
        Validation loss of the weights that were kept.
    """

    curves: pd.DataFrame
    best_step: int
    best_loss: float


@dataclass
class _State:
    """Where training stands; all of it is JSON."""

    step: int = 0
    lr: float = 0.0
    best_step: int = 0
    best_loss: float | None = None
    plateau: float | None = None
    bad: int = 0
    cool: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False


def validation_episodes(
    source: EpisodeSource,
    sizes: Any = (20, 50, 100, 200, 500),
    *,
    n_voxels: int = 32,
    repeats: int = 2,
    query: int = 100,
    seed: int = 1,
) -> list[Episode]:
    """Draw a fixed set of validation episodes: ``repeats`` of each support size.

    Parameters
    ----------
    source : EpisodeSource
        Of voxels or subjects that training does not see.
    sizes : sequence of int
        Support sizes.
    n_voxels, repeats, query : int
        Voxels and query trials of an episode, and episodes of a size.
    seed : int

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders.incontext import SyntheticEpisodes
    >>> images = np.random.default_rng(0).standard_normal((200, 6))
    >>> episodes = validation_episodes(SyntheticEpisodes(images), (20, 50), repeats=1)
    >>> [len(episode.x) for episode in episodes]
    [20, 50]
    """
    rngs = [np.random.default_rng([seed, size, k]) for size in sizes for k in range(repeats)]
    wanted = [size for size in sizes for _ in range(repeats)]
    return [source.draw(rng, n_voxels, size, query) for rng, size in zip(rngs, wanted)]


def train_stage(
    model: InContextModel,
    source: EpisodeSource,
    stage: str | Stage = "pretrain",
    *,
    validation: list[Episode] | None = None,
    seed: int = 0,
    device: Any = "auto",
    precision: str = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    accelerator: Any = None,
    progress: bool = False,
    max_seconds: float | None = None,
    **changes: Any,
) -> TrainedStage:
    """Train an in-context model on episodes, in place; the best validated weights are kept.

    The episodes of a step follow from ``seed`` and the step alone, so that a run that was killed ends with the bytes
    of one that was not (on the CPU).

    Parameters
    ----------
    model : InContextModel
    source : EpisodeSource
        `SyntheticEpisodes`, `ResponseEpisodes` or `MixedEpisodes`; for a model with experts, every episode of one of
        their groups, as `ResponseEpisodes` (``groups=``) draws them. Experts of other groups stay as they are.
    stage : {"pretrain", "extend", "finetune"} or Stage
        Fixed support of 500 on synthetic voxels; 30 to 500; the same at a lower rate, for real responses.
    validation : list of Episode, optional
        From `validation_episodes`, of voxels or subjects kept apart. Default: of ``source`` itself, with other draws,
        which is right for synthetic voxels only.
    seed : int
    device : str or torch.device
    precision : {"auto", "32", "bf16"}
        Of the transformer; the solve and the loss stay in single precision. ``"auto"`` is bf16 on a GPU.
    checkpoint : path, optional
        Folder for the state after each evaluation; the same call goes on from there. Several runs may share it.
    accelerator : accelerate.Accelerator or "auto", optional
        Each process draws its own share of a step's episodes. Not for models with experts.
    progress : bool
    max_seconds : float, optional
        Stop after that long; where it stops depends on the machine.
    **changes
        Settings of the stage; see `Stage`.

    Raises
    ------
    ConfigError, DataError
        Illegal settings; widths that differ; a loss that is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders.incontext import SyntheticEpisodes, make_model, train_stage
    >>> images = np.random.default_rng(0).standard_normal((400, 8), dtype=np.float32)
    >>> model = make_model("small", n_features=8, dim=16, depth=1, hidden=32)
    >>> done = train_stage(model, SyntheticEpisodes(images), "extend", support=(10, 50), voxels=8, max_steps=20,
    ...                    evaluate_every=10)
    >>> len(done.curves), done.best_loss < 1
    (2, True)
    """
    stage = make_stage(stage, **changes)
    if source.n_features != model.config.n_features:
        raise DataError(f"episodes have {source.n_features} features, the model takes {model.config.n_features}.")
    space = getattr(source, "features", {})
    for name in space:
        if model.features.get(name, space[name]) != space[name]:
            raise DataError(
                f"episodes have {name}={space[name]!r}, the model was trained on {model.features[name]!r}. "
                "Next step: episodes of the features that it knows, or a new model."
            )
    model.features = model.features or dict(space)
    if stage.loss == "likelihood" and model.anchor is None:
        raise ConfigError("loss='likelihood' needs form='anchored'. Next step: loss='response'.")
    place = torch.device(resolve_device(device, needs_float64=True))
    precision = ("bf16" if place.type == "cuda" else "32") if precision == "auto" else precision
    accelerator = make_accelerator(accelerator, precision)
    if validation is None:
        validation = validation_episodes(source, _sizes(stage), query=stage.query, seed=seed + 1)
    if model.config.experts and accelerator is not None:
        raise ConfigError("experts are trained in one process: others would wait for networks that it does not ask.")
    for name in {episode.group for episode in validation} if model.config.experts else ():
        model.expert(name)
    store = None
    if checkpoint is not None:
        state = moving_state(model)
        held = [episode.digest() for episode in validation]
        start = hash_array(*[state[k].cpu().float().numpy() for k in sorted(state)])
        key = {
            "stage": asdict(stage),
            "model": model.describe(),
            "seed": seed,
            "held": held,
            "start": start,
            "precision": precision,
            "source": source_digest(source),
            "processes": 1 if accelerator is None else int(accelerator.num_processes),
        }
        store = Checkpoint(checkpoint, key)
    place = accelerator.device if accelerator is not None else place
    run = _Run(
        model.silence(False).to(place), source, stage, validation, seed, place, _HALF[precision], accelerator, store
    )
    return run.run(progress, max_seconds)


def _sizes(stage: Stage) -> list[int]:
    low, high = stage.support
    return sorted({low, *(s for s in (20, 50, 100, 200) if low < s < high), high})


class _Run:
    def __init__(
        self,
        model: InContextModel,
        source: EpisodeSource,
        stage: Stage,
        validation: list[Episode],
        seed: int,
        device: torch.device,
        half: torch.dtype | None,
        accelerator: Any,
        store: Checkpoint | None,
    ) -> None:
        self.bare, self.source, self.stage, self.seed = model, source, stage, seed
        self.validation = [e.to(device) for e in validation]
        self.device, self.half, self.accelerator, self.store = device, half, accelerator, store
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": stage.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser: Any = torch.optim.AdamW(groups, lr=stage.lr, fused=device.type in ("cpu", "cuda"))
        self.model: Any = model
        if accelerator is not None:
            self.model, self.optimiser = accelerator.prepare(model, self.optimiser)
        self.rank = 0 if accelerator is None else int(accelerator.process_index)
        self.world = 1 if accelerator is None else int(accelerator.num_processes)
        self.state = _State(lr=stage.lr)
        self.best: dict[str, Tensor] = {}
        self.sizes = SupportSizes(*stage.support, stage.sizes)

    def run(self, show: bool, max_seconds: float | None) -> TrainedStage:
        begin = time.perf_counter()
        state, stage = self._resume(), self.stage
        with bar(total=stage.max_steps, initial=state.step, desc="training", show=show and self.rank == 0) as line:
            while not state.done:
                steps = min(stage.evaluate_every, stage.max_steps - state.step)
                start = time.perf_counter()
                loss = self._steps(steps)
                held, ev = self._evaluate()
                state.records.append(
                    {
                        "step": state.step,
                        "loss": loss,
                        "validation_loss": held,
                        "validation_ev": ev,
                        "lr": state.lr,
                        "seconds": time.perf_counter() - start,
                    }
                )
                self._judge(held)
                late = max_seconds is not None and time.perf_counter() - begin > max_seconds
                state.done = state.done or late or state.step >= stage.max_steps
                if self.store is not None and self.rank == 0:
                    self.store.save(self.bare, self.optimiser, asdict(state), self.best)
                line.update(steps)
                line.set_postfix(loss=f"{held:.4f}", ev=f"{ev:.3f}", lr=f"{state.lr:.0e}", refresh=False)
        self.bare.load_state_dict(self.best, strict=False)
        self.bare.eval()
        assert state.best_loss is not None
        return TrainedStage(pd.DataFrame(state.records), state.best_step, state.best_loss)

    def _steps(self, count: int) -> float:
        stage, state = self.stage, self.state
        self.model.train()
        total = 0.0
        for _ in range(count):
            rate = state.lr * min(1.0, (state.step + 1) / max(1, stage.warmup))
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            size = self.sizes.draw(np.random.default_rng([self.seed, state.step]))
            self.optimiser.zero_grad(set_to_none=True)
            noise = np.random.SeedSequence([self.seed, state.step, self.rank]).generate_state(1)[0]
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(int(noise))
                for k in range(stage.episodes):
                    rng = np.random.default_rng([self.seed, state.step, self.rank, k])
                    episode = self.source.draw(rng, stage.voxels, size, stage.query).to(self.device)
                    with self._autocast():
                        loss = episode_loss(self.model, episode, stage) / stage.episodes
                    total += float(loss.detach())
                    self._backward(loss)
            torch.nn.utils.clip_grad_norm_(self.bare.parameters(), stage.clip)
            self.optimiser.step()
            state.step += 1
        if not np.isfinite(total):
            raise DataError(
                f"the loss is not finite around step {state.step} (lr {state.lr}). Next step: a lower lr, or responses "
                "and features on their usual scale."
            )
        return total / count

    def _backward(self, loss: Tensor) -> None:
        if self.accelerator is not None:
            self.accelerator.backward(loss)
        else:
            loss.backward()

    def _autocast(self) -> Any:
        if self.accelerator is not None:
            return self.accelerator.autocast()
        return nullcontext() if self.half is None else torch.autocast(self.device.type, dtype=self.half)

    def _evaluate(self) -> tuple[float, float]:
        """Loss and explained variance, means over episodes."""
        self.bare.eval()
        losses, shares = [], []
        with torch.no_grad(), self._autocast():
            for episode in self.validation:
                found = _conditioned(self.bare, episode, self.stage)
                losses.append(float(_loss(found, self.bare, episode, self.stage)))
                shares.append(float(explained_variance(found, episode).mean()))
        return float(np.mean(losses)), float(np.mean(shares))

    def _judge(self, held: float) -> None:
        """Keep the best weights; cut the learning rate on a plateau (as ReduceLROnPlateau); stop when nothing helps."""
        state, stage = self.state, self.stage
        if state.best_loss is None or held < state.best_loss:
            state.best_loss, state.best_step = held, state.step
            self.best = moving_state(self.bare)
        if state.plateau is None or held < state.plateau * (1 - np.sign(state.plateau) * stage.threshold):
            state.plateau, state.bad = held, 0
        else:
            state.bad += 1
        if state.cool:
            state.cool, state.bad = state.cool - 1, 0
        if state.bad > stage.patience and state.lr > stage.min_lr:
            state.lr, state.bad, state.cool = max(stage.min_lr, state.lr * stage.factor), 0, stage.cooldown
        since = sum(r["step"] > state.best_step for r in state.records)
        state.done = since >= stage.stop_patience

    def _resume(self) -> _State:
        found = None if self.store is None else self.store.resume(self.bare, self.optimiser, self.device)
        if found is not None:
            self.state, self.best = _State(**found[0]), found[1]
        return self.state
