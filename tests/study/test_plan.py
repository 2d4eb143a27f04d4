"""Planned sessions: from files, from folders, closed loop, and what is refused."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from neuroenc import RidgeEncoder, data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.cli._main import app
from neuroenc.encoders.incontext import PriorSelector, WeightPrior
from neuroenc.study import Study, example_config, plan
from neuroenc.study.read import parse_config
from neuroenc.study.stages.plan import read_prior

P, N = 10, 80
RNG = np.random.default_rng(2)
PRIOR = WeightPrior(
    np.zeros(P), np.diag(np.linspace(2, 0.1, P)), hyper_mean=[-2.0, -0.3], hyper_cov=np.diag([0.8, 0.1])
)
IDS = [f"p{n:02d}" for n in range(N)]
VALUES = RNG.standard_normal((N, P)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A pool with pictures and categories, a prior, and responses to twenty stimuli of the pool."""
    folder = tmp_path_factory.mktemp("plan")
    pool = data.make_features(VALUES, stimulus=IDS).assign_coords(
        category=("stimulus", np.array(["a", "b"])[np.arange(N) % 2])
    )
    data.save(pool, folder / "pool.nc")
    PRIOR.save(folder / "prior")
    (folder / "pictures").mkdir()
    for n, name in enumerate(IDS):
        Image.new("RGB", (20, 12), (3 * n, 80, 120)).save(folder / "pictures" / f"{name}.png")
    W, _ = PRIOR.sample(30, seed=1)
    Y = VALUES[:20] @ W + 0.8 * RNG.standard_normal((20, 30))
    responses = data.make_responses(Y, stimulus=IDS[:20], dim="stimulus", roi=["FFA"] * 10 + ["PPA"] * 20)
    data.save(responses, folder / "seen.nc")
    return folder


def config(files, **given):
    table = {"pool": str(files / "pool.nc"), "prior": str(files / "prior"), "k": 8, "draws": 2}
    return parse_config({"plan": table | given}, command="plan")


def run(files, out, **given):
    return plan(config(files, **given), out, say=lambda _: None, progress=False)


def test_a_plan_from_files(files, tmp_path):
    summary = run(files, tmp_path, pictures=str(files / "pictures"), trials=40)
    table = pd.read_csv(tmp_path / "plan.csv")
    assert table["place"].tolist() == list(range(1, 9))
    assert [IDS[row] for row in PriorSelector(PRIOR).select(VALUES, 8)] == table["stimulus"].tolist()
    assert summary["expected"] == pytest.approx(table["explained_variance"].iloc[-1])
    assert summary["expected_random"] < summary["expected"] < summary["whole_pool"] < summary["ceiling"]
    assert pd.read_csv(tmp_path / "repeats.csv")["pictures"].tolist() == [40, 20, 13, 10, 8, 6]
    assert Image.open(tmp_path / "contact_sheet.jpg").size == (8 * 134 + 6, 140)
    page = (tmp_path / "report" / "index.html").read_text()
    for said in ("What these pictures are expected to give", "Repeats or pictures", "What is not covered", "p31"):
        assert said in page
    # The same again, from what is kept, gives the same bytes.
    before = {p.name: p.read_bytes() for p in (tmp_path / "plan.csv", tmp_path / "report" / "index.html")}
    run(files, tmp_path, pictures=str(files / "pictures"), trials=40)
    assert {p.name: p.read_bytes() for p in (tmp_path / "plan.csv", tmp_path / "report" / "index.html")} == before
    assert json.loads((tmp_path / "summary.json").read_text())["n_chosen"] == 8


def test_the_closed_loop_goes_on_from_responses(files, tmp_path):
    first = run(files, tmp_path / "a", seen=str(files / "seen.nc"), rois=["FFA"])
    table = pd.read_csv(tmp_path / "a" / "plan.csv")
    assert not set(table["stimulus"]) & set(IDS[:20])
    assert first["n_seen"] == 20
    assert first["n_candidates"] == N - 20
    assert first["start"] > 0
    assert first["levels"] == "of the responses"
    # Neither the order of the voxels nor those of other regions matter.
    seen = data.load(files / "seen.nc")
    data.save(seen[:, ::-1], files / "turned.nc")
    run(files, tmp_path / "b", seen=str(files / "turned.nc"), rois=["FFA"])
    assert pd.read_csv(tmp_path / "b" / "plan.csv")["stimulus"].tolist() == table["stimulus"].tolist()
    data.save(seen[:, :10], files / "ffa.nc")
    run(files, tmp_path / "c", seen=str(files / "ffa.nc"))
    assert pd.read_csv(tmp_path / "c" / "plan.csv")["stimulus"].tolist() == table["stimulus"].tolist()


def test_a_study_has_its_plan_as_a_part(files):
    study = Study(config(files), progress=False).until("choose")
    assert study.done == ("candidates", "choose")
    assert study.plan["place"].tolist() == list(range(1, 9))
    assert study.summary["n_chosen"] == 8
    with pytest.raises(ConfigError, match=r"no \[plan\]"):
        Study().until("choose")


def test_constraints(files, tmp_path):
    (files / "left.txt").write_text("p40\np41\n\n")
    run(files, tmp_path, balance="category", exclude=["p02"], exclude_file=str(files / "left.txt"), repeats=2)
    table = pd.read_csv(tmp_path / "plan.csv")
    assert table["category"].value_counts().to_dict() == {"a": 4, "b": 4}
    assert not set(table["stimulus"]) & {"p02", "p40", "p41"}


def test_pictures_that_are_to_be_predicted(files, tmp_path):
    """Voxels answer along all features, the pictures that count vary along one."""
    aim = np.zeros((30, P), np.float32)
    aim[:, 7] = RNG.standard_normal(30)
    data.save(data.make_features(aim, stimulus=[f"t{n}" for n in range(30)]), tmp_path / "target.nc")
    run(files, tmp_path / "out", target=str(tmp_path / "target.nc"))
    rows = [IDS.index(name) for name in pd.read_csv(tmp_path / "out" / "plan.csv")["stimulus"]]
    assert np.abs(VALUES[rows, 7]).mean() > np.abs(VALUES[:, 7]).mean() + 0.5
    assert "t1" in (tmp_path / "out" / "report" / "index.html").read_text()


@pytest.mark.parametrize("select", ["random", "nearest", "coverage", "d-optimal", "v-optimal"])
def test_selectors_by_name_with_and_without_a_prior(files, tmp_path, select):
    summary = run(files, tmp_path, select=select, prior="none")
    assert summary["levels"] == "assumed"
    assert summary["selector"] == select
    assert "compare the lines" in (tmp_path / "report" / "index.html").read_text()


def test_features_alone_are_v_optimal_by_default(files):
    assert config(files, prior="none").plan.selector == "v-optimal"
    assert config(files).plan.selector == "prior"


def test_priors_of_encoders_and_models(files, tmp_path):
    X = data.make_features(VALUES, stimulus=IDS, backbone="clip")
    Y = data.make_responses(VALUES @ PRIOR.sample(20, seed=3)[0], stimulus=IDS, dim="stimulus")
    RidgeEncoder(progress=False).fit(X, Y).save(tmp_path / "encoder")
    known = read_prior(str(tmp_path / "encoder"))
    assert known.assumed
    assert known.space["backbone"] == "clip"
    assert known.prior.n_voxels == 20
    assert read_prior("world").space["backbone"] == "world"
    data.save(data.make_features(VALUES, stimulus=IDS, backbone="dino"), tmp_path / "pool.nc")
    with pytest.raises(DataError, match="backbone='dino', the prior 'encoder' 'clip'"):
        run(files, tmp_path / "out", prior=str(tmp_path / "encoder"), pool=str(tmp_path / "pool.nc"))


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"prior": "wrold"}, DataError, "unknown prior 'wrold'; did you mean 'world'"),
        ({"prior": "world"}, DataError, "10 features, the prior 'world' 128"),
        ({"k": 81}, ConfigError, "at most 80"),
        ({"exclude": IDS}, ConfigError, "of 0 stimuli that may be chosen"),
        ({"exclude": ["p99"]}, ConfigError, "unknown stimulus in exclude: 'p99'"),
        ({"balance": "categry"}, ConfigError, "did you mean 'category'"),
        ({"pool": "nosuch.nc"}, DataError, "nosuch.nc"),
        ({"pictures": "nosuch"}, DataError, "no folder"),
    ],
)
def test_what_cannot_be_planned_is_refused(files, tmp_path, given, error, said):
    with pytest.raises(error) as caught:
        run(files, tmp_path, **given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"select": "piror"}, "did you mean 'prior'"),
        ({"select": "prior", "prior": "none"}, "needs a prior"),
        ({"rois": ["FFA"]}, "there are none"),
        ({"trials": 1}, "at least 2"),
        ({"kk": 3}, "did you mean 'k'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(files, given, said):
    with pytest.raises(ConfigError, match=said):
        config(files, **given)


def test_responses_must_fit(files, tmp_path):
    seen = data.load(files / "seen.nc")
    data.save(seen.assign_coords(stimulus=[f"q{n}" for n in range(20)]), tmp_path / "other.nc")
    with pytest.raises(DataError, match="not in the pool"):
        run(files, tmp_path / "out", seen=str(tmp_path / "other.nc"))
    with pytest.raises(DataError, match="unknown roi 'FAF'; did you mean 'FFA'"):
        run(files, tmp_path / "out", seen=str(files / "seen.nc"), rois=["FAF"])


def test_the_command(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(files / "pool.nc", tmp_path / "pool.nc")
    line = ["plan", "pool.nc", "-k", "4", "--prior", str(files / "prior"), "--exclude", "p03", "--seed", "3"]
    result = CliRunner().invoke(app, [*line, "--seen", str(files / "seen.nc"), "--rois", "PPA", "--quiet"])
    assert result.exit_code == 0, result.output
    assert "expected explained variance after 4 pictures" in result.output
    assert len(pd.read_csv("neuroenc-plan-pool/plan.csv")) == 4
    (tmp_path / "my.toml").write_text('[plan]\npool = "pool.nc"\nprior = "none"\nk = 6\ndraws = 2\n')
    result = CliRunner().invoke(app, ["plan", "my.toml", "-k", "5", "--quiet"])
    assert result.exit_code == 0, result.output
    assert len(pd.read_csv("neuroenc-plan-my/plan.csv")) == 5
    for wrong in (["plan"], ["plan", "pool.nc", "--select", "best"], ["plan", "my.toml", "--select", "prior"]):
        assert CliRunner().invoke(app, wrong).exit_code == 2


def test_the_config_that_an_error_names_is_shown():
    with pytest.raises(ConfigError, match="neuroenc config show --example world --for plan"):
        parse_config({}, None, "plan")
    result = CliRunner().invoke(app, ["config", "show", "--example", "world", "--for", "plan"])
    assert 'prior = "world"' in result.output


def test_a_folder_of_pictures_is_embedded_as_the_prior_was(tmp_path):
    world = example_config("world", ["plan.candidates=12"], "plan")
    assert world.plan.trials == 150
    for n in range(12):
        (tmp_path / "pool" / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (20 * n, 100, 50)).save(tmp_path / "pool" / "ab"[n % 2] / f"{n}.png")
    table = {"pool": str(tmp_path / "pool"), "k": 4, "prior": "world", "balance": "folder", "draws": 2}
    plan(parse_config({"plan": table}, command="plan"), tmp_path / "out", say=lambda _: None, progress=False)
    found = pd.read_csv(tmp_path / "out" / "plan.csv")
    assert sorted(found["folder"]) == ["a", "a", "b", "b"]
    assert (tmp_path / "out" / "contact_sheet.jpg").is_file()
    with pytest.raises(ConfigError, match="needs an embedding"):
        plan(parse_config({"plan": table | {"prior": "none"}}, command="plan"), tmp_path / "x", say=lambda _: None)
