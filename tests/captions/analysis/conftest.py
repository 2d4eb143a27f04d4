"""Captions of a simulated cortex from its planted truth, and an encoder fitted to it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neuroenc.data import average_repeats, simulate_cortex, simulate_world, zscore

ROI_VOXELS = {"FFA": 60, "EBA": 60, "PPA": 60, "VWFA": 40, "food": 50}


@pytest.fixture(scope="session")
def world():
    return simulate_world(900, seed=11)


@pytest.fixture(scope="session")
def subject(world):
    return simulate_cortex(
        world, n_voxels=ROI_VOXELS, n_sessions=3, ncsnr=(0.6, 1.5), mixed_share=0.0, own=0.0, seed=5
    )[0]


@pytest.fixture(scope="session")
def truthful(world, subject):
    """Three captions a voxel, of the images that drive it most without noise."""
    signal, truth = subject.truth["signal"].values, subject.truth
    rng = np.random.default_rng(0)
    rows = []
    for v in range(signal.shape[1]):
        for rank, at in enumerate(np.argsort(-signal[:, v])[rng.permutation(12)[:3]], 1):
            text = world.captions[at][int(rng.integers(4))]
            rows.append((v, rank, text, str(truth["roi"].values[v]), str(truth["hemi"].values[v])))
    frame = pd.DataFrame(rows, columns=["voxel", "rank", "caption", "roi", "hemi"])
    frame["vertex"] = truth["vertex"].values[frame["voxel"]]
    return frame


@pytest.fixture(scope="session")
def shuffled(truthful):
    """The same captions, dealt to voxels at random (all captions of a voxel move together)."""
    moved = truthful.copy()
    order = np.random.default_rng(3).permutation(truthful["voxel"].nunique())
    blocks = truthful["caption"].to_numpy().reshape(-1, 3)
    moved["caption"] = blocks[order].ravel()
    return moved


@pytest.fixture(scope="session")
def space(world, subject):
    """Weights in the world's CLIP, its images, and its text tower."""
    pytest.importorskip("torch")
    from neuroenc.captions import project
    from neuroenc.embedding import ImageEmbedder, TextEmbedder
    from neuroenc.encoders import RidgeEncoder

    images = ImageEmbedder("world", cache=False, progress=False).embed(world)
    unit = images / np.linalg.norm(images.values, axis=1, keepdims=True)
    responses = average_repeats(zscore(subject.responses, by="session")).sel(stimulus=world.ids)
    encoder = RidgeEncoder(n_jobs=1).fit(unit.values, responses)
    text = TextEmbedder("world", cache=False, progress=False)
    coef, intercept = encoder.to_linear()
    projection = project(coef, images, intercept=intercept, progress=False)

    class Space:
        pass

    found = Space()
    found.images, found.coef, found.intercept, found.text = images, coef, intercept, text
    found.projection, found.encoder, found.unit = projection, encoder, unit
    return found
