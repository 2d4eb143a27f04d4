"""Pointer networks over pools: sets of any size, what was chosen before, saving."""

import numpy as np
import pytest
import torch

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.retrieval import DOptimalSelector, PointerSelector, RandomSelector

SPREAD = 1 / np.sqrt(1 + np.arange(6))


def pools(n, seed=0, low=15, high=30):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((rng.integers(low, high), 6)) * SPREAD for _ in range(n)]


@pytest.fixture(scope="module")
def pointer():
    return PointerSelector(width=16, epochs=8, learning_rate=5e-3).fit(pools(150), DOptimalSelector(snr=3.0), k=4)


def test_the_order_of_the_pool_does_not_matter(pointer):
    pool = np.random.default_rng(5).standard_normal((120, 6)) * SPREAD
    order = np.random.default_rng(1).permutation(120)
    assert order[pointer.select(pool[order], 8)].tolist() == pointer.select(pool, 8).tolist()
    assert pointer.select(10 * pool, 8).tolist() == pointer.select(pool, 8).tolist()  # designs are relative to the pool


def test_training_gives_what_choosing_gives_whatever_is_padded(pointer):
    several = pools(3, seed=7)
    rows = [pointer.select(pool, 4) for pool in several]
    from neuroenc.retrieval._pointer import _scaled

    values = torch.nn.utils.rnn.pad_sequence([_scaled(p) for p in several], batch_first=True)
    mask = torch.arange(values.shape[1])[None] < torch.tensor([len(p) for p in several])[:, None]
    logits = pointer.model_(values, mask, torch.as_tensor(np.array(rows)))
    assert logits.argmax(-1).tolist() == np.array(rows).tolist()


def test_it_learns_from_its_teacher(pointer):
    assert pointer.agreement_ > 0.4  # one in 20 by chance

    def information(pool, rows):
        return np.linalg.slogdet(np.eye(len(rows)) + pool[rows] @ pool[rows].T)[1]

    gains = np.zeros(3)
    for pool in pools(20, seed=9, low=60, high=61):
        each = (RandomSelector(), pointer, DOptimalSelector(snr=3.0))
        gains += [information(pool, selector.select(pool, 4)) for selector in each]
    assert gains[1] - gains[0] > 0.7 * (gains[2] - gains[0])


def test_what_was_shown_is_not_shown_again_and_changes_the_choice(pointer):
    pool = np.random.default_rng(5).standard_normal((60, 6)) * SPREAD
    first = pointer.select(pool, 6)
    shown = np.full((60, 2), np.nan)
    shown[first[:2]] = 1.0
    assert pointer.select(pool, 4, responses=shown).tolist() == first[2:].tolist()
    assert not set(pointer.select(pool, 10, exclude=np.isin(np.arange(60), first)).tolist()) & set(first.tolist())


def test_saved_and_loaded_it_chooses_the_same(pointer, tmp_path):
    pool = pools(1, seed=3)[0]
    pointer.save(tmp_path / "pointer")
    found = PointerSelector.load(tmp_path / "pointer")
    assert found.select(pool, 8).tolist() == pointer.select(pool, 8).tolist()
    assert found.agreement_ == pointer.agreement_
    (tmp_path / "pointer" / "pointer.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(DataError, match=r"save or copy it again|missing"):
        PointerSelector.load(tmp_path / "pointer")


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda p: PointerSelector().select(pools(1)[0], 2), ConfigError, "was not fitted"),
        (lambda p: PointerSelector().save("nowhere"), ConfigError, "was not fitted"),
        (lambda p: p.select(np.ones((9, 5)), 2), DataError, "has 5 features; the selector was fitted to 6"),
        (lambda p: PointerSelector().fit(pools(2), k=30), DataError, "more than k=30"),
        (lambda p: PointerSelector().fit([], k=3), DataError, "pools have shapes"),
        (lambda p: PointerSelector().fit(pools(2), "d-optimal"), ConfigError, "not a SupportSelector"),
        (lambda p: PointerSelector(learning_rate=0).fit(pools(2), k=2), ConfigError, "learning_rate"),
        (lambda p: PointerSelector(width=0).fit(pools(2), k=2), ConfigError, "width"),
    ],
)
def test_bad_input_is_refused(pointer, call, error, said):
    with pytest.raises(error, match=said):
        call(pointer)
