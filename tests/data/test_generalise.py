"""Splits by distance of stimuli, and the nearest training stimulus."""

import json

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from neuroenc import data
from neuroenc._core.errors import DataError
from neuroenc.data import _generalise


def features(values):
    return data.make_features(values, stimulus=[f"s{n:03d}" for n in range(len(values))])


def unit(x):
    centred = x.values.astype(float) - x.values.mean(axis=0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


@pytest.fixture
def planted(rng):
    """120 stimuli, of which 10 are nearly others, one of them in a chain of three."""
    values = rng.standard_normal((120, 20)).astype("float32")
    values[110:] = values[:10] + 0.02 * rng.standard_normal((10, 20))
    values[119] = values[118] + 0.02 * rng.standard_normal(20)
    return features(values)


def test_nearest_is_the_largest_cosine_whatever_the_blocks(planted, monkeypatch):
    ids = planted.stimulus.values
    found = data.nearest_stimuli(planted, ids[:90], ids[90:])
    cosine = unit(planted)[90:] @ unit(planted)[:90].T
    np.testing.assert_allclose(found["similarity"], cosine.max(axis=1), atol=1e-6)
    assert found["nearest"].tolist() == ids[cosine.argmax(axis=1)].tolist()
    monkeypatch.setattr(_generalise, "_CHUNK", 7)
    assert found.equals(data.nearest_stimuli(planted, ids[:90], ids[90:]))
    shuffled = data.nearest_stimuli(planted, ids[:90][::-1], ids[90:])
    assert found.equals(shuffled)


def test_near_duplicates_are_connected_components(planted, monkeypatch):
    groups = data.near_duplicates(planted)
    expected = {f"s{k:03d}": f"s{k - 110:03d}" for k in range(110, 119)} | {"s119": "s008"}
    labels = dict(zip(planted.stimulus.values, groups.values.tolist()))
    assert len(set(labels.values())) == 110
    assert all(labels[a] == labels[b] for a, b in expected.items())
    for name in ("_BLOCK", "_CHUNK"):
        monkeypatch.setattr(_generalise, name, 11)
    assert data.near_duplicates(planted).equals(groups)
    responses = data.make_responses(np.zeros((240, 1)), stimulus=np.tile(planted.stimulus.values, 2))
    for train, test in data.folds(responses, n_splits=4, groups=groups):
        near = data.nearest_stimuli(planted, responses[train], responses[test])
        assert near["similarity"].max() < 0.95


def test_pictures_that_differ_in_light_are_the_same(rng):
    shown = data.simulate_world(30, seed=3)
    pixels = np.stack([np.asarray(shown.image(n)) for n in range(30)])
    even = np.full_like(pixels[:2], 128)
    darker = (0.6 * pixels[:20] + 30).astype("uint8")
    every = data.Stimuli([f"p{n}" for n in range(52)], np.concatenate([pixels, darker, even]))
    groups = data.near_duplicates(data.small_pictures(every)).values
    assert groups[30:50].tolist() == groups[:20].tolist()
    assert groups[50] == groups[51]
    assert len(np.unique(groups)) >= 30
    with pytest.raises(DataError, match="no images"):
        data.small_pictures(data.Stimuli(["a"], captions=(("a dog",),)))


def test_clusters_are_left_out_one_at_a_time(rng):
    centres = 4 * rng.standard_normal((3, 10))
    kind = rng.integers(0, 3, 90)
    x = features((centres[kind] + rng.standard_normal((90, 10))).astype("float32"))
    clusters = data.feature_clusters(x, 3)
    assert adjusted_rand_score(kind, clusters.values) > 0.95
    assert adjusted_rand_score(KMeans(3, n_init=10, random_state=0).fit_predict(unit(x)), clusters.values) == 1
    folds = data.folds(data.make_responses(np.zeros((90, 1)), stimulus=x.stimulus.values), groups=clusters)
    assert sorted(len(test) for _, test in folds) == sorted(np.bincount(clusters.values).tolist())
    with pytest.raises(DataError, match="2 clusters of 1 different"):
        data.feature_clusters(features(np.ones((4, 2))), 2)
    with pytest.raises(DataError, match="no features"):
        data.folds(data.make_responses([[0.0]] * 2, stimulus=["s000", "z"]), groups=clusters)


def test_matched_split_is_nearer_in_distribution_than_a_random_one(rng):
    x = features(rng.standard_normal((200, 5)) ** 3)

    def gap(test):
        inside = np.isin(x.stimulus.values, test)
        return np.linalg.norm(unit(x)[inside].mean(axis=0) - unit(x)[~inside].mean(axis=0))

    matched = gap(data.matched_test(x, 0.2))
    assert matched < np.mean([gap(data.matched_test(x, 0.2, seed, n_draws=1)) for seed in range(20)])
    assert data.matched_test(x, 0.2) == data.matched_test(x, 0.2)
    with pytest.raises(DataError, match="holds out 0"):
        data.matched_test(x[:3], 0.1)


def write_revision(path, name="cluster_k5_0", kinds=()):
    """A split in the layout of re:vision's files."""
    test = [f"shared_4rep_OOD_{kind}_{n}.png" for kind in kinds for n in range(2)] or ["shared_LAION_2.jpg"]
    split = {
        "name": name,
        "pool": "shared",
        "splitter": "x",
        "params": {"ood_types": list(kinds)} if kinds else {"k": 5},
        "n_train": 2,
        "n_test": len(test),
        "variants": [{"variant_id": 0, "train_ids": ["shared_LAION_0.jpg", "shared_LAION_1.jpg"], "test_ids": test}],
    }
    path.write_text(json.dumps(split))
    return path


def test_split_files(tmp_path):
    train, sets = data.read_split(write_revision(tmp_path / "cluster_k5_0.json"))
    assert (len(train), sets) == (2, {"cluster_k5_0": ["shared_LAION_2.jpg"]})
    ood = write_revision(tmp_path / "ood.json", "ood", ["shape", "illusion-classic"])
    assert list(data.read_split(ood)[1]) == ["shape", "illusion-classic"]
    assert data.read_split(ood, ["shape"])[1] == {"shape": [f"shared_4rep_OOD_shape_{n}.png" for n in range(2)]}
    (tmp_path / "sets.csv").write_text("stimulus,set\na,train\nb,odd\nc,odd\n")
    (tmp_path / "sets.toml").write_text('train = ["a"]\nodd = ["b", "c"]\n')
    assert (
        data.read_split(tmp_path / "sets.csv")
        == data.read_split(tmp_path / "sets.toml")
        == (["a"], {"odd": ["b", "c"]})
    )
    for content, message in (
        ("{", "cannot be read"),
        ('{"train": ["a"]}', "no lists of stimulus ids"),
        ('{"train": ["a"], "odd": ["b", "a"]}', "1 stimuli are in 'train' and in 'odd', first 'a'"),
        ('{"variants": [{}]}', "lack variant_id"),
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DataError, match=message):
            data.read_split(tmp_path / "bad.json")
    with pytest.raises(DataError, match="did you mean 'shape'"):
        data.read_split(ood, ["shapes"])
