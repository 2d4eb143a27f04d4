"""A planned session: expected accuracy after each picture, the pictures to look at, and repeats against pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.tables import check_columns
from neuroenc.report._page import Block, Section
from neuroenc.report._style import BLUE, FAINT, MUTED, ORANGE, WIDTH, data_uri, drawing

_SIDE, _COLUMNS, _GAP = 128, 8, 6
# Pictures of a sheet: more of them make a page of many megabytes, and nobody looks at them.
_MOST = 200


def planning_sections(
    table: pd.DataFrame,
    *,
    numbers: Mapping[str, Any],
    repeats: pd.DataFrame | None = None,
    least_covered: pd.DataFrame | None = None,
    sheet: bytes | None = None,
    open_sheet: bytes | None = None,
) -> list[Section]:
    """Sections on the pictures that a session is to show.

    Parameters
    ----------
    table : DataFrame
        ``place, stimulus, explained_variance, low, high, random``, a row a picture, and more columns.
    numbers : mapping
        ``n_candidates, n_seen, selector, prior, levels, start, expected, expected_random, whole_pool, ceiling``.
    repeats : DataFrame, optional
        From `neuroenc.encoders.incontext.ExpectedAccuracy.by_repeats`.
    least_covered : DataFrame, optional
        ``stimulus, open``: pictures whose signal is least known after the list.
    sheet, open_sheet : bytes, optional
        From `contact_sheet`: the pictures of ``table``, and of ``least_covered``.

    Examples
    --------
    >>> table = pd.DataFrame({"place": [1, 2], "stimulus": ["a", "b"], "explained_variance": [0.1, 0.2], "low": 0.0,
    ...                       "high": 0.4, "random": [0.05, 0.1]})
    >>> numbers = {"n_candidates": 9, "n_seen": 0, "selector": "prior", "prior": "world", "levels": "of the prior",
    ...            "start": 0.0, "expected": 0.2, "expected_random": 0.1, "whole_pool": 0.3, "ceiling": 0.4}
    >>> [section.title for section in planning_sections(table, numbers=numbers)]
    ['What these pictures are expected to give', 'The pictures']
    """
    check_columns(table, ("place", "stimulus", "explained_variance", "low", "high", "random"), "plan")
    n, k, seen = numbers["n_candidates"], len(table), numbers["n_seen"]
    told = (
        "the levels of signal and noise, which the prior does not know, are assumed (signal three tenths of the "
        "noise): compare the lines, not their height"
        if numbers["levels"] == "assumed"
        else "the levels of signal and noise, and the features that matter, are those of the responses so far"
        if numbers["levels"] == "of the responses"
        else "it is as good as the prior: for a subject unlike those that it was made from, it is wrong"
    )
    lead = (
        f"{k} of {n:,} candidates"
        + (f", after {seen} that were shown" if seen else "")
        + f", chosen by the selector {numbers['selector']!r} with the prior {numbers['prior']!r}. The line is the "
        "explained variance of single responses to new pictures, noise included, that an empirical-Bayes encoder is "
        f"expected to reach after each picture, a mean over voxels that are drawn from the prior; {told}."
    )
    more = numbers.get("random_pictures_for_the_same")
    said = (
        f"After {k} pictures {numbers['expected']:.3f} is expected, of random ones {numbers['expected_random']:.3f}; "
        f"the ceiling is {numbers['ceiling']:.3f}."
        + (f" The first {more} do what {k} random ones do." if more and more < k else "")
    )
    curve = Section(
        "plan",
        "What these pictures are expected to give",
        lead,
        [
            Block(
                plot_expected_accuracy(table, numbers),
                said,
                f"{said} Band: 5 to 95 % of voxels, cut off far above. Dashed: random pictures. Dotted: the "
                "ceiling, everything known.",
            )
        ],
        nav="Expected",
        tiles=[
            (str(k), "pictures"),
            (f"{numbers['expected']:.3f}", "expected explained variance"),
            (f"{numbers['expected_random']:.3f}", "of random pictures"),
            (f"{numbers['ceiling']:.3f}", "ceiling"),
        ],
        terms=["explained variance", "support"],
    )
    blocks = []
    if sheet is not None:
        shown = min(k, _MOST)
        blocks.append(
            Block(
                data_uri(sheet, "image/jpeg"),
                f"Contact sheet of {shown} pictures, in the order of the table",
                "In the order in which they are to be shown, from left to right; numbers are places in the table."
                + (f" The first {_MOST} are drawn." if k > _MOST else ""),
            )
        )
    blocks.append(Block(table=table, about="pictures"))
    made = [curve, Section("pictures", "The pictures", "", blocks, nav="Pictures")]
    if repeats is not None:
        made.append(_repeats(repeats))
    if least_covered is not None:
        made.append(_covered(numbers, least_covered, open_sheet))
    return made


def _repeats(table: pd.DataFrame) -> Section:
    best = table[table["recommended"]].iloc[0]
    trials = int((table["repeats"] * table["pictures"]).max())
    if best["lost"] <= 0.1 and best["ceiling_error"] <= 0.1:
        said = (
            f"Recommended: {best['pictures']:.0f} pictures, {best['repeats']:.0f} times each: the fewest repeats that "
            f"cost at most a tenth of the explained variance ({best['lost']:.0%}) and tell the noise ceiling of a "
            f"typical voxel to ± {best['ceiling_error']:.2f}."
        )
    elif best["repeats"] > 1:
        said = f"Recommended: {best['pictures']:.0f} pictures, {best['repeats']:.0f} times each: there are no more."
    else:
        said = (
            "Recommended: every picture once. Repeats that tell noise ceilings to ± .10 would cost more than a tenth "
            "of the explained variance; measure ceilings on a few test pictures that are shown many times."
        )
    return Section(
        "repeats",
        "Repeats or pictures",
        f"What {trials} presentations give, shared out otherwise. Repeats lower the noise of each picture's response, "
        f"and tell the noise ceiling of every voxel; they cost pictures.\n\n{said}",
        [Block(table=table.round(4), about="repeats", opened=True)],
        nav="Repeats",
        remarks=[
            "Explained variance is that of single responses in every row. The error of the ceiling is the standard "
            "error of the share of signal in a single response, of a voxel in the middle of the prior."
        ],
        terms=["noise ceiling"],
    )


def _covered(numbers: Mapping[str, Any], table: pd.DataFrame, sheet: bytes | None) -> Section:
    blocks = []
    if sheet is not None:
        blocks.append(Block(data_uri(sheet, "image/jpeg"), "Pictures that the list tells least about"))
    blocks.append(Block(table=table, about="least covered", opened=True))
    return Section(
        "open",
        "What is not covered",
        f"With every candidate shown once {numbers['whole_pool']:.3f} is expected, of a ceiling of "
        f"{numbers['ceiling']:.3f}: the rest takes repeats, or other pictures. Below are the pictures whose signal is "
        "least known after the list, with the share of their signal's variance that is still open.",
        blocks,
        nav="Not covered",
    )


def plot_expected_accuracy(table: pd.DataFrame, numbers: Mapping[str, Any]) -> Any:
    """Expected explained variance over pictures shown, with its band over voxels, random pictures and the ceiling.

    Parameters
    ----------
    table : DataFrame
        As in `planning_sections`.
    numbers : mapping
        ``n_seen, start, ceiling``.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> table = pd.DataFrame({"place": [1, 2], "stimulus": ["a", "b"], "explained_variance": [0.1, 0.2], "low": 0.0,
    ...                       "high": 0.4, "random": [0.05, 0.1]})
    >>> len(plot_expected_accuracy(table, {"n_seen": 0, "start": 0.0, "ceiling": 0.4}).axes)
    1
    """
    seen = numbers["n_seen"]
    places = seen + np.concatenate([[0], table["place"].to_numpy()])

    def line(name: str) -> np.ndarray:
        return np.concatenate([[numbers["start"]], table[name].to_numpy()])

    with drawing(min(WIDTH, 7.4), 3.4, "constrained") as figure:
        axes = figure.subplots()
        axes.fill_between(places[1:], table["low"], table["high"], color=BLUE, alpha=0.14, lw=0)
        axes.plot(places, line("explained_variance"), color=BLUE, lw=1.8, label="chosen")
        axes.plot(places, line("random"), color=ORANGE, lw=1.5, dashes=(4, 2), label="random")
        axes.axhline(numbers["ceiling"], color=MUTED, lw=1, dashes=(1, 2), label="ceiling")
        axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
        # Voxels differ by much more than lists do, which must stay readable.
        top = 1.3 * max(numbers["ceiling"], float(table["explained_variance"].max()))
        limits = {"xlim": (seen, places[-1]), "ylim": (-0.1 * top, top)}
        axes.set(xlabel="pictures shown", ylabel="expected explained variance", **limits)
        axes.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8.5)
    return figure


def contact_sheet(stimuli: Any, names: Sequence[str], *, numbers: bool = True) -> bytes:
    """Thumbnails of pictures side by side, to look at: one JPEG.

    Parameters
    ----------
    stimuli : Stimuli
        With images.
    names : sequence of str
        Ids in their order, from left to right and top to bottom; the first 200 are drawn.
    numbers : bool
        Whether each bears its place, from 1.

    Examples
    --------
    >>> from neuroenc.data import Stimuli
    >>> pictures = Stimuli(["a", "b"], images=np.zeros((2, 8, 8, 3), np.uint8))
    >>> contact_sheet(pictures, ["b", "a"])[:2]  # the mark of a JPEG
    b'\\xff\\xd8'
    """
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    shown = list(names)[:_MOST]
    step = _SIDE + _GAP
    lines = -(-len(shown) // _COLUMNS)
    sheet = Image.new("RGB", (min(_COLUMNS, len(shown)) * step + _GAP, lines * step + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, name in enumerate(shown):
        x, y = _GAP + step * (place % _COLUMNS), _GAP + step * (place // _COLUMNS)
        picture = stimuli.image(name).convert("RGB")
        sheet.paste(ImageOps.contain(picture, (_SIDE, _SIDE)), (x, y))
        if numbers:
            text = str(place + 1)
            draw.rectangle((x, y, x + 8 * len(text) + 5, y + 16), fill="white")
            draw.text((x + 3, y), text, fill="black", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=84, optimize=True)
    return buffer.getvalue()
