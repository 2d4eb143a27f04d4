"""Schemes of [evaluation] that look at stimuli, and the report on how far test stimuli are from training ones."""

import json

import numpy as np
import pandas as pd
import pytest

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.stats import explained_variance
from neuroenc.study import Study, StudyConfig, read_config, run
from neuroenc.study.config import EvaluationConfig
from neuroenc.study.stages.leakage import (
    comparison_leakage,
    near_across,
    near_summary,
    near_text,
    pattern_accuracy,
    slope_table,
)

N, P, V, TWICE = 120, 40, 12, 30


def contaminated(seed=0):
    """Responses with a part of every picture that features do not explain; 30 pictures come under two names.

    Many features and little noise: an encoder can learn the pictures by heart.
    """
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, P)).astype("float32")
    own = 1.5 * rng.standard_normal((N, V)) + X @ rng.standard_normal((P, V)) / np.sqrt(P)
    rows = np.r_[np.arange(N), np.arange(TWICE)]
    pixels = rng.integers(0, 255, (N, 16, 16, 3)).astype("uint8")[rows]
    ids = [f"p{n:03d}" for n in range(N)] + [f"q{n:03d}" for n in range(TWICE)]
    table = pd.DataFrame({"kind": np.where(np.arange(len(rows)) % 3 == 0, "odd", "even")}, index=ids)
    stimuli = data.Stimuli(ids, pixels, table=table)
    responses = (own[rows] + 0.3 * rng.standard_normal((len(rows), V))).astype("float32")
    return {
        "features": data.make_features(X[rows], stimulus=ids),
        "responses": data.make_responses(responses, stimulus=ids, dim="stimulus"),
        "stimuli": stimuli,
    }


@pytest.fixture(scope="module")
def given():
    return contaminated()


def study(given, **evaluation):
    config = StudyConfig(evaluation=EvaluationConfig(**{"n_splits": 4, "permutations": 0} | evaluation))
    return Study(config, **given, progress=False)


def test_near_duplicates_are_found_and_kept_together(given):
    plain = study(given).until("leakage")
    table = plain.leakage["table"].query("space == 'pixels' and near")
    pairs = {frozenset(x) for x in zip(table["stimulus"], table["nearest"])}
    assert pairs <= {frozenset((f"p{n:03d}", f"q{n:03d}")) for n in range(TWICE)}
    assert len(table) > TWICE  # both of a pair, unless they fell into one fold
    summary = plain.summary
    assert summary["n_equal"] == summary["n_near_duplicates"] == len(table)
    assert summary["accuracy_slope_low"] > 0
    assert summary["median_r"] > summary["median_r_without_near_duplicates"] + 0.02
    clean = study(given, scheme="near-duplicates").until("leakage").summary
    assert clean["n_near_duplicates"] == 0
    assert clean["median_r_without_near_duplicates"] == pytest.approx(clean["median_r"], abs=1e-6)
    assert study(given, leakage=False).until("leakage").leakage is None


def test_schemes_hold_out_what_they_name(given, tmp_path):
    clusters = study(given, scheme="cluster").until("split")
    assert len(clusters.splits[0]) == 4
    assert set(clusters.test_sets[0]) == {f"cluster {k}" for k in range(1, 5)}
    matched = study(given, scheme="matched", n_splits=5, share=0.2).until("split")
    assert [len(test) for _, test in matched.splits[0]] == [30]
    odd = study(given, scheme="column", column="kind", sets=["odd"]).until("split")
    assert len(odd.splits[0]) == 1
    assert set(odd.splits[0][0][1] % 3) == {0}
    each = study(given, scheme="column", column="kind").until("split")
    assert len(each.splits[0]) == 2
    for match, evaluation in (
        ("did you mean 'kind'", {"scheme": "column", "column": "kin"}),
        ("did you mean 'even'", {"scheme": "column", "column": "kind", "sets": ["evn"]}),
        ("did you mean 'features'", {"scheme": "cluster", "space": "feature"}),
    ):
        with pytest.raises(ConfigError, match=match):
            study(given, **evaluation).until("split")


def test_files_of_test_sets(given, tmp_path):
    ids = given["responses"].stimulus.values.tolist()
    # Stimuli of neither list are neither trained on nor tested.
    lists = {"train": ids[:80], "near": ids[80:100], "far": ids[100:115]}
    (tmp_path / "sets.json").write_text(json.dumps(lists))
    done = study(given, scheme="file", files=[str(tmp_path / "sets.json")]).until("leakage")
    assert [tuple(map(len, fold)) for fold in done.splits[0]] == [(80, 35)]
    sets = done.leakage["sets"].set_index("set")
    assert sets["n_test"].to_dict() == {"all": 35, "near": 20, "far": 15}
    assert {"median_r:file:near", "median_r:file:far"} <= set(done.summary)
    # A split that names files: stimuli have no endings.
    (tmp_path / "named.json").write_text(json.dumps({k: [f"{i}.png" for i in v] for k, v in lists.items()}))
    named = study(given, scheme="file", files=[str(tmp_path / "named.json")]).until("split")
    assert [tuple(map(len, fold)) for fold in named.splits[0]] == [(80, 35)]
    part = study(given, scheme="file", files=[str(tmp_path / "sets.json")], sets=["far"]).until("split")
    assert [tuple(map(len, fold)) for fold in part.splits[0]] == [(80, 15)]
    # Two files are two folds; permutations are among the rows that they test.
    for k, name in enumerate("ab"):
        half = {"train": ids[40 * (1 - k) : 40 * (2 - k)], "test": ids[40 * k : 40 * (k + 1)]}
        (tmp_path / f"{name}.json").write_text(json.dumps(half))
    files = [str(tmp_path / f"{name}.json") for name in "ab"]
    both = study(given, scheme="file", files=files, permutations=20).until("leakage")
    assert both.leakage["sets"]["set"].tolist() == ["all", "a", "b"]
    assert both.scores["q_value"].shape == (V,)
    with pytest.raises(DataError, match="more than once"):
        study(given, scheme="file", files=files[:1] * 2).until("split")
    (tmp_path / "none.json").write_text('{"test": ["p00x"]}')
    with pytest.raises(DataError, match="no stimulus of 'test' occurs"):
        study(given, scheme="file", files=[str(tmp_path / "none.json")]).until("split")


def test_a_comparison_tells_of_them_too(given):
    """As a run does, with subjects that did not see all stimuli."""
    done = study(given, n_splits=2).until("leakage")
    one, predicted = done.subjects[0], done.predictions["features"][0]
    near = near_across(done, one, done.splits[0])
    told, own = comparison_leakage(done, one, near, predicted), done.leakage["table"].query("space == 'pixels'")
    pd.testing.assert_frame_equal(told["spaces"], done.leakage["spaces"].iloc[:1])
    assert near_summary(near)["n_near_duplicates"] == own["near"].sum()
    assert near_text(near_summary(near)).endswith('(pixels). Next step: [evaluation] scheme = "near-duplicates".')
    hole = one.responses.copy()
    hole[:40, :4] = np.nan
    r = pattern_accuracy(hole.values, predicted.where(hole.notnull()).values)
    y, p = (a - a.mean(axis=0) for a in (hole.values[:, 4:], predicted.values[:, 4:]))
    assert r[0] == pytest.approx(np.corrcoef(y[0], p[0])[0, 1], abs=1e-6)


def test_random_splits_of_the_same_sizes_stand_beside(given):
    """Doubles sit on one side of each cluster, and on both of a random split, which is the better for it."""
    sets = study(given, scheme="cluster", n_splits=3, random_splits=1).until("leakage").leakage["sets"].set_index("set")
    assert (sets["random_low"] <= sets["random_r"]).all()
    assert sets.loc["all", "random_r"] > sets.loc["all", "median_r"]


def test_what_is_missed_of_a_set_is_told_of(given):
    """Odd stimuli are 5 s.d. above even ones, which features do not say: r over both is low, within each it is not."""
    odd = given["stimuli"].table["kind"].loc[given["responses"]["stimulus"].values].to_numpy() == "odd"
    shifted, said = given["responses"] + 5 * odd[:, None].astype("float32"), []
    config = StudyConfig(evaluation=EvaluationConfig(scheme="column", column="kind", permutations=0))
    done = Study(config, **given | {"responses": shifted}, progress=False, say=said.append).until("leakage")
    sets = done.leakage["sets"].set_index("set")["median_r"]
    assert sets["all"] < 0 < sets.drop("all").min()
    assert any(f"r is {sets['all']:.3f}, and in each of them {sets.drop('all').min():.3f}" in line for line in said)


def test_pictures_that_cannot_be_read_are_told_of(given, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    stimuli = data.Stimuli(given["stimuli"].ids, [bad] * len(given["stimuli"]))
    said: list[str] = []
    config = StudyConfig(evaluation=EvaluationConfig(n_splits=4, permutations=0))
    done = Study(config, **given | {"stimuli": stimuli}, progress=False, say=said.append).until("leakage")
    assert set(done.leakage["table"]["space"]) == {"features"}
    assert any("pictures are not compared" in line for line in said)


def test_accuracy_grows_with_training_stimuli(given, tmp_path):
    done = study(given, n_splits=2, learning_curve=[20, 500]).until("learn")
    table = done.learning["table"]
    assert table["size"].tolist() == [20, 75]  # of 150 stimuli in two folds
    assert table["explained_variance"].iloc[-1] > table["explained_variance"].iloc[0]
    # All training stimuli are those of the run itself.
    folds, responses, predicted = done.splits[0], given["responses"].values, done.predictions["features"][0].values
    ev = [explained_variance(responses[test], predicted[test]).mean() for _, test in folds]
    assert table["explained_variance"].iloc[-1] == pytest.approx(np.mean(ev), abs=1e-6)
    assert "explained_variance:features:75" in done.summary
    once = study(given, n_splits=1, learning_curve=[20]).until("learn").learning["table"]
    assert once["n_draws"].tolist() == [3, 3]
    with pytest.raises(ConfigError, match="begins with 300 training stimuli, and folds have 112"):
        study(given, learning_curve=[300]).until("split")


def test_a_slope_is_that_of_a_regression(rng):
    from scipy.stats import linregress

    x = rng.uniform(0, 1, 400)
    y = 0.3 * x + 0.1 * rng.standard_normal(400)
    table = pd.DataFrame({"space": "s", "similarity": x, "random_similarity": x, "near": x > 0.9, "accuracy": y})
    found, reference = slope_table(table).iloc[0], linregress(x, y)
    assert found["slope"] == pytest.approx(reference.slope)
    half = 1.96 * reference.stderr
    assert found["slope_high"] - found["slope"] == pytest.approx(half, rel=0.1)


def test_a_run_tells_of_them_on_its_page(given, tmp_path):
    for name in ("features", "responses"):
        data.save(given[name], tmp_path / f"{name}.nc")
    pictures = tmp_path / "images"
    pictures.mkdir()
    for n, name in enumerate(given["stimuli"].ids):
        given["stimuli"].image(n).save(pictures / f"{name}.png")
    (tmp_path / "my.toml").write_text(
        """
        [data]
        responses = "responses.nc"
        images = "images"
        [features]
        file = "features.nc"
        [evaluation]
        n_splits = 4
        permutations = 0
        """
    )
    said: list[str] = []
    config = read_config(tmp_path / "my.toml")
    summary = run(config, tmp_path / "out", progress=False, say=said.append)
    page = (tmp_path / "out" / "report" / "index.html").read_text(encoding="utf-8")
    assert "How far the test pictures are from the training ones" in page
    assert "The nearest pairs" in page
    told = [line for line in said if "near duplicate" in line]
    assert len(told) == 1
    assert told[0].strip() in page.replace("&#34;", '"').replace("&quot;", '"')
    table = pd.read_csv(tmp_path / "out" / "leakage.csv")
    assert table.query("space == 'pixels'")["near"].sum() == summary["n_near_duplicates"]


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"space": "pixels"}, "space is of scheme"),
        ({"scheme": "file"}, "needs files"),
        ({"scheme": "column"}, "needs column"),
        ({"scheme": "cluster", "n_splits": 1}, "found n_splits = 1"),
        ({"sets": ["a"]}, "sets are of scheme"),
        ({"learning_curve": [50, 20]}, "must rise"),
        ({"threshold": 1.5}, "threshold"),
    ],
)
def test_settings_that_no_scheme_reads_are_refused(evaluation, message):
    with pytest.raises(ConfigError, match=message):
        EvaluationConfig(**evaluation)
