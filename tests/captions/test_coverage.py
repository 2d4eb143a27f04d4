"""Intervals of caption statistics hold the truth in 93 to 97 % of 2,000 repeats (margins as in tests/stats)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc.captions import concept_shares, evaluate_images, hallucination_rate, sentence_scores
from neuroenc.captions.checks._scoring import score_stability
from neuroenc.data import Stimuli
from neuroenc.study.stages.check import diversity_table

REPEATS = 2000


def judge(low, high, estimate, truth):
    low, high, estimate = (np.asarray(x, dtype=float) for x in (low, high, estimate))
    held = np.mean((low <= truth) & (truth <= high))
    width = np.mean(high - low) / (3.92 * estimate.std())
    assert 0.93 <= held <= 0.97, (held, width)
    assert 0.85 <= width <= 1.15, (held, width)


def test_shares_of_voxels():
    """2,000 concepts, each named by 40 % of voxels."""
    named = np.random.default_rng(0).random((REPEATS, 60)) < 0.4
    maps = xr.Dataset(
        {"named": (("concept", "voxel"), named), "share": (("concept", "voxel"), named.astype(float))},
        coords={"concept": [f"c{k}" for k in range(REPEATS)], "voxel": np.arange(60)},
    )
    out = concept_shares(maps, n_bootstraps=999)
    judge(out["low"], out["high"], out["percent"], 40.0)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.97])
def test_shares_that_are_close_to_none_or_all(rate):
    """Of 60 voxels; resamples of 0 are all 0."""
    named = np.random.default_rng(1).random((60, REPEATS)) < rate
    maps = xr.Dataset(
        {"named": (("voxel", "concept"), named), "share": (("voxel", "concept"), named.astype(float))},
        coords={"concept": [f"c{k}" for k in range(REPEATS)], "voxel": np.arange(60)},
    )
    out = concept_shares(maps.transpose("concept", "voxel"), n_bootstraps=399)
    held = np.mean((out["low"] <= 100 * rate) & (out["high"] >= 100 * rate))
    # Whole numbers of voxels: the share held of a small one moves in steps of up to 3 %.
    assert 0.93 <= held <= 0.985, held
    assert (out["high"] - out["low"]).min() > 3.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "rate",
    [pytest.param(0.04, marks=pytest.mark.xfail(reason="4 of 80 voxels or less: held .9285")), 0.1, 0.4],
)
def test_rates_of_phrases(rate):
    """Phrases of a voxel stand and fall together; 80 voxels of 1 to 4 phrases."""
    found = []
    for seed in range(REPEATS):
        rng = np.random.default_rng(seed)
        n = rng.integers(1, 5, 80)
        bad = np.repeat(rng.random(80) < rate / 0.8, n) & (rng.random(n.sum()) < 0.8)
        table = pd.DataFrame(
            {"voxel": np.repeat(np.arange(80), n), "rank": 1, "verdict": np.where(bad, "unsupported", "supported")}
        )
        found.append(hallucination_rate(table, by=None, n_bootstraps=399, seed=seed).iloc[0][["low", "high", "rate"]])
    judge(*np.array(found, dtype=float).T, rate)


@pytest.mark.slow
def test_semantic_variance():
    """40 captions; the truth is what 40 captions have on average."""
    rng, found = np.random.default_rng(0), []
    table = pd.DataFrame({"rank": 1, "caption": [f"a dog number {k}" for k in range(40)]})
    for seed in range(REPEATS):
        vectors = rng.standard_normal((40, 12)) * np.linspace(2, 0.2, 12) + 1
        row = diversity_table({"x": table}, lambda texts, v=vectors: v, seed).iloc[0]
        found.append(row[["semantic_variance_low", "semantic_variance_high", "semantic_variance"]])
    low, high, estimate = np.array(found, dtype=float).T
    judge(low, high, estimate, estimate.mean())


@pytest.mark.slow
def test_sentence_scores():
    """60 held-out stimuli, captions that say nothing of the 12 voxels."""
    found = []
    for seed in range(REPEATS):
        rng = np.random.default_rng(seed)
        shared = rng.standard_normal((60, 1))
        out = sentence_scores(
            rng.standard_normal((12, 6)),
            rng.standard_normal((60, 6)),
            rng.standard_normal((60, 12)) + shared,
            n_shuffles=2,
            n_bootstraps=299,
            seed=seed,
        )
        found.append([out.attrs[k] for k in ("low", "high", "mean")])
    judge(*np.array(found).T, 0.0)


@pytest.mark.slow
def test_stability():
    """60 voxels, each caption an angle: two halves are N(0, 0.8 squared) apart, whose mean cosine is exp(-0.32)."""

    def embed(texts):
        angle = np.array(texts, dtype=float)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)

    found = []
    for seed in range(REPEATS):
        rng = np.random.default_rng(seed)
        one = rng.uniform(0, 6, 60)
        texts = [[repr(float(x)) for x in half] for half in (one, one + 0.8 * rng.standard_normal(60))]
        told = [("halves", null, half) for null in (False, True) for half in texts]
        _, summary = score_stability(range(60), told, embed, n_shuffles=1, seed=seed)
        found.append(summary.iloc[0][["low", "high", "mean"]])
    judge(*np.array(found, dtype=float).T, np.exp(-0.32))


@pytest.mark.slow
def test_activations_of_images():
    """2,000 regions of one voxel, 40 images made and 60 natural ones; activations are gamma distributed, mean 2."""
    values = np.random.default_rng(0).gamma(2.0, size=(100, REPEATS))
    pixels = np.zeros((100, 2, 2, 3), dtype="uint8")
    made, natural = (Stimuli([str(k) for k in at], pixels[at.start : at.stop]) for at in (range(40), range(40, 100)))

    class Encoder:
        def predict(self, x):
            return x

    rois = {str(k): np.arange(REPEATS) == k for k in range(REPEATS)}
    out, _ = evaluate_images(
        made, Encoder(), lambda s: values[np.array(s.ids, dtype=int)], rois, natural=natural, n_top=5, n_bootstraps=399
    )
    for source in ("synthesised", "natural"):
        rows = out[out["source"] == source]
        judge(rows["low"], rows["high"], rows["mean"], 2.0)
