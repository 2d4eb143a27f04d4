"""Summary, closing lines and page of a study, from the parts that it has."""

from __future__ import annotations

import os
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
from neuroenc.encoders import load_encoder
from neuroenc.report import roi_summary, study_page
from neuroenc.study.incontext.evaluate import curve_text, write_curve
from neuroenc.study.incontext.train import BEFORE, stage_of
from neuroenc.study.stages.compare import comparison_text
from neuroenc.study.stages.leakage import MOST_NEAR, near_summary, near_text, pooled_text
from neuroenc.study.stages.learning import learning_summary
from neuroenc.study.stages.plan import plan_page, plan_text, write_plan
from neuroenc.study.stages.score import merge_subjects
from neuroenc.study.study import Study
from neuroenc.study.text import NOTES, rendered


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
    if study.has("leakage") and study.leakage:
        out |= study.leakage["summary"]
    if study.has("learning") and study.learning:
        out |= learning_summary(study.learning)
    if study.has("decoding") and study.decoding is not None:
        out |= _decoding_summary(study.decoding)
    if study.has("captions"):
        out |= caption_summary(study.captions, len(study.subjects))
        out |= near_summary(study.near[1]) if study.has("near") and study.near is not None else {}
    if study.has("comparison"):
        out |= study.comparison_parts["summary"]
    if study.has("plan"):
        out |= study.plan_parts["summary"]
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
            out |= {f"median_{name}": _median(scores, name), f"captioned_median_{name}": _median(scores, name, passed)}
    quality = {name: table.to_dict("records") for name, table in study.quality.items()}
    for row in quality.get("stability", []):
        kind = row["kind"]
        out |= {"stability_n_voxels": int(row["n_voxels"]), "stability_of_voxels": int(row["of_voxels"])}
        out |= {f"agreement:{kind}": row["mean"], f"agreement_low:{kind}": row["low"]}
        out |= {f"agreement_high:{kind}": row["high"], f"agreement_shuffled_weights:{kind}": row["shuffled_weights"]}
    if quality.get("sentence-level scores"):
        for kind, table in study.quality["sentence-level scores"].groupby("kind", sort=False):
            weight = table["n_voxels"] / table["n_voxels"].sum()
            for name in ("mean", "low", "high", "mean_shuffled", "mean_shuffled_within_roi"):
                out[f"{kind!s}_{name}"] = float((table[name] * weight).sum())
    accuracy = [row for row in quality.get("five-way accuracy", []) if row["roi"] == "all"]
    for kind in dict.fromkeys(row["kind"] for row in accuracy):
        of = [row["accuracy"] for row in accuracy if row["kind"] == kind]
        out[f"five_way_accuracy:{kind}"] = float(np.mean(of))
    for trip in quality.get("round trip", []):
        out |= {"round_trip": float(trip["mean percentile"]), "round_trip_p": float(trip["p"])}
    for row in quality.get("planted selectivity", []):
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
        if name == "five-way accuracy":
            rows = rows[rows["roi"] == "all"]
        if name == "hallucination rate":
            rows = rows.head(1)
        labels = [c for c in ("subject", "kind") if c in rows and rows[c].nunique() > 1]
        for row in rows.to_dict("records"):
            out[", ".join([name, *(str(row[c]) for c in labels)])] = str(row["verdict"])
    return out


def _median(scores: xr.Dataset, name: str, rows: Any = slice(None)) -> float | None:
    """Median over voxels; None where no voxel has a value."""
    values = scores[name].values[rows] if name in scores else np.zeros(0)
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else None


def _score_summary(study: Study) -> dict[str, Any]:
    scores, q = study.scores, study.config.evaluation.q
    ids = np.concatenate([s.responses.coords["stimulus"].values for s in study.subjects])
    summary: dict[str, Any] = {
        "n_voxels": scores.sizes["voxel"],
        "n_stimuli": len(np.unique(ids)),
        "n_samples": study.subjects[0].responses.shape[0],
        **{f"median_{k}": _median(scores, k) for k in ("r", "r2", "ev", "noise_ceiling_r", "r_normalised")},
    }
    if "q_value" in scores:
        passed = (scores["q_value"].values < q) & (scores["r"].values > 0)
        summary |= {"n_significant": int(passed.sum()), "q_level": q}
    if len(study.scores_of) > 1:
        summary |= {f"median_r:{name}": _median(found, "r") for name, found in study.scores_of.items()}
    return summary


def _decoding_summary(table: pd.DataFrame) -> dict[str, Any]:
    """Identification by all voxels: pairwise, and top-1 of all candidates; of the first subject and space."""
    out: dict[str, Any] = {}
    rows = table[table["group"] == "all"].drop_duplicates(["metric", "measure", "n"])
    for name, measure, n in (("pairwise_accuracy", "accuracy", 2), ("top_1_accuracy", "top_k", 1)):
        for row in rows[(rows["measure"] == measure) & (rows["n"] == n)].to_dict("records"):
            p = row["p"] if np.isfinite(row["p"]) else None
            out |= {f"{name}:{row['metric']}": row["accuracy"], f"{name}_p:{row['metric']}": p}
            out[f"{name}_chance"] = row["chance"]
    return out


def with_functions(study: Study) -> xr.Dataset:
    """Scores of the first space; where it was delayed, with the response function of voxels that it predicts."""
    scores = study.scores
    parts = study.response_functions.get(next(iter(study.scores_of))) if study.has("response_functions") else None
    if not parts:
        return scores
    found = merge_subjects(study, parts)
    predicted = scores["r"].values > 0
    if "q_value" in scores:
        predicted &= scores["q_value"].values < study.config.evaluation.q
    variables = {k: x.where(xr.DataArray(predicted, dims="voxel")) for k, x in found.data_vars.items()}
    lags = {"delay": found["delay"].values, "lag": ("delay", found["lag"].values)}
    return scores.assign({k: (x.dims, x.values, x.attrs) for k, x in variables.items()}).assign_coords(lags)


def roi_table(scores: xr.Dataset) -> pd.DataFrame:
    """Regions, and all voxels in the last row where there are several."""
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
    told = study.leakage["summary"] if study.has("leakage") and study.leakage else {}
    if study.has("near") and study.near is not None:
        told = told or near_summary(study.near[1])
    if told.get("share_near_duplicates", 0) > MOST_NEAR:
        notes = [near_text(told), *notes]
    if "median_r_lowest_set" in told:
        notes = [pooled_text(told), *notes]
    if study.has("comparison"):
        notes = [*NOTES["comparison"], *notes]
        if study.comparison.noise_ceiling is None:
            notes.append("No noise ceiling: no stimulus was repeated, so accuracies are not normalised.")
    for one in study.subjects if study.has("scores") else ():
        if one.responses.attrs.get("licence"):
            source = one.responses.attrs.get("source", "")
            notes.append(f"Responses: {source}; licence {one.responses.attrs['licence']}.")
    if study.has("curve"):
        notes = [*NOTES["curve"], *notes, *study.curve_parts["notes"]]
    if study.has("plan"):
        notes = [*NOTES["plan"], *notes]
    return list(dict.fromkeys(notes))


# What each tab of the page depends on. A tab that an earlier command on the same folder made is found by it.
_DATA = ("subjects", "config.encoder", "config.evaluation", "config.seed")
_TABS = {
    "accuracy": (*_DATA, "config.features", "config.decode"),
    "comparison": (*_DATA, "config.features", "config.compare"),
    "captions": (*_DATA, "config.captions"),
}


def _made(study: Study) -> dict[str, dict[str, Any]]:
    """Parts of the page that this study has, each as the arguments of its sections."""
    made: dict[str, dict[str, Any]] = {}
    if study.has("scores"):
        made["accuracy"] = {"scores": with_functions(study), "roi_table": roi_table(study.scores)}
        if study.has("leakage") and study.leakage:
            made["accuracy"] |= {f"leakage:{k}": v for k, v in study.leakage.items() if k != "summary"}
        if study.has("learning") and study.learning:
            made["accuracy"] |= {f"learning:{k}": v for k, v in study.learning.items()}
        if study.has("decoding") and study.decoding is not None:
            made["accuracy"]["decoding"] = study.decoding
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
            part = {k: v for k, v in made[name].items() if v is not None}
            study.store.keep(f"page-{name}", [key, told], partial(dict, part))
            study.store.keep(f"last-page-{name}", key, lambda: {"summary": told})
        elif study.store.has(f"last-page-{name}", key):
            summary = study.store.keep(f"last-page-{name}", key, dict)["summary"]
            made[name] = study.store.keep(f"page-{name}", [key, summary], dict)
    # The store keeps flat parts, and a section takes its own as one.
    for part in (made[name] for name in ("accuracy", "comparison") if name in made):
        for key in [key for key in part if ":" in key]:
            name, _, inner = key.partition(":")
            part.setdefault(name, {})[inner] = part.pop(key)
    for name in study.config.report.without:
        if name == "maps" and "accuracy" in made:
            made["accuracy"]["maps"] = []
        elif len(made) > 1:  # a page needs a part
            made.pop(name, None)
    if "captions" in made:
        made["captions"] |= {"stimuli": _bank_stimuli(study), "figures": study.config.report.figures}
    settings = plain_settings(study)
    origin: dict[str, Any] = {"run": settings, "seed": study.config.seed}
    if study.has("subjects"):
        origin["responses"] = [hash_array(s.responses.values) for s in study.subjects]
    if study.has("curve"):
        origin["subjects"] = [part.digest for part in study.parts]
        made["support"] = study.curve_parts["page"]
    if study.has("plan"):
        made["plan"] = plan_page(study)
        files += write_plan(study, study.out, made["plan"])
    page = study_page(
        study.config.title,
        **made,
        summary=told,
        settings=settings,
        notes=_notes(study),
        provenance=provenance(**origin),
        files=files,
        kicker="Planning a session" if list(made) == ["plan"] else "",
        progress=study.progress,
    )
    return page.write(study.out / "report")


def closing_lines(study: Study) -> list[str]:
    """What a command prints at its end."""
    tables: dict[str, str] = {"curve": curve_text(study)} if study.has("curve") else {}
    if study.has("plan"):
        tables["plan"] = plan_text(study)
    if study.has("scores"):
        tables["regions"] = roi_table(study.scores).to_string(index=False, float_format=lambda x: f"{x:.3f}")
    if study.has("comparison"):
        tables["cells"] = comparison_text(study.comparison)
    kinds = [k.split(":")[1] for k in study.summary if k.startswith("agreement:")]
    if study.has("encoders") and any(isinstance(x, Path) for x in study.encoders.values()):
        tables["encoder"] = where = str(next(iter(study.encoders.values())))
        card = load_encoder(where).card
        if card is not None and card.features:
            tables["input"] = "PICTURES" if card.reads_pictures else "CAPTIONS.csv"
    told = rendered("closing.txt.j2", s=study.summary, captions=study.has("captions"), kinds=kinds, **tables)
    return told.splitlines()
