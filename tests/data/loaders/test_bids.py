"""BIDS and fMRIPrep: planted responses come back, and the fit equals least squares by hand."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neuroenc import data
from neuroenc._util.errors import ConfigError, DataError
from neuroenc.data.simulate import bids_tree

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
        1.5 * np.arange(len(y)), events[["onset", "duration"]].assign(trial_type=names), hrf_model="spm",
        high_pass=0.01, add_regs=motion,
    )  # fmt: skip
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
    n = int(found.stimuli.ids[0].removeprefix("image"))
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
