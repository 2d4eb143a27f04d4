"""Delayed features and response functions, against himalaya's pipeline and planted functions."""

import numpy as np
import pytest
import xarray as xr
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders import BandedRidgeEncoder, Delayer, RidgeEncoder, lag_profile

RNG = np.random.default_rng(0)
# A row of the result is made of other rows: that is what a delay is.
ROWS = {
    "check_methods_subset_invariance": "rows depend on the rows before them",
    "check_methods_sample_order_invariance": "rows depend on the rows before them",
}


@parametrize_with_checks([Delayer(delays=[0, 1])], expected_failed_checks=lambda _: ROWS)
def test_sklearn(estimator, check):
    check(estimator)


def features(n_runs=3, n=20, p=2):
    y = data.make_timeseries(np.zeros((n_runs * n, 1)), tr=2.0, run=np.repeat(np.arange(n_runs) + 1, n))
    x = data.make_features(RNG.standard_normal((n_runs * n, p)), stimulus=y.stimulus.values, feature=["a", "b"][:p])
    return x.assign_coords(run=("stimulus", y.run.values))


def test_runs_are_not_crossed():
    x = features()
    found = Delayer([1, 3]).fit_transform(x)
    assert found.feature.values.tolist() == ["a@1", "b@1", "a@3", "b@3"]
    assert found.delay.values.tolist() == [1, 1, 3, 3]
    np.testing.assert_array_equal(found.values[21, :2], x.values[20])
    assert (found.values[20] == 0).all()
    assert (found.values[22, 2:] == 0).all()
    plain = Delayer([1, 3]).fit_transform(x.values, groups=x.run.values)
    np.testing.assert_array_equal(plain, found.values)


def test_by_name_whatever_the_order():
    x = features()
    whole = Delayer([1, 2, -1]).fit_transform(x)
    order = RNG.permutation(60)
    mixed = Delayer([1, 2, -1]).fit_transform(x[order])
    np.testing.assert_array_equal(mixed.values, whole.values[order])
    # Without names of volumes, by position within the run.
    other = x.assign_coords(stimulus=[f"s{k}" for k in range(60)])
    np.testing.assert_array_equal(Delayer([1, 2, -1]).fit_transform(other).values, whole.values)
    with pytest.raises(DataError, match="there before"):
        Delayer([1]).fit_transform(xr.concat([x, x], "stimulus"))
    for bad in ([], [1, 1], [1.5], "ab"):
        with pytest.raises(ConfigError, match="delays="):
            Delayer(bad).fit(x)


def test_himalaya_tutorial_pipeline():
    ridge = pytest.importorskip("himalaya.ridge")
    x, delays = RNG.standard_normal((120, 5)), [1, 2, 3, 4]
    y = RNG.standard_normal((120, 7))
    y[3:] += 2 * (x[:-3] @ RNG.standard_normal((5, 7)))
    run = np.repeat(np.arange(4), 30)
    folds = [(np.flatnonzero(run != k), np.flatnonzero(run == k)) for k in range(4)]
    # The Delayer of voxelwise_tutorials, run by run: columns are blocks of one delay, zeros before the beginning.
    late = np.zeros((120, 20))
    for k, d in enumerate(delays):
        for r in range(4):
            at = np.flatnonzero(run == r)
            late[at[d:], 5 * k : 5 * k + 5] = x[at[:-d]]
    np.testing.assert_array_equal(Delayer(delays).fit_transform(x, groups=run), late)
    alphas = np.logspace(-1, 4, 12)
    theirs = ridge.RidgeCV(alphas=alphas, cv=folds, fit_intercept=True)
    theirs.fit(late, y)
    ours = RidgeEncoder(alphas, cv=folds, scoring="neg_mse").fit(Delayer(delays).fit_transform(x, groups=run), y)
    np.testing.assert_allclose(ours.alpha_, theirs.best_alphas_)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)


def test_lag_profile_of_planted_functions():
    delays = np.arange(7)
    x = RNG.standard_normal((400, 4))
    late = Delayer(delays).fit_transform(x)
    peaks = np.array([2.0, 2.5, 3.3])
    h = np.exp(-0.5 * ((delays[:, None] - peaks) / 1.2) ** 2)
    w = np.einsum("dv,fv->dfv", h, RNG.standard_normal((4, 3))).reshape(28, 3)
    found = lag_profile(RidgeEncoder().fit(late, late @ w), tr=2.0, delays=delays)
    np.testing.assert_allclose(found.peak_latency, 2 * peaks, atol=0.15)
    np.testing.assert_allclose(found.width, 2 * 2.355 * 1.2, atol=0.25)
    assert (found.separability > 0.99).all()
    assert (found.response.max("delay") == 1).all()


def test_lag_profile_of_a_band_and_labels():
    a, b = features(n=60), features(n=60).assign_coords(feature=["c", "d"])
    late = {name: Delayer([1, 2, 3, 4]).fit_transform(x) for name, x in (("a", a), ("b", b))}
    w = np.outer([0.2, 1, 0.3, 0], [1.0, -2.0]).ravel()[:, None]
    y = data.make_timeseries(late["a"].values @ w, tr=2.0, run=a.run.values, voxel=[7])
    encoder = BandedRidgeEncoder(n_candidates=4, cv="run").fit({k: data.match(x, y) for k, x in late.items()}, y)
    found = lag_profile(encoder, tr=2.0, band="a")
    assert found.voxel.values.tolist() == [7]
    assert abs(float(found.peak_latency[0]) - 4.05) < 0.2
    plain = RidgeEncoder().fit(data.match(a, y), y)
    with pytest.raises(DataError, match="have no delays"):
        lag_profile(plain, tr=2.0)
