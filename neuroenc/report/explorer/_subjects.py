"""A region in several subjects, side by side: map, words with intervals, concepts, captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neuroenc.captions import CaptionStudy
from neuroenc.report import _regions as regions
from neuroenc.report._page import Section
from neuroenc.report.explorer._cards import best_rows
from neuroenc.report.explorer._data import VoxelTable
from neuroenc.stats import share_interval

_WORDS, _LABELS, _CAPTIONS = 10, 5, 4


def subjects_section(
    study: CaptionStudy, voxels: VoxelTable, rows: np.ndarray, maps: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Section | None:
    """The voxels ``rows`` of each subject in a column, two of which the reader chooses; None with one subject.

    Words and labels are the most frequent ones of all subjects together, so that rows of the columns are the same.
    """
    subject = voxels.frame["subject"]
    names = [n for n in dict.fromkeys(subject) if (subject.iloc[rows] == n).any()]
    best = study.captions[study.captions["rank"] == 1]
    own = {n: rows[(subject.iloc[rows] == n).to_numpy()] for n in names}
    told = {n: best[best["voxel"].isin(voxels.frame["voxel"].iloc[at])] for n, at in own.items()}
    names = [n for n in names if len(told[n])]
    if len(names) < 2:
        return None
    words = [w for w, _ in regions.frequent_words(pd.concat([told[n] for n in names]), n=_WORDS)]
    named = voxels.frame["label"].iloc[rows]
    labels = named[named != ""].value_counts().index[:_LABELS].tolist()
    columns = []
    for name in names:
        at, n = own[name], told[name]["voxel"].nunique()
        share = dict(regions.frequent_words(told[name], n=10**6))
        mine = voxels.frame["label"].iloc[at]
        best_of = voxels.frame["voxel"].iloc[best_rows(voxels, at, _CAPTIONS)]
        caption = told[name].drop_duplicates("voxel").set_index("voxel")["caption"]
        columns.append(
            {
                "name": name or "unnamed",
                "n_voxels": len(at),
                "n_captioned": n,
                "median_r": regions.median(voxels.frame["r"].to_numpy()[at]),
                "map": _map(maps.get(name, ()), at, np.flatnonzero(subject == name)),
                "words": _shares(words, [round(share.get(w, 0.0) * n) for w in words], n),
                "labels": _shares(labels, [int((mine == x).sum()) for x in labels], n),
                "captions": [(v, caption[v]) for v in best_of],
            }
        )
    context = {"columns": columns, "kind": voxels.frame.attrs["label_kind"]}
    lead = (
        "The same words and labels in each subject, by share of captioned voxels with 95 % intervals, and the captions "
        "of the best predicted voxels."
    )
    look: dict[str, Any] = {"template": "subjects.html.j2", "context": context, "scripts": ["subjects.js"]}
    return Section("subjects", "Subjects side by side", lead, nav="Subjects", **look)


def _shares(names: Sequence[str], counts: Sequence[int], n: int) -> list[dict[str, Any]]:
    low, high = share_interval(counts, n)
    rows = zip(names, counts, low, high)
    return [{"name": x, "share": c / n, "low": float(a), "high": float(b)} for x, c, a, b in rows]


def _map(maps: Sequence[Mapping[str, Any]], rows: np.ndarray, every: np.ndarray) -> dict[str, Any] | None:
    """The first map with dots for ``rows`` alone, of the subject's voxels ``every``."""
    if not maps:
        return None
    one, place = maps[0], np.asarray(maps[0]["voxel"], int)
    shown = np.flatnonzero(np.isin(every[place], rows))
    cell = np.atleast_1d(np.asarray(one["size"], float)) * (0.5 if one["shape"] == "cell" else 1.0)
    dots = [(one["x"][k], one["y"][k]) for k in shown]
    about = {name: one[name] for name in ("width", "height", "background")}
    return about | {"dots": dots, "radius": round(float(cell.max()), 2), "frames": one.get("frames", ())}
