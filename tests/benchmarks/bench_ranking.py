"""Second stages of a search: rankers of tokens and their students beside dense vectors and BM25.

    python tests/benchmarks/bench_ranking.py planted [--seeds 3] [--rows maxsim]
    python tests/benchmarks/bench_ranking.py world [--train 500] [--scenes 1000] [--queries 150] [--seeds 3]
    python tests/benchmarks/bench_ranking.py speed [--candidates 10000]

``planted``: graded concepts under nuisance dimensions, as in tests/claims/test_ranking.py; 150 queries x 200 candidates
to learn from, 100 x 200 to measure. ``world``: captions of scenes ask for other scenes of the simulated world, by the
world's CLIP. Tokens of a caption are its phrases, of a picture 4 x 4 windows; the caption's own vector and the whole
picture's are one more token of each. A scene's grade is one for each object of the query that it has, two where the
colour is right as well; relevant is a scene that has all. Rankers learn from other scenes and captions.
``speed``: one query of 12 tokens over candidates of 49 tokens of 128 dimensions, which are at hand as arrays, and as
vectors of a student; medians of repeats.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import pandas as pd

from neuroenc.retrieval import CrossRanker, DenseIndex, LexicalIndex, distill_ranker, hybrid_search

CPU = {"device": "cpu"}


def ndcg(scores, grades, k=10):
    """Mean over queries that have anything to find; ties in the order of candidates."""
    return float(ndcg_each(scores, grades, k).mean())


def ndcg_each(scores, grades, k=10):
    gain, discount = 2.0**grades - 1, 1 / np.log2(np.arange(2, k + 2))
    top = np.take_along_axis(gain, np.argsort(-np.asarray(scores, float), axis=1, kind="stable")[:, :k], 1)
    best = (np.sort(gain, 1)[:, ::-1][:, :k] * discount).sum(1)
    return (top * discount).sum(1)[best > 0] / best[best > 0]


def print_gain(name, each, base):
    """Mean gain in NDCG@10 over queries, with its interval."""
    from neuroenc.stats import sample_interval

    gain = np.concatenate(each[name]) - np.concatenate(each[base])
    draws = gain[np.random.default_rng(1).integers(0, len(gain), (2000, len(gain)))].mean(axis=1)
    low, high, _ = sample_interval(draws, gain.mean(), n_units=len(gain))
    print(f"{name} - {base}: {gain.mean():.3f} [{float(low):.3f}, {float(high):.3f}]", flush=True)


def recall(scores, relevant, k=50):
    """Share of the relevant among the first k, of at most k."""
    top = np.take_along_axis(relevant, np.argsort(-np.asarray(scores, float), axis=1, kind="stable")[:, :k], 1)
    many = relevant.sum(1)
    return float((top.sum(1)[many > 0] / np.minimum(many[many > 0], k)).mean())


def pooled(sets):
    """Mean token of each set, of unit norm."""
    means = np.stack([np.mean(x / np.linalg.norm(x, axis=1, keepdims=True), 0) for x in sets])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def rankers(width):
    """Settings of each learned row."""
    return {
        "maxsim, learned maps": {"kind": "maxsim", "dims": width},
        "kernel": {"kind": "kernel"},
        "kernel, learned maps": {"kind": "kernel", "dims": width},
        "kernel, learned maps, pairwise": {"kind": "kernel", "dims": width, "loss": "pairwise"},
        "kernel, learned maps, pointwise": {"kind": "kernel", "dims": width, "loss": "pointwise"},
        "kernel, learned maps, lambda_mrr": {"kind": "kernel", "dims": width, "loss": "lambda_mrr"},
        "cross_attention": {"kind": "cross_attention"},
    }


def measured(train, test, seed, width, more, rows=""):
    """Scores (query, candidate) of the test by each ranker and the students of two, and seconds to fit and to score."""
    (q, c, grades), (q_new, c_new) = train, test
    scores, seconds = {}, {}

    def row(name, fit, score):
        begin = time.perf_counter()
        made = fit()
        middle = time.perf_counter()
        scores[name] = np.asarray(score(made))
        seconds[name] = (middle - begin, time.perf_counter() - middle)
        return made

    row("pooled tokens", lambda: None, lambda _: pooled(q_new) @ pooled(c_new).T)
    made = {"maxsim": row("maxsim", lambda: CrossRanker(**CPU), lambda r: r.score(q_new, c_new))}
    for name, settings in rankers(width).items():
        if rows not in name:
            continue
        made[name] = row(
            name,
            lambda s=settings: CrossRanker(**s, seed=seed, **CPU).fit(q, c, grades),
            lambda r: r.score(q_new, c_new),
        )
    # Patches of other pictures: what the numbers are worth without a match.
    order = np.random.default_rng(seed).permutation(len(c_new))
    scores["maxsim, other pictures' patches"] = made["maxsim"].score(q_new, [c_new[i] for i in order])
    for name in () if rows else ("maxsim", "kernel, learned maps"):
        student = row(
            f"student of {name}, dot",
            lambda n=name: distill_ranker(made[n], q, c, seed=seed, **CPU),
            lambda r: r.score(q_new, c_new, head="dot"),
        )
        row(f"student of {name}, pair", lambda s=student: s, lambda r: r.score(q_new, c_new))
    return {**scores, **more}, seconds


def summarise(each, seconds):
    """Means over seeds of measures by row, with seconds."""
    table = pd.concat([pd.DataFrame(t).T for t in each]).groupby(level=0, sort=False).mean()
    times = pd.concat([pd.DataFrame(s, ["fit", "score"]).T for s in seconds]).groupby(level=0, sort=False).mean()
    print(table.join(times).round(3).to_string(na_rep=""))


def planted(options):
    each, seconds = [], []
    for seed in range(options.seeds):
        rng = np.random.default_rng(500 + seed)
        concepts = rng.standard_normal((40, 12))

        def sets(n, low, high, rng=rng, concepts=concepts):
            found = [rng.integers(0, 40, rng.integers(low, high + 1)) for _ in range(n)]
            return found, [np.concatenate([concepts[s], 1.5 * rng.standard_normal((len(s), 12))], 1) for s in found]

        (asked, q), (shown, c) = sets(250, 1, 6), sets(400, 12, 12)
        grades = np.array([[min(3, len(np.intersect1d(a, s))) for s in shown] for a in asked], float)
        train, test = (q[:150], c[:200], grades[:150, :200]), (q[150:], c[200:])
        scores, took = measured(train, test, seed, 12, {}, options.rows)
        truth = grades[150:, 200:]
        each.append({name: {"NDCG@5": ndcg(s, truth, 5), "NDCG@10": ndcg(s, truth)} for name, s in scores.items()})
        seconds.append(took)
    summarise(each, seconds)


def scene_grades(queries, scenes):
    """Grades (query, scene), and whether a scene has all objects of a query."""
    told = [
        [[(o["member"], o["colour"]) for o in json.loads(t)] for t in s.table["objects"]] for s in (queries, scenes)
    ]
    grades, full = np.zeros((len(told[0]), len(told[1]))), np.zeros((len(told[0]), len(told[1])), bool)
    for m, scene in enumerate(told[1]):
        members = {name for name, _ in scene}
        for n, query in enumerate(told[0]):
            grades[n, m] = sum((name in members) + ((name, colour) in scene) for name, colour in query)
            full[n, m] = all(name in members for name, _ in query)
    return grades, full


def world(options):
    from neuroenc.captions import find_phrases
    from neuroenc.data.simulate import simulate_world
    from neuroenc.embedding import ImageEmbedder, TextEmbedder, embed_windows

    how = {"cache": False, "progress": False, "device": "cpu", "normalise": True}
    images, texts = ImageEmbedder("world", **how), TextEmbedder("world", **how)

    def read(scenes):
        whole = images.embed(scenes).values
        windows = embed_windows(images, scenes, grid=4).values
        return whole, np.concatenate([windows.reshape(*windows.shape[:2], -1).swapaxes(1, 2), whole[:, None]], 1)

    def ask(scenes):
        captions = [c[0] for c in scenes.captions]
        phrases = find_phrases(captions, engine="rules").groupby("caption")["phrase"].agg(list)
        vectors = texts.embed(captions).values
        named = [phrases.get(n, []) for n in range(len(captions))]
        found = iter(texts.embed([p for several in named for p in several]).values)
        return captions, vectors, [np.stack([*(next(found) for _ in several), v]) for several, v in zip(named, vectors)]

    each, seconds, staged, queries = [], [], [], {}
    for seed in range(options.seeds):
        begin = time.perf_counter()
        learned, asked = (
            simulate_world(options.train, seed=911 + 10 * seed),
            simulate_world(options.train, seed=912 + 10 * seed),
        )
        scenes, other = (
            simulate_world(options.scenes, seed=901 + 10 * seed),
            simulate_world(options.queries, seed=902 + 10 * seed),
        )
        (first, c), (whole, c_new) = read(learned), read(scenes)
        _, told, q = ask(asked)
        captions, vectors, q_new = ask(other)
        print(f"seed {seed}: tokens in {time.perf_counter() - begin:.0f} s", flush=True)
        grades, _ = scene_grades(asked, learned)
        truth, full = scene_grades(other, scenes)
        lexical, dense = LexicalIndex([t[0] for t in scenes.captions], scenes.ids), DenseIndex(whole, ids=scenes.ids)
        n, place = len(scenes.ids), {name: k for k, name in enumerate(scenes.ids)}
        words, rows = lexical.search(captions, n)
        bm25 = np.zeros((len(captions), n))
        np.put_along_axis(bm25, np.array([[place[i] for i in ids] for ids in lexical.names(rows)]), words, 1)
        fused = hybrid_search([dense, lexical], [vectors, captions], n)
        rrf = np.zeros_like(bm25)
        np.put_along_axis(rrf, np.array([[place[i] for i in ids] for ids in fused.ids]), fused.scores, 1)
        no_whole = CrossRanker(**CPU).score([x[:-1] if len(x) > 1 else x for x in q_new], c_new[:, :-1])
        # What training alone is worth, without tokens: one vector a side, the same maps and lists.
        settings = {"kind": "maxsim", "dims": 64, "seed": seed, **CPU}
        one = CrossRanker(**settings).fit(told[:, None], first[:, None], grades)
        more = {
            "one vector a side, learned maps": one.score(vectors[:, None], whole[:, None]),
            "BM25": bm25,
            "dense": vectors @ whole.T,
            "dense and BM25": rrf,
            "maxsim, phrases and windows alone": no_whole,
        }
        scores, took = measured((q, c, grades), (q_new, c_new), seed, 64, more, options.rows)
        each.append({name: {"NDCG@10": ndcg(s, truth), "R@50": recall(s, full)} for name, s in scores.items()})
        seconds.append(took)
        # The second stage: the hundred best of the fusion, ordered anew.
        best = np.argsort(-rrf, axis=1, kind="stable")[:, :100]
        behind = {}
        for name, s in scores.items():
            among = np.full_like(rrf, -np.inf)
            np.put_along_axis(among, best, np.take_along_axis(np.asarray(s, float), best, 1), 1)
            behind[name] = {"NDCG@10": ndcg(among, truth)}
            queries.setdefault(name, []).append(ndcg_each(among, truth))
        staged.append(behind)
        print(f"\nall scenes, {seed + 1} seeds")
        summarise(each, seconds)
        print("\nthe hundred best of dense and BM25, ordered anew")
        table = pd.concat([pd.DataFrame(t).T for t in staged]).groupby(level=0, sort=False).mean()
        print(table.round(3).to_string(), flush=True)
        for base in ("dense and BM25", "one vector a side, learned maps"):
            print_gain("maxsim, learned maps", queries, base)


def speed(options):
    rng = np.random.default_rng(0)
    n = options.candidates
    q, c = rng.standard_normal((1, 12, 128)).astype(np.float32), rng.standard_normal((n, 49, 128)).astype(np.float32)
    grades = rng.integers(0, 3, (8, 40)).astype(float)
    few = (rng.standard_normal((8, 12, 128)), c[:40])
    student = distill_ranker(CrossRanker(**CPU), *few, epochs=1, **CPU)
    begin = time.perf_counter()
    vectors = student.vectors(c)
    print(f"vectors of {n} candidates, once: {time.perf_counter() - begin:.2f} s")
    index = DenseIndex(vectors, normalise=False)

    def median(call, repeats):
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return float(np.median(times))

    scorer = student.scorer(q, c)
    hundred = np.array([str(i) for i in range(100)])
    rows = {
        "student: query's vector and every dot product": median(
            lambda: student.vectors(q, side="query") @ vectors.T, 20
        ),
        "student: query's vector and DenseIndex, 100 best": median(
            lambda: index.search(student.vectors(q, side="query"), 100), 20
        ),
        "student: head of pairs over 100": median(lambda: scorer(0, hundred), 20),
    }
    base = rows["student: query's vector and every dot product"]
    for kind in ("maxsim", "kernel", "cross_attention"):
        ranker = CrossRanker(kind, epochs=1, **CPU)
        ranker = ranker if kind == "maxsim" else ranker.fit(*few, grades)
        rows[kind] = median(lambda r=ranker: r.score(q, c), 3 if kind != "cross_attention" else 1)
    print(pd.DataFrame({"ms": pd.Series(rows) * 1000, "times": pd.Series(rows) / base}).round(2).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["planted", "world", "speed"])
    for name, default in (("seeds", 3), ("train", 500), ("scenes", 1000), ("queries", 150), ("candidates", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rows", default="", help="only learned rankers whose names hold this, and no students")
    given = parser.parse_args()
    {"planted": planted, "world": world, "speed": speed}[given.what](given)
