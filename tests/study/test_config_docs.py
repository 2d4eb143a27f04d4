"""Configs that the documentation shows are legal."""

import re
import tomllib
from pathlib import Path

import pytest

from neuroenc.study.read import parse_config

ROOT = Path(__file__).parents[2]
SHOWN = [
    pytest.param(block, id=f"{path.relative_to(ROOT)}-{n}")
    for path in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "docs").glob("guides/*.md")),
    )
    for n, block in enumerate(re.findall(r"```toml\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL))
    if "[project" not in block
]


@pytest.mark.parametrize("block", SHOWN)
def test_shown_configs_are_legal(block):
    table = tomllib.loads(block)
    # A table may be shown by itself.
    table.setdefault("data", {"name": "world"})
    for name in ("captions", "stability"):
        if name in table:
            table.setdefault("captions", {}).setdefault("space", {"model": "world"})
            table["captions"].setdefault("decoder", {"captioner": "world"})
    parse_config(table, command="")
