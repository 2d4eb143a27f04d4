"""One object for an analysis: what it knows, and the stages that find it out."""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xarray as xr

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc._core.executor import Executor
from neuroenc._core.files import output_folder
from neuroenc._core.progress import telling
from neuroenc._core.store import Codec, Store, content_key, register
from neuroenc.data import load as load_array, save as save_array
from neuroenc.study.config import StudyConfig

register(Codec("labelled", xr.DataArray, ".nc", lambda p, x: save_array(x, p), load_array))
register(Codec("dataset", xr.Dataset, ".nc", lambda p, x: save_array(x, p), load_array))


@dataclass(frozen=True)
class Stage:
    """One step of an analysis, a function ``Study -> Study``.

    Attributes
    ----------
    name : str
    work : callable
        Gets the study, gives the parts that it writes, by name.
    reads : tuple of str
        Parts of the study and tables of its config (``"config.encoder"``) that the result depends on.
    writes : tuple of str
    """

    name: str
    work: Callable[[Study], Mapping[str, Any]]
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    def __call__(self, study: Study) -> Study:
        """The study with what this stage writes."""
        begin = time.perf_counter()
        with telling(study.say):
            parts = self.work(study)
        missing = set(self.writes) - set(parts)
        if missing:
            raise ConfigError(f"stage {self.name} writes {', '.join(sorted(missing))}, which it did not give.")
        return study.with_parts(parts, {self.name: time.perf_counter() - begin})


def stage(name: str, *, reads: Sequence[str], writes: Sequence[str]) -> Callable[[Any], Stage]:
    """Make a stage of a function ``Study -> {part: value}``.

    Examples
    --------
    >>> @stage("count", reads=("responses",), writes=("n_voxels",))
    ... def count(study):
    ...     return {"n_voxels": study.responses.shape[1]}
    >>> count.reads, count.writes
    (('responses',), ('n_voxels',))
    """
    return lambda work: Stage(name, work, tuple(reads), tuple(writes))


class Study:
    """An analysis: its config, and every part that its stages have found so far.

    A study does not change: `until` and `through` give a new one with more parts. Parts are attributes
    (``study.scores``, ``study.captions``); one that is not there yet says which stage makes it. Results are kept in
    ``out/.steps`` by the content of what they were made from, so that another study, command or process that needs the
    same thing finds it, and a run that was killed goes on.

    Parameters
    ----------
    config : StudyConfig or path of a TOML file, optional
    out : path, optional
        Folder of results; without one, results are kept for this session only.
    features, responses, stimuli : optional
        Data that are in memory already: a DataArray (stimulus, feature) or several by name, a DataArray of responses,
        `neuroenc.data.Stimuli`; they take the place of ``[data]`` and ``[features]``.
    mirror : path, optional
        Folder with data sets, tried before any download.
    workers, client
        See `neuroenc._core.executor.Executor`; default: ``[compute]``.
    progress : bool
    say : callable, optional
        Callback for progress messages; default: silent.

    Attributes
    ----------
    config : StudyConfig
    subjects : tuple of Subject
        Prepared responses of each subject.
    stimuli : Stimuli
    splits : tuple
        Outer folds of each subject.
    spaces : dict of DataArray
        Feature spaces by name.
    predictions : dict
        Held-out predictions by space.
    scores : Dataset over voxel
    decoding : DataFrame or None
        Accuracy of identification, of ``[decode]``.
    captions : CaptionStudy
    comparison : Comparison
    curve : Dataset
        Explained variance over support size, of ``[incontext]``.
    plan : DataFrame
        Pictures to show, of ``[plan]``.
    summary : dict
    seconds : dict
        Of each stage.
    store : Store
        Where results are kept.
    executor : Executor
        Where independent tasks run.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc import data
    >>> rng = np.random.default_rng(0)
    >>> X = data.make_features(rng.standard_normal((60, 5)), stimulus=[f"s{n}" for n in range(60)])
    >>> Y = X.values @ rng.standard_normal((5, 8)) + rng.standard_normal((60, 8))
    >>> study = Study(features=X, responses=data.make_responses(Y, stimulus=X.stimulus.values, dim="stimulus"),
    ...               progress=False)
    >>> scored = study.until("score")
    >>> scored.done
    ('load', 'split', 'embed', 'fit', 'score')
    >>> bool(scored.scores["r"].median() > 0.5)
    True
    """

    config: StudyConfig
    out: Path | None
    seconds: Mapping[str, float]
    given: Mapping[str, Any]
    # Where and how it is worked out; its numbers depend on nothing of this.
    store: Store
    executor: Executor
    mirror: str | None
    progress: bool

    def __init__(
        self,
        config: StudyConfig | str | os.PathLike[str] | None = None,
        out: str | os.PathLike[str] | None = None,
        *,
        features: Any = None,
        responses: Any = None,
        stimuli: Any = None,
        mirror: str | os.PathLike[str] | None = None,
        workers: int | None = None,
        client: Any = None,
        progress: bool = True,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if config is None:
            config = StudyConfig()
        if not isinstance(config, StudyConfig):
            from neuroenc.study.read import read_config

            config = read_config(config)
        spaces = features if features is None or isinstance(features, Mapping) else {"features": features}
        given = {"responses": responses, "features": spaces, "stimuli": stimuli}
        told = say or (lambda _: None)
        folder = None if out is None else output_folder(out)
        # Kept as long as the study is.
        temporary = None if folder is not None else tempfile.TemporaryDirectory(prefix="neuroenc-study-")
        compute = config.compute
        self._become(
            config=config,
            out=folder,
            given={k: v for k, v in given.items() if v is not None},
            seconds={},
            store=Store((folder or Path(temporary.name if temporary else ".")) / ".steps", told),
            executor=Executor(workers or compute.workers, client or compute.client or None, progress),
            mirror=None if mirror is None else os.fspath(mirror),
            progress=progress,
            _say=told,
            _temporary=temporary,
            _parts={},
            _replaced={},
            _known={},
        )

    def _become(self, **values: Any) -> Study:
        """Set attributes, of a study that no one else has yet."""
        self.__dict__.update(values)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a study does not change; study.with_parts({{{name!r}: ...}}) gives a new one.")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "_parts" not in self.__dict__:
            raise AttributeError(name)
        if name in self._parts:
            return self._parts[name]
        maker = next((s.name for s in _all_stages() if name in s.writes), None)
        if maker is None:
            legal = sorted({part for s in _all_stages() for part in s.writes})
            raise AttributeError(unknown_name("part of a study:", name, legal))
        raise AttributeError(f'study.{name} is not there yet. Next step: study = study.until("{maker}").')

    # What stages use.

    def say(self, text: str) -> None:
        """Pass a progress message on."""
        self._say(text)

    def table(self, name: str) -> Any:
        """The config's ``[name]``.

        Raises
        ------
        ConfigError
            The config has none.
        """
        found = getattr(self.config, name)
        if found is None:
            first = {
                "captions": '[captions.space] model = "..."',
                "compare": "[compare] readouts = { linear = {} }",
                "plan": '[plan] pool = "..."',
            }
            raise ConfigError(
                f"the config has no [{name}]. Next step: {first.get(name, f'a table [{name}]')} "
                "(docs: reference of settings)."
            )
        return found

    def has(self, *parts: str) -> bool:
        """Whether these parts are there."""
        return all(name in self._parts for name in parts)

    def content(self, name: str) -> str:
        """Hash of a part, or of a table of the config (``"config.encoder"``)."""
        if name.startswith("config."):
            value: Any = self.config
            for key in name.split(".")[1:]:
                value = getattr(value, key)
            return content_key(value)
        return self.content_of(self._parts.get(name))

    def content_of(self, value: Any) -> str:
        """Hash of a value, computed once for each object."""
        found = self._known.get(id(value))
        if found is None or found[0] is not value:
            found = self._known[id(value)] = (value, content_key(value))
        key: str = found[1]
        return key

    def with_parts(self, parts: Mapping[str, Any], seconds: Mapping[str, float] | None = None) -> Study:
        """The same study with more parts."""
        return copy.copy(self)._become(_parts={**self._parts, **parts}, seconds={**self.seconds, **(seconds or {})})

    # What users call.

    @property
    def done(self) -> tuple[str, ...]:
        """Names of the stages that have run."""
        return tuple(self.seconds)

    def replace(self, **stages: Callable[[Study], Mapping[str, Any]]) -> Study:
        """The same study with functions of your own in place of stages: ``study.replace(score=my_function)``.

        A function gets the study and gives the parts that the stage writes, by name; its results are not kept.
        """
        known = {s.name: s for s in _all_stages()}
        replaced = dict(self._replaced)
        for name, work in stages.items():
            if name not in known:
                raise ConfigError(unknown_name("stage", name, known))
            replaced[name] = replace(known[name], work=work)
        # What was found by a stage that is replaced, and by those behind it, is found anew.
        names = [[s.name for s in pipeline] for pipeline in PIPELINES.values()]
        stale = {n for row in names for at, n in enumerate(row) if set(row[: at + 1]) & set(stages)}
        gone = {part for n in stale for part in known[n].writes}
        return copy.copy(self)._become(
            seconds={k: v for k, v in self.seconds.items() if k not in stale},
            _parts={k: v for k, v in self._parts.items() if k not in gone},
            _replaced=replaced,
        )

    def through(self, stages: Iterable[Stage]) -> Study:
        """Run stages in their order; those that have run are left out."""
        study = self
        for one in stages:
            if one.name not in study.seconds:
                study = self._replaced.get(one.name, one)(study)
        return study

    def until(self, name: str) -> Study:
        """Run every stage up to and including ``name``.

        Raises
        ------
        ConfigError
            No stage of that name, or one that this config has no table for.
        """
        known = [s.name for s in _all_stages()]
        if name not in known:
            raise ConfigError(unknown_name("stage", name, known))
        command, stages = next((c, stages) for c, stages in PIPELINES.items() if name in {s.name for s in stages})
        table = {"caption": "captions", "compare": "compare", "icl": "incontext", "plan": "plan"}.get(
            command.split()[0], name if name == "decode" else ""
        )
        if table:
            self.table(table)
        if not (self.seconds or self.given or self._replaced):
            HOOKS["check"](self.config, command, self.mirror)
        return self.through(stages[: 1 + [s.name for s in stages].index(name)])

    @property
    def summary(self) -> dict[str, Any]:
        """Figures of all that is known, flat."""
        found: dict[str, Any] = self._parts["summary"] if "summary" in self._parts else HOOKS["summary"](self)
        return found

    def report(self) -> Path:
        """Write the report of all that is known, one page with a tab for each kind of result; its path."""
        page: Path = HOOKS["report"](self)
        return page

    def _repr_html_(self) -> str:
        from html import escape

        rows = []
        for one in _all_stages():
            if one.name in self.seconds:
                rows.append(f"<tr><td>{escape(one.name)}</td><td>done, {self.seconds[one.name]:.1f} s</td></tr>")
        following = next((s.name for s in _all_stages() if s.name not in self.seconds), None)
        next_line = f"<p>next: <code>study.until({following!r})</code></p>" if following else ""
        return f"<h4>{escape(self.config.title)}</h4><table>{''.join(rows)}</table>{next_line}"

    def __repr__(self) -> str:
        ran = ", ".join(f"{k} ({v:.1f} s)" for k, v in self.seconds.items()) or "nothing yet"
        return f"Study({self.config.title!r}; done: {ran})"


#: Stages of each command in their order. `neuroenc.study.commands` fills it: it stands above the stages, and they above
#: this file.
PIPELINES: dict[str, tuple[Stage, ...]] = {}
#: What checks a config before anything is computed, summarises a study, and writes its report.
HOOKS: dict[str, Callable[..., Any]] = {}


def _all_stages() -> list[Stage]:
    return list({s.name: s for stages in PIPELINES.values() for s in stages}.values())
