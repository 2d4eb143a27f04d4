"""The refined form: a closed form whose gains a network corrects."""

import numpy as np
import pytest
import torch

from neuroenc._core.errors import ConfigError
from neuroenc.data.simulate import Nuisances
from neuroenc.encoders import InContextEncoder
from neuroenc.encoders.incontext import (
    EmpiricalBayesRidge,
    SyntheticEpisodes,
    WeightPrior,
    load_model,
    make_model,
    region_embedding,
    save_model,
    support_attention,
    train_stage,
)
from neuroenc.encoders.incontext._gain import TRIAL, VOXEL, read_fit
from neuroenc.stats import explained_variance

E = 8
SHAPE = {"n_features": E, "dim": 16, "depth": 1, "heads": 4, "hidden": 32, "registers": 1, "length_scale": "none"}


def episode(n=40, voxels=30, seed=0, **nuisances):
    images = np.random.default_rng(5).standard_normal((900, E)).astype("f4")
    source = SyntheticEpisodes(images, ceiling=(0.3, 0.8), nuisances=Nuisances(**nuisances))
    return source.draw(np.random.default_rng(seed), voxels, n, 200)


def stirred(**changes):
    model = make_model("small", form="refined", **{**SHAPE, **changes}).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith("anchor"):
                p.add_(0.3 * torch.randn_like(p))
    return model


def fitted(model, e, **options):
    options = {"response_scale": "as-is", "queries": "after"} | options
    return InContextEncoder(model, **options).fit(e.x.numpy(), e.y.T.numpy())


def test_before_training_it_is_the_closed_form():
    e = episode(gain_drift=0.8)
    model = make_model("small", form="refined", **SHAPE)
    found, silent = fitted(model, e), fitted(make_model("small", form="refined", **SHAPE).silence(), e)
    np.testing.assert_allclose(found.coef_, silent.coef_, atol=1e-6)
    closed = EmpiricalBayesRidge(model.anchor.single_prior(), robust="shared", drift="gain")
    closed.fit(e.x.numpy().astype(float), e.y.T.numpy().astype(float))
    np.testing.assert_allclose(found.gain_, np.exp(closed.gain_drift_ / 2), rtol=1e-4)
    assert np.std(found.gain_) > 0.05


def test_for_queries_among_the_trials_the_network_is_not_asked():
    e, model = episode(gain_drift=0.8), stirred()
    among = fitted(model, e, queries="among")
    np.testing.assert_array_equal(among.gain_, 1.0)
    np.testing.assert_allclose(among.coef_, fitted(model.silence(), e, queries="among").coef_, atol=1e-6)


def test_the_encoder_scales_around_what_was_shown():
    e, model = episode(outlying_trials=0.1), stirred()
    after, among = fitted(model, e, robust="none"), fitted(model, e, robust="none", queries="among")
    assert np.std(after.gain_) > 0.01
    np.testing.assert_allclose(after.coef_, among.coef_ * after.gain_, rtol=1e-4)
    centre = e.x.numpy().mean(axis=0, keepdims=True)
    np.testing.assert_allclose(after.predict(centre), among.predict(centre), atol=1e-5)
    # A query that is g times as far away is as uncertain for queries among the trials.
    for v in (0, 7):
        farther = centre + after.gain_[v] * (e.xq.numpy() - centre)
        sds = after.predict(e.xq.numpy(), return_std=True)[1], among.predict(farther, return_std=True)[1]
        np.testing.assert_allclose(sds[0][:, v], sds[1][:, v], rtol=1e-4)


def test_the_model_itself_says_what_the_encoder_says():
    e, model = episode(outlying_responses=0.1), stirred()
    with torch.no_grad():
        found = model(e.x, e.y)
    one = fitted(model, e, clip=None)
    with torch.no_grad():
        plain = model.silence()(e.x, e.y, torch.as_tensor(one.trial_precision_).log().float())
    model.silence(False)
    np.testing.assert_allclose((found.coef / plain.coef).mean(1), one.gain_, rtol=1e-3)


def test_tokens_know_no_features():
    """Features turned, and the prior with them, leave what the network reads."""
    e, rng = episode(gain_drift=0.5), np.random.default_rng(1)
    turn = np.linalg.qr(rng.standard_normal((E, E)))[0]
    cov = np.diag(np.logspace(0, -1, E))
    x, y = e.x.numpy().astype(float), e.y.T.numpy().astype(float)
    options = {"robust": "shared", "drift": "gain"}
    one = read_fit(EmpiricalBayesRidge(WeightPrior(np.zeros(E), cov), **options).fit(x, y))
    two = read_fit(EmpiricalBayesRidge(WeightPrior(np.zeros(E), turn.T @ cov @ turn), **options).fit(x @ turn, y))
    assert one.trials.shape == (30, 40, TRIAL)
    assert one.voxels.shape == (30, VOXEL)
    for a, b in zip(one, two):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_missing_responses_and_blocks_of_voxels():
    e, model = episode(missing=0.2, outlying_trials=0.1), stirred()
    assert e.y.isnan().any()
    found = fitted(model, e)
    assert np.isfinite(found.coef_).all()
    assert np.isfinite(found.gain_).all()


def test_saved_and_loaded_to_equal_weights(tmp_path):
    e, model = episode(), stirred()
    loaded = load_model(save_model(model, tmp_path))
    assert loaded.config == model.config
    np.testing.assert_array_equal(fitted(model, e).coef_, fitted(loaded, e).coef_)


@pytest.mark.slow
def test_it_learns_that_signals_have_shrunk(tmp_path):
    """Suppression of half of the signal in the support: the network sees that the gain of queries is larger."""
    images = np.random.default_rng(5).standard_normal((900, E)).astype("f4")
    images[:, 0] += 4  # stimuli are alike, so that all responses but the first are suppressed
    source = SyntheticEpisodes(images, ceiling=(0.4, 0.8), nuisances=Nuisances(suppression=0.5))
    model = make_model("small", form="refined", **SHAPE)
    settings = {"support": (30, 30), "voxels": 16, "loss": "share", "lr": 5e-3, "warmup": 5, "max_steps": 60}
    done = train_stage(model, source, "pretrain", **settings, evaluate_every=30, checkpoint=tmp_path / "state")
    again = make_model("small", form="refined", **SHAPE)
    same = train_stage(again, source, "pretrain", **settings, evaluate_every=30, checkpoint=tmp_path / "state")
    assert same.best_loss == done.best_loss
    e = source.draw(np.random.default_rng(9), 40, 40, 200)
    truth = e.xq.numpy() @ e.weights[:, :-1].numpy().T
    spoken, closed = (
        explained_variance(truth, fitted(model.silence(s), e).predict(e.xq.numpy())) for s in (False, True)
    )
    assert spoken.mean() > closed.mean() + 0.02


def test_it_has_no_heads_to_look_at():
    e, model = episode(), stirred()
    for look in (
        lambda: support_attention(model, e.x, e.y.T),
        lambda: region_embedding(model, e.x, e.y.T, support=20),
        lambda: fitted(model, e, calibrate=[(0, 0)]),
    ):
        with pytest.raises(ConfigError, match=r"refined.*no .*heads"):
            look()


@pytest.mark.parametrize("changes", [{"memory": "gru", "length_scale": "none"}, {"hint": "weights"}])
def test_what_it_cannot_be_combined_with(changes):
    with pytest.raises(ConfigError, match="refined"):
        make_model("small", form="refined", **{**SHAPE, **changes})
