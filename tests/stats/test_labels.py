"""Labelled arrays are matched by label; arrays of every kind give the right numbers or are refused in words."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr
from scipy.spatial.distance import pdist

from neuroenc import stats
from neuroenc._core.errors import NeuroencError

N, V = 24, 5


def labelled(values, voxels=None, stimuli=None):
    return xr.DataArray(
        values,
        dims=("stimulus", "voxel"),
        coords={
            "stimulus": [f"s{k}" for k in range(N)] if stimuli is None else stimuli,
            "voxel": np.arange(10, 10 + V) if voxels is None else voxels,
        },
    )


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((N, V))
    return labelled(y), labelled(y + np.arange(V) * rng.standard_normal((N, V)))


CALLS = {
    "score": lambda y, p: stats.score(y, p),
    "bootstrap": lambda y, p: stats.Resampler(50).score(y, p).low,
    "difference": lambda y, p: stats.Resampler(50).difference(y, p, 2 * y + p).low,
    "difference, second": lambda y, p: stats.Resampler(50).difference(y, 2 * y, p).low,
    "regions": lambda y, p: stats.Resampler(50).regions(y, p, {"a": [0, 1]})["a"].low,
    "samples": lambda y, p: stats.Resampler(50).samples(y, p)[1],
    "permutation_test": lambda y, p: stats.permutation_test(y, p, n_permutations=30).statistic,
    "subjects": lambda y, p: stats.Resampler(50).subjects({"a": (y, p), "b": (y, p)}, statistic=None).estimate,
}


@pytest.mark.parametrize("name", CALLS)
def test_another_order_of_labels_changes_nothing_and_other_labels_are_refused(name, pair):
    y, p = pair
    call, rng = CALLS[name], np.random.default_rng(1)
    expected = call(y.values, p.values)
    for turned in (p[:, ::-1], p[rng.permutation(N)], p.T, p[:, ::-1].to_pandas()):
        mine = y.to_pandas() if isinstance(turned, pd.DataFrame) else y
        np.testing.assert_allclose(call(mine, turned), expected, rtol=1e-9)
    for other in (p.assign_coords(voxel=np.arange(V)), p.assign_coords(stimulus=[f"t{k}" for k in range(N)])):
        with pytest.raises(NeuroencError, match=r"name different (voxel|stimulus) labels"):
            call(y, other)


def test_ceilings_partitions_and_subjects_are_matched(pair):
    y, p = pair
    score = xr.DataArray(np.linspace(0.1, 0.5, V), dims="voxel", coords={"voxel": y.voxel})
    ceiling = xr.DataArray(np.linspace(0.6, 1.0, V), dims="voxel", coords={"voxel": y.voxel})
    unit = {"score_unit": "r", "ceiling_unit": "r"}
    np.testing.assert_allclose(stats.normalise(score, ceiling[::-1], **unit), score.values / ceiling.values)
    with pytest.raises(NeuroencError, match="voxel labels"):
        stats.normalise(score, ceiling.assign_coords(voxel=np.arange(V)), **unit)
    joint = stats.partition_variance({"a": score, "b": ceiling[::-1], ("a", "b"): ceiling})
    np.testing.assert_allclose(joint.parts["a",], 0.0)
    stimulus = np.repeat(np.arange(N), 2)
    single = labelled(y.values)[stimulus] + np.random.default_rng(2).standard_normal((2 * N, V))
    plain, turned = (
        stats.Resampler(50).normalised(y, p, x, stimulus, total="empirical").estimate for x in (single, single[:, ::-1])
    )
    np.testing.assert_allclose(turned, plain)
    # Stimuli of two subjects are drawn together by their labels, in whatever order they stand.
    whole = {"a": (y, p), "b": (y, p)}
    order = np.random.default_rng(3).permutation(N)
    mixed = {"a": (y, p), "b": (y[order], p[order])}
    one, two = (stats.Resampler(50).subjects(d, over="stimuli").standard_error for d in (whole, mixed))
    assert float(one) == pytest.approx(float(two))


def test_repeated_stimuli_in_another_order_are_refused(pair):
    y, p = pair
    names = np.repeat([f"s{k}" for k in range(N // 2)], 2)
    y, p = y.assign_coords(stimulus=names), p.assign_coords(stimulus=names)
    np.testing.assert_allclose(stats.score(y, p), stats.score(y.values, p.values))
    with pytest.raises(NeuroencError, match="several times"):
        stats.score(y, p[::-1])


def test_plain_and_labelled_arrays_meet_by_position(pair):
    y, p = pair
    np.testing.assert_array_equal(stats.score(y, p.values[:, ::-1]), stats.score(y.values, p.values[:, ::-1]))
    frame = pd.DataFrame(p.values)  # counted, not labelled
    np.testing.assert_array_equal(stats.score(y.to_pandas(), frame), stats.score(y.values, p.values))


@pytest.mark.parametrize("metric", ["r", "r2", "ev"])
@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e-20, 1e20, 1e200])
def test_sizes_far_from_one_change_nothing(metric, size, pair):
    y, p = (x.values for x in pair)
    expected = stats.score(y, p, metric)
    np.testing.assert_allclose(stats.score(size * y, size * p, metric), expected, rtol=1e-9)
    if metric == "r":
        np.testing.assert_allclose(stats.score(size * y, p, "r"), expected, rtol=1e-9)
    low = stats.Resampler(50).score(size * y, size * p, metric=metric).low
    np.testing.assert_allclose(low, stats.Resampler(50).score(y, p, metric=metric).low, rtol=1e-7)
    null = stats.permutation_test(size * y, size * p, metric=metric, n_permutations=20).p
    np.testing.assert_array_equal(null, stats.permutation_test(y, p, metric=metric, n_permutations=20).p)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_small_floats_stay_correlations(dtype):
    rng = np.random.default_rng(0)
    y = (rng.standard_normal((60, 3)) * (1e-30 if dtype == "float32" else 1e-3)).astype(dtype)
    assert stats.score(y, y) == pytest.approx(1.0)
    assert (np.abs(stats.score(y, y[::-1])) <= 1).all()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "bool"])
def test_whole_numbers_do_not_overflow(dtype):
    rng = np.random.default_rng(0)
    top = 2 if dtype == "bool" else np.iinfo(dtype).max
    a, b = (rng.integers(0, top, (50, 3)).astype(dtype) for _ in range(2))
    real = a.astype(float), b.astype(float)
    for metric in ("r", "r2", "ev"):
        np.testing.assert_allclose(stats.score(a, b, metric), stats.score(*real, metric))
    np.testing.assert_allclose(stats.Resampler(50).score(a, b).low, stats.Resampler(50).score(*real).low)
    for metric in ("euclidean", "cosine", "correlation"):
        np.testing.assert_allclose(stats.rdm(a, metric), stats.rdm(real[0], metric), equal_nan=True)
    ids = np.repeat(np.arange(25), 2)
    np.testing.assert_allclose(
        stats.ncsnr(a, ids, total="empirical"), stats.ncsnr(real[0], ids, total="empirical"), equal_nan=True
    )


def test_masked_values_are_missing_everywhere(pair):
    y, p = (x.values for x in pair)
    mask = np.zeros((N, V), dtype=bool)
    mask[[3, 4], 1] = True
    holed = np.where(mask, np.nan, y)
    masked = np.ma.MaskedArray(np.where(mask, 1e6, y), mask)
    for call in CALLS.values():
        np.testing.assert_allclose(call(masked, p), call(holed, p))
    q = np.ma.MaskedArray([0.01, 0.02, 0.5], [False, True, False])
    np.testing.assert_allclose(stats.fdr(q), stats.fdr([0.01, np.nan, 0.5]))
    ids = np.repeat(np.arange(N // 2), 2)
    np.testing.assert_allclose(
        stats.ncsnr(masked, ids, total="empirical", weighting="df"),
        stats.ncsnr(holed, ids, total="empirical", weighting="df"),
    )
    ceiling = np.ma.MaskedArray(np.full(V, 0.8), np.arange(V) == 2)
    found = stats.normalise(np.full(V, 0.4), ceiling, score_unit="r", ceiling_unit="r")
    assert np.isnan(found).tolist() == [False, False, True, False, False]
    with pytest.raises(NeuroencError, match="NaN"):
        stats.rdm(masked)


def test_tensors_of_every_kind():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, (30, 2)).astype(float) for _ in range(2))  # 16 bits hold them exactly
    expected = stats.score(a, b)
    for make in (lambda x: torch.tensor(x).bfloat16(), lambda x: torch.tensor(x, requires_grad=True)):
        np.testing.assert_allclose(stats.score(make(a), make(b)), expected)
        np.testing.assert_allclose(stats.rdm(make(a)), stats.rdm(a), equal_nan=True)
        assert np.isfinite(stats.Resampler(50).score(make(a), make(b)).low).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda y: scipy.sparse.csr_matrix(y), "sparse"),
        (lambda y: y.astype(complex), "complex"),
        (lambda y: y.astype(object), "object"),
        (lambda y: y.astype(str), "legal are real numbers"),
        (lambda y: [[1.0, 2.0], [3.0]], "different lengths"),
    ],
)
def test_what_holds_no_real_numbers_is_refused(make, message, pair):
    y = pair[0].values
    for call in (stats.score, lambda a, b: stats.Resampler().score(b, a), lambda a, b: stats.rdm(a)):
        with pytest.raises(NeuroencError, match=message):
            call(make(y), y)


@pytest.mark.parametrize("level", [0, 1, 2, -1, float("nan"), "0.95", None, True])
def test_levels_are_fractions(level, pair):
    y, p = (x.values for x in pair)
    for call in (
        lambda: stats.Resampler(confidence=level).score(y, p),
        lambda: stats.sample_interval(np.arange(50.0), 1.0, n_units=9, confidence=level),
        lambda: stats.Resampler(confidence=level).subjects({"a": (y, p), "b": (y, p)}),
        lambda: stats.Resampler(confidence=level).rdms(stats.rdm(y), stats.rdm(p), over="stimuli"),
    ):
        with pytest.raises(NeuroencError, match=r"confidence=.* fraction between 0 and 1"):
            call()


def test_repeats_without_noise_have_an_infinite_ratio_and_a_ceiling_of_one():
    rng = np.random.default_rng(6)
    ids = np.repeat(np.arange(100), 3)
    y = np.repeat(rng.standard_normal((100, 2)), 3, axis=0)
    y = (y - y.mean(0)) / y.std(0)
    for values in (y, y.astype(np.float32), 1e-30 * y, y + 1e3):
        scale = {"total": "empirical"} if np.median(values.var(axis=0)) < 0.5 else {}
        assert np.isposinf(stats.ncsnr(values, ids, **scale)).all()
    np.testing.assert_allclose(stats.Resampler(2).ceiling(y, ids, unit="r").estimate, 1.0)
    noisy = y + 1e-6 * rng.standard_normal(y.shape)  # little noise is noise
    assert np.isfinite(stats.ncsnr(noisy, ids)).all()


@pytest.mark.parametrize("metric", ["euclidean", "mahalanobis", "crossnobis"])
def test_distances_do_not_depend_on_an_offset(metric):
    rng = np.random.default_rng(7)
    x = rng.standard_normal((8, 30))
    settings = {"precision": np.ones(30)} if metric == "mahalanobis" else {}
    if metric == "crossnobis":
        settings = {"folds": (np.tile(np.arange(4), 2), np.repeat([0, 1], 4))}
    shifted = x + 1e7
    np.testing.assert_allclose(
        stats.rdm(shifted, metric, **settings), stats.rdm(shifted - 1e7, metric, **settings), rtol=1e-6, atol=1e-9
    )
    if metric == "euclidean":
        np.testing.assert_allclose(stats.rdm(shifted, metric), pdist(shifted, "sqeuclidean") / 30, rtol=1e-6)


def test_memory_as_everywhere_else(pair):
    y, p = (x.values for x in pair)
    np.testing.assert_array_equal(stats.score(y, p, max_memory="1GB"), stats.score(y, p))
    ids = np.repeat(np.arange(N // 2), 2)
    assert len(stats.ncsnr(y, ids, total="empirical", max_memory="10 MB")) == V
    assert stats.permutation_test(y, p, n_permutations=9, max_memory="1MB").p.shape == (V,)
    for wrong in ("1.2.3GB", "GB", -1, float("nan")):
        with pytest.raises(NeuroencError, match="max_memory"):
            stats.score(y, p, max_memory=wrong)


def test_too_little_data_is_said(pair):
    y, p = (x.values for x in pair)
    with pytest.raises(NeuroencError, match="1 sample"):
        stats.score(y[:1], p[:1])
    assert np.isnan(stats.score(np.full_like(y, np.nan), p)).all()
    assert np.isnan(stats.score(np.ones_like(y), p)).all()
    with pytest.raises(NeuroencError, match="n_permutations=0"):
        stats.permutation_test(y, p, n_permutations=0)
    with pytest.raises(NeuroencError, match="n_bootstraps=0"):
        stats.Resampler(0)


RDMS = {
    "compare_rdms": lambda a, b: stats.compare_rdms(a, b),
    "rdms": lambda a, b: stats.Resampler(30).rdms(a, b, over="stimuli").low,
    "rdm_ceiling": lambda a, b: stats.rdm_ceiling([a, b]).lower_subject,
}


@pytest.mark.parametrize("name", RDMS)
def test_squares_of_dissimilarities_are_matched_by_condition(name):
    rng = np.random.default_rng(0)
    truth = rng.random((9, 4))
    names = [f"c{k}" for k in range(9)]
    squares = [stats.square_rdm(stats.rdm(truth + s * rng.random((9, 4)), "euclidean")) for s in (0.1, 0.5)]
    a, b = (pd.DataFrame(x, names, names) for x in squares)
    call, order = RDMS[name], rng.permutation(9)
    expected = call(*squares) if name != "rdm_ceiling" else call(*map(stats.square_rdm, squares))
    for turned in (b.iloc[order, order], b.iloc[order], b.iloc[:, ::-1]):
        np.testing.assert_allclose(call(a, turned), expected, rtol=1e-9)
    as_array = [
        xr.DataArray(x, dims=("condition", "other"), coords={"condition": x.index, "other": x.columns.values})
        for x in (a, b.iloc[order, order])
    ]
    np.testing.assert_allclose(call(*as_array), expected, rtol=1e-9)
    with pytest.raises(NeuroencError, match="different condition labels"):
        call(a, b.rename(index={"c3": "x"}, columns={"c3": "x"}))
    with pytest.raises(NeuroencError, match="different condition labels"):
        call(a, b.rename(index={"c3": "x"}))


def test_labelled_masks_and_labels_of_samples_are_matched(pair):
    y, p = pair
    mask = xr.DataArray(np.arange(V) < 2, dims="voxel", coords={"voxel": y.voxel})
    plain = stats.Resampler(50).regions(y, p, {"a": [0, 1]})["a"].low
    for turned in (mask[::-1], mask.to_pandas()[::-1]):
        left = y if isinstance(turned, xr.DataArray) else y.to_pandas()
        right = p if isinstance(turned, xr.DataArray) else p.to_pandas()
        found = stats.Resampler(50).regions(left, right, {"a": turned})["a"].low
        np.testing.assert_allclose(found, plain)
    with pytest.raises(NeuroencError, match="voxel labels"):
        stats.Resampler(50).regions(y, p, {"a": mask.assign_coords(voxel=np.arange(V))})
    run = xr.DataArray(np.repeat(np.arange(6), N // 6), dims="stimulus", coords={"stimulus": y.stimulus})
    order = np.random.default_rng(1).permutation(N)
    calls = {
        "bootstrap": lambda g: stats.Resampler(50, groups=g).score(y, p).low,
        "samples": lambda g: stats.Resampler(50, groups=g).samples(y, p)[1],
        "units": lambda g: stats.Resampler(groups=g).units(y, p),
        "permutation": lambda g: stats.permutation_test(y, p, blocks=g, mode="within", n_permutations=20).p,
    }
    for name, call in calls.items():
        np.testing.assert_allclose(call(run[order]), call(run.values), err_msg=name)
        with pytest.raises(NeuroencError, match="stimulus labels"):
            call(run.assign_coords(stimulus=np.arange(N)))
    single = xr.concat([y, y + 0.1 * p], "stimulus").assign_coords(stimulus=np.arange(2 * N))
    ids = xr.DataArray(np.tile(np.arange(N), 2), dims="stimulus", coords={"stimulus": np.arange(2 * N)})
    order = np.random.default_rng(2).permutation(2 * N)
    np.testing.assert_allclose(
        stats.ncsnr(single, ids[order], total="empirical"), stats.ncsnr(single.values, ids.values, total="empirical")
    )
