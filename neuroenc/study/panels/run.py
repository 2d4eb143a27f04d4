"""`panel_run`, `panel_table`, `panel_select`: a table of models, several as one, and fewer tasks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc import stats
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import output_folder, read_json, write_json
from neuroenc._core.optional import require
from neuroenc._core.progress import telling
from neuroenc._core.provenance import provenance
from neuroenc._core.store import Store
from neuroenc._core.tables import numbers, read_table, write_table
from neuroenc._version import __version__
from neuroenc.report import Page, panel_sections
from neuroenc.study.config.panel import PanelConfig, SourceConfig, list_panels, manifest_hash, read_panel
from neuroenc.study.panels.cells import COLUMNS, score_source
from neuroenc.study.panels.material import Loader, absent
from neuroenc.study.panels.models import PanelModel, embed_together, finite, open_models

Folder = str | os.PathLike[str]
#: Columns of panel.csv.
CELLS = ["model", "task", "score", "low", "high", "n", "track", "data", "subject", "region", "metric"]
CELLS += ["half_1", "half_2", "note"]
#: Columns of ranks.csv.
RANKS = ["track", "model", "rank", "rank_low", "rank_high", "points", "low", "high", "n_tasks"]
_NUMBERS = ("score", "low", "high", "n", "half_1", "half_2")
_FACTORS = ("data", "region", "metric")
#: Scores of one model and task that differ by no more are the same: machines round differently.
_SAME = 0.002


def panel_run(
    panel: Folder,
    models: Sequence[str],
    out: Folder,
    *,
    mirror: Folder | None = None,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Score models on every task of a panel, rank them, and write the table.

    Parameters
    ----------
    panel : str or path
        A name of `list_panels`, or a TOML file of the same form.
    models : sequence of str
        ``BACKBONE[@WEIGHTS][:LAYER]`` (a name of the registry, an open_clip architecture, ``timm:NAME``), the folder of
        a trained space, or a file of features. A model that takes no words (or no pictures) has no score in tasks of
        words (pictures), and is ranked in its own track alone.
    out : path
        Receives panel.csv, ranks.csv, summary.json and ``report/``; a run that was stopped there goes on.
    mirror : path, optional
        Folder with data sets. Nothing is downloaded: tasks whose data are absent are left out, which is said.
    device : str
    progress : bool
    say : callable

    Returns
    -------
    dict
        What summary.json holds: ``panel, version, panel_hash, neuroenc, cite, n_models, n_tasks``, for each data set
        ``data`` (hash, licence, citation), ``models`` and ``skipped``.

    Raises
    ------
    ConfigError
        An unknown panel, model or layer (the nearest is told).
    ChecksumError
        Data or splits are not those that the panel was frozen with.

    References
    ----------
    Enevoldsen et al. (2025), MMTEB: Massive multilingual text embedding benchmark, ICLR.

    Examples
    --------
    >>> from neuroenc.study.config.panel import read_panel
    >>> read_panel("offline-1").tasks()["track"].value_counts().to_dict()  # panel_run("offline-1", ["world"], "out")
    {'images': 24, 'words': 17}
    """
    require("matplotlib", "brain")
    start = time.perf_counter()
    config = read_panel(panel)
    opened = open_models(models, config.pooling, device=device, progress=progress)
    folder = output_folder(out)
    store, loader = Store(folder / ".steps", say), Loader(config, mirror, progress)
    rows: list[pd.DataFrame] = []
    skipped: dict[str, str] = {}
    with telling(say):
        for source in config.sources:
            why = absent(source, mirror)
            if why:
                skipped[source.name] = why
                say(f"{source.name}: left out, {why}")
                continue
            rows += _source_rows(source, config, opened, store, loader, say)
    if not rows:
        raise DataError(
            f"none of the data of panel {config.name} is on this machine: {'; '.join(dict.fromkeys(skipped.values()))}."
        )
    cells = pd.concat(rows, ignore_index=True)[CELLS]
    summary = _summary(config, cells, opened, skipped)
    page = write_panel(cells, folder, f"{config.name}: {config.title}", summary)
    summary["seconds"] = round(time.perf_counter() - start, 1)
    write_json(folder / "summary.json", summary)
    say(panel_text(cells, rank_tracks(cells)))
    say(summary["cite"])
    say(f"report: {page}   ({summary['seconds']:.0f} s)")
    return summary


def _source_rows(
    source: SourceConfig,
    config: PanelConfig,
    models: Sequence[PanelModel],
    store: Store,
    loader: Loader,
    say: Callable[[str], None],
) -> list[pd.DataFrame]:
    """Rows of every model for the tasks of one source, those without a score too."""
    settings = config.model_dump(include={"seed", "n_bootstraps", "gallery", "k", "pooling"})
    data = config.data[source.data].model_dump()
    data["files"] = "" if source.data == "world" else manifest_hash(source.data)
    tasks = config.tasks()
    tasks, rows = tasks[tasks["source"] == source.name], []
    loaded: list[Any] = []

    def material() -> Any:
        if not loaded:
            loaded.append(loader.load(source))
        return loaded[0]

    keys = {id(m): [source, settings, data, m.track, m.identity] for m in models}
    wanted = [m for m in models if m.track in source.stimuli and not store.has("panel", keys[id(m)])]
    if wanted:
        embed_together(wanted, material().stimuli)
    for model in models:
        own, note, found = tasks[tasks["track"] == model.track], "", pd.DataFrame(columns=COLUMNS)
        if len(own):

            def score(model: PanelModel = model) -> dict[str, Any]:
                X = finite(model.features(material().stimuli))
                return {"cells": score_source(X, material(), config)}

            say(f"{source.name}: {model.name}, {model.track}")
            try:
                found = store.keep("panel", keys[id(model)], score)["cells"]
            except DataError as error:
                if type(error) is not DataError:
                    raise
                note = str(error)
                say(f"    no score: {note}")
        rows.append(own.merge(found, on=["region", "metric"], how="left").assign(model=model.name, note=note))
        takes = {other.track for other in models if other.name == model.name}
        if model.track == min(takes):  # one row of each task, whether the model takes one form or both
            other = tasks[~tasks["track"].isin(takes)].assign(**dict.fromkeys(_NUMBERS, np.nan))
            rows.append(other.assign(model=model.name, note=f"takes {model.track}, not {_other(model.track)}"))
    return [r.astype(dict.fromkeys(_NUMBERS, float)) for r in rows if len(r)]


def _other(track: str) -> str:
    return "words" if track == "images" else "images"


def rank_tracks(cells: pd.DataFrame) -> pd.DataFrame:
    """Borda ranks in each track, of the models that have a score in all of its tasks that any model has one in.

    Subjects (or sessions) are resampled whole where there are several: regions and metrics share stimuli and noise.
    """
    made = []
    for track, own in cells[cells["score"].notna()].groupby("track", sort=False):
        table = own.pivot(index="model", columns="task", values="score").dropna()
        if min(table.shape) >= 2:
            about = own.drop_duplicates("task").set_index("task")
            unit = (about["data"] + " " + about["subject"]).reindex(table.columns)
            made.append(stats.borda(table, groups=unit if unit.nunique() > 1 else None).assign(track=track))
    return pd.concat(made, ignore_index=True)[RANKS] if made else pd.DataFrame(columns=RANKS)


def _summary(
    config: PanelConfig, cells: pd.DataFrame, models: Sequence[PanelModel], skipped: dict[str, str]
) -> dict[str, Any]:
    scored = cells[cells["score"].notna()]
    used = list(dict.fromkeys(scored["data"]))
    counts = scored.groupby("track", sort=False)["task"].nunique().to_dict()
    told = " and ".join(f"{n} tasks of {track}" for track, n in counts.items()) or "no task"
    digest = config.content_hash()[:16]
    data = {k: config.data[k].model_dump(include={"hash", "licence", "citation"}) for k in used}
    cite = (
        f"Panel {config.name}, version {config.version} ({digest}), of neuroenc {__version__}: {told}. Data: "
        + "; ".join(f"{k} ({v['hash'] or 'own'}; {v['licence']}): {v['citation']}" for k, v in data.items())
    )
    return {
        **_of_panel(config),
        "cite": cite,
        "n_models": len({m.name for m in models}),
        "n_tasks": int(scored["task"].nunique()),
        "data": data,
        "models": {f"{m.name} ({m.track})": m.about for m in models},
        "skipped": skipped,
    }


def _of_panel(config: PanelConfig) -> dict[str, Any]:
    digest = config.content_hash()[:16]
    return {"panel": config.name, "version": config.version, "panel_hash": digest, "neuroenc": __version__}


def write_panel(cells: pd.DataFrame, folder: Path, title: str, summary: dict[str, Any]) -> Path:
    """Write panel.csv, ranks.csv and the page; the page's path."""
    ranks = rank_tracks(cells)
    write_table(cells, folder / "panel.csv", float_format="%.8g")
    write_table(ranks, folder / "ranks.csv", float_format="%.8g")
    notes = [str(summary["cite"])] if "cite" in summary else []
    notes += [f"{name}: left out, {why}." for name, why in summary.get("skipped", {}).items()]
    for note, rows in cells[cells["score"].isna()].groupby("note"):
        for model in dict.fromkeys(rows["model"]):
            n = rows.loc[rows["model"] == model, "task"].nunique()
            notes.append(f"{model} has no score in {n} tasks: {note}.")
    told = {k: v for k, v in summary.items() if isinstance(v, (str, int)) and k != "cite"}
    page = Page(title, kicker="Panel", summary=told, notes=notes, provenance=provenance(panel=told))
    return page.add(*panel_sections(cells, ranks)).write(folder / "report")


def panel_text(cells: pd.DataFrame, ranks: pd.DataFrame) -> str:
    """Ranks and means of each metric, as a command prints them."""
    parts = []
    for track, own in cells[cells["score"].notna()].groupby("track", sort=False):
        means = own.pivot_table(index="model", columns="metric", values="score", aggfunc="mean", sort=False)
        placed = ranks[ranks["track"] == track].set_index("model")
        table = means.reindex([*placed.index, *(m for m in means.index if m not in placed.index)])
        if len(placed):
            shown = [f"{r.rank:g} ({r.rank_low} to {r.rank_high})" for r in placed.itertuples()]
            table.insert(0, "rank", pd.Series(shown, placed.index))
            table.insert(1, "points", placed["points"])
        text = table.rename_axis(None).rename_axis(None, axis=1)
        shown_as = text.to_string(float_format=lambda x: f"{x:.3f}", na_rep="-")
        parts.append(f"{track}, {own['task'].nunique()} tasks (means over tasks)\n{shown_as}")
    return "\n\n".join(parts)


def read_cells(path: Folder) -> pd.DataFrame:
    """Rows of a panel.csv, columns that it lacks empty."""
    table = read_table(path, ["model", "task", "score"], optional=CELLS, what="panel table")
    for name in _NUMBERS:
        table[name] = numbers(table, name, path, missing=("",)) if name in table else np.nan
    for name in CELLS:
        if name not in table:
            table[name] = "all" if name == "track" else ""
    return table[CELLS]


def recorded(panel: str) -> pd.DataFrame:
    """Rows of the shipped backbones on a panel, as they were measured when it was frozen."""
    with resources.as_file(resources.files("neuroenc.study.panels").joinpath(f"{panel}.csv")) as path:
        return read_cells(path)


def _compared(folder: Path) -> pd.DataFrame:
    """Rows of a folder of `neuroenc compare`: a cell is a model, a region a task."""
    path = folder / "comparison.csv"
    table = read_table(path, ["cell", "kind", "group", "median_r", "low", "high"], optional=["n_test"], what="table")
    name = folder.resolve().name
    made = pd.DataFrame({"model": table["cell"], "task": name + "/" + table["group"] + "/r"})
    for mine, theirs in (("score", "median_r"), ("low", "low"), ("high", "high")):
        made[mine] = numbers(table, theirs, path, missing=("",))
    made["n"] = numbers(table, "n_test", path, missing=("",)) if "n_test" in table else np.nan
    made = made.assign(track="compare", data=name, subject=name, region=table["group"], metric="r", note="")
    made = made.assign(half_1=np.nan, half_2=np.nan)
    inside = (table["kind"] != "all").to_numpy()
    # Regions are parts of all voxels: both as tasks would count them twice.
    return made[inside if inside.any() else ~inside][CELLS]


def panel_table(folders: Sequence[Folder], out: Folder, *, say: Callable[[str], None] = print) -> pd.DataFrame:
    """Join runs of one panel, and comparisons, into one table of models.

    Parameters
    ----------
    folders : sequence of path
        Output folders of `panel_run` (all of one panel, as its hash tells) and of `neuroenc.study.compare`; of a
        comparison a cell is a model, and each region of its folder a task of the track "compare". The name of a panel
        is the recorded run of the backbones that come with neuroenc.
    out : path
        Receives panel.csv, ranks.csv, summary.json and ``report/``.
    say : callable

    Returns
    -------
    DataFrame
        Columns of panel.csv.

    Raises
    ------
    DataError
        A folder holds neither, runs are of different panels, or two runs differ in a score of the same model and task.
    """
    require("matplotlib", "brain")
    parts, summaries = [], []
    for each in folders:
        folder = Path(each)
        if str(each) in list_panels() and not folder.exists():
            parts.append(recorded(str(each)))
            summaries.append((folder, _of_panel(read_panel(each))))
        elif (folder / "panel.csv").is_file():
            parts.append(read_cells(folder / "panel.csv"))
            summaries.append((folder, read_json(folder / "summary.json")))
        elif (folder / "comparison.csv").is_file():
            parts.append(_compared(folder))
        else:
            held = sorted(p.name for p in folder.iterdir())[:6] if folder.is_dir() else "no such folder"
            raise DataError(
                f"{folder} has neither panel.csv nor comparison.csv (found: {held}). Next step: the output folder of "
                "neuroenc panel run, or of neuroenc compare."
            )
    if not parts:
        raise ConfigError("no folder is given. Next step: neuroenc panel table FOLDER FOLDER --out TABLE.")
    hashes = {s.get("panel_hash", ""): folder for folder, s in summaries}
    if len(hashes) > 1:
        said = ", ".join(f"{s.get('panel')} {s.get('version')} ({s.get('panel_hash')}) in {f}" for f, s in summaries)
        raise DataError(f"these are tables of different panels: {said}. Next step: join runs of one panel.")
    cells = pd.concat(parts, ignore_index=True)
    scored = cells[cells["score"].notna()]
    groups = scored.groupby(["model", "task"])["score"]
    spread = (groups.max() - groups.min()).reset_index().sort_values("score", ascending=False)
    if len(spread) and spread["score"].iloc[0] > _SAME:
        model, task, most = spread.iloc[0]
        raise DataError(
            f"model {model!r} has scores that differ by {most:.4g} in task {task!r}. Next step: leave out the older "
            "run, or rename one of the models."
        )
    order = cells.assign(_empty=cells["score"].isna()).sort_values("_empty", kind="stable")
    cells = order.drop_duplicates(["model", "task", "track"]).sort_index()[CELLS].reset_index(drop=True)
    folder = output_folder(out)
    summary: dict[str, Any] = {**summaries[0][1]} if summaries else {"neuroenc": __version__}
    models = {k: v for _, s in summaries for k, v in s.get("models", {}).items()}
    summary |= {"n_models": int(cells["model"].nunique()), "n_tasks": int(scored["task"].nunique()), "models": models}
    summary.pop("seconds", None)
    page = write_panel(cells, folder, "Table of models", summary)
    write_json(folder / "summary.json", summary)
    say(panel_text(cells, rank_tracks(cells)))
    say(f"report: {page}")
    return cells


def panel_select(
    table: Folder,
    out: Folder | None = None,
    *,
    track: str | None = None,
    factors: Sequence[str] = _FACTORS,
    say: Callable[[str], None] = print,
    **options: Any,
) -> stats.SelectedPanel:
    """Reduce the tasks of a table of models to a small panel.

    Parameters
    ----------
    table : path
        A panel.csv, or the folder that holds one. Models without a score in some task of the track are left out. Where
        it has scores of both halves of the stimuli, unreliable tasks go first.
    out : path, optional
        Receives tasks.csv (``task, kept, reason, value``), coverage.csv and selection.json.
    track : str, optional
        Default: the only one.
    factors : sequence of str
        Columns whose values must keep a task each.
    say : callable
    **options
        Of `neuroenc.stats.select_panel`: ``threshold, least_reliability, penalty, held_out, n_random, seed``.

    Returns
    -------
    SelectedPanel

    Raises
    ------
    ConfigError, DataError
        Several tracks and none is named, an unknown column, too few models.
    """
    path = Path(table)
    cells = read_cells(path / "panel.csv" if path.is_dir() else path)
    cells = cells[cells["score"].notna()]
    tracks = list(dict.fromkeys(cells["track"]))
    if track is None and len(tracks) == 1:
        track = tracks[0]
    if track not in tracks:
        if track is None:
            raise ConfigError(f"{path} has the tracks {', '.join(tracks)}. Next step: --track {tracks[0]}.")
        raise ConfigError(unknown_name("track", track, tracks))
    for name in factors:
        if name not in CELLS:
            raise ConfigError(unknown_name("factor", name, [c for c in CELLS if c not in _NUMBERS]))
    cells = cells[cells["track"] == track]
    scores = cells.pivot(index="model", columns="task", values="score")
    lost = scores.index[scores.isna().any(axis=1)]
    if len(lost):
        say(f"left out, with tasks that they have no score in: {', '.join(lost)}")
    scores = scores.drop(index=lost)
    halves = [cells.pivot(index="model", columns="task", values=f"half_{k}").reindex(scores.index) for k in (1, 2)]
    known = all(len(h) and h.notna().all(axis=None) for h in halves)
    if not known:
        say("no scores of halves of the stimuli: unreliable tasks are not told apart")
    about = cells.drop_duplicates("task").set_index("task")[list(factors)]
    about = about.loc[:, (about != "").any()]
    found = stats.select_panel(
        scores,
        reliability=tuple(halves) if known else None,
        factors=about.reindex(scores.columns) if len(about.columns) else None,
        **options,
    )
    say(found.statement)
    for row in found.coverage.to_dict("records"):
        say(f"    {row['factor']}: {row['kept']} of {row['n']} kept" + (f", lost {row['lost']}" if row["lost"] else ""))
    say("\n".join(found.tasks))
    if out is not None:
        _write_selection(found, scores, output_folder(out))
    return found


def _write_selection(found: stats.SelectedPanel, scores: pd.DataFrame, folder: Path) -> None:
    kept = pd.DataFrame({"task": found.tasks, "kept": True, "reason": "", "value": np.nan})
    dropped = found.order.assign(kept=False)[["task", "kept", "reason", "value"]]
    write_table(pd.concat([kept, dropped], ignore_index=True), folder / "tasks.csv", float_format="%.6g")
    write_table(found.coverage, folder / "coverage.csv")
    record = {k: getattr(found, k) for k in ("agreement", "low", "high", "p", "held_out", "statement")}
    record |= {"random_mean": float(np.mean(found.random)), "n_models": len(scores), "n_tasks": scores.shape[1]}
    write_json(folder / "selection.json", record)
