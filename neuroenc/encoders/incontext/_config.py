"""Settings of in-context models: sizes, plug points of the attention, published presets."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.attention import (
    FEED_FORWARDS,
    AbsolutePosition,
    ALiBi,
    ChunkSelectPolicy,
    FullContext,
    GroupedSoftmax,
    LandmarkPolicy,
    NoPosition,
    Normaliser,
    Rotary,
    Sigmoid,
    SinkCalibration,
    Softmax,
    T5Bias,
)

#: What may stand at each plug point, by the name of its class.
PARTS: dict[str, dict[str, type[nn.Module]]] = {
    "normaliser": {c.__name__: c for c in (Softmax, Sigmoid, GroupedSoftmax, SinkCalibration)},
    "position": {c.__name__: c for c in (NoPosition, AbsolutePosition, Rotary, T5Bias, ALiBi)},
    "context": {c.__name__: c for c in (FullContext, LandmarkPolicy, ChunkSelectPolicy)},
}


def part_settings(what: str, part: nn.Module) -> dict[str, Any]:
    """``{"class": name, ...}`` with the arguments that make the part again.

    Examples
    --------
    >>> part_settings("normaliser", Sigmoid(bias=-2.0))
    {'class': 'Sigmoid', 'bias': -2.0}
    """
    kind = PARTS[what].get(type(part).__name__)
    if kind is not type(part):
        raise ConfigError(
            f"{what}={type(part).__name__} is no class of neuroenc.attention, so settings cannot bring it back. "
            f"Legal: {', '.join(PARTS[what])}."
        )
    found: dict[str, Any] = {"class": type(part).__name__}
    for name in _arguments(kind):
        value = getattr(part, name)
        found[name] = part_settings(what, value) if isinstance(value, Normaliser) else value
    return found


def part_from_settings(what: str, settings: Mapping[str, Any]) -> nn.Module:
    """The part that `part_settings` described.

    Examples
    --------
    >>> part_from_settings("position", {"class": "Rotary", "base": 500.0}).base
    500.0
    """
    if not isinstance(settings, Mapping) or not isinstance(settings.get("class"), str):
        raise ConfigError(f"{what}={settings!r} is no table of settings with a class of {', '.join(PARTS[what])}.")
    kind, given = settings["class"], {k: v for k, v in settings.items() if k != "class"}
    if kind not in PARTS[what]:
        raise ConfigError(unknown_name(f"class of {what}", kind, PARTS[what]))
    legal = _arguments(PARTS[what][kind])
    for name, value in given.items():
        one_of(f"setting of {what} {kind}", name, legal)
        if isinstance(value, Mapping):
            given[name] = part_from_settings(what, value)
    try:
        return PARTS[what][kind](**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what} {kind}: {error}") from error


def _arguments(kind: type[nn.Module]) -> list[str]:
    return [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "args", "kwargs")]


#: What a head beside may be trained to give.
HINTS = ("weights", "nearest", "statistics")
_FORMS, _SCALES = ("anchored", "published", "query", "refined"), ("none", "log_n", "learned")
#: Memories that may stand in the place of the blocks.
MEMORIES = ("attention", "titans", "gru", "lstm")
PLUGS = ("normaliser", "position", "context")


@dataclass(frozen=True)
class InContextConfig:
    """Architecture settings of an `InContextModel`.

    Parameters
    ----------
    n_features : int
        Width of the embedding.
    dim, depth, heads, hidden, registers : int
        Width, blocks, heads, width inside the gated feed-forward layers, learned tokens.
    components : int
        Of the anchor's mixture of priors.
    length_scale : {"log_n", "none", "learned"}
    form : {"anchored", "published", "query", "refined"}
        ``"published"`` spells weights out from the first register; ``"anchored"`` solves for them in closed form, with
        a prior and a noise level that the first register sets for each voxel. It was the better one wherever it was
        measured here, and is the default; presets of released models are published. ``"query"`` adds to the anchored
        form's prediction what a query finds that attends to the support, for voxels that are not linear in the
        features. ``"refined"`` leaves weights to the closed form under robust noise, and reads in its fit of trials,
        in the order in which they were shown, how each voxel's gain stands after the last of them (`InContextEncoder`,
        ``queries="after"``).
    memory : {"attention", "titans", "gru", "lstm"}, optional
        In the place of the blocks, a memory that reads trials one after the other and keeps its size, so that a
        `StreamingSession` goes on with it exactly: registers that ask all trials (`neuroenc.attention.AarenStack` of
        ``depth`` layers; a set with one layer and no position), a linear map that learns as it reads
        (`neuroenc.attention.NeuralMemory`, whose map is the voxel's weights, so published form only; ``registers`` are
        its persistent trials), or a recurrent cell. Positions: `ALiBi` with attention, so that trials fade with age.
    hint : {"weights", "nearest", "statistics"}, optional
        What a head beside also predicts in training (`Stage`, ``hint_weight``): the ridge weights of the support, the
        response to the nearest of its stimuli, or mean and variance of its responses.
    dropout : float
        In training.
    normaliser, position, context : mapping, optional
        Plug points of every block's `neuroenc.attention.Attention`: the name of a class and its arguments, such as
        ``{"class": "Sigmoid", "bias": "neg_log_n"}``; None is softmax, no positions, all keys. Positions make the
        output depend on the order of trials. `GroupedSoftmax` and `LandmarkPolicy` have ``lead`` = ``registers``; the
        model puts like trials into one block and inserts the landmarks.
    feed_forward : {"swiglu", "gelu"}
    experts : tuple of str
        Names of groups of voxels: regions, data sets, subjects. Every block then has one feed-forward network a name,
        and shares all else; the name of a voxel's group decides which one is asked (`InContextModel.expert`), nothing
        is learned about it. Not beside memories, nor the refined form, whose network reads all voxels of a fit alike.
    silent : bool
        The anchored form's closed form alone, the network not asked: what training leaves where the network did not
        predict held-out episodes better. See `InContextModel.silence`.
    scale_before_projection : bool
        See `neuroenc.attention.LengthScale`.
    """

    n_features: int
    dim: int
    depth: int
    heads: int = 10
    hidden: int = 2048
    registers: int = 4
    components: int = 1
    length_scale: str = "log_n"
    form: str = "anchored"
    memory: str | None = None
    hint: str | None = None
    dropout: float = 0.0
    normaliser: Mapping[str, Any] | None = None
    position: Mapping[str, Any] | None = None
    context: Mapping[str, Any] | None = None
    feed_forward: str = "swiglu"
    experts: tuple[str, ...] = ()
    scale_before_projection: bool = True
    silent: bool = False

    def __post_init__(self) -> None:
        for name in ("n_features", "dim", "depth", "heads", "hidden", "registers", "components"):
            check_whole(name, getattr(self, name))
        for name, legal in (("form", _FORMS), ("length_scale", _SCALES), ("feed_forward", tuple(FEED_FORWARDS))):
            if getattr(self, name) not in legal:
                raise ConfigError(unknown_name(name, getattr(self, name), legal))
        number = isinstance(self.dropout, (int, float)) and not isinstance(self.dropout, bool)
        if not number or not 0 <= self.dropout < 1 or not isinstance(self.scale_before_projection, bool):
            raise ConfigError(
                f"dropout={self.dropout!r} must be from 0 to below 1, scale_before_projection="
                f"{self.scale_before_projection!r} true or false."
            )
        if not isinstance(self.silent, bool) or (self.silent and self.form == "published"):
            raise ConfigError(
                f"silent={self.silent!r}: only the anchored form and the query form do without a network."
            )
        if self.dim % self.heads:
            raise ConfigError(f"heads={self.heads} does not divide dim={self.dim}.")
        if self.form == "refined" and (self.memory or self.hint or self.block_size):
            raise ConfigError("form='refined' beside memory, hint or landmarks: it reads fits, and all of them.")
        given = self.experts
        named = isinstance(given, (tuple, list)) and all(isinstance(x, str) and x for x in given)
        if not named or len(set(given)) < len(given):
            raise ConfigError(f"experts={given!r}; expected names of groups, none empty and none twice.")
        object.__setattr__(self, "experts", tuple(given))  # Files have lists.
        if given and (self.memory or self.form == "refined"):
            beside = f"memory={self.memory!r}" if self.memory else "form='refined'"
            raise ConfigError(f"experts beside {beside}, which has no feed-forward network for one group of voxels.")
        if self.hint is not None and self.hint not in HINTS:
            raise ConfigError(unknown_name("hint", self.hint, HINTS))
        self._check_parts()
        if self.memory is not None:
            self._check_memory()

    def _check_memory(self) -> None:
        if self.memory not in MEMORIES:
            raise ConfigError(unknown_name("memory", self.memory, MEMORIES))
        if self.form == "query" or (self.memory == "titans" and self.form != "published"):
            why = "its map is the weights" if self.form != "query" else "a query attends to trials, and it keeps none"
            raise ConfigError(f"form={self.form!r} beside memory={self.memory!r}: {why}. Next step: form='published'.")
        if self.length_scale != "none":
            raise ConfigError(
                f"length_scale={self.length_scale!r} beside memory={self.memory!r}: what was summed over trials cannot "
                "be scaled anew with their number. Next step: length_scale='none'."
            )
        faded = self.memory == "attention" and (self.position or {}).get("class") == "ALiBi"
        for name in PLUGS:
            if getattr(self, name) is not None and not (name == "position" and faded):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} beside memory={self.memory!r}, which cannot be streamed with it. "
                    "Legal: memory='attention' with position ALiBi. Next step: leave it out."
                )

    def parts(self) -> dict[str, Any]:
        """Fresh parts for the plug points of one block's attention; None where nothing is set."""
        settings = {name: getattr(self, name) for name in PLUGS}
        return {k: None if v is None else part_from_settings(k, v) for k, v in settings.items()}

    @property
    def block_size(self) -> int:
        """Trials for which a landmark stands; 0 without landmarks."""
        normaliser = self.normaliser or {}
        return int((normaliser.get("inner") or normaliser).get("block_size", 0))

    def _check_parts(self) -> None:
        parts = self.parts()
        for name, part in parts.items():
            lead = getattr(getattr(part, "inner", part), "lead", self.registers)
            if lead != self.registers:
                raise ConfigError(f"{name} has lead={lead}, the model {self.registers} registers. Make both the same.")
        sigmoid = getattr(parts["normaliser"], "inner", parts["normaliser"])
        if isinstance(sigmoid, Sigmoid) and sigmoid.bias == "neg_log_n" and self.length_scale != "none":
            raise ConfigError(
                f"length_scale={self.length_scale!r} beside a sigmoid whose bias of -ln n knows the length already: "
                "together they would count it twice. Next step: length_scale='none'."
            )
        if self.block_size and self.position is not None:
            raise ConfigError(
                "positions beside landmarks: a landmark stands for a block of like stimuli, not of trials that came "
                "one after the other. Next step: leave one of them out."
            )
        for name, wanted in (("heads", self.heads), ("dim", self.dim)):
            found = getattr(parts["position"], name, wanted)
            if found != wanted:
                kind = type(parts["position"]).__name__
                raise ConfigError(f"position {kind} has {name}={found}, the model {wanted}.")
        if type(parts["position"]).__name__ == "Rotary" and self.dim // self.heads % 2:
            raise ConfigError(f"Rotary turns pairs; heads are {self.dim // self.heads} wide (dim / heads).")
        chosen = getattr(parts["normaliser"], "heads", None) or ()
        if any(not 0 <= h < self.heads for h in chosen):
            raise ConfigError(f"normaliser heads={list(chosen)}; the model has {self.heads}, from 0.")
        if parts["context"] is not None:
            try:
                parts["context"].check(parts["normaliser"] or Softmax())
            except ValueError as error:
                raise ConfigError(f"context and normaliser: {error}") from error


# The published form, as released: 97.1, 156.0 and 277.0 million parameters.
PRESETS = {
    "clip": InContextConfig(512, 560, 20, form="published"),
    "dino": InContextConfig(768, 800, 20, form="published"),
    "siglip": InContextConfig(1152, 1200, 20, form="published"),
    "clip-3": InContextConfig(512, 560, 3, form="published"),
    # What trains on a laptop.
    "small": InContextConfig(128, 128, 4, heads=4, hidden=256),
}
