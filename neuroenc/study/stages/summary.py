"""Figures of captions, and the same in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroenc.captions import CaptionStudy


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
