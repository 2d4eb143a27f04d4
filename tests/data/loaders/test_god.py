"""Generic Object Decoding: ids of floating numbers, parts, runs, regions."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data.datasets._god import _id
from trees import god_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("god")
    return root, god_tree(root)


def test_the_authors_example_of_an_id():
    assert _id(1518878.005958) == "n01518878_5958"
    assert _id(np.float64(2084071.030000)) == "n02084071_30000"
    # Doubles of every published form come back, whatever their binary rounding.
    rng = np.random.default_rng(0)
    for wnid, image in zip(rng.integers(1_000_000, 16_000_000, 500), rng.integers(0, 100_000, 500), strict=True):
        assert _id(float(f"{wnid}.{image:06d}")) == f"n{wnid:08d}_{image}"


def test_values_parts_and_runs(tree, load):
    root, truth = tree
    found = load("god", root)
    r = found.responses
    seen = [n for n, row in enumerate(truth["rows"]) if row[0] < 3]
    np.testing.assert_allclose(r.values, truth["values"][seen], rtol=1e-6)
    assert r.stimulus.values.tolist() == [truth["rows"][n][2] for n in seen]
    # Run 1 of training is not run 1 of the test.
    assert len(set(r.run.values)) == len({row[:2] for row in truth["rows"] if row[0] < 3})
    assert (r.roi.values[:2] == "V1;VC").all()
    assert found.extra["splits"]["test"].tolist() == [s for s in found.stimuli.ids if s in truth["test"]]
    np.testing.assert_array_equal(found.extra["mm"], truth["xyz"])
    data.validate(found)


def test_places_are_the_published_millimetres(tree, load):
    r = load("god", tree[0], voxels="FFA").responses
    affine = np.asarray(r.attrs["affine"], dtype=float).reshape(4, 4)
    ijk = np.stack([r[x].values for x in "ijk"], 1)
    np.testing.assert_allclose(ijk @ affine[:3, :3].T + affine[:3, 3], tree[1]["xyz"][10:])


def test_repeats_and_z_scores(tree, load):
    root = tree[0]
    found = load("god", root, parts="test", repeats="average", zscore=True)
    assert (found.responses.n_repeats == 4).all()
    raw = load("god", root, parts="test").responses
    np.testing.assert_allclose(
        found.responses.values, data.average_repeats(data.zscore(raw, by="run")).values, atol=1e-6
    )
    with pytest.raises(ConfigError, match="cannot be averaged"):
        load("god", root, parts=["test", "imagery"], repeats="average")


def test_memory(tree, load, tmp_path):
    whole = load("god", tree[0]).responses
    small = load("god", tree[0], cache=tmp_path, max_memory=1000).responses
    assert hasattr(small.data, "dask")
    np.testing.assert_array_equal(small.values, whole.values)


def test_pictures_by_the_authors_list(tree, load):
    found = load("god", tree[0])
    assert found.stimuli.table["file"].tolist() == [f"{s}.JPEG" for s in found.stimuli.ids]
    assert [p.stem for p in found.stimuli.images] == found.stimuli.ids.tolist()


def test_other_files(load, tmp_path):
    god_tree(tmp_path)
    with h5py.File(tmp_path / "Subject1.h5", "r+") as handle:
        del handle["metadata"]
    with pytest.raises(DataError, match="expected dataset and metadata"):
        load("god", tmp_path)
    with pytest.raises(DataError, match=r"Subject2\.h5.*it has Subject1"):
        load("god", tmp_path, subject=2)
    with pytest.raises(ConfigError, match="did you mean 'imagery'"):
        load("god", tmp_path, parts="imagry")
