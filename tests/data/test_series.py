"""Time series: labels, files, folds, resampling to volumes, cleaning."""

import numpy as np
import pytest

from neuroenc import data, stats
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data.simulate import simulate_movie
from neuroenc.data.simulate._movie import hemodynamic_response

RNG = np.random.default_rng(0)


@pytest.fixture
def series():
    values = RNG.standard_normal((60, 3))
    return data.make_timeseries(values, tr=2.0, run=np.repeat([1, 2, 3], 20), roi=["V1", "V2", "V1"])


def test_labels_and_file(series, tmp_path):
    assert data.validate_responses(series) is series
    assert series.stimulus.values[[0, 25]].tolist() == ["run01:0000", "run02:0005"]
    assert series.time.values[25] == 10.0
    back = data.load(data.save(series, tmp_path / "series.nc") or tmp_path / "series.nc")
    assert data.is_series(back)
    assert data.series_tr(back) == 2.0
    z = data.zscore(back, by="run")
    assert data.is_series(z)
    assert abs(float(z[:20].mean())) < 1e-6


def test_films_are_repeats():
    y = data.make_timeseries(RNG.standard_normal((40, 1)), tr=1.0, run=np.repeat([1, 2], 20), film="film")
    assert y.repeat.values[[0, 20]].tolist() == [0, 1]
    assert data.average_repeats(y).shape == (20, 1)


def test_sessions_and_broken_runs():
    y = data.make_timeseries(np.zeros((4, 1)), tr=1.0, run=[1, 1, 1, 1], session=[1, 1, 2, 2])
    assert y.stimulus.values.tolist() == [
        "ses01-run01:0000",
        "ses01-run01:0001",
        "ses02-run01:0000",
        "ses02-run01:0001",
    ]
    with pytest.raises(DataError, match="not in one piece"):
        data.make_timeseries(np.zeros((3, 1)), tr=1.0, run=[1, 2, 1])
    with pytest.raises(DataError, match=r"tr=1500 .* in seconds, above 0 and up to 60"):
        data.make_timeseries(np.zeros((3, 1)), tr=1500)
    with pytest.raises(DataError, match="tr=0"):
        data.make_timeseries(np.zeros((3, 1)), tr=0)


def test_volumes_are_not_drawn(series):
    for draw in (lambda: data.folds(series), lambda: data.split_by_stimulus(series, 0.2)):
        with pytest.raises(DataError, match="volumes of a time series"):
            draw()
    assert len(data.folds(series, "run")) == 3


def test_block_folds(series):
    found = data.folds(series, "block", n_splits=4, gap=3)
    assert sorted(np.concatenate([test for _, test in found]).tolist()) == list(range(60))
    place = series.stimulus.str[-4:].astype(int).values
    for train, test in found:
        for run in (1, 2, 3):
            a, b = (place[rows][series.run.values[rows] == run] for rows in (train, test))
            assert np.abs(a[:, None] - b).min() == 4
    with pytest.raises(ConfigError, match="no volumes to train on"):
        data.folds(series, "block", n_splits=2, gap=20)


def test_lanczos_is_the_formula(series):
    times = np.sort(RNG.uniform(0, 40, 90))
    x = RNG.standard_normal((90, 2))
    one = series[:20]
    found = data.resample_to_volumes(x, one, times=times)
    expected = np.zeros((20, 2))
    for n, t in enumerate(one.time.values):
        for k, own in enumerate(times):
            u = (t - own) / 2.0
            if u == 0:
                weight = 1.0
            elif abs(u) < 3:
                weight = 3 * np.sin(np.pi * u) * np.sin(np.pi * u / 3) / (np.pi * u) ** 2
            else:
                weight = 0.0
            expected[n] += weight * x[k]
    np.testing.assert_allclose(found.values, expected, atol=1e-5)


def test_lanczos_takes_out_what_aliases():
    y = data.make_timeseries(np.zeros((200, 1)), tr=2.0)
    t = np.arange(0, 400, 0.1)
    slow, fast = np.sin(2 * np.pi * 0.05 * t), np.sin(2 * np.pi * 0.45 * t)  # 0.25 Hz is the limit; 0.45 folds to 0.05
    x = np.stack([slow, fast], axis=1)
    sd = data.resample_to_volumes(x, y, times=t).values[5:-5].std(axis=0) * 0.1 / 2.0
    assert sd[0] > 0.6
    assert sd[1] < 0.03
    assert data.resample_to_volumes(x, y, times=t, kind="nearest").values.std(axis=0)[1] > 0.6


def test_resampling_by_run(series):
    x = np.arange(6.0)[:, None]
    found = data.resample_to_volumes(x, series, times=[0, 38, 0, 38, 0, 38], run=[1, 1, 2, 2, 3, 3], kind="nearest")
    assert found.run.values[20] == 2
    assert found.values[[0, 19, 20, 59], 0].tolist() == [0, 1, 2, 5]
    assert data.match(found, series[::-1]).values[0, 0] == 5
    with pytest.raises(DataError, match="run 3 of the responses"):
        data.resample_to_volumes(x, series, times=np.zeros(6), run=[1, 1, 2, 2, 2, 2])
    with pytest.raises(DataError, match="several runs"):
        data.resample_to_volumes(x, series, times=np.zeros(6))
    # Runs that are counted anew in every session.
    again = data.make_timeseries(np.zeros((6, 1)), tr=2.0, run=np.ones(6, int), session=[1, 1, 1, 2, 2, 2])
    with pytest.raises(DataError, match="several sessions"):
        data.resample_to_volumes(x, again, times=np.zeros(6))
    found = data.resample_to_volumes(x, again, times=[0, 2, 4] * 2, session=[2, 2, 2, 1, 1, 1], kind="nearest")
    assert found.values.ravel().tolist() == [3, 4, 5, 0, 1, 2]


def test_simulated_response_is_that_of_spm():
    hrf = pytest.importorskip("nilearn.glm.first_level").spm_hrf(2.0, oversampling=20, time_length=30.0)
    own = hemodynamic_response(np.arange(len(hrf)) * 0.1)
    # nilearn's begins one step of 0.1 s later.
    np.testing.assert_allclose(own[:-1], hrf[1:] / hrf.max(), atol=0.03)
    assert abs(np.arange(0, 30, 0.01)[hemodynamic_response(np.arange(0, 30, 0.01), 6.5).argmax()] - 6.5) < 0.05


def test_simulated_film_is_what_was_planted():
    a, b = (simulate_movie(n_runs=2, n_volumes=100, n_voxels=40, seed=3) for _ in range(2))
    np.testing.assert_array_equal(a.responses.values, b.responses.values)
    still = ~a.truth["driven"].values
    assert (a.truth["signal_share"].values[still] == 0).all()
    assert np.isnan(a.truth["peak_latency"].values[still]).all()
    y = a.responses.values[:100, still]
    lag = np.mean([np.corrcoef(v[1:], v[:-1])[0, 1] for v in y.T])
    assert 0.5 < lag < 0.85  # half of the noise is slow, the rest has .4
    with pytest.raises(ConfigError, match="drift"):
        simulate_movie(drift=1.5)


@pytest.mark.parametrize("drift", ["cosine", "linear"])
def test_cleaning_is_that_of_nilearn(series, drift):
    signal = pytest.importorskip("nilearn.signal")
    motion = RNG.standard_normal((60, 2))
    found = data.clean_timeseries(series, drift=drift, high_pass=0.02, confounds=motion, trim=(2, 1))
    how = {"filter": "cosine", "high_pass": 0.02} if drift == "cosine" else {"filter": False}
    own = {"standardize": None, "standardize_confounds": True, "t_r": 2.0, "detrend": drift == "linear"}
    expected = signal.clean(series.values[:20].astype(float), confounds=motion[:20], **own, **how)
    expected = expected - expected.mean(axis=0)
    np.testing.assert_allclose(found.values[:17], expected[2:19], atol=1e-5)
    assert found.stimulus.values[[0, 17]].tolist() == ["run01:0002", "run02:0002"]


def test_cleaning_refuses(series):
    with pytest.raises(DataError, match="no time series"):
        data.clean_timeseries(data.make_responses(np.zeros((3, 1)), stimulus=list("abc")))
    with pytest.raises(DataError, match="confounds have 3 rows"):
        data.clean_timeseries(series, confounds=np.zeros(3))
    slow = series.copy(data=np.tile(np.linspace(0, 9, 60), (3, 1)).T.astype("float32"))
    assert np.abs(data.clean_timeseries(slow, drift="savgol", high_pass=0.02).values).max() < 0.1


def test_volumes_are_not_shuffled(series):
    predicted = series.values + RNG.standard_normal(series.shape)
    for mode in ("samples", "within"):
        with pytest.raises(DataError, match="far more than 5 %"):
            stats.permutation_test(series, predicted, mode=mode, blocks=series.run if mode == "within" else None)
    with pytest.raises(DataError, match="not independent"):
        stats.Resampler(n_bootstraps=50).score(series, predicted)
    assert (stats.Resampler(n_bootstraps=50, groups=series.run).score(series, predicted).low > 0).all()
    found = stats.permutation_test(series, predicted, mode="shift", blocks=series.run, n_permutations=99)
    assert (found.p <= 0.05).all()
