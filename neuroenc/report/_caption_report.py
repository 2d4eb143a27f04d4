"""The report of voxel captions: a page to explore them, a page for each region and subject, files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroenc._core.errors import DataError
from neuroenc._core.files import atomic_path, write_text
from neuroenc._core.progress import progress as progress_bar
from neuroenc._version import __version__
from neuroenc.report._caption_cards import best_rows, voxel_cards
from neuroenc.report._caption_data import NUMBERS, SHOWN, Details, VoxelTable, asset, subject_data, voxel_table
from neuroenc.report._caption_exports import embed_json, write_study_files
from neuroenc.report._caption_images import EvidenceImages
from neuroenc.report._caption_layout import layouts
from neuroenc.report._caption_pages import gate_table, group_page, group_summary, slugs, tiles
from neuroenc.report._html import flatten, joined, render, table
from neuroenc.report._report import _origin
from neuroenc.report._style import category_colours
from neuroenc.report._tables import NO_ROI, memberships

if TYPE_CHECKING:
    from neuroenc.captions import CaptionStudy
    from neuroenc.data import Stimuli

__all__ = ["write_caption_report"]

CHUNK = 400  # voxels whose evidence and phrases lie in one file
_STYLES = ("report.css", "caption_pages.css")


def write_caption_report(
    study: CaptionStudy,
    folder: str | os.PathLike[str],
    *,
    stimuli: Stimuli | None = None,
    images: Mapping[str, Any] | Callable[[str], Any] | None = None,
    progress: bool = True,
) -> Path:
    """Write ``index.html``, pages of regions and subjects, and every table and map of a study.

    The index shows the voxels on the brain (flat and inflated fsaverage5, slices, or a grid); a voxel that is
    clicked, found by words or named in the address (``#voxel=ID``) shows its captions with their phrases marked
    as supported, uncertain or unsupported, its images, accuracy, stability and sentence-level score. Everything
    lies in the folder and opens from disk; nothing is fetched. Text from data is escaped or set as text, data
    travel as base64, and the page's policy lets only its own script run. Equal inputs give equal bytes.

    Parameters
    ----------
    study : neuroenc.captions.CaptionStudy
    folder : path
        Made if absent. Receives ``index.html`` (written last), ``rois/``, ``subjects/``, ``assets/``, ``images/``,
        ``captions.csv``, ``.json`` and, with pyarrow, ``.parquet``; ``evidence.csv``, ``phrases.csv`` and the other
        tables; ``scores.nc``; under ``maps/`` (``subjects/NAME/maps/`` where there are several) all scores, and what
        each voxel is about as label maps with look-up tables, as NIfTI and GIFTI; ``methods.txt``,
        ``settings.json``, ``provenance.json``.
    stimuli : neuroenc.data.Stimuli, optional
        Images, captions, source and licence of the evidence.
    images : mapping of stimulus id to path, array or PIL image, or callable, optional
        Images that are not in ``stimuli``; a callable gets the id and may return None.
    progress : bool

    Returns
    -------
    pathlib.Path
        ``index.html``.

    Raises
    ------
    DataError
        ``study`` is not a CaptionStudy.
    ModuleNotFoundError
        matplotlib is not installed.

    Examples
    --------
    >>> import tempfile
    >>> import pandas as pd, xarray as xr
    >>> from neuroenc.captions import CaptionStudy
    >>> study = CaptionStudy(
    ...     "one voxel", xr.Dataset({"r": ("voxel", [0.5])}, coords={"voxel": [7]}),
    ...     captions=pd.DataFrame({"voxel": [7], "rank": [1], "caption": ["a dog"], "score": [0.3]}),
    ...     evidence=pd.DataFrame({"voxel": [7], "rank": [1], "stimulus": ["s1"], "predicted": [1.2]}),
    ...     gate=pd.DataFrame({"voxel": [7], "captioned": [True], "reason": [""]}))
    >>> page = write_caption_report(study, tempfile.mkdtemp(), progress=False)
    >>> page.name, sorted(x.name for x in page.parent.iterdir() if x.is_dir())
    ('index.html', ['assets', 'rois', 'subjects'])
    """
    from neuroenc.captions import CaptionStudy
    from neuroenc.captions.checks._verdicts import with_verdicts

    if not isinstance(study, CaptionStudy):
        raise DataError(
            f"study is a {type(study).__name__}; a CaptionStudy is needed. Next step: CaptionStudy.load(folder), or "
            "write_report for plain tables."
        )
    out = Path(folder)
    voxels = voxel_table(study)
    shown = EvidenceImages(out, stimuli, images, budget=24_000_000)
    names = list(dict.fromkeys(voxels.frame["subject"]))
    files = slugs(names)
    subjects = {n: (files[n], np.flatnonzero((voxels.frame["subject"] == n).to_numpy())) for n in names}
    regions = {n: np.flatnonzero(mask) for n, mask in memberships(study.scores).items()}
    pages = slugs(regions)
    everything = np.arange(len(voxels.frame))

    stimuli_of = study.evidence["stimulus"].to_numpy(object)
    with progress_bar(desc="caption report", total=len(subjects) * 2 + len(regions) + 3, show=progress) as bar:
        # The best voxels come first, so that a budget of thumbnails is spent on them.
        for rows in [best_rows(voxels, r, 8) for r in (everything, *regions.values())]:
            for voxel in voxels.frame["voxel"].iloc[rows]:
                for k in voxels.evidence.get(voxel, np.zeros(0, int))[:SHOWN]:
                    shown.src(str(stimuli_of[k]))
        # Then the first image of every voxel, the second, ...
        ranks = study.evidence["rank"].to_numpy()
        for name in dict.fromkeys(stimuli_of[np.argsort(ranks, kind="stable")[: int((ranks <= SHOWN).sum())]]):
            shown.src(str(name))
        meta, assets, remarks = _assets(study, voxels, subjects, shown, out, bar)
        meta |= {"pages": {n: f"rois/{pages[n]}.html" for n in regions}, "regions": [n for n in regions if n != NO_ROI]}
        meta["regionColours"] = _hex(len(meta["regions"]))
        listed = write_study_files(study, voxels, out, subjects)
        bar.update(1)
        summary = group_summary(study, voxels)
        common = {"version": __version__, "study": study.title, "has_phrases": study.phrases is not None}
        for name, rows in regions.items():
            context = group_page(study, voxels, rows, shown, name=name, kind="roi")
            write_text(out / "rois" / f"{pages[name]}.html", _group(context | common))
            bar.update(1)
        for name, (slug, rows) in subjects.items():
            own = None
            if len(subjects) > 1:
                part = _only(study, voxels, rows)
                own = group_summary(*part)
            context = group_page(
                study, voxels, rows, shown, name=name, kind="subject", summary=summary if own is None else own
            )
            write_text(out / "subjects" / f"{slug}.html", _group(context | common))
            bar.update(1)
        if shown.unreadable:
            remarks.append(f"{len(shown.unreadable)} evidence images could not be read: {joined(shown.unreadable)}.")
        if shown.left_out:
            remarks.append(f"{shown.left_out:,} evidence images are named but not shown, to keep the report small.")
        remarks += _sampled(study)
        context = common | {
            "title": study.title,
            "tiles": tiles(study, voxels, everything),
            "n_subjects": len([n for n in names if n]),
            "remarks": list(dict.fromkeys(remarks)),
            "regions": _linked(summary, pages),
            "subjects": [
                {"name": n or "all voxels", "href": f"subjects/{s}.html", "n": f"{len(r):,}"}
                for n, (s, r) in subjects.items()
            ],
            "gate": gate_table(voxels, everything),
            "n": len(voxels.frame),
            "n_held": int((~voxels.frame["captioned"]).sum()),
            "quality": [
                {"name": str(n), "table": table(with_verdicts(str(n), f).head(60))}
                for n, f in study.quality.items()
                if len(f)
            ],
            "cards": voxel_cards(study, voxels, best_rows(voxels, everything, 8), shown),
            "caveats": list(study.caveats),
            "licence": shown.licence,
            "methods": [p for p in study.methods().strip().split("\n\n") if p],
            "settings": flatten(dict(study.settings)),
            "summary": [],
            "origin": _origin(json.dumps(dict(study.provenance), default=str) if study.provenance else None),
            "files": listed,
            "meta": _markup(embed_json(meta | {"licence": shown.licence})),
        }
        # The page comes last: where it stands, everything it names is there.
        page = write_text(
            out / "index.html",
            render(
                context,
                "caption_index.html.j2",
                (*_STYLES, "caption_explorer.css"),
                ("report.js", "caption_map.js", "caption_search.js", "caption_explorer.js"),
                beside=True,
            ),
        )
        _clear(out, assets, shown.written)
        bar.update(2)
    return page


def _sampled(study: CaptionStudy) -> list[str]:
    """That stability is known of a sample only, where it is."""
    if study.stability is None:
        return []
    n, of = study.stability["voxel"].nunique(), int(study.gate["captioned"].sum())
    if n >= of:
        return []
    return [f"Stability measured on {n:,} of {of:,} captioned voxels, a random sample; of the others it is not known."]


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _group(context: dict[str, Any]) -> str:
    return render(context, "caption_group.html.j2", _STYLES, beside=True)


def _hex(n: int) -> list[str]:
    return ["#" + "".join(f"{round(255 * c):02x}" for c in rgba[:3]) for rgba in category_colours(n)]


def _only(study: CaptionStudy, voxels: VoxelTable, rows: np.ndarray) -> tuple[Any, VoxelTable]:
    """Scores and table of some voxels, as far as a summary of regions needs them."""
    from types import SimpleNamespace

    frame = voxels.frame.iloc[rows].reset_index(drop=True)
    frame.attrs = dict(voxels.frame.attrs)
    part = VoxelTable(frame, voxels.stability, voxels.captions, voxels.phrases, voxels.evidence, voxels.labels)
    return SimpleNamespace(scores=study.scores.isel(voxel=rows)), part


def _linked(summary: Any, pages: Mapping[str, str]) -> dict[str, Any]:
    """The table of regions, each row with the address of its page."""
    found = table(summary)
    return found | {"hrefs": [f"rois/{pages[str(name)]}.html" for name in summary["roi"]]}


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
    for key, (heading, low, high) in NUMBERS.items():
        columns = [(f"stability:{k}", heading.format(kind=k)) for k in voxels.stability]
        for column, name in columns if key == "stability" else [(key, heading)]:
            if column in voxels.frame and voxels.frame[column].notna().any():
                span = _range(voxels.frame[column].to_numpy(float), low, high)
                out.append({"key": column, "name": name, "low": span[0], "high": span[1]})
    return out


def _assets(
    study: CaptionStudy,
    voxels: VoxelTable,
    subjects: Mapping[str, tuple[str, np.ndarray]],
    shown: EvidenceImages,
    out: Path,
    bar: Any,
) -> tuple[dict[str, Any], set[str], list[str]]:
    """Write the data that the index reads; what it must know of them, their names, and remarks."""
    written: set[str] = set()
    remarks: list[str] = []
    details = Details(study, voxels, shown.describe)
    listed = []
    for name, (_, rows) in subjects.items():
        maps, said = layouts(study.scores.isel(voxel=rows))
        remarks += said
        for one in maps:
            if one["background"] is not None:
                one["background"] = _write_png(out, one["background"], written)
        bar.update(1)
        chunks = [_write_asset(out, details.of(rows[k : k + CHUNK]), written) for k in range(0, len(rows), CHUNK)]
        core = _write_asset(out, subject_data(study, voxels, rows, maps), written)
        listed.append({"name": name, "n": len(rows), "core": core, "chunks": chunks})
    meta = {
        "title": study.title,
        "subjects": listed,
        "chunk": CHUNK,
        "labels": list(voxels.labels),
        "labelKind": voxels.frame.attrs["label_kind"],
        "labelColours": _hex(min(len(voxels.labels), 12)),
        "numbers": _numbers(voxels),
        "stability": list(voxels.stability),
        "phrases": study.phrases is not None,
    }
    return meta, written, remarks


def _write_asset(out: Path, value: Any, written: set[str]) -> str:
    text, name = asset(value)
    write_text(out / "assets" / name, text)
    written.add(name)
    return name


def _write_png(out: Path, content: bytes, written: set[str]) -> str:
    import hashlib

    name = hashlib.sha256(content).hexdigest()[:16] + ".png"
    with atomic_path(out / "assets" / name) as temporary:
        temporary.write_bytes(content)
    written.add(name)
    return f"assets/{name}"


def _clear(out: Path, assets: set[str], images: set[str]) -> None:
    """Remove data and images of an earlier report in this folder; their names are hashes, ours alone."""
    for part, kept in (("assets", assets), ("images", images)):
        for file in (out / part).glob("*") if (out / part).is_dir() else []:
            stem, dot, end = file.name.partition(".")
            ours = len(stem) == 16 and not stem.strip("0123456789abcdef") and dot and end in ("js", "png", "jpg")
            if ours and file.name not in kept:
                file.unlink()
