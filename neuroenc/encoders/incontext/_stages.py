"""Stages of training and their settings."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.encoders.incontext._episodes import SupportSizes

__all__ = ["STAGES", "Stage", "make_stage"]

LOSSES = ("response", "weights", "likelihood")


@dataclass(frozen=True)
class Stage:
    """Settings of one stage of training.

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
    loss : {"response", "weights", "likelihood"}
        ``"response"``: squared error of query responses, as released. ``"weights"``: 1 - cosine of the weights plus
        ``response_weight`` times the squared error. ``"likelihood"``: negative log predictive density of query
        responses (anchored models only); it also teaches the noise level.
    response_weight : float
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
    """

    support: tuple[int, int] = (30, 500)
    sizes: str = "uniform"
    query: int = 100
    voxels: int = 64
    episodes: int = 1
    loss: str = "response"
    response_weight: float = 1.0
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

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ConfigError(unknown_name("loss", self.loss, LOSSES))
        SupportSizes(*self.support, self.sizes)
        for name in ("query", "voxels", "episodes", "max_steps", "evaluate_every", "stop_patience"):
            if int(getattr(self, name)) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")
        if not self.lr > 0 or not 0 <= self.min_lr <= self.lr:
            raise ConfigError(f"lr={self.lr} and min_lr={self.min_lr}: expected 0 <= min_lr <= lr.")
        for name in ("response_weight", "weight_decay", "threshold", "patience", "cooldown", "warmup"):
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
    """A stage by name, with changes.

    Parameters
    ----------
    name : {"pretrain", "extend", "finetune"} or Stage
    **changes
        Settings of `Stage`.

    Returns
    -------
    Stage

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
        if name not in STAGES:
            raise ConfigError(unknown_name("stage", name, STAGES))
        name = STAGES[name]
    legal = [f.name for f in fields(Stage)]
    for key in changes:
        if key not in legal:
            raise ConfigError(unknown_name("setting of a stage", key, legal))
    if "support" in changes:
        changes["support"] = tuple(changes["support"])
    return replace(name, **changes)
