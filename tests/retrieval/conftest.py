from __future__ import annotations

import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def tracked():
    """Context whose value, called after it, is the peak of bytes allocated inside (numpy included)."""

    @contextmanager
    def context():
        tracemalloc.start()
        result = []
        try:
            yield lambda: result[0]
            result.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()

    return context
