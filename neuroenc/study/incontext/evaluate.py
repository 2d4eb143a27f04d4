"""``neuroenc icl evaluate``: support curves of in-context encoders and what they must be compared with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc._core.device import resolve_device
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import atomic_path, output_folder, write_json
from neuroenc._core.provenance import provenance
from neuroenc._core.store import Store, content_key
from neuroenc.encoders import RidgeEncoder, check_space
from neuroenc.encoders.incontext import (
    AnatomicalTransfer,
    EmpiricalBayesRidge,
    InContextEncoder,
    MeanResponse,
    NearestStimuli,
    PaperRidge,
    list_models,
    load_model,
    support_curve,
    surface_positions,
)
from neuroenc.study.config import StudyConfig
from neuroenc.study.config.incontext import METHODS
from neuroenc.study.incontext.subjects import Part, incontext_of, load_parts, make_prior, part_folders
from neuroenc.study.incontext.tables import (
    comparison_table,
    curve_summary,
    curve_table,
    joined,
    kinds,
)
from neuroenc.study.incontext.tasks import TaskSubject
from neuroenc.study.incontext.train import stage_of
from neuroenc.study.preflight import preflight

_NOTES = (
    "All methods saw the same support trials of a draw; a draw's smaller supports are the first trials of its larger "
    "ones. Queries are never in a support.",
    "Intervals resample voxels and draws of the support, queries fixed: they are about voxels and supports like these.",
    "Explained variance is 1 - Var(error) / Var(response) of single queries; below 0 is worse than the mean.",
)


def incontext_evaluate(
    config: StudyConfig,
    out: str | os.PathLike[str],
    *,
    mirror: str | os.PathLike[str] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Accuracy on new subjects over the size of the support, of in-context models and baselines.

    Parameters
    ----------
    config : StudyConfig
    out : path
        The study's folder: models that its stages left there (the last stage of each form) are evaluated, beside those
        that ``[evaluate] models`` names. Receives curve.csv (``method, kind, group, size, explained_variance, low,
        high, normalised, n_voxels, n_draws``), comparisons.csv (in-context models against every baseline, baselines
        against cross-validated ridge), curve.svg, summary.json and ``report/``. Subjects that are done are
        kept in ``.steps``.
    mirror, progress, say
        See `incontext_train`.

    Returns
    -------
    dict
        What summary.json holds: ``explained_variance:METHOD:SIZE`` over all voxels; ``best_baseline:SIZE``, the
        baseline of the highest mean, and ``relative:METHOD:SIZE`` of in-context models against it with
        ``p:METHOD:SIZE``; ``n_subjects``, ``n_voxels``, ``seconds``.
    """
    begin = time.perf_counter()
    preflight(config, "icl evaluate", mirror)
    out = output_folder(out)
    say(f"evaluate: {config.title}")
    # What can be known before any subject is made or read.
    resolve_device(incontext_of(config).evaluate.device)
    _check_models(config, out)
    parts = load_parts(config, out, mirror, progress, say)
    curves, fulls = [], []
    for part in parts:
        if not part.tasks.test:
            raise ConfigError("evaluate needs new subjects: [[task.test]] tables, test_seeds or held_out.")
        for subject in part.tasks.test:
            held = [str(k) for k, v in subject.Y.coords.items() if v.dims == ("voxel",)]
            if incontext_of(config).evaluate.groups not in ("", *held):
                raise ConfigError(
                    unknown_name("voxel coordinate evaluate.groups =", incontext_of(config).evaluate.groups, held)
                )
        models = evaluated_models(config, part, say)
        store = Store(part.folder / ".steps", say)
        for subject in part.tasks.test:
            curve, full = _subject(config, part, subject, models, store, progress, say)
            curves.append(curve)
            fulls.append(full)
    curve = joined(curves, incontext_of(config).evaluate.groups)
    table = curve_table(curve, fulls, config)
    pairs = comparison_table(curve, config)
    out.mkdir(parents=True, exist_ok=True)
    _csv(table, out / "curve.csv")
    _csv(pairs, out / "comparisons.csv")
    summary = curve_summary(curve, table, pairs, len(curves))
    # Times come after the page: the same run gives the same page.
    page = _report(config, parts, curve, table, pairs, summary, out, say)
    summary["seconds"] = round(time.perf_counter() - begin, 1)
    write_json(out / "summary.json", summary)
    say(_closing(table, summary, page))
    return summary


def _check_models(config: StudyConfig, out: Path) -> None:
    """Refuse a study without a model, or with one that is not there."""
    if "in-context" not in incontext_of(config).evaluate.methods:
        return
    named = 0
    for where in incontext_of(config).evaluate.models.values():
        try:
            load_model(where)
            named += 1
        except DataError:
            if where not in list_models():
                raise
    for folder in part_folders(config, out):
        made = [p for p in folder.glob("*/*/summary.json") if p.parts[-3] in ("finetune", "extend", "pretrain")]
        if not made and not named:
            raise ConfigError(
                f"no in-context model in {folder}. Next step: neuroenc icl pretrain, extend and finetune with the "
                "same config and --out; or [evaluate] models, or methods without in-context."
            )


def evaluated_models(config: StudyConfig, part: Part, say: Callable[[str], None] = print) -> dict[str, Path | str]:
    """Models by the name of their method: of each form the last stage that is done, and those of the config."""
    found: dict[str, Path | str] = {}
    for form, name in (("anchored", METHODS["in-context"]), ("published", f"{METHODS['in-context']} (published form)")):
        for stage in ("finetune", "extend", "pretrain"):
            folder = part.folder / stage / form
            if (folder / "summary.json").is_file():
                found[name] = folder
                say(f"  {name}: {stage}/{form}" + (f" of {part.name}" if part.name else ""))
                break
    for name, where in incontext_of(config).evaluate.models.items():
        try:
            model = load_model(where)
        except DataError:
            # A folder that the user names must be there; shipped weights may have been left out of an installation.
            if where not in list_models():
                raise
            say(f"  {name}: left out, this installation has no weights of {where!r}")
            continue
        check_space(model.features, part.tasks.train[0].X, f"the model {name!r}")
        if model.config.n_features != part.tasks.train[0].X.shape[1]:
            raise ConfigError(
                f"[evaluate] models: {name!r} takes {model.config.n_features} features, the subjects have "
                f"{part.tasks.train[0].X.shape[1]}. Next step: a model of this embedding."
            )
        found[name] = where
        say(f"  {name}: {where}")
    return found


def _subject(
    config: StudyConfig,
    part: Part,
    subject: TaskSubject,
    models: dict[str, Path | str],
    store: Store,
    progress: bool,
    say: Callable[[str], None],
) -> tuple[xr.Dataset, xr.DataArray | None]:
    """Support curve of one new subject, and the explained variance (voxel,) of the fully trained encoder."""
    assert subject.X_query is not None
    assert subject.Y_query is not None
    wanted = incontext_of(config).evaluate
    sizes = [s for s in wanted.sizes if s <= len(subject.X)]
    if len(sizes) < len(wanted.sizes):
        say(f"  {subject.name}: {len(subject.X)} trials to draw from; sizes {sizes}")
    if not sizes:
        raise ConfigError(f"{subject.name} has {len(subject.X)} trials to draw from; no size of {wanted.sizes} fits.")
    # Where a model lies does not matter to a curve; what it holds does.
    files = {name: load_model(where).content_hash() for name, where in models.items()}
    key = {
        "sizes": sizes,
        "draws": wanted.n_draws,
        "seed": wanted.seed,
        "methods": wanted.methods,
        "models": files,
        "train": part.digest,
        "names": [s.name for s in part.tasks.train],
        "data": content_key(subject.X, subject.Y, subject.X_query, subject.Y_query, subject.noise_ceiling),
    }

    def work() -> xr.Dataset:
        methods = _methods(config, part, subject, models, store, say)
        curve = support_curve(
            methods,
            subject.X,
            subject.Y,
            subject.X_query,
            subject.Y_query,
            sizes=sizes,
            n_draws=wanted.n_draws,
            seed=wanted.seed,
            noise_ceiling=subject.noise_ceiling,
            progress=progress,
        )
        if "full" in wanted.methods:
            assert subject.Y_query is not None
            whole = RidgeEncoder(cv=5, progress=False).fit(subject.X, subject.Y).predict(subject.X_query)
            ev = stats.explained_variance(subject.Y_query.values.astype(np.float64), whole.values)
            curve["full"] = ("voxel", ev)
        curve.attrs.pop("provenance", None)
        return curve

    found = store.keep(f"curve-{subject.name}", key, lambda: {"curve": work()})["curve"]
    n = found.sizes["voxel"]
    found = found.assign_coords(subject=("voxel", np.full(n, subject.name)), voxel=np.arange(n))
    if part.name:
        found = found.assign_coords(direction=("voxel", np.full(n, part.name)))
    full = None
    if "full" in found:
        full = found["full"].assign_attrs(n_pool=len(subject.X))
        found = found.drop_vars("full")
    return found, full


def _methods(
    config: StudyConfig,
    part: Part,
    subject: TaskSubject,
    models: dict[str, Path | str],
    store: Store,
    say: Callable[[str], None],
) -> dict[str, Any]:
    device = incontext_of(config).evaluate.device
    found: dict[str, Any] = {}
    for name in incontext_of(config).evaluate.methods:
        label = METHODS[name]
        if name == "in-context":
            for title, where in models.items():
                found[title] = InContextEncoder(load_model(where), device=device, response_scale="as-is")
        elif name == "ridge":
            found[label] = RidgeEncoder(cv=5, progress=False)
        elif name == "ridge-shared":
            # With folds of a few trials, a penalty for each voxel follows noise that a common one averages out.
            found[label] = RidgeEncoder(cv=5, alpha_per_voxel=False, progress=False)
        elif name == "paper-ridge":
            found[label] = PaperRidge()
        elif name == "empirical-bayes":
            found[label] = EmpiricalBayesRidge(make_prior(part, store, say))
        elif name == "nearest":
            found[label] = NearestStimuli()
        elif name == "mean":
            found[label] = MeanResponse()
        elif name == "anatomical":
            transfer = _anatomical(part, subject, say)
            if transfer is not None:
                found[label] = transfer
    return found


def _anatomical(part: Part, subject: TaskSubject, say: Callable[[str], None]) -> AnatomicalTransfer | None:
    people = [*part.tasks.train, subject]
    if not all({"vertex", "hemi"} <= set(map(str, p.Y.coords)) for p in people):
        say(f"  {METHODS['anatomical']}: left out, voxels have no vertex and hemi")
        return None
    places = [surface_positions(p.Y) for p in people]
    encoders = [RidgeEncoder(cv=5, progress=False).fit(p.X, p.Y) for p in part.tasks.train]
    return AnatomicalTransfer(
        encoders,
        [p for p, _ in places[:-1]],
        places[-1][0],
        hemispheres=[h for _, h in places[:-1]],
        target_hemisphere=places[-1][1],
    )


def _report(
    config: StudyConfig,
    parts: Sequence[Part],
    curve: xr.Dataset,
    table: pd.DataFrame,
    pairs: pd.DataFrame,
    summary: dict[str, Any],
    out: Path,
    say: Callable[[str], None],
) -> Path | None:
    try:
        from neuroenc.report import figure_svg, plot_support_curves, write_support_report

        shown = ["all", *kinds(curve, incontext_of(config).evaluate.groups)[-1:]]
        figure = plot_support_curves(table[table["kind"].isin(shown)])
    except ImportError:
        say("    no figures and no page without matplotlib; the tables are complete")
        return None
    with atomic_path(out / "curve.svg") as path:
        path.write_bytes(figure_svg(figure))
    training = {}
    for part in parts:
        for stage in ("pretrain", "extend", "finetune"):
            for form in ("anchored", "published"):
                folder = part.folder / stage / form
                if (folder / "summary.json").is_file():
                    name = "/".join(x for x in (part.name, stage, form) if x)
                    training[name] = pd.read_csv(folder / "curves.csv")
    settings = _settings(config)
    infos = [f"{part.name or 'subjects'}: {part.tasks.info}" for part in parts if part.tasks.info]
    return write_support_report(
        out / "report",
        title=config.title,
        curve=table,
        comparisons=pairs,
        training=training,
        summary=summary,
        settings=settings,
        notes=[*_NOTES, *config.notes, *infos],
        provenance=provenance(run=settings, subjects=[p.digest for p in parts], seed=config.seed),
        files=["../curve.csv", "../comparisons.csv", "../summary.json"],
    )


def _settings(config: StudyConfig) -> dict[str, Any]:
    """Settings without the folders of this machine."""
    record = incontext_of(config).model_dump(exclude={"predict"})
    for side in ("train", "test"):
        record["task"][side] = [
            {k: v if k == "name" else Path(v).name for k, v in files.items() if v} for files in record["task"][side]
        ]
    record["evaluate"]["models"] = {k: Path(v).name for k, v in record["evaluate"]["models"].items()}
    for name in ("pretrain", "extend", "finetune"):
        record[name] = stage_of(config, name).model_dump()
    return {"title": config.title, "seed": config.seed, "notes": config.notes, **record}


def _csv(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def _closing(table: pd.DataFrame, summary: dict[str, Any], page: Path | None) -> str:
    shown = table[table["kind"] == "all"].pivot_table("explained_variance", "method", "size", sort=False)
    lines = [
        "",
        "explained variance, mean over voxels, by support size",
        shown.to_string(float_format=lambda x: f"{x:.3f}", na_rep=""),
    ]
    if page is not None:
        lines.append(f"report: {page}   ({summary['seconds']:.0f} s)")
    return "\n".join(lines)
