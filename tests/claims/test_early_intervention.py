"""SENTINEL (Peng et al. 2025): hallucinations go on from one another, so that they are best stopped at the first.

A caption model that writes in nine of ten captions what stands together by habit (`tests/support/biased_captions.py`).
Margins and seed were fixed before the first run.
"""

import copy

import numpy as np
import pytest

from biased_captions import Biased
from neuroenc.captions import caption_perplexity, grounded_decode, hallucination_rate, train_grounded

pytestmark = pytest.mark.slow
SEARCHES = 4


def rate(found):
    return hallucination_rate(found.phrases)["rate"][0]


@pytest.fixture(scope="module")
def biased():
    return Biased(seed=11)


def freely(biased, decoder, projection):
    return biased.checker.check(decoder.decode(projection, 1))


def late(biased, decoder, projection):
    """As many searches, but captions are written to their end before they are looked at; the cleanest stays."""
    rows = []
    for k in range(SEARCHES):
        rows.append(freely(biased, decoder.with_options(seed=100 + k), projection).captions)
    wrong = np.stack([r["n_unsupported"] for r in rows])
    best = wrong.argmin(axis=0)
    chosen = rows[0].assign(caption=[rows[b]["caption"][k] for k, b in enumerate(best)])
    return biased.checker.check(chosen.drop(columns=["n_phrases", "n_supported", "n_unsupported"]))


@pytest.fixture(scope="module")
def measured(biased):
    """Rates of the second half of the voxels before and after training on the first half, and perplexity."""
    seen, held = (biased.projection.isel(voxel=slice(*s)) for s in ((0, 100), (100, 200)))
    decoder = copy.copy(biased.decoder)
    decoder.lm, decoder.mapping = copy.deepcopy(biased.decoder.lm), copy.deepcopy(biased.decoder.mapping)
    clean = held["embedding"].values, biased.true_captions[100:]
    mean = {"mean": decoder.mean_of(held)}
    found = {}
    for when in ("before", "after"):
        if when == "after":
            how = {"rounds": 2, "pairs": 100, "epochs": 10, "lr": 3e-4, "train_mapping": True}
            found["rounds"] = train_grounded(
                decoder, seen, biased.checker, (biased.images, biased.taught), **how
            ).rounds
        found[f"freely {when}"] = rate(freely(biased, decoder, held))
        found[f"early {when}"] = rate(grounded_decode(decoder, held, biased.checker, rounds=SEARCHES))
        found[f"late {when}"] = rate(late(biased, decoder, held))
        found[f"perplexity {when}"] = caption_perplexity(decoder, *clean, **mean)
    print({k: v if k == "rounds" else round(v, 3) for k, v in found.items()})
    return found


def test_early_intervention_removes_what_the_model_adds(measured):
    assert 0.3 <= measured["freely before"] <= 0.5
    assert measured["early before"] < 0.1


def test_late_intervention_removes_less(measured):
    assert measured["late before"] > measured["early before"] + 0.05


def test_training_removes_some_of_it_at_no_cost_of_fluency(measured):
    assert 50 <= measured["rounds"]["n_pairs"].sum() <= 200
    assert measured["freely after"] < 0.85 * measured["freely before"]
    assert measured["perplexity after"] < 1.05 * measured["perplexity before"]


@pytest.mark.xfail(strict=True, reason="early intervention alone leaves .000, after training .018: no room below")
def test_intervention_after_training_is_better_than_before(measured):
    assert measured["early after"] < measured["early before"]
