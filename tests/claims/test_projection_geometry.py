"""Claim (Luo et al., ICLR 2024, section 3.2): a softmax at temperature 1/150 over unit-norm images brings weights onto
the images' manifold. Asked on the geometry of real CLIP vectors, whose cone is narrow: 1,607 concepts' text vectors,
images simulated around them, and a bank that shows none of the planted concepts (tests/support/concept_cone.py).

Fixed before the temperatures were compared, medians over 100 voxels of one concept and 100 of two, seed 0, ridge
weights from 200, 1,000 and 5,000 images:

1. The planted name ranks at 1/150 within 2 of the best of five temperatures from 1/15 to 1/1500, and the cosine to the
   planted direction is within .05 of the best one.
2. Taking the bank's mean direction out of the weights, or averaging raw vectors, changes that cosine by at most .02.
3. Without projection the distance to the nearest image is at least 1.5 natural ones; at 1/150 it is at most 1.2.
4. Weights whose features are shuffled rank the name at 400 or worse.

``pytest --slow -s`` prints the table.
"""

from __future__ import annotations

import numpy as np
import pytest

from concept_cone import TEMPERATURES, concept_cone, geometry
from neuroenc._core.errors import NeuroencError

pytestmark = pytest.mark.slow

SIZES = (200, 1000, 5000)
WAYS = [f"1/{round(1 / t)}" for t in TEMPERATURES]


@pytest.fixture(scope="module")
def table():
    try:
        found = geometry(None)
    except NeuroencError as error:
        pytest.skip(f"needs the data set clip-text-concepts: {error}")
    print("\n" + found.round(3).to_string())
    return found.set_index(["stimuli", "likes", "projection"]).sort_index()


FEW = pytest.param(
    200,
    marks=pytest.mark.xfail(strict=True, reason="of 200 images, rank 7 at 1/150 and 3.5 at 1/50 for one concept"),
)


@pytest.mark.parametrize("likes", ["one", "two"])
@pytest.mark.parametrize("n", [FEW, 1000, 5000])
def test_the_published_temperature_names_nearly_as_well_as_the_best(table, n, likes):
    found = table.loc[(n, likes)].loc[WAYS]
    assert found.loc["1/150", "rank"] <= found["rank"].min() + 2, found


@pytest.mark.xfail(strict=True, reason="cosine at 1/150 is .065 to .101 below that at 1/50, at every size")
@pytest.mark.parametrize("likes", ["one", "two"])
@pytest.mark.parametrize("n", SIZES)
def test_the_published_temperature_points_nearly_as_well_as_the_best(table, n, likes):
    found = table.loc[(n, likes)].loc[WAYS]
    assert found.loc["1/150", "cosine"] >= found["cosine"].max() - 0.05, found


@pytest.mark.parametrize("likes", ["one", "two"])
@pytest.mark.parametrize("n", SIZES)
def test_centred_weights_and_raw_averages_are_the_same(table, n, likes):
    found = table.loc[(n, likes), "cosine"]
    for other in ("1/150, weights centred", "1/150, raw vectors averaged"):
        assert abs(found[other] - found["1/150"]) <= 0.02, found


@pytest.mark.parametrize("n", SIZES)
def test_weights_lie_off_the_images_and_projections_among_them(table, n):
    found = table.loc[(n, "one"), "distance"]
    assert found["none"] >= 1.5
    assert found["1/150"] <= 1.2


def test_shuffled_weights_name_nothing(table):
    made = concept_cone(None)
    shuffled = made.weights(1000)[np.random.default_rng(0).permutation(512)]
    assert made.measure(shuffled)["rank"].median() >= 400
