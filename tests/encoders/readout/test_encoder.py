"""ReadoutEncoder: labels, subjects, masks, the closed form, cores, context, storage, and what it refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.ndimage import gaussian_filter
from sklearn.base import clone
from torch import nn

from neuroenc import stats
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import ReadoutEncoder, RidgeEncoder, load_encoder
from neuroenc.encoders.readout import READOUTS, train
from neuroenc.encoders.readout._protocol import EncoderModule, build_module

QUICK = {"max_epochs": 3, "lr": 0.02}


def planted(n=240, c=6, size=5, v=4, noise=0.2, smooth=0.0, seed=0):
    """Voxels that each read two channels at neighbouring places."""
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((n, c, size, size)).astype(np.float32)
    maps = gaussian_filter(maps, (0, 0, smooth, smooth))
    maps /= maps.std()
    maps = maps * np.linspace(0.5, 3, c, dtype=np.float32)[:, None, None] + 2
    y, x = rng.integers(0, size, (2, v))
    a, b = rng.integers(0, c, (2, v))
    clean = maps[:, a, y, x] - 0.5 * maps[:, b, (y + 1) % size, x]
    return maps, ((clean + noise * rng.standard_normal((n, v)) - clean.mean(0)) / clean.std(0)).astype(np.float32)


def labelled(maps, Y, subject=None, stimulus=None):
    stimulus = [f"s{i:03d}" for i in range(len(maps))] if stimulus is None else stimulus
    features = xr.DataArray(maps, dims=("stimulus", "channel", "y", "x"), coords={"stimulus": stimulus})
    voxels = {"voxel": np.arange(100, 100 + Y.shape[1])}
    if subject is not None:
        voxels["subject"] = ("voxel", np.asarray(subject))
    responses = xr.DataArray(Y, dims=("stimulus", "voxel"), coords={"stimulus": stimulus, **voxels})
    return features, responses


def vectors_of(maps, Y):
    ids = [f"s{i}" for i in range(len(maps))]
    return make_features(maps[:, :, 0, 0], stimulus=ids), make_responses(Y, stimulus=ids)


@pytest.mark.parametrize("readout", sorted(READOUTS))
def test_every_readout_learns_what_was_planted(readout):
    maps, Y = planted(n=700, v=3, smooth=1.0)
    X, R = labelled(maps, Y)
    encoder = ReadoutEncoder(readout, lr=0.02, max_epochs=60).fit(X[:600], R[:600])
    score = encoder.score_voxels(X[600:], R[600:])
    # Voxels read two places each; pooling knows none, and attention and summary tokens share a few over voxels.
    least = {"pooled": 0.25, "attention": 0.4, "patch_summary": 0.4, "linear": 0.9}.get(readout, 0.7)
    assert float(score.mean()) > least
    assert score.voxel.values.tolist() == [100, 101, 102]
    predicted = encoder.predict(X[600:])
    assert predicted.dims == ("stimulus", "voxel")
    assert predicted.stimulus.values.tolist() == X.stimulus.values[600:].tolist()
    field = encoder.receptive_field()
    if field is not None:
        assert set(field.data_vars) == {"x", "y", "size"}
        assert field.voxel.values.tolist() == [100, 101, 102]
    assert encoder.weights().sizes["voxel"] == 3
    assert encoder.n_parameters_ == sum(p.numel() for p in encoder.model_.parameters())
    assert encoder.seconds_ > 0


def test_clone_and_parameters():
    encoder = ReadoutEncoder("gaussian", lr=0.5, readout_options={"feature_l2": 0.1})
    copy = clone(encoder)
    assert copy.get_params() == encoder.get_params()
    assert copy is not encoder


def test_import_needs_no_torch():
    code = "import sys, neuroenc.encoders; print('torch' in sys.modules, 'ReadoutEncoder' in dir(neuroenc.encoders))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "True"]


# Closed form


@pytest.mark.parametrize(("readout", "pool"), [("linear", None), ("linear", 2), ("pooled", 1)])
def test_closed_form_is_ridge_on_the_standardised_pooled_map(readout, pool):
    maps, Y = planted()
    encoder = ReadoutEncoder(readout, readout_options={"pool": pool}).fit(maps, Y)
    z = (maps - maps.mean((0, 2, 3), keepdims=True)) / maps.std((0, 2, 3), keepdims=True)
    if pool is not None:
        z = nn.functional.adaptive_avg_pool2d(torch.as_tensor(z), pool).numpy()
    ridge = RidgeEncoder().fit(z.reshape(len(z), -1), Y)
    np.testing.assert_allclose(encoder.predict(maps), ridge.predict(z.reshape(len(z), -1)), atol=1e-3)
    np.testing.assert_allclose(encoder.alpha_, ridge.alpha_, rtol=1e-3)
    assert (encoder.best_epoch_, len(encoder.curves_), len(encoder.schedule_)) == (0, 0, 0)


@pytest.mark.parametrize("form", ["maps", "vectors", "tokens", "tokens with class"])
@pytest.mark.parametrize("pool", [None, 2])
def test_to_linear_is_on_the_features_as_they_came(form, pool):
    maps, Y = planted(size=4)
    X = maps
    if form == "vectors":
        X, pool = maps[:, :, 0, 0], None
    if form.startswith("tokens"):
        X = maps.reshape(len(maps), maps.shape[1], -1).transpose(0, 2, 1)
        if "class" in form:
            X = np.concatenate([np.full_like(X[:, :1], 99.0), X], axis=1)
    encoder = ReadoutEncoder("linear", readout_options={"pool": pool}).fit(X, Y)
    coef, intercept = encoder.to_linear()
    assert coef.dims == ("feature", "voxel")
    np.testing.assert_allclose(X.reshape(len(X), -1) @ coef.values + intercept.values, encoder.predict(X), atol=1e-3)
    assert bool(encoder.notes_) is ("class" in form)


def test_closed_form_of_masked_responses_is_that_of_each_voxels_own_rows():
    maps, Y = planted(v=6)
    Y[:80, :3] = np.nan
    Y[200:, 3:5] = np.nan
    encoder = ReadoutEncoder("linear", standardise=False).fit(maps, Y)
    for rows, columns in ((slice(80, None), [0, 1, 2]), (slice(0, 200), [3, 4]), (slice(None), [5])):
        alone = ReadoutEncoder("linear", standardise=False).fit(maps[rows], Y[rows][:, columns])
        np.testing.assert_allclose(encoder.predict(maps)[:, columns], alone.predict(maps), atol=1e-5)
        np.testing.assert_array_equal(encoder.alpha_[columns], alone.alpha_)


def test_permuted_voxels_give_permuted_results():
    maps, Y = planted(v=5)
    Y[:60, 2] = np.nan
    order = np.array([3, 0, 4, 2, 1])
    a, b = ReadoutEncoder("linear").fit(maps, Y), ReadoutEncoder("linear").fit(maps, Y[:, order])
    np.testing.assert_allclose(a.predict(maps)[:, order], b.predict(maps), atol=1e-5)
    np.testing.assert_array_equal(a.alpha_[order], b.alpha_)


def test_folds_of_the_closed_form_go_by_stimulus_and_by_given_splits():
    maps, Y = planted(n=120)
    X, R = labelled(maps, Y, stimulus=[f"s{i % 60:03d}" for i in range(120)])
    with pytest.raises(DataError, match="on both sides"):
        ReadoutEncoder("linear", cv=[(np.arange(60), np.arange(60, 120))]).fit(X, R)
    ReadoutEncoder("linear").fit(X, R)
    splits = [(np.arange(0, 120, 2), np.arange(1, 120, 2)), (np.arange(1, 120, 2), np.arange(0, 120, 2))]
    Y[:30, :2] = np.nan
    encoder = ReadoutEncoder("linear", cv=splits).fit(maps, Y)
    alone = ReadoutEncoder("linear", cv=[(a[a >= 30] - 30, b[b >= 30] - 30) for a, b in splits], standardise=True)
    alone.fit(maps[30:], Y[30:, :2])
    assert np.allclose(np.log(encoder.alpha_[:2]), np.log(alone.alpha_), atol=0.2)


def test_solver_is_chosen():
    maps, Y = planted()
    closed, trained, fixed = (
        ReadoutEncoder("linear", solver=s, readout_options=o, **QUICK).fit(maps, Y)
        for s, o in (("auto", None), ("gradient", None), ("auto", {"alpha": 0.01}))
    )
    assert [len(e.curves_) for e in (closed, trained, fixed)] == [0, 3, 3]
    with pytest.raises(ConfigError, match="no alpha of the readout's own"):
        ReadoutEncoder("linear", solver="closed", readout_options={"alpha": 0.01}).fit(maps, Y)
    norm = ReadoutEncoder("linear", readout_options={"penalty": "norm", "alpha": 0.01}, **QUICK).fit(maps, Y)
    assert len(norm.curves_) == 3
    with pytest.raises(ConfigError, match="solver='closed' needs"):
        ReadoutEncoder("factorized", solver="closed").fit(maps, Y)
    with pytest.raises(ConfigError, match="did you mean 'gradient'"):
        ReadoutEncoder("linear", solver="gradients").fit(maps, Y)
    coef, intercept = trained.to_linear()
    flat = maps.reshape(len(maps), -1)
    np.testing.assert_allclose(flat @ coef.values + intercept.values, trained.predict(maps), atol=1e-4)


# Subjects


def subjects(seed=0):
    """Three subjects, voxels mixed; each saw its own stimuli and 40 that all saw."""
    maps, Y = planted(n=340, v=9, seed=seed)
    who = np.array(["b", "a", "c"] * 3)
    for k, name in enumerate("abc"):
        seen = np.r_[0:40, 40 + 100 * k : 140 + 100 * k]
        Y[np.ix_(np.setdiff1d(np.arange(340), seen), np.flatnonzero(who == name))] = np.nan
    return maps, Y, who


def test_each_subject_has_a_readout_and_voxels_keep_their_places():
    maps, Y, who = subjects()
    X, R = labelled(maps, Y, who)
    encoder = ReadoutEncoder("factorized", lr=0.02).fit(X, R)
    assert len(encoder.model_.readouts) == 3
    predicted = encoder.predict(X)
    assert predicted.subject.values.tolist() == who.tolist()
    assert float(encoder.score_voxels(X, R).min()) > 0.6
    held = ~np.isnan(Y[encoder.validation_rows_])
    assert (held.sum(axis=0) >= 2).all()
    for name in ("x", "y", "size"):
        assert encoder.receptive_field()[name].dims == ("voxel",)
    one = ReadoutEncoder("factorized", subjects=None, **QUICK).fit(X, R)
    assert len(one.model_.readouts) == 1


@pytest.mark.parametrize("readout", ["factorized", "gaussian", "semantic"])
def test_a_subject_is_unmoved_by_rows_it_did_not_see(readout):
    maps, Y, who = subjects()
    mine = np.flatnonzero(who == "a")
    others = np.isnan(Y[:, mine]).all(axis=1)
    changed, other_responses = maps.copy(), Y.copy()
    changed[others] = np.random.default_rng(9).permutation(maps[others])
    other_responses[np.ix_(others, np.flatnonzero(who != "a"))] *= 3
    predictions = []
    for x, y in ((maps, Y), (changed, other_responses)):
        X, R = labelled(x, y, who)
        encoder = ReadoutEncoder(readout, standardise=False, lr=0.02).fit(X, R, fixed_epochs=3)
        predictions.append(np.asarray(encoder.predict(labelled(maps, Y, who)[0])))
    assert np.array_equal(predictions[0][:, mine], predictions[1][:, mine])
    assert not np.allclose(np.delete(predictions[0], mine, 1), np.delete(predictions[1], mine, 1))


@pytest.mark.parametrize("readout", ["factorized", "semantic"])
def test_leaving_out_what_a_subject_did_not_see_changes_nothing(readout, monkeypatch):
    """In double precision: Adam makes whole steps of the rounding of gradients that are zero."""
    maps, Y, who = subjects()
    Y = Y[:, np.argsort(who, kind="stable")]
    Y[8:, 6:] = np.nan  # the third subject is in few batches
    Y[:8, 6:] = np.arange(8)[:, None]
    shares = []
    forward = EncoderModule.forward

    def some(self, x, context=None, seen=None):
        shares.append(seen.float().mean(0).tolist())
        return forward(self, x, context, seen)

    def every(self, x, context=None, seen=None):
        return forward(self, x, context)

    weights = []
    for method in (some, every):
        monkeypatch.setattr(EncoderModule, "forward", method)
        model = build_module(readout, None, None, None, (6, 5, 5), [3, 3, 3]).double()
        train(model, maps, Y, fixed_epochs=3, lr=0.02, batch_size=16)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-10)
    assert any(share[2] == 0 for share in shares)
    assert all(share[0] < 1 for share in shares)


def test_a_subject_starts_the_same_whoever_else_is_there():
    maps, Y, who = subjects()
    X, R = labelled(maps, Y, who)
    both = ReadoutEncoder("gaussian", **QUICK).fit(X, R)
    first = ReadoutEncoder("gaussian", **QUICK)
    first.fit(X, R[:, (who == "a") | (who == "b")])
    assert both.model_.readouts[0].n_voxels == first.model_.readouts[0].n_voxels == 3


def test_a_shared_core_is_trained_by_all_subjects():
    maps, Y, who = subjects()
    X, R = labelled(maps, Y, who)
    torch.manual_seed(0)
    core = nn.Conv2d(6, 4, 1)
    before = core.weight.detach().clone()
    encoder = ReadoutEncoder("factorized", core=core, lr=0.02, max_epochs=40).fit(X, R)
    assert torch.equal(core.weight, before)  # the module that was given is a setting, and stays what it was
    assert not torch.equal(encoder.model_.core.weight, before)
    assert encoder.model_.readouts[0].in_shape == (4, 5, 5)
    assert float(encoder.score_voxels(X, R).mean()) > 0.6
    assert encoder.n_parameters_ == sum(p.numel() for p in encoder.model_.parameters())


# Cores, images, context


def test_cores_by_name_and_frozen_modules():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(60, 3, 32, 32)).astype(np.uint8)
    Y = images.mean((1, 2)).astype(np.float32)[:, :2]
    Y = (Y - Y.mean(0)) / Y.std(0)
    encoder = ReadoutEncoder("factorized", core="plain", max_epochs=1).fit(images, Y)
    assert encoder.predict(images).shape == (60, 2)
    with pytest.raises(DataError, match=r"fitted on .*uint8"):
        encoder.predict(images.astype(np.float32))
    body = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.BatchNorm2d(4)).requires_grad_(False)
    frozen = ReadoutEncoder("factorized", core=body, **QUICK).fit(images, Y)
    for a, b in zip(body.state_dict().values(), frozen.model_.core.module.state_dict().values()):
        assert torch.equal(a, b)
    assert frozen.n_parameters_ == sum(r.n_parameters for r in frozen.model_.readouts)
    with pytest.raises(ConfigError, match="unknown core 'plane'; did you mean 'plain'"):
        ReadoutEncoder(core="plane").fit(images, Y)
    with pytest.raises(ConfigError, match="without a core"):
        ReadoutEncoder(core_options={"fields": 2}).fit(images, Y)


def test_context_is_read_where_it_is_given():
    maps, Y = planted()
    context = np.random.default_rng(1).standard_normal((240, 3, 4, 4)).astype(np.float32)
    encoder = ReadoutEncoder("semantic", **QUICK).fit(maps, Y, context=context)
    assert encoder.context_shape_ == (3, 4, 4)
    a, b = encoder.predict(maps, context=context), encoder.predict(maps, context=context[::-1])
    assert not np.allclose(a, b)
    assert encoder.warp_spread(maps, context=context).sizes == {"voxel": 4}
    assert ReadoutEncoder("factorized", **QUICK).fit(maps, Y).warp_spread(maps) is None
    with pytest.raises(DataError, match=r"context has shape None .* fitted with \(3, 4, 4\)"):
        encoder.predict(maps)
    with pytest.raises(DataError, match="240 stimuli, context 100"):
        encoder.fit(maps, Y, context=context[:100])
    X, R = labelled(maps, Y)
    shuffled = X[::-1]
    with pytest.raises(DataError, match="different stimulus orders"):
        encoder.fit(X, R, context=shuffled)


# Training


def test_validation_is_by_stimulus_and_refits_repeat_the_schedule():
    maps, Y = planted()
    X, R = labelled(maps, Y, stimulus=[f"s{i % 80:03d}" for i in range(240)])
    encoder = ReadoutEncoder(lr=0.02, max_epochs=30, validation=0.2).fit(X, R)
    stimulus = R.stimulus.values
    held = encoder.validation_rows_
    assert len(held) == 48
    assert not set(stimulus[held]) & set(np.delete(stimulus, held))
    measured = stats.pearson_r(Y[held], np.asarray(encoder.predict(X[held]))).mean()
    np.testing.assert_allclose(measured, encoder.curves_.validation_r[encoder.best_epoch_ - 1], atol=1e-6)
    refit = ReadoutEncoder(lr=0.02).fit(X, R, fixed_epochs=encoder.schedule_)
    assert len(refit.validation_rows_) == 0
    assert refit.best_epoch_ == len(encoder.schedule_) == len(refit.curves_)
    given = ReadoutEncoder(lr=0.02, max_epochs=30, validation=held.tolist()).fit(X, R)
    np.testing.assert_array_equal(given.predict(X), encoder.predict(X))


def test_seeds_and_resumption(tmp_path):
    maps, Y = planted()
    a, b, c = (ReadoutEncoder("gaussian", seed=s, **QUICK).fit(maps, Y).predict(maps) for s in (0, 0, 1))
    assert np.array_equal(a, b)
    assert not np.allclose(a, c)
    for _ in range(2):
        kept = ReadoutEncoder("gaussian", checkpoint=tmp_path, **QUICK).fit(maps, Y)
        assert np.array_equal(kept.predict(maps), a)
    other, fresh = (ReadoutEncoder("gaussian", checkpoint=c, **QUICK).fit(maps, Y[::-1]) for c in (tmp_path, None))
    assert np.array_equal(other.predict(maps), fresh.predict(maps))


@pytest.mark.parametrize("readout", ["linear", "factorized", "semantic"])
def test_memory_does_not_change_results(readout, tmp_path):
    maps, Y = planted()
    np.save(tmp_path / "maps.npy", maps)
    whole = ReadoutEncoder(readout, **QUICK).fit(maps, Y).predict(maps)
    little = ReadoutEncoder(readout, max_memory=20_000, **QUICK)
    little.fit(np.load(tmp_path / "maps.npy", mmap_mode="r"), Y)
    np.testing.assert_allclose(little.predict(maps), whole, atol=1e-4)


def test_start_is_the_mean_and_poisson_predicts_rates():
    maps, Y = planted()
    counts = np.random.default_rng(0).poisson(np.exp(Y / 2) * 3)
    encoder = ReadoutEncoder("factorized", loss="poisson", lr=1e-9).fit(maps, counts, fixed_epochs=1)
    np.testing.assert_allclose(encoder.predict(maps).mean(0), counts.mean(0), rtol=0.05)
    fitted = ReadoutEncoder("factorized", loss="poisson", lr=0.02, max_epochs=40).fit(maps, counts)
    assert (fitted.predict(maps) > 0).all()
    assert fitted.score_voxels(maps, counts).mean() > 0.6


# Forms of X and y


def test_forms_of_features_and_responses():
    maps, Y = planted(size=4)
    single = ReadoutEncoder(**QUICK).fit(maps, Y[:, 0])
    assert single.predict(maps).shape == (240,)
    np.testing.assert_allclose(single.score(maps, Y[:, 0]), stats.r2_score(Y[:, 0], single.predict(maps)), rtol=1e-6)
    column = ReadoutEncoder(**QUICK).fit(maps, Y[:, :1])
    np.testing.assert_array_equal(column.predict(maps)[:, 0], single.predict(maps))
    tokens = maps.reshape(240, 6, 16).transpose(0, 2, 1)
    with_class = np.concatenate([np.ones((240, 1, 6), np.float32), tokens], axis=1)
    expected = ReadoutEncoder(**QUICK).fit(maps, Y).predict(maps)
    for form in (tokens, with_class, xr.DataArray(tokens, dims=("stimulus", "token", "feature"))):
        np.testing.assert_array_equal(np.asarray(ReadoutEncoder(**QUICK).fit(form, Y).predict(form)), expected)
    swapped = xr.DataArray(maps, dims=("stimulus", "channel", "y", "x")).transpose("stimulus", "y", "x", "channel")
    np.testing.assert_array_equal(np.asarray(ReadoutEncoder(**QUICK).fit(swapped, Y).predict(swapped)), expected)
    tensor = ReadoutEncoder(**QUICK).fit(torch.as_tensor(maps), torch.as_tensor(Y)).predict(torch.as_tensor(maps))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), expected)
    vectors = ReadoutEncoder("pooled").fit(*vectors_of(maps, Y))
    assert vectors.in_shape_ == (6, 1, 1)
    assert vectors.receptive_field() is None


def test_standardised_maps_make_units_of_features_irrelevant():
    maps, Y = planted()
    scaled = maps * np.array([1, 10, 0.1, 3, 5, 100], np.float32)[:, None, None] + 7
    a, b = (ReadoutEncoder("factorized", **QUICK).fit(m, Y).predict(m) for m in (maps, scaled))
    np.testing.assert_allclose(a, b, atol=2e-3)
    c = ReadoutEncoder("factorized", standardise=False, **QUICK).fit(scaled, Y).predict(scaled)
    assert not np.allclose(a, c, atol=2e-3)


# Storage


@pytest.mark.parametrize("readout", ["linear", "gaussian", "semantic"])
def test_saved_and_loaded(readout, tmp_path):
    maps, Y, who = subjects()
    X, R = labelled(maps, Y, who)
    options = {"mode": "translation"} if readout == "semantic" else None
    encoder = ReadoutEncoder(readout, readout_options=options, **QUICK).fit(X, R)
    encoder.save(tmp_path)
    loaded = load_encoder(tmp_path)
    assert isinstance(loaded, ReadoutEncoder)
    xr.testing.assert_identical(loaded.predict(X), encoder.predict(X))
    xr.testing.assert_identical(loaded.receptive_field(), encoder.receptive_field())
    xr.testing.assert_identical(loaded.weights(), encoder.weights())
    assert loaded.get_params() == encoder.get_params()
    assert loaded.curves_.equals(encoder.curves_) or readout == "linear"
    assert (loaded.best_epoch_, loaded.n_parameters_) == (encoder.best_epoch_, encoder.n_parameters_)
    assert loaded.provenance_ == encoder.provenance_
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors", ".md"}
    json.loads((tmp_path / "encoder.json").read_text())
    with pytest.raises(ConfigError, match="did you mean 'device'"):
        ReadoutEncoder.load(tmp_path, devise="cpu")


def test_saved_with_a_core(tmp_path):
    maps, Y = planted()
    core = nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4))
    encoder = ReadoutEncoder(core=core, **QUICK).fit(maps, Y)
    encoder.save(tmp_path / "own")
    with pytest.raises(DataError, match=r"load\(path, core=module\)"):
        ReadoutEncoder.load(tmp_path / "own")
    loaded = ReadoutEncoder.load(tmp_path / "own", core=nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)))
    np.testing.assert_array_equal(loaded.predict(maps), encoder.predict(maps))
    named = ReadoutEncoder(core="grid", core_options={"channels": 16}, max_epochs=1)
    maps, Y = planted(size=8, n=60)
    named.fit(maps, Y).save(tmp_path / "named")
    np.testing.assert_array_equal(load_encoder(tmp_path / "named").predict(maps), named.predict(maps))


# Errors


def test_maps_of_the_other_byte_order_are_read_and_ragged_responses_refused():
    maps, Y = planted()
    one, two = (ReadoutEncoder(**QUICK).fit(m, Y).predict(maps) for m in (maps, maps.astype(">f4")))
    np.testing.assert_array_equal(one, two)
    with pytest.raises(DataError, match="responses"):
        ReadoutEncoder(**QUICK).fit(maps, [[1.0, 2.0], [1.0]])


def test_bad_inputs():
    maps, Y = planted()
    X, R = labelled(maps, Y)
    with pytest.raises(DataError, match="different stimulus orders"):
        ReadoutEncoder().fit(X, R[::-1])
    with pytest.raises(DataError, match="240 samples and responses 100"):
        ReadoutEncoder().fit(maps, Y[:100])
    fitted = ReadoutEncoder(**QUICK).fit(X, R)
    with pytest.raises(DataError, match=r"\(6, 4, 4\) .* fitted on \(6, 5, 5\)"):
        fitted.predict(maps[:, :, :4, :4])
    with pytest.raises(DataError, match="different stimulus orders"):
        fitted.score_voxels(X, R[::-1])
    blank = R.copy()
    blank[:, 2] = np.nan
    with pytest.raises(DataError, match=r"1 of 4 voxels have responses to fewer than 2 of 240 stimuli.*\[102\]"):
        ReadoutEncoder().fit(X, blank)
    infinite = R.copy()
    infinite[3, 1] = np.inf
    with pytest.raises(DataError, match=r"1 of 4 voxels hold infinite.*\[101\]"):
        ReadoutEncoder().fit(X, infinite)
    broken = maps.copy()
    broken[[3, 8], 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="features of 2 of 240 stimuli"):
        ReadoutEncoder().fit(broken, Y)
    with pytest.raises(DataError, match="negative"):
        ReadoutEncoder(loss="poisson").fit(maps, Y)
    with pytest.raises(ConfigError, match="did you mean 'factorized'"):
        ReadoutEncoder("factorised").fit(maps, Y)
    with pytest.raises(ConfigError, match="option of readout 'factorized'"):
        ReadoutEncoder(readout_options={"smoothnes": 1.0}).fit(maps, Y)
    with pytest.raises(DataError, match="7 tokens, which is no square"):
        ReadoutEncoder().fit(np.zeros((240, 7, 3)), Y)
    with pytest.raises(DataError, match="5 dimensions"):
        ReadoutEncoder().fit(np.zeros((240, 1, 1, 1, 1)), Y)
    with pytest.raises(DataError, match="dims"):
        ReadoutEncoder().fit(xr.DataArray(maps, dims=("stimulus", "a", "b", "c")), Y)
    with pytest.raises(ConfigError, match="no weights on the features"):
        fitted.to_linear()
    with pytest.raises(ConfigError, match="validation=2"):
        ReadoutEncoder(validation=2).fit(maps, Y)
    few = Y.copy()
    few[10:, 1] = np.nan
    with pytest.raises(DataError, match="1 of 4 voxels have no responses outside the validation rows"):
        ReadoutEncoder(validation=range(10)).fit(maps, few)
