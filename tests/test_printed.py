"""Blocks of Python and TOML of README and guides run as they are printed, on tiny files with planted responses."""

from __future__ import annotations

import re
import tomllib
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

from neuroenc import data, study
from neuroenc.data.simulate import simulate_world
from neuroenc.embedding import ImageEmbedder
from neuroenc.study import read_config, run
from neuroenc.study.config import EvaluateConfig, StabilityConfig

ROOT = Path(__file__).resolve().parents[1]


def blocks(page: str, heading: str, language: str = "python") -> list[str]:
    section = (ROOT / page).read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


def recipe() -> str:
    return blocks("docs/guides/own_data.md", "Betas, a mask and a table of trials")[0]


def execute(code: str, **names):
    exec(compile(code, "as printed", "exec"), names)
    return names


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
    names = execute(recipe())
    r = names["r"]
    assert float(r.median()) > 0.5
    assert set(r["roi"].values) == {"", "FFA"}
    written = np.asarray(nib.load(root / "r.nii.gz").dataobj)
    np.testing.assert_allclose(written[mask > 0], r.values, atol=1e-6)
    assert not set(names["train"].stimulus.values) & set(names["test"].stimulus.values)
    assert (root / "s1-clip").exists()


def test_the_config_of_a_run_is_taken_as_printed(files):
    """But for the model, which is not on this machine; the mask is written as NSD writes its own."""
    root, mask = files
    nsdgeneral = np.where(mask > 0, 1, np.where(np.arange(64).reshape(4, 4, 4) % 2, 0, -1)).astype(np.int16)
    nib.Nifti1Image(nsdgeneral, np.diag([2.0, 2, 2, 1])).to_filename(root / "nsdgeneral.nii.gz")
    (text,) = blocks("docs/guides/own_data.md", "A config over files", "toml")
    (root / "my.toml").write_text(text, encoding="utf-8")
    here = ['features.model="world"', 'features.pretrained=""', "evaluation.permutations=100"]
    config = read_config(root / "my.toml", here)
    with pytest.warns(UserWarning, match=r"holds \[-1, 0, 1\]"):
        summary = run(config, root / "out", progress=False, say=lambda _: None)
    assert summary["n_voxels"] == 40
    assert summary["median_r"] > 0.5
    assert config.evaluation.permutation_null == "auto"


def test_configs_of_parts_are_taken_as_printed(tmp_path):
    text, supports = blocks("docs/guides/few_trials.md", "Your own embedding", "toml")
    EvaluateConfig(**tomllib.loads(supports)["incontext"]["evaluate"])
    (tmp_path / "my.toml").write_text(text, encoding="utf-8")
    config = study.read_config(tmp_path / "my.toml", command="icl")
    assert (len(config.incontext.task.train), config.incontext.evaluate.groups) == (2, "roi")
    (text,) = blocks("docs/guides/captions.md", "On the command line", "toml")
    # The comments say that these are the defaults.
    assert StabilityConfig(**tomllib.loads(text)["captions"]["stability"]) == StabilityConfig()


def test_nsd_gives_a_figure_as_printed(files):
    """But for the model, which is not on this machine."""
    from neuroenc.data.simulate import nsd_tree

    nsd_tree("nsd", n_subjects=1, formats=("nii.gz",))
    (code,) = blocks("README.md", "From NSD's folder to a figure")
    assert len(code.strip().splitlines()) <= 12
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*constant within")
        names = execute(code.replace('"ViT-B-32-quickgelu", "openai"', '"world"'))
    assert names["r"].shape == names["ceiling"].shape
    assert Path("r.png").is_file()


def test_a_new_subject_and_its_captions_as_printed(files, simulated):
    """The in-context encoder, then the captioner on what it fitted."""
    X, Y, bank, scores = simulated
    names = execute(
        blocks("README.md", "A new subject and few trials?")[0], X_support=X[:50], Y_support=Y[:50], X=X[50:]
    )
    assert names["predicted"].shape == names["sd"].shape == (len(X) - 50, Y.shape[1])
    given = {"bank": bank, "encoder": names["encoder"], "scores": scores}
    names = execute(blocks("README.md", "What does a voxel prefer, in words?")[0], **given)
    assert {"voxel", "rank", "caption", "score", "predicted"} <= set(names["study"].captions.columns)
    assert Path("captions-s1", "index.html").is_file()


@pytest.fixture
def simulated():
    """Features, responses of four voxels, a bank, scores with a gate."""
    scenes = simulate_world(80, seed=3)
    raw = ImageEmbedder("world", progress=False, cache=False).embed(scenes)
    X = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    X.attrs.update(raw.attrs, normalised=1)
    rng = np.random.default_rng(0)
    signal = np.asarray(X - X.mean("stimulus")) @ rng.standard_normal((X.shape[1], 4))
    Y = data.make_responses(signal / signal.std(0) + rng.standard_normal(signal.shape), stimulus=scenes.ids)
    Y = data.average_repeats(data.zscore(Y, by="session") if "session" in Y.coords else Y)
    scores = xr.Dataset(
        {"r": ("voxel", [0.5] * 4), "q_value": ("voxel", [0.01, 0.01, 0.01, 0.4])}, coords={"voxel": Y["voxel"].values}
    )
    return data.match(X, Y), Y, raw, scores
