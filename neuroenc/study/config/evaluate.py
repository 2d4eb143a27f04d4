"""Settings of support curves, ``[incontext.evaluate]``: methods, supports and who chooses them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from neuroenc._core.errors import ConfigError
from neuroenc.study.config.table import MOST, Count, CountOrZero, Device, FolderOrName, Seed, Table, twice

#: In-context models and baselines by name, and what tables and figures call them.
METHODS = {
    "in-context": "in-context",
    "ridge": "ridge (cross-validated)",
    "ridge-shared": "ridge (one penalty for all voxels)",
    "paper-ridge": "ridge (released protocol)",
    "evidence": "ridge (penalty by the evidence)",
    "empirical-bayes": "ridge (empirical Bayes)",
    "robust": "ridge (empirical Bayes, robust)",
    "drift": "ridge (empirical Bayes, robust, drifting gain)",
    "forget": "ridge (empirical Bayes, robust, forgetting)",
    "place": "ridge (empirical Bayes, by place)",
    "nearest": "nearest stimuli",
    "mean": "mean response",
    "anatomical": "anatomical transfer",
    "full": "ridge, whole pool",
}
Method = Literal[*METHODS]  # type: ignore[valid-type]
Selector = Literal["random", "nearest", "coverage", "d-optimal", "v-optimal", "prior", "pointer", "learned"]


class EvaluateConfig(Table):
    """Support curves: accuracy on new subjects over the number of trials.

    Attributes
    ----------
    methods
        In-context models and the baselines beside them; all but "forget", which takes thirty fits, by default.
    sizes
        Support sizes, in stimuli: at least 2, or 0 for methods that know other subjects.
    n_draws
        Random supports of each size.
    disjoint
        Draws share no stimulus, so that they are independent supports.
    order
        "time": the trials of a support in the order of the pool, and queries that are the last stimuli instead of
        random ones, so that methods can follow what drifts; query files must hold what was shown after the pool. Not
        for "world", whose queries are shown throughout.
    within
        Stimulus coordinate of the features, such as "category": beside supports of all stimuli, supports of one
        category only, draws going through the categories.
    select
        Beside random supports, those of selectors: "nearest" to the pool's mean, k-means "coverage",
        "v-optimal" (expected accuracy, from features alone), and, with the prior of the training subjects, "d-optimal"
        (information about weights), "prior" (expected accuracy), and
        networks: "pointer" learns to choose as "prior" does, "learned" from how much each picture made encoders of the
        training subjects better. Empty: random ones only.
    select_pool
        Share of a new subject's pool, drawn anew for each draw, that selectors choose from; sizes beyond it are left
        out.
    select_batch
        Closed loop: that many stimuli at a time, with the responses so far; 0: the whole support at once.
    n_query
        Query stimuli of each new subject.
    groups
        Voxel coordinate whose values get rows of their own, such as "roi".
    n_bootstraps
        Bootstrap samples of the intervals.
    seed
        Of supports and queries.
    device
        "auto", "cpu", "cuda", "mps" or another torch device.
    models
        Further in-context models by name: a folder, or "world", the shipped one.
    """

    methods: Annotated[list[Method], Field(min_length=1)] = [m for m in METHODS if m != "forget"]
    sizes: Annotated[list[Annotated[int, Field(ge=0, le=MOST)]], Field(min_length=1)] = [20, 50, 100, 200, 500]
    n_draws: Count = 5
    disjoint: bool = False
    order: Literal["shuffled", "time"] = "shuffled"
    within: str = ""
    select: list[Selector] = []
    select_pool: Annotated[float, Field(gt=0, le=1)] = 0.5
    select_batch: CountOrZero = 0
    n_query: Annotated[int, Field(ge=2, le=MOST)] = 300
    groups: str = ""
    n_bootstraps: Annotated[int, Field(ge=2, le=MOST)] = 1000
    seed: Seed = 0
    device: Device = "auto"
    models: dict[str, FolderOrName] = {}

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if twice(self.sizes) or twice(self.methods) or twice(self.select):
            raise ConfigError(
                f"sizes = {self.sizes}, methods = {self.methods} or select = {self.select} name one twice."
            )
        if 1 in self.sizes:
            raise ConfigError("sizes: 1 trial has no variance; at least 2, or 0.")
        for name in self.models:
            if name in METHODS.values():
                raise ConfigError(f"models: {name!r} is the name of a baseline, or of OUT's own model.")
        return self
