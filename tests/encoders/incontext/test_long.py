"""Long supports and sessions that go on, against all trials at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders import InContextEncoder
from neuroenc.encoders.incontext import (
    ChunkAveraged,
    PriorMixture,
    StreamingSession,
    SyntheticEpisodes,
    load_model,
    make_model,
    save_model,
    train_stage,
)
from neuroenc.encoders.incontext._streaming import Coreset

E = 10


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    return SyntheticEpisodes((rng.standard_normal((6000, E)) * np.linspace(1.5, 0.3, E)).astype(np.float32))


@pytest.fixture(scope="module")
def anchored(source):
    model = make_model("small", n_features=E, dim=24, depth=2, hidden=48)
    train_stage(model, source, "extend", support=(10, 60), voxels=16, query=50, max_steps=60, evaluate_every=60)
    # So that what the transformer reads matters.
    with torch.no_grad():
        model.anchor.out.weight += 0.3 * torch.randn(model.anchor.out.weight.shape, generator=torch.manual_seed(0))
    return model


@pytest.fixture(scope="module")
def published():
    return make_model("small", n_features=E, dim=24, depth=2, hidden=48, form="published").eval()


def trials(source, n, voxels=7, seed=3):
    e = source.draw(np.random.default_rng(seed), voxels, n, 50)
    return e.x.numpy(), e.y.numpy().T, e


def batch(model, x, y, weight=None):
    plain = InContextEncoder(model, robust="none", clip=None, device="cpu", response_scale="as-is")
    return plain.fit(x, y, sample_weight=weight)


def same(encoder, other, tolerance=2e-5):
    for name in ("coef_", "intercept_", "noise_variance_"):
        np.testing.assert_allclose(getattr(encoder, name), getattr(other, name), atol=tolerance)


@pytest.mark.parametrize(("forget", "voxels"), [(1.0, 7), (0.97, 7), (1.0, 60), (0.97, 60)])
def test_session_equals_batch_while_all_trials_are_kept(anchored, source, forget, voxels):
    x, y, _ = trials(source, 60, voxels)  # 60 voxels are pooled
    session = StreamingSession(anchored, keep=64, forget=forget, device="cpu")
    for k in range(20):
        session.update(x[k], y[k])
    session.update(x[20:], y[20:])
    same(session.encoder(), batch(anchored, x, y, forget ** np.arange(59, -1, -1.0)))


def test_moments_are_exact_beyond_what_is_kept(anchored, source):
    x, y, _ = trials(source, 400)
    session = StreamingSession(anchored, keep=32, device="cpu").update(x, y)
    sample_x, sample_y, weight = session._state.coreset.trials()
    assert len(sample_x) == 32
    np.testing.assert_allclose(weight, 0, atol=1e-9)
    with torch.no_grad():
        register = anchored.read(torch.tensor(sample_x), torch.tensor(sample_y.T.copy()), None)[0][:, 0]
        coef, intercept, noise, _ = anchored.anchor(register, torch.tensor(x), torch.tensor(y.T.copy()))
    found = session.encoder()
    np.testing.assert_allclose(found.coef_, coef.T, atol=2e-5)
    np.testing.assert_allclose(found.intercept_, intercept, atol=2e-5)
    np.testing.assert_allclose(found.noise_variance_, noise, atol=2e-5)


def test_without_a_network_the_session_is_exact_at_any_length(source):
    model = make_model("small", n_features=E, dim=16, depth=1, hidden=16)  # untrained: the register says nothing
    x, y, _ = trials(source, 1000)
    session = StreamingSession(model, keep=16, device="cpu")
    for k in range(0, 1000, 77):
        session.update(x[k : k + 77], y[k : k + 77])
    same(session.encoder(), batch(model, x, y))


def test_order_and_splits_and_merges_do_not_matter(anchored, source):
    x, y, _ = trials(source, 300)
    whole = StreamingSession(anchored, keep=40, device="cpu").update(x, y).encoder()
    order = np.random.default_rng(1).permutation(300)
    same(StreamingSession(anchored, keep=40, device="cpu").update(x[order], y[order]).encoder(), whole)
    parts = [StreamingSession(anchored, keep=40, device="cpu").update(x[k::3], y[k::3]) for k in range(3)]
    merged = StreamingSession(anchored, keep=40, device="cpu").merge(parts[2]).merge(parts[0]).merge(parts[1])
    assert merged.n_trials == 300
    same(merged.encoder(), whole)
    same(
        merged.update(x[:5], y[:5]).encoder(),
        StreamingSession(anchored, keep=40, device="cpu").update(x, y).update(x[:5], y[:5]).encoder(),
    )


def test_memory_is_constant(anchored, published, source):
    x, y, _ = trials(source, 5000, voxels=3)
    for model in (anchored, published):
        session = StreamingSession(model, keep=32, device="cpu").update(x[:10], y[:10])
        session.encoder()
        before = session.nbytes
        for k in range(10, 5000, 499):
            session.update(x[k : k + 499], y[k : k + 499])
        session.encoder()
        assert session.n_trials == 5000
        assert session.nbytes == before


def test_published_session_is_a_chunk_average(published, source):
    x, y, _ = trials(source, 107)
    session = StreamingSession(published, keep=25, device="cpu")
    for k in range(0, 107, 9):
        session.update(x[k : k + 9], y[k : k + 9])
    averaged = ChunkAveraged(published, chunk=25, shuffle=None, device="cpu", response_scale="as-is").fit(x, y)
    assert averaged.n_chunks_ == 5
    np.testing.assert_allclose(session.encoder().coef_, averaged.coef_, atol=1e-5)
    np.testing.assert_allclose(session.predict(x[:3]), averaged.predict(x[:3]), atol=1e-5)
    parts = [
        StreamingSession(published, keep=25, device="cpu").update(x[k], y[k]) for k in (slice(0, 50), slice(50, 107))
    ]
    np.testing.assert_allclose(parts[0].merge(parts[1]).encoder().coef_, averaged.coef_, atol=1e-5)


def test_published_session_forgets_chunk_by_chunk(published, source):
    x, y, _ = trials(source, 60)
    found = StreamingSession(published, keep=25, forget=0.9, device="cpu").update(x, y).encoder().coef_
    wanted, total = np.zeros_like(found), 0.0
    for rows in (slice(0, 25), slice(25, 50), slice(50, 60)):
        age = 0.9 ** (rows.stop - 1 - np.arange(rows.start, rows.stop))
        heavy = age.sum() * 0.9 ** (60 - rows.stop)
        wanted += heavy * batch(published, x[rows], y[rows], age).coef_
        total += heavy
    np.testing.assert_allclose(found, wanted / total, atol=1e-5)


def test_forgetting_follows_drift(anchored, source):
    x, y, _ = trials(source, 600, voxels=20)
    other = source.draw(np.random.default_rng(99), 20, 600, 200)
    query, clean = other.xq.numpy(), other.xq.numpy() @ other.weights[:, :-1].numpy().T + other.weights[:, -1].numpy()
    error = {}
    for forget in (1.0, 0.98):
        session = StreamingSession(anchored, keep=40, forget=forget, device="cpu").update(x, y)
        session.update(other.x.numpy()[:300], other.y.numpy().T[:300])  # all voxels change their tuning
        error[forget] = float(((session.predict(query) - clean) ** 2).mean())
    assert error[0.98] < 0.5 * error[1.0]


def test_forgetting_coreset_keeps_the_recent():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3000, 2)).astype(np.float32)
    core = Coreset(50, 2, 2, forget=0.99)
    core.add(x, x)
    recent, _, weight = core.trials()
    ages = [2999 - int(np.flatnonzero((x == row).all(axis=1))[0]) for row in recent]
    assert np.median(ages) < 150
    # The weights stand for 1 / (1 - 0.99) = 100 trials, cut to what the sample holds.
    assert np.exp(weight).sum() == pytest.approx(50, rel=1e-6)
    total = [np.exp(_weights(Coreset(400, 2, 2, forget=0.99, seed=s), x)).sum() for s in range(3)]
    np.testing.assert_allclose(total, 100, rtol=0.05)


def _weights(core, x):
    core.add(x, x)
    return core.trials()[2]


def test_chunks_with_missing_responses(published, source):
    x, y, _ = trials(source, 90, voxels=4)
    y[:30, 1] = np.nan  # a chunk without this voxel
    y[40:50, 2] = np.nan
    averaged = ChunkAveraged(published, chunk=30, shuffle=None, device="cpu", response_scale="as-is").fit(x, y)
    parts = [batch(published, x[k : k + 30], y[k : k + 30]).coef_ for k in (30, 60)]
    np.testing.assert_allclose(averaged.coef_[:, 1], np.mean([p[:, 1] for p in parts], axis=0), atol=1e-5)
    first = batch(published, x[:30], y[:30][:, [0, 2, 3]]).coef_[:, 1]
    wanted = (30 * first + 20 * parts[0][:, 2] + 30 * parts[1][:, 2]) / 80
    np.testing.assert_allclose(averaged.coef_[:, 2], wanted, atol=1e-5)
    with pytest.raises(ConfigError, match="support_ensemble"):
        averaged.predict(x, return_std=True)


def test_labels_missed_trials_and_refusals(anchored, source):
    x, y, _ = trials(source, 12, voxels=3)
    y[4] = np.nan
    Y = xr.DataArray(y, dims=("stimulus", "voxel"), coords={"roi": ("voxel", ["a", "b", "b"])})
    session = StreamingSession(anchored, device="cpu").update(x, Y)
    assert session.n_trials == 11
    assert session.encoder().to_linear()[0]["roi"].values.tolist() == ["a", "b", "b"]
    y[5, 0] = np.nan
    with pytest.raises(DataError, match="some voxels"):
        session.update(x[5], y[5])
    with pytest.raises(DataError, match="expected"):
        session.update(x[:2], y[:2, :2])
    with pytest.raises(ConfigError, match="no trial"):
        StreamingSession(anchored).encoder()
    with pytest.raises(ConfigError, match="forget"):
        session.merge(StreamingSession(anchored, forget=0.9))


MEMORIES = {
    "attention": {"form": "published", "depth": 1},
    "deep attention": {"form": "published"},
    "fading attention": {"form": "anchored", "position": {"class": "ALiBi", "heads": 4}},
    "titans": {"form": "published"},
    "gru": {"form": "anchored"},
    "lstm": {"form": "published"},
}


@pytest.mark.parametrize("name", MEMORIES)
def test_a_learned_memory_streamed_is_the_model_at_once(source, name, tmp_path):
    kind = name.split()[-1]
    model = make_model(
        "small", **{"n_features": E, "dim": 24, "depth": 2, "hidden": 48, "memory": kind, **MEMORIES[name]}
    )
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.manual_seed(len(p.shape)))
    model = load_model(save_model(model, tmp_path / "model"))
    x, y, _ = trials(source, 90, voxels=30)
    session = StreamingSession(model, memory=kind, device="cpu")
    sizes = []
    for k in (*range(7), slice(7, 8), slice(8, 50), slice(50, 90)):
        session.update(x[k], y[k])
        session.encoder()
        sizes.append(session.nbytes)
    whole = batch(model, x, y)
    same(session.encoder(), whole, 1e-5)
    assert np.abs(whole.coef_).max() > 1e-3
    assert len(set(sizes)) == 1
    # A voxel that misses trials is as one that never had them, where they are not counted and voxels are on their own.
    y[3:9, 0] = np.nan
    if name in ("attention", "lstm"):
        kept = np.r_[:3, 9:90]
        gone, left = (batch(model, a, b).coef_[:, 0] for a, b in ((x, y), (x[kept], y[kept])))
        np.testing.assert_allclose(gone, left, atol=1e-5)
    parts = [StreamingSession(model, device="cpu").update(x[k], y[k, 1:]) for k in (slice(0, 50), slice(50, 90))]
    if name == "attention":
        np.testing.assert_allclose(parts[1].merge(parts[0]).encoder().coef_, whole.coef_[:, 1:], atol=1e-5)
    else:
        with pytest.raises(ValueError, match="cannot be merged"):
            parts[0].merge(parts[1])


def test_a_session_has_the_memory_of_its_model(anchored, published):
    assert StreamingSession(anchored, memory="moments").memory == "moments"
    assert StreamingSession(published).memory == "chunks"
    with pytest.raises(ConfigError, match="has 'moments'"):
        StreamingSession(anchored, memory="titans")
    with pytest.raises(ConfigError, match="did you mean 'titans'"):
        StreamingSession(anchored, memory="titan")
    titans = make_model("small", n_features=E, dim=16, form="published", memory="titans")
    with pytest.raises(ConfigError, match="forget=1"):
        StreamingSession(titans, forget=0.9)
    with pytest.raises(ConfigError, match="does not keep"):
        StreamingSession(make_model("small", n_features=E, dim=16, depth=1, form="query"))


def test_a_neural_memory_starts_in_the_axes_of_its_prior():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((300, E)) * np.linspace(1.5, 0.3, E) + 2.0
    prior = PriorMixture.build(images, [np.diag(np.linspace(2, 0.1, E))])
    model = make_model("small", prior=prior, dim=16, form="published", memory="titans")
    x = torch.as_tensor(np.column_stack([images, np.ones(300)]), dtype=torch.float32)
    key = x @ model.memory.key.weight.T
    np.testing.assert_allclose(key[:, :-1].mean(0).detach(), 0, atol=1e-4)
    assert float(key[:, :-1].detach().square().sum(1).mean()) == pytest.approx(1, rel=0.02)
