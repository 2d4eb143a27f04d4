"""No stimulus is ever on both sides, whatever the split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import (
    average_repeats,
    check_disjoint,
    folds,
    make_responses,
    shared_test,
    split_by,
    split_by_stimulus,
    zscore,
)


def ids(array):
    return array.stimulus.values.tolist()


def rows(array):
    return array.presentation.values.tolist()


@pytest.fixture
def blocks():
    """Three sessions; 'x' is in the first two, everything else in one."""
    return make_responses(
        np.arange(9.0)[:, None],
        stimulus=list("abxcdxefg"),
        session=[1, 1, 1, 2, 2, 2, 3, 3, 3],
        run=[1, 1, 2, 1, 1, 2, 1, 1, 2],
    )


SHOWN = st.lists(st.integers(0, 9), min_size=4, max_size=40).filter(lambda x: len(set(x)) > 2)


@settings(max_examples=60, deadline=None)
@given(shown=SHOWN, seed=st.integers(0, 2**31), share=st.floats(0.2, 0.8))
def test_no_stimulus_is_on_both_sides(shown, seed, share):
    r = make_responses(np.arange(len(shown))[:, None], stimulus=[f"s{n}" for n in shown])
    train, test = split_by_stimulus(r, test=share, seed=seed)
    assert not set(ids(train)) & set(ids(test))
    assert sorted(rows(train) + rows(test)) == list(range(len(shown)))
    assert rows(train) == sorted(rows(train))
    assert rows(test) == sorted(rows(test))
    assert len(set(ids(test))) == round(share * len(set(shown)))
    for half in (train, test):
        np.testing.assert_array_equal(half.values[:, 0], rows(half))


@settings(max_examples=40, deadline=None)
@given(shown=SHOWN, n_splits=st.integers(2, 3), seed=st.integers(0, 2**31))
def test_folds_over_stimuli_test_every_row_once(shown, n_splits, seed):
    names = np.array([f"s{n}" for n in shown])
    r = make_responses(np.zeros((len(shown), 1)), stimulus=names)
    pairs = folds(r, n_splits=n_splits, seed=seed)
    assert len(pairs) == n_splits
    assert sorted(np.concatenate([b for _, b in pairs]).tolist()) == list(range(len(shown)))
    for a, b in pairs:
        assert not set(names[a]) & set(names[b])
        assert sorted([*a, *b]) == list(range(len(shown)))


# ---------------------------------------------------------------- by stimulus


def test_number_share_and_ids(responses):
    for test, number in ((0.25, 5), (3, 3), (["s01", "s07"], 2), ("s04", 1), (np.array(["s09"]), 1)):
        _, part = split_by_stimulus(responses, test=test)
        assert len(set(ids(part))) == number
        assert len(part) == 3 * number
    assert set(ids(split_by_stimulus(responses, test=["s01", "s07"])[1])) == {"s01", "s07"}


def test_the_seed_decides(responses):
    first, again, other = (split_by_stimulus(responses, seed=s)[1] for s in (1, 1, 2))
    assert first.identical(again)
    assert set(ids(first)) != set(ids(other))
    shuffled = split_by_stimulus(responses[::-1], seed=1)[1]
    assert set(ids(shuffled)) == set(ids(first))


def test_the_stimulus_form_splits_alike(responses):
    y = average_repeats(zscore(responses))
    assert set(ids(split_by_stimulus(y, seed=4)[1])) == set(ids(split_by_stimulus(responses, seed=4)[1]))


@pytest.mark.parametrize("test", [0, 20, 21, -1, 1.5, 0.001, 0.999])
def test_illegal_amounts(responses, test):
    with pytest.raises(DataError, match=r"of 20 stimuli; legal: a share between 0 and 1, a whole number from 1 to 19"):
        split_by_stimulus(responses, test=test)


def test_unknown_ids_are_named(responses):
    with pytest.raises(DataError, match=r"1 of 2 test ids do not occur: unknown stimulus 's99'.*shared_test"):
        split_by_stimulus(responses, test=["s01", "s99"])
    with pytest.raises(DataError, match="0 rows into training and 60 into test"):
        split_by_stimulus(responses, test=[f"s{n:02d}" for n in range(20)])


def test_check_disjoint_names_the_shared(blocks):
    check_disjoint(blocks[:3], blocks[6:])
    with pytest.raises(DataError, match=r"1 of 3 test stimuli are also in training, first \['x'\].*Next step"):
        check_disjoint(blocks[:3], blocks[3:6])
    with pytest.raises(DataError, match=r"7 of 7 test stimuli .* first \['s0', 's1', 's2', 's3', 's4'\]"):
        check_disjoint([f"s{n}" for n in range(9)], [f"s{n}" for n in range(7)])


def test_shared_test_takes_what_was_seen(blocks):
    train, test = shared_test(blocks, ["x", "g", "never"])
    assert ids(test) == ["x", "x", "g"]
    assert ids(train) == list("abcdef")
    with pytest.raises(DataError, match=r"none of 1 shared ids \(first \['zz'\]\) occurs among 8 stimuli"):
        shared_test(blocks, ["zz"])
    with pytest.raises(DataError, match="0 rows into training and 9 into test"):
        shared_test(blocks, list("abcdefgx"))


# ---------------------------------------------------------------- by session and run


def test_split_by_and_what_happens_to_shared_stimuli(blocks):
    with pytest.raises(DataError, match=r"1 of 3 test stimuli are also in training, first \['x'\]"):
        split_by(blocks, "session", test=[2])
    train, test = split_by(blocks, "session", test=[2], shared="drop")
    assert rows(train) == [0, 1, 6, 7, 8]
    assert rows(test) == [3, 4, 5]
    train, test = split_by(blocks, "session", test=2, shared="keep")
    assert rows(train) == [0, 1, 2, 6, 7, 8]
    assert rows(test) == [3, 4, 5]
    assert rows(split_by(blocks, "session", test=3)[0]) == [0, 1, 2, 3, 4, 5]
    assert rows(split_by(blocks, "run", test=2)[1]) == [2, 5, 8]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: split_by(r, "session", test=9), r"unknown session"),
        (lambda r: split_by(r, "session", test=[1, 2, 3]), "0 rows into training and 9 into test"),
        (lambda r: split_by(r, "sesion", test=1), "did you mean 'session'"),
        (lambda r: split_by(r, "run", test=2, shared="dorp"), "unknown value of shared 'dorp'; did you mean 'drop'"),
        (lambda r: split_by(r.drop_vars("run"), "run", test=2), "no 'run' coordinate"),
        (lambda r: folds(r, "stimuli"), "unknown kind of folds 'stimuli'; did you mean 'stimulus'"),
        (lambda r: folds(r, n_splits=9), "9 folds by stimulus need 2 to as many groups; found 8"),
        (lambda r: folds(r, n_splits=1), "1 folds by stimulus"),
        (lambda r: folds(r[:3], "session"), "1 folds by session"),
        (lambda r: folds(r, "session"), r"first \['x'\]"),
        (lambda r: folds(r[[2, 5]], "session", shared="drop"), "no training rows are left beside session"),
    ],
)
def test_errors(blocks, call, message):
    with pytest.raises((ConfigError, DataError), match=message):
        call(blocks)


def test_folds_by_session_leave_one_out(blocks):
    pairs = folds(blocks, "session", shared="drop")
    assert [b.tolist() for _, b in pairs] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert [a.tolist() for a, _ in pairs] == [[3, 4, 6, 7, 8], [0, 1, 6, 7, 8], [0, 1, 2, 3, 4, 5]]
    kept = folds(blocks, "session", shared="keep")
    assert [len(a) for a, _ in kept] == [6, 6, 6]


def test_runs_count_anew_in_each_session(blocks):
    pairs = folds(blocks, "run", shared="drop")
    assert [b.tolist() for _, b in pairs] == [[0, 1], [2], [3, 4], [5], [6, 7], [8]]


def test_grouped_folds_keep_runs_whole_and_follow_the_seed(blocks):
    pairs = folds(blocks, "run", n_splits=3, seed=0, shared="keep")
    assert len(pairs) == 3
    assert sorted(np.concatenate([b for _, b in pairs]).tolist()) == list(range(9))
    for a, b in pairs:
        for whole in ([0, 1], [3, 4], [6, 7]):
            assert set(whole) <= set(b) or not set(whole) & set(b)
        assert sorted([*a, *b]) == list(range(9))
        assert list(a) == sorted(a)
    assert str(pairs) == str(folds(blocks, "run", n_splits=3, seed=0, shared="keep"))
    assert len({str(folds(blocks, "run", n_splits=3, seed=s, shared="keep")) for s in range(5)}) > 1


def test_folds_by_stimulus_default_and_seed(responses):
    assert len(folds(responses)) == 5
    assert str(folds(responses, seed=1)) == str(folds(responses, seed=1)) != str(folds(responses, seed=2))
