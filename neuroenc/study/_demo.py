"""``neuroenc demo``: the whole path on a world whose truth is known."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc import stats
from neuroenc._core.errors import DataError
from neuroenc._core.files import hash_array
from neuroenc._core.provenance import provenance
from neuroenc.captions import nouns
from neuroenc.data.simulate import families_in_caption, family_of_word
from neuroenc.encoders import RidgeEncoder
from neuroenc.report import Block, Section, plot_support_curves, study_page
from neuroenc.study.commands import perform
from neuroenc.study.config import FeaturesConfig, StudyConfig
from neuroenc.study.stages.bank import bank, space
from neuroenc.study.stages.caption import caption, read, weights
from neuroenc.study.stages.card import make_card
from neuroenc.study.stages.check import shuffled_captions
from neuroenc.study.stages.fit import make_ridge, split
from neuroenc.study.stages.load import load
from neuroenc.study.study import Study, stage
from neuroenc.study.text import NOTES, rendered

# Few trials take a few seconds: every third voxel of the demo's subject.
_SIZES, _DRAWS, _VOXELS = (20, 50, 100), 2, 300
_METHODS = {
    "icl": "in context",
    "ridge": "ridge (cross-validated)",
    "ridge_shared": "ridge (one penalty for all voxels)",
}
BETTER = "better than shuffled weights"
_WORSE = "no better than shuffled weights"
_UNKNOWN = "too few to tell from shuffled weights"


def caption_family(captions: pd.DataFrame) -> pd.Series:
    """Family that the captions of each voxel name most often, early ranks counting more; "" if none.

    A caption of rank k gives 1/k, shared by the families that it names, so that naming everything wins nothing.

    Examples
    --------
    >>> frame = pd.DataFrame({"voxel": [7, 7], "rank": [1, 2], "caption": ["a man", "a woman and a pizza"]})
    >>> caption_family(frame).to_dict()
    {7: 'face'}
    """
    votes: dict[Any, Counter[str]] = {}
    for voxel, rank, text in zip(captions["voxel"], captions["rank"], captions["caption"]):
        found = families_in_caption(text)
        counter = votes.setdefault(voxel, Counter())
        for family in found:
            counter[family] += 1 / (rank * len(found))  # type: ignore[assignment]
    best = {v: max(sorted(c), key=lambda f: c[f]) if c else "" for v, c in votes.items()}
    return pd.Series(best, dtype=object)


def demo(
    out: str | os.PathLike[str] = "neuroenc-demo",
    *,
    seed: int = 0,
    n_train: int = 1400,
    n_test: int = 200,
    n_bank: int = 2000,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Simulate scenes and a cortex, fit, score against ceilings, caption, and write a report.

    Parameters
    ----------
    out : path
        Folder for ``report/``, ``encoder/`` and ``summary.json``; a killed demo goes on from ``out/.steps``.
    seed : int
        Of the world and the cortex.
    n_train, n_test, n_bank : int
        Scenes shown once, scenes shown three times, and scenes that nobody saw, for captions and projection.
    progress : bool
    say : callable
        Called with each line that the command prints.

    Returns
    -------
    dict
        What ``summary.json`` holds. Over all voxels: ``n_voxels``, ``median_r``, ``median_noise_ceiling_r``,
        ``median_r_normalised``, ``n_significant``, ``n_captioned`` (q < 0.05); the same medians over the
        ``n_voxels_selective`` of category-selective regions, ``selective_...``; over the ``n_voxels_judged`` of these
        with a caption and planted ncsnr above 0.5: ``judged_caption_family_accuracy`` (the captions' family is the
        planted one, of five; either of two for mixed voxels), ``judged_caption_family_named_best`` (the best caption
        names it), and both for shuffled weights, ``judged_shuffled_...``; mean explained variance from few trials,
        ``few_shot_ev:METHOD:TRIALS`` (icl, ridge); ``seconds``.
    """
    config = demo_config(seed, n_train, n_test, n_bank)
    study = Study(config, out, progress=progress, say=say)
    return perform(study, _STAGES, lambda s: s.judged["summary"], _write, _closing)


def demo_config(seed: int = 0, n_train: int = 1400, n_test: int = 200, n_bank: int = 2000) -> StudyConfig:
    """The demo's settings: retrieved captions of a simulated subject, without checks that take long.

    >>> demo_config().captions.decoder.kind
    'retrieval'
    """
    table: dict[str, Any] = {
        "title": "neuroenc demo: a simulated subject",
        "seed": seed,
        "data": {
            "name": "world",
            "options": {"n_train": n_train, "n_test": n_test, "n_bank": n_bank, "world_seed": 70_000 + 2 * seed},
        },
        "evaluation": {"scheme": "test"},
        "captions": {
            "space": {"model": "world"},
            "bank": {"source": "unseen"},
            "decoder": {"kind": "retrieval", "caption_bank": "unseen", "captions_per_stimulus": 2, "top": 5},
            "grounding": {"enabled": False, "images": 6},
            "stability": {"folds": 0, "bootstraps": 0, "halves": 0},
        },
    }
    return StudyConfig(**table)


@stage("encode", reads=("fitted", "config.encoder"), writes=("encoder",))
def encode(study: Study) -> dict[str, Any]:
    """The encoder of the training rows, saved with its card in ``OUT/encoder``."""
    rows, features = study.fitted.rows[0], {"world": FeaturesConfig(model="world", normalise=True, standardise=False)}
    encoder = make_ridge(study.config.encoder).fit(rows.X, rows.Y)
    card = make_card(
        study.config,
        study.subjects[0],
        space="world",
        features=features,
        responses=rows.Y,
        scores=study.fitted.scores,
        split=study.config.evaluation.scheme,
    )
    assert study.out is not None
    encoder.save(study.out / "encoder", card)
    return {"encoder": encoder}


@stage("few trials", reads=("fitted", "config.seed"), writes=("few_trials",))
def few_trials(study: Study) -> dict[str, Any]:
    """How far 20, 50 or 100 trials lead, in context and by two ridges; None without the shipped model's weights."""
    from neuroenc.encoders.incontext import InContextEncoder, load_model, summarise_curve, support_curve

    try:
        model = load_model("world")
    except DataError:
        return {"few_trials": None}
    rows, ceiling = study.fitted.rows[0], study.fitted.scores["noise_ceiling_r2"].values
    some, seed = np.arange(0, rows.Y.shape[1], -(-rows.Y.shape[1] // _VOXELS)), study.config.seed
    Y, Y_test, limit = rows.Y[:, some], rows.Y_test[:, some], ceiling[some]

    def work() -> dict[str, pd.DataFrame]:
        methods = {
            _METHODS["icl"]: InContextEncoder(model, response_scale="as-is"),
            _METHODS["ridge"]: RidgeEncoder(cv=5, progress=False),
            _METHODS["ridge_shared"]: RidgeEncoder(cv=5, alpha_per_voxel=False, progress=False),
        }
        options: dict[str, Any] = {"n_draws": _DRAWS, "seed": seed, "noise_ceiling": limit, "progress": False}
        curve = support_curve(methods, rows.X, Y, rows.X_test, Y_test, sizes=_SIZES, **options)
        table = summarise_curve(curve, n_bootstraps=500, seed=seed)
        table["normalised"] = summarise_curve(curve, n_bootstraps=2, normalise=True)["explained_variance"]
        return {"curve": table}

    inputs = [rows.X, Y, rows.X_test, Y_test, limit, seed, model, list(_METHODS), list(_SIZES), _DRAWS]
    return {"few_trials": study.store.keep("few-trials", inputs, work)["curve"]}


def compared(
    control: str, n_voxels: int, fitted: float, shuffled: float, draws: np.ndarray | None, n_units: int
) -> dict[str, Any]:
    """One row of a table of controls, with its verdict in words.

    ``draws`` are differences, fitted minus shuffled, over resamples of ``n_units`` stimuli or voxels; None where
    there are too few.
    """
    low = high = np.nan
    if draws is not None:
        low, high, _ = (float(x) for x in stats.sample_interval(draws, fitted - shuffled, n_units=n_units))
    verdict = _UNKNOWN if not np.isfinite(low) else BETTER if low > 0 else _WORSE
    return {
        "control": control,
        "n_voxels": n_voxels,
        "fitted weights": fitted,
        "shuffled weights": shuffled,
        "difference": fitted - shuffled,
        "low": low,
        "high": high,
        "verdict": verdict,
    }


def mark(captions: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """Captions with a column ``control``: what they did not pass, "" where they passed all."""
    failed = controls[controls["verdict"] != BETTER]
    words = "; ".join(f"{verdict} ({name})" for name, verdict in zip(failed["control"], failed["verdict"]))
    return captions.assign(control=words)


@stage("judge", reads=("fitted", "subjects", "captions", "few_trials"), writes=("judged",))
def judge(study: Study) -> dict[str, Any]:
    """Summary, table of regions, controls and marked captions, against the planted truth."""
    scores, truth, captions = study.fitted.scores, study.subjects[0].truth, study.captions.captions
    voxels = scores["voxel"].values
    frame = pd.DataFrame(
        {
            "roi": scores["roi"].values,
            "r": scores["r"].values,
            "ceiling": scores["noise_ceiling_r"].values,
            "normalised": scores["r_normalised"].values,
            "family": truth["family"].values,
            "second": truth["second_family"].values,
            "clear": truth["ncsnr"].values > 0.5,
        },
        index=voxels,
    )
    selective = frame["family"] != ""
    captioned = frame.index.isin(captions["voxel"])
    judged = frame[selective & frame["clear"] & captioned]
    summary: dict[str, Any] = {
        "n_voxels": len(frame),
        "n_voxels_selective": int(selective.sum()),
        "n_voxels_judged": len(judged),
        "n_captioned": int(captioned.sum()),
        "n_significant": int((scores["q_value"] < 0.05).sum()),
    }
    names = {"r": "median_r", "ceiling": "median_noise_ceiling_r", "normalised": "median_r_normalised"}
    for prefix, some in (("", slice(None)), ("selective_", selective)):
        medians = frame.loc[some, list(names)].median()
        summary |= {f"{prefix}{name}": float(medians[column]) for column, name in names.items()}
    real, mixed = (_hits(judged, found) for found in (captions, shuffled_captions(study)))
    rows = []
    labels = (
        ("caption_family_accuracy", "the captions' family is a planted one"),
        ("caption_family_named_best", "the best caption names a planted family"),
    )
    at = np.random.default_rng(0).integers(0, max(len(judged), 1), (1000, len(judged)))
    for (name, words), a, b in zip(labels, real, mixed):
        summary[f"judged_{name}"] = float(a.mean()) if len(judged) else np.nan
        summary[f"judged_shuffled_{name}"] = float(b.mean()) if len(judged) else np.nan
        difference = a.to_numpy(dtype=float) - b.to_numpy(dtype=float)
        draws = difference[at].mean(axis=1) if len(judged) > 1 else None
        fitted, shuffled = (summary[f"judged_{k}{name}"] for k in ("", "shuffled_"))
        rows.append(compared(words, len(judged), fitted, shuffled, draws, len(judged)))
    controls = pd.DataFrame(rows)
    captions = mark(captions, controls)
    table = _roi_table(frame, captions, real[0])
    if study.few_trials is not None:
        # Keys of the summary are shorter than what table and figure call the methods.
        short = {label: key for key, label in _METHODS.items()}
        for row in study.few_trials.to_dict("records"):
            summary[f"few_shot_ev:{short[row['method']]}:{row['size']}"] = float(row["explained_variance"])
    return {"judged": {"summary": summary, "roi_table": table, "controls": controls, "captions": captions}}


def _hits(judged: pd.DataFrame, captions: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Whether the captions' family, and a family of the best caption, is a planted one."""
    found = caption_family(captions).reindex(judged.index).fillna("")
    hit = (found != "") & ((found == judged["family"]) | (found == judged["second"]))
    best = captions[captions["rank"] == 1].set_index("voxel")["caption"].reindex(judged.index).fillna("")
    said = [families_in_caption(c) & {a, b} for c, a, b in zip(best, judged["family"], judged["second"])]
    return hit, pd.Series(list(map(bool, said)), index=judged.index)


def _roi_table(frame: pd.DataFrame, captions: pd.DataFrame, hit: pd.Series) -> pd.DataFrame:
    words = nouns(captions, family_of_word, max_rank=1).groupby("roi", sort=False)["word"]
    columns = {"median_r": "r", "ceiling": "ceiling", "normalised": "normalised"}
    regions = frame.groupby("roi", sort=False)
    table = regions.agg(n_voxels=("r", "size"), **{name: (column, "median") for name, column in columns.items()})
    table["nouns"] = words.agg(lambda found: ", ".join(found.head(3))).reindex(table.index, fill_value="")
    table["family_accuracy"] = hit.groupby(frame["roi"].reindex(hit.index)).mean().reindex(table.index)
    return table.reset_index()


_STAGES = (load, split, space, weights, bank, read, caption, encode, few_trials, judge)


def _write(study: Study) -> Path:
    judged, scores, shots = study.judged, study.fitted.scores, study.few_trials
    options = study.config.data.options
    settings = {"seed": study.config.seed, **{k: options[k] for k in ("n_train", "n_test", "n_bank")}}
    tables = {k: judged[k] for k in ("roi_table", "controls")}
    sections = [] if shots is None else [few_trials_section(shots)]
    captions = dataclasses.replace(study.captions, captions=judged["captions"], caveats=())
    page = study_page(
        study.config.title,
        accuracy={"scores": scores, **tables, "sections": sections},
        captions={"study": captions, "stimuli": study.unseen},
        summary=study.summary,
        settings=settings,
        notes=NOTES["demo"],
        provenance=provenance(
            demo=settings,
            responses=hash_array(study.fitted.rows[0].Y.values),
            features=study.caption_space.attrs["content_hash"],
        ),
        kicker="Voxelwise encoding report · sub-01",
        progress=study.progress,
    )
    assert study.out is not None
    return page.write(study.out / "report")


def few_trials_section(table: pd.DataFrame) -> Section:
    """Figure and table as a section of the report."""
    shown = table.drop(columns=["group"]).rename(columns={"size": "support trials"})
    words = "; ".join(
        f"{r['method']}, {r['size']} trials: {r['explained_variance']:.3f}" for r in table.to_dict("records")
    )
    return Section(
        "few-shot",
        "If there had been few trials only",
        "The shipped in-context model was trained on other simulated subjects. It sees 20, 50 or 100 trials of this "
        "one (the support) and gives every voxel its weights without any fitting.",
        [
            Block(
                plot_support_curves(table),
                f"Explained variance by support size. {words}",
                "Means over voxels of all regions and draws of the support; bands are intervals over both.",
                shown,
                about="explained variance",
                opened=True,
            )
        ],
        nav="Few trials",
        terms=["support", "explained variance"],
    )


def _closing(study: Study) -> list[str]:
    """What the command prints at its end."""
    regions = study.judged["roi_table"].to_string(index=False, float_format=lambda x: f"{x:.2f}", na_rep="-")
    verdict, sizes = study.judged["controls"]["verdict"][0], () if study.few_trials is None else _SIZES
    return rendered("demo.txt.j2", s=study.summary, regions=regions, verdict=verdict, sizes=sizes).splitlines()
