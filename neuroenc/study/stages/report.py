"""Summary, closing lines and page of a study, from the parts that it has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import ConfigError
from neuroenc._core.files import hash_array
from neuroenc._core.provenance import provenance
from neuroenc.captions import CaptionStudy
from neuroenc.data import Stimuli
from neuroenc.report import roi_summary, study_page
from neuroenc.study.incontext.evaluate import NOTES as CURVE_NOTES, curve_lines, write_curve
from neuroenc.study.incontext.train import BEFORE, stage_of
from neuroenc.study.stages.compare import NOTES, comparison_lines
from neuroenc.study.study import Study


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def plain_settings(study: Study) -> dict[str, Any]:
    """Settings without the folders of this machine, and without tables that nothing was made by."""
    config, unread = study.config, {"compute", "report"}
    if not study.has("subjects"):
        unread |= {"data", "features", "encoder", "evaluation"}
    record: dict[str, Any] = _plain(config.model_dump(exclude_none=True, exclude=unread))
    if config.incontext and study.has("curve"):
        record["incontext"] |= {name: stage_of(config.incontext, name).model_dump() for name in BEFORE}
    return record


def summarise(study: Study) -> dict[str, Any]:
    """Figures of all that is known, flat."""
    out: dict[str, Any] = dict(study.curve_parts["summary"]) if study.has("curve") else {}
    if study.has("scores"):
        out |= _score_summary(study)
    if study.has("captions"):
        out |= caption_summary(study.captions, len(study.subjects))
    if study.has("comparison"):
        out |= study.comparison_parts["summary"]
    return out


def caption_summary(study: CaptionStudy, n_subjects: int) -> dict[str, Any]:
    """Figures of a study."""
    passed = study.gate["captioned"].to_numpy(dtype=bool)
    scores = study.scores
    out: dict[str, Any] = {
        "n_subjects": n_subjects,
        "n_voxels": len(passed),
        "n_captioned": int(passed.sum()),
        "n_gated": int((~passed).sum()),
    }
    # Without a prefix over all voxels, as n_voxels is; those of captioned ones say so.
    for name in ("r", "noise_ceiling_r"):
        if name in scores:
            values = scores[name].values
            for prefix, known in (("", values[~np.isnan(values)]), ("captioned_", values[passed & ~np.isnan(values)])):
                out[f"{prefix}median_{name}"] = float(np.median(known)) if len(known) else None
    quality = study.quality
    if "stability" in quality:
        for row in quality["stability"].to_dict("records"):
            out |= {"stability_n_voxels": int(row["n_voxels"]), "stability_of_voxels": int(row["of_voxels"])}
            out[f"agreement:{row['kind']}"] = row["mean"]
            out[f"agreement_low:{row['kind']}"], out[f"agreement_high:{row['kind']}"] = row["low"], row["high"]
            out[f"agreement_shuffled_weights:{row['kind']}"] = row["shuffled_weights"]
    if "sentence-level scores" in quality and len(quality["sentence-level scores"]):
        table = quality["sentence-level scores"]
        weight = table["n_voxels"] / table["n_voxels"].sum()
        for name in ("mean", "low", "high", "mean_shuffled", "mean_shuffled_within_roi"):
            out[f"sentence_{name}"] = float((table[name] * weight).sum())
    if "round trip" in quality:
        trip = quality["round trip"].iloc[0]
        out |= {"round_trip": float(trip["mean percentile"]), "round_trip_p": float(trip["p"])}
    if "planted selectivity" in quality:
        for row in quality["planted selectivity"].to_dict("records"):
            prefix = "planted_" if row["weights"] == "fitted weights" else "shuffled_planted_"
            out |= {f"{prefix}{k}": v for k, v in row.items() if k != "weights"}
    out |= {f"verdict:{name}": said for name, said in verdicts(study).items()}
    if "fails" in study.captions:
        best = study.captions[study.captions["rank"] == 1]
        out["n_failing_a_control"] = int((best["fails"] != "").sum())
    if study.phrases is not None and len(study.phrases):
        out["hallucination_rate"] = float((study.phrases["verdict"] == "unsupported").mean())
    return out


def verdicts(study: CaptionStudy) -> dict[str, str]:
    """What the controls say, by check; of several rows (subjects, kinds) each by its name."""
    out: dict[str, str] = {}
    for name, table in study.quality.items():
        if "verdict" not in table or not len(table):
            continue
        rows = table[table["verdict"] != "the control"]
        if name == "hallucination rate":
            rows = rows.head(1)
        label = next((c for c in ("subject", "kind") if c in rows), None)
        for row in rows.to_dict("records"):
            key = f"{name}, {row[label]}" if label is not None and len(rows) > 1 else name
            out[key] = str(row["verdict"])
    return out


def _median(scores: xr.Dataset, name: str) -> float | None:
    return float(np.nanmedian(scores[name].values)) if name in scores else None


def _score_summary(study: Study) -> dict[str, Any]:
    scores, q = study.scores, study.config.evaluation.q
    whole = roi_table(scores).iloc[-1]
    ids = np.concatenate([s.responses.coords["stimulus"].values for s in study.subjects])
    summary: dict[str, Any] = {
        "n_voxels": scores.sizes["voxel"],
        "n_stimuli": len(np.unique(ids)),
        "n_samples": study.subjects[0].responses.shape[0],
        "median_r": float(whole["median_r"]),
        "median_r2": _median(scores, "r2"),
        "median_ev": _median(scores, "ev"),
        "median_noise_ceiling_r": float(whole["median_ceiling_r"]) if "median_ceiling_r" in whole else None,
        "median_r_normalised": float(whole["median_r_normalised"]) if "median_r_normalised" in whole else None,
    }
    if "q_value" in scores:
        passed = (scores["q_value"].values < q) & (scores["r"].values > 0)
        summary |= {"n_significant": int(passed.sum()), "q_level": q}
    if len(study.scores_of) > 1:
        summary |= {f"median_r:{name}": _median(found, "r") for name, found in study.scores_of.items()}
    return summary


def roi_table(scores: xr.Dataset) -> pd.DataFrame:
    """Regions, and all voxels in the last row where there are several: the headline is read from it."""
    table = roi_summary(scores)
    if len(table) > 1:
        table = pd.concat([table, roi_summary(scores.drop_vars("roi"))], ignore_index=True)
    return table.dropna(axis="columns", how="all")


def _notes(study: Study) -> list[str]:
    notes = list(study.config.notes) if not study.has("captions") else []
    if study.has("scores"):
        if "noise_ceiling_r" not in study.scores:
            notes.append("No noise ceiling: no stimulus was repeated, so accuracies are not normalised.")
        if len(study.scores_of) > 1:
            notes.append(f"Accuracies are those of the feature space {next(iter(study.scores_of))!r}, the first.")
    if study.has("comparison"):
        notes = [*NOTES, *notes]
        if study.comparison.noise_ceiling is None:
            notes.append("No noise ceiling: no stimulus was repeated, so accuracies are not normalised.")
    for one in study.subjects if study.has("scores") else ():
        if one.responses.attrs.get("licence"):
            source = one.responses.attrs.get("source", "")
            notes.append(f"Responses: {source}; licence {one.responses.attrs['licence']}.")
    if study.has("curve"):
        notes = [*CURVE_NOTES, *notes, *study.curve_parts["notes"]]
    return list(dict.fromkeys(notes))


# What each tab of the page depends on. A tab that an earlier command on the same folder made is found by it.
_DATA = ("subjects", "config.encoder", "config.evaluation", "config.seed")
_TABS = {
    "accuracy": (*_DATA, "config.features"),
    "comparison": (*_DATA, "config.features", "config.compare"),
    "captions": (*_DATA, "config.captions"),
}


def _made(study: Study) -> dict[str, dict[str, Any]]:
    """Parts of the page that this study has, each as the arguments of its sections."""
    made: dict[str, dict[str, Any]] = {}
    if study.has("scores"):
        made["accuracy"] = {"scores": study.scores, "roi_table": roi_table(study.scores)}
    if study.has("comparison"):
        found, config = study.comparison, study.config.compare
        assert config is not None
        parts = {k: v for k, v in study.comparison_parts.items() if k != "summary"}
        several = len(found.cells) > 1
        made["comparison"] = {
            "scores": found.scores,
            # No two runs take the same time, and the page is to be the same.
            "table": found.table().drop(columns=["seconds", "seconds_per_fit"], errors="ignore"),
            "pairs": found.pairwise(config.q) if several else None,
            "winner": found.winner(config.q) if several else None,
            **parts,
        }
    if study.has("captions"):
        made["captions"] = {"study": study.captions}
    return made


def _flat(part: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of sections as values that the store keeps; layers are a map and a table for each readout."""
    out = {k: v for k, v in part.items() if v is not None and k != "layers"}
    layers = part.get("layers", {})
    for number, (table, frame) in enumerate(layers.values()):
        out |= {f"layers{number}-map": table, f"layers{number}-table": frame}
    return {**out, "readouts": list(layers)}


def _nested(part: dict[str, Any]) -> dict[str, Any]:
    readouts = part.pop("readouts")
    pairs = {r: (part.pop(f"layers{n}-map"), part.pop(f"layers{n}-table")) for n, r in enumerate(readouts)}
    return {**part, "layers": pairs} if pairs else part


def _stimuli_key(stimuli: Stimuli | None) -> Any:
    """What tells that stimuli are the same, without decoding files: their size and time of change."""
    if stimuli is None:
        return None
    if isinstance(stimuli.images, list):
        files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in map(Path, stimuli.images)]
        return [stimuli.ids, stimuli.captions, files]
    pixels = stimuli.content_hash() if isinstance(stimuli.images, np.ndarray) else None
    return [stimuli.ids, stimuli.captions, pixels]


def _bank_stimuli(study: Study) -> Any:
    """Images of the bank, for the evidence of captions."""
    if study.has("captioner"):
        return study.captioner.stimuli
    source = study.config.captions.bank.source if study.config.captions else ""
    return {"stimuli": study.stimuli, "unseen": study.unseen}.get(source)


def write_study(study: Study) -> Path:
    """Write ``OUT/report``, one page with a tab for each kind of result, and the tables beside it; the page's path.

    Results of other commands on the same folder, data and settings have their tabs too.
    """
    if study.out is None:
        raise ConfigError('the study has no folder to write to. Next step: Study(..., out="study").')
    if study.has("captions"):
        study.captions.save(study.out / "study")
    files = write_curve(study, study.out) if study.has("curve") else []
    made: dict[str, Any] = _made(study)
    seen = _stimuli_key(study.stimuli if study.has("stimuli") else None)
    # No two runs take the same time, and the page is to be the same.
    told = {k: v for k, v in study.summary.items() if not k.startswith("seconds")}
    for name, reads in _TABS.items():
        key = [seen, *(study.content(x) for x in reads)]
        if name in made:
            study.store.keep(f"tab-{name}", [key, told], partial(_flat, made[name]))
            study.store.keep(f"last-{name}", key, lambda: {"summary": told})
        elif study.store.has(f"last-{name}", key):
            summary = study.store.keep(f"last-{name}", key, dict)["summary"]
            made[name] = _nested(study.store.keep(f"tab-{name}", [key, summary], dict))
    for name in study.config.report.without:
        if name == "maps" and "accuracy" in made:
            made["accuracy"]["maps"] = []
        elif len(made) > 1:  # a page needs a part
            made.pop(name, None)
    if "captions" in made:
        made["captions"]["stimuli"] = _bank_stimuli(study)
    settings = plain_settings(study)
    origin: dict[str, Any] = {"run": settings, "seed": study.config.seed}
    if study.has("subjects"):
        origin["responses"] = [hash_array(s.responses.values) for s in study.subjects]
    if study.has("curve"):
        origin["subjects"] = [part.digest for part in study.parts]
        made["support"] = study.curve_parts["page"]
    page = study_page(
        study.config.title,
        **made,
        summary=told,
        settings=settings,
        notes=_notes(study),
        provenance=provenance(**origin),
        files=files,
        progress=study.progress,
    )
    return page.write(study.out / "report")


def closing_lines(study: Study) -> list[str]:
    """What a command prints at its end."""
    summary, lines = study.summary, curve_lines(study) if study.has("curve") else []
    if study.has("scores"):
        lines += ["", roi_table(study.scores).to_string(index=False, float_format=lambda x: f"{x:.3f}"), ""]
        parts = [f"median r {summary['median_r']:.4f} over {summary['n_voxels']} voxels"]
        if summary.get("median_r_normalised") is not None:
            parts.append(f"{summary['median_r_normalised']:.3f} of the ceiling")
        if "n_significant" in summary:
            parts.append(f"{summary['n_significant']} voxels above chance (q < {summary['q_level']})")
        lines.append(", ".join(parts))
    if study.has("captions"):
        lines += caption_lines(summary)
    if study.has("comparison"):
        lines += comparison_lines(study.comparison, summary)
    return lines


def caption_lines(summary: dict[str, Any]) -> list[str]:
    """The figures in words."""
    lines = ["", f"{summary['n_captioned']} of {summary['n_voxels']} voxels captioned"]
    if summary.get("captioned_median_r") is not None:
        lines[-1] += f" (their median held-out r {summary['captioned_median_r']:.2f})"
    if "sentence_mean" in summary:
        lines.append(
            f"sentence-level score {summary['sentence_mean']:.3f} [{summary['sentence_low']:.3f} "
            f"{summary['sentence_high']:.3f}]; other voxels' captions {summary['sentence_mean_shuffled']:.3f}"
        )
    kinds = [k.split(":")[1] for k in summary if k.startswith("agreement:")]
    if kinds:
        said = [
            f"{k} {summary['agreement:' + k]:.2f} (shuffled weights {summary['agreement_shuffled_weights:' + k]:.2f})"
            for k in kinds
        ]
        n, of = summary["stability_n_voxels"], summary["stability_of_voxels"]
        on = f"; measured on {n:,} of {of:,} captioned voxels" if n < of else ""
        lines.append("agreement of captions: " + ", ".join(said) + on)
    if "hallucination_rate" in summary:
        lines.append(f"phrases without support: {summary['hallucination_rate']:.0%}")
    lines += [f"{k.removeprefix('verdict:')}: {said}" for k, said in summary.items() if k.startswith("verdict:")]
    if summary.get("n_failing_a_control") is not None:
        lines.append(
            f"captions that do not exceed one of their controls: {summary['n_failing_a_control']} of "
            f"{summary['n_captioned']} (marked in the report, column fails of captions.csv)"
        )
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
