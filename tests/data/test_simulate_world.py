"""The simulated world: reproducible, balanced, recognisable from pixels, described in correct English."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from neuroenc._core.errors import ConfigError
from neuroenc.data.simulate import FAMILIES, MEMBERS, families_in_caption, family_of_word, simulate_world, vocabulary
from neuroenc.data.simulate._lexicon import NEUTRAL
from neuroenc.data.simulate._rois import energy_maps


@pytest.fixture(scope="module")
def world():
    return simulate_world(700, seed=4)


def test_same_seed_same_world_and_a_smaller_world_is_a_prefix(world):
    small = simulate_world(12, seed=4)
    assert np.array_equal(small.images, world.images[:12])
    assert small.captions == world.captions[:12]
    assert small.table.equals(world.table.iloc[:12])
    other = simulate_world(12, seed=5)
    assert not np.array_equal(other.images, small.images)
    assert not set(other.ids) & set(small.ids)


def test_size_changes_the_pixels_and_not_the_scene(world):
    large = simulate_world(6, size=96, seed=4)
    assert large.images.shape == (6, 96, 96, 3)
    assert large.captions == world.captions[:6]
    assert large.table.equals(world.table.iloc[:6])
    for image, same in zip(large.images, world.images):
        shrunk = image.reshape(32, 3, 32, 3, 3).mean(axis=(1, 3))
        assert np.corrcoef(shrunk.ravel(), same.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3)).ravel())[0, 1] > 0.97


@pytest.mark.parametrize("arguments", [{"n": 0}, {"n": 3, "size": 8}])
def test_impossible_worlds_are_refused(arguments):
    with pytest.raises(ConfigError, match="at least"):
        simulate_world(**arguments)


def test_families_are_balanced_and_nearly_independent(world):
    assert len(FAMILIES) >= 5
    assert all(len(members) >= 4 for members in MEMBERS.values())
    share = world.table["family"].value_counts(normalize=True)
    assert all(0.13 < share[f] < 0.25 for f in FAMILIES)
    assert 0.03 < share["none"] < 0.15
    presence = world.table[list(FAMILIES)].to_numpy() > 0
    correlation = np.corrcoef(presence.T)[~np.eye(len(FAMILIES), dtype=bool)]
    assert np.abs(correlation).max() < 0.25
    for f in FAMILIES:
        counts = [(world.table[f"member_{m}"] > 0).sum() for m in MEMBERS[f]]
        assert min(counts) > 0.5 * np.mean(counts)


def test_flat_columns_agree_with_the_objects(world):
    for _, row in world.table.iterrows():
        objects = json.loads(row["objects"])
        assert row["n_objects"] == len(objects)
        found = {o["family"]: o for o in objects if o["family"] != "neutral"}
        assert row["n_families"] == len(found)
        assert row["family"] == "none" if not found else row["family"] in found
        for f in FAMILIES:
            if f in found:
                o = found[f]
                assert row[f] == row[f"member_{o['member']}"] == o["strength"] >= 0.5
                assert (row[f"{f}_x"], row[f"{f}_y"], row[f"{f}_size"]) == (o["x"], o["y"], o["size"])
            else:
                assert row[f] == 0
                assert np.isnan(row[f"{f}_x"])


def test_captions_are_correct_sentences(world):
    for captions in world.captions:
        assert len(set(captions)) >= 3
        for caption in captions:
            assert re.fullmatch(r"[A-Z][A-Za-z, ]*\.", caption), caption
            assert "  " not in caption
            assert " ," not in caption
            words = re.findall(r"[a-z]+", caption.lower())
            for article, following in pairwise(words):
                if article in ("a", "an"):
                    assert (article == "an") == (following[0] in "aeiou"), caption
            assert not re.search(r"\b(a|an|the) (a|an|the)\b", caption.lower()), caption
            verbs = re.search(r"^(.*?) (is|are) ", caption)
            if verbs and not caption.startswith(("There", "This")):
                assert (verbs[2] == "are") == (" and " in verbs[1]), caption


def test_captions_name_exactly_the_families_shown(world):
    for captions, (_, row) in zip(world.captions, world.table.iterrows()):
        shown = {f for f in FAMILIES if row[f] > 0}
        for caption in captions:
            assert families_in_caption(caption) == shown, caption


def test_vocabulary_is_small_and_complete(world):
    words = {w for c in world.captions for s in c for w in re.findall(r"[a-z]+", s.lower())}
    assert words <= set(vocabulary())
    assert len(vocabulary()) < 250


@pytest.mark.parametrize(
    ("word", "family"),
    [
        ("Men", "face"),
        ("runners", "body"),
        ("churches", "place"),
        ("headline", "word"),
        ("Cherries,", "food"),
        ("red", None),
        ("ball", None),
        ("grass", None),
        ("the", None),
    ],
)
def test_family_of_word(word, family):
    assert family_of_word(word) == family


def test_neutral_words_name_no_family():
    assert not [n for n in NEUTRAL if family_of_word(n)]
    for f in FAMILIES:
        assert all(family_of_word(m) == f for m in (f, *MEMBERS[f]))


def test_left_and_right_in_captions_agree_with_positions(world):
    checked = 0
    for captions, text in zip(world.captions, world.table["objects"]):
        things = [o for o in json.loads(text) if o["family"] != "place"]
        if len(things) != 2:
            continue
        a, b = things
        for caption in captions:
            found = re.search(r" (?:to|on) the (left|right) of ", caption)
            if found:
                assert (a["x"] < b["x"]) == (found[1] == "left"), caption
                checked += 1
    assert checked > 50


def test_low_level_latents_are_in_the_pixels(world):
    table = world.table
    grey = world.images.mean(axis=-1)
    assert np.corrcoef(grey.std(axis=(1, 2)), table["contrast"])[0, 1] > 0.25
    warmth = world.images[..., 0].mean(axis=(1, 2)) / (1 + world.images[..., 2].mean(axis=(1, 2)))
    cast = table["colour_cast"].to_numpy()
    assert warmth[cast == "warm"].mean() > warmth[cast == "neutral"].mean() > warmth[cast == "cool"].mean()


def test_a_linear_probe_on_pixels_finds_every_family(world):
    """Colour histogram, energy statistics and best match of random training patches, then ridge."""
    n, train = len(world), np.arange(len(world)) < 500
    maps = energy_maps(world)
    bins = world.images // 43 @ np.array([36, 6, 1], dtype=np.uint8)
    colour = np.sqrt([np.bincount(b.ravel(), minlength=216) for b in bins])
    small = world.images.reshape(n, 32, 2, 32, 2, 3).mean(axis=(2, 4), dtype=np.float32) / 255
    windows = sliding_window_view(small, (8, 8), axis=(1, 2))[:, ::2, ::2].reshape(n, -1, 192)
    windows = windows - windows.mean(axis=2, keepdims=True)
    windows /= np.linalg.norm(windows, axis=2, keepdims=True) + 0.5
    rng = np.random.default_rng(0)
    filters = windows[rng.integers(500, size=400), rng.integers(windows.shape[1], size=400)]
    x = np.concatenate([(windows @ filters.T).max(axis=1), colour, maps.mean(axis=2).T, maps.max(axis=2).T], axis=1)
    x = (x - x[train].mean(axis=0)) / (x[train].std(axis=0) + 1e-6)
    present = world.table[list(FAMILIES)].to_numpy() > 0
    gram = x[train].T @ x[train] + 300 * np.eye(x.shape[1])
    score = x[~train] @ np.linalg.solve(gram, x[train].T @ (present[train] - present[train].mean(axis=0)))
    for k, family in enumerate(FAMILIES):
        shown = present[~train, k]
        area = (score[shown, k][:, None] > score[~shown, k]).mean()
        assert area > 0.7, f"{family}: area under the curve {area:.2f}, chance 0.5"
