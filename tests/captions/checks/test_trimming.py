"""Phrases chosen and judged by predicted responses to the images that show them."""

import numpy as np
import pandas as pd
import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import GroundingChecker, trim_captions

NAMES = ["dog", "house", "pizza", "sign", "hand", "cup"]
COLOURS = ["brown", "red"]


def embed_text(texts):
    words = [t.lower().replace(".", "").split() for t in texts]
    return np.array([[float(n in w) for n in [*NAMES, *COLOURS]] for w in words]) + 0.01


@pytest.fixture(scope="module")
def world():
    """300 images of two things each, one of them coloured; a voxel a thing, and one that likes brown things."""
    rng = np.random.default_rng(0)
    told, rows = {}, []
    for k in range(300):
        a, b = rng.choice(len(NAMES), 2, replace=False)
        c = int(rng.integers(2))
        told[f"image{k}"] = [f"a {COLOURS[c]} {NAMES[a]} near a {NAMES[b]}"]
        x = np.zeros(len(NAMES) + 2)
        x[[a, b, len(NAMES) + c]] = 1.0
        rows.append(x + 0.05 * rng.standard_normal(len(x)))
    bank = np.array(rows)
    coef = np.eye(len(NAMES) + 2)[:, [0, 1, 2, len(NAMES)]]
    unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    best = np.argsort(-(unit @ coef), axis=0)[:8]
    voxel, rank = np.repeat(np.arange(4), 8), np.tile(np.arange(1, 9), 4)
    evidence = pd.DataFrame({"voxel": voxel, "rank": rank, "stimulus": [f"image{k}" for k in best.T.ravel()]})
    return coef, evidence, told, bank


def checker(world, **settings):
    coef, evidence, told, bank = world
    options = {"bank": (bank, list(told)), "judge": "responses", "engine": "rules", "centre": False, **settings}
    return GroundingChecker(coef, evidence, told, embed_text, **options)


def said(*captions, voxel=0):
    return pd.DataFrame({"voxel": voxel, "rank": range(1, len(captions) + 1), "caption": captions})


def test_effects_are_those_of_two_means(world):
    coef, _, told, bank = world
    found = checker(world)
    phrases = found.find(["a brown dog", "a hand", "a dog"], "rules")
    flat = [p for several in phrases for p in several]
    rows = np.array([0, 1, 3])
    unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    for d, row, phrase in zip(found.effects(rows, flat), rows, flat):
        r = unit @ coef[:, row]
        shown = np.array(
            [set(phrase.key.split()) <= set(c[0].split()[1:3]) or phrase.key in c[0] for c in told.values()]
        )
        assert d == pytest.approx((r[shown].mean() - r[~shown].mean()) / r.std(), rel=1e-9)


def test_phrases_without_an_effect_go_and_the_rest_reads_on(world):
    one = checker(world)
    captions = said(
        "A brown dog in front of a house with a pizza.",
        "A hand next to a red dog.",
        "A picture of a dog.",
        "A cup on a sign.",
    )
    found = trim_captions(captions, one)
    # "red" makes a difference to the dog's voxel only through the dog: the whole phrase stays.
    assert found["caption"].tolist() == ["A brown dog.", "A red dog.", "A picture of a dog."]
    assert found["rank"].tolist() == [1, 2, 3]
    assert found["written"].tolist() == captions["caption"].tolist()[:3]


def test_what_stands_between_two_that_stay_stays_and_else_and(world):
    coef, evidence, told, bank = world
    mixed = coef[:, :1] + coef[:, 1:2]
    best = evidence[evidence["voxel"] == 0]
    one = GroundingChecker(
        mixed, best, told, embed_text, bank=(bank, list(told)), judge="responses", engine="rules", centre=False
    )
    texts = ["a dog in front of a house", "a dog on a sign with a house", "a cup and a pizza"]
    assert trim_captions(said(*texts), one)["caption"].tolist() == ["a dog in front of a house", "a dog and a house"]


def test_first_words_go_where_the_rest_has_an_effect_alone(world):
    # No image shows a green dog.
    assert trim_captions(said("An open dog."), checker(world))["caption"].tolist() == ["A dog."]


def test_a_voxel_of_which_nothing_stays_keeps_its_strongest_phrase(world):
    found = trim_captions(said("a pizza near a cup", "a sign"), checker(world))
    assert len(found) == 1
    assert found["caption"][0] in ("a pizza", "a cup", "a sign")
    judged = checker(world).check(found)
    assert judged.phrases["verdict"].tolist() == ["unsupported"]


def test_every_phrase_that_stays_has_the_effect_and_again_changes_nothing(world):
    rng = np.random.default_rng(1)
    texts = [
        f"a {COLOURS[rng.integers(2)]} {a} and a {b} with a {c}"
        for a, b, c in (rng.permutation(NAMES)[:3] for _ in range(60))
    ]
    captions = pd.DataFrame(
        {"voxel": np.repeat(np.arange(3), 20), "rank": np.tile(np.arange(1, 21), 3), "caption": texts}
    )
    one = checker(world)
    found = trim_captions(captions, one)
    phrases = one.find(found["caption"].tolist())
    rows = np.repeat(one.rows(found["voxel"].tolist()), [len(p) for p in phrases])
    assert (one.effects(rows, [p for several in phrases for p in several]) >= 0.5).all()
    again = trim_captions(found, one)
    assert again["caption"].tolist() == found["caption"].tolist()
    # One voxel alone, or with little memory: the same.
    alone = trim_captions(captions[captions["voxel"] == 1], checker(world, max_memory=10_000))
    assert alone["caption"].tolist() == found.loc[found["voxel"] == 1, "caption"].tolist()


def test_verdicts_rest_on_other_images_than_the_choice(world):
    apart = checker(world, apart=True)
    chosen, judged = apart.chooser, apart.verifiers["responses"]
    assert len(chosen._x) + len(judged._x) == 300
    assert chosen is not judged
    numbers = apart.check(said("a dog")).phrases
    assert numbers["effect"][0] != apart.effects(np.array([0]), apart.find(["a dog"])[0])[0]
    assert apart.crossed().check(said("a dog", "a cup")).phrases["verdict"].tolist() == ["supported", "unsupported"]
    assert apart.check(said("a green lamp")).phrases["verdict"].tolist() == ["uncertain"]


def test_shuffled_weights_have_effects_of_their_own(world):
    coef = world[0]
    one = checker(world)
    other = one.reweighted(coef[::-1])
    assert not np.allclose(
        one.effects(np.array([0]), one.find(["a dog"])[0]), other.effects(np.array([0]), one.find(["a dog"])[0])
    )
    with pytest.raises(DataError, match="other voxels"):
        one.reweighted(coef[:, :2])


def test_what_is_wrong_is_said(world):
    coef, evidence, told, bank = world
    crossed = GroundingChecker(coef, evidence, told, embed_text, centre=False, engine="rules")
    with pytest.raises(ConfigError, match="responses"):
        trim_captions(said("a dog"), crossed)
    with pytest.raises(ConfigError, match="bank"):
        GroundingChecker(coef, evidence, told, embed_text, centre=False, judge="responses")
    some = {k: told[k] for k in list(told)[:8]}
    few = pd.DataFrame({"voxel": 0, "rank": [1], "stimulus": ["image0"]})
    with pytest.raises(DataError, match="images of the bank"):
        GroundingChecker(coef, few, some, embed_text, bank=(bank[:8], list(some)), judge="responses", engine="rules")
