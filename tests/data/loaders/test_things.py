"""THINGS-fMRI: values, splits and ceilings against what was written."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neuroenc import data, stats
from neuroenc._core.errors import ConfigError, DataError
from trees import things_fmri_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("things")
    return root, things_fmri_tree(root)


def test_values_ids_and_places(tree, load):
    root, truth = tree
    found = load("things-fmri", root)
    r, table = found.responses, truth["table"]
    frame = pd.DataFrame(truth["values"].astype(np.float64)).groupby(table["session"].to_numpy())
    z = ((truth["values"] - frame.transform("mean")) / frame.transform(lambda x: x.std(ddof=0))).to_numpy()
    order = np.lexsort((np.arange(len(table)), table["run"], table["session"]))
    np.testing.assert_allclose(r.values, z[order], atol=1e-5)
    assert r.stimulus.values.tolist() == [x[:-4] for x in table["stimulus"].iloc[order]]
    np.testing.assert_array_equal(r.session, table["session"].iloc[order])
    np.testing.assert_array_equal(np.ravel_multi_index(np.stack([r[x] for x in "ijk"]), truth["shape"]), truth["brain"])
    np.testing.assert_allclose(r.ncsnr, truth["ncsnr"], rtol=1e-5)
    data.validate(found)


def test_splits_are_the_published_ones(tree, load):
    found = load("things-fmri", tree[0], repeats="average")
    n = found.responses.n_repeats
    assert found.extra["splits"]["test"].tolist() == [s for s in found.stimuli.ids if s.startswith("mango")]
    assert (n.sel(stimulus=found.extra["splits"]["test"]) == 3).all()
    assert (n.sel(stimulus=found.extra["splits"]["train"]) == 1).all()
    data.check_disjoint(found.extra["splits"]["train"], found.extra["splits"]["test"])
    assert found.stimuli.table["concept"].isin(["dog", "mango"]).all()
    assert found.stimuli.images[0].name == found.stimuli.table["file"].iloc[0]


def test_published_ceilings_agree_with_the_formula():
    """Rows of the authors' usage notes: one trial 1.102513 %, twelve 11.799193 %; 2.134454 and 20.743164 %."""
    for single, twelve in ((1.102513, 11.799193), (2.134454, 20.743164), (0.446367, 5.105714)):
        ncsnr = np.sqrt(single / (100 - single))
        assert abs(100 * stats.noise_ceiling(np.array([ncsnr]), 12, unit="r2")[0] - twelve) < 1e-4


def test_one_region_or_both_sides(tree, load):
    assert load("things-fmri", tree[0], voxels="V1").responses.voxel.values.tolist() == list(range(8))
    both = load("things-fmri", tree[0], voxels=["FFA", "LO1"]).responses
    assert both.voxel.values.tolist() == [0, 5, 10, 15, 20, 25, 26, 27, 28, 29]
    assert both.roi.values[0] == "V1;LO1 (prf)"
    with pytest.raises(ConfigError, match="lFFA"):
        load("things-fmri", tree[0], voxels="lFFB")


def test_sessions_and_memory(tree, load, tmp_path):
    whole = load("things-fmri", tree[0]).responses
    part = load("things-fmri", tree[0], sessions=[3]).responses
    np.testing.assert_array_equal(part.values, whole[whole.session == 3].values)
    np.testing.assert_array_equal(part.repeat, whole[whole.session == 3].repeat)
    small = load("things-fmri", tree[0], cache=tmp_path, max_memory=3000).responses
    assert hasattr(small.data, "dask")
    np.testing.assert_allclose(small.values, whole.values, atol=1e-6)


def test_rows_in_any_order_of_the_table(load, tmp_path, tree):
    """Trials are found by their row in the table, which need not be sorted by session."""
    import h5py

    truth = things_fmri_tree(tmp_path)
    turned = np.random.default_rng(0).permutation(len(truth["table"]))
    folder = tmp_path / "betas_csv"
    truth["table"].iloc[turned].to_csv(folder / "sub-01_StimulusMetadata.csv", index=False)
    with h5py.File(folder / "sub-01_ResponseData.h5", "r+") as handle:
        handle["ResponseData/block0_values"][:] = truth["values"][turned].T
    a, b = load("things-fmri", tmp_path).responses, load("things-fmri", tree[0]).responses
    order = [np.lexsort((x.values[:, 0], x.session)) for x in (a, b)]
    np.testing.assert_allclose(a.values[order[0]], b.values[order[1]], atol=1e-5)
    assert a.stimulus.values[order[0]].tolist() == b.stimulus.values[order[1]].tolist()


def test_without_brain_mask_there_are_no_places(load, tmp_path):
    things_fmri_tree(tmp_path)
    next(tmp_path.glob("**/*brainmask.nii.gz")).unlink()
    with pytest.warns(UserWarning, match="no place in a volume"):
        found = load("things-fmri", tmp_path)
    assert "i" not in found.responses.coords
    assert {"voxel_x", "voxel_y", "voxel_z"} <= set(found.extra["voxels"])
    data.validate(found)


def test_tables_that_do_not_belong_together(load, tmp_path):
    things_fmri_tree(tmp_path)
    path = tmp_path / "betas_csv/sub-01_StimulusMetadata.csv"
    pd.read_csv(path).iloc[:-1].to_csv(path, index=False)
    with pytest.raises(DataError, match="30 voxels and 23 trials"):
        load("things-fmri", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="lacks sub-01_StimulusMetadata"):
        load("things-fmri", tmp_path)
    with pytest.raises(DataError, match="sub-01_ResponseData"):
        load("things-fmri", tmp_path / "brainmasks")
