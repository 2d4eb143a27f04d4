"""The house: no import circles, no import of another room's private module, every public name reached."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "neuroenc"


def modules() -> dict[str, Path]:
    """Path of every module by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> list[tuple[str, str]]:
    """``(module, name)`` of every import of the package in a file, those inside functions included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "neuroenc":
            found += [(str(node.module), alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names if alias.name.split(".")[0] == "neuroenc"]
    return found


def circles() -> list[list[str]]:
    """Modules that import each other, by Tarjan's strongly connected components."""
    known = modules()
    edges = {
        name: {f"{m}.{n}" if f"{m}.{n}" in known else m for m, n in imports(path)} & set(known) - {name}
        for name, path in known.items()
    }
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges[name]:
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return found


def test_no_modules_import_each_other():
    assert circles() == []


def test_no_room_imports_a_private_module_of_another():
    wrong = []
    for name, path in modules().items():
        room = [*name.split("."), ""][1]
        for module, imported in imports(path):
            parts = [*module.split("."), imported]
            if len(parts) < 3 or parts[1] in ("_core", "_version", room):
                continue
            if any(part.startswith("_") and not part.startswith("__") for part in parts):
                wrong.append(f"{name}: from {module} import {imported}")
    assert wrong == []


@pytest.mark.parametrize("room", ["attention", "captions", "embedding", "encoders", "retrieval", "study"])
def test_files_hold_one_noun_in_at_most_600_lines(room):
    long = {str(p): n for p in (PACKAGE / room).rglob("*.py") if (n := len(p.read_text().splitlines())) > 600}
    assert not long


def public_names(room: str) -> dict[str, Path]:
    """Names of a room's stubs, and the file that each comes from."""
    found = {}
    for stub in (PACKAGE / room).rglob("__init__.pyi"):
        for node in ast.parse(stub.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                home = stub.parent.joinpath(*node.module.split("."))
                found |= {alias.name: home.with_suffix(".py") for alias in node.names if not home.is_dir()}
    return found


def code_words(tree: ast.AST) -> Counter[str]:
    """Words of code: its names and strings without comments and docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return Counter(re.findall(r"\w+", ast.unparse(tree)))


def definitions(path: Path) -> dict[str, Counter[str]]:
    """Words of each function, class and constant of a module."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        made = isinstance(node, (ast.ClassDef, ast.FunctionDef))
        targets = [node] if made else getattr(node, "targets", [getattr(node, "target", None)])
        for name in (getattr(target, "name", getattr(target, "id", None)) for target in targets):
            found[name] = code_words(node)
    return found


@cache
def words() -> dict[Path, Counter[str]]:
    """Words of all that may reach a name: code of the package, notebooks, README and the guides."""
    found = {path: code_words(ast.parse(path.read_text())) for path in PACKAGE.rglob("*.py")}
    pages = [ROOT / "README.md", *(ROOT / "notebooks").glob("*.ipynb")]
    pages += [
        p
        for p in (ROOT / "docs").rglob("*.*")
        if p.suffix in (".md", ".py") and not {"reference", "_build"} & set(p.parts)
    ]
    return found | {path: Counter(re.findall(r"\w+", path.read_text())) for path in pages}


def reached(room: str) -> dict[str, list[str]]:
    """Where each public name of a room is used: in another file, or by what a reached name of its own file uses.

    A class that a registry finds by a string is used by its decorator; a result by the function that returns it.
    """
    names = public_names(room)
    found = {
        n: [str(p.relative_to(ROOT)) for p, w in words().items() if p != home and w[n]] for n, home in names.items()
    }
    registered = re.compile(r"@register_\w+(?:\([^)]*\))?\nclass (\w+)")
    for home in set(names.values()):
        text = home.read_text()
        for name in registered.findall(text):
            if name in found:
                found[name].append("its registry")
        parts = definitions(home)
        used = [n for n in parts if found.get(n) or any(w[n] for path, w in words().items() if path != home)]
        for name in used:
            used += [n for n in parts if n in parts.get(name, ()) and n not in used]
        for name in used:
            if name in found and not found[name]:
                found[name].append(str(home.relative_to(ROOT)))
    return found


@pytest.mark.parametrize("room", ["attention", "captions", "embedding", "encoders", "retrieval", "study"])
def test_every_public_name_is_reached(room):
    assert not {name for name, where in reached(room).items() if not where}


if __name__ == "__main__":
    for place in ("attention", "captions", "embedding", "encoders", "retrieval"):
        for name, where in sorted(reached(place).items()):
            print(f"neuroenc.{place} {name}: {', '.join(where[:4]) or 'nowhere'}")
