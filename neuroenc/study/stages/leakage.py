"""How far every test stimulus is from the training stimuli, and what accuracy owes to it."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from PIL import Image

from neuroenc import data, stats
from neuroenc._core.checks import make_rng
from neuroenc._core.errors import DataError
from neuroenc._core.tables import write_table
from neuroenc.study.stages.distance import Fold, pixels_of, seen, stimuli_of
from neuroenc.study.stages.fit import fit_folds, held_out
from neuroenc.study.stages.load import Subject, standardised
from neuroenc.study.study import Study, stage

#: Share of the test stimuli that may be near duplicates before it is said aloud.
MOST_NEAR = 0.02
#: Features of two stimuli are nearly the same from here on: cosines of networks are high for unlike pictures.
NEAR_FEATURES = 0.99
_COLUMNS = ["subject", "space", "fold", "set", "stimulus", "nearest"]
_COLUMNS += ["similarity", "near", "random_similarity", "accuracy"]
_PAIRS, _SIDE = 8, 96  # pairs of pictures that the report shows, and their pixels a side


@stage(
    "leakage",
    reads=("subjects", "stimuli", "splits", "test_sets", "spaces", "predictions", "config.evaluation", "config.seed"),
    writes=("leakage",),
)
def leakage(study: Study) -> dict[str, Any]:
    """How far each test stimulus is from the nearest training stimulus, and accuracy over that distance."""
    config = study.config.evaluation
    if not config.leakage:
        return {"leakage": None}
    frames, scored, names = [], [], list(study.spaces)
    for number, (one, folds, sets) in enumerate(zip(study.subjects, study.splits, study.test_sets)):
        pictures = _readable(study, one)
        set_of = pd.Series(sets, one.responses["stimulus"].values.astype(str), name="set")[sets != ""]
        set_of = set_of[~set_of.index.duplicated()]
        spaces = ({"pixels": pictures} if pictures is not None else {}) | study.spaces
        for name, space in spaces.items():
            found = study.predictions.get(name) or next(iter(study.predictions.values()))
            inputs = [space, one.responses["stimulus"].values, folds, study.config.seed]
            work = partial(_distances, space, one, folds, study.config.seed)
            near = study.store.keep("distance", inputs, work)["table"]
            near = near.join(set_of, on="stimulus").join(_accuracy(one, found[number]), on="stimulus")
            frames.append(near.assign(subject=one.name, space=name))
    table = pd.concat(frames, ignore_index=True)
    first = str(table["space"].iloc[0])
    level = config.threshold if first == "pixels" else max(config.threshold, NEAR_FEATURES)
    table["near"] = table["similarity"] >= np.where(table["space"] == "pixels", config.threshold, level)
    table = table[_COLUMNS]
    for number, (one, sets) in enumerate(zip(study.subjects, study.test_sets)):
        own = table[(table["subject"] == one.name) & (table["space"] == first)]
        scored.append(_set_scores(one, sets, study.predictions[names[0]][number], own))
        if config.random_splits:
            scored[-1] = scored[-1].merge(random_scores(study, number, names[0]), on="set")
    parts: dict[str, Any] = {
        "table": table,
        "spaces": slope_table(table),
        "sets": pd.concat(scored, ignore_index=True),
        "level": float(level),
    }
    parts["summary"] = _summary(parts, study.config.evaluation.scheme)
    parts |= _pictures(study, table[table["space"] == first], study.subjects)
    if study.out is not None:
        write_table(table, study.out / "leakage.csv", float_format="%.6g")
    s = parts["summary"]
    if s["share_near_duplicates"] > MOST_NEAR:
        study.say("    " + near_text(s))
    if "median_r_lowest_set" in s:
        study.say("    " + pooled_text(s))
    return {"leakage": parts}


def _distances(space: xr.DataArray, one: Subject, folds: list[Fold], seed: int) -> dict[str, Any]:
    """Nearest training stimulus of every test stimulus, and similarities of a random split of the same sizes."""
    ids, frames = one.responses["stimulus"].values.astype(str), []
    features = seen(space, one.responses)
    for k, (train, test) in enumerate(folds):
        given, asked = pd.unique(ids[train]), pd.unique(ids[test])
        found = data.nearest_stimuli(features, given, asked)
        both = make_rng(seed + k).permutation(np.union1d(given, asked))
        # Where stimuli are on both sides, by design, the random split has as many for testing.
        random = (
            data.nearest_stimuli(features, both[len(asked) :], both[: len(asked)]) if len(both) > len(asked) else None
        )
        similarity = np.nan if random is None else random["similarity"].to_numpy()
        frames.append(found.assign(fold=k, random_similarity=similarity))
    return {"table": pd.concat(frames, ignore_index=True)}


def pattern_accuracy(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Correlation over voxels (row,) of predicted and measured patterns, each voxel less its mean over tested rows.

    NaN of rows without a prediction, and where fewer than three voxels tell nothing.

    >>> y = np.random.default_rng(0).standard_normal((4, 50))
    >>> pattern_accuracy(y, np.where(np.arange(4)[:, None] < 3, y, np.nan)).round(2).tolist()
    [1.0, 1.0, 1.0, nan]
    """
    seen = np.isfinite(predicted) & np.isfinite(measured)
    y, p = (np.where(seen, a, np.nan).astype(float) for a in (measured, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows and voxels of which nothing is known
        y, p = y - np.nanmean(y, axis=0), p - np.nanmean(p, axis=0)
        y, p = (np.nan_to_num(a - np.nanmean(a, axis=1, keepdims=True)) for a in (y, p))
        r = (y * p).sum(axis=1) / np.sqrt((y * y).sum(axis=1) * (p * p).sum(axis=1))
    return np.where(seen.sum(axis=1) >= 3, r, np.nan)


def slope_table(table: pd.DataFrame) -> pd.DataFrame:
    """By space: similarities, near duplicates, and the slope of accuracy over similarity with its 95 % interval.

    The slope is of ordinary least squares, its interval robust to unequal variances.
    """
    rows = []
    for name, part in table.groupby("space", sort=False):
        row = {
            "space": name,
            "n_test": len(part),
            "equal": int((part["similarity"] >= 0.9999).sum()),
            "near": int(part["near"].sum()),
            "median_similarity": part["similarity"].median(),
            "random_similarity": part["random_similarity"].median(),
        }
        x, y = part["similarity"].to_numpy(), part["accuracy"].to_numpy()
        known = np.isfinite(x) & np.isfinite(y)
        slope = low = high = np.nan
        if known.sum() > 2 and np.ptp(x[known]) > 1e-6:
            x, y = x[known] - x[known].mean(), y[known] - y[known].mean()
            slope = (x @ y) / (x @ x)
            error = np.sqrt(np.square(x * (y - slope * x)).sum()) / (x @ x) * np.sqrt(len(x) / (len(x) - 2))
            low, high = slope - 1.96 * error, slope + 1.96 * error
        rows.append(row | {"slope": slope, "slope_low": low, "slope_high": high})
    return pd.DataFrame(rows)


def _set_scores(one: Subject, sets: np.ndarray, predicted: xr.DataArray, near: pd.DataFrame) -> pd.DataFrame:
    """Scores of a subject by test set, with and without stimuli that have a near duplicate in training."""
    y, p = one.responses.values, predicted.values
    ids, tested = one.responses["stimulus"].values.astype(str), np.isfinite(p).all(axis=1)
    close, rows = np.isin(ids, near.loc[near["near"], "stimulus"]), []
    names = pd.unique(sets[sets != ""]).tolist()
    for name in names if len(names) == 1 else ["all", *names]:
        inside = tested & ((sets == name) | (name == "all") | (len(names) == 1))
        own = near if name == "all" or len(names) == 1 else near[near["set"] == name]
        rows.append(
            {
                "subject": one.name,
                "set": name,
                "n_test": len(own),
                "near": int(own["near"].sum()),
                "median_similarity": own["similarity"].median(),
                "median_r": _median_r(y[inside], p[inside]),
                "median_r_without_near": _median_r(y[inside & ~close], p[inside & ~close]),
                "median_pattern_r": own["accuracy"].median(),
            }
        )
    return pd.DataFrame(rows)


def random_scores(study: Study, number: int, space: str) -> pd.DataFrame:
    """Median r by test set in random splits of the same sizes: ``set, random_r, random_low, random_high``.

    Stimuli change places at random, so that every fold and set keeps its number of stimuli; mean, lowest and highest
    of ``random_splits`` draws.
    """
    one, folds, sets = study.subjects[number], study.splits[number], study.test_sets[number]
    config, ids = study.config.evaluation, one.responses["stimulus"].values.astype(str)
    used = np.unique(np.concatenate([np.concatenate(fold) for fold in folds]))
    pool = np.unique(ids[used])
    jobs, plans = [], []
    for draw in range(config.random_splits):
        place = dict(zip(pool, np.random.default_rng([study.config.seed, 7, draw]).permutation(pool)))
        moved = np.array([place.get(i, "") for i in ids])
        random = [(np.flatnonzero(np.isin(moved, ids[a])), np.flatnonzero(np.isin(moved, ids[b]))) for a, b in folds]
        set_of = dict(zip(ids, sets))
        plans.append((random, np.array([set_of.get(i, "") for i in moved])))
        jobs.append((one, study.spaces[space], random, standardised(study, space)))
    rows = []
    for (random, names), results in zip(plans, fit_folds(study, jobs)):
        predicted = held_out(one, random, results).values
        tested = np.isfinite(predicted).all(axis=1)
        several = len(set(names[names != ""])) > 1
        for name in [*(["all"] if several else []), *pd.unique(names[names != ""])]:
            inside = tested & ((names == name) | (name == "all"))
            rows.append({"set": name, "r": _median_r(one.responses.values[inside], predicted[inside])})
    by_set = pd.DataFrame(rows).groupby("set", sort=False)["r"]
    return by_set.agg(random_r="mean", random_low="min", random_high="max").reset_index()


def near_across(study: Study, one: Subject, folds: list[Fold]) -> pd.DataFrame | None:
    """Nearest training picture of every test stimulus of a comparison; None where there are no pictures."""
    config = study.config.evaluation
    pictures = _readable(study, one) if config.leakage else None
    if pictures is None:
        return None
    table = _distances(pictures, one, folds, study.config.seed)["table"]
    return table.assign(space="pixels", near=table["similarity"] >= config.threshold)


def near_summary(table: pd.DataFrame | None) -> dict[str, Any]:
    """Near duplicates, flat."""
    if table is None:
        return {}
    return {
        "similarity_space": str(table["space"].iloc[0]),
        "n_near_duplicates": int(table["near"].sum()),
        "share_near_duplicates": float(table["near"].mean()),
        "n_same_stimulus": int((table["stimulus"] == table["nearest"]).sum()),
    }


def say_near(study: Study, table: pd.DataFrame | None) -> None:
    """Say that many test stimuli have a near duplicate in training."""
    found = near_summary(table)
    if found.get("share_near_duplicates", 0) > MOST_NEAR:
        study.say("    " + near_text(found))


def comparison_leakage(study: Study, one: Subject, table: pd.DataFrame, predicted: xr.DataArray) -> dict[str, Any]:
    """Arguments of the section on leakage of a comparison, with accuracy of one of its cells."""
    table = table.join(_accuracy(one, predicted), on="stimulus")
    parts = {"table": table, "spaces": slope_table(table), "level": study.config.evaluation.threshold}
    return parts | _pictures(study, table, (one,))


def _accuracy(one: Subject, predicted: xr.DataArray) -> pd.Series:
    """Accuracy of each tested stimulus, over its presentations."""
    found = pd.Series(pattern_accuracy(one.responses.values, predicted.values), name="accuracy")
    tested = np.isfinite(predicted.values).any(axis=1)
    return found[tested].groupby(one.responses["stimulus"].values.astype(str)[tested], sort=False).mean()


def _readable(study: Study, one: Subject) -> xr.DataArray | None:
    """Small pictures; where they cannot be read, it is said, and nothing else suffers."""
    try:
        return pixels_of(study, one)
    except DataError as error:
        study.say(f"    pictures are not compared: {error}")
        return None


def _median_r(y: np.ndarray, p: np.ndarray) -> float:
    if len(y) < 3:
        return float("nan")
    r = stats.pearson_r(y, p)
    return float(np.nanmedian(r)) if np.isfinite(r).any() else float("nan")


def _summary(parts: dict[str, Any], scheme: str) -> dict[str, Any]:
    first, sets = parts["spaces"].iloc[0], parts["sets"]
    whole = sets[sets["set"] == "all"] if (sets["set"] == "all").any() else sets
    same = parts["table"][parts["table"]["space"] == first["space"]]
    summary: dict[str, Any] = {
        "similarity_space": str(first["space"]),
        "n_near_duplicates": int(first["near"]),
        "n_equal": int(first["equal"]),
        "n_same_stimulus": int((same["stimulus"] == same["nearest"]).sum()),
        "share_near_duplicates": float(first["near"] / first["n_test"]),
        "median_similarity": float(first["median_similarity"]),
        "random_similarity": float(first["random_similarity"]),
        "median_r_without_near_duplicates": float(whole["median_r_without_near"].mean()),
        **{f"accuracy_slope{end}": float(first[f"slope{end}"]) for end in ("", "_low", "_high")},
    }
    for name, part in sets.groupby("set", sort=False):
        if sets["set"].nunique() > 1 and name != "all":
            summary[f"median_r:{scheme}:{name}"] = float(part["median_r"].mean())
    own = sets.loc[sets["set"] != "all", "median_r"]
    if (sets["set"] == "all").any() and float(whole["median_r"].mean()) < float(own.min()):
        summary |= {"median_r_all_sets": float(whole["median_r"].mean()), "median_r_lowest_set": float(own.min())}
    if "random_r" in sets:
        summary |= {f"random_split_{end}": float(whole[f"random_{end}"].mean()) for end in ("r", "low", "high")}
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in summary.items()}


def near_text(summary: dict[str, Any]) -> str:
    """What is wrong with the split, in a sentence.

    >>> found = {"n_near_duplicates": 3, "share_near_duplicates": 0.3, "n_same_stimulus": 0,
    ...          "similarity_space": "pixels", "median_r_without_near_duplicates": 0.2}
    >>> near_text(found).split(";")[0]
    '3 test stimuli (30 %) have a near duplicate among the training stimuli (pixels)'
    """
    n, share = summary["n_near_duplicates"], summary["share_near_duplicates"]
    if summary.get("n_same_stimulus") == n:
        return (
            f"{n} test stimuli ({share:.0%}) are training stimuli too: accuracy is about new presentations, not about "
            'new stimuli. Next step: [evaluation] scheme = "stimulus", where there are enough stimuli.'
        ).replace("%)", " %)")
    left = summary.get("median_r_without_near_duplicates")
    without = "" if left is None else f"; without them median r {left:.3f}"
    return (
        f"{n} test stimuli ({share:.0%}) have a near duplicate among the training stimuli "
        f'({summary["similarity_space"]}){without}. Next step: [evaluation] scheme = "near-duplicates".'
    ).replace("%)", " %)")


def pooled_text(summary: dict[str, Any]) -> str:
    """Why r over all test sets can be lower than in each of them.

    >>> pooled_text({"median_r_all_sets": 0.092, "median_r_lowest_set": 0.163})[:69]
    'Over all test sets median r is 0.092, and in each of them 0.163 or mo'
    """
    return (
        f"Over all test sets median r is {summary['median_r_all_sets']:.3f}, and in each of them "
        f"{summary['median_r_lowest_set']:.3f} or more: every set is predicted from another training mean, and what an "
        "encoder misses of a set's mean lowers the first, not the second. Next step: compare sets, not their union."
    )


def _pictures(study: Study, table: pd.DataFrame, subjects: tuple[Subject, ...]) -> dict[str, Any]:
    """The nearest pairs of test and training stimuli; with pictures of them, uint8 (pair, 2, y, x, 3)."""
    pairs = table[table["stimulus"] != table["nearest"]].sort_values("similarity", ascending=False, kind="stable")
    # A pair meets twice in cross-validation.
    key = [tuple(sorted(x)) for x in zip(pairs["stimulus"], pairs["nearest"])]
    pairs = pairs[~pd.Series(key, index=pairs.index, dtype=object).duplicated()].head(_PAIRS)
    parts: dict[str, Any] = {"pairs": pairs[["stimulus", "nearest", "similarity"]].reset_index(drop=True)}
    # Pictures that could not be compared cannot be shown.
    for one in subjects if len(pairs) and pairs["space"].iloc[0] == "pixels" else ():
        stimuli = stimuli_of(study, one)
        if stimuli is None or not np.isin(pairs[["stimulus", "nearest"]], stimuli.ids).all():
            continue
        images = [
            np.asarray(stimuli.image(str(i)).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
            for pair in zip(pairs["stimulus"], pairs["nearest"])
            for i in pair
        ]
        return parts | {"pictures": np.stack(images).reshape(len(pairs), 2, _SIDE, _SIDE, 3)}
    return parts
