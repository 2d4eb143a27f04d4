"""A page of sections: one design, one file to open, whatever it shows."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import ConfigError
from neuroenc._core.files import atomic_path, write_text
from neuroenc._core.progress import progress as progress_bar
from neuroenc._core.provenance import provenance as make_provenance
from neuroenc._version import __version__
from neuroenc.report import _style
from neuroenc.report._style import WIDTH, data_uri, figure_svg, flatten, number, parsed, shipped, table

#: What words of the pages mean; a section names those that it uses.
TERMS: Mapping[str, str] = tomllib.loads(shipped("terms.toml"))


@dataclass(frozen=True, eq=False)
class Block:
    """A figure, what it says in words, and its numbers as a table; each may be absent.

    Parameters
    ----------
    figure : matplotlib Figure, str (a data URI), or list of either
    alt : str
        The figure in words, with numbers.
    caption : str
        Below the figure.
    table : DataFrame
    heading : str
    about : str
        What the table holds: it can then be folded, and starts folded if it has more than 12 rows.
    opened : bool
        Whether it starts unfolded.
    legend : sequence of {"name", "colour", "said"}
    facts : sequence of (name, text)
        Below the caption.
    links : sequence of str
        Addresses of the first column's cells.
    """

    figure: Any = None
    alt: str = ""
    caption: str = ""
    table: pd.DataFrame | None = None
    heading: str = ""
    about: str = ""
    opened: bool | None = None
    legend: Sequence[Mapping[str, str]] = ()
    facts: Sequence[tuple[str, str]] = ()
    links: Sequence[str] = ()

    def context(self) -> dict[str, Any]:
        """What the template shows."""
        n = 0 if self.table is None else len(self.table)
        figures = self.figure if isinstance(self.figure, list) else [x for x in (self.figure,) if x is not None]
        uris = [x if isinstance(x, str) else data_uri(figure_svg(x), "image/svg+xml") for x in figures]
        return vars(self) | {
            "images": [(uri, _width(uri)) for uri in uris],
            "table": table(self.table, self.links) if self.table is not None and n else None,
            "n_rows": n,
            "opened": n <= 12 if self.opened is None else self.opened,
        }


@dataclass(frozen=True, eq=False)
class Section:
    """A part of a page under one heading; a function of labelled tables makes it, or None where there is nothing.

    Parameters
    ----------
    id : str
        Its address within the page.
    title : str
    lead : str
        Paragraphs, apart by an empty line.
    blocks : sequence of Block
    nav : str
        Short form of the title, for the page's navigation; "" for none.
    remarks : sequence of str
        What a reader must know of how it was made.
    tiles : sequence of (value, label)
        Numbers that stand at the head of the page (of the tab).
    terms : sequence of str
        Keys of `TERMS` that it uses.
    template, context, style, scripts, mode
        Markup, data, CSS class and scripts of its own ("live": only with scripts, "still": only without).
    styles : sequence of str
        Stylesheets of its own beside the page's.
    asks : bool
        Its scripts ask the server that sent the page, which no other page may.
    data : mapping of id to anything JSON holds
        For its scripts.
    beside : mapping of relative path to str or bytes
        Files that the section shows.
    pages : mapping of relative path to Page
    export : callable of a folder, optional
        Writes files for other programs.
    files : sequence of str
        Names of those, for the last line of the page.
    """

    id: str
    title: str
    lead: str = ""
    blocks: Sequence[Block] = ()
    nav: str = ""
    remarks: Sequence[str] = ()
    tiles: Sequence[tuple[str, str]] = ()
    terms: Sequence[str] = ()
    template: str = ""
    context: Mapping[str, Any] = field(default_factory=dict)
    style: str = ""
    scripts: Sequence[str] = ()
    mode: str = ""
    styles: Sequence[str] = ()
    asks: bool = False
    data: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, str | bytes] = field(default_factory=dict)
    pages: Mapping[str, Page] = field(default_factory=dict)
    export: Callable[[Path], Any] | None = None
    files: Sequence[str] = ()

    def context_at(self, anchor: str) -> dict[str, Any]:
        """What the template shows."""
        texts = {"paragraphs": [p for p in self.lead.split("\n\n") if p], "remarks": [x for x in self.remarks if x]}
        return vars(self) | texts | {"id": anchor, "blocks": [block.context() for block in self.blocks]}


def make_sections(makers: Sequence[Callable[[], Section | None]], progress: bool) -> list[Section]:
    """What each maker gives, where it gives a section, with a bar."""
    made = []
    with progress_bar(desc="report", total=len(makers), show=progress) as bar:
        for make in makers:
            made.append(make())
            bar.update(1)
    return [section for section in made if section is not None]


@dataclass(eq=False, repr=False)
class Page:
    """One HTML page of sections, in one tab or several.

    The page fetches nothing, and its own policy forbids any script but its own. All text from data is escaped. Equal
    sections give equal bytes.

    Parameters
    ----------
    title : str
    kicker : str
        What kind of page it is, above the title.
    summary, settings : mapping, optional
        Numbers of the run, and what it was run with (may be nested).
    notes : sequence of str
        Caveats.
    provenance : str, optional
        JSON string; by default the versions in use.
    files : sequence of str
        Names of files that lie beside the page, for its last line.
    home : (address, title), optional
        The page that this one belongs to; settings and provenance stand there.
    links : sequence of (address, text)
        Below the title.

    Examples
    --------
    >>> import tempfile
    >>> import pandas as pd
    >>> table = pd.DataFrame({"roi": ["V1", "FFA"], "median_r": [0.41, 0.52]})
    >>> page = Page("Two regions", settings={"seed": 0})
    >>> page = page.add(Section("accuracy", "Accuracy", "Held-out stimuli.", [Block(table=table)]), None)
    >>> page.tabs
    {'': ['Accuracy']}
    >>> page.write(tempfile.mkdtemp()).name
    'index.html'
    """

    title: str
    _: KW_ONLY
    kicker: str = ""
    summary: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()
    provenance: str | None = None
    files: Sequence[str] = ()
    home: tuple[str, str] | None = None
    links: Sequence[tuple[str, str]] = ()

    def __post_init__(self) -> None:
        self._sections: dict[str, list[Section]] = {}

    @property
    def tabs(self) -> dict[str, list[str]]:
        """Titles of the sections of each tab."""
        return {tab: [s.title for s in sections] for tab, sections in self._sections.items()}

    def add(self, *sections: Section | None, tab: str = "") -> Page:
        """Append sections to a tab, in their order; None is passed over. Returns the page."""
        for section in sections:
            if section is None:
                continue
            if not isinstance(section, Section):
                raise ConfigError(f"a page takes sections; found a {type(section).__name__}.")
            self._sections.setdefault(tab, []).append(section)
        return self

    def html(self, path: str = "index.html") -> str:
        """The page as text, as it stands at ``path`` in its folder."""
        many = len(self._sections) > 1
        tabs: list[dict[str, Any]] = []
        every = [s for sections in self._sections.values() for s in sections]
        for name, sections in self._sections.items():
            slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            # Tabs have sections of equal names.
            shown = [s.context_at(f"{slug}-{s.id}" if many else s.id) for s in sections]
            terms = [(t, TERMS[t]) for t in dict.fromkeys(t for s in sections for t in s.terms)]
            tiles = [{"value": v, "label": k, "words": len(v) > 9} for s in sections for v, k in s.tiles]
            tabs.append({"name": name, "id": slug, "sections": shown, "terms": terms, "tiles": tiles})
        context = {name: getattr(self, name) for name in ("title", "kicker", "home")}
        context |= {"base": "../" * path.count("/"), "version": __version__, "many": many, "tabs": tabs}
        context |= {
            "links_below": list(self.links),
            "notes": [str(note) for note in self.notes],
            "summary": [(str(k), number(v, str(k))) for k, v in (self.summary or {}).items()],
            "settings": flatten(self.settings or {}),
            "origin": _origin(self.provenance) if self.home is None else None,
            "files": list(dict.fromkeys([*(f for s in every for f in s.files), *map(str, self.files)])),
            "data": {name: _embedded(value) for s in every for name, value in s.data.items()},
        }
        scripts = ["page.js", *dict.fromkeys(x for s in every for x in s.scripts)]
        beside = self.home is not None or any(s.beside for s in every)
        styles = ["page.css", *(["explorer.css"] if beside else []), *(x for s in every for x in s.styles)]
        context["asks"] = any(s.asks for s in every)
        return _render(context, scripts, list(dict.fromkeys(styles)), beside)

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``index.html`` last, after everything that it names, and remove what an earlier page showed.

        Parameters
        ----------
        folder : path
            Made if it is absent.

        Returns
        -------
        pathlib.Path
            The page.
        """
        out = Path(folder)
        every = [s for sections in self._sections.values() for s in sections]
        # Made before anything is written: a page that cannot be made leaves the one that stands.
        text = self.html()
        below = {path: page.html(path) for s in every for path, page in s.pages.items()}
        beside = {path: content for s in every for path, content in s.beside.items()}
        stale = _exported(out / "index.html") - {str(f) for f in (*(f for s in every for f in s.files), *self.files)}
        for path, content in beside.items():
            _put(out / path, content.encode() if isinstance(content, str) else content)
        for section in every:
            if section.export is not None:
                section.export(out)
        for path, content in below.items():
            write_text(out / path, content)
        page = write_text(out / "index.html", text)
        _clear(out, set(beside))
        for name in stale:
            (out / name).unlink(missing_ok=True)
        return page


def _width(uri: str) -> int:
    """CSS pixels of a figure of ours: a figure of `WIDTH` inches is as wide as a column."""
    kind, content = uri.split(",", 1)
    if not kind.endswith(";base64"):
        return 1056
    head = base64.b64decode(content[:1600])
    if "png" in kind:
        inches = int.from_bytes(head[16:20], "big") / 150
    else:
        found = re.search(rb'width="([\d.]+)pt"', head)
        inches = float(found[1]) / 72 if found else WIDTH
    return round(inches / WIDTH * 1056)


def _put(path: Path, content: bytes) -> None:
    """Whole or not at all, but not waited for until it is on the disk: thousands of files are written, and what the
    machine lost is written again by the next report. Names are hashes of contents."""
    if path.is_file() and path.stat().st_size == len(content):
        return
    with atomic_path(path, sync=False) as temporary:
        temporary.write_bytes(content)


def _exported(page: Path) -> set[str]:
    """Files that an earlier page wrote beside itself, by its footer; those of commands lie in other folders."""
    footer = page.read_text(encoding="utf-8").rpartition("<footer>")[2] if page.is_file() else ""
    return set(re.findall(r"<code>([\w-]+(?:\.\w+)+)</code>", footer))


def _clear(out: Path, kept: set[str]) -> None:
    """Remove data and images of an earlier page in this folder; their names are hashes, ours alone."""
    for part in ("assets", "images"):
        for file in (out / part).glob("*") if (out / part).is_dir() else []:
            ours = re.fullmatch(r"[0-9a-f]{16}\.(js|png|jpg)", file.name)
            if ours and f"{part}/{file.name}" not in kept:
                file.unlink()


def _origin(provenance: str | None) -> dict[str, Any]:
    """Versions apart from the rest of the provenance."""
    record = parsed(provenance or make_provenance())
    if not isinstance(record, dict):
        return {"versions": [("neuroenc", __version__)], "rest": provenance}
    versions = record.pop("versions", {"neuroenc": __version__})
    shown = flatten(versions) if isinstance(versions, dict) else [("versions", str(versions))]
    rest = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) if record and provenance else ""
    return {"versions": shown, "rest": rest}


def _embedded(value: Any) -> Any:
    """JSON that may stand inside a script element: no "<", so no tag can begin or end there."""
    from markupsafe import Markup

    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for mark in "&<>\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("neuroenc.report", "templates")
    # Escaping is always on, not by file ending: captions, file names and settings are other people's text.
    options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    made = Environment(loader=loader, autoescape=True, **options)
    made.filters |= {name: getattr(_style, name) for name in ("number", "bar", "beside", "voxel_link")}
    made.tests["finite"] = lambda value: isinstance(value, (int, float, np.number)) and bool(np.isfinite(value))
    return made


def _render(context: Mapping[str, Any], scripts: Sequence[str], styles: Sequence[str], beside: bool) -> str:
    """The page as text. Its policy lets only its own script run, and lets nothing be fetched but, where there are files
    ``beside`` it, those, and what a section asks its server."""
    from markupsafe import Markup

    script = "".join(map(shipped, scripts))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    own = " 'self' file:" if beside else ""
    policy = f"default-src 'none'; img-src data:{own}; style-src 'unsafe-inline'; script-src 'sha256-{digest}'{own}"
    policy += "; connect-src 'self'" if context["asks"] else ""
    style = "".join(map(shipped, styles))
    page = _environment().get_template("page.html.j2")
    return page.render(policy=policy, style=Markup(style), script=Markup(script), **context)
