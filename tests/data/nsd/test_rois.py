"""Regions, splits and ceilings, against label images and designs read by hand."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.io import loadmat

from neuroenc import data, stats
from neuroenc._core.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:.*constant within at least one session")


def volume(root, subject, name):
    return np.asarray(nib.load(root / f"nsddata/ppdata/subj{subject:02d}/func1pt8mm/{name}.nii.gz").dataobj)


def nsd(root, subject, **options):
    return data.nsd(root, subject, **{"progress": False, "cache": False, **options})


@pytest.mark.parametrize("subject", [1, 2, 3])
def test_counts_are_those_planted(tree, subject):
    root, planted = tree
    extra = planted[subject - 1].extra
    found = nsd(root, subject, voxels="brain", rois="all").responses
    for file, name in (("floc-faces", "FFA-1"), ("prf-visualrois", "V2d"), ("streams", "lateral"), ("HCP_MMP1", "7")):
        number = {v: k for k, v in extra["tables"][file].items()}[f"parcel{name}" if name == "7" else name]
        known = f"HCP_MMP1:parcel{name}" if name == "7" else name
        assert int(data.in_roi(found, known).sum()) == int((extra["labels"][file] == number).sum())
    assert not [n for n in data.roi_names(nsd(root, subject).responses) if n.startswith("HCP")]


def test_minus_one_is_outside_and_zero_is_cortex(tree):
    root, _ = tree
    labels = volume(root, 1, "roi/floc-faces")
    assert set(np.unique(labels)) >= {-1, 0, 1}
    np.testing.assert_array_equal(data.nsd_mask(root, 1, "floc-faces"), labels > 0)
    np.testing.assert_array_equal(data.nsd_mask(root, 1, "cortex"), labels >= 0)
    assert data.nsd_mask(root, 1, "cortex").sum() < (labels != 0).sum() + (labels == 0).sum()
    assert data.nsd_mask(root, 1, "floc-faces").sum() < data.nsd_mask(root, 1, "cortex").sum() < labels.size
    # Read as truth values, -1 would make the whole outside a face region.
    assert (labels != 0).sum() > 5 * (labels > 0).sum()


def test_category_regions_need_label_and_t(tree):
    root, _ = tree
    for name, t in (("faces", "facestval"), ("bodies", "bodiestval"), ("places", "placestval"), ("words", "wordtval")):
        label = volume(root, 1, f"roi/floc-{name}") > 0
        with np.errstate(invalid="ignore"):
            expected = label & (volume(root, 1, f"floc_{t}") > 2)
        np.testing.assert_array_equal(data.nsd_mask(root, 1, name), expected)
        assert 0 < expected.sum() < label.sum()
    ffa = np.isin(volume(root, 1, "roi/floc-faces"), [2, 3])
    np.testing.assert_array_equal(data.nsd_mask(root, 1, "FFA"), ffa)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(data.nsd_mask(root, 1, "FFA-t2"), ffa & (volume(root, 1, "floc_facestval") > 2))
    v1 = np.isin(volume(root, 1, "roi/prf-visualrois"), [1, 2])
    np.testing.assert_array_equal(data.nsd_mask(root, 1, "V1"), v1)


def test_visual_and_higher_visual_of_the_papers(tree):
    """Parcels ranked in every subject, ranks averaged, the first 45."""
    root, _ = tree
    ranks = np.zeros(181)
    for s in (1, 2, 3):
        parcels = volume(root, s, "roi/HCP_MMP1")
        folder = root / f"nsddata_betas/ppdata/subj{s:02d}/func1pt8mm/betas_fithrf_GLMdenoise_RR"
        ncsnr = np.asarray(nib.load(folder / "ncsnr.nii.gz").dataobj)
        means = np.array([ncsnr[parcels == p].mean() for p in range(1, 181)])
        order = np.argsort(-means, kind="stable")
        rank = np.empty(180)
        rank[order] = np.arange(180)
        for value in np.unique(means):
            rank[means == value] = rank[means == value].mean()
        ranks[1:] += rank
    top = 1 + np.argsort(ranks[1:], kind="stable")[:45]
    early = volume(root, 2, "roi/prf-visualrois") >= 0.5
    floc = [volume(root, 2, f"roi/floc-{c}") >= 0.5 for c in ("faces", "bodies", "places", "words")]
    visual = np.any([early, *floc, np.isin(volume(root, 2, "roi/HCP_MMP1"), top)], axis=0)
    np.testing.assert_array_equal(data.nsd_mask(root, 2, "visual"), visual)
    np.testing.assert_array_equal(data.nsd_mask(root, 2, "higher-visual"), visual & ~early)
    notes = nsd(root, 2, voxels="higher-visual").extra["notes"]
    assert notes == {"parcels ranked over subjects": [1, 2, 3]}


def test_unknown_and_absent_regions(tree, own):
    with pytest.raises(ConfigError, match=r"did you mean .*'FFA'"):
        data.nsd_mask(tree[0], 1, "FAF")
    assert data.nsd_mask(tree[0], 1, "aTL-faces").sum() == 0
    with pytest.raises(DataError, match="selects none"):
        nsd(tree[0], 1, voxels="aTL-faces")
    (own / "nsddata/ppdata/subj01/func1pt8mm/roi/streams.nii.gz").unlink()
    with pytest.raises(DataError, match="has no streams in func1pt8mm"):
        data.nsd_mask(own, 1, "lateral")
    path = own / "nsddata/ppdata/subj01/func1pt8mm/roi/floc-faces.nii.gz"
    image = nib.load(path)
    values = image.get_fdata() * 0.9
    path.unlink()
    nib.save(nib.Nifti1Image(values, image.affine), path)
    with pytest.raises(DataError, match="resampled with interpolation"):
        data.nsd_mask(own, 1, "OFA")


def test_masks_as_arrays_and_images_select_the_same_voxels(tree, tmp_path):
    root, _ = tree
    mask = data.nsd_mask(root, 1, ["V1", "PPA"])
    named = nsd(root, 1, voxels=["V1", "PPA"]).responses
    affine = np.reshape(named.attrs["affine"], (4, 4))
    nib.save(nib.Nifti1Image(mask.astype("uint8"), affine), tmp_path / "m.nii.gz")
    for voxels in (mask, tmp_path / "m.nii.gz", str(tmp_path / "m.nii.gz")):
        np.testing.assert_array_equal(nsd(root, 1, voxels=voxels).responses.values, named.values)


def test_splits_by_brute_force(tree):
    root, planted = tree
    content = loadmat(root / "nsddata/experiments/nsd/nsd_expdesign.mat")
    order, images = content["masterordering"].ravel() - 1, content["subjectim"]
    counts = planted[0].extra["n_sessions"]
    seen = {s: np.bincount(images[s - 1][order[: 45 * n]], minlength=1000) for s, n in counts.items()}
    shared = content["sharedix"].ravel()
    least = np.min([seen[s][shared] for s in seen], axis=0)
    expected = {"shared1000": shared, "all8": shared[least >= 1], "special515": shared[least >= 3]}
    assert len(expected["special515"]) < len(expected["all8"]) <= 20
    for subject in (1, 3):
        found = nsd(root, subject, repeats="average", voxels="V1")
        for name, ids in expected.items():
            split = data.nsd_split(found, name)
            mine = {f"nsd{n:05d}" for n in ids.tolist() if seen[subject][n]}
            assert set(split.test.stimulus.values.tolist()) == mine
            assert (split.n_listed, split.n_test) == (len(ids), len(mine))
            assert split.n_test + split.n_train == found.responses.sizes["stimulus"]
            assert f"{len(mine)} of {len(ids)} pictures seen" in repr(split)
            assert found.stimuli.table[name].sum() == len(mine)
            data.check_disjoint(split.train, split.test)
        drop = data.nsd_split(found, "special515", rest="drop")
        assert drop.n_train == found.responses.sizes["stimulus"] - data.nsd_split(found, "shared1000").n_test
    with pytest.raises(ConfigError, match=r"did you mean .*'special515'"):
        data.nsd_split(found, "shared515")


def test_splits_when_other_subjects_are_not_known(own):
    (own / "nsddata/ppdata/subj08/behav/responses.tsv").unlink()
    found = nsd(own, 1, voxels="V1")
    assert data.nsd_split(found).n_test == 20
    with pytest.raises(DataError, match=r"do not know the split 'all8'.*responses.tsv"):
        data.nsd_split(found, "all8")


def test_published_numbers_of_sessions_are_used_for_the_published_design():
    from neuroenc.data.datasets._nsd._design import Design, session_counts, shared_ids
    from neuroenc.data.datasets._nsd._layout import Layout

    rng = np.random.default_rng(0)
    order = rng.permutation(np.repeat(np.arange(10000), 3))
    pictures = np.concatenate([np.tile(np.arange(1000), (8, 1)), 1000 + np.arange(72000).reshape(8, 9000)], axis=1)
    design = Design(order, pictures, np.arange(1000), np.ones(30000, int), 40)
    counts = session_counts(Layout(Path("/nowhere"), 1), design)
    assert list(counts.values()) == [40, 40, 32, 30, 40, 32, 40, 30]
    first = order[: 30 * 750]
    times = np.bincount(first, minlength=10000)[:1000]
    assert len(shared_ids(design, "all8", counts)) == (times >= 1).sum()
    assert len(shared_ids(design, "special515", counts)) == (times == 3).sum()


def test_ceilings_are_those_of_the_repeats(own, tree):
    averaged = nsd(tree[0], 3, repeats="average").responses
    n = averaged.n_repeats.values
    a, b, c = ((n == k).sum() for k in (3, 2, 1))
    x2 = averaged.ncsnr.values.astype(float) ** 2
    ceiling = stats.noise_ceiling(averaged.ncsnr, n, unit="r2")
    np.testing.assert_allclose(ceiling, x2 / (x2 + (a / 3 + b / 2 + c) / (a + b + c)))
    special = data.nsd_split(nsd(tree[0], 1, repeats="average"), "special515").test
    assert (special.n_repeats == 3).all()
    # Without the published file the ncsnr is estimated from presentations.
    (own / "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/ncsnr.nii.gz").unlink()
    single = nsd(own, 1).responses
    assert "ncsnr" not in single.coords
    estimated = stats.ncsnr(single.values, single.stimulus.values)
    assert np.corrcoef(estimated, nsd(tree[0], 1).responses.ncsnr)[0, 1] > 0.8
