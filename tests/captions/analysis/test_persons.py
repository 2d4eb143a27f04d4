"""Person voxels of regions, and clusters read by word lists."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import fisher_exact

from neuroenc._core.errors import DataError
from neuroenc.captions import cluster_readings, person_shares, person_voxels

PEOPLE = {"people": ["man", "woman", "child"], "pets": ["cat", "dog"]}


def test_regions_with_people_have_person_voxels_and_shuffled_captions_spread_them(truthful, shuffled):
    table = person_shares(truthful, shuffled, parser="rules").set_index("roi")
    assert table.index[0] == "all"
    assert table.loc["EBA", "low"] > table.loc["EBA", "percent_others"]
    assert table.loc["EBA", "q"] < 0.01
    assert table.loc["PPA", "percent"] < table.loc["all", "percent"]
    assert abs(table.loc["EBA", "percent_shuffled"] - table.loc["all", "percent"]) < 20
    named = person_voxels(truthful, parser="rules")
    of = truthful.drop_duplicates("voxel").set_index("voxel")["roi"]
    inside, n = (of[named] == "EBA").sum(), (of == "EBA").sum()
    rest = len(named) - inside
    assert table.loc["EBA", "percent"] == pytest.approx(100 * inside / n)
    assert table.loc["EBA", "p"] == fisher_exact([[inside, n - inside], [rest, len(of) - n - rest]])[1]


def test_clusters_are_read_by_what_their_voxels_name(subject, truthful):
    members = dict(enumerate(subject.truth["members"].values))
    mine = truthful[truthful["roi"] == "FFA"]
    clusters = {v: 1 if "man" in members[v].split(";") else 2 for v in mine["voxel"].unique()}
    read = cluster_readings(mine, clusters, PEOPLE, parser="rules", at_least=0).set_index(["cluster", "list"])
    for cluster, name in ((1, "people"), (2, "pets")):
        assert read.loc[(cluster, name), "z"] > 3
        assert read.loc[(cluster, name), "p"] < 0.01
    # Swapped names swap rows, nothing else.
    other = cluster_readings(mine, {v: -c for v, c in clusters.items()}, PEOPLE, parser="rules", at_least=0)
    assert sorted(other["z"]) == pytest.approx(sorted(read["z"]))


def test_only_supported_phrases_count_as_supported():
    table = pd.DataFrame({"voxel": [1, 2, 3, 4], "caption": ["a man on a hill"] * 4, "roi": ["x", "x", "y", "y"]})
    phrases = pd.DataFrame({"voxel": [1, 1, 2, 3], "phrase": ["a man", "a hill", "a man", "a hill"]})
    phrases["verdict"] = ["supported", "supported", "unsupported", "supported"]
    found = person_shares(table, phrases=phrases, parser="rules").set_index("roi")
    assert found["percent_supported"].to_dict() == {"all": 25, "x": 50, "y": 0}


def test_words_that_all_or_none_name_read_nothing():
    table = pd.DataFrame({"voxel": range(8), "caption": ["a man with a beard"] * 8})
    read = cluster_readings(table, dict(enumerate([1, 2] * 4)), parser="rules", n_permutations=19)
    assert (read["z"] == 0).all()
    assert (read["p"] == 1).all()
    with pytest.raises(DataError, match="1 cluster has captions"):
        cluster_readings(table, dict.fromkeys(range(8), 1))
    assert np.isnan(cluster_readings(table, {0: 1, 1: 2}, parser="rules", n_permutations=0)["p"]).all()
