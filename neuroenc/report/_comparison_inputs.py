"""What a page of a comparison is made of: checked tables, groups of voxels, and the colours of names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError, nearest_names
from neuroenc.data import in_roi, roi_names
from neuroenc.report._style import BLUE, ORANGE, category_colours

__all__ = [
    "CLASSES",
    "Group",
    "by_kind",
    "cell_parts",
    "check_cells",
    "check_columns",
    "check_voxels",
    "colours_of",
    "find_groups",
    "group_medians",
    "legend",
    "shares_of",
    "short",
    "sort_groups",
]

# A pale rose: bare cortex is grey, and no category is near it.
TIE, OTHER = "#f2d9d0", "#5c6670"
#: Classes of the three-region analysis.
CLASSES = {"vision": BLUE, "dense": "#3b8f5a", "single": ORANGE, "not separable": TIE}


@dataclass(frozen=True, eq=False)
class Group:
    """Voxels (bool mask) of one region, subject or animal."""

    kind: str
    name: str
    mask: np.ndarray

    @property
    def key(self) -> tuple[str, str]:
        """As in the rows of a table."""
        return self.kind, self.name


def short(name: Any, limit: int = 30) -> str:
    """A name that fits an axis."""
    text = str(name)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def check_cells(scores: Any) -> xr.Dataset:
    """Scores over cell and voxel, or an error that says what is missing."""
    if not isinstance(scores, xr.Dataset):
        raise DataError(f"scores is a {type(scores).__name__}; an xarray.Dataset over cell and voxel is needed.")
    if "r" not in scores.data_vars or set(scores["r"].dims) != {"cell", "voxel"}:
        found = ", ".join(f"{name} {values.dims}" for name, values in scores.data_vars.items()) or "none"
        raise DataError(
            f"scores needs a variable 'r' over ('cell', 'voxel'); found: {found}. Next step: "
            "scores.expand_dims(cell=['name of the encoder']) if there is one encoder."
        )
    if "cell" not in scores.coords or not scores.sizes["cell"] or not scores.sizes["voxel"]:
        raise DataError(
            f"scores holds {scores.sizes['cell']} cells (named: {'cell' in scores.coords}) and "
            f"{scores.sizes['voxel']} voxels; at least one of each is needed, and cells need names."
        )
    names = [str(x) for x in scores["cell"].values]
    if len(set(names)) < len(names):
        twice = sorted({x for x in names if names.count(x) > 1})
        raise DataError(f"cells {', '.join(twice)} are there twice. Next step: give every encoder its own name.")
    if "voxel" not in scores.coords:
        scores = scores.assign_coords(voxel=np.arange(scores.sizes["voxel"]))
    return scores.assign_coords(cell=names).transpose("cell", "voxel", ...)


def check_columns(frame: Any, needed: Iterable[str], what: str, cells: Sequence[str], named: Iterable[str]) -> Any:
    """The table, if it has the columns and its columns ``named`` speak of known cells alone."""
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"{what} is a {type(frame).__name__}; a pandas.DataFrame is needed.")
    columns = [str(c) for c in frame.columns]
    for column in needed:
        if column not in columns:
            close = nearest_names(column, columns, n=1)
            hint = f"; nearest is {close[0]!r}" if close else ""
            raise DataError(f"{what} has no column {column!r}{hint} (found: {', '.join(columns)}).")
    for column in named:
        strangers = [str(x) for x in pd.unique(frame[column].astype(str)) if str(x) not in cells]
        if strangers:
            raise DataError(f"{what} speaks of cells that scores does not hold: {', '.join(strangers[:5])}.")
    return frame.reset_index(drop=True)


def check_voxels(found: Any, scores: xr.Dataset, needed: Iterable[str], what: str) -> Any:
    """A data set with the variables, over the same voxels in the same order as the scores."""
    if not isinstance(found, xr.Dataset):
        raise DataError(f"{what} is a {type(found).__name__}; an xarray.Dataset over voxel is needed.")
    for name in needed:
        if name not in found:
            held = ", ".join(map(str, found.data_vars)) or "none"
            raise DataError(f"{what} has no variable {name!r} (found: {held}).")
    if found.sizes.get("voxel") != scores.sizes["voxel"] or (
        "voxel" in found.coords and not np.array_equal(found["voxel"].values, scores["voxel"].values)
    ):
        raise DataError(
            f"{what} has {found.sizes.get('voxel', 0)} voxels and scores {scores.sizes['voxel']}, or in another "
            f"order. Next step: {what}.sel(voxel=scores.voxel)."
        )
    return found


def find_groups(scores: xr.Dataset) -> list[Group]:
    """All voxels, every region, and every value of a text coordinate of voxels (subject, animal, ...)."""
    n = scores.sizes["voxel"]
    groups = [Group("all", "all", np.ones(n, bool))]
    if "roi" in scores.coords:
        groups += [Group("roi", name, in_roi(scores, name)) for name in roi_names(scores)]
    for key, values in scores.coords.items():
        if key in ("roi", "voxel", "hemi") or values.dims != ("voxel",) or values.dtype.kind not in "OUT":
            continue
        names = values.values.astype(str)
        if len(set(names.tolist())) <= max(1, n // 2):  # one value for each voxel is a label, no group
            groups += [Group(str(key), name, names == name) for name in dict.fromkeys(names.tolist()) if name]
    return sort_groups(groups)


def sort_groups(groups: Sequence[Group]) -> list[Group]:
    """Regions from early to late, others as they come."""
    from neuroenc.report._tables import _ORDER, _natural

    known = {name: place for place, name in enumerate(_ORDER)}
    kinds = list(dict.fromkeys(g.kind for g in groups))
    return sorted(
        groups,
        key=lambda g: (
            kinds.index(g.kind),
            known.get(g.name, len(known)) if g.kind == "roi" else 0,
            _natural(g.name),
        ),
    )


def by_kind(groups: Sequence[Group], limit: int) -> tuple[list[Group], str]:
    """At most ``limit`` groups, the largest of every kind, in their order, and what was left out."""
    kept = list(groups)
    while len(kept) > limit:
        kinds = [g.kind for g in kept if g.kind != "all"]
        most = max(dict.fromkeys(kinds), key=kinds.count)
        # Of equals, the last goes.
        smallest = min((g for g in reversed(kept) if g.kind == most), key=lambda g: int(g.mask.sum()))
        kept.remove(smallest)
    said = "" if len(kept) == len(groups) else f"The {len(kept)} largest of {len(groups)} groups are drawn."
    return kept, said


def cell_parts(names: Sequence[str], table: pd.DataFrame | None) -> pd.DataFrame:
    """``features``, ``core`` and ``readout`` of every cell: from the table's columns, else from its name."""
    parts = {}
    known = table is not None and {"features", "readout"} <= set(table.columns)
    for name in names:
        row = table[table["cell"].astype(str) == name] if table is not None and known else None
        if row is not None and len(row):
            first = row.iloc[0]
            core = first.get("core", "")
            parts[name] = (str(first["features"]), "" if pd.isna(core) else str(core), str(first["readout"]))
        else:
            pieces = name.split("/")
            parts[name] = (pieces[0], "/".join(pieces[1:-1]), pieces[-1] if len(pieces) > 1 else "")
    return pd.DataFrame.from_dict(parts, orient="index", columns=["features", "core", "readout"])


def colours_of(names: Iterable[str], limit: int = 12) -> dict[str, Any]:
    """One colour for each name, in their order; "tie" has its own, and names after ``limit`` share one."""
    listed = [n for n in dict.fromkeys(names) if n and n != "tie"]
    palette = category_colours(min(len(listed), limit))
    found: dict[str, Any] = {name: palette[k] if k < limit else OTHER for k, name in enumerate(listed)}
    return {**found, "tie": TIE}


def group_medians(values: np.ndarray, groups: Sequence[Group]) -> np.ndarray:
    """Medians (row, group) over the voxels where ``values`` (row, voxel) are defined; NaN without any."""
    out = np.full((len(values), len(groups)), np.nan)
    for k, row in enumerate(np.asarray(values, float)):
        for g, group in enumerate(groups):
            inside = row[group.mask]
            inside = inside[np.isfinite(inside)]
            if inside.size:
                out[k, g] = np.median(inside)
    return out


def shares_of(labels: np.ndarray, classes: Sequence[str], groups: Sequence[Group]) -> np.ndarray:
    """Share of each class (class, group) among the voxels that have a label; NaN without any."""
    out = np.full((len(classes), len(groups)), np.nan)
    for g, group in enumerate(groups):
        inside = labels[group.mask]
        n = int((inside != "").sum())
        if n:
            out[:, g] = [float((inside == c).sum() / n) for c in classes]
    return out


def legend(colours: Mapping[str, Any], shares: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """Colours as the page shows them."""
    from matplotlib.colors import to_hex

    return [
        {"name": name, "colour": to_hex(colour), "said": (shares or {}).get(name, "")}
        for name, colour in colours.items()
    ]
