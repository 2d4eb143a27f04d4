"""``neuroenc demo``: the whole path on a world whose truth is known."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.files import hash_array, write_json
from neuroenc._core.provenance import provenance
from neuroenc.captions import nouns, shuffled_control
from neuroenc.data.simulate import families_in_caption, family_of_word
from neuroenc.report import write_report
from neuroenc.study.config import (
    BankConfig,
    CaptionsConfig,
    DataConfig,
    DecoderConfig,
    EvaluationConfig,
    GroundingConfig,
    SpaceConfig,
    StabilityConfig,
    StudyConfig,
)
from neuroenc.study.controls import compared, mark
from neuroenc.study.few_shot import few_shot, few_shot_line, few_shot_section, shipped_model
from neuroenc.study.stages.caption import bank, caption, read, space, weights
from neuroenc.study.stages.fit import make_ridge, split
from neuroenc.study.stages.load import load
from neuroenc.study.study import Study

_STAGES = (load, split, space, weights, bank, read, caption)

_NOTES = (
    "Everything here is simulated: rendered scenes, and a cortex whose selectivity is known. It shows that the path "
    "works, not how real voxels behave.",
    "V1 to hV4 answer to local contrast, orientation and colour, which an embedding of objects knows little about: "
    "their low accuracy is expected, and only captions of category-selective regions are held against a planted "
    "family.",
    "Voxels that are not predicted above chance (q < 0.05) get no caption.",
    "Captions are retrieved from captions of scenes that no subject saw.",
)


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
        Gets the lines that the command prints.

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
    start = time.perf_counter()
    config = demo_config(seed, n_train, n_test, n_bank)
    study = Study(config, out, progress=progress, say=say)
    for number, one in enumerate(_STAGES, 1):
        say(f"{number}/{len(_STAGES) + 2} {one.name}")
        study = study.through([one])
    assert study.out is not None
    fitted, truth = study.fitted, study.subjects[0].truth
    rows, scores = fitted.rows[0], fitted.scores
    make_ridge(config.encoder).fit(rows.X, rows.Y).save(study.out / "encoder")
    tables = {
        "captions": study.captions.captions,
        "evidence": study.captions.evidence,
        "shuffled": _shuffled(study),
    }
    shots: pd.DataFrame | None = None
    more: dict[str, Any] = {}
    model = shipped_model()
    if model is not None:
        say(f"{len(_STAGES) + 1}/{len(_STAGES) + 2} few trials: 20, 50 and 100 instead, in context and by ridge")
        shots, more = few_shot(
            rows.X, rows.Y, rows.X_test, rows.Y_test, scores["noise_ceiling_r2"].values, study.store, model, seed
        )
    say(f"{len(_STAGES) + 2}/{len(_STAGES) + 2} report")
    summary, roi_table, controls = _judge(scores, tables, truth)
    summary |= more
    settings = {"seed": seed, "n_train": n_train, "n_test": n_test, "n_bank": n_bank}
    page = write_report(
        study.out / "report",
        title=config.title,
        scores=scores,
        captions=tables["captions"],
        evidence=tables["evidence"],
        stimuli=study.unseen,
        roi_table=roi_table,
        controls=controls,
        sections=[] if shots is None else [few_shot_section(shots)],
        summary=summary,
        settings=settings,
        notes=_NOTES,
        provenance=provenance(
            demo=settings, responses=hash_array(rows.Y.values), features=study.caption_space.attrs["content_hash"]
        ),
        subject="sub-01",
        progress=progress,
    )
    summary["seconds"] = round(time.perf_counter() - start, 1)
    write_json(study.out / "summary.json", summary)
    say("")
    say(roi_table.to_string(index=False, float_format=lambda x: f"{x:.2f}", na_rep="-"))
    say("")
    say(
        f"{summary['n_voxels_selective']} voxels of selective regions: median r {summary['selective_median_r']:.3f}, "
        f"{summary['selective_median_r_normalised']:.3f} of the ceiling; planted family named for "
        f"{summary['judged_caption_family_accuracy']:.0%} of the {summary['n_voxels_judged']} with ncsnr > 0.5 "
        f"(shuffled weights {summary['judged_shuffled_caption_family_accuracy']:.0%}, chance 20%): "
        f"{controls['verdict'][0]}"
    )
    if shots is not None:
        say(few_shot_line(summary))
    say(f"report: {page}   ({summary['seconds']:.0f} s)")
    return summary


def demo_config(seed: int = 0, n_train: int = 1400, n_test: int = 200, n_bank: int = 2000) -> StudyConfig:
    """The demo's settings: retrieved captions of a simulated subject, without checks that take long.

    >>> demo_config().captions.decoder.kind
    'retrieval'
    """
    world = {"n_train": n_train, "n_test": n_test, "n_bank": n_bank, "world_seed": 70_000 + 2 * seed}
    return StudyConfig(
        title="neuroenc demo: a simulated subject",
        seed=seed,
        data=DataConfig(name="world", options=world),
        evaluation=EvaluationConfig(scheme="test"),
        captions=CaptionsConfig(
            space=SpaceConfig(model="world"),
            bank=BankConfig(source="unseen"),
            decoder=DecoderConfig(kind="retrieval", caption_bank="unseen", captions_per_stimulus=2, top=5),
            grounding=GroundingConfig(enabled=False, images=6),
            stability=StabilityConfig(folds=0, bootstraps=0, halves=0),
        ),
    )


def _shuffled(study: Study) -> pd.DataFrame:
    """Captions of weights whose features were shuffled."""
    fitted, gate = study.fitted, study.captions.gate
    projection = study.readings.shuffled.sel(voxel=gate.loc[gate["captioned"], "voxel"].to_numpy())
    nothing = pd.DataFrame({"voxel": [], "rank": [], "stimulus": [], "predicted": []})
    mixed = shuffled_control(fitted.coef, study.config.seed)
    found = study.captioner.caption(mixed, fitted.scores, gate=gate, projected=(projection, nothing))
    return found.captions


def _judge(
    scores: xr.Dataset, tables: dict[str, pd.DataFrame], truth: xr.Dataset
) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """Summary, table of regions and controls, against the planted truth."""
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
    captioned = frame.index.isin(tables["captions"]["voxel"])
    judged = frame[selective & frame["clear"] & captioned]
    summary: dict[str, Any] = {
        "n_voxels": len(frame),
        "n_voxels_selective": int(selective.sum()),
        "n_voxels_judged": len(judged),
        "n_captioned": int(captioned.sum()),
        "n_significant": int((scores["q_value"] < 0.05).sum()),
    }
    for prefix, some in (("", slice(None)), ("selective_", selective)):
        inside = frame.loc[some]
        summary[f"{prefix}median_r"] = float(inside["r"].median())
        summary[f"{prefix}median_noise_ceiling_r"] = float(inside["ceiling"].median())
        summary[f"{prefix}median_r_normalised"] = float(inside["normalised"].median())
    real, mixed = (_hits(judged, tables[name]) for name in ("captions", "shuffled"))
    rows = []
    labels = (
        ("caption_family_accuracy", "the captions' family is a planted one"),
        (
            "caption_family_named_best",
            "the best caption names a planted family",
        ),
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
    tables["captions"] = mark(tables["captions"], controls)
    return summary, _roi_table(frame, tables["captions"], real[0]), controls


def _hits(judged: pd.DataFrame, captions: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Whether the captions' family, and the families of the best caption, hold a planted family."""
    found = caption_family(captions).reindex(judged.index).fillna("")
    best = captions[captions["rank"] == 1].set_index("voxel")["caption"].reindex(judged.index).fillna("")
    planted = [{a, b} - {""} for a, b in zip(judged["family"], judged["second"])]
    hit = pd.Series([f in p for f, p in zip(found, planted)], index=judged.index)
    named = pd.Series([bool(families_in_caption(c) & p) for c, p in zip(best, planted)], index=judged.index)
    return hit, named


def _roi_table(frame: pd.DataFrame, captions: pd.DataFrame, hit: pd.Series) -> pd.DataFrame:
    words = nouns(captions, family_of_word, max_rank=1)
    rows = []
    for roi in dict.fromkeys(frame["roi"]):
        inside = frame["roi"] == roi
        own = hit[hit.index.isin(frame.index[inside])]
        top = words[words["roi"] == roi].head(3)["word"].tolist()
        rows.append(
            {
                "roi": roi,
                "n_voxels": int(inside.sum()),
                "median_r": frame.loc[inside, "r"].median(),
                "ceiling": frame.loc[inside, "ceiling"].median(),
                "normalised": frame.loc[inside, "normalised"].median(),
                "nouns": ", ".join(top),
                "family_accuracy": own.mean() if len(own) else np.nan,
            }
        )
    return pd.DataFrame(rows)
