"""Bootstrap over stimuli, subjects and both: loops, known variances, coverage, ids."""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc.stats import Resampler, score


def study(n_subjects=5, n=60, v=8, seed=0, spread=0.0, second=False):
    rng = np.random.default_rng(seed)
    data = {}
    for k in range(n_subjects):
        y = rng.standard_normal((n, v))
        gain = np.exp(spread * rng.standard_normal())
        parts = [y, gain * y + rng.standard_normal((n, v))]
        data[f"s{k}"] = (*parts, y + rng.standard_normal((n, v))) if second else tuple(parts)
    return data


def test_one_subject_over_stimuli_is_the_plain_bootstrap():
    data = study(1)
    y, yhat = data["s0"]
    found = Resampler(50, seed=3).subjects(data, over="stimuli", statistic=None)
    plain = Resampler(50, seed=3).score(y, yhat)
    for name in ("estimate", "standard_error", "low", "high"):
        np.testing.assert_allclose(getattr(found, name), getattr(plain, name), atol=1e-12)
    for statistic in ("median", "mean"):
        roi = Resampler(50, seed=3).regions(y, yhat, {"all": np.ones(8, bool)}, statistic=statistic)["all"]
        one = Resampler(50, seed=3).subjects(data, over="stimuli", statistic=statistic)
        assert float(one.low) == pytest.approx(float(roi.low))


def test_subjects_have_the_variance_of_a_mean():
    """Over subjects the bootstrap variance is that of a mean, with n and not n - 1 in it."""
    data = study(7, spread=1.0)
    found = Resampler(20_000).subjects(data, over="subjects", statistic="mean")
    own = np.array([score(*d).mean() for d in data.values()])
    np.testing.assert_allclose(found.subjects, own)
    assert float(found.standard_error) == pytest.approx(own.std() / np.sqrt(7), rel=0.03)


def test_both_by_a_loop_and_the_correction():
    data = study(4, second=True, spread=0.5)
    found = Resampler(40, seed=1, interval="percentile").subjects(data, over="both", metric="r2", statistic="mean")
    rng = np.random.default_rng(1)
    stimuli = [np.repeat(np.arange(60), np.bincount(rng.integers(0, 60, 60), minlength=60)) for _ in range(40)]
    rng = np.random.default_rng([1, 1])
    subjects = [rng.integers(0, 4, 4) for _ in range(40)]
    names = list(data)
    values = []
    for rows, drawn in zip(stimuli, subjects):
        of = [tuple(x[rows] for x in data[names[k]]) for k in drawn]
        values.append(np.mean([(score(y, a, "r2") - score(y, b, "r2")).mean() for y, a, b in of]))
    assert float(found.standard_error) == pytest.approx(np.std(values, ddof=1))
    assert float(found.low) == pytest.approx(np.quantile(values, 0.025))
    v = found.variance
    assert max(v["stimuli"], v["subjects"]) <= v["corrected"] <= max(v["both"], v["stimuli"], v["subjects"])


def test_ids_in_another_order_and_unequal_sets():
    data = study(3)
    ids = {k: np.array([f"image{i:02d}" for i in range(60)]) for k in data}
    plain = Resampler(40).subjects(data)
    mixed, mixed_ids = {}, {}
    for k, name in enumerate(data):
        order = np.random.default_rng(k).permutation(60)
        mixed[name], mixed_ids[name] = tuple(x[order] for x in data[name]), ids[name][order]
    for found in (
        Resampler(40).subjects(data, stimulus=ids),
        Resampler(40, n_jobs=2, max_memory=50_000).subjects(mixed, stimulus=mixed_ids),
    ):
        np.testing.assert_allclose(found.standard_error, plain.standard_error, atol=1e-12)
    short = {**data, "s2": tuple(x[:40] for x in data["s2"])}
    with pytest.raises(ValueError, match="different numbers of stimuli"):
        Resampler().subjects(short)
    assert np.isfinite(Resampler(40).subjects(short, stimulus={**ids, "s2": ids["s2"][:40]}).low)


def test_only_subjects_that_vary_widen_the_interval():
    same, apart = study(8, n=400, second=True), study(8, n=400, second=True, spread=1.0, seed=1)
    a, b = (Resampler(400).subjects(d, statistic="mean").variance for d in (same, apart))
    assert b["subjects"] > 20 * a["subjects"]
    assert b["stimuli"] < 3 * a["stimuli"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Resampler().subjects(study(1)), "use over='stimuli'"),
        (lambda: Resampler().subjects({}), "no subject"),
        (lambda: Resampler().subjects({**study(2), "x": study(1, second=True)["s0"]}), r"hold \[2, 3\] arrays"),
        (lambda: Resampler().subjects({**study(2), "x": study(1, v=3)["s0"]}, statistic=None), "corresponding voxels"),
        (lambda: Resampler().subjects(study(2), over="stimulus"), "did you mean 'stimuli'"),
        (lambda: Resampler().subjects(study(2), stimulus=[1, 2]), "one id for each"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
