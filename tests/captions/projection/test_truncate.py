"""The k nearest images alone: exact in themselves, and never further from the whole than they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import TruncatedState, project
from neuroenc.retrieval import Chunk, as_bank


def brute(closed, coef, bank, k, **options):
    """The closed form on each voxel's k nearest images."""
    whole = closed(coef, bank, **options)
    out = []
    for v, cosine in enumerate(whole["cosine"]):
        near = np.argsort(-cosine, kind="stable")[:k]
        out.append(closed(coef[:, [v]], bank[near], **options))
    lost = 1 - np.array([whole["softmax"][v][np.argsort(-c)[:k]].sum() for v, c in enumerate(whole["cosine"])])
    return whole, {n: np.concatenate([o[n] for o in out]) for n in ("embedding", "direction", "norm")}, lost


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("k", [1, 4, 50, 700])
@pytest.mark.parametrize("decouple", [True, False])
def test_is_the_closed_form_of_the_nearest(rng, drawn, closed, k, decouple, device):
    coef, bank = drawn(rng)
    _, want, lost = brute(closed, coef, bank, k, temperature=0.05, decouple=decouple)
    for dtype, tolerance in (("float64", 1e-9), (None, 5e-6)):
        got = project(
            coef,
            bank,
            temperature=0.05,
            decouple=decouple,
            top_k=k,
            dtype=dtype,
            device=device,
            max_memory=60_000,
            progress=False,
        )
        np.testing.assert_allclose(got["embedding"], want["embedding"], atol=tolerance * want["norm"].max(), rtol=0)
        np.testing.assert_allclose(got["norm"], want["norm"], rtol=tolerance)
        np.testing.assert_allclose(got["lost_mass"], lost, atol=3e-5 if dtype is None else 1e-9)


@settings(max_examples=40, deadline=None)
@given(
    k=st.integers(1, 40),
    temperature=st.sampled_from([1 / 300, 1 / 150, 0.02, 0.1, 1.0]),
    decouple=st.booleans(),
    precision=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 10_000),
)
def test_bounds_hold(closed, drawn, k, temperature, decouple, precision, seed):
    coef, bank = drawn(np.random.default_rng(seed), n=200)
    whole = closed(coef, bank, temperature, decouple)
    got = project(coef, bank, temperature=temperature, decouple=decouple, top_k=k, dtype=precision, progress=False)
    direction = got["embedding"].values.astype(float)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    near = np.argsort(-whole["cosine"], axis=1)[:, :k]
    lost = 1 - np.take_along_axis(whole["softmax"], near, 1).sum(axis=1)
    tiny = 2e-6 if precision == "float32" else 1e-12  # the results' own rounding
    assert (lost <= got["lost_mass"] + tiny).all()
    assert (np.linalg.norm(direction - whole["direction"], axis=1) <= got["direction_error"] + tiny).all()
    assert (np.abs(got["norm"] - whole["norm"]) <= got["norm_error"] + tiny * whole["norm"].max()).all()


def test_bounds_are_of_use(rng, closed):
    """Where images differ much at a low temperature, few of them are nearly all, and the bound says so."""
    bank = rng.standard_normal((5000, 16))
    coef = rng.standard_normal((16, 30))
    got = project(coef, bank, top_k=64, progress=False)
    whole = closed(coef, bank)
    unit = got["embedding"] / np.linalg.norm(got["embedding"], axis=1, keepdims=True)
    assert float(got["direction_error"].median()) < 5e-3
    assert np.linalg.norm(unit - whole["direction"], axis=1).max() < 0.05
    rough = project(coef, bank, top_k=1, temperature=1.0, progress=False)
    assert (rough["direction_error"] == 2).all()


def test_uniform_is_the_plain_average_of_the_nearest(rng, drawn, closed):
    coef, bank = drawn(rng)
    cosine = closed(coef, bank)["cosine"]
    near = np.argsort(-cosine, axis=1)[:, :7]
    got = project(coef, bank, top_k=7, weighting="uniform", decouple=False, progress=False)
    np.testing.assert_allclose(got["embedding"], bank[near].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(got["effective_images"], 7, rtol=1e-6)
    assert np.isnan(got["lost_mass"]).all()


def test_parts_merge_exactly(rng, drawn):
    coef, bank = drawn(rng)
    bank[500:] = bank[:200]  # equal images: the earlier ones win
    unit = (coef / np.linalg.norm(coef, axis=0)).T
    whole = TruncatedState(unit, 9, dtype="float64")
    whole.update(Chunk(0, bank, None))
    parts = []
    for a, b in ((0, 3), (3, 420), (420, 700)):
        parts.append(whole.fresh())
        parts[-1].update(Chunk(a, bank[a:b], None), block=4)
    for merged in (parts[0].merge(parts[1]).merge(parts[2]), parts[2].merge(parts[0].merge(parts[1]))):
        np.testing.assert_array_equal(merged.rows, whole.rows)
        np.testing.assert_array_equal(merged.scores, whole.scores)
        for name, value in whole.finish(as_bank(bank)).items():
            np.testing.assert_allclose(merged.finish(as_bank(bank))[name], value, rtol=1e-10, atol=1e-12)
    with pytest.raises(DataError, match="merge only with equal"):
        whole.merge(TruncatedState(unit, 8, dtype="float64"))


def test_errors(rng, drawn):
    coef, bank = drawn(rng)
    for k in (0, 1.5, True):
        with pytest.raises(ConfigError, match="top_k="):
            project(coef, bank, top_k=k, progress=False)
    with pytest.raises(DataError, match="top_k=701 of a bank"):
        project(coef, bank, top_k=701, progress=False)
    with pytest.raises(DataError, match="reads the nearest images again"):
        project(coef, iter([bank]), top_k=3, progress=False)
    with pytest.raises(ConfigError, match="give their number, top_k="):
        project(coef, bank, weighting="uniform", progress=False)
    with pytest.raises(ConfigError, match="did you mean 'uniform'"):
        project(coef, bank, top_k=2, weighting="unifrm", progress=False)
