"""A data set of another package: it is listed, recognised, loaded and refused as those of neuroenc are."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.cli._data import app

PACKAGE = """
import numpy as np
from neuroenc.data import SESSIONS, Dataset, Manifest, Recording, Stimuli

class Tiny(Dataset):
    name, title, expected, common = "tiny-lab", "The lab's experiment", "sub-1.npy", SESSIONS
    manifest = Manifest("tiny-lab", "Tiny", "Own.", licence="CC0", redistribution="free", citation="Me", access="Ask.")

    def subjects(self, folder):
        return sorted(p.stem for p in folder.glob("sub-*.npy"))

    def read(self, source, *, subject="sub-1"):
        path = self.root(source) / f"{subject}.npy"
        if not path.is_file():
            raise self.lacks(path.parent, path.name)
        values = np.load(path)
        labels = {"stimulus": ["a", "b", "a", "b"], "session": [1, 1, 2, 2], "voxel": range(values.shape[1])}
        labels["subject"] = subject
        return Recording(labels, lambda rows, voxels, budget: values[rows, voxels], Stimuli(["a", "b"]), [path])
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder of the lab's data; the lab's package is installed beside it."""
    site = tmp_path / "site"
    (site / "tinylab-1.0.dist-info").mkdir(parents=True)
    (site / "tinylab_data.py").write_text(PACKAGE)
    (site / "tinylab-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tinylab\nVersion: 1.0\n")
    (site / "tinylab-1.0.dist-info" / "entry_points.txt").write_text(
        "[neuroenc.datasets]\ntiny-lab = tinylab_data:Tiny\n"
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "tinylab_data", raising=False)
    folder = tmp_path / "data"
    folder.mkdir()
    np.save(folder / "sub-1.npy", np.arange(12.0, dtype=np.float32).reshape(4, 3) ** 2)
    return folder


def test_it_loads_as_any_other(lab):
    found = data.load_dataset("tiny-lab", root=lab, progress=False)
    assert found.responses.attrs["zscored"] == "session"
    assert found.responses.attrs["licence"] == "CC0"
    np.testing.assert_allclose(found.responses.values, [[-1] * 3, [1] * 3] * 2, rtol=1e-6)
    with pytest.warns(UserWarning, match="gains and offsets"):
        raw = data.load_dataset("tiny-lab", root=lab, zscore=False, repeats="average", progress=False).responses
    np.testing.assert_allclose(raw.values[0], (np.arange(3) ** 2 + np.arange(6, 9) ** 2) / 2)
    assert data.loader_options("tiny-lab") == {"subject": "sub-1", **data.SESSIONS}


def test_it_goes_through_the_disk_where_memory_is_short(lab, tmp_path):
    whole = data.load_dataset("tiny-lab", root=lab, progress=False).responses
    stored = data.load_dataset("tiny-lab", root=lab, cache=tmp_path / "store", max_memory=60, progress=False).responses
    assert hasattr(stored.data, "dask")
    np.testing.assert_allclose(stored.values, whole.values, rtol=1e-6)


def test_it_is_described_and_listed(lab):
    (found,) = data.describe(lab)
    assert (found.kind, found.has) == ("tiny-lab", {"subjects": "sub-1"})
    assert "tiny-lab" in [m.name for m in data.list_manifests()]
    assert "The lab's experiment" in data.known_layouts()
    shown = CliRunner().invoke(app, ["list"]).output
    assert "tiny-lab" in shown
    assert "subject='sub-1'" in CliRunner().invoke(app, ["show", "tiny-lab"]).output
    assert "load with" in CliRunner().invoke(app, ["describe", str(lab)]).output


def test_mistakes_are_told_as_for_any_other(lab, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'subject'"):
        data.load_dataset("tiny-lab", root=lab, subjekt="sub-1")
    with pytest.raises(ConfigError, match="did you mean 'tiny-lab'"):
        data.load_dataset("tinylab", root=lab)
    with pytest.raises(DataError, match=r"sub-2\.npy; it has sub-1"):
        data.load_dataset("tiny-lab", root=lab, subject="sub-2")
    data.simulate.god_tree(tmp_path / "god")
    with pytest.raises(DataError, match=r"tiny-lab is not in .*Generic Object Decoding.*sub-1\.npy.*Ask\."):
        data.load_dataset("tiny-lab", root=tmp_path / "god")


def test_a_package_that_cannot_be_imported_leaves_the_others(lab, tmp_path):
    (tmp_path / "site" / "tinylab_data.py").write_text("import a_package_that_is_not_there")
    with pytest.warns(UserWarning, match="tiny-lab.*a_package_that_is_not_there"):
        assert "nsd" in [m.name for m in data.list_manifests()]
    with pytest.warns(UserWarning, match="tiny-lab"):
        assert data.describe(lab) == []
