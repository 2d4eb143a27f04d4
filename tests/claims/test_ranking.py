"""Claims about second stages: rankers of token sets, losses of lists, distillation. Fixed before the first run:

1. Interaction sees what a vector cannot (A deep look into neural ranking models). A query is six random words of 64
   dimensions, a candidate 16 patches; one patch of the candidate that belongs to a query is one of its words with noise
   of .3, and all candidates have the same mean patch. Area under the ROC curve within queries, 200 to learn from and
   100 new ones, mean over five seeds: "maxsim" as it is and "kernel", fitted, at least .99; the dot product of mean
   tokens at most .6. Controls: with patches dealt anew among the candidates "maxsim" and "kernel" are at most .6; the
   kernel ranker before training is at least .2 below itself afterwards.
2. Lists teach more than pairs, pairs more than points. 40 concepts of 12 dimensions under 12 nuisance dimensions of
   1.5 times their scale; queries of one to six concepts, candidates of twelve; a grade is the number of the query's
   concepts that a candidate has, at most 3. Kernel rankers with maps to 12 dimensions, 150 queries x 200 candidates, 15
   epochs; NDCG at 5 of 100 new queries x 200 new candidates, means over five seeds of the same data and first weights:
   listwise at least pairwise, and pairwise at least pointwise.
3. Distilled sentence embeddings. 30 concepts of 32 dimensions with noise of .3, queries of one to five, candidates of
   six to nine; the teacher is "maxsim". 600 queries x 600 candidates to learn from; Spearman correlation with the
   teacher within each of 100 new queries over 200 new candidates, mean over three seeds: the dot product of the
   student's vectors at least .9, the head of pairs at least the dot product, an untrained student at least .5 below.
   Seconds are measured in tests/benchmarks/bench_ranking.py.

At first rankers took a quarter of the steps, a third as long, by default: the kernel ranker had .907 in claim 1 and at
most .41 in claim 2, below what it reaches with more training. The defaults were then set anew on other seeds.

Points are that far behind in claim 2 with kernels only: "maxsim" with such maps has .996 of points and 1.000 of lists
on another seed. "cross_attention" sees nothing in claim 1 (.502, fitted on the same 200 queries).
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from neuroenc.retrieval import CrossRanker, distill_ranker

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

SEEDS = range(5)
CPU = {"device": "cpu"}


def one_match(rng, n, width=64, words=6, patches=16):
    """Queries and candidates (n, token, feature); candidate n has one word of query n, and the mean of all others."""
    queries, candidates = rng.standard_normal((n, words, width)), rng.standard_normal((n, patches, width))
    rows = np.arange(n)
    planted = queries[rows, rng.integers(0, words, n)] + 0.3 * rng.standard_normal((n, width))
    candidates[rows, rng.integers(0, patches, n)] = planted
    common = np.random.default_rng(99).standard_normal(width) / 4
    return queries, candidates - candidates.mean(1, keepdims=True) + common


def auc(scores):
    """Mean over queries of the share of other candidates that score below their own, ties half."""
    scores = np.asarray(scores, np.float64)
    rank = np.array([rankdata(row)[n] for n, row in enumerate(scores)])
    return float(((rank - 1) / (len(scores) - 1)).mean())


def dealt(rng, candidates):
    """The same patches, each in a candidate drawn at random."""
    flat = candidates.reshape(-1, candidates.shape[-1])
    return flat[rng.permutation(len(flat))].reshape(candidates.shape)


@pytest.fixture(scope="module")
def matches():
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        (q, c), (q_new, c_new) = one_match(rng, 200), one_match(rng, 100)
        other, other_new = dealt(rng, c), dealt(rng, c_new)
        rankers = {
            "maxsim": CrossRanker("maxsim", **CPU),
            "kernel": CrossRanker("kernel", seed=seed, **CPU).fit(q, c),
            # A step of no length: the first weights.
            "kernel, untrained": CrossRanker("kernel", seed=seed, epochs=1, learning_rate=1e-12, **CPU).fit(q, c),
        }
        scores = {name: ranker.score(q_new, c_new) for name, ranker in rankers.items()}
        scores["pooled dot product"] = np.round(q_new.mean(1) @ c_new.mean(1).T, 9)
        scores["maxsim, patches dealt"] = rankers["maxsim"].score(q_new, other_new)
        scores["kernel, patches dealt"] = CrossRanker("kernel", seed=seed, **CPU).fit(q, other).score(q_new, other_new)
        for name, each in scores.items():
            found.setdefault(name, []).append(auc(each))
    means = {name: float(np.mean(each)) for name, each in found.items()}
    print("\nAUC of one matching patch:", {name: round(x, 3) for name, x in means.items()})
    return means


def test_token_rankers_see_one_matching_patch(matches):
    assert matches["maxsim"] >= 0.99
    assert matches["kernel"] >= 0.99
    assert matches["pooled dot product"] <= 0.6


def test_without_the_match_or_training_they_do_not(matches):
    assert matches["maxsim, patches dealt"] <= 0.6
    assert matches["kernel, patches dealt"] <= 0.6
    assert matches["kernel, untrained"] <= matches["kernel"] - 0.2


def concepts_in(rng, concepts, n, low, high, noise):
    """Sets of concepts, and their tokens."""
    sets = [rng.integers(0, len(concepts), rng.integers(low, high + 1)) for _ in range(n)]
    return sets, [noise(concepts[s]) for s in sets]


def graded(rng, n_queries, n_candidates, concepts):
    def noise(rows):
        return np.concatenate([rows, 1.5 * rng.standard_normal(rows.shape)], 1)

    asked, q = concepts_in(rng, concepts, n_queries, 1, 6, noise)
    shown, c = concepts_in(rng, concepts, n_candidates, 12, 12, noise)
    grades = np.array([[min(3, len(np.intersect1d(a, s))) for s in shown] for a in asked], float)
    return q, c, grades


def ndcg(scores, grades, k=5):
    gain, discount = 2.0**grades - 1, 1 / np.log2(np.arange(2, k + 2))
    top = np.take_along_axis(gain, np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :k], 1)
    best = (np.sort(gain, 1)[:, ::-1][:, :k] * discount).sum(1)
    return float(((top * discount).sum(1)[best > 0] / best[best > 0]).mean())


@pytest.fixture(scope="module")
def losses():
    kinds = ("pointwise", "pairwise", "listwise", "lambda_mrr")
    found = {kind: [] for kind in kinds}
    for seed in SEEDS:
        rng = np.random.default_rng(100 + seed)
        concepts = rng.standard_normal((40, 12))
        (q, c, grades), (q_new, c_new, truth) = graded(rng, 150, 200, concepts), graded(rng, 100, 200, concepts)
        for kind in kinds:
            ranker = CrossRanker("kernel", loss=kind, dims=12, epochs=15, seed=seed, **CPU).fit(q, c, grades)
            found[kind].append(ndcg(ranker.score(q_new, c_new), truth))
    print("\nNDCG at 5:", {kind: (round(float(np.mean(x)), 4), np.round(x, 3).tolist()) for kind, x in found.items()})
    return {kind: np.array(x) for kind, x in found.items()}


@pytest.mark.xfail(
    strict=True,
    reason="NDCG at 5: listwise .965, pairwise .970 (behind for each seed), lambda_mrr .891, pointwise .259",
)
def test_lists_teach_at_least_as_much_as_pairs(losses):
    assert losses["listwise"].mean() >= losses["pairwise"].mean()


def test_pairs_teach_at_least_as_much_as_points(losses):
    assert losses["pairwise"].mean() >= losses["pointwise"].mean()


@pytest.fixture(scope="module")
def students():
    found: dict[str, list[float]] = {}
    for seed in range(3):
        rng = np.random.default_rng(200 + seed)
        concepts = rng.standard_normal((30, 32))

        def noise(rows, rng=rng):
            return rows + 0.3 * rng.standard_normal(rows.shape)

        q, c = (concepts_in(rng, concepts, n, *size, noise)[1] for n, size in ((700, (1, 5)), (800, (6, 9))))
        teacher = CrossRanker("maxsim", **CPU)
        said = np.asarray(teacher.score(q[600:], c[600:]))
        student = distill_ranker(teacher, q[:600], c[:600], seed=seed, **CPU)
        untrained = distill_ranker(teacher, q[:600], c[:600], seed=seed, epochs=1, learning_rate=1e-12, **CPU)
        for name, ranker, head in (("dot", student, "dot"), ("pair", student, "pair"), ("untrained", untrained, "dot")):
            scores = ranker.score(q[600:], c[600:], head=head)
            each = [spearmanr(a, b).statistic for a, b in zip(said, scores)]
            found.setdefault(name, []).append(float(np.mean(each)))
    print("\nSpearman with the teacher:", {name: np.round(x, 3).tolist() for name, x in found.items()})
    return {name: float(np.mean(x)) for name, x in found.items()}


def test_a_student_ranks_as_its_teacher(students):
    assert students["dot"] >= 0.9
    assert students["untrained"] <= students["dot"] - 0.5


@pytest.mark.xfail(
    strict=True, reason="Spearman with the teacher: dot product .953, head of pairs less than .001 below"
)
def test_a_head_of_pairs_is_at_least_the_dot_product(students):
    assert students["pair"] >= students["dot"]
