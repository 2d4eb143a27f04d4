"""What is stored is found by content, comes back as it was, or is refused."""

import os

import numpy as np
import pytest
from sklearn.model_selection import BaseCrossValidator, GroupKFold, KFold, ShuffleSplit

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders import BandedRidgeEncoder, RidgeEncoder, load_encoder

ALPHAS = np.logspace(-1, 4, 6)


def planted(n=60, p=90, v=12, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    return X, X @ rng.standard_normal((p, v)) / 9 + np.logspace(-1, 1, v) * rng.standard_normal((n, v))


@pytest.fixture
def killed(monkeypatch):
    """A fit that is killed after some blocks of voxels."""
    from neuroenc.encoders.linear import _ridge

    def fit(encoder, X, Y, after):
        original, calls = _ridge._solvers.score_block, []

        def dies(*args, **kwargs):
            calls.append(1)
            if len(calls) > after:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(_ridge._solvers, "score_block", dies)
            with pytest.raises(KeyboardInterrupt):
                encoder.fit(X, Y)

    return fit


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("shape", [(60, 90), (120, 30)], ids=["dual", "primal"])
def test_a_fit_may_go_on_with_another_budget(tmp_path, killed, shape, common):
    X, Y = planted(*shape)
    options = {"alpha_per_voxel": not common, "n_jobs": 1, "cv": 6}
    reference = RidgeEncoder(ALPHAS, **options).fit(X, Y)
    # From one fold at a time to all of them, in blocks of one voxel and of all.
    for number, budgets in enumerate((["40kB", "300kB", "1GB"], ["150kB", "60kB", "300kB"])):
        folder = tmp_path / f"fit{number}"
        killed(RidgeEncoder(ALPHAS, max_memory=budgets[0], checkpoint=folder, **options), X, Y, after=1)
        for budget in budgets[1:]:
            found = RidgeEncoder(ALPHAS, max_memory=budget, checkpoint=folder, **options).fit(X, Y)
            np.testing.assert_allclose(found.cv_scores_, reference.cv_scores_, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(found.coef_, reference.coef_, rtol=1e-7, atol=1e-10)


def test_one_penalty_for_all_follows_voxels_that_changed(tmp_path):
    X, Y = planted()
    settings = {"alpha_per_voxel": False, "max_memory": "60kB", "n_jobs": 1}
    before = RidgeEncoder(ALPHAS, checkpoint=tmp_path, **settings).fit(X, Y)
    Y[:, 4:] = X[:, :8]
    found, fresh = (RidgeEncoder(ALPHAS, checkpoint=c, **settings).fit(X, Y) for c in (tmp_path, None))
    assert fresh.alpha_[0] != before.alpha_[0]
    np.testing.assert_array_equal(found.coef_, fresh.coef_)
    np.testing.assert_array_equal(found.alpha_, fresh.alpha_)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:-3] + b"abc", lambda b: b"", lambda b: b"{}"]
)
def test_damaged_blocks_are_computed_anew(tmp_path, damage):
    X, Y = planted()
    settings = {"max_memory": "300kB", "n_jobs": 1, "checkpoint": tmp_path}
    before = RidgeEncoder(ALPHAS, **settings).fit(X, Y)
    for file in tmp_path.rglob("*.*"):
        file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match="is damaged; computed again"):
        again = RidgeEncoder(ALPHAS, **settings).fit(X, Y)
    np.testing.assert_array_equal(again.coef_, before.coef_)
    np.testing.assert_array_equal(again.cv_scores_, before.cv_scores_)


def saved(tmp_path, **options):
    X, Y = planted(v=3)
    ids = [f"s{k}" for k in range(len(X))]
    responses = data.make_responses(Y, stimulus=ids, dim="stimulus", roi=["V1", "V2", "FFA"])
    return RidgeEncoder(ALPHAS, **options).fit(X, responses), X, tmp_path / "encoder"


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t.replace('"V2"', '"PPA"'),
        lambda t: t.replace('"fit_intercept": true', '"fit_intercept": false'),
        lambda t: t.replace('"labelled": true', '"labelled": false'),
        lambda t: t[: len(t) // 2],
        lambda t: "[]",
        lambda t: "{}",
        lambda t: t.replace('"format": 3', '"format": 4'),
        lambda t: t.replace('"class"', '"klass"'),
    ],
)
def test_an_edited_record_is_refused(tmp_path, edit):
    encoder, _, path = saved(tmp_path)
    file = encoder.save(path) / "encoder.json"
    assert edit(file.read_text()) != file.read_text()
    file.write_text(edit(file.read_text()))
    with pytest.raises(DataError, match="encoder"):
        load_encoder(path)


def test_arrays_of_another_encoder_are_refused(tmp_path):
    encoder, X, path = saved(tmp_path)
    other = RidgeEncoder(ALPHAS).fit(X, X[:, :3])
    os.replace(other.save(tmp_path / "other") / "arrays.safetensors", encoder.save(path) / "arrays.safetensors")
    with pytest.raises(DataError, match="not the file that was saved"):
        load_encoder(path)
    (path / "arrays.safetensors").unlink()
    with pytest.raises(DataError, match=r"arrays\.safetensors does not exist"):
        load_encoder(path)


def test_an_encoder_is_replaced_as_a_whole(tmp_path, monkeypatch):
    from neuroenc._core import files

    encoder, X, path = saved(tmp_path)
    encoder.save(path)

    def killed(*args):
        raise KeyboardInterrupt

    other = RidgeEncoder(ALPHAS).fit(X, X[:, :3])
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_sealed_json", killed)
        with pytest.raises(KeyboardInterrupt):
            other.save(path)
    np.testing.assert_array_equal(load_encoder(path).predict(X), encoder.predict(X))
    assert {p.name for p in tmp_path.iterdir()} == {"encoder"}


class Own(BaseCrossValidator):
    def get_n_splits(self, *args):
        return 2

    def _iter_test_indices(self, X=None, y=None, groups=None):
        yield np.arange(10)
        yield np.arange(10, 20)


@pytest.mark.parametrize(
    "options",
    [
        {"cv": np.int64(4)},
        {"cv": KFold(4, shuffle=True, random_state=3)},
        {"cv": ShuffleSplit(3, test_size=0.25, random_state=1)},
        {"cv": [(np.arange(40), np.arange(40, 60)), (np.arange(20, 60), np.arange(20))]},
        {"cv": [(np.arange(60) >= 20, np.arange(60) < 20)]},
        {"alphas": (1.0, np.float32(10.0)), "scoring": "r", "fit_intercept": False, "standardise": True},
        {"alpha_per_voxel": False, "solver": "dual", "nan_voxels": "skip", "max_memory": "1GB", "n_jobs": 1},
    ],
)
def test_settings_come_back(tmp_path, options):
    X, path = planted()[0], tmp_path / "encoder"
    encoder = RidgeEncoder(**{"alphas": ALPHAS, **options}).fit(X, X[:, :3])
    loaded = load_encoder(encoder.save(path))
    again = loaded.fit(X, X[:, :3])
    np.testing.assert_array_equal(again.coef_, encoder.coef_)
    assert again.get_params().keys() == encoder.get_params().keys()
    assert repr(again.get_params()["cv"]) == repr(encoder.cv) or isinstance(encoder.cv, (list, np.integer))


def test_settings_that_cannot_be_saved_are_not_taken_for_others(tmp_path):
    _, X, path = saved(tmp_path)
    loaded = load_encoder(RidgeEncoder(ALPHAS, cv=Own()).fit(X, X[:, :3]).save(path))
    assert loaded.cv.startswith("unsaved: ")
    with pytest.raises(ConfigError, match="unsaved"):
        loaded.fit(X, X[:, :3])


def test_settings_of_banded_ridge_come_back(tmp_path):
    X, Y = planted(v=3)
    names = np.repeat(["a", "b"], 45)
    options = {"bands": names, "gammas": np.array([[1, 0], [0.5, 0.5]]), "cv": GroupKFold(3), "standardise": True}
    encoder = BandedRidgeEncoder(ALPHAS, **options).fit(X, Y, groups=np.arange(60) // 2)
    loaded = load_encoder(encoder.save(tmp_path / "encoder"))
    np.testing.assert_array_equal(loaded.fit(X, Y, groups=np.arange(60) // 2).coef_, encoder.coef_)
    assert loaded.cv.get_n_splits() == 3


def test_a_record_with_unknown_settings_is_refused(tmp_path):
    encoder, _, path = saved(tmp_path)
    from neuroenc._core.files import read_sealed_json, write_sealed_json

    file = encoder.save(path) / "encoder.json"
    record = read_sealed_json(file)
    write_sealed_json(file, {**record, "params": {**record["params"], "whiten": True}})
    with pytest.raises(DataError, match="whiten"):
        load_encoder(path)
