"""The projection against its closed form, its limits, its ablations and its memory."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import project
from neuroenc.captions.projection._state import ProjectionState
from neuroenc.retrieval import Chunk


def closed_form(coef, bank, temperature, renormalise=True, decouple=True):
    w = np.asarray(coef, float).T
    w = w / np.linalg.norm(w, axis=1, keepdims=True)
    raw = np.asarray(bank, float)
    size = np.linalg.norm(raw, axis=1)
    m = raw / size[:, None]
    cosine = w @ m.T
    s = np.exp((cosine - cosine.max(1, keepdims=True)) / temperature)
    s /= s.sum(1, keepdims=True)
    norm, mean = s @ size, s @ m
    direction = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    if not decouple:
        mean = s @ raw
        norm, embedding = np.linalg.norm(mean, axis=1), mean
        direction = mean / norm[:, None]
    else:
        embedding = norm[:, None] * (direction if renormalise else mean)
    logs = np.log(s, out=np.zeros_like(s), where=s > 0)
    return {
        "embedding": embedding,
        "norm": norm,
        "cosine_before_after": (w * direction).sum(1),
        "effective_images": np.exp(-(s * logs).sum(1)),
        "nearest": cosine.argmax(1),
        "nearest_cosine": cosine.max(1),
    }


def make(rng, n=700, d=12, v=9):
    bank = (rng.standard_normal((n, d)) + 0.5) * rng.uniform(5, 12, (n, 1))
    return rng.standard_normal((d, v)), bank


@pytest.mark.parametrize("temperature", [1 / 300, 1 / 150, 0.1, 1.0])
@pytest.mark.parametrize("options", [{}, {"renormalise": False}, {"decouple": False}])
def test_equals_closed_form(rng, temperature, options):
    coef, bank = make(rng)
    want = closed_form(coef, bank, temperature, **options)
    for dtype, tolerance in (("float64", 1e-9), (None, 5e-6)):
        got = project(coef, bank, temperature=temperature, dtype=dtype, progress=False, **options)
        for name in ("embedding", "norm", "cosine_before_after", "effective_images"):
            scale = np.abs(want[name]).max()
            np.testing.assert_allclose(got[name], want[name], atol=tolerance * scale, rtol=0, err_msg=name)
        np.testing.assert_allclose(got["nearest_cosine"], want["nearest_cosine"], atol=1e-7)
        assert got["nearest_image"].values.tolist() == [str(i) for i in want["nearest"]]
        assert got["embedding"].dtype == (np.float64 if dtype else np.float32)


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 299), max_size=8),
    temperature=st.sampled_from([1 / 500, 1 / 150, 0.2]),
    memory=st.integers(100_000, 50_000_000),
    precision=st.sampled_from([("float32", 1e-5), ("float64", 1e-11)]),
    seed=st.integers(0, 1000),
)
def test_result_is_independent_of_chunks_and_memory(cuts, temperature, memory, precision, seed):
    dtype, tolerance = precision
    rng = np.random.default_rng(seed)
    coef, bank = make(rng, n=300)
    bank = bank.astype(np.float32)
    bank[150:] = bank[rng.integers(0, 150, 150)]  # exact duplicates: the nearest image is the lowest
    edges = [0, *sorted(set(cuts)), 300]
    whole = project(coef, bank, temperature=temperature, dtype=dtype, progress=False)
    shards = [bank[a:b] for a, b in pairwise(edges)]
    pieces = project(coef, shards, temperature=temperature, dtype=dtype, max_memory=memory, progress=False)
    for name in ("embedding", "norm", "effective_images"):
        scale = float(np.abs(whole[name]).max())
        np.testing.assert_allclose(pieces[name], whole[name], atol=tolerance * scale, rtol=0, err_msg=name)
    np.testing.assert_array_equal(pieces["nearest_image"], whole["nearest_image"])
    np.testing.assert_array_equal(pieces["nearest_cosine"], whole["nearest_cosine"])
    assert pieces.attrs["bank_hash"] == whole.attrs["bank_hash"]
    assert (whole["nearest_image"].astype(int) < 150).all()


def states(rng, sizes, order=None, **kwargs):
    coef, bank = make(rng, n=sum(sizes))
    unit = (coef / np.linalg.norm(coef, axis=0)).T
    out, start = [], 0
    for size in sizes:
        state = ProjectionState(unit, **kwargs)
        if size:
            state.update(Chunk(start, bank[start : start + size], None), block=4)
        out.append(state)
        start += size
    return out, coef, bank


def check_equal(a, b, tolerance=1e-12):
    for name, value in a.finish().items():
        np.testing.assert_allclose(value, b.finish()[name], rtol=tolerance, atol=tolerance, err_msg=name)
    np.testing.assert_array_equal(a.nearest, b.nearest)
    np.testing.assert_array_equal(a.nearest_cosine, b.nearest_cosine)
    np.testing.assert_array_equal(a.nearest_norm, b.nearest_norm)
    assert a.count == b.count


def test_merging_is_associative_commutative_and_has_an_identity(rng):
    (a, b, c, empty), coef, bank = states(rng, [100, 1, 250, 0], temperature=1 / 150, dtype="float64")
    before = a.vectors.copy()
    left = a.merge(b).merge(c)
    check_equal(left, a.merge(b.merge(c)))
    check_equal(left, c.merge(a).merge(b))
    check_equal(a, a.merge(empty))
    check_equal(a, empty.merge(a))
    np.testing.assert_array_equal(a.vectors, before)
    whole = closed_form(coef, bank, 1 / 150)
    got = left.finish()
    np.testing.assert_allclose(got["norm"], whole["norm"], rtol=1e-10)
    np.testing.assert_allclose(got["effective_images"], whole["effective_images"], rtol=1e-8)
    np.testing.assert_array_equal(left.nearest, whole["nearest"])


def test_merge_refuses_other_weights_or_temperature(rng):
    (a,), _, _ = states(rng, [5], temperature=0.1)
    with pytest.raises(DataError, match="equal weights"):
        a.merge(ProjectionState(-a.weights, 0.1))
    with pytest.raises(DataError, match="equal weights"):
        a.merge(ProjectionState(a.weights, 0.2))
    with pytest.raises(DataError, match="0 rows"):
        ProjectionState(a.weights, 0.1).finish()


def test_cold_limit_is_the_nearest_image(rng):
    coef, bank = make(rng)
    got = project(coef, bank, temperature=1e-6, progress=False)
    nearest = got["nearest_image"].values.astype(int)
    np.testing.assert_allclose(got["embedding"], bank[nearest], rtol=1e-5)
    np.testing.assert_allclose(got["effective_images"], 1, rtol=1e-5)
    np.testing.assert_allclose(got["cosine_before_after"], got["nearest_cosine"], rtol=1e-5)


def test_hot_limit_is_the_mean(rng):
    coef, bank = make(rng)
    got = project(coef, bank, temperature=1e6, progress=False)
    size = np.linalg.norm(bank, axis=1)
    mean = (bank / size[:, None]).mean(0)
    np.testing.assert_allclose(got["norm"], size.mean(), rtol=1e-5)
    np.testing.assert_allclose(got["effective_images"], len(bank), rtol=1e-5)
    np.testing.assert_allclose(got["embedding"][0], size.mean() * mean / np.linalg.norm(mean), rtol=1e-4)
    np.testing.assert_allclose(got["bank_direction"], mean, rtol=1e-4, atol=1e-6)


def test_ablations_differ_as_their_formulas(rng):
    coef, bank = make(rng)
    full, raw, flat = (
        project(coef, bank, temperature=0.05, progress=False, **o)
        for o in ({}, {"decouple": False}, {"renormalise": False})
    )
    length = np.linalg.norm(full["embedding"], axis=1)
    np.testing.assert_allclose(length, full["norm"], rtol=1e-5)
    # averaging vectors loses length to disagreement of directions; decoupling restores it
    assert (np.linalg.norm(raw["embedding"], axis=1) < length).all()
    assert (np.linalg.norm(flat["embedding"], axis=1) < length).all()
    np.testing.assert_allclose(flat["cosine_before_after"], full["cosine_before_after"], rtol=1e-5)


def test_scale_of_weights_and_order_of_voxels_do_not_matter(rng):
    coef, bank = make(rng)
    base = project(coef, bank, progress=False)
    scaled = project(coef * rng.uniform(1e-3, 1e3, coef.shape[1]), bank, progress=False)
    np.testing.assert_allclose(scaled["embedding"], base["embedding"], rtol=1e-4, atol=1e-5)
    order = rng.permutation(coef.shape[1])
    labelled = xr.DataArray(coef, dims=("feature", "voxel"), coords={"voxel": np.arange(9)})
    moved = project(labelled.isel(voxel=order), bank, progress=False)
    assert moved["voxel"].values.tolist() == order.tolist()
    np.testing.assert_allclose(moved.sel(voxel=np.arange(9))["embedding"], base["embedding"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalised", [True, False])
def test_predicted_responses_are_the_encoders(rng, normalised):
    coef, bank = make(rng)
    intercept = rng.standard_normal(9)
    got = project(coef, bank, intercept=intercept, features_normalised=normalised, progress=False)

    def predict(x):
        x = np.asarray(x, float)
        if normalised:
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return (x * coef.T).sum(1) + intercept

    nearest = got["nearest_image"].values.astype(int)
    np.testing.assert_allclose(got["nearest_predicted"], predict(bank[nearest]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["projected_predicted"], predict(got["embedding"]), rtol=1e-5, atol=1e-5)


def test_labels_provenance_and_netcdf(planted, tmp_path):
    out = project(planted, planted.bank, progress=False)
    for name in ("voxel", "roi", "i"):
        np.testing.assert_array_equal(out[name], planted.coef[name])
    assert out["nearest_image"].values[0].startswith("im")
    assert out.attrs["n_images"] == 1500
    record = json.loads(out.attrs["provenance"])
    assert record["bank_hash"] == out.attrs["bank_hash"]
    assert record["versions"]["neuroenc"]
    out.to_netcdf(tmp_path / "p.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "p.nc", engine="h5netcdf") as back:
        xr.testing.assert_allclose(back.load(), out)
    other = planted.bank.copy()
    other[3, 3] += 1
    assert project(planted, other, progress=False).attrs["bank_hash"] != out.attrs["bank_hash"]
    renamed = planted.bank.assign_coords(stimulus=planted.bank["stimulus"].values[::-1])
    assert project(planted, renamed, progress=False).attrs["bank_hash"] != out.attrs["bank_hash"]


def test_float16_memmap_larger_than_memory(rng, tmp_path, tracked):
    n, d = 200_000, 64
    bank = np.lib.format.open_memmap(tmp_path / "bank.npy", "w+", np.float16, (n, d))
    for a in range(0, n, 50_000):
        bank[a : a + 50_000] = rng.standard_normal((50_000, d)) * 9
    bank.flush()
    coef = rng.standard_normal((d, 20))
    project(coef, bank[:100], progress=False)
    with tracked() as peak:
        got = project(coef, tmp_path / "bank.npy", max_memory="12MB", progress=False)
    assert bank.nbytes > 25e6
    assert peak() < 14e6
    want = closed_form(coef[:, :3], bank, 1 / 150)
    np.testing.assert_allclose(got["embedding"][:3], want["embedding"], atol=2e-5 * want["norm"].max())


def test_resident_memory_does_not_grow_with_the_bank(rng, tmp_path):
    """Pages of a mapped file count as resident until unmapped, so this is seen only by the system."""
    n, d = 400_000, 64
    bank = np.lib.format.open_memmap(tmp_path / "bank.npy", "w+", np.float16, (n, d))
    for a in range(0, n, 50_000):
        bank[a : a + 50_000] = rng.standard_normal((50_000, d))
    del bank
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("resident memory is read from /proc, which is Linux")

    def kilobytes(name):
        return int(next(x for x in status.read_text().splitlines() if x.startswith(name)).split()[1])

    coef = rng.standard_normal((d, 20))
    project(coef, rng.standard_normal((20_000, d)), max_memory="12MB", progress=False)
    try:
        status.with_name("clear_refs").write_text("5")  # peak back to the present
    except OSError:
        pytest.skip("the peak of resident memory cannot be reset here")
    before = kilobytes("VmRSS")
    project(coef, tmp_path / "bank.npy", max_memory="12MB", progress=False)
    assert kilobytes("VmHWM") - before < 25_000  # the bank has 51,200


def test_stream_of_shards_with_ids(rng):
    coef, bank = make(rng)
    names = np.array([f"s{i}" for i in range(len(bank))])
    stream = ((bank[a : a + 90], names[a : a + 90]) for a in range(0, len(bank), 90))
    got = project(coef, stream, progress=False)
    want = project(coef, (bank, names), progress=False)
    np.testing.assert_array_equal(got["nearest_image"], want["nearest_image"])
    assert got.attrs["bank_hash"] == want.attrs["bank_hash"]
    with pytest.raises(DataError, match="read a stream once"):
        project(np.ones((12, 500)), iter([bank]), max_memory=10_000, progress=False)


def test_dead_voxels_are_reported_and_the_others_unharmed(rng):
    coef, bank = make(rng)
    want = project(coef, bank, progress=False)
    coef[:, 2], coef[4, 5] = 0, np.nan
    with pytest.warns(UserWarning, match="2 of 9 voxels have zero or NaN weights.*: 2, 5"):
        got = project(coef, bank, progress=False)
    alive = np.array([0, 1, 3, 4, 6, 7, 8])
    assert np.isnan(got["embedding"][[2, 5]]).all()
    assert got["nearest_image"].values[[2, 5]].tolist() == ["", ""]
    np.testing.assert_allclose(got["embedding"][alive], want["embedding"][alive], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*zero or NaN")
def test_no_voxels_at_all(rng):
    coef, bank = make(rng)
    assert project(coef[:, :0], bank, progress=False).sizes["voxel"] == 0
    assert np.isnan(project(coef * 0, bank, progress=False)["norm"]).all()


def test_errors(rng):
    coef, bank = make(rng)
    with pytest.raises(DataError, match=r"width 12.*or queries 13"):
        project(np.ones((13, 2)), bank, progress=False)
    broken = bank.copy()
    broken[4] = 0
    with pytest.raises(DataError, match=r"zero norm; the first is row 4 \(id '4'\)"):
        project(coef, broken, progress=False)
    broken[5, 0] = np.nan
    with pytest.raises(DataError, match="NaN or infinite values; the first is row 5"):
        project(coef, broken, progress=False)
    for temperature in (0, -1.0, np.inf, np.nan):
        with pytest.raises(ConfigError, match="temperature="):
            project(coef, bank, temperature=temperature, progress=False)
    with pytest.raises(ConfigError, match="dtype='float16'"):
        project(coef, bank, dtype="float16", progress=False)
    with pytest.raises(DataError, match="3 intercepts for 9 voxels"):
        project(coef, bank, intercept=np.zeros(3), progress=False)
    with pytest.raises(DataError, match="dims"):
        project(xr.DataArray(coef, dims=("feature", "vox")), bank, progress=False)
    with pytest.raises(DataError, match=r"str is neither weights"):
        project("ridge", bank, progress=False)
    with pytest.raises(DataError, match="0 rows"):
        project(coef, iter([]), progress=False)
