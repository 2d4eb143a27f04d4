"""Winners, regions, layers and their errors, against planted truth and by hand."""

import numpy as np
import pandas as pd
import pytest

from neuroenc import stats
from neuroenc._core.errors import ConfigError
from neuroenc.encoders.comparison import compare
from neuroenc.encoders.comparison._profiles import classify
from neuroenc.encoders.comparison._statistics import (
    Group,
    closest_rival,
    draw_samples,
    find_groups,
    group_medians,
    pair_table,
    voxel_winner,
)

from .conftest import driven, of_two_subjects, spaces

QUICK = {"cv": 4, "n_bootstraps": 400, "progress": False}


def predictions(n=300, v=60, quality=(1.0, 1.0, 1.0), seed=0, missing=False):
    """Responses, and predictions whose noise alone decides how good they are."""
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((n, v))
    y = signal + 0.7 * rng.standard_normal((n, v))
    guesses = [signal + rng.standard_normal((n, v)) / q for q in quality]
    if missing:
        y[: n // 2, : v // 2] = np.nan
        y[3 * n // 4 :, v // 2 :] = np.nan
    return y, guesses


def drawn(y, guesses, n=400):
    return draw_samples(y, guesses, n_bootstraps=n, groups=np.arange(len(y)), seed=0)


@pytest.mark.parametrize("missing", [False, True])
def test_medians_and_intervals_are_those_of_the_stats_room(missing):
    y, guesses = predictions(missing=missing)
    groups = [Group("all", "all", np.arange(60)), Group("roi", "x", np.arange(20, 47))]
    table = group_medians(["p", "q", "r"], drawn(y, guesses), groups, None)
    known = stats.Resampler(400, groups=np.arange(300), seed=0).regions(
        y, guesses[1], {"all": np.arange(60), "x": np.arange(20, 47)}
    )
    for name in ("all", "x"):
        row = table.query("cell == 'q' and group == @name").iloc[0]
        np.testing.assert_allclose(
            [row.median_r, row.low, row.high],
            [known[name].estimate, known[name].low, known[name].high],
            atol=2e-6,
        )


@pytest.mark.parametrize("missing", [False, True])
def test_pairs_are_those_of_the_stats_room(missing):
    y, guesses = predictions(quality=(1.0, 1.3, 0.6), missing=missing)
    sets = drawn(y, guesses)
    table = pair_table(["p", "q", "r"], sets, [Group("all", "all", np.arange(60))])
    for (a, b), row in zip([(0, 1), (0, 2), (1, 2)], table.itertuples()):
        known = stats.Resampler(400, groups=np.arange(300), seed=0).difference(y, guesses[a], guesses[b])
        sure = stats.fdr(known.p) < 0.05
        assert row.share_a == pytest.approx((sure & (known.estimate > 0)).mean(), abs=1 / 60)
        assert row.share_b == pytest.approx((sure & (known.estimate < 0)).mean(), abs=1 / 60)
        assert row.median_difference == pytest.approx(np.median(known.estimate), abs=1e-6)
        assert row.low < row.median_difference < row.high
    np.testing.assert_allclose(table["q"], stats.fdr(table["p"].to_numpy()))
    assert table.iloc[2].share_a > 0.5
    assert table.iloc[2].share_b == 0
    assert table.iloc[2].p < 0.01


@pytest.mark.parametrize("missing", [False, True])
def test_equal_cells_are_a_tie(missing):
    """Over many voxels of no difference FDR leaves hardly any winner; the group's difference is not called either."""
    wins, called = [], []
    for seed in range(6):
        y, guesses = predictions(v=200, seed=seed, missing=missing)
        sets = drawn(y, guesses, 600)
        wins.append((voxel_winner(["p", "q", "r"], sets, 0.05)["winner"].values != "tie").mean())
        called.extend(pair_table(["p", "q", "r"], sets, [Group("all", "all", np.arange(200))])["p"] < 0.05)
    assert np.mean(wins) < 0.02
    # Eighteen tests at 5 %: six or more have a chance below 0.0002.
    assert np.sum(called) < 6


def test_a_better_cell_wins_and_false_winners_are_rare():
    rng = np.random.default_rng(0)
    n, v = 400, 240
    signal = rng.standard_normal((n, v))
    y = signal + 0.7 * rng.standard_normal((n, v))
    noise = np.ones((3, v))
    noise[0, :80] = noise[1, 80:160] = 0.4  # the last 80 voxels have no winner
    guesses = [signal + noise[k] * rng.standard_normal((n, v)) for k in range(3)]
    found = voxel_winner(["p", "q", "r"], drawn(y, guesses, 1000), 0.05)
    winner = found["winner"].values
    assert (winner[:80] == "p").mean() > 0.95
    assert (winner[80:160] == "q").mean() > 0.95
    assert (winner[160:] != "tie").sum() / (winner != "tie").sum() < 0.1
    assert (found["best"].values[160:] == "r").any()


def test_the_lead_must_be_over_every_other_cell():
    """Best by far of two, but not separable from a third: no winner."""
    y, guesses = predictions(n=600, v=40, quality=(1.5, 1.5, 0.3))
    sets = drawn(y, guesses, 1000)
    assert (voxel_winner(["p", "q", "r"], sets, 0.05)["winner"] == "tie").mean() > 0.9
    both = pair_table(["p", "q", "r"], sets, [Group("all", "all", np.arange(40))])
    assert both.iloc[1].share_a == 1.0


@pytest.mark.slow
def test_choice_of_the_best_of_many_cells_has_no_bias_on_noise():
    """Twelve spaces that know nothing: the largest test r is biased upwards, the nested choice is not."""
    nested, largest = [], []
    for seed in range(5):
        features = spaces(n=100, p=4, names=[f"x{k}" for k in range(12)], seed=seed)
        responses = driven(features, [{}], seed=seed + 100)
        # One voxel at a time: the choice is by the voxel's own validation r, the strongest selection there is.
        for voxel in range(5):
            rng = np.random.default_rng([seed, voxel])
            noise = responses.copy(data=rng.standard_normal(responses.shape).astype("float32"))
            found = compare(features, ["linear"], noise, cv=3, n_bootstraps=2, progress=False)
            nested.append(float(found.selected()["r"][0]))
            largest.append(float(np.nanmax(found.scores["r"].values)))
    error = np.std(nested) / np.sqrt(len(nested))
    assert np.mean(nested) < 2 * error
    assert np.mean(largest) > 0.04  # what choosing by the test score would have claimed


def test_nested_choice_is_the_planted_space(planted):
    features, responses = planted
    only_a = responses[:, :6]
    found = compare(features, ["linear"], only_a, **QUICK)
    picked = found.selected()
    assert set(picked["cell"].values.tolist()) == {"a/linear"}
    np.testing.assert_allclose(picked["r"].values, found.scores["r"].sel(cell="a/linear").values)
    assert found.best_cell() == "a/linear"


@pytest.fixture(scope="module")
def regions():
    """Vision, dense and single captions: alone, all alike, two alike, and voxels that answer to nothing."""
    features = spaces(n=600, p=5, names=("v", "d", "s"), seed=4)
    # A voxel driven by all spaces alike: none can be separated. By two: the third can be excluded.
    drives = [{"v": 1.0}] * 12 + [{"d": 1.0}] * 12 + [{"s": 1.0}] * 12
    drives += [{"v": 1.0, "d": 1.0, "s": 1.0}] * 12 + [{}] * 12
    rng = np.random.default_rng(0)
    responses = driven(features, drives, seed=5)
    # Weights of the shared voxels are of equal length, so that the spaces are equally good and not only on average.
    for v in range(36, 48):
        values = 1.0 * rng.standard_normal(600)
        for name in ("v", "d", "s"):
            w = rng.standard_normal(5)
            values += features[name].values @ (w / np.linalg.norm(w))
        responses.values[:, v] = values
    pair = responses.isel(voxel=slice(0, 12)).copy()
    for v in range(12):
        values = 0.5 * rng.standard_normal(600)
        for name in ("v", "d"):
            w = rng.standard_normal(5)
            values += features[name].values @ (w / np.linalg.norm(w))
        pair.values[:, v] = values
    import xarray as xr

    pair = pair.assign_coords(voxel=np.arange(60, 72), roi=("voxel", ["pair"] * 12))
    responses = xr.concat([responses, pair], dim="voxel")
    return compare(
        features,
        {"linear": {}, "again": {"readout": "linear", "cv": 5}},
        responses,
        cv=4,
        n_bootstraps=1000,
        progress=False,
    )


def test_planted_regions_are_recovered(regions):
    found = regions.regions(vision="v", dense="d", single="s")
    assert found["readout"].values.tolist() == ["linear", "again"]
    for readout in range(2):
        labels = found["region"].values[readout]
        for k, name in enumerate(("vision", "dense", "single")):
            assert (labels[12 * k : 12 * k + 12] == name).mean() >= 0.9
        assert (labels[36:48] == "not separable").mean() >= 0.75
        assert (labels[48:60] == "not separable").mean() >= 0.9
        assert (found["candidates"].values[readout][60:] == "vision or dense").mean() >= 0.75
    support = found["support"]
    np.testing.assert_allclose(support.sum("space"), 1)
    assert (support.sel(space="dense")[:, 12:24] > 0.95).mean() > 0.9
    assert found["agreement"].values[:36].mean() > 0.9
    shares = regions.region_table(found).query("readout == 'linear' and group == 'd'").iloc[0]
    assert shares["dense"] >= 0.9
    assert shares["n_voxels"] == 12


def test_regions_are_of_one_readout_that_was_fitted(regions):
    one = regions.regions(vision="v", dense="d", single="s", readout="again")
    assert one["readout"].values.tolist() == ["again"]
    np.testing.assert_allclose(one["r"].sel(space="single").values[0], regions.scores["r"].sel(cell="s/again").values)
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        regions.regions(vision="v", dense="d", single="s", readout="lineer")
    with pytest.raises(ConfigError, match="no readout reads 'v', 'd' and 'q'"):
        regions.regions(vision="v", dense="d", single="q")


def test_a_region_needs_more_than_the_largest_score():
    """Equal spaces: FDR over 3 x 200 voxels names hardly any, although one always has the largest r."""
    shares = []
    for seed in range(5):
        y, guesses = predictions(v=200, seed=seed + 50)
        found = classify(drawn(y, guesses, 600), 0.05)
        shares.append((found["region"].values != "not separable").mean())
        assert set(found["region"].values) <= {"vision", "dense", "single", "not separable"}
    assert np.mean(shares) < 0.02


def test_layers_are_ordered_and_uncertain():
    features = spaces(n=300, names=("early", "middle", "late"), seed=6)
    responses = driven(features, [{"early": 1.0}] * 8 + [{"middle": 1.0}] * 8 + [{"late": 1.0}] * 8 + [{}] * 8, seed=7)
    found = compare(features, ["linear"], responses, **QUICK)
    layers, table = found.layer_map(["early", "middle", "late"], "linear")
    assert layers["layer"].values[:24].tolist() == ["early"] * 8 + ["middle"] * 8 + ["late"] * 8
    np.testing.assert_allclose(layers["position"].values[:24], np.repeat([0, 0.5, 1], 8))
    assert (layers["winner"].values[24:] == "tie").mean() > 0.8
    assert layers["position_se"].values[24:].mean() > 5 * layers["position_se"].values[:24].mean()
    by_roi = table.query("kind == 'roi'").set_index("group")
    assert by_roi.loc[["early", "middle", "late"], "best_layer"].tolist() == ["early", "middle", "late"]
    assert by_roi.loc["middle", "low"] <= 0.5 <= by_roi.loc["middle", "high"]
    # Depth statistics come from the same resamples.
    assert by_roi.loc[["middle", "late"], "jump_point"].tolist() == [0.5, 1.0]
    assert np.isnan(by_roi.loc["early", "jump_point"])
    assert by_roi.loc["none", "statement"] in ("no layer is above chance", "not defined") or by_roi.loc["none", "flat"]
    assert layers["score"].dims == ("layers", "group")
    np.testing.assert_allclose(layers["score"].sel(group="late"), by_roi.loc["late", [*by_roi.filter(like="median_r")]])
    assert (layers["score_low"] <= layers["score_high"]).all()
    with pytest.raises(ConfigError, match="did you mean 'late/linear'"):
        found.layer_map(["early", "latte"], "linear")


def test_groups_are_regions_subjects_and_animals(planted):
    _, responses = planted
    both = of_two_subjects(responses).assign_coords(animal=("voxel", ["WE"] * 4 + ["PE"] * 12))
    named = [(g.kind, g.name, len(g.voxels)) for g in find_groups(both)]
    assert named[0] == ("all", "all", 16)
    assert {("roi", "a", 6), ("subject", "two", 8), ("animal", "WE", 4)} <= set(named)


def test_voxels_without_a_score_are_left_out():
    y, guesses = predictions(v=10)
    guesses[0][:, 3] = 1.0  # constant: no correlation
    guesses[1][:, 4] = guesses[0][:, 4] = guesses[2][:, 4] = 0.0
    sets = drawn(y, guesses)
    table = group_medians(["p", "q", "r"], sets, [Group("all", "all", np.arange(10))], None)
    assert table["n_voxels"].tolist() == [8, 9, 9]
    assert np.isfinite(table[["median_r", "low", "high"]].to_numpy()).all()
    found = voxel_winner(["p", "q", "r"], sets, 0.05)
    assert found["best"].values[4] == ""
    assert found["winner"].values[4] == ""
    assert found["best"].values[3] in ("q", "r")
    pairs = pair_table(["p", "q", "r"], sets, [Group("all", "all", np.arange(10))])
    assert pairs["n_voxels"].tolist() == [8, 8, 9]
    assert isinstance(pairs, pd.DataFrame)
    assert np.isfinite(pairs["p"]).all()


def pairs_of(*rows):
    names = ["a", "b", "median_difference", "low", "high", "p", "q"]
    frame = pd.DataFrame(rows, columns=names).assign(kind="all", group="all")
    # A group may say otherwise; the headline is about all voxels.
    return pd.concat([frame, frame.assign(kind="roi", group="V1", median_difference=-9.0)])


def test_the_rival_of_a_cell_is_read_from_the_pairs():
    """The best on validation rows may be beaten by a cell that was not second there."""
    behind = pairs_of(("x", "y", 0.02, 0.01, 0.03, 0.001, 0.002), ("x", "z", -0.03, -0.047, -0.011, 0.001, 0.002))
    found = closest_rival("x", behind)
    assert found["verdict"] == "behind z"
    assert (found["rival"], found["difference"], found["low"], found["high"]) == ("z", -0.03, -0.047, -0.011)
    turned = closest_rival("z", pairs_of(("x", "z", -0.03, -0.047, -0.011, 0.001, 0.002)))
    assert turned["verdict"] == "ahead of every other cell"
    assert (turned["rival"], turned["difference"], turned["low"], turned["high"]) == ("x", 0.03, 0.011, 0.047)
    unsure = pairs_of(("x", "y", 0.02, 0.01, 0.03, 0.001, 0.002), ("z", "x", -0.01, -0.03, 0.01, 0.4, 0.4))
    assert closest_rival("x", unsure)["verdict"] == "not separable from z"
    assert closest_rival("x", unsure)["high"] == 0.03


@pytest.mark.parametrize("level", [0, 2, -1, float("nan")])
def test_levels_are_fractions(level):
    y, a, b = np.random.default_rng(0).standard_normal((3, 30, 4))
    drawn = draw_samples(y, [y + a, y + b], n_bootstraps=50, groups=np.arange(30), seed=0)
    groups = [Group("all", "all", np.arange(4))]
    names = ["a", "b"]
    for call in (lambda: pair_table(names, drawn, groups, q=level), lambda: voxel_winner(names, drawn, level)):
        with pytest.raises(ValueError, match=r"q=.* between 0 and 1"):
            call()
