"""Tables of text files, read as spreadsheets and other systems write them, and written so that none runs a formula."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from neuroenc._core.errors import DataError, nearest_names, unknown_name
from neuroenc._core.files import atomic_path, check_readable_file

if TYPE_CHECKING:
    import pandas as pd

_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def decode_text(content: bytes, path: str | os.PathLike[str]) -> str:
    """Text of a table's bytes: UTF-8, or UTF-8 or UTF-16 with a byte-order mark."""
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{os.fspath(path)} is not {encoding.upper()} text: line {line} holds the byte "
            f"0x{content[error.start]:02x}. Next step: save the table as UTF-8."
        ) from error
    if "\0" in text:
        raise DataError(f"{os.fspath(path)} holds null characters: it is no text. Next step: save it as UTF-8.")
    return text


def read_table(
    path: str | os.PathLike[str],
    needed: Iterable[str] = (),
    *,
    optional: Iterable[str] = (),
    sep: str | None = None,
    header: bool = True,
    what: str = "table",
) -> pd.DataFrame:
    """Cells of a CSV or TSV file as text: blanks at their ends and around headers taken off, nothing taken for missing.

    A stimulus may be called "NA" or "None"; only an empty cell is empty. Numbers are made with `numbers`.

    Parameters
    ----------
    needed : iterable of str
        Columns that must be there; "Stimulus" is taken for "stimulus".
    optional : iterable of str
        Columns that may be there, so that "Session" is not passed over as an unknown one.
    sep : str, optional
        By default a tab for names that end in .tsv or .txt, else a comma.
    header : bool
        Whether the first line names the columns; else they are "0", "1", ...
    what : str
        What the table is, for errors.
    """
    import pandas as pd

    path = check_readable_file(path, what)
    text = decode_text(path.read_bytes(), path)
    sep = sep or ("\t" if path.suffix.lower() in (".tsv", ".txt") else ",")
    reader = csv.reader(text.splitlines(keepends=True), delimiter=sep)
    rows: list[list[str]] = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if rows and len(cells) != len(rows[0]):
                raise DataError(
                    f"{what} {path}, line {reader.line_num}: {len(cells)} cells where the first has {len(rows[0])}."
                    " Next step: mend that line (a text that holds the separator stands in quotation marks)."
                )
            rows.append(cells)
    except csv.Error as error:
        raise DataError(f"{what} {path}, line {reader.line_num}: {error}.") from error
    if not rows:
        raise DataError(f"{what} {path} is empty. Next step: write it again, with a line of column names.")
    names = rows.pop(0) if header else [str(n) for n in range(len(rows[0]))]
    needed = list(needed)
    for name in (*needed, *optional):
        alike = [at for at, n in enumerate(names) if n.casefold() == name.casefold()]
        if name not in names and len(alike) == 1:
            names[alike[0]] = name
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise DataError(f"{what} {path} has more than one column {twice[0]!r}.")
    for name in needed:
        if name not in names:
            raise DataError(unknown_name(f"column of {what} {path}:", name, names))
    return pd.DataFrame(rows, columns=pd.Index(names, dtype=object), dtype=object)


def check_columns(frame: Any, needed: Iterable[str], what: str, step: str = "") -> pd.DataFrame:
    """``frame`` if it is a table that has the columns; ``step`` ends the error with what to do next.

    >>> import pandas as pd
    >>> check_columns(pd.DataFrame({"voxels": [1]}), ["voxel"], "captions")
    Traceback (most recent call last):
        ...
    neuroenc._core.errors.DataError: captions has no column 'voxel'; nearest is 'voxels' (found: voxels).
    """
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"{what} is a {type(frame).__name__}; legal: pandas.DataFrame.")
    needed = tuple(needed)
    for column in needed:
        if column not in frame.columns:
            near = nearest_names(column, map(str, frame.columns))
            hint = f"; nearest is {near[0]!r}" if near else ""
            found = ", ".join(map(str, frame.columns)) or "none"
            also = f"; needed: {', '.join(needed)}" if len(needed) > 1 else ""
            end = f" {step}" if step else ""
            raise DataError(f"{what} has no column {column!r}{hint} (found: {found}{also}).{end}")
    return frame


def numbers(
    table: pd.DataFrame,
    column: str,
    path: str | os.PathLike[str],
    *,
    missing: tuple[str, ...] = (),
    least: float | None = None,
    default: float | None = None,
) -> Any:
    """A column as float64; cells that are in ``missing`` become NaN (or ``default``)."""
    import numpy as np

    found = np.empty(len(table))
    for n, cell in enumerate(table[column]):
        text = str(cell).strip()
        where = f"{os.fspath(path)}, row {n + 1}: {column} = {cell!r}"
        if text in missing:
            found[n] = np.nan if default is None else default
            continue
        try:
            # Python alone would read 1_0 as ten, and digits of other scripts.
            found[n] = float(text if text.isascii() and "_" not in text else "no number")
        except ValueError as error:
            comma = " (a decimal comma)" if "," in text else ""
            raise DataError(f"{where} is not a number{comma}. Next step: mend that cell.") from error
        if not np.isfinite(found[n]) or (least is not None and found[n] < least):
            legal = "a finite number" if least is None else f"a finite number of at least {least:g}"
            raise DataError(f"{where} is not legal; expected {legal}.")
    return found


def whole_numbers(table: pd.DataFrame, column: str, path: str | os.PathLike[str], **options: Any) -> Any:
    """A column as int64; ``options`` are those of `numbers`."""
    found = numbers(table, column, path, **options)
    broken = (found != found.round()).nonzero()[0]
    if len(broken):
        cell = table[column].iloc[broken[0]]
        raise DataError(f"{os.fspath(path)}, row {broken[0] + 1}: {column} = {cell!r} is no whole number.")
    return found.astype("int64")


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _each_text(frame: pd.DataFrame, change: Any) -> pd.DataFrame:
    texts = [c for c in frame.columns if frame[c].dtype.kind not in "fiub"]
    return frame.assign(**{c: frame[c].map(change) for c in texts}) if texts else frame


def plain_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with text that a spreadsheet would run as a formula (it begins with =, +, -, @) behind an apostrophe.

    Numbers stay as they are, and so does text that is a number. `raw_cells` undoes it exactly.

    >>> import pandas as pd
    >>> plain_cells(pd.DataFrame({"caption": ["=1+1", "a cat", "-1.5", "'=x"]})).caption.tolist()
    ["'=1+1", 'a cat', '-1.5', "''=x"]
    """

    def neutral(cell: Any) -> Any:
        if not isinstance(cell, str) or not cell.lstrip("'").startswith(_FORMULA):
            return cell
        try:
            float(cell)
        except ValueError:
            return "'" + cell
        return cell

    return _each_text(frame, neutral)


def raw_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Text as it was before `plain_cells`.

    >>> import pandas as pd
    >>> raw_cells(pd.DataFrame({"caption": ["'=1+1", "a cat", "-1.5", "''=x"]})).caption.tolist()
    ['=1+1', 'a cat', '-1.5', "'=x"]
    """

    def raw(cell: Any) -> Any:
        quoted = isinstance(cell, str) and cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA)
        return cell[1:] if quoted else cell

    return _each_text(frame, raw)


def write_table(frame: pd.DataFrame, path: str | os.PathLike[str], **options: Any) -> None:
    """Write a CSV atomically (UTF-8, ``\\n``), without cells that a spreadsheet would run; ``options`` go to pandas."""
    with atomic_path(path) as temporary:
        settings = {"index": False, "lineterminator": "\n", "encoding": "utf-8", **options}
        plain_cells(frame).to_csv(temporary, **settings)
