"""Learning curves: accuracy over the number of training stimuli."""

from __future__ import annotations

import numpy as np
import pandas as pd

from neuroenc._core.tables import check_columns
from neuroenc.report._page import Block, Section
from neuroenc.report._style import number
from neuroenc.report.sections._support import plot_support_curves


def learning_section(table: pd.DataFrame, laws: pd.DataFrame | None = None) -> Section:
    """Section on how accuracy grows with the number of training stimuli.

    Parameters
    ----------
    table : DataFrame
        ``method, size``, ``explained_variance`` or ``median_r``, and ``low, high``.
    laws : DataFrame, optional
        ``method, twice, expected_at_twice, why_not``: what a power law foretells for twice as many stimuli.

    Examples
    --------
    >>> table = pd.DataFrame({"method": "ridge", "size": [50, 100], "explained_variance": [0.1, 0.2]})
    >>> learning_section(table).title
    'How many training stimuli are enough'
    """
    score = "explained_variance" if "explained_variance" in table else "median_r"
    check_columns(table, ("method", "size", score), "learning curve")
    said = []
    for name, part in table.groupby("method", sort=False):
        part = part.sort_values("size")
        first, last = part.iloc[0], part.iloc[-1]
        said.append(
            f"{name}: {number(first[score])} at {first['size']} stimuli, {number(last[score])} at {last['size']}"
        )
    for row in laws.to_dict("records") if laws is not None else ():
        expected = row["expected_at_twice"]
        said.append(
            f"{row['method']}: a power law expects {number(expected)} at {row['twice']} stimuli"
            if np.isfinite(expected)
            else f"{row['method']}: no power law is followed beyond the data, as {row['why_not']}"
        )
    lead = (
        "The same encoder fitted to fewer training stimuli and scored on the same test stimuli; smaller sets are part "
        "of larger ones. A curve that still rises says that more data would help more than another model."
    )
    measure = "explained variance" if score == "explained_variance" else "median r over voxels"
    drawn = table.rename(columns={score: "explained_variance"}).assign(group="all")
    figure = plot_support_curves(drawn, groups=["all"], reference={}, labels=("training stimuli", measure))
    words = "; ".join(said) + "."
    blocks = [Block(figure, words, words, table, about="learning curve")]
    if laws is not None and len(laws):
        blocks.append(Block(table=laws, about="power laws"))
    return Section("learning", "How many training stimuli are enough", lead, blocks, nav="Learning")
