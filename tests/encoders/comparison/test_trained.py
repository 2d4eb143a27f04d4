"""Readouts and cores that are trained by gradients, in a comparison."""

import pickle
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from neuroenc import stats  # noqa: E402
from neuroenc._core.errors import ConfigError  # noqa: E402
from neuroenc.data import make_features, make_responses  # noqa: E402
from neuroenc.encoders.comparison import build_cells, compare  # noqa: E402
from neuroenc.encoders.comparison._grid import candidates  # noqa: E402
from neuroenc.encoders.readout import ReadoutEncoder  # noqa: E402
from neuroenc.study.config import CompareConfig  # noqa: E402

from .conftest import of_two_subjects  # noqa: E402

FAST = {"max_epochs": 6, "lr": 0.02, "batch_size": 32}
QUICK = {"cv": 3, "n_bootstraps": 100, "progress": False, "n_candidates": 2, "training": FAST}
# Where only equality is asked.
BRIEF = {**QUICK, "n_bootstraps": 10, "n_candidates": 1, "training": {**FAST, "max_epochs": 2}}


def placed(n=180, v=8, seed=0, noise=0.5):
    """Voxels that read two channels at one place of a map."""
    rng = np.random.default_rng(seed)
    ids = [f"s{i:03d}" for i in range(n)]
    maps = rng.standard_normal((n, 3, 4, 4)).astype("float32")
    Y = noise * rng.standard_normal((n, v))
    for k in range(v):
        y, x = rng.integers(0, 4, 2)
        Y[:, k] += maps[:, 0, y, x] - maps[:, 1, y, x]
    return {"m": make_features(maps, stimulus=ids)}, make_responses(Y.astype("float32"), stimulus=ids, dim="stimulus")


def test_a_trained_cell_by_hand():
    """The setting that is best on the validation rows, fitted again on all training rows for its schedule."""
    features, responses = placed()
    found = compare(features, {"factorized": {"search": {"feature_l2": [0.0, 30.0]}}}, responses, **QUICK)
    job, fitted = found._fits("m/factorized")[1]
    X, Y = features["m"].values[job.rows.train], responses.values[job.rows.train]
    held = np.flatnonzero(np.isin(job.rows.train, job.rows.validation))
    seed = int(np.random.SeedSequence([0, 1, 0]).generate_state(1)[0] % 2**31)
    tried = []
    for option in (0.0, 30.0):
        encoder = ReadoutEncoder(
            "factorized", readout_options={"feature_l2": option}, validation=held, seed=seed, device="cpu", **FAST
        ).fit(X, Y)
        tried.append((np.nanmean(stats.score(Y[held], encoder.predict(X[held]))), encoder.schedule_, option))
    r, schedule, option = max(tried, key=lambda t: t[0])
    assert fitted.record["chosen"]["options"] == {"feature_l2": option} == {"feature_l2": 0.0}
    assert max(fitted.record["candidate_r"]) == pytest.approx(r, abs=1e-4)
    assert fitted.record["best_epoch"] == len(schedule)
    final = ReadoutEncoder("factorized", readout_options={"feature_l2": option}, seed=seed, device="cpu", **FAST)
    final.fit(X, Y, fixed_epochs=schedule)
    np.testing.assert_allclose(
        found.predictions("m/factorized").values[job.rows.test],
        final.predict(features["m"].values[job.rows.test]),
        rtol=1e-3,
        atol=1e-3,
    )


def test_test_rows_decide_nothing_in_training_either():
    features, responses = placed()
    whole = compare(features, ["factorized"], responses, **BRIEF)
    test = whole._jobs["m/factorized"][0].rows.test
    values = responses.values.copy()
    values[test] = 50 * np.random.default_rng(1).standard_normal((len(test), values.shape[1]))
    other = compare(features, ["factorized"], responses.copy(data=values), **BRIEF)
    np.testing.assert_array_equal(
        whole.predictions("m/factorized").values[test], other.predictions("m/factorized").values[test]
    )


@pytest.mark.slow
def test_processes_and_resuming_give_the_same_bytes(tmp_path):
    features, responses = placed()
    one = compare(features, ["factorized", "semantic"], responses, out=tmp_path / "one", **QUICK)
    two = compare(features, ["factorized", "semantic"], responses, out=tmp_path / "two", workers=2, **QUICK)
    # A fit that is lost is made again with the same result.
    shutil.rmtree(next((tmp_path / "two").glob("m-semantic-fold1-*")))
    again = compare(features, ["factorized", "semantic"], responses, out=tmp_path / "two", **QUICK)
    for cell in one.cells:
        for other in (two, again):
            np.testing.assert_array_equal(one.predictions(cell).values, other.predictions(cell).values)
    assert not list((tmp_path / "two").rglob("*.part"))


@pytest.mark.slow
def test_every_readout_is_compared_and_has_its_costs():
    features, responses = placed(v=4)
    names = ["linear", "pooled", "gaussian", "factorized", "semantic", "attention", "compression", "lowrank"]
    names += ["sentence_gate", "patch_summary", "codebook"]
    found = compare(features, names, responses, **QUICK)
    table = found.table().query("kind == 'all'").set_index("readout")
    assert table["n_train"].nunique() == table["n_test"].nunique() == table["n_validation"].nunique() == 1
    assert table.loc[names[2:], "n_candidates"].tolist() == [2] * 9
    assert table.loc[names[:2], "n_candidates"].tolist() == [1] * 2
    assert table.loc["linear", "n_parameters"] == 4 * 49
    assert (table["seconds"] > 0).all()
    fields = found.receptive_fields()
    assert np.isfinite(fields["rf_x"].sel(cell="m/gaussian")).all()
    assert np.isnan(fields["rf_x"].sel(cell="m/linear")).all()
    spread = found.warp_spread()
    assert np.isfinite(spread.sel(cell="m/semantic").to_array()).all()
    curves = found.curves()
    assert set(curves["cell"]) == {f"m/{name}" for name in names[2:]}
    assert (curves.groupby(["cell", "fold"])["candidate"].nunique() == 2).all()
    r = found.scores["r"].mean("voxel")
    assert float(r.sel(cell="m/factorized")) > float(r.sel(cell="m/pooled"))


@pytest.mark.slow
def test_subjects_of_frozen_features_are_fitted_apart():
    """Another subject's responses do not touch a subject's fit, and its stimuli are not trained on."""
    features, responses = placed()
    both = of_two_subjects(responses)
    found = compare(features, ["factorized"], both, **BRIEF)
    jobs = found._jobs["m/factorized"]
    assert [len(job.voxels) for job in jobs] == [4] * 6
    for job in jobs:
        assert not np.isnan(both.values[np.ix_(job.rows.train, job.voxels)]).any()
    values = both.values.copy()
    values[:, 4:] *= -2
    other = compare(features, ["factorized"], both.copy(data=values), **BRIEF)
    np.testing.assert_array_equal(
        found.predictions("m/factorized").values[:, :4], other.predictions("m/factorized").values[:, :4]
    )


def test_a_core_is_shared_and_has_settings_of_its_own():
    rng = np.random.default_rng(0)
    ids = [f"s{i:03d}" for i in range(90)]
    images = rng.integers(0, 256, (90, 3, 16, 16), dtype=np.uint8)
    import xarray as xr

    pixels = xr.DataArray(images, dims=("stimulus", "channel", "y", "x"), coords={"stimulus": ids})
    bright = images[:, 0].mean(axis=(1, 2))
    Y = ((bright - bright.mean()) / bright.std())[:, None] + 0.3 * rng.standard_normal((90, 6))
    both = of_two_subjects(make_responses(Y.astype("float32"), stimulus=ids, dim="stimulus"))
    features = {"m": make_features(images[:, :, ::4, ::4].astype("float32"), stimulus=ids), "pixels": pixels}
    found = compare(
        features, ["factorized"], both, cores={"plain": {"features": "pixels", "fields": 2, "max_epochs": 2}}, **QUICK
    )
    assert found.cells == ["m/factorized", "pixels/plain/factorized"]
    jobs = found._jobs["pixels/plain/factorized"]
    assert [len(job.voxels) for job in jobs] == [6] * 3
    assert found.curves().groupby("cell")["epoch"].max().to_dict() == {"m/factorized": 6, "pixels/plain/factorized": 2}
    assert (np.isnan(found.predictions("pixels/plain/factorized").values) == np.isnan(both.values)).all()
    table = found.table()
    for _, rows in table.groupby(["kind", "group"]):
        assert rows["n_train"].nunique() == rows["n_test"].nunique() == 1


def test_candidates_are_the_same_number_and_differ():
    cells = build_cells(["a", "b"], {"factorized": {}, "gaussian": {"search": {"feature_l2": [0.1]}}})
    for cell in cells:
        drawn = candidates(cell, 4, seed=0)
        assert len(drawn) == 4
        assert len({repr(c) for c in drawn}) == 4
    by_name = {cell.name: cell for cell in cells}
    assert candidates(by_name["a/factorized"], 3, 0) == candidates(by_name["b/factorized"], 3, 0)
    assert candidates(by_name["a/factorized"], 4, 0) != candidates(by_name["a/factorized"], 4, 1)
    assert [c["start"] for c in candidates(by_name["a/gaussian"], 3, 0)] == [0, 1, 2]
    assert pickle.loads(pickle.dumps(cells)) == cells  # noqa: S301


def test_unknown_names_are_found_before_any_fit():
    features, responses = placed(n=60, v=2)
    for arguments, message in [
        ({"readouts": ["factorised"]}, "did you mean 'factorized'"),
        ({"readouts": {"factorized": {"feature_l3": 1.0}}}, "did you mean 'feature_l2'"),
        ({"readouts": {"factorized": {"search": {"feature_l3": [1.0]}}}}, "did you mean 'feature_l2'"),
        ({"readouts": {"factorized": {"search": {"feature_l2": []}}}}, "no values to choose from"),
        ({"readouts": {"semantic": {"context": "mm"}}}, "did you mean 'm'"),
        ({"training": {"max_epoch": 3}}, "did you mean 'max_epochs'"),
        ({"cores": {"plane": {"features": "m"}}}, "did you mean 'plain'"),
        ({"cores": {"plain": {"features": "m", "feilds": 2}}}, "did you mean 'fields'"),
        ({"readouts": {"gaussian": {"closed_form": True}}}, "no closed form"),
    ]:
        with pytest.raises(ConfigError, match=message):
            compare(features, **{"readouts": ["factorized"], "responses": responses, **QUICK, **arguments})


def test_linear_by_gradients_is_another_cell_than_ridge():
    cells = build_cells(["m"], {"linear": {}, "descent": {"readout": "linear", "closed_form": False}})
    assert [c.closed_form for c in cells] == [True, False]
    features, responses = placed(v=3)
    found = compare(
        features,
        {"linear": {}, "descent": {"readout": "linear", "closed_form": False, "lr": 0.003}},
        responses,
        **QUICK,
    )
    assert len(found.curves()) > 0
    assert (found.scores["r"].values > 0.2).all()


def test_a_trunk_conditioned_on_subject_and_region_is_a_core_with_gates():
    features, responses = placed()
    two = of_two_subjects(responses).assign_coords(roi=("voxel", ["V1", "V4"] * 4))
    maps = {"m": features["m"].assign_coords(space=("channel", ["early", "late", "late"]))}
    trunk = {"core": "trunk", "conditioning": "affine+gate", "width": 4, "regions": "roi", "max_epochs": 2}
    found = compare(
        maps, ["pooled"], two, cores={"shared": {"core": "trunk", "width": 4}, "conditioned": trunk}, **QUICK
    )
    assert found.cells == ["m/shared/pooled", "m/conditioned/pooled"]
    gates = found.gates()
    assert gates.dims == ("cell", "space", "voxel")
    assert gates["space"].values.tolist() == ["early", "late"]
    own = gates.sel(cell="m/conditioned/pooled")
    assert ((own > 0) & (own < 1)).all()
    # Voxels of one subject's region have one gate, other tasks another.
    assert len(np.unique(own.sel(space="early").values.round(6))) == 4
    assert gates.sel(cell="m/shared/pooled").isnull().all()
    conflict = found.gradient_conflict()
    tasks = conflict.sel(cell="m/conditioned/pooled").dropna("task", how="all")["task"].values.tolist()
    assert tasks == ["one/V1", "one/V4", "two/V1", "two/V4"]
    assert conflict.sel(cell="m/shared/pooled").notnull().sum() == 4
    with pytest.raises(ConfigError, match="width"):
        build_cells(["m"], ["pooled"], {"c": {"core": "trunk", "widht": 4}})


def test_a_control_has_as_many_parameters_and_published_training_its_own_values():
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((80, 6, 5, 5)).astype("float32")
    ids = [f"s{i}" for i in range(80)]
    space = make_features(maps, stimulus=ids)
    Y = make_responses(maps[:, 0, 1, 1][:, None] + rng.standard_normal((80, 40)), stimulus=ids, dim="stimulus")
    readouts = {"factorized": {"search": {}}, "control": {"readout": "lowrank", "matches": "factorized", "search": {}}}
    how = {"cv": 2, "n_candidates": 1, "n_bootstraps": 20, "progress": False}
    found = compare({"x": space}, readouts, Y, training={"preset": "published", "max_epochs": 1}, **how)
    costs = found.table().query("kind == 'all'").set_index("cell")["n_parameters"]
    step = 6 * 25 + 40  # parameters of one rank
    assert abs(costs["x/control"] - costs["x/factorized"]) <= step / 2 + 1
    training = build_cells(["x"], readouts, training={"preset": "published", "patience": 3})[0].training
    assert (training["lr"], training["batch_size"], training["loss"]) == (1e-4, 4, "mse+ccc-batch")
    assert training["patience"] == 3
    config = CompareConfig(readouts={"linear": {}, "factorized": {}, "f2": {"readout": "factorized"}}, matched=True)
    names = [cell.name for cell in build_cells(["x"], config.all_readouts(), {"plain": {"features": ["x"]}})]
    assert names == ["x/plain/linear", "x/plain/factorized", "x/plain/f2"]  # a core has no control
    names = [cell.name for cell in build_cells(["x"], config.all_readouts())]
    assert names == ["x/linear", "x/factorized", "x/f2", "x/factorized-matched", "x/f2-matched"]
    with pytest.raises(ConfigError, match="lowrank"):
        build_cells(["x"], {"factorized": {}, "linear": {"matches": "factorized"}})
    with pytest.raises(ConfigError, match="published"):
        build_cells(["x"], ["factorized"], training={"preset": "publish"})
