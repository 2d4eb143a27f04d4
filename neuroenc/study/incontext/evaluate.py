"""Support curves of in-context encoders and of what they must be compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data, stats
from neuroenc._core.device import resolve_device
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import write_text
from neuroenc._core.store import content_key
from neuroenc._core.tables import write_table
from neuroenc.encoders import RidgeEncoder, check_space
from neuroenc.encoders.incontext import (
    AnatomicalTransfer,
    EmpiricalBayesRidge,
    InContextEncoder,
    InContextModel,
    LearnedSelector,
    MeanResponse,
    NearestStimuli,
    PaperRidge,
    PriorSelector,
    compare_methods,
    list_models,
    load_model,
    make_selector,
    summarise_curve,
    support_curve,
    surface_positions,
)
from neuroenc.retrieval import PointerSelector
from neuroenc.study.config import METHODS, EvaluateConfig
from neuroenc.study.incontext.subjects import Part, has_places, make_place_prior, make_prior, part_folders
from neuroenc.study.incontext.tasks import TaskSubject
from neuroenc.study.incontext.train import BEFORE
from neuroenc.study.stages.leakage import MOST_NEAR, NEAR_FEATURES, near_summary
from neuroenc.study.study import Study, stage

_NEAR = (
    "{n} queries ({share:.0%}) have a near duplicate, by features, among the stimuli that supports are drawn from; the "
    "larger a support, the more of them it holds (query_leakage.csv)."
)
_RIDGE = METHODS["ridge"]
# That a pointer network learns from.
_POOLS = 800
#: What in-context models are compared with at every size.
BASELINES = tuple(label for name, label in METHODS.items() if name not in ("in-context", "full"))
_FORMS = {"anchored": METHODS["in-context"]} | {
    form: f"{METHODS['in-context']} ({form} form)" for form in ("published", "query", "refined")
}


def check_models(study: Study) -> None:
    """Refuse a study without a model, or with one that is not there, before any subject is made or read."""
    wanted = study.table("incontext").evaluate
    resolve_device(wanted.device)
    if "in-context" not in wanted.methods:
        return
    named = [where for where in wanted.models.values() if _model(where) is not None]
    for folder in part_folders(study):
        made = [p for p in folder.glob("*/*/summary.json") if p.parts[-3] in BEFORE]
        if not made and not named:
            raise ConfigError(
                f"no in-context model in {folder}. Next step: neuroenc icl pretrain, extend and finetune with the "
                "same config and --out; or [evaluate] models, or methods without in-context."
            )


def _model(where: str) -> InContextModel | None:
    """A model by folder or name; a shipped one may have been left out of an installation, a folder must be there."""
    try:
        return load_model(where)
    except DataError:
        if where not in list_models():
            raise
        return None


@stage("curve", reads=("parts", "config.incontext"), writes=("curve", "curve_parts"))
def curve(study: Study) -> dict[str, Any]:
    """Accuracy on new subjects over the size of the support, of in-context models and baselines; kept by subject."""
    wanted, curves, narrow = study.table("incontext").evaluate, [], []
    experts = study.table("incontext").model.experts
    for part in study.parts:
        for subject in part.tasks.test:
            held = [str(k) for k, v in subject.Y.coords.items() if v.dims == ("voxel",)]
            of_all = [str(k) for k, v in subject.Y.coords.items() if not v.dims]
            for what, name, legal in (
                ("evaluate.groups", wanted.groups, held),
                ("model.experts", experts, held + of_all),
            ):
                if name not in ("", *legal):
                    raise ConfigError(unknown_name(f"voxel coordinate {what} =", name, legal))
            held = [str(k) for k, v in subject.X.coords.items() if v.dims == ("stimulus",)]
            if wanted.within not in ("", *held):
                raise ConfigError(unknown_name("stimulus coordinate evaluate.within =", wanted.within, held))
        models = named_models(study, part)
        for subject in part.tasks.test:
            curves.append(_subject(study, part, subject, models))
            if wanted.within:
                narrow.append(_subject(study, part, subject, models, wanted.within))
    whole = joined(curves, wanted.groups)
    table = _with_pairwise(curve_table(whole, wanted), curves, wanted)
    if narrow:
        options: dict[str, Any] = {"n_bootstraps": wanted.n_bootstraps, "seed": wanted.seed}
        frame = summarise_curve(joined(narrow, ""), **options).assign(kind=f"supports of one {wanted.within}")
        frame = frame.assign(select="random") if "select" in table else frame
        table = pd.concat([table, frame], ignore_index=True)
    whole = whole.drop_vars(["full", "n_pool"], errors="ignore")
    pairs = comparison_table(whole, wanted)
    training = {}
    for part in study.parts:
        for name in BEFORE:
            for form in _FORMS:
                if (part.folder / name / form / "summary.json").is_file():
                    label = "/".join(x for x in (part.name, name, form) if x)
                    training[label] = pd.read_csv(part.folder / name / form / "curves.csv")
    near = pd.concat([_near(s) for part in study.parts for s in part.tasks.test], ignore_index=True)
    told = near_summary(near)
    notes = [f"{p.name or 'subjects'}: {p.tasks.info}" for p in study.parts if p.tasks.info]
    if told["share_near_duplicates"] > MOST_NEAR:
        notes.insert(0, _NEAR.format(n=told["n_near_duplicates"], share=told["share_near_duplicates"]))
        study.say("  " + notes[0])
    parts = {
        "summary": curve_summary(whole, table, pairs, len(curves)) | told,
        "page": {"curve": table, "comparisons": pairs, "training": training},
        "notes": notes,
        "near": near,
    }
    return {"curve": whole, "curve_parts": parts}


def _near(subject: TaskSubject) -> pd.DataFrame:
    """The stimulus of the pool that is nearest to each query, by features; supports are drawn from the pool."""
    assert subject.X_query is not None
    both = xr.concat([subject.X, subject.X_query], "stimulus", join="override", coords="minimal", compat="override")
    both = both.isel(stimulus=np.unique(both["stimulus"].values, return_index=True)[1])
    table = data.nearest_stimuli(both, subject.X, subject.X_query)
    return table.assign(subject=subject.name, space="features", near=table["similarity"] >= NEAR_FEATURES)


def expert_of(study: Study, model: InContextModel) -> str | None:
    """Voxel coordinate by which voxels are routed; None for a model without experts."""
    experts = str(study.table("incontext").model.experts)
    if model.config.experts and not experts:
        raise ConfigError(
            f"{model!r} has an expert for each of {', '.join(model.config.experts)}. Next step: [incontext.model] "
            'experts, the voxel coordinate that names them, such as "roi".'
        )
    return experts if model.config.experts else None


def named_models(study: Study, part: Part) -> dict[str, Any]:
    """Models by the name of their method: of each form the last stage that is done, and those of the config."""
    found: dict[str, Any] = {}
    for form, name in _FORMS.items():
        for stage_name in reversed(BEFORE):
            folder = part.folder / stage_name / form
            if (folder / "summary.json").is_file():
                found[name] = load_model(folder)
                study.say(f"  {name}: {stage_name}/{form}" + (f" of {part.name}" if part.name else ""))
                break
    X = part.tasks.train[0].X
    for name, where in study.table("incontext").evaluate.models.items():
        model = _model(where)
        if model is None:
            study.say(f"  {name}: left out, this installation has no weights of {where!r}")
            continue
        check_space(model.features, X, f"the model {name!r}")
        if model.config.n_features != X.shape[1]:
            raise ConfigError(
                f"[evaluate] models: {name!r} takes {model.config.n_features} features, the subjects have "
                f"{X.shape[1]}. Next step: a model of this embedding."
            )
        found[name] = model
        study.say(f"  {name}: {where}")
    return found


def _subject(study: Study, part: Part, subject: TaskSubject, models: dict[str, Any], within: str = "") -> xr.Dataset:
    """Support curve of one new subject, and the explained variance ``full`` of the fully trained encoder.

    With ``within``, of supports of one category each.
    """
    assert subject.X_query is not None
    assert subject.Y_query is not None
    X, Y, X_query, Y_query = subject.X, subject.Y, subject.X_query, subject.Y_query
    wanted = study.table("incontext").evaluate
    labels = X[within].values.astype(str) if within else None
    most = len(X) if labels is None else int(np.unique(labels, return_counts=True)[1].max())
    select = [] if within else wanted.select
    most = round(most * wanted.select_pool) if select else most
    sizes = [s for s in wanted.sizes if s <= most and (s or not within)]
    if not within and len(sizes) < len(wanted.sizes):
        study.say(f"  {subject.name}: {most} trials to draw from; sizes {sizes}")
    if not sizes:
        of = f" of one {within}" if within else ""
        raise ConfigError(f"{subject.name} has {most} trials{of} to draw from; no size of {wanted.sizes} fits.")
    settings: dict[str, Any] = {"n_draws": wanted.n_draws, "seed": wanted.seed, "order": wanted.order}
    settings["disjoint"] = wanted.disjoint and not within
    # Where a model lies does not matter to a curve; what it holds does.
    key = {
        "sizes": sizes,
        "within": within,
        **settings,
        "methods": wanted.methods,
        "models": models,
        "train": part.digest,
        "names": [s.name for s in part.tasks.train],
        "data": content_key(X, Y, X_query, Y_query, subject.noise_ceiling),
    }
    if select:
        settings |= {"select_pool": wanted.select_pool, "select_batch": wanted.select_batch or None}
        key |= {"select": select, **settings}

    def work() -> dict[str, xr.Dataset]:
        if select:
            settings["select"] = {name: _selector(study, part, name) for name in select}
        full = "full" in wanted.methods and not within
        whole = RidgeEncoder(cv=5, progress=False).fit(X, Y) if full else None
        found = support_curve(
            _methods(study, part, subject, models),
            X,
            Y,
            X_query,
            Y_query,
            sizes=sizes,
            within=labels,
            noise_ceiling=subject.noise_ceiling,
            reference=None if whole is None else whole.coef_,
            progress=study.progress,
            **settings,
        )
        if whole is not None:
            predicted = whole.predict(X_query).values
            found["full"] = ("voxel", stats.explained_variance(Y_query.values.astype(np.float64), predicted))
        found.attrs.pop("provenance", None)
        return {"curve": found}

    name = "-".join(x for x in ("curve", within, subject.name) if x)
    found = study.store.keep(name, key, work)["curve"]
    n = found.sizes["voxel"]
    found = found.assign_coords(subject=("voxel", np.full(n, subject.name)), voxel=np.arange(n))
    if part.name:
        found = found.assign_coords(direction=("voxel", np.full(n, part.name)))
    return found.assign_coords(n_pool=("voxel", np.full(n, len(X))))


def _methods(study: Study, part: Part, subject: TaskSubject, models: dict[str, Any]) -> dict[str, Any]:
    """Estimators by the name of their method; those that the subjects do not allow are left out, which is said."""
    wanted = study.table("incontext").evaluate
    make: dict[str, Callable[[], Any]] = {
        "ridge": lambda: RidgeEncoder(cv=5, progress=False),
        # With folds of a few trials, a penalty for each voxel follows noise that a common one averages out.
        "ridge-shared": lambda: RidgeEncoder(cv=5, alpha_per_voxel=False, progress=False),
        "paper-ridge": PaperRidge,
        "evidence": EmpiricalBayesRidge,
        "empirical-bayes": lambda: EmpiricalBayesRidge(make_prior(study, part)),
        "robust": lambda: EmpiricalBayesRidge(make_prior(study, part), robust="shared"),
        "forget": lambda: EmpiricalBayesRidge(make_prior(study, part), robust="shared", forget="auto"),
        "drift": lambda: EmpiricalBayesRidge(make_prior(study, part), robust="shared", drift="gain"),
        "place": lambda: _by_place(study, part, subject),
        "nearest": NearestStimuli,
        "mean": MeanResponse,
        "anatomical": lambda: _anatomical([*part.tasks.train, subject]),
    }
    needed = {
        "place": "it takes two training subjects whose voxels have vertex and hemi",
        "anatomical": "voxels have no vertex and hemi",
    }
    # Queries of a study in time order come after every support.
    after = "after" if wanted.order == "time" else "among"
    found: dict[str, Any] = {}
    for name in wanted.methods:
        if name == "in-context":
            for title, model in models.items():
                found[title] = InContextEncoder(model, queries=after, device=wanted.device, response_scale="as-is")
                found[title].set_params(expert=expert_of(study, model))
        elif name in make:
            made = make[name]()
            if made is None:
                study.say(f"  {METHODS[name]}: left out, {needed[name]}")
            else:
                found[METHODS[name]] = made
    return found


def _selector(study: Study, part: Part, name: str) -> Any:
    seed, prior = (
        study.config.seed,
        make_prior(study, part) if name in ("d-optimal", "prior", "pointer", "learned") else None,
    )
    if name not in ("pointer", "learned"):
        return make_selector(name, prior, seed=seed)
    assert prior is not None
    if name == "learned":
        least = min(len(s.X) for s in part.tasks.train)
        study.say("  learned selector: training subjects' responses")
        learned = LearnedSelector(prior, n_pool=min(200, least - 20), seed=seed)
        people = [s.X.values for s in part.tasks.train], [s.Y.values for s in part.tasks.train]
        return learned.fit(*people, k=min(20, least // 3), progress=study.progress)
    # Pools of the training subjects' stimuli, and what the prior's design chooses of them.
    rng, pools = np.random.default_rng([seed, 5]), []
    for number in range(_POOLS):
        X = part.tasks.train[number % len(part.tasks.train)].X.values
        pools.append(X[rng.choice(len(X), min(len(X), int(rng.integers(25, 51))), replace=False)])
    study.say(f"  pointer network: {_POOLS} pools of training stimuli")
    k = min(12, min(map(len, pools)) - 1)
    return PointerSelector(epochs=20, seed=seed).fit(pools, PriorSelector(prior), k=k, progress=study.progress)


def _by_place(study: Study, part: Part, subject: TaskSubject) -> EmpiricalBayesRidge | None:
    prior = make_place_prior(study, part) if has_places(subject) else None
    if prior is None:
        return None
    where, side = surface_positions(subject.Y)
    return EmpiricalBayesRidge(prior, positions=where, hemispheres=side)


def _anatomical(people: list[TaskSubject]) -> AnatomicalTransfer | None:
    """Encoders of all but the last subject, carried over to its vertices."""
    if not all(has_places(p) for p in people):
        return None
    places, sides = zip(*(surface_positions(p.Y) for p in people))
    encoders = [RidgeEncoder(cv=5, progress=False).fit(p.X, p.Y) for p in people[:-1]]
    return AnatomicalTransfer(
        encoders, list(places[:-1]), places[-1], hemispheres=list(sides[:-1]), target_hemisphere=sides[-1]
    )


def joined(curves: Sequence[xr.Dataset], groups: str) -> xr.Dataset:
    """Subjects side by side, with the coordinates that all have."""
    shared = set.intersection(*(set(map(str, c.coords)) for c in curves))
    kept = {"method", "select", "size", "draw", "voxel", "subject", "direction", "n_pool", groups} & shared
    some = any("noise_ceiling" in c for c in curves)
    parts = []
    for curve in curves:
        if some and "noise_ceiling" not in curve:
            curve = curve.assign(noise_ceiling=("voxel", np.full(curve.sizes["voxel"], np.nan)))
        parts.append(
            curve.drop_vars("pairwise", errors="ignore")
            .reset_coords(drop=True)
            .assign_coords({k: curve.coords[k] for k in kept if k != "voxel"})
            .drop_vars("voxel", errors="ignore")
        )
    # The order of methods and sizes is that of the config, whatever a subject lacks.
    methods = list(dict.fromkeys(m for c in curves for m in c["method"].values.tolist()))
    whole = xr.concat(parts, "voxel", join="outer", combine_attrs="drop")
    return whole.sel({"method": methods, "size": sorted(whole["size"].values.tolist())})


def kinds(curve: xr.Dataset, groups: str) -> list[str]:
    """Coordinates that a table is grouped by, beside all voxels."""
    found = [k for k in ("direction", "subject") if k in curve.coords and len(np.unique(curve[k].values)) > 1]
    return found + ([groups] if groups and groups not in found else [])


def curve_table(curve: xr.Dataset, wanted: EvaluateConfig) -> pd.DataFrame:
    """Rows of all voxels, then of each kind of group; the fully trained encoder at the size of its pool."""
    settings: dict[str, Any] = {"n_bootstraps": wanted.n_bootstraps, "seed": wanted.seed}
    pieces = [curve]
    if "full" in curve:
        pools = dict(zip(curve["subject"].values.tolist(), curve["n_pool"].values.tolist()))
        dims, values = ("method", "size", "draw", "voxel"), curve["full"].values[None, None, None]
        whole = curve.drop_dims([d for d in (*dims[:3], "select") if d in curve.dims]).assign(
            explained_variance=(dims, values)
        )
        whole = whole.assign_coords(method=[METHODS["full"]], size=[int(np.median(list(pools.values())))], draw=[0])
        pieces.append(whole)

    def summarised(piece: xr.Dataset, groups: str | None) -> pd.DataFrame:
        frame = summarise_curve(piece, groups=groups, **settings)
        if "noise_ceiling" in piece:
            scaled = summarise_curve(piece, groups=groups, normalise=True, **settings)
            frame["normalised"] = scaled["explained_variance"]
        if "select" in curve.dims and "select" not in frame:
            frame.insert(1, "select", "")
        return frame

    every = ["all", *kinds(curve, wanted.groups)]
    return _grouped((kind, partial(summarised, piece)) for kind in every for piece in pieces)


def _with_pairwise(table: pd.DataFrame, curves: Sequence[xr.Dataset], wanted: EvaluateConfig) -> pd.DataFrame:
    """The table with the share of pairs of queries that are told apart, in rows of all voxels.

    Mean over subjects and draws of the support, with an interval over both: subjects stand where voxels do.
    """
    scores = [c["pairwise"].reset_coords(drop=True).expand_dims("voxel", -1) for c in curves if "pairwise" in c]
    if not scores:
        return table
    shares = xr.concat(scores, "voxel", join="outer").transpose(..., "draw", "voxel")
    found = summarise_curve(
        xr.Dataset({"explained_variance": shares}), n_bootstraps=wanted.n_bootstraps, seed=wanted.seed
    )
    names = {"explained_variance": "pairwise", "low": "pairwise_low", "high": "pairwise_high"}
    keys = [k for k in ("method", "select", "size") if k in found and k in table]
    found = found[[*keys, *names]].rename(columns=names)
    return table.merge(found.assign(kind="all"), on=[*keys, "kind"], how="left", validate="many_to_one")


def _grouped(tables: Iterable[tuple[str, Callable[[str | None], pd.DataFrame]]]) -> pd.DataFrame:
    """Rows of all voxels, and of each kind of group, behind one another; groups without voxels are left out.

    ``tables`` are pairs of a kind and of a function that gives the rows of its groups.
    """
    frames = []
    for kind, make in tables:
        frame = make(None if kind == "all" else kind)
        frame.insert(list(frame.columns).index("group"), "kind", kind)
        frames.append(frame if kind == "all" else frame[frame["group"] != "all"])
    table = pd.concat(frames, ignore_index=True)
    return table[table["n_voxels"] > 0].reset_index(drop=True)


def comparison_table(curve: xr.Dataset, wanted: EvaluateConfig) -> pd.DataFrame:
    """In-context models against every baseline, and baselines against cross-validated ridge; ``best`` marks rows whose
    second method is the baseline of the highest mean over all voxels at that size.

    Of a curve with selectors, method against method on the supports of each, then every selector against random
    supports: ``select`` chose the supports of ``a``, ``against`` those of ``b``.
    """
    if "select" in curve.dims:
        frames = []
        for name in curve["select"].values.tolist():
            frame = comparison_table(curve.sel(select=name, drop=True), wanted)
            frames.append(frame.assign(select=name, against=name))
        for name in curve["select"].values.tolist()[1:]:
            frame = _selectors_compared(curve, name, wanted)
            frames.append(frame.assign(a=frame["method"], b=frame["method"], best=False).drop(columns="method"))
            frames[-1] = frames[-1].assign(select=name, against="random")
        whole = pd.concat([f for f in frames if len(f)], ignore_index=True)
        return whole[["a", "b", "select", "against", *whole.columns.drop(["a", "b", "select", "against"])]]
    names = curve["method"].values.tolist()
    baselines = [name for name in names if name in BASELINES]
    pairs = [(name, other) for name in names if name not in BASELINES for other in baselines]
    pairs += [(name, _RIDGE) for name in baselines if _RIDGE in baselines and name != _RIDGE]
    if not pairs:
        columns = ["a", "b", "kind", "group", "size", "difference", "low", "high", "p", "relative", "best"]
        return pd.DataFrame(columns=columns)
    best = best_baselines(curve)
    settings: dict[str, Any] = {"n_bootstraps": wanted.n_bootstraps, "seed": wanted.seed}

    def compared(first: str, second: str, groups: str | None) -> pd.DataFrame:
        frame = compare_methods(curve, first, second, groups=groups, **settings)
        return frame.assign(best=frame["size"].map(best) == second)

    every = ["all", *kinds(curve, wanted.groups)]
    return _grouped((kind, partial(compared, *pair)) for pair in pairs for kind in every)


def _selectors_compared(curve: xr.Dataset, name: str, wanted: EvaluateConfig) -> pd.DataFrame:
    settings: dict[str, Any] = {"along": "select", "n_bootstraps": wanted.n_bootstraps, "seed": wanted.seed}

    def compared(groups: str | None) -> pd.DataFrame:
        return compare_methods(curve, name, "random", groups=groups, **settings)

    return _grouped((kind, compared) for kind in ["all", *kinds(curve, wanted.groups)])


def best_baselines(curve: xr.Dataset) -> dict[int, str]:
    """The baseline of the highest mean explained variance over all voxels and draws of random supports, by size."""
    curve = curve.sel(select="random", drop=True) if "select" in curve.dims else curve
    names = [name for name in curve["method"].values.tolist() if name in BASELINES]
    if not names:
        return {}
    means = curve["explained_variance"].sel({"method": names}).mean(["draw", "voxel"])
    found = {}
    for size in curve["size"].values.tolist():
        values = means.sel({"size": size}).transpose("method").values
        if np.isfinite(values).any():
            found[int(size)] = names[int(np.nanargmax(values))]
    return found


def curve_summary(curve: xr.Dataset, table: pd.DataFrame, pairs: pd.DataFrame, n_subjects: int) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "n_subjects": n_subjects,
        "n_voxels": int(curve.sizes["voxel"]),
        "n_draws": int(curve.sizes["draw"]),
    }
    for row in table[table["kind"] == "all"].to_dict("records"):
        label = f"{row['method']}:{row['size']}"
        label += f":{row['select']}" if row.get("select", "") not in ("", "random") else ""
        summary[f"explained_variance:{label}"] = row["explained_variance"]
        if np.isfinite(row.get("pairwise", np.nan)):
            summary[f"pairwise:{label}"] = row["pairwise"]
            if np.isfinite(row["pairwise_low"]):
                summary |= {f"pairwise_{end}:{label}": row[f"pairwise_{end}"] for end in ("low", "high")}
        if "normalised" in row and np.isfinite(row["normalised"]):
            summary[f"normalised:{label}"] = row["normalised"]
    summary |= {f"best_baseline:{size}": name for size, name in best_baselines(curve).items()}
    # What is claimed is claimed against the best baseline of that size.
    ours = pairs[(pairs["kind"] == "all") & pairs["best"].astype(bool) & ~pairs["a"].isin(BASELINES)]
    ours = ours[ours["select"] == "random"] if "select" in ours else ours
    for row in ours.to_dict("records"):
        summary[f"relative:{row['a']}:{row['size']}"] = row["relative"]
        summary[f"p:{row['a']}:{row['size']}"] = row["p"]
    if len(ours):
        # At 50 trials, or the size nearest to it.
        first = ours[ours["a"] == ours["a"].iloc[0]]
        row = first.iloc[int((first["size"] - 50).abs().argmin())]
        summary["gain_size"], summary["relative_gain"] = int(row["size"]), float(row["relative"])
        summary["gain_baseline"] = str(row["b"])
    return summary


def write_curve(study: Study, folder: Path) -> list[str]:
    """Tables and figure of the support curve, beside its report; their names as the page gives them."""
    from neuroenc.report import figure_svg, plot_support_curves

    table, pairs = (study.curve_parts["page"][name] for name in ("curve", "comparisons"))
    shown = ["all", *kinds(study.curve, study.table("incontext").evaluate.groups)[-1:]]
    figure = plot_support_curves(table[table["kind"].isin(shown)])
    write_text(folder / "curve.svg", figure_svg(figure).decode())
    write_table(table, folder / "curve.csv")
    write_table(pairs, folder / "comparisons.csv")
    write_table(study.curve_parts["near"], folder / "query_leakage.csv", float_format="%.6g")
    return ["../curve.csv", "../comparisons.csv", "../query_leakage.csv", "../summary.json"]


def curve_text(study: Study) -> str:
    """Methods by size of the support, as a command prints them."""
    table = study.curve_parts["page"]["curve"]
    rows = ["method", "select"] if "select" in table else "method"
    shown = table[table["kind"] == "all"].pivot_table("explained_variance", rows, "size", sort=False)
    shown = shown[sorted(shown.columns)]
    return shown.to_string(float_format=lambda x: f"{x:.3f}", na_rep="")
