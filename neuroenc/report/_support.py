"""Accuracy over support size: figures, and the page of an evaluation of in-context encoders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.files import write_text
from neuroenc._core.optional import require
from neuroenc._core.tables import check_columns
from neuroenc._version import __version__
from neuroenc.report._comparison_inputs import short
from neuroenc.report._comparison_sections import block, section, svg
from neuroenc.report._html import flatten, number, render
from neuroenc.report._icl_figures import plot_support_curves
from neuroenc.report._report import _origin
from neuroenc.report._style import STYLE, category_colours

__all__ = ["curve_figure", "plot_training_curves", "write_support_report"]

_PANELS = 12


def curve_figure(part: pd.DataFrame) -> Any:
    """Curves; a method that used all trials of the pool, and so has one size, is the line to reach."""
    one = part.groupby("method")["size"].transform("nunique") == 1
    one &= part["size"] > part.loc[~one, "size"].max()
    reference = part[one].set_index("group")["explained_variance"].to_dict()
    groups = list(dict.fromkeys(part["group"].astype(str)))[:_PANELS]
    lines = part[~one]
    if "low" not in lines:
        lines = lines.assign(low=lines["explained_variance"], high=lines["explained_variance"])
    figure = plot_support_curves(lines, groups=groups, reference=reference or None)
    top = max(0.02, float(np.nanmax(lines["explained_variance"])))
    for axes in figure.axes:
        # Few stimuli can make a method far worse than the mean: what is above 0 must stay readable.
        axes.set_ylim(bottom=max(axes.get_ylim()[0], -0.25 * top))
    return figure


def plot_training_curves(curves: Mapping[str, pd.DataFrame]) -> Any:
    """Loss and validation of stages of training: tables with ``step, loss, validation_loss, validation_ev``.

    Examples
    --------
    >>> table = pd.DataFrame({"step": [1, 2], "loss": [1.0, 0.9], "validation_loss": 1.0, "validation_ev": 0.1})
    >>> len(plot_training_curves({"pretrain": table}).axes)
    2
    """
    require("matplotlib", "brain")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    colours = dict(zip(curves, category_colours(len(curves))))
    with rc_context(STYLE):
        figure = Figure(figsize=(7.4, 2.7), layout="constrained")
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


def write_support_report(
    folder: str | os.PathLike[str],
    *,
    title: str,
    curve: pd.DataFrame,
    comparisons: pd.DataFrame | None = None,
    training: Mapping[str, pd.DataFrame] | None = None,
    summary: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    provenance: str | None = None,
    files: Sequence[str] = (),
) -> Path:
    """Write ``index.html``, which shows how accuracy grows with the support, into ``folder``.

    The page needs no network and no other file; all text that comes from data is escaped.

    Parameters
    ----------
    folder : path
    title : str
    curve : DataFrame
        From `neuroenc.encoders.incontext.summarise_curve`; with a column ``kind``, one figure a kind of group. A method
        with one size beyond those of the others is a horizontal line.
    comparisons : DataFrame, optional
        From `neuroenc.encoders.incontext.compare_methods`.
    training : mapping of name to DataFrame, optional
        See `plot_training_curves`.
    summary, settings : mapping, optional
    notes, files : sequence of str
    provenance : str, optional
        JSON.

    Returns
    -------
    pathlib.Path
        The page.

    Examples
    --------
    >>> import tempfile
    >>> curve = pd.DataFrame({"method": "ridge", "group": "all", "size": [20, 50], "explained_variance": [0.1, 0.2]})
    >>> write_support_report(tempfile.mkdtemp(), title="Few trials", curve=curve).name
    'index.html'
    """
    check_columns(curve, ("method", "group", "size", "explained_variance"), "curve")
    kinds = list(dict.fromkeys(curve["kind"])) if "kind" in curve else ["all"]
    blocks = []
    for kind in kinds:
        part = curve if "kind" not in curve else curve[curve["kind"] == kind]
        groups = list(dict.fromkeys(part["group"].astype(str)))
        caption = (
            "Means over voxels and draws of the support; bands are intervals over both. Dashed: ridge on all "
            "trials of the pool. Scores far below 0 are cut off."
        )
        if len(groups) > _PANELS:
            caption += f" The first {_PANELS} of {len(groups)} groups are drawn."
        figure = curve_figure(part)
        shown = part.drop(columns=["kind"], errors="ignore").dropna(axis="columns", how="all")
        blocks.append(
            block(
                svg(figure),
                f"Explained variance over support size: {', '.join(groups[:_PANELS])}",
                caption,
                shown,
                heading="" if kind == "all" else f"By {kind}",
                about=f"explained variance ({kind})",
                opened=kind == "all",
            )
        )
    made = [section("curves", "Accuracy", "How many trials are enough", "", blocks)]
    if comparisons is not None and len(comparisons):
        made.append(
            section(
                "comparisons",
                "Comparisons",
                "Method against method",
                "Differences are paired by voxel and draw of the "
                "support; relative: as a share of the second method's mean.",
                [block(None, "", "", comparisons, about="differences", opened=True)],
            )
        )
    if training:
        made.append(
            section(
                "training",
                "Training",
                "Learning curves",
                "",
                [
                    block(
                        svg(plot_training_curves(training)),
                        "Loss and validation explained variance by step",
                        "The weights of the best validation loss are kept.",
                        None,
                    )
                ],
            )
        )
    summary = dict(summary or {})
    context = {
        "title": title,
        "version": __version__,
        "tiles": _tiles(curve, summary),
        "sections": made,
        "notes": [str(n) for n in notes],
        "summary": [(str(k), number(v, str(k))) for k, v in summary.items()],
        "settings": flatten(dict(settings or {})),
        "origin": _origin(provenance),
        "files": [str(f) for f in files],
    }
    text = render(context, "comparison.html.j2", ("report.css", "comparison.css"))
    return write_text(Path(folder) / "index.html", text)


def _tiles(curve: pd.DataFrame, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    tiles: list[dict[str, Any]] = [{"value": str(curve["method"].nunique()), "label": "methods"}]
    for name, label in (("n_subjects", "new subjects"), ("n_voxels", "voxels"), ("n_draws", "draws of each support")):
        if name in summary:
            tiles.append({"value": number(summary[name], name), "label": label})
    if summary.get("relative_gain") is not None and "gain_size" in summary:
        said = f"in-context against {summary.get('gain_baseline', 'ridge')}, {summary['gain_size']} trials"
        tiles.append({"value": f"{100 * summary['relative_gain']:+z.0f} %", "label": said})
    return [{"words": False, **tile} for tile in tiles]
