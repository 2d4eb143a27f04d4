"""Captions of voxels as sections: an explorer, regions, best voxels, checks, methods, and every table and map."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc._core.files import atomic_path, write_json, write_text
from neuroenc._core.progress import progress as progress_bar
from neuroenc._core.schema import COLUMNS
from neuroenc._core.tables import write_table
from neuroenc.captions import CaptionStudy
from neuroenc.data import Stimuli
from neuroenc.report._page import Block, Section
from neuroenc.report._regions import NO_ROI, memberships
from neuroenc.report._style import EXPLORER, figure_svg, hex_colours
from neuroenc.report.brain._canvas import layouts
from neuroenc.report.explorer import _groups as group_pages
from neuroenc.report.explorer._cards import Pictures, best_rows
from neuroenc.report.explorer._colours import colours_section
from neuroenc.report.explorer._data import (
    SHOWN,
    Details,
    VoxelTable,
    asset,
    subject_data,
    vector_data,
    voxel_table,
)
from neuroenc.report.explorer._figure import RegionFigures
from neuroenc.report.explorer._hypotheses import hypotheses_section
from neuroenc.report.export import _files as export_files

CHUNK = 400  # voxels whose evidence and phrases lie in one file
LEAST_VOXELS = 10  # captioned voxels of a region that has a figure
BUDGET = 24_000_000  # characters of thumbnails
_TABLES = [name for name in COLUMNS if name != "captions"]
Subjects = Mapping[str, tuple[str, np.ndarray]]


def explorer_sections(
    study: CaptionStudy,
    *,
    stimuli: Stimuli | None = None,
    images: Mapping[str, Any] | Callable[[str], Any] | None = None,
    written: xr.Dataset | None = None,
    figures: bool = False,
    progress: bool = False,
) -> list[Section]:
    """Sections on the captions of voxels.

    The explorer shows the voxels on the brain (flat and inflated fsaverage5, slices, or a grid); a voxel that is
    clicked, found by words or named in the address (``#voxel=ID``) shows its captions with their phrases marked as
    supported, uncertain or unsupported, its images, accuracy, stability and sentence-level score. Every region and
    subject has a page of its own, which begins with a summary of its captions. Text from data is escaped or set as
    text, and data travel as base64 in files beside the page.

    Parameters
    ----------
    study : neuroenc.captions.CaptionStudy
    stimuli : neuroenc.data.Stimuli, optional
        Images, captions, source and licence of the evidence.
    images : mapping of stimulus id to path, array or PIL image, or callable, optional
        Images that are not in ``stimuli``; a callable gets the id and may return None.
    written : Dataset, optional
        Scores whose ``scores.nc`` and maps another section of the page writes: they are not written again.
    figures : bool
        Draw a figure for print (`plot_region`) of every region that has 10 captioned voxels, into ``figures/``.
    progress : bool

    Returns
    -------
    list of Section
        Their files: ``rois/``, ``subjects/``, ``assets/``, ``images/``, ``captions.csv``, ``.json`` and, with pyarrow,
        ``.parquet``; ``evidence.csv``, ``phrases.csv`` and the other tables; ``scores.nc``; under ``maps/``
        (``subjects/NAME/maps/`` where there are several) all scores, and what each voxel is about as label maps with
        look-up tables, as NIfTI and GIFTI; ``methods.txt``, ``settings.json``, ``provenance.json``.
    """
    if not isinstance(study, CaptionStudy):
        raise DataError(
            f"study is a {type(study).__name__}; a CaptionStudy is needed. Next step: CaptionStudy.load(folder), or "
            "write_report for plain tables."
        )
    voxels = voxel_table(study)
    shown = Pictures(stimuli, images, budget=BUDGET)
    names = list(dict.fromkeys(voxels.frame["subject"]))
    files = group_pages.slugs(names)
    subjects = {n: (files[n], np.flatnonzero((voxels.frame["subject"] == n).to_numpy())) for n in names}
    regions = {n: np.flatnonzero(mask) for n, mask in memberships(study.scores).items()}
    paths = {n: f"rois/{slug}.html" for n, slug in group_pages.slugs(regions).items()}
    everything = np.arange(len(voxels.frame))
    with progress_bar(desc="caption report", total=len(subjects) * 2 + len(regions) + 1, show=progress) as bar:
        _choose(study, voxels, [everything, *regions.values()], shown)
        maps = {name: layouts(study.scores.isel(voxel=rows)) for name, (_, rows) in subjects.items()}
        drawn = None
        if figures:
            drawn = RegionFigures(study, voxels, shown, {n: [dict(m) for m in found] for n, (found, _) in maps.items()})
        meta, beside, remarks = _assets(study, voxels, subjects, shown, maps, bar)
        meta |= {"pages": paths, "regions": [n for n in regions if n != NO_ROI], "licence": shown.licence}
        meta["regionColours"] = hex_colours(len(meta["regions"]))
        summary = group_pages.group_summary(study, voxels)
        pages = {}
        for name, rows in regions.items():
            figure = None
            if drawn is not None and voxels.frame["captioned"].to_numpy()[rows].sum() >= LEAST_VOXELS:
                figure = f"figures/{Path(paths[name]).stem}.svg"
                beside[figure] = figure_svg(drawn.draw(name))
            more: dict[str, Any] = {"figure": figure, "maps": {n: found for n, (found, _) in maps.items()}}
            page = group_pages.group_page(study, voxels, rows, shown, name=name, kind="roi", **more)
            pages[paths[name]] = page
            bar.update(1)
        for name, (slug, rows) in subjects.items():
            own = summary if len(subjects) == 1 else group_pages.group_summary(*_only(study, voxels, rows))
            page = group_pages.group_page(study, voxels, rows, shown, name=name, kind="subject", summary=own)
            pages[f"subjects/{slug}.html"] = page
            bar.update(1)
        best = group_pages.best_section(study, voxels, everything, shown, mode="still")
        remarks += [*shown.remarks, *_sampled(study)]
        bar.update(1)
    sizes = [len(rows) for _, rows in subjects.values()]
    listed = pd.DataFrame({"subject": [n or "all voxels" for n in subjects], "n_voxels": sizes})
    context = {"phrases": study.phrases is not None, "remarks": list(dict.fromkeys(remarks))}
    context["texts"] = study.vectors.sizes["text"] if study.vectors is not None and "vectors" in meta else 0
    told = {"tiles": group_pages.tiles(study, voxels, everything), "terms": group_pages.terms_of(study, voxels)}
    look: dict[str, Any] = {"template": "explorer.html.j2", "context": context, "style": "explore", **told}
    look |= {
        "scripts": ["elements.js", "explorer_map.js", "explorer_search.js", "explorer.js"],
        "beside": beside | shown.files,
    }
    look |= {"files": _names(study, subjects), "data": {"meta": meta}, "pages": pages}
    look["export"] = lambda folder: _export(study, voxels, subjects, shown, folder, written)
    explore = Section("explore", "Explore voxels", nav="Explore", **look)
    told_apart = {name: frame for name, frame in study.verdicts().items() if len(frame) and name != "hypotheses"}
    quality = [Block(table=frame.head(60), heading=name) for name, frame in told_apart.items()]
    lead = (
        "A voxel of several regions counts in each. Each region has a page with a summary of its captions, its words, "
        "clusters and best voxels."
    )
    tables = [
        Block(table=summary, links=[paths[str(name)] for name in summary["roi"]]),
        Block(table=listed, links=[f"subjects/{slug}.html" for slug, _ in subjects.values()]),
    ]
    made = [explore, Section("regions", "Regions", lead, tables), best, group_pages.gate_section(voxels, everything)]
    claims = hypotheses_section(study, pages=paths), colours_section(study)
    made += [one for one in claims if one is not None]
    if quality:
        made.append(Section("quality", "Checks", "What captions are worth, each measure beside its control.", quality))
    return [*made, Section("methods", "Methods", study.methods().strip())]


def _choose(study: CaptionStudy, voxels: VoxelTable, groups: list[np.ndarray], shown: Pictures) -> None:
    """Make thumbnails of the best voxels first, so that a budget of them is spent there."""
    names = study.evidence["stimulus"].to_numpy(object)
    for rows in [best_rows(voxels, r, 8) for r in groups]:
        for voxel in voxels.frame["voxel"].iloc[rows]:
            for k in voxels.evidence.get(voxel, np.zeros(0, int))[:SHOWN]:
                shown.src(str(names[k]))
    # Then the first image of every voxel, the second, ...
    ranks = study.evidence["rank"].to_numpy()
    for name in dict.fromkeys(names[np.argsort(ranks, kind="stable")[: int((ranks <= SHOWN).sum())]]):
        shown.src(str(name))


def _sampled(study: CaptionStudy) -> list[str]:
    """That stability is known of a sample only, where it is."""
    if study.stability is None:
        return []
    n, of = study.stability["voxel"].nunique(), int(study.gate["captioned"].sum())
    if n >= of:
        return []
    return [f"Stability measured on {n:,} of {of:,} captioned voxels, a random sample; of the others it is not known."]


def _only(study: CaptionStudy, voxels: VoxelTable, rows: np.ndarray) -> tuple[Any, VoxelTable]:
    """Scores and table of some voxels, as far as a summary of regions needs them."""
    frame = voxels.frame.iloc[rows].reset_index(drop=True)
    frame.attrs = dict(voxels.frame.attrs)
    part = VoxelTable(frame, voxels.stability, voxels.captions, voxels.phrases, voxels.evidence, voxels.labels)
    return SimpleNamespace(scores=study.scores.isel(voxel=rows)), part


def _range(values: np.ndarray, low: float | None, high: float | None) -> list[float]:
    kept = values[np.isfinite(values)]
    if not kept.size:
        return [0.0, 1.0]
    top = float(np.quantile(kept, 0.99)) if high is None else high
    bottom = float(kept.min()) if low is None else low
    return [bottom, top] if top > bottom else [bottom - 0.5, bottom + 0.5]


def _numbers(voxels: VoxelTable) -> list[dict[str, Any]]:
    """What the map can be coloured by, with one range for all subjects."""
    out = []
    for key, about in EXPLORER.items():
        columns = [(f"stability:{k}", about["heading"].format(kind=k)) for k in voxels.stability]
        for column, name in columns if key == "stability" else [(key, about["heading"])]:
            if column in voxels.frame and voxels.frame[column].notna().any():
                span = _range(voxels.frame[column].to_numpy(float), about.get("low"), about.get("high"))
                out.append({"key": column, "name": name, "low": span[0], "high": span[1]})
    return out


def _assets(
    study: CaptionStudy, voxels: VoxelTable, subjects: Subjects, shown: Pictures, found: Mapping[str, Any], bar: Any
) -> tuple[dict[str, Any], dict[str, str | bytes], list[str]]:
    """What the explorer must know, the files that it reads, and remarks."""
    beside: dict[str, str | bytes] = {}
    remarks: list[str] = []
    details = Details(study, voxels, shown.describe)

    def kept(value: Any) -> str:
        text, name = asset(value)
        beside[f"assets/{name}"] = text
        return name

    listed = []
    for name, (_, rows) in subjects.items():
        maps, said = found[name]
        remarks += said
        for one in maps:
            if one["background"] is not None:
                path = f"assets/{hashlib.sha256(one['background']).hexdigest()[:16]}.png"
                beside[path], one["background"] = one["background"], path
        bar.update(1)
        chunks = [kept(details.of(rows[k : k + CHUNK])) for k in range(0, len(rows), CHUNK)]
        core = kept(subject_data(study, voxels, rows, maps))
        listed.append({"name": name, "n": len(rows), "core": core, "chunks": chunks})
    meta = {"title": study.title, "subjects": listed, "chunk": CHUNK, "labels": list(voxels.labels)}
    meta["labelKind"] = voxels.frame.attrs["label_kind"]
    meta |= {"labelColours": hex_colours(min(len(voxels.labels), 12)), "numbers": _numbers(voxels)}
    if study.vectors is not None and study.vectors.sizes["voxel"]:
        order = voxels.frame["voxel"].to_numpy()[np.concatenate([rows for _, rows in subjects.values()])]
        meta["vectors"] = kept(vector_data(study.vectors, order))
    meta |= {"stability": list(voxels.stability), "phrases": study.phrases is not None}
    return meta, beside, remarks


def _map_scores(study: CaptionStudy, table: VoxelTable, rows: np.ndarray) -> xr.Dataset:
    """Scores of some voxels, with what was found of their captions."""
    scores = study.scores.isel(voxel=rows)
    frame = table.frame.iloc[rows]
    more = {"unsupported_share": "unsupported", "sentence_rho": "rho", "image_rho": "image_rho"}
    more |= {f"stability_{kind}": f"stability:{kind}" for kind in table.stability}
    for name, column in more.items():
        if column in frame and frame[column].notna().any():
            scores[name] = ("voxel", frame[column].to_numpy(np.float32))
    return scores


def _names(study: CaptionStudy, subjects: Subjects) -> list[str]:
    """Files that `_export` writes."""
    listed = ["captions.csv", "captions.json", *(["captions.parquet"] if find_spec("pyarrow") else [])]
    listed += [f"{name}.csv" for name in _TABLES if getattr(study, name) is not None]
    listed += ["thumbnails.csv", "scores.nc", "methods.txt", "settings.json", "provenance.json"]
    before = "" if len(subjects) == 1 else "subjects/*/"
    for _, rows in subjects.values():
        found = export_files.map_files(study.scores.isel(voxel=rows))
        found += ["maps/*.label.gii"] * ("maps/*.func.gii" in found)
        listed += [before + name for name in found]
    return list(dict.fromkeys(listed))


def _export(
    study: CaptionStudy,
    voxels: VoxelTable,
    subjects: Subjects,
    shown: Pictures,
    folder: Path,
    written: xr.Dataset | None,
) -> None:
    """Every table and map. With one subject, maps stand in ``maps/``; with several, in ``subjects/SUBJECT/maps/``,
    because they share places."""
    failed = study.failed_controls()
    captions = study.captions
    if failed.notna().any():
        of = failed.fillna("").to_dict()
        first = captions["rank"] == 1
        captions = captions.assign(fails=[of.get(v, "") if f else "" for v, f in zip(captions["voxel"], first)])
    export_files.write_captions(folder, captions)
    if find_spec("pyarrow") is not None:
        with atomic_path(folder / "captions.parquet") as temporary:
            text = {c: str for c in captions.columns if captions[c].dtype == object}
            captions.astype(text).to_parquet(temporary, index=False)
    for name in _TABLES:
        if getattr(study, name) is not None:
            write_table(getattr(study, name), folder / f"{name}.csv")
    write_table(shown.table(), folder / "thumbnails.csv")
    if written is None:
        export_files.write_scores(folder, study.scores)
    write_text(folder / "methods.txt", study.methods())
    write_json(folder / "settings.json", dict(study.settings))
    write_json(folder / "provenance.json", dict(study.provenance))
    for slug, rows in subjects.values():
        where = folder if len(subjects) == 1 else folder / "subjects" / slug
        scores = _map_scores(study, voxels, rows)
        volume, surface, _ = export_files.places(scores)
        if not volume and not surface:
            continue
        done = export_files.numeric_scores(written) if written is not None and len(subjects) == 1 else []
        export_files.write_maps(where, scores, [n for n in export_files.numeric_scores(scores) if n not in done])
        labels, kind = voxels.frame["label"].to_numpy(object)[rows], str(voxels.frame.attrs["label_kind"])
        export_files.write_label_maps(where / "maps", scores, labels, voxels.labels, kind)
