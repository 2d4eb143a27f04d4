"""Decoding: how often the stimulus that was seen is identified, by the number of candidates and by region."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from neuroenc._core.files import write_text
from neuroenc._core.tables import check_columns
from neuroenc.report._page import Block, Section
from neuroenc.report._style import FAINT, INK, MUTED, category_colours, number, panels, picked, short

_COLUMNS = ("group", "n_voxels", "measure", "n", "accuracy", "low", "high", "chance", "p")
_PANELS = 8
_LABELS = ("subject", "space", "cell", "metric", "name")


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column ``line``: what tells its rows apart besides group and number of candidates."""
    check_columns(table, _COLUMNS, "accuracies of identification")
    told = [c for c in _LABELS if c in table and table[c].astype(str).nunique() > 1]
    told = told or [c for c in _LABELS if c in table][-1:]
    line = table[told].astype(str).agg(", ".join, axis=1) if told else pd.Series("accuracy", table.index)
    return table.assign(line=line)


def plot_identification(table: pd.DataFrame, *, groups: Sequence[str] | None = None) -> Any:
    """Identification accuracy over the number of candidates: a panel for each set of voxels, a line for each metric.

    Parameters
    ----------
    table : DataFrame
        From `neuroenc.encoders.identification_table`; columns ``name, metric, space, subject`` tell lines apart.
    groups : sequence of str, optional
        Which sets of voxels, in this order; default the first 8.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders import identification_table, identify
    >>> f = np.random.default_rng(0).standard_normal((20, 9))
    >>> len(plot_identification(identification_table(identify(f, f, n_permutations=0))).axes)
    1
    """
    table = _named(table)
    curve = table[table["measure"] == "accuracy"]
    shown = picked("group", curve["group"].astype(str), groups, _PANELS)
    lines = list(dict.fromkeys(curve["line"]))
    colours = dict(zip(lines, category_colours(len(lines))))
    with panels(len(shown), lambda c, r: (2.9 * c + 0.9, 2.5 * r + 0.6)) as (figure, grid):
        for axes, name in zip(grid.ravel(), shown):
            part = curve[curve["group"].astype(str) == name]
            for line in lines:
                own = part[part["line"] == line].sort_values("n")
                axes.fill_between(own["n"], own["low"], own["high"], color=colours[line], alpha=0.18, lw=0)
                axes.plot(own["n"], own["accuracy"], "o-", ms=3.5, lw=1.6, color=colours[line], label=short(line, 40))
            level = part.drop_duplicates("n").sort_values("n")
            axes.plot(level["n"], level["chance"], "--", color=MUTED, lw=1, label="chance")
            axes.set_xscale("log")
            ticks = [n for n in (2, 10, 100, 1000, 10_000, 100_000) if n <= level["n"].max()]
            axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
            axes.minorticks_off()
            axes.set(ylim=(0, 1.02), xlabel="candidates")
            axes.grid(axis="y", color=FAINT, lw=0.6)
            voxels = int(part["n_voxels"].iloc[0])
            axes.set_title(f"{short(name, 20)}  ({voxels:,} voxels)", fontsize=9, loc="left", color=INK)
        grid[0, 0].set_ylabel("share identified")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=8)
    return figure


def _by_region(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each set of voxels and line: pairwise, and top-k of all candidates."""
    rows = []
    labels = [c for c in _LABELS if c in table and (table[c].astype(str) != "").any()]
    for keys, part in table.groupby([*labels, "group"], sort=False):
        row: dict[str, Any] = dict(zip([*labels, "group"], keys)) | {"n_voxels": int(part["n_voxels"].iloc[0])}
        first = part[(part["measure"] == "accuracy") & (part["n"] == 2)]
        for one in first.to_dict("records"):
            row |= {"pairwise": one["accuracy"], "pairwise low": one["low"], "pairwise high": one["high"]}
        for one in part[part["measure"] == "top_k"].to_dict("records"):
            row |= {f"top {one['n']}": one["accuracy"], f"chance of top {one['n']}": one["chance"]}
            row |= {f"top {one['n']} p": number(one["p"], "p")}
        rows.append(row)
    return pd.DataFrame(rows)


def decoding_section(table: pd.DataFrame) -> Section:
    """Accuracy of identification: curves over the number of candidates, and a table of regions."""
    table = _named(table)
    whole = table[(table["group"] == "all") & (table["measure"] == "top_k")]
    whole = whole[whole["n"] == whole["n"].min()]
    said = "; ".join(
        f"{row.line}: top {row.n} of all {number(row.accuracy)} (chance {number(row.chance)})"
        for row in whole.itertuples(index=False)
    )
    cells = "cell" in table
    lead = (
        "Which of the held-out stimuli was seen? Each measured response is compared with the responses that the "
        "encoder predicts for all held-out stimuli of the fold, and the most alike is chosen. "
    )
    by_noise = cells and "metric" in table
    lead += (
        "Alike are those of the highest likelihood under Gaussian noise, whose covariance is that of the other folds."
        if by_noise
        else "Alike are those of the highest correlation over voxels."
        if cells
        else "By correlation: over voxels. By likelihood: under Gaussian noise whose covariance is that of the "
        "training rows, each left out."
    )
    drawn = (
        "Share of trials whose stimulus is chosen among so many candidates, expected over all choices of distractors; "
        "bands are 95 % intervals over stimuli. Dashed: chance."
    )
    groups = list(dict.fromkeys(table["group"].astype(str)))
    if len(groups) > _PANELS:
        drawn += f" {_PANELS} of {len(groups)} sets of voxels are drawn; the table has all."
    remark = "p: labels of the stimuli permuted within each fold; of several folds, twice the mean of theirs."

    def export(folder: Path) -> None:
        write_text(folder / "decoding.csv", table.drop(columns="line").to_csv(index=False, float_format="%.9g"))

    figure, about = plot_identification(table), "accuracy of every set of voxels"
    block = Block(figure, f"Identification. {said}.", drawn, _by_region(table), about=about)
    # A comparison writes its tables itself.
    more: dict[str, Any] = {} if cells else {"export": export, "files": ["decoding.csv"]}
    name = "cell-decoding" if cells else "decoding"
    return Section(name, "Decoding", lead, [block], nav="Decoding", remarks=[remark], **more)
