"""BIDS and fMRIPrep: planted responses come back, and the fit equals least squares by hand."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from trees import bids_tree

pytest.importorskip("nilearn")
STEM = "derivatives/fmriprep/sub-01/ses-01/func/sub-01_ses-01_task-pictures_run-01"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("bids")
    return root, bids_tree(root)


def read(root, **options):
    return data.read_bids(root, "01", **{"progress": False, "cache": False, **options})


def correlation(a, b):
    return np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)])


@pytest.mark.parametrize(("method", "least"), [("lsa", 0.75), ("lss", 0.6)])
def test_planted_responses_come_back(tree, method, least):
    root, truth = tree
    found = read(root, method=method)
    r = found.responses
    assert r.stimulus.values.tolist() == truth["table"]["stimulus"].tolist()
    np.testing.assert_array_equal(r.session, truth["table"]["session"])
    np.testing.assert_array_equal(r.run, truth["table"]["run"])
    np.testing.assert_array_equal(r.voxel, truth["inside"])
    assert correlation(r.values, truth["values"]) > least
    # Without the drifts and the motion that were planted it is worse.
    poor = read(root, method=method, confounds="none", high_pass=0.0).responses
    assert correlation(poor.values, truth["values"]) < correlation(r.values, truth["values"]) - 0.05
    data.validate(found)


def test_without_noise_percent_signal_change_is_right(tmp_path):
    truth = bids_tree(tmp_path, noise=0.0, n_sessions=1, n_runs=1)
    r = read(tmp_path, zscore=False, confounds="motion").responses
    slope = np.polyfit(truth["values"].ravel(), r.values.ravel(), 1)[0]
    assert r.attrs["units"] == "% signal change"
    assert correlation(r.values, truth["values"]) > 0.98
    # nilearn's response to a long stimulus is 1, as is the planted one up to the area of its undershoot (5/6).
    assert 0.7 < slope < 1.2


@pytest.mark.parametrize("method", ["lsa", "lss"])
def test_equals_least_squares_by_hand(tree, method):
    from nilearn.glm.first_level import make_first_level_design_matrix

    root, truth = tree
    r = read(root, zscore=False, method=method).responses
    events = pd.read_csv(root / "sub-01/ses-01/func/sub-01_ses-01_task-pictures_run-01_events.tsv", sep="\t")
    bold = np.asarray(nib.load(root / f"{STEM}_space-T1w_desc-preproc_bold.nii.gz").dataobj, dtype=np.float64)
    y = bold.reshape(-1, bold.shape[-1])[truth["inside"]].T
    motion = pd.read_csv(root / f"{STEM}_desc-confounds_timeseries.tsv", sep="\t").iloc[:, :6].to_numpy()
    names = [f"t{n:02d}" for n in range(len(events))]
    x = make_first_level_design_matrix(
        1.5 * np.arange(len(y)),
        events[["onset", "duration"]].assign(trial_type=names),
        hrf_model="spm",
        high_pass=0.01,
        add_regs=motion,
    )
    z = 100 * (y / y.mean(0) - 1)
    pictures = [n for n, s in zip(names, events["stim_file"].fillna(""), strict=True) if s]
    if method == "lsa":
        beta = pd.DataFrame(np.linalg.lstsq(x.to_numpy(), z, rcond=None)[0], index=x.columns).loc[pictures]
    else:
        beta = []
        for name in pictures:
            others = x[[p for p in pictures if p != name]].sum(axis=1)
            own = x.drop(columns=[p for p in pictures if p != name]).assign(others=others)
            beta.append(np.linalg.lstsq(own.to_numpy(), z, rcond=None)[0][own.columns.get_loc(name)])
    np.testing.assert_allclose(r.values[:10], np.asarray(beta), atol=1e-4)


def test_conditions_are_one_response_a_run(tree):
    root, truth = tree
    r = read(root, model="condition").responses
    groups = truth["table"].drop_duplicates()
    assert r.stimulus.values.tolist() == groups["stimulus"].tolist()
    single = read(root, zscore=False)
    assert len(single.extra["events"]) == 44  # four button presses are modelled, and no responses


def test_memory_and_z_scores_by_run(tree, tmp_path):
    root = tree[0]
    whole = read(root, zscore="run").responses
    data.validate_responses(whole, zscored="run")
    small = read(root, zscore="run", max_memory=4000, cache=tmp_path).responses
    assert hasattr(small.data, "dask")
    np.testing.assert_allclose(small.values, whole.values, atol=1e-5)
    session = read(root, sessions=["2"]).responses
    np.testing.assert_allclose(session.values, read(root).responses.values[20:], atol=1e-6)


def test_pictures_of_the_events(tree):
    found = read(tree[0], sessions=1, model="condition")
    n = int(found.stimuli.ids[0].removeprefix("pictures/image"))
    assert np.asarray(found.stimuli.image(0))[0, 0, 0] == 20 * n


def test_start_time_of_slice_timing_shifts_the_model(tree, tmp_path):
    """fMRIPrep moves slices to the middle of a volume and says so in StartTime."""
    bids_tree(tmp_path)
    for path in tmp_path.rglob("*_bold.json"):
        path.write_text(json.dumps({"RepetitionTime": 1.5, "StartTime": 0.75}))
    assert np.abs(read(tmp_path).responses.values - read(tree[0]).responses.values).max() > 0.1


def test_events_of_a_task_are_inherited(tmp_path, tree):
    bids_tree(tmp_path, n_sessions=1, n_runs=1)
    path = tmp_path / "sub-01/ses-01/func/sub-01_ses-01_task-pictures_run-01_events.tsv"
    before = read(tmp_path).responses
    path.rename(tmp_path / "task-pictures_events.tsv")
    np.testing.assert_array_equal(read(tmp_path).responses.values, before.values)
    (tmp_path / "task-pictures_events.tsv").unlink()
    with pytest.raises(DataError, match="no sub-01_ses-01_task-pictures_run-01_events"):
        read(tmp_path)


def test_what_is_ambiguous_or_absent_is_said(tmp_path):
    bids_tree(tmp_path, n_sessions=1, n_runs=1)
    source = tmp_path / f"{STEM}_space-T1w_desc-preproc_bold.nii.gz"
    other = tmp_path / f"{STEM}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    other.write_bytes(source.read_bytes())
    with pytest.raises(ConfigError, match="several labels of space"):
        read(tmp_path)
    assert read(tmp_path, space="T1w").responses.attrs["space"] == "T1w"
    with pytest.raises(ConfigError, match="did you mean 'T1w'"):
        read(tmp_path, space="T1")
    with pytest.raises(ConfigError, match="unknown subject '02'"):
        data.read_bids(tmp_path, "02")
    with pytest.raises(DataError, match="no preprocessed BOLD"):
        data.read_bids(tmp_path / "stimuli", "01")
    with pytest.raises(DataError, match=r"columns .*stimulus=COLUMN"):
        read(tmp_path, space="T1w", stimulus="picture")
    with pytest.raises(DataError, match=r"confound in .*'white'"):
        read(tmp_path, space="T1w", confounds=["white"])


@pytest.mark.filterwarnings("ignore")
def test_events_after_the_end_of_a_run(tmp_path):
    bids_tree(tmp_path, n_sessions=1, n_runs=1)
    path = next(tmp_path.glob("sub-01/**/*_events.tsv"))
    table = pd.read_csv(path, sep="\t")
    # Onsets in milliseconds are the usual mistake.
    table.assign(onset=table["onset"] * 1000).to_csv(path, sep="\t", index=False, na_rep="n/a")
    with pytest.raises(DataError, match="has no volume"):
        read(tmp_path)


def test_more_regressors_than_volumes(tmp_path):
    bids_tree(tmp_path, n_sessions=1, n_runs=1, tr=6.0, noise=0.2)
    with pytest.raises(DataError, match="18 volumes for"):
        read(tmp_path)


# ---------------------------------------------------------------- folders and headers as they come


@pytest.fixture
def small(tmp_path):
    """One run of a tree, and its files."""
    truth = bids_tree(tmp_path, n_sessions=1, n_runs=1)
    events = next(tmp_path.glob("sub-01/**/*_events.tsv"))
    return tmp_path, truth, events


def rewritten(path, change):
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    table = change(table)
    path.write_bytes(table.to_csv(sep="\t", index=False, lineterminator="\r\n").encode("utf-8-sig"))


def test_events_of_spreadsheets_are_read_as_they_are_meant(small):
    root, truth, events = small
    before = read(root).responses

    def change(table):
        table["stim_file"] = [f" {x} " if x != "n/a" else "n/a " for x in table["stim_file"]]
        table["onset"] = " " + table["onset"]
        return table.rename(columns={"onset": "Onset ", "stim_file": "Stim_file"}).iloc[::-1]

    rewritten(events, change)
    after = read(root).responses
    assert after.stimulus.values.tolist() == truth["table"]["stimulus"].tolist()
    np.testing.assert_allclose(after.values, before.values, atol=1e-5)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("onset", "4,5", r"row 1: onset = '4,5' is not a number \(a decimal comma\)"),
        ("onset", "n/a", "row 1: onset = 'n/a' is not a number"),
        ("duration", "-1", r"row 1: duration = '-1' is not legal; expected a finite number of at least 0"),
        ("duration", "n/a", "row 1: duration = 'n/a' is not a number"),
        ("stim_file", "", "row 1: stim_file is empty"),
    ],
)
def test_cells_that_are_no_events_are_named(small, column, value, message):
    root, _, events = small
    rewritten(events, lambda t: t.assign(**{column: [value, *t[column][1:]]}))
    with pytest.raises(DataError, match=rf"_events\.tsv, {message}"):
        read(root)


def test_only_not_available_is_missing(small):
    root, truth, events = small
    shown = truth["table"]["stimulus"].tolist()
    first = shown[0].removeprefix("pictures/")
    rewritten(events, lambda t: t.assign(stim_file=t["stim_file"].replace({f"pictures/{first}.png": "None"})))
    assert read(root, images=False).responses.stimulus.values.tolist() == [
        "None" if s == shown[0] else s for s in shown
    ]
    events.write_text("onset\tduration\tstim_file\n")
    with pytest.raises(DataError, match=r"_events\.tsv has column names and no events"):
        read(root)


def test_events_that_cannot_be_told_apart_or_are_cut_off(small):
    root, _, events = small
    content = events.read_bytes()
    rewritten(events, lambda t: pd.concat([t, t.iloc[:1]]))
    with pytest.raises(DataError, match=r"row 12: .* stands there twice"):
        read(root)
    events.write_bytes(content)
    rewritten(events, lambda t: pd.concat([t, t.iloc[:1].assign(stim_file="pictures/other.png")]))
    with pytest.raises(DataError, match="same onset and duration"):
        read(root, images=False)
    events.write_bytes(content)
    # The run ends at 109.5 s.
    rewritten(events, lambda t: pd.concat([t, t.iloc[:1].assign(onset="107", stim_file="pictures/image0.png")]))
    with pytest.warns(UserWarning, match=r"1 responses, first that to 'pictures/image0'.*noise"):
        read(root)


def test_pictures_of_one_name_in_two_folders_and_spellings_of_a_path(small):
    root, truth, events = small
    spellings = ["bids::stimuli/pictures/{}", "stimuli\\pictures\\{}", "./pictures/{}"]

    def change(table):
        names = iter(range(99))
        return table.assign(
            stim_file=[
                x if x == "n/a" else spellings[next(names) % 3].format(x.split("/")[1]) for x in table["stim_file"]
            ]
        )

    rewritten(events, change)
    found = read(root)
    assert found.responses.stimulus.values.tolist() == truth["table"]["stimulus"].tolist()
    assert found.stimuli.images is not None
    rewritten(
        events,
        lambda t: t.assign(
            stim_file=["a/1.png", "b/1.png", *["n/a" if x == "n/a" else "c/1.png" for x in t["stim_file"][2:]]]
        ),
    )
    assert set(read(root, images=False).responses.stimulus.values) == {"a/1", "b/1", "c/1"}
    rewritten(events, lambda t: t.assign(stim_file=["a/1.png", "a/1.jpg", *t["stim_file"][2:]]))
    with pytest.raises(DataError, match=r"'a/1\.jpg' and .* are both the stimulus 'a/1'"):
        read(root, images=False)


@pytest.mark.parametrize(
    "place",
    [
        "task-pictures_bold.json",
        "sub-01/sub-01_task-pictures_bold.json",
        "sub-01/ses-01/func/sub-01_ses-01_task-pictures_run-1_bold.json",
    ],
)
def test_raw_sidecars_tell_the_repetition_time(small, place):
    root = small[0]
    before = read(root).responses
    own = root / f"{STEM}_space-T1w_desc-preproc_bold.json"
    own.unlink()
    bold = root / f"{STEM}_space-T1w_desc-preproc_bold.nii.gz"
    image = nib.load(bold)
    image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
    image.header.set_zooms((*image.header.get_zooms()[:3], 1.0))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, bold)
    (root / place).write_text(json.dumps({"RepetitionTime": 1.5}))
    with pytest.warns(UserWarning, match=r"RepetitionTime is 1\.5 s in .* and 1 s in"):
        after = read(root).responses
    np.testing.assert_allclose(after.values, before.values, atol=1e-5)
    own.write_text(json.dumps({"RepetitionTime": 3.0}))
    with pytest.warns(UserWarning, match=r"RepetitionTime is 3 s in .* and 1\.5 s in"):
        read(root)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"RepetitionTime": 1500}, r"_bold\.json: RepetitionTime is 1500"),
        ({"RepetitionTime": "1.5"}, r"_bold\.json: RepetitionTime is '1\.5'"),
        ({"RepetitionTime": 1.5, "StartTime": "mid"}, r"_bold\.json: StartTime is 'mid'"),
        ({"VolumeTiming": [0, 1, 4]}, r"_bold\.json has VolumeTiming"),
        ([1.5], r"_bold\.json holds list"),
    ],
)
def test_sidecars_that_cannot_be(small, record, message):
    (small[0] / f"{STEM}_space-T1w_desc-preproc_bold.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=message):
        read(small[0])


def test_slices_shifted_to_an_unknown_time_are_told(small):
    record = {"RepetitionTime": 1.5, "SliceTimingCorrected": True}
    (small[0] / f"{STEM}_space-T1w_desc-preproc_bold.json").write_text(json.dumps(record))
    with pytest.warns(UserWarning, match="StartTime"):
        read(small[0])


@pytest.mark.parametrize("kind", ["demeaned", "z-scored", "negative"])
def test_bold_without_its_mean_is_refused(small, kind):
    path = small[0] / f"{STEM}_space-T1w_desc-preproc_bold.nii.gz"
    image = nib.load(path)
    values = np.asarray(image.dataobj, dtype=np.float64)
    values -= values.mean(-1, keepdims=True)
    values = {
        "demeaned": values,
        "z-scored": values / np.maximum(values.std(-1, keepdims=True), 1e-9),
        "negative": values - 700,
    }[kind]
    nib.save(nib.Nifti1Image(values.astype("f4"), image.affine), path)
    with pytest.raises(DataError, match=r"has no baseline: 20 of 20 voxels.*percent signal change"):
        read(small[0])


def test_a_few_voxels_without_a_baseline_are_zero_and_told(small):
    path = small[0] / f"{STEM}_space-T1w_desc-preproc_bold.nii.gz"
    image = nib.load(path)
    values = np.ascontiguousarray(image.dataobj, dtype=np.float32)
    rows = values.reshape(-1, values.shape[-1])
    first, second = small[1]["inside"][:2]
    rows[first] -= rows[first].mean() - 1e-3
    rows[second, 3] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), path)
    with pytest.warns(UserWarning, match="1 voxels have no baseline .* and 1 hold values that are not finite"):
        r = read(small[0], zscore=False).responses
    assert (r.values[:, :2] == 0).all()
    assert (np.abs(r.values[:, 2:]) < 50).all()


@pytest.mark.parametrize(
    ("entity", "labels"),
    [
        ("acq", ("hi", "lo")),
        ("dir", ("AP", "PA")),
        ("echo", ("1", "02")),
        ("rec", ("a", "b")),
        ("part", ("mag", "phase")),
    ],
)
def test_recordings_that_differ_are_chosen_or_refused(small, entity, labels):
    root = small[0]
    folder = (root / STEM).parent
    for label in labels:
        for path in list(folder.glob("*run-01_space*")):
            name = path.name.replace("run-01_space", f"run-01_{entity}-{label}_space")
            (folder / name).write_bytes(path.read_bytes())
    for path in list(folder.glob("*run-01_space*")):
        path.unlink()
    if entity == "acq":
        # Events of each, not only of the run.
        events = small[2].read_bytes()
        (small[2].parent / "sub-01_ses-01_task-pictures_run-01_acq-hi_events.tsv").write_bytes(events)
    chosen = rf"select={{'{entity}': '({'|'.join(labels)})'}}"
    with pytest.raises(ConfigError, match=f"several labels of {entity}: .*{chosen}"):
        read(root)
    found = read(root, select={entity: labels[1].lstrip("0")})
    assert f"{entity}-{labels[1]}" in found.extra["runs"][0]
    with pytest.raises(ConfigError, match=f"unknown {entity}"):
        read(root, select={entity: "x"})
    with pytest.raises(ConfigError, match="unknown entity of select"):
        read(root, select={"colour": "x"})


def test_masks_with_another_ending_are_found(small):
    import gzip

    root = small[0]
    packed = root / f"{STEM}_space-T1w_desc-brain_mask.nii.gz"
    before = read(root).responses
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    np.testing.assert_array_equal(read(root).responses.values, before.values)


def test_surfaces_where_volumes_are_expected(small):
    root = small[0]
    path = root / f"{STEM}_space-T1w_desc-preproc_bold.nii.gz"
    path.rename(root / f"{STEM}_space-fsLR_den-91k_bold.dtseries.nii")
    with pytest.raises(DataError, match=r"grayordinates or surfaces such as .*dtseries\.nii"):
        read(root)


def test_confounds_with_holes_and_unsteady_volumes(small):
    path = small[0] / f"{STEM}_desc-confounds_timeseries.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str)
    table.assign(non_steady_state_outlier00="0").to_csv(path, sep="\t", index=False, na_rep="n/a")
    with pytest.warns(UserWarning, match="before the steady state"):
        read(small[0])
    table.loc[4, "rot_x"] = "n/a"
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    with pytest.raises(DataError, match=r"confounds_timeseries\.tsv, row 5: rot_x is n/a"):
        read(small[0])
    table.iloc[:-2].to_csv(path, sep="\t", index=False, na_rep="n/a")
    with pytest.raises(DataError, match=r"has \d+ rows, .* \d+ volumes"):
        read(small[0])


def test_a_region_of_one_label(small):
    root, truth = small[:2]
    areas = truth["brain"] * np.arange(1, 1 + truth["brain"].size).reshape(truth["shape"]) % 3 - 1
    nib.save(
        nib.Nifti1Image(areas.astype("i2"), nib.load(root / f"{STEM}_space-T1w_desc-brain_mask.nii.gz").affine),
        root / "areas.nii.gz",
    )
    r = read(root, rois={"A": f"{root / 'areas.nii.gz'}:1"}).responses
    assert ((r.roi.values == "A") == (areas.reshape(-1)[truth["inside"]] == 1)).all()


def test_series_of_all_runs(tree, tmp_path):
    root, truth = tree
    found = read(root, model="timeseries", zscore=False)
    y = found.responses
    assert data.is_series(y)
    assert data.series_tr(y) == 1.5
    assert y.stimulus.values[0] == "ses01-run01:0000"
    np.testing.assert_array_equal(y.voxel, truth["inside"])
    path = root / f"{STEM}_space-T1w_desc-preproc_bold.nii.gz"
    raw = nib.load(path).get_fdata().reshape(-1, y.sizes["presentation"] // 4)[truth["inside"]].T
    signal = 100 * (raw / raw.mean(axis=0) - 1)
    table = pd.read_csv(root / f"{STEM}_desc-confounds_timeseries.tsv", sep="\t")
    motion = table[[f"{k}_{a}" for k in ("trans", "rot") for a in "xyz"]].fillna(0).to_numpy()
    first = (y.run == 1) & (y.session == 1)
    expected = data.clean_timeseries(y[first.values].copy(data=signal.astype("float32")), confounds=motion)
    np.testing.assert_allclose(y[first.values].values, expected.values, atol=1e-3)
    scaled = read(root, model="timeseries", max_memory="8MB").responses
    assert scaled.attrs["zscored"] == "run"
    data.validate(found)


def test_series_need_no_events(tmp_path):
    bids_tree(tmp_path, n_sessions=1, n_runs=1)
    for path in tmp_path.rglob("*_events.tsv"):
        path.unlink()
    assert read(tmp_path, model="timeseries").responses.stimulus.values[3].endswith(":0003")
    with pytest.raises(DataError, match=r"no .*_events\.tsv"):
        read(tmp_path)
