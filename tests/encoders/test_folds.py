"""Folds that could not judge a penalty are refused, and groups are never ignored."""

import numpy as np
import pytest
import xarray as xr
from sklearn.model_selection import GroupKFold, KFold, ShuffleSplit

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders import BandedRidgeEncoder, RidgeEncoder
from neuroenc.encoders._folds import resolve_folds

GROUPS = np.repeat(np.arange(10), 3)


def folds(cv, groups=None, scoring="r2", coords=None, n=30):
    return resolve_folds(cv, n, coords or {}, groups, scoring)


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for p, q in zip(a, b) for x, y in zip(p, q))


def test_masks_are_positions():
    pairs = [(np.arange(30) >= 10, np.arange(30) < 10), (np.arange(30) < 20, np.arange(30) >= 20)]
    assert same(folds(pairs), folds([(np.arange(10, 30), np.arange(10)), (np.arange(20), np.arange(20, 30))]))
    assert same(folds([(list(a), list(b)) for a, b in pairs]), folds(pairs))


def test_a_number_of_folds_keeps_groups_together():
    expected = list(GroupKFold(5).split(np.zeros(30), groups=GROUPS))
    assert same(folds(5, GROUPS), expected)
    assert same(folds(5, xr.DataArray(GROUPS.astype(str), dims="row")), folds(5, GROUPS.astype(str)))
    assert all(len(np.intersect1d(GROUPS[a], GROUPS[b])) == 0 for a, b in folds(5, GROUPS.astype(object)))


@pytest.mark.parametrize(
    ("cv", "groups", "message"),
    [
        (30, None, "fold 0 leaves out 1 row of 30.*scoring='neg_mse'"),
        ([(np.arange(29), [29])], None, "leaves out 1 row"),
        ([(np.arange(30), np.arange(5))], None, "trains on 5 of the rows that it tests"),
        ([(np.arange(20), [20, 20, 21])], None, "twice"),
        ([(np.arange(20), [29, 30])], None, "position 30; there are 30 rows"),
        ([(np.arange(20), [-1, 21])], None, "position -1"),
        ([(np.arange(20), [20.5, 21])], None, "must be row positions"),
        ([(np.ones(29, bool), np.zeros(29, bool))], None, "mask of shape"),
        ([(np.arange(20), [])], None, "too few|dtype"),
        ([(np.arange(20),)], None, "not a pair"),
        ([], None, "no folds|cannot split"),
        (True, None, "cv=True is not legal"),
        (2.5, None, "cv=2.5 is not legal"),
        (11, GROUPS, "n_groups=10"),
        (GroupKFold(3), None, "cannot split 30 rows"),
        (KFold(5), np.arange(30) % 10, "groups on both sides"),
        (5, GROUPS[:29], "shape"),
        (5, np.where(GROUPS == 2, np.nan, GROUPS), "3 of 30 groups are missing"),
        (5, np.ma.masked_equal(GROUPS, 2), "missing"),
    ],
)
def test_folds_that_cannot_judge_are_refused(cv, groups, message):
    with pytest.raises((ConfigError, DataError), match=message):
        folds(cv, groups)


def test_single_rows_can_be_judged_by_squared_errors():
    assert len(folds(30, scoring="neg_mse")) == 30
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((20, 3)), rng.standard_normal((20, 2))
    assert np.unique(RidgeEncoder(cv=20, scoring="neg_mse").fit(X, Y).cv_scores_).size > 2
    for encoder in (RidgeEncoder(cv=20), BandedRidgeEncoder(cv=20, scoring="r")):
        with pytest.raises(ConfigError, match="1 row"):
            encoder.fit(X, Y)


def test_rows_may_be_tested_and_drawn_twice_over_folds():
    assert len(folds(ShuffleSplit(7, random_state=0))) == 7
    drawn = np.random.default_rng(0).integers(0, 20, 20)
    assert len(folds([(drawn, np.arange(20, 30))])[0][0]) == 20


def test_labelled_groups_must_list_the_stimuli_of_the_rows():
    ids = np.array([f"s{k}" for k in range(30)])
    labelled = xr.DataArray(GROUPS, dims="stimulus", coords={"stimulus": ids})
    assert len(folds(5, labelled, coords={"stimulus": ids})) == 5
    with pytest.raises(DataError, match="another order"):
        folds(5, labelled[::-1], coords={"stimulus": ids})


def test_one_run_cannot_be_left_out():
    with pytest.raises(ConfigError, match="all 30 rows are of one"):
        folds("run", coords={"run": np.ones(30)})
