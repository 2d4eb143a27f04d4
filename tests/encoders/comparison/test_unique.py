"""Unique variance of feature spaces in a comparison: planted shares, and the partition of the linear room."""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError
from neuroenc.data import make_features
from neuroenc.encoders import variance_partition
from neuroenc.encoders.comparison import compare
from neuroenc.report import comparison_sections

from .conftest import driven, of_two_subjects, spaces

DRIVES = [{"a": 1.0}] * 5 + [{"b": 1.0}] * 5 + [{"a": 1.0, "b": 1.0}] * 5 + [{}] * 5


def run(features, Y, **options):
    return compare(features, ["linear"], Y, cv=3, n_bootstraps=200, progress=False, **options)


def test_each_voxel_has_the_unique_share_of_the_space_that_drives_it():
    features = spaces(300)
    found = run(features, driven(features, DRIVES, noise=0.7), unique=["a", "b", "c"])
    shares, table = found.unique_variance()
    alone = shares["share"].sel(part=["a", "b", "c"])
    # The share of the signal in the variance of voxels that one space drives.
    signal = driven(features, DRIVES, noise=0).values.var(0)
    planted = signal / (signal + 0.7**2)
    assert np.abs(alone.sel(part="a")[:5] - planted[:5]).max() < 0.12
    assert np.abs(alone.sel(part="b")[5:10] - planted[5:10]).max() < 0.12
    assert (alone[:2, 10:15] > 0).all()
    assert np.abs(alone.sel(part="c")).median() < 0.02
    assert ((shares["q"] < 0.05) & (shares["share"] > 0)).sel(part="c").sum() <= 1  # of 20 voxels
    assert np.abs(alone[:, 15:]).median() < 0.02
    assert (shares["q"].sel(part="a")[:5] < 0.05).all()
    assert (shares["low"] <= shares["share"]).all()
    # All parts add up to the joint model of all spaces.
    np.testing.assert_allclose(shares["share"].sum("part"), shares["total"], atol=1e-6)
    row = table[(table["kind"] == "roi") & (table["group"] == "a") & (table["part"] == "a")].iloc[0]
    assert row["share_voxels"] == 1.0
    assert row["low"] < row["median_share"] < row["high"]
    sections = {
        s.id: s for s in comparison_sections(found.scores, table=found.table(), unique=shares, unique_table=table)
    }
    assert "unique" in sections


def test_a_space_given_twice_is_unique_in_neither():
    features = spaces(300)
    twin = features["a"].values @ np.linalg.qr(np.random.default_rng(5).standard_normal((6, 6)))[0]
    features["twin"] = make_features(twin.astype("float32"), stimulus=features["a"]["stimulus"].values)
    Y = driven({"a": features["a"], "b": features["b"]}, DRIVES, noise=0.7)
    shares, _ = run(features, Y, unique=["a", "twin"]).unique_variance()
    assert (np.abs(shares["share"].sel(part=["a", "twin"])) < 0.03).all()
    assert (shares["share"].sel(part="a & twin")[:5] > 0.2).all()


def test_parts_are_those_of_the_partition_of_the_linear_room():
    features = spaces(300)
    Y = driven(features, DRIVES, noise=0.7)
    ours = run(features, Y, unique=["a", "b"]).unique_variance()[0]["share"]
    pair = {k: features[k] for k in ("a", "b")}
    other = variance_partition(pair, Y, cv=3, n_bootstraps=0)["share"]
    assert float(np.abs(ours.values - other.values).max()) < 0.08  # other folds


def test_more_than_three_spaces_and_subjects_side_by_side(tmp_path):
    features = spaces(400, names=("a", "b", "c", "d"))
    Y = of_two_subjects(driven(features, DRIVES, noise=0.7))
    found = run(features, Y, unique=list(features), n_components=4, out=tmp_path)
    shares, _ = found.unique_variance()
    assert shares["part"].values.tolist() == ["a", "b", "c", "d"]
    own = shares["share"].values
    assert (own[0, :5] > own[1:, :5].max(0)).all()
    assert (own[1, 5:10] > own[[0, 2, 3], 5:10].max(0)).all()
    # A second call reads what the first has kept.
    again = run(features, Y, unique=list(features), n_components=4, out=tmp_path)
    np.testing.assert_array_equal(again.unique_variance()[0]["share"], own)


def test_what_is_not_legal_is_told():
    features = spaces(60)
    Y = driven(features, [{"a": 1.0}] * 2)
    assert run(features, Y).unique_variance() is None
    with pytest.raises(ConfigError, match="unknown space"):
        run(features, Y, unique=["a", "aa"])
    with pytest.raises(ConfigError, match="2 to 8"):
        run(features, Y, unique=["a"])


def test_similarity_is_highest_for_what_drives_a_region():
    features = spaces(150)
    drives = [{"a": 1.0}] * 12 + [{"b": 1.0}] * 12
    found = run(features, driven(features, drives, noise=0.3))
    rows = found.similarity()
    table = rows.set_index(["group", "of", "model"])["similarity"]
    for region, other in (("a", "b"), ("b", "a")):
        assert table[region, "prediction", f"{region}/linear"] > table[region, "prediction", f"{other}/linear"] + 0.3
        assert table[region, "features", region] > table[region, "features", other] + 0.2
    wide = rows.query("of == 'prediction' and group == 'a' and model == 'a/linear'").iloc[0]
    assert wide["low"] < wide["similarity"] < wide["high"]
    sections = [s.id for s in comparison_sections(found.scores, table=found.table(), similarity=rows)]
    assert "similarity" in sections
