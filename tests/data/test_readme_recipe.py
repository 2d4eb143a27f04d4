"""The README's recipe for own arrays runs as it is printed, on tiny files with planted responses."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from neuroenc.data.simulate import simulate_world

README = Path(__file__).resolve().parents[2] / "README.md"


def recipe() -> str:
    section = README.read_text(encoding="utf-8").split("## In a script, with your own arrays\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)[0]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """120 scenes, two sessions in which each is shown once, 40 voxels that see how much of each colour there is."""
    world, rng = simulate_world(120, seed=2), np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name, pixels in zip(world.ids, world.images, strict=True):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    colour = np.asarray(world.images, dtype=float).reshape(120, -1, 3).mean(1)
    colour = (colour - colour.mean(0)) / colour.std(0)
    signal = colour @ rng.standard_normal((3, 40))
    order = np.concatenate([rng.permutation(120), rng.permutation(120)])
    session = np.repeat([1, 2], 120)
    gain, offset = np.where(session == 1, 1, 4)[:, None], 7 * session[:, None]
    betas = (signal[order] + 0.3 * rng.standard_normal((240, 40))) * gain + offset
    mask = np.zeros((4, 4, 4), dtype=np.uint8)
    mask.reshape(-1)[rng.permutation(64)[:40]] = 1
    volume = np.zeros((4, 4, 4, 240), dtype=np.float32)
    volume[mask > 0] = betas.T
    roi = mask.copy()
    roi[2:] = 0
    affine = np.diag([2.0, 2, 2, 1])
    for name, values in (("betas", volume), ("mask", mask), ("ffa", roi)):
        nib.Nifti1Image(values, affine).to_filename(tmp_path / f"{name}.nii.gz")
    trials = pd.DataFrame({"stimulus": world.ids[order], "session": session, "run": 1})
    trials.to_csv(tmp_path / "trials.csv", index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEUROENC_PROGRESS", "0")
    monkeypatch.setenv("NEUROENC_CACHE", str(tmp_path / "cache"))
    return tmp_path, mask


def test_it_is_short():
    assert len(recipe().strip().splitlines()) <= 20


def test_it_runs_as_printed_and_predicts(files):
    root, mask = files
    names: dict = {}
    exec(compile(recipe(), "README.md", "exec"), names)
    r = names["r"]
    assert float(r.median()) > 0.5
    assert set(r["roi"].values) == {"", "FFA"}
    written = np.asarray(nib.load(root / "r.nii.gz").dataobj)
    np.testing.assert_allclose(written[mask > 0], r.values, atol=1e-6)
    assert not set(names["train"].stimulus.values) & set(names["test"].stimulus.values)
    assert (root / "s1-clip").exists()
