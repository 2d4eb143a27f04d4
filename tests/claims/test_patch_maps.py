"""Claims about patch maps (UFO, 2025), on rendered scenes: they find objects, and sub-tokens find their borders.

Scenes of the simulated world, whose objects' positions and sizes are known (as squares). The world's CLIP, whose last
map has 2 x 2 places, embeds windows of half the picture around 8 x 8 cells. Voxels answer to the strength of a face,
body, word or food with noise of the same variance (four each), and ridge is fitted on embeddings of 500 whole scenes:
nothing teaches places. Sub-tokens learn from squares in 100 other scenes; 60 more are tested. Margins, fixed before:
AUC of at least .95 for voxels tuned to the object and .4 to .6 for others (in scenes without what those prefer);
intersection over union of at least .1 above bilinear interpolation with its best threshold.

Measured: AUC .88 for tuned voxels, .53 for others; overlap .49 with sub-tokens and .46 interpolated (.53 and .45 when
taught by 180 scenes and tested on 80). The first and the third claim fail here and are kept; on planted patches they
hold (``tests/encoders/readout/test_patch_map.py``).
"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

torch = pytest.importorskip("torch")

from neuroenc.data.simulate import simulate_world  # noqa: E402
from neuroenc.embedding import ImageEmbedder, embed_windows  # noqa: E402
from neuroenc.encoders import RidgeEncoder  # noqa: E402
from neuroenc.encoders.readout import PatchUpsampler, patch_map  # noqa: E402

pytestmark = pytest.mark.slow

FAMILIES, PER_FAMILY = ("face", "body", "word", "food"), 4
N_FIT, N_MASKS, N_TEST, GRID, SCALE = 500, 100, 60, 8, 4


def squares(table, grid):
    """Where each family's object is (scene, family, y, x)."""
    at = (np.arange(grid) + 0.5) / grid - 0.5
    found = np.zeros((len(table), len(FAMILIES), grid, grid), bool)
    for k, family in enumerate(FAMILIES):
        x, y, half = (table[f"{family}_{name}"].to_numpy()[:, None] for name in ("x", "y", "size"))
        across, down = np.abs(at - x) <= half / 2, np.abs(-at - y) <= half / 2
        found[:, k] = down[:, :, None] & across[:, None, :]
    return found


def overlap(found, mask):
    both, either, there = (found & mask).sum((2, 3)), (found | mask).sum((2, 3)), mask.any((2, 3))
    return float((both[there] / either[there]).mean())


@pytest.fixture(scope="module")
def measured():
    world = simulate_world(N_FIT + N_MASKS + N_TEST, seed=4242)
    embedder = ImageEmbedder("world", cache=False, progress=False)
    whole = embedder.embed(world.sel(world.ids[:N_FIT])).values
    tokens = embed_windows(embedder, world.sel(world.ids[N_FIT:]), grid=GRID).values
    whole, tokens = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (whole, tokens))
    of = np.repeat(np.arange(len(FAMILIES)), PER_FAMILY)
    responses = world.table[list(FAMILIES)].to_numpy()[:N_FIT, of]
    responses = (responses - responses.mean(0)) / responses.std(0)
    responses = responses + np.random.default_rng(0).standard_normal(responses.shape)
    encoder = RidgeEncoder().fit(whole, responses)
    fit, test = slice(0, N_MASKS), slice(N_MASKS, None)
    coarse, fine = (squares(world.table.iloc[N_FIT:], grid) for grid in (GRID, SCALE * GRID))
    maps = patch_map(encoder, tokens[test]).values
    own, other = [], []
    for n, k in np.argwhere(coarse[test].any((2, 3)) & ~coarse[test].all((2, 3))):
        mask = coarse[test][n, k]
        for v in range(len(of)):
            if of[v] == k:
                own.append(roc_auc_score(mask.ravel(), maps[n, v].ravel()))
            elif not coarse[test][n, of[v]].any():
                other.append(roc_auc_score(mask.ravel(), maps[n, v].ravel()))
    vectors = np.stack([encoder.coef_[:, of == k].mean(1) for k in range(len(FAMILIES))], 1)
    finer = PatchUpsampler(rank=16, weight_decay=0.01).fit(tokens[fit], vectors, fine[fit])
    smooth = torch.as_tensor(patch_map(vectors, tokens).values)
    smooth = torch.nn.functional.interpolate(smooth, scale_factor=SCALE, mode="bilinear").numpy()
    best = max(np.quantile(smooth[fit], np.linspace(0.5, 0.99, 30)), key=lambda x: overlap(smooth[fit] > x, fine[fit]))
    learned = patch_map(vectors, tokens[test], upsampler=finer).values
    return {
        "own": float(np.mean(own)),
        "other": float(np.mean(other)),
        "bilinear": overlap(smooth[test] > best, fine[test]),
        "sub-tokens": overlap(learned > 0, fine[test]),
    }


@pytest.mark.xfail(reason="AUC .88 with windows of the world's CLIP")
def test_maps_of_tuned_voxels_find_their_object(measured):
    assert measured["own"] >= 0.95, measured


def test_maps_of_other_voxels_do_not(measured):
    assert 0.4 <= measured["other"] <= 0.6, measured
    assert measured["own"] >= measured["other"] + 0.3, measured


@pytest.mark.xfail(reason="overlap .49 against .46")
def test_sub_tokens_find_borders_that_interpolation_does_not(measured):
    assert measured["sub-tokens"] >= measured["bilinear"] + 0.1, measured


def test_sub_tokens_are_better_than_interpolation(measured):
    assert measured["sub-tokens"] > measured["bilinear"], measured
