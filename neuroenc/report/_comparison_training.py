"""Sections on training: learning curves, and what each cell costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from neuroenc.report._comparison_figures import draw_costs, draw_curves
from neuroenc.report._comparison_inputs import legend
from neuroenc.report._comparison_sections import Page, block, section, svg
from neuroenc.report._html import number

__all__ = ["costs_section", "curves_section"]


def curves_section(page: Page, curves: pd.DataFrame) -> dict[str, Any] | None:
    """Validation r by epoch."""
    fits: dict[str, list[pd.DataFrame]] = {}
    rows = []
    by = [c for c in ("fold", "group") if c in curves]
    for cell in page.cells:
        own = curves[curves["cell"].astype(str) == cell]
        own = own[np.isfinite(own["validation_r"].to_numpy(float))]
        if not len(own):
            continue
        chosen = []
        for _, part in own.groupby(by, sort=True) if by else [(None, own)]:
            # The settings that were chosen: those with the highest validation r at their best epoch.
            if "candidate" in part:
                peak = part.groupby("candidate", sort=True)["validation_r"].max()
                part = part[part["candidate"] == peak.idxmax()]
            chosen.append(part.sort_values("epoch", kind="stable"))
        fits[cell] = chosen
        at = [part.loc[part["validation_r"].idxmax()] for part in chosen]
        row = {
            "cell": cell,
            "fits": len(chosen),
            "median epochs": round(float(np.median([p["epoch"].max() for p in chosen]))),
            "best epoch": round(float(np.median([x["epoch"] for x in at]))),
            "best validation r": float(np.median([x["validation_r"] for x in at])),
        }
        if "loss" in own:
            row["loss at best"] = float(np.median([x["loss"] for x in at]))
        rows.append(row)
    if not fits:
        return None
    frame = pd.DataFrame(rows)
    words = "; ".join(f"{x['cell']}: {number(x['best validation r'])}" for x in rows[:8])
    return section(
        "curves",
        "Learning curves",
        "Learning curves",
        "",
        [
            block(
                svg(draw_curves(fits, page.cell_colours())),
                f"Validation r by epoch. Best of each cell: {words}",
                "One line for each fold, with the settings that were chosen; the dot is the epoch that was kept. "
                "Colours are the readouts. Ridge has no curve.",
                frame,
                about="medians over fits",
                opened=len(frame) <= 12,
                key=legend(
                    {
                        k: v
                        for k, v in page.readout_colours.items()
                        if k in set(page.parts.loc[list(fits), "readout"]) and k != "tie"
                    }
                ),
            )
        ],
    )


def costs_section(page: Page, medians: pd.DataFrame) -> dict[str, Any] | None:
    """Accuracy beside parameters, and time where it is given."""
    wanted = ["n_parameters", "seconds_per_fit", "seconds", "n_candidates", "best_epoch"]
    known = [c for c in wanted if c in medians]
    if not {"n_parameters", "seconds_per_fit", "seconds"} & set(known):
        return None
    overall = medians[medians["kind"] == "all"].drop_duplicates("cell").set_index("cell").reindex(page.cells)
    overall = overall.rename_axis("cell").reset_index()
    colours = page.cell_colours()
    figure = draw_costs(overall, [colours[c] for c in page.cells])
    frame = overall[["cell", "median_r", *known]]
    key = legend({k: v for k, v in page.readout_colours.items() if k != "tie"}) if page.parts["readout"].any() else []
    words = "; ".join(
        f"{x['cell']}: " + ", ".join(f"{number(x[c], c)} {c.removeprefix('n_').replace('_', ' ')}" for c in known[:2])
        for x in overall.to_dict("records")[:6]
    )
    lead = "A gain may be capacity: read it beside the number of trained parameters."
    timed = bool({"seconds_per_fit", "seconds"} & set(known))
    said = "Parameters are on a logarithmic axis."
    if timed:
        said = "Parameters and seconds are on logarithmic axes; seconds a fit are means over settings and folds."
    alt = f"Accuracy{', parameters and seconds' if timed else ' and parameters'}. {words}"
    return section(
        "costs",
        "Costs",
        "What each cell costs",
        lead,
        [block(svg(figure), alt, said, frame, key=key, about="cost of every cell")],
    )
