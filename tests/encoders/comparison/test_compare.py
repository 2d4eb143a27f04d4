"""The same rows, folds and budget for every cell; runs that stop, go on, and run side by side."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.covariance import LedoitWolf

from neuroenc import stats
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import load, make_features, make_responses
from neuroenc.encoders import RidgeEncoder
from neuroenc.encoders.comparison import build_cells, compare, identify_cells
from neuroenc.encoders.comparison._compare import pool_cells

from .conftest import driven, of_two_subjects, spaces

QUICK = {"cv": 4, "n_bootstraps": 100, "progress": False}
CLOCK = ["seconds", "seconds_per_fit"]


def files(folder):
    """What write() wrote, without the clock."""
    table = pd.read_csv(folder / "comparison.csv").drop(columns=CLOCK)
    summary = json.loads((folder / "summary.json").read_text())
    summary.pop("seconds_fits")
    return table, (folder / "pairwise.csv").read_bytes(), (folder / "voxels.nc").read_bytes(), summary


def assert_same_files(one, two):
    for a, b in zip(files(one), files(two)):
        if isinstance(a, pd.DataFrame):
            pd.testing.assert_frame_equal(a, b, check_exact=True)
        else:
            assert a == b


def test_predictions_are_those_of_ridge_on_the_training_rows(planted):
    """One cell by hand: standardised on training rows, penalty from the validation rows, never a test row."""
    features, responses = planted
    found = compare(features, ["linear"], responses, **QUICK)
    job = next(j for j in found._jobs["b/linear"] if j.fold == 2)
    assert not set(job.rows.train) & set(job.rows.test)
    assert set(job.rows.validation) < set(job.rows.train)
    X, T = features["b"].values[job.rows.train], features["b"].values[job.rows.test]
    X, T = ((x - X.mean(0)) / X.std(0) for x in (X, T))
    held = np.isin(job.rows.train, job.rows.validation)
    ridge = RidgeEncoder(cv=[(np.flatnonzero(~held), np.flatnonzero(held))])
    ridge.fit(X, responses.values[job.rows.train])
    for v, alpha in enumerate(ridge.alpha_[:3]):
        inner = RidgeEncoder([alpha], cv=2).fit(X[~held], responses.values[job.rows.train][~held][:, v])
        r = np.corrcoef(inner.predict(X[held]), responses.values[job.rows.train][held][:, v])[0, 1]
        np.testing.assert_allclose(found.validation_r("b/linear")[2, v], r, atol=1e-4)
    np.testing.assert_allclose(
        found.predictions("b/linear").values[job.rows.test], ridge.predict(T), rtol=1e-4, atol=1e-5
    )
    r = found.scores["r"].sel(cell="b/linear").values
    np.testing.assert_allclose(r, stats.score(responses.values, found.predictions("b/linear").values))


def test_test_rows_decide_nothing(planted):
    """Other responses in the test rows of a fold leave this fold's predictions as they are."""
    features, responses = planted
    whole = compare(features, ["linear"], responses, **QUICK)
    test = whole._jobs["a/linear"][1].rows.test
    values = responses.values.copy()
    values[test] = 100 * np.random.default_rng(5).standard_normal((len(test), values.shape[1]))
    other = compare(features, ["linear"], responses.copy(data=values), **QUICK)
    np.testing.assert_array_equal(
        whole.predictions("a/linear").values[test], other.predictions("a/linear").values[test]
    )


@pytest.mark.parametrize("missing", [False, True])
def test_every_cell_has_the_same_rows_folds_and_budget(planted, missing):
    features, responses = planted
    responses = of_two_subjects(responses) if missing else responses
    found = compare(features, {"linear": {}, "few": {"readout": "linear", "alphas": [1.0, 10.0]}}, responses, **QUICK)
    table = found.table()
    for _, rows in table.groupby(["kind", "group"]):
        assert len(rows) == 6
        for column in ("n_train", "n_validation", "n_test", "n_voxels"):
            assert rows[column].nunique() == 1
    first, *others = ([(j.fold, j.group, j.rows) for j in jobs] for jobs in found._jobs.values())
    for other in others:
        for (fold, group, rows), (fold2, group2, rows2) in zip(first, other):
            assert (fold, group) == (fold2, group2)
            for part in ("train", "validation", "test"):
                np.testing.assert_array_equal(getattr(rows, part), getattr(rows2, part))
    seen = (~np.isnan(responses.values)).sum(axis=0)
    tested = np.zeros(responses.shape[1])
    for job in found._jobs["a/linear"]:
        tested[job.voxels] += (~np.isnan(responses.values[:, job.voxels]))[job.rows.test].sum(axis=0)
    np.testing.assert_array_equal(tested, seen)


def test_subjects_side_by_side_are_as_if_alone():
    """Folds deal out every subject's stimuli evenly; each voxel is scored over its own."""
    features = spaces()
    both = of_two_subjects(driven(features, [{"a": 1.0}] * 5 + [{"b": 1.0}] * 5))
    found = compare(features, ["linear"], both, **QUICK)
    for subject in ("one", "two"):
        mine = np.flatnonzero(both["subject"].values == subject)
        jobs = [j for j in found._jobs["a/linear"] if j.voxels[0] == mine[0]]
        sizes = [len(j.rows.test) for j in jobs]
        assert len(jobs) == 4
        # Who saw what makes three strata; dealing each out evenly leaves folds at most that far apart.
        assert max(sizes) - min(sizes) <= 3
        predicted = found.predictions("a/linear").values[:, mine]
        measured = both.values[:, mine]
        assert (np.isnan(predicted) == np.isnan(measured)).all()
        by_hand = []
        for v in range(len(mine)):
            seen = ~np.isnan(measured[:, v])
            by_hand.append(np.corrcoef(measured[seen, v], predicted[seen, v])[0, 1])
        np.testing.assert_allclose(found.scores["r"].sel(cell="a/linear").values[mine], by_hand, rtol=1e-5)
        row = found.table().query("cell == 'a/linear' and group == @subject").iloc[0]
        np.testing.assert_allclose(row["median_r"], np.median(by_hand), rtol=1e-5)


def test_what_another_subject_answers_changes_nothing():
    features = spaces()
    both = of_two_subjects(driven(features, [{"a": 1.0}] * 5 + [{"b": 1.0}] * 5))
    values = both.values.copy()
    values[:, 5:] = values[:, 5:] * 3 + 1
    found = [compare(features, ["linear"], y, **QUICK) for y in (both, both.copy(data=values))]
    one, two = (c.predictions("a/linear").values[:, :5] for c in found)
    np.testing.assert_array_equal(one, two)


def test_voxels_that_miss_rows_of_their_own(planted):
    features, responses = planted
    values = responses.values.copy()
    rng = np.random.default_rng(0)
    for v in range(4):
        values[rng.choice(200, 20, replace=False), v] = np.nan
    found = compare(features, ["linear"], responses.copy(data=values), **QUICK)
    whole = compare(features, ["linear"], responses, **QUICK)
    assert np.isfinite(found.scores["r"].values).all()
    assert np.abs(found.scores["r"].values[0, :4] - whole.scores["r"].values[0, :4]).max() < 0.1


def test_permuting_voxels_permutes_results(planted):
    features, responses = planted
    responses = of_two_subjects(responses)
    order = np.random.default_rng(2).permutation(responses.shape[1])
    one = compare(features, ["linear"], responses, **QUICK)
    two = compare(features, ["linear"], responses[:, order], **QUICK)
    np.testing.assert_array_equal(two.scores["voxel"].values, order)
    np.testing.assert_allclose(one.scores["r"].values[:, order], two.scores["r"].values, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(one.winner()["winner"].values[order], two.winner()["winner"].values)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import neuroenc.encoders.comparison._compare as work
from tests_conftest import spaces, driven, of_two_subjects
from neuroenc.encoders.comparison import compare
import time
plain = work.fit_job
def slow(*args):
    time.sleep(0.2)
    return plain(*args)
work.fit_job = slow
features = spaces()
responses = of_two_subjects(driven(features, [{"a": 1.0}] * 6 + [{"b": 1.0}] * 6 + [{}] * 4))
compare(features, ["linear"], responses, cv=4, n_bootstraps=100, progress=False, out=sys.argv[2])
"""


@pytest.mark.slow
def test_killed_and_resumed_is_as_if_never_stopped(tmp_path):
    """SIGKILL in the middle; what was done is not done again, and every file ends the same."""
    (tmp_path / "tests_conftest.py").write_bytes((Path(__file__).parent / "conftest.py").read_bytes())
    (tmp_path / "go.py").write_text(SCRIPT)
    folder = tmp_path / "stopped"
    process = subprocess.Popen([sys.executable, str(tmp_path / "go.py"), str(tmp_path), str(folder)])
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*-fold*/_result.json"))) < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {p: p.stat().st_mtime_ns for p in folder.glob("*-fold*/_result.json")}
    assert 5 <= len(done) < 24
    features = spaces()
    responses = of_two_subjects(driven(features, [{"a": 1.0}] * 6 + [{"b": 1.0}] * 6 + [{}] * 4))
    said = []
    stopped = compare(features, ["linear"], responses, out=folder, say=said.append, **QUICK)
    assert said == [f"  {len(done)} of 24 fits done before"]
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())
    whole = compare(features, ["linear"], responses, out=tmp_path / "whole", **QUICK)
    stopped.write(tmp_path / "one")
    whole.write(tmp_path / "two")
    assert_same_files(tmp_path / "one", tmp_path / "two")


def test_other_settings_are_other_results(planted, tmp_path):
    """Nothing is taken from a run with other settings, seeds or responses; labels do not matter."""
    features, responses = planted
    compare(features, ["linear"], responses, out=tmp_path, **QUICK)

    def done_before(features=features, readouts=("linear",), responses=responses, **settings):
        said = []
        compare(features, readouts, responses, out=tmp_path, say=said.append, **{**QUICK, **settings})
        return int(said[0].split()[0]) if said else 0

    assert done_before() == 12
    assert done_before(seed=1) == 0
    assert done_before(readouts={"linear": {"alphas": [1.0]}}) == 0
    assert done_before(responses=responses + np.float32(0.5)) == 0
    assert done_before(features={**features, "a": features["a"] * 2}) == 8


@pytest.mark.slow
def test_processes_give_the_same_numbers(planted, tmp_path):
    features, responses = planted
    responses = of_two_subjects(responses)
    compare(features, ["linear"], responses, **QUICK).write(tmp_path / "one")
    compare(features, ["linear"], responses, workers=2, **QUICK).write(tmp_path / "two")
    assert_same_files(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_numbers(planted, tmp_path):
    distributed = pytest.importorskip("distributed")
    features, responses = planted
    compare(features, ["linear"], responses, **QUICK).write(tmp_path / "one")
    with distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        compare(features, ["linear"], responses, client=client, out=tmp_path / "kept", **QUICK).write(tmp_path / "two")
        with pytest.raises(ConfigError, match="give out="):
            compare(features, ["linear"], responses, client=client, **QUICK)
    assert_same_files(tmp_path / "one", tmp_path / "two")
    assert not list((tmp_path / "kept").glob(".*"))


def test_repeated_presentations_stay_on_one_side(planted):
    features, responses = planted
    twice = xr.concat([responses, responses], dim="stimulus").rename(stimulus="presentation")
    stimulus = twice["presentation"].values
    twice = twice.drop_vars("presentation").assign_coords(stimulus=("presentation", stimulus))
    found = compare(features, ["linear"], twice, **QUICK)
    for job in found._jobs["a/linear"]:
        assert not set(stimulus[job.rows.train]) & set(stimulus[job.rows.test])
        inner = np.setdiff1d(job.rows.train, job.rows.validation)
        assert not set(stimulus[inner]) & set(stimulus[job.rows.validation])


def test_written_files(planted, tmp_path):
    features, responses = planted
    found = compare(features, ["linear"], responses, noise_ceiling=np.full(16, 0.8), **QUICK)
    summary = found.write(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["best_cell"] == summary["best_cell"]
    assert all(isinstance(v, (str, int, float)) for v in summary.values())
    voxels = load(tmp_path / "voxels.nc")
    assert set(voxels["r"].dims) == {"cell", "voxel"}
    assert voxels["roi"].values.tolist() == responses["roi"].values.tolist()
    np.testing.assert_allclose(voxels["r_normalised"].values, voxels["r"].values / 0.8)
    table = pd.read_csv(tmp_path / "comparison.csv")
    assert len(table) == 3 * 4  # all, a, b, none
    for row in table.query("group != 'none'").itertuples():
        inside = [row.group in ("all", x) for x in responses["roi"].values]
        r = voxels["r"].sel(cell=row.cell).values[inside]
        np.testing.assert_allclose(row.median_r, np.median(r), rtol=1e-6)
        np.testing.assert_allclose(row.median_r_normalised, np.median(r) / 0.8, rtol=1e-6)
        assert row.low < row.high
    pairs = pd.read_csv(tmp_path / "pairwise.csv")
    assert len(pairs) == 3 * 4
    first = table.query("cell == 'a/linear'").iloc[0]
    assert summary["median_r:a/linear"] == pytest.approx(first["median_r"], rel=1e-6)


def test_pooling_is_adaptive_average_pooling():
    torch = pytest.importorskip("torch")
    maps = np.random.default_rng(0).standard_normal((3, 2, 7, 5)).astype("float32")
    for cells in (1, 2, 3, 4):
        known = torch.nn.functional.adaptive_avg_pool2d(torch.as_tensor(maps), cells).numpy()
        np.testing.assert_allclose(pool_cells(maps, cells), known, rtol=1e-5, atol=1e-6)
    assert pool_cells(maps, None) is maps


def test_names_and_settings_that_do_not_exist(planted):
    features, responses = planted
    for arguments, message in [
        ({"readouts": {"linear": {"alphs": [1.0]}}}, "did you mean 'alphas'"),
        ({"cells": ["z/*"]}, "'z/\\*' matches no cell"),
        ({"readouts": {"a/b": {"readout": "linear"}}}, "must not be empty nor hold '/'"),
        ({"readouts": []}, "found 3 and 0"),
        ({"readouts": {"linear": 3}}, "expected a table"),
        ({"cores": {"plain": {"features": "imges"}}}, "unknown features of core 'plain': 'imges'"),
        ({"cv": 1}, "at least 2 folds"),
        ({"cv": "day"}, "needs a coordinate"),
        ({"validation": 1.5}, "between 0 and 1"),
        ({"workers": 0}, "workers=0"),
        ({"n_candidates": 2.5}, "n_candidates=2.5"),
    ]:
        with pytest.raises(ConfigError, match=message):
            compare(features, **{"readouts": ["linear"], "responses": responses, **QUICK, **arguments})


def test_data_that_does_not_fit(planted):
    features, responses = planted
    short = {"a": features["a"][:150]}
    broken = features["a"].copy(data=np.where(np.arange(200)[:, None] == 3, np.nan, features["a"].values))
    empty = responses.values.copy()
    empty[:, 5] = np.nan
    for X, Y, message in [
        (short, responses, "feature space 'a': 50 of 200 stimuli"),
        ({"a": broken}, responses, "'a' holds NaN"),
        ({"a": features["a"].values}, responses, "'a' is ndarray"),
        (features, responses.values, "responses are ndarray"),
        (features, responses.copy(data=empty), "1 voxels have no response at all \\(first: \\[5\\]"),
        (features, responses.copy(data=np.where(responses.values > 3, np.inf, responses.values)), "infinite"),
    ]:
        with pytest.raises(DataError, match=message):
            compare(X, ["linear"], Y, **QUICK)
    with pytest.raises(DataError, match="correlation of at most 1"):
        compare(features, ["linear"], responses, noise_ceiling=np.full(16, 80.0), **QUICK)
    rows = np.arange(200)
    splits = [(rows[50:], rows[:50]), (rows[:150], rows[40:60])]
    with pytest.raises(DataError, match=r"more than one fold|both sides|rows that it tests"):
        compare(features, ["linear"], responses, **{**QUICK, "cv": splits})


def test_cells_by_name():
    cells = build_cells(["x", "y"], {"ridge": {"readout": "linear"}, "pool": {"readout": "pooled", "pool": 4}})
    assert [c.name for c in cells] == ["x/ridge", "x/pool", "y/ridge", "y/pool"]
    assert cells[1].options == {"pool": 4}
    assert all(c.closed_form for c in cells)
    kept = build_cells(["x", "y"], ["linear", "pooled"], keep=["x/*", "*/pooled"])
    assert [c.name for c in kept] == ["x/linear", "x/pooled", "y/pooled"]


def test_maps_are_pooled_or_flattened():
    rng = np.random.default_rng(0)
    ids = [f"s{i}" for i in range(160)]
    maps = rng.standard_normal((160, 3, 4, 4)).astype("float32")
    Y = maps[:, 0].mean(axis=(1, 2))[:, None] * 4 + 0.5 * rng.standard_normal((160, 3))
    placed = maps[:, 1, 0, 0][:, None] + 0.5 * rng.standard_normal((160, 3))
    from neuroenc.data import make_responses

    responses = make_responses(np.hstack([Y, placed]).astype("float32"), stimulus=ids, dim="stimulus")
    readouts = {"flat": {"readout": "linear"}, "average": {"readout": "pooled"}}
    found = compare({"m": make_features(maps, stimulus=ids)}, readouts, responses, **QUICK)
    r = found.scores["r"]
    assert (r.sel(cell="m/average")[:3] > r.sel(cell="m/flat")[:3]).all()
    assert (r.sel(cell="m/flat")[3:] > r.sel(cell="m/average")[3:] + 0.2).all()
    parameters = found.table().set_index(["cell", "group"])["n_parameters"]
    assert parameters["m/flat", "all"] == 6 * 49
    assert parameters["m/average", "all"] == 6 * 4


def test_labelled_ceilings_are_put_in_the_order_of_the_voxels(planted):
    from neuroenc.encoders.comparison._compare import check_ceiling

    _, responses = planted
    ids = responses.voxel.values
    ceiling = xr.DataArray(np.linspace(0.1, 0.9, len(ids)), dims="voxel", coords={"voxel": ids})
    np.testing.assert_array_equal(check_ceiling(ceiling[::-1], responses), ceiling.values)
    with pytest.raises(DataError, match=r"noise ceilings have 16 voxels.*missing"):
        check_ceiling(ceiling.assign_coords(voxel=ids + 100), responses)


def test_likelihood_of_cells_equals_numpy_and_gains_where_voxels_share_noise():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((90, 4)).astype("float32")
    shared = 2 * rng.standard_normal((90, 2)) @ rng.standard_normal((2, 12))
    values = x @ rng.standard_normal((4, 12)) + shared + 0.5 * rng.standard_normal((90, 12))
    ids = [f"s{n}" for n in range(90)]
    y = make_responses(values, stimulus=ids, dim="stimulus")
    spaces = {"a": make_features(x, stimulus=ids)}
    found = compare(spaces, {"linear": {}}, y, cv=3, progress=False)
    told = {}
    for metric in ("correlation", "likelihood"):
        table = identify_cells(found, metric=metric, sizes=[2], n_permutations=0, n_bootstraps=10)
        told[metric] = table.loc[table["measure"] == "accuracy", "accuracy"].item()
    predicted = found.predictions(found.cells[0]).values
    left, share = y.values - predicted, []
    for job in found._jobs[found.cells[0]]:
        test = job.rows.test
        rest = np.setdiff1d(np.arange(90), test)
        scaled = left[rest] - left[rest].mean(axis=0)
        sd = scaled.std(axis=0)
        weights = np.linalg.inv(LedoitWolf(assume_centered=True).fit(scaled / sd).covariance_)
        gap = (y.values[test][:, None] - predicted[test]) / sd
        cost = np.einsum("tcv,vw,tcw->tc", gap, weights, gap)
        share += [(row > row[n]).sum() / (len(row) - 1) for n, row in enumerate(cost)]
    assert told["likelihood"] == pytest.approx(np.mean(share), abs=0.002)
    assert told["likelihood"] > told["correlation"] + 0.05
    single = compare(spaces, {"linear": {}}, y, cv=[(np.arange(60), np.arange(60, 90))], progress=False)
    with pytest.raises(ConfigError, match="there is one fold"):
        identify_cells(single, metric="likelihood")
    assert len(identify_cells(single, sizes=[2], n_permutations=0, n_bootstraps=10))
