"""``neuroenc demo``: the whole path on a world whose truth is known."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data
from neuroenc._core.files import hash_array, output_folder, write_json
from neuroenc._core.provenance import provenance
from neuroenc.captions import RetrievalDecoder, caption_voxels, nouns, shuffled_control
from neuroenc.data import EncodingData, Stimuli
from neuroenc.data.simulate import families_in_caption, family_of_word, simulate_cortex, simulate_world
from neuroenc.embedding import ImageEmbedder, TextEmbedder
from neuroenc.encoders import RidgeEncoder
from neuroenc.report import write_report
from neuroenc.workflows._caption_controls import compared, mark
from neuroenc.workflows._config import EvaluationConfig
from neuroenc.workflows._demo_icl import few_shot, few_shot_line, few_shot_section, shipped_model, unit_norm
from neuroenc.workflows._evaluate import noise_ceilings, score_table
from neuroenc.workflows._inputs import first_captions
from neuroenc.workflows._steps import Steps, content_key

__all__ = ["caption_family", "demo"]

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
    for voxel, rank, caption in zip(captions["voxel"], captions["rank"], captions["caption"]):
        found = families_in_caption(caption)
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
    out = output_folder(out)
    steps = Steps(out / ".steps", say)
    say(f"1/6 world: {n_train + n_test} scenes, and {n_bank} nobody sees")
    # Seeds of the scenes are far from those that the world's CLIP was trained on.
    shown = simulate_world(n_train + n_test, seed=70_000 + 2 * seed)
    unseen = simulate_world(n_bank, seed=70_001 + 2 * seed)
    test_ids = shown.ids[n_train:]
    say("2/6 cortex: one subject, 4 sessions, training scenes once, test scenes three times")
    subject = simulate_cortex(shown, test_ids=test_ids, seed=seed)[0]
    train, test, single = _responses(subject, test_ids)
    say(f"    {n_train + 3 * n_test} presentations, {train.shape[1]} voxels")
    say("3/6 features: the world's CLIP")
    images = ImageEmbedder("world", progress=progress)
    features = images.embed(shown)
    bank = images.embed(unseen)
    say("4/6 ridge: a penalty for every voxel by cross-validation on the training scenes")
    scores, encoder = _fit(features, train, test, single, subject, steps, out, seed, progress)
    say("5/6 captions: weights projected onto scenes nobody saw, captions retrieved")
    passed = np.asarray((scores["q_value"] < 0.05) & (scores["r"] > 0))
    tables = _captions(encoder, bank, unseen, passed, steps, seed, progress)
    shots: pd.DataFrame | None = None
    more: dict[str, Any] = {}
    model = shipped_model()
    if model is not None:
        say("    20, 50 and 100 trials instead: in context and by ridge")
        X, X_test = unit_norm(features, train), unit_norm(features, test)
        shots, more = few_shot(X, train, X_test, test, scores["noise_ceiling_r2"].values, steps, model, seed)
    say("6/6 report")
    assert subject.truth is not None
    summary, roi_table, controls = _judge(scores, tables, subject.truth)
    summary |= more
    settings = {"seed": seed, "n_train": n_train, "n_test": n_test, "n_bank": n_bank}
    page = write_report(
        out / "report",
        title="neuroenc demo: a simulated subject",
        scores=scores,
        captions=tables["captions"],
        evidence=tables["evidence"],
        stimuli=unseen,
        roi_table=roi_table,
        controls=controls,
        sections=[] if shots is None else [few_shot_section(shots)],
        summary=summary,
        settings=settings,
        notes=_NOTES,
        provenance=provenance(
            demo=settings, responses=hash_array(train.values), features=features.attrs["content_hash"]
        ),
        subject="sub-01",
        progress=progress,
    )
    summary["seconds"] = round(time.perf_counter() - start, 1)
    write_json(out / "summary.json", summary)
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


def _responses(subject: EncodingData, test_ids: np.ndarray) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """Training presentations, test means and test presentations, z-scored within session."""
    assert subject.responses is not None
    scaled = data.validate_responses(data.zscore(subject.responses, by="session"), zscored="session")
    train, single = data.shared_test(scaled, test_ids)
    data.check_disjoint(train, single)
    return data.average_repeats(train), data.average_repeats(single), single


def _fit(
    features: xr.DataArray,
    train: xr.DataArray,
    test: xr.DataArray,
    single: xr.DataArray,
    subject: EncodingData,
    steps: Steps,
    out: Path,
    seed: int,
    progress: bool,
) -> tuple[xr.Dataset, RidgeEncoder]:
    X, X_test = unit_norm(features, train), unit_norm(features, test)
    encoder = RidgeEncoder(checkpoint=steps.folder / f"ridge-{content_key(X, train)[:16]}", progress=progress)
    encoder.fit(X, train)
    encoder.save(out / "encoder")
    predicted = encoder.predict(X_test)
    config = EvaluationConfig(scheme="test", test_ids=["simulated test set"])
    ceilings = noise_ceilings(EncodingData(None, None), single, test)

    def work() -> xr.Dataset:
        return score_table(test, predicted, config, ceilings=ceilings, seed=seed)

    scores = steps.arrays("scores", content_key(test, predicted.values, ceilings, vars(config), seed), work)
    return scores, encoder


def _captions(
    encoder: RidgeEncoder,
    bank: xr.DataArray,
    unseen: Stimuli,
    passed: np.ndarray,
    steps: Steps,
    seed: int,
    progress: bool,
) -> dict[str, pd.DataFrame]:
    texts, ids = first_captions(unseen, 2)
    names = [f"{s}#{k}" for k, s in enumerate(ids)]
    vectors = TextEmbedder("world", progress=progress).embed(texts, ids=names)
    coef, intercept = encoder.to_linear()

    def work() -> dict[str, pd.DataFrame]:
        decoder = RetrievalDecoder(texts, vectors.values, ids)
        real = caption_voxels(coef, bank, decoder, intercept=intercept, mask=passed, n_evidence=6, progress=False)
        mixed = shuffled_control(coef, seed)
        control = caption_voxels(mixed, bank, decoder, intercept=intercept, mask=passed, n_evidence=0, progress=False)
        return {"captions": real.captions, "evidence": real.evidence, "shuffled": control.captions}

    return steps.frames("captions", content_key(coef, intercept, bank, vectors, texts, passed, seed), work)


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
