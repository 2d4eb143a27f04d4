"""Write the pages that are made from the code: API reference, command line, config file, gallery.

They go to docs/reference and docs/gallery, which git ignores; `conf.py` calls `write_all` before sphinx reads them.
"""

from __future__ import annotations

import ast
import base64
import importlib
import inspect
import json
import math
import re
import struct
import tomllib
import typing
from collections import Counter
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "neuroenc"
NOTEBOOKS = DOCS.parent / "notebooks"
# Rooms in the order in which an analysis meets them; others follow by name.
ORDER = [
    "",
    "study",
    "data",
    "embedding",
    "encoders",
    "stats",
    "captions",
    "retrieval",
    "report",
    "attention",
]


class Room(typing.NamedTuple):
    """A public module: its dotted name, and the names of its stub with the private module that each comes from."""

    module: str
    names: dict[str, str]


def rooms() -> list[Room]:
    """All lazy facades, from their stubs."""
    found = []
    for stub in PACKAGE.rglob("__init__.pyi"):
        parts = stub.parent.relative_to(PACKAGE.parent).parts
        names = {
            alias.asname: node.module
            for node in ast.parse(stub.read_text(encoding="utf-8")).body
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
            if alias.asname and not alias.asname.startswith("_")
        }
        found.append(Room(".".join(parts), names))

    def order(room: Room) -> tuple[int, str]:
        first = [*room.module.split("."), ""][1]
        return (ORDER.index(first) if first in ORDER else len(ORDER), room.module)

    return sorted(found, key=order)


def homes(found: list[Room]) -> dict[str, str]:
    """The one page of every public path, ``{"neuroenc.RidgeEncoder": "neuroenc.encoders.RidgeEncoder", ...}``.

    A name that several rooms export has its page in the room that its code lies in.
    """
    paths = {f"{room.module}.{name}": room for room in found for name in room.names}
    places: dict[int, list[str]] = {}
    for path in paths:
        places.setdefault(id(load(path)), []).append(path)
    home = {}
    for same in places.values():
        origin = getattr(load(same[0]), "__module__", None) or ""
        # Constants without a module may be equal by chance (small numbers, interned strings): each has its own page.
        groups = [same] if origin.startswith("neuroenc") else [[path] for path in same]
        for group in groups:
            best = max(group, key=lambda p: (len(p.rpartition(".")[0]) if is_below(origin, p) else 0, -len(p)))
            home |= dict.fromkeys(group, best)
    return home


def is_below(origin: str, path: str) -> bool:
    """Does the module lie in the room of this public path?"""
    return (origin + ".").startswith(path.rpartition(".")[0] + ".")


def load(path: str) -> Any:
    """The object at a public path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def summary(value: Any) -> str:
    """First paragraph of a docstring, on one line."""
    text = inspect.getdoc(value) or ""
    return " ".join(text.split("\n\n")[0].split())


def is_constant(value: Any) -> bool:
    """Neither a class nor a function: an instance, whose docstring would be that of its type."""
    return not (inspect.isclass(value) or inspect.isroutine(value))


def constant_comment(room: str, name: str, source: str) -> str:
    """The comment above a constant's definition, or the string below it."""
    module = importlib.import_module(f"{room}.{source}")
    lines = inspect.getsource(module).splitlines()
    body = ast.parse("\n".join(lines)).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not any(isinstance(t, ast.Name) and t.id == name for t in targets):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            return " ".join(str(following.value.value).split())
        comment: list[str] = []
        for line in reversed(lines[: node.lineno - 1]):
            if not line.startswith("#"):
                break
            comment.insert(0, line.lstrip("#: "))
        return " ".join(comment) or summary(module)
    return summary(module)


def constant_value(value: Any) -> str:
    """What a constant holds, shortened."""
    if isinstance(value, dict):
        items = ", ".join(f"{k!r}" for k in list(value)[:40])
        return f"A mapping with the keys {items}{', ...' if len(value) > 40 else ''}."
    if isinstance(value, list | tuple | set | frozenset):
        shown = sorted(value) if isinstance(value, set | frozenset) else list(value)
        items = ", ".join(f"{k!r}" for k in shown[:40])
        return f"{len(shown)} entries: {items}{', ...' if len(shown) > 40 else ''}."
    return repr(value)


def title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n\n"


def name_page(room: Room, name: str) -> str:
    """The page of one public name."""
    value = load(f"{room.module}.{name}")
    text = title(name, "=") + f".. currentmodule:: {room.module}\n\n"
    if is_constant(value):
        comment = constant_comment(room.module, name, room.names[name])
        held = constant_value(value).replace("\\", "\\\\").replace("`", "\\`").replace("*", "\\*")
        return text + f".. py:data:: {name}\n\n   {comment}\n\n   {held}\n"
    if inspect.isclass(value):
        return text + f".. autoclass:: {name}\n   :members:\n   :inherited-members:\n   :show-inheritance:\n"
    return text + f".. autofunction:: {name}\n"


def part_of(room: Room, source: str) -> str:
    """The private folder of the room that a name comes from, "" for its files."""
    parts = source.split(".")
    folder = PACKAGE.parent / Path(*room.module.split("."), parts[0])
    return parts[0] if folder.is_dir() and not (folder / "__init__.pyi").exists() else ""


def room_page(room: Room, found: list[Room], home: dict[str, str]) -> str:
    """A room: its docstring, a table of its names by the folder that they come from, its pages and rooms below."""
    text = title(room.module, "=") + f".. automodule:: {room.module}\n\n"
    parts: dict[str, list[str]] = {}
    for name, source in room.names.items():
        parts.setdefault(part_of(room, source), []).append(name)
    for part, names in sorted(parts.items()):
        if part:
            heading = summary(importlib.import_module(f"{room.module}.{part}")).rstrip(".") or part.strip("_")
            text += title(heading, "-")
        text += ".. list-table::\n   :class: names\n   :widths: 30 70\n\n"
        for name in sorted(names, key=str.casefold):
            path = f"{room.module}.{name}"
            value = load(path)
            line = constant_comment(room.module, name, room.names[name]) if is_constant(value) else summary(value)
            text += f"   * - :py:obj:`~{home[path]}`\n     - {line}\n"
        text += "\n"
    below = [r.module for r in found if r.module.rpartition(".")[0] == room.module]
    own = [f"{room.module}.{n}" for n in sorted(room.names, key=str.casefold)]
    pages = [*below, *(path for path in own if home[path] == path)] if room.module != "neuroenc" else []
    if pages:
        entries = (f"   {p.rpartition('.')[2]} <{p}>\n" for p in pages)
        text += ".. toctree::\n   :hidden:\n\n" + "".join(entries)
    return text


def reference_pages() -> dict[str, str]:
    """API pages by file name."""
    found = rooms()
    home = homes(found)
    pages = {f"{room.module}.rst": room_page(room, found, home) for room in found}
    for room in found:
        for name in room.names:
            path = f"{room.module}.{name}"
            if home[path] == path:
                pages[f"{path}.rst"] = name_page(room, name)
    table = "".join(
        f"   * - :doc:`{room.module}`\n     - {line}\n     - {len(room.names)}\n"
        for room, line in zip(found, (summary(importlib.import_module(r.module)) for r in found), strict=True)
    )
    top = [room.module for room in found if room.module.count(".") <= 1]
    pages["index.rst"] = (
        title("API reference", "=")
        + "Every public name, by room. Rooms are loaded on first use: ``import neuroenc`` is cheap.\n\n"
        + ".. list-table::\n   :class: names\n   :header-rows: 1\n   :widths: 25 65 10\n\n"
        + "   * - Room\n     - What it holds\n     - Names\n"
        + table
        + "\n.. toctree::\n   :hidden:\n\n"
        + "".join(f"   {name}\n" for name in top)
    )
    return pages


# ---------------------------------------------------------------- command line


def command_page() -> str:
    """All commands with their arguments and options, from the typer application."""
    import typer

    from neuroenc.cli._main import app

    lines = ["# Command line", "", "Generated from the program: `neuroenc COMMAND --help` says the same.", ""]

    def walk(command: Any, name: str, parent: Any = None) -> None:
        context = command.context_class(command, info_name=name, parent=parent)
        commands = getattr(command, "commands", {})
        if name != "neuroenc":
            lines.extend([("###" if name.count(" ") > 1 else "##") + f" {name}", ""])
        lines.extend([" ".join(inspect.cleandoc(command.help or "").split()), ""])
        if not commands:
            lines.extend(["```text", " ".join([name, *command.collect_usage_pieces(context)]), "```", ""])
        records = [record for p in command.params if (record := p.get_help_record(context))]
        if records and not commands:
            lines.extend(["| argument or option | |", "|---|---|"])
            lines.extend(f"| `{cell(left)}` | {cell(right)} |" for left, right in records)
            lines.append("")
        for key in sorted(commands):
            walk(commands[key], f"{name} {key}", context)

    walk(typer.main.get_command(app), "neuroenc")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text in a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;") if "`" in text else text.replace("|", "\\|")


# ---------------------------------------------------------------- config file


def config_page() -> str:
    """All tables and keys of a study's file, from the pydantic models."""
    from neuroenc.study.config.reference import reference_markdown

    intro = (
        "# Config file\n\nOne TOML file holds the settings of a study; paths are relative to it. A key that nothing"
        " reads is refused, with the nearest name; `neuroenc config schema` writes a JSON schema for editors.\n\n"
    )
    return intro + reference_markdown()


def panel_page() -> str:
    """All tables and keys of a panel's file."""
    from neuroenc.study.config.panel import PanelConfig
    from neuroenc.study.config.reference import reference_markdown

    intro = (
        "# Panel file\n\nOne TOML file describes a panel, on which `neuroenc panel run` scores models; see"
        " [panels](../guides/panels.md).\n\n"
    )
    return intro + reference_markdown(PanelConfig)


# ---------------------------------------------------------------- capabilities


def capabilities() -> dict[str, Any]:
    """The table of capabilities, ``capabilities.toml``."""
    return tomllib.loads((DOCS / "capabilities.toml").read_text(encoding="utf-8"))


def capability_page() -> str:
    """What users of the field ask for, who offers it, and whether neuroenc does."""
    table, home = capabilities(), homes(rooms())
    counts = Counter(row["state"] for area in table["area"] for row in area["rows"])
    lines = [
        "# Capabilities",
        "",
        f"What users of this field ask for, the projects that offer it, and what neuroenc does ({table['checked']}): "
        f"{counts['yes']} yes, {counts['partly']} partly, {counts['no']} no. Every name, command and key of the last "
        "column is looked up by a test; what other projects offer was read in their repositories in November 2026.",
        "",
    ]

    def link(where: str) -> str:
        kind, _, name = where.partition(": ")
        if kind == "guide":
            return f"[guide](../guides/{name}.md)"
        if where.startswith(("neuroenc ", "[")):
            return f"[`{where}`]({'commands' if where.startswith('n') else 'config'}.md)"
        return f"{{py:obj}}`~{home[f'neuroenc.{where}']}`"

    for area in table["area"]:
        lines += [f"## {area['title']}", "", "| capability | offered by | neuroenc | where, and what is missing |"]
        lines += ["|---|---|---|---|"]
        for row in area["rows"]:
            where = "; ".join([*(link(x) for x in row["by"]), *([row["note"]] if "note" in row else [])])
            state = f"**{row['state']}**" if row["state"] == "yes" else row["state"]
            lines.append(f"| {row['name']} | {row['others'] or 'none of these'} | {state} | {where} |")
        lines.append("")
    return "\n".join(lines)


# ---------------------------------------------------------------- gallery


def gallery_pages() -> dict[str, str | bytes]:
    """The notebooks, a thumbnail of each, and cards that lead to them."""
    pages: dict[str, str | bytes] = {}
    cards = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        notebook = json.loads(text)
        pages[path.name] = text
        first = "".join(notebook["cells"][0]["source"]).strip().splitlines()
        heading = first[0].lstrip("# ")
        lead = " ".join(re.split(r"(?<=[.?:]) ", " ".join("".join(first[1:]).split()))[:2]).rstrip(":")
        picture = thumbnail(notebook)
        if picture is not None:
            pages[f"{path.stem}.png"] = picture
        image = f":img-top: {path.stem}.png\n" if picture is not None else ""
        cards.append(f":::{{grid-item-card}} {heading}\n:link: {path.stem}\n:link-type: doc\n{image}\n{lead}\n:::\n")
    names = "\n".join(path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb")))
    pages["index.md"] = (
        "# Gallery\n\nNotebooks, one for each question of a user. They run without a network, on simulated data.\n\n"
        + "::::{grid} 1 2 2 3\n:gutter: 3\n\n"
        + "\n".join(cards)
        + "::::\n\n```{toctree}\n:hidden:\n\n"
        + names
        + "\n```\n"
    )
    return pages


def thumbnail(notebook: dict[str, Any]) -> bytes | None:
    """The PNG among a notebook's outputs whose shape suits a card best."""
    pictures = [
        base64.b64decode("".join(output["data"]["image/png"]))
        for item in notebook["cells"]
        for output in item.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]

    def away(picture: bytes) -> float:
        width, height = struct.unpack(">II", picture[16:24])
        return abs(math.log(width / height / 1.8))

    return min(pictures, key=away, default=None)


# ---------------------------------------------------------------- writing


def write(folder: Path, pages: dict[str, Any]) -> None:
    """Write what has changed, so that sphinx reads no page again for nothing, and remove pages that are gone."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        content = text if isinstance(text, bytes) else text.encode("utf-8")
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def write_all() -> None:
    """All generated pages."""
    reference: dict[str, Any] = dict(reference_pages())
    reference["commands.md"] = command_page()
    reference["config.md"] = config_page()
    reference["panel.md"] = panel_page()
    reference["capabilities.md"] = capability_page()
    write(DOCS / "reference", reference)
    write(DOCS / "gallery", gallery_pages())
