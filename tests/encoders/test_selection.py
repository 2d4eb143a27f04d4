"""Nested selection: unbiased in noise, planted layers found, by hand, labels, regions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import RidgeEncoder, select_features
from neuroenc.stats import permutation_test, score


def layers(n=200, k=4, p=8, seed=0):
    rng = np.random.default_rng(seed)
    return {f"layer{i}": rng.standard_normal((n, p)) for i in range(k)}


def quick():
    return RidgeEncoder(alphas=[1.0, 100.0], cv=3, scoring="r")


def test_noise_has_no_selection_bias():
    """Twelve candidates of pure noise: the nested score is 0 on average, the naive one is not."""
    x = layers(n=120, k=12, p=5)
    y = np.random.default_rng(99).standard_normal((120, 400))
    out = select_features(x, y, encoder=Ridge(alpha=10.0), cv=4, inner_cv=3)
    error = float(out.score.std()) / np.sqrt(400)
    assert abs(float(out.score.mean())) < 4 * error
    assert float(out.naive.mean()) > 20 * error  # the negative control
    assert 0.2 < float(out.agreement.mean()) < 0.8


def test_planted_layers_are_found_and_scored_as_they_are():
    x = layers()
    rng = np.random.default_rng(1)
    signal = np.concatenate([x[f"layer{i}"] @ rng.standard_normal((8, 10)) / np.sqrt(8) for i in range(4)], axis=1)
    out = select_features(x, signal + rng.standard_normal((200, 40)), encoder=quick())
    expected = np.repeat([f"layer{i}" for i in range(4)], 10)
    assert (out.selected.values == expected).mean() > 0.9
    planted = [float(out.candidate_score.sel(candidate=name)[v]) for v, name in enumerate(expected)]
    assert float(out.score.mean()) == pytest.approx(np.mean(planted), abs=0.03)
    assert (out.naive >= out.candidate_score.max("candidate") - 1e-12).all()


@pytest.mark.parametrize("metric", ["r", "r2", "ev"])
def test_by_hand(metric):
    x, rng = layers(n=60, k=3, p=3), np.random.default_rng(3)
    y = x["layer0"] @ rng.standard_normal((3, 5)) + 2 * rng.standard_normal((60, 5))
    out = select_features(x, y, encoder=Ridge(alpha=1.0), cv=KFold(3), inner_cv=KFold(4), metric=metric)
    total = np.zeros(5)
    for k, (train, test) in enumerate(KFold(3).split(y)):
        for v in range(5):
            inner = []
            for name in x:
                a, b = x[name][train], y[train]
                fits = [(Ridge(alpha=1.0).fit(a[i], b[i]), j) for i, j in KFold(4).split(a)]
                inner.append(np.mean([score(b[j, v], m.predict(a[j])[:, v], metric) for m, j in fits]))
            best = f"layer{np.argmax(inner)}"
            assert out.chosen.values[k, v] == best
            guess = Ridge(alpha=1.0).fit(x[best][train], y[train]).predict(x[best][test])
            np.testing.assert_allclose(out.predicted.values[test, v], guess[:, v], atol=1e-5)
            total[v] += score(y[test, v], guess[:, v], metric) / 3
    np.testing.assert_allclose(out.score, total, atol=1e-9)


def test_regions_choose_together():
    x, rng = layers(), np.random.default_rng(5)
    y = np.concatenate([x["layer1"] @ rng.standard_normal((8, 6)), x["layer2"] @ rng.standard_normal((8, 6))], axis=1)
    Y = make_responses(
        y + 4 * rng.standard_normal(y.shape), stimulus=[f"s{i}" for i in range(200)], roi=["V1"] * 6 + ["FFA"] * 6
    )
    out = select_features(x, Y, encoder=quick(), inner_cv=3, per="roi")
    assert out.selected.values.tolist() == ["layer1"] * 6 + ["layer2"] * 6
    assert out.roi.values.tolist() == Y.roi.values.tolist()
    assert out.predicted.coords["stimulus"].values.tolist() == Y.stimulus.values.tolist()
    single = select_features(x, Y, encoder=quick(), inner_cv=3, per="all")
    assert len(set(single.chosen.values[0])) == 1
    same = select_features(x, Y.values, encoder=quick(), inner_cv=3, per=np.repeat(["a", "b"], 6))
    np.testing.assert_allclose(same.score, out.score, atol=1e-6)


def test_permuted_voxels_and_candidates():
    x, y = layers(n=80), np.random.default_rng(0).standard_normal((80, 7))
    order = np.random.default_rng(1).permutation(7)
    a = select_features(x, y, encoder=quick(), cv=3, inner_cv=3)
    b = select_features(dict(reversed(x.items())), y[:, order], encoder=quick(), cv=3, inner_cv=3)
    np.testing.assert_allclose(a.score[order], b.score, atol=1e-9)
    assert (a.chosen.values[:, order] == b.chosen.values).all()


def test_groups_stay_together_in_every_fold():
    shown = np.repeat(np.arange(40), 3)
    rng = np.random.default_rng(0)
    # What a voxel does to a stimulus is unrelated to all features but its identity: leaks would score.
    x = {"identity": np.repeat(rng.standard_normal((40, 60)), 3, axis=0)}
    y = np.repeat(rng.standard_normal((40, 50)), 3, axis=0) + 0.1 * rng.standard_normal((120, 50))
    leaky = select_features(x, y, encoder=Ridge(), cv=KFold(4, shuffle=True, random_state=0), inner_cv=3)
    held = select_features(x, y, encoder=Ridge(), cv=4, inner_cv=3, groups=shown)
    assert float(leaky.score.mean()) > 0.8
    assert abs(float(held.score.mean())) < 0.1


def test_encoder_without_variance_scores_zero():
    x = {"flat": np.ones((30, 2)), "noise": np.random.default_rng(0).standard_normal((30, 2))}
    out = select_features(x, np.random.default_rng(1).standard_normal((30, 3)), encoder=Ridge(), cv=3, inner_cv=3)
    np.testing.assert_array_equal(out.candidate_score.sel(candidate="flat"), 0)


@pytest.mark.slow
def test_false_positives_of_the_selected_prediction():
    """500 noise data sets: the permutation test of the nested prediction, within folds, holds its level."""
    p = []
    for seed in range(500):
        x = layers(n=60, k=6, p=4, seed=seed)
        y = np.random.default_rng(10_000 + seed).standard_normal((60, 1))
        out = select_features(x, y, encoder=Ridge(alpha=5.0), cv=3, inner_cv=3)
        folds = np.repeat(np.arange(3), 20)
        # A fold's predictions come from other rows: its own rows are exchangeable, and folds differ in mean.
        p.append(permutation_test(y, out.predicted.values, mode="within", blocks=folds, n_permutations=99).p[0])
    assert np.sum(np.array(p) <= 0.05) <= scipy.stats.binom.ppf(0.999, 500, 0.05)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"metric": "rr"}, ConfigError, "did you mean 'r"),
        ({"cv": 10}, ConfigError, "need 3 in each"),
        ({"inner_cv": [([0], [1])]}, ConfigError, "cannot be reused"),
        ({"per": "roi"}, ConfigError, "label the voxels"),
        ({"per": [1, 2, 3]}, DataError, "one label for each of the 2 voxels"),
        ({"candidates": {}}, ConfigError, "got 0 candidates"),
        ({"candidates": {"a": np.ones((19, 2))}}, DataError, "one row for"),
    ],
)
def test_errors_say_what_to_do(change, error, message):
    given = {"candidates": {"a": np.ones((20, 2))}, **change}
    with pytest.raises(error, match=message):
        select_features(given.pop("candidates"), np.random.default_rng(0).random((20, 2)), **given)


def test_labels_of_voxels_are_matched_and_spaces_are_compared_with_each_other():
    x = layers(60, 2, 3)
    y = np.random.default_rng(1).standard_normal((60, 4))
    ids = [f"s{k:02d}" for k in range(60)]
    labelled = {k: make_features(v, stimulus=ids) for k, v in x.items()}
    responses = make_responses(y, stimulus=ids, dim="stimulus", voxel=[7, 8, 9, 10])
    per = xr.DataArray(["x", "x", "y", "y"], dims="voxel", coords={"voxel": [7, 8, 9, 10]})
    settings = {"encoder": RidgeEncoder([1.0]), "cv": 3, "inner_cv": 3, "metric": "r2"}
    found, turned = (select_features(labelled, responses, per=p, **settings) for p in (per, per[::-1]))
    np.testing.assert_array_equal(found.score, turned.score)
    with pytest.raises(DataError, match="missing"):
        select_features(labelled, responses, per=per.assign_coords(voxel=[1, 2, 3, 4]), **settings)
    # Neither is compared with responses that have no labels, but with each other.
    with pytest.raises(DataError, match="order"):
        select_features({"a": labelled["layer0"], "b": labelled["layer1"][::-1]}, y, **settings)
    with pytest.raises(ConfigError, match="distinct"):
        select_features({1: x["layer0"], "1": x["layer1"]}, y, **settings)
