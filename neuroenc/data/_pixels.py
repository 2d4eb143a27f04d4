"""Pictures of an HDF5 file, read one by one when they are looked at."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from neuroenc._core.errors import DataError
from neuroenc._core.files import check_readable_file

__all__ = ["PixelBank"]


class PixelBank:
    """Rows of an HDF5 data set of pictures, in the place of an array (n, y, x, 3) of uint8.

    Tens of thousands of pictures do not fit into memory; a number gives one picture, a list or an array of
    positions another bank. The file is opened for each read, so that a bank can be sent to another process.

    Parameters
    ----------
    path : path
    name : str
        Data set (n, y, x, 3), uint8.
    rows : int array, optional
        Its rows in this order; default all.

    Raises
    ------
    DataError
        The file is absent, or the data set is none of pictures.

    Examples
    --------
    >>> import h5py, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with h5py.File(folder + "/a.hdf5", "w") as handle:
    ...         handle["imgBrick"] = np.arange(24, dtype="uint8").reshape(2, 2, 2, 3)
    ...     bank = PixelBank(folder + "/a.hdf5", "imgBrick", [1, 0])
    ...     bank.shape, int(bank[0][0, 0, 0])
    ((2, 2, 2, 3), 12)
    """

    def __init__(self, path: str | os.PathLike[str], name: str, rows: Any = None) -> None:
        import h5py

        self.path, self.name = check_readable_file(path, "bank of pictures"), name
        try:
            with h5py.File(self.path, "r") as handle:
                shape, dtype = handle[name].shape, handle[name].dtype
        except (OSError, KeyError) as error:
            raise DataError(f"{self.path} has no readable data set {name!r}: {error}.") from error
        if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or 0 in shape[1:]:
            raise DataError(f"{self.path}: {name} is {dtype} of shape {shape} (expected uint8 of shape (n, y, x, 3)).")
        given = np.arange(shape[0]) if rows is None else np.asarray(rows)
        if given.ndim != 1 or (given.dtype.kind not in "iu" and given.size):
            raise DataError(f"rows have shape {given.shape} and dtype {given.dtype} (expected a list of integers).")
        self.rows = given.astype(np.int64)
        if self.rows.size and not 0 <= self.rows.min() <= self.rows.max() < shape[0]:
            raise DataError(f"{self.path}: rows {self.rows.min()} to {self.rows.max()} of {shape[0]} pictures.")
        self.shape: tuple[int, ...] = (len(self.rows), *shape[1:])
        self.dtype = np.dtype(np.uint8)
        self.ndim = 4

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, (int, np.integer)):
            import h5py

            row = int(self.rows[item])
            try:
                with h5py.File(check_readable_file(self.path, "bank of pictures"), "r") as handle:
                    return np.asarray(handle[self.name][row])
            except (OSError, KeyError, ValueError, IndexError) as error:
                if isinstance(error, DataError):
                    raise
                raise DataError(
                    f"picture {row} of {self.path} cannot be read ({error}). Next step: fetch or copy the file again."
                ) from error
        part = object.__new__(PixelBank)
        part.__dict__.update(self.__dict__)
        part.rows = self.rows[item]
        part.shape = (len(part.rows), *self.shape[1:])
        return part
