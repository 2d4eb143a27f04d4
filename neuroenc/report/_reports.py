"""Reports: the page of a study, with a tab for each part that it has, and pages of one part."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from neuroenc._core.errors import ConfigError
from neuroenc._core.optional import require
from neuroenc.captions import CaptionStudy
from neuroenc.data import Stimuli
from neuroenc.report._page import Page, Section
from neuroenc.report.explorer._data import study_of
from neuroenc.report.explorer._sections import explorer_sections
from neuroenc.report.sections._accuracy import accuracy_sections
from neuroenc.report.sections._comparison import comparison_sections
from neuroenc.report.sections._planning import planning_sections
from neuroenc.report.sections._support import support_sections

Part = Mapping[str, Any]


def study_page(
    title: str,
    *,
    accuracy: xr.Dataset | Part | None = None,
    comparison: Part | None = None,
    captions: CaptionStudy | Part | None = None,
    support: pd.DataFrame | Part | None = None,
    plan: Part | None = None,
    summary: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    provenance: str | None = None,
    files: Sequence[str] = (),
    kicker: str = "",
    progress: bool = False,
) -> Page:
    """Page of a study, with a tab for each part that is given: Accuracy, Comparison, Captions, Few trials, Plan.

    Parameters
    ----------
    title : str
    accuracy : Dataset over ``voxel``, or mapping, optional
        Scores of one encoder, or the arguments of `accuracy_sections` by name.
    comparison : mapping, optional
        Arguments of `comparison_sections`.
    captions : CaptionStudy, or mapping, optional
        Captions of voxels, or the arguments of `explorer_sections` (``study, stimuli, images``).
    support : DataFrame, or mapping, optional
        Accuracy over support size, or the arguments of `support_sections`.
    plan : mapping, optional
        Arguments of `planning_sections`.
    summary, settings : mapping, optional
        Numbers of the run, and what it was run with (may be nested).
    notes : sequence of str
        Caveats; those of the captions follow.
    provenance : str, optional
        JSON string; by default the versions in use.
    files : sequence of str
        Names of more files that lie beside the page.
    kicker : str
        What kind of report it is, above the title.
    progress : bool

    Returns
    -------
    Page
        With one part there are no tabs. `Page.add` takes sections of your own; `Page.write` writes the page and the
        files of all parts into a folder.

    Raises
    ------
    DataError
        A part lacks what it needs, or its tables speak of different voxels.

    Examples
    --------
    >>> import tempfile
    >>> scores = xr.Dataset({"r": ("voxel", [0.2, 0.4, 0.5])}, coords={"voxel": [0, 1, 2]})
    >>> curve = pd.DataFrame({"method": "ridge", "group": "all", "size": [20, 50], "explained_variance": [0.1, 0.2]})
    >>> page = study_page("Three voxels", accuracy={"scores": scores, "roi_table": None}, support=curve)
    >>> page.tabs
    {'Accuracy': ['Accuracy'], 'Few trials': ['How many trials are enough']}
    >>> page.write(tempfile.mkdtemp()).name
    'index.html'
    """
    require("matplotlib", "brain")
    numbers, written = dict(summary or {}), None if accuracy is None else _part(accuracy, "scores")["scores"]
    parts: dict[str, tuple[Any, str, Callable[..., list[Section]], dict[str, Any]]] = {
        "Accuracy": (accuracy, "scores", accuracy_sections, {"rates": numbers, "progress": progress}),
        "Comparison": (comparison, "scores", comparison_sections, {"numbers": numbers, "progress": progress}),
        "Captions": (captions, "study", explorer_sections, {"written": written, "progress": progress}),
        "Few trials": (support, "curve", support_sections, {"numbers": numbers}),
        "Plan": (plan, "table", planning_sections, {}),
    }
    made = {
        tab: make(**{**options, **_part(given, name)})
        for tab, (given, name, make, options) in parts.items()
        if given is not None
    }
    if not made:
        raise ConfigError("a page needs a part; legal: accuracy, comparison, captions, support, plan.")
    caveats = [*notes, *(_part(captions, "study")["study"].caveats if captions is not None else ())]
    told: dict[str, Any] = {"summary": summary, "settings": settings, "provenance": provenance, "files": files}
    page = Page(title, kicker=kicker or "Voxelwise encoding report", notes=caveats, **told)
    for tab, sections in made.items():
        page.add(*sections, tab=tab)
    return page


def _part(given: Any, name: str) -> dict[str, Any]:
    return dict(given) if isinstance(given, Mapping) and not isinstance(given, xr.Dataset) else {name: given}


_ABOUT = ("summary", "settings", "notes", "provenance", "files")


def write_report(
    out: str | os.PathLike[str],
    *,
    title: str,
    scores: xr.Dataset,
    captions: pd.DataFrame | None = None,
    evidence: pd.DataFrame | None = None,
    stimuli: Stimuli | None = None,
    subject: str = "",
    progress: bool = True,
    **options: Any,
) -> Path:
    """Write the report of one encoder: ``index.html`` and the files beside it, into the folder ``out``.

    The page needs no network, and without captions no other file. All text that comes from data is escaped, and the
    page's own policy forbids any script but its own. Equal inputs give equal bytes; every file is written atomically.

    Parameters
    ----------
    out : path
        Folder; made if it is absent.
    title : str
    scores : xarray.Dataset over ``voxel``
    captions : pandas.DataFrame, optional
        One row per voxel and rank: ``voxel, rank, caption, score``, for a tab of captions. ``control`` may say which
        control a caption did not pass, ``evidence`` may hold stimulus ids joined by ";". A voxel of ``scores`` without
        a row, or with an empty caption, is counted as held back.
    evidence : pandas.DataFrame, optional
        ``voxel, rank, stimulus, predicted``: the images that a voxel's encoder prefers.
    stimuli : neuroenc.data.Stimuli, optional
        Images of the evidence, shown as thumbnails of at most 96 pixels.
    subject : str
    progress : bool
    **options
        ``roi_table, controls, sections, maps`` of `accuracy_sections`; ``summary, settings, notes, provenance`` of
        `study_page`.

    Returns
    -------
    pathlib.Path
        The page.

    Raises
    ------
    DataError
        If scores, captions or evidence lack what is needed or speak of different voxels.
    ConfigError
        If ``maps`` names a score that is not there.

    Examples
    --------
    >>> import tempfile
    >>> scores = xr.Dataset({"r": ("voxel", [0.2, 0.4, 0.5])}, coords={"voxel": [0, 1, 2]})
    >>> page = write_report(tempfile.mkdtemp(), title="Three voxels", scores=scores, progress=False)
    >>> page.name, "<h1>Three voxels</h1>" in page.read_text()
    ('index.html', True)
    """
    kicker = f"Voxelwise encoding report{f' · {subject}' if subject else ''}"
    about = {name: options.pop(name) for name in _ABOUT if name in options}
    told = None
    if captions is not None:
        told = {"study": study_of(title, scores, captions, evidence), "stimuli": stimuli}
    part = {"scores": scores, **options}
    return study_page(title, accuracy=part, captions=told, kicker=kicker, progress=progress, **about).write(out)


def write_caption_report(
    study: CaptionStudy,
    folder: str | os.PathLike[str],
    *,
    stimuli: Stimuli | None = None,
    images: Mapping[str, Any] | Callable[[str], Any] | None = None,
    figures: bool = False,
    progress: bool = True,
) -> Path:
    """Write the report of voxel captions: an explorer, pages of regions and subjects, and every table and map.

    Everything lies in the folder and opens from disk; nothing is fetched. Equal inputs give equal bytes.

    Parameters
    ----------
    study : neuroenc.captions.CaptionStudy
    folder : path
        Made if absent; what it receives is named at `explorer_sections`, and ``index.html`` is written last.
    stimuli : neuroenc.data.Stimuli, optional
        Images, captions, source and licence of the evidence.
    images : mapping of stimulus id to path, array or PIL image, or callable, optional
        Images that are not in ``stimuli``; a callable gets the id and may return None.
    figures : bool
        Figures of regions for print, as in `explorer_sections`.
    progress : bool

    Returns
    -------
    pathlib.Path
        ``index.html``.

    Examples
    --------
    >>> import tempfile
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
    require("matplotlib", "brain")
    sections = explorer_sections(study, stimuli=stimuli, images=images, figures=figures, progress=progress)
    origin = json.dumps(dict(study.provenance), default=str) if study.provenance else None
    about: dict[str, Any] = {"settings": dict(study.settings), "notes": study.caveats, "provenance": origin}
    return Page(study.title, kicker="Voxel captions", **about).add(*sections).write(folder)
