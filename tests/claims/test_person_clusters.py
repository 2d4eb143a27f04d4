"""Claims about people in captions (Luo et al., BrainSCUBA, ICLR 2024, figures 7 and 8, tables 2 and 3).

On a simulated cortex whose EBA has voxels for whole bodies and for hands, and whose FFA has voxels for people and for
pets. Fixed before the figures were looked at: the share of person voxels of EBA is above that of the other regions
(its interval above their share, q < .05), and that of shuffled weights is within 15 points of all voxels' shuffled
share; two clusters of projected weights agree with the planted members (adjusted Rand index above .5, labels dealt
out at random below .1); each cluster is read by the list of its planted members (p < .05). Where captions know
nothing of clusters, the smallest p of a reading is below .05 in 2 to 9 % of 300 cases; one Gaussian cloud is called
clustered (p <= .05) in at most 9 % of 200. Two groups of subjects of one population: intervals over subjects leave
out 0 for 2 to 8 % of phrases, those over voxels, and the voxelwise permutation test, for more than 20 %; a planted
difference of 30 points is found in at least 80 % of cases.
"""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

SEED = 29
PLANTED = {
    "EBA": {"whole": ["person", "runner", "dancer", "surfer"], "hand": ["hand"]},
    "FFA": {"people": ["man", "woman", "child"], "pets": ["cat", "dog"]},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from neuroenc.study import Study, example_config

    sets = [f"seed={SEED}", "data.options.n_subjects=1", "data.options.n_voxels=400"]
    sets += [f"captions.stability.{kind}=0" for kind in ("folds", "bootstraps", "halves")]
    sets += ["captions.grounding.enabled=false"]
    study = Study(example_config("world", sets, "caption"), tmp_path_factory.mktemp("steps"), progress=False)
    study = study.until("check")
    return study.captions, study.readings.fitted, study.fitted.truth


def of_region(made, roi):
    captions, projection, truth = made
    told = captions.captions
    told = told[told["roi"].str.split(";").map(lambda names: roi in names)]
    told = told[told["voxel"].isin(truth["voxel"].values[~truth["mixed"].values])]
    part = projection.isel(voxel=np.isin(projection["voxel"].values, told["voxel"].unique()))
    members = truth["members"].sel(voxel=part["voxel"].values).values
    return told, part, members


@pytest.mark.xfail(strict=True, reason="q = .33: captions of other regions name people, too")
def test_people_are_named_in_regions_of_bodies(made):
    table = made[0].quality["persons"].set_index("roi")
    assert table.loc["EBA", "low"] > table.loc["EBA", "percent_others"]
    assert table.loc["EBA", "q"] < 0.05


def test_people_are_named_alike_everywhere_by_shuffled_weights(made):
    table = made[0].quality["persons"].set_index("roi")
    assert abs(table.loc["EBA", "percent_shuffled"] - table.loc["all", "percent_shuffled"]) < 15


@pytest.mark.parametrize("roi", list(PLANTED))
def test_clusters_are_the_planted_members_and_are_read_as_such(made, roi):
    from neuroenc.captions import cluster_readings, cluster_voxels

    told, part, members = of_region(made, roi)
    found = cluster_voxels(part, 2, n_bootstraps=0, n_null=20, seed=SEED)
    labels = found.labels.values
    assert adjusted_rand_score(members, labels) > 0.5
    rng = np.random.default_rng(SEED)
    assert abs(np.mean([adjusted_rand_score(members, rng.permutation(labels)) for _ in range(50)])) < 0.1
    read = cluster_readings(told, found.mapping(), PLANTED[roi], at_least=0, seed=SEED)
    for cluster, rows in read.groupby("cluster"):
        best = rows.loc[rows["z"].idxmax()]
        mode = pd.Series(members[labels == cluster]).mode()[0].split(";")
        assert set(mode) & set(PLANTED[roi][best["list"]]), (cluster, mode, best["list"])
        assert best["p"] < 0.05


def test_p_of_readings_is_nominal_where_captions_know_nothing_of_clusters():
    from neuroenc.captions import cluster_readings

    rng, small = np.random.default_rng(SEED), []
    texts = np.array(["a man with a beard", "a man running", "two men together", "a woman", "a smile and a hand"])
    for seed in range(300):
        table = pd.DataFrame({"voxel": range(60), "caption": texts[rng.integers(0, 5, 60)]})
        clusters = dict(enumerate(rng.integers(0, 2, 60)))
        found = cluster_readings(table, clusters, parser="rules", n_permutations=99, seed=seed)
        small.append(found["p"].min() <= 0.05)
    assert 0.02 <= np.mean(small) <= 0.09, np.mean(small)


def test_one_cloud_is_rarely_called_clustered():
    from neuroenc.captions import cluster_voxels

    rng, small = np.random.default_rng(SEED), []
    for seed in range(200):
        cloud = rng.standard_normal((60, 8)) * np.linspace(2, 0.5, 8) + 1
        found = cluster_voxels(cloud.T, 2, n_bootstraps=0, n_null=19, seed=seed)
        small.append(found.choices["p"].iloc[0] <= 0.05)
    assert np.mean(small) <= 0.09, np.mean(small)


NOUNS = ("dog", "house", "pizza", "hand", "letter", "bridge", "apple", "tree")


def subjects(rng, n, more=0.0):
    """Captions of subjects who differ in what they prefer; with ``more``, in "hand" beyond that."""
    rows = []
    for s in range(n):
        share = rng.dirichlet(np.full(len(NOUNS), 8.0))
        share = (1 - more) * share + more * (np.arange(len(NOUNS)) == 3)
        said = rng.choice(NOUNS, 100, p=share)
        rows.append(pd.DataFrame({"subject": f"s{rng.integers(1e9)}-{s}", "voxel": range(100), "caption": said}))
    return pd.concat(rows, ignore_index=True)


def test_intervals_over_subjects_are_nominal_and_those_over_voxels_are_not():
    from neuroenc.captions import contrast, contrast_shares

    rng, out, voxelwise, permuted = np.random.default_rng(SEED), [], [], []
    for k in range(200):
        a, b = subjects(rng, 5), subjects(rng, 5)
        found = contrast_shares(a, b)
        assert (found["unit"] == "subject").all()
        out.append(((found["low"] > 0) | (found["high"] < 0)).mean())
        flat = [t.drop(columns="subject").assign(voxel=np.arange(500) + at) for t, at in ((a, 0), (b, 500))]
        found = contrast_shares(*flat)
        assert (found["unit"] == "voxel").all()
        voxelwise.append(((found["low"] > 0) | (found["high"] < 0)).mean())
        if k < 40:
            permuted.append((contrast(*flat, n_permutations=99)["p"] <= 0.05).mean())
    assert 0.02 <= np.mean(out) <= 0.08, np.mean(out)
    assert np.mean(voxelwise) > 0.2, np.mean(voxelwise)
    assert np.mean(permuted) > 0.2, np.mean(permuted)


def test_a_planted_difference_is_found_over_subjects():
    from neuroenc.captions import contrast_shares

    rng, found = np.random.default_rng(SEED), []
    for _ in range(50):
        table = contrast_shares(subjects(rng, 5, 0.3), subjects(rng, 5)).set_index("term")
        found.append(table.loc["hand", "low"] > 0 and table.loc["hand", "q"] < 0.05)
    assert np.mean(found) >= 0.8, np.mean(found)
