"""How far test stimuli are from training stimuli, near duplicates, and accuracy over the distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.tables import check_columns
from neuroenc.report._page import Block, Section
from neuroenc.report._style import BLUE, FAINT, INK, MUTED, ORANGE, WIDTH, drawing, number, short, write


def leakage_section(leakage: Mapping[str, Any]) -> Section:
    """Section on the nearest training stimulus of each test stimulus.

    Parameters
    ----------
    leakage : mapping
        ``table`` (DataFrame: ``space, stimulus, nearest, similarity, near, random_similarity, accuracy``), ``spaces``
        (``space, n_test, near, median_similarity, random_similarity, slope, slope_low, slope_high``), ``sets``
        (``set, n_test, median_r``), ``level`` (similarity of near duplicates), optionally ``pairs`` (``stimulus,
        nearest, similarity``) and their ``pictures`` (pair, 2, y, x, 3), uint8.

    Examples
    --------
    >>> table = pd.DataFrame({"space": "pixels", "stimulus": list("abc"), "nearest": "z", "near": False,
    ...                       "similarity": [0.1, 0.5, 0.3], "random_similarity": 0.2, "accuracy": [0.1, 0.3, 0.2]})
    >>> spaces = pd.DataFrame({"space": ["pixels"], "n_test": 3, "near": 0, "median_similarity": 0.3,
    ...                        "random_similarity": 0.2, "slope": 0.5, "slope_low": 0.4, "slope_high": 0.6})
    >>> leakage_section({"table": table, "spaces": spaces, "sets": pd.DataFrame(), "level": 0.95}).title
    'How far the test pictures are from the training ones'
    """
    table, spaces = leakage["table"], leakage["spaces"]
    check_columns(table, ("space", "stimulus", "nearest", "similarity", "near", "accuracy"), "leakage")
    first = spaces.iloc[0]
    share, name = first["near"] / first["n_test"], str(first["space"])
    lead = (
        "Of each test stimulus the nearest training stimulus: cosine of features less their mean over stimuli (of "
        "pixels: small grey pictures), 1 for equal ones. Near duplicates let an encoder repeat what it was fitted to; "
        "test stimuli that are all far from training ask for generalisation."
    )
    said = (
        f"{int(first['near'])} of {int(first['n_test'])} test stimuli ({100 * share:.1f} %) have a near duplicate "
        f"among the training stimuli ({name}, similarity of {leakage['level']:g} or more). Median similarity "
        f"{number(first['median_similarity'])}, in a random split of the same sizes "
        f"{number(first['random_similarity'])}."
    )
    if np.isfinite(first["slope"]):
        said += (
            f" Accuracy of a stimulus that is .1 nearer differs by {0.1 * first['slope']:+.3f} "
            f"({0.1 * first['slope_low']:+.3f} to {0.1 * first['slope_high']:+.3f})."
        )
    drawn = (
        "Left: similarity of the nearest training stimulus; the line is a random split of the same sizes. Right: "
        "accuracy of each test stimulus (correlation over voxels of its predicted and measured pattern) over that "
        "similarity, and means of tenths of the stimuli. A slope need not be leakage: common stimuli have near "
        "neighbours and may be easier."
    )
    blocks = [Block(plot_similarity(table, name), said, f"{said} {drawn}", spaces, about="spaces")]
    sets = leakage.get("sets")
    if sets is not None and len(sets):
        blocks.append(
            Block(
                table=sets,
                heading="By test set",
                caption="Median r over voxels, and without test stimuli that have a near duplicate in training."
                + (" Beside it random splits of the same sizes: mean, lowest, highest." if "random_r" in sets else ""),
                about="test sets",
                opened=True,
            )
        )
    pairs, pictures = leakage.get("pairs"), leakage.get("pictures")
    if pairs is not None and pictures is not None and len(pictures):
        words = "; ".join(f"{p.stimulus} and {p.nearest}: {p.similarity:.3f}" for p in pairs.itertuples())
        said = "Test stimuli (above) and training stimuli (below) that are nearest to each other."
        blocks.append(Block(plot_pairs(pairs, pictures), words, said, heading="The nearest pairs"))
    elif pairs is not None and len(pairs):
        blocks.append(Block(table=pairs, heading="The nearest pairs", about="pairs"))
    title = "How far the test pictures are from the training ones"
    tiles = [(f"{100 * share:.0f} %", "test stimuli with a near duplicate in training")]
    return Section("leakage", title, lead, blocks, nav="Leakage", tiles=tiles if share > 0 else [])


def plot_similarity(table: pd.DataFrame, space: str | None = None) -> Any:
    """Similarity of the nearest training stimulus, and accuracy over it.

    Parameters
    ----------
    table : DataFrame
        ``space, similarity, accuracy`` and optionally ``random_similarity``; see `leakage_section`.
    space : str, optional
        Default: the first.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> table = pd.DataFrame({"space": "pixels", "similarity": [0.1, 0.5, 0.3], "accuracy": [0.1, 0.3, 0.2]})
    >>> len(plot_similarity(table).axes)
    2
    """
    part = table[table["space"] == (space or table["space"].iloc[0])]
    x, y = part["similarity"].to_numpy(float), part["accuracy"].to_numpy(float)
    random = part["random_similarity"].to_numpy(float) if "random_similarity" in part else np.full(len(x), np.nan)
    random = random[np.isfinite(random)]
    bins = np.linspace(min(0.0, float(np.nanmin(x)), *random), 1.0, 41)
    with drawing(WIDTH, 3.2, "constrained") as figure:
        left, right = figure.subplots(1, 2)
        left.hist(x, bins, color=BLUE, alpha=0.75, lw=0, label="this split")
        if len(random):
            weights = np.full(len(random), len(x) / len(random))
            left.hist(random, bins, weights=weights, histtype="step", color=ORANGE, lw=1.4, label="random split")
        left.set(xlabel="similarity of the nearest training stimulus", ylabel="test stimuli")
        left.legend(frameon=False, fontsize=8.5)
        known = np.isfinite(x) & np.isfinite(y)
        x, y = x[known], y[known]
        if len(x) > 2500:
            right.hexbin(x, y, gridsize=45, mincnt=1, cmap="Blues", bins="log", linewidths=0.1)
        else:
            right.plot(x, y, "o", ms=3.2, mew=0, color=BLUE, alpha=0.45)
        tenths = np.array_split(np.argsort(x, kind="stable"), 10) if len(x) >= 50 else []
        if tenths:
            right.plot([x[t].mean() for t in tenths], [y[t].mean() for t in tenths], "o-", color=INK, ms=4, lw=1.5)
        right.axhline(0, color=FAINT, lw=0.8, zorder=0)
        right.set(xlabel="similarity of the nearest training stimulus", ylabel="r over voxels, per stimulus")
        right.tick_params(axis="y", labelcolor=MUTED)
        if not len(x):
            write(right, 0.5, 0.5, "no accuracy per stimulus", transform=right.transAxes)
    return figure


def plot_pairs(pairs: pd.DataFrame, pictures: np.ndarray) -> Any:
    """Pairs of test and training pictures, one column a pair.

    Parameters
    ----------
    pairs : DataFrame
        ``stimulus, nearest, similarity``.
    pictures : array (pair, 2, y, x, 3), uint8

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> pairs = pd.DataFrame({"stimulus": ["a"], "nearest": ["b"], "similarity": [0.99]})
    >>> len(plot_pairs(pairs, np.zeros((1, 2, 8, 8, 3), np.uint8)).axes)
    2
    """
    n = len(pairs)
    with drawing(min(WIDTH, 1.32 * max(n, 2)), 3.3, "constrained") as figure:
        grid = figure.subplots(2, n, squeeze=False)
        for k, pair in enumerate(pairs.itertuples()):
            for axes, image, name in zip(grid[:, k], pictures[k], (pair.stimulus, pair.nearest)):
                axes.imshow(image)
                axes.set_axis_off()
                axes.set_title(short(name, 16), fontsize=7.5, color=MUTED, loc="left")
            grid[0, k].set_title(
                f"{pair.similarity:.3f}\n{short(pair.stimulus, 16)}", fontsize=7.5, color=INK, loc="left"
            )
    return figure
