"""A study in a notebook: parts, stages, replaced stages, arrays in memory, executors."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import xarray as xr

import neuroenc
from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.executor import Executor
from neuroenc.encoders import RidgeEncoder
from neuroenc.study import Study, StudyConfig, read_config, run
from neuroenc.study.config import EvaluationConfig

N, P = 60, 8


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    ids = [f"s{k:02d}" for k in range(N)]
    X = data.make_features(rng.standard_normal((N, P)).astype("float32"), stimulus=ids)
    W = rng.standard_normal((P, 12)) / np.sqrt(P)
    W[:, 6:] = 0
    Y = X.values @ W + 0.4 * rng.standard_normal((N, 12))
    order = rng.permutation(N)
    responses = data.make_responses(Y[order].astype("float32"), stimulus=np.array(ids)[order], dim="stimulus")
    return X, responses.assign_coords(roi=("voxel", ["V1"] * 6 + ["V4"] * 6))


def study(arrays, **options):
    X, Y = arrays
    config = StudyConfig(evaluation=EvaluationConfig(n_splits=3, permutations=50))
    return Study(config, features=X, responses=Y, progress=False, **options)


def test_parts_come_with_their_stages(arrays):
    first = study(arrays)
    assert first.done == ()
    with pytest.raises(AttributeError, match=r'study.until\("score"\)'):
        _ = first.scores
    with pytest.raises(AttributeError, match="did you mean 'scores'"):
        _ = first.score
    second = first.until("score")
    assert first.done == ()
    assert second.done == ("load", "split", "embed", "fit", "score")
    r = second.scores["r"].values
    assert r[:6].min() > 0.6 > 0.45 > np.abs(r[6:]).max()
    assert set(second.seconds) == set(second.done)
    assert "score" in second._repr_html_()
    assert "leakage" in second._repr_html_()  # what comes next
    with pytest.raises(AttributeError, match="does not change"):
        second.scores = None
    with pytest.raises(ConfigError, match="did you mean 'score'"):
        first.until("scor")
    with pytest.raises(ConfigError, match="captions"):
        first.until("check")
    with pytest.raises(ConfigError, match="no folder"):
        second.report()


def test_a_stage_can_be_replaced(arrays):
    def mean_only(one):
        total = {name: [s.responses * 0 for s in one.subjects] for name in one.spaces}
        return {"predictions": total, "alphas": {name: [np.ones((3, 12))] for name in one.spaces}}

    found = study(arrays).replace(fit=mean_only).until("fit")
    assert float(abs(found.predictions["features"][0]).max()) == 0
    # A study that went further forgets what the stage and those behind it had found.
    later = study(arrays).until("score").replace(fit=mean_only)
    assert later.done == ("load", "split", "embed")
    assert not later.has("scores")
    with pytest.raises(ConfigError, match="did you mean 'fit'"):
        study(arrays).replace(fitt=mean_only)
    with pytest.raises(ConfigError, match="alphas"):
        study(arrays).replace(fit=lambda one: {"predictions": {}}).until("fit")


def test_labels_decide_and_processes_do_not_matter(arrays, tmp_path):
    X, Y = arrays
    one = study(arrays, out=tmp_path / "one").until("score")
    turned = study((X[::-1], Y), out=tmp_path / "two", workers=2).until("score")
    np.testing.assert_allclose(turned.scores["r"].values, one.scores["r"].values, atol=1e-6)
    shared = Study(one.config, tmp_path / "one", features=X, responses=Y, progress=False, say=(lines := []).append)
    xr.testing.assert_identical(shared.until("score").scores, one.scores)
    assert sum("done before" in line for line in lines) == 4


def test_evaluate_gives_what_a_notebook_wrote_out(arrays):
    X, Y = arrays
    train, test = data.split_by_stimulus(Y, 0.3, seed=1)
    encoder = RidgeEncoder().fit(data.match(X, train), train)
    scores = neuroenc.evaluate(encoder, X, test, permutations=99)
    np.testing.assert_allclose(scores["r"].values, encoder.score_voxels(data.match(X, test), test).values, atol=1e-6)
    assert (scores["q_value"].values[:6] < 0.1).all()
    assert scores["roi"].values.tolist() == Y["roi"].values.tolist()
    assert "noise_ceiling_r" not in scores
    backwards = neuroenc.evaluate(encoder, X[::-1], test[:, ::-1], permutations=0)
    np.testing.assert_allclose(backwards["r"].values[::-1], scores["r"].values, atol=1e-6)
    twice = xr.concat([test, test + 0.3], "stimulus")
    single = data.make_responses(
        twice.values + np.random.default_rng(1).standard_normal(twice.shape).astype("float32") / 3,
        stimulus=twice["stimulus"].values,
        repeat=np.repeat([0, 1], len(test)),
    )
    repeated = neuroenc.evaluate(encoder, X, single, permutations=0)
    assert {"ncsnr", "noise_ceiling_r", "r_normalised"} <= set(repeated)
    with pytest.raises(DataError, match="none of the encoder's"):
        neuroenc.evaluate(encoder, X, test.assign_coords(voxel=np.arange(100, 112)))
    with pytest.raises(DataError, match="labelled"):
        neuroenc.evaluate(encoder, X, test.values)


def _pid(number, wait):
    time.sleep(wait)
    return number, os.getpid()


@pytest.mark.slow
def test_tasks_of_a_killed_dask_worker_run_on_another():
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        process = next(iter(cluster.workers.values())).process.pid
        threading.Timer(0.7, lambda: os.kill(process, signal.SIGKILL)).start()
        found = Executor(client=client, show=False).map(_pid, [(n, 0.3) for n in range(8)])
    assert [n for n, _ in found] == list(range(8))
    assert os.getpid() not in {pid for _, pid in found}
    assert process not in {pid for n, pid in found if n > 6}


def test_a_client_that_is_not_there():
    pytest.importorskip("distributed")
    import dask

    quick = dask.config.set({"distributed.comm.timeouts.connect": "1s"})
    with quick, pytest.raises(ConfigError, match="no Dask cluster"):
        _ = Executor(client="tcp://127.0.0.1:1").client
    with pytest.raises(ConfigError, match="workers = 0"):
        Executor(0)


CONFIG = """
[data]
responses = "y.nc"
[features]
file = "x.nc"
[evaluation]
n_splits = 4
permutations = 20
"""


@pytest.mark.slow
def test_two_processes_on_one_folder_end_as_one(arrays, tmp_path):
    X, Y = arrays
    data.save(X, tmp_path / "x.nc")
    data.save(Y, tmp_path / "y.nc")
    (tmp_path / "my.toml").write_text(CONFIG)
    alone = run(read_config(tmp_path / "my.toml"), tmp_path / "alone", progress=False, say=lambda _: None)
    command = [
        sys.executable,
        "-c",
        "from neuroenc.cli import main; main()",
        "run",
        "my.toml",
        "--out",
        "both",
        "--quiet",
    ]
    both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [p.wait() for p in both] == [0, 0]
    xr.testing.assert_identical(
        data.load(tmp_path / "both" / "report" / "scores.nc"), data.load(tmp_path / "alone" / "report" / "scores.nc")
    )
    assert alone["n_voxels"] == 12
    assert not list((tmp_path / "both" / ".steps").glob(".*"))
