"""What a folder holds is told, and what it looks like when another was expected."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

import neuroenc.data
import trees as miniatures
from neuroenc import data
from neuroenc._core.errors import DataError
from neuroenc.cli._data import app

TREES = {
    "bold5000": miniatures.bold5000_tree,
    "things-fmri": miniatures.things_fmri_tree,
    "algonauts2023": miniatures.algonauts2023_tree,
    "god": miniatures.god_tree,
    "glmsingle": miniatures.glmsingle_tree,
    "bids": miniatures.bids_tree,
    "nsd": lambda path: miniatures.nsd_tree(path, n_subjects=1),
}
RUN = {"progress": False, "cache": False}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees")
    for name, make in TREES.items():
        make(root / name)
    return root


@pytest.mark.parametrize("name", TREES)
def test_every_layout_is_recognised_as_itself_alone(trees, name):
    found = data.describe(trees / name)
    assert [f.kind for f in found] == [name]
    assert found[0].has


@pytest.mark.parametrize("name", [n for n in TREES if n != "glmsingle"])
def test_the_call_that_is_shown_loads(trees, name):
    """The call is Python that runs as it is printed."""
    call = data.describe(trees / name)[0].call
    options = "progress=False" if name == "algonauts2023" else "progress=False, cache=False"
    if name == "algonauts2023":
        options = "progress=False, max_memory='1GB'"
    found = eval(f"{call[:-1]}, {options})", vars(neuroenc.data) | {n: getattr(data, n) for n in data.__all__})
    assert found.responses.size
    data.validate(found)


def test_a_folder_around_data_sets_shows_them_all(trees):
    assert sorted(f.kind for f in data.describe(trees)) == sorted(TREES)


@pytest.mark.parametrize(
    ("wanted", "given", "title"),
    [
        ("bold5000", "things-fmri", "THINGS-fMRI"),
        ("things-fmri", "algonauts2023", "Algonauts 2023"),
        ("algonauts2023", "nsd", "Natural Scenes Dataset"),
        ("god", "bold5000", "BOLD5000"),
    ],
)
def test_loaders_say_which_neighbour_a_folder_looks_like(trees, wanted, given, title):
    with pytest.raises(DataError, match=f"{wanted} is not in .*It looks like {title}.*Expected"):
        data.load_dataset(wanted, root=trees / given)


def test_glmsingle_says_so_too(trees):
    with pytest.raises(DataError, match="looks like BIDS"):
        data.read_glmsingle(trees / "bids", {"stimulus": ["a"]})


def test_what_is_missing_is_named(tmp_path):
    miniatures.bold5000_tree(tmp_path, lists=False, pictures=False)
    found = data.describe(tmp_path)[0]
    assert any("Presented_Stimuli" in x for x in found.missing)
    assert any("Stimuli_Presentation_Lists" in x for x in found.missing)
    assert found.has["volumes"] == "CSI4 (9 sessions)"


def test_files(tmp_path, trees):
    np.save(tmp_path / "y.npy", np.zeros((3, 2)))
    assert data.describe(tmp_path / "y.npy")[0].has == {"array": "float64 (3, 2)"}
    np.save(tmp_path / "p.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="pickled"):
        data.describe(tmp_path / "p.npy")
    image = next((trees / "bids").rglob("*preproc_bold.nii.gz"))
    assert "load_masked" in data.describe(image)[0].call
    with pytest.raises(DataError, match=r"does not exist; .* holds"):
        data.describe(tmp_path / "nothing")


def test_command(trees, tmp_path):
    shown = CliRunner().invoke(app, ["describe", str(trees / "god")])
    assert shown.exit_code == 0
    assert "Generic Object Decoding in" in shown.output
    assert "load with" in shown.output
    (tmp_path / "a.txt").write_text("")
    shown = CliRunner().invoke(app, ["describe", str(tmp_path)])
    assert shown.exit_code == 1
    assert "no known layout; it holds a.txt" in shown.output
