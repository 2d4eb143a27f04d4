"""Experts with enforced routing in in-context models: copies, routing, files, resumption, encoders, errors."""

import numpy as np
import pytest
import torch

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data import make_features, make_responses
from neuroenc.encoders import InContextEncoder
from neuroenc.encoders.incontext import (
    InContextConfig,
    ResponseEpisodes,
    SyntheticEpisodes,
    load_model,
    make_model,
    save_model,
    train_stage,
)

NAMES = ["V1", "FFA", "data set B.2"]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((90, 6)).astype(np.float32)
W = RNG.standard_normal((6, 60)) / np.sqrt(6)
Y = (X @ W + RNG.standard_normal((90, 60))).astype(np.float32)
ROI = np.array(NAMES)[RNG.integers(0, 3, 60)]
QUICK = {"support": (10, 30), "query": 20, "voxels": 8, "evaluate_every": 4, "max_steps": 12, "warmup": 3}


def dense(form="published", **changes):
    settings = {"dim": 16, "depth": 2, "heads": 2, "hidden": 32} | changes
    model = make_model("small", n_features=6, form=form, **settings).eval()
    with torch.no_grad():  # A new network of an anchored model changes nothing yet.
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model


def apart(model):
    """The model with experts that differ."""
    with torch.no_grad():
        for k, name in enumerate(model.config.experts):
            for block in model.expert(name).stack.blocks:
                block.feed_forward.linear2.weight.mul_(1.0 + 0.5 * k)
    return model


def labelled():
    ids = [f"s{k:02d}" for k in range(len(X))]
    x = make_features(X, stimulus=ids)
    return x, make_responses(Y, stimulus=ids, dim="stimulus", subject="S1", roi=ROI)


def states(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("form", ["published", "anchored", "query"])
def test_upcycled_experts_are_the_dense_model(form):
    model = dense(form)
    upcycled = model.upcycle(NAMES)
    x, y, xq = torch.as_tensor(X[:30]), torch.as_tensor(Y[:30].T), torch.as_tensor(X[30:])
    with torch.no_grad():
        wanted = model(x, y).predict(xq)
        for name in NAMES:
            assert torch.equal(upcycled.expert(name)(x, y).predict(xq), wanted)
    shared, networks = (sum(p.numel() for p in m.parameters()) for m in (model, model.stack.blocks[0].feed_forward))
    assert sum(p.numel() for p in upcycled.parameters()) == shared + 2 * 2 * networks
    assert states(upcycled.expert("V1")).keys() == states(model).keys()


def test_from_nothing_experts_differ():
    model = make_model("small", n_features=6, depth=1, experts=NAMES)
    first, second, _ = model.stack.blocks[0].feed_forward
    assert not torch.equal(first.linear1.weight, second.linear1.weight)
    assert "V1/FFA" in repr(model)


def test_files_keep_experts(tmp_path):
    model = apart(dense("anchored").upcycle(NAMES))
    again = load_model(save_model(model, tmp_path / "all"))
    assert again.config == model.config
    assert again.content_hash() == model.content_hash() != dense("anchored").content_hash()
    # One expert is a dense model, in files too.
    one = load_model(save_model(model.expert("FFA"), tmp_path / "one"))
    assert one.config.experts == ()
    x, y = torch.as_tensor(X[:30]), torch.as_tensor(Y[:30].T)
    with torch.no_grad():
        assert torch.equal(one(x, y).coef, again.expert("FFA")(x, y).coef)


def test_training_moves_the_experts_of_its_episodes_only():
    model = dense().upcycle(NAMES)
    before = states(model)
    train_stage(model, ResponseEpisodes([(X, Y)], groups=["FFA"]), "extend", weight_decay=0.5, **QUICK)
    moved = {k for k, v in states(model).items() if not torch.equal(v, before[k])}
    assert any("feed_forward.1" in k for k in moved)
    assert any("attention" in k for k in moved)
    assert not any("feed_forward.0" in k or "feed_forward.2" in k for k in moved)


def test_an_episode_holds_voxels_of_one_group():
    numbered = np.tile(np.arange(60, dtype=np.float32), (90, 1))
    source = ResponseEpisodes([(X, numbered), (X, numbered)], groups=[ROI, "alone"])
    assert source.groups == (*dict.fromkeys(ROI.tolist()), "alone")
    seen = set()
    for k in range(40):
        episode = source.draw(np.random.default_rng(k), 8, 10, 10)
        assert episode.group == "alone" or set(ROI[episode.y[:, 0].long()]) == {episode.group}
        seen.add(episode.group)
    assert seen == {*NAMES, "alone"}
    # Without groups the draws are as they were.
    rngs = [np.random.default_rng(5) for _ in range(2)]
    plain, named = (ResponseEpisodes([(X, Y)], groups=g).draw(r, 8, 10, 10) for g, r in zip((None, ["a"]), rngs))
    assert (plain.group, named.group) == ("", "a")
    assert torch.equal(plain.y, named.y)
    digests = {ResponseEpisodes([(X, Y)], groups=g).digest() for g in (None, ["a"], [ROI], [ROI[::-1]])}
    assert len(digests) == 4


@pytest.mark.parametrize("form", ["published", "anchored", "query"])
def test_voxels_are_routed_by_a_coordinate(form):
    """Each group as by its expert alone, whatever the blocks; another expert changes its own group only."""
    model = apart(dense(form).upcycle(NAMES))
    x, y = labelled()
    plain = {"response_scale": "support", "robust": "none"}
    whole = InContextEncoder(model, expert="roi", **plain).fit(x[:40], y[:40])
    small = InContextEncoder(model, expert="roi", max_memory=1, **plain).fit(x[:40], y[:40])
    np.testing.assert_allclose(small.coef_, whole.coef_, atol=2e-6)
    np.testing.assert_allclose(small.predict(x[40:]), whole.predict(x[40:]), atol=5e-6)
    for name in NAMES:
        alone = InContextEncoder(model, expert=name, **plain).fit(x[:40], y[:40, name == ROI])
        np.testing.assert_allclose(whole.coef_[:, name == ROI], alone.coef_, atol=2e-6)
        np.testing.assert_allclose(whole.predict(x[40:])[:, name == ROI], alone.predict(x[40:]), atol=5e-6)
    if form == "anchored":
        for got, wanted in zip(whole.predict(x[40:], return_std=True), alone.predict(x[40:], return_std=True)):
            np.testing.assert_allclose(got[:, name == ROI], wanted, atol=5e-6)
    with torch.no_grad():
        for block in model.expert("FFA").stack.blocks:
            block.feed_forward.linear2.weight.mul_(3.0)
    changed = InContextEncoder(model, expert="roi", **plain).fit(x[:40], y[:40])
    assert np.array_equal(changed.coef_[:, ROI != "FFA"], whole.coef_[:, ROI != "FFA"])
    assert np.abs(changed.coef_[:, ROI == "FFA"] - whole.coef_[:, ROI == "FFA"]).max() > 1e-3


def test_a_coordinate_of_all_voxels_and_files(tmp_path):
    model = apart(dense().upcycle(["S1", "S2"]))
    x, y = labelled()
    encoders = [InContextEncoder(model, expert=e, response_scale="as-is").fit(x, y) for e in ("subject", "S1")]
    assert np.array_equal(*(e.coef_ for e in encoders))
    from neuroenc.encoders import load_encoder

    folder = save_model(model, tmp_path / "model")
    encoder = InContextEncoder(str(folder), expert="subject", response_scale="as-is").fit(x, y)
    encoder.save(tmp_path / "encoder")
    again = load_encoder(tmp_path / "encoder")
    assert again.get_params()["expert"] == "subject"
    assert np.array_equal(again.predict(x), encoders[0].predict(x))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="memory='gru'"):
        make_model("small", n_features=6, form="published", memory="gru", experts=["a"])
    with pytest.raises(ConfigError, match="form='refined'"):
        make_model("small", n_features=6, form="refined", experts=["a"])
    for wrong in ("roi", ["a", "a"], [""], [1], None):
        with pytest.raises(ConfigError, match="experts="):
            InContextConfig(6, 16, 1, heads=2, experts=wrong)
    model = dense().upcycle(NAMES)
    with pytest.raises(ConfigError, match="experts already"):
        model.upcycle(NAMES)
    with pytest.raises(ConfigError, match="did you mean 'FFA'"):
        model.expert("FAF")
    with pytest.raises(ConfigError, match=r"model\.expert"):
        model(torch.as_tensor(X), torch.as_tensor(Y.T))
    for source in (SyntheticEpisodes(X), ResponseEpisodes([(X, Y)], groups=["V2"])):
        with pytest.raises(ConfigError, match=r"unknown expert .* Legal: V1, FFA"):
            train_stage(model, source, "extend", **QUICK)
    for groups in (["a", "b"], [ROI[:-1]]):
        with pytest.raises(DataError, match="groups have shapes"):
            ResponseEpisodes([(X, Y)], groups=groups)
    with pytest.raises(ConfigError, match="unknown voxel coordinate 'roy'; did you mean 'roi'"):
        ResponseEpisodes([labelled()], groups="roy")
    x, y = labelled()
    with pytest.raises(ConfigError, match="expert for each of V1, FFA"):
        InContextEncoder(model).fit(x, y)
    with pytest.raises(ConfigError, match=r"no expert .* either: unknown voxel coordinate"):
        InContextEncoder(model, expert="roi").fit(X, Y)
    with pytest.raises(ConfigError, match="this model has none"):
        InContextEncoder(dense(), expert="roi").fit(x, y)
    with pytest.raises(DataError, match=r"of 60 voxels: unknown expert 'data set B\.2'"):
        InContextEncoder(dense().upcycle(["V1", "FFA"]), expert="roi").fit(x, y)
