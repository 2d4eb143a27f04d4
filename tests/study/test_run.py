"""Whole runs on small data of one's own, from files to files."""

import json
import os
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neuroenc import data, stats
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.store import Store, content_key
from neuroenc.encoders import load_encoder
from neuroenc.study import Study, StudyConfig, export, read_config, run
from neuroenc.study.stages.load import load_data, prepare_responses

N, P = 60, 12


def planted(seed=0, v=20):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, P)).astype("float32")
    W = rng.standard_normal((P, v)) / np.sqrt(P)
    W[:, v // 2 :] = 0  # the second half is noise
    return X, (X @ W + 0.5 * rng.standard_normal((N, v))).astype("float32")


@pytest.fixture
def folder(tmp_path):
    """Features and NIfTI responses of one's own, with a trial table."""
    X, Y = planted()
    ids = [f"img{i:03d}" for i in range(N)]
    data.save(data.make_features(X, stimulus=ids), tmp_path / "features.nc")
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    mask = np.zeros((4, 5, 2), "uint8")
    mask[:, :, 0] = 1
    volume = np.zeros((*mask.shape, N), "float32")
    volume[mask > 0] = Y.T
    roi = mask.copy()
    roi[2:] = 0
    nib.save(nib.Nifti1Image(volume, affine), tmp_path / "betas.nii.gz")
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "mask.nii.gz")
    nib.save(nib.Nifti1Image(roi, affine), tmp_path / "signal.nii.gz")
    trials = pd.DataFrame({"stimulus": ids, "session": 1, "run": np.repeat([1, 2, 3], 20)})
    trials.to_csv(tmp_path / "trials.csv", index=False)
    (tmp_path / "run.toml").write_text(
        """
        title = "Mine"
        [data]
        responses = "betas.nii.gz"
        mask = "mask.nii.gz"
        rois = { signal = "signal.nii.gz" }
        samples = "trials.csv"
        [features]
        kind = "file"
        file = "features.nc"
        [evaluation]
        n_splits = 3
        permutations = 200
        """
    )
    return tmp_path


def files(out):
    """Every output but the clock."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_file() and not name.startswith(".steps"):
            found[name] = path.read_bytes()
    summary = json.loads(found.pop("summary.json"))
    summary.pop("seconds")
    return found, summary


def test_own_volume_to_report(folder):
    out = folder / "out"
    said: list[str] = []
    summary = run(read_config(folder / "run.toml"), out, progress=False, say=said.append)
    scores = data.load(out / "report" / "scores.nc")
    signal = data.in_roi(scores, "signal")
    assert signal.sum() == 10
    assert (scores["q_value"].values[signal] < 0.05).all()
    assert np.median(scores["r"].values[signal]) > 0.6
    assert summary["n_significant"] <= 11
    image = nib.load(out / "report" / "maps" / "r.nii.gz")
    np.testing.assert_allclose(image.affine, np.diag([2.0, 2.0, 2.0, 1.0]))
    index = tuple(scores[k].values for k in "ijk")
    np.testing.assert_allclose(image.get_fdata()[index], scores["r"].values, rtol=1e-6)
    assert json.loads((out / "summary.json").read_text())["median_r"] == pytest.approx(float(scores["r"].median()))
    assert "signal" in (out / "report" / "index.html").read_text()
    whole = next(row for row in "\n".join(said).splitlines() if row.strip().startswith("all voxels")).split()
    assert any(x.startswith(f"median r {summary['median_r']:.4f} over 20 voxels") for x in said)
    assert whole[-2:] == ["20", f"{summary['median_r']:.3f}"]


def test_a_second_run_computes_nothing_and_writes_the_same(folder):
    config = read_config(folder / "run.toml")
    lines: list[str] = []
    run(config, folder / "out", progress=False, say=lines.append)
    first = files(folder / "out")
    assert not any("done before" in line for line in lines)
    lines.clear()
    run(config, folder / "out", progress=False, say=lines.append)
    assert sum("done before" in line for line in lines) == 7
    assert files(folder / "out") == first


def test_killed_and_given_again_ends_with_the_same_files(folder):
    config = read_config(folder / "run.toml")
    run(config, folder / "whole", progress=False, say=lambda _: None)
    script = (
        "import sys, time\nseen = []\n"
        "from neuroenc.study import read_config, run\n"
        "def say(line):\n"
        "    print(line, flush=True)\n"
        "    if line.startswith('  fit'): seen.append(line)\n"
        "    if len(seen) == 2: time.sleep(60)\n"
        f"run(read_config({str(folder / 'run.toml')!r}), {str(folder / 'killed')!r}, progress=False, say=say)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    deadline, seen = time.monotonic() + 120, 0
    for line in process.stdout:
        seen += line.startswith("  fit")
        if seen == 2 or time.monotonic() > deadline:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "killed" / "summary.json").exists()
    lines: list[str] = []
    run(config, folder / "killed", progress=False, say=lines.append)
    assert sum("done before" in line for line in lines) == 2
    assert files(folder / "killed") == files(folder / "whole")


def test_a_test_set_by_name_and_repeats_give_a_ceiling(folder):
    _, Y = planted()
    ids = np.array([f"img{i:03d}" for i in range(N)])
    rows = np.r_[np.arange(N), np.arange(N - 15, N), np.arange(N - 15, N)]
    rng = np.random.default_rng(3)
    responses = data.make_responses(
        Y[rows] + 0.3 * rng.standard_normal((len(rows), Y.shape[1])).astype("float32") + 4,
        stimulus=ids[rows],
        session=np.arange(len(rows)) % 2,
        repeat=np.r_[np.zeros(N, int), np.ones(15, int), np.full(15, 2)],
    )
    data.save(responses, folder / "responses.nc")
    (folder / "named.toml").write_text(
        f"""
        [data]
        responses = "responses.nc"
        [features]
        kind = "file"
        file = "features.nc"
        [evaluation]
        scheme = "test"
        test_ids = {ids[-15:].tolist()}
        permutations = 0
        """
    )
    summary = run(read_config(folder / "named.toml"), folder / "out", progress=False, say=lambda _: None)
    scores = data.load(folder / "out" / "report" / "scores.nc")
    assert scores["r"].attrs["n_stimuli"] == 15
    assert 0 < summary["median_noise_ceiling_r"] < 1
    assert "q_value" not in scores


def test_rows_are_shuffled_within_runs_of_a_session(folder):
    """Run 1 of two sessions is two runs: their means do not pass for the features' doing."""
    from neuroenc.study.config import EvaluationConfig
    from neuroenc.study.stages.score import score_table

    rng = np.random.default_rng(0)
    session = np.repeat([1, 2], 40)
    y = rng.standard_normal((80, 30)).astype("float32") + 3 * session[:, None]
    measured = data.make_responses(y, stimulus=[f"s{k}" for k in range(80)], session=session, run=[1] * 80)
    predicted = measured.copy(data=session[:, None] + rng.standard_normal((80, 30)).astype("float32"))
    config = EvaluationConfig(scheme="test", test_ids=["all"], permutation_mode="within", permutations=99)
    p = score_table(measured, predicted, config, ceilings={}, seed=0)["p_value"].values
    assert (p < 0.05).mean() < 0.2


PREDICT = """
import json, sys
from neuroenc import data
from neuroenc.encoders import load_encoder
encoder, X = load_encoder(sys.argv[1]), data.load(sys.argv[2]).values
coef, intercept = encoder.to_linear()
print(json.dumps({
    "predicted": encoder.predict(X).tolist(), "weights": (X @ coef.values + intercept.values).tolist(),
    "ijk": [coef[k].values.tolist() for k in "ijk"], "alpha": encoder.alpha_.tolist(),
}))
"""


@pytest.mark.parametrize("standardise", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_saved_encoder_predicts_from_features_as_they_come(folder, fresh, standardise):
    """In a new process, with features of any scale: what scikit-learn predicts that was fitted on them."""
    X = planted()[0] * np.logspace(-2, 2, P).astype("float32") + 50
    data.save(data.make_features(X, stimulus=[f"img{i:03d}" for i in range(N)]), folder / "features.nc")
    config = read_config(
        folder / "run.toml", [f"features.standardise={str(standardise).lower()}", "evaluation.permutations=0"]
    )
    run(config, folder / "out", progress=False, say=lambda _: None)
    found = fresh(PREDICT, folder / "out" / "encoder", folder / "features.nc")
    measured = prepare_responses(load_data(config.data), config.data, keep_presentations=False).values
    expected = np.empty(measured.shape)
    for v, alpha in enumerate(found["alpha"]):
        model = make_pipeline(*([StandardScaler()] if standardise else []), Ridge(alpha))
        expected[:, v] = model.fit(X.astype(float), measured[:, v]).predict(X.astype(float))
    np.testing.assert_allclose(found["predicted"], expected, atol=2e-3)
    np.testing.assert_allclose(found["weights"], found["predicted"], atol=2e-3)
    scores = data.load(folder / "out" / "report" / "scores.nc")
    assert found["ijk"] == [scores[k].values.tolist() for k in "ijk"]
    if standardise:
        assert np.median(stats.score(measured, np.array(found["predicted"]), metric="r2")[:10]) > 0.7


EXPORTED = """
import json, sys
from pathlib import Path
import nibabel as nib, numpy as np
maps = [p for p in Path(sys.argv[1]).rglob("*.nii.gz")]
(r,) = [p for p in maps if "stat-r_" in p.name or "_r_" in p.name or p.name.endswith("-r_statmap.nii.gz")]
image = nib.load(r)
print(json.dumps({"names": sorted(p.name for p in maps), "values": image.get_fdata().tolist(),
                  "affine": image.affine.tolist()}))
"""


def test_exported_maps_hold_the_scores_of_the_run(folder, fresh):
    run(read_config(folder / "run.toml"), folder / "out", progress=False, say=lambda _: None)
    export(folder / "out", bids=folder / "bids", subject="01", space="T1w", say=lambda _: None)
    found = fresh(EXPORTED, folder / "bids")
    scores = data.load(folder / "out" / "report" / "scores.nc")
    values = np.array(found["values"], dtype=float)
    np.testing.assert_allclose(values[tuple(scores[k].values for k in "ijk")], scores["r"].values, rtol=1e-6)
    np.testing.assert_array_equal(found["affine"], np.diag([2.0, 2.0, 2.0, 1.0]))


def test_features_of_other_stimuli_are_refused(folder):
    X, _ = planted()
    data.save(data.make_features(X[:50], stimulus=[f"img{i:03d}" for i in range(50)]), folder / "features.nc")
    with pytest.raises(DataError, match=r"10 .*img050"):
        run(read_config(folder / "run.toml"), folder / "out", progress=False, say=lambda _: None)
    assert not (folder / "out" / "report").exists()


def test_wrong_affine_of_the_mask(folder):
    mask = nib.load(folder / "mask.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(mask.dataobj), np.eye(4)), folder / "mask.nii.gz")
    with pytest.raises(DataError, match="affine"):
        run(read_config(folder / "run.toml"), folder / "out", progress=False, say=lambda _: None)


def test_responses_that_claim_to_be_z_scored(folder):
    _, Y = planted()
    ids = [f"img{i:03d}" for i in range(N)]
    responses = data.make_responses(100 * Y + 7, stimulus=ids, session=np.repeat([1, 2], N // 2), zscored="session")
    data.save(responses, folder / "responses.nc")
    text = (folder / "run.toml").read_text()
    kept = [line for line in text.splitlines() if not line.strip().startswith(("mask", "rois", "samples"))]
    (folder / "run.toml").write_text("\n".join(kept).replace("betas.nii.gz", "responses.nc"))
    with pytest.raises(DataError, match=r"not z-scored.*zscore"):
        run(read_config(folder / "run.toml"), folder / "out", progress=False, say=lambda _: None)


def test_a_truncated_file(folder):
    path = folder / "features.nc"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"truncated|damaged"):
        run(read_config(folder / "run.toml"), folder / "out", progress=False, say=lambda _: None)


def test_features_as_npy_take_their_ids_from_a_table(folder):
    """One row a stimulus, in any order, or one a trial; a kind that is left out follows from the file."""
    X, _ = planted()
    out = folder / "out"
    run(read_config(folder / "run.toml"), out, progress=False, say=lambda _: None)
    expected = data.load(out / "report" / "scores.nc")["r"].values
    rows = np.r_[np.random.default_rng(0).permutation(N), 3, 4]
    np.save(folder / "features.npy", X[rows])
    pd.DataFrame({"stimulus": [f"img{i:03d}" for i in rows]}).to_csv(folder / "rows.csv", index=False)
    text = (folder / "run.toml").read_text().replace('kind = "file"', 'samples = "rows.csv"')
    (folder / "run.toml").write_text(text.replace("features.nc", "features.npy"))
    run(read_config(folder / "run.toml"), out, progress=False, say=lambda _: None)
    np.testing.assert_allclose(data.load(out / "report" / "scores.nc")["r"].values, expected, rtol=1e-5)
    np.save(folder / "features.npy", np.r_[X[rows[:-1]], [X[0]]])
    with pytest.raises(DataError, match=r"rows .* are both of stimulus 'img004' and differ"):
        run(read_config(folder / "run.toml"), out, progress=False, say=lambda _: None)
    np.save(folder / "features.npy", X)
    with pytest.raises(DataError, match=r"60 rows, .* 62"):
        run(read_config(folder / "run.toml"), out, progress=False, say=lambda _: None)
    with pytest.raises(ConfigError, match="needs samples"):
        read_config(folder / "run.toml", ["features.samples="])


@pytest.mark.parametrize(
    "setting", ['kind="image"', 'kind="captions"', 'model="minilm"', 'layer="block8"', "normalise=true"]
)
def test_settings_of_features_that_would_not_be_read_are_refused(folder, setting):
    with pytest.raises(ConfigError, match=r"\[features\] \w+ = .* is not read with kind"):
        read_config(folder / "run.toml", [f"features.{setting}"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["evaluation.n_splits=61"], "n_splits = 61 .* 60"),
        (["evaluation.scheme=test", 'evaluation.test_ids=["img003", "img09"]'], "img09"),
        (["evaluation.scheme=session"], "session"),
        (["encoder.cv=session"], r"\[encoder\] cv = 'session' .* all 40 rows are of one"),
        (["encoder.cv=subject"], r"\[encoder\] cv"),
    ],
)
def test_what_the_responses_cannot_give_is_refused_before_features(folder, settings, message):
    """The file of features is damaged: whatever is told was told before it was read."""
    (folder / "features.nc").write_bytes(b"\x89HDF\r\n\x1a\n")
    lines: list[str] = []
    with pytest.raises((ConfigError, DataError), match=message):
        run(read_config(folder / "run.toml", settings), folder / "out", progress=False, say=lines.append)
    assert not any("fit" in line for line in lines)


def test_samples_of_another_length(folder):
    pd.DataFrame({"stimulus": ["a"]}).to_csv(folder / "trials.csv", index=False)
    with pytest.raises(DataError, match=r"60 samples, .* 1 rows"):
        run(read_config(folder / "run.toml"), folder / "out", progress=False, say=lambda _: None)
    (folder / "run.toml").write_text((folder / "run.toml").read_text().replace('samples = "trials.csv"', ""))
    with pytest.raises(ConfigError, match="needs samples"):
        run(read_config(folder / "run.toml"), folder / "out", progress=False, say=lambda _: None)


def test_another_region_of_the_same_voxels_is_not_taken_from_before(folder):
    """Labels are read by the steps too: scores carry them."""
    config = read_config(folder / "run.toml")
    run(config, folder / "out", progress=False, say=lambda _: None)
    old = nib.load(folder / "signal.nii.gz")
    roi = np.asarray(nib.load(folder / "mask.nii.gz").dataobj).copy()
    roi[:2] = 0
    nib.save(nib.Nifti1Image(roi, old.affine), folder / "signal.nii.gz")
    run(config, folder / "out", progress=False, say=lambda _: None)
    run(config, folder / "new", progress=False, say=lambda _: None)
    assert files(folder / "out") == files(folder / "new")


def test_the_encoder_of_another_config_in_the_same_folder_is_replaced(folder):
    config = read_config(folder / "run.toml")
    other = read_config(folder / "run.toml", ["encoder.alphas=[3.0]"])
    run(config, folder / "out", progress=False, say=lambda _: None)
    first = files(folder / "out")
    run(other, folder / "out", progress=False, say=lambda _: None)
    assert load_encoder(folder / "out" / "encoder").alpha_.max() == 3.0
    run(config, folder / "out", progress=False, say=lambda _: None)
    assert files(folder / "out") == first


def test_damaged_steps_are_computed_again(folder):
    config = read_config(folder / "run.toml")
    run(config, folder / "out", progress=False, say=lambda _: None)
    first = files(folder / "out")
    results = sorted(p for p in (folder / "out" / ".steps").iterdir() if p.is_dir())
    assert [p.name.split("-")[0] for p in results] == ["distance", "encoder", *3 * ["fit"], "last", "page", "scores"]
    for result in results:
        path = max(result.iterdir(), key=lambda p: p.stat().st_size)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    lines: list[str] = []
    run(config, folder / "out", progress=False, say=lines.append)
    assert sum("is damaged" in line for line in lines) == 8
    assert files(folder / "out") == first


def test_steps_give_back_what_they_were_given(tmp_path):
    store = Store(tmp_path)
    frame = pd.DataFrame({"voxel": [1, 2], "score": [0.1 + 0.2, np.nan], "caption": ["a <b>", ""]})
    found = store.keep("t", 1, lambda: {"x": frame})["x"]
    pd.testing.assert_frame_equal(found, frame.astype({"caption": object}), check_dtype=False)
    dataset = xr.Dataset({"a": ("voxel", np.arange(3.0))}, coords={"voxel": [4, 5, 6]})
    xr.testing.assert_identical(store.keep("d", 1, lambda: {"x": dataset})["x"], dataset)

    def never():
        raise AssertionError

    xr.testing.assert_identical(store.keep("d", 1, never)["x"], dataset)
    with pytest.raises(AssertionError):
        store.keep("d", 2, never)


def test_a_key_covers_labels_pictures_and_texts():
    y = xr.DataArray(np.ones((2, 3)), dims=("stimulus", "voxel"), coords={"stimulus": ["a", "b"], "voxel": [0, 1, 2]})
    pictures = np.zeros((2, 4, 4, 3), "uint8")
    shown = data.Stimuli(["a", "b"], pictures, captions=[["x"], ["y"]])
    things = [
        y,
        y.assign_coords(stimulus=["b", "a"]),
        y.assign_coords(roi=("voxel", ["", "V1", ""])),
        y.assign_attrs(affine=[1.0, 2.0]),
        y.astype("float32"),
        y.to_dataset(name="r"),
        y.values,
        [y.values, 1],
        None,
        shown,
        data.Stimuli(["a", "b"], pictures + 1, captions=[["x"], ["y"]]),
        data.Stimuli(["a", "b"], pictures),
        data.Stimuli(["a", "b"], pictures, captions=[["x"], ["z"]]),
        pd.DataFrame({"a": ["x"]}),
    ]
    keys = [content_key(thing) for thing in things]
    assert len(set(keys)) == len(things)
    assert keys == [content_key(thing) for thing in things]
    assert content_key(y.assign_attrs(provenance="of another day")) == keys[0]


def test_stimuli_are_identified(folder):
    """With a column of the table as block, regions, and the best voxels, from the config to the report."""
    config = read_config(folder / "run.toml", ["decode.voxels=[5]", "decode.permutations=99", "decode.blocks=run"])
    summary = run(config, folder / "out", progress=False, say=lambda _: None)
    table = pd.read_csv(folder / "out" / "report" / "decoding.csv")
    assert set(table["group"]) == {"all", "signal", "best 5"}
    assert table["n"].max() == 20  # of 60 stimuli in 3 folds
    top = table[(table["measure"] == "top_k") & (table["n"] == 1)].set_index(["metric", "group"])["accuracy"]
    assert (top > 0.3).all()
    assert summary["top_1_accuracy:likelihood"] == top["likelihood", "all"]
    assert summary["top_1_accuracy_p:correlation"] == 0.02
    assert "Decoding" in (folder / "out" / "report" / "index.html").read_text()
    lacks = StudyConfig(decode={"blocks": "run"})
    given = data.load(folder / "features.nc")
    responses = data.make_responses(planted()[1], stimulus=given["stimulus"].values, dim="stimulus", subject="s1")
    with pytest.raises(ConfigError, match="rows have only"):
        Study(lacks, features=given, responses=responses, progress=False).until("split")
    any_voxels = StudyConfig(decode={"voxels": [5], "choose": "random", "permutations": 0, "metrics": ["cosine"]})
    found = Study(any_voxels, features=given, responses=responses, progress=False).until("decode").decoding
    assert found.drop_duplicates("group")[["group", "n_voxels"]].values.tolist() == [["all", 20], ["random 5", 5]]
