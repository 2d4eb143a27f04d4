"""The documentation: a page for every public name, links that lead somewhere, examples that run."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def generate():
    """The generator of the site's reference pages."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_a_page(generate):
    pages, rooms = generate.reference_pages(), generate.rooms()
    home = generate.homes(rooms)
    missing = []
    for room in rooms:
        assert f"{room.module}.rst" in pages
        module = importlib.import_module(room.module)
        for name in module.__all__:
            if type(getattr(module, name)).__name__ == "module" or name.startswith("_"):
                continue
            path = home.get(f"{room.module}.{name}")
            if path is None or f"{path}.rst" not in pages or f"~{path}`" not in pages[f"{room.module}.rst"]:
                missing.append(f"{room.module}.{name}")
    assert not missing


def test_every_name_has_a_summary(generate):
    """What the table of a room says of a name."""
    silent = [
        f"{room.module}.{name}"
        for room in generate.rooms()
        for name in room.names
        if not generate.is_constant(value := generate.load(f"{room.module}.{name}")) and not generate.summary(value)
    ]
    assert not silent


def test_commands_and_settings_have_their_reference(generate):
    page = generate.config_page()
    for table in ("data", "features.NAME", "encoder", "evaluation", "captions.gate", "compare", "incontext.task"):
        assert f"## `[{table}]`" in page
    assert "## `[[sources]]`" in generate.panel_page()
    commands = generate.command_page()
    assert all(f"## neuroenc {name}" in commands for name in ("run", "demo", "caption", "compare", "data list"))


def test_capabilities_are_where_the_table_says(generate):
    """Each name is public and has a page, each command and key is there; no state without a place."""
    home, commands, config = generate.homes(generate.rooms()), generate.command_page(), generate.config_page()
    wrong = []
    for row in [row for area in generate.capabilities()["area"] for row in area["rows"]]:
        if row["state"] not in ("yes", "partly", "no") or bool(row["by"]) == (row["state"] == "no"):
            wrong.append(f"{row['name']}: {row['state']} with {row['by']}")
        for where in row["by"]:
            table, _, key = where.partition("] ")
            if where.startswith("guide: "):
                found = (ROOT / "docs" / "guides" / f"{where.removeprefix('guide: ')}.md").is_file()
            elif where.startswith("["):
                found = f"| `{key}` |" in config.partition(f"## `{table}]`")[2].partition("\n## ")[0]
            elif where.startswith("neuroenc "):
                found = f"# {where}\n" in commands
            else:
                found = f"neuroenc.{where}" in home
            if not found:
                wrong.append(f"{row['name']}: {where}")
    assert not wrong


WRITTEN = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/guides/*.md")])


@pytest.mark.parametrize("path", WRITTEN, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_to_files_exist(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)|<img[^>]*src=\"([^\"]+)\"", text)
    generated = ("reference/", "gallery/", "../reference/", "../gallery/")
    for target in (a or b for a, b in targets):
        place = target.partition("#")[0]
        if place and "://" not in place and not (place.startswith(generated) and "docs" in path.parts):
            assert (path.parent / place).exists(), target


def test_every_guide_is_reached():
    """By a card of the front page, and by the sidebar; sphinx finds a missing one only after the tests."""
    index = (ROOT / "docs/guides/index.md").read_text(encoding="utf-8")
    cards, sidebar = index.split("```{toctree}")
    names = {path.stem for path in ROOT.glob("docs/guides/*.md")} - {"index"}
    assert set(re.findall(r":link: (\w+)", cards)) >= names
    assert names <= set(sidebar.split())


GUIDES = sorted(path for path in ROOT.glob("docs/guides/*.md") if ">>>" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", GUIDES, ids=lambda p: p.stem)
def test_examples_of_guides_give_what_is_printed(path, tmp_path, monkeypatch):
    """Blocks of a guide run one after another, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(>>> .*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    example = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, path.stem, str(path), 0)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    report: list[str] = []
    failed = doctest.DocTestRunner(optionflags=flags, verbose=False).run(example, out=report.append).failed
    assert not failed, "".join(report)
