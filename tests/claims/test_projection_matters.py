"""Claim (Luo et al., ICLR 2024, section 3.2; asked for by its reviewers): the projection matters.

In the simulated cortex, whose planted families and members are known, weights of a ridge encoder are captioned by the
world's language model and by retrieval, without a projection, with the softmax projection at three temperatures, and
with its alternatives; shuffled weights are the negative control. Fixed before the first run, for voxels of both seeds:

1. Without projection the median distance to the nearest image is at least 1.5 natural distances; softmax at any of the
   three temperatures is at most 0.8 of that; softmax at 1/150 and nearest are within 1.2 natural ones.
2. Without projection the predicted response is above that of every natural image in at least 95 % of voxels.
3. With either decoder, softmax at 1/150 names the planted family, and the planted member, at least as often as none.
4. With the language model, which has seen images only, it names the family more often, by at least 0.05.
5. Nearest names the family within 0.1 of softmax at 1/150.
6. Shuffled weights at 1/150 name it at most half as often as fitted ones.

``pytest --slow -s`` prints the table.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neuroenc import data
from neuroenc.captions import (
    PrefixDecoder,
    RetrievalDecoder,
    project_weights,
    shuffled_control,
)
from neuroenc.captions.decoding import _prefix
from neuroenc.data.simulate import families_in_caption, names_member, simulate_cortex, simulate_world
from neuroenc.embedding import ImageEmbedder, TextEmbedder
from neuroenc.encoders import RidgeEncoder

pytestmark = pytest.mark.slow

SEEDS = (21, 22)
COUNTS = {"FFA": 30, "EBA": 30, "PPA": 30, "VWFA": 30, "food": 30}
WORLD = _prefix.__file__.rsplit("/", 1)[0] + "/weights/world"
DECODERS = ("language model", "retrieval")


def judged(captions, voxels, truth):
    """Whether the best caption of each voxel names a planted family, and a planted member."""
    best = captions[captions["rank"] == 1].set_index("voxel")["caption"].reindex(voxels).fillna("")
    family, member = [], []
    for caption, a, b, names in zip(best, truth.family.values, truth.second_family.values, truth.members.values):
        family.append(bool(families_in_caption(caption) & ({a, b} - {""})))
        member.append(any(names_member(caption, name) for name in names.split(";")))
    return np.array(family), np.array(member)


def measured(seed):
    """One row per projection, decoder and voxel."""
    scenes, unseen = simulate_world(900, seed=700 + seed), simulate_world(1500, seed=800 + seed)
    subject = simulate_cortex(scenes, n_voxels=COUNTS, ncsnr=(0.8, 1.5), own=0.0, seed=seed)[0]
    Y = data.average_repeats(data.zscore(subject.responses, by="session"))
    embedder = ImageEmbedder("world", progress=False)
    features = embedder.embed(scenes)
    encoder = RidgeEncoder().fit(data.match(features / np.linalg.norm(features, axis=1, keepdims=True), Y), Y)
    coef, intercept = encoder.to_linear()
    bank = embedder.embed(unseen)
    texts = [c for captions in unseen.captions for c in captions[:2]]
    decoders = {
        "language model": PrefixDecoder.load(WORLD, device="cpu"),
        "retrieval": RetrievalDecoder(texts, TextEmbedder("world", progress=False).embed(texts).values),
    }
    rows = {
        "none": {"method": "none"},
        "softmax 1/15": {"temperature": 1 / 15},
        "softmax 1/150": {"temperature": 1 / 150},
        "softmax 1/1500": {"temperature": 1 / 1500},
        "nearest": {"method": "nearest"},
        "softmax 1/150, shuffled": {"temperature": 1 / 150},
    }
    parts = []
    for name, settings in rows.items():
        weights = shuffled_control(coef, seed) if "shuffled" in name else coef
        found = project_weights(weights, bank, intercept=intercept, seed=seed, progress=False, **settings)
        for kind, decoder in decoders.items():
            family, member = judged(decoder.decode(found, 1), coef["voxel"].values, subject.truth)
            parts.append(
                pd.DataFrame(
                    {
                        "projection": name,
                        "decoder": kind,
                        "ratio": found["distance"].values / float(found["natural_distance"]),
                        "predicted": found["projected_predicted"].values,
                        "natural_max": found["natural_max_predicted"].values,
                        # float32: the response to an image itself may differ from the largest by its rounding
                        "above": found["projected_predicted"].values > found["natural_max_predicted"].values + 1e-3,
                        "family": family,
                        "member": member,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def table():
    voxels = pd.concat([measured(seed) for seed in SEEDS])
    groups = voxels.groupby(["projection", "decoder"], sort=False)
    out = groups[["ratio", "predicted", "natural_max"]].median().join(groups[["above", "family", "member"]].mean())
    out["n"] = groups.size()
    print("\n" + out.round(3).to_string())
    return out


def of(table, column, projection, decoder="language model"):
    return float(table.loc[(projection, decoder), column])


def test_weights_lie_off_the_manifold_and_projections_on_it(table):
    raw = of(table, "ratio", "none")
    assert raw >= 1.5
    for temperature in ("1/15", "1/150", "1/1500"):
        assert of(table, "ratio", f"softmax {temperature}") <= 0.8 * raw, temperature
    for name in ("softmax 1/150", "nearest"):
        assert of(table, "ratio", name) <= 1.2, name


def test_weights_promise_more_than_any_image_gives(table):
    assert of(table, "above", "none") >= 0.95


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("column", ["family", "member"])
def test_projected_weights_are_named_at_least_as_well(table, column, decoder):
    assert of(table, column, "softmax 1/150", decoder) >= of(table, column, "none", decoder)


@pytest.mark.xfail(reason="1.000 with, 0.952 without: 0.048 (members, not claimed: 0.978 and 0.771)")
def test_a_language_model_needs_the_projection(table):
    assert of(table, "family", "softmax 1/150") - of(table, "family", "none") >= 0.05


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_nearest_image_names_the_family_about_as_well(table, decoder):
    assert abs(of(table, "family", "nearest", decoder) - of(table, "family", "softmax 1/150", decoder)) <= 0.1


@pytest.mark.parametrize("decoder", DECODERS)
def test_shuffled_weights_are_not_named(table, decoder):
    fitted, shuffled = (of(table, "family", f"softmax 1/150{x}", decoder) for x in ("", ", shuffled"))
    assert shuffled <= 0.5 * fitted
