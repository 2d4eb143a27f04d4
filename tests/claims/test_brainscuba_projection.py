"""Claim (Luo et al., ICLR 2024, section 3.2): encoder weights lie off the manifold of natural-image embeddings, and the
softmax projection brings them onto it.

Seed and margins were fixed before the first run: the median cosine to the nearest natural image rises by at least 0.2,
and captions of projected weights name the planted family at least twice as often as captions of shuffled weights.
"""

import numpy as np
import pytest

from neuroenc import data
from neuroenc.captions import RetrievalDecoder, caption_voxels, shuffled_control
from neuroenc.data.simulate import simulate_cortex, simulate_world
from neuroenc.embedding import ImageEmbedder, TextEmbedder
from neuroenc.encoders import RidgeEncoder
from neuroenc.study._demo import caption_family

SEED = 11
COUNTS = {"FFA": 30, "EBA": 30, "PPA": 30, "VWFA": 30, "food": 30}


@pytest.fixture(scope="module")
def fitted():
    """Weights of selective voxels, a bank of unseen scenes, a decoder, and the planted families."""
    scenes, unseen = simulate_world(700, seed=SEED), simulate_world(600, seed=SEED + 1)
    subject = simulate_cortex(scenes, n_voxels=COUNTS, ncsnr=(0.8, 1.5), own=0.0, seed=SEED)[0]
    Y = data.average_repeats(data.zscore(subject.responses, by="session"))
    embedder = ImageEmbedder("world", progress=False)
    features = embedder.embed(scenes)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    encoder = RidgeEncoder().fit(data.match(unit, Y), Y)
    texts = [c for captions in unseen.captions for c in captions[:2]]
    decoder = RetrievalDecoder(texts, TextEmbedder("world", progress=False).embed(texts).values)
    return encoder.to_linear()[0], embedder.embed(unseen), decoder, subject.truth


def nearest_cosine(vectors, bank):
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    images = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    return (rows @ images.T).max(axis=1)


def test_projection_brings_weights_onto_the_image_manifold(fitted):
    coef, bank, decoder, _ = fitted
    found = caption_voxels(coef, bank, decoder, n_evidence=0, progress=False)
    before = np.median(nearest_cosine(coef.values.T, bank.values))
    after = np.median(nearest_cosine(found.projection["embedding"].values, bank.values))
    assert after - before >= 0.2, f"cosine to the nearest image: weights {before:.3f}, projected {after:.3f}"


def test_captions_of_projected_weights_beat_those_of_shuffled_weights(fitted):
    coef, bank, decoder, truth = fitted
    accuracy = {}
    for name, weights in (("fitted", coef), ("shuffled", shuffled_control(coef, SEED))):
        captions = caption_voxels(weights, bank, decoder, n_evidence=0, progress=False).captions
        families = caption_family(captions).reindex(coef["voxel"].values)
        planted = [{a, b} for a, b in zip(truth.family.values, truth.second_family.values)]
        accuracy[name] = np.mean([f in p for f, p in zip(families, planted)])
    assert accuracy["fitted"] >= 2 * accuracy["shuffled"], accuracy
