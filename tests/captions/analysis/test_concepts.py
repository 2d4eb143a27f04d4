"""Concept maps from word lists, and categories by prompts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import (
    categorise,
    concept_maps,
    concept_shares,
    load_categories,
    load_lexicon,
    shuffled_control,
)
from neuroenc.data.simulate import FAMILIES, MEMBERS, families_in_caption


def frame(*texts: str) -> pd.DataFrame:
    return pd.DataFrame({"voxel": range(len(texts)), "rank": 1, "caption": texts})


@pytest.mark.parametrize("parser", ["spacy", "rules"])
def test_shipped_lists_on_sentences(parser):
    if parser == "spacy":
        pytest.importorskip("spacy")
    cases = {
        "Two men and their children": {"person"},
        "A hot dog on a plate": {"food", "tool"},
        "a parked car": {"vehicle"},
        "a teddy bear": set(),
        "Churches near the beaches": {"place"},
        "a stop sign": {"text"},
        "geese and puppies": {"animal"},
    }
    maps = concept_maps(frame(*cases), parser=parser)
    for v, expected in enumerate(cases.values()):
        assert set(maps["concept"].values[maps["named"].values[:, v]].tolist()) == expected


def test_planted_regions_have_their_concept(truthful):
    lexicon = {f: [*MEMBERS[f]] for f in FAMILIES}
    maps = concept_maps(truthful, lexicon)
    table = concept_shares(maps, n_bootstraps=200).pivot(index="roi", columns="concept", values="percent")
    for roi, family in {"FFA": "face", "EBA": "body", "PPA": "place", "VWFA": "word", "food": "food"}.items():
        assert table.loc[roi].idxmax() == family
        assert table.loc[roi, family] > 60
        assert table.loc[roi].drop(family).max() < table.loc[roi, family] - 20
    # Against the simulation's own reading of its captions.
    truth = [[f in families_in_caption(c) for f in FAMILIES] for c in truthful["caption"]]
    share = np.array(truth, float).reshape(-1, 3, len(FAMILIES)).mean(axis=1).T
    agree = np.mean((share > 0) == (maps["share"].values > 0))
    assert agree > 0.95


def test_rule_of_naming():
    table = pd.DataFrame({"voxel": 0, "rank": [1, 2, 3], "caption": ["a man", "a cat", "a cat"]})
    for at_least, expected in ((0, True), (0.3, True), (0.5, False)):
        assert bool(concept_maps(table, at_least=at_least)["named"].sel(concept="person")) is expected


def test_intervals_cover_and_widen_with_groups():
    rng = np.random.default_rng(0)
    inside, widths = 0, []
    for seed in range(60):
        parcel = np.repeat(np.arange(20), 10)
        p = np.repeat(rng.random(20) < 0.4, 10)
        maps = xr.Dataset(
            {"named": (("concept", "voxel"), p[None]), "share": (("concept", "voxel"), p[None].astype(float))},
            coords={"concept": ["person"]},
        )
        grouped = concept_shares(maps, groups=parcel, n_bootstraps=200, seed=seed).iloc[0]
        single = concept_shares(maps, n_bootstraps=200, seed=seed).iloc[0]
        inside += grouped["low"] <= 40 <= grouped["high"]
        widths.append((grouped["high"] - grouped["low"]) / max(single["high"] - single["low"], 1e-9))
    assert inside >= 50
    assert np.median(widths) > 2


def test_lexicon_files(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('[boat]\nwords = ["Sail boat"]\n')
    assert load_lexicon(path) == {"boat": ("sail boat",)}
    assert bool(concept_maps(frame("three sail boats"), path)["named"].all())
    path.write_text("[boat]\nnouns = []\n")
    with pytest.raises(ConfigError, match="no list 'words'"):
        load_lexicon(path)
    path.write_text("[boat\n")
    with pytest.raises(ConfigError, match="not TOML"):
        load_lexicon(path)
    with pytest.raises(ConfigError, match="one text"):
        load_lexicon({"person": "man"})
    with pytest.raises(ConfigError, match="do not exist"):
        load_lexicon(tmp_path / "none.toml")
    assert list(load_categories()) == ["face", "place", "body", "word", "food"]
    assert len(load_lexicon()) == 12


def test_categories_recover_planted_families(space, subject):
    family = subject.truth["family"].values
    found = categorise(space.projection, space.text, MEMBERS)
    assert (found["category"].values == family).mean() >= 0.95
    assert (found["margin"] > 0).all()
    weights = categorise(space.coef, space.text, MEMBERS)
    assert (weights["category"].values == family).mean() >= 0.9
    # Control: weights that are shuffled within each voxel say nothing (chance is 1 of 5).
    rates = [
        (categorise(shuffled_control(space.coef, s), space.text, MEMBERS)["category"].values == family).mean()
        for s in range(5)
    ]
    assert abs(np.mean(rates) - 0.2) < 0.1


def test_category_score_is_the_mean_centred_cosine(space):
    lists, template = {"face": ["man", "cat"], "food": ["apple"]}, "a picture of {}."
    found = categorise(space.projection, space.text, lists, templates=[template])
    t = space.text.embed(["a picture of a man.", "a picture of a cat.", "a picture of an apple."]).values.astype(float)
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    t -= (t[:2].mean(0) + t[2]) / 2
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    d = space.projection["embedding"].values.astype(float)
    d = d / np.linalg.norm(d, axis=1, keepdims=True) - space.projection["bank_direction"].values
    cosine = d @ t.T / np.linalg.norm(d, axis=1, keepdims=True)
    np.testing.assert_allclose(found["score"].sel(category_name="face"), cosine[:, :2].mean(1), atol=1e-6)
    np.testing.assert_allclose(found["score"].sel(category_name="food"), cosine[:, 2], atol=1e-6)


def test_bad_categories_are_named(space):
    with pytest.raises(ConfigError, match="no place for the noun"):
        categorise(space.coef, space.text, MEMBERS, templates=["a photo"])
    with pytest.raises(ConfigError, match="at least two"):
        categorise(space.coef, space.text, {"face": ["man"]})
    with pytest.raises(DataError, match="share one space"):
        categorise(np.ones((3, 2)), space.text, MEMBERS)
