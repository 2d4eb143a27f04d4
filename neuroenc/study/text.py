"""Texts that commands write and print, from templates."""

from __future__ import annotations

import json
import tomllib
from functools import lru_cache
from importlib.resources import files
from typing import Any

_TEMPLATES = files("neuroenc.study") / "templates"
#: What pages say of how their results were made: ``demo, comparison, curve, captions``.
NOTES: dict[str, Any] = tomllib.loads((_TEMPLATES / "notes.toml").read_text(encoding="utf-8"))


def quoted(value: str) -> str:
    """A text as TOML writes it.

    >>> print(quoted('a "b"'))
    "a \\"b\\""
    """
    return json.dumps(value, ensure_ascii=False)


def commented(text: str, every: bool = True) -> str:
    """Settings as comments (or as they are, without ``every``); what is a comment stays one.

    >>> print(commented("# CLIP:\\nmodel = 1"), end="")
    # CLIP:
    # model = 1
    """
    lines = [f"# {line}" if line and not line.startswith("#") else line for line in text.splitlines()]
    return "\n".join(lines) + "\n" if every else text


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("neuroenc.study", "templates")
    made = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    made.filters |= {"text": quoted, "commented": commented}
    return made


def rendered(template: str, **values: Any) -> str:
    """A template of ``neuroenc/study/templates``, filled in."""
    text: str = _environment().get_template(template).render(**values)
    return text
