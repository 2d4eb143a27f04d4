"""Training: learning curves, and what each cell of a comparison costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from neuroenc.report._charts import draw_costs, draw_curves
from neuroenc.report._page import Block, Section
from neuroenc.report._style import category_colours, drawing, legend, short
from neuroenc.report._text import number
from neuroenc.report.sections._cells import Cells, present


def curves_section(cells: Cells, curves: pd.DataFrame) -> Section | None:
    """Validation r by epoch."""
    fits: dict[str, list[pd.DataFrame]] = {}
    rows = []
    by = [c for c in ("fold", "group") if c in curves]
    for cell in cells.names:
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
    words = "; ".join(f"{x['cell']}: {number(x['best validation r'])}" for x in rows[:8])
    drawn = (
        "One line for each fold, with the settings that were chosen; the dot is the epoch that was kept. "
        "Colours are the readouts. Ridge has no curve."
    )
    readouts = set(cells.parts.loc[list(fits), "readout"]) - {"tie"}
    key = legend({k: v for k, v in cells.readout_colours.items() if k in readouts})
    figure, alt = draw_curves(fits, cells.colours()), f"Validation r by epoch. Best of each cell: {words}"
    block = Block(figure, alt, drawn, pd.DataFrame(rows), about="medians over fits", legend=key)
    return Section("curves", "Learning curves", "", [block])


def costs_section(cells: Cells, medians: pd.DataFrame) -> Section | None:
    """Accuracy beside parameters, and time where it is given."""
    known = present(medians, "n_parameters seconds_per_fit seconds n_candidates best_epoch")
    if not {"n_parameters", "seconds_per_fit", "seconds"} & set(known):
        return None
    overall = medians[medians["kind"] == "all"].drop_duplicates("cell").set_index("cell").reindex(cells.names)
    overall = overall.rename_axis("cell").reset_index()
    colours = cells.colours()
    figure = draw_costs(overall, [colours[c] for c in cells.names])
    frame = overall[["cell", "median_r", *known]]
    key = legend({k: v for k, v in cells.readout_colours.items() if k != "tie"}) if cells.parts["readout"].any() else []
    words = "; ".join(
        f"{x['cell']}: " + ", ".join(f"{number(x[c], c)} {c.removeprefix('n_').replace('_', ' ')}" for c in known[:2])
        for x in overall.to_dict("records")[:6]
    )
    lead = "A gain may be capacity: read it beside the number of trained parameters."
    said, alt = "Parameters are on a logarithmic axis.", f"Accuracy and parameters. {words}"
    if {"seconds_per_fit", "seconds"} & set(known):
        said = "Parameters and seconds are on logarithmic axes; seconds a fit are means over settings and folds."
        alt = f"Accuracy, parameters and seconds. {words}"
    block = Block(figure, alt, said, frame, legend=key, about="cost of every cell")
    return Section("costs", "What each cell costs", lead, [block], nav="Costs")


def plot_training_curves(curves: Mapping[str, pd.DataFrame]) -> Any:
    """Loss and validation of stages of training: tables with ``step, loss, validation_loss, validation_ev``.

    Examples
    --------
    >>> table = pd.DataFrame({"step": [1, 2], "loss": [1.0, 0.9], "validation_loss": 1.0, "validation_ev": 0.1})
    >>> len(plot_training_curves({"pretrain": table}).axes)
    2
    """

    colours = dict(zip(curves, category_colours(len(curves))))
    with drawing(7.4, 2.7, "constrained") as figure:
        left, right = figure.subplots(1, 2)
        for name, table in curves.items():
            left.plot(table["step"], table["loss"], color=colours[name], lw=1, ls=":")
            left.plot(table["step"], table["validation_loss"], color=colours[name], lw=1.5, label=short(name))
            right.plot(table["step"], table["validation_ev"], color=colours[name], lw=1.5)
        left.set(xlabel="step", ylabel="loss (dotted: training)")
        right.set(xlabel="step", ylabel="validation explained variance")
        if len(curves) > 1:
            left.legend(frameon=False, fontsize=8)
    return figure
