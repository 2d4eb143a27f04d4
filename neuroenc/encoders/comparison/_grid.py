"""Cells of a comparison (feature space x readout), outer folds and jobs, what the jobs read and what they give."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.arrays import row_patterns
from neuroenc._core.checks import keywords, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.executor import Shared
from neuroenc._core.files import hash_array, hash_json
from neuroenc._core.store import Tensors, content_key
from neuroenc.encoders._folds import resolve_folds
from neuroenc.encoders._labels import channel_labels, sample_coords
from neuroenc.encoders.linear._reduce import check_reduction

#: First dimension of a feature space that was trained anew for each outer fold.
FOLD = "fold"
#: Readouts that least squares solves; they need no torch.
CLOSED_FORM = ("linear", "pooled")
#: Models of several feature spaces at once.
JOINT = ("stacked", "banded")
_RIDGE_OPTIONS = ("pool", "alphas", "cv", "reduce", "n_components")
#: Settings of training by name, for ``training``'s ``preset``. "published": the readout comparison's own, apart from
#: when it validates (every 500 steps there, every epoch here).
PRESETS: dict[str, dict[str, Any]] = {
    "published": {
        "loss": "mse+ccc-batch",
        "optimiser": "adam",
        "lr": 1e-4,
        "weight_decay": 0.0,
        "batch_size": 4,
        "accumulate": 4,
        "max_epochs": 100,
        "patience": 20,
        "lr_cuts": 0,
    }
}
# Arguments of ReadoutEncoder that the comparison itself decides.
_DECIDED = ("readout_options", "core", "core_options", "subjects", "validation", "seed", "checkpoint", "progress")


@dataclass(frozen=True)
class Cell:
    """Cell of a comparison: one feature space read by one readout.

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

    @property
    def spaces(self) -> tuple[str, ...]:
        """Feature spaces that are read: its own and its context ("" where there is none), or those of a joint model."""
        several = self.kind in ("unique", *JOINT)
        return tuple(self.options["spaces"]) if several else (self.features, self.context)


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

    return [name for name in keywords(ReadoutEncoder) if name not in (*_DECIDED, *_RIDGE_OPTIONS)]


def _matching(label: str, given: dict[str, Any], every: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Settings with ``matches``, the label of another readout, as what that stands for: its kind and options."""
    if "matches" not in given:
        return given
    if given.get("readout", label) != "lowrank" or "rank" in given:
        raise ConfigError(
            f"readout {label!r}: matches is of readout 'lowrank' without rank, whose rank is chosen to have as many "
            f"parameters as another; found {given}."
        )
    other = every[one_of(f"matches of readout {label!r}:", given["matches"], [k for k in every if k != label])]
    own = {k: v for k, v in other.items() if k not in ("readout", "context", "search", "alphas", "cv")}
    return {**given, "matches": {"readout": other.get("readout", given["matches"]), **own}}


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
            one_of(where, name, (*_RIDGE_OPTIONS, "readout", "closed_form"))
        check_reduction(given.get("reduce", ""), given.get("n_components", 1))
        if kind == "pooled":
            given.setdefault("pool", 1)
        return {"kind": kind, "options": given, "closed_form": True}
    from neuroenc.encoders.readout import READOUTS

    one_of("readout", kind, READOUTS)
    if core and kind in CLOSED_FORM:
        # The same label is ridge on frozen features, and is trained by gradients through a core.
        given = {k: v for k, v in given.items() if k not in ("alphas", "cv", "reduce", "n_components")}
    search, matches = given.pop("search", None), given.pop("matches", None)
    names = _training_names()
    for name in training:
        one_of("training setting", name, names)
    legal = [name for name in keywords(READOUTS[kind]) if name not in ("max_memory", "context_shape")]
    for name in given:
        one_of(where, name, [*legal, *names, "readout", "context", "search", "matches"])
    chosen = {k: v for k, v in given.items() if k in legal}
    space = READOUTS[kind].search_space() if search is None else {str(k): list(v) for k, v in search.items()}
    for name, values in space.items():
        one_of(f"search of readout {label!r}:", name, [*legal, *names])
        if not values:
            raise ConfigError(f"search of readout {label!r}: {name} has no values to choose from.")
    if matches is not None:
        legal_there = keywords(READOUTS[one_of("readout", matches["readout"], READOUTS)])
        chosen["matches"] = {k: v for k, v in matches.items() if k == "readout" or k in legal_there}
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
    """Build the cells of a comparison: every feature space, and every core, with every readout.

    Parameters
    ----------
    features : sequence of str
    readouts : mapping of label to settings, or names
        Settings are the readout's own options, arguments of `ReadoutEncoder` such as ``max_epochs``, ``readout``
        (which readout the label stands for), ``context`` (a feature space) and ``search`` (values to choose from).
        Readout "lowrank" takes ``matches``, another label: a linear control whose rank gives it as many parameters.
    cores : mapping of label to settings, or names, optional
        Settings are the core's options, ``core`` (which core), ``features`` (one name or more) and arguments of
        `ReadoutEncoder` for cells with this core. Feature spaces that a core names are read through cores only.
    keep : sequence of str, optional
        Names of cells, ``features/readout`` or ``features/core/readout``, with ``*``; others are left out.
    training : mapping, optional
        Arguments of `ReadoutEncoder` for all cells that are trained by gradients; ``preset`` "published" takes what is
        left out from the readout comparison as it was published.

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
    if "preset" in common:
        common = {**PRESETS[one_of("preset of training", common.pop("preset"), PRESETS)], **common}
    wanted = {label: _matching(label, given, wanted) for label, given in wanted.items()}
    through: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for label, settings in _named("core", cores).items():
        named = settings.pop("features", spaces)
        for name in [named] if isinstance(named, str) else list(named):
            one_of(f"features of core {label!r}:", name, spaces)
            through.setdefault(name, []).append((label, settings))
    cells = []
    for name in spaces:
        for core, settings in through.get(name, [("", {})]):
            for label, given in wanted.items():
                if core and "matches" in given:
                    continue  # a control reads the features themselves
                shown = "/".join(p for p in (name, core, label) if p)
                if keep is not None and not any(fnmatch.fnmatchcase(shown, pattern) for pattern in keep):
                    continue
                cells.append(_cell(name, core, settings, label, given, common))
    _check(cells, spaces, keep, through)
    return cells


def _check(cells: list[Cell], spaces: list[str], keep: Sequence[str] | None, through: Mapping[str, Any]) -> None:
    for cell in cells:
        if cell.context:
            one_of(f"context of readout {cell.readout!r}:", cell.context, spaces)
        if cell.core:
            from neuroenc.encoders.readout.cores import CORES

            one_of("core", cell.core_kind, CORES)
            legal = [name for name in keywords(CORES[cell.core_kind]) if name != "tasks"]
            for name in cell.core_options:
                one_of(f"setting of core {cell.core!r}", name, [*legal, *_training_names(), "core", "features"])
    for pattern in keep or ():
        if not any(fnmatch.fnmatchcase(cell.name, pattern) for cell in cells):
            raise ConfigError(
                f"cells: {pattern!r} matches no cell of {spaces} (through {sorted(through) or 'no core'}). "
                "A cell is named features/readout or features/core/readout; * stands for anything."
            )


_MAX_PATTERNS = 64


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows of one outer fold; ``validation`` is part of ``train``."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True, eq=False)
class Job:
    """One cell fitted on one fold for the voxels that share it."""

    cell: Cell
    fold: int
    group: int
    voxels: np.ndarray
    rows: Fold
    candidates: tuple[dict[str, Any], ...]
    seed: int
    key: str = ""
    """Hash of all that decides the result (`Source.key`)."""

    @property
    def name(self) -> str:
        """Under which its result is kept."""
        return "".join(c if c.isalnum() or c in "-_." else "-" for c in self.cell.name[:80]) + f"-fold{self.fold}"


def _strata(responses: xr.DataArray, stimulus: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stimulus number of every row, and the stratum of every stimulus: who saw it.

    Folds then hold the same share of every subject's stimuli.
    """
    _, number = np.unique(stimulus, return_inverse=True)
    pattern = row_patterns(np.isnan(responses.values))
    if pattern.max() >= _MAX_PATTERNS:
        pattern = np.zeros_like(pattern)
    stratum = np.zeros(number.max() + 1, dtype=np.intp)
    np.maximum.at(stratum, number, pattern)
    return number, stratum


def _deal(stratum: np.ndarray, n_parts: int, rng: np.random.Generator) -> np.ndarray:
    """Part of every stimulus: shuffled, and dealt out one stratum after the other."""
    order = rng.permutation(len(stratum))
    order = order[np.argsort(stratum[order], kind="stable")]
    part = np.empty(len(stratum), dtype=np.intp)
    part[order] = np.arange(len(stratum)) % n_parts
    return part


def make_folds(responses: xr.DataArray, cv: Any, validation: float, seed: int) -> list[Fold]:
    """Outer folds by stimulus, each with one validation split that all cells use.

    Parameters
    ----------
    responses : DataArray (presentation or stimulus, voxel)
        NaN where a subject did not see a stimulus.
    cv : int, str, splitter or iterable
        A number deals shuffled stimuli out so that every fold has the same share of what each subject saw;
        anything else as in `RidgeEncoder`.
    validation : float
        Share of the training stimuli.
    seed : int

    Raises
    ------
    ConfigError, DataError
        Too few stimuli, or a stimulus on both sides.

    Examples
    --------
    >>> responses = xr.DataArray(np.zeros((12, 2)), dims=("stimulus", "voxel"), coords={"stimulus": np.arange(12)})
    >>> [len(fold.test) for fold in make_folds(responses, 3, 0.25, 0)]
    [4, 4, 4]
    """
    if not 0 < validation < 1:
        raise ConfigError(f"validation={validation!r} must be a share of the training stimuli between 0 and 1.")
    coords = sample_coords(responses)
    stimulus = coords.get("stimulus", np.arange(len(responses)))
    number, stratum = _strata(responses, stimulus)
    if isinstance(cv, (int, np.integer)) and not isinstance(cv, bool):
        if not 2 <= cv <= len(stratum):
            raise ConfigError(f"cv={cv} folds of {len(stratum)} stimuli: need at least 2 folds, one stimulus in each.")
        part = _deal(stratum, int(cv), np.random.default_rng([seed, 0]))[number]
        cv = [(np.flatnonzero(part != k), np.flatnonzero(part == k)) for k in range(cv)]
    splits = resolve_folds(cv, len(responses), coords)
    tested = np.concatenate([test for _, test in splits])
    if len(np.unique(tested)) < len(tested):
        raise DataError(
            f"{len(tested) - len(np.unique(tested))} rows are tested in more than one fold; every row may be tested "
            "once. Next step: cv=5, or a splitter without repeats."
        )
    folds = []
    for k, (train, test) in enumerate(splits):
        own, where = np.unique(number[train], return_inverse=True)
        # Stimuli are dealt into so many parts that one of them is the share asked for.
        n_parts = max(2, round(1 / validation))
        left_out = _deal(stratum[own], n_parts, np.random.default_rng([seed, 1, k]))
        share = max(1, round(validation * n_parts))
        held = train[(left_out < share)[where]]
        if len(held) < 2 or len(train) - len(held) < 2:
            raise ConfigError(f"fold {k} has {len(train)} training rows, too few for validation={validation}.")
        folds.append(Fold(np.sort(train), np.sort(held), np.sort(test)))
    return folds


def voxel_groups(responses: xr.DataArray, cell: Cell) -> list[np.ndarray]:
    """Voxels that are fitted together.

    A trained core serves all. Frozen features are read for each subject on its own, over the rows that it
    saw, which is the same fit for less work. Ridge also keeps voxels apart that miss different rows.
    """
    values, n_voxels = responses.values, responses.shape[1]
    everyone = [np.arange(n_voxels)]
    if cell.core or not np.isnan(values).any():
        return everyone
    labels = row_patterns(np.isnan(values).T)
    if not cell.closed_form and "subject" in responses.coords and responses["subject"].dims == ("voxel",):
        labels = np.unique(responses["subject"].values, return_inverse=True)[1]
    elif not cell.closed_form and labels.max() >= _MAX_PATTERNS:
        return everyone
    # In order of the first voxel, so that names of groups follow the data.
    first = {int(label): None for label in labels}
    return [np.flatnonzero(labels == label) for label in first]


def candidates(cell: Cell, n: int, seed: int) -> tuple[dict[str, Any], ...]:
    """``n`` settings drawn without replacement; where there are fewer, they come again with other first weights.

    Ridge has one: all its penalties are one batch of closed forms.
    """
    if cell.closed_form:
        return ({},)
    names = sorted(cell.search)
    grid = [dict(zip(names, values)) for values in itertools.product(*(cell.search[k] for k in names))]
    # Equal readouts on other features draw equal settings, and no cell changes what another draws.
    key = int(hash_json({"kind": cell.kind, "search": cell.search})[:8], 16)
    order = np.random.default_rng([seed, 2, key]).permutation(len(grid))
    return tuple({"options": grid[order[k % len(grid)]], "start": k // len(grid)} for k in range(n))


def make_jobs(
    cells: Sequence[Cell], folds: Sequence[Fold], responses: xr.DataArray, n_candidates: int, seed: int
) -> list[Job]:
    """Every fit of the comparison, cell by cell."""
    seen = ~np.isnan(responses.values)
    jobs = []
    for cell in cells:
        drawn = candidates(cell, n_candidates, seed)
        for g, voxels in enumerate(voxel_groups(responses, cell)):
            known = seen[:, voxels].any(axis=1)
            for f, fold in enumerate(folds):
                rows = Fold(*(r[known[r]] for r in (fold.train, fold.validation, fold.test)))
                if len(rows.validation) < 2 or len(rows.train) - len(rows.validation) < 2:
                    first = responses["voxel"].values[voxels[0]] if "voxel" in responses.coords else voxels[0]
                    raise DataError(
                        f"fold {f} leaves {len(rows.train)} rows ({len(rows.validation)} for validation) to the "
                        f"{len(voxels)} voxels that go with voxel {first}: too few. Next step: fewer folds."
                    )
                jobs.append(Job(cell, f, g, voxels, rows, drawn, seed))
    return jobs


@dataclass
class Fitted:
    """Result of one job.

    ``predicted`` (test row, voxel) and ``validation_r`` (voxel,); ``arrays`` are further values per voxel
    (receptive fields, spread of warps), ``record`` is plain data, ``curves`` one dict an epoch.
    """

    predicted: np.ndarray
    validation_r: np.ndarray
    record: dict[str, Any]
    curves: list[dict[str, Any]] = field(default_factory=list)
    arrays: Tensors = field(default_factory=Tensors)


@dataclass
class Source:
    """Feature spaces and responses, wherever the fits run: ``responses``, ``features-NAME`` and ``index-NAME``.

    ``index-NAME`` gives, for every row of the responses, the row of the feature space. A space that every outer fold
    has its own of stands as ``features-NAME@FOLD``.
    """

    arrays: dict[str, Shared]
    hashes: dict[str, str]
    kinds: dict[str, str]
    subjects: list[str]
    labels: dict[str, list[str]] = field(default_factory=dict)
    """Other names of voxels (roi, animal), which regions and experts of a trunk go by."""
    spaces: dict[str, list[str]] = field(default_factory=dict)
    """Name of every channel's feature space, where channels of a joined space have them."""

    def _array(self, name: str, fold: int) -> str:
        own = f"features-{name}@{fold}"
        return own if own in self.arrays else f"features-{name}"

    def features(self, name: str, rows: np.ndarray, fold: int) -> np.ndarray:
        """Features of some rows of the responses, as an outer fold has them."""
        return np.asarray(self.arrays[self._array(name, fold)].load()[self.arrays[f"index-{name}"].load()[rows]])

    def responses(self, rows: np.ndarray, voxels: np.ndarray) -> xr.DataArray:
        """Responses of some rows and voxels, with the voxels' subjects and other names where they have them."""
        values = np.asarray(self.arrays["responses"].load()[:, voxels][rows], dtype=np.float32)
        coords: dict[str, Any] = {"voxel": voxels}
        if self.subjects:
            coords["subject"] = ("voxel", np.array(self.subjects)[voxels])
        coords |= {name: ("voxel", np.array(values)[voxels]) for name, values in self.labels.items()}
        return xr.DataArray(values, dims=("stimulus", "voxel"), coords=coords)

    def key(self, job: Job) -> str:
        """Hash of all that decides what a job gives."""
        cell = job.cell
        names = cell.spaces
        used = [key for name in names if name for key in (self._array(name, job.fold), f"index-{name}")]
        data = [self.hashes[name] for name in ("responses", *used)]
        # Which axis holds channels, and which voxels share a readout, decide as much as the numbers do.
        forms: list[Any] = [*(self.kinds.get(name) for name in names), self.subjects]
        if cell.core_kind == "trunk" or isinstance(cell.options.get("groups"), str):
            forms += [self.labels, self.spaces.get(cell.features, [])]
        return content_key(data, forms, job.rows, job.voxels, cell, job.candidates, job.seed)


def make_source(
    features: dict[str, xr.DataArray],
    indices: dict[str, np.ndarray],
    responses: xr.DataArray,
    share: Callable[[np.ndarray], Shared],
) -> Source:
    """Arrays of a comparison as ``share`` hands them to fits, and their hashes."""
    shared = "subject" in responses.coords and responses["subject"].dims == ("voxel",)
    subjects = [str(s) for s in responses["subject"].values] if shared else []
    arrays = {"responses": np.asarray(responses.values)}
    for name, space in features.items():
        if FOLD in space.dims:
            arrays |= {f"features-{name}@{k}": np.ascontiguousarray(own) for k, own in enumerate(space.values)}
        else:
            arrays[f"features-{name}"] = np.asarray(space.values)
        arrays[f"index-{name}"] = indices[name]
    names = {str(k): c for k, c in responses.coords.items() if c.dims == ("voxel",) and c.dtype.kind in "UOS"}
    labels = {name: [str(v) for v in coord.values] for name, coord in names.items() if name not in ("voxel", "subject")}
    return Source(
        {name: share(values) for name, values in arrays.items()},
        {name: hash_array(values) for name, values in arrays.items()},
        {name: ",".join(str(dim) for dim in space.dims if dim != FOLD) for name, space in features.items()},
        subjects,
        labels,
        {name: found for name, space in features.items() if (found := channel_labels(space))},
    )
