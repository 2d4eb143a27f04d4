"""neuroenc init: a folder of data gives a config that is read, checked, and runs without an edit."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.cli._main import app
from neuroenc.data.simulate import god_tree
from neuroenc.study import read_config
from neuroenc.study.init import init
from neuroenc.study.preflight import preflight

nibabel = pytest.importorskip("nibabel")


def write_study(root, n_stimuli=12, n_repeats=2, seed=0):
    """Betas (4-D NIfTI), a mask, two regions, labels, trials.csv and pictures."""
    rng = np.random.default_rng(seed)
    root.mkdir(exist_ok=True)
    (root / "images").mkdir()
    ids = [f"scene-{k:02d}" for k in range(n_stimuli)]
    for name in ids:
        Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(root / "images" / f"{name}.png")
    trials = [(s, 1 + r, 1 + k % 2) for r in range(n_repeats) for k, s in enumerate(ids)]
    (root / "trials.csv").write_text("stimulus,session,run\n" + "".join(f"{s},{a},{b}\n" for s, a, b in trials))
    affine = np.diag([2.0, 2.0, 2.0, 1.0])

    def save(values, name, affine=affine):
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), affine), root / name)

    mask = np.zeros((4, 4, 3))
    mask[1:3, 1:3] = 1
    region, labels = np.zeros_like(mask), np.zeros_like(mask)
    region[1, 1] = 1
    labels[1, 2], labels[2, 2], labels[0, 0] = 1, 2, 3
    save(rng.standard_normal((4, 4, 3, len(trials))), "betas.nii.gz")
    save(mask, "brain_mask.nii.gz")
    save(region, "V1.nii.gz")
    save(labels, "floc.nii.gz")
    save(rng.standard_normal((4, 4, 3)), "tmap.nii.gz")
    save(np.ones((5, 4, 3)), "other_grid.nii.gz")
    save(mask, "moved_mask.nii.gz", np.diag([3.0, 3.0, 3.0, 1.0]))
    return root


def test_a_folder_of_betas_masks_trials_and_pictures(tmp_path):
    root = write_study(tmp_path / "study")
    path = init(root)
    assert path == root / "my.toml"
    config = read_config(path)
    preflight(config)
    assert config.data.responses == str(root / "betas.nii.gz")
    assert config.data.mask == str(root / "brain_mask.nii.gz")
    assert config.data.rois == {
        "V1": str(root / "V1.nii.gz"),
        "floc-1": str(root / "floc.nii.gz:1"),
        "floc-2": str(root / "floc.nii.gz:2"),
    }
    assert config.data.images == str(root / "images")
    assert list(config.features) == ["vision"]
    assert (config.evaluation.scheme, config.evaluation.n_splits) == ("stimulus", 5)
    text = path.read_text()
    for found in ("12 voxels", "24 trials", "tmap.nii.gz", "other_grid.nii.gz", "moved_mask.nii.gz", "openai"):
        assert found in text
    assert list(config.compare.readouts) == ["linear", "factorized"]
    assert (config.captions.space.model, config.captions.decoder.captioner) == ("conse", "photo")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "compare"])
def test_the_config_runs_to_a_report_without_an_edit(tmp_path, command):
    root = write_study(tmp_path / "study", n_stimuli=24)
    runner = CliRunner()
    assert runner.invoke(app, ["init", str(root)]).exit_code == 0
    done = runner.invoke(app, [command, str(root / "my.toml"), "--out", str(tmp_path / "out"), "--quiet"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "report" / "index.html").is_file()


def test_a_config_is_not_replaced_unless_asked(tmp_path):
    root = write_study(tmp_path / "study")
    runner = CliRunner()
    assert runner.invoke(app, ["init", str(root)]).exit_code == 0
    (root / "my.toml").write_text("title = 'mine'\n")
    shown = runner.invoke(app, ["init", str(root)])
    assert shown.exit_code == 2
    assert "--force" in shown.stderr
    assert (root / "my.toml").read_text() == "title = 'mine'\n"
    elsewhere = runner.invoke(app, ["init", str(root), "--out", str(tmp_path / "other.toml")])
    assert "next step: neuroenc run" in elsewhere.stdout.lower()
    assert read_config(tmp_path / "other.toml").data.mask == str(root / "brain_mask.nii.gz")
    assert runner.invoke(app, ["init", str(root), "--force"]).exit_code == 0
    preflight(read_config(root / "my.toml"))


def test_few_categories_leave_runs_out(tmp_path):
    root = write_study(tmp_path / "study", n_stimuli=4, n_repeats=4)
    config = read_config(init(root))
    assert (config.evaluation.scheme, config.encoder.cv) == ("run", "run")


def test_arrays_with_a_table(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "responses.npy", rng.standard_normal((20, 3)))
    np.save(tmp_path / "clip_features.npy", rng.standard_normal((10, 5)))
    ids = [f"s{k}" for k in range(10)]
    (tmp_path / "trials.tsv").write_text("Stimulus\tsubject\n" + "".join(f"{s}\tme\n" for s in ids * 2))
    (tmp_path / "stimuli.csv").write_text("stimulus\n" + "\n".join(ids) + "\n")
    (tmp_path / "captions.csv").write_text("stimulus,caption\n" + "".join(f"{s},a cat\n" for s in ids))
    config = read_config(init(tmp_path))
    assert config.data.samples == str(tmp_path / "trials.tsv")
    assert config.data.captions == str(tmp_path / "captions.csv")
    assert config.features["clip_features"].samples == str(tmp_path / "stimuli.csv")
    assert "# [features.language]" in (tmp_path / "my.toml").read_text()


def test_files_of_neuroenc(tmp_path):
    ids = [f"s{k}" for k in range(10)]
    data.save(data.make_responses(np.eye(10), stimulus=ids), tmp_path / "a.nc")
    data.save(data.make_features(np.eye(10), stimulus=ids), tmp_path / "b.nc")
    config = read_config(init(tmp_path))
    assert (config.data.responses, config.features["b"].file) == (str(tmp_path / "a.nc"), str(tmp_path / "b.nc"))


def test_a_known_data_set(tmp_path):
    god_tree(tmp_path / "god")
    config = read_config(init(tmp_path / "god", tmp_path / "my.toml"))
    assert config.data.name == "god"
    assert config.data.options["root"] == str(tmp_path / "god")
    preflight(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: (r / "betas.nii.gz").unlink(), r"no responses.*V1\.nii\.gz"),
        (lambda r: [(r / f"{x}.nii.gz").unlink() for x in ("brain_mask", "V1")], "needs a mask.*4x4x3"),
        (lambda r: (r / "trials.csv").write_text("stimulus\na\n"), "24 trials.*trials.csv has 1 rows"),
        (lambda r: (r / "trials.csv").write_text("image\n" + "a\n" * 24), "24 trials.*24 rows and the columns image"),
        (lambda r: (r / "images" / "scene-03.png").unlink(), "scene-03"),
        (lambda r: (r / "betas.nii.gz").write_bytes(b"x"), "no responses"),
        (
            lambda r: (
                [
                    nibabel.save(
                        nibabel.Nifti1Image(np.zeros((4, 4, 3, 5), np.float32), np.eye(4)), r / f"betas{n}.nii.gz"
                    )
                    for n in range(2)
                ]
                and (r / "betas.nii.gz").unlink()
            ),
            "2 4-D images of 10 trials.*load_masked",
        ),
    ],
)
def test_what_is_missing_is_named(tmp_path, change, message):
    root = write_study(tmp_path / "study")
    change(root)
    with pytest.raises((DataError, ConfigError), match=message):
        init(root)
    assert not (root / "my.toml").exists()


def test_folders_that_are_none(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        init(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no responses"):
        init(tmp_path)
