"""Algonauts 2023: rows, vertices and ids."""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data.datasets._algonauts2023 import LABELS
from trees import algonauts2023_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("algonauts")
    return root, algonauts2023_tree(root)


def test_values_and_vertices(tree, load):
    root, truth = tree
    found = load("algonauts2023", root)
    r = found.responses
    np.testing.assert_array_equal(r.values, np.hstack([truth["lh"], truth["rh"]]))
    for side, hemi in (("lh", "L"), ("rh", "R")):
        np.testing.assert_array_equal(r.vertex[r.hemi == hemi], truth["vertices"][side])
    for n in range(9):
        expected = [
            LABELS[g][k - 1] for g in ("prf-visualrois", "floc-faces", "streams") if (k := truth["labels"]["lh", g][n])
        ]
        assert r.roi.values[n] == ";".join(expected)
    assert r.attrs["zscored"] == "session"
    data.validate(found)


def test_ids_are_those_of_nsd(tree, load):
    """File names count NSD's pictures from 0, ids from 1."""
    found = load("algonauts2023", tree[0])
    assert found.responses.stimulus.values.tolist() == [f"nsd{n + 1:05d}" for n in tree[1]["train"]]
    assert found.extra["splits"]["test"].tolist() == [f"nsd{n + 1:05d}" for n in tree[1]["test"]]
    assert np.asarray(found.stimuli.image(0)).max() == 0
    assert np.asarray(found.stimuli.image(len(tree[1]["train"])))[0, 0, 0] == 100


def test_regions_and_memory(tree, load):
    whole = load("algonauts2023", tree[0]).responses
    part = load("algonauts2023", tree[0], voxels=["floc-faces", "V1v"]).responses
    keep = [any(x in ("V1v", *LABELS["floc-faces"]) for x in r.split(";")) for r in whole.roi.values]
    np.testing.assert_array_equal(part.values, whole.values[:, keep])
    np.testing.assert_array_equal(part.voxel, whole.voxel[keep])
    small = load("algonauts2023", tree[0], max_memory=100).responses
    assert hasattr(small.data, "dask")
    np.testing.assert_array_equal(small.values, whole.values)
    with pytest.raises(ConfigError, match="did you mean 'FFA-1'"):
        load("algonauts2023", tree[0], voxels="FFA1")


def test_a_lost_picture_does_not_shift_rows(load, tmp_path):
    algonauts2023_tree(tmp_path)
    next(tmp_path.glob("**/train-0003_*")).unlink()
    with pytest.raises(DataError, match=r"training pictures number \[3\]"):
        load("algonauts2023", tmp_path)


def test_one_subjects_folder_is_enough(tree, load):
    assert load("algonauts2023", tree[0] / "subj01").responses.shape == (8, 16)
    with pytest.raises(DataError, match=r"subj02.*it has subj01"):
        load("algonauts2023", tree[0], subject=2)


def test_a_mask_of_another_subject(load, tmp_path):
    algonauts2023_tree(tmp_path)
    path = tmp_path / "subj01/roi_masks/lh.all-vertices_fsaverage_space.npy"
    np.save(path, np.ones(163842, dtype=int))
    with pytest.raises(DataError, match="marks 163842 vertices, the responses have 9"):
        load("algonauts2023", tmp_path)
