"""Whole comparisons from a config: own files, subjects side by side, shipped examples, the command."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.cli._main import app
from neuroenc.data import EncodingData, Stimuli, make_responses
from neuroenc.study import Study, compare, example_config, list_examples, read_config
from neuroenc.study.stages.compare import _template_fields, join_subjects, scale_voxels

CONFIG = """
title = "Mine"
[data]
responses = "responses.nc"
[features.right]
kind = "file"
file = "right.nc"
[features.wrong]
kind = "file"
file = "wrong.nc"
[features.other]
kind = "file"
file = "wrong.nc"
[compare]
cv = 4
n_bootstraps = 100
joint = ["stacked"]
cells = ["*/linear", "right/pooled2"]
[compare.readouts.linear]
[compare.readouts.pooled2]
readout = "pooled"
pool = 2
[compare.regions]
vision = "right"
dense = "wrong"
single = "other"
[compare.layers]
order = ["wrong", "right"]
dims = [4, 48]
"""


@pytest.fixture
def folder(tmp_path):
    return own_files(tmp_path)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Folder, summary and messages of a comparison."""
    folder, said = own_files(tmp_path_factory.mktemp("compared")), []
    config = read(folder / "compare.toml", ["compare.learning_curve=[30]", "compare.decode='likelihood'"])
    return folder, compare(config, folder / "out", progress=False, say=said.append), said


def own_files(tmp_path):
    """Responses that one of two maps drives."""
    rng = np.random.default_rng(0)
    ids = [f"img{i:03d}" for i in range(120)]
    maps = rng.standard_normal((120, 3, 4, 4)).astype("float32")
    W = rng.standard_normal((48, 10)) / np.sqrt(48)
    Y = (maps.reshape(120, -1) @ W + 0.5 * rng.standard_normal((120, 10))).astype("float32")
    # In another order than the responses: rows go together by id.
    order = rng.permutation(120)
    data.save(data.make_features(maps[order], stimulus=[ids[n] for n in order]), tmp_path / "right.nc")
    other = rng.standard_normal((120, 3, 4, 4)).astype("float32")
    data.save(data.make_features(other, stimulus=ids), tmp_path / "wrong.nc")
    responses = make_responses(Y, stimulus=ids, dim="stimulus", roi=["V1"] * 5 + ["V4"] * 5)
    data.save(responses, tmp_path / "responses.nc")
    (tmp_path / "compare.toml").write_text(CONFIG)
    return tmp_path


def quiet(line):
    return


def read(path, changes=()):
    return read_config(path, list(changes), "compare")


def files(out):
    """Every output but the clock."""
    found = {p.name: p.read_bytes() for p in sorted(out.iterdir()) if p.suffix in (".csv", ".nc")}
    for name in ("comparison.csv", "fits.csv"):
        table = pd.read_csv(out / name)
        found[name] = table.drop(columns=["seconds", "seconds_per_fit"]).to_csv()
    summary = json.loads((out / "summary.json").read_text())
    found["page"] = (out / "report" / "index.html").read_bytes()
    return found, {k: v for k, v in summary.items() if not k.startswith("seconds")}


def test_own_files_to_tables_and_a_page(compared):
    folder, summary, said = compared
    assert summary["best_cell"] == "right/linear"
    assert summary["median_r:right/linear"] > summary["median_r:wrong/linear"] + 0.3
    assert summary["best_layer"] == "right"
    assert summary["share_region:linear:vision"] > 0.8
    table = pd.read_csv(folder / "out" / "comparison.csv")
    assert set(table["group"]) == {"all", "V1", "V4"}
    assert len(table) == 5 * 3
    made = (
        "stacked_layers.csv",
        "pairwise.csv",
        "fits.csv",
        "regions.csv",
        "regions.nc",
        "layers.csv",
        "layers.nc",
        "voxels.nc",
    )
    for name in (
        *made,
        "stacked_layers.csv",
        "unique.csv",
        "unique.nc",
        "similarity.csv",
        "cheapest.csv",
        "layer_dims.nc",
        "stacked_layers.csv",
    ):
        assert (folder / "out" / name).stat().st_size > 0
    learned = pd.read_csv(folder / "out" / "learning_curve.csv").set_index(["method", "size"])["median_r"]
    assert learned["right/linear"][90] == pytest.approx(summary["median_r:right/linear"], abs=1e-6)
    assert learned["right/linear"][30] < learned["right/linear"][90] - 0.05
    page = (folder / "out" / "report" / "index.html").read_text()
    assert "How many training stimuli are enough" in page
    assert "Mine" in page
    assert "right/linear" in page
    assert "What only one space predicts" in page
    assert "How deep and how wide" in page
    assert "Several spaces at once" in page
    weights = data.load(folder / "out" / "joint_weights.nc")["weight"]
    assert (weights.sel(cell="all/stacked", space="right") > 0.8).all()
    layers = data.load(folder / "out" / "stacked_layers.nc")
    assert set(layers["first"].values) == set(layers["last"].values) == {"right"}
    assert "Score by depth" in page
    cheap = pd.read_csv(folder / "out" / "cheapest.csv").set_index("region")
    assert cheap.loc["all", ["layer", "dim"]].tolist() == ["right", 48]
    assert cheap.loc["all", "kept"] == 1
    named = pd.read_csv(folder / "out" / "identification.csv").query("measure == 'accuracy' and n == 2")
    right = summary["pairwise_accuracy:right/linear"]
    assert named.set_index("cell")["accuracy"]["right/linear"] == pytest.approx(right, abs=1e-6)
    assert right > 0.9
    assert summary["pairwise_accuracy:wrong/linear"] < 0.7
    assert "cell-decoding" in page
    assert summary["unique:right"] > 0.3 > abs(summary["unique:wrong"]) + 0.2
    assert str(folder) not in page
    assert any("median r" in line for line in said)


WRITTEN = """
import json, sys
import numpy as np, pandas as pd
from pathlib import Path
from neuroenc import data
out = Path(sys.argv[1])
voxels, regions, layers = (data.load(out / f"{name}.nc") for name in ("voxels", "regions", "layers"))
table, pairs = pd.read_csv(out / "comparison.csv"), pd.read_csv(out / "pairwise.csv")
print(json.dumps({
    "median": {str(c): float(np.median(voxels["r"].sel(cell=c))) for c in voxels["cell"].values},
    "voxel": voxels["voxel"].values.tolist(), "roi": voxels["roi"].values.tolist(),
    "table": table[table.kind == "all"].set_index("cell")["median_r"].to_dict(),
    "pairs": pairs[pairs.kind == "all"].set_index(["a", "b"])["median_difference"].reset_index().values.tolist(),
    "winner": voxels["winner"].values.tolist(), "region": regions["region"].values.tolist(),
    "layer": layers["layer"].values.tolist(),
}))
"""


def test_tables_and_maps_of_a_new_process_hold_what_the_comparison_found(compared, fresh):
    """Headline, tables and maps are one set of numbers."""
    folder, summary, said = compared
    found = fresh(WRITTEN, folder / "out")
    assert found["voxel"] == list(range(10))
    assert found["roi"] == ["V1"] * 5 + ["V4"] * 5
    for cell, median in found["table"].items():
        assert median == pytest.approx(found["median"][cell], rel=1e-6)
        assert median == pytest.approx(summary[f"median_r:{cell}"], rel=1e-6)
    best, rival = summary["best_cell"], summary["rival"]
    against = [(1 if a == best else -1) * d for a, b, d in found["pairs"] if best in (a, b)]
    assert summary["best_difference"] == pytest.approx(min(against), rel=1e-6)
    assert f"{best}, median r {found['table'][best]:.4f}" in "\n".join(said)
    assert f"against {rival}: {min(against):+.4f}" in "\n".join(said)
    assert len(found["region"]) == 1
    assert set(found["layer"]) <= {"wrong", "right"}
    assert len(found["winner"]) == 10


@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_files(folder):
    script = folder / "go.py"
    script.write_text(
        "import sys, time\n"
        "import neuroenc.encoders.comparison._compare as work\n"
        "plain = work.fit_job\n"
        "work.fit_job = lambda *a: (time.sleep(0.3), plain(*a))[1]\n"
        "from neuroenc.study import compare, read_config\n"
        "compare(read_config(sys.argv[1], command='compare'), sys.argv[2], progress=False)\n"
    )
    out = folder / "stopped"
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder / "compare.toml"), str(out)], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob(".steps/*-fold*/_result.json"))) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    config = read(folder / "compare.toml")
    done = len(list(out.glob(".steps/*-fold*/_result.json")))
    said = []
    compare(config, out, progress=False, say=said.append)
    assert any(line.startswith(f"  {done} of ") and line.endswith("fits done before") for line in said)
    compare(config, folder / "whole", progress=False, say=quiet)
    assert files(out) == files(folder / "whole")


@pytest.mark.slow
def test_command_with_two_processes(folder):
    """The command gives what the function gives, with any number of processes."""
    arguments = ["compare", str(folder / "compare.toml"), "--out", str(folder / "two"), "--workers", "2", "--quiet"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    compare(read(folder / "compare.toml"), folder / "one", progress=False, say=quiet)
    assert files(folder / "two") == files(folder / "one")
    said = CliRunner().invoke(app, ["compare"])
    assert said.exit_code == 2
    assert "world" in said.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("compare.foldz=3", "foldz"),
        ('features.right.kind="imagee"', "did you mean 'image'"),
        ("features.right.layr=3", "did you mean 'layer'"),
        ("compare.readouts.linear.alphs=[1.0]", "did you mean 'alphas'"),
        ('compare.cells=["rigt/*"]', "'rigt/\\*' matches no cell"),
        ('compare.regions.dense="wrongg"', "did you mean 'wrong'"),
        ('compare.layers.readout="liner"', "did you mean 'linear'"),
        ("compare.layers.dims=[48, 4]", r"must rise. Next step: dims = \[4, 48\]"),
        ('compare.layers.reduce="pcaa"', "pca"),
        ('compare.layers.readout="pooled2"', "needs the cell wrong/pooled2"),
        ('compare.regions.readouts=["pooled2"]', r"regions\] needs right, wrong, other through one readout"),
        ('features.right.kind="image"', r"file = .*right.nc' is not read with kind = \"image\""),
        ('data.name="v4-cowley2023"', "name.*responses"),
        ("data.join.session=[1]", "needs name, and one option"),
    ],
)
def test_wrong_settings_are_named_before_any_fit(folder, setting, message):
    with pytest.raises(ConfigError, match=message):
        compare(read(folder / "compare.toml", [setting]), folder / "out", progress=False, say=quiet)
    assert not (folder / "out").exists()


def test_folds_may_be_those_of_the_evaluation(folder):
    changes = [
        'compare.cv="evaluation"',
        "evaluation.scheme=cluster",
        "evaluation.n_splits=3",
        'compare.cells=["right/linear"]',
    ]
    changes += ["compare.joint=[]", "compare.unique=false"]
    table = read(folder / "compare.toml", changes).model_copy(deep=True)
    config = table.model_copy(update={"compare": table.compare.model_copy(update={"regions": None, "layers": None})})
    done = Study(config, folder / "out", progress=False).until("compare")
    labels = data.feature_clusters(data.load(folder / "right.nc"), 3)
    sizes = sorted(len(job.rows.test) for job in done.comparison._jobs["right/linear"])
    assert sizes == sorted(np.bincount(labels.values).tolist())


def test_more_folds_than_stimuli_are_refused_before_features(folder):
    (folder / "right.nc").write_bytes(b"\x89HDF\r\n\x1a\n")
    config = read(folder / "compare.toml", ["compare.cv=121"])
    with pytest.raises(ConfigError, match="cv=121 folds of 120 stimuli"):
        compare(config, folder / "out", progress=False, say=quiet)


def test_a_stimulus_without_features_is_an_error(folder):
    responses = data.load(folder / "responses.nc")
    more = responses.assign_coords(stimulus=[f"new{i}" for i in range(120)])
    data.save(more, folder / "responses.nc")
    with pytest.raises(DataError, match=r"120 .*new0"):
        compare(read(folder / "compare.toml"), folder / "out", progress=False, say=quiet)


def subject(name, ids, pictures, n_voxels, seed, animal):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((len(ids), n_voxels)).astype("float32")
    responses = make_responses(values, stimulus=ids, dim="stimulus", subject=name, roi=["V4"] * n_voxels)
    return EncodingData(responses, Stimuli(ids, pictures), extra={"animal": animal})


def test_equal_pictures_are_one_stimulus():
    """Shared by two subjects under other ids, and shown to one under two ids."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    one = subject("a", ["a0", "a1", "a2", "a3"], pictures[[0, 1, 2, 0]], 2, 1, "X")
    two = subject("b", ["b0", "b1", "b2"], pictures[[4, 1, 5]], 3, 2, "Y")
    joined = join_subjects([one, two])
    y = joined.responses
    assert y["stimulus"].values.tolist() == ["a0", "a1", "a2", "b0", "b2"]
    first, second = one.responses.values, two.responses.values
    np.testing.assert_allclose(y.values[0, :2], (first[0] + first[3]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(y.values[1, :2], first[1])
    np.testing.assert_array_equal(y.values[1, 2:], second[1])
    np.testing.assert_array_equal(y.values[3, 2:], second[0])
    assert np.isnan(y.values[3:, :2]).all()
    assert np.isnan(y.values[[0, 2], 2:]).all()
    assert y["subject"].values.tolist() == ["a", "a", "b", "b", "b"]
    assert y["animal"].values.tolist() == ["X", "X", "Y", "Y", "Y"]
    assert y["unit"].values.tolist() == [0, 1, 0, 1, 2]
    assert joined.stimuli.ids.tolist() == y["stimulus"].values.tolist()
    for row, source in enumerate([0, 1, 2, 4, 5]):
        np.testing.assert_array_equal(np.asarray(joined.stimuli.image(row)), pictures[source])
    three = subject("c", ["a0"], pictures[[3]], 1, 3, "Z")
    with pytest.raises(DataError, match="different pictures have the same stimulus id"):
        join_subjects([one, three])


def test_voxels_are_scaled_over_what_they_saw():
    values = np.array([[1.0, 5.0, 2.0], [3.0, 5.0, np.nan], [np.nan, 5.0, 4.0]], "float32")
    responses = make_responses(np.nan_to_num(values), stimulus=["a", "b", "c"], dim="stimulus").copy(data=values)
    scaled = scale_voxels(responses).values
    np.testing.assert_allclose(scaled[:, 0], [-1, 1, np.nan])
    np.testing.assert_array_equal(scaled[:, 1], 0)
    np.testing.assert_allclose(scaled[:, 2], [-1, np.nan, 1])


def test_examples_name_cells_that_exist():
    from neuroenc.encoders.comparison import build_cells

    assert list_examples("compare") == ["v4", "world"]
    pytest.importorskip("torch")
    for name in list_examples("compare"):
        config = example_config(name, command="compare")
        grid = config.compare
        cells = build_cells(list(config.features), grid.readouts, grid.cores, grid.cells, grid.training)
        names = [cell.name for cell in cells]
        for layer in grid.layers.order if grid.layers else ():
            assert f"{layer}/{grid.layers.readout}" in names
        if name == "v4":
            assert {f"block8/{r}" for r in grid.readouts} <= set(names)
            assert "images/equivariant/factorized" in names


@pytest.mark.slow
def test_two_sessions_of_v4_side_by_side(mirror, tmp_path):
    """Real data: sessions that share 600 pictures, ridge, as if each were alone."""
    pytest.importorskip("torch")
    settings = [
        'data.join.session=["210322", "210325"]',
        'compare.cells=["block12/pooled"]',
        "compare.layers.enabled=false",
        "compare.n_bootstraps=200",
        "features.block12.pooling=2",
    ]
    config = example_config("v4", settings, "compare")
    summary = compare(config, tmp_path, mirror=mirror, progress=False, say=quiet)
    assert summary["n_stimuli"] == 1240
    assert summary["n_voxels"] == 59 + 50
    # Equal pictures are one stimulus here.
    assert summary["share_near_duplicates"] < 0.02
    assert "How far the test pictures" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    table = pd.read_csv(tmp_path / "comparison.csv").set_index("group")
    assert table.loc["PE-210322", "n_train"] == 960
    assert table.loc["PE-210325", "n_train"] == 512
    assert table.loc[["PE-210322", "PE-210325"], "median_r"].min() > 0.2
    ceilings = data.load(tmp_path / "voxels.nc")["r_normalised"].values[0]
    assert np.isnan(ceilings[:59]).all()
    assert np.isfinite(ceilings[59:]).mean() > 0.5


@pytest.mark.slow
def test_encoders_of_one_subject_are_tested_on_another(tmp_path):
    """Subjects of the simulated world share regions, not voxels."""
    (tmp_path / "compare.toml").write_text(
        """
title = "Two subjects"
[data]
name = "world"
options = { n_subjects = 2, n_train = 100, n_test = 0, n_repeats = 1, n_voxels = 60 }
[features.pixels]
kind = "pixels"
size = 8
[compare]
cv = 3
n_bootstraps = 50
transfer = "roi"
[compare.readouts.linear]
"""
    )
    compare(read(tmp_path / "compare.toml"), tmp_path / "out", progress=False, say=quiet)
    found = data.load(tmp_path / "out" / "transfer.nc")
    assert found["median"].sizes == {"fit": 2, "test": 2, "group": found.sizes["group"]}
    assert found["group"].values[0] == "all"
    every = found["median"].isel(group=0).values
    assert np.isfinite(every).all()
    assert "Transfer between data sets" in (tmp_path / "out" / "report" / "index.html").read_text()
    assert {"fit", "test", "group", "median"} <= set(pd.read_csv(tmp_path / "out" / "transfer.csv").columns)


def test_transfer_needs_two_data_sets(folder):
    with pytest.raises(ConfigError, match="transfer is between data sets, and there is one"):
        compare(read(folder / "compare.toml", ["compare.transfer=roi"]), folder / "out", progress=False, say=quiet)


def test_the_template_of_the_studys_atlas_stands_beside_fields(monkeypatch):
    """Only where the atlas has angles, voxels have vertices and pictures a width in degrees."""
    places = {"vertex": ("voxel", [4, 9]), "hemi": ("voxel", ["R", "L"])}
    angles = {k: ("voxel", [45.0, 1.0]) for k in ("polar_angle", "eccentricity", "size")}
    atlas = xr.DataArray(["V1", "V2"], dims="voxel", coords=places | angles, attrs={"space": "fsaverage"})
    monkeypatch.setattr(data, "load_atlas", lambda name: atlas if name == "benson14" else atlas.drop_vars(list(angles)))
    fields = xr.Dataset({"polar_angle": ("voxel", [0.0, 0.0])}, {k: ("voxel", v[1][::-1]) for k, v in places.items()})

    def study(name):
        one = SimpleNamespace(responses=xr.DataArray([0.0], dims="voxel", attrs={"space": "fsaverage5"}))
        return SimpleNamespace(subjects=[one], config=SimpleNamespace(data=SimpleNamespace(atlas=name)))

    told = _template_fields(study("benson14"), fields, 8.0)
    assert told["region"].values.tolist() == ["V2", "V1"]
    assert told["polar_angle"].values[0] == 89  # 1 degree from the upper meridian, in the right half
    assert np.isnan(told["polar_angle"].values[1])  # beyond the picture
    assert _template_fields(study("benson14"), fields, 0.0) is None
    assert _template_fields(study("wang15"), fields, 8.0) is None
    assert _template_fields(study(""), fields, 8.0) is None
    assert _template_fields(study("benson14"), fields.drop_vars("vertex"), 8.0) is None
