"""``neuroenc caption``: from responses to captions of voxels, checked, scored, and exported as a report."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._util.files import hash_array, write_json
from neuroenc.captions import CaptionStudy, gate_voxels, shuffled_control
from neuroenc.workflows._caption_checks import diversity_table, held_out_scores, round_trip_table, stability_tables
from neuroenc.workflows._caption_config import CaptionConfig
from neuroenc.workflows._caption_decoders import make_decoder, make_text_embedder, text_direction
from neuroenc.workflows._caption_inputs import Bank, Subject, Texts, load_bank_of, load_subjects, load_texts
from neuroenc.workflows._caption_truth import judge_planted, planted_summary
from neuroenc.workflows._captioner import Captioner
from neuroenc.workflows._captioning import CAPTION_NOTES
from neuroenc.workflows._config import EvaluationConfig
from neuroenc.workflows._evaluate import make_ridge, score_table
from neuroenc.workflows._steps import Steps

__all__ = ["caption"]


@dataclasses.dataclass
class Fitted:
    """Voxels of all subjects in one row, numbered anew."""

    coef: xr.DataArray
    intercept: xr.DataArray
    scores: xr.Dataset
    alphas: list[np.ndarray]
    voxels: list[np.ndarray]
    truth: xr.Dataset | None


def caption(
    config: CaptionConfig,
    out: str | os.PathLike[str],
    *,
    mirror: str | os.PathLike[str] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Caption the voxels of one or several subjects, check the captions, and write the report.

    The encoder never sees the held-out rows of ``[held_out]``: accuracy, the gate and the sentence-level score are of
    those. Steps that are done are kept in ``out/.steps``; the same call after a kill goes on and ends with the same
    files (``seconds`` apart).

    Parameters
    ----------
    config : CaptionConfig
        From `read_caption_config` or `example_caption_config`.
    out : path
        Folder for ``report/``, ``study/`` and ``summary.json``.
    mirror : path, optional
        Folder with data sets, tried before any download.
    progress : bool
    say : callable
        Gets the lines that the command prints.

    Returns
    -------
    dict
        What ``summary.json`` holds: ``n_voxels, n_captioned, median_r`` (of captioned voxels),
        ``sentence_mean`` with its interval, ``round_trip``, ``agreement:KIND``, ``hallucination_rate``, for simulated
        subjects ``planted_...``, ``seconds``.
    """
    start = time.perf_counter()
    out, folder = Path(out), None if mirror is None else os.fspath(mirror)
    steps = Steps(out / ".steps", say)
    say(f"1/6 data: {config.data.name or Path(config.data.responses).name}")
    subjects, shown, unseen = load_subjects(config, folder, progress)
    for one in subjects:
        say(f"    {one.name}: {len(one.Y)} rows to fit on, {len(one.Y_test)} held out, {one.Y.shape[1]} voxels")
    say(f"2/6 encoder: ridge on unit-norm embeddings of {config.space.model}")
    fitted = _fit(config, subjects, steps, progress)
    gate = gate_voxels(
        fitted.scores, config.gate.kind, q=config.gate.q, rois=config.gate.rois,
        min_ceiling_r=config.gate.min_ceiling_r,
    )  # fmt: skip
    say(f"    {int(gate['captioned'].sum())} of {len(gate)} voxels pass the gate")
    say(f"3/6 captions: {config.projection.method} projection, {config.decoder.kind} decoder")
    texts = load_texts(config, subjects, shown, unseen, folder, progress)
    bank = load_bank_of(config, subjects, shown, unseen, texts, folder, progress)
    embed_text = make_text_embedder(config)
    decoder = make_decoder(config, texts, embed_text)
    p = config.projection
    captioner = Captioner(
        bank.embeddings, decoder, stimuli=bank.stimuli, embed_text=embed_text, method=p.method, top=config.decoder.top,
        n_evidence=config.grounding.images, temperature=p.temperature, renormalise=p.renormalise, decouple=p.decouple,
        progress=progress,
    )  # fmt: skip
    study = _captions(config, captioner, fitted, gate, bank, steps)
    study = _checked(config, captioner, fitted, study, subjects, shown, texts, steps, progress, say)
    summary = _summary(study, fitted)
    say("6/6 report")
    study.save(out / "study")
    page = captioner.report(study, out / "report", progress=progress)
    summary["seconds"] = round(time.perf_counter() - start, 1)
    write_json(out / "summary.json", summary)
    for line in _closing(summary):
        say(line)
    say(f"report: {page}   ({summary['seconds']:.0f} s)")
    return summary


def _fit(config: CaptionConfig, subjects: list[Subject], steps: Steps, progress: bool) -> Fitted:
    coefs, intercepts, scores, alphas, voxels, truths = [], [], [], [], [], []
    offset = 0
    for one in subjects:
        inputs = {
            "content": hash_array(one.X.values, one.Y.values, one.X_test.values, one.Y_test.values),
            "encoder": vars(config.encoder), "held_out": vars(config.held_out), "seed": config.seed,
        }  # fmt: skip

        def fit(one: Subject = one, key: str = inputs["content"][:16]) -> xr.Dataset:
            encoder = make_ridge(config.encoder, steps.folder / f"ridge-{key}")
            encoder.fit(one.X, one.Y)
            coef, intercept = encoder.to_linear()
            return xr.Dataset(
                {"coef": coef, "intercept": intercept, "alpha": ("voxel", np.asarray(encoder.alpha_)),
                 "predicted": (("row", "voxel"), encoder.predict(one.X_test.values))}
            )  # fmt: skip

        found = steps.arrays(f"encoder-{one.name}", inputs, fit)
        by_run = config.held_out.scheme in ("run", "session")
        how = EvaluationConfig(
            scheme="test", test_ids=["held out"], permutations=config.held_out.permutations, q=config.gate.q,
            permutation_mode="within" if by_run else "samples",
        )  # fmt: skip
        predicted = one.Y_test.copy(data=found["predicted"].values)

        def table(one: Subject = one, how: EvaluationConfig = how, predicted: xr.DataArray = predicted) -> xr.Dataset:
            return score_table(one.Y_test, predicted, how, ceilings=one.ceilings, seed=config.seed)

        score = steps.arrays(f"scores-{one.name}", {**inputs, "evaluation": vars(how)}, table)
        n = score.sizes["voxel"]
        numbers = {"voxel": np.arange(offset, offset + n)}
        labels = {"subject": ("voxel", np.full(n, one.name))}
        scores.append(score.assign_coords({**labels, "voxel_of_subject": ("voxel", score["voxel"].values), **numbers}))
        coefs.append(found["coef"].assign_coords(numbers))
        intercepts.append(found["intercept"].assign_coords(numbers))
        alphas.append(found["alpha"].values)
        voxels.append(numbers["voxel"])
        if one.truth is not None:
            names = ("family", "second_family", "members", "mixed", "ncsnr")
            planted = {name: ("voxel", one.truth[name].values) for name in names}
            truths.append(xr.Dataset(planted, coords=numbers))
        offset += n
    options: dict[str, Any] = {"dim": "voxel", "combine_attrs": "override", "coords": "different", "compat": "equals"}
    merged = xr.concat(scores, **options)
    return Fitted(
        xr.concat(coefs, **options), xr.concat(intercepts, **options), merged, alphas, voxels,
        xr.concat(truths, **options) if truths else None,
    )  # fmt: skip


def _captions(
    config: CaptionConfig, captioner: Captioner, fitted: Fitted, gate: pd.DataFrame, bank: Bank, steps: Steps
) -> CaptionStudy:
    folder = steps.path(
        "captions",
        {"content": hash_array(fitted.coef.values, gate["captioned"].to_numpy()), "decoder": vars(config.decoder),
         "projection": vars(config.projection), "bank": bank.name, "space": vars(config.space),
         "seed": config.seed, "n_evidence": captioner.n_evidence, "title": config.title, "notes": config.notes},
    )  # fmt: skip
    if (folder / "study.json").is_file():
        steps.say(f"  captions: done before, taken from {folder.parent.name}/")
        return CaptionStudy.load(folder)
    began = time.perf_counter()
    h, e = config.held_out, config.encoder
    study = captioner.caption(
        (fitted.coef, fitted.intercept),
        fitted.scores,
        gate=gate,
        title=config.title,
        settings={
            "features": {"model": config.space.model, "stimuli": config.space.stimuli, "normalised": "unit norm"},
            "encoder": {"kind": e.kind, "cv": e.cv, "scoring": e.scoring},
            "held_out": {"scheme": h.scheme, "permutations": h.permutations},
            "gate": {k: v for k, v in vars(config.gate).items() if v},
            "seed": config.seed,
        },
        caveats=[*config.notes, *_caveats(config)],
    )
    settings = dict(study.settings)
    settings["bank"] = {**settings["bank"], "name": bank.name}
    settings["decoder"] = {**settings["decoder"], "captioner": config.decoder.captioner}
    study = dataclasses.replace(
        study, settings=settings, provenance={**study.provenance, "weights": hash_array(fitted.coef.values)}
    )
    study.save(folder)
    steps.say(f"  captions: {time.perf_counter() - began:.1f} s")
    # What goes on is what a run that was stopped would read.
    return CaptionStudy.load(folder)


def _caveats(config: CaptionConfig) -> list[str]:
    notes = []
    if config.space.model == "conse":
        notes.append(CAPTION_NOTES["conse"])
    if config.decoder.kind == "retrieval":
        notes.append(CAPTION_NOTES["retrieval"])
    if config.gate.kind != "q":
        notes.append("Voxels are captioned whether or not they are predicted above chance.")
    return notes


def _checked(
    config: CaptionConfig, captioner: Captioner, fitted: Fitted, study: CaptionStudy, subjects: list[Subject],
    shown: Any, texts: Texts | None, steps: Steps, progress: bool, say: Callable[[str], None],
) -> CaptionStudy:  # fmt: skip
    """The study with stability, scores and controls."""
    passed = study.gate["captioned"].to_numpy(dtype=bool)
    if not passed.any():
        say("    no voxel passed the gate: nothing to check")
        return study
    assert captioner.embed_text is not None
    embed_text, direction = captioner.embed_text, text_direction(texts, captioner.decoder)
    base = {
        "content": hash_array(fitted.coef.values, passed), "decoder": vars(config.decoder),
        "projection": vars(config.projection), "bank": study.settings["bank"], "seed": config.seed,
    }  # fmt: skip
    quality = dict(study.quality)
    say("4/6 stability: captions again on parts of the bank and of the data")

    def stability() -> dict[str, pd.DataFrame]:
        found = stability_tables(
            captioner, fitted.coef, passed, subjects, fitted.alphas, config.stability, embed_text, direction,
            config.seed, progress,
        )  # fmt: skip
        return {} if found is None else {"voxels": found[0], "summary": found[1]}

    stable = steps.frames("stability", {**base, "stability": vars(config.stability)}, stability)
    if stable:
        quality["stability"] = stable["summary"]
    say("5/6 scores: held-out stimuli, round trip, diversity, shuffled weights")

    def control() -> dict[str, pd.DataFrame]:
        mixed = shuffled_control(fitted.coef, config.seed)
        gate = study.gate
        return {"captions": captioner.caption(mixed, fitted.scores, gate=gate).captions}

    shuffled = steps.frames("shuffled", base, control)["captions"]
    vectors, kind = _stimulus_vectors(config, shown, subjects, progress)
    sentence = None
    if vectors is not None:
        regions = dict(zip(fitted.scores["voxel"].values.tolist(), _first_roi(fitted.scores)))

        def scores() -> dict[str, pd.DataFrame]:
            assert vectors is not None
            per_voxel, summary = held_out_scores(
                study.captions, subjects, fitted.voxels, regions, vectors, embed_text, config.seed
            )
            return {"voxels": per_voxel, "summary": summary}

        found = steps.frames("sentence", {**base, "kind": kind}, scores)
        sentence, quality["sentence-level scores"] = found["voxels"], found["summary"]
    if texts is not None:
        image_mean = captioner.project(fitted.coef.isel(voxel=[0]))["bank_direction"].values
        text_mean = direction if config.bank.source != "captions" else None
        quality["round trip"] = round_trip_table(
            study.captions, fitted.coef, texts.vectors, embed_text, text_mean, image_mean, config.seed
        )
    quality["diversity"] = diversity_table(
        {"fitted weights": study.captions, "shuffled weights": shuffled}, embed_text, config.seed
    )
    caveats = list(study.caveats)
    if kind == "images":
        caveats.append(
            "The stimuli have no captions: sentence-level scores compare a voxel's caption with the images themselves, "
            "in the joint space."
        )
    if fitted.truth is not None:
        rows = []
        for name, table in (("fitted weights", study.captions), ("shuffled weights", shuffled)):
            rows.append({"weights": name, **planted_summary(judge_planted(table, fitted.truth), "")})
        quality["planted selectivity"] = pd.DataFrame(rows)
    settings = {**study.settings, "stability": vars(config.stability)}
    if sentence is not None:
        settings["sentence"] = {"stimuli as": kind}
    return dataclasses.replace(
        study, stability=stable.get("voxels"), sentence=sentence, quality=quality, caveats=tuple(caveats),
        settings=settings,
    )  # fmt: skip


def _first_roi(scores: xr.Dataset) -> list[str]:
    if "roi" not in scores.coords:
        return [""] * scores.sizes["voxel"]
    return [str(x).split(";")[0] for x in scores["roi"].values]


def _stimulus_vectors(
    config: CaptionConfig, shown: Any, subjects: list[Subject], progress: bool
) -> tuple[xr.DataArray | None, str]:
    """One vector a held-out stimulus: of its captions, else of its image in a joint space; None with few stimuli."""
    from neuroenc.embedding import TextEmbedder

    ids = pd.unique(np.concatenate([s.Y_test.coords["stimulus"].values for s in subjects]))
    if shown is None or len(ids) < 20:
        return None, ""
    own = shown.sel(ids)
    if own.captions is not None:
        embedder = TextEmbedder(config.space.model, config.space.pretrained or None, progress=progress)
        return embedder.embed_captions(own), "captions"
    test = xr.concat([s.X_test for s in subjects], dim=subjects[0].X_test.dims[0])
    unique, first = np.unique(test.coords["stimulus"].values, return_index=True)
    return xr.DataArray(
        test.values[first], dims=("stimulus", "feature"), coords={"stimulus": unique}
    ), "images"  # fmt: skip


def _summary(study: CaptionStudy, fitted: Fitted) -> dict[str, Any]:
    passed = study.gate["captioned"].to_numpy(dtype=bool)
    scores = study.scores
    out: dict[str, Any] = {
        "n_subjects": len(fitted.voxels),
        "n_voxels": len(passed),
        "n_captioned": int(passed.sum()),
        "n_gated": int((~passed).sum()),
        "median_r": float(np.nanmedian(scores["r"].values[passed])) if passed.any() else None,
    }
    if "noise_ceiling_r" in scores and passed.any():
        out["median_noise_ceiling_r"] = float(np.nanmedian(scores["noise_ceiling_r"].values[passed]))
    quality = study.quality
    if "stability" in quality:
        for row in quality["stability"].to_dict("records"):
            out[f"agreement:{row['kind']}"] = row["mean"]
            out[f"agreement_shuffled_weights:{row['kind']}"] = row["shuffled_weights"]
    if "sentence-level scores" in quality and len(quality["sentence-level scores"]):
        table = quality["sentence-level scores"]
        weight = table["n_voxels"] / table["n_voxels"].sum()
        for name in ("mean", "low", "high", "mean_shuffled", "mean_shuffled_within_roi"):
            out[f"sentence_{name}"] = float((table[name] * weight).sum())
    if "round trip" in quality:
        row = quality["round trip"].iloc[0]
        out |= {"round_trip": float(row["mean percentile"]), "round_trip_p": float(row["p"])}
    if "planted selectivity" in quality:
        for row in quality["planted selectivity"].to_dict("records"):
            prefix = "planted_" if row["weights"] == "fitted weights" else "shuffled_planted_"
            out |= {prefix + k: v for k, v in row.items() if k != "weights"}
    if study.phrases is not None and len(study.phrases):
        out["hallucination_rate"] = float((study.phrases["verdict"] == "unsupported").mean())
    return out


def _closing(summary: dict[str, Any]) -> list[str]:
    lines = ["", f"{summary['n_captioned']} of {summary['n_voxels']} voxels captioned"]
    if summary.get("median_r") is not None:
        lines[-1] += f" (median held-out r {summary['median_r']:.2f})"
    if "sentence_mean" in summary:
        lines.append(
            f"sentence-level score {summary['sentence_mean']:.3f} [{summary['sentence_low']:.3f} "
            f"{summary['sentence_high']:.3f}]; other voxels' captions {summary['sentence_mean_shuffled']:.3f}"
        )
    kinds = [k.split(":")[1] for k in summary if k.startswith("agreement:")]
    if kinds:
        said = [
            f"{k} {summary['agreement:' + k]:.2f} (shuffled weights "
            f"{summary['agreement_shuffled_weights:' + k]:.2f})"
            for k in kinds
        ]
        lines.append("agreement of captions: " + ", ".join(said))
    if "hallucination_rate" in summary:
        lines.append(f"phrases without support: {summary['hallucination_rate']:.0%}")
    if summary.get("planted_family_named") is not None:
        lines.append(
            f"planted family named for {summary['planted_family_named']:.0%} of captioned voxels (shuffled weights "
            f"{summary['shuffled_planted_family_named']:.0%}), planted member for "
            f"{summary['planted_member_named']:.0%}"
        )
        if summary.get("planted_both_named") is not None:
            lines.append(
                f"both families of {summary['planted_n_mixed']} mixed voxels named for "
                f"{summary['planted_both_named']:.0%}"
            )
    return lines
