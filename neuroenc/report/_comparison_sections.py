"""Sections of a comparison's page: each a figure or more, what it says in words, and its numbers as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc.report._comparison_figures import draw_gains, draw_shares
from neuroenc.report._comparison_inputs import Group, by_kind, colours_of, group_medians, legend, shares_of, short
from neuroenc.report._comparison_maps import Canvas
from neuroenc.report._comparison_matrix import draw_matrix
from neuroenc.report._html import data_uri, number, table
from neuroenc.report._style import figure_svg

__all__ = ["Page", "accuracy", "block", "gains", "medians_of", "pairs_section", "section", "svg", "winners"]

MAX_GROUPS, MAX_PANELS = 22, 6


@dataclass(frozen=True, eq=False)
class Page:
    """What all sections of one page share."""

    scores: xr.Dataset
    cells: list[str]
    parts: pd.DataFrame
    groups: list[Group]
    canvas: Canvas

    @property
    def r(self) -> np.ndarray:
        """Scores (cell, voxel)."""
        return np.asarray(self.scores["r"].values, float)

    @property
    def best(self) -> np.ndarray:
        """Highest r of every voxel; NaN where no cell has one."""
        r = self.r
        return np.where(np.isfinite(r).any(axis=0), np.where(np.isfinite(r), r, -np.inf).max(axis=0), np.nan)

    @property
    def readout_colours(self) -> dict[str, Any]:
        """One colour a readout, the same in every figure."""
        return colours_of(self.parts["readout"])

    def cell_colours(self) -> dict[str, Any]:
        """Colour of every cell: its readout's, so that panels of one readout look alike."""
        colours = self.readout_colours
        plain = colours_of(["cell"])["cell"]
        return {str(c): colours[r] if r else plain for c, r in self.parts["readout"].items()}


def svg(figure: Any) -> str:
    """Data URI of a figure."""
    return data_uri(figure_svg(figure), "image/svg+xml")


def block(
    uri: str | None,
    alt: str,
    caption: str,
    frame: pd.DataFrame | None,
    *,
    heading: str = "",
    about: str = "",
    key: Sequence[dict[str, str]] = (),
    opened: bool | None = None,
) -> dict[str, Any]:
    """A figure with its caption, legend and table; long tables start closed."""
    return {
        "uri": uri,
        "alt": alt,
        "caption": caption,
        "heading": heading,
        "legend": list(key),
        "about": about,
        "table": None if frame is None or not len(frame) else table(frame),
        "n_rows": 0 if frame is None else len(frame),
        "opened": (frame is not None and len(frame) <= 12) if opened is None else opened,
    }


def section(
    anchor: str, nav: str, title: str, lead: str, blocks: Sequence[dict[str, Any]], remarks: Sequence[str] = ()
) -> dict[str, Any]:
    """Heading, its short form in the page's navigation, words, and figures with their tables."""
    said = [x for x in remarks if x]
    return {"id": anchor, "nav": nav, "title": title, "lead": lead, "blocks": list(blocks), "remarks": said}


def _listed(pairs: Sequence[tuple[str, float]], limit: int = 6) -> str:
    return "; ".join(f"{name}: {number(value, digits=2)}" for name, value in pairs[:limit])


def accuracy(page: Page, medians: pd.DataFrame) -> dict[str, Any]:
    """Cells by groups."""
    groups, said = by_kind(page.groups, MAX_GROUPS)
    values = group_medians(page.r, groups)
    rings = np.zeros(values.shape, bool)
    for g in range(len(groups)):
        if np.isfinite(values[:, g]).any() and len(page.cells) > 1:
            rings[np.nanargmax(values[:, g]), g] = True
    figure = draw_matrix(
        values, page.cells, [g.name for g in groups], kinds=[g.kind for g in groups], label="median r", rings=rings
    )
    shown = [
        c
        for c in (
            "cell",
            "kind",
            "group",
            "n_voxels",
            "median_r",
            "low",
            "high",
            "median_r_normalised",
            "n_train",
            "n_validation",
            "n_test",
        )
        if c in medians
    ]
    overall = [(c, float(values[k, 0])) for k, c in enumerate(page.cells)]
    missing = int((~np.isfinite(page.r).any(axis=0)).sum())
    blocks = [
        block(
            svg(figure),
            f"Median r of {len(page.cells)} cells in {len(groups)} groups. Over all voxels, best first: "
            + _listed(sorted(overall, key=lambda x: -np.nan_to_num(x[1], nan=-9))),
            "Median over voxels of the correlation between predicted and measured responses to test stimuli. "
            + (
                "A frame marks the highest of each column. It need not be separable from the next; see below. "
                if len(page.cells) > 1
                else ""
            )
            + said
            + (f" {missing} of {page.scores.sizes['voxel']} voxels have no score and are left out." if missing else ""),
            medians.loc[medians["kind"] == "all", [c for c in shown if c not in ("kind", "group")]],
            about="all voxels",
        )
    ]
    inside = medians[medians["kind"] != "all"]
    if len(inside):
        blocks.append(block(None, "", "", inside[shown], about="every group", opened=False))
    lead = "Every cell was fitted and tested on the same stimuli." if len(page.cells) > 1 else ""
    if {"low", "high"} <= set(medians.columns):
        lead += " Low and high bound the 95 % interval over resampled stimuli."
    return section("accuracy", "Accuracy", "Accuracy", lead.strip(), blocks)


def gains(page: Page, pairs: pd.DataFrame, baseline: str) -> dict[str, Any] | None:
    """Every readout against the baseline readout on the same features, in each region."""
    parts, rows = page.parts, []
    sides = pairs.to_dict("records")
    for row in sides:
        a, b = parts.loc[str(row["a"])], parts.loc[str(row["b"])]
        if (a["features"], a["core"]) != (b["features"], b["core"]) or a["readout"] == b["readout"]:
            continue
        if baseline not in (a["readout"], b["readout"]):
            continue
        sign = 1.0 if b["readout"] == baseline else -1.0
        bounds = sorted((sign * row["low"], sign * row["high"]))
        rows.append(
            {
                "features": "/".join(x for x in (a["features"], a["core"]) if x),
                "readout": a["readout"] if sign > 0 else b["readout"],
                "kind": row["kind"],
                "group": str(row["group"]),
                "median_difference": sign * row["median_difference"],
                "low": bounds[0],
                "high": bounds[1],
                "q": row["q"],
            }
        )
    if not rows:
        return None
    found = pd.DataFrame(rows)
    kinds = [k for k in dict.fromkeys(g.kind for g in page.groups) if k != "all"]
    kept, said = by_kind([g for g in page.groups if g.kind in ("all", *kinds[:1])], MAX_GROUPS)
    drawn = found[[key in {g.key for g in kept} for key in zip(found["kind"], found["group"])]]
    spaces = list(dict.fromkeys(found["features"]))
    if len(spaces) > MAX_PANELS:
        medians = dict(zip(page.cells, group_medians(page.r, page.groups[:1])[:, 0]))
        top = {
            s: max(v for c, v in medians.items() if c.startswith(f"{s}/") or parts.loc[c, "features"] == s)
            for s in spaces
        }
        spaces = sorted(sorted(spaces, key=lambda s: -top[s])[:MAX_PANELS], key=spaces.index)
        said += f" The {MAX_PANELS} best of {found['features'].nunique()} feature spaces are drawn."
    readouts = list(dict.fromkeys(found["readout"]))
    colours = {k: v for k, v in page.readout_colours.items() if k in readouts}
    panels = {s: drawn[drawn["features"] == s] for s in spaces}
    overall = found[found["kind"] == "all"]
    words = "; ".join(
        f"{x['readout']} on {x['features']}: {number(x['median_difference'], digits=3)} "
        f"({number(x['low'])} to {number(x['high'])})"
        for x in overall.to_dict("records")[:8]
    )
    figure = draw_gains(panels, [g.name for g in kept], colours)
    return section(
        "gains",
        "Gains",
        f"Gain of each readout over {short(baseline)}",
        f"The same features, read in another way: difference of r to the readout {baseline} (ridge on the flattened "
        "map, unless the settings say otherwise), as median over voxels."
        if baseline == "linear"
        else "The same features, read in another way: difference of r to the readout "
        f"{baseline}, as median over voxels.",
        [
            block(
                svg(figure),
                f"Difference of r to {baseline} over all voxels. {words}",
                "Lines are 95 % intervals over resampled stimuli, paired. A filled dot differs from zero at q < 0.05. "
                + said,
                found,
                key=legend(colours),
                about="gain in every group",
                opened=False,
            )
        ],
    )


def winners(page: Page, winner: xr.Dataset) -> dict[str, Any]:
    """The best cell of every voxel."""
    labels = winner["winner"].values.astype(str)
    n = int((labels != "").sum())
    counts = {c: int((labels == c).sum()) for c in (*page.cells, "tie")}
    won = sorted((c for c in page.cells if counts[c]), key=lambda c: -counts[c])
    colours = colours_of(won)
    shown = dict(list(colours.items())[:12]) if len(won) > 12 else {k: v for k, v in colours.items() if k != "tie"}
    key = legend(shown, {c: f"{100 * counts[c] / max(n, 1):.0f} %" for c in shown})
    if len(won) > 12:
        rest = sum(counts[c] for c in won[12:])
        key.append({**legend({"other cells": colours[won[12]]})[0], "said": f"{100 * rest / max(n, 1):.0f} %"})
    if counts["tie"]:
        key.append(
            {**legend({"no separable winner": colours["tie"]})[0], "said": f"{100 * counts['tie'] / max(n, 1):.0f} %"}
        )
    uri = page.canvas.draw(labels, label="", heights=page.best, colours=colours)
    words = "; ".join(f"{k['name']} {k['said']}" for k in key)
    groups, said = by_kind(page.groups, MAX_GROUPS)
    classes = [*won, "tie"]
    shares = shares_of(labels, classes, groups)
    held = [int((labels[g.mask] != "").sum()) for g in groups]
    frame = pd.DataFrame({"kind": [g.kind for g in groups], "group": [g.name for g in groups], "n_voxels": held})
    for name, row in zip(classes, shares):
        frame[f"{name} share" if name != "tie" else "no separable winner share"] = [
            "–" if np.isnan(x) else f"{100 * x:.0f} %" for x in row
        ]
    blocks = [
        block(uri, f"Best cell of every voxel. {words}", page.canvas.how, None, key=key),
        block(
            svg(draw_shares(shares, classes, groups, held, colours)),
            f"Share of voxels won in each group. Overall: {words}",
            "Percent of the voxels of each group, their number in brackets. " + said,
            frame,
            about="share of voxels",
            opened=len(frame) <= 12,
        ),
    ]
    return section(
        "winner",
        "Winners",
        "Which cell predicts which voxel best",
        "A voxel has a winner where one cell beats each of the others over resampled stimuli, after correction for the "
        "number of voxels. Elsewhere the data cannot tell, and the map says so.",
        blocks,
        page.canvas.remarks,
    )


def pairs_section(page: Page, pairs: pd.DataFrame) -> dict[str, Any]:
    """Any two cells."""
    kind = "all" if (pairs["kind"] == "all").any() else str(pairs["kind"].iloc[0])
    overall = pairs[pairs["kind"] == kind].drop_duplicates(["a", "b"])
    place = {c: k for k, c in enumerate(page.cells)}
    values, unsure = np.full((len(place),) * 2, np.nan), np.zeros((len(place),) * 2, bool)
    for row in overall.to_dict("records"):
        i, j = place[str(row["a"])], place[str(row["b"])]
        values[i, j], values[j, i] = row["median_difference"], -row["median_difference"]
        unsure[i, j] = unsure[j, i] = not row["q"] < 0.05
    known = np.abs(values[np.isfinite(values)])
    top = float(known.max()) if known.size and known.max() > 0 else 1.0
    figure = draw_matrix(values, page.cells, page.cells, label="Δ r", cmap="RdBu_r", limits=(-top, top), dots=unsure)
    n_sure = int(sum(row["q"] < 0.05 for row in overall.to_dict("records")))
    shown = [
        c
        for c in ("a", "b", "n_voxels", "median_difference", "low", "high", "p", "q", "share_a", "share_b")
        if c in overall
    ]
    frame = overall[shown].rename(columns={"share_a": "a better share", "share_b": "b better share"})
    for column in ("a better share", "b better share"):
        if column in frame:
            frame[column] = ["–" if np.isnan(x) else f"{100 * x:.0f} %" for x in frame[column].to_numpy(float)]
    blocks = [
        block(
            svg(figure),
            f"Differences between {len(page.cells)} cells; {n_sure} of {len(overall)} pairs differ at q < 0.05.",
            "Row less column, median over voxels. A dot stands where the difference is not told from zero (q ≥ 0.05).",
            frame,
            about="every pair, all voxels",
        )
    ]
    return section(
        "pairs",
        "Pairs",
        "Any two cells",
        f"{n_sure} of {len(overall)} pairs differ over all voxels at q < 0.05 (paired bootstrap over stimuli, false "
        "discovery rate over pairs). A better share and b better share: voxels where one of the two is better after "
        "correction over the voxels of the pair.",
        blocks,
    )


def medians_of(page: Page, frame: pd.DataFrame | None) -> pd.DataFrame:
    """The given table, or the medians alone where there is none."""
    if frame is not None:
        return frame.assign(cell=frame["cell"].astype(str))
    values = group_medians(page.r, page.groups)
    rows: list[Mapping[str, Any]] = [
        {
            "cell": cell,
            "kind": g.kind,
            "group": g.name,
            "n_voxels": int((np.isfinite(page.r[k]) & g.mask).sum()),
            "median_r": values[k, j],
        }
        for k, cell in enumerate(page.cells)
        for j, g in enumerate(page.groups)
    ]
    return pd.DataFrame(rows)
