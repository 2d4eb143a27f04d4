"""Ridge against scikit-learn, himalaya, closed forms and itself."""

import warnings

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import RidgeEncoder

ALPHAS = np.logspace(-1, 4, 6)


def planted(n=120, p=30, v=7, dtype=np.float64, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) + rng.standard_normal(p)
    W = rng.standard_normal((p, v)) / np.sqrt(p)
    Y = X @ W + noise * rng.standard_normal((n, v)) * np.logspace(-1, 1, v) + 5
    return X.astype(dtype), Y.astype(dtype)


@parametrize_with_checks([RidgeEncoder(n_jobs=1), RidgeEncoder(alphas=[1.0], solver="dual", n_jobs=1)])
def test_sklearn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("shape", [(120, 30), (40, 90)])
@pytest.mark.parametrize("intercept", [True, False])
def test_equals_sklearn_ridge_at_the_chosen_penalties(shape, intercept):
    X, Y = planted(*shape)
    encoder = RidgeEncoder(ALPHAS, fit_intercept=intercept).fit(X, Y)
    reference = Ridge(alpha=encoder.alpha_, fit_intercept=intercept, solver="svd").fit(X, Y)
    np.testing.assert_allclose(encoder.coef_, reference.coef_.T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(encoder.predict(X), reference.predict(X), rtol=1e-8)


@pytest.mark.parametrize("scoring", ["r2", "neg_mse", "r"])
@pytest.mark.parametrize(
    ("n", "p", "solver"), [(120, 30, "primal"), (120, 30, "dual"), (60, 45, "primal"), (40, 90, "dual")]
)
@pytest.mark.parametrize("intercept", [True, False])
def test_scores_equal_a_loop_over_folds_and_penalties(scoring, n, p, solver, intercept):
    X, Y = planted(n, p)
    cv = KFold(4, shuffle=True, random_state=1)
    expected = np.zeros((len(ALPHAS), Y.shape[1]))
    for train, test in cv.split(X):
        for a, alpha in enumerate(ALPHAS):
            P = Ridge(alpha=alpha, fit_intercept=intercept, solver="svd").fit(X[train], Y[train]).predict(X[test])
            T = Y[test]
            if scoring == "r2":
                s = 1 - ((T - P) ** 2).sum(0) / ((T - T.mean(0)) ** 2).sum(0)
            elif scoring == "neg_mse":
                s = -((T - P) ** 2).mean(0)
            else:
                s = [np.corrcoef(T[:, v], P[:, v])[0, 1] for v in range(Y.shape[1])]
            expected[a] += np.asarray(s) / 4
    encoder = RidgeEncoder(ALPHAS, cv=cv, scoring=scoring, solver=solver, fit_intercept=intercept).fit(X, Y)
    np.testing.assert_allclose(encoder.cv_scores_, expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(encoder.alpha_, ALPHAS[expected.argmax(0)])


@pytest.mark.parametrize(("n", "p"), [(200, 30), (60, 100)])
def test_himalaya_chooses_the_same_penalties(n, p):
    from himalaya.ridge import RidgeCV

    X, Y = planted(n, p, v=50, dtype=np.float32)
    peer = RidgeCV(alphas=ALPHAS, cv=KFold(5), fit_intercept=True).fit(X, Y)
    ours = RidgeEncoder(ALPHAS, cv=KFold(5), scoring="neg_mse").fit(X, Y)
    np.testing.assert_allclose(ours.alpha_, peer.best_alphas_, rtol=1e-5)
    np.testing.assert_allclose(ours.coef_, peer.coef_, atol=2e-3 * np.abs(peer.coef_).max())


def test_primal_equals_dual_in_float32():
    X, Y = planted(80, 60, dtype=np.float32)
    one, two = (RidgeEncoder(ALPHAS, solver=s).fit(X, Y) for s in ("primal", "dual"))
    assert one.coef_.dtype == np.float32
    np.testing.assert_array_equal(one.alpha_, two.alpha_)
    np.testing.assert_allclose(one.coef_, two.coef_, atol=2e-4)


@pytest.mark.parametrize(("n", "p"), [(120, 30), (40, 90)])
def test_blocks_threads_memory_and_torch_change_nothing(n, p):
    X, Y = planted(n, p, v=40)
    reference = RidgeEncoder(ALPHAS, n_jobs=1).fit(X, Y)
    for options in ({"n_jobs": 2}, {"max_memory": "200kB"}, {"max_memory": "20kB"}, {"device": "torch"}):
        other = RidgeEncoder(ALPHAS, **options).fit(X, Y)
        np.testing.assert_allclose(other.coef_, reference.coef_, rtol=1e-9, atol=1e-12, err_msg=str(options))
        np.testing.assert_allclose(other.cv_scores_, reference.cv_scores_, rtol=1e-9, err_msg=str(options))


def test_voxels_do_not_know_each_other():
    X, Y = planted(v=9)
    order = np.random.default_rng(1).permutation(9)
    plain, permuted, scaled = (RidgeEncoder(ALPHAS).fit(X, y) for y in (Y, Y[:, order], 3 * Y))
    np.testing.assert_allclose(permuted.coef_, plain.coef_[:, order], rtol=1e-10)
    np.testing.assert_array_equal(scaled.alpha_, plain.alpha_)
    np.testing.assert_allclose(scaled.coef_, 3 * plain.coef_, rtol=1e-9)


def test_default_grid_follows_the_scale_of_the_features():
    X, Y = planted()
    plain, scaled = RidgeEncoder().fit(X, Y), RidgeEncoder().fit(100 * X, Y)
    np.testing.assert_allclose(scaled.alpha_, 1e4 * plain.alpha_)
    np.testing.assert_allclose(scaled.predict(100 * X), plain.predict(X), rtol=1e-8)


def test_one_penalty_for_all_voxels():
    X, Y = planted(v=20)
    encoder = RidgeEncoder(ALPHAS, alpha_per_voxel=False).fit(X, Y)
    assert len(np.unique(encoder.alpha_)) == 1
    assert encoder.alpha_[0] == ALPHAS[encoder.cv_scores_.mean(1).argmax()]
    np.testing.assert_allclose(encoder.coef_, Ridge(alpha=encoder.alpha_[0]).fit(X, Y).coef_.T, rtol=1e-6, atol=1e-9)


def test_recovers_planted_weights_and_attains_the_ceiling():
    rng = np.random.default_rng(3)
    X, W = rng.standard_normal((6500, 20)), rng.standard_normal((20, 4))
    noise = np.array([0.5, 1.0, 2.0, 4.0]) * np.linalg.norm(W, axis=0)
    Y = X @ W + noise * rng.standard_normal((6500, 4))
    encoder = RidgeEncoder().fit(X[:1500], Y[:1500])
    ceiling = 1 / np.sqrt(1 + np.array([0.5, 1.0, 2.0, 4.0]) ** 2)
    np.testing.assert_allclose(encoder.score_voxels(X[1500:], Y[1500:]), ceiling, atol=0.06)
    assert np.all(np.diff(encoder.alpha_) >= 0), "noisier voxels need more shrinkage"


def labelled(n_stimuli=40, repeats=2, v=5, p=6):
    rng = np.random.default_rng(0)
    ids = np.array([f"s{i:02d}" for i in range(n_stimuli)])
    features = make_features(rng.standard_normal((n_stimuli, p)), stimulus=ids)
    order = np.tile(np.arange(n_stimuli), repeats)
    W = rng.standard_normal((p, v))
    responses = make_responses(
        features.values[order] @ W + rng.standard_normal((len(order), v)),
        stimulus=ids[order],
        run=np.repeat(np.arange(repeats * 2), n_stimuli // 2),
        session=1,
        ijk=np.c_[np.arange(v), np.zeros((v, 2), int)],
        roi=["V1", "V1", "FFA", "FFA", ""],
        affine=np.eye(4),
        volume_shape=(v, 1, 1),
    )
    return features, responses, features.isel(stimulus=order), order


def test_labels_travel():
    _, responses, X, _ = labelled()
    encoder = RidgeEncoder().fit(X, responses)
    predicted = encoder.predict(X)
    assert predicted.dims == ("stimulus", "voxel")
    assert predicted.roi.values.tolist() == ["V1", "V1", "FFA", "FFA", ""]
    coef, intercept = encoder.to_linear()
    assert coef.dims == ("feature", "voxel")
    assert intercept.i.values.tolist() == [0, 1, 2, 3, 4]
    scores = encoder.score_voxels(X, responses)
    assert isinstance(scores, xr.DataArray)
    assert scores.attrs["metric"] == "r"


def test_repeats_of_a_stimulus_stay_on_one_side():
    _, responses, X, _ = labelled()
    RidgeEncoder(cv=4).fit(X, responses)
    with pytest.raises(DataError, match=r"40 stimuli on both sides|stimuli on both sides.*inflated"):
        RidgeEncoder(cv=KFold(4, shuffle=True, random_state=0)).fit(X, responses)
    by_run = RidgeEncoder(cv="run").fit(X, responses)
    assert by_run.best_score_.shape == (5,)
    with pytest.raises(ConfigError, match="needs a coordinate"):
        RidgeEncoder(cv="run").fit(X.values, responses.values)


def test_features_in_another_order_are_refused():
    features, responses, _, _ = labelled(repeats=1)
    with pytest.raises(DataError, match="order"):
        RidgeEncoder().fit(features.isel(stimulus=slice(None, None, -1)), responses)


def test_nan_voxels_are_reported():
    _, responses, X, _ = labelled()
    broken = responses.copy()
    broken[3, 2] = np.nan
    broken[4, 4] = np.inf
    with pytest.raises(DataError, match=r"2 of 5 voxels hold NaN or infinity.*\[2, 4\].*nan_voxels='skip'"):
        RidgeEncoder().fit(X, broken)
    with pytest.warns(UserWarning, match="2 of 5 voxels"):
        encoder = RidgeEncoder(nan_voxels="skip").fit(X, broken)
    assert np.isnan(encoder.coef_[:, [2, 4]]).all()
    good = RidgeEncoder().fit(X, responses)
    np.testing.assert_allclose(encoder.coef_[:, [0, 1, 3]], good.coef_[:, [0, 1, 3]], rtol=1e-5)


def test_save_and_load(tmp_path):
    _, responses, X, _ = labelled()
    encoder = RidgeEncoder(scoring="r").fit(X, responses)
    again = RidgeEncoder.load(encoder.save(tmp_path / "encoder"))
    xr.testing.assert_identical(again.predict(X), encoder.predict(X))
    xr.testing.assert_identical(again.to_linear()[0], encoder.to_linear()[0])
    assert again.get_params() == encoder.get_params()
    assert "alpha, median" in again._repr_html_()
    arrays = tmp_path / "encoder" / "arrays.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-4] + b"0000")
    with pytest.raises(DataError, match="not the file that was saved"):
        RidgeEncoder.load(tmp_path / "encoder")


def test_a_killed_fit_goes_on(tmp_path, monkeypatch):
    from neuroenc.encoders.linear import _ridge

    X, Y = planted(v=60)
    reference = RidgeEncoder(ALPHAS, max_memory="200kB", n_jobs=1).fit(X, Y)
    settings = {"alphas": ALPHAS, "max_memory": "200kB", "n_jobs": 1, "checkpoint": tmp_path / "fit"}
    calls = []
    original = _ridge._solvers.score_block

    def dies_later(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(_ridge._solvers, "score_block", dies_later)
    with pytest.raises(KeyboardInterrupt):
        RidgeEncoder(**settings).fit(X, Y)
    done = len(list((tmp_path / "fit").glob("fit-*")))
    assert done == 2
    resumed = RidgeEncoder(**settings).fit(X, Y)
    blocks = len(list((tmp_path / "fit").glob("fit-*")))
    assert len(calls) == 3 + blocks - done
    np.testing.assert_array_equal(resumed.coef_, reference.coef_)
    np.testing.assert_array_equal(resumed.cv_scores_, reference.cv_scores_)
    # Other settings and other responses in the same folder are computed anew, not taken from the disk.
    other = RidgeEncoder(**{**settings, "alphas": [1.0]}).fit(X, Y)
    np.testing.assert_array_equal(other.coef_, RidgeEncoder([1.0], max_memory="200kB", n_jobs=1).fit(X, Y).coef_)
    np.testing.assert_allclose(RidgeEncoder(**settings).fit(X, 2 * Y).coef_, 2 * reference.coef_, rtol=1e-9)


def test_dask_memmap_and_torch_responses(tmp_path):
    import dask.array as da
    import torch

    X, Y = planted(v=30, dtype=np.float32)
    reference = RidgeEncoder(ALPHAS).fit(X, Y)
    np.save(tmp_path / "y.npy", Y)
    memmap = np.load(tmp_path / "y.npy", mmap_mode="r")
    for other in (da.from_array(Y, chunks=(50, 7)), memmap, torch.as_tensor(Y)):
        np.testing.assert_allclose(RidgeEncoder(ALPHAS).fit(X, other).coef_, reference.coef_, rtol=1e-6)
    predicted = reference.predict(torch.as_tensor(X))
    assert isinstance(predicted, torch.Tensor)
    np.testing.assert_allclose(predicted.numpy(), reference.predict(X))


def test_constant_voxels_get_no_weights_and_no_warning():
    X, Y = planted()
    Y[:, 2] = 4.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = RidgeEncoder(ALPHAS).fit(X, Y)
    np.testing.assert_allclose(encoder.coef_[:, 2], 0, atol=1e-12)
    assert encoder.intercept_[2] == pytest.approx(4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": [0.0, 1.0]}, "positive"),
        ({"scoring": "r3"}, "did you mean 'r' or 'r2'"),
        ({"solver": "primall"}, "did you mean 'primal'"),
        ({"cv": 1}, "at least 2 folds"),
        ({"max_memory": "lots"}, "2GB"),
    ],
)
def test_bad_settings_say_what_is_legal(options, message):
    X, Y = planted()
    with pytest.raises(ConfigError, match=message):
        RidgeEncoder(**options).fit(X, Y)


def test_saved_record_does_not_name_the_folder_of_its_checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((40, 3)), rng.standard_normal((40, 2))
    written = []
    for name in ("here", "there"):
        encoder = RidgeEncoder(checkpoint=tmp_path / name).fit(X, Y)
        written.append((encoder.save(tmp_path / f"{name}-saved") / "encoder.json").read_bytes())
        assert RidgeEncoder.load(tmp_path / f"{name}-saved").checkpoint is None
    assert written[0] == written[1]


def test_predictions_of_dask_arrays_are_lazy():
    import dask.array as da

    X, Y = planted(v=5)
    encoder = RidgeEncoder(ALPHAS).fit(X, Y)
    lazy = da.from_array(X, chunks=(50, 7))
    labelled = xr.DataArray(lazy, dims=("stimulus", "feature"), coords={"stimulus": np.arange(len(X)).astype(str)})
    for form in (lazy, labelled):
        predicted = encoder.predict(form)
        assert type(predicted) is type(form)
        assert predicted.chunks[0] == (50, 50, 20)
        np.testing.assert_allclose(np.asarray(predicted), encoder.predict(X))
    assert encoder.predict(labelled).dims == ("stimulus", "voxel")
    single = RidgeEncoder(ALPHAS).fit(X, Y[:, 0])
    np.testing.assert_allclose(single.predict(lazy).compute(), single.predict(X))
    np.testing.assert_allclose(encoder.score_voxels(lazy, da.from_array(Y)), encoder.score_voxels(X, Y))
    with pytest.raises(DataError, match="30"):
        encoder.predict(lazy[:, :20])
