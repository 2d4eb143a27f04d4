"""A selector that learns from an encoder's held-out loss: its feedback, what it is invariant to, saving."""

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders.incontext import LearnedSelector, WeightPrior
from neuroenc.encoders.incontext._learned_selector import _feedback

P = 6
RNG = np.random.default_rng(2)
SPREAD = 1 / np.sqrt(1 + np.arange(P))


def subject(n=150, v=40):
    X = RNG.standard_normal((n, P)) * SPREAD
    Y = X @ (RNG.standard_normal((P, v)) / SPREAD[::-1, None]) + RNG.standard_normal((n, v))
    return X, Y / Y.std(axis=0)


TRAIN = [subject(), subject()]
PRIOR = WeightPrior.from_responses([x for x, _ in TRAIN], [y for _, y in TRAIN], shrinkage=0.1, use_mean=False)
SMALL = {"width": 8, "n_episodes": 300, "n_candidates": 8, "n_pool": 60, "epochs": 8, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def selector():
    return LearnedSelector(PRIOR, **SMALL).fit(*zip(*TRAIN), k=8)


@pytest.mark.parametrize("size", [0, 5])
def test_feedback_is_the_gain_of_an_encoder_that_is_fitted_again(size):
    rng = np.random.default_rng(0)
    Z, Zq = rng.standard_normal((30, P)), rng.standard_normal((50, P))
    W = rng.standard_normal((P, 12))
    Y, Yq = Z @ W + rng.standard_normal((30, 12)), Zq @ W + rng.standard_normal((50, 12))
    ratios = np.repeat([0.1, 0.3, 1.0, 3.0], 3)

    def explained(rows):
        total = np.zeros(12)
        for v in range(12):
            coef = np.linalg.solve(Z[rows].T @ Z[rows] + np.eye(P) / ratios[v], Z[rows].T @ Y[rows, v])
            total[v] = 1 - (Yq[:, v] - Zq @ coef).var() / Yq[:, v].var()
        return total.mean()

    support, candidates = np.arange(size), np.array([7, 20, 11])
    found = _feedback(Z, Y, Zq, Yq, ratios, support, candidates)
    expected = [explained([*support, c]) - explained(list(support)) for c in candidates]
    assert found == pytest.approx(expected, abs=1e-10)


def test_the_order_of_the_pool_and_its_origin_do_not_matter(selector):
    pool = subject(80)[0]
    order = np.random.default_rng(1).permutation(80)
    chosen = selector.select(pool, 8)
    assert len(set(chosen.tolist())) == 8
    assert order[selector.select(pool[order], 8)].tolist() == chosen.tolist()
    assert selector.select(pool + 5.0, 8).tolist() == chosen.tolist()


def test_responses_and_constraints_are_kept_to(selector):
    X, Y = subject(60)
    seen = np.full(Y.shape, np.nan)
    seen[30:40] = Y[30:40]
    rows = selector.select(X, 6, responses=seen, exclude=np.arange(60) > 40)
    assert rows.max() <= 40
    assert not set(range(30, 40)) & set(rows.tolist())
    assert selector.select(X, 6, responses=3 * seen + 1.0, exclude=np.arange(60) > 40).tolist() == rows.tolist()


def test_it_learns(selector):
    assert len(selector.regret_) == 2
    assert selector.regret_[0] < 0.8  # 1 by chance


def test_saved_and_loaded_it_chooses_the_same(selector, tmp_path):
    pool = subject(80)[0]
    selector.save(tmp_path / "learned")
    found = LearnedSelector.load(tmp_path / "learned")
    assert found.select(pool, 8).tolist() == selector.select(pool, 8).tolist()
    assert found.regret_ == selector.regret_


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda s: LearnedSelector(PRIOR).select(TRAIN[0][0], 2), ConfigError, "was not fitted"),
        (lambda s: LearnedSelector(PRIOR).save("nowhere"), ConfigError, "was not fitted"),
        (lambda s: LearnedSelector(3).fit(*zip(*TRAIN)), ConfigError, "not a WeightPrior"),
        (lambda s: LearnedSelector(PRIOR).fit(*zip(*TRAIN)), DataError, "a subject has 150"),
        (lambda s: LearnedSelector(WeightPrior.isotropic(3), **SMALL).fit(*zip(*TRAIN)), DataError, "the prior 3"),
        (lambda s: s.select(TRAIN[0][0][:, :3], 2), DataError, "fitted to 6"),
    ],
)
def test_bad_input_is_refused(selector, call, error, said):
    with pytest.raises(error, match=said):
        call(selector)
