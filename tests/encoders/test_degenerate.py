"""Inputs at the ends of arithmetic: right numbers, or told."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import xarray as xr
from sklearn.linear_model import Ridge

from neuroenc._core.arrays import as_numpy
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders import BandedRidgeEncoder, RidgeEncoder, ridge_weights

ALPHAS = np.logspace(-3, 4, 8)


def planted(n=60, p=10, v=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    return X, X @ rng.standard_normal((p, v)) + rng.standard_normal((n, v))


@pytest.mark.parametrize("scale", [1e-20, 1e-25, 1e-30, 1e25])
@pytest.mark.parametrize("make", [RidgeEncoder, BandedRidgeEncoder])
@pytest.mark.parametrize("scoring", ["r2", "r", "neg_mse"])
def test_units_of_float32_responses_change_nothing(scale, make, scoring):
    X, Y = planted()
    plain, scaled = (
        make(ALPHAS, scoring=scoring).fit(X.astype("f4"), (factor * Y).astype("f4")) for factor in (1, scale)
    )
    np.testing.assert_array_equal(scaled.alpha_, plain.alpha_)
    np.testing.assert_allclose(scaled.coef_ / scale, plain.coef_, rtol=1e-3, atol=1e-5)
    unit = scale**2 if scoring == "neg_mse" else 1
    np.testing.assert_allclose(scaled.best_score_ / unit, plain.best_score_, rtol=1e-4)


@pytest.mark.parametrize("shape", [(100, 30), (30, 100)])
@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_next_to_no_penalty_on_collinear_features_in_float32(shape, solver):
    rng = np.random.default_rng(0)
    X = rng.standard_normal(shape).astype("f4")
    X[:, 10:20] = X[:, :10]
    X[:, 20] = X[:, 0] + X[:, 1]
    X[:, 21] = 3
    Y = (X[:, :10] @ rng.standard_normal((10, 4)) + rng.standard_normal((shape[0], 4))).astype("f4")
    T = rng.standard_normal((50, shape[1])).astype("f4")
    found = RidgeEncoder([1e-12], solver=solver).fit(X, Y)
    assert found.coef_.dtype == np.float32
    exact = np.linalg.lstsq(X.astype("f8") - X.mean(0, dtype="f8"), Y - Y.mean(0, dtype="f8"), rcond=1e-6)[0]
    expected = (T - X.mean(0, dtype="f8")) @ exact + Y.mean(0, dtype="f8")
    np.testing.assert_allclose(found.predict(T), expected, atol=2e-2 * np.abs(expected).max())


def test_forced_primal_form_keeps_its_digits_in_float32():
    X, Y = planted(60, 400)
    X = (X * np.logspace(0, -3, 400)).astype("f4")
    for alpha in (1e-6, 1e-3, 1.0):
        found = RidgeEncoder([alpha], solver="primal").fit(X, Y.astype("f4"))
        exact = Ridge(alpha=alpha, solver="svd").fit(X.astype("f8"), Y)
        np.testing.assert_allclose(found.coef_, exact.coef_.T, atol=2e-3 * np.abs(exact.coef_).max())


def test_weights_without_penalty_are_the_shortest():
    X, Y = planted(40, 6)
    X = np.hstack([X, X[:, :2]])
    coef, _ = ridge_weights(X, Y, 0.0)
    np.testing.assert_allclose(coef, np.linalg.pinv(X - X.mean(0)) @ (Y - Y.mean(0)), atol=1e-8)


def warned(fit):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit()
    return [str(w.message) for w in caught]


def test_penalties_at_an_edge_are_told_where_a_wider_grid_would_matter():
    X, Y = planted(80, 20, 8)
    noise = np.random.default_rng(5).standard_normal((80, 8))
    assert (
        "for 8 the smallest (1e+06) of 4 penalties" in warned(lambda: RidgeEncoder(np.logspace(6, 9, 4)).fit(X, Y))[0]
    )
    (text,) = warned(lambda: RidgeEncoder(np.logspace(-6, -3, 4), alpha_per_voxel=False).fit(X, Y + 3 * noise))
    assert "largest (0.001)" in text
    assert "1e-09 to 1e+00" in text
    # At the ends of the default grid nothing is left to gain, and one penalty is no choice.
    for fit in (
        lambda: RidgeEncoder().fit(X, noise),
        lambda: RidgeEncoder().fit(X, X[:, :8]),
        lambda: RidgeEncoder([1e9]).fit(X, Y),
        lambda: RidgeEncoder(np.logspace(-6, 8, 15)).fit(X, np.hstack([Y, noise])),
    ):
        assert warned(fit) == []
    assert "smallest" in warned(lambda: BandedRidgeEncoder(np.logspace(6, 9, 4), n_candidates=3).fit([X, X], Y))[0]


@pytest.mark.parametrize("kind", ["masked", "bfloat16", "with gradient", "float16", "integer", "object", "table"])
def test_arrays_of_every_kind_give_the_same_weights(kind):
    rng = np.random.default_rng(5)
    X = rng.integers(-4, 5, (60, 8)).astype(float)
    Y = X @ rng.integers(-2, 3, (8, 3)) + rng.integers(-5, 6, (60, 3))
    expected = RidgeEncoder(ALPHAS).fit(X, Y).coef_
    if kind in ("bfloat16", "with gradient"):
        torch = pytest.importorskip("torch")
        x, y = torch.tensor(X), torch.tensor(Y)
        x, y = (x.bfloat16(), y.bfloat16()) if kind == "bfloat16" else (x.requires_grad_(), y.requires_grad_())
    elif kind == "table":
        pandas = pytest.importorskip("pandas")
        x, y = pandas.DataFrame(X), pandas.DataFrame(Y)
    else:
        types = {"float16": "f2", "integer": "i8", "object": object}
        x, y = ((np.ma.array(a) if kind == "masked" else a.astype(types[kind])) for a in (X, Y))
    np.testing.assert_allclose(RidgeEncoder(ALPHAS).fit(x, y).coef_, expected, atol=1e-4)


def test_masked_numbers_are_missing_numbers():
    X, Y = planted()
    masked = np.ma.array(Y, mask=np.zeros(Y.shape, bool))
    masked[4, 1] = np.ma.masked
    with pytest.raises(DataError, match=r"1 of 3 voxels.*\[1\]"):
        RidgeEncoder(ALPHAS).fit(X, masked)
    with pytest.raises(ValueError, match="NaN"):
        RidgeEncoder(ALPHAS).fit(np.ma.masked_greater(X, 2), Y)
    with pytest.raises(DataError, match="2 of 2 names are masked"):
        as_numpy(np.ma.array(["a", "b"], mask=True), "names")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (scipy.sparse.csr_matrix(np.eye(60)), "sparse"),
        (np.full((60, 2), "a"), "not all of them are numbers"),
        (np.ones((60, 2), complex), "complex"),
        (np.full((60, 2), "2020-01-01", dtype="M8[D]"), "datetime64"),
        (np.ones((60, 2, 2)), "3 dimensions"),
        (np.ones((60, 0)), "0 voxels"),
    ],
)
def test_responses_that_are_no_numbers_are_called_what_they_are(y, message):
    with pytest.raises(DataError, match=message):
        RidgeEncoder(ALPHAS).fit(planted()[0], y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": [1.0, np.nan]}, "finite"),
        ({"alphas": []}, "finite"),
        ({"alphas": ["a"]}, "not numbers"),
        ({"alphas": [[1.0, 2.0]]}, "finite"),
        ({"n_jobs": 0}, "n_jobs=0"),
        ({"n_jobs": 1.5}, "n_jobs"),
        ({"device": "gpu"}, "cpu"),
        ({"device": "cuda:99"}, "Legal here: auto, cpu"),
    ],
)
def test_settings_that_mean_nothing(options, message):
    if "device" in options:
        pytest.importorskip("torch")
    X, Y = planted()
    for make in (RidgeEncoder, BandedRidgeEncoder):
        with pytest.raises(ConfigError, match=message):
            make(**options).fit(X, Y)


def test_order_and_repeats_of_penalties_change_nothing():
    X, Y = planted()
    plain = RidgeEncoder(ALPHAS).fit(X, Y)
    mixed = RidgeEncoder(np.r_[ALPHAS[::-1], ALPHAS[:2]], n_jobs=-1).fit(X, Y)
    np.testing.assert_array_equal(mixed.alpha_, plain.alpha_)
    np.testing.assert_array_equal(mixed.best_score_, plain.best_score_)


def mapped_megabytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile:"):
            return int(line.split()[1]) / 1024
    return None


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's account of mapped pages")
@pytest.mark.parametrize("form", ["array", "labelled"])
def test_pages_of_responses_in_a_file_are_given_back(tmp_path, form):
    rng = np.random.default_rng(0)
    values = np.tile(rng.standard_normal((1000, 100)).astype("f4"), (1, 120))
    np.save(tmp_path / "y.npy", values)  # 48 MB
    X = rng.standard_normal((1000, 3)).astype("f4")
    expected = RidgeEncoder([1.0], max_memory="20MB").fit(X, values)
    Y = np.load(tmp_path / "y.npy", mmap_mode="r")
    Y = Y if form == "array" else xr.DataArray(Y, dims=("presentation", "voxel"))
    before = mapped_megabytes()
    found = RidgeEncoder([1.0], max_memory="20MB").fit(X, Y)
    assert mapped_megabytes() - before < 20
    np.testing.assert_array_equal(found.coef_, expected.coef_)


def test_private_changes_of_a_mapped_file_stay(tmp_path):
    X, Y = planted()
    np.save(tmp_path / "y.npy", Y)
    changed = np.load(tmp_path / "y.npy", mmap_mode="c")
    changed[:] = 2 * Y
    np.testing.assert_allclose(RidgeEncoder([1.0]).fit(X, changed).coef_, RidgeEncoder([1.0]).fit(X, 2 * Y).coef_)
    np.testing.assert_array_equal(changed, 2 * Y)


@pytest.mark.parametrize("features", [[[1.0, 2.0], [3.0]], iter([1.0]), None, 3.0, np.array([["a"] * 2] * 8)])
@pytest.mark.parametrize("encoder", [RidgeEncoder([1.0]), BandedRidgeEncoder(n_candidates=2)])
def test_features_that_are_no_array_of_numbers_are_refused_in_words(encoder, features):
    given = {"a": features} if isinstance(encoder, BandedRidgeEncoder) else features
    with pytest.raises(DataError, match="features"):
        encoder.fit(given, np.ones((8, 2)))
