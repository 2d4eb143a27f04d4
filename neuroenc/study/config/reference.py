"""The settings' models as a JSON schema for editors, and as the reference page of the documentation."""

from __future__ import annotations

import inspect
import json
import re
import typing
from typing import Any

from neuroenc.study.config.study import StudyConfig
from neuroenc.study.config.table import Table, bounds, parts

#: Tables that ``enabled = false`` leaves out.
OPTIONAL = (
    ("decode",),
    ("captions",),
    ("compare",),
    ("incontext",),
    ("plan",),
    ("compare", "regions"),
    ("compare", "layers"),
    ("incontext", "merge"),
)


def _described(model: type[Table]) -> tuple[str, dict[str, str]]:
    """What a table is, and its keys, from the docstring."""
    text = inspect.getdoc(model) or ""
    head, _, rest = text.partition("\n\nAttributes\n----------\n")
    section = rest.partition("\n\n")[0]
    found = re.findall(r"^(\w+)\n((?:    .*\n?)+)", section, flags=re.MULTILINE)
    return head, {name: " ".join(body.split()) for name, body in found}


def _models(model: type[Table], path: str = "") -> typing.Iterator[tuple[str, type[Table]]]:
    """Every table with its path, in the order of the file."""
    yield path, model
    for name, field in model.model_fields.items():
        below, many = _table_of(field.annotation)
        if below is not None:
            where = f"{path}.{name}" if path else name
            yield from _models(below, {dict: f"{where}.NAME", list: f"[{where}]"}.get(many, where))


def _table_of(annotation: Any) -> tuple[type[Table] | None, Any]:
    """The model of a table, and whether there is a dict or a list of them."""
    for part in parts(annotation):
        origin, inner = typing.get_origin(part), typing.get_args(part)
        if isinstance(part, type) and issubclass(part, Table):
            return part, None
        if origin in (dict, list) and isinstance(inner[-1], type) and issubclass(inner[-1], Table):
            return inner[-1], origin
    return None, None


def config_schema() -> dict[str, Any]:
    """JSON schema of a config, for editors that complete and check TOML.

    Examples
    --------
    >>> schema = config_schema()
    >>> schema["$defs"]["EncoderConfig"]["properties"]["scoring"]["enum"]
    ['r2', 'neg_mse', 'r']
    """
    schema = StudyConfig.model_json_schema()
    models = {model.__name__: model for model in Table.__subclasses__()}
    for name, table in {StudyConfig.__name__: schema, **schema["$defs"]}.items():
        model = models[name]
        table["description"], keys = _described(model)
        for name, text in keys.items():
            table["properties"][name]["description"] = text
    spaces = schema["properties"]["features"]
    one = spaces["additionalProperties"]
    schema["properties"]["features"] = {
        "description": spaces["description"],
        "anyOf": [one, {"type": "object", "additionalProperties": one}],
    }
    for place in OPTIONAL:
        schema["$defs"][f"{place[-1].title()}Config"]["properties"]["enabled"] = {
            "type": "boolean",
            "default": True,
            "description": "false leaves this table out.",
        }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "neuroenc study", **schema}


def reference_markdown(root: type[Table] = StudyConfig) -> str:
    """Reference of all tables and keys of a file in Markdown: legal values, defaults, meaning.

    Examples
    --------
    >>> print(reference_markdown().split("## ")[4].split("| `cv`")[0])  # doctest: +ELLIPSIS
    `[encoder]`
    <BLANKLINE>
    Ridge regression from features to voxels.
    ...
    """
    lines: list[str] = []
    for path, model in _models(root):
        head, keys = _described(model)
        title = "Top of the file" if not path else f"`[{path}]`"
        lines += [f"## {title}", "", _markdown(head), ""]
        rows = []
        for name, field in model.model_fields.items():
            if _table_of(field.annotation)[0] is not None:
                continue
            default = "*required*" if field.is_required() else _default(field.get_default())
            rows.append(f"| `{name}` | {_legal(field.rebuild_annotation())} | {default} | {_markdown(keys[name])} |")
        if rows:
            lines += ["| key | legal values | default | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _default(value: Any) -> str:
    if value is None:
        return "left out"
    if isinstance(value, float) and value == 1 / 150:
        return "`1/150`"
    return f"`{json.dumps(value)}`"


def _markdown(text: str) -> str:
    """A docstring's literals as Markdown's, safe in a cell of a table."""
    return re.sub(r"``(.+?)``", r"`\1`", text).replace("|", "\\|")


def _legal(annotation: Any) -> str:
    said = []
    for kind in parts(annotation):
        bare, limits = bounds(kind)
        origin, inner = typing.get_origin(bare), typing.get_args(bare)
        if origin is typing.Literal:
            said.append(", ".join(f'`"{x}"`' for x in inner if x))
        elif origin is list:
            said.append(f"list of {_legal(inner[0])}")
        elif origin is dict or (isinstance(bare, type) and issubclass(bare, Table)):
            said.append("table")
        else:
            word = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}.get(bare, "any value")
            said.append(f"{word} {limits}".strip())
    return " or ".join(dict.fromkeys(said))
