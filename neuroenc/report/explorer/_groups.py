"""Pages of regions and subjects: what captions are about in short, words, concepts, clusters, gate, best voxels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from neuroenc._core.errors import DataError
from neuroenc._core.schema import VERDICTS
from neuroenc.captions import CaptionStudy, structurize
from neuroenc.report import _regions as regions
from neuroenc.report._page import Block, Page, Section
from neuroenc.report._style import beside, number
from neuroenc.report.explorer._cards import LEVEL_HEADINGS, Pictures, answer_text, best_rows, voxel_cards
from neuroenc.report.explorer._data import VoxelTable
from neuroenc.report.explorer._hypotheses import hypotheses_section
from neuroenc.report.explorer._subjects import subjects_section

PARTS = (("noun", "Nouns"), ("verb", "Verbs"), ("attribute", "Attributes"), ("relation", "Relations"))
MAX_ROWS = 30
MOST_CAPTIONS = 400  # from which a region's summary is made: the best predicted voxels'


def slugs(names: Iterable[str]) -> dict[str, str]:
    """A file name for each name: plain letters, no two alike even where case does not count.

    >>> slugs(["FFA", "ffa", "../../x", ""])
    {'FFA': 'FFA', 'ffa': 'ffa-2', '../../x': 'x', '': 'unnamed'}
    """
    out: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        base = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:60] or "unnamed"
        slug, n = base, 1
        while slug.lower() in taken or slug.lower() in ("con", "nul", "aux", "prn"):
            n += 1
            slug = f"{base}-{n}"
        taken.add(slug.lower())
        out[name] = slug
    return out


def _of_region(frame: pd.DataFrame, name: str) -> pd.Series:
    """Rows of a region; the analyses call voxels without any region "none", and all voxels "all"."""
    return frame["roi"].astype(str).isin({name, {regions.NO_ROI: "none", regions.ALL_VOXELS: "all"}.get(name, name)})


def tiles(study: CaptionStudy, voxels: VoxelTable, rows: np.ndarray) -> list[tuple[str, str]]:
    """The numbers that a reader wants first; what was not measured has no tile."""
    frame = voxels.frame.iloc[rows]
    captioned = frame["captioned"].to_numpy()
    out = [
        (f"{len(frame):,}", "voxels"),
        (f"{int(captioned.sum()):,}", f"captioned ({number(float(captioned.mean()), 'share')})"),
        (number(regions.median(frame["r"].to_numpy()[captioned]), digits=2), "median r, captioned"),
    ]
    ratio = regions.median(frame["r_normalised"].to_numpy()[captioned])
    if np.isfinite(ratio):
        out.append((number(ratio, digits=2), "median r / ceiling"))
    if study.phrases is not None:
        mine = study.phrases["voxel"].isin(frame["voxel"])
        verdicts = study.phrases.loc[mine, "verdict"]
        for verdict in (VERDICTS[0], VERDICTS[2]) if len(verdicts) else ():
            out.append((number(float((verdicts == verdict).mean()), "share"), f"phrases {verdict}"))
    elif frame["unsupported"].notna().any():
        out.append((number(regions.mean(frame["unsupported"].to_numpy(float)), "share"), "phrases unsupported"))
    kind = f"stability:{voxels.stability[0]}" if voxels.stability else ""
    for column, null, name in ((kind, f"{kind}_null", "stability over"), ("rho", "shuffled", "sentence-level ρ")):
        if column in frame and frame[column].notna().any():
            value, chance = (regions.mean(frame[c].to_numpy(float)) for c in (column, null))
            said = f"{name} {voxels.stability[0]}" if column == kind else name
            out.append((number(value, digits=2), f"{said}{beside(chance)}"))
    failed = frame.loc[captioned, "fails"]
    if (voxels.stability or "rho" in frame or {"round_trip", "control"} & set(study.captions)) and len(failed):
        out.append((number(float((failed == "").mean()), "share"), "captions above each of their controls"))
    return out


def gate_section(voxels: VoxelTable, rows: np.ndarray) -> Section:
    """Why voxels have no caption, and how many; the numbers in a reason's brackets are left to the voxel."""
    frame = voxels.frame.iloc[rows]
    held = frame.loc[~frame["captioned"]]
    lead = f"{len(held)} of {len(rows)} voxels were held back before captioning{':' if len(held) else '.'}"
    reasons = held["reason"].str.replace(r"\s*\([^()]*\)\s*$", "", regex=True)
    grouped = held.assign(reason=reasons).groupby("reason", sort=False)
    out = grouped.agg(n_voxels=("r", "size"), median_r=("r", "median"))
    out = out.sort_values("n_voxels", ascending=False, kind="stable").reset_index()
    blocks = [Block(table=out.head(MAX_ROWS))]
    return Section("gated", "Voxels without a caption", lead, blocks, nav="Without caption")


def group_summary(study: CaptionStudy, voxels: VoxelTable) -> pd.DataFrame:
    """One row per region: accuracy, captions, phrases, stability, what its voxels are about."""
    base = regions.roi_summary(study.scores)
    rows = []
    for name, mask in regions.memberships(study.scores).items():
        frame = voxels.frame.loc[mask]
        line: dict[str, Any] = {"n_captioned": int(frame["captioned"].sum())}
        line["n_without_caption"] = int((~frame["captioned"]).sum())
        if voxels.frame["unsupported"].notna().any():
            line["unsupported share"] = regions.mean(frame["unsupported"].to_numpy(float))
        for kind in voxels.stability[:1]:
            line[f"stability, {kind}"] = regions.mean(frame[f"stability:{kind}"].to_numpy(float))
        for column, heading in (("rho", "sentence ρ"), ("image_rho", "image ρ")):
            if column in frame:
                line[heading] = regions.mean(frame[column].to_numpy(float))
        named = frame.loc[frame["label"] != "", "label"].value_counts()
        line[f"frequent {voxels.frame.attrs['label_kind']}s".replace("ys", "ies")] = ", ".join(
            f"{label} ({100 * count / max(int(frame['captioned'].sum()), 1):.0f} %)"
            for label, count in named.head(3).items()
        )
        rows.append({"roi": name, **line})
    return base.merge(pd.DataFrame(rows), on="roi", how="left").dropna(axis="columns", how="all")


def _words(study: CaptionStudy, name: str | None, rows: np.ndarray, voxels: VoxelTable) -> list[dict[str, Any]]:
    """Columns of words with bars; by part of speech where the study knows it."""
    if study.words is not None and name is not None:
        mine = study.words[_of_region(study.words, name)]
        columns = []
        for part, heading in PARTS:
            found = mine[mine["part"] == part].sort_values("share", ascending=False, kind="stable").head(14)
            if len(found):
                columns.append({"heading": heading, "words": found.to_dict("records")})
        if columns:
            return columns
    own = study.captions[study.captions["voxel"].isin(voxels.frame["voxel"].iloc[rows])]
    if own.empty:
        return []
    ranked = pd.DataFrame(regions.frequent_words(own, n=20), columns=["word", "share"])
    if name is not None:
        everywhere = dict(regions.frequent_words(study.captions, n=10**6))
        ranked["lift"] = [share / everywhere[word] for word, share in zip(ranked["word"], ranked["share"])]
    half = -(-len(ranked) // 2)
    parts = {"Words of the best captions": ranked[:half], "": ranked[half:]}
    return [{"heading": heading, "words": part.to_dict("records")} for heading, part in parts.items() if len(part)]


def _analyses(study: CaptionStudy, name: str | None, members: set[Any], subject: str | None) -> list[Section]:
    """Concepts, categories, clusters and contrasts of one region; tables over voxels are counted."""
    out = []
    for key, heading, about in (
        ("concepts", "Concepts", "Concepts that captions of this group name more often than others."),
        ("categories", "Categories", "Categories assigned to the voxels of this group."),
        ("clusters", "Clusters", "Groups of voxels with alike projected weights, and the phrases that separate them."),
        ("contrasts", "Contrasts", "Phrases that separate this group or its parts from others."),
    ):
        frame = getattr(study, key)
        if frame is None or not len(frame):
            continue
        if subject is not None and "subject" in frame.columns:
            frame = frame[frame["subject"].astype(str) == subject]
        if "voxel" in frame.columns and "roi" not in frame.columns:
            frame = frame[frame["voxel"].isin(members)]
            names = [c for c in ("category", "concept", "cluster") if c in frame.columns]
            if names:
                counts = frame.drop_duplicates("voxel")[names[0]].astype(str).value_counts()
                shares = counts.to_numpy() / max(len(members), 1)
                frame = pd.DataFrame({names[0]: counts.index, "n_voxels": counts.to_numpy(), "share": shares})
        elif "roi" in frame.columns:
            if name is None:
                continue
            frame = frame[_of_region(frame, name)].drop(columns="roi")
        elif name is not None:
            continue
        if len(frame):
            more = len(frame) - MAX_ROWS
            caption = f"{more:,} more rows in {key}.csv." if more > 0 else ""
            out.append(Section(key, heading, about, [Block(table=frame.head(MAX_ROWS)), Block(caption=caption)]))
    return out


def _checks(study: CaptionStudy, name: str) -> Section | None:
    """Checks of one region: its rows of the tables that have regions."""
    blocks = []
    for heading, frame in study.verdicts().items():
        if "roi" in frame.columns and heading != "hypotheses":  # which have their own section
            mine = frame[_of_region(frame, name)].drop(columns="roi")
            blocks += [Block(table=mine, heading=heading)] * bool(len(mine))
    return Section("checks", "Checks", blocks=blocks) if blocks else None


def _retrieved(study: CaptionStudy, members: set[Any]) -> Section | None:
    """What carries the n-grams of a group's voxels, and what BM25 finds for their captions, side by side."""
    if study.retrieved is None:
        return None
    mine = study.retrieved[study.retrieved["voxel"].isin(members)]
    if not len(mine):
        return None
    blocks = []
    for level in dict.fromkeys(mine["level"]):
        found = mine[mine["level"] == level]
        n = max(int(found["rank"].max()), 1)
        by_ngrams = found[found["id"] != ""].groupby("id", sort=False)
        by_words = found[found["bm25_id"] != ""].groupby("bm25_id", sort=False)
        first, second = (g.size().sort_values(ascending=False, kind="stable").head(n) for g in (by_ngrams, by_words))
        lines = []
        for k in range(max(len(first), len(second))):
            ours: dict[str, Any] = {"by n-grams": "", "voxels": np.nan, "n-grams": ""}
            theirs: dict[str, Any] = {"by BM25": "", "voxels, BM25": np.nan}
            if k < len(first):
                best = by_ngrams.get_group(first.index[k]).sort_values("rank", kind="stable").iloc[0]
                ours = {"by n-grams": answer_text(best, ""), "voxels": int(first.iloc[k]), "n-grams": best["ngrams"]}
            if k < len(second):
                best = by_words.get_group(second.index[k]).iloc[0]
                theirs = {"by BM25": answer_text(best, "bm25_"), "voxels, BM25": int(second.iloc[k])}
            lines.append(ours | theirs)
        blocks.append(Block(table=pd.DataFrame(lines), heading=LEVEL_HEADINGS.get(level, level)))
    lead = (
        f"What carries the n-grams of {mine['voxel'].nunique()} voxels, the best predicted ones, with the n-grams and "
        "what each adds to the score; voxels are counted in which an answer is among the first. BM25 was asked with "
        "the words of their captions. Each voxel's answers are in retrieved.csv."
    )
    return Section("retrieved", "Stimuli that carry its n-grams", lead, blocks, nav="Stimuli")


def _structure(study: CaptionStudy, voxels: VoxelTable, rows: np.ndarray, name: str) -> Section | None:
    """Captions of a region as one sentence of scope, a few aspects, and verbatim captions with their voxels."""
    best = best_rows(voxels, rows, MOST_CAPTIONS)
    order = {voxel: k for k, voxel in enumerate(voxels.frame["voxel"].iloc[best])}
    own = study.captions[study.captions["voxel"].isin(list(order))].drop_duplicates("voxel")
    own = own[regions.has_caption(own)]
    if len(own) < 3:
        return None
    own = own.iloc[np.argsort(own["voxel"].map(order).to_numpy(), kind="stable")]
    try:
        found = structurize(own, phrases=study.phrases, max_aspects=5, n_descriptions=4)
    except DataError:
        return None  # captions without words
    # Before the name comes in, which may hold anything.
    scope = name + found.scope.removeprefix("These voxels").replace(" %", "%").replace("%", "\u00a0%")
    n_phrases, n_supported = (sum(getattr(a, k) for a in found.aspects) for k in ("n_phrases", "n_supported"))
    if n_phrases:
        scope += f" {n_supported} of their {n_phrases} phrases are supported."
    if len(order) == MOST_CAPTIONS:
        scope += f" Made from the {MOST_CAPTIONS} best predicted voxels."
    about = (
        "Aspects are clusters of the best captions, named by the phrases that separate them; below each, captions word "
        "for word, the most typical first, with the voxels that have them. Intervals say what the choice of voxels "
        "leaves open; neighbouring voxels are alike, and so they are narrow."
    )
    shown: dict[str, Any] = {"template": "structure.html.j2", "context": {"aspects": found.aspects}}
    return Section("structure", "In short", f"{scope}\n\n{about}", **shown)


def best_section(study: CaptionStudy, voxels: VoxelTable, rows: np.ndarray, pictures: Pictures, **more: Any) -> Section:
    """The best predicted captioned voxels, with their phrases and images."""
    context = {
        "cards": voxel_cards(study, voxels, best_rows(voxels, rows, 8), pictures),
        "key": study.phrases is not None,
        "licence": pictures.licence,
    }
    more |= {"template": "cards.html.j2", "context": context}
    return Section("best", "Best predicted voxels", nav="Best voxels", **more)


def group_page(
    study: CaptionStudy,
    voxels: VoxelTable,
    rows: np.ndarray,
    pictures: Pictures,
    *,
    name: str,
    kind: str,
    summary: pd.DataFrame | None = None,
    figure: str | None = None,
    maps: Mapping[str, Any] | None = None,
) -> Page:
    """Page of a region (``kind="roi"``) or of a subject (``kind="subject"``).

    ``figure`` is the path of the region's figure, ``maps`` are those of each subject.
    """
    members = set(voxels.frame["voxel"].iloc[rows])
    region = name if kind == "roi" else None
    frame = voxels.frame.iloc[rows]
    counts = frame.loc[frame["label"] != "", "label"].value_counts().head(14)
    labels = pd.DataFrame({"word": counts.index, "share": counts.to_numpy() / max(int(frame["captioned"].sum()), 1)})
    columns = _words(study, region, rows, voxels)
    page = Page(
        name or "unnamed",
        kicker="Region" if kind == "roi" else "Subject",
        home=("index.html", study.title),
        links=[(f"index.html#{kind}={quote(name or 'unnamed', safe='')}", "Explore these voxels on the map")],
    )
    if summary is not None and len(summary) > 1:
        page.add(Section("regions", "Regions", blocks=[Block(table=summary)]))
    if region is not None:
        page.add(_structure(study, voxels, rows, name))
    if figure is not None:
        lead = "Made for print, 183 mm wide, with its text as text."
        shown: dict[str, Any] = {"template": "figure.html.j2", "context": {"file": figure, "name": name}}
        page.add(Section("figure", "Figure", lead, **shown))
    if columns:
        lift = "; × is how many times more often than over all voxels" if region is not None else ""
        lead = f"Share of captions with the word{lift}."
        page.add(_word_section("words", "Words of the captions", lead, "Words", columns))
    if len(labels):
        lead = f"Share of captioned voxels by their {voxels.frame.attrs['label_kind']}, as in the label maps."
        columns = [{"heading": "", "words": labels.to_dict("records")}]
        page.add(_word_section("labels", "What voxels are about", lead, "Labels", columns))
    page.add(*_analyses(study, region, members, name if kind == "subject" else None))
    if region is not None:
        page.add(subjects_section(study, voxels, rows, maps or {}))
        page.add(hypotheses_section(study, name), _checks(study, name))
    page.add(_retrieved(study, members))
    first = {"tiles": tiles(study, voxels, rows), "terms": terms_of(study, voxels)}
    return page.add(best_section(study, voxels, rows, pictures, **first), gate_section(voxels, rows))


def _word_section(name: str, title: str, lead: str, nav: str, columns: list[dict[str, Any]]) -> Section:
    return Section(name, title, lead, nav=nav, template="words.html.j2", context={"columns": columns})


def terms_of(study: CaptionStudy, voxels: VoxelTable) -> list[str]:
    """Words of these pages that need a meaning."""
    used = {"r": True, "noise ceiling": voxels.frame["ceiling"].notna().any(), "score": True}
    used |= {"supported": study.phrases is not None, "stability": bool(voxels.stability)}
    used["sentence-level ρ"] = "rho" in voxels.frame
    return [term for term, shown in used.items() if shown]
