"""Shared fixtures; real data lives beside the checkout and is only read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("NEUROENC_PROGRESS", "0")
MIRROR = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run tests marked slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests go to one worker, so that what they share is made once."""
    from xdist.scheduler import LoadFileScheduling

    # In the order of folders: short files come last, so that no worker waits long for the other.
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def mirror() -> Path:
    """Folder with the real data sets; tests that need it are skipped only where it is absent."""
    path = Path(os.environ.get("NEUROENC_MIRROR", MIRROR))
    if not path.is_dir():
        pytest.skip(f"real data not present at {path}")
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Never touch the user's cache."""
    monkeypatch.setenv("NEUROENC_CACHE", str(tmp_path_factory.getbasetemp() / "neuroenc-cache"))


@pytest.fixture
def fresh():
    """Run lines of Python in a new process, which knows nothing of this one, and read the JSON that they print."""

    def run(code, *arguments):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=dict(os.environ)
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


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
