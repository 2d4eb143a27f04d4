"""Accuracy over the size of the support of a new voxel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.tables import check_columns
from neuroenc.report._page import Block, Section
from neuroenc.report._style import FAINT, INK, MUTED, WIDTH, category_colours, drawing, number, panels, picked, short

_PANELS = 12


def support_sections(
    curve: pd.DataFrame,
    *,
    comparisons: pd.DataFrame | None = None,
    training: Mapping[str, pd.DataFrame] | None = None,
    numbers: Mapping[str, Any] | None = None,
) -> list[Section]:
    """Sections on how accuracy grows with the support.

    Parameters
    ----------
    curve : DataFrame
        From `neuroenc.encoders.incontext.summarise_curve`: ``method, group, size, explained_variance``; with a column
        ``kind``, one figure a kind of group; with a column ``select``, a line for each selector of a method's support.
        A method with one size beyond those of the others is a horizontal line.
    comparisons : DataFrame, optional
        From `neuroenc.encoders.incontext.compare_methods`.
    training : mapping of name to DataFrame, optional
        See `plot_training_curves`.
    numbers : mapping, optional
        Of the run, for the first line: ``n_subjects, n_voxels, n_draws, relative_gain, gain_size, gain_baseline``.

    Examples
    --------
    >>> curve = pd.DataFrame({"method": "ridge", "group": "all", "size": [20, 50], "explained_variance": [0.1, 0.2]})
    >>> [section.title for section in support_sections(curve)]
    ['How many trials are enough']
    """
    check_columns(curve, ("method", "group", "size", "explained_variance"), "curve")
    blocks = []
    for kind in list(dict.fromkeys(curve["kind"])) if "kind" in curve else ["all"]:
        part = curve if "kind" not in curve else curve[curve["kind"] == kind]
        groups = list(dict.fromkeys(part["group"].astype(str)))
        caption = (
            "Means over voxels and draws of the support; bands are intervals over both. Dashed: ridge on all "
            "trials of the pool. Scores far below 0 are cut off."
        )
        if "pairwise" in part and part["pairwise"].notna().any():
            caption += (
                " Pairwise (in the table): share of pairs of queries that are told apart by the correlation of "
                "predicted and measured responses over all voxels; chance .5. Its interval "
                "is over subjects and draws; of one subject, over draws alone."
            )
        if len(groups) > _PANELS:
            caption += f" The first {_PANELS} of {len(groups)} groups are drawn."
        figure = plot_support_curves(part, groups=groups[:_PANELS])
        alt = f"Explained variance over support size: {', '.join(groups[:_PANELS])}"
        table = part.drop(columns=["kind"], errors="ignore").dropna(axis="columns", how="all")
        heading, about = "" if kind == "all" else f"By {kind}", f"explained variance ({kind})"
        blocks.append(Block(figure, alt, caption, table, heading=heading, about=about, opened=kind == "all"))
    lead = "The support is what a model may see of a new voxel: that many stimuli with the voxel's responses."
    first: dict[str, Any] = {"tiles": _tiles(curve, numbers or {}), "terms": ["support", "explained variance"]}
    made = [Section("curves", "How many trials are enough", lead, blocks, nav="Accuracy", **first)]
    if comparisons is not None and len(comparisons):
        lead = "Differences are paired by voxel and draw of the support; relative: of the second method's mean."
        if "against" in comparisons:
            lead += " Supports are chosen by the selectors select (of a) and against (of b)."
        blocks = [Block(table=comparisons, about="differences", opened=True)]
        made.append(Section("comparisons", "Method against method", lead, blocks, nav="Comparisons"))
    if training:
        caption = "The weights of the best validation loss are kept."
        alt = "Loss and validation explained variance by step"
        blocks = [Block(plot_training_curves(training), alt, caption)]
        made.append(Section("training", "Learning curves", "", blocks, nav="Training"))
    return made


def _tiles(curve: pd.DataFrame, numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    tiles = [(str(curve["method"].nunique()), "methods")]
    for name, label in (("n_subjects", "new subjects"), ("n_voxels", "voxels"), ("n_draws", "draws of each support")):
        if name in numbers:
            tiles.append((number(numbers[name], name), label))
    if numbers.get("relative_gain") is not None and "gain_size" in numbers:
        said = f"in-context against {numbers.get('gain_baseline', 'ridge')}, {numbers['gain_size']} trials"
        tiles.append((f"{100 * numbers['relative_gain']:+z.0f} %", said))
    return tiles


def plot_support_curves(
    table: pd.DataFrame,
    *,
    groups: Sequence[str] | None = None,
    reference: Mapping[str, float] | None = None,
    labels: tuple[str, str] = ("support images", "explained variance"),
) -> Any:
    """Score over the size of the support: a panel a group, a line a method, bands for intervals.

    Parameters
    ----------
    table : DataFrame
        From `neuroenc.encoders.incontext.summarise_curve`: ``method, group, size, explained_variance, low, high``; with
        a column ``select``, a line for each method and selector.
    groups : sequence of str, optional
        Which, in this order; default the first 12.
    reference : mapping of group to number, optional
        A dashed line, such as an encoder fitted to the whole session; by default the method that has one size only,
        beyond those of the others.
    labels : tuple of str
        Of the two axes.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"method": "ridge", "group": "all", "size": [20, 100], "explained_variance": [0.1, 0.2],
    ...                       "low": [0.08, 0.18], "high": [0.12, 0.22]})
    >>> len(plot_support_curves(table).axes)
    1
    """

    check_columns(table, ("method", "group", "size", "explained_variance"), "table")
    if "select" in table and table["select"].nunique() > 1:
        by = table["select"].where(~table["select"].isin(["", "random"]), "")
        table = table.assign(method=table["method"].where(by == "", table["method"] + " [" + by + "]"))
    if reference is None:
        one = table.groupby("method")["size"].transform("nunique") == 1
        one &= table["size"] > table.loc[~one, "size"].max()
        reference = table[one].set_index("group")["explained_variance"].to_dict()
        table = table[~one]
    if "low" not in table or "high" not in table:
        table = table.assign(low=table["explained_variance"], high=table["explained_variance"])
    methods, groups = list(dict.fromkeys(table["method"])), picked("group", table["group"], groups, _PANELS)
    colours = dict(zip(methods, category_colours(len(methods))))
    sizes = sorted(int(s) for s in table["size"].unique())
    with panels(len(groups), lambda c, n: (WIDTH, 2.3 * n + 0.55) if c > 1 else (6.4, 3.5), share=True) as (
        figure,
        grid,
    ):
        for axes, group in zip(grid.ravel(), groups):
            for method in methods:
                part = table[(table["method"] == method) & (table["group"] == group)].sort_values("size")
                axes.fill_between(part["size"], part["low"], part["high"], color=colours[method], alpha=0.16, lw=0)
                line = {"color": colours[method], "label": method, "ms": 3.4, "lw": 1.5}
                axes.plot(part["size"], part["explained_variance"], "o-", **line)
            if group in reference:
                axes.axhline(reference[group], color=MUTED, lw=1, dashes=(4, 2.5), zorder=1)
            axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
            # A logarithmic axis has no 0, the size at which other subjects alone are known.
            scale = {"linthresh": sizes[1], "linscale": 0.5} if sizes[0] == 0 and len(sizes) > 1 else None
            axes.set_xscale("log" if scale is None else "symlog", **scale or {})
            axes.set_xticks(sizes, [str(s) for s in sizes])
            axes.minorticks_off()
            axes.set_title(group, fontsize=9.5, loc="left", color=INK)
        for axes in grid.ravel()[: len(groups)][-grid.shape[1] :]:  # the last one of each column
            axes.set_xlabel(labels[0])
            axes.tick_params(labelbottom=True)
        for row in grid:
            row[0].set_ylabel(labels[1])
        # Few stimuli can make a method far worse than the mean: what is above 0 must stay readable.
        top = max(0.02, float(np.nanmax(table["explained_variance"])))
        for axes in figure.axes:
            axes.set_ylim(bottom=max(axes.get_ylim()[0], -0.25 * top))
        handles, wide = grid.ravel()[0].get_legend_handles_labels(), min(5 if len(groups) > 1 else 3, len(methods))
        figure.legend(*handles, loc="outside upper left", ncols=wide, frameon=False, fontsize=8.5)
    return figure


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
