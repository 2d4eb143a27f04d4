"""Intervals of caption metrics hold the truth in 93 to 97 % of 2,000 repeats (margins as in tests/stats)."""

from __future__ import annotations

import numpy as np
import pytest

from photo_evaluation import compare_captions

REPEATS = 2000


@pytest.mark.slow
def test_captions_of_photographs():
    """30 photographs: two methods and people keep a share of six words each; the methods are equally good."""
    found = []
    for seed in range(REPEATS):
        rng = np.random.default_rng(seed)
        topic = rng.integers(0, 40, (30, 6))
        said = [
            [" ".join(f"w{k}" for k in row) for row in np.where(rng.random(topic.shape) < kept, topic, other)]
            for kept, other in zip((0.8, 0.8, 0.7, 0.7), rng.integers(0, 40, (4, *topic.shape)), strict=True)
        ]
        methods = {"a": said[2], "b": said[3]}
        scores, differences = compare_captions(
            methods, list(zip(*said[:2], strict=True)), baselines=["b"], n_bootstraps=399, seed=seed, embed=counts
        )
        tables = [scores[scores["method"] != "b"], differences]
        found.append(np.concatenate([t[["low", "high", "value"]].to_numpy() for t in tables]))
    for k, (low, high, estimate) in enumerate(np.array(found).transpose(1, 2, 0)):
        # The truth of a score is what 30 photographs have on average.
        truth = estimate.mean() if k < 10 else 0.0
        held = np.mean((low <= truth) & (truth <= high))
        width = np.mean(high - low) / (3.92 * estimate.std())
        assert 0.93 <= held <= 0.97, (k, held, width)
        assert 0.85 <= width <= 1.15, (k, held, width)


def counts(texts):
    out = np.zeros((len(texts), 40))
    for row, text in zip(out, texts, strict=True):
        np.add.at(row, [int(word[1:]) for word in text.split()], 1)
    return out
