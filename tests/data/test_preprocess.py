"""Z-scoring and averaging against loops and pandas that are too plain to be wrong."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from neuroenc._core.errors import DataError, NeuroencError
from neuroenc.data import _preprocess, average_repeats, make_responses, validate_responses, zscore


def by_hand(responses, keys, ddof=0):
    values = responses.values.astype(np.float64)
    labels = list(zip(*(responses[k].values.tolist() for k in keys)))
    result = np.full(values.shape, np.nan)
    for group in set(labels):
        rows = [n for n, label in enumerate(labels) if label == group]
        for v in range(values.shape[1]):
            column = [values[n, v] for n in rows if not np.isnan(values[n, v])]
            mean = sum(column) / len(column)
            sd = (sum((x - mean) ** 2 for x in column) / (len(column) - ddof)) ** 0.5
            for n in rows:
                result[n, v] = (values[n, v] - mean) / sd
    return result


def with_nan(responses):
    values = responses.values.copy()
    values[[2, 25, 26], [0, 0, 3]] = np.nan
    return responses.copy(data=values)


# ---------------------------------------------------------------- zscore


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize(("by", "keys"), [("session", ["session"]), ("run", ["session", "run"])])
@pytest.mark.parametrize("order", ["as recorded", "shuffled"])
def test_zscore_is_the_loop(responses, by, keys, ddof, order):
    r = with_nan(responses)
    if order == "shuffled":
        r = r[np.random.default_rng(0).permutation(60)]
    z = zscore(r, by=by, ddof=ddof)
    assert z.dtype == np.float32
    np.testing.assert_allclose(z.values, by_hand(r, keys, ddof), rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(np.isnan(z.values), np.isnan(r.values))


def test_zscore_labels(responses):
    z = zscore(responses, by="run", ddof=1)
    assert (z.attrs["zscored"], z.attrs["units"], z.attrs["zscored_n"]) == ("run", "z", 60)
    assert json.loads(z.attrs["provenance"])["steps"] == [{"step": "zscore", "by": "run", "ddof": 1}]
    assert responses.attrs["zscored"] == "none"
    assert z.coords.to_dataset().identical(responses.coords.to_dataset())
    assert z.attrs["affine"] == responses.attrs["affine"]
    validate_responses(z, zscored="run")


def test_zscore_leaves_its_input_alone(responses):
    before = responses.copy(deep=True)
    zscore(responses)
    assert responses.identical(before)


def test_sessions_of_two_subjects_stay_apart():
    r = make_responses([[1.0], [3.0], [100.0], [300.0]], stimulus=list("abab"), subject=["x", "x", "y", "y"], session=1)
    assert zscore(r).values.ravel().tolist() == [-1, 1, -1, 1]


def test_large_offsets_do_not_cost_the_signal():
    rng = np.random.default_rng(0)
    y = (1e6 + rng.standard_normal((400, 3)) * 10).astype(np.float32)
    r = make_responses(y, stimulus=[str(n) for n in range(400)], session=1)
    np.testing.assert_allclose(zscore(r).values, by_hand(r, ["session"]), atol=1e-5)


def test_constant_voxels_become_zero_and_are_counted(responses):
    values = responses.values.copy()
    values[:, 1] = 0.1
    values[:20, 4] = -7
    with pytest.warns(UserWarning, match=r"2 of 7 voxels are constant within at least one session \(1 in all of them"):
        z = zscore(responses.copy(data=values))
    assert (z.values[:, 1] == 0).all()
    assert (z.values[:20, 4] == 0).all()
    assert z.values[20:, 4].std() == pytest.approx(1, abs=1e-5)


def test_a_voxel_without_values_stays_nan_without_a_warning(responses):
    values = responses.values.copy()
    values[:, 2] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z = zscore(responses.copy(data=values))
    assert np.isnan(z.values[:, 2]).all()
    assert np.isfinite(np.delete(z.values, 2, axis=1)).all()


@pytest.mark.parametrize("by", ["session", "run"])
def test_dask_is_lazy_and_equal(responses, by):
    r = with_nan(responses)
    lazy = zscore(r.chunk({"presentation": 13, "voxel": 2}), by=by)
    assert hasattr(lazy.data, "dask")
    assert lazy.compute().identical(zscore(r, by=by))


def test_blocks_do_not_change_the_result(responses, monkeypatch):
    r = with_nan(responses)
    z, mean = zscore(r), average_repeats(zscore(r))
    for size in (1, 45, 10_000):
        monkeypatch.setattr(_preprocess, "_BLOCK", size)
        np.testing.assert_array_equal(zscore(r).values, z.values)
        np.testing.assert_array_equal(zscore(r.chunk({"voxel": 3})).values, z.values)
        np.testing.assert_array_equal(average_repeats(zscore(r)).values, mean.values)


@settings(max_examples=30, deadline=None)
@given(gain=st.floats(0.01, 100), offset=st.floats(-100, 100), seed=st.integers(0, 99))
def test_gain_and_offset_of_a_session_do_not_matter(gain, offset, seed):
    y = np.random.default_rng(seed).standard_normal((12, 2))
    session = np.repeat([1, 2], 6)
    ids = [str(n) for n in range(12)]
    other = np.where(session[:, None] == 1, y, gain * y + offset)
    plain, changed = (zscore(make_responses(v, stimulus=ids, session=session)).values for v in (y, other))
    np.testing.assert_allclose(plain, changed, atol=5e-3 * (1 + abs(offset) / gain / 100))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda r: r.drop_vars("session"), {}, "no 'session' coordinate.*assign_coords"),
        (lambda r: r[19:], {}, r"1 of 3 session groups have fewer than 2 presentations, first \['.*session 1'\]"),
        (lambda r: r[18:], {"ddof": 1}, "fewer than 3 presentations"),
        (lambda r: r, {"by": "sesion"}, "unknown grouping 'sesion'; did you mean 'session'"),
    ],
)
def test_zscore_refuses(responses, change, options, message):
    with pytest.raises(NeuroencError, match=message):
        zscore(change(responses), **options)


# ---------------------------------------------------------------- average_repeats


def test_average_is_the_groupby_of_pandas(responses):
    r = zscore(with_nan(responses))[np.random.default_rng(5).permutation(60)[:50]]
    y = average_repeats(r)
    frame = pd.DataFrame(r.values.astype(np.float64)).groupby(r.stimulus.values, sort=False)
    expected = frame.agg(lambda x: x.mean(skipna=False))
    assert y.stimulus.values.tolist() == expected.index.tolist()
    assert y.n_repeats.values.tolist() == frame.size().tolist()
    np.testing.assert_allclose(y.values, expected.to_numpy(), rtol=1e-6, atol=1e-7)
    assert y.dtype == np.float32
    assert y.n_repeats.dtype == np.int64
    validate_responses(y, zscored="session", allow_nan=True)


def test_one_missing_repeat_makes_the_mean_missing(responses):
    z = zscore(with_nan(responses))
    y = average_repeats(z)
    lost = set(z.stimulus.values[[2, 25]])
    assert set(y.stimulus.values[np.isnan(y.values[:, 0])]) == lost
    assert np.isnan(y.values).sum() == len(lost) + 1


def test_sums_are_float64():
    y = average_repeats(make_responses([[1e8], [1.0], [-1e8]], stimulus=["a"] * 3))
    assert y.values.item() == pytest.approx(1 / 3)


def test_labels_after_averaging(responses):
    y = average_repeats(zscore(responses))
    assert y.dims == ("stimulus", "voxel")
    assert str(y.subject.values) == "sub-01"
    for name in ("voxel", "i", "j", "k", "vertex", "hemi", "roi", "ncsnr"):
        assert y[name].variable.identical(responses[name].variable), name
    assert not {"session", "run", "repeat", "presentation"} & set(y.coords)
    assert y.attrs["zscored"] == "session"
    assert "zscored_n" not in y.attrs
    assert [x["step"] for x in json.loads(y.attrs["provenance"])["steps"]] == ["zscore", "average_repeats"]
    assert average_repeats(y) is y


def test_labels_that_are_the_same_in_all_repeats_stay():
    r = make_responses(np.eye(4), stimulus=list("abab"), session=[1, 2, 1, 2], run=[1, 1, 2, 2], zscored="session")
    y = average_repeats(r)
    assert y.session.values.tolist() == [1, 2]
    assert "run" not in y.coords


def test_average_dask_is_lazy_and_equal(responses):
    z = zscore(with_nan(responses))
    lazy = average_repeats(z.chunk({"presentation": 7, "voxel": 3}))
    assert hasattr(lazy.data, "dask")
    assert lazy.compute().identical(average_repeats(z))


def test_raw_sessions_are_warned_of(responses):
    with pytest.warns(UserWarning, match=r"averaging raw responses over sessions.*zscore\(responses, by='session'\)"):
        average_repeats(responses)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        average_repeats(responses[:20])
        average_repeats(zscore(responses))


def test_several_subjects_are_refused():
    r = make_responses(np.eye(2), stimulus=["a", "a"], subject=["s1", "s2"])
    with pytest.raises(DataError, match=r"2 subjects \(s1, s2\).*responses\.subject == name"):
        average_repeats(r)
