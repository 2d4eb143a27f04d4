"""Banded ridge against a float64 closed form, himalaya and planted truth."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import BandedRidgeEncoder, RidgeEncoder
from neuroenc.encoders.linear._banded import simplex_candidates

ALPHAS = np.logspace(-1, 4, 6)


def planted(n=150, sizes=(10, 25), v=12, seed=0):
    rng = np.random.default_rng(seed)
    X = {f"band{k}": rng.standard_normal((n, p)) + 1 for k, p in enumerate(sizes)}
    share = np.linspace(0, 1, v)
    A, B = X["band0"], X["band1"]
    Y = (A - 1) @ rng.standard_normal((sizes[0], v)) * share / np.sqrt(sizes[0])
    Y = Y + (B - 1) @ rng.standard_normal((sizes[1], v)) * (1 - share) / np.sqrt(sizes[1])
    return X, Y + 0.3 * rng.standard_normal((n, v)) + 2


@parametrize_with_checks([BandedRidgeEncoder(n_jobs=1)])
def test_sklearn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_equals_ridge_on_scaled_features(solver):
    X, Y = planted()
    encoder = BandedRidgeEncoder(ALPHAS, n_candidates=12, solver=solver).fit(X, Y)
    joined = np.concatenate(list(X.values()), axis=1)
    for v in range(Y.shape[1]):
        scale = np.sqrt(np.repeat(encoder.gamma_[:, v], [10, 25]))
        reference = Ridge(alpha=encoder.alpha_[v], solver="svd").fit(joined * scale, Y[:, v])
        np.testing.assert_allclose(encoder.coef_[:, v], reference.coef_ * scale, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(encoder.intercept_[v], reference.intercept_, rtol=1e-6)


@pytest.mark.parametrize("sizes", [(10, 25), (120, 90)])
def test_himalaya_reaches_the_same_scores_on_the_same_candidates(sizes):
    from himalaya.backend import set_backend
    from himalaya.ridge import GroupRidgeCV

    set_backend("numpy")
    X, Y = planted(sizes=sizes)
    gammas = simplex_candidates(2, 8, seed=1)[3:]
    peer = GroupRidgeCV(
        groups="input",
        fit_intercept=True,
        cv=KFold(4),
        solver_params={"n_iter": gammas, "alphas": ALPHAS, "progress_bar": False},
    ).fit(list(X.values()), Y)
    ours = BandedRidgeEncoder(ALPHAS, gammas=gammas, cv=KFold(4), scoring="neg_mse").fit(X, Y)
    np.testing.assert_allclose(ours.best_score_, peer.cv_scores_.max(0), rtol=1e-5)
    np.testing.assert_allclose(ours.band_alpha_, 1 / np.exp(peer.deltas_), rtol=1e-4)
    joined = list(X.values())
    np.testing.assert_allclose(ours.predict(X), peer.predict(joined), rtol=1e-4, atol=1e-5)


def test_product_measure_sums_to_r2_and_equals_himalaya():
    from himalaya.scoring import r2_score_split

    X, Y = planted(n=300)
    train = {k: x[:200] for k, x in X.items()}
    test = {k: x[200:] for k, x in X.items()}
    encoder = BandedRidgeEncoder(n_candidates=20).fit(train, Y[:200])
    share = encoder.explained_by_band(test, Y[200:])
    np.testing.assert_allclose(share.sum("band"), encoder.score_voxels(test, Y[200:], metric="ev"), rtol=1e-6)
    parts = np.stack([(x @ encoder.coef_[encoder.bands_ == k]) for k, x in test.items()])
    parts -= parts.mean(1, keepdims=True)
    centred = Y[200:] - Y[200:].mean(0)
    peer = r2_score_split(centred, parts, include_correlation=True)
    np.testing.assert_allclose(share, peer, rtol=1e-5, atol=1e-9)


def test_recovers_which_band_drives_a_voxel_and_beats_plain_ridge():
    rng = np.random.default_rng(5)
    X = {"signal": rng.standard_normal((400, 8)), "noise": 3 * rng.standard_normal((400, 300))}
    Y = X["signal"] @ rng.standard_normal((8, 6)) + 2 * rng.standard_normal((400, 6))
    train, test = ({k: x[s] for k, x in X.items()} for s in (slice(0, 300), slice(300, 400)))
    banded = BandedRidgeEncoder(n_candidates=15).fit(train, Y[:300])
    assert (banded.gamma_[0] > 0.9).all()
    plain = RidgeEncoder().fit(np.concatenate(list(train.values()), 1), Y[:300])
    r_banded = banded.score_voxels(test, Y[300:])
    r_plain = plain.score_voxels(np.concatenate(list(test.values()), 1), Y[300:])
    assert np.median(r_banded - r_plain) > 0.05


def test_one_band_is_ridge():
    X, Y = planted()
    joined = np.concatenate(list(X.values()), axis=1)
    np.testing.assert_allclose(
        BandedRidgeEncoder(ALPHAS).fit(joined, Y).coef_, RidgeEncoder(ALPHAS).fit(joined, Y).coef_, rtol=1e-8
    )
    by_label = BandedRidgeEncoder(ALPHAS, bands=np.repeat(["a", "b"], [10, 25]), n_candidates=6).fit(joined, Y)
    by_mapping = BandedRidgeEncoder(ALPHAS, n_candidates=6).fit({"a": X["band0"], "b": X["band1"]}, Y)
    np.testing.assert_allclose(by_label.coef_, by_mapping.coef_, rtol=1e-10)


def test_labels_and_storage(tmp_path):
    X, Y = planted()
    ids = [f"s{i}" for i in range(len(Y))]
    X = {k: make_features(x, stimulus=ids) for k, x in X.items()}
    Y = make_responses(Y, dim="stimulus", stimulus=ids, roi=["FFA"] * Y.shape[1])
    encoder = BandedRidgeEncoder(n_candidates=4).fit(X, Y)
    again = BandedRidgeEncoder.load(encoder.save(tmp_path / "banded"))
    np.testing.assert_array_equal(again.predict(X).values, encoder.predict(X).values)
    assert again.explained_by_band(X, Y).roi.values[0] == "FFA"
    with pytest.raises(DataError, match="different orders"):
        BandedRidgeEncoder().fit({"a": X["band0"], "b": X["band1"][::-1]}, Y)


def test_bad_bands():
    X, Y = planted()
    with pytest.raises(ConfigError, match=r"\(candidate, 2\)"):
        BandedRidgeEncoder(gammas=[[1.0, 0.0, 0.0]]).fit(X, Y)
    with pytest.raises(DataError, match="different numbers of samples"):
        BandedRidgeEncoder().fit([X["band0"], X["band1"][:10]], Y)
