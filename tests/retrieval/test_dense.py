"""Exact dense search: brute force in float64 is the reference."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.retrieval import DenseIndex, as_bank, top_k


def brute(queries, rows, k, normalise):
    q, m = np.asarray(queries, float), np.asarray(rows, float)
    if normalise:
        q, m = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, m))
    scores = (q @ m.T).astype(np.float32)
    order = np.lexsort((np.broadcast_to(np.arange(len(m)), scores.shape), -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), order


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("normalise", [True, False])
def test_equals_brute_force(rng, dtype, normalise):
    rows = (rng.standard_normal((5000, 24)) * rng.uniform(0.5, 5, (5000, 1))).astype(dtype)
    queries = rng.standard_normal((33, 24))
    scores, index = DenseIndex(rows, normalise=normalise).search(queries, 7, max_memory="8MB")
    want, order = brute(queries, rows, 7, normalise)
    assert scores.dtype == np.float32
    assert index.dtype == np.int64
    np.testing.assert_allclose(scores, want, rtol=2e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert (index == order).mean() > 0.999  # float64 rounding of the reference may swap equals


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 199), max_size=6),
    k=st.integers(1, 200),
    seed=st.integers(0, 99),
    normalise=st.booleans(),
)
def test_result_is_bitwise_independent_of_chunks(cuts, k, seed, normalise):
    rng = np.random.default_rng(seed)
    # few different rows, so that exact ties are everywhere
    rows = rng.standard_normal((9, 16)).astype(np.float16)[rng.integers(0, 9, 200)]
    queries = rng.standard_normal((40, 16))
    edges = [0, *sorted(set(cuts)), 200]
    whole = top_k(queries, as_bank(rows), k, normalise=normalise)
    pieces = top_k(queries, as_bank([rows[a:b] for a, b in pairwise(edges)]), k, normalise=normalise)
    np.testing.assert_array_equal(whole[0], pieces[0])
    np.testing.assert_array_equal(whole[1], pieces[1])
    tie = whole[0][:, 1:] == whole[0][:, :-1]
    assert (whole[1][:, 1:] > whole[1][:, :-1])[tie].all()


def test_all_equal_rows_come_in_order(rng):
    rows = np.tile(rng.standard_normal(16).astype(np.float32), (3000, 1))
    _, index = DenseIndex(rows).search(rng.standard_normal((3, 16)), 5, max_memory="1MB")
    assert index.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_rows_that_get_better_and_better(rng):
    rows = np.linspace(0.1, 1, 20_000, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)
    _, index = DenseIndex(rows, normalise=False).search(np.ones((2, 4)), 3, max_memory="2MB")
    assert index.tolist() == [[19_999, 19_998, 19_997]] * 2


def test_memory_bound(rng, tmp_path, tracked):
    rows = np.lib.format.open_memmap(tmp_path / "b.npy", "w+", np.float16, (400_000, 64))
    for a in range(0, len(rows), 50_000):
        rows[a : a + 50_000] = rng.standard_normal((50_000, 64))
    rows.flush()
    index = DenseIndex(tmp_path / "b.npy")
    queries = rng.standard_normal((40, 64))
    index.search(queries[:1], 1)
    with tracked() as peak:
        scores, _ = index.search(queries, 10, max_memory="12MB")
    assert rows.nbytes > 51e6
    assert peak() < 14e6
    np.testing.assert_array_equal(scores, index.search(queries, 10)[0])


def test_names(rng):
    index = DenseIndex(np.eye(3), ids=["x", "y", "z"])
    assert index.names(index.search(np.eye(3)[::-1], 1)[1]).tolist() == [["z"], ["y"], ["x"]]
    assert len(index) == 3


def test_errors(rng):
    rows = rng.standard_normal((5, 3))
    index = DenseIndex(rows)
    with pytest.raises(DataError, match=r"width 3.*queries 4"):
        index.search(np.ones((1, 4)), 1)
    with pytest.raises(DataError, match="k=6 of a bank of 5"):
        index.search(np.ones((1, 3)), 6)
    with pytest.raises(DataError, match="k=6 of a bank of 5"):
        top_k(np.ones((1, 3)), as_bank(iter([rows])), 6)
    with pytest.raises(ConfigError, match="k=0"):
        index.search(np.ones((1, 3)), 0)
    with pytest.raises(DataError, match=r"1 of 2 queries hold NaN.*query 1"):
        index.search(np.array([[1, 1, 1], [1, np.nan, 1]]), 1)
    with pytest.raises(DataError, match="zero norm"):
        index.search(np.zeros((1, 3)), 1)
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        index.search(np.ones(3), 1)
    with pytest.raises(DataError, match="2 ids for 5"):
        DenseIndex(rows, ids=["a", "b"])
    with pytest.raises(DataError, match="each search"):
        DenseIndex(iter([rows]))
    for bad in (np.nan, np.inf):
        broken = rows.copy()
        broken[3, 1] = bad
        with pytest.raises(DataError, match=r"NaN or infinite.*row 3 \(id 'd'\)"):
            DenseIndex(broken, ids=list("abcde")).search(np.ones((1, 3)), 1)
    rows[2] = 0
    with pytest.raises(DataError, match="zero norm; the first is row 2"):
        DenseIndex(rows).search(np.ones((1, 3)), 1)
    assert DenseIndex(rows, normalise=False).search(np.ones((1, 3)), 5)[0].shape == (1, 5)


class TestPrefix:
    """First dimensions find candidates, all dimensions order them."""

    @staticmethod
    def two_steps(queries, rows, k, prefix, rescore, normalise):
        """The same by two sorts."""
        candidates = brute(queries[:, :prefix], rows[:, :prefix], min(rescore * k, len(rows)), normalise)[1]
        out = np.empty((len(queries), k), int)
        for n, mine in enumerate(np.sort(candidates, axis=1)):
            out[n] = mine[brute(queries[n : n + 1], rows[mine], k, normalise)[1][0]]
        return out

    @pytest.mark.parametrize("normalise", [True, False])
    @pytest.mark.parametrize(("prefix", "rescore"), [(4, 3), (1, 1), (8, 500)])
    def test_equals_two_sorts_and_shards_and_files(self, rng, normalise, prefix, rescore, tmp_path):
        rows = rng.standard_normal((900, 16)) * 0.8 ** np.arange(16)
        queries = rng.standard_normal((21, 16))
        how = {"normalise": normalise, "prefix": prefix, "rescore": rescore}
        scores, index = DenseIndex(rows, **how).search(queries, 5)
        assert (index == self.two_steps(queries, rows, 5, prefix, rescore, normalise)).all()
        np.save(tmp_path / "b.npy", rows)
        for other in ([rows[:7], rows[7:300], rows[300:]], tmp_path / "b.npy"):
            again = DenseIndex(other, **how).search(queries, 5, max_memory="1MB")
            np.testing.assert_array_equal(again[0], scores)
            np.testing.assert_array_equal(again[1], index)

    @settings(max_examples=20, deadline=None)
    @given(cuts=st.lists(st.integers(1, 199), max_size=5), k=st.integers(1, 50), seed=st.integers(0, 99))
    def test_ties_are_bitwise_independent_of_chunks(self, cuts, k, seed):
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((9, 16)).astype(np.float16)[rng.integers(0, 9, 200)]
        queries = rng.standard_normal((11, 16))
        edges = [0, *sorted(set(cuts)), 200]
        whole = DenseIndex(rows, prefix=3, rescore=2).search(queries, k)
        pieces = DenseIndex([rows[a:b] for a, b in pairwise(edges)], prefix=3, rescore=2).search(queries, k)
        np.testing.assert_array_equal(whole[0], pieces[0])
        np.testing.assert_array_equal(whole[1], pieces[1])

    def test_all_dimensions_or_all_rows_are_the_full_search(self, rng):
        rows, queries = rng.standard_normal((300, 12)), rng.standard_normal((9, 12))
        full = DenseIndex(rows).search(queries, 7)
        for index in (DenseIndex(rows, prefix=12, rescore=1), DenseIndex(rows, prefix=2, rescore=60)):
            for found, want in zip(index.search(queries, 7), full, strict=True):
                np.testing.assert_array_equal(found, want)

    def test_errors(self, rng):
        rows = rng.standard_normal((20, 4))
        with pytest.raises(ConfigError, match=r"prefix=5 of embeddings of 4.*1 to 4"):
            DenseIndex(rows, prefix=5)
        with pytest.raises(ConfigError, match="rescore=0"):
            DenseIndex(rows, prefix=2, rescore=0)
        with pytest.raises(DataError, match=r"width 4.*queries 3"):
            DenseIndex(rows, prefix=2).search(np.ones((1, 3)), 1)
        with pytest.raises(DataError, match="k=21 of a bank of 20"):
            DenseIndex(rows, prefix=2).search(np.ones((1, 4)), 21)
        assert "prefix=2, rescore=4" in repr(DenseIndex(rows, prefix=2))
