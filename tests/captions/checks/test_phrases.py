"""Phrases of captions: rules against known ones, against spaCy, and what is not a phrase."""

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import find_phrases
from neuroenc.captions.text._phrases import has_spacy, phrases_of
from neuroenc.data.simulate import simulate_world

KNOWN = {
    "A man riding a horse on the beach.": ["man", "horse", "beach"],
    "Two slices of pizza on a plate, next to a glass of wine": ["slices", "pizza", "plate", "glass", "wine"],
    "A couple of young smiling women eating cake": ["young smiling women", "cake"],
    "A close up of a man's face.": ["man's face"],
    "A standing person is smiling.": ["standing person"],
    "The sky is blue and a dog sits in a parking lot.": ["sky", "dog", "parking lot"],
    "A house covered in snow": ["house", "snow"],
    "A picture of a red cat on the left of a box.": ["red cat", "box"],
    "We see a T-shirt.": ["T-shirt"],
    "A lot of dogs": ["dogs"],
    "": [],
}


@pytest.mark.parametrize("text", KNOWN)
def test_rules_find_what_is_named(text):
    assert [p.text for p in phrases_of([text], "rules")[0]] == KNOWN[text]


def test_characters_and_heads_belong_to_the_phrase():
    captions = ["Two red DOGS near 3 churches.", "a kite", "a man with a beard"]
    frame = find_phrases(captions, engine="rules")
    assert frame["caption"].tolist() == [0, 0, 1, 2, 2]
    assert all(captions[c][a:b] == p for c, p, a, b in frame[["caption", "phrase", "start", "end"]].values)
    assert frame["head"].tolist() == ["dog", "church", "kite", "man", "beard"]
    assert find_phrases(captions, engine="rules", stop=["man", "kite"])["caption"].tolist() == [0, 0, 2]
    assert list(find_phrases([]).columns) == list(frame.columns)


def test_objects_of_the_world_are_found():
    world = simulate_world(60, seed=3, size=32)
    texts = sorted({c for several in world.captions for c in several})
    engines = ["rules", "spacy"] if has_spacy() else ["rules"]
    for engine in engines:
        found = phrases_of(texts, engine)
        assert all(text[p.start : p.end] == p.text for text, several in zip(texts, found) for p in several)
    if len(engines) == 2:
        # spaCy's small model takes "person dancing" for a verb now and then.
        pairs = zip(phrases_of(texts, "rules"), phrases_of(texts, "spacy"))
        assert np.mean([[p.key for p in a] == [p.key for p in b] for a, b in pairs]) > 0.85


@pytest.mark.skipif(not has_spacy(), reason="spaCy is not installed")
def test_spacy_gives_the_same_where_sentences_are_plain():
    texts = [t for t in KNOWN if "standing" not in t and "picture" not in t and "'s" not in t and "T-" not in t]
    for text in texts:
        assert [p.text for p in phrases_of([text], "spacy")[0]] == KNOWN[text]
    assert phrases_of(["three women"], "spacy")[0][0].head == "woman"
    assert phrases_of(["a dog"], "auto") == phrases_of(["a dog"], "spacy")


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="did you mean 'rules'"):
        find_phrases(["a"], engine="rule")
    with pytest.raises(DataError, match="one string"):
        find_phrases("a dog")
