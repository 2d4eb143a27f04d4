"""Banks on disk: opened lazily, traced, and refused when something is missing."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest

from neuroenc._core.errors import DataError
from neuroenc._core.files import write_sealed_json
from neuroenc.retrieval import StoredBank, as_bank, load_bank
from neuroenc.retrieval._shards import TABLE_COLUMNS, finish_bank, write_shard

LEFT = pd.DataFrame(columns=["id", "file", "reason", "of"])


@pytest.fixture
def stored(tmp_path, rng):
    """Ten rows in three blocks, the middle one empty."""
    rows = rng.standard_normal((10, 4)).astype(np.float16)
    folder, records = tmp_path / "bank", []
    write_sealed_json(folder / "build.json", {"blocks": 3})
    for number, part in enumerate([slice(0, 6), slice(6, 6), slice(6, 10)]):
        at = range(*part.indices(10))
        table = pd.DataFrame({c: [f"{c}{n}" for n in at] for c in TABLE_COLUMNS})
        if len(table):
            table.loc[table.index[0], "id"] = "NA"[:2] if number == 0 else "007"
        records.append(write_shard(folder, number, rows[part], table, LEFT))
    finish_bank(folder, records, {"model": "world"})
    return folder, rows


def test_opens_by_its_path(stored):
    folder, rows = stored
    bank = as_bank(folder)
    assert isinstance(bank, StoredBank)
    assert (bank.n, bank.width, bank.info["dtype"]) == (10, 4, "float16")
    np.testing.assert_array_equal(np.concatenate([c.rows for c in bank.chunks(3)]), rows)
    names = [x for c in bank.chunks(3) for x in c.ids]
    # Text that pandas would take for a number or for nothing stays what it is.
    assert names == ["NA", *(f"id{n}" for n in range(1, 6)), "007", "id7", "id8", "id9"]
    assert bank.ids.tolist() == names
    assert bank.names(np.array([0, 6, 9])).tolist() == ["NA", "007", "id9"]
    assert bank.table()["licence"][3] == "licence3"
    assert bank.table()["source"][9] == "source9"
    bank.verify()


def test_rows_are_traced_to_files_and_licences(stored):
    bank = load_bank(stored[0])
    found = bank.trace(["id9", "007", "id9"])
    assert found["file"].tolist() == ["file9", "file6", "file9"]
    evidence = pd.DataFrame({"voxel": [5, 6], "rank": [1, 1], "stimulus": ["id2", "NA"], "predicted": [1.0, 2.0]})
    both = bank.trace(evidence)
    assert both[["voxel", "stimulus", "file", "licence"]].values.tolist() == [
        [5, "id2", "file2", "licence2"],
        [6, "NA", "file0", "licence0"],
    ]
    with pytest.raises(DataError, match=r"unknown image of the bank 'id11'; did you mean 'id1"):
        bank.trace(["id1", "id11"])


def test_single_rows_and_parts(stored):
    bank, rows = load_bank(stored[0]), stored[1]
    chunks = list(bank.take(np.array([1, 5, 6, 9]), rows=3))
    assert [c.positions.tolist() for c in chunks] == [[1], [5], [6], [9]]
    np.testing.assert_array_equal(np.concatenate([c.rows for c in chunks]), rows[[1, 5, 6, 9]])
    assert [c.names(c.positions).tolist() for c in chunks] == [["id1"], ["id5"], ["007"], ["id9"]]
    part = bank.part(4, 8)
    np.testing.assert_array_equal(np.concatenate([c.rows for c in part.chunks(10)]), rows[4:8])
    assert part.names(np.arange(4)).tolist() == ["id4", "id5", "007", "id7"]
    # What goes to another process is the place of the rows, not the rows.
    whole = pickle.loads(pickle.dumps(bank))  # noqa: S301
    assert len(pickle.dumps(bank.part(0, 6).shards()[0].array)) < 400
    np.testing.assert_array_equal(np.concatenate([c.rows for c in whole.chunks(4)]), rows)


def test_a_table_that_is_gone_is_missed(stored):
    folder = stored[0]
    bank = load_bank(folder)
    table = folder / "shards" / "00000002" / "left_out.csv"
    table.unlink()
    for ask in (bank.verify, bank.left_out):
        with pytest.raises(DataError, match=r"00000002/left_out\.csv does not exist"):
            ask()
    table.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is a device"):
        bank.verify()


def test_what_is_damaged_or_unfinished_says_so(stored, tmp_path):
    folder = stored[0]
    path = folder / "shards" / "00000002" / "embeddings.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="is damaged"):
        load_bank(folder).verify()
    path.unlink()
    with pytest.raises(DataError, match=r"lacks 00000002/embeddings\.npy"):
        load_bank(folder)
    (folder / "bank.json").unlink()
    with pytest.raises(DataError, match=r"is not finished \(3 of 3 blocks\).*run the same"):
        as_bank(folder)
    with pytest.raises(DataError, match="holds no bank"):
        load_bank(tmp_path)
    write_sealed_json(folder / "bank.json", {"version": 9})
    with pytest.raises(DataError, match="version 9; this neuroenc reads 2"):
        load_bank(folder)


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_arrays_are_banks(tmp_path, rng, version):
    zarr = pytest.importorskip("zarr")
    rows = rng.standard_normal((50, 4)).astype(np.float16)
    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="w", zarr_format=version)
    array = group.create_array("embeddings", shape=rows.shape, chunks=(16, 4), dtype=rows.dtype)
    array[:] = rows
    bank = as_bank(tmp_path / "x.zarr" / "embeddings")
    np.testing.assert_array_equal(np.concatenate([c.rows for c in bank.chunks(7)]), rows)
    np.testing.assert_array_equal(np.concatenate([c.rows for c in bank.part(10, 30).chunks(7)]), rows[10:30])
    np.testing.assert_array_equal(next(bank.take(np.array([3, 40]))).rows, rows[[3, 40]])
    with pytest.raises(DataError, match=r"zarr group of arrays embeddings|is not a \.npy file"):
        as_bank(tmp_path / "x.zarr")
