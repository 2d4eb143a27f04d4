"""Patch maps against sums that are known, on planted patches, and finer than the grid of tokens.

Margins were fixed before looking: AUC of at least .95 for voxels tuned to the object, and .4 to .6 for others in
pictures without what those prefer; sub-tokens at least .1 in intersection over union above bilinear interpolation.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.metrics import roc_auc_score

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_responses
from neuroenc.encoders import ReadoutEncoder, RidgeEncoder
from neuroenc.encoders.readout import PatchUpsampler, patch_map


def overlap(found, mask):
    """Intersection over union, mean over pictures and objects that are there."""
    both, either = (found & mask).sum((2, 3)), (found | mask).sum((2, 3))
    there = mask.any((2, 3))
    return float((both[there] / either[there]).mean())


def patches(n, *, width=48, grid=7, n_objects=4, scale=4, seed=0):
    """Tokens of pictures in which each of a few objects is or is not, their masks on a finer grid, and their vectors.

    A token is noise, an object's vector by how much of the patch it covers, and for each of 16 positions within the
    patch a fixed rotation of that vector where the object covers it: tokens of networks say where in them things are.
    """
    # What the world is like does not change with the pictures that are drawn of it.
    world = np.random.default_rng(99)
    vectors = np.linalg.qr(world.standard_normal((width, n_objects)))[0].T
    turns = np.stack([np.linalg.qr(world.standard_normal((width, width)))[0] for _ in range(scale**2)])
    turned = np.einsum("kab,ob->oka", turns, vectors)
    rng = np.random.default_rng(seed)
    at = (np.arange(grid * scale) + 0.5) / (grid * scale)
    centre, radius = rng.uniform(0.2, 0.8, (n, n_objects, 2)), rng.uniform(0.12, 0.25, (n, n_objects, 1, 1))
    away = (at[:, None] - centre[..., 0, None, None]) ** 2 + (at - centre[..., 1, None, None]) ** 2
    masks = (away <= radius**2) & (rng.random((n, n_objects, 1, 1)) < 0.5)
    parts = masks.reshape(n, n_objects, grid, scale, grid, scale).transpose(0, 1, 2, 4, 3, 5)
    parts = parts.reshape(n, n_objects, grid, grid, scale**2)
    tokens = np.einsum("noyx,oa->nayx", parts.mean(-1), vectors) + 0.3 * np.einsum("noyxk,oka->nayx", parts, turned)
    tokens = tokens + 0.1 * rng.standard_normal(tokens.shape)
    return tokens.astype(np.float32), masks, vectors.T


@pytest.fixture(scope="module")
def world():
    return patches(300)


def test_maps_of_fitted_voxels_show_the_object_that_they_prefer(world):
    """Ridge on the mean token of noisy responses: no place was ever taught."""
    tokens, masks, _ = world
    rng = np.random.default_rng(1)
    responses = 10 * masks.mean((2, 3)) + 0.3 * rng.standard_normal((300, 4))
    encoder = RidgeEncoder().fit(tokens[:200].mean((2, 3)), responses[:200])
    grid = masks[200:].reshape(100, 4, 7, 4, 7, 4).mean((3, 5)) >= 0.5

    def areas(coef):
        """AUC of voxel v's map against object k, (picture, v, k); NaN where there is no k, or k is not all there is."""
        maps, found = patch_map(coef, tokens[200:]).values, np.full((100, 4, 4), np.nan)
        for n, v, k in np.ndindex(found.shape):
            if grid[n, k].any() and (v == k or not grid[n, v].any()):
                found[n, v, k] = roc_auc_score(grid[n, k].ravel(), maps[n, v].ravel())
        return found

    own = np.eye(4, dtype=bool)
    found = areas(encoder.coef_)
    assert np.nanmean(found[:, own]) >= 0.95, np.nanmean(found[:, own])
    assert 0.4 <= np.nanmean(found[:, ~own]) <= 0.6, np.nanmean(found[:, ~own])
    # Weights whose features are shuffled say nothing of places.
    lost = np.nanmean(areas(encoder.coef_[rng.permutation(48)])[:, own])
    assert 0.3 <= lost <= 0.7, lost


def test_sub_tokens_are_finer_than_interpolation(world):
    """On other pictures; the threshold of interpolated maps is the one that is best on the pictures of the fit."""
    tokens, masks, vectors = world
    fit, test = slice(0, 200), slice(200, None)
    finer = PatchUpsampler(steps=150).fit(tokens[fit], vectors, masks[fit])

    def bilinear(rows):
        coarse = torch.as_tensor(patch_map(vectors, tokens[rows]).values)
        return torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear").numpy()

    taught = bilinear(fit)
    levels = np.quantile(taught, np.linspace(0.8, 0.995, 12))
    best = max(levels, key=lambda level: overlap(taught > level, masks[fit]))
    interpolated = overlap(bilinear(test) > best, masks[test])
    learned = overlap(patch_map(vectors, tokens[test], upsampler=finer).values > 0, masks[test])
    assert learned >= interpolated + 0.1, (learned, interpolated)
    # Without its sub-tokens nothing is finer.
    finer._state["b"] = torch.zeros_like(finer._state["b"])
    assert overlap(patch_map(vectors, tokens[test], upsampler=finer).values > 0, masks[test]) < learned - 0.1


@pytest.fixture(scope="module")
def spatial():
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((150, 3, 4, 5)).astype(np.float32)
    responses = np.stack([maps[:, 0, 1, 2], maps[:, 1, 3, 0] - maps[:, 2, 3, 0]], 1) + 0.1 * rng.standard_normal(
        (150, 2)
    )
    return maps, make_responses(responses, stimulus=[f"s{k}" for k in range(150)], roi=["V1", "V2"])


@pytest.mark.parametrize("readout", ["linear", "pooled", "factorized", "gaussian", "lowrank"])
def test_maps_sum_to_the_prediction_of_linear_readouts(spatial, readout):
    maps, responses = spatial
    encoder = ReadoutEncoder(readout, max_epochs=3, standardise=readout != "gaussian").fit(maps, responses)
    found = patch_map(encoder, maps[:10])
    assert found.dims == ("stimulus", "voxel", "y", "x")
    assert found["roi"].values.tolist() == ["V1", "V2"]
    gap = np.asarray(encoder.predict(maps[:10])) - found.sum(["y", "x"]).values
    np.testing.assert_allclose(gap, np.broadcast_to(gap[0], gap.shape), atol=1e-4)


def test_maps_behind_a_core_are_those_that_each_task_reads(spatial):
    maps, responses = spatial
    how = {"core": "trunk", "core_options": {"width": 6, "conditioning": "affine+gate"}, "regions": "roi"}
    encoder = ReadoutEncoder("factorized", max_epochs=1, **how).fit(maps, responses)
    found = patch_map(encoder, maps[:10])
    gap = np.asarray(encoder.predict(maps[:10])) - found.sum(["y", "x"]).values
    np.testing.assert_allclose(gap, np.broadcast_to(gap[0], gap.shape), atol=1e-4)


def test_tokens_and_maps_give_the_same(spatial):
    maps, responses = spatial
    square = maps[..., :4]
    tokens = np.concatenate([np.ones((150, 1, 3)), square.reshape(150, 3, 16).transpose(0, 2, 1)], 1)
    as_maps = ReadoutEncoder("linear").fit(square, responses)
    as_tokens = ReadoutEncoder("linear").fit(tokens, responses)
    np.testing.assert_allclose(patch_map(as_tokens, tokens[:5]), patch_map(as_maps, square[:5]), atol=1e-4)


def test_phrases_keep_their_name_and_stimuli_theirs(spatial):
    maps = xr.DataArray(spatial[0][:2], dims=("stimulus", "channel", "y", "x"), coords={"stimulus": ["a", "b"]})
    phrases = xr.DataArray(np.eye(3)[:, :1], dims=("feature", "phrase"), coords={"phrase": ["a dog"]})
    found = patch_map(phrases, maps)
    assert found.dims == ("stimulus", "phrase", "y", "x")
    assert found["stimulus"].values.tolist() == ["a", "b"]
    np.testing.assert_allclose(found.sel(phrase="a dog"), spatial[0][:2, 0])


def test_what_does_not_fit_is_refused(spatial):
    maps, responses = spatial
    with pytest.raises(DataError, match="weights have 7 features; tokens have 3, whole maps 60"):
        patch_map(np.ones((7, 2)), maps)
    encoder = ReadoutEncoder("factorized", max_epochs=1).fit(maps, responses)
    with pytest.raises(ConfigError, match="as wide as a token"):
        patch_map(encoder, maps, upsampler=PatchUpsampler())
    with pytest.raises(ConfigError, match="not fitted"):
        patch_map(np.ones((3, 2)), maps, upsampler=PatchUpsampler())
    with pytest.raises(DataError, match="expected"):
        PatchUpsampler().fit(maps, np.ones((3, 2)), np.ones((150, 2, 4, 5)))
