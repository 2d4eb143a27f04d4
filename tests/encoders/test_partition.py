"""Variance partitioning of encoders: planted shares, noise, other implementations, labels, folds."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GroupKFold, KFold, cross_val_predict

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_responses
from neuroenc.encoders import RidgeEncoder, variance_partition
from neuroenc.encoders.linear._spaces import nested_gammas
from neuroenc.stats import score


def planted(n=600, v=6, seed=0, noise=0.5):
    """Spaces share some columns; a third of each voxel's variance is in a alone, in b alone, and in both."""
    rng = np.random.default_rng(seed)
    own_a, own_b, common = rng.standard_normal((3, n, 4))
    a = np.column_stack([own_a, common])
    b = np.column_stack([own_b, common @ np.linalg.qr(rng.standard_normal((4, 4)))[0]])

    def part(x):
        y = x @ rng.standard_normal((4, v))
        return y / y.std(axis=0)

    return a, b, part(own_a) + part(own_b) + part(common) + noise * rng.standard_normal((n, v))


def test_planted_shares_are_found():
    a, b, y = planted()
    # The smallest p of 200 resamples is about 0.01.
    out = variance_partition({"a": a, "b": b}, y, n_bootstraps=999)
    expected = 1 / 3.25
    np.testing.assert_allclose(out.share, expected, atol=0.09)
    assert abs(float(out.share.mean()) - expected) < 0.02
    np.testing.assert_allclose(out.share.sum("part"), out.score.sel(subset="a & b"), atol=1e-6)
    covered = (out.low <= expected) & (expected <= out.high)
    assert covered.mean() > 0.7
    assert (out.p <= 0.01).all()
    assert not out.overfitted.any()


def test_three_spaces_and_a_useless_one():
    a, b, y = planted(n=400, v=3)
    c = np.random.default_rng(9).standard_normal((400, 30))
    out = variance_partition({"a": a, "b": b, "c": c}, y, cv=3, n_bootstraps=100)
    assert out.sizes["part"] == 7
    useless = [p for p in out.coords["part"].values.tolist() if "c" in p.split(" & ")]
    assert float(abs(out.share.sel(part=useless)).max()) < 0.05
    np.testing.assert_allclose(out.share.sel(part=["a", "b", "a & b"]), 1 / 3.25, atol=0.12)


def test_scores_are_those_of_least_squares_by_hand():
    class Plain(LinearRegression):
        pass

    a, b, y = planted(n=200, v=2)
    folds = KFold(4)
    out = variance_partition({"a": a, "b": b}, y, encoder=Plain(), cv=folds, n_bootstraps=0)
    for name, x in (("a", a), ("b", b), ("a & b", np.column_stack([a, b]))):
        predicted = cross_val_predict(LinearRegression(), x, y, cv=folds)
        np.testing.assert_allclose(out.score.sel(subset=name), score(y, predicted, "r2"), atol=1e-5)
    assert "low" not in out


def test_noise_has_no_parts():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 300, 10))
    out = variance_partition({"a": a, "b": b}, rng.standard_normal((300, 150)), n_bootstraps=0)
    assert abs(float(out.share.sel(part=["a", "b"]).mean())) < 0.01


def test_joint_models_contain_their_parts():
    """One penalty for both loses where a small good space meets a large useless one; bands do not."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((120, 4)), 5 * rng.standard_normal((120, 400))
    y = a @ rng.standard_normal((4, 20)) + rng.standard_normal((120, 20))
    banded = variance_partition({"a": a, "b": b}, y, n_bootstraps=0, tolerance=0.05)
    plain = variance_partition({"a": a, "b": b}, y, encoder=RidgeEncoder(), n_bootstraps=0, tolerance=0.05)
    assert plain.overfitted.mean() > 0.8
    assert banded.overfitted.mean() < 0.2
    rows = nested_gammas(3, 4)
    assert len(rows) == 7
    np.testing.assert_allclose(rows.sum(axis=1), 1)


def test_labels_and_repeats_stay_together():
    a, b, y = planted(n=120, v=3)
    shown = np.repeat([f"s{i}" for i in range(120)], 2)
    x = np.repeat(np.arange(120), 2)
    rng = np.random.default_rng(1)
    Y = make_responses(y[x] + rng.standard_normal((240, 3)), stimulus=shown)
    A, B = a[x], b[x]
    out = variance_partition({"a": A, "b": B}, Y, n_bootstraps=50)
    assert out.voxel.values.tolist() == Y.voxel.values.tolist()
    by_group = variance_partition({"a": A, "b": B}, Y.values, groups=shown, cv=GroupKFold(5), n_bootstraps=50)
    np.testing.assert_allclose(out.share, by_group.share, atol=1e-6)
    np.testing.assert_allclose(out.low, by_group.low, atol=1e-6)


def test_blocks_of_voxels_do_not_matter():
    a, b, y = planted(n=100, v=5)
    one = variance_partition({"a": a, "b": b}, y, n_bootstraps=50)
    two = variance_partition({"a": a, "b": b}, y, n_bootstraps=50, max_memory=200_000)
    for name in ("share", "low", "high", "p"):
        np.testing.assert_allclose(one[name], two[name], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"metric": "r"}, ConfigError, "do not add up"),
        ({"features": {"a": np.ones((10, 2))}}, ConfigError, "legal are 2 to 3"),
        ({"features": {"a": np.ones((10, 2)), "b": np.ones((9, 2))}}, DataError, "spaces has shape"),
        ({"features": [np.ones((10, 2))]}, DataError, "must be a mapping"),
        ({"features": {"a": np.ones((10, 2)), "b": np.full((10, 2), np.nan)}}, DataError, "NaN"),
        ({"features": {"a & b": np.ones((10, 2)), "c": np.ones((10, 2))}}, ConfigError, "must not contain"),
    ],
)
def test_errors_say_what_to_do(change, error, message):
    given = {"features": {"a": np.ones((10, 2)), "b": np.ones((10, 2))}, **change}
    with pytest.raises(error, match=message):
        variance_partition(given.pop("features"), np.random.default_rng(0).random((10, 2)), **given)
