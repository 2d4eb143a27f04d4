"""Banks on disk: shards of embeddings with tables of files and licences.

::

    BANK/bank.json                        written last: what the bank holds and how it was made
    BANK/build.json                       settings of the build, written first
    BANK/shards/00000000/embeddings.npy   (rows, width)
    BANK/shards/00000000/table.csv        one row an embedding: id, file, licence, licence_url, source, sha256, ...
    BANK/shards/00000000/left_out.csv     images of the same block that are not in the bank, and why
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import DataError, unknown_name
from neuroenc._core.files import (
    atomic_path,
    check_readable_file,
    read_npy,
    read_sealed_json,
    sha256_file,
    write_sealed_json,
)
from neuroenc._core.tables import plain_cells, raw_cells
from neuroenc.retrieval._bank import EmbeddingBank, LazyIds

TABLE_COLUMNS = ("id", "file", "licence", "licence_url", "source", "sha256")
# 1 had no hashes of its tables and no seals; its cells were written as they are.
_VERSION = 2
_FILES = ("embeddings.npy", "table.csv", "left_out.csv")


def shard_folder(bank: Path, number: int) -> Path:
    """Folder of one block of the build."""
    return bank / "shards" / f"{number:08d}"


def read_table(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """A table of a shard; every cell is text."""
    try:
        found = pd.read_csv(
            check_readable_file(path, "table of a bank"), dtype=str, keep_default_na=False, usecols=columns
        )
    except (ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged ({str(error)[:200]}). Next step: build the bank again.") from error
    return raw_cells(found)


@lru_cache(maxsize=4)
def _ids(path: Path, rows: int, _changed: tuple[int, ...]) -> np.ndarray:
    found = read_table(path, ["id"])["id"].to_numpy().astype(str)
    if len(found) != rows:
        raise DataError(f"{path} has {len(found)} rows for {rows} embeddings. Next step: build the bank again.")
    return found


def _shard_ids(path: Path, rows: int) -> np.ndarray:
    now = path.stat()
    return _ids(path, rows, (now.st_ino, now.st_mtime_ns, now.st_size))


def read_shard_record(bank: Path, number: int) -> dict[str, Any] | None:
    """Entry of a block that is on disk and whole; None for one that is missing, damaged or edited."""
    folder = shard_folder(bank, number)
    try:
        record: dict[str, Any] = read_sealed_json(folder / "shard.json", needed=("rows", "sha256", "tables"))
        found = [sha256_file(check_readable_file(folder / name)) for name in _FILES]
    except (OSError, DataError):
        return None
    return record if found == [record["sha256"], *record["tables"]] else None


def write_shard(
    bank: Path, number: int, embeddings: np.ndarray, table: pd.DataFrame, left_out: pd.DataFrame, **more: Any
) -> dict[str, Any]:
    """Write a block, whole or not at all; its entry in bank.json, with ``more`` in it."""
    folder = shard_folder(bank, number)
    with atomic_path(folder, directory=True) as temporary:
        np.save(temporary / "embeddings.npy", embeddings, allow_pickle=False)
        for name, frame in (("table.csv", table), ("left_out.csv", left_out)):
            # Everything in quotation marks: a file's name may hold a carriage return.
            plain_cells(frame).to_csv(temporary / name, index=False, lineterminator="\n", quoting=csv.QUOTE_ALL)
        embedded, *tables = (sha256_file(temporary / name) for name in _FILES)
        record = {"rows": len(table), "left_out": len(left_out), "sha256": embedded, "tables": tables, **more}
        write_sealed_json(temporary / "shard.json", record)
        for path in temporary.iterdir():
            with open(path, "rb+") as handle:
                os.fsync(handle.fileno())
    return record


def finish_bank(bank: Path, records: list[dict[str, Any]], info: dict[str, Any]) -> Path:
    """Write bank.json over finished blocks; those without rows stay on disk, for what they left out."""
    shards = [{"number": n, **r} for n, r in enumerate(records) if r["rows"]]
    first = np.load(shard_folder(bank, shards[0]["number"]) / "embeddings.npy", mmap_mode="r", allow_pickle=False)
    known = {"version": _VERSION, "n": sum(s["rows"] for s in shards), "width": int(first.shape[1])}
    return write_sealed_json(bank / "bank.json", {**known, "dtype": first.dtype.name, **info, "shards": shards})


class StoredBank(EmbeddingBank):
    """Bank on disk, written by `neuroenc bank build`; rows and ids are read on demand.

    Attributes
    ----------
    path : Path
    info : dict
        bank.json: ``n, width, dtype, model, weights, weights_hash, counts, provenance, shards`` and more.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not (self.path / "bank.json").is_file():
            if (self.path / "build.json").is_file():
                done = len(list((self.path / "shards").glob("[0-9]*")))
                of = read_sealed_json(self.path / "build.json").get("blocks", "?")
                raise DataError(
                    f"the bank {self.path} is not finished ({done} of {of} blocks). Next step: run the same "
                    "`neuroenc bank build` again; it goes on where it stopped."
                )
            raise DataError(f"{self.path} holds no bank (no bank.json). Next step: `neuroenc bank build`, or check it.")
        self.info: dict[str, Any] = read_sealed_json(self.path / "bank.json", needed=("version",))
        if self.info["version"] != _VERSION:
            raise DataError(
                f"{self.path} is a bank of version {self.info['version']}; this neuroenc reads {_VERSION}. "
                "Next step: build it again."
            )
        missing = [name for name in ("n", "width", "dtype", "shards") if name not in self.info]
        if missing:
            raise DataError(f"{self.path / 'bank.json'} lacks {', '.join(missing)}. Next step: copy or build it again.")
        super().__init__([self._part(s) for s in self.info["shards"]])

    def _part(self, record: dict[str, Any]) -> tuple[np.ndarray, LazyIds]:
        folder = shard_folder(self.path, record["number"])
        for name in ("embeddings.npy", "table.csv"):
            if not (folder / name).is_file():
                raise DataError(f"the bank {self.path} lacks {folder.name}/{name}. Next step: copy or build it again.")
        rows = read_npy(folder / "embeddings.npy", "shard of a bank")
        if rows.ndim != 2 or len(rows) != record["rows"] or rows.shape[1] != self.info["width"]:
            raise DataError(
                f"{folder / 'embeddings.npy'} has shape {rows.shape}, bank.json promises "
                f"({record['rows']}, {self.info['width']}). Next step: build it again."
            )
        n = int(record["rows"])
        return rows, LazyIds(n, partial(_shard_ids, folder / "table.csv", n))

    def __repr__(self) -> str:
        return f"StoredBank({str(self.path)!r}, n={self.n}, width={self.width}, model={self.info.get('model')!r})"

    def tables(self) -> Iterator[pd.DataFrame]:
        """What is known of the rows, shard by shard: ``id, file, licence, licence_url, source, sha256``, and more."""
        for record in self.info["shards"]:
            yield read_table(shard_folder(self.path, record["number"]) / "table.csv")

    def table(self) -> pd.DataFrame:
        """One row an image, in the order of the embeddings."""
        return pd.concat(list(self.tables()), ignore_index=True)

    def left_out(self) -> pd.DataFrame:
        """Images that are not in the bank: ``id, file, reason, of`` (the image that a duplicate equals)."""
        # Blocks of which nothing was kept are no shards, and have their table.
        shards = {shard_folder(self.path, record["number"]) / "left_out.csv" for record in self.info["shards"]}
        paths = sorted(shards | {*(self.path / "shards").glob("[0-9]*/left_out.csv")})
        return pd.concat([read_table(p) for p in paths], ignore_index=True)

    @property
    def ids(self) -> np.ndarray:
        """Ids of all rows (n,)."""
        return np.concatenate([t["id"].to_numpy().astype(str) for t in self.tables()])

    def trace(self, ids: Any) -> pd.DataFrame:
        """File, licence and source of images.

        Parameters
        ----------
        ids : sequence of str, or DataFrame with a column ``stimulus`` (such as evidence)

        Returns
        -------
        DataFrame
            Rows of :meth:`table` in the order of ``ids``; a frame comes back with these columns beside its own.

        Raises
        ------
        DataError
            An id is not in the bank.
        """
        frame = ids if isinstance(ids, pd.DataFrame) else None
        wanted = pd.Index(np.asarray(frame["stimulus"] if frame is not None else ids).astype(str).ravel())
        different = wanted.unique()
        found = pd.concat([t[t["id"].isin(different)] for t in self.tables()], ignore_index=True).set_index("id")
        missing = different.difference(found.index)
        if len(missing):
            some = next(self.tables())["id"].tolist()
            raise DataError(unknown_name("image of the bank", missing[0], some) + f" {len(missing)} ids are unknown.")
        rows = found.loc[wanted]
        if frame is None:
            return rows.reset_index()
        return pd.concat([frame.reset_index(drop=True), rows.reset_index(drop=True)], axis=1)

    def verify(self) -> None:
        """Hash every shard and its tables anew.

        Raises
        ------
        DataError
            One is not what bank.json promises.
        """
        for record in self.info["shards"]:
            folder = shard_folder(self.path, record["number"])
            for name, promised in zip(_FILES, [record["sha256"], *record.get("tables", ())]):
                if sha256_file(check_readable_file(folder / name)) != promised:
                    raise DataError(f"{folder / name} is damaged (another sha256). Next step: build the bank again.")


def load_bank(path: str | os.PathLike[str]) -> StoredBank:
    """Open a bank that `neuroenc bank build` wrote; embeddings stay on disk.

    Parameters
    ----------
    path : path of the bank's folder

    Returns
    -------
    StoredBank
        With ``ids``, ``licences``, ``sources``, ``table()`` and ``trace(ids)``.

    Raises
    ------
    DataError
        No bank, one that is not finished, or one with missing shards.

    Examples
    --------
    >>> load_bank("nowhere")
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: nowhere holds no bank (no bank.json). ...
    """
    return StoredBank(path)


def as_bank(source: Any, ids: Sequence[str] | np.ndarray | None = None) -> EmbeddingBank:
    """Make an embedding bank from an array, memmap, file, folder or stream; nothing is read yet.

    Parameters
    ----------
    source : array (n, d), DataArray (stimulus, feature), path, list or iterator
        numpy array, ``np.memmap``, dask, zarr or h5py array of float16/32/64 or integers; a DataArray
        (its stimulus coordinate gives the ids; lazy ones stay lazy); path of a ``.npy`` file (memory
        mapped), of a zarr array, or of a folder that ``neuroenc bank build`` wrote; a list or an iterator
        of shards, each one of these or a tuple ``(array, ids)``. An iterator is read once.
    ids : sequence of str, length n, optional
        Ids of the rows; default is the stimulus coordinate, else the row number as text.

    Raises
    ------
    DataError
        Wrong shape, dtype, number of ids, unequal widths of shards, or no rows.

    Examples
    --------
    >>> import numpy as np
    >>> bank = as_bank([np.ones((3, 2)), (np.zeros((2, 2), np.float16), ["a", "b"])])
    >>> bank.n, [(c.start, len(c.rows)) for c in bank.chunks(2)]
    (5, [(0, 2), (2, 1), (3, 2)])
    >>> bank.names(np.array([1, 4])).tolist()
    ['1', 'b']
    """
    if isinstance(source, EmbeddingBank):
        return source
    # A bank that is not finished is opened, too, because that error says how to go on.
    marks = ("bank.json", "build.json") if ids is None and isinstance(source, (str, os.PathLike)) else ()
    if any((Path(source) / name).is_file() for name in marks):
        return load_bank(source)
    return EmbeddingBank(source, ids)
