"""Banks on disk: shards of embeddings, each beside a table that says which file every row is, and whose.

::

    BANK/bank.json                        written last: what the bank holds and how it was made
    BANK/build.json                       settings of the build, written first
    BANK/shards/00000000/embeddings.npy   (rows, width)
    BANK/shards/00000000/table.csv        one row an embedding: id, file, licence, licence_url, source, sha256, ...
    BANK/shards/00000000/left_out.csv     images of the same block that are not in the bank, and why
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._util.errors import DataError, unknown_name
from neuroenc._util.files import atomic_path, read_json, sha256_file, write_json
from neuroenc.retrieval._bank import EmbeddingBank, LazyIds

__all__ = [
    "TABLE_COLUMNS",
    "StoredBank",
    "finish_bank",
    "is_bank_folder",
    "load_bank",
    "read_table",
    "shard_folder",
    "write_shard",
]

TABLE_COLUMNS = ("id", "file", "licence", "licence_url", "source", "sha256")
_VERSION = 1


def shard_folder(bank: Path, number: int) -> Path:
    """Folder of one block of the build."""
    return bank / "shards" / f"{number:08d}"


def is_bank_folder(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a bank on disk, finished or not."""
    return any((Path(path) / name).is_file() for name in ("bank.json", "build.json"))


def read_table(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """A table of a shard; every cell is text."""
    return pd.read_csv(path, dtype=str, keep_default_na=False, usecols=columns)


@lru_cache(maxsize=4)
def _ids(path: Path, _changed: float) -> np.ndarray:
    return read_table(path, ["id"])["id"].to_numpy().astype(str)


def _shard_ids(path: Path) -> np.ndarray:
    return _ids(path, path.stat().st_mtime)


def _sync(path: Path) -> None:
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


def write_shard(
    bank: Path, number: int, embeddings: np.ndarray, table: pd.DataFrame, left_out: pd.DataFrame
) -> dict[str, Any]:
    """Write a block, whole or not at all; its entry in bank.json."""
    folder = shard_folder(bank, number)
    with atomic_path(folder, directory=True) as temporary:
        np.save(temporary / "embeddings.npy", embeddings, allow_pickle=False)
        table.to_csv(temporary / "table.csv", index=False)
        left_out.to_csv(temporary / "left_out.csv", index=False)
        record = {"rows": len(table), "left_out": len(left_out), "sha256": sha256_file(temporary / "embeddings.npy")}
        write_json(temporary / "shard.json", record)
        for path in temporary.iterdir():
            _sync(path)
    return record


def finish_bank(bank: Path, records: list[dict[str, Any]], info: dict[str, Any]) -> Path:
    """Write bank.json over finished blocks; those without rows stay on disk, for what they left out."""
    shards = [{"number": n, **r} for n, r in enumerate(records) if r["rows"]]
    first = np.load(shard_folder(bank, shards[0]["number"]) / "embeddings.npy", mmap_mode="r", allow_pickle=False)
    known = {"version": _VERSION, "n": sum(s["rows"] for s in shards), "width": int(first.shape[1])}
    return write_json(bank / "bank.json", {**known, "dtype": first.dtype.name, **info, "shards": shards})


class StoredBank(EmbeddingBank):
    """A bank that `neuroenc bank build` wrote: rows and ids are read when they are needed.

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
                of = read_json(self.path / "build.json").get("blocks", "?")
                raise DataError(
                    f"the bank {self.path} is not finished ({done} of {of} blocks). Next step: run the same "
                    "`neuroenc bank build` again; it goes on where it stopped."
                )
            raise DataError(f"{self.path} holds no bank (no bank.json). Next step: `neuroenc bank build`, or check it.")
        self.info: dict[str, Any] = read_json(self.path / "bank.json")
        if self.info.get("version") != _VERSION:
            raise DataError(
                f"{self.path} is a bank of version {self.info.get('version')}; this neuroenc reads {_VERSION}. "
                "Next step: build it again."
            )
        super().__init__([self._part(s) for s in self.info["shards"]])

    def _part(self, record: dict[str, Any]) -> tuple[Path, LazyIds]:
        folder = shard_folder(self.path, record["number"])
        for name in ("embeddings.npy", "table.csv"):
            if not (folder / name).is_file():
                raise DataError(f"the bank {self.path} lacks {folder.name}/{name}. Next step: copy or build it again.")
        ids = LazyIds(int(record["rows"]), partial(_shard_ids, folder / "table.csv"))
        return folder / "embeddings.npy", ids

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
        paths = sorted((self.path / "shards").glob("[0-9]*/left_out.csv"))
        return pd.concat([read_table(p) for p in paths], ignore_index=True)

    @property
    def ids(self) -> np.ndarray:
        """Ids of all rows (n,)."""
        return self._column("id")

    @property
    def licences(self) -> np.ndarray:
        """Licence of each image (n,); "unknown" where none was given."""
        return self._column("licence")

    @property
    def sources(self) -> np.ndarray:
        """Where each image is from (n,)."""
        return self._column("source")

    def _column(self, name: str) -> np.ndarray:
        parts = [t[name].to_numpy().astype(str) for t in self.tables()]
        return np.concatenate(parts)

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
        """Hash every shard anew.

        Raises
        ------
        DataError
            One is not what bank.json promises.
        """
        for record in self.info["shards"]:
            path = shard_folder(self.path, record["number"]) / "embeddings.npy"
            if sha256_file(path) != record["sha256"]:
                raise DataError(f"{path} is damaged (another sha256). Next step: remove its folder and build again.")


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
    neuroenc._util.errors.DataError: nowhere holds no bank (no bank.json). ...
    """
    return StoredBank(path)
