"""The projection written out, in float64 and all at once."""

from __future__ import annotations

import numpy as np
import pytest


def closed(coef, bank, temperature=1 / 150, decouple=True):
    """Softmax weights (v, n) and the embedding (v, d) they give, without any stream."""
    w = np.asarray(coef, float).T
    w = w / np.linalg.norm(w, axis=1, keepdims=True)
    raw = np.asarray(bank, float)
    size = np.linalg.norm(raw, axis=1)
    unit = raw / size[:, None]
    cosine = w @ unit.T
    s = np.exp((cosine - cosine.max(1, keepdims=True)) / temperature)
    s /= s.sum(1, keepdims=True)
    mean = s @ (unit if decouple else raw)
    length = np.linalg.norm(mean, axis=1)
    direction = mean / length[:, None]
    norm = s @ size if decouple else length
    whole = norm[:, None] * direction
    return {"softmax": s, "cosine": cosine, "direction": direction, "norm": norm, "embedding": whole}


def drawn(rng, n=700, d=12, v=9):
    bank = (rng.standard_normal((n, d)) + 0.5) * rng.uniform(5, 12, (n, 1))
    return rng.standard_normal((d, v)), bank


@pytest.fixture(scope="session", name="closed")
def _closed():
    return closed


@pytest.fixture(scope="session", name="drawn")
def _drawn():
    return drawn
