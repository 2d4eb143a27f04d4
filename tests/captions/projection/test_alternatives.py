"""Distances to natural images against brute force, and the contract that all projections share."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import RetrievalDecoder, project, project_weights
from neuroenc.captions.projection._project import METHODS, gather_rows, natural_neighbours, on_manifold
from neuroenc.retrieval import as_bank


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make(rng, n=500, d=12, v=9):
    bank = (rng.standard_normal((n, d)) + 0.5) * rng.uniform(5, 12, (n, 1))
    coef = xr.DataArray(
        rng.standard_normal((d, v)),
        dims=("feature", "voxel"),
        coords={"voxel": 10 + np.arange(v), "roi": ("voxel", ["FFA"] * v)},
    )
    return coef, rng.standard_normal(v), bank


def brute(rows, bank):
    gaps = np.linalg.norm(unit(rows)[:, None] - unit(bank)[None], axis=2)
    return gaps.min(axis=1), gaps.argmin(axis=1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("memory", [None, 200_000])
def test_distance_is_that_of_brute_force(rng, dtype, memory):
    _, _, bank = make(rng)
    bank = bank.astype(dtype)
    rows = rng.standard_normal((40, 12))
    want, at = brute(rows, bank)
    found = on_manifold(rows, bank, n_natural=len(bank), max_memory=memory)
    np.testing.assert_allclose(found["distance"], want, atol=1e-6)
    np.testing.assert_allclose(found["cosine"], 1 - want**2 / 2, atol=1e-6)
    assert found["nearest_image"].values.tolist() == at.astype(str).tolist()
    between = np.linalg.norm(unit(bank)[:, None] - unit(bank)[None], axis=2)
    np.fill_diagonal(between, np.inf)
    np.testing.assert_allclose(float(found["natural_distance"]), np.median(between.min(axis=1)), atol=1e-6)
    np.testing.assert_allclose(float(found["natural_distance_95"]), np.quantile(between.min(axis=1), 0.95), atol=1e-6)
    np.testing.assert_allclose(found["ratio"], want / np.median(between.min(axis=1)), rtol=1e-5)


def test_images_are_not_their_own_neighbours_and_copies_are(rng):
    bank = rng.standard_normal((30, 6))
    assert natural_neighbours(bank, n=30).max() < 0.999
    twice = np.concatenate([bank, bank])
    np.testing.assert_array_equal(natural_neighbours(twice, n=60), 1.0)


def test_natural_sample_follows_from_seed_and_not_from_shards(rng):
    bank = rng.standard_normal((900, 8)).astype(np.float32)
    whole = on_manifold(bank[:3], bank, n_natural=50, seed=3)
    parts = on_manifold(bank[:3], [bank[:100], bank[100:]], n_natural=50, seed=3, max_memory=100_000)
    xr.testing.assert_identical(whole, parts)
    assert float(on_manifold(bank[:3], bank, n_natural=50, seed=4)["natural_cosine"]) != float(whole["natural_cosine"])
    np.testing.assert_array_equal(whole["distance"], 0.0)


def test_rows_are_gathered_in_any_order(rng):
    bank = rng.standard_normal((200, 5))
    at = rng.integers(0, 200, 70)
    np.testing.assert_array_equal(gather_rows(as_bank([bank[:77], bank[77:]]), at, 60_000), bank[at])


def test_rows_without_a_direction_have_no_distance_and_labels_stay(rng):
    coef, _, bank = make(rng)
    rows = xr.DataArray(coef.values.T.copy(), dims=("voxel", "feature"), coords=coef.coords)
    rows[1], rows[2, 0] = 0.0, np.nan
    found = on_manifold(rows, bank)
    assert np.flatnonzero(np.isnan(found["distance"].values)).tolist() == [1, 2]
    assert found["nearest_image"].values[1] == ""
    assert found["roi"].values.tolist() == ["FFA"] * 9
    assert found["voxel"].values.tolist() == list(range(10, 19))
    xr.testing.assert_identical(on_manifold(rows.T, bank), found)


def test_a_stream_has_distances_but_no_natural_ones(rng):
    bank = rng.standard_normal((100, 4))
    found = on_manifold(bank[:5] + 0.1, iter([bank[:50], bank[50:]]), n_natural=0)
    np.testing.assert_allclose(found["distance"], brute(bank[:5] + 0.1, bank)[0], atol=1e-6)
    assert np.isnan(float(found["natural_distance"]))
    with pytest.raises(DataError, match="read again"):
        on_manifold(bank[:5], iter([bank]))
    with pytest.raises(DataError, match="1 image"):
        on_manifold(bank[:5], bank[:1])
    with pytest.raises(DataError, match="width"):
        on_manifold(bank[:5, :3], bank)
    with pytest.raises(ConfigError, match="n_natural"):
        on_manifold(bank[:5], bank, n_natural=-1)


def test_memory_does_not_grow_with_the_bank(tmp_path, tracked):
    rng = np.random.default_rng(0)
    peaks = []
    for n in (20_000, 80_000):
        np.save(tmp_path / f"{n}.npy", rng.standard_normal((n, 32), dtype=np.float32))
        with tracked() as peak:
            on_manifold(np.ones((4, 32)), tmp_path / f"{n}.npy", n_natural=100, max_memory="8MB")
        peaks.append(peak())
    assert peaks[1] < min(8e6, 1.5 * peaks[0]), peaks


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_contract(rng, method, normalised):
    coef, b, bank = make(rng)
    base = project(coef, bank, intercept=b, features_normalised=normalised, progress=False)
    out = project_weights(coef, bank, method, intercept=b, features_normalised=normalised, progress=False)
    assert set(base.variables) | {"distance", "natural_distance", "natural_max_predicted"} <= set(out.variables)
    assert out.attrs["method"] == method
    assert json.loads(out.attrs["provenance"])["method"].startswith(method)
    assert out["roi"].values.tolist() == ["FFA"] * 9
    assert out["embedding"].dtype == np.float32
    for name in ("nearest_cosine", "nearest_predicted", "bank_direction"):
        np.testing.assert_allclose(out[name].values, base[name].values, rtol=1e-6)
    np.testing.assert_array_equal(out["nearest_image"], base["nearest_image"])
    x = out["embedding"].values.astype(float)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), out["norm"], rtol=1e-5)
    seen = unit(x) if normalised else x
    np.testing.assert_allclose(out["projected_predicted"], (seen * coef.values.T).sum(axis=1) + b, rtol=1e-4, atol=1e-4)
    cosine = (unit(x) * unit(coef.values.T)).sum(axis=1)
    np.testing.assert_allclose(out["cosine_before_after"], cosine, atol=1e-5)
    np.testing.assert_allclose(out["distance"], brute(x, bank)[0], atol=5e-4)
    images = unit(bank) if normalised else bank
    np.testing.assert_allclose(out["natural_max_predicted"], (images @ coef.values + b).max(axis=0), rtol=1e-5)
    frame = RetrievalDecoder(["a", "b", "c"], np.eye(12)[:3]).decode(out, 2, coef=coef, intercept=b)
    assert len(frame) == 18
    assert np.isfinite(frame["predicted"]).all()


def test_softmax_is_project(rng):
    coef, b, bank = make(rng)
    settings = {"intercept": b, "temperature": 0.05, "renormalise": False, "dtype": "float64", "progress": False}
    want, got = project(coef, bank, **settings), project_weights(coef, bank, **settings)
    xr.testing.assert_identical(want.drop_attrs(), got[list(want.data_vars)].drop_attrs())
    for name in set(want.attrs) - {"provenance"}:
        assert got.attrs[name] == want.attrs[name]


def test_nearest_is_an_image_and_none_is_the_weights(rng):
    coef, _b, bank = make(rng)
    near = project_weights(coef, bank, "nearest", progress=False)
    best = (unit(bank) @ coef.values).argmax(axis=0)
    np.testing.assert_allclose(near["embedding"], bank[best], rtol=1e-6)
    assert near["nearest_image"].values.tolist() == best.astype(str).tolist()
    np.testing.assert_array_equal(near["distance"], 0.0)
    np.testing.assert_array_equal(near["effective_images"], 1.0)
    np.testing.assert_allclose(near["projected_predicted"], near["natural_max_predicted"], rtol=1e-6)
    raw = project_weights(coef, bank, "none", progress=False)
    mean = np.linalg.norm(bank, axis=1).mean()
    np.testing.assert_allclose(raw["embedding"], mean * unit(coef.values.T), rtol=1e-5)
    np.testing.assert_allclose(raw["projected_predicted"], np.linalg.norm(coef, axis=0), rtol=1e-5)
    assert "temperature" not in raw.attrs
    assert np.isnan(raw["effective_images"]).all()


def test_low_temperature_is_nearest_and_the_mean_has_a_norm_below_one(rng):
    coef, _, bank = make(rng)
    near = project_weights(coef, bank, "nearest", progress=False)
    cold = project_weights(coef, bank, temperature=1e-6, progress=False)
    np.testing.assert_allclose(cold["embedding"], near["embedding"], rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_voxels_do_not_know_each_other_and_bad_ones_are_nan(rng, method):
    coef, _, bank = make(rng)
    coef[:, 4] = 0.0
    with pytest.warns(UserWarning, match="1 of 9"):
        whole = project_weights(coef, bank, method, progress=False)
    order = rng.permutation(9)
    with pytest.warns(UserWarning, match="1 of 9"):
        mixed = project_weights(coef[:, order], bank, method, max_memory="2MB", progress=False)
    np.testing.assert_allclose(mixed["embedding"], whole["embedding"].values[order], rtol=1e-3, atol=1e-3)
    for name in ("embedding", "norm", "distance", "projected_predicted", "natural_max_predicted"):
        assert np.isnan(whole[name].values[4]).all(), name


def test_bad_settings_are_named(rng):
    coef, _, bank = make(rng)
    with pytest.raises(ConfigError, match="did you mean 'nearest'"):
        project_weights(coef, bank, "nearst")
    with pytest.raises(ConfigError, match="dtype"):
        project_weights(coef, bank, "nearest", dtype="float64")
    with pytest.raises(DataError, match="several times"):
        project_weights(coef, iter([bank]))
