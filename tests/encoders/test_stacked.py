"""Stacked regression against independent solvers, a plain loop over folds, and planted truth."""

import numpy as np
import pytest
from scipy.optimize import minimize, nnls
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import (
    RidgeEncoder,
    StackedEncoder,
    layer_interval,
    load_encoder,
    simplex_weights,
    variance_partition,
)

ALPHAS = np.logspace(-1, 4, 6)


def chain(n=260, p=12, v=6, seed=0):
    """Three layers, each half of the one before; the first third of the voxels reads the first, and so on."""
    rng = np.random.default_rng(seed)
    layers = [rng.standard_normal((n, p))]
    for _ in range(2):
        layers.append(np.sqrt(0.5) * layers[-1] + np.sqrt(0.5) * rng.standard_normal((n, p)))
    reads = np.repeat(np.arange(3), v)
    Y = np.stack([layers[k] @ rng.standard_normal(p) / np.sqrt(p) for k in reads], axis=1)
    Y = Y + 0.3 * rng.standard_normal(Y.shape) + 2
    return {f"layer{k}": x for k, x in enumerate(layers)}, Y, reads


@parametrize_with_checks([StackedEncoder(n_jobs=1)])
def test_sklearn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_weights_equal_those_of_general_solvers(k):
    rng = np.random.default_rng(k)
    errors = rng.standard_normal((30, k, 40)) + 2 * rng.standard_normal((30, 1, 40)) * rng.uniform(0.2, 2, (30, k, 1))
    gram = np.einsum("vkn,vln->vkl", errors, errors)
    found = simplex_weights(gram)
    for e, G, w in zip(errors, gram, found):
        big = 1e4
        peer = nnls(np.vstack([e.T, np.full((1, k), big)]), np.append(np.zeros(e.shape[1]), big))[0]
        np.testing.assert_allclose(w @ G @ w, (peer / peer.sum()) @ G @ (peer / peer.sum()), rtol=1e-6)
        np.testing.assert_allclose(w, peer, atol=1e-4)
    start, G = np.full(k, 1 / k), gram[0] / np.trace(gram[0])
    limits = {"bounds": [(0, 1)] * k, "constraints": {"type": "eq", "fun": lambda w: w.sum() - 1}}
    slsqp = minimize(lambda w: w @ G @ w, start, method="SLSQP", options={"ftol": 1e-14}, **limits)
    np.testing.assert_allclose(found[0], slsqp.x, atol=1e-4)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_weights_of_equal_predictions_are_equal_and_nothing_depends_on_the_scale():
    np.testing.assert_allclose(simplex_weights(np.ones((3, 3))), 1 / 3, atol=1e-6)
    np.testing.assert_allclose(simplex_weights(np.zeros((2, 4, 4))), 1 / 4)
    gram = np.array([[2.0, 1.0], [1.0, 3.0]])
    for scale in (1e-30, 1e30):
        np.testing.assert_allclose(simplex_weights(gram * scale), simplex_weights(gram), rtol=1e-9)
    with pytest.raises(DataError, match="finite matrices"):
        simplex_weights([[np.nan]])


@pytest.mark.parametrize("solver", ["primal", "dual"])
def test_errors_out_of_fold_equal_a_plain_loop(solver):
    X, Y, _ = chain(n=90, v=2)
    encoder = StackedEncoder(ALPHAS, cv=KFold(3), solver=solver).fit(X, Y)
    errors = np.empty((3, *Y.shape))
    for k, x in enumerate(X.values()):
        alone = RidgeEncoder(ALPHAS, cv=KFold(3), solver=solver).fit(x, Y)
        np.testing.assert_array_equal(encoder.alpha_[k], alone.alpha_)
        for v in range(Y.shape[1]):
            for train, test in KFold(3).split(x):
                peer = Ridge(alpha=alone.alpha_[v], solver="svd").fit(x[train], Y[train, v])
                errors[k, test, v] = Y[test, v] - peer.predict(x[test])
    np.testing.assert_allclose(encoder.gram_, np.einsum("knv,lnv->vkl", errors, errors), rtol=1e-6)
    total = ((Y - Y.mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_allclose(encoder.band_score_, 1 - (errors**2).sum(axis=1) / total, rtol=1e-6)
    mixed = np.einsum("kv,knv->nv", encoder.weights_, errors)
    np.testing.assert_allclose(encoder.best_score_, 1 - (mixed**2).sum(axis=0) / total, rtol=1e-6)
    assert (encoder.best_score_ >= encoder.band_score_.max(axis=0) - 1e-9).all()
    predicted = np.einsum("kv,knv->nv", encoder.weights_, encoder.single_predictions(X))
    np.testing.assert_allclose(encoder.predict(X), predicted, rtol=1e-9)
    shares = encoder.explained_by_band(X, Y)
    np.testing.assert_allclose(shares.sum("band"), encoder.score_voxels(X, Y, metric="ev"), rtol=1e-6)


def test_weights_and_structured_partition_find_the_planted_layer():
    X, Y, reads = chain()
    train, test = ({k: x[rows] for k, x in X.items()} for rows in (slice(0, 160), slice(160, None)))
    encoder = StackedEncoder().fit(train, Y[:160])
    assert (encoder.weights_.argmax(axis=0) == reads).all()
    found = encoder.structured_partition(test, Y[160:])
    names = np.array(list(X))
    assert (found["first"].values == names[reads]).mean() > 0.8
    assert (found["last"].values == names[reads]).mean() > 0.8
    # One layer twice: either end alone is enough.
    twice = {"a": X["layer0"], "b": X["layer0"]}
    both = StackedEncoder().fit({k: x[:160] for k, x in twice.items()}, Y[:160, :6])
    found = both.structured_partition({k: x[160:] for k, x in twice.items()}, Y[160:, :6])
    np.testing.assert_allclose(both.weights_, 0.5, atol=1e-5)
    assert found["redundant"].values.all()
    # What is predicted by nothing has no interval.
    noise = np.random.default_rng(9).standard_normal((100, 6))
    assert set(both.structured_partition({k: x[160:] for k, x in twice.items()}, noise)["first"].values) == {""}


def test_interval_of_stacks():
    early, late = (
        [[0.0, 0.9, -0.1], [0.6, 0.95, -0.2], [1.0, 1.0, -0.3]],
        [[1.0, 1.0, -0.3], [0.9, 0.99, 0], [0.2, 0.97, 0]],
    )
    first, last = layer_interval(early, late)
    assert [first.tolist(), last.tolist()] == [[0, 2, -1], [2, 1, -1]]
    with pytest.raises(DataError, match="differ"):
        layer_interval([[1.0]], [[1.0], [2.0]])


def test_labels_storage_memory_and_dask(tmp_path):
    import dask.array

    X, Y, _ = chain(n=80, v=3)
    ids = [f"s{n}" for n in range(80)]
    spaces = {k: make_features(x.astype("f4"), stimulus=ids) for k, x in X.items()}
    rois = np.repeat(["V1", "V4", "IT"], 3)
    labelled = make_responses(Y.astype("f4"), stimulus=ids).assign_coords(roi=("voxel", rois))
    encoder = StackedEncoder(cv=3, standardise=True).fit(spaces, labelled)
    coef, intercept = encoder.to_linear()
    assert coef.roi.values.tolist() == rois.tolist()
    assert coef.attrs["encoder"] == "StackedEncoder"
    joined = np.concatenate([X[k] for k in X], axis=1)
    np.testing.assert_allclose(joined @ coef.values + intercept.values, encoder.predict(spaces), rtol=1e-3, atol=1e-3)
    assert encoder.explained_by_band(spaces, labelled).roi.values.tolist() == rois.tolist()
    partition = encoder.structured_partition(spaces, labelled[:, ::-1], ["layer2", "layer0"])
    assert partition.sizes == {"layers": 2, "voxel": 9}
    assert partition.roi.values.tolist() == rois.tolist()
    encoder.save(tmp_path / "encoder")
    again = load_encoder(tmp_path / "encoder")
    np.testing.assert_array_equal(again.predict(spaces), encoder.predict(spaces))
    np.testing.assert_array_equal(again.subset_weights(["layer1"])[1], 1)
    small = StackedEncoder(cv=3, standardise=True, max_memory="40kB").fit(spaces, labelled)
    np.testing.assert_allclose(small.coef_, encoder.coef_, atol=1e-6)
    lazy = StackedEncoder(cv=3, standardise=True).fit(
        {k: x.values for k, x in spaces.items()}, dask.array.from_array(labelled.values, chunks=(80, 4))
    )
    np.testing.assert_allclose(lazy.coef_, encoder.coef_, atol=1e-6)
    parts = variance_partition(
        {k: spaces[k] for k in ("layer0", "layer1")}, labelled, encoder=StackedEncoder(cv=2), cv=2, n_bootstraps=0
    )
    assert set(parts["subset"].values) == {"layer0", "layer1", "layer0 & layer1"}


def test_refusals():
    X, Y, _ = chain(n=40, v=1)
    encoder = StackedEncoder(cv=2).fit(X, Y)
    with pytest.raises(ConfigError, match="unknown band 'layer9'; did you mean"):
        encoder.subset_weights(["layer9"])
    with pytest.raises(ConfigError, match="one band at least"):
        encoder.subset_weights([])
    with pytest.raises(ConfigError, match="two different bands"):
        encoder.structured_partition(X, Y, ["layer1", "layer1"])
    with pytest.raises(DataError, match="no 'layer2'"):
        encoder.predict({k: X[k] for k in ("layer0", "layer1")})
    Y[3, 1] = np.nan
    with pytest.raises(DataError, match="NaN"):
        StackedEncoder(cv=2).fit(X, Y)
