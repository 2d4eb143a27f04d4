"""Accuracy over support size: figures, and the page of an evaluation of in-context encoders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._util.errors import DataError
from neuroenc._util.files import write_text
from neuroenc._util.optional import require
from neuroenc._version import __version__
from neuroenc.report._comparison_inputs import short
from neuroenc.report._comparison_sections import block, section, svg
from neuroenc.report._html import flatten, number, render
from neuroenc.report._report import _origin
from neuroenc.report._style import FAINT, INK, MUTED, STYLE, category_colours

__all__ = ["plot_support_curves", "plot_training_curves", "write_support_report"]

_PANELS = 12
_NEEDED = ("method", "group", "size", "explained_variance")


def _colours(methods: Sequence[str]) -> dict[str, Any]:
    return dict(zip(methods, category_colours(len(methods))))


def plot_support_curves(
    curve: pd.DataFrame, groups: Sequence[str] | None = None, *, reference: Mapping[str, float] | None = None
) -> Any:
    """Mean explained variance over support size, one panel a group and one line a method, with intervals.

    Parameters
    ----------
    curve : DataFrame
        From `neuroenc.encoders.incontext.summarise_curve`: ``method, group, size, explained_variance`` and where known
        ``low, high``. A method with one size is drawn as a horizontal line.
    groups : sequence of str, optional
        By default all, 12 at most.
    reference : mapping of group to float, optional
        Another line, such as the noise ceiling.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> curve = pd.DataFrame({"method": "ridge", "group": "all", "size": [20, 50], "explained_variance": [0.1, 0.2]})
    >>> len(plot_support_curves(curve).axes)
    1
    """
    require("matplotlib", "brain")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    for name in _NEEDED:
        if name not in curve:
            raise DataError(f"the curve has no column {name!r}; found {', '.join(map(str, curve.columns))}.")
    shown = list(dict.fromkeys(curve["group"].astype(str))) if groups is None else [str(g) for g in groups]
    shown = shown[:_PANELS]
    colours = _colours(list(dict.fromkeys(curve["method"])))
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    with rc_context(STYLE):
        wide = 5.4 if columns == 1 else 2.6 * columns + 1.4
        figure = Figure(figsize=(wide, 2.4 * rows + 0.9 if rows > 1 else 3.3), layout="constrained")
        axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False, sharex=True)).ravel()
        sizes = sorted({int(s) for m, part in curve.groupby("method") if part["size"].nunique() > 1
                        for s in part["size"]}) or sorted({int(s) for s in curve["size"]})  # fmt: skip
        alpha = 0.1 if rows > 1 else 0.15
        for axis, group in zip(axes, shown):
            part = curve[curve["group"].astype(str) == group]
            for method, colour in colours.items():
                _line(axis, part[part["method"] == method].sort_values("size"), method, colour, alpha)
            if reference and np.isfinite(reference.get(group, np.nan)):
                axis.axhline(reference[group], color=MUTED, lw=0.8, ls=":")
            axis.axhline(0, color=FAINT, lw=0.8, zorder=0)
            axis.set_xscale("log")
            axis.set_xticks(sizes, [str(s) for s in sizes])
            axis.minorticks_off()
            axis.set_title(short(group), fontsize=9, color=INK)
            # Few stimuli can make a method far worse than the mean: what is above 0 must stay readable.
            top = max(0.02, float(np.nanmax(part["explained_variance"])))
            axis.set_ylim(bottom=max(axis.get_ylim()[0], -0.25 * top))
        for n, axis in enumerate(axes):
            axis.set_visible(n < len(shown))
            if n + columns >= len(shown):
                axis.set_xlabel("support trials")
                axis.tick_params(labelbottom=True)
        figure.supylabel("explained variance (mean over voxels)", fontsize=9)
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False, fontsize=8)
    return figure


def _line(axis: Any, part: pd.DataFrame, method: str, colour: Any, alpha: float) -> None:
    if not len(part):
        return
    values, size = part["explained_variance"].to_numpy(float), part["size"].to_numpy(float)
    if len(part) == 1:
        axis.axhline(values[0], color=colour, lw=1.2, ls="--", label=short(method))
        return
    axis.plot(size, values, color=colour, lw=1.6, marker="o", ms=3.5, label=short(method))
    if "low" in part and np.isfinite(part["low"]).any():
        low, high = part["low"].to_numpy(float), part["high"].to_numpy(float)
        axis.fill_between(size, low, high, color=colour, alpha=alpha, lw=0)


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

    colours = _colours(list(curves))
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
    reference: Mapping[str, float] | None = None,
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
        See `plot_support_curves`; with a column ``kind``, one figure a kind of group.
    comparisons : DataFrame, optional
        From `neuroenc.encoders.incontext.compare_methods`.
    training : mapping of name to DataFrame, optional
        See `plot_training_curves`.
    reference : mapping of group to float, optional
        Mean noise ceilings.
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
    kinds = list(dict.fromkeys(curve["kind"])) if "kind" in curve else ["all"]
    blocks = []
    for kind in kinds:
        part = curve if "kind" not in curve else curve[curve["kind"] == kind]
        groups = list(dict.fromkeys(part["group"].astype(str)))
        caption = "Lines: means over voxels and draws of the support; bands: intervals over both. Dashed: a method "\
                  "with all trials of the pool." + (" Dotted: mean noise ceiling." if reference else "")  # fmt: skip
        if len(groups) > _PANELS:
            caption += f" The first {_PANELS} of {len(groups)} groups are drawn."
        figure = plot_support_curves(part, reference=reference)
        shown = part.drop(columns=["kind"], errors="ignore").dropna(axis="columns", how="all")
        blocks.append(block(
            svg(figure), f"Explained variance over support size: {', '.join(groups[:_PANELS])}", caption, shown,
            heading="" if kind == "all" else f"By {kind}", about=f"explained variance ({kind})", opened=kind == "all",
        ))  # fmt: skip
    made = [section("curves", "Accuracy", "How many trials are enough", "", blocks)]
    if comparisons is not None and len(comparisons):
        made.append(section(
            "comparisons", "Comparisons", "Method against method", "Differences are paired by voxel and draw of the "
            "support; relative: as a share of the second method's mean.",
            [block(None, "", "", comparisons, about="differences", opened=True)],
        ))  # fmt: skip
    if training:
        made.append(section("training", "Training", "Learning curves", "", [
            block(svg(plot_training_curves(training)), "Loss and validation explained variance by step",
                  "The weights of the best validation loss are kept.", None)]))  # fmt: skip
    summary = dict(summary or {})
    context = {
        "title": title, "version": __version__, "tiles": _tiles(curve, summary), "sections": made,
        "notes": [str(n) for n in notes], "summary": [(str(k), number(v, str(k))) for k, v in summary.items()],
        "settings": flatten(dict(settings or {})), "origin": _origin(provenance), "files": [str(f) for f in files],
    }  # fmt: skip
    text = render(context, "comparison.html.j2", ("report.css", "comparison.css"))
    return write_text(Path(folder) / "index.html", text)


def _tiles(curve: pd.DataFrame, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    tiles: list[dict[str, Any]] = [{"value": str(curve["method"].nunique()), "label": "methods"}]
    for name, label in (("n_subjects", "new subjects"), ("n_voxels", "voxels"), ("n_draws", "draws of each support")):
        if name in summary:
            tiles.append({"value": number(summary[name], name), "label": label})
    if summary.get("relative_gain") is not None and "gain_size" in summary:
        said = f"in-context against ridge, {summary['gain_size']} trials"
        tiles.append({"value": f"{100 * summary['relative_gain']:+.0f} %", "label": said})
    return [{"words": False, **tile} for tile in tiles]
