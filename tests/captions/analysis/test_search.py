"""Voxels by text, and captions of a region as a structure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import search_voxels, shuffled_control, structurize
from neuroenc.data.simulate import FAMILIES, MEMBERS, family_of_word
from neuroenc.data.simulate._lexicon import NEUTRAL

QUERIES = {"a pizza": "food", "a man": "face", "a house": "place", "a poster": "word", "a dancer": "body"}
REFERENCE = [f"a {m}" for f in FAMILIES for m in MEMBERS[f]] + [f"a {m}" for m in NEUTRAL]


@pytest.mark.parametrize("kind", ["projection", "coef"])
def test_planted_voxels_are_found(space, subject, kind):
    source = space.projection if kind == "projection" else space.coef
    found = search_voxels(list(QUERIES), source, space.text, reference=REFERENCE)
    assert found["text"].unique().tolist() == list(QUERIES)
    family = pd.Series(subject.truth["family"].values, index=space.coef["voxel"].values)
    for text, wanted in QUERIES.items():
        own = found[found["text"] == text]
        assert own["z"].is_monotonic_decreasing
        assert own["rank"].tolist() == list(range(1, len(family) + 1))
        assert roc_auc_score(family[own["voxel"]] == wanted, own["z"]) > 0.9
        assert (own["roi"].to_numpy() == space.coef["roi"].sel(voxel=own["voxel"].to_numpy()).values).all()


def test_shuffled_weights_like_nothing_in_particular(space, subject):
    family = subject.truth["family"].values
    areas = []
    for seed in range(4):
        found = search_voxels(list(QUERIES), shuffled_control(space.coef, seed), space.text, reference=REFERENCE)
        for text, wanted in QUERIES.items():
            own = found[found["text"] == text].sort_values("voxel")
            areas.append(roc_auc_score(family == wanted, own["z"]))
    assert abs(np.mean(areas) - 0.5) < 0.1


def test_values_are_those_of_the_formula(space):
    direction = space.projection["bank_direction"].values.astype(float)
    found = search_voxels(
        "a pizza", space.coef, space.text, intercept=space.intercept, reference=REFERENCE, image_direction=direction
    ).sort_values("voxel")
    t = space.text.embed(["a pizza", *REFERENCE]).values.astype(float)
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    t = t - t[1:].mean(0) + direction
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    r = t @ space.coef.values.astype(float)
    np.testing.assert_allclose(found["predicted"], r[0] + space.intercept.values, atol=1e-6)
    np.testing.assert_allclose(found["percentile"], (r[1:] < r[0] - 1e-6).mean(0))
    np.testing.assert_allclose(found["z"], (r[0] - r[1:].mean(0)) / r[1:].std(0), rtol=1e-4, atol=1e-4)


def test_blocks_and_top_change_nothing(space):
    whole = search_voxels(["a man", "a cake"], space.coef, space.text, reference=REFERENCE)
    small = search_voxels(["a man", "a cake"], space.coef, space.text, reference=REFERENCE, max_memory=4000)
    pd.testing.assert_frame_equal(whole, small)
    top = search_voxels(["a man", "a cake"], space.coef, space.text, reference=REFERENCE, top=3)
    assert top["voxel"].tolist() == whole.groupby("text", sort=False).head(3)["voxel"].tolist()
    default = search_voxels("a pizza", space.projection, space.text, top=10)
    assert len(default) == 10


def test_a_second_stage_orders_the_first_voxels_of_each_text(space):
    texts = ["a man", "a cake"]
    whole = search_voxels(texts, space.coef, space.text, reference=REFERENCE)
    asked = []

    def by_name(text, voxels):
        asked.append((text, len(voxels)))
        return voxels if text else -voxels

    found = search_voxels(texts, space.coef, space.text, reference=REFERENCE, rerank=by_name, rerank_depth=5)
    assert asked == [(0, 5), (1, 5)]
    for text, turn in zip(texts, (1, -1)):
        old, new = (table[table["text"] == text].reset_index(drop=True) for table in (whole, found))
        assert new["voxel"][:5].tolist() == sorted(old["voxel"][:5], key=lambda v, turn=turn: turn * v)
        assert new["voxel"][5:].tolist() == old["voxel"][5:].tolist()
        assert old["voxel"][new["rank_before"] - 1].tolist() == new["voxel"].tolist()
        assert new["rerank_score"][:5].tolist() == (-turn * new["voxel"][:5]).tolist()
        assert new["rerank_score"][5:].isna().all()
        assert new["z"].tolist() == old["z"][new["rank_before"] - 1].tolist()
    few = search_voxels(texts, space.coef, space.text, reference=REFERENCE, rerank=by_name, rerank_depth=5, top=3)
    pd.testing.assert_frame_equal(few, found.groupby("text", sort=False).head(3).reset_index(drop=True))


def test_bad_searches_are_named(space):
    with pytest.raises(ConfigError, match="rerank_depth=0"):
        search_voxels("a man", space.coef, space.text, rerank_depth=0)
    with pytest.raises(DataError, match="the second stage gave"):
        search_voxels("a man", space.coef, space.text, reference=REFERENCE, rerank=lambda text, voxels: [1.0])
    with pytest.raises(DataError, match="at least 3"):
        search_voxels("a man", space.coef, space.text, reference=["a", "a"])
    with pytest.raises(DataError, match="no text"):
        search_voxels([], space.coef, space.text)
    with pytest.raises(ConfigError, match="embed_text"):
        search_voxels("a man", space.coef, 3)


@pytest.fixture(scope="module")
def kitchen():
    """A region whose captions have three subjects; two voxels share one caption."""
    rng = np.random.default_rng(0)
    parts = {
        "pizza": ["a pizza with {}", "a slice of pizza and {}", "pizza topped with {}"],
        "dog": ["a dog on {}", "a brown dog by {}", "dog running on {}"],
        "train": ["a train at {}", "a long train near {}", "the train passes {}"],
    }
    ends = {
        "pizza": ["cheese", "ham", "olives"],
        "dog": ["grass", "the lawn", "a couch"],
        "train": ["a station", "a platform", "a bridge"],
    }
    rows, kinds = [], []
    for voxel in range(90):
        kind = list(parts)[voxel % 3 if voxel < 60 else 0]
        text = str(rng.choice(parts[kind])).format(rng.choice(ends[kind]))
        rows.append((voxel, 1, text, "X"))
        kinds.append(kind)
    return pd.DataFrame(rows, columns=["voxel", "rank", "caption", "roi"]), kinds


def test_structure_finds_the_planted_aspects(kitchen):
    table, kinds = kitchen
    found = structurize(table, n_descriptions=100)
    assert (found.n_captions, found.n_voxels) == (90, 90)
    rows = [(k, v, d.caption) for k, a in enumerate(found.aspects) for d in a.descriptions for v in d.voxels]
    frame = pd.DataFrame(rows, columns=["aspect", "voxel", "caption"])
    labels = frame.drop_duplicates("voxel").set_index("voxel")["aspect"].reindex(range(90))
    assert adjusted_rand_score(kinds, labels) > 0.9
    # The largest first, named after its subject.
    assert "pizza" in found.aspects[0].title
    assert sorted(a.share for a in found.aspects)[::-1] == [a.share for a in found.aspects]
    assert sum(a.share for a in found.aspects) == pytest.approx(1)
    # Descriptions are the captions themselves, at the voxels that have them, and nothing is lost.
    original = table.set_index("voxel")["caption"]
    assert (original[frame["voxel"]].to_numpy() == frame["caption"].to_numpy()).all()
    assert len(frame) == 90
    assert "pizza" in found.scope
    assert found.scope.startswith("These voxels:")


def test_structure_of_a_region(truthful):
    own = truthful[truthful["roi"] == "FFA"]
    found = structurize(own)
    faces = [family_of_word(w) for w in found.scope.replace(",", "").replace(":", "").split()]
    assert "face" in faces
    assert 2 <= len(found.aspects) <= 6
    assert found == structurize(own)


def test_structure_counts_what_was_checked(kitchen):
    table, _ = kitchen
    spoken = table["voxel"].to_numpy()[::2]  # the caption of every second voxel was checked
    phrases = pd.DataFrame(
        {"voxel": np.repeat(spoken, 2), "rank": 1, "verdict": ["supported", "uncertain"] * len(spoken)}
    )
    found = structurize(table, phrases=phrases, n_descriptions=100)
    of = {v: a for a in found.aspects for v in a.voxels}
    for aspect in found.aspects:
        mine = sum(of[v] is aspect for v in spoken)
        assert (aspect.n_phrases, aspect.n_supported) == (2 * mine, mine)
        assert sum(d.n_phrases for d in aspect.descriptions) == 2 * mine
        assert aspect.low < aspect.share < aspect.high
    share = table["caption"].str.contains("pizza").mean()
    assert f"pizza ({share:.0%} of voxels" in found.scope
    with pytest.raises(DataError, match="rank"):
        structurize(table.drop(columns="rank"), phrases=phrases)


def test_few_captions_and_none_with_words():
    one = structurize(pd.DataFrame({"voxel": [3, 4], "caption": ["a dog", "a dog"]}))
    assert len(one.aspects) == 1
    assert one.aspects[0].descriptions[0].voxels == (3, 4)
    assert one.aspects[0].title == "dog"
    with pytest.raises(DataError, match="no words"):
        structurize(pd.DataFrame({"voxel": [3, 4], "caption": ["1", "2"]}))
