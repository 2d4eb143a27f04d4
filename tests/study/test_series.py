"""Time series through the stages of a run: delays, rotated nulls, response functions."""

import numpy as np
import pandas as pd
import pytest

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data.simulate import simulate_movie
from neuroenc.report.sections._lags import response_section
from neuroenc.study import Study, example_config
from neuroenc.study.config import EvaluationConfig, StudyConfig
from neuroenc.study.stages.report import with_functions

pytest.importorskip("nilearn")
SMALL = ["data.options={n_runs=3, n_volumes=60, n_features=2, n_voxels=16}", "evaluation.permutations=19"]


def config(*more):
    return example_config("movie", [*SMALL, *more])


def test_planted_film_to_response_functions():
    study = Study(config("evaluation.q=0.2"), say=lambda _: None).until("encode")
    scores = with_functions(study)
    assert scores["p_value"].attrs["mode"] == "shift"
    assert scores["response"].dims == ("delay", "voxel")
    assert scores["lag"].values.tolist() == [0, 2, 4, 6, 8, 10, 12]
    seen = np.isfinite(scores["peak_latency"].values)
    assert 4 <= seen.sum() <= 16
    np.testing.assert_array_equal(seen, (scores["q_value"].values < 0.2) & (scores["r"].values > 0))
    section = response_section(scores)
    assert "peak" in section.blocks[0].alt
    assert set(section.blocks[0].table["roi"]) <= {"V1", "hV4", "FFA", "PPA"}
    assert section.blocks[0].table["median_peak_s"].between(2, 10).all()


def test_what_series_refuse():
    for wrong, said in (
        (["evaluation.permutation_mode=within"], "shuffles volumes"),
        (["evaluation.scheme=stimulus", "encoder.cv=5"], "single volumes of a time series"),
        (["evaluation.scheme=cluster", "evaluation.n_splits=3"], "volumes of one run on both sides of 3 of 3 folds"),
    ):
        with pytest.raises((ConfigError, DataError), match=said):
            Study(config(*wrong), say=lambda _: None).until("split")
    with pytest.raises(ConfigError, match="block"):
        config("evaluation.gap=3")
    with pytest.raises(ConfigError, match="needs scheme test or run"):
        config("evaluation.scheme=stimulus", "evaluation.permutation_mode=shift")


def test_blocks_trim_and_own_frames(tmp_path):
    film = simulate_movie(n_runs=3, n_volumes=60, n_features=2, n_voxels=16)
    frames = film.extra["frames"]
    table = pd.DataFrame(frames.values, columns=frames.feature.values).assign(run=frames.run, time=frames.time)
    table.to_csv(tmp_path / "frames.csv", index=False)
    settings = config(
        "evaluation.scheme=block",
        "evaluation.n_splits=3",
        "evaluation.gap=8",
        "data.trim=[4, 2]",
        "features.film.kind=series",
        f"features.film.file={tmp_path / 'frames.csv'}",
    )
    study = Study(settings, say=lambda _: None).until("embed")
    assert study.subjects[0].responses.shape[0] == 3 * 54
    # Volumes that were trimmed have no features: theirs are 0, as before the film.
    space = study.spaces["film"]
    whole = film.stimuli.table.loc[space.stimulus.values]
    np.testing.assert_allclose(space.sel(feature="feature1@0"), whole["feature1"], atol=1e-5)
    assert len(study.splits[0]) == 3


def given(film, n=30):
    """Four runs of noise; the first and the last showed ``film``."""
    values = np.random.default_rng(0).standard_normal((4 * n, 3))
    names = np.repeat([film, "b", "c", film], n)
    return data.make_timeseries(values, tr=2.0, run=np.repeat([1, 2, 3, 4], n), film=names)


def test_a_film_that_two_runs_showed_is_on_one_side():
    settings = StudyConfig(data={"name": "movie"}, evaluation={"scheme": "run", "permutations": 0}, encoder={"cv": 3})
    study = Study(settings, responses=given("a"), say=lambda _: None).until("split")
    for train, test in study.splits[0]:
        data.check_disjoint(study.subjects[0].responses[train], study.subjects[0].responses[test])
    assert sorted(len(train) for train, _ in study.splits[0]) == [60, 60, 90, 90]
    last = settings.model_copy(update={"evaluation": EvaluationConfig(scheme="run", n_splits=1, n_last=1)})
    study = Study(last, responses=given("a"), say=lambda _: None).until("split")
    assert [len(rows) for rows in study.splits[0][0]] == [60, 30]
    blocks = data.folds(given("a"), "block", n_splits=3, gap=2)
    for train, test in blocks:
        data.check_disjoint(given("a")[train], given("a")[test])


def test_only_runs_have_delays():
    with pytest.raises(ConfigError, match="has delays, and comparisons are of responses to single stimuli"):
        Study(config("compare.readouts={linear={}}"), say=lambda _: None).until("compare")
