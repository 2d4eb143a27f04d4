"""MATLAB files, with errors that name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neuroenc._core.errors import DataError
from neuroenc._core.files import check_readable_file


def read_mat(
    path: Path, needed: tuple[str, ...] = (), what: str = "MATLAB file", *, only: bool = False
) -> dict[str, Any]:
    """Variables of a MATLAB file (v4 to v7): all, or those that are needed and no other.

    Raises
    ------
    DataError
        It is absent, cut short, damaged, of MATLAB 7.3 (HDF5), or lacks a variable that is needed.
    """
    from scipy.io import loadmat

    path = check_readable_file(path, what)
    try:
        content: dict[str, Any] = loadmat(path, variable_names=list(needed) if only else None)
    except MemoryError:
        raise
    except NotImplementedError as error:
        raise DataError(
            f"{path} is of MATLAB 7.3 (HDF5). Next step: in MATLAB load it and save(..., '-v7')."
        ) from error
    except Exception as error:  # whatever scipy says of damaged files
        raise DataError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as a MATLAB file ({error}): cut short or damaged."
        ) from error
    missing = [k for k in needed if k not in content]
    if missing:
        have = sorted(k for k in content if not k.startswith("__"))
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {have}.")
    return content
