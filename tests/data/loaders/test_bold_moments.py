"""BOLD Moments: order of videos and repeats, regions, pickles that are not opened."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError


def load(root, **options):
    return data.load_dataset("bold-moments", root=root, progress=False, **options)


def bold_moments_tree(root, regions=("lV1v", "rV1v", "lFFA", "BMDgeneral"), seed=0):
    """One subject: training (video, repeat, voxel) and test responses of every region."""
    rng = np.random.default_rng(seed)
    folder = root / "derivatives" / "versionB" / "MNI152" / "prepared_allvoxel_pkl" / "sub-02"
    folder.mkdir(parents=True)
    made = {}
    for k, region in enumerate(regions):
        train, test = (rng.standard_normal((*s, k + 1)).astype(np.float32) for s in ((1000, 3), (102, 10)))
        test[5, 9] = np.nan  # shown nine times only
        made[region] = train, test
        name = folder / f"sub-02_roi-{region}_betas_normalized.npz"
        np.savez(name, train_data_allvoxel=train, test_data_allvoxel=test)
    return folder, made


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("bmd")
    return root, *bold_moments_tree(root)


def test_videos_repeats_and_regions(tree):
    root, _, made = tree
    found = load(root, subject=2)
    r = found.responses
    assert r.shape == (3000 + 1020 - 1, 1 + 2 + 3)
    assert r.roi.values.tolist() == ["lFFA"] * 3 + ["lV1v"] + ["rV1v"] * 2
    np.testing.assert_array_equal(r.values[3 * 7 : 3 * 8, 3], made["lV1v"][0][7, :, 0])
    assert r.stimulus.values[3 * 7] == "vid0008"
    late = r[r.stimulus.values == "vid1006"]
    np.testing.assert_array_equal(late.values[:, :3], made["lFFA"][1][5, :9])
    assert late.repeat.values.tolist() == list(range(9))
    assert len(found.extra["splits"]["train"]) == 1000
    assert found.extra["splits"]["test"][0] == "vid1001"
    both = load(root, subject="sub-02", voxels="V1v", repeats="average").responses
    assert both.roi.values.tolist() == ["lV1v"] + ["rV1v"] * 2
    np.testing.assert_allclose(both.sel(stimulus="vid0003")[0], made["lV1v"][0][2, :, 0].mean(), rtol=1e-5)
    assert [f.kind for f in data.describe(root)] == ["bold-moments"]


def test_refusals(tree):
    with pytest.raises(ConfigError, match="did you mean 'lFFA'"):
        load(tree[0], subject=2, voxels="FFAA")
    with pytest.raises(DataError, match="lacks regions of sub-01; it has sub-02"):
        load(tree[0])


@pytest.mark.slow
def test_pickles_are_converted_by_the_command_that_is_shown(tmp_path):
    folder, _ = bold_moments_tree(tmp_path, ("lV1v",))
    file = folder / "sub-02_roi-lV1v_betas_normalized.npz"
    code = (
        "import numpy, pickle, sys; d = dict(numpy.load(sys.argv[1])); d['note'] = 'x';"
        "pickle.dump(d, open(sys.argv[1][:-3] + 'pkl', 'wb'))"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True)
    file.unlink()
    with pytest.raises(DataError, match="holds pickles, which can run any program") as told:
        load(tmp_path, subject=2)
    command = str(told.value).split("with python ", 1)[1]
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True, cwd=folder)
    assert load(tmp_path, subject=2).responses.sizes["voxel"] == 1
