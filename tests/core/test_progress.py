"""Long loops say beforehand about how long they take."""

import types

import pytest

from neuroenc._core import progress
from neuroenc.study import Study, stage


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that goes on when it is told to, so that no busy machine makes a loop long."""
    clock = types.SimpleNamespace(now=0.0)
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("show", [False, True])
def test_a_long_stage_says_how_long_it_takes_once(nested, show, monkeypatch, clock):
    monkeypatch.setenv("NEUROENC_PROGRESS", "1")
    said = []

    @stage("work", reads=(), writes=("done",))
    def work(study):
        before = len(said)
        for _ in progress.progress(range(5 if nested else 100), desc="fits", show=show):
            with progress.progress(total=20, desc="voxels", show=show) as bar:
                for _ in range(20 if nested else 1):
                    clock.sleep(0.5)
                    bar.update(1)
        return {"done": before}

    # With neither a total nor a length, or when it is over soon, there is nothing to say.
    Study(say=said.append).through([work])
    assert len(said) == 1
    assert said[0].startswith("    fits: about ")
    for _ in progress.progress(range(100), desc="elsewhere", show=False):
        clock.sleep(0.1)
    assert len(said) == 1


def test_a_short_loop_says_nothing(clock):
    said = []
    with progress.telling(said.append):
        for _ in progress.progress(range(10), desc="short", show=False):
            clock.sleep(0.5)
        for _ in progress.progress(iter(range(100)), desc="without an end", show=False):
            clock.sleep(0.5)
    assert said == []
