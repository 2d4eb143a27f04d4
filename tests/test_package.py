"""Promises about the whole package: light import, public names, what the wheel holds."""

import json
import subprocess
import sys

import pytest

import neuroenc


def test_import_is_light():
    """Best of five, because the machine may be busy: the promise is about the package, not the neighbours."""
    code = (
        "import sys, time; t = time.perf_counter(); import neuroenc; t = time.perf_counter() - t\n"
        "import json; print(json.dumps([t, sorted(m for m in sys.modules if '.' not in m)]))"
    )
    runs = [json.loads(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5)]
    assert min(seconds for seconds, _ in runs) < 0.3
    heavy = {"torch", "torchvision", "open_clip", "transformers", "matplotlib", "nilearn", "timm", "sklearn"}
    assert not heavy & set(runs[0][1])


@pytest.mark.parametrize("room", ["captions", "cli", "data", "embedding", "encoders", "report", "retrieval", "stats"])
def test_rooms_import_without_deep_learning_or_plots(room):
    code = f"import sys, neuroenc.{room}; print(*[m for m in ('torch', 'open_clip', 'matplotlib') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []


ROOMS = ["captions", "data", "embedding", "encoders", "report", "retrieval", "stats", "study"]


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_every_public_name_exists(room):
    module = getattr(neuroenc, room) if room else neuroenc
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError):
        neuroenc.no_such_room  # noqa: B018


def test_readouts_and_cores_are_found_by_name_in_a_fresh_process():
    code = "from neuroenc.encoders import readout as r; print(*sorted(r.READOUTS), *sorted(r.cores.CORES))"
    found = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert found >= {
        "linear",
        "pooled",
        "gaussian",
        "factorized",
        "semantic",
        "attention",
        "equivariant",
        "plain",
        "grid",
    }
