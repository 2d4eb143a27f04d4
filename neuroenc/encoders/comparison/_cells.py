"""Cells of a comparison: one feature space read by one readout, frozen or through a trained core."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from neuroenc._core.errors import ConfigError, unknown_name

__all__ = ["CLOSED_FORM", "Cell", "build_cells"]

#: Readouts that least squares solves; they need no torch.
CLOSED_FORM = ("linear", "pooled")
_RIDGE_OPTIONS = ("pool", "alphas", "cv")
# Arguments of ReadoutEncoder that the comparison itself decides.
_DECIDED = (
    "self",
    "readout",
    "readout_options",
    "core",
    "core_options",
    "subjects",
    "validation",
    "seed",
    "checkpoint",
    "progress",
    "alphas",
    "cv",
)


@dataclass(frozen=True)
class Cell:
    """One encoder of the comparison; plain data, so that workers anywhere can take it.

    ``features`` names the feature space, ``readout`` and ``core`` are labels, ``kind`` and ``core_kind`` what they
    stand for. ``options`` are fixed, ``search`` is what the inner validation may choose from, ``training`` goes to
    `ReadoutEncoder`, ``context`` names the space that a content-dependent readout looks at.
    """

    features: str
    readout: str
    kind: str
    core: str = ""
    core_kind: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    core_options: dict[str, Any] = field(default_factory=dict)
    search: dict[str, list[Any]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    context: str = ""
    closed_form: bool = False

    @property
    def name(self) -> str:
        """``features/readout``, or ``features/core/readout``."""
        return "/".join(part for part in (self.features, self.core, self.readout) if part)

    def settings(self) -> dict[str, Any]:
        """All of it, for hashes and records."""
        return asdict(self)


def _named(what: str, given: Mapping[str, Any] | Sequence[str] | None) -> dict[str, dict[str, Any]]:
    if given is None:
        return {}
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, Mapping):
        given = {str(name): {} for name in given}
    for name, options in given.items():
        if not isinstance(options, Mapping):
            raise ConfigError(f"{what} {name!r} has settings {options!r}; expected a table such as {{'pool': 4}}.")
        if "/" in str(name) or not str(name):
            raise ConfigError(f"{what} {name!r}: a name must not be empty nor hold '/', which parts a cell's name.")
    return {str(name): dict(options) for name, options in given.items()}


def _training_names() -> list[str]:
    from neuroenc.encoders.readout import ReadoutEncoder

    return [name for name in inspect.signature(ReadoutEncoder.__init__).parameters if name not in _DECIDED]


def _keywords(function: Any) -> list[str]:
    kinds = inspect.Parameter.KEYWORD_ONLY
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind is kinds]


def _readout(label: str, given: dict[str, Any], training: Mapping[str, Any], core: bool) -> dict[str, Any]:
    """Fields of a cell that its readout's settings decide."""
    given = dict(given)
    kind = given.pop("readout", label)
    context = given.pop("context", "")
    closed = bool(given.pop("closed_form", kind in CLOSED_FORM)) and not core
    where = f"setting of readout {label!r}"
    if closed:
        if kind not in CLOSED_FORM:
            raise ConfigError(f"readout {label!r} has no closed form; only {' and '.join(CLOSED_FORM)} have.")
        for name in given:
            if name not in _RIDGE_OPTIONS:
                raise ConfigError(unknown_name(where, name, (*_RIDGE_OPTIONS, "readout", "closed_form")))
        if kind == "pooled":
            given.setdefault("pool", 1)
        return {"kind": kind, "options": given, "closed_form": True}
    from neuroenc.encoders.readout import READOUTS

    if kind not in READOUTS:
        raise ConfigError(unknown_name("readout", kind, READOUTS))
    if core and kind in CLOSED_FORM:
        # The same label is ridge on frozen features, and is trained by gradients through a core.
        given = {k: v for k, v in given.items() if k not in ("alphas", "cv")}
    search = given.pop("search", None)
    for name in training:
        if name not in _training_names():
            raise ConfigError(unknown_name("training setting", name, _training_names()))
    names, legal = _training_names(), _keywords(READOUTS[kind].__init__)
    legal = [name for name in legal if name not in ("max_memory", "context_shape")]
    for name in given:
        if name not in names and name not in legal:
            raise ConfigError(unknown_name(where, name, [*legal, *names, "readout", "context", "search"]))
    chosen = {k: v for k, v in given.items() if k in legal}
    space = READOUTS[kind].search_space() if search is None else {str(k): list(v) for k, v in search.items()}
    for name, values in space.items():
        if name not in legal and name not in names:
            raise ConfigError(unknown_name(f"search of readout {label!r}:", name, [*legal, *names]))
        if not values:
            raise ConfigError(f"search of readout {label!r}: {name} has no values to choose from.")
    return {
        "kind": kind,
        "options": chosen,
        "search": {k: v for k, v in space.items() if k not in chosen},
        "training": {**training, **{k: v for k, v in given.items() if k in names and k not in legal}},
        "context": context,
    }


def _cell(
    features: str, core: str, settings: dict[str, Any], label: str, given: dict[str, Any], common: Mapping[str, Any]
) -> Cell:
    own = dict(settings)
    kind = own.pop("core", core)
    # A core often takes other epochs or rates than readouts of frozen maps.
    trains = {k: own.pop(k) for k in list(own) if k in _training_names()} if core else {}
    parts = _readout(label, given, {**common, **trains}, bool(core))
    return Cell(features=features, readout=label, core=core, core_kind=kind, core_options=own, **parts)


def build_cells(
    features: Sequence[str],
    readouts: Mapping[str, Mapping[str, Any]] | Sequence[str],
    cores: Mapping[str, Mapping[str, Any]] | Sequence[str] | None = None,
    keep: Sequence[str] | None = None,
    training: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """Every feature space with every readout, and every core on its feature spaces with every readout.

    Parameters
    ----------
    features : sequence of str
    readouts : mapping of label to settings, or names
        Settings are the readout's own options, arguments of `ReadoutEncoder` such as ``max_epochs``, ``readout``
        (which readout the label stands for), ``context`` (a feature space) and ``search`` (values to choose from).
    cores : mapping of label to settings, or names, optional
        Settings are the core's options, ``core`` (which core), ``features`` (one name or more) and arguments of
        `ReadoutEncoder` for cells with this core. Feature spaces that a core names are read through cores only.
    keep : sequence of str, optional
        Names of cells, ``features/readout`` or ``features/core/readout``, with ``*``; others are left out.
    training : mapping, optional
        Arguments of `ReadoutEncoder` for all cells that are trained by gradients.

    Raises
    ------
    ConfigError
        An unknown name (the nearest is named), or a pattern of ``keep`` that no cell matches.

    Examples
    --------
    >>> [cell.name for cell in build_cells(["v1", "v2"], {"ridge": {"readout": "linear"}}, keep=["v2/*"])]
    ['v2/ridge']
    """
    spaces, wanted = list(dict.fromkeys(map(str, features))), _named("readout", readouts)
    if not spaces or not wanted:
        raise ConfigError(f"a comparison needs feature spaces and readouts; found {len(spaces)} and {len(wanted)}.")
    for name in spaces:
        if "/" in name or not name:
            raise ConfigError(f"feature space {name!r}: a name must not be empty nor hold '/'.")
    common = dict(training or {})
    through: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for label, settings in _named("core", cores).items():
        named = settings.pop("features", spaces)
        for name in [named] if isinstance(named, str) else list(named):
            if name not in spaces:
                raise ConfigError(unknown_name(f"features of core {label!r}:", name, spaces))
            through.setdefault(name, []).append((label, settings))
    cells = []
    for name in spaces:
        for core, settings in through.get(name, [("", {})]):
            for label, given in wanted.items():
                shown = "/".join(p for p in (name, core, label) if p)
                if keep is not None and not any(fnmatch.fnmatchcase(shown, pattern) for pattern in keep):
                    continue
                cells.append(_cell(name, core, settings, label, given, common))
    _check(cells, spaces, keep, through)
    return cells


def _check(cells: list[Cell], spaces: list[str], keep: Sequence[str] | None, through: Mapping[str, Any]) -> None:
    for cell in cells:
        if cell.context and cell.context not in spaces:
            raise ConfigError(unknown_name(f"context of readout {cell.readout!r}:", cell.context, spaces))
        if cell.core:
            from neuroenc.encoders.readout.cores import CORES

            if cell.core_kind not in CORES:
                raise ConfigError(unknown_name("core", cell.core_kind, CORES))
            legal = _keywords(CORES[cell.core_kind].__init__)
            for name in cell.core_options:
                if name not in legal:
                    what = f"setting of core {cell.core!r}"
                    raise ConfigError(unknown_name(what, name, [*legal, *_training_names(), "core", "features"]))
    for pattern in keep or ():
        if not any(fnmatch.fnmatchcase(cell.name, pattern) for cell in cells):
            raise ConfigError(
                f"cells: {pattern!r} matches no cell of {spaces} (through {sorted(through) or 'no core'}). "
                "A cell is named features/readout or features/core/readout; * stands for anything."
            )
