"""Responses: against files read by hand in the published way, and against what was planted."""

from __future__ import annotations

import json

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.io import loadmat, savemat

from neuroenc import data, stats
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data.datasets._nsd import _load
from neuroenc.data.simulate import simulate_world

pytestmark = pytest.mark.filterwarnings("ignore:.*constant within at least one session")
B3 = "betas_fithrf_GLMdenoise_RR"


def nsd(root, subject, **options):
    return data.nsd(root, subject, **{"progress": False, "cache": False, **options})


def by_hand(root, subject, betas=B3, n=None):
    """The released notebooks' way: trials first, C order, /300, z-score in each session, no voxel left out."""
    folder = root / "nsddata_betas" / "ppdata" / f"subj{subject:02d}" / "func1pt8mm" / betas
    parts = []
    for path in sorted(folder.glob("betas_session*.nii.gz"))[:n]:
        b = np.asarray(nib.load(path).dataobj).transpose(3, 0, 1, 2)
        b = b.reshape(len(b), -1, order="C").astype(np.float64) / 300
        parts.append(np.nan_to_num((b - b.mean(0)) / (b.std(0) + 1e-6)))
    return np.concatenate(parts)


@pytest.mark.parametrize("file_format", ["nii.gz", "hdf5"])
def test_values_are_those_of_the_published_recipe(tree, file_format):
    root, _ = tree
    found = nsd(root, 1, voxels="nsdgeneral", file_format=file_format).responses
    mask = np.asarray(nib.load(root / "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz").dataobj) > 0
    expected = by_hand(root, 1)[:, mask.ravel()]
    np.testing.assert_allclose(found.values, expected, atol=2e-5)
    np.testing.assert_array_equal(found.voxel.values, np.flatnonzero(mask))
    np.testing.assert_array_equal(np.stack([found[x].values for x in "ijk"], 1), np.argwhere(mask))
    data.validate_responses(found, zscored="session")


def test_fortran_order_would_be_other_voxels(tree):
    """Negative control of the axes: the same numbers in the other order do not match."""
    root, _ = tree
    found = nsd(root, 2).responses
    mask = np.asarray(nib.load(root / "nsddata/ppdata/subj02/func1pt8mm/roi/nsdgeneral.nii.gz").dataobj) > 0
    turned = by_hand(root, 2)[:, np.flatnonzero(mask.ravel(order="F"))]
    assert np.abs(found.values - turned).max() > 1


@pytest.mark.parametrize("subject", [1, 2, 3])
def test_one_call_gives_what_was_planted(tree, subject):
    root, planted = tree
    truth = planted[subject - 1]
    found = nsd(root, f"subj{subject:02d}")
    r = found.responses
    own = truth.responses.sel(voxel=r.voxel.values)
    # int16 steps are 1/300 percent: a few thousandths of a standard deviation.
    expected = data.zscore(own)
    assert float(np.abs(r.values - expected.values).max()) < 0.02
    np.testing.assert_array_equal(r.stimulus.values, [f"nsd{n + 1:05d}" for n in truth.extra["nsd_id"]])
    np.testing.assert_array_equal(r.session.values, own.session.values)
    np.testing.assert_array_equal(r.run.values, own.run.values)
    np.testing.assert_array_equal(r.repeat.values, own.repeat.values)
    np.testing.assert_allclose(r.ncsnr.values, truth.truth["ncsnr"].sel(voxel=r.voxel.values).values, rtol=1e-6)
    assert r.attrs["zscored_n"] == len(r) == 45 * truth.extra["n_sessions"][subject]
    np.testing.assert_array_equal(found.stimuli.table["coco_id"], truth.extra["coco_id"][found.stimuli.table["nsd_id"]])
    assert (found.stimuli.table["id_73k"] == found.stimuli.table["nsd_id"] + 1).all()
    data.validate(found)


def test_pictures_and_captions_are_those_that_were_shown(tree):
    root, planted = tree
    world = simulate_world(len(planted[0].extra["coco_id"]), seed=3)
    stimuli = nsd(root, 1, voxels="V1").stimuli
    for n in (0, 17, len(stimuli) - 1):
        row = int(stimuli.table["nsd_id"].iloc[n])
        np.testing.assert_array_equal(np.asarray(stimuli.image(n)), world.images[row])
        assert stimuli.captions[n] == world.captions[row]
    part = stimuli.sel(stimuli.ids[[5, 2]])
    np.testing.assert_array_equal(np.asarray(part.image(1)), np.asarray(stimuli.image(2)))
    assert part.content_hash() == data.Stimuli(part.ids, np.stack([part.images[0], part.images[1]])).content_hash()
    assert nsd(root, 1, voxels="V1", captions=False).stimuli.captions is None


def test_repeats_are_averaged_with_mixed_counts(tree):
    root, _ = tree
    single = nsd(root, 3).responses
    averaged = nsd(root, 3, repeats="average").responses
    frame = pd.DataFrame(single.values).groupby(single.stimulus.values)
    np.testing.assert_allclose(averaged.values, frame.mean().loc[averaged.stimulus.values], atol=1e-5)
    np.testing.assert_array_equal(averaged.n_repeats, frame.size().loc[averaged.stimulus.values])
    assert set(averaged.n_repeats.values.tolist()) == {1, 2, 3}


def test_sessions_that_are_absent_do_not_shift_the_others(own, tree):
    for path in (own / "nsddata_betas/ppdata/subj01/func1pt8mm" / B3).glob("betas_session02.*"):
        path.unlink()
    with pytest.warns(UserWarning, match=r"without \[2\]"):
        found = nsd(own, 1)
    whole = nsd(tree[0], 1).responses
    kept = whole.isel(presentation=whole.session.values != 2)
    np.testing.assert_array_equal(found.responses.values, kept.values)
    for name in ("stimulus", "session", "run", "repeat"):
        np.testing.assert_array_equal(found.responses[name].values, kept[name].values)
    assert found.extra["missing_sessions"] == [2]
    with pytest.raises(DataError, match=r"no sessions \[2\]; it has \[1, 3, 4\]"):
        nsd(own, 1, sessions=[1, 2])


def test_without_z_scoring_nothing_is_right_and_it_is_said(tree):
    root, planted = tree
    raw = nsd(root, 1, zscore=False).responses
    assert (raw.attrs["units"], raw.attrs["zscored"]) == ("% signal change", "none")
    with pytest.raises(DataError, match="not z-scored within session"):
        data.validate_responses(raw, zscored="session")
    # The usual mistake: the data set's formula takes a total variance of 1, which percent signal change has not.
    truth = planted[0].truth["ncsnr"].sel(voxel=raw.voxel.values).values
    good = nsd(root, 1).responses
    alive = ~np.isin(good.voxel.values, planted[0].extra["invalid"])
    errors = []
    for r in (good, raw):
        frame = pd.DataFrame(r.values[:, alive]).groupby(r.stimulus.values)
        noise = frame.var(ddof=1).mean().to_numpy()
        x2, t2 = np.maximum(0, 1 - noise) / noise, truth[alive] ** 2
        errors.append(float(np.abs(x2 / (x2 + 1 / 3) - t2 / (t2 + 1 / 3)).mean()))
        if r is good:
            np.testing.assert_allclose(stats.ncsnr(r.values[:, alive], r.stimulus.values) ** 2, x2, rtol=1e-4)
    assert errors[0] < 0.1
    assert errors[1] > 4 * errors[0]
    with pytest.raises(ValueError, match="z-score"):
        stats.ncsnr(raw.values[:, alive], raw.stimulus.values)


def test_voxels_that_left_the_image_are_zero_and_counted(tree):
    root, planted = tree
    with pytest.warns(UserWarning, match=r"2 of \d+ voxels of subj01 are constant .* \(0 in all"):
        found = nsd(root, 1).responses
    edge = np.isin(found.voxel.values, planted[0].extra["invalid"])
    assert edge.sum() == 2
    last = found.session.values == 4
    assert (found.values[np.ix_(last, edge)] == 0).all()
    assert (found.values[np.ix_(~last, edge)].std(0) > 0.5).all()


@pytest.mark.parametrize("betas", ["b2", "betas_fithrf"])
def test_versions_of_the_betas(tree, betas):
    root, _ = tree
    found = nsd(root, 1, betas=betas).responses
    b3 = nsd(root, 1).responses
    np.testing.assert_allclose(found.ncsnr * 1.25, b3.ncsnr, rtol=1e-5)
    assert np.abs(found.values - b3.values).max() > 0.1
    with pytest.raises(DataError, match="betas_fithrf"):
        nsd(root, 1, betas="b1")


def test_the_store_streams_resumes_and_is_used_again(tree, tmp_path, monkeypatch):
    root, _ = tree
    whole = nsd(root, 1, voxels="brain")
    read, calls = _load.read_session, []

    def fails_in_session_three(layout, files, places, budget):
        calls.append(files[0].name)
        if "session03" in files[0].name and len(calls) < 100:
            raise KeyboardInterrupt
        return read(layout, files, places, budget)

    monkeypatch.setattr(_load, "read_session", fails_in_session_three)
    options = {"voxels": "brain", "cache": tmp_path / "stores", "max_memory": "200kB"}
    with pytest.raises(KeyboardInterrupt):
        nsd(root, 1, **options)
    assert len(list((tmp_path / "stores").iterdir())) == 2
    calls.clear()
    monkeypatch.setattr(_load, "read_session", lambda *a: (calls.append(a[1][0].name), read(*a))[1])
    found = nsd(root, 1, **options).responses
    assert sorted({c[:15] for c in calls}) == ["betas_session03", "betas_session04"]
    assert hasattr(found.data, "dask")
    xr.testing.assert_equal(found.compute(), whole.responses)
    calls.clear()
    again = nsd(root, 1, voxels="brain", cache=tmp_path / "stores").responses
    assert not calls
    assert isinstance(again.data, np.ndarray)
    np.testing.assert_array_equal(again.values, whole.responses.values)
    averaged = nsd(root, 1, repeats="average", **options).responses
    expected = data.average_repeats(whole.responses)
    xr.testing.assert_identical(averaged.compute().drop_attrs(), expected.drop_attrs())
    assert len(list((tmp_path / "stores").iterdir())) == 4 + 1
    nsd(root, 1, zscore=False, **options)
    assert len(list((tmp_path / "stores").iterdir())) == 4 + 1 + 4, "other settings are other results"


@pytest.mark.parametrize("space", ["func1pt8mm", "func1mm", "nativesurface", "fsaverage"])
@pytest.mark.parametrize("file_format", ["auto", pytest.param("nii.gz", marks=pytest.mark.slow)])
def test_block_sizes_do_not_matter(tree, tmp_path, space, file_format):
    root, _ = tree
    if file_format == "nii.gz" and not space.startswith("func"):
        with pytest.raises(ConfigError, match=r"legal|Legal"):
            nsd(root, 2, space=space, file_format=file_format)
        return
    options = {"space": space, "file_format": file_format, "sessions": [1, 2, 3] if space == "func1pt8mm" else 1}
    whole = nsd(root, 2, **options).responses
    small = nsd(root, 2, cache=tmp_path, max_memory=20_000, **options).responses
    np.testing.assert_array_equal(small.values, whole.values)
    assert {p.name.split("-")[0] for p in tmp_path.iterdir()} == {"responses"}, "nothing else is left behind"


@pytest.mark.parametrize("chunks", [None, (45, 2, 3, 4), (45, 1, 1, 1), (9, 2, 2, 2)])
def test_any_chunks_of_hdf5(own, tree, chunks):
    path = own / "nsddata_betas/ppdata/subj02/func1pt8mm" / B3 / "betas_session01.hdf5"
    with h5py.File(path) as handle:
        values = handle["betas"][:]
    path.unlink()
    with h5py.File(path, "w") as handle:
        handle.create_dataset("betas", data=values, chunks=chunks)
    assert nsd(own, 2, sessions=1).responses.equals(nsd(tree[0], 2, sessions=1).responses)


def test_memory_that_does_not_suffice_without_a_store(tree):
    with pytest.raises(DataError, match=r"need [\d,]+ bytes, more than half of max_memory .* cache=True"):
        nsd(tree[0], 1, max_memory="50kB")


def rewritten(root, **changes):
    path = root / "nsddata/experiments/nsd/nsd_expdesign.mat"
    content = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
    path.unlink()
    savemat(path, {**content, **{k: f(content[k]) for k, f in changes.items()}})


def test_ids_counted_from_zero_are_noticed(own):
    rewritten(own, masterordering=lambda x: x.astype(int) - 1)
    with pytest.raises(DataError, match="masterordering begins at 0; the data set counts from 1"):
        nsd(own, 1)


def test_shifted_pictures_are_noticed(own):
    rewritten(own, subjectim=lambda x: np.maximum(x.astype(int) - 1, 1))
    with pytest.raises(DataError, match="disagree about"):
        nsd(own, 1)


def test_mistakes_are_named(own, tmp_path):
    with pytest.raises(DataError, match="lacks nsddata and nsddata_betas"):
        nsd(tmp_path, 1)
    with pytest.raises(ConfigError, match="'subj01' to 'subj08'"):
        nsd(own, 9)
    with pytest.raises(ConfigError, match=r"did you mean .*'func1pt8mm'"):
        nsd(own, 1, space="func1.8mm")
    with pytest.raises(ConfigError, match="did you mean 'average'"):
        nsd(own, 1, repeats="averaged")
    with pytest.raises(DataError, match="bool of shape"):
        nsd(own, 1, voxels=np.ones((3, 3, 3), bool))
    folder = own / "nsddata_betas/ppdata/subj01/func1pt8mm" / B3
    path = folder / "betas_session01.nii.gz"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"betas_session01.nii.gz"):
        nsd(own, 1, file_format="nii.gz")
    other = own / "nsddata_betas/ppdata/subj02/func1pt8mm" / B3 / "betas_session01.hdf5"
    (folder / "betas_session01.hdf5").unlink()
    (folder / "betas_session01.hdf5").symlink_to(other)
    with pytest.raises(DataError, match="another subject or space"):
        nsd(own, 1)


def test_by_name_and_where_it_is_looked_for(tree, tmp_path, monkeypatch):
    root, _ = tree
    found = data.load_dataset("nsd", root=root, subject=2, voxels="V1", cache=False, progress=False)
    assert str(found.responses.subject.values[0]) == "subj02"
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("NEUROENC_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("NEUROENC_MIRROR", raising=False)
    with pytest.raises(DataError, match=r"access agreement .*root='FOLDER'"):
        data.load_dataset("nsd")
    (tmp_path / "data" / "nsd").symlink_to(root)
    assert data.load_dataset("nsd", voxels="V1", cache=False, progress=False).responses.sizes["voxel"] > 0
    with pytest.raises(DataError, match=r"cannot be fetched: .*agreement"):
        data.fetch("nsd")


@pytest.mark.slow
def test_run_on_a_tree_from_config_to_report(tree, tmp_path):
    pytest.importorskip("torch")
    from neuroenc.study import example_config, run

    settings = [
        f"data.options.root={tree[0]}",
        "data.options.voxels=nsdgeneral",
        "features.clip.model=world",
        "features.clip.pretrained=",
        "captions.enabled=false",
        "evaluation.permutations=50",
    ]
    summary = run(example_config("nsd", settings), tmp_path / "out", progress=False, say=lambda _: None)
    assert summary["n_stimuli"] == 60
    assert summary["median_r"] > 0.2
    assert str(tree[0]) not in (tmp_path / "out" / "summary.json").read_text()
    assert summary["n_voxels"] == int(data.nsd_mask(tree[0], 1).sum())
    assert (tmp_path / "out" / "report" / "index.html").is_file()
    with pytest.raises(ConfigError, match="did you mean 'shared1000'"):
        run(example_config("nsd", [*settings, 'evaluation.test_ids=["shared100"]']), tmp_path / "two", progress=False)


def test_tree_is_reproducible_and_small(tmp_path):
    a, b = (data.simulate.nsd_tree(tmp_path / x, n_subjects=1, formats=("nii.gz",)) for x in "ab")
    np.testing.assert_array_equal(a[0].responses.values, b[0].responses.values)
    assert sum(p.stat().st_size for p in (tmp_path / "a").rglob("*") if p.is_file()) < 12e6
    names = {p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert {
        "nsddata/experiments/nsd/nsd_expdesign.mat",
        "nsddata/experiments/nsd/nsd_stim_info_merged.csv",
        "nsddata/ppdata/subj08/behav/responses.tsv",
        "nsddata/ppdata/subj01/func1pt8mm/roi/prf-visualrois.nii.gz",
        "nsddata/ppdata/subj01/func1pt8mm/floc_facestval.nii.gz",
        "nsddata/freesurfer/subj01/label/floc-faces.mgz.ctab",
        f"nsddata_betas/ppdata/subj01/func1pt8mm/{B3}/betas_session01.nii.gz",
        f"nsddata_betas/ppdata/subj01/func1pt8mm/{B3}/ncsnr.nii.gz",
        "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5",
    } <= names
    with pytest.raises(ConfigError, match="did you mean 'fsaverage'"):
        data.simulate.nsd_tree(tmp_path / "c", spaces=("fsavrage",))
    assert json.loads(a[0].responses.attrs["provenance"])
