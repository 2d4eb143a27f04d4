"""``neuroenc contrast``: the captions of two finished studies, or of two regions, against each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import output_folder
from neuroenc._core.tables import write_table
from neuroenc.captions import CaptionStudy, contrast, contrast_shares
from neuroenc.report import Block, Page, Section

# Settings that make captions differ without a difference between brains.
_MADE_BY = ("features", "encoder", "bank", "projection", "decoder")


def _read(run: str | os.PathLike[str]) -> CaptionStudy:
    folder = Path(run)
    return CaptionStudy.load(folder / "study" if (folder / "study" / "study.json").is_file() else folder)


def _side(study: CaptionStudy, roi: str | None, prefix: str) -> pd.DataFrame:
    """``voxel, rank, caption, subject`` of one region of a study, subjects under the study's name."""
    captions, scores = study.captions, study.scores
    if roi is not None:
        regions = pd.Series(scores["roi"].values.astype(str) if "roi" in scores.coords else "", scores["voxel"].values)
        names = sorted({name for several in regions.unique() for name in several.split(";") if name})
        if roi not in names:
            raise ConfigError(unknown_name("region", roi, names, f"Regions of {study.title!r}."))
        inside = regions.map(lambda several: roi in several.split(";"))
        captions = captions[captions["voxel"].map(inside)]
    if captions.empty:
        raise DataError(f"{study.title!r} has no captions{f' in {roi}' if roi else ''}: no voxel passed its gate.")
    owner = scores["subject"].to_series() if "subject" in scores.coords else pd.Series("", scores["voxel"].values)
    owner.index = pd.Index(scores["voxel"].values)
    return captions[["voxel", "rank", "caption"]].assign(subject=prefix + captions["voxel"].map(owner).astype(str))


def contrast_studies(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    roi: str | None = None,
    roi_b: str | None = None,
    same_subjects: bool = False,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Path:
    """Contrast the captions of two finished studies: two data sets, two groups of subjects, or two regions of one.

    Parameters
    ----------
    a, b : path
        Folders that ``neuroenc caption`` or `CaptionStudy.save` wrote; the same folder twice contrasts two regions.
    out : path
        Folder for ``index.html``, ``phrases.csv`` and ``concepts.csv`` (`contrast_shares`: intervals over subjects
        where each side has at least 3) and ``separating_phrases.csv`` (`contrast`, over voxels).
    roi, roi_b : str, optional
        Region of ``a`` and of ``b`` (default as ``roi``); without one all captioned voxels.
    same_subjects : bool
        Subjects of the same name are the same people, and differences are within them. Regions of one study always are.
    seed : int
        Of the permutations over voxels.
    say : callable
        Called with each line that the command prints.

    Returns
    -------
    Path
        ``index.html``.

    Raises
    ------
    DataError
        A folder holds no study, a side has no captions, or voxels stand on both sides.
    ConfigError
        A region is not known, or both sides are the same.

    Examples
    --------
    >>> contrast_studies("no-such-run", "other", "out")
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: no-such-run holds no caption study...
    """
    studies, regions = [_read(a), _read(b)], [roi, roi_b or roi]
    one = Path(a).resolve() == Path(b).resolve()
    if one and regions[0] == regions[1]:
        raise ConfigError("both sides are the same. Next step: another study, or another region by --roi-b.")
    paired = one or same_subjects
    sides = [_side(s, r, "" if paired else f"{k}:") for k, (s, r) in enumerate(zip(studies, regions))]
    if one:
        both = sorted(set(sides[0]["voxel"]) & set(sides[1]["voxel"]))
        if both:
            raise DataError(f"{len(both)} voxels are of {roi} and of {roi_b}, the first is {both[0]}: contrast others.")
    names = _names(a, b, regions, one)
    shares = {
        f"{terms}s": contrast_shares(*sides, names=names, terms=terms, paired=paired, at_least=0)
        for terms in ("phrase", "concept")
    }
    apart: Any = [
        side.assign(voxel=side.groupby(["subject", "voxel"]).ngroup() * 2 + k) for k, side in enumerate(sides)
    ]
    apart = [side.drop(columns="subject") for side in apart]
    tables = {**shares, "separating_phrases": contrast(*apart, names=names, seed=seed)}
    folder = output_folder(out)
    for name, table in tables.items():
        write_table(table, folder / f"{name}.csv")
    unit = str(shares["phrases"]["unit"].iloc[0])
    n = [int(shares["phrases"][f"n_{name}"].iloc[0]) for name in names]
    about = f"{names[0]} ({n[0]} {unit}s) against {names[1]} ({n[1]} {unit}s)"
    page = Page(f"Captions of {names[0]} and {names[1]}", kicker="Contrast of captions", notes=_notes(studies, unit))
    page.add(*_sections(tables, about, unit))
    say(f"{about}: {int((shares['phrases']['q'] <= 0.05).sum())} phrases differ (q <= .05)")
    return page.write(folder)


def _names(a: Any, b: Any, regions: list[str | None], one: bool) -> tuple[str, str]:
    """Names of both sides: regions of one study, else the folders', made different."""
    if one:
        return str(regions[0] or "all"), str(regions[1])
    found = [path.parent.name if path.name == "study" else path.name for path in (Path(a).resolve(), Path(b).resolve())]
    found = [f"{name} {region}" if region else name for name, region in zip(found, regions)]
    return (found[0], found[1]) if found[0] != found[1] else (f"{found[0]} (a)", f"{found[1]} (b)")


def _notes(studies: list[CaptionStudy], unit: str) -> list[str]:
    first, second = (study.settings for study in studies)
    other = [name for name in _MADE_BY if first.get(name) != second.get(name)]
    notes = []
    if other:
        notes.append(f"The studies differ in how captions were made ({', '.join(other)}): so may their captions.")
    if unit == "voxel":
        notes.append(
            "Fewer than 3 subjects on a side: intervals are over voxels, which are alike within a subject. They are "
            "too narrow, and say nothing of other subjects."
        )
    return notes


def _sections(tables: dict[str, pd.DataFrame], about: str, unit: str) -> list[Section]:
    lead = {
        "phrases": f"Share of voxels whose captions name a phrase: {about}. Intervals are over {unit}s, of one phrase "
        "each; q is corrected for their number (Benjamini-Hochberg).",
        "concepts": f"Share of voxels whose captions name a concept of the lexicon, over {unit}s.",
        "separating_phrases": "Log-odds with an informative Dirichlet prior (Monroe et al. 2008); p permutes voxels, "
        "of whatever subject.",
    }
    titles = {"phrases": "Phrases", "concepts": "Concepts", "separating_phrases": "Separating phrases"}
    return [
        Section(name, titles[name], lead[name], [Block(table=table.head(40))], files=[f"{name}.csv"])
        for name, table in tables.items()
    ]
