"""Which pictures to show to a new subject: candidates, what is known of subjects, and the list."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import atomic_path, read_text, write_text
from neuroenc._core.store import content_key
from neuroenc._core.tables import write_table
from neuroenc.data import Stimuli
from neuroenc.data.simulate import simulate_world
from neuroenc.embedding import ImageEmbedder
from neuroenc.encoders import check_space, feature_space, load_encoder
from neuroenc.encoders.incontext import (
    ExpectedAccuracy,
    WeightPrior,
    list_models,
    load_model,
    make_selector,
    random_lists,
)
from neuroenc.report import contact_sheet, figure_svg, plot_expected_accuracy
from neuroenc.study.config import FeaturesConfig, PlanConfig
from neuroenc.study.incontext.subjects import prepared, read_matrix
from neuroenc.study.stages.load import image_embedder
from neuroenc.study.study import Study, stage

# Seeds of the scenes that are candidates, far from those that models were trained on.
_SCENES = 60_000
# Responses of a z-scored session have about this spread over their voxels.
_NARROW, _WIDE = 0.5, 2.0
_LEAST_COVERED = 10
# Stimuli that are chosen for the table of repeats; what follows is drawn.
_LONGEST = 500
#: What the coordinate of a pool may be called that its table shows, where none is balanced.
_CATEGORIES = ("category", "folder")


@dataclass(frozen=True)
class Known:
    """What is known of subjects like the new one: a prior, how it was made, and the space that it belongs to."""

    prior: WeightPrior | None
    name: str
    space: dict[str, Any]
    assumed: bool = False


def read_prior(where: str) -> Known:
    """The prior of ``[plan]``: of an in-context model, of a folder, of another subject's encoder, or none."""
    folder = Path(where)
    if where == "none":
        return Known(None, "none", {})
    if (folder / "prior.json").is_file():
        prior = WeightPrior.load(folder)
        return Known(prior, folder.name, {}, prior.hyper is None)
    if (folder / "encoder.json").is_file():
        coef, intercept = load_encoder(folder).to_linear()
        return Known(WeightPrior.from_weights(coef, intercept.values), folder.name, feature_space(coef), True)
    if not (folder / "model.json").is_file() and where not in list_models():
        raise DataError(
            unknown_name(
                "prior",
                where,
                [*list_models(), "none"],
                "Next step: one of these, or a folder with model.json, prior.json or encoder.json.",
            )
        )
    model = load_model(where)
    return Known(model.weight_prior(), folder.name, dict(model.features))


@stage("candidates", reads=("config.plan", "config.features", "config.seed"), writes=("candidates", "known", "seen"))
def candidates(study: Study) -> dict[str, Any]:
    """Candidates (stimulus, feature) with their pictures, the prior, and the responses so far."""
    settings: PlanConfig = study.table("plan")
    known = read_prior(settings.prior)
    pool, pictures = _pool(study, settings, known)
    study.say(f"  {len(pool)} candidates, {pool.shape[1]} features; prior: {known.prior or 'none'}")
    _check_pool(pool, known, "the pool")
    seen = _seen(study, settings, pool) if settings.seen else None
    return {"candidates": {"features": pool, "pictures": pictures}, "known": known, "seen": seen}


def _pool(study: Study, settings: PlanConfig, known: Known) -> tuple[xr.DataArray, Stimuli | None]:
    if settings.pool == "world":
        seed = _SCENES + study.config.seed
        scenes = simulate_world(settings.candidates, seed=seed)

        def make() -> dict[str, Any]:
            return {"X": ImageEmbedder("world", normalise=True, progress=study.progress).embed(scenes)}

        X = study.store.keep("candidates-world", [settings.candidates, seed], make)["X"]
        return X.assign_coords(category=("stimulus", scenes.table["family"].to_numpy(dtype=str))), scenes
    path = Path(settings.pool)
    if path.suffix != ".zarr" and path.is_dir():
        names = data.list_pictures(path)
        if not names:
            raise DataError(f"{path} holds no pictures. Next step: a folder of pictures, or a file of features.")
        stimuli = Stimuli(np.array(names), [path / n for n in names], source=path.name)
        embedder = image_embedder(_features(study, known), study.progress)
        files = [(n, (path / n).stat().st_size, (path / n).stat().st_mtime_ns) for n in names]
        key = [files, str(path.resolve()), _features(study, known).model_dump()]
        X = study.store.keep("candidates", key, lambda: {"X": embedder.embed(stimuli)})["X"]
        inside = [n.rpartition("/")[0] for n in names]
        return (X.assign_coords(folder=("stimulus", inside)) if len(set(inside)) > 1 else X), stimuli
    X = read_matrix(path, "pool")
    if not settings.pictures:
        return X, None
    ids = X["stimulus"].values.astype(str)
    return X, Stimuli(ids, data.find_pictures(settings.pictures, ids), source=Path(settings.pictures).name)


def _features(study: Study, known: Known) -> FeaturesConfig:
    """How a folder of pictures is embedded: as the config says, else as the prior's own stimuli were."""
    spaces = [space for space in study.config.features.values() if space.kind == "image"]
    if spaces:
        return spaces[0]
    if not known.space.get("backbone"):
        raise ConfigError(
            "a folder of pictures needs an embedding, and the prior does not say which. Next step: --backbone, or "
            '[features] model = "...".'
        )
    told = {k: known.space[k] for k in ("layer", "pooling") if k in known.space}
    return FeaturesConfig(
        model=str(known.space["backbone"]), normalise=bool(known.space.get("normalised", False)), **told
    )


def _check_pool(pool: xr.DataArray, known: Known, what: str) -> None:
    """Features of the prior's own space."""
    if not np.isfinite(pool.values).all():
        raise DataError(f"{what} holds NaN or infinity. Next step: embed those stimuli again.")
    if known.prior is None:
        return
    if pool.shape[1] != known.prior.n_features:
        raise DataError(
            f"{what} has {pool.shape[1]} features, the prior {known.name!r} {known.prior.n_features}. Next step: embed "
            "the pictures as the stimuli that the prior was made from."
        )
    if known.space:
        check_space(known.space, pool, f"the prior {known.name!r}")


def _seen(study: Study, settings: PlanConfig, pool: xr.DataArray) -> dict[str, Any]:
    """Responses so far (stimulus, voxel), in the order of the pool, and weights of their voxels."""
    given = read_matrix(settings.seen, "seen responses")
    Y = prepared(given, settings.zscore)
    values = Y.values.astype(np.float64)
    spread = float(np.nanmedian(np.nanstd(values, axis=0)))
    # The levels of the prior are those of z-scored responses; fewer than three tell none.
    if len(values) >= 3 and not _NARROW <= spread <= _WIDE:
        study.say(f"  responses so far have standard deviation {spread:.3g}: each voxel is divided by its own")
        sd = np.nanstd(values, axis=0)
        values = (values - np.nanmean(values, axis=0)) / np.where(sd > 0, sd, 1.0)
    weight = None
    if settings.rois:
        weight = np.any([data.in_roi(Y, name) for name in settings.rois], axis=0).astype(float)
    counts = Y["n_repeats"].values if "n_repeats" in Y.coords else np.ones(len(Y))
    counted = Y.shape[1] if weight is None else int(weight.sum())
    study.say(f"  responses so far: {len(Y)} stimuli, {counted} of {Y.shape[1]} voxels count")
    return {"responses": Y.copy(data=values), "voxels": weight, "counts": counts}


@stage("choose", reads=("candidates", "known", "seen", "config.plan", "config.seed"), writes=("plan", "plan_parts"))
def choose(study: Study) -> dict[str, Any]:
    """The list, and what is expected after each of its pictures, beside random ones."""
    settings: PlanConfig = study.table("plan")
    pool, pictures = study.candidates["features"], study.candidates["pictures"]
    known, seen, seed = study.known, study.seen, study.config.seed
    target = None
    if settings.target:
        target = read_matrix(settings.target, "target")
        check_space(feature_space(pool), target, "the pool")
        _check_pool(target, known, "the target")
    left_out = _left_out(settings, pool)
    labels = settings.balance or next((c for c in _CATEGORIES if c in pool.coords), "")
    inputs = {
        "plan": settings.model_dump(exclude={"pool", "prior", "target", "seen", "pictures", "exclude_file"}),
        "pool": content_key(
            pool.values, *(pool[c].values.astype(str) for c in ("stimulus", labels) if c in pool.coords)
        ),
        "prior": None if known.prior is None else [*known.prior.to_parts()],
        "target": None if target is None else content_key(target.values),
        "seen": None if seen is None else content_key(seen["responses"].values, seen["voxels"], seen["counts"]),
        "names": None if seen is None else seen["responses"]["stimulus"].values.astype(str),
        "exclude": left_out,
        "seed": seed,
    }
    found = study.store.keep(
        "plan", inputs, lambda: _chosen(study, settings, pool, known, seen, target, left_out, labels)
    )
    table: pd.DataFrame = found["table"]
    parts = {
        "summary": dict(found["summary"]),
        "repeats": found.get("repeats"),
        "open": found.get("open"),
        "pictures": pictures,
        "target": target,
    }
    return {"plan": table, "plan_parts": parts}


def _left_out(settings: PlanConfig, pool: xr.DataArray) -> list[str]:
    names = list(settings.exclude)
    if settings.exclude_file:
        lines = read_text(settings.exclude_file, "excluded stimuli").splitlines()
        names += [line.strip() for line in lines if line.strip()]
    ids = pool["stimulus"].values.astype(str).tolist()
    unknown = sorted(set(names) - set(ids))
    if unknown:
        raise ConfigError(unknown_name("stimulus in exclude:", unknown[0], ids))
    return sorted(set(names))


def _chosen(
    study: Study,
    settings: PlanConfig,
    pool: xr.DataArray,
    known: Known,
    seen: dict[str, Any] | None,
    target: xr.DataArray | None,
    left_out: list[str],
    labels: str,
) -> dict[str, Any]:
    prior, seed, ids = known.prior, study.config.seed, pool["stimulus"].values.astype(str)
    aim = None if target is None else target.values
    planned = prior
    if prior is not None and prior.hyper is not None and settings.repeats > 1:
        # A picture's response is the mean of its repeats.
        noise = np.array([0.0, np.log(settings.repeats)])
        planned = replace(prior, hyper_mean=prior.hyper[0] - noise)
    selector = make_selector(settings.selector, planned, target=aim, seed=seed)
    options: dict[str, Any] = {"exclude": left_out or None, "balance": settings.balance or None}
    if seen is not None:
        options |= {"responses": seen["responses"], "voxels": seen["voxels"]}
    rows = selector.select(pool, settings.k, **options)
    study.say(f"  {len(rows)} pictures chosen: {type(selector).__name__}")
    free = ~np.isin(ids, left_out)
    if seen is not None:
        free &= ~np.isin(ids, seen["responses"]["stimulus"].values.astype(str))
    # Without a prior: weights alike along all features, and a signal of three tenths of the noise.
    expected = ExpectedAccuracy(
        prior or WeightPrior.isotropic(pool.shape[1]), pool, target=aim, seed=seed, **_so_far(seen, ids)
    )
    curve = expected.after(rows, repeats=settings.repeats)
    others = expected.after(
        random_lists(np.flatnonzero(free), len(rows), settings.draws, seed), repeats=settings.repeats
    )
    table = pd.DataFrame({"place": np.arange(1, len(rows) + 1), "stimulus": ids[rows]})
    if labels:
        table[labels] = pool[labels].values.astype(str)[rows]
    for name in ("explained_variance", "low", "high"):
        table[name] = curve[name].values
    for name, column in (("explained_variance", "random"), ("low", "random_low"), ("high", "random_high")):
        table[column] = others[name].values
    least = expected.unexplained(rows, repeats=settings.repeats)
    names = ids if target is None else target["stimulus"].values.astype(str)
    order = np.argsort(-least, kind="stable")[:_LEAST_COVERED]
    parts: dict[str, Any] = {
        "table": table,
        "open": pd.DataFrame({"stimulus": names[order], "open": least[order]}),
        "summary": {
            "n_candidates": int(free.sum()),
            "n_seen": 0 if seen is None else len(seen["responses"]),
            "n_chosen": len(rows),
            "selector": settings.selector,
            "prior": known.name,
            "levels": _levels(known, seen),
            "start": float(curve["start"]),
            "expected": float(table["explained_variance"].iloc[-1]),
            "expected_random": float(table["random"].iloc[-1]),
            "whole_pool": expected.of_pool(),
            "ceiling": expected.ceiling,
        },
    }
    more = _pictures_as(table)
    if more:
        parts["summary"]["random_pictures_for_the_same"] = more
    if settings.trials:
        most = min(settings.trials, int(free.sum()))
        longer = rows
        if most > len(rows):
            longer = selector.select(pool, min(most, max(_LONGEST, len(rows))), **options)
            rest = np.setdiff1d(np.flatnonzero(free), longer)
            longer = np.concatenate([longer, random_lists(rest, most - len(longer), 1, seed)[0]])
        parts["repeats"] = expected.by_repeats(longer, settings.trials)
        best = parts["repeats"][parts["repeats"]["recommended"]].iloc[0]
        parts["summary"] |= {name: int(best[name]) for name in ("repeats", "pictures")}
    return parts


def _levels(known: Known, seen: dict[str, Any] | None) -> str:
    """Where levels of signal and noise come from."""
    if seen is not None and len(seen["responses"]) >= 3:
        return "of the responses"
    return "assumed" if known.prior is None or known.assumed else "of the prior"


def _so_far(seen: dict[str, Any] | None, ids: np.ndarray) -> dict[str, Any]:
    """Responses so far, by rows of the pool."""
    if seen is None:
        return {}
    Y = seen["responses"]
    place = pd.Index(ids).get_indexer(Y["stimulus"].values.astype(str))
    return {"shown": place, "responses": Y.values, "voxels": seen["voxels"], "presentations": seen["counts"]}


def _pictures_as(table: pd.DataFrame) -> int:
    """How many of the chosen pictures do what all of the random ones do; 0 where none do."""
    enough = np.flatnonzero(table["explained_variance"] >= table["random"].iloc[-1])
    return int(enough[0]) + 1 if len(enough) else 0


def plan_page(study: Study) -> dict[str, Any]:
    """Arguments of the page's sections on the plan."""
    parts = study.plan_parts
    sheets = {}
    if parts["pictures"] is not None:
        pictures = parts["pictures"]
        sheets["sheet"] = contact_sheet(pictures, study.plan["stimulus"].tolist())
        if parts["target"] is None:
            sheets["open_sheet"] = contact_sheet(pictures, parts["open"]["stimulus"].tolist(), numbers=False)
    return {
        "table": study.plan,
        "repeats": parts["repeats"],
        "least_covered": parts["open"],
        "numbers": parts["summary"],
        **sheets,
    }


def write_plan(study: Study, folder: Path, page: dict[str, Any]) -> list[str]:
    """The list, its figure and contact sheet beside the report; their names as the page gives them."""
    write_table(study.plan, folder / "plan.csv")
    write_text(
        folder / "plan.svg", figure_svg(plot_expected_accuracy(study.plan, study.plan_parts["summary"])).decode()
    )
    files = ["../plan.csv", "../plan.svg", "../summary.json"]
    if study.plan_parts["repeats"] is not None:
        write_table(study.plan_parts["repeats"], folder / "repeats.csv")
        files.insert(1, "../repeats.csv")
    if "sheet" in page:
        with atomic_path(folder / "contact_sheet.jpg") as temporary:
            temporary.write_bytes(page["sheet"])
        files.insert(1, "../contact_sheet.jpg")
    return files


def plan_text(study: Study) -> str:
    """The head of the list, as a command prints it."""
    shown = study.plan.head(10).drop(columns=["random_low", "random_high"])
    return shown.to_string(index=False, float_format=lambda x: f"{x:.3f}")
