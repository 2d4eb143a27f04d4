"""Spins and Moran randomisation: what they keep, what they leave out, and errors."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from neuroenc.stats import compare_maps, spatial_null


@pytest.fixture(scope="module")
def sphere():
    """Points spread evenly over both spheres (Fibonacci), the right one the mirror image of the left one."""
    k = np.arange(300) + 0.5
    z, turn = 1 - 2 * k / 300, np.pi * (1 + 5**0.5) * k
    left = 100 * np.stack([np.sqrt(1 - z**2) * np.cos(turn), np.sqrt(1 - z**2) * np.sin(turn), z], axis=1)
    return np.concatenate([left, left * [-1, 1, 1]]), np.repeat(["L", "R"], 300)


def test_spins_are_rotations_mirrored_between_hemispheres(sphere):
    xyz, hemi = sphere
    # Coordinates as maps: null maps of three coordinates together are the turned places.
    spun = spatial_null(xyz.T, xyz, hemi, n=5, seed=1)
    assert spun.shape == (5, 3, 600)
    for maps in spun:
        left, right = maps[:, :300], maps[:, 300:]
        np.testing.assert_allclose(left * np.array([[-1], [1], [1]]), right)
        turn = np.linalg.lstsq(xyz[:300], left.T, rcond=None)[0]
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=0.05)
    assert np.ptp(spun[:, 0, 0]) > 1


def test_the_medial_wall_turns_along(sphere):
    xyz, hemi = sphere
    x, wall = xyz[:, 1].copy(), np.abs(xyz[:, 0]) > 80
    x[wall] = np.nan
    spun = spatial_null(x, xyz, hemi, n=20)
    assert np.isnan(spun).mean() == pytest.approx(wall.mean(), abs=0.05)
    # Left out of the list, or listed as NaN.
    absent = spatial_null(x[~wall], xyz[~wall], hemi[~wall], n=20, min_overlap=0)
    assert np.isnan(absent).mean() > 0.05
    assert set(np.unique(absent[np.isfinite(absent)])) <= set(x[~wall])


def test_parcels_are_used_once(sphere):
    xyz, _ = sphere
    parcels, x = xyz[:300:6], np.arange(50.0)
    once = spatial_null(x, parcels, n=10, assign="unique")
    assert all(np.array_equal(np.sort(m), x) for m in once)
    assert any(len(set(m)) < 50 for m in spatial_null(x, parcels, n=10))


def test_moran_keeps_mean_variance_and_differences_of_neighbours(sphere, rng):
    xyz, hemi = sphere
    edges = np.stack([np.arange(599), np.arange(1, 600)], axis=1)
    x = np.cumsum(rng.standard_normal(600))
    x[100] = np.nan
    null = spatial_null(x, xyz, hemi, kind="moran", edges=edges, n=4)
    assert np.isnan(null[:, 100]).all()
    np.testing.assert_allclose(np.nanmean(null, axis=1), np.nanmean(x))
    np.testing.assert_allclose(np.nanstd(null, axis=1), np.nanstd(x))
    rough = [np.nansum(np.diff(m) ** 2) for m in (x, *null)]
    np.testing.assert_allclose(rough, rough[0])
    assert np.abs(np.corrcoef(np.delete(null, 100, axis=1))[np.triu_indices(4, 1)]).max() < 0.9
    shuffled = spatial_null(x, xyz, kind="permutation", n=2)
    np.testing.assert_array_equal(np.sort(shuffled), np.sort(np.stack([x, x])))


def test_comparisons_match_labels_and_batches(sphere, rng):
    xyz, hemi = sphere
    a, b = (rng.standard_normal((2, 600)) @ np.exp(-((xyz[:, None] - xyz[None]) ** 2).sum(-1) / 2000) for _ in "ab")
    b[:, 5] = np.nan
    known = np.arange(600) != 5
    together = compare_maps(a, b, xyz, hemi, n=50)
    for k in range(2):
        alone = compare_maps(a[k], b[k], xyz, hemi, n=50)
        np.testing.assert_allclose(alone.null, together.null[:, k])
        assert (alone.r, alone.p, alone.n_places) == pytest.approx((together.r[k], together.p[k], 599))
        assert alone.r == pytest.approx(np.corrcoef(a[k, known], b[k, known])[0, 1])
        assert alone.p == (1 + (np.abs(alone.null) >= abs(alone.r)).sum()) / 51
    coords = {"vertex": ("voxel", np.arange(600) % 300), "hemi": ("voxel", hemi)}
    one, two = (xr.DataArray(x[0], dims="voxel", coords=coords) for x in (a, b))
    labelled = compare_maps(one, two[rng.permutation(600)], xyz, n=50)
    np.testing.assert_array_equal(labelled.null, compare_maps(a[0], b[0], xyz, hemi, n=50).null)
    ranks = compare_maps(a[0], b[0], null="permutation", method="spearman", n=9)
    assert ranks.r == pytest.approx(scipy.stats.spearmanr(a[0, known], b[0, known]).statistic, abs=2e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, s: compare_maps(x, x), "coordinates"),
        (lambda x, s: compare_maps(x, x[:-1], s), "a has 300 places"),
        (lambda x, s: spatial_null(x, s[:9]), r"legal is \(300, 3\)"),
        (lambda x, s: spatial_null(x, s, ["X"] * 300), "legal is 'L' or 'R'"),
        (lambda x, s: spatial_null(x, s, kind="spins"), "did you mean 'spin'"),
        (lambda x, s: spatial_null(np.where(s[:, 2] > 90, x, np.nan), s, n=99), "kind='moran'"),
        (lambda x, s: spatial_null(np.ones(6000), np.tile(s, (20, 1)), kind="moran"), "at most 5000"),
        (lambda x, s: spatial_null(x, s * np.linspace(0.1, 1, 300)[:, None]), "do not lie on a sphere"),
        (lambda x, s: spatial_null(np.ones(3000), np.tile(s, (10, 1)), assign="unique"), "means over parcels"),
    ],
)
def test_errors_say_what_to_do(sphere, call, message):
    with pytest.raises(ValueError, match=message):
        call(np.arange(300.0), sphere[0][:300])
