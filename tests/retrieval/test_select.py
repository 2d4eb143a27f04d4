"""Support selectors: constraints, and designs against the closed form in float64."""

import numpy as np
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.retrieval import (
    CoverageSelector,
    Design,
    DOptimalSelector,
    NearestSelector,
    RandomSelector,
)

RNG = np.random.default_rng(3)
POOL = RNG.standard_normal((40, 6)) * [3, 2, 1, 1, 0.5, 0.2]
ROOT = RNG.standard_normal((6, 6))
COV = ROOT @ ROOT.T
SELECTORS = [RandomSelector(), NearestSelector(), CoverageSelector(), DOptimalSelector(COV)]
SELECTORS.append(DOptimalSelector(COV, objective="accuracy"))


def after(rows, ratio, cov=COV, offset=0.0):
    """Covariance of weights (and an intercept) after rows were shown, in units of tau."""
    X = np.column_stack([POOL, np.ones(len(POOL))])
    prior = np.zeros((7, 7))
    prior[:6, :6], prior[6, 6] = cov, offset
    shown = X[list(rows)]
    gain = prior @ shown.T @ np.linalg.inv(shown @ prior @ shown.T + np.eye(len(rows)) / ratio)
    return prior - gain @ shown @ prior


@pytest.mark.parametrize("offset", [0.0, 0.7])
def test_designs_equal_the_closed_form(offset):
    ratios = [0.1, 3.0]
    design = Design(POOL, COV, ratios, [0.3, 0.7], offset=offset, target=POOL, accuracy=True)
    rows = [4, 9, 4, 20]
    for row in rows:
        design.add(row)
    X = np.column_stack([POOL, np.ones(len(POOL))])
    sigma = np.cov(POOL.T, bias=True)
    left = [after(rows, r, offset=offset) for r in ratios]
    s = np.array([np.einsum("np,pq,nq->n", X, S, X) for S in left])
    told = 0.5 * np.log1p(np.array(ratios)[:, None] * s)
    assert design.gains("information") == pytest.approx(np.array([0.3, 0.7]) @ told, abs=1e-9)
    total = np.trace(sigma @ COV)
    expected = [(total - np.trace(sigma @ S[:6, :6])) / (total + 1 / r) for S, r in zip(left, ratios)]
    assert design.accuracy() == pytest.approx(expected, abs=2e-3)  # a thousandth of the target is left out
    # What a candidate is said to add is what it adds.
    before, told = np.array([0.3, 0.7]) @ design.accuracy(), design.gains("accuracy")[7]
    design.add(7)
    assert np.array([0.3, 0.7]) @ design.accuracy() - before == pytest.approx(told, abs=1e-9)


def test_several_at_once_are_one_after_the_other():
    for accuracy in (True, False):
        designs = [Design(POOL, COV, [0.1, 3.0], offset=50.0, target=POOL, accuracy=accuracy) for _ in range(2)]
        for row in (4, 9, 20, 31, 2):
            designs[0].add(row)
        designs[1].add(np.array([4, 9]))
        designs[1].add(np.array([20, 31]))
        designs[1].add(2)
        for design in designs:
            design.add(7)
        assert designs[0].accuracy() == pytest.approx(designs[1].accuracy(), abs=1e-9)
        for objective in ("information", "accuracy")[: 1 + accuracy]:
            assert designs[0].gains(objective) == pytest.approx(designs[1].gains(objective), abs=1e-9)


def test_greedy_is_the_best_at_each_step():
    chosen = DOptimalSelector(COV, snr=0.5).select(POOL, 5).tolist()
    ratio = 0.5 / np.einsum("np,pq,nq->n", POOL, COV, POOL).mean()

    def information(rows):
        shown = POOL[rows]
        return np.linalg.slogdet(np.eye(len(rows)) + ratio * shown @ COV @ shown.T)[1]

    for k in range(5):
        others = [r for r in range(40) if r not in chosen[:k]]
        best = max(others, key=lambda r: information([*chosen[:k], r]))
        assert chosen[k] == best


def test_accuracy_is_that_of_simulated_voxels():
    ratio, rows = 2.0, [1, 5, 8, 13, 30, 31]
    design = Design(POOL, COV, [ratio], target=POOL)
    for row in rows:
        design.add(row)
    rng = np.random.default_rng(0)
    W = np.linalg.cholesky(COV) @ rng.standard_normal((6, 20000))
    Y = POOL[rows] @ W + rng.standard_normal((6, 20000)) / ratio**0.5
    gain = COV @ POOL[rows].T @ np.linalg.inv(POOL[rows] @ COV @ POOL[rows].T + np.eye(6) / ratio)
    error = (POOL - POOL.mean(0)) @ (gain @ Y - W)
    noise = 1 / ratio
    signal = ((POOL - POOL.mean(0)) @ W).var(axis=0).mean()
    assert design.accuracy()[0] == pytest.approx((signal - error.var(axis=0).mean()) / (signal + noise), abs=0.01)
    assert design.ceiling()[0] == pytest.approx(signal / (signal + noise), abs=0.01)


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda s: f"{type(s).__name__}-{getattr(s, 'objective', '')}")
def test_constraints_hold_for_every_selector(selector):
    labels = np.repeat(["a", "b", "c", "d"], [25, 10, 3, 2])
    pool = xr.DataArray(POOL, dims=("stimulus", "feature"), coords={"stimulus": [f"p{i}" for i in range(40)]})
    pool = pool.assign_coords(category=("stimulus", labels))
    shown = xr.DataArray(np.ones((2, 3)), dims=("stimulus", "voxel"), coords={"stimulus": ["p30", "p0"]})
    rows = selector.select(pool, 12, responses=shown, exclude=["p1", "p39"], balance="category")
    assert len(set(rows.tolist())) == 12
    assert not {0, 1, 30, 39} & set(rows.tolist())
    counts = dict(zip("abcd", [1, 1, 0, 0]))
    for row in rows:
        counts[labels[row]] += 1
    assert counts["c"] == 3
    assert counts["d"] == 1
    assert abs(counts["a"] - counts["b"]) <= 1
    again = selector.select(pool.values, 12, responses=_rows(shown), exclude=["1", "39"], balance=labels)
    assert again.tolist() == rows.tolist()


def _rows(shown):
    whole = np.full((40, 3), np.nan)
    whole[[30, 0]] = shown.values
    return whole


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda s: f"{type(s).__name__}-{getattr(s, 'objective', '')}")
def test_the_order_of_the_pool_does_not_matter(selector):
    if isinstance(selector, (RandomSelector, CoverageSelector)):
        pytest.skip("random places in the pool")
    order = np.random.default_rng(1).permutation(40)
    assert order[selector.select(POOL[order], 8)].tolist() == selector.select(POOL, 8).tolist()


def test_more_stimuli_are_a_longer_beginning():
    for selector in (RandomSelector(), NearestSelector(), DOptimalSelector(COV)):
        assert selector.select(POOL, 15)[:6].tolist() == selector.select(POOL, 6).tolist()


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda s, p: s.select(p, 41), ConfigError, "at most 40"),
        (lambda s, p: s.select(p * np.nan, 2), DataError, "not finite"),
        (lambda s, p: s.select(p[0], 2), DataError, "expected (stimulus, feature)"),
        (lambda s, p: s.select(p, 2, responses=np.ones((3, 2))), DataError, "40"),
        (lambda s, p: s.select(p, 2, exclude=["400"]), ConfigError, "40"),
        (lambda s, p: s.select(p, 2, balance="roi"), ConfigError, "balance"),
        (lambda s, p: s.select(p, 2, balance=["a"]), DataError, "expected one category"),
        (lambda s, p: s.select(p, 2, voxels=[1.0]), ConfigError, "responses"),
    ],
)
def test_bad_input_is_refused(call, error, said):
    with pytest.raises(error) as caught:
        call(RandomSelector(), POOL)
    assert said in str(caught.value)
