"""BOLD5000: all three forms against what was written, read by hand."""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from trees import bold5000_tree

LENGTHS = (8, 6, 8, 6, 8, 6, 8, 6, 8)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("bold5000")
    return root, bold5000_tree(root)


def expected(tree, mask, zscore=True):
    parts = [s[:, mask.reshape(-1)].astype(np.float64) for s in tree["sessions"]]
    return np.concatenate([(p - p.mean(0)) / p.std(0) if zscore else p for p in parts])


def test_volumes_are_z_scored_by_session_in_c_order(tree, load):
    root, truth = tree
    found = load("bold5000", root, subject="CSI4")
    r = found.responses
    np.testing.assert_allclose(r.values, expected(truth, truth["brain"]), atol=2e-5)
    np.testing.assert_array_equal(r.voxel, np.flatnonzero(truth["brain"]))
    np.testing.assert_array_equal(np.stack([r[x] for x in "ijk"], 1), np.argwhere(truth["brain"]))
    assert r.stimulus.values.tolist() == truth["ids"]
    assert r.session.values.tolist() == np.repeat(np.arange(1, 10), LENGTHS).tolist()
    assert r.run.values.tolist() == np.concatenate([np.arange(n) // 4 + 1 for n in LENGTHS]).tolist()
    # Masks published as LO are LOC; a voxel of two regions has both names.
    assert all(
        ("LHLOC" in x.split(";")) == truth["masks"]["LHLO"].reshape(-1)[v]
        for x, v in zip(r.roi.values.tolist(), r.voxel.values, strict=True)
    )
    data.validate(found)


def test_rep_is_no_part_of_a_name(tree, load):
    root, truth = tree
    found = load("bold5000", root, subject=4, repeats="average")
    counts = {s: truth["ids"].count(s) for s in truth["ids"]}
    assert not any(s.startswith("rep_") for s in found.stimuli.ids)
    assert found.responses.n_repeats.to_series().to_dict() == counts
    assert set(found.extra["splits"]["repeated"]) == {s for s, n in counts.items() if n > 1}
    assert len(set(counts.values())) > 2  # mixed repeat counts
    s = found.extra["splits"]["repeated"][0]
    rows = [n for n, x in enumerate(truth["ids"]) if x == s]
    np.testing.assert_allclose(
        found.responses.sel(stimulus=s), expected(truth, truth["brain"])[rows].mean(0), atol=2e-5
    )


def test_collections_ids_and_pictures(tree, load):
    found = load("bold5000", tree[0], subject=4, voxels="PPA")
    table = found.stimuli.table
    assert set(table["collection"]) == {"coco", "imagenet", "scene"}
    assert table.loc["COCO_train2014_000000000001", "coco_id"] == 1
    assert table.loc[table["collection"] == "imagenet", "wnid"].eq("n01440764").all()
    assert found.stimuli.images[0].name == table["file"].iloc[0]


def test_a_region_without_side_is_both(tree, load):
    root, truth = tree
    both = load("bold5000", root, subject=4, voxels="PPA").responses
    assert set(both.voxel.values) == set(np.flatnonzero(truth["masks"]["LHPPA"] | truth["masks"]["RHPPA"]))
    with pytest.raises(ConfigError, match="did you mean 'LHPPA'"):
        load("bold5000", root, subject=4, voxels="LHPPB")


def test_regions_of_both_releases_equal_the_volumes(tree, load, tmp_path):
    root, truth = tree
    volumes = load("bold5000", root, subject=4, voxels="RHEarlyVis").responses
    regions = load("bold5000", root, subject=4, form="regions", voxels="RHEarlyVis").responses
    np.testing.assert_allclose(regions.values, volumes.values, atol=1e-5)
    first = bold5000_tree(tmp_path, release=1)
    one = load("bold5000", tmp_path, subject=4, voxels="RHEarlyVis").responses
    assert one.attrs["units"] == "z"
    np.testing.assert_allclose(one.values, volumes.values, atol=1e-5)
    (tmp_path / "ROIs/CSI4/h5/CSI4_ROIs_TR34.h5").unlink()
    mat = load("bold5000", tmp_path, subject=4, voxels="RHEarlyVis").responses
    np.testing.assert_array_equal(mat.values, one.values)
    assert first["ids"] == one.stimulus.values.tolist() == truth["ids"]


def test_regions_without_lists_have_no_sessions_and_none_are_invented(load, tmp_path):
    bold5000_tree(tmp_path, release=1, lists=False)
    with pytest.raises(DataError, match="sessions of these 64 trials are unknown"):
        load("bold5000", tmp_path, subject=4)
    raw = load("bold5000", tmp_path, subject=4, zscore=False).responses
    assert "session" not in raw.coords
    assert raw.attrs["zscored"] == "none"


@pytest.mark.parametrize("lists", [True, False])
def test_an_absent_session_does_not_shift_the_others(load, tmp_path, lists):
    truth = bold5000_tree(tmp_path, lists=lists)
    whole = load("bold5000", tmp_path, subject=4).responses
    for n in (3, 4):
        next(tmp_path.glob(f"*_ses-{n:02d}.nii.gz")).unlink()
    found = load("bold5000", tmp_path, subject=4)
    kept = whole[~np.isin(whole.session, [3, 4])]
    for name in ("stimulus", "session", "repeat"):
        np.testing.assert_array_equal(found.responses[name], kept[name])
    np.testing.assert_array_equal(found.responses.values, kept.values)
    assert found.extra["missing_sessions"] == [3, 4]
    assert truth["ids"][:14] == kept.stimulus.values[:14].tolist()


def test_two_gaps_without_lists_are_not_guessed(load, tmp_path):
    bold5000_tree(tmp_path, lists=False)
    for n in (2, 5):
        next(tmp_path.glob(f"*_ses-{n:02d}.nii.gz")).unlink()
    with pytest.raises(DataError, match=r"absent sessions \[2, 5\] is not sure"):
        load("bold5000", tmp_path, subject=4)


def test_sessions_can_be_chosen_and_keep_repeat_numbers(tree, load):
    whole = load("bold5000", tree[0], subject=4).responses
    part = load("bold5000", tree[0], subject=4, sessions=[2, 9]).responses
    kept = whole[np.isin(whole.session, [2, 9])]
    np.testing.assert_array_equal(part.repeat, kept.repeat)
    np.testing.assert_array_equal(part.values, kept.values)
    with pytest.raises(DataError, match=r"no sessions \[12\]"):
        load("bold5000", tree[0], subject=4, sessions=12)


@pytest.mark.parametrize("repeats", ["keep", "average"])
def test_streamed_through_the_disk_is_the_same(tree, load, tmp_path, repeats):
    whole = load("bold5000", tree[0], subject=4, repeats=repeats).responses
    small = load("bold5000", tree[0], subject=4, repeats=repeats, cache=tmp_path, max_memory=4000).responses
    assert hasattr(small.data, "dask")
    np.testing.assert_allclose(small.values, whole.values, atol=1e-6)
    assert small.coords.to_dataset().identical(whole.coords.to_dataset())
    with pytest.raises(DataError, match="more than half of max_memory"):
        load("bold5000", tree[0], subject=4, max_memory=4000)


def test_lists_of_another_subject_are_noticed(load, tmp_path):
    bold5000_tree(tmp_path)
    path = tmp_path / "BOLD5000_Stimuli/Stimuli_Presentation_Lists/CSI4/CSI4_sess02/CSI_sess02_run01.txt"
    path.write_text("\n".join(reversed(path.read_text().split())) + "\n")
    with pytest.raises(DataError, match="trial 9 of CSI4"):
        load("bold5000", tmp_path, subject=4)


def test_what_is_not_there_is_named(tree, load):
    with pytest.raises(DataError, match=r"data of CSI1.*it has CSI4"):
        load("bold5000", tree[0], subject=1)
    with pytest.raises(ConfigError, match="1 to 4"):
        load("bold5000", tree[0], subject=5)
    with pytest.raises(DataError, match=r"volumes of CSI4 .betas='a'"):
        load("bold5000", tree[0], subject=4, betas="a", form="volumes")
