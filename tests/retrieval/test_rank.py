"""Rankers of token sets against plain loops, labels, batches, folders, and the second stage of a search."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.retrieval import CrossRanker, DenseIndex, LexicalIndex, hybrid_search, second_stage

torch = pytest.importorskip("torch")

KINDS = ("maxsim", "kernel", "cross_attention")


def ragged(rng, n, most, width=8):
    return [rng.standard_normal((k, width)) for k in rng.integers(1, most + 1, n)]


def padded(sets, name="stimulus", prefix="s"):
    """The same sets as labelled tokens with NaN behind the last one."""
    out = np.full((len(sets), max(map(len, sets)), sets[0].shape[1]), np.nan)
    for n, x in enumerate(sets):
        out[n, : len(x)] = x
    ids = [f"{prefix}{n}" for n in range(len(sets))]
    return xr.DataArray(out, dims=(name, "token", "feature"), coords={name: ids})


def fitted(kind, queries, candidates, **settings):
    relevance = np.random.default_rng(5).integers(0, 3, (len(queries), len(candidates))).astype(float)
    relevance[0, 0] = np.nan
    how = {"dims": 8, "epochs": 2, "batch_size": 4, "list_size": 6, "device": "cpu", **settings}
    return CrossRanker(kind, **how).fit(queries, candidates, relevance)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_maxsim_is_the_sum_of_the_best_cosines(rng):
    queries, candidates = ragged(rng, 4, 3), ragged(rng, 6, 5)
    expected = [[(unit(q) @ unit(c).T).max(1).sum() for c in candidates] for q in queries]
    assert CrossRanker(device="cpu").score(queries, candidates) == pytest.approx(np.array(expected), abs=1e-5)


def test_kernel_pooling_is_the_sum_of_log_kernels(rng):
    queries, candidates = ragged(rng, 4, 3), ragged(rng, 6, 5)
    ranker = fitted("kernel", queries, candidates, dims=None, kernels=5)
    state = {k: v.numpy() for k, v in ranker.model_.state_dict().items()}
    centres, width = np.linspace(1, -1, 5), 0.25
    for n, q in enumerate(queries):
        for m, c in enumerate(candidates):
            cosine = unit(q) @ unit(c).T
            kernels = np.exp(-0.5 * ((cosine[..., None] - centres) / width) ** 2).sum(1)
            features = 0.01 * np.log(np.maximum(kernels, 1e-10)).sum(0)
            expected = state["weights.weight"][0] @ features * np.exp(state["gain"]) + state["offset"]
            assert ranker.score([q], [c])[0, 0] == pytest.approx(expected, abs=1e-5), (n, m)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_of_sets_whatever_batch_padding_and_form(kind, rng):
    queries, candidates = ragged(rng, 7, 3), ragged(rng, 9, 5)
    ranker = fitted(kind, queries, candidates)
    whole = ranker.score(queries, candidates)
    assert whole.shape == (7, 9)
    assert np.isfinite(whole).all()
    for size in (1, 5, 20):
        assert ranker.score(queries, candidates, batch_size=size) == pytest.approx(whole, abs=1e-5)
    pairs = np.array([[6, 0], [0, 8], [3, 3]])
    assert ranker.score(queries, candidates, pairs=pairs, batch_size=2) == pytest.approx(
        whole[tuple(pairs.T)], abs=1e-5
    )
    # A set alone is not padded, and the order of tokens is nothing to it.
    assert ranker.score(queries[2:3], [candidates[4][::-1]])[0, 0] == pytest.approx(whole[2, 4], abs=1e-5)
    labelled = ranker.score(padded(queries, "text", "t"), padded(candidates))
    assert labelled.dims == ("query", "candidate")
    assert labelled["query"].values.tolist() == [f"t{n}" for n in range(7)]
    assert labelled.values == pytest.approx(whole, abs=1e-5)
    maps = np.stack([np.random.default_rng(n).standard_normal((8, 2, 3)) for n in range(3)])
    tokens = [m.reshape(8, 6).T for m in maps]
    assert ranker.score(queries, maps) == pytest.approx(ranker.score(queries, tokens), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rankers_are_kept_in_a_folder_and_made_again_from_their_seed(kind, rng, tmp_path):
    queries, candidates = ragged(rng, 5, 3), ragged(rng, 6, 4)
    ranker = fitted(kind, queries, candidates)
    found = CrossRanker.load(ranker.save(tmp_path / "ranker"))
    scores = ranker.score(queries, candidates)
    assert found.get_params() == ranker.get_params()
    assert (found.score(queries, candidates) == scores).all()
    assert (fitted(kind, queries, candidates).score(queries, candidates) == scores).all()
    assert not np.allclose(fitted(kind, queries, candidates, seed=1).score(queries, candidates), scores)
    plain = CrossRanker.load(CrossRanker(device="cpu").save(tmp_path / "plain"))
    assert plain.score(queries, candidates) == pytest.approx(CrossRanker(device="cpu").score(queries, candidates))
    with pytest.raises(DataError, match="holds no ranker"):
        CrossRanker.load(tmp_path)


def test_matches_are_what_a_score_is_made_of(rng):
    queries, candidates = ragged(rng, 4, 3), ragged(rng, 6, 5)
    ranker, pairs = CrossRanker(device="cpu"), [[0, 5], [3, 2]]
    found = ranker.matches(queries, candidates, pairs)
    for each, (n, m) in zip(found, pairs):
        there = each[: len(queries[n]), : len(candidates[m])]
        assert there == pytest.approx(unit(queries[n]) @ unit(candidates[m]).T, abs=1e-5)
        assert np.isfinite(each).sum() == there.size
    sums = np.nansum(np.nanmax(np.where(np.isnan(found), -np.inf, found), 2), 1, where=np.isfinite(found).any(2))
    assert sums == pytest.approx(ranker.score(queries, candidates, pairs=pairs), abs=1e-5)
    with pytest.raises(ConfigError, match="compares no tokens"):
        CrossRanker("cross_attention").matches(queries, candidates, pairs)


def test_relevance_is_matched_by_label(rng):
    queries, candidates = padded(ragged(rng, 5, 3), "text", "t"), padded(ragged(rng, 6, 4))
    grades = pd.DataFrame(rng.integers(0, 3, (5, 6)), queries["text"].values, candidates["stimulus"].values)
    how = {"dims": 8, "epochs": 2, "device": "cpu"}
    turned = grades.iloc[::-1, ::-1]
    labelled = xr.DataArray(turned.values, dims=("text", "stimulus"), coords=[turned.index, turned.columns])
    scores = [
        CrossRanker("kernel", **how).fit(queries, candidates, r).score(queries, candidates).values
        for r in (grades.values, turned, labelled)
    ]
    assert (scores[0] == scores[1]).all()
    assert (scores[0] == scores[2]).all()
    with pytest.raises(DataError, match=r"lacks 1 of 6 candidates, the first is 's5'"):
        CrossRanker("kernel", **how).fit(queries, candidates, grades.iloc[:, :-1])


def test_without_relevance_ids_say_what_belongs_together(rng):
    tokens = padded(ragged(rng, 6, 3))
    how = {"dims": 8, "epochs": 2, "device": "cpu"}
    order = [3, 1, 0, 5, 4, 2]
    found = CrossRanker("kernel", **how).fit(tokens[:4], tokens[order])
    eye = (tokens["stimulus"].values[:4, None] == tokens["stimulus"].values[order]).astype(float)
    expected = CrossRanker("kernel", **how).fit(tokens[:4], tokens[order], eye)
    assert (found.score(tokens, tokens) == expected.score(tokens, tokens)).all()


def test_training_finds_a_map_between_two_spaces():
    rng = np.random.default_rng(1)
    words = rng.standard_normal((210, 2, 6))
    patches = np.concatenate([words @ rng.standard_normal((6, 10)), rng.standard_normal((210, 3, 10))], 1)
    ranker = CrossRanker(dims=6, epochs=10, device="cpu").fit(words[:200], patches[:200])
    scores = np.asarray(ranker.score(words[200:], patches[200:]))
    assert (scores.argmax(1) == np.arange(10)).mean() >= 0.7


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"kind": "maxism"}, ConfigError, "did you mean 'maxsim'"),
        ({"loss": "lists"}, ConfigError, "unknown kind of ranking loss"),
        ({"list_size": 1}, ConfigError, "list_size=1"),
        ({"kind": "cross_attention", "dims": 6}, ConfigError, "multiple of heads"),
        ({"kernels": 1, "kind": "kernel"}, ConfigError, "kernels=1"),
        ({"seed": -1}, ConfigError, "seed=-1"),
    ],
)
def test_settings_that_are_refused(settings, error, message, rng):
    tokens = ragged(rng, 4, 3)
    with pytest.raises(error, match=message):
        CrossRanker(**{"device": "cpu", **settings}).fit(tokens, tokens)


def test_tokens_that_are_refused(rng):
    tokens, ranker = ragged(rng, 4, 3), CrossRanker(device="cpu")
    wide = ragged(rng, 4, 3, width=9)
    spoilt = np.array(padded(tokens))
    spoilt[1, 0, 2] = np.nan
    empty = np.array(padded(tokens))
    empty[2] = np.nan
    for given, message in (
        (wide, "of 8 features in queries and of 9"),
        ([], "there are 0 candidates"),
        ([*tokens, wide[0]], "of one width"),
        (spoilt, "1 tokens have values that are not finite, the first in set 1"),
        (empty, "set '2' has no token"),
        (np.zeros(3), r"have shape \(3,\)"),
        (padded(tokens).isel(stimulus=[0, 1, 1]), "id 's1' stands twice"),
    ):
        with pytest.raises(DataError, match=message):
            ranker.score(tokens, given)
    with pytest.raises(ConfigError, match="was not fitted"):
        CrossRanker("kernel").score(tokens, tokens)
    with pytest.raises(DataError, match="was fitted on 8 and 8"):
        fitted("kernel", tokens, tokens).score(wide, wide)
    for pairs in ([[0, 4]], [[-1, 0]], [0, 1], [[0.5, 1]]):
        with pytest.raises(DataError, match="pairs"):
            ranker.score(tokens, tokens, pairs=pairs)
    for relevance, message in (
        (np.ones((4, 4)), "nothing can be learned"),
        (np.eye(3), r"expected \(query, candidate\) = \(4, 4\)"),
        (-np.eye(4), "at least 0"),
    ):
        with pytest.raises(DataError, match=message):
            ranker.fit(tokens, tokens, relevance)
    with pytest.raises(DataError, match="without relevance"):
        ranker.fit(tokens, tokens[:3])


def test_second_stage_orders_ids_and_keeps_where_they_stood():
    asked = []

    def score(query, ids):
        asked.append((query, list(ids)))
        return [{"a": 1.0, "b": 2.0, "c": 1.0}[name] for name in ids]

    found = second_stage([["a", "b", "c"], ["c", "", ""], ["", "", ""]], score)
    assert asked == [(0, ["a", "b", "c"]), (1, ["c"])]
    assert found.ids.tolist() == [["b", "a", "c"], ["c", "", ""], ["", "", ""]]
    assert found.before.tolist() == [[2, 1, 3], [1, 0, 0], [0, 0, 0]]
    assert found.scores[1].tolist() == [1.0, -np.inf, -np.inf]
    assert second_stage([[7, 8]], lambda query, ids: ids).ids.tolist() == [[8, 7]]
    with pytest.raises(DataError, match="gave 1 NaN for 3 ids of query 0"):
        second_stage([["a", "b", "c"]], lambda query, ids: [0.0, np.nan, 1.0])
    with pytest.raises(DataError, match=r"gave shape \(2,\)"):
        second_stage([["a", "b", "c"]], lambda query, ids: [0.0, 1.0])
    with pytest.raises(DataError, match="k=4 of 3 ids"):
        second_stage([["a", "b", "c"]], score, k=4)


def test_hybrid_search_with_a_ranker_behind_it(rng):
    pytest.importorskip("bm25s")
    tokens = padded(ragged(rng, 30, 4))
    texts = [" ".join(rng.choice(["red", "dog", "bus", "sea"], 3)) for _ in range(30)]
    ids = tokens["stimulus"].values
    indexes = [DenseIndex(tokens.mean("token").values, ids=ids), LexicalIndex(texts, ids)]
    queries, asked = ragged(rng, 5, 3), ["red dog", "bus", "sea", "dog sea", "red"]
    means = np.stack([q.mean(0) for q in queries])
    ranker = CrossRanker(device="cpu")
    first = hybrid_search(indexes, [means, asked], 30)
    assert (first.before == np.where(first.ids != "", np.arange(1, 31), 0)).all()
    found = hybrid_search(indexes, [means, asked], 4, rerank=ranker.scorer(queries, tokens), rerank_depth=12)
    deep = hybrid_search(indexes, [means, asked], 12)
    scores = ranker.score(queries, tokens)
    for q in range(5):
        best = deep.ids[q][np.argsort(-scores.sel(candidate=deep.ids[q]).values[q], kind="stable")][:4]
        assert found.ids[q].tolist() == best.tolist()
        assert found.scores[q] == pytest.approx(scores.sel(candidate=best).values[q], abs=1e-5)
        assert (deep.ids[q][found.before[q] - 1] == found.ids[q]).all()
        assert (deep.ranks[q][found.before[q] - 1] == found.ranks[q]).all()
    again = ranker.rerank(queries, tokens, deep.ids, 4)
    assert (again.ids == found.ids).all()
    with pytest.raises(DataError, match="unknown candidate 's"):
        hybrid_search(indexes, [means, asked], 4, rerank=ranker.scorer(queries, tokens[:9]))
    with pytest.raises(DataError, match="query 2 of 2 sets"):
        hybrid_search(indexes, [means, asked], 4, rerank=ranker.scorer(queries[:2], tokens))
