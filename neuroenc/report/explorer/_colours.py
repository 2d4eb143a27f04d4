"""What voxels prefer as colours: on the cortex, and in a plane in which words of their captions stand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc.captions import CaptionStudy, concept_maps
from neuroenc.report._page import Block, Section
from neuroenc.report._style import WIDTH, panels, write
from neuroenc.report.sections._incontext import plot_weight_colours

_NOUNS, _LEAST, _MAPS = 60, 3, 4  # words that are drawn, voxels that each needs, subjects with a map


def colours_section(study: CaptionStudy) -> Section | None:
    """Projected weights of captioned voxels as colours, and where the words of captions stand among them."""
    if study.colours is None or len(study.colours) < 2:
        return None
    table = study.colours.set_index("voxel")
    rgb, words = table[["x", "y", "z"]], word_places(study)
    method = study.settings.get("colours", {}).get("method", "pca")
    named = {"pca": "three principal components", "umap": "UMAP in three dimensions, by cosine"}[method]
    figures = [*_maps(study, rgb), _plane(rgb, words)]
    alt = "Captioned voxels in colours of what they prefer"
    if len(words):
        alt += "; " + ", ".join(f"{row.word} {row.n_voxels}" for row in words.head(6).itertuples())
    told = (
        f"Projected weights as colours ({named}): alike colours, alike preferences. A word stands in the middle of "
        f"the voxels whose best caption has it, if there are {_LEAST} of them; one of voxels that have nothing else in "
        "common stands in the middle of the plane."
    )
    if method == "umap":
        told += " Distances between far points and sizes of clusters mean little in a UMAP."
    about = "words and their places" if len(words) else ""
    block = Block(figures, alt, told, words.round(2) if len(words) else None, about=about, opened=False)
    return Section("colours", "What voxels prefer, as colours", "", [block], nav="Colours")


def word_places(study: CaptionStudy) -> pd.DataFrame:
    """Mean place of the voxels whose best caption has a noun, or, where nouns are not known, a concept.

    Columns ``word, n_voxels, x, y, z``, most voxels first.
    """
    assert study.colours is not None
    table = study.colours.set_index("voxel")
    nouns = None
    if study.words is not None and len(study.words):
        counts = study.words[study.words["part"] == "noun"].groupby("word")["count"].sum()
        nouns = {str(word): [str(word)] for word in counts.sort_values(ascending=False, kind="stable").index[:_NOUNS]}
    captions = study.captions[study.captions["rank"] == 1][["voxel", "rank", "caption"]]
    named = concept_maps(captions, nouns or None, parser="rules")["named"]
    held = named.sel(voxel=np.isin(named["voxel"].values, table.index))
    at = table.loc[held["voxel"].values, ["x", "y", "z"]].to_numpy()
    n = held.values.sum(axis=1)
    with np.errstate(invalid="ignore"):
        places = (held.values.astype(float) @ at) / np.where(n, n, np.nan)[:, None]
    found = pd.DataFrame({"word": held["concept"].values.astype(str), "n_voxels": n})
    found[["x", "y", "z"]] = places
    return found[n >= _LEAST].sort_values("n_voxels", ascending=False, kind="stable").reset_index(drop=True)


def _maps(study: CaptionStudy, rgb: pd.DataFrame) -> list[Any]:
    """A flat map of each of the first subjects, where voxels have vertices."""
    scores = study.scores.sel(voxel=rgb.index.to_numpy())
    if not {"vertex", "hemi"} <= set(scores.coords):
        return []
    names = scores["subject"].values if "subject" in scores.coords else np.full(len(rgb), "")
    found = []
    for name in list(dict.fromkeys(names.tolist()))[:_MAPS]:
        own = names == name
        coords = {k: ("voxel", scores[k].values[own]) for k in ("vertex", "hemi")}
        values = xr.DataArray(rgb.to_numpy()[own], dims=("voxel", "channel"), coords=coords, attrs=study.scores.attrs)
        found.append(plot_weight_colours(values, mesh="flat"))
        if name:
            found[-1].suptitle(str(name), fontsize=10)
    return found


def _plane(rgb: pd.DataFrame, words: pd.DataFrame) -> Any:
    """Voxels in the plane of two components, with words; of two that overlap, that of fewer voxels is left out."""
    with panels(1, lambda c, n: (WIDTH, 4.6)) as (figure, grid):
        axis = np.ravel(grid)[0]
        axis.scatter(rgb["x"], rgb["y"], s=9, c=np.clip(rgb.to_numpy(), 0, 1), alpha=0.6, linewidths=0)
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="first component", ylabel="second component")
        drawn: list[tuple[float, float, float]] = []
        for name, at_x, at_y in words[["word", "x", "y"]].values.tolist():
            half = 0.009 * len(name)
            if any(abs(at_x - x) < half + other and abs(at_y - y) < 0.035 for x, y, other in drawn):
                continue
            drawn.append((at_x, at_y, half))
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
            write(axis, at_x, at_y, name, size=9, bbox=box)
    return figure
