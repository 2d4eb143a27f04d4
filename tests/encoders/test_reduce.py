"""Ridge on principal components and random projections: scikit-learn's own pipeline, fitted on training rows only."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neuroenc._core.errors import ConfigError
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import RidgeEncoder, cross_validated_p, fit_reduction
from neuroenc.encoders.comparison import compare


def data(n=120, p=300, v=4, seed=0):
    """A few directions of large variance drive the voxels."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 5)) @ rng.standard_normal((5, p)) * 3 + rng.standard_normal((n, p))
    return X, X[:, :5] @ rng.standard_normal((5, v)) + rng.standard_normal((n, v))


@pytest.mark.parametrize("standardise", [True, False])
def test_components_are_those_of_a_pipeline(standardise):
    X, Y = data()
    ours = RidgeEncoder([10.0], reduce="pca", n_components=7, standardise=standardise).fit(X[:100], Y[:100])
    steps = [StandardScaler()] * standardise + [PCA(7, svd_solver="full"), Ridge(10.0)]
    theirs = make_pipeline(*steps).fit(X[:100], Y[:100])
    np.testing.assert_allclose(ours.predict(X[100:]), theirs.predict(X[100:]), rtol=1e-6, atol=1e-6)
    coef, intercept = ours.to_linear()
    assert coef.shape == (300, 4)
    np.testing.assert_allclose(X[100:] @ coef.values + intercept.values, ours.predict(X[100:]), atol=1e-8)


def test_a_projection_keeps_distances_and_serves_ridge():
    X, Y = data(p=2000)
    map_ = fit_reduction(X, "projection", 600)
    small = map_.apply(X)
    pairs = [np.linalg.norm(a[:50, None] - a[None, :50], axis=-1)[np.triu_indices(50, 1)] for a in (X, small)]
    assert np.abs(pairs[1] / pairs[0] - 1).max() < 0.25
    whole = RidgeEncoder(standardise=True).fit(X[:90], Y[:90]).score_voxels(X[90:], Y[90:])
    part = RidgeEncoder(standardise=True, reduce="projection", n_components=600).fit(X[:90], Y[:90])
    assert np.abs(part.score_voxels(X[90:], Y[90:]) - whole).max() < 0.2
    assert part.get_params()["reduce"] == "projection"


def test_a_comparison_fits_components_inside_each_fold():
    X, Y = data()
    ids = [f"s{i}" for i in range(len(X))]
    space, Y = make_features(X.astype("float32"), stimulus=ids), make_responses(Y.astype("float32"), stimulus=ids)
    readouts = {"pca": {"readout": "linear", "reduce": "pca", "n_components": 6}, "linear": {}}
    found = compare(
        {"x": space}, readouts, Y, cv=[(np.arange(90), np.arange(90, 120))], n_bootstraps=50, progress=False
    )
    changed = X.copy()
    changed[100:] = 50 * changed[100:]  # of rows that are tested
    other = make_features(changed.astype("float32"), stimulus=ids)
    again = compare(
        {"x": other}, readouts, Y, cv=[(np.arange(90), np.arange(90, 120))], n_bootstraps=50, progress=False
    )
    np.testing.assert_array_equal(found.predictions("x/pca")[90:100], again.predictions("x/pca")[90:100])
    costs = found.table().set_index("cell")["n_parameters"]
    assert (costs["x/pca"].iloc[0] if hasattr(costs["x/pca"], "iloc") else costs["x/pca"]) == 7 * 4
    with pytest.raises(ConfigError, match="pca"):
        compare({"x": space}, {"linear": {"reduce": "pcas"}}, Y, progress=False)


def test_permutations_refit_on_the_components_of_each_fold():
    X, Y = data(n=60, p=8)
    folds = [(np.arange(30), np.arange(30, 60)), (np.arange(30, 60), np.arange(30))]
    alphas = np.full((2, 4), 3.0)
    one, _ = cross_validated_p(X, Y, folds, alphas, n_permutations=99)
    each, _ = cross_validated_p([X, X], Y, folds, alphas, n_permutations=99)
    np.testing.assert_array_equal(one, each)
    own = [fit_reduction(X[train], "pca", 3).apply(X) for train, _ in folds]
    p, facts = cross_validated_p(own, Y, folds, alphas, n_permutations=99)
    assert facts["null"] == "refit"
    assert ((p > 0) & (p <= 1)).all()
