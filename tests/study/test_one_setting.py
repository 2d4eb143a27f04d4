"""How far a setting travels: the modules in whose frames it is bound, from the TOML to what it makes."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import neuroenc
from neuroenc.study import Study, read_config

pytest.importorskip("torch")

TEMPERATURE, ALPHAS = 0.0068123457, [0.51234567, 5.1234567, 51.234567]
CONFIG = f"""
[data]
name = "world"
options = {{ n_train = 60, n_test = 20, n_bank = 40, n_voxels = 30 }}
[encoder]
alphas = {ALPHAS}
[evaluation]
scheme = "test"
permutations = 20
[features]
model = "world"
[captions]
space.model = "world"
bank.source = "unseen"
gate.kind = "none"
projection.temperature = {TEMPERATURE}
decoder = {{ kind = "retrieval", caption_bank = "unseen" }}
stability = {{ folds = 0, bootstraps = 0, halves = 0 }}
"""


def is_temperature(value):
    return isinstance(value, float) and value == TEMPERATURE


def is_alphas(value):
    # Values are told from any other by their digits; a list becomes an array on its way.
    if isinstance(value, (list, tuple)):
        return len(value) == 3 and all(type(x) is float for x in value) and list(value) == ALPHAS
    return isinstance(value, np.ndarray) and value.shape == (3,) and value.dtype.kind == "f" and (value == ALPHAS).all()


@pytest.mark.filterwarnings("ignore:of .* voxels")
@pytest.mark.parametrize(
    ("command", "product", "holds", "most", "first", "last"),
    [
        ("caption", "read", is_temperature, 8, "study/read.py", "captions/projection/_state.py"),
        ("run", "fit", is_alphas, 6, "study/read.py", "encoders/linear/_solvers.py"),
    ],
)
def test_a_setting_passes_through_few_modules(tmp_path, command, product, holds, most, first, last):
    root, found = Path(neuroenc.__file__).parent, {}

    def look(frame, event, _):
        file = frame.f_code.co_filename
        if event in ("call", "return") and file.startswith(f"{root}/"):
            names = [name for name, value in frame.f_locals.items() if holds(value)]
            if names:
                found.setdefault(file.removeprefix(f"{root}/"), set()).add((frame.f_code.co_name, *names))

    (tmp_path / "my.toml").write_text(CONFIG)
    threading.setprofile(look)
    sys.setprofile(look)
    try:
        Study(read_config(tmp_path / "my.toml", command=command), tmp_path / "out", progress=False).until(product)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert {first, last} <= set(found)
    assert len(found) <= most, found
