import pandas as pd
import pytest

from neuroenc._core.errors import DataError
from neuroenc._core.tables import numbers, read_table, write_table


def _write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_cells_are_text_whatever_they_look_like(tmp_path, encoding):
    path = _write(tmp_path / "a.csv", " id , x\nNA,1\n None ,\nbär,007\n\n", encoding)
    table = read_table(path, ["id"])
    assert table["id"].tolist() == ["NA", "None", "bär"]
    assert table["x"].tolist() == ["1", "", "007"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "empty"),
        ("a,b\n1,2,3\n", "line 2"),
        ("a,a\n1,2\n", "'a'"),
        ("b,c\n1,2\n", "'a'"),
        ("a\n\0\n", "null"),
    ],
)
def test_untidy_tables_are_refused_with_their_file(tmp_path, text, names):
    with pytest.raises(DataError, match=rf"t\.csv.*{names}|{names}.*t\.csv"):
        read_table(_write(tmp_path / "t.csv", text), ["a"])


def test_another_encoding_is_refused_with_file_and_line(tmp_path):
    with pytest.raises(DataError, match=r"t\.csv.*line 2.*0xe4"):
        read_table(_write(tmp_path / "t.csv", "id\nbär\n", "latin-1"))


@pytest.mark.parametrize(("cell", "names"), [("1,5", "comma"), ("x", "'x'"), ("inf", "finite"), ("-1", "at least 0")])
def test_cells_that_are_no_legal_numbers_are_named(tmp_path, cell, names):
    table = read_table(_write(tmp_path / "t.tsv", f"onset\n0\n{cell}\n"))
    with pytest.raises(DataError, match=rf"t\.tsv, row 2: onset.*{names}"):
        numbers(table, "onset", "t.tsv", least=0)


def test_missing_cells_become_nan_or_the_default(tmp_path):
    table = read_table(_write(tmp_path / "t.tsv", "onset\tx\nn/a\ta\n2\tb\n"))
    assert pd.isna(numbers(table, "onset", "t.tsv", missing=("n/a",))[0])
    assert numbers(table, "onset", "t.tsv", missing=("n/a",), default=0).tolist() == [0, 2]


def test_formulas_do_not_reach_a_spreadsheet(tmp_path):
    write_table(pd.DataFrame({"caption": ["=cmd()", "@x", "a cat"], "score": [-0.5, 1.0, 2.0]}), tmp_path / "t.csv")
    found = pd.read_csv(tmp_path / "t.csv")
    assert found.caption.tolist() == ["'=cmd()", "'@x", "a cat"]
    assert found.score.tolist() == [-0.5, 1.0, 2.0]
