"""What a bank may be, and that it is read the same however it is held."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc.retrieval import as_bank


def everything(bank, rows=3):
    chunks = list(bank.chunks(rows))
    assert [c.start for c in chunks] == np.cumsum([0] + [len(c.rows) for c in chunks])[:-1].tolist()
    assert all(len(c.rows) <= rows for c in chunks)
    names = [n for c in chunks for n in c.names(np.arange(c.start, c.start + len(c.rows)))]
    return np.concatenate([c.rows for c in chunks]), names


@pytest.fixture
def rows(rng):
    return rng.standard_normal((10, 4)).astype(np.float32)


def test_every_form_gives_the_same_rows(rows, tmp_path):
    np.save(tmp_path / "bank.npy", rows)
    ids = [f"im{i}" for i in range(10)]
    labelled = xr.DataArray(rows, dims=("stimulus", "feature"), coords={"stimulus": ids})
    forms = {
        "array": (rows, None),
        "fortran": (np.asfortranarray(rows), None),
        "path": (tmp_path / "bank.npy", None),
        "memmap": (np.load(tmp_path / "bank.npy", mmap_mode="r"), None),
        "memmap slice": (np.load(tmp_path / "bank.npy", mmap_mode="r")[2:], None),
        "labelled": (labelled, ids),
        "transposed": (labelled.T, ids),
        "dask": (labelled.chunk(stimulus=4), ids),
        "shards": ([rows[:4], (rows[4:], ids[4:])], ["0", "1", "2", "3", *ids[4:]]),
        "stream": (iter([rows[:4], rows[4:]]), None),
    }
    for name, (source, expected) in forms.items():
        got, names = everything(as_bank(source))
        want = rows[2:] if name == "memmap slice" else rows
        np.testing.assert_array_equal(got, want, err_msg=name)
        assert names == (expected or [str(i) for i in range(len(want))]), name


def test_memmap_with_unsaved_private_changes_is_read_as_seen(rows, tmp_path):
    np.save(tmp_path / "bank.npy", rows)
    private = np.load(tmp_path / "bank.npy", mmap_mode="c")
    private[0] = 7
    assert (everything(as_bank(private))[0][0] == 7).all()


def test_stream_is_read_once(rows):
    bank = as_bank(iter([rows]))
    assert not bank.reusable
    assert bank.n is None
    everything(bank)
    with pytest.raises(DataError, match="read already"):
        everything(bank)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros(3), r"shape \(3,\)"),
        (np.zeros((0, 3)), "0 rows"),
        (np.array([["a", "b"]]), "dtype"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], "shard 1 has width 4"),
        ((np.zeros((2, 3)), ["a"]), "1 ids for 2"),
        ("bank.pkl", "not a .npy"),
        ("absent.npy", "does not exist"),
    ],
)
def test_errors(source, message):
    with pytest.raises(DataError, match=message):
        as_bank(source)


def test_pickled_object_array_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[object()]]), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        as_bank(tmp_path / "x.npy")


def test_masked_entries_of_a_bank_are_not_read_as_numbers():
    bank = np.ma.masked_equal([[1.0, 2.0], [9.0, 1.0]], 9.0)
    rows = next(iter(as_bank(bank).chunks(5))).rows
    assert np.isnan(rows).tolist() == [[False, False], [True, False]]
