"""Panels: scores of models on tasks, and their ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.tables import check_columns
from neuroenc.report._charts import GREY, draw_matrix
from neuroenc.report._page import Block, Section
from neuroenc.report._style import BLUE, WIDTH, drawing, number, short

_METRICS = {"r": "r, or its share of the ceiling", "rsa": "Spearman r of dissimilarities", "retrieval": "share found"}


def panel_sections(cells: pd.DataFrame, ranks: pd.DataFrame) -> list[Section]:
    """Sections of a panel's page: for each track the ranks with their intervals, and models by tasks.

    Parameters
    ----------
    cells : DataFrame
        ``model, track, task, metric, score, low, high, n``; rows without a score are left out.
    ranks : DataFrame
        ``track`` and the columns of `neuroenc.stats.borda`; may be empty.

    Examples
    --------
    >>> cells = pd.DataFrame({"model": ["a", "b"], "track": "images", "task": "V4/V4/r/images", "metric": "r"})
    >>> cells = cells.assign(score=[0.1, 0.2], low=0.0, high=0.3, n=400)
    >>> columns = ["track", "model", "rank", "rank_low", "rank_high", "points", "low", "high", "n_tasks"]
    >>> [section.id for section in panel_sections(cells, pd.DataFrame(columns=columns))]
    ['scores-images']
    """
    cells = check_columns(cells, ["model", "track", "task", "metric", "score", "low", "high", "n"], "cells")
    ranks = check_columns(ranks, ["track", "model", "rank", "rank_low", "rank_high", "points"], "ranks")
    made = []
    for track in dict.fromkeys(cells["track"]):
        own, placed = cells[(cells["track"] == track) & cells["score"].notna()], ranks[ranks["track"] == track]
        if len(placed):
            made.append(_ranks(track, placed))
        if len(own):
            made.append(_scores(track, own, placed["model"].tolist()))
    return made


def _ranks(track: str, ranks: pd.DataFrame) -> Section:
    ranks = ranks.sort_values(["rank", "model"])
    names, y = [short(m, 40) for m in ranks["model"]], np.arange(len(ranks))
    left = max(0.8, 0.2 + 0.078 * max(map(len, names)))
    height = 0.27 * len(names) + 0.55
    with drawing(WIDTH, height) as figure:
        axes = figure.add_axes((left / WIDTH, 0.42 / height, min(6.0, WIDTH - left - 0.3) / WIDTH, 1 - 0.5 / height))
        axes.hlines(y, ranks["rank_low"], ranks["rank_high"], color=GREY, lw=2)
        axes.plot(ranks["rank"], y, "o", ms=6, mew=0, color=BLUE)
        axes.set(xlim=(0.5, len(ranks) + 0.5), ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(y, names, fontsize=8.5)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines["left"].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("rank")
    said = "; ".join(
        f"{r['model']}: {r['rank']:g} ({r['rank_low']} to {r['rank_high']})" for r in ranks.to_dict("records")[:8]
    )
    lead = (
        "A model's points are the share of the other models that it beats, averaged over tasks. Lines hold the ranks "
        "that the differences of points leave open when tasks are resampled (95 %)."
    )
    shown = ranks.drop(columns="track")
    block = Block(figure, f"Ranks of {len(names)} models. {said}", "", shown, about="ranks")
    return Section(f"ranks-{track}", f"Ranks: {track}", lead, [block], nav=f"Ranks, {track}")


def _scores(track: str, cells: pd.DataFrame, order: list[str]) -> Section:
    models = [*order, *(m for m in dict.fromkeys(cells["model"]) if m not in order)]
    blocks = []
    for metric, rows in cells.groupby("metric", sort=False):
        table = rows.pivot(index="model", columns="task", values="score")
        table = table.reindex(index=[m for m in models if m in table.index], columns=list(dict.fromkeys(rows["task"])))
        columns = ["/".join(str(t).split("/")[:2]) for t in table.columns]
        values = table.to_numpy(float)
        rings = (values == np.nanmax(values, axis=0)) & np.isfinite(values)
        how: dict[str, Any] = {"label": str(metric), "rings": rings if len(table) > 1 else None}
        figure = draw_matrix(values, [str(m) for m in table.index], columns, **how)
        best = table.mean(axis=1).sort_values(ascending=False)
        words = "; ".join(f"{m}: {number(v, digits=2)}" for m, v in best.head(6).items())
        said = f"{_METRICS.get(str(metric), str(metric))}. A frame marks the highest of each task."
        shown = rows[["model", "task", "score", "low", "high", "n"]]
        blocks.append(
            Block(
                figure,
                f"{metric} of {len(table)} models in {len(columns)} tasks. Means: {words}",
                said,
                shown,
                heading=str(metric),
                about=f"{metric}, every cell",
                opened=False,
            )
        )
    lead = "One row a model, one column a task: a subject or session, and a region. Intervals are over stimuli (95 %)."
    return Section(f"scores-{track}", f"Scores: {track}", lead, blocks, nav=f"Scores, {track}")
