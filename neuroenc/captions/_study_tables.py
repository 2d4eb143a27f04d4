"""Tables of a study as files: parquet where pyarrow is there, else CSV; both read back alike."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import DataError
from neuroenc._core.files import atomic_path, sha256_file
from neuroenc._core.optional import require

__all__ = ["read_table", "typed", "write_table"]


def _kind(column: pd.Series) -> str:
    """What a column holds: a CSV file does not say."""
    if column.dtype == bool:
        return "bool"
    if pd.api.types.is_integer_dtype(column.dtype):
        return "int"
    if pd.api.types.is_float_dtype(column.dtype):
        return "float"
    values = [x for x in column if x is not None and x is not pd.NA and not (isinstance(x, float) and np.isnan(x))]
    if values and all(isinstance(x, (bool, np.bool_)) for x in values):
        return "bool" if len(values) == len(column) else "text"
    if values and all(isinstance(x, (int, np.integer)) for x in values):
        return "int" if len(values) == len(column) else "float"
    if values and all(isinstance(x, (int, float, np.number)) for x in values):
        return "float"
    return "text"


def _typed(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """The table with plain dtypes (text as object, a missing one as ""), and the kind of each column."""
    kinds = {str(name): _kind(frame[name]) for name in frame.columns}
    dtypes = {"bool": bool, "int": np.int64, "float": np.float64}
    out: dict[str, Any] = {}
    for name in frame.columns:
        kind = kinds[str(name)]
        if kind == "text":
            out[str(name)] = ["" if not isinstance(x, str) and pd.isna(x) else str(x) for x in frame[name]]
        else:
            out[str(name)] = frame[name].to_numpy(dtypes[kind])
    return pd.DataFrame(out, columns=list(kinds)).astype({k: object for k, v in kinds.items() if v == "text"}), kinds


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as files give it back."""
    return _typed(frame)[0].reset_index(drop=True)


def write_table(frame: pd.DataFrame, path: Path) -> dict[str, Any]:
    """Write ``path.parquet`` or ``path.csv``, atomically; what `read_table` needs to read it back."""
    plain, kinds = _typed(frame)
    file = path.with_name(path.name + (".parquet" if find_spec("pyarrow") else ".csv"))
    with atomic_path(file) as temporary:
        if file.suffix == ".parquet":
            plain.to_parquet(temporary, index=False)
        else:
            plain.to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")
    return {"file": file.name, "columns": kinds, "sha256": sha256_file(file)}


def read_table(folder: Path, kept: dict[str, Any]) -> pd.DataFrame:
    """Read a table that `write_table` wrote."""
    file = folder / Path(kept["file"]).name
    if not file.is_file() or sha256_file(file) != kept["sha256"]:
        state = "is missing" if not file.is_file() else "is not the one written with study.json"
        raise DataError(f"{file} {state}. Next step: save the study again, or copy the whole folder.")
    kinds = kept["columns"]
    if file.suffix == ".parquet":
        require("pyarrow", "report")
        frame = pd.read_parquet(file)
    else:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8") if kinds else pd.DataFrame()
        for name, kind in kinds.items():
            if kind == "bool":
                frame[name] = frame[name] == "True"
            elif kind == "float":
                # pandas' own conversion is off in the last place now and then.
                frame[name] = np.array([float(x or "nan") for x in frame[name]], dtype=np.float64)
            elif kind == "int":
                frame[name] = frame[name].astype(np.int64)
    dtypes = {"bool": bool, "int": np.int64, "float": np.float64, "text": object}
    return frame.astype({name: dtypes[kind] for name, kind in kinds.items()})
