"""Group maps: TFCE against slow references, sign flips with clusters by hand, prevalence, labels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from neuroenc._core.errors import DataError
from neuroenc.stats import fdr, group_map, mesh_edges, prevalence, sign_flip_test, tfce


def by_thresholds(x, edges, extent, height):
    """The integral from one value that occurs to the next, clusters found anew at each."""
    out, power = np.zeros(x.shape), height + 1
    for sign in (1, -1):
        levels = np.unique(np.append(sign * x[sign * x > 0], 0))
        for low, high in itertools.pairwise(levels):
            on = sign * x >= high
            own = edges[on[edges].all(axis=1)]
            graph = coo_array((np.ones(len(own)), own.T), shape=(len(x), len(x)))
            label = connected_components(graph, directed=False)[1]
            out += sign * on * np.bincount(label)[label] ** extent * (high**power - low**power) / power
    return out


def grid_edges(shape):
    at = np.arange(np.prod(shape)).reshape(shape)
    pairs = [(at.take(range(n - 1), a), at.take(range(1, n), a)) for a, n in enumerate(shape)]
    return np.concatenate([np.stack([x.ravel(), y.ravel()], axis=1) for x, y in pairs])


@pytest.mark.parametrize(("extent", "height"), [(1.0, 2.0), (0.5, 2.0), (0.0, 1.0)])
def test_enhancement_is_the_integral(rng, extent, height):
    edges = mesh_edges(rng.integers(0, 50, (40, 3)))
    edges = edges[edges[:, 0] != edges[:, 1]]
    x = np.append(rng.standard_normal(48), [np.nan, 0.0])
    found = tfce(x, edges, extent=extent, height=height)
    expected = by_thresholds(np.nan_to_num(x), edges, extent, height)
    np.testing.assert_allclose(found, expected)
    assert (found[-2:] == 0).all()


def test_enhancement_is_nilearns(rng):
    calculate = pytest.importorskip("nilearn.mass_univariate._utils").calculate_tfce
    shape = (5, 6, 4)
    x = ndimage.gaussian_filter(rng.standard_normal(shape), 1.0)
    x *= 4 / np.abs(x).max()
    dh = 0.01
    theirs = calculate(x[..., None], ndimage.generate_binary_structure(3, 1), dh=dh)[..., 0] * dh
    ours = tfce(x.ravel(), grid_edges(shape), extent=0.5).reshape(shape)
    np.testing.assert_allclose(ours, theirs, atol=0.02 * np.abs(ours).max())


def test_ties_and_batches(rng):
    edges = grid_edges((5, 5))
    x = rng.integers(-2, 4, (6, 25)).astype(float)
    found = tfce(x, edges)
    for row, enhanced in zip(x, found):
        np.testing.assert_array_equal(tfce(row, edges), enhanced)
        np.testing.assert_allclose(enhanced, by_thresholds(row, edges, 1.0, 2.0))


def test_clusters_under_sign_flips_by_hand(rng):
    edges, x = grid_edges((4, 3)), rng.standard_normal((6, 12)) + 0.3
    found = sign_flip_test(x, statistic="tfce", edges=edges, n_permutations=63)
    null = []
    for signs in itertools.product([1, -1], repeat=6):
        t = scipy.stats.ttest_1samp(np.array(signs)[:, None] * x, 0).statistic
        null.append(np.abs(by_thresholds(t, edges, 1.0, 2.0)).max())
    np.testing.assert_allclose(found.null_max, null[1:])
    seen = np.abs(found.statistic)
    expected = [(1 + (found.null_max >= s * (1 - 1e-9)).sum()) / 64 for s in seen]
    np.testing.assert_allclose(found.p_fwe, expected)


def test_subjects_that_lack_a_voxel(rng):
    x = rng.standard_normal((7, 3)) + 0.5
    x[5:, 0] = np.nan
    x[2:, 1] = np.nan
    found = sign_flip_test(x, min_subjects=4, n_permutations=127)
    assert found.statistic[0] == pytest.approx(scipy.stats.ttest_1samp(x[:5, 0], 0).statistic)
    # Flips of the subjects that a voxel lacks change nothing of it: each pattern of the others occurs four times.
    assert found.p[0] == pytest.approx(sign_flip_test(x[:5, 0], n_permutations=31).p)
    assert np.isnan(found.p[1])
    assert np.isnan(sign_flip_test(x, n_permutations=127).p[:2]).all()


def test_prevalence_is_the_posterior_on_a_grid():
    gamma = np.linspace(0, 1, 20001)
    for k, n, alpha, power in [(0, 8, 0.05, 1.0), (5, 8, 0.05, 1.0), (8, 8, 0.01, 1.0), (3, 20, 0.05, 0.8)]:
        density = scipy.stats.binom.pmf(k, n, alpha + (power - alpha) * gamma)
        estimate, low, high, p = prevalence(k, n, alpha=alpha, power=power)
        assert float(estimate) == pytest.approx(gamma[density.argmax()], abs=1e-4)
        inside = (gamma >= low) & (gamma <= high)
        assert density[inside].sum() / density.sum() == pytest.approx(0.95, abs=1e-3)
        # No value outside is more likely than one inside.
        assert density[~inside].max(initial=0) <= density[inside].min() * (1 + 1e-2)
        assert float(p) == pytest.approx(scipy.stats.binomtest(k, n, alpha, alternative="greater").pvalue)


def test_a_group_map_keeps_labels_and_matches_p(rng):
    r = xr.DataArray(
        0.1 * rng.standard_normal((6, 20)) + 0.2 * (np.arange(20) < 8),
        dims=("subject", "voxel"),
        coords={"subject": list("abcdef"), "vertex": ("voxel", np.arange(20)), "hemi": ("voxel", ["L"] * 20)},
    )
    p = xr.where(r > 0.17, 0.001, 0.5)
    found = group_map(r, p=p, n_permutations=63)
    shuffled = group_map(r, p=p[:, rng.permutation(20)], n_permutations=63)
    xr.testing.assert_identical(found, shuffled)
    assert found["hemi"].values.tolist() == ["L"] * 20
    np.testing.assert_allclose(found["mean"], r.mean("subject"))
    np.testing.assert_array_equal(found["overlap"], (np.stack([fdr(x) for x in p.values]) <= 0.05).sum(axis=0))
    assert {"tfce", "p_tfce"}.isdisjoint(found)
    with pytest.raises(ValueError, match="different voxel labels"):
        group_map(r, p=p.assign_coords(vertex=("voxel", np.arange(1, 21))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sign_flip_test(np.ones((3, 2)), statistic="tfce"), "edges=mesh_edges"),
        (lambda: tfce([1.0, 2.0], [[0, 2]]), r"edges join 0\.\.2, and there are 2 values"),
        (lambda: mesh_edges([[0, 1]]), r"legal is \(face, 3\)"),
        (lambda: prevalence(9, 8), "of n = 8"),
        (lambda: prevalence(1, 8, power=0.01), "number above 0.05"),
        (lambda: group_map(np.full((3, 2), np.nan)), "none of 2 voxels is known in 3 subjects"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("count", [np.nan, 1.5, 9, -1])
def test_prevalence_of_counts_that_are_none(count):
    with pytest.raises(DataError, match="whole numbers of subjects, count from 0 to n"):
        prevalence([3, count], 8)
