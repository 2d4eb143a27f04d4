"""Clusters of voxels, the phrases that separate them, and contrasts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_ind
from sklearn.metrics import adjusted_rand_score

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import cluster_voxels, contrast, contrast_shares, separating_phrases
from neuroenc.captions.analysis._contrast import log_odds
from neuroenc.data.simulate import family_of_word


def of_region(projection, roi):
    return projection.isel(voxel=projection["roi"].values == roi)


@pytest.mark.parametrize(
    "roi",
    [
        "FFA",
        pytest.param("EBA", marks=pytest.mark.xfail(reason="ARI .79")),
    ],
)
def test_planted_sub_populations_are_found(space, subject, roi):
    found = cluster_voxels(of_region(space.projection, roi), 2, n_bootstraps=20, n_null=0)
    members = subject.truth["members"].values[found.labels["voxel"].values]
    assert found.choices["stability"].iloc[0] > 0.8
    assert adjusted_rand_score(members, found.labels.values) > 0.8


@pytest.mark.parametrize("roi", ["FFA", "EBA"])
def test_separating_phrases_name_the_members(space, subject, truthful, roi):
    found = cluster_voxels(of_region(space.projection, roi), 2, n_bootstraps=0, n_null=0)
    members = subject.truth["members"].values[found.labels["voxel"].values]
    phrases = found.phrases(truthful, n_permutations=200)
    words = {
        "man": ("man", "hair", "beard"),
        "woman": ("woman", "hair"),
        "child": ("child", "hair"),
        "person": ("person", "standing"),
        "runner": ("runner", "running"),
        "dancer": ("dancer", "dancing"),
        "surfer": ("surfer", "board"),
    }
    for cluster in (1, 2):
        names = pd.Series(members[found.labels.values == cluster]).mode()[0].split(";")
        best = phrases[phrases["group"] == cluster].iloc[0]
        assert {w for n in names for w in words.get(n, (n,))} & set(best["phrase"].split()), (best["phrase"], names)
        assert best["p"] < 0.05


def test_voxels_of_two_families_make_two_stable_clusters(space, subject):
    mixed = np.isin(subject.truth["roi"].values, ["FFA", "PPA"])
    found = cluster_voxels(space.projection.isel(voxel=mixed), n_null=30, n_bootstraps=20)
    at = found.labels.values
    family = subject.truth["family"].values[mixed]
    # Whatever their number, clusters do not mix families.
    assert all(len(set(family[at == c])) == 1 for c in range(1, found.k + 1))
    two = found.choices.set_index("k").loc[2]
    assert two["stability"] > 0.95
    assert two["p"] == pytest.approx(1 / 31)


def test_a_cloud_without_clusters_is_not_called_clustered():
    rng = np.random.default_rng(0)
    cloud = 3 + rng.standard_normal((12, 90))
    found = cluster_voxels(cloud, n_bootstraps=20, n_null=40)
    assert (found.choices["p"] > 0.05).all()
    assert found.choices["stability"].max() < 0.8


def test_clusters_do_not_depend_on_order(space):
    part = of_region(space.projection, "EBA")
    order = np.random.default_rng(1).permutation(part.sizes["voxel"])
    one = cluster_voxels(part, 2, n_bootstraps=5, n_null=0)
    two = cluster_voxels(part.isel(voxel=order), 2, n_bootstraps=5, n_null=0)
    assert one.mapping() == two.mapping()
    assert (np.bincount(one.labels.values)[1:] == np.sort(np.bincount(one.labels.values)[1:])[::-1]).all()


def test_bad_clusterings_are_named(space):
    with pytest.raises(ConfigError, match="at least 2"):
        cluster_voxels(space.projection, 1)
    with pytest.raises(DataError, match="too few"):
        cluster_voxels(space.projection.isel(voxel=slice(0, 4)))


def test_log_odds_are_monroes_formula():
    rng = np.random.default_rng(0)
    y, alpha = rng.integers(0, 30, (2, 6)).astype(float), rng.uniform(0.5, 3, 6)
    delta, z = log_odds(y, alpha)
    n, a0 = y.sum(1), alpha.sum()
    for w in range(6):
        d = np.log((y[0, w] + alpha[w]) / (n[0] + a0 - y[0, w] - alpha[w]))
        d -= np.log((y[1, w] + alpha[w]) / (n[1] + a0 - y[1, w] - alpha[w]))
        v = 1 / (y[0, w] + alpha[w]) + 1 / (y[1, w] + alpha[w])
        assert delta[0, w] == pytest.approx(d)
        assert z[0, w] == pytest.approx(d / np.sqrt(v))
        assert z[1, w] == pytest.approx(-z[0, w])


def test_rare_and_common_phrases_do_not_lead():
    left = ["a dog on grass"] * 30 + ["a dog with zebra stripes on grass"]
    right = ["a cat on grass"] * 31
    table = pd.DataFrame({"voxel": range(62), "caption": left + right, "side": ["l"] * 31 + ["r"] * 31})
    found = separating_phrases(table, "side", min_voxels=1, n_permutations=100)
    top = found.groupby("group").first()["phrase"]
    assert top.to_dict() == {"l": "dog", "r": "cat"}
    dog, zebra = (found.set_index("phrase")["z"][x] for x in ("dog", "zebra"))
    assert zebra < dog / 2
    assert abs(found.set_index("phrase")["z"].get("grass", 0)) < 0.5


def test_contrast_of_regions_and_of_shuffled_captions(truthful, shuffled):
    def sides(table):
        return table[table["roi"] == "FFA"], table[table["roi"] == "PPA"]

    found = contrast(*sides(truthful), names=("FFA", "PPA"), n_permutations=300)
    for name, family in (("FFA", "face"), ("PPA", "place")):
        own = found[found["group"] == name]
        assert family in {family_of_word(w) for w in own.iloc[0]["phrase"].split()}
        assert own.iloc[0]["p_max"] < 0.05
        assert own.iloc[0]["z"] > 2
    null = contrast(*sides(shuffled), n_permutations=300)
    assert (null["p_max"] < 0.05).sum() == 0
    assert (null["q"] < 0.05).sum() == 0


def test_contrast_of_a_side_with_itself_is_an_error(truthful):
    with pytest.raises(DataError, match="both sides"):
        contrast(truthful, truthful)
    a = truthful.assign(subject="s1")
    b = truthful.assign(subject="s2")
    found = contrast(a, b, n_permutations=50)
    assert found["z"].abs().max() < 1e-6 if len(found) else True
    with pytest.raises(DataError, match="different names"):
        contrast(a, b, names=("x", "x"))


def side(rng, names, share):
    said = [np.where(rng.random(40) < p, "a dog", "a house on a hill") for p in share]
    return pd.concat([pd.DataFrame({"subject": n, "voxel": range(40), "caption": s}) for n, s in zip(names, said)])


def test_shares_are_contrasted_over_subjects_as_an_independent_test_does():
    rng = np.random.default_rng(0)
    a, b = side(rng, "ABCD", [0.8, 0.5, 0.9, 0.6]), side(rng, "EFG", [0.2, 0.4, 0.1])
    means = [t["caption"].str.contains("dog").groupby(t["subject"].to_numpy()).mean() for t in (a, b)]
    row = contrast_shares(a, b, names=("x", "y")).set_index("term").loc["dog"]
    expected = ttest_ind(*means, equal_var=False)
    assert row["p"] == pytest.approx(expected.pvalue)
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (row["unit"], row["n_x"], row["n_y"]) == ("subject", 4, 3)
    other = side(rng, "ABCE", [0.2, 0.4, 0.1, 0.3])
    paired = contrast_shares(a, other, paired=True).set_index("term").loc["dog"]
    d = [means[0][n] - other[other["subject"] == n]["caption"].str.contains("dog").mean() for n in "ABC"]
    assert (paired["difference"], paired["n_a"]) == (pytest.approx(np.mean(d)), 3)
    assert paired["difference"] - paired["low"] == pytest.approx(4.3027 * np.std(d, ddof=1) / np.sqrt(3), rel=1e-4)
    with pytest.raises(DataError, match="no subject stands on both sides"):
        contrast_shares(a, b, paired=True)


def test_shares_of_few_subjects_are_contrasted_over_voxels_and_said_to_be():
    rng = np.random.default_rng(1)
    a, b = side(rng, "A", [0.0]), side(rng, "BC", [0.5, 0.5])
    row = contrast_shares(a, b).set_index("term").loc["dog"]
    assert (row["unit"], row["n_a"], row["n_b"]) == ("voxel", 40, 80)
    assert -1 < row["low"] < row["high"] < 0
    people = contrast_shares(a, b, terms="concept", min_voxels=1).set_index("term")
    assert people.loc["animal", "difference"] == pytest.approx(row["difference"])
