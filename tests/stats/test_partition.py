"""Commonality analysis: brute force over areas, closed form, flags."""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc.stats import partition_variance, subsets


@pytest.mark.parametrize("k", [2, 3, 4])
def test_areas_of_sets_are_found_again(k):
    """Paint random areas; the score of a subset is the union of what its spaces cover."""
    names = list("abcd"[:k])
    rng = np.random.default_rng(k)
    area = {s: rng.random(7) / 2**k for s in subsets(names)}  # together below 1, as shares are
    scores = {s: sum(v for part, v in area.items() if set(part) & set(s)) for s in subsets(names)}
    found = partition_variance(scores)
    for part, value in area.items():
        np.testing.assert_allclose(found.parts[part], value, atol=1e-12)
    np.testing.assert_allclose(sum(found.parts.values()), found.total, atol=1e-12)
    assert not found.overfitted.any()
    assert not found.suppressed.any()


def test_three_spaces_by_the_usual_formulas():
    f = dict(zip(subsets("abc"), np.random.default_rng(0).random((7, 5))))
    a, b, c, ab, ac, bc, abc = f.values()
    found = partition_variance(f)
    np.testing.assert_allclose(found.parts["a",], abc - bc)
    np.testing.assert_allclose(found.parts["a", "b"], ac + bc - c - abc)
    np.testing.assert_allclose(found.parts["a", "b", "c"], a + b + c - ab - ac - bc + abc)


def test_independent_gaussian_spaces_least_squares():
    """Closed form: the R2 of independent spaces add, so that nothing is shared."""
    rng = np.random.default_rng(0)
    a, b = np.linalg.qr(rng.standard_normal((500, 20)))[0].reshape(500, 2, 10).swapaxes(0, 1)
    y = 3 * a.sum(axis=1) + b.sum(axis=1) + 0.2 * rng.standard_normal(500)

    def r2(x):
        x = np.column_stack([x, np.ones(len(x))])
        return 1 - np.sum((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2) / np.sum((y - y.mean()) ** 2)

    found = partition_variance({"a": r2(a), "b": r2(b), ("a", "b"): r2(np.column_stack([a, b]))})
    assert abs(found.parts["a", "b"]) < 0.01
    assert found.parts["a",] > 4 * found.parts["b",] > 0


def test_keys_order_and_flags():
    scores = {"a & b": [0.2, 0.9, 0.5], ("a",): [0.3, 0.1, 0.4], frozenset("b"): [0.1, 0.1, 0.3]}
    found = partition_variance(scores, ["b", "a"])
    assert list(found.parts) == [("b",), ("a",), ("b", "a")]
    assert found.overfitted.tolist() == [True, False, False]  # the joint model lost
    assert found.suppressed.tolist() == [False, True, False]  # more together than apart
    assert not partition_variance(scores, tolerance=0.11).overfitted.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: partition_variance({"a": 0.1, "b": 0.1, "a & b": 0.2}, unit="r"), "do not add up"),
        (lambda: partition_variance({"a": 0.1, "b": 0.1}), "1 of 3 subsets have no score"),
        (lambda: partition_variance({"a": 0.1}), "legal are 2 to 6"),
        (lambda: partition_variance({"a": [0.1], "b": 0.1, "a & b": 0.2}), "different shapes"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
