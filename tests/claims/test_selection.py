"""Claims about choosing stimuli for a new subject: what greedy designs gain over random supports, what networks that
imitate them keep of it, and what responses so far add. Seeds and margins were fixed before the results were seen.
"""

import numpy as np
import pytest

from neuroenc.retrieval import DOptimalSelector, PointerSelector, RandomSelector

SEED = 23
P, K, SNR = 16, 8, 3.0
SPREAD = 1 / np.sqrt(1 + np.arange(P))


def information(pool, rows):
    """Of the responses to a support about weights, in nats, as the design counts it."""
    ratio = SNR / (pool**2).sum(axis=1).mean()
    return 0.5 * np.linalg.slogdet(np.eye(len(rows)) + ratio * pool[rows] @ pool[rows].T)[1]


@pytest.fixture(scope="module")
def pointer():
    """Vinyals et al. (NeurIPS 2015): trained on pools of 20 to 50, with greedy D-optimal designs of eight."""
    rng = np.random.default_rng(SEED)
    pools = [rng.standard_normal((rng.integers(20, 51), P)) * SPREAD for _ in range(1500)]
    return PointerSelector(epochs=15, seed=SEED).fit(pools, DOptimalSelector(snr=SNR), k=K)


def kept(choose, n, n_pools=20):
    """Share of greedy's gain over random supports that is kept, mean over pools of ``n`` stimuli."""
    rng, shares = np.random.default_rng([SEED, n]), []
    for _ in range(n_pools):
        pool = rng.standard_normal((n, P)) * SPREAD
        base = np.mean([information(pool, RandomSelector(seed).select(pool, K)) for seed in range(20)])
        best = information(pool, DOptimalSelector(snr=SNR).select(pool, K))
        shares.append((information(pool, choose(pool)) - base) / (best - base))
    return float(np.mean(shares))


@pytest.mark.slow
@pytest.mark.parametrize("n", [200, 500])
def test_a_pointer_keeps_the_greedy_gain_on_larger_pools(pointer, n):
    assert kept(lambda pool: pointer.select(pool, K), n) >= 0.95


@pytest.mark.slow
def test_a_pointer_without_training_or_features_keeps_nothing_of_it(pointer):
    blank = PointerSelector(seed=SEED)
    blank.model_, blank.n_features_in_ = blank._build(P), P
    assert kept(lambda pool: blank.select(pool, K), 200) < 0.5
    rng = np.random.default_rng([SEED, 1])
    assert abs(kept(lambda pool: pointer.select(pool[rng.permutation(len(pool))], K), 200)) < 0.2
