import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.signal import detrend
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_score
from sklearn.svm import LinearSVC

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import in_roi, load_dataset, validate_responses
from neuroenc.data.datasets._haxby2001 import CATEGORIES, block_responses


def load(mirror, **options):
    return load_dataset("haxby2001-slice", mirror=mirror, **options)


@pytest.fixture(scope="module")
def slice_data(mirror):
    return load(mirror)


def accuracy(responses, labels, model=None):
    model = model or LinearSVC(tol=1e-2, random_state=0)
    return cross_val_score(
        model, responses.values, labels, groups=responses["run"].values, cv=LeaveOneGroupOut()
    ).mean()


def test_form(slice_data):
    y = slice_data.responses
    assert y.dims == ("presentation", "voxel")
    assert y.shape == (96, 481)
    validate_responses(y, zscored="run")
    assert sorted(set(y["stimulus"].values)) == sorted(CATEGORIES) == sorted(slice_data.stimuli.ids)
    assert np.unique(y["run"].values).tolist() == list(range(1, 13))
    for run in range(1, 13):
        assert sorted(y["stimulus"].values[y["run"].values == run]) == sorted(CATEGORIES)
    assert y["stimulus"].values[:3].tolist() == ["scissors", "face", "cat"]
    assert np.array_equal(y["repeat"].values, y["run"].values - 1)
    assert y.attrs["volume_shape"] == [40, 20, 1]


def test_decoding_reaches_the_known_figure(slice_data):
    """About 0.82 is known for 8-way block decoding of the slice, leaving one run out; chance is 0.125."""
    y = slice_data.responses
    labels = y["stimulus"].values
    assert accuracy(y, labels) == pytest.approx(0.82, abs=0.03)
    assert accuracy(y, labels, LogisticRegression(max_iter=2000)) > 0.7
    rng = np.random.default_rng(0)
    permuted = np.concatenate([rng.permutation(labels[y["run"].values == r]) for r in range(1, 13)])
    assert accuracy(y, permuted) < 0.25


def test_default_delay_covers_the_response(mirror):
    """The published onsets lag the design's, so the signal is up from onset to 21 s after it, and not later."""
    cut = []
    for run in range(1, 13):
        folder = mirror / "haxby2001-slice" / "sub001" / "BOLD" / f"task001_run{run:03d}"
        signal = np.asarray(nib.load(folder / "bold_1slice.nii.gz").dataobj, dtype=float).reshape(-1, 121).T
        signal = detrend(signal, axis=0) / np.maximum(signal.std(axis=0), 1e-9)
        for onset in pd.read_csv(folder / "bold_events.tsv", sep="\t")["onset"][:7]:
            first = round(onset / 2.5)
            cut.append(signal[first - 3 : first + 13])
    mean = np.mean(cut, axis=0)
    driven = mean[:, np.argsort(mean.var(axis=0))[-40:]]
    course = (driven * np.sign(driven[5:11].mean(axis=0))).mean(axis=1)
    level = dict(zip(np.arange(-3, 13) * 2.5, course))
    assert min(level[t] for t in (2.5, 5.0, 10.0, 20.0)) > 0
    assert max(level[t] for t in (-7.5, 25.0, 27.5)) < 0


def test_voxels_keep_their_place(mirror, slice_data):
    y, mean = slice_data.responses, slice_data.extra["mean"]
    mask = np.asarray(slice_data.extra["mask"].dataobj) > 0
    ijk = np.column_stack([y[c].values for c in "ijk"])
    assert np.array_equal(ijk, np.argwhere(mask))
    assert np.allclose(np.reshape(y.attrs["affine"], (4, 4)), mean.affine)
    # One voxel, followed by hand from the volume to its block responses in run 3.
    v = 200
    run = mirror / "haxby2001-slice" / "sub001" / "BOLD" / "task001_run003"
    series = np.asarray(nib.load(run / "bold_1slice.nii.gz").dataobj, dtype=float)[tuple(ijk[v])]
    fit = np.polyval(np.polyfit(np.arange(121), series, 1), np.arange(121))
    series = (series - fit) / (series - fit).std()
    onsets = pd.read_csv(run / "bold_events.tsv", sep="\t")["onset"]
    blocks = np.array([series[round(o / 2.5) + 1 : round(o / 2.5) + 10].mean() for o in onsets])
    blocks = (blocks - blocks.mean()) / blocks.std()
    np.testing.assert_allclose(y.values[y["run"].values == 3, v], blocks, atol=1e-5)


def test_automatic_mask_is_the_bright_part(slice_data):
    mean = np.asarray(slice_data.extra["mean"].dataobj)
    inside = np.asarray(slice_data.extra["mask"].dataobj) > 0
    assert np.array_equal(inside, mean > 0.25 * np.percentile(mean, 98))


def test_whole_brain_masks_and_rois(mirror):
    brain = load(mirror, image="25mm")
    assert brain.responses.shape == (96, 129)
    assert set(brain.extra["masks"]) == {"brain", "gray", "hoc", "vt", "white"}
    assert int(in_roi(brain.responses, "vt").sum()) == 1
    gray = load(mirror, image="25mm", mask="gray")
    assert gray.responses.shape == (96, 28)
    assert in_roi(gray.responses, "gray").all()
    assert int(in_roi(brain.responses, "gray").sum()) == 28
    vt = load(mirror, image="25mm", mask="vt").responses
    assert vt.shape == (96, 1)
    at = in_roi(brain.responses, "vt")
    np.testing.assert_array_equal(vt.values, brain.responses.values[:, at])
    assert load(mirror, image="25mm", mask="all").responses.shape == (96, 600)
    assert accuracy(gray.responses, gray.responses["stimulus"].values) > 0.3


def test_stimuli_are_described_in_words(slice_data):
    s = slice_data.stimuli
    assert s.images is None
    assert all(len(c) >= 3 for c in s.captions)
    assert s.sel(["house"]).captions[0][0] == "a photograph of a house"
    assert s.table.loc["face", "kind"] == "face"


def test_wrong_options_are_named(mirror):
    with pytest.raises(ConfigError, match="did you mean '1slice'"):
        load(mirror, image="slice")
    with pytest.raises(ConfigError, match="did you mean 'gray'"):
        load(mirror, image="25mm", mask="grey")
    with pytest.raises(ConfigError, match="no anatomical origin"):
        load(mirror, mask="vt")
    with pytest.raises(ConfigError, match="delay=-1"):
        load(mirror, delay=-1)
    with pytest.raises(ConfigError, match="did you mean 'delay'"):
        load(mirror, dealy=5)


def test_blocks_recover_planted_amplitudes():
    rng = np.random.default_rng(0)
    amplitudes = rng.normal(size=(4, 30))
    time = np.arange(121) * 2.5
    events = pd.DataFrame({"onset": [15.0, 87.5, 157.5, 230.0], "duration": 22.5})
    signal = 1000 + 3 * time[:, None] + np.zeros((121, 30))
    for (onset, duration), a in zip(events.to_numpy(), amplitudes):
        signal[(time >= onset + 5) & (time < onset + duration + 5)] += 50 * a
    found = block_responses(signal, events, tr=2.5, delay=5.0)
    expected = (amplitudes - amplitudes.mean(0)) / amplitudes.std(0)
    # Detrending takes a little of the blocks with it.
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
    np.testing.assert_allclose(found.std(axis=0), 1)


def test_constant_voxels_and_late_blocks():
    events = pd.DataFrame({"onset": [0.0, 10.0], "duration": [5.0, 5.0]})
    signal = np.column_stack([np.full(8, 7.0), np.arange(8.0), np.arange(8.0) % 3])
    found = block_responses(signal, events, tr=2.5, delay=0)
    assert found[:, 0].tolist() == [0, 0]
    assert found[:, 1].tolist() == [0, 0]
    assert set(np.round(np.abs(found[:, 2]), 6)) == {1}
    with pytest.raises(DataError, match=r"block at 40\.0 s"):
        block_responses(signal, pd.DataFrame({"onset": [0.0, 40.0], "duration": 5.0}), tr=2.5, delay=0)
