"""Support curves: the same draws for all, scores, intervals, paired comparisons, errors."""

from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.base import BaseEstimator
from sklearn.linear_model import Ridge

from neuroenc import stats
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import RidgeEncoder
from neuroenc.encoders.incontext import (
    MeanResponse,
    compare_methods,
    summarise_curve,
    support_curve,
    support_draws,
)
from neuroenc.retrieval import CoverageSelector, DOptimalSelector, SupportSelector


def world(n=120, q=60, p=8, v=10, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((p, v))
    X, Q = rng.standard_normal((n, p)), rng.standard_normal((q, p))
    return X, X @ W + noise * rng.standard_normal((n, v)), Q, Q @ W + noise * rng.standard_normal((q, v))


class Spy(BaseEstimator):
    """Remembers the supports that it was fitted to."""

    seen: ClassVar[dict[str, list]] = {}

    def __init__(self, name):
        self.name = name

    def fit(self, X, Y):
        self.seen.setdefault(self.name, []).append(np.asarray(X).copy())
        self.mean = np.nanmean(Y, axis=0)
        return self

    def predict(self, X):
        return np.tile(self.mean, (len(X), 1))


def test_draws():
    draws = support_draws(50, (5, 20), 3, seed=1)
    assert len(draws) == 6
    for (size, draw), rows in draws.items():
        assert len(set(rows.tolist())) == size
        assert np.array_equal(rows, support_draws(50, (5, 20), 3, seed=1)[size, draw])
    assert np.array_equal(draws[5, 0], draws[20, 0][:5])
    assert not np.array_equal(draws[5, 0], draws[5, 1])
    # A size does not depend on which other sizes are asked for.
    assert np.array_equal(draws[20, 2], support_draws(50, (20,), 3, seed=1)[20, 2])


def test_disjoint_draws_share_nothing():
    draws = support_draws(100, (5, 20), 5, disjoint=True)
    assert len(np.unique(np.concatenate([draws[20, d] for d in range(5)]))) == 100
    assert np.array_equal(draws[5, 3], draws[20, 3][:5])
    with pytest.raises(ConfigError, match=r"6 disjoint .*20.*at most 5 draws"):
        support_draws(100, (20,), 6, disjoint=True)


@pytest.mark.parametrize("disjoint", [True, False])
def test_supports_of_one_category(disjoint):
    labels = np.repeat(["face", "food", "word"], (40, 45, 15))
    draws = support_draws(100, (4, 20), 4, within=labels, disjoint=disjoint)
    kinds = [np.unique(labels[draws[20, d]]).tolist() for d in range(4)]
    assert kinds == [["face"], ["food"], ["face"], ["food"]]  # 15 words are too few
    shared = len(set(draws[20, 0]) & set(draws[20, 2]))
    assert shared == 0 if disjoint else shared > 0
    with pytest.raises(ConfigError, match="'food' has 45"):
        support_draws(100, (50,), 1, within=labels)
    with pytest.raises(DataError, match=r"\(3,\).*100"):
        support_draws(100, (5,), 1, within=["a", "b", "c"])


def test_order_of_time():
    shuffled, timed = (support_draws(50, (5, 20), 2, order=order) for order in ("shuffled", "time"))
    for key, rows in timed.items():
        assert np.array_equal(rows, np.sort(shuffled[key]))
    with pytest.raises(ConfigError, match="tiem"):
        support_draws(50, (5,), 1, order="tiem")


def test_cosine_to_weights_of_all_trials():
    rng = np.random.default_rng(3)
    X, W, Q = rng.standard_normal((200, 6)), rng.standard_normal((6, 4)), rng.standard_normal((50, 6))
    Y = X @ W + 2 * rng.standard_normal((200, 4))
    methods = {"ridge": RidgeEncoder(), "mean": MeanResponse()}
    curve = support_curve(methods, X, Y, Q, Q @ W, sizes=(10, 150), n_draws=3, reference=W, progress=False)
    rows = support_draws(200, (10, 150), 3)[10, 1]
    coef = RidgeEncoder().fit(X[rows], Y[rows]).coef_
    expected = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(coef.T, W.T)]
    assert np.allclose(curve["cosine"].sel({"method": "ridge", "size": 10, "draw": 1}), expected)
    assert curve["cosine"].sel({"method": "mean"}).isnull().all()
    table = summarise_curve(curve).set_index(["method", "size"])["cosine"]
    assert table["ridge", 150] > 0.95 > table["ridge", 10]
    with pytest.raises(DataError, match=r"\(5, 4\).*\(6, 4\)"):
        support_curve(methods, X, Y, Q, Q @ W, sizes=(10,), n_draws=1, reference=W[:5], progress=False)


def test_methods_see_the_same_supports():
    X, Y, Q, T = world()
    support_curve({"a": Spy("a"), "b": Spy("b")}, X, Y, Q, T, sizes=(10, 30), n_draws=2)
    first, second = Spy.seen["a"], Spy.seen["b"]
    assert len(first) == 4
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    assert [len(a) for a in first] == [10, 10, 30, 30]


def test_scores_are_those_of_a_loop():
    X, Y, Q, T = world()
    T[3, 2] = np.nan
    ridge = RidgeEncoder(n_jobs=1)
    curve = support_curve({"ridge": ridge, "plain": Ridge()}, X, Y, Q, T, sizes=(20, 60), n_draws=2, seed=4)
    assert not hasattr(ridge, "coef_")
    for (size, draw), rows in support_draws(120, (20, 60), 2, seed=4).items():
        expected = stats.explained_variance(T, Ridge().fit(X[rows], Y[rows]).predict(Q))
        found = curve["explained_variance"].sel({"method": "plain", "draw": draw, "size": size})
        np.testing.assert_allclose(found, expected)
    mean = curve["explained_variance"].mean(("draw", "voxel"))
    assert (mean.sel({"size": 60}) > mean.sel({"size": 20})).all()


def test_labels_groups_and_ceilings(tmp_path):
    X, Y, Q, T = world()
    pool, query = [f"p{k}" for k in range(120)], [f"q{k}" for k in range(60)]
    roi = ["V1"] * 4 + ["V4"] * 6

    def label(x, y, ids):
        return make_features(x, stimulus=ids), make_responses(y, stimulus=ids, dim="stimulus", roi=roi)

    curve = support_curve(
        {"ridge": RidgeEncoder(n_jobs=1)},
        *label(X, Y, pool),
        *label(Q, T, query),
        sizes=(50,),
        n_draws=3,
        groups="roi",
        noise_ceiling=np.full(10, 0.8),
    )
    curve.to_netcdf(tmp_path / "curve.nc")
    with xr.open_dataset(tmp_path / "curve.nc") as back:
        table = summarise_curve(back.load())
    assert table["group"].tolist() == ["all", "V1", "V4"]
    assert table["n_voxels"].tolist() == [10, 4, 6]
    values = curve["explained_variance"].values[0, 0]
    np.testing.assert_allclose(table["explained_variance"], [values.mean(), values[:, :4].mean(), values[:, 4:].mean()])
    assert ((table["low"] < table["explained_variance"]) & (table["explained_variance"] < table["high"])).all()
    shares = summarise_curve(curve, normalise=True)
    np.testing.assert_allclose(shares["explained_variance"], table["explained_variance"] / 0.8)
    with pytest.raises(DataError, match="in the pool and among the queries"):
        support_curve({"m": MeanResponse()}, *label(X, Y, pool), *label(Q, T, pool[:60]), sizes=(5,))
    with pytest.raises(ConfigError, match="did you mean 'roi'"):
        support_curve({"m": MeanResponse()}, *label(X, Y, pool), *label(Q, T, query), sizes=(5,), groups="rio")


def scores(values, methods):
    dims = ("method", "size", "draw", "voxel")
    return xr.Dataset({"explained_variance": (dims, values)}, coords={"method": methods, "size": [20]})


def test_intervals_cover_the_mean_of_voxels_and_draws():
    """Voxel and draw effects, 200 experiments: 95 % intervals cover about that."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        x = 0.2 + 0.05 * rng.standard_normal((1, 1, 1, 60)) + 0.02 * rng.standard_normal((1, 1, 20, 1))
        x = x + 0.05 * rng.standard_normal((1, 1, 20, 60))
        row = summarise_curve(scores(x, ["m"]), n_bootstraps=200).iloc[0]
        hits += row["low"] <= 0.2 <= row["high"]
    assert 0.88 <= hits / 200 <= 0.99


def test_comparison_is_paired():
    rng = np.random.default_rng(0)
    voxel = rng.standard_normal((1, 1, 1, 80))
    x = 0.3 + 0.1 * voxel + 0.01 * rng.standard_normal((2, 1, 6, 80)) + np.reshape([0.01, 0.0], (2, 1, 1, 1))
    row = compare_methods(scores(x, ["a", "b"]), "a", "b").iloc[0]
    # Voxels differ by 0.1, which an unpaired interval would show (+-0.02).
    assert 0.006 < row["low"] < row["difference"] < row["high"] < 0.014
    assert row["p"] < 0.01
    np.testing.assert_allclose(row["difference"], x[0].mean() - x[1].mean())
    np.testing.assert_allclose(row["relative"], x[0].mean() / x[1].mean() - 1)
    assert row["relative_low"] < row["relative"] < row["relative_high"]
    reverse = compare_methods(scores(x, ["a", "b"]), "b", "a").iloc[0]
    np.testing.assert_allclose([reverse["difference"], reverse["p"]], [-row["difference"], row["p"]])
    null = compare_methods(scores(np.repeat(x[:1], 2, axis=0), ["a", "b"]), "a", "b").iloc[0]
    assert null["p"] == 1


def test_voxels_without_a_score_are_left_out():
    x = np.full((2, 1, 3, 4), 0.5)
    x[:, :, :, 2] = np.nan
    x[0, 0, 1, 3] = np.nan
    table = summarise_curve(scores(x, ["a", "b"]))
    assert table["n_voxels"].tolist() == [3, 3]
    assert table["explained_variance"].tolist() == [0.5, 0.5]
    assert isinstance(compare_methods(scores(x, ["a", "b"]), "a", "b"), pd.DataFrame)


def test_errors():
    X, Y, Q, T = world()

    class Broken(MeanResponse):
        def predict(self, X):
            return np.full((len(X), 10), np.nan)

    class Raises(MeanResponse):
        def fit(self, X, y):
            raise ValueError("no")

    with pytest.raises(DataError, match="'broken', 5 support stimuli, draw 0"):
        support_curve({"broken": Broken()}, X, Y, Q, T, sizes=(5,), n_draws=1)
    with pytest.raises(ValueError, match="no") as caught:
        support_curve({"raises": Raises()}, X, Y, Q, T, sizes=(5,), n_draws=1)
    assert "'raises' was fitted to 5" in caught.value.__notes__[0]
    with pytest.raises(ConfigError, match=r"pool of 120.*sizes=\(20,\)"):
        support_curve({"m": MeanResponse()}, X, Y, Q, T, sizes=(20, 500))
    with pytest.raises(DataError, match="do not agree"):
        support_curve({"m": MeanResponse()}, X, Y[:50], Q, T, sizes=(5,))
    with pytest.raises(ConfigError, match="empty"):
        support_curve({}, X, Y, Q, T)
    with pytest.raises(ConfigError, match="expected an estimator"):
        support_curve({"m": 3}, X, Y, Q, T, sizes=(5,))
    with pytest.raises(ConfigError, match="did you mean 'ridge'"):
        compare_methods(scores(np.zeros((1, 1, 1, 2)), ["ridge"]), "ridge", "rigde")


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "voxel"), [(0.5, 1.0), (0.0, 1.0)])
def test_intervals_hold_the_truth(draw, voxel):
    """2,000 curves of 5 draws and 40 voxels; draws, voxels and single cells scatter."""
    rows = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        shape = (2, 50, 5, 40)
        scores = 0.1 * (
            draw * rng.standard_normal((2, 50, 5, 1))
            + voxel * rng.standard_normal((2, 50, 1, 40))
            + rng.standard_normal(shape)
        )
        curve = xr.Dataset(
            {"explained_variance": (("method", "size", "draw", "voxel"), 0.3 + scores)},
            coords={"method": ["a", "b"], "size": np.arange(50)},
        )
        one = summarise_curve(curve, n_bootstraps=399, seed=seed).query("method == 'a'")
        two = compare_methods(curve, "a", "b", n_bootstraps=399, seed=seed)
        rows.append(np.stack([one["low"] <= 0.3, one["high"] >= 0.3, two["low"] <= 0, two["high"] >= 0], axis=1))
        outside = (two["low"] > 0) | (two["high"] < 0)
        np.testing.assert_array_equal(two["p"] <= 0.05, outside)
    held = np.concatenate(rows)
    for pair in (held[:, :2], held[:, 2:]):
        assert 0.93 <= pair.all(axis=1).mean() <= 0.97


class Asked(SupportSelector):
    """The loudest stimuli; remembers what it was asked with."""

    def __init__(self):
        self.asked = []

    def _choose(self, values, k, eligible, shown, responses, voxels):
        self.asked.append((values.copy(), k, shown.copy(), None if responses is None else responses.copy()))
        order = np.argsort(-(values**2).sum(axis=1))
        return [r for r in order if eligible.free[r]][:k]


def test_selectors_choose_from_the_sub_pool_of_the_draw():
    X, Y, Q, Yq = world()
    plain = support_curve({"ridge": Ridge(1.0)}, X, Y, Q, Yq, sizes=(10, 12), n_draws=3, progress=False)
    Spy.seen.clear()
    selector, methods = Asked(), {"ridge": Ridge(1.0), "spy": Spy("spy")}
    options = {"sizes": (10, 12), "n_draws": 3, "select": {"loud": selector}, "select_pool": 0.25, "progress": False}
    curve = support_curve(methods, X, Y, Q, Yq, **options)
    assert curve["explained_variance"].dims == ("method", "select", "size", "draw", "voxel")
    assert curve["select"].values.tolist() == ["random", "loud"]
    # Random supports are what they are without selectors.
    same = curve["explained_variance"].sel({"method": "ridge", "select": "random"}).values
    assert same == pytest.approx(plain["explained_variance"].sel({"method": "ridge"}).values)
    pools = [{tuple(row) for row in values} for values, *_ in selector.asked[::2]]
    assert [len(p) for p in pools] == [30, 30, 30]
    seen = [{tuple(row) for row in support} for support in Spy.seen["spy"]]
    for number, support in enumerate(seen):  # by size, draw, selector
        assert support <= pools[number // 2 % 3]
    assert all(responses is None for *_, responses in selector.asked)
    whole = support_curve(methods, X, Y, Q, Yq, **options | {"select_pool": 1})
    loud = whole["explained_variance"].sel({"method": "ridge", "select": "loud"})
    assert np.ptp(loud.values, axis=1).max() == 0


def test_closed_loop_gives_the_responses_so_far_and_no_others():
    X, Y, Q, Yq = world()
    chosen = {}
    for name, given in (("whole", Yq), ("spoilt", Yq + 100 * np.random.default_rng(1).standard_normal(Yq.shape))):
        selector = Asked()
        options = {"select": {"loud": selector}, "select_batch": 4, "progress": False}
        Spy.seen.clear()
        support_curve({"spy": Spy("spy")}, X, Y, Q, given, sizes=(6, 10), n_draws=1, **options)
        chosen[name] = np.concatenate(Spy.seen["spy"])
        assert [k for _, k, *_ in selector.asked] == [4, 4, 2]
        known = [0 if r is None else int(np.isfinite(r).all(axis=1).sum()) for *_, r in selector.asked]
        assert known == [0, 4, 8]
        values, _, shown, responses = selector.asked[2]
        where = [int(np.flatnonzero((x == X).all(axis=1))[0]) for x in values[shown]]
        assert np.array_equal(responses, Y[where])
    assert np.array_equal(chosen["whole"], chosen["spoilt"])


def test_selectors_are_compared_on_the_same_draws():
    X, Y, Q, Yq = world(n=200, q=200, p=20, v=40)
    loud = np.random.default_rng(0).random(200) < 0.3
    X[~loud], Y[~loud] = 0.1 * X[~loud], np.random.default_rng(2).standard_normal((int((~loud).sum()), 40))
    methods = {"ridge": Ridge(1.0), "mean": MeanResponse()}
    select = {"d-optimal": DOptimalSelector(), "coverage": CoverageSelector()}
    curve = support_curve(methods, X, Y, Q, Yq, sizes=(20,), n_draws=4, select=select, progress=False)
    table = summarise_curve(curve, n_bootstraps=50)
    assert table.columns[:2].tolist() == ["method", "select"]
    assert len(table) == 6
    found = compare_methods(curve, "d-optimal", "random", along="select", n_bootstraps=50)
    assert found["method"].tolist() == ["ridge", "mean"]
    assert found["low"][0] > 0
    means = table.set_index(["method", "select"])["explained_variance"]
    assert found["difference"][0] == pytest.approx(means["ridge", "d-optimal"] - means["ridge", "random"])
    found = compare_methods(curve, "ridge", "mean", n_bootstraps=50)
    assert found["select"].tolist() == ["random", "d-optimal", "coverage"]
    assert summarise_curve(curve.sel(select="coverage"), n_bootstraps=50)["explained_variance"][0] == pytest.approx(
        means["ridge", "coverage"]
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"select": ["neerest"]}, "did you mean 'nearest'"),
        ({"select": ["prior"]}, "needs a prior"),
        ({"select": "random"}, r"select=\['random'\]"),
        ({"select": {"mine": 3}}, "expected a SupportSelector"),
        ({"select": ["coverage"], "select_pool": 0.1}, "select_pool=0.17 or more"),
        ({"select": ["coverage"], "select_pool": 2}, "select_pool"),
        ({"select": ["coverage"], "select_batch": -1}, "select_batch"),
        ({"select": ["coverage"], "within": np.repeat(["a", "b"], 60)}, "one of the two"),
    ],
)
def test_selectors_that_cannot_choose_are_refused(options, said):
    X, Y, Q, Yq = world()
    with pytest.raises(ConfigError, match=said):
        support_curve({"mean": MeanResponse()}, X, Y, Q, Yq, sizes=(20,), progress=False, **options)
