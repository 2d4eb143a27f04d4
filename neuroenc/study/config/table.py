"""Base of all settings: a frozen pydantic model whose errors say what was found, what is legal and what is nearest."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from neuroenc._core.errors import ConfigError, unknown_name

#: Largest count; above it a number is a typing error, and numpy's counters end there.
MOST = 2**31 - 1


def _check_device(name: str) -> str:
    if name not in ("cpu", "auto", "torch"):
        from neuroenc._core.device import resolve_device

        resolve_device(name)
    return name


Device = Annotated[str, AfterValidator(_check_device)]


@dataclass(frozen=True)
class PathMark:
    """Marks a text that is a path, relative to the folder of the config.

    Attributes
    ----------
    named : bool
        It may also be a name of something else: it is a path where it looks like one, or where such a folder is there.
    names : tuple of str
        These are never one.
    holds : str
        The folder counts only with this file in it.
    """

    named: bool = False
    names: tuple[str, ...] = ()
    holds: str = ""


File = Annotated[str, PathMark()]
FolderOrName = Annotated[str, PathMark(named=True)]
ModelName = Annotated[str, PathMark(named=True, holds="space.json")]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Count = Annotated[int, Field(ge=1, le=MOST)]
CountOrZero = Annotated[int, Field(ge=0, le=MOST)]
Share = Annotated[float, Field(gt=0, lt=1)]

_BOUNDS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
_RANGE = {"greater_than_equal", "greater_than", "less_than_equal", "less_than"}


class Table(BaseModel):
    """A table of a config: frozen, without unknown keys, of strict types.

    Raises
    ------
    ConfigError
        An unknown key (the nearest is named), a value of another type, or one that is not legal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_explain(type(self), error)) from None

    # Without this mark pydantic builds inner tables through __init__ too, and their errors would lose where they stand.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class _Place:
    """Where an error stands: keys from the top, the annotation of the value, and the table that holds it."""

    def __init__(self, model: type[Table], loc: Iterable[int | str]) -> None:
        self.keys: list[int | str] = []
        self.owner: type[Table] = model
        self.kinds: list[Any] = [model]
        for part in loc:
            self._step(part)

    def _step(self, part: int | str) -> None:
        for kind in map(_bare, self.kinds):
            origin, inner = typing.get_origin(kind), typing.get_args(kind)
            if isinstance(kind, type) and issubclass(kind, Table):
                if part == kind.__name__:  # pydantic's name of this kind of a union
                    self.kinds = [kind]
                    return
                self.owner, self.keys = kind, [*self.keys, part]
                field = kind.model_fields.get(str(part))
                self.kinds = parts(field.rebuild_annotation()) if field else [Any]
                return
            if origin in (list, dict):
                self.keys = [*self.keys, part]
                self.kinds = parts(inner[-1])
                return
        # Anything else is the name that pydantic gives to one kind of a union.

    def __str__(self) -> str:
        return path(self.keys)

    def choices(self) -> list[Any]:
        kinds = map(_bare, self.kinds)
        return [x for kind in kinds for x in typing.get_args(kind) if typing.get_origin(kind) is typing.Literal]

    def expected(self) -> str:
        names = []
        for kind in map(_bare, self.kinds):
            origin = typing.get_origin(kind) or kind
            if origin is typing.Literal:
                names.append("str")
            elif origin is dict or (isinstance(origin, type) and issubclass(origin, BaseModel)):
                names.append("a table")
            else:
                names.append(getattr(origin, "__name__", str(origin)))
        return " or ".join(dict.fromkeys(names))

    def range(self) -> str:
        return next((text for text in (bounds(kind)[1] for kind in self.kinds) if text), "")


def bounds(kind: Any) -> tuple[Any, str]:
    """A type without its bounds, and these in words.

    >>> bounds(Annotated[float, Field(gt=0, lt=1)])
    (<class 'float'>, 'above 0 and below 1')
    """
    marks = [m for x in getattr(kind, "__metadata__", ()) for m in getattr(x, "metadata", [x])]
    found = [(words, getattr(m, name)) for m in marks for name, words in _BOUNDS if getattr(m, name, None) is not None]
    return _bare(kind), " and ".join(f"{words} {bound:.10g}" for words, bound in found if bound != MOST)


def _bare(annotation: Any) -> Any:
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation


def parts(annotation: Any) -> list[Any]:
    """Kinds of a union, without None."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [p for a in typing.get_args(annotation) for p in parts(a) if p is not types.NoneType]
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *marks = typing.get_args(annotation)
        found = parts(inner)
        return found if len(found) > 1 else [annotation] if marks and found == [inner] else found
    return [annotation]


def path(keys: Iterable[int | str]) -> str:
    """Keys as the file writes them; a single ``[features]`` table is the space "features".

    >>> path(["features", "features", "model"]), path(["encoder", "alphas", 2])
    ('features.model', 'encoder.alphas[2]')
    """
    keys = list(keys)
    if keys[:2] == ["features", "features"]:
        keys = keys[1:]
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def short(value: Any) -> str:
    """``repr`` of at most 60 characters."""
    text = f"{hex(value)[:20]}..." if isinstance(value, int) and abs(value) > 10**60 else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _explain(model: type[Table], error: ValidationError) -> str:
    """The first of the errors in words, and where the others are."""
    found: dict[str, list[tuple[_Place, Any]]] = {}
    for one in error.errors(include_url=False):
        place = _Place(model, one["loc"])
        # Keys that a table lacks are told together.
        where = path([*place.keys[:-1], "(lacks)"]) if one["type"] == "missing" else str(place)
        found.setdefault(where, []).append((place, one))
    # A misspelled key explains what is missing: it comes first.
    order = sorted(found, key=lambda where: found[where][0][1]["type"] != "extra_forbidden")
    said = _one(found[order[0]])
    if len(order) > 1:
        others = ", ".join(where.removesuffix(".(lacks)") or "the top" for where in order[1:4])
        said += f" Also wrong: {others}{', ...' if len(order) > 4 else ''}."
    return said


def _one(found: list[tuple[_Place, Any]]) -> str:
    # Of the kinds of a union, the one whose type was right.
    place, one = next((x for x in found if not x[1]["type"].endswith("_type")), found[0])
    kind, value, where = one["type"], one["input"], str(place)
    if kind == "missing":
        return f"[{path(place.keys[:-1])}] lacks {', '.join(str(p.keys[-1]) for p, _ in found)}."
    if kind == "extra_forbidden":
        table = path(place.keys[:-1])
        above = f"in [{table}]" if table else "at the top"
        return unknown_name(f"setting {above}:", place.keys[-1], place.owner.model_fields)
    if kind == "value_error":
        is_table = isinstance(value, (dict, Table))
        text = str(one["ctx"]["error"])
        return (f"[{where}] {text}" if is_table else f"{where}: {text}") if where else text
    if kind == "literal_error" and isinstance(value, str):
        return unknown_name(f"value of {where}:", value, [x for x in place.choices() if x])
    if kind == "finite_number":
        return f"{where} = {value!r} is not legal; it must be a finite number."
    if kind in _RANGE:
        legal = f"at most {MOST}" if one["ctx"].get("le") == MOST else place.range()
        return f"{where} = {short(value)} is not legal; it must be {legal}."
    if kind in ("too_short", "too_long"):
        length = one["ctx"].get("min_length") or one["ctx"].get("max_length")
        return f"{where} = {short(value)} is not legal; it must hold {length} value{'s' * (length > 1)}."
    if isinstance(value, int) and not isinstance(value, bool) and "float" in place.expected():
        return f"{where} = {short(value)} is too large for a number."
    return f"{where} = {short(value)} is a {type(value).__name__}; expected {place.expected()}."


def twice(names: list[Any]) -> bool:
    """Whether a list holds something more than once."""
    return len(set(names)) < len(names)
