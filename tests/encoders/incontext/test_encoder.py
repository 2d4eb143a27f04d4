"""The estimator: labels, missing responses, scale, weights, warnings, files, and what it must not depend on."""

import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.base import clone

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import RetrievalDecoder, caption_voxels
from neuroenc.data import make_features, make_responses, simulate_world
from neuroenc.embedding import ImageEmbedder, TextEmbedder
from neuroenc.encoders import InContextEncoder, RidgeEncoder, load_encoder
from neuroenc.encoders.incontext import (
    ChunkAveraged,
    PriorMixture,
    SyntheticEpisodes,
    make_model,
    region_embedding,
    save_model,
    support_attention,
    train_stage,
)
from neuroenc.encoders.incontext._anchor import _NOISE, _SIGNAL
from neuroenc.encoders.incontext._condition import missing_groups, voxels_at_once

torch.set_num_threads(1)
E = 8


def model(form="anchored", stir=0.05, **changes):
    shape = {"n_features": E, "dim": 16, "depth": 2, "hidden": 24, "heads": 4}
    made = make_model("small", form=form, **{**shape, **changes}).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(stir * torch.randn_like(p))
    return made


def data(n=40, voxels=30, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, E))
    Y = X @ rng.standard_normal((E, voxels)) / 4 + 0.6 * rng.standard_normal((n, voxels))
    return X.astype(np.float32), Y.astype(np.float32), rng.standard_normal((11, E)).astype(np.float32)


def same(a, b, tolerance=2e-5):
    for name in ("coef_", "intercept_", "noise_variance_"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=tolerance, atol=tolerance, err_msg=name)


FORMS = pytest.mark.parametrize("form", ["anchored", "published"])
POOLS = pytest.mark.parametrize("pool", ["voxels", "none"])


@FORMS
def test_equals_the_model(form):
    m, (X, Y, Q) = model(form), data()
    encoder = InContextEncoder(m, pool="none").fit(X, Y)
    with torch.no_grad():
        found = m(torch.tensor(X), torch.tensor(Y.T))
    np.testing.assert_allclose(encoder.coef_, found.coef.numpy().T, atol=1e-5)
    np.testing.assert_allclose(encoder.predict(Q), found.predict(torch.tensor(Q)).numpy().T, atol=1e-5)
    assert np.isnan(encoder.noise_variance_).all() == (form == "published")
    assert encoder.n_samples_fit_ == 40
    assert encoder.n_seen_.tolist() == [40] * 30


def test_labels_are_kept():
    X, Y, Q = data()
    ids = [f"img{i}" for i in range(len(X))]
    features = make_features(X, stimulus=ids)
    responses = make_responses(Y, stimulus=ids, dim="stimulus", voxel=np.arange(100, 130), roi=["FFA"] * 30)
    encoder = InContextEncoder(model()).fit(features, responses)
    predicted = encoder.predict(make_features(Q, stimulus=[f"q{i}" for i in range(11)]))
    assert isinstance(predicted, xr.DataArray)
    assert predicted["stimulus"].values.tolist()[:2] == ["q0", "q1"]
    assert predicted["roi"].values.tolist() == ["FFA"] * 30
    _, std = encoder.predict(make_features(Q, stimulus=[f"q{i}" for i in range(11)]), return_std=True)
    assert isinstance(std, xr.DataArray)
    assert std.dims == predicted.dims
    assert (std["voxel"].values == np.arange(100, 130)).all()
    coef, intercept = encoder.to_linear()
    assert coef.dims == ("feature", "voxel")
    assert (intercept["roi"].values == "FFA").all()
    np.testing.assert_array_equal(predicted.values, InContextEncoder(encoder.model).fit(X, Y).predict(Q))


def test_a_single_voxel():
    X, Y, Q = data()
    encoder = InContextEncoder(model()).fit(X, Y[:, 0])
    whole = InContextEncoder(encoder.model, pool="none").fit(X, Y)
    predicted, std = encoder.predict(Q, return_std=True)
    assert predicted.shape == std.shape == (11,)
    np.testing.assert_allclose(predicted, whole.predict(Q)[:, 0], atol=1e-5)
    assert -1 < encoder.score(X, Y[:, 0]) < 1


@FORMS
@pytest.mark.parametrize("patterns", [1, 3, 30])
def test_missing_responses_are_as_if_left_out(form, patterns):
    # Few patterns are conditioned one by one, many are masked.
    m, (X, Y, _) = model(form), data()
    rng = np.random.default_rng(1)
    seen = rng.random((40, patterns)) > 0.3
    kind = np.arange(30) % patterns
    Y[~seen[:, kind]] = np.nan
    assert (missing_groups(~np.isnan(Y))[0][0] is None) == (patterns == 30)
    encoder = InContextEncoder(m, pool="none").fit(X, Y)
    assert encoder.n_seen_.tolist() == seen.sum(0)[kind].tolist()
    for v in range(0, 30, 7):
        rows = seen[:, kind[v]]
        alone = InContextEncoder(m, pool="none").fit(X[rows], Y[rows][:, [v]])
        np.testing.assert_allclose(encoder.coef_[:, v], alone.coef_[:, 0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(encoder.intercept_[v], alone.intercept_[0], rtol=1e-4, atol=1e-5)


@POOLS
@FORMS
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_block_size_does_not_matter(form, pool, precision):
    m, (X, Y, _) = model(form), data(voxels=41)
    assert voxels_at_once(m, 40, 2**28) >= 41
    assert voxels_at_once(m, 40, 2**17) < 10
    if form == "anchored":
        # Without tokens many voxels share the decompositions of one support, however long it is.
        assert voxels_at_once(m.silence(), 5_000, 2**28) > 500
        m.silence(False)
    fits = [InContextEncoder(m, pool=pool, precision=precision, max_memory=b).fit(X, Y) for b in (2**28, 2**17, 1)]
    for other in fits[1:]:
        same(fits[0], other, 2e-5 if precision == "32" else 2e-2)


def test_bf16_is_near_float32():
    X, Y, Q = data()
    m = model()
    exact, near = (InContextEncoder(m, precision=p).fit(X, Y).predict(Q) for p in ("32", "bf16"))
    assert 0 < np.abs(exact - near).max() < 0.05 * np.abs(exact).max()


@POOLS
def test_order_of_voxels_and_trials_does_not_matter(pool):
    m, (X, Y, Q) = model(), data()
    rng = np.random.default_rng(0)
    voxels, trials = rng.permutation(30), rng.permutation(40)
    straight = InContextEncoder(m, pool=pool).fit(X, Y).predict(Q)
    turned = InContextEncoder(m, pool=pool).fit(X[trials], Y[trials][:, voxels]).predict(Q)
    np.testing.assert_allclose(turned, straight[:, voxels], rtol=1e-4, atol=1e-4)


@FORMS
def test_sample_weight_repeats_and_leaves_out(form):
    m, (X, Y, _) = model(form), data()
    times = np.array([2, 0, 3, 1] * 10)
    again = np.repeat(np.arange(40), times)
    plain = InContextEncoder(m, robust="none")
    same(clone(plain).fit(X, Y, sample_weight=times), clone(plain).fit(X[again], Y[again]), 1e-4)
    # What counts nothing decides neither where outliers begin nor about the units of the responses.
    scaled = clone(plain).set_params(response_scale="support", clip=3.0)
    spiked = Y + 50.0 * (times == 0)[:, None]
    unclipped = clone(scaled).set_params(clip=None)
    same(clone(unclipped).fit(X, spiked, sample_weight=times), clone(unclipped).fit(X[again], spiked[again]), 1e-4)
    only = np.minimum(times, 1)
    same(clone(scaled).fit(X, spiked, sample_weight=only), clone(scaled).fit(X[only > 0], spiked[only > 0]), 1e-4)
    same(InContextEncoder(m).fit(X, Y, sample_weight=np.ones(40)), InContextEncoder(m).fit(X, Y))
    for bad in (np.ones(39), -np.ones(40), np.zeros(40), np.full(40, np.nan)):
        with pytest.raises(DataError, match="sample_weight"):
            InContextEncoder(m).fit(X, Y, sample_weight=bad)


def test_response_scale_support_follows_the_unit():
    m, (X, Y, Q) = model(), data()
    Z = (Y - Y.mean(0)) / Y.std(0)
    plain = InContextEncoder(m, response_scale="as-is").fit(X, Z)
    scaled = InContextEncoder(m, response_scale="support").fit(X, 250 * Z + 3000)
    p, s = (e.predict(Q, return_std=True) for e in (plain, scaled))
    np.testing.assert_allclose(s[0], 250 * p[0] + 3000, rtol=1e-3)
    np.testing.assert_allclose(s[1], 250 * p[1], rtol=1e-3)
    np.testing.assert_allclose(scaled.noise_variance_, 250**2 * plain.noise_variance_, rtol=1e-3)


def test_warnings_say_what_looks_wrong():
    m, (X, Y, _) = model(), data()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InContextEncoder(m).fit(X, Y)
        InContextEncoder(m, response_scale="as-is").fit(X, 100 * Y)
        InContextEncoder(m).fit(X[:5], 100 * Y[:5])  # Too few trials to judge.
    for wrong in (100 * Y, Y + 5, 0.01 * Y):
        with pytest.warns(UserWarning, match="do not look z-scored"):
            InContextEncoder(m).fit(X, wrong)


@pytest.mark.parametrize("scale", ["check", "support"])
def test_silent_voxels_get_zero_weights(scale):
    m, (X, Y, Q) = model(), data()
    Y[:, 4], Y[:, 9] = 0.0, 0.7
    with pytest.warns(UserWarning, match="2 of 30 voxels have no signal"):
        encoder = InContextEncoder(m, response_scale=scale).fit(X, Y)
    assert encoder.silent_voxels_.tolist() == [4, 9]
    assert not encoder.coef_[:, [4, 9]].any()
    np.testing.assert_allclose(encoder.predict(Q)[:, [4, 9]], np.tile([0.0, 0.7], (11, 1)), atol=1e-6)
    assert np.isfinite(encoder.coef_).all()


def test_errors():
    m, (X, Y, Q) = model(), data()
    with pytest.raises(DataError, match="this model takes 8"):
        InContextEncoder(m).fit(X[:, :5], Y)
    with pytest.raises(DataError, match="infinity"):
        InContextEncoder(m).fit(X, np.where(np.arange(30) == 3, np.inf, Y))
    with pytest.raises(DataError, match=r"1 of 30 voxels have no response.*\[3\]"):
        InContextEncoder(m).fit(X, np.where(np.arange(30) == 3, np.nan, Y))
    for settings, said in (
        ({"response_scale": "suport"}, "support"),
        ({"precision": "16"}, "precision"),
        ({"pool": "voxel"}, "voxels"),
    ):
        with pytest.raises(ConfigError, match=said):
            InContextEncoder(m, **settings).fit(X, Y)
    with pytest.raises(ConfigError, match="expected a name"):
        InContextEncoder(3).fit(X, Y)
    with pytest.raises(DataError, match="save_model"):
        InContextEncoder("nowhere").fit(X, Y)
    with pytest.raises(ConfigError, match="anchored"):
        InContextEncoder(model("published")).fit(X, Y).predict(Q, return_std=True)


def test_saved_loaded_and_cloned(tmp_path):
    X, Y, Q = data()
    path = save_model(model(), tmp_path / "model")
    encoder = InContextEncoder(str(path)).fit(X, Y)
    np.testing.assert_array_equal(encoder.predict(Q), InContextEncoder(model()).fit(X, Y).predict(Q))
    back = InContextEncoder.load(encoder.save(tmp_path / "encoder"))
    np.testing.assert_array_equal(back.predict(Q), encoder.predict(Q))
    same(back, encoder, 0)
    with pytest.raises(ConfigError, match="fit again"):
        back.predict(Q, return_std=True)
    with pytest.raises(ConfigError, match="fit again"):
        back.support()
    again = back.fit(X, Y)
    assert again.predict(Q, return_std=True)[1].shape == (11, 30)
    twin = clone(InContextEncoder(model(), precision="bf16"))
    assert twin.precision == "bf16"
    m = model()
    assert clone(InContextEncoder(m)).model is m
    kept = encoder.support()
    np.testing.assert_array_equal(kept[0], X)
    np.testing.assert_array_equal(kept[1], Y)


def test_a_fitted_encoder_is_saved_without_its_model_and_support(tmp_path):
    X, Y, Q = data()
    encoder = InContextEncoder(str(save_model(model(dim=64, hidden=256), tmp_path / "model"))).fit(X, Y)
    saved = encoder.save(tmp_path / "encoder")
    files = [saved] if saved.is_file() else [p for p in saved.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 50_000 < (tmp_path / "model" / "model.safetensors").stat().st_size
    assert encoder.predict(Q, return_std=True)[1].shape == (11, 30)  # Saving takes nothing away.


@pytest.mark.parametrize(("n", "pool"), [(8, "none"), (40, "none"), (40, "voxels")])
def test_intervals_cover_voxels_of_the_prior(n, pool):
    rng = np.random.default_rng(n)
    voxels = 1500
    root = rng.standard_normal((E, E))
    mixture = PriorMixture.build(rng.standard_normal((2000, E)) + 0.3, [root @ root.T + 0.1 * np.eye(E)])
    m = make_model("small", prior=mixture, dim=16, depth=1, hidden=16, heads=4)
    level = m.anchor.level.detach().double().numpy()
    picked = rng.choice(level.size, voxels, p=np.exp(level).ravel() / np.exp(level).sum())
    signal, noise = _SIGNAL.numpy()[picked // level.shape[1]], _NOISE.numpy()[picked % level.shape[1]]
    W = rng.multivariate_normal(np.zeros(E), mixture.covs[0], voxels).T * np.sqrt(signal)
    b = np.sqrt(0.1 * signal) * rng.standard_normal(voxels)

    def responses(x):
        return (x - mixture.center) @ W + b + np.sqrt(noise) * rng.standard_normal((len(x), voxels))

    X, Q = rng.standard_normal((n, E)) + 0.3, rng.standard_normal((20, E)) + 0.3
    encoder = InContextEncoder(m, pool=pool, response_scale="as-is").fit(X, responses(X))
    mean, std = encoder.predict(Q, return_std=True)
    off = (responses(Q) - mean) / std
    assert abs(np.mean(off**2) - 1) < 0.1
    for share, z in ((0.5, 0.6745), (0.9, 1.6449)):
        assert abs((np.abs(off) < z).mean() - share) < 0.04


def test_captions_of_the_worlds_embeddings():
    scenes = simulate_world(80, seed=7)
    images = ImageEmbedder("world", normalise=True, progress=False).embed(scenes)
    texts = ["a face", "a house", "a hand", "food on a plate", "a word"]
    vectors = np.asarray(TextEmbedder("world", progress=False).embed(texts))
    X = np.asarray(images)
    rng = np.random.default_rng(0)
    # Voxels that answer to what a text says.
    W = ((vectors - vectors.mean(0)) / np.linalg.norm(vectors - vectors.mean(0), axis=1, keepdims=True)).T
    Y = (X - X.mean(0)) @ W
    Y = Y / Y.std(0) + 0.3 * rng.standard_normal(Y.shape)
    responses = make_responses(Y, stimulus=images["stimulus"].values, dim="stimulus", roi=list("abcde"))
    around = PriorMixture.build(X, [np.eye(X.shape[1])])
    encoder = InContextEncoder(make_model("small", prior=around, depth=1)).fit(images, responses)
    found = caption_voxels(encoder, X, RetrievalDecoder(texts, vectors), top=2, n_evidence=3, progress=False).captions
    assert set(found["roi"]) == set("abcde")
    coef, _ = encoder.to_linear()
    ridge, _ = RidgeEncoder().fit(images, responses).to_linear()
    for v in range(5):
        assert np.corrcoef(coef.values[:, v], ridge.values[:, v])[0, 1] > 0.5


def test_features_of_another_making_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    model = make_model("small", n_features=8, dim=16, depth=1, hidden=32)
    model.features = {"backbone": "clip", "layer": "last", "normalised": 1}
    folder = save_model(model, tmp_path / "model")
    ids = [f"s{n:02d}" for n in range(30)]
    made = {"stimulus": ids, "backbone": "clip", "layer": "last", "normalised": True}
    X = make_features(rng.standard_normal((30, 8)), **made)
    Y = make_responses(rng.standard_normal((30, 4)), stimulus=ids, dim="stimulus")
    encoder = InContextEncoder(folder, response_scale="as-is").fit(X, Y)
    encoder.save(tmp_path / "encoder")
    for change in ({"backbone": "dino"}, {"layer": "first"}, {"normalised": False}):
        other = make_features(X.values, **{**made, **change})
        with pytest.raises(DataError, match="numbers of one width, of another meaning"):
            InContextEncoder(folder).fit(other, Y)
        # What it was conditioned on counts when it predicts, in another process too.
        for fitted in (encoder, load_encoder(tmp_path / "encoder")):
            with pytest.raises(DataError, match="the encoder was fitted on features of"):
                fitted.predict(other)
    # Features that say nothing are taken.
    InContextEncoder(folder, response_scale="as-is").fit(X.values, Y.values).predict(X.values)


def test_a_model_trained_again_in_its_folder_is_noticed(tmp_path):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((30, 8)), rng.standard_normal((30, 25))
    folder = save_model(make_model("small", n_features=8, dim=16, depth=1, form="published"), tmp_path)
    encoder = InContextEncoder(folder, response_scale="as-is").fit(X, Y)
    first = encoder.coef_.copy()
    save_model(make_model("small", n_features=8, dim=16, depth=1, form="published", seed=1), tmp_path)
    assert np.abs(encoder.fit(X, Y).coef_ - first).max() > 1e-3


def test_missing_responses_of_others_do_not_matter_where_order_does():
    """With positions, a voxel's weights do not depend on what other voxels of its block miss."""
    rng = np.random.default_rng(0)
    model = make_model("small", n_features=8, dim=16, depth=1, form="published", position={"class": "Rotary"})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    X, Y = rng.standard_normal((40, 8)), rng.standard_normal((40, 20))
    Y[np.arange(20) * 2, np.arange(20)] = np.nan
    all_of_them = InContextEncoder(model, response_scale="as-is").fit(X, Y).coef_
    alone = [InContextEncoder(model, response_scale="as-is").fit(X, Y[:, [v]]).coef_[:, 0] for v in (0, 7)]
    np.testing.assert_allclose(all_of_them[:, [0, 7]].T, alone, rtol=1e-4, atol=1e-5)


def test_queries_ask_the_support():
    asking = model("query", stir=0.2)
    rng = np.random.default_rng(0)
    X, Y, queries = rng.standard_normal((30, 8)), rng.standard_normal((30, 5)), rng.standard_normal((600, 8))
    X, Y, queries = (a.astype(np.float32) for a in (X, Y, queries))
    Y[3:6, 1] = np.nan
    encoder = InContextEncoder(asking, device="cpu", pool="none", response_scale="as-is").fit(X, Y)
    found = encoder.predict(queries)
    with torch.no_grad():
        wanted = asking(torch.as_tensor(X), torch.as_tensor(Y.T.copy())).predict(torch.as_tensor(queries))
    np.testing.assert_allclose(found, wanted.T, atol=1e-4)
    linear = queries @ encoder.coef_ + encoder.intercept_
    assert np.abs(found - linear).max() > 0.01
    # A query's answer depends neither on other queries, nor on the order of trials, nor on blocks of voxels.
    order = rng.permutation(30)
    again = InContextEncoder(asking, device="cpu", pool="none", response_scale="as-is", max_memory=10**5)
    np.testing.assert_allclose(again.fit(X[order], Y[order]).predict(queries[7:8]), found[7:8], atol=1e-4)
    scaled = InContextEncoder(asking, device="cpu", pool="none", response_scale="support").fit(X, 7 * Y + 3)
    unit = (Y - np.nanmean(Y, axis=0)) / np.nanstd(Y, axis=0)
    plain = InContextEncoder(asking, device="cpu", pool="none", response_scale="as-is").fit(X, unit)
    again = plain.predict(queries) * 7 * np.nanstd(Y, axis=0) + 7 * np.nanmean(Y, axis=0) + 3
    np.testing.assert_allclose(scaled.predict(queries), again, atol=1e-2)
    with pytest.raises(ConfigError, match="has no variance"):
        encoder.predict(queries, return_std=True)
    with pytest.raises(ConfigError, match="not linear in the features"):
        encoder.to_linear()
    with pytest.raises(ConfigError, match="not its chunks"):
        ChunkAveraged(asking, chunk=10, device="cpu").fit(X, Y)
    silent = InContextEncoder(model("query", stir=0.2).silence(), device="cpu", pool="none").fit(X, Y)
    np.testing.assert_allclose(silent.predict(queries), queries @ silent.coef_ + silent.intercept_, atol=1e-4)


def test_an_encoder_whose_queries_ask_is_not_linear_in_files(tmp_path):
    rng = np.random.default_rng(0)
    folder = save_model(model("query"), tmp_path / "model")
    X, Y = rng.standard_normal((30, 8)), rng.standard_normal((30, 5))
    encoder = InContextEncoder(str(folder), device="cpu").fit(X, Y)
    encoder.save(tmp_path / "encoder")
    with pytest.raises(ConfigError, match="not kept in files"):
        load_encoder(tmp_path / "encoder").predict(rng.standard_normal((3, 8)))


def test_landmarks_stand_for_blocks_of_like_trials_in_any_order():
    layout = {"block_size": 4, "lead": 4}
    grouped = {"class": "GroupedSoftmax", **layout}
    some = model("published", 0.2, normaliser=grouped, context={"class": "LandmarkPolicy", **layout, "top_k": 2})
    every = model("published", 0.2, normaliser=grouped, context={"class": "LandmarkPolicy", **layout, "top_k": 99})
    whole = model("published", 0.2, normaliser=grouped)
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((43, 8)), rng.standard_normal((43, 5))
    coef = {
        name: InContextEncoder(one, device="cpu").fit(X, Y).coef_
        for name, one in {"some": some, "every": every, "whole": whole}.items()
    }
    np.testing.assert_allclose(coef["every"], coef["whole"], atol=1e-5)
    assert np.abs(coef["some"] - coef["whole"]).max() > 1e-4
    order = rng.permutation(43)
    turned = InContextEncoder(some, device="cpu").fit(X[order], Y[order])
    np.testing.assert_allclose(turned.coef_, coef["some"], atol=1e-5)
    attention = support_attention(whole, X, Y)
    assert attention.sizes["support"] == 43
    np.testing.assert_allclose(attention.sum("support") + attention["registers"], 1, atol=1e-5)
    turned = support_attention(whole, X[order], Y[order])
    np.testing.assert_allclose(turned.values, attention.values[..., order], atol=1e-5)


def test_context_and_sinks_are_changed_for_one_encoder_only():
    X, Y, _ = data(60)
    own = model("published", 0.3)
    chunks = {"class": "ChunkSelectPolicy", "chunk_size": 4, "max_tokens": 16}
    plain = InContextEncoder(own, device="cpu", response_scale="as-is").fit(X, Y).coef_
    for changes, twin in (
        ({"context": chunks}, {"context": chunks}),
        (
            {"calibrate": [(0, 1), (1, 1), (0, 2), (1, 2)]},
            {"normaliser": {"class": "SinkCalibration", "heads": [1, 2], "keep_first": 4}},
        ),
    ):
        found = InContextEncoder(own, device="cpu", response_scale="as-is", **changes).fit(X, Y).coef_
        wanted = InContextEncoder(model("published", 0.3, **twin), device="cpu", response_scale="as-is").fit(X, Y).coef_
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert np.abs(found - plain).max() > 1e-4
        again = InContextEncoder(own, device="cpu", response_scale="as-is").fit(X, Y).coef_
        np.testing.assert_array_equal(again, plain)
    for wrong, said in (
        ({"calibrate": [(0, 9)]}, r"\(0, 9\)"),
        ({"context": {"class": "Chunks"}}, "class of context"),
        ({"context": chunks, "calibrate": [(0, 0)]}, "looks at all weights"),
    ):
        with pytest.raises(ValueError, match=said):
            InContextEncoder(own, device="cpu", **wrong).fit(X, Y)
    with pytest.raises(ConfigError, match=r"silence\(False\)"):
        InContextEncoder(model().silence(), device="cpu", context=chunks).fit(X, Y)
    with pytest.raises(ConfigError, match="no such heads"):
        InContextEncoder(model("query"), device="cpu", calibrate=[(0, 0)]).fit(X, Y)


@pytest.mark.parametrize("form", ["published", pytest.param("anchored", marks=pytest.mark.slow)])
def test_a_region_is_laid_into_the_heads_from_no_trial_on(form):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((1500, E)).astype(np.float32)
    own = make_model("small", n_features=E, dim=24, depth=2, hidden=48, form=form)
    train_stage(
        own, SyntheticEpisodes(images, isotropic_share=1.0), "extend", support=(4, 60), voxels=16, query=50,
        max_steps=150, evaluate_every=150, lr=3e-3,
    )  # fmt: skip
    common = rng.standard_normal((E, 1))
    weights = 0.3 * common + 0.1 * rng.standard_normal((E, 90))
    Y = images[:300] @ weights + 0.5 * rng.standard_normal((300, 90))
    task = region_embedding(own, images[:200], Y[:200, :60], steps=60)
    error = {}
    for n in (0, 5):
        for name, given in (("plain", None), ("task", task)):
            if n == 0 and given is None:
                continue
            encoder = InContextEncoder(own, task=given, device="cpu", response_scale="as-is")
            found = encoder.fit(images[200 : 200 + n], Y[200 : 200 + n, 60:]).predict(images[300:500])
            clean = images[300:500] @ weights[:, 60:]
            error[n, name] = float(((found - clean) ** 2).mean() / (clean**2).mean())
    assert error[5, "task"] < error[5, "plain"]
    assert np.isfinite(error[0, "task"])
    if form == "published":
        assert error[0, "task"] < 1
    with pytest.raises(DataError, match="at least"):
        region_embedding(own, images[:40], Y[:40])
    with pytest.raises(ConfigError, match="no such heads"):
        region_embedding(model("query"), images, images)


def spoilt(kind):
    """A support of which some trials or voxels say nothing, and which trials count."""
    X, Y, Q = data()
    times = np.ones(len(X))
    if kind == "a trial that nobody answered":
        Y[5] = np.nan
    elif kind == "two responses of a voxel":
        Y[:38, 3] = np.nan
    elif kind == "a voxel whose trials do not count":
        Y[6:, 4], times[:5] = np.nan, 0
    elif kind == "two trials that count":
        times[2:] = 0
    elif kind == "two responses of every voxel":
        Y[2:] = np.nan
    elif kind == "a voxel that does not vary":
        Y[:, 7] = 2.0
    else:
        Y[:] = 1.0
    return X, Y, Q, times


KINDS = [
    "a trial that nobody answered",
    "two responses of a voxel",
    "a voxel whose trials do not count",
    "two trials that count",
    "two responses of every voxel",
    "a voxel that does not vary",
    "no voxel that varies",
]


@pytest.mark.filterwarnings("ignore:.*have no signal")
@pytest.mark.parametrize("queries", ["among", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_of_trials_is_found_from_what_there_is(kind, queries):
    """What one trial or voxel lacks is no error, and changes the others little."""
    X, Y, Q, times = spoilt(kind)
    m = model(stir=0.0)
    options = {"response_scale": "as-is", "queries": queries}
    found = InContextEncoder(m, **options).fit(X, Y, sample_weight=times)
    mean, sd = found.predict(Q, return_std=True)
    assert np.isfinite(mean).all()
    assert np.isfinite(sd).all()
    assert np.isfinite(found.trial_precision_).all()
    if kind in KINDS[:2] + KINDS[5:6] and queries == "among":
        plain = InContextEncoder(m, robust="none", **options).fit(X, Y, sample_weight=times)
        assert np.abs(found.coef_ - plain.coef_).max() < 0.05 < np.abs(plain.coef_).max()
